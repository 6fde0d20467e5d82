//! HTTP for OpenDAL, with what it does not do itself.
//!
//! ```text
//!  request ─▶ body in pieces, as fast as the pace up allows ─▶ status ─▶ body, as fast as the pace down allows ─▶ is it
//!             whole, and the range that was asked for? ─▶ OpenDAL, which has the answer's meaning
//! ```
//!
//! Invariants
//! * A request that stalls ends (see [`Progress`]), whichever way its bytes go.
//! * A body that is cut off, or of another range than the one asked for, is an error here and never bytes there.
//! * No redirect is followed, so that credentials go where they are meant for and nowhere else.
//! * No error has a URL or a header in it: they may carry signatures and tokens.

use crate::pace::{Pace, Progress, Stalled};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use opendal::{Buffer, ErrorKind, HttpBody, HttpTransport};
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

/// Objects and listings are far smaller; a server that does not stop must not fill the memory.
const BODY_BYTES_MAX: usize = 1 << 30;
/// What of an error's text is read.
const ERROR_BYTES_MAX: usize = 16 * 1024;
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
    client: reqwest::Client,
    up: Arc<Pace>,
    down: Arc<Pace>,
    patience: Duration,
}

impl Http {
    pub(crate) fn new(
        is_tls: bool,
        patience: Duration,
        up: Option<u64>,
        down: Option<u64>,
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
        Ok(Http { client, up: Arc::new(Pace::new(up)), down: Arc::new(Pace::new(down)), patience })
    }

    /// One request and its whole answer.
    pub(crate) async fn exchange(&self, request: Request<Buffer>) -> Result<Response<Bytes>, HttpError> {
        let progress = Arc::new(Progress::new(self.patience));
        let (head, body) = request.into_parts();
        let url = reqwest::Url::parse(&head.uri.to_string()).map_err(|_| wrong("a URL that is none"))?;
        let mut sent = self.client.request(head.method.clone(), url).headers(head.headers.clone());
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
        let body = self.body(answer, &progress, status.is_success()).await?;
        if means_the_same_everywhere(status) {
            return Err(HttpError::Status { code: status.as_u16(), text: plain_text(&body) });
        }
        if status.is_success() && head.method == Method::GET {
            let asked = head.headers.get(header::RANGE);
            if check_range(asked, status, &headers, body.len() as u64)? == Told::Ended {
                return Err(HttpError::Ended(body));
            }
            check_listing(head.uri.query().unwrap_or(""), &body)?;
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
            if length > BODY_BYTES_MAX {
                return Err(wrong("longer than 1 GiB"));
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

/// The roots that this system trusts; none where everything is plain HTTP.
fn tls(is_tls: bool) -> Result<tokio_rustls::rustls::ClientConfig, String> {
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
    let mut roots = RootCertStore::empty();
    if is_tls {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err("this system trusts no certificate authority (package ca-certificates)".to_owned());
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn wrong(reason: impl Into<String>) -> HttpError {
    HttpError::Wrong(reason.into())
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

/// The beginning of an error's text, on one line.
fn plain_text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(ERROR_BYTES_MAX)]);
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

/// The others (above all 404, 409, 412) have a meaning that depends on store and request: OpenDAL's.
fn means_the_same_everywhere(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 401 | 403 | 408 | 413 | 416 | 425 | 429)
}

/// Without either of them a body ends where the connection does, and one that was cut off looks whole.
fn check_framing(headers: &HeaderMap) -> Result<(), HttpError> {
    match headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING) {
        true => Ok(()),
        false => Err(wrong("a body without a length")),
    }
}

/// Any XML at all is a listing of nothing to OpenDAL: a page of a proxy's, an error that comes with 200.
fn check_listing(query: &str, body: &[u8]) -> Result<(), HttpError> {
    let root = match query {
        query if query.contains("list-type=2") => "<ListBucketResult",
        query if query.contains("comp=list") => "<EnumerationResults",
        _ => return Ok(()),
    };
    match body.windows(root.len()).any(|found| found == root.as_bytes()) {
        true => Ok(()),
        false => Err(wrong(format!("no listing: {}", plain_text(body)))),
    }
}

/// `bytes=FIRST-` or `bytes=FIRST-LAST` (RFC 9110, 14.1.2); anything else is not asked for here.
fn asked_range(header: &http::HeaderValue) -> Option<(u64, Option<u64>)> {
    let (first, last) = header.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, if last.is_empty() { None } else { Some(last.parse().ok()?) }))
}

/// `bytes FIRST-LAST/SIZE` (RFC 9110, 14.4).
fn told_range(header: &http::HeaderValue) -> Option<(u64, u64, u64)> {
    let (range, size) = header.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, size.parse().ok()?))
}

/// What was asked for, or what of it there is.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    All,
    Ended,
}

/// Exactly the bytes asked for, up to the object's end.
fn check_range(
    asked: Option<&http::HeaderValue>,
    status: StatusCode,
    headers: &HeaderMap,
    length: u64,
) -> Result<Told, HttpError> {
    let asked = match asked.map(asked_range) {
        None if status == StatusCode::PARTIAL_CONTENT => return Err(wrong("a part where all was asked for")),
        None => return Ok(Told::All),
        Some(None) => return Err(wrong("a range that is none")),
        Some(Some(asked)) => asked,
    };
    let (first, last) = asked;
    if status != StatusCode::PARTIAL_CONTENT {
        // Of an empty object there is no range, and some say 200 to that.
        return if length == 0 { Ok(Told::Ended) } else { Err(wrong("the server ignores ranges")) };
    }
    let told = headers.get(header::CONTENT_RANGE).and_then(told_range);
    let Some((told_first, told_last, size)) = told else {
        return Err(wrong("a part of which no range is told"));
    };
    let expected_last = last.unwrap_or(u64::MAX).min(size.saturating_sub(1));
    let is_right = told_first == first && told_last == expected_last && told_last >= told_first;
    if is_right && length == told_last - told_first + 1 {
        return Ok(if last.is_none_or(|last| told_last == last) { Told::All } else { Told::Ended });
    }
    let asked = last.map_or(format!("{first}-"), |last| format!("{first}-{last}"));
    Err(wrong(format!("bytes {told_first}-{told_last} of {size}, {length} of them, for {asked}")))
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
    use super::*;

    fn check(asked: &str, status: u16, told: &str, length: u64, expected: Option<Told>) {
        let mut headers = HeaderMap::new();
        if !told.is_empty() {
            headers.insert(header::CONTENT_RANGE, told.parse().unwrap());
        }
        let asked_header: Option<http::HeaderValue> = (!asked.is_empty()).then(|| asked.parse().unwrap());
        let result =
            check_range(asked_header.as_ref(), StatusCode::from_u16(status).unwrap(), &headers, length);
        assert_eq!(result.as_ref().ok(), expected.as_ref(), "{asked}, {status} {told} {length}: {result:?}");
    }

    #[test]
    fn only_the_range_asked_for_is_taken() {
        check("", 200, "", 10, Some(Told::All));
        check("", 206, "bytes 0-9/10", 10, None);
        check("bytes=2-5", 206, "bytes 2-5/10", 4, Some(Told::All));
        check("bytes=2-50", 206, "bytes 2-9/10", 8, Some(Told::Ended));
        check("bytes=2-", 206, "bytes 2-9/10", 8, Some(Told::All));
        check("bytes=0-9", 200, "", 0, Some(Told::Ended));
        // Ignored, shifted, cut off although the object goes on, another length than it says, not told at all.
        check("bytes=2-5", 200, "", 10, None);
        check("bytes=2-5", 206, "bytes 3-5/10", 3, None);
        check("bytes=2-5", 206, "bytes 2-4/10", 3, None);
        check("bytes=2-5", 206, "bytes 2-5/10", 3, None);
        check("bytes=2-5", 206, "bytes 2-5/*", 4, None);
        check("bytes=2-5", 206, "", 4, None);
        check("bytes=2-", 206, "bytes 2-5/10", 4, None);
        check("bytes=2-5", 206, "bytes 2-1/0", 0, None);
        check("bytes=2-5", 206, "bytes 0-18446744073709551615/18446744073709551615", 0, None);
    }

    #[test]
    fn the_text_of_an_error_is_short_and_on_one_line() {
        assert_eq!(plain_text(b"<Error>\r\n  <Code>x</Code>\0\xff"), "<Error> <Code>x</Code> \u{fffd}");
        assert_eq!(plain_text(&[b'x'; 100_000]).len(), 300);
    }
}
