//! Whatever can be written is read back the same.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ovs_format::journal::{Move, Position, Record, Target, TlogEntry};
use ovs_format::leaf::PLACE_MAX;
use ovs_format::log::{BatchHeader, RecordHeader, RecordKind, SegmentHeader, SegmentId, VoidRange};
use ovs_format::page::{self, CheckpointRecord, ChildEntry, FANOUT, RootEntry};
use ovs_format::sco::{self, CLUSTERS_MAX, ScoRef};
use ovs_format::table::{ClusterSet, Moved, TableEntry};
use ovs_units::{
    ByteCount, COUNTER_MAX, Cluster, Epoch, JournalIndex, Name, PutId, ScoNumber, Sequence, SnapshotId,
    VDISK_SIZE_BYTES_MAX, VdiskId,
};
use proptest::{collection::vec, option, prelude::*};
use std::rc::Rc;
use uuid::Uuid;

const CLUSTER_END: u64 = 1 << 52;

fn counter() -> impl Strategy<Value = u64> {
    prop_oneof![0..COUNTER_MAX, Just(COUNTER_MAX - 1), 0_u64..100]
}

fn segment_id() -> impl Strategy<Value = SegmentId> {
    (counter(), 1..=u32::MAX).prop_map(|(generation, salt)| SegmentId { generation, salt })
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn size() -> impl Strategy<Value = ByteCount> {
    (0..=VDISK_SIZE_BYTES_MAX).prop_map(ByteCount)
}

fn run() -> impl Strategy<Value = (Cluster, u64)> {
    (0..CLUSTER_END, any::<u64>())
        .prop_map(|(start, length)| (Cluster(start), 1 + length % (CLUSTER_END - start)))
}

fn position() -> impl Strategy<Value = Position> {
    (counter(), counter())
        .prop_map(|(epoch, index)| Position { epoch: Epoch(epoch), index: JournalIndex(index) })
}

fn sco_ref() -> impl Strategy<Value = ScoRef> {
    (uuid(), counter(), counter(), uuid(), 1..=CLUSTERS_MAX as u32, any::<u32>()).prop_map(
        |(vdisk, epoch, number, put, cluster_count, header_checksum)| ScoRef {
            vdisk: VdiskId(vdisk),
            epoch: Epoch(epoch),
            number: ScoNumber(number),
            put: PutId(put),
            cluster_count,
            header_checksum,
        },
    )
}

fn buffer_record() -> impl Strategy<Value = RecordHeader> {
    let kind = prop_oneof![vec(any::<u32>(), 1..20).prop_map(RecordKind::Data), Just(RecordKind::Zero)];
    (uuid(), counter(), counter(), run(), kind).prop_map(
        |(vdisk, epoch, sequence, (cluster, length), kind)| {
            let count = match &kind {
                RecordKind::Data(checksums) => checksums.len() as u64,
                RecordKind::Zero => length,
            };
            let cluster = Cluster(cluster.0.min(CLUSTER_END - count));
            RecordHeader {
                vdisk: VdiskId(vdisk),
                epoch: Epoch(epoch),
                sequence: Sequence(sequence),
                cluster,
                count,
                kind,
            }
        },
    )
}

fn tlog() -> impl Strategy<Value = Record> {
    (counter(), vec(sco_ref(), 1..9), vec((run(), any::<prop::sample::Index>(), any::<bool>()), 0..20))
        .prop_map(|(sequence, scos, runs)| {
            let entry = |((cluster, count), sco, is_zero): ((Cluster, u64), prop::sample::Index, bool)| {
                if is_zero {
                    return TlogEntry { cluster, count, target: Target::Zero };
                }
                let sco = sco.index(scos.len());
                let holds = u64::from(scos[sco].cluster_count);
                let count = count.min(holds);
                let target = Target::Sco { sco: sco as u32, offset: (holds - count) as u32 };
                TlogEntry { cluster, count, target }
            };
            let entries = runs.into_iter().map(entry).collect();
            Record::Tlog { sequence: Sequence(sequence), scos, entries }
        })
}

fn record() -> impl Strategy<Value = Record> {
    let properties = || vec(any::<u8>(), 0..200).prop_map(bytes::Bytes::from);
    let id = || uuid().prop_map(SnapshotId);
    prop_oneof![
        (option::of(position()), counter(), size(), option::of((uuid(), id())), properties()).prop_map(
            |(continues, starts_after, size, base, properties)| Record::Start {
                continues,
                starts_after: Sequence(starts_after),
                size,
                base: base.map(|(vdisk, snapshot)| (VdiskId(vdisk), snapshot)),
                properties,
            }
        ),
        tlog(),
        (id(), "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", any::<u64>(), counter(), size()).prop_map(
            |(id, name, created_ms, sequence, size)| Record::Snapshot {
                id,
                name: Name::new(&name).unwrap(),
                created_ms,
                sequence: Sequence(sequence),
                size,
            }
        ),
        id().prop_map(|id| Record::SnapshotDelete { id }),
        (id(), counter()).prop_map(|(id, sequence)| Record::Rollback { id, sequence: Sequence(sequence) }),
        size().prop_map(|size| Record::Resize { size }),
        properties().prop_map(|properties| Record::Properties { properties }),
        relocate(),
    ]
}

/// Of at least so many clusters as are kept, and where they begin in it.
fn room_for(sco: ScoRef, kept: &ClusterSet) -> (ScoRef, u32) {
    let sco = ScoRef { cluster_count: sco.cluster_count.max(kept.count()), ..sco };
    (sco, sco.cluster_count - kept.count())
}

fn clusters() -> impl Strategy<Value = ClusterSet> {
    (1..=CLUSTERS_MAX as u32, vec((any::<u32>(), 0_u32..300), 0..20)).prop_map(|(length, runs)| {
        let mut set = ClusterSet::none_of(length);
        runs.into_iter().for_each(|(offset, count)| set.insert(offset % length, count));
        set
    })
}

fn relocate() -> impl Strategy<Value = Record> {
    vec(((counter(), counter()), option::of((sco_ref(), clusters()))), 0..9).prop_map(|all| {
        let (mut scos, mut moves) = (Vec::new(), Vec::new());
        for ((epoch, number), to) in all {
            let to = to.map(|(sco, kept)| {
                let (sco, base) = room_for(sco, &kept);
                scos.push(sco);
                (scos.len() as u32 - 1, base, kept)
            });
            moves.push(Move { origin: (Epoch(epoch), ScoNumber(number)), to });
        }
        Record::Relocate { scos, moves }
    })
}

fn table_entry() -> impl Strategy<Value = TableEntry> {
    prop_oneof![
        4 => sco_ref().prop_map(TableEntry::Put),
        1 => (counter(), counter(), sco_ref(), clusters()).prop_map(|(epoch, number, sco, kept)| {
            let (sco, base) = room_for(sco, &kept);
            let origin = (Epoch(epoch), ScoNumber(number));
            TableEntry::Moved(Rc::new(Moved { origin, sco, base, kept }))
        }),
        1 => Just(TableEntry::Gone),
    ]
}

proptest! {
    #[test]
    fn segment_headers(
        log in uuid(), numbers in (segment_id(), counter(), counter()), voids in vec((counter(), counter()), 0..64),
    ) {
        let voids = voids.into_iter().map(|(from_lsn, to_lsn)| VoidRange { from_lsn, to_lsn }).collect();
        let (id, start_lsn, synced_lsn) = numbers;
        let header = SegmentHeader { log, id, start_lsn, synced_lsn, voids };
        prop_assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn batch_headers(
        numbers in (segment_id(), counter(), counter(), counter()), is_seal in any::<bool>(),
        records in vec(buffer_record(), 0..40), behind in vec(any::<u8>(), 0..50),
    ) {
        let (segment, lsn, synced_lsn, floor_lsn) = numbers;
        let header = BatchHeader { segment, lsn, synced_lsn, floor_lsn, is_seal, records };
        let mut bytes = header.encode();
        prop_assert_eq!(BatchHeader::claimed_bytes(&bytes), Ok(bytes.len()));
        bytes.extend(behind);
        prop_assert_eq!(BatchHeader::decode(&bytes), Ok(header));
    }

    #[test]
    fn sco_headers(vdisk in uuid(), epoch in any::<u64>(), number in any::<u64>(), put in uuid(),
                   checksums in vec(any::<u32>(), 0..3000)) {
        let (vdisk, epoch, number) = (VdiskId(vdisk), Epoch(epoch), ScoNumber(number));
        let (header, reference) = sco::encode_header(vdisk, epoch, number, PutId(put), &checksums);
        prop_assert_eq!(sco::decode_header(&header, &reference), Ok(checksums));
    }

    #[test]
    fn journal_records(record in record(), vdisk in uuid(), at in position()) {
        let bytes = record.encode(VdiskId(vdisk), at);
        prop_assert_eq!(Record::decode(&bytes, VdiskId(vdisk), at), Ok(record));
    }

    #[test]
    fn map_pages(number in any::<u64>(), places in vec((0..FANOUT, 0..=PLACE_MAX, any::<u64>()), 0..100), scos in vec(sco_ref(), 0..=256), entries in vec(table_entry(), 0..30)) {
        let (mut leaf, mut inner) = ([0; FANOUT], [ChildEntry::default(); FANOUT]);
        for (index, page, mapped) in places {
            leaf[index] = page;
            inner[index] = if page == 0 { ChildEntry::default() } else { ChildEntry { page, mapped } };
        }
        prop_assert_eq!(*page::decode_leaf(number, &page::encode_leaf(number, &leaf)).unwrap(), leaf);
        prop_assert_eq!(*page::decode_inner(number, &page::encode_inner(number, &inner)).unwrap(), inner);
        let put: Vec<TableEntry> = scos.into_iter().map(TableEntry::Put).collect();
        for table in [put, entries] {
            prop_assert_eq!(page::decode_table(number, &page::encode_table(number, &table)), Ok(table));
        }
    }

    #[test]
    fn checkpoints(
        vdisk in uuid(), at in position(), sequence in counter(), table_pages in vec(any::<u64>(), 0..50),
        root in (any::<u64>(), any::<u64>()), snapshots in vec((uuid(), any::<u64>(), any::<u64>()), 0..20),
    ) {
        let snapshots = snapshots.into_iter()
            .map(|(id, page, mapped)| (SnapshotId(id), RootEntry { page, mapped })).collect();
        let (root, sequence) = (RootEntry { page: root.0, mapped: root.1 }, Sequence(sequence));
        let record = CheckpointRecord { epoch: at.epoch, index: at.index, sequence, root, table_pages, snapshots };
        prop_assert_eq!(CheckpointRecord::decode(VdiskId(vdisk), &record.encode(VdiskId(vdisk))), Ok(record));
    }

    /// The first number that has no successor is refused wherever it is.
    #[test]
    fn numbers_without_a_successor_are_refused(which in 0..3, vdisk in uuid()) {
        let numbers = |at| if at == which { COUNTER_MAX } else { 1 };
        let header = SegmentHeader {
            log: vdisk, id: SegmentId { generation: numbers(0), salt: 1 }, start_lsn: numbers(1), synced_lsn: numbers(2), voids: Vec::new(),
        };
        prop_assert!(SegmentHeader::decode(&header.encode()).is_err());
    }
}
