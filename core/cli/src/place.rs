//! Which ovsd the command is for: the one behind a socket of this host, or one of another host.

use crate::{args::GlobalArgs, failure::Failure};
use ovs_api::{
    Client, Paths, Problem, ProblemKind, Remote, Token, Vdisk,
    tls::{self, Identity, SYSTEM_AUTHORITIES, rustls::ClientConfig},
};
use ovs_nbd::Endpoint;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// An ovsd, and how its data is reached.
#[derive(Debug, Clone)]
pub enum Place {
    /// On this host.
    Here {
        /// The RPC's socket.
        socket: PathBuf,
    },
    /// On another.
    There {
        /// The RPC's end.
        remote: Remote,
    },
}

impl Place {
    /// As the command line says.
    pub fn new(global: &GlobalArgs) -> Result<Place, Failure> {
        let Some(url) = &global.host else {
            let usual = || Paths::new(global.root.as_deref()).socket();
            return Ok(Place::Here { socket: global.socket.clone().unwrap_or_else(usual) });
        };
        let (host, port) = Remote::parse_url(url).map_err(Failure::usage)?;
        let ca = global.ca.as_deref().unwrap_or(Path::new(SYSTEM_AUTHORITIES));
        let identity = match (&global.cert, &global.key) {
            (Some(certificate), Some(key)) => {
                Some(Identity { certificate: certificate.clone(), key: key.clone() })
            }
            _ => None,
        };
        let tls = tls::client_config(ca, identity.as_ref())
            .map_err(|error| Failure::usage(Problem::new(ProblemKind::Invalid, error.to_string())))?;
        let token = global.token_file.as_deref().map(Token::read).transpose().map_err(Failure::usage)?;
        Ok(Place::There { remote: Remote { host, port, tls: Arc::new(tls), token } })
    }

    /// A client of its RPC.
    pub fn client(&self) -> Client {
        match self {
            Place::Here { socket } => Client::new(socket),
            Place::There { remote } => Client::remote(remote.clone()),
        }
    }

    /// Where a vDisk's data is read and written, and the export's name there.
    pub fn vdisk_export(&self, vdisk: &Vdisk) -> Result<(Endpoint, String), Failure> {
        match self {
            Place::Here { .. } => Ok((PathBuf::from(&vdisk.nbd_socket).into(), String::new())),
            Place::There { remote } => {
                Ok((over_tcp(remote, vdisk)?, format!("{}/{}", vdisk.vpool, vdisk.name)))
            }
        }
    }

    /// Where a vDisk's snapshots are read.
    pub fn snapshot_endpoint(&self, vdisk: &Vdisk) -> Result<Endpoint, Failure> {
        match self {
            // The socket that serves every vDisk and snapshot: beside the RPC's.
            Place::Here { socket } => Ok(socket.with_file_name("nbd.sock").into()),
            Place::There { remote } => over_tcp(remote, vdisk),
        }
    }
}

/// The host is the one that the command line named, which is known to be reached by that name; the port is told.
fn over_tcp(remote: &Remote, vdisk: &Vdisk) -> Result<Endpoint, Failure> {
    let served = vdisk.nbd_tls_uri.as_deref().and_then(port_of).ok_or_else(|| {
        let detail = format!("{} does not serve NBD over TCP: set nbd.listen there", vdisk.host);
        Failure::new(ProblemKind::Unavailable, detail)
    })?;
    let config: Arc<ClientConfig> = Arc::clone(&remote.tls);
    Ok(Endpoint::Tls { host: remote.host.clone(), port: served, config })
}

/// The port of `nbds://HOST:PORT/EXPORT`.
fn port_of(uri: &str) -> Option<u16> {
    let (authority, _) = uri.strip_prefix("nbds://")?.split_once('/')?;
    authority.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!(port_of("nbds://h1:10809/default/x"), Some(10809));
        assert_eq!(port_of("nbds://[2001:db8::1]:10809/default/x"), Some(10809));
        for bad in ["nbd://h1:10809/x", "nbds://h1/x", "nbds://h1:10809", ""] {
            assert_eq!(port_of(bad), None, "{bad}");
        }
    }
}
