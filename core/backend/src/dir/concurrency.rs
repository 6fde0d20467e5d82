//! Threads that put and delete beside each other, in orders that shuttle chooses; then the power goes.
//!
//! Every lock and every call of the disk is a place where another thread may go on. The power goes after each answer, while
//! the others are under way, and at the end. The operations on each name must have an order, one after the other, that
//! explains all answers and what is there after the power loss: `Ok` means done, `Conflict` that other bytes were there, and
//! what failed may have happened or not.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

use super::{
    power_loss::{LosingDisk, ROOT, Trouble, new_disk, open},
    store::Store,
};
use crate::{BackendError, ObjectName, Urgency};
use Operation::{Delete, Put};
use bytes::Bytes;
use rustix::io::Errno;
use shuttle::{rand::Rng, thread};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Orders tried of each case, by each of the two schedulers; `OVS_SCHEDULES` says otherwise.
const SCHEDULES: usize = 3000;
/// Changes of thread at unlikely places that one order may need to go wrong.
const DEPTH: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operation {
    /// An object of this byte.
    Put(u8),
    Delete,
}

/// An operation on a name, and between which two moments it took place.
#[derive(Debug, Clone)]
struct Done {
    name: &'static str,
    operation: Operation,
    begun: usize,
    ended: usize,
    answer: Result<(), BackendError>,
}

type Steps = &'static [(&'static str, Operation)];

/// What all threads did. Its lock is held over no step of theirs.
#[derive(Clone, Default)]
struct History(Arc<Mutex<Events>>);

#[derive(Default)]
struct Events {
    moment: usize,
    /// By the moment at which they began.
    under_way: BTreeMap<usize, (&'static str, Operation)>,
    done: Vec<Done>,
    /// The disk as it was when something had just been answered, and what had been done by then.
    answers: Vec<(LosingDisk, Vec<Done>)>,
}

impl Events {
    fn next_moment(&mut self) -> usize {
        self.moment += 1;
        self.moment
    }

    /// What had been answered by then, and what may have happened since.
    fn so_far(&self, answered: usize) -> Vec<Done> {
        let unanswered = |name: &'static str, operation: Operation, begun: usize| {
            let (object, reason) = (name.to_owned(), "unanswered".to_owned());
            let answer = Err(BackendError::Retry { operation: "put", object, reason });
            Done { name, operation, begun, ended: usize::MAX, answer }
        };
        let (before, since) = self.done.split_at(answered);
        let since = since.iter().map(|done| unanswered(done.name, done.operation, done.begun));
        let under_way =
            self.under_way.iter().map(|(begun, (name, operation))| unanswered(name, *operation, *begun));
        before.iter().cloned().chain(since).chain(under_way).collect()
    }
}

impl History {
    fn events(&self) -> MutexGuard<'_, Events> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, name: &'static str, operation: Operation) -> usize {
        let mut events = self.events();
        let begun = events.next_moment();
        events.under_way.insert(begun, (name, operation));
        begun
    }

    fn run(&self, store: &Store<LosingDisk>, (name, operation): (&'static str, Operation)) {
        let object = ObjectName::new(name).unwrap();
        // Once more after a failure, as callers do.
        for _ in 0..2 {
            let (begun, answer) = loop {
                let begun = self.begin(name, operation);
                let answer = match operation {
                    Put(byte) => store.put(&object, &contents(byte), Urgency::Reserve),
                    Delete => store.delete(&object),
                };
                match answer {
                    // Refused, because another thread is at it: nothing was done.
                    Err(BackendError::Retry { reason, .. }) if reason.starts_with("an earlier attempt") => {
                        self.events().under_way.remove(&begun);
                        thread::yield_now();
                    }
                    answer => break (begun, answer),
                }
            };
            let again = matches!(answer, Err(BackendError::Retry { .. } | BackendError::NoSpace { .. }));
            let is_done = answer.is_ok();
            let answered = {
                let mut events = self.events();
                events.under_way.remove(&begun);
                let ended = events.next_moment();
                events.done.push(Done { name, operation, begun, ended, answer });
                events.done.len()
            };
            if is_done {
                let disk = store.disk.fork();
                let mut events = self.events();
                let so_far = events.so_far(answered);
                events.answers.push((disk, so_far));
            }
            if !again {
                return;
            }
        }
    }

    /// What was done in all, none of it undone by a loss of power right after any answer.
    fn done(&self) -> Vec<Done> {
        let mut events = self.events();
        assert!(events.under_way.is_empty());
        for (disk, so_far) in std::mem::take(&mut events.answers) {
            check_power_losses(&disk, &so_far);
        }
        events.done.clone()
    }
}

fn contents(byte: u8) -> Vec<Bytes> {
    vec![Bytes::from(vec![byte; 100]), Bytes::from(vec![byte; 50])]
}

/// Is there an order of these operations on one name, from `state` on, after which it is `left`?
fn is_explained(rest: &[&Done], state: Option<u8>, left: Option<u8>) -> bool {
    if rest.is_empty() {
        return state == left;
    }
    (0..rest.len()).any(|at| {
        let next = rest[at];
        let others: Vec<_> = rest.iter().copied().filter(|other| !std::ptr::eq(*other, next)).collect();
        if others.iter().any(|other| other.ended < next.begun) {
            return false;
        }
        let after = match (next.operation, &next.answer) {
            (Put(byte), Ok(())) => [(state.unwrap_or(byte) == byte).then_some(Some(byte)), None],
            (Put(byte), Err(BackendError::Conflict { .. })) => {
                [state.is_some_and(|held| held != byte).then_some(state), None]
            }
            (Put(byte), Err(_)) => [Some(state), state.is_none().then_some(Some(byte))],
            (Delete, Ok(())) => [Some(None), None],
            (Delete, Err(_)) => [Some(state), Some(None)],
        };
        after.into_iter().flatten().any(|state| is_explained(&others, state, left))
    })
}

/// The byte of the object that is there, if one is.
fn found(disk: &LosingDisk, name: &str) -> Option<u8> {
    let state = disk.state();
    let bytes = state.bytes(&Path::new(ROOT).join(name)).ok()?;
    let byte = *bytes.first().expect("an object without its bytes");
    assert!(*bytes == contents(byte).concat(), "{name} with a part of its bytes");
    Some(byte)
}

/// Loses power in several ways: nothing unsynced survives, all of it, or some of it.
fn check_power_losses(disk: &LosingDisk, done: &[Done]) {
    let names: BTreeSet<_> = done.iter().map(|done| done.name).collect();
    for way in 0..4 {
        let disk = disk.fork();
        let mut random = shuttle::rand::thread_rng();
        disk.state().lose_power(|| match way {
            0 => false,
            1 => true,
            _ => random.r#gen(),
        });
        for name in &names {
            let of_name: Vec<_> = done.iter().filter(|done| done.name == *name).collect();
            let left = found(&disk, name);
            assert!(
                is_explained(&of_name, None, left),
                "power lost in way {way}: {name} is {left:?} after {of_name:#?}"
            );
        }
    }
}

/// The last of the threads is this one.
fn run_beside_each_other(store: Store<LosingDisk>, threads: &[Steps]) -> Vec<Done> {
    let (store, history) = (Arc::new(store), History::default());
    let threads: Vec<_> = threads
        .iter()
        .map(|steps| {
            let (store, history, steps) = (Arc::clone(&store), history.clone(), *steps);
            thread::spawn(move || steps.iter().for_each(|step| history.run(&store, *step)))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    history.done()
}

fn check_schedules(case: impl Fn() + Send + Sync + Clone + 'static) {
    let schedules =
        std::env::var("OVS_SCHEDULES").ok().and_then(|count| count.parse().ok()).unwrap_or(SCHEDULES);
    shuttle::check_random(case.clone(), schedules);
    shuttle::check_pct(case, schedules, DEPTH);
}

/// These threads on a disk without trouble, and on one where some call fails.
fn check(threads: &'static [Steps]) {
    check_schedules(|| {
        let disk = new_disk();
        let done = run_beside_each_other(open(&disk).unwrap(), threads);
        let failed =
            done.iter().find(|done| !matches!(done.answer, Ok(()) | Err(BackendError::Conflict { .. })));
        assert!(failed.is_none(), "nothing was wrong: {failed:?}");
        check_power_losses(&disk, &done);
    });
    check_schedules(|| {
        let disk = new_disk();
        let store = open(&disk).unwrap();
        let errno = if shuttle::rand::thread_rng().r#gen() { Errno::IO } else { Errno::NOSPC };
        let at = disk.state().calls + shuttle::rand::thread_rng().gen_range(0..50);
        disk.state().trouble = Trouble::At(at, errno);
        let done = run_beside_each_other(store, threads);
        check_power_losses(&disk, &done);
    });
}

#[test]
fn puts_of_one_name_with_the_same_bytes() {
    check(&[&[("v/1/x", Put(1))], &[("v/1/x", Put(1))], &[("v/1/x", Put(1))]]);
}

#[test]
fn puts_of_one_name_with_other_bytes() {
    check(&[&[("v/1/x", Put(1))], &[("v/1/x", Put(2))]]);
}

#[test]
fn puts_of_different_names_in_a_new_folder() {
    check(&[&[("v/1/x", Put(1))], &[("v/1/y", Put(2))], &[("v/z", Put(3))]]);
}

#[test]
fn new_folders_in_one_folder() {
    check(&[&[("v/1/x", Put(1))], &[("v/2/x", Put(2))]]);
}

#[test]
fn a_delete_beside_a_put_of_its_name() {
    check(&[&[("v/x", Put(1)), ("v/x", Delete)], &[("v/x", Put(1))]]);
}

#[test]
fn a_delete_beside_a_put_into_its_folder() {
    check(&[&[("v/x", Put(1)), ("v/x", Delete)], &[("v/y", Put(2))]]);
}

/// The first to find the device full gives the reserve back; what that makes room for is not refused to the second.
#[test]
fn commits_on_a_full_device() {
    check_schedules(|| {
        let disk = new_disk();
        let store = open(&disk).unwrap();
        disk.fill_up(&store);
        let done = run_beside_each_other(store, &[&[("v/x", Put(1))], &[("v/y", Put(2))]]);
        assert!(done.iter().all(|done| done.answer.is_ok()), "{done:?}");
        check_power_losses(&disk, &done);
    });
}
