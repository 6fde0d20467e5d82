//! How fast bytes may go, and how long a request may take that does not get on.

use std::{
    future::Future,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// What is saved up while nothing goes: what a timer (1 ms) and a busy thread cost.
const SLACK: Duration = Duration::from_millis(20);
/// A body that comes in drops has an end too.
const BYTES_PER_S_MIN: u64 = 16 * 1024;

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

/// Nothing moved for too long.
#[derive(Debug)]
pub(crate) struct Stalled;

/// How one request gets on. It stalls when nothing has moved for `patience`, or when all that has moved was too slow;
/// what our own [`Pace`] held back is not counted.
pub(crate) struct Progress {
    patience: Duration,
    started: Instant,
    state: Mutex<Moved>,
}

struct Moved {
    bytes: u64,
    last: Instant,
    held: Duration,
}

impl Progress {
    pub(crate) fn new(patience: Duration) -> Progress {
        let started = Instant::now();
        Progress {
            patience,
            started,
            state: Mutex::new(Moved { bytes: 0, last: started, held: Duration::ZERO }),
        }
    }

    /// `bytes` more are on their way, after `held`.
    pub(crate) fn moved(&self, bytes: usize, held: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes += bytes as u64;
        state.last = Instant::now() + held;
        state.held += held;
    }

    fn deadline(&self) -> Instant {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let slowest = Duration::from_secs_f64(state.bytes as f64 / BYTES_PER_S_MIN as f64);
        (state.last + self.patience).min(self.started + state.held + self.patience + slowest)
    }

    /// Waits for `future` as long as something moves.
    pub(crate) async fn or_stalled<F: Future>(&self, future: F) -> Result<F::Output, Stalled> {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                biased;
                output = &mut future => return Ok(output),
                () = sleep_until(self.deadline()) => {
                    if self.deadline() <= Instant::now() {
                        return Err(Stalled);
                    }
                }
            }
        }
    }
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
        let progress = Progress::new(Duration::from_secs(10));
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
}
