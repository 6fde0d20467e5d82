//! A store of map pages in memory whose next sweep can be held.

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_volume::{MemoryPages, PageId, PageStore, VolumeError};
use std::cell::Cell;
use tokio::sync::oneshot;

type Answer<'a, T> = LocalBoxFuture<'a, Result<T, VolumeError>>;

#[derive(Default)]
pub struct Pages {
    pub memory: MemoryPages,
    /// Who asks for all records next waits for that.
    pub held: Cell<Option<oneshot::Receiver<()>>>,
}

impl PageStore for Pages {
    fn records(&self) -> Answer<'_, Vec<(String, Bytes)>> {
        let held = self.held.take();
        Box::pin(async move {
            if let Some(gate) = held {
                gate.await.ok();
            }
            self.memory.records().await
        })
    }

    fn load(&self, page: PageId) -> Answer<'_, Option<Bytes>> {
        self.memory.load(page)
    }

    fn store(&self, pages: Vec<(PageId, Bytes)>) -> Answer<'_, ()> {
        self.memory.store(pages)
    }

    fn commit(&self, owner: &str, pages: Vec<(PageId, Bytes)>, record: Bytes) -> Answer<'_, ()> {
        self.memory.commit(owner, pages, record)
    }

    fn record(&self, owner: &str) -> Answer<'_, Option<Bytes>> {
        self.memory.record(owner)
    }

    fn forget(&self, owner: &str) -> Answer<'_, ()> {
        self.memory.forget(owner)
    }

    fn highest(&self) -> Answer<'_, u64> {
        self.memory.highest()
    }

    fn sweep(&self, up_to: PageId, live: &dyn Fn(PageId) -> bool) -> Answer<'_, u64> {
        self.memory.sweep(up_to, live)
    }
}
