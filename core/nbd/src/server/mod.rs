//! The server: what all its connections share, and the ways to serve one.
//!
//! ```text
//! serve_unix ──────── accept ──────▶ serve_connection ──▶ doorway ──▶ negotiation ──▶ transmission ──▶ Device::released
//! accept_tcp ─▶ TlsGate ─▶ serve_secured ────┘                          └─ session: one connection at a time
//! ```
//!
//! Everything runs on one thread, in the caller's `LocalSet`; but what happens before TLS, on any other.

mod audience;
mod command;
mod doorway;
mod listener;
mod negotiation;
mod secure;
mod session;
mod talk;
mod transmission;

pub use listener::serve_unix;
pub use secure::{Secured, TlsConfigs, TlsGate, accept_tcp, serve_secured, serve_secured_connection};

use crate::{Device, Exports, Peer};
use doorway::{Doorway, Place};
use negotiation::{Opened, Parties, negotiate};
use ovs_units::ByteCount;
use session::{SessionGuard, Sessions};
use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};
use talk::{ClientFlags, Failed, Talk};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use transmission::{Ending, transmit};

/// For the last words to a client over TLS.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bounds and times of a server; the defaults are meant to stay.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// From the first byte to the end of negotiation, time spent in `Exports` or waiting for a predecessor apart.
    pub negotiation_timeout: Duration,
    /// A client that takes no byte of its replies for so long is dropped.
    pub reply_timeout: Duration,
    /// Requests of one connection that are executed or wait to be answered; past it the socket is not read.
    pub requests_in_flight_max: usize,
    /// Their payload in both directions. A single request is always let in.
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
    sessions: Rc<Sessions>,
    doorway: Arc<Doorway>,
    stats: RefCell<ServerStats>,
}

impl Server {
    /// A server without connections.
    pub fn new(options: ServerOptions) -> Rc<Server> {
        let doorway = Doorway::new(options.negotiating_max.max(1));
        Rc::new(Server { options, sessions: Rc::default(), doorway, stats: RefCell::default() })
    }

    /// The counters now.
    pub fn stats(&self) -> ServerStats {
        ServerStats { negotiating: self.doorway.count() as u64, ..*self.stats.borrow() }
    }

    fn count(&self, change: impl FnOnce(&mut ServerStats)) {
        change(&mut self.stats.borrow_mut());
    }

    /// Counts one connection in, until the guard is dropped.
    fn connected(self: &Rc<Self>) -> Option<Connected> {
        let mut stats = self.stats.borrow_mut();
        if stats.connections >= self.options.connections_max as u64 {
            stats.dropped += 1;
            return None;
        }
        stats.connections += 1;
        stats.accepted += 1;
        Some(Connected(Rc::clone(self)))
    }
}

struct Connected(Rc<Server>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.count(|stats| stats.connections -= 1);
    }
}

/// Serves one connection to its end: negotiation, transmission, drain, [`Device::released`].
///
/// When this returns, nothing of the connection is in flight any more. Cancelling `stop` ends it gracefully: no more
/// requests are read, what is in flight is completed and answered, then it hangs up.
pub async fn serve_connection<S, E>(
    server: Rc<Server>,
    stream: S,
    peer: Option<Peer>,
    exports: Rc<E>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    serve(server, stream, peer, None, exports, stop).await;
}

async fn serve<S, E>(
    server: Rc<Server>,
    mut stream: S,
    peer: Option<Peer>,
    secured: Option<ClientFlags>,
    exports: Rc<E>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let Some(_connected) = server.connected() else {
        return debug!("connection refused: {} are open", server.options.connections_max);
    };
    let Some(place) = server.doorway.enter() else {
        server.count(|stats| stats.dropped += 1);
        return debug!("connection refused: too many are being opened");
    };
    let parties = Parties { exports: &exports, sessions: &server.sessions, peer, secured };
    // On the heap while it lasts: the task of a connection in transmission does not carry its state.
    let opened = Box::pin(meet(&server, &mut stream, &parties, &stop, place)).await;
    if let Some(opened) = opened {
        serve_opened(&server, &mut stream, opened, &stop).await;
    }
    if secured.is_some() {
        // TLS tells a goodbye from a cut; whether it arrives or not, nothing depends on it.
        let _ = timeout(GOODBYE_TIMEOUT, stream.shutdown()).await;
    }
}

async fn meet<S, E>(
    server: &Server,
    stream: &mut S,
    parties: &Parties<'_, E>,
    stop: &CancellationToken,
    place: Place,
) -> Option<Opened<E::Device>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let peer = parties.peer;
    let talk = Talk::new(stream, &place, stop, server.options.negotiation_timeout);
    let failed = match negotiate(talk, parties).await {
        Ok(opened) => return Some(opened),
        Err(failed) => failed,
    };
    match failed {
        Failed::Left => {}
        Failed::Io(error) => debug!(?peer, %error, "connection lost in negotiation"),
        Failed::Dropped(reason) => {
            server.count(|stats| stats.dropped += 1);
            debug!(?peer, reason, "connection dropped in negotiation");
        }
        Failed::Proto(error) => {
            server.count(|stats| stats.dropped += 1);
            debug!(?peer, %error, "connection dropped in negotiation");
        }
    }
    None
}

async fn serve_opened<S, D>(server: &Server, stream: &mut S, opened: Opened<D>, stop: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Device,
{
    let Opened { device, agreed, name, session } = opened;
    let ending = async {
        tokio::select! {
            () = superseded(session.as_ref()) => Ending::Superseded,
            () = device.closed() => Ending::DeviceClosed,
            () = stop.cancelled() => Ending::Stopping,
        }
    };
    let count = |requests, errors| {
        server.count(|stats| {
            stats.requests += requests;
            stats.errors += errors;
        });
    };
    let ended = transmit(stream, &device, Rc::new(agreed), &server.options, ending, count).await;
    match ended {
        Ending::ClientLeft | Ending::ClientGone | Ending::Stopping => {}
        Ending::DeviceClosed => info!(export = name, "client forced off"),
        Ending::Superseded => {
            server.count(|stats| stats.superseded += 1);
            info!(export = name, "connection replaced by a newer one of its session");
        }
        Ending::Socket(error) => debug!(export = name, %error, "connection lost"),
        Ending::ReplyStall => {
            server.count(|stats| stats.dropped += 1);
            info!(export = name, "connection dropped: the client does not take its replies");
        }
        Ending::Protocol(error) => {
            server.count(|stats| stats.dropped += 1);
            info!(export = name, %error, "connection dropped: not the protocol");
        }
    }
    // The order matters: the device is given back before the session lets a successor in.
    device.released().await;
    drop(device);
    drop(session);
}

async fn superseded(session: Option<&SessionGuard>) {
    match session {
        Some(session) => session.superseded().await,
        None => std::future::pending().await,
    }
}
