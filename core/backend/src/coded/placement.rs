//! Which drive gets which fragment: rendezvous hashing, at most so many of a chunk per node.
//!
//! Every drive has a rank for every chunk that depends on nothing else, so that a new drive takes fragments from all others and
//! moves none between them.

use super::drives::Drives;
use super::{Drive, Policy};
use crate::ObjectName;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The drives in the order in which a chunk of an object asks for them.
pub(super) fn order(drives: &[Drive], name: &ObjectName, chunk: u32) -> Vec<usize> {
    let rank = |index: usize| {
        let drive = &drives[index];
        let mut hasher = blake3::Hasher::new();
        hasher.update(drive.id.as_bytes());
        hasher.update(&chunk.to_le_bytes());
        hasher.update(name.as_str().as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        // Uniform in (0, 1): the highest of weight / -ln(u) comes first, so that shares are as weights are.
        let uniform = (((u64::from_le_bytes(first) >> 11) as f64) + 0.5) / (1u64 << 53) as f64;
        f64::from(drive.weight.max(1)) / -uniform.ln()
    };
    let mut ranked: Vec<(f64, usize)> = (0..drives.len()).map(|index| (rank(index), index)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| drives[a.1].id.cmp(&drives[b.1].id)));
    ranked.into_iter().map(|(_, index)| index).collect()
}

/// Takes drives one by one, in their order, and keeps to what a policy allows per node.
pub(super) struct Choice<'a> {
    drives: &'a [Drive],
    per_node: u32,
    /// Not taken yet, the next one last.
    left: Vec<usize>,
    taken: HashMap<&'a str, u32>,
}

impl<'a> Choice<'a> {
    pub(super) fn new(drives: &'a [Drive], order: &[usize], policy: Policy) -> Choice<'a> {
        let left = order.iter().rev().copied().collect();
        Choice { drives, per_node: policy.per_node, left, taken: HashMap::new() }
    }

    /// The next drive that may take a fragment.
    pub(super) fn next(&mut self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let is_free = |index: &usize| {
            let node = self.drives[*index].node.as_str();
            self.taken.get(node).is_none_or(|taken| *taken < self.per_node) && may(*index)
        };
        let at = self.left.iter().rposition(is_free)?;
        let index = self.left.remove(at);
        *self.taken.entry(self.drives[index].node.as_str()).or_default() += 1;
        Some(index)
    }

    /// The next drive that may take a fragment in place of one that did not: that one's node has room for another, unless there
    /// is none.
    pub(super) fn instead_of(&mut self, index: usize, may: impl Fn(usize) -> bool) -> Option<usize> {
        let node = self.drives[index].node.as_str();
        let change = |taken: &mut HashMap<&str, u32>, by: i32| {
            if let Some(count) = taken.get_mut(node) {
                *count = count.saturating_add_signed(by);
            }
        };
        change(&mut self.taken, -1);
        let next = self.next(may);
        if next.is_none() {
            change(&mut self.taken, 1);
        }
        next
    }
}

/// Where a fragment belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Home {
    /// By the order of all drives that ever were.
    first: Option<usize>,
    /// That one, or where that takes nothing any more, the next.
    pub(super) now: Option<usize>,
}

impl Home {
    /// Where to look for it, one after the other: what was put before a drive began to leave is still there.
    pub(super) fn places(self, drives: &Drives) -> Vec<usize> {
        let first = self.first.filter(|first| self.now != Some(*first) && drives[*first].duty.is_asked());
        first.into_iter().chain(self.now).collect()
    }
}

/// Where the fragments of a chunk belong, by their place among those that are stored; and what is left to choose from.
pub(super) fn homes<'a>(
    drives: &'a Drives,
    name: &ObjectName,
    chunk: u32,
    policy: Policy,
    count: usize,
) -> (Vec<Home>, Choice<'a>) {
    let mut choice = Choice::new(drives, &order(drives, name, chunk), policy);
    let first: Vec<Option<usize>> = (0..count).map(|_| choice.next(|_| true)).collect();
    let takes = |index: usize| drives[index].duty.takes();
    let home = |first: Option<usize>| {
        let now = first.and_then(|index| if takes(index) { first } else { choice.instead_of(index, takes) });
        Home { first, now }
    };
    let homes = first.into_iter().map(home).collect();
    (homes, choice)
}

/// Fragments of one chunk that the policy could store on these drives.
pub(super) fn room(drives: &[Drive], may: impl Fn(usize) -> bool, policy: Policy) -> u32 {
    let mut per_node: HashMap<&str, u32> = HashMap::new();
    for (_, drive) in drives.iter().enumerate().filter(|(index, _)| may(*index)) {
        *per_node.entry(&drive.node).or_default() += 1;
    }
    let places: u32 = per_node.values().map(|drives| (*drives).min(policy.per_node)).sum();
    places.min(policy.fragments())
}

/// The first policy of which enough fragments could be stored to acknowledge a put, with what it has room for.
pub(super) fn choose(policies: &[Policy], drives: &[Drive], may: impl Fn(usize) -> bool) -> Option<Policy> {
    policies.iter().copied().find(|policy| room(drives, &may, *policy) >= policy.acknowledged.into())
}

/// Of fragments and the drives that they are on, so many as can have a drive of their own each: a drive that is lost costs one of
/// these.
pub(super) fn on_drives_of_their_own(found: &[(u8, usize)]) -> usize {
    let mut holders = BTreeMap::new();
    let numbers: BTreeSet<u8> = found.iter().map(|(number, _)| *number).collect();
    numbers
        .into_iter()
        .filter(|number| gets_drive(*number, found, &mut holders, &mut BTreeSet::new()))
        .count()
}

/// Whoever holds one that this fragment is on makes room if it is on another.
fn gets_drive(
    number: u8,
    found: &[(u8, usize)],
    holders: &mut BTreeMap<usize, u8>,
    asked: &mut BTreeSet<usize>,
) -> bool {
    for (_, drive) in found.iter().filter(|(of, _)| *of == number) {
        if !asked.insert(*drive) {
            continue;
        }
        let holder = holders.get(drive).copied();
        if holder.is_none_or(|holder| gets_drive(holder, found, holders, asked)) {
            holders.insert(*drive, number);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::Duty;
    use super::*;
    use crate::MemoryBackend;
    use std::rc::Rc;
    use uuid::Uuid;

    fn drive(number: u128, node: &str, weight: u32) -> Drive {
        let backend = Rc::new(MemoryBackend::new());
        Drive {
            id: Uuid::from_u128(number),
            node: node.to_owned(),
            site: String::new(),
            weight,
            backend,
            duty: Duty::Serving,
        }
    }

    fn name(number: usize) -> ObjectName {
        ObjectName::new(format!("v/s/{number:016x}")).expect("a name")
    }

    #[test]
    fn a_new_drive_takes_its_share_and_moves_nothing_else() {
        let drives: Vec<Drive> = (0..8).map(|number| drive(number, "n", 1)).collect();
        let mut taken = 0;
        for number in 0..2000 {
            let before = order(&drives[..7], &name(number), 0);
            let after = order(&drives, &name(number), 0);
            let rest: Vec<usize> = after.iter().copied().filter(|index| *index != 7).collect();
            assert_eq!(before, rest);
            taken += usize::from(after[0] == 7);
        }
        assert!((200..300).contains(&taken), "{taken} of 2000 first places for one of eight");
    }

    #[test]
    fn shares_are_as_weights_are() {
        let drives = [drive(1, "a", 1), drive(2, "b", 3)];
        let first = (0..4000).filter(|number| order(&drives, &name(*number), 3)[0] == 1).count();
        assert!((2850..3150).contains(&first), "{first} of 4000 for a weight of 3 beside 1");
    }

    #[test]
    fn no_node_gets_more_than_it_may() {
        let drives: Vec<Drive> =
            (0..9).map(|number| drive(number, ["a", "b", "c"][number as usize % 3], 1)).collect();
        let policy = Policy::new(4, 2, 5, 2).expect("a policy");
        assert_eq!(room(&drives, |_| true, policy), 6);
        assert_eq!(room(&drives[..5], |_| true, policy), 5);
        for number in 0..200 {
            let order = order(&drives, &name(number), 1);
            let mut choice = Choice::new(&drives, &order, policy);
            let taken: Vec<usize> = std::iter::from_fn(|| choice.next(|_| true)).collect();
            assert_eq!(taken.len(), 6);
            for node in 0..3 {
                assert_eq!(taken.iter().filter(|index| **index % 3 == node).count(), 2);
            }
            assert_eq!(choice.instead_of(taken[0], |_| false), None);
            let spare = choice.instead_of(taken[0], |_| true).expect("the node has a third drive");
            assert_eq!(spare % 3, taken[0] % 3);
            assert_eq!(choice.next(|_| true), None);
            assert_eq!(choice.instead_of(spare, |_| true), None);
        }
    }

    #[test]
    fn fragments_count_as_far_as_each_has_a_drive_of_its_own() {
        for (found, expected) in [
            (&[][..], 0),
            (&[(0, 1), (1, 2), (2, 3)], 3),
            (&[(0, 1), (1, 1), (2, 1)], 1),
            (&[(0, 1), (0, 2), (0, 3)], 1),
            (&[(0, 1), (1, 1), (2, 1), (2, 2), (2, 3)], 2),
            (&[(0, 1), (0, 2), (1, 1)], 2),
            (&[(0, 1), (0, 2), (1, 1), (1, 3), (2, 1)], 3),
        ] {
            assert_eq!(on_drives_of_their_own(found), expected, "{found:?}");
        }
    }

    #[test]
    fn the_first_policy_that_live_drives_satisfy() {
        let drives: Vec<Drive> = (0..6).map(|number| drive(number, &number.to_string(), 1)).collect();
        let policies =
            [(4, 2, 5, 1), (2, 2, 3, 1)].map(|(k, m, c, x)| Policy::new(k, m, c, x).expect("a policy"));
        let chosen = |live: usize| choose(&policies, &drives, |index| index < live).map(|policy| policy.data);
        assert_eq!([6, 5, 4, 3, 2].map(chosen), [Some(4), Some(4), Some(2), Some(2), None]);
    }
}
