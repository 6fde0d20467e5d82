//! ovsd-edge: a host's view of the vDisks, as files and as block devices of the kernel.
//!
//! ```text
//!  kernel ── /dev/fuse ──▶ fs ──▶ volume ──┬─▶ link ──▶ NBD client ──▶ /run/ovs/nbd/<uuid>.sock      contents
//!     ▲                    │  (tokio)      └─▶ rpc ───▶ RPC client ──▶ /run/ovs/ovsd.sock            names, sizes
//!     │                    └ in_flight: bound, and what the watchdog looks at
//!     └── invalidator ◀── watch ◀── events of ovsd; mounts come and go with vPools
//!
//!  plugin ──▶ door (/run/ovs/edge.sock) ──▶ device: connects the kernel's NBD with ovsd, and again after a restart
//! ```
//!
//! It holds the mounts so that ovsd can be restarted, upgraded or killed: requests wait for it, and the NBD client sends
//! again what was in flight. It holds no data of its own: what it has acknowledged, ovsd has acknowledged.
//!
//! Invariants:
//! * A thread of FUSE waits for nothing but room (`in_flight`); every wait for ovsd is a task.
//! * No path below a mount of ours is ever looked up by this process.
//! * The size of a file is the vDisk's to the byte; bytes past it are never written.
//! * A vDisk has one attachment and one connection here, whatever is open, and none when nothing is.
//!
//! Not here: directories and files other than `*.raw` (the File Driver), NFS, replay after the
//! loss of ovsd's host (a client on another host's power).

mod attributes;
mod clock;
mod device;
mod door;
mod errno;
mod extent;
mod file;
mod file_name;
mod fs;
mod in_flight;
mod inode;
mod invalidator;
mod link;
mod log;
mod mount;
mod mount_table;
mod options;
mod process;
mod rpc;
mod sd_notify;
mod service;
mod tree;
mod users;
mod volume;
mod watch;
mod watchdog;

pub use options::Options;
pub use service::{Edge, run};

/// Decoders of outside bytes that are nobody else's business: for `tests/decoders` alone.
#[doc(hidden)]
pub mod decoders {
    pub use crate::attributes::Ownership;
    pub use crate::file_name::{FILE_NAME_LENGTH_MAX, FileName, file_name};
    pub use crate::mount_table::parse as mount_table;
}
