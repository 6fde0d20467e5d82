//! An open composite, as who looks after it knows it: what its drives are for, which are silent and since when, what was found on
//! them, and whether that is reason to give one up.
//!
//! ```text
//!  a serving drive is silent for the whole grace, without a break
//!    ─▶ nobody has looked since it fell silent: look
//!    ─▶ all could be read without those that are silent, and the others satisfy a policy:
//!         no drive is lost yet ─▶ it is given up, alone or with all of its node or site
//!         others are lost      ─▶ with the rest of their node or site; else when these are made good
//! ```
//!
//! Here nothing is changed (`upkeep.rs`) and nobody is asked.

use super::{
    plan::{PlannedDrive, plan},
    presets::from_policy,
    stores::Place,
    verification::Verification,
};
use ovs_api::Policy;
use ovs_backend::coded::{CodedBackend, Duty, Survey};
use ovs_cluster::catalogue::PresetRecord;
use ovs_units::Name;
use std::{
    cell::{Cell, Ref, RefCell},
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::sync::Notify;
use uuid::Uuid;

/// A drive of a composite.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: Name,
    pub(super) place: Place,
    pub(super) duty: Duty,
}

/// What was found on the drives.
#[derive(Debug, Clone)]
pub(super) struct Looked {
    pub(super) survey: Survey,
    pub(super) began: Duration,
    pub(super) ended: Duration,
    /// Also mended what it found.
    pub(super) mended: bool,
    /// The drives were changed so often before it began.
    generation: u64,
}

/// What is to become of drives that are silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Wait,
    /// What can be read without them is not known.
    Look,
    /// These are given up.
    GiveUp(Vec<Uuid>),
    /// They have been silent for long, and are not given up.
    Keep(String),
}

/// A composite of an open vPool, and of one that cannot be used as long as drives are away.
pub(super) struct Composite {
    pub(super) name: Name,
    pub(super) coded: CodedBackend,
    /// Whose keys it has.
    pub(super) preset: Uuid,
    policies: Vec<Policy>,
    members: RefCell<BTreeMap<Uuid, Member>>,
    /// Since when a drive has been silent without a break.
    silent_since: RefCell<BTreeMap<Uuid, Duration>>,
    generation: Cell<u64>,
    /// Whoever looks after it looks up.
    pub(super) woken: Notify,
    pub(super) is_tended: Cell<bool>,
    looked: RefCell<Option<Looked>>,
    pub(super) verification: Verification,
    /// Why it is not as safe as it should be, and nothing happens.
    problem: RefCell<Option<String>>,
}

impl Composite {
    pub(super) fn new(
        name: Name,
        coded: CodedBackend,
        members: BTreeMap<Uuid, Member>,
        preset: &PresetRecord,
    ) -> Composite {
        Composite {
            name,
            coded,
            preset: preset.uuid,
            policies: preset.policies.iter().copied().map(from_policy).collect(),
            members: RefCell::new(members),
            silent_since: RefCell::default(),
            generation: Cell::new(0),
            woken: Notify::new(),
            is_tended: Cell::new(false),
            looked: RefCell::default(),
            verification: Verification::default(),
            problem: RefCell::default(),
        }
    }

    /// So many drives may be silent, and nothing waits for them.
    pub(super) fn silent_max(&self) -> u32 {
        self.policies.iter().map(|policy| u32::from(policy.c.saturating_sub(policy.k))).min().unwrap_or(0)
    }

    pub(super) fn members(&self) -> Ref<'_, BTreeMap<Uuid, Member>> {
        self.members.borrow()
    }

    /// How often its drives were changed.
    pub(super) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// A drive came, or is for something else now. What was found before says nothing of that.
    pub(super) fn set_member(&self, uuid: Uuid, member: Member) {
        self.members.borrow_mut().insert(uuid, member);
        self.changed();
    }

    pub(super) fn remove_member(&self, uuid: Uuid) {
        self.members.borrow_mut().remove(&uuid);
        self.silent_since.borrow_mut().remove(&uuid);
        self.changed();
    }

    fn changed(&self) {
        self.generation.set(self.generation.get() + 1);
        self.woken.notify_one();
    }

    /// What was found last, if the drives are still the same.
    pub(super) fn looked(&self) -> Option<Looked> {
        self.looked.borrow().clone().filter(|looked| looked.generation == self.generation.get())
    }

    /// Tells what was found by one who began when the drives had been changed so often.
    pub(super) fn has_looked(
        &self,
        survey: Survey,
        began: Duration,
        ended: Duration,
        mended: bool,
        generation: u64,
    ) {
        *self.looked.borrow_mut() = Some(Looked { survey, began, ended, mended, generation });
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// True when that is news.
    pub(super) fn set_problem(&self, problem: Option<String>) -> bool {
        let before = self.problem.replace(problem);
        before != *self.problem.borrow()
    }

    /// The drives that do not answer now.
    pub(super) fn note_silent(&self, silent: &BTreeSet<Uuid>, now: Duration) {
        let mut since = self.silent_since.borrow_mut();
        since.retain(|uuid, _| silent.contains(uuid));
        for uuid in silent {
            since.entry(*uuid).or_insert(now);
        }
    }

    /// It has answered.
    pub(super) fn is_heard(&self, uuid: Uuid) {
        self.silent_since.borrow_mut().remove(&uuid);
    }

    pub(super) fn silent(&self) -> BTreeSet<Uuid> {
        self.silent_since.borrow().keys().copied().collect()
    }

    /// Drives that have been silent for so long, and since when the last of them.
    fn silent_for(&self, grace: Duration, now: Duration) -> (BTreeSet<Uuid>, Duration) {
        let since = self.silent_since.borrow();
        let long: BTreeMap<Uuid, Duration> = since
            .iter()
            .filter(|(_, since)| now >= **since + grace)
            .map(|(uuid, since)| (*uuid, *since))
            .collect();
        (long.keys().copied().collect(), long.values().copied().max().unwrap_or_default())
    }

    /// What is to become of those that are silent.
    pub(super) fn verdict(&self, grace: Duration, now: Duration) -> Verdict {
        let members = self.members.borrow();
        let (silent, since) = self.silent_for(grace, now);
        let of_duty = |duty: Duty| members.iter().filter(move |(_, member)| member.duty == duty);
        let candidates: BTreeSet<Uuid> =
            of_duty(Duty::Serving).map(|(uuid, _)| *uuid).filter(|uuid| silent.contains(uuid)).collect();
        if candidates.is_empty() {
            return Verdict::Wait;
        }
        let Some(looked) = self.looked().filter(|looked| looked.began >= since) else { return Verdict::Look };
        let mut names: Vec<&str> = candidates.iter().map(|uuid| members[uuid].name.as_str()).collect();
        names.sort_unstable();
        let keep = |why: &str| {
            Verdict::Keep(format!(
                "{} silent for longer than {grace:?}, and not given up: {why}",
                are(&names)
            ))
        };
        if !candidates.iter().all(|uuid| looked.survey.silent.contains(uuid)) {
            return Verdict::Wait;
        }
        if !looked.survey.is_readable_without_silent {
            return keep(
                "without all that is silent or lost there may be objects of which too little is left. Bring it back, or give it up \
                 with ovs backend drive remove --lost",
            );
        }
        let rest: Vec<PlannedDrive> = of_duty(Duty::Serving)
            .filter(|(uuid, _)| !candidates.contains(uuid))
            .map(|(_, member)| PlannedDrive { place: member.place.clone(), bytes: None, raw_bytes: None })
            .collect();
        if plan(&rest, &self.policies).policy.is_none() {
            return keep("the other drives satisfy no policy of the preset. Add a drive first");
        }
        let lost: BTreeSet<Uuid> = of_duty(Duty::Lost).map(|(uuid, _)| *uuid).collect();
        if let Some(together) = lost_together(&members, &lost, &silent) {
            return Verdict::GiveUp(together.intersection(&candidates).copied().collect());
        }
        // While another is silent nothing is done with, and only what cannot be on that one is made again.
        let has_done_its_best = looked.mended && looked.survey.to_mend == 0;
        if !lost.is_empty() && !has_done_its_best {
            return keep("what was on drives that are lost is not made again yet");
        }
        let first = |uuid: &&Uuid| self.silent_since.borrow().get(*uuid).copied();
        Verdict::GiveUp(candidates.iter().min_by_key(first).copied().into_iter().collect())
    }
}

fn are(names: &[&str]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

/// A node or site of which all is silent or lost, and beside which nothing is lost. With more than one drive that is silent: one
/// alone needs no such reason.
fn lost_together(
    members: &BTreeMap<Uuid, Member>,
    lost: &BTreeSet<Uuid>,
    silent: &BTreeSet<Uuid>,
) -> Option<BTreeSet<Uuid>> {
    let labels = |of: fn(&Place) -> &String| -> BTreeSet<&String> {
        members.values().map(|member| of(&member.place)).filter(|label| !label.is_empty()).collect()
    };
    let group = |of: fn(&Place) -> &String, label: &String| -> BTreeSet<Uuid> {
        let is_of = |member: &Member| of(&member.place) == label;
        members.iter().filter(|(_, member)| is_of(member)).map(|(uuid, _)| *uuid).collect()
    };
    let nodes = labels(|place| &place.node).into_iter().map(|label| group(|place| &place.node, label));
    let sites = labels(|place| &place.site).into_iter().map(|label| group(|place| &place.site, label));
    let is_one = |group: &BTreeSet<Uuid>| {
        let is_silent = |uuid: &Uuid| silent.contains(uuid) && members[uuid].duty == Duty::Serving;
        group.len() > 1
            && group.len() < members.len()
            && lost.is_subset(group)
            && group.iter().all(|uuid| lost.contains(uuid) || silent.contains(uuid))
            && group.iter().any(is_silent)
    };
    nodes.chain(sites).find(is_one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_backend::{MemoryBackend, coded};
    use std::rc::Rc;

    const GRACE: Duration = Duration::from_secs(900);
    const LATER: Duration = Duration::from_secs(5000);

    fn uuid(number: usize) -> Uuid {
        Uuid::from_u128(number as u128)
    }

    /// Drives by node and site, with c - k of 2.
    fn composite(drives: &[(&str, &str)]) -> Composite {
        let policies = vec![coded::Policy::new(2, 2, 4, 2).unwrap()];
        let coded_drives = drives.iter().enumerate().map(|(number, (node, site))| coded::Drive {
            id: uuid(number),
            node: (*node).into(),
            site: (*site).into(),
            weight: 1,
            backend: Rc::new(MemoryBackend::new()),
            duty: Duty::Serving,
        });
        let preset = coded::Preset::new(policies).unwrap();
        let coded = CodedBackend::new(coded_drives.collect(), preset, coded::Work::Here).unwrap();
        let members = drives.iter().enumerate().map(|(number, (node, site))| {
            let place = Place {
                node: (*node).into(),
                site: (*site).into(),
                nodes: BTreeSet::from([(*node).into()]),
                sites: BTreeSet::from([(*site).into()]),
            };
            let name = Name::new(&format!("d{number}")).unwrap();
            (uuid(number), Member { name, place, duty: Duty::Serving })
        });
        let preset: PresetRecord = serde_json::from_value(serde_json::json!({
            "format": 1, "uuid": Uuid::nil(), "name": "p", "version": 1, "compression": "none", "fragment_bytes": 32768,
            "policies": [{"k": 2, "m": 2, "c": 4, "x": 2}], "created_ms": 7, "request": null,
        }))
        .unwrap();
        Composite::new(Name::new("all").unwrap(), coded, members.collect(), &preset)
    }

    fn fall_silent(composite: &Composite, silent: &[usize], at: Duration) {
        composite.note_silent(&silent.iter().copied().map(uuid).collect(), at);
    }

    fn look(composite: &Composite, began: Duration, is_readable: bool) {
        let survey = Survey {
            silent: composite.silent().into_iter().collect(),
            is_readable_without_silent: is_readable,
            to_mend: 1,
            ..Survey::default()
        };
        composite.has_looked(survey, began, began, true, composite.generation());
    }

    fn lose(composite: &Composite, drive: usize) {
        let member = composite.members()[&uuid(drive)].clone();
        composite.set_member(uuid(drive), Member { duty: Duty::Lost, ..member });
    }

    fn given_up(drives: &[usize]) -> Verdict {
        Verdict::GiveUp(drives.iter().copied().map(uuid).collect())
    }

    const EIGHT: [(&str, &str); 8] =
        [("a", "s"), ("a", "s"), ("b", "s"), ("c", "t"), ("d", "t"), ("e", "u"), ("f", "u"), ("g", "u")];

    #[test]
    fn one_that_is_silent_for_the_whole_grace_is_given_up_when_all_could_be_read_without_it() {
        let composite = composite(&EIGHT);
        assert_eq!(composite.verdict(GRACE, LATER), Verdict::Wait);
        let since = Duration::from_secs(100);
        fall_silent(&composite, &[2], since);
        assert_eq!(composite.verdict(GRACE, since + GRACE - Duration::from_secs(1)), Verdict::Wait);
        assert_eq!(composite.verdict(GRACE, since + GRACE), Verdict::Look, "nobody has looked yet");
        look(&composite, since - Duration::from_secs(1), true);
        assert_eq!(composite.verdict(GRACE, since + GRACE), Verdict::Look, "nobody has since");
        look(&composite, since, false);
        assert!(matches!(composite.verdict(GRACE, LATER), Verdict::Keep(_)));
        look(&composite, since, true);
        assert_eq!(composite.verdict(GRACE, since + GRACE), given_up(&[2]));
        fall_silent(&composite, &[], LATER);
        fall_silent(&composite, &[2], LATER);
        assert_eq!(composite.verdict(GRACE, LATER + GRACE / 2), Verdict::Wait, "there was a break");
    }

    #[test]
    fn what_was_found_before_a_drive_changed_is_no_reason() {
        let composite = composite(&EIGHT);
        fall_silent(&composite, &[2], Duration::ZERO);
        look(&composite, GRACE, true);
        let member = composite.members()[&uuid(5)].clone();
        composite.set_member(uuid(5), Member { duty: Duty::Leaving, ..member });
        assert_eq!(composite.verdict(GRACE, LATER), Verdict::Look);
    }

    #[test]
    fn one_drive_at_a_time_but_a_node_or_a_site_as_a_whole() {
        let check = |silent: &[usize], lost: &[usize], expected: Verdict| {
            let composite = composite(&EIGHT);
            lost.iter().for_each(|drive| lose(&composite, *drive));
            fall_silent(&composite, silent, Duration::ZERO);
            look(&composite, GRACE, true);
            let verdict = composite.verdict(GRACE, LATER);
            match (&verdict, &expected) {
                (Verdict::Keep(_), Verdict::Keep(_)) => {}
                _ => assert_eq!(verdict, expected, "{silent:?} silent, {lost:?} lost"),
            }
        };
        // What is left of that, only the other one that is silent can have: each would wait for the other.
        let both = composite(&EIGHT);
        lose(&both, 5);
        fall_silent(&both, &[2], Duration::ZERO);
        let survey = Survey { silent: vec![uuid(2)], is_readable_without_silent: true, ..Survey::default() };
        both.has_looked(survey.clone(), GRACE, GRACE, false, both.generation());
        assert!(matches!(both.verdict(GRACE, LATER), Verdict::Keep(_)), "nobody has mended yet");
        both.has_looked(survey, GRACE, GRACE, true, both.generation());
        assert_eq!(both.verdict(GRACE, LATER), given_up(&[2]));
        let keep = Verdict::Keep(String::new());
        check(&[2, 5], &[], given_up(&[2]));
        check(&[0, 1], &[], given_up(&[0, 1]));
        check(&[3, 4], &[], given_up(&[3, 4]));
        check(&[0, 2], &[], given_up(&[0]));
        check(&[2], &[5], keep.clone());
        check(&[1], &[0], given_up(&[1]));
        check(&[4], &[3], given_up(&[4]));
        // Another one of the site works: it is not the site that is lost.
        check(&[1], &[2], keep.clone());
        check(&[0, 1], &[2], given_up(&[0, 1]));
        check(&[0, 1], &[5], keep);
    }

    #[test]
    fn all_at_once_are_never_given_up_and_neither_is_one_that_the_others_cannot_do_without() {
        let all = composite(&[("a", "s"), ("a", "s"), ("b", "s"), ("b", "s"), ("c", "s")]);
        fall_silent(&all, &[0, 1, 2, 3, 4], Duration::ZERO);
        look(&all, GRACE, true);
        assert!(matches!(all.verdict(GRACE, LATER), Verdict::Keep(_)));
        let four = composite(&[("a", ""), ("b", ""), ("c", ""), ("d", "")]);
        fall_silent(&four, &[0], Duration::ZERO);
        look(&four, GRACE, true);
        let Verdict::Keep(why) = four.verdict(GRACE, LATER) else { panic!("the others satisfy no policy") };
        assert!(why.contains("d0 is silent") && why.contains("Add a drive first"), "{why}");
    }
}
