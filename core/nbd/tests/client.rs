//! The client against the server, and against servers that lie.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::Bytes;
use ovs_nbd::{
    Client, ClientError, ClientOptions, Extent, NbdError, OpenError, Server, ServerOptions, serve_unix,
};
use ovs_units::{ByteCount, ByteOffset};
use std::{path::PathBuf, rc::Rc, time::Duration};
use support::{Deed, OneDisk, Ram, SIZE, local, range, session, settle, until};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// A server on a socket file that can be killed and started again.
struct House {
    dir: TempDir,
    disk: Rc<Ram>,
    exports: Rc<OneDisk>,
    serving: Option<(JoinHandle<()>, CancellationToken)>,
}

impl House {
    fn new() -> House {
        let disk = Ram::new();
        let exports = OneDisk::new(&disk);
        let mut house = House { dir: TempDir::new().unwrap(), disk, exports, serving: None };
        house.start();
        house
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    fn start(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let listener = UnixListener::bind(self.socket()).unwrap();
        let (server, stop) = (Server::new(ServerOptions::default()), CancellationToken::new());
        let serving = serve_unix(server, listener, Rc::clone(&self.exports), stop.clone());
        self.serving = Some((tokio::task::spawn_local(serving), stop));
    }

    /// As `kill -9`: whatever runs is cut off where it waits.
    async fn kill(&mut self) {
        let (task, _) = self.serving.take().unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        // The tasks of the connections are dropped when the thread comes by.
        until(|| Rc::strong_count(&self.exports) == 1).await;
    }

    async fn stop(&mut self) {
        let (task, stop) = self.serving.take().unwrap();
        stop.cancel();
        task.await.unwrap();
    }

    fn options(&self, generation: u64) -> ClientOptions {
        ClientOptions { session: Some(session(generation)), ..ClientOptions::new(self.socket(), "disk") }
    }

    async fn client(&self) -> Client {
        Client::connect(self.options(1)).await.unwrap()
    }
}

fn filled(byte: u8, length: usize) -> Bytes {
    Bytes::from(vec![byte; length])
}

fn is_send_and_sync<T: Send + Sync + Clone + 'static>(_: &T) {}

#[test]
fn every_operation_works() {
    local(async {
        let house = House::new();
        let client = house.client().await;
        is_send_and_sync(&client);
        assert_eq!((client.size(), client.read_only()), (ByteCount(SIZE), false));
        for (offset, length) in
            [(0, 1), (4095, 2), (10, 5000), (100, 40_000), (77, 500_000), (0, SIZE as usize)]
        {
            let data: Bytes = (0..length).map(|at| (at % 251) as u8 + 1).collect();
            client.write(ByteOffset(offset), data.clone(), offset == 10).await.unwrap();
            assert_eq!(client.read(range(offset, length as u64)).await.unwrap(), data);
        }
        client.zero(range(5, 10), true).await.unwrap();
        client.trim(range(50, 10), false).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(client.read(range(5, 10)).await.unwrap(), filled(0, 10));
        client.zero(range(0, SIZE), false).await.unwrap();
        client.write(ByteOffset(4096), filled(1, 4096), false).await.unwrap();
        let extents = client.block_status(range(0, 10_000)).await.unwrap();
        let (hole, data) = (Extent::hole(ByteCount(4096)), Extent::data(ByteCount(4096)));
        assert_eq!(extents, [hole, data, Extent::hole(ByteCount(1808))]);
        assert!(client.read(range(SIZE, 0)).await.unwrap().is_empty());
        assert_eq!(client.block_status(range(0, 0)).await.unwrap(), []);
        client.close().await;
        assert_eq!(client.flush().await, Err(ClientError::Closed));
        until(|| house.disk.deeds.borrow().last() == Some(&Deed::Released)).await;
        assert_eq!(house.disk.deeds.borrow().last(), Some(&Deed::Released));
    });
}

#[test]
fn holes_are_read_as_zeros() {
    local(async {
        let house = House::new();
        house.disk.sparse.set(true);
        let client = house.client().await;
        client.write(ByteOffset(8192), filled(9, 4096), false).await.unwrap();
        let expected = [filled(0, 8192), filled(9, 4096), filled(0, 100_000)].concat();
        assert_eq!(client.read(range(0, 112_288)).await.unwrap(), expected);
        assert_eq!(client.read(range(16384, 4096)).await.unwrap(), filled(0, 4096));
    });
}

#[test]
fn errors_of_a_request_are_its_own() {
    local(async {
        let house = House::new();
        let client = house.client().await;
        let past = client.write(ByteOffset(SIZE), filled(1, 1), false).await;
        assert!(matches!(past, Err(ClientError::Request(NbdError::NoSpace(_)))), "{past:?}");
        let past = client.read(range(SIZE, 1)).await;
        assert!(matches!(past, Err(ClientError::Request(NbdError::Invalid(_)))), "{past:?}");
        let large = client.read(range(0, (32 << 20) + 1)).await;
        assert!(matches!(large, Err(ClientError::Request(NbdError::Invalid(_)))), "{large:?}");
        *house.disk.fail.borrow_mut() = Some(NbdError::Io("broken".into()));
        let error = ClientError::Request(NbdError::Io("broken".into()));
        assert_eq!(client.flush().await, Err(error.clone()));
        assert_eq!(client.read(range(0, 1)).await, Err(error.clone()));
        assert_eq!(client.block_status(range(0, 1)).await, Err(error));
        *house.disk.fail.borrow_mut() = None;
        client.flush().await.unwrap();
        assert_eq!(client.stats().reconnects, 0);
    });
}

#[test]
fn requests_run_together_and_are_bounded() {
    local(async {
        let house = House::new();
        let gate = house.disk.hold();
        let options = ClientOptions { requests_max: 7, ..house.options(1) };
        let client = Client::connect(options).await.unwrap();
        let writes: Vec<_> = (0..20)
            .map(|index| {
                let client = client.clone();
                tokio::spawn(async move { client.write(ByteOffset(index * 10), filled(1, 10), false).await })
            })
            .collect();
        until(|| house.disk.running.get() == 7).await;
        settle().await;
        assert_eq!((house.disk.running.get(), client.stats().in_flight), (7, 7));
        gate.add_permits(100);
        for write in writes {
            write.await.unwrap().unwrap();
        }
        assert_eq!(house.disk.running_most.get(), 7);
    });
}

#[test]
fn payload_is_bounded_and_one_large_request_is_let_in() {
    local(async {
        let house = House::new();
        let gate = house.disk.hold();
        let options = ClientOptions { payload_max: ByteCount(64 << 10), ..house.options(1) };
        let client = Client::connect(options).await.unwrap();
        let writes: Vec<_> = [200_000, 40_000, 40_000]
            .map(|length| {
                let client = client.clone();
                tokio::spawn(async move { client.write(ByteOffset(0), filled(1, length), false).await })
            })
            .into();
        for done in 0..3 {
            until(|| house.disk.deeds.borrow().len() == done && house.disk.running.get() == 1).await;
            settle().await;
            assert_eq!(house.disk.running.get(), 1);
            gate.add_permits(1);
        }
        for write in writes {
            write.await.unwrap().unwrap();
        }
    });
}

#[test]
fn a_dropped_future_does_not_withdraw_its_request_nor_leak_its_place() {
    local(async {
        let house = House::new();
        let gate = house.disk.hold();
        let options = ClientOptions { requests_max: 2, ..house.options(1) };
        let client = Client::connect(options).await.unwrap();
        for _ in 0..2 {
            let write = client.write(ByteOffset(0), filled(1, 1), false);
            assert!(tokio::time::timeout(Duration::from_millis(50), write).await.is_err());
        }
        gate.add_permits(3);
        client.write(ByteOffset(1), filled(2, 1), false).await.unwrap();
        assert_eq!(house.disk.bytes.borrow()[..2], [1, 2]);
    });
}

#[test]
fn what_was_in_flight_when_the_server_died_is_sent_again_in_order() {
    local(async {
        let mut house = House::new();
        let client = house.client().await;
        client.write(ByteOffset(0), filled(1, 10), false).await.unwrap();
        let _gate = house.disk.hold();
        let mut writes = Vec::new();
        for index in 2..10_u8 {
            let client = client.clone();
            // Some of them large, all over the same place: only the order makes it right.
            let length = if index % 2 == 0 { 10 } else { 50_000 };
            writes.push(tokio::task::spawn_local(async move {
                client.write(ByteOffset(0), filled(index, length), index % 3 == 0).await
            }));
            tokio::task::yield_now().await;
        }
        until(|| house.disk.running.get() == 8).await;
        house.kill().await;
        assert_eq!(house.disk.deeds.borrow().len(), 1, "a killed server went on");
        *house.disk.gate.borrow_mut() = None;
        settle().await;
        house.start();
        for write in writes {
            write.await.unwrap().unwrap();
        }
        let stats = client.stats();
        assert_eq!((stats.reconnects, stats.resent_requests, stats.in_flight), (1, 8, 0));
        let deeds = house.disk.deeds.borrow();
        let firsts: Vec<u8> = deeds
            .iter()
            .filter_map(|deed| match deed {
                Deed::Write { first, fua, length, .. } => {
                    let resent = *first > 1;
                    assert!(!resent || (*fua, *length == 10) == (first % 3 == 0, first % 2 == 0));
                    Some(*first)
                }
                _ => None,
            })
            .collect();
        assert_eq!(firsts, (1..10).collect::<Vec<u8>>());
        assert!(client.generation() > session(1).generation);
    });
}

/// The promise under a server that dies again and again: nothing acknowledged is lost, nothing old comes back.
#[test]
fn no_acknowledged_write_is_lost_or_reordered_over_many_deaths() {
    local(async {
        let mut house = House::new();
        house.disk.latency.set(Duration::from_millis(1));
        let client = house.client().await;
        let writers: Vec<_> = (0..16_u64)
            .map(|block| {
                let client = client.clone();
                tokio::spawn(async move {
                    // Large and small ones, so that deaths hit half-sent payloads too.
                    let length = if block % 4 == 0 { 60_000 } else { 4096 };
                    for version in 1..=100_u8 {
                        client
                            .write(ByteOffset(block << 16), filled(version, length), version % 5 == 0)
                            .await
                            .unwrap();
                        let back = client.read(range(block << 16, length as u64)).await.unwrap();
                        assert_eq!(back, filled(version, length), "block {block}");
                    }
                })
            })
            .collect();
        for death in 0..12 {
            // Sooner and later after the last one, and all of them long before the writers are done.
            let deeds = house.disk.deeds.borrow().len() + 3 + death * 7 % 20;
            until(|| client.stats().connected && house.disk.deeds.borrow().len() >= deeds).await;
            if death % 3 == 2 {
                house.stop().await;
            } else {
                house.kill().await;
            }
            house.start();
        }
        for writer in writers {
            writer.await.unwrap();
        }
        let stats = client.stats();
        assert!(stats.reconnects >= 10 && stats.resent_requests > 0, "{stats:?}");
        let mut newest = [0_u8; 16];
        for deed in house.disk.deeds.borrow().iter() {
            if let Deed::Write { offset, first, .. } = deed {
                let newest = &mut newest[(offset >> 16) as usize];
                assert!(first >= newest, "version {first} after {newest} at {offset}");
                *newest = *first;
            }
        }
        assert_eq!(newest, [100; 16]);
    });
}

#[test]
fn a_stopped_server_answers_what_runs_and_the_client_goes_on_with_the_next() {
    local(async {
        let mut house = House::new();
        let client = house.client().await;
        let gate = house.disk.hold();
        let write = tokio::spawn({
            let client = client.clone();
            async move { client.write(ByteOffset(0), filled(1, 1), false).await }
        });
        until(|| house.disk.running.get() == 1).await;
        gate.add_permits(1);
        house.stop().await;
        write.await.unwrap().unwrap();
        until(|| !client.stats().connected).await;
        *house.disk.gate.borrow_mut() = None;
        house.disk.bytes.borrow_mut().resize(2 * SIZE as usize, 0);
        house.start();
        client.write(ByteOffset(SIZE), filled(2, 1), false).await.unwrap();
        assert_eq!(client.size(), ByteCount(2 * SIZE), "the new size was not seen");
        assert_eq!(client.stats().resent_requests, 0);
    });
}

#[test]
fn an_answer_of_shutdown_is_a_disconnect() {
    local(async {
        let house = House::new();
        let client = house.client().await;
        *house.disk.fail.borrow_mut() = Some(NbdError::Shutdown("stopping".into()));
        let flush = tokio::spawn({
            let client = client.clone();
            async move { client.flush().await }
        });
        let since = tokio::time::Instant::now();
        until(|| house.exports.opened.borrow().len() == 4).await;
        let elapsed = since.elapsed();
        assert!(!flush.is_finished());
        assert!(elapsed >= Duration::from_millis(150), "{elapsed:?}: no pause between the attempts");
        *house.disk.fail.borrow_mut() = None;
        flush.await.unwrap().unwrap();
    });
}

#[test]
fn patience_has_an_end_and_then_everything_fails() {
    local(async {
        let mut house = House::new();
        let options = ClientOptions { patience: Some(Duration::from_millis(200)), ..house.options(1) };
        let client = Client::connect(options).await.unwrap();
        let _gate = house.disk.hold();
        let write = tokio::spawn({
            let client = client.clone();
            async move { client.write(ByteOffset(0), filled(1, 1), false).await }
        });
        until(|| house.disk.running.get() == 1).await;
        house.kill().await;
        assert!(matches!(write.await.unwrap(), Err(ClientError::Disconnected(_))));
        assert!(matches!(client.flush().await, Err(ClientError::Disconnected(_))));
        client.close().await;
    });
}

#[test]
fn without_a_session_nothing_is_sent_again() {
    local(async {
        let mut house = House::new();
        let client = Client::connect(ClientOptions::new(house.socket(), "")).await.unwrap();
        assert_eq!(house.exports.opened.borrow()[0].session, None);
        client.flush().await.unwrap();
        house.kill().await;
        house.start();
        assert!(matches!(client.flush().await, Err(ClientError::Disconnected(_))));
    });
}

#[test]
fn the_first_connection_waits_for_the_server_and_ends_at_a_refusal() {
    local(async {
        let mut house = House::new();
        house.stop().await;
        let mut options = house.options(1);
        options.patience = Some(Duration::from_millis(150));
        assert!(matches!(Client::connect(options.clone()).await, Err(ClientError::Disconnected(_))));
        options.patience = None;
        let connecting = tokio::spawn(Client::connect(options.clone()));
        settle().await;
        *house.exports.refuse.borrow_mut() = Some(OpenError::Unavailable("starting".into()));
        house.start();
        until(|| house.exports.refused.get() > 0).await;
        *house.exports.refuse.borrow_mut() = None;
        connecting.await.unwrap().unwrap().flush().await.unwrap();
        for refusal in [OpenError::NotFound("gone".into()), OpenError::Denied("fenced".into())] {
            *house.exports.refuse.borrow_mut() = Some(refusal.clone());
            let refused = ClientError::Refused(refusal.to_string());
            assert_eq!(Client::connect(options.clone()).await.unwrap_err(), refused);
        }
    });
}

#[test]
fn a_refusal_at_a_reconnect_is_final() {
    local(async {
        let mut house = House::new();
        let client = house.client().await;
        client.flush().await.unwrap();
        *house.exports.refuse.borrow_mut() = Some(OpenError::Denied("fenced".into()));
        house.kill().await;
        house.start();
        assert_eq!(client.flush().await, Err(ClientError::Refused("fenced".into())));
    });
}

#[test]
fn the_last_handle_ends_the_connection_when_all_is_answered() {
    local(async {
        let house = House::new();
        let gate = house.disk.hold();
        let client = house.client().await;
        let write = tokio::spawn(async move { client.write(ByteOffset(0), filled(1, 1), false).await });
        until(|| house.disk.running.get() == 1).await;
        gate.add_permits(1);
        write.await.unwrap().unwrap();
        until(|| house.disk.deeds.borrow().last() == Some(&Deed::Released)).await;
        assert_eq!(house.disk.deeds.borrow().last(), Some(&Deed::Released));
    });
}

#[test]
fn a_closed_client_does_not_wait_for_a_server_that_nobody_needs() {
    local(async {
        let mut house = House::new();
        let options = ClientOptions { patience: None, ..house.options(1) };
        let client = Client::connect(options).await.unwrap();
        house.kill().await;
        client.close().await;
    });
}

/// Servers that say anything at all after a good negotiation: the request survives until a good server answers.
#[test]
fn lies_of_a_server_are_a_disconnect() {
    fn chunk(kind: u16, flags: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u32;
        let head = [&0x668e33ef_u32.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
        [&head[..], &cookie.to_be_bytes(), &length.to_be_bytes(), payload].concat()
    }
    async fn check(name: &str, lie: Vec<u8>) {
        let mut house = House::new();
        house.stop().await;
        std::fs::remove_file(house.socket()).unwrap();
        // Between client and server, a liar takes the place of the first answer.
        let front = house.dir.path().join("front.sock");
        let listener = UnixListener::bind(&front).unwrap();
        house.start();
        let behind = house.socket();
        let lying = tokio::spawn(async move {
            let mut lie = Some(lie);
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = tokio::net::UnixStream::connect(&behind).await.unwrap();
                let lie = lie.take();
                tokio::spawn(async move {
                    let Some(lie) = lie else {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                        return;
                    };
                    let (mut buffer, mut back) = (vec![0; 4096], vec![0; 4096]);
                    // The negotiation is passed on; the first message that is a request is answered with the lie.
                    loop {
                        tokio::select! {
                            Ok(count) = client.read(&mut buffer) => {
                                if count == 0 || buffer.starts_with(&[0x25, 0x60, 0x95, 0x13]) {
                                    let _ = client.write_all(&lie).await;
                                    let _ = client.shutdown().await;
                                    return;
                                }
                                server.write_all(&buffer[..count]).await.unwrap();
                            }
                            Ok(count) = server.read(&mut back) => client.write_all(&back[..count]).await.unwrap(),
                        }
                    }
                });
            }
        });
        let options = ClientOptions { endpoint: front.into(), ..house.options(1) };
        let client = Client::connect(options).await.unwrap();
        house.disk.bytes.borrow_mut()[..4096].fill(7);
        assert_eq!(client.read(range(0, 4096)).await.unwrap(), filled(7, 4096), "{name}");
        assert_eq!(client.stats().reconnects, 1, "{name}");
        lying.abort();
    }
    local(async {
        let at = |offset: u64, length: usize| [&offset.to_be_bytes()[..], &vec![1; length]].concat();
        check("nothing", vec![]).await;
        check("noise", vec![0x42; 100]).await;
        check("half a header", chunk(1, 1, 1, &at(0, 4096))[..10].to_vec()).await;
        check("half an answer", chunk(1, 1, 1, &at(0, 4096))[..2000].to_vec()).await;
        check("another cookie", chunk(1, 1, 99, &at(0, 4096))).await;
        check("too little data", chunk(1, 1, 1, &at(0, 4095))).await;
        check("too much data", chunk(1, 1, 1, &at(0, 4097))).await;
        check("data of elsewhere", chunk(1, 1, 1, &at(4096, 4096))).await;
        check("data before the start", chunk(1, 1, 1, &at(u64::MAX, 10))).await;
        check("the same data twice", [chunk(1, 0, 1, &at(0, 4096)), chunk(1, 1, 1, &at(0, 4096))].concat())
            .await;
        check("a data chunk without an offset", chunk(1, 1, 1, &[0; 7])).await;
        check("no data", chunk(0, 1, 1, &[])).await;
        check(
            "a hole too large",
            chunk(2, 1, 1, &[&0_u64.to_be_bytes()[..], &5000_u32.to_be_bytes()].concat()),
        )
        .await;
        check("a chunk of an unknown kind", chunk(77, 1, 1, &[])).await;
        check("an error without a number", chunk(0x8001, 1, 1, &[0; 6])).await;
        check("an error with less text than it says", chunk(0x8001, 1, 1, &[0, 0, 0, 5, 1, 0])).await;
        check("a chunk of 4 GiB", [&chunk(5, 1, 1, &[])[..16], &[255; 4]].concat()).await;
        check(
            "a well-sent read in the simple form",
            [&0x67446698_u32.to_be_bytes()[..], &[0; 11], &[1]].concat(),
        )
        .await;
    });
}

#[test]
fn a_connection_can_be_negotiated_for_someone_else() {
    local(async {
        let mut house = House::new();
        let given = ovs_nbd::negotiate(&house.socket(), "disk", session(1)).await.unwrap();
        assert_eq!(given.size, ByteCount(SIZE));
        assert_ne!(given.flags & ovs_nbd::proto::numbers::export_flag::SEND_FUA, 0);
        let mut stream = tokio::net::UnixStream::from_std(given.stream).unwrap();
        stream.write_all(&support::request(0, 0, 5, 0, 4096)).await.unwrap();
        let mut reply = vec![0; 16 + 4096];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes(), "a simple reply");

        let refused = ovs_nbd::negotiate(&house.socket(), "other", session(2)).await.unwrap_err();
        assert!(matches!(refused, ClientError::Refused(_)), "{refused}");
        house.kill().await;
        std::fs::remove_file(house.socket()).unwrap();
        let away = ovs_nbd::negotiate(&house.socket(), "disk", session(3)).await.unwrap_err();
        assert!(matches!(away, ClientError::Disconnected(_)), "{away}");
    });
}
