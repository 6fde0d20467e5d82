//! HTTP/1.1 over a unix socket: one request per connection, answered by a function.

use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
};

/// What was asked.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    pub body: Value,
}

/// A status and a document.
pub type Answer = (u16, Option<Value>);

/// Answers until the process ends.
pub struct Rpc {}

impl Rpc {
    pub fn start(socket: &Path, answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Rpc {
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answer = answer.clone();
                std::thread::spawn(move || serve(stream.unwrap(), &*answer));
            }
        });
        Rpc {}
    }
}

fn serve(stream: UnixStream, answer: &dyn Fn(&Request) -> Answer) {
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let header = header.trim().to_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (status, document) = answer(&Request { method, path, body });
    let text = document.map(|document| document.to_string()).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    // A client that has gone away is the test's business.
    let _ = (&stream).write_all((head + &text).as_bytes());
}
