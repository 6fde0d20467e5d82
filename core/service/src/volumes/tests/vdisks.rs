//! Creating, changing, cloning, deleting.

use super::*;
use ovs_api::{
    DeleteVdiskQuery, LimitsPatch, ListQuery, RestoreTrash, RollbackVdisk, SnapshotRef, TrashQuery,
    VdiskQuery, VdiskState,
};
use ovs_units::Limits;
use ovs_volume::GuestRequest;
use serde_json::json;

#[test]
fn the_same_create_again_finds_it_and_a_different_one_is_refused() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let first = volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap();
        assert!(first.is_new);
        assert_eq!((first.value.size_bytes, first.value.state), (8192, VdiskState::Ok));
        let again = volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap();
        assert!(!again.is_new);
        assert_eq!(again.value.uuid, first.value.uuid);
        let other =
            refused(volumes.create_vdisk(new_vdisk("a", 4096), no_terms()).await, ProblemKind::Exists);
        assert_eq!(other.extra["uuid"], first.value.uuid.to_string());
        let nowhere = CreateVdisk::new(name("nowhere"), name("a"));
        refused(volumes.create_vdisk(nowhere, no_terms()).await, ProblemKind::NotFound);
    });
}

#[test]
fn many_identical_creates_at_once_make_one() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let create = || volumes.create_vdisk(new_vdisk("a", 8192), no_terms());
        let (one, two, three) = tokio::join!(create(), create(), create());
        let made = [one.unwrap(), two.unwrap(), three.unwrap()];
        assert_eq!(made.iter().filter(|made| made.is_new).count(), 1);
        assert!(made.iter().all(|one| one.value.uuid == made[0].value.uuid));
    });
}

#[test]
fn an_idempotency_key_outlives_its_object_by_a_day() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        let key = || Terms { idempotency_key: Some("create_vdisk:k 1/ü".into()), if_match: None };
        let made = volumes.create_vdisk(new_vdisk("a", 8192), key()).await.unwrap();
        // Renamed meanwhile: the key still finds it, where the name would not.
        let renamed = PatchVdisk { name: Some(name("b")), ..patch() };
        volumes.update_vdisk(vdisk_ref("a"), renamed, no_terms()).await.unwrap();
        let again = volumes.create_vdisk(new_vdisk("a", 8192), key()).await.unwrap();
        assert_eq!((again.is_new, again.value.uuid), (false, made.value.uuid));
        refused(volumes.create_vdisk(new_vdisk("a", 4096), key()).await, ProblemKind::Conflict);
        let purge = DeleteVdiskQuery { purge: true };
        volumes.delete_vdisk(vdisk_ref("b"), purge, no_terms()).await.unwrap();
        refused(volumes.create_vdisk(new_vdisk("a", 8192), key()).await, ProblemKind::Conflict);
        volumes.sweep_idempotency_keys().await.unwrap();
        refused(volumes.create_vdisk(new_vdisk("a", 8192), key()).await, ProblemKind::Conflict);
        world.later(Duration::from_secs(24 * 3600));
        volumes.sweep_idempotency_keys().await.unwrap();
        assert!(volumes.create_vdisk(new_vdisk("a", 8192), key()).await.unwrap().is_new);
    });
}

#[test]
fn lists_come_by_vpool_and_name_in_pages() {
    World::new().life(async |volumes: Rc<Volumes>| {
        for text in ["b", "a", "c-1", "c"] {
            volumes.create_vdisk(new_vdisk(text, 8192), no_terms()).await.unwrap();
        }
        let mut seen = Vec::new();
        let mut query = VdiskQuery { limit: Some(3), ..VdiskQuery::default() };
        loop {
            let page = volumes.list_vdisks(query.clone()).await.unwrap();
            seen.extend(page.items.into_iter().map(|vdisk| vdisk.name.to_string()));
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, ["a", "b", "c", "c-1"]);
        let only = VdiskQuery { name: Some(name("c")), ..VdiskQuery::default() };
        assert_eq!(volumes.list_vdisks(only).await.unwrap().items.len(), 1);
    });
}

#[test]
fn a_change_asked_for_at_another_revision_is_refused() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let made = volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap().value;
        let at = |revision| Terms { if_match: Some(revision), ..Terms::default() };
        let describe = |text: &str| PatchVdisk { description: Some(text.into()), ..patch() };
        let changed = volumes.update_vdisk(vdisk_ref("a"), describe("x"), at(made.revision)).await.unwrap();
        assert!(changed.revision > made.revision);
        let late = volumes.update_vdisk(vdisk_ref("a"), describe("y"), at(made.revision)).await;
        let problem = refused(late, ProblemKind::PreconditionFailed);
        assert_eq!(problem.extra["revision"], changed.revision);
        let same = volumes.update_vdisk(vdisk_ref("a"), describe("x"), no_terms()).await.unwrap();
        assert_eq!(same.revision, changed.revision, "nothing changed");
    });
}

#[test]
fn clones_see_the_moment_and_go_their_own_way() {
    World::new().life(async |volumes: Rc<Volumes>| {
        volumes.create_vdisk(new_vdisk("a", 1 << 20), no_terms()).await.unwrap();
        write(&volumes, "a", 0, 1, 4096).await;
        let clone = volumes.create_vdisk(clone_of("a", "b"), no_terms()).await.unwrap().value;
        assert_eq!(clone.size_bytes, 1 << 20);
        write(&volumes, "a", 0, 2, 4096).await;
        write(&volumes, "b", 8192, 3, 4096).await;
        assert_eq!((byte_at(&volumes, "b", 0).await, byte_at(&volumes, "a", 8192).await), (1, 0));
        let seen = volumes.list_snapshots(vdisk_ref("a"), ListQuery::default()).await.unwrap();
        assert_eq!(seen.items.len(), 0, "the snapshot that the clone needed is nobody's");
        let smaller = CreateVdisk { size_bytes: Some(4096), ..clone_of("a", "c") };
        refused(volumes.create_vdisk(smaller, no_terms()).await, ProblemKind::Invalid);
        // The parent may go; the clone stays.
        volumes.delete_vdisk(vdisk_ref("a"), DeleteVdiskQuery { purge: true }, no_terms()).await.unwrap();
        assert_eq!(byte_at(&volumes, "b", 0).await, 1);
    });
}

#[test]
fn a_template_is_frozen_and_stays_while_it_has_children() {
    World::new().life(async |volumes: Rc<Volumes>| {
        volumes.create_vdisk(new_vdisk("t", 8192), no_terms()).await.unwrap();
        write(&volumes, "t", 0, 7, 4096).await;
        let child = |text: &str| CreateVdisk {
            template: Some(vdisk_ref("t")),
            ..CreateVdisk::new(name("default"), name(text))
        };
        refused(volumes.create_vdisk(child("x"), no_terms()).await, ProblemKind::Conflict);
        let template = volumes.set_template(vdisk_ref("t"), no_terms()).await.unwrap();
        assert!(template.is_template);
        assert_eq!(
            volumes.set_template(vdisk_ref("t"), no_terms()).await.unwrap().revision,
            template.revision
        );
        volumes.create_vdisk(child("x"), no_terms()).await.unwrap();
        assert_eq!(byte_at(&volumes, "x", 0).await, 7);

        let grow = PatchVdisk { size_bytes: Some(1 << 20), ..patch() };
        refused(volumes.update_vdisk(vdisk_ref("t"), grow, no_terms()).await, ProblemKind::Conflict);
        refused(
            volumes.create_snapshot(vdisk_ref("t"), new_snapshot("s"), no_terms()).await,
            ProblemKind::Conflict,
        );
        let in_use = volumes.delete_vdisk(vdisk_ref("t"), DeleteVdiskQuery::default(), no_terms()).await;
        assert_eq!(refused(in_use, ProblemKind::InUse).extra["vdisks"].as_array().unwrap().len(), 1);
        volumes.delete_vdisk(vdisk_ref("x"), DeleteVdiskQuery { purge: true }, no_terms()).await.unwrap();
        volumes.delete_vdisk(vdisk_ref("t"), DeleteVdiskQuery { purge: true }, no_terms()).await.unwrap();
    });
}

#[test]
fn sizes_are_kept_to_the_byte_and_nothing_old_comes_back() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let request = CreateVdisk { size_bytes: Some(10_000), byte_exact: true, ..new_vdisk("a", 0) };
        let made = volumes.create_vdisk(request, no_terms()).await.unwrap().value;
        assert_eq!((made.size_bytes, made.capacity_bytes), (10_000, 12_288));
        write(&volumes, "a", 0, 9, 10_000).await;
        let resize = |size_bytes, allow_shrink| PatchVdisk {
            size_bytes: Some(size_bytes),
            byte_exact: true,
            allow_shrink,
            ..patch()
        };
        refused(
            volumes.update_vdisk(vdisk_ref("a"), resize(5000, false), no_terms()).await,
            ProblemKind::Invalid,
        );
        let small = volumes.update_vdisk(vdisk_ref("a"), resize(5000, true), no_terms()).await.unwrap();
        assert_eq!((small.size_bytes, small.capacity_bytes), (5000, 8192));
        volumes.update_vdisk(vdisk_ref("a"), resize(10_000, false), no_terms()).await.unwrap();
        for (at, expected) in [(4999, 9), (5000, 0), (8191, 0), (8192, 0), (9999, 0)] {
            assert_eq!(byte_at(&volumes, "a", at).await, expected, "byte {at}");
        }
        let empty = CreateVdisk { size_bytes: Some(0), byte_exact: true, ..new_vdisk("e", 0) };
        assert_eq!(volumes.create_vdisk(empty, no_terms()).await.unwrap().value.capacity_bytes, 0);
    });
}

#[test]
fn a_rollback_brings_back_contents_and_size() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let request = CreateVdisk { size_bytes: Some(10_000), byte_exact: true, ..new_vdisk("a", 0) };
        volumes.create_vdisk(request, no_terms()).await.unwrap();
        write(&volumes, "a", 0, 1, 4096).await;
        let taken = volumes.create_snapshot(vdisk_ref("a"), new_snapshot("s"), no_terms()).await.unwrap();
        assert!(taken.is_new);
        assert_eq!(taken.value.size_bytes, 10_000);
        let again = volumes.create_snapshot(vdisk_ref("a"), new_snapshot("s"), no_terms()).await.unwrap();
        assert_eq!((again.is_new, again.value.uuid), (false, taken.value.uuid));
        let key = || Terms { idempotency_key: Some("create_snapshot:k".into()), if_match: None };
        let keyed = volumes.create_snapshot(vdisk_ref("a"), new_snapshot("k"), key()).await.unwrap();
        assert!(keyed.is_new);
        volumes.delete_snapshot(vdisk_ref("a"), SnapshotRef::Id(keyed.value.uuid), no_terms()).await.unwrap();
        let late = volumes.create_snapshot(vdisk_ref("a"), new_snapshot("k"), key()).await;
        refused(late, ProblemKind::Conflict);
        let other = CreateSnapshot { description: "other".into(), ..new_snapshot("s") };
        refused(volumes.create_snapshot(vdisk_ref("a"), other, no_terms()).await, ProblemKind::Exists);

        write(&volumes, "a", 0, 2, 4096).await;
        let grow = PatchVdisk { size_bytes: Some(1 << 20), ..patch() };
        volumes.update_vdisk(vdisk_ref("a"), grow, no_terms()).await.unwrap();
        let back = RollbackVdisk { snapshot: SnapshotRef::Name(name("s")) };
        let rolled = volumes.rollback_vdisk(vdisk_ref("a"), back, no_terms()).await.unwrap();
        assert_eq!((rolled.size_bytes, rolled.capacity_bytes), (10_000, 12_288));
        assert_eq!(byte_at(&volumes, "a", 0).await, 1);
        let nothing = RollbackVdisk { snapshot: SnapshotRef::Name(name("nothing")) };
        refused(volumes.rollback_vdisk(vdisk_ref("a"), nothing, no_terms()).await, ProblemKind::NotFound);
    });
}

#[test]
fn the_trash_gives_back_what_was_deleted_until_its_time_is_over() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        let made = volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap().value;
        write(&volumes, "a", 0, 5, 4096).await;
        let protect = |protected| PatchVdisk { protected: Some(protected), ..patch() };
        volumes.update_vdisk(vdisk_ref("a"), protect(true), no_terms()).await.unwrap();
        let delete = || volumes.delete_vdisk(vdisk_ref("a"), DeleteVdiskQuery::default(), no_terms());
        refused(delete().await, ProblemKind::Protected);
        volumes.update_vdisk(vdisk_ref("a"), protect(false), no_terms()).await.unwrap();
        delete().await.unwrap();
        refused(volumes.get_vdisk(vdisk_ref("a")).await, ProblemKind::NotFound);
        assert_eq!(volumes.list_vdisks(VdiskQuery::default()).await.unwrap().items.len(), 0);
        assert_eq!(volumes.list_trash(TrashQuery::default()).await.unwrap().items[0].uuid, made.uuid);

        let second = volumes.create_vdisk(new_vdisk("a", 4096), no_terms()).await.unwrap().value;
        assert_ne!(second.uuid, made.uuid);
        let restore = |request| volumes.restore_trash(vdisk_ref("a"), request, no_terms());
        refused(restore(RestoreTrash::default()).await, ProblemKind::Exists);
        let back = restore(RestoreTrash { name: Some(name("back")) }).await.unwrap();
        assert_eq!((back.uuid, byte_at(&volumes, "back", 0).await), (made.uuid, 5));

        delete().await.unwrap();
        world.later(Duration::from_secs(3599));
        volumes.expire_trash().await.unwrap();
        assert_eq!(volumes.list_trash(TrashQuery::default()).await.unwrap().items.len(), 1);
        world.later(Duration::from_secs(2));
        volumes.expire_trash().await.unwrap();
        assert_eq!(volumes.list_trash(TrashQuery::default()).await.unwrap().items.len(), 0);
        refused(volumes.get_vdisk(VdiskRef::Id(second.uuid)).await, ProblemKind::NotFound);
    });
}

#[test]
fn emptying_the_trash_is_a_task() {
    World::new().life(async |volumes: Rc<Volumes>| {
        for text in ["a", "b", "c"] {
            volumes.create_vdisk(new_vdisk(text, 8192), no_terms()).await.unwrap();
            volumes.delete_vdisk(vdisk_ref(text), DeleteVdiskQuery::default(), no_terms()).await.unwrap();
        }
        let task = volumes.empty_trash(TrashQuery::default()).await.unwrap().0;
        let over = volumes.tasks.wait(task.uuid, Duration::from_secs(60)).await.unwrap();
        assert_eq!(over.result.unwrap()["deleted"], 3);
        assert_eq!(volumes.list_trash(TrashQuery::default()).await.unwrap().items.len(), 0);
    });
}

#[test]
fn labels_that_would_not_fit_into_the_record_are_refused() {
    World::new().life(async |volumes: Rc<Volumes>| {
        volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap();
        let big = |text: &str| {
            let labels = (0..7).map(|key| (key.to_string(), "x".repeat(4096))).collect();
            CreateSnapshot { labels: Labels(labels), ..new_snapshot(text) }
        };
        let mut refusal = None;
        for number in 0..20 {
            let taken = volumes.create_snapshot(vdisk_ref("a"), big(&format!("s{number}")), no_terms()).await;
            if let Err(problem) = taken {
                refusal = Some(problem);
                break;
            }
        }
        assert_eq!(refusal.unwrap().kind(), ProblemKind::TooLarge);
        volumes.get_vdisk(vdisk_ref("a")).await.unwrap();
    });
}

#[test]
fn a_loss_is_accepted_once_and_only_where_there_is_one() {
    let world = World::new();
    let id = world.life(async |volumes: Rc<Volumes>| {
        let made = volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap();
        write(&volumes, "a", 0, 7, 4096).await;
        refused(volumes.accept_vdisk_loss(vdisk_ref("a"), no_terms()).await, ProblemKind::Conflict);
        made.value.uuid
    });
    world.change_registry(&format!("head/{id}"), |head| {
        String::from_utf8(head).unwrap().replace("\"lost\":null", "\"lost\":\"a disk failed\"").into_bytes()
    });
    world.life(async |volumes: Rc<Volumes>| {
        let shown = volumes.get_vdisk(vdisk_ref("a")).await.unwrap();
        assert_eq!(shown.state, ovs_api::VdiskState::Offline);
        assert_eq!(shown.state_reason.as_deref(), Some("a disk failed"));
        let served = volumes.accept_vdisk_loss(vdisk_ref("a"), no_terms()).await.unwrap();
        assert_eq!(served.state, ovs_api::VdiskState::Ok);
        assert_eq!(byte_at(&volumes, "a", 0).await, 7);
        refused(volumes.accept_vdisk_loss(vdisk_ref("a"), no_terms()).await, ProblemKind::Conflict);
    });
}

/// A map is a cache: its damage is shown while it hinders, and is gone with the next start.
#[test]
fn a_damaged_map_page_is_shown_until_the_next_start() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap();
        write(&volumes, "a", 0, 7, 4096).await;
        volumes.engine.close(Duration::from_secs(10)).await.unwrap();
    });
    // Leaves: the others are read when the vDisk is opened.
    for (page, _) in world.pages.all().into_iter().filter(|(_, bytes)| matches!(bytes[0], 1 | 6)) {
        world.pages.damage(page, None);
    }
    world.life(async |volumes: Rc<Volumes>| {
        let id = volumes.resolve(&vdisk_ref("a")).await.unwrap();
        volumes.ensure_open(id).await.unwrap().read(range(0, 1)).await.unwrap_err();
        let shown = volumes.get_vdisk(vdisk_ref("a")).await.unwrap();
        assert_eq!(shown.state, VdiskState::Degraded);
        let reason = shown.state_reason.unwrap();
        assert!(reason.contains("map page"), "{reason}");
        let metrics = crate::metrics::text(&volumes).await;
        let mut samples = metrics.lines().filter(|line| line.starts_with("ovs_vdisk_ok{"));
        assert!(samples.all(|line| line.ends_with(" 0")), "{metrics}");
        volumes.look_for_alarms().await;
        let alarms = volumes.alarms.list();
        assert!(alarms.iter().any(|alarm| alarm.detail.starts_with("degraded: map page")), "{alarms:?}");
        // That the map is of no use is noted in the background.
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(byte_at(&volumes, "a", 0).await, 7);
        assert_eq!(volumes.get_vdisk(vdisk_ref("a")).await.unwrap().state, VdiskState::Ok);
    });
}

fn limits(patch: serde_json::Value) -> LimitsPatch {
    serde_json::from_value(patch).unwrap()
}

#[test]
fn limits_are_kept_over_restarts_and_a_clone_has_none() {
    let world = World::new();
    let expected = limits(json!({"total": {"iops": 50}, "burst_s": 9})).patch(Limits::default()).unwrap();
    world.life(async |volumes: Rc<Volumes>| {
        let new = CreateVdisk { limits: limits(json!({"total": {"iops": 100}})), ..new_vdisk("a", 8192) };
        let made = volumes.create_vdisk(new.clone(), no_terms()).await.unwrap();
        assert_eq!(made.value.limits.total.iops, Some(100));
        let changed = PatchVdisk { limits: limits(json!({"total": {"iops": 50}, "burst_s": 9})), ..patch() };
        let changed = volumes.update_vdisk(vdisk_ref("a"), changed, no_terms()).await.unwrap();
        assert_eq!((changed.limits, changed.revision), (expected, 2));
        // The same create finds it, whatever has been changed since.
        assert!(!volumes.create_vdisk(new, no_terms()).await.unwrap().is_new);
        let clone = volumes.create_vdisk(clone_of("a", "b"), no_terms()).await.unwrap();
        assert_eq!(clone.value.limits, Limits::default());
        let limited = CreateVdisk { limits: limits(json!({"read": {"iops": 7}})), ..clone_of("a", "c") };
        let limited = volumes.create_vdisk(limited, no_terms()).await.unwrap();
        assert_eq!(limited.value.limits.read.iops, Some(7));
    });
    world.life(async |volumes: Rc<Volumes>| {
        let id = volumes.resolve(&vdisk_ref("a")).await.unwrap();
        assert_eq!(volumes.ensure_open(id).await.unwrap().limits(), expected);
        assert_eq!(volumes.get_vdisk(vdisk_ref("a")).await.unwrap().limits, expected);
        let none = PatchVdisk { limits: LimitsPatch::default().alone(), ..patch() };
        volumes.update_vdisk(vdisk_ref("a"), none, no_terms()).await.unwrap();
        assert_eq!(volumes.ensure_open(id).await.unwrap().limits(), Limits::default());
    });
}

#[test]
fn limits_that_are_refused_change_nothing() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let new = CreateVdisk { limits: limits(json!({"total": {"iops": 100}})), ..new_vdisk("a", 8192) };
        let before = volumes.create_vdisk(new, no_terms()).await.unwrap().value;
        for (bad, field) in [
            (json!({"total": {"iops": 0}}), "limits.total.iops"),
            (json!({"total": {"iops_burst": 99}}), "limits.total.iops_burst"),
            (json!({"read": {"iops_burst": 99}}), "limits.read.iops_burst"),
            (json!({"write": {"bytes_per_s": 1}}), "limits.write.bytes_per_s"),
            (json!({"burst_s": 0}), "limits.burst_s"),
        ] {
            let bad = PatchVdisk { limits: limits(bad), name: Some(name("b")), ..patch() };
            let problem =
                refused(volumes.update_vdisk(vdisk_ref("a"), bad, no_terms()).await, ProblemKind::Invalid);
            assert_eq!(problem.extra["field"], field);
            let after = volumes.get_vdisk(vdisk_ref("a")).await.unwrap();
            assert_eq!(
                (after.limits, after.revision, after.name),
                (before.limits, before.revision, name("a"))
            );
        }
        let bad = CreateVdisk { limits: limits(json!({"write": {"iops": 0}})), ..new_vdisk("b", 8192) };
        refused(volumes.create_vdisk(bad, no_terms()).await, ProblemKind::Invalid);
        refused(volumes.get_vdisk(vdisk_ref("b")).await, ProblemKind::NotFound);
    });
}

#[test]
fn limits_are_in_the_metrics() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let new =
            json!({"total": {"iops": 10}, "read": {"bytes_per_s": 1 << 20, "bytes_per_s_burst": 2 << 20}});
        let new = CreateVdisk { limits: limits(new), ..new_vdisk("a", 8192) };
        let uuid = volumes.create_vdisk(new, no_terms()).await.unwrap().value.uuid;
        let vdisk = volumes.ensure_open(uuid).await.unwrap();
        for _ in 0..11 {
            vdisk.admit(GuestRequest::Write(ByteCount(4096))).await.unwrap();
        }
        let text = crate::metrics::text(&volumes).await;
        let labels = format!("vpool=\"default\",vdisk=\"a\",uuid=\"{uuid}\"");
        for line in [
            format!("ovs_vdisk_throttled_requests_total{{{labels}}} 10"),
            format!("ovs_vdisk_throttled_seconds_total{{{labels}}} 0.9"),
            format!("ovs_vdisk_limit_iops{{{labels},of=\"total\"}} 10"),
            format!("ovs_vdisk_limit_bytes_per_second{{{labels},of=\"read\"}} 1048576"),
            format!("ovs_vdisk_limit_burst_bytes_per_second{{{labels},of=\"read\"}} 2097152"),
            format!("ovs_vdisk_ok{{{labels}}} 1"),
            format!("ovs_vdisk_size_bytes{{{labels}}} 8192"),
        ] {
            assert!(text.contains(&line), "{line} is not in {text}");
        }
        assert!(!text.contains("ovs_vdisk_limit_burst_iops{"));
        let stats = volumes.get_vdisk_stats(vdisk_ref("a")).await.unwrap();
        assert_eq!((stats.throttled_count, stats.throttled_ms / 100), (10, 9));
    });
}
