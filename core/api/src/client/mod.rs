//! The client: one typed method per operation of the table.
//!
//! ```text
//!  client.get_vdisk(&vdisk) ─▶ call: path, query, body ─▶ send (a connection per request) ─▶ reply | problem
//!                                        ▲                        │ nobody listens, or ovsd is starting
//!                                        └── wait a little ◀──────┘ (within the client's patience)
//! ```
//!
//! Only what certainly did not happen is sent again: a request that found nobody, and reads. A connection that broke
//! under a change is reported as [`ApiError::Broken`]; creates may be repeated as they are.

mod edge;
mod error;
mod events;
mod place;

pub use edge::EdgeClient;
pub use error::ApiError;
pub use events::Events;
#[doc(hidden)]
pub use events::LineReader;
pub use place::{Remote, Token};

use crate::paths::percent_encode;
use crate::reply::{Accepted, Created, JsonReply, NoContent};
use crate::tls::rustls;
use crate::types::*;
use crate::{Method, PROTOCOL, Problem, ProblemKind, SnapshotRef, VdiskRef};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use ovs_units::Name;
use place::Place;
use serde::Serialize;
use serde_json::Value;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How long an answer may take, beyond what the request itself waits for.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// An answer at most: a page of a thousand vDisks with all their labels.
const REPLY_BYTES_MAX: usize = 128 << 20;
/// What `wait=on_backend` waits for when it does not say.
const WAIT_MS_DEFAULT: u64 = 60_000;
/// A path with its query at most; the service reads no more either.
const TARGET_BYTES_MAX: usize = 16 << 10;
const RETRY_DELAY_MIN: Duration = Duration::from_millis(20);
const RETRY_DELAY_MAX: Duration = Duration::from_millis(500);

/// A client of one ovsd. Cheap to clone; needs a tokio runtime with time and I/O.
#[derive(Debug, Clone)]
pub struct Client {
    place: Place,
    timeout: Duration,
    patience: Duration,
    if_match: Option<u64>,
    idempotency_key: Option<String>,
}

/// A request, ready to go as often as it takes.
struct Call<'a> {
    operation: &'static str,
    method: Method,
    path_and_query: String,
    body: Option<Vec<u8>>,
    last_event_id: Option<EventId>,
    client: &'a Client,
}

/// What one attempt came to.
enum Attempt {
    Answered(hyper::Response<Incoming>),
    /// Nobody listens now.
    NobodyThere(ApiError),
    Failed(ApiError),
}

impl Client {
    /// A client of the ovsd that listens on `socket` (see [`Paths::socket`](crate::Paths::socket)). Connects with each call.
    pub fn new(socket: impl AsRef<Path>) -> Client {
        Client::of(Place::Socket(socket.as_ref().to_owned()))
    }

    /// A client of an ovsd on another host. Connects with each call.
    pub fn remote(remote: Remote) -> Client {
        Client::of(Place::Remote(Arc::new(remote)))
    }

    fn of(place: Place) -> Client {
        Client {
            place,
            timeout: TIMEOUT_DEFAULT,
            patience: Duration::ZERO,
            if_match: None,
            idempotency_key: None,
        }
    }

    /// The same, but every call tries for so long to find an ovsd (one that restarts, say); by default not at all.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Client {
        self.patience = patience;
        self
    }

    /// The same with another time-out of each attempt.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Client {
        self.timeout = timeout;
        self
    }

    /// The same for one change: refused when the object has not this revision.
    #[must_use]
    pub fn if_match(&self, revision: u64) -> Client {
        Client { if_match: Some(revision), ..self.clone() }
    }

    /// The same for one POST: with this key it happens once, however often it is sent.
    #[must_use]
    pub fn idempotency_key(&self, key: impl Into<String>) -> Client {
        Client { idempotency_key: Some(key.into()), ..self.clone() }
    }

    /// What happens from now on, or after `last_event_id` (`gone` when that is too long ago: list again).
    pub async fn events(&self, last_event_id: Option<EventId>) -> Result<Events, ApiError> {
        let mut call = Call::new(self, "stream_events", Method::GET, "/v1/events".to_owned());
        call.last_event_id = last_event_id;
        let response = call.send().await?;
        if response.status() == 200 {
            return Ok(Events::new(response.into_body(), last_event_id));
        }
        let (status, body) = call.collect(response).await?;
        Err(call.refusal(status, &body))
    }

    /// Counters of this ovsd in the Prometheus text format.
    pub async fn get_metrics(&self) -> Result<String, ApiError> {
        let call = Call::new(self, "get_metrics", Method::GET, "/metrics".to_owned());
        let body = call.text().await?;
        String::from_utf8(body.to_vec()).map_err(|error| call.not_understood(200, error))
    }

    /// The OpenAPI document that this ovsd serves.
    pub async fn get_openapi(&self) -> Result<Value, ApiError> {
        let call = Call::new(self, "get_openapi", Method::GET, "/openapi.json".to_owned());
        let body = call.text().await?;
        serde_json::from_slice(&body).map_err(|error| call.not_understood(200, error))
    }
}

macro_rules! methods {
    (
        served { $($served:tt)* }
        later { $($later:tt)* }
        streams { $($streams:tt)* }
    ) => {
        methods!(@rows $($served)* $($later)*);
    };
    (@rows $(
        $(#[doc = $doc:literal])+
        $id:ident: $method:ident $path:literal $(path($($param:ident: $Param:ty),+))? $(query($Query:ty))?
            $(body($Body:ty))? -> $Reply:ty, may [$($kind:ident),*] $(until $until:literal)?;
    )*) => {
        impl Client {
            $(
                $(#[doc = $doc])+
                pub async fn $id(
                    &self, $($($param: &$Param,)+)? $(query: &$Query,)? $(body: &$Body,)?
                ) -> Result<$Reply, ApiError> {
                    let path = fill($path, &[$($((stringify!($param), $param as &dyn fmt::Display)),+)?]);
                    #[allow(unused_mut, reason = "not every operation has a query or a body")]
                    let mut call = Call::new(self, stringify!($id), Method::$method, path);
                    $(call.query::<$Query>(query)?;)?
                    $(call.body::<$Body>(body)?;)?
                    call.reply().await
                }
            )*
        }
    };
}

crate::for_each_operation!(methods);

/// The path with its parameters in place, each one segment whatever is in it.
fn fill(template: &str, params: &[(&str, &dyn fmt::Display)]) -> String {
    params.iter().fold(template.to_owned(), |path, (name, value)| {
        path.replace(&format!("{{{name}}}"), &percent_encode(&value.to_string()).replace('/', "%2F"))
    })
}

/// The members of a query object as `name=value&…`; arrays repeat their name.
fn query_string(query: &Value) -> String {
    let mut pairs = Vec::new();
    for (name, value) in query.as_object().into_iter().flatten() {
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for value in values.iter().filter(|value| !value.is_null()) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            pairs.push(format!("{name}={}", percent_encode(&text)));
        }
    }
    pairs.join("&")
}

impl<'a> Call<'a> {
    fn new(client: &'a Client, operation: &'static str, method: Method, path_and_query: String) -> Call<'a> {
        Call { operation, method, path_and_query, body: None, last_event_id: None, client }
    }

    fn query<T: Serialize + Request>(&mut self, query: &T) -> Result<(), ApiError> {
        query.check()?;
        let query = serde_json::to_value(query).map_err(|error| self.not_understood(0, error))?;
        let text = query_string(&query);
        if !text.is_empty() {
            self.path_and_query = format!("{}?{text}", self.path_and_query);
        }
        Ok(())
    }

    fn body<T: Serialize + Request>(&mut self, body: &T) -> Result<(), ApiError> {
        body.check()?;
        self.body = Some(serde_json::to_vec(body).map_err(|error| self.not_understood(0, error))?);
        Ok(())
    }

    /// The client's time-out, and the time that the request itself asks to wait.
    fn timeout(&self) -> Duration {
        let query = self.path_and_query.split_once('?').map_or("", |(_, query)| query);
        let value_of =
            |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let wait_ms = match (value_of("wait_ms").and_then(|ms| ms.parse().ok()), value_of("wait")) {
            (Some(wait_ms), _) => wait_ms,
            (None, Some(_)) => WAIT_MS_DEFAULT,
            (None, None) => 0,
        };
        self.client.timeout.saturating_add(Duration::from_millis(wait_ms))
    }

    fn request(&self) -> Result<hyper::Request<Full<Bytes>>, ApiError> {
        if self.path_and_query.len() > TARGET_BYTES_MAX {
            return Err(Problem::new(
                ProblemKind::TooLarge,
                "the query is too long: use fewer or shorter labels",
            )
            .into());
        }
        let mut request = hyper::Request::builder()
            .method(self.method.as_str())
            .uri(&self.path_and_query)
            .header("host", self.client.place.host())
            .header("ovs-protocol", PROTOCOL.max);
        if let Some(authorization) = self.client.place.authorization() {
            request = request.header("authorization", authorization);
        }
        if self.body.is_some() {
            request = request.header("content-type", "application/json");
        }
        if let Some(revision) = self.client.if_match {
            request = request.header("if-match", format!("\"{revision}\""));
        }
        if let (Some(key), Method::POST) = (&self.client.idempotency_key, self.method) {
            request = request.header("idempotency-key", key);
        }
        if let Some(EventId(id)) = self.last_event_id {
            request = request.header("last-event-id", id);
        }
        let body = Full::new(Bytes::from(self.body.clone().unwrap_or_default()));
        request.body(body).map_err(|error| Problem::new(ProblemKind::Invalid, error.to_string()).into())
    }

    /// True when sending it twice does no more than sending it once.
    fn is_repeatable(&self) -> bool {
        matches!(self.method, Method::GET | Method::PUT)
            || (self.method == Method::POST && self.client.idempotency_key.is_some())
    }

    /// One connection for one request: no request ever meets a connection that ovsd is just closing.
    async fn attempt(&self) -> Result<Attempt, ApiError> {
        let after = self.timeout();
        let request = self.request()?;
        let sent = async {
            let stream = match self.client.place.connect().await {
                Ok(stream) => stream,
                Err(error) => return self.unreachable(&error),
            };
            let answer = async {
                let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                // It ends with the answer, however long that is, and what breaks it is told there too.
                tokio::spawn(connection);
                sender.send_request(request).await
            };
            match answer.await {
                Ok(response) => Attempt::Answered(response),
                Err(error) => self.broken(&error),
            }
        };
        let timed_out = |_| Attempt::Failed(ApiError::TimedOut { operation: self.operation, after });
        Ok(tokio::time::timeout(after, sent).await.unwrap_or_else(timed_out))
    }

    fn unreachable(&self, error: &io::Error) -> Attempt {
        let unreachable =
            ApiError::Unreachable { place: self.client.place.to_string(), reason: error.to_string() };
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock => {
                Attempt::NobodyThere(unreachable)
            }
            _ => Attempt::Failed(unreachable),
        }
    }

    fn broken(&self, error: &hyper::Error) -> Attempt {
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        match cause {
            // With TLS 1.3 a server refuses a client's certificate after the client's part of the handshake.
            Some(cause) if cause.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()) => {
                self.unreachable(cause)
            }
            _ => {
                let reason = cause.map_or_else(|| error.to_string(), ToString::to_string);
                Attempt::Failed(ApiError::Broken { operation: self.operation, reason })
            }
        }
    }

    /// Sends until somebody answers or patience ends.
    async fn send(&self) -> Result<hyper::Response<Incoming>, ApiError> {
        let mut waited = Duration::ZERO;
        let mut delay = RETRY_DELAY_MIN;
        loop {
            let failure = match self.attempt().await? {
                Attempt::Answered(response) => {
                    if waited >= self.client.patience || !is_starting(&response) {
                        return Ok(response);
                    }
                    None
                }
                Attempt::NobodyThere(error) => Some(error),
                Attempt::Failed(error @ ApiError::Broken { .. }) if self.is_repeatable() => Some(error),
                Attempt::Failed(error) => return Err(error),
            };
            if let Some(error) = failure
                && waited >= self.client.patience
            {
                return Err(error);
            }
            tokio::time::sleep(delay).await;
            waited += delay;
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
    }

    async fn collect(&self, response: hyper::Response<Incoming>) -> Result<(u16, Bytes), ApiError> {
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), REPLY_BYTES_MAX).collect();
        match tokio::time::timeout(self.client.timeout, body).await {
            Ok(Ok(body)) => Ok((status, body.to_bytes())),
            Ok(Err(error)) => Err(ApiError::Broken { operation: self.operation, reason: error.to_string() }),
            Err(_) => Err(ApiError::TimedOut { operation: self.operation, after: self.client.timeout }),
        }
    }

    async fn reply<T: JsonReply>(&self) -> Result<T, ApiError> {
        let (status, body) = self.collect(self.send().await?).await?;
        if !(200..300).contains(&status) {
            return Err(self.refusal(status, &body));
        }
        T::decode(status, &body).map_err(|error| self.not_understood(status, error))
    }

    async fn text(&self) -> Result<Bytes, ApiError> {
        let (status, body) = self.collect(self.send().await?).await?;
        if status == 200 { Ok(body) } else { Err(self.refusal(status, &body)) }
    }

    fn refusal(&self, status: u16, body: &[u8]) -> ApiError {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => problem.into(),
            Err(error) => self.not_understood(status, error),
        }
    }

    fn not_understood(&self, status: u16, error: impl ToString) -> ApiError {
        ApiError::NotUnderstood { operation: self.operation, status, reason: error.to_string() }
    }
}

/// ovsd is there and replays its write buffer: it says so with 503 and this header, and nothing has happened.
fn is_starting(response: &hyper::Response<Incoming>) -> bool {
    response.status() == 503 && response.headers().contains_key("retry-after")
}

#[cfg(test)]
mod tests;
