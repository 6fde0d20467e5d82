//! The client: a handle that any thread may use, over a task that owns the connection.

use crate::{Extent, NbdError, Session};
use bytes::Bytes;
use ovs_units::{ByteCount, ByteOffset, ByteRange};
use std::{path::PathBuf, time::Duration};
use thiserror::Error;

/// Where to connect, as whom, and how patiently.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The server's unix socket.
    pub socket: PathBuf,
    /// The export's name; may be empty (the default export).
    pub export: String,
    /// The session and its first generation; every attempt to connect takes the next generation. Without one the
    /// client is anonymous: it never reconnects, because nothing would keep a request stuck in the old connection
    /// from overtaking a newer one.
    pub session: Option<Session>,
    /// For how long to try to (re)connect before everything fails with [`ClientError::Disconnected`]; `None`: for
    /// ever. Also for the first connection.
    pub patience: Option<Duration>,
    /// Requests in flight at most; more callers wait. Not more than the server takes (128).
    pub requests_max: usize,
    /// Their payload at most.
    pub payload_max: ByteCount,
}

impl ClientOptions {
    /// Options with the default bounds, anonymous, with 30 s of patience.
    pub fn new(socket: impl Into<PathBuf>, export: impl Into<String>) -> ClientOptions {
        ClientOptions {
            socket: socket.into(),
            export: export.into(),
            session: None,
            patience: Some(Duration::from_secs(30)),
            requests_max: 128,
            payload_max: ByteCount(64 << 20),
        }
    }
}

/// Why a request (or the first connection) failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClientError {
    /// The server answered this request with an error; the connection is well.
    #[error("{0}")]
    Request(#[from] NbdError),
    /// No connection within the patience. Whether requests in flight were carried out is not known. Final: make a new
    /// client.
    #[error("disconnected: {0}")]
    Disconnected(String),
    /// The server does not give this export to this client, now or later: unknown, denied, or superseded. Final.
    #[error("refused: {0}")]
    Refused(String),
    /// The client was closed. Final.
    #[error("the client is closed")]
    Closed,
}

/// Counters since the first connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientStats {
    /// Connected now.
    pub connected: bool,
    /// Connections made after the first.
    pub reconnects: u64,
    /// Requests sent again after a reconnect, each time counted.
    pub resent_requests: u64,
    /// Requests answered.
    pub requests: u64,
    /// Requests without an answer now.
    pub in_flight: u64,
}

/// A connection to one export that heals itself: `Send + Sync`, cheap to clone.
///
/// * A request returns when the server has answered it, across any number of reconnections. A mere disconnect is never
///   an error within the patience.
/// * After a reconnect, everything in flight is sent again, identical and in the original order.
/// * At most `requests_max` requests and `payload_max` bytes are in flight; further callers wait, in order.
/// * Dropping the future of a request that was sent does not withdraw it.
///
/// When the last clone is dropped, what is in flight is completed, then the connection is ended.
#[derive(Debug, Clone)]
pub struct Client {}

impl Client {
    /// Connects and negotiates, trying again within the patience. Call inside a tokio runtime, which keeps the
    /// connection's task.
    pub async fn connect(options: ClientOptions) -> Result<Client, ClientError> {
        Err(ClientError::Disconnected(format!("{}: not built yet", options.socket.display())))
    }

    /// The export's size, as the server told at the last (re)connection.
    pub fn size(&self) -> ByteCount {
        ByteCount(0)
    }

    /// True when the server said that the export is read-only.
    pub fn read_only(&self) -> bool {
        true
    }

    /// Reads the range: at most 32 MiB.
    pub async fn read(&self, range: ByteRange) -> Result<Bytes, ClientError> {
        let _ = range;
        Err(ClientError::Closed)
    }

    /// Writes `data`, at most 32 MiB; with `fua`, it is on stable storage when this returns.
    pub async fn write(&self, offset: ByteOffset, data: Bytes, fua: bool) -> Result<(), ClientError> {
        let _ = (offset, data, fua);
        Err(ClientError::Closed)
    }

    /// Makes the range, of any length, read as zeros.
    pub async fn zero(&self, range: ByteRange, fua: bool) -> Result<(), ClientError> {
        let _ = (range, fua);
        Err(ClientError::Closed)
    }

    /// Discards the range, of any length.
    pub async fn trim(&self, range: ByteRange, fua: bool) -> Result<(), ClientError> {
        let _ = (range, fua);
        Err(ClientError::Closed)
    }

    /// Everything answered before is on stable storage when this returns.
    pub async fn flush(&self) -> Result<(), ClientError> {
        Err(ClientError::Closed)
    }

    /// Extents from the start of the range on: at least one, together not longer than the range, perhaps shorter (ask
    /// again from there).
    pub async fn block_status(&self, range: ByteRange) -> Result<Vec<Extent>, ClientError> {
        let _ = range;
        Err(ClientError::Closed)
    }

    /// Waits for what is in flight, ends the connection in the protocol's way, and fails whatever comes later.
    pub async fn close(&self) {}

    /// The counters now.
    pub fn stats(&self) -> ClientStats {
        ClientStats::default()
    }
}
