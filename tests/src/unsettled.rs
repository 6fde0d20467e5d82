//! Stores that let other tasks run before an operation takes effect and before it answers, so that a death falls on
//! either side and operations overlap as they do on real ones.

use crate::{
    Random,
    stores::{Fault, MemoryCache},
};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_volume::{
    CacheDevice, Entry, MemoryPages, MemoryRegistry, PageId, PageStore, Registry, Revision, Transaction,
    VolumeError,
};
use std::{io, rc::Rc};

/// Turns that other tasks get at most.
const TURNS_MAX: u64 = 4;

/// A registry that takes its time.
pub struct UnsettledRegistry {
    /// What it holds.
    pub inner: Rc<MemoryRegistry>,
    /// How long it takes.
    pub random: Rc<Random>,
}

impl Registry for UnsettledRegistry {
    fn get(&self, key: &str) -> LocalBoxFuture<'_, Result<Option<Entry>, VolumeError>> {
        let work = self.inner.get(key);
        Box::pin(slowly(&self.random, work))
    }

    fn scan(&self, prefix: &str) -> LocalBoxFuture<'_, Result<Vec<Entry>, VolumeError>> {
        let work = self.inner.scan(prefix);
        Box::pin(slowly(&self.random, work))
    }

    fn commit(&self, transaction: Transaction) -> LocalBoxFuture<'_, Result<Option<Revision>, VolumeError>> {
        let work = self.inner.commit(transaction);
        Box::pin(slowly(&self.random, work))
    }
}

/// A page store that takes its time.
pub struct UnsettledPages {
    /// What it holds.
    pub inner: Rc<MemoryPages>,
    /// How long it takes.
    pub random: Rc<Random>,
}

impl PageStore for UnsettledPages {
    fn load(&self, page: PageId) -> LocalBoxFuture<'_, Result<Option<Bytes>, VolumeError>> {
        let work = self.inner.load(page);
        Box::pin(slowly(&self.random, work))
    }

    fn store(&self, pages: Vec<(PageId, Bytes)>) -> LocalBoxFuture<'_, Result<(), VolumeError>> {
        let work = self.inner.store(pages);
        Box::pin(slowly(&self.random, work))
    }

    fn commit(
        &self,
        owner: &str,
        pages: Vec<(PageId, Bytes)>,
        record: Bytes,
    ) -> LocalBoxFuture<'_, Result<(), VolumeError>> {
        let work = self.inner.commit(owner, pages, record);
        Box::pin(slowly(&self.random, work))
    }

    fn record(&self, owner: &str) -> LocalBoxFuture<'_, Result<Option<Bytes>, VolumeError>> {
        let work = self.inner.record(owner);
        Box::pin(slowly(&self.random, work))
    }

    fn records(&self) -> LocalBoxFuture<'_, Result<Vec<(String, Bytes)>, VolumeError>> {
        let work = self.inner.records();
        Box::pin(slowly(&self.random, work))
    }

    fn forget(&self, owner: &str) -> LocalBoxFuture<'_, Result<(), VolumeError>> {
        let work = self.inner.forget(owner);
        Box::pin(slowly(&self.random, work))
    }

    fn highest(&self) -> LocalBoxFuture<'_, Result<u64, VolumeError>> {
        let work = self.inner.highest();
        Box::pin(slowly(&self.random, work))
    }

    fn sweep(
        &self,
        up_to: PageId,
        live: &dyn Fn(PageId) -> bool,
    ) -> LocalBoxFuture<'_, Result<u64, VolumeError>> {
        let work = self.inner.sweep(up_to, live);
        Box::pin(slowly(&self.random, work))
    }
}

async fn slowly<T>(random: &Random, work: impl Future<Output = T>) -> T {
    random.dawdle(TURNS_MAX).await;
    let answer = work.await;
    random.dawdle(TURNS_MAX).await;
    answer
}

/// The SSD of a read cache that takes its time, and now and then lies, or fails.
pub struct UnsettledCache {
    /// What it holds.
    pub inner: Rc<MemoryCache>,
    /// How long it takes, and when it lies.
    pub random: Rc<Random>,
}

impl UnsettledCache {
    async fn slowly(&self) -> io::Result<()> {
        self.random.dawdle(TURNS_MAX).await;
        if self.random.one_in(500) { Err(io::Error::other("injected")) } else { Ok(()) }
    }
}

impl CacheDevice for UnsettledCache {
    fn slot_count(&self) -> u32 {
        self.inner.slot_count()
    }

    fn read(&self, slots: Vec<u32>) -> LocalBoxFuture<'_, io::Result<Vec<Bytes>>> {
        Box::pin(async move {
            self.slowly().await?;
            let number = self.random.below(1 << 20) as usize;
            let lie = match self.random.below(24) {
                0 => Some(Fault::ShortRead(number)),
                1 => Some(Fault::BitFlip(number)),
                2 => Some(Fault::Swapped(number)),
                _ => None,
            };
            Ok(self.inner.read_with(&slots, lie))
        })
    }

    fn write(&self, blocks: Vec<(u32, Bytes)>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.slowly().await?;
            self.inner.write(blocks).await
        })
    }
}
