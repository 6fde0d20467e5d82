//! Copies of the map on the backend, and the journal that they replace.

use crate::world::{MIB, World, range, run};
use ovs_units::{ByteCount, ByteOffset};
use ovs_volume::Vdisk;
use std::time::Duration;

/// Writes and sends out a cluster at a time; comes back when the backend has a copy of the map, and a short journal.
async fn fill_until_copied(world: &World, disk: &Vdisk) -> u64 {
    let id = disk.id().0.simple().to_string();
    for index in 0..200u64 {
        disk.write(ByteOffset(index * 4096), vec![index as u8 + 1; 4096].into(), false).await.unwrap();
        disk.destage().await.unwrap();
        let objects = world.objects().await;
        let is_first_there = objects.contains(&format!("v/{id}/j/0000000000000001-0000000000000000"));
        let roots = objects.iter().filter(|name| is_root_of(&id, name)).count();
        if roots == 2 && !is_first_there {
            return index + 1;
        }
        tokio::task::yield_now().await;
    }
    panic!("the map is never copied");
}

fn is_root_of(id: &str, name: &str) -> bool {
    name.strip_prefix(&format!("v/{id}/c/")).is_some_and(|copy| copy.split('-').count() == 3)
}

async fn check_filled(disk: &Vdisk, clusters: u64) {
    for index in 0..clusters {
        let read = disk.read(range(index * 4096, 4096)).await.unwrap();
        assert!(read.iter().all(|byte| *byte == index as u8 + 1), "cluster {index}");
    }
}

#[test]
fn a_copied_map_replaces_the_journal_before_it() {
    run(async {
        let mut world = World::new().await;
        world.copy_maps_every(1).await;
        let disk = world.create(8 * MIB).await;
        disk.write(ByteOffset(4 * MIB), vec![9; 4096].into(), false).await.unwrap();
        let snapshot = world.snapshot(&disk, "s").await;
        let child = world.clone_of(&disk, snapshot, 8 * MIB).await;
        disk.resize(ByteCount(16 * MIB)).await.unwrap();
        disk.write(ByteOffset(4 * MIB), vec![8; 4096].into(), false).await.unwrap();
        let clusters = fill_until_copied(&world, &disk).await;
        child.write(ByteOffset(0), vec![7; 4096].into(), false).await.unwrap();
        let filled_child = fill_until_copied(&world, &child).await;
        for life in 0..3 {
            match life {
                0 => world.close_and_reopen().await,
                1 => world.crash_and_reopen().await,
                _ => world.lose_local_state().await,
            }
            let disk = world.open(disk.id()).await;
            let child = world.open(child.id()).await;
            check_filled(&disk, clusters).await;
            check_filled(&child, filled_child).await;
            assert_eq!(disk.size(), ByteCount(16 * MIB));
            assert_eq!(disk.read(range(4 * MIB, 1)).await.unwrap()[..], [8]);
            assert_eq!(child.read(range(4 * MIB, 1)).await.unwrap()[..], [9]);
            assert_eq!(disk.snapshots().len(), 1);
            assert_eq!(disk.snapshots()[0].clone_count, 1);
        }
        let disk = world.open(disk.id()).await;
        disk.rollback(snapshot).await.unwrap();
        world.lose_local_state().await;
        let disk = world.open(disk.id()).await;
        assert_eq!(disk.read(range(0, 1)).await.unwrap()[..], [0]);
        assert_eq!(disk.read(range(4 * MIB, 1)).await.unwrap()[..], [9]);
        // Pages that came with the copy are swept like others.
        disk.write(ByteOffset(0), vec![6; 4096].into(), false).await.unwrap();
        disk.destage().await.unwrap();
        assert!(world.engine().sweep_pages().await.unwrap() > 0);
        // And all of it goes with the vDisk.
        let child = world.open(child.id()).await;
        world.delete(&child).await;
        world.delete(&disk).await;
        world.settle().await;
        assert_eq!(world.objects().await, Vec::<String>::new());
    });
}

#[test]
fn a_damaged_copy_of_the_map_costs_nothing_and_two_are_told() {
    run(async {
        let mut world = World::new().await;
        world.copy_maps_every(3).await;
        let disk = world.create(8 * MIB).await;
        let clusters = fill_until_copied(&world, &disk).await;
        world.engine().close(Duration::from_secs(10)).await.unwrap();
        let id = disk.id().0.simple().to_string();
        let objects = world.objects().await;
        let roots: Vec<String> = objects.iter().filter(|name| is_root_of(&id, name)).cloned().collect();
        let [older, newer] = &roots[..] else { panic!("{roots:?}") };
        // One part of the newer copy.
        let part = objects.iter().find(|name| name.starts_with(newer.as_str()) && *name != newer).unwrap();
        world.spoil(std::slice::from_ref(part)).await;
        world.crash_into_nothing().await;
        let found = world.discover().await;
        assert_eq!(found[0].problem, None);
        world.engine().adopt_vdisk(world.vpool(), disk.id()).await.unwrap();
        check_filled(&world.open(disk.id()).await, clusters).await;
        // Both roots.
        world.engine().close(Duration::from_secs(10)).await.unwrap();
        world.spoil(&[older.clone(), newer.clone()]).await;
        world.crash_into_nothing().await;
        let found = world.discover().await;
        let problem = found[0].problem.clone().unwrap();
        assert!(problem.contains("/c/"), "{problem}");
    });
}

/// Of epochs that are over, as what crashes leave is; and the journal before them is gone.
#[test]
fn the_copies_that_count_stay_when_crashes_are_cleared_up_after() {
    run(async {
        let mut world = World::new().await;
        world.copy_maps_every(1).await;
        let disk = world.create(8 * MIB).await;
        let clusters = fill_until_copied(&world, &disk).await;
        world.copy_maps_every(1 << 30).await;
        let disk = world.open(disk.id()).await;
        disk.write(ByteOffset(4 * MIB), vec![9; 4096].into(), false).await.unwrap();
        disk.scrub().await.unwrap();
        let id = disk.id().0.simple().to_string();
        assert_eq!(world.objects().await.iter().filter(|name| is_root_of(&id, name)).count(), 2);
        world.lose_local_state().await;
        check_filled(&world.open(disk.id()).await, clusters).await;
    });
}
