//! vDisks that are deleted: nothing of them stays, whatever comes in between.

use crate::world::{MIB, OTHER_VPOOL, World, run};
use ovs_backend::MemoryBackend;
use ovs_units::ByteOffset;
use ovs_volume::VolumeError;
use std::{rc::Rc, time::Duration};

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
