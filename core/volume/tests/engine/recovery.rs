//! Recovery from a backend: with nothing else, and under a registry that knows less than it.

use crate::world::{MIB, OTHER_VPOOL, World, range, run};
use ovs_backend::MemoryBackend;
use ovs_units::{ByteCount, ByteOffset, VdiskId};
use ovs_volume::{CreateVdisk, OnFull, Vdisk, VolumeError};
use std::rc::Rc;
use uuid::Uuid;

const SIZE: u64 = 1 << 20;
const CLUSTER: u64 = 4096;

async fn put(disk: &Vdisk, cluster: u64, byte: u8) {
    disk.write(ByteOffset(cluster * CLUSTER), vec![byte; CLUSTER as usize].into(), false).await.unwrap();
    disk.destage().await.unwrap();
}

async fn bytes(disk: &Vdisk) -> [u8; 3] {
    let data = disk.read(range(0, 3 * CLUSTER)).await.unwrap();
    [0, 1, 2].map(|cluster| data[cluster * CLUSTER as usize])
}

/// What is not known of one has nothing to do with the other.
#[test]
fn a_recovery_is_of_one_vpool() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(MIB).await;
        disk.write(ByteOffset(0), vec![1; 4096].into(), false).await.unwrap();
        let engine = world.engine();
        engine.attach_backend(OTHER_VPOOL, Rc::new(MemoryBackend::new()));
        let (id, size, properties) = (VdiskId(Uuid::from_u128(78)), ByteCount(MIB), "{}".into());
        let (vpool, base, on_full) = (OTHER_VPOOL, None, OnFull::NoSpace);
        let request = CreateVdisk { id, vpool, size, properties, base, on_full };
        let other = engine.create_vdisk(request).await.unwrap();
        other.write(ByteOffset(0), vec![1; 4096].into(), false).await.unwrap();
        engine.adopt_vdisk(world.vpool(), disk.id()).await.unwrap();
        assert!(matches!(disk.scrub().await, Err(VolumeError::Refused(_))));
        other.scrub().await.unwrap();
        engine.finish_recovery(OTHER_VPOOL).await.unwrap();
        assert!(matches!(disk.scrub().await, Err(VolumeError::Refused(_))));
        engine.finish_recovery(world.vpool()).await.unwrap();
        disk.scrub().await.unwrap();
    });
}

#[test]
fn a_vdisk_is_rebuilt_from_its_backend_alone() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        let mut snapshots = Vec::new();
        for round in 1..=5u8 {
            disk.write(ByteOffset(0), vec![round; 2 * MIB as usize].into(), false).await.unwrap();
            disk.zero(range(u64::from(round) * 4096, 4096), false).await.unwrap();
            snapshots.push(world.snapshot(&disk, &format!("s{round}")).await);
            if round % 2 == 0 {
                disk.destage().await.unwrap();
            }
        }
        disk.set_properties("{\"name\":\"x\"}".into()).await.unwrap();
        disk.resize(ByteCount(128 * MIB)).await.unwrap();
        disk.destage().await.unwrap();
        world.lose_local_state().await;
        let disk = world.open(disk.id()).await;
        assert_eq!(disk.size(), ByteCount(128 * MIB));
        assert_eq!(&disk.properties()[..], b"{\"name\":\"x\"}");
        for (index, id) in snapshots.iter().enumerate() {
            let round = index as u8 + 1;
            let back = disk.read_snapshot(*id, range(0, 2 * MIB)).await.unwrap();
            for (cluster, bytes) in back.chunks(4096).enumerate() {
                let expected = if cluster == usize::from(round) { 0 } else { round };
                assert!(bytes.iter().all(|byte| *byte == expected), "snapshot {round}, cluster {cluster}");
            }
        }
    });
}

/// What was deleted does not come back with the journal that tells of it.
#[test]
fn a_recovered_vdisk_has_the_snapshots_that_were_not_deleted() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        disk.write(ByteOffset(0), vec![1; 4096].into(), false).await.unwrap();
        let (deleted, kept) = (world.snapshot(&disk, "deleted").await, world.snapshot(&disk, "kept").await);
        disk.delete_snapshot(deleted).await.unwrap();
        world.lose_local_state().await;
        let found = world.open(disk.id()).await.snapshots();
        assert_eq!(found.iter().map(|snapshot| snapshot.id).collect::<Vec<_>>(), [kept]);
    });
}

/// A snapshot's own record may be there without its data, which was on the host alone.
#[test]
fn of_a_snapshot_it_is_told_whether_its_data_was_found() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        disk.write(ByteOffset(0), vec![1; 4096].into(), false).await.unwrap();
        world.snapshot(&disk, "there").await;
        disk.destage().await.unwrap();
        world.set_room(0);
        disk.write(ByteOffset(0), vec![2; 4096].into(), false).await.unwrap();
        world.snapshot(&disk, "lost").await;
        world.crash_into_nothing().await;
        let found = world.discover().await;
        let told: Vec<_> =
            found[0].snapshots.iter().map(|found| (found.name.as_str(), found.on_backend)).collect();
        assert_eq!(told, [("there", true), ("lost", false)]);
    });
}

/// Others' folders are nothing to us; data without a journal may be a vDisk that has lost it.
#[test]
fn what_is_no_vdisk_is_not_found() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(MIB).await;
        for name in
            ["v/lost.found/x", "v/00000000000000000000000000000077/s/0000000000000001-0000000000000001"]
        {
            world.put_foreign(name).await;
        }
        let found = world.discover().await;
        let told = found.iter().map(|found| (found.id, found.problem.is_some()));
        assert_eq!(told.collect::<Vec<_>>(), [(disk.id(), false), (VdiskId(Uuid::from_u128(0x77)), true)]);
    });
}

/// Its parent learns of the snapshot with the clone, and keeps it for that clone alone.
#[test]
fn a_clone_that_the_registry_does_not_know_finds_its_snapshot() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(SIZE).await;
        put(&disk, 0, 1).await;
        let early = world.snapshot(&disk, "early").await;
        let before = world.registry().await;
        put(&disk, 1, 2).await;
        let snapshot = world.snapshot(&disk, "s").await;
        world.snapshot(&disk, "late").await;
        let clone = world.clone_of(&disk, snapshot, SIZE).await;
        put(&clone, 2, 3).await;
        put(&disk, 0, 4).await;
        world.crash_into_registry(before).await;
        world.engine().adopt_vdisk(world.vpool(), clone.id()).await.unwrap();
        world.engine().finish_recovery(world.vpool()).await.unwrap();
        let (disk, clone) = (world.open(disk.id()).await, world.open(clone.id()).await);
        assert_eq!((bytes(&disk).await, bytes(&clone).await), ([4, 2, 0], [1, 2, 3]));
        let told: Vec<_> =
            disk.snapshots().iter().map(|told| (told.name.to_string(), told.clone_count)).collect();
        let expected = [("early", 0), ("s", 1), ("late", 0)];
        assert_eq!(told, expected.map(|(name, clones)| (name.to_owned(), clones)));
        disk.delete_snapshot(early).await.unwrap();
        disk.delete_snapshot(snapshot).await.unwrap();
        disk.scrub().await.unwrap();
        assert_eq!(bytes(&clone).await, [1, 2, 3]);
    });
}

/// Both the registry and the backend are of before it.
#[test]
fn a_clone_of_a_snapshot_that_is_nowhere_is_told_as_damaged() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(SIZE).await;
        put(&disk, 0, 1).await;
        let (before, there) = (world.registry().await, world.objects().await);
        let snapshot = world.snapshot(&disk, "s").await;
        let clone = world.clone_of(&disk, snapshot, SIZE).await;
        put(&clone, 0, 2).await;
        put(&disk, 1, 3).await;
        let journal = format!("v/{}/j/", disk.id().0.simple());
        for name in world.objects().await {
            if name.starts_with(&journal) && !there.contains(&name) {
                world.remove_object(&name).await;
            }
        }
        world.crash_into_registry(before).await;
        let refused = world.engine().adopt_vdisk(world.vpool(), clone.id()).await;
        let is_told = |why: &str| why.contains(&format!("no snapshot {snapshot}"));
        assert!(matches!(&refused, Err(VolumeError::Damaged(why)) if is_told(why)), "{refused:?}");
        assert_eq!(bytes(&world.open(disk.id()).await).await, [1, 0, 0]);
    });
}
