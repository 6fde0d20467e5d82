//! What says on a backend that a vDisk is deleted. It undoes everything else there, so it must prove what it is about, and
//! which epochs of it: one that lands when somebody has gone on with the vDisk since says nothing.

use crate::cursor::{Reader, Writer};
use crate::{FormatError, check_seal, seal};
use ovs_units::{COUNTER_MAX, Epoch, VdiskId};

const MAGIC: u64 = u64::from_le_bytes(*b"OVSDEL01");
const VERSION: u16 = 2;
const SUM_AT: usize = 12;
/// Of the whole object.
const BYTES: usize = 40;
const WHAT: &str = "tombstone";

/// The object's bytes. What is deleted is all that was begun in epochs up to this one.
pub fn encode(vdisk: VdiskId, epoch: Epoch) -> Vec<u8> {
    let mut w = Writer(Vec::with_capacity(BYTES));
    w.u64(MAGIC);
    w.u16(VERSION);
    w.u16(0);
    w.u32(0);
    w.uuid(vdisk.0);
    w.u64(epoch.0);
    let mut bytes = w.0;
    seal(&mut bytes, SUM_AT);
    bytes
}

/// The epoch. Refuses everything that does not say that this vDisk is deleted.
pub fn decode(bytes: &[u8], vdisk: VdiskId) -> Result<Epoch, FormatError> {
    let mut r = Reader::new(WHAT, bytes);
    if r.u64()? != MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    let version = r.u16()?;
    if version != VERSION {
        return Err(FormatError::Version { what: WHAT, found: version.into() });
    }
    if bytes.len() != BYTES {
        return Err(FormatError::Short { what: WHAT, expected: BYTES, found: bytes.len() });
    }
    r.u16()?;
    let sum = r.u32()?;
    check_seal(WHAT, bytes, SUM_AT, sum)?;
    let found = r.uuid()?;
    if found != vdisk.0 {
        return Err(FormatError::Field { what: WHAT, field: "vDisk", found: found.as_u128() as u64 });
    }
    let epoch = r.u64()?;
    if epoch >= COUNTER_MAX {
        return Err(FormatError::Field { what: WHAT, field: "epoch", found: epoch });
    }
    Ok(Epoch(epoch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn only_its_own_vdisk_is_deleted() {
        let (one, other) = (VdiskId(Uuid::from_u128(1)), VdiskId(Uuid::from_u128(2)));
        let bytes = encode(one, Epoch(7));
        assert_eq!(decode(&bytes, one), Ok(Epoch(7)));
        decode(&bytes, other).unwrap_err();
        decode(b"deleted", one).unwrap_err();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            decode(&flipped, one).unwrap_err();
            decode(&bytes[..bit / 8], one).unwrap_err();
        }
        decode(&encode(one, Epoch(COUNTER_MAX)), one).unwrap_err();
    }

    /// It says of no epoch that it is over: that may be any, also one of which somebody has written since.
    #[test]
    fn one_of_the_first_format_is_refused() {
        let one = VdiskId(Uuid::from_u128(1));
        let mut bytes = encode(one, Epoch(7));
        bytes.truncate(32);
        bytes[8] = 1;
        seal(&mut bytes, SUM_AT);
        assert_eq!(decode(&bytes, one), Err(FormatError::Version { what: WHAT, found: 1 }));
    }
}
