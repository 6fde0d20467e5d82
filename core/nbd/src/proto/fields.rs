//! Reading foreign bytes, field by field, within their bounds.

use super::numbers::TEXT_BYTES_MAX;
use thiserror::Error;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProtoError {
    /// Shorter than its fields.
    #[error("the message is too short")]
    Short,
    /// Longer than its fields.
    #[error("{0} bytes are left over at the end of the message")]
    LeftOver(usize),
    /// A magic number that is not the expected one.
    #[error("magic number {found:#x}, expected {expected:#x}")]
    Magic {
        /// What was there.
        found: u64,
        /// What belongs there.
        expected: u64,
    },
    /// A length over its bound.
    #[error("a length of {given} bytes, at most {max} are allowed")]
    TooLong {
        /// What was given.
        given: u64,
        /// The bound.
        max: u64,
    },
    /// A string that is not UTF-8 or holds a NUL.
    #[error("a string that is not text")]
    Text,
    /// Something that the protocol does not allow here.
    #[error("{0}")]
    Unexpected(&'static str),
}

/// What is left of a message.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// A message to be read from its start.
    pub fn new(message: &'a [u8]) -> Fields<'a> {
        Fields(message)
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], ProtoError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(ProtoError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtoError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(ProtoError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    /// 16 bits.
    pub fn u16(&mut self) -> Result<u16, ProtoError> {
        self.array().map(u16::from_be_bytes)
    }

    /// 32 bits.
    pub fn u32(&mut self) -> Result<u32, ProtoError> {
        self.array().map(u32::from_be_bytes)
    }

    /// 64 bits.
    pub fn u64(&mut self) -> Result<u64, ProtoError> {
        self.array().map(u64::from_be_bytes)
    }

    /// 32 bits that must be `expected`.
    pub fn magic32(&mut self, expected: u32) -> Result<(), ProtoError> {
        let found = self.u32()?;
        if found == expected {
            Ok(())
        } else {
            Err(ProtoError::Magic { found: found.into(), expected: expected.into() })
        }
    }

    /// 64 bits that must be `expected`.
    pub fn magic64(&mut self, expected: u64) -> Result<(), ProtoError> {
        let found = self.u64()?;
        if found == expected { Ok(()) } else { Err(ProtoError::Magic { found, expected }) }
    }

    /// A string of `count` bytes (proto.md, "String lengths": UTF-8 without NUL, at most 4096 bytes).
    pub fn text(&mut self, count: usize) -> Result<&'a str, ProtoError> {
        if count > TEXT_BYTES_MAX {
            return Err(ProtoError::TooLong { given: count as u64, max: TEXT_BYTES_MAX as u64 });
        }
        let text = std::str::from_utf8(self.bytes(count)?).map_err(|_| ProtoError::Text)?;
        if text.contains('\0') { Err(ProtoError::Text) } else { Ok(text) }
    }

    /// All that is left, as a string.
    pub fn rest_text(&mut self) -> Result<&'a str, ProtoError> {
        self.text(self.0.len())
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<(), ProtoError> {
        if self.0.is_empty() { Ok(()) } else { Err(ProtoError::LeftOver(self.0.len())) }
    }
}
