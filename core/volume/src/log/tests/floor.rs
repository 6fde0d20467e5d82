//! What a replay need not read: never what it needs, however little of what was not stable a power loss leaves.

use super::*;
use ovs_format::log::BatchHeader;

/// X, stable and alone in its segment, with another segment begun behind it. Seven batches go into a slot.
async fn alone_in_its_segment(log: &Log) -> Rc<Record> {
    let mut records = write(log, 0..8).await;
    log.sync().await.unwrap();
    records.swap_remove(0)
}

/// A power loss takes the batch.
async fn lose(log: &Log, record: &Rc<Record>) {
    let place = record.place.borrow().clone().unwrap();
    let bytes = vec![Bytes::from(vec![0xff; BLOCK_BYTES])];
    log.state.device.write(place.segment.slot, place.offset - BLOCK_BYTES as u64, bytes).await.unwrap();
}

fn move_it(log: &Log, record: &Rc<Record>) {
    record.set_resident(Bytes::from(vec![record.header.cluster.0 as u8; CLUSTER_SIZE_BYTES as usize]));
    record.promised_blocks.set(log.room(1, RoomFor::Move).unwrap().take());
    log.state.pending.borrow_mut().push_back(record.clone());
    log.state.work.notify_one();
}

/// The next sync of the segment that is written to now fails; what was not stable is written again.
async fn fail_a_sync(log: &Log, device: &refusals::Refusing) {
    device.refused.set(Some(log.state.current.borrow().as_ref().unwrap().slot));
    log.sync().await.unwrap();
    assert_eq!(device.refused.get(), None);
}

/// As [`fail_a_sync`], and the power goes before what was written again is stable: of that only one batch is left, and nothing
/// of the segment that failed. The records are told in the order in which they were written again.
async fn fail_a_sync_and_lose(log: &Log, device: &refusals::Refusing, records: &[&Rc<Record>], left: usize) {
    let before: Vec<_> = records.iter().map(|record| record.place.borrow().clone().unwrap()).collect();
    device.refused.set(Some(before[0].segment.slot));
    let again = |record: &&Rc<Record>, old: &crate::log::record::Place| record.lsn() != old.lsn;
    let flush = {
        let log = log.clone();
        tokio::task::spawn_local(async move { log.sync().await })
    };
    until(|| records.iter().zip(&before).all(|(record, old)| again(record, old))).await;
    flush.abort();
    let _ = flush.await;
    for place in before {
        let bytes = vec![Bytes::from(vec![0xff; BLOCK_BYTES])];
        let offset = place.offset - BLOCK_BYTES as u64;
        log.state.device.write(place.segment.slot, offset, bytes).await.unwrap();
    }
    for (_, record) in records.iter().enumerate().filter(|(number, _)| *number != left) {
        lose(log, record).await;
    }
}

/// What the next start finds, and the one after a start that ended at once. Nothing of it is damage.
async fn found(directory: &tempfile::TempDir) -> [Vec<u64>; 2] {
    let mut found = [Vec::new(), Vec::new()];
    for found in &mut found {
        let (log, replay) = open(directory, 16, 100).await;
        assert_eq!(replay.damage, []);
        *found = numbers(&replay);
        drop((log, replay));
    }
    found
}

/// Two batches wait, and what supersedes X is in the second: the first is written when X is needed by nobody in memory.
#[test]
fn what_is_superseded_counts_until_that_is_stable() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let x = alone_in_its_segment(&log).await;
        let (a, y) = (append_one(&log, 10, false), append_one(&log, 11, false));
        drop(x);
        assert!(a.written().await && y.written().await);
        assert_ne!(a.lsn(), y.lsn());
        lose(&log, &y).await;
        drop((log, a, y));
        let expected = vec![0, 1, 2, 3, 4, 5, 6, 7, 10];
        assert_eq!(found(&directory).await, [expected.clone(), expected]);
    });
}

/// It is written and not stable: batches behind it may be left by a power loss that took it.
#[test]
fn what_is_superseded_counts_until_that_is_stable_in_later_batches_too() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let x = alone_in_its_segment(&log).await;
        let y = append_one(&log, 10, false);
        drop(x);
        assert!(y.written().await);
        let a = write_one(&log, 11, false).await;
        lose(&log, &y).await;
        drop((log, y, a));
        let expected = vec![0, 1, 2, 3, 4, 5, 6, 7];
        assert_eq!(found(&directory).await, [expected.clone(), expected]);
    });
}

/// It is written elsewhere and not stable there, while everything that was ever appended is: its order is an old one.
#[test]
fn what_was_moved_and_lost_is_found_where_it_was() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let x = alone_in_its_segment(&log).await;
        let stable = log.state.synced_lsn.get();
        move_it(&log, &x);
        until(|| x.lsn() >= stable).await;
        let behind = write(&log, 8..10).await;
        lose(&log, &x).await;
        drop((log, behind, x));
        let expected = vec![0, 1, 2, 3, 4, 5, 6, 7];
        assert_eq!(found(&directory).await, [expected.clone(), expected]);
    });
}

/// X is written elsewhere, and that segment fails before it is stable there.
#[test]
fn what_was_moved_counts_where_it_was_until_it_is_stable() {
    for (left, expected) in [(0, vec![0, 1, 2, 3, 4, 5, 6, 7, 10]), (2, vec![0, 1, 2, 3, 4, 5, 6, 7])] {
        run(async {
            let directory = tempfile::tempdir().unwrap();
            let (log, device, _) = refusals::open_watched(&directory, 16).await;
            let x = alone_in_its_segment(&log).await;
            let stable = log.state.synced_lsn.get();
            let a = write_one(&log, 10, false).await;
            move_it(&log, &x);
            until(|| x.lsn() > stable).await;
            let b = write_one(&log, 11, false).await;
            fail_a_sync_and_lose(&log, &device, &[&a, &x, &b], left).await;
            drop((log, x, a, b, device));
            assert_eq!(found(&directory).await, [expected.clone(), expected]);
        });
    }
}

#[test]
fn what_is_superseded_counts_until_that_is_written_again_and_stable() {
    for (left, expected) in [(0, vec![0, 1, 2, 3, 4, 5, 6, 7, 10]), (2, vec![0, 1, 2, 3, 4, 5, 6, 7])] {
        run(async {
            let directory = tempfile::tempdir().unwrap();
            let (log, device, _) = refusals::open_watched(&directory, 16).await;
            let x = alone_in_its_segment(&log).await;
            let a = write_one(&log, 10, false).await;
            let y = append_one(&log, 11, false);
            drop(x);
            assert!(y.written().await);
            let b = write_one(&log, 12, false).await;
            fail_a_sync_and_lose(&log, &device, &[&a, &y, &b], left).await;
            drop((log, a, y, b, device));
            assert_eq!(found(&directory).await, [expected.clone(), expected]);
        });
    }
}

/// Its slot is not used again, so that nothing else would keep a replay from passing it by.
#[test]
fn what_is_stable_in_a_segment_that_failed_counts() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (log, device, _) = refusals::open_watched(&directory, 16).await;
        let x = write_one(&log, 0, false).await;
        log.sync().await.unwrap();
        let a = write_one(&log, 1, false).await;
        fail_a_sync(&log, &device).await;
        assert!(x.place.borrow().as_ref().unwrap().segment.retired.get());
        let (b, y) = (append_one(&log, 10, false), append_one(&log, 11, false));
        drop(x);
        assert!(b.written().await && y.written().await);
        lose(&log, &y).await;
        drop((log, a, b, y, device));
        // It is void where it was first.
        let expected = vec![0, 1, 1, 10];
        assert_eq!(found(&directory).await, [expected.clone(), expected]);
    });
}

#[test]
fn what_is_stable_in_a_segment_that_is_kept_as_evidence_counts() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let mut records = write(&log, 0..3).await;
        log.sync().await.unwrap();
        records.extend(write(&log, 3..4).await);
        lose(&log, &records[1]).await;
        drop((log, records));
        let (log, mut replay) = open(&directory, 16, 100).await;
        assert_eq!((numbers(&replay), replay.damage.len()), (vec![0, 2, 3], 1));
        let x = replay.records.remove(&VDISK).unwrap().swap_remove(0);
        assert!(x.place.borrow().as_ref().unwrap().segment.retired.get());
        let (a, y) = (append_one(&log, 10, false), append_one(&log, 11, false));
        drop(x);
        assert!(a.written().await && y.written().await);
        lose(&log, &y).await;
        drop((log, replay, a, y));
        let (_, replay) = open(&directory, 16, 100).await;
        assert_eq!((numbers(&replay), replay.damage.len()), (vec![0, 2, 3, 10], 1));
    });
}

/// Behind what a segment holds lies what its slot had before: guests' data, which may be made to look like a batch.
#[test]
fn what_guests_wrote_is_no_batch() {
    run(async {
        for (behind, salt) in [(0, 1), (1, 1), (0, 0)] {
            let directory = tempfile::tempdir().unwrap();
            let log = open(&directory, 16, 100).await.0;
            let records = write(&log, 0..10).await;
            log.sync().await.unwrap();
            let (segment, end) = {
                let place = records[9].place.borrow();
                let place = place.as_ref().unwrap();
                (place.segment.clone(), place.offset + BLOCK_BYTES as u64)
            };
            let forged = BatchHeader {
                segment: SegmentId { salt: salt & !segment.id.salt, ..segment.id },
                lsn: log.state.next_lsn.get() + behind,
                synced_lsn: 1 << 40,
                floor_lsn: 1 << 40,
                is_seal: false,
                records: Vec::new(),
            };
            let offset = end + behind * BLOCK_BYTES as u64;
            log.state.device.write(segment.slot, offset, vec![forged.encode().into()]).await.unwrap();
            drop((log, records, segment));
            let expected: Vec<u64> = (0..10).collect();
            assert_eq!(found(&directory).await, [expected.clone(), expected], "{behind} {salt}");
        }
    });
}

/// Nor is its word taken for what need not be read, should it guess the salt: not from where no batch was looked for.
#[test]
fn what_is_searched_for_behind_a_hole_has_no_floor() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let records = write(&log, 0..10).await;
        log.sync().await.unwrap();
        let (segment, offset) = {
            let place = records[9].place.borrow();
            let place = place.as_ref().unwrap();
            (place.segment.clone(), place.offset + 2 * BLOCK_BYTES as u64)
        };
        let lsn = log.state.next_lsn.get() + 1;
        let guessed = BatchHeader {
            segment: segment.id,
            lsn,
            synced_lsn: 0,
            floor_lsn: lsn,
            is_seal: false,
            records: Vec::new(),
        };
        log.state.device.write(segment.slot, offset, vec![guessed.encode().into()]).await.unwrap();
        drop((log, records, segment));
        let expected: Vec<u64> = (0..10).collect();
        assert_eq!(found(&directory).await, [expected.clone(), expected]);
    });
}

/// Its segments have no salt. They are read, sealed where they end, and read again.
#[test]
fn what_an_early_build_wrote_is_found() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let records = write(&log, 0..10).await;
        log.sync().await.unwrap();
        let device = log.state.device.clone();
        drop((log, records));
        for slot in 0..device.slot_count() {
            for offset in (0..16).map(|block| block * BLOCK_BYTES as u64) {
                let block = device.read(slot, offset, BLOCK_BYTES).await.unwrap();
                let without_salt = |id: SegmentId| SegmentId { salt: 0, ..id };
                let early = match (SegmentHeader::decode(&block), BatchHeader::decode(&block)) {
                    (Ok(header), _) => SegmentHeader { id: without_salt(header.id), ..header }.encode(),
                    (_, Ok(header)) => {
                        BatchHeader { segment: without_salt(header.segment), ..header }.encode()
                    }
                    _ => continue,
                };
                device.write(slot, offset, vec![early.into()]).await.unwrap();
            }
        }
        drop(device);
        let expected: Vec<u64> = (0..10).collect();
        assert_eq!(found(&directory).await, [expected.clone(), expected]);
    });
}

/// Another life gave the same generation to another segment: its batches are not this one's.
#[test]
fn a_header_over_batches_of_its_generation_and_another_salt_has_none_yet() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let records = write(&log, 0..10).await;
        log.sync().await.unwrap();
        let segment = log.state.current.borrow().as_ref().unwrap().clone();
        let id = SegmentId { salt: !segment.id.salt, ..segment.id };
        let (start_lsn, synced_lsn) = (segment.start_lsn, 0);
        let other = SegmentHeader { log: log.state.id, id, start_lsn, synced_lsn, voids: Vec::new() };
        log.state.device.write(segment.slot, 0, vec![other.encode().into()]).await.unwrap();
        drop((log, records, segment));
        assert_eq!(found(&directory).await, [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]);
    });
}

/// It is damage at the next start too, until whoever has to know of it does.
#[test]
fn damage_is_seen_again_while_somebody_has_its_evidence() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let records = write(&log, 0..8).await;
        log.sync().await.unwrap();
        lose(&log, &records[0]).await;
        let rest = write(&log, 8..9).await;
        drop((log, records, rest));
        for (has_evidence, seen) in [(true, 1), (false, 1), (false, 0)] {
            let (log, mut replay) = open(&directory, 16, 100).await;
            assert_eq!(replay.damage.len(), seen, "{has_evidence}");
            replay.records.clear();
            if !has_evidence {
                replay.evidence.clear();
            }
            for number in 20..22 {
                write(&log, number..number + 1).await;
                log.sync().await.unwrap();
            }
            drop((log, replay));
        }
    });
}

/// They are let go of, and not superseded: what is written after that says so, and no slot of theirs is used.
#[test]
fn what_is_let_go_of_at_the_end_is_found() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let records = write(&log, 0..30).await;
        log.sync().await.unwrap();
        let free = log.state.free.borrow().len();
        log.end();
        drop(records);
        let last = write(&log, 30..31).await;
        assert_eq!(log.state.free.borrow().len(), free);
        drop((log, last));
        let expected: Vec<u64> = (0..31).collect();
        assert_eq!(found(&directory).await, [expected.clone(), expected]);
    });
}

/// X is superseded by what a second life wrote, and that is lost.
#[test]
fn what_a_later_life_supersedes_counts_until_that_is_stable() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let _lives = alone_in_its_segment(&log).await;
        drop((log, _lives));
        let (log, mut replay) = open(&directory, 16, 100).await;
        assert_eq!(numbers(&replay), [0, 1, 2, 3, 4, 5, 6, 7]);
        let mut records = replay.records.remove(&VDISK).unwrap();
        let (a, y) = (append_one(&log, 10, false), append_one(&log, 11, false));
        records.drain(..7);
        assert!(a.written().await && y.written().await);
        lose(&log, &y).await;
        drop((log, records, a, y));
        let expected = vec![0, 1, 2, 3, 4, 5, 6, 7, 10];
        assert_eq!(found(&directory).await, [expected.clone(), expected]);
    });
}

/// And once that is stable they are not read, nor is what was damaged there.
#[test]
fn what_is_superseded_by_what_is_stable_is_passed_by() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let x = alone_in_its_segment(&log).await;
        let y = append_one(&log, 10, false);
        lose(&log, &x).await;
        drop(x);
        assert!(y.written().await);
        log.sync().await.unwrap();
        let a = write_one(&log, 11, false).await;
        drop((log, y, a));
        assert_eq!(found(&directory).await, [vec![7, 10, 11], vec![7, 10, 11]]);
    });
}

/// Slots that nobody needs are not read at the next start, but for what tells whose they are.
#[test]
fn what_nobody_needs_is_not_read_again() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 64, 100).await.0;
        let old = write(&log, 0..200).await;
        log.sync().await.unwrap();
        drop(old);
        let records = write(&log, 200..210).await;
        drop((log, records));
        let inner = FileDevice::open(directory.path(), 12, 64 * BLOCK_BYTES as u64).unwrap();
        let device = Rc::new(ReadCounted { blocks: Cell::new(0), inner });
        let (_, replay) = Log::open(device.clone(), Rc::new(SystemChance), 1 << 20).await.unwrap();
        let found = numbers(&replay);
        assert!(found.len() <= 29 + 10 && found.ends_with(&[206, 207, 208, 209]), "{found:?}");
        // The first blocks of twelve, and two of those that are needed, read twice: of twelve times 64.
        let read = device.blocks.get();
        assert!(read <= 12 * 17 + 4 * 64, "{read} blocks");
    });
}

/// Blocks that are read of it.
struct ReadCounted {
    blocks: Cell<usize>,
    inner: FileDevice,
}

impl LogDevice for ReadCounted {
    fn slot_count(&self) -> usize {
        self.inner.slot_count()
    }

    fn slot_bytes(&self) -> u64 {
        self.inner.slot_bytes()
    }

    fn write(&self, slot: usize, offset: u64, parts: Vec<Bytes>) -> LocalBoxFuture<'_, io::Result<()>> {
        self.inner.write(slot, offset, parts)
    }

    fn sync(&self, slot: usize) -> LocalBoxFuture<'_, io::Result<()>> {
        self.inner.sync(slot)
    }

    fn read(&self, slot: usize, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Bytes>> {
        self.blocks.set(self.blocks.get() + length.div_ceil(BLOCK_BYTES));
        self.inner.read(slot, offset, length)
    }
}
