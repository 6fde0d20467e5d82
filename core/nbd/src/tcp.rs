//! What both ends ask of a TCP connection.

use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_user_timeout,
};
use std::{io, time::Duration};
use tokio::net::TcpStream;

/// After so much silence the other end is asked whether it is there,
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// again after so long,
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(5);
/// and so many times. A client whose host lost its power must not hold its attachment for hours.
const KEEPALIVE_COUNT: u32 = 3;
/// The same for what was sent and is not acknowledged.
const UNACKNOWLEDGED_MS_MAX: u32 = 30_000;

/// Small messages leave at once, and a host that is gone is noticed within half a minute (tcp(7)).
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    set_tcp_keepintvl(stream, KEEPALIVE_PAUSE)?;
    set_tcp_keepcnt(stream, KEEPALIVE_COUNT)?;
    Ok(set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS_MAX)?)
}
