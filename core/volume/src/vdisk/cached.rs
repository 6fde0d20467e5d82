//! Reading what is on the backend, through the cache.

use super::{Inner, Vdisk};
use crate::VolumeError;
use crate::cache::{Location, Looked, VdiskCacheStats, Who};
use bytes::{Bytes, BytesMut};
use ovs_format::sco::ScoRef;
use ovs_units::{CLUSTER_SIZE_BYTES, VdiskCache};

impl Vdisk {
    /// What of it is cached from now on, and how much of that others cannot take.
    pub fn set_cache(&self, settings: VdiskCache) {
        self.inner.cached.set(settings);
    }

    /// Its part in the cache; none where there is no cache.
    pub fn cache_stats(&self) -> Option<VdiskCacheStats> {
        self.inner.cached.stats()
    }
}

impl Inner {
    /// Clusters `offset .. offset + count` of an SCO.
    pub(super) async fn read_cached(
        &self,
        who: Who<'_>,
        sco: &ScoRef,
        offset: u32,
        count: u32,
    ) -> Result<Bytes, VolumeError> {
        let mut first = Some(who.cache.look(&who.location(sco, offset), who.owner));
        if let (1, Some(Looked::Memory(bytes))) = (count, &first) {
            self.cached.count(1, 0);
            return Ok(bytes.clone()); // the usual case: no wait, no copy
        }
        let mut found: Vec<Option<Bytes>> = vec![None; count as usize];
        let mut on_ssd: Vec<(Location, u32)> = Vec::new();
        let mut places = Vec::new();
        for (place, index) in (offset..offset + count).enumerate() {
            let location = who.location(sco, index);
            match first.take().unwrap_or_else(|| who.cache.look(&location, who.owner)) {
                Looked::Memory(bytes) => found[place] = Some(bytes),
                Looked::Ssd(block) => {
                    on_ssd.push((location, block));
                    places.push(place);
                }
                Looked::Nowhere => {}
            }
        }
        if !on_ssd.is_empty() {
            let read = who.cache.read_ssd(&on_ssd).await;
            places.into_iter().zip(read).for_each(|(place, bytes)| found[place] = bytes);
        }
        let missing = found.iter().filter(|bytes| bytes.is_none()).count() as u64;
        self.cached.count(u64::from(count) - missing, missing);
        let is_missing = |bytes: &Option<Bytes>| bytes.is_none();
        let (Some(first), Some(last)) =
            (found.iter().position(is_missing), found.iter().rposition(is_missing))
        else {
            return Ok(together(found.iter().flatten()));
        };
        // One request, also for what is cached between two that are not.
        let (from, length) = (offset + first as u32, (last - first + 1) as u32);
        let (bytes, checksums) = self
            .patiently(async || {
                self.context.sco_headers.read_with_sums(&*self.backend, sco, from, length).await
            })
            .await?;
        // It may have been closed meanwhile, or told to cache no more.
        if let Some(who) = self.cached.reader() {
            who.fill(sco, from, bytes.chunks(CLUSTER_SIZE_BYTES as usize), &checksums);
        }
        if length == count {
            return Ok(bytes);
        }
        let (before, after) = (&found[..first], &found[last + 1..]);
        Ok(together(before.iter().flatten().chain([&bytes]).chain(after.iter().flatten())))
    }

    /// Nobody reads this SCO any more.
    pub(super) fn forget_cached(&self, sco: &ScoRef) {
        if let Some(who) = self.cached.reader() {
            who.cache.forget((0..sco.cluster_count).map(|index| who.location(sco, index)));
        }
    }
}

fn together<'a>(parts: impl Iterator<Item = &'a Bytes> + Clone) -> Bytes {
    let mut all = BytesMut::with_capacity(parts.clone().map(Bytes::len).sum());
    parts.for_each(|part| all.extend_from_slice(part));
    all.freeze()
}
