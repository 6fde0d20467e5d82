//! The Volume Driver: blocks become a log, a map and SCOs.
//!
//! ```text
//!  write ─▶ write buffer (log) ─▶ overlay: cluster → record          acknowledged when the kernel has the record
//!  enough buffered, or aged ─▶ seal the overlay ─▶ SCOs ─▶ journal record (TLog) ─▶ head ─▶ map ─▶ release the buffer
//!  read  ─▶ overlays, newest first ─▶ map ─▶ read cache, or SCO ─▶ verify
//! ```
//!
//! Invariants: one thread owns an engine and everything in it; a write is acknowledged only when every earlier byte of
//! its log is written; the backend holds a vDisk as a prefix of its accepted order; buffers are released after the head
//! that replaces them is on stable storage. Not here: HTTP, FUSE, NBD, S3, names of vDisks (see `ovs-cluster`), clocks
//! and chance other than through [`Clock`] and [`Chance`].

mod cache;
mod engine;
mod environment;
mod error;
mod head;
mod journal;
mod limiter;
mod log;
mod map;
mod overlay;
mod pages;
mod readers;
mod registry;
mod sco;
mod tombstone;
mod vdisk;

pub use cache::{CacheDevice, CacheParts, CacheStats, CacheTierStats, FileCache, VdiskCacheStats};
pub use engine::{
    CreateVdisk, Engine, EngineConfig, EngineParts, EngineStats, Extent, FoundVdisk, OnFull, SnapshotInfo,
    VdiskState, VdiskStats,
};
pub use environment::{Chance, Clock, SystemChance, SystemClock};
pub use error::VolumeError;
pub use limiter::GuestRequest;
pub use log::{FileDevice, LogDevice};
pub use map::MapStats;
pub use pages::{MemoryPages, PageId, PageStore};
pub use registry::{Entry, MemoryRegistry, Registry, Revision, Transaction};
pub use vdisk::{ScrubReport, Vdisk};

/// Decoders of outside bytes that are nobody else's business: for `tests/decoders` alone.
#[doc(hidden)]
pub mod decoders {
    use ovs_units::VdiskId;

    /// A head from its JSON, as its JSON again.
    pub fn head(vdisk: VdiskId, bytes: &[u8]) -> Option<Vec<u8>> {
        crate::head::Head::decode(vdisk, bytes).ok().map(|head| head.encode())
    }

    pub use crate::journal::{position_of, record_name};
}
