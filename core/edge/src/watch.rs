//! Keeps the mounts in step with ovsd: which vPools there are, which vDisks they have, what became of them.
//!
//! ```text
//!  follow: event stream ──▶ its first event ──▶ sync (list everything) ──▶ one event after the other
//!     ▲                                                                            │
//!     └──────────────────── ovsd went away, or we were too slow ◀──────────────────┘
//! ```
//!
//! The stream is opened before the lists are read, so nothing is missed between them. When it breaks, everything is
//! listed again: no position is kept that could be wrong.

use crate::{
    device::Devices,
    file::Change,
    file_name::file_name,
    in_flight::{InFlight, Room},
    invalidator::Stale,
    mount::Mount,
    rpc::Rpc,
    sd_notify::SystemdNotifier,
    volume::Volume,
    watchdog::Watchdog,
};
use anyhow::anyhow;
use ovs_api::{ApiError, Event, EventKind, Vdisk};
use ovs_units::{Name, VdiskId};
use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
    time::Duration,
};
use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{Instant, interval, sleep},
};

/// Between two attempts to reach an ovsd that is away.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// How often mounts that ended by themselves are looked for.
const HEAL_PERIOD: Duration = Duration::from_secs(2);

/// How long a stop waits for requests in flight.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(20);

/// All mounts.
#[derive(Debug)]
pub struct Watcher {
    rpc: Arc<Rpc>,
    devices: Arc<Devices>,
    /// The vPools to mount; all with `None`.
    only: Option<Vec<Name>>,
    room: Room,
    watchdog: Watchdog,
    systemd: SystemdNotifier,
    mounts: HashMap<Name, Mount>,
    /// Those that could not be mounted, to be tried again.
    unmounted: HashMap<Name, Arc<Volume>>,
    is_ready: bool,
}

impl Watcher {
    /// Nothing mounted yet.
    pub fn new(
        rpc: Arc<Rpc>,
        devices: Arc<Devices>,
        only: Option<Vec<Name>>,
        watchdog: Watchdog,
        systemd: SystemdNotifier,
    ) -> Watcher {
        Watcher {
            rpc,
            devices,
            only,
            room: Room::default(),
            watchdog,
            systemd,
            mounts: HashMap::new(),
            unmounted: HashMap::new(),
            is_ready: false,
        }
    }

    /// Follows ovsd for ever, across its restarts. Dropping the future between two events loses nothing.
    pub async fn run(&mut self) {
        let mut is_away = false;
        loop {
            match self.follow(&mut is_away).await {
                Ok(()) => tracing::debug!("the event stream ended"),
                // Once per outage: an ovsd that is away for an hour is one fact.
                Err(error) if !is_away => {
                    is_away = true;
                    let socket = self.rpc.paths().socket();
                    tracing::warn!(socket = %socket.display(), "ovsd is away, waiting for it: {error:#}");
                    self.systemd.status("waiting for ovsd");
                }
                Err(error) => tracing::debug!("ovsd is still away: {error:#}"),
            }
            sleep(RETRY_DELAY).await;
        }
    }

    async fn follow(&mut self, is_away: &mut bool) -> anyhow::Result<()> {
        let mut events = self.rpc.events().await?;
        events.next().await?.ok_or_else(|| anyhow!("the event stream ended at once"))?;
        self.sync().await?;
        if std::mem::take(is_away) {
            tracing::info!("ovsd is there again");
        }
        self.systemd.status(&format!("{} vPools mounted", self.mounts.len()));
        if !self.is_ready {
            self.is_ready = true;
            self.systemd.ready();
            tracing::info!(vpools = self.mounts.len(), "ready");
        }
        let mut heal = interval(HEAL_PERIOD);
        loop {
            tokio::select! {
                event = events.next() => match event? {
                    Some(event) => self.take_in(&event).await?,
                    None => return Ok(()),
                },
                _ = heal.tick() => self.heal().await,
            }
        }
    }

    /// Everything as ovsd says.
    async fn sync(&mut self) -> anyhow::Result<()> {
        let vpools: Vec<Name> = self.rpc.vpools().await?.into_iter().map(|vpool| vpool.name).collect();
        let vpools: HashSet<Name> = vpools.into_iter().filter(|vpool| self.is_wanted(vpool)).collect();
        for gone in self.mounts.keys().filter(|vpool| !vpools.contains(*vpool)).cloned().collect::<Vec<_>>() {
            self.unmount(&gone).await;
        }
        self.unmounted.retain(|vpool, _| vpools.contains(vpool));
        for vpool in &vpools {
            let vdisks = self.rpc.vdisks(vpool).await?;
            if let Some(mount) = self.mounts.get(vpool) {
                reconcile(&self.rpc, mount, &vdisks).await?;
                continue;
            }
            let volume = self.unmounted.remove(vpool).unwrap_or_else(|| {
                let in_flight = InFlight::new(self.room.clone());
                Arc::new(Volume::new(vpool.clone(), Arc::clone(&self.rpc), in_flight))
            });
            for vdisk in &vdisks {
                volume.tree.upsert(vdisk);
            }
            self.mount(volume).await;
        }
        self.sweep().await?;
        // The mounts first: FUSE users wait for nothing else.
        Ok(self.devices.sync().await?)
    }

    fn is_wanted(&self, vpool: &Name) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(vpool))
    }

    async fn mount(&mut self, volume: Arc<Volume>) {
        let (vpool, kept) = (volume.vpool().clone(), Arc::clone(&volume));
        let (mount_point, runtime) = (self.rpc.paths().mount_dir(&vpool), Handle::current());
        let mounting = spawn_blocking(move || Mount::new(volume, mount_point, runtime)).await;
        match mounting.map_err(io::Error::from).and_then(|mounted| mounted) {
            Ok(mount) => {
                self.watchdog.watch(Arc::clone(&mount.volume), mount.connection());
                self.mounts.insert(vpool, mount);
            }
            Err(error) => {
                tracing::error!(%vpool, %error, "cannot be mounted, trying again");
                self.unmounted.insert(vpool, kept);
            }
        }
    }

    /// For a vPool that is gone, and at the end.
    async fn unmount(&mut self, vpool: &Name) {
        let Some(mount) = self.mounts.remove(vpool) else { return };
        self.watchdog.forget(vpool);
        mount.volume.refuse_opens();
        mount.volume.flush_all().await;
        end(mount).await;
    }

    /// Mounts again what was unmounted by hand or aborted, and what could not be mounted before. The files and their
    /// connections stay the same ones: two of them would fight over one attachment.
    async fn heal(&mut self) {
        let over: Vec<Name> =
            self.mounts.iter().filter(|(_, mount)| mount.is_over()).map(|(vpool, _)| vpool.clone()).collect();
        for vpool in over {
            let Some(mount) = self.mounts.remove(&vpool) else { continue };
            tracing::warn!(%vpool, "its mount has ended, mounting it again");
            self.watchdog.forget(&vpool);
            let volume = Arc::clone(&mount.volume);
            end(mount).await;
            volume.abandon();
            self.unmounted.insert(vpool, volume);
        }
        for (_, volume) in std::mem::take(&mut self.unmounted) {
            self.mount(volume).await;
        }
    }

    /// Gives back attachments that go by our name and that no open file needs: a dead predecessor's.
    async fn sweep(&self) -> anyhow::Result<()> {
        for attachment in self.rpc.own_attachments().await? {
            let mount = self.mounts.get(&attachment.vpool);
            match mount.and_then(|mount| mount.volume.tree.of_vdisk(attachment.vdisk)) {
                Some(file) => file.link.sweep(attachment.uuid).await,
                None => self.rpc.detach(attachment.uuid).await,
            }
        }
        Ok(())
    }

    async fn take_in(&mut self, event: &Event) -> anyhow::Result<()> {
        match event.kind {
            EventKind::VpoolCreated | EventKind::VpoolDeleted | EventKind::VpoolRecovered => {
                return self.sync().await;
            }
            EventKind::VdiskCreated
            | EventKind::VdiskUpdated
            | EventKind::VdiskRenamed
            | EventKind::VdiskResized
            | EventKind::VdiskRolledBack
            | EventKind::VdiskTemplate
            | EventKind::VdiskTrashed
            | EventKind::VdiskRestored
            | EventKind::VdiskDeleted => {}
            _ => return Ok(()),
        }
        let (Some(vpool), Some(id)) = (&event.vpool, event.vdisk.or(event.subject)) else { return Ok(()) };
        if event.kind == EventKind::VdiskResized {
            self.devices.resized(VdiskId(id)).await?;
        }
        let Some(mount) = self.mounts.get(vpool) else { return Ok(()) };
        let file = mount.volume.tree.of_vdisk(VdiskId(id));
        if event.kind == EventKind::VdiskRolledBack
            && let Some(file) = &file
        {
            mount.invalidator.forget(Stale::Contents(file.inode));
        }
        // Most events are echoes of what we did ourselves. The end of a vDisk need not have a revision of its own.
        let is_end = matches!(event.kind, EventKind::VdiskTrashed | EventKind::VdiskDeleted);
        let is_known = |revision| file.as_ref().is_some_and(|file| file.revision() >= revision);
        if !is_end && event.revision.is_some_and(is_known) {
            return Ok(());
        }
        refresh(&self.rpc, mount, VdiskId(id)).await?;
        Ok(())
    }

    /// Opens nothing more, waits for what is in flight, unmounts.
    pub async fn stop(mut self) {
        self.systemd.stopping();
        for mount in self.mounts.values() {
            mount.volume.refuse_opens();
        }
        let since = Instant::now();
        let in_flight = |mounts: &HashMap<Name, Mount>| -> usize {
            mounts.values().map(|mount| mount.volume.in_flight.count()).sum()
        };
        while in_flight(&self.mounts) > 0 && since.elapsed() < DRAIN_TIME_MAX {
            sleep(Duration::from_millis(20)).await;
        }
        if in_flight(&self.mounts) > 0 {
            tracing::warn!(in_flight = in_flight(&self.mounts), "requests are left unanswered");
        }
        for vpool in self.mounts.keys().cloned().collect::<Vec<_>>() {
            let unmounting = self.unmount(&vpool);
            if tokio::time::timeout(DRAIN_TIME_MAX, unmounting).await.is_err() {
                tracing::error!(%vpool, "not unmounted in time");
            }
        }
    }
}

async fn end(mount: Mount) {
    let vpool = mount.volume.vpool().clone();
    if let Err(error) = spawn_blocking(|| mount.unmount()).await {
        tracing::error!(%vpool, %error, "the unmounting broke off");
    }
}

/// Takes in the list of a vPool's vDisks.
async fn reconcile(rpc: &Rpc, mount: &Mount, vdisks: &[Vdisk]) -> Result<(), ApiError> {
    for vdisk in vdisks {
        upsert(mount, vdisk);
    }
    let listed: HashSet<VdiskId> = vdisks.iter().map(|vdisk| vdisk.uuid).collect();
    for file in mount.volume.tree.list() {
        // Not in the list: gone, or made since the list was.
        if !listed.contains(&file.id) {
            refresh(rpc, mount, file.id).await?;
        }
    }
    Ok(())
}

/// Asks for one vDisk and takes in the answer.
async fn refresh(rpc: &Rpc, mount: &Mount, id: VdiskId) -> Result<(), ApiError> {
    match rpc.vdisk_now(id).await? {
        Some(vdisk) if vdisk.vpool == *mount.volume.vpool() => upsert(mount, &vdisk),
        _ => {
            if let Some(file) = mount.volume.tree.remove(id) {
                mount.invalidator.forget(Stale::Name(file_name(&file.name())));
                mount.invalidator.forget(Stale::Contents(file.inode));
            }
        }
    }
    Ok(())
}

fn upsert(mount: &Mount, vdisk: &Vdisk) {
    let (file, Change { name_before, attributes }) = mount.volume.tree.upsert(vdisk);
    if let Some(before) = name_before {
        mount.invalidator.forget(Stale::Name(file_name(&before)));
        mount.invalidator.forget(Stale::Name(file_name(&vdisk.name)));
    }
    if attributes {
        mount.invalidator.forget(Stale::Attributes(file.inode));
    }
}
