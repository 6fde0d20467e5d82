//! Time and chance: the one door by which they come in.
//!
//! Everything in this crate runs as local futures on one thread (tokio's current-thread runtime), so that a simulation
//! runs the same code under paused time and a seeded generator.

use futures_util::future::LocalBoxFuture;
use std::time::Duration;
use uuid::Uuid;

/// The time, as the engine sees it.
pub trait Clock {
    /// Monotonic time since some start.
    fn now(&self) -> Duration;
    /// Wall-clock milliseconds since 1970, for what people see only.
    fn wall_ms(&self) -> u64;
    /// Comes back after `duration`.
    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()>;
}

/// Where random identities come from.
pub trait Chance {
    /// A random version 4 UUID.
    fn uuid(&self) -> Uuid;
}

/// The host's clock, through tokio (so that paused time works).
#[derive(Debug)]
pub struct SystemClock {
    start: tokio::time::Instant,
}

impl SystemClock {
    /// A clock that starts now. Call inside a tokio runtime.
    #[expect(clippy::new_without_default, reason = "needs a runtime, which `default` would hide")]
    pub fn new() -> SystemClock {
        SystemClock { start: tokio::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    fn wall_ms(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// The operating system's generator.
#[derive(Debug, Default)]
pub struct SystemChance;

impl Chance for SystemChance {
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    fn uuid(&self) -> Uuid {
        Uuid::new_v4()
    }
}
