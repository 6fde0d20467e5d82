//! A random life: whatever happens to drives, in whatever order, as long as no more is lost at a time than the policy allows.

use super::life::{id, object, safeties, text};
use super::*;
use futures_util::future::select;
use std::pin::pin;

#[derive(Debug, Clone)]
enum Step {
    Put,
    Delete(prop::sample::Index),
    Lose(prop::sample::Index),
    Leave(prop::sample::Index),
    Stay(prop::sample::Index),
    Silence(prop::sample::Index),
    Speak,
    Add,
    Rot(prop::sample::Index, prop::sample::Index),
    /// So many calls long.
    LookAfter(Option<u16>),
    Verify,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => Just(Step::Put),
        2 => index().prop_map(Step::Delete),
        2 => index().prop_map(Step::Lose),
        1 => index().prop_map(Step::Leave),
        1 => index().prop_map(Step::Stay),
        1 => index().prop_map(Step::Silence),
        2 => Just(Step::Speak),
        2 => Just(Step::Add),
        1 => (index(), index()).prop_map(|(a, b)| Step::Rot(a, b)),
        3 => prop::option::of(0..400u16).prop_map(Step::LookAfter),
        1 => Just(Step::Verify),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(400).cases, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to drives, in whatever order: as long as no more is lost or silent at a time than the policy allows, everything that was
    /// put is read, and nothing that was deleted.
    #[test]
    fn a_life(policies in prop_oneof![Just(vec![policy(2, 2, 4, 9)]), Just(vec![policy(4, 2, 6, 9), policy(1, 2, 3, 9)])], steps in prop::collection::vec(step(), 1..60)) {
        local(async move {
            let mut world = world(5, preset(&policies));
            // So that also what the first process leaves behind ends with it.
            world.restart();
            let (mut objects, mut deleted, mut count): (BTreeSet<usize>, BTreeSet<usize>, usize) = Default::default();
            // Fragments that may be missing of an object: two may be.
            let (mut trouble, mut is_silent): (usize, Option<usize>) = (0, None);
            for step in steps {
                let duties = world.backend.duties();
                let of = |duty: Duty| duties.iter().enumerate().filter(|(_, (_, of))| *of == duty).map(|(number, _)| number).collect::<Vec<_>>();
                let serving = of(Duty::Serving);
                match step {
                    Step::Put => {
                        let put = world.put(&text(count), &object(count)).await;
                        world.backend.settle().await;
                        if put.is_ok() {
                            objects.insert(count);
                        }
                        // One that failed may be there or not.
                        count += 1;
                    }
                    Step::Delete(which) if !objects.is_empty() => {
                        let number = *which.get(&objects.iter().copied().collect::<Vec<_>>());
                        // One that failed may have begun.
                        if world.backend.delete(&name(&text(number))).await.is_ok() {
                            deleted.insert(number);
                        }
                        objects.remove(&number);
                    }
                    Step::Lose(which) if trouble < 2 && serving.len() > 4 => {
                        let number = *which.get(&serving);
                        if is_silent.is_none_or(|silent| silent == number) {
                            trouble += 1;
                            world.lose(number);
                            is_silent = None;
                        }
                    }
                    Step::Leave(which) if serving.len() > 5 => {
                        world.backend.set_duty(id(*which.get(&serving)), Duty::Leaving);
                    }
                    Step::Stay(which) if !of(Duty::Leaving).is_empty() => {
                        world.backend.set_duty(id(*which.get(&of(Duty::Leaving))), Duty::Serving);
                    }
                    Step::Silence(which) if trouble < 2 && is_silent.is_none() => {
                        let number = *which.get(&serving);
                        world.drives[number].set_schedule(|_| Some(Fault::ErrorBefore));
                        (is_silent, trouble) = (Some(number), trouble + 1);
                    }
                    Step::Speak => {
                        if let Some(number) = is_silent.take() {
                            world.drives[number].set_schedule(|_| None);
                            tokio::time::sleep(SUSPECT_MAX).await;
                        }
                    }
                    Step::Add if world.drives.len() < 12 => {
                        let number = world.drives.len();
                        world.add(number);
                    }
                    Step::Rot(which, what) if trouble < 2 => {
                        let number = *which.get(&serving);
                        let names = world.drives[number].inner().names();
                        if !names.is_empty() {
                            world.drives[number].inner().damage(what.get(&names), Some(Bytes::from_static(b"rot")));
                            trouble += 1;
                        }
                    }
                    Step::LookAfter(Some(calls)) => {
                        let left = Cell::new(calls);
                        let still = is_silent;
                        let lost = of(Duty::Lost);
                        world.set_schedule(move |drive, _| {
                            if still == Some(drive) || lost.contains(&drive) {
                                return Some(Fault::ErrorBefore);
                            }
                            if left.get() == 0 {
                                return Some(Fault::HangAfter);
                            }
                            left.set(left.get() - 1);
                            None
                        });
                        let cut_off = pin!(tokio::time::sleep(Duration::from_secs(3)));
                        let _survey = select(pin!(world.backend.look_after(true)), cut_off).await;
                        let lost = of(Duty::Lost);
                        world.set_schedule(move |drive, _| (still == Some(drive) || lost.contains(&drive)).then_some(Fault::ErrorBefore));
                        world.restart();
                    }
                    Step::LookAfter(None) => {
                        // All that rots is found first.
                        world.verify_all().await;
                        let survey = world.backend.look_after(true).await;
                        // What was half deleted, or half put, may be.
                        let is_put = |of: &ObjectName| objects.iter().any(|number| *of == name(&text(*number)));
                        assert!(!survey.unreadable_names.iter().any(is_put), "{survey:?}");
                        for gone in &survey.done_with {
                            assert!(world.backend.is_done_with(*gone) || survey.done_with.len() > 1);
                            world.backend.set_duty(*gone, Duty::Gone);
                        }
                        let is_whole = survey.to_mend == 0 && survey.silent.is_empty() && safeties(&survey).first().is_none_or(|least| *least >= 2);
                        if is_whole {
                            trouble = 0;
                        }
                    }
                    Step::Verify => drop(world.verify_all().await),
                    Step::Restart => world.restart(),
                    _ => continue,
                }
                for number in 0..count {
                    let read = world.get(&text(number)).await;
                    match read {
                        Ok(read) => {
                            assert!(read == object(number), "other bytes");
                            assert!(!deleted.contains(&number), "{} came back", text(number));
                        }
                        Err(error) => assert!(!objects.contains(&number), "{} ({trouble}): {error}", text(number)),
                    }
                }
            }
        });
    }
}
