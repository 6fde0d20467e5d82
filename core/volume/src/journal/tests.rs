//! Journals as a crash, a stale owner or a lost object leaves them.

use super::*;
use ovs_backend::{FaultyBackend, MemoryBackend, Operation};
use ovs_units::ByteCount;
use std::rc::Rc;
use uuid::Uuid;

pub(crate) mod unfinished;

const VDISK: VdiskId = VdiskId(Uuid::from_u128(1));

fn at(epoch: u64, index: u64) -> Position {
    Position { epoch: Epoch(epoch), index: JournalIndex(index) }
}

fn start(continues: Option<Position>) -> Record {
    let (starts_after, size) = (ovs_units::Sequence(0), ByteCount(1 << 20));
    Record::Start { continues, starts_after, size, base: None, properties: Bytes::new() }
}

fn resize() -> Record {
    Record::Resize { size: ByteCount(1 << 20) }
}

fn run(case: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(case);
}

/// Epoch 1 has four records, of which 0 to 2 count: epoch 3 continues there, and has three. Its owner was fenced, and
/// put one record too many. Nobody ever began epoch 2.
async fn journal() -> MemoryBackend {
    let backend = MemoryBackend::new();
    for (position, record) in [
        (at(1, 0), start(None)),
        (at(1, 1), resize()),
        (at(1, 2), resize()),
        (at(1, 3), resize()),
        (at(3, 0), start(Some(at(1, 2)))),
        (at(3, 1), resize()),
        (at(3, 2), resize()),
    ] {
        put(&backend, VDISK, position, &record).await.unwrap();
    }
    backend
}

#[test]
fn the_chain_is_read_from_anywhere_on_it() {
    run(async {
        let backend = journal().await;
        let all = [at(1, 0), at(1, 1), at(1, 2), at(3, 0), at(3, 1), at(3, 2)];
        for from in 0..=all.len() {
            for to in from.max(1)..=all.len() {
                let known = from.checked_sub(1).map(|from| all[from]);
                let read = read_chain(&backend, VDISK, known, all[to - 1]).await.unwrap();
                let read: Vec<Position> = read.into_iter().map(|(position, _)| position).collect();
                assert_eq!(read, all[from..to], "from {known:?}");
            }
        }
    });
}

#[test]
fn a_place_beside_the_chain_is_refused() {
    run(async {
        let backend = journal().await;
        let refused = async |from, to, expected: &str| {
            let answer = read_chain(&backend, VDISK, from, to).await;
            assert!(
                matches!(&answer, Err(VolumeError::Damaged(told)) if told.contains(expected)),
                "{from:?} to {to:?}: {answer:?}"
            );
        };
        refused(Some(at(1, 3)), at(3, 2), "does not pass through epoch 1, record 3").await;
        refused(Some(at(2, 0)), at(3, 2), "does not pass through epoch 1, record 2").await;
        refused(Some(at(0, 0)), at(3, 2), "does not pass through epoch 0, record 0").await;
        refused(Some(at(3, 2)), at(3, 1), "does not pass through epoch 3, record 2").await;
        refused(None, at(3, 3), "is missing").await;
        refused(None, at(2, 0), "is missing").await;
        put(&backend, VDISK, at(4, 0), &start(Some(at(5, 0)))).await.unwrap();
        refused(None, at(4, 0), "does not pass through epoch 5, record 0").await;
        put(&backend, VDISK, at(5, 0), &start(Some(at(5, 0)))).await.unwrap();
        refused(None, at(5, 0), "does not pass through epoch 5, record 0").await;
        put(&backend, VDISK, at(6, 0), &resize()).await.unwrap();
        refused(None, at(6, 0), "is no start").await;
    });
}

#[test]
fn the_newest_record_is_found_with_and_without_a_listing() {
    run(async {
        let backend = journal().await;
        let end = async |vdisk, at_least| newest(&backend, vdisk, at_least, Reading::ToTell).await.unwrap();
        let ends = |position: Position| Some(End { position, epoch: position.epoch });
        assert_eq!(end(VDISK, None).await, ends(at(3, 2)));
        assert_eq!(end(VdiskId(Uuid::from_u128(2)), None).await, None);
        // A copy of the map names a record that the listing does not have.
        assert_eq!(end(VDISK, Some(at(4, 7))).await, ends(at(4, 7)));
        assert_eq!(end(VDISK, Some(at(1, 0))).await, ends(at(3, 2)));
        let mut records = 0;
        for (from, count) in [(None, 7), (Some(at(1, 3)), 3), (Some(at(3, 2)), 0)] {
            let (objects, bytes) = weight(&backend, VDISK, from).await.unwrap();
            assert_eq!(objects, count, "{from:?}");
            assert!(bytes >= 48 * count, "{bytes}");
            records += objects;
        }
        assert_eq!(records, 10);
    });
}

#[test]
fn what_is_before_a_copy_goes_and_no_more() {
    run(async {
        let backend = journal().await;
        let gone = || Err(VolumeError::Refused("no".into()));
        assert!(remove_before(&backend, VDISK, at(3, 1), &gone).await.is_err());
        assert_eq!(weight(&backend, VDISK, None).await.unwrap().0, 7, "asked before each");
        remove_before(&backend, VDISK, at(3, 1), &|| Ok(())).await.unwrap();
        assert_eq!(weight(&backend, VDISK, None).await.unwrap().0, 2);
        assert!(get(&backend, VDISK, at(3, 0)).await.unwrap().is_none());
        assert!(get(&backend, VDISK, at(3, 1)).await.unwrap().is_some());
    });
}

/// What is listed is gone when it is asked for, or is there and not listed yet.
fn lagging(
    backend: MemoryBackend,
    records: &[Position],
    is_listed: bool,
) -> FaultyBackend<Rc<MemoryBackend>> {
    let names = records.iter().map(|position| record_name(VDISK, *position));
    let kept: Vec<_> = names.map(|name| (backend.bytes(&name), name)).collect();
    let backend = Rc::new(backend);
    FaultyBackend::new(Rc::clone(&backend), move |call| {
        for (bytes, name) in &kept {
            let is_there = (call.operation == Operation::List) == is_listed;
            backend.damage(name, bytes.clone().filter(|_| is_there));
        }
        None
    })
}

/// It is being removed, or who listed it is silent now. That is told of this vDisk, and who is to rest on it asks again.
#[test]
fn a_record_that_is_listed_and_not_there_is_not_the_end() {
    run(async {
        let end =
            async |reading| newest(&lagging(journal().await, &[at(3, 2)], true), VDISK, None, reading).await;
        let told = end(Reading::ToTell).await;
        assert!(matches!(told, Err(VolumeError::Damaged(_))), "{told:?}");
        let found = end(Reading::ToRestOn).await;
        assert!(matches!(found, Err(VolumeError::Retry(_))), "{found:?}");
    });
}

const LEAPT: u64 = 1 << 40;

#[test]
fn a_head_may_be_one_record_behind_and_not_two() {
    run(async {
        let backend = journal().await;
        // Two that nobody ever wrote in.
        for epoch in [4, 5] {
            put(&backend, VDISK, at(epoch, 0), &start(Some(at(3, 2)))).await.unwrap();
        }
        for (epoch, position, is_well) in [
            (6, at(3, 2), true),
            (LEAPT, at(3, 2), true),
            (6, at(3, 1), true),
            (LEAPT, at(3, 1), true),
            (4, at(3, 2), false),
            (6, at(3, 0), false),
            (LEAPT, at(3, 0), false),
            // The next but one is not there, what a new owner has put is.
            (1, at(1, 3), false),
            (2, at(1, 3), false),
            (LEAPT, at(1, 3), false),
        ] {
            let answer = check_not_older(&backend, VDISK, Epoch(epoch), Some(position), Own::Record).await;
            assert_eq!(answer.is_ok(), is_well, "epoch {epoch}, {position:?}: {answer:?}");
        }
    });
}

/// Whether anything that follows is another's.
#[test]
fn what_of_our_own_may_follow_says_whether_a_head_is_older() {
    run(async {
        let backend = journal().await;
        for (epoch, position, is_well) in
            [(3, at(3, 2), true), (LEAPT, at(3, 2), true), (3, at(3, 1), false), (LEAPT, at(3, 1), false)]
        {
            for own in [Own::Nothing, Own::Unfinished] {
                let answer = check_not_older(&backend, VDISK, Epoch(epoch), Some(position), own).await;
                assert_eq!(answer.is_ok(), is_well, "epoch {epoch}, {position:?}, {own:?}: {answer:?}");
            }
        }
    });
}

/// Without a position there are starts, and nothing before the first epoch.
#[test]
fn a_head_without_a_record_is_older_than_any_journal() {
    run(async {
        let check = async |backend: &dyn Backend, epoch, is_well| {
            let answer = check_not_older(backend, VDISK, Epoch(epoch), None, Own::Record).await;
            assert_eq!(answer.is_ok(), is_well, "epoch {epoch}: {answer:?}");
        };
        for epoch in [0, 1, 3, LEAPT] {
            check(&MemoryBackend::new(), epoch, true).await;
            check(&journal().await, epoch, false).await;
            // Its beginning was cut, behind a copy of the map.
            let backend = journal().await;
            remove_before(&backend, VDISK, at(3, 1), &|| Ok(())).await.unwrap();
            check(&backend, epoch, false).await;
        }
        let backend = MemoryBackend::new();
        for (epoch, is_well) in [(1, true), (2, true), (4, false)] {
            put(&backend, VDISK, at(epoch, 0), &start(None)).await.unwrap();
            check(&backend, 0, false).await;
            check(&backend, 2, is_well).await;
        }
        // Nor are the listings up to date.
        let records = [at(1, 0), at(1, 1), at(1, 2), at(1, 3), at(3, 0), at(3, 1), at(3, 2)];
        for epoch in [0, 1, 2, 3] {
            check(&lagging(journal().await, &records, false), epoch, false).await;
        }
    });
}

#[test]
fn what_is_not_listed_yet_makes_a_head_older_too() {
    run(async {
        for (epoch, position, is_well) in [
            (3, at(3, 1), true),
            (3, at(3, 0), false),
            (LEAPT, at(3, 0), false),
            // Whose epoch has begun, and gone on.
            (3, at(1, 2), false),
        ] {
            let backend = lagging(journal().await, &[at(3, 1), at(3, 2)], false);
            let answer = check_not_older(&backend, VDISK, Epoch(epoch), Some(position), Own::Record).await;
            assert_eq!(answer.is_ok(), is_well, "epoch {epoch}, {position:?}: {answer:?}");
        }
    });
}

/// A backend that answers with something else has not shown that there is more.
#[test]
fn what_is_no_record_does_not_make_a_head_older() {
    run(async {
        let backend = journal().await;
        let other = backend.bytes(&record_name(VDISK, at(3, 1)));
        backend.damage(&record_name(VDISK, at(3, 2)), other);
        let backend = lagging(backend, &[at(3, 2)], false);
        let answer = check_not_older(&backend, VDISK, Epoch(3), Some(at(3, 0)), Own::Record).await;
        assert!(matches!(answer, Err(VolumeError::Damaged(_))), "{answer:?}");
    });
}

#[test]
fn only_our_own_names_are_positions() {
    let prefix = "v/1/j/";
    let check = |name: &str, expected| {
        assert_eq!(position_of(&object_name(format!("{prefix}{name}")), prefix), expected, "{name}");
    };
    check("0000000000000003-000000000000000a", Some(at(3, 10)));
    check("3-a", None);
    check("0000000000000003", None);
    check("ffffffffffffffff-0000000000000000", None);
    check("3fffffffffffffff-0000000000000000", Some(at(COUNTER_MAX - 1, 0)));
    check("4000000000000000-0000000000000000", None);
    assert_eq!(position_of(&object_name("v/2/j/0000000000000003-000000000000000a".into()), prefix), None);
}
