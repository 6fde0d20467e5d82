//! Drives that answer badly, slowly or not at all; drives that are lost.

use super::*;

#[test]
fn lost_drives_and_earlier_presets_count_where_something_is_absent() {
    let newer = preset(&[policy(2, 2, 4, 3)]);
    let older = newer.clone().with_earlier(vec![policy(2, 1, 3, 3)]);
    let oldest = older.clone().with_earlier(vec![policy(2, 1, 2, 3)]);
    local(async {
        let mut world = world(6, newer.clone());
        // The number 7 is of a drive that is no more there.
        for (lost, silent, preset, is_absent) in [
            (&[][..], &[][..], &oldest, true),
            (&[], &[0], &oldest, false),
            (&[0], &[], &oldest, false),
            (&[], &[0], &older, true),
            (&[], &[0, 1], &older, false),
            (&[0], &[0], &older, true),
            (&[0], &[1], &older, false),
            (&[7], &[], &older, true),
            (&[7], &[1], &older, false),
            (&[0, 7], &[], &newer, true),
            (&[0, 7], &[0], &newer, true),
            (&[0, 7], &[1], &newer, false),
            (&[0, 1, 7], &[], &newer, false),
        ] {
            world.backend = reopen_without(lost, &world.drives, preset.clone());
            let silent: Vec<usize> = silent.to_vec();
            let told = format!("lost {lost:?}, silent {silent:?}, {:?}", preset.earlier);
            world.set_schedule(move |number, _| silent.contains(&number).then_some(Fault::ErrorBefore));
            let error = world.get("v/s/none").await.expect_err("it was never put");
            let is_retry = matches!(error, BackendError::Retry { .. });
            assert!(is_retry || matches!(error, BackendError::NotFound { .. }), "{told}: {error}");
            assert_eq!(!is_retry, is_absent, "{told}: {error}");
            assert_eq!(world.backend.list("v/", None, 9).await.is_ok(), is_absent, "{told}");
        }
    });
}

#[test]
fn what_may_have_been_acknowledged_is_lost_and_not_absent() {
    local(async {
        let mut world = world(6, preset(&[policy(3, 2, 4, 3)]));
        world.put_whole("v/j/1", &bytes(1, 300_000)).await;
        world.leave(2);
        for (lost, is_lost) in [(&[][..], false), (&[5], false), (&[4, 5], true), (&[4, 8, 9], true)] {
            world.backend = reopen_without(lost, &world.drives, preset(&[policy(3, 2, 4, 3)]));
            let error = world.get("v/j/1").await.expect_err("too little is there");
            assert_eq!(matches!(error, BackendError::Lost { .. }), is_lost, "{lost:?}: {error}");
            assert_eq!(matches!(error, BackendError::Incomplete { .. }), !is_lost, "{lost:?}: {error}");
        }
        // Whatever is in them: they are there.
        world.put_whole("v/j/2", &bytes(1, 300_000)).await;
        for (drive, fragment) in world.fragments() {
            if fragment.as_str().starts_with("v/j/2") {
                world.drives[drive].inner().damage(&fragment, Some(Bytes::from_static(b"?")));
            }
        }
        world.forget();
        let error = world.get("v/j/2").await.expect_err("all of it is wrong");
        assert!(matches!(error, BackendError::Lost { .. }), "{error}");
    });
}

#[test]
fn drives_that_list_and_do_not_read_are_waited_for() {
    local(async {
        let mut world = world(6, preset(&[policy(3, 2, 4, 3)]));
        let expected = bytes(2, 300_000);
        world.put_whole("v/s/1", &expected).await;
        for is_known in [false, true] {
            world.forget();
            if is_known {
                world.backend.get_range(&name("v/s/1"), 0, 10).await.expect("all is well");
            }
            world.set_schedule(|number, call| {
                (call.operation == Operation::Get && number > 1).then_some(Fault::ErrorBefore)
            });
            let error = world.get("v/s/1").await.expect_err("two drives read");
            assert!(matches!(error, BackendError::Retry { .. }), "{error}");
            let range = world.backend.get_range(&name("v/s/1"), 0, 300_000).await;
            assert!(matches!(range, Err(BackendError::Retry { .. })), "{range:?}");
            world.set_schedule(|_, _| None);
            tokio::time::sleep(SUSPECT_MAX).await;
            assert!(world.get("v/s/1").await == Ok(expected.clone()));
        }
    });
}

/// A drive that takes seconds costs nobody seconds, and one of which nobody knows how long it takes is still asked.
#[test]
fn a_slow_drive_is_not_waited_for() {
    local(async {
        let mut world = world(9, preset(&[policy(3, 2, 4, 3)]));
        let expected = bytes(9, 300_000);
        for number in 0..40 {
            world.put_whole(&format!("v/s/{number}"), &expected).await;
        }
        world.forget();
        let slow = |world: &World, drives: std::ops::Range<usize>| {
            world.set_schedule(move |drive, _| {
                let wait = if drives.contains(&drive) { 5000 } else { 5 };
                Some(Fault::Delay(Box::pin(tokio::time::sleep(Duration::from_millis(wait)))))
            });
        };
        slow(&world, 4..5);
        let mut longest = Duration::ZERO;
        for number in 0..40 {
            // What is known already is read in ranges; to find out what an object is takes all that may tell.
            world.backend.get_range(&name(&format!("v/s/{number}")), 0, 9).await.expect("found");
            let began = Instant::now();
            let read = world.backend.get_range(&name(&format!("v/s/{number}")), 0, 300_000).await;
            assert!(read.expect("a range") == expected);
            longest = longest.max(began.elapsed());
        }
        assert!(longest < Duration::from_millis(600), "{longest:?}");
        let hedged = world.backend.stats().hedged;
        assert!(hedged > 10, "{hedged} reads were answered by others");
        // However many: those that answer are not busy.
        for number in (0..40).cycle().take(2000) {
            let began = Instant::now();
            let read = world.backend.get_range(&name(&format!("v/s/{number}")), 150_000, 100_000).await;
            assert!(read.expect("a range") == expected[150_000..250_000]);
            longest = longest.max(began.elapsed());
        }
        assert!(longest < Duration::from_millis(600), "{longest:?}");
        let hedged = world.backend.stats().hedged - hedged;
        assert!(hedged > 250, "{hedged} reads were answered by others");
        // Where all are slow, most are asked once.
        slow(&world, 0..9);
        let before = world.backend.stats();
        let calls = |world: &World| world.drives.iter().map(|drive| drive.calls()).sum::<u64>();
        let (calls_before, began) = (calls(&world), Instant::now());
        for _ in 0..10 {
            for number in 0..40 {
                let read = world.backend.get_range(&name(&format!("v/s/{number}")), 7, 40).await;
                assert!(read.expect("a range") == expected[7..47]);
            }
        }
        let asked = calls(&world) - calls_before;
        assert!(asked < 400 + 60 * 6, "{asked} calls for 400 reads ({:?})", began.elapsed());
        assert!(world.backend.stats().hedged - before.hedged < 60);
    });
}
