//! A backend on which another host goes on, or a deletion was cut short, or something is damaged.

use crate::host::{Buffer, DISK, Host, ON_FULL, POOL, byte, create, newest_copy, open, put, run};
use bytes::Bytes;
use ovs_backend::{Backend, Fault, FaultyBackend, MemoryBackend, ObjectName, Operation, Urgency};
use ovs_units::{ByteCount, Epoch, Name, SnapshotId, VdiskId};
use ovs_volume::{CreateVdisk, Vdisk, VolumeError};
use std::{rc::Rc, time::Duration};
use uuid::Uuid;

/// A host that hangs while another takes over its vDisk, and then goes on as if nothing had happened.
#[test]
fn a_stale_owner_neither_removes_nor_adds_anything() {
    // The new owner makes copies of its own, or lives on what the stale one had made.
    for (stale_copies, new_copies) in [(false, false), (true, true), (true, false)] {
        run(async {
            let mut host = Host::new(stale_copies);
            let engine = host.start(&Buffer::new()).await.unwrap();
            let stale = create(&engine).await;
            let fill = async |vdisk: &Vdisk, numbers: std::ops::Range<u64>, byte| {
                for number in numbers {
                    put(vdisk, number, byte).await;
                    // The stale one may learn meanwhile that it is.
                    let _ = vdisk.destage().await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            fill(&stale, 0..30, 9).await;
            fill(&stale, 0..30, 1).await;
            let of_stale = newest_copy(&host).await;
            assert_eq!(of_stale.is_some(), stale_copies);
            host.copies_maps = new_copies;
            let new = host.take_over().await;
            fill(&new, 100..110, 2).await;
            let of_new = newest_copy(&host).await;
            assert_eq!(of_new > of_stale, new_copies, "the new owner has made copies of its own");
            fill(&stale, 30..45, 1).await;
            let _ = stale.scrub().await;
            if new_copies {
                assert_eq!(newest_copy(&host).await, of_new);
            }
            // The new owner loses all it has of its own.
            let newest = host.take_over().await;
            for number in 100..110 {
                assert_eq!(byte(&newest, number).await, 2);
            }
            assert_eq!((byte(&newest, 0).await, byte(&newest, 30).await), (1, 0));
        });
    }
}

async fn put_tombstone(host: &Host, epoch: Epoch) {
    let name = ObjectName::new(format!("v/{}/tombstone-{:016x}", DISK.0.simple(), epoch.0)).unwrap();
    let bytes = ovs_format::tombstone::encode(DISK, epoch);
    host.backend.put(&name, vec![bytes.into()], Urgency::Reserve).await.unwrap();
}

/// Also what is only in the write buffer yet.
#[test]
fn what_is_written_after_a_deletion_that_failed_is_not_deleted_by_it() {
    run(async {
        let (mut host, buffer) = (Host::new(false), Buffer::new());
        let store = Rc::new(MemoryBackend::new());
        host.backend = Rc::new(FaultyBackend::new(Rc::clone(&store), |call| {
            let is_it = call.operation == Operation::Put && call.object.contains("tombstone");
            is_it.then_some(Fault::ErrorBefore)
        }));
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 3, 7).await;
        let epoch = vdisk.stats().epoch;
        engine.delete_vdisk(POOL, DISK).await.unwrap_err();
        put(&vdisk, 4, 8).await;
        vdisk.flush().await.unwrap();
        host.backend = store;
        put_tombstone(&host, Epoch(epoch.0 + 1)).await;
        let engine = host.start(&buffer.copy()).await.unwrap();
        let vdisk = open(&engine).await;
        assert_eq!((byte(&vdisk, 3).await, byte(&vdisk, 4).await), (7, 8));
    });
}

/// Kept for its clone, it sends out what that needs: in an epoch of its own, when another process does it.
#[test]
fn a_deleted_vdisk_that_goes_on_for_its_clones_stays_deleted() {
    run(async {
        let (mut host, buffer) = (Host::new(false), Buffer::new());
        let store = Rc::new(MemoryBackend::new());
        host.backend = Rc::new(FaultyBackend::new(Rc::clone(&store), |call| {
            let is_data = call.operation == Operation::Put && call.object.contains("/s/");
            is_data.then_some(Fault::ErrorBefore)
        }));
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 3, 7).await;
        let snapshot = SnapshotId(Uuid::from_u128(100));
        vdisk.snapshot(snapshot, Name::new("s").unwrap()).await.unwrap();
        let (id, size) = (VdiskId(Uuid::from_u128(11)), ByteCount(8 << 20));
        let base = Some((DISK, snapshot));
        let clone = CreateVdisk { id, vpool: POOL, size, properties: "{}".into(), base, on_full: ON_FULL };
        engine.create_vdisk(clone).await.unwrap();
        drop(vdisk);
        engine.delete_vdisk(POOL, DISK).await.unwrap();

        host.backend = store.clone();
        let engine = host.start(&buffer.copy()).await.unwrap();
        engine.claim_buffered(ON_FULL).await.unwrap();
        let clone = engine.open_vdisk(POOL, id, ON_FULL).await.unwrap();
        clone.write(ovs_units::ByteOffset(0), vec![9; 4096].into(), false).await.unwrap();
        clone.destage().await.unwrap();
        let is_of = |text: &str| {
            let prefix = format!("v/{}/{text}", DISK.0.simple());
            store.names().iter().filter(|name| name.as_str().starts_with(&prefix)).count()
        };
        assert_eq!((is_of("s/"), is_of("tombstone-")), (1, 2));
        drop((clone, engine));

        (host.registry, host.pages) = Default::default();
        let engine = host.start(&Buffer::new()).await.unwrap();
        let found = engine.discover(POOL).await.unwrap();
        assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), [id]);
        engine.adopt_vdisk(POOL, id).await.unwrap();
        engine.finish_recovery(POOL).await.unwrap();
        let answer = engine.open_vdisk(POOL, DISK, ON_FULL).await.map(drop);
        assert!(matches!(answer, Err(VolumeError::NotFound(_))), "{answer:?}");
        let clone = engine.open_vdisk(POOL, id, ON_FULL).await.unwrap();
        assert_eq!((byte(&clone, 0).await, byte(&clone, 3).await), (9, 7));
    });
}

/// A deletion is in the tombstone first; the registry may not have heard of it.
#[test]
fn a_deletion_that_was_cut_short_is_finished_at_the_next_start() {
    for has_clone in [false, true] {
        run(async {
            let (mut host, buffer) = (Host::new(false), Buffer::new());
            let store = Rc::new(MemoryBackend::new());
            // It is stored, and who put it does not learn of it.
            host.backend = Rc::new(FaultyBackend::new(Rc::clone(&store), |call| {
                let is_it = call.operation == Operation::Put && call.object.contains("tombstone");
                is_it.then_some(Fault::ErrorAfter)
            }));
            let engine = host.start(&buffer).await.unwrap();
            let vdisk = create(&engine).await;
            put(&vdisk, 3, 7).await;
            let snapshot = SnapshotId(Uuid::from_u128(100));
            vdisk.snapshot(snapshot, Name::new("s").unwrap()).await.unwrap();
            let id = VdiskId(Uuid::from_u128(11));
            if has_clone {
                let (size, base) = (ByteCount(8 << 20), Some((DISK, snapshot)));
                let properties = "{}".into();
                let clone = CreateVdisk { id, vpool: POOL, size, properties, base, on_full: ON_FULL };
                engine.create_vdisk(clone).await.unwrap();
            }
            vdisk.destage().await.unwrap();
            let answer = engine.delete_vdisk(POOL, DISK).await;
            assert!(matches!(answer, Err(VolumeError::Retry(_))), "{answer:?}");
            host.backend = store;

            let engine = host.start(&buffer.copy()).await.unwrap();
            let answer = engine.open_vdisk(POOL, DISK, ON_FULL).await.map(drop);
            assert!(matches!(answer, Err(VolumeError::NotFound(_))), "{answer:?}");
            if has_clone {
                let clone = engine.open_vdisk(POOL, id, ON_FULL).await.unwrap();
                assert_eq!(byte(&clone, 3).await, 7);
                drop(clone);
                engine.delete_vdisk(POOL, id).await.unwrap();
            }
            for _ in 0..200 {
                if host.backend.list("v/", None, 1).await.unwrap().is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{:?} is left", host.backend.list("v/", None, 100).await);
        });
    }
}

/// Nor does it hide the others when a vPool is recovered: it is told with what is wrong with it.
#[test]
fn a_damaged_tombstone_deletes_nothing_and_hides_nobody() {
    run(async {
        let mut host = Host::new(false);
        let backend = Rc::new(MemoryBackend::new());
        host.backend = backend.clone();
        let engine = host.start(&Buffer::new()).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 3, 7).await;
        vdisk.destage().await.unwrap();
        drop((vdisk, engine));
        // Another one, of which nothing but a damaged tombstone is there.
        let name = format!("v/{}/tombstone-0000000000000002", Uuid::from_u128(9).simple());
        backend.damage(&ObjectName::new(&name).unwrap(), Some(Bytes::from_static(b"deleted")));

        (host.registry, host.pages) = Default::default();
        let engine = host.start(&Buffer::new()).await.unwrap();
        let found = engine.discover(POOL).await.unwrap();
        let problem =
            |id: u128| found.iter().find(|found| found.id.0.as_u128() == id).unwrap().problem.clone();
        assert!(problem(9).unwrap().contains("tombstone"));
        assert_eq!(problem(10), None);
        engine.adopt_vdisk(POOL, DISK).await.unwrap();
        assert_eq!(byte(&open(&engine).await, 3).await, 7);
    });
}

/// What a clone came from cannot be read. It is told so, and everybody else is found; nothing goes that it may have needed.
#[test]
fn a_damaged_ancestor_hides_nobody() {
    run(async {
        let mut host = Host::new(false);
        let backend = Rc::new(MemoryBackend::new());
        host.backend = backend.clone();
        let engine = host.start(&Buffer::new()).await.unwrap();
        let grandparent = create(&engine).await;
        put(&grandparent, 3, 7).await;
        let mut last = grandparent.clone();
        for number in 11..13 {
            let snapshot = SnapshotId(Uuid::from_u128(100 + number));
            last.snapshot(snapshot, Name::new("s").unwrap()).await.unwrap();
            let (id, size) = (VdiskId(Uuid::from_u128(number)), ByteCount(8 << 20));
            let (properties, base) = ("{}".into(), Some((last.id(), snapshot)));
            let clone = CreateVdisk { id, vpool: POOL, size, properties, base, on_full: ON_FULL };
            last = engine.create_vdisk(clone).await.unwrap();
        }
        let (id, size) = (VdiskId(Uuid::from_u128(20)), ByteCount(8 << 20));
        let other =
            CreateVdisk { id, vpool: POOL, size, properties: "{}".into(), base: None, on_full: ON_FULL };
        engine.create_vdisk(other).await.unwrap();
        last.destage().await.unwrap();
        drop((last, grandparent));
        engine.delete_vdisk(POOL, DISK).await.unwrap();
        drop(engine);

        let is_of = |id: u128| {
            let folder = format!("v/{}/", Uuid::from_u128(id).simple());
            move |name: &ObjectName| name.as_str().starts_with(&folder)
        };
        // First a bit of the parent's journal turned, then all of the parent gone.
        for is_gone in [false, true] {
            for name in backend.names().into_iter().filter(is_of(11)) {
                let mut bytes = backend.bytes(&name).unwrap().to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                backend.damage(&name, (!is_gone).then(|| bytes.into()));
            }
            (host.registry, host.pages) = Default::default();
            let engine = host.start(&Buffer::new()).await.unwrap();
            let found = engine.discover(POOL).await.unwrap();
            let problem =
                |id: u128| found.iter().find(|found| found.id.0.as_u128() == id).unwrap().problem.clone();
            assert!(problem(12).unwrap().contains("ancestor"), "{found:?}");
            assert_eq!(problem(20), None);
            assert!(backend.names().iter().any(is_of(10)), "who knows who needs it");
        }
    });
}
