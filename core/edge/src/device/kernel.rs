//! What is asked of the kernel: its NBD family (Linux, include/uapi/linux/nbd-netlink.h and drivers/block/nbd.c), and
//! what it shows in `/sys/block`.
//!
//! All of it may block in the kernel; the callers are on threads that may.

use super::generic_netlink::{Attributes, Family, Socket, find_u32};
use ovs_nbd::proto::numbers::export_flag;
use ovs_units::VdiskId;
use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    io::Errno,
    thread::CapabilitySet,
};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;

const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const CLIENT_FLAGS: u16 = 6;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

/// `NBD_CFLAG_DISCONNECT_ON_CLOSE`.
const DISCONNECT_ON_CLOSE: u64 = 1 << 1;

/// The server's flags that concern the kernel.
const FLAGS_PASSED_ON: u16 = export_flag::HAS_FLAGS
    | export_flag::READ_ONLY
    | export_flag::SEND_FLUSH
    | export_flag::SEND_FUA
    | export_flag::SEND_TRIM
    | export_flag::SEND_WRITE_ZEROES;

/// How soon a request that was in flight when its connection died is sent on the next one. The kernel looks at requests
/// of this age and not before; one that is merely slow costs a line in its log.
const REQUEST_AGE_MS: u64 = 5000;

/// A device that carries a vDisk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelDevice {
    /// 3 of `/dev/nbd3`.
    pub index: u32,
    /// Which vDisk, in the kernel's memory: the backend identifier of the connection.
    pub vdisk: VdiskId,
    /// Which use of the index: sysfs makes the file `backend` anew with each connect, under a number of its own.
    pub sequence: u64,
}

/// A device to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewDevice {
    /// Whose contents.
    pub vdisk: VdiskId,
    /// A multiple of the block size.
    pub size_bytes: u64,
    /// What the file system on it can bear.
    pub block_size_bytes: u32,
    /// As the server gave them.
    pub flags: u16,
    /// How long I/O waits for a new connection.
    pub patience: Duration,
}

/// Why there can be no devices here, for people.
pub fn unavailable() -> Option<String> {
    let family = Socket::open().and_then(|mut socket| socket.family("nbd"));
    match family {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(
            "the kernel has no NBD devices (modprobe nbd; they exist only in the first network namespace)"
                .to_owned(),
        ),
        Err(error) => Some(format!("generic netlink: {error}")),
        Ok(family) if family.attribute_max < BACKEND_IDENTIFIER.into() => {
            Some("the kernel's NBD is older than Linux 5.14 and cannot name what it carries".to_owned())
        }
        Ok(_) => {
            let may = rustix::thread::capabilities(None)
                .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
            (!may).then(|| "this process lacks CAP_SYS_ADMIN".to_owned())
        }
    }
}

fn call(command: u8, attributes: &Attributes) -> io::Result<Vec<u8>> {
    let mut socket = Socket::open()?;
    let family: Family = socket.family("nbd")?;
    socket.call(family, command, attributes)
}

/// Makes a device that speaks on `socket`; the kernel keeps that open for itself.
pub fn connect(socket: impl AsFd, new: &NewDevice) -> io::Result<KernelDevice> {
    let attributes = Attributes::default()
        .u64(SIZE_BYTES, new.size_bytes)
        .u64(BLOCK_SIZE_BYTES, new.block_size_bytes.into())
        // None: a vDisk may stall for as long as it is full, and a slow answer is no reason to hang up.
        .u64(TIMEOUT, 0)
        .u64(DEAD_CONN_TIMEOUT, new.patience.as_secs())
        .u64(SERVER_FLAGS, (new.flags & FLAGS_PASSED_ON).into())
        .text(BACKEND_IDENTIFIER, &new.vdisk.to_string())
        .nested(SOCKETS, &sockets(socket)?);
    let answer = call(CONNECT, &attributes)?;
    let index = find_u32(&answer, INDEX)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a connected device without a number"))?;
    if let Err(error) = fs::write(block(index).join("queue/io_timeout"), REQUEST_AGE_MS.to_string()) {
        tracing::warn!(%error, "requests in flight when ovsd dies will be sent again after 30 s");
    }
    let made = at(index).filter(|made| made.vdisk == new.vdisk);
    made.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("nbd{index} is not in /sys/block")))
}

fn sockets(socket: impl AsFd) -> io::Result<Attributes> {
    let fd = u32::try_from(socket.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    Ok(Attributes::default().nested(SOCK_ITEM, &Attributes::default().u32(SOCK_FD, fd)))
}

/// The device that is meant, and no other that has its index by now: the kernel compares the identifier.
fn named(device: &KernelDevice) -> Attributes {
    Attributes::default().u32(INDEX, device.index).text(BACKEND_IDENTIFIER, &device.vdisk.to_string())
}

/// Gives the device a connection in the place of its dead one. One that the kernel takes for alive stays, silently.
pub fn replace_socket(device: &KernelDevice, socket: impl AsFd) -> io::Result<()> {
    call(RECONFIGURE, &named(device).nested(SOCKETS, &sockets(socket)?)).map(|_| ())
}

/// The device has this size from now on.
pub fn resize(device: &KernelDevice, size_bytes: u64) -> io::Result<()> {
    call(RECONFIGURE, &named(device).u64(SIZE_BYTES, size_bytes)).map(|_| ())
}

/// From now on the device goes with its last user: who opens it, or has it mounted, in whatever namespace.
pub fn leave_to_users(device: &KernelDevice) -> io::Result<()> {
    call(RECONFIGURE, &named(device).u64(CLIENT_FLAGS, DISCONNECT_ON_CLOSE)).map(|_| ())
}

/// Ends the device; whoever uses it gets errors.
pub fn disconnect(device: &KernelDevice) -> io::Result<()> {
    if !is_there(device) {
        return Ok(());
    }
    call(DISCONNECT, &Attributes::default().u32(INDEX, device.index)).map(|_| ())
}

fn block(index: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/nbd{index}"))
}

/// The device with this index, if it carries a vDisk.
pub fn at(index: u32) -> Option<KernelDevice> {
    let backend = block(index).join("backend");
    let sequence = fs::metadata(&backend).ok()?.ino();
    let vdisk = fs::read_to_string(&backend).ok()?.trim_end().parse().ok()?;
    // Not another one by now.
    (fs::metadata(&backend).ok()?.ino() == sequence).then_some(KernelDevice { index, vdisk, sequence })
}

/// True while the device is what it was; also when it was disconnected and is still open or mounted.
pub fn is_there(device: &KernelDevice) -> bool {
    fs::metadata(block(device.index).join("backend")).is_ok_and(|backend| backend.ino() == device.sequence)
}

/// Every device of the kernel that carries a vDisk, of whatever ovsd.
pub fn list() -> Vec<KernelDevice> {
    let names = fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let indexes = names.filter_map(|name| name.to_str()?.strip_prefix("nbd")?.parse().ok());
    let mut devices: Vec<KernelDevice> = indexes.filter_map(at).collect();
    devices.sort_by_key(|device| device.index);
    devices
}

/// Its size now.
pub fn size_bytes(device: &KernelDevice) -> Option<u64> {
    let sectors: u64 = fs::read_to_string(block(device.index).join("size")).ok()?.trim_end().parse().ok()?;
    sectors.checked_mul(512)
}

/// `/dev/nbd3`.
pub fn path(device: &KernelDevice) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{}", device.index))
}

/// Opens it; its node is made if nothing else makes it (a container's /dev).
pub fn open(device: &KernelDevice) -> io::Result<File> {
    let path = path(device);
    if !fs::metadata(&path).is_ok_and(|node| node.file_type().is_block_device()) {
        make_node(device, &path)?;
    }
    let file = File::open(&path)?;
    // A device that had gone meanwhile would now be kept, empty, by this very descriptor.
    if is_there(device) { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn make_node(device: &KernelDevice, path: &Path) -> io::Result<()> {
    let number = fs::read_to_string(block(device.index).join("dev"))?;
    let (major, minor) = number.trim_end().split_once(':').ok_or(io::ErrorKind::InvalidData)?;
    let parse = |text: &str| text.parse::<u32>().map_err(io::Error::other);
    let number = makedev(parse(major)?, parse(minor)?);
    match mknodat(CWD, path, FileType::BlockDevice, Mode::from_raw_mode(0o660), number) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
