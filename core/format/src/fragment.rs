//! A fragment: one of the k + m parts in which a chunk of an object lies on drives.
//!
//! ```text
//! object ─▶ chunks ─▶ frames ─▶ data fragment: header │ index: an entry per frame, its checksum │ frames
//!                               parity fragment: header │ parity of the data fragments' index and frames
//! ```
//!
//! Where a chunk's fragments are long there are zeros behind the index and behind the frames, so that the frames begin at a block and a fragment
//! is whole blocks: it can be written as it is, past the page cache.
//!
//! Which bytes of the object are in which frame of which fragment is arithmetic ([`Geometry`]): it needs the object's length and what
//! every header says. Checksums of index and frames begin with the identity of the fragment, so that what lies in the wrong
//! place is as wrong as a flipped bit.

use crate::cursor::{Reader, Writer};
use crate::{FormatError, check_seal, seal};
use ovs_units::PutId;
use std::ops::Range;

const MAGIC: u64 = u64::from_le_bytes(*b"OVSFRG01");
const VERSION: u16 = 2;
const WHAT: &str = "fragment header";
const INDEX: &str = "fragment index";
/// In the stored length of a frame: it is compressed.
const COMPRESSED: u32 = 1 << 31;
const ENTRY_BYTES: usize = 8;

/// What direct I/O wants: see `core/direct-io`.
const BLOCK_BYTES: u64 = 4096;
/// Fragments of a chunk are whole blocks from so many bytes of the object in each.
const BLOCKS_BYTES_MIN: u64 = 128 << 10;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 128;
/// Frames of other sizes are damage.
pub const FRAME_BYTES_MIN: u32 = 4096;
/// The largest frame.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;
/// The largest data fragment before compression.
pub const FRAGMENT_BYTES_MAX: u32 = 128 << 20;
/// Data and parity fragments of a chunk together, at most: Reed-Solomon over bytes.
pub const FRAGMENTS_MAX: u32 = 255;
/// Of an encrypted frame, before it, …
pub const NONCE_BYTES: usize = 12;
/// … and what encryption adds to it: the nonce and a tag of 16 bytes.
pub const SEAL_BYTES: u32 = NONCE_BYTES as u32 + 16;
/// The largest object: so that lengths of whatever a header says can be added up.
pub const OBJECT_BYTES_MAX: u64 = 1 << 40;

/// How an object is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Geometry {
    /// Bytes of the object.
    pub object_bytes: u64,
    /// Data fragments of a chunk (k).
    pub data: u8,
    /// Parity fragments of a chunk (m).
    pub parity: u8,
    /// Bytes of the object in a frame; a multiple of 4 KiB.
    pub frame_bytes: u32,
    /// Bytes of the object in a data fragment at most; a multiple of a frame.
    pub fragment_bytes: u32,
}

/// Where one byte of an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The chunk.
    pub chunk: u32,
    /// The data fragment in it.
    pub fragment: u8,
    /// The frame in that.
    pub frame: u32,
}

impl Geometry {
    /// Is it one that anything could have been stored with?
    pub fn is_possible(&self) -> bool {
        let Geometry { object_bytes, data, parity, frame_bytes, fragment_bytes } = *self;
        data > 0
            && u32::from(data) + u32::from(parity) <= FRAGMENTS_MAX
            && (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame_bytes)
            && frame_bytes.is_multiple_of(FRAME_BYTES_MIN)
            && (frame_bytes..=FRAGMENT_BYTES_MAX).contains(&fragment_bytes)
            && fragment_bytes.is_multiple_of(frame_bytes)
            && object_bytes <= OBJECT_BYTES_MAX
    }

    fn full_chunk_bytes(&self) -> u64 {
        u64::from(self.data) * u64::from(self.fragment_bytes)
    }

    /// Chunks of the object; an empty one has one, too: object / min(k × fragment, object), rounded up.
    pub fn chunks(&self) -> u32 {
        (self.object_bytes.div_ceil(self.full_chunk_bytes()) as u32).max(1)
    }

    /// The bytes of the object in a chunk.
    pub fn chunk_range(&self, chunk: u32) -> Range<u64> {
        let start = u64::from(chunk) * self.full_chunk_bytes();
        start.min(self.object_bytes)..(start + self.full_chunk_bytes()).min(self.object_bytes)
    }

    /// Frames in each data fragment of a chunk but the last ones, which may have fewer.
    fn frames_per_fragment(&self, chunk: u32) -> u32 {
        let Range { start, end } = self.chunk_range(chunk);
        let frames = (end - start).div_ceil(u64::from(self.frame_bytes));
        (frames.div_ceil(u64::from(self.data)) as u32).max(1)
    }

    /// Data fragments of a chunk that are stored. A short chunk has fewer than k: the others would be empty, and count as
    /// zeros where parity is made.
    pub fn data_stored(&self, chunk: u32) -> u8 {
        let Range { start, end } = self.chunk_range(chunk);
        let of_fragment = u64::from(self.frames_per_fragment(chunk)) * u64::from(self.frame_bytes);
        ((end - start).div_ceil(of_fragment) as u8).max(1)
    }

    /// The bytes of the object in a data fragment.
    pub fn fragment_range(&self, chunk: u32, fragment: u8) -> Range<u64> {
        let Range { start, end } = self.chunk_range(chunk);
        let bytes = u64::from(self.frames_per_fragment(chunk)) * u64::from(self.frame_bytes);
        let from = start + u64::from(fragment) * bytes;
        from.min(end)..(from + bytes).min(end)
    }

    /// Frames of a data fragment.
    pub fn frames(&self, chunk: u32, fragment: u8) -> u32 {
        let Range { start, end } = self.fragment_range(chunk, fragment);
        (end - start).div_ceil(u64::from(self.frame_bytes)) as u32
    }

    /// The bytes of the object in a frame of a data fragment.
    pub fn frame_range(&self, at: Position) -> Range<u64> {
        let Range { start, end } = self.fragment_range(at.chunk, at.fragment);
        let from = start + u64::from(at.frame) * u64::from(self.frame_bytes);
        from.min(end)..(from + u64::from(self.frame_bytes)).min(end)
    }

    /// Where a byte of the object is. It must be one.
    pub fn position(&self, offset: u64) -> Position {
        let chunk = (offset / self.full_chunk_bytes()) as u32;
        let frame = (offset - self.chunk_range(chunk).start) / u64::from(self.frame_bytes);
        let per_fragment = u64::from(self.frames_per_fragment(chunk));
        Position { chunk, fragment: (frame / per_fragment) as u8, frame: (frame % per_fragment) as u32 }
    }

    /// Are the fragments of a chunk whole blocks?
    fn is_in_blocks(&self, chunk: u32) -> bool {
        u64::from(self.frames_per_fragment(chunk)) * u64::from(self.frame_bytes) >= BLOCKS_BYTES_MIN
    }

    /// So many bytes behind the header, and zeros, where the chunk's fragments are whole blocks.
    fn filled_up(&self, chunk: u32, bytes: u64) -> u64 {
        let header = HEADER_BYTES as u64;
        match self.is_in_blocks(chunk) {
            true => (header + bytes).next_multiple_of(BLOCK_BYTES) - header,
            false => bytes,
        }
    }

    /// Where the frames of a data fragment begin, counted from the end of the header.
    pub fn frames_at(&self, chunk: u32, fragment: u8) -> u64 {
        self.filled_up(chunk, self.index_bytes(chunk, fragment) as u64)
    }

    /// Bytes behind the header of a data fragment whose last frame ends there (counted from the end of the header).
    pub fn body_bytes(&self, chunk: u32, frames_end: u64) -> u64 {
        self.filled_up(chunk, frames_end)
    }

    /// Bytes of the index of a data fragment.
    pub fn index_bytes(&self, chunk: u32, fragment: u8) -> usize {
        self.frames(chunk, fragment) as usize * ENTRY_BYTES + 4
    }
}

/// How frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4, a block each.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    fn code(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Lz4 => 1,
            Compression::Zstd => 2,
        }
    }
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Header {
    /// A hash of the object's name.
    pub name: [u8; 16],
    /// Which put it is of. Only fragments of one put belong together.
    pub put: PutId,
    /// How the object is cut up.
    pub geometry: Geometry,
    /// The chunk that it is of.
    pub chunk: u32,
    /// Its number among the chunk's: data first, then parity.
    pub fragment: u8,
    /// How its frames are compressed, where that makes them smaller.
    pub compression: Compression,
    /// Which key its frames are encrypted under (AES-256-GCM); 0: they are not.
    pub key: u32,
    /// Bytes behind the header.
    pub body_bytes: u32,
    /// Their checksum.
    pub body_checksum: u32,
}

impl Header {
    /// Its bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut w = Writer(Vec::with_capacity(HEADER_BYTES));
        w.u64(MAGIC);
        w.u16(VERSION);
        w.u8(self.compression.code());
        w.u8(0);
        w.u32(0);
        w.0.extend_from_slice(&self.name);
        w.uuid(self.put.0);
        w.u64(self.geometry.object_bytes);
        w.u8(self.geometry.data);
        w.u8(self.geometry.parity);
        w.u8(self.fragment);
        w.u8(0);
        w.u32(self.geometry.frame_bytes);
        w.u32(self.geometry.fragment_bytes);
        w.u32(self.chunk);
        w.u32(self.key);
        w.u32(self.body_bytes);
        w.u32(self.body_checksum);
        let mut bytes = [0; HEADER_BYTES];
        bytes[..w.0.len()].copy_from_slice(&w.0);
        seal(&mut bytes, 12);
        bytes
    }

    /// The reverse of [`Header::encode`], of bytes that begin with a header.
    pub fn decode(bytes: &[u8]) -> Result<Header, FormatError> {
        let short = || FormatError::Short { what: WHAT, expected: HEADER_BYTES, found: bytes.len() };
        let bytes = bytes.get(..HEADER_BYTES).ok_or_else(short)?;
        let mut r = Reader::new(WHAT, bytes);
        if r.u64()? != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        match r.u16()? {
            VERSION => {}
            found => return Err(FormatError::Version { what: WHAT, found: found.into() }),
        }
        let compression = match r.u8()? {
            0 => Compression::None,
            1 => Compression::Lz4,
            2 => Compression::Zstd,
            other => return Err(r.field("compression", other.into())),
        };
        r.zero("reserved byte")?;
        check_seal(WHAT, bytes, 12, r.u32()?)?;
        let name = r.array()?;
        let put = PutId(r.uuid()?);
        let (object_bytes, data, parity, fragment) = (r.u64()?, r.u8()?, r.u8()?, r.u8()?);
        r.zero("reserved byte")?;
        let (frame_bytes, fragment_bytes, chunk) = (r.u32()?, r.u32()?, r.u32()?);
        let geometry = Geometry { object_bytes, data, parity, frame_bytes, fragment_bytes };
        if !geometry.is_possible() {
            return Err(r.field("geometry", object_bytes));
        }
        if chunk >= geometry.chunks() {
            return Err(r.field("chunk", chunk.into()));
        }
        let is_stored =
            fragment < geometry.data_stored(chunk) || (data..data.saturating_add(parity)).contains(&fragment);
        if !is_stored {
            return Err(r.field("fragment", fragment.into()));
        }
        let (key, body_bytes, body_checksum) = (r.u32()?, r.u32()?, r.u32()?);
        while !r.is_at_end() {
            r.zero("reserved byte")?;
        }
        Ok(Header { name, put, geometry, chunk, fragment, compression, key, body_bytes, body_checksum })
    }

    /// The checksum that everything of a data fragment begins with.
    fn identity(&self, fragment: u8) -> u32 {
        let mut w = Writer(Vec::with_capacity(64));
        w.0.extend_from_slice(&self.name);
        w.uuid(self.put.0);
        w.u32(self.chunk);
        w.u8(fragment);
        w.u64(self.geometry.object_bytes);
        w.u8(self.geometry.data);
        w.u8(self.geometry.parity);
        w.u32(self.geometry.frame_bytes);
        w.u32(self.geometry.fragment_bytes);
        w.u8(self.compression.code());
        w.u32(self.key);
        crate::checksum(&w.0)
    }

    /// The checksum of a frame as it is stored.
    pub fn frame_checksum(&self, fragment: u8, frame: u32, stored: &[u8]) -> u32 {
        let begun = crc32c::crc32c_append(self.identity(fragment), &frame.to_le_bytes());
        crc32c::crc32c_append(begun, stored)
    }

    /// What encryption binds a frame to, beside its place.
    pub fn associated_data(&self, fragment: u8, is_compressed: bool) -> Vec<u8> {
        let mut w = Writer(Vec::with_capacity(80));
        w.u8(self.compression.code());
        w.u8(is_compressed.into());
        w.u32(self.key);
        w.0.extend_from_slice(&self.name);
        w.uuid(self.put.0);
        w.u64(self.geometry.object_bytes);
        w.u8(self.geometry.data);
        w.u8(self.geometry.parity);
        w.u8(fragment);
        w.u32(self.geometry.frame_bytes);
        w.u32(self.geometry.fragment_bytes);
        w.u32(self.chunk);
        w.0
    }

    /// The index of a data fragment of this chunk.
    pub fn encode_index(&self, fragment: u8, frames: &[FrameEntry]) -> Vec<u8> {
        let mut w = Writer(Vec::with_capacity(frames.len() * ENTRY_BYTES + 4));
        for frame in frames {
            w.u32(frame.stored_bytes | if frame.is_compressed { COMPRESSED } else { 0 });
            w.u32(frame.checksum);
        }
        let sum = crc32c::crc32c_append(self.identity(fragment), &w.0);
        w.u32(sum);
        w.0
    }

    /// The reverse of [`Header::encode_index`], of bytes that begin with the index of that data fragment.
    pub fn decode_index(&self, fragment: u8, bytes: &[u8]) -> Result<Vec<FrameEntry>, FormatError> {
        let length = self.geometry.index_bytes(self.chunk, fragment);
        let short = || FormatError::Short { what: INDEX, expected: length, found: bytes.len() };
        let bytes = bytes.get(..length).ok_or_else(short)?;
        let (entries, sum) = bytes.split_at(length - 4);
        let found = crc32c::crc32c_append(self.identity(fragment), entries);
        let expected = Reader::new(INDEX, sum).u32()?;
        if found != expected {
            return Err(FormatError::Checksum { what: INDEX, expected, found });
        }
        let mut r = Reader::new(INDEX, entries);
        let mut frames = Vec::with_capacity(entries.len() / ENTRY_BYTES);
        let mut offset = self.geometry.frames_at(self.chunk, fragment);
        for number in 0..self.geometry.frames(self.chunk, fragment) {
            let (word, checksum) = (r.u32()?, r.u32()?);
            let (stored_bytes, is_compressed) = (word & !COMPRESSED, word & COMPRESSED != 0);
            let at = Position { chunk: self.chunk, fragment, frame: number };
            let plain = self.geometry.frame_range(at);
            let plain_bytes = (plain.end - plain.start) as u32;
            let added = if self.key == 0 { 0 } else { SEAL_BYTES };
            let is_possible = match is_compressed {
                true => {
                    self.compression != Compression::None
                        && (added..plain_bytes + added).contains(&stored_bytes)
                }
                false => stored_bytes == plain_bytes + added,
            };
            if !is_possible {
                return Err(r.field("frame's length", stored_bytes.into()));
            }
            frames.push(FrameEntry { offset, stored_bytes, is_compressed, checksum });
            offset += u64::from(stored_bytes);
        }
        Ok(frames)
    }
}

/// A frame of a data fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// Where it begins, counted from the end of the header. Not stored: frames follow each other.
    pub offset: u64,
    /// Its bytes there.
    pub stored_bytes: u32,
    /// Is it compressed?
    pub is_compressed: bool,
    /// [`Header::frame_checksum`].
    pub checksum: u32,
}
