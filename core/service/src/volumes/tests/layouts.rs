//! What each drive keeps of the whole is brought up to what the registry says, whatever fails in between, and the newest counts.

use super::{
    backends::{THREE_COPIES, files_below, folder, make_pool, vdisk},
    presets::preset,
    *,
};
use crate::volumes::layout::{Lacking, newest_layout, put_first_layout, renew};
use bytes::Bytes;
use ovs_api::{CreateBackend, RecoverVpool, TaskState};
use ovs_backend::{
    Backend, DirBackend, DirOptions, Fault, FaultyBackend, MemoryBackend, ObjectName, Operation,
};
use ovs_cluster::catalogue::{BackendRecord, DepartedRecord, DutyRecord, FORMAT, LayoutRecord, StoreRecord};
use std::fs;

type Faulty = FaultyBackend<Rc<MemoryBackend>>;

/// Three drives in memory, and a clock that stands still.
struct Drives {
    stores: Vec<Rc<MemoryBackend>>,
    clock: TestClock,
}

impl Drives {
    fn new() -> Drives {
        let wall_ms = Rc::new(Cell::new(1_800_000_000_000));
        let clock = TestClock { start: tokio::time::Instant::now(), wall_ms };
        Drives { stores: (0..3).map(|_| Rc::default()).collect(), clock }
    }

    /// With a fault at these calls, counted over all drives.
    fn faulty(&self, fault: impl Fn(u64) -> Option<Fault> + 'static) -> Vec<(Name, Rc<dyn Backend>)> {
        let (calls, fault) = (Rc::new(Cell::new(0)), Rc::new(fault));
        let drive = |(number, store): (usize, &Rc<MemoryBackend>)| {
            let (calls, fault) = (calls.clone(), fault.clone());
            let store = Faulty::new(store.clone(), move |_| {
                calls.set(calls.get() + 1);
                fault(calls.get())
            });
            (name(&format!("d{number}")), Rc::new(store) as Rc<dyn Backend>)
        };
        self.stores.iter().enumerate().map(drive).collect()
    }

    async fn renew(&self, drives: &[(Name, Rc<dyn Backend>)], wanted: &LayoutRecord) -> Vec<Lacking> {
        renew(drives, wanted, &self.clock, &SystemChance).await.unwrap()
    }

    /// Nothing fails.
    async fn renew_all(&self, wanted: &LayoutRecord) {
        assert_eq!(self.renew(&self.faulty(|_| None), wanted).await, []);
        let names = self.names();
        assert!(names.iter().all(|found| found.len() == 1 && found == &names[0]), "{names:?}");
        assert_eq!(self.newest().await, vec![wanted.clone(); 3]);
    }

    fn names(&self) -> Vec<Vec<ObjectName>> {
        self.stores.iter().map(|store| store.names()).collect()
    }

    async fn newest(&self) -> Vec<LayoutRecord> {
        let mut newest = Vec::new();
        for store in &self.stores {
            newest.extend(newest_layout(&**store).await.unwrap().map(|layout| layout.record));
        }
        newest
    }
}

/// A layout that differs from others in a version.
fn layout(version: u64) -> LayoutRecord {
    let backend = BackendRecord {
        format: 1,
        uuid: Uuid::from_u128(2),
        name: name("a"),
        version,
        store: StoreRecord::Dir { path: "/a".into() },
        labels: Default::default(),
        created_ms: 0,
        request: serde_json::Value::Null,
    };
    LayoutRecord {
        format: FORMAT,
        vpool: ovs_units::VpoolId(Uuid::from_u128(1)),
        name: name("p"),
        backend: backend.uuid,
        backends: vec![backend],
        presets: Vec::new(),
    }
}

async fn drives_with(first: &LayoutRecord) -> Drives {
    let drives = Drives::new();
    for store in &drives.stores {
        put_first_layout(&**store, first).await.unwrap();
    }
    drives
}

#[test]
fn a_renewal_that_is_cut_off_anywhere_leaves_each_drive_with_one_or_the_other_and_goes_on() {
    // Of three drives: listed twice, read, listed no more; put, deleted.
    let calls = run(async {
        let drives = drives_with(&layout(1)).await;
        let count = Rc::new(Cell::new(0));
        let counted = count.clone();
        let all = drives.faulty(move |call| {
            counted.set(call);
            None
        });
        assert_eq!(drives.renew(&all, &layout(2)).await, []);
        count.get()
    });
    assert!(calls >= 15, "{calls}");
    for n in 1..=calls {
        for kind in 0..4 {
            run(async {
                let drives = drives_with(&layout(1)).await;
                let all = drives.faulty(move |call| match kind {
                    0 => (call == n).then_some(Fault::ErrorBefore),
                    1 => (call == n).then_some(Fault::ErrorAfter),
                    2 => (call == n).then_some(Fault::HangAfter),
                    // The end of the process.
                    _ => (call >= n).then_some(Fault::ErrorBefore),
                });
                let lacking = drives.renew(&all, &layout(2)).await;
                assert!(!lacking.is_empty(), "call {n} failed, and nobody says so");
                let left = drives.newest().await;
                assert_eq!(left.len(), 3, "call {n}: a drive has none");
                for (newest, number) in left.iter().zip(0..) {
                    let lacks = lacking.iter().any(|lacking| lacking.drive == name(&format!("d{number}")));
                    assert!(*newest == layout(2) || (lacks && *newest == layout(1)), "call {n}: {newest:?}");
                }
                drives.renew_all(&layout(2)).await;
                // Something else is wanted by the time that it goes on.
                let drives = drives_with(&layout(1)).await;
                let all = drives.faulty(move |call| (call >= n).then_some(Fault::ErrorBefore));
                drives.renew(&all, &layout(2)).await;
                drives.renew_all(&layout(3)).await;
            });
        }
    }
}

#[test]
fn what_every_drive_has_is_not_written_again() {
    run(async {
        let drives = drives_with(&layout(1)).await;
        for (wanted, writes_expected) in [(1, 0), (2, 6), (2, 0)] {
            let writes = Rc::new(Cell::new(0));
            let counted = |store: &Rc<MemoryBackend>| {
                let writes = writes.clone();
                let store = Faulty::new(store.clone(), move |call| {
                    let is_write = matches!(call.operation, Operation::Put | Operation::Delete);
                    writes.set(writes.get() + u32::from(is_write));
                    None
                });
                (name("d"), Rc::new(store) as Rc<dyn Backend>)
            };
            let all: Vec<_> = drives.stores.iter().map(counted).collect();
            assert_eq!(drives.renew(&all, &layout(wanted)).await, []);
            assert_eq!(writes.get(), writes_expected, "version {wanted}");
        }
    });
}

/// It was put on a drive alone that is away since; the others never saw its number.
#[test]
fn a_number_that_only_a_drive_has_which_is_away_is_used_by_no_other() {
    run(async {
        let drives = drives_with(&layout(1)).await;
        let all = drives.faulty(|_| None);
        assert_eq!(drives.renew(&all[..1], &layout(2)).await, []);
        drives.clock.wall_ms.set(drives.clock.wall_ms.get() + 1000);
        assert_eq!(drives.renew(&all[1..], &layout(3)).await, []);
        let names = drives.names();
        assert!(names[0] < names[1] && names[1] == names[2], "the later one counts: {names:?}");
        drives.renew_all(&layout(3)).await;
        // Also where the clock was put back.
        drives.clock.wall_ms.set(0);
        drives.renew_all(&layout(4)).await;
        assert!(drives.names()[1] > names[1]);
    });
}

#[test]
fn a_layout_that_cannot_be_read_makes_way() {
    run(async {
        let drives = drives_with(&layout(1)).await;
        drives.renew_all(&layout(2)).await;
        let name = drives.stores[1].names().remove(0);
        drives.stores[1].damage(&name, Some(Bytes::from_static(b"{")));
        drives.renew_all(&layout(2)).await;
        assert!(drives.names()[1][0] > name);
    });
}

#[test]
fn what_is_newer_than_the_registry_is_not_written_over() {
    run(async {
        let drives = drives_with(&layout(2)).await;
        let before = drives.names();
        let all = drives.faulty(|_| None);
        let refused = renew(&all, &layout(1), &drives.clock, &SystemChance).await.unwrap_err();
        assert!(refused.detail.contains("version 2") && refused.detail.contains("put back"), "{refused}");
        assert_eq!(drives.names(), before);
        let other = LayoutRecord { vpool: ovs_units::VpoolId(Uuid::from_u128(9)), ..layout(3) };
        let refused = renew(&all, &other, &drives.clock, &SystemChance).await.unwrap_err();
        assert!(refused.detail.contains("another vPool"), "{refused}");
        assert_eq!(drives.names(), before);
    });
}

/// A composite of these drives; some are lost, and others are drives no more.
fn composite_layout(version: u64, drives: &[u128], lost: &[u128], gone: &[u128]) -> LayoutRecord {
    let uuids = |numbers: &[u128]| numbers.iter().copied().map(Uuid::from_u128).collect::<Vec<_>>();
    let departed = |uuid| DepartedRecord {
        uuid,
        node: "n".into(),
        site: String::new(),
        weight: 1,
        left_behind: None,
        was_lost: false,
    };
    let store = StoreRecord::Composite {
        drives: uuids(drives),
        preset: Uuid::from_u128(9),
        duties: uuids(lost).into_iter().map(|uuid| (uuid, DutyRecord::Lost)).collect(),
        departed: uuids(gone).into_iter().map(departed).collect(),
    };
    let mut layout = layout(version);
    layout.backends[0].format = BackendRecord::format_of(&store);
    layout.backends[0].store = store;
    layout
}

/// Changes of a registry that was put back give out its versions again.
#[test]
fn what_has_not_come_of_what_a_drive_has_is_not_written_over_it_either() {
    run(async {
        let layout = composite_layout;
        for (there, here, is_refused) in [
            (layout(1, &[3, 4], &[], &[]), layout(1, &[3, 4], &[], &[]), false),
            (layout(1, &[3, 4], &[], &[]), layout(2, &[3, 4, 5], &[], &[]), false),
            (layout(1, &[3, 4], &[], &[]), layout(2, &[3, 4], &[4], &[]), false),
            (layout(1, &[3, 4], &[4], &[]), layout(2, &[3], &[], &[4]), false),
            (layout(1, &[3, 4], &[], &[]), layout(1, &[3, 5], &[], &[]), true),
            (layout(1, &[3, 4, 5], &[], &[]), layout(2, &[3, 4], &[], &[]), true),
            (layout(1, &[3, 4], &[4], &[]), layout(2, &[3, 4], &[], &[]), true),
            (layout(1, &[3], &[], &[4]), layout(2, &[3], &[], &[]), true),
        ] {
            let drives = drives_with(&there).await;
            let before = drives.names();
            let renewed = renew(&drives.faulty(|_| None), &here, &drives.clock, &SystemChance).await;
            let case = format!("{there:?}, {here:?}: {renewed:?}");
            match renewed {
                Ok(_) => assert!(!is_refused, "{case}"),
                Err(problem) => assert!(is_refused && problem.detail.contains("put back"), "{case}"),
            }
            assert_eq!(drives.names() == before, is_refused || there == here, "{case}");
        }
    });
}

/// The layouts in a drive's folder of the only vPool there: the newest, and how many there are.
pub(super) async fn layouts_in(folder: &Path) -> (LayoutRecord, usize) {
    let namespace = super::backends::namespaces(folder).remove(0);
    let is_layout = |path: &std::path::PathBuf| path.to_string_lossy().contains("/pool/layout-");
    let count = files_below(&namespace).into_iter().filter(is_layout).count();
    let options = DirOptions { io_uring: false, ..DirOptions::new(namespace) };
    let store = DirBackend::open_existing(options).unwrap();
    (newest_layout(&store).await.unwrap().unwrap().record, count)
}

/// Somebody has changed the composite.
fn change_composite(world: &World, uuid: Uuid, change: impl Fn(&mut serde_json::Value)) {
    world.change_registry(&format!("backend/{uuid}"), |bytes| {
        let mut record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        record["version"] = serde_json::json!(record["version"].as_u64().unwrap() + 1);
        change(&mut record);
        serde_json::to_vec(&record).unwrap()
    });
}

/// A vPool whose composite was at site `old` and is at `new`, which drive `b` has not heard.
fn world_with_an_old_layout() -> World {
    let world = World::new();
    let uuid = world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        let vdisk = vdisk(&volumes).await;
        vdisk.write(ByteOffset(0), vec![7; 4096].into(), true).await.unwrap();
        vdisk.destage().await.unwrap();
        volumes.get_backend(name("all")).await.unwrap().uuid
    });
    change_composite(&world, uuid, |record| {
        record["labels"] = serde_json::json!({"site": "new", "weight": 1})
    });
    let (b, away) = (folder(&world, "b"), world.path().join("away"));
    fs::rename(&b, &away).unwrap();
    world.life(async |volumes: Rc<Volumes>| {
        volumes.renew_due_layouts().await;
        let lacking = volumes.renew_layout(uuid).await.unwrap();
        assert_eq!(lacking.iter().map(|lacking| lacking.drive.as_str()).collect::<Vec<_>>(), ["b"]);
    });
    fs::rename(&away, &b).unwrap();
    world
}

fn site(layout: &LayoutRecord) -> Option<&str> {
    layout.backends.iter().find(|record| record.name == name("all"))?.labels.site.as_deref()
}

#[test]
fn a_drive_that_was_away_gets_the_newest_layout_when_it_is_back() {
    let world = world_with_an_old_layout();
    let told = async |drive: &str| {
        let (layout, count) = layouts_in(&folder(&world, drive)).await;
        (site(&layout).map(str::to_owned), count)
    };
    run(async {
        assert_eq!(told("a").await, (Some("new".into()), 1));
        assert_eq!(told("b").await, (None, 1));
    });
    world.life(async |volumes: Rc<Volumes>| {
        volumes.begin_background();
        volumes.clock.sleep(Duration::from_secs(15)).await;
        assert_eq!(told("b").await, (Some("new".into()), 1));
        assert!(volumes.layouts_due.borrow().is_empty());
    });
}

pub(super) async fn recover(volumes: &Rc<Volumes>, path: &Path) -> Result<ovs_api::Task, Problem> {
    let backend = CreateBackend::dir(name("x"), path.to_string_lossy());
    let task = volumes.recover_lost_vpool(RecoverVpool { name: name("p"), backend }).await?.0;
    volumes.tasks.wait(task.uuid, Duration::from_secs(20)).await
}

#[test]
fn a_recovery_from_a_drive_with_an_old_layout_goes_by_the_newest_of_the_others() {
    let world = world_with_an_old_layout();
    let fresh = World::new();
    fresh.life(async |volumes: Rc<Volumes>| {
        let done = recover(&volumes, &folder(&world, "b")).await.unwrap();
        assert_eq!(done.state, TaskState::Succeeded, "{done:?}");
        assert_eq!(volumes.get_backend(name("all")).await.unwrap().site, "new");
        assert_eq!(vdisk(&volumes).await.read(range(0, 1)).await.unwrap()[0], 7);
    });
    // Where the others do not answer it is what there is.
    let world = world_with_an_old_layout();
    let fresh = World::new();
    for drive in ["a", "c"] {
        fs::rename(folder(&world, drive), world.path().join(drive)).unwrap();
    }
    fresh.life(async |volumes: Rc<Volumes>| {
        let problem = refused(recover(&volumes, &folder(&world, "b")).await, ProblemKind::Unavailable);
        assert!(problem.detail.contains("too many drives"), "{problem}");
        assert_eq!(volumes.drives.borrow().len(), 1, "that of the default vPool alone is kept open");
    });
}

/// They spin up while they are asked, and are there when they are opened.
#[test]
fn an_old_layout_is_not_taken_because_the_others_were_slow() {
    let world = world_with_an_old_layout();
    let (fresh, b) = (World::new(), folder(&world, "b"));
    let moved = |back: bool| {
        for drive in ["a", "c"] {
            let (here, away) = (folder(&world, drive), world.path().join(drive));
            let (from, to) = if back { (away, here) } else { (here, away) };
            fs::rename(from, to).unwrap();
        }
    };
    moved(false);
    fresh.life(async |volumes: Rc<Volumes>| {
        let preset = layouts_in(&b).await.0.presets[0].uuid;
        // Who looks for it has asked the drives, and opened none.
        let gate = fresh.gates.hold(Call::Get, &format!("preset/{preset}"));
        let come_late = async {
            fresh.gates.until_held().await;
            moved(true);
            drop(gate);
        };
        let (recovered, ()) = tokio::join!(recover(&volumes, &b), come_late);
        let problem = refused(recovered, ProblemKind::Unavailable);
        assert!(problem.detail.contains("only now") && problem.detail.contains("again"), "{problem}");
        assert!(volumes.get_backend(name("all")).await.is_err(), "nothing is taken in");
        recover(&volumes, &b).await.unwrap();
        assert_eq!(volumes.get_backend(name("all")).await.unwrap().site, "new");
    });
}

#[test]
fn an_old_layout_is_not_taken_where_too_many_do_not_tell_theirs() {
    for (damaged, is_taken) in [(&["a", "c"][..], false), (&["a"], true)] {
        let world = world_with_an_old_layout();
        for drive in damaged {
            let mut files = files_below(&folder(&world, drive));
            files.retain(|path| path.to_string_lossy().contains("/pool/layout-"));
            fs::write(&files[0], b"{").unwrap();
        }
        let fresh = World::new();
        fresh.life(async |volumes: Rc<Volumes>| {
            let recovered = recover(&volumes, &folder(&world, "b")).await;
            if is_taken {
                recovered.unwrap();
                assert_eq!(volumes.get_backend(name("all")).await.unwrap().site, "new");
                return;
            }
            let problem = refused(recovered, ProblemKind::Unavailable);
            assert!(problem.detail.contains("what it is made of: a, c."), "{problem}");
            assert!(volumes.get_backend(name("all")).await.is_err(), "nothing is taken in");
        });
    }
}

/// Otherwise what the drives have would be newer than the registry at the next start.
#[test]
fn a_recovery_brings_what_is_known_up_to_what_the_drives_say() {
    let world = world_with_an_old_layout();
    let fresh = World::new();
    let told = fresh.life(async |volumes: Rc<Volumes>| {
        let layout = layouts_in(&folder(&world, "a")).await.0;
        let told = layout.backends.into_iter().find(|record| record.name == name("a")).unwrap();
        let known = BackendRecord { version: told.version - 1, ..told.clone() };
        volumes.catalogue.restore(known).await.unwrap();
        recover(&volumes, &folder(&world, "c")).await.unwrap();
        told
    });
    fresh.life(async |volumes: Rc<Volumes>| {
        assert_eq!(volumes.get_backend(name("a")).await.unwrap().revision, told.version);
        assert_eq!(vdisk(&volumes).await.read(range(0, 1)).await.unwrap()[0], 7);
        volumes.renew_due_layouts().await;
        assert!(volumes.layouts_due.borrow().is_empty());
    });
}

#[test]
fn a_drive_that_is_none_any_more_is_refused_and_told_which_are() {
    let world = World::new();
    let uuid = world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        volumes.get_backend(name("all")).await.unwrap().uuid
    });
    change_composite(&world, uuid, |record| {
        let gone = record["drives"].as_array_mut().unwrap().pop();
        record["departed"] = serde_json::json!([{"uuid": gone, "node": "node-c"}]);
        record["format"] = serde_json::json!(3);
    });
    world.life(async |volumes: Rc<Volumes>| volumes.renew_due_layouts().await);
    let fresh = World::new();
    fresh.life(async |volumes: Rc<Volumes>| {
        let problem = refused(recover(&volumes, &folder(&world, "c")).await, ProblemKind::Conflict);
        assert!(problem.detail.contains("none of vPool p any more"), "{problem}");
        for (drive, is_named) in [("a", true), ("b", true), ("c", false)] {
            let path = folder(&world, drive);
            let named = problem.detail.split("recover it from ").nth(1).unwrap();
            assert_eq!(named.contains(&*path.to_string_lossy()), is_named, "{drive}: {problem}");
        }
        assert!(volumes.get_backend(name("all")).await.is_err(), "nothing is taken in");
        recover(&volumes, &folder(&world, "a")).await.unwrap();
        assert_eq!(volumes.get_backend(name("all")).await.unwrap().drives.len(), 2);
    });
}
