//! Docker's side: HTTP/1.1 over a unix socket, one JSON object in, one out.
//!
//! Everything that comes in is bounded: a header by size and time, a body by size and time, connections by number. An
//! operation runs as a task of its own and to its end whether or not the caller stays: a half-done Mount would be worse
//! than one too many. The caller's patience is another matter: after [`Plugin::ANSWER_TIMEOUT`] it gets an error.
//!
//! Not here: what the operations do.

use crate::message::{Answer, ErrorBody, Request, RequestError};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, future::Future, io, sync::Arc, time::Duration};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, oneshot, watch},
    time::{sleep, timeout},
};

/// The largest body taken. Docker's largest is an option map.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// hyper's smallest allowed is 8 KiB; Docker's headers have a few hundred bytes.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// How long a connection may take over a header, and stay idle between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// More are not accepted until some have gone: each costs a few KiB and a descriptor.
const CONNECTIONS_MAX: usize = 4096;
/// After an error of accept(2), as when descriptors have run out.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);
/// How long a stop waits for what is being done.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const TOO_LARGE: &str = "the body is larger than 1 MiB";
const JSON: &str = "application/vnd.docker.plugins.v1.1+json";

/// What answers.
pub trait Plugin: Send + Sync + 'static {
    /// How long Docker waits for a change; it gives up by itself after two minutes.
    const ANSWER_TIMEOUT: Duration = Duration::from_secs(110);

    /// Does what is asked; the error is for Docker's user.
    fn call(&self, request: Request) -> impl Future<Output = Result<Answer, String>> + Send;

    /// The answer to this request was ready, but nobody waited for it any more.
    fn abandoned(&self, request: Request, answer: Answer) -> impl Future<Output = ()> + Send;
}

/// Serves until `stop` is ready; then takes no more, and waits a while for what it is at. dockerd repeats a request that
/// was cut off without its body, so every one cut off is an error that a user sees.
pub async fn serve<P: Plugin>(
    listener: UnixListener,
    plugin: Arc<P>,
    stop: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (stopping, stopped) = watch::channel(false);
    let mut stop = std::pin::pin!(stop);
    loop {
        let permit = connections.clone().acquire_owned().await.map_err(io::Error::other)?;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept");
                sleep(ACCEPT_DELAY).await;
                continue;
            }
        };
        let (plugin, stopped) = (plugin.clone(), stopped.clone());
        tokio::spawn(async move {
            serve_connection(stream, plugin, stopped).await;
            drop(permit);
        });
    }
    drop(listener);
    stopping.send_replace(true);
    // The permits are all there again when the last connection has ended.
    let all = u32::try_from(CONNECTIONS_MAX).map_err(io::Error::other)?;
    if timeout(STOP_TIMEOUT, connections.acquire_many(all)).await.is_err() {
        tracing::warn!("stopping in the middle of a request");
    }
    Ok(())
}

async fn serve_connection<P: Plugin>(stream: UnixStream, plugin: Arc<P>, mut stopped: watch::Receiver<bool>) {
    let service = service_fn(|request| {
        let plugin = plugin.clone();
        async move { Ok::<_, Infallible>(respond(request, plugin).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection");
    }
}

async fn respond<P: Plugin>(request: hyper::Request<Incoming>, plugin: Arc<P>) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "only POST");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("POST"));
        return response;
    }
    let path = request.uri().path().to_owned();
    if request.body().size_hint().lower() > BODY_BYTES_MAX as u64 {
        return refusal(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE);
    }
    let body = timeout(BODY_TIMEOUT, Limited::new(request.into_body(), BODY_BYTES_MAX).collect()).await;
    let body = match body {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE);
        }
        Ok(Err(error)) => return refusal(StatusCode::BAD_REQUEST, &format!("the body: {error}")),
        Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"),
    };
    let request = match Request::parse(&path, &body) {
        Ok(request) => request,
        Err(error @ RequestError::Method(_)) => return refusal(StatusCode::NOT_FOUND, &error.to_string()),
        Err(error @ RequestError::Body { .. }) => {
            return refusal(StatusCode::BAD_REQUEST, &error.to_string());
        }
    };
    // Docker asks whether a volume is there before it creates it.
    let is_question = matches!(request, Request::Get(_) | Request::Path(_));
    match answer(request, plugin).await {
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(error) => {
            match is_question {
                true => tracing::debug!(%path, %error, "refused"),
                false => tracing::warn!(%path, %error, "refused"),
            }
            refusal(StatusCode::INTERNAL_SERVER_ERROR, &error)
        }
    }
}

/// Runs the operation to its end; dropping this future only drops the answer.
async fn answer<P: Plugin>(request: Request, plugin: Arc<P>) -> Result<Answer, String> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let result = plugin.call(request.clone()).await;
        if let Err(Ok(answer)) = sender.send(result) {
            plugin.abandoned(request, answer).await;
        }
    });
    match timeout(P::ANSWER_TIMEOUT, receiver).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err("the operation ended without a result; see the log of ovsd-docker".to_owned()),
        Err(_) => Err("still at work; try again later".to_owned()),
    }
}

fn refusal(status: StatusCode, error: &str) -> Response<Full<Bytes>> {
    json(status, &ErrorBody { err: error })
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Response<Full<Bytes>> {
    // Maps of strings and numbers always have a JSON form.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(JSON));
    response
}
