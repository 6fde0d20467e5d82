//! What is asked of the kernel: its NBD family (Linux, include/uapi/linux/nbd-netlink.h and drivers/block/nbd.c), and
//! what it shows in `/sys/block`.
//!
//! All of it may block in the kernel; the callers are on threads that may.

use super::{
    generic_netlink::{Attributes, Family, Socket, find_u32},
    locked,
};
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
        fd::{AsRawFd, BorrowedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::Mutex,
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

/// Held while an index is taken or named alone. The kernel compares no identifier in DISCONNECT, and gives an index that is
/// free to the next who connects: this way never to another device of ours. A program that does the same beside us can
/// still come between the last look and the message.
static INDEXES: Mutex<()> = Mutex::new(());

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

fn family() -> io::Result<(Socket, Family)> {
    let mut socket = Socket::open()?;
    let family = socket.family("nbd")?;
    Ok((socket, family))
}

fn reconfigure(attributes: &Attributes) -> io::Result<()> {
    let (mut socket, family) = family()?;
    socket.call(family, RECONFIGURE, attributes).map(drop)
}

/// Makes a device that speaks on `socket`; the kernel keeps that open for itself. An error leaves none.
pub fn connect(socket: BorrowedFd<'_>, new: &NewDevice) -> io::Result<KernelDevice> {
    let attributes = Attributes::default()
        .u64(SIZE_BYTES, new.size_bytes)
        .u64(BLOCK_SIZE_BYTES, new.block_size_bytes.into())
        // None: a vDisk may stall for as long as it is full, and a slow answer is no reason to hang up.
        .u64(TIMEOUT, 0)
        .u64(DEAD_CONN_TIMEOUT, new.patience.as_secs())
        .u64(SERVER_FLAGS, (new.flags & FLAGS_PASSED_ON).into())
        .text(BACKEND_IDENTIFIER, &new.vdisk.to_string())
        .nested(SOCKETS, &sockets(socket)?);
    let (mut netlink, family) = family()?;
    let _indexes = locked(&INDEXES);
    let answer = netlink.call(family, CONNECT, &attributes)?;
    let told = find_u32(&answer, INDEX);
    let Some(made) = told.and_then(at).filter(|made| made.vdisk == new.vdisk) else {
        for index in made_in_vain(told, &list(), new.vdisk) {
            netlink.call(family, DISCONNECT, &Attributes::default().u32(INDEX, index))?;
        }
        let what = format!("a device was made ({told:?}) that is not in /sys/block");
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    };
    if let Err(error) = fs::write(block(made.index).join("queue/io_timeout"), REQUEST_AGE_MS.to_string()) {
        tracing::warn!(%error, "requests in flight when ovsd dies will be sent again after 30 s");
    }
    Ok(made)
}

/// What to disconnect after a connect whose device is not seen where it was told to be, or that told nothing. The vDisk has
/// no other device that is connected.
fn made_in_vain(told: Option<u32>, seen: &[KernelDevice], vdisk: VdiskId) -> Vec<u32> {
    let of_vdisk = seen.iter().filter(|device| device.vdisk == vdisk).map(|device| device.index);
    match told {
        None => of_vdisk.collect(),
        // Another vDisk's by now.
        Some(index) if seen.iter().any(|device| device.index == index && device.vdisk != vdisk) => Vec::new(),
        Some(index) => vec![index],
    }
}

/// The kernel takes the number, not the descriptor: it must be open until the message is answered.
fn sockets(socket: BorrowedFd<'_>) -> io::Result<Attributes> {
    let fd = u32::try_from(socket.as_raw_fd()).map_err(io::Error::other)?;
    Ok(Attributes::default().nested(SOCK_ITEM, &Attributes::default().u32(SOCK_FD, fd)))
}

/// The device that is meant, and no other that has its index by now: the kernel compares the identifier.
fn named(device: &KernelDevice) -> Attributes {
    Attributes::default().u32(INDEX, device.index).text(BACKEND_IDENTIFIER, &device.vdisk.to_string())
}

/// Gives the device a connection in the place of its dead one. One that the kernel takes for alive stays, silently; so the
/// same socket may be given again, and is taken once: where it was taken, nothing is dead unless it hung up.
pub fn replace_socket(device: &KernelDevice, socket: BorrowedFd<'_>) -> io::Result<()> {
    reconfigure(&named(device).nested(SOCKETS, &sockets(socket)?))
}

/// The device has this size from now on.
pub fn resize(device: &KernelDevice, size_bytes: u64) -> io::Result<()> {
    reconfigure(&named(device).u64(SIZE_BYTES, size_bytes))
}

/// From now on the device goes with its last user: who opens it, or has it mounted, in whatever namespace.
pub fn leave_to_users(device: &KernelDevice) -> io::Result<()> {
    reconfigure(&named(device).u64(CLIENT_FLAGS, DISCONNECT_ON_CLOSE))
}

/// Ends the device; whoever uses it gets errors.
pub fn disconnect(device: &KernelDevice) -> io::Result<()> {
    let (mut netlink, family) = family()?;
    let _indexes = locked(&INDEXES);
    // The last thing before the message, which has room for no more than the index.
    if !is_there(device) {
        return Ok(());
    }
    netlink.call(family, DISCONNECT, &Attributes::default().u32(INDEX, device.index)).map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_made_in_vain_is_found_and_no_other() {
        let vdisk = |n| VdiskId(uuid::Uuid::from_u128(n));
        let device = |index, n| KernelDevice { index, vdisk: vdisk(n), sequence: 7 };
        let check = |told, seen: &[KernelDevice], expected: &[u32]| {
            assert_eq!(made_in_vain(told, seen, vdisk(1)), expected, "{told:?} {seen:?}");
        };
        // Nothing is seen where there is no sysfs.
        check(Some(3), &[], &[3]);
        check(Some(3), &[device(0, 2)], &[3]);
        check(Some(3), &[device(3, 2)], &[]);
        check(Some(3), &[device(3, 2), device(4, 1)], &[]);
        check(None, &[], &[]);
        check(None, &[device(0, 2), device(1, 1)], &[1]);
    }
}
