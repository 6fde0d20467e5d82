//! What says on a backend that a vDisk is deleted. It undoes everything else there, so it must prove what it is about.

use crate::cursor::{Reader, Writer};
use crate::{FormatError, check_seal, seal};
use ovs_units::VdiskId;

const MAGIC: u64 = u64::from_le_bytes(*b"OVSDEL01");
const VERSION: u16 = 1;
const SUM_AT: usize = 12;
/// Of the whole object.
const BYTES: usize = 32;
const WHAT: &str = "tombstone";

/// The object's bytes.
pub fn encode(vdisk: VdiskId) -> Vec<u8> {
    let mut w = Writer(Vec::with_capacity(BYTES));
    w.u64(MAGIC);
    w.u16(VERSION);
    w.u16(0);
    w.u32(0);
    w.uuid(vdisk.0);
    let mut bytes = w.0;
    seal(&mut bytes, SUM_AT);
    bytes
}

/// Refuses everything that does not say that this vDisk is deleted.
pub fn decode(bytes: &[u8], vdisk: VdiskId) -> Result<(), FormatError> {
    if bytes.len() != BYTES {
        return Err(FormatError::Short { what: WHAT, expected: BYTES, found: bytes.len() });
    }
    let mut r = Reader::new(WHAT, bytes);
    if r.u64()? != MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    let version = r.u16()?;
    if version != VERSION {
        return Err(FormatError::Version { what: WHAT, found: version.into() });
    }
    r.u16()?;
    let sum = r.u32()?;
    check_seal(WHAT, bytes, SUM_AT, sum)?;
    let found = r.uuid()?;
    if found != vdisk.0 {
        return Err(FormatError::Field { what: WHAT, field: "vDisk", found: found.as_u128() as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn only_its_own_vdisk_is_deleted() {
        let (one, other) = (VdiskId(Uuid::from_u128(1)), VdiskId(Uuid::from_u128(2)));
        let bytes = encode(one);
        decode(&bytes, one).unwrap();
        decode(&bytes, other).unwrap_err();
        decode(b"deleted", one).unwrap_err();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            decode(&flipped, one).unwrap_err();
            decode(&bytes[..bit / 8], one).unwrap_err();
        }
    }
}
