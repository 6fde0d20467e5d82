//! The device under the write buffer: slots of fixed size, written and read in blocks.

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_format::log::BLOCK_BYTES;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// Smaller parts of a write are copied together.
const PIECE_BYTES_MIN: usize = 64 << 10;
/// Pieces of one system call: the kernel takes 1024.
const PIECES_MAX: usize = 512;

/// Slots of fixed size. Writes are whole blocks; nothing is stable before `sync` of the slot has returned `Ok`.
pub trait LogDevice {
    /// How many slots.
    fn slot_count(&self) -> usize;

    /// Bytes of each, a multiple of 4096.
    fn slot_bytes(&self) -> u64;

    /// Writes the parts one after the other, each of them whole blocks. When this returns the kernel has them.
    fn write(&self, slot: usize, offset: u64, parts: Vec<Bytes>) -> LocalBoxFuture<'_, io::Result<()>>;

    /// Everything written to the slot before is on stable storage when this returns `Ok`. After an error nothing is
    /// known about it, and asking again does not help.
    fn sync(&self, slot: usize) -> LocalBoxFuture<'_, io::Result<()>>;

    /// Reads what the medium holds (not what a cache may hold).
    fn read(&self, slot: usize, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Bytes>>;
}

/// Slots as files of zeros in a directory, with direct I/O, locked against a second owner.
#[derive(Debug)]
pub struct FileDevice {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Held until the last write of this process has ended, also one that nobody waits for any more.
    _lock: File,
    slots: Vec<File>,
    slot_bytes: u64,
    direct: bool,
    /// Aligned buffers for direct I/O, kept so that the write path does not allocate.
    buffers: Mutex<Vec<AlignedBuffer>>,
}

impl FileDevice {
    /// Opens or makes `slot_count` slots of `slot_bytes` below `directory`. Slots that exist keep their size, and none
    /// is ever removed, so a smaller count than before is raised to what is there. Blocks; call it before serving.
    pub fn open(directory: &Path, slot_count: usize, slot_bytes: u64) -> io::Result<FileDevice> {
        make_directory(directory)?;
        let lock = File::create(directory.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("the write buffer {} is in use by another ovsd", directory.display()),
            )
        })?;
        let existing = (0..).take_while(|slot| slot_path(directory, *slot).exists()).count();
        let slot_bytes = match existing {
            0 => slot_bytes,
            _ => std::fs::metadata(slot_path(directory, 0))?.len(),
        };
        if slot_bytes < 16 * BLOCK_BYTES as u64 || !slot_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(io::Error::other(format!(
                "slots of {slot_bytes} bytes: must be whole blocks, 16 at least"
            )));
        }
        for slot in existing..slot_count {
            make_slot(directory, slot, slot_bytes)?;
        }
        File::open(directory)?.sync_all()?;
        let mut slots = Vec::new();
        let mut direct = true;
        for slot in 0..existing.max(slot_count) {
            let (file, is_direct) = open_slot(&slot_path(directory, slot))?;
            if file.metadata()?.len() != slot_bytes {
                return Err(io::Error::other(format!("slot {slot} of the write buffer has a wrong size")));
            }
            direct &= is_direct;
            slots.push(file);
        }
        if !direct {
            tracing::warn!(directory = %directory.display(), "no direct I/O here: the write buffer goes through the page cache");
        }
        let shared = Shared { _lock: lock, slots, slot_bytes, direct, buffers: Mutex::default() };
        Ok(FileDevice { shared: Arc::new(shared) })
    }
}

fn slot_path(directory: &Path, slot: usize) -> PathBuf {
    directory.join(format!("slot-{slot:04}.seg"))
}

/// Makes the directory and syncs the parents that now name it.
fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_directory(parent)?;
        std::fs::create_dir(directory).or_else(|e| if directory.is_dir() { Ok(()) } else { Err(e) })?;
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Written with zeros, not merely allocated: an extent that is only reserved costs a metadata write at its first use.
/// Appears under its name only when whole.
fn make_slot(directory: &Path, slot: usize, slot_bytes: u64) -> io::Result<()> {
    let temporary = directory.join(format!("slot-{slot:04}.new"));
    let file = File::create(&temporary)?;
    let zeros = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < slot_bytes {
        let length = zeros.len().min((slot_bytes - offset) as usize);
        file.write_all_at(&zeros[..length], offset)?;
        offset += length as u64;
    }
    file.sync_all()?;
    std::fs::rename(temporary, slot_path(directory, slot))
}

fn open_slot(path: &Path) -> io::Result<(File, bool)> {
    let direct = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT, Mode::empty());
    match direct {
        Ok(file) => Ok((File::from(file), true)),
        // tmpfs and a few others refuse O_DIRECT with EINVAL.
        Err(rustix::io::Errno::INVAL) => {
            Ok((OpenOptions::new().read(true).write(true).custom_flags(0).open(path)?, false))
        }
        Err(error) => Err(error.into()),
    }
}

impl Shared {
    fn buffer(&self, length: usize) -> AlignedBuffer {
        let kept = self.buffers.lock().ok().and_then(|mut kept| kept.pop());
        let mut buffer = kept.unwrap_or_default();
        buffer.resize(length);
        buffer
    }

    fn keep(&self, buffer: AlignedBuffer) {
        if let Ok(mut kept) = self.buffers.lock()
            && kept.len() < 4
        {
            kept.push(buffer);
        }
    }

    /// Large parts that direct I/O can take as they are go as they are; the others are gathered.
    fn write(&self, slot: usize, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        debug_assert!(
            parts.iter().all(|part| part.len().is_multiple_of(BLOCK_BYTES)),
            "parts are whole blocks"
        );
        let gathered = parts.iter().filter(|part| !is_taken_as_it_is(part)).map(Bytes::len).sum();
        let mut buffer = self.buffer(gathered);
        let mut at = 0;
        for part in parts.iter().filter(|part| !is_taken_as_it_is(part)) {
            buffer.as_mut()[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let mut rest = &buffer.as_mut()[..];
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(parts.len());
        let mut run = 0;
        for part in parts {
            if !is_taken_as_it_is(part) {
                run += part.len();
                continue;
            }
            if run > 0 {
                slices.push(IoSlice::new(rest.split_off(..run).unwrap_or_default()));
                run = 0;
            }
            slices.push(IoSlice::new(part));
        }
        if run > 0 {
            slices.push(IoSlice::new(rest));
        }
        let result = write_all_vectored_at(&self.slots[slot], &mut slices, offset);
        drop(slices);
        self.keep(buffer);
        result
    }

    fn read(&self, slot: usize, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut buffer = self.buffer(length.next_multiple_of(BLOCK_BYTES));
        let result = self.slots[slot].read_exact_at(&mut buffer.as_mut()[..], offset);
        let bytes = result.map(|()| Bytes::copy_from_slice(&buffer.as_mut()[..length]));
        self.keep(buffer);
        bytes
    }
}

impl LogDevice for FileDevice {
    fn slot_count(&self) -> usize {
        self.shared.slots.len()
    }

    fn slot_bytes(&self) -> u64 {
        self.shared.slot_bytes
    }

    fn write(&self, slot: usize, offset: u64, parts: Vec<Bytes>) -> LocalBoxFuture<'_, io::Result<()>> {
        let shared = self.shared.clone();
        Box::pin(blocking(move || shared.write(slot, offset, &parts)))
    }

    fn sync(&self, slot: usize) -> LocalBoxFuture<'_, io::Result<()>> {
        let shared = self.shared.clone();
        Box::pin(blocking(move || shared.slots[slot].sync_data()))
    }

    fn read(&self, slot: usize, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Bytes>> {
        let shared = self.shared.clone();
        Box::pin(blocking(move || {
            if !shared.direct {
                // What matters after a crash is the medium, not a page cache that may hold what never reached it.
                let advice = rustix::fs::Advice::DontNeed;
                let _ = rustix::fs::fadvise(&shared.slots[slot], offset, None, advice);
            }
            shared.read(slot, offset, length)
        }))
    }
}

/// Is it worth a piece of its own, and does it begin and end where direct I/O may?
fn is_taken_as_it_is(part: &Bytes) -> bool {
    part.len() >= PIECE_BYTES_MIN
        && part.len().is_multiple_of(BLOCK_BYTES)
        && (part.as_ptr() as usize).is_multiple_of(BLOCK_BYTES)
}

fn write_all_vectored_at(file: &File, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    while !slices.is_empty() {
        let now = slices.len().min(PIECES_MAX);
        let written = rustix::io::retry_on_intr(|| rustix::io::pwritev(file, &slices[..now], offset))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut slices, written);
        offset += written as u64;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Bytes that start on a 4 KiB boundary, as direct I/O wants them.
#[derive(Debug, Default)]
struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    fn resize(&mut self, length: usize) {
        if self.memory.len() < length + BLOCK_BYTES {
            self.memory = vec![0; length + BLOCK_BYTES];
        }
        self.start = self.memory.as_ptr().align_offset(BLOCK_BYTES);
        self.length = length;
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_parts_that_direct_io_can_take_are_not_copied() {
        let memory = Bytes::from(vec![0; 3 * PIECE_BYTES_MIN]);
        let aligned = memory.as_ptr().align_offset(BLOCK_BYTES);
        let part = |start: usize, length: usize| memory.slice(aligned + start..aligned + start + length);
        assert!(is_taken_as_it_is(&part(0, 64 << 10)));
        assert!(is_taken_as_it_is(&part(BLOCK_BYTES, (64 << 10) + BLOCK_BYTES)));
        assert!(!is_taken_as_it_is(&part(0, (64 << 10) - BLOCK_BYTES)));
        assert!(!is_taken_as_it_is(&part(0, (64 << 10) + 512)));
        assert!(!is_taken_as_it_is(&part(512, 64 << 10)));
    }

    /// What is read after a crash is what the medium has, and no child of ours has any of it open.
    #[test]
    fn slots_are_opened_past_the_page_cache() {
        let directory = tempfile::tempdir().unwrap();
        let device = FileDevice::open(directory.path(), 2, 64 << 10).unwrap();
        for slot in &device.shared.slots {
            let flags = rustix::fs::fcntl_getfl(slot).unwrap();
            assert_eq!(flags.contains(OFlags::DIRECT), device.shared.direct);
            assert!(rustix::io::fcntl_getfd(slot).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
    }

    #[test]
    fn a_few_buffers_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let device = FileDevice::open(directory.path(), 1, 64 << 10).unwrap();
        let kept = || device.shared.buffers.lock().unwrap().len();
        for expected in [1, 2, 3, 4, 4] {
            device.shared.keep(AlignedBuffer::default());
            assert_eq!(kept(), expected);
        }
        let mut buffer = device.shared.buffer(8192);
        assert_eq!(
            (kept(), buffer.as_mut().len(), buffer.as_mut().as_ptr().align_offset(BLOCK_BYTES)),
            (3, 8192, 0)
        );
        // It is as large as it has to be, and is not made again for less.
        let memory = buffer.memory.as_ptr();
        buffer.resize(4096);
        assert_eq!((buffer.as_mut().len(), buffer.memory.as_ptr()), (4096, memory));
        buffer.resize(8192);
        assert_eq!(buffer.memory.as_ptr(), memory);
        buffer.resize(12288);
        assert_eq!(buffer.as_mut().len(), 12288);
    }

    #[test]
    fn more_pieces_than_one_call_takes_are_written_in_several() {
        let file = tempfile::tempfile().unwrap();
        let pieces: Vec<[u8; 3]> = (0..2 * PIECES_MAX + 9).map(|number| [number as u8, 1, 2]).collect();
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        write_all_vectored_at(&file, &mut slices, 7).unwrap();
        let mut found = vec![0; 3 * pieces.len()];
        file.read_exact_at(&mut found, 7).unwrap();
        assert!(found == pieces.concat());
        assert_eq!(file.metadata().unwrap().len(), 7 + found.len() as u64);
    }
}
