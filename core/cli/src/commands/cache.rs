//! `ovs vdisk cache`, `ovs vpool cache`: what goes into the read cache, and what of it is whose.

use super::Context;
use crate::{
    args::{VdiskCacheArgs, VpoolCacheArgs, target::VdiskTarget},
    failure::Failure,
    output::{Fields, size},
};
use ovs_api::{PatchVdisk, PatchVpool, VdiskCacheStats};
use ovs_units::{CacheMode, Name, VdiskCache, VpoolCache};

pub(super) async fn of_vdisk(
    context: &Context,
    vdisk: VdiskTarget,
    args: VdiskCacheArgs,
) -> Result<(), Failure> {
    let cache = args.patch();
    if cache.is_empty() {
        let shown = context.client.get_vdisk(&vdisk.0).await?;
        let lines = vdisk_line(&shown.cache).unwrap_or_else(|| "as its vPool says".to_owned());
        return context.output.object(&shown.cache, |_| Fields::new().with("read cache", &lines).to_string());
    }
    let changed =
        context.client.update_vdisk(&vdisk.0, &PatchVdisk { cache, ..PatchVdisk::default() }).await?;
    let told = vdisk_line(&changed.cache).unwrap_or_else(|| "as its vPool says".to_owned());
    context.output.done(&changed, format!("read cache of {vdisk}: {told}"))
}

pub(super) async fn of_vpool(context: &Context, vpool: Name, args: VpoolCacheArgs) -> Result<(), Failure> {
    let cache = args.patch();
    if cache.is_empty() {
        let shown = context.client.get_vpool(&vpool).await?;
        let line = vpool_line(&shown.cache);
        return context.output.object(&shown.cache, |_| Fields::new().with("read cache", &line).to_string());
    }
    let changed = context.client.update_vpool(&vpool, &PatchVpool { cache, ..PatchVpool::default() }).await?;
    context.output.done(&changed, format!("read cache of {vpool}: {}", vpool_line(&changed.cache)))
}

fn mode(mode: CacheMode) -> String {
    mode.as_str().replace('_', "-")
}

fn quota(bytes: u64) -> String {
    format!("quota {}", size(bytes))
}

/// What a vDisk says itself, if anything.
pub(super) fn vdisk_line(cache: &VdiskCache) -> Option<String> {
    let said = [cache.mode.map(mode), cache.quota_bytes.map(quota)];
    let said: Vec<String> = said.into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join(", "))
}

/// What holds for a vPool.
pub(super) fn vpool_line(cache: &VpoolCache) -> String {
    let quota = cache.quota_bytes.map_or_else(|| "no quota".to_owned(), quota);
    format!("{}, {quota} for each vDisk, shared by {}", mode(cache.mode), cache.dedup.as_str())
}

/// What a vDisk has of the cache.
pub(super) fn stats_line(stats: &VdiskCacheStats) -> String {
    let quota = stats.quota_bytes.map(|bytes| format!(", {}", quota(bytes))).unwrap_or_default();
    let (hits, misses) = (stats.hit_count, stats.miss_count);
    format!(
        "{}, {} used{quota}, {hits} clusters found, {misses} not",
        mode(stats.mode),
        size(stats.used_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_units::CacheDedup;

    #[test]
    fn as_people_see_it() {
        let own = VdiskCache { mode: Some(CacheMode::ReadWrite), quota_bytes: Some(1 << 30) };
        assert_eq!(vdisk_line(&own), Some("read-write, quota 1GiB".into()));
        assert_eq!(vdisk_line(&VdiskCache::default()), None);
        let vpool =
            VpoolCache { quota_bytes: Some(1 << 20), dedup: CacheDedup::Content, ..VpoolCache::default() };
        assert_eq!(vpool_line(&vpool), "read, quota 1MiB for each vDisk, shared by content");
        assert_eq!(vpool_line(&VpoolCache::default()), "read, no quota for each vDisk, shared by location");
        let stats = VdiskCacheStats {
            mode: CacheMode::Read,
            quota_bytes: Some(2 << 20),
            used_bytes: 1 << 20,
            hit_count: 7,
            miss_count: 3,
        };
        assert_eq!(stats_line(&stats), "read, 1MiB used, quota 2MiB, 7 clusters found, 3 not");
    }
}
