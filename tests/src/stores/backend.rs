//! The backend.

use super::{Call, Director, Fault, Store, digest, digest_all, directed, spoil};
use crate::Random;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_backend::{Backend, BackendError, Capacity, MemoryBackend, ObjectInfo, ObjectName, Urgency};
use std::rc::Rc;

/// Objects behind a director.
pub struct DirectedBackend {
    /// What it holds.
    pub inner: Rc<MemoryBackend>,
    /// Who decides.
    pub director: Rc<dyn Director>,
    /// How long it takes.
    pub random: Rc<Random>,
}

impl DirectedBackend {
    async fn direct<T>(
        &self,
        operation: &'static str,
        object: String,
        given: u64,
        work: impl AsyncFnOnce(Option<Fault>) -> Result<T, BackendError>,
        digest_of: impl Fn(&T) -> u64,
    ) -> Result<T, BackendError> {
        let call = Call { store: Store::Backend, operation, object, digest: given };
        let error = |is_full| {
            let (object, reason) = (call.object.clone(), "injected".to_owned());
            match is_full {
                true => BackendError::NoSpace { operation, object, reason },
                false => BackendError::Retry { operation, object, reason },
            }
        };
        directed(&*self.director, &self.random, &call, error, work, digest_of).await
    }

    /// The object itself, or another of those in its folder.
    fn named(&self, name: &ObjectName, fault: Option<Fault>) -> ObjectName {
        let Some(Fault::Swapped(which)) = fault else { return name.clone() };
        let folder = name.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
        let names = self.inner.names();
        let others: Vec<_> =
            names.into_iter().filter(|other| other.as_str().starts_with(folder) && other != name).collect();
        others.get(which % others.len().max(1)).unwrap_or(name).clone()
    }
}

impl Backend for DirectedBackend {
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let given = digest_all(parts.iter().map(|part| &part[..]));
            let work = async |_| {
                let answer = self.inner.put(&name, parts, urgency).await;
                self.director.changed();
                answer
            };
            self.direct("put", name.to_string(), given, work, |()| 0).await
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
            let work = async |fault| {
                let found = self.inner.get_range(&self.named(&name, fault), offset, length).await?;
                Ok(Bytes::from(spoil(&found, fault)))
            };
            self.direct("get", name.to_string(), offset, work, |found| digest(found)).await
        })
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let work = async |fault| {
                let found = self.inner.get(&self.named(&name, fault)).await?;
                Ok(Bytes::from(spoil(&found, fault)))
            };
            self.direct("get", name.to_string(), 0, work, |found| digest(found)).await
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
            let work = async |_| self.inner.list(&prefix, after.as_ref(), limit).await;
            self.direct("list", prefix.clone(), limit as u64, work, |found| found.len() as u64).await
        })
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let work = async |_| {
                let answer = self.inner.delete(&name).await;
                self.director.changed();
                answer
            };
            self.direct("delete", name.to_string(), 0, work, |()| 0).await
        })
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        Box::pin(async move {
            let work = async |_| self.inner.capacity().await;
            self.direct("capacity", String::new(), 0, work, |_| 0).await
        })
    }
}
