//! The real host: devices over ovsd-edge, mount(2), mkfs and its kin.
//!
//! Calls that may block in the kernel while ovsd or ovsd-edge is away run on threads of their own and are waited for
//! without a limit: cutting them short would leave it unknown whether they happened. The driver runs every operation
//! as a task that holds its volume's lock, and only the answer to Docker has a time limit. Questions about health,
//! whose answer may be "unknown", have one.

use super::{
    Attached, Contents, Device, DeviceChoice, DeviceKind, FormatPlan, Health, Host, HostError, Unmount,
    block_device,
    block_device::DeviceHold,
    filesystem, loop_device, mounts, nbd_device,
    nbd_device::{Found, NbdDevices},
    superblock,
};
use crate::{
    filesystem_options::MountOptions,
    options::{Fstype, RootDirectory},
};
use ovs_units::{VdiskId, format_size};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::UnmountFlags,
};
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// How long a vDisk's file may take to appear, or to have its new size.
const FILE_TIMEOUT: Duration = Duration::from_secs(15);
const FILE_POLL: Duration = Duration::from_millis(100);
/// How long a device may take to answer before nothing can be said about it.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a device may take to go after its last unmount.
const DEVICE_GONE_TIMEOUT: Duration = Duration::from_secs(2);
const DEVICE_GONE_POLL: Duration = Duration::from_millis(20);
/// `FUSE_SUPER_MAGIC`, linux/magic.h.
const FUSE_MAGIC: i64 = 0x6573_5546;

/// This machine.
pub struct LinuxHost {
    files_below: PathBuf,
    nbd: NbdDevices,
    choice: DeviceChoice,
    /// Devices that have been asked for their health and have not answered: each question occupies a thread.
    asked: Arc<Mutex<HashSet<PathBuf>>>,
}

impl LinuxHost {
    /// `files_below`: the directory under which ovsd-edge mounts the vPools. `edge_socket`: where it makes devices.
    pub fn new(files_below: PathBuf, edge_socket: &Path, choice: DeviceChoice) -> LinuxHost {
        LinuxHost { files_below, nbd: NbdDevices::new(edge_socket), choice, asked: Arc::default() }
    }

    async fn attach_nbd(
        &self,
        vdisk: VdiskId,
        contents: &Contents,
    ) -> Result<Attached<DeviceHold>, HostError> {
        let attached = self.nbd.attach(vdisk, contents.block_size_bytes()).await;
        attached.map_err(|error| nbd_device::failed(&error))
    }

    async fn attach_loop(
        &self,
        file: &Path,
        vdisk: VdiskId,
        known: Option<&Device>,
        contents: &Contents,
    ) -> Result<Attached<DeviceHold>, HostError> {
        let (file, known, below) = (file.to_owned(), known.cloned(), self.files_below.clone());
        let block_size_bytes = contents.block_size_bytes();
        let label = format!("ovs-docker:{vdisk}");
        blocking(move || {
            loop_device::attach(&file, block_size_bytes, &label, known.as_ref(), &below)
                .map_err(failed(format!("a loop device for {}", file.display())))
        })
        .await?
    }
}

/// Runs what may block on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, HostError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| HostError::Failed(format!("a helper thread: {error}")))
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> HostError {
    move |error| HostError::Failed(format!("{what}: {error}"))
}

/// The file's head, once it is there with its size.
fn read_head(file: &Path, size_bytes: u64) -> io::Result<Result<[u8; superblock::HEAD_BYTES], u64>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
    let fd = rustix::fs::open(file, flags, Mode::empty())?;
    // Below an ovsd-edge that is not mounted lies the host's own disk: nothing there is a vDisk.
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_cast,
        reason = "f_type differs between architectures"
    )]
    let magic = rustix::fs::fstatfs(&fd)?.f_type as i64;
    if magic != FUSE_MAGIC {
        return Err(io::Error::new(io::ErrorKind::NotFound, "not on a FUSE file system"));
    }
    let have = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
    if have != size_bytes {
        return Ok(Err(have));
    }
    let mut head = block_device::AlignedBlock([0; superblock::HEAD_BYTES]);
    let mut filled = 0;
    while filled < head.0.len() {
        match rustix::io::pread(&fd, &mut head.0[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(Ok(head.0))
}

impl Host for LinuxHost {
    type Hold = DeviceHold;

    async fn inspect(&self, file: &Path, size_bytes: u64) -> Result<Contents, HostError> {
        let deadline = Instant::now() + FILE_TIMEOUT;
        loop {
            let path = file.to_owned();
            let problem = match blocking(move || read_head(&path, size_bytes)).await? {
                Ok(Ok(head)) => return Ok(Contents::of(&head)),
                Ok(Err(have)) => format!("has {} and not {}", format_size(have), format_size(size_bytes)),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                let file = file.display();
                return Err(HostError::Failed(format!("{file}: {problem}; is ovsd-edge running?")));
            }
            sleep(FILE_POLL).await;
        }
    }

    async fn attach(
        &self,
        file: &Path,
        vdisk: VdiskId,
        known: Option<&Device>,
        contents: &Contents,
    ) -> Result<Attached<DeviceHold>, HostError> {
        // What is there stays what it is until its last user has gone.
        let found = self.nbd.find(vdisk).await;
        if found == Found::There {
            return self.attach_nbd(vdisk, contents).await;
        }
        let (path, same, below) = (file.to_owned(), known.cloned(), self.files_below.clone());
        let looped = blocking(move || loop_device::find_attached(&path, same.as_ref(), &below)).await?;
        if let Some(attached) = looped.map_err(failed(file.display()))? {
            return Ok(attached);
        }
        match (self.choice, found) {
            (DeviceChoice::Nbd, _) => self.attach_nbd(vdisk, contents).await,
            (DeviceChoice::Auto, Found::Possible) => {
                match self.nbd.attach(vdisk, contents.block_size_bytes()).await {
                    Err(error) if nbd_device::is_the_kernels(&error) => {
                        tracing::warn!(%vdisk, %error, "a loop device is used instead of the kernel's NBD");
                        self.attach_loop(file, vdisk, known, contents).await
                    }
                    attached => attached.map_err(|error| nbd_device::failed(&error)),
                }
            }
            (DeviceChoice::Auto | DeviceChoice::Loop, found) => {
                tracing::debug!(%vdisk, ?found, "a loop device");
                self.attach_loop(file, vdisk, known, contents).await
            }
        }
    }

    async fn is_attached(&self, device: &Device) -> bool {
        block_device::is_attached(device)
    }

    async fn health(&self, device: &Device, file: &Path) -> Health {
        if !lock(&self.asked).insert(device.path.clone()) {
            return Health::Unknown;
        }
        let (device, file, asked) = (device.clone(), file.to_owned(), self.asked.clone());
        let asking = device.clone();
        let question = blocking(move || {
            let reads = block_device::read_block(&asking).is_ok();
            let health = match DeviceKind::of(&asking.path) {
                DeviceKind::Loop if !reads => ask_health(&asking, &file),
                _ => Health::Alive,
            };
            lock(&asked).remove(&asking.path);
            (reads, health)
        });
        let answer = timeout(HEALTH_TIMEOUT, question).await.ok().and_then(Result::ok);
        match DeviceKind::of(&device.path) {
            DeviceKind::Loop => answer.map_or(Health::Unknown, |(_, health)| health),
            DeviceKind::Nbd => {
                let reads = answer.map(|(reads, _)| reads);
                // Asked only where it matters.
                let is_kept = if reads == Some(false) { self.nbd.is_kept(&device).await } else { None };
                nbd_device::health(reads, is_kept)
            }
        }
    }

    async fn format(&self, device: &Device, plan: &FormatPlan) -> Result<(), HostError> {
        filesystem::format(device, plan).await?;
        let device = device.clone();
        blocking(move || block_device::sync(&device)).await?.map_err(failed("syncing the new file system"))
    }

    async fn check(&self, device: &Device, fstype: Fstype) -> Result<(), HostError> {
        filesystem::check(device, fstype).await
    }

    async fn mount(
        &self,
        device: &Device,
        target: &Path,
        fstype: Fstype,
        options: &MountOptions,
    ) -> Result<(), HostError> {
        let (device, target, options) = (device.clone(), target.to_owned(), options.clone());
        blocking(move || filesystem::mount(&device, &target, fstype, &options)).await?
    }

    async fn prepare(
        &self,
        target: &Path,
        directory: &Path,
        root: &RootDirectory,
        make: bool,
    ) -> Result<(), HostError> {
        let (target, directory, root) = (target.to_owned(), directory.to_owned(), *root);
        let what = format!("the volume's directory {}", directory.display());
        blocking(move || filesystem::prepare(&target, &directory, &root, make)).await?.map_err(failed(what))
    }

    async fn unmount(&self, target: &Path, how: Unmount) -> Result<(), HostError> {
        let flags = match how {
            Unmount::Flush => UnmountFlags::NOFOLLOW,
            Unmount::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        while let Some(device) = self.mounted(target).await? {
            let path = target.to_owned();
            match blocking(move || rustix::mount::unmount(&path, flags)).await? {
                Ok(()) => {}
                Err(Errno::BUSY) => {
                    return Err(HostError::Busy(format!("{} has open files", target.display())));
                }
                Err(errno) => {
                    return Err(HostError::Failed(format!("unmounting {}: {errno}", target.display())));
                }
            }
            let deadline = Instant::now() + DEVICE_GONE_TIMEOUT;
            while how == Unmount::Flush && block_device::is_attached(&device) && Instant::now() < deadline {
                sleep(DEVICE_GONE_POLL).await;
            }
        }
        match fs::remove_dir(target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(target = %target.display(), %error, "mount point left");
            }
            _ => {}
        }
        Ok(())
    }

    async fn mounted(&self, target: &Path) -> Result<Option<Device>, HostError> {
        let mounts = mounts::own().map_err(failed("/proc/self/mountinfo"))?;
        let Some(mount) = mounts.iter().rev().find(|mount| mount.target == target) else { return Ok(None) };
        let link = format!("/sys/dev/block/{}", mount.major_minor);
        let device = fs::read_link(&link).map_err(failed(&link))?;
        let name = device.file_name().unwrap_or_default();
        let path = Path::new("/dev").join(name);
        let device = block_device::current(path.clone());
        device.map(Some).ok_or_else(|| HostError::Failed(format!("{} has no number", path.display())))
    }

    async fn mounts_below(&self, directory: &Path) -> Result<Vec<PathBuf>, HostError> {
        let mounts = mounts::own().map_err(failed("/proc/self/mountinfo"))?;
        let below = mounts.into_iter().map(|mount| mount.target);
        let mut below: Vec<PathBuf> = below.filter(|target| target.parent() == Some(directory)).collect();
        below.sort();
        below.dedup();
        Ok(below)
    }

    async fn is_used_elsewhere(&self, device: &Device, target: &Path) -> bool {
        let Some(major_minor) = block_device::major_minor(device) else { return false };
        let target = target.to_owned();
        !matches!(blocking(move || mounts::is_used_elsewhere(&major_minor, &target)).await, Ok(Ok(false)))
    }

    async fn grow_unmounted(&self, device: &Device, contents: &Contents) -> Result<(), HostError> {
        let device_size_bytes = block_device::size_bytes(device).map_err(failed(device.path.display()))?;
        match contents {
            Contents::FileSystem { fstype: Fstype::Ext4, size_bytes, .. }
                if *size_bytes < device_size_bytes && !filesystem::may_grow_mounted_ext4() =>
            {
                filesystem::grow_unmounted_ext4(device).await
            }
            _ => Ok(()),
        }
    }

    async fn grow(
        &self,
        device: &Device,
        file: &Path,
        size_bytes: u64,
        target: &Path,
    ) -> Result<(), HostError> {
        // ovsd-edge hears of it first: it gives an NBD device its size, and a loop device takes its file's.
        let deadline = Instant::now() + FILE_TIMEOUT;
        loop {
            let (path, same) = (file.to_owned(), device.clone());
            let kind = DeviceKind::of(&device.path);
            let have = blocking(move || match kind {
                DeviceKind::Loop => fs::metadata(path).map(|file| file.len()),
                DeviceKind::Nbd => block_device::size_bytes(&same),
            });
            let have = have.await?.map_err(failed(file.display()))?;
            if have >= size_bytes {
                break;
            }
            if Instant::now() >= deadline {
                let what = if kind == DeviceKind::Loop { file } else { &device.path };
                let (what, have, want) = (what.display(), format_size(have), format_size(size_bytes));
                return Err(HostError::Failed(format!("{what} still has {have} and not {want}")));
            }
            sleep(FILE_POLL).await;
        }
        if DeviceKind::of(&device.path) == DeviceKind::Loop {
            let same = device.clone();
            blocking(move || loop_device::take_file_size(&same))
                .await?
                .map_err(failed("the device's new size"))?;
        }
        let same = device.clone();
        let contents = blocking(move || block_device::read_block(&same).map(|head| Contents::of(&head.0)))
            .await?
            .map_err(failed(device.path.display()))?;
        let device_size_bytes = block_device::size_bytes(device).map_err(failed(device.path.display()))?;
        match contents {
            Contents::FileSystem { fstype, size_bytes, .. } if size_bytes < device_size_bytes => {
                filesystem::grow(device, fstype, target).await
            }
            _ => Ok(()),
        }
    }
}

/// What a loop device that gives an error is. The error may be the vDisk's own: dead is only a device whose file system is
/// no longer served, or no longer the one that is mounted there.
fn ask_health(device: &Device, file: &Path) -> Health {
    let is_gone = |errno: Option<i32>| {
        [Errno::NOTCONN, Errno::CONNABORTED].iter().any(|gone| Some(gone.raw_os_error()) == errno)
    };
    let below = match loop_device::file_system_below(device) {
        Ok(below) => below,
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_gone(error.raw_os_error()) => {
            return Health::Dead;
        }
        Err(_) => return Health::Unknown,
    };
    match rustix::fs::stat(file) {
        Ok(now) if now.st_dev != below => Health::Dead,
        Err(Errno::NOENT) if !is_served(file) => Health::Dead,
        Err(errno) if is_gone(Some(errno.raw_os_error())) => Health::Dead,
        _ => Health::Unknown,
    }
}

fn lock(asked: &Mutex<HashSet<PathBuf>>) -> MutexGuard<'_, HashSet<PathBuf>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// True when the directory of a missing file is served: then only the file has gone, by a rename.
fn is_served(file: &Path) -> bool {
    file.parent().is_some_and(|directory| {
        #[allow(clippy::unnecessary_cast, reason = "f_type differs between architectures")]
        rustix::fs::statfs(directory).is_ok_and(|found| found.f_type as i64 == FUSE_MAGIC)
    })
}
