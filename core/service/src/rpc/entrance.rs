//! The ways in: the unix socket, whose mode and group say who may; and TCP, where TLS comes first and every request needs
//! the client's certificate or a token.

use super::tokens::Tokens;
use crate::tls::DoorTls;
use ovs_api::{Problem, ProblemKind};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tokio_rustls::TlsAcceptor;

/// A listener of the RPC.
pub enum Entrance {
    /// Those that the file system lets in.
    Unix(UnixListener),
    /// Everybody who reaches the port.
    Tls(TcpListener, Arc<TlsEntrance>),
}

/// What opens the entrance over TCP.
pub struct TlsEntrance {
    /// Certificates, ours and of the authority of clients.
    pub tls: DoorTls,
    /// What lets those in that have no certificate.
    pub tokens: Option<Tokens>,
}

/// Somebody who came.
pub(super) enum Arrival {
    Unix(UnixStream),
    Tls(TcpStream, SocketAddr, Arc<TlsEntrance>),
}

/// What the requests of a connection need.
#[derive(Clone)]
pub(super) enum Access {
    Given,
    /// A token each.
    Token(Arc<TlsEntrance>),
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Entrance {
    pub(super) async fn accept(&self) -> io::Result<Arrival> {
        match self {
            Entrance::Unix(listener) => Ok(Arrival::Unix(listener.accept().await?.0)),
            Entrance::Tls(listener, entrance) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Arrival::Tls(stream, peer, Arc::clone(entrance)))
            }
        }
    }
}

impl Arrival {
    /// Through TLS, if that is the way; `None` when nothing came of it.
    pub(super) async fn enter(self, patience: Duration) -> Option<(Box<dyn Stream>, Access)> {
        let (stream, peer, entrance) = match self {
            Arrival::Unix(stream) => return Some((Box::new(stream), Access::Given)),
            Arrival::Tls(stream, peer, entrance) => (stream, peer, entrance),
        };
        // Small answers leave at once; a socket that refuses is broken, as will be seen.
        drop(stream.set_nodelay(true));
        let accepting = TlsAcceptor::from(entrance.tls.current()).accept(stream);
        let stream = match tokio::time::timeout(patience, accepting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::info!(%peer, %error, "RPC client refused: no TLS");
                return None;
            }
            Err(_) => {
                tracing::debug!(%peer, "RPC client dropped: its TLS took too long");
                return None;
            }
        };
        // Those that were not of our authority did not get here.
        let is_known = stream.get_ref().1.peer_certificates().is_some();
        let access = if is_known { Access::Given } else { Access::Token(entrance) };
        Some((Box::new(stream), access))
    }
}

impl Access {
    /// Refuses a request that does not show what it needs.
    pub(super) fn check(&self, authorization: Option<&[u8]>) -> Result<(), Problem> {
        let admitted = match self {
            Access::Given => true,
            Access::Token(entrance) => {
                entrance.tokens.as_ref().is_some_and(|tokens| tokens.admit(authorization))
            }
        };
        if admitted {
            return Ok(());
        }
        let detail = match authorization {
            None => "a client's certificate or a token is needed: Authorization: Bearer TOKEN",
            Some(_) => "this token is not known (any more)",
        };
        Err(Problem::new(ProblemKind::Unauthorized, detail))
    }
}
