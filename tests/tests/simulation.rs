//! Seeds of the simulation. `OVS_SEED=n` runs one (`OVS_TRACE=1` with every event), `OVS_SEEDS=n` as many,
//! `OVS_FIRST=n` from there on.

use ovs_tests::{FaultClass, Report, simulate, tell};
use std::collections::BTreeMap;

/// Of this many seeds each class of faults comes in …
const SEEDS: u64 = 200;
/// … at least this share.
const SHARE_PERCENT_MIN: u64 = 30;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64) -> Report {
    simulate(seed).unwrap_or_else(|failure| panic!("{failure}"))
}

#[test]
fn every_seed_is_explained_and_every_fault_comes() {
    if let Some(seed) = number("OVS_SEED") {
        println!("{:?}", run(seed));
        return;
    }
    let (first, count) = (number("OVS_FIRST").unwrap_or(0), number("OVS_SEEDS").unwrap_or(SEEDS));
    let mut shares: BTreeMap<FaultClass, u64> = FaultClass::ALL.into_iter().map(|class| (class, 0)).collect();
    let (mut events, mut operations) = (0, 0);
    for seed in first..first + count {
        let report = run(seed);
        (events, operations) = (events + report.events, operations + report.operations);
        report.faults.iter().for_each(|class| *shares.entry(*class).or_default() += 1);
    }
    let shown = |(class, seeds): (&FaultClass, &u64)| format!("{class} {} %", seeds * 100 / count);
    let shares_told = shares.iter().map(shown).collect::<Vec<_>>().join(", ");
    tell(&format!(
        "simulation:  {count} seeds, {operations} operations of clients, {events} events; in so many: {shares_told}"
    ));
    if count >= SEEDS {
        let rare: Vec<_> =
            shares.iter().filter(|(_, seeds)| **seeds * 100 < count * SHARE_PERCENT_MIN).collect();
        assert!(rare.is_empty(), "in less than {SHARE_PERCENT_MIN} % of the seeds: {rare:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in 1000..1005 {
        assert_eq!(run(seed), run(seed));
    }
    assert_ne!(run(1000).trace_hash, run(1001).trace_hash);
}
