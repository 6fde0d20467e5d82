//! Negotiating for someone else: the kernel's NBD client, which speaks on a socket but does not negotiate.

use super::transport::Transport;
use super::{
    ClientError,
    connector::{Failed, connect_simple},
};
use crate::Session;
use ovs_units::ByteCount;
use std::{os::unix::net::UnixStream, path::Path};

/// A connection in the transmission phase, on which nothing has been sent yet.
#[derive(Debug)]
pub struct Negotiated {
    /// The connection. Replies on it are simple ones.
    pub stream: UnixStream,
    /// The export's size.
    pub size: ByteCount,
    /// The transmission flags of the server (`NBD_FLAG_*`).
    pub flags: u16,
}

/// Connects and negotiates simple replies, once and as `session`. [`ClientError::Disconnected`] is worth another try
/// with a newer generation; [`ClientError::Refused`] is final.
pub async fn negotiate(socket: &Path, export: &str, session: Session) -> Result<Negotiated, ClientError> {
    let disconnected = |reason: String| ClientError::Disconnected(format!("{}: {reason}", socket.display()));
    let connection = connect_simple(socket, export, session).await.map_err(|failed| match failed {
        Failed::Now(reason) => disconnected(reason),
        Failed::ForGood(reason) => ClientError::Refused(reason),
    })?;
    let Transport::Unix(stream) = connection.stream else {
        return Err(disconnected("only a unix socket can be handed over".into()));
    };
    let stream = stream.into_std().map_err(|error| disconnected(error.to_string()))?;
    Ok(Negotiated { stream, size: connection.size, flags: connection.flags })
}
