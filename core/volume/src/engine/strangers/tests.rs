//! What nobody knows goes when it is known to be deleted, and nobody may need it.

use super::*;
use crate::engine::recover::tests::{ON_FULL, VDISK, VPOOL, host, make};
use crate::journal::tests::unfinished::{Drives, run};
use crate::{CreateVdisk, MemoryRegistry};
use ovs_backend::{Backend, MemoryBackend, ObjectName, Urgency};
use ovs_units::{ByteCount, Epoch, Name, SnapshotId};
use std::rc::Rc;
use uuid::Uuid;

const CLONE: VdiskId = VdiskId(Uuid::from_u128(3));

fn sco_of(id: VdiskId) -> ObjectName {
    crate::sco::sco_name(id, Epoch(1), ovs_units::ScoNumber(7))
}

async fn put(store: &dyn Backend, name: ObjectName) {
    store.put(&name, vec![b"x"[..].into()], Urgency::Normal).await.unwrap();
}

async fn look(registry: &Rc<MemoryRegistry>, store: &Rc<MemoryBackend>) -> Option<Strangers> {
    let (engine, _directory) = host(registry, Rc::clone(store)).await;
    engine.look_for_strangers(VPOOL).await.unwrap()
}

/// The removal was cut short after the head went, or lands late: a tombstone says what it is, an SCO alone does not.
#[test]
fn what_a_tombstone_deletes_goes_and_the_rest_is_told() {
    run(async {
        let (registry, store) = (Rc::default(), Rc::new(MemoryBackend::new()));
        let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
        make(&engine, VDISK).await;
        drop(engine);
        let known = store.names();
        put(&*store, sco_of(CLONE)).await;
        tombstone::put(&*store, CLONE, Epoch(2)).await.unwrap();
        assert_eq!(look(&registry, &store).await, Some(Strangers { removed: 1, left: vec![] }));
        assert_eq!(store.names(), known);
        // Of a later epoch than the tombstone; or without one.
        for epoch in [Some(0), None] {
            put(&*store, sco_of(CLONE)).await;
            if let Some(epoch) = epoch {
                tombstone::put(&*store, CLONE, Epoch(epoch)).await.unwrap();
            }
            let before = store.names();
            assert_eq!(look(&registry, &store).await, Some(Strangers { removed: 0, left: vec![CLONE] }));
            assert_eq!(store.names(), before);
            store.damage(&tombstone::name(CLONE, Epoch(0)), None);
        }
    });
}

/// The registry is an older one, which knows neither the clone nor that there is one.
#[test]
fn what_a_clone_that_nobody_knows_may_need_stays() {
    run(async {
        let (registry, store) = (Rc::default(), Rc::new(MemoryBackend::new()));
        let (engine, _directory) = host(&registry, Rc::clone(&store)).await;
        make(&engine, VDISK).await;
        let snapshot = SnapshotId(Uuid::from_u128(100));
        let vdisk = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap();
        vdisk.snapshot(snapshot, Name::new("s").unwrap()).await.unwrap();
        let (size, base) = (ByteCount(1 << 20), Some((VDISK, snapshot)));
        let clone =
            CreateVdisk { id: CLONE, vpool: VPOOL, size, properties: "{}".into(), base, on_full: ON_FULL };
        engine.create_vdisk(clone).await.unwrap();
        engine.delete_vdisk(VPOOL, VDISK).await.unwrap();
        drop((vdisk, engine));
        let before = store.names();
        let all = vec![CLONE, VDISK];
        assert_eq!(look(&Rc::default(), &store).await, Some(Strangers { removed: 0, left: all }));
        // Nor before all are known again.
        let second = Rc::default();
        let (engine, _directory) = host(&second, Rc::clone(&store)).await;
        engine.adopt_vdisk(VPOOL, CLONE).await.unwrap();
        drop(engine);
        tombstone::put(&*store, VdiskId(Uuid::from_u128(4)), Epoch(2)).await.unwrap();
        assert_eq!(look(&second, &store).await, None);
        let (engine, _directory) = host(&second, Rc::clone(&store)).await;
        engine.finish_recovery(VPOOL).await.unwrap();
        assert_eq!(engine.look_for_strangers(VPOOL).await.unwrap().map(|found| found.removed), Some(1));
        assert_eq!(store.names(), before);
    });
}

/// A put or a delete that was cut off leaves what is not complete: it is listed all the same.
#[test]
fn on_drives_fragments_go_as_well() {
    run(async {
        let drives = Drives::new();
        let backend = drives.open();
        let sco = sco_of(VDISK);
        backend.put(&sco, vec![vec![7; 100_000].into()], Urgency::Normal).await.unwrap();
        tombstone::put(&backend, VDISK, Epoch(2)).await.unwrap();
        backend.settle().await;
        drives.cut_off(&sco);
        assert_eq!(drives.count(&sco), 1);
        let (engine, _directory) = host(&Rc::default(), drives.open()).await;
        assert_eq!(engine.look_for_strangers(VPOOL).await.unwrap().unwrap().removed, 1);
        assert_eq!((drives.count(&sco), drives.count(&tombstone::name(VDISK, Epoch(2)))), (0, 0));
    });
}
