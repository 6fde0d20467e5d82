//! Replies in transmission, simple and structured.

use super::{
    Fields, ProtoError,
    handshake::bounded_text,
    numbers::{CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, allocation, chunk},
    request::Cookie,
};
use crate::{Extent, NbdError};
use bytes::BufMut;
use ovs_units::{ByteCount, ByteOffset};

/// Bytes of a simple reply, the data of a read apart.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a [`ChunkHeader`].
pub const CHUNK_HEADER_BYTES: usize = 20;
/// Bytes before the data of an `OFFSET_DATA` chunk: its offset.
pub const OFFSET_BYTES: usize = 8;
/// Bytes of the payload of an `OFFSET_HOLE` chunk.
pub const HOLE_BYTES: usize = 12;
/// Bytes of one extent of a block status chunk.
pub const EXTENT_BYTES: usize = 8;
/// The most extents that we put into one chunk, and that our client reads from one.
pub const EXTENTS_MAX: usize = 8192;

/// The head of either kind of reply, told apart by its magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// Whole, unless it answers a read well: then the data follows.
    Simple(SimpleReply),
    /// Followed by a payload of its length.
    Chunk(ChunkHeader),
}

impl ReplyHeader {
    /// The bytes of the header that begins so; `None` while there are too few to say.
    pub fn size_bytes(start: &[u8]) -> Result<Option<usize>, ProtoError> {
        if start.len() < 4 {
            return Ok(None);
        }
        match Fields::new(start).u32()? {
            SIMPLE_REPLY_MAGIC => Ok(Some(SIMPLE_REPLY_BYTES)),
            CHUNK_MAGIC => Ok(Some(CHUNK_HEADER_BYTES)),
            other => Err(ProtoError::Magic { found: other.into(), expected: CHUNK_MAGIC.into() }),
        }
    }

    /// Reads it.
    pub fn parse(message: &[u8]) -> Result<ReplyHeader, ProtoError> {
        let mut fields = Fields::new(message);
        match fields.u32()? {
            SIMPLE_REPLY_MAGIC => SimpleReply::parse(message).map(ReplyHeader::Simple),
            _ => ChunkHeader::parse(message).map(ReplyHeader::Chunk),
        }
    }
}

/// proto.md, "Simple reply message".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0, or an error number.
    pub errno: u32,
    /// The request's.
    pub cookie: Cookie,
}

impl SimpleReply {
    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u32(SIMPLE_REPLY_MAGIC);
        out.put_u32(self.errno);
        out.put_u64(self.cookie.0);
    }

    /// Reads it.
    pub fn parse(message: &[u8]) -> Result<SimpleReply, ProtoError> {
        let mut fields = Fields::new(message);
        fields.magic32(SIMPLE_REPLY_MAGIC)?;
        let reply = SimpleReply { errno: fields.u32()?, cookie: Cookie(fields.u64()?) };
        fields.end()?;
        Ok(reply)
    }
}

/// proto.md, "Structured reply chunk message".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// [`chunk::FLAG_DONE`] or nothing.
    pub flags: u16,
    /// Which [`chunk`].
    pub kind: u16,
    /// The request's.
    pub cookie: Cookie,
    /// Bytes of payload that follow; any 32 bits.
    pub length: u32,
}

impl ChunkHeader {
    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u32(CHUNK_MAGIC);
        out.put_u16(self.flags);
        out.put_u16(self.kind);
        out.put_u64(self.cookie.0);
        out.put_u32(self.length);
    }

    /// Reads it.
    pub fn parse(message: &[u8]) -> Result<ChunkHeader, ProtoError> {
        let mut fields = Fields::new(message);
        fields.magic32(CHUNK_MAGIC)?;
        let header = ChunkHeader {
            flags: fields.u16()?,
            kind: fields.u16()?,
            cookie: Cookie(fields.u64()?),
            length: fields.u32()?,
        };
        fields.end()?;
        Ok(header)
    }

    /// True for the last chunk of its reply.
    pub fn is_done(&self) -> bool {
        self.flags & chunk::FLAG_DONE != 0
    }

    /// True when the chunk tells an error, of whatever kind.
    pub fn is_error(&self) -> bool {
        self.kind & chunk::ERROR_BIT != 0
    }
}

/// The payload of an `OFFSET_HOLE` chunk (proto.md, "Structured reply types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoleChunk {
    /// Where the hole begins, from the start of the export.
    pub offset: ByteOffset,
    /// Its length.
    pub length: u32,
}

impl HoleChunk {
    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u64(self.offset.0);
        out.put_u32(self.length);
    }

    /// Reads it.
    pub fn parse(payload: &[u8]) -> Result<HoleChunk, ProtoError> {
        let mut fields = Fields::new(payload);
        let hole = HoleChunk { offset: ByteOffset(fields.u64()?), length: fields.u32()? };
        fields.end()?;
        Ok(hole)
    }
}

/// The payload of an `ERROR` or `ERROR_OFFSET` chunk (proto.md, "Structured reply types").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorChunk {
    /// What happened.
    pub error: NbdError,
}

impl ErrorChunk {
    /// Appends the payload of an `ERROR` chunk to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        let text = bounded_text(self.error.text());
        out.put_u32(self.error.errno());
        out.put_u16(text.len() as u16);
        out.put_slice(text.as_bytes());
    }

    /// The bytes that `format` appends.
    pub fn size_bytes(&self) -> usize {
        6 + bounded_text(self.error.text()).len()
    }

    /// Reads the payload of an error chunk of any kind: what follows the text (an offset) is skipped. A text that is none
    /// is replaced: the error matters more.
    pub fn parse(payload: &[u8]) -> Result<ErrorChunk, ProtoError> {
        let mut fields = Fields::new(payload);
        let errno = fields.u32()?;
        let length = usize::from(fields.u16()?);
        let text = String::from_utf8_lossy(fields.bytes(length)?).into_owned();
        if errno == 0 {
            return Err(ProtoError::Unexpected("an error chunk without an error"));
        }
        Ok(ErrorChunk { error: NbdError::from_errno(errno, text) })
    }
}

/// The payload of a `BLOCK_STATUS` chunk (proto.md, "Structured reply types").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockStatusChunk {
    /// Which of the selected contexts.
    pub context_id: u32,
    /// Its extents from the request's offset on.
    pub extents: Vec<Extent>,
}

impl BlockStatusChunk {
    /// Appends it to `out`. Extents are shorter than 4 GiB.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u32(self.context_id);
        for extent in &self.extents {
            let hole = if extent.hole { allocation::HOLE } else { 0 };
            let zero = if extent.zero { allocation::ZERO } else { 0 };
            out.put_u32(extent.length.0 as u32);
            out.put_u32(hole | zero);
        }
    }

    /// The bytes that `format` appends.
    pub fn size_bytes(&self) -> usize {
        4 + self.extents.len() * EXTENT_BYTES
    }

    /// Reads it: at least one extent, none of them empty.
    pub fn parse(payload: &[u8]) -> Result<BlockStatusChunk, ProtoError> {
        let mut fields = Fields::new(payload);
        let context_id = fields.u32()?;
        if fields.left() == 0 || !fields.left().is_multiple_of(EXTENT_BYTES) {
            return Err(ProtoError::Short);
        }
        let mut extents = Vec::with_capacity(fields.left() / EXTENT_BYTES);
        while fields.left() > 0 {
            let (length, state) = (fields.u32()?, fields.u32()?);
            if length == 0 {
                return Err(ProtoError::Unexpected("an extent of no length"));
            }
            extents.push(Extent {
                length: ByteCount(length.into()),
                hole: state & allocation::HOLE != 0,
                zero: state & allocation::ZERO != 0,
            });
        }
        Ok(BlockStatusChunk { context_id, extents })
    }
}
