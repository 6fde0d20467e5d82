//! All fragments of a composite are read once in a set period, and when somebody asks for it: what has changed on a drive that nobody
//! reads is found while the others can make it good.
//!
//! ```text
//!  nothing else is to be done ─▶ is a part due by now? ─▶ it is read ─▶ how far that is, to the registry once a minute ─▶ …
//!                      the end ─▶ it is told, and the next period begins         anything else comes: cut off, goes on later
//! ```
//!
//! What is bad calls for a look, which mends it (`upkeep.rs`). Guests come first: who reads rests while they are there
//! (`coded/upkeep.rs`), and what was not done while ovsd was off is caught up with at so many times the usual speed.

use super::{
    Pool, Volumes,
    composite::Composite,
    composites::conflict,
    pools::offline,
    upkeep::{POLL, REST, Tended},
};
use crate::tasks::{About, Running};
use futures_util::future::select;
use ovs_api::{Accepted, Problem, ProblemKind, Task, TaskId, Timestamp, Verification as ApiVerification};
use ovs_backend::{ObjectName, coded::Verified};
use ovs_cluster::catalogue::{CatalogueError, FORMAT, PassRecord, VerificationRecord};
use ovs_units::Name;
use serde_json::{Value, json};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    pin::pin,
    rc::Rc,
    time::Duration,
};
use uuid::Uuid;

/// A pass is to end when so many hundredths of its period are over: looks and guests take the rest.
const AIM_PERCENT: u64 = 90;
/// What is late is caught up with at so many times the usual speed at most.
const SPEED_MAX: u64 = 4;
/// A pass has about so many parts, …
const PARTS: u64 = 100;
/// … of so many bytes at least, and at most: each begins with a listing.
const PART_BYTES: (u64, u64) = (1 << 20, 64 << 20);
/// So often at most it is written down how far a pass is: as much is read twice after a crash.
const KEPT_EVERY: Duration = Duration::from_secs(60);
/// So often somebody who waits for a pass is told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Whether somebody waits for a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Asked {
    #[default]
    No,
    /// It is to begin.
    Wanted,
    /// It goes on, and does not wait for its time.
    UnderWay,
}

/// How far the verification of an open composite is.
#[derive(Debug, Default)]
pub(super) struct Verification {
    /// As it is in the registry, but for what was read since. None before it was read from there.
    record: RefCell<Option<VerificationRecord>>,
    asked: Cell<Asked>,
    /// No part begins before.
    rests_until: Cell<Duration>,
    /// When it was last written down, if it was.
    kept_at: Cell<Option<Duration>>,
    /// So many drives are silent that there is no end.
    has_no_end: Cell<bool>,
}

/// How a pass over so many bytes is spread over its period.
#[derive(Debug, Clone, Copy)]
struct Pace {
    aim_ms: u64,
    total_bytes: u64,
}

impl Pace {
    fn new(period: Duration, total_bytes: u64) -> Pace {
        let period_ms = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        Pace { aim_ms: (period_ms / 100 * AIM_PERCENT).max(1), total_bytes: total_bytes.max(1) }
    }

    /// How long so many bytes take when all of them take the whole time.
    fn takes_ms(&self, bytes: u64) -> u64 {
        let bytes = u128::from(bytes.min(self.total_bytes));
        (u128::from(self.aim_ms) * bytes / u128::from(self.total_bytes)) as u64
    }

    /// A part is to end when it is due.
    fn is_due(&self, elapsed_ms: u64, read_bytes: u64) -> bool {
        elapsed_ms >= self.takes_ms(read_bytes.saturating_add(part_bytes(self.total_bytes)))
    }

    /// From the beginning of a part of so many bytes to that of the next.
    fn rest(&self, bytes: u64) -> Duration {
        Duration::from_millis(self.takes_ms(bytes) / SPEED_MAX)
    }

    fn remaining(&self, elapsed_ms: u64, read_bytes: u64) -> Duration {
        let left = self.takes_ms(self.total_bytes.saturating_sub(read_bytes));
        Duration::from_millis(self.aim_ms.saturating_sub(elapsed_ms).max(left / SPEED_MAX))
    }
}

fn part_bytes(total_bytes: u64) -> u64 {
    (total_bytes / PARTS).clamp(PART_BYTES.0, PART_BYTES.1)
}

fn begun(now_ms: u64) -> PassRecord {
    PassRecord { began_ms: now_ms, ..PassRecord::default() }
}

/// How far a pass is, for who goes on with it.
fn verified(pass: &PassRecord) -> Verified {
    let after = pass.after.clone().and_then(|after| ObjectName::new(after).ok());
    let missed = pass.missed.iter().copied().collect();
    Verified { after, objects: pass.objects, bytes: pass.bytes, bad: pass.bad, missed }
}

impl Verification {
    fn present(&self) -> Option<PassRecord> {
        self.record.borrow().as_ref().map(|record| record.present.clone())
    }

    /// Why it does not come to its end, or what it has found does not.
    pub(super) fn problem(&self, composite: &Composite) -> Option<String> {
        let has_no_end = self.has_no_end.get().then(|| {
            let members = composite.members();
            let silent: Vec<Uuid> =
                composite.silent().into_iter().chain(composite.coded.silent()).collect();
            let names: BTreeSet<&str> =
                silent.iter().filter_map(|uuid| Some(members.get(uuid)?.name.as_str())).collect();
            let names: Vec<&str> = names.into_iter().collect();
            format!(
                "its verification does not end as long as so many drives do not answer ({}) that nobody knows what else there is",
                names.join(", ")
            )
        });
        let has_more_bad = composite.coded.has_more_suspicious().then(|| {
            format!(
                "more objects are bad than are remembered: ovs backend verify {} finds the others when these are mended, and no drive \
                 goes before",
                composite.name
            )
        });
        let problems: Vec<String> = has_no_end.into_iter().chain(has_more_bad).collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    /// The next pass begins, whatever the present one has come to.
    fn begin(&self, now_ms: u64) {
        if let Some(record) = &mut *self.record.borrow_mut() {
            record.present = begun(now_ms);
        }
        self.kept_at.set(None);
        self.rests_until.set(Duration::ZERO);
    }

    /// The present pass has come so far; its end is the beginning of the next. Returns what it was if it is over.
    fn has_read(&self, verified: Verified, is_over: bool, now_ms: u64) -> Option<PassRecord> {
        let mut record = self.record.borrow_mut();
        let record = record.as_mut()?;
        let pass = &mut record.present;
        pass.after = verified.after.map(|after| after.to_string());
        (pass.objects, pass.bytes, pass.bad) = (verified.objects, verified.bytes, verified.bad);
        pass.missed = verified.missed.into_iter().collect();
        if !is_over {
            return None;
        }
        pass.ended_ms = Some(now_ms);
        let over = std::mem::replace(pass, begun(now_ms));
        record.last = Some(over.clone());
        // One that is to begin has not begun.
        if self.asked.get() == Asked::UnderWay {
            self.asked.set(Asked::No);
        }
        self.kept_at.set(None);
        Some(over)
    }
}

impl Tended {
    /// Reads the next part when it is time for that, as long as nothing else is to be done; else waits a while.
    pub(super) async fn verify_or_wait(&self, quiet_until: Duration) {
        let Some((volumes, pool)) = self.present() else { return };
        let (clock, composite) = (volumes.clock.clone(), &self.composite);
        let due = volumes.part_due(&pool, self.uuid, composite).await;
        drop((volumes, pool));
        let Some((pass, bytes)) = due else {
            select(pin!(composite.woken.notified()), clock.sleep(POLL)).await;
            return;
        };
        let (began, mut verified) = (clock.now(), verified(&pass));
        let is_over = self.unless_urgent(quiet_until, composite.coded.verify(&mut verified, bytes)).await;
        let Some((volumes, _)) = self.present() else { return };
        volumes.has_verified(composite, &pass, verified, is_over, began).await;
    }

    /// What comes of it, unless something else is to be done first.
    pub(super) async fn unless_urgent<T>(
        &self,
        quiet_until: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.until_cut_off(self.composite.generation(), true, quiet_until) => None,
            () = self.until_a_look_is_due() => None,
        }
    }

    async fn until_a_look_is_due(&self) {
        while let Some((volumes, pool)) = self.present()
            && volumes.is_due(&pool, &self.composite).is_none()
            && self.composite.verification.asked.get() != Asked::Wanted
        {
            let clock = volumes.clock.clone();
            drop((volumes, pool));
            clock.sleep(POLL).await;
        }
    }
}

impl Volumes {
    /// How far the present pass is, and how many bytes are to be read now, if any are.
    async fn part_due(&self, pool: &Pool, uuid: Uuid, composite: &Composite) -> Option<(PassRecord, u64)> {
        let (verification, every) = (&composite.verification, self.settings.verify_every);
        let total = composite.looked().filter(|looked| looked.mended)?.survey.all.bytes;
        let _open = pool.backend()?;
        if !self.remember_bad(pool, uuid, composite).await {
            return None;
        }
        if every.is_none() && verification.asked.get() == Asked::No {
            return None;
        }
        let now_ms = self.clock.wall_ms();
        if verification.asked.get() == Asked::Wanted {
            verification.asked.set(Asked::UnderWay);
            verification.begin(now_ms);
        }
        if let Some(record) = &mut *verification.record.borrow_mut() {
            // The clock was put back: it would wait until then.
            record.present.began_ms = record.present.began_ms.min(now_ms);
        }
        if verification.kept_at.get().is_none() {
            self.keep_verification(composite).await;
        }
        let pass = verification.present()?;
        let elapsed_ms = now_ms.saturating_sub(pass.began_ms);
        let is_time = match verification.asked.get() {
            Asked::UnderWay => true,
            Asked::No | Asked::Wanted => {
                every.is_some_and(|every| Pace::new(every, total).is_due(elapsed_ms, pass.bytes))
            }
        };
        (is_time && self.clock.now() >= verification.rests_until.get()).then(|| (pass, part_bytes(total)))
    }

    /// What was bad in another life is so in this one. False: the registry does not answer yet.
    pub(super) async fn remember_bad(&self, pool: &Pool, uuid: Uuid, composite: &Composite) -> bool {
        let verification = &composite.verification;
        if verification.record.borrow().is_some() {
            return true;
        }
        let Some(record) = self.recorded_verification(pool, uuid).await else { return false };
        let names = record.suspicious.iter().filter_map(|name| ObjectName::new(name.as_str()).ok());
        names.for_each(|name| composite.coded.suspect(&name));
        if record.has_more_suspicious {
            composite.coded.suspect_more();
        }
        *verification.record.borrow_mut() = Some(record);
        true
    }

    /// Writes down what is bad when that has changed.
    pub(super) async fn keep_bad(&self, composite: &Composite) {
        let now = (names(composite.coded.suspicious()), composite.coded.has_more_suspicious());
        let kept = |record: &VerificationRecord| (record.suspicious.clone(), record.has_more_suspicious);
        let kept = composite.verification.record.borrow().as_ref().map(kept);
        if kept.is_some_and(|kept| kept != now) {
            self.keep_verification(composite).await;
        }
    }

    /// A part was read to its end, or was cut off.
    async fn has_verified(
        &self,
        composite: &Composite,
        before: &PassRecord,
        verified: Verified,
        is_over: Option<bool>,
        began: Duration,
    ) {
        let (verification, now) = (&composite.verification, self.clock.now());
        let total = composite.coded.upkeep().last.map_or(0, |survey| survey.all.bytes);
        let read_bytes = verified.bytes.saturating_sub(before.bytes);
        let has_come_further = verified.objects > before.objects;
        if let Some(is_over) = is_over {
            // Whoever waited for it may have gone.
            let goes_on = verification.asked.get() != Asked::No || self.settings.verify_every.is_some();
            verification.has_no_end.set(goes_on && !is_over && !has_come_further);
        }
        let rests_until = match (verification.asked.get(), self.settings.verify_every) {
            // Too many drives are silent for it to go on.
            _ if is_over == Some(false) && !has_come_further => now + REST,
            (Asked::No, Some(every)) => began + Pace::new(every, total).rest(read_bytes),
            (Asked::No | Asked::Wanted | Asked::UnderWay, _) => now,
        };
        verification.rests_until.set(rests_until);
        let over = verification.has_read(verified, is_over == Some(true), self.clock.wall_ms());
        if let Some(over) = &over {
            tell_end(composite, over);
        }
        let is_kept = verification.kept_at.get().is_some_and(|at| now < at + KEPT_EVERY);
        if over.is_some() || has_come_further && !is_kept {
            self.keep_verification(composite).await;
        }
    }

    /// As it is in the registry; of another vPool, or not there: it begins. Nothing: the registry does not answer.
    async fn recorded_verification(&self, pool: &Pool, uuid: Uuid) -> Option<VerificationRecord> {
        let vpool = pool.record().id;
        let found = match self.catalogue.find::<VerificationRecord>(uuid).await {
            Ok(found) => found,
            Err(CatalogueError::Registry(_)) => return None,
            Err(error) => {
                tracing::warn!(%error, "how far a verification was cannot be read: it begins anew");
                None
            }
        };
        let found = found.map(|stored| stored.record).filter(|record| record.vpool == vpool);
        Some(found.unwrap_or_else(|| VerificationRecord {
            format: FORMAT,
            uuid,
            vpool,
            last: None,
            present: begun(self.clock.wall_ms()),
            suspicious: Vec::new(),
            has_more_suspicious: false,
        }))
    }

    async fn keep_verification(&self, composite: &Composite) {
        let Some(mut record) = composite.verification.record.borrow().clone() else { return };
        // Nobody passes by there again before the next time.
        record.suspicious = names(composite.coded.suspicious());
        record.has_more_suspicious = composite.coded.has_more_suspicious();
        let (suspicious, has_more) = (record.suspicious.clone(), record.has_more_suspicious);
        match self.catalogue.restore(record).await {
            Ok(_) => {
                composite.verification.kept_at.set(Some(self.clock.now()));
                if let Some(record) = &mut *composite.verification.record.borrow_mut() {
                    (record.suspicious, record.has_more_suspicious) = (suspicious, has_more);
                }
            }
            Err(error) => {
                tracing::debug!(composite = %composite.name, %error, "how far its verification is is not written down yet")
            }
        }
    }

    /// Begins to read all that is on a composite, and does not wait for its time. If that is under way: the same task.
    pub async fn verify_backend(self: &Rc<Self>, name: Name) -> Result<Accepted<Task>, Problem> {
        let record = self.composite_named(&name).await?.record;
        let root = self.backend_set().await?.root(record.uuid);
        let pool = self.pool_on(root).ok_or_else(|| {
            conflict(format!("no vPool is on backend {name}: there is nothing to be verified"))
        })?;
        if pool.backend().is_none() {
            return Err(offline(&pool));
        }
        let composite = pool.composite(record.uuid).ok_or_else(|| offline(&pool))?;
        let about = about(record.uuid, &name);
        if let Some(task) = self.tasks.running(&about) {
            return Ok(Accepted(task));
        }
        let running = self.tasks.begin(TaskId(self.chance.uuid()), about, self.clock.wall_ms());
        let task = self.tasks.get(running.id)?;
        composite.verification.asked.set(Asked::Wanted);
        composite.woken.notify_one();
        let volumes = self.clone();
        tokio::task::spawn_local(async move {
            let end = volumes.wait_for_verification(&running, &composite, record.uuid).await;
            volumes.finish_task(&running, end);
        });
        Ok(Accepted(task))
    }

    async fn wait_for_verification(
        &self,
        running: &Running,
        composite: &Rc<Composite>,
        uuid: Uuid,
    ) -> Result<Value, Problem> {
        let verification = &composite.verification;
        let unavailable = |detail: String| Err(Problem::new(ProblemKind::Unavailable, detail));
        loop {
            if verification.asked.get() == Asked::No {
                let record = verification.record.borrow();
                let last = record.as_ref().and_then(|record| record.last.as_ref());
                return Ok(last.map_or(Value::Null, |last| result(composite, last)));
            }
            if running.is_cancelled() {
                // Somebody else may have asked since.
                if self.tasks.running(&about(uuid, &composite.name)).is_none() {
                    verification.asked.set(Asked::No);
                    verification.has_no_end.set(false);
                }
                return Ok(Value::Null);
            }
            if self.is_stopping() {
                return unavailable("ovsd stops; the rest is read at the usual pace after its start".into());
            }
            let is_open = self.open_composite(uuid).is_some_and(|(_, open)| Rc::ptr_eq(&open, composite));
            if !is_open {
                let detail = format!(
                    "backend {} was closed meanwhile; the rest is read at the usual pace",
                    composite.name
                );
                return unavailable(detail);
            }
            if verification.asked.get() == Asked::UnderWay {
                let total = composite.coded.upkeep().last.map_or(0, |survey| survey.all.bytes);
                let read = verification.present().map_or(0, |pass| pass.bytes);
                running.progress(read.min(total), (total > 0).then_some(total));
            }
            self.clock.sleep(PROGRESS_EVERY).await;
        }
    }

    /// The last pass, and the present one.
    pub(super) fn show_verification(
        &self,
        composite: &Composite,
    ) -> (Option<ApiVerification>, Option<ApiVerification>) {
        let (verification, every) = (&composite.verification, self.settings.verify_every);
        let record = verification.record.borrow();
        let Some(record) = record.as_ref() else { return (None, None) };
        let total = composite.coded.upkeep().last.map_or(0, |survey| survey.all.bytes);
        let last = record.last.as_ref().map(|last| show(composite, last, 100));
        let is_asked = verification.asked.get() != Asked::No;
        let present = (is_asked || every.is_some()).then(|| {
            let pass = &record.present;
            let percent = u128::from(pass.bytes) * 100 / u128::from(total.max(1));
            let elapsed_ms = self.clock.wall_ms().saturating_sub(pass.began_ms);
            let remaining = match (is_asked, every) {
                // By what was done so far.
                (true, _) if pass.bytes > 0 => {
                    let left = u128::from(total.saturating_sub(pass.bytes)) * u128::from(elapsed_ms);
                    Some(Duration::from_millis((left / u128::from(pass.bytes)) as u64))
                }
                (false, Some(every)) => Some(Pace::new(every, total).remaining(elapsed_ms, pass.bytes)),
                _ => None,
            };
            ApiVerification {
                remaining_seconds: remaining.map(|remaining| remaining.as_secs()),
                ..show(composite, pass, percent.min(99) as u32)
            }
        });
        (last, present)
    }
}

fn names(objects: Vec<ObjectName>) -> Vec<String> {
    objects.iter().map(ToString::to_string).collect()
}

/// The task of somebody who waits for a pass.
fn about(composite: Uuid, name: &Name) -> About {
    About {
        kind: "backend.verify",
        subject: Some(composite),
        subject_name: Some(name.to_string()),
        unit: "bytes",
    }
}

fn tell_end(composite: &Composite, pass: &PassRecord) {
    let (objects, bytes, bad) = (pass.objects, pass.bytes, pass.bad);
    let missed = missed(composite, pass);
    if bad > 0 || !missed.is_empty() {
        let name = &composite.name;
        tracing::warn!(composite = %name, objects, bytes, bad, ?missed, "all that is stored was verified: what is bad is made again");
    } else {
        tracing::info!(composite = %composite.name, objects, bytes, "all that is stored was verified, nothing is bad");
    }
}

/// Those drives that are still some.
fn missed(composite: &Composite, pass: &PassRecord) -> Vec<Name> {
    let members = composite.members();
    pass.missed.iter().filter_map(|uuid| Some(members.get(uuid)?.name.clone())).collect()
}

fn show(composite: &Composite, pass: &PassRecord, percent: u32) -> ApiVerification {
    ApiVerification {
        began_at: Timestamp::from_unix_ms(pass.began_ms),
        ended_at: pass.ended_ms.map(Timestamp::from_unix_ms),
        objects: pass.objects,
        bytes: pass.bytes,
        percent,
        bad_fragments: pass.bad,
        missed: missed(composite, pass),
        remaining_seconds: None,
    }
}

fn result(composite: &Composite, pass: &PassRecord) -> Value {
    json!({
        "objects": pass.objects,
        "verified_bytes": pass.bytes,
        "bad_fragments": pass.bad,
        "missed": missed(composite, pass),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;
    const WEEK: Duration = Duration::from_secs(7 * 86_400);

    #[test]
    fn parts_are_spread_over_the_period_and_leave_some_of_it() {
        let pace = Pace::new(WEEK, 100 << 30);
        let part = part_bytes(100 << 30);
        assert_eq!(part, 64 << 20);
        assert!(!pace.is_due(0, 0), "the first is due a while after the beginning");
        let first = pace.takes_ms(part);
        assert!(pace.is_due(first, 0) && !pace.is_due(first, part) && pace.is_due(2 * first, part));
        assert!(pace.is_due(7 * DAY_MS / 10 * 9, 99 << 30));
        // More is there than there was.
        assert!(pace.is_due(7 * DAY_MS, 200 << 30));
        assert!(!pace.is_due(DAY_MS, 200 << 30));
        assert_eq!(pace.remaining(DAY_MS, 20 << 30).as_millis() as u64, 7 * DAY_MS / 10 * 9 - DAY_MS);
    }

    #[test]
    fn what_is_late_is_caught_up_with_at_four_times_the_usual_speed() {
        let (pace, part) = (Pace::new(WEEK, 100 << 30), 64 << 20);
        assert_eq!(pace.rest(part).as_millis() as u64, pace.takes_ms(part) / 4);
        let all = pace.rest(u64::MAX);
        assert_eq!(all, Duration::from_millis(7 * DAY_MS / 10 * 9 / 4));
        assert_eq!(pace.remaining(30 * DAY_MS, 0), all);
    }

    #[test]
    fn little_is_read_at_once_and_nothing_is_no_trouble() {
        for total in [0, 1, 4096, 1 << 20] {
            let pace = Pace::new(WEEK, total);
            assert!(!pace.is_due(6 * DAY_MS, 0) && pace.is_due(7 * DAY_MS, 0), "{total}");
        }
        let pace = Pace::new(Duration::MAX, u64::MAX);
        assert!(!pace.is_due(1000, 0) && pace.is_due(u64::MAX, u64::MAX));
    }

    #[test]
    fn the_end_of_a_pass_is_the_beginning_of_the_next() {
        let verification = Verification::default();
        let record = VerificationRecord {
            format: FORMAT,
            uuid: Uuid::nil(),
            vpool: ovs_units::VpoolId(Uuid::nil()),
            last: None,
            present: begun(7),
            suspicious: Vec::new(),
            has_more_suspicious: false,
        };
        *verification.record.borrow_mut() = Some(record);
        let read = Verified {
            after: ObjectName::new("v/a").ok(),
            objects: 3,
            bytes: 12,
            bad: 1,
            missed: [Uuid::nil()].into(),
        };
        assert_eq!(verification.has_read(read.clone(), false, 10), None);
        let pass = verification.present().unwrap();
        assert_eq!(verified(&pass), read, "it goes on where it was");
        verification.asked.set(Asked::UnderWay);
        let over = verification.has_read(read, true, 20).unwrap();
        assert_eq!((over.began_ms, over.ended_ms, over.bad), (7, Some(20), 1));
        assert_eq!(verification.present(), Some(begun(20)));
        assert_eq!(verification.asked.get(), Asked::No);
    }
}
