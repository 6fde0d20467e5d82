//! All that is on drives is read once in a while: what has changed there is found and made again, also over restarts.

use super::{
    backends::{THREE_COPIES, composite, files_below, folder, make_drives, make_pool, vdisk},
    presets::preset,
    vpools::vpool,
    *,
};
use crate::volumes::upkeep::Tended;
use ovs_api::{BackendUpkeep, TaskState, Verification};
use std::{fs, path::PathBuf};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Three drives with as many copies of some MiB, and a fourth.
async fn make_data(world: &World, volumes: &Rc<Volumes>) {
    make_pool(world, volumes, preset("p", THREE_COPIES)).await;
    make_drives(world, volumes, &["d"]).await;
    volumes.add_drive(name("all"), ovs_api::AddDrive { drive: name("d") }, no_terms()).await.unwrap();
    let vdisk = vdisk(volumes).await;
    for block in 0..16 {
        vdisk.write(ByteOffset(block * 65536), block_of(block).into(), true).await.unwrap();
        vdisk.destage().await.unwrap();
    }
}

/// Bytes that no compression makes fewer.
fn block_of(block: u64) -> Vec<u8> {
    let mut state = block + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..65536).map(|_| next()).collect()
}

async fn check_data(volumes: &Volumes) {
    for block in 0..16 {
        let read = vdisk(volumes).await.read(range(block * 65536, 65536)).await.unwrap();
        assert!(read == block_of(block), "block {block}");
    }
}

/// Changes the last byte of some fragments of SCOs on a drive.
fn rot(world: &World, drive: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let is_of_sco = |path: &PathBuf| path.to_string_lossy().contains("/s/");
    let mut rotten = Vec::new();
    for path in files_below(&folder(world, drive)).into_iter().filter(is_of_sco).step_by(3) {
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        rotten.push((path, bytes));
    }
    assert!(rotten.len() > 1, "{rotten:?}");
    rotten
}

fn are_still_rotten(rotten: &[(PathBuf, Vec<u8>)]) -> bool {
    rotten.iter().any(|(path, bytes)| fs::read(path).is_ok_and(|now| now == *bytes))
}

async fn upkeep(volumes: &Volumes) -> BackendUpkeep {
    volumes.get_backend(name("all")).await.unwrap().upkeep.unwrap()
}

async fn verifying(volumes: &Volumes) -> Verification {
    until(volumes, 60, async || upkeep(volumes).await.verifying).await
}

/// What there is once it is, which takes so many minutes at most.
async fn until<T>(volumes: &Volumes, minutes_max: u64, mut find: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..minutes_max * 6 {
        if let Some(found) = find().await {
            return found;
        }
        volumes.clock.sleep(MINUTE / 6).await;
    }
    panic!("it was not so within {minutes_max} minutes");
}

async fn until_mended(volumes: &Volumes, rotten: &[(PathBuf, Vec<u8>)]) {
    until(volumes, 10, async || (!are_still_rotten(rotten)).then_some(())).await;
    let safety = until(volumes, 10, async || {
        let upkeep = upkeep(volumes).await;
        (upkeep.phase == ovs_api::UpkeepPhase::Idle).then_some(upkeep.safety)
    })
    .await;
    assert_eq!((safety[0].losses, safety[0].percent), (2, 100));
    check_data(volumes).await;
}

#[test]
fn what_rots_where_nobody_reads_is_found_within_the_period_and_mended() {
    let world = World::new();
    world.verify_every.set(Some(2 * HOUR));
    world.life(async |volumes: Rc<Volumes>| {
        make_data(&world, &volumes).await;
        volumes.begin_background();
        let begun = verifying(&volumes).await;
        assert_eq!((begun.percent, begun.bad_fragments), (0, 0));
        assert_eq!(upkeep(&volumes).await.verified, None, "nothing was verified yet");
        let rotten = rot(&world, "b");
        let last = until(&volumes, 120, async || upkeep(&volumes).await.verified).await;
        assert_eq!((last.bad_fragments, last.percent), (rotten.len() as u64, 100), "{last:?}");
        assert_eq!((last.missed, last.objects > 16), (vec![], true));
        assert_eq!(last.began_at, begun.began_at);
        until_mended(&volumes, &rotten).await;
        let next = verifying(&volumes).await;
        assert_eq!(
            (Some(next.began_at), next.percent),
            (last.ended_at.clone(), 0),
            "the next period has begun"
        );
        let left = Duration::from_secs(next.remaining_seconds.unwrap());
        assert!(left > 2 * HOUR * 8 / 10 && left < 2 * HOUR, "{left:?}");
        // Once in a period, and not all the time.
        let ended = last.ended_at;
        volumes.clock.sleep(HOUR).await;
        assert_eq!(upkeep(&volumes).await.verified.unwrap().ended_at, ended);
        volumes.clock.sleep(HOUR).await;
        let again = upkeep(&volumes).await.verified.unwrap();
        assert!(again.ended_at != ended && again.bad_fragments == 0, "{again:?}");
    });
}

#[test]
fn where_it_is_off_nothing_is_read_but_what_somebody_asks_for() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_data(&world, &volumes).await;
        volumes.begin_background();
        let rotten = rot(&world, "b");
        volumes.clock.sleep(5 * HOUR).await;
        let before = upkeep(&volumes).await;
        assert!(are_still_rotten(&rotten) && before.surveyed_at.is_some());
        assert_eq!((before.verify_every_seconds, before.verified, before.verifying), (None, None, None));
        let task = volumes.verify_backend(name("all")).await.unwrap().0;
        let same = volumes.verify_backend(name("all")).await.unwrap().0;
        assert_eq!((same.uuid, task.kind.as_str()), (task.uuid, "backend.verify"));
        let ended = volumes.tasks.wait(task.uuid, HOUR).await.unwrap();
        assert_eq!(ended.state, TaskState::Succeeded, "{ended:?}");
        assert_eq!(ended.result.unwrap()["bad_fragments"], rotten.len());
        let after = upkeep(&volumes).await;
        assert_eq!(after.verified.unwrap().bad_fragments, rotten.len() as u64);
        assert_eq!(after.verifying, None, "and no other begins by itself");
        until_mended(&volumes, &rotten).await;
        let again = volumes.verify_backend(name("all")).await.unwrap().0;
        assert_ne!(again.uuid, task.uuid);
        let ended = volumes.tasks.wait(again.uuid, HOUR).await.unwrap();
        assert_eq!(ended.result.unwrap()["bad_fragments"], 0);
    });
}

#[test]
fn a_verification_goes_on_over_restarts_and_catches_up_without_haste() {
    let world = World::new();
    world.verify_every.set(Some(4 * HOUR));
    let before = world.life(async |volumes: Rc<Volumes>| {
        make_data(&world, &volumes).await;
        volumes.begin_background();
        let begun = verifying(&volumes).await;
        let far =
            until(&volumes, 4 * 60, async || Some(verifying(&volumes).await).filter(|far| far.objects > 0));
        let far = far.await;
        assert!(far.percent > 0 && far.percent < 90 && far.began_at == begun.began_at, "{far:?}");
        far
    });
    // Each life is a world's time of its own: what the calendar says goes on.
    world.later(HOUR);
    world.life(async |volumes: Rc<Volumes>| {
        volumes.begin_background();
        let goes_on = verifying(&volumes).await;
        assert_eq!(goes_on.began_at, before.began_at);
        assert!(goes_on.objects >= before.objects && goes_on.percent >= before.percent, "{goes_on:?}");
    });
    world.later(60 * 24 * HOUR);
    world.life(async |volumes: Rc<Volumes>| {
        volumes.begin_background();
        let rotten = rot(&world, "b");
        let late = verifying(&volumes).await;
        assert_eq!(late.began_at, before.began_at);
        volumes.clock.sleep(10 * MINUTE).await;
        assert_eq!(upkeep(&volumes).await.verified, None, "not all at once");
        let last = until(&volumes, 65, async || upkeep(&volumes).await.verified).await;
        assert_eq!(last.began_at, before.began_at);
        // Together both lives have read each object once.
        let listed = upkeep(&volumes).await;
        assert!(
            last.objects > listed.objects / 2 && last.objects <= listed.objects + 8,
            "{last:?} of {listed:?}"
        );
        let whole = until(&volumes, 4 * 60, async || {
            upkeep(&volumes).await.verified.filter(|whole| whole.began_at != last.began_at)
        });
        assert!(whole.await.ended_at.is_some());
        until_mended(&volumes, &rotten).await;
    });
}

/// The pass has gone on, and ovsd dies before anything was mended.
#[test]
fn what_was_found_before_a_crash_is_mended_after_it() {
    let world = World::new();
    let rotten = world.life(async |volumes: Rc<Volumes>| {
        make_data(&world, &volumes).await;
        volumes.begin_background();
        // The next look is 10 s later at the earliest.
        while upkeep(&volumes).await.surveyed_at.is_none() {
            volumes.clock.sleep(Duration::from_secs(1)).await;
        }
        let rotten = rot(&world, "b");
        let task = volumes.verify_backend(name("all")).await.unwrap().0;
        let ended = volumes.tasks.wait(task.uuid, HOUR).await.unwrap();
        assert_eq!(ended.result.unwrap()["bad_fragments"], rotten.len());
        assert!(are_still_rotten(&rotten), "nobody had the time");
        rotten
    });
    world.life(async |volumes: Rc<Volumes>| {
        volumes.begin_background();
        let last = until(&volumes, 10, async || upkeep(&volumes).await.verified).await;
        assert_eq!(last.bad_fragments, rotten.len() as u64);
        until_mended(&volumes, &rotten).await;
    });
}

/// The first look after a start knows it already: of what is bad on one, another may have the last that is good.
#[test]
fn no_drive_goes_before_what_was_found_before_a_crash_is_mended() {
    let world = World::new();
    let rotten = world.life(async |volumes: Rc<Volumes>| {
        make_data(&world, &volumes).await;
        volumes.begin_background();
        while upkeep(&volumes).await.surveyed_at.is_none() {
            volumes.clock.sleep(Duration::from_secs(1)).await;
        }
        let rotten = rot(&world, "b");
        let task = volumes.verify_backend(name("all")).await.unwrap().0;
        volumes.tasks.wait(task.uuid, HOUR).await.unwrap();
        assert!(are_still_rotten(&rotten), "nobody had the time");
        rotten
    });
    // The registry does not answer for that as yet: it is looked at, and no drive goes.
    let key = world.life(async |volumes: Rc<Volumes>| {
        format!("verification/{}", volumes.get_backend(name("all")).await.unwrap().uuid)
    });
    world.refused.replace(Some(key.clone()));
    let leaving = super::composites::LEAVING;
    world.life(async |volumes: Rc<Volumes>| {
        volumes.remove_drive(name("all"), name("c"), leaving, no_terms()).await.unwrap();
        volumes.begin_background();
        while upkeep(&volumes).await.surveyed_at.is_none() {
            volumes.clock.sleep(Duration::from_secs(1)).await;
        }
        volumes.clock.sleep(30 * MINUTE).await;
        assert_eq!(super::composites::names(&volumes).await, ["a", "b", "c", "d"]);
        assert!(are_still_rotten(&rotten));
    });
    world.refused.replace(None);
    world.life(async |volumes: Rc<Volumes>| {
        volumes.begin_background();
        super::composites::until_names(&volumes, &["a", "b", "d"]).await;
        assert!(!are_still_rotten(&rotten), "it was let go too early");
        until_mended(&volumes, &rotten).await;
    });
    // What is mended is not bad in the next life.
    world.life(async |_| {
        let record = world.registry.get(&key).await.unwrap().unwrap().value;
        assert!(!String::from_utf8(record).unwrap().contains("suspicious"));
    });
}

/// Until all was read once more no drive goes.
#[test]
fn that_more_is_bad_than_is_remembered_outlives_a_crash() {
    let world = World::new();
    let composite = |volumes: &Rc<Volumes>| {
        let found = volumes.all_pools().into_iter().flat_map(|pool| pool.composites()).next();
        found.expect("the vPool is on one").1
    };
    world.life(async |volumes: Rc<Volumes>| {
        make_data(&world, &volumes).await;
        volumes.begin_background();
        while upkeep(&volumes).await.surveyed_at.is_none() {
            volumes.clock.sleep(Duration::from_secs(1)).await;
        }
        composite(&volumes).coded.suspect_more();
        volumes.keep_bad(&composite(&volumes)).await;
    });
    world.life(async |volumes: Rc<Volumes>| {
        assert!(!composite(&volumes).coded.has_more_suspicious());
        volumes.begin_background();
        let is_remembered = async || composite(&volumes).coded.has_more_suspicious();
        super::composites::until(&volumes, "it is remembered", is_remembered).await;
    });
}

/// With c = k nobody may be silent: the end of what answers is no end, and that is told.
#[test]
fn a_verification_that_does_not_end_says_why() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        make_pool(&world, &volumes, preset("p", &[(1, 2, 1, 9)])).await;
        vdisk(&volumes).await.write(ByteOffset(0), block_of(1).into(), true).await.unwrap();
        vdisk(&volumes).await.destage().await.unwrap();
        volumes.begin_background();
        while upkeep(&volumes).await.surveyed_at.is_none() {
            volumes.clock.sleep(Duration::from_secs(1)).await;
        }
        super::composites::take_away(&world, "b");
        let task = volumes.verify_backend(name("all")).await.unwrap().0;
        let has_no_end = async || {
            let problem = upkeep(&volumes).await.problem;
            problem.is_some_and(|problem| problem.contains("does not end") && problem.contains("(b)"))
        };
        super::composites::until(&volumes, "it is told", has_no_end).await;
        volumes.tasks.cancel(task.uuid).unwrap();
        super::composites::until(&volumes, "nobody waits for it", async || !has_no_end().await).await;
    });
}

#[test]
fn what_cannot_be_verified_is_refused_and_who_waits_can_stop_it() {
    let world = World::new();
    world.verify_every.set(Some(24 * HOUR));
    world.life(async |volumes: Rc<Volumes>| {
        make_data(&world, &volumes).await;
        make_drives(&world, &volumes, &["e", "f", "g"]).await;
        volumes.create_backend(composite("idle", &["e", "f", "g"], "p"), no_terms()).await.unwrap();
        refused(volumes.verify_backend(name("none")).await, ProblemKind::NotFound);
        let problem = refused(volumes.verify_backend(name("a")).await, ProblemKind::Conflict);
        assert!(problem.detail.contains("no composite"), "{problem}");
        let problem = refused(volumes.verify_backend(name("idle")).await, ProblemKind::Conflict);
        assert!(problem.detail.contains("no vPool"), "{problem}");
        // Nobody looks after it yet: it waits.
        let task = volumes.verify_backend(name("all")).await.unwrap().0;
        volumes.clock.sleep(MINUTE).await;
        volumes.tasks.cancel(task.uuid).unwrap();
        let ended = volumes.tasks.wait(task.uuid, HOUR).await.unwrap();
        assert_eq!(ended.state, TaskState::Cancelled, "{ended:?}");
        volumes.begin_background();
        volumes.clock.sleep(HOUR).await;
        assert_eq!(upkeep(&volumes).await.verified, None, "at the usual pace");
        // One that does wait for its time is overtaken.
        let begun = verifying(&volumes).await;
        let task = volumes.verify_backend(name("all")).await.unwrap().0;
        let ended = volumes.tasks.wait(task.uuid, HOUR).await.unwrap();
        assert_eq!(ended.state, TaskState::Succeeded, "{ended:?}");
        assert_ne!(upkeep(&volumes).await.verified.unwrap().began_at, begun.began_at, "from the beginning");
    });
}

#[test]
fn what_was_found_of_another_vpool_is_not_told() {
    let world = World::new();
    world.verify_every.set(Some(HOUR));
    let key = world.life(async |volumes: Rc<Volumes>| {
        make_data(&world, &volumes).await;
        volumes.begin_background();
        until(&volumes, 60, async || upkeep(&volumes).await.verified).await;
        let purge = ovs_api::DeleteVdiskQuery { purge: true };
        volumes.delete_vdisk("p:v".parse().unwrap(), purge, no_terms()).await.unwrap();
        volumes.delete_vpool(name("p"), Default::default(), no_terms()).await.unwrap();
        volumes.create_vpool(vpool("q", Some("all")), no_terms()).await.unwrap();
        verifying(&volumes).await;
        assert_eq!(upkeep(&volumes).await.verified, None);
        volumes.delete_vpool(name("q"), Default::default(), no_terms()).await.unwrap();
        let uuid = volumes.get_backend(name("all")).await.unwrap().uuid;
        let key = format!("verification/{uuid}");
        assert!(world.registry.get(&key).await.unwrap().is_some());
        volumes.delete_backend(name("all"), no_terms()).await.unwrap();
        key
    });
    world.life(async |_| assert!(world.registry.get(&key).await.unwrap().is_none()));
}

/// Who only reads makes way at once.
#[test]
fn whatever_is_more_urgent_cuts_a_verification_off() {
    let world = World::new();
    world.repair_grace.set(Some(15 * MINUTE));
    world.life(async |volumes: Rc<Volumes>| {
        make_data(&world, &volumes).await;
        make_drives(&world, &volumes, &["e"]).await;
        let uuid = volumes.get_backend(name("all")).await.unwrap().uuid;
        let (pool, composite) = volumes.open_composite(uuid).unwrap();
        let tended = Tended::new(&volumes, &pool, uuid, composite.clone());
        let look = async || {
            let (now, generation) = (volumes.clock.now(), composite.generation());
            let survey = composite.coded.look_after(true).await;
            composite.has_looked(survey, now, now, true, generation);
        };
        let is_cut_off = async || {
            let work = tended.unless_urgent(Duration::ZERO, std::future::pending::<()>());
            tokio::time::timeout(MINUTE, work).await.is_ok()
        };
        look().await;
        assert!(!is_cut_off().await, "nothing else is to be done");

        let task = volumes.verify_backend(name("all")).await.unwrap().0;
        assert!(is_cut_off().await, "one is to begin anew");
        volumes.tasks.cancel(task.uuid).unwrap();
        volumes.tasks.wait(task.uuid, HOUR).await.unwrap();
        assert!(!is_cut_off().await);

        let request = ovs_api::AddDrive { drive: name("e") };
        let added = async { volumes.add_drive(name("all"), request, no_terms()).await.unwrap() };
        let (is_cut, _) = tokio::join!(is_cut_off(), added);
        assert!(is_cut, "drives have changed");
        look().await;
        assert!(!is_cut_off().await);

        rot(&world, "a");
        let mut verified = ovs_backend::coded::Verified::default();
        composite.coded.verify(&mut verified, u64::MAX).await;
        assert!(verified.bad > 0 && is_cut_off().await, "something is to be mended");
        look().await;
        look().await;
        assert!(!is_cut_off().await);

        let b = volumes.get_backend(name("b")).await.unwrap().uuid;
        composite.note_silent(&[b].into(), volumes.clock.now());
        assert!(!is_cut_off().await, "the grace is not over");
        volumes.clock.sleep(15 * MINUTE).await;
        assert!(is_cut_off().await, "one is to be given up");
    });
}
