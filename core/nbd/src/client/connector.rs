//! Connecting and negotiating, and how long to wait before the next attempt.

use super::{
    ClientError, ClientOptions, Endpoint,
    transport::{Transport, connect_tcp, secure},
};
use crate::{
    Generation, Session,
    proto::{
        ProtoError,
        handshake::{
            GREETING_BYTES, Greeting, InfoReply, InfoRequest, MetaContextReply, MetaContextRequest,
            OPTION_REPLY_HEADER_BYTES, OptionHeader, OptionReplyHeader,
        },
        numbers::{TEXT_BYTES_MAX, allocation, export_flag, handshake_flag, option, option_reply},
    },
};
use bytes::BufMut as _;
use ovs_units::ByteCount;
use std::{io, path::Path, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_rustls::rustls::{self, AlertDescription, CertificateError};

/// One attempt takes at most so long; the server may keep it waiting for a predecessor's drain.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// The first pause between attempts; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The most data of a reply to an option that is taken, and the most replies to one option.
const REPLY_BYTES_MAX: u32 = 64 << 10;
const REPLIES_MAX: usize = 64;

/// A negotiated connection.
pub(super) struct Connection {
    pub(super) stream: Transport,
    pub(super) size: ByteCount,
    /// Transmission flags, as the server gave them.
    pub(super) flags: u16,
    /// The number of `base:allocation`, if the server knows it.
    pub(super) allocation_id: Option<u32>,
}

impl Connection {
    pub(super) fn read_only(&self) -> bool {
        self.flags & export_flag::READ_ONLY != 0
    }
}

/// How the server is to answer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replies {
    /// In chunks, with holes and block status: our own client.
    Structured,
    /// Header and data: all that the kernel knows.
    Simple,
}

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// Worth another try.
    Now(String),
    /// It will not be otherwise later.
    ForGood(String),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        let text = error.to_string();
        let distrust = error.get_ref().and_then(|cause| cause.downcast_ref()).is_some_and(is_for_good);
        if distrust || error.kind() == io::ErrorKind::PermissionDenied {
            Failed::ForGood(text)
        } else {
            Failed::Now(text)
        }
    }
}

/// True when one end does not trust the other, and waiting will not change that. A certificate that has expired may be
/// about to be renewed.
fn is_for_good(error: &rustls::Error) -> bool {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(reason) => !matches!(
            reason,
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. }
        ),
        rustls::Error::AlertReceived(alert) => matches!(
            alert,
            Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError
                | Alert::CertificateRequired
        ),
        _ => false,
    }
}

impl From<ProtoError> for Failed {
    fn from(error: ProtoError) -> Failed {
        Failed::Now(format!("not what an NBD server says: {error}"))
    }
}

/// The pause before the next attempt.
#[derive(Debug, Default)]
pub(super) struct Backoff(Option<Duration>);

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = self.0.map_or(PAUSE_MIN, |before| (before * 2).min(PAUSE_MAX));
        *self.0.insert(pause)
    }
}

/// Makes connections, each with the next generation.
pub(super) struct Connector {
    options: ClientOptions,
    next: Option<Session>,
}

impl Connector {
    pub(super) fn new(options: ClientOptions) -> Connector {
        let next = options.session;
        Connector { options, next }
    }

    /// True when a lost connection may be replaced.
    pub(super) fn may_reconnect(&self) -> bool {
        self.options.session.is_some()
    }

    /// The generation of the last attempt.
    pub(super) fn generation(&self) -> Generation {
        Generation(self.next.map_or(0, |next| next.generation.0.saturating_sub(1)))
    }

    /// When patience ends, if it begins now.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.options.patience.map(|patience| Instant::now() + patience)
    }

    /// One attempt.
    pub(super) async fn attempt(&mut self, deadline: Option<Instant>) -> Result<Connection, Failed> {
        let session = self.next;
        if let Some(next) = &mut self.next {
            next.generation.0 = next.generation.0.saturating_add(1);
        }
        let limit = Instant::now() + ATTEMPT_TIMEOUT;
        let limit = deadline.map_or(limit, |deadline| limit.min(deadline));
        let attempt = async {
            let stream = reach(&self.options.endpoint).await?;
            negotiate(stream, &self.options.export, session, Replies::Structured).await
        };
        timeout_at(limit, attempt).await.unwrap_or_else(|_| Err(Failed::Now("no answer in time".into())))
    }

    /// After a failed attempt: waits, or says why there is no use in it.
    pub(super) async fn pause(
        &self,
        failed: Failed,
        backoff: &mut Backoff,
        deadline: Option<Instant>,
    ) -> Result<(), ClientError> {
        let wake = Instant::now() + backoff.next();
        match failed {
            Failed::ForGood(reason) => Err(ClientError::Refused(reason)),
            Failed::Now(reason) if deadline.is_some_and(|deadline| wake >= deadline) => {
                Err(ClientError::Disconnected(format!("{}: {reason}", self.options.endpoint)))
            }
            Failed::Now(_) => {
                sleep_until(wake).await;
                Ok(())
            }
        }
    }
}

/// A connection for someone else to speak on, negotiated once.
pub(super) async fn connect_simple(
    socket: &Path,
    export: &str,
    session: Session,
) -> Result<Connection, Failed> {
    let endpoint = Endpoint::Unix(socket.to_owned());
    let attempt = async {
        let stream = reach(&endpoint).await?;
        negotiate(stream, export, Some(session), Replies::Simple).await
    };
    timeout(ATTEMPT_TIMEOUT, attempt).await.unwrap_or_else(|_| Err(Failed::Now("no answer in time".into())))
}

/// Connects and greets; where TLS is wanted, everything that follows goes through it.
async fn reach(endpoint: &Endpoint) -> Result<Transport, Failed> {
    match endpoint {
        Endpoint::Unix(socket) => {
            let mut stream = UnixStream::connect(socket).await?;
            greet(&mut stream).await?;
            Ok(Transport::Unix(stream))
        }
        Endpoint::Tls { host, port, config } => {
            let mut stream = connect_tcp(host, *port).await?;
            greet(&mut stream).await?;
            // proto.md, "NBD_OPT_STARTTLS"; without it nothing more is said to this server.
            ask(&mut stream, option::STARTTLS, &[]).await?;
            answers(&mut stream, option::STARTTLS, |_, _| Ok(())).await?;
            Ok(secure(stream, host, config).await?)
        }
    }
}

/// proto.md, "Newstyle negotiation".
async fn greet(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), Failed> {
    let mut greeting = [0; GREETING_BYTES];
    stream.read_exact(&mut greeting).await?;
    let offered = Greeting::parse(&greeting)?.flags;
    if offered & handshake_flag::FIXED_NEWSTYLE == 0 {
        return Err(Failed::ForGood("the server does not speak the fixed newstyle protocol".into()));
    }
    let ours = offered & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
    Ok(stream.write_all(&u32::from(ours).to_be_bytes()).await?)
}

/// proto.md, "Fixed newstyle negotiation": structured replies if wanted, contexts, go.
async fn negotiate(
    mut stream: Transport,
    export: &str,
    session: Option<Session>,
    replies: Replies,
) -> Result<Connection, Failed> {
    if export.len() > TEXT_BYTES_MAX {
        return Err(Failed::ForGood(format!("the export's name is longer than {TEXT_BYTES_MAX} bytes")));
    }
    let mut queries = Vec::new();
    if replies == Replies::Structured {
        ask(&mut stream, option::STRUCTURED_REPLY, &[]).await?;
        answers(&mut stream, option::STRUCTURED_REPLY, |_, _| Ok(())).await?;
        queries.push(allocation::CONTEXT.to_owned());
    }
    queries.extend(session.map(|session| session.to_string()));
    let mut data = Vec::new();
    MetaContextRequest { name: export.to_owned(), queries }.format(&mut data);
    ask(&mut stream, option::SET_META_CONTEXT, &data).await?;
    let (mut allocation_id, mut admitted) = (None, session.is_none());
    answers(&mut stream, option::SET_META_CONTEXT, |reply, data| {
        if reply == option_reply::META_CONTEXT {
            let context = MetaContextReply::parse(data)?;
            if context.name == allocation::CONTEXT {
                allocation_id = Some(context.id);
            }
            admitted |= session.is_some_and(|session| session.to_string() == context.name);
        }
        Ok(())
    })
    .await?;
    if !admitted {
        return Err(Failed::ForGood(
            "the server knows no sessions: nothing could be sent again safely".into(),
        ));
    }

    let mut data = Vec::new();
    InfoRequest { name: export.to_owned(), wanted: Vec::new() }.format(&mut data);
    ask(&mut stream, option::GO, &data).await?;
    let mut told = None;
    answers(&mut stream, option::GO, |reply, data| {
        if reply == option_reply::INFO
            && let InfoReply::Export { size, flags } = InfoReply::parse(data)?
        {
            told = Some((size, flags));
        }
        Ok(())
    })
    .await?;
    let (size, flags) = told.ok_or(ProtoError::Unexpected("no size of the export"))?;
    Ok(Connection { stream, size, flags, allocation_id })
}

async fn ask(stream: &mut (impl AsyncWrite + Unpin), option: u32, data: &[u8]) -> Result<(), Failed> {
    let mut message = Vec::new();
    OptionHeader { option, length: data.len() as u32 }.format(&mut message);
    message.put_slice(data);
    stream.write_all(&message).await?;
    Ok(stream.flush().await?)
}

/// Reads replies to `option` up to the one that ends them.
async fn answers(
    stream: &mut (impl AsyncRead + Unpin),
    option: u32,
    mut each: impl FnMut(u32, &[u8]) -> Result<(), ProtoError>,
) -> Result<(), Failed> {
    for _ in 0..REPLIES_MAX {
        let mut header = [0; OPTION_REPLY_HEADER_BYTES];
        stream.read_exact(&mut header).await?;
        let header = OptionReplyHeader::parse(&header)?;
        if header.option != option {
            return Err(ProtoError::Unexpected("a reply to an option that was not sent").into());
        }
        if header.length > REPLY_BYTES_MAX {
            let (given, max) = (header.length.into(), REPLY_BYTES_MAX.into());
            return Err(ProtoError::TooLong { given, max }.into());
        }
        let mut data = vec![0; header.length as usize];
        stream.read_exact(&mut data).await?;
        match header.reply {
            option_reply::ACK => return Ok(()),
            reply if reply & option_reply::ERROR_BIT != 0 => return Err(refusal(option, reply, &data)),
            reply => each(reply, &data)?,
        }
    }
    Err(ProtoError::Unexpected("more replies than there can be").into())
}

/// What a refusal means: see `OpenError` for the server's side.
fn refusal(option: u32, reply: u32, data: &[u8]) -> Failed {
    let text = String::from_utf8_lossy(data);
    let text = match text.trim() {
        "" => format!("option {option} was answered with error {:#x}", reply),
        text => text.to_owned(),
    };
    match reply {
        option_reply::ERR_SHUTDOWN => Failed::Now(text),
        _ => Failed::ForGood(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    }
}
