//! The two loops of the log: one writes batches, one syncs them; and what they do when the device fails.

use super::record::{Place, Record, Segment};
use super::{FreeSlot, Log, RESERVE_WRITES, State, UNSYNCED_BYTES_MAX};
use crate::VolumeError;
use bytes::Bytes;
use ovs_format::log::{
    BATCH_CLUSTERS_MAX, BATCH_RECORDS_MAX, BLOCK_BYTES, BatchHeader, RecordHeader, SegmentHeader, SegmentId,
    VOIDS_MAX, VoidRange,
};
use ovs_units::{CLUSTER_SIZE_BYTES, planted};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

/// So many segments may fail one after the other before the log gives up.
pub(super) const FAILURES_MAX: usize = 3;
/// So many records without data have their headers in one block.
const RECORDS_PER_HEADER_BLOCK: usize = 64;
/// The queue of payloads in memory is not looked through below this.
const RESIDENT_MIN: usize = 1024;

impl Log {
    /// Starts the loops, which end when the log is dropped.
    pub(super) fn start(&self) {
        // While they wait the loops hold nothing of the log, so that dropping the log ends them.
        let (writer, syncer) = (Rc::downgrade(&self.state), Rc::downgrade(&self.state));
        let (work, sync_wanted) = (self.state.work.clone(), self.state.sync_wanted.clone());
        tokio::task::spawn_local(async move {
            while let Some(state) = writer.upgrade() {
                if state.pending.borrow().is_empty() {
                    drop(state);
                    work.notified().await;
                } else {
                    Log { state }.write_next().await;
                }
            }
        });
        tokio::task::spawn_local(async move {
            loop {
                sync_wanted.notified().await;
                let Some(state) = syncer.upgrade() else { break };
                let log = Log { state };
                let _ = log.sync_round().await;
                log.state.synced.notify_waiters();
            }
        });
    }

    /// Everything that is written now is stable when this returns `Ok`.
    pub(crate) async fn sync(&self) -> Result<(), VolumeError> {
        self.check_online()?;
        self.state.flush_habit.flushed();
        let (lsn, order) = (self.state.written_lsn.get(), self.state.written_order.get());
        if planted("log: a flush does not wait") {
            return Ok(());
        }
        loop {
            let synced = self.state.synced.notified();
            tokio::pin!(synced);
            synced.as_mut().enable();
            if self.state.synced_lsn.get() >= lsn && self.state.synced_order.get() >= order {
                return Ok(());
            }
            self.check_online()?;
            self.state.sync_wanted.notify_one();
            if planted("log: a flush returns when its sync begins") {
                return Ok(());
            }
            synced.await;
        }
    }

    async fn write_next(&self) {
        self.wait_for_syncs().await;
        let _turn = self.state.write_turn.lock().await;
        let batch = self.take_batch();
        if !batch.is_empty() {
            self.write_batch(batch).await;
        }
    }

    /// What is not stable is kept in memory, and would all have to be written again.
    async fn wait_for_syncs(&self) {
        while self.state.unsynced_bytes.get() > 2 * UNSYNCED_BYTES_MAX && self.check_online().is_ok() {
            let synced = self.state.synced.notified();
            tokio::pin!(synced);
            synced.as_mut().enable();
            self.state.sync_wanted.notify_one();
            if self.state.unsynced_bytes.get() > 2 * UNSYNCED_BYTES_MAX {
                synced.await;
            }
        }
    }

    fn take_batch(&self) -> Vec<Rc<Record>> {
        let mut pending = self.state.pending.borrow_mut();
        // One that waited to be moved has been written with all that was not stable meanwhile.
        pending.retain(|record| record.promised_blocks.get() > 0);
        self.take_batch_of(&mut pending)
    }

    /// As many from the front as go into one batch.
    fn take_batch_of(&self, pending: &mut VecDeque<Rc<Record>>) -> Vec<Rc<Record>> {
        let mut batch = Vec::new();
        let mut clusters = 0;
        let clusters_max =
            BATCH_CLUSTERS_MAX.min((self.state.device.slot_bytes() / BLOCK_BYTES as u64 / 16) as usize);
        // Headers are bounded like payloads.
        let records_max = BATCH_RECORDS_MAX.min(clusters_max * RECORDS_PER_HEADER_BLOCK);
        while let Some(record) = pending.front() {
            clusters += record.data_clusters();
            let full = batch.len() == records_max || (clusters > clusters_max && !batch.is_empty());
            if full {
                break;
            }
            batch.extend(pending.pop_front());
        }
        batch
    }

    /// Writes the records, wherever that works; they are written when this returns, or the log is offline.
    /// The caller holds the write turn.
    async fn write_batch(&self, batch: Vec<Rc<Record>>) {
        let mut failures = 0;
        while self.state.offline.borrow().is_none() {
            match self.try_write_batch(&batch).await {
                Ok(()) => return,
                Err(error) => {
                    failures += 1;
                    tracing::error!(%error, "a write to the write buffer failed; its segment is retired");
                    let current = self.state.current.borrow().clone();
                    if let Some(segment) = current {
                        self.retire(&segment).await;
                    }
                    if failures == FAILURES_MAX {
                        self.go_offline(error.to_string());
                    }
                }
            }
        }
        batch.iter().for_each(|record| record.wake());
    }

    async fn try_write_batch(&self, batch: &[Rc<Record>]) -> std::io::Result<()> {
        let state = &self.state;
        let payload_clusters: usize = batch.iter().map(|record| record.data_clusters()).sum();
        let header_bytes = BatchHeader::encoded_bytes(batch.len(), payload_clusters);
        let length = (header_bytes + payload_clusters * BLOCK_BYTES) as u64;
        // The last block is for the seal.
        let end = state.device.slot_bytes() - BLOCK_BYTES as u64;
        let fits = || state.current.borrow().is_some() && state.current_offset.get() + length <= end;
        while !fits() {
            self.rotate().await?;
        }
        if batch.iter().any(|record| record.has_data() && record.data.borrow().is_none()) {
            return Err(std::io::Error::other("a record's payload is not in memory any more"));
        }
        let segment = state.current.borrow().clone().ok_or_else(|| std::io::Error::other("no segment"))?;
        let (offset, lsn) = (state.current_offset.get(), state.next_lsn.get());
        let records = batch.iter().map(|record| record.header.clone()).collect();
        let header = state.batch_header(segment.id, lsn, records);
        let mut parts = vec![Bytes::from(header.encode())];
        parts.extend(
            batch.iter().filter_map(|record| record.data.borrow().clone().filter(|_| record.has_data())),
        );
        // The number is taken before the write: should it fail half way, nothing else will ever bear it.
        state.next_lsn.set(lsn + 1);
        state.current_offset.set(offset + length);
        if planted("log: acknowledged before it is written") {
            self.batch_is_written(batch, &segment, offset + header_bytes as u64, lsn);
            self.write_to(&segment, offset, parts).await?;
            return Ok(());
        }
        self.write_to(&segment, offset, parts).await?;
        state.log_written_bytes.set(state.log_written_bytes.get() + length);
        self.batch_is_written(batch, &segment, offset + header_bytes as u64, lsn);
        Ok(())
    }

    fn batch_is_written(&self, batch: &[Rc<Record>], segment: &Rc<Segment>, payload_offset: u64, lsn: u64) {
        let state = &self.state;
        let mut offset = payload_offset;
        for record in batch {
            *record.place.borrow_mut() = Some(Place { segment: segment.clone(), offset, lsn });
            offset += record.data_clusters() as u64 * CLUSTER_SIZE_BYTES;
            segment.records.borrow_mut().push(Rc::downgrade(record));
            state.unpromise(record);
            state.unsynced_bytes.set(state.unsynced_bytes.get() + record.bytes_in_memory());
            state.unsynced.borrow_mut().push_back(record.clone());
            state.written_order.set(state.written_order.get().max(record.order));
            record.wake();
        }
        state.written_lsn.set(lsn + 1);
        let flush_is_near = state.flush_habit.written() && state.pending.borrow().is_empty();
        if flush_is_near || state.unsynced_bytes.get() > UNSYNCED_BYTES_MAX {
            state.sync_wanted.notify_one();
        }
    }

    /// Starts a new segment in a free slot. The caller holds the write turn.
    pub(super) async fn rotate(&self) -> std::io::Result<()> {
        let state = &self.state;
        let full = state.current.borrow().clone();
        if let Some(segment) = full {
            self.seal(&segment, state.current_offset.get()).await?;
            state.current.borrow_mut().take();
        }
        loop {
            let (lsn, order) = (state.synced_lsn.get(), state.synced_order.get());
            // What superseded a slot's old records must be stable before they go. Slots become free in the order of
            // that, so the oldest free one is the first that may be used.
            let reusable = |free: &FreeSlot| {
                (free.after_lsn <= lsn && free.after_order <= order)
                    || planted("log: a slot is used again before what superseded it is stable")
            };
            let index = state.free.borrow().iter().position(reusable);
            if let Some(free) = index.and_then(|index| state.free.borrow_mut().remove(index)) {
                return self.start_segment(free.slot).await;
            }
            if state.offline.borrow().is_some() {
                return Err(std::io::Error::other("the write buffer is offline"));
            }
            if lsn < state.written_lsn.get() {
                self.sync_segments().await?;
                if state.current.borrow().is_some() {
                    // One failed, and what was not stable in it has begun another already.
                    return Ok(());
                }
            } else if state.retirements.get() > 0 {
                // What was admitted had been promised a slot that failed since. Waiting for another might never end:
                // slots become free by what waits behind this.
                return Err(std::io::Error::other("too many slots have failed"));
            } else {
                state.pressure.notify_one();
                self.room_changed().await;
            }
        }
    }

    /// Ends a segment, so that nobody takes what follows for damage.
    async fn seal(&self, segment: &Rc<Segment>, offset: u64) -> std::io::Result<()> {
        segment.touch();
        self.state.dirty.borrow_mut().insert(segment.id.generation, segment.clone());
        let lsn = self.state.next_lsn.get();
        self.state.next_lsn.set(lsn + 1);
        let result = self.put_seal(segment.slot, segment.id, offset, lsn).await;
        segment.touch();
        result?;
        self.state.written_lsn.set(lsn + 1);
        Ok(())
    }

    pub(super) async fn put_seal(
        &self,
        slot: usize,
        id: SegmentId,
        offset: u64,
        lsn: u64,
    ) -> std::io::Result<()> {
        let mut seal = self.state.batch_header(id, lsn, Vec::new());
        seal.is_seal = true;
        self.state.device.write(slot, offset, vec![Bytes::from(seal.encode())]).await
    }

    async fn write_to(&self, segment: &Rc<Segment>, offset: u64, parts: Vec<Bytes>) -> std::io::Result<()> {
        segment.touch();
        self.state.dirty.borrow_mut().insert(segment.id.generation, segment.clone());
        let result = self.state.device.write(segment.slot, offset, parts).await;
        segment.touch();
        result
    }

    async fn start_segment(&self, slot: usize) -> std::io::Result<()> {
        let state = &self.state;
        let generation = state.next_generation.get();
        state.next_generation.set(generation + 1);
        let id = SegmentId { generation, salt: state.salt() };
        let header = SegmentHeader {
            log: state.id,
            id,
            start_lsn: state.next_lsn.get(),
            synced_lsn: state.synced_lsn.get(),
            voids: state.voids.borrow().clone(),
        };
        let segment = Rc::new(Segment {
            slot,
            id,
            start_lsn: header.start_lsn,
            state: Rc::downgrade(state),
            records: RefCell::default(),
            retired: Cell::new(false),
            sync_failed: RefCell::default(),
            touches: Cell::new(0),
            moves_failed: Cell::new(0),
            turns_to_pass: Cell::new(0),
        });
        state.segments.borrow_mut().insert(generation, Rc::downgrade(&segment));
        *state.current.borrow_mut() = Some(segment.clone());
        state.current_offset.set(BLOCK_BYTES as u64);
        self.write_to(&segment, 0, vec![Bytes::from(header.encode())]).await?;
        // Stable before the first batch: else a power loss could leave the old header over new batches. They would be found
        // all the same, but what this header says of voids would not.
        let _turn = state.sync_turn.lock().await;
        self.sync_segment(&segment).await
    }

    /// The caller holds the sync turn. A sync that failed is never asked again, by whomever: the next one would succeed and
    /// mean nothing.
    async fn sync_segment(&self, segment: &Segment) -> std::io::Result<()> {
        let failed = segment.sync_failed.borrow().clone();
        if let Some(error) = failed.filter(|_| !planted("log: a failed sync is asked again")) {
            return Err(std::io::Error::other(error));
        }
        self.state.syncs.set(self.state.syncs.get() + 1);
        let result = self.state.device.sync(segment.slot).await;
        if let Err(error) = &result {
            *segment.sync_failed.borrow_mut() = Some(error.to_string());
        }
        result
    }

    /// One round of the sync loop; failures are dealt with until everything written at its start is stable.
    async fn sync_round(&self) -> Result<(), VolumeError> {
        self.check_online()?;
        if let Ok(true) = self.try_sync().await {
            return Ok(());
        }
        let _turn = self.state.write_turn.lock().await;
        self.check_online()?;
        self.sync_segments().await.map_err(|error| VolumeError::Offline(error.to_string()))
    }

    /// Syncs until it works, retiring what fails. The caller holds the write turn.
    pub(super) async fn sync_segments(&self) -> std::io::Result<()> {
        for _ in 0..FAILURES_MAX {
            match self.try_sync().await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    return Err(std::io::Error::other("no slot is left for what has to be written again"));
                }
                Err(_) if planted("log: a failed sync is asked again") => {}
                Err((segment, error)) => {
                    tracing::error!(slot = segment.slot, %error, "a sync of the write buffer failed; its segment is retired");
                    self.retire(&segment).await;
                }
            }
        }
        let reason = "several segments could not be synced one after the other";
        self.go_offline(reason.into());
        Err(std::io::Error::other(reason))
    }

    /// Syncs every segment with something unstable in it. What is written while this runs is left to the next round.
    /// False when records were being written again meanwhile: then this says nothing about them.
    async fn try_sync(&self) -> Result<bool, (Rc<Segment>, std::io::Error)> {
        let state = &self.state;
        let _turn = state.sync_turn.lock().await;
        let (lsn, order, retirements) =
            (state.written_lsn.get(), state.written_order.get(), state.retirements.get());
        if !retirements.is_multiple_of(2) {
            return Ok(false);
        }
        let dirty: Vec<(Rc<Segment>, u64)> =
            state.dirty.borrow().values().map(|segment| (segment.clone(), segment.touches.get())).collect();
        let skipped = if planted("log: only the newest segment is synced") { dirty.len() - 1 } else { 0 };
        for (segment, _) in dirty.iter().skip(skipped).filter(|(segment, _)| !segment.retired.get()) {
            self.sync_segment(segment).await.map_err(|error| (segment.clone(), error))?;
        }
        if state.retirements.get() != retirements {
            return Ok(false);
        }
        for (segment, touches) in dirty {
            // Even: no write was under way when the sync began; the same: none came since.
            if segment.touches.get() == touches && touches.is_multiple_of(2) {
                state.dirty.borrow_mut().remove(&segment.id.generation);
            }
        }
        state.synced_lsn.set(state.synced_lsn.get().max(lsn));
        state.synced_order.set(state.synced_order.get().max(order));
        self.let_go_of_stable();
        Ok(true)
    }

    pub(super) fn let_go_of_stable(&self) {
        let state = &self.state;
        let synced_lsn = state.synced_lsn.get();
        let is_stable =
            |record: &Rc<Record>| record.place.borrow().as_ref().is_some_and(|place| place.lsn < synced_lsn);
        let all = state.unsynced.take();
        let (stable, unsynced): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(is_stable);
        let bytes = unsynced.iter().map(|record| record.bytes_in_memory()).sum();
        *state.unsynced.borrow_mut() = unsynced;
        state.unsynced_bytes.set(bytes);
        state.add_resident(&stable);
        // Segments may become free by this, which looks at the state.
        drop(stable);
        state.evict();
    }

    /// Gives a segment up. Everything that is not stable, in it or elsewhere, is void where it is and is written again
    /// from memory, in order: the log must not have a later write without an earlier one. The caller holds the write
    /// turn.
    async fn retire(&self, segment: &Rc<Segment>) {
        let state = &self.state;
        segment.retired.set(true);
        state.dirty.borrow_mut().remove(&segment.id.generation);
        state.retirements.set(state.retirements.get() + 1);
        // From here on new batches go elsewhere, behind a header that names the void. The last number in it is that of
        // the seal which the segment of now will never have: missing, it must not pass for damage later.
        let void = VoidRange { from_lsn: state.synced_lsn.get(), to_lsn: state.next_lsn.get() + 1 };
        state.current.borrow_mut().take();
        state.next_lsn.set(void.to_lsn);
        state.written_lsn.set(void.to_lsn);
        state.note_void(void);
        let mut lost = state.unsynced.take();
        if planted("log: only the failed segment's records are written again") {
            lost.retain(|record| {
                record.place.borrow().as_ref().is_some_and(|at| Rc::ptr_eq(&at.segment, segment))
            });
        }
        state.unsynced_bytes.set(0);
        while !lost.is_empty() {
            let batch = self.take_batch_of(&mut lost);
            if let Err(error) = Box::pin(self.try_write_batch(&batch)).await {
                state.unsynced.borrow_mut().extend(batch.into_iter().chain(lost));
                self.go_offline(format!("what was not stable could not be written again: {error}"));
                return;
            }
        }
        state.retirements.set(state.retirements.get() + 1);
        // Each took a slot for as long as this process lives. Writes would wait for room that can never come.
        let slots_left = state.good_slots();
        if slots_left <= RESERVE_WRITES + 2 {
            self.go_offline(format!("only {slots_left} of its slots have not failed"));
        }
    }

    /// The log takes nothing more. What was acknowledged and is stable is found again at the next start; of the rest
    /// nobody knows.
    pub(super) fn go_offline(&self, reason: String) {
        tracing::error!(reason, "the write buffer is offline");
        let unsynced = self.state.unsynced.borrow();
        self.state.lost.borrow_mut().extend(unsynced.iter().map(|record| record.header.vdisk));
        drop(unsynced);
        self.state.went_offline.notify_one();
        *self.state.offline.borrow_mut() = Some(reason);
        self.state.pending.borrow_mut().drain(..).for_each(|record| record.wake());
        self.state.synced.notify_waiters();
        self.state.space.notify_waiters();
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.work.notify_one();
        self.sync_wanted.notify_one();
    }
}

impl Segment {
    fn touch(&self) {
        self.touches.set(self.touches.get() + 1);
    }
}

impl State {
    /// Never 0, which is an early build's. All bits of a random UUID's lower 32 are random.
    fn salt(&self) -> u32 {
        (self.chance.uuid().as_u128() as u32).max(1)
    }

    fn batch_header(&self, segment: SegmentId, lsn: u64, records: Vec<RecordHeader>) -> BatchHeader {
        let (synced_lsn, floor_lsn) = (self.synced_lsn.get(), self.floor_lsn());
        BatchHeader { segment, lsn, synced_lsn, floor_lsn, is_seal: false, records }
    }

    fn note_void(&self, void: VoidRange) {
        let mut voids = self.voids.borrow_mut();
        voids.push(void);
        let excess = voids.len().saturating_sub(VOIDS_MAX);
        voids.drain(..excess);
    }

    /// Lets go of payload in memory past the budget, oldest first; all of it is stable.
    pub(super) fn evict(&self) {
        while self.memory_bytes.get() > self.memory_bytes_max {
            let Some(oldest) = self.resident.borrow_mut().pop_front() else { return };
            // One that is being moved is needed in memory until it is stable again, and comes back here then.
            if let Some(record) = oldest.upgrade().filter(|record| record.is_stable(self.synced_lsn.get())) {
                record.evict();
            }
        }
    }

    /// Records that are gone leave their place in the queue: looked for whenever it has doubled.
    fn add_resident(&self, records: &VecDeque<Rc<Record>>) {
        let mut resident = self.resident.borrow_mut();
        resident.extend(records.iter().map(Rc::downgrade));
        if resident.len() > self.resident_looked_at.get() {
            resident.retain(|record| record.strong_count() > 0);
            self.resident_looked_at.set((2 * resident.len()).max(RESIDENT_MIN));
        }
    }
}
