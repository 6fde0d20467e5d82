//! Between files and memory without the page cache: aligned buffers, and writes that copy only what they must.
//!
//! Direct I/O wants memory, offset and length in blocks of the device; 4 KiB are that everywhere.

mod cached;
mod memory;
mod reader;
mod ring;

pub use cached::is_cached;
pub use reader::Reader;
pub use ring::Ring;

use bytes::Bytes;
use memory::Memory;
use std::{
    fs::File,
    io::{self, IoSlice},
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

/// What memory, offsets and lengths are multiples of.
pub const BLOCK_BYTES: usize = 4096;
/// Smaller parts of a write are copied together.
const PIECE_BYTES_MIN: usize = 64 << 10;
/// Pieces of one system call: the kernel takes 1024.
const PIECES_MAX: usize = 512;
/// Buffers up to this size are kept for who comes next, so that a write does not have to have memory made for it, …
pub const KEPT_BYTES_MAX: usize = 8 << 20;
/// … so many bytes of them, …
const KEPT_BYTES: usize = 32 << 20;
/// … and so many.
const KEPT_MAX: usize = 64;

static KEPT: Mutex<Kept> = Mutex::new(Kept { buffers: Vec::new(), bytes: 0 });

struct Kept {
    buffers: Vec<Memory>,
    bytes: usize,
}

impl Kept {
    /// The smallest that is large enough, unless most of it would be wasted.
    fn take(&mut self, needed: usize) -> Option<Memory> {
        let fits = |(_, memory): &(usize, &Memory)| (needed..=2 * needed).contains(&memory.len());
        let (at, _) = self.buffers.iter().enumerate().filter(fits).min_by_key(|(_, memory)| memory.len())?;
        let memory = self.buffers.remove(at);
        self.bytes -= memory.len();
        Some(memory)
    }

    /// Those that are not kept any more: what nobody asked for longest goes first.
    fn keep(&mut self, memory: Memory) -> Vec<Memory> {
        self.bytes += memory.len();
        self.buffers.push(memory);
        let mut surplus = Vec::new();
        while self.bytes > KEPT_BYTES || self.buffers.len() > KEPT_MAX {
            let memory = self.buffers.remove(0);
            self.bytes -= memory.len();
            surplus.push(memory);
        }
        surplus
    }
}

/// Bytes that begin where direct I/O may. What is in it at first may be anything that was written before.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    length: usize,
}

impl Buffer {
    /// A buffer of so many bytes.
    pub fn of(length: usize) -> Buffer {
        let found = if length == 0 { None } else { kept(|kept| kept.take(length)) };
        let memory = found.unwrap_or_else(|| Memory::of(length));
        Buffer { memory, length }
    }

    /// Ends it there. It must not be longer than it is.
    pub fn truncate(&mut self, length: usize) {
        assert!(length <= self.length, "a buffer of {} bytes, not {length}", self.length);
        self.length = length;
    }

    /// The parts one behind the other.
    pub fn gathered<'a>(parts: impl Iterator<Item = &'a Bytes> + Clone) -> Buffer {
        let mut buffer = Buffer::of(parts.clone().map(Bytes::len).sum());
        let mut at = 0;
        for part in parts {
            buffer[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        buffer
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Buffer> for Bytes {
    fn from(buffer: Buffer) -> Bytes {
        Bytes::from_owner(buffer)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if (BLOCK_BYTES..=KEPT_BYTES_MAX).contains(&memory.len()) {
            // What is not kept is given back behind the lock.
            let _surplus = kept(|kept| kept.keep(memory));
        }
    }
}

fn kept<T>(with: impl FnOnce(&mut Kept) -> T) -> T {
    with(&mut KEPT.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Writes the parts one behind the other. Large ones that direct I/O can take as they are go as they are; the others are
/// gathered. Each is whole blocks, and so is the offset. After an error some of it may be written.
pub fn write_at(file: &File, parts: &[Bytes], offset: u64) -> io::Result<()> {
    debug_assert!(parts.iter().all(|part| part.len().is_multiple_of(BLOCK_BYTES)), "parts are whole blocks");
    let buffer = Buffer::gathered(parts.iter().filter(|part| !is_taken_as_it_is(part)));
    let mut rest = &buffer[..];
    let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(parts.len());
    let mut run = 0;
    for part in parts {
        if !is_taken_as_it_is(part) {
            run += part.len();
            continue;
        }
        if run > 0 {
            slices.push(IoSlice::new(rest.split_off(..run).unwrap_or_default()));
            run = 0;
        }
        slices.push(IoSlice::new(part));
    }
    if run > 0 {
        slices.push(IoSlice::new(rest));
    }
    write_all_vectored_at(file, &mut slices, offset)
}

/// Is it worth a piece of its own, and does it begin and end where direct I/O may?
fn is_taken_as_it_is(part: &Bytes) -> bool {
    part.len() >= PIECE_BYTES_MIN
        && part.len().is_multiple_of(BLOCK_BYTES)
        && (part.as_ptr() as usize).is_multiple_of(BLOCK_BYTES)
}

fn write_all_vectored_at(file: &File, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    while !slices.is_empty() {
        let now = slices.len().min(PIECES_MAX);
        let written = rustix::io::retry_on_intr(|| rustix::io::pwritev(file, &slices[..now], offset))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut slices, written);
        offset += written as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_parts_that_direct_io_can_take_are_not_copied() {
        let memory = Bytes::from(vec![0; 3 * PIECE_BYTES_MIN]);
        let aligned = memory.as_ptr().align_offset(BLOCK_BYTES);
        let part = |start: usize, length: usize| memory.slice(aligned + start..aligned + start + length);
        assert!(is_taken_as_it_is(&part(0, 64 << 10)));
        assert!(is_taken_as_it_is(&part(BLOCK_BYTES, (64 << 10) + BLOCK_BYTES)));
        assert!(!is_taken_as_it_is(&part(0, (64 << 10) - BLOCK_BYTES)));
        assert!(!is_taken_as_it_is(&part(0, (64 << 10) + 512)));
        assert!(!is_taken_as_it_is(&part(512, 64 << 10)));
    }

    #[test]
    fn what_is_gathered_and_what_is_not_lies_in_its_order() {
        let file = tempfile::tempfile().unwrap();
        let memory = Bytes::from(vec![9; PIECE_BYTES_MIN + BLOCK_BYTES]);
        let aligned = memory.as_ptr().align_offset(BLOCK_BYTES);
        let large = memory.slice(aligned..aligned + PIECE_BYTES_MIN);
        assert!(is_taken_as_it_is(&large));
        let small = |byte: u8| Bytes::from(vec![byte; BLOCK_BYTES]);
        let parts = [small(1), small(2), large.clone(), small(3), large, small(4), small(5)];
        write_at(&file, &parts, BLOCK_BYTES as u64).unwrap();
        let mut found = vec![0; parts.iter().map(Bytes::len).sum()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, BLOCK_BYTES as u64).unwrap();
        assert!(found == parts.concat());
    }

    /// One case: what is kept is the process's.
    #[test]
    fn a_few_buffers_are_kept() {
        drop(Buffer::of(KEPT_BYTES_MAX + 1));
        assert_eq!(kept(|kept| kept.bytes), 0);
        drop(Buffer::of(KEPT_BYTES_MAX));
        assert_eq!(kept(|kept| kept.bytes), KEPT_BYTES_MAX);
        let mebibytes = |count: usize| (0..count).map(|_| Buffer::of(1 << 20)).collect::<Vec<_>>();
        let many = mebibytes(50);
        let first = many[0].as_ptr();
        for buffer in &many {
            assert_eq!((buffer.len(), buffer.as_ptr().align_offset(BLOCK_BYTES)), (1 << 20, 0));
        }
        drop(many);
        let (bytes, counted) =
            kept(|kept| (kept.bytes, kept.buffers.iter().map(|memory| memory.len()).sum::<usize>()));
        assert!(bytes == counted && (KEPT_BYTES - (2 << 20)..=KEPT_BYTES).contains(&bytes), "{bytes} bytes");
        let again = mebibytes(20);
        assert!(kept(|kept| kept.bytes) <= bytes - (20 << 20), "they come from what is kept");
        assert!(again.iter().all(|buffer| buffer.as_ptr() != first), "what was given back first is gone");
        drop(again);
        drop((0..2 * KEPT_MAX).map(|_| Buffer::of(4096)).collect::<Vec<_>>());
        assert!(kept(|kept| kept.buffers.len()) <= KEPT_MAX);
        let before = kept(|kept| kept.bytes);
        let _small = Buffer::of(100);
        assert_eq!(kept(|kept| kept.bytes), before, "a small one does not use up a large one");
        assert_eq!((Buffer::of(3).len(), Buffer::of(0).len()), (3, 0));
        let mut cut = Buffer::of(8192);
        cut.fill(7);
        cut.truncate(5);
        assert_eq!(Bytes::from(cut), [7; 5][..]);
    }

    #[test]
    fn more_pieces_than_one_call_takes_are_written_in_several() {
        let file = tempfile::tempfile().unwrap();
        let pieces: Vec<[u8; 3]> = (0..2 * PIECES_MAX + 9).map(|number| [number as u8, 1, 2]).collect();
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        write_all_vectored_at(&file, &mut slices, 7).unwrap();
        let mut found = vec![0; 3 * pieces.len()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 7).unwrap();
        assert!(found == pieces.concat());
        assert_eq!(file.metadata().unwrap().len(), 7 + found.len() as u64);
    }
}
