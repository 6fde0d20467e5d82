//! What anyone who can reach the socket may send. The plugin answers or hangs up, and everyone else is served.

#![allow(clippy::unwrap_used, reason = "a test: what fails is the test")]

use ovs_docker::{
    message::{Answer, Request},
    server::{self, BODY_BYTES_MAX, Plugin},
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Notify,
    time::timeout,
};

/// Answers with what it understood. A Mount waits for `go`.
#[derive(Default)]
struct Echo {
    go: Notify,
    mounts_begun: AtomicU64,
    mounts_ended: AtomicU64,
    abandoned: AtomicU64,
}

impl Plugin for Echo {
    async fn call(&self, request: Request) -> Result<Answer, String> {
        match request {
            Request::Activate => Ok(Answer::activate()),
            Request::Mount(name, _) => {
                self.mounts_begun.fetch_add(1, Ordering::SeqCst);
                self.go.notified().await;
                self.mounts_ended.fetch_add(1, Ordering::SeqCst);
                Ok(Answer::mountpoint(format!("/{name}")))
            }
            Request::Path(name) => Ok(Answer::mountpoint(format!("/{name}"))),
            Request::Get(_) => panic!("a defect of ours"),
            other => Err(format!("{other:?}")),
        }
    }

    async fn abandoned(&self, _: Request, _: Answer) {
        self.abandoned.fetch_add(1, Ordering::SeqCst);
    }
}

struct Served {
    plugin: Arc<Echo>,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

fn start() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("ovs.sock");
    let plugin = Arc::new(Echo::default());
    tokio::spawn(server::serve(UnixListener::bind(&socket).unwrap(), plugin.clone(), std::future::pending()));
    Served { plugin, socket, _directory: directory }
}

fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Sends bytes and reads until the other side closes.
async fn exchange(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // It may hang up on us before everything is sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ =
        timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("an answer in time");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn check(socket: &Path, bytes: &[u8], status: u16, part: &str) {
    let answer = exchange(socket, bytes).await;
    let shown: String = String::from_utf8_lossy(bytes).chars().take(120).collect();
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {answer}");
    assert!(answer.contains(part), "{shown}: {answer:?} lacks {part:?}");
}

async fn check_it_lives(served: &Served) {
    let asked = post("/VolumeDriver.Path", r#"{"Name":"v1"}"#);
    check(&served.socket, &asked, 200, r#"{"Mountpoint":"/v1","Err":""}"#).await;
}

#[tokio::test]
async fn well_formed_requests() {
    let served = start();
    check(&served.socket, &post("/Plugin.Activate", ""), 200, r#"{"Implements":["VolumeDriver"]}"#).await;
    check(&served.socket, &post("/VolumeDriver.List", "{}"), 500, r#"{"Err":"List"}"#).await;
    check_it_lives(&served).await;
}

#[tokio::test]
async fn requests_that_make_no_sense() {
    let served = start();
    let socket = &served.socket;
    check(socket, &post("/", "{}"), 404, "unknown method").await;
    check(socket, &post("/VolumeDriver.Mkfs", "{}"), 404, "unknown method").await;
    check(socket, &post(&format!("/{}", "x".repeat(4000)), "{}"), 404, "unknown method").await;
    check(socket, b"GET /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405, "POST")
        .await;
    for body in ["", "{", "[]", "null", r#"{"Name":7}"#, r#"{"Name":"v","Opts":[1]}"#, &"[".repeat(500_000)] {
        check(socket, &post("/VolumeDriver.Create", body), 400, "Err").await;
    }
    check(socket, &post("/VolumeDriver.Create", r#"{"Name":"../../etc/x"}"#), 400, "not allowed").await;
    check_it_lives(&served).await;
}

#[tokio::test]
async fn bodies_that_are_too_large() {
    let served = start();
    let declared = format!(
        "POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{{",
        u64::MAX / 2
    );
    let answer = exchange(&served.socket, declared.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413") || answer.is_empty(), "{answer}");

    let large = "x".repeat(BODY_BYTES_MAX + 1);
    check(&served.socket, &post("/VolumeDriver.Create", &large), 413, "1 MiB").await;

    let mut chunked =
        b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..40 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(&[b'x'; 0x10000]);
        chunked.extend_from_slice(b"\r\n");
    }
    let answer = exchange(&served.socket, &chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413") || answer.is_empty(), "{answer}");
    check_it_lives(&served).await;
}

#[tokio::test]
async fn bytes_that_are_no_http() {
    let served = start();
    let endless_header = format!("POST /VolumeDriver.List HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    let many_headers = format!("POST /VolumeDriver.List HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(10_000));
    for bytes in [
        &b"\0\0\0\0\0\0\0\0\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST\r\n\r\n",
        b"POST /VolumeDriver.List HTTP/9.9\r\n\r\n",
        b"POST /VolumeDriver.List HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /VolumeDriver.List HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /VolumeDriver.List HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        endless_header.as_bytes(),
        many_headers.as_bytes(),
    ] {
        let answer = exchange(&served.socket, bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    check_it_lives(&served).await;
}

#[tokio::test]
async fn hang_ups_at_every_byte() {
    let served = start();
    let whole = post("/VolumeDriver.Path", r#"{"Name":"v1","ID":"x"}"#);
    for length in 0..whole.len() {
        let mut stream = UnixStream::connect(&served.socket).await.unwrap();
        stream.write_all(&whole[..length]).await.unwrap();
    }
    // And while the answer is on its way.
    for _ in 0..50 {
        let mut stream = UnixStream::connect(&served.socket).await.unwrap();
        stream.write_all(&whole).await.unwrap();
    }
    check_it_lives(&served).await;
}

#[tokio::test]
async fn half_open_connections_cost_nobody_else() {
    let served = start();
    let mut idle = Vec::new();
    for number in 0..500 {
        let mut stream = UnixStream::connect(&served.socket).await.unwrap();
        let part: &[u8] = match number % 3 {
            0 => b"",
            1 => b"POST /VolumeDriver.Li",
            _ => b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        };
        stream.write_all(part).await.unwrap();
        idle.push(stream);
    }
    for _ in 0..20 {
        check_it_lives(&served).await;
    }
}

#[tokio::test]
async fn a_defect_in_one_request_is_an_error_for_that_one() {
    let served = start();
    check(&served.socket, &post("/VolumeDriver.Get", r#"{"Name":"v1"}"#), 500, "without a result").await;
    check_it_lives(&served).await;
}

#[tokio::test]
async fn a_mount_goes_on_without_its_caller_and_is_then_given_back() {
    let served = start();
    let plugin = &served.plugin;
    let mut stream = UnixStream::connect(&served.socket).await.unwrap();
    stream.write_all(&post("/VolumeDriver.Mount", r#"{"Name":"v1","ID":"x"}"#)).await.unwrap();
    until(|| plugin.mounts_begun.load(Ordering::SeqCst) == 1).await;
    drop(stream);
    // The server has noticed when it would not answer any more: give it that moment.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(plugin.mounts_ended.load(Ordering::SeqCst), 0);
    plugin.go.notify_one();
    until(|| plugin.abandoned.load(Ordering::SeqCst) == 1).await;
    assert_eq!(plugin.mounts_ended.load(Ordering::SeqCst), 1);

    plugin.go.notify_one();
    check(&served.socket, &post("/VolumeDriver.Mount", r#"{"Name":"v2"}"#), 200, r#""Mountpoint":"/v2""#)
        .await;
    assert_eq!(plugin.abandoned.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_stop_lets_what_is_begun_end() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("ovs.sock");
    let (plugin, stop) = (Arc::new(Echo::default()), Arc::new(Notify::new()));
    let listener = UnixListener::bind(&socket).unwrap();
    let stopped = stop.clone();
    let served =
        tokio::spawn(server::serve(listener, plugin.clone(), async move { stopped.notified().await }));
    let _idle = UnixStream::connect(&socket).await.unwrap();
    let asked = post("/VolumeDriver.Mount", r#"{"Name":"v1","ID":"x"}"#);
    let answer = tokio::spawn({
        let socket = socket.clone();
        async move { exchange(&socket, &asked).await }
    });
    until(|| plugin.mounts_begun.load(Ordering::SeqCst) == 1).await;
    stop.notify_one();
    until(|| std::os::unix::net::UnixStream::connect(&socket).is_err()).await;
    assert!(!served.is_finished());
    plugin.go.notify_one();
    assert!(answer.await.unwrap().starts_with("HTTP/1.1 200"));
    timeout(Duration::from_secs(10), served)
        .await
        .expect("idle connections do not hold it up")
        .unwrap()
        .unwrap();
    assert_eq!(plugin.abandoned.load(Ordering::SeqCst), 0);
}

async fn until(mut reached: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if reached() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not reached in 10 s");
}
