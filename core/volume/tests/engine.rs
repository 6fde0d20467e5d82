//! The engine through its public interface: one small case per behaviour.

mod world;

use ovs_units::{ByteCount, ByteOffset, ByteRange, Name, SnapshotId};
use ovs_volume::{Extent, OnFull, VdiskState, VolumeError};
use world::{MIB, World, name, range, run};

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
