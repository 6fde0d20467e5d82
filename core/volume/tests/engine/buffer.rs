//! From the write buffer to the backend: after a crash, with a full buffer, with a full backend.

use crate::world::{MIB, World, range, run};
use ovs_units::{ByteCount, ByteOffset};
use ovs_volume::{OnFull, VdiskState, VolumeError};
use std::time::Duration;

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
            let destaged = tokio::time::timeout(Duration::from_secs(1), disk.destage()).await;
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
