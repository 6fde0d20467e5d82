//! Clients that lie, hang up, or never read; what they cost, and that others do not notice.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use ovs_nbd::ServerOptions;
use ovs_units::ByteCount;
use proptest::prelude::*;
use std::{rc::Rc, time::Duration};
use support::{Deed, Got, SIZE, World, local, request, settle, simulated, until, write};

#[test]
fn bad_magic_ends_the_connection_and_no_other() {
    local(async {
        let world = World::new();
        let (mut good, _) = world.transmitting().await;
        let (mut bad, task) = world.transmitting().await;
        bad.send(&[0x25; 28]).await;
        assert!(bad.is_hung_up().await);
        task.await.unwrap();
        assert_eq!(world.server.stats().dropped, 1);
        good.send(&write(1, 0, &[1])).await;
        assert_eq!(good.errno(1).await, 0);
    });
}

#[test]
fn hang_ups_in_a_request_write_nothing_of_it() {
    local(async {
        let world = World::new();
        for length in [1000, 100_000] {
            let message = write(1, 0, &vec![1; length]);
            for cut in [0, 1, 27, 28, 29, message.len() / 2, message.len() - 1] {
                let (mut raw, task) = world.transmitting().await;
                raw.send(&message[..cut]).await;
                drop(raw);
                task.await.unwrap();
            }
        }
        assert!(world.disk.deeds.borrow().iter().all(|deed| *deed == Deed::Released));
        assert_eq!(world.server.stats().connections, 0);
    });
}

#[test]
fn a_hang_up_in_mid_reply_is_harmless() {
    local(async {
        let world = World::new();
        let (mut other, _) = world.transmitting().await;
        for taken in [0, 5, 30, 5000] {
            let (mut raw, task) = world.transmitting().await;
            for cookie in 0..20 {
                raw.send(&request(0, 0, cookie, 0, SIZE as u32)).await;
            }
            raw.take(taken).await;
            drop(raw);
            task.await.unwrap();
        }
        other.send(&write(1, 0, &[1])).await;
        assert_eq!(other.errno(1).await, 0);
    });
}

#[test]
fn what_runs_is_drained_before_the_connection_is_over() {
    local(async {
        let world = World::new();
        let gate = world.disk.hold();
        let (mut raw, task) = world.transmitting().await;
        raw.send(&[write(1, 0, &[1]), write(2, 4096, &[2])].concat()).await;
        until(|| world.disk.running.get() == 2).await;
        drop(raw);
        settle().await;
        assert!(!task.is_finished(), "the connection ended with writes running");
        assert!(world.disk.deeds.borrow().is_empty());
        gate.add_permits(2);
        task.await.unwrap();
        let write = |offset, first| Deed::Write { offset, first, length: 1, fua: false };
        assert_eq!(*world.disk.deeds.borrow(), [write(0, 1), write(4096, 2), Deed::Released]);
    });
}

#[test]
fn requests_run_together_up_to_the_bound() {
    local(async {
        let world = World::with(ServerOptions { requests_in_flight_max: 16, ..ServerOptions::default() });
        let gate = world.disk.hold();
        let (mut raw, _) = world.transmitting().await;
        for cookie in 0..40 {
            raw.send(&write(cookie, cookie * 10, &[cookie as u8])).await;
        }
        until(|| world.disk.running.get() == 16).await;
        settle().await;
        assert_eq!(world.disk.running.get(), 16);
        gate.add_permits(100);
        for cookie in 0..40 {
            assert_eq!(raw.errno(cookie).await, 0, "answers come in the order of completion");
        }
        assert_eq!(world.disk.running_most.get(), 16);
    });
}

#[test]
fn payload_in_flight_is_bounded_and_a_single_request_is_let_in() {
    local(async {
        let payload_in_flight_max = ByteCount(100_000);
        let world = World::with(ServerOptions { payload_in_flight_max, ..ServerOptions::default() });
        let gate = world.disk.hold();
        let (raw, _) = world.transmitting().await;
        let (mut from, mut to) = raw.stream.into_split();
        let sender = tokio::task::spawn_local(async move {
            use tokio::io::AsyncWriteExt as _;
            for (cookie, length) in [(1, 200_000), (2, 60_000), (3, 60_000), (4, 30_000)] {
                to.write_all(&write(cookie, 0, &vec![cookie as u8; length])).await.unwrap();
            }
            to
        });
        until(|| world.disk.running.get() == 1).await;
        settle().await;
        assert_eq!(world.disk.running.get(), 1, "over the bound only the first is let in");
        gate.add_permits(1);
        until(|| world.disk.deeds.borrow().len() == 1 && world.disk.running.get() == 1).await;
        settle().await;
        assert_eq!(world.disk.running.get(), 1, "60 kB and 60 kB are over the bound");
        gate.add_permits(1);
        until(|| world.disk.running.get() == 2).await;
        assert_eq!(world.disk.running.get(), 2, "60 kB and 30 kB are within it");
        gate.add_permits(9);
        let _to = sender.await.unwrap();
        use tokio::io::AsyncReadExt as _;
        from.read_exact(&mut [0; 4 * 16]).await.unwrap();
    });
}

#[test]
fn a_client_that_never_reads_is_dropped_and_disturbs_nobody() {
    local(async {
        let options = ServerOptions {
            reply_timeout: Duration::from_millis(300),
            payload_in_flight_max: ByteCount(4 << 20),
            ..ServerOptions::default()
        };
        let world = World::with(options);
        let (deaf, deaf_task) = world.transmitting().await;
        let (mut good, _) = world.transmitting().await;
        let (_from, mut to) = deaf.stream.into_split();
        let asking = tokio::task::spawn_local(async move {
            use tokio::io::AsyncWriteExt as _;
            let mut asked = 0_usize;
            while to.write_all(&request(0, 0, 1, 0, SIZE as u32)).await.is_ok() {
                asked += 1;
            }
            asked
        });
        let mut answered = 0;
        while !deaf_task.is_finished() {
            good.send(&write(answered, 0, &[1])).await;
            assert_eq!(good.errno(answered).await, 0);
            answered += 1;
        }
        deaf_task.await.unwrap();
        assert!(asking.await.unwrap() > 4, "the socket was not even full");
        let stats = world.server.stats();
        assert_eq!((stats.dropped, stats.connections), (1, 1));
        assert!(stats.requests < answered + 50, "requests were read without bound: {answered}, {stats:?}");
    });
}

#[test]
fn a_client_that_reads_slowly_is_not_dropped() {
    simulated(async {
        let reply_timeout = Duration::from_millis(200);
        let world = World::with(ServerOptions { reply_timeout, ..ServerOptions::default() });
        let (mut raw, _) = world.connect_in_memory(100_000);
        raw.transmit().await;
        raw.send(&request(0, 0, 1, 0, SIZE as u32)).await;
        let mut left = SIZE as usize + 28;
        while left > 0 {
            tokio::time::sleep(reply_timeout - Duration::from_millis(1)).await;
            let now = left.min(150_000);
            raw.take(now).await;
            left -= now;
        }
        assert_eq!(world.server.stats().dropped, 0);
    });
}

#[test]
fn a_device_that_closes_answers_what_runs_and_hangs_up() {
    local(async {
        let world = World::new();
        let gate = world.disk.hold();
        let (mut raw, task) = world.transmitting().await;
        raw.send(&write(1, 0, &[1])).await;
        until(|| world.disk.running.get() == 1).await;
        world.disk.closed.send_replace(true);
        world.disk.until_ending().await;
        raw.send(&write(2, 0, &[2])).await;
        gate.add_permits(2);
        assert_eq!(raw.errno(1).await, 0);
        assert!(raw.is_hung_up().await);
        task.await.unwrap();
        let first = Deed::Write { offset: 0, first: 1, length: 1, fua: false };
        assert_eq!(*world.disk.deeds.borrow(), [first, Deed::Released]);
    });
}

#[test]
fn a_stop_answers_what_runs_and_ends_negotiations() {
    local(async {
        let world = World::new();
        let gate = world.disk.hold();
        let (mut raw, task) = world.transmitting().await;
        let (mut half_open, half_open_task) = world.connect();
        raw.send(&write(1, 0, &[1])).await;
        until(|| world.disk.running.get() == 1).await;
        world.stop.cancel();
        assert!(half_open.is_hung_up().await);
        half_open_task.await.unwrap();
        gate.add_permits(1);
        assert_eq!(raw.reply().await, Got::Simple { errno: 0, cookie: 1 });
        assert!(raw.is_hung_up().await);
        task.await.unwrap();
        assert_eq!(Rc::strong_count(&world.disk), 2, "a connection's reference is left");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Any bytes at all, in negotiation and in transmission: the server survives, and serves the next.
    #[test]
    fn any_bytes_are_survived(
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        requests in proptest::collection::vec((0_u16..10, any::<u16>(), 0..SIZE * 2, 0_u32..200_000), 0..8),
        negotiated in any::<bool>(),
    ) {
        local(async {
            let world = World::new();
            let (raw, task) = if negotiated { world.transmitting().await } else { world.connect() };
            let (mut from, mut to) = raw.stream.into_split();
            let reading = tokio::task::spawn_local(async move {
                let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
            });
            use tokio::io::AsyncWriteExt as _;
            for (command, flags, offset, length) in requests {
                let _ = to.write_all(&request(command, flags & 31, 1, offset, length)).await;
                if command == 1 {
                    let _ = to.write_all(&vec![7; length as usize]).await;
                }
            }
            let _ = to.write_all(&noise).await;
            drop(to);
            task.await.unwrap();
            reading.await.unwrap();
            let (mut next, _) = world.transmitting().await;
            next.send(&request(3, 0, 5, 0, 0)).await;
            assert_eq!(next.errno(5).await, 0);
        });
    }
}
