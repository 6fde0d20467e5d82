//! Mounts as the kernel lists them, and how to be rid of one.
//!
//! Works from `/proc/self/mountinfo` and umount(2) alone: never by a path lookup below a mount of ours, which would
//! wait for ourselves or for a dead predecessor.

use rustix::mount::{UnmountFlags, unmount};
use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// The file system name that our mounts carry (`mount | grep ^ovs`).
pub const SOURCE: &str = "ovs";

/// One line of mountinfo, as far as we care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Minor number of its device: the number of its connection under `/sys/fs/fuse/connections`.
    pub device_minor: u32,
    /// `fuse.ovs` for ours.
    pub kind: String,
    /// `ovs` for ours.
    pub source: OsString,
}

impl MountEntry {
    /// True for a mount that an ovsd-edge made.
    pub fn is_ours(&self) -> bool {
        (self.kind == "fuse" || self.kind.starts_with("fuse.")) && self.source == SOURCE
    }
}

/// Every mount that this process can see.
pub fn read() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// Our own mounts at or directly below `dir`, the last mounted first.
pub fn ours_below(dir: &Path) -> io::Result<Vec<MountEntry>> {
    let mut found: Vec<MountEntry> = read()?.into_iter().filter(MountEntry::is_ours).collect();
    found.retain(|entry| entry.mount_point.starts_with(dir));
    found.reverse();
    Ok(found)
}

/// Takes a mount out of the tree at once; what still uses it keeps it until it lets go.
pub fn detach(mount_point: &Path) -> io::Result<()> {
    unmount(mount_point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(io::Error::from)
}

/// Takes a mount out of the tree unless someone uses it (`EBUSY`).
pub fn unmount_if_idle(mount_point: &Path) -> io::Result<()> {
    unmount(mount_point, UnmountFlags::NOFOLLOW).map_err(io::Error::from)
}

/// proc_pid_mountinfo(5): `id parent major:minor root mount-point options [tags] - kind source super-options`.
pub fn parse(mountinfo: &[u8]) -> Vec<MountEntry> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    Some(MountEntry {
        mount_point: PathBuf::from(unescape(fields.get(4)?)),
        device_minor: text(fields.get(2)?)?.split_once(':')?.1.parse().ok()?,
        kind: text(fields.get(separator + 1)?)?,
        source: unescape(fields.get(separator + 2)?),
    })
}

/// Space, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal =
            tail.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                plain.push(
                    digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')),
                );
                rest = &tail[3..];
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
        41 22 0:35 / /r/mnt/ovs/default rw,nosuid,nodev,relatime shared:9 master:2 - fuse ovs rw,user_id=0\n\
        42 22 0:36 / /r/a\\040b\\134c rw - fuse.sshfs me@there:/ rw\n\
        nonsense\n\
        43 22 0:x / /r rw - fuse ovs rw\n";

    #[test]
    fn mountinfo_is_read() {
        let entries = parse(SAMPLE);
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[1].mount_point, Path::new("/r/mnt/ovs/default"));
        assert_eq!((entries[1].device_minor, entries[1].is_ours()), (35, true));
        assert_eq!(entries[2].mount_point, Path::new("/r/a b\\c"));
        assert!(!entries[0].is_ours() && !entries[2].is_ours());
    }

    #[test]
    fn escapes_at_the_end_are_not_read_past_it() {
        for (field, plain) in [("a\\", "a\\"), ("\\04", "\\04"), ("\\040x", " x"), ("\\09x", "\\09x")] {
            assert_eq!(unescape(field.as_bytes()), plain, "{field}");
        }
        // 0o777 does not fit a byte; the kernel never writes it, and it must not panic.
        assert_eq!(unescape(b"\\777x").len(), 2);
    }

    #[test]
    fn this_process_has_mounts() {
        assert!(!read().unwrap().is_empty());
    }
}
