//! vDisks that are made, grow and shrink; their snapshots and clones.

use crate::world::{MIB, World, range, run};
use ovs_units::{ByteCount, ByteOffset, SnapshotId, VdiskId, VpoolId};
use ovs_volume::{CreateVdisk, OnFull, Vdisk, VolumeError};
use std::time::Duration;
use uuid::Uuid;

#[test]
fn snapshots_clones_and_rollback() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        disk.write(ByteOffset(0), vec![1; 8192].into(), false).await.unwrap();
        let first = world.snapshot(&disk, "first").await;
        disk.write(ByteOffset(0), vec![2; 4096].into(), false).await.unwrap();
        let clone = world.clone_of(&disk, first, 64 * MIB).await;
        clone.write(ByteOffset(4096), vec![3; 4096].into(), false).await.unwrap();
        let check = async |disk: &Vdisk, clone: &Vdisk| {
            assert_eq!(disk.read(range(4095, 2)).await.unwrap()[..], [2, 1]);
            assert_eq!(clone.read(range(4095, 2)).await.unwrap()[..], [1, 3]);
            assert_eq!(disk.read_snapshot(first, range(4095, 2)).await.unwrap()[..], [1, 1]);
        };
        check(&disk, &clone).await;
        world.crash_and_reopen().await;
        let (disk, clone) = (world.open(disk.id()).await, world.open(clone.id()).await);
        check(&disk, &clone).await;
        clone.destage().await.unwrap();
        disk.destage().await.unwrap();
        check(&disk, &clone).await;
        world.close_and_reopen().await;
        let (disk, clone) = (world.open(disk.id()).await, world.open(clone.id()).await);
        check(&disk, &clone).await;
        disk.rollback(first).await.unwrap();
        assert_eq!(disk.read(range(4095, 2)).await.unwrap()[..], [1, 1]);
        disk.write(ByteOffset(4096), vec![9; 4096].into(), false).await.unwrap();
        world.crash_and_reopen().await;
        let (disk, clone) = (world.open(disk.id()).await, world.open(clone.id()).await);
        assert_eq!(disk.read(range(4095, 2)).await.unwrap()[..], [1, 9]);
        assert_eq!(clone.read(range(4095, 2)).await.unwrap()[..], [1, 3]);
        // The snapshot and its vDisk go, the clone stays.
        disk.delete_snapshot(first).await.unwrap();
        world.delete(&disk).await;
        assert_eq!(clone.read(range(4095, 2)).await.unwrap()[..], [1, 3]);
        world.lose_local_state().await;
        let clone = world.open(clone.id()).await;
        assert_eq!(clone.read(range(4095, 2)).await.unwrap()[..], [1, 3]);
        world.delete(&clone).await;
        world.settle().await;
        assert_eq!(world.objects().await, Vec::<String>::new());
    });
}

#[test]
fn vdisks_that_cannot_be_are_refused() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(MIB).await;
        disk.write(ByteOffset(0), vec![5; 4096].into(), false).await.unwrap();
        let snapshot = world.snapshot(&disk, "s").await;
        let (engine, vpool, missing) = (world.engine(), world.vpool(), Uuid::from_u128(77));
        let create = async |id, size, snapshot: Option<SnapshotId>| {
            let base = snapshot.map(|snapshot| (disk.id(), snapshot));
            let (size, properties) = (ByteCount(size), "{}".into());
            let request = CreateVdisk { id, vpool, size, properties, base, on_full: OnFull::NoSpace };
            engine.create_vdisk(request).await
        };
        let new = VdiskId(Uuid::from_u128(78));
        for (id, size, base) in [
            (new, 5, None),
            (new, (64 << 40) + 4096, None),
            (new, MIB - 4096, Some(snapshot)),
            (disk.id(), MIB, None),
            (disk.id(), MIB, Some(snapshot)),
        ] {
            let answer = create(id, size, base).await.err();
            assert!(matches!(answer, Some(VolumeError::Refused(_))), "{size}: {answer:?}");
        }
        let not_found = |answer: Result<(), VolumeError>| {
            assert!(matches!(answer, Err(VolumeError::NotFound(_))), "{answer:?}");
        };
        not_found(create(new, MIB, Some(SnapshotId(missing))).await.map(drop));
        not_found(engine.open_vdisk(vpool, new, OnFull::NoSpace).await.map(drop));
        not_found(engine.delete_vdisk(vpool, new).await);
        not_found(engine.adopt_vdisk(vpool, new).await);
        not_found(engine.delete_vdisk(VpoolId(missing), disk.id()).await);
        assert!(engine.vdisk(new).is_none());
        assert_eq!(engine.vdisk(disk.id()).unwrap().vpool(), vpool);

        let clone = create(new, 2 * MIB, Some(snapshot)).await.unwrap();
        assert_eq!(clone.size(), ByteCount(2 * MIB));
        assert_eq!(clone.read(range(0, 1)).await.unwrap()[0], 5);
        assert!(clone.read(range(2 * MIB, 0)).await.unwrap().is_empty());
        let extents = clone.snapshot_extents(SnapshotId(missing), range(0, 1), 1).await;
        assert!(matches!(extents, Err(VolumeError::NotFound(_))), "{extents:?}");
        let extents = disk.snapshot_extents(snapshot, range(0, MIB), 10).await.unwrap();
        let told: Vec<_> = extents.iter().map(|extent| (extent.length.0, extent.allocated)).collect();
        assert_eq!(told, [(4096, true), (MIB - 4096, false)]);

        engine.close(Duration::from_secs(5)).await.unwrap();
        engine.detach_backend(vpool);
        not_found(engine.open_vdisk(vpool, new, OnFull::NoSpace).await.map(drop));
    });
}

/// It is as large as it is to be; nothing has to leave the write buffer for that.
#[test]
fn a_resize_to_the_same_size_does_nothing() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(MIB).await;
        disk.write(ByteOffset(0), vec![5; 4096].into(), false).await.unwrap();
        let before = world.objects().await;
        disk.resize(ByteCount(MIB)).await.unwrap();
        disk.set_properties("{}".into()).await.unwrap();
        assert_eq!((disk.stats().buffered, world.objects().await), (ByteCount(4096), before));
        // The largest there is.
        disk.resize(ByteCount(64 << 40)).await.unwrap();
        assert_eq!(world.create(64 << 40).await.size(), disk.size());
    });
}

/// While a clone needs it, it is there, and nobody sees it.
#[test]
fn the_name_of_a_deleted_snapshot_is_free() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(MIB).await;
        disk.write(ByteOffset(0), vec![5; 4096].into(), false).await.unwrap();
        let snapshot = world.snapshot(&disk, "s").await;
        let clone = world.clone_of(&disk, snapshot, MIB).await;
        disk.delete_snapshot(snapshot).await.unwrap();
        let another = world.snapshot(&disk, "s").await;
        let told = disk.snapshots().into_iter().map(|told| (told.id, told.hidden, told.clone_count));
        assert_eq!(told.collect::<Vec<_>>(), [(snapshot, true, 1), (another, false, 0)]);
        world.delete(&clone).await;
        assert_eq!(disk.snapshots().len(), 1);
    });
}

#[test]
fn what_is_cut_off_never_comes_back() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(8 * MIB).await;
        disk.write(ByteOffset(4 * MIB), vec![7; MIB as usize].into(), false).await.unwrap();
        disk.resize(ByteCount(4 * MIB)).await.unwrap();
        disk.resize(ByteCount(8 * MIB)).await.unwrap();
        for _ in 0..2 {
            let disk = world.open(disk.id()).await;
            assert!(disk.read(range(4 * MIB, MIB)).await.unwrap().iter().all(|byte| *byte == 0));
            world.crash_and_reopen().await;
        }
    });
}
