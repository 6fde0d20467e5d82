//! Mount and Unmount.
//!
//! Crash order of a first mount, each step safe to find done or half done by the next attempt:
//!
//! 1. The device is attached; it goes by itself if the plugin dies before step 4.
//! 2. The record names the device, not ready.
//! 3. mkfs, synced. A half-made file system is made again, because the label still says `no`.
//! 4. mount(2). A mount found with a record that is not ready is taken down and begun again.
//! 5. `data/` with its owner and mode, synced.
//! 6. The vDisk's label says `ext4`: from here on it is never formatted again.
//! 7. The record is ready and counts the mount ID, synced.
//! 8. The answer: only now can a container write.

use super::{Driver, DriverError};
use crate::{
    host::{Attached, Contents, Device, FormatPlan, Health, Host, HostError, Unmount},
    options::{Fstype, RootDirectory},
    ovsd::{LABEL_FORMATTED, LABEL_FSTYPE, Ovsd, Vdisk},
    record::{Record, Records, VolumeDirectory},
    refs::MountId,
};
use ovs_units::{Name, VdiskId};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How long an mkfs that outlived a killed plugin is waited for.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(20);
const ORPHAN_POLL: Duration = Duration::from_millis(100);

/// A volume that is mounted for one more ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Whose data it is.
    pub vdisk: VdiskId,
    /// The directory for containers.
    pub path: PathBuf,
}

impl<O: Ovsd, H: Host, R: Records> Driver<O, H, R> {
    /// Mounts a volume for a mount ID, or counts the ID if it is mounted.
    pub async fn mount(&self, name: &Name, id: &MountId) -> Result<Mounted, DriverError> {
        let local = self.record_of(name, None);
        let found = match &local {
            // What is mounted here needs no ovsd, which may just be restarting.
            Some(record) if self.host.mounted(&self.target(record.vdisk)).await?.is_some() => {
                Ok(record.vdisk)
            }
            _ => match self.volume(name).await {
                Ok(Some(vdisk)) => Ok(vdisk.uuid),
                Ok(None) => Err(DriverError::NoVolume(name.clone())),
                Err(error) => Err(error),
            },
        };
        let vdisk = match (found, local) {
            (Ok(vdisk), _) => vdisk,
            (Err(error), None) => return Err(error),
            (Err(error), Some(record)) => {
                let _guard = self.lock(record.vdisk).await;
                self.take_back(record.vdisk, |record| record.refs.mount_failed(id)).await;
                return Err(error);
            }
        };
        let _guard = self.lock(vdisk).await;
        self.touch(vdisk);
        let result = self.mount_locked(vdisk, name, id).await;
        if result.is_err() {
            self.take_back(vdisk, |record| record.refs.mount_failed(id)).await;
        }
        result
    }

    /// Nobody waits any longer for the answer to a Mount that succeeded.
    pub async fn mount_abandoned(&self, name: &Name, id: &MountId) {
        let Some(vdisk) = self.record_of(name, Some(id)).map(|record| record.vdisk) else { return };
        let _guard = self.lock(vdisk).await;
        tracing::warn!(%vdisk, "docker did not wait for the answer to Mount; the mount is taken back");
        self.take_back(vdisk, |record| record.refs.mount_abandoned(id)).await;
        if let Some(record) = self.record(vdisk).filter(|record| record.refs.is_empty())
            && let Err(error) = self.release(record).await
        {
            tracing::warn!(%vdisk, %error, "not unmounted yet; the reconciler tries again");
        }
    }

    async fn take_back(&self, vdisk: VdiskId, change: impl FnOnce(&mut Record)) {
        let Some(before) = self.record(vdisk) else { return };
        let mut record = before.clone();
        change(&mut record);
        if record != before
            && let Err(error) = self.save(&record).await
        {
            // One reference too many is found by the reconciler.
            tracing::error!(%vdisk, %error, "a reference could not be taken back");
        }
    }

    async fn mount_locked(&self, vdisk: VdiskId, name: &Name, id: &MountId) -> Result<Mounted, DriverError> {
        let target = self.target(vdisk);
        let mut record = self.record(vdisk);
        if let Some(device) = self.host.mounted(&target).await? {
            match &mut record {
                Some(record) if record.is_ready && self.is_usable(record, &device).await => {
                    record.device = Some(device);
                    return self.count(record, name, id).await;
                }
                _ => self.take_down(vdisk, record.as_ref(), &device, &target).await?,
            }
        }
        let facts = self.ovsd.vdisk(vdisk).await?;
        let mut record = record.unwrap_or_else(|| {
            let boot_id = &self.settings.boot_id;
            Record::new(
                vdisk,
                facts.vpool.clone(),
                name.clone(),
                facts.directory(),
                facts.file.clone(),
                boot_id,
            )
        });
        record.file.clone_from(&facts.file);
        record.vpool.clone_from(&facts.vpool);
        record.directory = facts.directory();
        record.is_ready = false;
        let brought_up = self.bring_up(&facts, &mut record, &target).await;
        let counted = match brought_up {
            Ok(()) => {
                record.is_ready = true;
                self.count(&mut record, name, id).await
            }
            Err(error) => Err(error),
        };
        if counted.is_err() {
            // The first error is the one to tell. What cannot be undone now is found by the next Mount.
            if let Err(error) = self.undo(vdisk, &target).await {
                tracing::warn!(%vdisk, %error, "a failed mount is not undone yet");
            }
        }
        counted
    }

    async fn count(&self, record: &mut Record, name: &Name, id: &MountId) -> Result<Mounted, DriverError> {
        record.name = name.clone();
        record.refs.mounted(id)?;
        self.save(record).await?;
        let path = record.directory.below(&self.target(record.vdisk));
        tracing::info!(vdisk = %record.vdisk, volume = %name, references = record.refs.total(), "mounted");
        Ok(Mounted { vdisk: record.vdisk, path })
    }

    /// A device that does not answer now may answer soon; only a dead one is given up.
    async fn is_usable(&self, record: &Record, device: &Device) -> bool {
        self.host.health(device, &record.file).await != Health::Dead
    }

    /// Takes away what an earlier, cut short Mount left, or what died.
    async fn take_down(
        &self,
        vdisk: VdiskId,
        record: Option<&Record>,
        device: &Device,
        target: &Path,
    ) -> Result<(), DriverError> {
        let is_dead = match record {
            Some(record) => !self.is_usable(record, device).await,
            None => false,
        };
        let (how, why) = match is_dead {
            true => (Unmount::Detach, "its device died; containers that still use it need a restart"),
            false => (Unmount::Flush, "an unfinished mount is begun again"),
        };
        tracing::warn!(%vdisk, device = %device.path.display(), "{why}");
        Ok(self.host.unmount(target, how).await?)
    }

    async fn undo(&self, vdisk: VdiskId, target: &Path) -> Result<(), DriverError> {
        if self.host.mounted(target).await?.is_some() {
            self.host.unmount(target, Unmount::Flush).await?;
        }
        match self.record(vdisk) {
            Some(record) => self.drop_if_unused(record).await,
            None => Ok(()),
        }
    }

    /// From a vDisk to a mounted, complete file system.
    async fn bring_up(&self, vdisk: &Vdisk, record: &mut Record, target: &Path) -> Result<(), DriverError> {
        if !vdisk.is_volume() {
            return Err(DriverError::Refused(format!("{}/{} is no Docker volume", vdisk.vpool, vdisk.name)));
        }
        let contents = self.host.inspect(&vdisk.file, vdisk.size_bytes).await?;
        let attached = self.attach(vdisk, record, &contents).await?;
        record.device = Some(attached.device.clone());
        self.save(record).await?;

        let options = vdisk.options().map_err(DriverError::Refused)?;
        let fstype = self.file_system(vdisk, &attached, &contents).await?;
        if !attached.was_there
            && let Err(error) = self.host.grow_unmounted(&attached.device, &contents).await
        {
            tracing::warn!(vdisk = %vdisk.uuid, %error, "the file system keeps its size");
        }
        self.mount_or_repair(&attached, target, fstype, vdisk).await?;
        let is_first = !vdisk.is_formatted();
        let root = if is_first { options.root } else { RootDirectory::default() };
        let directory = record.directory.below(target);
        let make = vdisk.may_be_formatted() && record.directory == VolumeDirectory::Data;
        self.host.prepare(target, &directory, &root, make).await?;
        if is_first {
            let labels = [(LABEL_FORMATTED, fstype.as_str()), (LABEL_FSTYPE, fstype.as_str())];
            self.ovsd.set_labels(vdisk.uuid, &labels).await?;
        }
        // A clone larger than its origin, or a vDisk that grew while nobody had it mounted.
        if let Err(error) = self.host.grow(&attached.device, &vdisk.file, vdisk.size_bytes, target).await {
            tracing::warn!(vdisk = %vdisk.uuid, %error, "the file system keeps its size");
        }
        Ok(())
    }

    async fn attach(
        &self,
        vdisk: &Vdisk,
        record: &Record,
        contents: &Contents,
    ) -> Result<Attached<H::Hold>, DriverError> {
        let deadline = Instant::now() + ORPHAN_TIMEOUT;
        loop {
            let known = record.device.as_ref();
            let attached = self.host.attach(&vdisk.file, vdisk.uuid, known, contents).await?;
            if !(attached.was_there && vdisk.may_be_formatted()) {
                return Ok(attached);
            }
            // An mkfs that outlived the plugin is still at it.
            let device = attached.device.clone();
            drop(attached);
            while self.host.is_attached(&device).await {
                if Instant::now() >= deadline {
                    let path = device.path.display();
                    return Err(HostError::Busy(format!("{path} is still used by an unfinished mkfs")).into());
                }
                sleep(ORPHAN_POLL).await;
            }
        }
    }

    /// Makes the file system, or finds it.
    async fn file_system(
        &self,
        vdisk: &Vdisk,
        attached: &Attached<H::Hold>,
        contents: &Contents,
    ) -> Result<Fstype, DriverError> {
        if vdisk.may_be_formatted() {
            let options = vdisk.options().map_err(DriverError::Refused)?;
            let fstype = vdisk.fstype().unwrap_or(Fstype::Ext4);
            let is_blank = vdisk.allocated_bytes == 0 && *contents == Contents::Blank;
            let plan = FormatPlan { fstype, options: options.mkfs, is_blank };
            tracing::info!(vdisk = %vdisk.uuid, %fstype, "making the file system");
            self.host.format(&attached.device, &plan).await?;
            return Ok(fstype);
        }
        match contents {
            Contents::FileSystem { fstype, has_errors, .. } => {
                if *has_errors && !attached.was_there {
                    self.host.check(&attached.device, *fstype).await?;
                }
                Ok(*fstype)
            }
            Contents::Blank | Contents::Other => Err(DriverError::Refused(format!(
                "{}/{} has no ext4 or xfs file system on it (a partition table is not looked into)",
                vdisk.vpool, vdisk.name
            ))),
        }
    }

    async fn mount_or_repair(
        &self,
        attached: &Attached<H::Hold>,
        target: &Path,
        fstype: Fstype,
        vdisk: &Vdisk,
    ) -> Result<(), DriverError> {
        let options = vdisk.options().map_err(DriverError::Refused)?.mount;
        let first = match self.host.mount(&attached.device, target, fstype, &options).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if attached.was_there {
            return Err(first.into());
        }
        tracing::warn!(vdisk = %vdisk.uuid, error = %first, "checking the file system");
        self.host.check(&attached.device, fstype).await?;
        Ok(self.host.mount(&attached.device, target, fstype, &options).await?)
    }

    /// Takes back one Mount of this ID, and unmounts after the last. Succeeds where nothing is mounted.
    pub async fn unmount(&self, name: &Name, id: &MountId) -> Result<(), DriverError> {
        let Some(record) = self.record_of(name, Some(id)) else { return Ok(()) };
        let _guard = self.lock(record.vdisk).await;
        let Some(mut record) = self.record(record.vdisk) else { return Ok(()) };
        record.refs.unmounted(id);
        self.save(&record).await?;
        let (vdisk, references) = (record.vdisk, record.refs.total());
        tracing::info!(%vdisk, volume = %name, references, "unmounted");
        if references > 0 {
            return Ok(());
        }
        match self.release(record).await {
            Err(DriverError::Host(HostError::Busy(error))) => {
                // The container is gone all the same; the reconciler tries again.
                tracing::warn!(%vdisk, %error, "nobody uses the volume, but it cannot be unmounted yet");
                Ok(())
            }
            result => result,
        }
    }

    /// Unmounts what nobody uses, and forgets it unless its device lives on in another namespace.
    pub(super) async fn release(&self, record: Record) -> Result<(), DriverError> {
        let target = self.target(record.vdisk);
        if let Some(device) = self.host.mounted(&target).await? {
            let how = match self.is_usable(&record, &device).await {
                true => Unmount::Flush,
                false => Unmount::Detach,
            };
            self.host.unmount(&target, how).await?;
        }
        self.drop_if_unused(record).await
    }

    /// A record without references goes with its device. While the device is still attached, some namespace has its
    /// file system mounted, and the next Mount must find it.
    pub(super) async fn drop_if_unused(&self, mut record: Record) -> Result<(), DriverError> {
        if let Some(device) = record.device.clone() {
            let lives = self.host.is_attached(&device).await
                && self.host.health(&device, &record.file).await != Health::Dead;
            if lives {
                return Ok(());
            }
            record.device = None;
        }
        record.is_ready = false;
        if record.refs.is_empty() {
            return self.forget(record.vdisk).await;
        }
        self.save(&record).await
    }
}
