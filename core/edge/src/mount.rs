//! One vPool on its mount point, from mount(2) to umount(2).

use crate::{
    fs::VpoolFs,
    invalidator::Invalidator,
    mount_table::{self, SOURCE},
    users,
    volume::Volume,
};
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use std::{fs, io, path::PathBuf, sync::Arc, thread::available_parallelism};
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
        config.mount_options = vec![
            MountOption::FSName(SOURCE.to_owned()),
            // The kernel checks modes; QEMU and others who are not root come in (allow_other).
            MountOption::DefaultPermissions,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
            MountOption::NoAtime,
        ];
        config.acl = SessionACL::All;
        config.n_threads = Some(available_parallelism().map_or(2, usize::from).clamp(2, THREAD_COUNT_MAX));
        let fs = VpoolFs::new(Arc::clone(&volume), runtime);
        let session = Session::new(fs, &mount_point, &config)?.spawn()?;
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
                // Its destructor would unmount whatever is at that path by then.
                std::mem::forget(session);
            }
        }
    }
}
