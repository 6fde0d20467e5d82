//! What a composite comes to: how many fragments find a place, what can be lost, what there is room for. Arithmetic alone.

use super::stores::Place;
use ovs_api::{BackendPlan, Policy, PolicyPlan};
use ovs_units::format_size;
use std::collections::{BTreeMap, BTreeSet};

/// A drive, as far as this goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedDrive {
    /// Where it is; drives of which nobody said it are all in one site.
    pub(super) place: Place,
    /// Its room, where there is such a notion.
    pub(super) bytes: Option<u64>,
    /// What it is made of in the end has so much.
    pub(super) raw_bytes: Option<u64>,
}

/// What these policies come to over these drives, all of which work.
pub(super) fn plan(drives: &[PlannedDrive], policies: &[Policy]) -> BackendPlan {
    let nodes = by_node(drives);
    let sites: BTreeSet<&String> = drives.iter().flat_map(|drive| &drive.place.sites).collect();
    let of_policies: Vec<PolicyPlan> = policies.iter().map(|policy| plan_policy(drives, *policy)).collect();
    let used = of_policies.iter().find(|of| of.is_satisfied);
    let raw_bytes = drives
        .iter()
        .map(|drive| drive.raw_bytes)
        .try_fold(0u64, |sum, bytes| bytes.map(|bytes| sum.saturating_add(bytes)));
    // With more drives away nobody knows what is not there: an object of few bytes may be on these alone.
    let unheard_max =
        policies.iter().map(|policy| u32::from(policy.c.saturating_sub(policy.k))).min().unwrap_or(0);
    let groups = groups(drives, |place| &place.nodes);
    let nodes_away_max = (0..=count(groups.len()))
        .take_while(|away| {
            let gone = |fragments: bool, policy: Policy| {
                let of_group = |group: &Vec<PlannedDrive>| {
                    if fragments { places(group, policy) } else { count(group.len()) }
                };
                largest(groups.iter().map(of_group).collect(), *away)
            };
            policies.iter().any(|policy| {
                gone(false, *policy) <= unheard_max
                    && places(drives, *policy).saturating_sub(gone(true, *policy)) >= policy.c.into()
            })
        })
        .last()
        .unwrap_or(0);
    let takes_puts =
        |away: u32| policies.iter().any(|policy| places_left(&nodes, *policy, away) >= policy.c.into());
    BackendPlan {
        drive_count: count(drives.len()),
        node_count: count(nodes.len()),
        site_count: count(sites.len()),
        policy: used.map(|of| of.policy),
        raw_bytes,
        usable_bytes: used
            .filter(|_| drives.iter().all(|drive| drive.bytes.is_some()))
            .map(|of| usable_bytes(&nodes, of.policy, of.fragment_count)),
        drives_away_max: (0..=unheard_max).take_while(|away| takes_puts(*away)).last().unwrap_or(0),
        nodes_away_max,
        policies: of_policies,
        remarks: Vec::new(),
    }
}

/// Why no put could be acknowledged under a policy, and what to do.
pub(super) fn why_unsatisfied(plan: &BackendPlan, of: &PolicyPlan) -> String {
    let (policy, nodes) = (of.policy, plan.node_count);
    format!(
        "policy {policy} needs places for {} fragments, and {} drives on {nodes} {} have {}: add drives, say with --node which \
         of them are lost together, or allow more on one node (x)",
        policy.c,
        plan.drive_count,
        if nodes == 1 { "node" } else { "nodes" },
        of.fragment_count,
    )
}

/// Why what is stored does not find room on the drives of a plan, if so: all of it within what they can use, and what moves within
/// what is free on them.
pub(super) fn shortage(
    stored_bytes: u64,
    moving_bytes: u64,
    free_bytes: Option<u64>,
    plan: &BackendPlan,
) -> Option<String> {
    let used = plan.policies.iter().find(|of| of.is_satisfied)?;
    let room = plan.usable_bytes.map(|usable| {
        (u128::from(usable) * u128::from(used.stored_percent) / 100).min(u128::from(u64::MAX)) as u64
    });
    match (room, free_bytes) {
        (Some(room), _) if stored_bytes > room => Some(format!(
            "{} of fragments are stored, and the others can use {} under policy {}",
            format_size(stored_bytes),
            format_size(room),
            used.policy
        )),
        (_, Some(free)) if moving_bytes > free => Some(format!(
            "about {} of fragments are on it, and {} are free on the others",
            format_size(moving_bytes),
            format_size(free)
        )),
        _ => None,
    }
}

fn plan_policy(drives: &[PlannedDrive], policy: Policy) -> PolicyPlan {
    let wanted = u32::from(policy.k) + u32::from(policy.m);
    let fragment_count = places(drives, policy).min(wanted);
    let is_satisfied = fragment_count >= policy.c.into();
    let spare = if is_satisfied { fragment_count.saturating_sub(policy.k.into()) } else { 0 };
    let lost_with = |of: fn(&Place) -> &BTreeSet<String>| {
        losses(groups(drives, of).iter().map(|group| places(group, policy)).collect(), spare)
    };
    PolicyPlan {
        policy,
        is_satisfied,
        fragment_count,
        stored_percent: if is_satisfied { fragment_count * 100 / u32::from(policy.k.max(1)) } else { 0 },
        drives_lost_max: spare,
        drives_lost_at_once_max: if is_satisfied { policy.c.saturating_sub(policy.k).into() } else { 0 },
        nodes_lost_max: lost_with(|place| &place.nodes),
        sites_lost_max: lost_with(|place| &place.sites),
    }
}

/// The drives that are lost together. A composite that spans several groups is taken for lost with each: what of it lives on is
/// its own plan's affair.
fn groups(drives: &[PlannedDrive], of: fn(&Place) -> &BTreeSet<String>) -> Vec<Vec<PlannedDrive>> {
    let all: BTreeSet<&String> = drives.iter().flat_map(|drive| of(&drive.place)).collect();
    let group =
        |name: &String| drives.iter().filter(|drive| of(&drive.place).contains(name)).cloned().collect();
    all.into_iter().map(group).collect()
}

/// The largest of them together, so many.
fn largest(mut of_groups: Vec<u32>, number: u32) -> u32 {
    of_groups.sort_unstable_by(|one, other| other.cmp(one));
    of_groups.into_iter().take(number as usize).sum()
}

/// How many fragments of a chunk find a place, at least, when so many drives are away, whichever they are.
fn places_left(nodes: &BTreeMap<&str, Vec<&PlannedDrive>>, policy: Policy, away: u32) -> u32 {
    let x = u32::from(policy.x);
    let counts = nodes.values().map(|drives| count(drives.len()));
    // A node with more drives than it may use loses no place by the first of them.
    let (tight, loose): (Vec<u32>, Vec<u32>) = counts.partition(|drives| *drives <= x);
    let places = tight.iter().sum::<u32>() + count(loose.len()) * x;
    let of_tight = away.min(tight.iter().sum());
    let surplus = loose.iter().map(|drives| drives - x).min().unwrap_or(u32::MAX);
    places.saturating_sub(of_tight + (away - of_tight).saturating_sub(surplus))
}

/// How many fragments of a chunk find a place.
fn places(drives: &[PlannedDrive], policy: Policy) -> u32 {
    by_node(drives).values().map(|drives| count(drives.len()).min(policy.x.into())).sum()
}

/// How many groups may go, the largest first, until more fragments than can be spared are gone.
fn losses(mut of_groups: Vec<u32>, spare: u32) -> u32 {
    of_groups.sort_unstable_by(|one, other| other.cmp(one));
    let mut gone = 0;
    count(
        of_groups
            .into_iter()
            .take_while(|fragments| {
                gone += fragments;
                gone <= spare
            })
            .count(),
    )
}

/// Chunks take a fragment's worth from so many different drives: the largest fragments' worth for which there are enough.
fn usable_bytes(nodes: &BTreeMap<&str, Vec<&PlannedDrive>>, policy: Policy, fragments: u32) -> u64 {
    let has_room = |each: u64| {
        let on_drive = |drive: &&PlannedDrive| u128::from(drive.bytes.unwrap_or(0).min(each));
        let on_node = |drives: &Vec<&PlannedDrive>| {
            drives.iter().map(on_drive).sum::<u128>().min(u128::from(policy.x) * u128::from(each))
        };
        nodes.values().map(on_node).sum::<u128>() >= u128::from(fragments) * u128::from(each)
    };
    // More than all drives have together is never enough.
    let all = nodes.values().flatten().filter_map(|drive| drive.bytes).fold(0, u64::saturating_add);
    // What has room for much has room for less.
    let (mut enough, mut too_much) = (0, all.saturating_add(1));
    while too_much - enough > 1 {
        let middle = enough + (too_much - enough) / 2;
        if has_room(middle) { enough = middle } else { too_much = middle }
    }
    enough.saturating_mul(policy.k.into())
}

/// By the node that a policy bounds the fragments of.
fn by_node(drives: &[PlannedDrive]) -> BTreeMap<&str, Vec<&PlannedDrive>> {
    let mut nodes: BTreeMap<&str, Vec<&PlannedDrive>> = BTreeMap::new();
    for drive in drives {
        nodes.entry(&drive.place.node).or_default().push(drive);
    }
    nodes
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn drives(described: &[(&str, &str, u64)]) -> Vec<PlannedDrive> {
        let drive = |(node, site, gib): &(&str, &str, u64)| drive(node, &[node], &[site], Some(gib * GIB));
        described.iter().map(drive).collect()
    }

    fn drive(node: &str, nodes: &[&str], sites: &[&str], bytes: Option<u64>) -> PlannedDrive {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let place = Place { node: node.into(), site: sites[0].into(), nodes: set(nodes), sites: set(sites) };
        PlannedDrive { place, bytes, raw_bytes: bytes }
    }

    fn policy(k: u8, m: u8, c: u8, x: u8) -> Policy {
        Policy { k, m, c, x }
    }

    /// Fragments, percent, then what may be lost: drives, drives at once, nodes, sites.
    fn check(described: &[(&str, &str, u64)], (k, m, c, x): (u8, u8, u8, u8), expected: Option<[u32; 6]>) {
        let of = plan(&drives(described), &[policy(k, m, c, x)]).policies.remove(0);
        let got = [
            of.fragment_count,
            of.stored_percent,
            of.drives_lost_max,
            of.drives_lost_at_once_max,
            of.nodes_lost_max,
            of.sites_lost_max,
        ];
        assert_eq!(of.is_satisfied.then_some(got), expected, "{described:?} {:?}", of.policy);
    }

    #[test]
    fn what_may_be_lost() {
        let three_nodes: Vec<_> =
            [("a", "s", 1), ("a", "s", 1), ("b", "s", 1), ("b", "s", 1), ("c", "t", 1), ("c", "t", 1)].into();
        check(&three_nodes, (4, 2, 5, 2), Some([6, 150, 2, 1, 1, 0]));
        check(&three_nodes, (2, 4, 4, 2), Some([6, 300, 4, 2, 2, 1]));
        check(&three_nodes, (4, 2, 5, 1), None);
        // No place for one of the parities: less can be lost.
        check(&three_nodes[..5], (4, 2, 5, 2), Some([5, 125, 1, 1, 0, 0]));
        check(&[("a", "", 1)], (1, 0, 1, 1), Some([1, 100, 0, 0, 0, 0]));
        check(&[("a", "s", 1), ("b", "t", 1), ("c", "u", 1)], (1, 2, 2, 1), Some([3, 300, 2, 1, 2, 2]));
        check(&[("a", "", 1), ("a", "", 1), ("a", "", 1)], (2, 1, 3, 3), Some([3, 150, 1, 1, 0, 0]));
    }

    #[test]
    fn what_spans_sites_or_nodes_is_lost_with_each_of_them() {
        let lost = |drives: &[PlannedDrive]| {
            let of = plan(drives, &[policy(1, 1, 2, 1)]).policies.remove(0);
            (of.drives_lost_max, of.nodes_lost_max, of.sites_lost_max)
        };
        let mirror = |name: &str, nodes: &[&str], sites: &[&str]| drive(name, nodes, sites, None);
        let each_over_both =
            [mirror("one", &["a", "b"], &["s", "t"]), mirror("other", &["c", "d"], &["s", "t"])];
        assert_eq!(lost(&each_over_both), (1, 1, 0));
        let each_in_one = [mirror("one", &["a", "b"], &["s"]), mirror("other", &["c", "d"], &["t"])];
        assert_eq!(lost(&each_in_one), (1, 1, 1));
        let sharing_a_node = [mirror("one", &["a", "b"], &["s"]), mirror("other", &["b", "c"], &["t"])];
        assert_eq!(lost(&sharing_a_node), (1, 0, 1));
        assert_eq!(plan(&each_over_both, &[policy(1, 1, 2, 1)]).site_count, 2);
    }

    #[test]
    fn the_first_policy_that_drives_satisfy_is_used() {
        let five: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|node| (*node, "", 1)).collect();
        let plan = plan(&drives(&five), &[policy(8, 2, 9, 1), policy(4, 2, 5, 2), policy(1, 1, 1, 1)]);
        assert_eq!(plan.policy, Some(policy(4, 2, 5, 2)));
        assert_eq!((plan.drive_count, plan.node_count, plan.site_count, plan.drives_away_max), (5, 5, 1, 0));
        assert_eq!(plan.policies[0].stored_percent, 0);
        assert!(
            why_unsatisfied(&plan, &plan.policies[0])
                .contains("places for 9 fragments, and 5 drives on 5 nodes have 5")
        );
    }

    fn check_away(
        described: &[(&str, &str, u64)],
        policies: &[(u8, u8, u8, u8)],
        (drives_away, nodes_away): (u32, u32),
    ) {
        let policies: Vec<Policy> = policies.iter().map(|(k, m, c, x)| policy(*k, *m, *c, *x)).collect();
        let plan = plan(&drives(described), &policies);
        assert_eq!((plan.drives_away_max, plan.nodes_away_max), (drives_away, nodes_away), "{policies:?}");
    }

    #[test]
    fn what_may_be_away_while_all_goes_on() {
        let three_nodes: Vec<_> =
            [("a", "s", 1), ("a", "s", 1), ("b", "s", 1), ("b", "s", 1), ("c", "t", 1), ("c", "t", 1)].into();
        // Two of six, or a node of two drives: an object of few bytes is on three drives, and acknowledged on two.
        check_away(&three_nodes, &[(4, 2, 5, 2)], (1, 0));
        check_away(&three_nodes, &[(2, 4, 4, 2)], (2, 1));
        // What can be read and not put: c of k + m have to find a place.
        check_away(&three_nodes[..3], &[(1, 2, 3, 2)], (0, 0));
        check_away(&[("a", "", 1), ("b", "", 1), ("c", "", 1)], &[(2, 1, 3, 1)], (0, 0));
        check_away(&[("a", "", 1), ("b", "", 1), ("c", "", 1), ("d", "", 1)], &[(2, 1, 3, 1)], (1, 1));
        // A lesser policy takes the puts, …
        check_away(&three_nodes, &[(4, 2, 6, 2), (2, 2, 4, 2)], (2, 1));
        // … and what was put under it is lost with the first drive.
        check_away(&three_nodes, &[(4, 2, 5, 2), (1, 0, 1, 1)], (0, 0));
        // One fragment on each node: of two drives one is to spare.
        check_away(&[("a", "", 1), ("a", "", 1), ("b", "", 1), ("b", "", 1)], &[(1, 1, 2, 1)], (1, 0));
        check_away(&[("a", "", 1)], &[(1, 0, 1, 1)], (0, 0));
    }

    fn check_room(described: &[(&str, &str, u64)], (k, m, c, x): (u8, u8, u8, u8), usable_gib: u64) {
        let plan = plan(&drives(described), &[policy(k, m, c, x)]);
        assert_eq!(plan.usable_bytes, Some(usable_gib * GIB), "{described:?}");
    }

    #[test]
    fn what_is_stored_has_to_fit_on_the_others() {
        let plan = plan(&drives(&[("a", "", 10), ("b", "", 10), ("c", "", 10)]), &[policy(2, 1, 3, 1)]);
        let check = |stored: u64, moving: u64, free: Option<u64>, expected: Option<&str>| {
            let reason = shortage(stored * GIB, moving * GIB, free.map(|free| free * GIB), &plan);
            assert_eq!(reason.is_some(), expected.is_some(), "{reason:?}");
            let expected = expected.unwrap_or_default();
            assert!(reason.is_none_or(|reason| reason.contains(expected)));
        };
        check(30, 5, Some(5), None);
        check(
            31,
            5,
            Some(9),
            Some("31GiB of fragments are stored, and the others can use 30GiB under policy 2,1,3,1"),
        );
        check(20, 6, Some(5), Some("about 6GiB of fragments are on it, and 5GiB are free"));
        check(20, 6, None, None);
    }

    #[test]
    fn room_is_what_different_drives_have() {
        check_room(&[("a", "", 10), ("b", "", 10), ("c", "", 10)], (2, 1, 3, 1), 20);
        // The largest drive is of no use beyond the others.
        check_room(&[("a", "", 10), ("b", "", 10), ("c", "", 100)], (2, 1, 3, 1), 20);
        check_room(&[("a", "", 10), ("b", "", 10), ("c", "", 20), ("d", "", 20)], (1, 1, 2, 1), 30);
        // Two on a node, one fragment of a chunk on each node.
        check_room(&[("a", "", 10), ("a", "", 10), ("b", "", 10), ("b", "", 10)], (1, 1, 2, 1), 20);
        let unknown = [drive("a", &["a"], &[""], None)];
        assert_eq!(plan(&unknown, &[policy(1, 0, 1, 1)]).usable_bytes, None);
    }
}
