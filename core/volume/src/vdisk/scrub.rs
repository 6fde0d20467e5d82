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
//! them by their names.
//!
//! Nothing is taken for dead that is needed: the maps are marked as of a checkpoint, and since then places in SCOs that
//! were in the table can only have become fewer. What a clone may read through its own table stays where it is.

use super::lifecycle::{Next, finish_even_if_dropped};
use super::{Inner, Reading, Vdisk};
use crate::VolumeError;
use crate::engine::VdiskState;
use crate::head::head_key;
use crate::journal;
use crate::map::copy::Pages;
use crate::map::{Marks, Table};
use crate::sco::{NewSco, parse_sco_name, sco_name, sco_prefix};
use bytes::Bytes;
use ovs_backend::{ObjectName, Urgency};
use ovs_format::journal::{Move, Record};
use ovs_format::sco::{CLUSTERS_MAX, ScoRef, header_bytes};
use ovs_format::table::{ClusterSet, TableEntry};
use ovs_units::{ByteCount, CLUSTER_SIZE_BYTES, Epoch, PutId, ScoNumber, SnapshotId, VdiskId, planted};
use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    rc::{Rc, Weak},
    time::Duration,
};

/// New SCOs in one journal record.
const SCOS_AT_ONCE: u64 = 4;
/// Old SCOs in one journal record: each takes up to 150 bytes, or 4 KiB of the largest SCOs.
const MOVES_AT_ONCE: usize = 512;
/// When nothing has left the write buffer for this long, nothing leaves it.
const LEAVING: Duration = Duration::from_secs(2);
/// An SCO of which so many of 1024 are needed is left as it is.
const FULL_SHARE: u64 = 980;
/// After a failure so many looks are left out.
const AFTER_A_FAILURE: u32 = 6;
/// A guest that is busy gets this many times the time that scrub takes for itself …
const GUEST_SHARE: u32 = 3;
/// … and no pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(2);

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
    pub(super) moved_bytes: Cell<u64>,
    pub(super) freed_bytes: Cell<u64>,
}

impl Scrub {
    pub(super) fn new(stored_bytes: u64) -> Scrub {
        Scrub {
            turn: tokio::sync::Mutex::new(()),
            stored_bytes: Cell::new(stored_bytes),
            needed_bytes: Cell::new(None),
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

/// Bytes of all own SCOs in a table.
pub(super) fn stored_bytes(table: &Table, vdisk: VdiskId) -> u64 {
    table.scos_of(vdisk).iter().map(|(sco, _)| sco.object_bytes()).sum()
}

/// An SCO, and what is needed of it.
struct Candidate {
    sco: ScoRef,
    /// Entries of the table: index, name, and what is needed.
    entries: Vec<(TableEntry, Option<ClusterSet>)>,
    needed_clusters: u64,
    is_pinned: bool,
}

impl Candidate {
    fn needed_bytes(&self) -> u64 {
        self.needed_clusters * CLUSTER_SIZE_BYTES
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

    /// Until [`Vdisk::clones_are_known`] deleted snapshots stay, and so does all that they have.
    pub(crate) async fn clones_are_unknown(&self) -> Result<(), VolumeError> {
        let _meta = self.inner.meta.lock().await;
        let stored = self.inner.context.registry.get(&head_key(self.id())).await?;
        let known = self.inner.head.borrow().revision;
        if stored.is_none_or(|stored| stored.revision != known) {
            return Err(VolumeError::Refused(format!(
                "vDisk {} is open, and its head is another; restart ovsd to recover it",
                self.id()
            )));
        }
        self.inner.commit(|head| head.clones_unknown = true).await
    }

    /// The head says so from now on.
    pub(crate) async fn clones_are_known(&self) -> Result<(), VolumeError> {
        let _meta = self.inner.meta.lock().await;
        self.inner
            .commit(|head| {
                head.clones_unknown = false;
                head.drop_snapshots();
            })
            .await?;
        self.inner.forget_gone_snapshots();
        Ok(())
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
        let worth_while = (stored / 32).max(self.context.config.scrub_min_bytes);
        stored / 4 * 3 > needed && stored - needed >= scrub.left_bytes.get() + worth_while
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

    async fn scrub_all(self: &Rc<Self>, is_asked_for: bool) -> Result<ScrubReport, VolumeError> {
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

    async fn scrub_with(
        self: &Rc<Self>,
        report: &mut ScrubReport,
        is_asked_for: bool,
    ) -> Result<(), VolumeError> {
        self.remove_what_is_going().await;
        if !self.scrub.strays_looked_for.get() {
            report.strays_removed = self.remove_strays().await?;
            self.scrub.strays_looked_for.set(true);
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

    fn sco_clusters_max(&self) -> u64 {
        (self.context.config.sco_bytes / CLUSTER_SIZE_BYTES).clamp(1, CLUSTERS_MAX as u64)
    }

    /// Every own SCO, with what is needed of it, and the snapshots that had clones when that was found out.
    async fn candidates(&self) -> Result<(Vec<Candidate>, HashSet<SnapshotId>), VolumeError> {
        // The pages of the checkpoint stay while this is held.
        let _copying = self.copying.lock().await;
        let (maps, table, pins) = {
            let _meta = self.meta.lock().await;
            self.check_may_scrub()?;
            let maps = self.store_checkpoint().await?;
            let maps = maps.ok_or_else(|| {
                VolumeError::Retry("part of a snapshot is still in the write buffer".into())
            })?;
            (maps, Table::clone(&self.table.borrow()), self.pins())
        };
        let unreadable = |error| self.context.map_unreadable(self.id, error);
        let pages = Pages { store: &*self.context.pages, unreadable: &unreadable };
        let go_on = || self.check_may_scrub();
        let marks = Marks::of(self.id, &maps, &table, &pins, &pages, &go_on).await?;
        let candidate = |(sco, indexes): (ScoRef, Vec<u64>)| {
            let entry =
                |index: &u64| table.get(*index).map(|entry| (entry.clone(), marks.needed(*index).cloned()));
            let entries: Vec<_> = indexes.iter().filter_map(entry).collect();
            let needed = entries.iter().filter_map(|(_, needed)| needed.as_ref());
            let needed_clusters = needed.map(|needed| u64::from(needed.count())).sum();
            let is_pinned = indexes.iter().any(|index| marks.is_pinned(*index));
            Candidate { sco, entries, needed_clusters, is_pinned }
        };
        let unreadable = self.scrub.unreadable.borrow();
        let all = table.scos_of(self.id).into_iter().map(candidate);
        let all = all.map(|candidate| Candidate {
            // It stays as one that a clone needs does.
            is_pinned: candidate.is_pinned
                || (candidate.needed_clusters > 0 && unreadable.contains(&candidate.sco.put)),
            ..candidate
        });
        Ok((all.collect(), pins))
    }

    /// The snapshots that have clones.
    fn pins(&self) -> HashSet<SnapshotId> {
        let head = &self.head.borrow().head;
        let with_clones = head.snapshots.iter().filter(|snapshot| !snapshot.clones.is_empty());
        with_clones.map(|snapshot| snapshot.id).collect()
    }

    async fn relocate(
        self: &Rc<Self>,
        batch: Batch,
        pins: &HashSet<SnapshotId>,
        report: &mut ScrubReport,
    ) -> Result<(), VolumeError> {
        if self.scrub.is_cancelled.get() {
            return Ok(());
        }
        self.wait_for_the_guest().await?;
        let (begun, guest) = (self.context.clock.now(), self.guest_operations());
        let epoch = {
            let _meta = self.meta.lock().await;
            self.check_may_scrub()?;
            self.start_epoch_if_needed().await?;
            self.epoch()
        };
        // 1.
        let mut writer =
            Writer { inner: self, epoch, scos: Vec::new(), clusters: Vec::new(), moves: Vec::new() };
        let mut old = Vec::new();
        if let Err(error) = writer.take_all(&batch, &mut old, report).await {
            self.remove(&writer.scos).await;
            return Err(error);
        }
        let Writer { scos, moves, .. } = writer;
        if moves.is_empty() {
            return Ok(());
        }
        let moved_bytes: u64 = scos.iter().map(|sco| u64::from(sco.cluster_count) * CLUSTER_SIZE_BYTES).sum();
        if planted("scrub: an SCO goes before its move is recorded") {
            self.remove(&old).await;
        }
        // 2. to 4.
        {
            let _meta = self.meta.lock().await;
            if let Err(error) = self.check_moves(epoch, pins).await {
                self.remove(&scos).await;
                return Err(error);
            }
            // When that fails nobody knows whether the record is there: what it names stays until its epoch is over.
            self.record_moves(&scos, moves).await?;
            let freed: u64 = old.iter().map(ScoRef::object_bytes).sum();
            let added: u64 = scos.iter().map(ScoRef::object_bytes).sum();
            let scrub = &self.scrub;
            scrub.stored_bytes.set((scrub.stored_bytes.get() + added).saturating_sub(freed));
            scrub.freed_bytes.set(scrub.freed_bytes.get() + freed);
            scrub.moved_bytes.set(scrub.moved_bytes.get() + moved_bytes);
            let before = self.reading.replace(Rc::default());
            // Who has this one reads what older ones may read as well.
            *before.next.borrow_mut() = Some(self.reading.borrow().clone());
            scrub.going.borrow_mut().extend(old.into_iter().map(|sco| (Rc::downgrade(&before), sco)));
        }
        report.moved_bytes += moved_bytes;
        let (done, all) = self.scrub.progress.get();
        let dealt_with: u64 = batch.candidates.iter().map(|candidate| candidate.sco.object_bytes()).sum();
        self.scrub.progress.set((done + dealt_with, all));
        // 5.
        self.remove_what_is_going().await;
        let took = self.context.clock.now() - begun;
        if self.guest_operations() != guest {
            self.context.clock.sleep((took * GUEST_SHARE).min(PAUSE_MAX)).await;
        }
        Ok(())
    }

    /// May the table be changed still? The caller holds `meta`.
    async fn check_moves(&self, epoch: Epoch, pins: &HashSet<SnapshotId>) -> Result<(), VolumeError> {
        self.check_may_scrub()?;
        if self.epoch() != epoch || self.next.get() != Next::Record {
            return Err(VolumeError::Retry("the epoch was given up meanwhile".into()));
        }
        if !self.pins().is_subset(pins) && !planted("scrub: a clone that came meanwhile is not seen") {
            return Err(VolumeError::Retry("a snapshot got its first clone meanwhile".into()));
        }
        self.check_is_newest().await
    }

    /// Who has lost the vDisk without knowing it learns it here.
    async fn check_is_newest(&self) -> Result<(), VolumeError> {
        let head = self.head.borrow().head.clone();
        match head.position() {
            Some(position) if !planted("scrub: a stale owner scrubs too") => {
                journal::check_not_older(&*self.backend, self.id, head.epoch, position).await
            }
            _ => Ok(()),
        }
    }

    /// Of what nobody needs, all that nobody can be reading any more. What cannot be removed is tried again.
    async fn remove_what_is_going(&self) {
        let may_go = |reading: &Weak<Reading>| {
            reading.strong_count() == 0 || planted("scrub: an SCO goes while it is read")
        };
        let (gone, read): (Vec<_>, Vec<_>) =
            self.scrub.going.take().into_iter().partition(|(reading, _)| may_go(reading));
        self.scrub.going.borrow_mut().extend(read);
        if gone.is_empty() {
            return;
        }
        // A new owner may have begun before their moves were recorded: then it needs them.
        let checked = {
            let _meta = self.meta.lock().await;
            self.check_is_newest().await
        };
        if let Err(error) = checked {
            tracing::warn!(vdisk = %self.id, %error, "SCOs that nobody needs are not removed; trying again later");
            self.scrub.going.borrow_mut().extend(gone);
            return;
        }
        for (reading, sco) in gone {
            let name = name_of(&sco);
            if let Err(error) = self.backend.delete(&name).await {
                tracing::warn!(vdisk = %self.id, %error, "an SCO that nobody needs could not be removed; trying again later");
                self.scrub.going.borrow_mut().push((reading, sco));
            }
        }
    }

    /// The caller holds `meta`.
    async fn record_moves(&self, scos: &[ScoRef], moves: Vec<Move>) -> Result<(), VolumeError> {
        let mut table = Table::clone(&self.table.borrow());
        table.relocate(self.id, scos, &moves)?;
        let record = Record::Relocate { scos: scos.to_vec(), moves };
        let position = self.append_to_journal(&record).await?;
        self.commit(|head| head.set_position(position)).await?;
        *self.table.borrow_mut() = Rc::new(table);
        Ok(())
    }

    /// What was put and is not named. What cannot be removed now is found at the next opening.
    async fn remove(&self, old: &[ScoRef]) {
        for sco in old {
            let name = name_of(sco);
            if let Err(error) = self.backend.delete(&name).await {
                tracing::warn!(vdisk = %self.id, %error, "an SCO that nobody needs could not be removed; trying again at the next start");
            }
        }
    }

    fn guest_operations(&self) -> u64 {
        let c = &self.counters;
        c.reads.get() + c.writes.get() + c.flushes.get()
    }

    /// While writes wait for room and data leaves, that goes first; when nothing leaves, it may wait for the room that this
    /// makes.
    async fn wait_for_the_guest(&self) -> Result<(), VolumeError> {
        let context = &self.context;
        let is_leaving = || context.clock.now() - context.destage_moved_at.get() < LEAVING;
        while context.log.no_slot_for_writes()
            && is_leaving()
            && !self.is_stalled()
            && !self.scrub.is_cancelled.get()
        {
            self.check_may_scrub()?;
            self.context.clock.sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// SCOs of epochs that are over and that the table does not name: what crashes have left.
    async fn remove_strays(&self) -> Result<u64, VolumeError> {
        let (epoch, named) = {
            let _meta = self.meta.lock().await;
            self.check_may_scrub()?;
            self.start_epoch_if_needed().await?;
            let scos = self.table.borrow().scos_of(self.id);
            let mut named: HashSet<ObjectName> = scos.iter().map(|(sco, _)| name_of(sco)).collect();
            if !planted("scrub: what is read is a stray") {
                // Somebody may be reading those yet.
                named.extend(self.scrub.going.borrow().iter().map(|(_, sco)| name_of(sco)));
            }
            self.check_is_newest().await?;
            (self.epoch(), named)
        };
        let prefix = sco_prefix(self.id);
        let (mut removed, mut after) = (0, None);
        loop {
            let page = self.backend.list(&prefix, after.as_ref(), 1000).await?;
            let Some(last) = page.last() else { return Ok(removed) };
            after = Some(last.name.clone());
            for object in page {
                let found = parse_sco_name(&object.name, &prefix);
                let is_over = found.is_some_and(|(of, _)| {
                    of < epoch || planted("scrub: what is on its way is taken for a stray")
                });
                if is_over && !named.contains(&object.name) {
                    self.check_may_scrub()?;
                    self.backend.delete(&object.name).await?;
                    removed += 1;
                }
            }
        }
    }
}

fn name_of(sco: &ScoRef) -> ObjectName {
    sco_name(sco.vdisk, sco.epoch, sco.number)
}

/// The emptiest first, until at most a fifth of what may move is not needed. Of those that nobody needs all are taken, of
/// the others none when that would give nothing back.
fn choose(mut candidates: Vec<Candidate>, sco_clusters_max: u64) -> Vec<Candidate> {
    candidates.retain(|candidate| !candidate.is_pinned);
    let needed: u64 = candidates.iter().map(Candidate::needed_bytes).sum();
    let mut stored: u64 = candidates.iter().map(|candidate| candidate.sco.object_bytes()).sum();
    let enough = needed / 4 * 5;
    let share = |candidate: &Candidate| candidate.needed_bytes() * 1024 / candidate.sco.object_bytes();
    candidates.sort_by_key(share);
    candidates.retain(|candidate| {
        let is_wanted = candidate.needed_clusters == 0 || (stored > enough && share(candidate) < FULL_SHARE);
        if is_wanted {
            stored -= candidate.sco.object_bytes().saturating_sub(candidate.needed_bytes());
        }
        is_wanted
    });
    let moved: u64 = candidates.iter().map(|candidate| candidate.needed_clusters).sum();
    let parts = candidates.iter().filter(|candidate| candidate.needed_clusters > 0);
    let before: u64 = parts.map(|candidate| candidate.sco.object_bytes()).sum();
    let headers = moved.div_ceil(sco_clusters_max) * header_bytes(sco_clusters_max as usize) as u64;
    if moved * CLUSTER_SIZE_BYTES + headers >= before {
        candidates.retain(|candidate| candidate.needed_clusters == 0);
    }
    candidates
}

/// Candidates that go into one journal record.
#[derive(Default)]
struct Batch {
    candidates: Vec<Candidate>,
    clusters: u64,
    entries: usize,
}

/// An entry's name, and what is needed of its clusters: which, and the clusters in runs.
type ReadEntry = ((Epoch, ScoNumber), Option<(ClusterSet, Vec<Run>)>);

/// Clusters that lie together, and their checksums as they were put.
type Run = (Bytes, Vec<u32>);

/// Fills new SCOs.
struct Writer<'a> {
    inner: &'a Inner,
    epoch: Epoch,
    /// Those that are there.
    scos: Vec<ScoRef>,
    /// What goes into the next: runs of clusters.
    clusters: Vec<Run>,
    moves: Vec<Move>,
}

impl Writer<'_> {
    /// Those that can be read are in `old` then; nothing of the others is taken.
    async fn take_all(
        &mut self,
        batch: &Batch,
        old: &mut Vec<ScoRef>,
        report: &mut ScrubReport,
    ) -> Result<(), VolumeError> {
        for candidate in &batch.candidates {
            match self.read(candidate).await {
                Ok(read) => {
                    self.place(read).await?;
                    old.push(candidate.sco);
                }
                Err(VolumeError::Damaged(reason)) => {
                    tracing::error!(vdisk = %self.inner.id, reason, "an SCO cannot be read; scrub leaves it alone");
                    self.inner.scrub.unreadable.borrow_mut().insert(candidate.sco.put);
                    report.unreadable += 1;
                }
                Err(error) => return Err(error),
            }
        }
        self.finish().await
    }

    /// What is needed of an SCO.
    async fn read(&self, candidate: &Candidate) -> Result<Vec<ReadEntry>, VolumeError> {
        let mut read = Vec::new();
        for (entry, needed) in &candidate.entries {
            let Some(origin) = entry.origin() else { continue };
            let Some(needed) = needed else {
                read.push((origin, None));
                continue;
            };
            let mut runs = Vec::new();
            for (offset, count) in needed.runs() {
                let at = match entry {
                    TableEntry::Moved(moved) => moved.offset_of(offset, count),
                    _ => Some(offset),
                };
                let at = at.ok_or_else(|| VolumeError::Damaged("what was moved is not there".into()))?;
                self.inner.check_may_scrub()?;
                let headers = &self.inner.context.sco_headers;
                runs.push(headers.read_with_sums(&*self.inner.backend, &candidate.sco, at, count).await?);
            }
            read.push((origin, Some((needed.clone(), runs))));
        }
        Ok(read)
    }

    /// An entry's clusters go into one SCO.
    async fn place(&mut self, read: Vec<ReadEntry>) -> Result<(), VolumeError> {
        for (origin, kept) in read {
            let Some((kept, runs)) = kept else {
                self.moves.push(Move { origin, to: None });
                continue;
            };
            let filled = self.filled();
            if filled > 0 && filled + u64::from(kept.count()) > self.inner.sco_clusters_max() {
                self.finish().await?;
            }
            let base = self.filled() as u32;
            self.clusters.extend(runs);
            self.moves.push(Move { origin, to: Some((self.scos.len() as u32, base, kept)) });
        }
        Ok(())
    }

    fn filled(&self) -> u64 {
        self.clusters.iter().map(|(_, sums)| sums.len() as u64).sum()
    }

    /// Puts what there is as an SCO.
    async fn finish(&mut self) -> Result<(), VolumeError> {
        if self.clusters.is_empty() {
            return Ok(());
        }
        let inner = self.inner;
        let (data, sums): (Vec<Bytes>, Vec<Vec<u32>>) =
            std::mem::take(&mut self.clusters).into_iter().unzip();
        let checksums = sums.concat();
        let number = inner.next_sco.replace(inner.next_sco.get() + 1);
        let put = PutId(inner.context.chance.uuid());
        let sco = NewSco::new(inner.id, self.epoch, ScoNumber(number), put, data, &checksums);
        // Before it is there: should the put fail and yet take effect, it is removed all the same.
        self.scos.push(sco.reference);
        inner.backend.put(&sco.name(), sco.parts, Urgency::Reserve).await?;
        let bytes = sco.reference.object_bytes();
        super::count(&inner.counters.backend_put_bytes, bytes);
        Ok(())
    }
}
