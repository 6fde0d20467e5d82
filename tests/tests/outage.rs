//! A backend that is away, or takes a vDisk's objects and not its journal: data is in the write buffer until the journal
//! says where else it is, however long that takes and whoever wants the room; and the guest writes on.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

use futures_util::future::LocalBoxFuture;
use ovs_backend::{Backend, Call, Fault, FaultyBackend, MemoryBackend, Operation};
use ovs_tests::{MemoryDevice, Random};
use ovs_units::{ByteCount, ByteOffset, ByteRange, SnapshotId, VdiskId, VpoolId};
use ovs_volume::{
    CreateVdisk, Engine, EngineConfig, EngineParts, Entry, MemoryPages, MemoryRegistry, OnFull, Registry,
    Revision, SystemClock, Transaction, Vdisk, VolumeError,
};
use std::{cell::Cell, rc::Rc, time::Duration};
use uuid::Uuid;

const POOL: VpoolId = VpoolId(Uuid::from_u128(1));
const FIRST: VdiskId = VdiskId(Uuid::from_u128(10));
const SECOND: VdiskId = VdiskId(Uuid::from_u128(11));
const SNAPSHOT: SnapshotId = SnapshotId(Uuid::from_u128(20));
const ON_FULL: OnFull = OnFull::Stall { timeout: None };

async fn create(engine: &Engine, id: VdiskId) -> Vdisk {
    let size = ByteCount(8 << 20);
    let request =
        CreateVdisk { id, vpool: POOL, size, properties: "{}".into(), base: None, on_full: ON_FULL };
    engine.create_vdisk(request).await.unwrap()
}

async fn put(vdisk: &Vdisk, number: u64, byte: u8) {
    vdisk.write(ByteOffset(number * 4096), vec![byte; 4096].into(), false).await.unwrap();
}

type NewFault = fn() -> Fault;

/// A host whose backend can be told what to do with some objects.
#[derive(Clone)]
struct Host {
    buffer: Rc<MemoryDevice>,
    random: Rc<Random>,
    backend: Rc<dyn Backend>,
    registry: Rc<dyn Registry>,
    pages: Rc<MemoryPages>,
    fault: Rc<Cell<Option<NewFault>>>,
}

impl Host {
    /// `object`: part of the name of the objects that the fault is for.
    fn new(object: String) -> Host {
        let random = Rc::new(Random::new(7));
        let fault = Rc::new(Cell::new(None::<NewFault>));
        let told = Rc::clone(&fault);
        let schedule = move |call: &Call<'_>| {
            let is_meant = call.operation == Operation::Put && call.object.contains(&object);
            told.get().filter(|_| is_meant).map(|fault| fault())
        };
        Host {
            buffer: Rc::new(MemoryDevice::new(12, 256 << 10, Rc::clone(&random))),
            random,
            backend: Rc::new(FaultyBackend::new(MemoryBackend::new(), schedule)),
            registry: Rc::new(MemoryRegistry::default()),
            pages: Rc::default(),
            fault,
        }
    }

    async fn start(&self) -> Engine {
        let parts = EngineParts {
            clock: Rc::new(SystemClock::new()),
            chance: self.random.clone(),
            registry: self.registry.clone(),
            pages: self.pages.clone(),
            buffer: self.buffer.clone(),
        };
        let engine = Engine::open(EngineConfig::default(), parts).await.unwrap();
        engine.attach_backend(POOL, self.backend.clone());
        engine
    }
}

/// Time passes when nobody has anything else to do.
fn run(case: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

async fn expect(vdisk: &Vdisk, number: u64, byte: u8) {
    let range = ByteRange::new(ByteOffset(number * 4096), ByteCount(4096)).unwrap();
    assert_eq!(vdisk.read(range).await.unwrap()[..], [byte; 4096], "cluster {number}");
}

#[test]
fn the_write_buffer_keeps_what_the_journal_does_not_have() {
    run(async {
        let host = Host::new(format!("{}/j/", FIRST.0.simple()));
        let engine = host.start().await;
        let (first, second) = (create(&engine, FIRST).await, create(&engine, SECOND).await);
        put(&second, 0, 1).await;
        for number in 0..40 {
            put(&first, number, 7).await;
        }
        first.flush().await.unwrap();
        host.fault.set(Some(|| Fault::ErrorBefore));
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
        host.fault.set(None);
        let first = host.start().await.open_vdisk(POOL, FIRST, ON_FULL).await.unwrap();
        for number in 0..40u64 {
            expect(&first, number, 7).await;
        }
    });
}

/// Writes go on for as long as the buffer has room: the journal's epoch is given up again and again beside them.
#[test]
fn a_vdisk_writes_on_while_the_backend_is_away() {
    run(async {
        let host = Host::new(String::new());
        let engine = host.start().await;
        let vdisk = create(&engine, FIRST).await;
        put(&vdisk, 0, 1).await;
        vdisk.destage().await.unwrap();
        let epoch = vdisk.stats().epoch;
        host.fault.set(Some(|| Fault::ErrorBefore));
        for minute in 1..20 {
            let sent = tokio::time::Instant::now();
            put(&vdisk, minute, 1).await;
            vdisk.write(ByteOffset(minute * 4096 + 7), vec![9; 5].into(), true).await.unwrap();
            assert!(sent.elapsed() < Duration::from_secs(1), "a write took {:?}", sent.elapsed());
            assert!(vdisk.snapshot(SNAPSHOT, "s".parse().unwrap()).await.is_err());
            tokio::time::sleep(Duration::from_secs(40)).await;
        }
        assert!(vdisk.stats().epoch.0 > epoch.0 + 10, "{}", vdisk.stats().epoch);
        // The process dies, and so does the one after it when the backend is back and one record was sent.
        drop((vdisk, engine));
        host.fault.set(None);
        for _ in 0..2 {
            let engine = host.start().await;
            let vdisk = engine.open_vdisk(POOL, FIRST, ON_FULL).await.unwrap();
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

/// The same process, when the backend comes back, and then another one.
#[test]
fn what_was_written_meanwhile_is_of_both_epochs() {
    run(async {
        let host = Host::new("/j/".into());
        let engine = host.start().await;
        let vdisk = create(&engine, FIRST).await;
        put(&vdisk, 0, 1).await;
        host.fault.set(Some(|| Fault::ErrorBefore));
        let destaging = vdisk.clone();
        let destaging = tokio::task::spawn_local(async move { destaging.destage().await });
        let epoch = vdisk.stats().epoch;
        while vdisk.stats().epoch == epoch {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        put(&vdisk, 1, 2).await;
        host.fault.set(None);
        vdisk.set_properties("{}1".into()).await.unwrap();
        put(&vdisk, 2, 3).await;
        destaging.abort();
        drop((vdisk, engine));
        let engine = host.start().await;
        let vdisk = engine.open_vdisk(POOL, FIRST, ON_FULL).await.unwrap();
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
        engine.adopt_vdisk(POOL, FIRST).await.unwrap();
        let vdisk = engine.open_vdisk(POOL, FIRST, ON_FULL).await.unwrap();
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
    run(async {
        let host = Host::new("/j/".into());
        let engine = host.start().await;
        let vdisk = create(&engine, FIRST).await;
        put(&vdisk, 0, 1).await;
        vdisk.snapshot(SNAPSHOT, "before".parse().unwrap()).await.unwrap();
        put(&vdisk, 0, 2).await;
        vdisk.destage().await.unwrap();
        host.fault.set(Some(|| Fault::ErrorAfter));
        vdisk.rollback(SNAPSHOT).await.unwrap_err();
        expect(&vdisk, 0, 2).await;
        let refused = vdisk.write(ByteOffset(4096), vec![9; 4096].into(), false).await;
        assert!(matches!(refused, Err(VolumeError::Retry(_))), "{refused:?}");
        host.fault.set(None);
        put(&vdisk, 1, 3).await;
        drop((vdisk, engine));
        let registry = Rc::new(MemoryRegistry::default());
        let without_registry = Host { registry, pages: Rc::default(), ..host.clone() };
        for host in [host, without_registry] {
            let engine = host.start().await;
            if !engine.discover(POOL).await.unwrap().is_empty() {
                engine.adopt_vdisk(POOL, FIRST).await.unwrap();
            }
            let vdisk = engine.open_vdisk(POOL, FIRST, ON_FULL).await.unwrap();
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
    run(async {
        let registry = Rc::new(LosingAnswers::default());
        let host = Host { registry: registry.clone(), ..Host::new(String::new()) };
        let vdisk = create(&host.start().await, FIRST).await;
        put(&vdisk, 0, 1).await;
        registry.commits.set(2);
        registry.gets.set(3);
        vdisk.set_properties("{}1".into()).await.unwrap();
        assert_eq!((registry.commits.get(), registry.gets.get()), (0, 0));
        put(&vdisk, 1, 2).await;
        vdisk.destage().await.unwrap();
    });
}
