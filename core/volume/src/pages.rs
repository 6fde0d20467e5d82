//! Where checkpointed map pages live on this host (RocksDB, in `ovs-cluster`).
//!
//! Pages are immutable and have numbers that are never used again. A checkpoint names its root; it is committed
//! together with the pages it needs, in one synced step. All of it is a cache of what the backend's journal says.

use crate::VolumeError;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

/// The number of a stored page. 0 is never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u64);

/// Local storage for map pages and checkpoint records.
pub trait PageStore {
    /// The bytes of a page, `None` when it is not there (the caller rebuilds the map from the backend).
    fn load(&self, page: PageId) -> LocalBoxFuture<'_, Result<Option<Bytes>, VolumeError>>;

    /// Stores pages for a record that is committed soon; the next sweep may take them otherwise.
    fn store(&self, pages: Vec<(PageId, Bytes)>) -> LocalBoxFuture<'_, Result<(), VolumeError>>;

    /// Stores pages and then, synced and not before they are all stable, the record under `owner` (a vDisk's UUID).
    fn commit(
        &self,
        owner: &str,
        pages: Vec<(PageId, Bytes)>,
        record: Bytes,
    ) -> LocalBoxFuture<'_, Result<(), VolumeError>>;

    /// The record last committed under `owner`.
    fn record(&self, owner: &str) -> LocalBoxFuture<'_, Result<Option<Bytes>, VolumeError>>;

    /// All records, as (owner, record).
    fn records(&self) -> LocalBoxFuture<'_, Result<Vec<(String, Bytes)>, VolumeError>>;

    /// Forgets a record; its pages go with the next sweep.
    fn forget(&self, owner: &str) -> LocalBoxFuture<'_, Result<(), VolumeError>>;

    /// The highest page number ever stored (0 when none).
    fn highest(&self) -> LocalBoxFuture<'_, Result<u64, VolumeError>>;

    /// Removes every page whose number is at most `up_to` and for which `live` says no.
    fn sweep(
        &self,
        up_to: PageId,
        live: &dyn Fn(PageId) -> bool,
    ) -> LocalBoxFuture<'_, Result<u64, VolumeError>>;
}

/// A page store in memory, for tests and simulations.
#[derive(Debug, Clone, Default)]
pub struct MemoryPages {
    state: RefCell<(BTreeMap<PageId, Bytes>, BTreeMap<String, Bytes>)>,
    highest: Cell<u64>,
    room: Cell<Option<usize>>,
}

impl MemoryPages {
    /// From now on there is room for so many pages more, or for all again.
    pub fn limit(&self, room: Option<usize>) {
        self.room.set(room);
    }

    /// Every page, with its bytes.
    pub fn all(&self) -> Vec<(PageId, Bytes)> {
        self.state.borrow().0.iter().map(|(page, bytes)| (*page, bytes.clone())).collect()
    }

    /// Damage: other bytes in a page, or none at all.
    pub fn damage(&self, page: PageId, bytes: Option<Bytes>) {
        let (pages, _) = &mut *self.state.borrow_mut();
        match bytes {
            Some(bytes) => pages.insert(page, bytes),
            None => pages.remove(&page),
        };
    }

    /// Every owner's record, in the order of their names.
    pub fn all_records(&self) -> Vec<(String, Bytes)> {
        self.state.borrow().1.iter().map(|(owner, record)| (owner.clone(), record.clone())).collect()
    }

    /// Damage: another record of an owner, or none at all.
    pub fn damage_record(&self, owner: &str, record: Option<Bytes>) {
        let (_, records) = &mut *self.state.borrow_mut();
        match record {
            Some(record) => records.insert(owner.to_owned(), record),
            None => records.remove(owner),
        };
    }

    /// Another page than this one: a store that mistakes one for the other answers with it.
    pub fn other(&self, page: PageId, which: usize) -> Option<PageId> {
        let (pages, _) = &*self.state.borrow();
        let others = pages.keys().filter(|other| **other != page);
        others.cycle().nth(which % pages.len().max(1)).copied()
    }
}

impl PageStore for MemoryPages {
    fn load(&self, page: PageId) -> LocalBoxFuture<'_, Result<Option<Bytes>, VolumeError>> {
        Box::pin(async move { Ok(self.state.borrow().0.get(&page).cloned()) })
    }

    fn store(&self, pages: Vec<(PageId, Bytes)>) -> LocalBoxFuture<'_, Result<(), VolumeError>> {
        Box::pin(async move {
            if let Some(room) = self.room.get() {
                let left = room.checked_sub(pages.len());
                self.room
                    .set(Some(left.ok_or_else(|| VolumeError::NoSpace("no room for map pages".to_owned()))?));
            }
            self.highest.set(pages.iter().map(|(page, _)| page.0).max().unwrap_or(0).max(self.highest.get()));
            self.state.borrow_mut().0.extend(pages);
            Ok(())
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
            self.store(pages).await?;
            self.state.borrow_mut().1.insert(owner, record);
            Ok(())
        })
    }

    fn record(&self, owner: &str) -> LocalBoxFuture<'_, Result<Option<Bytes>, VolumeError>> {
        let owner = owner.to_owned();
        Box::pin(async move { Ok(self.state.borrow().1.get(&owner).cloned()) })
    }

    fn records(&self) -> LocalBoxFuture<'_, Result<Vec<(String, Bytes)>, VolumeError>> {
        Box::pin(async move { Ok(self.all_records()) })
    }

    fn forget(&self, owner: &str) -> LocalBoxFuture<'_, Result<(), VolumeError>> {
        let owner = owner.to_owned();
        Box::pin(async move {
            self.state.borrow_mut().1.remove(&owner);
            Ok(())
        })
    }

    fn highest(&self) -> LocalBoxFuture<'_, Result<u64, VolumeError>> {
        Box::pin(async move { Ok(self.highest.get()) })
    }

    fn sweep(
        &self,
        up_to: PageId,
        live: &dyn Fn(PageId) -> bool,
    ) -> LocalBoxFuture<'_, Result<u64, VolumeError>> {
        let (pages, _) = &mut *self.state.borrow_mut();
        let before = pages.len();
        pages.retain(|page, _| *page > up_to || live(*page));
        let removed = (before - pages.len()) as u64;
        Box::pin(async move { Ok(removed) })
    }
}
