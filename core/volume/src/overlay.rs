//! What is in the write buffer and not yet on the backend: clusters → records.
//!
//! Layers are stacked, the newest on top; only the top one takes writes. A layer is sealed when a snapshot is taken or
//! when it goes to the backend; then it never changes, so that a snapshot or clone shares it by reference.

use crate::log::Record;
use crate::vdisk::SnapshotNode;
use ovs_format::log::RecordKind;
use ovs_units::{Cluster, ClusterCount, ClusterRange, Sequence};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

/// A run of clusters of one record.
#[derive(Clone)]
pub(crate) struct Piece {
    pub(crate) record: Rc<Record>,
    /// The run's first cluster within the record.
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Piece {
    pub(crate) fn is_zero(&self) -> bool {
        matches!(self.record.header.kind, RecordKind::Zero)
    }

    fn part(&self, skip: u64, count: u64) -> Piece {
        Piece { record: self.record.clone(), first: self.first + skip, count }
    }
}

/// What a layer knows of a run of clusters.
pub(crate) enum Hit {
    /// They are in this record.
    Record(Piece),
    /// Nothing, for so many clusters.
    Miss(u64),
}

/// Operations that followed each other.
pub(crate) struct Layer {
    extents: RefCell<BTreeMap<u64, Piece>>,
    /// Clusters with data (not zeros).
    data_clusters: Cell<u64>,
    pub(crate) last_sequence: Cell<Sequence>,
    /// When its first operation came.
    pub(crate) since: Cell<Option<Duration>>,
    /// Snapshots that end with this layer.
    pub(crate) markers: RefCell<Vec<Rc<SnapshotNode>>>,
}

impl Layer {
    pub(crate) fn new() -> Rc<Layer> {
        Rc::new(Layer {
            extents: RefCell::default(),
            data_clusters: Cell::new(0),
            last_sequence: Cell::new(Sequence(0)),
            since: Cell::new(None),
            markers: RefCell::default(),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.extents.borrow().is_empty()
    }

    /// Bytes of data that it maps.
    pub(crate) fn data(&self) -> ClusterCount {
        ClusterCount(self.data_clusters.get())
    }

    /// What it takes of the write buffer at most: the data, and a block for the header of every record.
    pub(crate) fn blocks(&self) -> u64 {
        self.data_clusters.get() + self.extents.borrow().len() as u64
    }

    /// Maps the record's clusters to it; what was mapped there before is forgotten.
    pub(crate) fn insert(&self, record: Rc<Record>, now: Duration) {
        let (start, count) = (record.header.cluster.0, record.header.count);
        self.last_sequence.set(self.last_sequence.get().max(record.header.sequence));
        if self.since.get().is_none() {
            self.since.set(Some(now));
        }
        let extents = &mut *self.extents.borrow_mut();
        self.cut(extents, start, count);
        let piece = Piece { record, first: 0, count };
        if !piece.is_zero() {
            self.data_clusters.set(self.data_clusters.get() + count);
        }
        extents.insert(start, piece);
    }

    /// Removes what is mapped in the range, keeping what sticks out at either end.
    fn cut(&self, extents: &mut BTreeMap<u64, Piece>, start: u64, count: u64) {
        let end = start + count;
        let mut lost = 0;
        let before = extents.range(..start).next_back().map(|(at, piece)| (*at, piece.clone()));
        if let Some((at, piece)) = before
            && at + piece.count > start
        {
            let piece_end = at + piece.count;
            extents.insert(at, piece.part(0, start - at));
            if piece_end > end {
                extents.insert(end, piece.part(end - at, piece_end - end));
            }
            lost += if piece.is_zero() { 0 } else { piece_end.min(end) - start };
        }
        while let Some((at, piece)) = extents.range(start..end).next().map(|(at, piece)| (*at, piece.clone()))
        {
            extents.remove(&at);
            let piece_end = at + piece.count;
            if piece_end > end {
                extents.insert(end, piece.part(end - at, piece_end - end));
            }
            lost += if piece.is_zero() { 0 } else { piece_end.min(end) - at };
        }
        self.data_clusters.set(self.data_clusters.get() - lost);
    }

    /// What is known of the clusters from `range.start` on: a run of at most `range.count`.
    pub(crate) fn find(&self, range: ClusterRange) -> Hit {
        let extents = self.extents.borrow();
        let start = range.start.0;
        if let Some((at, piece)) = extents.range(..=start).next_back()
            && at + piece.count > start
        {
            let skip = start - at;
            return Hit::Record(piece.part(skip, (piece.count - skip).min(range.count.0)));
        }
        let next = extents.range(start..).next().map_or(u64::MAX, |(at, _)| *at);
        Hit::Miss((next - start).min(range.count.0))
    }

    /// Everything in it, in cluster order.
    pub(crate) fn pieces(&self) -> Vec<(Cluster, Piece)> {
        self.extents.borrow().iter().map(|(at, piece)| (Cluster(*at), piece.clone())).collect()
    }
}
