//! What a device holds back: it begins when the device lets it, and never once its client is gone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use ovs_nbd::proto::numbers::command;
use std::rc::Rc;
use support::{Deed, Raw, World, local, request, until, write};
use tokio::sync::Semaphore;

const ESHUTDOWN: u32 = 108;

fn deed(first: u8) -> Deed {
    Deed::Write { offset: 0, first, length: 1, fua: false }
}

/// Has a write, a read and a discard held back; what they are to be answered by is open.
async fn held_back(world: &World, raw: &mut Raw) -> Rc<Semaphore> {
    let barrier = world.disk.hold_back();
    for message in
        [write(1, 0, &[1]), request(command::READ, 0, 2, 0, 512), request(command::TRIM, 0, 3, 0, 4096)]
    {
        raw.send(&message).await;
    }
    until(|| world.disk.held_back.get() == 3).await;
    barrier
}

#[test]
fn what_a_dead_client_asked_for_never_begins() {
    local(async {
        let world = World::new();
        let (mut raw, task) = world.transmitting().await;
        held_back(&world, &mut raw).await;
        drop(raw);
        task.await.unwrap();
        assert_eq!(*world.disk.deeds.borrow(), [Deed::Released]);
    });
}

#[test]
fn what_has_begun_is_carried_out_all_the_same() {
    local(async {
        let world = World::new();
        let gate = world.disk.hold();
        let (mut raw, task) = world.transmitting().await;
        raw.send(&write(9, 0, &[9])).await;
        until(|| world.disk.running.get() == 1).await;
        held_back(&world, &mut raw).await;
        drop(raw);
        // As many as there are writes: the one that was held back would take its permit.
        gate.add_permits(2);
        task.await.unwrap();
        assert_eq!(*world.disk.deeds.borrow(), [deed(9), Deed::Released]);
    });
}

#[test]
fn a_successor_s_requests_come_after_none_of_its_predecessor_s() {
    local(async {
        let world = World::new();
        let (mut old, old_task) = world.connect();
        old.go_with_session(1).await.unwrap();
        let barrier = held_back(&world, &mut old).await;
        let (mut new, _) = world.connect();
        new.go_with_session(2).await.unwrap();
        old_task.await.unwrap();
        barrier.add_permits(1);
        new.send(&write(4, 0, &[4])).await;
        assert_eq!(new.errno(4).await, 0);
        assert_eq!(*world.disk.deeds.borrow(), [Deed::Released, deed(4)]);
    });
}

#[test]
fn who_does_not_speak_the_protocol_is_waited_for_no_longer() {
    local(async {
        let world = World::new();
        let (mut raw, task) = world.transmitting().await;
        held_back(&world, &mut raw).await;
        raw.send(&[0x25; 28]).await;
        task.await.unwrap();
        assert_eq!(*world.disk.deeds.borrow(), [Deed::Released]);
    });
}

#[test]
fn a_client_that_is_forced_off_hears_that_nothing_was_done() {
    local(async {
        let world = World::new();
        let (mut raw, task) = world.transmitting().await;
        held_back(&world, &mut raw).await;
        world.disk.closed.send_replace(true);
        for cookie in 1..=3 {
            assert_eq!(raw.errno(cookie).await, ESHUTDOWN);
        }
        task.await.unwrap();
        assert_eq!(*world.disk.deeds.borrow(), [Deed::Released]);
    });
}

#[test]
fn who_has_said_goodbye_can_be_forced_off_and_succeeded() {
    for is_succeeded in [true, false] {
        local(async {
            let world = World::new();
            let (mut raw, task) = world.connect();
            raw.go_with_session(1).await.unwrap();
            held_back(&world, &mut raw).await;
            raw.send(&request(command::DISC, 0, 0, 0, 0)).await;
            support::settle().await;
            if is_succeeded {
                let (mut new, _) = world.connect();
                new.go_with_session(2).await.unwrap();
            } else {
                world.disk.closed.send_replace(true);
            }
            task.await.unwrap();
            assert_eq!(*world.disk.deeds.borrow(), [Deed::Released]);
        });
    }
}

/// That nobody takes an answer is how the death of one who said goodbye is noticed.
#[test]
fn after_an_answer_that_nobody_takes_nothing_begins() {
    local(async {
        let world = World::new();
        let (mut raw, task) = world.transmitting().await;
        let barrier = held_back(&world, &mut raw).await;
        raw.send(&request(command::DISC, 0, 0, 0, 0)).await;
        support::settle().await;
        drop(raw);
        barrier.add_permits(1);
        task.await.unwrap();
        assert_eq!(*world.disk.deeds.borrow(), [deed(1), Deed::Released]);
    });
}

#[test]
fn a_goodbye_and_a_stop_wait_for_what_is_held_back() {
    for says_goodbye in [true, false] {
        local(async {
            let world = World::new();
            let (mut raw, task) = world.transmitting().await;
            let barrier = held_back(&world, &mut raw).await;
            if says_goodbye {
                raw.send(&request(command::DISC, 0, 0, 0, 0)).await;
            } else {
                world.stop.cancel();
            }
            // Nothing may be dropped: it is looked at while it waits still.
            support::settle().await;
            barrier.add_permits(3);
            assert_eq!(raw.errno(1).await, 0);
            task.await.unwrap();
            assert_eq!(world.disk.deeds.borrow().len(), 3, "a write, a discard and the release");
        });
    }
}
