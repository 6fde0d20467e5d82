//! What the engine takes and tells.

use crate::{CacheParts, CacheStats, Chance, Clock, LogDevice, MapStats, PageStore, Registry};
use bytes::Bytes;
use ovs_units::{ByteCount, Epoch, Name, Sequence, SnapshotId, VdiskId, VpoolId};
use std::{rc::Rc, time::Duration};

/// What an engine needs from outside.
pub struct EngineParts {
    /// The time.
    pub clock: Rc<dyn Clock>,
    /// Random identities.
    pub chance: Rc<dyn Chance>,
    /// Where heads are.
    pub registry: Rc<dyn Registry>,
    /// Where map pages are.
    pub pages: Rc<dyn PageStore>,
    /// The device of the write buffer, see [`crate::FileDevice`].
    pub buffer: Rc<dyn LogDevice>,
    /// The read cache, if there is to be one.
    pub cache: Option<CacheParts>,
}

/// Sizes and times; every one has a default.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Payloads of the write buffer kept in memory at most.
    pub memory_bytes: u64,
    /// Pages of maps kept in memory at most, as long as half of that is enough for those that were changed.
    pub map_bytes: u64,
    /// An SCO's data at most.
    pub sco_bytes: u64,
    /// A vDisk with this much buffered is sent out …
    pub destage_bytes: u64,
    /// … or with anything buffered for this long.
    pub destage_after: Duration,
    /// vDisks that are sent out at once.
    pub destage_concurrency: usize,
    /// TLogs between two local checkpoints of a vDisk's map.
    pub checkpoint_every: u64,
    /// The map is copied to the backend when the journal has grown by this since (objects weigh 64 KiB each beside their
    /// bytes), or by the size of the last copy if that is more.
    pub copy_map_after: u64,
    /// A part of such a copy is put when it has grown to this.
    pub copy_part_bytes: usize,
    /// Scrub begins by itself.
    pub scrub_by_itself: bool,
    /// How often it is looked which vDisks have enough to give back.
    pub scrub_every: Duration,
    /// Not where less than this would be given back.
    pub scrub_min_bytes: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            memory_bytes: 256 << 20,
            map_bytes: 256 << 20,
            sco_bytes: 4 << 20,
            destage_bytes: 32 << 20,
            destage_after: Duration::from_secs(10),
            destage_concurrency: 4,
            checkpoint_every: 32,
            copy_map_after: 64 << 20,
            copy_part_bytes: 4 << 20,
            scrub_by_itself: true,
            scrub_every: Duration::from_secs(10),
            scrub_min_bytes: 64 << 20,
        }
    }
}

/// What a write does when the write buffer has no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// Wait; refuse with `NoSpace` after the time, if one is given.
    Stall {
        /// How long.
        timeout: Option<Duration>,
    },
    /// Refuse with `NoSpace` at once (unless the buffer is on its way out).
    NoSpace,
}

/// A vDisk to be made.
#[derive(Debug, Clone)]
pub struct CreateVdisk {
    /// Its identity.
    pub id: VdiskId,
    /// Its vPool.
    pub vpool: VpoolId,
    /// Its size, whole clusters; for a clone at least the snapshot's.
    pub size: ByteCount,
    /// Opaque UTF-8 text, kept on the backend so that a recovery finds it (name, policy and so on).
    pub properties: Bytes,
    /// The parent's snapshot, for a clone.
    pub base: Option<(VdiskId, SnapshotId)>,
    /// See [`OnFull`].
    pub on_full: OnFull,
}

/// A snapshot as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its identity.
    pub id: SnapshotId,
    /// Its name.
    pub name: Name,
    /// When it was taken, in wall-clock milliseconds since 1970.
    pub created_ms: u64,
    /// The last operation in it.
    pub sequence: Sequence,
    /// The vDisk's size then.
    pub size: ByteCount,
    /// Everything in it has left this host's write buffer.
    pub on_backend: bool,
    /// Deleted, but kept for its clones.
    pub hidden: bool,
    /// vDisks that were cloned from it.
    pub clone_count: u64,
}

/// How a vDisk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VdiskState {
    /// Well.
    Ok,
    /// It serves, but not what a damaged page of its map on this host leads to, until the engine is opened again.
    Degraded(String),
    /// The backend does not take data, for this reason. Clears by itself.
    Stalled(String),
    /// Something acknowledged is lost or wrong: it does not serve.
    Damaged(String),
    /// It does not serve: fenced, or its device failed.
    Offline(String),
}

/// Figures of a vDisk since it was opened.
#[derive(Debug, Clone)]
pub struct VdiskStats {
    /// How it is.
    pub state: VdiskState,
    /// The epoch it is in.
    pub epoch: Epoch,
    /// The last operation accepted.
    pub sequence: Sequence,
    /// Its size.
    pub size: ByteCount,
    /// Mapped on the backend.
    pub mapped: ByteCount,
    /// In the write buffer, not yet on the backend.
    pub buffered: ByteCount,
    /// Read requests.
    pub reads: u64,
    /// Write, discard and zero requests.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Bytes put on the backend as SCOs.
    pub backend_put_bytes: u64,
    /// Bytes of its own SCOs on the backend that its map may name.
    pub stored: ByteCount,
    /// Of those, what nobody needed when that was last found out; none: it has not been.
    pub reclaimable: Option<ByteCount>,
    /// Bytes stored with the vDisks that it is a clone of that its maps and snapshots named when that was last found out: at its
    /// cloning or by a scrub; none: it has not been. They have become no more since.
    pub shared: Option<ByteCount>,
    /// Bytes that scrub has put again elsewhere.
    pub scrub_moved_bytes: u64,
    /// Bytes of objects that scrub has removed.
    pub scrub_freed_bytes: u64,
    /// Guests' requests that the limits held back.
    pub throttled: u64,
    /// For how long, together.
    pub throttled_for: Duration,
}

/// Figures of the engine.
#[derive(Debug, Clone)]
pub struct EngineStats {
    /// All of the write buffer.
    pub buffer_total_bytes: u64,
    /// In use: slots with anything that is still needed.
    pub buffer_used_bytes: u64,
    /// Written to the log since the start.
    pub log_written_bytes: u64,
    /// Syncs of the log's segments since the start.
    pub log_syncs: u64,
    /// Slots of the write buffer that failed a write or a sync since the start, and are not used any more.
    pub buffer_failed_slots: u64,
    /// Open vDisks.
    pub vdisks_open: u64,
    /// Their maps.
    pub maps: MapStats,
    /// The read cache; none: there is none.
    pub cache: Option<CacheStats>,
}

/// A stretch of a vDisk for `block status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How long.
    pub length: ByteCount,
    /// False: a hole that reads as zeros.
    pub allocated: bool,
}

/// A vDisk found on a backend by [`crate::Engine::discover`].
#[derive(Debug, Clone)]
pub struct FoundVdisk {
    /// Its identity.
    pub id: VdiskId,
    /// Its properties.
    pub properties: Bytes,
    /// Its size.
    pub size: ByteCount,
    /// Its snapshots.
    pub snapshots: Vec<SnapshotInfo>,
    /// The parent's snapshot of a clone.
    pub base: Option<(VdiskId, SnapshotId)>,
    /// Why it cannot be opened, if so.
    pub problem: Option<String>,
}
