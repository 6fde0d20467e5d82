//! What one L2 entry says about its cluster.

use super::header::Header;
use crate::image::{FileOffset, ImageError};
use ovs_units::ByteCount;

/// Bits 9 to 55 hold an offset in L1 entries and in standard L2 entries.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZEROS: u64 = 1;

/// Where a cluster's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// Nowhere, or known to be zeros.
    Zeros,
    /// A whole cluster of the file.
    Data(FileOffset),
    /// A cluster of the file of which only some of 32 subclusters count; bit `n` set: subcluster `n` is data, else
    /// zeros.
    Subclusters(FileOffset, u32),
    /// Compressed: at most this many bytes from here hold it.
    Compressed(FileOffset, ByteCount),
}

/// The L2 table that an L1 entry names; `None`: nothing of its range is allocated.
pub fn l2_table(
    l1_entry: u64,
    header: &Header,
    file_length: ByteCount,
) -> Result<Option<FileOffset>, ImageError> {
    let offset = l1_entry & OFFSET_MASK;
    if offset == 0 {
        return Ok(None);
    }
    whole_cluster(offset, "L2 table", header, file_length).map(Some)
}

/// Takes an entry apart. `bitmap` is the second half of an extended entry, 0 otherwise.
pub fn mapping(
    entry: u64,
    bitmap: u64,
    header: &Header,
    file_length: ByteCount,
) -> Result<Mapping, ImageError> {
    if entry & COMPRESSED != 0 {
        return compressed(entry, header, file_length);
    }
    let offset = entry & OFFSET_MASK;
    if header.is_extended_l2 {
        return subclusters(offset, bitmap, header, file_length);
    }
    if entry & READS_AS_ZEROS != 0 {
        return match header.version {
            2 => {
                Err(damaged(format!("L2 entry {entry:#x} has the zero flag, which version 2 does not know")))
            }
            _ => Ok(Mapping::Zeros),
        };
    }
    if offset == 0 {
        return Ok(Mapping::Zeros);
    }
    whole_cluster(offset, "cluster", header, file_length).map(Mapping::Data)
}

fn subclusters(
    offset: u64,
    bitmap: u64,
    header: &Header,
    file_length: ByteCount,
) -> Result<Mapping, ImageError> {
    let (allocated, zeros) = (bitmap as u32, (bitmap >> 32) as u32);
    if allocated & zeros != 0 {
        return Err(damaged(format!("subcluster bitmap {bitmap:#x} says data and zeros at once")));
    }
    match (allocated, offset) {
        (0, _) => Ok(Mapping::Zeros),
        (_, 0) => Err(damaged(format!("subcluster bitmap {bitmap:#x} says data, but there is no cluster"))),
        (u32::MAX, _) => whole_cluster(offset, "cluster", header, file_length).map(Mapping::Data),
        _ => whole_cluster(offset, "cluster", header, file_length)
            .map(|offset| Mapping::Subclusters(offset, allocated)),
    }
}

/// The offset takes the low bits; then comes a count of 512-byte sectors beyond the first.
fn compressed(entry: u64, header: &Header, file_length: ByteCount) -> Result<Mapping, ImageError> {
    let offset_bits = 62 - (header.cluster_bits - 8);
    let offset = entry & ((1 << offset_bits) - 1);
    let sectors = ((entry & (COMPRESSED - 1)) >> offset_bits) + 1;
    if offset >= file_length.0 {
        let length = file_length.0;
        return Err(damaged(format!("a compressed cluster is at byte {offset}, past its end at {length}")));
    }
    // Data is not padded to whole sectors at the end of the file.
    let length = (sectors * 512 - offset % 512).min(file_length.0 - offset);
    Ok(Mapping::Compressed(FileOffset(offset), ByteCount(length)))
}

/// An offset that must name a cluster which begins inside the file.
fn whole_cluster(
    offset: u64,
    what: &str,
    header: &Header,
    file_length: ByteCount,
) -> Result<FileOffset, ImageError> {
    if !offset.is_multiple_of(header.cluster_size_bytes()) {
        let size = header.cluster_size_bytes();
        return Err(damaged(format!(
            "{what} at byte {offset} is not at a multiple of the cluster size {size}"
        )));
    }
    if offset >= file_length.0 {
        let length = file_length.0;
        return Err(damaged(format!(
            "{what} at byte {offset} lies past its end at {length}: it was cut short"
        )));
    }
    Ok(FileOffset(offset))
}

fn damaged(what: String) -> ImageError {
    ImageError::Damaged { what }
}
