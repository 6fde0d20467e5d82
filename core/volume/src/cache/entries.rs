//! The locations that are cached: a slab, a table to find them by, and the queues that they are in.
//!
//! Invariant: an entry is in the table and in exactly one queue of its owner, or it is free.

use super::PoolNumber;
use super::owners::OwnerId;
use hashbrown::HashTable;
use ovs_units::{PutId, planted};

/// No entry, no block, no place in memory.
pub(super) const NONE: u32 = u32::MAX;
/// How often a use is remembered.
const USES_MAX: u8 = 3;

/// Where a cluster is, for ever: a put is never repeated with other bytes, and what it has put never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) pool: PoolNumber,
    pub(crate) put: PutId,
    /// Of the cluster in the SCO that the put made.
    pub(crate) index: u16,
}

impl Location {
    pub(super) fn hash(&self) -> u64 {
        let pool = if planted("cache: a location of another vPool is believed") { 0 } else { self.pool.0 };
        // Puts are random: what is left to do is to tell their clusters apart.
        let (high, low) = self.put.0.as_u64_pair();
        let number = u64::from(pool) << 16 | u64::from(self.index);
        let mixed = (low ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed ^ high).rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn is(&self, other: &Location) -> bool {
        let any_pool = planted("cache: a location of another vPool is believed");
        self.put == other.put && self.index == other.index && (self.pool == other.pool || any_pool)
    }
}

/// A cached location.
pub(super) struct Entry {
    pub(super) location: Location,
    /// To whom it is charged.
    pub(super) owner: OwnerId,
    uses: u8,
    pub(super) is_old: bool,
    /// Of its bytes, as its SCO has it.
    pub(super) checksum: u32,
    /// Where its bytes are.
    pub(super) block: u32,
    newer: u32,
    older: u32,
}

const _: () = assert!(size_of::<Entry>() == 40, "docs/decisions/0010 counts on it");

impl Entry {
    pub(super) fn new(location: Location, owner: OwnerId, checksum: u32, block: u32) -> Entry {
        Entry { location, owner, uses: 0, is_old: false, checksum, block, newer: NONE, older: NONE }
    }

    pub(super) fn is_used(&mut self) {
        self.uses = (self.uses + 1).min(USES_MAX);
    }

    /// Has it been used since that was last asked? Of a use that is remembered several times, once.
    pub(super) fn takes_a_use(&mut self) -> bool {
        let used = self.uses > 0;
        self.uses = self.uses.saturating_sub(1);
        used
    }
}

/// See the module.
pub(super) struct Entries {
    slab: Vec<Entry>,
    free: Vec<u32>,
    table: HashTable<u32>,
}

impl Entries {
    /// Room is only set aside: what is not used takes no memory.
    pub(super) fn new(most: usize) -> Entries {
        Entries { slab: Vec::with_capacity(most), free: Vec::new(), table: HashTable::with_capacity(most) }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn find(&self, location: &Location) -> Option<u32> {
        self.table.find(location.hash(), |id| self.slab[*id as usize].location.is(location)).copied()
    }

    pub(super) fn get(&self, id: u32) -> &Entry {
        &self.slab[id as usize]
    }

    pub(super) fn get_mut(&mut self, id: u32) -> &mut Entry {
        &mut self.slab[id as usize]
    }

    /// In no queue yet.
    pub(super) fn add(&mut self, entry: Entry) -> u32 {
        let hash = entry.location.hash();
        let id = match self.free.pop() {
            Some(id) => {
                self.slab[id as usize] = entry;
                id
            }
            None => {
                self.slab.push(entry);
                self.slab.len() as u32 - 1
            }
        };
        let slab = &self.slab;
        self.table.insert_unique(hash, id, |other| slab[*other as usize].location.hash());
        id
    }

    /// It is in no queue any more.
    pub(super) fn remove(&mut self, id: u32) {
        let hash = self.slab[id as usize].location.hash();
        if let Ok(found) = self.table.find_entry(hash, |other| *other == id) {
            found.remove();
            self.free.push(id);
        }
    }
}

/// Entries in the order in which they came.
#[derive(Clone, Copy)]
pub(super) struct Queue {
    newest: u32,
    oldest: u32,
    pub(super) count: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Queue { newest: NONE, oldest: NONE, count: 0 }
    }
}

impl Queue {
    pub(super) fn push(&mut self, entries: &mut Entries, id: u32) {
        let entry = entries.get_mut(id);
        (entry.newer, entry.older) = (NONE, self.newest);
        match self.newest {
            NONE => self.oldest = id,
            newest => entries.get_mut(newest).newer = id,
        }
        self.newest = id;
        self.count += 1;
    }

    pub(super) fn unlink(&mut self, entries: &mut Entries, id: u32) {
        let Entry { newer, older, .. } = *entries.get(id);
        match newer {
            NONE => self.newest = older,
            newer => entries.get_mut(newer).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => entries.get_mut(older).newer = newer,
        }
        self.count -= 1;
    }

    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }
}
