//! Copies of the map: golden bytes, round trips, hostile bytes.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

use ovs_format::checksum;
use ovs_format::map_copy::{MapCopy, PartWriter, decode_part, relabel};
use ovs_format::page::{self, CheckpointRecord, ChildEntry, FANOUT, RootEntry};
use ovs_units::{Epoch, JournalIndex, PutId, Sequence, SnapshotId, VdiskId};
use proptest::prelude::*;
use uuid::Uuid;

const VDISK: VdiskId = VdiskId(Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888));
const PUT: PutId = PutId(Uuid::from_u128(42));

fn root() -> MapCopy {
    let maps = CheckpointRecord {
        epoch: Epoch(3),
        index: JournalIndex(9),
        sequence: Sequence(60),
        root: RootEntry { page: 12, mapped: 34 },
        table_pages: vec![13, 14],
        snapshots: vec![(SnapshotId(Uuid::from_u128(77)), RootEntry { page: 15, mapped: 16 })],
    };
    MapCopy { put: PUT, parts: vec![0xdead, 0xbeef], maps, head: "{\"format\":1}".into() }
}

fn leaf() -> Vec<u8> {
    let mut places = [0; FANOUT];
    places[3] = 0x10001;
    page::encode_leaf(12, &places)
}

fn inner() -> Vec<u8> {
    let mut children = [ChildEntry::default(); FANOUT];
    children[8] = ChildEntry { page: 12, mapped: 34 };
    page::encode_inner(11, &children)
}

fn part() -> (Vec<u8>, u32) {
    let mut part = PartWriter::new(VDISK, PUT, 5);
    assert!(part.is_empty());
    let empty = part.len();
    part.add(12, &leaf());
    assert_eq!((part.is_empty(), part.len()), (false, empty + 8 + 4 + leaf().len()));
    part.add(11, &inner());
    part.finish()
}

/// The bytes of version 1, for ever.
#[test]
fn golden() {
    let bytes = root().encode(VDISK);
    assert_eq!((bytes.len(), checksum(&bytes)), (200, ROOT), "{:#x}", checksum(&bytes));
    assert_eq!(bytes[..12], *b"OVSMCR01\x01\0\0\0");
    let (bytes, sum) = part();
    assert_eq!((bytes.len(), sum, checksum(&bytes)), (161, PART, sum), "{sum:#x}");
    assert_eq!(bytes[..12], *b"OVSMCP01\x01\0\0\0");
}

#[test]
fn what_is_encoded_is_decoded() {
    let copy = root();
    assert_eq!(MapCopy::decode(&copy.encode(VDISK), VDISK, PUT), Ok(copy));
    let (bytes, sum) = part();
    let pages = decode_part(&bytes, VDISK, PUT, 5, sum).unwrap();
    assert_eq!(pages, [(12, &leaf()[..]), (11, &inner()[..])]);
}

#[test]
fn another_s_bytes_are_refused() {
    let other_disk = VdiskId(Uuid::from_u128(9));
    let other_put = PutId(Uuid::from_u128(9));
    let bytes = root().encode(VDISK);
    assert!(MapCopy::decode(&bytes, other_disk, PUT).is_err());
    assert!(MapCopy::decode(&bytes, VDISK, other_put).is_err());
    let (bytes, sum) = part();
    assert!(decode_part(&bytes, other_disk, PUT, 5, sum).is_err());
    assert!(decode_part(&bytes, VDISK, other_put, 5, sum).is_err());
    assert!(decode_part(&bytes, VDISK, PUT, 6, sum).is_err());
    assert!(decode_part(&bytes, VDISK, PUT, 5, sum ^ 1).is_err());
}

#[test]
fn pages_get_other_labels() {
    let new = relabel(&inner(), 11, 111, |label| label + 100).unwrap();
    assert_eq!(page::decode_inner(111, &new).unwrap()[8], ChildEntry { page: 112, mapped: 34 });
    let new = relabel(&leaf(), 12, 112, |_| panic!("a leaf has no children")).unwrap();
    assert_eq!(page::decode_leaf(112, &new).unwrap()[3], 0x10001);
    assert!(relabel(&inner(), 12, 112, |label| label).is_err(), "another page");
    assert!(relabel(&[], 1, 2, |label| label).is_err());
    assert!(relabel(&inner()[..20], 11, 111, |label| label).is_err());
}

proptest! {
    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(MapCopy::decode(&bytes, VDISK, PUT).is_err());
        prop_assert!(decode_part(&bytes, VDISK, PUT, 5, checksum(&bytes)).is_err());
        prop_assert!(relabel(&bytes, 11, 12, |label| label).is_err());
    }

    #[test]
    fn a_flipped_bit_and_a_cut_are_found(bit in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
        let (part, sum) = part();
        for (is_root, good) in [(true, root().encode(VDISK)), (false, part)] {
            let is_bad = |bytes: &[u8]| match is_root {
                true => MapCopy::decode(bytes, VDISK, PUT).is_err(),
                false => decode_part(bytes, VDISK, PUT, 5, sum).is_err(),
            };
            let mut flipped = good.clone();
            let bit = bit.index(good.len() * 8);
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(is_bad(&flipped));
            prop_assert!(is_bad(&good[..at.index(good.len())]));
        }
    }

    /// Counts that claim more than there is, under a good checksum.
    #[test]
    fn lies_under_a_good_checksum_are_refused(at in 48usize..64, value in any::<u32>()) {
        let (part, _) = part();
        for (is_root, mut bytes) in [(true, root().encode(VDISK)), (false, part)] {
            let before: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            prop_assume!(before != value.to_le_bytes());
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let rest: Vec<u8> = bytes[..12].iter().chain(&bytes[16..]).copied().collect();
            let sum = checksum(&rest).to_le_bytes();
            bytes[12..16].copy_from_slice(&sum);
            match is_root {
                true => drop(MapCopy::decode(&bytes, VDISK, PUT)),
                false => drop(decode_part(&bytes, VDISK, PUT, 5, checksum(&bytes))),
            }
        }
    }
}

const ROOT: u32 = 0x0ffc_b7de;
const PART: u32 = 0x1b6e_65a8;
