//! What the plugin finds out by itself: references that nobody will give back, mounts that nobody uses, devices that
//! died, vDisks that grew.
//!
//! Docker never sends Unmount for the containers of a dockerd that was killed without live-restore. Such references go
//! only when, in two passes with no request in between, Docker lists no container that may run with the volume, and no
//! other mount namespace has its device mounted. Who cannot be asked is taken to be running.
//!
//! Runs beside the requests, never within one: dockerd waits for the plugin while it starts, so asking dockerd then
//! would be a deadlock.

use super::{Driver, DriverError, locked};
use crate::{
    host::{Health, Host, HostError, Unmount},
    ovsd::Ovsd,
    record::{Record, Records},
};
use ovs_units::{Name, VdiskId};
use std::collections::{BTreeMap, HashMap};

/// Which volumes have containers that run, or may soon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerUse(pub BTreeMap<Name, Vec<String>>);

/// What is remembered from one pass to the next.
#[derive(Debug, Default)]
pub struct Watch {
    /// Volumes that seemed unused, with how often they had been touched then.
    unused: HashMap<VdiskId, u64>,
    /// The size that each mounted file system was last grown to.
    sizes: HashMap<VdiskId, u64>,
    /// Why it could not be grown, as it was logged.
    grow_errors: HashMap<VdiskId, String>,
}

impl<O: Ovsd, H: Host, R: Records> Driver<O, H, R> {
    /// One pass over all volumes. `containers`: none when Docker could not be asked.
    pub async fn reconcile(&self, containers: Option<&ContainerUse>, watch: &mut Watch) {
        let all: Vec<VdiskId> = locked(&self.known).keys().copied().collect();
        watch.unused.retain(|vdisk, _| all.contains(vdisk));
        watch.sizes.retain(|vdisk, _| all.contains(vdisk));
        watch.grow_errors.retain(|vdisk, _| all.contains(vdisk));
        for vdisk in all {
            let lock = locked(&self.locks).entry(vdisk).or_default().clone();
            // A volume that Docker is just using needs no looking after.
            let Ok(_guard) = lock.try_lock() else { continue };
            if let Err(error) = self.reconcile_volume(vdisk, containers, watch).await {
                match error {
                    DriverError::Host(HostError::Busy(_)) => {
                        tracing::debug!(%vdisk, %error, "not unmounted yet")
                    }
                    error => tracing::warn!(%vdisk, %error, "reconciling"),
                }
            }
        }
        self.unmount_strays().await;
        self.grow_grown(watch).await;
    }

    async fn reconcile_volume(
        &self,
        vdisk: VdiskId,
        containers: Option<&ContainerUse>,
        watch: &mut Watch,
    ) -> Result<(), DriverError> {
        let Some(mut record) = self.record(vdisk) else { return Ok(()) };
        let target = self.target(vdisk);
        if let Some(device) = self.host.mounted(&target).await? {
            if !record.is_ready {
                tracing::warn!(%vdisk, "taking down a mount that was never finished");
                self.host.unmount(&target, Unmount::Flush).await?;
                self.drop_if_unused(record.clone()).await?;
            } else if self.host.health(&device, &record.file).await == Health::Dead {
                let users = containers.and_then(|containers| containers.0.get(&record.name));
                let users = users.map_or_else(|| "unknown".to_owned(), |users| users.join(", "));
                tracing::error!(
                    %vdisk, volume = %record.name, containers = %users,
                    "the volume's device died (with ovsd-edge, or by `ovs vdisk detach --force`): its containers have lost it and need a restart; the next \
                     mount works"
                );
                self.host.unmount(&target, Unmount::Detach).await?;
                self.drop_if_unused(record.clone()).await?;
            }
        }
        match self.record(vdisk) {
            Some(now) => record = now,
            None => return Ok(()),
        }
        if !record.refs.is_empty() && self.is_abandoned(&record, containers, watch).await {
            tracing::warn!(
                %vdisk, volume = %record.name, references = record.refs.total(),
                "dropping references: no container that could hold them runs"
            );
            record.refs.clear();
            self.save(&record).await?;
        }
        if record.refs.is_empty() {
            self.release(record).await?;
        }
        Ok(())
    }

    /// True when this is the second pass in a row to find that nobody uses it.
    async fn is_abandoned(
        &self,
        record: &Record,
        containers: Option<&ContainerUse>,
        watch: &mut Watch,
    ) -> bool {
        let is_listed = containers.is_none_or(|containers| containers.0.contains_key(&record.name));
        let is_held = match &record.device {
            Some(device) if self.host.is_attached(device).await => {
                self.host.is_used_elsewhere(device, &self.target(record.vdisk)).await
            }
            _ => false,
        };
        if is_listed || is_held {
            watch.unused.remove(&record.vdisk);
            return false;
        }
        let touch_count = locked(&self.known).get(&record.vdisk).map_or(0, |known| known.touch_count);
        watch.unused.insert(record.vdisk, touch_count) == Some(touch_count)
    }

    /// Mounts of ours without a record (a lost state directory): given back if nobody has files open. Containers keep
    /// theirs, and the device with them, which the next Mount finds.
    async fn unmount_strays(&self) {
        let Ok(targets) = self.host.mounts_below(&self.settings.mounts).await else { return };
        for target in targets {
            let name = target.file_name().and_then(|name| name.to_str());
            let Some(vdisk) = name.and_then(|name| name.parse::<VdiskId>().ok()) else { continue };
            let lock = locked(&self.locks).entry(vdisk).or_default().clone();
            let Ok(_guard) = lock.try_lock() else { continue };
            if self.record(vdisk).is_none() {
                match self.host.unmount(&target, Unmount::Flush).await {
                    Ok(()) => tracing::warn!(%vdisk, "unmounted a volume that there was no record of"),
                    Err(error) => tracing::debug!(%vdisk, %error, "a mount without a record"),
                }
            }
        }
    }

    async fn grow_grown(&self, watch: &mut Watch) {
        let any_ready = locked(&self.known).values().any(|known| known.record.is_ready);
        if !any_ready {
            return;
        }
        // ovsd may be away: then the next pass does it.
        let Ok(volumes) = self.ovsd.volumes().await else { return };
        for volume in volumes {
            let is_ready = self.record(volume.uuid).is_some_and(|record| record.is_ready);
            if is_ready && watch.sizes.get(&volume.uuid) != Some(&volume.size_bytes) {
                match self.grow(volume.uuid).await {
                    Ok(()) => {
                        watch.sizes.insert(volume.uuid, volume.size_bytes);
                    }
                    Err(error) => {
                        tracing::warn!(vdisk = %volume.uuid, %error, "the file system keeps its size")
                    }
                }
            }
        }
    }

    /// Lets the mounted file system of a vDisk that was resized grow; does nothing for others.
    pub async fn grow(&self, vdisk: VdiskId) -> Result<(), DriverError> {
        if self.record(vdisk).is_none() {
            return Ok(());
        }
        let facts = self.ovsd.vdisk(vdisk).await?;
        let _guard = self.lock(vdisk).await;
        let Some(record) = self.record(vdisk).filter(|record| record.is_ready) else { return Ok(()) };
        let target = self.target(vdisk);
        let Some(device) = self.host.mounted(&target).await? else { return Ok(()) };
        if self.host.health(&device, &record.file).await != Health::Alive {
            return Err(HostError::Failed("its device does not answer".to_owned()).into());
        }
        self.host.grow(&device, &facts.file, facts.size_bytes, &target).await?;
        tracing::info!(%vdisk, volume = %record.name, size = facts.size_bytes, "has the vDisk's size");
        Ok(())
    }
}
