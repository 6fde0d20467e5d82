//! What the log does when its device refuses.

use super::*;

/// A device that can be told to refuse, and that remembers what it was asked.
pub(super) struct Refusing {
    inner: FileDevice,
    /// The next sync of this slot fails.
    pub(super) refused: Cell<Option<usize>>,
    /// So does every slot's second one.
    refuses_second_syncs: Cell<bool>,
    /// So many writes fail.
    writes_refused: Cell<usize>,
    /// While this is locked syncs do not return.
    gate: tokio::sync::Mutex<()>,
    /// Slots that were written to or synced.
    pub(super) asked: RefCell<Vec<usize>>,
    synced: RefCell<Vec<usize>>,
    pub(super) reads: Cell<usize>,
    /// A byte of this read, as they are counted from 1, is another.
    lies_at: Cell<usize>,
}

impl LogDevice for Refusing {
    fn slot_count(&self) -> usize {
        self.inner.slot_count()
    }

    fn slot_bytes(&self) -> u64 {
        self.inner.slot_bytes()
    }

    fn write(&self, slot: usize, offset: u64, parts: Vec<Bytes>) -> LocalBoxFuture<'_, io::Result<()>> {
        self.asked.borrow_mut().push(slot);
        if let Some(left) = self.writes_refused.get().checked_sub(1) {
            self.writes_refused.set(left);
            return Box::pin(async { Err(io::Error::other("refused")) });
        }
        self.inner.write(slot, offset, parts)
    }

    fn sync(&self, slot: usize) -> LocalBoxFuture<'_, io::Result<()>> {
        self.asked.borrow_mut().push(slot);
        let is_second = self.synced.borrow().contains(&slot);
        self.synced.borrow_mut().push(slot);
        if self.refused.get() == Some(slot) || (is_second && self.refuses_second_syncs.get()) {
            self.refused.take();
            return Box::pin(async { Err(io::Error::other("refused")) });
        }
        Box::pin(async move {
            drop(self.gate.lock().await);
            self.inner.sync(slot).await
        })
    }

    fn read(&self, slot: usize, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Bytes>> {
        self.reads.set(self.reads.get() + 1);
        let lies = self.reads.get() == self.lies_at.get();
        Box::pin(async move {
            let bytes = self.inner.read(slot, offset, length).await?;
            if !lies {
                return Ok(bytes);
            }
            let mut bytes = bytes.to_vec();
            bytes[length / 3] ^= 1;
            Ok(bytes.into())
        })
    }
}

pub(super) async fn open_watched(
    directory: &tempfile::TempDir,
    slot_blocks: u64,
) -> (Log, Rc<Refusing>, Replay) {
    let (opened, device) = try_to_open(directory, slot_blocks, 0).await;
    let (log, replay) = opened.unwrap();
    (log, device, replay)
}

async fn try_to_open(
    directory: &tempfile::TempDir,
    slot_blocks: u64,
    lies_at: usize,
) -> (Result<(Log, Replay), VolumeError>, Rc<Refusing>) {
    let inner = FileDevice::open(directory.path(), 12, slot_blocks * BLOCK_BYTES as u64).unwrap();
    let device = Rc::new(Refusing {
        inner,
        refused: Cell::new(None),
        refuses_second_syncs: Cell::new(false),
        writes_refused: Cell::new(0),
        reads: Cell::new(0),
        lies_at: Cell::new(lies_at),
        gate: tokio::sync::Mutex::new(()),
        asked: RefCell::default(),
        synced: RefCell::default(),
    });
    (Log::open(device.clone(), Rc::new(SystemChance), 0).await, device)
}

/// Then it is under way when the guest asks for it. Nobody else pays for a sync that he did not ask for.
#[test]
fn who_flushes_each_write_finds_the_sync_under_way() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (log, _, _) = open_watched(&directory, 256).await;
        let syncs = async || {
            settled(&log).await;
            log.state.syncs.get()
        };
        let mut number = 0;
        let mut write = async || {
            number += 1;
            write_one(&log, number, false).await
        };
        let mut kept = Vec::new();
        for pair in 0..4 {
            let before = syncs().await;
            kept.push(write().await);
            assert_eq!(syncs().await, before, "pair {pair}");
            log.sync().await.unwrap();
        }
        let before = syncs().await;
        kept.push(write().await);
        assert_eq!(syncs().await, before + 1);
        log.sync().await.unwrap();
        assert_eq!(syncs().await, before + 1, "what the flush asked for was there");
        // Two without a flush between: the second has none of its own, and then the habit is none any more.
        kept.push(write().await);
        kept.push(write().await);
        assert_eq!(syncs().await, before + 2);
        log.sync().await.unwrap();
        let before = syncs().await;
        kept.push(write().await);
        assert_eq!(syncs().await, before);
    });
}

/// Whatever the log has begun has ended.
async fn settled(log: &Log) {
    yield_often().await;
    drop(log.state.sync_turn.lock().await);
    yield_often().await;
}

/// A read that brings other bytes once does no harm to what is there: what is written again is what was verified.
#[test]
fn what_is_written_again_is_what_was_read_well() {
    run(async {
        const BATCHES: u64 = 3;
        for lies_at in 1.. {
            let directory = tempfile::tempdir().unwrap();
            let (log, device, _) = open_watched(&directory, 3200).await;
            for number in 0..BATCHES {
                // Two of them are larger than what is read at once.
                let room = log.room(1024, RoomFor::Write).unwrap();
                let data = Some(Bytes::from(vec![number as u8; 1024 * CLUSTER_SIZE_BYTES as usize]));
                let (epoch, sequence, cluster) = (Epoch(1), Sequence(number + 1), Cluster(1024 * number));
                let record =
                    log.append(room, Append { vdisk: VDISK, epoch, sequence, cluster, count: 1024, data });
                assert!(record.written().await);
            }
            drop(log);
            until(|| Rc::strong_count(&device) == 1).await;
            drop(device);
            let (opened, device) = try_to_open(&directory, 3200, lies_at).await;
            let is_over = device.reads.get() < lies_at;
            let count = |replay: &Replay| replay.records.get(&VDISK).map_or(0, Vec::len) as u64;
            // Refused, or with what is there; what it took for the end of the log is the end from then on.
            let shown = opened.as_ref().map_or(BATCHES, |(_, replay)| count(replay));
            drop(opened);
            until(|| Rc::strong_count(&device) == 1).await;
            drop(device);
            let (_, _, replay) = open_watched(&directory, 3200).await;
            assert_eq!((count(&replay), replay.damage.len()), (shown, 0), "read {lies_at}");
            if is_over {
                assert!(lies_at > 16, "{lies_at}");
                break;
            }
        }
    });
}

/// Whatever else is ready has run.
async fn yield_often() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// A write that nobody waits for yet.
fn writing(log: &Log, number: u64) -> tokio::task::JoinHandle<Rc<Record>> {
    let log = log.clone();
    tokio::task::spawn_local(async move { write_one(&log, number, false).await })
}

fn syncing(log: &Log) -> tokio::task::JoinHandle<Result<(), VolumeError>> {
    let log = log.clone();
    tokio::task::spawn_local(async move { log.sync().await })
}

fn is_stable(log: &Log, record: &Rc<Record>) -> bool {
    record.is_stable(log.state.synced_lsn.get())
}

/// It is kept in memory, and would have to be written again.
#[test]
fn writes_wait_while_too_much_is_not_stable() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (log, device, _) = open_watched(&directory, 64).await;
        let first = write_one(&log, 0, false).await;
        log.state.unsynced_bytes.set(2 * UNSYNCED_BYTES_MAX + 1);
        let gate = device.gate.lock().await;
        let second = writing(&log, 1);
        // The writer asks for the sync that it waits for.
        until(|| device.synced.borrow().last() == Some(&first.place.borrow().as_ref().unwrap().segment.slot))
            .await;
        yield_often().await;
        assert!(!second.is_finished());
        drop(gate);
        second.await.unwrap();
        assert!(is_stable(&log, &first));
        // So much is not too much.
        let _gate = device.gate.lock().await;
        log.state.unsynced_bytes.set(2 * UNSYNCED_BYTES_MAX);
        write_one(&log, 2, false).await;
    });
}

#[test]
fn much_that_is_not_stable_is_synced_unasked() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (log, device, _) = open_watched(&directory, 64).await;
        let first = write_one(&log, 0, false).await;
        log.state.unsynced_bytes.set(UNSYNCED_BYTES_MAX - CLUSTER_SIZE_BYTES);
        let syncs = device.synced.borrow().len();
        write_one(&log, 1, false).await;
        yield_often().await;
        assert_eq!(device.synced.borrow().len(), syncs);
        let last = write_one(&log, 2, false).await;
        until(|| is_stable(&log, &last)).await;
        assert!(is_stable(&log, &first));
        assert_eq!(log.state.unsynced_bytes.get(), 0);
    });
}

/// Another slot becomes free by what is sent to the backend; but where slots have failed that may never be.
#[test]
fn without_a_slot_the_log_waits_or_gives_up() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (log, _, _) = open_watched(&directory, 16).await;
        let _records = write(&log, 0..3).await;
        log.sync().await.unwrap();
        let turn = log.state.write_turn.lock().await;
        let free = log.state.free.take();
        let rotating = tokio::task::spawn_local({
            let log = log.clone();
            async move { log.rotate().await }
        });
        until(|| log.state.current.borrow().is_none()).await;
        tokio::time::timeout(Duration::from_secs(5), log.state.pressure.notified()).await.unwrap();
        yield_often().await;
        assert!(!rotating.is_finished());
        *log.state.free.borrow_mut() = free;
        log.state.space.notify_waiters();
        rotating.await.unwrap().unwrap();
        drop(turn);

        let _record = write_one(&log, 3, false).await;
        let turn = log.state.write_turn.lock().await;
        log.state.free.take();
        log.state.retirements.set(2);
        assert_eq!(log.rotate().await.unwrap_err().to_string(), "too many slots have failed");
        log.go_offline("a test".into());
        assert_eq!(log.rotate().await.unwrap_err().to_string(), "the write buffer is offline");
        drop(turn);
    });
}

#[test]
fn after_syncs_that_fail_one_after_the_other_the_log_is_offline() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (log, device, _) = open_watched(&directory, 16).await;
        let record = write_one(&log, 0, false).await;
        device.synced.borrow_mut().clear();
        device.refuses_second_syncs.set(true);
        let slot = record.place.borrow().as_ref().unwrap().segment.slot;
        device.synced.borrow_mut().push(slot);
        let error = log.sync().await.unwrap_err();
        assert!(error.to_string().contains("several segments could not be synced"), "{error}");
        assert_eq!(log.stats().failed_slots, crate::log::writer::FAILURES_MAX as u64);
        // Nothing is asked again.
        let asked = device.synced.borrow().len();
        log.sync().await.unwrap_err();
        assert_eq!(device.synced.borrow().len(), asked);
        assert!(!is_stable(&log, &record));
    });
}

/// Two slots may be bad, not three one after the other.
#[test]
fn after_writes_that_fail_one_after_the_other_the_log_is_offline() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (log, device, _) = open_watched(&directory, 16).await;
        device.writes_refused.set(2);
        write_one(&log, 0, false).await;
        log.sync().await.unwrap();
        device.writes_refused.set(3);
        let (epoch, sequence, cluster) = (Epoch(1), Sequence(2), Cluster(1));
        let room = log.room(0, RoomFor::Write).unwrap();
        let record =
            log.append(room, Append { vdisk: VDISK, epoch, sequence, cluster, count: 1, data: None });
        assert!(!record.written().await);
        assert!(log.check_online().is_err());
        assert_eq!(log.stats().failed_slots, 2 + 3);
    });
}

/// A write fails while a sync is under way: what is being written again is not among what that sync made stable.
#[test]
fn a_sync_says_nothing_of_what_is_written_again_meanwhile() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (log, device, _) = open_watched(&directory, 64).await;
        let first = write_one(&log, 0, false).await;
        let gate = device.gate.lock().await;
        let syncs = device.synced.borrow().len();
        let flush = syncing(&log);
        until(|| device.synced.borrow().len() > syncs).await;
        device.writes_refused.set(1);
        let second = writing(&log, 1);
        until(|| log.state.retirements.get() == 1).await;
        drop(gate);
        flush.await.unwrap().unwrap();
        let second = second.await.unwrap();
        let place = first.place.borrow().clone().unwrap();
        assert!(!place.segment.retired.get() && is_stable(&log, &first));
        log.sync().await.unwrap();
        assert!(is_stable(&log, &second));
        assert_eq!(log.stats().failed_slots, 1);
    });
}

/// It is synced once more, and only then.
#[test]
fn a_sync_says_nothing_of_what_is_written_meanwhile() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (log, device, _) = open_watched(&directory, 64).await;
        write_one(&log, 0, false).await;
        let gate = device.gate.lock().await;
        let syncs = device.synced.borrow().len();
        let flush = syncing(&log);
        until(|| device.synced.borrow().len() > syncs).await;
        let second = write_one(&log, 1, false).await;
        drop(gate);
        flush.await.unwrap().unwrap();
        assert!(!is_stable(&log, &second));
        let before = log.stats().syncs;
        for _ in 0..2 {
            log.sync().await.unwrap();
            assert!(is_stable(&log, &second));
            assert_eq!((device.synced.borrow().len(), log.stats().syncs), (syncs + 2, before + 1));
        }
    });
}

/// The loop that syncs comes first to a segment that has just begun, and is refused: the writer does not ask again.
#[test]
fn a_segment_whose_sync_failed_is_not_begun() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (log, device, _) = open_watched(&directory, 16).await;
        // Seven batches go into a slot.
        write(&log, 0..7).await;
        let next = log.state.free.borrow()[0].slot;
        device.refused.set(Some(next));
        let turn = log.state.sync_turn.lock().await;
        let syncing = syncing(&log);
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        let writing = writing(&log, 7);
        until(|| device.asked.borrow().contains(&next)).await;
        drop(turn);
        let record = writing.await.unwrap();
        syncing.await.unwrap().unwrap();
        let asked = device.asked.borrow();
        assert_eq!(
            asked.iter().filter(|slot| **slot == next).count(),
            2,
            "its header and one sync: {asked:?}"
        );
        assert_ne!(record.place.borrow().as_ref().unwrap().segment.slot, next);
    });
}

/// A move waits for its turn while a sync fails: what has been written again by then is not written once more, and needs
/// its payload in memory no longer.
#[test]
fn what_was_written_again_is_not_moved_as_well() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (log, device, _) = open_watched(&directory, 32).await;
        // Fifteen batches go into a slot; of ten that are not stable it is worth while.
        drop(write(&log, 0..5).await);
        log.sync().await.unwrap();
        let records = write(&log, 5..16).await;
        let first = records[0].place.borrow().as_ref().unwrap().segment.slot;
        device.refused.set(Some(first));
        let turn = log.state.write_turn.lock().await;
        let syncing = syncing(&log);
        until(|| device.refused.get().is_none()).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        log.move_one(|_| false).await;
        assert_eq!(log.state.pending.borrow().len(), 10);
        drop(turn);
        syncing.await.unwrap().unwrap();
        write(&log, 16..17).await;
        log.sync().await.unwrap();
        assert_eq!(log.stats().failed_slots, 1);
        assert_eq!(log.state.promised_blocks.get(), 0);
        for record in &records {
            let number = record.header.cluster.0;
            assert_eq!(log.read(record, 0, 1).await.unwrap()[..], [number as u8; 4096], "cluster {number}");
        }
    });
}
