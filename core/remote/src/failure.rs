//! What an attempt may come back with, by what is done next. One table for statuses, one for OpenDAL's errors.

use crate::http::HttpError;
use bytes::Bytes;
use opendal::ErrorKind;
use ovs_backend::BackendError;
use std::error::Error as _;

/// Why an attempt did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No such object; or no such bucket, which not every store tells apart.
    Absent,
    /// Said to be absent, perhaps not by the store.
    Unmarked,
    /// It was put, and the store does not say that it has these bytes.
    Unconfirmed,
    /// The object ends before the range does; its bytes up to there.
    Ended(Bytes),
    /// It exists, and was to be made.
    Exists,
    /// OpenDAL has no such request for this store.
    Unsupported,
    /// It exists with other bytes.
    Conflict,
    /// The token is not taken any more.
    Expired(String),
    /// No space, or no quota.
    Full(String),
    /// It may do better in a moment.
    Busy(String),
    /// It will not do better by itself.
    Refused(String),
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Failure {
        let text = error.to_string();
        let code = match error {
            HttpError::Status { code, .. } => code,
            HttpError::Ended(bytes) => return Failure::Ended(bytes),
            HttpError::Unmarked => return Failure::Unmarked,
            HttpError::Unconfirmed => return Failure::Unconfirmed,
            HttpError::Connection(_) | HttpError::Stalled | HttpError::Wrong(_) => {
                return Failure::Busy(text);
            }
        };
        match code {
            401 => Failure::Expired(text),
            507 => Failure::Full(text),
            // Ceph: QuotaExceeded; Swift: "Upload exceeds quota."
            403 | 413 if text.to_ascii_lowercase().contains("quota") => Failure::Full(text),
            // The bytes came to it changed: S3 says the first, Swift the second.
            400 if text.contains("BadDigest") => Failure::Busy(text),
            408 | 422 | 425 | 429 | 500 | 502..=504 => Failure::Busy(text),
            _ => Failure::Refused(text),
        }
    }
}

impl From<opendal::Error> for Failure {
    fn from(error: opendal::Error) -> Failure {
        if let Some(error) = error.source().and_then(|source| source.downcast_ref::<HttpError>()) {
            return error.clone().into();
        }
        // Its message, and not its context, which has headers.
        let text = format!("{}: {}", error.kind(), error.message());
        match error.kind() {
            ErrorKind::NotFound => Failure::Absent,
            ErrorKind::RangeNotSatisfied => Failure::Ended(Bytes::new()),
            ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists => Failure::Exists,
            ErrorKind::Unsupported => Failure::Unsupported,
            ErrorKind::RateLimited => Failure::Busy(text),
            _ if error.is_temporary() => Failure::Busy(text),
            _ => Failure::Refused(text),
        }
    }
}

impl Failure {
    /// Its text, if it has one, as `change` makes it.
    pub(crate) fn with_text(self, change: impl FnOnce(&str) -> String) -> Failure {
        match self {
            Failure::Expired(text) => Failure::Expired(change(&text)),
            Failure::Full(text) => Failure::Full(change(&text)),
            Failure::Busy(text) => Failure::Busy(change(&text)),
            Failure::Refused(text) => Failure::Refused(change(&text)),
            failure => failure,
        }
    }

    /// As the one who asked for it sees it. `reason` comes with the address.
    pub(crate) fn into_backend_error(
        self,
        operation: &'static str,
        object: &str,
        address: &str,
    ) -> BackendError {
        let object = object.to_owned();
        let retry = |object, reason: &str| BackendError::Retry {
            operation,
            object,
            reason: format!("{address}: {reason}"),
        };
        match self {
            Failure::Absent if operation == "get" => BackendError::NotFound { object },
            Failure::Absent => retry(object, "no such bucket or container"),
            Failure::Conflict => BackendError::Conflict { object },
            Failure::Full(reason) => {
                BackendError::NoSpace { operation, object, reason: format!("{address}: {reason}") }
            }
            Failure::Unmarked => retry(object, "HTTP 404, without a mark of the store"),
            Failure::Unconfirmed => retry(object, "it is not said that what was sent is stored"),
            Failure::Exists => retry(object, "it exists, and did not a moment before"),
            Failure::Unsupported => retry(object, "no such request"),
            Failure::Ended(_) => retry(object, "no such range"),
            Failure::Expired(reason) | Failure::Busy(reason) | Failure::Refused(reason) => {
                retry(object, &reason)
            }
        }
    }
}
