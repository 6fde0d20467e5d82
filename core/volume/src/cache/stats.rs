//! What the cache tells of itself.

use super::Cache;
use ovs_units::{CLUSTER_SIZE_BYTES, CacheMode};
use std::cell::Cell;

/// Figures of the cache since the engine was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// What it may hold.
    pub capacity_bytes: u64,
    /// What it holds.
    pub used_bytes: u64,
    /// The quotas of the vDisks that are open, together.
    pub quotas_bytes: u64,
    /// Clusters that are in it; with content shared more than `used_bytes` would do for.
    pub entries: u64,
    /// Memory.
    pub memory: CacheTierStats,
    /// SSD; none: there is none, or it has failed.
    pub ssd: Option<CacheTierStats>,
    /// Clusters that were in neither.
    pub misses: u64,
    /// Clusters that came in.
    pub filled: u64,
    /// Of what came in, what was there already under another location.
    pub shared: u64,
    /// Clusters that did not come in, for want of room or because the SSD cannot keep up.
    pub skipped: u64,
    /// Clusters that went to make room.
    pub evicted: u64,
}

/// Figures of memory, or of the SSD.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheTierStats {
    /// What it may hold.
    pub capacity_bytes: u64,
    /// What it holds.
    pub used_bytes: u64,
    /// Clusters that were read from it.
    pub hits: u64,
    /// Clusters that were not what they should be, and were read from the backend.
    pub damaged: u64,
}

/// Figures of a vDisk in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VdiskCacheStats {
    /// What of it goes in.
    pub mode: CacheMode,
    /// What others cannot take from it.
    pub quota_bytes: Option<u64>,
    /// What is charged to it.
    pub used_bytes: u64,
    /// Clusters that it has read from the cache since it was opened.
    pub hits: u64,
    /// Clusters that it has not.
    pub misses: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) memory: Tier,
    pub(super) ssd: Tier,
    misses: Cell<u64>,
    filled: Cell<u64>,
    shared: Cell<u64>,
    skipped: Cell<u64>,
}

#[derive(Default)]
pub(super) struct Tier {
    hits: Cell<u64>,
    damaged: Cell<u64>,
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

impl Tier {
    pub(super) fn hit(&self) {
        count(&self.hits);
    }

    pub(super) fn damaged(&self) {
        count(&self.damaged);
    }

    fn told(&self, capacity: usize, used: usize) -> CacheTierStats {
        CacheTierStats {
            capacity_bytes: bytes(capacity),
            used_bytes: bytes(used),
            hits: self.hits.get(),
            damaged: self.damaged.get(),
        }
    }
}

impl Counters {
    pub(super) fn filled(&self) {
        count(&self.filled);
    }

    pub(super) fn shared(&self) {
        count(&self.filled);
        count(&self.shared);
    }

    pub(super) fn skipped(&self) {
        count(&self.skipped);
    }
}

fn bytes(blocks: usize) -> u64 {
    blocks as u64 * CLUSTER_SIZE_BYTES
}

impl Cache {
    /// Clusters that a read did not find.
    pub(crate) fn missed(&self, clusters: u64) {
        self.counters.misses.set(self.counters.misses.get() + clusters);
    }

    /// Figures as of now.
    pub(crate) fn stats(&self, quotas_bytes: u64) -> CacheStats {
        let (index, c) = (self.index.borrow(), &self.counters);
        let memory = index.blocks.memory();
        let has_ssd = self.device.borrow().is_some();
        CacheStats {
            capacity_bytes: bytes(index.capacity() as usize),
            used_bytes: bytes(index.blocks.used()),
            quotas_bytes,
            entries: index.entries.len() as u64,
            memory: c.memory.told(memory.capacity(), memory.len()),
            ssd: has_ssd.then(|| c.ssd.told(index.capacity() as usize, index.blocks.used())),
            misses: c.misses.get(),
            filled: c.filled.get(),
            shared: c.shared.get(),
            skipped: c.skipped.get(),
            evicted: index.evicted,
        }
    }
}
