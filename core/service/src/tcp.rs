//! The doors over TCP: everything about them that can be wrong is found before the engine starts, and they open when it
//! serves.
//!
//! ```text
//!  main runtime:  listeners ─▶ TLS (NBD: TlsGate; RPC: rpc::Entrance)        engine thread: NBD after TLS (sockets)
//! ```

use crate::{
    config::{Config, TlsConfig},
    rpc::{Entrance, TlsEntrance, Tokens},
    tls::{Admission, DoorTls},
};
use anyhow::Context;
use ovs_api::tls::Identity;
use ovs_nbd::{Secured, ServerOptions, TlsGate, accept_tcp};
use std::{net::SocketAddr, sync::Arc};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// NBD connections behind TLS that wait for the engine thread, at most.
const SECURED_QUEUED_MAX: usize = 64;

/// What comes out of the NBD door, for the engine thread.
pub type SecuredStream = mpsc::Receiver<Secured<TcpStream>>;

/// The NBD door over TCP, not open yet.
pub struct NbdDoor {
    gate: Arc<TlsGate>,
    listeners: Vec<TcpListener>,
    passed: mpsc::Sender<Secured<TcpStream>>,
}

impl NbdDoor {
    /// Binds and reads what `nbd.listen` and `nbd.tls` name; `None` when they name nothing.
    pub async fn bind(
        config: &Config,
        options: &ServerOptions,
    ) -> anyhow::Result<Option<(NbdDoor, SecuredStream)>> {
        let Some(tls) = config.nbd.tls.as_ref().filter(|_| !config.nbd.listen.is_empty()) else {
            return Ok(None);
        };
        let authority = tls.client_ca.clone().context("nbd.tls.client_ca is missing")?;
        let admission = Admission::Certificate(authority);
        let certificates = DoorTls::load("nbd.tls", identity(tls), admission, &[])?;
        let listeners = bind("nbd.listen", &config.nbd.listen).await?;
        let gate = TlsGate::new(options, Box::new(move || certificates.current()));
        let (passed, secured) = mpsc::channel(SECURED_QUEUED_MAX);
        Ok(Some((NbdDoor { gate, listeners, passed }, secured)))
    }

    /// `HOST:PORT` for URIs: the first address, or this host's name when that is all addresses.
    pub fn authority(&self, host_name: &str) -> Option<String> {
        Some(authority(self.listeners.first()?.local_addr().ok()?, host_name))
    }

    /// Lets clients in, until `stop` is cancelled.
    pub fn open(self, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
        let open = |listener: TcpListener| {
            log_address("NBD", &listener);
            tokio::spawn(accept_tcp(self.gate.clone(), listener, self.passed.clone(), stop.clone()))
        };
        self.listeners.into_iter().map(open).collect()
    }
}

/// Binds and reads what `rpc.listen`, `rpc.tls` and `rpc.tokens_file` name.
pub async fn bind_rpc(config: &Config) -> anyhow::Result<Vec<Entrance>> {
    let Some(tls) = config.rpc.tls.as_ref().filter(|_| !config.rpc.listen.is_empty()) else {
        return Ok(Vec::new());
    };
    let admission = match (&tls.client_ca, &config.rpc.tokens_file) {
        (None, _) => Admission::Any,
        (Some(authority), None) => Admission::Certificate(authority.clone()),
        (Some(authority), Some(_)) => Admission::CertificateOrLater(authority.clone()),
    };
    let tokens = config.rpc.tokens_file.as_deref().map(Tokens::load).transpose();
    let entrance = Arc::new(TlsEntrance {
        tls: DoorTls::load("rpc.tls", identity(tls), admission, &["http/1.1"])?,
        tokens: tokens.context("rpc.tokens_file")?,
    });
    let listeners = bind("rpc.listen", &config.rpc.listen).await?;
    let entrance = |listener| {
        log_address("RPC", &listener);
        Entrance::Tls(listener, Arc::clone(&entrance))
    };
    Ok(listeners.into_iter().map(entrance).collect())
}

async fn bind(key: &str, addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await;
        listeners.push(listener.with_context(|| format!("{key}: {address}"))?);
    }
    Ok(listeners)
}

fn identity(tls: &TlsConfig) -> Identity {
    Identity { certificate: tls.certificate.clone(), key: tls.key.clone() }
}

fn authority(address: SocketAddr, host_name: &str) -> String {
    if address.ip().is_unspecified() {
        format!("{host_name}:{}", address.port())
    } else {
        address.to_string()
    }
}

fn log_address(door: &str, listener: &TcpListener) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(door, %address, "TLS over TCP");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::tests::identity;

    fn check(address: &str, expected: &str) {
        assert_eq!(authority(address.parse().unwrap(), "h1"), expected);
    }

    #[test]
    fn authorities() {
        check("0.0.0.0:10809", "h1:10809");
        check("[::]:10809", "h1:10809");
        check("192.0.2.7:10809", "192.0.2.7:10809");
        check("[2001:db8::7]:10809", "[2001:db8::7]:10809");
    }

    #[tokio::test]
    async fn what_is_wrong_is_told_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let files = identity(dir.path(), "127.0.0.1");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (certificate, key) = (files.certificate.display(), files.key.display());
        let parse = |door: &str, address: &str, more: &str| {
            let tls = format!("tls: {{certificate: {certificate}, key: {key}, client_ca: {certificate}}}");
            Config::parse(&format!("{door}:\n  listen: [\"{address}\"]\n  {tls}\n{more}")).unwrap()
        };
        let options = ServerOptions::default();
        let check = |error: anyhow::Error, expected: &str| {
            assert!(format!("{error:#}").starts_with(expected), "{error:#}");
        };
        let address = taken.local_addr().unwrap().to_string();
        let error = NbdDoor::bind(&parse("nbd", &address, ""), &options).await.err().unwrap();
        check(error, &format!("nbd.listen: {address}: "));
        let error = bind_rpc(&parse("rpc", &address, "")).await.err().unwrap();
        check(error, &format!("rpc.listen: {address}: "));
        let config = parse("rpc", "127.0.0.1:0", &format!("  tokens_file: {key}\n"));
        check(bind_rpc(&config).await.err().unwrap(), &format!("rpc.tokens_file: {key}: its mode is 0"));
        let (door, _) = NbdDoor::bind(&parse("nbd", "127.0.0.1:0", ""), &options).await.unwrap().unwrap();
        assert!(door.authority("h1").unwrap().starts_with("127.0.0.1:"));
        assert!(NbdDoor::bind(&Config::default(), &options).await.unwrap().is_none());
        assert!(bind_rpc(&Config::default()).await.unwrap().is_empty());
    }
}
