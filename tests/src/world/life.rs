//! One life of an engine: its own runtime, so that its death takes every task with it.

use super::{Failure, ON_FULL, World};
use crate::{UnsettledCache, UnsettledPages, UnsettledRegistry};
use ovs_backend::Backend;
use ovs_units::VdiskId;
use ovs_volume::{Engine, EngineParts, SystemClock, Vdisk, VdiskState, VolumeError};
use std::{collections::BTreeMap, rc::Rc, time::Duration};
use tokio::{runtime::Runtime, task::LocalSet};

/// In paused time, which passes when nobody has anything else to do: no call takes this long.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What dies; the fields go in this order.
pub(super) struct Life {
    pub(super) vdisks: BTreeMap<VdiskId, Vdisk>,
    pub(super) engine: Option<Engine>,
    local: LocalSet,
    runtime: Runtime,
}

impl World {
    /// An engine over what there is, no vDisk opened yet. Sometimes it is the second or third that tries: the others
    /// died on the way.
    pub(super) fn be_born(&mut self) -> Result<(), Failure> {
        while self.random.one_in(4) {
            self.die_while_opening()?;
        }
        self.begin_life()?;
        let opening = self.opening();
        let engine = self.run(opening)?;
        let backend: Rc<dyn Backend> = self.backend.clone();
        let vpool = self.vpool;
        let attached = engine.clone();
        let cache = self.cache.clone();
        self.run(async move {
            if let Some(cache) = cache {
                attached.set_vpool_cache(vpool, cache.vpool());
            }
            attached.attach_backend(vpool, backend);
            Ok(())
        })?;
        self.life_mut()?.engine = Some(engine);
        Ok(())
    }

    fn begin_life(&mut self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map_err(|error| format!("no runtime: {error}"))?;
        self.life = Some(Life { vdisks: BTreeMap::new(), engine: None, local: LocalSet::new(), runtime });
        Ok(())
    }

    fn opening(&self) -> impl Future<Output = Result<Engine, VolumeError>> + 'static {
        let (config, random) = (self.config.clone(), Rc::clone(&self.random));
        let (registry, pages) = (Rc::clone(&self.registry), Rc::clone(&self.pages));
        let buffer = Rc::clone(&self.buffer);
        let parts = EngineParts {
            clock: Rc::new(SystemClock::new()),
            chance: random.clone(),
            registry: Rc::new(UnsettledRegistry { inner: registry, random: random.clone() }),
            pages: Rc::new(UnsettledPages { inner: pages, random }),
            buffer,
            cache: self.cache.as_ref().map(|cache| {
                cache.parts(|| UnsettledCache { inner: cache.clone(), random: self.random.clone() })
            }),
        };
        Engine::open(config, parts)
    }

    /// Nothing is served yet, so nothing need stay of what was read; with the power, unsynced blocks go as well.
    fn die_while_opening(&mut self) -> Result<(), Failure> {
        self.begin_life()?;
        let (opening, turns) = (self.opening(), self.random.below(400));
        self.run(async move {
            let some_turns = async {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                opened = opening => opened.map(drop),
                () = some_turns => Ok(()),
            }
        })?;
        self.die();
        if self.is_powerless && self.random.one_in(2) {
            self.buffer.lose_power();
        }
        Ok(())
    }

    /// Death: nothing is told, everything in memory goes. What was given to the kernel stays.
    pub(super) fn die(&mut self) {
        self.buffer.fail(0, 0);
        self.device_fails = false;
        if let Some(Life { vdisks, engine, local, runtime }) = self.life.take() {
            let _inside = runtime.enter();
            drop((vdisks, engine, local));
        }
    }

    /// A new engine over the old device has made what it shows stable before it shows it.
    pub(super) fn all_is_stable(&mut self) {
        self.disks.iter_mut().for_each(super::DiskModel::is_stable);
    }

    /// Opens every vDisk of the model, in no particular order.
    pub(super) fn open_all(&mut self) -> Result<(), Failure> {
        let mut ids: Vec<VdiskId> = self.disks.iter().map(|disk| disk.id).collect();
        let turn = self.random.below(ids.len().max(1) as u64) as usize;
        ids.rotate_left(turn);
        for id in ids {
            self.open(id)?.map_err(|error| format!("vDisk {id} does not open: {error}"))?;
        }
        self.claim_buffered()
    }

    /// What the write buffer holds of vDisks that are not there any more goes, as when the service has started.
    pub(super) fn claim_buffered(&self) -> Result<(), Failure> {
        let engine = self.engine()?;
        self.run(async move { engine.claim_buffered(ON_FULL).await })
    }

    pub(super) fn open(&mut self, id: VdiskId) -> Result<Result<(), VolumeError>, Failure> {
        let (engine, vpool) = (self.engine()?, self.vpool);
        let opened = self.run(async move { Ok(engine.open_vdisk(vpool, id, ON_FULL).await) })?;
        Ok(match opened {
            Ok(vdisk) => {
                if let (true, VdiskState::Offline(_)) = (self.was_offline, vdisk.stats().state) {
                    let vdisk = vdisk.clone();
                    self.run(async move { vdisk.accept_loss().await })?
                        .ok_or("offline with nothing to accept")?;
                }
                self.life_mut()?.vdisks.insert(id, vdisk);
                Ok(())
            }
            Err(error) => Err(error),
        })
    }

    /// Runs one call, with the engine's own tasks beside it.
    pub(super) fn run<T>(&self, work: impl Future<Output = Result<T, VolumeError>>) -> Result<T, Failure> {
        let life = self.life.as_ref().ok_or("there is no engine")?;
        life.local.block_on(&life.runtime, async {
            match tokio::time::timeout(PATIENCE, work).await {
                Ok(answer) => answer.map_err(|error| format!("it answered: {error:?}")),
                Err(_) => Err(format!("it did not answer within {PATIENCE:?}")),
            }
        })
    }

    pub(super) fn engine(&self) -> Result<Engine, Failure> {
        let life = self.life.as_ref().ok_or("there is no engine")?;
        life.engine.clone().ok_or_else(|| "the engine is not open".to_owned())
    }

    pub(super) fn life_mut(&mut self) -> Result<&mut Life, Failure> {
        self.life.as_mut().ok_or_else(|| "there is no engine".to_owned())
    }

    pub(super) fn vdisk(&self, index: usize) -> Result<Vdisk, Failure> {
        let life = self.life.as_ref().ok_or("there is no engine")?;
        let id = self.disks[index].id;
        life.vdisks.get(&id).cloned().ok_or_else(|| format!("vDisk {id} is not open"))
    }

    /// Close, open, compare.
    pub(super) fn reopen(&mut self) -> Result<(), Failure> {
        self.close()?;
        self.be_born()?;
        self.open_all()?;
        self.all_is_stable();
        self.verify_all()
    }

    pub(super) fn close(&mut self) -> Result<(), Failure> {
        let engine = self.engine()?;
        self.run(async move { engine.close(Duration::from_secs(300)).await })?;
        self.die();
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.die();
    }
}
