//! Starting and stopping.
//!
//! ```text
//!  registry ─▶ backends, vPools ─▶ half-made things finished or abandoned ─▶ attachments ─▶ doors ─▶ vDisks, one by one
//!  registry empty, vpools.json not ─▶ rebuilt from the backends first; until that is done, at every start
//! ```
//!
//! What cannot be opened is kept with its reason and tried again; it never keeps ovsd from starting.

use super::{
    Pool, Settings, Volumes, VolumesParts,
    background::Alarms,
    inventory::Inventory,
    namespace::Namespace,
    problem::{from_catalogue, from_volume},
};
use crate::{events::Events, sockets::VdiskSockets};
use anyhow::Context;
use futures_util::future::join_all;
use ovs_api::{CreateVpool, Labels, Problem, ProblemKind, VpoolCachePatch};
use ovs_cluster::catalogue::{
    Catalogue, CatalogueError, Counter, FORMAT, State, Stored, VdiskRecord, VpoolRecord,
};
use ovs_nbd::Server;
use ovs_units::Name;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;

/// The counter of event numbers in the registry.
const EVENTS_COUNTER: Uuid = Uuid::from_u128(1);
/// Numbers reserved at a time.
const EVENTS_RESERVED: u64 = 1_000_000;
/// What is left of vPools that were being made or deleted is waited for so long; it goes on.
const FINISHING_PATIENCE: Duration = Duration::from_secs(15);
/// What connections may take to end when ovsd stops.
const DOORS_PATIENCE: Duration = Duration::from_secs(5);

impl Volumes {
    /// Brings up what there is. Call on the engine thread, inside its `LocalSet`.
    pub async fn start(parts: VolumesParts, server: Rc<Server>) -> anyhow::Result<Rc<Volumes>> {
        let VolumesParts { engine, registry, clock, chance, settings, tasks, runtime } = parts;
        let catalogue = Catalogue::new(registry);
        let inventory_path = settings.paths.state_dir().join("vpools.json");
        let known = match Inventory::load(&inventory_path) {
            Ok(known) => known,
            Err(error) => {
                tracing::error!(%error, "vpools.json cannot be read; it is written anew from the registry");
                None
            }
        };
        let is_first_start = known.is_none();
        let inventory = known.unwrap_or_else(|| Inventory::new(chance.uuid()));
        let first_event =
            reserve_events(&catalogue, clock.wall_ms()).await.context("reserving event numbers")?;
        let volumes = Rc::new(Volumes {
            engine,
            catalogue,
            clock,
            chance,
            settings,
            attachments: Default::default(),
            events: Arc::new(Events::starting_at(first_event)),
            tasks,
            alarms: Alarms::default(),
            sockets: VdiskSockets::new(server),
            runtime,
            host: inventory.host,
            inventory: RefCell::new(inventory),
            locks: Default::default(),
            pools: RefCell::default(),
            drives: RefCell::default(),
            slots: RefCell::default(),
            events_reserved: Cell::new(first_event + EVENTS_RESERVED),
            is_stopping: Cell::new(false),
            is_rebuilt: Cell::new(false),
            is_inventory_due: Cell::new(false),
            unasked: RefCell::default(),
            layouts_due: RefCell::default(),
        });
        volumes.bring_up(is_first_start).await.map_err(|problem| anyhow::anyhow!(problem.detail))?;
        Ok(volumes)
    }

    async fn bring_up(self: &Rc<Self>, is_first_start: bool) -> Result<(), Problem> {
        let log = |error: CatalogueError| tracing::error!(%error, "a vPool's record cannot be read");
        let vpools = self.catalogue.all::<VpoolRecord>(log).await.map_err(from_catalogue)?;
        let known = self.inventory.borrow().clone();
        if vpools.is_empty() && !known.vpools.is_empty() {
            tracing::warn!(
                vpools = known.vpools.len(),
                "the registry is empty: it is rebuilt from the backends"
            );
            let all = known.vpools.iter().map(|vpool| vpool.id).collect();
            self.change_inventory(|inventory| inventory.incomplete = all).await?;
        }
        if vpools.is_empty() && is_first_start && self.engine.has_strangers().await.map_err(from_volume)? {
            tracing::warn!("the write buffer has data of vDisks that nobody knows: recover their vPools");
            self.change_inventory(|inventory| inventory.has_strangers = true).await?;
        }
        self.is_rebuilt.set(!self.is_all_known());
        self.rebuild_registry(&known).await?;
        let vpools = self.catalogue.all::<VpoolRecord>(log).await.map_err(from_catalogue)?;
        // What does not answer is waited for once, and not for one vPool after the other.
        let set = self.backend_set().await?;
        let open = |vpool: &VpoolRecord| {
            let (backend, namespace) = (vpool.backend, vpool.namespace.clone());
            let set = &set;
            async move { self.open_store(set, backend, &namespace, Namespace::Existing).await.map(drop) }
        };
        let ready = vpools.iter().map(|stored| &stored.record).filter(|record| record.state == State::Ready);
        join_all(ready.map(open)).await;
        for stored in vpools {
            self.bring_up_vpool(stored).await;
        }
        self.begin_finishing_vpools(FINISHING_PATIENCE).await;
        if is_first_start && self.pools.borrow().is_empty() && self.settings.makes_default_vpool {
            match self.make_default_vpool().await {
                // What is left of an earlier one goes first.
                Err(problem) if problem.kind() == ProblemKind::Conflict => {
                    tracing::error!(%problem, "the default vPool is not made");
                }
                made => made?,
            }
        }
        self.write_inventory().await?;
        self.finish_what_was_begun().await;
        self.load_attachments().await
    }

    async fn bring_up_vpool(self: &Rc<Self>, stored: Stored<VpoolRecord>) {
        let record = stored.record.clone();
        match record.state {
            State::Ready => {
                let pool = Rc::new(Pool::new(record.clone()));
                if let Err(problem) = self.use_pool(&pool).await {
                    self.keep_pool_offline(&pool, problem.detail);
                }
            }
            // After all others are there.
            State::Creating | State::Deleting => {}
        }
    }

    async fn make_default_vpool(self: &Rc<Self>) -> Result<(), Problem> {
        let Settings { trash_retention, stall_timeout, default_backend_path, paths, .. } = &self.settings;
        let path = default_backend_path.clone().unwrap_or_else(|| paths.state_dir().join("backend/default"));
        let request = CreateVpool {
            name: Name::new("default").expect("a name"),
            backend: None,
            preset: None,
            on_full: None,
            stall_timeout_ms: stall_timeout.map(|timeout| timeout.as_millis() as u64),
            default_size_bytes: None,
            trash_retention_s: Some(trash_retention.as_secs()),
            cache: VpoolCachePatch::default(),
            description: String::new(),
            labels: Labels::default(),
        };
        self.create_vpool_at(request, path, Default::default()).await.map(drop)
    }

    /// Finishes or abandons what was begun and not finished, by a crash or an error. Also called now and then: whoever
    /// is still at it holds the lock that is waited for here.
    pub(super) async fn finish_what_was_begun(self: &Rc<Self>) {
        for stored in self.all_records().await {
            let record = &stored.record;
            if record.state == State::Ready
                || self.pool(record.vpool).map_or(true, |pool| pool.backend().is_none())
            {
                continue;
            }
            let _named = match record.state {
                State::Creating => {
                    Some(self.locks.lock(VdiskRecord::name_key(record.vpool, &record.name)).await)
                }
                _ => None,
            };
            // What is still being worked on, or opened, is looked at again.
            let Some(_locked) = self.try_lock_vdisk(record.id) else { continue };
            let Ok(Some(now)) = self.catalogue.find::<VdiskRecord>(record.id.0).await else { continue };
            match now.record.state {
                State::Ready => {}
                State::Creating => self.abandon_clone(&now).await,
                State::Deleting => {
                    if let Err(problem) = self.finish_delete(&now).await {
                        tracing::warn!(vdisk = %record.id, %problem, "its deletion is not finished yet");
                    }
                }
            }
        }
    }

    /// As `abandon_vdisk`; the parent is opened first, since the snapshot that was taken for the clone goes too.
    async fn abandon_clone(&self, prepared: &Stored<VdiskRecord>) {
        let base = prepared.record.base.as_ref().filter(|base| base.taken_for_clone).map(|base| base.vdisk);
        let _parent_locked = match base {
            Some(parent) => {
                let Some(locked) = self.try_lock_vdisk(parent) else { return };
                if let Err(problem) = self.ensure_open_locked(parent, &locked).await {
                    tracing::warn!(vdisk = %parent, %problem, "the parent of an interrupted clone cannot be opened");
                }
                Some(locked)
            }
            None => None,
        };
        self.abandon_vdisk(prepared).await;
    }

    pub(crate) async fn all_records(&self) -> Vec<Stored<VdiskRecord>> {
        let log = |error: CatalogueError| tracing::error!(%error, "a vDisk's record cannot be read");
        match self.catalogue.all::<VdiskRecord>(log).await {
            Ok(records) => records,
            Err(error) => {
                tracing::error!(%error, "the vDisks' records cannot be read");
                Vec::new()
            }
        }
    }

    /// Opens the doors: the common NBD socket, and each vDisk's own.
    pub async fn open_doors(self: &Rc<Self>) -> anyhow::Result<()> {
        let folder = self.settings.paths.nbd_dir();
        std::fs::create_dir_all(&folder).context("making the folder of NBD sockets")?;
        self.sockets.remove_dead(&folder).context("removing sockets of a dead ovsd")?;
        for stored in self.all_records().await {
            if stored.record.state == State::Ready && stored.record.trash.is_none() {
                self.sockets.open(self, &stored.record).await;
            }
        }
        self.sockets.open_common(self)
    }

    /// Stops: nobody new gets in, connections end, what is buffered leaves as far as `patience` goes.
    pub async fn stop(&self, patience: Duration) -> Result<(), ovs_volume::VolumeError> {
        self.is_stopping.set(true);
        self.engine.lift_limits();
        if tokio::time::timeout(DOORS_PATIENCE, self.sockets.stop()).await.is_err() {
            tracing::warn!("NBD connections are cut off: what they wait for was not acknowledged");
        }
        self.engine.close(patience).await
    }

    /// Reserves more event numbers when those reserved run low.
    pub(super) async fn keep_events_reserved(&self) {
        if self.events.newest().0 + EVENTS_RESERVED / 10 < self.events_reserved.get() {
            return;
        }
        let reserved = self.events_reserved.get() + EVENTS_RESERVED;
        match set_counter(&self.catalogue, reserved).await {
            Ok(()) => self.events_reserved.set(reserved),
            Err(error) => tracing::warn!(%error, "event numbers were not reserved"),
        }
    }

    /// The exports of the common NBD socket.
    pub(crate) async fn export_names(&self, limit: usize) -> Vec<String> {
        let mut names = Vec::new();
        for pool in self.all_pools() {
            let pool = pool.record();
            let found = self.catalogue.index(&VdiskRecord::names_prefix(pool.id)).await.unwrap_or_default();
            names.extend(found.into_iter().map(|(name, _)| format!("{}/{name}", pool.name)));
        }
        names.truncate(limit);
        names
    }
}

/// The first event number of this start. A registry that was lost forgets the counter: the time of day in milliseconds
/// is ahead of any number that was given out before.
async fn reserve_events(catalogue: &Catalogue, wall_ms: u64) -> Result<u64, CatalogueError> {
    let first =
        catalogue.find::<Counter>(EVENTS_COUNTER).await?.map_or(wall_ms, |stored| stored.record.value);
    set_counter(catalogue, first + EVENTS_RESERVED).await?;
    Ok(first)
}

async fn set_counter(catalogue: &Catalogue, value: u64) -> Result<(), CatalogueError> {
    let counter = Counter { format: FORMAT, uuid: EVENTS_COUNTER, value };
    match catalogue.find::<Counter>(EVENTS_COUNTER).await? {
        Some(stored) => catalogue.update(&stored, counter).await.map(drop),
        None => catalogue.insert(counter).await.map(drop),
    }
}
