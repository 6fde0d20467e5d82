//! Every crash point, every failing call and every damage of small workloads. `OVS_SEED=n` runs one workload, `OVS_SEEDS=n` as many,
//! `OVS_FIRST=n` from there on, `OVS_SUBSETS=n` with at most so many ways for a power loss to go at each moment.

use ovs_tests::{Points, fail_every_call, rot, sweep, tell};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(count: u64, work: impl Fn(u64) -> Result<Points, String>) -> Points {
    let mut points = Points::default();
    let seeds = match number("OVS_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("OVS_FIRST").unwrap_or(0);
            first..first + number("OVS_SEEDS").unwrap_or(count)
        }
    };
    for seed in seeds {
        points += work(seed).unwrap_or_else(|failure| panic!("{failure}"));
    }
    points
}

#[test]
fn a_crash_at_every_point() {
    let subsets = number("OVS_SUBSETS").unwrap_or(8) as usize;
    let Points { moments, crashes, .. } = run(6, |seed| sweep(seed, subsets));
    tell(&format!("sweep:       {crashes} crash points, at {moments} changes and acknowledgements"));
}

#[test]
fn a_failure_of_every_call() {
    let Points { failed_calls, .. } = run(4, fail_every_call);
    tell(&format!("sweep:       {failed_calls} calls failed"));
}

#[test]
fn a_damage_of_everything() {
    let Points { damages, vouched, .. } = run(10, rot);
    assert!(vouched > 0);
    tell(&format!(
        "sweep:       {damages} damages, {vouched} blocks of the write buffer that others vouch for"
    ));
}
