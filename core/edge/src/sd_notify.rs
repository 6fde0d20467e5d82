//! Tells systemd how it goes: sd_notify(3), one datagram per message.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

/// The socket that systemd gave us, if it started us.
#[derive(Debug)]
pub struct SystemdNotifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl SystemdNotifier {
    /// From `NOTIFY_SOCKET`: a path, or an abstract name after `@`.
    pub fn from_environment() -> SystemdNotifier {
        let socket = env::var("NOTIFY_SOCKET").ok().and_then(|name| connect(&name).ok());
        SystemdNotifier { socket }
    }

    /// Ready to serve.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// Going away.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// One line for `systemctl status`.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", text.replace('\n', " ")));
    }

    /// Never waits: a systemd that does not listen costs a message, not the service.
    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

fn connect(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_datagrams() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let notifier = SystemdNotifier { socket: connect(path.to_str().unwrap()).ok() };
        notifier.status("waiting\nfor ovsd");
        notifier.ready();
        let mut buffer = [0; 64];
        for expected in ["STATUS=waiting for ovsd", "READY=1"] {
            let length = systemd.recv(&mut buffer).unwrap();
            assert_eq!(std::str::from_utf8(&buffer[..length]).unwrap(), expected);
        }
    }

    #[test]
    fn without_systemd_nothing_happens() {
        SystemdNotifier { socket: None }.ready();
    }
}
