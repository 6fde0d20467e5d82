use crate::{Problem, ProblemKind};
use std::time::Duration;
use thiserror::Error;

/// Why a call came back without what it asked for, by what the caller does next.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ApiError {
    /// ovsd answered with a problem; its kind says what to do.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// Nobody listens there, for as long as the client's patience, or the two do not trust each other: nothing happened.
    #[error("ovsd does not answer on {place}: {reason}")]
    Unreachable {
        /// The socket, or the URL.
        place: String,
        /// What the kernel or TLS said.
        reason: String,
    },
    /// No answer in time: it may have happened, or may yet.
    #[error("{operation}: no answer within {} s", after.as_secs())]
    TimedOut {
        /// The operation's id.
        operation: &'static str,
        /// The time given.
        after: Duration,
    },
    /// The connection broke before the answer was whole: it may have happened.
    #[error("{operation}: the connection to ovsd broke: {reason}")]
    Broken {
        /// The operation's id.
        operation: &'static str,
        /// What was seen.
        reason: String,
    },
    /// The answer is none of this protocol: it has happened if the status says so.
    #[error("{operation}: the answer (status {status}) is not understood: {reason}")]
    NotUnderstood {
        /// The operation's id.
        operation: &'static str,
        /// The HTTP status.
        status: u16,
        /// What was seen.
        reason: String,
    },
}

impl ApiError {
    /// The problem, when ovsd answered with one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            ApiError::Refused(problem) => Some(problem),
            _ => None,
        }
    }

    /// The problem's kind, when ovsd answered with one.
    pub fn kind(&self) -> Option<ProblemKind> {
        self.problem().map(Problem::kind)
    }

    /// The HTTP status, when there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            ApiError::Refused(problem) => Some(problem.status),
            ApiError::NotUnderstood { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// For people.
    pub fn detail(&self) -> String {
        self.to_string()
    }

    /// True for a problem of that kind.
    pub fn is(&self, kind: ProblemKind) -> bool {
        self.kind() == Some(kind)
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> ApiError {
        ApiError::Refused(Box::new(problem))
    }
}
