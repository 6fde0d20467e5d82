//! Being interrupted, as something that can be waited for.

use crate::failure::Failure;
use ovs_api::ProblemKind;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP, caught from when this is made: they no longer end the process by themselves.
pub struct Interrupt {
    signals: [Signal; 3],
}

impl Interrupt {
    /// Catches them from now on.
    pub fn catch() -> Result<Interrupt, Failure> {
        let catch = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(ProblemKind::Internal, format!("cannot catch signals: {error}"))
            })
        };
        let signals =
            [catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?, catch(SignalKind::hangup())?];
        Ok(Interrupt { signals })
    }

    /// Does the work, unless a signal comes: then it is dropped where it stands.
    pub async fn or<T>(&mut self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let [interrupt, terminate, hang_up] = &mut self.signals;
        tokio::select! {
            result = work => result,
            _ = interrupt.recv() => Err(interrupted()),
            _ = terminate.recv() => Err(interrupted()),
            _ = hang_up.recv() => Err(interrupted()),
        }
    }
}

fn interrupted() -> Failure {
    Failure::new(ProblemKind::Unavailable, "interrupted")
}
