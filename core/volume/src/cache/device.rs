//! The SSD under the cache: slots of 4 KiB, and a file that is one.

use bytes::Bytes;
use futures_util::future::{LocalBoxFuture, try_join_all};
use ovs_direct_io::Buffer;
use ovs_units::CLUSTER_SIZE_BYTES;
use rustix::fs::{FallocateFlags, OFlags};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const BLOCK_BYTES: usize = CLUSTER_SIZE_BYTES as usize;
/// Slots of one system call at most.
const RUN_MAX: usize = 64;
/// A read of many slots is so many at once, each of at least so many: an SSD answers several as soon as one.
const READERS_MAX: usize = 8;
const SLOTS_EACH_MIN: usize = 4;
/// Reads at once, of everybody: each takes a thread of those that the write buffer and the backends need too.
const JOBS_MAX: usize = 32;
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of a file system one in so many bytes stays free, and no more than so many of a large one.
const FREE_ONE_IN: u64 = 20;
const FREE_BYTES_MAX: u64 = 4 << 30;

/// Slots that may forget, and may lie: whoever reads checks what he gets. After an error it is asked nothing any more.
pub trait CacheDevice {
    /// How many slots.
    fn slot_count(&self) -> u32;

    /// What is in these slots, 4 KiB each, in their order.
    fn read(&self, slots: Vec<u32>) -> LocalBoxFuture<'_, io::Result<Vec<Bytes>>>;

    /// Puts 4 KiB into each of these slots.
    fn write(&self, blocks: Vec<(u32, Bytes)>) -> LocalBoxFuture<'_, io::Result<()>>;
}

/// A file without a name in a directory: what it held is gone with the process, however that ends, and so is its space.
#[derive(Debug)]
pub struct FileCache {
    file: Arc<File>,
    slot_count: u32,
    jobs: Arc<Semaphore>,
}

impl FileCache {
    /// Takes `size_bytes` in the directory, which has to be there: one that is made where an SSD should have been mounted would be on another
    /// disk. Blocks; call it before serving.
    pub fn open(directory: &Path, size_bytes: u64) -> io::Result<FileCache> {
        let path = directory.join("ovs-read-cache");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        // Left by one that died between these two steps.
        remove(&path)?;
        let direct = options.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(&path);
        let file = match direct {
            // tmpfs and a few others refuse O_DIRECT with EINVAL, and have made the file all the same.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                remove(&path)?;
                options.open(&path)?
            }
            direct => direct?,
        };
        remove(&path)?;
        let slot_count = u32::try_from(size_bytes / CLUSTER_SIZE_BYTES).unwrap_or(u32::MAX - 1);
        let size_bytes = u64::from(slot_count) * CLUSTER_SIZE_BYTES;
        // Else a file system would be full for as long as it takes to find that out.
        let space = rustix::fs::fstatvfs(&file)?;
        let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
        let spare_bytes = spare_bytes(space.f_blocks.saturating_mul(space.f_frsize));
        if free_bytes.saturating_sub(spare_bytes) < size_bytes {
            let text = format!(
                "{free_bytes} bytes are free where {size_bytes} are wanted and {spare_bytes} have to stay free"
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size_bytes) {
            // What cannot be set aside is found missing when it is written.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(size_bytes)?,
            done => done?,
        }
        Ok(FileCache { file: Arc::new(file), slot_count, jobs: Arc::new(Semaphore::new(JOBS_MAX)) })
    }
}

/// What a cache leaves of a file system of this size.
fn spare_bytes(total_bytes: u64) -> u64 {
    (total_bytes / FREE_ONE_IN).min(FREE_BYTES_MAX)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl CacheDevice for FileCache {
    fn slot_count(&self) -> u32 {
        self.slot_count
    }

    fn read(&self, slots: Vec<u32>) -> LocalBoxFuture<'_, io::Result<Vec<Bytes>>> {
        let share = slots.len().div_ceil(READERS_MAX).max(SLOTS_EACH_MIN);
        let parts: Vec<Vec<u32>> = slots.chunks(share).map(<[u32]>::to_vec).collect();
        // Nobody waits for an SSD that has enough to do.
        let permits: Option<Vec<_>> =
            parts.iter().map(|_| self.jobs.clone().try_acquire_owned().ok()).collect();
        let Some(permits) = permits else { return Box::pin(async { Ok(Vec::new()) }) };
        let reads = parts.into_iter().zip(permits).map(|(slots, permit)| {
            let file = self.file.clone();
            blocking(Some(permit), move || read_slots(&file, &slots))
        });
        let reads = try_join_all(reads);
        Box::pin(async move { Ok(reads.await?.concat()) })
    }

    fn write(&self, blocks: Vec<(u32, Bytes)>) -> LocalBoxFuture<'_, io::Result<()>> {
        let file = self.file.clone();
        Box::pin(blocking(None, move || {
            for run in runs(&blocks, |(slot, _)| *slot) {
                let mut buffer = Buffer::of(run.len() * BLOCK_BYTES);
                let parts = buffer.chunks_exact_mut(BLOCK_BYTES);
                parts.zip(run).for_each(|(part, (_, bytes))| part.copy_from_slice(bytes));
                file.write_all_at(&buffer, u64::from(run[0].0) * CLUSTER_SIZE_BYTES)?;
            }
            Ok(())
        }))
    }
}

fn read_slots(file: &File, slots: &[u32]) -> io::Result<Vec<Bytes>> {
    let mut found = Vec::with_capacity(slots.len());
    for run in runs(slots, |slot| *slot) {
        let mut buffer = Buffer::of(run.len() * BLOCK_BYTES);
        file.read_exact_at(&mut buffer, u64::from(run[0]) * CLUSTER_SIZE_BYTES)?;
        found.extend(buffer.chunks_exact(BLOCK_BYTES).map(Bytes::copy_from_slice));
    }
    Ok(found)
}

/// Stretches whose slots follow each other.
fn runs<T>(items: &[T], slot: impl Fn(&T) -> u32) -> impl Iterator<Item = &[T]> {
    let follows = move |one: &T, next: &T| slot(one).checked_add(1) == Some(slot(next));
    items.chunk_by(follows).flat_map(|run| run.chunks(RUN_MAX))
}

/// The permit is given back when the thread is free again, also where nobody has waited for that.
async fn blocking<T: Send + 'static>(
    permit: Option<OwnedSemaphorePermit>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let job = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work()
    });
    tokio::time::timeout(PATIENCE, job).await?.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn block(byte: u8) -> Bytes {
        vec![byte; BLOCK_BYTES].into()
    }

    async fn check_written_is_read(directory: &Path) {
        let cache = FileCache::open(directory, 300 * 4096 + 5).unwrap();
        assert_eq!(cache.slot_count(), 300);
        let blocks: Vec<(u32, Bytes)> =
            [7, 8, 9, 3].into_iter().chain(100..299).map(|slot| (slot, block(slot as u8))).collect();
        cache.write(blocks).await.unwrap();
        let found = cache.read(vec![9, 8, 3, 150, 151, 0]).await.unwrap();
        let expected: Vec<Bytes> = [9, 8, 3, 150, 151, 0].into_iter().map(block).collect();
        assert!(found == expected);
        let many: Vec<u32> = (100..299).rev().collect();
        let expected: Vec<Bytes> = many.iter().map(|slot| block(*slot as u8)).collect();
        assert!(cache.read(many).await.unwrap() == expected);
        assert!(cache.read(vec![299, 300]).await.is_err(), "past the end");
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_nothing_has_a_name() {
        let directory = tempfile::tempdir().unwrap();
        check_written_is_read(directory.path()).await;
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        // One that died in between, and a file system without direct I/O.
        std::fs::write(directory.path().join("ovs-read-cache"), "x").unwrap();
        check_written_is_read(directory.path()).await;
        if let Ok(shared) = tempfile::tempdir_in("/dev/shm") {
            check_written_is_read(shared.path()).await;
        }
    }

    #[test]
    fn a_file_is_nobody_elses() {
        let directory = tempfile::tempdir().unwrap();
        let cache = FileCache::open(directory.path(), 1 << 20).unwrap();
        let metadata = cache.file.metadata().unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.nlink(), metadata.len()), (0o600, 0, 1 << 20));
    }

    #[test]
    fn where_it_cannot_be_there_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(FileCache::open(&file, 1 << 20).is_err());
        assert!(
            FileCache::open(&directory.path().join("missing"), 1 << 20).is_err(),
            "an SSD that is not mounted"
        );
        std::fs::create_dir(directory.path().join("ovs-read-cache")).unwrap();
        assert!(FileCache::open(directory.path(), 1 << 20).is_err());
        let directory = tempfile::tempdir().unwrap();
        let full = FileCache::open(directory.path(), 8 << 40).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_large_file_system_may_be_nearly_full() {
        assert_eq!(spare_bytes(20 << 30), 1 << 30);
        assert_eq!(spare_bytes(252 << 30), 4 << 30);
        assert_eq!(spare_bytes(u64::MAX), 4 << 30);
    }
}
