//! Get, List and Path.

use super::{Driver, DriverError, locked};
use crate::{
    host::Host,
    message::{Volume, VolumeStatus},
    ovsd::{Ovsd, OvsdError, Vdisk},
    record::{Record, Records},
};
use ovs_units::{Name, format_size};
use std::{collections::BTreeSet, path::PathBuf, time::Duration};
use tokio::time::timeout;

/// How long ovsd may take over a volume of which enough is known here.
const PATIENCE_FOR_MOUNTED: Duration = Duration::from_secs(2);

impl<O: Ovsd, H: Host, R: Records> Driver<O, H, R> {
    /// One volume. While ovsd is away, what this host knows of a volume that it has mounted.
    pub async fn get(&self, name: &Name) -> Result<Volume, DriverError> {
        let local = self.record_of(name, None).filter(|record| !record.refs.is_empty());
        let asked = match &local {
            // dockerd asks before it starts a container on it: ovsd may be in the middle of a restart.
            Some(_) => timeout(PATIENCE_FOR_MOUNTED, self.volume(name)).await.unwrap_or_else(|_| {
                Err(OvsdError::Unreachable(format!("no answer within {} s", PATIENCE_FOR_MOUNTED.as_secs()))
                    .into())
            }),
            None => self.volume(name).await,
        };
        match (asked, local) {
            (Ok(Some(vdisk)), _) => {
                let mounted = self.mounted_targets().await?;
                Ok(self.show(&vdisk, &mounted))
            }
            (Ok(None), Some(record)) => {
                Ok(self.show_local(&record, name, "renamed or deleted in ovs while in use"))
            }
            (Ok(None), None) => Err(DriverError::NoVolume(name.clone())),
            (Err(DriverError::Ovsd(OvsdError::Unreachable(_))), Some(record)) => {
                Ok(self.show_local(&record, name, "unknown: ovsd does not answer"))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// All volumes, whether this host uses them or not.
    pub async fn list(&self) -> Result<Vec<Volume>, DriverError> {
        let vdisks = self.ovsd.volumes().await?;
        let mounted = self.mounted_targets().await?;
        Ok(vdisks.iter().map(|vdisk| self.show(vdisk, &mounted)).collect())
    }

    /// Where a volume is mounted; nowhere is an empty path.
    pub async fn path(&self, name: &Name) -> Result<String, DriverError> {
        match self.record_of(name, None) {
            Some(record) => {
                let mounted = self.mounted_targets().await?;
                Ok(self.mountpoint(&record, &mounted))
            }
            None => self.get(name).await.map(|volume| volume.mountpoint),
        }
    }

    async fn mounted_targets(&self) -> Result<BTreeSet<PathBuf>, DriverError> {
        Ok(self.host.mounts_below(&self.settings.mounts).await?.into_iter().collect())
    }

    fn mountpoint(&self, record: &Record, mounted: &BTreeSet<PathBuf>) -> String {
        let target = self.target(record.vdisk);
        match record.is_ready && mounted.contains(&target) {
            true => record.directory.below(&target).display().to_string(),
            false => String::new(),
        }
    }

    fn show(&self, vdisk: &Vdisk, mounted: &BTreeSet<PathBuf>) -> Volume {
        let record = locked(&self.known).get(&vdisk.uuid).map(|known| known.record.clone());
        Volume {
            name: vdisk.name.to_string(),
            mountpoint: record.as_ref().map_or_else(String::new, |record| self.mountpoint(record, mounted)),
            created_at: Some(vdisk.created_at.clone()),
            status: VolumeStatus {
                size: Some(format_size(vdisk.size_bytes)),
                used: Some(format_size(vdisk.allocated_bytes)),
                snapshots: Some(vdisk.snapshot_count),
                fstype: vdisk.fstype().map(|fstype| fstype.to_string()),
                vpool: vdisk.vpool.to_string(),
                vdisk: vdisk.uuid.to_string(),
                state: vdisk.state.clone(),
                mounts: record.as_ref().map_or(0, |record| record.refs.total()),
                device: record.as_ref().and_then(device_of),
            },
        }
    }

    fn show_local(&self, record: &Record, name: &Name, state: &str) -> Volume {
        Volume {
            name: name.to_string(),
            mountpoint: match record.is_ready {
                true => record.directory.below(&self.target(record.vdisk)).display().to_string(),
                false => String::new(),
            },
            created_at: None,
            status: VolumeStatus {
                size: None,
                used: None,
                snapshots: None,
                fstype: None,
                vpool: record.vpool.to_string(),
                vdisk: record.vdisk.to_string(),
                state: state.to_owned(),
                mounts: record.refs.total(),
                device: device_of(record),
            },
        }
    }
}

fn device_of(record: &Record) -> Option<String> {
    Some(record.device.as_ref()?.path.display().to_string())
}
