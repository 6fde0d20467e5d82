//! What happens by itself: opening vDisks, trying again what failed, the trash's time, alarms.

use super::{Volumes, problem::from_backend};
use ovs_api::{Alarm, AlarmKind, EventKind, Timestamp};
use ovs_cluster::catalogue::State;
use ovs_units::{Name, VdiskId};
use ovs_volume::{CacheStats, OnFull, VdiskState};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::{Rc, Weak},
    time::Duration,
};

/// How often alarms and idle attachments are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Every so many ticks what failed is tried again, and the trash is looked at.
const TICKS_PER_RETRY: u64 = 10;
/// Every so many ticks creates and deletes that an error cut short are finished or abandoned.
const TICKS_PER_FINISH: u64 = 60;
/// Every so many ticks old keys and tasks go.
const TICKS_PER_SWEEP: u64 = 3600;
/// vDisks opened at the same time after a start.
const OPENING_MAX: usize = 8;
/// Shares of a space that raise an alarm, in percent.
const LEVELS_PERCENT: [u32; 3] = [70, 90, 100];

/// What asks for attention now.
#[derive(Debug, Default)]
pub struct Alarms {
    raised: RefCell<BTreeMap<(&'static str, String), Alarm>>,
}

impl Alarms {
    /// All of them.
    pub fn list(&self) -> Vec<Alarm> {
        self.raised.borrow().values().cloned().collect()
    }

    /// Raises, changes or (with `None`) ends an alarm. True when that is news.
    fn set(&self, kind: AlarmKind, subject: &str, alarm: Option<Alarm>) -> bool {
        let key = (kind_name(kind), subject.to_owned());
        let mut raised = self.raised.borrow_mut();
        let news = |alarm: Option<&Alarm>| {
            alarm.map(|alarm| {
                (level(alarm.used_percent), alarm.used_percent.is_none().then(|| alarm.detail.clone()))
            })
        };
        let is_news = news(raised.get(&key)) != news(alarm.as_ref());
        match alarm {
            Some(mut alarm) => {
                if let Some(before) = raised.get(&key) {
                    alarm.since = before.since.clone();
                }
                raised.insert(key, alarm);
            }
            None => drop(raised.remove(&key)),
        }
        is_news
    }
}

fn kind_name(kind: AlarmKind) -> &'static str {
    match kind {
        AlarmKind::BackendSpace => "backend_space",
        AlarmKind::BufferSpace => "buffer_space",
        AlarmKind::CacheQuotas => "cache_quotas",
        AlarmKind::BackendOffline => "backend_offline",
        AlarmKind::Drive => "drive",
        AlarmKind::Vdisk => "vdisk",
        AlarmKind::Other => "other",
    }
}

fn level(used_percent: Option<u32>) -> u32 {
    let used = used_percent.unwrap_or(0);
    LEVELS_PERCENT.into_iter().filter(|level| used >= *level).max().unwrap_or(0)
}

/// How full a space is, rounded down; 100 only when nothing is left.
pub(crate) fn used_percent(total_bytes: u64, free_bytes: u64) -> u32 {
    if total_bytes == 0 {
        return 0;
    }
    (u128::from(total_bytes.saturating_sub(free_bytes)) * 100 / u128::from(total_bytes)) as u32
}

impl Volumes {
    /// Begins what happens by itself. It ends when the `Volumes` go.
    pub fn begin_background(self: &Rc<Self>) {
        tokio::task::spawn_local(open_all(Rc::downgrade(self)));
        tokio::task::spawn_local(tick(Rc::downgrade(self)));
        self.begin_renewing_layouts();
    }

    /// One round of trying again.
    pub(super) async fn retry(self: &Rc<Self>) {
        for pool in self.all_pools() {
            let was_unasked = self.unasked.borrow_mut().remove(&pool.record().id);
            if was_unasked && pool.backend().is_some() {
                self.complete(&pool).await;
            }
            if pool.backend().is_none() {
                match self.use_pool(&pool).await {
                    Ok(()) => {
                        self.publish_vpool(EventKind::VpoolState, &pool);
                        tracing::warn!(vpool = %pool.record().name, "a vPool can be used again");
                    }
                    Err(problem) => pool.set_problem(Some(problem.detail)),
                }
            }
        }
        self.begin_renewing_layouts();
        let unsettled: Vec<VdiskId> =
            self.slots.borrow().iter().filter(|(_, slot)| !slot.is_settled()).map(|(id, _)| *id).collect();
        for id in unsettled {
            if let Err(problem) = self.open_unless_locked(id).await {
                tracing::debug!(vdisk = %id, %problem, "it still cannot be opened");
            }
        }
        if let Err(problem) = self.expire_trash().await {
            tracing::warn!(%problem, "the trash was not looked at");
        }
        self.keep_events_reserved().await;
    }

    async fn sweep(&self) {
        self.tasks.forget_old(self.clock.wall_ms());
        if let Err(error) = self.sweep_idempotency_keys().await {
            tracing::warn!(%error, "old idempotency keys are still there");
        }
    }

    /// Looks at spaces and states and tells what is news.
    pub(crate) async fn look_for_alarms(&self) {
        let stats = self.engine.stats();
        let free = stats.buffer_total_bytes.saturating_sub(stats.buffer_used_bytes);
        self.alarm_of_space(AlarmKind::BufferSpace, "write buffer", stats.buffer_total_bytes, free);
        let failed = (stats.buffer_failed_slots > 0).then(|| {
            let text = format!(
                "{} segments of it failed a write or a sync and are not used any more until ovsd is started again: \
                 look at the disk below it",
                stats.buffer_failed_slots
            );
            (text, None)
        });
        self.alarm(AlarmKind::Other, "write buffer", failed);
        if let Some(cache) = &stats.cache {
            self.alarm_of_cache(cache);
        }
        let mut in_trouble = BTreeMap::new();
        for pool in self.all_pools() {
            let name = pool.record().name;
            let space = match pool.backend() {
                Some(backend) => backend.capacity().await.map_err(|error| from_backend(error).detail),
                None => Err(pool.problem().unwrap_or_else(|| "its backend is not open".into())),
            };
            match space {
                Ok(space) => {
                    self.alarm(AlarmKind::BackendOffline, name.as_str(), None);
                    if let Some(space) = space {
                        self.alarm_of_space(
                            AlarmKind::BackendSpace,
                            name.as_str(),
                            space.total_bytes,
                            space.free_bytes,
                        );
                    }
                }
                Err(reason) => self.alarm(AlarmKind::BackendOffline, name.as_str(), Some((reason, None))),
            }
            in_trouble.extend(pool.drives_in_trouble());
            in_trouble.extend(self.upkeep_alarms(&pool));
        }
        for (drive, reason) in &in_trouble {
            self.alarm(AlarmKind::Drive, drive.as_str(), Some((reason.clone(), None)));
        }
        let slots: Vec<_> = self.slots.borrow().iter().map(|(id, slot)| (*id, slot.clone())).collect();
        for (id, slot) in slots {
            let reason = match (slot.problem(), self.engine.vdisk(id).map(|vdisk| vdisk.stats().state)) {
                (Some(problem), _) => Some(problem.detail),
                (None, Some(VdiskState::Degraded(reason))) => Some(format!("degraded: {reason}")),
                (None, Some(VdiskState::Stalled(reason))) => Some(format!("stalled: {reason}")),
                (None, Some(VdiskState::Damaged(reason))) => Some(format!("damaged: {reason}")),
                (None, Some(VdiskState::Offline(reason))) => Some(format!("offline: {reason}")),
                (None, Some(VdiskState::Ok) | None) => None,
            };
            self.alarm(AlarmKind::Vdisk, &id.to_string(), reason.map(|reason| (reason, None)));
        }
        let gone = |alarm: &Alarm| match alarm.kind {
            AlarmKind::Vdisk => alarm.subject.parse().is_ok_and(|id| !self.slots.borrow().contains_key(&id)),
            AlarmKind::BackendSpace | AlarmKind::BackendOffline => {
                !self.pools.borrow().values().any(|pool| pool.record().name.as_str() == alarm.subject)
            }
            AlarmKind::Drive => !in_trouble.keys().any(|drive: &Name| drive.as_str() == alarm.subject),
            AlarmKind::BufferSpace | AlarmKind::CacheQuotas | AlarmKind::Other => false,
        };
        for alarm in self.alarms.list().into_iter().filter(gone) {
            self.alarms.set(alarm.kind, &alarm.subject, None);
        }
    }

    fn alarm_of_cache(&self, cache: &CacheStats) {
        let (quotas, capacity) = (cache.quotas_bytes, cache.capacity_bytes);
        let percent = (u128::from(quotas) * 100 / u128::from(capacity.max(1))) as u32;
        let alarm = (percent >= LEVELS_PERCENT[0]).then(|| {
            let cut = if quotas > capacity { "; each counts in proportion while all are used" } else { "" };
            let text =
                format!("quotas of {quotas} bytes are {percent} % of the {capacity} that it holds{cut}");
            (text, Some(percent))
        });
        self.alarm(AlarmKind::CacheQuotas, "read cache", alarm);
        let has_failed = self.settings.has_cache_ssd && cache.ssd.is_none();
        let failed = has_failed.then(|| {
            ("its SSD failed or could not be used, and is not until ovsd is started again".to_owned(), None)
        });
        self.alarm(AlarmKind::Other, "read cache", failed);
    }

    fn alarm_of_space(&self, kind: AlarmKind, subject: &str, total_bytes: u64, free_bytes: u64) {
        let used = used_percent(total_bytes, free_bytes);
        let text = (used >= LEVELS_PERCENT[0])
            .then(|| (format!("{used} % of {total_bytes} bytes are used"), Some(used)));
        self.alarm(kind, subject, text);
    }

    fn alarm(&self, kind: AlarmKind, subject: &str, text: Option<(String, Option<u32>)>) {
        let alarm = text.map(|(detail, used_percent)| Alarm {
            kind,
            subject: subject.to_owned(),
            detail,
            used_percent,
            since: Timestamp::from_unix_ms(self.clock.wall_ms()),
        });
        let detail = match &alarm {
            Some(alarm) => format!("{}: {}", kind_name(kind), alarm.detail),
            None => format!("{}: over", kind_name(kind)),
        };
        let is_warning = alarm.is_some() && kind == AlarmKind::CacheQuotas;
        if !self.alarms.set(kind, subject, alarm) {
            return;
        }
        if is_warning {
            tracing::warn!(
                subject,
                detail,
                "the quotas of vDisks together take most of the read cache, or more than there is"
            );
        }
        match kind {
            AlarmKind::BackendSpace | AlarmKind::BufferSpace | AlarmKind::CacheQuotas | AlarmKind::Other => {
                self.publish(EventKind::CapacityAlarm, |event| {
                    event.name = Some(subject.to_owned());
                    event.detail = Some(detail);
                })
            }
            AlarmKind::Vdisk => self.publish(EventKind::VdiskState, |event| {
                event.vdisk = subject.parse().ok();
                event.subject = event.vdisk;
                event.detail = Some(detail);
            }),
            AlarmKind::BackendOffline | AlarmKind::Drive => self.publish(EventKind::VpoolState, |event| {
                event.name = Some(subject.to_owned());
                event.detail = Some(detail);
            }),
        }
    }
}

async fn tick(volumes: Weak<Volumes>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for count in 1.. {
        ticks.tick().await;
        let Some(volumes) = volumes.upgrade() else { return };
        if volumes.is_stopping() {
            return;
        }
        volumes.drop_idle_attachments().await;
        volumes.look_for_alarms().await;
        volumes.begin_upkeep();
        if count % TICKS_PER_RETRY == 0 {
            volumes.retry().await;
            volumes.retry_upkeep().await;
        }
        if count % TICKS_PER_FINISH == 0 {
            volumes.begin_finishing_vpools(Duration::ZERO).await;
            volumes.finish_what_was_begun().await;
        }
        if count % TICKS_PER_SWEEP == 0 {
            volumes.sweep().await;
        }
    }
}

/// Opens every vDisk after a start, a few at a time: what is in the write buffer for it can leave only then.
async fn open_all(volumes: Weak<Volumes>) {
    let Some(strong) = volumes.upgrade() else { return };
    let mut waiting: Vec<_> = strong.all_records().await;
    waiting.retain(|stored| stored.record.state == State::Ready);
    drop(strong);
    let mut opening = tokio::task::JoinSet::new();
    while let Some(stored) = waiting.pop() {
        let Some(volumes) = volumes.upgrade().filter(|volumes| !volumes.is_stopping()) else { return };
        if opening.len() >= OPENING_MAX {
            opening.join_next().await;
        }
        opening.spawn_local(async move {
            let id = stored.record.id;
            if let Err(problem) = volumes.ensure_open(id).await {
                tracing::error!(vdisk = %id, name = %stored.record.name, %problem, "it cannot be opened");
            }
        });
    }
    while opening.join_next().await.is_some() {}
    // What is left in the write buffer belongs to deleted vDisks that have clones, or to nobody. That can be told only
    // when every vPool is there and nothing of them is missing here.
    let Some(volumes) = volumes.upgrade().filter(|volumes| !volumes.is_stopping()) else { return };
    if volumes.is_all_known()
        && let Err(error) = volumes.engine.claim_buffered(OnFull::Stall { timeout: None }).await
    {
        tracing::warn!(%error, "what is left in the write buffer was not looked at");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        assert_eq!(used_percent(1000, 301), 69);
        assert_eq!(used_percent(1000, 300), 70);
        assert_eq!(used_percent(1000, 1), 99);
        assert_eq!(used_percent(1000, 0), 100);
        assert_eq!(used_percent(0, 0), 0);
        for (used, expected) in [(69, 0), (70, 70), (89, 70), (90, 90), (99, 90), (100, 100)] {
            assert_eq!(level(Some(used)), expected);
        }
    }
}
