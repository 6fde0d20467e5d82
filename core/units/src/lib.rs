//! The words and numbers of a vDisk, as types.
//!
//! Clusters, bytes, epochs, sequences and names each have their own type, so that no function takes two naked
//! `u64` and no conversion hides its rounding. Everything outside (`NBD`, `FUSE`, RPC, files) is turned into
//! these at its door, once.
//!
//! Not here: I/O, the clock, chance, any byte format (see `ovs-format`).

mod block;
mod id;
mod name;
mod planted;
mod size;

pub use block::{ByteCount, ByteOffset, ByteRange, CLUSTER_SIZE_BYTES, Cluster, ClusterCount, ClusterRange};
pub use id::{Epoch, JournalIndex, PutId, ScoNumber, Sequence, SnapshotId, VdiskId, VpoolId};
pub use name::{Name, NameError, VdiskPath, VdiskPathError};
pub use planted::planted;
pub use size::{SizeError, format_size, parse_size};

/// The largest vDisk: 64 TiB.
pub const VDISK_SIZE_BYTES_MAX: u64 = 64 << 40;
