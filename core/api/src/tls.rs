//! TLS out of PEM files: what the doors over TCP and their clients hand to `rustls`.
//!
//! TLS 1.3 alone: every client of the last years has it, and nothing of it needs an option. A server's certificate names
//! its host (subjectAltName, a DNS name or an address); a client's must come from the authority that the door was told.
//!
//! Not here: who reads the configuration (`ovsd`, the programs' mains), when a file is read again (`ovsd`).

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;
pub use tokio_rustls::rustls;

/// A PEM file is never longer than this: Debian's bundle of all authorities has 220 KiB.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// The authorities that the host trusts, for a client that is told none (Debian's ca-certificates).
pub const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A file that TLS cannot be made of.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{role}: {}: {reason}", path.display())]
pub struct TlsError {
    /// What the file is for: `certificate`, `key`, `client_ca`, `ca`.
    pub role: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// A certificate with those that lead from it to its authority, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The chain, its own certificate first.
    pub certificate: PathBuf,
    /// The key: PKCS#8, SEC1 or PKCS#1, not encrypted.
    pub key: PathBuf,
}

/// Which clients a server lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients<'a> {
    /// All: no certificate is asked for.
    Any,
    /// Those with a certificate of this authority.
    Known(&'a Path),
    /// The same, and those without any certificate; one of another authority is refused.
    KnownOrAnonymous(&'a Path),
}

/// The configuration of a server.
pub fn server_config(identity: &Identity, clients: Clients<'_>) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| identity.refuse("certificate", error))?;
    let builder = match client_verifier(clients, provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let (certificates, key) = identity.read()?;
    builder.with_single_cert(certificates, key).map_err(|error| identity.refuse("certificate", error))
}

/// The configuration of a client that trusts the authorities in `ca`, and shows itself as `identity`.
pub fn client_config(ca: &Path, identity: Option<&Identity>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| refuse("ca", ca, error))?
        .with_root_certificates(authorities("ca", ca)?);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some(identity) => {
            let (certificates, key) = identity.read()?;
            let refuse = |error| identity.refuse("certificate", error);
            builder.with_client_auth_cert(certificates, key).map_err(refuse)
        }
    }
}

fn client_verifier(
    clients: Clients<'_>,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let (path, anonymous) = match clients {
        Clients::Any => return Ok(None),
        Clients::Known(path) => (path, false),
        Clients::KnownOrAnonymous(path) => (path, true),
    };
    let roots = Arc::new(authorities("client_ca", path)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
    let builder = if anonymous { builder.allow_unauthenticated() } else { builder };
    builder.build().map(Some).map_err(|error| refuse("client_ca", path, error))
}

impl Identity {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let certificates = certificates("certificate", &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read("key", &self.key)?).map_err(|error| {
            let reason = match error {
                pem::Error::NoItemsFound => {
                    "no private key is in it (an encrypted one is not read)".to_owned()
                }
                // Whatever else it says may quote the file.
                _ => "not a private key in PEM".to_owned(),
            };
            refuse("key", &self.key, reason)
        })?;
        Ok((certificates, key))
    }

    /// What the library refuses once both files are read: mostly that they do not belong together.
    fn refuse(&self, role: &'static str, error: rustls::Error) -> TlsError {
        match error {
            rustls::Error::InconsistentKeys(_) => {
                let reason =
                    format!("it does not belong to the certificate in {}", self.certificate.display());
                refuse("key", &self.key, reason)
            }
            other => refuse(role, &self.certificate, other),
        }
    }
}

fn refuse(role: &'static str, path: &Path, reason: impl ToString) -> TlsError {
    TlsError { role, path: path.to_owned(), reason: reason.to_string() }
}

fn read(role: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| refuse(role, path, error))?;
    file.take(PEM_BYTES_MAX + 1).read_to_end(&mut text).map_err(|error| refuse(role, path, error))?;
    if text.len() as u64 > PEM_BYTES_MAX {
        return Err(refuse(role, path, format!("it is longer than {PEM_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn certificates(role: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(role, path)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match parsed {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(refuse(role, path, "no certificate is in it")),
        Err(_) => Err(refuse(role, path, "not certificates in PEM")),
    }
}

fn authorities(role: &'static str, path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(role, path)? {
        roots.add(certificate).map_err(|error| refuse(role, path, error))?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use std::fs;

    fn check(what: &str, result: Result<impl Sized, TlsError>, role: &str, expected: &str) {
        let error = result.err().unwrap_or_else(|| panic!("{what}: taken")).to_string();
        assert!(error.starts_with(&format!("{role}: ")) && error.contains(expected), "{what}: {error}");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec!["h".to_owned()]).unwrap().self_signed(&key).unwrap();
        let certificate = write("h.crt", &own.pem());
        let right = Identity { certificate: certificate.clone(), key: write("h.key", &key.serialize_pem()) };
        server_config(&right, Clients::Any).unwrap();
        server_config(&right, Clients::Known(&certificate)).unwrap();
        client_config(&certificate, Some(&right)).unwrap();

        let other = write("other.key", &KeyPair::generate().unwrap().serialize_pem());
        let empty = write("empty", "");
        let broken = write("broken", "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n");
        let long = write("long", &"x".repeat(2 << 20));
        let with_key = |key: &Path| Identity { key: key.to_owned(), ..right.clone() };
        let with_certificate = |path: &Path| Identity { certificate: path.to_owned(), ..right.clone() };
        let any = Clients::Any;
        check("another key", server_config(&with_key(&other), any), "key", "does not belong");
        check("no key", server_config(&with_key(&empty), any), "key", "no private key");
        check("a certificate", server_config(&with_key(&certificate), any), "key", "no private key");
        check("absent", server_config(&with_key(Path::new("/absent")), any), "key", "/absent: No such file");
        check("empty", server_config(&with_certificate(&empty), any), "certificate", "no certificate");
        check("broken", server_config(&with_certificate(&broken), any), "certificate", "PEM");
        check("long", server_config(&with_certificate(&long), any), "certificate", "longer");
        check("authority", server_config(&right, Clients::Known(&empty)), "client_ca", "no certificate");
        check("authority", client_config(&broken, None), "ca", "PEM");
    }
}
