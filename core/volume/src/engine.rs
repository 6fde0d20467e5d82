//! STUB of the public interface; the implementation replaces it.
#![allow(clippy::todo, clippy::unused_async, missing_docs, unused_variables)]

use crate::{Chance, Clock, PageStore, Registry, VolumeError};
use bytes::Bytes;
use ovs_backend::Backend;
use ovs_units::{ByteCount, ByteOffset, ByteRange, Epoch, Name, Sequence, SnapshotId, VdiskId, VpoolId};
use std::{path::PathBuf, rc::Rc, time::Duration};

/// What an engine needs from outside.
pub struct EngineParts {
    pub clock: Rc<dyn Clock>,
    pub chance: Rc<dyn Chance>,
    pub registry: Rc<dyn Registry>,
    pub pages: Rc<dyn PageStore>,
    /// The directory of the write buffer's segments (locked exclusively while the engine lives).
    pub buffer_dir: PathBuf,
}

/// Sizes and times; every one has a default.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// All segments together; a multiple of `segment_bytes`.
    pub buffer_bytes: u64,
    pub segment_bytes: u64,
    /// Record payloads kept in memory at most.
    pub memory_bytes: u64,
    pub sco_bytes: u64,
    /// A vDisk with this much buffered is written out.
    pub destage_bytes: u64,
    /// Or with anything buffered for this long.
    pub destage_after: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        todo!()
    }
}

/// What a write does when the write buffer has no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// Wait; refuse with `NoSpace` after the time, if one is given.
    Stall { timeout: Option<Duration> },
    /// Refuse with `NoSpace` at once.
    NoSpace,
}

/// A vDisk to be made.
#[derive(Debug, Clone)]
pub struct CreateVdisk {
    pub id: VdiskId,
    pub vpool: VpoolId,
    pub size: ByteCount,
    /// Opaque to the engine; kept on the backend so that a recovery finds it (name, policy and so on, as JSON).
    pub properties: Bytes,
    /// The parent's snapshot, for a clone.
    pub base: Option<(VdiskId, SnapshotId)>,
    pub on_full: OnFull,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub id: SnapshotId,
    pub name: Name,
    pub created_ms: u64,
    pub sequence: Sequence,
    pub size: ByteCount,
    /// Everything in it has left this host's write buffer.
    pub on_backend: bool,
    /// Deleted, but kept for its clones.
    pub hidden: bool,
    pub clone_count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VdiskState {
    Ok,
    /// The backend does not take data; the reason. Clears by itself.
    Stalled(String),
    Damaged(String),
    Offline(String),
}

#[derive(Debug, Clone)]
pub struct VdiskStats {
    pub state: VdiskState,
    pub epoch: Epoch,
    pub sequence: Sequence,
    pub size: ByteCount,
    /// Mapped on the backend.
    pub mapped: ByteCount,
    /// In the write buffer, not yet on the backend.
    pub buffered: ByteCount,
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    pub backend_put_bytes: u64,
}

#[derive(Debug, Clone)]
pub struct EngineStats {
    pub buffer_total_bytes: u64,
    pub buffer_used_bytes: u64,
    pub log_written_bytes: u64,
    pub log_syncs: u64,
    pub vdisks_open: u64,
}

/// A stretch of a vDisk for `block status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub length: ByteCount,
    /// False: a hole that reads as zeros.
    pub allocated: bool,
}

/// A vDisk found on a backend by [`Engine::discover`].
#[derive(Debug, Clone)]
pub struct FoundVdisk {
    pub id: VdiskId,
    pub properties: Bytes,
    pub size: ByteCount,
    pub snapshots: Vec<SnapshotInfo>,
    pub base: Option<(VdiskId, SnapshotId)>,
    /// Why it cannot be opened, if so.
    pub problem: Option<String>,
}

/// All vDisks of this host over one write buffer. Cheap to clone; one thread.
#[derive(Clone)]
pub struct Engine;

impl Engine {
    /// Locks the write buffer, replays it into memory, and is ready for `attach_backend` and `open_vdisk`.
    pub async fn open(config: EngineConfig, parts: EngineParts) -> Result<Engine, VolumeError> {
        todo!()
    }
    /// Tells where a vPool's objects live. Before any vDisk of it is opened.
    pub fn attach_backend(&self, vpool: VpoolId, backend: Rc<dyn Backend>) {
        todo!()
    }
    /// Makes a vDisk: on the backend and in the registry when this returns.
    pub async fn create_vdisk(&self, request: CreateVdisk) -> Result<Vdisk, VolumeError> {
        todo!()
    }
    /// Opens (or returns the open) vDisk.
    pub async fn open_vdisk(&self, vpool: VpoolId, id: VdiskId, on_full: OnFull) -> Result<Vdisk, VolumeError> {
        todo!()
    }
    pub fn vdisk(&self, id: VdiskId) -> Option<Vdisk> {
        todo!()
    }
    /// Tombstone first, then its objects go in the background; with clones left it is hidden until the last one goes.
    pub async fn delete_vdisk(&self, vpool: VpoolId, id: VdiskId) -> Result<(), VolumeError> {
        todo!()
    }
    /// Reads a backend alone and tells what it holds; `adopt_vdisk` writes a found one's head into the registry.
    pub async fn discover(&self, vpool: VpoolId) -> Result<Vec<FoundVdisk>, VolumeError> {
        todo!()
    }
    pub async fn adopt_vdisk(&self, vpool: VpoolId, id: VdiskId) -> Result<(), VolumeError> {
        todo!()
    }
    pub fn stats(&self) -> EngineStats {
        todo!()
    }
    /// Sends out everything buffered (as far as the backends take it within `patience`), checkpoints, syncs, unlocks.
    pub async fn close(&self, patience: Duration) -> Result<(), VolumeError> {
        todo!()
    }
}

/// One open vDisk. Cheap to clone; one thread.
#[derive(Clone)]
pub struct Vdisk;

impl Vdisk {
    pub fn id(&self) -> VdiskId {
        todo!()
    }
    pub fn size(&self) -> ByteCount {
        todo!()
    }
    pub fn stats(&self) -> VdiskStats {
        todo!()
    }
    /// Any alignment, within the size (`Refused` otherwise).
    pub async fn read(&self, range: ByteRange) -> Result<Bytes, VolumeError> {
        todo!()
    }
    /// Acknowledged when the kernel has it; with `stable`, when it is on stable storage (FUA).
    pub async fn write(&self, offset: ByteOffset, data: Bytes, stable: bool) -> Result<(), VolumeError> {
        todo!()
    }
    /// Discard and write-zeroes: reads as zeros afterwards. Any alignment.
    pub async fn zero(&self, range: ByteRange, stable: bool) -> Result<(), VolumeError> {
        todo!()
    }
    /// Everything acknowledged before is on stable storage afterwards.
    pub async fn flush(&self) -> Result<(), VolumeError> {
        todo!()
    }
    pub async fn extents(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, VolumeError> {
        todo!()
    }
    /// Contains every write acknowledged before; returns when as durable as a flush.
    pub async fn snapshot(&self, id: SnapshotId, name: Name) -> Result<SnapshotInfo, VolumeError> {
        todo!()
    }
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        todo!()
    }
    /// Comes back when everything in the snapshot is on the backend.
    pub async fn wait_on_backend(&self, id: SnapshotId) -> Result<(), VolumeError> {
        todo!()
    }
    /// With clones left it is hidden until the last one goes.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), VolumeError> {
        todo!()
    }
    pub async fn rollback(&self, id: SnapshotId) -> Result<(), VolumeError> {
        todo!()
    }
    /// Grows or shrinks; the cut-off part reads as zeros if it comes back. Records the change on the backend.
    pub async fn resize(&self, size: ByteCount) -> Result<(), VolumeError> {
        todo!()
    }
    /// Replaces the opaque properties, on the backend, before it returns.
    pub async fn set_properties(&self, properties: Bytes) -> Result<(), VolumeError> {
        todo!()
    }
    pub fn properties(&self) -> Bytes {
        todo!()
    }
    pub fn set_on_full(&self, on_full: OnFull) {
        todo!()
    }
    /// Reads of a snapshot.
    pub async fn read_snapshot(&self, id: SnapshotId, range: ByteRange) -> Result<Bytes, VolumeError> {
        todo!()
    }
    pub async fn snapshot_extents(&self, id: SnapshotId, range: ByteRange, limit: usize) -> Result<Vec<Extent>, VolumeError> {
        todo!()
    }
    /// Sends out what is buffered now and waits for it.
    pub async fn destage(&self) -> Result<(), VolumeError> {
        todo!()
    }
}
