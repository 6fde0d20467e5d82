//! Each kind of what is left behind, whole and with one fragment of it, goes; all else stays.

use crate::engine::recover::tests::{ON_FULL, VDISK, VPOOL, host, make, use_it};
use crate::journal::record_name;
use crate::journal::tests::unfinished::{Drives, run};
use crate::sco::{object_name, sco_name, vdisk_prefix};
use crate::{MemoryRegistry, Vdisk, tombstone};
use ovs_backend::coded::CodedBackend;
use ovs_backend::{Backend, ObjectName, Urgency};
use ovs_format::journal::{Position, Record};
use ovs_units::{ByteCount, ByteOffset, ByteRange, Epoch, JournalIndex, ScoNumber};
use std::rc::Rc;

const COPY: &str = "00000000000000000000000000000007";

fn at(epoch: u64, index: u64) -> Position {
    Position { epoch: Epoch(epoch), index: JournalIndex(index) }
}

/// A root, a part.
fn copy_of(epoch: u64) -> [ObjectName; 2] {
    let root = format!("{}c/{epoch:016x}-{:016x}-{COPY}", vdisk_prefix(VDISK), 1);
    [object_name(root.clone()), object_name(format!("{root}-00000000"))]
}

fn sco_of(epoch: u64) -> ObjectName {
    sco_name(VDISK, Epoch(epoch), ScoNumber(500))
}

async fn names(backend: &CodedBackend) -> Vec<ObjectName> {
    backend.settle().await;
    let all = backend.list("", None, 1000).await.unwrap();
    all.into_iter().map(|object| object.name).collect()
}

async fn put(backend: &CodedBackend, name: &ObjectName) {
    backend.put(name, vec![vec![7; 100_000].into()], Urgency::Normal).await.unwrap();
}

/// A vDisk whose epoch 1 has three records, of which two count: epoch 3 goes on from there. With all that an epoch that is over may
/// leave; epoch 2 was begun, and no more.
async fn with_strays(registry: &Rc<MemoryRegistry>, drives: &Drives, cuts_off: bool) -> Vec<ObjectName> {
    let (engine, _directory) = host(registry, drives.open()).await;
    make(&engine, VDISK).await;
    let vdisk = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap();
    {
        let _meta = vdisk.inner.meta.lock().await;
        vdisk.inner.leave_epoch().await.unwrap();
    }
    use_it(&engine, "{}of 3").await;
    drop((vdisk, engine));
    let backend = drives.open();
    let mut strays = vec![sco_of(1), record_name(VDISK, at(2, 0)), tombstone::name(VDISK, Epoch(2))];
    strays.extend(copy_of(1));
    for name in &strays {
        put(&backend, name).await;
    }
    let record = Record::Properties { properties: b"{}stray"[..].into() };
    crate::journal::put(&backend, VDISK, at(1, 2), &record).await.unwrap();
    backend.settle().await;
    // What nobody finished is none; the others are only looked at by their names.
    let cut_off = if cuts_off { &strays[..] } else { &strays[1..3] };
    cut_off.iter().for_each(|name| drives.cut_off(name));
    strays.push(record_name(VDISK, at(1, 2)));
    strays.sort();
    strays
}

async fn write(vdisk: &Vdisk) {
    vdisk.write(ByteOffset(4096), vec![5; 4096].into(), false).await.unwrap();
    vdisk.destage().await.unwrap();
}

#[test]
fn each_kind_goes_and_nothing_else() {
    for cuts_off in [false, true] {
        run(async {
            let (drives, registry) = (Drives::new(), Rc::default());
            let strays = with_strays(&registry, &drives, cuts_off).await;
            let (engine, _directory) = host(&registry, drives.open()).await;
            let vdisk = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap();
            write(&vdisk).await;
            let backend = drives.open();
            // Of another host's epochs, and what is not ours.
            let mut others =
                vec![sco_of(99), tombstone::name(VDISK, Epoch(99)), sco_of(vdisk.stats().epoch.0)];
            others.extend(copy_of(99));
            others.push(object_name(format!("{}s/x", vdisk_prefix(VDISK))));
            for name in &others {
                put(&backend, name).await;
            }
            let mut expected = names(&backend).await;
            expected.retain(|name| !strays.contains(name));
            let report = vdisk.scrub().await.unwrap();
            assert_eq!(names(&drives.open()).await, expected, "{report:?}");
            assert_eq!(report.strays_removed, strays.len() as u64);
            assert_eq!(vdisk.scrub().await.unwrap().strays_removed, 0);
            drop((vdisk, engine));
            // All of the vDisk is there, for whoever has nothing else.
            for name in &others {
                backend.delete(name).await.unwrap();
            }
            let (engine, _directory) = host(&Rc::default(), drives.open()).await;
            engine.adopt_vdisk(VPOOL, VDISK).await.unwrap();
            let vdisk = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap();
            assert_eq!(vdisk.properties(), "{}of 3");
            let range = ByteRange::new(ByteOffset(4096), ByteCount(4096)).unwrap();
            assert!(vdisk.read(range).await.unwrap().iter().all(|byte| *byte == 5));
        });
    }
}

/// The one that is being made is of the epoch in which that began.
#[test]
fn no_copy_of_the_map_goes_while_one_is_made() {
    run(async {
        let (drives, registry) = (Drives::new(), Rc::default());
        with_strays(&registry, &drives, false).await;
        let (engine, _directory) = host(&registry, drives.open()).await;
        use_it(&engine, "{}3").await;
        let vdisk = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap();
        let [root, part] = copy_of(1);
        let copying = vdisk.inner.copying.lock().await;
        let removed = vdisk.inner.remove_strays().await.unwrap();
        assert_eq!((removed.count, removed.is_all), (2, false));
        assert!(drives.count(&root) > 0 && drives.count(&part) > 0);
        drop(copying);
        let removed = vdisk.inner.remove_strays().await.unwrap();
        assert_eq!((removed.count, removed.is_all), (4, true));
        assert_eq!((drives.count(&root), drives.count(&part)), (0, 0));
    });
}

/// Nothing can be deleted as a whole then; what a scrub can do without it does.
#[test]
fn a_silent_drive_keeps_strays_and_ends_no_scrub() {
    run(async {
        let (drives, registry) = (Drives::new(), Rc::default());
        let strays = with_strays(&registry, &drives, false).await;
        let (engine, _directory) = host(&registry, drives.open_without(Some(0))).await;
        use_it(&engine, "{}3").await;
        let vdisk = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap();
        assert_eq!(vdisk.scrub().await.unwrap().strays_removed, 0);
        drop((vdisk, engine));
        let (engine, _directory) = host(&registry, drives.open()).await;
        use_it(&engine, "{}4").await;
        let vdisk = engine.open_vdisk(VPOOL, VDISK, ON_FULL).await.unwrap();
        assert!(vdisk.scrub().await.unwrap().strays_removed > 0);
        strays.iter().for_each(|name| assert_eq!(drives.count(name), 0, "{name}"));
    });
}
