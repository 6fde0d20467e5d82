//! Steps 1 to 5 for one journal record.

use super::writer::Writer;
use super::{Candidate, ScrubReport, name_of};
use crate::VolumeError;
use crate::journal::Own;
use crate::map::Table;
use crate::readers::Reading;
use crate::vdisk::lifecycle::Next;
use crate::vdisk::{Inner, check_not_older};
use ovs_format::journal::{Move, Record};
use ovs_format::sco::ScoRef;
use ovs_units::{CLUSTER_SIZE_BYTES, Epoch, SnapshotId, planted};
use std::{
    collections::HashSet,
    rc::{Rc, Weak},
    time::Duration,
};

/// When nothing has left the write buffer for this long, nothing leaves it.
const LEAVING: Duration = Duration::from_secs(2);
/// A guest that is busy gets this many times the time that scrub takes for itself …
const GUEST_SHARE: u32 = 3;
/// … and no pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Candidates that go into one journal record.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) candidates: Vec<Candidate>,
    pub(super) clusters: u64,
    pub(super) entries: usize,
}

impl Inner {
    /// All steps for a batch; none when the scrub is cancelled.
    pub(super) async fn relocate(
        &self,
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
        let mut writer = Writer::new(self, epoch);
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
            let before = self.readers.turn();
            scrub.going.borrow_mut().extend(old.into_iter().map(|sco| (before.clone(), sco)));
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
    pub(super) async fn check_is_newest(&self) -> Result<(), VolumeError> {
        if planted("scrub: a stale owner scrubs too") {
            return Ok(());
        }
        let head = self.head.borrow().head.clone();
        check_not_older(&*self.backend, self.id, &head, Own::Record).await
    }

    /// Of what nobody needs, all that nobody can be reading any more. What cannot be removed is tried again.
    pub(super) async fn remove_what_is_going(&self) {
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
            self.forget_cached(&sco);
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
}
