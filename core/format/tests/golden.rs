//! The bytes of each format version, for ever: what was written must stay readable, byte for byte.
//!
//! A change of a format gets a new version and new constants beside these. The checksum in each name is of the whole
//! encoding; the first bytes are spelled out so that a difference can be seen.

use ovs_format::fragment::{Compression, FrameEntry, Geometry, Header};
use ovs_format::journal::{Move, Position, Record, Target, TlogEntry};
use ovs_format::log::{BatchHeader, RecordHeader, RecordKind, SegmentHeader, SegmentId, VoidRange};
use ovs_format::page::{self, CheckpointRecord, ChildEntry, FANOUT, RootEntry};
use ovs_format::table::{ClusterSet, Moved, TableEntry};
use ovs_format::{checksum, sco, tombstone};
use ovs_units::{
    ByteCount, Cluster, Epoch, JournalIndex, Name, PutId, ScoNumber, Sequence, SnapshotId, VdiskId,
};
use std::rc::Rc;
use uuid::Uuid;

const VDISK: VdiskId = VdiskId(Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888));
const SEGMENT_ID: SegmentId = SegmentId { generation: 6, salt: 0x5a17 };
const AT: Position = Position { epoch: Epoch(3), index: JournalIndex(9) };

fn kept() -> ClusterSet {
    let mut kept = ClusterSet::none_of(70);
    kept.insert(63, 2);
    kept
}

/// Length, checksum and first bytes (in hex) of an encoding.
fn check(what: &str, bytes: &[u8], length: usize, sum: u32, start: &str) {
    let hex: String = bytes[..start.len() / 2].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((bytes.len(), checksum(bytes), hex.as_str()), (length, sum, start), "{what}");
}

fn sco_ref() -> sco::ScoRef {
    sco::encode_header(VDISK, Epoch(3), ScoNumber(7), PutId(Uuid::from_u128(42)), &[1, 2, 3]).1
}

#[test]
fn segment_header() {
    let header = SegmentHeader {
        log: Uuid::from_u128(5),
        id: SEGMENT_ID,
        start_lsn: 7,
        synced_lsn: 8,
        voids: vec![VoidRange { from_lsn: 9, to_lsn: 10 }],
    };
    check("segment header", &header.encode(), 4096, SEGMENT, "4f5653534547303101000000");
    assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
}

/// Where data begins is a part of the format: how many checksums or records just fit into a block.
#[test]
fn headers_are_whole_blocks() {
    let check = |(fits, one_more): (usize, usize), what| assert_eq!((fits, one_more), (4096, 8192), "{what}");
    check((sco::header_bytes(1006), sco::header_bytes(1007)), "clusters of an SCO");
    check((BatchHeader::encoded_bytes(72, 0), BatchHeader::encoded_bytes(72, 1)), "clusters of a batch");
    check((BatchHeader::encoded_bytes(0, 1008), BatchHeader::encoded_bytes(1, 1008)), "records of a batch");
    assert_eq!(sco_ref().cluster_offset_bytes(2), 4096 + 2 * 4096);
}

#[test]
fn batch_header() {
    let record = |kind, count| RecordHeader {
        vdisk: VDISK,
        epoch: Epoch(3),
        sequence: Sequence(99),
        cluster: Cluster(1000),
        count,
        kind,
    };
    let header = BatchHeader {
        segment: SEGMENT_ID,
        lsn: 7,
        synced_lsn: 5,
        floor_lsn: 1,
        is_seal: false,
        records: vec![record(RecordKind::Data(vec![0xdead, 0xbeef]), 2), record(RecordKind::Zero, 1 << 30)],
    };
    check("batch header", &header.encode(), 4096, BATCH, "4f5653424154303101000000");
    assert_eq!(BatchHeader::decode(&header.encode()), Ok(header));
    let seal = BatchHeader {
        segment: SEGMENT_ID,
        lsn: 8,
        synced_lsn: 8,
        floor_lsn: 2,
        is_seal: true,
        records: Vec::new(),
    };
    check("seal", &seal.encode(), 4096, SEAL, "4f5653424154303101000100");
    assert_eq!(BatchHeader::decode(&seal.encode()), Ok(seal));
}

/// Segments had no salt yet, and floors were not such that whatever a crash leaves may rely on them.
#[test]
fn what_early_builds_wrote_is_read() {
    let unsalted = SegmentId { salt: 0, ..SEGMENT_ID };
    let header = SegmentHeader {
        log: Uuid::from_u128(5),
        id: unsalted,
        start_lsn: 7,
        synced_lsn: 8,
        voids: vec![VoidRange { from_lsn: 9, to_lsn: 10 }],
    };
    check("segment header", &header.encode(), 4096, EARLY_SEGMENT, "4f5653534547303101000000");
    assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    let seal = BatchHeader {
        segment: unsalted,
        lsn: 8,
        synced_lsn: 8,
        floor_lsn: 2,
        is_seal: true,
        records: Vec::new(),
    };
    check("seal", &seal.encode(), 4096, EARLY_SEAL, "4f5653424154303101000100");
    assert_eq!(BatchHeader::decode(&seal.encode()), Ok(BatchHeader { floor_lsn: 0, ..seal }));
}

#[test]
fn sco_header() {
    let (header, reference) =
        sco::encode_header(VDISK, Epoch(3), ScoNumber(7), PutId(Uuid::from_u128(42)), &[1, 2, 3]);
    check("SCO header", &header, 4096, SCO, "4f565353434f30310100000000000000");
    assert_eq!(sco::decode_header(&header, &reference), Ok(vec![1, 2, 3]));
}

#[test]
fn journal_records() {
    let snapshot = SnapshotId(Uuid::from_u128(77));
    let records = [
        Record::Start {
            continues: Some(Position { epoch: Epoch(2), index: JournalIndex(4) }),
            starts_after: Sequence(50),
            size: ByteCount(1 << 30),
            base: Some((VDISK, snapshot)),
            properties: "{}".into(),
        },
        Record::Tlog {
            sequence: Sequence(60),
            scos: vec![sco_ref()],
            entries: vec![
                TlogEntry { cluster: Cluster(5), count: 2, target: Target::Sco { sco: 0, offset: 1 } },
                TlogEntry { cluster: Cluster(9), count: 1 << 30, target: Target::Zero },
            ],
        },
        Record::Snapshot {
            id: snapshot,
            name: Name::new("daily.1").unwrap(),
            created_ms: 1_700_000_000_000,
            sequence: Sequence(60),
            size: ByteCount(1 << 30),
        },
        Record::SnapshotDelete { id: snapshot },
        Record::Rollback { id: snapshot, sequence: Sequence(61) },
        Record::Resize { size: ByteCount(2 << 30) },
        Record::Properties { properties: "{\"name\":\"x\"}".into() },
        Record::Relocate {
            scos: vec![sco_ref()],
            moves: vec![
                Move { origin: (Epoch(2), ScoNumber(9)), to: Some((0, 1, kept())) },
                Move { origin: (Epoch(2), ScoNumber(10)), to: None },
            ],
        },
    ];
    for (record, (length, sum)) in records.into_iter().zip(JOURNAL) {
        let bytes = record.encode(VDISK, AT);
        check(&format!("{record:?}"), &bytes, length, sum, "4f56534a524e30310100");
        assert_eq!(Record::decode(&bytes, VDISK, AT), Ok(record));
    }
}

#[test]
fn tombstone() {
    let bytes = tombstone::encode(VDISK, Epoch(3));
    check("tombstone", &bytes, 40, TOMBSTONE, "4f565344454c303102000000");
    assert_eq!(tombstone::decode(&bytes, VDISK), Ok(Epoch(3)));
}

#[test]
fn map_pages() {
    let mut places = [0; FANOUT];
    (places[3], places[511]) = (0x10001, 0x20002);
    let leaf = page::encode_leaf(12, &places);
    check("leaf of runs", &leaf, 51, LEAF_OF_RUNS, "06020000");
    assert_eq!(*page::decode_leaf(12, &leaf).unwrap(), places);
    // As it was written before leaves were packed.
    let mut present = [0; FANOUT / 8];
    (present[0], present[63]) = (8, 0x80);
    let mut old =
        [&12u64.to_le_bytes()[..], &present, &places[3].to_le_bytes(), &places[511].to_le_bytes()].concat();
    old = [&[1, 2, 0, 0][..], &checksum(&old).to_le_bytes(), &old].concat();
    check("sparse plain leaf", &old, 96, SPARSE_LEAF, "01020000");
    assert_eq!(*page::decode_leaf(12, &old).unwrap(), places);
    let run: [u64; FANOUT] = std::array::from_fn(|index| 0x70000 + index as u64);
    let leaf = page::encode_leaf(12, &run);
    check("leaf of one run", &leaf, 25, LEAF_OF_ONE_RUN, "06020000");
    assert_eq!(*page::decode_leaf(12, &leaf).unwrap(), run);
    let scattered: [u64; FANOUT] =
        std::array::from_fn(|index| (1 + (index * 37 % 29) as u64) << 16 | (index * 11 % 1000) as u64);
    let leaf = page::encode_leaf(12, &scattered);
    check("packed leaf", &leaf, 987, PACKED_LEAF, "06020000");
    assert_eq!(*page::decode_leaf(12, &leaf).unwrap(), scattered);
    let wide: [u64; FANOUT] =
        std::array::from_fn(
            |index: usize| if index.is_multiple_of(2) { 0x7fff_ffff_ffff_0000 } else { 0x1ffff },
        );
    let leaf = page::encode_leaf(12, &wide);
    check("plain leaf", &leaf, 4176, LEAF, "01020000");
    assert_eq!(*page::decode_leaf(12, &leaf).unwrap(), wide);
    let mut children = [ChildEntry::default(); FANOUT];
    children[8] = ChildEntry { page: 12, mapped: 34 };
    let inner = page::encode_inner(12, &children);
    check("inner", &inner, 38, INNER, "02020000");
    assert_eq!(*page::decode_inner(12, &inner).unwrap(), children);
    let put = || TableEntry::Put(sco_ref());
    let table = page::encode_table(12, &[put(), put()]);
    check("table", &table, 132, TABLE, "03020000");
    assert_eq!(page::decode_table(12, &table).unwrap(), [put(), put()]);
    let moved = TableEntry::Moved(Rc::new(Moved {
        origin: (Epoch(2), ScoNumber(9)),
        sco: sco_ref(),
        base: 1,
        kept: kept(),
    }));
    let table = page::encode_table(12, &[put(), moved.clone(), TableEntry::Gone]);
    check("moved table", &table, 175, MOVED_TABLE, "05020000");
    assert_eq!(page::decode_table(12, &table).unwrap(), [put(), moved, TableEntry::Gone]);
    let record = CheckpointRecord {
        epoch: Epoch(3),
        index: JournalIndex(9),
        sequence: Sequence(60),
        root: RootEntry { page: 12, mapped: 34 },
        table_pages: vec![13, 14],
        snapshots: vec![(SnapshotId(Uuid::from_u128(77)), RootEntry { page: 15, mapped: 16 })],
    };
    check("checkpoint", &record.encode(VDISK), 120, CHECKPOINT, "04020000");
    assert_eq!(CheckpointRecord::decode(VDISK, &record.encode(VDISK)), Ok(record));
}

#[test]
fn fragment() {
    let geometry =
        Geometry { object_bytes: 100_000, data: 3, parity: 2, frame_bytes: 32_768, fragment_bytes: 65_536 };
    let header = Header {
        name: [3; 16],
        put: PutId(Uuid::from_u128(42)),
        geometry,
        chunk: 0,
        fragment: 1,
        compression: Compression::Zstd,
        key: 6,
        body_bytes: 1234,
        body_checksum: 5,
    };
    check("fragment", &header.encode(), 128, FRAGMENT, "4f56534652473031020002");
    assert_eq!(Header::decode(&header.encode()), Ok(header));
    let entry = FrameEntry { offset: 20, stored_bytes: 700, is_compressed: true, checksum: 8 };
    let second = FrameEntry { offset: 720, checksum: header.frame_checksum(1, 1, b"x"), ..entry };
    let index = header.encode_index(1, &[entry, second]);
    check("index", &index, 20, INDEX, "bc02008008000000");
    assert_eq!(header.decode_index(1, &index), Ok(vec![entry, second]));
}

#[test]
fn long_fragments_are_whole_blocks() {
    let geometry = Geometry {
        object_bytes: (4 << 20) + 5 * 131_072 + 1,
        data: 4,
        parity: 2,
        frame_bytes: 32_768,
        fragment_bytes: 1 << 20,
    };
    // The second chunk has six frames in all but its last fragments; the last one has a frame of one byte.
    assert_eq!((geometry.chunks(), geometry.frames(1, 0), geometry.frames(1, 3)), (2, 6, 3));
    for (chunk, fragment) in [(0, 0), (0, 3), (1, 0), (1, 3)] {
        assert_eq!(geometry.frames_at(chunk, fragment), 4096 - 128);
    }
    assert_eq!(geometry.body_bytes(0, 4096 - 128 + (1 << 20)), 4096 - 128 + (1 << 20));
    assert_eq!(geometry.body_bytes(0, 4096 - 128 + 700), 8192 - 128);
    assert_eq!(geometry.body_bytes(1, 4096 - 128 + 1), 8192 - 128);
    // Of 96 KiB they are as long as they are.
    let short = Geometry { object_bytes: 3 * 131_072, ..geometry };
    assert_eq!((short.frames_at(0, 0), short.body_bytes(0, 777)), (3 * 8 + 4, 777));
    let long = Geometry { object_bytes: 3 * 131_072 + 1, ..geometry };
    assert_eq!((long.frames_at(0, 0), long.body_bytes(0, 777)), (4096 - 128, 4096 - 128));
    // An index of more than a block.
    let large = Geometry { object_bytes: 256 << 20, fragment_bytes: 64 << 20, ..geometry };
    assert_eq!((large.index_bytes(0, 0), large.frames_at(0, 0)), (2048 * 8 + 4, 5 * 4096 - 128));
}

const FRAGMENT: u32 = 0xdd12_f599;
const INDEX: u32 = 0xf234_8c7a;
const TOMBSTONE: u32 = 0x1f18_9f51;
const SEGMENT: u32 = 0xbfd3_396f;
const EARLY_SEGMENT: u32 = 0xc0e1_49bf;
const BATCH: u32 = 0x7751_28ba;
const SEAL: u32 = 0xc31f_69f7;
const EARLY_SEAL: u32 = 0x40bd_8d67;
const SCO: u32 = 0xd75f_5c6b;
const JOURNAL: [(usize, u32); 8] = [
    (120, 0xd332_5d89),
    (168, 0x6f61_66b9),
    (99, 0x2e37_86e1),
    (64, 0xe90c_0657),
    (72, 0xd525_47b8),
    (56, 0x52f0_4708),
    (64, 0xdf71_1ff5),
    (176, 0xc25d_a46e),
];
const SPARSE_LEAF: u32 = 0x8344_d489;
const LEAF_OF_RUNS: u32 = 0xc928_36e6;
const LEAF_OF_ONE_RUN: u32 = 0x26e1_e9da;
const PACKED_LEAF: u32 = 0xbaf0_1fcd;
const LEAF: u32 = 0xe68e_3558;
const INNER: u32 = 0xff3e_7a4e;
const TABLE: u32 = 0xf722_00b8;
const MOVED_TABLE: u32 = 0x8c14_9faa;
const CHECKPOINT: u32 = 0x65a7_d1cb;
