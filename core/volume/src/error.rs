//! What an operation on a vDisk may come back with, by what the caller does next.

use ovs_backend::BackendError;
use thiserror::Error;

/// One variant per different action; the text is for the operator.
#[derive(Debug, Clone, Error)]
pub enum VolumeError {
    /// Transient: the same call may succeed later (the backend or the registry does not answer).
    #[error("{0}")]
    Retry(String),
    /// This process is no longer the owner: stop, acknowledge nothing more.
    #[error("fenced: {0}")]
    Fenced(String),
    /// The request cannot be done as it stands; nothing changed.
    #[error("{0}")]
    Refused(String),
    /// No such vDisk or snapshot.
    #[error("{0}")]
    NotFound(String),
    /// What is stored is not what was written: nothing of it is served.
    #[error("damaged: {0}")]
    Damaged(String),
    /// No space, and the vDisk's `on_full` says not to wait (or it waited long enough).
    #[error("no space: {0}")]
    NoSpace(String),
    /// The vDisk does not serve (a failed device, or being closed); the reason is kept and shown.
    #[error("offline: {0}")]
    Offline(String),
}

impl From<BackendError> for VolumeError {
    fn from(error: BackendError) -> VolumeError {
        let text = error.to_string();
        match error {
            BackendError::Retry { .. } => VolumeError::Retry(text),
            BackendError::NotFound { .. }
            | BackendError::Conflict { .. }
            | BackendError::Incomplete { .. }
            | BackendError::Lost { .. } => VolumeError::Damaged(text),
            BackendError::NoSpace { .. } => VolumeError::NoSpace(text),
        }
    }
}
