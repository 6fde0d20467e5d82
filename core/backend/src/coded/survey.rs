//! Looking at all objects: how they lie on the drives, how safe that is, and which are to be mended.
//!
//! Drives list what they have side by side, and of each object one header is read, which tells how many chunks and fragments there
//! have to be. Only where that does not add up is the object looked at by itself, when nobody puts or deletes it.

use super::drives::Drives;
use super::find::place_of;
use super::known::{Found, Object};
use super::list::{Listing, Seen};
use super::placement::{self, Home};
use super::plan::{self, Chunk, Plan};
use super::{Duty, Inner, Policy, encode};
use crate::{BackendError, ObjectName};
use futures_util::future::join_all;
use ovs_format::fragment::HEADER_BYTES;
use ovs_units::planted;
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};
use tokio::time::timeout;
use uuid::Uuid;

/// Objects that are looked at side by side.
const AT_ONCE: usize = 32;
/// Names of objects that cannot be read, told.
const NAMES_MAX: usize = 100;
/// Objects to be mended that are remembered; the next pass finds the others.
const TO_MEND_MAX: usize = 100_000;
/// Puts that began before are waited for so long: after that their drives have been given up.
const PUTS_END: Duration = Duration::from_secs(150);

/// Objects, and the bytes of their fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// So many.
    pub objects: u64,
    /// As they are stored.
    pub bytes: u64,
}

/// What was on the drives when all objects were last looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// All objects that can be read.
    pub all: Share,
    /// By how many more drives may be lost, whichever: what can be read now.
    pub safety: BTreeMap<u32, Share>,
    /// Objects that may have been acknowledged and cannot be read now, …
    pub unreadable: u64,
    /// … and the first of their names.
    pub unreadable_names: Vec<ObjectName>,
    /// Objects that do not lie as they should.
    pub to_mend: u64,
    /// Objects that were mended in this pass.
    pub mended: u64,
    /// Objects that could not be mended, …
    pub unmended: u64,
    /// … and why the last of them.
    pub reason: Option<String>,
    /// Drives that are asked and did not answer: what they have is not counted.
    pub silent: Vec<Uuid>,
    /// Leaving drives on which nothing is needed any more, and lost ones of which all was made again that could be. Empty
    /// unless all others have answered. Lost ones are among these also where something is unreadable: who lets them go accepts that.
    pub done_with: Vec<Uuid>,
    /// So many drives are lost that objects may be gone of which nothing is left to tell.
    pub may_have_lost_unseen: bool,
    /// Everything that may have been acknowledged could be read without those that are silent.
    pub is_readable_without_silent: bool,
}

/// One object.
enum Condition {
    /// Nothing is there any more, or what is there was never acknowledged.
    Absent,
    /// It may have been acknowledged. Lost: whatever else answers.
    Unreadable { is_lost: bool },
    /// It can be read.
    There { safety: u32, is_to_mend: bool, is_made_again: bool, needed_on: BTreeSet<usize> },
}

impl Inner {
    /// The policy that all drives which take fragments satisfy.
    pub(super) fn aim(&self) -> Option<Policy> {
        let drives = self.drives();
        placement::choose(&self.preset().policies, &drives, |index| drives[index].duty.takes())
    }

    /// Looks at everything. Also returns what is to be mended, the least safe first.
    pub(super) async fn survey(&self) -> (Survey, Vec<ObjectName>) {
        let drives = self.drives();
        // What was put by the drives of before is on them when it is looked at.
        let puts = self.on_their_way.puts();
        let puts = join_all(puts.iter().map(|name| self.on_their_way.is_put(name)));
        let are_puts_over = timeout(PUTS_END, puts).await.is_ok();
        *self.upkeep.unlisted.borrow_mut() = self.upkeep.suspicious.borrow().clone();
        for name in self.on_their_way.puts() {
            self.upkeep.unlisted.borrow_mut().remove(&name);
        }
        let mut survey = Survey::default();
        let mut to_mend: Vec<(u32, ObjectName)> = Vec::new();
        let mut needed_on: BTreeSet<usize> = BTreeSet::new();
        let mut is_all_made_again = true;
        let mut listing = Listing::new(self, "", None);
        loop {
            let mut some = Vec::new();
            while some.len() < AT_ONCE
                && let Some(next) = listing.next().await
            {
                self.upkeep.unlisted.borrow_mut().remove(&next.0);
                some.push(next);
            }
            if some.is_empty() {
                break;
            }
            self.upkeep.progress.borrow_mut().objects_looked_at += some.len() as u64;
            let silent = &listing.silent;
            let looked = join_all(some.iter().map(|(name, seen)| self.examine(name, seen, silent)));
            let looked = self.upkeep.paced(looked).await;
            for (condition, (name, seen)) in looked.into_iter().zip(some.iter()) {
                let share = Share { objects: 1, bytes: seen.iter().map(|seen| seen.bytes).sum() };
                match condition {
                    Condition::Absent => {}
                    Condition::Unreadable { is_lost } => {
                        survey.unreadable += 1;
                        // What does not answer now may be made good when it does.
                        is_all_made_again &= is_lost;
                        if survey.unreadable_names.len() < NAMES_MAX {
                            survey.unreadable_names.push(name.clone());
                        }
                        // It is all that is left of it, and may be part of what brings it back.
                        let asked_last = seen.iter().filter(|seen| drives[seen.drive].duty == Duty::Leaving);
                        needed_on.extend(asked_last.map(|seen| seen.drive));
                    }
                    Condition::There { safety, is_to_mend, is_made_again, needed_on: here } => {
                        survey.all.add(share);
                        survey.safety.entry(safety).or_default().add(share);
                        needed_on.extend(here);
                        is_all_made_again &= is_made_again;
                        if is_to_mend {
                            survey.to_mend += 1;
                            to_mend.push((safety, name.clone()));
                        }
                    }
                }
            }
            if to_mend.len() > 2 * TO_MEND_MAX {
                to_mend.sort_unstable();
                to_mend.truncate(TO_MEND_MAX);
            }
        }
        let mut failed = self.upkeep.failed.borrow().clone();
        if planted("drives: what failed once in a survey is overlooked") {
            failed.clear();
        }
        let silent: BTreeSet<usize> =
            listing.silent.into_iter().chain(failed).chain(self.suspects_of(&drives)).collect();
        let silent: BTreeSet<usize> =
            silent.into_iter().filter(|index| drives[*index].duty.is_asked()).collect();
        let unlisted = self.upkeep.unlisted.take();
        if silent.is_empty() && self.drives().generation == drives.generation {
            unlisted.iter().for_each(|name| self.upkeep.is_cleared(name));
        }
        let knows_all = silent.is_empty() && !self.upkeep.has_more_suspicious.get();
        let lost = drives.with(|duty| duty == Duty::Lost).count() as u32;
        survey.may_have_lost_unseen = lost > self.unheard_max();
        survey.is_readable_without_silent =
            survey.unreadable == 0 && self.unheard(&silent) <= self.unheard_max();
        survey.silent = silent.iter().map(|index| drives[*index].id).collect();
        if knows_all && are_puts_over && self.drives().generation == drives.generation {
            let is_done = |index: &usize| match drives[*index].duty {
                Duty::Leaving => !needed_on.contains(index),
                Duty::Lost => is_all_made_again,
                Duty::Serving | Duty::Gone => false,
            };
            survey.done_with = (0..drives.len()).filter(is_done).map(|index| drives[index].id).collect();
        }
        to_mend.sort_unstable();
        to_mend.truncate(TO_MEND_MAX);
        (survey, to_mend.into_iter().map(|(_, name)| name).collect())
    }

    fn suspects_of(&self, drives: &Drives) -> Vec<usize> {
        drives.asked().filter(|index| self.is_suspect(*index)).collect()
    }

    /// By what the drives have listed, or by itself.
    async fn examine(&self, name: &ObjectName, seen: &[Seen], silent: &BTreeSet<usize>) -> Condition {
        let is_suspicious = self.upkeep.suspicious.borrow().contains(name);
        let is_simple = !is_suspicious && self.on_their_way.removing_from(name).is_empty();
        if is_simple && let Some(object) = self.learn_from(name, seen).await {
            let mut found = Found { silent: silent.clone(), ..Found::default() };
            seen.iter().for_each(|seen| found.fragments.entry(seen.place).or_default().push(seen.drive));
            self.leave_out_failed(&mut found);
            let condition = self.condition(&object, &found);
            if matches!(condition, Condition::There { is_to_mend: false, .. }) {
                return condition;
            }
        }
        // It was listed while it was put or deleted, perhaps.
        let _over = timeout(PUTS_END, self.on_their_way.is_put(name)).await;
        let (object, mut found) = match self.as_it_lies(name, is_suspicious).await {
            Ok(Some(there)) => there,
            Ok(None) => return Condition::Absent,
            Err(error) => {
                return Condition::Unreadable { is_lost: matches!(error, BackendError::Lost { .. }) };
            }
        };
        self.leave_out_failed(&mut found);
        let mut condition = self.condition(&object, &found);
        let is_alone = found.fragments.keys().all(|place| place.layout == object.layout());
        if !is_alone
            && matches!(condition, Condition::Unreadable { .. })
            && let Ok(other) = self.find_among(name, found.clone(), Some(object.layout())).await
        {
            condition = self.condition(&other, &found);
        }
        // What is known to be bad somewhere counts nowhere as a reason to let anything go, nor does a form beside another: nobody has
        // read yet which of them is good.
        if (is_suspicious || !is_alone)
            && !planted("drives: what is bad elsewhere is not needed")
            && let Condition::There { is_to_mend, is_made_again, needed_on, .. } = &mut condition
        {
            let drives = self.drives();
            let all = found.fragments.values().flatten().copied();
            needed_on.extend(all.filter(|index| drives[*index].duty == Duty::Leaving));
            let is_to_be_read = is_suspicious && self.upkeep.is_to_be_read(name);
            *is_to_mend |= is_to_be_read || !is_alone && found.silent.is_empty();
            *is_made_again = false;
        }
        condition
    }

    /// A drive that has failed in this pass may list what it cannot read.
    fn leave_out_failed(&self, found: &mut Found) {
        let failed = self.upkeep.failed.borrow();
        for drive in failed.iter() {
            found.silent.insert(*drive);
        }
        found.fragments.retain(|_, drives| {
            drives.retain(|drive| !failed.contains(drive));
            !drives.is_empty()
        });
    }

    /// What an object is, and where its fragments are by what drives list; nothing where too little is there for it to be one.
    /// Drives that have failed lately are asked, too, or count as silent.
    pub(super) async fn as_it_lies(
        &self,
        name: &ObjectName,
        asks_suspects: bool,
    ) -> Result<Option<(Rc<Object>, Found)>, BackendError> {
        let mut found = self.look_on(name, asks_suspects).await;
        // What may go at any time is as unknown as what does not answer.
        for drive in self.on_their_way.removing_from(name) {
            found.silent.insert(drive);
            found.fragments.values_mut().for_each(|drives| drives.retain(|other| *other != drive));
        }
        found.fragments.retain(|_, drives| !drives.is_empty());
        match self.find_among(name, found.clone(), None).await {
            Ok(object) => Ok(Some((Rc::new(object), found))),
            Err(BackendError::NotFound { .. } | BackendError::Incomplete { is_silent: false, .. })
                if found.silent.is_empty() =>
            {
                // There is nothing that could be mended. A put that goes on compares what it finds under its names.
                self.upkeep.is_cleared(name);
                Ok(None)
            }
            Err(BackendError::NotFound { .. } | BackendError::Incomplete { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the object is, if all its fragments are of one put as far as their names tell, from the header of one.
    async fn learn_from(&self, name: &ObjectName, seen: &[Seen]) -> Option<Object> {
        let first = seen.iter().find(|seen| seen.place.chunk == 0)?;
        if seen.iter().any(|other| other.place.layout != first.place.layout) {
            return None;
        }
        // Copies are alike.
        let mut bytes = BTreeMap::new();
        if seen.iter().any(|seen| *bytes.entry(seen.place).or_insert(seen.bytes) != seen.bytes) {
            self.is_suspicious(name);
            return None;
        }
        let bytes = self.read_from(first.drive, name, first.place, 0, HEADER_BYTES as u64).await.ok()?;
        let header = self.check_first(name, 0, first.place.number, &bytes).ok()?;
        (encode::layout(&header) == first.place.layout).then(|| Object::new(name, header))
    }

    /// How an object lies there.
    fn condition(&self, object: &Object, found: &Found) -> Condition {
        let geometry = object.geometry();
        let (mut safety, mut needed_on) = (u32::MAX, BTreeSet::new());
        let (mut is_to_mend, mut is_made_again) = (false, true);
        for chunk in 0..geometry.chunks() {
            let stored = u32::from(geometry.data_stored(chunk));
            let there = fragments_of(object, chunk, found);
            let own = placement::on_drives_of_their_own(&pairs(&there)) as u32;
            if (there.len() as u32) < stored {
                return Condition::Unreadable { is_lost: found.silent.is_empty() };
            }
            // Two fragments on a drive are lost with it.
            let spare = own.saturating_sub(stored);
            safety = safety.min(spare);
            let plan =
                self.plan_of(object, chunk, &there, (&BTreeSet::new(), &BTreeSet::new()), &found.silent);
            is_to_mend |= !plan.is_done();
            is_made_again &= plan.missing == 0 && spare >= self.spare_of(geometry);
            needed_on.extend(plan.needed_on);
        }
        let is_as_aimed = self.aim().is_none_or(|aim| aim.has_form_of(geometry));
        is_to_mend |= found.silent.is_empty() && !is_as_aimed;
        Condition::There { safety, is_to_mend, is_made_again, needed_on }
    }

    /// What has to happen with a chunk of an object, where these fragments of it are good, and others bad; nothing more of it is put on
    /// drives where its place is taken.
    pub(super) fn plan_of(
        &self,
        object: &Object,
        chunk: u32,
        found: &BTreeMap<u8, Vec<usize>>,
        (bad, taken): (&BTreeSet<(u8, usize)>, &BTreeSet<usize>),
        silent: &BTreeSet<usize>,
    ) -> Plan {
        let (drives, homes) = self.homes(object, chunk);
        let order = placement::order(&drives, &object.name, chunk);
        let homes: Vec<(u8, Home)> = numbers(object, chunk)
            .filter_map(|number| Some((number, *homes.get(place_of(object, chunk, number))?)))
            .collect();
        let geometry = object.geometry();
        let per_node = self.policy_of(geometry.data, geometry.parity).per_node;
        let full = self.upkeep.full.borrow();
        let may = |index: usize| !self.is_suspect(index) && !full.contains(&index) && !taken.contains(&index);
        plan::plan(
            &Chunk { drives: &drives, order: &order, homes: &homes, per_node, found, bad, silent },
            may,
        )
    }
}

impl Share {
    fn add(&mut self, other: Share) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// The numbers of a chunk's fragments.
pub(super) fn numbers(object: &Object, chunk: u32) -> impl Iterator<Item = u8> + use<> {
    let geometry = *object.geometry();
    (0..geometry.data_stored(chunk)).chain(geometry.data..geometry.data + geometry.parity)
}

/// Which drives have which fragments of a chunk.
pub(super) fn fragments_of(object: &Object, chunk: u32, found: &Found) -> BTreeMap<u8, Vec<usize>> {
    let there = numbers(object, chunk)
        .filter_map(|number| Some((number, found.fragments.get(&object.place(chunk, number))?.clone())));
    there.collect()
}

/// The same, one by one.
pub(super) fn pairs(found: &BTreeMap<u8, Vec<usize>>) -> Vec<(u8, usize)> {
    found.iter().flat_map(|(number, drives)| drives.iter().map(|drive| (*number, *drive))).collect()
}
