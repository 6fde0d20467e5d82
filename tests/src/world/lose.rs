//! Local state is lost, and found again on the backend and in the write buffer.

use super::{Failure, World};
use std::rc::Rc;

impl World {
    /// RocksDB is damaged and set aside: everything acknowledged is still in the write buffer or on the backend.
    pub(super) fn lose_registry(&mut self) -> Result<(), Failure> {
        // An engine that has recorded nothing yet has not told the backend where it goes on from: what its predecessor
        // put there and did not live to commit would count again.
        (0..self.disks.len()).try_for_each(|index| self.set_properties(index))?;
        self.end_somehow()?;
        self.registry = Rc::default();
        self.pages = Rc::default();
        self.be_born()?;
        self.recover()
    }

    /// Pages and checkpoints are a cache.
    pub(super) fn lose_pages(&mut self) -> Result<(), Failure> {
        self.end_somehow()?;
        self.pages = Rc::default();
        self.be_born()?;
        self.open_all()?;
        self.all_is_stable();
        self.verify_all()
    }

    /// Another host takes over what the backend alone holds.
    pub(super) fn lose_local(&mut self) -> Result<(), Failure> {
        for index in 0..self.disks.len() {
            let vdisk = self.vdisk(index)?;
            self.run(async move { vdisk.destage().await })?;
        }
        self.end_somehow()?;
        self.registry = Rc::default();
        self.pages = Rc::default();
        self.buffer = super::a_buffer(&self.random);
        self.be_born()?;
        self.recover()
    }

    /// What was stable is there; of the rest of each vDisk a beginning, in the order it was accepted.
    pub(super) fn lose_power(&mut self) -> Result<(), Failure> {
        self.die();
        self.buffer.lose_power();
        self.is_powerless = true;
        self.be_born()?;
        self.is_powerless = false;
        self.open_all()?;
        for index in 0..self.disks.len() {
            let disk = &mut self.disks[index];
            let newest = disk.content.clone();
            let mut candidates = std::mem::take(&mut disk.unstable);
            candidates.push(newest);
            let mut first = None;
            let mut found = None;
            for candidate in candidates.iter().rev() {
                match self.difference(index, candidate, &candidates)? {
                    None => {
                        found = Some(candidate.clone());
                        break;
                    }
                    difference => first = first.or(difference),
                }
            }
            match found {
                Some(content) => self.disks[index].content = content,
                None => {
                    return Err(format!(
                        "vDisk {index} is as after no operation since its last flush: as after the last but for this: {first:?}"
                    ));
                }
            }
        }
        self.verify_all()
    }

    fn end_somehow(&mut self) -> Result<(), Failure> {
        if self.random.one_in(2) {
            return self.close();
        }
        self.die();
        Ok(())
    }

    /// What is found is what there was; adopted and opened, it is all there.
    fn recover(&mut self) -> Result<(), Failure> {
        let (engine, vpool) = (self.engine()?, self.vpool);
        let discovering = engine.clone();
        let found = self.run(async move { discovering.discover(vpool).await })?;
        for disk in &self.disks {
            let Some(found) = found.iter().find(|found| found.id == disk.id) else {
                return Err(format!("vDisk {} is not found on the backend", disk.id));
            };
            if let Some(problem) = &found.problem {
                return Err(format!("vDisk {} is found with a problem: {problem}", disk.id));
            }
            let snapshots = found.snapshots.iter().filter(|info| !info.hidden).map(|info| &info.name);
            let is_same = found.properties == disk.properties.as_bytes()
                && found.size == disk.content.size()
                && found.base == disk.base
                && snapshots.eq(disk.snapshots.iter().map(|snapshot| &snapshot.name));
            if !is_same {
                return Err(format!("vDisk {} is found as {found:?}", disk.id));
            }
        }
        for found in &found {
            let is_known = self.disks.iter().any(|disk| disk.id == found.id)
                || (self.gone.iter().any(|(id, _)| *id == found.id) && self.has_living_descendant(found.id));
            if !is_known {
                return Err(format!("a vDisk that was deleted or never made is found: {found:?}"));
            }
            let (engine, id) = (engine.clone(), found.id);
            self.run(async move { engine.adopt_vdisk(vpool, id).await })
                .map_err(|failure| format!("adopting {id}: {failure}"))?;
        }
        self.run(async move { engine.finish_recovery(vpool).await })?;
        self.open_all()?;
        self.all_is_stable();
        self.verify_all()
    }
}
