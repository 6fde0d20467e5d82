//! A store that plays S3 and Swift, in memory and badly: each request may be answered as the test says.

use md5::{Digest, Md5};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub const BUCKET: &str = "bucket";
pub const SECRET: &str = "hunter2-hunter2";

/// One request, as far as it matters.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// The object's key; empty for a listing and for authentication.
    pub key: String,
    pub is_swift: bool,
    /// `""`, or what follows `?`.
    pub query: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// How a request is answered.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This, and nothing has happened; the store's marks are not on it.
    Status(u16, String),
    /// This and this header, the same otherwise.
    Header(u16, &'static str, String),
    /// This, though it has happened.
    StatusAfter(u16),
    /// Nothing, ever.
    Hang,
    /// It has happened, and the connection ends.
    Drop,
    /// A good head without a length, and bytes without an end; of a range, as it was asked for.
    Flood,
    /// A bit of what is put changes on its way to the store.
    Garble,
    /// A bit of what is put changes in the store, which knows of it and of nothing else.
    Rot,
    /// Half of the body, and the connection ends.
    Truncate,
    /// Half of the body, and nothing more.
    Stall,
    /// Half of the body, and its length says so.
    Short,
    /// All of the object, whatever range was asked for.
    IgnoreRange,
    /// A byte further on than asked for, as it says itself.
    Shift,
}

type Decide = Box<dyn FnMut(&Asked) -> Option<Fault> + Send>;

pub struct Server {
    pub url: String,
    pub objects: Mutex<BTreeMap<String, Vec<u8>>>,
    pub log: Mutex<Vec<Asked>>,
    decide: Mutex<Decide>,
    /// Tokens are good whose number is not below.
    pub oldest_token: AtomicUsize,
    pub tokens_given: AtomicUsize,
    pub under_way: AtomicUsize,
    pub under_way_max: AtomicUsize,
    /// What a request takes: time in which more could come than may. That none comes tells nobody.
    pub delay: Mutex<Duration>,
    pub has_conditions: bool,
    /// Bytes that were taken from a flood.
    pub flooded: AtomicUsize,
    /// What a login names instead of this server.
    pub storage: Mutex<Option<String>>,
    /// Puts whose bytes were not those of the checksum sent with them.
    pub bad_digests: AtomicUsize,
    /// S3: not all have them.
    pub has_request_ids: AtomicBool,
    /// S3: not all have the MD5 as their ETag.
    pub has_md5: AtomicBool,
    /// Who finds that an object is not there makes it when another has found the same.
    pub is_racy: bool,
    /// How many have found that.
    found_nothing: watch::Sender<usize>,
}

impl Server {
    pub async fn start() -> Arc<Server> {
        Server::start_with(true, false).await
    }

    pub async fn start_with(has_conditions: bool, is_racy: bool) -> Arc<Server> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(Server {
            url: format!("http://{}", listener.local_addr().unwrap()),
            objects: Mutex::default(),
            log: Mutex::default(),
            decide: Mutex::new(Box::new(|_| None)),
            oldest_token: AtomicUsize::new(0),
            tokens_given: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            under_way_max: AtomicUsize::new(0),
            delay: Mutex::default(),
            has_conditions,
            flooded: AtomicUsize::new(0),
            storage: Mutex::default(),
            bad_digests: AtomicUsize::new(0),
            has_request_ids: AtomicBool::new(true),
            has_md5: AtomicBool::new(true),
            is_racy,
            found_nothing: watch::Sender::default(),
        });
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = accepting.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        server
    }

    /// From now on.
    pub fn decide(&self, decide: impl FnMut(&Asked) -> Option<Fault> + Send + 'static) {
        *self.decide.lock().unwrap() = Box::new(decide);
    }

    /// How many requests there were of that method.
    pub fn count(&self, method: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|asked| asked.method == method).count()
    }

    async fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        while let Some(asked) = read_request(&mut stream).await? {
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.under_way_max.fetch_max(now, Ordering::SeqCst);
            let delay = *self.delay.lock().unwrap();
            tokio::time::sleep(delay).await;
            let goes_on = self.answer(&mut stream, asked).await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            if !goes_on? {
                break;
            }
        }
        Ok(())
    }

    /// Whether the connection goes on.
    async fn answer(&self, stream: &mut BufReader<TcpStream>, asked: Asked) -> io::Result<bool> {
        let fault = (self.decide.lock().unwrap())(&asked);
        let mut asked = asked;
        if matches!(fault, Some(Fault::Garble)) {
            asked.body[0] ^= 1;
        }
        self.log.lock().unwrap().push(asked.clone());
        match &fault {
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Status(code, text)) => {
                write(stream, *code, &[], text.as_bytes(), text.len(), asked.method == "HEAD").await?;
                return Ok(true);
            }
            Some(Fault::Flood) => {
                let tag = self.etag(&asked, b"");
                let range = asked.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
                let (code, range) = match range {
                    Some(range) => (206, format!("content-range: bytes {range}/1000000000\r\n")),
                    None => (200, String::new()),
                };
                let head = format!(
                    "HTTP/1.1 {code} x\r\n{}: {}\r\nx-trans-id: x\r\n{range}transfer-encoding: chunked\r\n\r\n",
                    tag.0, tag.1
                );
                stream.write_all(head.as_bytes()).await?;
                let chunk = [b"10000\r\n", &[b'x'; 0x10000][..], b"\r\n"].concat();
                loop {
                    stream.write_all(&chunk).await?;
                    self.flooded.fetch_add(0x10000, Ordering::SeqCst);
                }
            }
            Some(Fault::Header(code, name, value)) => {
                write(stream, *code, &[((*name).to_owned(), value.clone())], b"", 0, true).await?;
                return Ok(true);
            }
            _ => {}
        }
        let (code, mut headers, mut body) = self.work(&asked, fault.as_ref()).await;
        if asked.is_swift {
            headers.push(("x-trans-id".to_owned(), "tx1".to_owned()));
        } else if self.has_request_ids.load(Ordering::SeqCst) {
            headers.push(("x-amz-request-id".to_owned(), "tx1".to_owned()));
        }
        let error = match code {
            404 => "NoSuchKey",
            416 => "InvalidRange",
            _ => "",
        };
        if !asked.is_swift && !error.is_empty() && asked.method != "HEAD" {
            body = format!("<?xml version=\"1.0\"?><Error><Code>{error}</Code></Error>").into_bytes();
        }
        let length = match fault {
            Some(Fault::Drop) => return Ok(false),
            Some(Fault::StatusAfter(code)) => {
                write(stream, code, &[], b"", 0, true).await?;
                return Ok(true);
            }
            Some(Fault::Short) => body.len() / 2,
            _ => body.len(),
        };
        let sent = match fault {
            Some(Fault::Truncate | Fault::Stall | Fault::Short) => &body[..body.len() / 2],
            _ => &body[..],
        };
        // The length of a HEAD is the object's.
        write(stream, code, &headers, sent, length, asked.method == "HEAD").await?;
        match fault {
            Some(Fault::Truncate) => Ok(false),
            Some(Fault::Stall) => std::future::pending().await,
            _ => Ok(true),
        }
    }

    async fn work(&self, asked: &Asked, fault: Option<&Fault>) -> (u16, Vec<(String, String)>, Vec<u8>) {
        let empty = |code| (code, Vec::new(), Vec::new());
        if asked.key == "/auth/v1.0" {
            if asked.headers.get("x-auth-key").map(String::as_str) != Some(SECRET) {
                return empty(401);
            }
            return (
                200,
                vec![self.token("x-auth-token"), ("x-storage-url".to_owned(), self.storage())],
                Vec::new(),
            );
        }
        if asked.key == "/v3/auth/tokens" {
            let wanted: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
            if wanted["auth"]["identity"]["password"]["user"]["password"] != SECRET {
                return empty(401);
            }
            let endpoint = |interface, url: &str| serde_json::json!({ "interface": interface, "region": "r", "url": url });
            let catalog = serde_json::json!({ "token": { "catalog": [
                { "type": "identity", "endpoints": [endpoint("public", "http://wrong.invalid")] },
                { "type": "object-store", "endpoints": [endpoint("internal", "http://wrong.invalid"), endpoint("public", &self.storage())] },
            ]}});
            return (201, vec![self.token("x-subject-token")], catalog.to_string().into_bytes());
        }
        if let Some(token) = asked.headers.get("x-auth-token") {
            let number: usize = token.rsplit('-').next().unwrap().parse().unwrap();
            if number < self.oldest_token.load(Ordering::SeqCst) {
                return empty(401);
            }
        }
        match (asked.method.as_str(), asked.key.as_str()) {
            ("GET", "") => (200, Vec::new(), self.listing(&asked.query)),
            ("HEAD", key) => {
                let object = self.objects.lock().unwrap().get(key).cloned();
                object.map_or(empty(404), |object| (200, vec![self.etag(asked, &object)], object))
            }
            ("PUT", key) => {
                let mut body = asked.body.clone();
                let is_sent = match asked.is_swift {
                    true => asked.headers.get("etag") == Some(&hex(Md5::digest(&body))),
                    false => asked.headers.get("content-md5") == Some(&base64(Md5::digest(&body))),
                };
                if !is_sent {
                    self.bad_digests.fetch_add(1, Ordering::SeqCst);
                    let text = "<Error><Code>BadDigest</Code></Error>";
                    return (if asked.is_swift { 422 } else { 400 }, Vec::new(), text.into());
                }
                if matches!(fault, Some(Fault::Rot)) {
                    body[0] ^= 1;
                }
                let is_conditional = self.has_conditions && asked.headers.contains_key("if-none-match");
                if is_conditional && self.objects.lock().unwrap().contains_key(key) {
                    return empty(412);
                }
                if is_conditional && self.is_racy {
                    self.found_nothing.send_modify(|count| *count += 1);
                    drop(self.found_nothing.subscribe().wait_for(|count| *count > 1).await);
                }
                let mut objects = self.objects.lock().unwrap();
                if is_conditional && !self.is_racy && objects.contains_key(key) {
                    return empty(412);
                }
                let tag = self.etag(asked, &body);
                objects.insert(key.to_owned(), body);
                (201, vec![tag], Vec::new())
            }
            ("DELETE", key) => {
                self.objects.lock().unwrap().remove(key);
                empty(204)
            }
            ("GET", key) => {
                let object = self.objects.lock().unwrap().get(key).cloned();
                let Some(object) = object else { return empty(404) };
                self.part(object, asked, fault)
            }
            _ => empty(405),
        }
    }

    fn part(
        &self,
        object: Vec<u8>,
        asked: &Asked,
        fault: Option<&Fault>,
    ) -> (u16, Vec<(String, String)>, Vec<u8>) {
        let range = asked.headers.get("range").filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
        let tag = self.etag(asked, &object);
        let Some(range) = range else { return (200, vec![tag], object) };
        let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let mut first: usize = first.parse().unwrap();
        let last = last.parse().unwrap_or(usize::MAX).min(object.len().saturating_sub(1));
        if matches!(fault, Some(Fault::Shift)) {
            first += 1;
        }
        if first >= object.len() {
            return (416, Vec::new(), Vec::new());
        }
        let told = format!("bytes {first}-{last}/{}", object.len());
        (206, vec![("content-range".to_owned(), told), tag], object[first..=last].to_vec())
    }

    /// S3 has it in quotes.
    fn etag(&self, asked: &Asked, bytes: &[u8]) -> (String, String) {
        let md5 = match self.has_md5.load(Ordering::SeqCst) {
            true => hex(Md5::digest(bytes)),
            false => hex(Md5::digest(Md5::digest(bytes))),
        };
        ("etag".to_owned(), if asked.is_swift { md5 } else { format!("\"{md5}\"") })
    }

    fn storage(&self) -> String {
        self.storage.lock().unwrap().clone().unwrap_or_else(|| format!("{}/v1/AUTH_test", self.url))
    }

    fn token(&self, header: &str) -> (String, String) {
        let number = self.tokens_given.fetch_add(1, Ordering::SeqCst);
        (header.to_owned(), format!("secret-token-{number}"))
    }

    /// Of S3 (ListObjectsV2) or of Swift, as it was asked for. Pages of three, whatever was wished for.
    fn listing(&self, query: &str) -> Vec<u8> {
        let arguments: BTreeMap<_, _> = query
            .split('&')
            .filter_map(|argument| argument.split_once('='))
            .map(|(key, value)| (key, value.replace("%2F", "/")))
            .collect();
        let text = |key| arguments.get(key).cloned().unwrap_or_default();
        let is_swift = text("format") == "json";
        let after = match is_swift {
            true => text("marker"),
            false => text("start-after").max(text("continuation-token")),
        };
        let objects = self.objects.lock().unwrap();
        let found = objects.iter().filter(|(key, _)| key.starts_with(&text("prefix")) && **key > after);
        let page: Vec<_> = found.take(3).collect();
        const TIME: &str = "2026-01-01T00:00:00.000";
        if is_swift {
            let page = page.iter().map(|(key, bytes)| {
                serde_json::json!({ "name": key, "bytes": bytes.len(), "hash": "x", "last_modified": TIME })
            });
            return serde_json::Value::Array(page.collect()).to_string().into_bytes();
        }
        let next = match page.last().filter(|_| page.len() == 3) {
            Some((key, _)) => {
                format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{key}</NextContinuationToken>")
            }
            None => "<IsTruncated>false</IsTruncated>".to_owned(),
        };
        let page = page.iter().map(|(key, bytes)| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>{TIME}Z</LastModified><ETag>x</ETag><Size>{}</Size></Contents>",
                bytes.len()
            )
        });
        format!("<ListBucketResult>{next}{}</ListBucketResult>", page.collect::<String>()).into_bytes()
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    let bits: String = bytes.as_ref().iter().map(|byte| format!("{byte:08b}")).collect();
    let digits = bits.as_bytes().chunks(6).map(|six| {
        let six = format!("{:0<6}", std::str::from_utf8(six).unwrap());
        let digit = usize::from_str_radix(&six, 2).unwrap();
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[digit] as char
    });
    let text: String = digits.collect();
    let length = text.len().next_multiple_of(4);
    format!("{text:=<length$}")
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn write(
    stream: &mut BufReader<TcpStream>,
    code: u16,
    headers: &[(String, String)],
    body: &[u8],
    length: usize,
    is_head: bool,
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {code} x\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    if !is_head {
        stream.write_all(body).await?;
    }
    stream.flush().await
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Asked>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let (first, rest) = head.split_once("\r\n").unwrap();
    let [method, target, _] = first.split(' ').collect::<Vec<_>>()[..] else { panic!("{first}") };
    let headers: BTreeMap<_, _> = rest
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let in_bucket = [format!("/{BUCKET}"), format!("/v1/AUTH_test/{BUCKET}")];
    let key = in_bucket.iter().find_map(|bucket| path.strip_prefix(bucket.as_str()));
    let key = key.map_or(path, |key| key.trim_start_matches('/'));
    let is_swift = path.starts_with("/v1/");
    Ok(Some(Asked {
        is_swift,
        method: method.to_owned(),
        key: key.to_owned(),
        query: query.to_owned(),
        headers,
        body,
    }))
}
