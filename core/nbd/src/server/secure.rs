//! TLS before anything else: what a connection over TCP goes through before it is a connection of the [`Server`].
//!
//! ```text
//! any thread:      accept ─▶ greeting ⇄ flags ─▶ STARTTLS ─▶ handshake ─▶ Secured ─▶ channel ─┐
//!                              every other option: TLS_REQD (EXPORT_NAME: hung up on)         │
//! engine thread:   serve_secured ◀────────────────────────────────────────────────────────────┘
//! ```
//!
//! A handshake costs up to milliseconds of CPU, which the thread that serves the disks must not pay for whoever reaches
//! the port: so it happens elsewhere, and what is handed over has a client that TLS accepted.
//!
//! Invariants: nothing but the client's flags outlives STARTTLS, because nothing else can be negotiated before it (this
//! is proto.md's FORCEDTLS mode). Not a byte past STARTTLS is read in the clear: what somebody puts there meets the TLS
//! handshake, which it breaks.

use super::{
    Server, ServerOptions,
    doorway::{Doorway, Place},
    listener::{ACCEPT_PAUSE, log_panic},
    serve,
    talk::{ClientFlags, Failed, Talk},
};
use crate::{
    Exports, Peer,
    proto::numbers::{option, option_reply},
    tcp,
};
use std::{fmt, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Asked at each connection, so that a renewed certificate is served without a restart.
pub type TlsConfigs = dyn Fn() -> Arc<ServerConfig> + Send + Sync;

/// Where connections over TCP become TLS; all its listeners share one bound on half-open connections.
pub struct TlsGate {
    doorway: Arc<Doorway>,
    timeout: Duration,
    configs: Box<TlsConfigs>,
}

/// A connection whose client TLS accepted, before its first option.
#[derive(Debug)]
pub struct Secured<S> {
    stream: TlsStream<S>,
    peer: SocketAddr,
    flags: ClientFlags,
}

impl TlsGate {
    /// A gate with the bounds of `options`: `negotiating_max` connections in it, `negotiation_timeout` for each.
    pub fn new(options: &ServerOptions, configs: Box<TlsConfigs>) -> Arc<TlsGate> {
        let doorway = Doorway::new(options.negotiating_max.max(1));
        Arc::new(TlsGate { doorway, timeout: options.negotiation_timeout, configs })
    }

    /// Leads one connection through; `None` when it was ended.
    pub async fn pass<S>(&self, stream: S, peer: SocketAddr, stop: &CancellationToken) -> Option<Secured<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let place = self.doorway.enter()?;
        self.secure(stream, peer, stop, &place).await
    }

    async fn secure<S>(
        &self,
        stream: S,
        peer: SocketAddr,
        stop: &CancellationToken,
        place: &Place,
    ) -> Option<Secured<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut talk = Talk::new(stream, place, stop, self.timeout);
        let flags = match start_tls(&mut talk).await {
            Ok(flags) => flags,
            Err(Failed::Left) => return None,
            Err(Failed::Io(error)) => return no_tls(peer, &error),
            Err(Failed::Proto(error)) => return no_tls(peer, &error),
            Err(Failed::Dropped(reason)) => return no_tls(peer, &reason),
        };
        match self.handshake(talk).await {
            Ok(stream) => Some(Secured { stream, peer, flags }),
            Err(Failed::Io(error)) => {
                // The operator who wonders about a client's certificate looks here.
                info!(%peer, %error, "NBD client refused by TLS");
                None
            }
            Err(_) => no_tls(peer, &"its handshake took too long"),
        }
    }

    async fn handshake<S>(&self, talk: Talk<'_, S>) -> Result<TlsStream<S>, Failed>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from((self.configs)());
        let (stream, patience) = talk.into_parts();
        patience.patiently(acceptor.accept(stream)).await
    }
}

fn no_tls<T>(peer: SocketAddr, reason: &dyn fmt::Display) -> Option<T> {
    debug!(%peer, %reason, "NBD connection ended before TLS");
    None
}

/// proto.md, "NBD_OPT_STARTTLS" and "TLS": up to the acknowledgement, behind which the client begins the handshake.
async fn start_tls<S>(talk: &mut Talk<'_, S>) -> Result<ClientFlags, Failed>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let flags = talk.greet().await?;
    loop {
        let header = talk.option_header().await?;
        let Some(data) = talk.option_data(header).await? else { continue };
        match header.option {
            option::STARTTLS if data.is_empty() => {
                talk.reply(option::STARTTLS, option_reply::ACK, &[]).await?;
                return Ok(flags);
            }
            option::STARTTLS => {
                talk.refuse(header.option, option_reply::ERR_INVALID, "STARTTLS takes no data").await?;
            }
            option::EXPORT_NAME => return Err(Failed::Dropped("an export was asked for without TLS")),
            option::ABORT => {
                let _ = talk.reply(header.option, option_reply::ACK, &[]).await;
                return Err(Failed::Left);
            }
            other => talk.refuse(other, option_reply::ERR_TLS_REQD, "only with TLS").await?,
        }
    }
}

/// Accepts connections and leads each through the gate to `passed`, until `stop` is cancelled. On any runtime.
pub async fn accept_tcp(
    gate: Arc<TlsGate>,
    listener: TcpListener,
    passed: mpsc::Sender<Secured<TcpStream>>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => log_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let (gate, passed, stop) = (Arc::clone(&gate), passed.clone(), stop.clone());
                    connections.spawn(async move { lead(&gate, stream, peer, &passed, &stop).await });
                }
                Err(error) => {
                    warn!(%error, "NBD connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // Each of them sees the stop.
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

async fn lead(
    gate: &TlsGate,
    stream: TcpStream,
    peer: SocketAddr,
    passed: &mpsc::Sender<Secured<TcpStream>>,
    stop: &CancellationToken,
) {
    if let Err(error) = tcp::tune(&stream) {
        return debug!(%peer, %error, "NBD connection lost");
    }
    let Some(place) = gate.doorway.enter() else { return };
    let Some(secured) = gate.secure(stream, peer, stop, &place).await else { return };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = place.evicted() => debug!(%peer, "NBD connection dropped: too many come"),
        // An error: the server has stopped.
        _ = passed.send(secured) => {}
    }
}

/// Serves what came through the gate, each connection as a local task, until `stop` is cancelled; then drains all of
/// them, and returns. Call inside a `LocalSet`.
pub async fn serve_secured<E: Exports>(
    server: Rc<Server>,
    mut connections: mpsc::Receiver<Secured<TcpStream>>,
    exports: Rc<E>,
    stop: CancellationToken,
) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = serving.join_next() => log_panic(ended),
            secured = connections.recv() => match secured {
                Some(secured) => {
                    let (server, exports, stop) = (Rc::clone(&server), Rc::clone(&exports), stop.clone());
                    serving.spawn_local(serve_secured_connection(server, secured, exports, stop));
                }
                None => break,
            },
        }
    }
    drop(connections);
    while let Some(ended) = serving.join_next().await {
        log_panic(ended);
    }
}

/// As [`serve_connection`](super::serve_connection), for a connection that came through the gate.
pub async fn serve_secured_connection<S, E>(
    server: Rc<Server>,
    secured: Secured<S>,
    exports: Rc<E>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let Secured { stream, peer, flags } = secured;
    serve(server, stream, Some(Peer::Remote(peer)), Some(flags), exports, stop).await;
}
