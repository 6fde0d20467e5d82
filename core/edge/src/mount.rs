//! One vPool on its mount point, from mount(2) to umount(2).

use crate::{
    fs::VpoolFs,
    invalidator::Invalidator,
    mount_table::{self, SOURCE},
    users,
    volume::Volume,
};
use fuser::{BackgroundSession, Config, Session, SessionACL};
use rustix::mount::{MountFlags, mount};
use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread::available_parallelism,
};
use tokio::runtime::Handle;

/// FUSE threads of a mount: they only copy and hand over, so a few suffice.
const THREAD_COUNT_MAX: usize = 4;

/// A mounted vPool.
#[derive(Debug)]
pub struct Mount {
    /// Its files.
    pub volume: Arc<Volume>,
    /// Tells the kernel what changed elsewhere.
    pub invalidator: Invalidator,
    mount_point: PathBuf,
    session: BackgroundSession,
}

impl Mount {
    /// Mounts. Blocks until the kernel has answered.
    pub fn new(volume: Arc<Volume>, mount_point: PathBuf, runtime: Handle) -> io::Result<Mount> {
        fs::create_dir_all(&mount_point)?;
        let mut config = Config::default();
        config.n_threads = Some(available_parallelism().map_or(2, usize::from).clamp(2, THREAD_COUNT_MAX));
        let fs = VpoolFs::new(Arc::clone(&volume), runtime);
        let device = mount_fuse(&mount_point)?;
        let session = Session::from_fd(fs, device, SessionACL::All, config)
            .and_then(Session::spawn)
            .inspect_err(|_| {
                let _ = mount_table::detach(&mount_point);
            })?;
        let invalidator = Invalidator::new(volume.vpool(), session.notifier())?;
        tracing::info!(vpool = %volume.vpool(), at = %mount_point.display(), "mounted");
        Ok(Mount { volume, invalidator, mount_point, session })
    }

    /// True when the kernel has ended it: unmounted by hand, or its connection aborted.
    pub fn is_over(&self) -> bool {
        self.session.guard.is_finished()
    }

    /// The number of its connection under `/sys/fs/fuse/connections`.
    pub fn connection(&self) -> Option<u32> {
        let mounts = mount_table::ours_below(&self.mount_point).ok()?;
        mounts.into_iter().find(|entry| entry.mount_point == self.mount_point).map(|entry| entry.device_minor)
    }

    /// Unmounts. If someone uses it, it leaves the tree all the same and is served for as long as this process lives;
    /// the log says who that is. Blocks.
    pub fn unmount(self) {
        let Mount { volume, invalidator, mount_point, session } = self;
        let (vpool, at) = (volume.vpool(), mount_point.display());
        drop(invalidator);
        if session.guard.is_finished() {
            // An aborted connection leaves its mount behind.
            let _ = mount_table::detach(&mount_point);
            return;
        }
        match mount_table::unmount_if_idle(&mount_point) {
            Ok(()) => {
                if let Err(error) = session.join() {
                    tracing::warn!(%vpool, %error, "the FUSE session ended with an error");
                }
                tracing::info!(%vpool, %at, "unmounted");
            }
            Err(error) => {
                let (files, users) = (volume.open_files(), users::below(&mount_point));
                tracing::warn!(%vpool, %at, %error, ?files, ?users, "in use: taken out of the tree, still served");
                if let Err(error) = mount_table::detach(&mount_point) {
                    tracing::error!(%vpool, %at, %error, "cannot be unmounted");
                }
                // The session's threads go on without its handle.
            }
        }
    }
}

/// mount(2) for FUSE (the kernel's Documentation/filesystems/fuse), done here and not by fuser: that would unmount by path
/// once more when a session ends, whatever is there by then, and start a program where it lacks the right.
fn mount_fuse(mount_point: &Path) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    // The kernel checks modes (default_permissions); QEMU and others who are not root come in (allow_other).
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    mount(SOURCE, mount_point, "fuse.ovs", flags, CString::new(options)?.as_c_str())?;
    Ok(device.into())
}
