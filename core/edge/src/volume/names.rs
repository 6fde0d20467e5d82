//! The directory: lookup, create, rename, unlink, list.

use super::{DirectoryEntry, Volume};
use crate::{
    attributes::Ownership,
    file::File,
    file_name::{FileName, file_name},
    inode,
    link::Access,
};
use fuser::{Errno, RenameFlags};
use ovs_api::{Labels, PatchVdisk, Vpool};
use ovs_units::Name;
use std::{
    ffi::{OsStr, OsString},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How long unlink(2) waits for a close(2) that is on its way: the kernel does not wait for a release.
const RELEASE_GRACE: Duration = Duration::from_secs(1);

/// How long the vPool's space is remembered for statfs(2).
const SPACE_AGE_MAX: Duration = Duration::from_secs(1);

impl Volume {
    /// The file of a name. What the events have not told yet is asked for: a vDisk that was just made by RPC is there.
    pub async fn lookup(&self, name: &OsStr) -> Result<Arc<File>, Errno> {
        match FileName::parse(name) {
            FileName::Vdisk(name) => self.find(&name).await?.ok_or(Errno::ENOENT),
            FileName::NoVdiskName | FileName::Other => Err(Errno::ENOENT),
        }
    }

    async fn find(&self, name: &Name) -> Result<Option<Arc<File>>, Errno> {
        if let Some(file) = self.tree.named(name) {
            return Ok(Some(file));
        }
        let vdisk = self.rpc.vdisk_named(&self.vpool, name).await?;
        Ok(vdisk.map(|vdisk| self.tree.upsert(&vdisk).0))
    }

    /// creat(2): makes an empty vDisk, or opens the one there is unless `is_exclusive`.
    pub async fn create(
        &self,
        name: &OsStr,
        owner: Ownership,
        is_exclusive: bool,
        access: Access,
    ) -> Result<(Arc<File>, u64), Errno> {
        if self.is_closing.load(Ordering::Acquire) {
            return Err(Errno::ESHUTDOWN);
        }
        let name = new_name(name)?;
        let file = match self.find(&name).await? {
            Some(_) if is_exclusive => return Err(Errno::EEXIST),
            Some(file) => file,
            None => {
                let labels = Labels(owner.labels().into());
                match self.rpc.create(&self.vpool, &name, labels).await {
                    Ok(vdisk) => self.tree.upsert(&vdisk).0,
                    // Somebody was quicker.
                    Err(Errno::EEXIST) if !is_exclusive => self.find(&name).await?.ok_or(Errno::EEXIST)?,
                    Err(errno) => return Err(errno),
                }
            }
        };
        let handle = self.open_file(Arc::clone(&file), access).await?;
        Ok((file, handle))
    }

    /// rename(2) within the vPool. A name that is taken stays taken: replacing a vDisk is not one step.
    pub async fn rename(&self, name: &OsStr, new: &OsStr, flags: RenameFlags) -> Result<(), Errno> {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return Err(Errno::EINVAL);
        }
        let file = self.lookup(name).await?;
        let new = new_name(new)?;
        if file.name() == new {
            return Ok(());
        }
        if self.find(&new).await?.is_some() {
            return Err(Errno::EEXIST);
        }
        let patch = PatchVdisk { name: Some(new), ..PatchVdisk::default() };
        self.patch(&file, patch).await
    }

    /// unlink(2): to the trash. While anybody writes it, here or elsewhere, it is busy: a mounted volume is not deleted
    /// by a stray `rm`.
    pub async fn unlink(&self, name: &OsStr) -> Result<(), Errno> {
        let file = self.lookup(name).await?;
        let since = Instant::now();
        while file.link.writer_count().await > 0 {
            if since.elapsed() >= RELEASE_GRACE {
                return Err(Errno::EBUSY);
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.rpc.delete(file.id).await?;
        self.tree.remove(file.id);
        Ok(())
    }

    /// opendir(3): a listing that later changes do not shift.
    pub fn open_directory(&self) -> u64 {
        let directory = |name: &str| DirectoryEntry {
            inode: inode::ROOT,
            is_directory: true,
            name: OsString::from(name),
        };
        let files = self.tree.list();
        let files = files.iter().map(|file| DirectoryEntry {
            inode: file.inode,
            is_directory: false,
            name: file_name(&file.name()),
        });
        let entries = [directory("."), directory("..")].into_iter().chain(files).collect();
        let number = self.handle_numbers.fetch_add(1, Ordering::Relaxed);
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(entries));
        number
    }

    /// The listing of an open directory.
    pub fn entries(&self, handle: u64) -> Result<Arc<Vec<DirectoryEntry>>, Errno> {
        let directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        directories.get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// closedir(3).
    pub fn release_directory(&self, handle: u64) {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    }

    /// The vPool's space, for statfs(2): what ovsd said last, when it does not answer.
    pub async fn space(&self) -> Result<Vpool, Errno> {
        let mut space = self.space.lock().await;
        if let Some((vpool, at)) = &*space
            && at.elapsed() < SPACE_AGE_MAX
        {
            return Ok(vpool.clone());
        }
        match (self.rpc.vpool(&self.vpool).await, &*space) {
            (Ok(vpool), _) => {
                *space = Some((vpool.clone(), Instant::now()));
                Ok(vpool)
            }
            (Err(_), Some((vpool, _))) => Ok(vpool.clone()),
            (Err(errno), None) => Err(errno),
        }
    }
}

/// The vDisk that a file to be made would be. Other files are the File Driver's, which is not there yet.
fn new_name(name: &OsStr) -> Result<Name, Errno> {
    match FileName::parse(name) {
        FileName::Vdisk(name) => Ok(name),
        FileName::NoVdiskName => Err(Errno::EINVAL),
        FileName::Other => Err(Errno::EOPNOTSUPP),
    }
}
