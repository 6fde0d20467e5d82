//! Other keys for a preset: what was encrypted is read with the new key alone, whatever was lost, away or cut off meanwhile.

use super::{
    backends::{THREE_COPIES, composite, files_below, folder, make_drives, make_pool, vdisk},
    layouts::layouts_in,
    presets::{encrypted, key_file, preset, secret_file},
    vpools::vpool,
    *,
};
use ovs_api::{CreateBackend, Preset, RecoverVpool, RotatePreset, SecretReference, TaskState, VpoolState};
use ovs_format::fragment::{HEADER_BYTES, Header};
use std::{collections::BTreeSet, fs};

const OLD: &str = "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f";
const NEW: &str = "5ec2e7000000000000000000000000000000000000000000000000005ec2e700";
const DRIVES: [&str; 3] = ["a", "b", "c"];

fn new_key(world: &World) -> SecretReference {
    secret_file(world, "keys/new", NEW)
}

fn remove_key(key: &SecretReference) {
    fs::remove_file(key.as_str().strip_prefix("file:").unwrap()).unwrap();
}

/// A world with the vPool `p` on three encrypted copies, and where its key is.
fn encrypted_world() -> (World, SecretReference) {
    let world = World::new();
    let key = key_file(&world, OLD);
    let policies = preset("e", THREE_COPIES).policies;
    let request = ovs_api::CreatePreset { policies, ..encrypted("e", key.clone()) };
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, request).await;
        put(&volumes, 0, 7).await;
    });
    (world, key)
}

/// A cluster of a byte, on the drives.
async fn put(volumes: &Volumes, cluster: u64, byte: u8) {
    let vdisk = vdisk(volumes).await;
    vdisk.write(ByteOffset(cluster * 4096), vec![byte; 4096].into(), true).await.unwrap();
    vdisk.destage().await.unwrap();
}

async fn get(volumes: &Volumes, cluster: u64) -> u8 {
    vdisk(volumes).await.read(range(cluster * 4096, 4096)).await.unwrap()[0]
}

fn rotation(key: Option<&SecretReference>, new_data_key: bool) -> RotatePreset {
    RotatePreset { key: key.cloned(), new_data_key }
}

async fn rotate(volumes: &Volumes, request: RotatePreset) -> Result<Preset, Problem> {
    volumes.rotate_preset(name("e"), request, no_terms()).await
}

/// The numbers of the keys that fragments of SCOs on a drive are under.
fn keys_in_use(folder: &Path) -> BTreeSet<u32> {
    let files = files_below(folder).into_iter().filter(|path| path.to_string_lossy().contains("/s/"));
    files.map(|path| Header::decode(&fs::read(path).unwrap()[..HEADER_BYTES]).unwrap().key).collect()
}

/// All that the host had, but for its secrets.
fn lose_host(world: &mut World) {
    world.lose_registry();
    fs::remove_dir_all(world.paths().state_dir()).unwrap();
}

async fn recover(volumes: &Rc<Volumes>, world: &World, pool: &str, drive: &str) -> Result<(), Problem> {
    let backend = CreateBackend::dir(name("x"), folder(world, drive).to_string_lossy());
    let task = volumes.recover_lost_vpool(RecoverVpool { name: name(pool), backend }).await?.0;
    let done = volumes.tasks.wait(task.uuid, Duration::from_secs(20)).await?;
    assert_eq!(done.state, TaskState::Succeeded, "{done:?}");
    Ok(())
}

#[test]
fn after_a_rotation_the_new_key_alone_reads_everything() {
    let (world, old) = encrypted_world();
    let new = new_key(&world);
    world.life(async |volumes: Rc<Volumes>| {
        let before = volumes.get_preset(name("e")).await.unwrap();
        let after = rotate(&volumes, rotation(Some(&new), false)).await.unwrap();
        // After a start nobody knows what drives have until they have been asked.
        assert_eq!(before.drives_behind, DRIVES.map(name));
        let (key, drives_behind) = (Some(new.clone()), Vec::new());
        let expected = Preset { key, drives_behind, revision: before.revision + 1, ..before };
        assert_eq!((after.data_key, after), (Some(1), expected));
        put(&volumes, 1, 8).await;
    });
    remove_key(&old);
    let inventory = fs::read_to_string(world.paths().state_dir().join("vpools.json")).unwrap();
    let told: serde_json::Value = serde_json::from_str(&inventory).unwrap();
    assert_eq!(told["presets"][0]["key"], serde_json::json!(new.as_str()));
    assert!(!inventory.contains("5ec2e7"), "{inventory}");
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!((get(&volumes, 0).await, get(&volumes, 1).await), (7, 8));
    });
    run(async {
        for drive in DRIVES {
            let (layout, count) = layouts_in(&folder(&world, drive)).await;
            assert_eq!((layout.presets[0].key.as_deref(), count), (Some(new.as_str()), 1));
        }
    });
    // And so does each drive, where nothing else is left.
    for drive in DRIVES {
        let (mut world, old) = encrypted_world();
        let new = new_key(&world);
        world.life(async |volumes: Rc<Volumes>| rotate(&volumes, rotation(Some(&new), true)).await.unwrap());
        world.life(async |volumes: Rc<Volumes>| put(&volumes, 1, 8).await);
        remove_key(&old);
        lose_host(&mut world);
        world.life(async |volumes: Rc<Volumes>| {
            recover(&volumes, &world, "p", drive).await.unwrap();
            assert_eq!((get(&volumes, 0).await, get(&volumes, 1).await), (7, 8));
            assert_eq!(volumes.get_preset(name("e")).await.unwrap().key.as_ref(), Some(&new));
        });
    }
}

#[test]
fn what_cannot_be_rotated_is_refused_and_changes_nothing() {
    let (world, old) = encrypted_world();
    let new = new_key(&world);
    let bad = secret_file(&world, "keys/bad", "5ec2e7 is no key");
    let missing = SecretReference::try_from(format!("{}s", new.as_str())).unwrap();
    let state = async || {
        let inventory = fs::read(world.paths().state_dir().join("vpools.json")).unwrap();
        (inventory, layouts_in(&folder(&world, "a")).await)
    };
    world.life(async |volumes: Rc<Volumes>| {
        volumes.create_preset(preset("plain", THREE_COPIES), no_terms()).await.unwrap();
        let before = (volumes.all_presets().await.unwrap(), state().await);
        for (request, words) in [
            (rotation(Some(&old), false), "--new-data-key"),
            (rotation(Some(&old), true), "Put the new key elsewhere"),
            (rotation(Some(&bad), false), "openssl rand"),
            (rotation(Some(&missing), true), "No such file"),
        ] {
            let problem = refused(rotate(&volumes, request).await, ProblemKind::Conflict);
            assert!(problem.detail.contains(words) && !problem.detail.contains("5ec2e7"), "{problem}");
        }
        for (preset, kind) in [
            ("plain", ProblemKind::Conflict),
            ("default", ProblemKind::Conflict),
            ("nothing", ProblemKind::NotFound),
        ] {
            let request = rotation(Some(&new), false);
            refused(volumes.rotate_preset(name(preset), request, no_terms()).await, kind);
        }
        let terms = Terms { if_match: Some(9), ..no_terms() };
        let request = rotation(Some(&new), false);
        let late = volumes.rotate_preset(name("e"), request, terms).await;
        refused(late, ProblemKind::PreconditionFailed);
        // The old key is not the one that it was, or gone.
        key_file(&world, &"0e".repeat(32));
        for data_key_too in [false, true] {
            let refused =
                refused(rotate(&volumes, rotation(Some(&new), data_key_too)).await, ProblemKind::Conflict);
            assert!(
                refused.detail.contains("is not the one") && !refused.detail.contains("0e0e"),
                "{refused}"
            );
        }
        remove_key(&old);
        refused(rotate(&volumes, rotation(Some(&new), false)).await, ProblemKind::Conflict);
        assert_eq!((volumes.all_presets().await.unwrap(), state().await), before);
    });
    key_file(&world, OLD);
    world.life(async |volumes: Rc<Volumes>| assert_eq!(get(&volumes, 0).await, 7));
}

#[test]
fn the_same_request_again_rotates_once() {
    let (world, _) = encrypted_world();
    world.life(async |volumes: Rc<Volumes>| {
        let terms = Terms { idempotency_key: Some("k".into()), ..no_terms() };
        let ask = || volumes.rotate_preset(name("e"), rotation(None, true), terms.clone());
        let first = ask().await.unwrap();
        assert_eq!((ask().await.unwrap(), first.data_key), (first.clone(), Some(2)));
    });
}

#[test]
fn new_objects_are_under_a_new_key_at_once_and_old_ones_stay() {
    let (world, old) = encrypted_world();
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(keys_in_use(&folder(&world, "a")), BTreeSet::from([1]));
        let rotated = rotate(&volumes, rotation(None, true)).await.unwrap();
        assert_eq!(
            (rotated.key.as_ref(), rotated.data_key, rotated.data_key_waiting),
            (Some(&old), Some(2), None)
        );
        put(&volumes, 1, 8).await;
        assert_eq!(keys_in_use(&folder(&world, "a")), BTreeSet::from([1, 2]));
        assert_eq!((get(&volumes, 0).await, get(&volumes, 1).await), (7, 8));
    });
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!((get(&volumes, 0).await, get(&volumes, 1).await), (7, 8));
        assert_eq!(rotate(&volumes, rotation(Some(&new_key(&world)), true)).await.unwrap().data_key, Some(3));
        put(&volumes, 2, 9).await;
    });
    remove_key(&old);
    world.life(async |volumes: Rc<Volumes>| {
        for (cluster, byte) in [(0, 7), (1, 8), (2, 9)] {
            assert_eq!(get(&volumes, cluster).await, byte);
        }
        assert_eq!(keys_in_use(&folder(&world, "a")), BTreeSet::from([1, 2, 3]));
    });
}

/// Of whatever drives are left, those that the vPool can be opened with know every key that something is encrypted under.
#[test]
fn a_new_key_of_objects_waits_for_a_drive_that_is_away() {
    let (world, old) = encrypted_world();
    let new = new_key(&world);
    let (b, away) = (folder(&world, "b"), world.path().join("away"));
    fs::rename(&b, &away).unwrap();
    world.life(async |volumes: Rc<Volumes>| {
        let rotated = rotate(&volumes, rotation(Some(&new), true)).await.unwrap();
        assert_eq!(rotated.drives_behind, [name("b")]);
        assert_eq!((rotated.data_key, rotated.data_key_waiting), (Some(1), Some(2)));
        put(&volumes, 1, 8).await;
        let problem = refused(rotate(&volumes, rotation(None, true)).await, ProblemKind::Conflict);
        assert!(problem.detail.ends_with("every drive has it: b"), "{problem}");
    });
    // Neither does a start use it.
    world.life(async |volumes: Rc<Volumes>| {
        put(&volumes, 2, 9).await;
        assert_eq!(keys_in_use(&folder(&world, "a")), BTreeSet::from([1]));
        fs::rename(&away, &b).unwrap();
        run_for(&volumes, 15).await;
        let shown = volumes.get_preset(name("e")).await.unwrap();
        assert_eq!((shown.data_key, shown.data_key_waiting, shown.drives_behind), (Some(2), None, vec![]));
        put(&volumes, 3, 10).await;
        assert_eq!(keys_in_use(&folder(&world, "a")), BTreeSet::from([1, 2]));
    });
    remove_key(&old);
    world.life(async |volumes: Rc<Volumes>| {
        for (cluster, byte) in [(0, 7), (1, 8), (2, 9), (3, 10)] {
            assert_eq!(get(&volumes, cluster).await, byte);
        }
    });
}

async fn run_for(volumes: &Rc<Volumes>, seconds: u64) {
    volumes.begin_background();
    volumes.clock.sleep(Duration::from_secs(seconds)).await;
}

/// Where it is cut off, the preset is under the old key or the new one, data is read and written, and from a drive alone, too.
#[test]
fn a_rotation_that_is_cut_off_at_any_commit_is_not_begun_or_is_finished() {
    let commits = {
        let (world, _) = encrypted_world();
        let new = new_key(&world);
        let rotating =
            async |volumes: Rc<Volumes>| rotate(&volumes, rotation(Some(&new), true)).await.unwrap();
        world.mortal_life(u64::MAX, Death::Before, rotating).1
    };
    assert!(commits >= 2, "the keys, and that the newest is used: {commits}");
    for n in 1..=commits {
        for death in [Death::Before, Death::After] {
            for is_host_lost in [false, true] {
                let (mut world, old) = encrypted_world();
                let new = new_key(&world);
                let (ended, _) = world.mortal_life(n, death, async |volumes: Rc<Volumes>| {
                    let rotating = rotate(&volumes, rotation(Some(&new), true));
                    tokio::time::timeout(Duration::from_secs(100), rotating).await.is_ok()
                });
                assert!(!ended, "commit {n} of {commits}");
                let case = format!("cut off {death:?} commit {n} of {commits}, host lost: {is_host_lost}");
                if is_host_lost {
                    // With what was encrypted before anything is made good.
                    world.life(async |volumes: Rc<Volumes>| put(&volumes, 1, 8).await);
                    lose_host(&mut world);
                }
                let key = world.life(async |volumes: Rc<Volumes>| {
                    match is_host_lost {
                        true => recover(&volumes, &world, "p", "b").await.unwrap(),
                        false => put(&volumes, 1, 8).await,
                    }
                    run_for(&volumes, 15).await;
                    assert_eq!((get(&volumes, 0).await, get(&volumes, 1).await), (7, 8), "{case}");
                    let shown = volumes.get_preset(name("e")).await.unwrap();
                    assert_eq!((shown.data_key_waiting, &shown.drives_behind), (None, &vec![]), "{case}");
                    shown.key.unwrap()
                });
                // What it says is what it takes, here and elsewhere.
                remove_key(if key == new { &old } else { &new });
                world.life(async |volumes: Rc<Volumes>| put(&volumes, 2, 9).await);
                lose_host(&mut world);
                world.life(async |volumes: Rc<Volumes>| {
                    recover(&volumes, &world, "p", "c").await.unwrap();
                    for (cluster, byte) in [(0, 7), (1, 8), (2, 9)] {
                        assert_eq!(get(&volumes, cluster).await, byte, "{case}");
                    }
                });
            }
        }
    }
}

#[test]
fn a_registry_that_was_put_back_rotates_nothing() {
    let (world, old) = encrypted_world();
    let uuid = world.life(async |volumes: Rc<Volumes>| volumes.get_preset(name("e")).await.unwrap().uuid);
    let key = format!("preset/{uuid}");
    let mut before = Vec::new();
    world.change_registry(&key, |bytes| {
        before = bytes.clone();
        bytes
    });
    world.life(async |volumes: Rc<Volumes>| rotate(&volumes, rotation(None, true)).await.unwrap());
    world.life(async |volumes: Rc<Volumes>| put(&volumes, 1, 8).await);
    let mut now = Vec::new();
    world.change_registry(&key, |bytes| {
        now = bytes;
        before
    });
    world.life(async |volumes: Rc<Volumes>| {
        let problem = refused(rotate(&volumes, rotation(None, true)).await, ProblemKind::Damaged);
        assert!(problem.detail.contains("put back"), "{problem}");
        run_for(&volumes, 15).await;
        assert_eq!(layouts_in(&folder(&world, "a")).await.0.presets[0].keys.len(), 2, "it is still there");
    });
    world.change_registry(&key, |_| now);
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!((get(&volumes, 0).await, get(&volumes, 1).await), (7, 8));
        assert_eq!(volumes.get_preset(name("e")).await.unwrap().key, Some(old));
    });
}

/// Two vPools are under a preset, and the drives of one are away while its keys are rotated. Then the host is lost.
#[test]
fn a_vpool_that_missed_a_rotation_is_recovered_before_and_after_one_that_did_not() {
    for late_first in [false, true] {
        let (mut world, old) = encrypted_world();
        let new = new_key(&world);
        let drives = ["d", "e", "f"];
        let moved = |drive: &str| world.path().join(format!("away-{drive}"));
        world.life(async |volumes: Rc<Volumes>| {
            make_drives(&world, &volumes, &drives).await;
            volumes.create_backend(composite("other", &drives, "e"), no_terms()).await.unwrap();
            volumes.create_vpool(vpool("q", Some("other")), no_terms()).await.unwrap();
        });
        drives.iter().for_each(|drive| fs::rename(folder(&world, drive), moved(drive)).unwrap());
        world.life(async |volumes: Rc<Volumes>| {
            let behind = rotate(&volumes, rotation(Some(&new), true)).await.unwrap().drives_behind;
            assert_eq!(behind, drives.map(name));
        });
        drives.iter().for_each(|drive| fs::rename(moved(drive), folder(&world, drive)).unwrap());
        lose_host(&mut world);
        world.life(async |volumes: Rc<Volumes>| {
            if late_first {
                recover(&volumes, &world, "q", "d").await.unwrap();
                // A newer record is taken where it has the keys that are known; that takes the old one.
                key_file(&world, &"0e".repeat(32));
                let problem = refused(recover(&volumes, &world, "p", "a").await, ProblemKind::Conflict);
                assert!(problem.detail.contains("is not the one"), "{problem}");
                assert_eq!(volumes.get_preset(name("e")).await.unwrap().key.as_ref(), Some(&old));
                key_file(&world, OLD);
                recover(&volumes, &world, "p", "a").await.unwrap();
            } else {
                remove_key(&old);
                recover(&volumes, &world, "p", "a").await.unwrap();
                recover(&volumes, &world, "q", "d").await.unwrap();
            }
            run_for(&volumes, 15).await;
            let shown = volumes.get_preset(name("e")).await.unwrap();
            assert_eq!(
                (shown.key.as_ref(), shown.data_key, shown.drives_behind),
                (Some(&new), Some(2), vec![])
            );
        });
        if late_first {
            remove_key(&old);
        }
        world.life(async |volumes: Rc<Volumes>| {
            assert_eq!(get(&volumes, 0).await, 7);
            for pool in ["p", "q"] {
                assert_eq!(volumes.get_vpool(name(pool)).await.unwrap().state, VpoolState::Ok, "{pool}");
            }
        });
    }
}
