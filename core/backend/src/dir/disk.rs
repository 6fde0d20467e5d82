//! The system calls that a put, a delete and the reserve are made of.
//!
//! They are a trait so that the order of them can be tested against a disk that loses what was not synced
//! (`power_loss.rs`).

use bytes::Bytes;
use rustix::{
    fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags},
    io::Errno,
};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::Path,
};

/// Small parts of an object are gathered to this much before they are written.
const GATHER_BYTES: usize = 256 << 10;

/// Bytes of a file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub total_bytes: u64,
    /// What a user without privileges may still write.
    pub available_bytes: u64,
}

/// Files and folders, by whole paths.
pub(super) trait Disk: Send + Sync + 'static {
    /// An open file being written.
    type File;

    /// A new file, locked while it is open; `AlreadyExists` if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    fn append(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;
    /// Everything appended is on stable storage afterwards.
    fn sync(&self, file: &mut Self::File) -> io::Result<()>;
    /// Gives the file a second name; `AlreadyExists` if that is taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Moves a name over whatever is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn unlink(&self, path: &Path) -> io::Result<()>;
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder are on stable storage afterwards.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Everything on the file system of `path` is on stable storage afterwards.
    fn sync_all(&self, path: &Path) -> io::Result<()>;
    /// Makes a file empty, or does nothing if there is none.
    fn truncate(&self, path: &Path) -> io::Result<()>;
    /// Length of a file; `None` if nothing is there.
    fn length(&self, path: &Path) -> io::Result<Option<u64>>;
    /// True when the path is a file of exactly these bytes.
    fn holds(&self, path: &Path, parts: &[Bytes]) -> io::Result<bool>;
    fn is_dir(&self, path: &Path) -> bool;
    /// Removes files in `dir` whose names start with `prefix` and which nobody holds open. How many.
    fn sweep(&self, dir: &Path, prefix: &str) -> io::Result<u64>;
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// The operating system's.
#[derive(Debug, Clone, Copy)]
pub(super) struct OsDisk;

impl Disk for OsDisk {
    type File = BufWriter<File>;

    fn create(&self, path: &Path) -> io::Result<Self::File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o640))?);
        // The lock tells `sweep` that the writer lives. A file system without locks sweeps nothing either.
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(BufWriter::with_capacity(GATHER_BYTES, file))
    }

    fn append(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &mut Self::File) -> io::Result<()> {
        file.flush()?;
        file.get_ref().sync_data()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty()) {
            Ok(()) => Ok(()),
            // File systems without hard links (FAT, some of FUSE and SMB) have this instead, as atomic.
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
                Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        open_dir(path)?.sync_all()
    }

    fn sync_all(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::syncfs(open_dir(path)?)?)
    }

    fn truncate(&self, path: &Path) -> io::Result<()> {
        let file = match fs::OpenOptions::new().write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        file.set_len(0)?;
        // Some file systems give the blocks back only with the transaction that freed them.
        file.sync_all()
    }

    fn length(&self, path: &Path) -> io::Result<Option<u64>> {
        match fs::symlink_metadata(path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn holds(&self, path: &Path, parts: &[Bytes]) -> io::Result<bool> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if !metadata.is_file() || metadata.len() != length {
            return Ok(false);
        }
        let mut found = vec![0; parts.iter().map(Bytes::len).max().unwrap_or(0).min(GATHER_BYTES)];
        for piece in parts.iter().flat_map(|part| part.chunks(GATHER_BYTES)) {
            let found = &mut found[..piece.len()];
            file.read_exact(found)?;
            if found != piece {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn sweep(&self, dir: &Path, prefix: &str) -> io::Result<u64> {
        let mut swept = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
            if !ours || !entry.file_type()?.is_file() {
                continue;
            }
            let Ok(file) = File::open(entry.path()) else { continue };
            // A writer that has made its file but not yet locked it loses it here, and its put says `Retry`.
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                && fs::remove_file(entry.path()).is_ok()
            {
                swept += 1;
            }
        }
        Ok(swept)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(path)?;
        Ok(Space {
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
            available_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }
}

fn open_dir(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}
