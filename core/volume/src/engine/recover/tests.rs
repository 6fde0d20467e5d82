//! What tells of a vDisk, where a crash has cut off the put or the delete of it.

use super::*;
use crate::head::EPOCHS_UNSEEN;
use crate::journal;
use crate::journal::tests::unfinished::{Drives, run};
use crate::{
    CreateVdisk, EngineConfig, EngineParts, FileDevice, MemoryPages, MemoryRegistry, OnFull, Registry,
    SystemChance, SystemClock,
};
use bytes::Bytes;
use ovs_backend::{Fault, FaultyBackend, MemoryBackend, Operation, Urgency};
use ovs_format::journal::{Position, Record};
use ovs_units::{ByteCount, Epoch, JournalIndex};
use tempfile::TempDir;

pub(crate) const VDISK: VdiskId = VdiskId(Uuid::from_u128(1));
pub(crate) const VPOOL: VpoolId = VpoolId(Uuid::from_u128(2));
/// The one behind that in which [`host_with_vdisk`] leaves it.
const DELETED_IN: Epoch = Epoch(2);
pub(crate) const ON_FULL: OnFull = OnFull::Stall { timeout: None };

fn at(epoch: u64, index: u64) -> Position {
    Position { epoch: Epoch(epoch), index: JournalIndex(index) }
}

/// A host with nothing but this registry, and this backend.
pub(crate) async fn host(
    registry: &Rc<MemoryRegistry>,
    backend: impl Backend + 'static,
) -> (Engine, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let parts = EngineParts {
        clock: Rc::new(SystemClock::new()),
        chance: Rc::new(SystemChance),
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
    make(&engine, VDISK).await;
    backend.settle().await;
    (engine, directory)
}

pub(crate) async fn make(engine: &Engine, id: VdiskId) {
    let (size, properties, base) = (ByteCount(1 << 20), "{}".into(), None);
    let request = CreateVdisk { id, vpool: VPOOL, size, properties, base, on_full: ON_FULL };
    let vdisk = engine.create_vdisk(request).await.unwrap();
    vdisk.set_properties(Bytes::from_static(b"{}2")).await.unwrap();
}

/// Opens the vDisk, and writes a record.
pub(crate) async fn use_it(engine: &Engine, properties: &'static str) {
    let vdisk = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap();
    vdisk.set_properties(properties.into()).await.unwrap();
}

pub(crate) async fn epoch_of(registry: &MemoryRegistry) -> Epoch {
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
        let (drives, name) = (Drives::new(), tombstone::name(VDISK, DELETED_IN));
        let backend = drives.open();
        tombstone::put(&backend, VDISK, DELETED_IN).await.unwrap();
        backend.settle().await;
        drives.cut_off(&name);
        let backend = drives.open();
        let found = tombstone::newest(&backend, VDISK, Epoch(1), Epoch(1), Reading::ToRestOn).await.unwrap();
        assert_eq!(found, Some(DELETED_IN));
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
        let (drives, name) = (Drives::new(), tombstone::name(VDISK, DELETED_IN));
        drop(host_with_vdisk(&Rc::default(), &drives).await);
        let backend = drives.open();
        tombstone::put(&backend, VDISK, DELETED_IN).await.unwrap();
        backend.settle().await;
        drives.cut_off(&name);
        let backend = FaultyBackend::new(drives.open(), |call| {
            (call.operation == Operation::Delete).then_some(Fault::ErrorBefore)
        });
        let (engine, _directory) = host(&Rc::default(), backend).await;
        assert_eq!(engine.discover(VPOOL).await.unwrap().len(), 0);
        assert_eq!(drives.count(&name), 2);
    });
}

/// It may be that of a deletion that was begun. When the drive answers again, somebody has gone on with the vDisk.
#[test]
fn a_tombstone_that_only_a_silent_drive_may_have_says_nothing_later() {
    run(async {
        let (drives, name) = (Drives::new(), tombstone::name(VDISK, DELETED_IN));
        drop(host_with_vdisk(&Rc::default(), &drives).await);
        let backend = drives.open();
        tombstone::put(&backend, VDISK, DELETED_IN).await.unwrap();
        backend.settle().await;
        let silent = drives.holder(&name);
        // One that was acknowledged shows on another drive.
        let (engine, _directory) = host(&Rc::default(), drives.open_without(silent)).await;
        assert_eq!(engine.discover(VPOOL).await.unwrap().len(), 0);
        let (drives, registry) = (Drives::new(), Rc::default());
        drop(host_with_vdisk(&Rc::default(), &drives).await);
        let backend = drives.open();
        tombstone::put(&backend, VDISK, DELETED_IN).await.unwrap();
        backend.settle().await;
        drives.cut_off(&name);
        let (engine, _directory) = host(&registry, drives.open_without(drives.holder(&name))).await;
        engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
        use_it(&engine, "{}3").await;
        for registry in [registry, Rc::default()] {
            let (engine, _directory) = host(&registry, drives.open()).await;
            let found = engine.discover(VPOOL).await.unwrap();
            assert_eq!((found.len(), &found[0].properties[..]), (1, &b"{}3"[..]));
            engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
            use_it(&engine, "{}3").await;
        }
    });
}

/// One that its registry knows is not used while it is being deleted.
#[test]
fn a_vdisk_that_is_known_is_opened_while_a_drive_is_silent() {
    run(async {
        let (drives, registry) = (Drives::new(), Rc::default());
        drop(host_with_vdisk(&registry, &drives).await);
        let (engine, _directory) = host(&registry, drives.open_without(Some(0))).await;
        use_it(&engine, "{}3").await;
    });
}

/// A drive is silent when the other host opens it: the opening leaps over what that may have.
#[test]
fn what_is_written_after_an_opening_that_leapt_is_not_orphaned() {
    for writes in 0..4 {
        run(async {
            let (drives, first) = (Drives::new(), Rc::default());
            let (owner, _directory) = host_with_vdisk(&first, &drives).await;
            let second = Rc::default();
            let (engine, _directory) = host(&second, drives.open()).await;
            engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
            let (engine, _directory) = host(&second, drives.open_without(Some(0))).await;
            let vdisk = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap();
            assert!(epoch_of(&second).await.0 > EPOCHS_UNSEEN);
            for write in 0..writes {
                let text = format!("{{}}{write}").into();
                owner.vdisk(VDISK).unwrap().set_properties(text).await.unwrap();
            }
            let answer = vdisk.set_properties(Bytes::from_static(b"{}of the second")).await;
            assert_eq!(answer.is_ok(), writes == 0, "{writes}: {answer:?}");
            let is_older = matches!(&answer, Err(VolumeError::Refused(told)) if told.contains("older"));
            assert!(is_older || writes == 0, "{writes}: {answer:?}");
        });
    }
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
        use_it(&engine, "{}3").await;
        assert!(epoch_of(&registry).await > before.next());
    });
}

/// With a registry or without one: what only a silent drive has shows too late. Until somebody writes, all that shows counts.
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
                assert_eq!(epoch_of(&registry).await, before);
            }
            // Also one that has only opened it since.
            let (engine, _directory) = host(&registry, drives.open()).await;
            engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap();
            assert_eq!(epoch_of(&registry).await, before);
            let (engine, _directory) = host(&registry, drives.open()).await;
            use_it(&engine, "{}3").await;
            let leapt = epoch_of(&registry).await;
            assert!((EPOCHS_UNSEEN..2 * EPOCHS_UNSEEN).contains(&(leapt.0 - before.0)), "{leapt}");
            let (engine, _directory) = host(&registry, drives.open()).await;
            use_it(&engine, "{}4").await;
            assert_eq!(epoch_of(&registry).await, leapt.next(), "once is enough");
        }
    });
}

/// What one of them begins, and nobody sees, is no name of the other's.
#[test]
fn two_recoveries_that_know_nothing_of_each_other_take_different_epochs() {
    run(async {
        let backend = Rc::new(MemoryBackend::new());
        let (engine, _directory) = host(&Rc::default(), Rc::clone(&backend)).await;
        make(&engine, VDISK).await;
        let mut epochs = HashSet::new();
        for _ in 0..3 {
            let (registry, as_it_was) = (Rc::default(), MemoryBackend::clone(&backend));
            let (engine, _directory) = host(&registry, as_it_was).await;
            engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
            use_it(&engine, "{}3").await;
            epochs.insert(epoch_of(&registry).await);
        }
        assert_eq!(epochs.len(), 3);
    });
}

#[test]
fn an_adoption_leaves_a_vdisk_alone_that_is_open() {
    run(async {
        let (drives, registry) = (Drives::new(), Rc::default());
        let (engine, _directory) = host_with_vdisk(&registry, &drives).await;
        begin(&drives, at(epoch_of(&registry).await.0 + 1, 0)).await;
        engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
        engine.vdisk(VDISK).unwrap().set_properties(Bytes::from_static(b"{}3")).await.unwrap();
    });
}

/// One vDisk that cannot be read, or that somebody removes meanwhile, is told; the others are taken in.
#[test]
fn what_is_wrong_with_one_vdisk_is_its_own_matter() {
    const OTHER: VdiskId = VdiskId(Uuid::from_u128(3));
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Wrong {
        Purged,
        Gone,
        Unreadable,
    }
    for wrong in [Wrong::Purged, Wrong::Gone, Wrong::Unreadable] {
        run(async {
            let store = Rc::new(MemoryBackend::new());
            let (engine, _directory) = host(&Rc::default(), Rc::clone(&store)).await;
            make(&engine, VDISK).await;
            if wrong == Wrong::Unreadable {
                let sco = crate::sco::object_name(format!("{}s/1", vdisk_prefix(OTHER)));
                store.put(&sco, vec![b"x"[..].into()], Urgency::Normal).await.unwrap();
            } else {
                make(&engine, OTHER).await;
            }
            if wrong == Wrong::Purged {
                tombstone::put(&*store, OTHER, DELETED_IN).await.unwrap();
            }
            let (prefix, store_now) = (format!("{}j/", vdisk_prefix(OTHER)), Rc::clone(&store));
            let of_other = vdisk_prefix(OTHER);
            let backend = FaultyBackend::new(store, move |call| {
                if call.operation != Operation::Get || !call.object.starts_with(&of_other) {
                    return None;
                }
                if call.object.starts_with(&prefix) {
                    store_now.damage(&ObjectName::new(call.object).unwrap(), None);
                }
                (wrong == Wrong::Unreadable && call.object.contains("/s/")).then_some(Fault::ErrorBefore)
            });
            let (engine, _directory) = host(&Rc::default(), backend).await;
            let found = engine.discover(VPOOL).await.unwrap();
            let problems: Vec<_> = found.iter().map(|vdisk| (vdisk.id, vdisk.problem.is_some())).collect();
            let expected = [(VDISK, false), (OTHER, true)];
            assert_eq!(problems, expected[..if wrong == Wrong::Purged { 1 } else { 2 }], "{wrong:?}");
        });
    }
}
