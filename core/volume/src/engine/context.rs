//! What all vDisks of an engine share.

use super::{EngineConfig, EngineParts};
use crate::cache::Cache;
use crate::log::Log;
use crate::map::MapMemory;
use crate::readers::Readers;
use crate::sco::ScoHeaders;
use crate::vdisk;
use crate::{Chance, Clock, PageStore, Registry, Revision, Transaction, Vdisk, VolumeError};
use ovs_units::VdiskId;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::sync::{Notify, Semaphore};

/// A checkpoint that could not be stored is tried again after so long.
const CHECKPOINT_AGAIN_AFTER: Duration = Duration::from_secs(1);

pub(crate) struct Context {
    pub(crate) config: EngineConfig,
    pub(crate) clock: Rc<dyn Clock>,
    pub(crate) chance: Rc<dyn Chance>,
    pub(crate) registry: Rc<dyn Registry>,
    pub(crate) pages: Rc<dyn PageStore>,
    pub(crate) map_memory: Rc<MapMemory>,
    /// Changed pages take too much of it.
    pub(crate) maps_are_short: Rc<Notify>,
    /// Whoever may load a page that no checkpoint names any more.
    pub(crate) page_readers: Readers,
    pub(crate) log: Log,
    pub(crate) sco_headers: ScoHeaders,
    pub(crate) cache: Option<Rc<Cache>>,
    /// The number of the next map page; never used twice.
    pub(crate) next_page: Cell<u64>,
    /// Held while a checkpoint is stored.
    pub(crate) checkpoint_turn: tokio::sync::Mutex<()>,
    /// When a checkpoint could not be stored; until one could, and there is room again.
    checkpoint_failed_at: Cell<Option<Duration>>,
    /// Such a one may have stored pages that no record names.
    pub(super) has_stray_pages: Cell<bool>,
    /// A page of a map could not be read: the checkpoints on this host are of no use, and none is made from them.
    pub(crate) pages_are_damaged: Cell<bool>,
    pub(super) pages_found_damaged: Rc<Notify>,
    /// Whose map that was, and what was wrong first.
    unreadable_maps: RefCell<BTreeMap<VdiskId, String>>,
    /// Up to which page the last sweep went, and how many it left.
    pub(super) swept: Cell<(u64, u64)>,
    pub(crate) destage_turns: Semaphore,
    /// When data last left the write buffer.
    pub(crate) destage_moved_at: Cell<Duration>,
    open: RefCell<Vec<Weak<vdisk::Inner>>>,
}

impl Context {
    pub(super) fn new(config: EngineConfig, parts: EngineParts, log: Log, next_page: u64) -> Context {
        let EngineParts { clock, chance, registry, pages, cache, .. } = parts;
        let cache = cache.map(|parts| Cache::new(parts, chance.clone()));
        let map_memory = MapMemory::new(config.map_bytes);
        let destage_turns = Semaphore::new(config.destage_concurrency.max(1));
        Context {
            config,
            clock,
            chance,
            registry,
            pages,
            map_memory,
            maps_are_short: Rc::default(),
            page_readers: Readers::default(),
            log,
            sco_headers: ScoHeaders::default(),
            cache,
            next_page: Cell::new(next_page),
            checkpoint_turn: tokio::sync::Mutex::new(()),
            checkpoint_failed_at: Cell::new(None),
            has_stray_pages: Cell::new(false),
            pages_are_damaged: Cell::new(false),
            pages_found_damaged: Rc::default(),
            unreadable_maps: RefCell::default(),
            swept: Cell::new((0, 0)),
            destage_turns,
            destage_moved_at: Cell::new(Duration::ZERO),
            open: RefCell::default(),
        }
    }

    pub(crate) fn note_checkpoint(&self, is_stored: bool) {
        if !is_stored {
            self.checkpoint_failed_at.set(Some(self.clock.now()));
            self.has_stray_pages.set(true);
        } else if !self.map_memory.is_over() {
            self.checkpoint_failed_at.set(None);
        }
    }

    /// Trying again so soon would fail again.
    pub(crate) fn checkpoint_has_just_failed(&self) -> bool {
        let failed_at = self.checkpoint_failed_at.get();
        failed_at.is_some_and(|at| self.clock.now().saturating_sub(at) < CHECKPOINT_AGAIN_AFTER)
    }

    /// Checkpoints cannot be stored, and changed pages take all the memory that maps may.
    pub(crate) fn maps_have_no_room(&self) -> bool {
        let is_failing = self.checkpoint_failed_at.get().is_some() && !self.pages_are_damaged.get();
        is_failing && self.map_memory.is_over()
    }

    pub(super) fn note_open(&self, vdisk: &Vdisk) {
        let mut open = self.open.borrow_mut();
        open.retain(|other| other.strong_count() > 0);
        open.push(Rc::downgrade(&vdisk.inner));
    }

    pub(super) fn open_vdisks(&self) -> Vec<Vdisk> {
        let open = self.open.borrow();
        open.iter().filter_map(Weak::upgrade).map(|inner| Vdisk { inner }).collect()
    }

    /// vDisks with something in the write buffer, 1 at least.
    pub(crate) fn active_vdisks(&self) -> u64 {
        let open = self.open.borrow();
        let active = open.iter().filter_map(Weak::upgrade).filter(|vdisk| vdisk.has_buffered()).count();
        (active as u64).max(1)
    }

    /// Hears of an error of reading a vDisk's map, which shows it from then on. Maps are a cache: the next start makes them
    /// anew from the backend.
    pub(crate) fn map_unreadable(&self, vdisk: VdiskId, error: VolumeError) -> VolumeError {
        if let VolumeError::Damaged(reason) = &error {
            self.unreadable_maps.borrow_mut().entry(vdisk).or_insert_with(|| reason.clone());
            if !self.pages_are_damaged.replace(true) {
                self.pages_found_damaged.notify_one();
            }
        }
        error
    }

    /// What is wrong with its map on this host.
    pub(crate) fn map_damage(&self, vdisk: VdiskId) -> Option<String> {
        self.unreadable_maps.borrow().get(&vdisk).cloned()
    }

    pub(super) async fn forget_checkpoints(&self) -> Result<(), VolumeError> {
        for (owner, _) in self.pages.records().await? {
            self.pages.forget(&owner).await?;
        }
        Ok(())
    }

    pub(crate) fn destage_moved(&self) {
        self.destage_moved_at.set(self.clock.now());
    }

    /// Commits, waiting while the registry cannot take it. A transaction whose answer was lost and which was in fact
    /// done is found out by its first put.
    pub(crate) async fn commit_patiently(
        &self,
        transaction: Transaction,
        give_up: &Cell<bool>,
    ) -> Result<Option<Revision>, VolumeError> {
        let mut attempt = 0;
        loop {
            let answer = match self.registry.commit(transaction.clone()).await {
                // To ask may fail as well, and what was done must be known.
                Ok(None) if attempt > 0 => self.was_done(&transaction).await,
                answer => answer,
            };
            let error = match answer {
                Ok(revision) => return Ok(revision),
                Err(error @ (VolumeError::Retry(_) | VolumeError::NoSpace(_)))
                    if !give_up.get() || attempt < 5 =>
                {
                    error
                }
                Err(error) => return Err(error),
            };
            if attempt == 0 {
                tracing::warn!(%error, "the registry takes no commits; trying on");
            }
            self.clock.sleep(Duration::from_millis(20 << attempt.min(6))).await;
            attempt += 1;
        }
    }

    async fn was_done(&self, transaction: &Transaction) -> Result<Option<Revision>, VolumeError> {
        let mut revision = None;
        for (key, value) in &transaction.puts {
            match self.registry.get(key).await? {
                Some(entry) if entry.value == *value => revision = Some(entry.revision),
                _ => return Ok(None),
            }
        }
        Ok(revision)
    }
}
