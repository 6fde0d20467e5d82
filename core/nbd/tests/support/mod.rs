//! A disk in memory that can be held, broken and closed, and a client that speaks in raw messages.
#![allow(dead_code, reason = "each test file uses its part")]

use bytes::{Bytes, BytesMut};
use ovs_nbd::{
    Asked, ClientInfo, Device, ExportInfo, Exports, Extent, Generation, NbdError, OpenError, ReadPiece,
    ReadReply, Server, ServerOptions, Session, SessionId, ZeroKind,
    proto::{
        handshake::{
            GREETING_BYTES, Greeting, InfoReply, InfoRequest, MetaContextRequest, OPTION_REPLY_HEADER_BYTES,
            OptionHeader, OptionReplyHeader,
        },
        numbers::{option, option_reply},
        reply::{CHUNK_HEADER_BYTES, ChunkHeader, ReplyHeader, SIMPLE_REPLY_BYTES},
        request::{Cookie, RequestHeader},
    },
    serve_connection,
};
use ovs_units::{ByteCount, ByteOffset, ByteRange};
use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    net::UnixStream,
    sync::{Semaphore, watch},
    task::{JoinHandle, LocalSet},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const SIZE: u64 = 1 << 20;
pub const CLUSTER: usize = 4096;

/// Runs a test on one thread, within half a minute.
pub fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs")
    })
}

/// The same, in time that is simulated: it passes when nobody can go on. Not with sockets, for which nobody waits then.
pub fn simulated<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs")
    })
}

/// Lets everything that can go on do so: where nothing is to happen, and where nobody but the server knows that it has got
/// that far. A machine too busy for this makes a test say less, not fail.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

/// Comes back when `condition` holds, however slow the machine.
pub async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What a device did, in the order in which it did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    Write { offset: u64, first: u8, length: usize, fua: bool },
    Zero { offset: u64, length: u64, fua: bool, kind: ZeroKind },
    Flush,
    Cache { offset: u64, length: u64 },
    Released,
}

pub struct Ram {
    pub bytes: RefCell<Vec<u8>>,
    pub read_only: Cell<bool>,
    pub fail: RefCell<Option<NbdError>>,
    /// Permits to write; every write takes one for good, unless there is no gate.
    pub gate: RefCell<Option<Rc<Semaphore>>>,
    /// Permits to begin anything, if there is a barrier; who waits for one.
    pub barrier: RefCell<Option<Rc<Semaphore>>>,
    pub held_back: Cell<usize>,
    pub deeds: RefCell<Vec<Deed>>,
    pub running: Cell<usize>,
    pub running_most: Cell<usize>,
    pub closed: watch::Sender<bool>,
    /// Reads tell their holes.
    pub sparse: Cell<bool>,
    /// What a write takes, before and after it is carried out.
    pub latency: Cell<Duration>,
}

impl Ram {
    pub fn new() -> Rc<Ram> {
        Rc::new(Ram {
            bytes: RefCell::new(vec![0; SIZE as usize]),
            read_only: Cell::new(false),
            fail: RefCell::new(None),
            gate: RefCell::new(None),
            barrier: RefCell::new(None),
            held_back: Cell::new(0),
            deeds: RefCell::default(),
            running: Cell::new(0),
            running_most: Cell::new(0),
            closed: watch::Sender::new(false),
            sparse: Cell::new(false),
            latency: Cell::new(Duration::ZERO),
        })
    }

    /// From now on writes wait for permits.
    pub fn hold(&self) -> Rc<Semaphore> {
        let gate = Rc::new(Semaphore::new(0));
        *self.gate.borrow_mut() = Some(Rc::clone(&gate));
        gate
    }

    /// From now on nothing begins without a permit.
    pub fn hold_back(&self) -> Rc<Semaphore> {
        let barrier = Rc::new(Semaphore::new(0));
        *self.barrier.borrow_mut() = Some(Rc::clone(&barrier));
        barrier
    }

    async fn work(&self) {
        if !self.latency.get().is_zero() {
            tokio::time::sleep(self.latency.get()).await;
        }
    }

    fn failure(&self) -> Result<(), NbdError> {
        self.fail.borrow().clone().map_or(Ok(()), Err)
    }

    /// Comes back when its connection has begun to end: it no longer asks whether it is to.
    pub async fn until_ending(&self) {
        until(|| self.closed.receiver_count() == 0).await;
    }

    fn span(range: ByteRange) -> std::ops::Range<usize> {
        range.start.0 as usize..range.end().0 as usize
    }

    /// Runs of clusters that are all zero, or not.
    fn runs(&self, range: ByteRange) -> Vec<(bool, usize)> {
        let mut runs: Vec<(bool, usize)> = Vec::new();
        for cluster in self.bytes.borrow()[Self::span(range)].chunks(CLUSTER) {
            let hole = cluster.iter().all(|byte| *byte == 0);
            match runs.last_mut() {
                Some(last) if last.0 == hole => last.1 += cluster.len(),
                _ => runs.push((hole, cluster.len())),
            }
        }
        runs
    }
}

struct Running<'a>(&'a Ram);

impl<'a> Running<'a> {
    fn new(ram: &'a Ram) -> Running<'a> {
        ram.running.set(ram.running.get() + 1);
        ram.running_most.set(ram.running_most.get().max(ram.running.get()));
        Running(ram)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
    }
}

impl Device for Ram {
    fn size(&self) -> ByteCount {
        ByteCount(self.bytes.borrow().len() as u64)
    }

    fn read_only(&self) -> bool {
        self.read_only.get()
    }

    fn description(&self) -> String {
        "ram".into()
    }

    async fn admit(&self, _asked: Asked) -> Result<(), NbdError> {
        let barrier = self.barrier.borrow().clone();
        if let Some(barrier) = barrier {
            self.held_back.set(self.held_back.get() + 1);
            barrier.acquire().await.unwrap().forget();
        }
        Ok(())
    }

    async fn read(&self, range: ByteRange) -> Result<ReadReply, NbdError> {
        self.failure()?;
        if !self.sparse.get() {
            return Ok(Bytes::copy_from_slice(&self.bytes.borrow()[Self::span(range)]).into());
        }
        let mut at = range.start.0 as usize;
        let pieces = self.runs(range).into_iter().map(|(hole, length)| {
            let data = Bytes::copy_from_slice(&self.bytes.borrow()[at..at + length]);
            at += length;
            if hole { ReadPiece::Hole(ByteCount(length as u64)) } else { ReadPiece::Data(data) }
        });
        Ok(ReadReply::Pieces(pieces.collect()))
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, fua: bool) -> Result<(), NbdError> {
        let _running = Running::new(self);
        let gate = self.gate.borrow().clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        self.failure()?;
        self.work().await;
        let start = offset.0 as usize;
        self.bytes.borrow_mut()[start..start + data.len()].copy_from_slice(&data);
        let deed = Deed::Write { offset: offset.0, first: data[0], length: data.len(), fua };
        self.deeds.borrow_mut().push(deed);
        self.work().await;
        Ok(())
    }

    async fn zero(&self, range: ByteRange, fua: bool, kind: ZeroKind) -> Result<(), NbdError> {
        self.failure()?;
        self.bytes.borrow_mut()[Self::span(range)].fill(0);
        let deed = Deed::Zero { offset: range.start.0, length: range.length.0, fua, kind };
        self.deeds.borrow_mut().push(deed);
        Ok(())
    }

    async fn flush(&self) -> Result<(), NbdError> {
        self.failure()?;
        self.deeds.borrow_mut().push(Deed::Flush);
        Ok(())
    }

    async fn cache(&self, range: ByteRange) -> Result<(), NbdError> {
        self.deeds.borrow_mut().push(Deed::Cache { offset: range.start.0, length: range.length.0 });
        Ok(())
    }

    async fn block_status(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, NbdError> {
        self.failure()?;
        let extent = |(hole, length): (bool, usize)| {
            let length = ByteCount(length as u64);
            if hole { Extent::hole(length) } else { Extent::data(length) }
        };
        Ok(self.runs(range).into_iter().take(limit).map(extent).collect())
    }

    async fn closed(&self) {
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    async fn released(&self) {
        assert_eq!(self.running.get(), 0, "released while a request runs");
        self.work().await;
        self.deeds.borrow_mut().push(Deed::Released);
    }
}

/// Serves one disk under the names "" and "disk".
pub struct OneDisk {
    pub disk: Rc<Ram>,
    pub refuse: RefCell<Option<OpenError>>,
    /// How often it did.
    pub refused: Cell<usize>,
    pub opened: RefCell<Vec<ClientInfo>>,
}

impl OneDisk {
    pub fn new(disk: &Rc<Ram>) -> Rc<OneDisk> {
        let disk = Rc::clone(disk);
        Rc::new(OneDisk {
            disk,
            refuse: RefCell::default(),
            refused: Cell::new(0),
            opened: RefCell::default(),
        })
    }

    fn find(&self, name: &str) -> Result<Rc<Ram>, OpenError> {
        match self.refuse.borrow().clone() {
            Some(refusal) => {
                self.refused.set(self.refused.get() + 1);
                Err(refusal)
            }
            None if ["", "disk"].contains(&name) => Ok(Rc::clone(&self.disk)),
            None => Err(OpenError::NotFound("no such disk".into())),
        }
    }
}

impl Exports for OneDisk {
    type Device = Ram;

    async fn open(&self, name: &str, client: ClientInfo) -> Result<Rc<Ram>, OpenError> {
        self.opened.borrow_mut().push(client);
        self.find(name)
    }

    async fn info(&self, name: &str) -> Result<ExportInfo, OpenError> {
        let disk = self.find(name)?;
        let read_only = disk.read_only();
        Ok(ExportInfo { size: disk.size(), read_only, multi_conn: true, description: disk.description() })
    }

    async fn list(&self) -> Vec<String> {
        vec!["disk".into(), "x".repeat(5000)]
    }
}

/// A server with one disk, and connections to it that need no file.
pub struct World {
    pub server: Rc<Server>,
    pub disk: Rc<Ram>,
    pub exports: Rc<OneDisk>,
    pub stop: CancellationToken,
}

impl World {
    pub fn new() -> World {
        World::with(ServerOptions::default())
    }

    pub fn with(options: ServerOptions) -> World {
        let disk = Ram::new();
        let exports = OneDisk::new(&disk);
        World { server: Server::new(options), disk, exports, stop: CancellationToken::new() }
    }

    /// A connection before its first byte, and the server's task for it.
    pub fn connect(&self) -> (Raw, JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Raw { stream: ours }, self.serve(theirs))
    }

    /// The same without a socket: so many bytes may be on their way in each direction.
    pub fn connect_in_memory(&self, bytes_max: usize) -> (Raw<DuplexStream>, JoinHandle<()>) {
        let (ours, theirs) = tokio::io::duplex(bytes_max);
        (Raw { stream: ours }, self.serve(theirs))
    }

    fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> JoinHandle<()> {
        let (server, exports, stop) = (Rc::clone(&self.server), Rc::clone(&self.exports), self.stop.clone());
        tokio::task::spawn_local(serve_connection(server, stream, None, exports, stop))
    }

    /// A connection in transmission, with structured replies and `base:allocation`.
    pub async fn transmitting(&self) -> (Raw, JoinHandle<()>) {
        let (mut raw, task) = self.connect();
        raw.transmit().await;
        (raw, task)
    }
}

/// A client without any cleverness.
pub struct Raw<S = UnixStream> {
    pub stream: S,
}

/// One reply to a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Got {
    Simple { errno: u32, cookie: u64 },
    Chunk { flags: u16, kind: u16, cookie: u64, payload: Vec<u8> },
}

impl Raw {
    pub fn info_request(name: &str, wanted: &[u16]) -> Vec<u8> {
        let mut data = Vec::new();
        InfoRequest { name: name.into(), wanted: wanted.to_vec() }.format(&mut data);
        data
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends what may not be taken any more.
    pub async fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    pub async fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// The server has hung up: nothing more comes (what it had said before is passed over).
    pub async fn is_hung_up(&mut self) -> bool {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), self.stream.read_to_end(&mut rest)).await;
        end.is_ok()
    }

    pub async fn greet(&mut self) {
        let greeting = Greeting::parse(&self.take(GREETING_BYTES).await).unwrap();
        assert_eq!(greeting.flags, 3);
        self.send(&3_u32.to_be_bytes()).await;
    }

    /// All the way, with structured replies and `base:allocation`.
    pub async fn transmit(&mut self) {
        self.greet().await;
        self.structured().await;
        assert_eq!(self.select("disk", &["base:allocation"]).await, ["base:allocation"]);
        self.go("disk").await.unwrap();
    }

    pub async fn option(&mut self, option: u32, data: &[u8]) {
        let mut message = Vec::new();
        OptionHeader { option, length: data.len() as u32 }.format(&mut message);
        message.extend_from_slice(data);
        self.send(&message).await;
    }

    pub async fn option_reply(&mut self) -> (OptionReplyHeader, Vec<u8>) {
        let header = OptionReplyHeader::parse(&self.take(OPTION_REPLY_HEADER_BYTES).await).unwrap();
        let data = self.take(header.length as usize).await;
        (header, data)
    }

    /// All replies to an option, up to the acknowledgement, or the error that ends them.
    pub async fn ask(&mut self, option: u32, data: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, u32> {
        self.option(option, data).await;
        self.answers(option).await
    }

    pub async fn answers(&mut self, option: u32) -> Result<Vec<(u32, Vec<u8>)>, u32> {
        let mut replies = Vec::new();
        loop {
            let (header, data) = self.option_reply().await;
            assert_eq!(header.option, option);
            match header.reply {
                option_reply::ACK => return Ok(replies),
                error if error & option_reply::ERROR_BIT != 0 => return Err(error),
                reply => replies.push((reply, data)),
            }
        }
    }

    pub async fn structured(&mut self) {
        assert_eq!(self.ask(option::STRUCTURED_REPLY, &[]).await, Ok(vec![]));
    }

    pub async fn select(&mut self, name: &str, queries: &[&str]) -> Vec<String> {
        let mut data = Vec::new();
        let queries = queries.iter().map(|query| query.to_string()).collect();
        MetaContextRequest { name: name.into(), queries }.format(&mut data);
        let replies = self.ask(option::SET_META_CONTEXT, &data).await.unwrap();
        replies.into_iter().map(|(_, data)| String::from_utf8(data[4..].to_vec()).unwrap()).collect()
    }

    /// Asks for an export where the answer may be the end of the connection.
    pub async fn try_go(&mut self, name: &str) {
        let data = Raw::info_request(name, &[]);
        let mut message = Vec::new();
        OptionHeader { option: option::GO, length: data.len() as u32 }.format(&mut message);
        message.extend_from_slice(&data);
        self.try_send(&message).await;
    }

    pub async fn go(&mut self, name: &str) -> Result<Vec<InfoReply>, u32> {
        let replies = self.ask(option::GO, &Raw::info_request(name, &[])).await?;
        Ok(replies.into_iter().map(|(_, data)| InfoReply::parse(&data).unwrap()).collect())
    }

    /// All the way with a session.
    pub async fn go_with_session(&mut self, generation: u64) -> Result<Vec<InfoReply>, u32> {
        self.begin_session(generation).await;
        self.answers(option::GO).await.map(|_| Vec::new())
    }

    /// Up to sending GO.
    pub async fn begin_session(&mut self, generation: u64) {
        let query = session(generation).to_string();
        self.greet().await;
        self.structured().await;
        assert_eq!(self.select("disk", &[&query]).await, [query]);
        self.option(option::GO, &Raw::info_request("disk", &[])).await;
    }

    pub async fn reply(&mut self) -> Got {
        let mut head = self.take(SIMPLE_REPLY_BYTES).await;
        if ReplyHeader::size_bytes(&head).unwrap() == Some(CHUNK_HEADER_BYTES) {
            head.extend(self.take(CHUNK_HEADER_BYTES - SIMPLE_REPLY_BYTES).await);
        }
        match ReplyHeader::parse(&head).unwrap() {
            ReplyHeader::Simple(reply) => Got::Simple { errno: reply.errno, cookie: reply.cookie.0 },
            ReplyHeader::Chunk(ChunkHeader { flags, kind, cookie, length }) => {
                Got::Chunk { flags, kind, cookie: cookie.0, payload: self.take(length as usize).await }
            }
        }
    }

    /// A request's answer when it is one reply: the error number.
    pub async fn errno(&mut self, cookie: u64) -> u32 {
        match self.reply().await {
            Got::Simple { errno, cookie: theirs } => {
                assert_eq!(theirs, cookie);
                errno
            }
            Got::Chunk { flags: 1, kind: 0x8001, cookie: theirs, payload } => {
                assert_eq!(theirs, cookie);
                u32::from_be_bytes(payload[..4].try_into().unwrap())
            }
            other => panic!("{other:?}"),
        }
    }
}

pub fn session(generation: u64) -> Session {
    Session { id: SessionId(Uuid::from_u128(0xabcd)), generation: Generation(generation) }
}

pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    RequestHeader { flags, command, cookie: Cookie(cookie), offset: ByteOffset(offset), length }
        .format(&mut bytes);
    bytes.to_vec()
}

pub fn write(cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = request(1, 0, cookie, offset, data.len() as u32);
    bytes.extend_from_slice(data);
    bytes
}

pub fn range(start: u64, length: u64) -> ByteRange {
    ByteRange::new(ByteOffset(start), ByteCount(length)).unwrap()
}
