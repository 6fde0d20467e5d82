//! What the plugin asks of ovsd, and the labels by which a vDisk is a Docker volume.
//!
//! A volume is a vDisk of the same name that carries [`LABEL_VOLUME`]. Its other labels say how it was asked for and
//! how far it has got:
//!
//! | label | value |
//! |---|---|
//! | `docker.volume` | the volume's name when it was created |
//! | `docker.formatted` | `no` from create until its file system, made or cloned, is complete and synced; then `ext4` or `xfs` |
//! | `docker.fstype` | the file system that it has or is to have, if known |
//! | `docker.directory` | `data` or `root`: which directory of the file system is the volume |
//! | `docker.origin` | what it is a clone of; a volume with this label is never formatted |
//! | `docker.options` | the options of the first create, as JSON |
//!
//! Only `docker.formatted=no` without `docker.origin` permits mkfs: a vDisk whose labels were lost keeps its data.

use crate::{
    options::{ExistingVolume, Fstype, Origin, VolumeOptions},
    record::VolumeDirectory,
};
use ovs_units::{Limits, Name, VdiskCache, VdiskId};
use std::{collections::BTreeMap, future::Future, path::PathBuf};
use thiserror::Error;

/// Marks a vDisk as a Docker volume.
pub const LABEL_VOLUME: &str = "docker.volume";
/// `no`, or the file system that is complete.
pub const LABEL_FORMATTED: &str = "docker.formatted";
/// The file system to make or to expect.
pub const LABEL_FSTYPE: &str = "docker.fstype";
/// Which directory is the volume.
pub const LABEL_DIRECTORY: &str = "docker.directory";
/// What it is a clone of.
pub const LABEL_ORIGIN: &str = "docker.origin";
/// The options of the first create.
pub const LABEL_OPTIONS: &str = "docker.options";
/// The value of [`LABEL_FORMATTED`] until a file system is complete.
pub const FORMATTED_NO: &str = "no";

/// A vDisk, as far as the plugin cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vdisk {
    /// Its identity.
    pub uuid: VdiskId,
    /// Its vPool's name.
    pub vpool: Name,
    /// Its name.
    pub name: Name,
    /// Its size.
    pub size_bytes: u64,
    /// What it occupies.
    pub allocated_bytes: u64,
    /// Frozen: it only has children, and is no volume any more.
    pub is_template: bool,
    /// How many snapshots it has.
    pub snapshot_count: u64,
    /// Its state, as ovsd words it.
    pub state: String,
    /// RFC 3339.
    pub created_at: String,
    /// Its file under ovsd-edge's mount.
    pub file: PathBuf,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Vdisk {
    /// True when Docker may see it.
    pub fn is_volume(&self) -> bool {
        self.labels.contains_key(LABEL_VOLUME) && !self.is_template
    }

    /// True once its file system is complete.
    pub fn is_formatted(&self) -> bool {
        self.labels.get(LABEL_FORMATTED).is_none_or(|text| text != FORMATTED_NO)
    }

    /// True when mkfs may run: it is new, or was left half formatted.
    pub fn may_be_formatted(&self) -> bool {
        !self.is_formatted() && !self.labels.contains_key(LABEL_ORIGIN)
    }

    /// The file system that its labels name.
    pub fn fstype(&self) -> Option<Fstype> {
        self.labels.get(LABEL_FSTYPE).and_then(|text| text.parse().ok())
    }

    /// Which directory is the volume.
    pub fn directory(&self) -> VolumeDirectory {
        match self.labels.get(LABEL_DIRECTORY) {
            Some(text) if text == VolumeDirectory::Root.as_label() => VolumeDirectory::Root,
            _ => VolumeDirectory::Data,
        }
    }

    /// The options that it was created with.
    pub fn options(&self) -> Result<VolumeOptions, String> {
        VolumeOptions::from_remembered(self.labels.get(LABEL_OPTIONS).map_or("{}", String::as_str))
    }

    /// What a second create is compared with.
    pub fn as_existing(&self) -> Result<ExistingVolume, String> {
        Ok(ExistingVolume {
            options: self.options()?,
            size_bytes: self.size_bytes,
            vpool: self.vpool.clone(),
            fstype: self.fstype().unwrap_or(Fstype::Ext4),
        })
    }
}

/// A vDisk to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVdisk {
    /// Where.
    pub vpool: Name,
    /// Its name.
    pub name: Name,
    /// Its size; none: its origin's.
    pub size_bytes: Option<u64>,
    /// The vDisk to clone, and how.
    pub origin: Option<(VdiskId, Origin)>,
    /// Its limits.
    pub limits: Limits,
    /// Its part in the read cache.
    pub cache: VdiskCache,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// Why ovsd did not do it, by what the plugin does next.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OvsdError {
    /// It is not there.
    #[error("{0}")]
    NotFound(String),
    /// Another one has the name.
    #[error("{0}")]
    Exists(String),
    /// Somebody holds it; later it may work.
    #[error("{0}")]
    InUse(String),
    /// No answer: ovsd is not running, or is being restarted.
    #[error("ovsd does not answer: {0}")]
    Unreachable(String),
    /// ovsd said no, and will again.
    #[error("{0}")]
    Refused(String),
}

/// The part of ovsd's RPC that the plugin uses. Every method has a time limit of its own.
pub trait Ovsd: Send + Sync + 'static {
    /// All Docker volumes of one name, in whatever vPool; more than one only if someone made them by hand.
    fn volumes_named(&self, name: &Name) -> impl Future<Output = Result<Vec<Vdisk>, OvsdError>> + Send;
    /// All Docker volumes.
    fn volumes(&self) -> impl Future<Output = Result<Vec<Vdisk>, OvsdError>> + Send;
    /// One vDisk, Docker volume or not.
    fn vdisk(&self, uuid: VdiskId) -> impl Future<Output = Result<Vdisk, OvsdError>> + Send;
    /// One vDisk by name, Docker volume or not.
    fn vdisk_named(&self, vpool: &Name, name: &Name)
    -> impl Future<Output = Result<Vdisk, OvsdError>> + Send;
    /// Makes a vDisk; succeeds if the same was made before.
    fn create(&self, new: &NewVdisk) -> impl Future<Output = Result<Vdisk, OvsdError>> + Send;
    /// Sets some labels and keeps the others.
    fn set_labels(
        &self,
        uuid: VdiskId,
        labels: &[(&str, &str)],
    ) -> impl Future<Output = Result<(), OvsdError>> + Send;
    /// Moves it to the trash; succeeds if it is not there.
    fn delete(&self, uuid: VdiskId) -> impl Future<Output = Result<(), OvsdError>> + Send;
}
