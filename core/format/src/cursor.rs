//! Little-endian fields, one after the other.

use crate::FormatError;
use ovs_units::{ByteCount, COUNTER_MAX, VDISK_SIZE_BYTES_MAX};
use uuid::Uuid;

/// Reads fields from hostile bytes.
pub(crate) struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Reader { what, bytes, at: 0 }
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let found = self.bytes.len() - self.at;
        if count > found {
            return Err(FormatError::Short { what: self.what, expected: count, found });
        }
        self.at += count;
        Ok(&self.bytes[self.at - count..self.at])
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut field = [0; N];
        field.copy_from_slice(self.take(N)?);
        Ok(field)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A counter, which has a successor.
    pub(crate) fn counter(&mut self, field: &'static str) -> Result<u64, FormatError> {
        match self.u64()? {
            counter if counter < COUNTER_MAX => Ok(counter),
            other => Err(self.field(field, other)),
        }
    }

    /// The size of a vDisk.
    pub(crate) fn size(&mut self, field: &'static str) -> Result<ByteCount, FormatError> {
        match self.u64()? {
            size if size <= VDISK_SIZE_BYTES_MAX => Ok(ByteCount(size)),
            other => Err(self.field(field, other)),
        }
    }

    pub(crate) fn uuid(&mut self) -> Result<Uuid, FormatError> {
        Ok(Uuid::from_bytes(self.array()?))
    }

    /// A count of items of `item_bytes` each, refused when they could not all be in the bytes that are left.
    pub(crate) fn count(&mut self, field: &'static str, item_bytes: usize) -> Result<usize, FormatError> {
        let count = self.u32()?;
        let left = self.bytes.len() - self.at;
        if (count as usize).checked_mul(item_bytes).is_none_or(|needed| needed > left) {
            return Err(self.field(field, u64::from(count)));
        }
        Ok(count as usize)
    }

    pub(crate) fn field(&self, field: &'static str, found: u64) -> FormatError {
        FormatError::Field { what: self.what, field, found }
    }

    /// A byte that nobody uses yet.
    pub(crate) fn zero(&mut self, field: &'static str) -> Result<(), FormatError> {
        match self.u8()? {
            0 => Ok(()),
            other => Err(self.field(field, other.into())),
        }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Nothing may follow.
    pub(crate) fn end(&self) -> Result<(), FormatError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => Err(self.field("bytes after the end", left as u64)),
        }
    }
}

/// Appends fields.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn uuid(&mut self, value: Uuid) {
        self.0.extend_from_slice(value.as_bytes());
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.u32(value.len() as u32);
        self.0.extend_from_slice(value);
    }
}
