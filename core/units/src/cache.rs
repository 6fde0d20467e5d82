//! What the read cache does for a vDisk, and for the vDisks of a vPool that do not say.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Less than a block is no quota.
pub const CACHE_QUOTA_BYTES_MIN: u64 = 4096;
/// 1 PiB: no cache is larger.
pub const CACHE_QUOTA_BYTES_MAX: u64 = 1 << 50;

/// What of a vDisk goes into the read cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// Nothing, and nothing is looked up.
    None,
    /// What is read from the backend.
    #[default]
    Read,
    /// That, and what is written when it has gone to the backend.
    ReadWrite,
}

/// What two cached blocks are the same by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheDedup {
    /// By where they are on the backend: a vDisk and its clones share what they have in common.
    #[default]
    Location,
    /// By what is in them as well: the same 4 KiB of several vDisks of the vPool are held once.
    Content,
}

/// What a vDisk says of its cache; what it does not say its vPool does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiskCache {
    /// What of it goes into the read cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<CacheMode>,
    /// What others cannot take from it. Not a limit: what nobody needs anybody may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
}

/// What holds for the vDisks of a vPool that do not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VpoolCache {
    /// What of them goes into the read cache.
    #[serde(default)]
    pub mode: CacheMode,
    /// What others cannot take from each of them; missing: an equal share of what quotas leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// What two blocks are the same by.
    #[serde(default)]
    pub dedup: CacheDedup,
}

/// A quota that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("quota_bytes: {given} is not allowed: 4KiB to 1PiB")]
pub struct QuotaError {
    /// What was given.
    pub given: u64,
}

fn check_quota(quota_bytes: Option<u64>) -> Result<(), QuotaError> {
    match quota_bytes {
        Some(given) if !(CACHE_QUOTA_BYTES_MIN..=CACHE_QUOTA_BYTES_MAX).contains(&given) => {
            Err(QuotaError { given })
        }
        _ => Ok(()),
    }
}

impl CacheMode {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            CacheMode::None => "none",
            CacheMode::Read => "read",
            CacheMode::ReadWrite => "read_write",
        }
    }
}

impl CacheDedup {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            CacheDedup::Location => "location",
            CacheDedup::Content => "content",
        }
    }
}

impl VdiskCache {
    /// Its vPool decides.
    pub fn is_default(&self) -> bool {
        *self == VdiskCache::default()
    }

    /// Refuses what no vDisk may have.
    pub fn check(&self) -> Result<(), QuotaError> {
        check_quota(self.quota_bytes)
    }
}

impl VpoolCache {
    /// Nobody has said anything.
    pub fn is_default(&self) -> bool {
        *self == VpoolCache::default()
    }

    /// Refuses what no vPool may have.
    pub fn check(&self) -> Result<(), QuotaError> {
        check_quota(self.quota_bytes)
    }

    /// The mode of a vDisk that says this.
    pub fn mode_of(&self, vdisk: VdiskCache) -> CacheMode {
        vdisk.mode.unwrap_or(self.mode)
    }

    /// The quota of a vDisk that says this; none where nothing is cached.
    pub fn quota_of(&self, vdisk: VdiskCache) -> Option<u64> {
        vdisk.quota_bytes.or(self.quota_bytes).filter(|_| self.mode_of(vdisk) != CacheMode::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vdisk_goes_before_its_vpool() {
        let vpool = VpoolCache { quota_bytes: Some(8192), ..VpoolCache::default() };
        let own = VdiskCache { mode: Some(CacheMode::ReadWrite), quota_bytes: Some(1 << 20) };
        let off = VdiskCache { mode: Some(CacheMode::None), ..own };
        assert_eq!(vpool.quota_of(VdiskCache::default()), Some(8192));
        assert_eq!(vpool.mode_of(VdiskCache::default()), CacheMode::Read);
        assert_eq!((vpool.mode_of(own), vpool.quota_of(own)), (CacheMode::ReadWrite, Some(1 << 20)));
        assert_eq!((vpool.mode_of(off), vpool.quota_of(off)), (CacheMode::None, None));
    }

    #[test]
    fn quotas_have_bounds() {
        let check = |given| VdiskCache { quota_bytes: Some(given), mode: None }.check();
        assert_eq!((check(4096), check(1 << 50)), (Ok(()), Ok(())));
        for given in [0, 4095, (1 << 50) + 1, u64::MAX] {
            assert_eq!(check(given), Err(QuotaError { given }));
            assert!(VpoolCache { quota_bytes: Some(given), ..VpoolCache::default() }.check().is_err());
        }
    }

    #[test]
    fn they_are_written_as_they_are_named() {
        for mode in [CacheMode::None, CacheMode::Read, CacheMode::ReadWrite] {
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.as_str());
        }
        for dedup in [CacheDedup::Location, CacheDedup::Content] {
            assert_eq!(serde_json::to_value(dedup).unwrap(), dedup.as_str());
        }
        assert_eq!(serde_json::from_str::<VpoolCache>("{}").unwrap(), VpoolCache::default());
    }
}
