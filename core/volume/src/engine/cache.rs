//! The read cache of all vDisks.

use super::Engine;
use crate::{CacheStats, Vdisk};
use ovs_units::{VpoolCache, VpoolId};

impl Engine {
    /// What of a vPool's vDisks is cached, where they do not say it themselves; at once.
    pub fn set_vpool_cache(&self, vpool: VpoolId, settings: VpoolCache) {
        if let Some(cache) = &self.inner.context.cache {
            cache.set_pool(vpool, settings);
            let vdisks = self.inner.vdisks.borrow();
            vdisks
                .values()
                .filter(|vdisk| vdisk.vpool() == vpool)
                .for_each(|vdisk| vdisk.inner.cached.apply());
        }
    }

    pub(super) fn cache_stats(&self) -> Option<CacheStats> {
        let cache = self.inner.context.cache.as_ref()?;
        Some(cache.stats(self.cache_quotas()))
    }

    fn cache_quotas(&self) -> u64 {
        let vdisks = self.inner.vdisks.borrow();
        let living = vdisks.values().filter(|vdisk| !vdisk.inner.head.borrow().head.deleted);
        let quota = |vdisk: &Vdisk| vdisk.cache_stats().and_then(|cache| cache.quota_bytes);
        living.filter_map(quota).fold(0, u64::saturating_add)
    }
}
