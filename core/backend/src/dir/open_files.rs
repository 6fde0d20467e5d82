//! Objects that were read lately, kept open: the next read of one is one system call, made at once as long as the page
//! cache has what it asks for.
//!
//! Objects never change, so an open file says what the object is made of, whatever has become of its name since. It does
//! not say whether the object is there: [`crate::Backend::get`] asks the folder for that.

use super::store::lock;
use crate::{
    ObjectName,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use bytes::Bytes;
use rustix::{
    io::{Errno, ReadWriteFlags},
    process::{Resource, getrlimit},
};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

/// Files kept open at most; no more than a quarter of what the process may have.
const FILES_MAX: u64 = 8192;
/// Larger reads go to another thread: the copy alone is worth it.
const AT_ONCE_BYTES_MAX: u64 = 64 << 10;

/// An object's file.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    length: u64,
}

impl OpenFile {
    pub(super) fn open(path: &Path) -> io::Result<OpenFile> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Errno::ISDIR.into());
        }
        Ok(OpenFile { file, length: metadata.len() })
    }

    /// Bytes `offset .. offset + length`, as far as the object goes. May wait for the disk.
    pub(super) fn read(&self, offset: u64, length: u64) -> io::Result<Bytes> {
        // Clamped before anything is allocated: offset and length may be anything.
        let length = length.min(self.length.saturating_sub(offset));
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length)?;
        bytes.resize(length, 0);
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }

    /// The same without a wait, `None` if that cannot be.
    fn read_at_once(&self, offset: u64, length: u64) -> io::Result<Option<Bytes>> {
        let length = length.min(self.length.saturating_sub(offset));
        if length > AT_ONCE_BYTES_MAX {
            return Ok(None);
        }
        let mut bytes = vec![0; length as usize];
        let read = rustix::io::preadv2(
            &self.file,
            &mut [IoSliceMut::new(&mut bytes)],
            offset,
            ReadWriteFlags::NOWAIT,
        )?;
        Ok((read == bytes.len()).then(|| bytes.into()))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct OpenFiles {
    known: Mutex<Known>,
    files_max: usize,
    /// This file system cannot say whether it would wait.
    always_waits: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    /// With when it was last read.
    files: HashMap<ObjectName, (Arc<OpenFile>, u64)>,
    reads: u64,
    /// Names forgotten so far.
    forgotten: u64,
}

/// When a file was looked for: it is not kept if any name has been forgotten since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since(u64);

impl OpenFiles {
    pub(super) fn new() -> OpenFiles {
        let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        OpenFiles::with_room_for((allowed / 4).clamp(16, FILES_MAX) as usize)
    }

    pub(super) fn with_room_for(files_max: usize) -> OpenFiles {
        OpenFiles { known: Mutex::default(), files_max, always_waits: AtomicBool::new(false) }
    }

    /// The object's file, if it is open.
    pub(super) fn get(&self, name: &ObjectName) -> Result<Arc<OpenFile>, Since> {
        let mut known = lock(&self.known);
        known.reads += 1;
        let now = known.reads;
        let forgotten = known.forgotten;
        match known.files.get_mut(name) {
            Some((file, used)) => {
                *used = now;
                Ok(Arc::clone(file))
            }
            None => Err(Since(forgotten)),
        }
    }

    /// What the page cache has of it, `None` if it lacks any.
    pub(super) fn read_at_once(&self, file: &OpenFile, offset: u64, length: u64) -> Option<Bytes> {
        if self.always_waits.load(Ordering::Relaxed) {
            return None;
        }
        match file.read_at_once(offset, length) {
            Ok(bytes) => bytes,
            Err(error) => {
                let errno = Errno::from_io_error(&error);
                if matches!(errno, Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)) {
                    self.always_waits.store(true, Ordering::Relaxed);
                }
                // Whatever it is, who waits is told.
                None
            }
        }
    }

    pub(super) fn keep(&self, name: ObjectName, file: Arc<OpenFile>, since: Since) {
        let mut known = lock(&self.known);
        if known.forgotten != since.0 {
            return;
        }
        if known.files.len() >= self.files_max {
            // The half that was not read for longest goes.
            let mut used: Vec<u64> = known.files.values().map(|(_, used)| *used).collect();
            let middle = used.len() / 2;
            let median = *used.select_nth_unstable(middle).1;
            known.files.retain(|_, (_, used)| *used > median);
        }
        let now = known.reads;
        known.files.insert(name, (file, now));
    }

    /// The name goes, or what is behind it did not read well.
    pub(super) fn forget(&self, name: &ObjectName) {
        let mut known = lock(&self.known);
        known.forgotten += 1;
        known.files.remove(name);
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        lock(&self.known).files.len()
    }
}
