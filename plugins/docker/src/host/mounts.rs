//! Mount tables, from /proc/<pid>/mountinfo (proc(5)): `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// A longer table is not read: nothing of ours makes one.
const TABLE_BYTES_MAX: u64 = 64 << 20;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `7:3`.
    pub major_minor: String,
    /// Where.
    pub target: PathBuf,
}

/// The mounts of this process's namespace, the later ones over the earlier.
pub fn own() -> io::Result<Vec<Mount>> {
    read(Path::new("/proc/self/mountinfo"))
}

fn read(path: &Path) -> io::Result<Vec<Mount>> {
    use io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(TABLE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(parse(&bytes))
}

/// The lines of a table that are mounts; other lines are passed over.
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ').skip(2);
            let major_minor = String::from_utf8(fields.next()?.to_vec()).ok()?;
            let _root = fields.next()?;
            let target = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
            major_minor.contains(':').then_some(Mount { major_minor, target })
        })
        .collect()
}

/// `\040` is a space; the kernel writes space, tab, newline and backslash so.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// True when the device is mounted anywhere but at `target` in this namespace. An error means that it is not known.
pub fn is_used_elsewhere(major_minor: &str, target: &Path) -> io::Result<bool> {
    if own()?.iter().any(|mount| mount.major_minor == major_minor && mount.target != target) {
        return Ok(true);
    }
    let mut seen = BTreeSet::from([fs::read_link("/proc/self/ns/mnt")?]);
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_process = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
        // A process that ends while it is looked at no longer uses anything.
        let Ok(namespace) = fs::read_link(path.join("ns/mnt")) else { continue };
        if !is_process || seen.contains(&namespace) {
            continue;
        }
        let Ok(mounts) = read(&path.join("mountinfo")) else { continue };
        if mounts.iter().any(|mount| mount.major_minor == major_minor) {
            return Ok(true);
        }
        // A process that was ending while it was read shows an empty table, which says nothing about its namespace.
        if !mounts.is_empty() {
            seen.insert(namespace);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table() {
        let table = b"36 35 7:3 / /var/lib/ovs-docker/mnt/a rw,relatime shared:1 - ext4 /dev/loop3 rw\n\
            37 35 0:45 /x /with\\040space\\134 rw - fuse f rw\n\
            broken\n40 41\n\n1 2 nonsense / /x\n";
        let mounts = parse(table);
        let expected = [("7:3", "/var/lib/ovs-docker/mnt/a"), ("0:45", "/with space\\")];
        let expected: Vec<Mount> = expected
            .iter()
            .map(|(number, target)| Mount {
                major_minor: (*number).to_owned(),
                target: PathBuf::from(target),
            })
            .collect();
        assert_eq!(mounts, expected);
    }

    #[test]
    fn any_bytes_are_a_table() {
        for table in [&b"\\"[..], b"1 2 3:4 / \\04", b"1 2 3:4 / \\999", b"\xff\xff 1 \xff:\xff / /", b"    "]
        {
            parse(table);
        }
    }

    #[test]
    fn this_process_has_mounts() {
        assert!(own().unwrap().iter().any(|mount| mount.target == Path::new("/proc")));
    }
}
