//! One ovsd at a glance.

use super::{Volumes, problem::from_catalogue};
use ovs_api::{AlarmKind, BufferSpace, CacheSpace, Host, PROTOCOL, Problem, ServiceState, Status, Timestamp};
use ovs_cluster::catalogue::VdiskRecord;

impl Volumes {
    /// How this ovsd is.
    pub async fn status(&self, host: Host, started_ms: u64) -> Result<Status, Problem> {
        let mut vdisk_count = 0;
        let pools = self.all_pools();
        for pool in &pools {
            let names = self.catalogue.index(&VdiskRecord::names_prefix(pool.record().id)).await;
            vdisk_count += names.map_err(from_catalogue)?.len() as u64;
        }
        let stats = self.engine.stats();
        let alarms = self.alarms.list();
        // Quotas that do not fit are somebody's choice.
        let is_well = alarms.iter().all(|alarm| alarm.kind == AlarmKind::CacheQuotas);
        let state = match (self.is_stopping(), is_well) {
            (true, _) => ServiceState::Stopping,
            (false, true) => ServiceState::Ok,
            (false, false) => ServiceState::Degraded,
        };
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            host,
            state,
            started_at: Timestamp::from_unix_ms(started_ms),
            uptime_s: self.clock.wall_ms().saturating_sub(started_ms) / 1000,
            buffer: BufferSpace {
                total_bytes: stats.buffer_total_bytes,
                used_bytes: stats.buffer_used_bytes,
            },
            cache: stats.cache.map(|cache| CacheSpace {
                total_bytes: cache.capacity_bytes,
                used_bytes: cache.used_bytes,
                memory_used_bytes: cache.memory.used_bytes,
                has_ssd: cache.ssd.is_some(),
                quotas_bytes: cache.quotas_bytes,
            }),
            vpool_count: pools.len() as u64,
            vdisk_count,
            attachment_count: self.attachments.list(None).len() as u64,
            alarms,
        })
    }

    /// The time of day.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.clock.wall_ms())
    }
}
