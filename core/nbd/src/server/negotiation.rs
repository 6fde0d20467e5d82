//! Negotiation: from the greeting to an open device.
//!
//! ```text
//! greeting ⇄ client flags ──▶ option, reply, option, reply … ──▶ GO / EXPORT_NAME: admit the session, open ──▶ Opened
//! ```
//!
//! Invariants: `Exports` is never interrupted in the middle of a call; what was opened is released again if the client
//! is gone before it was told. The bounds in bytes and time are `talk`'s.
//!
//! Not here: TLS, which comes before (`secure`) or not at all; extended headers, answered as unknown.

use super::{
    session::{SessionGuard, Sessions, Superseded},
    talk::{ClientFlags, Failed, Talk, put_reply},
};
use crate::{
    ClientInfo, Device, ExportInfo, Exports, OpenError, Peer, Session,
    proto::{
        ProtoError,
        handshake::{InfoReply, InfoRequest, ListReply, MetaContextReply, MetaContextRequest, bounded_text},
        numbers::{TEXT_BYTES_MAX, allocation, export_flag, info, option, option_reply},
    },
};
use bytes::BufMut as _;
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncWrite};

/// The number of `base:allocation` in block status replies.
const ALLOCATION_ID: u32 = 1;
/// The number of the session's context in block status replies.
const SESSION_ID: u32 = 2;

/// What client and server agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Agreed {
    pub(super) structured: bool,
    /// The number of `base:allocation`, if it was selected.
    pub(super) allocation_id: Option<u32>,
    /// The number of the session's context, if one was named.
    pub(super) session_id: Option<u32>,
}

impl Agreed {
    /// True when block status may be asked for.
    pub(super) fn block_status(&self) -> bool {
        self.structured && (self.allocation_id.is_some() || self.session_id.is_some())
    }
}

/// What negotiation leads to.
pub(super) struct Opened<D> {
    pub(super) device: Rc<D>,
    pub(super) agreed: Agreed,
    pub(super) name: String,
    pub(super) session: Option<SessionGuard>,
}

/// What negotiation needs to know besides the client's stream.
pub(super) struct Parties<'a, E> {
    pub(super) exports: &'a Rc<E>,
    pub(super) sessions: &'a Rc<Sessions>,
    pub(super) peer: Option<Peer>,
    /// Set when the greeting is behind the connection, and all that is said goes through TLS.
    pub(super) secured: Option<ClientFlags>,
}

/// The contexts that were selected, and for which export.
#[derive(Default)]
struct Selected {
    export: String,
    allocation: bool,
    session: Option<Session>,
}

struct Negotiation<'a, S, E> {
    talk: Talk<'a, S>,
    parties: &'a Parties<'a, E>,
    structured: bool,
    no_zeroes: bool,
    selected: Selected,
}

/// Negotiates to the end.
pub(super) async fn negotiate<'a, S, E>(
    mut talk: Talk<'a, S>,
    parties: &'a Parties<'a, E>,
) -> Result<Opened<E::Device>, Failed>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let ClientFlags { no_zeroes } = match parties.secured {
        Some(flags) => flags,
        None => talk.greet().await?,
    };
    let mut it = Negotiation { talk, parties, structured: false, no_zeroes, selected: Selected::default() };
    loop {
        let header = it.talk.option_header().await?;
        let Some(data) = it.talk.option_data(header).await? else { continue };
        match header.option {
            option::EXPORT_NAME => return it.export_name(&data).await,
            option::GO => {
                if let Some(opened) = it.go(&data).await? {
                    return Ok(opened);
                }
            }
            option::ABORT => {
                // The client need not wait for it (proto.md, "NBD_OPT_ABORT").
                let _ = it.talk.reply(header.option, option_reply::ACK, &[]).await;
                return Err(Failed::Left);
            }
            option::INFO => it.info(&data).await?,
            option::LIST => it.list(&data).await?,
            option::STRUCTURED_REPLY => it.structured_reply(&data).await?,
            option::LIST_META_CONTEXT => it.meta_context(option::LIST_META_CONTEXT, &data).await?,
            option::SET_META_CONTEXT => it.meta_context(option::SET_META_CONTEXT, &data).await?,
            option::STARTTLS => it.start_tls().await?,
            other => it.refuse(other, option_reply::ERR_UNSUP, "this option is not known").await?,
        }
    }
}

impl<S, E> Negotiation<'_, S, E>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    /// proto.md, "NBD_OPT_STARTTLS".
    async fn start_tls(&mut self) -> Result<(), Failed> {
        match self.parties.secured {
            None => self.refuse(option::STARTTLS, option_reply::ERR_POLICY, "no TLS on this socket").await,
            Some(_) => self.refuse(option::STARTTLS, option_reply::ERR_INVALID, "TLS is there already").await,
        }
    }

    /// proto.md, "NBD_OPT_EXPORT_NAME": refusing is hanging up.
    async fn export_name(mut self, data: &[u8]) -> Result<Opened<E::Device>, Failed> {
        let name = std::str::from_utf8(data).map_err(|_| Failed::Proto(ProtoError::Text))?;
        let Ok(opened) = self.open(name).await else {
            return Err(Failed::Dropped("the export was not opened"));
        };
        let mut reply = Vec::new();
        reply.put_u64(opened.device.size().0);
        reply.put_u16(self.flags(&ExportInfo::of(&*opened.device)));
        if !self.no_zeroes {
            reply.put_bytes(0, 124);
        }
        self.told(opened, &reply).await
    }

    /// proto.md, "NBD_OPT_GO".
    async fn go(&mut self, data: &[u8]) -> Result<Option<Opened<E::Device>>, Failed> {
        let request = match InfoRequest::parse(data) {
            Ok(request) => request,
            Err(error) => return self.refuse_data(option::GO, &error).await.map(|()| None),
        };
        match self.open(&request.name).await {
            Ok(opened) => {
                let mut reply = self.info_replies(option::GO, &request, &ExportInfo::of(&*opened.device));
                put_reply(&mut reply, option::GO, option_reply::ACK, &[]);
                self.told(opened, &reply).await.map(Some)
            }
            Err(error) => self.refuse_open(option::GO, &error).await.map(|()| None),
        }
    }

    /// Admits the session, then opens. The time that this takes is not the client's.
    async fn open(&mut self, name: &str) -> Result<Opened<E::Device>, OpenError> {
        // Contexts count only for the export that they were selected for (proto.md, "NBD_OPT_SET_META_CONTEXT").
        let selected = std::mem::take(&mut self.selected);
        let Selected { allocation, session, .. } =
            if selected.export == name { selected } else { Selected::default() };
        let Parties { exports, sessions, peer, .. } = self.parties;
        let (exports, sessions, peer) = (Rc::clone(exports), Rc::clone(sessions), *peer);
        let agreed = Agreed {
            structured: self.structured,
            allocation_id: allocation.then_some(ALLOCATION_ID),
            session_id: session.map(|_| SESSION_ID),
        };
        let opening = async {
            let guard = match session {
                Some(session) => Some(sessions.admit(session).await.map_err(|Superseded| {
                    OpenError::Denied("a newer connection of this session is there".into())
                })?),
                None => None,
            };
            let device = exports.open(name, ClientInfo { session, peer }).await?;
            Ok(Opened { device, agreed, name: name.to_owned(), session: guard })
        };
        self.talk.undisturbed(opening).await
    }

    /// Sends the last reply; the device is released again if the client is gone.
    async fn told(&mut self, opened: Opened<E::Device>, reply: &[u8]) -> Result<Opened<E::Device>, Failed> {
        match self.talk.write(reply).await {
            Ok(()) => Ok(opened),
            Err(error) => {
                opened.device.released().await;
                Err(error)
            }
        }
    }

    /// proto.md, "NBD_OPT_INFO".
    async fn info(&mut self, data: &[u8]) -> Result<(), Failed> {
        let request = match InfoRequest::parse(data) {
            Ok(request) => request,
            Err(error) => return self.refuse_data(option::INFO, &error).await,
        };
        let exports = Rc::clone(self.parties.exports);
        match self.talk.undisturbed(exports.info(&request.name)).await {
            Ok(export) => {
                let mut reply = self.info_replies(option::INFO, &request, &export);
                put_reply(&mut reply, option::INFO, option_reply::ACK, &[]);
                self.talk.write(&reply).await
            }
            Err(error) => self.refuse_open(option::INFO, &error).await,
        }
    }

    /// `NBD_REP_INFO`s: the export always, the others when they were asked for.
    fn info_replies(&self, option: u32, request: &InfoRequest, export: &ExportInfo) -> Vec<u8> {
        let mut infos = vec![InfoReply::Export { size: export.size, flags: self.flags(export) }];
        if request.wanted.contains(&info::NAME) {
            infos.push(InfoReply::Name(request.name.clone()));
        }
        if request.wanted.contains(&info::DESCRIPTION) && !export.description.is_empty() {
            infos.push(InfoReply::Description(bounded_text(&export.description).to_owned()));
        }
        if request.wanted.contains(&info::BLOCK_SIZE) {
            infos.push(InfoReply::OUR_BLOCK_SIZE);
        }
        let mut reply = Vec::new();
        for info in infos {
            let mut data = Vec::new();
            info.format(&mut data);
            put_reply(&mut reply, option, option_reply::INFO, &data);
        }
        reply
    }

    /// proto.md, "Transmission flags".
    fn flags(&self, export: &ExportInfo) -> u16 {
        let mut flags = export_flag::HAS_FLAGS
            | export_flag::SEND_FLUSH
            | export_flag::SEND_FUA
            | export_flag::SEND_TRIM
            | export_flag::SEND_WRITE_ZEROES
            | export_flag::SEND_FAST_ZERO
            | export_flag::SEND_CACHE;
        if export.read_only {
            flags |= export_flag::READ_ONLY;
        }
        if export.multi_conn {
            flags |= export_flag::CAN_MULTI_CONN;
        }
        if self.structured {
            flags |= export_flag::SEND_DF;
        }
        flags
    }

    /// proto.md, "NBD_OPT_LIST".
    async fn list(&mut self, data: &[u8]) -> Result<(), Failed> {
        if !data.is_empty() {
            return self.refuse(option::LIST, option_reply::ERR_INVALID, "a list takes no data").await;
        }
        let exports = Rc::clone(self.parties.exports);
        let names = self.talk.undisturbed(exports.list()).await;
        let mut reply = Vec::new();
        for name in names.into_iter().filter(|name| name.len() <= TEXT_BYTES_MAX) {
            let mut data = Vec::new();
            ListReply { name, description: String::new() }.format(&mut data);
            put_reply(&mut reply, option::LIST, option_reply::SERVER, &data);
        }
        put_reply(&mut reply, option::LIST, option_reply::ACK, &[]);
        self.talk.write(&reply).await
    }

    /// proto.md, "NBD_OPT_STRUCTURED_REPLY".
    async fn structured_reply(&mut self, data: &[u8]) -> Result<(), Failed> {
        if !data.is_empty() {
            return self.refuse(option::STRUCTURED_REPLY, option_reply::ERR_INVALID, "takes no data").await;
        }
        self.structured = true;
        self.talk.reply(option::STRUCTURED_REPLY, option_reply::ACK, &[]).await
    }

    /// proto.md, "NBD_OPT_LIST_META_CONTEXT" and "NBD_OPT_SET_META_CONTEXT". A session is selected like a context, and
    /// never listed. Where the protocol wants structured replies first, a session alone does without: the kernel's NBD
    /// client knows only simple replies, and a session has no block status to reply with.
    async fn meta_context(&mut self, option: u32, data: &[u8]) -> Result<(), Failed> {
        let sets = option == option::SET_META_CONTEXT;
        if sets {
            // A failed selection leaves none.
            self.selected = Selected::default();
        }
        let request = MetaContextRequest::parse(data);
        let is_session = |query: &String| Session::from_query(query).is_some();
        let names_session = |request: &MetaContextRequest| {
            sets && !request.queries.is_empty() && request.queries.iter().all(is_session)
        };
        if !self.structured && !request.as_ref().is_ok_and(names_session) {
            return self.refuse(option, option_reply::ERR_INVALID, "structured replies come first").await;
        }
        let request = match request {
            Ok(request) => request,
            Err(error) => return self.refuse_data(option, &error).await,
        };
        let exports = Rc::clone(self.parties.exports);
        if let Err(error) = self.talk.undisturbed(exports.info(&request.name)).await {
            return self.refuse_open(option, &error).await;
        }
        let mut sessions = request.queries.iter().filter_map(|query| Session::from_query(query));
        let session = if sets { sessions.next() } else { None };
        if session.is_some() && sessions.next().is_some() {
            return self.refuse(option, option_reply::ERR_INVALID, "more than one session").await;
        }
        // The empty leaf and the empty list stand for everything, in a list only.
        let matches = |query: &String| query == allocation::CONTEXT || (!sets && query == "base:");
        let allocation = request.queries.iter().any(matches) || (!sets && request.queries.is_empty());
        let mut reply = Vec::new();
        let mut put = |id, name: String| {
            let mut data = Vec::new();
            MetaContextReply { id, name }.format(&mut data);
            put_reply(&mut reply, option, option_reply::META_CONTEXT, &data);
        };
        if allocation {
            put(ALLOCATION_ID, allocation::CONTEXT.to_owned());
        }
        if let Some(session) = session {
            put(SESSION_ID, session.to_string());
        }
        put_reply(&mut reply, option, option_reply::ACK, &[]);
        if sets {
            self.selected = Selected { export: request.name, allocation, session };
        }
        self.talk.write(&reply).await
    }

    async fn refuse_open(&mut self, option: u32, error: &OpenError) -> Result<(), Failed> {
        let reply = match error {
            OpenError::NotFound(_) => option_reply::ERR_UNKNOWN,
            OpenError::Denied(_) => option_reply::ERR_POLICY,
            OpenError::Unavailable(_) => option_reply::ERR_SHUTDOWN,
        };
        self.refuse(option, reply, &error.to_string()).await
    }

    async fn refuse_data(&mut self, option: u32, error: &ProtoError) -> Result<(), Failed> {
        let reply = match error {
            ProtoError::TooLong { .. } => option_reply::ERR_TOO_BIG,
            _ => option_reply::ERR_INVALID,
        };
        self.refuse(option, reply, &error.to_string()).await
    }

    async fn refuse(&mut self, option: u32, reply: u32, text: &str) -> Result<(), Failed> {
        self.talk.refuse(option, reply, text).await
    }
}

impl ExportInfo {
    fn of(device: &impl Device) -> ExportInfo {
        ExportInfo {
            size: device.size(),
            read_only: device.read_only(),
            multi_conn: device.multi_conn(),
            description: device.description(),
        }
    }
}
