//! What is half there: puts and deletes that were cut off.

use super::*;

/// The only read that may rest on fragments that no put was acknowledged with.
#[test]
fn what_is_read_to_last_survives_what_any_acknowledged_object_does() {
    for preset in presets(&[policy(4, 2, 5, 3)]) {
        local(async {
            let mut world = world(9, preset);
            let expected = bytes(1, 200_000);
            world.put_whole("v/j/1", &expected).await;
            world.leave(4);
            world.forget();
            assert!(world.backend.get_lasting(&name("v/j/1")).await == Ok(expected.clone()));
            world.backend.settle().await;
            for lost in world.fragments() {
                let kept = world.drives[lost.0].inner().bytes(&lost.1);
                world.drives[lost.0].inner().damage(&lost.1, None);
                world.forget();
                assert!(world.get("v/j/1").await == Ok(expected.clone()), "without {lost:?}");
                world.drives[lost.0].inner().damage(&lost.1, kept);
            }
        });
    }
}

#[test]
fn what_cannot_be_made_to_stand_is_not_shown() {
    local(async {
        let mut world = world(6, preset(&[policy(4, 2, 5, 3)]));
        world.put_whole("v/j/1", &bytes(1, 200_000)).await;
        world.leave(4);
        world.forget();
        world.set_schedule(|_, call| (call.operation == Operation::Put).then_some(Fault::ErrorBefore));
        let error = world.backend.get_lasting(&name("v/j/1")).await.expect_err("nothing can be put");
        assert!(matches!(error, BackendError::Retry { .. }), "{error}");
        // What stands is not put again.
        world.set_schedule(|_, _| None);
        world.backend.get_lasting(&name("v/j/1")).await.expect("it can be put");
        world.backend.settle().await;
        world.forget();
        world.set_schedule(|_, call| (call.operation == Operation::Put).then_some(Fault::ErrorBefore));
        world.backend.get_lasting(&name("v/j/1")).await.expect("it stands");
    });
}

/// One drive for each site.
fn over(sites: &[World]) -> CodedBackend {
    let drive = |(number, site): (usize, &World)| Drive {
        id: Uuid::from_u128(number as u128 + 1),
        node: number.to_string(),
        site: String::new(),
        weight: 1,
        backend: Rc::new(site.backend.clone()),
        duty: Duty::Serving,
    };
    let drives = sites.iter().enumerate().map(drive).collect();
    CodedBackend::new(drives, preset(&[policy(1, 1, 2, 1)]), Work::Here).expect("good drives")
}

/// Half of each fragment is none of any. Its name is used all the same.
#[test]
fn what_was_begun_on_drives_that_are_made_of_drives_is_not_there() {
    local(async {
        let sites = [0, 1].map(|_| world(3, preset(&[policy(2, 1, 3, 3)])));
        over(&sites).put(&name("v/j/1"), vec![bytes(2, 100_000)], Urgency::Normal).await.expect("put");
        for site in &sites {
            site.leave(1);
        }
        for read in [over(&sites).get(&name("v/j/1")).await, over(&sites).get_lasting(&name("v/j/1")).await] {
            assert!(matches!(read, Err(BackendError::Incomplete { is_silent: false, .. })), "{read:?}");
        }
        // There may be more of it, here or there.
        for (site, other) in [(0, 1), (1, 0)] {
            sites[site].set_schedule(|number, _| (number == 2).then_some(Fault::ErrorBefore));
            sites[other].set_schedule(|_, _| None);
            tokio::time::sleep(SUSPECT_MAX).await;
            let read = over(&sites).get_lasting(&name("v/j/1")).await;
            let is_silent = matches!(read, Err(BackendError::Incomplete { is_silent: true, .. }));
            assert!(is_silent || matches!(read, Err(BackendError::Retry { .. })), "{read:?}");
        }
    });
}

/// A drive that answers again may show what was begun: only what all say is not there stays so.
#[test]
fn what_a_silent_drive_may_have_is_not_absent_for_good() {
    local(async {
        let world = world(6, preset(&[policy(2, 1, 3, 3)]));
        let absent = async |backend: &CodedBackend| {
            let (read, lasting) =
                (backend.get(&name("v/j/1")).await, backend.get_lasting(&name("v/j/1")).await);
            assert!(matches!(read, Err(BackendError::NotFound { .. })), "{read:?}");
            lasting.expect_err("nothing is there")
        };
        assert!(matches!(absent(&world.backend).await, BackendError::NotFound { .. }));
        world.set_schedule(|number, _| (number == 4).then_some(Fault::ErrorBefore));
        assert!(matches!(absent(&world.backend).await, BackendError::Incomplete { is_silent: true, .. }));
        // Nor where a drive is made of drives.
        let sites = [0, 1].map(|_| self::world(3, preset(&[policy(1, 1, 2, 3)])));
        assert!(matches!(absent(&over(&sites)).await, BackendError::NotFound { .. }));
        sites[1].set_schedule(|number, _| (number == 2).then_some(Fault::ErrorBefore));
        assert!(matches!(absent(&over(&sites)).await, BackendError::Incomplete { is_silent: true, .. }));
    });
}

#[test]
fn two_fragments_on_one_drive_are_lost_with_it() {
    local(async {
        let mut world = world(6, preset(&[policy(2, 1, 3, 3)]));
        let expected = bytes(4, 100_000);
        world.put_whole("v/j/1", &expected).await;
        let all = world.fragments();
        let (own, (drive, fragment)) = (all[0].0, all[1].clone());
        let moved = world.drives[drive].inner().bytes(&fragment);
        world.drives[drive].inner().damage(&fragment, None);
        world.drives[own].inner().damage(&fragment, moved);
        world.forget();
        assert!(world.backend.get_lasting(&name("v/j/1")).await == Ok(expected.clone()));
        world.backend.settle().await;
        let on_own = |(drive, _): &(usize, ObjectName)| *drive == own;
        for (drive, fragment) in world.fragments().into_iter().filter(on_own) {
            world.drives[drive].inner().damage(&fragment, None);
        }
        world.forget();
        assert!(world.get("v/j/1").await == Ok(expected));
    });
}

/// However many fragments it has.
#[test]
fn what_is_read_to_last_is_not_in_memory_many_times() {
    local(async {
        let small = preset(&[policy(2, 1, 3, 3)]).with_fragments_of(FRAME_BYTES).expect("allowed");
        let mut world = world(6, small);
        let expected = bytes(3, 20 * FRAME_BYTES as usize);
        world.put_whole("v/j/1", &expected).await;
        world.forget();
        let (now, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (at_once, seen) = (Rc::clone(&now), Rc::clone(&most));
        world.set_schedule(move |_, call| {
            let at_once = Rc::clone(&at_once);
            if call.operation != Operation::Get {
                return None;
            }
            at_once.set(at_once.get() + 1);
            seen.set(seen.get().max(at_once.get()));
            Some(Fault::Delay(Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                at_once.set(at_once.get() - 1);
            })))
        });
        assert!(world.backend.get_lasting(&name("v/j/1")).await == Ok(expected));
        assert_eq!((now.get(), most.get()), (0, get::PIECES_MAX));
    });
}

/// Put twice: once more than half, and once so that it was acknowledged.
#[test]
fn of_two_layouts_the_one_that_stands_is_read() {
    local(async {
        let (wide, narrow) = (policy(4, 2, 5, 3), policy(1, 1, 2, 3));
        let mut world = world(9, preset(&[wide]));
        let expected = bytes(1, 200_000);
        world.put_whole("v/j/1", &expected).await;
        world.leave(4);
        world.backend = reopen(&world.drives, preset(&[narrow]));
        world.put_whole("v/j/1", &expected).await;
        world.backend = reopen(&world.drives, preset(&[wide, narrow]));
        let found = world.backend.inner.find_anywhere(&name("v/j/1"), None).await;
        assert_eq!(found.map(|object| object.geometry().data), Ok(1));
    });
}

/// What a delete removes is not put again by who makes it stand at the same time, whichever began first.
#[test]
fn what_is_deleted_meanwhile_does_not_come_back() {
    for half_ms in 0..20 {
        for is_delete_first in [false, true] {
            local(async {
                let mut world = world(9, preset(&[policy(4, 2, 5, 3)]));
                world.put_whole("v/j/1", &bytes(1, 200_000)).await;
                world.leave(4);
                world.forget();
                let object = name("v/j/1");
                let ms = Duration::from_millis(1);
                world.set_schedule(move |_, _| Some(Fault::Delay(Box::pin(tokio::time::sleep(ms)))));
                let later = ms * half_ms / 2;
                let (first, second) =
                    if is_delete_first { (later, Duration::ZERO) } else { (Duration::ZERO, later) };
                let read = async {
                    tokio::time::sleep(first).await;
                    world.backend.get_lasting(&object).await
                };
                let deleted = async {
                    tokio::time::sleep(second).await;
                    world.backend.delete(&object).await
                };
                let (read, deleted) = tokio::join!(read, deleted);
                world.backend.settle().await;
                assert_eq!(deleted, Ok(()));
                assert_eq!(world.fragments(), [], "{half_ms}, {is_delete_first}: {read:?}");
            });
        }
    }
}

/// One that is not what was put is in the way of the one that takes its place.
#[test]
fn a_damaged_fragment_does_not_keep_an_object_from_standing() {
    for preset in presets(&[policy(2, 1, 3, 3)]) {
        local(async {
            let mut world = world(3, preset);
            let expected = bytes(4, 100_000);
            world.put_whole("v/j/1", &expected).await;
            for (drive, fragment) in world.fragments() {
                let mut bad = world.drives[drive].inner().bytes(&fragment).expect("a fragment").to_vec();
                *bad.last_mut().expect("bytes") ^= 1;
                world.drives[drive].inner().damage(&fragment, Some(bad.into()));
                world.forget();
                assert!(world.backend.get_lasting(&name("v/j/1")).await == Ok(expected.clone()));
                world.backend.settle().await;
                world.forget();
                assert!(world.get("v/j/1").await == Ok(expected.clone()));
            }
        });
    }
}

/// Whatever happens in between: what may have been acknowledged never looks as if it had not been.
#[test]
fn a_damaged_fragment_goes_when_a_good_one_is_elsewhere() {
    let is_over = |calls: usize| {
        local(async {
            let mut world = world(3, preset(&[policy(2, 1, 3, 3)]));
            let expected = bytes(4, 100_000);
            world.put_whole("v/j/1", &expected).await;
            let (drive, fragment) = world.fragments().remove(0);
            world.drives[drive].inner().damage(&fragment, Some(Bytes::from_static(b"?")));
            world.forget();
            let left = Cell::new(calls);
            world.set_schedule(move |_, call| {
                let changes = matches!(call.operation, Operation::Put | Operation::Delete);
                let is_over = changes && left.replace(left.get().saturating_sub(1)) == 0;
                is_over.then_some(Fault::ErrorBefore)
            });
            let read = world.backend.get_lasting(&name("v/j/1")).await;
            world.backend.settle().await;
            let names: BTreeSet<ObjectName> = world.fragments().into_iter().map(|(_, name)| name).collect();
            assert_eq!(names.len(), 3, "{calls}: {read:?}");
            world.set_schedule(|_, _| None);
            world.forget();
            assert!(world.get("v/j/1").await == Ok(expected), "{calls}");
            read.is_ok()
        })
    };
    let calls = (0..).find(|calls| is_over(*calls)).expect("an end");
    assert!(calls > 3, "{calls}");
}

/// It is good, whatever it is.
#[test]
fn a_fragment_of_another_put_does_not_make_way() {
    local(async {
        let (mut ours, theirs) =
            (world(3, preset(&[policy(2, 1, 3, 3)])), world(3, preset(&[policy(2, 1, 3, 3)])));
        ours.put_whole("v/j/1", &bytes(4, 100_000)).await;
        theirs.put_whole("v/j/1", &bytes(5, 100_000)).await;
        let (drive, fragment) = ours.fragments().remove(0);
        let other = theirs.drives[drive].inner().bytes(&fragment);
        ours.drives[drive].inner().damage(&fragment, other.clone());
        ours.forget();
        let read = ours.backend.get_lasting(&name("v/j/1")).await;
        assert!(matches!(read, Err(BackendError::Conflict { .. })), "{read:?}");
        assert_eq!(ours.drives[drive].inner().bytes(&fragment), other);
    });
}

/// Its drive is one that has no room for ours: if enough others have, the object stands.
#[test]
fn a_fragment_of_another_put_costs_its_drive_alone() {
    for (drives, policy, gone) in [(6, policy(2, 1, 3, 3), 0), (4, policy(1, 3, 3, 3), 1)] {
        local(async {
            let (mut ours, theirs) = (world(drives, preset(&[policy])), world(drives, preset(&[policy])));
            let expected = bytes(4, 100_000);
            ours.put_whole("v/j/1", &expected).await;
            theirs.put_whole("v/j/1", &bytes(5, 100_000)).await;
            let all = ours.fragments();
            let (drive, fragment) = all[0].clone();
            let other = theirs.drives[drive].inner().bytes(&fragment);
            ours.drives[drive].inner().damage(&fragment, other.clone());
            for (drive, fragment) in all.into_iter().skip(1).take(gone) {
                ours.drives[drive].inner().damage(&fragment, None);
            }
            ours.forget();
            // That one is heard first.
            ours.set_schedule(move |number, call| {
                let is_later = call.operation == Operation::Put && number != drive;
                is_later.then(|| Fault::Delay(Box::pin(tokio::time::sleep(Duration::from_millis(1)))))
            });
            assert!(ours.backend.get_lasting(&name("v/j/1")).await == Ok(expected.clone()), "{drives}");
            ours.backend.settle().await;
            assert_eq!(ours.drives[drive].inner().bytes(&fragment), other);
            ours.forget();
            assert!(ours.get("v/j/1").await == Ok(expected), "{drives}");
        });
    }
}

/// Nobody else may be asked just now: that says nothing of the object.
#[test]
fn a_damaged_fragment_that_cannot_be_replaced_now_is_asked_for_again() {
    local(async {
        let mut world = world(3, preset(&[policy(2, 1, 3, 3)]));
        let expected = bytes(4, 100_000);
        world.put_whole("v/j/1", &expected).await;
        let (drive, fragment) = world.fragments().remove(0);
        world.drives[drive].inner().damage(&fragment, Some(Bytes::from_static(b"?")));
        world.forget();
        // The others have failed by the time that its drive answers.
        world.set_schedule(move |number, call| match call.operation {
            Operation::Put if number == drive => {
                Some(Fault::Delay(Box::pin(tokio::time::sleep(Duration::from_millis(1)))))
            }
            Operation::Put => Some(Fault::ErrorBefore),
            _ => None,
        });
        let read = world.backend.get_lasting(&name("v/j/1")).await;
        assert!(matches!(read, Err(BackendError::Retry { .. })), "{read:?}");
        world.backend.settle().await;
        world.set_schedule(|_, _| None);
        tokio::time::sleep(SUSPECT_MAX).await;
        assert!(world.backend.get_lasting(&name("v/j/1")).await == Ok(expected));
    });
}

/// A drive may answer with something else once, and have what was put.
#[test]
fn nothing_goes_on_the_word_of_one_read() {
    local(async {
        let mut world = world(3, preset(&[policy(2, 1, 3, 3)]));
        let expected = bytes(4, 100_000);
        world.put_whole("v/j/1", &expected).await;
        world.forget();
        let (deletes, seen) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (count_deletes, count_seen) = (Rc::clone(&deletes), Rc::clone(&seen));
        world.set_schedule(move |number, call| match call.operation {
            Operation::Delete => {
                count_deletes.set(count_deletes.get() + 1);
                None
            }
            Operation::Get if number == 1 => {
                count_seen.set(count_seen.get() + 1);
                Some(Fault::BitFlip(8 * 20_000))
            }
            _ => None,
        });
        assert!(world.backend.get_lasting(&name("v/j/1")).await == Ok(expected));
        assert!(seen.get() > 0);
        assert_eq!((deletes.get(), world.fragments().len()), (0, 3));
    });
}

/// A drive that is a coded backend may have half a fragment, too.
#[test]
fn what_lasts_lasts_on_drives_that_are_made_of_drives() {
    local(async {
        let sites = [0, 1].map(|_| world(3, preset(&[policy(2, 1, 3, 3)])));
        let (global, expected) = (over(&sites), bytes(2, 100_000));
        global.put(&name("v/j/1"), vec![expected.clone()], Urgency::Normal).await.expect("put");
        for site in &sites {
            site.leave(2);
        }
        assert!(global.get_lasting(&name("v/j/1")).await == Ok(expected));
        assert!(sites.iter().all(|site| site.fragments().len() == 3));
    });
}

/// Everything fails from the n-th call of a kind on, for every n: then the object is there, or it is not.
async fn cut_off(operation: Operation, act: impl AsyncFn(&World) -> bool) {
    let small = preset(&[policy(2, 1, 3, 3)]).with_fragments_of(FRAME_BYTES).expect("allowed");
    for calls in 0usize.. {
        let mut world = world(6, small.clone());
        let expected = bytes(3, 3 * 2 * FRAME_BYTES as usize - 100);
        if operation == Operation::Delete {
            world.put_whole("v/s/1", &expected).await;
        }
        let left = Cell::new(calls);
        world.set_schedule(move |_, call| {
            let is_over = call.operation == operation && left.replace(left.get().saturating_sub(1)) == 0;
            is_over.then_some(Fault::ErrorBefore)
        });
        let is_done = act(&world).await;
        world.backend.settle().await;
        world.set_schedule(|_, _| None);
        world.forget();
        let (whole, range) = (world.get("v/s/1").await, world.backend.get_range(&name("v/s/1"), 0, 10).await);
        assert_eq!(whole.is_ok(), range.is_ok(), "{calls}: a part is there without the others");
        match whole {
            Ok(whole) => assert!(whole == expected, "{calls}"),
            Err(BackendError::NotFound { .. } | BackendError::Incomplete { .. }) => {
                assert!(operation == Operation::Delete || !is_done, "{calls}: it was acknowledged")
            }
            Err(error) => panic!("{calls}: {error}"),
        }
        // Whatever there is of it can be found and removed.
        let listed = world.backend.list("v/", None, 9).await.expect("a listing");
        assert_eq!(listed.is_empty(), world.fragments().is_empty());
        world.backend.delete(&name("v/s/1")).await.expect("deleted");
        assert_eq!(world.fragments(), []);
        if is_done {
            assert!(calls >= 9);
            return;
        }
    }
}

#[test]
fn an_object_of_several_chunks_is_there_as_a_whole_or_not_at_all() {
    let expected = bytes(3, 3 * 2 * FRAME_BYTES as usize - 100);
    local(cut_off(Operation::Put, async |world| world.put("v/s/1", &expected).await.is_ok()));
    local(cut_off(Operation::Delete, async |world| world.backend.delete(&name("v/s/1")).await.is_ok()));
}

/// A store in which a put goes its way, whether anybody waits for it or not.
struct Stubborn {
    inner: Rc<MemoryBackend>,
    takes: Duration,
}

impl Backend for Stubborn {
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let (inner, takes, name) = (Rc::clone(&self.inner), self.takes, name.clone());
        let put = tokio::task::spawn_local(async move {
            tokio::time::sleep(takes).await;
            inner.put(&name, parts, urgency).await
        });
        Box::pin(async move { put.await.expect("it goes on") })
    }

    fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        self.inner.get_range(name, offset, length)
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        self.inner.get(name)
    }

    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        self.get(name)
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> LocalBoxFuture<'_, Result<Vec<ObjectInfo>, BackendError>> {
        self.inner.list(prefix, after, limit)
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        self.inner.delete(name)
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        self.inner.capacity()
    }
}

#[test]
fn a_put_that_takes_too_long_lands_before_a_delete_or_the_delete_is_not_done() {
    local(async {
        let stores: Vec<Rc<MemoryBackend>> = (0..6).map(|_| Rc::default()).collect();
        let drive = |(number, inner): (usize, &Rc<MemoryBackend>)| Drive {
            id: Uuid::from_u128(number as u128 + 1),
            node: String::new(),
            site: String::new(),
            weight: 1,
            duty: Duty::Serving,
            backend: Rc::new(Stubborn {
                inner: Rc::clone(inner),
                takes: Duration::from_secs(if number == 0 { 100 } else { 0 }),
            }),
        };
        let drives = stores.iter().enumerate().map(drive).collect();
        let backend = CodedBackend::new(drives, preset(&[policy(3, 2, 5, 9)]), Work::Here);
        let (backend, object) = (backend.expect("good drives"), bytes(4, 300_000));
        for number in 0..6 {
            let name = name(&format!("v/s/{number}"));
            backend.put(&name, vec![object.clone()], Urgency::Normal).await.expect("five others take it");
            match backend.delete(&name).await {
                Ok(()) => {}
                Err(error) => assert!(matches!(error, BackendError::Retry { .. }), "{error}"),
            }
        }
        // As long as nobody waits for it, nothing says that it is gone.
        let late = name("v/s/late");
        let order = |name: &ObjectName| placement::order(&backend.inner.drives(), name, 0)[0];
        let late = (0..99).map(|number| name(&format!("{late}{number}"))).find(|name| order(name) == 0);
        let late = late.expect("one of many begins on the first drive");
        tokio::time::sleep(SUSPECT_MAX * 2).await;
        backend.put(&late, vec![object], Urgency::Normal).await.expect("five others take it");
        let error = backend.delete(&late).await.expect_err("a fragment is on its way");
        assert!(matches!(error, BackendError::Retry { .. }), "{error}");
        tokio::time::sleep(Duration::from_secs(50)).await;
        backend.delete(&late).await.expect("it has landed");
        for number in 0..6 {
            backend.delete(&name(&format!("v/s/{number}"))).await.expect("all have");
        }
        tokio::time::sleep(Duration::from_secs(1000)).await;
        let left: usize = stores.iter().map(|store| store.names().len()).sum();
        assert_eq!(left, 0);
    });
}
