//! The entrance over TCP: who gets in, who does not, and what a hostile one costs.

use super::*;
use crate::tls::{Admission, DoorTls};
use ovs_api::tls::{Identity, client_config};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Certificates in files, as ovsd and its clients read them.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.crt"), issuer.pem()).unwrap();
        Authority { issuer, dir }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    fn issue(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |kind: &str| self.dir.path().join(format!("{name}.{kind}"));
        fs::write(file("crt"), certificate.pem()).unwrap();
        fs::write(file("key"), key.serialize_pem()).unwrap();
        Identity { certificate: file("crt"), key: file("key") }
    }
}

/// A door on a port of its own.
struct Port {
    address: SocketAddr,
    double: Arc<Double>,
    stop: Option<oneshot::Sender<()>>,
    served: Option<std::thread::JoinHandle<()>>,
}

impl Port {
    fn open(tls: DoorTls, tokens: Option<Tokens>, patience: Patience) -> Port {
        let double = Arc::new(Double::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let served = Arc::clone(&double);
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                let entrance = Entrance::Tls(listener, Arc::new(TlsEntrance { tls, tokens }));
                serve_with(entrance, served, async { drop(stopped.await) }, patience).await;
            });
        });
        Port { address: is_ready.recv().unwrap(), double, stop: Some(stop), served: Some(thread) }
    }

    /// What a client comes to: `None` when there is no TLS between the two.
    fn status(&self, ca: &Path, identity: Option<&Identity>, token: Option<&Path>) -> Option<u16> {
        let tls = Arc::new(client_config(ca, identity).unwrap());
        let token = token.map(|path| Token::read(path).unwrap());
        let remote = Remote { host: "127.0.0.1".into(), port: self.address.port(), tls, token };
        let asked = block_on(Client::remote(remote).list_tasks(&TaskQuery::default()));
        match asked.unwrap_err() {
            ApiError::Refused(problem) => Some(problem.status),
            ApiError::Unreachable { .. } => None,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(served) = self.served.take() {
            served.join().unwrap();
        }
    }
}

fn token_file(dir: &Path, name: &str, token: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("{token}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn load(servers: &Authority, admission: Admission) -> DoorTls {
    DoorTls::load("rpc.tls", servers.issue("127.0.0.1"), admission, &["http/1.1"]).unwrap()
}

/// The double answers 409 to what reaches it.
const IN: Option<u16> = Some(409);
const UNAUTHORIZED: Option<u16> = Some(401);

#[test]
fn a_certificate_or_a_token_is_needed_and_either_is_enough() {
    let (servers, clients, others) =
        (Authority::new("servers"), Authority::new("clients"), Authority::new("others"));
    let (known, stranger) = (clients.issue("known"), others.issue("stranger"));
    let right = token_file(clients.dir.path(), "right", TOKEN);
    let wrong = token_file(clients.dir.path(), "wrong", "ffffffffffffffffffffffffffffffff");
    let tokens = || Some(Tokens::load(&right).unwrap());

    let port = Port::open(load(&servers, Admission::Certificate(clients.ca())), None, PATIENCE);
    assert_eq!(port.status(&servers.ca(), Some(&known), None), IN);
    assert_eq!(port.status(&servers.ca(), None, None), None, "no certificate");
    assert_eq!(port.status(&servers.ca(), None, Some(&right)), None, "a token, where none is taken");
    assert_eq!(port.status(&servers.ca(), Some(&stranger), None), None, "another's certificate");
    assert_eq!(port.status(&others.ca(), Some(&known), None), None, "another's server");

    let port = Port::open(load(&servers, Admission::Any), tokens(), PATIENCE);
    assert_eq!(port.status(&servers.ca(), None, Some(&right)), IN);
    assert_eq!(port.status(&servers.ca(), None, Some(&wrong)), UNAUTHORIZED);
    assert_eq!(port.status(&servers.ca(), None, None), UNAUTHORIZED);
    assert_eq!(port.status(&servers.ca(), Some(&stranger), None), UNAUTHORIZED, "nobody asked for it");

    let port = Port::open(load(&servers, Admission::CertificateOrLater(clients.ca())), tokens(), PATIENCE);
    assert_eq!(port.status(&servers.ca(), Some(&known), None), IN);
    assert_eq!(port.status(&servers.ca(), None, Some(&right)), IN);
    assert_eq!(port.status(&servers.ca(), None, None), UNAUTHORIZED);
    assert_eq!(port.status(&servers.ca(), Some(&stranger), Some(&right)), None, "another's certificate");
    assert_eq!(port.double.finished.load(Ordering::Relaxed), 0);
}

#[test]
fn who_is_not_known_learns_nothing_not_even_what_there_is() {
    let servers = Authority::new("servers");
    let right = token_file(servers.dir.path(), "right", TOKEN);
    let port = Port::open(load(&servers, Admission::Any), Some(Tokens::load(&right).unwrap()), PATIENCE);
    let tls = Arc::new(client_config(&servers.ca(), None).unwrap());
    let ask = |request: String| {
        block_on(async {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let stream = tokio::net::TcpStream::connect(port.address).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls));
            let mut stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        })
    };
    let end = "host: x\r\nconnection: close\r\n\r\n";
    for line in ["GET /openapi.json", "GET /metrics", "GET /v1/nothing", "BREW /v1/vdisks", "POST /v1/vdisks"]
    {
        for header in ["", "authorization: Bearer \r\n", "authorization: Basic eDp5\r\n"] {
            let answer = ask(format!("{line} HTTP/1.1\r\n{header}{end}"));
            assert_eq!(status_of(&answer), 401, "{line}");
            assert_eq!(body_of(&answer)["type"], "urn:ovs:problem:unauthorized", "{answer}");
            assert!(answer.contains("\r\nwww-authenticate: Bearer realm=\"ovs\"\r\n"), "{answer}");
        }
    }
    let answer = ask(format!("GET /openapi.json HTTP/1.1\r\nauthorization: Bearer {TOKEN}\r\n{end}"));
    assert!(answer.contains("securitySchemes"), "{answer}");
    // A token that was taken out lets nobody in any more.
    token_file(servers.dir.path(), "right", "ffffffffffffffffffffffffffffffff");
    let answer = ask(format!("GET /openapi.json HTTP/1.1\r\nauthorization: Bearer {TOKEN}\r\n{end}"));
    assert_eq!(status_of(&answer), 401);
    assert!(!answer.contains(TOKEN));
}

#[test]
fn those_who_do_not_speak_tls_are_hung_up_on_in_time() {
    let servers = Authority::new("servers");
    let right = token_file(servers.dir.path(), "right", TOKEN);
    let port = Port::open(load(&servers, Admission::Any), Some(Tokens::load(&right).unwrap()), QUICK);
    for bytes in [&b""[..], b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n", &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc]] {
        let mut stream = TcpStream::connect(port.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut rest = Vec::new();
        // A reset is an end as well; a time-out is not.
        let ended = stream.read_to_end(&mut rest);
        assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
        assert!(!String::from_utf8_lossy(&rest).contains("HTTP"), "{rest:?}");
    }
    let _crowd: Vec<TcpStream> = (0..500).map(|_| TcpStream::connect(port.address).unwrap()).collect();
    assert_eq!(port.status(&servers.ca(), None, Some(&right)), IN);
}
