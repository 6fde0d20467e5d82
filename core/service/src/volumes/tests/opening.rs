//! What overlaps with the opening of a vDisk.

use super::*;
use ovs_api::{LimitsPatch, VdiskCachePatch};
use serde_json::json;

fn describe(text: &str) -> PatchVdisk {
    PatchVdisk { description: Some(text.into()), ..patch() }
}

fn settings(iops: u64, quota_bytes: u64) -> PatchVdisk {
    let limits: LimitsPatch = serde_json::from_value(json!({"total": {"iops": iops}})).unwrap();
    let cache: VdiskCachePatch = serde_json::from_value(json!({"quota_bytes": quota_bytes})).unwrap();
    PatchVdisk { limits, cache, ..patch() }
}

/// Whoever opens a vDisk while a change of it is under way may go on after the next change with what it has read before.
#[test]
fn settings_that_come_while_a_vdisk_is_opened_stay() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        let id = volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap().value.uuid;
        volumes.update_vdisk(vdisk_ref("a"), settings(100, 4096), no_terms()).await.unwrap();
        let head = format!("head/{id}");
        let change = async |volumes: Rc<Volumes>, patch| {
            volumes.update_vdisk(vdisk_ref("a"), patch, no_terms()).await.unwrap()
        };

        let copied = world.gates.hold(Call::Commit, &head);
        let describing = tokio::task::spawn_local(change(volumes.clone(), describe("x")));
        world.gates.until_held().await;
        let opened = world.gates.hold(Call::Get, &head);
        let opening = tokio::task::spawn_local({
            let volumes = volumes.clone();
            async move { volumes.ensure_open(id).await.unwrap() }
        });
        world.gates.until_held().await;
        drop(copied);
        describing.await.unwrap();
        change(volumes.clone(), settings(50, 8192)).await;
        assert!(!opening.is_finished());
        drop(opened);

        let vdisk = opening.await.unwrap();
        assert_eq!(vdisk.limits().total.iops, Some(50));
        let stats = volumes.get_vdisk_stats(vdisk_ref("a")).await.unwrap();
        assert_eq!(stats.cache.unwrap().quota_bytes, Some(8192));
    });
}
