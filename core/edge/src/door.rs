//! The socket `/run/ovs/edge.sock`: kernel devices, for the plugins of this host. HTTP/1.1 and JSON, problems as ovsd's.
//!
//! ```text
//! GET /v1/devices    PUT /v1/devices/<vDisk UUID>    DELETE /v1/devices/<vDisk UUID>
//! ```
//!
//! Root's alone (mode 0600): who may have devices made may as well open them. What comes in is bounded in size, time and
//! number all the same. An operation runs to its end whether or not the caller stays.

use crate::device::Devices;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use ovs_api::{Problem, ProblemKind, PutDevice, Request as _};
use ovs_units::VdiskId;
use std::{
    convert::Infallible,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

const BODY_BYTES_MAX: usize = 4 << 10;
/// hyper's smallest.
const HEADER_BYTES_MAX: usize = 8 << 10;
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_COUNT_MAX: usize = 64;
/// After an error of accept(2), as when descriptors have run out.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Listens. The caller holds this host's lock, so a socket that is there is a dead predecessor's.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves for ever.
pub async fn serve(listener: UnixListener, devices: Arc<Devices>) {
    let places = Arc::new(Semaphore::new(CONNECTION_COUNT_MAX));
    loop {
        // Never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let devices = Arc::clone(&devices);
                tokio::spawn(async move {
                    serve_connection(stream, devices).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                sleep(ACCEPT_DELAY).await;
            }
        }
    }
}

async fn serve_connection(stream: UnixStream, devices: Arc<Devices>) {
    let service = service_fn(|request| {
        let devices = Arc::clone(&devices);
        async move { Ok::<_, Infallible>(respond(request, devices).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the RPC");
    }
}

async fn respond(request: Request<Incoming>, devices: Arc<Devices>) -> Response<Full<Bytes>> {
    let work = async move {
        let (head, body) = request.into_parts();
        let call = Call::parse(&head.method, head.uri.path(), &read(body).await?)?;
        // On its own: to its end, whether or not the caller stays.
        let done = tokio::spawn(async move { call.carry_out(&devices).await });
        done.await.map_err(|error| Problem::new(ProblemKind::Internal, error.to_string()))?
    };
    work.await.unwrap_or_else(|problem| {
        tracing::debug!(%problem, "refused");
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, "application/problem+json", &problem)
    })
}

async fn read(body: Incoming) -> Result<Bytes, Problem> {
    let invalid = |text: String| Problem::new(ProblemKind::Invalid, text);
    match timeout(READ_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(invalid(format!("the body: {error}"))),
        Err(_) => Err(invalid("the body did not arrive in time".to_owned())),
    }
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    List,
    Put(VdiskId, PutDevice),
    Release(VdiskId),
}

impl Call {
    fn parse(method: &Method, path: &str, body: &[u8]) -> Result<Call, Problem> {
        if path == "/v1/devices" && method == Method::GET {
            return Ok(Call::List);
        }
        let not_found = || Problem::new(ProblemKind::NotFound, format!("nothing is at {method} {path:.200}"));
        let text = path.strip_prefix("/v1/devices/").ok_or_else(not_found)?;
        let vdisk = text.parse().map_err(|_| Problem::field("vdisk", text, "the UUID of a vDisk"))?;
        match *method {
            Method::PUT => {
                let put: PutDevice = serde_json::from_slice(body)
                    .map_err(|error| Problem::new(ProblemKind::Invalid, format!("the body: {error}")))?;
                put.check()?;
                Ok(Call::Put(vdisk, put))
            }
            Method::DELETE => Ok(Call::Release(vdisk)),
            _ => Err(not_found()),
        }
    }

    async fn carry_out(self, devices: &Arc<Devices>) -> Result<Response<Full<Bytes>>, Problem> {
        Ok(match self {
            Call::List => json(StatusCode::OK, "application/json", &devices.list().await?),
            Call::Put(vdisk, put) => {
                json(StatusCode::OK, "application/json", &devices.put(vdisk, &put).await?)
            }
            Call::Release(vdisk) => {
                devices.release(vdisk).await;
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
        })
    }
}

fn json(status: StatusCode, kind: &'static str, body: &impl serde::Serialize) -> Response<Full<Bytes>> {
    // Structs of texts and numbers always have a JSON form.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const VDISK: &str = "01234567-89ab-cdef-0123-456789abcdef";

    fn check(method: Method, path: &str, body: &str, expected: Result<Call, ProblemKind>) {
        let call = Call::parse(&method, path, body.as_bytes()).map_err(|problem| problem.kind());
        assert_eq!(call, expected, "{method} {path} {body}");
    }

    #[test]
    fn calls_and_what_is_none() {
        let (vdisk, device) = (VDISK.parse().unwrap(), format!("/v1/devices/{VDISK}"));
        let put = |block_size_bytes| Ok(Call::Put(vdisk, PutDevice { block_size_bytes }));
        check(Method::GET, "/v1/devices", "", Ok(Call::List));
        check(Method::PUT, &device, r#"{"block_size_bytes":4096}"#, put(4096));
        check(Method::PUT, &device, r#"{"block_size_bytes":512}"#, put(512));
        check(Method::DELETE, &device, "", Ok(Call::Release(vdisk)));
        for body in
            ["", "{}", "[", "{\"block_size_bytes\":0}", "{\"block_size_bytes\":4096,\"x\":1}", "\u{0}"]
        {
            check(Method::PUT, &device, body, Err(ProblemKind::Invalid));
        }
        check(Method::PUT, &device, r#"{"block_size_bytes":65536}"#, Err(ProblemKind::Invalid));
        check(Method::DELETE, "/v1/devices/../../etc/passwd", "", Err(ProblemKind::Invalid));
        check(Method::PUT, "/v1/devices/", "{}", Err(ProblemKind::Invalid));
        check(Method::POST, &device, "{}", Err(ProblemKind::NotFound));
        check(Method::GET, "/", "", Err(ProblemKind::NotFound));
    }
}
