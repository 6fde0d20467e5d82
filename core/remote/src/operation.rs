//! An operation: attempts, each with a turn and a token, within one deadline.
//!
//! ```text
//!  operate: Allowance ─▶ persist: turn, token ─▶ attempt ─▶ busy: again, later, until no more may begin ─▶ Busy
//!                                                  └▶ token expired: another one, at most twice ─▶ attempt
//! ```
//!
//! Invariant: whatever a store answers, and however often, an operation ends (`pace.rs` says when).

use crate::{backend::Shared, failure::Failure, operators::Numbered, pace::Allowance};
use opendal::Operator;
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, sleep, timeout_at},
};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);

/// Which turn an attempt needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// One of three in four.
    Put,
    Any,
}

impl Shared {
    /// All of one operation.
    pub(crate) async fn operate<T>(
        &self,
        work: impl AsyncFnOnce(&Arc<Allowance>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let _present = self.enter()?;
        let allowed = Arc::new(Allowance::new(self.options.retry, self.options.patience));
        let done = allowed.in_time(work(&allowed)).await;
        done.unwrap_or_else(|_| Err(Failure::Busy("not done in time".to_owned())))
    }

    /// Whoever waits holds his bytes, and comes too late the more there are.
    fn enter(&self) -> Result<Present<'_>, Failure> {
        let present = Present(&self.present);
        let before = self.present.fetch_add(1, Ordering::Relaxed);
        match before < self.turns.saturating_add(self.options.waiting_max) {
            true => Ok(present),
            false => Err(Failure::Refused(format!("{before} operations are under way or wait already"))),
        }
    }

    /// `attempt` until it does not come back `Busy`.
    pub(crate) async fn persist<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        allowed: &Arc<Allowance>,
        turn: Turn,
        mut attempt: impl FnMut(Operator) -> F,
    ) -> Result<T, Failure> {
        let mut renewals = 0;
        for attempts in 0u32.. {
            let outcome = match self.begin(allowed, turn).await {
                Ok((_permits, current)) => {
                    let operator = self.operators.during(current.operator, allowed.clone());
                    match attempt(operator).await {
                        Err(Failure::Expired(_))
                            if renewals < 2 && self.operators.expire(current.number).await =>
                        {
                            renewals += 1;
                            continue;
                        }
                        outcome => outcome,
                    }
                }
                Err(failure) => Err(failure),
            };
            let Err(Failure::Busy(reason)) = outcome else { return outcome };
            let wait = self.backoff(attempts);
            if Instant::now() + wait >= allowed.attempts_until() {
                return Err(Failure::Busy(reason));
            }
            tracing::debug!(store = self.address, attempts, "the store does not answer; trying again");
            sleep(wait).await;
        }
        unreachable!("attempts do not end")
    }

    /// A turn, and a token if there has to be one.
    async fn begin(&self, allowed: &Allowance, turn: Turn) -> Result<(Permits<'_>, Numbered), Failure> {
        let closed = |_| Failure::Refused("closed".to_owned());
        let begun = timeout_at(allowed.attempts_until(), async {
            // In this order: who has none to put holds up nobody who reads.
            let put = match turn {
                Turn::Put => Some(self.puts.acquire().await.map_err(closed)?),
                Turn::Any => None,
            };
            let any = self.operations.acquire().await.map_err(closed)?;
            Ok(((any, put), self.operators.current().await?))
        });
        begun
            .await
            .unwrap_or_else(|_| Err(Failure::Busy("no turn in time: too much is under way".to_owned())))
    }

    /// Twice as long each time, of which between half and all is waited.
    fn backoff(&self, attempts: u32) -> Duration {
        let all = BACKOFF_MIN.saturating_mul(1 << attempts.min(10)).min(BACKOFF_MAX);
        all.mul_f64(0.5 + (self.random() >> 11) as f64 / (1u64 << 53) as f64 / 2.0)
    }
}

type Permits<'a> = (SemaphorePermit<'a>, Option<SemaphorePermit<'a>>);

/// An operation, counted while it is there.
struct Present<'a>(&'a AtomicUsize);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
