//! The device under the write buffer: slots of fixed size, written and read in blocks.

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_direct_io::{Buffer, Ring};
use ovs_format::log::BLOCK_BYTES;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::{
    cell::Cell,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Larger writes have a thread, so that copying them and handing their memory to the kernel does not hold up the engine's. The bound was chosen, not
/// measured.
const RING_BYTES_MAX: usize = 256 << 10;
/// A slot may still be written to by a process that is gone: for a minute, each.
const LATE_LOOKS_MAX: usize = 12_000;
const LATE_LOOKS_EVERY: Duration = Duration::from_millis(5);

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
    /// Goes before the slots, and waits for what it still writes to them.
    ring: Option<Ring>,
    was_refused: Cell<bool>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Held until the last write of this process has ended, also one that nobody waits for any more.
    _lock: File,
    slots: Vec<Arc<File>>,
    slot_bytes: u64,
    direct: bool,
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
            slots.push(Arc::new(file));
        }
        if !direct {
            tracing::warn!(directory = %directory.display(), "no direct I/O here: the write buffer goes through the page cache");
        }
        let shared = Shared { _lock: lock, slots, slot_bytes, direct };
        Ok(FileDevice { ring: None, was_refused: Cell::new(false), shared: Arc::new(shared) })
    }

    /// Small writes go to the kernel without a thread between, where it has io_uring and lets us. To be called on a runtime that
    /// does I/O; one whose time is paused does not know that somebody waits for such a write.
    pub fn with_ring(mut self) -> FileDevice {
        match Ring::new() {
            Ok(ring) => self.ring = Some(ring),
            Err(error) => tracing::info!(%error, "no io_uring here: threads write the write buffer"),
        }
        self
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
    let (file, is_direct) = open_directly(path)?;
    wait_for_late_writes(&file, path)?;
    Ok((file, is_direct))
}

/// A write of a process that was killed may be under way when that is gone, with all its other locks. It holds on to the file, and
/// the file to this one. Read before it lands, the slot would say what is not true a moment later.
fn wait_for_late_writes(file: &File, path: &Path) -> io::Result<()> {
    for look in 0..LATE_LOOKS_MAX {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                if look == 0 {
                    tracing::warn!(slot = %path.display(), "locked; waiting for a write of an ovsd that is gone");
                }
                std::thread::sleep(LATE_LOOKS_EVERY);
            }
            locked => return locked.map_err(io::Error::from),
        }
    }
    let path = path.display();
    Err(io::Error::other(format!(
        "{path} is locked: by another program, or by the write of an ovsd that is gone"
    )))
}

fn open_directly(path: &Path) -> io::Result<(File, bool)> {
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
    fn read(&self, slot: usize, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut buffer = Buffer::of(length.next_multiple_of(BLOCK_BYTES));
        self.slots[slot].read_exact_at(&mut buffer, offset)?;
        Ok(Bytes::copy_from_slice(&buffer[..length]))
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
        debug_assert!(
            parts.iter().all(|part| part.len().is_multiple_of(BLOCK_BYTES)),
            "parts are whole blocks"
        );
        let shared = self.shared.clone();
        let is_small = parts.iter().map(Bytes::len).sum::<usize>() <= RING_BYTES_MAX;
        let ring = self.ring.as_ref().filter(|_| is_small && shared.direct);
        Box::pin(async move {
            if let Some(ring) = ring {
                let file = shared.slots[slot].clone();
                if ring.write_to(file, Buffer::gathered(parts.iter()), offset).await? {
                    return Ok(());
                }
                if !self.was_refused.replace(true) {
                    tracing::warn!("io_uring did not take a write: threads write what it does not take");
                }
            }
            blocking(move || ovs_direct_io::write_at(&shared.slots[slot], &parts, offset)).await
        })
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// As the kernel does for a process that is gone and whose write is not.
    #[test]
    fn a_slot_is_opened_when_nobody_writes_to_it_any_more() {
        let directory = tempfile::tempdir().unwrap();
        drop(FileDevice::open(directory.path(), 2, 64 << 10).unwrap());
        let late = File::open(slot_path(directory.path(), 1)).unwrap();
        rustix::fs::flock(&late, FlockOperation::LockExclusive).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let path = directory.path().to_owned();
        let opening = std::thread::spawn(move || {
            let device = FileDevice::open(&path, 2, 64 << 10).map(drop);
            tell.send(()).unwrap();
            device
        });
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "it was opened");
        drop(late);
        opening.join().unwrap().unwrap();
    }

    #[test]
    fn small_and_large_writes_are_what_is_read() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let device = FileDevice::open(directory.path(), 2, 1 << 20).unwrap().with_ring();
            let parts = |byte: u8, blocks: usize| vec![Bytes::from(vec![byte; BLOCK_BYTES]); blocks];
            device.write(1, 0, parts(1, 3)).await.unwrap();
            device
                .write(1, 3 * BLOCK_BYTES as u64, parts(2, RING_BYTES_MAX / BLOCK_BYTES + 1))
                .await
                .unwrap();
            device.sync(1).await.unwrap();
            let found = device.read(1, 0, 4 * BLOCK_BYTES + RING_BYTES_MAX).await.unwrap();
            let expected = [parts(1, 3), parts(2, RING_BYTES_MAX / BLOCK_BYTES + 1)].concat();
            assert!(found == expected.concat());
            let written = device.ring.map(|ring| ring.written());
            let expected = if device.shared.direct { 1 } else { 0 };
            assert!(written.is_none_or(|written| written == expected), "{written:?}");
        });
    }
}
