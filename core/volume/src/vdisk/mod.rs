//! One open vDisk: its state, and the door to its operations.
//!
//! ```text
//!  active layer  ◀─ writes           reads: active, sealed (newest first), base layers, tree
//!  sealed layers ─▶ destage (oldest first) ─▶ SCOs ─▶ TLog ─▶ head ─▶ tree
//! ```
//!
//! Invariants
//! * Sequences are assigned and records appended in one step without a wait, so a vDisk's log order is its accepted
//!   order.
//! * The journal has one writer at a time: whoever holds `meta`.
//! * Layers never straddle a snapshot, so every TLog lies wholly before or after each snapshot.

mod cached;
mod copy;
mod destage;
mod lifecycle;
mod limits;
mod load;
mod loss;
mod read;
mod scrub;
mod snapshot;
mod write;

pub(crate) use lifecycle::finish_even_if_dropped;
pub(crate) use load::{catch_up, check_not_older, found_vdisk, metadata_of};
pub use scrub::ScrubReport;
pub(crate) use snapshot::{CloneSource, SnapshotNode};

use crate::VolumeError;
use crate::cache::Handle;
use crate::engine::{Context, OnFull, SnapshotInfo, VdiskState, VdiskStats};
use crate::head::VersionedHead;
use crate::limiter::Limiter;
use crate::map::{Checkpoint, Table, Tree};
use crate::overlay::Layer;
use crate::readers::{Readers, Reading};
use bytes::Bytes;
use ovs_backend::Backend;
use ovs_units::{ByteCount, Epoch, Sequence, VdiskId, VpoolId, planted};
use std::{
    cell::{Cell, RefCell},
    collections::{HashSet, VecDeque},
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::sync::Notify;

/// One open vDisk. Cheap to clone; one thread.
#[derive(Clone)]
pub struct Vdisk {
    pub(crate) inner: Rc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) id: VdiskId,
    pub(crate) vpool: VpoolId,
    pub(crate) context: Rc<Context>,
    pub(crate) backend: Rc<dyn Backend>,

    size: Cell<ByteCount>,
    on_full: Cell<OnFull>,
    /// Why it does not serve writes, if so.
    trouble: RefCell<Option<VdiskState>>,
    /// Set when the vDisk is being closed or deleted.
    pub(crate) closing: Cell<bool>,
    /// Set when nothing more is to be sent out.
    pub(crate) is_ended: Cell<bool>,

    /// The last operation accepted.
    last_sequence: Cell<Sequence>,
    /// The epoch in which operations are accepted: the newest whose start object is on the backend. None before the first
    /// after an opening.
    accepting: Cell<Option<Epoch>>,
    next: Cell<lifecycle::Next>,
    /// Another host may have gone on with it since its head was read: until an epoch has its start here.
    may_be_older: Cell<bool>,
    next_sco: Cell<u64>,
    active: RefCell<Rc<Layer>>,
    sealed: RefCell<VecDeque<Rc<Layer>>>,
    /// A clone of a snapshot whose data is still in the write buffer reads it from there.
    base: RefCell<Option<PendingBase>>,
    tree: RefCell<Tree>,
    table: RefCell<Rc<Table>>,
    pub(crate) snapshots: RefCell<Vec<Rc<SnapshotNode>>>,
    pub(crate) head: RefCell<VersionedHead>,
    /// Held by whoever writes the journal or the head.
    pub(crate) meta: tokio::sync::Mutex<()>,
    /// Held while a layer is on its way to the backend.
    pub(crate) sending: tokio::sync::Mutex<()>,
    /// The layer that is on its way.
    going_out: RefCell<Option<destage::GoingOut>>,
    commits_since_checkpoint: Cell<u64>,
    /// Bytes of map pages that they have changed.
    pub(crate) changed_map_bytes: Cell<u64>,
    /// What the journal has grown by since the last copy of the map on the backend; unknown until it is looked up.
    journal_weight: Cell<Option<u64>>,
    /// The weight at which the map is copied next.
    copy_after: Cell<u64>,
    /// Held while a copy of the map is put on the backend: its pages must stay.
    pub(crate) copying: tokio::sync::Mutex<()>,
    /// Held while a checkpoint is stored. Who holds it waits for no `copying`.
    pub(crate) checkpoints: tokio::sync::Mutex<()>,
    /// The one that was taken last, until it is stored: a sweep has to know its pages.
    pub(crate) pending_checkpoint: RefCell<Weak<Checkpoint>>,

    /// Clusters that a ragged write has read and not yet written back.
    busy_clusters: RefCell<HashSet<u64>>,
    /// How many rollbacks and shrinks are about to replace the map.
    frozen: Cell<u32>,
    /// How often that happened.
    freezes: Cell<u64>,
    settled: Notify,
    destage_wanted: Rc<Notify>,
    destage_now: Cell<bool>,
    destaged: Notify,
    /// Every view: the SCOs that it may read stay.
    readers: Readers,
    pub(crate) scrub: scrub::Scrub,
    pub(crate) limiter: Limiter,
    pub(crate) cached: Handle,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    reads: Cell<u64>,
    writes: Cell<u64>,
    read_bytes: Cell<u64>,
    written_bytes: Cell<u64>,
    flushes: Cell<u64>,
    backend_put_bytes: Cell<u64>,
}

fn count(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

/// A parent's snapshot that is not on the backend yet.
#[derive(Clone)]
struct PendingBase {
    parent: Vdisk,
    snapshot: Rc<SnapshotNode>,
    layers: Vec<Rc<Layer>>,
}

/// What to read from, as of one moment.
#[derive(Clone)]
struct View {
    /// Newest first.
    layers: Vec<Rc<Layer>>,
    tree: Tree,
    table: Rc<Table>,
    size: ByteCount,
    /// SCOs and map pages that it may read stay.
    _reading: (Rc<Reading>, Rc<Reading>),
}

impl Vdisk {
    /// Its identity.
    pub fn id(&self) -> VdiskId {
        self.inner.id
    }

    /// Its vPool.
    pub fn vpool(&self) -> VpoolId {
        self.inner.vpool
    }

    /// Its size in bytes, whole clusters.
    pub fn size(&self) -> ByteCount {
        self.inner.size.get()
    }

    /// The opaque properties last set.
    pub fn properties(&self) -> Bytes {
        Bytes::from(self.inner.head.borrow().head.properties.clone())
    }

    /// What a write does from now on when the write buffer is full.
    pub fn set_on_full(&self, on_full: OnFull) {
        self.inner.on_full.set(on_full);
        self.inner.context.log.state.wake_waiting();
    }

    /// Figures as of now.
    pub fn stats(&self) -> VdiskStats {
        let inner = &self.inner;
        let c = &inner.counters;
        VdiskStats {
            state: inner.state_as_told(),
            epoch: inner.epoch(),
            sequence: inner.last_sequence.get(),
            size: inner.size.get(),
            mapped: inner.tree.borrow().mapped().bytes(),
            buffered: inner.buffered(),
            reads: c.reads.get(),
            writes: c.writes.get(),
            read_bytes: c.read_bytes.get(),
            written_bytes: c.written_bytes.get(),
            flushes: c.flushes.get(),
            backend_put_bytes: c.backend_put_bytes.get(),
            stored: ByteCount(inner.scrub.stored_bytes()),
            reclaimable: inner.scrub.reclaimable(),
            shared: inner.scrub.shared(),
            scrub_moved_bytes: inner.scrub.moved_bytes.get(),
            scrub_freed_bytes: inner.scrub.freed_bytes.get(),
            throttled: inner.limiter.throttled().requests,
            throttled_for: inner.limiter.throttled().waited,
        }
    }

    /// Adds the pages of its maps that it may still load, with their levels, and those of its table.
    pub(crate) fn add_stored_pages(&self, found: &mut Vec<(VdiskId, u64, u32)>, of_table: &mut HashSet<u64>) {
        let inner = &self.inner;
        let mut pages = Vec::new();
        inner.tree.borrow().add_stored_pages(&mut pages);
        let pending = inner.pending_checkpoint.borrow().upgrade();
        if let Some(pending) = &pending
            && !planted("sweep: a checkpoint that waits is forgotten")
        {
            pending.trees().for_each(|tree| tree.add_stored_pages(&mut pages));
            of_table.extend(pending.table.stored_pages());
        }
        let nodes = inner.snapshots.borrow();
        let base = inner.base.borrow();
        for node in nodes.iter().chain(base.iter().map(|base| &base.snapshot)) {
            if let Some(tree) = node.tree() {
                tree.add_stored_pages(&mut pages);
            }
        }
        found.extend(pages.into_iter().map(|(page, level)| (self.id(), page, level)));
        of_table.extend(inner.table.borrow().stored_pages());
    }

    /// All snapshots in the order they were taken, hidden ones too.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let head = self.inner.head.borrow();
        let nodes = self.inner.snapshots.borrow();
        nodes.iter().map(|node| node.info(&head.head)).collect()
    }
}

impl Inner {
    pub(crate) fn state(&self) -> VdiskState {
        if let Err(VolumeError::Offline(reason)) = self.context.log.check_online() {
            return VdiskState::Offline(reason);
        }
        let damaged = &self.head.borrow().head.damaged;
        if !damaged.is_empty() {
            return VdiskState::Damaged(damaged.join("; "));
        }
        if let Some(reason) = &self.head.borrow().head.lost {
            return VdiskState::Offline(reason.clone());
        }
        self.trouble.borrow().clone().unwrap_or(VdiskState::Ok)
    }

    /// A damaged map hinders nothing but what needs it, so that nobody here asks for this.
    fn state_as_told(&self) -> VdiskState {
        match (self.state(), self.context.map_damage(self.id)) {
            (VdiskState::Ok, Some(reason)) => VdiskState::Degraded(format!(
                "{reason}; what it leads to is not served until the map is made anew at the next start"
            )),
            (state, _) => state,
        }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.head.borrow().head.epoch
    }

    /// Bytes of data in its layers.
    pub(crate) fn buffered(&self) -> ByteCount {
        let sealed: u64 = self.sealed.borrow().iter().map(|layer| layer.data().0).sum();
        ovs_units::ClusterCount(sealed + self.active.borrow().data().0).bytes()
    }

    /// Blocks of the write buffer that its layers take.
    fn buffered_blocks(&self) -> u64 {
        let sealed: u64 = self.sealed.borrow().iter().map(|layer| layer.blocks()).sum();
        sealed + self.active.borrow().blocks()
    }

    pub(crate) fn has_buffered(&self) -> bool {
        !self.active.borrow().is_empty() || !self.sealed.borrow().is_empty()
    }

    fn check_serving(&self) -> Result<(), VolumeError> {
        if self.closing.get() {
            return Err(VolumeError::Offline(format!("vDisk {} is being closed", self.id)));
        }
        match self.state() {
            VdiskState::Ok | VdiskState::Degraded(_) | VdiskState::Stalled(_) => Ok(()),
            VdiskState::Damaged(reason) => Err(VolumeError::Damaged(reason)),
            VdiskState::Offline(reason) => Err(VolumeError::Offline(reason)),
        }
    }

    /// Stops it for good in this process: somebody else owns it, or nothing more can be promised.
    fn go_offline(&self, reason: String) {
        tracing::error!(vdisk = %self.id, reason, "vDisk is offline");
        *self.trouble.borrow_mut() = Some(VdiskState::Offline(reason));
        self.limiter.let_go();
        self.destaged.notify_waiters();
        self.settled.notify_waiters();
    }

    fn view(&self) -> View {
        let mut layers = Vec::with_capacity(4);
        layers.push(self.active.borrow().clone());
        layers.extend(self.sealed.borrow().iter().rev().cloned());
        if let Some(base) = &*self.base.borrow() {
            layers.extend(base.layers.iter().rev().cloned());
        }
        let (tree, table) = (self.tree.borrow().clone(), self.table.borrow().clone());
        View { layers, tree, table, size: self.size.get(), _reading: self.begin_to_read() }
    }

    fn begin_to_read(&self) -> (Rc<Reading>, Rc<Reading>) {
        (self.readers.begin(), self.context.page_readers.begin())
    }

    /// Ends the active layer, if there is anything in it.
    fn seal(&self) {
        let mut active = self.active.borrow_mut();
        if !active.is_empty() {
            let full = std::mem::replace(&mut *active, Layer::new());
            self.sealed.borrow_mut().push_back(full);
        }
    }

    async fn backoff(&self, attempt: u32) {
        let wait = Duration::from_millis(50 << attempt.min(6));
        self.context.clock.sleep(wait).await;
    }
}
