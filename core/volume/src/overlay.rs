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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Append, FileDevice, Log, RoomFor};
    use ovs_units::{Epoch, VdiskId};
    use uuid::Uuid;

    /// Records over others in every way, against a list of who has which cluster.
    #[test]
    fn a_layer_has_of_each_cluster_the_newest_record() {
        const END: u64 = 24;
        let directory = tempfile::tempdir().unwrap();
        let device = FileDevice::open(directory.path(), 12, 2 << 20).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let log = Log::open(Rc::new(device), Rc::new(crate::SystemChance), 1 << 20).await.unwrap().0;
            let record = |sequence: u64, start, count, is_zero: bool| {
                let data = (!is_zero).then(|| vec![0; (count * 4096) as usize].into());
                let (vdisk, epoch) = (VdiskId(Uuid::from_u128(2)), Epoch(1));
                let (sequence, cluster) = (Sequence(sequence), Cluster(start));
                let room = log.room(0, RoomFor::Move).unwrap();
                log.append(room, Append { vdisk, epoch, sequence, cluster, count, data })
            };
            for case in 0..400u64 {
                let layer = Layer::new();
                let mut expected = [None; END as usize];
                for step in 1..=8u64 {
                    // Any numbers will do that come to all ways of lying to each other.
                    let number = (case * 8 + step).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                    let (start, is_zero) = (number % 20, number >> 32 & 3 == 0);
                    let count = 1 + (number >> 8) % (END - start).min(9);
                    layer.insert(record(step, start, count, is_zero), Duration::ZERO);
                    for cluster in start..start + count {
                        expected[cluster as usize] = Some((step, cluster - start, is_zero));
                    }
                    check(&layer, &expected, &format!("case {case}, step {step}"));
                }
            }
        });
    }

    fn check(layer: &Layer, expected: &[Option<(u64, u64, bool)>], case: &str) {
        let mut found = vec![None; expected.len()];
        for (at, piece) in layer.pieces() {
            assert!(piece.count > 0, "{case}");
            for index in 0..piece.count {
                let sequence = piece.record.header.sequence.0;
                let slot = &mut found[(at.0 + index) as usize];
                assert_eq!(slot.replace((sequence, piece.first + index, piece.is_zero())), None, "{case}");
            }
        }
        assert_eq!(found, expected, "{case}");
        let data = expected.iter().filter(|cluster| cluster.is_some_and(|(_, _, is_zero)| !is_zero)).count();
        assert_eq!((layer.data().0, layer.blocks()), (data as u64, (data + layer.pieces().len()) as u64));
        for start in 0..expected.len() {
            for count in [1, 4, 100] {
                let range = ClusterRange { start: Cluster(start as u64), count: ClusterCount(count) };
                let (hit, told) = match layer.find(range) {
                    Hit::Record(piece) => {
                        (Some((piece.record.header.sequence.0, piece.first, piece.is_zero())), piece.count)
                    }
                    Hit::Miss(count) => (None, count),
                };
                assert_eq!(hit, expected[start], "{case}, cluster {start}");
                let is_same = |index: u64| match (hit, expected.get(start + index as usize)) {
                    (None, other) => other.is_none_or(Option::is_none),
                    (Some((sequence, first, _)), Some(Some(other))) => {
                        (other.0, other.1) == (sequence, first + index)
                    }
                    _ => false,
                };
                let run = (0..count).take_while(|index| is_same(*index)).count() as u64;
                assert_eq!(told, run, "{case}, {count} from cluster {start}");
            }
        }
    }
}
