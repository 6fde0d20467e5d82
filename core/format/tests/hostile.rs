//! Foreign bytes: nothing panics, nothing is taken that was not written, and no length makes a decoder allocate.

use ovs_format::journal::{Move, Position, Record};
use ovs_format::log::{BatchHeader, RecordHeader, RecordKind, SegmentHeader, SegmentId};
use ovs_format::table::{ClusterSet, Moved, TableEntry};
use ovs_format::{page, sco};
use ovs_units::{Cluster, Epoch, JournalIndex, PutId, ScoNumber, Sequence, VdiskId};
use proptest::prelude::*;
use std::rc::Rc;
use uuid::Uuid;

const VDISK: VdiskId = VdiskId(Uuid::from_u128(1));
const AT: Position = Position { epoch: Epoch(1), index: JournalIndex(0) };

fn all_decoders(bytes: &[u8]) -> usize {
    let reference = sco::encode_header(VDISK, Epoch(1), ScoNumber(1), PutId(Uuid::from_u128(2)), &[7; 9]).1;
    [
        SegmentHeader::decode(bytes).is_ok(),
        BatchHeader::decode(bytes).is_ok(),
        Record::decode(bytes, VDISK, AT).is_ok(),
        sco::decode_header(bytes, &reference).is_ok(),
        page::decode_leaf(7, bytes).is_ok(),
        page::decode_inner(7, bytes).is_ok(),
        page::decode_table(7, bytes).is_ok(),
        page::CheckpointRecord::decode(VDISK, bytes).is_ok(),
    ]
    .into_iter()
    .filter(|is_ok| *is_ok)
    .count()
}

/// One good encoding of each kind.
fn encodings() -> Vec<Vec<u8>> {
    let kind = RecordKind::Data(vec![1, 2, 3]);
    let records = vec![RecordHeader {
        vdisk: VDISK,
        epoch: Epoch(1),
        sequence: Sequence(1),
        cluster: Cluster(0),
        count: 3,
        kind,
    }];
    let segment = SegmentId { generation: 1, salt: 2 };
    let batch = BatchHeader { segment, lsn: 1, synced_lsn: 0, floor_lsn: 0, is_seal: false, records };
    let segment = SegmentHeader {
        log: Uuid::from_u128(3),
        id: segment,
        start_lsn: 0,
        synced_lsn: 0,
        voids: Vec::new(),
    };
    let (header, reference) =
        sco::encode_header(VDISK, Epoch(1), ScoNumber(1), PutId(Uuid::from_u128(2)), &[7; 9]);
    let tlog = Record::Tlog { sequence: Sequence(5), scos: vec![reference], entries: Vec::new() };
    let mut kept = ClusterSet::none_of(9);
    kept.insert(2, 3);
    let origin = (Epoch(1), ScoNumber(2));
    let moves = vec![Move { origin, to: Some((0, 0, kept.clone())) }, Move { origin, to: None }];
    let relocate = Record::Relocate { scos: vec![reference], moves };
    let put = || TableEntry::Put(reference);
    let moved = TableEntry::Moved(Rc::new(Moved { origin, sco: reference, base: 6, kept }));
    let mut leaf = [0; page::FANOUT];
    leaf[77] = 5;
    vec![
        segment.encode(),
        batch.encode(),
        header,
        tlog.encode(VDISK, AT),
        page::encode_leaf(7, &leaf),
        page::encode_inner(7, &[page::ChildEntry { page: 1, mapped: 2 }; page::FANOUT]),
        page::encode_table(7, &[put(), put()]),
        page::encode_table(7, &[put(), TableEntry::Gone, moved]),
        relocate.encode(VDISK, AT),
    ]
}

proptest! {
    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert_eq!(all_decoders(&bytes), 0);
    }

    #[test]
    fn a_flipped_bit_is_found(which in 0usize..9, bit in any::<proptest::sample::Index>()) {
        let mut bytes = encodings().swap_remove(which);
        prop_assert_eq!(all_decoders(&bytes), 1);
        let bit = bit.index(bytes.len() * 8);
        // A page's two unused bytes say nothing.
        let is_unused = (4..8).contains(&which) && (16..32).contains(&bit);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(all_decoders(&bytes), usize::from(is_unused));
    }

    #[test]
    fn a_cut_is_found(which in 0usize..9, at in any::<proptest::sample::Index>()) {
        let bytes = encodings().swap_remove(which);
        prop_assert_eq!(all_decoders(&bytes[..at.index(bytes.len())]), 0);
    }
}

/// The checksum is right and the contents lie: lengths, counts and targets past the end.
#[test]
fn lies_under_a_good_checksum_are_refused() {
    let good = encodings();
    for (index, at) in [(3, 56), (4, 8), (5, 8), (6, 8)] {
        let mut bytes = good[index].clone();
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let sum_at = if index == 3 { 12 } else { 4 };
        let sum = if index == 3 {
            let rest = bytes[..12].iter().chain(&bytes[16..]).copied().collect::<Vec<u8>>();
            ovs_format::checksum(&rest)
        } else {
            ovs_format::checksum(&bytes[8..])
        };
        bytes[sum_at..sum_at + 4].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(all_decoders(&bytes), 0, "encoding {index}");
    }
}

#[test]
fn another_vdisk_s_or_another_position_s_record_is_refused() {
    let record = Record::Resize { size: ovs_units::ByteCount(1) };
    let bytes = record.encode(VDISK, AT);
    assert!(Record::decode(&bytes, VdiskId(Uuid::from_u128(2)), AT).is_err());
    assert!(Record::decode(&bytes, VDISK, Position { epoch: Epoch(2), ..AT }).is_err());
    assert!(Record::decode(&bytes, VDISK, Position { index: JournalIndex(1), ..AT }).is_err());
    let (header, reference) =
        sco::encode_header(VDISK, Epoch(1), ScoNumber(1), PutId(Uuid::from_u128(2)), &[7; 9]);
    for other in [
        sco::ScoRef { put: PutId(Uuid::from_u128(9)), ..reference },
        sco::ScoRef { number: ScoNumber(2), ..reference },
        sco::ScoRef { vdisk: VdiskId(Uuid::from_u128(9)), ..reference },
    ] {
        assert!(sco::decode_header(&header, &other).is_err());
    }
}
