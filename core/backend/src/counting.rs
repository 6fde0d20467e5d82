//! What goes over a backend, counted: for metrics and for tests that bound it.

use crate::{Backend, BackendError, Capacity, ObjectInfo, ObjectName, Operation, Urgency};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use std::cell::RefCell;

/// Counts of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OperationCounts {
    /// Calls that came back.
    pub calls: u64,
    /// Of these, with an error.
    pub errors: u64,
    /// Bytes of objects that were put or read.
    pub bytes: u64,
}

/// Counts of all operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// [`Backend::put`].
    pub put: OperationCounts,
    /// [`Backend::get`], [`Backend::get_lasting`] and [`Backend::get_range`].
    pub get: OperationCounts,
    /// [`Backend::list`].
    pub list: OperationCounts,
    /// [`Backend::delete`].
    pub delete: OperationCounts,
    /// [`Backend::capacity`].
    pub capacity: OperationCounts,
}

/// A backend that counts.
#[derive(Debug)]
pub struct CountingBackend<B> {
    inner: B,
    counts: RefCell<Counts>,
}

impl<B> CountingBackend<B> {
    /// Counts from 0.
    pub fn new(inner: B) -> CountingBackend<B> {
        CountingBackend { inner, counts: RefCell::default() }
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// The backend that is counted.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    fn count<T>(
        &self,
        operation: Operation,
        result: Result<T, BackendError>,
        bytes: impl FnOnce(&T) -> u64,
    ) -> Result<T, BackendError> {
        let mut counts = self.counts.borrow_mut();
        let counts = match operation {
            Operation::Put => &mut counts.put,
            Operation::Get => &mut counts.get,
            Operation::List => &mut counts.list,
            Operation::Delete => &mut counts.delete,
            Operation::Capacity => &mut counts.capacity,
        };
        counts.calls += 1;
        match &result {
            Ok(answer) => counts.bytes += bytes(answer),
            Err(_) => counts.errors += 1,
        }
        result
    }
}

impl<B: Backend> Backend for CountingBackend<B> {
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let bytes = parts.iter().map(|part| part.len() as u64).sum();
            self.count(Operation::Put, self.inner.put(&name, parts, urgency).await, |()| bytes)
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
            let result = self.inner.get_range(&name, offset, length).await;
            self.count(Operation::Get, result, |bytes| bytes.len() as u64)
        })
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            self.count(Operation::Get, self.inner.get(&name).await, |bytes| bytes.len() as u64)
        })
    }

    fn get_stored(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            self.count(Operation::Get, self.inner.get_stored(&name).await, |bytes| bytes.len() as u64)
        })
    }

    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            self.count(Operation::Get, self.inner.get_lasting(&name).await, |bytes| bytes.len() as u64)
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
            self.count(Operation::List, self.inner.list(&prefix, after.as_ref(), limit).await, |_| 0)
        })
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move { self.count(Operation::Delete, self.inner.delete(&name).await, |()| 0) })
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        Box::pin(async move { self.count(Operation::Capacity, self.inner.capacity().await, |_| 0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryBackend;
    use futures_util::FutureExt;

    #[test]
    fn calls_errors_and_bytes() {
        let backend = CountingBackend::new(MemoryBackend::new());
        let name = |text| ObjectName::new(text).unwrap();
        let parts = vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")];
        backend.put(&name("a"), parts, Urgency::Normal).now_or_never().unwrap().unwrap();
        backend.get_range(&name("a"), 1, 9).now_or_never().unwrap().unwrap();
        backend.get(&name("b")).now_or_never().unwrap().unwrap_err();
        let counts = backend.counts();
        assert_eq!(counts.put, OperationCounts { calls: 1, errors: 0, bytes: 3 });
        assert_eq!(counts.get, OperationCounts { calls: 2, errors: 1, bytes: 2 });
        assert_eq!(counts.list, OperationCounts::default());
    }
}
