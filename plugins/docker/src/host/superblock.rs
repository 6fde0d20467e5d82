//! What is on a disk, from its first 4 KiB. Everything read here is foreign: any bytes give an answer.
//!
//! ext4: superblock at byte 1024, little endian (Linux, Documentation/filesystems/ext4/super.rst).
//! XFS: superblock at byte 0, big endian (fs/xfs/libxfs/xfs_format.h, struct xfs_dsb).

use crate::options::Fstype;

/// How much of the disk is looked at.
pub const HEAD_BYTES: usize = 4096;

const EXT4_AT: usize = 1024;
const EXT4_MAGIC: u16 = 0xEF53;
const EXT4_STATE_ERRORS: u16 = 2;
const EXT4_INCOMPAT_64BIT: u32 = 0x80;
const XFS_MAGIC: &[u8] = b"XFSB";
/// The blocks of our devices, unless the file system on it is older and finer.
const BLOCK_SIZE_BYTES: u32 = 4096;

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// A file system.
    FileSystem {
        /// Which.
        fstype: Fstype,
        /// As its superblock says.
        size_bytes: u64,
        /// The largest block size of a device that can carry it.
        block_size_bytes: u32,
        /// It noted damage and asks for fsck.
        has_errors: bool,
    },
    /// Zeros where a superblock would be.
    Blank,
    /// Something else: a partition table, another file system, garbage.
    Other,
}

impl Contents {
    /// Reads the head of a disk.
    pub fn of(head: &[u8; HEAD_BYTES]) -> Contents {
        if head.starts_with(XFS_MAGIC) {
            return xfs(head);
        }
        if le16(head, EXT4_AT + 0x38) == EXT4_MAGIC {
            return ext4(head);
        }
        if head.iter().all(|byte| *byte == 0) { Contents::Blank } else { Contents::Other }
    }

    /// The block size that the device gets.
    pub fn block_size_bytes(&self) -> u32 {
        match self {
            Contents::FileSystem { block_size_bytes, .. } => *block_size_bytes,
            Contents::Blank | Contents::Other => BLOCK_SIZE_BYTES,
        }
    }
}

fn ext4(head: &[u8; HEAD_BYTES]) -> Contents {
    let log_block_size = le32(head, EXT4_AT + 0x18);
    if log_block_size > 6 {
        return Contents::Other;
    }
    let block_size = 1024_u64 << log_block_size;
    let mut blocks = u64::from(le32(head, EXT4_AT + 0x4));
    if le32(head, EXT4_AT + 0x60) & EXT4_INCOMPAT_64BIT != 0 {
        blocks |= u64::from(le32(head, EXT4_AT + 0x150)) << 32;
    }
    Contents::FileSystem {
        fstype: Fstype::Ext4,
        size_bytes: blocks.saturating_mul(block_size),
        block_size_bytes: device_block_size(block_size),
        has_errors: le16(head, EXT4_AT + 0x3A) & EXT4_STATE_ERRORS != 0,
    }
}

fn xfs(head: &[u8; HEAD_BYTES]) -> Contents {
    let block_size = u64::from(be32(head, 4));
    let sector_size = u64::from(be16(head, 102));
    if !(512..=65536).contains(&block_size) || !(512..=32768).contains(&sector_size) {
        return Contents::Other;
    }
    let blocks = (u64::from(be32(head, 8)) << 32) | u64::from(be32(head, 12));
    Contents::FileSystem {
        fstype: Fstype::Xfs,
        size_bytes: blocks.saturating_mul(block_size),
        block_size_bytes: device_block_size(sector_size),
        has_errors: false,
    }
}

/// A device's blocks may not be larger than those of what it carries.
fn device_block_size(of_contents: u64) -> u32 {
    if of_contents < u64::from(BLOCK_SIZE_BYTES) { 512 } else { BLOCK_SIZE_BYTES }
}

fn le16(head: &[u8; HEAD_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([head[at], head[at + 1]])
}

fn be16(head: &[u8; HEAD_BYTES], at: usize) -> u16 {
    u16::from_be_bytes([head[at], head[at + 1]])
}

fn le32(head: &[u8; HEAD_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

fn be32(head: &[u8; HEAD_BYTES], at: usize) -> u32 {
    u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Read, process::Command};

    fn head_of(make: &str, args: &[&str], size_bytes: u64) -> Option<[u8; HEAD_BYTES]> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size_bytes).unwrap();
        let made = Command::new(make).args(args).arg(file.path()).output().ok()?;
        assert!(made.status.success(), "{make}: {}", String::from_utf8_lossy(&made.stderr));
        let mut head = [0; HEAD_BYTES];
        fs::File::open(file.path()).unwrap().read_exact(&mut head).unwrap();
        Some(head)
    }

    /// Where the machine has that mkfs; the offsets are also checked below without it.
    fn check_made(make: &str, args: &[&str], size_bytes: u64, expected: Contents) {
        if let Some(head) = head_of(make, args, size_bytes) {
            assert_eq!(Contents::of(&head), expected, "{make} {args:?}");
        }
    }

    #[test]
    fn file_systems_as_mkfs_makes_them() {
        let (size_bytes, has_errors) = (64 << 20, false);
        let ext4 = |block_size_bytes| {
            let fstype = Fstype::Ext4;
            Contents::FileSystem { fstype, size_bytes, block_size_bytes, has_errors }
        };
        check_made("/sbin/mkfs.ext4", &["-q", "-b", "4096"], size_bytes, ext4(4096));
        check_made("/sbin/mkfs.ext4", &["-q", "-b", "1024"], size_bytes, ext4(512));
        let size_bytes = 320 << 20;
        let xfs = |block_size_bytes| {
            let fstype = Fstype::Xfs;
            Contents::FileSystem { fstype, size_bytes, block_size_bytes, has_errors }
        };
        check_made("/sbin/mkfs.xfs", &["-q", "-f", "-s", "size=4096"], size_bytes, xfs(4096));
        check_made("/sbin/mkfs.xfs", &["-q", "-f", "-s", "size=512"], size_bytes, xfs(512));
    }

    #[test]
    fn fields_are_where_the_formats_say() {
        let mut head = [0; HEAD_BYTES];
        assert_eq!(Contents::of(&head), Contents::Blank);
        head[EXT4_AT + 0x38..][..2].copy_from_slice(&[0x53, 0xEF]);
        head[EXT4_AT + 0x4..][..4].copy_from_slice(&7_u32.to_le_bytes());
        head[EXT4_AT + 0x18] = 2;
        head[EXT4_AT + 0x3A] = 2;
        head[EXT4_AT + 0x60] = 0x80;
        head[EXT4_AT + 0x150] = 1;
        let (fstype, block_size_bytes, has_errors) = (Fstype::Ext4, 4096, true);
        let size_bytes = ((1 << 32) + 7) * 4096;
        assert_eq!(
            Contents::of(&head),
            Contents::FileSystem { fstype, size_bytes, block_size_bytes, has_errors }
        );
    }

    #[test]
    fn any_bytes_give_an_answer() {
        let mut head = [0xFF; HEAD_BYTES];
        assert_eq!(Contents::of(&head), Contents::Other);
        head[EXT4_AT + 0x38..][..2].copy_from_slice(&[0x53, 0xEF]);
        assert_eq!(Contents::of(&head), Contents::Other);
        head[..4].copy_from_slice(XFS_MAGIC);
        assert_eq!(Contents::of(&head), Contents::Other);
        head[4..8].copy_from_slice(&65536_u32.to_be_bytes());
        head[102..104].copy_from_slice(&512_u16.to_be_bytes());
        assert!(matches!(Contents::of(&head), Contents::FileSystem { size_bytes: u64::MAX, .. }));
    }
}
