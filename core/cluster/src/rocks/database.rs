//! Opening RocksDB, and opening it again after a write has failed.

use super::reserve::{RESERVE_FILE, Reserve};
use ovs_volume::VolumeError;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    Error, ErrorKind, LogLevel, Options, ReadOptions, WriteBatch, WriteOptions,
};
use rustix::process::{Resource, getrlimit};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};
use thiserror::Error;

/// Of one column family; 8 MiB of pages between two flushes, and 4 families.
const WRITE_BUFFER_BYTES: usize = 8 << 20;
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// Tables that stay open, but no more than a quarter of what this process may have: opening one again costs as much as ten reads from it.
/// Each keeps its index, a few tens of KiB; maps of 1 TiB at random places are a hundred tables of 8 MiB.
const OPEN_FILES_MAX: u64 = 512;
/// The log, before the families that hold it up are flushed.
pub(super) const WAL_BYTES_MAX: u64 = 8 << 20;
/// What an open writes besides what it replays: a MANIFEST, a log, the beginnings of tables.
const OPEN_BYTES: u64 = 2 << 20;
/// RocksDB's own messages: warnings only, three files of 1 MiB at most.
const INFO_LOG_BYTES_MAX: usize = 1 << 20;
const INFO_LOG_FILES_MAX: usize = 3;
/// The column families.
#[derive(Debug, Clone, Copy)]
pub(super) enum Family {
    Registry,
    Records,
    Pages,
    PageNumbers,
}

impl Family {
    const ALL: [Family; 4] = [Family::Registry, Family::Records, Family::Pages, Family::PageNumbers];

    fn name(self) -> &'static str {
        match self {
            Family::Registry => "registry",
            Family::Records => "records",
            Family::Pages => "pages",
            Family::PageNumbers => "page_numbers",
        }
    }
}

/// Why the database does not open, by what to do about it.
#[derive(Debug, Clone, Error)]
pub enum OpenFailure {
    /// Its files are not what was written: set it aside ([`super::RocksStore::set_aside`]) and rebuild from the write
    /// buffer and the backends.
    #[error("the database in {path} is damaged: {reason}")]
    Damaged {
        /// The folder.
        path: String,
        /// What RocksDB found.
        reason: String,
    },
    /// Another process has it open (or a call of this one has not ended yet).
    #[error("the database in {path} is in use: {reason}")]
    InUse {
        /// The folder.
        path: String,
        /// What RocksDB found.
        reason: String,
    },
    /// The disk is full.
    #[error("no space to open the database in {path}: {reason}")]
    NoSpace {
        /// The folder.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The system says no for now (permissions, a read-only or failing disk); what is stored may be whole.
    #[error("the database in {path} cannot be opened: {reason}")]
    Unavailable {
        /// The folder.
        path: String,
        /// What the system said.
        reason: String,
    },
}

impl OpenFailure {
    fn of_io(path: &Path, error: &io::Error) -> OpenFailure {
        let (path, reason) = (path.display().to_string(), error.to_string());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                OpenFailure::NoSpace { path, reason }
            }
            _ => OpenFailure::Unavailable { path, reason },
        }
    }

    fn of_rocks(path: &Path, error: &Error) -> OpenFailure {
        let (path, reason) = (path.display().to_string(), error.to_string());
        let is_missing_file = reason.contains("No such file or directory");
        match error.kind() {
            _ if is_no_space(error) => OpenFailure::NoSpace { path, reason },
            ErrorKind::IOError if is_lock(&reason) => OpenFailure::InUse { path, reason },
            // A file that is named by another and not there is damage, not a device's trouble.
            ErrorKind::IOError if !is_missing_file => OpenFailure::Unavailable { path, reason },
            ErrorKind::Busy | ErrorKind::TimedOut | ErrorKind::TryAgain => {
                OpenFailure::Unavailable { path, reason }
            }
            _ => OpenFailure::Damaged { path, reason },
        }
    }
}

impl From<OpenFailure> for VolumeError {
    fn from(failure: OpenFailure) -> VolumeError {
        let text = failure.to_string();
        match failure {
            OpenFailure::Damaged { .. } => VolumeError::Damaged(text),
            OpenFailure::NoSpace { .. } => VolumeError::NoSpace(text),
            OpenFailure::InUse { .. } | OpenFailure::Unavailable { .. } => VolumeError::Retry(text),
        }
    }
}

/// The open database; `None` while it cannot be opened again.
pub(super) struct Database {
    path: PathBuf,
    open: RwLock<Option<DB>>,
    /// One write at a time, so that a transaction's compares hold until its batch is in.
    writes: Mutex<()>,
    /// A write has failed since it was opened: no other succeeds before it is opened again.
    is_suspect: AtomicBool,
    reserve: Reserve,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Database, OpenFailure> {
        make_folder(path).map_err(|error| OpenFailure::of_io(path, &error))?;
        check_not_headless(path)?;
        let reserve = Reserve::new(path);
        reserve.adjust();
        let open = open_rocks(path).map_err(|error| OpenFailure::of_rocks(path, &error))?;
        Ok(Database {
            path: path.to_owned(),
            open: RwLock::new(Some(open)),
            writes: Mutex::default(),
            is_suspect: AtomicBool::new(false),
            reserve,
        })
    }

    /// Reads; whatever writes do meanwhile.
    pub(super) fn read<T>(&self, work: impl FnOnce(&View<'_>) -> Result<T, Error>) -> Result<T, VolumeError> {
        {
            let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(db) = &*open {
                return work(&View { db }).map_err(|error| self.error("read", &error));
            }
        }
        let _alone = lock(&self.writes);
        self.reopen()?;
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = &*open else {
            return Err(VolumeError::Retry("the database is being opened".to_owned()));
        };
        work(&View { db }).map_err(|error| self.error("read", &error))
    }

    /// Refuses what can wait while the disk is full.
    pub(super) fn admit(&self) -> Result<(), VolumeError> {
        if self.reserve.adjust() { Ok(()) } else { Err(VolumeError::NoSpace(self.reserve.explain())) }
    }

    /// Runs one write alone; `work` may read, and write through [`Writer`].
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&Writer<'_>) -> Result<T, Error>,
    ) -> Result<T, VolumeError> {
        let _alone = lock(&self.writes);
        self.reserve.adjust();
        if self.is_suspect.load(Ordering::Relaxed) {
            self.reopen()?;
        }
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = &*open else { return Err(VolumeError::Retry("the database is not open".to_owned())) };
        work(&Writer { view: View { db } }).map_err(|error| {
            if !matches!(error.kind(), ErrorKind::InvalidArgument) {
                self.is_suspect.store(true, Ordering::Relaxed);
            }
            self.error("write", &error)
        })
    }

    /// Closes and opens; the caller holds `writes`. If it fails, the database is closed until a later call succeeds.
    fn reopen(&self) -> Result<(), VolumeError> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.is_some() {
            if !self.is_suspect.load(Ordering::Relaxed) {
                return Ok(());
            }
            // An open that fails half way leaves nothing that serves reads.
            self.check_room()?;
        }
        *open = None;
        let opened = open_rocks(&self.path).map_err(|error| OpenFailure::of_rocks(&self.path, &error))?;
        *open = Some(opened);
        self.is_suspect.store(false, Ordering::Relaxed);
        tracing::info!(path = %self.path.display(), "the database was opened again after a failed write");
        Ok(())
    }

    /// Is there room to open? What the logs hold is written to tables before they go.
    fn check_room(&self) -> Result<(), VolumeError> {
        let path = self.path.display();
        let measured = rustix::fs::statvfs(&self.path).map_err(io::Error::from);
        let (found, logs_bytes) = measured
            .and_then(|found| Ok((found, logs_bytes(&self.path)?)))
            .map_err(|error| VolumeError::Retry(format!("cannot measure {path}: {error}")))?;
        let available = found.f_bavail.saturating_mul(found.f_frsize);
        let needed = logs_bytes + OPEN_BYTES;
        if available >= needed {
            return Ok(());
        }
        Err(VolumeError::NoSpace(format!(
            "{path} has {available} bytes left, and opening it again after a failed write takes {needed}"
        )))
    }

    /// What was found wrong by a read that belongs to opening.
    pub(super) fn open_failure(&self, error: VolumeError) -> OpenFailure {
        let (path, reason) = (self.path.display().to_string(), error.to_string());
        match error {
            VolumeError::Damaged(_) => OpenFailure::Damaged { path, reason },
            VolumeError::NoSpace(_) => OpenFailure::NoSpace { path, reason },
            _ => OpenFailure::Unavailable { path, reason },
        }
    }

    fn error(&self, operation: &str, error: &Error) -> VolumeError {
        let text = format!("cannot {operation} the database in {}: {error}", self.path.display());
        match error.kind() {
            _ if is_no_space(error) => VolumeError::NoSpace(text),
            ErrorKind::Corruption => VolumeError::Damaged(text),
            _ => VolumeError::Retry(text),
        }
    }
}

/// What a reader may do.
pub(super) struct View<'a> {
    db: &'a DB,
}

impl View<'_> {
    pub(super) fn db(&self) -> &DB {
        self.db
    }

    pub(super) fn family(&self, family: Family) -> &ColumnFamily {
        // Every open names all of them and fails if one is not there.
        self.db.cf_handle(family.name()).expect("opened with all its column families")
    }

    pub(super) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.db.get_cf(self.family(family), key)
    }

    /// The same of what is kept in memory elsewhere, or is not wanted again: it takes no room in the cache.
    pub(super) fn get_once(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        self.db.get_cf_opt(self.family(family), key, &options)
    }

    /// A counter of the default family; 0 before it is first set.
    pub(super) fn counter(&self, name: &str) -> Result<u64, Error> {
        let bytes = self.db.get(name)?;
        Ok(bytes.and_then(|bytes| bytes.as_slice().try_into().ok()).map_or(0, u64::from_be_bytes))
    }
}

/// What the one writer may do besides.
pub(super) struct Writer<'a> {
    view: View<'a>,
}

impl<'a> std::ops::Deref for Writer<'a> {
    type Target = View<'a>;
    fn deref(&self) -> &View<'a> {
        &self.view
    }
}

impl Writer<'_> {
    /// In the log when this returns, and on stable storage after the next synced one.
    pub(super) fn write(&self, batch: WriteBatch) -> Result<(), Error> {
        self.db.write(batch)
    }

    /// On stable storage when this returns, with everything before it.
    pub(super) fn write_synced(&self, batch: WriteBatch) -> Result<(), Error> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options)
    }
}

fn open_rocks(path: &Path) -> Result<DB, Error> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    let files_max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    options.set_max_open_files(OPEN_FILES_MAX.min(files_max / 4) as i32);
    options.set_max_background_jobs(2);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    // The end of a log that a power loss tore was never answered for; damage before its end is reported.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_keep_log_file_num(INFO_LOG_FILES_MAX);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
    let families = Family::ALL
        .map(Family::name)
        .into_iter()
        .chain(["default"])
        .map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache)));
    DB::open_cf_descriptors(&options, path, families)
}

fn family_options(cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    // Pages are numbers that hardly compress, and the rest is small.
    options.set_compression_type(DBCompressionType::None);
    options
}

/// RocksDB makes an empty database of a folder that has files but no `CURRENT`. If any of them hold data, that file
/// was lost, and everything would be with it.
fn check_not_headless(path: &Path) -> Result<(), OpenFailure> {
    if path.join("CURRENT").exists() {
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(|error| OpenFailure::of_io(path, &error))?;
    for entry in entries {
        let name = entry.map_err(|error| OpenFailure::of_io(path, &error))?.file_name();
        let name = name.to_string_lossy();
        // A file system of its own has a `lost+found`.
        if !["LOCK", RESERVE_FILE, "lost+found"].contains(&&*name) && !name.starts_with("LOG") {
            let reason = format!("there is {name} but no CURRENT");
            return Err(OpenFailure::Damaged { path: path.display().to_string(), reason });
        }
    }
    Ok(())
}

fn logs_bytes(path: &Path) -> io::Result<u64> {
    let mut total_bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            total_bytes += entry.metadata()?.len();
        }
    }
    Ok(total_bytes)
}

/// Makes the folder with all above it, each synced into the one above: RocksDB syncs its files and its folder but not
/// the folder's own name, and was seen to lose all of it to a power loss.
fn make_folder(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.is_dir()).collect();
    for folder in missing.into_iter().rev().filter(|folder| !folder.as_os_str().is_empty()) {
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync_folder(above(folder))?,
        }
    }
    // It may have been made by a process that died before it synced.
    sync_folder(above(path))
}

pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(super) fn above(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn is_no_space(error: &Error) -> bool {
    let text: &str = error.as_ref();
    text.contains("No space left on device") || text.contains("Disk quota exceeded")
}

/// As RocksDB words it when the lock is this process's, and another's.
fn is_lock(reason: &str) -> bool {
    reason.contains("lock hold by current process") || reason.contains("While lock file")
}

/// What these locks guard is whole between any two statements, so a thread that panicked has spoilt nothing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` where blocking is allowed. Work that has begun goes on when nobody waits for it any more.
pub(super) async fn run<T: Send + 'static>(
    database: &Arc<Database>,
    work: impl FnOnce(&Database) -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let database = Arc::clone(database);
    tokio::task::spawn_blocking(move || work(&database)).await.unwrap_or_else(|stopped| {
        Err(VolumeError::Retry(format!("the registry's task did not end: {stopped}")))
    })
}
