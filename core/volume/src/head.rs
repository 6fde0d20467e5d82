//! The head of a vDisk: its commit point in the registry. It changes only by compare-and-swap.

use crate::journal::Own;
use crate::map::copy::CopyId;
use crate::{Chance, Revision, VolumeError};
use ovs_format::journal::Position;
use ovs_units::{
    ByteCount, COUNTER_MAX, Epoch, JournalIndex, Name, Sequence, SnapshotId, VDISK_SIZE_BYTES_MAX, VdiskId,
    VpoolId, planted,
};
use serde::{Deserialize, Serialize};

/// The registry key under which a vDisk's head is.
pub(crate) fn head_key(vdisk: VdiskId) -> String {
    format!("head/{vdisk}")
}

pub(crate) const HEAD_PREFIX: &str = "head/";

const FORMAT: u32 = 1;

/// An opening takes one epoch, and a record that is given up another: nobody takes so many one after the other without a record
/// that is acknowledged. There is room for five hundred million recoveries.
pub(crate) const EPOCHS_UNSEEN: u64 = 1 << 32;

/// What the registry says of a vDisk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    format: u32,
    pub(crate) vpool: VpoolId,
    /// Raised at every opening for writing; never used twice.
    pub(crate) epoch: Epoch,
    /// The journal record committed last; none until the first start object is put.
    pub(crate) position: Option<(Epoch, JournalIndex)>,
    /// Operations up to here are in the journal.
    pub(crate) sequence: Sequence,
    pub(crate) size: ByteCount,
    pub(crate) base: Option<(VdiskId, SnapshotId)>,
    /// Epochs and the sequence after which each starts: what older epochs buffered past it never happened.
    pub(crate) epochs: Vec<(Epoch, Sequence)>,
    pub(crate) snapshots: Vec<HeadSnapshot>,
    /// The two newest copies of the map on the backend, the older one first. The journal before that is gone.
    pub(crate) copies: Vec<CopyId>,
    /// Set when it was found that an acknowledged write is lost or wrong.
    pub(crate) damaged: Vec<String>,
    /// Set when the write buffer failed under acknowledged writes: some may be lost. Nothing is served until somebody
    /// accepts that.
    pub(crate) lost: Option<String>,
    /// Damage that somebody has accepted: the evidence for it stays where it is.
    pub(crate) accepted: Vec<String>,
    /// Deleted by its user; kept while others depend on it.
    pub(crate) deleted: bool,
    /// It was rebuilt from its backend, and not all that may be clones of it is known again.
    #[serde(default)]
    pub(crate) clones_unknown: bool,
    /// It was found on its backend, and no epoch of it has a start since. Above this one there may be names that do not show: of a
    /// drive that is silent, or of a put that lands yet.
    #[serde(default)]
    pub(crate) epochs_unknown: bool,
    /// The epoch is one that a deletion took for its tombstone; nobody has taken one since.
    #[serde(default)]
    pub(crate) deleting: bool,
    pub(crate) properties: String,
}

/// A snapshot in a head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeadSnapshot {
    pub(crate) id: SnapshotId,
    pub(crate) name: Name,
    pub(crate) created_ms: u64,
    pub(crate) sequence: Sequence,
    pub(crate) size: ByteCount,
    pub(crate) hidden: bool,
    pub(crate) clones: Vec<VdiskId>,
}

impl Head {
    pub(crate) fn new(
        vpool: VpoolId,
        size: ByteCount,
        base: Option<(VdiskId, SnapshotId)>,
        properties: String,
    ) -> Head {
        Head {
            format: FORMAT,
            vpool,
            epoch: Epoch(0),
            position: None,
            sequence: Sequence(0),
            size,
            base,
            epochs: Vec::new(),
            snapshots: Vec::new(),
            copies: Vec::new(),
            damaged: Vec::new(),
            lost: None,
            accepted: Vec::new(),
            deleted: false,
            clones_unknown: false,
            epochs_unknown: false,
            deleting: false,
            properties,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a head has only keys that JSON knows")
    }

    pub(crate) fn decode(vdisk: VdiskId, bytes: &[u8]) -> Result<Head, VolumeError> {
        let head: Head = serde_json::from_slice(bytes)
            .map_err(|error| VolumeError::Damaged(format!("the head of vDisk {vdisk}: {error}")))?;
        if head.format != FORMAT {
            return Err(VolumeError::Damaged(format!(
                "the head of vDisk {vdisk} has format {}",
                head.format
            )));
        }
        if !head.is_possible() {
            return Err(VolumeError::Damaged(format!(
                "the head of vDisk {vdisk} has numbers that cannot be"
            )));
        }
        Ok(head)
    }

    /// Counters have successors, sizes are those of vDisks.
    fn is_possible(&self) -> bool {
        let epochs = self.epochs.iter().flat_map(|(epoch, after)| [epoch.0, after.0]);
        let position = self.position.iter().flat_map(|(epoch, index)| [epoch.0, index.0]);
        let snapshots = self.snapshots.iter().map(|snapshot| snapshot.sequence.0);
        let copies = self.copies.iter().map(CopyId::position).flat_map(|at| [at.epoch.0, at.index.0]);
        let mut counters = [self.epoch.0, self.sequence.0]
            .into_iter()
            .chain(epochs)
            .chain(position)
            .chain(snapshots)
            .chain(copies);
        let mut sizes = self.snapshots.iter().map(|snapshot| snapshot.size).chain([self.size]);
        counters.all(|counter| counter < COUNTER_MAX) && sizes.all(|size| size.0 <= VDISK_SIZE_BYTES_MAX)
    }

    pub(crate) fn position(&self) -> Option<Position> {
        self.position.map(|(epoch, index)| Position { epoch, index })
    }

    pub(crate) fn set_position(&mut self, position: Position) {
        self.position = Some((position.epoch, position.index));
    }

    /// What of our own may be under the name after the position, once [`crate::vdisk::catch_up`] has looked and until an epoch is begun.
    pub(crate) fn own_beyond(&self) -> Own {
        match self.position {
            // Nothing was put there: all that it has begun are starts.
            Some((epoch, _)) if epoch < self.epoch && self.epochs_unknown => Own::Unfinished,
            Some((epoch, _)) if epoch < self.epoch => Own::Record,
            _ => Own::Nothing,
        }
    }

    /// An epoch that nobody has begun, and that no other recovery of the same backend takes.
    pub(crate) fn raise_epoch(&mut self, chance: &dyn Chance) -> Result<(), VolumeError> {
        let by = match self.epochs_unknown {
            true => EPOCHS_UNSEEN + u64::from(chance.uuid().as_u128() as u32),
            false => 1,
        };
        let epoch = Epoch(self.epoch.0 + by);
        if epoch.0 >= COUNTER_MAX {
            return Err(VolumeError::Refused(format!("there is no epoch to write in above {}", self.epoch)));
        }
        self.epoch = epoch;
        self.deleting = false;
        Ok(())
    }

    /// One that is a tombstone's.
    pub(crate) fn raise_epoch_to_delete(&mut self, chance: &dyn Chance) -> Result<(), VolumeError> {
        self.raise_epoch(chance)?;
        self.deleting = true;
        Ok(())
    }

    /// The start of its epoch is on the backend and committed.
    pub(crate) fn set_started(&mut self, position: Position, starts_after: Sequence) {
        self.set_position(position);
        self.epochs_unknown = false;
        self.epochs.push((position.epoch, starts_after));
        self.prune_epochs();
    }

    /// Did operation `sequence` of `epoch` happen, as far as later epochs know?
    pub(crate) fn accepts(&self, epoch: Epoch, sequence: Sequence) -> bool {
        let is_known = |(later, after): &(Epoch, Sequence)| *later <= epoch || sequence <= *after;
        sequence > self.sequence
            && (self.epochs.iter().all(is_known)
                || planted("epoch: what an older one buffered behind its end counts"))
    }

    /// Forgets what says nothing any more, or never did: of the epochs that start at or before the committed sequence only
    /// the newest counts, and one that follows in the same process ends none.
    pub(crate) fn prune_epochs(&mut self) {
        let committed = self.sequence;
        let newest =
            self.epochs.iter().filter(|(_, after)| *after <= committed).map(|(epoch, _)| *epoch).max();
        let is_end = |after: Sequence| after > committed && after != Sequence::LAST;
        self.epochs.retain(|(epoch, after)| is_end(*after) || Some(*epoch) == newest);
    }

    /// Two are kept.
    pub(crate) fn note_copy(&mut self, copy: CopyId) {
        self.copies.push(copy);
        let excess = self.copies.len().saturating_sub(2);
        self.copies.drain(..excess);
    }

    /// Hidden, with its snapshots, from everybody but clones.
    pub(crate) fn set_deleted(&mut self) {
        self.deleted = true;
        self.snapshots.iter_mut().for_each(|snapshot| snapshot.hidden = true);
        self.drop_snapshots();
    }

    /// Deleted snapshots that nobody needs any more go.
    pub(crate) fn drop_snapshots(&mut self) {
        let clones_unknown = self.clones_unknown;
        self.snapshots.retain(|snapshot| snapshot.is_needed() || clones_unknown);
    }

    /// May everything of a deleted vDisk go?
    pub(crate) fn is_unneeded(&self) -> bool {
        !self.clones_unknown && self.snapshots.iter().all(|snapshot| snapshot.clones.is_empty())
    }

    pub(crate) fn snapshot_mut(&mut self, id: SnapshotId) -> Option<&mut HeadSnapshot> {
        self.snapshots.iter_mut().find(|snapshot| snapshot.id == id)
    }
}

impl HeadSnapshot {
    /// By its user, or by clones that are known.
    pub(crate) fn is_needed(&self) -> bool {
        !self.hidden || !self.clones.is_empty()
    }
}

/// A head and the version under which it was read or written.
#[derive(Debug, Clone)]
pub(crate) struct VersionedHead {
    pub(crate) head: Head,
    pub(crate) revision: Revision,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_epoch_buffered_behind_its_end_never_happened() {
        let mut head = Head::new(VpoolId(uuid::Uuid::nil()), ByteCount(0), None, String::new());
        head.epochs = vec![(Epoch(1), Sequence(0)), (Epoch(2), Sequence(7)), (Epoch(4), Sequence(9))];
        head.sequence = Sequence(3);
        let accepted = |epoch, sequence| head.accepts(Epoch(epoch), Sequence(sequence));
        assert_eq!([3, 4, 7, 8].map(|sequence| accepted(1, sequence)), [false, true, true, false]);
        assert_eq!([7, 8, 9, 10].map(|sequence| accepted(2, sequence)), [true, true, true, false]);
        assert!(accepted(4, 10));
        // What is committed needs no epochs any more, but for the newest.
        head.sequence = Sequence(8);
        head.epochs.push((Epoch(5), Sequence::LAST));
        head.prune_epochs();
        assert_eq!(head.epochs, [(Epoch(2), Sequence(7)), (Epoch(4), Sequence(9))]);
        assert!(!head.accepts(Epoch(1), Sequence(9)));
        // Of two with the same end the newer one says it.
        head.epochs.insert(0, (Epoch(1), Sequence(7)));
        head.sequence = Sequence(7);
        head.prune_epochs();
        assert_eq!(head.epochs, [(Epoch(2), Sequence(7)), (Epoch(4), Sequence(9))]);
    }

    struct Fixed(u128);

    impl Chance for Fixed {
        fn uuid(&self) -> uuid::Uuid {
            uuid::Uuid::from_u128(self.0)
        }
    }

    #[test]
    fn an_epoch_is_raised_by_one_or_beyond_all_that_may_have_been_begun() {
        let check = |epoch, epochs_unknown, expected: Option<u64>| {
            let mut head = Head::new(VpoolId(uuid::Uuid::nil()), ByteCount(0), None, String::new());
            (head.epoch, head.epochs_unknown) = (Epoch(epoch), epochs_unknown);
            let raised = head.raise_epoch(&Fixed(u128::MAX));
            assert_eq!(raised.is_ok(), expected.is_some(), "{epoch}: {raised:?}");
            assert_eq!(head.epoch, Epoch(expected.unwrap_or(epoch)));
            assert_eq!(head.epochs_unknown, epochs_unknown, "until it has a start");
            assert!(Head::decode(VdiskId(uuid::Uuid::nil()), &head.encode()).is_ok(), "{epoch}");
        };
        let leap = 2 * EPOCHS_UNSEEN - 1;
        check(7, false, Some(8));
        check(7, true, Some(7 + leap));
        check(COUNTER_MAX - 2, false, Some(COUNTER_MAX - 1));
        check(COUNTER_MAX - 1, false, None);
        check(COUNTER_MAX - 1 - leap, true, Some(COUNTER_MAX - 1));
        check(COUNTER_MAX - leap, true, None);
    }

    #[test]
    fn golden() {
        let id = uuid::Uuid::from_u128;
        let mut head = Head::new(VpoolId(id(1)), ByteCount(8192), None, "{}".to_owned());
        head.set_position(Position { epoch: Epoch(3), index: ovs_units::JournalIndex(9) });
        (head.epoch, head.sequence, head.epochs) = (Epoch(4), Sequence(60), vec![(Epoch(3), Sequence(50))]);
        (head.clones_unknown, head.epochs_unknown, head.deleting) = (true, true, true);
        let flags = r#""clones_unknown":true,"epochs_unknown":true,"deleting":true,"#;
        let golden = format!(
            r#"{{"format":1,"vpool":"00000000-0000-0000-0000-000000000001","epoch":4,"position":[3,9],"sequence":60,"size":8192,"base":null,"epochs":[[3,50]],"snapshots":[],"copies":[],"damaged":[],"lost":null,"accepted":[],"deleted":false,{flags}"properties":"{{}}"}}"#
        );
        assert_eq!(String::from_utf8(head.encode()).expect("text"), golden);
        assert_eq!(Head::decode(VdiskId(id(2)), golden.as_bytes()).expect("a head"), head);
        // As it was written before there were any.
        (head.clones_unknown, head.epochs_unknown, head.deleting) = (false, false, false);
        let before = golden.replace(flags, "");
        assert_eq!(Head::decode(VdiskId(id(2)), before.as_bytes()).expect("a head"), head);
    }

    #[test]
    fn counters_that_have_no_successor_are_refused() {
        let id = VdiskId(uuid::Uuid::nil());
        let mut head = Head::new(VpoolId(uuid::Uuid::nil()), ByteCount(0), None, String::new());
        for (sequence, is_possible) in [(COUNTER_MAX - 1, true), (COUNTER_MAX, false)] {
            head.sequence = Sequence(sequence);
            assert_eq!(Head::decode(id, &head.encode()).is_ok(), is_possible, "{sequence}");
        }
        head.sequence = Sequence(0);
        for (size, is_possible) in [(VDISK_SIZE_BYTES_MAX, true), (VDISK_SIZE_BYTES_MAX + 1, false)] {
            head.size = ByteCount(size);
            assert_eq!(Head::decode(id, &head.encode()).is_ok(), is_possible, "{size}");
        }
    }
}
