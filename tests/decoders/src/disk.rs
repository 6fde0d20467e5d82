//! The write buffer, SCOs, the journal, map pages and checkpoints: `docs/ondisk.md`.

use crate::Family;
use ovs_format::{
    FormatError, checksum,
    fragment::{Compression, FrameEntry, Geometry, HEADER_BYTES, Header},
    journal::{Move, Position, Record, Target, TlogEntry},
    log::{BatchHeader, RecordHeader, RecordKind, SegmentHeader, SegmentId, VoidRange},
    map_copy::{MapCopy, PartWriter, decode_part, relabel},
    page::{self, CheckpointRecord, ChildEntry, FANOUT, RootEntry},
    sco::{self, ScoRef},
    table::{ClusterSet, Moved, TableEntry},
    tombstone,
};
use ovs_units::{
    ByteCount, Cluster, Epoch, JournalIndex, Name, PutId, ScoNumber, Sequence, SnapshotId, VdiskId,
};
use std::fmt::Debug;
use std::rc::Rc;
use uuid::Uuid;

const SEGMENT_ID: SegmentId = SegmentId { generation: 6, salt: 7 };
const VDISK: VdiskId = VdiskId(Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888));
const AT: Position = Position { epoch: Epoch(3), index: JournalIndex(9) };

/// Headers of the write buffer.
pub(crate) const BUFFER: Family = Family {
    name: "buffer",
    check: |bytes| {
        let segment = with_right_checksum(bytes, 12, 12).map(|bytes| {
            round_trip(SegmentHeader::decode(&bytes), SegmentHeader::encode, SegmentHeader::decode)
        });
        // Its checksum covers the bytes that it claims, and no others.
        let claimed = BatchHeader::claimed_bytes(bytes).ok().and_then(|length| bytes.get(..length));
        let batch = claimed
            .and_then(|bytes| with_right_checksum(bytes, 12, 12))
            .map(|bytes| round_trip(BatchHeader::decode(&bytes), BatchHeader::encode, BatchHeader::decode));
        let as_it_is = [
            round_trip(SegmentHeader::decode(bytes), SegmentHeader::encode, SegmentHeader::decode),
            round_trip(BatchHeader::decode(bytes), BatchHeader::encode, BatchHeader::decode),
        ];
        as_it_is.contains(&true) || segment == Some(true) || batch == Some(true)
    },
    seeds: || {
        let mut seeds: Vec<Vec<u8>> = batches().iter().map(BatchHeader::encode).collect();
        seeds.push(segment().encode());
        seeds
    },
    memory_bytes: 256 << 10,
    memory_per_byte: 8,
};

/// Headers of SCOs.
pub(crate) const SCO: Family = Family {
    name: "sco",
    check: |bytes| {
        let (_, sealed) = sco_header();
        let stranger = sco::decode_header(bytes, &sealed).is_ok();
        // Whoever points to an SCO knows what its header must say: here it is whatever it does say.
        let Some(expected) = described(bytes) else { return stranger };
        let Ok(checksums) = sco::decode_header(bytes, &expected) else { return stranger };
        let (header, again) =
            sco::encode_header(expected.vdisk, expected.epoch, expected.number, expected.put, &checksums);
        assert_eq!(sco::decode_header(&header, &again), Ok(checksums));
        true
    },
    seeds: || {
        let many: Vec<u32> = (0..1024).collect();
        let large = sco::encode_header(VDISK, Epoch(3), ScoNumber(7), PutId(Uuid::from_u128(42)), &many).0;
        vec![sco_header().0, large]
    },
    memory_bytes: 64 << 10,
    memory_per_byte: 4,
};

/// Fragments of objects on drives: a header, and the index behind it.
pub(crate) const FRAGMENT: Family = Family {
    name: "fragment",
    check: |bytes| {
        let sealed =
            with_right_checksum(bytes, 12, 12).filter(|_| bytes.len() <= HEADER_BYTES).or_else(|| {
                let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
                Some([&with_right_checksum(header, 12, 12)?, rest].concat())
            });
        [Some(bytes.to_vec()), sealed].into_iter().flatten().any(|bytes| {
            let encode = |header: &Header| header.encode().to_vec();
            if !round_trip(Header::decode(&bytes), encode, Header::decode) {
                return false;
            }
            let Ok(header) = Header::decode(&bytes) else { return false };
            index_of(&header, &bytes[HEADER_BYTES..]);
            true
        })
    },
    seeds: || {
        let header = fragment_header();
        let entry = |number: u32| FrameEntry {
            offset: 0,
            stored_bytes: 4096 - number,
            is_compressed: number > 0,
            checksum: 7 * number,
        };
        let index = header.encode_index(0, &[entry(0), entry(1), entry(2)]);
        vec![header.encode().to_vec(), [&header.encode()[..], &index].concat()]
    },
    memory_bytes: 64 << 10,
    memory_per_byte: 8,
};

fn fragment_header() -> Header {
    Header {
        name: [9; 16],
        put: PutId(Uuid::from_u128(42)),
        geometry: Geometry {
            object_bytes: 20_000,
            data: 2,
            parity: 1,
            frame_bytes: 4096,
            fragment_bytes: 1 << 20,
        },
        chunk: 0,
        fragment: 0,
        compression: Compression::Lz4,
        key: 0,
        body_bytes: 12_000,
        body_checksum: 5,
    }
}

/// The index as it stands, and one of the same entries that is sealed as it should be.
fn index_of(header: &Header, bytes: &[u8]) {
    if header.fragment >= header.geometry.data {
        return;
    }
    let decode = |bytes: &[u8]| header.decode_index(header.fragment, bytes);
    let encode = |entries: &Vec<FrameEntry>| header.encode_index(header.fragment, entries);
    round_trip(decode(bytes), encode, decode);
    let entries = bytes.chunks_exact(8).take(header.geometry.frames(header.chunk, header.fragment) as usize);
    let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let entry = |entry: &[u8]| FrameEntry {
        offset: 0,
        stored_bytes: word(entry) & !(1 << 31),
        is_compressed: word(entry) >> 31 == 1,
        checksum: word(&entry[4..]),
    };
    round_trip(decode(&encode(&entries.map(entry).collect())), encode, decode);
}

/// Journal records.
pub(crate) const JOURNAL: Family = Family {
    name: "journal",
    check: |bytes| {
        let (vdisk, at) = identity(bytes).unwrap_or((VDISK, AT));
        let encode = |record: &Record| record.encode(vdisk, at);
        let decode = |bytes: &[u8]| Record::decode(bytes, vdisk, at);
        let sealed = with_right_checksum(bytes, 12, 12);
        [Some(bytes.to_vec()), sealed]
            .into_iter()
            .flatten()
            .any(|bytes| round_trip(decode(&bytes), encode, decode))
    },
    seeds: || records().iter().map(|record| record.encode(VDISK, AT)).collect(),
    memory_bytes: 64 << 10,
    memory_per_byte: 8,
};

/// Map pages and checkpoint records.
pub(crate) const MAP: Family = Family {
    name: "map",
    check: |bytes| {
        let sealed = with_right_checksum(bytes, 4, 0);
        [Some(bytes.to_vec()), sealed].into_iter().flatten().any(|bytes| {
            // What it is told to be is what it says it is.
            let number = bytes
                .get(8..16)
                .map_or(0, |number| u64::from_le_bytes(number.try_into().unwrap_or_default()));
            let vdisk = bytes.get(8..24).and_then(|id| Uuid::from_slice(id).ok()).map_or(VDISK, VdiskId);
            let leaf = |bytes: &[u8]| page::decode_leaf(number, bytes);
            let inner = |bytes: &[u8]| page::decode_inner(number, bytes);
            let table = |bytes: &[u8]| page::decode_table(number, bytes);
            let record = |bytes: &[u8]| CheckpointRecord::decode(vdisk, bytes);
            round_trip(leaf(&bytes), |leaf| page::encode_leaf(number, leaf), leaf)
                | round_trip(inner(&bytes), |inner| page::encode_inner(number, inner), inner)
                | round_trip(table(&bytes), |table| page::encode_table(number, table), table)
                | round_trip(record(&bytes), |record| record.encode(vdisk), record)
        })
    },
    seeds: || {
        let mut places = [0; FANOUT];
        (places[3], places[511]) = (0x10001, 0x20002);
        let mut children = [ChildEntry::default(); FANOUT];
        children[8] = ChildEntry { page: 12, mapped: 34 };
        let reference = sco_header().1;
        vec![
            page::encode_leaf(12, &places),
            page::encode_leaf(12, &[7; FANOUT]),
            page::encode_leaf(12, &std::array::from_fn(|index| (1 + (index * 37 % 29) as u64) << 16 | 5)),
            page::encode_leaf(12, &std::array::from_fn(|index| 1 << 16 | index as u64)),
            page::encode_inner(12, &children),
            page::encode_table(12, &[TableEntry::Put(reference), TableEntry::Put(reference)]),
            page::encode_table(12, &[TableEntry::Put(reference), a_moved_sco(), TableEntry::Gone]),
            a_checkpoint().encode(VDISK),
        ]
    },
    memory_bytes: 64 << 10,
    memory_per_byte: 8,
};

/// Copies of the map: root objects, parts with their pages; tombstones.
pub(crate) const MAP_COPY: Family = Family {
    name: "map_copy",
    check: |bytes| {
        // Whose it is, which put and which part: as it says itself.
        let id = |at: usize| bytes.get(at..at + 16).and_then(|id| Uuid::from_slice(id).ok());
        let (vdisk, put) = (id(16).map_or(VDISK, VdiskId), id(32).map_or(PutId(Uuid::nil()), PutId));
        let number =
            bytes.get(48..52).map_or(0, |number| u32::from_le_bytes(number.try_into().unwrap_or_default()));
        let root = |bytes: &[u8]| MapCopy::decode(bytes, vdisk, put);
        let part = |bytes: &[u8]| {
            let pages = decode_part(bytes, vdisk, put, number, checksum(bytes))?;
            Ok(pages.into_iter().map(|(label, page)| (label, page.to_vec())).collect::<Vec<_>>())
        };
        let sealed = with_right_checksum(bytes, 12, 12);
        [Some(bytes.to_vec()), sealed].into_iter().flatten().any(|bytes| {
            let pages = part(&bytes).unwrap_or_default();
            pages.iter().for_each(|(label, page)| drop(relabel(page, *label, 1, |label| label / 2)));
            round_trip(root(&bytes), |copy| copy.encode(vdisk), root)
                | round_trip(part(&bytes), |pages| a_part(vdisk, put, number, pages), part)
                | round_trip(
                    tombstone::decode(&bytes, vdisk),
                    |epoch| tombstone::encode(vdisk, *epoch),
                    |bytes| tombstone::decode(bytes, vdisk),
                )
        })
    },
    seeds: || {
        let put = PutId(Uuid::from_u128(42));
        let copy = MapCopy { put, parts: vec![7, 8], maps: a_checkpoint(), head: "{\"format\":1}".into() };
        let pages = [
            (12, page::encode_leaf(12, &[7; FANOUT])),
            (11, page::encode_table(11, &[TableEntry::Put(sco_header().1)])),
        ];
        vec![copy.encode(VDISK), a_part(VDISK, put, 5, &pages), tombstone::encode(VDISK, Epoch(3))]
    },
    memory_bytes: 64 << 10,
    memory_per_byte: 16,
};

fn a_part(vdisk: VdiskId, put: PutId, number: u32, pages: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut part = PartWriter::new(vdisk, put, number);
    pages.iter().for_each(|(label, page)| part.add(*label, page));
    part.finish().0
}

fn a_checkpoint() -> CheckpointRecord {
    CheckpointRecord {
        epoch: Epoch(3),
        index: JournalIndex(9),
        sequence: Sequence(60),
        root: RootEntry { page: 12, mapped: 34 },
        table_pages: vec![13, 14],
        snapshots: vec![(SnapshotId(Uuid::from_u128(77)), RootEntry { page: 15, mapped: 16 })],
    }
}

/// What was taken is encoded, and the encoding taken as the same; true when something was taken.
fn round_trip<T: Debug + PartialEq>(
    decoded: Result<T, FormatError>,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, FormatError>,
) -> bool {
    let Ok(value) = decoded else { return false };
    assert_eq!(decode(&encode(&value)).as_ref(), Ok(&value));
    true
}

/// The bytes with the right checksum of themselves at `at`: of the first `from` bytes, and of those behind it.
fn with_right_checksum(bytes: &[u8], at: usize, from: usize) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let covered = [&bytes[..from.min(bytes.len())], bytes.get(at + 4..)?].concat();
    bytes[at..at + 4].copy_from_slice(&checksum(&covered).to_le_bytes());
    Some(bytes)
}

/// The vDisk and the position that a journal record says to be.
fn identity(bytes: &[u8]) -> Option<(VdiskId, Position)> {
    let vdisk = Uuid::from_bytes(*bytes.get(16..)?.first_chunk()?);
    let at = Position { epoch: Epoch(u64_at(bytes, 32)?), index: JournalIndex(u64_at(bytes, 40)?) };
    Some((VdiskId(vdisk), at))
}

/// The reference to the SCO that a header says to be.
fn described(bytes: &[u8]) -> Option<ScoRef> {
    Some(ScoRef {
        vdisk: VdiskId(Uuid::from_bytes(*bytes.get(16..)?.first_chunk()?)),
        epoch: Epoch(u64_at(bytes, 32)?),
        number: ScoNumber(u64_at(bytes, 40)?),
        put: PutId(Uuid::from_bytes(*bytes.get(48..)?.first_chunk()?)),
        cluster_count: u32::from_le_bytes(*bytes.get(64..)?.first_chunk()?),
        header_checksum: checksum(bytes),
    })
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn sco_header() -> (Vec<u8>, ScoRef) {
    sco::encode_header(VDISK, Epoch(3), ScoNumber(7), PutId(Uuid::from_u128(42)), &[1, 2, 3])
}

pub(crate) fn segment() -> SegmentHeader {
    SegmentHeader {
        log: Uuid::from_u128(5),
        id: SEGMENT_ID,
        start_lsn: 7,
        synced_lsn: 8,
        voids: vec![VoidRange { from_lsn: 9, to_lsn: 10 }],
    }
}

pub(crate) fn batches() -> [BatchHeader; 2] {
    let record = |kind, count| RecordHeader {
        vdisk: VDISK,
        epoch: Epoch(3),
        sequence: Sequence(99),
        cluster: Cluster(1000),
        count,
        kind,
    };
    let data = RecordKind::Data(vec![checksum(&[1; 4096]), checksum(&[2; 4096])]);
    let header = BatchHeader {
        segment: SEGMENT_ID,
        lsn: 7,
        synced_lsn: 5,
        floor_lsn: 1,
        is_seal: false,
        records: vec![record(data, 2), record(RecordKind::Zero, 1 << 30)],
    };
    let seal = BatchHeader { lsn: 8, synced_lsn: 8, is_seal: true, records: Vec::new(), ..header };
    [header, seal]
}

fn records() -> [Record; 8] {
    let snapshot = SnapshotId(Uuid::from_u128(77));
    [
        Record::Start {
            continues: Some(Position { epoch: Epoch(2), index: JournalIndex(4) }),
            starts_after: Sequence(50),
            size: ByteCount(1 << 30),
            base: Some((VDISK, snapshot)),
            properties: "{}".into(),
        },
        Record::Tlog {
            sequence: Sequence(60),
            scos: vec![sco_header().1],
            entries: vec![
                TlogEntry { cluster: Cluster(5), count: 2, target: Target::Sco { sco: 0, offset: 1 } },
                TlogEntry { cluster: Cluster(9), count: 1 << 30, target: Target::Zero },
            ],
        },
        Record::Snapshot {
            id: snapshot,
            name: Name::new("daily.1").expect("a name"),
            created_ms: 1_700_000_000_000,
            sequence: Sequence(60),
            size: ByteCount(1 << 30),
        },
        Record::SnapshotDelete { id: snapshot },
        Record::Rollback { id: snapshot, sequence: Sequence(61) },
        Record::Resize { size: ByteCount(2 << 30) },
        Record::Properties { properties: "{\"name\":\"x\"}".into() },
        Record::Relocate {
            scos: vec![sco_header().1],
            moves: vec![
                Move { origin: (Epoch(1), ScoNumber(4)), to: Some((0, 1, two_of_seventy())) },
                Move { origin: (Epoch(1), ScoNumber(5)), to: None },
            ],
        },
    ]
}

fn two_of_seventy() -> ClusterSet {
    let mut kept = ClusterSet::none_of(70);
    kept.insert(63, 2);
    kept
}

fn a_moved_sco() -> TableEntry {
    let sco = sco_header().1;
    TableEntry::Moved(Rc::new(Moved {
        origin: (Epoch(1), ScoNumber(4)),
        sco,
        base: 1,
        kept: two_of_seventy(),
    }))
}
