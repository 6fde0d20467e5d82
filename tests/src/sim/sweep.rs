//! Every point at which a small workload can end, and every call that can fail.
//!
//! A workload runs once in calm weather; at each change of a store (a block written, a sync, a commit, a put …), at each
//! acknowledgement, which may come before the change that makes it true, and at the end the stores and what there should
//! be are forked. From each of these moments the world goes on as after the death of the process,
//! and as after a power loss with every subset of the unsynced blocks, up to a bound: it opens, is explained by
//! DESIGN section 5 to the letter, loses its power again with nothing unsynced left, and must then show the same. Of
//! some openings the moments within are crash points too; and some go on for a few operations and end once more: what a
//! successor numbers must not be taken for what was there before.

use super::{
    Ending, Failure, Model, World,
    client::Stop,
    life::Life,
    operator::Operator,
    weather::{Season, Weather},
};
use crate::{
    Random, Unsynced,
    random::mix,
    stores::{Fault, Stores},
};
use ovs_units::VpoolId;
use ovs_volume::EngineConfig;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

/// Operations of a workload.
pub(super) const OPERATIONS: u64 = 14;
/// One opening in so many is swept too.
const NESTED_ONE_IN: u64 = 16;
/// In so many ways at each of its moments.
const NESTED_SUBSETS: usize = 4;
/// After one end in so many the world goes on, and ends again.
const GOES_ON_ONE_IN: u64 = 8;

/// How much was tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Points {
    /// Changes of a store and acknowledgements at which everything ended.
    pub moments: u64,
    /// Ways in which it did: deaths, and power losses with different blocks gone.
    pub crashes: u64,
    /// Calls that failed.
    pub failed_calls: u64,
    /// Blocks, objects and pages that were damaged, in each of several ways.
    pub damages: u64,
    /// Blocks of the write buffer among them that later ones vouch for.
    pub vouched: u64,
}

impl std::ops::AddAssign for Points {
    fn add_assign(&mut self, other: Points) {
        self.moments += other.moments;
        self.crashes += other.crashes;
        self.failed_calls += other.failed_calls;
        self.damages += other.damages;
        self.vouched += other.vouched;
    }
}

/// What there was, and should be, when everything ended.
pub(super) struct Moment {
    pub(super) stores: Stores,
    pub(super) model: Model,
}

/// Ends the workload of a seed at every point, in at most `subsets` ways each.
pub fn sweep(seed: u64, subsets: usize) -> Result<Points, String> {
    let failed = |failure| format!("workload {seed}: {failure}");
    let mut world = a_small_world(seed);
    let moments = Rc::new(RefCell::new(Vec::new()));
    world.watch(&moments);
    world.work(OPERATIONS).map_err(failed)?;
    world.weather.acknowledged();
    world.unwatch();
    let mut points = Points::default();
    let random = Random::new(seed);
    let frame = Frame::of(&world);
    for (number, moment) in moments.take().iter().enumerate() {
        points.moments += 1;
        let at = |failure| format!("workload {seed}, moment {number}: {failure}");
        points.crashes += frame.end_in_every_way(moment, subsets, &random).map_err(at)?;
    }
    Ok(points)
}

/// Runs the workload of a seed again and again; each time another call of a store fails, before and after its effect. What
/// became of the operation that failed is found out and the workload goes on; it ends with a death, and with a power loss.
pub fn fail_every_call(seed: u64) -> Result<Points, String> {
    let mut world = a_small_world(seed);
    world.work(OPERATIONS).map_err(|failure| format!("workload {seed}: {failure}"))?;
    let calls = world.weather.calls();
    let (frame, random) = (Frame::of(&world), Random::new(seed));
    let mut points = Points::default();
    for call in 0..calls {
        for fault in [Fault::ErrorBefore, Fault::ErrorAfter] {
            let failed = |failure| format!("workload {seed}, call {call} fails with {fault:?}: {failure}");
            let mut world = a_small_world(seed);
            world.weather.plan(call, fault);
            world.work(OPERATIONS).map_err(failed)?;
            let may_have_lost = world.may_have_lost;
            let moment = Moment { stores: world.stores.clone(), model: world.model.fork() };
            for ended in [Ending::Death, Ending::PowerLoss] {
                let mut world = World { ended, may_have_lost, ..frame.world(&moment, random.next()) };
                if ended == Ending::PowerLoss {
                    world.stores.device.lose_power();
                }
                world.look().map_err(|failure| failed(format!("{ended:?}: {failure}")))?;
            }
            points.failed_calls += 1;
        }
    }
    Ok(points)
}

/// What the worlds of one workload have in common.
pub(super) struct Frame {
    config: EngineConfig,
    vpool: VpoolId,
}

impl Frame {
    pub(super) fn of(world: &World) -> Frame {
        Frame { config: world.config.clone(), vpool: world.vpool }
    }

    pub(super) fn world(&self, moment: &Moment, seed: u64) -> World {
        let random = Rc::new(Random::new(seed));
        World {
            stores: moment.stores.fork(&random),
            weather: Rc::new(Weather::new(Rc::clone(&random))),
            config: self.config.clone(),
            vpool: self.vpool,
            model: Rc::new(moment.model.fork()),
            ended: Ending::Death,
            is_forgotten: false,
            wall_ms: Rc::new(Cell::new(1_800_000_000_000)),
            may_have_lost: false,
            random,
        }
    }

    /// Returns how many ways there were.
    fn end_in_every_way(&self, moment: &Moment, subsets: usize, random: &Random) -> Result<u64, Failure> {
        let unsynced = moment.stores.device.unsynced();
        let mut ways: Vec<Option<Vec<usize>>> = vec![None];
        ways.extend(subsets_of(&unsynced, subsets, random).into_iter().map(Some));
        let mut count = 0;
        for way in &ways {
            let shown = |failure| match way {
                None => format!("after the death of the process: {failure}"),
                Some(stays) => format!("after a power loss, of {unsynced:?} stays {stays:?}: {failure}"),
            };
            count += self.end(moment, way.as_deref(), random.next()).map_err(shown)?;
        }
        Ok(count)
    }

    fn end(&self, moment: &Moment, stays: Option<&[usize]>, seed: u64) -> Result<u64, Failure> {
        let mut world = self.world(moment, seed);
        if let Some(stays) = stays {
            world.ended = Ending::PowerLoss;
            let mut stays = stays.iter();
            world.stores.device.lose_power_but(|_| stays.next().copied().unwrap_or(0));
        }
        let mut count = 1;
        if seed.is_multiple_of(NESTED_ONE_IN) {
            count += self.end_while_it_opens(&mut world, seed)?;
        } else {
            world.look()?;
        }
        // What was shown stays.
        world.ended = Ending::PowerLoss;
        world.stores.device.lose_power_but(|_| 0);
        world.look().map_err(|failure| format!("and a second power loss: {failure}"))?;
        if mix(seed).is_multiple_of(GOES_ON_ONE_IN) {
            world.go_on().map_err(|failure| format!("and more operations: {failure}"))?;
            count += 1;
        }
        Ok(count)
    }
}

impl Frame {
    /// Nothing is served yet, so what there should be is what there should have been.
    fn end_while_it_opens(&self, world: &mut World, seed: u64) -> Result<u64, Failure> {
        let (within, before, random) =
            (Rc::new(RefCell::new(Vec::new())), world.model.fork(), Random::new(seed));
        world.watch(&within);
        world.look()?;
        world.unwatch();
        let mut count = 0;
        for Moment { stores, .. } in within.take() {
            let moment = Moment { stores, model: before.fork() };
            for stays in subsets_of(&moment.stores.device.unsynced(), NESTED_SUBSETS, &random) {
                let mut world = self.world(&moment, random.next());
                world.ended = Ending::PowerLoss;
                let mut stays = stays.into_iter();
                world.stores.device.lose_power_but(|_| stays.next().unwrap_or(0));
                world.look().map_err(|failure| format!("and again while it opened: {failure}"))?;
                count += 1;
            }
        }
        Ok(count)
    }
}

/// Ways in which a power loss may go, as [`crate::MemoryDevice::lose_power_but`] takes them: all if they are at most
/// `most`. Otherwise, as far as there is room: none, all, each write and its predecessors, and of the rest some by chance.
fn subsets_of(unsynced: &[Unsynced], most: usize, random: &Random) -> Vec<Vec<usize>> {
    let versions: Vec<usize> = unsynced.iter().map(|block| block.writes.len()).collect();
    let all = versions.iter().try_fold(1usize, |count, versions| count.checked_mul(versions + 1));
    if all.is_some_and(|all| all <= most) {
        let mut ways = vec![Vec::new()];
        for versions in versions {
            ways = ways
                .into_iter()
                .flat_map(|way| {
                    (0..=versions).map(move |version| way.iter().copied().chain([version]).collect())
                })
                .collect();
        }
        return ways;
    }
    let mut writes: Vec<u64> = unsynced.iter().flat_map(|block| block.writes.iter().copied()).collect();
    writes.sort_unstable();
    writes.dedup();
    let up_to = |last: u64| -> Vec<usize> {
        let of = |block: &Unsynced| block.writes.iter().take_while(|write| **write <= last).count();
        unsynced.iter().map(of).collect()
    };
    let prefixes = writes.into_iter().map(up_to).collect();
    let mut others = Vec::new();
    for block in 0..versions.len() {
        let mut alone = vec![0; versions.len()];
        alone[block] = versions[block];
        others.push(alone);
        let mut gone = versions.clone();
        gone[block] -= 1;
        others.push(gone);
    }
    let by_chance = || versions.iter().map(|most| random.below(*most as u64 + 1) as usize).collect();
    others.extend((0..most).map(|_| by_chance()));
    let mut ways = vec![vec![0; versions.len()], versions.clone()];
    for way in drawn(prefixes, random).chain(drawn(others, random)) {
        if ways.len() < most && !ways.contains(&way) {
            ways.push(way);
        }
    }
    ways
}

/// All of them, in any order.
fn drawn<T>(mut from: Vec<T>, random: &Random) -> impl Iterator<Item = T> {
    std::iter::from_fn(move || {
        let count = from.len() as u64;
        (count > 0).then(|| from.swap_remove(random.below(count) as usize))
    })
}

pub(super) fn a_small_world(seed: u64) -> World {
    let mut world = World::new(mix(seed));
    let random = &world.random;
    // Few and small slots, so that they are used again within a workload.
    let cache = world.stores.cache.take();
    world.stores = Stores::new(crate::MemoryDevice::new(9, 64 << 10, Rc::clone(random)), cache);
    world.config.destage_after = Duration::from_millis(50 << random.below(8));
    world
}

impl World {
    fn watch(&self, moments: &Rc<RefCell<Vec<Moment>>>) {
        let (stores, model) = (self.stores.clone(), Rc::clone(&self.model));
        let (random, moments) = (Rc::new(Random::new(0)), Rc::clone(moments));
        let watcher: Rc<dyn Fn()> = Rc::new(move || {
            moments.borrow_mut().push(Moment { stores: stores.fork(&random), model: model.fork() });
        });
        self.weather.watch(Some(Rc::clone(&watcher)));
        self.stores.device.watch(Some(watcher));
    }

    fn unwatch(&self) {
        self.weather.watch(None);
        self.stores.device.watch(None);
    }

    /// A life of some operations, mostly one after the other, ended without a word.
    pub(super) fn work(&mut self, operations: u64) -> Result<(), Failure> {
        let life = Life::begin()?;
        self.weather.set(Season::Calm);
        let engine = self.open(&life)?;
        let site = self.site();
        let operator = Operator { site, engine: engine.clone(), vpool: self.vpool, has_clients: false };
        life.run(operator.work_through(operations))?;
        self.check()?;
        self.drop_life(life, engine);
        Ok(())
    }

    /// A few operations, some of them flushed, and another end.
    fn go_on(&mut self) -> Result<(), Failure> {
        let life = Life::begin()?;
        self.weather.set(Season::Calm);
        let engine = self.open(&life)?;
        let site = self.site();
        let operator =
            Operator { site: site.clone(), engine: engine.clone(), vpool: self.vpool, has_clients: false };
        let disks = self.model.disks.borrow().clone();
        life.run(async {
            for disk in &disks {
                for _ in 0..2 {
                    site.act(disk, 0).await?;
                }
                site.flush(disk).await?;
            }
            operator.work_through(2).await;
            Ok::<(), Stop>(())
        })?
        .or_else(|Stop| self.check())?;
        self.check()?;
        self.check_leftovers(&life)?;
        self.drop_life(life, engine);
        self.ended = if self.random.one_in(2) { Ending::Death } else { Ending::PowerLoss };
        if self.ended == Ending::PowerLoss {
            self.stores.device.lose_power();
        }
        self.look()
    }

    /// Opens, compares, and ends without a word.
    fn look(&mut self) -> Result<(), Failure> {
        let life = Life::begin()?;
        self.weather.set(Season::Calm);
        let engine = self.open(&life)?;
        self.drop_life(life, engine);
        Ok(())
    }
}
