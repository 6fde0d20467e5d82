//! What changes on the drives is found by reading all of it, however often that is cut off and whoever else is there.

use super::{
    life::{id, safeties},
    *,
};
use crate::coded::upkeep::SUSPICIOUS_MAX;
use futures_util::future::{Either, select};
use std::pin::pin;

impl World {
    /// All there is, at once.
    pub(super) async fn verify_all(&self) -> Verified {
        let mut verified = Verified::default();
        self.backend.verify(&mut verified, u64::MAX).await;
        verified
    }

    /// Flips a bit in a fragment's body.
    fn rot(&self, (drive, fragment): &(usize, ObjectName)) {
        let mut stored = self.drives[*drive].inner().bytes(fragment).expect("it is there").to_vec();
        let last = stored.len() - 1;
        stored[last] ^= 1;
        self.drives[*drive].inner().damage(fragment, Some(stored.into()));
    }
}

#[test]
fn what_has_rotted_is_found_by_reading_it_all_and_mended() {
    for preset in presets(&[policy(3, 2, 5, 3)]) {
        local(async {
            let world = world(9, preset);
            world.put_all(14).await;
            assert!(world.backend.wants_survey(), "nobody knows what was begun before");
            world.backend.look_after(true).await;
            let clean = world.verify_all().await;
            assert_eq!((clean.objects, clean.bad, clean.missed.len()), (14, 0, 0));
            let all = world.fragments();
            let mut bad = 0;
            for (count, (drive, fragment)) in all.iter().enumerate() {
                let (_, place) = name::parse(fragment).expect("a fragment");
                if usize::from(place.number) % 3 != 1 {
                    continue;
                }
                let stored = world.drives[*drive].inner().bytes(fragment).expect("it is there");
                let damaged = match count % 3 {
                    0 => stored.slice(..stored.len() - 1),
                    1 => world.drives[all[0].0].inner().bytes(&all[0].1).expect("another"),
                    _ => {
                        let mut turned = stored.to_vec();
                        let at = count * 31 % turned.len();
                        turned[at] ^= 4;
                        turned.into()
                    }
                };
                world.drives[*drive].inner().damage(fragment, Some(damaged));
                bad += 1;
            }
            assert!(!world.backend.wants_survey());
            // In parts.
            let (mut verified, mut parts) = (Verified::default(), 1);
            while !world.backend.verify(&mut verified, 300_000).await {
                parts += 1;
            }
            assert_eq!((verified.bad, verified.objects), (bad, 14));
            assert!((2..14).contains(&parts), "{parts}");
            assert!(world.backend.wants_survey());
            let mended = world.backend.look_after(true).await;
            assert_eq!((mended.to_mend, safeties(&mended)), (0, vec![2]), "{mended:?}");
            assert_eq!(world.verify_all().await.bad, 0);
            // Where another's is under its name, it goes elsewhere until that has gone.
            world.backend.look_after(true).await;
            world.check_lies_well(5);
            // Which number is on which of its drives does not matter.
            let chunks = |found: Vec<(usize, ObjectName)>| -> BTreeSet<(usize, ObjectName, u32)> {
                let chunk = |(drive, fragment): (usize, ObjectName)| {
                    let (of, place) = name::parse(&fragment).expect("a fragment");
                    (drive, of, place.chunk)
                };
                found.into_iter().map(chunk).collect()
            };
            assert_eq!(chunks(world.fragments()), chunks(all), "what is mended is where it was");
        });
    }
}

/// Whoever goes on begins with the object that was being read.
#[test]
fn a_verification_that_is_cut_off_anywhere_misses_nothing() {
    local(async {
        let world = world(9, preset(&[policy(3, 2, 5, 3)]));
        world.put_all(14).await;
        let rotten: Vec<_> = world.fragments().into_iter().step_by(5).collect();
        rotten.iter().for_each(|fragment| world.rot(fragment));
        world.set_schedule(|_, call| {
            let takes = Duration::from_millis(if call.operation == Operation::Get { 70 } else { 1 });
            Some(Fault::Delay(Box::pin(tokio::time::sleep(takes))))
        });
        let (mut verified, mut cuts) = (Verified::default(), 0_u64);
        loop {
            // Longer and longer, so that each comes further in the end.
            let patience = tokio::time::sleep(Duration::from_millis(40 + 13 * cuts));
            let verify = pin!(world.backend.verify(&mut verified, u64::MAX));
            match select(verify, pin!(patience)).await {
                Either::Left((is_over, _)) => {
                    assert!(is_over);
                    break;
                }
                Either::Right(_) => cuts += 1,
            }
        }
        assert!(cuts > 10, "{cuts}");
        assert_eq!((verified.objects, verified.bad), (14, rotten.len() as u64));
    });
}

/// A fifth of the time while guests ask, as all that is done beside them.
#[test]
fn guests_come_before_a_verification() {
    local(async {
        let world = world(6, preset(&[policy(2, 1, 3, 9)]));
        world.put_all(14).await;
        world.set_schedule(|_, call| {
            let takes = Duration::from_millis(if call.operation == Operation::Get { 1000 } else { 1 });
            Some(Fault::Delay(Box::pin(tokio::time::sleep(takes))))
        });
        let began = Instant::now();
        world.verify_all().await;
        let alone = began.elapsed();
        let guest = async {
            loop {
                world.backend.inner.upkeep.guest();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let began = Instant::now();
        let Either::Left((verified, _)) = select(pin!(world.verify_all()), pin!(guest)).await;
        assert_eq!(verified.objects, 14);
        let beside = began.elapsed();
        assert!(beside > alone * 9 / 2 && beside < alone * 6, "{alone:?} alone, {beside:?} beside a guest");
    });
}

#[test]
fn drives_that_do_not_answer_are_told_and_are_no_end_when_there_are_too_many() {
    local(async {
        // One may be silent.
        let world = world(6, preset(&[policy(2, 2, 3, 9)]));
        world.put_all(14).await;
        let rotten = world.fragments().into_iter().rfind(|(drive, _)| *drive == 4).expect("it has some");
        world.rot(&rotten);
        world.drives[2].set_schedule(|_| Some(Fault::ErrorBefore));
        let mut verified = Verified::default();
        assert!(world.backend.verify(&mut verified, u64::MAX).await);
        assert_eq!((verified.objects, verified.bad), (14, 1));
        assert_eq!(verified.missed, [id(2)].into());
        world.drives[3].set_schedule(|_| Some(Fault::ErrorBefore));
        assert!(!world.backend.verify(&mut verified, u64::MAX).await, "nobody knows what else there is");
        assert_eq!(verified.missed, [id(2), id(3)].into());
    });
}

/// It lists what it has, and lets whoever reads it wait: one object pays for that and not each.
#[test]
fn a_drive_that_hangs_does_not_hold_a_verification_up() {
    local(async {
        let world = world(6, preset(&[policy(2, 2, 3, 9)]));
        world.put_all(14).await;
        world.drives[2].set_schedule(|call| (call.operation == Operation::Get).then_some(Fault::HangBefore));
        let began = Instant::now();
        let verified = world.verify_all().await;
        assert_eq!((verified.objects, verified.bad, verified.missed), (14, 0, [id(2)].into()));
        assert!(began.elapsed() < PATIENCE * 4, "{:?}", began.elapsed());
    });
}

/// Nobody has to mend what is gone, nor to find again what was found.
#[test]
fn what_was_found_is_remembered_for_who_starts_again_until_it_is_mended_or_deleted() {
    local(async {
        let mut world = world(6, preset(&[policy(2, 1, 3, 9)]));
        world.put_all(14).await;
        let (one, other) = (world.fragments()[5].clone(), world.fragments()[30].clone());
        let of = |fragment: &(usize, ObjectName)| name::parse(&fragment.1).expect("a fragment").0;
        assert_ne!(of(&one), of(&other));
        world.rot(&one);
        world.rot(&other);
        world.verify_all().await;
        let found = world.backend.suspicious();
        assert_eq!(found.len(), 2);
        world.restart();
        world.backend.look_after(true).await;
        assert!(world.backend.suspicious().is_empty() && !world.backend.wants_survey());
        found.iter().for_each(|name| world.backend.suspect(name));
        assert!(world.backend.wants_survey());
        world.backend.delete(&of(&one)).await.expect("deleted");
        assert_eq!(world.backend.suspicious(), [of(&other)]);
        world.backend.look_after(true).await;
        assert!(world.backend.suspicious().is_empty());
        assert_eq!(world.verify_all().await.bad, 0);
    });
}

/// Names of what is no more fill the memory: a verification goes on, and what it cannot remember it finds again.
#[test]
fn what_is_no_more_is_forgotten_and_holds_no_verification_up() {
    local(async {
        let world = world(6, preset(&[policy(2, 1, 3, 9)]));
        world.put_all(14).await;
        world.backend.look_after(true).await;
        for number in 0..SUSPICIOUS_MAX {
            world.backend.suspect(&name(&format!("v/gone/{number}")));
        }
        assert!(world.backend.has_more_suspicious(), "nobody knows what else there was");
        world.rot(&world.fragments()[5]);
        let mut verified = Verified::default();
        assert!(world.backend.verify(&mut verified, u64::MAX).await);
        assert_eq!((verified.objects, verified.bad), (14, 1));
        assert_eq!(world.backend.suspicious().len(), SUSPICIOUS_MAX);
        // While one is silent that may have them they are not forgotten.
        world.drives[2].set_schedule(|_| Some(Fault::ErrorBefore));
        world.backend.look_after(true).await;
        assert_eq!(world.backend.suspicious().len(), SUSPICIOUS_MAX);
        world.drives[2].set_schedule(|_| None);
        tokio::time::sleep(SUSPECT_MAX).await;
        assert!(world.backend.set_duty(id(5), Duty::Leaving));
        world.backend.look_after(true).await;
        world.backend.look_after(true).await;
        assert!(world.backend.suspicious().is_empty());
        assert!(!world.backend.is_done_with(id(5)), "something is bad, and nobody knows what");
        // Who could not ask one of the drives has not read all.
        world.drives[2].set_schedule(|_| Some(Fault::ErrorBefore));
        assert!(!world.verify_all().await.missed.is_empty());
        assert!(world.backend.has_more_suspicious());
        world.drives[2].set_schedule(|_| None);
        tokio::time::sleep(SUSPECT_MAX).await;
        assert_eq!(world.verify_all().await.bad, 1);
        assert!(!world.backend.has_more_suspicious());
        world.backend.look_after(true).await;
        assert!(world.backend.is_done_with(id(5)));
        assert_eq!(world.verify_all().await.bad, 0);
    });
}

/// Too little of it is there for it to be an object, or a delete was faster than who read it.
#[test]
fn what_was_never_acknowledged_or_is_deleted_while_it_is_read_is_forgotten() {
    local(async {
        let world = world(6, preset(&[policy(2, 2, 4, 9)]));
        world.put_whole("v/s/1", &bytes(1, 70_000)).await;
        world.leave(1);
        world.backend.suspect(&name("v/s/1"));
        world.drives[0].set_schedule(|_| Some(Fault::ErrorBefore));
        world.backend.look_after(true).await;
        assert_eq!(world.backend.suspicious().len(), 1, "a silent drive may have more of it");
        world.drives[0].set_schedule(|_| None);
        tokio::time::sleep(SUSPECT_MAX).await;
        world.backend.look_after(true).await;
        world.backend.look_after(true).await;
        assert!(world.backend.suspicious().is_empty());
        assert!(!world.fragments().is_empty(), "it is left alone");
    });
}

/// It lies where a listing has passed by already.
#[test]
fn what_is_put_while_all_is_looked_at_is_not_forgotten() {
    local(async {
        let world = world(6, preset(&[policy(2, 1, 3, 9)]));
        world.put_all(14).await;
        world.backend.look_after(true).await;
        let new = name("v/a");
        world.backend.suspect(&new);
        // The listing of this drive ends when the put is over.
        let (begun, ended) = (Rc::new(tokio::sync::Notify::new()), Rc::new(tokio::sync::Notify::new()));
        let (told, waits) = (Rc::clone(&begun), Rc::clone(&ended));
        let mut is_first = true;
        world.drives[2].set_schedule(move |call| {
            let is_it = call.operation == Operation::List && std::mem::take(&mut is_first);
            let (told, waits) = (Rc::clone(&told), Rc::clone(&waits));
            is_it.then(|| {
                Fault::Delay(Box::pin(async move {
                    told.notify_one();
                    waits.notified().await;
                }))
            })
        });
        let put = async {
            begun.notified().await;
            world.put_whole("v/a", &bytes(3, 70_000)).await;
            ended.notify_one();
        };
        tokio::join!(world.backend.look_after(false), put);
        assert_eq!(world.backend.suspicious(), [new]);
    });
}

/// Beside guests, and cut off whenever somebody else has more urgent work, it comes to its end.
#[test]
fn a_drive_that_hangs_does_not_have_the_same_object_read_for_ever() {
    local(async {
        let world = world(6, preset(&[policy(2, 2, 3, 9)]));
        world.put_all(14).await;
        world.drives[2].set_schedule(|call| (call.operation == Operation::Get).then_some(Fault::HangBefore));
        let guest = async {
            loop {
                world.backend.inner.upkeep.guest();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let verify = async {
            let (mut verified, mut parts) = (Verified::default(), 0);
            loop {
                parts += 1;
                let part = tokio::time::timeout(
                    Duration::from_secs(15),
                    world.backend.verify(&mut verified, u64::MAX),
                );
                match part.await {
                    Ok(is_over) => break (is_over, verified),
                    Err(_) => assert!(parts < 10, "{verified:?}"),
                }
            }
        };
        let Either::Left(((is_over, verified), _)) = select(pin!(verify), pin!(guest)).await;
        assert!(is_over);
        assert_eq!((verified.objects, verified.bad, verified.missed), (14, 0, [id(2)].into()));
        // Cut off before its time was over, it is not asked again either.
        let world = self::world(4, preset(&[policy(2, 2, 3, 9)]));
        world.put_whole("v/s/1", &bytes(1, 400_000)).await;
        world.drives[2].set_schedule(|call| (call.operation == Operation::Get).then_some(Fault::HangBefore));
        let mut verified = Verified::default();
        let cut = Duration::from_millis(10_100);
        assert!(tokio::time::timeout(cut, world.backend.verify(&mut verified, u64::MAX)).await.is_err());
        assert!(tokio::time::timeout(cut, world.backend.verify(&mut verified, u64::MAX)).await.is_ok());
    });
}

/// Slow is not broken: it is asked for little at once, and waited for.
#[test]
fn a_slow_drive_is_read_to_the_end_and_stays_good_for_guests() {
    local(async {
        let preset = preset(&[policy(2, 1, 3, 9)]).with_fragments_of(1 << 20).expect("allowed");
        let world = world(3, preset);
        for object in 0..3 {
            world.put_whole(&format!("v/s/{object}"), &bytes(object, 6 << 20)).await;
        }
        let (asked, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (now, max) = (Rc::clone(&asked), Rc::clone(&most));
        world.drives[1].set_schedule(move |call| {
            let (now, max) = (Rc::clone(&now), Rc::clone(&max));
            (call.operation == Operation::Get).then(|| {
                Fault::Delay(Box::pin(async move {
                    now.set(now.get() + 1);
                    max.set(max.get().max(now.get()));
                    tokio::time::sleep(Duration::from_secs(12)).await;
                    now.set(now.get() - 1);
                }))
            })
        });
        let verified = world.verify_all().await;
        assert_eq!((verified.objects, verified.bad, verified.missed.len()), (3, 0, 0));
        assert!(most.get() <= 2, "{}", most.get());
        assert!(world.backend.silent().is_empty() && world.backend.suspicious().is_empty());
        // One that is too slow for that all the same is passed by and told.
        world.drives[1].set_schedule(|call| (call.operation == Operation::Get).then_some(Fault::HangBefore));
        let verified = world.verify_all().await;
        assert_eq!((verified.objects, verified.missed), (3, [id(1)].into()));
        assert!(world.backend.silent().is_empty(), "guests' puts go there");
    });
}

/// Of an object that was mended beside a drive that did not answer, that one's part is read later.
#[test]
fn what_could_not_all_be_read_stays_suspicious_and_rests() {
    local(async {
        let world = world(6, preset(&[policy(2, 1, 3, 9)]));
        world.put_all(14).await;
        world.backend.look_after(true).await;
        let (drive, rotten) = world.fragments()[5].clone();
        let of = name::parse(&rotten).expect("a fragment").0;
        world.rot(&(drive, rotten));
        world.backend.suspect(&of);
        world.drives[drive]
            .set_schedule(|call| (call.operation == Operation::Get).then_some(Fault::ErrorBefore));
        for _ in 0..3 {
            world.backend.look_after(true).await;
        }
        assert_eq!(world.backend.suspicious(), [of], "nobody has read all of it");
        assert!(!world.backend.wants_survey(), "nothing is new");
        world.drives[drive].set_schedule(|_| None);
        tokio::time::sleep(SUSPECT_MAX).await;
        for _ in 0..3 {
            world.backend.look_after(true).await;
        }
        assert!(world.backend.suspicious().is_empty());
        assert_eq!(world.verify_all().await.bad, 0);
    });
}

/// What one composite verifies of another is no guest of that one.
#[test]
fn who_verifies_is_no_guest() {
    local(async {
        let world = world(6, preset(&[policy(2, 1, 3, 9)]));
        world.put_all(14).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let before = world.backend.inner.upkeep.guest_at();
        let object = world.backend.list("", None, 1).await.expect("listed").remove(0).name;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let listed = world.backend.inner.upkeep.guest_at();
        assert_ne!(before, listed);
        let stored = world.backend.get_stored(&object).await;
        assert_eq!(world.backend.inner.upkeep.guest_at(), listed);
        assert_eq!(stored, world.backend.get(&object).await);
    });
}
