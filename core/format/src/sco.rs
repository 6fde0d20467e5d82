//! A storage container object: an immutable run of clusters with a checksum for each.
//!
//! The header is whole 4 KiB blocks, so that data clusters stay aligned; cluster `i` is at
//! `header_bytes + i * 4096`. Checksums are of the cluster's bytes; the header binds them to the SCO's identity and to
//! the put that wrote it, so that an old or swapped object is as wrong as a flipped bit.

use crate::cursor::{Reader, Writer};
use crate::{FormatError, checksum};
use ovs_units::{CLUSTER_SIZE_BYTES, Epoch, PutId, ScoNumber, VdiskId};

const MAGIC: u64 = u64::from_le_bytes(*b"OVSSCO01");
const VERSION: u16 = 1;
const FIXED_BYTES: usize = 8 + 2 + 2 + 4 + 16 + 8 + 8 + 16 + 4 + 4;
const WHAT: &str = "SCO header";

/// Clusters in one SCO at most (128 MiB).
pub const CLUSTERS_MAX: usize = 32 * 1024;

/// Which SCO, and which put of it. Kept where the map points to it; what is read must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoRef {
    /// The vDisk that wrote it (a clone's ancestors too).
    pub vdisk: VdiskId,
    /// In which epoch.
    pub epoch: Epoch,
    /// Its number there.
    pub number: ScoNumber,
    /// The put that stored it.
    pub put: PutId,
    /// How many clusters it holds.
    pub cluster_count: u32,
    /// The checksum of its header.
    pub header_checksum: u32,
}

impl ScoRef {
    /// Bytes of the object.
    pub fn object_bytes(&self) -> u64 {
        self.cluster_offset_bytes(self.cluster_count)
    }

    /// Where cluster `index` starts in the object.
    pub fn cluster_offset_bytes(&self, index: u32) -> u64 {
        header_bytes(self.cluster_count as usize) as u64 + u64::from(index) * CLUSTER_SIZE_BYTES
    }
}

/// Bytes of the header of an SCO with this many clusters.
pub fn header_bytes(cluster_count: usize) -> usize {
    (FIXED_BYTES + cluster_count * 4).next_multiple_of(CLUSTER_SIZE_BYTES as usize)
}

/// The header; returns its bytes and what the map keeps of it.
pub fn encode_header(
    vdisk: VdiskId,
    epoch: Epoch,
    number: ScoNumber,
    put: PutId,
    checksums: &[u32],
) -> (Vec<u8>, ScoRef) {
    let mut w = Writer(Vec::with_capacity(header_bytes(checksums.len())));
    w.u64(MAGIC);
    w.u16(VERSION);
    w.u16(0);
    w.u32(0);
    w.uuid(vdisk.0);
    w.u64(epoch.0);
    w.u64(number.0);
    w.uuid(put.0);
    w.u32(checksums.len() as u32);
    w.u32(0);
    checksums.iter().for_each(|checksum| w.u32(*checksum));
    let mut header = w.0;
    header.resize(header_bytes(checksums.len()), 0);
    let header_checksum = checksum(&header);
    let cluster_count = checksums.len() as u32;
    (header, ScoRef { vdisk, epoch, number, put, cluster_count, header_checksum })
}

/// The checksums, if the header is exactly the one that `expected` names.
pub fn decode_header(header: &[u8], expected: &ScoRef) -> Result<Vec<u32>, FormatError> {
    let length = header_bytes(expected.cluster_count as usize);
    if header.len() != length {
        return Err(FormatError::Short { what: WHAT, expected: length, found: header.len() });
    }
    let found = checksum(header);
    if found != expected.header_checksum {
        return Err(FormatError::Checksum { what: WHAT, expected: expected.header_checksum, found });
    }
    let mut r = Reader::new(WHAT, header);
    if r.u64()? != MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    match r.u16()? {
        VERSION => {}
        found => return Err(FormatError::Version { what: WHAT, found: u64::from(found) }),
    }
    r.take(6)?;
    let identity = (VdiskId(r.uuid()?), Epoch(r.u64()?), ScoNumber(r.u64()?), PutId(r.uuid()?), r.u32()?);
    if identity != (expected.vdisk, expected.epoch, expected.number, expected.put, expected.cluster_count) {
        return Err(r.field("identity", identity.2.0));
    }
    r.u32()?;
    (0..expected.cluster_count).map(|_| r.u32()).collect()
}
