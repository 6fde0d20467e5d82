//! What goes back.

use super::serve::stopped;
use futures_util::StreamExt;
use ovs_api::{
    Event, EventKind, EventStream, JsonReply, METRICS_CONTENT_TYPE, MetricsText, Problem, ProblemKind,
};
use serde_json::Value;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use warp::Reply as _;
use warp::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, RETRY_AFTER, WWW_AUTHENTICATE};
use warp::http::{HeaderValue, StatusCode};
use warp::reply::Response;
use warp::sse;

/// Nothing happened, but ovsd lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events on their way to one reader; a reader that is further behind is the stream's business.
const EVENTS_QUEUED_MAX: usize = 64;

/// An operation's success, for the wire.
#[derive(Debug)]
pub struct Answer(Content);

#[derive(Debug)]
enum Content {
    Bytes { status: u16, kind: &'static str, revision: Option<u64>, body: Vec<u8> },
    Empty { status: u16 },
    Events(EventStream),
}

const JSON: &str = "application/json";

fn unwritable(error: serde_json::Error) -> Problem {
    Problem::new(ProblemKind::Internal, format!("the answer cannot be written as JSON: {error}"))
}

impl Answer {
    pub(crate) fn json<T: JsonReply>(reply: &T) -> Result<Answer, Problem> {
        let reply = reply.encode().map_err(unwritable)?;
        let (status, revision) = (reply.status, reply.revision);
        Ok(Answer(match reply.body {
            Some(body) => Content::Bytes { status, kind: JSON, revision, body },
            None => Content::Empty { status },
        }))
    }

    pub(crate) fn value(value: &Value) -> Result<Answer, Problem> {
        let body = serde_json::to_vec(value).map_err(unwritable)?;
        Ok(Answer(Content::Bytes { status: 200, kind: JSON, revision: None, body }))
    }

    pub(crate) fn metrics(text: MetricsText) -> Answer {
        let body = text.0.into_bytes();
        Answer(Content::Bytes { status: 200, kind: METRICS_CONTENT_TYPE, revision: None, body })
    }

    pub(crate) fn events(stream: EventStream) -> Answer {
        Answer(Content::Events(stream))
    }

    /// As a response; a stream of events ends when `stop` turns true.
    pub(super) fn into_response(self, stop: watch::Receiver<bool>) -> Response {
        match self.0 {
            Content::Bytes { status, kind, revision, body } => response(status, kind, revision, body),
            Content::Empty { status } => {
                let mut response = Response::default();
                *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::NO_CONTENT);
                response
            }
            Content::Events(stream) => stream_response(stream, stop),
        }
    }
}

fn response(status: u16, kind: &'static str, revision: Option<u64>, body: Vec<u8>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(etag) = revision.and_then(|revision| HeaderValue::from_str(&format!("\"{revision}\"")).ok()) {
        headers.insert(ETAG, etag);
    }
    response
}

/// A problem as a response; `retry_after_s` among its members becomes a header, that clients wait for.
pub(super) fn problem_response(problem: &Problem, allow: &[&str]) -> Response {
    let body = serde_json::to_vec(problem).unwrap_or_default();
    let mut response = response(problem.status, "application/problem+json", None, body);
    let retry_after = problem.extra.get("retry_after_s").and_then(Value::as_u64);
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if problem.kind() == ProblemKind::Unauthorized {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"ovs\""));
    }
    if let Ok(allow) = HeaderValue::from_str(&allow.join(", "))
        && !allow.is_empty()
    {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

fn stream_response(stream: EventStream, stop: watch::Receiver<bool>) -> Response {
    let (sender, mut receiver) = mpsc::channel(EVENTS_QUEUED_MAX);
    tokio::spawn(forward(stream, sender, stop));
    let events = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context)).map(wire_event);
    sse::reply(sse::keep_alive().interval(KEEP_ALIVE).text("").stream(events)).into_response()
}

/// Carries events to one reader until it goes, the stream ends, or ovsd stops.
async fn forward(mut stream: EventStream, sender: mpsc::Sender<Event>, mut stop: watch::Receiver<bool>) {
    let first = Event {
        id: stream.newest,
        kind: EventKind::StreamStarted,
        subject: None,
        revision: None,
        vpool: None,
        vdisk: None,
        name: None,
        previous_name: None,
        size_bytes: None,
        detail: None,
        at: stream.at,
    };
    let mut next = Some(first);
    while let Some(event) = next {
        let sent = tokio::select! {
            sent = sender.send(event) => sent.is_ok(),
            () = stopped(&mut stop) => false,
        };
        if !sent {
            return;
        }
        next = tokio::select! {
            event = stream.events.next() => event,
            () = sender.closed() => None,
            () = stopped(&mut stop) => None,
        };
    }
}

fn wire_event(event: Event) -> Result<sse::Event, Infallible> {
    let wire = sse::Event::default().event(event.kind.as_str());
    // Readers take every id for their position. The newest one comes first, before what a resumed reader missed: as an id
    // it would make a reader that is cut off in between skip the rest.
    let wire = match event.kind {
        EventKind::StreamStarted => wire,
        _ => wire.id(event.id.0.to_string()),
    };
    // An event is made of texts and numbers: it can always be written.
    Ok(wire
        .json_data(&event)
        .unwrap_or_else(|_| sse::Event::default().comment("an event that cannot be written")))
}
