//! The engine dies in the middle of operations; each may have happened or not, none by half.

use super::{
    Content, DiskModel, Failure, SNAPSHOTS_MAX, SnapshotModel, VDISKS_MAX, World, a_guest_writes,
    a_guest_zeroes, overlap,
};
use crate::InFlight;
use bytes::Bytes;
use ovs_units::{ByteCount, ByteRange, CLUSTER_SIZE_BYTES, SnapshotId, VdiskId};
use ovs_volume::VolumeError;
use std::{cell::Cell, rc::Rc, time::Duration};

/// An operation under way, and what it would change.
struct Flight {
    /// The vDisk it is about, which nothing moves while operations are in flight.
    index: usize,
    change: Change,
    /// `Some(true)`: it was acknowledged.
    answer: Rc<Cell<Option<bool>>>,
}

enum Change {
    None,
    Write(ByteRange, Bytes, bool),
    Zero(ByteRange),
    Snapshot(SnapshotModel),
    DeleteSnapshot(SnapshotId),
    Rollback(SnapshotId, Content),
    Resize(ByteCount),
    Delete(VdiskId),
    Create(DiskModel),
}

impl World {
    pub(super) fn crash(&mut self, in_flight: &[InFlight], turns: u8) -> Result<(), Failure> {
        let mut flights: Vec<Flight> = Vec::new();
        for wanted in in_flight {
            if let Some((index, change)) = self.resolve(wanted)
                && flights.iter().all(|other| may_overlap(&other.change, other.index, &change, index))
            {
                flights.push(Flight { index, change, answer: Rc::default() });
            }
        }
        let works: Vec<_> = flights.iter().map(|flight| self.work(flight)).collect::<Result<_, _>>()?;
        self.run(async move {
            works.into_iter().for_each(|work| drop(tokio::task::spawn_local(work)));
            for turn in 0..turns {
                tokio::task::yield_now().await;
                if turn % 16 == 15 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Ok(())
        })?;
        self.die();
        self.be_born()?;
        self.settle(flights)?;
        self.claim_buffered()?;
        self.all_is_stable();
        self.verify_all()
    }

    /// What the operation is here and now.
    fn resolve(&mut self, wanted: &InFlight) -> Option<(usize, Change)> {
        match wanted {
            InFlight::Write { disk, at, length, stable } => {
                let (index, range) = self.range(*disk, *at, u64::from(*length))?;
                let data = self.new_data(range);
                Some((index, Change::Write(range, data, *stable)))
            }
            InFlight::Zero { disk, at, length } => {
                let (index, range) = self.range(*disk, *at, u64::from(*length))?;
                Some((index, Change::Zero(range)))
            }
            InFlight::Snapshot { disk } => {
                let index = self.index(*disk)?;
                let is_room = self.disks[index].snapshots.len() < SNAPSHOTS_MAX;
                is_room.then(|| (index, Change::Snapshot(self.new_snapshot(index))))
            }
            InFlight::DeleteSnapshot { disk, snapshot } => {
                let (index, at) = self.snapshot_index(*disk, *snapshot)?;
                Some((index, Change::DeleteSnapshot(self.disks[index].snapshots[at].id)))
            }
            InFlight::Rollback { disk, snapshot } => {
                let (index, at) = self.snapshot_index(*disk, *snapshot)?;
                let snapshot = &self.disks[index].snapshots[at];
                Some((index, Change::Rollback(snapshot.id, snapshot.content.clone())))
            }
            InFlight::Resize { disk, clusters } => {
                let size = ByteCount(u64::from(*clusters) * CLUSTER_SIZE_BYTES);
                Some((self.index(*disk)?, Change::Resize(size)))
            }
            InFlight::Delete { disk } => {
                let index = self.index(*disk)?;
                Some((index, Change::Delete(self.disks[index].id)))
            }
            InFlight::Clone { disk, snapshot } => {
                let (index, at) = self.snapshot_index(*disk, *snapshot)?;
                let is_room = self.disks.len() < VDISKS_MAX;
                is_room.then(|| (index, Change::Create(self.new_clone(index, at))))
            }
            InFlight::Create { clusters } => {
                let content = Content::new(ByteCount(u64::from(*clusters) * CLUSTER_SIZE_BYTES));
                let is_room = !self.disks.is_empty() && self.disks.len() < VDISKS_MAX;
                is_room.then(|| (0, Change::Create(self.new_disk(content, None))))
            }
            InFlight::Flush { disk } | InFlight::Destage { disk } | InFlight::Scrub { disk } => {
                Some((self.index(*disk)?, Change::None))
            }
        }
    }

    fn work(&self, flight: &Flight) -> Result<impl Future<Output = ()> + use<>, Failure> {
        type Work = std::pin::Pin<Box<dyn Future<Output = Result<(), VolumeError>>>>;
        let (vdisk, engine, vpool) = (self.vdisk(flight.index)?, self.engine()?, self.vpool);
        let work: Work = match &flight.change {
            Change::None => Box::pin(async move {
                vdisk.flush().await?;
                vdisk.scrub().await.map(drop)
            }),
            Change::Write(range, data, stable) => {
                let (offset, data, stable) = (range.start, data.clone(), *stable);
                Box::pin(async move { a_guest_writes(&vdisk, offset, data, stable).await })
            }
            Change::Zero(range) => {
                let range = *range;
                Box::pin(async move { a_guest_zeroes(&vdisk, range, false).await })
            }
            Change::Snapshot(snapshot) => {
                let (id, name) = (snapshot.id, snapshot.name.clone());
                Box::pin(async move { vdisk.snapshot(id, name).await.map(|_| ()) })
            }
            Change::DeleteSnapshot(id) => {
                let id = *id;
                Box::pin(async move { vdisk.delete_snapshot(id).await })
            }
            Change::Rollback(id, _) => {
                let id = *id;
                Box::pin(async move { vdisk.rollback(id).await })
            }
            Change::Resize(size) => {
                let size = *size;
                Box::pin(async move { vdisk.resize(size).await })
            }
            Change::Delete(id) => {
                let id = *id;
                Box::pin(async move { engine.delete_vdisk(vpool, id).await })
            }
            Change::Create(disk) => {
                let request = self.request(disk);
                Box::pin(async move { engine.create_vdisk(request).await.map(|_| ()) })
            }
        };
        let answer = Rc::clone(&flight.answer);
        Ok(async move { answer.set(Some(work.await.is_ok())) })
    }

    /// Opens what there is, and makes the model what the new engine shows, where it had a choice.
    fn settle(&mut self, flights: Vec<Flight>) -> Result<(), Failure> {
        let deleting =
            |id| flights.iter().find(|flight| matches!(flight.change, Change::Delete(gone) if gone == id));
        let mut gone = Vec::new();
        for id in self.disks.iter().map(|disk| disk.id).collect::<Vec<_>>() {
            let acknowledged = deleting(id).map(|flight| flight.answer.get() == Some(true));
            match (self.open(id)?, acknowledged) {
                (Ok(()), None | Some(false)) => {}
                (Ok(()), Some(true)) => return Err("a vDisk whose delete was acknowledged opens".to_owned()),
                (Err(VolumeError::NotFound(_)), Some(_)) => gone.push(id),
                (Err(error), _) => return Err(format!("vDisk {id} does not open: {error:?}")),
            }
        }
        for flight in flights {
            let is_done = flight.answer.get() == Some(true);
            self.settle_one(flight.index, flight.change, is_done)?;
        }
        for id in gone {
            let index = self.disks.iter().position(|disk| disk.id == id).ok_or("it was there before")?;
            self.forget(index);
        }
        Ok(())
    }

    fn settle_one(&mut self, index: usize, change: Change, is_done: bool) -> Result<(), Failure> {
        match change {
            Change::None | Change::Delete(_) => Ok(()),
            Change::Write(range, data, _) => {
                let mut new = self.disks[index].content.clone();
                new.write(range.start, &data);
                self.settle_clusters(index, range, &new, is_done)
            }
            Change::Zero(range) => {
                let mut new = self.disks[index].content.clone();
                new.zero(range);
                self.settle_clusters(index, range, &new, is_done)
            }
            Change::Snapshot(snapshot) => {
                let is_there = self.vdisk(index)?.snapshots().iter().any(|info| info.id == snapshot.id);
                if is_there {
                    self.disks[index].snapshots.push(snapshot);
                } else if is_done {
                    return Err("a snapshot that was acknowledged is gone".to_owned());
                }
                Ok(())
            }
            Change::DeleteSnapshot(id) => {
                let is_there =
                    self.vdisk(index)?.snapshots().iter().any(|info| info.id == id && !info.hidden);
                if !is_there {
                    self.disks[index].snapshots.retain(|snapshot| snapshot.id != id);
                } else if is_done {
                    return Err("a snapshot whose delete was acknowledged is back".to_owned());
                }
                Ok(())
            }
            Change::Rollback(_, content) => self.settle_content(index, content, is_done),
            Change::Resize(size) => {
                let mut content = self.disks[index].content.clone();
                content.resize(size);
                self.settle_content(index, content, is_done)
            }
            Change::Create(disk) => match self.open(disk.id)? {
                Ok(()) => {
                    self.disks.push(disk);
                    // Not acknowledged, it may be in the registry alone. Whoever made it goes on with it or deletes it.
                    if is_done { Ok(()) } else { self.set_properties(self.disks.len() - 1) }
                }
                Err(VolumeError::NotFound(_)) if !is_done => {
                    self.gone.push((disk.id, disk.base));
                    Ok(())
                }
                Err(error) => Err(format!("a vDisk being made (acknowledged: {is_done}): {error:?}")),
            },
        }
    }

    /// All old or all new.
    fn settle_content(&mut self, index: usize, new: Content, is_done: bool) -> Result<(), Failure> {
        let old = self.disks[index].content.clone();
        match self.difference(index, &new, &[old])? {
            None => self.disks[index].content = new,
            Some(difference) if is_done => {
                return Err(format!("vDisk {index} is not what was acknowledged: {difference}"));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Every cluster old or new, whole.
    pub(super) fn settle_clusters(
        &mut self,
        index: usize,
        range: ByteRange,
        new: &Content,
        is_done: bool,
    ) -> Result<(), Failure> {
        if is_done {
            self.disks[index].content = new.clone();
            return Ok(());
        }
        let touched = range.clusters_touched();
        // Of a huge range only the clusters that differ matter.
        let mut clusters = new.interesting();
        clusters.extend(self.disks[index].content.interesting());
        clusters.retain(|cluster| (touched.start..touched.end()).contains(cluster));
        for cluster in clusters {
            let bytes = ByteRange { start: cluster.byte_offset(), length: ByteCount(CLUSTER_SIZE_BYTES) };
            let vdisk = self.vdisk(index)?;
            let found = self.run(async move { vdisk.read(bytes).await })?;
            if found == new.read(bytes) {
                self.disks[index].content.write(bytes.start, &found);
            } else if found != self.disks[index].content.read(bytes) {
                return Err(format!("cluster {} of vDisk {index} is neither old nor new", cluster.0));
            }
        }
        Ok(())
    }
}

/// May both be in flight at once and the outcome still be told? Writes that do not meet may; nothing else on the same
/// vDisk may be beside a change of what it is.
fn may_overlap(one: &Change, of_one: usize, other: &Change, of_other: usize) -> bool {
    let range = |change: &Change| match change {
        Change::Write(range, ..) | Change::Zero(range) => Some(*range),
        _ => None,
    };
    if of_one != of_other || matches!(one, Change::None) || matches!(other, Change::None) {
        return true;
    }
    match (range(one), range(other)) {
        (Some(one), Some(other)) => !overlap(one, other),
        _ => false,
    }
}
