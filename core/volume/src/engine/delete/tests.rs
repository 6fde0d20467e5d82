//! Tombstones that land late, and deletions that end anywhere.

use crate::engine::recover::tests::{ON_FULL, VDISK, VPOOL, epoch_of, host, make, use_it};
use crate::journal::tests::unfinished::run;
use crate::{Engine, MemoryRegistry, VolumeError, tombstone};
use bytes::Bytes;
use ovs_backend::{Backend, Fault, FaultyBackend, MemoryBackend, ObjectName, Operation, Urgency};
use ovs_units::Epoch;
use std::{cell::Cell, rc::Rc, time::Duration};
use tempfile::TempDir;

/// A backend that does not take tombstones: the deletion fails, and nobody knows whether it has one.
async fn delete_in_vain(
    registry: &Rc<MemoryRegistry>,
    store: &Rc<MemoryBackend>,
    uses_it_before: bool,
) -> (Engine, TempDir) {
    let backend = FaultyBackend::new(Rc::clone(store), |call| {
        let is_it = call.operation == Operation::Put && call.object.contains("tombstone");
        is_it.then_some(Fault::ErrorBefore)
    });
    let (engine, directory) = host(registry, backend).await;
    if uses_it_before {
        use_it(&engine, "{}before").await;
    }
    let answer = engine.delete_vdisk(VPOOL, VDISK).await;
    assert!(matches!(answer, Err(VolumeError::Retry(_))), "{answer:?}");
    (engine, directory)
}

async fn properties(engine: &Engine) -> Bytes {
    engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap().properties()
}

async fn new_vdisk(registry: &Rc<MemoryRegistry>) -> Rc<MemoryBackend> {
    let store = Rc::new(MemoryBackend::new());
    let (engine, _directory) = host(registry, Rc::clone(&store)).await;
    make(&engine, VDISK).await;
    store
}

/// Its tombstone is on its way while the host is lost, and lands when another has gone on with the vDisk.
#[test]
fn a_tombstone_that_lands_after_a_recovery_takes_nothing_with_it() {
    for is_open in [false, true] {
        run(async {
            let lost = Rc::default();
            let store = new_vdisk(&lost).await;
            drop(delete_in_vain(&lost, &store, is_open).await);
            let on_its_way = epoch_of(&lost).await;

            let registry = Rc::default();
            let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
            assert_eq!(engine.discover(VPOOL).await.unwrap().len(), 1);
            engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
            engine.finish_recovery(VPOOL).await.unwrap();
            use_it(&engine, "{}since").await;
            drop(engine);
            tombstone::put(&*store, VDISK, on_its_way).await.unwrap();

            let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
            assert_eq!(properties(&engine).await, "{}since");
            // Nor for whoever finds it without any registry.
            let registry = Rc::default();
            let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
            assert_eq!(engine.discover(VPOOL).await.unwrap()[0].properties, "{}since");
            engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
            assert_eq!(properties(&engine).await, "{}since");
        });
    }
}

/// Who goes on after a deletion that failed does so in an epoch of his own, in the same process or in another.
#[test]
fn a_tombstone_that_lands_after_its_deletion_failed_takes_nothing_with_it() {
    for (is_open, goes_on_there) in [(false, false), (true, false), (true, true), (false, true)] {
        run(async {
            let registry = Rc::default();
            let store = new_vdisk(&registry).await;
            let (engine, _directory) = delete_in_vain(&registry, &store, is_open).await;
            let on_its_way = epoch_of(&registry).await;
            let (other, _directory) = host(&registry, Rc::clone(&store)).await;
            use_it(if goes_on_there { &engine } else { &other }, "{}since").await;
            drop((engine, other));
            tombstone::put(&*store, VDISK, on_its_way).await.unwrap();
            for registry in [registry, Rc::default()] {
                let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
                assert_eq!(engine.discover(VPOOL).await.unwrap().len(), 1);
                engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
                assert_eq!(properties(&engine).await, "{}since", "{is_open} {goes_on_there}");
            }
        });
    }
}

/// Whoever comes next finds all of the vDisk, or ends its deletion; with the registry or without it.
#[test]
fn a_deletion_that_ends_anywhere_is_none_or_is_finished() {
    let mut outcomes = Vec::new();
    for calls in 0..14_u32 {
        for keeps_registry in [false, true] {
            run(async {
                let mut registry = Rc::default();
                let store = new_vdisk(&registry).await;
                let left = Cell::new(calls);
                let dying = FaultyBackend::new(Rc::clone(&store), move |_| {
                    let is_dead = left.get() == 0;
                    left.set(left.get().saturating_sub(1));
                    is_dead.then_some(Fault::ErrorBefore)
                });
                let (engine, _directory) = host(&registry, dying).await;
                let is_acknowledged = engine.delete_vdisk(VPOOL, VDISK).await.is_ok();
                tokio::time::sleep(Duration::from_millis(50)).await;
                drop(engine);
                if !keeps_registry {
                    registry = Rc::default();
                }
                let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
                let found = engine.discover(VPOOL).await.unwrap();
                if found.is_empty() {
                    if keeps_registry {
                        let answer = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.map(drop);
                        assert!(matches!(answer, Err(VolumeError::NotFound(_))), "{calls}: {answer:?}");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    assert_eq!(store.names(), [], "{calls}");
                } else {
                    assert!(!is_acknowledged && found[0].problem.is_none(), "{calls}: {found:?}");
                    engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
                    assert_eq!(properties(&engine).await, "{}2");
                }
                outcomes.push(found.is_empty());
            });
        }
    }
    assert!(outcomes.contains(&true) && outcomes.contains(&false), "{outcomes:?}");
}

/// It says of no epoch that it is over. Who put it has to end what it has begun.
#[test]
fn a_tombstone_of_an_earlier_build_is_told_and_deletes_nothing() {
    run(async {
        let registry = Rc::default();
        let store = new_vdisk(&registry).await;
        let name = ObjectName::new(format!("v/{}/tombstone", VDISK.0.simple())).unwrap();
        store.put(&name, vec![b"OVSDEL01"[..].into()], Urgency::Normal).await.unwrap();
        let before = store.names();
        let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
        let answer = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.map(drop);
        assert!(
            matches!(&answer, Err(VolumeError::Damaged(told)) if told.contains("no tombstone")),
            "{answer:?}"
        );
        let (engine, _directory) = host(&Rc::default(), Rc::clone(&store)).await;
        assert!(engine.discover(VPOOL).await.unwrap()[0].problem.is_some());
        assert_eq!(store.names(), before);
        // Who knows that it is to go removes all of it.
        let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
        engine.delete_vdisk(VPOOL, VDISK).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(store.names(), []);
    });
}

/// Such a registry knows neither which epochs there are nor which clones.
#[test]
fn an_older_registry_deletes_nothing() {
    run(async {
        let registry = Rc::default();
        let store = new_vdisk(&registry).await;
        let second = Rc::default();
        let (engine, _directory) = host(&second, Rc::clone(&store)).await;
        engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
        use_it(&engine, "{}since").await;
        assert!(epoch_of(&second).await > Epoch(2));
        let before = store.names();
        let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
        let answer = engine.delete_vdisk(VPOOL, VDISK).await;
        assert!(matches!(answer, Err(VolumeError::Refused(_))), "{answer:?}");
        assert_eq!(store.names(), before);
    });
}

/// Such a registry does not know what was cloned from the vDisk before it was deleted: it is deleted, and kept until all are known.
#[test]
fn a_tombstone_above_what_the_registry_knows_hides_and_removes_nothing() {
    for is_deleted_again in [false, true] {
        run(async {
            let registry = Rc::default();
            let store = new_vdisk(&registry).await;
            tombstone::put(&*store, VDISK, epoch_of(&registry).await.next()).await.unwrap();
            let before = store.names();
            let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
            if is_deleted_again {
                engine.delete_vdisk(VPOOL, VDISK).await.unwrap();
            } else {
                let opened = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.map(drop);
                assert!(matches!(opened, Err(VolumeError::NotFound(_))), "{opened:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(store.names(), before);
            drop(engine);
            // When all clones are known again, and there are none, it goes.
            let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
            engine.finish_recovery(VPOOL).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(store.names(), []);
        });
    }
}

/// A recovery that knows nothing of the vDisk either hears of its deletion before it says that all clones are known.
#[test]
fn a_tombstone_above_what_the_registry_knows_is_noted_by_a_recovery() {
    run(async {
        let registry = Rc::default();
        let store = new_vdisk(&registry).await;
        tombstone::put(&*store, VDISK, epoch_of(&registry).await.next()).await.unwrap();
        let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
        engine.finish_recovery(VPOOL).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(store.names(), []);
    });
}

/// The record could be the snapshot of a clone.
#[test]
fn a_tombstone_hides_nothing_where_the_registry_is_a_record_behind_as_well() {
    run(async {
        let registry: Rc<MemoryRegistry> = Rc::default();
        let store = new_vdisk(&registry).await;
        let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
        use_it(&engine, "{}before").await;
        let older = Rc::new(MemoryRegistry::clone(&registry));
        use_it(&engine, "{}since").await;
        let epoch = epoch_of(&registry).await;
        assert_eq!(epoch_of(&older).await, epoch);
        drop(engine);
        tombstone::put(&*store, VDISK, epoch.next()).await.unwrap();
        let before = store.names();
        let (engine, _directory) = host(&older, Rc::clone(&store)).await;
        let opened = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.map(drop);
        assert!(matches!(opened, Err(VolumeError::Refused(_))), "{opened:?}");
        let deleted = engine.delete_vdisk(VPOOL, VDISK).await;
        assert!(matches!(deleted, Err(VolumeError::Refused(_))), "{deleted:?}");
        engine.finish_recovery(VPOOL).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(store.names(), before);
        // Taken in again, it is deleted as it was.
        assert_eq!(engine.discover(VPOOL).await.unwrap().len(), 0);
    });
}

/// The number was given twice: to a deletion whose tombstone did not show, and by a registry that was put back to before it.
#[test]
fn a_tombstone_of_an_epoch_that_is_in_use_deletes_nothing() {
    run(async {
        let registry = Rc::default();
        let store = new_vdisk(&registry).await;
        let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
        use_it(&engine, "{}since").await;
        drop(engine);
        tombstone::put(&*store, VDISK, epoch_of(&registry).await).await.unwrap();
        for _ in 0..2 {
            let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
            assert_eq!(properties(&engine).await, "{}since");
        }
    });
}

/// It was taken in, and somebody relies on that, if only by reading.
#[test]
fn a_tombstone_that_shows_after_a_recovery_deletes_nothing_that_was_only_read_since() {
    run(async {
        let lost = Rc::default();
        let store = new_vdisk(&lost).await;
        drop(delete_in_vain(&lost, &store, true).await);
        let on_its_way = epoch_of(&lost).await;
        let registry = Rc::default();
        let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
        engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
        engine.finish_recovery(VPOOL).await.unwrap();
        let told = properties(&engine).await;
        drop(engine);
        tombstone::put(&*store, VDISK, on_its_way).await.unwrap();
        let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
        assert_eq!(properties(&engine).await, told);
        use_it(&engine, "{}since").await;
        drop(engine);
        let (engine, _directory) = host(&Rc::default(), Rc::clone(&store)).await;
        assert_eq!(engine.discover(VPOOL).await.unwrap()[0].properties, "{}since");
    });
}
