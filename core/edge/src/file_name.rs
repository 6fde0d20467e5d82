//! Names of vDisks as names of files, and back: the vDisk `x` is the file `x.raw`, always and only.

use ovs_units::Name;
use std::ffi::{OsStr, OsString};

/// What every file that is a vDisk ends in.
const SUFFIX: &str = ".raw";

/// The longest file name that can be a vDisk: 128 characters and the suffix.
pub const FILE_NAME_LENGTH_MAX: u32 = 132;

/// What a file name can mean here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileName {
    /// `<name>.raw`, where the stem is a vDisk's name.
    Vdisk(Name),
    /// It ends in `.raw`, but no vDisk can have such a name.
    NoVdiskName,
    /// Any other file: the File Driver's, when there is one.
    Other,
}

impl FileName {
    /// Reads a name as the kernel hands it over: any bytes but NUL and `/`.
    pub fn parse(name: &OsStr) -> FileName {
        let Some(stem) = name.as_encoded_bytes().strip_suffix(SUFFIX.as_bytes()) else {
            return FileName::Other;
        };
        match std::str::from_utf8(stem).ok().and_then(|stem| Name::new(stem).ok()) {
            Some(name) => FileName::Vdisk(name),
            None => FileName::NoVdiskName,
        }
    }
}

/// The file that the vDisk of this name appears as.
pub fn file_name(name: &Name) -> OsString {
    OsString::from(format!("{name}{SUFFIX}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn check(bytes: &[u8], expected: FileName) {
        assert_eq!(
            FileName::parse(OsStr::from_bytes(bytes)),
            expected,
            "{:?}",
            bytes.escape_ascii().to_string()
        );
    }

    fn vdisk(name: &str) -> FileName {
        FileName::Vdisk(Name::new(name).unwrap())
    }

    #[test]
    fn only_raw_files_are_vdisks() {
        check(b"x.raw", vdisk("x"));
        check(b"x.raw.raw", vdisk("x.raw"));
        check(b"pg-data_1.2.raw", vdisk("pg-data_1.2"));
        check(b"x", FileName::Other);
        check(b"x.qcow2", FileName::Other);
        check(b"x.RAW", FileName::Other);
        check(b"raw", FileName::Other);
        check(b"\xff\xfe", FileName::Other);
    }

    #[test]
    fn hostile_stems_are_no_vdisk_names() {
        let too_long = [b"a".repeat(129).as_slice(), b".raw"].concat();
        for bad in [
            b".raw".as_slice(),
            b"..raw",
            b".x.raw",
            b"-x.raw",
            b"a b.raw",
            b"a\nb.raw",
            b"a@s.raw",
            b"\xff.raw",
            b"\xc3\xa9.raw",
            &too_long,
        ] {
            check(bad, FileName::NoVdiskName);
        }
    }

    #[test]
    fn every_vdisk_name_comes_back_from_its_file() {
        for name in ["x", "x.raw", "0", &"a".repeat(128)] {
            let name = Name::new(name).unwrap();
            let file = file_name(&name);
            assert!(file.len() <= FILE_NAME_LENGTH_MAX as usize);
            assert_eq!(FileName::parse(&file), FileName::Vdisk(name));
        }
    }
}
