//! `/etc/ovs/ovsd.yaml`: every key is optional, an unknown key is refused by name.
//!
//! Few keys on purpose: what has one right answer is a constant beside the code that needs it.

mod cache;

use anyhow::{Context, bail};
pub use cache::{CacheConfig, CacheSsdConfig};
use ovs_units::parse_size;
use serde::{Deserialize, Deserializer};
use std::{net::SocketAddr, path::Path, path::PathBuf, time::Duration};

/// A configuration file is never longer than this.
const CONFIG_BYTES_MAX: u64 = 256 << 10;

/// With less every write of a large vDisk would load pages of its map.
const MAPS_BYTES_MIN: u64 = 4 << 20;

/// More often it would be nothing but that.
const SURVEY_EVERY_MIN: Duration = Duration::from_secs(1);

/// More often drives would do nothing else; who wants it now asks for it.
const VERIFY_EVERY_MIN: Duration = Duration::from_secs(3600);

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Small writes to the write buffer, and small reads of what a directory has not in memory, go to the kernel by io_uring where it has
    /// that; else and without this each has a thread.
    pub io_uring: bool,
    /// The write buffer.
    pub buffer: BufferConfig,
    /// When buffered data leaves for the backend.
    pub destage: DestageConfig,
    /// Giving back what nobody needs.
    pub scrub: ScrubConfig,
    /// Drives of composites that fail.
    pub repair: RepairConfig,
    /// The read cache; none when it is left out.
    pub cache: Option<CacheConfig>,
    /// NBD sockets.
    pub nbd: NbdConfig,
    /// The RPC socket.
    pub rpc: RpcConfig,
    /// What a fresh ovsd makes by itself.
    pub default_vpool: DefaultVpoolConfig,
    /// How this process treats memory.
    pub memory: MemoryConfig,
    /// Stopping.
    pub stop: StopConfig,
    /// Logging.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            io_uring: true,
            buffer: BufferConfig::default(),
            destage: DestageConfig::default(),
            scrub: ScrubConfig::default(),
            repair: RepairConfig::default(),
            cache: None,
            nbd: NbdConfig::default(),
            rpc: RpcConfig::default(),
            default_vpool: DefaultVpoolConfig::default(),
            memory: MemoryConfig::default(),
            stop: StopConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// The write buffer: one log on local disk for all vDisks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BufferConfig {
    /// Its directory; the default is `buffer` in the state directory.
    pub path: Option<PathBuf>,
    /// All segments together; preallocated with zeros.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// One segment.
    #[serde(deserialize_with = "size")]
    pub segment_size: u64,
    /// Buffered data kept in memory as well, at most.
    #[serde(deserialize_with = "size")]
    pub memory: u64,
}

impl Default for BufferConfig {
    fn default() -> Self {
        BufferConfig { path: None, size: 1 << 30, segment_size: 64 << 20, memory: 256 << 20 }
    }
}

/// When buffered data leaves for the backend.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DestageConfig {
    /// A vDisk with this much buffered is written out.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// Or with anything buffered for this long.
    #[serde(deserialize_with = "duration")]
    pub after: Duration,
    /// The size of an SCO.
    #[serde(deserialize_with = "size")]
    pub sco_size: u64,
}

impl Default for DestageConfig {
    fn default() -> Self {
        DestageConfig { size: 32 << 20, after: Duration::from_secs(10), sco_size: 4 << 20 }
    }
}

/// Giving back what nobody needs any more. Where more than a quarter of what a vDisk has stored is such, it begins by itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScrubConfig {
    /// Does it?
    pub automatic: bool,
    /// How often that is looked at.
    #[serde(deserialize_with = "duration")]
    pub every: Duration,
    /// Not where less than this would be given back.
    #[serde(deserialize_with = "size")]
    pub min_size: u64,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        ScrubConfig { automatic: true, every: Duration::from_secs(10), min_size: 64 << 20 }
    }
}

/// What becomes of drives of composites that fail.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepairConfig {
    /// A drive that is silent for so long without a break is given up, and what was on it made again on the others; `off`: never by
    /// itself.
    #[serde(deserialize_with = "duration_or_off")]
    pub grace: Option<Duration>,
    /// So often all drives are looked at although nothing calls for it.
    #[serde(deserialize_with = "duration")]
    pub survey_every: Duration,
    /// Within this time all fragments on all drives are read once, and what has changed made again from the others; `off`: only when
    /// somebody asks for it.
    #[serde(deserialize_with = "duration_or_off")]
    pub verify_every: Option<Duration>,
}

impl Default for RepairConfig {
    fn default() -> Self {
        RepairConfig {
            grace: Some(Duration::from_secs(15 * 60)),
            survey_every: Duration::from_secs(3600),
            verify_every: Some(Duration::from_secs(7 * 24 * 3600)),
        }
    }
}

/// NBD sockets.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NbdConfig {
    /// The group of all sockets, if it exists.
    pub group: String,
    /// Permission bits of a vDisk's own socket, in octal.
    #[serde(deserialize_with = "mode")]
    pub vdisk_socket_mode: u32,
    /// Connections at most; further ones wait in the listen queue.
    pub connections_max: usize,
    /// Addresses to serve over TCP as well, with TLS.
    #[serde(deserialize_with = "addresses")]
    pub listen: Vec<SocketAddr>,
    /// The certificates for that.
    pub tls: Option<TlsConfig>,
}

impl Default for NbdConfig {
    fn default() -> Self {
        NbdConfig {
            group: "ovs".into(),
            vdisk_socket_mode: 0o660,
            connections_max: 4096,
            listen: Vec::new(),
            tls: None,
        }
    }
}

/// The RPC socket.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RpcConfig {
    /// The group of the socket, if it exists.
    pub group: String,
    /// Addresses to serve over TCP as well, with TLS.
    #[serde(deserialize_with = "addresses")]
    pub listen: Vec<SocketAddr>,
    /// The certificates for that.
    pub tls: Option<TlsConfig>,
    /// A file with a token per line: who shows one needs no certificate.
    pub tokens_file: Option<PathBuf>,
}

impl Default for RpcConfig {
    fn default() -> Self {
        RpcConfig { group: "ovs".into(), listen: Vec::new(), tls: None, tokens_file: None }
    }
}

/// TLS of a door over TCP; files in PEM.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The door's certificate, and those that lead to its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority of the clients that are let in.
    pub client_ca: Option<PathBuf>,
}

/// What a fresh ovsd makes by itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DefaultVpoolConfig {
    /// Whether it makes a vPool `default` at its first start.
    pub create: bool,
    /// The folder of the backend `default`; the default is `backend/default` in the state directory.
    pub backend_path: Option<PathBuf>,
    /// How long deleted vDisks stay in the trash.
    #[serde(deserialize_with = "duration")]
    pub trash_retention: Duration,
    /// How long a write waits for room before it fails; not given: for ever.
    #[serde(deserialize_with = "optional_duration")]
    pub stall_timeout: Option<Duration>,
}

impl Default for DefaultVpoolConfig {
    fn default() -> Self {
        DefaultVpoolConfig {
            create: true,
            backend_path: None,
            trash_retention: Duration::from_secs(24 * 3600),
            stall_timeout: None,
        }
    }
}

/// How this process treats memory.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Whether what was touched stays in memory (mlockall with MCL_ONFAULT).
    pub lock: bool,
    /// The maps of all vDisks together, at most: which cluster is where on the backend.
    #[serde(deserialize_with = "size")]
    pub maps: u64,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        MemoryConfig { lock: true, maps: 256 << 20 }
    }
}

/// Stopping.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopConfig {
    /// How long a graceful stop sends out buffered data; the rest stays in the write buffer.
    #[serde(deserialize_with = "duration")]
    pub patience: Duration,
}

impl Default for StopConfig {
    fn default() -> Self {
        StopConfig { patience: Duration::from_secs(20) }
    }
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// What is logged: `info`, or per module as `ovs_volume=debug,info`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { filter: "info".into() }
    }
}

impl Config {
    /// The configuration in `path`; its absence is allowed unless it was asked for by name.
    pub fn load(path: &Path, is_required: bool) -> anyhow::Result<Config> {
        let text = match std::fs::metadata(path) {
            Ok(meta) if meta.len() > CONFIG_BYTES_MAX => {
                bail!("{} has {} bytes, {CONFIG_BYTES_MAX} are allowed", path.display(), meta.len())
            }
            Ok(_) => std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_required => String::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        Config::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    /// The configuration from its text.
    pub fn parse(text: &str) -> anyhow::Result<Config> {
        let is_blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
        let config: Config =
            if text.lines().all(is_blank) { Config::default() } else { serde_yaml::from_str(text)? };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        let buffer = &self.buffer;
        if !(1 << 20..=4 << 30).contains(&buffer.segment_size) || !buffer.segment_size.is_multiple_of(4096) {
            bail!(
                "buffer.segment_size is {} bytes; allowed are 1MiB to 4GiB, in multiples of 4KiB",
                buffer.segment_size
            );
        }
        if buffer.size < 4 * buffer.segment_size {
            bail!(
                "buffer.size is {} bytes; at least four segments of {} are needed",
                buffer.size,
                buffer.segment_size
            );
        }
        if !(64 << 10..=128 << 20).contains(&self.destage.sco_size)
            || !self.destage.sco_size.is_multiple_of(4096)
        {
            bail!(
                "destage.sco_size is {} bytes; allowed are 64KiB to 128MiB, in multiples of 4KiB",
                self.destage.sco_size
            );
        }
        if self.memory.maps < MAPS_BYTES_MIN {
            bail!("memory.maps is {} bytes; at least 4MiB are needed", self.memory.maps);
        }
        if let Some(cache) = &self.cache {
            cache.check()?;
        }
        if self.repair.survey_every < SURVEY_EVERY_MIN {
            bail!("repair.survey_every is {:?}; at least 1s is needed", self.repair.survey_every);
        }
        if let Some(every) = self.repair.verify_every.filter(|every| *every < VERIFY_EVERY_MIN) {
            bail!("repair.verify_every is {every:?}; allowed are 1h and more, and off");
        }
        if self.scrub.every.is_zero() {
            bail!("scrub.every is 0; it has to be some time");
        }
        if self.nbd.connections_max == 0 {
            bail!("nbd.connections_max is 0; at least 1 is needed");
        }
        check_listen("nbd", &self.nbd.listen, self.nbd.tls.as_ref())?;
        check_listen("rpc", &self.rpc.listen, self.rpc.tls.as_ref())?;
        if let (Some(address), Some(TlsConfig { client_ca: None, .. })) =
            (self.nbd.listen.first(), self.nbd.tls.as_ref())
        {
            bail!(
                "nbd.listen has {address}, where anybody could read and write every vDisk: give nbd.tls.client_ca, \
                 the authority of the clients that may"
            );
        }
        let knows_clients = self.rpc.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if let Some(address) = self.rpc.listen.first()
            && !knows_clients
            && self.rpc.tokens_file.is_none()
        {
            bail!(
                "rpc.listen has {address}, where anybody could do anything: give rpc.tls.client_ca, rpc.tokens_file, or both"
            );
        }
        Ok(())
    }
}

fn check_listen(door: &str, listen: &[SocketAddr], tls: Option<&TlsConfig>) -> anyhow::Result<()> {
    match (listen.first(), tls) {
        (Some(address), None) => bail!(
            "{door}.listen has {address} and {door}.tls is missing: over TCP there is TLS or nothing; \
             give {door}.tls.certificate and {door}.tls.key"
        ),
        _ => Ok(()),
    }
}

/// A duration as people write it: `500ms`, `20s`, `10m`, `24h`, `7d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let form =
        || format!("duration {text:?} is not a whole number with a unit: write 500ms, 20s, 10m, 24h or 7d");
    let trimmed = text.trim();
    let unit_at = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(form)?;
    let (number, unit) = trimmed.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| form())?;
    let unit_ms: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(form()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(form)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    parse_size(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let parse = |text: &String| {
        text.parse().map_err(|_| {
            let form = "an address and a port, such as 192.0.2.7:10809 or \"[::]:10809\"";
            serde::de::Error::custom(format!("listen: {text:?} is not {form}"))
        })
    };
    Vec::<String>::deserialize(deserializer)?.iter().map(parse).collect()
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        Some(text) => parse_duration(&text).map(Some).map_err(serde::de::Error::custom),
        None => Ok(None),
    }
}

/// `off`, `false` and 0 say: never.
fn duration_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Truth(bool),
        Number(u64),
        Text(String),
    }
    let refused = |given: String| {
        Err(serde::de::Error::custom(format!("{given} is no time and not off: write 15min, 500ms or off")))
    };
    match Given::deserialize(deserializer)? {
        Given::Truth(false) | Given::Number(0) => Ok(None),
        Given::Truth(true) => refused("true".into()),
        Given::Number(number) => refused(number.to_string()),
        Given::Text(text) if text == "off" => Ok(None),
        Given::Text(text) => match parse_duration(&text) {
            Ok(duration) => Ok(Some(duration).filter(|duration| !duration.is_zero())),
            Err(reason) => refused(format!("{text:?} ({reason})")),
        },
    }
}

fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(serde::de::Error::custom(format!("mode {text:?} is not three octal digits such as 0660"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn refused(text: &str, expected: &str) {
        let error = format!("{:#}", Config::parse(text).unwrap_err());
        assert!(error.contains(expected), "{text:?}: {error}");
    }

    #[test]
    fn everything_is_optional() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        assert_eq!(Config::parse("# nothing\n\n").unwrap(), Config::default());
        assert_eq!(Config::parse("{}").unwrap(), Config::default());
    }

    #[test]
    fn units_are_read() {
        let config = Config::parse(
            "io_uring: false\nbuffer:\n  size: 4GiB\n  segment_size: 32MiB\ndestage:\n  after: 500ms\nscrub:\n  automatic: false\n\
             nbd:\n  vdisk_socket_mode: \"0600\"\n\
             default_vpool:\n  trash_retention: 7d\n  stall_timeout: 90s\nmemory:\n  lock: false\n  maps: 64MiB\n",
        )
        .unwrap();
        assert_eq!((config.buffer.size, config.buffer.segment_size), (4 << 30, 32 << 20));
        assert!(!config.io_uring && Config::default().io_uring);
        assert_eq!(config.destage.after, Duration::from_millis(500));
        assert!(!config.scrub.automatic && config.scrub.min_size == 64 << 20);
        assert_eq!(config.nbd.vdisk_socket_mode, 0o600);
        assert_eq!(config.default_vpool.trash_retention, Duration::from_secs(7 * 86400));
        assert_eq!(config.default_vpool.stall_timeout, Some(Duration::from_secs(90)));
        assert_eq!(config.memory, MemoryConfig { lock: false, maps: 64 << 20 });
    }

    #[test]
    fn what_is_wrong_is_named() {
        refused("bufer: {}\n", "bufer");
        refused("buffer:\n  sise: 1GiB\n", "sise");
        refused("buffer:\n  size: lots\n", "lots");
        refused("buffer:\n  size: 64MiB\n", "four segments");
        refused("buffer:\n  segment_size: 1000000\n", "buffer.segment_size");
        refused("destage:\n  after: 10 fortnights\n", "10 fortnights");
        refused("memory:\n  maps: 1MiB\n", "memory.maps");
        refused("scrub:\n  every: 0s\n", "scrub.every");
        refused("scrub:\n  often: true\n", "often");
        refused("nbd:\n  vdisk_socket_mode: \"0999\"\n", "0999");
        refused("nbd:\n  connections_max: 0\n", "connections_max");
        refused("nbd:\n  listen: [\"localhost\"]\n", "listen: \"localhost\"");
        refused("nbd:\n  listen: [\"0.0.0.0:99999\"]\n", "99999");
        refused("nbd:\n  listen: [\"[::]:10809\"]\n", "nbd.tls is missing");
        refused("nbd:\n  tls: off\n", "tls");
        refused("nbd:\n  tls: {certificate: /c}\n", "key");
        refused("nbd:\n  listen: [\"[::]:10809\"]\n  tls: {certificate: /c, key: /k}\n", "nbd.tls.client_ca");
        refused("nbd:\n  tls: {certificate: /c, key: /k, ca: /a}\n", "ca");
        refused("rpc:\n  listen: [\"0.0.0.0:8443\"]\n", "rpc.tls is missing");
        let tls = "  tls: {certificate: /c, key: /k}\n";
        refused(&format!("rpc:\n  listen: [\"0.0.0.0:8443\"]\n{tls}"), "rpc.tls.client_ca, rpc.tokens_file");
        refused("- a\n", "");
    }

    #[test]
    fn doors_over_tcp() {
        let tls = "  tls: {certificate: /c, key: /k, client_ca: /a}\n";
        let config = Config::parse(&format!(
            "nbd:\n  listen: [\"[::]:10809\", \"192.0.2.7:10809\"]\n{tls}rpc:\n  listen: [\"0.0.0.0:8443\"]\n{tls}"
        ))
        .unwrap();
        assert_eq!(config.nbd.listen, ["[::]:10809".parse().unwrap(), "192.0.2.7:10809".parse().unwrap()]);
        assert_eq!(config.rpc.tls.unwrap().client_ca, Some("/a".into()));
        Config::parse(
            "rpc:\n  listen: [\"0.0.0.0:8443\"]\n  tls: {certificate: /c, key: /k}\n  tokens_file: /t\n",
        )
        .unwrap();
    }

    #[test]
    fn repair_is_turned_off_by_a_word_or_by_nothing() {
        let grace = |text: &str| Config::parse(&format!("repair: {{grace: {text}}}")).unwrap().repair.grace;
        assert_eq!(Config::default().repair.grace, Some(Duration::from_secs(900)));
        assert_eq!(grace("20min"), Some(Duration::from_secs(1200)));
        for off in ["off", "0", "0s", "false"] {
            assert_eq!(grace(off), None, "{off}");
        }
        refused("repair: {grace: 15}", "write 15min");
        refused("repair: {grace: soon}", "write 15min");
        refused("repair: {survey_every: 0s}", "repair.survey_every");
        let verify = |text: &str| {
            Config::parse(&format!("repair: {{verify_every: {text}}}")).unwrap().repair.verify_every
        };
        assert_eq!(Config::default().repair.verify_every, Some(Duration::from_secs(7 * 86400)));
        assert_eq!(
            (verify("1h"), verify("30d")),
            (Some(Duration::from_secs(3600)), Some(Duration::from_secs(30 * 86400)))
        );
        assert_eq!((verify("off"), verify("0")), (None, None));
        refused("repair: {verify_every: 59m}", "repair.verify_every is 3540s; allowed are 1h and more");
        refused("repair: {verify_every: weekly}", "weekly");
    }

    #[test]
    fn durations() {
        for (text, ms) in [("500ms", 500), ("20s", 20_000), ("10m", 600_000), ("24h", 86_400_000)] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(ms));
        }
        for bad in ["", "5", "s", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
