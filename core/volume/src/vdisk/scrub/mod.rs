//! Giving back what nobody needs any more: overwritten and discarded clusters, and what only deleted snapshots had.
//!
//! Maps stay as they are; what is needed of an SCO is put into another, and the table says so
//! (`docs/decisions/0008-scrub-relocates-objects.md`).
//!
//! Crash order, each step durable before the next begins:
//!
//! 1. The new SCOs are put under names that are never used again.
//! 2. A journal record that says what is where now: a recovery reads the old ones or the new ones, both are there.
//! 3. The head is committed: from here on nobody needs the old ones, but who reads already.
//! 4. In memory: the table.
//! 5. When the last one who reads what was there before has gone, the old SCOs go.
//!
//! A crash before 2 or in 5 leaves SCOs that nothing names. They are of an epoch that is over, and the next scrub finds
//! them by their names, as it does what else crashes leave (`strays.rs`).
//!
//! Nothing is taken for dead that is needed: the maps are marked as of a checkpoint, and since then places in SCOs that
//! were in the table can only have become fewer. What a clone may read through its own table stays where it is.

mod choose;
mod relocate;
mod strays;
mod writer;

use super::lifecycle::{Next, finish_even_if_dropped};
use super::{Inner, Vdisk};
use crate::VolumeError;
use crate::engine::VdiskState;
use crate::map::Table;
use crate::readers::Reading;
use crate::sco::sco_name;
use choose::{Candidate, choose, is_worth_while};
use ovs_backend::ObjectName;
use ovs_format::sco::ScoRef;
use ovs_units::{ByteCount, PutId, VdiskId, planted};
use relocate::Batch;
use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    rc::Weak,
    time::Duration,
};

/// New SCOs in one journal record.
const SCOS_AT_ONCE: u64 = 4;
/// Old SCOs in one journal record: each takes up to 150 bytes, or 4 KiB of the largest SCOs.
const MOVES_AT_ONCE: usize = 512;
/// The so-manieth look after a failure is the next one.
const AFTER_A_FAILURE: u32 = 6;

/// What a scrub has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// Bytes of objects that were there when it began.
    pub before_bytes: u64,
    /// Bytes of objects that are there now.
    pub after_bytes: u64,
    /// Bytes of clusters that are needed.
    pub needed_bytes: u64,
    /// Bytes of clusters that were put again elsewhere.
    pub moved_bytes: u64,
    /// Objects that a crash had left and nothing named.
    pub strays_removed: u64,
    /// Objects that could not be read, and stay.
    pub unreadable: u64,
}

impl ScrubReport {
    /// There was nothing to do.
    pub(crate) fn has_done_nothing(&self) -> bool {
        self.after_bytes == self.before_bytes && self.moved_bytes == 0 && self.strays_removed == 0
    }
}

/// What is kept between scrubs.
pub(crate) struct Scrub {
    /// Held by the one that is under way.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Bytes of the vDisk's own SCOs that its table names.
    stored_bytes: Cell<u64>,
    /// Bytes that were needed at the last scrub, by anybody; none yet, or that may have become fewer since.
    needed_bytes: Cell<Option<u64>>,
    /// Bytes of other vDisks that its maps named when that was last found out.
    shared_bytes: Cell<Option<u64>>,
    /// Bytes of SCOs that guests' data has added since the opening.
    added_bytes: Cell<u64>,
    /// How often they may have.
    changes: Cell<u64>,
    /// Bytes that nobody needed and that the last scrub has left.
    left_bytes: Cell<u64>,
    /// After one that failed.
    not_before: Cell<Duration>,
    strays_looked_for: Cell<bool>,
    /// SCOs that could not be read: they stay for this process.
    unreadable: RefCell<HashSet<PutId>>,
    /// SCOs that nobody needs, once those are gone who may be reading them.
    going: RefCell<Vec<(Weak<Reading>, ScoRef)>>,
    /// Of the one that is under way: bytes of SCOs that were dealt with, and of all that will be.
    progress: Cell<(u64, u64)>,
    is_cancelled: Cell<bool>,
    pub(crate) moved_bytes: Cell<u64>,
    pub(crate) freed_bytes: Cell<u64>,
}

impl Scrub {
    pub(super) fn new(stored_bytes: u64) -> Scrub {
        Scrub {
            turn: tokio::sync::Mutex::new(()),
            stored_bytes: Cell::new(stored_bytes),
            needed_bytes: Cell::new(None),
            shared_bytes: Cell::new(None),
            added_bytes: Cell::new(0),
            changes: Cell::new(0),
            left_bytes: Cell::new(0),
            not_before: Cell::new(Duration::ZERO),
            strays_looked_for: Cell::new(false),
            unreadable: RefCell::default(),
            going: RefCell::default(),
            progress: Cell::new((0, 0)),
            is_cancelled: Cell::new(false),
            moved_bytes: Cell::new(0),
            freed_bytes: Cell::new(0),
        }
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes.get()
    }

    /// As far as that is known.
    pub(super) fn reclaimable(&self) -> Option<ByteCount> {
        let stored = self.stored_bytes.get();
        self.needed_bytes.get().map(|needed| ByteCount(stored.saturating_sub(needed)))
    }

    /// As far as that is known.
    pub(super) fn shared(&self) -> Option<ByteCount> {
        self.shared_bytes.get().map(ByteCount)
    }

    /// Begins with this map: who has written nothing shares all of it, who is no clone nothing; else the next scrub finds out.
    pub(super) fn begin_with(&self, mapped: ByteCount, table: &Table, vdisk: VdiskId) {
        self.shared_bytes.set(match table.whose(vdisk) {
            (false, _) => Some(0),
            (true, false) => Some(mapped.0),
            (true, true) => None,
        });
    }

    /// SCOs that the table names from now on.
    pub(super) fn added(&self, scos: &[ScoRef]) {
        let bytes: u64 = scos.iter().map(ScoRef::object_bytes).sum();
        self.stored_bytes.set(self.stored_bytes.get() + bytes);
        self.added_bytes.set(self.added_bytes.get() + bytes);
    }

    /// Less may be needed from now on than the last scrub found.
    pub(super) fn needs_changed(&self) {
        self.changes.set(self.changes.get() + 1);
        self.needed_bytes.set(None);
        self.left_bytes.set(0);
    }
}

impl Vdisk {
    /// Gives back what nobody needs any more, until at most a fifth of what is stored is such (whole SCOs that nobody needs all go),
    /// and removes what crashes have left. Slow on purpose while the guest is busy. What clones may read stays where it is,
    /// needed or not, as long as any of it is.
    pub async fn scrub(&self) -> Result<ScrubReport, VolumeError> {
        // Snapshots that end in the write buffer cannot be told from what nobody needs. A backend that takes nothing may wait
        // for the room that this makes.
        tokio::select! {
            biased;
            left = self.destage() => left?,
            () = self.inner.until_stalled() => {}
        }
        self.inner.scrub.strays_looked_for.set(false);
        self.scrub_what_is_there(true).await
    }

    /// When it is due: what is on the backend, and what crashes have left once in a process.
    pub(crate) async fn scrub_by_itself(&self) -> Result<ScrubReport, VolumeError> {
        self.scrub_what_is_there(false).await
    }

    async fn scrub_what_is_there(&self, is_asked_for: bool) -> Result<ScrubReport, VolumeError> {
        let vdisk = self.clone();
        // Not in the middle of a batch: what it has put would stay until the next one finds it.
        finish_even_if_dropped(async move { vdisk.inner.scrub_all(is_asked_for).await }).await
    }

    /// Is there enough to give back that scrubbing is worth while?
    pub(crate) fn scrub_is_due(&self) -> bool {
        let inner = &self.inner;
        let scrub = &inner.scrub;
        let is_soon = inner.context.clock.now() < scrub.not_before.get();
        if is_soon || scrub.turn.try_lock().is_err() || inner.check_may_scrub().is_err() {
            return false;
        }
        // A vDisk that nobody has written to yet is left in the epoch that it is in.
        if inner.next.get() != Next::Record {
            return false;
        }
        inner.context.config.scrub_by_itself
            && (!scrub.strays_looked_for.get() || inner.has_much_to_give_back())
    }

    /// Of the scrub that is under way: bytes of objects that were dealt with, and of all that will be.
    pub fn scrub_progress(&self) -> (u64, u64) {
        self.inner.scrub.progress.get()
    }

    /// The scrub that is under way ends soon, with what it has done.
    pub fn cancel_scrub(&self) {
        self.inner.scrub.is_cancelled.set(true);
    }

    /// What has been waiting for its readers goes.
    pub(crate) async fn remove_what_is_going(&self) {
        self.inner.remove_what_is_going().await;
    }
}

impl Inner {
    fn has_much_to_give_back(&self) -> bool {
        let scrub = &self.scrub;
        let stored = scrub.stored_bytes.get();
        let mapped = self.tree.borrow().mapped().bytes().0;
        let found = scrub.needed_bytes.get().unwrap_or(0);
        // With snapshots more may be needed than is mapped, of a clone less.
        let needed = if self.head.borrow().head.base.is_some() {
            found
        } else if self.snapshots.borrow().is_empty() {
            mapped
        } else {
            found.max(mapped)
        };
        is_worth_while(stored, needed, scrub.left_bytes.get(), self.context.config.scrub_min_bytes)
    }

    async fn until_stalled(&self) {
        while !self.is_stalled() {
            // Told of a stall as well.
            self.destaged.notified().await;
        }
    }

    fn check_may_scrub(&self) -> Result<(), VolumeError> {
        self.check_not_ended()?;
        if self.closing.get() {
            return Err(VolumeError::Offline(format!("vDisk {} is being closed", self.id)));
        }
        let head = &self.head.borrow().head;
        if head.clones_unknown && !planted("scrub: clones that are not known again are forgotten") {
            return Err(VolumeError::Refused(format!(
                "vDisk {} was recovered from its backend, and clones of it may not be known yet: finish `ovs vpool recover`",
                self.id
            )));
        }
        // What was damaged is evidence, as it is.
        match self.state() {
            VdiskState::Ok | VdiskState::Stalled(_) | VdiskState::Degraded(_) if !head.deleted => Ok(()),
            VdiskState::Damaged(reason) => Err(VolumeError::Damaged(reason)),
            VdiskState::Offline(reason) => Err(VolumeError::Offline(reason)),
            _ => Err(VolumeError::NotFound(format!("vDisk {} is deleted", self.id))),
        }
    }

    async fn scrub_all(&self, is_asked_for: bool) -> Result<ScrubReport, VolumeError> {
        let _turn = self.scrub.turn.lock().await;
        self.check_may_scrub()?;
        self.scrub.progress.set((0, 0));
        self.scrub.is_cancelled.set(false);
        let mut report = ScrubReport { before_bytes: self.scrub.stored_bytes(), ..ScrubReport::default() };
        let result = self.scrub_with(&mut report, is_asked_for).await;
        report.after_bytes = self.scrub.stored_bytes();
        let config = &self.context.config;
        match result {
            Ok(()) => Ok(report),
            Err(error) => {
                self.scrub.not_before.set(self.context.clock.now() + config.scrub_every * AFTER_A_FAILURE);
                Err(error)
            }
        }
    }

    async fn scrub_with(&self, report: &mut ScrubReport, is_asked_for: bool) -> Result<(), VolumeError> {
        self.remove_what_is_going().await;
        if !self.scrub.strays_looked_for.get() {
            let removed = self.remove_strays().await?;
            report.strays_removed = removed.count;
            self.scrub.strays_looked_for.set(removed.is_all);
            if !removed.is_all {
                self.scrub
                    .not_before
                    .set(self.context.clock.now() + self.context.config.scrub_every * AFTER_A_FAILURE);
            }
        }
        if !is_asked_for && !self.has_much_to_give_back() {
            return Ok(());
        }
        let (changes, added) = (self.scrub.changes.get(), self.scrub.added_bytes.get());
        let (candidates, pins) = self.candidates().await?;
        let needed_bytes: u64 = candidates.iter().map(Candidate::needed_bytes).sum();
        (report.needed_bytes, report.unreadable) =
            (needed_bytes, self.scrub.unreadable.borrow().len() as u64);
        let chosen = choose(candidates, self.sco_clusters_max());
        self.scrub.progress.set((0, chosen.iter().map(|candidate| candidate.sco.object_bytes()).sum()));
        let clusters_max = self.sco_clusters_max() * SCOS_AT_ONCE;
        let mut batch = Batch::default();
        for candidate in chosen {
            let is_full = batch.clusters + candidate.needed_clusters > clusters_max
                || batch.entries + candidate.entries.len() > MOVES_AT_ONCE;
            // What nobody needs goes also where there is no room for what is moved.
            let needs_room = batch.clusters == 0 && candidate.needed_clusters > 0;
            if !batch.candidates.is_empty() && (is_full || needs_room) {
                self.relocate(std::mem::take(&mut batch), &pins, report).await?;
            }
            batch.clusters += candidate.needed_clusters;
            batch.entries += candidate.entries.len();
            batch.candidates.push(candidate);
        }
        if !batch.candidates.is_empty() {
            self.relocate(batch, &pins, report).await?;
        }
        if self.scrub.changes.get() == changes && !self.scrub.is_cancelled.get() {
            // As far as is known all of what came meanwhile is needed.
            let needed_bytes = needed_bytes + (self.scrub.added_bytes.get() - added);
            self.scrub.needed_bytes.set(Some(needed_bytes));
            self.scrub.left_bytes.set(self.scrub.stored_bytes().saturating_sub(needed_bytes));
        }
        Ok(())
    }
}

fn name_of(sco: &ScoRef) -> ObjectName {
    sco_name(sco.vdisk, sco.epoch, sco.number)
}
