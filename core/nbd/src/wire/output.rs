//! Batched output.

use bytes::{Buf, Bytes, BytesMut};
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// Payloads shorter than this are copied behind their header; longer ones are pieces of their own in the writev.
const COPIED_BYTES_MAX: usize = 512;
/// Pieces of one writev: 64 replies of a header and a payload.
const PIECES_MAX: usize = 128;
/// Zeros that do not have to be allocated.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What is to be written, in order. The caller bounds it.
#[derive(Default)]
pub(crate) struct Output {
    pieces: VecDeque<Bytes>,
    /// What follows the pieces: headers, small payloads.
    tail: BytesMut,
    queued: u64,
    written: u64,
    /// The stream may hold some of what was written (TLS does).
    unflushed: bool,
}

impl Output {
    /// Appends what `format` writes.
    pub(crate) fn append(&mut self, format: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        format(&mut self.tail);
        self.queued += (self.tail.len() - before) as u64;
    }

    /// Appends a payload without copying it, unless it is small.
    pub(crate) fn payload(&mut self, data: Bytes) {
        if data.len() < COPIED_BYTES_MAX {
            self.append(|tail| tail.extend_from_slice(&data));
            return;
        }
        self.queued += data.len() as u64;
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
        self.pieces.push_back(data);
    }

    /// Appends `count` zeros.
    pub(crate) fn zeros(&mut self, mut count: u64) {
        while count > 0 {
            let now = count.min(ZEROS.len() as u64);
            self.payload(Bytes::from_static(&ZEROS[..now as usize]));
            count -= now;
        }
    }

    /// Bytes ever queued: the position of the end.
    pub(crate) fn queued(&self) -> u64 {
        self.queued
    }

    /// Bytes ever written.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// True when nothing is left, here or in the stream.
    pub(crate) fn is_empty(&self) -> bool {
        self.queued == self.written && !self.unflushed
    }

    /// Forgets what is not written.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.tail.clear();
        self.written = self.queued;
        self.unflushed = false;
    }

    /// Writes and flushes until nothing is left, or the socket takes no more.
    pub(crate) fn poll_write<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        while self.queued != self.written {
            let count = if self.pieces.is_empty() {
                ready!(Pin::new(&mut *stream).poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); PIECES_MAX];
                let mut used = 0;
                for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                    *slice = IoSlice::new(piece);
                    used += 1;
                }
                if used < PIECES_MAX && !self.tail.is_empty() {
                    slices[used] = IoSlice::new(&self.tail);
                    used += 1;
                }
                ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..used]))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(count);
        }
        if self.unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut count: usize) {
        self.written += count as u64;
        self.unflushed = true;
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
        self.tail.advance(count);
    }
}
