//! Certificates of the doors over TCP: read at start, and again when a file has changed.
//!
//! ```text
//!  a connection ─▶ current() ─▶ stat of the files: as before ─▶ the configuration that is there
//!                                                  changed ──▶ read: good ─▶ the new one
//!                                                                    bad ──▶ the old one goes on, logged once
//! ```
//!
//! So a renewed certificate is served from the next connection on, without a signal or a restart, and a renewal that is
//! half done (the certificate is new, the key is not yet) disturbs nobody. Connections that are there stay as they are.

use ovs_api::tls::{Clients, Identity, TlsError, rustls::ServerConfig, server_config};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// What a file's `stat` says; two that are equal are of the same contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of what a path leads to.
    pub(crate) fn of(path: &Path) -> io::Result<Stamp> {
        fs::metadata(path).map(|meta| Stamp::from(&meta))
    }
}

impl From<&fs::Metadata> for Stamp {
    fn from(meta: &fs::Metadata) -> Stamp {
        Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size_bytes: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// What clients a door takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// All.
    Any,
    /// Those with a certificate of this authority.
    Certificate(PathBuf),
    /// The same, and those who show something else later.
    CertificateOrLater(PathBuf),
}

/// One door's TLS.
#[derive(Debug)]
pub struct DoorTls {
    /// The key of the configuration file, for messages: `nbd.tls`.
    key: &'static str,
    identity: Identity,
    admission: Admission,
    protocols: Vec<Vec<u8>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None for a file that is not there.
    stamps: Vec<Option<Stamp>>,
    config: Arc<ServerConfig>,
}

impl DoorTls {
    /// Reads the files of the door that `key` configures; `protocols` is what ALPN may agree on.
    pub fn load(
        key: &'static str,
        identity: Identity,
        admission: Admission,
        protocols: &[&str],
    ) -> anyhow::Result<DoorTls> {
        let protocols: Vec<Vec<u8>> = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        // Before the contents: what changes in between is read once more, rather than never.
        let stamps = stamps(&identity, &admission);
        let config =
            read(&identity, &admission, &protocols).map_err(|error| anyhow::anyhow!("{key}.{error}"))?;
        let state = Mutex::new(State { stamps, config });
        Ok(DoorTls { key, identity, admission, protocols, state })
    }

    /// The configuration for a new connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.identity, &self.admission);
        if stamps != state.stamps {
            state.stamps = stamps;
            match read(&self.identity, &self.admission, &self.protocols) {
                Ok(config) => {
                    tracing::info!(key = self.key, "certificates were read again");
                    state.config = config;
                }
                Err(error) => {
                    tracing::error!(key = self.key, %error, "new certificates are not taken; the old ones stay");
                }
            }
        }
        Arc::clone(&state.config)
    }
}

fn stamps(identity: &Identity, admission: &Admission) -> Vec<Option<Stamp>> {
    let authority = match admission {
        Admission::Any => None,
        Admission::Certificate(path) | Admission::CertificateOrLater(path) => Some(path),
    };
    let files = [Some(&identity.certificate), Some(&identity.key), authority];
    files.into_iter().flatten().map(|path| Stamp::of(path).ok()).collect()
}

fn read(
    identity: &Identity,
    admission: &Admission,
    protocols: &[Vec<u8>],
) -> Result<Arc<ServerConfig>, TlsError> {
    let clients = match admission {
        Admission::Any => Clients::Any,
        Admission::Certificate(path) => Clients::Known(path),
        Admission::CertificateOrLater(path) => Clients::KnownOrAnonymous(path),
    };
    let mut config = server_config(identity, clients)?;
    config.alpn_protocols = protocols.to_vec();
    Ok(Arc::new(config))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    /// A self-signed certificate of `name` and its key, written into a folder.
    pub(crate) fn identity(folder: &Path, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        let identity = Identity { certificate: folder.join("door.crt"), key: folder.join("door.key") };
        fs::write(&identity.certificate, certificate.pem()).unwrap();
        fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }

    #[test]
    fn a_renewed_certificate_is_served_and_half_a_renewal_is_not() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let door = DoorTls::load("nbd.tls", identity(dir.path(), "a"), Admission::Any, &[]).unwrap();
        let first = door.current();
        assert!(Arc::ptr_eq(&first, &door.current()), "nothing has changed");
        let renewed = identity(other.path(), "b");
        fs::rename(&renewed.certificate, dir.path().join("door.crt")).unwrap();
        assert!(Arc::ptr_eq(&first, &door.current()), "a certificate without its key");
        fs::rename(&renewed.key, dir.path().join("door.key")).unwrap();
        let second = door.current();
        assert!(!Arc::ptr_eq(&first, &second), "the new pair");
        fs::remove_file(dir.path().join("door.key")).unwrap();
        assert!(Arc::ptr_eq(&second, &door.current()), "the key is gone");
    }

    #[test]
    fn the_key_of_the_configuration_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = identity(dir.path(), "a");
        let absent = Admission::Certificate("/absent".into());
        let error = DoorTls::load("rpc.tls", identity.clone(), absent, &[]).unwrap_err().to_string();
        assert!(error.starts_with("rpc.tls.client_ca: /absent: "), "{error}");
        identity.key = "/absent".into();
        let error = DoorTls::load("nbd.tls", identity, Admission::Any, &[]).unwrap_err().to_string();
        assert!(error.starts_with("nbd.tls.key: /absent: "), "{error}");
    }
}
