//! What the server serves: a [`Device`], found by name through [`Exports`].
//!
//! Both are local (`!Send`): the server and everything it calls run on one thread, as futures of one
//! `tokio::task::LocalSet`.
//!
//! ```text
//! connection ── negotiation ──▶ Exports::open ──▶ Rc<Device> ──▶ many concurrent calls ──▶ drained ──▶ Device::released
//! ```
//!
//! Not here: what an attachment is, who may attach. `open` decides and says so with an [`OpenError`].

use crate::{NbdError, session::Session};
use bytes::Bytes;
use ovs_units::{ByteCount, ByteOffset, ByteRange};
use std::{net::SocketAddr, rc::Rc};

/// One export, as one connection sees it.
///
/// The server has already checked every range against [`Device::size`] and refused writes to a read-only device.
/// Ranges are never empty and have any alignment. Calls of one connection run concurrently and are first polled in
/// the order in which they arrived. **A call that has begun is never dropped before it completes** (as long as the
/// caller of the server does not drop the server's future): when the client goes away, the server drains. The one
/// exception is [`Device::admit`].
#[expect(async_fn_in_trait, reason = "local futures of one thread: no Send bound is wanted")]
pub trait Device: 'static {
    /// The size now; asked at negotiation and for every request, so that a resize takes effect at once.
    fn size(&self) -> ByteCount;

    /// True when every write-like command is to be refused with `EPERM`.
    fn read_only(&self) -> bool;

    /// A text for people (`NBD_INFO_DESCRIPTION`); may be empty.
    fn description(&self) -> String;

    /// True when a flush on one connection covers the writes that any connection has seen completed
    /// (`NBD_FLAG_CAN_MULTI_CONN`).
    fn multi_conn(&self) -> bool {
        true
    }

    /// Comes back when a request may begin: the place to hold a guest back. It is dropped when nobody waits for the answer
    /// any more (the client died, was replaced or is forced off); the request is then refused and was never there.
    async fn admit(&self, _request: Asked) -> Result<(), NbdError> {
        Ok(())
    }

    /// Reads the range; the reply covers it exactly.
    async fn read(&self, range: ByteRange) -> Result<ReadReply, NbdError>;

    /// Writes `data` at `offset`; with `fua`, it is on stable storage when this returns.
    async fn write(&self, offset: ByteOffset, data: Bytes, fua: bool) -> Result<(), NbdError>;

    /// Makes the range read as zeros; with `fua`, that is on stable storage when this returns.
    async fn zero(&self, range: ByteRange, fua: bool, kind: ZeroKind) -> Result<(), NbdError>;

    /// Everything completed before is on stable storage when this returns.
    async fn flush(&self) -> Result<(), NbdError>;

    /// A hint that the range will be read soon.
    async fn cache(&self, range: ByteRange) -> Result<(), NbdError>;

    /// The extents from the start of `range` on: at least one, at most `limit`, perhaps not up to its end. What
    /// reaches past the end is cut off by the server.
    async fn block_status(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, NbdError>;

    /// Resolves when the device forces its clients off (detached, fenced, deleted): the server then takes no more
    /// requests from the connection, drains what is in flight, and hangs up. Pending for ever otherwise.
    async fn closed(&self);

    /// Called once, after the last call of the connection has completed, and before a successor of its session is
    /// admitted: the place to give back an attachment.
    async fn released(&self) {}
}

/// What a client wants to do; flushes and hints are not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// [`Device::read`] of this range.
    Read(ByteRange),
    /// [`Device::write`] to this range.
    Write(ByteRange),
    /// [`Device::zero`] of this range.
    Zero(ByteRange),
}

/// Which zeros are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroKind {
    /// `NBD_CMD_TRIM`: the client does not need the contents any more. Here they read as zeros afterwards.
    Trim,
    /// `NBD_CMD_WRITE_ZEROES`.
    Zeroes {
        /// `NBD_CMD_FLAG_NO_HOLE`: the client would rather have the space provisioned.
        no_hole: bool,
        /// `NBD_CMD_FLAG_FAST_ZERO`: refuse with [`NbdError::NotSupported`] when it is no faster than a write.
        fast: bool,
    },
}

/// What a read brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadReply {
    /// All of it is data.
    Data(Bytes),
    /// Data and holes, one after the other from the start of the range.
    Pieces(Vec<ReadPiece>),
}

/// A part of a [`ReadReply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadPiece {
    /// Bytes.
    Data(Bytes),
    /// So many zeros, which need not travel.
    Hole(ByteCount),
}

impl ReadReply {
    /// The bytes that the reply stands for.
    pub fn length(&self) -> ByteCount {
        match self {
            ReadReply::Data(data) => ByteCount(data.len() as u64),
            ReadReply::Pieces(pieces) => ByteCount(pieces.iter().map(|piece| piece.length().0).sum()),
        }
    }
}

impl From<Bytes> for ReadReply {
    fn from(data: Bytes) -> ReadReply {
        ReadReply::Data(data)
    }
}

impl ReadPiece {
    /// The bytes that the piece stands for.
    pub fn length(&self) -> ByteCount {
        match self {
            ReadPiece::Data(data) => ByteCount(data.len() as u64),
            ReadPiece::Hole(length) => *length,
        }
    }
}

/// A stretch of an export in the context `base:allocation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its length.
    pub length: ByteCount,
    /// Nothing is allocated (`NBD_STATE_HOLE`).
    pub hole: bool,
    /// It reads as zeros (`NBD_STATE_ZERO`).
    pub zero: bool,
}

impl Extent {
    /// Allocated, with contents.
    pub fn data(length: ByteCount) -> Extent {
        Extent { length, hole: false, zero: false }
    }

    /// Not allocated, reads as zeros.
    pub fn hole(length: ByteCount) -> Extent {
        Extent { length, hole: true, zero: true }
    }
}

/// Who asks for an export.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientInfo {
    /// The named session, if the client named one. Its predecessors are drained and released when `open` is called.
    pub session: Option<Session>,
    /// Who is at the other end, if that could be told.
    pub peer: Option<Peer>,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A process of this host, as the kernel told when it connected.
    Process(PeerProcess),
    /// Somebody over TCP, whose TLS was accepted: another host most likely, with a power supply of its own.
    Remote(SocketAddr),
}

/// The process at the other end of a unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerProcess {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process id, if the kernel told.
    pub pid: Option<i32>,
}

/// What `NBD_OPT_INFO` and the meta context options need to know; asking takes no attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The size now.
    pub size: ByteCount,
    /// As [`Device::read_only`].
    pub read_only: bool,
    /// As [`Device::multi_conn`].
    pub multi_conn: bool,
    /// As [`Device::description`].
    pub description: String,
}

/// The names that a listener serves.
#[expect(async_fn_in_trait, reason = "local futures of one thread: no Send bound is wanted")]
pub trait Exports: 'static {
    /// What `open` gives.
    type Device: Device;

    /// Opens an export for one connection, and takes what it needs to be used (an attachment). `name` is at most 4096
    /// bytes, may be empty (the default export), and is hostile. Never dropped before it completes.
    ///
    /// The server keeps the only reference that it makes until [`Device::released`] has returned. A client without a
    /// session that reconnects may come while its old connection is still being drained: an exclusive attachment
    /// should wait here for the one before it (the client does not pay for the time), rather than refuse.
    async fn open(&self, name: &str, client: ClientInfo) -> Result<Rc<Self::Device>, OpenError>;

    /// Describes an export without opening it; refuses for the same reasons as `open`. Asked by every client that
    /// selects metadata contexts, so by ours at each connection.
    async fn info(&self, name: &str) -> Result<ExportInfo, OpenError>;

    /// The names to tell a client that asks for a list; those over 4096 bytes are left out.
    async fn list(&self) -> Vec<String>;
}

/// Why an export was not opened; the text goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no such export (`NBD_REP_ERR_UNKNOWN`). Our client gives up.
    #[error("{0}")]
    NotFound(String),
    /// It exists and this client may not have it: fenced, detached, not allowed (`NBD_REP_ERR_POLICY`). Our client
    /// gives up.
    #[error("{0}")]
    Denied(String),
    /// Not now: starting, stopping, attached elsewhere (`NBD_REP_ERR_SHUTDOWN`). Our client tries again.
    #[error("{0}")]
    Unavailable(String),
}
