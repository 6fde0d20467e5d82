//! The read cache in the configuration.

use super::size;
use anyhow::bail;
use serde::Deserialize;
use std::path::PathBuf;

/// With less a large read would push itself out.
const CACHE_MEMORY_BYTES_MIN: u64 = 1 << 20;
/// 2^31 blocks.
const CACHE_BYTES_MAX: u64 = 8 << 40;

/// Clusters that were read from a backend, in memory and on an SSD.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Memory for them.
    #[serde(deserialize_with = "size")]
    pub memory: u64,
    /// An SSD for more of them.
    pub ssd: Option<CacheSsdConfig>,
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig { memory: 256 << 20, ssd: None }
    }
}

/// The SSD of the read cache.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSsdConfig {
    /// A directory on it.
    pub path: PathBuf,
    /// What is taken there.
    #[serde(deserialize_with = "size")]
    pub size: u64,
}

impl CacheConfig {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if !(CACHE_MEMORY_BYTES_MIN..=CACHE_BYTES_MAX).contains(&self.memory) {
            bail!("cache.memory is {} bytes; allowed are 1MiB to 8TiB", self.memory);
        }
        let Some(ssd) = &self.ssd else { return Ok(()) };
        if !(self.memory..=CACHE_BYTES_MAX).contains(&ssd.size) {
            bail!(
                "cache.ssd.size is {} bytes; allowed are cache.memory ({} bytes), which is on it too, to 8TiB",
                ssd.size,
                self.memory
            );
        }
        if !ssd.path.is_absolute() {
            bail!("cache.ssd.path is {}; it has to be absolute", ssd.path.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, tests::refused};
    use super::*;

    #[test]
    fn a_cache_is_there_when_it_is_named() {
        assert_eq!(Config::parse("").unwrap().cache, None);
        assert_eq!(Config::parse("cache: {}\n").unwrap().cache, Some(CacheConfig::default()));
        let config = Config::parse("cache:\n  memory: 1GiB\n  ssd: {path: /ssd, size: 10GiB}\n").unwrap();
        let ssd = CacheSsdConfig { path: "/ssd".into(), size: 10 << 30 };
        assert_eq!(config.cache, Some(CacheConfig { memory: 1 << 30, ssd: Some(ssd) }));
        refused("cache:\n  memory: 4KiB\n", "cache.memory is 4096");
        refused("cache:\n  memory: 9TiB\n", "cache.memory");
        refused("cache:\n  ssd: {path: /ssd, size: 128MiB}\n", "cache.ssd.size is 134217728");
        refused("cache:\n  ssd: {path: /ssd, size: 9TiB}\n", "cache.ssd.size");
        refused("cache:\n  ssd: {path: ssd, size: 1GiB}\n", "cache.ssd.path is ssd");
        refused("cache:\n  ssd: {path: /ssd}\n", "size");
        refused("cache:\n  quota: 1GiB\n", "quota");
    }
}
