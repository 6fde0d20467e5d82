//! What changes on the drives is found by reading all of it, however often that is cut off and whoever else is there.

use super::{
    life::{id, safeties},
    *,
};
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
