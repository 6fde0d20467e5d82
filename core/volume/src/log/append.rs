//! Admission to the log, and appending.

use super::record::{Append, Record, Segment};
use super::{Log, RESERVE_MOVES, RESERVE_WRITES, RESERVE_ZEROES};
use crate::VolumeError;
use bytes::Bytes;
use ovs_format::checksum;
use ovs_format::log::{BLOCK_BYTES, RecordHeader, RecordKind};
use ovs_units::{CLUSTER_SIZE_BYTES, VdiskId, planted};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// Segments that are looked at in one search for one to move: each has some thousand records.
const MOVE_LOOKS_MAX: usize = 8;
/// All of a segment that is moved is in memory at once: 64 MiB at most.
const MOVE_BLOCKS_MAX: u64 = (64 << 20) / BLOCK_BYTES as u64;

/// Who asks for room: how much of the reserve it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RoomFor {
    Write,
    /// Discards: they lead to more room.
    Zero,
    Move,
}

/// Room in the log for one append. Given back when dropped unused.
pub(crate) struct Room {
    log: Log,
    blocks: u64,
}

impl Room {
    /// The blocks, now in the caller's care.
    pub(super) fn take(mut self) -> u64 {
        std::mem::take(&mut self.blocks)
    }

    /// So many of the blocks, at most all.
    fn take_part(&mut self, blocks: u64) -> u64 {
        let part = blocks.min(self.blocks);
        self.blocks -= part;
        part
    }
}

/// At worst a record is alone in its batch, behind a header block of its own.
fn blocks_of(data_clusters: u64) -> u64 {
    data_clusters + 1
}

fn blocks_of_all(records: &[Rc<Record>]) -> u64 {
    records.iter().map(|record| blocks_of(record.data_clusters() as u64)).sum()
}

impl Drop for Room {
    fn drop(&mut self) {
        let promised = &self.log.state.promised_blocks;
        promised.set(promised.get() - self.blocks);
    }
}

impl Log {
    /// Room for a record of `clusters` data clusters (0 for zeros), or `None` when there is none now. Wait for
    /// [`Log::room_changed`] and ask again.
    pub(crate) fn room(&self, clusters: u64, whom: RoomFor) -> Option<Room> {
        self.room_of(blocks_of(clusters), whom)
    }

    fn room_of(&self, blocks: u64, whom: RoomFor) -> Option<Room> {
        let state = &self.state;
        let slot_blocks = state.device.slot_bytes() / BLOCK_BYTES as u64;
        let reserve = match whom {
            RoomFor::Write => RESERVE_WRITES,
            RoomFor::Zero => RESERVE_ZEROES,
            RoomFor::Move => RESERVE_MOVES,
        };
        let mut free_slots = state.free.borrow().len();
        if free_slots <= reserve.max(self.pressure_slots()) {
            state.pressure.notify_one();
        }
        let fits = |free_slots: usize| {
            let usable_slots = free_slots.saturating_sub(reserve) as u64;
            // At worst a slot's last blocks are lost to a batch that did not fit.
            let usable_blocks = usable_slots * (slot_blocks - 1 - slot_blocks / 16);
            // Below the reserve nobody else begins a slot, and what is left of the one begun is for whom it is kept.
            let is_kept = free_slots < reserve && whom != RoomFor::Move && state.good_slots() > reserve;
            let left = if is_kept { 0 } else { self.current_blocks_left() };
            state.promised_blocks.get() + blocks <= usable_blocks + left
        };
        let mut is_room = fits(free_slots);
        if !is_room && free_slots > 0 && self.current_is_spent() {
            // It is free as soon as another is begun.
            free_slots += 1;
            is_room = fits(free_slots);
        }
        if !is_room {
            // Slots that only wait for their sync become free by it.
            state.sync_wanted.notify_one();
            return None;
        }
        state.promised_blocks.set(state.promised_blocks.get() + blocks);
        Some(Room { log: self.clone(), blocks })
    }

    /// Blocks that writes may fill when nothing else is in the log.
    pub(crate) fn blocks_for_writes(&self) -> u64 {
        let device = &self.state.device;
        device.slot_count().saturating_sub(RESERVE_WRITES) as u64 * (device.slot_bytes() / BLOCK_BYTES as u64)
    }

    /// Below this many free slots everything buffered is sent out.
    fn pressure_slots(&self) -> usize {
        self.state.device.slot_count() / 2
    }

    fn current_blocks_left(&self) -> u64 {
        let state = &self.state;
        let left = state.device.slot_bytes().saturating_sub(state.current_offset.get()) / BLOCK_BYTES as u64;
        // The last sixteenth of a slot may be lost to a batch that does not fit.
        let slack = state.device.slot_bytes() / BLOCK_BYTES as u64 / 16;
        if state.current.borrow().is_some() { left.saturating_sub(slack) } else { 0 }
    }

    /// Is the segment that is written to of no use to anybody: nearly full, and without a record that is needed?
    fn current_is_spent(&self) -> bool {
        let state = &self.state;
        let current = state.current.borrow();
        let is_idle = state.pending.borrow().is_empty() && state.promised_blocks.get() == 0;
        is_idle
            && self.current_blocks_left() <= self.record_clusters_max()
            && current.as_ref().is_some_and(|segment| segment.live_records().is_empty())
    }

    /// Comes back when room may have become free.
    pub(crate) fn room_changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.state.space.notified()
    }

    /// Appends one record. It is in the log's order when this returns; [`Record::written`] says when it is written.
    pub(crate) fn append(&self, room: Room, append: Append) -> Rc<Record> {
        let state = &self.state;
        let kind = match &append.data {
            Some(data) => RecordKind::Data(data.chunks(CLUSTER_SIZE_BYTES as usize).map(checksum).collect()),
            None => RecordKind::Zero,
        };
        let Append { vdisk, epoch, sequence, cluster, count, data } = append;
        let order = state.next_order.get() + 1;
        state.next_order.set(order);
        let record = Rc::new(Record {
            state: Rc::downgrade(state),
            header: RecordHeader { vdisk, epoch, sequence, cluster, count, kind },
            order,
            promised_blocks: Cell::new(room.take()),
            data: RefCell::new(None),
            place: RefCell::new(None),
            waiters: RefCell::default(),
        });
        if let Some(data) = data {
            record.set_resident(data);
        }
        state.pending.borrow_mut().push_back(record.clone());
        state.work.notify_one();
        record
    }

    /// Have writes no slot left but the one that is written to now?
    pub(crate) fn no_slot_for_writes(&self) -> bool {
        self.state.free.borrow().len() <= RESERVE_WRITES
    }

    /// Writes the live records of a segment again, elsewhere, so that its slot becomes free. For records of vDisks that
    /// cannot leave the buffer while others come and go; `can_leave` says who can. All of them or none: some would take
    /// room elsewhere and give none back.
    pub(crate) async fn move_one(&self, can_leave: impl Fn(&VdiskId) -> bool) {
        let mut looks = std::iter::from_fn(|| self.next_to_move()).take(MOVE_LOOKS_MAX);
        let found = looks.find_map(|segment| {
            let records = self.worth_moving(&segment, &can_leave)?;
            let room = self.room_of(blocks_of_all(&records), RoomFor::Move)?;
            Some((records, room))
        });
        let Some((records, mut room)) = found else { return };
        if planted("reclaim: records are dropped, not moved") {
            records.iter().for_each(|record| *record.place.borrow_mut() = None);
            return;
        }
        let mut data = Vec::with_capacity(records.len());
        for record in &records {
            match self.payload(record).await {
                Ok(payload) => data.push(payload),
                Err(error) => {
                    let segment = record.place.borrow().as_ref().map(|place| place.segment.clone());
                    let failed = segment.map_or(1, |segment| segment.lets_turns_pass());
                    tracing::error!(vdisk = %record.header.vdisk, %error, failed, "cannot move a record of the write buffer");
                    return;
                }
            }
        }
        for (record, payload) in records.into_iter().zip(data) {
            if let Some(payload) = payload {
                record.set_resident(payload);
            }
            let blocks = room.take_part(blocks_of(record.data_clusters() as u64));
            record.promised_blocks.set(record.promised_blocks.get() + blocks);
            self.state.pending.borrow_mut().push_back(record);
        }
        self.state.work.notify_one();
    }

    async fn payload(&self, record: &Rc<Record>) -> Result<Option<Bytes>, VolumeError> {
        match record.has_data() {
            true => self.read(record, 0, record.header.count).await.map(Some),
            false => Ok(None),
        }
    }

    /// Segments that may be moved have their turns, in the order of the log. The one that is written to is among them once
    /// a write may not fit into it: nothing else would ever end it.
    pub(super) fn next_to_move(&self) -> Option<Rc<Segment>> {
        let segments = self.state.segments.borrow();
        let current = self.state.current.borrow().as_ref().map(|segment| segment.id.generation);
        let kept = current.filter(|_| self.current_blocks_left() > self.record_clusters_max());
        let last = self.state.last_moved.get();
        let next = segments
            .range(last + 1..)
            .chain(segments.range(..=last))
            .filter_map(|(_, segment)| segment.upgrade())
            .find(|segment| {
                Some(segment.id.generation) != kept && !segment.retired.get() && segment.takes_its_turn()
            })?;
        self.state.last_moved.set(next.id.generation);
        Some(next)
    }

    /// Its live records, if they are few for a slot. What can leave will leave soon: of that, only a little is moved.
    pub(super) fn worth_moving(
        &self,
        segment: &Segment,
        can_leave: impl Fn(&VdiskId) -> bool,
    ) -> Option<Vec<Rc<Record>>> {
        // Those that are on their way already have been promised their room.
        let mut records = segment.live_records();
        records.retain(|record| record.promised_blocks.get() == 0);
        let blocks = blocks_of_all(&records);
        let quarters = if records.iter().any(|record| can_leave(&record.header.vdisk)) { 1 } else { 3 };
        let is_worth = blocks * 4 <= self.state.device.slot_bytes() / BLOCK_BYTES as u64 * quarters
            && blocks <= MOVE_BLOCKS_MAX;
        (is_worth && !records.is_empty()).then_some(records)
    }
}
