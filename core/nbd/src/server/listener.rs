//! Accepting connections on a unix socket.

use super::{Server, serve_connection};
use crate::{Exports, Peer, PeerProcess};
use std::{rc::Rc, time::Duration};
use tokio::{
    net::{UnixListener, UnixStream},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// After `accept` failed (too many open files, most likely) it is left alone for so long.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves every connection that `listener` accepts, each as a local task, until `stop` is cancelled; then stops
/// accepting, drains all of them, and returns. Call inside a `LocalSet`.
///
/// A device whose writes are stalled makes the drain wait: a caller with a limit puts a time-out around this. What was
/// not answered by then was not acknowledged.
pub async fn serve_unix<E: Exports>(
    server: Rc<Server>,
    listener: UnixListener,
    exports: Rc<E>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => log_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let peer = peer_process(&stream).map(Peer::Process);
                    let (server, exports, stop) = (Rc::clone(&server), Rc::clone(&exports), stop.clone());
                    connections.spawn_local(serve_connection(server, stream, peer, exports, stop));
                }
                Err(error) => {
                    warn!(%error, "NBD connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

/// A connection that broke an invariant of ours ends alone.
pub(super) fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(%error, "NBD connection ended by a defect");
    }
}

fn peer_process(stream: &UnixStream) -> Option<PeerProcess> {
    let credentials = stream.peer_cred().ok()?;
    Some(PeerProcess { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() })
}
