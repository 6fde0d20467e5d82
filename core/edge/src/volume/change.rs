//! Attributes: size, owner, mode, times.

use super::Volume;
use crate::{
    attributes::{self, Ownership, Times},
    clock,
    file::File,
    inode,
};
use fuser::{Errno, FileAttr};
use ovs_api::{LabelsPatch, PatchVdisk};
use ovs_units::{ByteCount, VDISK_SIZE_BYTES_MAX};
use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

/// What ovsd said of a vDisk is asked again after this long: allocation changes without an event.
const FACTS_AGE_MAX: Duration = Duration::from_secs(1);

/// What setattr changes; what is not given stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewAttributes {
    /// truncate(2).
    pub size: Option<u64>,
    /// chown(2).
    pub uid: Option<u32>,
    /// chown(2).
    pub gid: Option<u32>,
    /// chmod(2).
    pub mode: Option<u32>,
    /// utimensat(2).
    pub accessed: Option<SystemTime>,
    /// utimensat(2).
    pub modified: Option<SystemTime>,
}

/// The root directory: a vPool keeps no owner for it, so changes last as long as the mount.
#[derive(Debug)]
pub(super) struct Root {
    owner: Ownership,
    times: Times,
}

impl Default for Root {
    fn default() -> Self {
        Root { owner: Ownership { uid: 0, gid: 0, mode: 0o755 }, times: Times::all(clock::now()) }
    }
}

impl Volume {
    /// stat(2).
    pub async fn attributes(&self, inode: u64) -> Result<FileAttr, Errno> {
        if inode == inode::ROOT {
            return Ok(self.root_attributes());
        }
        let file = self.file(inode)?;
        self.refresh(&file).await?;
        Ok(file.attributes())
    }

    /// Asks ovsd again about a vDisk whose facts are stale. Without an answer the old ones have to do.
    pub(super) async fn refresh(&self, file: &File) -> Result<(), Errno> {
        if !file.is_stale(FACTS_AGE_MAX) {
            return Ok(());
        }
        match self.rpc.vdisk_if_reachable(file.id).await {
            Ok(Some(vdisk)) => {
                self.tree.upsert(&vdisk);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(Errno::ENOENT) => Err(self.forget(file)),
            Err(errno) => Err(errno),
        }
    }

    /// chmod(2), chown(2), truncate(2), utimensat(2): the kernel has checked who may.
    pub async fn change(&self, inode: u64, new: NewAttributes) -> Result<FileAttr, Errno> {
        if inode == inode::ROOT {
            return self.change_root(new);
        }
        let file = self.file(inode)?;
        if let Some(size) = new.size {
            self.resize(&file, size).await?;
        }
        if new.uid.is_some() || new.gid.is_some() || new.mode.is_some() {
            let owner = file.owner().changed(new.uid, new.gid, new.mode);
            let labels = owner.labels().map(|(key, value)| (key, Some(value)));
            self.patch(&file, PatchVdisk { labels: LabelsPatch(labels.into()), ..PatchVdisk::default() })
                .await?;
        }
        if new.accessed.is_some() || new.modified.is_some() {
            file.set_times(new.accessed, new.modified);
        }
        Ok(file.attributes())
    }

    /// truncate(2).
    async fn resize(&self, file: &Arc<File>, size: u64) -> Result<(), Errno> {
        if size > VDISK_SIZE_BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        let _resizing = file.resizing.lock().await;
        if size != file.size().0 {
            self.set_size(file, ByteCount(size)).await?;
        }
        file.mark_modified();
        Ok(())
    }

    /// Makes the file at least so long.
    pub(super) async fn grow(&self, file: &Arc<File>, size: ByteCount) -> Result<(), Errno> {
        let _resizing = file.resizing.lock().await;
        if file.size() < size { self.set_size(file, size).await } else { Ok(()) }
    }

    /// Makes the vDisk long enough for a write that ends at `end`. Hold `resizing` until the write is done.
    pub(super) async fn make_room(&self, file: &Arc<File>, end: ByteCount) -> Result<(), Errno> {
        let Some(size) = file.plan_growth(end) else { return Ok(()) };
        let patch = PatchVdisk { size_bytes: Some(size.0), byte_exact: true, ..PatchVdisk::default() };
        let grown = self.patch(file, patch).await;
        if let Err(errno) = grown {
            file.forget_growth();
            // By RPC it may have grown further than this; then ours would have been a shrink, and was refused.
            let vdisk = self.rpc.vdisk(file.id).await?;
            self.tree.upsert(&vdisk);
            if file.size() < end {
                return Err(errno);
            }
        }
        Ok(())
    }

    /// Makes the vDisk as long as its file.
    pub(super) async fn settle(&self, file: &Arc<File>) -> Result<(), Errno> {
        let _resizing = file.resizing.lock().await;
        match file.unsettled() {
            Some(size) => self.set_size(file, size).await,
            None => Ok(()),
        }
    }

    async fn set_size(&self, file: &Arc<File>, size: ByteCount) -> Result<(), Errno> {
        let patch = PatchVdisk {
            size_bytes: Some(size.0),
            byte_exact: true,
            allow_shrink: true,
            // In the name of our own attachment: while another client writes, nothing may be cut off.
            attachment: file.link.attachment().await,
            ..PatchVdisk::default()
        };
        self.patch(file, patch).await?;
        file.mark_settled();
        Ok(())
    }

    pub(super) async fn patch(&self, file: &Arc<File>, patch: PatchVdisk) -> Result<(), Errno> {
        match self.rpc.update(file.id, patch).await {
            Ok(vdisk) => {
                self.tree.upsert(&vdisk);
                Ok(())
            }
            Err(Errno::ENOENT) => Err(self.forget(file)),
            Err(errno) => Err(errno),
        }
    }

    /// stat(2) of the directory.
    pub fn root_attributes(&self) -> FileAttr {
        let root = self.root();
        attributes::directory(inode::ROOT, root.owner, root.times)
    }

    fn change_root(&self, new: NewAttributes) -> Result<FileAttr, Errno> {
        if new.size.is_some() {
            return Err(Errno::EISDIR);
        }
        let mut root = self.root();
        root.owner = root.owner.changed(new.uid, new.gid, new.mode);
        root.times.accessed = new.accessed.unwrap_or(root.times.accessed);
        root.times.modified = new.modified.unwrap_or(root.times.modified);
        root.times.changed = clock::now();
        Ok(attributes::directory(inode::ROOT, root.owner, root.times))
    }

    fn root(&self) -> MutexGuard<'_, Root> {
        self.root.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
