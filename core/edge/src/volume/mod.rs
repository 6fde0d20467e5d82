//! One mounted vPool: what each file operation means.
//!
//! ```text
//!  fs (FUSE request) ──▶ Volume ──▶ names: lookup create rename unlink ──▶ RPC
//!                               ──▶ change: size, owner, times         ──▶ RPC
//!                               ──▶ data: read write discard flush seek ──▶ Link ──▶ NBD
//! ```
//!
//! Everything here is `async` and returns an errno: no thread of FUSE ever waits in it.

mod change;
mod data;
mod names;

use crate::{file::File, in_flight::InFlight, link::Access, rpc::Rpc, tree::Tree};
use fuser::Errno;
use ovs_api::Vpool;
use ovs_units::Name;
use std::{
    collections::HashMap,
    ffi::OsString,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::time::Instant;

pub use change::NewAttributes;

/// A vPool as a directory of files.
#[derive(Debug)]
pub struct Volume {
    vpool: Name,
    rpc: Arc<Rpc>,
    /// The files.
    pub tree: Tree,
    /// What the kernel waits for.
    pub in_flight: Arc<InFlight>,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    directories: Mutex<HashMap<u64, Arc<Vec<DirectoryEntry>>>>,
    handle_numbers: AtomicU64,
    space: tokio::sync::Mutex<Option<(Vpool, Instant)>>,
    root: Mutex<change::Root>,
    is_closing: AtomicBool,
}

/// An open file.
#[derive(Debug)]
struct Handle {
    file: Arc<File>,
    access: Access,
}

/// A line of a directory listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The inode number.
    pub inode: u64,
    /// True for `.` and `..`.
    pub is_directory: bool,
    /// The name.
    pub name: OsString,
}

impl Volume {
    /// An empty directory; the files come by `tree`.
    pub fn new(vpool: Name, rpc: Arc<Rpc>, in_flight: Arc<InFlight>) -> Volume {
        Volume {
            vpool,
            tree: Tree::new(Arc::clone(&rpc)),
            rpc,
            in_flight,
            handles: RwLock::default(),
            directories: Mutex::default(),
            handle_numbers: AtomicU64::new(1),
            space: tokio::sync::Mutex::default(),
            root: Mutex::default(),
            is_closing: AtomicBool::new(false),
        }
    }

    /// The vPool's name.
    pub fn vpool(&self) -> &Name {
        &self.vpool
    }

    /// From now on nothing more is opened.
    pub fn refuse_opens(&self) {
        self.is_closing.store(true, Ordering::Release);
    }

    /// Files that are open now, each named once.
    pub fn open_files(&self) -> Vec<Name> {
        let handles = self.handles.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<Name> = handles.values().map(|handle| handle.file.name()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Puts what was written to every open file on stable storage.
    pub async fn flush_all(&self) {
        for file in self.tree.list() {
            let flushed = match self.settle(&file).await {
                Ok(()) => file.link.flush_if_dirty().await,
                Err(errno) => Err(errno),
            };
            if let Err(errno) = flushed {
                tracing::error!(vpool = %self.vpool, vdisk = %file.id, errno = errno.code(), "flush failed");
            }
        }
    }

    /// open(2), and the second half of creat(2).
    pub async fn open(&self, inode: u64, access: Access) -> Result<u64, Errno> {
        let file = self.file(inode)?;
        self.open_file(file, access).await
    }

    async fn open_file(&self, file: Arc<File>, access: Access) -> Result<u64, Errno> {
        if self.is_closing.load(Ordering::Acquire) {
            return Err(Errno::ESHUTDOWN);
        }
        if access == Access::Read {
            // A writer asks ovsd when it attaches. A reader would only find out at its first read.
            self.refresh(&file).await?;
        }
        match file.link.open(access).await {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Err(self.forget(&file)),
            Err(errno) => return Err(errno),
        }
        let number = self.handle_numbers.fetch_add(1, Ordering::Relaxed);
        let handle = Arc::new(Handle { file, access });
        self.handles.write().unwrap_or_else(PoisonError::into_inner).insert(number, handle);
        Ok(number)
    }

    /// The last close(2) of an open file.
    pub async fn release(&self, handle: u64) {
        let released = self.handles.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
        if let Some(handle) = released {
            self.settle_at_last(&handle).await;
            handle.file.link.release(handle.access).await;
        }
    }

    /// For a handle whose last close(2) nobody waits for any more; most were settled when they were closed.
    async fn settle_at_last(&self, handle: &Handle) {
        if handle.access == Access::Write
            && let Err(errno) = self.settle(&handle.file).await
        {
            let vdisk = handle.file.id;
            tracing::error!(vpool = %self.vpool, %vdisk, errno = errno.code(), "left longer than its file");
        }
    }

    /// Lets go of every handle: the kernel has ended the mount, and no release will come. The last flushes go on in the
    /// background.
    pub fn abandon(self: &Arc<Self>) {
        let handles = std::mem::take(&mut *self.handles.write().unwrap_or_else(PoisonError::into_inner));
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let volume = Arc::clone(self);
        tokio::spawn(async move {
            for handle in handles.into_values() {
                volume.settle_at_last(&handle).await;
                handle.file.link.release(handle.access).await;
            }
        });
    }

    fn handle(&self, handle: u64) -> Result<Arc<Handle>, Errno> {
        let handles = self.handles.read().unwrap_or_else(PoisonError::into_inner);
        handles.get(&handle).cloned().ok_or(Errno::EBADF)
    }

    fn file(&self, inode: u64) -> Result<Arc<File>, Errno> {
        self.tree.numbered(inode).ok_or(Errno::ESTALE)
    }

    /// A vDisk that is gone. `ESTALE` makes the kernel look the name up again: another vDisk may have it by now.
    fn forget(&self, file: &File) -> Errno {
        self.tree.remove(file.id);
        Errno::ESTALE
    }
}
