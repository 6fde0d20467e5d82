//! A backend that is away, or takes a vDisk's objects and not its journal: data is in the write buffer until the journal
//! says where else it is, however long that takes and whoever wants the room; and the guest writes on.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

use futures_util::future::LocalBoxFuture;
use ovs_backend::{Call, Fault, FaultyBackend, MemoryBackend, Operation};
use ovs_tests::MemoryDevice;
use ovs_tests::host::{Host, byte_of, create, put, run_paused};
use ovs_units::{ByteCount, ByteOffset, ByteRange, SnapshotId, VdiskId};
use ovs_volume::{
    CreateVdisk, Engine, EngineConfig, Entry, MemoryRegistry, OnFull, Registry, Revision, Transaction, Vdisk,
    VdiskState, VolumeError,
};
use std::{cell::Cell, rc::Rc, time::Duration};
use uuid::Uuid;

const FIRST: VdiskId = VdiskId(Uuid::from_u128(10));
const SECOND: VdiskId = VdiskId(Uuid::from_u128(11));
const SNAPSHOT: SnapshotId = SnapshotId(Uuid::from_u128(20));
const SIZE: ByteCount = ByteCount(8 << 20);

type NewFault = fn() -> Fault;

/// A host, and what puts of objects meet that have `object` in their names.
fn new_host(object: String) -> (Host, Rc<Cell<Option<NewFault>>>) {
    let fault = Rc::new(Cell::new(None::<NewFault>));
    let told = Rc::clone(&fault);
    let schedule = move |call: &Call<'_>| {
        let is_meant = call.operation == Operation::Put && call.object.contains(&object);
        told.get().filter(|_| is_meant).map(|fault| fault())
    };
    (Host::new(12, Rc::new(FaultyBackend::new(MemoryBackend::new(), schedule))), fault)
}

async fn open(engine: &Engine) -> Vdisk {
    engine.open_vdisk(Host::POOL, FIRST, Host::ON_FULL).await.unwrap()
}

async fn expect(vdisk: &Vdisk, number: u64, byte: u8) {
    assert_eq!(byte_of(vdisk, number).await, byte, "cluster {number}");
}

#[test]
fn the_write_buffer_keeps_what_the_journal_does_not_have() {
    run_paused(async {
        let (host, fault) = new_host(format!("{}/j/", FIRST.0.simple()));
        let engine = host.start().await;
        let (first, second) = (create(&engine, FIRST, SIZE).await, create(&engine, SECOND, SIZE).await);
        put(&second, 0, 1).await;
        for number in 0..40 {
            put(&first, number, 7).await;
        }
        first.flush().await.unwrap();
        fault.set(Some(|| Fault::ErrorBefore));
        let destaging = first.clone();
        tokio::task::spawn_local(async move { destaging.destage().await });
        // Each attempt is given up after a while; and the other one goes round the whole write buffer, several times.
        for round in 0..40 {
            for number in 0..32 {
                put(&second, number, round).await;
            }
            second.flush().await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        // Everything in memory goes.
        drop((first, second, engine));
        fault.set(None);
        let first = open(&host.start().await).await;
        for number in 0..40u64 {
            expect(&first, number, 7).await;
        }
    });
}

/// Writes go on for as long as the buffer has room: the journal's epoch is given up again and again beside them.
#[test]
fn a_vdisk_writes_on_while_the_backend_is_away() {
    run_paused(async {
        let (host, fault) = new_host(String::new());
        let engine = host.start().await;
        let vdisk = create(&engine, FIRST, SIZE).await;
        put(&vdisk, 0, 1).await;
        vdisk.destage().await.unwrap();
        let epoch = vdisk.stats().epoch;
        fault.set(Some(|| Fault::ErrorBefore));
        for minute in 1..20 {
            let sent = tokio::time::Instant::now();
            put(&vdisk, minute, 1).await;
            vdisk.write(ByteOffset(minute * 4096 + 7), vec![9; 5].into(), true).await.unwrap();
            assert!(sent.elapsed() < Duration::from_secs(1), "a write took {:?}", sent.elapsed());
            assert!(vdisk.snapshot(SNAPSHOT, "s".parse().unwrap()).await.is_err());
            tokio::time::sleep(Duration::from_secs(40)).await;
        }
        assert!(vdisk.stats().epoch.0 > epoch.0 + 10, "{}", vdisk.stats().epoch);
        assert!(matches!(vdisk.stats().state, VdiskState::Stalled(_)), "{:?}", vdisk.stats().state);
        // The process dies, and so does the one after it when the backend is back and one record was sent.
        drop((vdisk, engine));
        fault.set(None);
        for _ in 0..2 {
            let engine = host.start().await;
            let vdisk = open(&engine).await;
            for minute in 1..20u64 {
                let range = ByteRange::new(ByteOffset(minute * 4096), ByteCount(12)).unwrap();
                assert_eq!(vdisk.read(range).await.unwrap()[..], [1, 1, 1, 1, 1, 1, 1, 9, 9, 9, 9, 9]);
            }
            put(&vdisk, 100, 3).await;
            vdisk.destage().await.unwrap();
            assert_eq!(vdisk.snapshots().len(), 0, "none of them was made");
        }
    });
}

/// Nothing of an SCO can be put: that is told, and all goes on when it can.
#[test]
fn a_vdisk_whose_data_cannot_leave_says_so() {
    run_paused(async {
        let (host, fault) = new_host("/s/".into());
        let engine = host.start().await;
        let vdisk = create(&engine, FIRST, SIZE).await;
        fault.set(Some(|| Fault::ErrorBefore));
        put(&vdisk, 0, 1).await;
        let destaging = vdisk.clone();
        let destaging = tokio::task::spawn_local(async move { destaging.destage().await });
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(matches!(vdisk.stats().state, VdiskState::Stalled(_)), "{:?}", vdisk.stats().state);
        // What waits to leave, and what came since.
        put(&vdisk, 1, 1).await;
        put(&vdisk, 2, 1).await;
        assert_eq!(vdisk.stats().buffered, ByteCount(3 * 4096));
        fault.set(None);
        destaging.await.unwrap().unwrap();
        assert_eq!(vdisk.stats().state, VdiskState::Ok);
    });
}

/// A copy of the map that cannot be put is tried again when the journal has grown by as much once more.
#[test]
fn a_map_copy_that_failed_is_made_later() {
    run_paused(async {
        let (host, fault) = new_host("/c/".into());
        // Of five objects of the journal.
        let config =
            EngineConfig { copy_map_after: 5 * (64 << 10), checkpoint_every: 1, ..host.config.clone() };
        let host = Host { config, ..host };
        let vdisk = create(&host.start().await, FIRST, SIZE).await;
        fault.set(Some(|| Fault::ErrorBefore));
        let prefix = format!("v/{}/c/", FIRST.0.simple());
        for number in 0..30 {
            put(&vdisk, number, 1).await;
            vdisk.destage().await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            if number == 12 {
                assert!(host.backend.list(&prefix, None, 1).await.unwrap().is_empty());
                fault.set(None);
            }
        }
        assert!(!host.backend.list(&prefix, None, 1).await.unwrap().is_empty());
    });
}

/// How much of the journal is without a copy is found out anew by each start.
#[test]
fn a_map_copy_is_due_by_what_earlier_processes_put_in_the_journal() {
    run_paused(async {
        let (host, _) = new_host(String::new());
        let vdisk = create(&host.start().await, FIRST, SIZE).await;
        let destage = async |vdisk: &Vdisk, number| {
            put(vdisk, number, 1).await;
            vdisk.destage().await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        for number in 0..12 {
            destage(&vdisk, number).await;
        }
        drop(vdisk);
        let prefix = format!("v/{}/c/", FIRST.0.simple());
        let has_copy = async || !host.backend.list(&prefix, None, 1).await.unwrap().is_empty();
        for (objects, is_due) in [(40, false), (10, true)] {
            let copy_map_after = objects * (64 << 10);
            let config = EngineConfig { copy_map_after, checkpoint_every: 1, ..host.config.clone() };
            let vdisk = open(&Host { config, ..host.clone() }.start().await).await;
            destage(&vdisk, 20).await;
            assert_eq!(has_copy().await, is_due, "due after {objects} objects");
        }
    });
}

/// Who would rather have an error than wait has one only when nothing moves. Of many, each has something in every slot and
/// takes its time.
#[test]
fn a_full_buffer_that_drains_is_no_reason_to_refuse() {
    for vdisk_count in [1, 8] {
        check_full_buffer(vdisk_count);
    }
}

fn check_full_buffer(vdisk_count: usize) {
    run_paused(async {
        let (mut host, fault) = new_host(String::new());
        host.config.destage_concurrency = 1;
        let engine = host.start().await;
        let mut vdisks = Vec::new();
        for id in (0..vdisk_count as u128).map(|number| VdiskId(Uuid::from_u128(30 + number))) {
            let (vpool, size, properties) = (Host::POOL, ByteCount(64 << 20), "{}".into());
            let on_full = OnFull::NoSpace;
            let request = CreateVdisk { id, vpool, size, properties, base: None, on_full };
            vdisks.push(engine.create_vdisk(request).await.unwrap());
        }
        fault.set(Some(|| Fault::Delay(Box::pin(tokio::time::sleep(Duration::from_millis(900))))));
        let vdisk_of = |number: u64| &vdisks[number as usize % vdisk_count];
        for number in 0..2000 {
            put(vdisk_of(number), number, 1).await;
        }
        fault.set(Some(|| Fault::ErrorBefore));
        let mut refused = None;
        for number in 2000..4000 {
            let write = vdisk_of(number).write(ByteOffset(number * 4096), vec![1; 4096].into(), false).await;
            refused = write.err();
            if refused.is_some() {
                break;
            }
        }
        assert!(matches!(refused, Some(VolumeError::NoSpace(_))), "{refused:?}");
    });
}

/// Whatever the lengths of the writes.
#[test]
fn an_sco_is_no_larger_than_configured() {
    run_paused(async {
        let (host, _) = new_host(String::new());
        let config = EngineConfig { sco_bytes: 3 * 4096, ..host.config.clone() };
        let host = Host { config, ..host };
        let vdisk = create(&host.start().await, FIRST, SIZE).await;
        for number in 0..5 {
            vdisk.write(ByteOffset(number * 65536), vec![1; 10 * 4096].into(), false).await.unwrap();
        }
        vdisk.destage().await.unwrap();
        let scos = host.backend.list(&format!("v/{}/s/", FIRST.0.simple()), None, 1000).await.unwrap();
        assert_eq!(scos.len(), 17, "fifty clusters, three by three, behind a block each");
        assert!(scos.iter().all(|sco| sco.length_bytes <= 4 * 4096), "{scos:?}");
        for number in 0..5 * 16 {
            expect(&vdisk, number, u8::from(number % 16 < 10)).await;
        }
    });
}

/// The same process, when the backend comes back, and then another one.
#[test]
fn what_was_written_meanwhile_is_of_both_epochs() {
    run_paused(async {
        let (host, fault) = new_host("/j/".into());
        let engine = host.start().await;
        let vdisk = create(&engine, FIRST, SIZE).await;
        put(&vdisk, 0, 1).await;
        fault.set(Some(|| Fault::ErrorBefore));
        let destaging = vdisk.clone();
        let destaging = tokio::task::spawn_local(async move { destaging.destage().await });
        let epoch = vdisk.stats().epoch;
        while vdisk.stats().epoch == epoch {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        put(&vdisk, 1, 2).await;
        fault.set(None);
        vdisk.set_properties("{}1".into()).await.unwrap();
        put(&vdisk, 2, 3).await;
        destaging.abort();
        drop((vdisk, engine));
        let engine = host.start().await;
        let vdisk = open(&engine).await;
        for number in 0..3u8 {
            expect(&vdisk, number.into(), number + 1).await;
        }
        vdisk.destage().await.unwrap();
        drop((vdisk, engine));
        // Nothing but the backend is left.
        let host = Host { registry: Rc::new(MemoryRegistry::default()), pages: Rc::default(), ..host };
        let host =
            Host { buffer: Rc::new(MemoryDevice::new(12, 256 << 10, Rc::clone(&host.random))), ..host };
        let engine = host.start().await;
        engine.adopt_vdisk(Host::POOL, FIRST).await.unwrap();
        let vdisk = open(&engine).await;
        for number in 0..3u8 {
            expect(&vdisk, number.into(), number + 1).await;
        }
    });
}

/// A rollback that the backend took without saying so was told to have failed: it does not happen behind the back of what
/// was written after it, whatever is lost next. Who has only the backend could not know that, so nothing is accepted
/// behind it until the backend knows.
#[test]
fn a_rollback_that_failed_does_not_happen_later() {
    run_paused(async {
        let (host, fault) = new_host("/j/".into());
        let engine = host.start().await;
        let vdisk = create(&engine, FIRST, SIZE).await;
        put(&vdisk, 0, 1).await;
        vdisk.snapshot(SNAPSHOT, "before".parse().unwrap()).await.unwrap();
        put(&vdisk, 0, 2).await;
        vdisk.destage().await.unwrap();
        fault.set(Some(|| Fault::ErrorAfter));
        vdisk.rollback(SNAPSHOT).await.unwrap_err();
        expect(&vdisk, 0, 2).await;
        let refused = vdisk.write(ByteOffset(4096), vec![9; 4096].into(), false).await;
        assert!(matches!(refused, Err(VolumeError::Retry(_))), "{refused:?}");
        fault.set(None);
        put(&vdisk, 1, 3).await;
        drop((vdisk, engine));
        let registry = Rc::new(MemoryRegistry::default());
        let without_registry = Host { registry, pages: Rc::default(), ..host.clone() };
        for host in [host, without_registry] {
            let engine = host.start().await;
            if !engine.discover(Host::POOL).await.unwrap().is_empty() {
                engine.adopt_vdisk(Host::POOL, FIRST).await.unwrap();
            }
            let vdisk = open(&engine).await;
            expect(&vdisk, 0, 2).await;
            expect(&vdisk, 1, 3).await;
        }
    });
}

/// The answer to a commit is lost, and so is the answer to whether it was done.
#[derive(Default)]
struct LosingAnswers {
    registry: MemoryRegistry,
    commits: Cell<u32>,
    gets: Cell<u32>,
}

fn is_lost(left: &Cell<u32>) -> bool {
    left.replace(left.get().saturating_sub(1)) > 0
}

fn lost<T>() -> Result<T, VolumeError> {
    Err(VolumeError::Retry("the answer is lost".into()))
}

impl Registry for LosingAnswers {
    fn get(&self, key: &str) -> LocalBoxFuture<'_, Result<Option<Entry>, VolumeError>> {
        if is_lost(&self.gets) { Box::pin(async { lost() }) } else { self.registry.get(key) }
    }

    fn scan(&self, prefix: &str) -> LocalBoxFuture<'_, Result<Vec<Entry>, VolumeError>> {
        self.registry.scan(prefix)
    }

    fn commit(&self, transaction: Transaction) -> LocalBoxFuture<'_, Result<Option<Revision>, VolumeError>> {
        Box::pin(async move {
            let committed = self.registry.commit(transaction).await;
            if is_lost(&self.commits) { lost() } else { committed }
        })
    }
}

#[test]
fn who_does_not_hear_that_it_has_committed_does_not_take_itself_for_another() {
    run_paused(async {
        let registry = Rc::new(LosingAnswers::default());
        let host = Host { registry: registry.clone(), ..new_host(String::new()).0 };
        let vdisk = create(&host.start().await, FIRST, SIZE).await;
        put(&vdisk, 0, 1).await;
        registry.commits.set(2);
        registry.gets.set(3);
        vdisk.set_properties("{}1".into()).await.unwrap();
        assert_eq!((registry.commits.get(), registry.gets.get()), (0, 0));
        put(&vdisk, 1, 2).await;
        vdisk.destage().await.unwrap();
    });
}

/// No commit is done while this says so.
#[derive(Default)]
struct RefusingCommits {
    registry: MemoryRegistry,
    refuses: Cell<bool>,
}

impl Registry for RefusingCommits {
    fn get(&self, key: &str) -> LocalBoxFuture<'_, Result<Option<Entry>, VolumeError>> {
        self.registry.get(key)
    }

    fn scan(&self, prefix: &str) -> LocalBoxFuture<'_, Result<Vec<Entry>, VolumeError>> {
        self.registry.scan(prefix)
    }

    fn commit(&self, transaction: Transaction) -> LocalBoxFuture<'_, Result<Option<Revision>, VolumeError>> {
        if self.refuses.get() { Box::pin(async { lost() }) } else { self.registry.commit(transaction) }
    }
}

/// The process ends between the two: for a recovery from the backend the snapshot is there, so it is for the next start.
#[test]
fn what_the_journal_has_and_the_registry_has_not_is_taken_in() {
    run_paused(async {
        let registry = Rc::new(RefusingCommits::default());
        let host = Host { registry: registry.clone(), ..new_host(String::new()).0 };
        let engine = host.start().await;
        let vdisk = create(&engine, FIRST, SIZE).await;
        put(&vdisk, 0, 1).await;
        vdisk.destage().await.unwrap();
        registry.refuses.set(true);
        let journal = format!("v/{}/j/", FIRST.0.simple());
        let count = async || host.backend.list(&journal, None, 1000).await.unwrap().len();
        let before = count().await;
        let taking = vdisk.clone();
        let taking =
            tokio::task::spawn_local(async move { taking.snapshot(SNAPSHOT, "s".parse().unwrap()).await });
        while count().await == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        taking.abort();
        drop((vdisk, engine));
        registry.refuses.set(false);
        for number in 1..3 {
            let vdisk = open(&host.start().await).await;
            assert_eq!(vdisk.snapshots().iter().map(|info| info.id).collect::<Vec<_>>(), [SNAPSHOT]);
            put(&vdisk, number, 2).await;
            vdisk.destage().await.unwrap();
        }
    });
}

#[test]
fn a_read_that_the_backend_never_answers_ends_in_an_error() {
    run_paused(async {
        let is_away = Rc::new(Cell::new(false));
        let told = Rc::clone(&is_away);
        let schedule = move |call: &Call<'_>| {
            (told.get() && call.operation == Operation::Get).then_some(Fault::ErrorBefore)
        };
        let host = Host::new(12, Rc::new(FaultyBackend::new(MemoryBackend::new(), schedule)));
        let vdisk = create(&host.start().await, FIRST, SIZE).await;
        put(&vdisk, 0, 1).await;
        vdisk.destage().await.unwrap();
        is_away.set(true);
        let range = ByteRange::new(ByteOffset(0), ByteCount(4096)).unwrap();
        let reading = tokio::time::timeout(Duration::from_secs(600), vdisk.read(range)).await;
        assert!(matches!(reading, Ok(Err(VolumeError::Retry(_)))), "{reading:?}");
        is_away.set(false);
        expect(&vdisk, 0, 1).await;
    });
}
