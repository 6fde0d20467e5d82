//! A newer connection of a session takes over from the older one, in order.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use ovs_nbd::proto::numbers::{command, option, option_reply};
use std::time::Duration;
use support::{Deed, Got, World, local, request, session, settle, until, write};

#[test]
fn the_successor_waits_for_the_stuck_write_of_its_predecessor() {
    local(async {
        let world = World::new();
        let gate = world.disk.hold();
        // Giving back takes its time, and belongs to what the successor waits for.
        world.disk.latency.set(Duration::from_millis(20));
        let (mut old, old_task) = world.connect();
        old.go_with_session(1).await.unwrap();
        old.send(&write(1, 0, &[1])).await;
        until(|| world.disk.running.get() == 1).await;

        let (mut new, _) = world.connect();
        new.begin_session(2).await;
        let early = tokio::time::timeout(Duration::from_millis(100), new.answers(option::GO)).await;
        assert!(early.is_err(), "admitted while the older one's write runs");
        assert!(old.is_hung_up().await, "the older one is told at once");

        gate.add_permits(9);
        new.answers(option::GO).await.unwrap();
        assert!(
            world.disk.deeds.borrow().contains(&Deed::Released),
            "admitted before the older one gave back"
        );
        new.send(&write(2, 0, &[2])).await;
        assert_eq!(new.errno(2).await, 0);
        old_task.await.unwrap();
        let write = |first| Deed::Write { offset: 0, first, length: 1, fua: false };
        assert_eq!(*world.disk.deeds.borrow(), [write(1), Deed::Released, write(2)]);
        assert_eq!(world.server.stats().superseded, 1);
        let opened: Vec<_> = world.exports.opened.borrow().iter().map(|client| client.session).collect();
        assert_eq!(opened, [Some(session(1)), Some(session(2))]);
    });
}

#[test]
fn a_half_received_write_of_the_predecessor_is_never_carried_out() {
    local(async {
        for length in [1000, 100_000] {
            let world = World::new();
            let (mut old, old_task) = world.connect();
            old.go_with_session(1).await.unwrap();
            let stuck = write(1, 0, &vec![1; length]);
            old.send(&stuck[..length]).await;
            settle().await;
            let (mut new, _) = world.connect();
            new.go_with_session(2).await.unwrap();
            old.try_send(&stuck[length..]).await;
            old_task.await.unwrap();
            new.send(&write(2, 0, &[2])).await;
            assert_eq!(new.errno(2).await, 0);
            let expected = Deed::Write { offset: 0, first: 2, length: 1, fua: false };
            assert_eq!(*world.disk.deeds.borrow(), [Deed::Released, expected]);
        }
    });
}

#[test]
fn an_older_or_equal_generation_is_refused() {
    local(async {
        let world = World::new();
        let (mut live, _) = world.connect();
        live.go_with_session(5).await.unwrap();
        for generation in [0, 4, 5] {
            let (mut late, _) = world.connect();
            assert_eq!(late.go_with_session(generation).await, Err(option_reply::ERR_POLICY));
        }
        live.send(&write(1, 0, &[1])).await;
        assert_eq!(live.errno(1).await, 0, "the live one was disturbed");
    });
}

#[test]
fn who_waits_gives_way_to_a_newer_one() {
    local(async {
        let world = World::new();
        let gate = world.disk.hold();
        let (mut first, _) = world.connect();
        first.go_with_session(1).await.unwrap();
        first.send(&write(1, 0, &[1])).await;
        until(|| world.disk.running.get() == 1).await;
        let (mut second, _) = world.connect();
        second.begin_session(2).await;
        world.disk.until_ending().await;
        let (mut third, _) = world.connect();
        third.begin_session(3).await;
        assert_eq!(second.answers(option::GO).await, Err(option_reply::ERR_POLICY));
        let early = tokio::time::timeout(Duration::from_millis(50), third.answers(option::GO)).await;
        assert!(early.is_err(), "admitted while the first one's write runs");
        gate.add_permits(1);
        third.answers(option::GO).await.unwrap();
    });
}

#[test]
fn a_waiting_successor_that_hangs_up_leaves_nothing_behind() {
    local(async {
        let world = World::new();
        let gate = world.disk.hold();
        let (mut first, _) = world.connect();
        first.go_with_session(1).await.unwrap();
        first.send(&write(1, 0, &[1])).await;
        until(|| world.disk.running.get() == 1).await;
        let (mut second, second_task) = world.connect();
        second.begin_session(2).await;
        world.disk.until_ending().await;
        drop(second);
        gate.add_permits(1);
        second_task.await.unwrap();
        until(|| world.server.stats().connections == 0).await;
        assert_eq!(world.server.stats().connections, 0);
        // Every opening has its release.
        let released = world.disk.deeds.borrow().iter().filter(|deed| **deed == Deed::Released).count();
        assert_eq!(released, world.exports.opened.borrow().len());
    });
}

#[test]
fn a_session_needs_no_structured_replies() {
    local(async {
        let world = World::new();
        let (mut old, old_task) = world.connect();
        old.go_with_session(1).await.unwrap();
        // As for the kernel's NBD client: simple replies, and still the one connection of its session.
        let (mut new, _) = world.connect();
        new.greet().await;
        assert_eq!(new.select("disk", &[&session(2).to_string()]).await, [session(2).to_string()]);
        new.go("disk").await.unwrap();
        old_task.await.unwrap();
        assert_eq!(world.server.stats().superseded, 1);
        new.send(&request(command::READ, 0, 7, 0, 512)).await;
        assert_eq!(new.reply().await, Got::Simple { errno: 0, cookie: 7 });
        assert_eq!(new.take(512).await.len(), 512);
        // Its context has no block status.
        new.send(&request(command::BLOCK_STATUS, 0, 8, 0, 512)).await;
        assert_ne!(new.errno(8).await, 0);
    });
}
