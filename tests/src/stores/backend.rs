//! The backend.

use super::{Call, Directable, Directed, Fault, Store, digest, digest_all, spoil};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_backend::{Backend, BackendError, Capacity, MemoryBackend, ObjectInfo, ObjectName, Urgency};

impl Directable for MemoryBackend {
    const STORE: Store = Store::Backend;
    type Error = BackendError;
    fn injected(call: &Call, is_full: bool) -> BackendError {
        let (operation, object, reason) = (call.operation, call.object.clone(), "injected".to_owned());
        match is_full {
            true => BackendError::NoSpace { operation, object, reason },
            false => BackendError::Retry { operation, object, reason },
        }
    }
}

/// The object itself, or another of those in its folder.
fn named(backend: &MemoryBackend, name: &ObjectName, fault: Option<Fault>) -> ObjectName {
    let Some(Fault::Swapped(which)) = fault else { return name.clone() };
    let folder = name.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
    let names = backend.names();
    let others: Vec<_> =
        names.into_iter().filter(|other| other.as_str().starts_with(folder) && other != name).collect();
    others.get(which % others.len().max(1)).unwrap_or(name).clone()
}

impl Backend for Directed<MemoryBackend> {
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let given = digest_all(parts.iter().map(|part| &part[..]));
            let work = self.inner.put(&name, parts, urgency);
            self.change("put", name.as_str(), given, work, |()| 0).await
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
            let read = async |fault| {
                let found = self.inner.get_range(&named(&self.inner, &name, fault), offset, length).await?;
                Ok(Bytes::from(spoil(&found, fault)))
            };
            let work = async |fault| self.read(fault, read).await;
            self.direct("get", name.as_str(), offset, work, |found| digest(found)).await
        })
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let read = async |fault| {
                let found = self.inner.get(&named(&self.inner, &name, fault)).await?;
                Ok(Bytes::from(spoil(&found, fault)))
            };
            let work = async |fault| self.read(fault, read).await;
            self.direct("get", name.as_str(), 0, work, |found| digest(found)).await
        })
    }

    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        self.get(name)
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
            self.direct("list", &prefix, limit as u64, work, |found| found.len() as u64).await
        })
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(
            async move { self.change("delete", name.as_str(), 0, self.inner.delete(&name), |()| 0).await },
        )
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        Box::pin(self.direct("capacity", "", 0, async |_| self.inner.capacity().await, |_| 0))
    }
}
