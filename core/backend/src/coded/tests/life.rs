//! The life of a drive: it comes, leaves, is lost; and what is on the others is mended meanwhile.

use super::*;
use futures_util::future::{Either, join, select};
use std::pin::pin;

pub(super) fn id(number: usize) -> Uuid {
    Uuid::from_u128(number as u128 + 1)
}

pub(super) fn text(number: usize) -> String {
    format!("v/s/{number:03}")
}

/// Objects of none, one and several frames and chunks.
pub(super) fn object(number: usize) -> Bytes {
    let lengths = [0, 1, 32_768, 40_000, 100_000, 300_000, 600_001];
    bytes(number as u32, lengths[number % lengths.len()])
}

impl World {
    pub(super) async fn put_all(&self, count: usize) {
        for number in 0..count {
            self.put_whole(&text(number), &object(number)).await;
        }
    }

    pub(super) async fn check_all(&self, count: usize) {
        for number in 0..count {
            assert!(self.get(&text(number)).await == Ok(object(number)), "{}", text(number));
        }
    }

    pub(super) fn add(&mut self, number: usize) {
        assert_eq!(self.drives.len(), number);
        self.drives.push(Rc::new(FaultyBackend::new(MemoryBackend::new(), |_| None)));
        self.backend.add_drive(self.drive(number)).expect("a new one");
    }

    /// As the process of now knows it: what an ended one still asks for does not reach it.
    fn drive(&self, number: usize) -> Drive {
        let (process, now) = (self.process.get(), Rc::clone(&self.process));
        let has_ended = move |_: &Call<'_>| (process != now.get()).then_some(Fault::HangBefore);
        let backend = Rc::new(FaultyBackend::new(Rc::clone(&self.drives[number]), has_ended));
        Drive { backend, ..drive(number, &self.drives[number]) }
    }

    /// The drive and all that is on it.
    pub(super) fn lose(&self, number: usize) {
        self.drives[number].set_schedule(|_| Some(Fault::ErrorBefore));
        assert!(self.backend.set_duty(id(number), Duty::Lost));
    }

    /// With what is remembered of drives and their duties.
    pub(super) fn restart(&mut self) {
        self.process.set(self.process.get() + 1);
        let all = self.backend.duties().into_iter().enumerate().map(|(number, (_, duty))| {
            let drive = self.drive(number);
            match duty {
                Duty::Serving | Duty::Leaving => Drive { duty, ..drive },
                Duty::Lost | Duty::Gone => Drive::departed(drive.id, drive.node, drive.site, 1, duty),
            }
        });
        let preset = (*self.backend.inner.preset()).clone();
        self.backend = CodedBackend::new(all.collect(), preset, Work::Here).expect("the same drives");
    }

    /// Every chunk has all its fragments, one on a drive.
    pub(super) fn check_lies_well(&self, fragments: usize) {
        let mut chunks: BTreeMap<(ObjectName, u32, u32), Vec<(u8, usize)>> = BTreeMap::new();
        let duties = self.backend.duties();
        for (drive, fragment) in self.fragments() {
            if duties[drive].1 == Duty::Serving {
                let (of, place) = name::parse(&fragment).expect("a fragment");
                chunks.entry((of, place.layout, place.chunk)).or_default().push((place.number, drive));
            }
        }
        for (chunk, found) in chunks {
            let (numbers, drives): (BTreeSet<u8>, BTreeSet<usize>) = found.iter().copied().unzip();
            assert!(numbers.len() == found.len() && drives.len() == found.len(), "{chunk:?}: {found:?}");
            assert!(found.len() <= fragments, "{chunk:?}: {found:?}");
        }
    }
}

pub(super) fn safeties(survey: &Survey) -> Vec<u32> {
    survey.safety.keys().copied().collect()
}

#[test]
fn what_was_on_a_lost_drive_is_made_again() {
    for preset in presets(&[policy(3, 2, 4, 3)]) {
        local(async {
            let mut world = world(9, preset);
            world.put_all(14).await;
            let whole = world.backend.look_after(true).await;
            assert_eq!((whole.all.objects, whole.to_mend, safeties(&whole)), (14, 0, vec![2]), "{whole:?}");
            for lost in [4, 0, 7] {
                world.lose(lost);
                let seen = world.backend.look_after(false).await;
                assert!(seen.to_mend > 0 && safeties(&seen)[0] == 1 && seen.done_with.is_empty(), "{seen:?}");
                assert!(!world.backend.is_done_with(id(lost)));
                let mended = world.backend.look_after(true).await;
                assert_eq!((mended.to_mend, safeties(&mended)), (0, vec![2]), "{mended:?}");
                assert_eq!(mended.mended, seen.to_mend);
                assert_eq!(mended.done_with, [id(lost)]);
                assert!(world.backend.is_done_with(id(lost)));
                assert!(world.backend.set_duty(id(lost), Duty::Gone));
                world.check_lies_well(5);
                world.restart();
                world.check_all(14).await;
            }
            // As if nothing had ever been lost.
            for (gone, other) in [(1, 2), (3, 8)] {
                for number in [gone, other] {
                    world.drives[number].set_schedule(|_| Some(Fault::ErrorBefore));
                }
                world.restart();
                world.check_all(14).await;
                world.drives.iter().for_each(|drive| drive.set_schedule(|_| None));
            }
        });
    }
}

/// A read looks first where what was lost was made again.
#[test]
fn after_a_loss_everything_is_found_without_looking_for_it() {
    local(async {
        let mut world = world(9, preset(&[policy(3, 2, 4, 3)]));
        world.put_all(56).await;
        world.lose(4);
        world.backend.look_after(true).await;
        world.backend.set_duty(id(4), Duty::Gone);
        world.restart();
        world.set_schedule(|_, call| {
            assert!(call.operation != Operation::List, "{call:?}");
            None
        });
        world.check_all(56).await;
        assert_eq!(world.backend.stats().reconstructed, 0);
        let drives = world.backend.inner.drives();
        let is_first = |number: &usize| placement::order(&drives, &name(&text(*number)), 0)[0] == 4;
        assert!((0..56).any(|number| is_first(&number)), "some have lost the first of all");
    });
}

#[test]
fn what_is_on_a_leaving_drive_moves() {
    local(async {
        let mut world = world(9, preset(&[policy(3, 2, 5, 3)]));
        world.put_all(14).await;
        assert!(world.backend.set_duty(id(5), Duty::Leaving));
        let before = world.drives[5].inner().names();
        assert!(!before.is_empty());
        world.check_all(14).await;
        for number in 14..20 {
            world.put_whole(&text(number), &object(number)).await;
        }
        assert_eq!(world.drives[5].inner().names(), before, "it takes nothing new");
        let seen = world.backend.look_after(false).await;
        assert_eq!((safeties(&seen), seen.done_with), (vec![2], vec![]));
        let moved = world.backend.look_after(true).await;
        assert_eq!((moved.to_mend, safeties(&moved), &moved.done_with[..]), (0, vec![2], &[id(5)][..]));
        // It may serve again, and then what is on it twice goes.
        assert!(world.backend.set_duty(id(5), Duty::Serving));
        assert!(!world.backend.is_done_with(id(5)), "what is put from now on may be there");
        let stayed = world.backend.look_after(true).await;
        assert_eq!((stayed.to_mend, safeties(&stayed)), (0, vec![2]), "{stayed:?}");
        world.check_lies_well(5);
        assert!(world.backend.set_duty(id(5), Duty::Leaving));
        assert_eq!(world.backend.look_after(true).await.done_with, [id(5)]);
        assert!(world.backend.set_duty(id(5), Duty::Gone));
        assert!(!world.backend.set_duty(id(5), Duty::Serving) && !world.backend.set_duty(id(9), Duty::Lost));
        world.restart();
        world.drives[5].set_schedule(|_| panic!("it is asked"));
        world.check_all(20).await;
    });
}

#[test]
fn a_new_drive_gets_its_share() {
    local(async {
        let mut world = world(6, preset(&[policy(2, 1, 3, 9)]));
        world.put_all(56).await;
        world.add(6);
        assert!(world.backend.wants_survey());
        assert!(world.backend.add_drive(drive(6, &world.drives[6])).is_err(), "it is there");
        let moved = world.backend.look_after(true).await;
        assert_eq!((moved.to_mend, safeties(&moved)), (0, vec![1]));
        world.check_lies_well(3);
        let fragments = world.fragments().len();
        let here = world.drives[6].inner().names().len();
        assert!((fragments / 14..fragments / 4).contains(&here), "{here} of {fragments}");
        world.restart();
        world.check_all(56).await;
    });
}

/// What is missing may be on it.
#[test]
fn while_a_drive_is_silent_nothing_of_it_is_made_again_and_nothing_removed() {
    local(async {
        let world = world(9, preset(&[policy(3, 2, 4, 3)]));
        world.put_all(14).await;
        let before = world.fragments();
        world.drives[3].set_schedule(|_| Some(Fault::ErrorBefore));
        let seen = world.backend.look_after(true).await;
        assert_eq!((seen.mended, &seen.silent[..]), (0, &[id(3)][..]), "{seen:?}");
        assert!(seen.is_readable_without_silent && seen.done_with.is_empty());
        assert_eq!(world.fragments(), before);
        assert_eq!(world.backend.silent(), [id(3)]);
        // What another has lost meanwhile is made again all the same.
        world.lose(4);
        let mended = world.backend.look_after(true).await;
        assert!(mended.mended > 0 && mended.done_with.is_empty(), "{mended:?}");
        world.drives[3].set_schedule(|_| None);
        tokio::time::sleep(SUSPECT_MAX).await;
        let whole = world.backend.look_after(true).await;
        assert_eq!(
            (whole.to_mend, safeties(&whole), &whole.done_with[..]),
            (0, vec![2], &[id(4)][..]),
            "{whole:?}"
        );
        world.check_lies_well(5);
        world.check_all(14).await;
    });
}

#[test]
fn what_was_deleted_stays_so_when_a_lost_drive_comes_back() {
    local(async {
        let mut world = world(6, preset(&[policy(1, 2, 2, 3)]));
        world.put_all(7).await;
        world.drives[2].set_schedule(|_| Some(Fault::ErrorBefore));
        let error = world.backend.delete(&name(&text(1))).await.expect_err("it may have all of it");
        assert!(matches!(error, BackendError::Retry { .. }), "{error}");
        assert!(world.backend.set_duty(id(2), Duty::Lost));
        for number in 0..7 {
            world.backend.delete(&name(&text(number))).await.expect("it is not asked");
        }
        assert!(!world.drives[2].inner().names().is_empty(), "it has old contents");
        world.drives[2].set_schedule(|_| None);
        for _ in 0..2 {
            let seen = world.backend.look_after(true).await;
            assert_eq!(seen.all.objects, 0);
            assert_eq!(world.backend.list("v/", None, 9).await.expect("two may be unheard"), []);
            for number in 0..7 {
                let error = world.get(&text(number)).await.expect_err("it was deleted");
                assert!(matches!(error, BackendError::NotFound { .. }), "{error}");
            }
            world.restart();
        }
    });
}

#[test]
fn what_cannot_be_read_keeps_a_lost_drive_from_being_forgotten_unseen() {
    local(async {
        let world = world(6, preset(&[policy(2, 1, 3, 3)]));
        world.put_all(14).await;
        world.lose(0);
        assert!(!world.backend.look_after(false).await.may_have_lost_unseen);
        world.lose(1);
        let seen = world.backend.look_after(true).await;
        assert!(seen.may_have_lost_unseen, "of an object of one frame both fragments may have been there");
        assert!(seen.unreadable > 0 && !seen.unreadable_names.is_empty(), "{seen:?}");
        assert!(!seen.is_readable_without_silent);
        let unreadable: Vec<_> =
            (0..14).filter(|number| seen.unreadable_names.contains(&name(&text(*number)))).collect();
        for number in unreadable {
            let error = world.get(&text(number)).await.expect_err("two of three are lost");
            assert!(matches!(error, BackendError::Lost { .. } | BackendError::Retry { .. }), "{error}");
        }
        // Whoever lets them go accepts it.
        assert_eq!(seen.done_with, [id(0), id(1)]);
    });
}

#[test]
fn too_few_drives_for_what_was_acknowledged_keep_a_lost_one_missed() {
    local(async {
        let mut world = world(5, preset(&[policy(3, 2, 5, 3)]));
        world.put_all(7).await;
        world.lose(2);
        let seen = world.backend.look_after(true).await;
        assert_eq!((seen.to_mend, &seen.done_with[..]), (0, &[][..]), "no drive is left for it: {seen:?}");
        world.add(5);
        let mended = world.backend.look_after(true).await;
        assert_eq!((safeties(&mended), &mended.done_with[..]), (vec![2], &[id(2)][..]), "{mended:?}");
    });
}

/// A survey says nothing of drives that have changed since.
#[test]
fn a_survey_of_before_a_change_lets_no_drive_go() {
    local(async {
        let world = world(9, preset(&[policy(3, 2, 4, 3)]));
        world.put_all(7).await;
        world.backend.set_duty(id(1), Duty::Leaving);
        world.drives[2].set_schedule(|call| {
            let wait = Box::pin(tokio::time::sleep(Duration::from_secs(2)));
            (call.operation == Operation::List).then_some(Fault::Delay(wait))
        });
        let changes = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.backend.set_duty(id(3), Duty::Lost);
        };
        let (seen, ()) = join(world.backend.look_after(false), changes).await;
        assert!(seen.done_with.is_empty());
        assert!(!world.backend.is_done_with(id(3)) && world.backend.wants_survey());
    });
}

/// Whoever reads while everything moves finds everything.
#[test]
fn reads_and_listings_miss_nothing_while_fragments_move() {
    for (seed, policy) in
        (0..12u64).zip([policy(1, 0, 1, 9), policy(2, 1, 3, 9), policy(3, 2, 4, 9)].into_iter().cycle())
    {
        local(async {
            let mut world = world(6, preset(&[policy]));
            world.put_all(14).await;
            // Each call takes a while of its own.
            let random = Cell::new(seed);
            world.set_schedule(move |_, _| {
                random.set(
                    random
                        .get()
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407),
                );
                Some(Fault::Delay(Box::pin(tokio::time::sleep(Duration::from_millis(random.get() >> 58)))))
            });
            for number in 6..9 {
                world.add(number);
            }
            world.backend.set_duty(id(1), Duty::Leaving);
            let reads = async {
                loop {
                    let listed = world.backend.list("v/", None, 99).await.expect("all drives answer");
                    assert_eq!(listed.len(), 14);
                    for number in 0..14 {
                        let read = world.backend.get_range(&name(&text(number)), 0, u64::MAX).await;
                        assert!(read == Ok(object(number)), "{:?}", read.err());
                    }
                    let lasting = world.backend.get_lasting(&name(&text(5))).await;
                    assert!(lasting == Ok(object(5)), "{:?}", lasting.err());
                }
            };
            let moved = match select(pin!(world.backend.look_after(true)), pin!(reads)).await {
                Either::Left((moved, _)) => moved,
                Either::Right(((), _)) => unreachable!("it reads for ever"),
            };
            assert!(moved.mended > 0);
            world.drives.iter().for_each(|drive| drive.set_schedule(|_| None));
            world.backend.look_after(true).await;
            world.check_lies_well(policy.fragments() as usize);
            world.check_all(14).await;
        });
    }
}

/// Mending ends anywhere, by an error, a hang or a crash: at no time is anything less safe than it was, and the next one ends it.
#[test]
fn mending_that_is_cut_off_anywhere_harms_nothing() {
    for fault in 0..4 {
        for at in 0.. {
            let is_over = local(async {
                let mut world = world(6, preset(&[policy(2, 1, 3, 3)]).with_compression(Compression::Lz4));
                world.put_all(14).await;
                world.lose(0);
                world.backend.set_duty(id(1), Duty::Leaving);
                world.add(6);
                world.add(7);
                let calls = Rc::new(Cell::new(0));
                let count = Rc::clone(&calls);
                world.set_schedule(move |drive, call| {
                    if drive == 0 {
                        return Some(Fault::ErrorBefore);
                    }
                    if !matches!(call.operation, Operation::Put | Operation::Delete) {
                        return None;
                    }
                    count.set(count.get() + 1);
                    let is_crash = fault >= 2;
                    (count.get() == at + 1 || (is_crash && count.get() > at)).then_some(match fault {
                        0 => Fault::ErrorBefore,
                        1 => Fault::ErrorAfter,
                        2 => Fault::HangBefore,
                        _ => Fault::HangAfter,
                    })
                });
                if fault >= 2 {
                    let looked = pin!(world.backend.look_after(true));
                    let _cut_off = select(looked, pin!(tokio::time::sleep(Duration::from_secs(5)))).await;
                } else {
                    world.backend.look_after(true).await;
                }
                world.set_schedule(|drive, _| (drive == 0).then_some(Fault::ErrorBefore));
                world.restart();
                world.check_all(14).await;
                let whole = world.backend.look_after(true).await;
                assert_eq!((whole.to_mend, safeties(&whole)), (0, vec![1]), "{fault} at {at}: {whole:?}");
                assert_eq!(whole.done_with, [id(0), id(1)], "{fault} at {at}");
                world.check_lies_well(3);
                world.check_all(14).await;
                calls.get() <= at
            });
            if is_over {
                assert!(at > 15, "{at} puts and deletes");
                break;
            }
        }
    }
}

#[test]
fn objects_come_to_the_policy_that_the_drives_satisfy() {
    for preset in presets(&[policy(4, 2, 5, 9), policy(2, 1, 3, 9)]) {
        local(async {
            let mut world = world(4, preset);
            world.put_all(14).await;
            assert_eq!(safeties(&world.backend.look_after(false).await), [1]);
            for number in 4..7 {
                world.add(number);
            }
            let brought = world.backend.look_after(true).await;
            assert_eq!(
                (brought.to_mend, brought.mended, safeties(&brought)),
                (0, 14, vec![2]),
                "{brought:?}"
            );
            world.check_lies_well(6);
            world.restart();
            world.check_all(14).await;
            // And back, where the better one has too few drives.
            for number in [1, 5, 6] {
                world.lose(number);
                world.backend.look_after(true).await;
                world.check_all(14).await;
            }
            let brought = world.backend.look_after(true).await;
            assert_eq!((brought.to_mend, safeties(&brought)), (0, vec![1]), "{brought:?}");
            world.restart();
            world.check_all(14).await;
        });
    }
}

/// The better form is damaged: the other is all that there is.
#[test]
fn of_two_forms_the_good_one_stays() {
    for (rotten, is_header, is_leaving) in
        (0..6).flat_map(|rotten| [(rotten, true, false), (rotten, false, false), (rotten, false, true)])
    {
        local(async {
            let policies = [policy(4, 2, 5, 9), policy(2, 1, 3, 9)];
            let mut world = world(4, preset(&policies));
            world.put_all(7).await;
            let lesser: BTreeSet<(usize, ObjectName)> = world.fragments().into_iter().collect();
            for number in 4..8 {
                world.add(number);
            }
            // Put again, and not removed yet.
            for number in 0..7 {
                world.put_whole(&text(number), &object(number)).await;
            }
            let better: Vec<_> =
                world.fragments().into_iter().filter(|found| !lesser.contains(found)).collect();
            for (drive, fragment) in &better {
                let (_, place) = name::parse(fragment).expect("a fragment");
                if usize::from(place.number) < rotten {
                    let mut damaged =
                        world.drives[*drive].inner().bytes(fragment).expect("it is there").to_vec();
                    let at = if is_header { 9 } else { damaged.len() - 1 };
                    damaged[at] ^= 1;
                    world.drives[*drive].inner().damage(fragment, Some(damaged.into()));
                }
            }
            world.restart();
            if is_leaving {
                // What is there of the lesser form may be all that is good.
                world.backend.set_duty(id(0), Duty::Leaving);
                assert!(world.backend.look_after(false).await.done_with.is_empty());
            }
            for _ in 0..2 {
                let mended = world.backend.look_after(true).await;
                assert_eq!(mended.unreadable, 0, "{rotten} {is_header}: {mended:?}");
                if world.backend.is_done_with(id(0)) {
                    world.backend.set_duty(id(0), Duty::Gone);
                }
                world.restart();
                world.check_all(7).await;
                world.verify_all().await;
            }
            let again = world.backend.look_after(true).await;
            assert_eq!((again.to_mend, safeties(&again)), (0, vec![2]), "{rotten} {is_header}: {again:?}");
            world.check_all(7).await;
        });
    }
}

/// A drive that lists what it cannot read any more.
#[test]
fn what_cannot_be_read_where_it_lies_is_made_again_elsewhere() {
    local(async {
        let world = world(9, preset(&[policy(3, 2, 5, 3)]));
        world.put_all(7).await;
        let broken = world.fragments()[3].clone();
        let own = broken.1.clone();
        world.drives[broken.0].set_schedule(move |call| {
            (matches!(call.operation, Operation::Get) && call.object == own.as_str())
                .then_some(Fault::ErrorBefore)
        });
        world.verify_all().await;
        tokio::time::sleep(SUSPECT_MAX).await;
        let mended = world.backend.look_after(true).await;
        assert!(mended.mended == 1 && safeties(&mended) == [2], "{mended:?}");
        let of_it = world.fragments().into_iter().filter(|(_, fragment)| *fragment == broken.1);
        assert!(of_it.clone().any(|(drive, _)| drive != broken.0), "{:?}", of_it.collect::<Vec<_>>());
    });
}

#[test]
fn what_is_deleted_while_it_is_mended_stays_deleted() {
    local(async {
        let world = world(9, preset(&[policy(2, 2, 4, 3)]));
        world.put_all(14).await;
        world.lose(0);
        world.lose(5);
        world.set_schedule(|drive, _| match drive {
            0 | 5 => Some(Fault::ErrorBefore),
            _ => Some(Fault::Delay(Box::pin(tokio::time::sleep(Duration::from_millis(30))))),
        });
        let deletes = async {
            for number in (0..14).rev() {
                world.backend.delete(&name(&text(number))).await.expect("deleted");
            }
        };
        join(world.backend.look_after(true), deletes).await;
        let left: Vec<_> =
            world.fragments().into_iter().filter(|(drive, _)| ![0, 5].contains(drive)).collect();
        assert_eq!(left, []);
    });
}

#[test]
fn a_full_drive_is_passed_by() {
    local(async {
        let mut world = world(6, preset(&[policy(2, 1, 3, 9)]));
        world.put_all(14).await;
        world.add(6);
        world.drives[6].set_schedule(|call| (call.operation == Operation::Put).then_some(Fault::NoSpace));
        world.lose(2);
        let mended = world.backend.look_after(true).await;
        assert_eq!(
            (mended.to_mend, safeties(&mended), &mended.done_with[..]),
            (0, vec![1], &[id(2)][..]),
            "{mended:?}"
        );
        assert!(world.drives[6].inner().names().is_empty());
        world.check_all(14).await;
    });
}

/// While guests ask, four fifths of the time are theirs.
#[test]
fn guests_come_first() {
    local(async {
        let world = world(9, preset(&[policy(3, 2, 4, 3)]));
        world.put_all(40).await;
        world.lose(3);
        let puts = Rc::new(Cell::new(0));
        let count = Rc::clone(&puts);
        world.set_schedule(move |drive, call| match call.operation {
            _ if drive == 3 => Some(Fault::ErrorBefore),
            Operation::Put => {
                count.set(count.get() + 1);
                Some(Fault::Delay(Box::pin(tokio::time::sleep(Duration::from_secs(1)))))
            }
            _ => None,
        });
        let guest = async {
            loop {
                let _read = world.backend.get_range(&name(&text(6)), 0, 9).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let work = async {
            let began = Instant::now();
            let mended = world.backend.look_after(true).await;
            (mended.mended, began.elapsed())
        };
        let Either::Left(((mended, took), _)) = select(pin!(work), pin!(guest)).await;
        // Each object takes a second for its puts, and rests for four.
        assert!(took >= Duration::from_secs(5 * mended - 5), "{mended} in {took:?}");
        world.backend.set_duty(id(3), Duty::Gone);
        tokio::time::sleep(Duration::from_secs(2)).await;
        world.backend.set_duty(id(4), Duty::Leaving);
        let began = Instant::now();
        let mended = world.backend.look_after(true).await.mended;
        assert!(
            began.elapsed() < Duration::from_secs(mended),
            "nobody is there: {mended} in {:?}",
            began.elapsed()
        );
    });
}

/// Known to be bad where it would stay: what leaves has the only good one.
#[test]
fn a_leaving_drive_is_needed_where_the_other_copy_is_bad() {
    local(async {
        let world = world(6, preset(&[policy(1, 0, 1, 9)]));
        world.put_all(14).await;
        world.backend.set_duty(id(0), Duty::Leaving);
        let leaving: Vec<ObjectName> = world.drives[0].inner().names();
        assert!(!leaving.is_empty());
        // As a mending that was cut off would have left it, and then it rotted.
        for fragment in &leaving {
            let mut copy = world.drives[0].inner().bytes(fragment).expect("it is there").to_vec();
            let last = copy.len() - 1;
            copy[last] ^= 1;
            for number in 1..6 {
                world.drives[number].inner().damage(fragment, Some(copy.clone().into()));
            }
        }
        world.verify_all().await;
        assert!(world.backend.look_after(false).await.done_with.is_empty());
        let mended = world.backend.look_after(true).await;
        assert_eq!(mended.done_with, [id(0)], "{mended:?}");
        world.backend.set_duty(id(0), Duty::Gone);
        world.check_all(14).await;
    });
}

/// It was read back well, and is lost before what it replaces is removed.
#[test]
fn what_stays_is_read_back_when_nobody_reads_any_more() {
    local(async {
        let mut world = world(3, preset(&[policy(1, 0, 1, 9)]));
        world.put_all(28).await;
        world.add(3);
        let reader = world.backend.inner.removals.reader();
        let lose = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert!(!world.drives[3].inner().names().is_empty(), "some have moved there");
            world.lose(3);
            drop(reader);
        };
        join(world.backend.look_after(true), lose).await;
        world.check_all(28).await;
    });
}

/// A drive that answers late removes what was put there since.
#[test]
fn nothing_is_put_where_something_is_still_being_removed() {
    local(async {
        let mut world = world(3, preset(&[policy(1, 0, 1, 9)]));
        world.put_all(28).await;
        world.add(3);
        let hangs = Rc::new(Cell::new(true));
        let still = Rc::clone(&hangs);
        world.set_schedule(move |_, call| {
            let still = Rc::clone(&still);
            let wait = Box::pin(async move {
                while still.get() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
            (call.operation == Operation::Delete).then_some(Fault::Delay(wait))
        });
        let moved = world.backend.look_after(true).await;
        assert!(moved.unmended > 0, "{moved:?}");
        // Back again, while what was there is still to be removed.
        world.backend.set_duty(id(3), Duty::Leaving);
        tokio::time::sleep(SUSPECT_MAX).await;
        world.backend.look_after(true).await;
        let is_gone = world.backend.is_done_with(id(3)) && world.backend.set_duty(id(3), Duty::Gone);
        hangs.set(false);
        tokio::time::sleep(SUSPECT_MAX).await;
        world.check_all(28).await;
        world.backend.look_after(true).await;
        assert!(is_gone || world.backend.is_done_with(id(3)));
        world.backend.set_duty(id(3), Duty::Gone);
        world.check_all(28).await;
    });
}

/// One read that fails is enough: nobody knows what would have been seen.
#[test]
fn a_survey_in_which_anything_failed_lets_no_drive_go() {
    for at in 0.. {
        let is_over = local(async {
            let world = world(9, preset(&[policy(3, 2, 4, 3)]));
            world.put_all(14).await;
            world.lose(0);
            world.backend.look_after(true).await;
            assert!(world.backend.is_done_with(id(0)));
            let calls = Rc::new(Cell::new(0));
            let count = Rc::clone(&calls);
            world.set_schedule(move |drive, _| {
                count.set(count.get() + 1);
                (drive == 0 || count.get() == at + 1).then_some(Fault::ErrorBefore)
            });
            let seen = world.backend.look_after(false).await;
            if calls.get() <= at {
                return true;
            }
            assert!(!world.backend.is_done_with(id(0)) && seen.done_with.is_empty(), "{at}: {seen:?}");
            false
        });
        if is_over {
            assert!(at > 20, "{at} calls");
            break;
        }
    }
}

/// There is no room for the better policy: what was lost is made again under the present one.
#[test]
fn what_cannot_be_brought_up_is_mended_as_it_is() {
    local(async {
        let mut world = world(4, preset(&[policy(4, 2, 6, 9), policy(2, 1, 3, 9)]));
        world.put_all(14).await;
        for number in 4..7 {
            world.add(number);
        }
        let is_full = |number: usize, call: &Call<'_>| number >= 5 && call.operation == Operation::Put;
        world.set_schedule(move |number, call| is_full(number, call).then_some(Fault::NoSpace));
        world.lose(1);
        world.set_schedule(move |number, call| match number {
            1 => Some(Fault::ErrorBefore),
            _ => is_full(number, call).then_some(Fault::NoSpace),
        });
        let mended = world.backend.look_after(true).await;
        assert!(mended.unmended > 0 && safeties(&mended)[0] == 1, "{mended:?}");
        assert!(mended.reason.is_some());
        world.check_all(14).await;
    });
}

/// Whoever keeps asking for surveys would have nothing else to do.
#[test]
fn a_drive_that_lists_and_does_not_read_asks_for_no_survey() {
    local(async {
        let world = world(9, preset(&[policy(3, 2, 4, 3)]));
        world.put_all(14).await;
        world.drives[4].set_schedule(|call| (call.operation == Operation::Get).then_some(Fault::ErrorBefore));
        for _ in 0..3 {
            let seen = world.backend.look_after(true).await;
            assert_eq!(seen.silent, [id(4)]);
        }
        assert!(!world.backend.wants_survey());
        world.check_all(14).await;
    });
}

/// A drive that is made of drives is a drive.
#[test]
fn a_site_is_lost_and_made_again() {
    local(async {
        let sites: Vec<World> = (0..4).map(|_| world(3, preset(&[policy(2, 1, 3, 3)]))).collect();
        let drive = |(number, site): (usize, &World)| Drive {
            id: id(number),
            node: number.to_string(),
            site: number.to_string(),
            weight: 1,
            backend: Rc::new(site.backend.clone()),
            duty: Duty::Serving,
        };
        let all = |count: usize| sites.iter().enumerate().take(count).map(drive).collect::<Vec<_>>();
        let whole =
            CodedBackend::new(all(3), preset(&[policy(1, 1, 2, 1)]), Work::Here).expect("good drives");
        for number in 0..14 {
            whole.put(&name(&text(number)), vec![object(number)], Urgency::Normal).await.expect("put");
        }
        sites[1].set_schedule(|_, _| Some(Fault::ErrorBefore));
        assert!(whole.set_duty(id(1), Duty::Lost));
        let mended = whole.look_after(true).await;
        assert_eq!((safeties(&mended), &mended.done_with[..]), (vec![1], &[id(1)][..]), "{mended:?}");
        // Within a site a drive is lost, too: each looks after its own.
        sites[0].lose(2);
        let within = sites[0].backend.look_after(true).await;
        assert_eq!((within.to_mend, within.unreadable), (0, 0), "{within:?}");
        assert_eq!(safeties(&within)[0], 0, "two drives are left for three: {within:?}");
        for number in 0..14 {
            assert!(whole.get(&name(&text(number))).await == Ok(object(number)));
        }
    });
}
