//! What may happen to a world, as data: numbers are taken modulo what there is, so that any subset of steps still
//! means something and a failing sequence can be reduced.

use crate::Random;

/// One step. `disk` and `snapshot` count, modulo, the ones that exist.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields: which one, from where, how much; `stable` is FUA")]
pub enum Step {
    /// A new vDisk of so many clusters; or of 64 TiB, of which both ends are used.
    Create { clusters: u16, is_huge: bool },
    /// Bytes at any alignment.
    Write { disk: u8, at: u32, length: u32, stable: bool },
    /// Several writes at once that do not overlap.
    WriteMany { disk: u8, at: u32, lengths: Vec<u16> },
    /// Discard or write-zeroes.
    Zero { disk: u8, at: u32, length: u32, stable: bool },
    /// Everything acknowledged is stable afterwards.
    Flush { disk: u8 },
    /// Compared with the model.
    Read { disk: u8, at: u32, length: u32 },
    /// Where the engine says nothing is, there are zeros.
    Extents { disk: u8 },
    /// A point in time.
    Snapshot { disk: u8 },
    /// Hidden while it has clones.
    DeleteSnapshot { disk: u8, snapshot: u8 },
    /// A new vDisk that begins as a snapshot.
    Clone { disk: u8, snapshot: u8 },
    /// Back to a snapshot.
    Rollback { disk: u8, snapshot: u8 },
    /// Grows or shrinks.
    Resize { disk: u8, clusters: u16 },
    /// Other properties.
    Properties { disk: u8 },
    /// Its guests may do so many requests per second from now on, none: any; and so many come at once.
    Limit { disk: u8, iops: u16, requests: u8 },
    /// Another part in the read cache.
    Cache { disk: u8 },
    /// Hidden while it has clones.
    Delete { disk: u8 },
    /// Everything buffered goes to the backend now.
    Destage { disk: u8 },
    /// What nobody needs of it is given back.
    Scrub { disk: u8 },
    /// A snapshot's data does.
    WaitOnBackend { disk: u8, snapshot: u8 },
    /// The engine's own tasks get some time.
    Wait { milliseconds: u8 },
    /// The backend fails so many of the next calls.
    BackendFails { calls: u8 },
    /// The device of the write buffer fails so many of the next writes and syncs.
    DeviceFails { writes: u8, syncs: u8 },
    /// Close, and open again.
    Reopen,
    /// Death in the middle of these, and a new engine.
    Crash { in_flight: Vec<InFlight>, turns: u8 },
    /// Power is lost, and a new engine comes.
    PowerLoss,
    /// The registry and the map pages are lost; the write buffer is not.
    LoseRegistry,
    /// The map pages are.
    LosePages,
    /// Everything is put on the backend, and then everything else is lost.
    LoseLocal,
}

/// An operation that an engine dies in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Step")]
pub enum InFlight {
    Write { disk: u8, at: u32, length: u16, stable: bool },
    Zero { disk: u8, at: u32, length: u32 },
    Flush { disk: u8 },
    Snapshot { disk: u8 },
    DeleteSnapshot { disk: u8, snapshot: u8 },
    Clone { disk: u8, snapshot: u8 },
    Rollback { disk: u8, snapshot: u8 },
    Resize { disk: u8, clusters: u16 },
    Delete { disk: u8 },
    Create { clusters: u16 },
    Destage { disk: u8 },
    Scrub { disk: u8 },
}

/// The steps of a seed.
pub fn generate(seed: u64, count: usize) -> Vec<Step> {
    let random = Random::new(seed);
    // Some seeds never crash, some do little else; some have one vDisk for long, some many.
    let (crashes, creates) = (random.below(12), 1 + random.below(4));
    let mut steps = vec![Step::Create { clusters: a_size(&random), is_huge: random.one_in(8) }];
    while steps.len() < count {
        steps.push(a_step(&random, crashes, creates));
    }
    steps
}

/// The same steps on a device that fails now and then.
pub fn with_device_failures(seed: u64, steps: Vec<Step>) -> Vec<Step> {
    let random = Random::new(!seed);
    let one_in = 2 + random.below(12);
    let a_failure = || random.one_in(one_in).then(|| a_device_failure(&random));
    steps.into_iter().flat_map(|step| a_failure().into_iter().chain([step])).collect()
}

/// Mostly one failure: after several in a row the log gives up.
fn a_device_failure(random: &Random) -> Step {
    let count = |random: &Random| if random.one_in(6) { random.below(5) as u8 } else { 1 };
    match random.below(3) {
        0 => Step::DeviceFails { writes: count(random), syncs: 0 },
        1 => Step::DeviceFails { writes: 0, syncs: count(random) },
        _ => Step::DeviceFails { writes: count(random), syncs: count(random) },
    }
}

fn a_size(random: &Random) -> u16 {
    1 + random.below(if random.one_in(4) { 600 } else { 60 }) as u16
}

/// Aligned as often as not.
fn a_place(random: &Random) -> (u32, u32) {
    let (at, length) = (random.next() as u32, random.below(60_000) as u32);
    match random.below(4) {
        0 => (at, random.below(9000) as u32),
        1 => (at, length),
        2 => (at & !4095, 4096),
        _ => (at & !4095, length & !4095),
    }
}

fn a_step(random: &Random, crashes: u64, creates: u64) -> Step {
    let number = || random.next() as u8;
    let (disk, snapshot, stable) = (number(), number(), random.one_in(5));
    let (at, length) = a_place(random);
    let clusters = a_size(random);
    if random.below(100) < crashes {
        return match random.below(10) {
            0 => Step::LoseRegistry,
            1 => Step::LosePages,
            2 => Step::LoseLocal,
            3 => Step::Reopen,
            4..=5 => Step::PowerLoss,
            _ => {
                let in_flight = (0..random.below(5)).map(|_| an_in_flight(random)).collect();
                Step::Crash { in_flight, turns: random.below(80) as u8 }
            }
        };
    }
    match random.below(40) {
        0..=11 => Step::Write { disk, at, length, stable },
        12..=14 => {
            let lengths = (0..2 + random.below(6)).map(|_| random.below(12_000) as u16).collect();
            Step::WriteMany { disk, at, lengths }
        }
        15..=17 => {
            let length = if random.one_in(4) { u32::MAX } else { length };
            Step::Zero { disk, at, length, stable }
        }
        18..=19 => Step::Flush { disk },
        20..=21 => Step::Read { disk, at, length: length * 4 },
        22 => Step::Extents { disk },
        23..=25 => Step::Snapshot { disk },
        26 => Step::DeleteSnapshot { disk, snapshot },
        27..=28 => Step::Clone { disk, snapshot },
        29 => Step::Rollback { disk, snapshot },
        30 => Step::Resize { disk, clusters },
        31 => Step::Properties { disk },
        32 if random.below(4) < creates => Step::Delete { disk },
        33 if random.below(4) < creates => Step::Create { clusters, is_huge: random.one_in(8) },
        34 => Step::Destage { disk },
        35 => Step::Scrub { disk },
        36 => Step::WaitOnBackend { disk, snapshot },
        37 => Step::BackendFails { calls: random.below(6) as u8 },
        38 if random.one_in(2) => Step::Cache { disk },
        38 => {
            let iops = if random.one_in(3) { 0 } else { 20 << random.below(11) };
            Step::Limit { disk, iops, requests: random.below(100) as u8 }
        }
        _ => Step::Wait { milliseconds: random.below(12) as u8 },
    }
}

fn an_in_flight(random: &Random) -> InFlight {
    let number = || random.next() as u8;
    let (disk, snapshot) = (number(), number());
    let (at, length) = a_place(random);
    match random.below(16) {
        0..=5 => InFlight::Write { disk, at, length: length as u16, stable: random.one_in(3) },
        6 => InFlight::Zero { disk, at, length },
        7 => InFlight::Flush { disk },
        8..=9 => InFlight::Snapshot { disk },
        10 => InFlight::DeleteSnapshot { disk, snapshot },
        11 => InFlight::Clone { disk, snapshot },
        12 => InFlight::Rollback { disk, snapshot },
        13 => InFlight::Resize { disk, clusters: a_size(random) },
        14 => random_end(random, disk),
        _ if random.one_in(2) => InFlight::Scrub { disk },
        _ => InFlight::Destage { disk },
    }
}

fn random_end(random: &Random, disk: u8) -> InFlight {
    if random.one_in(2) { InFlight::Delete { disk } } else { InFlight::Create { clusters: a_size(random) } }
}
