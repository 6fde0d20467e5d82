//! Objects that were read lately, kept open: the next read of one is one system call, made at once as long as the page
//! cache has what it asks for.
//!
//! Objects never change, so an open file says what the object is made of, whatever has become of its name since. It does
//! not say whether the object is there: [`crate::Backend::get`] asks the folder for that.

use super::store::lock;
use crate::{ObjectName, sync::Mutex};
use bytes::Bytes;
use ovs_direct_io::{BLOCK_BYTES, Buffer, Reader, is_cached};
use rustix::{
    fs::{Mode, OFlags},
    io::{Errno, ReadWriteFlags},
    process::{Resource, getrlimit},
};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, IoSliceMut},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// Files kept open at most, of all backends of the process; no more than a quarter of what it may have.
const FILES_MAX: u64 = 8192;
/// Larger reads go to another thread: the copy alone is worth it.
const AT_ONCE_BYTES_MAX: u64 = 64 << 10;

/// An object's file.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: Arc<File>,
    length: u64,
}

impl OpenFile {
    pub(super) fn open(path: &Path) -> io::Result<OpenFile> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Errno::ISDIR.into());
        }
        Ok(OpenFile { file: Arc::new(file), length: metadata.len() })
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

    /// All of it from the disk. What guests have in the page cache stays there, unless it is not what the disk has: who mends what is
    /// bad there would read what is not. What they have not takes the place of nothing that is used.
    pub(super) fn read_stored(&self) -> io::Result<Bytes> {
        // A file system that has no such thing reads from the disk, or is memory.
        let forget = || rustix::fs::fadvise(&*self.file, 0, None, rustix::fs::Advice::DontNeed).ok();
        let is_used = is_cached(&self.file, 0, self.length);
        if is_used.is_ok()
            && let Some(stored) = self.read_past_the_cache()
        {
            if self.is_cached_otherwise(&stored) {
                forget();
            }
            return Ok(stored);
        }
        let is_used = is_used.unwrap_or(false);
        forget();
        let bytes = self.read(0, u64::MAX);
        if !is_used {
            forget();
        }
        bytes
    }

    /// The page cache has anything else than that.
    fn is_cached_otherwise(&self, stored: &Bytes) -> bool {
        let blocks = (0..self.length).step_by(BLOCK_BYTES).zip(stored.chunks(BLOCK_BYTES));
        let is_other = |(offset, stored): (u64, &[u8])| {
            let length = stored.len() as u64;
            is_cached(&self.file, offset, length).unwrap_or(false)
                && self.read(offset, length).is_ok_and(|cached| cached != stored)
        };
        blocks.into_iter().any(is_other)
    }

    /// Nothing where this file system cannot, or the disk does not read all of it: who reads it as usual is told why.
    fn read_past_the_cache(&self) -> Option<Bytes> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        let length = usize::try_from(self.length).ok()?;
        let mut buffer = Buffer::of(length.checked_next_multiple_of(BLOCK_BYTES)?);
        let mut read = 0;
        while read < length {
            let now =
                rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut buffer[read..], read as u64));
            match now.ok()? {
                0 => return None,
                now => read += now,
            }
        }
        buffer.truncate(length);
        Some(buffer.into())
    }

    /// The same without a wait, `None` if that cannot be.
    fn read_at_once(&self, offset: u64, length: u64) -> io::Result<Option<Bytes>> {
        let mut bytes = vec![0; length as usize];
        let read = rustix::io::preadv2(
            &*self.file,
            &mut [IoSliceMut::new(&mut bytes)],
            offset,
            ReadWriteFlags::NOWAIT,
        )?;
        Ok((read == bytes.len()).then(|| bytes.into()))
    }
}

/// How many files are kept, by all that share the count.
type Count = Arc<AtomicUsize>;

/// All backends of the process.
static OF_PROCESS: LazyLock<Count> = LazyLock::new(Count::default);

/// One of those files.
#[derive(Debug)]
struct Kept(Count);

impl Kept {
    fn new(count: &Count) -> Kept {
        count.fetch_add(1, Ordering::Relaxed);
        Kept(Arc::clone(count))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct OpenFiles {
    known: Mutex<Known>,
    kept: Count,
    files_max: usize,
    /// This file system cannot say whether it would wait.
    always_waits: AtomicBool,
    /// Reads what the page cache has not.
    reader: Option<Reader>,
    /// This kernel cannot say what is in the page cache.
    never_tells: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    files: HashMap<ObjectName, KnownFile>,
    reads: u64,
    /// Names forgotten so far.
    forgotten: u64,
}

#[derive(Debug)]
struct KnownFile {
    file: Arc<OpenFile>,
    /// When it was last read.
    used: u64,
    _kept: Kept,
}

/// Files that are not kept any more. Their last close frees what a deleted object had: not for a thread that serves reads.
#[must_use = "to be dropped where waiting is allowed"]
#[derive(Debug, Default)]
pub(super) struct Closing(Vec<KnownFile>);

impl Closing {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// When a file was looked for: it is not kept if any name has been forgotten since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since(u64);

impl OpenFiles {
    pub(super) fn new(reader: Option<Reader>) -> OpenFiles {
        let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let files_max = (allowed / 4).clamp(16, FILES_MAX) as usize;
        OpenFiles { reader, ..OpenFiles::with_room_for(files_max, Arc::clone(&OF_PROCESS)) }
    }

    pub(super) fn with_room_for(files_max: usize, kept: Count) -> OpenFiles {
        let always_waits = AtomicBool::new(false);
        OpenFiles {
            known: Mutex::default(),
            kept,
            files_max,
            always_waits,
            reader: None,
            never_tells: AtomicBool::new(false),
        }
    }

    /// The object's file, if it is open.
    pub(super) fn get(&self, name: &ObjectName) -> Result<Arc<OpenFile>, Since> {
        let mut known = lock(&self.known);
        known.reads += 1;
        let now = known.reads;
        let forgotten = known.forgotten;
        match known.files.get_mut(name) {
            Some(known) => {
                known.used = now;
                Ok(Arc::clone(&known.file))
            }
            None => Err(Since(forgotten)),
        }
    }

    /// What the page cache has of it, `None` if it lacks any.
    pub(super) fn read_at_once(&self, file: &OpenFile, offset: u64, length: u64) -> Option<Bytes> {
        let length = length.min(file.length.saturating_sub(offset));
        if length == 0 || length > AT_ONCE_BYTES_MAX {
            return (length == 0).then(Bytes::new);
        }
        if self.always_waits.load(Ordering::Relaxed) || self.is_cold(file, offset, length) {
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

    /// To try it nevertheless would be to have it read, and to wait for a slow device to take that.
    fn is_cold(&self, file: &OpenFile, offset: u64, length: u64) -> bool {
        if self.never_tells.load(Ordering::Relaxed) {
            return false;
        }
        is_cached(&file.file, offset, length).map_or_else(
            |_| {
                self.never_tells.store(true, Ordering::Relaxed);
                false
            },
            |is_cached| !is_cached,
        )
    }

    /// The same for what the page cache lacks, without a thread that waits for it. `None` if that cannot be.
    pub(super) async fn read_cold(
        &self,
        file: &OpenFile,
        offset: u64,
        length: u64,
    ) -> io::Result<Option<Bytes>> {
        let is_whole = offset.checked_add(length).is_some_and(|end| end <= file.length);
        match &self.reader {
            Some(reader)
                if is_whole && length <= AT_ONCE_BYTES_MAX && !self.always_waits.load(Ordering::Relaxed) =>
            {
                reader.read(Arc::clone(&file.file), offset, length as usize).await
            }
            _ => Ok(None),
        }
    }

    pub(super) fn keep(&self, name: ObjectName, file: Arc<OpenFile>, since: Since) -> Closing {
        let mut known = lock(&self.known);
        if known.forgotten != since.0 {
            return Closing::default();
        }
        let mut closing = Closing::default();
        if self.kept.load(Ordering::Relaxed) >= self.files_max && !known.files.is_empty() {
            // The half of ours that was not read for longest goes.
            let mut used: Vec<u64> = known.files.values().map(|known| known.used).collect();
            let middle = used.len() / 2;
            let median = *used.select_nth_unstable(middle).1;
            closing.0.extend(known.files.extract_if(|_, known| known.used <= median).map(|(_, file)| file));
        }
        if self.kept.load(Ordering::Relaxed) < self.files_max + closing.0.len() {
            let (used, _kept) = (known.reads, Kept::new(&self.kept));
            let replaced = known.files.insert(name, KnownFile { file, used, _kept });
            closing.0.extend(replaced);
        }
        closing
    }

    /// The name goes, or what is behind it did not read well.
    pub(super) fn forget(&self, name: &ObjectName) -> Closing {
        let mut known = lock(&self.known);
        known.forgotten += 1;
        Closing(known.files.remove(name).into_iter().collect())
    }

    #[cfg(test)]
    pub(super) fn read_cold_count(&self) -> u64 {
        self.reader.as_ref().map_or(0, Reader::answered)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        lock(&self.known).files.len()
    }
}
