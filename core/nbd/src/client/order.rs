//! What callers ask for, and what is kept of it until it is answered.

use super::ClientError;
use crate::{
    Extent, NbdError,
    proto::{
        ProtoError,
        numbers::{command, command_flag},
        request::{Cookie, RequestHeader},
    },
    wire::Output,
};
use bytes::Bytes;
use ovs_units::{ByteCount, ByteOffset, ByteRange};
use tokio::sync::oneshot;

/// From a handle to the driver.
#[derive(Debug)]
pub(super) enum Message {
    Order(Order),
    /// No more orders: end when all are answered.
    Close,
}

#[derive(Debug)]
pub(super) struct Order {
    pub(super) command: Command,
    pub(super) reply: oneshot::Sender<Result<Answer, ClientError>>,
}

#[derive(Debug)]
pub(super) enum Command {
    Read { range: ByteRange },
    Write { offset: ByteOffset, data: Bytes, fua: bool },
    Zero { range: ByteRange, fua: bool },
    Trim { range: ByteRange, fua: bool },
    Flush,
    BlockStatus { range: ByteRange },
}

#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Data(Bytes),
    Extents(Vec<Extent>),
}

impl Command {
    /// The bytes that it brings or asks for.
    pub(super) fn payload(&self) -> ByteCount {
        match self {
            Command::Read { range } => range.length,
            Command::Write { data, .. } => ByteCount(data.len() as u64),
            _ => ByteCount(0),
        }
    }

    /// The request's bytes, the same each time.
    fn send(&self, cookie: Cookie, output: &mut Output) {
        let fua = |fua: &bool| if *fua { command_flag::FUA } else { 0 };
        let (command, flags, offset, length) = match self {
            Command::Read { range } => (command::READ, 0, range.start, range.length.0),
            Command::Write { offset, data, fua: f } => (command::WRITE, fua(f), *offset, data.len() as u64),
            Command::Zero { range, fua: f } => (command::WRITE_ZEROES, fua(f), range.start, range.length.0),
            Command::Trim { range, fua: f } => (command::TRIM, fua(f), range.start, range.length.0),
            Command::Flush => (command::FLUSH, 0, ByteOffset(0), 0),
            Command::BlockStatus { range } => (command::BLOCK_STATUS, 0, range.start, range.length.0),
        };
        // Every length was bounded when the command was made.
        let header = RequestHeader { flags, command, cookie, offset, length: length as u32 };
        output.append(|tail| header.format(tail));
        if let Command::Write { data, .. } = self {
            output.payload(data.clone());
        }
    }
}

/// A request without its answer, or with a part of it.
pub(super) struct InFlight {
    pub(super) order: Order,
    was_sent: bool,
    received: Received,
}

/// What came of an answer. Forgotten when the connection is lost.
#[derive(Default)]
struct Received {
    /// A read's data, if it did not come in one piece.
    buffer: Vec<u8>,
    /// A read's data in one piece.
    whole: Option<Bytes>,
    bytes: u64,
    extents: Option<Vec<Extent>>,
    error: Option<NbdError>,
}

impl InFlight {
    pub(super) fn new(order: Order) -> InFlight {
        InFlight { order, was_sent: false, received: Received::default() }
    }

    /// Queues the request, from its beginning; true if it was sent before.
    pub(super) fn send(&mut self, cookie: Cookie, output: &mut Output) -> bool {
        self.received = Received::default();
        self.order.command.send(cookie, output);
        std::mem::replace(&mut self.was_sent, true)
    }

    /// Checks that a piece of data belongs to the request: its place relative to the request's start.
    pub(super) fn place(&self, offset: ByteOffset, length: ByteCount) -> Result<usize, ProtoError> {
        let Command::Read { range } = &self.order.command else {
            return Err(ProtoError::Unexpected("data for what is not a read"));
        };
        let piece = ByteRange::new(offset, length).filter(|piece| {
            piece.start >= range.start
                && piece.end() <= range.end()
                && self.received.bytes + length.0 <= range.length.0
        });
        match piece {
            Some(piece) => Ok((piece.start.0 - range.start.0) as usize),
            None => Err(ProtoError::Unexpected("data that was not asked for")),
        }
    }

    /// Where a piece of data goes, whose place was checked; counted as received.
    pub(super) fn room(&mut self, place: usize, length: usize) -> &mut [u8] {
        if self.received.buffer.is_empty() {
            self.received.buffer = vec![0; self.order.command.payload().0 as usize];
        }
        &mut self.received.buffer[place..place + length]
    }

    /// Counts a piece of data, whose place was checked, as there. What is a hole stays zero.
    pub(super) fn received(&mut self, length: ByteCount) {
        self.received.bytes += length.0;
    }

    /// True when a piece of this length is all of the data, and nothing came before.
    pub(super) fn is_whole(&self, length: ByteCount) -> bool {
        length == self.order.command.payload() && self.received.bytes == 0
    }

    /// Takes all of the data in one piece.
    pub(super) fn receive_whole(&mut self, data: &[u8]) {
        self.received.whole = Some(Bytes::copy_from_slice(data));
        self.received.bytes = data.len() as u64;
    }

    pub(super) fn receive_extents(&mut self, extents: Vec<Extent>) {
        self.received.extents = Some(extents);
    }

    /// The first error of an answer is the answer.
    pub(super) fn receive_error(&mut self, error: NbdError) {
        self.received.error.get_or_insert(error);
    }

    /// True when the answer says that the server or the device goes away, which a reconnection may cure.
    pub(super) fn is_shutdown(&self) -> bool {
        matches!(self.received.error, Some(NbdError::Shutdown(_)))
    }

    /// The answer, now that its last part is there; an error if parts are missing.
    pub(super) fn finish(&mut self) -> Result<Result<Answer, ClientError>, ProtoError> {
        let Received { buffer, whole, bytes, extents, error } = std::mem::take(&mut self.received);
        if let Some(error) = error {
            return Ok(Err(error.into()));
        }
        match &self.order.command {
            Command::Read { range } if bytes != range.length.0 => {
                Err(ProtoError::Unexpected("a read's answer without all of its data"))
            }
            Command::Read { range } => Ok(Ok(Answer::Data(match whole {
                Some(whole) => whole,
                // Nothing but holes.
                None if buffer.is_empty() => Bytes::from(vec![0; range.length.0 as usize]),
                None => Bytes::from(buffer),
            }))),
            Command::BlockStatus { range } => {
                let mut extents = extents.ok_or(ProtoError::Unexpected("a block status without extents"))?;
                clip(&mut extents, range.length);
                Ok(Ok(Answer::Extents(extents)))
            }
            _ => Ok(Ok(Answer::Done)),
        }
    }
}

/// The last extent may reach past what was asked for (proto.md, "NBD_REPLY_TYPE_BLOCK_STATUS"); callers want none of it.
fn clip(extents: &mut Vec<Extent>, length: ByteCount) {
    let mut left = length.0;
    extents.retain_mut(|extent| {
        extent.length.0 = extent.length.0.min(left);
        left -= extent.length.0;
        extent.length.0 > 0
    });
}
