//! Where a server is, and the stream to it.

use crate::tcp;
use std::{
    fmt,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
};

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// A unix socket of this host.
    Unix(PathBuf),
    /// TCP; the protocol is spoken through TLS, or not at all.
    Tls {
        /// A name or an address, which the server's certificate must have.
        host: String,
        /// The port.
        port: u16,
        /// Who is trusted, and as whom the client shows itself.
        config: Arc<ClientConfig>,
    },
}

impl From<PathBuf> for Endpoint {
    fn from(socket: PathBuf) -> Endpoint {
        Endpoint::Unix(socket)
    }
}

impl From<&Path> for Endpoint {
    fn from(socket: &Path) -> Endpoint {
        Endpoint::Unix(socket.to_owned())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(socket) => write!(f, "{}", socket.display()),
            Endpoint::Tls { host, port, .. } if host.contains(':') => write!(f, "nbds://[{host}]:{port}"),
            Endpoint::Tls { host, port, .. } => write!(f, "nbds://{host}:{port}"),
        }
    }
}

/// What the protocol is spoken through.
pub(super) enum Transport {
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection over TCP, tuned.
pub(super) async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    tcp::tune(&stream)?;
    Ok(stream)
}

/// TLS over what has been agreed to become TLS.
pub(super) async fn secure(
    stream: TcpStream,
    host: &str,
    config: &Arc<ClientConfig>,
) -> io::Result<Transport> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::other(format!("{host:?} is no name that a certificate can have")))?;
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await?;
    Ok(Transport::Tls(Box::new(stream)))
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
