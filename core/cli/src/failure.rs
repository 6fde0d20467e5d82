//! Why a command failed: always a problem document, whoever found it.

use crate::{args::OutputFormat, image::ImageError, output};
use ovs_api::{ApiError, Problem, ProblemKind};
use ovs_nbd::{ClientError, NbdError};
use std::{io, io::Write, process::ExitCode};

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// Refused or failed: exit code 1.
    Problem(Box<Problem>),
    /// The words do not make sense together: exit code 2.
    Usage(Box<Problem>),
    /// Whoever reads the standard output has had enough (`| head`); nobody needs to hear of it.
    OutputClosed,
}

impl Failure {
    /// A failure that was found here.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Failure {
        Failure::Problem(Box::new(Problem::new(kind, detail)))
    }

    /// Wrong usage that the parser cannot see.
    pub fn usage(problem: Problem) -> Failure {
        Failure::Usage(Box::new(problem))
    }

    /// The document, if there is one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Failure::Problem(problem) | Failure::Usage(problem) => Some(problem),
            Failure::OutputClosed => None,
        }
    }

    /// True for a problem of that kind.
    pub fn is(&self, kind: ProblemKind) -> bool {
        self.problem().is_some_and(|problem| problem.kind() == kind)
    }

    /// The same with more to its detail: what to do, what happened since.
    #[must_use]
    pub fn and(mut self, more: &str) -> Failure {
        if let Failure::Problem(problem) | Failure::Usage(problem) = &mut self {
            problem.detail = format!("{}; {more}", problem.detail);
        }
        self
    }

    /// Says it on the standard error, and gives the exit code.
    pub fn report(&self, format: OutputFormat) -> ExitCode {
        if let Some(problem) = self.problem() {
            let text = match format {
                OutputFormat::Table => format!("ovs: {}", output::one_line(&problem.detail)),
                OutputFormat::Json => {
                    serde_json::to_string(problem).unwrap_or_else(|_| problem.detail.clone())
                }
            };
            // There is nowhere left to complain when this fails.
            let _ = writeln!(io::stderr(), "{text}");
        }
        match self {
            Failure::Problem(_) => ExitCode::from(1),
            Failure::Usage(_) => ExitCode::from(2),
            Failure::OutputClosed => ExitCode::SUCCESS,
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        let text = error.to_string();
        match error {
            ApiError::Refused(problem) if problem.kind() == ProblemKind::Unauthorized => {
                Failure::Problem(problem).and("give --cert and --key, or --token-file")
            }
            ApiError::Refused(problem) => Failure::Problem(problem),
            ApiError::Unreachable { place, reason } => {
                let advice = match () {
                    () if place.starts_with("https:") => {
                        "see whether rpc.listen is set there, and --ca, --cert and --key are what rpc.tls there wants"
                    }
                    () if reason.contains("ermission denied") => "be root or a member of the group ovs",
                    () => "start it (systemctl start ovsd), or say where it is with --root or --socket",
                };
                Failure::new(ProblemKind::Unavailable, text).and(advice)
            }
            ApiError::TimedOut { .. } | ApiError::Broken { .. } => {
                Failure::new(ProblemKind::Unavailable, text)
                    .and("it may have been done all the same: look, then try again")
            }
            ApiError::NotUnderstood { .. } => Failure::new(ProblemKind::Internal, text),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let kind = match &error {
            ClientError::Request(NbdError::NoSpace(_)) => ProblemKind::NoSpace,
            ClientError::Request(NbdError::Io(_)) => ProblemKind::Offline,
            ClientError::Request(NbdError::Shutdown(_)) | ClientError::Disconnected(_) => {
                ProblemKind::Unavailable
            }
            ClientError::Refused(_) => ProblemKind::Conflict,
            ClientError::Request(_) | ClientError::Closed => ProblemKind::Internal,
        };
        Failure::new(kind, format!("the vDisk's NBD export: {error}"))
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Failure {
        let kind = match &error {
            ImageError::Refused(_) => ProblemKind::Invalid,
            ImageError::Damaged { .. } => ProblemKind::Damaged,
            ImageError::Io { .. } => ProblemKind::Unavailable,
        };
        Failure::new(kind, error.to_string())
    }
}
