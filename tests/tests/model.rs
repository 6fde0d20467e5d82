//! Seeds of the model. `OVS_SEED=n` runs one, `OVS_SEEDS=n` as many, `OVS_STEPS=n` of that length.

use ovs_tests::check_seed;

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
