//! Recovery under a registry that knows less than the backend.

use crate::world::{World, range, run};
use ovs_units::ByteOffset;
use ovs_volume::{Vdisk, VolumeError};

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
