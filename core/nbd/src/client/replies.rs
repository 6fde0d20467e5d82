//! Reading replies, and giving their parts to the requests that they belong to.

use super::order::InFlight;
use crate::{
    NbdError,
    proto::{
        Fields, ProtoError,
        numbers::chunk,
        reply::{
            BlockStatusChunk, CHUNK_HEADER_BYTES, ChunkHeader, EXTENT_BYTES, EXTENTS_MAX, ErrorChunk,
            HoleChunk, OFFSET_BYTES, ReplyHeader,
        },
        request::Cookie,
    },
    wire::Input,
};
use ovs_units::{ByteCount, ByteOffset};
use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, ReadBuf};

/// The largest payload of a chunk that is read whole before it is looked at: extents, or an error with its text.
const WHOLE_BYTES_MAX: usize = 4 + EXTENTS_MAX * EXTENT_BYTES;

/// What is in flight, by cookie: the order of the cookies is the order in which the requests were made.
pub(super) type Requests = BTreeMap<Cookie, InFlight>;

/// Why no more replies can be read.
#[derive(Debug)]
pub(super) enum Lost {
    End,
    Io(io::Error),
    Proto(ProtoError),
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Lost {
        Lost::Io(error)
    }
}

impl From<ProtoError> for Lost {
    fn from(error: ProtoError) -> Lost {
        Lost::Proto(error)
    }
}

/// The replies of one connection.
pub(super) struct Replies {
    input: Input,
    /// A data chunk that is being read.
    data: Option<DataChunk>,
    allocation_id: Option<u32>,
}

struct DataChunk {
    cookie: Cookie,
    place: usize,
    length: usize,
    filled: usize,
    is_last: bool,
}

impl Replies {
    pub(super) fn new(allocation_id: Option<u32>) -> Replies {
        Replies { input: Input::new(), data: None, allocation_id }
    }

    /// The next request whose answer is complete.
    pub(super) fn poll_next<S>(
        &mut self,
        stream: &mut S,
        requests: &mut Requests,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Cookie, Lost>>
    where
        S: AsyncRead + Unpin,
    {
        loop {
            if self.data.is_some() {
                if let Some(answered) = ready!(self.poll_data(stream, requests, cx))? {
                    return Poll::Ready(Ok(answered));
                }
                continue;
            }
            match self.next_at_hand(requests)? {
                Next::Answered(cookie) => return Poll::Ready(Ok(cookie)),
                Next::Continue => {}
                Next::More => {
                    if ready!(self.input.poll_fill(stream, cx))? == 0 {
                        return Poll::Ready(Err(Lost::End));
                    }
                }
            }
        }
    }

    /// One reply, or one chunk, as far as it is at hand.
    fn next_at_hand(&mut self, requests: &mut Requests) -> Result<Next, ProtoError> {
        let Some(size) = ReplyHeader::size_bytes(self.input.available())? else { return Ok(Next::More) };
        let Some(header) = self.input.peek(size) else { return Ok(Next::More) };
        match ReplyHeader::parse(header)? {
            ReplyHeader::Simple(reply) => {
                let request = find(requests, reply.cookie)?;
                if reply.errno != 0 {
                    request.receive_error(NbdError::from_errno(
                        reply.errno,
                        format!("NBD error {}", reply.errno),
                    ));
                }
                self.input.consume(size);
                Ok(Next::Answered(reply.cookie))
            }
            ReplyHeader::Chunk(header) => self.chunk(header, requests),
        }
    }

    fn chunk(&mut self, header: ChunkHeader, requests: &mut Requests) -> Result<Next, ProtoError> {
        let request = find(requests, header.cookie)?;
        let length = header.length as usize;
        if header.kind == chunk::OFFSET_DATA {
            return self.begin_data(header, request);
        }
        if length > WHOLE_BYTES_MAX {
            return Err(ProtoError::TooLong { given: length as u64, max: WHOLE_BYTES_MAX as u64 });
        }
        let Some(message) = self.input.peek(CHUNK_HEADER_BYTES + length) else { return Ok(Next::More) };
        let payload = &message[CHUNK_HEADER_BYTES..];
        match header.kind {
            chunk::NONE if header.is_done() && payload.is_empty() => {}
            chunk::OFFSET_HOLE => {
                let hole = HoleChunk::parse(payload)?;
                let length = ByteCount(hole.length.into());
                request.place(hole.offset, length)?;
                request.received(length);
            }
            chunk::BLOCK_STATUS => {
                let status = BlockStatusChunk::parse(payload)?;
                if Some(status.context_id) == self.allocation_id {
                    request.receive_extents(status.extents);
                }
            }
            _ if header.is_error() => request.receive_error(ErrorChunk::parse(payload)?.error),
            _ => return Err(ProtoError::Unexpected("a chunk of a kind that is not known")),
        }
        self.input.consume(CHUNK_HEADER_BYTES + length);
        Ok(if header.is_done() { Next::Answered(header.cookie) } else { Next::Continue })
    }

    fn begin_data(&mut self, header: ChunkHeader, request: &mut InFlight) -> Result<Next, ProtoError> {
        let head = CHUNK_HEADER_BYTES + OFFSET_BYTES;
        let Some(length) = (header.length as usize).checked_sub(OFFSET_BYTES) else {
            return Err(ProtoError::Short);
        };
        let Some(message) = self.input.peek(head) else { return Ok(Next::More) };
        let offset = ByteOffset(Fields::new(&message[CHUNK_HEADER_BYTES..]).u64()?);
        let count = ByteCount(length as u64);
        let place = request.place(offset, count)?;
        // The common case, a short answer in one piece, is copied once.
        if request.is_whole(count)
            && let Some(message) = self.input.peek(head + length)
        {
            request.receive_whole(&message[head..]);
            self.input.consume(head + length);
            return Ok(if header.is_done() { Next::Answered(header.cookie) } else { Next::Continue });
        }
        self.input.consume(head);
        self.data =
            Some(DataChunk { cookie: header.cookie, place, length, filled: 0, is_last: header.is_done() });
        Ok(Next::Continue)
    }

    /// Reads on in a data chunk, straight to where it belongs: the request's cookie when that was the last of its answer.
    fn poll_data<S>(
        &mut self,
        stream: &mut S,
        requests: &mut Requests,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Cookie>, Lost>>
    where
        S: AsyncRead + Unpin,
    {
        let Some(data) = &mut self.data else { return Poll::Ready(Ok(None)) };
        let request = find(requests, data.cookie)?;
        let room = request.room(data.place, data.length);
        while data.filled < data.length {
            let rest = &mut room[data.filled..];
            let at_hand = self.input.take_up_to(rest.len());
            if at_hand.is_empty() {
                let mut rest = ReadBuf::new(rest);
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut rest))?;
                if rest.filled().is_empty() {
                    return Poll::Ready(Err(Lost::End));
                }
                data.filled += rest.filled().len();
            } else {
                rest[..at_hand.len()].copy_from_slice(at_hand);
                data.filled += at_hand.len();
            }
        }
        request.received(ByteCount(data.length as u64));
        let answered = data.is_last.then_some(data.cookie);
        self.data = None;
        Poll::Ready(Ok(answered))
    }
}

enum Next {
    /// The answer of this request is complete.
    Answered(Cookie),
    /// There may be more at hand.
    Continue,
    /// More must be read first.
    More,
}

fn find(requests: &mut Requests, cookie: Cookie) -> Result<&mut InFlight, ProtoError> {
    requests.get_mut(&cookie).ok_or(ProtoError::Unexpected("an answer to no request"))
}
