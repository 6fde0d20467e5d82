//! Maps that are larger than the memory for them, and sweeps of the pages that nothing needs.

use crate::world::{MIB, World, range, run};
use ovs_units::ByteOffset;
use ovs_volume::{Vdisk, VdiskState};

/// Of one leaf each.
const FAR: u64 = 2 * MIB;

/// A cluster in each of so many leaves, sent out.
async fn spread(disk: &Vdisk, leaves: u64, byte: u8) {
    for leaf in 0..leaves {
        disk.write(ByteOffset(leaf * FAR), vec![byte; 4096].into(), false).await.unwrap();
    }
    disk.destage().await.unwrap();
}

async fn check(disk: &Vdisk, leaves: u64, byte: u8) {
    for leaf in 0..leaves {
        assert_eq!(disk.read(range(leaf * FAR, 1)).await.unwrap()[..], [byte], "leaf {leaf}");
    }
}

/// Also those of vDisks that send out nothing any more are checkpointed, and give their room to the others.
#[test]
fn changed_pages_of_all_take_half_of_the_room_at_most() {
    run(async {
        const ROOM: u64 = 4 * MIB;
        let mut world = World::new().await;
        world.shrink_maps(ROOM, 1000).await;
        let mut disks = Vec::new();
        for byte in 1..9 {
            let disk = world.create(512 * MIB).await;
            spread(&disk, 150, byte).await;
            disks.push((disk, byte));
        }
        for _ in 0..500 {
            if world.engine().stats().maps.changed_bytes <= ROOM / 2 {
                break;
            }
            world.wait_ms(10).await;
        }
        let maps = world.engine().stats().maps;
        assert!(maps.changed_bytes <= ROOM / 2 && maps.resident_bytes <= ROOM + MIB, "{maps:?}");
        assert_eq!(maps.loads, 0, "{maps:?}");
        for _ in 0..2 {
            for (disk, byte) in &disks {
                check(disk, 150, *byte).await;
            }
        }
        assert!(world.engine().stats().maps.resident_bytes <= ROOM + MIB);
    });
}

/// While they cannot be stored they take the room once and no more: what would change others waits in the write buffer.
#[test]
fn changed_pages_that_cannot_be_stored_have_a_bound() {
    run(async {
        const ROOM: u64 = MIB;
        let mut world = World::new().await;
        world.shrink_maps(ROOM, 4).await;
        let (disk, other) = (world.create(4096 * MIB).await, world.create(4096 * MIB).await);
        spread(&other, 20, 9).await;
        world.limit_page_store(Some(0));
        let changed = || world.engine().stats().maps.changed_bytes;
        let mut leaf = 0;
        // Buffered, not sent out: that it does not leave is what is looked at.
        while disk.stats().state == VdiskState::Ok && leaf < 1500 {
            disk.write(ByteOffset(leaf * FAR), vec![1; 4096].into(), false).await.unwrap();
            leaf += 1;
            if leaf % 10 == 0 {
                world.wait(1).await;
            }
        }
        let VdiskState::Stalled(reason) = disk.stats().state else {
            panic!("{:?} after {leaf}", disk.stats().state)
        };
        assert!(reason.contains("cannot be stored"), "{reason}");
        assert!(changed() > ROOM && changed() < 2 * ROOM, "{}", changed());
        let before = changed();
        for more in 0..100 {
            disk.write(ByteOffset((leaf + more) * FAR), vec![1; 4096].into(), false).await.unwrap();
        }
        world.wait(1).await;
        assert_eq!(changed(), before);
        world.limit_page_store(None);
        disk.destage().await.unwrap();
        assert_eq!(disk.stats().state, VdiskState::Ok);
        assert!(changed() <= ROOM, "{}", changed());
        check(&disk, leaf + 100, 1).await;
        check(&other, 20, 9).await;
    });
}

/// A checkpoint that fails halfway: what it has stored is named by nothing, and goes with the next sweep, which comes soon.
#[test]
fn what_a_failed_checkpoint_has_stored_goes() {
    run(async {
        let mut world = World::new().await;
        world.shrink_maps(4 * MIB, 1000).await;
        let disk = world.create(4096 * MIB).await;
        spread(&disk, 20, 1).await;
        world.limit_page_store(Some(300));
        // Half of the room is 512 leaves, of which the first 256 are stored at once.
        spread(&disk, 600, 2).await;
        world.wait(1).await;
        let found = world.stored_pages();
        assert!((256..400).contains(&found), "{found}");
        world.wait(130).await;
        assert!(world.stored_pages() < 50, "{}", world.stored_pages());
        world.limit_page_store(None);
        // The next checkpoint has stored all of them, once.
        spread(&disk, 600, 3).await;
        world.close_and_reopen().await;
        world.wait(130).await;
        world.engine().sweep_pages().await.unwrap();
        let left = world.stored_pages();
        assert!((600..650).contains(&left), "{left}");
        check(&world.open(disk.id()).await, 600, 3).await;
    });
}

#[test]
fn map_pages_that_nothing_needs_are_swept() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        let mut snapshots = Vec::new();
        for round in 1..=4u8 {
            let disk = world.open(disk.id()).await;
            disk.write(ByteOffset(0), vec![round; 4 * MIB as usize].into(), false).await.unwrap();
            if round % 2 == 0 {
                snapshots.push((world.snapshot(&disk, &format!("s{round}")).await, round));
            }
            world.close_and_reopen().await;
        }
        let disk = world.open(disk.id()).await;
        // Rounds 1 and 3 are in no map any more: two leaves and what leads to them, each.
        assert!(world.engine().sweep_pages().await.unwrap() >= 10);
        assert_eq!(world.engine().sweep_pages().await.unwrap(), 0);
        let clone = world.clone_of(&disk, snapshots[0].0, 64 * MIB).await;
        world.close_and_reopen().await;
        let (disk, clone) = (world.open(disk.id()).await, world.open(clone.id()).await);
        for (id, round) in snapshots {
            let back = disk.read_snapshot(id, range(0, 4 * MIB)).await.unwrap();
            assert!(back.iter().all(|byte| *byte == round));
        }
        assert!(clone.read(range(0, 4 * MIB)).await.unwrap().iter().all(|byte| *byte == 2));
    });
}

/// What a clone's checkpoint has stored of its parent's map stays for the parent.
#[test]
fn pages_that_a_clone_has_stored_outlive_it() {
    run(async {
        let mut world = World::new().await;
        world.shrink_maps(512 << 10, 3).await;
        // What is stored of another map already; reading it makes the others' pages go.
        let other = world.create(16_384 * MIB).await;
        spread(&other, 6000, 9).await;
        world.close_and_reopen().await;
        let other = world.open(other.id()).await;
        let parent = world.create(64 * MIB).await;
        spread(&parent, 8, 1).await;
        let snapshot = world.snapshot(&parent, "s").await;
        let clone = world.clone_of(&parent, snapshot, 64 * MIB).await;
        for byte in 2..5 {
            spread(&clone, 1, byte).await;
        }
        world.delete(&clone).await;
        drop(clone);
        check(&other, 6000, 9).await;
        world.engine().sweep_pages().await.unwrap();
        check(&parent, 8, 1).await;
        parent.delete_snapshot(snapshot).await.unwrap();
        world.close_and_reopen().await;
        check(&world.open(parent.id()).await, 8, 1).await;
    });
}

/// Whoever began to read before the map changed loads pages that no checkpoint names any more.
#[test]
fn pages_that_are_being_read_stay() {
    run(async {
        let mut world = World::new().await;
        world.shrink_maps(256 << 10, 1).await;
        let disk = world.create(64 * MIB).await;
        let at_the_edge = range(FAR - 4096, 8192);
        let write = async |disk: &Vdisk, byte| {
            disk.write(at_the_edge.start, vec![byte; 8192].into(), false).await.unwrap();
            disk.destage().await.unwrap();
        };
        write(&disk, 1).await;
        world.close_and_reopen().await;
        let disk = world.open(disk.id()).await;
        // The first leaf is read, the second is not loaded yet.
        let gate = world.hold_next_read();
        let reading = tokio::task::spawn_local({
            let disk = disk.clone();
            async move { disk.read(at_the_edge).await }
        });
        world.until_held().await;
        // What comes first is in the layer that it reads too.
        disk.write(ByteOffset(0), vec![3; 4096].into(), false).await.unwrap();
        disk.destage().await.unwrap();
        write(&disk, 2).await;
        let engine = world.engine();
        let sweeping = tokio::task::spawn_local(async move { engine.sweep_pages().await });
        world.wait_ms(200).await;
        drop(gate);
        assert_eq!(reading.await.unwrap().unwrap()[..], [1; 8192]);
        assert!(sweeping.await.unwrap().unwrap() > 0);
        assert_eq!(disk.read(at_the_edge).await.unwrap()[..], [2; 8192]);
    });
}

/// What waits to be stored is the map as it was, whose pages nothing else may lead to any more.
#[test]
fn pages_of_a_checkpoint_that_waits_stay() {
    run(async {
        let mut world = World::new().await;
        world.shrink_maps(4 * MIB, 1000).await;
        let disk = world.create(64 * MIB).await;
        spread(&disk, 8, 1).await;
        // A clone has stored all of the map, and is gone: no record leads to those pages.
        let snapshot = world.snapshot(&disk, "s").await;
        let clone = world.clone_of(&disk, snapshot, 64 * MIB).await;
        clone.set_properties("{}".into()).await.unwrap();
        clone.scrub().await.unwrap();
        assert_eq!(world.engine().stats().maps.changed_bytes, 0);
        world.delete(&clone).await;
        drop(clone);
        disk.delete_snapshot(snapshot).await.unwrap();
        let gate = world.hold_next_sweep();
        let engine = world.engine();
        let sweeping = tokio::task::spawn_local(async move { engine.sweep_pages().await });
        world.until_held().await;
        let scrubbing = tokio::task::spawn_local({
            let disk = disk.clone();
            async move { disk.scrub().await }
        });
        world.wait_ms(200).await;
        // Every page of the map is another from here on.
        spread(&disk, 8, 2).await;
        assert!(!scrubbing.is_finished());
        drop(gate);
        sweeping.await.unwrap().unwrap();
        scrubbing.await.unwrap().unwrap();
        check(&disk, 8, 2).await;
        world.crash_and_reopen().await;
        let disk = world.open(disk.id()).await;
        check(&disk, 8, 2).await;
        let maps = world.engine().stats().maps;
        assert!(maps.loads > 0, "the checkpoint was of no use: {maps:?}");
    });
}

/// Somebody reads for longer than a sweep waits: the next one will do.
#[test]
fn a_sweep_gives_way_to_who_reads_on_and_on() {
    run(async {
        let mut world = World::new().await;
        world.shrink_maps(256 << 10, 1).await;
        let disk = world.create(64 * MIB).await;
        for byte in 1..4 {
            spread(&disk, 2, byte).await;
        }
        world.close_and_reopen().await;
        let disk = world.open(disk.id()).await;
        let gate = world.hold_next_read();
        let reading = tokio::task::spawn_local({
            let disk = disk.clone();
            async move { disk.read(range(0, 4096)).await }
        });
        world.until_held().await;
        assert_eq!(world.engine().sweep_pages().await.unwrap(), 0);
        drop(gate);
        assert_eq!(reading.await.unwrap().unwrap()[..], [3; 4096]);
        assert!(world.engine().sweep_pages().await.unwrap() > 0);
    });
}

/// Nothing but the end of the journal is read again, and what changes meanwhile has room.
#[test]
fn a_journal_that_changes_more_than_there_is_room_for_is_read() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(512 * MIB).await;
        for byte in 1..4 {
            spread(&disk, 200, byte).await;
        }
        world.shrink_maps(256 << 10, 1000).await;
        let disk = world.open(disk.id()).await;
        let maps = world.engine().stats().maps;
        assert!(maps.changed_bytes < 1 << 20, "{maps:?}");
        check(&disk, 200, 3).await;
        world.crash_and_reopen().await;
        check(&world.open(disk.id()).await, 200, 3).await;
    });
}
