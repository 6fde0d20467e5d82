//! Room for commits on a device that others have filled.
//!
//! RocksDB meets a full device badly: one write that finds no space and it takes none until it is opened again, which
//! takes space as well. So a file of nothing but space is kept in its folder and given up before that happens. Commits and deletes
//! go on in its place; checkpoints, which are large and can wait, are refused until it is whole again.

use super::database::lock;
use rustix::{fs::FallocateFlags, io::Errno};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Mutex,
};

/// In RocksDB's folder, under a name that RocksDB does not look at.
pub(super) const RESERVE_FILE: &str = "reserve";
/// The log at its longest twice over (replayed into tables before it goes), and some.
const RESERVE_BYTES: u64 = 2 * super::database::WAL_BYTES_MAX + LOW_BYTES;
/// Less than this left: the reserve goes.
const LOW_BYTES: u64 = 8 << 20;
/// It is made again only when it and this much more are there, so that it does not come and go.
const COMFORT_BYTES: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Reserve {
    folder: PathBuf,
    is_whole: Mutex<bool>,
}

impl Reserve {
    pub(super) fn new(folder: &Path) -> Reserve {
        let found = fs::symlink_metadata(folder.join(RESERVE_FILE));
        let is_whole = found.is_ok_and(|metadata| metadata.len() == RESERVE_BYTES);
        Reserve { folder: folder.to_owned(), is_whole: Mutex::new(is_whole) }
    }

    /// Before a write or an open: gives the reserve up if space is low, makes it again if there is plenty. Whether it
    /// is whole afterwards.
    pub(super) fn adjust(&self) -> bool {
        let mut is_whole = lock(&self.is_whole);
        let Ok(found) = rustix::fs::statvfs(&self.folder) else { return *is_whole };
        let available = found.f_bavail.saturating_mul(found.f_frsize);
        if *is_whole && available < LOW_BYTES {
            *is_whole = false;
            match self.empty() {
                Ok(()) => {
                    tracing::warn!(path = %self.folder.display(), "the disk is full: commits use its reserve")
                }
                Err(error) => {
                    tracing::error!(path = %self.folder.display(), %error, "the reserve cannot be used")
                }
            }
        } else if !*is_whole && available > RESERVE_BYTES + COMFORT_BYTES {
            match self.fill() {
                Ok(()) => *is_whole = true,
                Err(error) => tracing::warn!(path = %self.folder.display(), %error, "no reserve can be made"),
            }
        }
        *is_whole
    }

    /// Why what can wait is refused.
    pub(super) fn explain(&self) -> String {
        format!(
            "{} is on a disk that is full; checkpoints wait until {} bytes are free",
            self.folder.display(),
            RESERVE_BYTES + COMFORT_BYTES
        )
    }

    fn empty(&self) -> io::Result<()> {
        let file = File::options().write(true).open(self.folder.join(RESERVE_FILE))?;
        file.set_len(0)?;
        // Some file systems give the blocks back only with the transaction that freed them.
        file.sync_all()
    }

    /// Only the blocks matter, so they are allocated and not written, where the file system can do that.
    fn fill(&self) -> io::Result<()> {
        let mut file = File::create(self.folder.join(RESERVE_FILE))?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                io::copy(&mut io::repeat(0).take(RESERVE_BYTES), &mut file).map(|_| ())
            }
            allocated => Ok(allocated?),
        }
    }
}
