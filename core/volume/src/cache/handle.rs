//! A vDisk's part in the cache.

use super::{Cache, Location, OwnerId, PoolNumber, VdiskCacheStats, quota_blocks};
use ovs_format::sco::ScoRef;
use ovs_units::{CLUSTER_SIZE_BYTES, CacheMode, VdiskCache, VpoolId, planted};
use std::{cell::Cell, rc::Rc};

/// See the module. What the vDisk has brought in stays when this goes, for whoever else can use it.
pub(crate) struct Handle {
    /// None: there is no cache here.
    cache: Option<(Rc<Cache>, PoolNumber)>,
    settings: Cell<VdiskCache>,
    mode: Cell<CacheMode>,
    owner: Cell<Option<OwnerId>>,
    hits: Cell<u64>,
    misses: Cell<u64>,
}

/// Who reads.
#[derive(Clone, Copy)]
pub(crate) struct Who<'a> {
    pub(crate) cache: &'a Cache,
    pub(crate) owner: OwnerId,
    pool: PoolNumber,
}

impl Who<'_> {
    pub(crate) fn location(&self, sco: &ScoRef, index: u32) -> Location {
        // An SCO has 2^15 clusters at most.
        Location { pool: self.pool, put: sco.put, index: index as u16 }
    }

    /// Clusters of an SCO from `first` on, with their checksums, if they are not there yet.
    pub(crate) fn fill<'b>(
        &self,
        sco: &ScoRef,
        first: u32,
        clusters: impl Iterator<Item = &'b [u8]>,
        checksums: &[u32],
    ) {
        for ((cluster, checksum), index) in clusters.zip(checksums).zip(first..) {
            self.cache.fill(self.location(sco, index), self.owner, cluster, *checksum);
        }
    }
}

impl Handle {
    pub(crate) fn new(cache: Option<Rc<Cache>>, vpool: VpoolId) -> Handle {
        let cache = cache.map(|cache| {
            let pool = cache.pool(vpool);
            (cache, pool)
        });
        let handle = Handle {
            cache,
            settings: Cell::default(),
            mode: Cell::new(CacheMode::None),
            owner: Cell::new(None),
            hits: Cell::new(0),
            misses: Cell::new(0),
        };
        handle.apply();
        handle
    }

    pub(crate) fn set(&self, settings: VdiskCache) {
        self.settings.set(settings);
        self.apply();
    }

    /// Its vPool may have other settings now.
    pub(crate) fn apply(&self) {
        let Some((cache, pool)) = &self.cache else { return };
        let (of_pool, own) = (cache.settings(*pool), self.settings.get());
        self.mode.set(of_pool.mode_of(own));
        let mut index = cache.index.borrow_mut();
        // One that is promised more than there is takes no more from the others for that.
        let quota = quota_blocks(of_pool, own).map(|quota| quota.min(index.capacity()));
        match (self.mode.get(), self.owner.get()) {
            (CacheMode::None, _) => {
                drop(index);
                self.leave();
            }
            (_, Some(owner)) => index.owners.set_quota(owner, quota),
            (_, None) => self.owner.set(index.owners.enter(quota)),
        }
    }

    /// Nothing more goes in, and what is there is anybody's.
    pub(crate) fn leave(&self) {
        if let (Some((cache, _)), Some(owner)) = (&self.cache, self.owner.take()) {
            cache.index.borrow_mut().owners.leave(owner);
        }
    }

    /// Who reads, if the cache is to be asked.
    pub(crate) fn reader(&self) -> Option<Who<'_>> {
        let (cache, pool) = self.cache.as_ref()?;
        Some(Who { cache, owner: self.owner.get()?, pool: *pool })
    }

    /// The same of what is written, if that is to go in.
    pub(crate) fn writer(&self) -> Option<Who<'_>> {
        self.reader().filter(|_| self.mode.get() == CacheMode::ReadWrite)
    }

    pub(crate) fn count(&self, hits: u64, misses: u64) {
        self.hits.set(self.hits.get() + hits);
        self.misses.set(self.misses.get() + misses);
        if let Some((cache, _)) = &self.cache {
            cache.missed(misses);
        }
    }

    /// None: there is no cache here.
    pub(crate) fn stats(&self) -> Option<VdiskCacheStats> {
        let (cache, pool) = self.cache.as_ref()?;
        let charge = |owner| cache.index.borrow().owners.get(owner).charge();
        Some(VdiskCacheStats {
            mode: self.mode.get(),
            quota_bytes: cache.settings(*pool).quota_of(self.settings.get()),
            used_bytes: self.owner.get().map_or(0, charge) * CLUSTER_SIZE_BYTES,
            hits: self.hits.get(),
            misses: self.misses.get(),
        })
    }

    /// What was put of an SCO, cluster by cluster.
    pub(crate) fn is_put(&self, sco: &ScoRef, data: &[bytes::Bytes], checksums: &[u32]) {
        if let Some(writer) = self.writer() {
            let first = u32::from(planted("cache: what is put is kept one place too far"));
            let clusters = data.iter().flat_map(|part| part.chunks(CLUSTER_SIZE_BYTES as usize));
            writer.fill(sco, first, clusters, checksums);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.leave();
    }
}
