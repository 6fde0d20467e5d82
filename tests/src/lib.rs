//! The volume engine against a plain model of itself.
//!
//! ```text
//!  seed ─▶ steps ─▶ World ─┬▶ engine over stores and a write buffer in memory, in paused time
//!                          └▶ model: cluster → bytes, for every vDisk and snapshot
//!              after every step and every restart: what the engine reads is what the model holds
//! ```
//!
//! A world lives on through the deaths of its engine: the backend, the registry, the map pages and the device of the
//! write buffer stay, everything in memory goes. Steps in flight at a death may or may not have happened, each whole,
//! a write cluster by cluster; what was acknowledged has. A power loss takes what the device had not synced, too: then
//! a vDisk is as after some operation not before its last flush. What the next engine shows, stays.
//!
//! Beside it, over the same stores: the simulation ([`simulate`]: many clients and an operator at once, every class of
//! faults, one trace for one seed), and the sweeps ([`sweep`], [`fail_every_call`], [`rot`]: every crash point, failing call
//! and damage of small workloads). Their oracle is [`History`].
//!
//! A failing seed prints itself and the fewest steps that still fail. Not here: real files (their own crates' tests
//! have them), real programs (`integration/`).

mod content;
mod device;
mod history;
pub mod host;
mod random;
mod reduce;
mod sim;
mod step;
mod stores;
mod unsettled;
mod world;

pub use content::Content;
pub use device::{MemoryDevice, Taken, Unsynced};
pub use history::{Change, Cut, History};
pub use random::Random;
pub use reduce::{check_seed, check_steps};
pub use sim::{FaultClass, Points, Report, fail_every_call, rot, simulate, sweep};
pub use step::{InFlight, Step, generate, with_device_failures};
pub use stores::{Call, Directed, Director, Fault, MemoryCache, Store, Stores, digest};
pub use unsettled::{UnsettledCache, UnsettledPages, UnsettledRegistry};
pub use world::World;

/// Prints a line, and adds it to the file that `OVS_REPORT` names, if it names one: test runners keep what a passing test
/// prints to themselves.
pub fn tell(line: &str) {
    use std::io::Write;
    println!("{line}");
    if let Some(path) = std::env::var_os("OVS_REPORT") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let told = file.and_then(|mut file| writeln!(file, "{line}"));
        told.expect("the file that OVS_REPORT names takes a line");
    }
}
