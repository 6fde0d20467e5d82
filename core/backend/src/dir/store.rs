//! Opening the folder, putting and deleting objects.
//!
//! What a power loss leaves, by the last step of a put that was done (numbers as in `dir.rs`):
//!
//! | done | left | what happens to it |
//! |---|---|---|
//! | 1 written, synced | a temporary file, or nothing | swept at the next open |
//! | 2 folders made | perhaps empty folders | stay; the next put into them syncs the folders above them again |
//! | 3 linked | the object whole, or nothing | a retry finds the same bytes, or begins anew |
//! | 4 temporary name gone | as 3 | |
//! | 5 folder synced | the object | it was answered `Ok` |
//!
//! A step 5 that fails takes back what other threads did in that folder, too: `folders.rs`.
//!
//! A process that dies between 3 and 5 leaves an object that its successor reads though a power loss could still take
//! it away. So `open` syncs the whole file system once, before anything is read: what recovery has seen stays.

use super::{disk::Disk, error::Failure, folders::FolderSyncs};
use crate::{
    BackendError, ObjectName, Urgency,
    sync::{Mutex, MutexGuard},
};
use bytes::Bytes;
use ovs_units::planted;
use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::{
        PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Says that a folder is a backend of ours, and mounted.
const MARKER_FILE: &str = ".ovs-backend";
const MARKER: &[u8] = b"ovs directory backend, format 1\n";
const TEMPORARY_PREFIX: &str = ".tmp-";
/// Folders remembered as synced; past this many the memory starts afresh, which costs some syncs.
const SYNCED_FOLDERS_MAX: usize = 64 << 10;

/// Numbers of temporary files: one count for the process, since two backends may share a folder.
static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// What to do with a folder that has no marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfUnmarked {
    Make,
    Refuse,
}

/// How a put came out when nothing failed.
enum Published {
    New,
    /// The name was there with the same bytes.
    Same,
    /// The name was there with other bytes, or is a folder, or lies below an object.
    Other,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Store<D> {
    pub(super) disk: D,
    root: PathBuf,
    pub(super) reserve_bytes: u64,
    pub(super) reserve_is_whole: Mutex<bool>,
    /// Objects being put or deleted. A put that its caller has given up may still run: the next one for the same name
    /// must not answer from what that one may be about to take back.
    busy: Mutex<HashSet<String>>,
    /// Folders whose own names are on stable storage, as far as this process knows.
    synced_folders: Mutex<HashSet<PathBuf>>,
    syncs: FolderSyncs,
}

impl<D: Disk> Store<D> {
    pub(super) fn open(
        disk: D,
        root: PathBuf,
        reserve_bytes: u64,
        if_unmarked: IfUnmarked,
    ) -> Result<Store<D>, BackendError> {
        let store = Store {
            disk,
            root,
            reserve_bytes,
            reserve_is_whole: Mutex::default(),
            busy: Mutex::default(),
            synced_folders: Mutex::default(),
            syncs: FolderSyncs::new(),
        };
        let root = store.root();
        if if_unmarked == IfUnmarked::Make && !store.is_marked() {
            store.make_root().map_err(|failure| failure.of("open", ""))?;
        } else {
            store.check_marker("open", "")?;
            // What a predecessor linked and did not come to sync.
            store.disk.sync_all(root).map_err(|error| Failure::at("sync", root)(error).of("open", ""))?;
        }
        match store.disk.sweep(root, TEMPORARY_PREFIX) {
            Ok(0) => {}
            Ok(count) => tracing::info!(path = %root.display(), count, "unfinished objects swept"),
            // A read-only folder still serves reads.
            Err(error) => {
                tracing::warn!(path = %root.display(), %error, "unfinished objects cannot be swept")
            }
        }
        store.find_reserve();
        Ok(store)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Steps 1 to 5, with the reserve if it must be and may be.
    pub(super) fn put(
        &self,
        name: &ObjectName,
        parts: &[Bytes],
        urgency: Urgency,
    ) -> Result<(), BackendError> {
        let object = name.as_str();
        let _busy = self.claim("put", object)?;
        self.check_marker("put", object)?;
        let length = parts.iter().map(|part| part.len() as u64).sum();
        self.admit(object, length, urgency)?;
        match self.with_reserve(urgency, || self.publish(object, parts)) {
            Ok(Published::New | Published::Same) => Ok(()),
            Ok(Published::Other) if planted("directory: other bytes under a name count as put") => Ok(()),
            Ok(Published::Other) => Err(BackendError::Conflict { object: object.to_owned() }),
            Err(failure) => Err(failure.of("put", object)),
        }
    }

    /// Gone when this returns, also after a power loss.
    pub(super) fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        let object = name.as_str();
        let _busy = self.claim("delete", object)?;
        let path = self.root.join(object);
        let folder = parent(&path);
        let failures = self.syncs.failures(folder);
        let deleted = self.with_reserve(Urgency::Reserve, || match self.disk.unlink(&path) {
            // Gone already, but perhaps by a delete whose sync failed: synced again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // A name that no object can have here: below an object, or that of a folder.
            Err(_) if self.disk.is_dir(&path) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
            done => done.map_err(Failure::at("delete", &path)),
        });
        let deleted = deleted.and_then(|()| {
            match self.syncs.sync(&self.disk, folder, failures).map_err(Failure::at("sync", folder)) {
                Err(failure) if failure.is_absent() => Ok(()),
                synced => synced,
            }
        });
        deleted.map_err(|failure| failure.of("delete", object))?;
        // After the fact: "gone already" is only true of the folder that is ours.
        self.check_marker("delete", object)
    }

    /// `Retry` when the marker is not there: what is below the path is not our folder.
    pub(super) fn check_marker(&self, operation: &'static str, object: &str) -> Result<(), BackendError> {
        let path = self.root.join(MARKER_FILE);
        let reason = match self.disk.holds(&path, &[Bytes::from_static(MARKER)]) {
            Ok(true) => return Ok(()),
            Ok(false) => format!("{} is not the marker of a format known here", path.display()),
            Err(error) => format!("{} cannot be read ({error}): is its file system mounted?", path.display()),
        };
        Err(BackendError::Retry { operation, object: object.to_owned(), reason })
    }

    /// A file of its own under a new temporary name.
    pub(super) fn create_temporary(&self) -> io::Result<(PathBuf, D::File)> {
        loop {
            let number = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join(format!("{TEMPORARY_PREFIX}{}-{number}", std::process::id()));
            match self.disk.create(&path) {
                // Another host's, or one that could not be swept.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                created => return created.map(|file| (path, file)),
            }
        }
    }

    /// Any marker at all: one of another format must be refused, not replaced.
    fn is_marked(&self) -> bool {
        !matches!(self.disk.length(&self.root.join(MARKER_FILE)), Ok(None))
    }

    /// Makes the folder with every missing one above it, each synced into the one above, and then the marker. Those
    /// that exist are synced too: a predecessor may have made them and died.
    fn make_root(&self) -> Result<(), Failure> {
        let folders: Vec<&Path> = self.root.ancestors().filter(|folder| folder.parent().is_some()).collect();
        for folder in folders.into_iter().rev() {
            let is_new = !self.disk.is_dir(folder);
            if is_new {
                self.disk.make_dir(folder).map_err(Failure::at("make", folder))?;
            }
            let above = parent(folder);
            match self.disk.sync_dir(above) {
                Ok(()) => {}
                // Somebody else's folder, which we may pass through and no more.
                Err(error) if !is_new && error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => {
                    if is_new {
                        let _ = self.disk.remove_dir(folder);
                    }
                    return Err(Failure::at("sync", above)(error));
                }
            }
        }
        let marker = self.root.join(MARKER_FILE);
        let (temporary, mut file) = self.create_temporary().map_err(Failure::at("write to", &self.root))?;
        self.disk
            .append(&mut file, &[Bytes::from_static(MARKER)])
            .and_then(|()| self.disk.sync(&mut file))
            .and_then(|()| self.disk.rename(&temporary, &marker))
            .map_err(Failure::at("write", &marker))?;
        self.disk.sync_dir(&self.root).map_err(Failure::at("sync", &self.root))
    }

    fn publish(&self, object: &str, parts: &[Bytes]) -> Result<Published, Failure> {
        let path = self.root.join(object);
        let folder = parent(&path);
        let failures = self.syncs.failures(folder);
        let (temporary, mut file) = self.create_temporary().map_err(Failure::at("write to", &self.root))?;
        // 1. The bytes, synced. 2. The folders. 3. The name.
        let named = self
            .fill(&mut file, parts)
            .map_err(Failure::at("write", &temporary))
            .and_then(|()| self.make_folders(object))
            .and_then(|()| self.name(&temporary, &path, parts));
        // 4. The temporary name goes, whatever came of it (after a rename it is gone).
        match self.disk.unlink(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %temporary.display(), %error, "an unfinished object stays until the next start");
            }
            _ => {}
        }
        // The lock on the file lasts until here, so that no sweep takes a file that is being named.
        drop(file);
        let published = named?;
        if matches!(published, Published::Other) {
            return Ok(published);
        }
        // 5. The name is on stable storage.
        if planted("directory: its folder is not synced") {
            return Ok(published);
        }
        let Err(error) = self.syncs.sync(&self.disk, folder, failures) else { return Ok(published) };
        if matches!(published, Published::New) {
            // A failed sync is not tried again as if nothing had happened: the kernel may have dropped what it could
            // not write. The name goes, and the next attempt makes a new file and a new name.
            let _ = self.disk.unlink(&path);
            let _ = self.syncs.turn(folder).sync(&self.disk, folder);
        }
        self.forget_folders();
        Err(Failure::at("sync", folder)(error))
    }

    fn fill(&self, file: &mut D::File, parts: &[Bytes]) -> io::Result<()> {
        self.disk.append(file, parts)?;
        self.disk.sync(file)
    }

    fn name(&self, temporary: &Path, path: &Path, parts: &[Bytes]) -> Result<Published, Failure> {
        match self.disk.link(temporary, path) {
            Ok(()) => Ok(Published::New),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if self.disk.is_dir(path) {
                    return Ok(Published::Other);
                }
                let same = self.disk.holds(path, parts).map_err(Failure::at("read", path))?;
                Ok(if same { Published::Same } else { Published::Other })
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Published::Other),
            Err(error) => {
                // A folder that was there is not any more: somebody else's hand. The next attempt makes it again.
                self.forget_folders();
                Err(Failure::at("link", path)(error))
            }
        }
    }

    /// Makes the folders of an object and syncs the one above each, from the top down. One that exists is synced too
    /// the first time: whoever made it may have died.
    fn make_folders(&self, object: &str) -> Result<(), Failure> {
        for (at, _) in object.match_indices('/') {
            let folder = self.root.join(&object[..at]);
            if lock(&self.synced_folders).contains(&folder) {
                continue;
            }
            let above = parent(&folder);
            let turn = self.syncs.turn(above);
            let is_new = match self.disk.make_dir(&folder) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                // Below an object: `name` finds out.
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
                Err(error) => return Err(Failure::at("make", &folder)(error)),
            };
            if planted("directory: a new folder counts as synced before it is") {
                lock(&self.synced_folders).insert(folder.clone());
            }
            if let Err(error) = turn.sync(&self.disk, above) {
                // As for an object's name: made anew by the next attempt. But only what nobody else has seen: an empty
                // folder of others may just have lost its last object, and taking it away would keep that from being
                // synced.
                if is_new {
                    let _ = self.disk.remove_dir(&folder);
                }
                self.forget_folders();
                return Err(Failure::at("sync", above)(error));
            }
            let mut synced = lock(&self.synced_folders);
            if synced.len() >= SYNCED_FOLDERS_MAX {
                synced.clear();
            }
            synced.insert(folder);
        }
        Ok(())
    }

    fn forget_folders(&self) {
        lock(&self.synced_folders).clear();
    }

    /// Does it again once with the reserve released, if there is no space and the caller may use that.
    fn with_reserve<T>(&self, urgency: Urgency, work: impl Fn() -> Result<T, Failure>) -> Result<T, Failure> {
        let was_whole = urgency == Urgency::Reserve && *lock(&self.reserve_is_whole);
        match work() {
            // Perhaps another thread has released it since: that is as good.
            Err(failure) if failure.is_no_space() && was_whole => {
                self.release_reserve();
                work()
            }
            done => done,
        }
    }

    fn claim(&self, operation: &'static str, object: &str) -> Result<Claim<'_>, BackendError> {
        if lock(&self.busy).insert(object.to_owned()) {
            return Ok(Claim { busy: &self.busy, object: object.to_owned() });
        }
        let reason = "an earlier attempt at this object has not ended yet".to_owned();
        Err(BackendError::Retry { operation, object: object.to_owned(), reason })
    }
}

/// An object is one operation's alone until this goes.
struct Claim<'a> {
    busy: &'a Mutex<HashSet<String>>,
    object: String,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(self.busy).remove(&self.object);
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// What these locks guard is whole between any two statements, so a thread that panicked has spoilt nothing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
