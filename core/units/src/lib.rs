//! The words and numbers of a vDisk, as types.
//!
//! Clusters, bytes, epochs, sequences and names each have their own type, so that no function takes two naked
//! `u64` and no conversion hides its rounding. Everything outside (`NBD`, `FUSE`, RPC, files) is turned into
//! these at its door, once.
//!
//! Not here: I/O, the clock, chance, any byte format (see `ovs-format`).

mod block;
mod cache;
mod id;
mod limits;
mod name;
mod planted;
mod size;

pub use block::{ByteCount, ByteOffset, ByteRange, CLUSTER_SIZE_BYTES, Cluster, ClusterCount, ClusterRange};
pub use cache::{
    CACHE_QUOTA_BYTES_MAX, CACHE_QUOTA_BYTES_MIN, CacheDedup, CacheMode, QuotaError, VdiskCache, VpoolCache,
};
pub use id::{Epoch, JournalIndex, PutId, ScoNumber, Sequence, SnapshotId, VdiskId, VpoolId};
pub use limits::{
    BURST_S_DEFAULT, BURST_S_MAX, BYTES_PER_S_MAX, BYTES_PER_S_MIN, IOPS_MAX, Limits, LimitsError, Rates,
};
pub use name::{Name, NameError, VdiskPath, VdiskPathError};
pub use planted::planted;
pub use size::{SizeError, format_size, parse_size};

/// No counter of ours (an epoch, a sequence, a number in a log) gets here, at a million a second in 146,000 years. One that
/// is stored and says more is damage; all others have a successor.
pub const COUNTER_MAX: u64 = 1 << 62;

/// The largest vDisk: 64 TiB.
pub const VDISK_SIZE_BYTES_MAX: u64 = 64 << 40;
