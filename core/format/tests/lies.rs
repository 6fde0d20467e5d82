//! A good checksum over what cannot be: each is refused, and by its name.

use ovs_format::journal::{Position, Record, Target, TlogEntry};
use ovs_format::leaf::PLACE_MAX;
use ovs_format::log::{
    BATCH_CLUSTERS_MAX, BATCH_RECORDS_MAX, BLOCK_BYTES, BatchHeader, RecordHeader, RecordKind, SegmentHeader,
    SegmentId, VOIDS_MAX, decode_wiped, encode_wiped,
};
use ovs_format::map_copy::{MapCopy, PartWriter};
use ovs_format::page::{self, ChildEntry, FANOUT, TABLE_CHUNK};
use ovs_format::table::{ClusterSet, Moved, TableEntry};
use ovs_format::{FormatError, checksum, sco};
use ovs_units::{ByteCount, COUNTER_MAX, Cluster, Epoch, JournalIndex, PutId, ScoNumber, Sequence, VdiskId};
use std::fmt::Debug;
use std::rc::Rc;
use uuid::Uuid;

const SEGMENT_ID: SegmentId = SegmentId { generation: 1, salt: 2 };
const VDISK: VdiskId = VdiskId(Uuid::from_u128(1));
const AT: Position = Position { epoch: Epoch(1), index: JournalIndex(0) };

fn check<T: Debug>(answer: Result<T, FormatError>, expected: &str) {
    let error = answer.expect_err(expected).to_string();
    assert!(error.contains(expected), "{error}, not {expected}");
}

/// These bytes with others from `at` on and the checksum of log and journal: of everything but itself.
fn changed(good: &[u8], at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    let sum = checksum(&[&bytes[..12], &bytes[16..]].concat());
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The same of a page: of what follows it.
fn changed_page(good: &[u8], at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    let sum = checksum(&bytes[8..]);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn in_a_segment_s_header() {
    let (log, voids) = (Uuid::from_u128(3), Vec::new());
    let good = SegmentHeader { log, id: SEGMENT_ID, start_lsn: 0, synced_lsn: 0, voids }.encode();
    let too_many = VOIDS_MAX as u32 + 1;
    check(SegmentHeader::decode(&changed(&good, 56, &too_many.to_le_bytes())), "void ranges cannot be 65");
    assert!(SegmentHeader::decode(&changed(&good, 56, &(VOIDS_MAX as u32).to_le_bytes())).is_ok());
    check(SegmentHeader::decode(&changed(&good, 8, &2u16.to_le_bytes())), "version 2");
}

#[test]
fn in_a_batch_s_header() {
    let record = |count, kind| {
        let (epoch, sequence, cluster) = (Epoch(1), Sequence(1), Cluster(0));
        RecordHeader { vdisk: VDISK, epoch, sequence, cluster, count, kind }
    };
    let encoded = |records| {
        BatchHeader { segment: SEGMENT_ID, lsn: 1, synced_lsn: 0, floor_lsn: 0, is_seal: false, records }
            .encode()
    };
    let data = encoded(vec![record(2, RecordKind::Data(vec![1, 2])), record(1, RecordKind::Data(vec![3]))]);
    let zeros = encoded(vec![record(7, RecordKind::Zero)]);
    let (cluster_at, count_at, kind_at) = (96, 104, 112);
    check(BatchHeader::decode(&changed(&zeros, kind_at, &[3])), "record kind or count cannot be 3");
    check(BatchHeader::decode(&changed(&zeros, count_at, &[0])), "record clusters cannot be 0");
    check(BatchHeader::decode(&changed(&zeros, cluster_at, &[0xff; 8])), "record clusters cannot be 7");
    let end = ((1u64 << 52) - 7).to_le_bytes();
    assert!(BatchHeader::decode(&changed(&zeros, cluster_at, &end)).is_ok(), "the last clusters there are");
    let behind = ((1u64 << 52) - 6).to_le_bytes();
    check(BatchHeader::decode(&changed(&zeros, cluster_at, &behind)), "record clusters cannot be 7");
    check(BatchHeader::decode(&changed(&data, count_at, &[3])), "data clusters cannot be 4");
    check(BatchHeader::decode(&changed(&data, count_at, &[1])), "data clusters cannot be 2");
    check(BatchHeader::decode(&changed(&data, count_at, &[4])), "record kind or count cannot be 1");
    check(BatchHeader::decode(&changed(&data, 48, &[3, 0, 0, 1])), "length");
    check(BatchHeader::decode(&data[..BLOCK_BYTES - 1]), "4096 are needed");
    // More than a batch may have, though the length fits.
    let claimed = |records, clusters| {
        let kind = RecordKind::Data(vec![0; clusters]);
        let mut records = vec![record(1, RecordKind::Zero); records];
        records.push(record(clusters as u64, kind));
        BatchHeader::claimed_bytes(&encoded(records))
    };
    assert!(claimed(BATCH_RECORDS_MAX - 1, BATCH_CLUSTERS_MAX).is_ok());
    check(claimed(BATCH_RECORDS_MAX, 1), "length");
    check(claimed(1, BATCH_CLUSTERS_MAX + 1), "length");
}

/// What says that a slot was wiped counts whatever else is wrong with it; only its number may not.
#[test]
fn in_a_wiped_block() {
    let good = encode_wiped(COUNTER_MAX - 1);
    assert_eq!(decode_wiped(&good), Some(COUNTER_MAX - 1));
    assert_eq!(decode_wiped(&encode_wiped(COUNTER_MAX)), Some(0));
    let mut flipped = good.clone();
    flipped[8] ^= 1;
    for bad in [&flipped[..], &good[..19], &good[..16]] {
        assert_eq!(decode_wiped(bad), Some(0));
    }
    for other in [&good[..15], &good[1..]] {
        assert_eq!(decode_wiped(other), None);
    }
}

/// A checksum is looked at only where there is room for it.
#[test]
fn in_an_object_that_ends_too_early() {
    let resize = Record::Resize { size: ByteCount(1) }.encode(VDISK, AT);
    check(Record::decode(&resize[..47], VDISK, AT), "47 bytes where at least 48");
    check(Record::decode(&changed(&resize[..48], 0, &[]), VDISK, AT), "0 bytes where at least 8");
    let put = PutId(Uuid::from_u128(2));
    let (part, _) = PartWriter::new(VDISK, put, 0).finish();
    let copy = |length, magic: &[u8]| MapCopy::decode(&changed(&part[..length], 0, magic), VDISK, put);
    check(MapCopy::decode(&part[..15], VDISK, put), "15 bytes where at least 16");
    check(copy(16, b"OVSMCR01"), "0 bytes where at least 16");
    check(copy(48, b"OVSMCP01"), "magic");
}

#[test]
fn in_a_journal_record() {
    let refused =
        |record: Record, expected| check(Record::decode(&record.encode(VDISK, AT), VDISK, AT), expected);
    let resize = Record::Resize { size: ByteCount(1) }.encode(VDISK, AT);
    check(Record::decode(&changed(&resize, 0, &[0]), VDISK, AT), "magic");
    check(Record::decode(&changed(&resize, 8, &[9]), VDISK, AT), "version 9");
    check(Record::decode(&changed(&resize, 10, &[99]), VDISK, AT), "kind cannot be 99");
    let longer = [&resize[..], &[0]].concat();
    check(Record::decode(&changed(&longer, 0, &[]), VDISK, AT), "bytes after the end cannot be 1");
    refused(Record::Resize { size: ByteCount((64 << 40) + 1) }, "size cannot be");

    let sco = sco::encode_header(VDISK, Epoch(1), ScoNumber(1), PutId(Uuid::from_u128(2)), &[7; 9]).1;
    let tlog = |cluster, count, target| {
        let entries = vec![TlogEntry { cluster: Cluster(cluster), count, target }];
        Record::Tlog { sequence: Sequence(5), scos: vec![sco], entries }
    };
    let in_sco = |sco, offset| Target::Sco { sco, offset };
    refused(tlog(0, 0, Target::Zero), "entry clusters cannot be 0");
    refused(tlog(u64::MAX, 1, Target::Zero), "entry clusters cannot be 1");
    refused(tlog(1 << 52, 1, Target::Zero), "entry clusters cannot be 1");
    refused(tlog(0, 10, in_sco(0, 0)), "entry target");
    refused(tlog(0, 9, in_sco(0, 1)), "entry target");
    refused(tlog(0, 1, in_sco(1, 0)), "entry target");
    // Where nothing would be left for the second.
    let one = tlog(0, 1, Target::Zero).encode(VDISK, AT);
    let count_at = one.len() - 24 - 4;
    check(Record::decode(&changed(&one, count_at, &[2]), VDISK, AT), "entries cannot be 2");
    for good in [tlog(0, 9, in_sco(0, 0)), tlog(7, 1, in_sco(0, 8)), tlog((1 << 52) - 1, 1, Target::Zero)] {
        assert_eq!(Record::decode(&good.encode(VDISK, AT), VDISK, AT), Ok(good));
    }
}

#[test]
fn in_a_page() {
    let in_far_scos = |index: usize| if index.is_multiple_of(2) { PLACE_MAX - 7 } else { 1 << 16 };
    let leaf = page::encode_leaf(7, &std::array::from_fn(in_far_scos));
    check(page::decode_leaf(7, &changed_page(&leaf, 0, &[9])), "magic");
    check(page::decode_leaf(7, &changed_page(&leaf, 1, &[9])), "version 9");
    check(page::decode_leaf(7, &changed_page(&leaf, leaf.len() - 8, &[0; 8])), "place cannot be 0");
    check(
        page::decode_leaf(7, &changed_page(&leaf, leaf.len() - 8, &(PLACE_MAX + 1).to_le_bytes())),
        "place cannot be 9223372036854775808",
    );
    check(page::decode_leaf(7, &changed_page(&[&leaf[..], &[0]].concat(), 0, &[])), "bytes after the end");

    let packed = |form: &[u8]| {
        let lie = [&page::encode_leaf(7, &[0; FANOUT])[..16], form].concat();
        page::decode_leaf(7, &changed_page(&lie, 0, &[]))
    };
    let run = |first: u64| [&[0][..], &first.to_le_bytes()].concat();
    assert!(packed(&run(PLACE_MAX - 511)).is_ok());
    check(packed(&run(PLACE_MAX - 510)), "first place cannot be");
    check(packed(&run(PLACE_MAX + 1)), "place cannot be");
    check(packed(&[3]), "form of a leaf cannot be 3");
    let runs = |words: &[u64]| {
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        [&[1][..], &((words.len() / 8) as u16).to_le_bytes(), &words].concat()
    };
    let begin = |index: u64| index << 55 | 1 << 16;
    assert!(packed(&runs(&[begin(0), begin(5), begin(511)])).is_ok());
    check(packed(&runs(&[])), "runs cannot be 0");
    check(packed(&runs(&[begin(1)])), "beginnings of runs");
    check(packed(&runs(&[begin(0), begin(5), begin(5)])), "beginnings of runs");
    check(packed(&runs(&[0; 513])), "runs cannot be 513");
    check(packed(&[&runs(&[begin(0)])[..], &[0]].concat()), "bytes after the end");
    let entries = |offset_bits: u8, bits: u8, first: u64| {
        let used = vec![0xff; (FANOUT * usize::from(bits)).div_ceil(8)];
        [&[2, offset_bits, bits][..], &first.to_le_bytes(), &used].concat()
    };
    // As far as they may go: what does not fit into a place is cut to one.
    assert!(packed(&entries(16, 57, PLACE_MAX >> 16)).unwrap().iter().all(|place| *place <= PLACE_MAX));
    assert!(packed(&entries(0, 1, 1)).is_ok());
    check(packed(&entries(0, 58, 1)), "bits of a place cannot be 58");
    check(packed(&entries(17, 40, 1)), "bits of a place cannot be 40");
    check(packed(&entries(9, 9, 1)), "bits of a place cannot be 9");
    check(packed(&entries(9, 20, 0)), "first SCO cannot be 0");
    check(packed(&entries(9, 20, (PLACE_MAX >> 16) + 1)), "first SCO cannot be");

    let mut children = [ChildEntry::default(); FANOUT];
    (children[3], children[4]) = (ChildEntry { page: 1, mapped: 2 }, ChildEntry { page: 2, mapped: 2 });
    let inner = page::encode_inner(7, &children);
    let first = inner.len() - 2 * 18;
    check(
        page::decode_inner(7, &changed_page(&inner, first, &512u16.to_le_bytes())),
        "child index cannot be 512",
    );
    check(
        page::decode_inner(7, &changed_page(&inner, first, &4u16.to_le_bytes())),
        "child index cannot be 4",
    );
    check(page::decode_inner(7, &changed_page(&inner, first + 2, &[0; 8])), "child index cannot be 3");

    let sco = sco::encode_header(VDISK, Epoch(1), ScoNumber(1), PutId(Uuid::from_u128(2)), &[7; 9]).1;
    let put = |scos: &[sco::ScoRef]| scos.iter().copied().map(TableEntry::Put).collect::<Vec<_>>();
    let table = |entries: &[TableEntry]| page::decode_table(7, &page::encode_table(7, entries));
    let refused = |scos: &[sco::ScoRef], expected| check(table(&put(scos)), expected);
    refused(&vec![sco; TABLE_CHUNK + 1], "SCOs cannot be 257");
    refused(&[sco::ScoRef { cluster_count: 0, ..sco }], "clusters of an SCO cannot be 0");
    let most = sco::CLUSTERS_MAX as u32;
    refused(&[sco::ScoRef { cluster_count: most + 1, ..sco }], "clusters of an SCO");
    let good = put(&vec![sco::ScoRef { cluster_count: most, ..sco }; TABLE_CHUNK]);
    assert_eq!(table(&good), Ok(good.clone()));
    // Nine clusters are there, three of them are kept.
    let moved = |length, base| {
        let mut kept = ClusterSet::none_of(length);
        kept.insert(0, 3);
        TableEntry::Moved(Rc::new(Moved { origin: (Epoch(1), ScoNumber(2)), sco, base, kept }))
    };
    assert_eq!(table(&[moved(most, 6)]), Ok(vec![moved(most, 6)]));
    check(table(&[moved(3, 7)]), "first cluster of a moved SCO cannot be 7");
    check(table(&[moved(3, u32::MAX)]), "first cluster of a moved SCO");
    check(table(&[moved(most + 1, 0)]), "clusters of a set");
    check(table(&[moved(0, 0)]), "clusters of a set cannot be 0");
    let entries = page::encode_table(7, &[moved(3, 0)]);
    let last = entries.len() - 8;
    check(page::decode_table(7, &changed_page(&entries, last, &[8; 8])), "last clusters of a set");
    check(page::decode_table(7, &changed_page(&entries, 20, &[3])), "kind of a table entry cannot be 3");
    let six = page::encode_table(7, &put(&[sco; 6]));
    check(page::decode_table(7, &changed_page(&six, 16, &[7])), "SCOs cannot be 7");
}

/// Its checksum is in the map, which may be as wrong.
#[test]
fn in_an_sco_s_header() {
    let (header, reference) =
        sco::encode_header(VDISK, Epoch(1), ScoNumber(1), PutId(Uuid::from_u128(2)), &[7; 9]);
    let decoded = |at: usize, with: u8| {
        let mut header = header.clone();
        header[at] = with;
        let header_checksum = checksum(&header);
        sco::decode_header(&header, &sco::ScoRef { header_checksum, ..reference })
    };
    check(decoded(0, 0), "magic");
    check(decoded(8, 9), "version 9");
}
