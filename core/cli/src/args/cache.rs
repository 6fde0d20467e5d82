//! The read cache on the command line.

use clap::{Args, ValueEnum};
use ovs_api::{VdiskCachePatch, VpoolCachePatch};
use ovs_units::{CacheDedup, CacheMode, parse_size};

/// A value, or the word that takes it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given<T>(Option<T>);

/// What goes into the read cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheModeArg {
    /// Nothing
    None,
    /// What is read from the backend
    Read,
    /// That, and what is written when it has gone to the backend
    ReadWrite,
}

/// What two cached blocks are the same by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheDedupArg {
    /// Where they are: clones share what they have in common
    Location,
    /// What is in them as well: held once for all vDisks of the vPool
    Content,
}

impl From<CacheModeArg> for CacheMode {
    fn from(arg: CacheModeArg) -> CacheMode {
        match arg {
            CacheModeArg::None => CacheMode::None,
            CacheModeArg::Read => CacheMode::Read,
            CacheModeArg::ReadWrite => CacheMode::ReadWrite,
        }
    }
}

impl From<CacheDedupArg> for CacheDedup {
    fn from(arg: CacheDedupArg) -> CacheDedup {
        match arg {
            CacheDedupArg::Location => CacheDedup::Location,
            CacheDedupArg::Content => CacheDedup::Content,
        }
    }
}

/// A vDisk's part in the read cache.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Read cache; \"default\" leaves it to the vPool")]
pub struct VdiskCacheArgs {
    /// What of it is cached: none, read or read-write
    #[arg(long, value_name = "MODE", value_parser = mode)]
    pub cache_mode: Option<Given<CacheMode>>,
    /// What of the cache others cannot take from it, such as 2GiB
    #[arg(long, value_name = "SIZE", value_parser = vdisk_quota)]
    pub cache_quota: Option<Given<u64>>,
}

/// The read cache of a vPool's vDisks.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Read cache, of vDisks that do not say it themselves")]
pub struct VpoolCacheArgs {
    /// What is cached [default: read]
    #[arg(long, value_enum, value_name = "MODE")]
    pub cache_mode: Option<CacheModeArg>,
    /// What of the cache others cannot take from each of them, such as 2GiB; none: an equal share of the rest
    #[arg(long, value_name = "SIZE", value_parser = vpool_quota)]
    pub cache_quota: Option<Given<u64>>,
    /// What two blocks are the same by [default: location]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub cache_dedup: Option<CacheDedupArg>,
}

impl VdiskCacheArgs {
    /// As the RPC has it.
    pub fn patch(&self) -> VdiskCachePatch {
        VdiskCachePatch {
            mode: self.cache_mode.map(|given| given.0),
            quota_bytes: self.cache_quota.map(|given| given.0),
        }
    }
}

impl VpoolCacheArgs {
    /// As the RPC has it.
    pub fn patch(&self) -> VpoolCachePatch {
        VpoolCachePatch {
            mode: self.cache_mode.map(Into::into),
            quota_bytes: self.cache_quota.map(|given| given.0),
            dedup: self.cache_dedup.map(Into::into),
        }
    }
}

fn mode(text: &str) -> Result<Given<CacheMode>, String> {
    if text == "default" {
        return Ok(Given(None));
    }
    let refused = |_| {
        let given: String = text.chars().take(40).collect();
        format!("{given:?} is no mode: write none, read, read-write or default")
    };
    CacheModeArg::from_str(text, false).map(|mode| Given(Some(mode.into()))).map_err(refused)
}

fn quota(text: &str, nothing: &str) -> Result<Given<u64>, String> {
    match text {
        text if text == nothing => Ok(Given(None)),
        text => {
            parse_size(text).map(|bytes| Given(Some(bytes))).map_err(|error| format!("{error}; or {nothing}"))
        }
    }
}

fn vdisk_quota(text: &str) -> Result<Given<u64>, String> {
    quota(text, "default")
}

fn vpool_quota(text: &str) -> Result<Given<u64>, String> {
    quota(text, "none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_sizes() {
        assert_eq!(mode("read-write"), Ok(Given(Some(CacheMode::ReadWrite))));
        assert_eq!((mode("none"), mode("default")), (Ok(Given(Some(CacheMode::None))), Ok(Given(None))));
        assert_eq!(
            (vdisk_quota("2GiB"), vdisk_quota("default")),
            (Ok(Given(Some(2 << 30))), Ok(Given(None)))
        );
        assert_eq!(vpool_quota("none"), Ok(Given(None)));
        assert!(mode("write").unwrap_err().contains("read-write"));
        assert!(vdisk_quota("none").unwrap_err().contains("or default"));
        assert!(vpool_quota("-1").unwrap_err().contains("or none"));
    }

    #[test]
    fn every_word_means_what_it_says() {
        for (arg, mode) in CacheModeArg::value_variants().iter().zip(["none", "read", "read_write"]) {
            assert_eq!(CacheMode::from(*arg).as_str(), mode);
        }
        for (arg, dedup) in CacheDedupArg::value_variants().iter().zip(["location", "content"]) {
            assert_eq!(CacheDedup::from(*arg).as_str(), dedup);
        }
    }
}
