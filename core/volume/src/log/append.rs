//! Admission to the log, and appending.

use super::record::{Append, Record};
use super::{Log, RESERVE_MOVES, RESERVE_WRITES, RESERVE_ZEROES};
use ovs_format::checksum;
use ovs_format::log::{BLOCK_BYTES, RecordHeader, RecordKind};
use ovs_units::{CLUSTER_SIZE_BYTES, planted};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

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
    fn take(mut self) -> u64 {
        std::mem::take(&mut self.blocks)
    }
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
        let state = &self.state;
        let slot_blocks = state.device.slot_bytes() / BLOCK_BYTES as u64;
        // At worst a record is alone in its batch, behind a header block of its own, and a slot's last blocks are lost
        // to a batch that did not fit.
        let blocks = clusters + 1;
        let reserve = match whom {
            RoomFor::Write => RESERVE_WRITES,
            RoomFor::Zero => RESERVE_ZEROES,
            RoomFor::Move => RESERVE_MOVES,
        };
        let free_slots = state.free.borrow().len();
        if free_slots <= reserve.max(self.pressure_slots()) {
            state.pressure.notify_one();
        }
        let usable_slots = (free_slots as u64).saturating_sub(reserve as u64);
        let usable_blocks = usable_slots * (slot_blocks - 1 - slot_blocks / 16);
        if state.promised_blocks.get() + blocks > usable_blocks + self.current_blocks_left() {
            // Slots that only wait for their sync become free by it.
            state.sync_wanted.notify_one();
            return None;
        }
        state.promised_blocks.set(state.promised_blocks.get() + blocks);
        Some(Room { log: self.clone(), blocks })
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

    /// Writes the live records of the oldest segment again, elsewhere, so that its slot becomes free. For records of
    /// vDisks that cannot leave the buffer while others come and go. Returns false when that would gain nothing.
    pub(crate) async fn move_oldest(&self) -> bool {
        let oldest = {
            let segments = self.state.segments.borrow();
            let current = self.state.current.borrow().as_ref().map(|segment| segment.generation);
            segments
                .values()
                .filter_map(std::rc::Weak::upgrade)
                .find(|s| Some(s.generation) != current && !s.retired.get())
        };
        let Some(segment) = oldest else { return false };
        // Those that are on their way already have been promised their room.
        let mut records = segment.live_records();
        records.retain(|record| record.promised_blocks.get() == 0);
        let live_clusters: usize = records.iter().map(|record| record.data_clusters() + 1).sum();
        let slot_clusters = self.state.device.slot_bytes() / BLOCK_BYTES as u64;
        if live_clusters as u64 * 4 > slot_clusters {
            return false;
        }
        if planted("reclaim: records are dropped, not moved") {
            records.iter().for_each(|record| *record.place.borrow_mut() = None);
            return true;
        }
        for record in records {
            let Some(room) = self.room(record.data_clusters() as u64, RoomFor::Move) else { return false };
            if record.has_data() {
                match self.read(&record, 0, record.header.count).await {
                    Ok(data) => record.set_resident(data),
                    Err(error) => {
                        tracing::error!(vdisk = %record.header.vdisk, %error, "cannot move a record of the write buffer");
                        return false;
                    }
                }
            }
            record.promised_blocks.set(record.promised_blocks.get() + room.take());
            self.state.pending.borrow_mut().push_back(record);
            self.state.work.notify_one();
        }
        true
    }
}
