//! Loop devices, by ioctl (linux/loop.h): one per vDisk.
//!
//! A device is made by LOOP_CONFIGURE in one step with direct I/O and AUTOCLEAR, so that it goes by itself when its
//! last user closes it: the plugin's own descriptor until it is mounted, then the mounts, in whatever namespace. A
//! plugin killed between attach and mount leaves nothing behind.
//!
//! Which device carries a vDisk is asked of the kernel by inode, not by name: paths change with renames, and after
//! ovsd-edge died the same path leads to another file system. Asking may block while ovsd-edge does not answer, so only
//! devices whose backing file lies below the mount directory are asked, and the caller has a time limit.
//!
//! Not here: partitions, offsets, read-only devices.

use super::{
    Attached, Device,
    block_device::{self, DeviceHold, read_attribute},
};
use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
    ioctl,
};
use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    path::{Path, PathBuf},
};

const LOOP_SET_CAPACITY: ioctl::Opcode = 0x4C07;
const LOOP_GET_STATUS64: ioctl::Opcode = 0x4C05;
const LOOP_CONFIGURE: ioctl::Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: ioctl::Opcode = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const LOOP_MAJOR: u32 = 7;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

/// LOOP_CTL_GET_FREE answers with its return value.
struct GetFree;

// SAFETY: the call takes no argument and touches no memory of ours.
unsafe impl ioctl::Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> ioctl::Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: ioctl::IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| Errno::INVAL)
    }
}

/// The device that carries `file`, or a new one with blocks of `block_size_bytes`.
///
/// `below`: the directory under which files of vDisks lie. Fails rather than attach a file a second time.
pub fn attach(
    file: &Path,
    block_size_bytes: u32,
    label: &str,
    known: Option<&Device>,
    below: &Path,
) -> io::Result<Attached<DeviceHold>> {
    let backing = rustix::fs::open(file, OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT, Mode::empty())?;
    let identity = rustix::fs::fstat(&backing)?;
    if FileType::from_raw_mode(identity.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if let Some(found) = find(identity.st_dev, identity.st_ino, known, below)? {
        return Ok(found);
    }
    let mut last = Errno::BUSY;
    // Another program may take the device between the question and the attach: ask again.
    for _ in 0..64 {
        match attach_new(&backing, block_size_bytes, label) {
            Ok(attached) => return Ok(attached),
            Err(errno @ (Errno::BUSY | Errno::NXIO)) => last = errno,
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(last.into())
}

/// The device that carries `file` already. The file is not opened: nobody who has its vDisk otherwise is in the way.
pub fn find_attached(
    file: &Path,
    known: Option<&Device>,
    below: &Path,
) -> io::Result<Option<Attached<DeviceHold>>> {
    let identity = rustix::fs::stat(file)?;
    find(identity.st_dev, identity.st_ino, known, below)
}

fn attach_new(
    backing: &OwnedFd,
    block_size_bytes: u32,
    label: &str,
) -> rustix::io::Result<Attached<DeviceHold>> {
    let control = rustix::fs::open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: LOOP_CTL_GET_FREE takes no pointer.
    let number = unsafe { ioctl::ioctl(&control, GetFree) }?;
    let path = node(number)?;
    let device = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut file_name = [0; 64];
    let length = label.len().min(file_name.len() - 1);
    file_name[..length].copy_from_slice(&label.as_bytes()[..length]);
    let config = LoopConfig {
        fd: u32::try_from(backing.as_raw_fd()).map_err(|_| Errno::BADF)?,
        block_size: block_size_bytes,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, whose layout LoopConfig has.
    unsafe { ioctl::ioctl(&device, ioctl::Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }?;
    let device_now = block_device::current(path).ok_or(Errno::NXIO)?;
    Ok(Attached { device: device_now, was_there: false, hold: DeviceHold::new(device) })
}

/// `/dev/loopN`, made if nothing else makes it (a container's /dev).
fn node(number: u32) -> rustix::io::Result<PathBuf> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    match fs::metadata(&path) {
        Ok(metadata) if metadata.file_type().is_block_device() => {}
        Ok(_) => return Err(Errno::NOTBLK),
        Err(_) => {
            let device = rustix::fs::makedev(LOOP_MAJOR, number);
            match rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                FileType::BlockDevice,
                Mode::from_raw_mode(0o660),
                device,
            ) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(path)
}

/// The living device over this inode, held. LOOP_GET_STATUS64 numbers file systems as fstat(2) does.
///
/// A device whose file system died has no inode any more and is passed over.
fn find(
    file_dev: u64,
    file_ino: u64,
    known: Option<&Device>,
    below: &Path,
) -> io::Result<Option<Attached<DeviceHold>>> {
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| is_loop(name)) else { continue };
        let path = PathBuf::from(format!("/dev/{name}"));
        let Some(backing_file) = backing_file(&path) else { continue };
        let is_known = known.is_some_and(|known| known.path == path);
        if !is_known && !backing_file.starts_with(below) {
            continue;
        }
        // Opening it first makes sure that it does not go while it is looked at.
        let Ok(device) = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else {
            continue;
        };
        let Ok(info) = status(&device) else { continue };
        if (info.device, info.inode) != (file_dev, file_ino) {
            continue;
        }
        if info.offset != 0 || info.sizelimit != 0 {
            let text = format!("{} carries a part of it, made by another program", path.display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        let Some(found) = block_device::current(path) else { continue };
        return Ok(Some(Attached { device: found, was_there: true, hold: DeviceHold::new(device) }));
    }
    Ok(None)
}

fn status(device: &OwnedFd) -> rustix::io::Result<LoopInfo> {
    // SAFETY: LOOP_GET_STATUS64 writes a `struct loop_info64`, whose layout LoopInfo has.
    unsafe { ioctl::ioctl(device, ioctl::Getter::<LOOP_GET_STATUS64, LoopInfo>::new()) }
}

/// The number of the file system below a device; an error once that died.
pub fn file_system_below(device: &Device) -> io::Result<u64> {
    let fd = rustix::fs::open(&device.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    if !block_device::is_attached(device) {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    Ok(status(&fd)?.device)
}

/// The device takes its file's size.
pub fn take_file_size(device: &Device) -> io::Result<()> {
    let fd = rustix::fs::open(&device.path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    if !block_device::is_attached(device) {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    // SAFETY: LOOP_SET_CAPACITY takes no pointer.
    Ok(unsafe { ioctl::ioctl(fd.as_fd(), ioctl::NoArg::<LOOP_SET_CAPACITY>::new()) }?)
}

fn backing_file(path: &Path) -> Option<PathBuf> {
    read_attribute(path, "loop/backing_file").map(PathBuf::from)
}

fn is_loop(name: &str) -> bool {
    name.strip_prefix("loop")
        .is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()) && !number.is_empty())
}
