//! Connections in, requests to their operations, answers out.

use super::Dispatch;
use super::answer::{Answer, problem_response};
use super::call::{Call, context, is_read};
use super::connection::Connection;
use super::entrance::{Access, Arrival, Entrance};
use super::route::{NoRoute, route};
use futures_util::{Stream, StreamExt};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ovs_api::{Problem, ProblemKind};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use warp::http::header::{AUTHORIZATION, CONTENT_LENGTH};
use warp::http::{HeaderMap, Method};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Buf, Filter};

/// Connections of one entrance at once; the next ones wait in the listener's queue.
const CONNECTION_COUNT_MAX: usize = 1024;
/// All headers of a request, with its first line.
const HEADERS_BYTES_MAX: usize = 32 << 10;
const HEADER_COUNT_MAX: usize = 100;
/// A request's body.
const BODY_BYTES_MAX: usize = 1 << 20;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For the handshake of TLS.
    pub tls: Duration,
    /// For all headers, from the moment that the connection waits for a request.
    pub headers: Duration,
    /// For the whole body.
    pub body: Duration,
    /// For reading a piece of the answer.
    pub write: Duration,
    /// For what is in flight when ovsd stops.
    pub stop: Duration,
}

pub(super) const PATIENCE: Patience = Patience {
    tls: Duration::from_secs(5),
    headers: Duration::from_secs(10),
    body: Duration::from_secs(30),
    write: Duration::from_secs(30),
    stop: Duration::from_secs(5),
};

/// Serves until `stop` comes back and what is in flight then is answered (five seconds at most).
pub async fn serve<D: Dispatch>(entrance: Entrance, dispatch: Arc<D>, stop: impl Future<Output = ()>) {
    serve_with(entrance, dispatch, stop, PATIENCE).await;
}

pub(super) async fn serve_with<D: Dispatch>(
    entrance: Entrance,
    dispatch: Arc<D>,
    stop: impl Future<Output = ()>,
    patience: Patience,
) {
    let (stop_sender, stop_receiver) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(CONNECTION_COUNT_MAX));
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (slot, entrance.accept().await)
        };
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            (slot, accepted) = accepted => match accepted {
                Ok(arrival) => {
                    let served = connection(arrival, Arc::clone(&dispatch), stop_receiver.clone(), patience);
                    connections.spawn(async move {
                        served.await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: those in use come free.
                    tracing::warn!(%error, "cannot accept an RPC connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(entrance);
    stop_sender.send_replace(true);
    let all_done = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(patience.stop, all_done).await.is_err() {
        tracing::warn!(count = connections.len(), "RPC connections were cut off");
        connections.shutdown().await;
    }
}

async fn connection<D: Dispatch>(
    arrival: Arrival,
    dispatch: Arc<D>,
    mut stop: watch::Receiver<bool>,
    patience: Patience,
) {
    let entered = tokio::select! {
        entered = arrival.enter(patience.tls) => entered,
        () = stopped(&mut stop) => None,
    };
    let Some((stream, access)) = entered else { return };
    let stopping = stop.clone();
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let filter = warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |method: Method, path: FullPath, query: String, headers: HeaderMap, body| {
            let (dispatch, stopping, access) = (Arc::clone(&dispatch), stopping.clone(), access.clone());
            async move {
                let body_patience = patience.body;
                let request = Incoming { access, method, path, query, headers, body, body_patience };
                request.answer(dispatch, stopping).await
            }
        });
    let service = TowerToHyperService::new(warp::service(filter));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.headers)
        .max_headers(HEADER_COUNT_MAX)
        .max_header_size(HEADERS_BYTES_MAX)
        .max_buf_size(2 * HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(Connection::new(stream, patience.write)), service);
    let mut served = pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = stopped(&mut stop) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an RPC connection broke");
    }
}

/// Comes back when ovsd stops.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the server itself is gone, which is the same.
    drop(stop.wait_for(|stop| *stop).await);
}

/// A request as HTTP brings it.
struct Incoming<B> {
    access: Access,
    method: Method,
    path: FullPath,
    query: String,
    headers: HeaderMap,
    body: B,
    body_patience: Duration,
}

impl<B, C> Incoming<B>
where
    B: Stream<Item = Result<C, warp::Error>>,
    C: Buf,
{
    async fn answer<D: Dispatch>(self, dispatch: Arc<D>, stop: watch::Receiver<bool>) -> Response {
        // Before anything is told, and before the body is read.
        if let Err(problem) = self.access.check(self.headers.get(AUTHORIZATION).map(|value| value.as_bytes()))
        {
            tracing::debug!(detail = %problem, "refused");
            return problem_response(&problem, &[]);
        }
        let route = match route(self.method.as_str(), self.path.as_str()) {
            Ok(route) => route,
            Err(NoRoute { problem, allow }) => return problem_response(&problem, &allow),
        };
        let operation = route.operation;
        let answered = async {
            let context = context(operation, &self.headers)?;
            let body = read_body(self.body, &self.headers, self.body_patience).await?;
            let call = Call { operation, context, params: route.params, query: self.query, body };
            call.check_surplus()?;
            run(dispatch, call).await
        };
        match answered.await {
            Ok(answer) => {
                tracing::debug!(operation = operation.id, "answered");
                answer.into_response(stop)
            }
            Err(problem) => {
                if problem.kind() == ProblemKind::Internal {
                    tracing::error!(operation = operation.id, detail = %problem, "internal error");
                } else {
                    tracing::debug!(operation = operation.id, status = problem.status, detail = %problem, "refused");
                }
                problem_response(&problem, &[])
            }
        }
    }
}

fn too_large(given: impl std::fmt::Display) -> Problem {
    let detail = format!("body: {given} bytes, at most {BODY_BYTES_MAX} are read");
    Problem::new(ProblemKind::TooLarge, detail).with("field", "body").with("allowed", BODY_BYTES_MAX)
}

async fn read_body<B, C>(body: B, headers: &HeaderMap, patience: Duration) -> Result<Vec<u8>, Problem>
where
    B: Stream<Item = Result<C, warp::Error>>,
    C: Buf,
{
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = announced.filter(|length| *length > BODY_BYTES_MAX as u64) {
        return Err(too_large(length));
    }
    let collected = async {
        let mut body = pin!(body);
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await {
            let mut piece = piece.map_err(|error| {
                Problem::new(ProblemKind::Invalid, format!("body: it broke off: {error}"))
            })?;
            if bytes.len() + piece.remaining() > BODY_BYTES_MAX {
                return Err(too_large("more"));
            }
            while piece.has_remaining() {
                let chunk = piece.chunk();
                bytes.extend_from_slice(chunk);
                let length = chunk.len();
                piece.advance(length);
            }
        }
        Ok(bytes)
    };
    tokio::time::timeout(patience, collected).await.unwrap_or_else(|_| {
        let detail = format!("body: not there after {} s", patience.as_secs());
        Err(Problem::new(ProblemKind::Invalid, detail).with_status(408))
    })
}

/// Runs the operation in a task of its own: a client that hangs up does not cut a change in half, and a panic is this
/// request's alone.
async fn run<D: Dispatch>(dispatch: Arc<D>, call: Call) -> Result<Answer, Problem> {
    let (operation, read_only) = (call.operation.id, is_read(call.operation));
    let mut task = Running { task: tokio::spawn(dispatch.dispatch(call)), abort_on_drop: read_only };
    match (&mut task.task).await {
        Ok(answered) => answered,
        Err(error) => {
            tracing::error!(operation, %error, "an operation panicked");
            Err(Problem::new(
                ProblemKind::Internal,
                format!("{operation}: a defect of ovsd; its log says more"),
            ))
        }
    }
}

struct Running {
    task: JoinHandle<Result<Answer, Problem>>,
    abort_on_drop: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.abort_on_drop {
            self.task.abort();
        }
    }
}
