//! What has to happen so that a chunk's fragments lie as they should: one each on a drive that takes fragments, at most so many on a
//! node. Arithmetic: nothing is asked here.

use super::drives::Drives;
use super::placement::Home;
use ovs_units::planted;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A chunk as it was found.
pub(super) struct Chunk<'a> {
    pub(super) drives: &'a Drives,
    /// Drives in the order in which this chunk asks for them.
    pub(super) order: &'a [usize],
    /// The numbers of its fragments, and where each belongs.
    pub(super) homes: &'a [(u8, Home)],
    /// Fragments on one node, at most.
    pub(super) per_node: u32,
    /// Which drives have which, as far as they are good.
    pub(super) found: &'a BTreeMap<u8, Vec<usize>>,
    /// Which drives have something else, or something damaged, under their names.
    pub(super) bad: &'a BTreeSet<(u8, usize)>,
    /// Drives that did not answer: they may have what is missing.
    pub(super) silent: &'a BTreeSet<usize>,
}

/// What has to happen with a chunk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Fragments and the drives that they are to be put on.
    pub(super) makes: Vec<(u8, usize)>,
    /// What is not needed any more once all these are there.
    pub(super) extra: Vec<(u8, usize)>,
    /// Of the fragments to be put so many are nowhere.
    pub(super) missing: usize,
    /// Drives that are about to leave and have what no other has.
    pub(super) needed_on: BTreeSet<usize>,
}

impl Plan {
    /// Everything lies as it should, or cannot lie better.
    pub(super) fn is_done(&self) -> bool {
        self.makes.is_empty() && self.extra.is_empty()
    }
}

/// Where fragments will lie.
struct Places<'a> {
    chunk: &'a Chunk<'a>,
    of: BTreeMap<u8, usize>,
    taken: BTreeSet<usize>,
    per_node: HashMap<&'a str, u32>,
}

impl Places<'_> {
    fn is_free(&self, drive: usize) -> bool {
        let it = &self.chunk.drives[drive];
        let on_node = self.per_node.get(it.node.as_str()).copied().unwrap_or(0);
        it.duty.takes() && !self.taken.contains(&drive) && on_node < self.chunk.per_node
    }

    fn set(&mut self, number: u8, drive: usize) {
        if let Some(before) = self.of.insert(number, drive) {
            self.release(before);
        }
        self.taken.insert(drive);
        *self.per_node.entry(self.chunk.drives[drive].node.as_str()).or_default() += 1;
    }

    fn release(&mut self, drive: usize) {
        self.taken.remove(&drive);
        if let Some(count) = self.per_node.get_mut(self.chunk.drives[drive].node.as_str()) {
            *count -= 1;
        }
    }
}

/// `may` says which drives can be put on now.
pub(super) fn plan(chunk: &Chunk<'_>, may: impl Fn(usize) -> bool) -> Plan {
    let mut places = Places { chunk, of: BTreeMap::new(), taken: BTreeSet::new(), per_node: HashMap::new() };
    let copies = |number: u8| chunk.found.get(&number).map_or(&[][..], Vec::as_slice);
    let ideal: BTreeSet<usize> = chunk.homes.iter().filter_map(|(_, home)| home.now).collect();
    // What lies well stays: first of which there are the fewest, where it belongs if it is there.
    let mut by_copies: Vec<&(u8, Home)> = chunk.homes.iter().collect();
    by_copies.sort_by_key(|(number, _)| copies(*number).len());
    for (number, home) in &by_copies {
        let free = copies(*number).iter().copied().filter(|drive| places.is_free(*drive));
        if let Some(drive) = free.min_by_key(|drive| (home.now != Some(*drive), !ideal.contains(drive))) {
            places.set(*number, drive);
        }
    }
    // What does not lie well keeps its drive until it has moved.
    let unwell = chunk.homes.iter().filter(|(number, _)| !places.of.contains_key(number));
    let occupied: BTreeSet<usize> = unwell.flat_map(|(number, _)| copies(*number)).copied().collect();
    let may = |drive: usize| may(drive) && !occupied.contains(&drive);
    let mut plan = Plan::default();
    // Of what is nowhere, so much may be on silent drives; rather what belongs there.
    let is_nowhere = |number: u8| copies(number).is_empty();
    let mut nowhere: Vec<&(u8, Home)> =
        chunk.homes.iter().filter(|(number, _)| is_nowhere(*number)).collect();
    nowhere
        .sort_by_key(|(_, home)| home.places(chunk.drives).iter().any(|drive| chunk.silent.contains(drive)));
    if !planted("drives: what a silent one may have is made again") {
        nowhere.truncate(nowhere.len().saturating_sub(chunk.silent.len()));
    }
    let nowhere: BTreeSet<u8> = nowhere.into_iter().map(|(number, _)| *number).collect();
    for (number, home) in chunk.homes {
        if places.of.contains_key(number) || (is_nowhere(*number) && !nowhere.contains(number)) {
            continue;
        }
        let mut targets = home.now.into_iter().chain(chunk.order.iter().copied());
        // If there is none, it is left where it is, if anywhere.
        if let Some(drive) = targets.find(|drive| places.is_free(*drive) && may(*drive)) {
            places.set(*number, drive);
            plan.makes.push((*number, drive));
            plan.missing += usize::from(is_nowhere(*number));
        }
    }
    if plan.makes.is_empty() && chunk.silent.is_empty() {
        rebalance(&ideal, &mut places, &mut plan, may);
    }
    for (number, _) in chunk.homes {
        // A copy that is about to leave is needed until there is one where it will stay.
        if places.of.get(number).is_none_or(|place| !copies(*number).contains(place)) {
            let leaving = copies(*number).iter().filter(|drive| !chunk.drives[**drive].duty.takes());
            plan.needed_on.extend(leaving);
        }
        let Some(place) = places.of.get(number) else { continue };
        // What is on a drive that leaves goes with it.
        let others =
            copies(*number).iter().filter(|drive| *drive != place && chunk.drives[**drive].duty.takes());
        plan.extra.extend(others.map(|drive| (*number, *drive)));
        let bad = chunk.bad.iter().filter(|(of, drive)| of == number && drive != place);
        plan.extra.extend(bad);
    }
    let is_left = |number: &u8| !copies(*number).is_empty() && !places.of.contains_key(number);
    let has_unwell = chunk.homes.iter().any(|(number, _)| is_left(number));
    if (has_unwell || !plan.makes.is_empty()) && !planted("drives: what leaves is not needed while it moves")
    {
        // Until all are where they stay, whatever is there counts.
        let all = chunk.found.values().flatten().copied();
        plan.needed_on.extend(all.filter(|drive| !chunk.drives[*drive].duty.takes()));
    }
    // What lies badly may need the place that something else has twice.
    if has_unwell || !chunk.silent.is_empty() {
        plan.extra.clear();
    }
    plan
}

/// Fragments that are on drives where the chunk would have none, to those where it would: which number is on which does not matter.
fn rebalance(ideal: &BTreeSet<usize>, places: &mut Places<'_>, plan: &mut Plan, may: impl Fn(usize) -> bool) {
    let elsewhere: Vec<(u8, usize)> = places.of.iter().map(|(number, drive)| (*number, *drive)).collect();
    for (number, from) in elsewhere.into_iter().filter(|(_, from)| !ideal.contains(from)) {
        places.release(from);
        match ideal.iter().copied().find(|to| places.is_free(*to) && may(*to)) {
            Some(to) => {
                places.of.remove(&number);
                places.set(number, to);
                plan.makes.push((number, to));
            }
            None => {
                places.of.remove(&number);
                places.set(number, from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::drives::{Drive, Duty};
    use super::super::{Policy, placement};
    use super::*;
    use crate::ObjectName;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn drives(duties: &[Duty], per_node: usize) -> Drives {
        let drive = |(number, duty): (usize, &Duty)| {
            let node = (number / per_node).to_string();
            Drive::departed(Uuid::from_u128(number as u128 + 1), node, String::new(), 1, *duty)
        };
        Drives::new(duties.iter().enumerate().map(drive).collect())
    }

    fn duty() -> impl Strategy<Value = Duty> {
        prop_oneof![4 => Just(Duty::Serving), 1 => Just(Duty::Leaving), 1 => Just(Duty::Lost), 1 => Just(Duty::Gone)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever was found, the plan's end is better in no respect worse: every number that was anywhere still is, no two on one
        /// drive that were not, at most x on a node; and there is nothing more to do then.
        #[test]
        fn a_plan_comes_to_an_end_and_loses_nothing(
            duties in prop::collection::vec(duty(), 1..10),
            on_node in 1..4usize,
            (k, m, x) in (1..5u8, 0..4u8, 1..4u32),
            seed in 0..50u32,
            found in prop::collection::vec((0..8u8, 0..10usize), 0..16),
            silent in prop::collection::btree_set(0..10usize, 0..2),
            bad in prop::collection::btree_set((0..8u8, 0..10usize), 0..3),
        ) {
            let drives = drives(&duties, on_node);
            let name = ObjectName::new(format!("v/s/{seed}")).expect("a good name");
            let policy = Policy::new(k, m, k, x).expect("a policy");
            let count = policy.fragments();
            let (homes, _) = placement::homes(&drives, &name, 0, policy, count as usize);
            let homes: Vec<(u8, Home)> = (0..).zip(homes).collect();
            let order = placement::order(&drives, &name, 0);
            let silent: BTreeSet<usize> =
                silent.into_iter().filter(|drive| duties.get(*drive).is_some_and(|duty| duty.is_asked())).collect();
            let is_there = |(number, drive): &(u8, usize)| {
                u32::from(*number) < count
                    && duties.get(*drive).is_some_and(|duty| duty.is_asked())
                    && !silent.contains(drive)
            };
            let mut now: BTreeSet<(u8, usize)> = found.into_iter().filter(is_there).collect();
            let mut bad: BTreeSet<(u8, usize)> =
                bad.into_iter().filter(|pair| is_there(pair) && !now.contains(pair)).collect();
            let numbers = |pairs: &BTreeSet<(u8, usize)>| pairs.iter().map(|(number, _)| *number).collect::<BTreeSet<_>>();
            let own = |pairs: &BTreeSet<(u8, usize)>| {
                placement::on_drives_of_their_own(&pairs.iter().copied().collect::<Vec<_>>())
            };
            for round in 0.. {
                let mut found: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
                now.iter().for_each(|(number, drive)| found.entry(*number).or_default().push(*drive));
                let chunk = Chunk {
                    drives: &drives, order: &order, homes: &homes, per_node: x, found: &found, bad: &bad, silent: &silent,
                };
                let plan = plan(&chunk, |drive| !silent.contains(&drive));
                // A drive that is about to leave may go at any time if nothing is needed on it.
                let is_kept = |(_, drive): &(u8, usize)| duties[*drive] != Duty::Leaving || plan.needed_on.contains(drive);
                let kept: BTreeSet<(u8, usize)> = now.iter().copied().filter(is_kept).collect();
                prop_assert_eq!(numbers(&kept), numbers(&now));
                prop_assert!(own(&kept) >= own(&now), "{plan:?} lets go: {now:?}");
                if plan.is_done() {
                    break;
                }
                prop_assert!(round < 3, "it does not come to an end: {plan:?} of {now:?}");
                let (before, missing) = (now.clone(), count as usize - numbers(&now).len());
                prop_assert!(plan.missing <= missing.saturating_sub(silent.len()));
                for (_, drive) in &plan.makes {
                    prop_assert!(duties[*drive] == Duty::Serving && !silent.contains(drive));
                }
                bad.retain(|pair| !plan.makes.contains(pair) && !plan.extra.contains(pair));
                now.extend(plan.makes);
                plan.extra.iter().for_each(|pair| {
                    now.remove(pair);
                });
                prop_assert!(numbers(&now).is_superset(&numbers(&before)));
                prop_assert!(own(&now) >= own(&before), "{before:?} became {now:?}");
            }
            if !silent.is_empty() {
                return Ok(());
            }
            // As many as these drives have room for.
            let room = placement::room(&drives, |index| duties[index] == Duty::Serving, policy) as usize;
            let serving: BTreeSet<(u8, usize)> =
                now.iter().copied().filter(|(_, drive)| duties[*drive] == Duty::Serving).collect();
            prop_assert!(own(&serving) >= room, "{now:?} where there is room for {room}");
        }
    }

    /// Until what is crowded has another place, what leaves counts.
    #[test]
    fn what_leaves_is_needed_while_anything_is_still_to_be_put() {
        let mut duties = [Duty::Serving; 8];
        duties[7] = Duty::Leaving;
        let drives = drives(&duties, 1);
        let policy = Policy::new(3, 3, 3, 1).expect("a policy");
        for seed in 0..50 {
            let name = ObjectName::new(format!("v/s/{seed}")).expect("a good name");
            let homes: Vec<(u8, Home)> =
                (0..).zip(placement::homes(&drives, &name, 0, policy, 6).0).collect();
            let order = placement::order(&drives, &name, 0);
            let found: BTreeMap<u8, Vec<usize>> = [(0, vec![0]), (4, vec![2, 7]), (5, vec![0, 2])].into();
            let (bad, silent) = Default::default();
            let chunk = Chunk {
                drives: &drives,
                order: &order,
                homes: &homes,
                per_node: 1,
                found: &found,
                bad: &bad,
                silent: &silent,
            };
            let plan = plan(&chunk, |_| true);
            assert!(!plan.makes.is_empty() && plan.needed_on.contains(&7), "{plan:?}");
        }
    }

    #[test]
    fn what_lies_well_is_left_and_a_loss_moves_nothing_else() {
        let all_serving = drives(&[Duty::Serving; 8], 1);
        let policy = Policy::new(4, 2, 5, 1).expect("a policy");
        for seed in 0..50 {
            let name = ObjectName::new(format!("v/s/{seed}")).expect("a good name");
            let homes_of = |drives: &Drives| {
                let homes = placement::homes(drives, &name, 0, policy, 6).0;
                (0..).zip(homes).collect::<Vec<(u8, Home)>>()
            };
            let homes = homes_of(&all_serving);
            let order = placement::order(&all_serving, &name, 0);
            let lost = homes[2].1.now.expect("eight drives for six");
            let found = |without: Option<usize>| -> BTreeMap<u8, Vec<usize>> {
                let there = homes.iter().filter(|(_, home)| home.now != without);
                there.map(|(number, home)| (*number, home.now.into_iter().collect())).collect()
            };
            let plan_of = |drives: &Drives, found: &BTreeMap<u8, Vec<usize>>| {
                let homes = homes_of(drives);
                let (bad, silent) = Default::default();
                plan(
                    &Chunk {
                        drives,
                        order: &order,
                        homes: &homes,
                        per_node: 1,
                        found,
                        bad: &bad,
                        silent: &silent,
                    },
                    |_| true,
                )
            };
            assert_eq!(plan_of(&all_serving, &found(None)), Plan::default());
            for duty in [Duty::Lost, Duty::Gone, Duty::Leaving] {
                let mut all = all_serving.to_vec();
                all[lost].duty = duty;
                let after = Drives::new(all);
                let is_there = duty == Duty::Leaving;
                let plan = plan_of(&after, &found(Some(lost).filter(|_| !is_there)));
                assert_eq!(plan.makes.len(), 1, "{plan:?}");
                assert_eq!((plan.makes[0].0, plan.missing), (2, usize::from(!is_there)));
                // Where a reader looks for it by itself.
                assert_eq!(Some(plan.makes[0].1), homes_of(&after)[2].1.now);
                assert_eq!(plan.needed_on, BTreeSet::from_iter(is_there.then_some(lost)));
                assert_eq!(plan.extra, []);
            }
        }
    }

    #[test]
    fn a_new_drive_takes_its_share_and_moves_nothing_between_others() {
        let policy = Policy::new(3, 1, 4, 1).expect("a policy");
        let (before, after) = (drives(&[Duty::Serving; 6], 1), drives(&[Duty::Serving; 7], 1));
        let mut moved = 0;
        for seed in 0..700 {
            let name = ObjectName::new(format!("v/s/{seed}")).expect("a good name");
            let homes = placement::homes(&before, &name, 0, policy, 4).0;
            let found: BTreeMap<u8, Vec<usize>> =
                (0..).zip(homes).map(|(number, home)| (number, home.now.into_iter().collect())).collect();
            let homes: Vec<(u8, Home)> = (0..).zip(placement::homes(&after, &name, 0, policy, 4).0).collect();
            let order = placement::order(&after, &name, 0);
            let (bad, silent) = Default::default();
            let chunk = Chunk {
                drives: &after,
                order: &order,
                homes: &homes,
                per_node: 1,
                found: &found,
                bad: &bad,
                silent: &silent,
            };
            let plan = plan(&chunk, |_| true);
            assert!(plan.makes.len() <= 1 && plan.makes.iter().all(|(_, to)| *to == 6), "{plan:?}");
            assert_eq!(plan.extra.len(), plan.makes.len());
            moved += plan.makes.len();
        }
        // Four of seven.
        assert!((340..460).contains(&moved), "{moved} of 700");
    }
}
