//! Where an ovsd listens, and the stream to it.

use crate::{Problem, tls::rustls};
use hyper::header::HeaderValue;
use rustls::{ClientConfig, pki_types::ServerName};
use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

/// A token is never longer than this.
const TOKEN_BYTES_MAX: usize = 4096;

/// What lets its bearer in over TCP. It is not shown, in no message and no log.
#[derive(Clone)]
pub struct Token(HeaderValue);

impl Token {
    /// The token in a file: its only line.
    pub fn read(path: &Path) -> Result<Token, Problem> {
        let refuse = |reason: &str| Problem::field("token file", path.display(), reason);
        let mut text = String::new();
        let file = fs::File::open(path).map_err(|error| refuse(&error.to_string()))?;
        let read = file.take(TOKEN_BYTES_MAX as u64 + 1).read_to_string(&mut text);
        read.map_err(|error| refuse(&error.to_string()))?;
        Token::new(&text).ok_or_else(|| refuse("one line with a token, up to 4096 visible ASCII characters"))
    }

    fn new(text: &str) -> Option<Token> {
        let text = text.trim();
        let is_token = !text.is_empty()
            && text.len() <= TOKEN_BYTES_MAX
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        let mut value = HeaderValue::from_str(&format!("Bearer {text}")).ok().filter(|_| is_token)?;
        value.set_sensitive(true);
        Some(Token(value))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// An ovsd of another host.
#[derive(Debug, Clone)]
pub struct Remote {
    /// A name or an address, which the certificate there must have.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Who is trusted, and as whom the client shows itself.
    pub tls: Arc<ClientConfig>,
    /// What lets it in there, if not its certificate.
    pub token: Option<Token>,
}

impl Remote {
    /// Takes `https://HOST:PORT` apart.
    pub fn parse_url(url: &str) -> Result<(String, u16), Problem> {
        let refuse = || Problem::field("host", url, "https://HOST:PORT");
        let uri: hyper::Uri = url.parse().map_err(|_| refuse())?;
        let is_bare = uri.path() == "/" && uri.query().is_none();
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        match (uri.scheme_str(), authority, uri.host(), uri.port_u16()) {
            (Some("https"), Some(_), Some(host), Some(port)) if is_bare && !host.is_empty() => {
                Ok((host.trim_matches(['[', ']']).to_owned(), port))
            }
            _ => Err(refuse()),
        }
    }
}

/// Where an ovsd listens.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Socket(PathBuf),
    Remote(Arc<Remote>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Socket(socket) => write!(f, "{}", socket.display()),
            Place::Remote(remote) => write!(f, "https://{}", self::authority(remote)),
        }
    }
}

fn authority(remote: &Remote) -> String {
    let Remote { host, port, .. } = remote;
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Place {
    /// The header `host`.
    pub(super) fn host(&self) -> String {
        match self {
            Place::Socket(_) => "ovsd".to_owned(),
            Place::Remote(remote) => authority(remote),
        }
    }

    /// The header `authorization`.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        match self {
            Place::Socket(_) => None,
            Place::Remote(remote) => remote.token.as_ref().map(|token| token.0.clone()),
        }
    }

    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Place::Socket(socket) => Ok(Box::new(UnixStream::connect(socket).await?)),
            Place::Remote(remote) => {
                let name = ServerName::try_from(remote.host.clone()).map_err(io::Error::other)?;
                let stream = TcpStream::connect((remote.host.as_str(), remote.port)).await?;
                stream.set_nodelay(true)?;
                let connector = TlsConnector::from(Arc::clone(&remote.tls));
                Ok(Box::new(connector.connect(name, stream).await?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: Option<(&str, u16)>) {
        let found = Remote::parse_url(url).ok();
        assert_eq!(found.as_ref().map(|(host, port)| (host.as_str(), *port)), expected, "{url}");
    }

    #[test]
    fn urls() {
        check("https://storage1:8443", Some(("storage1", 8443)));
        check("https://192.0.2.7:8443/", Some(("192.0.2.7", 8443)));
        check("https://[2001:db8::1]:8443", Some(("2001:db8::1", 8443)));
        for bad in [
            "storage1:8443",
            "http://storage1:8443",
            "https://storage1",
            "https://storage1:8443/v1",
            "https://storage1:8443?x",
            "https://user:secret@storage1:8443",
            "https://:8443",
            "https://storage1:99999",
            "",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn tokens() {
        for bad in ["", " \n", "two words", "two\nlines", "ümlaut", &"x".repeat(4097)] {
            assert!(Token::new(bad).is_none(), "{bad:?}");
        }
        let token = Token::new("s3cret\n").unwrap();
        assert_eq!(token.0.to_str().unwrap(), "Bearer s3cret");
        assert!(!format!("{token:?} {:?}", token.0).contains("s3cret"));
    }
}
