//! Docker's operations on volumes.
//!
//! ```text
//! create ─▶ vDisk with labels (docker.formatted=no)
//! mount  ─▶ [attach ─▶ record ─▶ mkfs or fsck ─▶ mount ─▶ data/ ─▶ docker.formatted=ext4] ─▶ count the ID ─▶ answer
//! unmount ▶ count the ID down ─▶ [at 0: umount, device goes, record goes] ─▶ answer
//! ```
//!
//! Invariants:
//! * One lock per vDisk, never one over several: a volume that waits (for ovsd, for fsck) waits alone.
//! * What an answer says is in the record, synced, before the answer.
//! * Every operation may be cut off after any step (kill -9) and be asked for again.
//! * A vDisk is formatted only while its label says that nobody has had it yet.
//!
//! Not here: HTTP and time limits (`server`), the kernel (`host`), RPC (`ovsd`).

mod create;
mod mount;
mod reconcile;
mod show;
#[cfg(test)]
mod simulation;

pub use mount::Mounted;
pub use reconcile::{ContainerUse, Watch};

use crate::{
    host::{Host, HostError},
    options::OptionError,
    ovsd::{Ovsd, OvsdError, Vdisk},
    record::{Record, Records},
    refs::{MountId, TooManyMounts},
};
use ovs_units::{Name, VdiskId};
use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use thiserror::Error;
use tokio::sync::OwnedMutexGuard;

/// What does not change while the plugin runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory of mount points, one per vDisk UUID.
    pub mounts: PathBuf,
    /// The vPool of volumes that name none.
    pub vpool: Name,
    /// The size of volumes that name none.
    pub size_bytes: u64,
    /// The boot that devices and references belong to.
    pub boot_id: String,
}

/// Why an operation failed; the text is what the user of docker sees.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DriverError {
    /// The request is wrong.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// ovsd said so.
    #[error(transparent)]
    Ovsd(#[from] OvsdError),
    /// The host said so.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The references said so.
    #[error(transparent)]
    Refs(#[from] TooManyMounts),
    /// No volume of that name.
    #[error("no such volume: {0}")]
    NoVolume(Name),
    /// The volume is in use.
    #[error("{0}")]
    InUse(String),
    /// The record could not be written: nothing may be answered that would be forgotten.
    #[error("the plugin's state cannot be written: {0}")]
    Record(String),
    /// Something else about this volume.
    #[error("{0}")]
    Refused(String),
}

/// The driver, over whatever ovsd, host and records there are.
pub struct Driver<O, H, R> {
    ovsd: O,
    host: H,
    records: Arc<R>,
    settings: Settings,
    /// One lock per vDisk that was ever asked for; a few bytes each.
    locks: Mutex<HashMap<VdiskId, Arc<tokio::sync::Mutex<()>>>>,
    /// One lock per name that is being created.
    names: Mutex<HashMap<Name, Arc<tokio::sync::Mutex<()>>>>,
    /// The records on disk, as they are there. Changed only under the vDisk's lock, after the disk.
    known: Mutex<HashMap<VdiskId, Known>>,
}

/// A record, and how often it was touched by Docker: the reconciler leaves alone what moves.
#[derive(Debug, Clone)]
struct Known {
    record: Record,
    touch_count: u64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every section under these locks leaves the map whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<O: Ovsd, H: Host, R: Records> Driver<O, H, R> {
    /// Reads the records; touches nothing else.
    pub fn new(ovsd: O, host: H, records: R, settings: Settings) -> io::Result<Driver<O, H, R>> {
        let known = records.load()?;
        let known =
            known.into_iter().map(|record| (record.vdisk, Known { record, touch_count: 0 })).collect();
        let (locks, names) = (Mutex::default(), Mutex::default());
        Ok(Driver {
            ovsd,
            host,
            records: Arc::new(records),
            settings,
            locks,
            names,
            known: Mutex::new(known),
        })
    }

    async fn lock(&self, vdisk: VdiskId) -> OwnedMutexGuard<()> {
        let lock = locked(&self.locks).entry(vdisk).or_default().clone();
        lock.lock_owned().await
    }

    async fn lock_name(&self, name: &Name) -> OwnedMutexGuard<()> {
        let lock = {
            let mut names = locked(&self.names);
            names.retain(|_, lock| Arc::strong_count(lock) > 1);
            names.entry(name.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }

    fn record(&self, vdisk: VdiskId) -> Option<Record> {
        locked(&self.known).get(&vdisk).map(|known| known.record.clone())
    }

    /// The volume that Docker knows by this name, or mounted with this ID, on this host.
    fn record_of(&self, name: &Name, id: Option<&MountId>) -> Option<Record> {
        let known = locked(&self.known);
        let by_id = known.values().find(|known| id.is_some_and(|id| known.record.refs.knows(id)));
        let by_name = || known.values().find(|known| known.record.name == *name);
        // An ID may repeat (Docker before 1.12 sent none): it decides only where the name finds nothing.
        by_name().or(by_id).map(|known| known.record.clone())
    }

    fn touch(&self, vdisk: VdiskId) {
        if let Some(known) = locked(&self.known).get_mut(&vdisk) {
            known.touch_count += 1;
        }
    }

    async fn save(&self, record: &Record) -> Result<(), DriverError> {
        let (records, saved) = (self.records.clone(), record.clone());
        let result = tokio::task::spawn_blocking(move || records.save(&saved)).await;
        result.map_err(io::Error::other).flatten().map_err(|error| DriverError::Record(error.to_string()))?;
        let mut known = locked(&self.known);
        let touch_count = known.get(&record.vdisk).map_or(0, |known| known.touch_count) + 1;
        known.insert(record.vdisk, Known { record: record.clone(), touch_count });
        Ok(())
    }

    async fn forget(&self, vdisk: VdiskId) -> Result<(), DriverError> {
        let records = self.records.clone();
        let result = tokio::task::spawn_blocking(move || records.remove(vdisk)).await;
        result.map_err(io::Error::other).flatten().map_err(|error| DriverError::Record(error.to_string()))?;
        locked(&self.known).remove(&vdisk);
        Ok(())
    }

    fn target(&self, vdisk: VdiskId) -> PathBuf {
        self.settings.mounts.join(vdisk.to_string())
    }

    /// The one volume of this name.
    async fn volume(&self, name: &Name) -> Result<Option<Vdisk>, DriverError> {
        let mut volumes = self.ovsd.volumes_named(name).await?;
        let first = volumes.pop();
        if let (Some(first), Some(second)) = (&first, volumes.last()) {
            return Err(DriverError::Refused(format!(
                "two vDisks are Docker volumes named {name}: {}/{name} and {}/{name}; rename one of them",
                first.vpool, second.vpool
            )));
        }
        Ok(first)
    }
}
