//! The engine through its public interface: one small case per behaviour.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

mod cache;
mod limits;
mod maps;
mod pages;
mod recovery;
mod scrub;
mod world;

use ovs_backend::MemoryBackend;
use ovs_units::{ByteCount, ByteOffset, ByteRange, Name, SnapshotId, VdiskId, VpoolId};
use ovs_volume::{CreateVdisk, Extent, OnFull, VdiskState, VolumeError};
use std::{rc::Rc, time::Duration};
use uuid::Uuid;
use world::{MIB, World, name, range, run};

const OTHER_VPOOL: VpoolId = VpoolId(Uuid::from_u128(99));

#[test]
fn what_is_written_is_read_back_at_any_alignment() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        for (offset, length, fill) in
            [(0, 4096, 1), (100, 50, 2), (4090, 20, 3), (8192, 3 * MIB, 4), (5000, 9000, 5)]
        {
            disk.write(ByteOffset(offset), vec![fill; length as usize].into(), false).await.unwrap();
            let back = disk.read(range(offset, length)).await.unwrap();
            assert!(back.iter().all(|byte| *byte == fill), "{length} bytes at {offset}");
        }
        assert_eq!(disk.read(range(99, 2)).await.unwrap()[..], [1, 2]);
        assert!(disk.read(range(32 * MIB, MIB)).await.unwrap().iter().all(|byte| *byte == 0));
        disk.zero(range(4000, 5000), false).await.unwrap();
        assert_eq!(disk.read(range(3999, 3)).await.unwrap()[..], [1, 0, 0]);
        assert_eq!(disk.read(range(8999, 2)).await.unwrap()[..], [0, 5]);
        world.crash_and_reopen().await;
        let disk = world.open(disk.id()).await;
        assert_eq!(disk.read(range(3999, 3)).await.unwrap()[..], [1, 0, 0]);
        assert_eq!(disk.read(range(8999, 2)).await.unwrap()[..], [0, 5]);
    });
}

#[test]
fn an_unflushed_write_outlives_the_process() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        for index in 0..500u64 {
            disk.write(ByteOffset(index * 8192), vec![index as u8; 4096].into(), false).await.unwrap();
        }
        for round in 0..3 {
            world.crash_and_reopen().await;
            let disk = world.open(disk.id()).await;
            for index in 0..500u64 {
                let back = disk.read(range(index * 8192, 4096)).await.unwrap();
                assert!(back.iter().all(|byte| *byte == index as u8), "cluster {index}, round {round}");
            }
        }
    });
}

#[test]
fn a_deletion_cut_short_is_finished_at_the_next_start() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        disk.write(ByteOffset(0), vec![1; 4096].into(), false).await.unwrap();
        disk.destage().await.unwrap();
        world.backend_takes_deletions(false);
        world.delete(&disk).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_ne!(world.objects().await, Vec::<String>::new());
        world.backend_takes_deletions(true);
        world.crash_and_reopen().await;
        world.settle().await;
        assert_eq!(world.objects().await, Vec::<String>::new());
    });
}

/// It is taken up again by the vPool that it is of.
#[test]
fn a_deletion_cut_short_is_nothing_to_another_vpool() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        disk.write(ByteOffset(0), vec![1; 4096].into(), false).await.unwrap();
        disk.destage().await.unwrap();
        world.backend_takes_deletions(false);
        world.delete(&disk).await;
        world.crash_and_reopen().await;
        world.wait_ms(50).await;
        world.backend_takes_deletions(true);
        world.engine().attach_backend(OTHER_VPOOL, Rc::new(MemoryBackend::new()));
        world.wait_ms(50).await;
        assert_ne!(world.objects().await, Vec::<String>::new());
        world.crash_and_reopen().await;
        world.settle().await;
        assert_eq!(world.objects().await, Vec::<String>::new());
    });
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

/// Its data will never be on the backend; nobody waits for that.
#[test]
fn a_deleted_vdisk_that_is_still_held_sends_nothing_out() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        disk.write(ByteOffset(0), vec![1; 4096].into(), false).await.unwrap();
        world.delete(&disk).await;
        let sent = tokio::time::timeout(Duration::from_secs(5), disk.destage()).await;
        assert!(matches!(sent, Ok(Err(VolumeError::Offline(_)))), "{sent:?}");
        world.settle().await;
        assert_eq!(world.objects().await, Vec::<String>::new());
    });
}

#[test]
fn data_moves_to_the_backend_and_is_found_there() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        for index in 0..3000u64 {
            let at = (index * 7919) % 16384;
            disk.write(ByteOffset(at * 4096), vec![index as u8 | 1; 4096].into(), false).await.unwrap();
        }
        disk.destage().await.unwrap();
        assert_eq!(disk.stats().buffered, ByteCount(0));
        assert_eq!(disk.stats().mapped, ByteCount(3000 * 4096));
        world.close_and_reopen().await;
        let disk = world.open(disk.id()).await;
        for index in 0..3000u64 {
            let at = (index * 7919) % 16384;
            let back = disk.read(range(at * 4096, 4096)).await.unwrap();
            assert!(back.iter().all(|byte| *byte == index as u8 | 1), "cluster {at}");
        }
        assert_eq!(disk.stats().state, VdiskState::Ok);
    });
}

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
        let check = async |disk: &ovs_volume::Vdisk, clone: &ovs_volume::Vdisk| {
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

#[test]
fn closing_with_data_in_the_buffer_sends_it_out() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        disk.write(ByteOffset(0), vec![3; 2 * MIB as usize].into(), false).await.unwrap();
        world.crash_and_reopen().await;
        // Nothing of this life has written yet: closing has to begin the epoch itself.
        world.open(disk.id()).await;
        let begun = tokio::time::Instant::now();
        world.close_and_reopen().await;
        assert!(begun.elapsed().as_secs() < 5, "closing waited for its patience");
        let disk = world.open(disk.id()).await;
        assert_eq!(disk.stats().mapped, ByteCount(2 * MIB));
        assert_eq!(disk.stats().state, VdiskState::Ok);
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

/// Beside what is asked for there may be damage.
#[test]
fn no_more_is_read_than_was_asked_for() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(MIB).await;
        disk.write(ByteOffset(4096), vec![1; 3 * 4096].into(), false).await.unwrap();
        disk.destage().await.unwrap();
        let scos: Vec<String> =
            world.objects().await.into_iter().filter(|name| name.contains("/s/")).collect();
        // In the second of its three clusters.
        world.spoil(&scos).await;
        disk.write(ByteOffset(0), vec![2; 4096].into(), false).await.unwrap();
        assert_eq!(disk.read(range(4095, 2)).await.unwrap()[..], [2, 1]);
        assert!(matches!(disk.read(range(8192, 1)).await, Err(VolumeError::Damaged(_))));
    });
}

#[test]
fn holes_are_told_apart_from_data() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        disk.write(ByteOffset(8192), vec![1; 8192].into(), false).await.unwrap();
        let expected = |disk: ovs_volume::Vdisk| async move {
            let extents = disk.extents(range(1, 30_000), 10).await.unwrap();
            let told: Vec<(u64, bool)> =
                extents.iter().map(|Extent { length, allocated }| (length.0, *allocated)).collect();
            assert_eq!(told, [(8191, false), (8192, true), (13617, false)]);
            for limit in 0..4 {
                assert_eq!(disk.extents(range(1, 30_000), limit).await.unwrap(), extents[..limit]);
            }
        };
        expected(disk.clone()).await;
        disk.destage().await.unwrap();
        expected(disk.clone()).await;
        world.crash_and_reopen().await;
        expected(world.open(disk.id()).await).await;
    });
}

#[test]
fn bad_requests_change_nothing() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(MIB).await;
        let refused = |result: Result<(), VolumeError>| {
            assert!(matches!(result, Err(VolumeError::Refused(_) | VolumeError::NoSpace(_))), "{result:?}")
        };
        refused(disk.write(ByteOffset(MIB - 1), vec![1, 2].into(), false).await);
        refused(disk.zero(ByteRange { start: ByteOffset(u64::MAX), length: ByteCount(1) }, false).await);
        refused(disk.read(range(MIB, 1)).await.map(drop));
        refused(disk.resize(ByteCount(5)).await);
        refused(disk.resize(ByteCount(65 << 40)).await);
        let snapshot = world.snapshot(&disk, "s").await;
        refused(disk.snapshot(SnapshotId(uuid::Uuid::from_u128(77)), name("s")).await.map(drop));
        assert!(matches!(
            disk.rollback(SnapshotId(uuid::Uuid::from_u128(9))).await,
            Err(VolumeError::NotFound(_))
        ));
        disk.delete_snapshot(snapshot).await.unwrap();
        assert!(matches!(disk.delete_snapshot(snapshot).await, Err(VolumeError::NotFound(_))));
        assert_eq!(disk.stats().sequence.0, 0);
        let _: Name = name("s");
        let _ = OnFull::NoSpace;
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

/// Parts of one cluster, and the whole of it, at once: each is in or behind another, and none is lost.
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
fn writes_to_parts_of_one_cluster_at_once_all_count() {
    run(async {
        let mut world = World::new().await;
        let mut disk = world.create(MIB).await;
        for round in 1..=3u8 {
            disk.write(ByteOffset(0), vec![round; 16384].into(), false).await.unwrap();
            // What is read to be changed comes from the disk, and the others come in between.
            world.crash_and_reopen().await;
            disk = world.open(disk.id()).await;
            let write = |offset: u64, length: usize| {
                disk.write(ByteOffset(offset), vec![100 + round; length].into(), false)
            };
            let (a, b, c, whole) =
                tokio::join!(write(0, 100), write(100, 1000), write(4000, 200), write(8192, 4096));
            [a, b, c, whole].into_iter().for_each(|written| written.unwrap());
            let (part, whole) = tokio::join!(
                write(12288 + 500, 9),
                disk.write(ByteOffset(12288), vec![7; 4096].into(), false)
            );
            part.and(whole).unwrap();
            let back = disk.read(range(0, 16384)).await.unwrap();
            for (at, byte) in back.iter().enumerate() {
                let is_in_part = (12788..12797).contains(&at);
                let expected: &[u8] = match at {
                    0..1100 | 4000..4200 | 8192..12288 => &[100 + round],
                    0..12288 => &[round],
                    _ if is_in_part => &[7, 100 + round],
                    _ => &[7],
                };
                assert!(expected.contains(byte), "round {round}, byte {at}: {byte}");
            }
        }
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

/// Whole pages of the map go without being read.
#[test]
fn zeroes_over_whole_map_pages_that_are_not_in_memory() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(16 * MIB).await;
        disk.write(ByteOffset(0), vec![7; 10 << 20].into(), false).await.unwrap();
        disk.destage().await.unwrap();
        world.engine().close(std::time::Duration::from_secs(10)).await.unwrap();
        world.crash_and_reopen().await;
        let disk = world.open(disk.id()).await;
        disk.zero(range(MIB, 8 * MIB), false).await.unwrap();
        disk.destage().await.unwrap();
        for (at, byte) in [(0, 7), (MIB - 4096, 7), (MIB, 0), (5 * MIB, 0), (9 * MIB - 4096, 0), (9 * MIB, 7)]
        {
            assert_eq!(disk.read(range(at, 4096)).await.unwrap()[..], [byte; 4096], "at {at}");
        }
    });
}

#[test]
fn requests_are_counted() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(MIB).await;
        for length in [4096, 8192] {
            disk.write(ByteOffset(0), vec![1; length].into(), false).await.unwrap();
        }
        disk.zero(range(0, 100), false).await.unwrap();
        for length in [1, 10, 100] {
            disk.read(range(0, length)).await.unwrap();
        }
        disk.flush().await.unwrap();
        let stats = disk.stats();
        assert_eq!((stats.reads, stats.read_bytes), (3, 111));
        assert_eq!((stats.writes, stats.written_bytes), (3, 12288));
        assert_eq!(stats.flushes, 1);
    });
}

/// A sixteenth of a slot each, so that slots fill up well; zeros are one, however many.
#[test]
fn a_write_is_cut_into_records() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        disk.write(ByteOffset(0), vec![1; MIB as usize].into(), false).await.unwrap();
        assert_eq!(disk.stats().sequence.0, 8);
        disk.write(ByteOffset(0), vec![1; MIB as usize / 8].into(), false).await.unwrap();
        assert_eq!(disk.stats().sequence.0, 9);
        disk.zero(range(0, 64 * MIB), false).await.unwrap();
        assert_eq!(disk.stats().sequence.0, 10);
    });
}

/// It goes out in parts: what of it has left makes room for the rest.
#[test]
fn requests_larger_than_the_write_buffer_go_through() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(128 * MIB).await;
        let write = |at: u64, fill: u8| disk.write(ByteOffset(at * MIB), vec![fill; 40 << 20].into(), false);
        let (one, other) = tokio::join!(write(0, 1), write(64, 2));
        one.unwrap();
        other.unwrap();
        for (at, fill) in [(0, 1), (40 * MIB - 4096, 1), (64 * MIB, 2), (104 * MIB - 4096, 2)] {
            assert_eq!(disk.read(range(at, 4096)).await.unwrap()[..], [fill; 4096], "at {at}");
        }
    });
}

#[test]
fn a_full_buffer_stalls_or_refuses_and_goes_on() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(256 * MIB).await;
        world.backend_takes_data(false);
        disk.set_on_full(OnFull::NoSpace);
        let mut written = 0;
        let error = loop {
            match disk.write(ByteOffset(written), vec![5; 65536].into(), false).await {
                Ok(()) => written += 65536,
                Err(error) => break error,
            }
            assert!(written < 256 * MIB, "the buffer never gets full");
        };
        assert!(matches!(error, VolumeError::NoSpace(_)), "{error:?}");
        assert!(disk.read(range(0, written)).await.unwrap().iter().all(|byte| *byte == 5));
        disk.set_on_full(OnFull::Stall { timeout: Some(Duration::from_millis(200)) });
        let error = disk.write(ByteOffset(written), vec![5; 65536].into(), false).await.unwrap_err();
        assert!(matches!(error, VolumeError::NoSpace(_)), "{error:?}");
        world.backend_takes_data(true);
        disk.destage().await.unwrap();
        disk.write(ByteOffset(written), vec![6; 65536].into(), false).await.unwrap();
        // A stalled write waits and then succeeds.
        world.backend_takes_data(false);
        disk.set_on_full(OnFull::Stall { timeout: None });
        let stalled = {
            let disk = disk.clone();
            tokio::task::spawn_local(async move {
                for index in 0..64u64 {
                    disk.write(ByteOffset(index * MIB), vec![8; MIB as usize].into(), false).await?;
                }
                Ok::<(), VolumeError>(())
            })
        };
        world.wait(2).await;
        assert!(!stalled.is_finished());
        world.backend_takes_data(true);
        stalled.await.unwrap().unwrap();
        world.crash_and_reopen().await;
        let disk = world.open(disk.id()).await;
        assert!(disk.read(range(0, 64 * MIB)).await.unwrap().iter().all(|byte| *byte == 8));
    });
}

#[test]
fn what_a_full_backend_took_is_not_sent_again() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        disk.write(ByteOffset(0), vec![3; 3 * MIB as usize].into(), false).await.unwrap();
        // Each retry finds room for one object more.
        for _ in 0..2 {
            world.set_room(1);
            world.wait(1).await;
            disk.flush().await.unwrap();
            let destaged = tokio::time::timeout(std::time::Duration::from_secs(1), disk.destage()).await;
            assert!(destaged.is_err());
        }
        world.set_room(u64::MAX);
        disk.destage().await.unwrap();
        let scos = world.objects().await.iter().filter(|name| name.contains("/s/")).count();
        assert_eq!(scos, 3);
        assert!(disk.read(range(0, 3 * MIB)).await.unwrap().iter().all(|byte| *byte == 3));
    });
}

/// It would be named after an epoch that is over, as what crashes leave is.
#[test]
fn what_was_put_in_an_older_epoch_is_put_again() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(64 * MIB).await;
        disk.write(ByteOffset(0), vec![1; 4096].into(), false).await.unwrap();
        let gate = world.hold_next_put();
        let leaving = tokio::task::spawn_local({
            let disk = disk.clone();
            async move { disk.destage().await }
        });
        world.until_held().await;
        world.begin_an_epoch(&disk).await;
        drop(gate);
        leaving.await.unwrap().unwrap();
        assert_eq!(disk.scrub().await.unwrap().strays_removed, 1);
        assert_eq!(disk.read(range(0, 1)).await.unwrap()[..], [1]);
    });
}

/// Writes and sends out a cluster at a time; comes back when the backend has a copy of the map, and a short journal.
#[allow(clippy::unwrap_used, reason = "a failure here is a failed case")]
async fn fill_until_copied(world: &World, disk: &ovs_volume::Vdisk) -> u64 {
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

#[allow(clippy::unwrap_used, reason = "a failure here is a failed case")]
async fn check_filled(disk: &ovs_volume::Vdisk, clusters: u64) {
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
        world.engine().close(std::time::Duration::from_secs(10)).await.unwrap();
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
        world.engine().close(std::time::Duration::from_secs(10)).await.unwrap();
        world.spoil(&[older.clone(), newer.clone()]).await;
        world.crash_into_nothing().await;
        let found = world.discover().await;
        let problem = found[0].problem.clone().unwrap();
        assert!(problem.contains("/c/"), "{problem}");
    });
}
