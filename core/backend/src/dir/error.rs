//! What the operating system said, as what the caller does next.

use crate::BackendError;
use rustix::io::Errno;
use std::{
    io,
    path::{Path, PathBuf},
};

/// A step on a file that failed.
#[derive(Debug)]
pub(super) struct Failure {
    step: &'static str,
    path: PathBuf,
    error: io::Error,
}

impl Failure {
    /// For `map_err`: which step failed, and on what.
    pub(super) fn at<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Failure + 'a {
        move |error| Failure { step, path: path.to_owned(), error }
    }

    fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.error)
    }

    /// The device or a quota is full.
    pub(super) fn is_no_space(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOSPC | Errno::DQUOT))
    }

    /// Nothing of that name is there, or can be.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOENT | Errno::NOTDIR))
    }

    /// Everything but a full device may clear by itself (a read-only mount, a cable, a permission): the vDisk stalls
    /// and goes on when it has. The path is in the text, since that is what the operator must look at.
    pub(super) fn of(self, operation: &'static str, object: &str) -> BackendError {
        let no_space = self.is_no_space();
        let reason = format!("cannot {} {}: {}", self.step, self.path.display(), self.error);
        let object = object.to_owned();
        if no_space {
            BackendError::NoSpace { operation, object, reason }
        } else {
            BackendError::Retry { operation, object, reason }
        }
    }
}

/// The error names a folder where an object was asked for, or an object where a folder would have to be: whatever the
/// name is, it is no object here.
pub(super) fn is_no_object(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR | Errno::NAMETOOLONG)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(errno: Errno, no_space: bool) {
        let failure = Failure::at("write", Path::new("/pool/x"))(errno.into());
        let error = failure.of("put", "x");
        assert_eq!(matches!(error, BackendError::NoSpace { .. }), no_space, "{error}");
        assert_eq!(matches!(error, BackendError::Retry { .. }), !no_space, "{error}");
        assert!(error.to_string().contains("/pool/x"), "{error}");
    }

    #[test]
    fn only_a_full_device_is_no_space() {
        check(Errno::NOSPC, true);
        check(Errno::DQUOT, true);
        for errno in [Errno::ROFS, Errno::IO, Errno::ACCESS, Errno::PERM, Errno::STALE, Errno::MFILE] {
            check(errno, false);
        }
    }
}
