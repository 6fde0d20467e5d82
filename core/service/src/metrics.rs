//! `/metrics`: counters and gauges in Prometheus' text format (version 0.0.4), read from the engine when asked for.
//!
//! Names are `ovs_<what>_<unit>`; vDisks carry `vpool` and `vdisk` (names, which never need escaping) and `uuid`.

use crate::volumes::Volumes;
use ovs_cluster::catalogue::State;
use ovs_units::Rates;
use ovs_volume::CacheStats;
use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    sync::{Mutex, PoisonError},
};

/// Answers of the RPC by operation and outcome (`ok`, or the kind of problem), counted by the door.
static RPC_ANSWERS: Mutex<BTreeMap<(&'static str, &'static str), u64>> = Mutex::new(BTreeMap::new());

/// Counts an answer of the RPC.
pub fn count_rpc(operation: &'static str, outcome: &'static str) {
    *RPC_ANSWERS.lock().unwrap_or_else(PoisonError::into_inner).entry((operation, outcome)).or_default() += 1;
}

/// A family of samples of one name.
struct Family {
    text: String,
    name: &'static str,
}

impl Family {
    fn new(name: &'static str, kind: &str, help: &str) -> Family {
        Family { text: format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"), name }
    }

    fn sample(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.text.push_str(self.name);
        for (index, (key, label)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let label = label.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{open}{key}=\"{label}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }
}

/// All of it.
pub async fn text(volumes: &Volumes) -> String {
    let mut families = of_vdisks(volumes).await;
    families.extend(of_spaces(volumes).await);
    families.extend(volumes.engine.stats().cache.iter().flat_map(of_cache));
    families.extend(of_doors(volumes));
    families.into_iter().map(|family| family.text).collect()
}

/// Where, among the families of a vDisk, are its size, its state, the time that its limits cost, and they themselves.
const SIZE: usize = 12;
const OK: usize = 13;
const THROTTLED_SECONDS: usize = 14;
const LIMITS: usize = 15;
/// … and its part in the read cache.
const CACHE: usize = 19;

async fn of_vdisks(volumes: &Volumes) -> Vec<Family> {
    let counter = |name, help| Family::new(name, "counter", help);
    let gauge = |name, help| Family::new(name, "gauge", help);
    let mut families = vec![
        counter("ovs_vdisk_reads_total", "Reads served."),
        counter("ovs_vdisk_writes_total", "Writes acknowledged."),
        counter("ovs_vdisk_flushes_total", "Flushes acknowledged."),
        counter("ovs_vdisk_read_bytes_total", "Bytes read."),
        counter("ovs_vdisk_written_bytes_total", "Bytes written."),
        counter("ovs_vdisk_backend_put_bytes_total", "Bytes put on the backend."),
        gauge("ovs_vdisk_buffered_bytes", "Bytes in the write buffer and not yet on the backend."),
        gauge("ovs_vdisk_mapped_bytes", "Bytes mapped on the backend."),
        counter("ovs_vdisk_scrub_moved_bytes_total", "Bytes that scrub has put again elsewhere."),
        counter("ovs_vdisk_scrub_freed_bytes_total", "Bytes of objects that scrub has removed."),
        gauge("ovs_vdisk_stored_bytes", "Bytes of objects of its own data on the backend."),
        counter("ovs_vdisk_throttled_requests_total", "Requests that the vDisk's limits held back."),
        gauge("ovs_vdisk_size_bytes", "Size."),
        gauge("ovs_vdisk_ok", "1 when the vDisk's state is ok."),
        counter("ovs_vdisk_throttled_seconds_total", "For how long limits held requests back, together."),
        gauge("ovs_vdisk_limit_iops", "Requests per second that a limit allows."),
        gauge("ovs_vdisk_limit_burst_iops", "The same in a burst."),
        gauge("ovs_vdisk_limit_bytes_per_second", "Bytes per second that a limit allows."),
        gauge("ovs_vdisk_limit_burst_bytes_per_second", "The same in a burst."),
        gauge("ovs_vdisk_cache_bytes", "What of the read cache is charged to the vDisk."),
        counter("ovs_vdisk_cache_hits_total", "Clusters read from the read cache."),
        counter("ovs_vdisk_cache_misses_total", "Clusters that were not in the read cache."),
        gauge("ovs_vdisk_cache_quota_bytes", "What of the read cache others cannot take from it."),
    ];
    for stored in volumes.all_records().await {
        let record = stored.record;
        if record.state != State::Ready || record.trash.is_some() {
            continue;
        }
        let Some(vpool) = volumes.vpool_name(record.vpool) else { continue };
        let labels: [(&str, &dyn Display); 3] =
            [("vpool", &vpool), ("vdisk", &record.name), ("uuid", &record.id)];
        families[SIZE].sample(&labels, record.size_bytes);
        for (of, Rates { iops, iops_burst, bytes_per_s, bytes_per_s_burst }) in record.limits.groups() {
            let labels: [(&str, &dyn Display); 4] = [labels[0], labels[1], labels[2], ("of", &of)];
            let limits = [iops, iops_burst, bytes_per_s, bytes_per_s_burst];
            for (family, limit) in families[LIMITS..CACHE].iter_mut().zip(limits) {
                limit.into_iter().for_each(|limit| family.sample(&labels, limit));
            }
        }
        let vdisk = volumes.engine.vdisk(record.id);
        if let Some(cache) = vdisk.as_ref().and_then(|vdisk| vdisk.cache_stats()) {
            let values = [Some(cache.used_bytes), Some(cache.hits), Some(cache.misses), cache.quota_bytes];
            for (family, value) in families[CACHE..].iter_mut().zip(values) {
                value.into_iter().for_each(|value| family.sample(&labels, value));
            }
        }
        let Some(stats) = vdisk.map(|vdisk| vdisk.stats()) else {
            families[OK].sample(&labels, 0);
            continue;
        };
        let values = [
            stats.reads,
            stats.writes,
            stats.flushes,
            stats.read_bytes,
            stats.written_bytes,
            stats.backend_put_bytes,
            stats.buffered.0,
            stats.mapped.0,
            stats.scrub_moved_bytes,
            stats.scrub_freed_bytes,
            stats.stored.0,
            stats.throttled,
        ];
        for (family, value) in families.iter_mut().zip(values) {
            family.sample(&labels, value);
        }
        families[THROTTLED_SECONDS].sample(&labels, stats.throttled_for.as_secs_f64());
        families[OK].sample(&labels, u8::from(stats.state == ovs_volume::VdiskState::Ok));
    }
    families
}

async fn of_spaces(volumes: &Volumes) -> Vec<Family> {
    let stats = volumes.engine.stats();
    let mut total = Family::new("ovs_buffer_total_bytes", "gauge", "Size of the write buffer.");
    total.sample(&[], stats.buffer_total_bytes);
    let mut failed = Family::new(
        "ovs_buffer_failed_segments",
        "gauge",
        "Segments of the write buffer that failed a write or a sync since the start.",
    );
    failed.sample(&[], stats.buffer_failed_slots);
    let mut used = Family::new("ovs_buffer_used_bytes", "gauge", "Used space of the write buffer.");
    used.sample(&[], stats.buffer_used_bytes);
    let mut written =
        Family::new("ovs_buffer_written_bytes_total", "counter", "Bytes written to the write buffer.");
    written.sample(&[], stats.log_written_bytes);
    let mut syncs = Family::new("ovs_buffer_syncs_total", "counter", "Syncs of the write buffer.");
    syncs.sample(&[], stats.log_syncs);
    let mut open = Family::new("ovs_vdisks_open", "gauge", "vDisks that are open.");
    open.sample(&[], stats.vdisks_open);
    let mut maps = Family::new("ovs_map_resident_bytes", "gauge", "Memory that the maps of all vDisks take.");
    maps.sample(&[], stats.maps.resident_bytes);
    let mut changed = Family::new(
        "ovs_map_changed_bytes",
        "gauge",
        "Of that, what the next checkpoints of the maps will store.",
    );
    changed.sample(&[], stats.maps.changed_bytes);
    let mut loads =
        Family::new("ovs_map_page_loads_total", "counter", "Pages of maps that were loaded into memory.");
    loads.sample(&[], stats.maps.loads);
    let mut backend_total = Family::new("ovs_backend_total_bytes", "gauge", "Size of a vPool's backend.");
    let mut backend_free =
        Family::new("ovs_backend_free_bytes", "gauge", "What guest data may still use of it.");
    let mut backend_up = Family::new("ovs_backend_up", "gauge", "1 when a vPool's backend answers.");
    for pool in volumes.all_pools() {
        let name = pool.record().name;
        let labels: [(&str, &dyn Display); 1] = [("vpool", &name)];
        let space = match pool.backend() {
            Some(backend) => backend.capacity().await.ok(),
            None => None,
        };
        backend_up.sample(&labels, u8::from(space.is_some()));
        if let Some(space) = space.flatten() {
            backend_total.sample(&labels, space.total_bytes);
            backend_free.sample(&labels, space.free_bytes);
        }
    }
    let mut alarms = Family::new("ovs_alarm", "gauge", "What asks for attention: percent used, or 1.");
    for alarm in volumes.alarms.list() {
        let kind = serde_json::to_value(alarm.kind).unwrap_or_default();
        let kind = kind.as_str().unwrap_or("other").to_owned();
        alarms.sample(&[("kind", &kind), ("subject", &alarm.subject)], alarm.used_percent.unwrap_or(1));
    }
    vec![
        total,
        used,
        failed,
        written,
        syncs,
        open,
        maps,
        changed,
        loads,
        backend_total,
        backend_free,
        backend_up,
        alarms,
    ]
}

fn of_cache(stats: &CacheStats) -> Vec<Family> {
    let alone = |name, kind, help, value: u64| {
        let mut family = Family::new(name, kind, help);
        family.sample(&[], value);
        family
    };
    let mut families = vec![
        alone("ovs_cache_capacity_bytes", "gauge", "What the read cache may hold.", stats.capacity_bytes),
        alone("ovs_cache_quota_bytes", "gauge", "The quotas of all vDisks together.", stats.quotas_bytes),
        alone("ovs_cache_entries", "gauge", "Clusters in the read cache.", stats.entries),
        alone("ovs_cache_misses_total", "counter", "Clusters that were not in the read cache.", stats.misses),
        alone("ovs_cache_filled_total", "counter", "Clusters that came into the read cache.", stats.filled),
        alone(
            "ovs_cache_shared_total",
            "counter",
            "Of those, what was there under another location.",
            stats.shared,
        ),
        alone("ovs_cache_skipped_total", "counter", "Clusters that there was no room for.", stats.skipped),
        alone("ovs_cache_evicted_total", "counter", "Clusters that went to make room.", stats.evicted),
    ];
    let mut bytes =
        Family::new("ovs_cache_bytes", "gauge", "What memory and SSD hold; memory's is on the SSD too.");
    let mut hits = Family::new("ovs_cache_hits_total", "counter", "Clusters read from the read cache.");
    let mut damaged = Family::new(
        "ovs_cache_damaged_total",
        "counter",
        "Clusters found damaged, and read from the backend.",
    );
    for (tier, stats) in [("memory", Some(stats.memory)), ("ssd", stats.ssd)] {
        let labels: [(&str, &dyn Display); 1] = [("tier", &tier)];
        if let Some(stats) = stats {
            bytes.sample(&labels, stats.used_bytes);
            hits.sample(&labels, stats.hits);
            damaged.sample(&labels, stats.damaged);
        }
    }
    families.extend([bytes, hits, damaged]);
    families
}

fn of_doors(volumes: &Volumes) -> Vec<Family> {
    let nbd = volumes.sockets.server().stats();
    let mut connections = Family::new("ovs_nbd_connections", "gauge", "NBD connections now.");
    connections.sample(&[], nbd.connections);
    let mut accepted = Family::new("ovs_nbd_accepted_total", "counter", "NBD connections accepted.");
    accepted.sample(&[], nbd.accepted);
    let mut dropped =
        Family::new("ovs_nbd_dropped_total", "counter", "NBD connections that were hung up on.");
    dropped.sample(&[], nbd.dropped);
    let mut requests = Family::new("ovs_nbd_requests_total", "counter", "NBD requests answered.");
    requests.sample(&[], nbd.requests);
    let mut errors = Family::new("ovs_nbd_errors_total", "counter", "NBD requests answered with an error.");
    errors.sample(&[], nbd.errors);
    let mut attachments = Family::new("ovs_attachments", "gauge", "Attachments now.");
    attachments.sample(&[], volumes.attachments.list(None).len());
    let mut rpc = Family::new("ovs_rpc_answers_total", "counter", "Answers of the RPC.");
    for ((operation, outcome), count) in RPC_ANSWERS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        rpc.sample(&[("operation", operation), ("outcome", outcome)], count);
    }
    vec![connections, accepted, dropped, requests, errors, attachments, rpc]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_in_the_text_format() {
        let mut family = Family::new("ovs_x", "gauge", "An x.");
        family.sample(&[], 1);
        family.sample(&[("a", &"q\"\\\n"), ("b", &2)], 3);
        assert_eq!(
            family.text,
            "# HELP ovs_x An x.\n# TYPE ovs_x gauge\novs_x 1\novs_x{a=\"q\\\"\\\\\\n\",b=\"2\"} 3\n"
        );
    }
}
