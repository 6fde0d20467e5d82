//! Objects as files: the name of an object is its path below the folder.
//!
//! ```text
//!  <folder>/.ovs-backend            the marker: this is the folder, mounted and ours
//!  <folder>/.reserve                8 MiB of zeros that a full device gives back to deletes and commits
//!  <folder>/.tmp-<pid>-<number>     an object being written, locked by its writer; swept at open
//!  <folder>/v/0a1b…/j/1/0           the object `v/0a1b…/j/1/0`
//! ```
//!
//! Crash order of a put (what stands at each step after a power loss is in `store.rs`):
//!
//! 1. the bytes go to a temporary file and are synced;
//! 2. missing folders are made, and the folder above each is synced, from the top down;
//! 3. `link(2)` gives the file its name: atomic, and it never replaces anything;
//! 4. the temporary name goes;
//! 5. the folder of the name is synced; only now is the answer `Ok`.
//!
//! Invariants: a name is never seen with a part of its bytes; nothing is overwritten; a folder without its marker (an
//! unmounted file system) answers `Retry`, never "there is no such object". The folder is not locked: several vPools
//! may share one, each below its own prefix. Folders are never removed, so that no removal races with a put.

mod disk;
mod error;
mod folders;
mod listing;
mod open_files;
mod reading;
mod space;
mod store;

#[cfg(all(test, feature = "shuttle"))]
mod concurrency;
#[cfg(test)]
mod power_loss;

use crate::{Backend, BackendError, Capacity, ObjectInfo, ObjectName, Urgency};
use bytes::Bytes;
use disk::OsDisk;
use futures_util::future::{LocalBoxFuture, ready};
use open_files::{Closing, OpenFiles};
use ovs_direct_io::Reader;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use store::Store;
use tokio::sync::Semaphore;

/// Options of a directory backend.
#[derive(Debug, Clone)]
pub struct DirOptions {
    /// Its folder.
    pub path: PathBuf,
    /// Guest data is refused while the file system has no more than this left; deletes and commits go on.
    pub reserve_bytes: u64,
    /// Small reads of what is not in memory go to the kernel by io_uring, where it has that, and a thread is not kept for each. Not for
    /// runtimes whose time is paused: they do not know that somebody waits.
    pub io_uring: bool,
}

/// Threads at work on one folder: a file system that hangs keeps so many, and leaves the process the others.
const THREADS_MAX: usize = 64;

impl DirOptions {
    /// A folder with the default reserve: 1 % of its file system, 64 MiB at least and 1 GiB at most.
    pub fn new(path: impl Into<PathBuf>) -> DirOptions {
        let path = path.into();
        let reserve_bytes = space::default_reserve_bytes(&path);
        DirOptions { path, reserve_bytes, io_uring: false }
    }
}

/// Objects as files below a folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DirBackend {
    store: Arc<Store<OsDisk>>,
    files: Arc<OpenFiles>,
    /// Held by each thread that works here, also by those that nobody waits for any more.
    turns: Arc<Semaphore>,
}

impl DirBackend {
    /// Opens the folder, and makes it (durably) with its marker if it is not there. Blocks while it does.
    pub fn open(options: DirOptions) -> Result<DirBackend, BackendError> {
        DirBackend::open_as(options, store::IfUnmarked::Make)
    }

    /// Opens a folder that has been a backend before. Without its marker (a file system that is not mounted, say)
    /// this is `Retry`, where [`DirBackend::open`] would begin an empty one.
    pub fn open_existing(options: DirOptions) -> Result<DirBackend, BackendError> {
        DirBackend::open_as(options, store::IfUnmarked::Refuse)
    }

    fn open_as(options: DirOptions, if_unmarked: store::IfUnmarked) -> Result<DirBackend, BackendError> {
        let store = Store::open(OsDisk, options.path, options.reserve_bytes, if_unmarked)?;
        let files = OpenFiles::new(options.io_uring.then(Reader::new));
        let turns = Arc::new(Semaphore::new(THREADS_MAX));
        Ok(DirBackend { store: Arc::new(store), files: Arc::new(files), turns })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.store.root()
    }

    /// Runs `work` where blocking is allowed. A dropped future does not stop work that has begun: a put that nobody
    /// waits for any more may still take effect, as `Retry` allows.
    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        object: &str,
        work: impl FnOnce(&Store<OsDisk>) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let store = Arc::clone(&self.store);
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let work = move || {
            let _turn = turn;
            work(&store)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(stopped) => Err(BackendError::Retry {
                operation,
                object: object.to_owned(),
                reason: format!("the task did not end: {stopped}"),
            }),
        }
    }
}

impl Backend for DirBackend {
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let (of, files) = (name.clone(), Arc::clone(&self.files));
            self.run("put", of.as_str(), move |store| {
                let put = store.put(&name, &parts, urgency);
                if put.is_err() {
                    // It may have been there for a while.
                    drop(files.forget(&name));
                }
                put
            })
            .await
        })
    }

    fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let open = self.files.get(name);
        if let Ok(file) = &open
            && let Some(bytes) = self.files.read_at_once(file, offset, length)
        {
            return Box::pin(ready(Ok(bytes)));
        }
        let name = name.clone();
        Box::pin(async move {
            let of = name.clone();
            let (known, since) = (open.as_ref().ok().cloned(), open.err());
            if let Some(file) = &known {
                match self.files.read_cold(file, offset, length).await {
                    Ok(Some(bytes)) => return Ok(bytes),
                    Ok(None) => {}
                    Err(error) => {
                        close(self.files.forget(&of));
                        return Err(self.store.cannot_read(&of, error));
                    }
                }
            }
            let read = self.run("get", of.as_str(), move |store| {
                let file = known.map_or_else(|| store.open_object(&name), Ok)?;
                let bytes = store.read_object(&name, &file, offset, length)?;
                Ok((file, bytes))
            });
            let answer = read.await;
            let closing = match (&answer, since) {
                // What ends early is not known to be all of it: the next read looks again.
                (Ok((file, bytes)), Some(since)) if bytes.len() as u64 == length => {
                    self.files.keep(of, Arc::clone(file), since)
                }
                (Ok((_, bytes)), _) if bytes.len() as u64 == length => Closing::default(),
                // Of a network file system the file may have become stale.
                _ => self.files.forget(&of),
            };
            close(closing);
            answer.map(|(_, bytes)| bytes)
        })
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let of = name.clone();
            self.run("get", of.as_str(), move |store| {
                store.read_object(&name, &*store.open_object(&name)?, 0, u64::MAX)
            })
            .await
        })
    }

    /// From the disk, and not out of the page cache.
    fn get_stored(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let of = name.clone();
            self.run("get", of.as_str(), move |store| {
                let file = store.open_object(&name)?;
                file.read_stored().map_err(|error| store.cannot_read(&name, error))
            })
            .await
        })
    }

    /// All that can be read is safe, and all is told.
    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        self.get(name)
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> LocalBoxFuture<'_, Result<Vec<ObjectInfo>, BackendError>> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        Box::pin(async move {
            let of = prefix.clone();
            self.run("list", &of, move |store| store.list(&prefix, after.as_ref(), limit)).await
        })
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let (of, files) = (name.clone(), Arc::clone(&self.files));
            self.run("delete", of.as_str(), move |store| {
                let deleted = store.delete(&name);
                drop(files.forget(&name));
                deleted
            })
            .await
        })
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        Box::pin(self.run("capacity", "", |store| store.capacity().map(Some)))
    }
}

fn close(closing: Closing) {
    if !closing.is_empty() {
        drop(tokio::task::spawn_blocking(move || drop(closing)));
    }
}

#[cfg(test)]
mod tests;
