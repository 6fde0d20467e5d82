//! The whole single-host core in one thread, from one seed.
//!
//! ```text
//!  seed ─▶ World: stores that outlive engines ◀─▶ Weather (faults, delays, trace) ◀─▶ engine, in paused time
//!             lives: open → compare → clients and an operator at once, in bad weather → calm, or not → close, death,
//!                    power loss; then perhaps local state is lost
//! ```
//!
//! Several vDisks with several clients each run at once; the operator takes snapshots, clones, rolls back, resizes and
//! deletes beside them. After every life what is there must be explained by what was asked for ([`crate::History`]).
//! The same seed gives the same trace, which its hash shows. Faults are classes of their own ([`FaultClass`]), each
//! chosen for a life or not, and the report says which ones came. `OVS_TRACE=1` prints every event of a seed.

mod client;
mod disk;
mod leftovers;
mod life;
mod operator;
mod rot;
mod settle;
mod sweep;
mod weather;

use crate::{
    MemoryDevice, Random,
    random::mix,
    stores::{MemoryCache, Stores},
    world::a_config,
};
use disk::Disk;
use life::Ending;
use operator::Admin;
use ovs_units::{SnapshotId, VdiskId, VpoolId};
use ovs_volume::EngineConfig;
pub use rot::rot;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};
pub use sweep::{Points, fail_every_call, sweep};
pub use weather::FaultClass;
use weather::Weather;

/// What a seed came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Of every call of a store, every answer and every acknowledgement, in order and with their times.
    pub trace_hash: u64,
    /// How many of those.
    pub events: u64,
    /// Operations of clients that were acknowledged.
    pub operations: u64,
    /// Faults that came.
    pub faults: Vec<FaultClass>,
}

/// Runs a seed. The text says what is wrong with the engine.
pub fn simulate(seed: u64) -> Result<Report, String> {
    let mut world = World::new(seed);
    let lives = 3 + world.random.below(4);
    for life in 0..lives {
        world.live(life).map_err(|failure| format!("seed {seed}, life {life} of {lives}: {failure}"))?;
    }
    world.finish().map_err(|failure| format!("seed {seed}, at the end: {failure}"))?;
    Ok(world.report())
}

type Failure = String;

/// A deleted vDisk, and what it was cloned from: with living clones it may still be seen.
type Gone = (VdiskId, Option<(VdiskId, SnapshotId)>);

/// Everything that outlives an engine, and what must be true of it.
struct World {
    random: Rc<Random>,
    stores: Stores,
    weather: Rc<Weather>,
    config: EngineConfig,
    vpool: VpoolId,
    model: Rc<Model>,
    /// How the last life ended.
    ended: Ending,
    /// The registry is gone: what there is must be found on the backend.
    is_forgotten: bool,
    wall_ms: Rc<Cell<u64>>,
    /// In a life since vDisks were last opened the write buffer's device failed: they may wait for somebody to accept that
    /// they have lost something.
    may_have_lost: bool,
}

/// What there should be.
#[derive(Default)]
struct Model {
    disks: RefCell<Vec<Rc<Disk>>>,
    gone: RefCell<Vec<Gone>>,
    /// An operation of the operator whose outcome is not known: it was under way when the life ended, or failed.
    pending: RefCell<Option<Admin>>,
    /// Every write has contents of its own.
    writes: Cell<u64>,
    operations: Cell<u64>,
    /// The operator begins nothing more in this life.
    operator_rests: Cell<bool>,
    operator_acts: Cell<bool>,
    /// In this life it is known what is on the backend, so that everything else may be lost.
    follows_backend: Cell<bool>,
    /// The first thing found wrong.
    failure: RefCell<Option<Failure>>,
}

impl Model {
    /// What there should be now, whatever happens to the other from here on.
    fn fork(&self) -> Model {
        Model {
            disks: RefCell::new(self.disks.borrow().iter().map(|disk| Rc::new(disk.fork())).collect()),
            gone: self.gone.clone(),
            pending: RefCell::new(self.pending.borrow().as_ref().map(Admin::fork)),
            writes: self.writes.clone(),
            operations: self.operations.clone(),
            operator_rests: Cell::new(false),
            operator_acts: Cell::new(false),
            follows_backend: Cell::new(false),
            failure: RefCell::default(),
        }
    }

    fn disk(&self, id: VdiskId) -> Option<Rc<Disk>> {
        self.disks.borrow().iter().find(|disk| disk.id == id).cloned()
    }

    fn forget(&self, id: VdiskId) {
        let mut disks = self.disks.borrow_mut();
        if let Some(at) = disks.iter().position(|disk| disk.id == id) {
            let disk = disks.remove(at);
            self.gone.borrow_mut().push((disk.id, disk.base));
        }
    }

    /// vDisks that are there, and those that were deleted.
    fn all(&self) -> Vec<VdiskId> {
        let (disks, gone) = (self.disks.borrow(), self.gone.borrow());
        disks.iter().map(|disk| disk.id).chain(gone.iter().map(|(id, _)| *id)).collect()
    }

    /// What it was cloned from, and that from, and so on.
    fn ancestors(&self, id: VdiskId) -> Vec<VdiskId> {
        let base_of = |id: VdiskId| match self.disk(id) {
            Some(disk) => disk.base,
            None => self.gone.borrow().iter().find(|(gone, _)| *gone == id).and_then(|(_, base)| *base),
        };
        let parent_of = |id: &VdiskId| base_of(*id).map(|(parent, _)| parent);
        std::iter::successors(parent_of(&id), parent_of).collect()
    }

    fn fail(&self, failure: Failure) {
        self.failure.borrow_mut().get_or_insert(failure);
    }

    /// Does a clone that lives, or a clone of such a one, come from it?
    fn has_living_descendant(&self, id: VdiskId) -> bool {
        let is_base = |base: &Option<(VdiskId, SnapshotId)>| base.is_some_and(|(parent, _)| parent == id);
        self.disks.borrow().iter().any(|disk| is_base(&disk.base))
            || self
                .gone
                .borrow()
                .iter()
                .any(|(child, base)| is_base(base) && self.has_living_descendant(*child))
    }
}

impl World {
    fn new(seed: u64) -> World {
        let random = Rc::new(Random::new(mix(seed ^ 0x0051_3a7e)));
        let slot_bytes = [64 << 10, 128 << 10, 256 << 10][random.below(3) as usize];
        let slots = 8 + random.below(9) as usize;
        let cache = MemoryCache::by_chance(&Random::new(mix(seed ^ 0x000c_ac4e)));
        World {
            stores: Stores::new(MemoryDevice::new(slots, slot_bytes, Rc::clone(&random)), cache),
            weather: Rc::new(Weather::new(Rc::clone(&random))),
            config: a_config(&random),
            vpool: VpoolId(ovs_volume::Chance::uuid(&*random)),
            model: Rc::default(),
            ended: Ending::Clean,
            is_forgotten: false,
            wall_ms: Rc::new(Cell::new(1_800_000_000_000 + random.below(1 << 40))),
            may_have_lost: false,
            random,
        }
    }

    fn report(&self) -> Report {
        let (trace_hash, events) = self.weather.trace();
        Report { trace_hash, events, operations: self.model.operations.get(), faults: self.weather.fired() }
    }
}
