//! The system calls that a put, a delete and the reserve are made of.
//!
//! They are a trait so that the order of them can be tested against a disk that loses what was not synced
//! (`power_loss.rs`).

use bytes::Bytes;
use ovs_direct_io::BLOCK_BYTES;
use rustix::{
    fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags},
    io::Errno,
};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

/// Small parts of an object are gathered to this much before they are written …
const GATHER_BYTES: usize = 256 << 10;
/// … and to this much where they go past the page cache.
const DIRECT_GATHER_BYTES: usize = 4 << 20;
/// What an object is from which on its way through the page cache costs more than it may ever save: a copy, and as much again to write
/// it back from there.
const DIRECT_BYTES_MIN: u64 = 128 << 10;

/// Dirty page cache of one put at most. Our writes must not pile up there: the kernel would make this very process
/// write them back when memory is short, while it serves the disk whose own write-back everybody waits for (that
/// deadlock has been seen: reference docker-libvirt-iscsi.md, B3).
const DIRTY_BYTES_MAX: usize = 4 << 20;

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
    /// Writes the parts behind what is there.
    fn append(&self, file: &mut Self::File, parts: &[Bytes]) -> io::Result<()>;
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

/// A file that is being written.
#[derive(Debug)]
pub(super) struct NewFile {
    file: File,
    length: u64,
    is_direct: bool,
    dirty_bytes: usize,
}

impl NewFile {
    fn append(&mut self, parts: &[Bytes]) -> io::Result<()> {
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if self.length == 0 && length >= DIRECT_BYTES_MIN {
            self.is_direct = set_direct(&self.file, true).is_ok();
        }
        if self.is_direct && parts.iter().any(|part| !part.len().is_multiple_of(BLOCK_BYTES)) {
            set_direct(&self.file, false)?;
            self.is_direct = false;
        }
        let bytes_max = if self.is_direct { DIRECT_GATHER_BYTES } else { GATHER_BYTES };
        groups(parts, bytes_max).try_for_each(|group| self.write(group))
    }

    fn write(&mut self, parts: &[Bytes]) -> io::Result<()> {
        if self.is_direct {
            match ovs_direct_io::write_at(&self.file, parts, self.length) {
                // A file system that takes the flag, and then not our blocks.
                Err(error)
                    if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::OPNOTSUPP)) =>
                {
                    set_direct(&self.file, false)?;
                    self.is_direct = false;
                }
                done => {
                    done?;
                    self.length += parts.iter().map(|part| part.len() as u64).sum::<u64>();
                    return Ok(());
                }
            }
        }
        match parts {
            [one] => self.write_buffered(one),
            many => self.write_buffered(&many.concat()),
        }
    }

    fn write_buffered(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(DIRTY_BYTES_MAX) {
            if self.dirty_bytes + piece.len() > DIRTY_BYTES_MAX {
                self.file.sync_data()?;
                self.dirty_bytes = 0;
            }
            self.file.write_all_at(piece, self.length)?;
            self.length += piece.len() as u64;
            self.dirty_bytes += piece.len();
        }
        Ok(())
    }
}

/// Runs of parts that are written at once: of so many bytes, or one part.
fn groups(parts: &[Bytes], bytes_max: usize) -> impl Iterator<Item = &[Bytes]> {
    let mut rest = parts;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |part: &&Bytes| {
            bytes += part.len();
            bytes <= bytes_max
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (group, behind) = rest.split_at(count);
        rest = behind;
        (!group.is_empty()).then_some(group)
    })
}

fn set_direct(file: &File, is_direct: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, is_direct);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

/// The operating system's.
#[derive(Debug, Clone, Copy)]
pub(super) struct OsDisk;

impl Disk for OsDisk {
    type File = NewFile;

    fn create(&self, path: &Path) -> io::Result<Self::File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o640))?);
        // The lock tells `sweep` that the writer lives. A file system without locks sweeps nothing either.
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(NewFile { file, length: 0, is_direct: false, dirty_bytes: 0 })
    }

    fn append(&self, file: &mut NewFile, parts: &[Bytes]) -> io::Result<()> {
        file.append(parts)
    }

    fn sync(&self, file: &mut NewFile) -> io::Result<()> {
        file.file.sync_data()
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// Parts of whole blocks, as a large object has them, and some that are not.
    fn check(folder: &Path) {
        let part = |byte: u8, length: usize| Bytes::from(vec![byte; length]);
        let large = [part(1, BLOCK_BYTES), part(2, 5 << 20), part(3, BLOCK_BYTES), part(4, 300 << 10)];
        let ragged = [part(5, 7), part(6, 9 << 20), part(7, 100)];
        let small = [part(8, 3), Bytes::new(), part(9, 4000)];
        for (number, appends) in [
            vec![&large[..]],
            vec![&ragged[..]],
            vec![&small[..]],
            vec![&large[..], &large[..2]],
            vec![&large[..], &small[..], &large[..]],
            vec![&small[..], &large[..]],
            vec![&[]],
        ]
        .into_iter()
        .enumerate()
        {
            let path = folder.join(number.to_string());
            let mut file = OsDisk.create(&path).unwrap();
            for parts in &appends {
                OsDisk.append(&mut file, parts).unwrap();
            }
            OsDisk.sync(&mut file).unwrap();
            assert!(file.dirty_bytes <= DIRTY_BYTES_MAX);
            assert!(fs::read(&path).unwrap() == appends.concat().concat(), "case {number}");
        }
    }

    #[test]
    fn what_is_appended_is_there_whichever_way_it_went() {
        check(tempfile::tempdir().unwrap().path());
        // Without direct I/O on older kernels.
        if let Ok(shared) = tempfile::tempdir_in("/dev/shm") {
            check(shared.path());
        }
    }
}
