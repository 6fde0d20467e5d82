//! The read cache: clusters that were read from a backend, or put there, in memory and on an SSD.
//!
//! ```text
//!  read of a vDisk ─▶ location: (vPool, put, cluster) ─▶ entry ─▶ block ─▶ in memory: answered at once
//!                          │ none                            └────▶ on SSD: read, and into memory again
//!                          ▼                                                  │ not what its checksum says
//!                       backend ─▶ verified ─▶ new entry ─▶ memory ─▶ SSD     ▼
//!                          ▲──────────────────────────────────────────────────┘
//! ```
//!
//! Invariants
//! * A location means the same bytes for ever, so an entry is never out of date, only unneeded
//!   (`docs/decisions/0010-read-cache.md`).
//! * What is served has the checksum that its own SCO has for it. What has not is forgotten, counted, and read from the backend.
//! * Who has no more than its quota loses nothing to others, as long as the quotas fit (`owners.rs`).
//! * Nothing here fails a read, and nothing that counts is only here.
//!
//! Not here: which bytes a read needs (`vdisk/cached.rs`). No time, no threads, no order that chance decides.

mod blocks;
mod device;
mod entries;
mod ghost;
mod handle;
mod index;
mod memory;
mod owners;
mod ssd;
mod stats;

pub use device::{CacheDevice, FileCache};
pub(crate) use entries::Location;
pub(crate) use handle::{Handle, Who};
pub(crate) use owners::OwnerId;
pub use stats::{CacheStats, CacheTierStats, VdiskCacheStats};

use crate::Chance;
use bytes::Bytes;
use index::Index;
use ovs_units::{CLUSTER_SIZE_BYTES, CacheDedup, VdiskCache, VpoolCache, VpoolId, planted};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
};

/// Of the slots of an SSD one in so many is spare: what has gone may still be on its way there.
const SPARE_ONE_IN: usize = 16;
const SPARE_MAX: usize = 2048;

/// What an engine's cache is made of.
#[derive(Clone)]
pub struct CacheParts {
    /// Memory for blocks; what is kept of each beside comes on top (see `docs/decisions/0010-read-cache.md`).
    pub memory_bytes: u64,
    /// An SSD for more of them. It then has all blocks, and memory those that were used last.
    pub device: Option<Rc<dyn CacheDevice>>,
}

/// The number of a vPool here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolNumber(u16);

struct Pool {
    id: VpoolId,
    settings: VpoolCache,
    /// What is in its blocks is told by a hash under this key, so that it is never taken for what is in another vPool's.
    key: [u8; 32],
}

/// Where a location's bytes are.
pub(crate) enum Looked {
    Memory(Bytes),
    Ssd(u32),
    Nowhere,
}

/// See the module. One per engine.
pub(crate) struct Cache {
    index: RefCell<Index>,
    pools: RefCell<Vec<Pool>>,
    chance: Rc<dyn Chance>,
    device: RefCell<Option<Rc<dyn CacheDevice>>>,
    /// Blocks on their way to the SSD.
    to_write: RefCell<VecDeque<u32>>,
    is_writing: Cell<bool>,
    counters: stats::Counters,
    this: Weak<Cache>,
}

impl Cache {
    pub(crate) fn new(parts: CacheParts, chance: Rc<dyn Chance>) -> Rc<Cache> {
        let memory = (parts.memory_bytes / CLUSTER_SIZE_BYTES) as usize;
        let slots = parts.device.as_ref().map_or(memory, |device| device.slot_count() as usize);
        let spare = if parts.device.is_some() { (slots / SPARE_ONE_IN).min(SPARE_MAX) } else { 0 };
        Rc::new_cyclic(|this| Cache {
            index: RefCell::new(Index::new(slots - spare, slots, memory)),
            pools: RefCell::default(),
            chance,
            device: RefCell::new(parts.device),
            to_write: RefCell::default(),
            is_writing: Cell::new(false),
            counters: stats::Counters::default(),
            this: this.clone(),
        })
    }

    /// The vPool's number; it has the settings of nobody who has said anything before.
    pub(crate) fn pool(&self, id: VpoolId) -> PoolNumber {
        let mut pools = self.pools.borrow_mut();
        let known = pools.iter().position(|pool| pool.id == id);
        let index = known.unwrap_or_else(|| {
            let mut key = [0; 32];
            if !planted("cache: content is shared between vPools") {
                let halves = key.chunks_exact_mut(16);
                halves.for_each(|half| half.copy_from_slice(self.chance.uuid().as_bytes()));
            }
            pools.push(Pool { id, settings: VpoolCache::default(), key });
            pools.len() - 1
        });
        PoolNumber(u16::try_from(index).expect("a process has seen fewer vPools than that"))
    }

    pub(crate) fn set_pool(&self, id: VpoolId, settings: VpoolCache) {
        let number = self.pool(id);
        self.pools.borrow_mut()[usize::from(number.0)].settings = settings;
    }

    fn settings(&self, pool: PoolNumber) -> VpoolCache {
        self.pools.borrow()[usize::from(pool.0)].settings
    }

    /// Looks for a cluster, without a wait.
    pub(crate) fn look(&self, location: &Location, user: OwnerId) -> Looked {
        let mut index = self.index.borrow_mut();
        let Some(id) = index.entries.find(location) else { return Looked::Nowhere };
        index.touch(id, user);
        let entry = index.entries.get(id);
        let (block, checksum) = (entry.block, entry.checksum);
        match index.blocks.in_memory(block) {
            Some(bytes) if is_right(&bytes, checksum) => {
                self.counters.memory.hit();
                Looked::Memory(bytes)
            }
            Some(_) => {
                index.remove_damaged(id);
                self.counters.memory.damaged();
                Looked::Nowhere
            }
            None => Looked::Ssd(block),
        }
    }

    /// A cluster that was not there, as the backend has it.
    pub(crate) fn fill(&self, location: Location, owner: OwnerId, bytes: &[u8], checksum: u32) {
        if bytes.len() as u64 != CLUSTER_SIZE_BYTES || !self.has_room_to_write(owner) {
            return self.counters.skipped();
        }
        let mut index = self.index.borrow_mut();
        if index.entries.find(&location).is_some() {
            return; // somebody else was as quick
        }
        let fingerprint = self.fingerprint(location.pool, bytes);
        // A copy: a part of what was read at once would keep all of it.
        let added = index.add(location, owner, checksum, || Bytes::copy_from_slice(bytes), fingerprint);
        drop(index);
        match added {
            Some((block, true)) => {
                self.counters.filled();
                self.write_soon(block);
            }
            Some((_, false)) => self.counters.shared(),
            None => self.counters.skipped(),
        }
    }

    fn fingerprint(&self, pool: PoolNumber, bytes: &[u8]) -> Option<blocks::Fingerprint> {
        let pools = self.pools.borrow();
        let pool = &pools[usize::from(pool.0)];
        (pool.settings.dedup == CacheDedup::Content).then(|| {
            let hash = blake3::keyed_hash(&pool.key, bytes);
            let (half, _) = hash.as_bytes().split_at(16);
            // 0 says that there is none.
            u128::from_le_bytes(half.try_into().expect("half of it")).max(1)
        })
    }

    /// Nobody will ask for these again: their SCO is removed.
    pub(crate) fn forget(&self, locations: impl Iterator<Item = Location>) {
        let mut index = self.index.borrow_mut();
        for location in locations {
            if let Some(id) = index.entries.find(&location) {
                index.remove(id);
            }
        }
    }
}

fn is_right(bytes: &[u8], checksum: u32) -> bool {
    bytes.len() as u64 == CLUSTER_SIZE_BYTES && ovs_format::checksum(bytes) == checksum
        || planted("cache: a damaged block is served")
}

/// A vDisk's settings, and those of its vPool, as the index takes them.
fn quota_blocks(settings: VpoolCache, vdisk: VdiskCache) -> Option<u64> {
    settings.quota_of(vdisk).map(|bytes| bytes / CLUSTER_SIZE_BYTES)
}

#[cfg(test)]
mod tests;
