//! Running the steps of a seed; of steps that fail, finding few that still do.

use crate::{Step, World, generate};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

/// Spent on making a failing sequence shorter.
const PATIENCE: Duration = Duration::from_secs(60);

/// Panics, with a short sequence of steps, if the steps of the seed find anything wrong.
pub fn check_seed(seed: u64, count: usize) {
    check_steps(seed, &generate(seed, count));
}

/// The same for given steps; the seed gives the sizes and the timing.
pub fn check_steps(seed: u64, steps: &[Step]) {
    let Err(first) = run(seed, steps) else { return };
    let (steps, last) = reduce(seed, steps.to_vec(), first.clone());
    let listed: Vec<_> = steps.iter().map(|step| format!("    {step:?},\n")).collect();
    panic!("seed {seed}: {first}\nreduced to {} steps: {last}\n{}", steps.len(), listed.concat());
}

fn run(seed: u64, steps: &[Step]) -> Result<(), String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed)?;
        for (number, step) in steps.iter().enumerate() {
            world.take(step).map_err(|failure| format!("step {number}, {step:?}: {failure}"))?;
        }
        world.finish().map_err(|failure| format!("at the end: {failure}"))
    }));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// A failure without the step and the numbers in it.
fn kind(failure: &str) -> String {
    let what = failure.split_once("}: ").map_or(failure, |(_, what)| what);
    what.split(|c: char| c.is_ascii_hexdigit() || "-, []".contains(c)).filter(|part| part.len() > 1).collect()
}

/// Leaves out ever smaller parts as long as something still fails.
fn reduce(seed: u64, mut steps: Vec<Step>, mut failure: String) -> (Vec<Step>, String) {
    #[expect(clippy::disallowed_methods, reason = "bounds the time of a test that has failed")]
    let start = Instant::now();
    let mut part = steps.len() / 2;
    while part > 0 {
        let mut at = 0;
        let mut is_shorter = false;
        while at < steps.len() {
            if start.elapsed() > PATIENCE {
                return (steps, failure);
            }
            let mut fewer = steps.clone();
            fewer.drain(at..(at + part).min(steps.len()));
            match run(seed, &fewer) {
                // Another failure would be another reduction.
                Err(other) if kind(&other) == kind(&failure) => {
                    (steps, failure) = (fewer, other);
                    is_shorter = true;
                }
                _ => at += part,
            }
        }
        if !is_shorter || part > 1 {
            part /= 2;
        }
    }
    (steps, failure)
}
