//! Every error that the kernel gets from us is chosen here.

use fuser::Errno;
use ovs_api::{Problem, ProblemKind};
use ovs_nbd::{ClientError, NbdError};

/// What a refused RPC means to a program that called open(2), rename(2), truncate(2) …
pub fn of_problem(problem: &Problem) -> Errno {
    match problem.kind() {
        ProblemKind::Invalid | ProblemKind::TooLarge => Errno::EINVAL,
        ProblemKind::NotFound | ProblemKind::Gone => Errno::ENOENT,
        ProblemKind::Exists => Errno::EEXIST,
        ProblemKind::InUse | ProblemKind::Conflict => Errno::EBUSY,
        ProblemKind::Unauthorized => Errno::EACCES,
        ProblemKind::Protected => Errno::EPERM,
        ProblemKind::NoSpace => Errno::ENOSPC,
        ProblemKind::NotImplemented => Errno::EOPNOTSUPP,
        ProblemKind::PreconditionFailed => Errno::EAGAIN,
        ProblemKind::Unavailable | ProblemKind::Offline | ProblemKind::Damaged | ProblemKind::Internal => {
            Errno::EIO
        }
    }
}

/// What a failed NBD request means to a program that called read(2), write(2), fsync(2) …
pub fn of_client(error: &ClientError) -> Errno {
    match error {
        ClientError::Request(NbdError::NoSpace(_)) => Errno::ENOSPC,
        ClientError::Request(NbdError::NotPermitted(_)) => Errno::EPERM,
        ClientError::Request(NbdError::NotSupported(_)) => Errno::EOPNOTSUPP,
        ClientError::Request(_)
        | ClientError::Disconnected(_)
        | ClientError::Refused(_)
        | ClientError::Closed => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_the_number_they_know() {
        for (kind, errno) in [
            (ProblemKind::NotFound, Errno::ENOENT),
            (ProblemKind::Exists, Errno::EEXIST),
            (ProblemKind::InUse, Errno::EBUSY),
            (ProblemKind::NoSpace, Errno::ENOSPC),
            (ProblemKind::Damaged, Errno::EIO),
        ] {
            assert_eq!(of_problem(&Problem::new(kind, "x")), errno, "{kind:?}");
        }
        assert_eq!(of_client(&ClientError::Request(NbdError::NoSpace("full".into()))), Errno::ENOSPC);
        assert_eq!(of_client(&ClientError::Refused("fenced".into())), Errno::EIO);
    }
}
