//! The real host: loop devices over ovsd-edge's files, mount(2), mkfs and its kin.
//!
//! Calls that may block in the kernel while ovsd or ovsd-edge is away run on threads of their own and are waited for
//! without a limit: cutting them short would leave it unknown whether they happened. The driver runs every operation
//! as a task that holds its volume's lock, and only the answer to Docker has a time limit. Questions about health,
//! whose answer may be "unknown", have one.

use super::{
    Attached, Contents, Device, FormatPlan, Health, Host, HostError, Unmount, filesystem, loop_device,
    loop_device::LoopHold, mounts, superblock,
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
    /// Devices that have been asked for their health and have not answered: each question occupies a thread.
    asked: Arc<Mutex<HashSet<PathBuf>>>,
}

impl LinuxHost {
    /// `files_below`: the directory under which ovsd-edge mounts the vPools.
    pub fn new(files_below: PathBuf) -> LinuxHost {
        LinuxHost { files_below, asked: Arc::default() }
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
    let mut head = loop_device::AlignedBlock([0; superblock::HEAD_BYTES]);
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
    type Hold = LoopHold;

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
    ) -> Result<Attached<LoopHold>, HostError> {
        let (file, known, below) = (file.to_owned(), known.cloned(), self.files_below.clone());
        let block_size_bytes = contents.block_size_bytes();
        let label = format!("ovs-docker:{vdisk}");
        blocking(move || {
            loop_device::attach(&file, block_size_bytes, &label, known.as_ref(), &below)
                .map_err(failed(format!("a loop device for {}", file.display())))
        })
        .await?
    }

    async fn is_attached(&self, device: &Device) -> bool {
        loop_device::is_attached(device)
    }

    async fn health(&self, device: &Device, file: &Path) -> Health {
        if !lock(&self.asked).insert(device.path.clone()) {
            return Health::Unknown;
        }
        let (device, file, asked) = (device.clone(), file.to_owned(), self.asked.clone());
        let question = blocking(move || {
            let health = ask_health(&device, &file);
            lock(&asked).remove(&device.path);
            health
        });
        match timeout(HEALTH_TIMEOUT, question).await {
            Ok(Ok(health)) => health,
            _ => Health::Unknown,
        }
    }

    async fn format(&self, device: &Device, plan: &FormatPlan) -> Result<(), HostError> {
        filesystem::format(device, plan).await?;
        let device = device.clone();
        blocking(move || loop_device::sync(&device)).await?.map_err(failed("syncing the new file system"))
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
            while how == Unmount::Flush && loop_device::is_attached(&device) && Instant::now() < deadline {
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
        let device = loop_device::current(path.clone());
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
        let Some(major_minor) = loop_device::major_minor(device) else { return false };
        let target = target.to_owned();
        !matches!(blocking(move || mounts::is_used_elsewhere(&major_minor, &target)).await, Ok(Ok(false)))
    }

    async fn grow_unmounted(&self, device: &Device, contents: &Contents) -> Result<(), HostError> {
        let device_size_bytes = loop_device::size_bytes(device).map_err(failed(device.path.display()))?;
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
        // The kernel takes the size from what it knows of the file, so ovsd-edge must have told it first.
        let deadline = Instant::now() + FILE_TIMEOUT;
        loop {
            let path = file.to_owned();
            let have = blocking(move || fs::metadata(path)).await?.map_err(failed(file.display()))?.len();
            if have >= size_bytes {
                break;
            }
            if Instant::now() >= deadline {
                let (file, have, want) = (file.display(), format_size(have), format_size(size_bytes));
                return Err(HostError::Failed(format!("{file} still has {have} and not {want}")));
            }
            sleep(FILE_POLL).await;
        }
        let same = device.clone();
        blocking(move || loop_device::take_file_size(&same))
            .await?
            .map_err(failed("the device's new size"))?;
        let same = device.clone();
        let contents = blocking(move || -> io::Result<Contents> {
            let mut head = loop_device::AlignedBlock([0; superblock::HEAD_BYTES]);
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
            let fd = rustix::fs::open(&same.path, flags, Mode::empty())?;
            rustix::io::pread(&fd, &mut head.0, 0)?;
            Ok(Contents::of(&head.0))
        })
        .await?
        .map_err(failed(device.path.display()))?;
        let device_size_bytes = loop_device::size_bytes(device).map_err(failed(device.path.display()))?;
        match contents {
            Contents::FileSystem { fstype, size_bytes, .. } if size_bytes < device_size_bytes => {
                filesystem::grow(device, fstype, target).await
            }
            _ => Ok(()),
        }
    }
}

/// An error may be the vDisk's own: dead is only a device whose file system is no longer served, or no longer the one
/// that is mounted there.
fn ask_health(device: &Device, file: &Path) -> Health {
    if loop_device::read_block(device).is_ok() {
        return Health::Alive;
    }
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
