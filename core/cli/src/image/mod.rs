//! Disk images outside ovs: what `ovs vdisk import` reads and `ovs vdisk export` writes.
//!
//! ```text
//! raw file (SEEK_DATA) ─┐                                    ┌─ raw file, sparse
//! pipe                 ─┼─▶ Source ─▶ Extent, Extent … ─▶ Sink ┼─ pipe, zeros written
//! qcow2                ─┘   data or zeros, in order            └─ qcow2
//! ```
//!
//! Invariants: extents come in ascending order without gap or overlap; an extent of data holds at most
//! [`EXTENT_SIZE_BYTES_MAX`]; nothing in a file is believed before it is checked against the file's own length.
//!
//! Not here: the network, progress, what a vDisk is.

pub mod format;
pub mod qcow2;
pub mod raw;
pub mod sink;
pub mod zeros;

use bytes::Bytes;
use ovs_units::{ByteCount, ByteOffset};
use std::{fs::File, io, os::unix::fs::FileExt};
use thiserror::Error;

/// The most data in one extent, the largest cluster of qcow2: so large that a request's cost does not show, so small
/// that many fit in memory.
pub const EXTENT_SIZE_BYTES_MAX: usize = 2 << 20;

/// A run of a disk: what it holds, or that it holds zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// Bytes, which may happen to be zeros.
    Data {
        /// Where they begin in the disk.
        start: ByteOffset,
        /// The bytes.
        bytes: Bytes,
    },
    /// Nothing is stored here; it reads as zeros.
    Zeros {
        /// Where they begin in the disk.
        start: ByteOffset,
        /// How many.
        length: ByteCount,
    },
}

impl Extent {
    /// Its first byte.
    pub fn start(&self) -> ByteOffset {
        match self {
            Extent::Data { start, .. } | Extent::Zeros { start, .. } => *start,
        }
    }

    /// How many bytes of the disk it covers.
    pub fn length(&self) -> ByteCount {
        match self {
            Extent::Data { bytes, .. } => ByteCount(bytes.len() as u64),
            Extent::Zeros { length, .. } => *length,
        }
    }

    /// One past its last byte.
    pub fn end(&self) -> ByteOffset {
        ByteOffset(self.start().0 + self.length().0)
    }
}

/// Where extents come from.
pub trait Source: Send {
    /// The disk's size; `None` for a pipe, whose end shows when it is reached.
    fn size(&self) -> Option<ByteCount>;

    /// The next extent; `None` at the end. After an error there is nothing more.
    fn next_extent(&mut self) -> Result<Option<Extent>, ImageError>;
}

/// Where extents go.
pub trait Sink: Send {
    /// Takes the next extent; they come in order, from 0, without gaps.
    fn put(&mut self, extent: Extent) -> io::Result<()>;

    /// Everything has come: makes it durable where that means something.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// Why an image cannot be read.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Sound, but of a kind that is not taken; the text says what to do instead.
    #[error("{0}")]
    Refused(String),
    /// It contradicts itself or ends early.
    #[error("the qcow2 image is damaged: {what} (`qemu-img check` tells more)")]
    Damaged {
        /// What was found, where, and what is allowed.
        what: String,
    },
    /// The file could not be read.
    #[error("cannot read the image at byte {offset}: {error}")]
    Io {
        /// Where in the file.
        offset: u64,
        /// The system's reason.
        error: io::Error,
    },
}

/// A position in an image file, as opposed to one in the disk that it describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileOffset(pub u64);

/// Reads exactly `buffer.len()` bytes.
fn read_at(file: &File, at: FileOffset, buffer: &mut [u8]) -> Result<(), ImageError> {
    file.read_exact_at(buffer, at.0).map_err(|error| ImageError::Io { offset: at.0, error })
}
