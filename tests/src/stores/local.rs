//! The device of the write buffer, the registry, the map pages.

use super::{Call, Directable, Directed, Fault, Store, digest, digest_all, spoil};
use crate::MemoryDevice;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_volume::{
    Entry, LogDevice, MemoryPages, MemoryRegistry, PageId, PageStore, Registry, Revision, Transaction,
    VolumeError,
};
use std::io;

impl Directable for MemoryDevice {
    const STORE: Store = Store::Device;
    type Error = io::Error;
    fn injected(_: &Call, _: bool) -> io::Error {
        io::Error::other("injected")
    }
}

impl LogDevice for Directed<MemoryDevice> {
    fn slot_count(&self) -> usize {
        self.inner.slot_count()
    }

    fn slot_bytes(&self) -> u64 {
        self.inner.slot_bytes()
    }

    fn write(&self, slot: usize, offset: u64, parts: Vec<Bytes>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let given = digest_all(parts.iter().map(|part| &part[..]));
            let work = async |fault| {
                // Of a write that fails some blocks may be there.
                if fault == Some(Fault::ErrorAfter) {
                    self.inner.fail(1, 0);
                }
                let result = self.inner.write(slot, offset, parts).await;
                if fault == Some(Fault::ErrorAfter) { Ok(()) } else { result }
            };
            self.direct("write", format!("slot {slot} at {offset}"), given, work, |()| 0).await
        })
    }

    fn sync(&self, slot: usize) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let work = async |fault| {
                if fault == Some(Fault::ErrorAfter) {
                    self.inner.fail(0, 1);
                }
                let result = self.inner.sync(slot).await;
                if fault == Some(Fault::ErrorAfter) { Ok(()) } else { result }
            };
            self.direct("sync", format!("slot {slot}"), 0, work, |()| 0).await
        })
    }

    fn read(&self, slot: usize, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            let read = async |fault| {
                let found = self.inner.read(slot, offset, length).await?;
                Ok::<_, io::Error>(Bytes::from(spoil(&found, fault)))
            };
            let work = async |fault| self.read(fault, read).await;
            let object = format!("slot {slot} at {offset}");
            self.direct("read", object, length as u64, work, |bytes| digest(bytes)).await
        })
    }
}

fn volume_error(is_full: bool) -> VolumeError {
    let reason = "injected".to_owned();
    if is_full { VolumeError::NoSpace(reason) } else { VolumeError::Retry(reason) }
}

impl Directable for MemoryRegistry {
    const STORE: Store = Store::Registry;
    type Error = VolumeError;
    fn injected(_: &Call, is_full: bool) -> VolumeError {
        volume_error(is_full)
    }
}

impl Registry for Directed<MemoryRegistry> {
    fn get(&self, key: &str) -> LocalBoxFuture<'_, Result<Option<Entry>, VolumeError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let value = |entry: &Option<Entry>| entry.as_ref().map_or(0, |entry| digest(&entry.value));
            self.direct("get", &key, 0, async |_| self.inner.get(&key).await, value).await
        })
    }

    fn scan(&self, prefix: &str) -> LocalBoxFuture<'_, Result<Vec<Entry>, VolumeError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let values = |entries: &Vec<Entry>| digest_all(entries.iter().map(|entry| &entry.value[..]));
            self.direct("scan", &prefix, 0, async |_| self.inner.scan(&prefix).await, values).await
        })
    }

    fn commit(&self, transaction: Transaction) -> LocalBoxFuture<'_, Result<Option<Revision>, VolumeError>> {
        Box::pin(async move {
            let object = transaction.puts.first().map(|(key, _)| key.clone()).unwrap_or_default();
            let given = digest_all(transaction.puts.iter().map(|(_, value)| &value[..]));
            let revision = |revision: &Option<Revision>| revision.map_or(0, |revision| revision.0);
            self.change("commit", object, given, self.inner.commit(transaction), revision).await
        })
    }
}

impl Directable for MemoryPages {
    const STORE: Store = Store::Pages;
    type Error = VolumeError;
    fn injected(_: &Call, is_full: bool) -> VolumeError {
        volume_error(is_full)
    }
}

fn pages_digest(pages: &[(PageId, Bytes)]) -> u64 {
    digest_all(pages.iter().map(|(_, page)| &page[..]))
}

impl PageStore for Directed<MemoryPages> {
    fn load(&self, page: PageId) -> LocalBoxFuture<'_, Result<Option<Bytes>, VolumeError>> {
        Box::pin(async move {
            let read = async |fault| {
                let which = match fault {
                    Some(Fault::Swapped(which)) => self.inner.other(page, which).unwrap_or(page),
                    _ => page,
                };
                let found = self.inner.load(which).await?;
                Ok(found.map(|found| Bytes::from(spoil(&found, fault))))
            };
            let work = async |fault| self.read(fault, read).await;
            let found = |found: &Option<Bytes>| found.as_ref().map_or(0, |found| digest(found));
            self.direct("load", page.0.to_string(), 0, work, found).await
        })
    }

    fn store(&self, pages: Vec<(PageId, Bytes)>) -> LocalBoxFuture<'_, Result<(), VolumeError>> {
        Box::pin(async move {
            let given = pages_digest(&pages);
            self.change("store", "", given, self.inner.store(pages), |()| 0).await
        })
    }

    fn commit(
        &self,
        owner: &str,
        pages: Vec<(PageId, Bytes)>,
        record: Bytes,
    ) -> LocalBoxFuture<'_, Result<(), VolumeError>> {
        let owner = owner.to_owned();
        Box::pin(async move {
            let given = pages_digest(&pages) ^ digest(&record);
            self.change("commit", &owner, given, self.inner.commit(&owner, pages, record), |()| 0).await
        })
    }

    fn record(&self, owner: &str) -> LocalBoxFuture<'_, Result<Option<Bytes>, VolumeError>> {
        let owner = owner.to_owned();
        Box::pin(async move {
            let found = |found: &Option<Bytes>| found.as_ref().map_or(0, |found| digest(found));
            self.direct("record", &owner, 0, async |_| self.inner.record(&owner).await, found).await
        })
    }

    fn records(&self) -> LocalBoxFuture<'_, Result<Vec<(String, Bytes)>, VolumeError>> {
        Box::pin(async move {
            let found =
                |found: &Vec<(String, Bytes)>| digest_all(found.iter().map(|(_, record)| &record[..]));
            self.direct("records", "", 0, async |_| self.inner.records().await, found).await
        })
    }

    fn forget(&self, owner: &str) -> LocalBoxFuture<'_, Result<(), VolumeError>> {
        let owner = owner.to_owned();
        Box::pin(async move { self.change("forget", &owner, 0, self.inner.forget(&owner), |()| 0).await })
    }

    fn highest(&self) -> LocalBoxFuture<'_, Result<u64, VolumeError>> {
        Box::pin(self.direct("highest", "", 0, async |_| self.inner.highest().await, |highest| *highest))
    }

    fn sweep(
        &self,
        up_to: PageId,
        live: &dyn Fn(PageId) -> bool,
    ) -> LocalBoxFuture<'_, Result<u64, VolumeError>> {
        // The caller's closure does not outlive the call, so this one is not delayed.
        let call = Call { store: Store::Pages, operation: "sweep", object: up_to.0.to_string(), digest: 0 };
        if self.director.before(&call) == Some(Fault::ErrorBefore) {
            return Box::pin(async { Err(volume_error(false)) });
        }
        let removed = self.inner.sweep(up_to, live);
        self.director.changed();
        removed
    }
}
