//! The read cache as requests give it, and as it is shown.

use crate::Problem;
use ovs_units::{
    CACHE_QUOTA_BYTES_MAX, CACHE_QUOTA_BYTES_MIN, CacheDedup, CacheMode, QuotaError, VdiskCache, VpoolCache,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// A change to a vDisk's part in the read cache: a value sets, null leaves it to the vPool, what is not given stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiskCachePatch {
    /// What of it goes into the cache.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub mode: Option<Option<CacheMode>>,
    /// What others cannot take from it. Not a limit: what nobody needs anybody may use. All quotas together may be more than
    /// the cache; then each counts in proportion.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schemars(range(min = 4096, max = 1_125_899_906_842_624_u64))]
    pub quota_bytes: Option<Option<u64>>,
}

/// A change to what holds for a vPool's vDisks that do not say it themselves: a value sets, null removes, what is not
/// given stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VpoolCachePatch {
    /// `read` where nobody has said anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<CacheMode>,
    /// Of each vDisk; without one it has an equal share of what quotas leave.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schemars(range(min = 4096, max = 1_125_899_906_842_624_u64))]
    pub quota_bytes: Option<Option<u64>>,
    /// `location` where nobody has said anything. For what comes in from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedup: Option<CacheDedup>,
}

const _: () = assert!(CACHE_QUOTA_BYTES_MIN == 4096 && CACHE_QUOTA_BYTES_MAX == 1_125_899_906_842_624);

/// A vDisk in the read cache, since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiskCacheStats {
    /// What of it goes into the cache: its own word, or its vPool's.
    pub mode: CacheMode,
    /// What others cannot take from it: its own, or its vPool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// What of the cache is charged to it.
    pub used_bytes: u64,
    /// Clusters of 4 KiB that it has read from the cache.
    pub hit_count: u64,
    /// Clusters that it has read from the backend.
    pub miss_count: u64,
}

/// The read cache of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheSpace {
    /// What it may hold.
    pub total_bytes: u64,
    /// What it holds.
    pub used_bytes: u64,
    /// Of that, what is in memory as well.
    pub memory_used_bytes: u64,
    /// True when an SSD holds it; false also when its SSD has failed.
    pub has_ssd: bool,
    /// The quotas of all vDisks together.
    pub quotas_bytes: u64,
}

/// Something, be it null.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn refused(error: QuotaError) -> Problem {
    Problem::field("cache.quota_bytes", error.given, "4096 (4 KiB) to 1125899906842624 (1 PiB)")
}

impl VdiskCachePatch {
    /// Nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == VdiskCachePatch::default()
    }

    /// What a vDisk says after the change; refused when no vDisk may say that.
    pub fn patch(&self, before: VdiskCache) -> Result<VdiskCache, Problem> {
        let patched = VdiskCache {
            mode: self.mode.unwrap_or(before.mode),
            quota_bytes: self.quota_bytes.unwrap_or(before.quota_bytes),
        };
        patched.check().map_err(refused)?;
        Ok(patched)
    }
}

impl VpoolCachePatch {
    /// Nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == VpoolCachePatch::default()
    }

    /// What holds for the vPool after the change; refused when that cannot be.
    pub fn patch(&self, before: VpoolCache) -> Result<VpoolCache, Problem> {
        let patched = VpoolCache {
            mode: self.mode.unwrap_or(before.mode),
            quota_bytes: self.quota_bytes.unwrap_or(before.quota_bytes),
            dedup: self.dedup.unwrap_or(before.dedup),
        };
        patched.check().map_err(refused)?;
        Ok(patched)
    }
}

/// What a vDisk says, given.
impl From<VdiskCache> for VdiskCachePatch {
    fn from(cache: VdiskCache) -> VdiskCachePatch {
        VdiskCachePatch { mode: cache.mode.map(Some), quota_bytes: cache.quota_bytes.map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(before: Value, patch: Value, expected: Result<Value, &str>) {
        let parsed: VdiskCachePatch = serde_json::from_value(patch.clone()).unwrap();
        assert_eq!(serde_json::to_value(parsed).unwrap(), patch, "it is sent as it was read");
        match (parsed.patch(serde_json::from_value(before).unwrap()), expected) {
            (Ok(after), Ok(expected)) => assert_eq!(serde_json::to_value(after).unwrap(), expected),
            (Err(problem), Err(part)) => assert!(problem.detail.contains(part), "{}", problem.detail),
            (found, _) => panic!("{patch}: {found:?}"),
        }
    }

    #[test]
    fn a_value_sets_null_removes_and_the_rest_stays() {
        check(json!({}), json!({"mode": "read_write"}), Ok(json!({"mode": "read_write"})));
        check(
            json!({"mode": "none", "quota_bytes": 8192}),
            json!({"mode": null}),
            Ok(json!({"quota_bytes": 8192})),
        );
        check(
            json!({"mode": "none", "quota_bytes": 8192}),
            json!({"quota_bytes": null}),
            Ok(json!({"mode": "none"})),
        );
        check(
            json!({}),
            json!({"quota_bytes": 4095}),
            Err("cache.quota_bytes: \"4095\" is not allowed: 4096"),
        );
        for bad in [
            json!({"mode": "write"}),
            json!({"quota_bytes": "1GiB"}),
            json!({"quota_bytes": -1}),
            json!({"x": 1}),
        ] {
            assert!(serde_json::from_value::<VdiskCachePatch>(bad.clone()).is_err(), "{bad}");
        }
        let own = VdiskCache { mode: Some(CacheMode::Read), quota_bytes: Some(8192) };
        assert_eq!(VdiskCachePatch::from(own).patch(VdiskCache::default()), Ok(own));
        assert!(VdiskCachePatch::from(VdiskCache::default()).is_empty());
    }

    #[test]
    fn a_vpool_has_a_mode_and_a_way_to_share_and_may_have_a_quota() {
        let patch: VpoolCachePatch =
            serde_json::from_value(json!({"quota_bytes": 8192, "dedup": "content"})).unwrap();
        let after = patch.patch(VpoolCache::default()).unwrap();
        assert_eq!(
            after,
            VpoolCache { mode: CacheMode::Read, quota_bytes: Some(8192), dedup: CacheDedup::Content }
        );
        let none: VpoolCachePatch =
            serde_json::from_value(json!({"quota_bytes": null, "mode": "none"})).unwrap();
        assert_eq!(
            none.patch(after).unwrap(),
            VpoolCache { mode: CacheMode::None, quota_bytes: None, dedup: CacheDedup::Content }
        );
        let bad: VpoolCachePatch = serde_json::from_value(json!({"quota_bytes": 1})).unwrap();
        assert!(bad.patch(after).unwrap_err().detail.contains("cache.quota_bytes"));
        assert!(serde_json::from_value::<VpoolCachePatch>(json!({"mode": null})).unwrap().is_empty());
    }
}
