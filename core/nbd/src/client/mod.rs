//! The client: a handle that any thread may use, over one task that owns the connection.
//!
//! ```text
//! Client::read … ── bound ──▶ orders ──▶ driver: in flight (kept until answered) ──▶ socket
//!        ▲                                 │  ▲ lost: connect again, next generation, send all of it again
//!        └──────────── answer ◀────────────┘  └ connector: connect, negotiate, back off
//! ```
//!
//! Invariants: what was sent is kept, unchanged and in order, until it is answered; it is sent again only by a client
//! with a session, whose server has by then carried out or dropped everything of the older connection.
//!
//! Not here: splitting or caching of I/O, range checks (the server knows the size now, the client knew it then).

mod connector;
mod driver;
mod hand_over;
mod order;
mod replies;
mod transport;

pub use hand_over::{Negotiated, negotiate};

use crate::{Extent, Generation, NbdError, Session, proto::numbers::PAYLOAD_BYTES_MAX};
use bytes::Bytes;
use connector::{Backoff, Connection, Connector};
use driver::Driver;
use order::{Answer, Command, Message, Order};
use ovs_units::{ByteCount, ByteOffset, ByteRange};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use transport::Endpoint;

/// Payload is bounded in units of this size.
const PAYLOAD_UNIT_BYTES: u64 = 4096;
/// Zeros and discards travel in pieces of this size, so that none occupies the server for long.
const ZERO_BYTES_MAX: u64 = 1 << 30;
/// The longest range of one block status request: 32 bits, whole clusters.
const BLOCK_STATUS_BYTES_MAX: u64 = (u32::MAX as u64) & !4095;

/// Where to connect, as whom, and how patiently.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Where the server listens.
    pub endpoint: Endpoint,
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
    pub fn new(endpoint: impl Into<Endpoint>, export: impl Into<String>) -> ClientOptions {
        ClientOptions {
            endpoint: endpoint.into(),
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
/// There is no time-out for an answer: a vDisk may stall for as long as it is full. Callers with a limit put their own
/// around the future.
///
/// When the last clone is dropped, what is in flight is completed, then the connection is ended.
#[derive(Debug, Clone)]
pub struct Client {
    orders: mpsc::UnboundedSender<Message>,
    shared: Arc<Shared>,
}

/// What handles and driver share.
#[derive(Debug)]
struct Shared {
    /// Free places for requests; closed when the client has ended.
    slots: Semaphore,
    /// Free units of payload; closed when the client has ended.
    payload: Semaphore,
    payload_units_max: u32,
    size: AtomicU64,
    read_only: AtomicBool,
    connected: AtomicBool,
    generation: AtomicU64,
    reconnects: AtomicU64,
    resent_requests: AtomicU64,
    requests: AtomicU64,
    in_flight: AtomicU64,
    /// Why the client has ended.
    failure: OnceLock<ClientError>,
    ended: CancellationToken,
}

impl Client {
    /// Connects and negotiates, trying again within the patience. Call inside a tokio runtime, which keeps the
    /// connection's task.
    pub async fn connect(options: ClientOptions) -> Result<Client, ClientError> {
        let units = (options.payload_max.0 / PAYLOAD_UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS as u64 >> 1);
        let payload_units_max = u32::try_from(units).unwrap_or(u32::MAX);
        let shared = Arc::new(Shared {
            slots: Semaphore::new(options.requests_max.clamp(1, Semaphore::MAX_PERMITS)),
            payload: Semaphore::new(payload_units_max as usize),
            payload_units_max,
            size: AtomicU64::new(0),
            read_only: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            resent_requests: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            failure: OnceLock::new(),
            ended: CancellationToken::new(),
        });
        let mut connector = Connector::new(options);
        let mut backoff = Backoff::default();
        let deadline = connector.deadline();
        let connection = loop {
            match connector.attempt(deadline).await {
                Ok(connection) => break connection,
                Err(failed) => connector.pause(failed, &mut backoff, deadline).await?,
            }
        };
        shared.connected(&connection, connector.generation());
        let (orders, inbox) = mpsc::unbounded_channel();
        tokio::spawn(Driver::new(connector, inbox, Arc::clone(&shared)).run(connection));
        Ok(Client { orders, shared })
    }

    /// The export's size, as the server told at the last (re)connection.
    pub fn size(&self) -> ByteCount {
        ByteCount(self.shared.size.load(Relaxed))
    }

    /// True when the server said that the export is read-only.
    pub fn read_only(&self) -> bool {
        self.shared.read_only.load(Relaxed)
    }

    /// Reads the range: at most 32 MiB.
    pub async fn read(&self, range: ByteRange) -> Result<Bytes, ClientError> {
        if range.length.0 == 0 {
            return Ok(Bytes::new());
        }
        bounded(range.length)?;
        match self.submit(Command::Read { range }).await? {
            Answer::Data(data) => Ok(data),
            _ => Err(mismatch()),
        }
    }

    /// Writes `data`, at most 32 MiB; with `fua`, it is on stable storage when this returns.
    pub async fn write(&self, offset: ByteOffset, data: Bytes, fua: bool) -> Result<(), ClientError> {
        if data.is_empty() {
            return Ok(());
        }
        bounded(ByteCount(data.len() as u64))?;
        self.submit(Command::Write { offset, data, fua }).await.map(|_| ())
    }

    /// Makes the range, of any length, read as zeros. Longer than 1 GiB it is not one request, but several.
    pub async fn zero(&self, range: ByteRange, fua: bool) -> Result<(), ClientError> {
        for range in pieces(range) {
            self.submit(Command::Zero { range, fua }).await?;
        }
        Ok(())
    }

    /// Discards the range, of any length. Longer than 1 GiB it is not one request, but several.
    pub async fn trim(&self, range: ByteRange, fua: bool) -> Result<(), ClientError> {
        for range in pieces(range) {
            self.submit(Command::Trim { range, fua }).await?;
        }
        Ok(())
    }

    /// Everything answered before is on stable storage when this returns.
    pub async fn flush(&self) -> Result<(), ClientError> {
        self.submit(Command::Flush).await.map(|_| ())
    }

    /// Extents from the start of the range on: at least one (none for an empty range), together not longer than the
    /// range, perhaps shorter (ask again from there).
    pub async fn block_status(&self, range: ByteRange) -> Result<Vec<Extent>, ClientError> {
        if range.length.0 == 0 {
            return Ok(Vec::new());
        }
        let length = ByteCount(range.length.0.min(BLOCK_STATUS_BYTES_MAX));
        match self.submit(Command::BlockStatus { range: ByteRange { start: range.start, length } }).await? {
            Answer::Extents(extents) => Ok(extents),
            _ => Err(mismatch()),
        }
    }

    /// Waits for what is in flight, ends the connection in the protocol's way, and fails whatever comes later.
    pub async fn close(&self) {
        // An error: it has ended already.
        let _ = self.orders.send(Message::Close);
        self.shared.ended.cancelled().await;
    }

    /// The counters now.
    pub fn stats(&self) -> ClientStats {
        let shared = &self.shared;
        ClientStats {
            connected: shared.connected.load(Relaxed),
            reconnects: shared.reconnects.load(Relaxed),
            resent_requests: shared.resent_requests.load(Relaxed),
            requests: shared.requests.load(Relaxed),
            in_flight: shared.in_flight.load(Relaxed),
        }
    }

    /// The generation of the last attempt to connect; 0 for an anonymous client.
    pub fn generation(&self) -> Generation {
        Generation(self.shared.generation.load(Relaxed))
    }

    async fn submit(&self, command: Command) -> Result<Answer, ClientError> {
        let shared = &*self.shared;
        let ended = |_| shared.failure();
        let units = shared.units(&command);
        let slot = shared.slots.acquire().await.map_err(ended)?;
        let payload = shared.payload.acquire_many(units).await.map_err(ended)?;
        let (reply, answer) = oneshot::channel();
        self.orders.send(Message::Order(Order { command, reply })).map_err(|_| shared.failure())?;
        // From here on the places belong to the request, which may outlive this future.
        slot.forget();
        payload.forget();
        answer.await.unwrap_or_else(|_| Err(shared.failure()))
    }
}

impl Shared {
    fn failure(&self) -> ClientError {
        self.failure.get().cloned().unwrap_or(ClientError::Closed)
    }

    /// Notes what the server told at negotiation.
    fn connected(&self, connection: &Connection, generation: Generation) {
        self.size.store(connection.size.0, Relaxed);
        self.read_only.store(connection.read_only(), Relaxed);
        self.generation.store(generation.0, Relaxed);
        self.connected.store(true, Relaxed);
    }

    fn units(&self, command: &Command) -> u32 {
        let units = command.payload().0.div_ceil(PAYLOAD_UNIT_BYTES);
        u32::try_from(units).unwrap_or(u32::MAX).min(self.payload_units_max)
    }

    /// Gives back the places of a request that has ended.
    fn release(&self, command: &Command) {
        self.slots.add_permits(1);
        self.payload.add_permits(self.units(command) as usize);
    }
}

fn bounded(length: ByteCount) -> Result<(), ClientError> {
    if length.0 > PAYLOAD_BYTES_MAX.into() {
        let text = format!("{} bytes in one request, at most {PAYLOAD_BYTES_MAX} are allowed", length.0);
        return Err(NbdError::Invalid(text).into());
    }
    Ok(())
}

fn mismatch() -> ClientError {
    NbdError::Io("the server's answer does not belong to the request".into()).into()
}

fn pieces(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let end = range.end();
    (range.start.0..end.0).step_by(ZERO_BYTES_MAX as usize).map(move |start| ByteRange {
        start: ByteOffset(start),
        length: ByteCount(ZERO_BYTES_MAX.min(end.0 - start)),
    })
}
