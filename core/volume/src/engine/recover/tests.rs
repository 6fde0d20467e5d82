//! What tells of a vDisk, where a crash has cut off the put or the delete of it.

use super::*;
use crate::journal::tests::unfinished::{Drives, run};
use crate::{
    Chance, CreateVdisk, EngineConfig, EngineParts, FileDevice, MemoryPages, MemoryRegistry, OnFull,
    Registry, SystemClock,
};
use bytes::Bytes;
use ovs_backend::{Fault, FaultyBackend, Operation, Urgency};
use ovs_format::journal::{Position, Record};
use ovs_units::{ByteCount, JournalIndex};
use std::cell::Cell;
use tempfile::TempDir;

const VDISK: VdiskId = VdiskId(Uuid::from_u128(1));
const VPOOL: VpoolId = VpoolId(Uuid::from_u128(2));
const ON_FULL: OnFull = OnFull::Stall { timeout: None };

fn at(epoch: u64, index: u64) -> Position {
    Position { epoch: Epoch(epoch), index: JournalIndex(index) }
}

#[derive(Default)]
struct Counting(Cell<u128>);

impl Chance for Counting {
    fn uuid(&self) -> Uuid {
        self.0.set(self.0.get() + 1);
        Uuid::from_u128(self.0.get())
    }
}

/// A host with nothing but this registry, and this backend.
async fn host(registry: &Rc<MemoryRegistry>, backend: impl Backend + 'static) -> (Engine, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let parts = EngineParts {
        clock: Rc::new(SystemClock::new()),
        chance: Rc::new(Counting::default()),
        registry: registry.clone(),
        pages: Rc::new(MemoryPages::default()),
        buffer: Rc::new(FileDevice::open(&directory.path().join("buffer"), 12, 2 << 20).unwrap()),
        cache: None,
    };
    let engine = Engine::open(EngineConfig::default(), parts).await.unwrap();
    engine.attach_backend(VPOOL, Rc::new(backend));
    (engine, directory)
}

/// One with a vDisk, of which the journal has two records.
async fn host_with_vdisk(registry: &Rc<MemoryRegistry>, drives: &Drives) -> (Engine, TempDir) {
    let backend = drives.open();
    let (engine, directory) = host(registry, backend.clone()).await;
    let (size, properties, base) = (ByteCount(1 << 20), "{}".into(), None);
    let request = CreateVdisk { id: VDISK, vpool: VPOOL, size, properties, base, on_full: ON_FULL };
    let vdisk = engine.create_vdisk(request).await.unwrap();
    vdisk.set_properties(Bytes::from_static(b"{}2")).await.unwrap();
    backend.settle().await;
    (engine, directory)
}

async fn epoch_of(registry: &MemoryRegistry) -> Epoch {
    let entry = registry.get(&head_key(VDISK)).await.unwrap().unwrap();
    Head::decode(VDISK, &entry.value).unwrap().epoch
}

/// A put that was cut off. What is left of it nobody sees before it is told again.
async fn begin(drives: &Drives, position: Position) {
    let backend = drives.open();
    let record = Record::Properties { properties: vec![7; 100_000].into() };
    journal::put(&backend, VDISK, position, &record).await.unwrap();
    backend.settle().await;
    drives.cut_off(&journal::record_name(VDISK, position));
}

#[test]
fn a_tombstone_that_was_read_stays() {
    run(async {
        let (drives, name) = (Drives::new(), journal::tombstone_name(VDISK));
        let backend = drives.open();
        backend.put(&name, vec![tombstone::encode(VDISK).into()], Urgency::Reserve).await.unwrap();
        backend.settle().await;
        drives.cut_off(&name);
        assert!(is_deleted(&drives.open(), VDISK, Reading::ToRestOn).await.unwrap());
        assert_eq!(drives.count(&name), 2);
    });
}

#[test]
fn a_vdisk_of_which_nothing_was_finished_is_none() {
    run(async {
        let drives = Drives::new();
        let backend = drives.open();
        begin(&drives, at(1, 0)).await;
        let vpool = VPOOL;
        let told = Reader { backend: &backend, vpool, told: HashMap::new() }.told(VDISK).await.unwrap();
        assert!(matches!((&told.is_deleted, &told.head), (Ok(false), Ok(None))));
        // What was, is more than that.
        let sco = crate::sco::object_name(format!("{}s/1", vdisk_prefix(VDISK)));
        backend.put(&sco, vec![b"x"[..].into()], Urgency::Normal).await.unwrap();
        let told = Reader { backend: &backend, vpool, told: HashMap::new() }.told(VDISK).await.unwrap();
        assert!(told.head.is_err());
    });
}

/// Whoever uses the vDisk decides what becomes of its last record.
#[test]
fn a_discovery_leaves_what_is_half_there_as_it_is_and_an_adoption_makes_it_stand() {
    run(async {
        let (drives, last) = (Drives::new(), journal::record_name(VDISK, at(1, 1)));
        drop(host_with_vdisk(&Rc::default(), &drives).await);
        drives.cut_off(&last);
        let (engine, _directory) = host(&Rc::default(), drives.open()).await;
        let found = engine.discover(VPOOL).await.unwrap();
        assert_eq!((&found[0].properties[..], drives.count(&last)), (&b"{}2"[..], 1));
        engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
        assert_eq!(drives.count(&last), 2);
    });
}

/// The last of it may go at the next failure, and with it the only word that what is left is no vDisk.
#[test]
fn a_tombstone_stands_before_anything_goes_on_its_word() {
    run(async {
        let (drives, name) = (Drives::new(), journal::tombstone_name(VDISK));
        drop(host_with_vdisk(&Rc::default(), &drives).await);
        let backend = drives.open();
        backend.put(&name, vec![tombstone::encode(VDISK).into()], Urgency::Reserve).await.unwrap();
        backend.settle().await;
        drives.cut_off(&name);
        let backend = FaultyBackend::new(drives.open(), |call| {
            (call.operation == Operation::Delete).then_some(Fault::ErrorBefore)
        });
        let (engine, _directory) = host(&Rc::default(), backend).await;
        engine.discover(VPOOL).await.unwrap_err();
        assert_eq!(drives.count(&name), 2);
    });
}

/// Its registry may be of before that epoch was begun.
#[test]
fn an_epoch_that_was_begun_and_never_finished_is_not_begun_again() {
    run(async {
        let (drives, registry) = (Drives::new(), Rc::default());
        drop(host_with_vdisk(&registry, &drives).await);
        let before = epoch_of(&registry).await;
        begin(&drives, at(before.0 + 1, 0)).await;
        let (engine, _directory) = host(&registry, drives.open()).await;
        engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
        assert!(epoch_of(&registry).await > before.next());
        let vdisk = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap();
        vdisk.set_properties(Bytes::from_static(b"{}3")).await.unwrap();
    });
}

/// With a registry or without one: what only a silent drive has shows too late.
#[test]
fn epochs_that_nobody_sees_are_left_out() {
    run(async {
        for keeps_registry in [false, true] {
            let (drives, mut registry) = (Drives::new(), Rc::default());
            drop(host_with_vdisk(&registry, &drives).await);
            let before = epoch_of(&registry).await;
            if !keeps_registry {
                registry = Rc::default();
            }
            for _ in 0..2 {
                let (engine, _directory) = host(&registry, drives.open()).await;
                engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
                assert_eq!(epoch_of(&registry).await, Epoch(before.0 + EPOCHS_UNSEEN), "once is enough");
            }
        }
        assert_eq!(beyond(Epoch(COUNTER_MAX - 1)), Epoch(COUNTER_MAX - 1));
    });
}
