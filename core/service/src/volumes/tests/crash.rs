//! Every operation of several steps, cut off at every commit of the registry: afterwards it has happened whole or not
//! at all, the same request again works, and the backend alone tells the same.

use super::*;
use ovs_api::{DeleteVdiskQuery, RollbackVdisk, SnapshotRef, VdiskQuery};

/// What people see of the vDisks.
async fn seen(volumes: &Rc<Volumes>) -> Vec<String> {
    let mut seen = Vec::new();
    for vdisk in volumes.list_vdisks(VdiskQuery::default()).await.unwrap().items {
        // Opening makes good what the crash left.
        let vdisk = volumes.get_vdisk(VdiskRef::Id(vdisk.uuid)).await.unwrap();
        assert_eq!(vdisk.state, ovs_api::VdiskState::Ok, "{vdisk:?}");
        let opened = volumes.ensure_open(vdisk.uuid).await.unwrap();
        assert_eq!(opened.size().0, vdisk.capacity_bytes, "the engine's size is the record's");
        let shown = volumes.list_snapshots(VdiskRef::Id(vdisk.uuid), Default::default()).await.unwrap().items;
        let names: Vec<String> = shown.iter().map(|snapshot| snapshot.name.to_string()).collect();
        let visible = opened.snapshots().into_iter().filter(|snapshot| !snapshot.hidden).count();
        let expected = names.len() + usize::from(vdisk.is_template);
        assert_eq!(visible, expected, "no snapshot is left that nobody sees: {:?}", opened.snapshots());
        let first = if vdisk.size_bytes == 0 { 0 } else { opened.read(range(0, 1)).await.unwrap()[0] };
        let tail =
            opened.read(range(vdisk.size_bytes, vdisk.capacity_bytes - vdisk.size_bytes)).await.unwrap();
        assert!(tail.iter().all(|byte| *byte == 0), "something old lies behind the end");
        seen.push(format!(
            "{} {} {first} {names:?} template={}",
            vdisk.name, vdisk.size_bytes, vdisk.is_template
        ));
    }
    seen
}

async fn prepare(volumes: &Rc<Volumes>) {
    volumes.create_vdisk(new_vdisk("a", 16384), no_terms()).await.unwrap();
    write(volumes, "a", 0, 1, 4096).await;
    volumes.create_snapshot(vdisk_ref("a"), new_snapshot("s"), no_terms()).await.unwrap();
    let grow = PatchVdisk { size_bytes: Some(32768), ..patch() };
    volumes.update_vdisk(vdisk_ref("a"), grow, no_terms()).await.unwrap();
    write(volumes, "a", 0, 2, 32768).await;
}

/// Cuts `operation` off at each of its commits. Afterwards people see what they saw before, or what they see when it
/// is done; and when it is asked for again, the latter.
fn sweep(operation: impl AsyncFn(Rc<Volumes>) -> Result<(), Problem>) {
    let world = World::new();
    let (before, after, commits) = {
        let before = world.life(async |volumes: Rc<Volumes>| {
            prepare(&volumes).await;
            seen(&volumes).await
        });
        let (done, commits) = world.mortal_life(u64::MAX, Death::Before, async |volumes: Rc<Volumes>| {
            operation(volumes.clone()).await.unwrap();
        });
        let () = done;
        let after = world.life(async |volumes: Rc<Volumes>| seen(&volumes).await);
        (before, after, commits)
    };
    assert!(commits > 1, "an operation of one step needs no sweep");
    for n in 1..=commits {
        for death in [Death::Before, Death::After] {
            let mut world = World::new();
            world.life(async |volumes: Rc<Volumes>| prepare(&volumes).await);
            let (ended, _) = world.mortal_life(n, death, async |volumes: Rc<Volumes>| {
                tokio::time::timeout(Duration::from_secs(300), operation(volumes.clone())).await.is_ok()
            });
            let left = world.life(async |volumes: Rc<Volumes>| {
                volumes.finish_what_was_begun().await;
                seen(&volumes).await
            });
            assert!(left == before || left == after, "cut off {death:?} commit {n} of {commits}: {left:?}");
            if ended {
                assert_eq!(left, after, "it was acknowledged, and cut off {death:?} commit {n} of {commits}");
            }
            let again = world.life(async |volumes: Rc<Volumes>| {
                // What was done already may say so.
                let _ = operation(volumes.clone()).await;
                // As happens in the background, those in the trash included.
                for stored in volumes.all_records().await {
                    volumes.ensure_open(stored.record.id).await.unwrap();
                }
                seen(&volumes).await
            });
            assert_eq!(again, after, "asked again after it was cut off {death:?} commit {n} of {commits}");
            world.lose_registry();
            let rebuilt = world.life(async |volumes: Rc<Volumes>| seen(&volumes).await);
            assert_eq!(rebuilt, after, "rebuilt after it was cut off {death:?} commit {n} of {commits}");
        }
    }
}

#[test]
fn create() {
    sweep(async |volumes: Rc<Volumes>| {
        volumes.create_vdisk(new_vdisk("b", 8192), no_terms()).await.map(drop)
    });
}

#[test]
fn clone_as_it_is_now() {
    sweep(async |volumes: Rc<Volumes>| volumes.create_vdisk(clone_of("a", "b"), no_terms()).await.map(drop));
}

#[test]
fn snapshot() {
    sweep(async |volumes: Rc<Volumes>| {
        volumes.create_snapshot(vdisk_ref("a"), new_snapshot("t"), no_terms()).await.map(drop)
    });
}

#[test]
fn delete_snapshot() {
    sweep(async |volumes: Rc<Volumes>| {
        volumes.delete_snapshot(vdisk_ref("a"), SnapshotRef::Name(name("s")), no_terms()).await
    });
}

#[test]
fn rename_and_grow() {
    sweep(async |volumes: Rc<Volumes>| {
        let change = PatchVdisk { name: Some(name("b")), size_bytes: Some(1 << 20), ..patch() };
        volumes.update_vdisk(vdisk_ref("a"), change, no_terms()).await.map(drop)
    });
}

#[test]
fn shrink_to_a_byte() {
    sweep(async |volumes: Rc<Volumes>| {
        let change = PatchVdisk { size_bytes: Some(5000), byte_exact: true, allow_shrink: true, ..patch() };
        volumes.update_vdisk(vdisk_ref("a"), change, no_terms()).await.map(drop)
    });
}

#[test]
fn rollback() {
    sweep(async |volumes: Rc<Volumes>| {
        let back = RollbackVdisk { snapshot: SnapshotRef::Name(name("s")) };
        volumes.rollback_vdisk(vdisk_ref("a"), back, no_terms()).await.map(drop)
    });
}

#[test]
fn template() {
    sweep(async |volumes: Rc<Volumes>| volumes.set_template(vdisk_ref("a"), no_terms()).await.map(drop));
}

#[test]
fn trash() {
    sweep(async |volumes: Rc<Volumes>| {
        volumes.delete_vdisk(vdisk_ref("a"), DeleteVdiskQuery::default(), no_terms()).await
    });
}

#[test]
fn purge() {
    sweep(async |volumes: Rc<Volumes>| {
        volumes.delete_vdisk(vdisk_ref("a"), DeleteVdiskQuery { purge: true }, no_terms()).await
    });
}
