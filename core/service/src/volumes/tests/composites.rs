//! The life of a composite's drives: added, leaving, lost, silent for too long, back with old contents; cut off anywhere.

use super::{
    backends::{THREE_COPIES, composite, files_below, folder, make_drives, make_pool, namespaces, vdisk},
    layouts::recover,
    presets::preset,
    vpools::vpool,
    *,
};
use futures_util::FutureExt;
use ovs_api::{
    AddDrive, AlarmKind, Backend as ApiBackend, CreateBackend, DriveDuty, RemoveDriveQuery, Task, TaskState,
    VpoolState,
};
use std::{collections::BTreeMap, fs, path::PathBuf};

pub(super) const LEAVING: RemoveDriveQuery = RemoveDriveQuery { lost: false, accept_loss: false };
const LOST: RemoveDriveQuery = RemoveDriveQuery { lost: true, accept_loss: false };
const GIVEN_UP: RemoveDriveQuery = RemoveDriveQuery { lost: true, accept_loss: true };

async fn add(volumes: &Volumes, drive: &str) -> Result<ApiBackend, Problem> {
    volumes.add_drive(name("all"), AddDrive { drive: name(drive) }, no_terms()).await
}

pub(super) async fn remove(
    volumes: &Rc<Volumes>,
    drive: &str,
    query: RemoveDriveQuery,
) -> Result<Task, Problem> {
    volumes.remove_drive(name("all"), name(drive), query, no_terms()).await.map(|accepted| accepted.0)
}

pub(super) async fn ended(volumes: &Volumes, task: Task) -> Task {
    volumes.tasks.wait(task.uuid, Duration::from_secs(3600)).await.unwrap()
}

pub(super) async fn write_at(volumes: &Volumes, at: u64, byte: u8) {
    let vdisk = vdisk(volumes).await;
    vdisk.write(ByteOffset(at), vec![byte; 65536].into(), true).await.unwrap();
    vdisk.destage().await.unwrap();
}

pub(super) async fn read_at(volumes: &Volumes, at: u64) -> u8 {
    vdisk(volumes).await.read(range(at, 1)).await.unwrap()[0]
}

async fn duties(volumes: &Volumes) -> BTreeMap<String, DriveDuty> {
    let shown = volumes.get_backend(name("all")).await.unwrap();
    shown.drives.into_iter().map(|drive| (drive.name.to_string(), drive.duty)).collect()
}

pub(super) async fn names(volumes: &Volumes) -> Vec<String> {
    duties(volumes).await.into_keys().collect()
}

/// What has been said of backends since.
fn changes_since(volumes: &Volumes, seen: EventId) -> Vec<String> {
    let (_, mut events) = volumes.events.follow(Some(seen)).unwrap();
    let mut told = Vec::new();
    while let Some(Some(event)) = futures_util::StreamExt::next(&mut events).now_or_never() {
        told.extend(event.detail.filter(|_| event.kind == EventKind::BackendChanged));
    }
    told
}

/// Waits for what happens by itself.
pub(super) async fn until(volumes: &Volumes, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..3600 {
        if is_so().await {
            return;
        }
        volumes.clock.sleep(Duration::from_secs(1)).await;
    }
    panic!("it was not so within an hour: {what}");
}

pub(super) async fn until_names(volumes: &Volumes, expected: &[&str]) {
    until(volumes, &format!("{expected:?}"), async || names(volumes).await == expected).await;
}

fn is_open_as_recorded(volumes: &Volumes, record: &ApiBackend) -> bool {
    let Some((_, open)) = volumes.open_composite(record.uuid) else { return false };
    let of_record = |duty: DriveDuty| match duty {
        DriveDuty::Serving => ovs_backend::coded::Duty::Serving,
        DriveDuty::Leaving => ovs_backend::coded::Duty::Leaving,
        DriveDuty::Lost => ovs_backend::coded::Duty::Lost,
    };
    let duties: BTreeMap<Uuid, _> = open.coded.duties().into_iter().collect();
    let mut others =
        duties.iter().filter(|(uuid, _)| !record.drives.iter().any(|drive| drive.uuid == **uuid));
    record.drives.iter().all(|drive| duties.get(&drive.uuid) == Some(&of_record(drive.duty)))
        && others.all(|(_, duty)| *duty == ovs_backend::coded::Duty::Gone)
}

/// Moves a drive's directory out of sight.
pub(super) fn take_away(world: &World, drive: &str) {
    fs::rename(folder(world, drive), world.path().join(format!("away-{drive}"))).unwrap();
}

fn bring_back(world: &World, drive: &str) {
    let here = folder(world, drive);
    let _bare = fs::remove_dir_all(&here);
    fs::rename(world.path().join(format!("away-{drive}")), here).unwrap();
}

pub(super) fn scos(folder: &Path) -> Vec<PathBuf> {
    files_below(folder).into_iter().filter(|path| path.to_string_lossy().contains("/s/")).collect()
}

#[test]
fn a_drive_that_is_added_takes_its_share_and_stays_a_drive() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        for block in 0..8 {
            write_at(&volumes, block * 65536, 7).await;
        }
        make_drives(&world, &volumes, &["d"]).await;
        let before = volumes.get_backend(name("all")).await.unwrap();
        let terms = Terms { if_match: Some(before.revision + 1), idempotency_key: None };
        let asked = AddDrive { drive: name("d") };
        refused(volumes.add_drive(name("all"), asked.clone(), terms).await, ProblemKind::PreconditionFailed);
        let terms = Terms { if_match: Some(before.revision), idempotency_key: Some("k".into()) };
        let after = volumes.add_drive(name("all"), asked.clone(), terms.clone()).await.unwrap();
        assert_eq!((after.drives.len(), after.revision), (4, before.revision + 1));
        assert_eq!(after.plan.as_ref().unwrap().drive_count, 4);
        let again = volumes.add_drive(name("all"), asked, terms).await.unwrap();
        assert_eq!(again.revision, after.revision, "the same request again");
        assert_eq!(add(&volumes, "d").await.unwrap().revision, after.revision, "it is one already");
        assert_eq!(volumes.get_backend(name("d")).await.unwrap().drive_of, Some(name("all")));
        volumes.begin_background();
        until(&volumes, "it has its share", async || !scos(&folder(&world, "d")).is_empty()).await;
    });
    world.life(async |volumes: Rc<Volumes>| {
        let shown = volumes.get_backend(name("all")).await.unwrap();
        assert_eq!(names(&volumes).await, ["a", "b", "c", "d"]);
        assert!(
            shown.drives.iter().all(|drive| drive.problem.is_none()) && is_open_as_recorded(&volumes, &shown)
        );
        assert_eq!((read_at(&volumes, 0).await, read_at(&volumes, 7 * 65536).await), (7, 7));
    });
}

#[test]
fn a_drive_that_leaves_is_emptied_and_free() {
    let mut world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        make_drives(&world, &volumes, &["d"]).await;
        add(&volumes, "d").await.unwrap();
        write_at(&volumes, 0, 7).await;
        let task = remove(&volumes, "b", LEAVING).await.unwrap();
        assert_eq!(duties(&volumes).await["b"], DriveDuty::Leaving);
        write_at(&volumes, 65536, 8).await;
        volumes.begin_background();
        let done = ended(&volumes, task).await;
        assert_eq!(done.state, TaskState::Succeeded, "{done:?}");
        assert_eq!(names(&volumes).await, ["a", "c", "d"]);
        until(&volumes, "nothing is left on it", async || files_below(&folder(&world, "b")).is_empty()).await;
        assert_eq!((read_at(&volumes, 0).await, read_at(&volumes, 65536).await), (7, 8));
        let problem = refused(add(&volumes, "b").await, ProblemKind::Conflict);
        assert!(problem.detail.contains("ovs backend delete b"), "{problem}");
    });
    world.lose_registry();
    world.life(async |volumes: Rc<Volumes>| {
        let shown = volumes.get_backend(name("all")).await.unwrap();
        assert!(is_open_as_recorded(&volumes, &shown), "{:?}", shown.drives);
        assert_eq!((read_at(&volumes, 0).await, read_at(&volumes, 65536).await), (7, 8));
        volumes.create_vpool(vpool("q", Some("b")), no_terms()).await.unwrap();
        volumes.delete_vpool(name("q"), Default::default(), no_terms()).await.unwrap();
        volumes.delete_backend(name("b"), no_terms()).await.unwrap();
        make_drives(&world, &volumes, &["b"]).await;
        add(&volumes, "b").await.unwrap();
        assert_eq!(names(&volumes).await, ["a", "b", "c", "d"]);
    });
}

#[test]
fn a_drive_that_is_leaving_is_taken_back() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        let problem = refused(remove(&volumes, "b", LEAVING).await, ProblemKind::Conflict);
        assert!(problem.detail.contains("places for 2 fragments of an object instead of 3"), "{problem}");
        make_drives(&world, &volumes, &["d"]).await;
        add(&volumes, "d").await.unwrap();
        let task = remove(&volumes, "b", LEAVING).await.unwrap();
        let same = remove(&volumes, "b", LEAVING).await.unwrap();
        assert_eq!(same.uuid, task.uuid, "one waits for it");
        let shown = add(&volumes, "b").await.unwrap();
        assert!(is_open_as_recorded(&volumes, &shown));
        let ended = ended(&volumes, task).await;
        assert!(ended.error.as_ref().unwrap().detail.contains("taken back"), "{ended:?}");
        let again = remove(&volumes, "b", LEAVING).await.unwrap();
        assert_ne!(again.uuid, same.uuid, "that one is over");
        volumes.tasks.cancel(again.uuid).unwrap();
        let other = remove(&volumes, "b", LEAVING).await.unwrap();
        assert_ne!(other.uuid, again.uuid, "nor one that is asked to stop");
        add(&volumes, "b").await.unwrap();
        volumes.begin_background();
        volumes.clock.sleep(Duration::from_secs(300)).await;
        assert!(duties(&volumes).await.values().all(|duty| *duty == DriveDuty::Serving));
        assert_eq!(duties(&volumes).await.len(), 4);
    });
}

/// A drive that was lost comes back with what was on it then.
#[test]
fn a_lost_drive_is_never_asked_again_whatever_it_has_when_it_comes_back() {
    let mut world = World::new();
    let old = world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        make_drives(&world, &volumes, &["d"]).await;
        write_at(&volumes, 0, 7).await;
        take_away(&world, "b");
        write_at(&volumes, 0, 8).await;
        add(&volumes, "d").await.unwrap();
        let task = remove(&volumes, "b", LOST).await.unwrap();
        assert_eq!(duties(&volumes).await["b"], DriveDuty::Lost);
        // It is back at once, before anything was made good.
        bring_back(&world, "b");
        let old = files_below(&folder(&world, "b"));
        refused(add(&volumes, "b").await, ProblemKind::Conflict);
        refused(volumes.delete_backend(name("b"), no_terms()).await, ProblemKind::InUse);
        volumes.begin_background();
        assert_eq!(ended(&volumes, task).await.state, TaskState::Succeeded);
        assert_eq!(names(&volumes).await, ["a", "c", "d"]);
        let shown = volumes.get_backend(name("all")).await.unwrap();
        let upkeep = shown.upkeep.unwrap();
        let least = upkeep.safety.first().unwrap();
        assert_eq!((least.losses, least.percent, upkeep.unreadable), (2, 100, 0), "{:?}", upkeep.safety);
        let purge = ovs_api::DeleteVdiskQuery { purge: true };
        volumes.delete_vdisk("p:v".parse().unwrap(), purge, no_terms()).await.unwrap();
        until(&volumes, "its objects are gone", async || scos(&folder(&world, "a")).is_empty()).await;
        old
    });
    world.lose_registry();
    world.life(async |volumes: Rc<Volumes>| {
        volumes.begin_background();
        volumes.clock.sleep(Duration::from_secs(120)).await;
        let pool = volumes.pool_by_name(&name("p")).unwrap();
        let listed = pool.backend().unwrap().list("v/", None, 10).await.unwrap();
        assert!(listed.is_empty(), "what was deleted is raised: {listed:?}");
        assert_eq!(volumes.list_vdisks(Default::default()).await.unwrap().items, []);
        assert_eq!(files_below(&folder(&world, "b")), old, "nobody has touched it");
        for again in [
            add(&volumes, "b").await.map(drop),
            volumes.create_vpool(vpool("q", Some("b")), no_terms()).await.map(drop),
            volumes.create_backend(composite("x", &["b"], "p"), no_terms()).await.map(drop),
        ] {
            let problem = refused(again, ProblemKind::Conflict);
            assert!(
                problem.detail.contains("empty") && problem.detail.contains("ovs backend delete b"),
                "{problem}"
            );
        }
        // The record goes, and the directory tells what it is.
        volumes.delete_backend(name("b"), no_terms()).await.unwrap();
        make_drives(&world, &volumes, &["b"]).await;
        let problem = refused(add(&volumes, "b").await, ProblemKind::Conflict);
        assert!(problem.detail.contains("empty the directory"), "{problem}");
        fs::remove_dir_all(folder(&world, "b")).unwrap();
        fs::create_dir(folder(&world, "b")).unwrap();
        add(&volumes, "b").await.unwrap();
    });
}

#[test]
fn a_loss_that_costs_something_is_accepted_by_name() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "b", "c", "d"]).await;
        volumes.create_preset(preset("thin", &[(2, 0, 2, 1)]), no_terms()).await.unwrap();
        volumes.create_backend(composite("all", &["a", "b", "c", "d"], "thin"), no_terms()).await.unwrap();
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
        let new = CreateVdisk { size_bytes: Some(1 << 20), ..CreateVdisk::new(name("p"), name("v")) };
        volumes.create_vdisk(new, no_terms()).await.unwrap();
        for block in 0..12 {
            write_at(&volumes, block * 65536, 7).await;
        }
        take_away(&world, "b");
        let problem = refused(remove(&volumes, "b", LOST).await, ProblemKind::Conflict);
        let told = serde_json::to_value(&problem).unwrap();
        assert!(told["unreadable"].as_u64().unwrap() > 0, "{told}");
        assert!(told["unreadable_names"][0].as_str().unwrap().contains('/'), "{told}");
        assert!(problem.detail.contains("--accept-loss"), "{problem}");
        assert_eq!(duties(&volumes).await["b"], DriveDuty::Serving, "nothing has changed");
        bring_back(&world, "b");
        volumes.clock.sleep(Duration::from_secs(400)).await;
        assert_eq!(read_at(&volumes, 0).await, 7);
        take_away(&world, "b");
        let task = remove(&volumes, "b", GIVEN_UP).await.unwrap();
        volumes.begin_background();
        let ended = ended(&volumes, task).await;
        assert_eq!(ended.state, TaskState::Succeeded, "{ended:?}");
        assert_eq!(names(&volumes).await, ["a", "c", "d"]);
    });
}

/// Something may be gone with it that was found only after it was given up: it is let go by whoever accepts that.
#[test]
fn what_was_lost_is_let_go_only_by_who_accepts_what_it_costs() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "b", "c", "d", "e"]).await;
        volumes.create_preset(preset("p", THREE_COPIES), no_terms()).await.unwrap();
        volumes.create_backend(composite("all", &["a", "b", "c", "d", "e"], "p"), no_terms()).await.unwrap();
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
        remove(&volumes, "a", LOST).await.unwrap();
        let problem = refused(remove(&volumes, "b", LOST).await, ProblemKind::Conflict);
        assert!(problem.detail.contains("nothing is left to tell"), "{problem}");
        // Nobody has asked before it went; as when a drive falls silent while another is made good.
        let uuid = volumes.get_backend(name("all")).await.unwrap().uuid;
        let b = volumes.get_backend(name("b")).await.unwrap().uuid;
        let open = volumes.open_composite(uuid).unwrap().1;
        let generation = open.generation();
        assert!(!volumes.give_up(uuid, generation, &[b], "a test").await.unwrap(), "it answers");
        open.note_silent(&[b].into(), volumes.clock.now());
        assert!(!volumes.give_up(uuid, generation + 1, &[b], "a test").await.unwrap(), "of another time");
        assert!(volumes.give_up(uuid, generation, &[b], "a test").await.unwrap());
        volumes.begin_background();
        volumes.clock.sleep(Duration::from_secs(600)).await;
        let shown = volumes.get_backend(name("all")).await.unwrap();
        let lost = shown.drives.iter().filter(|drive| drive.duty == DriveDuty::Lost).count();
        assert_eq!((lost, shown.drives.len()), (2, 5));
        let problem = shown.upkeep.unwrap().problem.unwrap();
        assert!(problem.contains("--accept-loss"), "{problem}");
        let alarm = |subject: &str| {
            let alarms = volumes.alarms.list();
            alarms.into_iter().find(|alarm| alarm.kind == AlarmKind::Drive && alarm.subject == subject)
        };
        assert!(alarm("b").unwrap().detail.contains("given up as lost"));
        assert!(alarm("all").unwrap().detail.contains("--accept-loss"));
        remove(&volumes, "b", GIVEN_UP).await.unwrap();
        until_names(&volumes, &["c", "d", "e"]).await;
        volumes.clock.sleep(Duration::from_secs(10)).await;
        assert!(alarm("b").is_none() && alarm("all").is_none(), "{:?}", volumes.alarms.list());
    });
}

#[test]
fn what_the_others_cannot_do_without_stays() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "b", "x"]).await;
        volumes.create_preset(preset("mirror", &[(1, 1, 2, 1)]), no_terms()).await.unwrap();
        volumes.create_backend(composite("all", &["a", "b"], "mirror"), no_terms()).await.unwrap();
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
        let problem = refused(remove(&volumes, "a", LEAVING).await, ProblemKind::Conflict);
        assert!(problem.detail.contains("places for 2 fragments"), "{problem}");
        let problem = refused(remove(&volumes, "x", LEAVING).await, ProblemKind::NotFound);
        assert!(problem.detail.contains("x is no drive of backend all"), "{problem}");
        let of_a = volumes.remove_drive(name("a"), name("b"), LEAVING, no_terms()).await.map(drop);
        assert!(refused(of_a, ProblemKind::Conflict).detail.contains("no composite"));
        remove(&volumes, "a", GIVEN_UP).await.unwrap();
        let problem = refused(remove(&volumes, "b", GIVEN_UP).await, ProblemKind::Conflict);
        assert!(problem.detail.contains("the last"), "{problem}");
    });
}

#[test]
fn what_cannot_be_a_drive_is_refused_and_changes_nothing() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        make_drives(&world, &volumes, &["d", "e", "f", "g"]).await;
        volumes.create_preset(preset("one", &[(1, 0, 1, 1)]), no_terms()).await.unwrap();
        volumes.create_backend(composite("other", &["d"], "one"), no_terms()).await.unwrap();
        let problem = refused(add(&volumes, "d").await, ProblemKind::InUse);
        assert!(problem.detail.contains("drive of backend other"), "{problem}");
        refused(add(&volumes, "default").await, ProblemKind::InUse);
        refused(add(&volumes, "all").await, ProblemKind::InUse);
        refused(add(&volumes, "nothing").await, ProblemKind::NotFound);
        volumes.create_backend(composite("deep", &["other"], "one"), no_terms()).await.unwrap();
        let problem = refused(add(&volumes, "deep").await, ProblemKind::Invalid);
        assert!(problem.detail.contains("at most 2"), "{problem}");
        let into = |outer: &str, drive: &str| {
            volumes.add_drive(name(outer), AddDrive { drive: name(drive) }, no_terms())
        };
        let problem = refused(into("other", "deep").await, ProblemKind::Invalid);
        assert!(problem.detail.contains("a part of"), "{problem}");
        for left in [format!("vpool-{}", Uuid::from_u128(9)), format!("ovs-drive-{}", Uuid::from_u128(9))] {
            fs::create_dir(folder(&world, "e").join(&left)).unwrap();
            let problem = refused(add(&volumes, "e").await, ProblemKind::Conflict);
            assert!(
                problem.detail.contains(&left) && problem.detail.contains("empty the directory"),
                "{problem}"
            );
            fs::remove_dir(folder(&world, "e").join(&left)).unwrap();
        }
        assert_eq!(files_below(&folder(&world, "e")), [] as [PathBuf; 0]);
        // It has what this vPool has somewhere else.
        let namespace = namespaces(&folder(&world, "a")).remove(0);
        copy_folder(&namespace, &folder(&world, "f").join(namespace.file_name().unwrap()));
        let problem = refused(add(&volumes, "f").await, ProblemKind::Conflict);
        assert!(problem.detail.contains("the place of drive"), "{problem}");
        fs::remove_dir(folder(&world, "g")).unwrap();
        refused(add(&volumes, "g").await, ProblemKind::Conflict);
        assert_eq!(names(&volumes).await, ["a", "b", "c"]);
        assert_eq!(volumes.get_backend(name("all")).await.unwrap().revision, 1);
    });
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in files_below(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
}

#[test]
fn a_drive_that_is_silent_for_the_whole_grace_is_given_up_by_itself_and_stays_so() {
    let world = World::new();
    world.repair_grace.set(Some(Duration::from_secs(900)));
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        make_drives(&world, &volumes, &["d"]).await;
        add(&volumes, "d").await.unwrap();
        write_at(&volumes, 0, 7).await;
        volumes.begin_background();
        take_away(&world, "b");
        volumes.clock.sleep(Duration::from_secs(600)).await;
        bring_back(&world, "b");
        volumes.clock.sleep(Duration::from_secs(600)).await;
        assert_eq!(duties(&volumes).await["b"], DriveDuty::Serving, "there was a break");
        let seen = volumes.events.newest();
        take_away(&world, "b");
        volumes.clock.sleep(Duration::from_secs(600)).await;
        assert_eq!(duties(&volumes).await["b"], DriveDuty::Serving, "not before the grace is over");
        write_at(&volumes, 65536, 8).await;
        until_names(&volumes, &["a", "c", "d"]).await;
        bring_back(&world, "b");
        volumes.clock.sleep(Duration::from_secs(10)).await;
        assert_eq!((read_at(&volumes, 0).await, read_at(&volumes, 65536).await), (7, 8));
        assert_eq!(names(&volumes).await, ["a", "c", "d"]);
        let told = changes_since(&volumes, seen);
        assert!(told[0].starts_with("b: lost, silent for 900s"), "{told:?}");
    });
}

/// Away already when ovsd starts, and with another that comes back too many to begin with.
#[test]
fn a_drive_that_was_away_at_the_start_is_given_up_too() {
    let world = World::new();
    world.repair_grace.set(Some(Duration::from_secs(900)));
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        make_drives(&world, &volumes, &["d"]).await;
        add(&volumes, "d").await.unwrap();
        write_at(&volumes, 0, 7).await;
    });
    take_away(&world, "b");
    take_away(&world, "c");
    world.life(async |volumes: Rc<Volumes>| {
        volumes.begin_background();
        volumes.clock.sleep(Duration::from_secs(2000)).await;
        assert_eq!(volumes.get_vpool(name("p")).await.unwrap().state, VpoolState::Offline);
        assert!(duties(&volumes).await.values().all(|duty| *duty == DriveDuty::Serving), "not two at once");
        let problem = volumes.get_backend(name("all")).await.unwrap().upkeep.unwrap().problem.unwrap();
        assert!(problem.contains("b, c are silent") && problem.contains("--lost"), "{problem}");
        bring_back(&world, "c");
        until_names(&volumes, &["a", "c", "d"]).await;
        assert_eq!(read_at(&volumes, 0).await, 7);
    });
}

/// By the older record a drive that was lost would serve with what it had then, and the new one would be none.
#[test]
fn by_a_registry_that_was_put_back_nothing_is_opened() {
    let world = World::new();
    world.repair_grace.set(Some(Duration::from_secs(900)));
    let uuid = world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        make_drives(&world, &volumes, &["d"]).await;
        write_at(&volumes, 0, 7).await;
        volumes.get_backend(name("all")).await.unwrap().uuid
    });
    let replace = |record: Option<Vec<u8>>| {
        let mut before = Vec::new();
        world.change_registry(&format!("backend/{uuid}"), |bytes| {
            before = bytes;
            record.unwrap_or_else(|| before.clone())
        });
        before
    };
    let old = replace(None);
    world.life(async |volumes: Rc<Volumes>| {
        volumes.begin_background();
        take_away(&world, "b");
        add(&volumes, "d").await.unwrap();
        remove(&volumes, "b", GIVEN_UP).await.unwrap();
        until_names(&volumes, &["a", "c", "d"]).await;
        write_at(&volumes, 65536, 8).await;
        bring_back(&world, "b");
    });
    let new = replace(Some(old));
    let left = || ["a", "b", "c", "d"].map(|drive| files_below(&folder(&world, drive)));
    let before = left();
    // Also where too many are away to begin with, and the others come back later.
    for away in [&[][..], &["a", "b"]] {
        away.iter().for_each(|drive| take_away(&world, drive));
        world.life(async |volumes: Rc<Volumes>| {
            volumes.begin_background();
            volumes.clock.sleep(Duration::from_secs(1000)).await;
            away.iter().for_each(|drive| bring_back(&world, drive));
            volumes.clock.sleep(Duration::from_secs(1000)).await;
            let shown = volumes.get_vpool(name("p")).await.unwrap();
            let reason = shown.state_reason.unwrap_or_default();
            assert_eq!(shown.state, VpoolState::Offline, "{reason}");
            assert!(reason.contains("put back") && reason.contains("this host version 1"), "{reason}");
            assert_eq!(volumes.get_backend(name("all")).await.unwrap().revision, 1, "nothing is given up");
        });
        assert_eq!(left(), before, "{away:?}");
    }
    // What is said to help does.
    replace(Some(new));
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(volumes.get_vpool(name("p")).await.unwrap().state, VpoolState::Ok);
        assert_eq!((read_at(&volumes, 0).await, read_at(&volumes, 65536).await), (7, 8));
    });
    let fresh = World::new();
    fresh.life(async |volumes: Rc<Volumes>| {
        recover(&volumes, &folder(&world, "a")).await.unwrap();
        assert_eq!((read_at(&volumes, 0).await, read_at(&volumes, 65536).await), (7, 8));
    });
}

/// Too many are away for guests; the policy survives it all the same.
#[test]
fn drives_of_a_vpool_that_is_offline_are_given_up_by_hand() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
        make_drives(&world, &volumes, &["d", "e"]).await;
        write_at(&volumes, 0, 7).await;
    });
    take_away(&world, "b");
    take_away(&world, "c");
    world.life(async |volumes: Rc<Volumes>| {
        volumes.begin_background();
        assert_eq!(volumes.get_vpool(name("p")).await.unwrap().state, VpoolState::Offline);
        remove(&volumes, "b", LOST).await.unwrap();
        let problem = refused(remove(&volumes, "c", LOST).await, ProblemKind::Conflict);
        assert!(problem.detail.contains("nothing is left to tell"), "{problem}");
        remove(&volumes, "b", GIVEN_UP).await.unwrap();
        remove(&volumes, "c", GIVEN_UP).await.unwrap();
        add(&volumes, "d").await.unwrap();
        add(&volumes, "e").await.unwrap();
        until_names(&volumes, &["a", "d", "e"]).await;
        assert_eq!(read_at(&volumes, 0).await, 7);
        assert_eq!(volumes.get_vpool(name("p")).await.unwrap().state, VpoolState::Ok);
    });
}

#[test]
fn a_node_is_given_up_as_a_whole_and_all_drives_never() {
    let world = World::new();
    world.repair_grace.set(Some(Duration::from_secs(60)));
    world.life(async |volumes: Rc<Volumes>| {
        for (drive, node) in [("a", "m"), ("b", "m"), ("c", "n"), ("d", "n"), ("e", "o"), ("f", "o")] {
            let request = CreateBackend {
                node: Some(node.into()),
                site: Some("here".into()),
                ..CreateBackend::dir(name(drive), folder(&world, drive).to_string_lossy())
            };
            volumes.create_backend(request, no_terms()).await.unwrap();
        }
        let all = ["a", "b", "c", "d", "e", "f"];
        volumes.create_preset(preset("p", &[(1, 2, 3, 2)]), no_terms()).await.unwrap();
        volumes.create_backend(composite("all", &all, "p"), no_terms()).await.unwrap();
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
        let new = CreateVdisk { size_bytes: Some(1 << 20), ..CreateVdisk::new(name("p"), name("v")) };
        volumes.create_vdisk(new, no_terms()).await.unwrap();
        write_at(&volumes, 0, 7).await;
        volumes.begin_background();
        all.iter().for_each(|drive| take_away(&world, drive));
        volumes.clock.sleep(Duration::from_secs(1000)).await;
        assert!(duties(&volumes).await.values().all(|duty| *duty == DriveDuty::Serving));
        all.iter().for_each(|drive| bring_back(&world, drive));
        until(&volumes, "all are back", async || {
            let shown = volumes.get_backend(name("all")).await.unwrap();
            shown.drives.iter().all(|drive| drive.problem.is_none())
        })
        .await;
        volumes.clock.sleep(Duration::from_secs(400)).await;
        let seen = volumes.events.newest();
        take_away(&world, "a");
        take_away(&world, "b");
        until_names(&volumes, &["c", "d", "e", "f"]).await;
        assert_eq!(read_at(&volumes, 0).await, 7);
        let told = changes_since(&volumes, seen);
        assert!(told[0].starts_with("a, b: lost"), "both at once: {told:?}");
    });
}

#[test]
fn drives_of_a_composite_without_a_vpool_go_at_once() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_drives(&world, &volumes, &["a", "b", "c", "d"]).await;
        volumes.create_preset(preset("p", THREE_COPIES), no_terms()).await.unwrap();
        volumes.create_backend(composite("all", &["a", "b", "c"], "p"), no_terms()).await.unwrap();
        add(&volumes, "d").await.unwrap();
        let task = remove(&volumes, "a", LEAVING).await.unwrap();
        assert_eq!(names(&volumes).await, ["b", "c", "d"]);
        assert_eq!(ended(&volumes, task).await.state, TaskState::Succeeded);
        remove(&volumes, "b", LOST).await.unwrap();
        assert_eq!(names(&volumes).await, ["c", "d"]);
        add(&volumes, "a").await.unwrap();
        volumes.create_vpool(vpool("p", Some("all")), no_terms()).await.unwrap();
    });
}

/// Cuts an operation off at each of its commits, and at those of what follows by itself. Afterwards what is open is as the record
/// says, nothing is lost, and the same again comes to the same end, also for who lost the registry.
fn sweep(expected: &[&str], operation: impl AsyncFn(&Rc<Volumes>) -> Result<(), Problem>) {
    for death in [Death::Before, Death::After] {
        for n in 1.. {
            let mut world = World::new();
            world.life(async |volumes: Rc<Volumes>| {
                make_pool(&world, &volumes, preset("p", THREE_COPIES)).await;
                make_drives(&world, &volumes, &["d"]).await;
                write_at(&volumes, 0, 7).await;
            });
            let to_the_end = async |volumes: Rc<Volumes>| {
                let done = async {
                    volumes.begin_background();
                    operation(&volumes).await.unwrap();
                    until_names(&volumes, expected).await;
                    until(&volumes, "nothing is left to do", async || {
                        expected.contains(&"b") || namespaces(&folder(&world, "b")).is_empty()
                    })
                    .await;
                };
                tokio::time::timeout(Duration::from_secs(3000), done).await.is_ok()
            };
            let (is_done, commits) = world.mortal_life(n, death, to_the_end);
            world.life(async |volumes: Rc<Volumes>| {
                let shown = volumes.get_backend(name("all")).await.unwrap();
                assert!(
                    is_open_as_recorded(&volumes, &shown),
                    "cut off {death:?} commit {n}: {:?}",
                    shown.drives
                );
                assert_eq!(read_at(&volumes, 0).await, 7, "cut off {death:?} commit {n}");
                volumes.begin_background();
                match operation(&volumes).await {
                    // It went on by itself, and has ended.
                    Err(problem) if problem.kind() == ProblemKind::NotFound => {}
                    done => done.unwrap(),
                }
                until_names(&volumes, expected).await;
                until(&volumes, "nothing is left on it", async || {
                    // A mark may be left of a drive that is none any more.
                    expected.contains(&"b") || namespaces(&folder(&world, "b")).is_empty()
                })
                .await;
                write_at(&volumes, 65536, 8).await;
            });
            world.lose_registry();
            world.life(async |volumes: Rc<Volumes>| {
                assert_eq!(names(&volumes).await, expected, "cut off {death:?} commit {n}");
                let shown = volumes.get_backend(name("all")).await.unwrap();
                assert!(is_open_as_recorded(&volumes, &shown));
                assert_eq!((read_at(&volumes, 0).await, read_at(&volumes, 65536).await), (7, 8));
            });
            if is_done && commits < n {
                break;
            }
        }
    }
}

#[test]
fn adding_is_cut_off_anywhere() {
    sweep(&["a", "b", "c", "d"], async |volumes: &Rc<Volumes>| add(volumes, "d").await.map(drop));
}

#[test]
fn leaving_is_cut_off_anywhere() {
    sweep(&["a", "c", "d"], async |volumes: &Rc<Volumes>| {
        add(volumes, "d").await?;
        remove(volumes, "b", LEAVING).await.map(drop)
    });
}

#[test]
fn a_loss_is_cut_off_anywhere() {
    let world_of_b = |volumes: &Volumes| {
        let root = volumes.settings.paths.state_dir();
        let root = root.ancestors().find(|path| path.join("drives").exists()).unwrap().to_owned();
        root.join("drives/b")
    };
    sweep(&["a", "c"], async |volumes: &Rc<Volumes>| {
        // It is emptied by whoever has lost it.
        let _gone = fs::remove_dir_all(world_of_b(volumes));
        fs::create_dir(world_of_b(volumes)).unwrap();
        remove(volumes, "b", LOST).await.map(drop)
    });
}
