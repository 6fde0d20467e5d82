//! The talk before transmission: greeting, options, replies to options, within the client's time.
//!
//! Invariants: an option's data is read into memory only up to a bound; nothing is read past the option that is being
//! answered; the time that the client takes is bounded in all.
//!
//! Not here: what an option means (`negotiation`, and before TLS `secure`).

use super::doorway::Place;
use crate::proto::{
    ProtoError,
    handshake::{
        Greeting, OPTION_BYTES_MAX, OPTION_HEADER_BYTES, OptionHeader, OptionReplyHeader, bounded_text,
    },
    numbers::{TEXT_BYTES_MAX, handshake_flag, option, option_reply},
};
use bytes::BufMut as _;
use std::{future::Future, io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// An option with more data than is read into memory is skipped up to here, and hung up on beyond.
const SKIPPED_BYTES_MAX: u32 = 1 << 20;

/// Why a talk led to nothing.
pub(super) enum Failed {
    /// The client said goodbye, or closed its end between two options.
    Left,
    /// It was hung up on.
    Dropped(&'static str),
    Io(io::Error),
    Proto(ProtoError),
}

impl From<ProtoError> for Failed {
    fn from(error: ProtoError) -> Failed {
        Failed::Proto(error)
    }
}

/// What the client answered to the greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientFlags {
    pub(super) no_zeroes: bool,
}

/// One client, and for how long it is listened to.
pub(super) struct Talk<'a, S> {
    stream: S,
    patience: Patience<'a>,
}

/// Up to the deadline, and only as long as nobody wants the place or the end.
pub(super) struct Patience<'a> {
    place: &'a Place,
    stop: &'a CancellationToken,
    deadline: Instant,
}

impl<'a, S> Talk<'a, S> {
    pub(super) fn new(stream: S, place: &'a Place, stop: &'a CancellationToken, timeout: Duration) -> Self {
        Talk { stream, patience: Patience { place, stop, deadline: Instant::now() + timeout } }
    }

    /// For what follows the talk.
    pub(super) fn into_parts(self) -> (S, Patience<'a>) {
        (self.stream, self.patience)
    }

    /// Awaits something of our own: it is not interrupted, and the client does not pay for the time.
    pub(super) async fn undisturbed<T>(&mut self, work: impl Future<Output = T>) -> T {
        let _busy = self.patience.place.busy();
        let begun = Instant::now();
        let result = work.await;
        self.patience.deadline += begun.elapsed();
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<'_, S> {
    /// proto.md, "Newstyle negotiation".
    pub(super) async fn greet(&mut self) -> Result<ClientFlags, Failed> {
        let ours = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        let mut greeting = Vec::new();
        Greeting { flags: ours }.format(&mut greeting);
        self.write(&greeting).await?;
        let mut flags = [0; 4];
        self.read(&mut flags).await?;
        let flags = u32::from_be_bytes(flags);
        if flags & !u32::from(ours) != 0 {
            return Err(Failed::Proto(ProtoError::Unexpected("client flags that were not offered")));
        }
        Ok(ClientFlags { no_zeroes: flags & u32::from(handshake_flag::NO_ZEROES) != 0 })
    }

    pub(super) async fn option_header(&mut self) -> Result<OptionHeader, Failed> {
        let mut header = [0; OPTION_HEADER_BYTES];
        match self.read(&mut header).await {
            Err(Failed::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Failed::Left),
            result => result.and_then(|()| Ok(OptionHeader::parse(&header)?)),
        }
    }

    /// The option's data; `None` when it was too large, and was skipped and answered.
    pub(super) async fn option_data(&mut self, header: OptionHeader) -> Result<Option<Vec<u8>>, Failed> {
        let is_name = header.option == option::EXPORT_NAME;
        let max = if is_name { TEXT_BYTES_MAX as u32 } else { OPTION_BYTES_MAX };
        if header.length <= max {
            let mut data = vec![0; header.length as usize];
            self.read(&mut data).await?;
            return Ok(Some(data));
        }
        // To EXPORT_NAME nothing but hanging up says no.
        if is_name || header.length > SKIPPED_BYTES_MAX {
            let (given, max) = (header.length.into(), max.into());
            return Err(Failed::Proto(ProtoError::TooLong { given, max }));
        }
        let mut left = header.length as usize;
        let mut skipped = [0; 4096];
        while left > 0 {
            let now = left.min(skipped.len());
            self.read(&mut skipped[..now]).await?;
            left -= now;
        }
        self.refuse(header.option, option_reply::ERR_TOO_BIG, "the option's data is too long").await?;
        Ok(None)
    }

    pub(super) async fn refuse(&mut self, option: u32, reply: u32, text: &str) -> Result<(), Failed> {
        self.reply(option, reply, bounded_text(text).as_bytes()).await
    }

    pub(super) async fn reply(&mut self, option: u32, reply: u32, data: &[u8]) -> Result<(), Failed> {
        let mut message = Vec::new();
        put_reply(&mut message, option, reply, data);
        self.write(&message).await
    }

    async fn read(&mut self, buffer: &mut [u8]) -> Result<(), Failed> {
        self.patience.patiently(self.stream.read_exact(buffer)).await.map(|_| ())
    }

    pub(super) async fn write(&mut self, message: &[u8]) -> Result<(), Failed> {
        let writing = async {
            self.stream.write_all(message).await?;
            self.stream.flush().await
        };
        self.patience.patiently(writing).await
    }
}

impl Patience<'_> {
    /// The client's part of something.
    pub(super) async fn patiently<T>(&self, io: impl Future<Output = io::Result<T>>) -> Result<T, Failed> {
        tokio::select! {
            biased;
            result = timeout_at(self.deadline, io) => match result {
                Ok(result) => result.map_err(Failed::Io),
                Err(_) => Err(Failed::Dropped("negotiation took too long")),
            },
            () = self.place.evicted() => Err(Failed::Dropped("too many connections negotiate")),
            () = self.stop.cancelled() => Err(Failed::Dropped("the server is stopping")),
        }
    }
}

pub(super) fn put_reply(out: &mut Vec<u8>, option: u32, reply: u32, data: &[u8]) {
    OptionReplyHeader { option, reply, length: data.len() as u32 }.format(out);
    out.put_slice(data);
}
