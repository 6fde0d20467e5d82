//! The service manager's notification socket (sd_notify(3)): a datagram to `$NOTIFY_SOCKET`. Without the variable,
//! nothing happens.

use std::{env, io, os::linux::net::SocketAddrExt, os::unix::net, time::Duration};

/// The service manager, if there is one.
#[derive(Debug)]
pub struct ServiceManager {
    socket: Option<net::UnixDatagram>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// From the environment.
    pub fn from_environment() -> ServiceManager {
        let socket = env::var("NOTIFY_SOCKET").ok().and_then(|address| match connect(&address) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%address, %error, "the service manager cannot be told anything");
                None
            }
        });
        // WATCHDOG_PID names whom it is for; inherited from a wrapper it is not for us (sd_watchdog_enabled(3)).
        let is_for_us = env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let watchdog =
            env::var("WATCHDOG_USEC").ok().and_then(|usec| usec.parse().ok()).map(Duration::from_micros);
        ServiceManager { socket, watchdog: watchdog.filter(|_| is_for_us) }
    }

    /// How often it wants to hear `WATCHDOG=1`: half of the time after which it would kill.
    pub fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Sends assignments such as `READY=1`, one per line.
    pub fn tell(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(state.as_bytes())
        {
            tracing::warn!(%error, state, "the service manager was not told");
        }
    }
}

fn connect(address: &str) -> io::Result<net::UnixDatagram> {
    let socket = net::UnixDatagram::unbound()?;
    match address.strip_prefix('@') {
        Some(name) => socket.connect_addr(&net::SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(address)?,
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let receiver = net::UnixDatagram::bind(&path).unwrap();
        let manager =
            ServiceManager { socket: Some(connect(path.to_str().unwrap()).unwrap()), watchdog: None };
        manager.tell("READY=1");
        let mut text = [0; 64];
        let length = receiver.recv(&mut text).unwrap();
        assert_eq!(&text[..length], b"READY=1");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        ServiceManager { socket: None, watchdog: None }.tell("READY=1");
    }
}
