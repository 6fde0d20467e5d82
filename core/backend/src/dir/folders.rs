//! Syncing a folder that other threads put names into.
//!
//! A sync that fails may drop every name in the folder that was not synced yet, those of other threads too, and the next
//! sync then succeeds without them. Hence:
//!
//! * one thread at a time syncs a folder, and a failure is counted before the next one may;
//! * a sync is good for a name only if none has failed since before the name was made;
//! * a folder is made, synced into the one above and, if that fails, removed, all in one turn: nobody builds on a folder
//!   that may be dropped.
//!
//! Not here: other processes that put into the same folders. A sync of theirs that fails is not seen.

use super::{disk::Disk, store::lock};
use crate::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering::SeqCst},
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::Path,
};

/// Folders that share a place wait for each other, and a failure in one costs puts into the others a retry.
const PLACES: usize = 64;

/// Who syncs which folder, and how often that failed.
#[derive(Debug)]
pub(super) struct FolderSyncs {
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    turn: Mutex<()>,
    failures: AtomicU64,
}

/// The right to sync a folder; nobody else does while this is there. Whoever has one asks for no other.
pub(super) struct Turn<'a> {
    failures: &'a AtomicU64,
    _turn: MutexGuard<'a, ()>,
}

impl FolderSyncs {
    pub(super) fn new() -> FolderSyncs {
        let new = |_| Place { turn: Mutex::default(), failures: AtomicU64::new(0) };
        FolderSyncs { places: (0..PLACES).map(new).collect() }
    }

    /// Failed syncs so far: to be asked before a name is made or removed.
    pub(super) fn failures(&self, folder: &Path) -> u64 {
        self.place(folder).failures.load(SeqCst)
    }

    pub(super) fn turn(&self, folder: &Path) -> Turn<'_> {
        let place = self.place(folder);
        Turn { _turn: lock(&place.turn), failures: &place.failures }
    }

    /// Syncs what was done to the folder since there had been so many `failures`.
    pub(super) fn sync(&self, disk: &impl Disk, folder: &Path, failures: u64) -> io::Result<()> {
        let turn = self.turn(folder);
        turn.sync(disk, folder)?;
        if turn.failures.load(SeqCst) != failures {
            return Err(io::Error::other("another sync of this folder failed and may have dropped names"));
        }
        Ok(())
    }

    fn place(&self, folder: &Path) -> &Place {
        let mut hasher = DefaultHasher::new();
        folder.hash(&mut hasher);
        &self.places[(hasher.finish() % PLACES as u64) as usize]
    }
}

impl Turn<'_> {
    pub(super) fn sync(&self, disk: &impl Disk, folder: &Path) -> io::Result<()> {
        disk.sync_dir(folder).inspect_err(|_| {
            self.failures.fetch_add(1, SeqCst);
        })
    }
}
