//! `ovsd-docker`: Docker volumes on ovs.
//!
//! ```text
//! dockerd ── /run/docker/plugins/ovs.sock ── server ── driver ──┬── rpc ──▶ ovsd (vDisks, labels, events)
//!                                                               ├── host ─▶ NBD or loop device by ovsd-edge, mkfs, mount
//! dockerd ◀── containers (bollard) ── background ── reconcile ──┴── record ▶ <state-dir>/volumes/<uuid>.json
//! ```
//!
//! A volume is a vDisk with a label; the plugin adds a file system, a mount and the count of who uses it. It holds no
//! data and is not in the data path: it may die and be restarted at any moment while containers go on.
//!
//! Deliberately not here: a backend, the volume engine, a shell, anything that falls back to a local directory.

pub mod background;
mod cache_options;
pub mod containers;
pub mod driver;
pub mod filesystem_options;
pub mod host;
mod limit_options;
pub mod message;
pub mod options;
pub mod ovsd;
pub mod record;
pub mod refs;
pub mod rpc;
pub mod server;
pub mod socket;

/// Decoders of outside bytes that are nobody else's business: for `tests/decoders` alone.
#[doc(hidden)]
pub mod decoders {
    pub use crate::host::{HEAD_BYTES, mount_table};
}
