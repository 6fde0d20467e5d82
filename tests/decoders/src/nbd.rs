//! NBD, both ways: single messages, a hostile client before our server, a hostile server before our client.

use crate::Family;
use bytes::Bytes;
use ovs_nbd::{
    Client, ClientInfo, ClientOptions, Device, ExportInfo, Exports, Extent, NbdError, OpenError, ReadReply,
    Server, ServerOptions, Session, ZeroKind,
    proto::{
        ProtoError,
        handshake::{
            Greeting, InfoReply, InfoRequest, ListReply, MetaContextReply, MetaContextRequest, OptionHeader,
            OptionReplyHeader,
        },
        numbers::{chunk, command, option, option_reply},
        reply::{BlockStatusChunk, ChunkHeader, ErrorChunk, HoleChunk, ReplyHeader, SimpleReply},
        request::{Cookie, RequestHeader},
    },
    serve_connection,
};
use ovs_units::{ByteCount, ByteOffset, ByteRange};
use std::{cell::RefCell, fmt::Debug, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
    task::LocalSet,
};
use tokio_util::sync::CancellationToken;

const DISK_BYTES: usize = 64 << 10;

/// Single messages of either side.
pub(crate) const MESSAGES: Family = Family {
    name: "nbd_messages",
    check: |bytes| {
        let _ = ReplyHeader::size_bytes(bytes);
        [
            round_trip(bytes, Greeting::parse, |m, out| m.format(out)),
            round_trip(bytes, OptionHeader::parse, |m, out| m.format(out)),
            round_trip(bytes, OptionReplyHeader::parse, |m, out| m.format(out)),
            round_trip(bytes, InfoRequest::parse, |m, out| m.format(out)),
            round_trip(bytes, MetaContextRequest::parse, |m, out| m.format(out)),
            round_trip(bytes, MetaContextReply::parse, |m, out| m.format(out)),
            round_trip(bytes, ListReply::parse, |m, out| m.format(out)),
            round_trip(bytes, InfoReply::parse, |m, out| m.format(out)),
            round_trip(bytes, RequestHeader::parse, |m, out| m.format(out)),
            round_trip(bytes, SimpleReply::parse, |m, out| m.format(out)),
            round_trip(bytes, ChunkHeader::parse, |m, out| m.format(out)),
            round_trip(bytes, HoleChunk::parse, |m, out| m.format(out)),
            round_trip(bytes, BlockStatusChunk::parse, |m, out| m.format(out)),
            ReplyHeader::parse(bytes).is_ok(),
            error_chunk(bytes),
            session(bytes),
        ]
        .contains(&true)
    },
    seeds: || {
        let mut seeds = messages();
        seeds.push(b"ovs:session:67e55044-10b1-426f-9247-bb680e5fe0c8:7".to_vec());
        seeds
    },
    memory_bytes: 64 << 10,
    memory_per_byte: 8,
};

/// What a client sends, from its first byte on (first byte 0), or once it has negotiated.
pub(crate) const SERVER: Family = Family {
    name: "nbd_server",
    check: |bytes| {
        let Some((stage, bytes)) = bytes.split_first() else { return false };
        let mut sent = if *stage == 0 { Vec::new() } else { negotiation() };
        sent.extend_from_slice(bytes);
        serve(sent)
    },
    seeds: || {
        let request = |command, flags, offset, length| {
            let mut out = Vec::new();
            let (cookie, offset) = (Cookie(7), ByteOffset(offset));
            RequestHeader { flags, command, cookie, offset, length }.format(&mut out);
            out
        };
        let mut write = request(command::WRITE, 1, 4096, 5);
        write.extend(b"hello");
        let requests = [
            write,
            request(command::READ, 0, 0, 8192),
            request(command::BLOCK_STATUS, 0, 0, 65536),
            request(command::FLUSH, 0, 0, 0),
            request(command::TRIM, 0, 0, 4096),
            request(command::WRITE_ZEROES, 0, 1, 4097),
            request(command::CACHE, 0, 0, 4096),
            request(command::DISC, 0, 0, 0),
        ];
        let mut whole = vec![0];
        whole.extend(negotiation());
        whole.extend(requests.concat());
        let mut seeds = vec![whole, [vec![1], requests.concat()].concat()];
        seeds.extend(requests.map(|request| [vec![1], request].concat()));
        let mut list = vec![0, 0, 0, 0, 3];
        list.extend(asked(option::LIST, &[]));
        list.extend(asked(option::INFO, &info_request("disk", &[0, 1, 2, 3])));
        list.extend(asked(option::ABORT, &[]));
        seeds.push(list);
        seeds
    },
    // A write may announce 32 MiB, whose memory is reserved (not touched) before they come.
    memory_bytes: 40 << 20,
    memory_per_byte: 64,
};

/// What a server sends to our client, from its first byte on (first byte 0), or once it has negotiated.
pub(crate) const CLIENT: Family = Family {
    name: "nbd_client",
    check: |bytes| {
        let Some((stage, bytes)) = bytes.split_first() else { return false };
        let mut sent = if *stage == 0 { Vec::new() } else { welcome() };
        sent.extend_from_slice(bytes);
        ask(sent)
    },
    seeds: || {
        let mut replies = Vec::new();
        let chunk_header = |kind, cookie, length| ChunkHeader {
            flags: chunk::FLAG_DONE,
            kind,
            cookie: Cookie(cookie),
            length,
        };
        chunk_header(chunk::OFFSET_DATA, 1, 8 + 4096).format(&mut replies);
        replies.extend([&0_u64.to_be_bytes()[..], &[5; 4096]].concat());
        chunk_header(chunk::OFFSET_HOLE, 2, 12).format(&mut replies);
        HoleChunk { offset: ByteOffset(4096), length: 60_000 }.format(&mut replies);
        let extents = vec![Extent::data(ByteCount(4096)), Extent::hole(ByteCount(1 << 30))];
        let status = BlockStatusChunk { context_id: 1, extents };
        chunk_header(chunk::BLOCK_STATUS, 3, status.size_bytes() as u32).format(&mut replies);
        status.format(&mut replies);
        let error = ErrorChunk { error: NbdError::NoSpace("full".into()) };
        chunk_header(chunk::ERROR, 4, error.size_bytes() as u32).format(&mut replies);
        error.format(&mut replies);
        SimpleReply { errno: 0, cookie: Cookie(5) }.format(&mut replies);
        vec![[vec![0], welcome(), replies.clone()].concat(), [vec![1], replies].concat(), vec![1]]
    },
    memory_bytes: 1 << 20,
    memory_per_byte: 16,
};

/// A message of every kind.
fn messages() -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let mut add = |format: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        format(&mut out);
        messages.push(out);
    };
    let (cookie, offset) = (Cookie(0x0102), ByteOffset(0x0a00));
    add(&|out| Greeting { flags: 3 }.format(out));
    add(&|out| OptionHeader { option: 7, length: 9 }.format(out));
    add(&|out| OptionReplyHeader { option: 7, reply: 1, length: 0 }.format(out));
    add(&|out| InfoRequest { name: "disk".into(), wanted: vec![0, 3] }.format(out));
    let queries = vec!["base:allocation".into(), "base:".into()];
    add(&|out| MetaContextRequest { name: "disk".into(), queries: queries.clone() }.format(out));
    add(&|out| MetaContextReply { id: 1, name: "base:allocation".into() }.format(out));
    add(&|out| ListReply { name: "disk".into(), description: "ram".into() }.format(out));
    add(&|out| InfoReply::Export { size: ByteCount(1 << 20), flags: 1 }.format(out));
    add(&|out| InfoReply::OUR_BLOCK_SIZE.format(out));
    add(&|out| InfoReply::Name("disk".into()).format(out));
    add(&|out| RequestHeader { flags: 1, command: 6, cookie, offset, length: 0x1000 }.format(out));
    add(&|out| SimpleReply { errno: 28, cookie }.format(out));
    add(&|out| ChunkHeader { flags: 1, kind: 1, cookie, length: 9 }.format(out));
    add(&|out| HoleChunk { offset, length: 4096 }.format(out));
    add(&|out| ErrorChunk { error: NbdError::NoSpace("full".into()) }.format(out));
    let extents = vec![Extent::data(ByteCount(4096)), Extent::hole(ByteCount(1 << 30))];
    add(&|out| BlockStatusChunk { context_id: 1, extents: extents.clone() }.format(out));
    messages
}

/// What is parsed is formatted, and parsed as the same; true when it is a message.
fn round_trip<T: Debug + PartialEq>(
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Result<T, ProtoError>,
    format: impl Fn(&T, &mut Vec<u8>),
) -> bool {
    let Ok(message) = parse(bytes) else { return false };
    let mut out = Vec::new();
    format(&message, &mut out);
    assert_eq!(parse(&out).as_ref(), Ok(&message));
    true
}

/// An error that no kind of ours stands for becomes one of them, once.
fn error_chunk(bytes: &[u8]) -> bool {
    let Ok(first) = ErrorChunk::parse(bytes) else { return false };
    let mut out = Vec::new();
    first.format(&mut out);
    assert_eq!(out.len(), first.size_bytes());
    let again = ErrorChunk::parse(&out).expect("our own message");
    assert_eq!(again.error.errno(), first.error.errno());
    true
}

fn session(bytes: &[u8]) -> bool {
    let Some(text) = std::str::from_utf8(bytes).ok() else { return false };
    let Some(session) = Session::from_query(text) else { return false };
    assert_eq!(Session::from_query(&session.to_string()), Some(session));
    true
}

fn asked(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    OptionHeader { option, length: data.len() as u32 }.format(&mut out);
    out.extend_from_slice(data);
    out
}

fn info_request(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut out = Vec::new();
    InfoRequest { name: name.into(), wanted: wanted.to_vec() }.format(&mut out);
    out
}

/// A client's part of a negotiation with structured replies and `base:allocation`.
fn negotiation() -> Vec<u8> {
    let mut contexts = Vec::new();
    MetaContextRequest { name: "disk".into(), queries: vec!["base:allocation".into()] }.format(&mut contexts);
    [
        3_u32.to_be_bytes().to_vec(),
        asked(option::STRUCTURED_REPLY, &[]),
        asked(option::SET_META_CONTEXT, &contexts),
        asked(option::GO, &info_request("disk", &[])),
    ]
    .concat()
}

/// A server's part of it.
fn welcome() -> Vec<u8> {
    let mut out = Vec::new();
    let reply = |out: &mut Vec<u8>, option, reply, data: &[u8]| {
        OptionReplyHeader { option, reply, length: data.len() as u32 }.format(out);
        out.extend_from_slice(data);
    };
    Greeting { flags: 3 }.format(&mut out);
    reply(&mut out, option::STRUCTURED_REPLY, option_reply::ACK, &[]);
    let (mut context, mut export) = (Vec::new(), Vec::new());
    MetaContextReply { id: 1, name: "base:allocation".into() }.format(&mut context);
    reply(&mut out, option::SET_META_CONTEXT, option_reply::META_CONTEXT, &context);
    reply(&mut out, option::SET_META_CONTEXT, option_reply::ACK, &[]);
    InfoReply::Export { size: ByteCount(DISK_BYTES as u64), flags: 1 }.format(&mut export);
    reply(&mut out, option::GO, option_reply::INFO, &export);
    reply(&mut out, option::GO, option_reply::ACK, &[]);
    out
}

/// Serves a client that sends the bytes and hangs up; true when a request was answered or the client said goodbye.
fn serve(sent: Vec<u8>) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let options = ServerOptions { payload_in_flight_max: ByteCount(1 << 20), ..ServerOptions::default() };
        let server = Server::new(options);
        let disk = Rc::new(Disk(RefCell::new(vec![0; DISK_BYTES])));
        let (client, stream) = tokio::io::duplex(64 << 10);
        let (mut from, mut to) = tokio::io::split(client);
        let writing = async {
            // An error: the server has hung up.
            let _ = to.write_all(&sent).await;
            let _ = to.shutdown().await;
        };
        let reading = async {
            let mut heard = [0; 4096];
            while from.read(&mut heard).await.is_ok_and(|count| count > 0) {}
        };
        let exports = Rc::new(OneDisk(Rc::clone(&disk)));
        let serving = serve_connection(Rc::clone(&server), stream, None, exports, CancellationToken::new());
        tokio::join!(serving, writing, reading);
        let stats = server.stats();
        assert_eq!((stats.connections, stats.negotiating), (0, 0));
        assert_eq!(Rc::strong_count(&disk), 1, "a request is left");
        stats.requests > 0 || stats.dropped == 0
    })
}

/// Connects our client to a server that sends the bytes and hangs up; true when it was welcome.
fn ask(sent: Vec<u8>) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder for a socket");
    let socket = folder.path().join("s");
    runtime.block_on(async {
        let listener = UnixListener::bind(&socket).expect("a socket");
        let serving = async {
            let Ok((stream, _)) = listener.accept().await else { return };
            let (mut from, mut to) = stream.into_split();
            let _ = to.write_all(&sent).await;
            let _ = to.shutdown().await;
            let mut heard = [0; 4096];
            while from.read(&mut heard).await.is_ok_and(|count| count > 0) {}
        };
        // Less than the first pause: there is no second attempt.
        let patience = Some(Duration::from_millis(45));
        let options = ClientOptions { patience, ..ClientOptions::new(socket.as_path(), "disk") };
        let asking = async {
            let Ok(client) = Client::connect(options).await else { return false };
            let range = |start, length| ByteRange { start: ByteOffset(start), length: ByteCount(length) };
            let (first, second, extents, _, _) = tokio::join!(
                client.read(range(0, 4096)),
                client.read(range(4096, 60_000)),
                client.block_status(range(0, DISK_BYTES as u64)),
                client.write(ByteOffset(0), Bytes::from_static(b"hello"), false),
                client.flush(),
            );
            assert!(first.map_or(true, |data| data.len() == 4096));
            assert!(second.map_or(true, |data| data.len() == 60_000));
            if let Ok(extents) = extents {
                let total: u64 = extents.iter().map(|extent| extent.length.0).sum();
                assert!(total > 0 && total <= DISK_BYTES as u64, "{extents:?}");
            }
            client.close().await;
            true
        };
        tokio::select! {
            welcome = asking => welcome,
            never = async { serving.await; std::future::pending().await } => never,
        }
    })
}

struct Disk(RefCell<Vec<u8>>);

impl Disk {
    fn span(range: ByteRange) -> std::ops::Range<usize> {
        range.start.0 as usize..range.end().0 as usize
    }
}

impl Device for Disk {
    fn size(&self) -> ByteCount {
        ByteCount(DISK_BYTES as u64)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn description(&self) -> String {
        "ram".into()
    }

    async fn read(&self, range: ByteRange) -> Result<ReadReply, NbdError> {
        Ok(Bytes::copy_from_slice(&self.0.borrow()[Self::span(range)]).into())
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, _fua: bool) -> Result<(), NbdError> {
        let start = offset.0 as usize;
        self.0.borrow_mut()[start..start + data.len()].copy_from_slice(&data);
        Ok(())
    }

    async fn zero(&self, range: ByteRange, _fua: bool, _kind: ZeroKind) -> Result<(), NbdError> {
        self.0.borrow_mut()[Self::span(range)].fill(0);
        Ok(())
    }

    async fn flush(&self) -> Result<(), NbdError> {
        Ok(())
    }

    async fn cache(&self, _range: ByteRange) -> Result<(), NbdError> {
        Ok(())
    }

    async fn block_status(&self, range: ByteRange, _limit: usize) -> Result<Vec<Extent>, NbdError> {
        Ok(vec![Extent::data(range.length)])
    }

    async fn closed(&self) {
        std::future::pending().await
    }
}

struct OneDisk(Rc<Disk>);

impl Exports for OneDisk {
    type Device = Disk;

    async fn open(&self, name: &str, _client: ClientInfo) -> Result<Rc<Disk>, OpenError> {
        if name == "disk" { Ok(Rc::clone(&self.0)) } else { Err(OpenError::NotFound("no such disk".into())) }
    }

    async fn info(&self, name: &str) -> Result<ExportInfo, OpenError> {
        let disk = self.open(name, ClientInfo::default()).await?;
        let (size, description) = (disk.size(), disk.description());
        Ok(ExportInfo { size, read_only: false, multi_conn: true, description })
    }

    async fn list(&self) -> Vec<String> {
        vec!["disk".into()]
    }
}
