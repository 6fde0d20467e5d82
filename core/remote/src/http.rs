//! HTTP for OpenDAL, with what it does not do itself.
//!
//! ```text
//!  request ─▶ body in pieces, as fast as the pace up allows ─▶ status ─▶ body, as fast as the pace down allows ─▶ is it
//!             whole, and the range that was asked for? ─▶ OpenDAL, which has the answer's meaning
//! ```
//!
//! Invariants
//! * A request that stalls ends (see [`Progress`]), whichever way its bytes go.
//! * No answer is longer than what was asked for.
//! * A body that is cut off, or of another range than the one asked for, is an error here and never bytes there; what somebody
//!   else says in the store's place is one too (`answer.rs`).
//! * No redirect is followed, so that credentials go where they are meant for and nowhere else.
//! * No error has a URL or a header in it: they may carry signatures and tokens.

use crate::{
    answer::{
        Protocol, Told, bytes_max, check_framing, check_listing, check_origin, check_range, has_code, wrong,
    },
    checksum::Checksum,
    pace::{Allowance, Pace, Progress, Stalled},
    redact::{ERROR_BYTES_MAX, Redactor, shorten},
};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use opendal::{Buffer, ErrorKind, HttpBody, HttpTransport, raw::Operation};
use std::{
    convert::Infallible,
    error::Error as _,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use thiserror::Error;
use tokio::time::{Sleep, sleep};
use tokio_rustls::rustls::RootCertStore;

/// A body goes up in pieces of this size.
const PIECE_BYTES: usize = 128 * 1024;
const CONNECT: Duration = Duration::from_secs(5);

/// Why there is no answer that OpenDAL could read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum HttpError {
    /// No connection, or it ended before the answer did.
    #[error("{0}")]
    Connection(String),
    /// Neither bytes nor an answer, for too long.
    #[error("no answer in time")]
    Stalled,
    /// The answer is not what was asked for.
    #[error("the answer is wrong: {0}")]
    Wrong(String),
    /// A HEAD's 404 that may be anybody's.
    #[error("HTTP 404, without a mark of the store")]
    Unmarked,
    /// It was put, and the store does not say that these are the bytes.
    #[error("it is not said that what was sent is stored")]
    Unconfirmed,
    /// The object ends within the range; its bytes up to there. To OpenDAL a read that is short is an error, so they are one.
    #[error("the object ends after {} bytes of the range", .0.len())]
    Ended(Bytes),
    /// One of the statuses that mean the same to every store.
    #[error("HTTP {code}: {text}")]
    Status { code: u16, text: String },
}

impl From<Stalled> for HttpError {
    fn from(_: Stalled) -> HttpError {
        HttpError::Stalled
    }
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Http {
    protocol: Protocol,
    redactor: Redactor,
    client: reqwest::Client,
    up: Arc<Pace>,
    down: Arc<Pace>,
    patience: Duration,
    operation: Option<Arc<Allowance>>,
}

impl Http {
    pub(crate) fn new(
        protocol: Protocol,
        redactor: Redactor,
        is_tls: bool,
        patience: Duration,
        bytes_per_s: Option<u64>,
    ) -> Result<Http, String> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(is_tls)?)
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            // Nobody else sees tokens and objects, whatever the environment says.
            .no_proxy()
            .connect_timeout(CONNECT.min(patience))
            .user_agent(concat!("ovs/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(describe)?;
        Ok(Http {
            protocol,
            redactor,
            client,
            up: Arc::new(Pace::new(bytes_per_s)),
            down: Arc::new(Pace::new(bytes_per_s)),
            patience,
            operation: None,
        })
    }

    pub(crate) fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// For one operation: its requests have its time.
    pub(crate) fn during(&self, operation: Arc<Allowance>) -> Http {
        Http { operation: Some(operation), ..self.clone() }
    }

    /// One request and its whole answer.
    pub(crate) async fn exchange(&self, request: Request<Buffer>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let operation = head.extensions.get::<Operation>().copied();
        let url = reqwest::Url::parse(&head.uri.to_string()).map_err(|_| wrong("a URL that is none"))?;
        let mut sent = self.client.request(head.method.clone(), url).headers(head.headers.clone());
        let checksum = match operation {
            Some(Operation::Write) => Some(Checksum::of(&head.headers, &body).await),
            _ => None,
        };
        if let (Some(checksum), Protocol::Swift) = (&checksum, self.protocol) {
            sent = sent.header(header::ETAG, &checksum.hex);
        }
        let counts = operation != Some(Operation::List);
        let allowance = self.operation.clone().map(|allowance| (allowance, counts));
        let progress = Arc::new(Progress::new(self.patience, allowance));
        if !body.is_empty() {
            let body = PacedBody {
                rest: body,
                piece: Bytes::new(),
                held: None,
                pace: self.up.clone(),
                progress: progress.clone(),
            };
            sent = sent.body(reqwest::Body::wrap(body));
        }
        let answer = progress.or_stalled(sent.send()).await?.map_err(connection)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        if status.is_success() && status != StatusCode::NO_CONTENT && head.method == Method::GET {
            check_framing(&headers)?;
        }
        let asked = head.headers.get(header::RANGE);
        let bytes_max = if status.is_success() { bytes_max(operation, asked) } else { u64::MAX };
        // What is told is not waited for; what is not told ends where it is too much.
        if head.method != Method::HEAD && answer.content_length().is_some_and(|length| length > bytes_max) {
            return Err(wrong(format!("longer than {bytes_max} bytes, which are all that was asked for")));
        }
        let mut body = self.body(answer, &progress, status.is_success(), bytes_max).await?;
        let redactor = || self.redactor.and(&head.headers);
        if !status.is_success() {
            body = Bytes::from(redactor().clean_body(&body));
        }
        let quote = |body: &[u8]| shorten(&redactor().clean_body(body));
        if means_the_same_everywhere(status) || has_code(&body, "BadDigest") && !status.is_success() {
            return Err(HttpError::Status { code: status.as_u16(), text: quote(&body) });
        }
        if let Some(operation) = operation {
            check_origin(self.protocol, operation, status, &headers, &body, quote)?;
        }
        if status.is_success() && checksum.is_some_and(|checksum| !checksum.is_told(&headers, &body)) {
            return Err(HttpError::Unconfirmed);
        }
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            check_range(asked, status, &headers, 0)?;
            return Err(HttpError::Ended(Bytes::new()));
        }
        if status.is_success() && head.method == Method::GET {
            if check_range(asked, status, &headers, body.len() as u64)? == Told::Ended {
                return Err(HttpError::Ended(body));
            }
            check_listing(head.uri.query().unwrap_or(""), &body, quote)?;
        }
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response.extensions_mut().insert(head.uri);
        Ok(response)
    }

    async fn body(
        &self,
        mut answer: reqwest::Response,
        progress: &Progress,
        is_success: bool,
        bytes_max: u64,
    ) -> Result<Bytes, HttpError> {
        let mut pieces = Vec::new();
        let mut length = 0usize;
        while let Some(piece) = progress.or_stalled(answer.chunk()).await?.map_err(connection)? {
            length += piece.len();
            let held = self.down.book(piece.len());
            progress.moved(piece.len(), held);
            pieces.push(piece);
            if !is_success && length > ERROR_BYTES_MAX {
                break;
            }
            if length as u64 > bytes_max {
                return Err(wrong(format!(
                    "longer than {bytes_max} bytes, which are all that was asked for"
                )));
            }
            if !held.is_zero() {
                sleep(held).await;
            }
        }
        Ok(Buffer::from(pieces).to_bytes())
    }
}

impl HttpTransport for Http {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let answer = self.exchange(request).await;
        let answer = answer.map_err(|error| {
            opendal::Error::new(ErrorKind::Unexpected, "no answer that can be used").set_source(error)
        })?;
        Ok(answer.map(|body| {
            let length = body.len() as u64;
            let pieces = (!body.is_empty()).then(|| Ok(Buffer::from(body)));
            HttpBody::new(stream::iter(pieces), Some(length))
        }))
    }
}

fn tls(is_needed: bool) -> Result<tokio_rustls::rustls::ClientConfig, String> {
    use tokio_rustls::rustls::{ClientConfig, crypto::ring};
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots(is_needed)?).with_no_client_auth())
}

/// The roots that this system trusts, also where nothing is asked by https:// yet: a login may lead there.
fn roots(is_needed: bool) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match roots.is_empty() && is_needed {
        true => Err("this system trusts no certificate authority (package ca-certificates)".to_owned()),
        false => Ok(roots),
    }
}

fn connection(error: reqwest::Error) -> HttpError {
    HttpError::Connection(describe(error))
}

/// With what lies below it, and without the URL.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        text = format!("{text}: {error}");
        below = error.source();
    }
    text
}

/// The others (above all 404, 409, 412) have a meaning that depends on store and request: OpenDAL's.
fn means_the_same_everywhere(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 401 | 403 | 408 | 413 | 422 | 425 | 429)
}

/// A request's body in pieces, none before its time.
struct PacedBody {
    rest: Buffer,
    piece: Bytes,
    held: Option<(Pin<Box<Sleep>>, Bytes)>,
    pace: Arc<Pace>,
    progress: Arc<Progress>,
}

impl PacedBody {
    fn next_piece(&mut self) -> Option<Bytes> {
        while self.piece.is_empty() {
            self.piece = self.rest.next()?;
        }
        Some(self.piece.split_to(self.piece.len().min(PIECE_BYTES)))
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.held.is_none() {
            let Some(piece) = self.next_piece() else { return Poll::Ready(None) };
            let held = self.pace.book(piece.len());
            self.progress.moved(piece.len(), held);
            if held.is_zero() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.held = Some((Box::pin(sleep(held)), piece));
        }
        if let Some((until, _)) = &mut self.held {
            ready!(until.as_mut().poll(cx));
        }
        Poll::Ready(self.held.take().map(|(_, piece)| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.piece.is_empty() && self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.as_ref().map_or(0, |(_, piece)| piece.len());
        SizeHint::with_exact((self.rest.len() + self.piece.len() + held) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::roots;

    #[test]
    fn roots_are_there_where_nothing_is_asked_by_https_yet() {
        let system = rustls_native_certs::load_native_certs().certs;
        assert_eq!(roots(false).unwrap().is_empty(), system.is_empty());
        assert_eq!(roots(true).is_err(), system.is_empty());
    }
}
