//! The operator: everything but reading and writing, beside the clients.

use super::{
    client::{Site, Stop, TRIES, until},
    disk::{Disk, Snapshot},
    settle::same,
};
use crate::{Content, history::Cut, stores::a_vdisk_cache};
use bytes::Bytes;
use ovs_units::{ByteCount, CLUSTER_SIZE_BYTES, Limits, Name, Rates, SnapshotId, VdiskId, VpoolId};
use ovs_volume::{Chance, CreateVdisk, Engine, OnFull, SnapshotInfo, Vdisk, VolumeError};
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
    /// Until the life ends, or an operation's outcome cannot be found out.
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
            (11, Some(snapshot)) => self.wait_on_backend(&disk, &snapshot).await,
            (12, _) => self.resize(&disk).await,
            (13, _) => self.properties(&disk).await,
            (14, _) if self.site.model.disks.borrow().len() > 2 => self.delete(&disk).await,
            (15, _) => self.create(None).await,
            (16..=17, _) => self.destage(&disk).await,
            (18, _) => self.scrub(&disk).await,
            _ if self.site.random.one_in(2) => self.cache(&disk),
            _ => self.limit(&disk),
        }
    }

    /// Asks. `None` when it failed, and what became of it is found out and settled; an answer that does not come leaves what
    /// was asked for pending.
    async fn asked<T>(
        &self,
        what: &str,
        disk: &Disk,
        admin: Admin,
        work: impl Future<Output = Result<T, VolumeError>>,
    ) -> Result<Option<T>, Stop> {
        *self.site.model.pending.borrow_mut() = Some(admin);
        self.site.weather.event(format_args!("the operator: {what} of {}", disk.id), 0);
        let answer = work.await;
        match answer {
            Ok(answer) => {
                self.site.weather.event(format_args!("the operator has its answer"), 0);
                *self.site.model.pending.borrow_mut() = None;
                Ok(Some(answer))
            }
            Err(error) => {
                self.site.look_at(disk, what, error)?;
                self.find_out().await.map(|()| None)
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
        if let (Some((parent, snapshot)), true) = (&base, self.site.model.follows_backend.get()) {
            // What it starts from could be lost with this host.
            self.wait_on_backend(parent, snapshot).await?;
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
        let asked = self.asked("create", &disk, admin, self.engine.create_vdisk(request)).await?;
        if let Some(vdisk) = asked {
            self.is_made(&disk, vdisk);
        }
        Ok(())
    }

    fn is_made(&self, disk: &Rc<Disk>, vdisk: Vdisk) {
        *disk.vdisk.borrow_mut() = Some(vdisk);
        if !self.has_clients {
            // Damage may take it back to before a flush.
            disk.history.borrow_mut().keep();
        }
        disk.history.borrow_mut().follow_backend(self.site.model.follows_backend.get());
        self.site.model.disks.borrow_mut().push(Rc::clone(disk));
        self.site.weather.acknowledged();
        self.serve(disk);
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
        let asked = self.asked("delete", disk, admin, self.engine.delete_vdisk(self.vpool, disk.id)).await?;
        if asked.is_some() {
            self.is_gone(disk);
        }
        Ok(())
    }

    fn is_gone(&self, disk: &Disk) {
        // Its clients find that it is gone.
        *disk.vdisk.borrow_mut() = None;
        self.site.model.forget(disk.id);
        self.site.weather.acknowledged();
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
        let asked = self.asked("snapshot", disk, admin(None), vdisk.snapshot(id, name.clone())).await?;
        let Some(info) = asked else { return Ok(()) };
        let most = disk.history.borrow().begun();
        disk.history.borrow_mut().is_stable(&least);
        // Whatever ends this before it is compared, it is there.
        *self.site.model.pending.borrow_mut() = Some(admin(Some(most.clone())));
        self.site.weather.acknowledged();
        self.snapshot_is_there(disk, info, &least, &most).await
    }

    async fn snapshot_is_there(
        &self,
        disk: &Disk,
        info: SnapshotInfo,
        least: &Cut,
        most: &Cut,
    ) -> Result<(), Stop> {
        let SnapshotInfo { id, name, size, .. } = info;
        let content = self.read_all(disk, Some(id), size).await?;
        let explained = disk.history.borrow().explain(&content, least, most);
        if let Err(difference) = explained {
            return self.fails(disk, &format!("snapshot {name}: {difference}"));
        }
        *self.site.model.pending.borrow_mut() = None;
        disk.history.borrow_mut().unpin();
        let least = least.clone();
        disk.snapshots.borrow_mut().push(Snapshot {
            id,
            name,
            content,
            least,
            is_on_backend: false,
            was_cut: false,
        });
        Ok(())
    }

    /// Another part in the read cache, whatever is in it.
    fn cache(&self, disk: &Rc<Disk>) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        vdisk.set_cache(a_vdisk_cache(&self.site.random));
        Ok(())
    }

    /// Other limits, or none, whoever waits.
    fn limit(&self, disk: &Rc<Disk>) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        let random = &self.site.random;
        let some = |rate: u64| random.one_in(2).then(|| rate << random.below(8));
        let total = Rates { iops: some(50), bytes_per_s: some(1 << 20), ..Rates::default() };
        let write = Rates { iops: some(50), ..Rates::default() };
        vdisk.set_limits(Limits { total, write, ..Limits::default() });
        Ok(())
    }

    async fn read_all(
        &self,
        disk: &Disk,
        snapshot: Option<SnapshotId>,
        size: ByteCount,
    ) -> Result<Content, Stop> {
        loop {
            match disk.read_all(snapshot, size).await {
                Ok(content) => return Ok(content),
                Err(error) => self.site.look_at(disk, "a read of all of it", error)?,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn fails(&self, disk: &Disk, failure: &str) -> Result<(), Stop> {
        self.site.model.fail(format!("vDisk {}: {failure}", disk.id));
        Err(Stop)
    }

    async fn delete_snapshot(&self, disk: &Rc<Disk>, id: SnapshotId) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        let admin = Admin::DeleteSnapshot { disk: disk.id, id };
        if self.asked("delete-snapshot", disk, admin, vdisk.delete_snapshot(id)).await?.is_some() {
            disk.snapshots.borrow_mut().retain(|snapshot| snapshot.id != id);
            self.site.weather.acknowledged();
        }
        Ok(())
    }

    async fn rollback(&self, disk: &Rc<Disk>, snapshot: Snapshot) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        let _paused = self.pause(disk).await?;
        let content = snapshot.content;
        let admin = Admin::Rollback { disk: disk.id, content: content.clone() };
        if self.asked("rollback", disk, admin, vdisk.rollback(snapshot.id)).await?.is_some() {
            disk.becomes(content);
            self.site.weather.acknowledged();
        }
        Ok(())
    }

    async fn resize(&self, disk: &Rc<Disk>) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        let _paused = self.pause(disk).await?;
        if self.site.model.follows_backend.get() {
            // What it grows from could be lost with this host.
            self.destage(disk).await?;
            let history = disk.history.borrow();
            if history.on_backend() != history.acknowledged() {
                return Ok(());
            }
        } else {
            self.site.flush(disk).await?;
        }
        let size = ByteCount((1 + self.site.random.below(300)) * CLUSTER_SIZE_BYTES);
        let admin = Admin::Resize { disk: disk.id, size };
        if self.asked("resize", disk, admin, vdisk.resize(size)).await?.is_some() {
            let mut content = disk.history.borrow().now().clone();
            content.resize(size);
            disk.becomes(content);
            self.site.weather.acknowledged();
        }
        Ok(())
    }

    async fn properties(&self, disk: &Rc<Disk>) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        self.site.weather.event(format_args!("the operator: set-properties of {}", disk.id), 0);
        self.name_anew(disk, &vdisk).await.map(drop)
    }

    /// True when it has its answer.
    async fn name_anew(&self, disk: &Disk, vdisk: &Vdisk) -> Result<bool, Stop> {
        let properties = format!("{{\"name\":{}}}", self.site.random.next());
        disk.properties_asked.borrow_mut().push(properties.clone());
        match vdisk.set_properties(Bytes::from(properties.clone())).await {
            Ok(()) => {
                disk.properties_asked.take();
                *disk.properties.borrow_mut() = properties;
                self.site.weather.acknowledged();
                Ok(true)
            }
            Err(error) => self.site.look_at(disk, "set-properties", error).map(|()| false),
        }
    }

    /// An operation has failed. Its vDisk shows whether it was done all the same, and shows that still after the next one
    /// that is answered: from then on it is settled.
    async fn find_out(&self) -> Result<(), Stop> {
        let Some(admin) = self.site.model.pending.borrow().clone() else { return Ok(()) };
        match &admin {
            Admin::Create(disk) => self.find_out_made(disk).await,
            Admin::Delete(id) => self.delete_again(*id).await,
            Admin::Snapshot { disk, .. }
            | Admin::DeleteSnapshot { disk, .. }
            | Admin::Rollback { disk, .. }
            | Admin::Resize { disk, .. } => {
                let Some(disk) = self.site.model.disk(*disk) else { return Err(Stop) };
                let vdisk = disk.open().map_err(|_| Stop)?;
                let most = disk.history.borrow().begun();
                let was_done = admin.is_done(&vdisk, &disk);
                self.name_until_answered(&disk, &vdisk).await?;
                if admin.is_done(&vdisk, &disk) != was_done {
                    return self
                        .fails(&disk, &format!("of an operation that failed it first showed: {was_done}"));
                }
                self.settle(&disk, &vdisk, &admin, was_done, &most).await
            }
        }
    }

    async fn settle(
        &self,
        disk: &Disk,
        vdisk: &Vdisk,
        admin: &Admin,
        is_done: bool,
        most: &Cut,
    ) -> Result<(), Stop> {
        match admin {
            Admin::Snapshot { id, least, .. } => {
                let info = vdisk.snapshots().into_iter().find(|info| info.id == *id);
                match info {
                    Some(info) => self.snapshot_is_there(disk, info, least, most).await?,
                    None => disk.history.borrow_mut().unpin(),
                }
            }
            Admin::DeleteSnapshot { id, .. } if is_done => {
                disk.snapshots.borrow_mut().retain(|snapshot| snapshot.id != *id);
            }
            Admin::Rollback { content, .. } => {
                let found = self.read_all(disk, None, vdisk.size()).await?;
                if found.size() == content.size() && same(&found, content).is_ok() {
                    disk.becomes(found);
                } else if found.size() != disk.size() || same(&found, disk.history.borrow().now()).is_err() {
                    return self.fails(disk, "it is neither as before a rollback nor as after it");
                }
            }
            Admin::Resize { size, .. } => {
                let mut content = disk.history.borrow().now().clone();
                if is_done {
                    content.resize(*size);
                }
                let found = self.read_all(disk, None, vdisk.size()).await?;
                if found.size() != content.size() || same(&found, &content).is_err() {
                    return self.fails(disk, "it is neither as before a resize nor as after it");
                }
                if is_done {
                    disk.becomes(content);
                }
            }
            _ => {}
        }
        *self.site.model.pending.borrow_mut() = None;
        self.site.weather.acknowledged();
        Ok(())
    }

    async fn name_until_answered(&self, disk: &Disk, vdisk: &Vdisk) -> Result<(), Stop> {
        for _ in 0..TRIES {
            if self.name_anew(disk, vdisk).await? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(Stop)
    }

    /// Not acknowledged, it may be in the registry alone. Whoever made it goes on with it.
    async fn find_out_made(&self, disk: &Rc<Disk>) -> Result<(), Stop> {
        for _ in 0..TRIES {
            match self.engine.open_vdisk(self.vpool, disk.id, ON_FULL).await {
                Ok(vdisk) => {
                    self.name_until_answered(disk, &vdisk).await?;
                    *self.site.model.pending.borrow_mut() = None;
                    self.is_made(disk, vdisk);
                    return Ok(());
                }
                Err(VolumeError::NotFound(_)) => {
                    *self.site.model.pending.borrow_mut() = None;
                    self.site.model.gone.borrow_mut().push((disk.id, disk.base));
                    return Ok(());
                }
                Err(error) => self.site.look_at(disk, "opening what was being made", error)?,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(Stop)
    }

    /// A deletion that failed may be decided, and is asked for until it is answered.
    async fn delete_again(&self, id: VdiskId) -> Result<(), Stop> {
        let Some(disk) = self.site.model.disk(id) else { return Err(Stop) };
        for _ in 0..TRIES {
            match self.engine.delete_vdisk(self.vpool, id).await {
                Ok(()) | Err(VolumeError::NotFound(_)) => {
                    *self.site.model.pending.borrow_mut() = None;
                    self.is_gone(&disk);
                    return Ok(());
                }
                Err(error) => self.site.look_at(&disk, "delete", error)?,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(Stop)
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

    async fn wait_on_backend(&self, disk: &Disk, snapshot: &Snapshot) -> Result<(), Stop> {
        let (Ok(vdisk), id) = (disk.open(), snapshot.id) else { return Ok(()) };
        match vdisk.wait_on_backend(id).await {
            Ok(()) if vdisk.snapshots().iter().any(|info| info.id == id && info.on_backend) => {
                // Those before it left before it.
                let taken = disk.snapshot_ids();
                let count = taken.iter().position(|taken| *taken == id).map_or(0, |at| at + 1);
                disk.is_on_backend(&snapshot.least, &taken[..count]);
                Ok(())
            }
            Ok(()) => self.fails(disk, "a snapshot that was waited for is not there"),
            Err(error) => self.site.look_at(disk, "waiting for a snapshot", error),
        }
    }

    async fn destage(&self, disk: &Disk) -> Result<(), Stop> {
        let (cut, snapshots) = (disk.history.borrow().acknowledged(), disk.snapshot_ids());
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        self.site.weather.event(format_args!("the operator: destage of {}", disk.id), 0);
        match vdisk.destage().await {
            Ok(()) => {
                disk.is_on_backend(&cut, &snapshots);
                self.site.weather.acknowledged();
                Ok(())
            }
            Err(error) => self.site.look_at(disk, "a destage", error),
        }
    }
}

impl Operator {
    async fn scrub(&self, disk: &Disk) -> Result<(), Stop> {
        let Ok(vdisk) = disk.open() else { return Ok(()) };
        self.site.weather.event(format_args!("the operator: scrub of {}", disk.id), 0);
        match vdisk.scrub().await {
            // Something else is under way on it.
            Err(VolumeError::Retry(_)) => Ok(()),
            Err(error) => self.site.look_at(disk, "a scrub", error),
            Ok(report) if report.moved_bytes > report.needed_bytes => {
                self.fails(disk, "a scrub moved more than is needed")
            }
            Ok(report) => {
                self.site.weather.event(format_args!("{report:?}"), 0);
                Ok(())
            }
        }
    }
}

impl Admin {
    /// Does the vDisk show it as done?
    fn is_done(&self, vdisk: &Vdisk, disk: &Disk) -> bool {
        let has = |id: &SnapshotId| vdisk.snapshots().iter().any(|info| info.id == *id && !info.hidden);
        match self {
            Admin::Snapshot { id, .. } => has(id),
            Admin::DeleteSnapshot { id, .. } => !has(id),
            Admin::Resize { size, .. } => vdisk.size() == *size && *size != disk.size(),
            Admin::Create(_) | Admin::Delete(_) | Admin::Rollback { .. } => false,
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
