//! The server: what all its connections share, and the two ways to serve one.

use crate::{Exports, PeerProcess};
use ovs_units::ByteCount;
use std::{rc::Rc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixListener,
};
use tokio_util::sync::CancellationToken;

/// Bounds and times of a server; the defaults are meant to stay.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// From the first byte to the end of negotiation, time spent in `Exports` or waiting for a predecessor apart.
    pub negotiation_timeout: Duration,
    /// A client that takes no byte of its replies for so long is dropped.
    pub reply_timeout: Duration,
    /// Requests of one connection that are executed or wait to be answered; past it the socket is not read.
    pub requests_in_flight_max: usize,
    /// Their payload in both directions; a single request may be larger than what is left, never than the whole.
    pub payload_in_flight_max: ByteCount,
    /// Connections that have not finished negotiating; one more ends the oldest of them.
    pub negotiating_max: usize,
    /// Connections in all; one more is hung up on.
    pub connections_max: usize,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            negotiation_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(60),
            requests_in_flight_max: 128,
            payload_in_flight_max: ByteCount(64 << 20),
            negotiating_max: 512,
            connections_max: 4096,
        }
    }
}

/// Counters since the start, and what is open now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerStats {
    /// Connections now, negotiating or transmitting.
    pub connections: u64,
    /// Those that are negotiating.
    pub negotiating: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections that were hung up on: over a bound, over a time, or not speaking the protocol.
    pub dropped: u64,
    /// Connections ended by a newer generation of their session.
    pub superseded: u64,
    /// Requests answered.
    pub requests: u64,
    /// Of them, with an error.
    pub errors: u64,
}

/// What the connections of one process share: bounds, the table of sessions, counters. One per engine thread; all
/// listeners use the same one, so that a session is known whichever socket it comes in by.
#[derive(Debug)]
pub struct Server {
    options: ServerOptions,
}

impl Server {
    /// A server without connections.
    pub fn new(options: ServerOptions) -> Rc<Server> {
        Rc::new(Server { options })
    }

    /// The counters now.
    pub fn stats(&self) -> ServerStats {
        ServerStats::default()
    }
}

/// Serves one connection to its end: negotiation, transmission, drain, [`Device::released`](crate::Device::released).
///
/// When this returns, nothing of the connection is in flight any more. Cancelling `stop` ends it gracefully: no more
/// requests are read, what is in flight is completed and answered, then it hangs up.
pub async fn serve_connection<S, E>(
    server: Rc<Server>,
    stream: S,
    peer: Option<PeerProcess>,
    exports: Rc<E>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let _ = (server, stream, peer, exports, stop);
}

/// Serves every connection that `listener` accepts, each as a local task, until `stop` is cancelled; then stops
/// accepting, drains all of them, and returns. Call inside a `LocalSet`.
///
/// A device whose writes are stalled makes the drain wait: a caller with a limit puts a time-out around this. What was
/// not answered by then was not acknowledged.
pub async fn serve_unix<E: Exports>(
    server: Rc<Server>,
    listener: UnixListener,
    exports: Rc<E>,
    stop: CancellationToken,
) {
    let _ = (server.options.clone(), listener, exports, stop);
}
