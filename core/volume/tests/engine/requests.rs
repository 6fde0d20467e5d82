//! What guests ask for: reads, writes, zeros, at any alignment and at once; what is refused and what is counted.

use crate::world::{MIB, World, name, range, run};
use ovs_units::{ByteCount, ByteOffset, ByteRange, SnapshotId};
use ovs_volume::{Extent, Vdisk, VolumeError};
use std::time::Duration;
use uuid::Uuid;

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
        let expected = |disk: Vdisk| async move {
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
        refused(disk.snapshot(SnapshotId(Uuid::from_u128(77)), name("s")).await.map(drop));
        assert!(matches!(disk.rollback(SnapshotId(Uuid::from_u128(9))).await, Err(VolumeError::NotFound(_))));
        disk.delete_snapshot(snapshot).await.unwrap();
        assert!(matches!(disk.delete_snapshot(snapshot).await, Err(VolumeError::NotFound(_))));
        assert_eq!(disk.stats().sequence.0, 0);
    });
}

/// Parts of one cluster, and the whole of it, at once: each is in or behind another, and none is lost.
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

/// Whole pages of the map go without being read.
#[test]
fn zeroes_over_whole_map_pages_that_are_not_in_memory() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(16 * MIB).await;
        disk.write(ByteOffset(0), vec![7; 10 << 20].into(), false).await.unwrap();
        disk.destage().await.unwrap();
        world.engine().close(Duration::from_secs(10)).await.unwrap();
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
