//! Drives that are away, hang, or changed places; what is lost with the registry, and what of it cannot be read.

use super::{
    backends::{THREE_COPIES, composite, files_below, folder, make_drives, make_pool, namespaces, vdisk},
    presets::{encrypted, key_file, preset},
    vpools::vpool,
    *,
};
use crate::volumes::{
    drive::{Drive, Leaf, Location},
    inventory::Inventory,
    namespace::Namespace,
};
use ovs_api::{CreateBackend, DeleteVdiskQuery, DeleteVpoolQuery, ListQuery, RecoverVpool, VpoolState};
use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, symlink},
    path::PathBuf,
};

async fn make_dirs(world: &World, volumes: &Volumes, names: &[&str]) {
    for text in names {
        let request = CreateBackend::dir(name(text), folder(world, text).to_string_lossy());
        volumes.create_backend(request, no_terms()).await.unwrap();
    }
}

async fn told(volumes: &Volumes) -> Vec<(Name, Uuid, String, Option<Name>)> {
    let shown = volumes.list_backends(ListQuery::default()).await.unwrap().items;
    shown.into_iter().map(|backend| (backend.name, backend.uuid, backend.node, backend.preset)).collect()
}

async fn write_something(volumes: &Volumes, byte: u8) {
    let vdisk = vdisk(volumes).await;
    vdisk.write(ByteOffset(0), vec![byte; 4096].into(), true).await.unwrap();
    vdisk.destage().await.unwrap();
}

async fn delete_pool(volumes: &Rc<Volumes>) -> Result<(), Problem> {
    volumes
        .delete_vpool(name("p"), DeleteVpoolQuery { purge_trash: true, ..Default::default() }, no_terms())
        .await
}

async fn delete_vdisk(volumes: &Rc<Volumes>) {
    let purge = DeleteVdiskQuery { purge: true };
    volumes.delete_vdisk("p:v".parse().unwrap(), purge, no_terms()).await.unwrap();
}

#[test]
fn a_lost_registry_finds_every_directory_again_however_long_they_are_away() {
    let mut world = World::new();
    let before = world.life(async |volumes: Rc<Volumes>| {
        make_dirs(&world, &volumes, &["a", "b", "c", "spare"]).await;
        volumes.create_preset(preset("mirror", &[(1, 1, 2, 2)]), no_terms()).await.unwrap();
        volumes.create_preset(preset("one", &[(1, 0, 1, 1)]), no_terms()).await.unwrap();
        for (text, of, preset) in [
            ("pair", &["a", "b"][..], "mirror"),
            ("single", &["c"], "one"),
            ("all", &["pair", "single"], "mirror"),
        ] {
            volumes.create_backend(composite(text, of, preset), no_terms()).await.unwrap();
        }
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
        let new = CreateVdisk { size_bytes: Some(1 << 20), ..CreateVdisk::new(name("p"), name("v")) };
        volumes.create_vdisk(new, no_terms()).await.unwrap();
        write_something(&volumes, 7).await;
        told(&volumes).await
    });
    world.lose_registry();
    let (drives, away) = (world.path().join("drives"), world.path().join("away"));
    fs::rename(&drives, &away).unwrap();
    for _ in 0..2 {
        world.life(async |volumes: Rc<Volumes>| {
            assert_eq!(volumes.get_vpool(name("p")).await.unwrap().state, VpoolState::Offline);
            assert_eq!(told(&volumes).await, before);
        });
    }
    world.lose_registry();
    fs::rename(&away, &drives).unwrap();
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(told(&volumes).await, before);
        assert_eq!(vdisk(&volumes).await.read(range(0, 1)).await.unwrap()[0], 7);
        volumes.delete_backend(name("spare"), no_terms()).await.unwrap();
    });
    world.lose_registry();
    world.life(async |volumes: Rc<Volumes>| {
        let gone = told(&volumes).await;
        assert!(!gone.iter().any(|backend| backend.0 == name("spare")), "what was deleted stays deleted");
        assert_eq!(gone.len(), before.len() - 1);
    });
}

#[test]
fn drives_that_changed_places_are_not_taken_for_one_another() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        write_something(&volumes, 7).await;
    });
    let swap = || {
        let (a, b, other) = (folder(&world, "a"), folder(&world, "b"), world.path().join("other"));
        fs::rename(&a, &other).unwrap();
        fs::rename(&b, &a).unwrap();
        fs::rename(&other, &b).unwrap();
    };
    swap();
    world.life(async |volumes: Rc<Volumes>| {
        let reason = volumes.get_vpool(name("p")).await.unwrap().state_reason.unwrap();
        assert!(reason.contains("the place of drive"), "{reason}");
    });
    swap();
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(vdisk(&volumes).await.read(range(0, 1)).await.unwrap()[0], 7);
    });
}

#[test]
fn one_directory_under_two_names_is_not_two_drives() {
    let world = World::new();
    let disk = |text: &str| world.path().join("disks").join(text);
    world.life(async |volumes: Rc<Volumes>| {
        fs::create_dir_all(world.path().join("drives")).unwrap();
        for text in ["a", "b", "c"] {
            fs::create_dir_all(disk(text)).unwrap();
            symlink(disk(text), folder(&world, text)).unwrap();
        }
        make_drives(&world, &volumes, &["a", "b", "c"]).await;
        volumes.create_preset(preset("p", THREE_COPIES), no_terms()).await.unwrap();
        volumes.create_backend(composite("all", &["a", "b", "c"], "p"), no_terms()).await.unwrap();
        fs::remove_file(folder(&world, "b")).unwrap();
        symlink(disk("a"), folder(&world, "b")).unwrap();
        let made = volumes.create_vpool(vpool("p", Some("all")), no_terms()).await;
        let problem = refused(made, ProblemKind::Unavailable);
        assert!(problem.detail.contains("is not the directory of this drive"), "{problem}");
        for text in ["a", "c"] {
            assert_eq!(namespaces(&disk(text)), [] as [PathBuf; 0], "nothing is left of it");
        }
    });
}

fn dir_drive(volumes: &Volumes, root: PathBuf) -> Drive {
    let location = Location::Dir { folder: root.join("vpool-x"), root, io_uring: false };
    Drive::new(name("d"), Leaf { drive: None, location }, volumes.clock.clone())
}

#[test]
fn a_drive_is_opened_once_for_all_who_ask_and_tried_again_after_a_while() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        let drive = dir_drive(&volumes, world.path().join("d"));
        let (one, other) = tokio::join!(drive.open(Namespace::New), drive.open(Namespace::New));
        assert!(Rc::ptr_eq(&one.unwrap(), &other.unwrap()));

        let (here, away) = (world.path().join("d"), world.path().join("away"));
        fs::rename(&here, &away).unwrap();
        let drive = dir_drive(&volumes, here.clone());
        assert!(drive.open(Namespace::Existing).await.is_err());
        fs::rename(&away, &here).unwrap();
        assert!(drive.open(Namespace::Existing).await.is_err(), "not at every request");
        volumes.clock.sleep(Duration::from_secs(6)).await;
        assert!(drive.open(Namespace::Existing).await.is_ok());
    });
}

/// Time passes, also while a thread waits for a disk that does not answer.
async fn while_time_passes<T>(seconds_max: u64, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    for _ in 0..seconds_max * 10 {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::task::yield_now() => {}
        }
        std::thread::sleep(Duration::from_millis(5));
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    panic!("it lasts longer than {seconds_max} s");
}

/// The marker of a vPool's folder in a directory, replaced by something that nobody can read to its end.
fn hang(folder: &Path) -> PathBuf {
    let namespace = namespaces(folder).remove(0);
    let marker = namespace.join(".ovs-backend");
    fs::remove_file(&marker).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &marker, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    marker
}

#[test]
fn a_drive_that_hangs_keeps_nobody_from_starting() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        write_something(&volumes, 7).await;
    });
    let marker = hang(&folder(&world, "b"));
    run(async {
        let registry = world.mortal(u64::MAX, Death::Before);
        let volumes = while_time_passes(30, world.start(registry)).await;
        assert_eq!(
            while_time_passes(30, volumes.get_vpool(name("p"))).await.unwrap().state,
            VpoolState::Degraded
        );
        let shown = volumes.get_backend(name("all")).await.unwrap();
        let problem = shown.drives.iter().find(|drive| drive.name == name("b")).unwrap().problem.as_ref();
        assert!(problem.unwrap().contains("does not answer"), "{problem:?}");
        // Whoever waits is let go.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        drop(fs::OpenOptions::new().write(true).custom_flags(nonblocking).open(&marker).unwrap());
    });
}

#[test]
fn a_vpool_begins_and_ends_with_all_drives_or_not_at_all() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "b", "c"]).await;
        volumes.create_preset(preset("p", THREE_COPIES), no_terms()).await.unwrap();
        volumes.create_backend(composite("all", &["a", "b", "c"], "p"), no_terms()).await.unwrap();
        let (b, away) = (folder(&world, "b"), world.path().join("away"));
        fs::rename(&b, &away).unwrap();
        let made = volumes.create_vpool(vpool("p", Some("all")), no_terms()).await;
        let problem = refused(made, ProblemKind::Unavailable);
        assert!(problem.detail.contains("b: "), "{problem}");
        assert!(!b.exists() && namespaces(&folder(&world, "a")).is_empty());
        fs::rename(&away, &b).unwrap();
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
    });
    let (b, away) = (folder(&world, "b"), world.path().join("away"));
    fs::rename(&b, &away).unwrap();
    world.life(async |volumes: Rc<Volumes>| {
        refused(delete_pool(&volumes).await, ProblemKind::Unavailable);
        assert_eq!(
            volumes.get_vpool(name("p")).await.unwrap().state,
            VpoolState::Degraded,
            "nothing has begun"
        );
        refused(volumes.delete_backend(name("all"), no_terms()).await, ProblemKind::InUse);
        fs::rename(&away, &b).unwrap();
        volumes.clock.sleep(Duration::from_secs(10)).await;
        delete_pool(&volumes).await.unwrap();
        assert!(namespaces(&b).is_empty());
        volumes.delete_backend(name("all"), no_terms()).await.unwrap();
    });
}

/// A drive that was there when the vPool was opened, and is not when it is deleted.
#[test]
fn a_vpool_ends_with_all_drives_that_are_there_now() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        write_something(&volumes, 7).await;
        delete_vdisk(&volumes).await;
        let (b, away) = (folder(&world, "b"), world.path().join("away"));
        fs::rename(&b, &away).unwrap();
        fs::create_dir(&b).unwrap();
        let problem = refused(delete_pool(&volumes).await, ProblemKind::Unavailable);
        assert!(problem.detail.contains("b: "), "{problem}");
        fs::remove_dir(&b).unwrap();
        fs::rename(&away, &b).unwrap();
        volumes.clock.sleep(Duration::from_secs(10)).await;
        delete_pool(&volumes).await.unwrap();
        assert!(namespaces(&b).is_empty());
    });
}

#[test]
fn a_bare_mount_point_is_no_drive() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "b", "c"]).await;
        volumes.create_preset(preset("p", THREE_COPIES), no_terms()).await.unwrap();
        volumes.create_backend(composite("all", &["a", "b", "c"], "p"), no_terms()).await.unwrap();
        let (b, away) = (folder(&world, "b"), world.path().join("away"));
        fs::rename(&b, &away).unwrap();
        fs::create_dir(&b).unwrap();
        let made = volumes.create_vpool(vpool("p", Some("all")), no_terms()).await;
        let problem = refused(made, ProblemKind::Unavailable);
        assert!(problem.detail.contains("not mounted"), "{problem}");
        assert!(namespaces(&b).is_empty() && namespaces(&folder(&world, "a")).is_empty());
    });
}

/// A drive fails, and another disk is mounted in its place while ovsd runs.
#[test]
fn a_drive_that_failed_says_again_which_it_is() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        write_something(&volumes, 7).await;
        let (b, away) = (folder(&world, "b"), world.path().join("away"));
        fs::rename(&b, &away).unwrap();
        write_something(&volumes, 8).await;
        copy_folder(&folder(&world, "c"), &b);
        let before = files_below(&b);
        volumes.clock.sleep(Duration::from_secs(400)).await;
        write_something(&volumes, 9).await;
        let shown = volumes.get_backend(name("all")).await.unwrap();
        let problem = shown.drives[1].problem.as_ref().expect("it is another disk");
        assert!(problem.contains("the place of drive"), "{problem}");
        assert_eq!(files_below(&b), before, "nothing is put there");
        fs::remove_dir_all(&b).unwrap();
        fs::rename(&away, &b).unwrap();
        volumes.clock.sleep(Duration::from_secs(400)).await;
        let shown = volumes.get_backend(name("all")).await.unwrap();
        assert_eq!(shown.drives[1].problem, None);
    });
}

#[test]
fn a_vpool_that_is_not_taken_in_whole_is_not_deleted_unasked() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        delete_vdisk(&volumes).await;
        let id = volumes.get_vpool(name("p")).await.unwrap().uuid;
        volumes.change_inventory(|inventory| inventory.incomplete.push(id)).await.unwrap();
        let problem = refused(delete_pool(&volumes).await, ProblemKind::Conflict);
        assert!(problem.detail.contains("--discard-unread"), "{problem}");
        let query = DeleteVpoolQuery { discard_unread: true, ..Default::default() };
        volumes.delete_vpool(name("p"), query, no_terms()).await.unwrap();
        assert!(namespaces(&folder(&world, "a")).is_empty());
    });
}

/// An error came between the backend that a vPool gets of its own and the vPool.
#[test]
fn a_backend_that_was_left_over_is_used_by_the_next_attempt() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        let path = volumes.settings.paths.state_dir().join("backend/p");
        let store = ovs_cluster::catalogue::StoreRecord::Dir { path: path.to_string_lossy().into_owned() };
        let left = volumes
            .insert_backend(name("left"), store, Default::default(), serde_json::Value::Null)
            .await
            .unwrap();
        let made = volumes.create_vpool(vpool("p", None), no_terms()).await.unwrap().value;
        assert_eq!(made.backend, name("left"));
        refused(volumes.delete_backend(name("left"), no_terms()).await, ProblemKind::InUse);
        delete_pool(&volumes).await.unwrap();
        refused(volumes.get_backend(left.name).await, ProblemKind::NotFound);
    });
}

#[test]
fn what_is_half_deleted_keeps_its_backend_and_is_finished_by_itself() {
    let world = World::new();
    let id = world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        delete_vdisk(&volumes).await;
        volumes.get_vpool(name("p")).await.unwrap().uuid
    });
    world.change_registry(&format!("vpool/{id}"), |bytes| {
        let mut record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        record["state"] = serde_json::json!("deleting");
        serde_json::to_vec(&record).unwrap()
    });
    // A file where the folder was cannot be removed as one.
    let (namespace, other) = (folder(&world, "b").join(format!("vpool-{id}")), world.path().join("other"));
    fs::rename(&namespace, &other).unwrap();
    fs::write(&namespace, "").unwrap();
    world.life(async |volumes: Rc<Volumes>| {
        refused(volumes.get_vpool(name("p")).await, ProblemKind::NotFound);
        refused(volumes.delete_backend(name("all"), no_terms()).await, ProblemKind::InUse);
        refused(volumes.create_vpool(vpool("q", Some("all")), no_terms()).await, ProblemKind::InUse);
        let problem =
            refused(volumes.create_vpool(vpool("p", None), no_terms()).await, ProblemKind::Conflict);
        assert!(problem.detail.contains("being deleted"), "{problem}");
        let named = volumes.list_backends(ListQuery::default()).await.unwrap().items;
        assert!(
            !named.iter().any(|backend| backend.name == name("p")),
            "no backend is left of the one refused"
        );
        fs::remove_file(&namespace).unwrap();
        fs::rename(&other, &namespace).unwrap();
        volumes.begin_background();
        volumes.clock.sleep(Duration::from_secs(130)).await;
        for text in ["a", "b", "c"] {
            assert!(namespaces(&folder(&world, text)).is_empty(), "{text}");
        }
        volumes.delete_backend(name("all"), no_terms()).await.unwrap();
        volumes.create_vpool(vpool("p", None), no_terms()).await.unwrap();
    });
}

#[test]
fn who_opens_a_vpool_does_not_bring_it_back_from_its_deletion() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        delete_vdisk(&volumes).await;
    });
    world.life(async |volumes: Rc<Volumes>| {
        let pool = volumes.pool_by_name(&name("p")).unwrap();
        let copy = world.path().join("copy");
        copy_folder(&world.path().join("drives"), &copy);
        delete_pool(&volumes).await.unwrap();
        // As if all had been opened before it went.
        fs::remove_dir_all(world.path().join("drives")).unwrap();
        fs::rename(&copy, world.path().join("drives")).unwrap();
        refused(volumes.use_pool(&pool).await, ProblemKind::NotFound);
        refused(volumes.get_vpool(name("p")).await, ProblemKind::NotFound);
    });
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[test]
fn a_recovery_takes_neither_what_is_in_use_nor_the_record_of_another_vpool() {
    let world = World::new();
    let other = World::new();
    let (id, disk) = other.life(async |volumes: Rc<Volumes>| {
        let id = volumes.get_vpool(name("default")).await.unwrap().uuid;
        (id, other.paths().state_dir().join("backend/default"))
    });
    let recover = async |volumes: &Rc<Volumes>, text: &str| {
        let backend = CreateBackend::dir(name("found"), folder(&world, text).to_string_lossy());
        volumes.recover_lost_vpool(RecoverVpool { name: name("x"), backend }).await
    };
    world.life(async |volumes: Rc<Volumes>| {
        make_dirs(&world, &volumes, &["a"]).await;
        volumes.create_vpool(vpool("p", Some("a")), no_terms()).await.unwrap();
        copy_folder(&disk, &folder(&world, "a"));
        let problem = refused(recover(&volumes, "a").await, ProblemKind::InUse);
        assert!(problem.detail.contains("vPool p"), "{problem}");

        let renamed = folder(&world, "b").join(format!("vpool-{}", Uuid::from_u128(7)));
        copy_folder(&disk.join(format!("vpool-{id}")), &renamed);
        let problem = refused(recover(&volumes, "b").await, ProblemKind::Damaged);
        assert!(problem.detail.contains(&id.to_string()), "{problem}");
        refused(volumes.get_vpool(name("x")).await, ProblemKind::NotFound);
        refused(volumes.get_backend(name("found")).await, ProblemKind::NotFound);

        copy_folder(&disk, &folder(&world, "c"));
        recover(&volumes, "c").await.unwrap();
        assert_eq!(volumes.get_vpool(name("x")).await.unwrap().uuid, id);
    });
}

#[test]
fn a_drive_that_is_mounted_elsewhere_says_where_it_was() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| make_pool(&world, &volumes, preset("p", THREE_COPIES)).await);
    let fresh = World::new();
    let moved = world.path().join("moved");
    fs::rename(folder(&world, "c"), &moved).unwrap();
    fresh.life(async |volumes: Rc<Volumes>| {
        let backend = CreateBackend::dir(name("x"), moved.to_string_lossy());
        let recovered = volumes.recover_lost_vpool(RecoverVpool { name: name("p"), backend }).await;
        let problem = refused(recovered, ProblemKind::Conflict);
        assert!(problem.detail.contains("drives/c: mount it there"), "{problem}");
        assert_eq!(told(&volumes).await.len(), 1, "nothing is taken in");
    });
}

#[test]
fn where_fragments_are_does_not_follow_from_the_name_of_the_host() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_dirs(&world, &volumes, &["a", "b", "c"]).await;
        volumes.create_preset(preset("p", &[(1, 2, 2, 3)]), no_terms()).await.unwrap();
        volumes.create_backend(composite("all", &["a", "b", "c"], "p"), no_terms()).await.unwrap();
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
    });
    world.host_name.set("renamed");
    let is_of_host = |volumes: Rc<Volumes>| async move {
        let shown = volumes.get_backend(name("all")).await.unwrap();
        assert!(shown.drives.iter().all(|drive| drive.node == "here"), "{shown:?}");
    };
    world.life(is_of_host);
    let fresh = World::new();
    fresh.host_name.set("elsewhere");
    fresh.life(async |volumes: Rc<Volumes>| {
        let backend = CreateBackend::dir(name("x"), folder(&world, "a").to_string_lossy());
        volumes.recover_lost_vpool(RecoverVpool { name: name("p"), backend }).await.unwrap();
        is_of_host(volumes).await;
    });
}

#[test]
fn a_record_that_cannot_be_read_hides_no_other_and_nothing_is_forgotten_meanwhile() {
    let world = World::new();
    let key = key_file(&world, &"0f".repeat(32));
    let (preset_uuid, backend_uuid) = world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "b", "c"]).await;
        volumes.create_preset(preset("one", &[(1, 0, 1, 1)]), no_terms()).await.unwrap();
        let made = volumes.create_preset(encrypted("e", key.clone()), no_terms()).await.unwrap().value;
        volumes.create_backend(composite("x", &["a"], "one"), no_terms()).await.unwrap();
        let y = composite("y", &["b", "c"], "one");
        (made.uuid, volumes.create_backend(y, no_terms()).await.unwrap().value.uuid)
    });
    let inventory_path = world.paths().state_dir().join("vpools.json");
    let wrapped = Inventory::load(&inventory_path).unwrap().unwrap().presets;
    let is_newer = |bytes: Vec<u8>| {
        let mut record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        record["format"] = serde_json::json!(99);
        serde_json::to_vec(&record).unwrap()
    };
    world.change_registry(&format!("preset/{preset_uuid}"), is_newer);
    world.change_registry(&format!("backend/{backend_uuid}"), is_newer);
    world.life(async |volumes: Rc<Volumes>| {
        let names: Vec<Name> = told(&volumes).await.into_iter().map(|backend| backend.0).collect();
        assert_eq!(names, ["a", "b", "c", "default", "x"].map(name));
        // Either may be what the unreadable ones need.
        volumes.delete_backend(name("x"), no_terms()).await.unwrap_err();
        let problem = refused(volumes.delete_backend(name("b"), no_terms()).await, ProblemKind::Damaged);
        assert!(problem.detail.contains("cannot be told"), "{problem}");
        make_dirs(&world, &volumes, &["d"]).await;
    });
    let after = Inventory::load(&inventory_path).unwrap().unwrap();
    assert!(wrapped.iter().all(|preset| after.presets.contains(preset)), "keys are still there");
    assert!(after.others.iter().any(|record| record["uuid"] == serde_json::json!(backend_uuid)));

    let drive = world.life(async |volumes: Rc<Volumes>| volumes.get_backend(name("a")).await.unwrap().uuid);
    world.change_registry(&format!("backend/{drive}"), is_newer);
    world.life(async |volumes: Rc<Volumes>| {
        let shown = volumes.get_backend(name("x")).await.unwrap();
        assert!(shown.problem.unwrap().contains(&drive.to_string()));
        refused(volumes.delete_preset(name("one"), no_terms()).await, ProblemKind::InUse);
    });
}

#[test]
fn the_problems_of_a_drive_of_a_drive_are_shown() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "b", "c", "d"]).await;
        volumes.create_preset(preset("mirror", &[(1, 1, 1, 1)]), no_terms()).await.unwrap();
        volumes.create_backend(composite("east", &["a", "b"], "mirror"), no_terms()).await.unwrap();
        volumes.create_backend(composite("west", &["c", "d"], "mirror"), no_terms()).await.unwrap();
        volumes.create_backend(composite("all", &["east", "west"], "mirror"), no_terms()).await.unwrap();
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
        fs::rename(folder(&world, "d"), world.path().join("away")).unwrap();
        let shown = volumes.get_backend(name("all")).await.unwrap();
        let problems: Vec<Option<bool>> =
            shown.drives.iter().map(|drive| drive.problem.as_ref().map(|p| p.starts_with("d: "))).collect();
        assert_eq!(problems, [None, Some(true)]);
    });
}
