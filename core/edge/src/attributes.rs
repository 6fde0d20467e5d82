//! Who owns a file and what stat(2) says of it.
//!
//! Owner, group and mode are kept as labels of the vDisk (`fuse.uid`, `fuse.gid`, `fuse.mode`), so that they outlive
//! this process and are the same on every host. Times are this process's own: a vDisk keeps none.

use fuser::{FileAttr, FileType, INodeNo};
use ovs_units::{ByteCount, CLUSTER_SIZE_BYTES};
use std::{collections::BTreeMap, time::SystemTime};

const LABEL_UID: &str = "fuse.uid";
const LABEL_GID: &str = "fuse.gid";
const LABEL_MODE: &str = "fuse.mode";

/// The permission bits of a mode, with set-uid, set-gid and sticky.
const MODE_MASK: u32 = 0o7777;

/// stat(2) counts blocks of 512 bytes, whatever the block size.
const STAT_BLOCK_BYTES: u64 = 512;

/// Owner, group and mode of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Permission bits only.
    pub mode: u32,
}

impl Ownership {
    /// What a vDisk has that was not made through a file: root's alone.
    pub const DEFAULT: Ownership = Ownership { uid: 0, gid: 0, mode: 0o600 };

    /// What the labels say; a label that is missing or makes no sense counts as the default's.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Ownership {
        let number = |key: &str| labels.get(key).and_then(|text| text.parse::<u32>().ok());
        let mode = labels.get(LABEL_MODE).and_then(|text| u32::from_str_radix(text, 8).ok());
        Ownership {
            uid: number(LABEL_UID).unwrap_or(Self::DEFAULT.uid),
            gid: number(LABEL_GID).unwrap_or(Self::DEFAULT.gid),
            mode: mode.filter(|mode| mode & !MODE_MASK == 0).unwrap_or(Self::DEFAULT.mode),
        }
    }

    /// The labels that say so; a vDisk's others stay as they are.
    pub fn labels(self) -> [(String, String); 3] {
        [
            (LABEL_UID.to_owned(), self.uid.to_string()),
            (LABEL_GID.to_owned(), self.gid.to_string()),
            (LABEL_MODE.to_owned(), format!("{:04o}", self.mode)),
        ]
    }

    /// After chmod(2) and chown(2); the kernel has checked who may.
    #[must_use]
    pub fn changed(self, uid: Option<u32>, gid: Option<u32>, mode: Option<u32>) -> Ownership {
        Ownership {
            uid: uid.unwrap_or(self.uid),
            gid: gid.unwrap_or(self.gid),
            mode: mode.map_or(self.mode, |mode| mode & MODE_MASK),
        }
    }
}

/// The times of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Last read, as far as someone set it: reading does not change it (as with `noatime`).
    pub accessed: SystemTime,
    /// Last write or resize.
    pub modified: SystemTime,
    /// Last change of anything.
    pub changed: SystemTime,
}

impl Times {
    /// All three the same.
    pub fn all(time: SystemTime) -> Times {
        Times { accessed: time, modified: time, changed: time }
    }
}

/// What stat(2) says of a vDisk's file.
pub fn file(inode: u64, size: ByteCount, allocated: ByteCount, owner: Ownership, times: Times) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode),
        size: size.0,
        blocks: allocated.0.div_ceil(STAT_BLOCK_BYTES),
        kind: FileType::RegularFile,
        nlink: 1,
        ..attr(owner, times)
    }
}

/// What stat(2) says of the root directory.
pub fn directory(inode: u64, owner: Ownership, times: Times) -> FileAttr {
    FileAttr { ino: INodeNo(inode), kind: FileType::Directory, nlink: 2, ..attr(owner, times) }
}

fn attr(owner: Ownership, times: Times) -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: times.accessed,
        mtime: times.modified,
        ctime: times.changed,
        crtime: times.changed,
        kind: FileType::RegularFile,
        perm: (owner.mode & MODE_MASK) as u16,
        nlink: 1,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: CLUSTER_SIZE_BYTES as u32,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn ownership_round_trips_through_labels() {
        let mut kept = labels(&[("owner", "alice")]);
        let owner = Ownership { uid: 64055, gid: 110, mode: 0o640 };
        kept.extend(owner.labels());
        assert_eq!(kept["fuse.mode"], "0640");
        assert_eq!(kept["owner"], "alice");
        assert_eq!(Ownership::from_labels(&kept), owner);
    }

    #[test]
    fn senseless_labels_count_as_absent() {
        for bad in ["", "-1", "x", "99999999999", "0o600", "100600", "888"] {
            let kept = labels(&[("fuse.uid", "x"), ("fuse.mode", bad)]);
            assert_eq!(Ownership::from_labels(&kept), Ownership::DEFAULT, "{bad:?}");
        }
        assert_eq!(Ownership::from_labels(&BTreeMap::new()), Ownership::DEFAULT);
    }

    #[test]
    fn changes_keep_what_they_do_not_name() {
        let owner = Ownership { uid: 1, gid: 2, mode: 0o600 };
        assert_eq!(owner.changed(None, None, None), owner);
        assert_eq!(owner.changed(Some(7), None, Some(0o100_644)), Ownership { uid: 7, gid: 2, mode: 0o644 });
    }

    #[test]
    fn blocks_are_of_512_bytes_and_count_what_is_allocated() {
        let times = Times::all(SystemTime::UNIX_EPOCH);
        let attr = file(9, ByteCount(1001), ByteCount(4096), Ownership::DEFAULT, times);
        assert_eq!((attr.size, attr.blocks, attr.perm), (1001, 8, 0o600));
        assert_eq!(file(9, ByteCount(1001), ByteCount(0), Ownership::DEFAULT, times).blocks, 0);
    }
}
