//! Where objects live: one small trait, and the directory backend.
//!
//! Objects are written once under a name that is never used again, read in ranges, listed, deleted. Faults, latency,
//! retries and metrics are wrappers of the same trait. Not here: what the objects mean (see `ovs-format`), and any
//! promise that rests on a conditional put: names are unique by construction.

pub mod coded;
mod counting;
mod dir;
mod faulty;
mod memory;
mod name;
mod sync;

#[cfg(any(test, feature = "testing"))]
pub mod conformance;

pub use counting::{CountingBackend, Counts, OperationCounts};
pub use dir::{DirBackend, DirOptions};
pub use faulty::{Call, Fault, FaultyBackend, Operation};
pub use memory::MemoryBackend;
pub use name::{ObjectName, ObjectNameError};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use std::rc::Rc;
use thiserror::Error;

/// What an operation on the backend may come back with, by what the caller does next.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BackendError {
    /// Transient or unknown: the operation may or may not have taken effect. Try again, with the same bytes.
    #[error("backend does not answer ({operation} of {object}): {reason}")]
    Retry {
        /// What was asked for: `put`, `get`, `list`, `delete`, `capacity`, `open`.
        operation: &'static str,
        /// Of which object (or prefix); empty for the whole backend.
        object: String,
        /// What the store said, with the path or address.
        reason: String,
    },
    /// No object of that name.
    #[error("no object {object}")]
    NotFound {
        /// The name.
        object: String,
    },
    /// The name holds other bytes than those given: never overwritten.
    #[error("object {object} exists with other contents")]
    Conflict {
        /// The name.
        object: String,
    },
    /// Of its parts so few are there that no put of it can have been acknowledged: one that never ended, or a delete that did
    /// not. It counts as absent, but the name is used, or may be.
    #[error("object {object} is not complete: {reason}")]
    Incomplete {
        /// The name.
        object: String,
        /// What is there and what is needed.
        reason: String,
        /// Part of the backend does not answer: when it does again, there may be more of it.
        is_silent: bool,
    },
    /// It may have been acknowledged, and cannot be read any more: more is lost or wrong than parity makes good.
    #[error("object {object} is lost: {reason}")]
    Lost {
        /// The name.
        object: String,
        /// What is there and what is needed.
        reason: String,
    },
    /// The device is full (or down to the reserve that is kept for `Urgency::Reserve`).
    #[error("backend is full ({operation} of {object}): {reason}")]
    NoSpace {
        /// What was asked for.
        operation: &'static str,
        /// Of which object.
        object: String,
        /// What the store said, with the path or address.
        reason: String,
    },
}

/// May a put use the space that is kept so that a full system can be emptied?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Guest data: refused while only the reserve is left.
    Normal,
    /// Deletes, commits, scrub: may use the reserve.
    Reserve,
}

/// Space of a backend in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// All of it.
    pub total_bytes: u64,
    /// What guest data may still use.
    pub free_bytes: u64,
}

/// One object found by a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub name: ObjectName,
    /// Its length in bytes.
    pub length_bytes: u64,
}

/// A store of write-once objects. Futures are local: a backend belongs to one engine thread.
///
/// A name is used for one object, ever: also one whose put failed, or that was deleted. A put that came back with `Retry`, or that
/// died with its process, may land at any later time, after a delete too. So what lands late is never taken for anything else,
/// and is garbage if nobody asks for that name any more.
pub trait Backend {
    /// Stores an object that does not exist yet, atomically and durably: when this returns `Ok`, the object survives
    /// power loss and can be read and listed by name. The same bytes under an existing name: `Ok` (a retry).
    /// Other bytes: `Conflict`. The parts are concatenated.
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>>;

    /// `length` bytes from `offset`; fewer only when the object ends before. For an object that is known to be there: one
    /// that was read before may be answered for though another host has deleted it. [`Backend::get`] finds out.
    fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> LocalBoxFuture<'_, Result<Bytes, BackendError>>;

    /// The whole object. After a crash it may be one whose put was never acknowledged, and may be gone at the next failure.
    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>>;

    /// The whole object as it is where it is stored, and not out of memory: for whoever wants to know whether that has changed. Where
    /// there is no such difference, or it cannot be had, as `get`.
    fn get_stored(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        self.get(name)
    }

    /// The whole object, which is from now on as safe as one whose put was acknowledged: for whoever lets anything rest on what
    /// a put that he knows nothing of has left. `NotFound` lasts, too: where a part of the backend is silent that may have something
    /// of it, or where a put that nobody waits for any more may land yet, that is `Incomplete`.
    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>>;

    /// Objects of which any part is there, also those that are `Incomplete`, whose names start with `prefix` and come after `after`, in byte order of their names, at most `limit`.
    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> LocalBoxFuture<'_, Result<Vec<ObjectInfo>, BackendError>>;

    /// Removes an object; gone already is `Ok`. What this process still puts under the name is waited for, so that it does not
    /// land afterwards.
    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>>;

    /// Space; `None` where the store has no such notion.
    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>>;
}

/// A shared backend is a backend, so that wrappers go around either.
impl<B: Backend + ?Sized> Backend for Rc<B> {
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        (**self).put(name, parts, urgency)
    }

    fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        (**self).get_range(name, offset, length)
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        (**self).get(name)
    }

    fn get_stored(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        (**self).get_stored(name)
    }

    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        (**self).get_lasting(name)
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> LocalBoxFuture<'_, Result<Vec<ObjectInfo>, BackendError>> {
        (**self).list(prefix, after, limit)
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        (**self).delete(name)
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        (**self).capacity()
    }
}
