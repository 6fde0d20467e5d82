//! Seeds of the model. `OVS_SEED=n` runs one, `OVS_SEEDS=n` as many, `OVS_FIRST=n` from there on, `OVS_STEPS=n` of that length.

use ovs_tests::{check_seed, check_steps, generate, with_device_failures};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `first`: where the seeds of this test begin.
fn check_seeds(first: u64, count: u64, steps: u64) {
    let steps = number("OVS_STEPS").unwrap_or(steps) as usize;
    if let Some(seed) = number("OVS_SEED") {
        return check_seed(seed, steps);
    }
    seeds(first, count).for_each(|seed| check_seed(seed, steps));
}

fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let first = first + number("OVS_FIRST").unwrap_or(0);
    first..first + number("OVS_SEEDS").unwrap_or(count)
}

#[test]
fn short_sequences() {
    check_seeds(0, 150, 30);
}

#[test]
fn long_sequences() {
    check_seeds(1_000_000, 15, 300);
}

#[test]
fn on_a_device_that_fails() {
    let check =
        |seed: u64, count: usize| check_steps(seed, &with_device_failures(seed, generate(seed, count)));
    if let Some(seed) = number("OVS_SEED") {
        return check(seed, number("OVS_STEPS").unwrap_or(60) as usize);
    }
    seeds(2_000_000, 100).for_each(|seed| check(seed, number("OVS_STEPS").unwrap_or(60) as usize));
}
