//! After a life: what is there is explained by what was asked for, and the model becomes it where it had a choice.

use super::{
    Failure, World,
    disk::{Disk, Snapshot},
    life::{Ending, Life},
    operator::{Admin, ON_FULL},
};
use crate::{Content, history::Cut};
use ovs_units::VdiskId;
use ovs_volume::{Engine, VolumeError};
use std::rc::Rc;

impl World {
    /// `gone`: vDisks of the model that do not open because they are not there.
    pub(super) fn settle(&mut self, life: &Life, engine: &Engine, gone: &[VdiskId]) -> Result<(), Failure> {
        let pending = self.model.pending.borrow_mut().take();
        for id in gone {
            if !matches!(&pending, Some(Admin::Delete(deleted)) if deleted == id) {
                return Err(format!("vDisk {id} is gone, and nobody deleted it"));
            }
            self.model.forget(*id);
        }
        if let Some(Admin::Create(disk)) = &pending {
            self.settle_new(life, engine, disk)?;
        }
        let disks = self.model.disks.borrow().clone();
        for disk in &disks {
            let of_this = pending.as_ref().filter(|admin| admin.is_of(disk.id));
            life.run(self.settle_disk(disk, of_this))??;
        }
        for disk in &disks {
            life.run(disk.verify_snapshots())??;
        }
        self.check_gone(life, engine)
    }

    fn settle_new(&self, life: &Life, engine: &Engine, disk: &Rc<Disk>) -> Result<(), Failure> {
        let opened = life.run(engine.open_vdisk(self.vpool, disk.id, ON_FULL))?;
        match opened {
            Ok(vdisk) => {
                // Not acknowledged, it may be in the registry alone. Whoever made it goes on with it or deletes it.
                let properties = disk.properties.borrow().clone();
                life.run(vdisk.set_properties(properties.into()))?
                    .map_err(|error| format!("a vDisk being made: {error}"))?;
                *disk.vdisk.borrow_mut() = Some(vdisk);
                self.model.disks.borrow_mut().push(Rc::clone(disk));
                Ok(())
            }
            Err(VolumeError::NotFound(_)) => {
                self.model.gone.borrow_mut().push((disk.id, disk.base));
                Ok(())
            }
            Err(error) => Err(format!("a vDisk being made does not open: {error:?}")),
        }
    }

    async fn settle_disk(&self, disk: &Disk, pending: Option<&Admin>) -> Result<(), Failure> {
        let id = disk.id;
        let in_calm = |error: VolumeError| format!("vDisk {id}: in calm weather: {error:?}");
        let vdisk = disk.open().map_err(in_calm)?;
        let size = vdisk.size();
        let found = disk.read_all(None, size).await.map_err(in_calm)?;
        // What had to stay, before anything is settled.
        let least = self.least(disk);
        match pending {
            Some(Admin::Rollback { content, .. })
                if size == content.size() && same(&found, content).is_ok() => {}
            Some(Admin::Resize { size: wanted, .. }) if size != disk.size() => {
                if size != *wanted {
                    return Err(format!("vDisk {id} has {size:?}, neither old nor new"));
                }
                let mut content = disk.history.borrow().now().clone();
                content.resize(size);
                same(&found, &content).map_err(|failure| format!("vDisk {id}, resized: {failure}"))?;
            }
            _ if size != disk.size() => {
                return Err(format!("vDisk {id} has {size:?}, not {:?}", disk.size()));
            }
            Some(Admin::Snapshot { id, name, least: before, most, .. }) => {
                self.explain(disk, &found, &least)?;
                let content = self.settle_snapshot(disk, *id, name.as_str(), before, most.as_ref()).await?;
                if let Some(content) = content {
                    let (id, name, least) = (*id, name.clone(), before.clone());
                    let snapshot =
                        Snapshot { id, name, content, least, is_on_backend: false, was_cut: false };
                    disk.snapshots.borrow_mut().push(snapshot);
                }
            }
            Some(Admin::DeleteSnapshot { id, .. }) => {
                self.explain(disk, &found, &least)?;
                let is_there = vdisk.snapshots().iter().any(|info| info.id == *id && !info.hidden);
                if !is_there {
                    disk.snapshots.borrow_mut().retain(|snapshot| snapshot.id != *id);
                }
            }
            _ => self.explain(disk, &found, &least)?,
        }
        if self.ended == Ending::LocalLoss {
            self.settle_cut_snapshots(disk, &least).await?;
        }
        disk.settle_properties(&vdisk.properties());
        disk.history.borrow_mut().settle(found);
        Ok(())
    }

    /// Of snapshots whose data had not left this host there is what had.
    async fn settle_cut_snapshots(&self, disk: &Disk, least: &Cut) -> Result<(), Failure> {
        let mut snapshots = disk.snapshots.borrow().clone();
        for snapshot in snapshots.iter_mut().filter(|snapshot| !snapshot.is_on_backend) {
            let size = snapshot.content.size();
            let found = disk.read_all(Some(snapshot.id), size).await;
            let told = |failure: String| format!("vDisk {}: snapshot {}: {failure}", disk.id, snapshot.name);
            let found = found.map_err(|error| told(error.to_string()))?;
            let history = disk.history.borrow();
            history.explain(&found, least, &history.begun()).map_err(told)?;
            (snapshot.content, snapshot.was_cut) = (found, true);
        }
        *disk.snapshots.borrow_mut() = snapshots;
        Ok(())
    }

    fn least(&self, disk: &Disk) -> Cut {
        match self.ended {
            Ending::PowerLoss => disk.history.borrow().stable(),
            Ending::LocalLoss => disk.history.borrow().on_backend(),
            Ending::Clean | Ending::Death => disk.history.borrow().acknowledged(),
        }
    }

    fn explain(&self, disk: &Disk, found: &Content, least: &Cut) -> Result<(), Failure> {
        let history = disk.history.borrow();
        let explained = history.explain(found, least, &history.begun());
        explained
            .map(drop)
            .map_err(|difference| format!("vDisk {}, after {:?}: {difference}", disk.id, self.ended))
    }

    /// A snapshot that was being taken: its content, if it is there.
    async fn settle_snapshot(
        &self,
        disk: &Disk,
        id: ovs_units::SnapshotId,
        name: &str,
        least: &Cut,
        most: Option<&Cut>,
    ) -> Result<Option<Content>, Failure> {
        let vdisk = disk.open().map_err(|error| error.to_string())?;
        let Some(info) = vdisk.snapshots().into_iter().find(|info| info.id == id) else {
            return match most {
                Some(_) => Err(format!("vDisk {}: snapshot {name} was acknowledged and is gone", disk.id)),
                None => Ok(None),
            };
        };
        let content = disk.read_all(Some(id), info.size).await;
        let content = content.map_err(|error| format!("vDisk {}: snapshot {name}: {error}", disk.id))?;
        let history = disk.history.borrow();
        let begun = history.begun();
        let explained = history.explain(&content, least, most.unwrap_or(&begun));
        explained.map_err(|difference| format!("vDisk {}: snapshot {name}: {difference}", disk.id))?;
        Ok(Some(content))
    }

    /// Deleted vDisks are there for nobody.
    fn check_gone(&self, life: &Life, engine: &Engine) -> Result<(), Failure> {
        for (id, _) in self.model.gone.borrow().iter() {
            match life.run(engine.open_vdisk(self.vpool, *id, ON_FULL))? {
                Err(VolumeError::NotFound(_)) => {}
                Err(error) => return Err(format!("a deleted vDisk is not said to be gone: {error:?}")),
                Ok(_) => return Err(format!("vDisk {id} was deleted, and opens")),
            }
        }
        Ok(())
    }
}

impl Admin {
    /// For another world.
    pub(super) fn fork(&self) -> Admin {
        match self {
            Admin::Create(disk) => Admin::Create(Rc::new(disk.fork())),
            other => other.clone(),
        }
    }

    fn is_of(&self, id: VdiskId) -> bool {
        match self {
            Admin::Create(_) => false,
            Admin::Delete(disk)
            | Admin::Snapshot { disk, .. }
            | Admin::DeleteSnapshot { disk, .. }
            | Admin::Rollback { disk, .. }
            | Admin::Resize { disk, .. } => *disk == id,
        }
    }
}

pub(super) fn same(found: &Content, expected: &Content) -> Result<(), Failure> {
    match found.difference(expected, |_| false) {
        None => Ok(()),
        Some(cluster) => Err(format!("cluster {} is not as expected", cluster.0)),
    }
}
