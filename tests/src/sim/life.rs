//! One life of an engine: it opens, is compared, serves in bad weather, and ends somehow.

use super::{
    Failure, World,
    client::{Site, until},
    disk::{Disk, Snapshot},
    operator::{ON_FULL, Operator},
    weather::{FaultClass, Season},
};
use crate::{
    MemoryDevice,
    stores::{Directed, Director},
};
use futures_util::future::LocalBoxFuture;
use ovs_units::{CLUSTER_SIZE_BYTES, VdiskId};
use ovs_volume::{Clock, Engine, EngineParts, LogDevice, Vdisk, VdiskState, VolumeError};
use std::{cell::Cell, rc::Rc, time::Duration};
use tokio::{runtime::Runtime, task::LocalSet, time::Instant};

/// In paused time, which passes when nobody has anything else to do: in calm weather nothing takes this long.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Operations of clients in one life.
const OPERATIONS_MAX: u64 = 500;
/// With this many slots left writes wait.
const SLOTS_RESERVED: u64 = 3;
/// An opening that fails in bad weather is tried so often, and then in calm weather.
const OPENINGS: u64 = 3;

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Closed.
    Clean,
    /// What was given to the kernel stays.
    Death,
    /// What was not synced may go.
    PowerLoss,
    /// With everything on this host.
    LocalLoss,
}

/// Time that passes, and a wall clock that somebody sets now and then.
struct SimClock {
    start: Instant,
    wall_ms: Rc<Cell<u64>>,
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        self.wall_ms.get() + self.start.elapsed().as_millis() as u64
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// Its own runtime, so that its death takes every task with it.
pub(super) struct Life {
    local: LocalSet,
    runtime: Runtime,
}

impl Life {
    pub(super) fn begin() -> Result<Life, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        Ok(Life { local: LocalSet::new(), runtime: runtime.map_err(|error| format!("no runtime: {error}"))? })
    }

    /// With the engine's own tasks beside it.
    pub(super) fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let timed = async { tokio::time::timeout(PATIENCE, work).await };
        let done = self.local.block_on(&self.runtime, timed);
        done.map_err(|_| format!("no answer within {PATIENCE:?}"))
    }

    fn enter<T>(&self, inside: impl FnOnce() -> T) -> T {
        let _entered = self.runtime.enter();
        inside()
    }

    fn end(self, inside: impl FnOnce()) {
        let _entered = self.runtime.enter();
        inside();
        drop(self.local);
    }
}

impl World {
    /// From opening to death.
    pub(super) fn live(&mut self, number: u64) -> Result<(), Failure> {
        let life = self.begin_life()?;
        let engine = self.open_all(&life)?;
        self.follow_backend(&life)?;
        let site = self.site();
        let operator = Operator { site, engine: engine.clone(), vpool: self.vpool, has_clients: true };
        let time = Duration::from_millis(200 + self.random.below(4000));
        self.weather.set(Season::Serving);
        // For most of such a life the backend is full.
        self.weather.is_backend_full.set(self.random.one_in(4));
        let model = Rc::clone(&self.model);
        let last = model.operations.get() + 50 + self.random.below(OPERATIONS_MAX);
        life.run(async {
            model.disks.borrow().iter().for_each(|disk| operator.serve(disk));
            tokio::task::spawn_local(operator.clone().work());
            let begin = Instant::now();
            while begin.elapsed() < time && model.operations.get() < last && model.failure.borrow().is_none()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let stats = engine.stats();
                let left_bytes = stats.buffer_total_bytes - stats.buffer_used_bytes;
                if left_bytes / self.stores.device.slot_bytes() <= SLOTS_RESERVED {
                    self.weather.note_once(FaultClass::BufferFull);
                }
                if begin.elapsed() > time / 4 * 3 {
                    self.weather.is_backend_full.set(false);
                }
            }
        })?;
        self.weather.is_backend_full.set(false);
        self.check()?;
        let is_calm = !self.random.one_in(3) && self.calm_down(&life)?;
        self.end_life(life, engine, number, is_calm)
    }

    /// What its clients and its operator know.
    pub(super) fn site(&self) -> Site {
        Site {
            random: Rc::clone(&self.random),
            weather: Rc::clone(&self.weather),
            model: Rc::clone(&self.model),
            // 1 MiB, or a sixteenth of a segment that is smaller than 16 MiB (docs/failure-model.md).
            part_clusters_max: (self.stores.device.slot_bytes() / CLUSTER_SIZE_BYTES / 16).clamp(1, 256),
        }
    }

    /// Everything compared for the last time.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        let life = self.begin_life()?;
        self.weather.set(Season::Calm);
        let engine = self.open_all(&life)?;
        life.run(engine.close(Duration::from_secs(300)))?.map_err(|error| format!("closing: {error}"))?;
        self.drop_life(life, engine);
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.model.failure.borrow_mut().take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn begin_life(&mut self) -> Result<Life, Failure> {
        let life = Life::begin()?;
        self.weather.begin_life();
        life.enter(|| self.weather.follow_runtime());
        if self.random.one_in(3) {
            // Hours forwards, or back to before the last life.
            let shift = self.random.below(48 * 3_600_000);
            let forward = self.random.one_in(2);
            let now = self.wall_ms.get();
            self.wall_ms.set(if forward { now + shift } else { now.saturating_sub(shift) });
            self.weather.note(FaultClass::ClockJump);
        }
        Ok(life)
    }

    fn parts(&self) -> EngineParts {
        let director: Rc<dyn Director> = self.weather.clone();
        let random = &self.random;
        EngineParts {
            clock: Rc::new(SimClock { start: Instant::now(), wall_ms: Rc::clone(&self.wall_ms) }),
            chance: random.clone(),
            registry: Rc::new(Directed::new(&self.stores.registry, &director, random)),
            pages: Rc::new(Directed::new(&self.stores.pages, &director, random)),
            buffer: Rc::new(Directed::new(&self.stores.device, &director, random)),
            cache: self
                .stores
                .cache
                .as_ref()
                .map(|cache| cache.parts(|| Directed::new(cache, &director, random))),
        }
    }

    /// In bad weather: an engine with every vDisk open, and everything compared.
    fn open_all(&mut self, life: &Life) -> Result<Engine, Failure> {
        self.weather.set(Season::Opening);
        while self.random.one_in(4) {
            self.die_while_opening()?;
            life.enter(|| self.weather.follow_runtime());
        }
        self.open(life)
    }

    /// An engine over what there is, no vDisk opened yet.
    pub(super) async fn open_engine(&self) -> Result<Engine, VolumeError> {
        let engine = Engine::open(self.config.clone(), self.parts()).await?;
        let director: Rc<dyn Director> = self.weather.clone();
        if let Some(cache) = &self.stores.cache {
            engine.set_vpool_cache(self.vpool, cache.vpool());
        }
        engine.attach_backend(
            self.vpool,
            Rc::new(Directed::new(&self.stores.backend, &director, &self.random)),
        );
        Ok(engine)
    }

    /// In whatever weather it is.
    pub(super) fn open(&mut self, life: &Life) -> Result<Engine, Failure> {
        let engine =
            self.try_often("opening the engine", life, async |world: &World| world.open_engine().await)?;
        if std::mem::take(&mut self.is_forgotten) {
            self.recover(life, &engine)?;
        }
        let mut ids: Vec<VdiskId> = self.model.disks.borrow().iter().map(|disk| disk.id).collect();
        let turn = self.random.below(ids.len().max(1) as u64) as usize;
        ids.rotate_left(turn);
        let mut gone = Vec::new();
        for id in ids {
            if !self.open_disk(life, &engine, id)? {
                gone.push(id);
            }
        }
        self.weather.set(Season::Calm);
        self.settle(life, &engine, &gone)?;
        life.run(engine.claim_buffered(ON_FULL))?.map_err(|error| format!("claiming: {error}"))?;
        // What earlier lives have lost is accepted now.
        self.may_have_lost = false;
        Ok(engine)
    }

    /// Nothing is served yet, so nothing need stay of what was read; with the power, unsynced blocks go as well.
    fn die_while_opening(&mut self) -> Result<(), Failure> {
        let dying = Life::begin()?;
        let (parts, turns) = dying.enter(|| {
            self.weather.follow_runtime();
            (self.parts(), self.random.below(400))
        });
        let config = self.config.clone();
        dying.run(async move {
            let some_turns = async {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                opened = Engine::open(config, parts) => drop(opened),
                () = some_turns => {}
            }
        })?;
        dying.end(|| ());
        self.weather.note(FaultClass::DeathWhileOpening);
        if self.ended == Ending::PowerLoss && self.random.one_in(2) {
            self.lose_power();
        }
        Ok(())
    }

    /// In bad weather a few times, then in calm.
    pub(super) fn try_often<T>(
        &self,
        what: &str,
        life: &Life,
        work: impl AsyncFn(&World) -> Result<T, VolumeError>,
    ) -> Result<T, Failure> {
        let season = self.weather.season();
        for attempt in 0..=OPENINGS {
            if attempt == OPENINGS {
                self.weather.set(Season::Calm);
            }
            match life.run(work(self))? {
                Ok(answer) => {
                    self.weather.set(season);
                    return Ok(answer);
                }
                Err(error) if attempt == OPENINGS => return Err(format!("{what}: {error:?}")),
                Err(error) => self.weather.event(format_args!("{what} fails: {error}"), 0),
            }
        }
        Err(format!("{what}: it was not tried"))
    }

    /// False when it is not there any more.
    fn open_disk(&mut self, life: &Life, engine: &Engine, id: VdiskId) -> Result<bool, Failure> {
        let vpool = self.vpool;
        let opened = self.try_often(&format!("opening vDisk {id}"), life, async |_: &World| match engine
            .open_vdisk(vpool, id, ON_FULL)
            .await
        {
            Err(VolumeError::NotFound(_)) => Ok(None),
            opened => opened.map(Some),
        })?;
        let Some(vdisk) = opened else { return Ok(false) };
        if let (VdiskState::Damaged(_), Ending::LocalLoss) = (vdisk.stats().state, self.ended) {
            // A snapshot whose data had not left says what it has lost.
            let is_cut = |known: &Snapshot| !known.is_on_backend || known.was_cut;
            let has_cut = |disk: Rc<Disk>| disk.snapshots.borrow().iter().any(is_cut);
            if self.model.disk(id).is_some_and(has_cut) {
                self.accept_loss(life, &vdisk)?;
            }
        }
        if let VdiskState::Offline(reason) = vdisk.stats().state {
            if !self.may_have_lost && !self.weather.may_be_offline() {
                return Err(format!("vDisk {id} is offline, and nothing has failed: {reason}"));
            }
            self.accept_loss(life, &vdisk)?;
        }
        if let Some(disk) = self.model.disk(id) {
            *disk.vdisk.borrow_mut() = Some(vdisk);
        }
        Ok(true)
    }

    /// Somebody says that what is there will do. Not where the write buffer has failed in this life too.
    fn accept_loss(&self, life: &Life, vdisk: &Vdisk) -> Result<(), Failure> {
        let accepted = self.try_often("accepting a loss", life, async |world: &World| {
            match vdisk.accept_loss().await {
                Err(VolumeError::Offline(_)) if world.weather.has_device_failed() => Ok(true),
                answer => answer.map(|told| told.is_some() || world.weather.may_be_offline()),
            }
        })?;
        if accepted { Ok(()) } else { Err(format!("vDisk {} is offline with nothing to accept", vdisk.id())) }
    }

    /// Does any vDisk serve no more in this life?
    fn is_offline(&self) -> bool {
        let disks = self.model.disks.borrow();
        let mut open = disks.iter().filter_map(|disk| disk.open().ok());
        open.any(|vdisk| matches!(vdisk.stats().state, VdiskState::Offline(_)))
    }

    /// In calm weather everything goes on by itself. False where something hangs, or serves no more.
    fn calm_down(&mut self, life: &Life) -> Result<bool, Failure> {
        self.weather.set(Season::Calm);
        if self.weather.has_fired(FaultClass::BackendHung) || self.is_offline() {
            return Ok(false);
        }
        self.model.operator_rests.set(true);
        self.pause_all();
        let acting = life.run(until(|| !self.model.operator_acts.get()));
        acting.map_err(|_| format!("in calm weather the operator still waits after {PATIENCE:?}"))?;
        // One that was made meanwhile, too.
        let disks = self.pause_all();
        let settled = life.run(until(|| disks.iter().all(|disk| disk.busy.get() == 0)));
        settled.map_err(|_| format!("in calm weather something still waits after {PATIENCE:?}"))?;
        self.check()?;
        Ok(!self.is_offline())
    }

    fn pause_all(&self) -> Vec<Rc<Disk>> {
        let disks = self.model.disks.borrow().clone();
        disks.iter().for_each(|disk| disk.pauses.set(disk.pauses.get() + 1));
        disks
    }

    fn end_life(&mut self, life: Life, engine: Engine, number: u64, is_calm: bool) -> Result<(), Failure> {
        let is_named = |disk: &Rc<Disk>| disk.properties_asked.borrow().is_empty();
        let is_settled =
            self.model.pending.borrow().is_none() && self.model.disks.borrow().iter().all(is_named);
        if is_settled && self.model.follows_backend.get() && self.random.one_in(2) {
            self.drop_life(life, engine);
            self.weather.note(FaultClass::WriteBufferLost);
            self.lose_local_state();
            self.ended = Ending::LocalLoss;
            return Ok(());
        }
        let is_quiet = is_calm && is_settled;
        let loss = if is_quiet && number > 0 { self.random.below(3) } else { 9 };
        if loss == 0 && self.put_everything_on_the_backend(&life)? {
            self.drop_life(life, engine);
            self.weather.note(FaultClass::LocalStateLost);
            self.lose_local_state();
            self.ended = Ending::Death;
            return Ok(());
        }
        // An engine that has recorded nothing yet has not told the backend where it goes on from: what its predecessor
        // put there and did not live to commit would count again.
        let may_forget = loss == 1 && self.touch_all(&life)?;
        if is_calm && self.random.one_in(3) {
            life.run(engine.close(Duration::from_secs(300)))?.map_err(|error| format!("closing: {error}"))?;
            self.ended = Ending::Clean;
        } else if self.random.one_in(2) {
            self.ended = Ending::Death;
            self.weather.note(FaultClass::Death);
        } else {
            self.ended = Ending::PowerLoss;
        }
        self.drop_life(life, engine);
        if self.ended == Ending::PowerLoss {
            self.weather.note(FaultClass::PowerLoss);
            self.lose_power();
        }
        if may_forget {
            self.stores.registry = Rc::default();
            self.stores.pages = Rc::default();
            self.is_forgotten = true;
            self.weather.note(FaultClass::RegistryLost);
        } else if self.random.one_in(5) {
            self.stores.pages = Rc::default();
            self.weather.note(FaultClass::PagesLost);
        }
        Ok(())
    }

    fn lose_local_state(&mut self) {
        self.stores.registry = Rc::default();
        self.stores.pages = Rc::default();
        let (slots, bytes) = (8 + self.random.below(9), 64 << 10 << self.random.below(3));
        self.stores.device = Rc::new(MemoryDevice::new(slots as usize, bytes, Rc::clone(&self.random)));
        // The mark of a loss is in the registry alone.
        (self.is_forgotten, self.may_have_lost) = (true, false);
    }

    /// In some lives everything is on the backend when it begins, so that what is there at any later time is known.
    fn follow_backend(&mut self, life: &Life) -> Result<(), Failure> {
        let follows = self.random.one_in(2)
            && !self.weather.may_be_offline()
            && self.put_everything_on_the_backend(life)?
            && self.touch_all(life)?;
        self.model.follows_backend.set(follows);
        for disk in self.model.disks.borrow().iter() {
            disk.history.borrow_mut().follow_backend(follows);
        }
        Ok(())
    }

    fn lose_power(&self) {
        let taken = self.stores.device.lose_power();
        let classes = [
            (taken.lost, FaultClass::UnsyncedLost),
            (taken.torn, FaultClass::WriteTorn),
            (taken.reordered, FaultClass::WritesReordered),
        ];
        classes.into_iter().filter(|(is_so, _)| *is_so).for_each(|(_, class)| self.weather.note(class));
    }

    fn put_everything_on_the_backend(&self, life: &Life) -> Result<bool, Failure> {
        for disk in self.model.disks.borrow().clone() {
            let Ok(vdisk) = disk.open() else { return Ok(false) };
            life.run(vdisk.destage())?.map_err(|error| format!("in calm weather: destaging: {error}"))?;
            let cut = disk.history.borrow().acknowledged();
            disk.is_on_backend(&cut, &disk.snapshot_ids());
        }
        Ok(true)
    }

    fn touch_all(&self, life: &Life) -> Result<bool, Failure> {
        for disk in self.model.disks.borrow().clone() {
            let Ok(vdisk) = disk.open() else { return Ok(false) };
            let properties = format!("{{\"name\":{}}}", self.random.next());
            life.run(vdisk.set_properties(properties.clone().into()))?
                .map_err(|error| format!("in calm weather: setting properties: {error}"))?;
            *disk.properties.borrow_mut() = properties;
        }
        Ok(true)
    }

    /// Nothing is told, everything in memory goes. What was given to the kernel stays.
    pub(super) fn drop_life(&mut self, life: Life, engine: Engine) {
        self.model.operator_rests.set(false);
        self.model.operator_acts.set(false);
        let disks = self.model.disks.borrow().clone();
        let pending = self.model.pending.borrow().clone();
        let made = match &pending {
            Some(super::operator::Admin::Create(disk)) => Some(disk),
            _ => None,
        };
        life.end(|| {
            for disk in disks.iter().chain(made) {
                drop(disk.vdisk.borrow_mut().take());
                disk.pauses.set(0);
                disk.busy.set(0);
            }
            drop(engine);
        });
        // Tasks that were dropped have let go of what they held, in their own way.
        for disk in disks.iter().chain(made) {
            disk.pauses.set(0);
            disk.busy.set(0);
        }
        self.stores.device.fail(0, 0);
        self.may_have_lost |= self.weather.has_device_failed();
        self.weather.end_life();
    }

    /// What is found on the backend is what there was; adopted, it can be opened.
    fn recover(&mut self, life: &Life, engine: &Engine) -> Result<(), Failure> {
        let vpool = self.vpool;
        let found = self.try_often("discovering", life, async |_: &World| {
            let found = engine.discover(vpool).await?;
            // In bad weather some may be told with a problem, deleted ones too; nobody takes that for the last word.
            match found.iter().find(|found| found.problem.is_some()) {
                Some(found) => Err(VolumeError::Damaged(format!("{found:?}"))),
                None => Ok(found),
            }
        })?;
        for disk in self.model.disks.borrow().iter() {
            let Some(found) = found.iter().find(|found| found.id == disk.id) else {
                return Err(format!("vDisk {} is not found on the backend", disk.id));
            };
            let names: Vec<_> =
                disk.snapshots.borrow().iter().map(|snapshot| snapshot.name.clone()).collect();
            let snapshots = found.snapshots.iter().filter(|info| !info.hidden).map(|info| &info.name);
            let is_same = found.properties == disk.properties.borrow().as_bytes()
                && found.size == disk.size()
                && found.base == disk.base
                && snapshots.eq(names.iter());
            if !is_same {
                return Err(format!("vDisk {} is found as {found:?}", disk.id));
            }
        }
        for found in &found {
            let id = found.id;
            let is_known = self.model.disk(id).is_some()
                || (self.model.gone.borrow().iter().any(|(gone, _)| *gone == id)
                    && self.model.has_living_descendant(id));
            if !is_known {
                return Err(format!("a vDisk that was deleted or never made is found: {found:?}"));
            }
            self.try_often(&format!("adopting vDisk {id}"), life, async |_: &World| {
                engine.adopt_vdisk(vpool, id).await
            })?;
        }
        self.try_often("the end of the recovery", life, async |_: &World| engine.finish_recovery(vpool).await)
    }
}
