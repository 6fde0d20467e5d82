//! A write buffer that fails for good: whoever may have lost an acknowledged write stays offline until that is accepted.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

use ovs_backend::MemoryBackend;
use ovs_tests::host::{Host, byte_of, create, put, run_paused};
use ovs_units::{ByteCount, ByteOffset, ByteRange, VdiskId};
use ovs_volume::{EngineConfig, Vdisk, VdiskState, VolumeError};
use std::{rc::Rc, time::Duration};
use uuid::Uuid;

const SIZE: ByteCount = ByteCount(1 << 20);

/// Nothing leaves the write buffer by itself.
fn new_host() -> Host {
    let config = EngineConfig { destage_after: Duration::from_secs(3600), ..EngineConfig::default() };
    Host { config, ..Host::new(12, Rc::new(MemoryBackend::new())) }
}

fn id(number: u128) -> VdiskId {
    VdiskId(Uuid::from_u128(number))
}

async fn write(vdisk: &Vdisk, byte: u8) -> Result<(), VolumeError> {
    vdisk.write(ByteOffset(0), vec![byte; 4096].into(), false).await
}

async fn first_byte(vdisk: &Vdisk) -> Result<u8, VolumeError> {
    let range = ByteRange::new(ByteOffset(0), ByteCount(1)).unwrap();
    Ok(vdisk.read(range).await?[0])
}

#[test]
fn a_loss_is_remembered_until_it_is_accepted() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let host = new_host();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let engine = host.start().await;
        let (hit, spared) = (create(&engine, id(10), SIZE).await, create(&engine, id(11), SIZE).await);
        write(&hit, 1).await.unwrap();
        write(&spared, 2).await.unwrap();
        hit.flush().await.unwrap();
        write(&hit, 3).await.unwrap();
        host.buffer.fail(0, 255);
        assert!(matches!(hit.flush().await, Err(VolumeError::Offline(_))));
        assert!(matches!(write(&spared, 4).await, Err(VolumeError::Offline(_))));
        // The engine has its time to record it.
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
    host.buffer.fail(0, 0);
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let engine = host.start().await;
        let open = async |number| engine.open_vdisk(Host::POOL, id(number), Host::ON_FULL).await.unwrap();
        let (hit, spared) = (open(10).await, open(11).await);
        assert_eq!(first_byte(&spared).await.unwrap(), 2);
        assert_eq!(spared.accept_loss().await.unwrap(), None);
        let VdiskState::Offline(reason) = hit.stats().state else { panic!("{:?}", hit.stats().state) };
        assert!(reason.contains("may be lost"), "{reason}");
        assert!(matches!(first_byte(&hit).await, Err(VolumeError::Offline(_))));
        assert!(matches!(write(&hit, 5).await, Err(VolumeError::Offline(_))));
        assert_eq!(hit.accept_loss().await.unwrap(), Some(reason));
        assert!(matches!(first_byte(&hit).await, Ok(1 | 3)));
        write(&hit, 5).await.unwrap();
        hit.flush().await.unwrap();
    });
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let engine = host.start().await;
        let hit = engine.open_vdisk(Host::POOL, id(10), Host::ON_FULL).await.unwrap();
        assert_eq!(first_byte(&hit).await.unwrap(), 5);
    });
}

/// Each slot that fails is lost until the next start, and nothing else is: the last ones are not begun.
#[test]
fn failed_slots_are_done_without_while_there_are_others() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let host = new_host();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let engine = host.start().await;
        let vdisk = create(&engine, id(10), SIZE).await;
        for failed in 1..=6 {
            host.buffer.fail(1, 0);
            write(&vdisk, failed).await.unwrap();
            assert_eq!(engine.stats().buffer_failed_slots, u64::from(failed));
            assert_eq!(first_byte(&vdisk).await.unwrap(), failed);
            vdisk.flush().await.unwrap();
        }
        host.buffer.fail(1, 0);
        assert!(matches!(write(&vdisk, 7).await, Err(VolumeError::Offline(_))));
    });
}

/// A segment whose sync failed keeps its records, which were written again elsewhere. The next process finds both, and may
/// serve the former: until it has written them again itself, a sync that works says nothing about them.
#[test]
fn what_a_failed_sync_left_behind_is_not_taken_for_stable() {
    // With a batch behind it the next process does not even look there.
    for goes_on in [false, true] {
        check_what_a_failed_sync_left_behind(goes_on);
    }
}

fn check_what_a_failed_sync_left_behind(goes_on: bool) {
    const KEPT: u64 = 5;
    const OVERWRITTEN: u64 = 200;
    let host = new_host();
    run_paused(async {
        let engine = host.start().await;
        let vdisk = create(&engine, id(10), SIZE).await;
        for number in 0..KEPT {
            put(&vdisk, number, 1).await;
        }
        host.buffer.fail(0, 1);
        vdisk.flush().await.unwrap();
        assert_eq!(engine.stats().buffer_failed_slots, 1);
        if goes_on {
            // This one's header vouches for all that was written again.
            put(&vdisk, OVERWRITTEN, 1).await;
        }
    });
    run_paused(async {
        let engine = host.start().await;
        let vdisk = engine.open_vdisk(Host::POOL, id(10), Host::ON_FULL).await.unwrap();
        // Until each slot that holds nothing else has been used again.
        for number in 0..800 {
            put(&vdisk, OVERWRITTEN, number as u8).await;
            if number % 10 == 0 {
                vdisk.flush().await.unwrap();
            }
        }
    });
    host.buffer.lose_power_but(|_| 0);
    run_paused(async {
        let engine = host.start().await;
        let vdisk = engine.open_vdisk(Host::POOL, id(10), Host::ON_FULL).await.unwrap();
        for number in 0..KEPT {
            assert_eq!(byte_of(&vdisk, number).await, 1, "cluster {number}");
        }
    });
}
