//! What the plugin does to the host: devices, file systems, mounts. A trait, so that the driver's order of steps can be
//! crashed at every one of them against a simulated kernel; [`linux::LinuxHost`] is the real one.
//!
//! ```text
//! ovsd ── NBD device (connected by ovsd-edge) ───┐
//!                                                ├─ ext4 | xfs ── <state-dir>/mnt/<uuid> ── data/ ── container
//! <vdisk>.raw (FUSE, ovsd-edge) ── loop device ──┘
//! ```
//!
//! Invariant: a vDisk has at most one living device on this host, ever. Two would be two caches over the same blocks:
//! the file system is then mounted twice and destroyed. So [`Host::attach`] takes over the device that is there, of
//! whichever kind, and a device goes by itself with its last user, whichever mount namespace that lives in. Beneath that,
//! both kinds need the vDisk's one exclusive attachment.

mod block_device;
mod filesystem;
pub mod linux;
mod loop_device;
mod mounts;
mod nbd_device;
mod program;
mod superblock;

pub use mounts::parse as mount_table;
pub use superblock::{Contents, HEAD_BYTES};

use crate::{
    filesystem_options::{MkfsOptions, MountOptions},
    options::{Fstype, RootDirectory},
};
use ovs_units::VdiskId;
use serde::{Deserialize, Serialize};
use std::{
    future::Future,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// A block device, and which use of it: `/dev/nbd3` is many devices in the course of a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// `/dev/nbd3`, `/dev/loop3`: it also says which kind it is.
    pub path: PathBuf,
    /// Another number after every attach.
    pub sequence: u64,
}

/// What carries a vDisk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A loop device over the vDisk's file: dies with ovsd-edge.
    Loop,
    /// The kernel's NBD, connected with ovsd: outlives ovsd-edge.
    Nbd,
}

impl DeviceKind {
    /// By the path of a device of ours.
    pub fn of(path: &Path) -> DeviceKind {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("nbd") { DeviceKind::Nbd } else { DeviceKind::Loop }
    }
}

/// Which kind a volume gets that has no device yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum DeviceChoice {
    /// An NBD device where this kernel has them, a loop device otherwise.
    #[default]
    Auto,
    /// A loop device.
    Loop,
    /// An NBD device; without one the mount fails.
    Nbd,
}

/// A device that stays attached while this lives, mounted or not.
pub struct Attached<Hold> {
    /// The device.
    pub device: Device,
    /// It was there before: some mount namespace may have it mounted, so mkfs and fsck must keep away.
    pub was_there: bool,
    /// Keeps the device from going by itself.
    pub hold: Hold,
}

/// How to make a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatPlan {
    /// Which.
    pub fstype: Fstype,
    /// The user's options.
    pub options: MkfsOptions,
    /// Nothing was ever written to it, so zeros need not be written.
    pub is_blank: bool,
}

/// Whether a device still reaches its vDisk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It reads.
    Alive,
    /// The FUSE mount below it died, or it was disconnected: it will never read or write again.
    Dead,
    /// It does not answer now, as while ovsd is being restarted; or it gives an I/O error of its own.
    Unknown,
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// With everything flushed; refused while files are open in this namespace.
    Flush,
    /// From the tree only: for a dead device, where nothing can be flushed.
    Detach,
}

/// Why the host did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostError {
    /// Someone has files open there.
    #[error("{0}")]
    Busy(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The host.
pub trait Host: Send + Sync + 'static {
    /// Keeps a device attached.
    type Hold: Send + Sync;

    /// What is on the vDisk's file; waits a while for the file to appear with this size.
    fn inspect(
        &self,
        file: &Path,
        size_bytes: u64,
    ) -> impl Future<Output = Result<Contents, HostError>> + Send;

    /// The vDisk's one device: the one that carries it already, or a new one. `known` is what was recorded.
    fn attach(
        &self,
        file: &Path,
        vdisk: VdiskId,
        known: Option<&Device>,
        contents: &Contents,
    ) -> impl Future<Output = Result<Attached<Self::Hold>, HostError>> + Send;

    /// True while the device is attached as it was, in whatever namespace it is used.
    fn is_attached(&self, device: &Device) -> impl Future<Output = bool> + Send;

    /// Whether it still works.
    fn health(&self, device: &Device, file: &Path) -> impl Future<Output = Health> + Send;

    /// Makes a file system; it is on stable storage when this returns.
    fn format(
        &self,
        device: &Device,
        plan: &FormatPlan,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Repairs what can be repaired without asking.
    fn check(&self, device: &Device, fstype: Fstype) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Mounts it; the target is made if need be.
    fn mount(
        &self,
        device: &Device,
        target: &Path,
        fstype: Fstype,
        options: &MountOptions,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Makes the volume's directory if `make` says so, sets its owner and mode, and syncs the file system.
    fn prepare(
        &self,
        target: &Path,
        directory: &Path,
        root: &RootDirectory,
        make: bool,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Unmounts it and removes the target; waits a moment for the device to go.
    fn unmount(&self, target: &Path, how: Unmount) -> impl Future<Output = Result<(), HostError>> + Send;

    /// The device mounted at the target.
    fn mounted(&self, target: &Path) -> impl Future<Output = Result<Option<Device>, HostError>> + Send;

    /// Every directory directly below this one on which something is mounted.
    fn mounts_below(&self, directory: &Path) -> impl Future<Output = Result<Vec<PathBuf>, HostError>> + Send;

    /// True when the device is mounted anywhere but at the target: in a container's namespace, or by hand. Also when
    /// that cannot be found out.
    fn is_used_elsewhere(&self, device: &Device, target: &Path) -> impl Future<Output = bool> + Send;

    /// Lets a file system that is mounted nowhere grow to its device's size, if this process may not do it later.
    fn grow_unmounted(
        &self,
        device: &Device,
        contents: &Contents,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Lets device and mounted file system grow to the file's size; does nothing if they have it.
    fn grow(
        &self,
        device: &Device,
        file: &Path,
        size_bytes: u64,
        target: &Path,
    ) -> impl Future<Output = Result<(), HostError>> + Send;
}
