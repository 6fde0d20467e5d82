//! What a request may come back with, and the one place where that becomes an NBD error number.

use thiserror::Error;

/// Why a request failed. The text goes to the client (when it negotiated structured replies) and to the log.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NbdError {
    /// The device failed or is damaged.
    #[error("{0}")]
    Io(String),
    /// No space is left, or a write lies past the end.
    #[error("{0}")]
    NoSpace(String),
    /// The device may not be written.
    #[error("{0}")]
    NotPermitted(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A fast zero that would not be fast.
    #[error("{0}")]
    NotSupported(String),
    /// The reply would be too large for what the client asked for.
    #[error("{0}")]
    Overflow(String),
    /// The device or the server is being shut down. Our client, if it has a session, takes it for a disconnect: it
    /// connects again and sends the request again. What will not be cured so is an `Io`.
    #[error("{0}")]
    Shutdown(String),
}

impl NbdError {
    /// The number on the wire (proto.md, "Error values").
    pub fn errno(&self) -> u32 {
        match self {
            NbdError::NotPermitted(_) => 1,
            NbdError::Io(_) => 5,
            NbdError::Invalid(_) => 22,
            NbdError::NoSpace(_) => 28,
            NbdError::Overflow(_) => 75,
            NbdError::NotSupported(_) => 95,
            NbdError::Shutdown(_) => 108,
        }
    }

    /// The error that a number on the wire stands for; numbers that are not in the list are `Invalid` (proto.md,
    /// "Error values": a client should treat an unknown one as `NBD_EINVAL`).
    pub fn from_errno(errno: u32, text: String) -> NbdError {
        match errno {
            1 => NbdError::NotPermitted(text),
            // NBD_ENOMEM: the caller of a disk can do with it what it does with an I/O error.
            5 | 12 => NbdError::Io(text),
            28 => NbdError::NoSpace(text),
            75 => NbdError::Overflow(text),
            95 => NbdError::NotSupported(text),
            108 => NbdError::Shutdown(text),
            _ => NbdError::Invalid(text),
        }
    }

    /// The text alone.
    pub fn text(&self) -> &str {
        match self {
            NbdError::Io(text)
            | NbdError::NoSpace(text)
            | NbdError::NotPermitted(text)
            | NbdError::Invalid(text)
            | NbdError::NotSupported(text)
            | NbdError::Overflow(text)
            | NbdError::Shutdown(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for errno in [1, 5, 22, 28, 75, 95, 108] {
            assert_eq!(NbdError::from_errno(errno, "x".into()).errno(), errno);
        }
        assert_eq!(NbdError::from_errno(12, String::new()).errno(), 5);
        assert_eq!(NbdError::from_errno(0xdead, String::new()).errno(), 22);
    }
}
