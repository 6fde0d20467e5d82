//! The door with hostile clients in front and a double of `Core` behind, which says what reached it.

use super::serve::{PATIENCE, Patience, serve_with};
use super::*;
use ovs_api::*;
use ovs_units::Name;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use uuid::Uuid;

mod double;
mod hostile;
mod ordinary;
mod remote;

use double::Double;

/// A served socket; stops when dropped.
struct Door {
    socket: PathBuf,
    double: Arc<Double>,
    _dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    served: Option<std::thread::JoinHandle<()>>,
}

/// For tests of time-outs alone: on a busy machine an honest client may need longer.
const QUICK: Patience = Patience {
    tls: Duration::from_millis(300),
    headers: Duration::from_millis(300),
    body: Duration::from_millis(300),
    write: Duration::from_millis(300),
    stop: Duration::from_secs(5),
};

impl Door {
    fn open(patience: Patience) -> Door {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("ovsd.sock");
        let double = Arc::new(Double::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (path, served) = (socket.clone(), Arc::clone(&double));
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::bind(path).unwrap();
                ready.send(()).unwrap();
                serve_with(Entrance::Unix(listener), served, async { drop(stopped.await) }, patience).await;
            });
        });
        is_ready.recv().unwrap();
        Door { socket, double, _dir: dir, stop: Some(stop), served: Some(thread) }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// Sends bytes, reads all that comes back until the other side closes, or until a whole answer is there.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The service may close while we still write: what it said before is what counts.
        drop(stream.write_all(bytes));
        read_answer(&mut stream)
    }

    /// One request; the status and the body.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}");
        let answer = self.raw(format!("{head}content-length: {length}\r\n\r\n{body}").as_bytes());
        (status_of(&answer), body_of(&answer))
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    fn close(&mut self) {
        drop(self.stop.take());
        if let Some(served) = self.served.take() {
            served.join().unwrap();
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}

fn wait_for(counter: &AtomicU64, wanted: u64) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while counter.load(Ordering::SeqCst) < wanted {
        assert!(tokio::time::Instant::now() < deadline, "{} of {wanted}", counter.load(Ordering::SeqCst));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Until the end of the stream or of a body of known length.
fn read_answer(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
            Err(error) => panic!("{error}; so far {:?}", String::from_utf8_lossy(&bytes)),
        }
        let text = String::from_utf8_lossy(&bytes);
        let length =
            text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if let (Some(length), Some((_, body))) = (length, text.split_once("\r\n\r\n"))
            && body.len() >= length
        {
            break;
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {answer:?}")).parse().unwrap()
}

fn body_of(answer: &str) -> Value {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap_or_else(|_| json!(body)) }
}

/// Runs a future of the client on a runtime of its own.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
