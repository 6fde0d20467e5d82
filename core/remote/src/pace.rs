//! How fast bytes may go, and how long a request may take that does not get on.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// What is saved up while nothing goes: what a timer (1 ms) and a busy thread cost.
const SLACK: Duration = Duration::from_millis(20);
/// A body that comes in drops has an end too.
const BYTES_PER_S_MIN: u64 = 16 * 1024;
/// So has a listing.
const NAMES_PER_S_MIN: u64 = 100;

/// Bytes per second in one direction, shared by all requests: a bucket of which only the time is kept at which it takes
/// the next byte.
pub(crate) struct Pace {
    bytes_per_s: Option<u64>,
    takes_at: Mutex<Option<Instant>>,
}

impl Pace {
    /// `None`: as fast as it goes.
    pub(crate) fn new(bytes_per_s: Option<u64>) -> Pace {
        Pace { bytes_per_s, takes_at: Mutex::new(None) }
    }

    /// Books `bytes`; how long to wait before they go.
    pub(crate) fn book(&self, bytes: usize) -> Duration {
        let Some(bytes_per_s) = self.bytes_per_s else { return Duration::ZERO };
        let now = Instant::now();
        let mut takes_at = self.takes_at.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        let at = takes_at.map_or(earliest, |at| at.max(earliest));
        *takes_at = Some(at + Duration::from_secs_f64(bytes as f64 / bytes_per_s.max(1) as f64));
        at.saturating_duration_since(now)
    }
}

/// What an operation may take, with all its attempts and pages: so long, and longer only by what it gets for that. Bytes that move
/// have the time that they take at the least rate, and names that were found; an attempt that failed has had its own.
pub(crate) struct Allowance {
    started: Instant,
    retry: Duration,
    patience: Duration,
    more: Mutex<More>,
}

#[derive(Default)]
struct More {
    /// For attempts, too.
    found: Duration,
    moved: Duration,
}

impl Allowance {
    /// Attempts begin for as long as `retry`, and the last of them has `patience`.
    pub(crate) fn new(retry: Duration, patience: Duration) -> Allowance {
        Allowance { started: Instant::now(), retry, patience, more: Mutex::default() }
    }

    fn more(&self) -> MutexGuard<'_, More> {
        self.more.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No attempt begins after this.
    pub(crate) fn attempts_until(&self) -> Instant {
        self.started + self.retry + self.more().found
    }

    fn deadline(&self) -> Instant {
        let moved = self.more().moved;
        self.attempts_until() + self.patience + moved
    }

    /// A listing has got on by so many names.
    pub(crate) fn found(&self, names: usize) {
        self.more().found += Duration::from_secs_f64(names as f64 / NAMES_PER_S_MIN as f64);
    }

    /// Waits for all of the operation.
    pub(crate) async fn in_time<F: Future>(&self, operation: F) -> Result<F::Output, Stalled> {
        before(|| self.deadline(), operation).await
    }
}

/// Waits for `future` until a time that may move meanwhile.
async fn before<F: Future>(deadline: impl Fn() -> Instant, future: F) -> Result<F::Output, Stalled> {
    let mut future = pin!(future);
    loop {
        tokio::select! {
            biased;
            output = &mut future => return Ok(output),
            () = sleep_until(deadline()) => {
                if deadline() <= Instant::now() {
                    return Err(Stalled);
                }
            }
        }
    }
}

/// Nothing moved for too long.
#[derive(Debug)]
pub(crate) struct Stalled;

/// How one request gets on. It stalls when nothing has moved for `patience`, or when all that has moved was too slow;
/// what our own [`Pace`] held back is not counted.
pub(crate) struct Progress {
    patience: Duration,
    started: Instant,
    state: Mutex<Moved>,
    /// Of the operation that it is a part of, and whether its bytes are what that one is for.
    operation: Option<(Arc<Allowance>, bool)>,
}

struct Moved {
    bytes: u64,
    last: Instant,
    held: Duration,
}

impl Progress {
    pub(crate) fn new(patience: Duration, operation: Option<(Arc<Allowance>, bool)>) -> Progress {
        let started = Instant::now();
        Progress {
            patience,
            started,
            state: Mutex::new(Moved { bytes: 0, last: started, held: Duration::ZERO }),
            operation,
        }
    }

    /// `bytes` more are on their way, after `held`.
    pub(crate) fn moved(&self, bytes: usize, held: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes += bytes as u64;
        state.last = Instant::now() + held;
        state.held += held;
        if let Some((operation, counts)) = &self.operation {
            operation.more().moved +=
                held + if *counts { at_least_rate(bytes as u64) } else { Duration::ZERO };
        }
    }

    fn deadline(&self) -> Instant {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.last + self.patience)
            .min(self.started + state.held + self.patience + at_least_rate(state.bytes))
    }

    /// Waits for `future` as long as something moves.
    pub(crate) async fn or_stalled<F: Future>(&self, future: F) -> Result<F::Output, Stalled> {
        before(|| self.deadline(), future).await
    }
}

fn at_least_rate(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / BYTES_PER_S_MIN as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn bytes_keep_to_the_rate() {
        let (pace, started) = (Pace::new(Some(1_000_000)), Instant::now());
        for _ in 0..100 {
            sleep(pace.book(100_000)).await;
        }
        let took = started.elapsed();
        assert!(took > Duration::from_millis(9_800) && took < Duration::from_millis(9_950), "{took:?}");
        // Time that nothing was asked in is not saved up.
        sleep(Duration::from_secs(100)).await;
        assert_eq!(pace.book(1_000_000), Duration::ZERO);
        assert!(pace.book(1) > Duration::from_millis(900));
        assert_eq!(Pace::new(None).book(usize::MAX), Duration::ZERO);
    }

    async fn check_progress(bytes: usize, every: Duration, held: Duration, expected_s: Option<u64>) {
        let progress = Progress::new(Duration::from_secs(10), None);
        let started = Instant::now();
        let body = async {
            for _ in 0..100 {
                sleep(every).await;
                progress.moved(bytes, held);
                sleep(held).await;
            }
        };
        let stalled_after = progress.or_stalled(body).await.err().map(|_| started.elapsed().as_secs());
        assert_eq!(stalled_after, expected_s, "{bytes} bytes every {every:?} after {held:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_ends_when_nothing_moves_or_too_little() {
        let second = Duration::from_secs(1);
        check_progress(100_000, second, Duration::ZERO, None).await;
        check_progress(100_000, 11 * second, Duration::ZERO, Some(10)).await;
        check_progress(0, 9 * second, Duration::ZERO, Some(10)).await;
        check_progress(1_638, second, Duration::ZERO, Some(11)).await;
        // We held it back ourselves.
        check_progress(100_000, second, 60 * second, None).await;
    }

    /// Done after so many seconds, or ended after so many.
    async fn check_allowance(
        counts: bool,
        bytes: usize,
        names: usize,
        held: Duration,
        expected: Result<u64, u64>,
    ) {
        let second = Duration::from_secs(1);
        let allowance = Arc::new(Allowance::new(20 * second, 10 * second));
        let request = Progress::new(10 * second, Some((allowance.clone(), counts)));
        let started = Instant::now();
        let work = async {
            for _ in 0..100 {
                sleep(second).await;
                request.moved(bytes, held);
                allowance.found(names);
                sleep(held).await;
            }
        };
        let done = allowance.in_time(work).await;
        let took = started.elapsed().as_secs();
        let told = format!("{counts} {bytes} {names} {held:?}");
        assert_eq!(done.map(|()| took).map_err(|_| took), expected, "{told}");
        // No attempt for bytes, which one that fails may have moved, too.
        let attempts_for = (allowance.attempts_until() - started).as_secs();
        assert_eq!(attempts_for, 20 + names as u64, "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_ends_unless_it_gets_on() {
        let (not, held) = (Duration::ZERO, Duration::from_secs(9));
        check_allowance(true, 0, 0, not, Err(30)).await;
        check_allowance(true, 16 * 1024, 0, not, Ok(100)).await;
        // Half a second for what takes one.
        check_allowance(true, 8 * 1024, 0, not, Err(59)).await;
        // A listing gets on by names.
        check_allowance(false, 1 << 20, 0, not, Err(30)).await;
        check_allowance(false, 0, 100, not, Ok(100)).await;
        // What we held back ourselves is not counted.
        check_allowance(false, 0, 0, held, Err(300)).await;
        check_allowance(true, 16 * 1024, 0, held, Ok(1000)).await;
    }
}
