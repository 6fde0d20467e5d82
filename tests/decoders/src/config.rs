//! `/etc/ovs/ovsd.yaml`.

use crate::Family;
use ovs_service::config::{Config, parse_duration};

/// The file, and the durations in it.
pub(crate) const CONFIG: Family = Family {
    name: "config",
    check: |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let duration = parse_duration(text);
        if let Ok(duration) = duration {
            assert_eq!(parse_duration(&format!("{}ms", duration.as_millis())), Ok(duration));
        }
        let Ok(config) = Config::parse(text) else { return duration.is_ok() };
        // What is taken keeps to the bounds that the rest of ovsd relies on.
        assert!(config.buffer.segment_size.is_multiple_of(4096) && config.buffer.segment_size <= 4 << 30);
        assert!(config.buffer.size / config.buffer.segment_size >= 4);
        assert!(config.destage.sco_size.is_multiple_of(4096) && config.destage.sco_size <= 128 << 20);
        assert!(config.nbd.vdisk_socket_mode <= 0o777 && config.nbd.connections_max > 0);
        assert_eq!(Config::parse(text).ok(), Some(config));
        true
    },
    seeds: || SEEDS.iter().map(|text| text.as_bytes().to_vec()).collect(),
    memory_bytes: 1 << 20,
    memory_per_byte: 512,
};

const SEEDS: [&str; 6] = [
    "",
    "# nothing\n\n",
    "{}",
    "buffer:\n  path: /x\n  size: 4GiB\n  segment_size: 32MiB\n  memory: 1.5GiB\ndestage:\n  size: 32MiB\n  after: 500ms\n  sco_size: 4MiB\n",
    "nbd:\n  group: ovs\n  vdisk_socket_mode: \"0600\"\n  connections_max: 7\nrpc:\n  group: ovs\nmemory:\n  lock: false\nstop:\n  patience: 20s\nlog:\n  filter: ovs_volume=debug,info\ndefault_vpool:\n  create: true\n  backend_path: /y\n  trash_retention: 7d\n  stall_timeout: 90s\n",
    "24h",
];
