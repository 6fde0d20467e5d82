//! Records of the write buffer in memory, and the segments that hold them on the device.
//!
//! A record lives as long as somebody refers to it: an overlay that maps clusters to it, a reader, the queue of what is
//! not yet stable. A segment lives as long as a record lies in it; when the last one goes its slot is free. Nothing has
//! to be counted, and a slot that has readers is never reused.

use super::{Log, State};
use bytes::Bytes;
use ovs_format::log::{RecordHeader, RecordKind, SegmentId};
use ovs_units::{CLUSTER_SIZE_BYTES, Cluster, Epoch, Sequence, VdiskId};
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::{Rc, Weak},
    task::{Poll, Waker},
};

/// Where a record is on the device.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) segment: Rc<Segment>,
    /// Byte offset of the record's first data cluster in the slot.
    pub(crate) offset: u64,
    pub(crate) lsn: u64,
}

/// One operation in the write buffer.
pub(crate) struct Record {
    pub(super) state: Weak<State>,
    pub(crate) header: RecordHeader,
    /// Its place in the order of everything appended; rewritten and moved records keep theirs.
    pub(super) order: u64,
    /// Blocks promised to it while it is not written.
    pub(super) promised_blocks: Cell<u64>,
    /// The payload, until it is evicted; never evicted before it is stable.
    pub(super) data: RefCell<Option<Bytes>>,
    pub(super) place: RefCell<Option<Place>>,
    pub(super) waiters: RefCell<Vec<Waker>>,
}

impl Record {
    pub(super) fn has_data(&self) -> bool {
        matches!(self.header.kind, RecordKind::Data(_))
    }

    pub(super) fn data_clusters(&self) -> usize {
        match &self.header.kind {
            RecordKind::Data(checksums) => checksums.len(),
            RecordKind::Zero => 0,
        }
    }

    /// What it costs while it is kept, payload or not.
    pub(super) fn bytes_in_memory(&self) -> u64 {
        self.data_clusters().max(1) as u64 * CLUSTER_SIZE_BYTES
    }

    /// The number of the batch that it is in; 0 while it is in none.
    pub(crate) fn lsn(&self) -> u64 {
        self.place.borrow().as_ref().map_or(0, |place| place.lsn)
    }

    /// The checksums of a data record's clusters; none for zeros.
    pub(crate) fn checksums(&self) -> &[u32] {
        match &self.header.kind {
            RecordKind::Data(checksums) => checksums,
            RecordKind::Zero => &[],
        }
    }

    /// `count` clusters from the record's `first` on, if they are in memory.
    pub(crate) fn resident(&self, first: u64, count: u64) -> Option<Bytes> {
        let data = self.data.borrow();
        let (start, length) = ((first * CLUSTER_SIZE_BYTES) as usize, (count * CLUSTER_SIZE_BYTES) as usize);
        data.as_ref().map(|data| data.slice(start..start + length))
    }

    pub(super) fn set_resident(&self, data: Bytes) {
        if let Some(state) = self.state.upgrade()
            && self.data.borrow().is_none()
        {
            state.memory_bytes.set(state.memory_bytes.get() + data.len() as u64);
            *self.data.borrow_mut() = Some(data);
        }
    }

    /// Is it on stable storage, where it is now, and not on its way elsewhere?
    pub(super) fn is_stable(&self, synced_lsn: u64) -> bool {
        let is_placed = self.place.borrow().as_ref().is_some_and(|place| place.lsn < synced_lsn);
        is_placed && self.promised_blocks.get() == 0
    }

    pub(super) fn evict(&self) {
        if let Some(data) = self.data.borrow_mut().take()
            && let Some(state) = self.state.upgrade()
        {
            state.memory_bytes.set(state.memory_bytes.get().saturating_sub(data.len() as u64));
        }
    }

    /// Comes back when the kernel has the record and every one before it; false when the log went offline instead.
    pub(crate) async fn written(&self) -> bool {
        poll_fn(|context| {
            if self.place.borrow().is_some() {
                return Poll::Ready(true);
            }
            if self.state.upgrade().is_none_or(|state| state.offline.borrow().is_some()) {
                return Poll::Ready(false);
            }
            self.waiters.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    pub(super) fn wake(&self) {
        self.waiters.borrow_mut().drain(..).for_each(Waker::wake);
    }

    pub(super) fn replayed(state: &Rc<State>, header: RecordHeader, place: Place, order: u64) -> Rc<Record> {
        let record = Rc::new(Record {
            state: Rc::downgrade(state),
            header,
            order,
            promised_blocks: Cell::new(0),
            data: RefCell::new(None),
            place: RefCell::new(Some(place.clone())),
            waiters: RefCell::default(),
        });
        place.segment.records.borrow_mut().push(Rc::downgrade(&record));
        record
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.evict();
        if let Some(state) = self.state.upgrade() {
            state.unpromise(self);
        }
    }
}

/// What an append is made of.
pub(crate) struct Append {
    pub(crate) vdisk: VdiskId,
    pub(crate) epoch: Epoch,
    pub(crate) sequence: Sequence,
    pub(crate) cluster: Cluster,
    pub(crate) count: u64,
    /// Whole clusters; none for zeros.
    pub(crate) data: Option<Bytes>,
}

/// A slot in use: what one header block starts.
pub(crate) struct Segment {
    pub(super) slot: usize,
    pub(super) id: SegmentId,
    pub(super) start_lsn: u64,
    pub(super) state: Weak<State>,
    /// What lies in it, for moving it elsewhere.
    pub(super) records: RefCell<Vec<Weak<Record>>>,
    /// Set when a write or sync of it failed, or when it is kept as evidence: its slot is not used again.
    pub(super) retired: Cell<bool>,
    /// What a sync of it failed with: the next one would succeed and mean nothing.
    pub(super) sync_failed: RefCell<Option<String>>,
    /// Grows when a write to it begins and when it ends: odd while one is under way.
    pub(super) touches: Cell<u64>,
    /// It could not be moved so often, and lets so many of its turns pass.
    pub(super) moves_failed: Cell<u32>,
    pub(super) turns_to_pass: Cell<u32>,
}

impl Segment {
    /// It could not be moved: twice as many of its turns pass as the last time. Returns how often that was.
    pub(super) fn lets_turns_pass(&self) -> u32 {
        let failed = self.moves_failed.get() + 1;
        self.moves_failed.set(failed);
        self.turns_to_pass.set(1 << failed.min(10));
        failed
    }

    pub(super) fn takes_its_turn(&self) -> bool {
        let left = self.turns_to_pass.get();
        self.turns_to_pass.set(left.saturating_sub(1));
        left == 0
    }

    pub(super) fn live_records(&self) -> Vec<Rc<Record>> {
        let here = |record: &Rc<Record>| {
            let place = record.place.borrow();
            place.as_ref().is_some_and(|place| std::ptr::eq(&*place.segment, self))
        };
        self.records.borrow().iter().filter_map(Weak::upgrade).filter(here).collect()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if let Some(state) = self.state.upgrade() {
            state.segment_is_free(self);
        }
    }
}

impl Log {
    /// The bytes of `count` clusters of a record from its `first` on: from memory, or read and verified.
    pub(crate) async fn read(
        &self,
        record: &Rc<Record>,
        first: u64,
        count: u64,
    ) -> Result<Bytes, crate::VolumeError> {
        if let Some(data) = record.resident(first, count) {
            return Ok(data);
        }
        // The place is cloned: it keeps the segment alive while we read, even if the record moves meanwhile.
        let place = record.place.borrow().clone();
        let Some(place) = place else {
            return Err(crate::VolumeError::Offline("a record that was never written was asked for".into()));
        };
        let offset = place.offset + first * CLUSTER_SIZE_BYTES;
        let length = (count * CLUSTER_SIZE_BYTES) as usize;
        let slot = place.segment.slot;
        // A read that fails, unlike a sync, may be tried again: it changes nothing.
        let bytes = self.state.device.read(slot, offset, length).await.map_err(|error| {
            crate::VolumeError::Retry(format!(
                "cannot read slot {slot} of the write buffer at {offset}: {error}"
            ))
        })?;
        for (cluster, expected) in
            bytes.chunks(CLUSTER_SIZE_BYTES as usize).zip(&record.checksums()[first as usize..])
        {
            let found = ovs_format::checksum(cluster);
            if found != *expected {
                return Err(crate::VolumeError::Damaged(format!(
                    "slot {slot} of the write buffer at {offset}: checksum {found:08x} where {expected:08x} was expected"
                )));
            }
        }
        Ok(bytes)
    }
}
