//! A backend that goes wrong as its owner says, call by call.
//!
//! The decision is a closure over the call's number, operation and object, so that a schedule or a seeded generator
//! replays exactly. Wrappers stack: a delayed bit flip is one around the other.

use crate::{Backend, BackendError, Capacity, ObjectInfo, ObjectName, Urgency};
use bytes::{Bytes, BytesMut};
use futures_util::future::LocalBoxFuture;
use std::{
    cell::{Cell, RefCell},
    fmt,
};

/// What is being asked of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// [`Backend::put`].
    Put,
    /// [`Backend::get`], [`Backend::get_lasting`] and [`Backend::get_range`].
    Get,
    /// [`Backend::list`].
    List,
    /// [`Backend::delete`].
    Delete,
    /// [`Backend::capacity`].
    Capacity,
}

impl Operation {
    /// As errors and metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Put => "put",
            Operation::Get => "get",
            Operation::List => "list",
            Operation::Delete => "delete",
            Operation::Capacity => "capacity",
        }
    }
}

/// One call, as the schedule sees it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Calls before this one.
    pub index: u64,
    /// What is asked.
    pub operation: Operation,
    /// Of which object or prefix; empty for [`Operation::Capacity`].
    pub object: &'a str,
}

/// What goes wrong with a call.
pub enum Fault {
    /// `Retry`, and nothing has happened.
    ErrorBefore,
    /// `Retry`, though the operation has taken effect.
    ErrorAfter,
    /// `NoSpace`, and nothing has happened.
    NoSpace,
    /// The call begins after this future.
    Delay(LocalBoxFuture<'static, ()>),
    /// The operation takes effect and its answer never comes.
    HangAfter,
    /// Neither effect nor answer, ever.
    HangBefore,
    /// A get comes back with this many bytes at most.
    ShortRead(usize),
    /// A get comes back with this bit turned over (counted from the first byte's lowest bit, modulo the length).
    BitFlip(usize),
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::ErrorBefore => "ErrorBefore",
            Fault::ErrorAfter => "ErrorAfter",
            Fault::NoSpace => "NoSpace",
            Fault::Delay(_) => "Delay",
            Fault::HangAfter => "HangAfter",
            Fault::HangBefore => "HangBefore",
            Fault::ShortRead(_) => "ShortRead",
            Fault::BitFlip(_) => "BitFlip",
        })
    }
}

type Schedule = Box<dyn FnMut(&Call<'_>) -> Option<Fault>>;

/// A backend with faults.
pub struct FaultyBackend<B> {
    inner: B,
    schedule: RefCell<Schedule>,
    calls: Cell<u64>,
}

impl<B> FaultyBackend<B> {
    /// Asks `schedule` before every call.
    pub fn new(inner: B, schedule: impl FnMut(&Call<'_>) -> Option<Fault> + 'static) -> FaultyBackend<B> {
        FaultyBackend { inner, schedule: RefCell::new(Box::new(schedule)), calls: Cell::new(0) }
    }

    /// Another schedule from now on; the count of calls goes on.
    pub fn set_schedule(&self, schedule: impl FnMut(&Call<'_>) -> Option<Fault> + 'static) {
        *self.schedule.borrow_mut() = Box::new(schedule);
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.get()
    }

    /// The backend behind the faults.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    fn decide(&self, operation: Operation, object: &str) -> Option<Fault> {
        let index = self.calls.get();
        self.calls.set(index + 1);
        (self.schedule.borrow_mut())(&Call { index, operation, object })
    }

    /// Runs `work` under the call's fault; only gets have bytes to spoil.
    async fn under_fault<T>(
        &self,
        operation: Operation,
        object: &str,
        work: impl Future<Output = Result<T, BackendError>>,
        spoil: impl FnOnce(T, &Fault) -> T,
    ) -> Result<T, BackendError> {
        let retry = |reason: &str| BackendError::Retry {
            operation: operation.as_str(),
            object: object.to_owned(),
            reason: format!("injected: {reason}"),
        };
        match self.decide(operation, object) {
            None => work.await,
            Some(Fault::ErrorBefore) => Err(retry("before")),
            Some(Fault::ErrorAfter) => {
                work.await?;
                Err(retry("after"))
            }
            Some(Fault::NoSpace) => Err(BackendError::NoSpace {
                operation: operation.as_str(),
                object: object.to_owned(),
                reason: "injected".to_owned(),
            }),
            Some(Fault::Delay(delay)) => {
                delay.await;
                work.await
            }
            Some(Fault::HangAfter) => {
                let _ = work.await;
                std::future::pending().await
            }
            Some(Fault::HangBefore) => std::future::pending().await,
            Some(fault @ (Fault::ShortRead(_) | Fault::BitFlip(_))) => {
                work.await.map(|answer| spoil(answer, &fault))
            }
        }
    }
}

fn spoil_bytes(bytes: Bytes, fault: &Fault) -> Bytes {
    match *fault {
        Fault::ShortRead(length) => bytes.slice(..bytes.len().min(length)),
        Fault::BitFlip(bit) if !bytes.is_empty() => {
            let mut bytes = BytesMut::from(&bytes[..]);
            let byte = bit / 8 % bytes.len();
            bytes[byte] ^= 1 << (bit % 8);
            bytes.freeze()
        }
        _ => bytes,
    }
}

impl<B: Backend> Backend for FaultyBackend<B> {
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let work = self.inner.put(&name, parts, urgency);
            self.under_fault(Operation::Put, name.as_str(), work, |(), _| ()).await
        })
    }

    fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let work = self.inner.get_range(&name, offset, length);
            self.under_fault(Operation::Get, name.as_str(), work, spoil_bytes).await
        })
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let work = self.inner.get(&name);
            self.under_fault(Operation::Get, name.as_str(), work, spoil_bytes).await
        })
    }

    fn get_stored(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let work = self.inner.get_stored(&name);
            self.under_fault(Operation::Get, name.as_str(), work, spoil_bytes).await
        })
    }

    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let work = self.inner.get_lasting(&name);
            self.under_fault(Operation::Get, name.as_str(), work, spoil_bytes).await
        })
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> LocalBoxFuture<'_, Result<Vec<ObjectInfo>, BackendError>> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        Box::pin(async move {
            let work = self.inner.list(&prefix, after.as_ref(), limit);
            self.under_fault(Operation::List, &prefix, work, |found, _| found).await
        })
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let work = self.inner.delete(&name);
            self.under_fault(Operation::Delete, name.as_str(), work, |(), _| ()).await
        })
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        Box::pin(self.under_fault(Operation::Capacity, "", self.inner.capacity(), |found, _| found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryBackend;
    use futures_util::FutureExt;
    use std::rc::Rc;

    fn name(text: &str) -> ObjectName {
        ObjectName::new(text).unwrap()
    }

    fn with(fault: fn() -> Fault) -> FaultyBackend<Rc<MemoryBackend>> {
        FaultyBackend::new(Rc::new(MemoryBackend::new()), move |call| (call.index == 0).then(fault))
    }

    /// What a put under the fault answers (`None`: nothing), and whether it took effect.
    fn check_put(fault: fn() -> Fault, answer: Option<Result<(), &str>>, took_effect: bool) {
        let backend = with(fault);
        let answered =
            backend.put(&name("a"), vec![Bytes::from_static(b"x")], Urgency::Normal).now_or_never();
        let kind = answered.map(|result| {
            result.map_err(|error| match error {
                BackendError::Retry { .. } => "retry",
                BackendError::NoSpace { .. } => "no space",
                _ => "other",
            })
        });
        assert_eq!(kind, answer);
        assert_eq!(!backend.inner().names().is_empty(), took_effect);
    }

    #[test]
    fn faults_of_a_put() {
        check_put(|| Fault::ErrorBefore, Some(Err("retry")), false);
        check_put(|| Fault::ErrorAfter, Some(Err("retry")), true);
        check_put(|| Fault::NoSpace, Some(Err("no space")), false);
        check_put(|| Fault::HangBefore, None, false);
        check_put(|| Fault::HangAfter, None, true);
        check_put(|| Fault::Delay(Box::pin(async {})), Some(Ok(())), true);
        check_put(|| Fault::Delay(Box::pin(std::future::pending())), None, false);
    }

    fn check_get(fault: fn() -> Fault, expected: &[u8]) {
        let backend = with(fault);
        backend.inner().damage(&name("a"), Some(Bytes::from_static(b"abc")));
        let got = backend.get_range(&name("a"), 0, 3).now_or_never().unwrap().unwrap();
        assert_eq!(&got[..], expected);
        assert_eq!(&backend.get(&name("a")).now_or_never().unwrap().unwrap()[..], b"abc", "one fault only");
    }

    #[test]
    fn faults_of_a_get() {
        check_get(|| Fault::ShortRead(1), b"a");
        check_get(|| Fault::ShortRead(9), b"abc");
        check_get(|| Fault::BitFlip(9), b"a`c");
        check_get(|| Fault::BitFlip(8 * 3), b"`bc");
    }
}
