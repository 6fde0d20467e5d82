//! Seeds of the model. `OVS_SEED=n` runs one, `OVS_SEEDS=n` as many, `OVS_STEPS=n` of that length.

use ovs_tests::{check_seed, check_steps, generate, with_device_failures};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Two threads share the seeds, so that the machine's cores are used and a failure is one seed's.
fn check_seeds(first: u64, count: u64, steps: u64) {
    let steps = number("OVS_STEPS").unwrap_or(steps) as usize;
    if let Some(seed) = number("OVS_SEED") {
        return check_seed(seed, steps);
    }
    let end = first + number("OVS_SEEDS").unwrap_or(count);
    (first..end).for_each(|seed| check_seed(seed, steps));
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
    let count = number("OVS_SEEDS").unwrap_or(100);
    (2_000_000..2_000_000 + count).for_each(|seed| check(seed, number("OVS_STEPS").unwrap_or(60) as usize));
}
