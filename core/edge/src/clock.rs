//! The time of day, for the times of files: the one door through which it comes in.

use std::time::SystemTime;

/// Now, as files show it.
#[expect(
    clippy::disallowed_methods,
    reason = "the kernel wants the time of day in stat(2); nothing is decided by it"
)]
pub fn now() -> SystemTime {
    SystemTime::now()
}
