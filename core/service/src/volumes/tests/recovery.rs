//! The registry lost, and everything lost.

use super::*;
use ovs_api::{
    CreateBackend, DeleteVdiskQuery, RecoverVpool, RestoreTrash, SnapshotRef, Source, TaskState, TrashQuery,
    VdiskQuery,
};
use ovs_cluster::catalogue::State;

/// What a rebuilt catalogue must say as the one that was lost did.
async fn told(volumes: &Rc<Volumes>) -> serde_json::Value {
    let mut told = Vec::new();
    for mut vdisk in volumes.list_vdisks(VdiskQuery::default()).await.unwrap().items {
        let snapshots = volumes.list_snapshots(VdiskRef::Id(vdisk.uuid), Default::default()).await.unwrap();
        vdisk.buffered_bytes = 0;
        vdisk.allocated_bytes = 0;
        let snapshots: Vec<_> =
            snapshots.items.iter().map(|s| (&s.name, s.uuid, s.size_bytes, &s.description)).collect();
        told.push(serde_json::json!({"vdisk": vdisk, "snapshots": snapshots}));
    }
    let mut pool = volumes.get_vpool(name("default")).await.unwrap();
    pool.free_bytes = None;
    pool.used_bytes = 0;
    let trash: Vec<_> =
        volumes.list_trash(TrashQuery::default()).await.unwrap().items.into_iter().map(|t| t.uuid).collect();
    serde_json::json!({"vdisks": told, "trash": trash, "vpool": pool})
}

async fn fill(volumes: &Rc<Volumes>) {
    let request = CreateVdisk {
        size_bytes: Some(10_000),
        byte_exact: true,
        description: "d".into(),
        ..new_vdisk("a", 0)
    };
    volumes.create_vdisk(request, no_terms()).await.unwrap();
    write(volumes, "a", 0, 1, 4096).await;
    let snapshot = CreateSnapshot { description: "first".into(), ..new_snapshot("s1") };
    volumes.create_snapshot(vdisk_ref("a"), snapshot, no_terms()).await.unwrap();
    write(volumes, "a", 0, 2, 4096).await;
    volumes.create_vdisk(clone_of("a", "b"), no_terms()).await.unwrap();
    volumes.create_vdisk(clone_of("b", "c"), no_terms()).await.unwrap();
    write(volumes, "b", 0, 3, 4096).await;
    volumes.set_template(vdisk_ref("c"), no_terms()).await.unwrap();
    let limits = serde_json::from_value(serde_json::json!({"total": {"iops": 5}})).unwrap();
    let rename = PatchVdisk { name: Some(name("renamed")), protected: Some(true), limits, ..patch() };
    volumes.update_vdisk(vdisk_ref("b"), rename, no_terms()).await.unwrap();
    volumes.create_vdisk(new_vdisk("t", 8192), no_terms()).await.unwrap();
    volumes.delete_vdisk(vdisk_ref("t"), DeleteVdiskQuery::default(), no_terms()).await.unwrap();
    volumes.create_vdisk(new_vdisk("gone", 8192), no_terms()).await.unwrap();
    volumes.delete_vdisk(vdisk_ref("gone"), DeleteVdiskQuery { purge: true }, no_terms()).await.unwrap();
    for text in ["a", "renamed", "c"] {
        let id = volumes.resolve(&vdisk_ref(text)).await.unwrap();
        volumes.ensure_open(id).await.unwrap().destage().await.unwrap();
    }
}

async fn check_contents(volumes: &Rc<Volumes>) {
    assert_eq!(byte_at(volumes, "a", 0).await, 2);
    assert_eq!(byte_at(volumes, "renamed", 0).await, 3);
    assert_eq!(byte_at(volumes, "c", 0).await, 2);
    let (vdisk, _, found) =
        volumes.snapshot_named(volumes.resolve(&vdisk_ref("a")).await.unwrap(), &name("s1")).await.unwrap();
    assert_eq!(vdisk.read_snapshot(found.id, range(0, 1)).await.unwrap()[0], 1);
}

#[test]
fn a_lost_registry_is_rebuilt_by_itself() {
    let mut world = World::new();
    let before = world.life(async |volumes: Rc<Volumes>| {
        fill(&volumes).await;
        told(&volumes).await
    });
    world.lose_registry();
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(told(&volumes).await, before);
        check_contents(&volumes).await;
        // What was rebuilt goes on as before.
        volumes.create_vdisk(clone_of("renamed", "d"), no_terms()).await.unwrap();
        assert_eq!(byte_at(&volumes, "d", 0).await, 3);
    });
    world.life(async |volumes: Rc<Volumes>| check_contents(&volumes).await);
}

#[test]
fn unsent_writes_survive_a_lost_registry() {
    let mut world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        volumes.create_vdisk(new_vdisk("a", 1 << 20), no_terms()).await.unwrap();
        write(&volumes, "a", 4096, 8, 4096).await;
    });
    world.lose_registry();
    world.life(async |volumes: Rc<Volumes>| assert_eq!(byte_at(&volumes, "a", 4096).await, 8));
}

/// A vDisk with data that only the write buffer has, and one without.
fn world_with_unsent_writes() -> World {
    let mut world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        for text in ["a", "b"] {
            volumes.create_vdisk(new_vdisk(text, 1 << 20), no_terms()).await.unwrap();
        }
        write(&volumes, "a", 4096, 8, 4096).await;
    });
    world.lose_registry();
    world
}

fn check_unsent_writes(world: &World) {
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(byte_at(&volumes, "a", 4096).await, 8);
        let shown = volumes.list_vdisks(VdiskQuery::default()).await.unwrap().items;
        let names: Vec<_> = shown.iter().map(|vdisk| vdisk.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(volumes.is_all_known());
    });
}

#[test]
fn unsent_writes_survive_a_rebuild_cut_off_at_any_commit() {
    let commits = world_with_unsent_writes().short_life(u64::MAX, Death::Before);
    assert!(commits > 5, "{commits}");
    for n in 1..=commits {
        for death in [Death::Before, Death::After] {
            let world = world_with_unsent_writes();
            world.short_life(n, death);
            world.short_life(u64::MAX, death);
            check_unsent_writes(&world);
        }
    }
}

/// As a NAS that is mounted too late; seen by the next start, or by the same process.
#[test]
fn unsent_writes_survive_a_backend_that_comes_late() {
    for by_restart in [true, false] {
        let world = world_with_unsent_writes();
        let folder = world.paths().state_dir().join("backend");
        let away = world.path().join("away");
        std::fs::rename(&folder, &away).unwrap();
        if by_restart {
            world.short_life(u64::MAX, Death::Before);
            std::fs::rename(&away, &folder).unwrap();
            world.short_life(u64::MAX, Death::Before);
        } else {
            world.life(async |volumes: Rc<Volumes>| {
                volumes.begin_background();
                tokio::time::sleep(Duration::from_secs(60)).await;
                assert!(!volumes.is_all_known());
                std::fs::rename(&away, &folder).unwrap();
                tokio::time::sleep(Duration::from_secs(60)).await;
                assert_eq!(byte_at(&volumes, "a", 4096).await, 8);
            });
        }
        check_unsent_writes(&world);
    }
}

/// What is wrong with a vDisk on the backend is made good by somebody, some starts later.
#[test]
fn unsent_writes_survive_a_vdisk_that_cannot_be_taken_in() {
    let world = world_with_unsent_writes();
    let journals = journals(&world.paths().state_dir().join("backend"));
    let broken: Vec<_> = journals.iter().map(|path| (path, std::fs::read(path).unwrap())).collect();
    for (path, bytes) in &broken {
        std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }
    for _ in 0..2 {
        world.short_life(u64::MAX, Death::Before);
    }
    world.life(async |volumes: Rc<Volumes>| assert!(!volumes.is_all_known()));
    for (path, bytes) in broken {
        std::fs::write(path, bytes).unwrap();
    }
    world.life(async |volumes: Rc<Volumes>| {
        let task = volumes.recover_vpool(name("default")).await.unwrap().0;
        volumes.tasks.wait(task.uuid, Duration::from_secs(60)).await.unwrap();
    });
    check_unsent_writes(&world);
}

/// Every file of the journals below a folder.
fn journals(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(journals(&entry.path()));
        } else if entry.path().components().any(|part| part.as_os_str() == "j") {
            found.push(entry.path());
        }
    }
    found
}

/// The registry and `vpools.json` are lost, the write buffer is not: it waits until its vPool is recovered.
#[test]
fn unsent_writes_survive_the_loss_of_everything_but_the_write_buffer() {
    let world = world_with_unsent_writes();
    let disk = world.path().join("disk");
    std::fs::rename(world.paths().state_dir().join("backend/default"), &disk).unwrap();
    std::fs::remove_file(world.paths().state_dir().join("vpools.json")).unwrap();
    for _ in 0..2 {
        world.short_life(u64::MAX, Death::Before);
    }
    world.life(async |volumes: Rc<Volumes>| {
        volumes.delete_vpool(name("default"), Default::default(), no_terms()).await.unwrap();
        let backend = CreateBackend::dir(name("found"), disk.to_string_lossy().into_owned());
        let request = RecoverVpool { name: name("default"), backend };
        let task = volumes.recover_lost_vpool(request).await.unwrap().0;
        volumes.tasks.wait(task.uuid, Duration::from_secs(60)).await.unwrap();
    });
    check_unsent_writes(&world);
}

/// The rebuild opens them before the doors are.
#[test]
fn after_a_lost_registry_a_vdisks_own_socket_is_served() {
    let mut world = World::new();
    let id = world.life(async |volumes: Rc<Volumes>| {
        volumes.create_vdisk(new_vdisk("a", 1 << 20), no_terms()).await.unwrap().value.uuid
    });
    let (served, dead) = (world.paths().nbd_vdisk_socket(id), world.paths().nbd_dir().join("dead.sock"));
    let is_served = || std::os::unix::net::UnixStream::connect(&served).is_ok();
    assert!(served.exists() && !is_served(), "left by the first life");
    std::fs::write(&dead, "").unwrap();
    world.lose_registry();
    world.life(async |volumes: Rc<Volumes>| {
        volumes.open_doors().await.unwrap();
        assert!(is_served());
        assert!(!dead.exists());
    });
}

#[test]
fn with_every_local_file_lost_a_vpool_comes_back_from_its_folder() {
    let world = World::new();
    let before = world.life(async |volumes: Rc<Volumes>| {
        fill(&volumes).await;
        told(&volumes).await
    });
    let disk = world.path().join("disk");
    std::fs::rename(world.paths().state_dir().join("backend/default"), &disk).unwrap();

    let new_host = World::new();
    new_host.life(async |volumes: Rc<Volumes>| {
        volumes.delete_vpool(name("default"), Default::default(), no_terms()).await.unwrap();
        let backend =
            |path: &std::path::Path| CreateBackend::dir(name("found"), path.to_string_lossy().into_owned());
        let recover = |vpool: &str, path: &std::path::Path| {
            volumes.recover_lost_vpool(RecoverVpool { name: name(vpool), backend: backend(path) })
        };
        refused(recover("default", &world.path().join("nothing")).await, ProblemKind::NotFound);
        let task = recover("default", &disk).await.unwrap().0;
        let over = volumes.tasks.wait(task.uuid, Duration::from_secs(60)).await.unwrap();
        assert_eq!(over.state, TaskState::Succeeded, "{over:?}");
        assert_eq!(over.result.as_ref().unwrap()["problems"], serde_json::json!([]), "{over:?}");
        refused(recover("again", &disk).await, ProblemKind::Exists);
        check_contents(&volumes).await;
        let now = told(&volumes).await;
        // Paths and the host's own are others; what was there is the same.
        for (one, other) in now["vdisks"].as_array().unwrap().iter().zip(before["vdisks"].as_array().unwrap())
        {
            for member in [
                "uuid",
                "name",
                "revision",
                "size_bytes",
                "is_template",
                "protected",
                "base",
                "description",
                "labels",
            ] {
                assert_eq!(one["vdisk"][member], other["vdisk"][member], "{member}");
            }
            assert_eq!(one["snapshots"], other["snapshots"]);
        }
        assert_eq!((&now["trash"], &now["vpool"]["uuid"]), (&before["trash"], &before["vpool"]["uuid"]));
    });
    new_host.life(async |volumes: Rc<Volumes>| check_contents(&volumes).await);
}

/// One that was put back from a backup. What it does not know of its vDisks is taken in when somebody asks for that; also of one that a newer clone
/// is of.
#[test]
fn an_older_registry_is_brought_up_by_a_recovery() {
    older_registry_is_brought_up(false);
}

/// Somebody's session is fenced before that: the record has a version as high, and is as old.
#[test]
fn an_older_registry_that_was_written_since_is_brought_up_by_a_recovery() {
    older_registry_is_brought_up(true);
}

/// Returns what was taken in.
async fn recovered(volumes: &Rc<Volumes>) -> BTreeSet<VdiskId> {
    let task = volumes.recover_vpool(name("default")).await.unwrap().0;
    let over = volumes.tasks.wait(task.uuid, Duration::from_secs(60)).await.unwrap();
    assert_eq!(over.state, TaskState::Succeeded, "{over:?}");
    let result = over.result.unwrap();
    assert_eq!(result["problems"], serde_json::json!([]));
    let ids: Vec<VdiskId> = serde_json::from_value(result["taken_in"].clone()).unwrap();
    ids.into_iter().collect()
}

/// Of before the registry was put back, and of since then.
const FENCED: [Uuid; 2] = [Uuid::from_u128(77), Uuid::from_u128(78)];

/// Returns the vDisks that are behind, and a clone that the registry does not know.
fn world_with_an_older_registry(is_changed_since: bool) -> (World, [VdiskId; 3]) {
    let mut world = World::new();
    let destage = async |volumes: &Rc<Volumes>, text: &str| {
        let id = volumes.resolve(&vdisk_ref(text)).await.unwrap();
        volumes.ensure_open(id).await.unwrap().destage().await.unwrap();
        id
    };
    let [id, other, _] = world.life(async |volumes: Rc<Volumes>| {
        let mut ids = Vec::new();
        for text in ["a", "other", "unchanged"] {
            volumes.create_vdisk(new_vdisk(text, 1 << 20), no_terms()).await.unwrap();
            write(&volumes, text, 0, 1, 4096).await;
            ids.push(destage(&volumes, text).await);
        }
        ids.try_into().unwrap()
    });
    let older = Rc::new(MemoryRegistry::clone(&world.registry));
    let clone = world.life(async |volumes: Rc<Volumes>| {
        write(&volumes, "a", 0, 2, 4096).await;
        let (vdisk, stored) = (volumes.ensure_open(id).await.unwrap(), volumes.record(id).await.unwrap());
        volumes.change(&stored, Some(&vdisk), |record| record.fenced.push(FENCED[0])).await.unwrap();
        volumes.create_snapshot(vdisk_ref("a"), new_snapshot("since"), no_terms()).await.unwrap();
        let grow = PatchVdisk { name: Some(name("renamed")), size_bytes: Some(4 << 20), ..patch() };
        volumes.update_vdisk(vdisk_ref("a"), grow, no_terms()).await.unwrap();
        write(&volumes, "renamed", 3 << 20, 3, 4096).await;
        volumes.create_vdisk(clone_of("renamed", "clone"), no_terms()).await.unwrap();
        write(&volumes, "clone", 0, 5, 4096).await;
        destage(&volumes, "renamed").await;
        // One record, which an opening takes for what a crash left.
        let rename = PatchVdisk { name: Some(name("moved")), ..patch() };
        volumes.update_vdisk(vdisk_ref("other"), rename, no_terms()).await.unwrap();
        destage(&volumes, "clone").await
    });
    world.registry = older;
    if is_changed_since {
        world.life(async |volumes: Rc<Volumes>| {
            let stored = volumes.record(id).await.unwrap();
            let version = stored.record.version + 7;
            let changed = VdiskRecord { fenced: vec![FENCED[1]], version, ..stored.record.clone() };
            volumes.catalogue.update(&stored, changed).await.unwrap();
        });
    }
    (world, [id, other, clone])
}

async fn check_brought_up(volumes: &Rc<Volumes>, id: VdiskId, is_changed_since: bool) {
    let now = if is_changed_since { "a" } else { "renamed" };
    assert_eq!(byte_at(volumes, now, 0).await, 2);
    assert_eq!(byte_at(volumes, now, 3 << 20).await, 3);
    assert_eq!(byte_at(volumes, "clone", 0).await, 5);
    assert_eq!(byte_at(volumes, "clone", 3 << 20).await, 3);
    assert_eq!(byte_at(volumes, "moved", 0).await, 1);
    let (vdisk, _, since) = volumes.snapshot_named(id, &name("since")).await.unwrap();
    assert_eq!(vdisk.read_snapshot(since.id, range(0, 1)).await.unwrap()[0], 2);
    let record = volumes.record(id).await.unwrap().record;
    assert_eq!((record.size_bytes, record.name.as_str()), (4 << 20, now));
    assert_eq!(FENCED.map(|uuid| record.fenced.contains(&uuid)), [true, is_changed_since]);
    write(volumes, now, 4096, 4, 4096).await;
}

fn older_registry_is_brought_up(is_changed_since: bool) {
    let (world, [id, other, clone]) = world_with_an_older_registry(is_changed_since);
    for is_again in [false, true] {
        world.life(async |volumes: Rc<Volumes>| {
            if !is_again {
                for id in [id, other] {
                    let opened = volumes.ensure_open(id).await.map(drop);
                    assert!(opened.unwrap_err().detail.contains("ovs vpool recover"));
                }
                assert_eq!(recovered(&volumes).await, BTreeSet::from([id, other, clone]));
            }
            assert_eq!(recovered(&volumes).await, BTreeSet::new());
            check_brought_up(&volumes, id, is_changed_since).await;
        });
    }
}

#[test]
fn a_recovery_of_an_older_registry_that_is_cut_off_at_any_commit_is_asked_for_again() {
    let recover = async |volumes: Rc<Volumes>| {
        let task = volumes.recover_vpool(name("default")).await.unwrap().0;
        let _is_dead = volumes.tasks.wait(task.uuid, Duration::from_secs(60)).await;
    };
    for is_changed_since in [false, true] {
        let (world, _) = world_with_an_older_registry(is_changed_since);
        let ((), commits) = world.mortal_life(u64::MAX, Death::Before, recover);
        assert!(commits > 5, "{commits}");
        for n in 1..=commits {
            for death in [Death::Before, Death::After] {
                let (world, [id, ..]) = world_with_an_older_registry(is_changed_since);
                world.mortal_life(n, death, recover);
                // What is opened meanwhile, and what was begun with it, goes on.
                world.life(async |volumes: Rc<Volumes>| {
                    volumes.begin_background();
                    tokio::time::sleep(Duration::from_secs(30)).await;
                });
                world.life(async |volumes: Rc<Volumes>| {
                    recovered(&volumes).await;
                    check_brought_up(&volumes, id, is_changed_since).await;
                });
            }
        }
    }
}

/// A vDisk remembers so many; the newest of both records are among them.
#[test]
fn the_newest_fences_survive_a_recovery() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let id = volumes.create_vdisk(new_vdisk("a", 4096), no_terms()).await.unwrap().value.uuid;
        let record = volumes.record(id).await.unwrap().record;
        let uuids = |range: std::ops::Range<u128>| range.map(Uuid::from_u128).collect::<Vec<_>>();
        let known = VdiskRecord { fenced: [uuids(0..56), uuids(500..508)].concat(), ..record.clone() };
        for version in [record.version, record.version + 1] {
            let told = VdiskRecord { fenced: uuids(100..164), version, ..record.clone() };
            let merged = super::super::recover::merged(&known, told);
            assert_eq!(merged.fenced, [uuids(108..164), uuids(500..508)].concat());
        }
    });
}

/// What it was cloned from is as the registry says, and open.
#[test]
fn a_clone_that_an_older_registry_does_not_know_is_taken_in() {
    let mut world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        let id = volumes.create_vdisk(new_vdisk("a", 1 << 20), no_terms()).await.unwrap().value.uuid;
        write(&volumes, "a", 0, 1, 4096).await;
        volumes.create_snapshot(vdisk_ref("a"), new_snapshot("s"), no_terms()).await.unwrap();
        volumes.ensure_open(id).await.unwrap().destage().await.unwrap();
    });
    let older = Rc::new(MemoryRegistry::clone(&world.registry));
    let clone = world.life(async |volumes: Rc<Volumes>| {
        let source = Source { vdisk: vdisk_ref("a"), snapshot: Some(SnapshotRef::Name(name("s"))) };
        let request =
            CreateVdisk { source: Some(source), ..CreateVdisk::new(name("default"), name("clone")) };
        let id = volumes.create_vdisk(request, no_terms()).await.unwrap().value.uuid;
        write(&volumes, "clone", 4096, 5, 4096).await;
        volumes.ensure_open(id).await.unwrap().destage().await.unwrap();
        id
    });
    world.registry = older;
    for is_again in [false, true] {
        world.life(async |volumes: Rc<Volumes>| {
            assert_eq!(byte_at(&volumes, "a", 0).await, 1);
            let expected = if is_again { BTreeSet::new() } else { BTreeSet::from([clone]) };
            assert_eq!(recovered(&volumes).await, expected);
            if !is_again {
                let snapshot = volumes.resolve(&vdisk_ref("a")).await.unwrap();
                volumes
                    .delete_snapshot(VdiskRef::Id(snapshot), SnapshotRef::Name(name("s")), no_terms())
                    .await
                    .unwrap();
            }
            assert_eq!(byte_at(&volumes, "clone", 0).await, 1);
            assert_eq!(byte_at(&volumes, "clone", 4096).await, 5);
        });
    }
}

/// It was taken out of the trash since.
#[test]
fn what_an_older_registry_has_in_its_trash_is_not_deleted() {
    for (is_written, was_begun) in [(false, false), (true, false), (true, true)] {
        let mut world = World::new();
        let id = world.life(async |volumes: Rc<Volumes>| {
            let id = volumes.create_vdisk(new_vdisk("a", 1 << 20), no_terms()).await.unwrap().value.uuid;
            write(&volumes, "a", 0, 1, 4096).await;
            volumes.ensure_open(id).await.unwrap().destage().await.unwrap();
            volumes.delete_vdisk(vdisk_ref("a"), DeleteVdiskQuery::default(), no_terms()).await.unwrap();
            id
        });
        let older = Rc::new(MemoryRegistry::clone(&world.registry));
        world.life(async |volumes: Rc<Volumes>| {
            volumes.restore_trash(VdiskRef::Id(id), RestoreTrash { name: None }, no_terms()).await.unwrap();
            if is_written {
                write(&volumes, "a", 0, 2, 4096).await;
                volumes.ensure_open(id).await.unwrap().destage().await.unwrap();
            }
        });
        world.registry = older;
        world.later(Duration::from_secs(7200));
        for is_again in [false, true] {
            world.life(async |volumes: Rc<Volumes>| {
                volumes.expire_trash().await.unwrap();
                let stored = volumes.record(id).await.unwrap();
                assert_eq!(stored.record.state, State::Ready);
                if !is_again {
                    assert!(stored.record.trash.is_some());
                    let mut record = stored.record.clone();
                    if was_begun {
                        // As an ovsd did that looked at nothing else.
                        record.version += 1;
                        record.state = State::Deleting;
                        volumes.catalogue.update(&stored, record).await.unwrap();
                    } else {
                        let deleted = volumes.delete_trash(VdiskRef::Id(id), no_terms()).await;
                        refused(deleted, ProblemKind::Conflict);
                    }
                    assert_eq!(recovered(&volumes).await, BTreeSet::from([id]));
                }
                assert_eq!(byte_at(&volumes, "a", 0).await, if is_written { 2 } else { 1 });
            });
        }
    }
}

#[test]
fn what_is_in_the_trash_stays_while_its_backend_is_away() {
    let world = World::new();
    let id = world.life(async |volumes: Rc<Volumes>| {
        let id = volumes.create_vdisk(new_vdisk("a", 1 << 20), no_terms()).await.unwrap().value.uuid;
        volumes.delete_vdisk(vdisk_ref("a"), DeleteVdiskQuery::default(), no_terms()).await.unwrap();
        id
    });
    world.later(Duration::from_secs(7200));
    let (folder, away) = (world.paths().state_dir().join("backend"), world.path().join("away"));
    std::fs::rename(&folder, &away).unwrap();
    world.life(async |volumes: Rc<Volumes>| {
        volumes.expire_trash().await.unwrap();
        refused(volumes.delete_trash(VdiskRef::Id(id), no_terms()).await, ProblemKind::Offline);
        assert!(volumes.record(id).await.unwrap().record.trash.is_some());
    });
    std::fs::rename(&away, &folder).unwrap();
    world.life(async |volumes: Rc<Volumes>| {
        volumes.expire_trash().await.unwrap();
        refused(volumes.record(id).await, ProblemKind::NotFound);
    });
}

/// What the folder says is read before anything of it is known here: then it may go.
#[test]
fn a_backend_becomes_known_when_its_vpool_has_been_read() {
    let (world, disk) = (World::new(), World::new());
    disk.life(async |_: Rc<Volumes>| {});
    let folder = disk.paths().state_dir().join("backend/default");
    world.life(async |volumes: Rc<Volumes>| {
        volumes.delete_vpool(name("default"), Default::default(), no_terms()).await.unwrap();
        let path = folder.to_string_lossy().into_owned();
        let backend = CreateBackend::dir(name("found"), path);
        let request = RecoverVpool { name: name("default"), backend };
        let held = world.gates.hold(Call::Commit, "backend-name/found");
        let recovering = volumes.recover_lost_vpool(request);
        let removing = async {
            world.gates.until_held().await;
            let namespaces = std::fs::read_dir(&folder).unwrap();
            let pools = namespaces.map(|namespace| namespace.unwrap().path().join("pool"));
            assert_eq!(pools.filter(|pool| std::fs::remove_dir_all(pool).is_ok()).count(), 1);
            drop(held);
        };
        let (recovered, ()) = tokio::join!(recovering, removing);
        recovered.unwrap();
    });
}

#[test]
fn a_recovery_of_what_is_all_there_changes_nothing() {
    World::new().life(async |volumes: Rc<Volumes>| {
        fill(&volumes).await;
        let before = told(&volumes).await;
        let task = volumes.recover_vpool(name("default")).await.unwrap().0;
        let over = volumes.tasks.wait(task.uuid, Duration::from_secs(60)).await.unwrap();
        assert_eq!(over.result.unwrap()["taken_in"], serde_json::json!([]));
        assert_eq!(told(&volumes).await, before);
    });
}

#[test]
fn event_numbers_grow_over_restarts() {
    let mut world = World::new();
    let mut newest = 0;
    for round in 0..4 {
        newest = world.life(async |volumes: Rc<Volumes>| {
            volumes.create_vdisk(new_vdisk(&format!("v{round}"), 8192), no_terms()).await.unwrap();
            let now = volumes.events.newest().0;
            assert!(now > newest);
            now
        });
        if round == 2 {
            world.later(Duration::from_secs(3600));
            world.lose_registry();
        }
    }
}
