//! Composites are looked after: one task for each that is open.
//!
//! ```text
//!  tick ─▶ which drives are silent ─▶ a task for each composite that has none
//!  task ─▶ give up what was silent for too long ─▶ look, mend ─▶ let drives go of which nothing is needed ─▶ verify a part, or wait ─▶ …
//! ```
//!
//! It begins anew when drives are changed: what was found before says nothing of them any more. Of a vPool that is offline, because
//! too many drives are away, composites are looked at and not mended, so that a drive can be given up there, too.

use super::{
    Pool, Volumes,
    composite::{Composite, Verdict},
    drive::Drive,
};
use futures_util::future::{join_all, select};
use ovs_api::{BackendUpkeep, Problem, ProblemKind, SafetyShare, Timestamp, UpkeepPhase};
use ovs_backend::coded::{Duty, Phase};
use ovs_units::Name;
use std::{
    collections::BTreeSet,
    pin::pin,
    rc::{Rc, Weak},
    time::Duration,
};
use uuid::Uuid;

/// How soon it is seen that there is something to do.
pub(super) const POLL: Duration = Duration::from_secs(1);
/// What happens on drives calls for a look so soon at the earliest, …
pub(super) const REST: Duration = Duration::from_secs(10);
/// … and what could not be finished so soon. Also for as long as the last look took.
const REST_UNFINISHED: Duration = Duration::from_secs(60);

/// Who looks after a composite, and what of.
pub(super) struct Tended {
    volumes: Weak<Volumes>,
    pool: Weak<Pool>,
    pub(super) uuid: Uuid,
    pub(super) composite: Rc<Composite>,
}

/// Whoever sees that nobody looks after it any more begins anew.
struct UntilItEnds(Rc<Composite>);

impl Drop for UntilItEnds {
    fn drop(&mut self) {
        self.0.is_tended.set(false);
    }
}

impl Tended {
    pub(super) fn new(
        volumes: &Rc<Volumes>,
        pool: &Rc<Pool>,
        uuid: Uuid,
        composite: Rc<Composite>,
    ) -> Tended {
        Tended { volumes: Rc::downgrade(volumes), pool: Rc::downgrade(pool), uuid, composite }
    }

    /// Nothing, once the composite is none of an open vPool's any more.
    pub(super) fn present(&self) -> Option<(Rc<Volumes>, Rc<Pool>)> {
        let (volumes, pool) = (self.volumes.upgrade()?, self.pool.upgrade()?);
        let is_it = |open: Rc<Composite>| Rc::ptr_eq(&open, &self.composite);
        let is_present = !volumes.is_stopping()
            && volumes.pool(pool.record().id).is_ok_and(|known| Rc::ptr_eq(&known, &pool))
            && pool.composite(self.uuid).is_some_and(is_it);
        is_present.then_some((volumes, pool))
    }

    async fn tend(self) {
        let _until_it_ends = UntilItEnds(self.composite.clone());
        // After a failure drives are not given up, nor is anything cut off for that, until then.
        let mut quiet_until = Duration::ZERO;
        loop {
            let Some((volumes, pool)) = self.present() else { return };
            let clock = volumes.clock.clone();
            if clock.now() >= quiet_until
                && let Err(problem) = volumes.give_up_silent(&pool, self.uuid, &self.composite).await
            {
                tracing::warn!(composite = %self.composite.name, %problem, "a drive that is silent is not given up yet");
                quiet_until = clock.now() + REST;
            }
            // What was bad before a crash is mended before a drive goes that it needs.
            let knows_bad = volumes.remember_bad(&pool, self.uuid, &self.composite).await;
            let due = volumes.is_due(&pool, &self.composite);
            drop((volumes, pool));
            let Some(mends) = due else {
                self.verify_or_wait(quiet_until).await;
                continue;
            };
            let (began, generation) = (clock.now(), self.composite.generation());
            let looked = tokio::select! {
                survey = self.composite.coded.look_after(mends) => Some(survey),
                () = self.until_cut_off(generation, mends, quiet_until) => None,
            };
            let Some(survey) = looked else { continue };
            self.composite.has_looked(survey, began, clock.now(), mends, generation);
            let Some((volumes, _)) = self.present() else { return };
            volumes.keep_bad(&self.composite).await;
            if knows_bad && let Err(problem) = volumes.finish_drives(self.uuid).await {
                tracing::warn!(composite = %self.composite.name, %problem, "drives that are done with are not let go yet");
            }
        }
    }

    /// Until something else is more urgent than what goes on.
    pub(super) async fn until_cut_off(&self, generation: u64, mends: bool, quiet_until: Duration) {
        loop {
            let Some((volumes, _)) = self.present() else { return };
            let clock = volumes.clock.clone();
            let grace = volumes.settings.repair_grace;
            drop(volumes);
            let now = clock.now();
            let is_urgent = grace.is_some_and(|grace| match self.composite.verdict(grace, now) {
                Verdict::GiveUp(_) => true,
                // Who only looks is at that already.
                Verdict::Look => mends,
                Verdict::Wait | Verdict::Keep(_) => false,
            });
            if self.composite.generation() != generation || is_urgent && now >= quiet_until {
                return;
            }
            select(pin!(self.composite.woken.notified()), clock.sleep(POLL)).await;
        }
    }
}

impl Volumes {
    /// Sees which drives are silent, and that every composite is looked after.
    pub(super) fn begin_upkeep(self: &Rc<Self>) {
        let now = self.clock.now();
        for pool in self.all_pools() {
            for (uuid, composite) in pool.composites() {
                composite.note_silent(&silent_members(&pool, &composite), now);
                if !composite.is_tended.replace(true) {
                    tokio::task::spawn_local(Tended::new(self, &pool, uuid, composite).tend());
                }
            }
        }
    }

    /// Whether a composite is to be looked at now, and if so whether what is found is mended.
    pub(super) fn is_due(&self, pool: &Pool, composite: &Composite) -> Option<bool> {
        let (now, mends) = (self.clock.now(), pool.backend().is_some());
        // First of all, also before the first pass: that one would be cut off for it again and again.
        let grace = self.settings.repair_grace;
        if grace.is_some_and(|grace| composite.verdict(grace, now) == Verdict::Look) {
            return Some(false);
        }
        let Some(looked) = composite.looked() else { return Some(mends) };
        let (rested, lasted) = (now.saturating_sub(looked.ended), looked.ended.saturating_sub(looked.began));
        let has_rested = |least: Duration| rested >= least.max(lasted);
        let is_going = composite.members().values().any(|member| member.duty != Duty::Serving);
        let is_unfinished = looked.survey.unmended > 0 || is_going;
        let is_due = mends && !looked.mended
            || composite.coded.wants_survey() && has_rested(REST)
            || is_unfinished && has_rested(REST_UNFINISHED)
            || rested >= self.settings.survey_every;
        is_due.then_some(mends)
    }

    /// Gives up what was silent for the whole grace, if that is all right.
    async fn give_up_silent(&self, pool: &Pool, uuid: Uuid, composite: &Composite) -> Result<(), Problem> {
        let verdict = match self.settings.repair_grace {
            Some(grace) => composite.verdict(grace, self.clock.now()),
            None => Verdict::Wait,
        };
        let drives = match verdict {
            Verdict::GiveUp(drives) => drives,
            Verdict::Keep(why) => {
                self.tell_problem(composite, Some(why));
                return Ok(());
            }
            Verdict::Wait | Verdict::Look => {
                self.tell_problem(composite, self.unfinished_problem(composite));
                return Ok(());
            }
        };
        let generation = composite.generation();
        // The last word is theirs.
        for drive in &drives {
            join_all(leaves(pool, *drive).iter().map(|leaf| leaf.space())).await;
            if !is_silent(pool, *drive) {
                composite.is_heard(*drive);
                return Ok(());
            }
        }
        let grace = self.settings.repair_grace.unwrap_or_default();
        let why = format!("silent for {grace:?}: what was there is made again on the others");
        if !self.give_up(uuid, generation, &drives, &why).await? {
            return Err(Problem::new(ProblemKind::Conflict, "the drives have changed meanwhile"));
        }
        tracing::warn!(composite = %composite.name, ?drives, ?grace, "drives were silent for too long and are given up as lost");
        Ok(())
    }

    /// Why drives that go are not gone, and objects are not as safe as they should be, although all was done that can be.
    fn unfinished_problem(&self, composite: &Composite) -> Option<String> {
        let survey = composite.looked()?.survey;
        let members = composite.members();
        let lost = members.values().find(|member| member.duty == Duty::Lost);
        let mut problems = Vec::new();
        if survey.unreadable > 0 {
            let first = survey.unreadable_names.first().map(ToString::to_string).unwrap_or_default();
            problems
                .push(format!("{} objects cannot be read now, the first of them {first}", survey.unreadable));
        }
        if survey.unreadable > 0 || survey.may_have_lost_unseen {
            problems.extend(lost.map(|lost| {
                format!(
                    "drive {} is kept as lost, because something may be gone with it: ovs backend drive remove {} {} --lost \
                     --accept-loss lets it go",
                    lost.name, composite.name, lost.name
                )
            }));
        }
        if survey.unmended > 0 {
            let reason = survey.reason.unwrap_or_default();
            problems.push(format!("{} objects could not be mended: {reason}", survey.unmended));
        }
        problems.extend(composite.verification.problem(composite));
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    fn tell_problem(&self, composite: &Composite, problem: Option<String>) {
        if composite.set_problem(problem.clone()) {
            match problem {
                Some(problem) => {
                    tracing::warn!(composite = %composite.name, problem, "it is not as safe as it should be")
                }
                None => {
                    tracing::info!(composite = %composite.name, "nothing is in the way of its upkeep any more")
                }
            }
        }
    }

    /// The open composite, and the vPool that it is of.
    pub(super) fn open_composite(&self, uuid: Uuid) -> Option<(Rc<Pool>, Rc<Composite>)> {
        self.all_pools().into_iter().find_map(|pool| {
            let open = pool.composite(uuid)?;
            Some((pool, open))
        })
    }

    /// What is in the way of composites' safety, by the drive or composite.
    pub(super) fn upkeep_alarms(&self, pool: &Pool) -> Vec<(Name, String)> {
        let mut alarms = Vec::new();
        for (_, composite) in pool.composites() {
            alarms.extend(composite.problem().map(|problem| (composite.name.clone(), problem)));
            let members = composite.members();
            let lost = members.values().filter(|member| member.duty == Duty::Lost);
            alarms.extend(lost.map(|member| {
                let detail = format!(
                    "it was given up as lost: what was on it is made again on the other drives of {}, and it is not asked again",
                    composite.name
                );
                (member.name.clone(), detail)
            }));
        }
        alarms
    }

    /// How safe what is stored on a composite is.
    pub(super) fn show_upkeep(&self, uuid: Uuid) -> Option<BackendUpkeep> {
        let (_, composite) = self.open_composite(uuid)?;
        let upkeep = composite.coded.upkeep();
        let survey = upkeep.last.unwrap_or_default();
        let all = survey.all;
        let safety = survey.safety.iter().map(|(losses, share)| SafetyShare {
            losses: *losses,
            objects: share.objects,
            bytes: share.bytes,
            percent: (u128::from(share.objects) * 100 / u128::from(all.objects.max(1))) as u32,
        });
        let silent: BTreeSet<Uuid> = survey.silent.iter().copied().chain(composite.silent()).collect();
        let members = composite.members();
        let named = silent.iter().filter_map(|uuid| Some(members.get(uuid)?.name.clone()));
        let surveyed_ms = upkeep.last_at.map(|at| {
            self.clock.wall_ms().saturating_sub(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
        });
        let (verified, verifying) = self.show_verification(&composite);
        Some(BackendUpkeep {
            phase: match upkeep.phase {
                Phase::Idle => UpkeepPhase::Idle,
                Phase::Looking => UpkeepPhase::Looking,
                Phase::Mending => UpkeepPhase::Mending,
            },
            objects: all.objects,
            bytes: all.bytes,
            safety: safety.collect(),
            unreadable: survey.unreadable,
            to_mend: upkeep.objects_to_mend,
            mended: upkeep.objects_mended,
            remaining_seconds: upkeep.remaining.map(|remaining| remaining.as_secs()),
            surveyed_at: surveyed_ms.map(Timestamp::from_unix_ms),
            silent: named.collect(),
            problem: composite.problem(),
            verify_every_seconds: self.settings.verify_every.map(|every| every.as_secs()),
            verified,
            verifying,
        })
    }

    /// Writes `vpools.json`, now or as soon as that can be done.
    pub(super) async fn keep_inventory(&self) {
        let written = self.write_inventory().await;
        self.is_inventory_due.set(written.is_err());
        if let Err(problem) = written {
            tracing::error!(%problem, "what has changed is in the registry alone as yet");
        }
    }

    /// What was not finished when composites' drives changed.
    pub(super) async fn retry_upkeep(self: &Rc<Self>) {
        if self.is_inventory_due.get() {
            self.keep_inventory().await;
        }
        let Some(turn) = self.locks.try_lock("departed") else { return };
        let volumes = self.clone();
        tokio::task::spawn_local(async move {
            if let Err(problem) = volumes.finish_unused_drives().await {
                tracing::debug!(%problem, "drives of composites without a vPool are not let go yet");
            }
            if let Err(problem) = volumes.begin_emptying_departed().await {
                tracing::warn!(%problem, "drives that have left are not emptied yet");
            }
            drop(turn);
        });
    }
}

fn silent_members(pool: &Pool, composite: &Composite) -> BTreeSet<Uuid> {
    let members = composite.members();
    let asked = members.iter().filter(|(_, member)| member.duty != Duty::Lost);
    asked.map(|(uuid, _)| *uuid).filter(|uuid| is_silent(pool, *uuid)).collect()
}

/// It does not answer: a drive said nothing when it was last asked; of a composite so many of its own that nothing can be told of it.
fn is_silent(pool: &Pool, uuid: Uuid) -> bool {
    match (pool.part(uuid), pool.composite(uuid)) {
        (Some(drive), _) => drive.trouble().is_some(),
        (None, Some(composite)) => {
            let silent = silent_members(pool, &composite).len();
            u32::try_from(silent).is_ok_and(|silent| silent > composite.silent_max())
        }
        (None, None) => false,
    }
}

/// What a drive is made of in the end, as far as it is asked.
fn leaves(pool: &Pool, uuid: Uuid) -> Vec<Rc<Drive>> {
    match (pool.part(uuid), pool.composite(uuid)) {
        (Some(drive), _) => vec![drive],
        (None, Some(composite)) => {
            let members = composite.members();
            members.keys().flat_map(|uuid| leaves(pool, *uuid)).collect()
        }
        (None, None) => Vec::new(),
    }
}
