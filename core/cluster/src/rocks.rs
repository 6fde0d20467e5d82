//! The registry and the map pages of one host, in one RocksDB.
//!
//! ```text
//!  <state>/registry/        column families
//!    default                  counters: the last revision, the highest page number
//!    registry                 key → revision (8 bytes), value
//!    records                  owner → checkpoint record
//!    pages                    page number (8 bytes) → page
//!    page_numbers             page number → nothing; the list of pages, read without reading pages
//! ```
//!
//! Crash order, registry: compares, puts, deletes and the revision are one batch, synced before the answer. Pages: the
//! pages in batches that are not synced, then the record in one that is; a log is a prefix after a power loss, so a
//! record never stands without its pages. What a dead process had written and not synced is made stable by the next
//! open (RocksDB writes what it replays to a synced table), so nothing that was read once goes away.
//!
//! After a failed write RocksDB takes no more of them until it is opened again. That happens here: the next write
//! closes and opens it, once there is room to, so that a disk that was full goes on by itself; a reserve keeps commits
//! and deletes going meanwhile. A commit that came back with an error may have taken effect, as with any remote
//! registry; its caller compares.
//!
//! Invariants: nothing lives here alone ([`OpenFailure::Damaged`] means: set it aside and rebuild). Registry commits
//! are one at a time. Not here: what the keys mean (`catalogue`, and the engine's heads).

mod database;
mod loads;
mod pages;
mod registry;
mod reserve;

#[cfg(test)]
mod tests;

pub use database::OpenFailure;
pub use pages::RocksPages;
pub use registry::{RocksRegistry, decode as decode_entry};

use database::Database;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Opens the host's RocksDB.
#[derive(Debug)]
pub struct RocksStore;

impl RocksStore {
    /// Opens, or makes, the database in the folder `path`. Blocks while it does. It is closed when both halves and
    /// every call on them are gone.
    pub fn open(path: &Path) -> Result<(RocksRegistry, RocksPages), OpenFailure> {
        let database = Arc::new(Database::open(path)?);
        let pages = RocksPages::new(Arc::clone(&database))?;
        Ok((RocksRegistry::new(database), pages))
    }

    /// Moves a damaged database out of the way, next to where it was, and returns its new name: it is evidence.
    pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        let aside = (1..10_000)
            .map(|number| path.with_file_name(format!("{name}.damaged-{number}")))
            .find(|aside| aside.symlink_metadata().is_err())
            .ok_or(io::ErrorKind::AlreadyExists)?;
        std::fs::rename(path, &aside)?;
        database::sync_folder(database::above(path))?;
        Ok(aside)
    }
}
