//! Composites and stores: what is refused, what is shown, and vPools that live through the loss of a drive.

use super::{
    presets::{encrypted, key_file, preset, secret_file},
    vpools::vpool,
    *,
};
use crate::volumes::remotes::{decode_store, store_of};
use ovs_api::{
    AlarmKind, BackendKind, CreateBackend, DeleteVdiskQuery, DeleteVpoolQuery, ListQuery, RecoverVpool,
    RemoteStore, TaskState, VpoolState,
};
use ovs_cluster::catalogue::StoreRecord;
use ovs_remote::Limits;
use std::{fs, path::PathBuf};

pub(super) fn composite(text: &str, of: &[&str], preset: &str) -> CreateBackend {
    CreateBackend {
        of: of.iter().copied().map(name).collect(),
        preset: Some(name(preset)),
        ..CreateBackend::new(name(text), BackendKind::Composite)
    }
}

pub(super) fn folder(world: &World, text: &str) -> PathBuf {
    world.path().join("drives").join(text)
}

/// A bucket at this address.
fn s3(endpoint: &str, secret: &str) -> CreateBackend {
    let secret = ovs_api::SecretReference::try_from(secret.to_owned()).unwrap();
    let store = RemoteStore {
        endpoint: Some(endpoint.into()),
        container: "bucket".into(),
        region: None,
        prefix: None,
        bucket_in_host: false,
        bytes_per_s: None,
        requests_max: None,
        project: None,
        domain: None,
        user: Some(secret.clone()),
        secret,
    };
    CreateBackend { remote: Some(store), ..CreateBackend::new(name("s"), BackendKind::S3) }
}

#[test]
fn a_stores_limits_are_in_its_record() {
    let request = s3("http://127.0.0.1:1", "env:OVS_SECRET_STORE_NONE");
    let mut asked = request.remote.unwrap();
    for (bytes_per_s, requests_max) in [(None, None), (Some(1 << 20), Some(4))] {
        (asked.bytes_per_s, asked.requests_max) = (bytes_per_s, requests_max);
        let Some(StoreRecord::Remote { store, .. }) = store_of(BackendKind::S3, &asked) else {
            panic!("it is a store");
        };
        // Those without are as they were before there were any.
        assert_eq!(store.get("limits").is_some(), bytes_per_s.is_some(), "{store}");
        assert_eq!(decode_store(&store).unwrap().limits, Limits { bytes_per_s, requests_max });
    }
}

/// Directories, each a node of its own.
pub(super) async fn make_drives(world: &World, volumes: &Volumes, names: &[&str]) {
    for text in names {
        let request = CreateBackend {
            node: Some(format!("node-{text}")),
            ..CreateBackend::dir(name(text), folder(world, text).to_string_lossy())
        };
        volumes.create_backend(request, no_terms()).await.unwrap();
    }
}

/// Three directories, a composite `all` of them under `preset`, and the vPool `p` on it with a vDisk `v`.
pub(super) async fn make_pool(world: &World, volumes: &Rc<Volumes>, request: ovs_api::CreatePreset) {
    make_drives(world, volumes, &["a", "b", "c"]).await;
    let preset_name = request.name.to_string();
    volumes.create_preset(request, no_terms()).await.unwrap();
    volumes.create_backend(composite("all", &["a", "b", "c"], &preset_name), no_terms()).await.unwrap();
    volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
    let vdisk = CreateVdisk { size_bytes: Some(1 << 20), ..CreateVdisk::new(name("p"), name("v")) };
    volumes.create_vdisk(vdisk, no_terms()).await.unwrap();
}

pub(super) async fn vdisk(volumes: &Volumes) -> ovs_volume::Vdisk {
    let id = volumes.resolve(&"p:v".parse().unwrap()).await.unwrap();
    volumes.ensure_open(id).await.unwrap()
}

/// One parity, and any drive may be silent.
pub(super) const THREE_COPIES: &[(u8, u8, u8, u8)] = &[(1, 2, 2, 1)];

#[test]
fn a_composite_is_shown_with_its_drives_and_what_can_be_lost() {
    let world = World::new();
    let made = world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "b", "c"]).await;
        volumes.create_preset(preset("p", &[(2, 1, 3, 1), (1, 1, 2, 1)]), no_terms()).await.unwrap();
        let request = composite("all", &["a", "b", "c"], "p");
        let plan = volumes.plan_backend(request.clone()).await.unwrap();
        assert_eq!((plan.drive_count, plan.node_count, plan.site_count), (3, 3, 1));
        let first = &plan.policies[0];
        assert_eq!((plan.policy, first.stored_percent, first.drives_lost_max), (Some(first.policy), 150, 1));
        let (raw, usable) = (plan.raw_bytes.unwrap(), plan.usable_bytes.unwrap());
        assert_eq!(usable / 2, raw / 3, "two thirds of what there is");
        assert!(plan.remarks[0].contains("one file system"), "{:?}", plan.remarks);
        refused(volumes.get_backend(name("all")).await, ProblemKind::NotFound);

        let made = volumes.create_backend(request.clone(), no_terms()).await.unwrap();
        assert!(made.is_new && !volumes.create_backend(request, no_terms()).await.unwrap().is_new);
        made.value
    });
    world.life(async |volumes: Rc<Volumes>| {
        let shown = volumes.get_backend(name("all")).await.unwrap();
        assert_eq!((shown.kind, shown.preset.as_ref()), (BackendKind::Composite, Some(&name("p"))));
        assert_eq!(shown.uuid, made.uuid);
        let drives: Vec<(&str, &str)> =
            shown.drives.iter().map(|drive| (drive.name.as_str(), drive.node.as_str())).collect();
        assert_eq!(drives, [("a", "node-a"), ("b", "node-b"), ("c", "node-c")]);
        assert_eq!(volumes.get_backend(name("a")).await.unwrap().drive_of, Some(name("all")));
    });
}

#[test]
fn what_cannot_be_a_composite_is_refused_and_changes_nothing() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "b", "c", "d"]).await;
        volumes.create_preset(preset("one", &[(1, 0, 1, 1)]), no_terms()).await.unwrap();
        volumes.create_preset(preset("wide", &[(4, 2, 5, 1)]), no_terms()).await.unwrap();
        let create = |text: &str, of: &[&str], preset: &str| {
            let request = composite(text, of, preset);
            volumes.create_backend(request, no_terms())
        };
        refused(create("x", &["a", "nothing"], "one").await, ProblemKind::NotFound);
        let problem = refused(create("x", &["a"], "nothing").await, ProblemKind::NotFound);
        assert!(problem.detail.contains("ovs preset create"), "{problem}");
        let problem = refused(create("x", &["a", "b", "c"], "wide").await, ProblemKind::Conflict);
        assert!(
            problem.detail.contains("places for 5 fragments, and 3 drives on 3 nodes have 3"),
            "{problem}"
        );
        create("ab", &["a", "b"], "one").await.unwrap();
        let problem = refused(create("x", &["a", "c"], "one").await, ProblemKind::InUse);
        assert!(problem.detail.contains("drive of backend ab"), "{problem}");
        refused(create("x", &["ab", "b"], "one").await, ProblemKind::InUse);
        refused(create("ab", &["c"], "one").await, ProblemKind::Exists);
        refused(volumes.create_vpool(vpool("p", Some("a")), no_terms()).await, ProblemKind::InUse);
        refused(volumes.delete_backend(name("a"), no_terms()).await, ProblemKind::InUse);
        volumes.create_vpool(vpool("p", Some("d")), no_terms()).await.unwrap();
        let problem = refused(create("x", &["c", "d"], "one").await, ProblemKind::InUse);
        assert!(problem.detail.contains("vPool p"), "{problem}");

        create("abc", &["ab", "c"], "one").await.unwrap();
        let problem = refused(create("deep", &["abc"], "one").await, ProblemKind::Invalid);
        assert!(problem.detail.contains("at most 2"), "{problem}");
        refused(volumes.delete_backend(name("ab"), no_terms()).await, ProblemKind::InUse);
        volumes.delete_backend(name("abc"), no_terms()).await.unwrap();
        refused(volumes.get_backend(name("x")).await, ProblemKind::NotFound);
    });
}

#[test]
fn a_record_that_says_a_backend_is_made_of_itself_is_damage() {
    let world = World::new();
    let uuid = world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a"]).await;
        volumes.create_preset(preset("one", &[(1, 0, 1, 1)]), no_terms()).await.unwrap();
        volumes.create_backend(composite("x", &["a"], "one"), no_terms()).await.unwrap();
        let y = volumes.create_backend(composite("y", &["x"], "one"), no_terms()).await.unwrap().value;
        (volumes.get_backend(name("x")).await.unwrap().uuid, y.uuid)
    });
    world.change_registry(&format!("backend/{}", uuid.0), |bytes| {
        let mut record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        record["drives"] = serde_json::json!([uuid.1]);
        serde_json::to_vec(&record).unwrap()
    });
    world.life(async |volumes: Rc<Volumes>| {
        let set = volumes.backend_set().await.unwrap();
        assert!(set.parts(uuid.1).unwrap_err().detail.contains("more than once"));
        let shown = volumes.list_backends(ListQuery::default()).await.unwrap().items;
        assert_eq!(shown.len(), 4, "it hides no other, and ends");
        assert!(volumes.get_backend(name("y")).await.unwrap().problem.unwrap().contains("more than once"));
        assert_eq!(volumes.get_vpool(name("default")).await.unwrap().state, VpoolState::Ok);
    });
}

#[test]
fn a_vpool_on_a_composite_is_under_the_composites_preset() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "d"]).await;
        volumes.create_preset(preset("one", &[(1, 0, 1, 1)]), no_terms()).await.unwrap();
        volumes.create_backend(composite("x", &["a"], "one"), no_terms()).await.unwrap();
        let under = ovs_api::CreateVpool { preset: Some(name("one")), ..vpool("q", Some("d")) };
        let problem = refused(volumes.create_vpool(under, no_terms()).await, ProblemKind::Conflict);
        assert!(problem.detail.contains("ovs backend create"), "{problem}");
        volumes.create_vpool(vpool("q", Some("d")), no_terms()).await.unwrap();
        let made = volumes.create_vpool(vpool("p", Some("x")), no_terms()).await.unwrap().value;
        assert_eq!(made.preset, name("one"));
    });
}

#[test]
fn a_vpool_over_three_directories_lives_through_the_loss_of_one() {
    let world = World::new();
    let key = key_file(&world, &"0f".repeat(32));
    let lost = folder(&world, "b");
    let away = world.path().join("away");
    world.life(async |volumes: Rc<Volumes>| {
        // Compressed, what is all the same would not show.
        let policies = preset("p", THREE_COPIES).policies;
        let compression = ovs_api::Compression::None;
        let request = ovs_api::CreatePreset { policies, compression, ..encrypted("p", key) };
        make_pool(&world, &volumes, request).await;
        let vdisk = vdisk(&volumes).await;
        vdisk.write(ByteOffset(0), vec![5; 1 << 20].into(), true).await.unwrap();
        vdisk.destage().await.unwrap();
        fs::rename(&lost, &away).unwrap();
        vdisk.write(ByteOffset(0), vec![6; 4096].into(), true).await.unwrap();
        vdisk.destage().await.unwrap();
        assert_eq!(vdisk.read(range(0, 8192)).await.unwrap()[4095..=4096], [6, 5]);
        let shown = volumes.get_backend(name("all")).await.unwrap();
        let problems: Vec<bool> = shown.drives.iter().map(|drive| drive.problem.is_some()).collect();
        assert_eq!(problems, [false, true, false]);
        let shown = volumes.get_vpool(name("p")).await.unwrap();
        assert_eq!(shown.state, VpoolState::Degraded);
        assert!(shown.state_reason.unwrap().contains("drive b: "));
        volumes.look_for_alarms().await;
        let alarms = volumes.alarms.list();
        assert!(
            alarms.iter().any(|alarm| alarm.kind == AlarmKind::Drive && alarm.subject == "b"),
            "{alarms:?}"
        );
    });
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(volumes.get_vpool(name("p")).await.unwrap().state, VpoolState::Degraded);
        assert_eq!(vdisk(&volumes).await.read(range(0, 8192)).await.unwrap()[4095..=4096], [6, 5]);
        assert!(!lost.exists(), "a drive that is away is not begun anew");
    });
    // With two away nobody knows any more what there is.
    let also = world.path().join("also");
    fs::rename(folder(&world, "c"), &also).unwrap();
    world.life(async |volumes: Rc<Volumes>| {
        let shown = volumes.get_vpool(name("p")).await.unwrap();
        assert_eq!(shown.state, VpoolState::Offline);
        let reason = shown.state_reason.unwrap();
        assert!(reason.contains("too many drives") && reason.contains("c:"), "{reason}");
        fs::rename(&also, folder(&world, "c")).unwrap();
        volumes.begin_background();
        volumes.clock.sleep(Duration::from_secs(15)).await;
        assert_eq!(vdisk(&volumes).await.read(range(0, 8192)).await.unwrap()[4095..=4096], [6, 5]);
        // What returns is used again; it is not tried at every request.
        fs::rename(&away, &lost).unwrap();
        volumes.clock.sleep(Duration::from_secs(10)).await;
        let shown = volumes.get_backend(name("all")).await.unwrap();
        assert!(shown.drives.iter().all(|drive| drive.problem.is_none()), "{:?}", shown.drives);
        assert_eq!(volumes.get_vpool(name("p")).await.unwrap().state, VpoolState::Ok);
        volumes.look_for_alarms().await;
        assert!(volumes.alarms.list().iter().all(|alarm| alarm.kind != AlarmKind::Drive));
    });
    for drive in ["a", "b", "c"] {
        let files = files_below(&folder(&world, drive));
        assert!(files.iter().any(|path| path.to_string_lossy().contains("/s/")), "{files:?}");
        for path in files {
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(64).any(|bytes| bytes == [5; 64]), "{} is in the clear", path.display());
        }
    }
}

/// What vPools have in a directory.
pub(super) fn namespaces(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).collect()
}

pub(super) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut open, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    files
}

/// A fragment of an SCO below a folder.
fn some_fragment(folder: &Path) -> PathBuf {
    let is_one = |path: &PathBuf| path.to_string_lossy().contains("/s/");
    files_below(folder).into_iter().find(is_one).expect("a fragment of an SCO")
}

#[test]
fn a_wrong_key_is_refused_at_once() {
    let world = World::new();
    let key = key_file(&world, &"0f".repeat(32));
    world.life(async |volumes: Rc<Volumes>| {
        let request =
            ovs_api::CreatePreset { policies: preset("p", THREE_COPIES).policies, ..encrypted("p", key) };
        make_pool(&world, &volumes, request).await;
    });
    key_file(&world, &"0e".repeat(32));
    world.life(async |volumes: Rc<Volumes>| {
        let reason = volumes.get_vpool(name("p")).await.unwrap().state_reason.unwrap();
        assert!(reason.contains("is not the one") && !reason.contains("0e0e"), "{reason}");
    });
    key_file(&world, &"0f".repeat(32));
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(volumes.get_vpool(name("p")).await.unwrap().state, VpoolState::Ok);
    });
}

#[test]
fn a_vpool_on_a_composite_goes_from_all_its_drives() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        refused(volumes.delete_backend(name("all"), no_terms()).await, ProblemKind::InUse);
        volumes
            .delete_vdisk("p:v".parse().unwrap(), DeleteVdiskQuery { purge: true }, no_terms())
            .await
            .unwrap();
        volumes
            .delete_vpool(name("p"), DeleteVpoolQuery { purge_trash: true, ..Default::default() }, no_terms())
            .await
            .unwrap();
        for drive in ["a", "b", "c"] {
            assert_eq!(namespaces(&folder(&world, drive)), [] as [PathBuf; 0], "{drive}");
        }
        volumes.delete_backend(name("all"), no_terms()).await.unwrap();
        volumes.delete_backend(name("a"), no_terms()).await.unwrap();
    });
}

#[test]
fn a_lost_registry_finds_composites_again() {
    let mut world = World::new();
    let before = world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        let vdisk = vdisk(&volumes).await;
        vdisk.write(ByteOffset(0), vec![7; 4096].into(), true).await.unwrap();
        vdisk.destage().await.unwrap();
        volumes.list_backends(ListQuery::default()).await.unwrap().items
    });
    world.lose_registry();
    world.life(async |volumes: Rc<Volumes>| {
        let after = volumes.list_backends(ListQuery::default()).await.unwrap().items;
        let told = |backends: &[ovs_api::Backend]| -> Vec<_> {
            backends
                .iter()
                .map(|b| (b.name.clone(), b.uuid, b.kind, b.node.clone(), b.preset.clone()))
                .collect()
        };
        assert_eq!(told(&after), told(&before));
        assert_eq!(vdisk(&volumes).await.read(range(0, 1)).await.unwrap()[0], 7);
    });
}

#[test]
fn everything_lost_but_the_drives_one_of_them_tells_the_rest() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        let vdisk = vdisk(&volumes).await;
        vdisk.write(ByteOffset(0), vec![7; 4096].into(), true).await.unwrap();
        vdisk.destage().await.unwrap();
    });
    let fresh = World::new();
    let (b, away) = (folder(&world, "b"), world.path().join("away"));
    fs::rename(&b, &away).unwrap();
    fresh.life(async |volumes: Rc<Volumes>| {
        let request = RecoverVpool {
            name: name("p"),
            backend: CreateBackend::dir(name("x"), folder(&world, "c").to_string_lossy()),
        };
        let task = volumes.recover_lost_vpool(request).await.unwrap().0;
        let done = volumes.tasks.wait(task.uuid, Duration::from_secs(20)).await.unwrap();
        assert_eq!(done.state, TaskState::Succeeded, "{done:?}");
        let result = done.result.unwrap();
        assert_eq!(
            (&result["found"], &result["problems"]),
            (&serde_json::json!(1), &serde_json::json!([])),
            "a drive may be away: {result}"
        );
        assert!(volumes.inventory.borrow().incomplete.is_empty());
        assert_eq!(vdisk(&volumes).await.read(range(0, 1)).await.unwrap()[0], 7);
        fs::rename(&away, &b).unwrap();
    });
    fresh.life(async |volumes: Rc<Volumes>| {
        assert!(volumes.inventory.borrow().incomplete.is_empty());
        assert_eq!(vdisk(&volumes).await.read(range(0, 1)).await.unwrap()[0], 7);
        assert_eq!(volumes.get_backend(name("all")).await.unwrap().drives.len(), 3);
        assert_eq!(volumes.get_vpool(name("p")).await.unwrap().preset, name("p"));
    });
}

#[test]
fn composites_of_composites_hold_data() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "b", "c", "d"]).await;
        volumes.create_preset(preset("mirror", &[(1, 1, 2, 1), (1, 0, 1, 1)]), no_terms()).await.unwrap();
        volumes.create_backend(composite("east", &["a", "b"], "mirror"), no_terms()).await.unwrap();
        volumes.create_backend(composite("west", &["c", "d"], "mirror"), no_terms()).await.unwrap();
        volumes.create_backend(composite("all", &["east", "west"], "mirror"), no_terms()).await.unwrap();
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
        let new = CreateVdisk { size_bytes: Some(1 << 20), ..CreateVdisk::new(name("p"), name("v")) };
        volumes.create_vdisk(new, no_terms()).await.unwrap();
        let vdisk = vdisk(&volumes).await;
        vdisk.write(ByteOffset(0), vec![7; 65536].into(), true).await.unwrap();
        vdisk.destage().await.unwrap();
        assert_eq!(vdisk.read(range(0, 1)).await.unwrap()[0], 7);
        for drive in ["a", "b", "c", "d"] {
            some_fragment(&folder(&world, drive));
        }
    });
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(vdisk(&volumes).await.read(range(0, 1)).await.unwrap()[0], 7);
    });
}

#[test]
fn a_store_that_cannot_be_asked_is_refused_without_its_secrets() {
    let world = World::new();
    let secret = secret_file(&world, "stores/secret", "hunter2");
    world.life(async |volumes: Rc<Volumes>| {
        // Nobody listens there.
        let request = s3("http://127.0.0.1:1", secret.as_str());
        let problem = refused(volumes.create_backend(request, no_terms()).await, ProblemKind::Unavailable);
        assert!(
            problem.detail.contains("127.0.0.1:1") && !format!("{problem:?}").contains("hunter2"),
            "{problem:?}"
        );
        refused(volumes.get_backend(name("s")).await, ProblemKind::NotFound);
    });
}

#[test]
fn a_store_that_answers_slowly_is_tried_for_so_long_and_no_longer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new();
    let secret = secret_file(&world, "stores/secret", "hunter2");
    world.life(async |volumes: Rc<Volumes>| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = client.read(&mut [0; 4096]).await;
                    tokio::time::sleep(Duration::from_secs(9)).await;
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    let _ = client.write_all(answer.as_bytes()).await;
                });
            }
        });
        let begun = volumes.clock.now();
        let request = s3(&address, secret.as_str());
        let problem = refused(volumes.create_backend(request, no_terms()).await, ProblemKind::Unavailable);
        assert!(problem.detail.contains("within 20 s"), "{problem}");
        assert!(volumes.clock.now() - begun < Duration::from_secs(22));
    });
}

#[test]
fn what_spans_a_site_is_lost_with_it() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        for (text, site) in [("a", "s"), ("b", "t"), ("c", "s"), ("d", "s")] {
            let request = CreateBackend {
                node: Some(text.into()),
                site: Some(site.into()),
                ..CreateBackend::dir(name(text), folder(&world, text).to_string_lossy())
            };
            volumes.create_backend(request, no_terms()).await.unwrap();
        }
        volumes.create_preset(preset("mirror", &[(1, 1, 2, 1)]), no_terms()).await.unwrap();
        volumes.create_backend(composite("both", &["a", "b"], "mirror"), no_terms()).await.unwrap();
        volumes.create_backend(composite("one", &["c", "d"], "mirror"), no_terms()).await.unwrap();
        let plan = volumes.plan_backend(composite("all", &["both", "one"], "mirror")).await.unwrap();
        assert_eq!(
            (plan.site_count, plan.policies[0].sites_lost_max, plan.policies[0].nodes_lost_max),
            (2, 0, 1)
        );
    });
}
