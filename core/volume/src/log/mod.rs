//! The write buffer: one log per device, shared by all vDisks of an engine.
//!
//! ```text
//!  append ─▶ pending ─▶ writer: one batch in flight ─▶ written (acknowledged) ─▶ sync: one round in flight ─▶ stable
//! ```
//!
//! Invariants
//! * One batch is in flight at a time, so a record is `written` only when every earlier byte of the log is.
//! * A record's payload stays in memory until it is stable: when a write or sync fails, the segment is retired and what
//!   was not stable in it is written again elsewhere, before any flush is answered. A failed sync is never asked again.
//! * A slot is reused only after everything appended before it became free is stable: what superseded its records. Before
//!   that no batch tells a replay that it need not look there.
//! * The end that a replay chose is made persistent, by a new segment's header, before anything is served.
//!
//! Not here: what records mean to a vDisk (see `vdisk`), space on backends.

mod append;
mod device;
mod record;
mod replay;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use append::{Room, RoomFor};
pub use device::{FileDevice, LogDevice};
pub(crate) use record::{Append, Record, Segment};

use crate::{Chance, VolumeError};
use ovs_format::log::BLOCK_BYTES;
use ovs_format::log::VoidRange;
use ovs_units::{VdiskId, planted};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::{Rc, Weak},
};
use tokio::sync::Notify;
use uuid::Uuid;

/// Payload that is written but not stable is synced at this much even if nobody asks, to bound what must be kept.
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;
/// Free slots that only the named class of appends may go below.
const RESERVE_WRITES: usize = 3;
const RESERVE_ZEROES: usize = 2;
const RESERVE_MOVES: usize = 1;

/// The log. Cheap to clone; one thread.
#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) state: Rc<State>,
}

/// A slot that may be used again.
struct FreeSlot {
    slot: usize,
    /// Everything appended up to here must be stable first …
    after_order: u64,
    /// … and every batch below this: records that were only moved have no order of their own.
    after_lsn: u64,
}

/// A segment whose records have all gone or been superseded, whether its slot is free or not.
struct Left {
    start_lsn: u64,
    /// Until that much is stable, as with a free slot, a replay has to find them here.
    after_order: u64,
    after_lsn: u64,
}

impl Left {
    fn is_superseded_by(&self, order: u64, lsn: u64) -> bool {
        self.after_order <= order && self.after_lsn <= lsn
    }
}

pub(crate) struct State {
    device: Rc<dyn LogDevice>,
    id: Uuid,
    chance: Rc<dyn Chance>,
    memory_bytes_max: u64,

    next_order: Cell<u64>,
    next_lsn: Cell<u64>,
    next_generation: Cell<u64>,
    /// All batches below are with the kernel, or void.
    written_lsn: Cell<u64>,
    /// All batches below are stable, or void.
    synced_lsn: Cell<u64>,
    /// Every record up to here is written, in the order of appends.
    written_order: Cell<u64>,
    synced_order: Cell<u64>,
    voids: RefCell<Vec<VoidRange>>,
    /// Grows when a retirement begins and when all of it is written again: odd while one is under way.
    retirements: Cell<u64>,
    /// Slots that this process does not use because of what a replay found in them.
    evidence_slots: Cell<usize>,

    pending: RefCell<VecDeque<Rc<Record>>>,
    /// Written and not stable, in the order of the log. What was overwritten meanwhile is kept as well: what took its
    /// place may never get as far.
    unsynced: RefCell<VecDeque<Rc<Record>>>,
    unsynced_bytes: Cell<u64>,
    /// Segments written to since they were last synced: headers, batches and seals alike. They are kept until they
    /// are stable, needed or not: a hole in the sequence of batches would pass for the log's end.
    dirty: RefCell<BTreeMap<u64, Rc<Segment>>>,
    resident: RefCell<VecDeque<Weak<Record>>>,
    /// At this length it is looked through for records that are gone.
    resident_looked_at: Cell<usize>,
    memory_bytes: Cell<u64>,

    current: RefCell<Option<Rc<Segment>>>,
    current_offset: Cell<u64>,
    segments: RefCell<BTreeMap<u64, Weak<Segment>>>,
    free: RefCell<VecDeque<FreeSlot>>,
    /// In the order in which they were left.
    left: RefCell<VecDeque<Left>>,
    /// Records are let go of that are still needed: see [`Log::end`].
    is_ended: Cell<bool>,
    /// The generation of the segment that was last looked at for being moved.
    last_moved: Cell<u64>,
    promised_blocks: Cell<u64>,

    work: Rc<Notify>,
    sync_wanted: Rc<Notify>,
    flush_habit: FlushHabit,
    synced: Notify,
    space: Notify,
    /// Told when free space gets short.
    pub(crate) pressure: Rc<Notify>,
    write_turn: tokio::sync::Mutex<()>,
    /// One sync at a time: of several the kernel tells only one that it failed.
    sync_turn: tokio::sync::Mutex<()>,
    offline: RefCell<Option<String>>,
    /// When it went offline: whose acknowledged records were not stable. Told once.
    pub(crate) lost: RefCell<BTreeSet<VdiskId>>,
    pub(crate) went_offline: Rc<Notify>,
    log_written_bytes: Cell<u64>,
    syncs: Cell<u64>,
}

/// Whether each write has been followed by a flush lately. Then the sync for the next flush begins with the write's
/// answer, and is under way while the guest reads that and asks for the flush.
#[derive(Debug, Default)]
struct FlushHabit {
    batches_since_flush: Cell<u32>,
    /// So many times in a row there was one batch between two flushes.
    streak: Cell<u32>,
}

impl FlushHabit {
    /// As often as this, before anything is synced that nobody asked for.
    const STREAK_MIN: u32 = 4;

    fn flushed(&self) {
        let is_one = self.batches_since_flush.replace(0) == 1;
        self.streak.set(if is_one { self.streak.get().saturating_add(1) } else { 0 });
    }

    /// Is a flush likely to be next?
    fn written(&self) -> bool {
        self.batches_since_flush.set(self.batches_since_flush.get().saturating_add(1));
        self.batches_since_flush.get() == 1 && self.streak.get() >= Self::STREAK_MIN
    }
}

/// Figures of the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogStats {
    pub(crate) total_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) syncs: u64,
    pub(crate) failed_slots: u64,
}

impl State {
    /// Slots that can be used in this life.
    fn good_slots(&self) -> usize {
        let bad = self.evidence_slots.get() + self.retirements.get() as usize / 2;
        self.device.slot_count().saturating_sub(bad)
    }

    /// Lets whoever waits for room look again.
    pub(crate) fn wake_waiting(&self) {
        self.space.notify_waiters();
    }

    /// A segment's last record has gone.
    fn segment_is_free(&self, segment: &Segment) {
        self.segments.borrow_mut().remove(&segment.id.generation);
        if self.is_ended.get() {
            return;
        }
        let (after_order, after_lsn) = (self.next_order.get(), self.next_lsn.get());
        self.left.borrow_mut().push_back(Left { start_lsn: segment.start_lsn, after_order, after_lsn });
        if !segment.retired.get() {
            self.free.borrow_mut().push_back(FreeSlot { slot: segment.slot, after_order, after_lsn });
        }
        self.space.notify_waiters();
    }

    fn unpromise(&self, record: &Record) {
        let promised = record.promised_blocks.replace(0);
        self.promised_blocks.set(self.promised_blocks.get() - promised);
    }

    /// Batches below this are needed by nobody, whatever of what is not stable is lost.
    fn floor_lsn(&self) -> u64 {
        if self.is_ended.get() {
            return 0;
        }
        let mut left = self.left.borrow_mut();
        let is_stable = |left: &Left| left.is_superseded_by(self.synced_order.get(), self.synced_lsn.get());
        while left.pop_front_if(|left| is_stable(left)).is_some() {}
        let is_needed =
            |_: &&Left| !planted("log: what superseded it is not stable, and it is below the floor");
        let superseded = left.iter().filter(is_needed).map(|left| left.start_lsn);
        // Segments start in the order of their generations.
        let segments = self.segments.borrow();
        let alive = segments.values().find_map(Weak::upgrade).map(|segment| segment.start_lsn);
        alive.into_iter().chain(superseded).min().unwrap_or(self.next_lsn.get())
    }
}

impl Log {
    /// Data clusters in one record at most: 1 MiB, less where slots are small.
    pub(crate) fn record_clusters_max(&self) -> u64 {
        (self.state.device.slot_bytes() / BLOCK_BYTES as u64 / 16).clamp(1, 256)
    }

    /// From now on records are let go of, needed or not, and are found by the next start: no slot becomes free by that, and
    /// whatever is still being written says that all of them are needed.
    pub(crate) fn end(&self) {
        self.state.is_ended.set(!planted("log: what is let go of at the end passes for superseded"));
    }

    pub(crate) fn check_online(&self) -> Result<(), VolumeError> {
        match &*self.state.offline.borrow() {
            None => Ok(()),
            Some(reason) => Err(VolumeError::Offline(format!("the write buffer failed: {reason}"))),
        }
    }

    pub(crate) fn stats(&self) -> LogStats {
        let state = &self.state;
        let slots = state.device.slot_count() as u64;
        let slot_bytes = state.device.slot_bytes();
        let unused = state.free.borrow().len() as u64 * slot_bytes;
        let rest_of_current = state
            .current
            .borrow()
            .as_ref()
            .map_or(0, |_| slot_bytes.saturating_sub(state.current_offset.get()));
        LogStats {
            total_bytes: slots * slot_bytes,
            used_bytes: (slots * slot_bytes).saturating_sub(unused + rest_of_current),
            written_bytes: state.log_written_bytes.get(),
            syncs: state.syncs.get(),
            failed_slots: state.retirements.get() / 2,
        }
    }
}
