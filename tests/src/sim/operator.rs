//! The operator: everything but reading and writing, beside the clients.

use super::{
    client::{Site, Stop, until},
    disk::{Disk, Snapshot},
};
use crate::{Content, history::Cut};
use bytes::Bytes;
use ovs_units::{ByteCount, CLUSTER_SIZE_BYTES, Name, SnapshotId, VdiskId, VpoolId};
use ovs_volume::{Chance, CreateVdisk, Engine, OnFull, VolumeError};
use std::{rc::Rc, time::Duration};

pub(super) const ON_FULL: OnFull = OnFull::Stall { timeout: None };
const DISKS_MAX: usize = 4;
const SNAPSHOTS_MAX: usize = 5;

/// What was asked for, for when its answer never comes.
#[derive(Clone)]
pub(super) enum Admin {
    Create(Rc<Disk>),
    Delete(VdiskId),
    Snapshot { disk: VdiskId, id: SnapshotId, name: Name, least: Cut, most: Option<Cut> },
    DeleteSnapshot { disk: VdiskId, id: SnapshotId },
    Rollback { disk: VdiskId, content: Content },
    Resize { disk: VdiskId, size: ByteCount },
    Properties { disk: VdiskId, properties: String },
}

/// The operator of a life.
#[derive(Clone)]
pub(super) struct Operator {
    pub(super) site: Site,
    pub(super) engine: Engine,
    pub(super) vpool: VpoolId,
    /// Clients of their own use a vDisk as soon as it is there.
    pub(super) has_clients: bool,
}

impl Operator {
    /// Until the life ends, or an operation's outcome is not known.
    pub(super) async fn work(self) {
        loop {
            tokio::time::sleep(Duration::from_millis(self.site.random.below(150))).await;
            let model = &self.site.model;
            if model.operator_rests.get() {
                return;
            }
            model.operator_acts.set(true);
            let done = self.act().await;
            model.operator_acts.set(false);
            if done.is_err() {
                return;
            }
        }
    }

    /// So many operations, of clients and its own, one after the other or two at once; fewer if one does not come back.
    pub(super) async fn work_through(self, operations: u64) {
        for _ in 0..operations {
            let random = &self.site.random;
            let done = match (self.any_disk(), random.below(8)) {
                (Some(disk), 0..=3) => {
                    let clients = disk.history.borrow().client_count() as u64;
                    self.site.act(&disk, random.below(clients) as usize).await
                }
                (Some(disk), 4) => {
                    let clients = disk.history.borrow().client_count();
                    let all = (0..clients).map(|client| self.site.act(&disk, client));
                    futures_util::future::join_all(all).await.into_iter().collect()
                }
                (_, 5) => {
                    tokio::time::sleep(Duration::from_millis(random.below(300))).await;
                    Ok(())
                }
                _ => self.act().await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn any_disk(&self) -> Option<Rc<Disk>> {
        let disks = self.site.model.disks.borrow();
        (!disks.is_empty()).then(|| Rc::clone(&disks[self.site.random.below(disks.len() as u64) as usize]))
    }

    fn any_snapshot(&self, disk: &Disk) -> Option<Snapshot> {
        let snapshots = disk.snapshots.borrow();
        let count = snapshots.len() as u64;
        (count > 0).then(|| snapshots[self.site.random.below(count) as usize].clone())
    }

    async fn act(&self) -> Result<(), Stop> {
        let Some(disk) = self.any_disk() else { return self.create(None).await };
        let snapshot = self.any_snapshot(&disk);
        match (self.site.random.below(20), snapshot) {
            (0..=4, _) => self.snapshot(&disk).await,
            (5, Some(snapshot)) => self.delete_snapshot(&disk, snapshot.id).await,
            (6..=7, Some(snapshot)) => self.create(Some((&disk, snapshot))).await,
            (8, Some(snapshot)) => self.rollback(&disk, snapshot).await,
            (9..=10, Some(snapshot)) => self.compare(&disk, &snapshot).await,
            (11, Some(snapshot)) => self.wait_on_backend(&disk, snapshot.id).await,
            (12, _) => self.resize(&disk).await,
            (13, _) => self.properties(&disk).await,
            (14, _) if self.site.model.disks.borrow().len() > 2 => self.delete(&disk).await,
            (15, _) => self.create(None).await,
            (16..=17, _) => self.destage(&disk).await,
            _ => Ok(()),
        }
    }

    /// Asks; an answer that does not come leaves what was asked for pending.
    async fn asked<T>(
        &self,
        what: &str,
        disk: &Disk,
        admin: Admin,
        work: impl Future<Output = Result<T, VolumeError>>,
    ) -> Result<T, Stop> {
        *self.site.model.pending.borrow_mut() = Some(admin);
        self.site.weather.event(format_args!("the operator: {what} of {}", disk.id), 0);
        let answer = work.await;
        match answer {
            Ok(answer) => {
                self.site.weather.event(format_args!("the operator has its answer"), 0);
                *self.site.model.pending.borrow_mut() = None;
                Ok(answer)
            }
            Err(error) => {
                self.site.look_at(disk, what, error)?;
                Err(Stop)
            }
        }
    }

    /// Nothing is under way on it while this lives. None comes when something is for ever.
    async fn pause<'a>(&self, disk: &'a Disk) -> Result<Paused<'a>, Stop> {
        disk.pauses.set(disk.pauses.get() + 1);
        let paused = Paused(disk);
        until(|| disk.busy.get() == 0).await;
        // Of one that was given up nobody knows whether it is there.
        let history = disk.history.borrow();
        if (0..history.client_count()).any(|client| history.is_pending(client)) {
            return Err(Stop);
        }
        Ok(paused)
    }

    async fn create(&self, base: Option<(&Disk, Snapshot)>) -> Result<(), Stop> {
        if self.site.model.disks.borrow().len() >= DISKS_MAX {
            return Ok(());
        }
        let random = &self.site.random;
        let content = match &base {
            Some((_, snapshot)) => snapshot.content.clone(),
            None => Content::new(ByteCount((1 + random.below(300)) * CLUSTER_SIZE_BYTES)),
        };
        let properties = format!("{{\"made\":{}}}", random.next());
        let base = base.map(|(parent, snapshot)| (parent.id, snapshot.id));
        let clients = 1 + random.below(3) as usize;
        let disk = Rc::new(Disk::new(VdiskId(random.uuid()), content, base, properties.clone(), clients));
        let request = CreateVdisk {
            id: disk.id,
            vpool: self.vpool,
            size: disk.size(),
            properties: Bytes::from(properties),
            base,
            on_full: ON_FULL,
        };
        let admin = Admin::Create(Rc::clone(&disk));
        let vdisk = self.asked("create", &disk, admin, self.engine.create_vdisk(request)).await?;
        *disk.vdisk.borrow_mut() = Some(vdisk);
        if !self.has_clients {
            // Damage may take it back to before a flush.
            disk.history.borrow_mut().keep();
        }
        self.site.model.disks.borrow_mut().push(Rc::clone(&disk));
        self.site.weather.acknowledged();
        self.serve(&disk);
        Ok(())
    }

    /// Its clients begin.
    pub(super) fn serve(&self, disk: &Rc<Disk>) {
        for client in (0..disk.history.borrow().client_count()).filter(|_| self.has_clients) {
            tokio::task::spawn_local(self.site.clone().client(Rc::clone(disk), client));
        }
    }

    async fn delete(&self, disk: &Rc<Disk>) -> Result<(), Stop> {
        let _paused = self.pause(disk).await?;
        let admin = Admin::Delete(disk.id);
        self.asked("delete", disk, admin, self.engine.delete_vdisk(self.vpool, disk.id)).await?;
        // Its clients find that it is gone.
        *disk.vdisk.borrow_mut() = None;
        self.site.model.forget(disk.id);
        self.site.weather.acknowledged();
        Ok(())
    }

    async fn snapshot(&self, disk: &Rc<Disk>) -> Result<(), Stop> {
        if disk.snapshots.borrow().len() >= SNAPSHOTS_MAX {
            return Ok(());
        }
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        let id = SnapshotId(self.site.random.uuid());
        let name = Name::new(&format!("s{}", self.site.random.next())).expect("a good name");
        disk.history.borrow_mut().pin();
        let least = disk.history.borrow().acknowledged();
        let admin =
            |most| Admin::Snapshot { disk: disk.id, id, name: name.clone(), least: least.clone(), most };
        let info = self.asked("snapshot", disk, admin(None), vdisk.snapshot(id, name.clone())).await?;
        let most = disk.history.borrow().begun();
        disk.history.borrow_mut().is_stable(&least);
        // Whatever ends this before it is compared, it is there.
        *self.site.model.pending.borrow_mut() = Some(admin(Some(most.clone())));
        self.site.weather.acknowledged();
        let content = loop {
            match disk.read_all(Some(id), info.size).await {
                Ok(content) => break content,
                Err(error) => self.site.look_at(disk, "a read of a snapshot", error)?,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let explained = disk.history.borrow().explain(&content, &least, &most);
        if let Err(difference) = explained {
            self.site.model.fail(format!("vDisk {}: snapshot {name}: {difference}", disk.id));
            return Err(Stop);
        }
        *self.site.model.pending.borrow_mut() = None;
        disk.history.borrow_mut().unpin();
        disk.snapshots.borrow_mut().push(Snapshot { id, name, content });
        Ok(())
    }

    async fn delete_snapshot(&self, disk: &Rc<Disk>, id: SnapshotId) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        let admin = Admin::DeleteSnapshot { disk: disk.id, id };
        self.asked("delete-snapshot", disk, admin, vdisk.delete_snapshot(id)).await?;
        disk.snapshots.borrow_mut().retain(|snapshot| snapshot.id != id);
        self.site.weather.acknowledged();
        Ok(())
    }

    async fn rollback(&self, disk: &Rc<Disk>, snapshot: Snapshot) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        let _paused = self.pause(disk).await?;
        let content = snapshot.content;
        let admin = Admin::Rollback { disk: disk.id, content: content.clone() };
        self.asked("rollback", disk, admin, vdisk.rollback(snapshot.id)).await?;
        disk.history.borrow_mut().settle(content);
        self.site.weather.acknowledged();
        Ok(())
    }

    async fn resize(&self, disk: &Rc<Disk>) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        let _paused = self.pause(disk).await?;
        if let Err(error) = vdisk.flush().await {
            return self.site.look_at(disk, "a flush", error);
        }
        let cut = disk.history.borrow().acknowledged();
        disk.history.borrow_mut().is_stable(&cut);
        self.site.weather.acknowledged();
        let size = ByteCount((1 + self.site.random.below(300)) * CLUSTER_SIZE_BYTES);
        self.asked("resize", disk, Admin::Resize { disk: disk.id, size }, vdisk.resize(size)).await?;
        let mut content = disk.history.borrow().now().clone();
        content.resize(size);
        disk.history.borrow_mut().settle(content);
        self.site.weather.acknowledged();
        Ok(())
    }

    async fn properties(&self, disk: &Rc<Disk>) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        let properties = format!("{{\"name\":{}}}", self.site.random.next());
        let admin = Admin::Properties { disk: disk.id, properties: properties.clone() };
        let bytes = Bytes::from(properties.clone());
        self.asked("set-properties", disk, admin, vdisk.set_properties(bytes)).await?;
        *disk.properties.borrow_mut() = properties;
        self.site.weather.acknowledged();
        Ok(())
    }

    async fn compare(&self, disk: &Rc<Disk>, snapshot: &Snapshot) -> Result<(), Stop> {
        match disk.read_all(Some(snapshot.id), snapshot.content.size()).await {
            Ok(found) => match found.difference(&snapshot.content, |_| false) {
                None => Ok(()),
                Some(cluster) => {
                    let (id, name) = (disk.id, &snapshot.name);
                    self.site
                        .model
                        .fail(format!("vDisk {id}: snapshot {name}: cluster {} changed", cluster.0));
                    Err(Stop)
                }
            },
            Err(error) => self.site.look_at(disk, "a read of a snapshot", error),
        }
    }

    async fn wait_on_backend(&self, disk: &Rc<Disk>, id: SnapshotId) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        match vdisk.wait_on_backend(id).await {
            Ok(()) if vdisk.snapshots().iter().any(|info| info.id == id && info.on_backend) => Ok(()),
            Ok(()) => {
                self.site
                    .model
                    .fail(format!("vDisk {}: a snapshot that was waited for is not there", disk.id));
                Err(Stop)
            }
            Err(error) => self.site.look_at(disk, "waiting for a snapshot", error),
        }
    }

    async fn destage(&self, disk: &Rc<Disk>) -> Result<(), Stop> {
        let cut = disk.history.borrow().acknowledged();
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        self.site.weather.event(format_args!("the operator: destage of {}", disk.id), 0);
        match vdisk.destage().await {
            Ok(()) => {
                disk.history.borrow_mut().is_stable(&cut);
                self.site.weather.acknowledged();
                Ok(())
            }
            Err(error) => self.site.look_at(disk, "a destage", error),
        }
    }
}

/// See [`Operator::pause`].
pub(super) struct Paused<'a>(&'a Disk);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.pauses.set(self.0.pauses.get().saturating_sub(1));
    }
}
