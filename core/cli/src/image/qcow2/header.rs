//! The header, and whether this image is one that we read.

use super::{MAGIC, compression::Compression};
use crate::image::{FileOffset, ImageError, read_at};
use ovs_units::{ByteCount, VDISK_SIZE_BYTES_MAX, format_size};
use std::fs::File;

/// The longest header that has a meaning for us; longer ones are read this far.
const HEADER_LENGTH_MAX: usize = 112;
const HEADER_LENGTH_V2: usize = 72;
const HEADER_LENGTH_V3_MIN: u32 = 104;

/// QEMU's own limit for the L1 table.
const L1_SIZE_BYTES_MAX: u64 = 32 << 20;

// Bits of `incompatible_features`.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// What of the header matters for reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// The disk's size.
    pub size: ByteCount,
    /// Where the L1 table begins.
    pub l1_offset: FileOffset,
    /// How many L1 entries the disk's size needs (the table may hold more).
    pub l1_entry_count: usize,
    /// L2 entries are 16 bytes with a bitmap of subclusters.
    pub is_extended_l2: bool,
    /// It was not closed cleanly: its reference counts may be stale, which does not matter for reading.
    pub is_dirty: bool,
    /// How compressed clusters are compressed.
    pub compression: Compression,
}

impl Header {
    /// Reads and checks the header of a file of this length.
    pub fn read(file: &File, file_length: ByteCount) -> Result<Header, ImageError> {
        let mut bytes = [0; HEADER_LENGTH_MAX];
        let available = file_length.0.min(HEADER_LENGTH_MAX as u64) as usize;
        read_at(file, FileOffset(0), &mut bytes[..available])?;
        let header = Header::parse(&bytes[..available], file_length);
        match header {
            Err(Refusal::BackingFile { offset, length }) => {
                Err(backing_file(file, offset, length, file_length))
            }
            Err(Refusal::Other(error)) => Err(error),
            Ok(header) => Ok(header),
        }
    }

    /// `bytes` is the file's beginning: all of it, or at least 112 bytes.
    fn parse(bytes: &[u8], file_length: ByteCount) -> Result<Header, Refusal> {
        if bytes.len() < HEADER_LENGTH_V2 || bytes[..4] != MAGIC {
            return Err(damaged(format!("{} bytes are no qcow2 header", bytes.len())));
        }
        let version = u32_at(bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(refused(format!("qcow2 version {version} is not known: 2 and 3 are")));
        }
        let mut fields = VersionFields::default();
        if version == 3 {
            fields = VersionFields::parse(bytes)?;
        }
        check_features(&fields)?;
        let backing_file_offset = u64_at(bytes, 8);
        if backing_file_offset != 0 {
            return Err(Refusal::BackingFile { offset: backing_file_offset, length: u32_at(bytes, 16) });
        }
        let crypt_method = u32_at(bytes, 32);
        if crypt_method != 0 {
            return Err(refused(
                "the qcow2 image is encrypted: decrypt it first with `qemu-img convert` (its --object secret option)"
                    .into(),
            ));
        }
        let cluster_bits = u32_at(bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(damaged(format!("cluster_bits is {cluster_bits}, allowed are 9 to 21")));
        }
        let is_extended_l2 = fields.incompatible & EXTENDED_L2 != 0;
        if is_extended_l2 && cluster_bits < 14 {
            return Err(damaged(format!(
                "extended L2 entries need cluster_bits of at least 14, not {cluster_bits}"
            )));
        }
        if u64::from(fields.header_length) > 1 << cluster_bits {
            return Err(damaged(format!(
                "a header of {} bytes is longer than a cluster",
                fields.header_length
            )));
        }
        let size = ByteCount(u64_at(bytes, 24));
        if size.0 > VDISK_SIZE_BYTES_MAX {
            let (given, allowed) = (format_size(size.0), format_size(VDISK_SIZE_BYTES_MAX));
            return Err(refused(format!(
                "the qcow2 image's size is {given}, a vDisk holds at most {allowed}"
            )));
        }
        let mut header = Header {
            version,
            cluster_bits,
            size,
            l1_offset: FileOffset(u64_at(bytes, 40)),
            l1_entry_count: 0,
            is_extended_l2,
            is_dirty: fields.incompatible & DIRTY != 0,
            compression: fields.compression,
        };
        header.check_l1(u32_at(bytes, 36), file_length)?;
        Ok(header)
    }

    fn check_l1(&mut self, l1_size: u32, file_length: ByteCount) -> Result<(), Refusal> {
        let needed = self.size.0.div_ceil(self.l2_coverage_bytes());
        if needed * 8 > L1_SIZE_BYTES_MAX {
            return Err(damaged(format!(
                "its size needs an L1 table of {needed} entries, allowed are 4194304"
            )));
        }
        if u64::from(l1_size) < needed {
            return Err(damaged(format!("l1_size is {l1_size}, its size needs {needed}")));
        }
        let start = self.l1_offset.0;
        let is_inside = start.checked_add(needed * 8).is_some_and(|end| end <= file_length.0);
        if needed > 0 && (start == 0 || !start.is_multiple_of(self.cluster_size_bytes()) || !is_inside) {
            let file_length = file_length.0;
            return Err(damaged(format!(
                "l1_table_offset is {start}, allowed are multiples of the cluster size within {file_length} bytes"
            )));
        }
        // At most 4 Mi, as checked above.
        self.l1_entry_count = needed as usize;
        Ok(())
    }

    /// Bytes in a cluster.
    pub fn cluster_size_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes in an L2 entry.
    pub fn l2_entry_size_bytes(&self) -> u64 {
        if self.is_extended_l2 { 16 } else { 8 }
    }

    /// How much of the disk one L2 table maps.
    pub fn l2_coverage_bytes(&self) -> u64 {
        self.cluster_size_bytes() / self.l2_entry_size_bytes() * self.cluster_size_bytes()
    }
}

/// What version 3 adds.
#[derive(Default)]
struct VersionFields {
    incompatible: u64,
    header_length: u32,
    compression: Compression,
}

impl VersionFields {
    fn parse(bytes: &[u8]) -> Result<VersionFields, Refusal> {
        if bytes.len() < HEADER_LENGTH_V3_MIN as usize {
            return Err(damaged(format!("it ends after {} bytes, within its header", bytes.len())));
        }
        let header_length = u32_at(bytes, 100);
        if header_length < HEADER_LENGTH_V3_MIN || !header_length.is_multiple_of(8) {
            return Err(damaged(format!(
                "header_length is {header_length}, allowed are multiples of 8 from 104"
            )));
        }
        let has_compression_type = header_length > HEADER_LENGTH_V3_MIN && bytes.len() > 104;
        let compression_type = if has_compression_type { bytes[104] } else { 0 };
        let incompatible = u64_at(bytes, 72);
        let compression = match (compression_type, incompatible & COMPRESSION_TYPE != 0) {
            (0, false) => Compression::Deflate,
            (1, true) => Compression::Zstd,
            (0 | 1, _) => {
                let what = "compression_type and its feature bit contradict each other";
                return Err(damaged(what.into()));
            }
            (other, _) => {
                return Err(refused(format!(
                    "the qcow2 image is compressed with method {other}, which is not known: 0 (deflate) and 1 (zstd) are"
                )));
            }
        };
        Ok(VersionFields { incompatible, header_length, compression })
    }
}

fn check_features(fields: &VersionFields) -> Result<(), Refusal> {
    let incompatible = fields.incompatible;
    let known = DIRTY | CORRUPT | EXTERNAL_DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2;
    if incompatible & !known != 0 {
        let unknown = incompatible & !known;
        return Err(refused(format!(
            "the qcow2 image uses features that are not known (incompatible_features {unknown:#x}): convert it first with `qemu-img convert -O raw`"
        )));
    }
    if incompatible & CORRUPT != 0 {
        return Err(refused(
            "the qcow2 image is marked corrupt: repair it first with `qemu-img check -r all`".into(),
        ));
    }
    if incompatible & EXTERNAL_DATA_FILE != 0 {
        return Err(refused(
            "the qcow2 image keeps its data in another file, which is not followed: make one whole file with `qemu-img convert -O raw`"
                .into(),
        ));
    }
    Ok(())
}

/// Why a header is not taken. The backing file's name, which lies elsewhere in the file, belongs to the message.
enum Refusal {
    BackingFile { offset: u64, length: u32 },
    Other(ImageError),
}

fn refused(reason: String) -> Refusal {
    Refusal::Other(ImageError::Refused(reason))
}

fn damaged(what: String) -> Refusal {
    Refusal::Other(ImageError::Damaged { what })
}

/// The name is bounded to the format's 1023 bytes and shown escaped: it is the file's word, not ours.
fn backing_file(file: &File, offset: u64, length: u32, file_length: ByteCount) -> ImageError {
    let mut name = vec![0; length.min(1023) as usize];
    let is_inside = offset.checked_add(name.len() as u64).is_some_and(|end| end <= file_length.0);
    let name = match is_inside && read_at(file, FileOffset(offset), &mut name).is_ok() {
        true => format!(" {:?}", String::from_utf8_lossy(&name)),
        false => String::new(),
    };
    ImageError::Refused(format!(
        "the qcow2 image holds only what differs from its backing file{name}, which is not followed: make one whole file with `qemu-img convert -O qcow2`"
    ))
}

/// `bytes` is known to be long enough.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sound version 3 header of a 10 MiB disk in 64 KiB clusters, then what `change` makes of it.
    fn parse_changed(change: impl FnOnce(&mut [u8; 112])) -> Result<Header, String> {
        let mut bytes = [0; 112];
        bytes[..4].copy_from_slice(&MAGIC);
        let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        set(4, &3u32.to_be_bytes());
        set(20, &16u32.to_be_bytes());
        set(24, &(10u64 << 20).to_be_bytes());
        set(36, &1u32.to_be_bytes());
        set(40, &(3u64 << 16).to_be_bytes());
        set(100, &112u32.to_be_bytes());
        change(&mut bytes);
        Header::parse(&bytes, ByteCount(1 << 20)).map_err(|refusal| match refusal {
            Refusal::Other(error) => error.to_string(),
            Refusal::BackingFile { .. } => "backing file".into(),
        })
    }

    fn check_refused(at: usize, value: &[u8], expected: &str) {
        let message = parse_changed(|bytes| bytes[at..at + value.len()].copy_from_slice(value)).unwrap_err();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }

    #[test]
    fn a_sound_header_is_taken() {
        let header = parse_changed(|_| ()).unwrap();
        assert_eq!((header.cluster_bits, header.size.0, header.l1_entry_count), (16, 10 << 20, 1));
        assert!(!header.is_dirty && !header.is_extended_l2);
        assert!(parse_changed(|bytes| bytes[79] = 1).unwrap().is_dirty);
    }

    #[test]
    fn each_field_is_bounded() {
        check_refused(0, b"QFI\0", "no qcow2 header");
        check_refused(4, &1u32.to_be_bytes(), "version 1");
        check_refused(4, &u32::MAX.to_be_bytes(), "version");
        check_refused(8, &1u64.to_be_bytes(), "backing file");
        check_refused(20, &8u32.to_be_bytes(), "cluster_bits is 8");
        check_refused(20, &22u32.to_be_bytes(), "cluster_bits is 22");
        check_refused(20, &u32::MAX.to_be_bytes(), "cluster_bits");
        check_refused(24, &u64::MAX.to_be_bytes(), "64TiB");
        check_refused(24, &(1u64 << 40).to_be_bytes(), "l1_size is 1");
        check_refused(32, &2u32.to_be_bytes(), "encrypted");
        check_refused(36, &0u32.to_be_bytes(), "l1_size is 0");
        check_refused(40, &1u64.to_be_bytes(), "l1_table_offset is 1");
        check_refused(40, &0u64.to_be_bytes(), "l1_table_offset is 0");
        check_refused(40, &(1u64 << 20).to_be_bytes(), "l1_table_offset");
        check_refused(40, &(u64::MAX << 16).to_be_bytes(), "l1_table_offset");
        check_refused(100, &96u32.to_be_bytes(), "header_length is 96");
        check_refused(100, &(1u32 << 31).to_be_bytes(), "longer than a cluster");
        check_refused(104, &[1], "contradict");
        check_refused(104, &[9], "method 9");
    }

    #[test]
    fn each_incompatible_feature_has_its_reason() {
        let bits = |bits: u64| bits.to_be_bytes();
        check_refused(72, &bits(CORRUPT), "marked corrupt");
        check_refused(72, &bits(EXTERNAL_DATA_FILE), "another file");
        check_refused(72, &bits(COMPRESSION_TYPE), "contradict");
        check_refused(72, &bits(1 << 5), "0x20");
        check_refused(72, &bits(1 << 63), "0x8000000000000000");
        // Tiny clusters cannot have 32 subclusters.
        let small = parse_changed(|bytes| {
            bytes[79] = EXTENDED_L2 as u8;
            bytes[23] = 13;
        });
        assert!(small.unwrap_err().contains("at least 14"));
    }

    #[test]
    fn a_huge_l1_table_is_refused_before_it_is_allocated() {
        let tiny_clusters = parse_changed(|bytes| {
            bytes[23] = 9;
            bytes[24..32].copy_from_slice(&(1u64 << 40).to_be_bytes());
            bytes[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
        });
        assert!(tiny_clusters.unwrap_err().contains("L1 table of 33554432 entries"));
    }
}
