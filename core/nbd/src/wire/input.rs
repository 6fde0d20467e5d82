//! Buffered input.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

/// One read of a socket brings at most so much; a unix socket holds about 200 KiB.
const CAPACITY_BYTES: usize = 128 << 10;

/// What was read and not yet consumed. The buffer is used again and again, never handed out: payloads are copied out of
/// it when they are small, and read past it into their own memory when they are large (see [`Partial`]), so that a
/// payload kept for long keeps alive nothing but itself.
pub(crate) struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new() -> Input {
        Input { buffer: vec![0; CAPACITY_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// The bytes at hand.
    pub(crate) fn available(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The next `count` bytes, if all are at hand.
    pub(crate) fn peek(&self, count: usize) -> Option<&[u8]> {
        self.available().get(..count)
    }

    /// Passes over the next `count` bytes, which are at hand.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        assert!(self.start <= self.end, "consumed more than was peeked at");
    }

    /// Consumes at most `count` bytes: those at hand.
    pub(crate) fn take_up_to(&mut self, count: usize) -> &[u8] {
        let from = self.start;
        self.start = self.end.min(from.saturating_add(count));
        &self.buffer[from..self.start]
    }

    /// Reads more, once; 0 means that the other end has finished. There is always room, as long as the caller consumes
    /// what is at hand before it holds the whole capacity.
    pub(crate) fn poll_fill<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
    where
        S: AsyncRead + Unpin,
    {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end > CAPACITY_BYTES / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        assert!(self.end < CAPACITY_BYTES, "a full buffer must be consumed before more is read");
        let mut room = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(Pin::new(stream).poll_read(cx, &mut room))?;
        let count = room.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }
}

/// Large payloads begin at a multiple of this in memory, so that a device may take them as they are (direct I/O).
const ALIGNMENT_BYTES: usize = 4096;

/// A large payload on its way into its own memory, which grows into the pages that really arrive.
pub(crate) struct Partial {
    buffer: BytesMut,
    missing: usize,
}

impl Partial {
    /// `length` bytes, begun with what `input` holds of them.
    pub(crate) fn begin(length: usize, input: &mut Input) -> Partial {
        let mut buffer = BytesMut::with_capacity(length + ALIGNMENT_BYTES);
        let unaligned = buffer.as_ptr().align_offset(ALIGNMENT_BYTES).min(ALIGNMENT_BYTES);
        buffer.put_bytes(0, unaligned);
        buffer.advance(unaligned);
        buffer.put_slice(input.take_up_to(length));
        let missing = length - buffer.len();
        Partial { buffer, missing }
    }

    /// Reads on, until it is complete. Reading nothing is the end of the stream, an error here.
    pub(crate) fn poll_complete<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>>
    where
        S: AsyncRead + Unpin,
    {
        while self.missing > 0 {
            let mut room = (&mut self.buffer).limit(self.missing);
            match ready!(pin!(stream.read_buf(&mut room)).poll(cx))? {
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                count => self.missing -= count,
            }
        }
        Poll::Ready(Ok(std::mem::take(&mut self.buffer).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[test]
    fn a_large_payload_begins_where_direct_io_may() {
        let sent: Vec<u8> = (0..300_000u32).map(|number| number as u8).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut stream = &sent[..];
            let mut input = Input::new();
            poll_fn(|cx| input.poll_fill(&mut stream, cx)).await.unwrap();
            input.consume(28);
            let mut partial = Partial::begin(200_000, &mut input);
            let payload = poll_fn(|cx| partial.poll_complete(&mut stream, cx)).await.unwrap();
            assert!(payload == sent[28..200_028]);
            assert!((payload.as_ptr() as usize).is_multiple_of(ALIGNMENT_BYTES));
        });
    }
}
