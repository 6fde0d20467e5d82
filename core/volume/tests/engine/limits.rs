//! Guests that wait for their turn, and what ends that. How exactly the limits hold is told in `src/limiter/tests.rs`.

use crate::world::{MIB, World, range, run};
use ovs_units::{ByteCount, ByteOffset, Limits, Rates};
use ovs_volume::{GuestRequest, Vdisk, VolumeError};
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_local};

const WRITE: GuestRequest = GuestRequest::Write(ByteCount(4096));

fn one_a_day() -> Limits {
    // 64 KiB per second, and who asks for 5 GiB at once has had them for a day.
    let total = Rates { bytes_per_s: Some(64 << 10), ..Rates::default() };
    Limits { total, ..Limits::default() }
}

/// A guest that waits for its turn, and has a long time to wait.
async fn a_guest_waits(disk: &Vdisk) -> JoinHandle<Result<(), VolumeError>> {
    disk.set_limits(one_a_day());
    disk.admit(GuestRequest::Write(ByteCount(5 << 30))).await.unwrap();
    let guest = {
        let disk = disk.clone();
        spawn_local(async move { disk.admit(WRITE).await })
    };
    while disk.stats().throttled == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!guest.is_finished());
    guest
}

async fn ends<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.expect("it waits on")
}

#[test]
fn a_guest_that_waits_hinders_nobody() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(MIB).await;
        let guest = a_guest_waits(&disk).await;
        disk.write(ByteOffset(0), vec![1; 4096].into(), false).await.unwrap();
        disk.flush().await.unwrap();
        let snapshot = world.snapshot(&disk, "s").await;
        disk.destage().await.unwrap();
        disk.scrub().await.unwrap();
        disk.zero(range(0, 4096), false).await.unwrap();
        disk.rollback(snapshot).await.unwrap();
        disk.resize(ByteCount(2 * MIB)).await.unwrap();
        assert_eq!(disk.read(range(0, 4096)).await.unwrap()[..], [1; 4096]);
        let other = world.create(MIB).await;
        other.admit(WRITE).await.unwrap();
        assert!(!guest.is_finished());
        disk.set_limits(Limits::default());
        ends(guest).await.unwrap().unwrap();
        assert_eq!((disk.stats().throttled, other.stats().throttled), (1, 0));
        assert_eq!(disk.limits(), Limits::default());
    });
}

#[test]
fn a_vdisk_that_is_closed_or_deleted_sends_its_guests_away() {
    run(async {
        let mut world = World::new().await;
        let (closed, deleted) = (world.create(MIB).await, world.create(MIB).await);
        let waiting = a_guest_waits(&deleted).await;
        world.delete(&deleted).await;
        let error = ends(waiting).await.unwrap().unwrap_err();
        assert!(matches!(error, VolumeError::Offline(_)), "{error:?}");
        let waiting = a_guest_waits(&closed).await;
        world.engine().close(Duration::from_secs(10)).await.unwrap();
        let error = ends(waiting).await.unwrap().unwrap_err();
        assert!(matches!(error, VolumeError::Offline(_)), "{error:?}");
        assert!(matches!(closed.admit(WRITE).await, Err(VolumeError::Offline(_))));
    });
}

#[test]
fn before_a_stop_nobody_waits() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(MIB).await;
        let waiting = a_guest_waits(&disk).await;
        world.engine().lift_limits();
        ends(waiting).await.unwrap().unwrap();
    });
}
