//! The log by itself, on a device of twelve slots.

mod floor;
mod refusals;

use super::replay::Replay;
use super::*;
use crate::SystemChance;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_format::log::{BLOCK_BYTES, SegmentHeader, SegmentId, encode_wiped};
use ovs_units::{CLUSTER_SIZE_BYTES, Cluster, Epoch, Sequence};
use std::{io, time::Duration};

const VDISK: VdiskId = VdiskId(Uuid::from_u128(2));

/// A log with slots of so many blocks, and a budget of so many clusters' payloads in memory.
async fn open(directory: &tempfile::TempDir, slot_blocks: u64, clusters_in_memory: u64) -> (Log, Replay) {
    let device = RefCell::new(None);
    // A thread that nobody waits for any more may still sync what was open before: it ends by itself.
    until(|| match FileDevice::open(directory.path(), 12, slot_blocks * BLOCK_BYTES as u64) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        opened => device.replace(Some(opened.unwrap())).is_none(),
    })
    .await;
    let device = device.into_inner().unwrap();
    let budget = clusters_in_memory * CLUSTER_SIZE_BYTES;
    Log::open(Rc::new(device), Rc::new(SystemChance), budget).await.unwrap()
}

/// A record in a batch of its own, of a cluster with data or of zeros, written and not stable.
async fn write_one(log: &Log, number: u64, is_zero: bool) -> Rc<Record> {
    let record = append_one(log, number, is_zero);
    assert!(record.written().await);
    record
}

/// The same, not written yet.
fn append_one(log: &Log, number: u64, is_zero: bool) -> Rc<Record> {
    let data = (!is_zero).then(|| Bytes::from(vec![number as u8; CLUSTER_SIZE_BYTES as usize]));
    let room = log.room(u64::from(!is_zero), RoomFor::Write).unwrap();
    let (epoch, sequence, cluster) = (Epoch(1), Sequence(number + 1), Cluster(number));
    log.append(room, Append { vdisk: VDISK, epoch, sequence, cluster, count: 1, data })
}

/// Clusters with data.
async fn write(log: &Log, clusters: std::ops::Range<u64>) -> Vec<Rc<Record>> {
    let mut records = Vec::new();
    for number in clusters {
        records.push(write_one(log, number, false).await);
    }
    records
}

/// The numbers of those whose payload is in memory.
fn resident(records: &[Rc<Record>]) -> Vec<u64> {
    let here = records.iter().filter(|record| record.resident(0, 1).is_some());
    here.map(|record| record.header.cluster.0).collect()
}

async fn until(is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.expect("it never came to that");
}

fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

#[test]
fn of_what_is_stable_the_newest_payloads_stay_in_memory_within_the_budget() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 256, 4).await.0;
        let mut records = write(&log, 0..8).await;
        assert_eq!(resident(&records), [0, 1, 2, 3, 4, 5, 6, 7], "not stable, whatever the budget");
        log.sync().await.unwrap();
        assert_eq!(resident(&records), [4, 5, 6, 7]);
        records.extend(write(&log, 8..10).await);
        log.sync().await.unwrap();
        assert_eq!(resident(&records), [6, 7, 8, 9]);
        for record in &records {
            let number = record.header.cluster.0;
            assert_eq!(log.read(record, 0, 1).await.unwrap()[..], [number as u8; 4096], "cluster {number}");
        }
        // What is needed no more makes room.
        records.drain(..9);
        records.extend(write(&log, 10..13).await);
        log.sync().await.unwrap();
        assert_eq!(resident(&records), [9, 10, 11, 12]);
        assert_eq!(log.state.memory_bytes.get(), 4 * CLUSTER_SIZE_BYTES);
    });
}

/// Whatever is written behind one that stays.
#[test]
fn no_list_is_kept_of_what_is_needed_no_more() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 1024, 1 << 20).await.0;
        let _stays = write(&log, 0..1).await;
        for number in 1..4000 {
            drop(write_one(&log, number, true).await);
            if number % 100 == 0 {
                log.sync().await.unwrap();
            }
        }
        assert!(log.state.resident.borrow().len() < 2500, "{}", log.state.resident.borrow().len());
    });
}

/// One that is being moved is not stable meanwhile: should that fail, it is written from memory once more.
#[test]
fn what_is_being_moved_stays_in_memory() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 256, 2).await.0;
        let mut records = write(&log, 0..2).await;
        log.sync().await.unwrap();
        records.extend(write(&log, 2..4).await);
        records[0].promised_blocks.set(log.room(1, RoomFor::Move).unwrap().take());
        log.state.evict();
        assert_eq!(resident(&records), [0, 2, 3]);
    });
}

/// Nor when it is written where it goes and not stable there.
#[test]
fn what_was_moved_stays_in_memory_until_it_is_stable() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 256, 2).await.0;
        let mut records = write(&log, 0..2).await;
        log.sync().await.unwrap();
        let stable = log.state.synced_lsn.get();
        records[0].promised_blocks.set(log.room(1, RoomFor::Move).unwrap().take());
        log.state.pending.borrow_mut().push_back(records[0].clone());
        log.state.work.notify_one();
        until(|| records[0].lsn() == stable).await;
        records.extend(write(&log, 2..4).await);
        log.state.evict();
        assert_eq!(resident(&records), [0, 2, 3]);
    });
}

/// Who asked for room and then wrote nothing leaves it to others.
#[test]
fn room_that_was_not_used_is_given_back() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let rooms = || std::iter::from_fn(|| log.room(3, RoomFor::Write)).collect::<Vec<_>>().len();
        let count = rooms();
        assert!(count > 10);
        assert_eq!(rooms(), count);
    });
}

/// What came in while another was written is written together: a sixteenth of a slot at most.
#[test]
fn what_waits_goes_into_one_batch() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 64, 100).await.0;
        let append = |number| {
            let (data, room) = (Bytes::from(vec![1; 4096]), log.room(1, RoomFor::Write).unwrap());
            let (epoch, sequence, cluster) = (Epoch(1), Sequence(number + 1), Cluster(number));
            log.append(room, Append { vdisk: VDISK, epoch, sequence, cluster, count: 1, data: Some(data) })
        };
        let records: Vec<_> = (0..6).map(append).collect();
        for record in &records {
            assert!(record.written().await);
        }
        let first = records[0].lsn();
        let batches: Vec<_> = records.iter().map(|record| record.lsn() - first).collect();
        assert_eq!(batches, [0, 0, 0, 0, 1, 1]);
        // Of zeros as many as have their headers in as many blocks.
        let append = |number| {
            let (data, room) = (None, log.room(0, RoomFor::Move).unwrap());
            let (epoch, sequence, cluster) = (Epoch(1), Sequence(number + 1), Cluster(number));
            log.append(room, Append { vdisk: VDISK, epoch, sequence, cluster, count: 1, data })
        };
        let records: Vec<_> = (10..310).map(append).collect();
        for record in &records {
            assert!(record.written().await);
        }
        let first = records[0].lsn();
        assert_eq!(records.iter().filter(|record| record.lsn() == first).count(), 4 * 64);
    });
}

/// Its loops hold nothing of it while they wait.
#[test]
fn the_loops_end_with_the_log() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        write(&log, 0..1).await;
        log.sync().await.unwrap();
        let held = [log.state.work.clone(), log.state.sync_wanted.clone()];
        drop(log);
        until(|| held.iter().all(|held| Rc::strong_count(held) == 1)).await;
    });
}

/// One after the other, from the first again after the last.
#[test]
fn segments_have_their_turns_to_be_moved() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        // Seven batches go into a slot; the fourth is written to.
        let log = open(&directory, 16, 100).await.0;
        let _records = write(&log, 0..22).await;
        let first = *log.state.segments.borrow().keys().next().unwrap();
        let turns: Vec<u64> = (0..7).map(|_| log.next_to_move().unwrap().id.generation - first).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0]);
    });
}

/// A power loss may take a header and leave what was written behind it.
#[test]
fn an_old_header_over_new_batches_is_done_without() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        // Seven batches go into a slot.
        let log = open(&directory, 16, 100).await.0;
        let records = write(&log, 0..10).await;
        let begun = log.state.current.borrow().as_ref().unwrap().clone();
        let old = SegmentHeader {
            log: log.state.id,
            id: SegmentId { generation: 0, salt: 1 },
            start_lsn: 0,
            synced_lsn: 0,
            voids: vec![],
        };
        log.state.device.write(begun.slot, 0, vec![old.encode().into()]).await.unwrap();
        drop((log, records, begun));
        let (_, replay) = open(&directory, 16, 100).await;
        assert_eq!(replay.damage, []);
        assert_eq!(numbers(&replay), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    });
}

/// Batches below a number that later ones tell are needed by nobody.
#[test]
fn a_damage_in_what_nobody_needs_is_none() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        // Seven batches go into a slot.
        let log = open(&directory, 16, 100).await.0;
        let old = write(&log, 0..7).await;
        let place = old[2].place.borrow().clone().unwrap();
        drop(old);
        let (slot, offset) = (place.segment.slot, place.offset - BLOCK_BYTES as u64);
        drop(place);
        let mut records = write(&log, 7..9).await;
        log.sync().await.unwrap();
        records.extend(write(&log, 9..10).await);
        log.state.device.write(slot, offset, vec![vec![0xff; BLOCK_BYTES].into()]).await.unwrap();
        drop((log, records));
        let (_, replay) = open(&directory, 16, 100).await;
        assert_eq!(replay.damage, []);
        assert_eq!(numbers(&replay), [7, 8, 9]);
    });
}

/// Three slots are kept back, a sixteenth of each, and a block for the header of each record.
#[test]
fn room_and_use_are_counted_in_blocks() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 64, 100).await.0;
        let usable = (11 - 3) * (64 - 1 - 4) + (64 - 1 - 4);
        assert!(log.room(usable, RoomFor::Write).is_none());
        drop(log.room(usable - 1, RoomFor::Write).unwrap());
        let records = write(&log, 0..3).await;
        let stats = log.stats();
        assert_eq!((stats.total_bytes, stats.used_bytes), (12 * 64 * 4096, (1 + 3 * 2) * 4096));
        assert_eq!(stats.written_bytes, 3 * 2 * 4096);
        // The first is stable; the others still have to be.
        log.state.synced_lsn.set(records[0].place.borrow().as_ref().unwrap().lsn + 1);
        log.let_go_of_stable();
        assert_eq!(log.state.unsynced_bytes.get(), 2 * CLUSTER_SIZE_BYTES);
    });
}

/// Of what leaves soon only a quarter of a slot is moved, of the rest three, each record with the block of its header.
#[test]
fn what_is_moved_is_few_for_its_slot() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 64, 100).await.0;
        let mut records = write(&log, 0..30).await;
        let segment = records[0].place.borrow().as_ref().unwrap().segment.clone();
        let mut moved = |live: usize, leaves: bool| {
            records.truncate(live);
            log.worth_moving(&segment, |_| leaves).map(|records| records.len())
        };
        log.sync().await.unwrap();
        assert_eq!([moved(25, false), moved(24, false)], [None, Some(24)]);
        assert_eq!([moved(9, true), moved(8, true)], [None, Some(8)]);
        assert_eq!(moved(0, false), None);
    });
}

/// A part of it elsewhere would take room there and make none here.
#[test]
fn a_segment_is_moved_whole_or_not_at_all() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        // Seven batches go into a slot. No payload stays in memory.
        let log = open(&directory, 16, 0).await.0;
        let mut records = write(&log, 0..9).await;
        log.sync().await.unwrap();
        records.drain(3..8);
        let (segment, offset) = {
            let place = records[2].place.borrow();
            let place = place.as_ref().unwrap();
            (place.segment.clone(), place.offset)
        };
        let overwrite =
            |byte: u8| log.state.device.write(segment.slot, offset, vec![vec![byte; 4096].into()]);
        overwrite(0xff).await.unwrap();
        log.move_one(|_| false).await;
        assert!(log.state.pending.borrow().is_empty());
        assert_eq!(log.state.promised_blocks.get(), 0);
        overwrite(2).await.unwrap();
        // It lets two of its turns pass.
        for _ in 0..2 {
            log.move_one(|_| false).await;
            assert_eq!(log.state.promised_blocks.get(), 0);
        }
        log.move_one(|_| false).await;
        assert_eq!(log.state.promised_blocks.get(), 6);
        write(&log, 9..10).await;
        assert!(segment.live_records().is_empty());
        for (record, byte) in records.iter().zip([0, 1, 2]) {
            assert_eq!(log.read(record, 0, 1).await.unwrap()[..], [byte; 4096]);
        }
    });
}

/// Nothing would end a segment that is full for writes while they get no other.
#[test]
fn the_segment_that_is_written_to_is_moved_only_when_it_is_full() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 64, 100).await.0;
        let mut records = write(&log, 0..10).await;
        let first = log.state.current.borrow().as_ref().unwrap().id.generation;
        assert!(log.next_to_move().is_none());
        records.extend(write(&log, 10..29).await);
        assert_eq!(log.next_to_move().unwrap().id.generation, first);
        // A second segment, and one that is kept as evidence.
        records.extend(write(&log, 29..40).await);
        assert_eq!(log.next_to_move().unwrap().id.generation, first);
        assert_eq!(log.next_to_move().unwrap().id.generation, first);
        records[0].place.borrow().as_ref().unwrap().segment.retired.set(true);
        assert!(log.next_to_move().is_none());
    });
}

/// A crash of the replay itself, between the seal at the end that it chose and the segment that begins there: what lay
/// behind the end is not what follows the seal.
#[test]
fn what_a_replay_dropped_stays_dropped() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        // Seven batches go into a slot.
        let (log, _) = open(&directory, 16, 100).await;
        let records = write(&log, 0..30).await;
        let (slot, hole) = {
            let place = records[5].place.borrow();
            let place = place.as_ref().unwrap();
            (place.segment.slot, place.offset - BLOCK_BYTES as u64)
        };
        log.state.device.write(slot, hole, vec![vec![0; BLOCK_BYTES].into()]).await.unwrap();
        drop((log, records));
        let (log, replay) = open(&directory, 16, 100).await;
        assert_eq!(numbers(&replay), [0, 1, 2, 3, 4]);
        let begun = log.state.current.borrow().as_ref().unwrap().clone();
        assert!(begun.id.generation > 5);
        // As this replay left the slot before that.
        log.state.device.write(begun.slot, 0, vec![encode_wiped(5).into()]).await.unwrap();
        let (slot, generation) = (begun.slot, begun.id.generation);
        drop((log, replay, begun));
        let (log, device, replay) = refusals::open_watched(&directory, 16).await;
        assert_eq!(replay.damage, []);
        assert_eq!(numbers(&replay), [0, 1, 2, 3, 4]);
        // Nothing of it is mistaken for what that segment had, and what was wiped is so for good.
        assert_eq!(log.state.current.borrow().as_ref().unwrap().id.generation, generation);
        for wiped in (1..5).chain([slot]) {
            let asked = device.asked.borrow().iter().filter(|asked| **asked == wiped).count();
            assert!(asked >= 2, "slot {wiped} was written and synced: {:?}", device.asked.borrow());
        }
    });
}

/// A block to see what it is, its first batch, and then all of it, however many batches it has.
#[test]
fn a_slot_is_read_in_large_pieces() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 64, 100).await.0;
        let mut records = write(&log, 0..60).await;
        // Says of all before it that they are stable, so that none has to be read to be written again.
        log.sync().await.unwrap();
        records.extend(write(&log, 60..61).await);
        drop((log, records));
        let (_log, device, replay) = refusals::open_watched(&directory, 64).await;
        assert_eq!(numbers(&replay).len(), 61);
        assert!(device.reads.get() <= 12 * 3, "{} reads of 12 slots", device.reads.get());
    });
}

/// Of four slots three are kept: what all writes share is the one that is written to, again and again.
#[test]
fn a_segment_that_nobody_needs_makes_room_for_the_next() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let device = FileDevice::open(directory.path(), 4, 16 * BLOCK_BYTES as u64).unwrap();
        let log = Log::open(Rc::new(device), Rc::new(SystemChance), 1 << 20).await.unwrap().0;
        for number in 0..100 {
            drop(write_one(&log, number, false).await);
            log.sync().await.unwrap();
        }
    });
}

/// A power loss may take what was written to one slot and leave what was written to another: what was flushed must not be in a
/// slot whose next contents are there already.
#[test]
fn a_slot_is_used_again_only_when_what_superseded_it_is_stable() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let current = || log.state.current.borrow().as_ref().map(|segment| segment.slot);
        let first = write(&log, 0..7).await;
        let slot = current();
        let behind = write_one(&log, 8, false).await;
        assert_ne!(current(), slot);
        log.sync().await.unwrap();
        let newer = write_one(&log, 10, false).await;
        drop(first);
        while current() != slot {
            log.rotate().await.unwrap();
        }
        assert!(log.state.synced_lsn.get() > newer.lsn());
        drop(behind);
    });
}

/// A start begins a segment wherever it can; what is in it is for who makes room.
#[test]
fn starts_do_not_use_up_the_reserve() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory, 16, 100).await.0;
        let mut records = Vec::new();
        while log.room(1, RoomFor::Write).is_some() {
            records.push(write_one(&log, records.len() as u64, false).await);
        }
        log.sync().await.unwrap();
        drop((log, records));
        let (log, _replay) = open(&directory, 16, 100).await;
        assert_eq!(log.state.free.borrow().len(), RESERVE_WRITES - 1);
        assert!(log.room(1, RoomFor::Write).is_none());
        assert!(log.room(1, RoomFor::Move).is_some());
    });
}

/// What lies behind the end of the log in a segment that is kept as evidence is no more damage, and never counts.
#[test]
fn a_damaged_segment_ends_where_the_log_did() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        // Seven batches go into a slot.
        let (log, _) = open(&directory, 16, 100).await;
        let mut records = write(&log, 0..9).await;
        log.sync().await.unwrap();
        records.extend(write(&log, 9..11).await);
        let place = records[7].place.borrow().clone().unwrap();
        let overwrite = async |log: &Log, slot, offset, block| {
            log.state.device.write(slot, offset, vec![Bytes::from(block)]).await.unwrap();
        };
        overwrite(&log, place.segment.slot, place.offset, vec![0xff; BLOCK_BYTES]).await;
        drop((log, records, place));
        let (log, replay) = open(&directory, 16, 100).await;
        assert_eq!(replay.damage.iter().map(|(vdisk, _)| *vdisk).collect::<Vec<_>>(), [Some(VDISK)]);
        let begun = log.state.current.borrow().as_ref().unwrap().slot;
        let mut records = write(&log, 20..40).await;
        log.sync().await.unwrap();
        records.extend(write(&log, 40..41).await);
        // The first of those segments is not needed any more, its slot is another's.
        overwrite(&log, begun, 0, encode_wiped(9)).await;
        drop((log, records, replay));
        let (_, replay) = open(&directory, 16, 100).await;
        assert_eq!(replay.damage.iter().map(|(vdisk, _)| *vdisk).collect::<Vec<_>>(), [Some(VDISK)]);
    });
}

/// Whose records were in a batch without a header nobody knows, whatever is wrong with the one before it.
#[test]
fn damages_side_by_side_are_told_each() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let device = FileDevice::open(directory.path(), 4, 16 * BLOCK_BYTES as u64).unwrap();
        let log = Log::open(Rc::new(device), Rc::new(SystemChance), 1 << 20).await.unwrap().0;
        let mut records = write(&log, 0..6).await;
        log.sync().await.unwrap();
        records.extend(write(&log, 6..7).await);
        let header = BLOCK_BYTES as u64;
        for (number, before) in [(1, 0), (2, header)] {
            let place = records[number].place.borrow().clone().unwrap();
            let damage = vec![Bytes::from(vec![0xff; BLOCK_BYTES])];
            log.state.device.write(place.segment.slot, place.offset - before, damage).await.unwrap();
        }
        drop((log, records));
        let device = FileDevice::open(directory.path(), 4, 16 * BLOCK_BYTES as u64).unwrap();
        let (log, replay) = Log::open(Rc::new(device), Rc::new(SystemChance), 1 << 20).await.unwrap();
        assert_eq!(replay.damage.iter().map(|(vdisk, _)| *vdisk).collect::<Vec<_>>(), [Some(VDISK), None]);
        assert_eq!(numbers(&replay), [0, 3, 4, 5, 6]);
        // The slot that is kept as evidence leaves too few for a reserve: what is begun is for all.
        drop(replay);
        assert!(log.room(1, RoomFor::Write).is_some());
    });
}

fn numbers(replay: &Replay) -> Vec<u64> {
    replay.records[&VDISK].iter().map(|record| record.header.cluster.0).collect()
}
