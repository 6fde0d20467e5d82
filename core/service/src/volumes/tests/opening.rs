//! What overlaps with the opening of a vDisk.

use super::*;
use ovs_api::{LimitsPatch, VdiskCachePatch};
use serde_json::json;

fn settings(iops: u64, quota_bytes: u64) -> PatchVdisk {
    let limits: LimitsPatch = serde_json::from_value(json!({"total": {"iops": iops}})).unwrap();
    let cache: VdiskCachePatch = serde_json::from_value(json!({"quota_bytes": quota_bytes})).unwrap();
    PatchVdisk { limits, cache, ..patch() }
}

/// What a change has half done looks like what a crash has left; only whoever holds the vDisk's lock may make it good.
#[test]
fn nobody_finishes_a_change_that_is_under_way() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        let id = volumes.create_vdisk(new_vdisk("a", 1 << 20), no_terms()).await.unwrap().value.uuid;
        write(&volumes, "a", 0, 7, 1 << 20).await;
        let head = format!("head/{id}");
        let held = world.gates.hold(Call::Commit, &head);
        // The tail behind the new end is zeroed; the record says so until that is done.
        let shrink = PatchVdisk { size_bytes: Some(5000), allow_shrink: true, ..patch() };
        let shrinking = tokio::task::spawn_local({
            let volumes = volumes.clone();
            async move { volumes.update_vdisk(vdisk_ref("a"), shrink, no_terms()).await }
        });
        world.gates.until_held().await;
        let opening = tokio::task::spawn_local({
            let volumes = volumes.clone();
            async move { volumes.ensure_open(id).await.map(|vdisk| vdisk.size()) }
        });
        // The background and who only looks go by.
        volumes.retry().await;
        assert_eq!(volumes.get_vdisk(vdisk_ref("a")).await.unwrap().size_bytes, 5000);
        assert!(!opening.is_finished());
        drop(held);
        let shrunk = shrinking.await.unwrap().unwrap();
        assert_eq!(opening.await.unwrap().unwrap(), ByteCount(8192));

        // Nothing of it comes once more: neither over what has been written since nor over a later size.
        let grow = PatchVdisk { size_bytes: Some(1 << 20), ..patch() };
        let grown = volumes.update_vdisk(vdisk_ref("a"), grow, no_terms()).await.unwrap();
        assert_eq!(grown.revision, shrunk.revision + 1);
        write(&volumes, "a", 5000, 8, 3000).await;
        volumes.retry().await;
        for (at, byte) in [(4999, 7), (5000, 8), (7999, 8), (8000, 0), (9000, 0)] {
            assert_eq!(byte_at(&volumes, "a", at).await, byte, "{at}");
        }
    });
}

/// A rollback that an opening began a second time would take what has been written meanwhile.
#[test]
fn a_rollback_happens_once() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        let id = volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap().value.uuid;
        write(&volumes, "a", 0, 1, 4096).await;
        volumes.create_snapshot(vdisk_ref("a"), new_snapshot("s"), no_terms()).await.unwrap();
        write(&volumes, "a", 0, 2, 4096).await;
        let head = format!("head/{id}");
        let rolled_back = world.gates.hold(Call::Commit, &head);
        let rolling = tokio::task::spawn_local({
            let volumes = volumes.clone();
            let request = ovs_api::RollbackVdisk { snapshot: "s".parse().unwrap() };
            async move { volumes.rollback_vdisk(vdisk_ref("a"), request, no_terms()).await }
        });
        world.gates.until_held().await;
        let opening = tokio::task::spawn_local({
            let volumes = volumes.clone();
            async move { volumes.ensure_open(id).await.map(drop) }
        });
        tokio::task::yield_now().await;
        drop(rolled_back);
        rolling.await.unwrap().unwrap();
        write(&volumes, "a", 0, 3, 4096).await;
        opening.await.unwrap().unwrap();
        volumes.retry().await;
        assert_eq!(byte_at(&volumes, "a", 0).await, 3);
    });
}

/// Limits and the part in the cache are the record's when a vDisk is opened, also beside a change of them.
#[test]
fn settings_that_come_while_a_vdisk_is_opened_stay() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        let id = volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap().value.uuid;
        volumes.update_vdisk(vdisk_ref("a"), settings(100, 4096), no_terms()).await.unwrap();
        volumes.slot(id).unsettle();
        let read = world.gates.hold(Call::Get, &format!("head/{id}"));
        let opening = tokio::task::spawn_local({
            let volumes = volumes.clone();
            async move { volumes.ensure_open(id).await.unwrap() }
        });
        world.gates.until_held().await;
        let changing = tokio::task::spawn_local({
            let volumes = volumes.clone();
            async move { volumes.update_vdisk(vdisk_ref("a"), settings(50, 8192), no_terms()).await }
        });
        tokio::task::yield_now().await;
        assert!(!opening.is_finished());
        drop(read);
        let vdisk = opening.await.unwrap();
        changing.await.unwrap().unwrap();
        assert_eq!(vdisk.limits().total.iops, Some(50));
        let stats = volumes.get_vdisk_stats(vdisk_ref("a")).await.unwrap();
        assert_eq!(stats.cache.unwrap().quota_bytes, Some(8192));
    });
}
