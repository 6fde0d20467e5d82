//! Negotiation: greeting, options, replies to options.

use super::{
    Fields, ProtoError,
    numbers::{
        INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, PREFERRED_BLOCK_BYTES,
        TEXT_BYTES_MAX, info,
    },
};
use bytes::BufMut;
use ovs_units::ByteCount;

/// Bytes of a [`Greeting`].
pub const GREETING_BYTES: usize = 18;
/// Bytes of an [`OptionHeader`].
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of an [`OptionReplyHeader`].
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;
/// The most data of an option that is read into memory: a name and a good number of queries.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
/// The most queries of one meta context option.
pub const QUERIES_MAX: usize = 64;

/// The server's first message (proto.md, "Newstyle negotiation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// [`handshake_flag`](super::numbers::handshake_flag)s.
    pub flags: u16,
}

impl Greeting {
    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u64(INIT_MAGIC);
        out.put_u64(OPTION_MAGIC);
        out.put_u16(self.flags);
    }

    /// Reads it.
    pub fn parse(message: &[u8]) -> Result<Greeting, ProtoError> {
        let mut fields = Fields::new(message);
        fields.magic64(INIT_MAGIC)?;
        fields.magic64(OPTION_MAGIC)?;
        let flags = fields.u16()?;
        fields.end()?;
        Ok(Greeting { flags })
    }
}

/// What precedes an option's data (proto.md, "Newstyle negotiation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which [`option`](super::numbers::option).
    pub option: u32,
    /// Bytes of data that follow; any 32 bits.
    pub length: u32,
}

impl OptionHeader {
    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u64(OPTION_MAGIC);
        out.put_u32(self.option);
        out.put_u32(self.length);
    }

    /// Reads it.
    pub fn parse(message: &[u8]) -> Result<OptionHeader, ProtoError> {
        let mut fields = Fields::new(message);
        fields.magic64(OPTION_MAGIC)?;
        let header = OptionHeader { option: fields.u32()?, length: fields.u32()? };
        fields.end()?;
        Ok(header)
    }
}

/// What precedes the data of a reply to an option (proto.md, "Fixed newstyle negotiation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: u32,
    /// Which [`option_reply`](super::numbers::option_reply).
    pub reply: u32,
    /// Bytes of data that follow; any 32 bits.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u64(OPTION_REPLY_MAGIC);
        out.put_u32(self.option);
        out.put_u32(self.reply);
        out.put_u32(self.length);
    }

    /// Reads it.
    pub fn parse(message: &[u8]) -> Result<OptionReplyHeader, ProtoError> {
        let mut fields = Fields::new(message);
        fields.magic64(OPTION_REPLY_MAGIC)?;
        let header = OptionReplyHeader { option: fields.u32()?, reply: fields.u32()?, length: fields.u32()? };
        fields.end()?;
        Ok(header)
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO` (proto.md, "Option types").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    /// The export.
    pub name: String,
    /// Which [`info`]s the client would like.
    pub wanted: Vec<u16>,
}

impl InfoRequest {
    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u32(self.name.len() as u32);
        out.put_slice(self.name.as_bytes());
        out.put_u16(self.wanted.len() as u16);
        for wanted in &self.wanted {
            out.put_u16(*wanted);
        }
    }

    /// Reads it.
    pub fn parse(message: &[u8]) -> Result<InfoRequest, ProtoError> {
        let mut fields = Fields::new(message);
        let name_length = fields.u32()? as usize;
        let name = fields.text(name_length)?.to_owned();
        let count = usize::from(fields.u16()?);
        // The count is foreign: what it would need must be there before it decides an allocation.
        if fields.left() != count * 2 {
            return Err(ProtoError::Short);
        }
        let wanted = (0..count).map(|_| fields.u16()).collect::<Result<_, _>>()?;
        fields.end()?;
        Ok(InfoRequest { name, wanted })
    }
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT` (proto.md, "Option types").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContextRequest {
    /// The export.
    pub name: String,
    /// The queries.
    pub queries: Vec<String>,
}

impl MetaContextRequest {
    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u32(self.name.len() as u32);
        out.put_slice(self.name.as_bytes());
        out.put_u32(self.queries.len() as u32);
        for query in &self.queries {
            out.put_u32(query.len() as u32);
            out.put_slice(query.as_bytes());
        }
    }

    /// Reads it.
    pub fn parse(message: &[u8]) -> Result<MetaContextRequest, ProtoError> {
        let mut fields = Fields::new(message);
        let name_length = fields.u32()? as usize;
        let name = fields.text(name_length)?.to_owned();
        let count = fields.u32()? as usize;
        if count > QUERIES_MAX {
            return Err(ProtoError::TooLong { given: count as u64, max: QUERIES_MAX as u64 });
        }
        let mut queries = Vec::with_capacity(count);
        for _ in 0..count {
            let length = fields.u32()? as usize;
            queries.push(fields.text(length)?.to_owned());
        }
        fields.end()?;
        Ok(MetaContextRequest { name, queries })
    }
}

/// The data of one `NBD_REP_META_CONTEXT` (proto.md, "Option reply types").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContextReply {
    /// The number that block status replies will carry; without meaning in a list.
    pub id: u32,
    /// The context's name.
    pub name: String,
}

impl MetaContextReply {
    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u32(self.id);
        out.put_slice(self.name.as_bytes());
    }

    /// Reads it.
    pub fn parse(message: &[u8]) -> Result<MetaContextReply, ProtoError> {
        let mut fields = Fields::new(message);
        Ok(MetaContextReply { id: fields.u32()?, name: fields.rest_text()?.to_owned() })
    }
}

/// The data of one `NBD_REP_SERVER` (proto.md, "Option reply types").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListReply {
    /// The export.
    pub name: String,
    /// Text for people.
    pub description: String,
}

impl ListReply {
    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u32(self.name.len() as u32);
        out.put_slice(self.name.as_bytes());
        out.put_slice(self.description.as_bytes());
    }

    /// Reads it.
    pub fn parse(message: &[u8]) -> Result<ListReply, ProtoError> {
        let mut fields = Fields::new(message);
        let length = fields.u32()? as usize;
        Ok(ListReply { name: fields.text(length)?.to_owned(), description: fields.rest_text()?.to_owned() })
    }
}

/// The data of one `NBD_REP_INFO` (proto.md, "Option reply types").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InfoReply {
    /// `NBD_INFO_EXPORT`.
    Export {
        /// Its size.
        size: ByteCount,
        /// [`export_flag`](super::numbers::export_flag)s.
        flags: u16,
    },
    /// `NBD_INFO_NAME`.
    Name(String),
    /// `NBD_INFO_DESCRIPTION`.
    Description(String),
    /// `NBD_INFO_BLOCK_SIZE`.
    BlockSize {
        /// Requests are multiples of it.
        minimum: u32,
        /// What suits best.
        preferred: u32,
        /// The largest payload.
        maximum: u32,
    },
    /// One that is not known; to be ignored.
    Unknown(u16),
}

impl InfoReply {
    /// Our block sizes: any alignment, the device reads, modifies and writes.
    pub const OUR_BLOCK_SIZE: InfoReply =
        InfoReply::BlockSize { minimum: 1, preferred: PREFERRED_BLOCK_BYTES, maximum: PAYLOAD_BYTES_MAX };

    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        match self {
            InfoReply::Export { size, flags } => {
                out.put_u16(info::EXPORT);
                out.put_u64(size.0);
                out.put_u16(*flags);
            }
            InfoReply::Name(name) => {
                out.put_u16(info::NAME);
                out.put_slice(name.as_bytes());
            }
            InfoReply::Description(text) => {
                out.put_u16(info::DESCRIPTION);
                out.put_slice(text.as_bytes());
            }
            InfoReply::BlockSize { minimum, preferred, maximum } => {
                out.put_u16(info::BLOCK_SIZE);
                out.put_u32(*minimum);
                out.put_u32(*preferred);
                out.put_u32(*maximum);
            }
            InfoReply::Unknown(kind) => out.put_u16(*kind),
        }
    }

    /// Reads it; the data of an unknown one is skipped.
    pub fn parse(message: &[u8]) -> Result<InfoReply, ProtoError> {
        let mut fields = Fields::new(message);
        let reply = match fields.u16()? {
            info::EXPORT => InfoReply::Export { size: ByteCount(fields.u64()?), flags: fields.u16()? },
            info::NAME => InfoReply::Name(fields.rest_text()?.to_owned()),
            info::DESCRIPTION => InfoReply::Description(fields.rest_text()?.to_owned()),
            info::BLOCK_SIZE => InfoReply::BlockSize {
                minimum: fields.u32()?,
                preferred: fields.u32()?,
                maximum: fields.u32()?,
            },
            other => return Ok(InfoReply::Unknown(other)),
        };
        fields.end()?;
        Ok(reply)
    }
}

/// `text` cut to what the protocol allows in a string, at a character's boundary.
pub fn bounded_text(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}
