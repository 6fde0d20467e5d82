//! Requests in transmission.

use super::{
    Fields, ProtoError,
    numbers::{REQUEST_MAGIC, command, command_flag},
};
use bytes::BufMut;
use ovs_units::{ByteCount, ByteOffset};

/// Bytes of a [`RequestHeader`].
pub const REQUEST_HEADER_BYTES: usize = 28;

/// What ties a reply to its request; opaque to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

/// The fixed part of a request (proto.md, "Request message"); for `NBD_CMD_WRITE`, `length` bytes follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// [`command_flag`]s.
    pub flags: u16,
    /// Which [`command`].
    pub command: u16,
    /// The client's cookie.
    pub cookie: Cookie,
    /// Where.
    pub offset: ByteOffset,
    /// How much; 32 bits on the wire.
    pub length: u32,
}

impl RequestHeader {
    /// Appends it to `out`.
    pub fn format(&self, out: &mut impl BufMut) {
        out.put_u32(REQUEST_MAGIC);
        out.put_u16(self.flags);
        out.put_u16(self.command);
        out.put_u64(self.cookie.0);
        out.put_u64(self.offset.0);
        out.put_u32(self.length);
    }

    /// Reads it.
    pub fn parse(message: &[u8]) -> Result<RequestHeader, ProtoError> {
        let mut fields = Fields::new(message);
        fields.magic32(REQUEST_MAGIC)?;
        let header = RequestHeader {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: Cookie(fields.u64()?),
            offset: ByteOffset(fields.u64()?),
            length: fields.u32()?,
        };
        fields.end()?;
        Ok(header)
    }

    /// The bytes that follow on the wire, as the command alone decides (known or not, well-formed or not).
    pub fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE { self.length } else { 0 }
    }

    /// The bytes of data that the request brings or asks for.
    pub fn data_bytes(&self) -> ByteCount {
        match self.command {
            command::WRITE | command::READ => ByteCount(self.length.into()),
            _ => ByteCount(0),
        }
    }

    /// The flags that the command may carry (proto.md, "Command flags": FUA goes with every command, and means nothing
    /// where nothing is written).
    pub fn allowed_flags(&self) -> u16 {
        let own = match self.command {
            command::READ => command_flag::DF,
            command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        };
        command_flag::FUA | own
    }

    /// True for a flag that is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}
