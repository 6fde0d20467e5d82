//! The way to TLS, with clients that leave it; and both ends over TCP.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/authority.rs"]
mod authority;
mod support;

use authority::{Authority, stranger};
use bytes::Bytes;
use ovs_nbd::{
    Client, ClientError, ClientOptions, Endpoint, Peer, Secured, ServerOptions, TlsGate, accept_tcp,
    proto::numbers::{option, option_reply},
    serve_secured, serve_secured_connection,
};
use ovs_units::{ByteCount, ByteOffset};
use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use support::{Deed, Raw, SIZE, World, local, range, request, session, settle, until, write};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, ServerConfig, pki_types::ServerName},
};
use tokio_util::sync::CancellationToken;

const TLS_REQD: u32 = option_reply::ERR_TLS_REQD;
const INVALID: u32 = option_reply::ERR_INVALID;

/// A server behind a gate, and connections to it that need no port.
struct House {
    world: World,
    servers: Authority,
    gate: Arc<TlsGate>,
}

impl House {
    fn new() -> House {
        House::with(ServerOptions::default(), None)
    }

    fn with(options: ServerOptions, clients: Option<&Authority>) -> House {
        let servers = Authority::new("servers");
        let config = servers.server(clients);
        let gate = TlsGate::new(&options, Box::new(move || Arc::clone(&config)));
        House { world: World::with(options), servers, gate }
    }

    /// A connection before its first byte, and the server's task for it: true when it came through the gate.
    fn connect(&self) -> (Raw, JoinHandle<bool>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (gate, stop) = (Arc::clone(&self.gate), self.world.stop.clone());
        let (server, exports) = (Rc::clone(&self.world.server), Rc::clone(&self.world.exports));
        let task = tokio::task::spawn_local(async move {
            let peer = SocketAddr::from(([192, 0, 2, 7], 7));
            let secured: Option<Secured<UnixStream>> = gate.pass(theirs, peer, &stop).await;
            let Some(secured) = secured else { return false };
            serve_secured_connection(server, secured, exports, stop).await;
            true
        });
        (Raw { stream: ours }, task)
    }

    fn stranger(&self) -> Arc<ClientConfig> {
        stranger(&self.servers)
    }
}

async fn handshake(raw: Raw, config: Arc<ClientConfig>) -> std::io::Result<Raw<TlsStream<UnixStream>>> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    Ok(Raw { stream: TlsConnector::from(config).connect(name, raw.stream).await? })
}

async fn secured(mut raw: Raw, config: Arc<ClientConfig>) -> Raw<TlsStream<UnixStream>> {
    raw.greet().await;
    assert_eq!(raw.ask(option::STARTTLS, &[]).await, Ok(vec![]));
    handshake(raw, config).await.unwrap()
}

#[test]
fn before_tls_there_is_nothing_but_tls() {
    local(async {
        let house = House::new();
        let (mut raw, task) = house.connect();
        raw.greet().await;
        let cases = [
            ("list", option::LIST, vec![], TLS_REQD),
            ("list with data", option::LIST, vec![1], TLS_REQD),
            ("info", option::INFO, Raw::info_request("disk", &[]), TLS_REQD),
            ("go", option::GO, Raw::info_request("disk", &[]), TLS_REQD),
            ("go with nonsense", option::GO, vec![255; 9], TLS_REQD),
            ("structured replies", option::STRUCTURED_REPLY, vec![], TLS_REQD),
            ("contexts", option::LIST_META_CONTEXT, vec![], TLS_REQD),
            ("contexts", option::SET_META_CONTEXT, vec![], TLS_REQD),
            ("an unknown option", 77, vec![1, 2, 3], TLS_REQD),
            ("TLS with data", option::STARTTLS, vec![22, 3, 1], INVALID),
            ("an option larger than is read", 77, vec![0; 100_000], option_reply::ERR_TOO_BIG),
            (
                "TLS with more data than is read",
                option::STARTTLS,
                vec![0; 100_000],
                option_reply::ERR_TOO_BIG,
            ),
        ];
        for (name, option, data, expected) in cases {
            assert_eq!(raw.ask(option, &data).await, Err(expected), "{name}");
        }
        assert_eq!(raw.ask(option::STARTTLS, &[]).await, Ok(vec![]));
        let mut raw = handshake(raw, house.stranger()).await.unwrap();

        // What was asked for in the clear counts for nothing.
        let data = ["base:allocation".to_owned()];
        let mut contexts = Vec::new();
        ovs_nbd::proto::handshake::MetaContextRequest { name: "disk".into(), queries: data.to_vec() }
            .format(&mut contexts);
        assert_eq!(raw.ask(option::SET_META_CONTEXT, &contexts).await, Err(INVALID));
        assert_eq!(raw.ask(option::STARTTLS, &[]).await, Err(INVALID), "TLS within TLS");
        raw.structured().await;
        assert_eq!(raw.select("disk", &["base:allocation"]).await, ["base:allocation"]);
        raw.go("disk").await.unwrap();
        let peer = house.world.exports.opened.borrow()[0].peer;
        assert!(matches!(peer, Some(Peer::Remote(address)) if address.port() == 7), "{peer:?}");

        raw.send(&write(1, 4096, &[7; 4096])).await;
        assert_eq!(raw.errno(1).await, 0);
        raw.send(&request(2, 0, 2, 0, 0)).await;
        // TLS says goodbye: the client can tell the end from a cut.
        let mut rest = Vec::new();
        raw.stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty() && task.await.unwrap());
        assert_eq!(house.world.disk.bytes.borrow()[4096], 7);
        assert_eq!(house.world.disk.deeds.borrow().last(), Some(&Deed::Released));
    });
}

#[test]
fn what_cannot_be_answered_before_tls_ends_the_connection() {
    async fn check(name: &str, greet: bool, bytes: &[u8]) {
        let house = House::new();
        let (mut raw, task) = house.connect();
        if greet {
            raw.greet().await;
        }
        raw.try_send(bytes).await;
        assert!(raw.is_hung_up().await, "{name}");
        assert!(!task.await.unwrap(), "{name}");
        assert!(house.world.exports.opened.borrow().is_empty(), "{name}");
    }
    fn message(option: u32, length: u32, data: &[u8]) -> Vec<u8> {
        let mut message = b"IHAVEOPT".to_vec();
        message.extend(option.to_be_bytes());
        message.extend(length.to_be_bytes());
        message.extend(data);
        message
    }
    local(async {
        check("flags that were not offered", false, &[0, 0, 0, 8]).await;
        check("TLS without NBD", false, &[22, 3, 1, 2, 0, 1, 0, 1]).await;
        check("HTTP", true, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        check("an export's name", true, &message(option::EXPORT_NAME, 4, b"disk")).await;
        check("an endless name", true, &message(option::EXPORT_NAME, 1 << 20, b"")).await;
        check("an endless option", true, &message(option::LIST, u32::MAX, b"")).await;
        check("goodbye", true, &message(option::ABORT, 0, b"")).await;
    });
}

#[test]
fn what_is_put_behind_starttls_in_the_clear_is_not_taken_for_tls() {
    local(async {
        let go = {
            let data = Raw::info_request("disk", &[]);
            let mut message = b"IHAVEOPT".to_vec();
            message.extend(option::GO.to_be_bytes());
            message.extend((data.len() as u32).to_be_bytes());
            message.extend(data);
            message
        };
        let mut start_tls = b"IHAVEOPT\0\0\0\x05".to_vec();
        start_tls.extend([0; 4]);
        // In one segment with STARTTLS, so that a server that reads ahead would have it.
        for injected in [go.clone(), b"x".to_vec(), vec![0; 70_000]] {
            let house = House::new();
            let (mut raw, task) = house.connect();
            raw.greet().await;
            raw.try_send(&[start_tls.clone(), injected].concat()).await;
            assert_eq!(raw.answers(option::STARTTLS).await, Ok(vec![]));
            assert!(handshake(raw, house.stranger()).await.is_err());
            assert!(!task.await.unwrap());
            assert!(house.world.exports.opened.borrow().is_empty());
        }
    });
}

#[test]
fn a_client_that_goes_in_the_middle_of_the_handshake_leaves_nothing() {
    // The first bytes of a client hello: its record says that 512 bytes follow.
    const HALF_A_HELLO: [u8; 9] = [22, 3, 1, 2, 0, 1, 0, 1, 0xfc];
    local(async {
        let options =
            ServerOptions { negotiation_timeout: Duration::from_millis(200), ..ServerOptions::default() };
        let house = House::with(options, None);
        for hello in [&[][..], &HALF_A_HELLO] {
            let (mut raw, task) = house.connect();
            raw.greet().await;
            assert_eq!(raw.ask(option::STARTTLS, &[]).await, Ok(vec![]));
            raw.send(hello).await;
            drop(raw);
            assert!(!task.await.unwrap(), "gone");
        }
        let (mut raw, task) = house.connect();
        raw.greet().await;
        assert_eq!(raw.ask(option::STARTTLS, &[]).await, Ok(vec![]));
        raw.send(&HALF_A_HELLO).await;
        assert!(!task.await.unwrap(), "silent");
        let (raw, task) = house.connect();
        assert!(!task.await.unwrap(), "silent from the start");
        drop(raw);
    });
}

#[test]
fn half_open_connections_keep_nobody_out() {
    local(async {
        let options = ServerOptions { negotiating_max: 8, ..ServerOptions::default() };
        let house = House::with(options, None);
        let mut crowd = Vec::new();
        for _ in 0..100 {
            let (mut raw, task) = house.connect();
            raw.greet().await;
            raw.option(option::STARTTLS, &[]).await;
            crowd.push((raw, task));
        }
        let (raw, _task) = house.connect();
        let mut raw = secured(raw, house.stranger()).await;
        raw.go("disk").await.unwrap();
        let ended = crowd.iter().filter(|(_, task)| task.is_finished()).count();
        assert!(ended >= 92, "{ended} of 100 were ended");
    });
}

#[test]
fn only_clients_of_the_right_authority_get_in() {
    local(async {
        let (clients, others) = (Authority::new("clients"), Authority::new("others"));
        let house = House::with(ServerOptions::default(), Some(&clients));
        let (raw, task) = house.connect();
        let mut raw = secured(raw, clients.client(&house.servers)).await;
        raw.go("disk").await.unwrap();
        drop(raw);
        assert!(task.await.unwrap());
        for (name, config) in [("none", house.stranger()), ("another's", others.client(&house.servers))] {
            let (raw, task) = house.connect();
            // With TLS 1.3 the client's part of the handshake is done before the server looks at its certificate.
            let mut raw = secured(raw, config).await;
            raw.try_go("disk").await;
            assert!(raw.stream.read_u8().await.is_err(), "{name}");
            assert!(!task.await.unwrap(), "{name}");
        }
        assert_eq!(house.world.exports.opened.borrow().len(), 1);
    });
}

#[test]
fn a_client_that_does_not_read_is_dropped_through_tls_too() {
    local(async {
        let options = ServerOptions { reply_timeout: Duration::from_millis(300), ..ServerOptions::default() };
        let house = House::with(options, None);
        let (raw, task) = house.connect();
        let mut raw = secured(raw, house.stranger()).await;
        raw.go("disk").await.unwrap();
        for cookie in 0..32 {
            raw.send(&request(0, 0, cookie, 0, SIZE as u32)).await;
        }
        assert!(task.await.unwrap());
        assert_eq!(house.world.server.stats().dropped, 1);
    });
}

fn tls(address: SocketAddr, config: Arc<ClientConfig>) -> Endpoint {
    Endpoint::Tls { host: "127.0.0.1".into(), port: address.port(), config }
}

#[test]
fn the_end_of_an_answer_does_not_stay_in_tls() {
    local(async {
        let house = House::new();
        let (raw, _task) = house.connect();
        let mut raw = secured(raw, house.stranger()).await;
        raw.go("disk").await.unwrap();
        // Some of them fill the socket, so that the last of the answer fits into TLS alone when it is written.
        for length in (1..32).map(|step| step * (16 << 10)) {
            raw.send(&request(0, 0, 1, 0, length)).await;
            settle().await;
            assert_eq!(raw.errno(1).await, 0);
            raw.take(length as usize).await;
        }
    });
}

/// A way to a port that can be cut in two.
async fn relay(to: SocketAddr) -> (SocketAddr, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, cut) = (listener.local_addr().unwrap(), Arc::new(Notify::new()));
    let is_cut = Arc::clone(&cut);
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                () = is_cut.notified() => {}
            }
        }
    });
    (address, cut)
}

/// A server on a TCP port of its own.
struct Port {
    world: World,
    address: SocketAddr,
    serving: JoinHandle<()>,
    accepting: JoinHandle<()>,
}

impl Port {
    async fn open(config: Arc<ServerConfig>) -> Port {
        let world = World::new();
        let gate = TlsGate::new(&ServerOptions::default(), Box::new(move || Arc::clone(&config)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (passed, connections) = mpsc::channel(4);
        let accepting = tokio::spawn(accept_tcp(gate, listener, passed, world.stop.clone()));
        let (server, exports) = (Rc::clone(&world.server), Rc::clone(&world.exports));
        let serving =
            tokio::task::spawn_local(serve_secured(server, connections, exports, world.stop.clone()));
        Port { world, address, serving, accepting }
    }

    fn options(&self, config: Arc<ClientConfig>) -> ClientOptions {
        ClientOptions {
            session: Some(session(1)),
            patience: Some(Duration::from_secs(5)),
            ..ClientOptions::new(tls(self.address, config), "disk")
        }
    }

    async fn stop(self) -> World {
        self.world.stop.cancel();
        self.serving.await.unwrap();
        self.accepting.await.unwrap();
        self.world
    }
}

#[test]
fn our_client_speaks_through_tls_and_comes_back() {
    local(async {
        let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
        let port = Port::open(servers.server(Some(&clients))).await;
        let (relay, cut) = relay(port.address).await;
        let endpoint = tls(relay, clients.client(&servers));
        let options = ClientOptions { endpoint, ..port.options(stranger(&servers)) };
        let client = Client::connect(options).await.unwrap();
        assert_eq!(client.size(), ByteCount(SIZE));
        let data: Bytes = (0..SIZE).map(|at| (at % 251) as u8).collect();
        client.write(ByteOffset(0), data.clone(), false).await.unwrap();
        let reads = (0..64).map(|_| client.read(range(0, SIZE)));
        for read in futures_util::future::join_all(reads).await {
            assert_eq!(read.unwrap(), data);
        }
        cut.notify_one();
        until(|| client.stats().reconnects == 1).await;
        assert_eq!(client.read(range(0, SIZE)).await.unwrap(), data);
        client.close().await;
        let world = port.stop().await;
        assert_eq!(world.disk.deeds.borrow().last(), Some(&Deed::Released));
        assert_eq!(world.server.stats().connections, 0);
    });
}

#[test]
fn distrust_is_told_at_once() {
    local(async {
        let (servers, clients, others) =
            (Authority::new("servers"), Authority::new("clients"), Authority::new("others"));
        let port = Port::open(servers.server(Some(&clients))).await;
        for (name, config, expected) in [
            ("a server of somebody", clients.client(&others), "UnknownIssuer"),
            ("no certificate", stranger(&servers), "CertificateRequired"),
            ("a client of somebody", others.client(&servers), "alert"),
        ] {
            let options = ClientOptions { patience: None, ..port.options(config) };
            match Client::connect(options).await {
                Err(ClientError::Refused(reason)) => assert!(reason.contains(expected), "{name}: {reason}"),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(port.world.exports.opened.borrow().is_empty());
        port.stop().await;
    });
}

#[test]
fn our_client_says_nothing_to_a_server_without_tls() {
    local(async {
        let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let world = World::new();
        let (server, exports, stop) = (world.server.clone(), world.exports.clone(), world.stop.clone());
        let serving = tokio::task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            ovs_nbd::serve_connection(server, stream, None, exports, stop).await;
        });
        let endpoint = tls(address, clients.client(&servers));
        let refused = Client::connect(ClientOptions::new(endpoint, "disk")).await.unwrap_err();
        assert_eq!(refused, ClientError::Refused("no TLS on this socket".into()));
        serving.await.unwrap();
        assert!(world.exports.opened.borrow().is_empty());
    });
}

#[test]
fn stopping_ends_what_is_on_its_way() {
    local(async {
        let servers = Authority::new("servers");
        let port = Port::open(servers.server(None)).await;
        let address = port.address;
        let mut half_open = TcpStream::connect(address).await.unwrap();
        half_open.read_u64().await.unwrap();
        let client = Client::connect(port.options(stranger(&servers))).await.unwrap();
        client.flush().await.unwrap();
        let stopped = CancellationToken::new();
        let waiting = tokio::spawn({
            let stopped = stopped.clone();
            async move {
                let _ = half_open.read_to_end(&mut Vec::new()).await;
                let _ = half_open.shutdown().await;
                stopped.cancel();
            }
        });
        drop(client);
        port.stop().await;
        waiting.await.unwrap();
        assert!(stopped.is_cancelled());
    });
}
