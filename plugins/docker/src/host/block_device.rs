//! What loop and NBD devices have in common: a node in /dev, a folder in /sys/block, and a number for each use of them.

use super::{Device, DeviceKind};
use rustix::fs::{Mode, OFlags};
use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

/// A descriptor of a device: while it is open, the device stays.
pub struct DeviceHold {
    _device: OwnedFd,
}

impl DeviceHold {
    /// Keeps it.
    pub fn new(device: OwnedFd) -> DeviceHold {
        DeviceHold { _device: device }
    }
}

/// A buffer as O_DIRECT wants it.
#[repr(align(4096))]
pub struct AlignedBlock(pub [u8; 4096]);

/// Opens a device, to keep it: not one that carries something else by now, which would be kept in its place.
pub fn open(device: &Device) -> io::Result<OwnedFd> {
    let fd = rustix::fs::open(&device.path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    if is_attached(device) { Ok(fd) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Reads the first block past every cache.
pub fn read_block(device: &Device) -> io::Result<AlignedBlock> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
    let fd = rustix::fs::open(&device.path, flags, Mode::empty())?;
    if !is_attached(device) {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    let mut block = AlignedBlock([0; 4096]);
    rustix::io::pread(&fd, &mut block.0, 0)?;
    Ok(block)
}

/// Everything written to the device so far is on stable storage when this returns.
pub fn sync(device: &Device) -> io::Result<()> {
    File::open(&device.path)?.sync_all()
}

/// True while the device carries what it carried when its sequence was taken.
pub fn is_attached(device: &Device) -> bool {
    sequence(&device.path) == Some(device.sequence)
}

/// The device with this path, as it is now.
pub fn current(path: PathBuf) -> Option<Device> {
    sequence(&path).map(|sequence| Device { path, sequence })
}

/// Its size.
pub fn size_bytes(device: &Device) -> io::Result<u64> {
    let sectors: u64 = read_attribute(&device.path, "size")
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    Ok(sectors * 512)
}

/// Its number as mountinfo writes it: `7:3`.
pub fn major_minor(device: &Device) -> Option<String> {
    read_attribute(&device.path, "dev")
}

/// Which use of the device this is; none when it carries nothing. For a loop device the kernel counts (diskseq). It does
/// not for NBD, but makes the file `backend` anew with each connect, under a number of its own.
fn sequence(path: &Path) -> Option<u64> {
    match DeviceKind::of(path) {
        DeviceKind::Loop => {
            read_attribute(path, "loop/backing_file")?;
            read_attribute(path, "diskseq")?.parse().ok()
        }
        DeviceKind::Nbd => Some(fs::metadata(attribute(path, "backend")?).ok()?.ino()),
    }
}

/// What a file in the device's folder of sysfs says.
pub fn read_attribute(path: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(attribute(path, name)?).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

fn attribute(path: &Path, name: &str) -> Option<PathBuf> {
    Some(Path::new("/sys/block").join(path.file_name()?).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_which_kind() {
        for (path, kind) in [
            ("/dev/loop3", DeviceKind::Loop),
            ("/dev/nbd3", DeviceKind::Nbd),
            ("/dev/nbd12", DeviceKind::Nbd),
            ("/dev/loop0", DeviceKind::Loop),
        ] {
            assert_eq!(DeviceKind::of(Path::new(path)), kind, "{path}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_attached() {
        for path in ["/dev/nbd98765", "/dev/loop98765", "/dev", "/"] {
            assert!(!is_attached(&Device { path: path.into(), sequence: 0 }), "{path}");
            assert!(current(path.into()).is_none(), "{path}");
        }
    }
}
