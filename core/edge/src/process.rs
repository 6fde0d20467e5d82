//! What keeps a process that serves the kernel's writeback from waiting for that writeback.
//!
//! When memory is short, the kernel writes dirty pages out through this very process. Should it then wait for memory
//! itself, nothing moves any more. So: tell the kernel what we are, keep our pages in memory, and do not be the
//! process that is killed. All of it is best effort (a container may lack the capabilities) and logged; the rest is
//! the unit file's part: an own slice without a memory limit.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::configure_io_flusher_behavior,
};
use std::io;

/// Applies the rules. Flags are per task and inherited by what it starts: call this before there is any thread.
/// Returns what did not work, to be logged once there is a log.
pub fn harden() -> Vec<String> {
    let rules: [(&str, io::Result<()>); 3] = [
        (
            "PR_SET_IO_FLUSHER (needs CAP_SYS_RESOURCE)",
            configure_io_flusher_behavior(true).map_err(io::Error::from),
        ),
        // ONFAULT: only what is used gets locked. fuser keeps 16 MiB per thread of which a request uses one.
        (
            "mlockall (needs CAP_IPC_LOCK)",
            mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
                .map_err(io::Error::from),
        ),
        ("oom_score_adj (needs CAP_SYS_RESOURCE)", std::fs::write("/proc/self/oom_score_adj", "-1000")),
    ];
    rules
        .into_iter()
        .filter_map(|(rule, result)| result.err().map(|error| format!("{rule}: {error}")))
        .collect()
}
