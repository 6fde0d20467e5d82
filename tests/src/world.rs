//! One world: the stores that outlive engines, the engine of now, and what must be true of it.

mod broken;
mod crash;
mod life;
mod lose;
mod verify;

use crate::{
    Content, MemoryDevice, Random, Step,
    random::mix,
    stores::{MemoryCache, a_vdisk_cache},
};
use bytes::Bytes;
use life::Life;
use ovs_backend::{Call, Fault, FaultyBackend, MemoryBackend, Operation};
use ovs_units::{
    ByteCount, ByteOffset, ByteRange, CLUSTER_SIZE_BYTES, Limits, Name, Rates, SnapshotId,
    VDISK_SIZE_BYTES_MAX, VdiskId, VpoolId,
};
use ovs_volume::{
    Chance, CreateVdisk, EngineConfig, GuestRequest, MemoryPages, MemoryRegistry, OnFull, Vdisk, VolumeError,
};
use std::{cell::Cell, rc::Rc, time::Duration};

/// Why a world is not as it should be.
pub(crate) type Failure = String;

const VDISKS_MAX: usize = 5;
const SNAPSHOTS_MAX: usize = 6;
/// A huge vDisk is used within this of either end.
const HUGE_END_BYTES: u64 = 1 << 20;
/// Full buffers wait: the backend always takes data again in the end.
const ON_FULL: OnFull = OnFull::Stall { timeout: None };

/// A vDisk as it should be.
#[derive(Clone)]
struct DiskModel {
    id: VdiskId,
    content: Content,
    snapshots: Vec<SnapshotModel>,
    properties: String,
    base: Option<(VdiskId, SnapshotId)>,
    /// What it may be instead after a power loss: as after each operation since the last that made all stable.
    unstable: Vec<Content>,
}

#[derive(Clone)]
struct SnapshotModel {
    id: SnapshotId,
    name: Name,
    content: Content,
}

/// See the module.
pub struct World {
    random: Rc<Random>,
    registry: Rc<MemoryRegistry>,
    pages: Rc<MemoryPages>,
    backend: Rc<FaultyBackend<Rc<MemoryBackend>>>,
    /// The next so many calls of the backend fail.
    failures_left: Rc<Cell<u64>>,
    buffer: Rc<MemoryDevice>,
    cache: Option<Rc<MemoryCache>>,
    /// In this life the device has failed, or was told to: the write buffer may go offline.
    device_fails: bool,
    /// The power was lost, and nothing has been shown since.
    is_powerless: bool,
    /// In some life it went offline: vDisks may wait for somebody to accept that they have lost something.
    was_offline: bool,
    config: EngineConfig,
    vpool: VpoolId,
    disks: Vec<DiskModel>,
    /// Deleted vDisks, with what they were cloned from: those with living clones may still be seen.
    gone: Vec<(VdiskId, Option<(VdiskId, SnapshotId)>)>,
    /// Every write has contents of its own.
    writes: u64,
    life: Option<Life>,
}

impl World {
    /// Empty, with an engine whose sizes the seed chooses.
    pub fn new(seed: u64) -> Result<World, String> {
        let random = Rc::new(Random::new(mix(seed ^ 0x0005_7a7e)));
        let failures_left = Rc::new(Cell::new(0));
        let schedule = schedule(Rc::clone(&random), Rc::clone(&failures_left));
        let buffer = a_buffer(&random);
        let mut world = World {
            config: a_config(&random),
            vpool: VpoolId(random.uuid()),
            random,
            registry: Rc::default(),
            pages: Rc::default(),
            backend: Rc::new(FaultyBackend::new(Rc::default(), schedule)),
            failures_left,
            buffer,
            cache: MemoryCache::by_chance(&Random::new(mix(seed ^ 0x000c_ac4e))),
            device_fails: false,
            is_powerless: false,
            was_offline: false,
            disks: Vec::new(),
            gone: Vec::new(),
            writes: 0,
            life: None,
        };
        world.be_born()?;
        Ok(world)
    }

    /// Does a step and compares what it may have changed.
    pub fn take(&mut self, step: &Step) -> Result<(), String> {
        // Where failures are not the caller's to retry, or the engine is about to go, the backend works.
        let is_patient = matches!(
            step,
            Step::Write { .. }
                | Step::WriteMany { .. }
                | Step::Zero { .. }
                | Step::Flush { .. }
                | Step::Read { .. }
                | Step::Snapshot { .. }
                | Step::DeleteSnapshot { .. }
                | Step::Properties { .. }
                | Step::Limit { .. }
                | Step::Cache { .. }
                | Step::Destage { .. }
                | Step::Scrub { .. }
                | Step::WaitOnBackend { .. }
                | Step::Wait { .. }
        );
        if !is_patient {
            self.failures_left.set(0);
        }
        if !is_patient
            || matches!(step, Step::Snapshot { .. } | Step::DeleteSnapshot { .. } | Step::Properties { .. })
        {
            self.buffer.fail(0, 0);
        }
        self.restart_if_offline()?;
        if !is_patient {
            self.restart_if_worn()?;
        }
        match step {
            Step::Create { clusters, is_huge } => self.create(*clusters, *is_huge),
            Step::Write { disk, at, length, stable } => self.write(*disk, *at, *length, *stable),
            Step::WriteMany { disk, at, lengths } => self.write_many(*disk, *at, lengths),
            Step::Zero { disk, at, length, stable } => self.zero(*disk, *at, *length, *stable),
            Step::Flush { disk } => self.on_stable(*disk, async |vdisk| vdisk.flush().await),
            Step::Read { disk, at, length } => self.read(*disk, *at, *length),
            Step::Extents { disk } => self.extents(*disk),
            Step::Snapshot { disk } => self.snapshot(*disk),
            Step::DeleteSnapshot { disk, snapshot } => self.delete_snapshot(*disk, *snapshot),
            Step::Clone { disk, snapshot } => self.clone_disk(*disk, *snapshot),
            Step::Rollback { disk, snapshot } => self.rollback(*disk, *snapshot),
            Step::Resize { disk, clusters } => self.resize(*disk, *clusters),
            Step::Properties { disk } => self.properties(*disk),
            Step::Limit { disk, iops, requests } => self.limit(*disk, *iops, *requests),
            Step::Cache { disk } => self.cache(*disk),
            Step::Delete { disk } => self.delete(*disk),
            Step::Destage { disk } => self.on_stable(*disk, async |vdisk| vdisk.destage().await),
            Step::Scrub { disk } => self.scrub(*disk),
            Step::WaitOnBackend { disk, snapshot } => self.wait_on_backend(*disk, *snapshot),
            Step::Wait { milliseconds } => {
                let wait = Duration::from_millis(100 * u64::from(*milliseconds));
                self.run(async move {
                    tokio::time::sleep(wait).await;
                    Ok(())
                })
            }
            Step::BackendFails { calls } => {
                self.failures_left.set(u64::from(*calls));
                Ok(())
            }
            Step::DeviceFails { writes, syncs } => {
                self.device_fails = true;
                self.buffer.fail(*writes, *syncs);
                Ok(())
            }
            Step::Reopen => self.reopen(),
            Step::Crash { in_flight, turns } => self.crash(in_flight, *turns),
            Step::PowerLoss => self.lose_power(),
            Step::LoseRegistry => self.lose_registry(),
            Step::LosePages => self.lose_pages(),
            Step::LoseLocal => self.lose_local(),
        }
    }

    /// Everything compared, then once more after a last restart.
    pub fn finish(&mut self) -> Result<(), String> {
        self.failures_left.set(0);
        self.buffer.fail(0, 0);
        self.restart_if_offline()?;
        self.verify_all()?;
        self.reopen()
    }

    // ---- steps on the vDisks that there are; nothing where there is none ----

    fn create(&mut self, clusters: u16, is_huge: bool) -> Result<(), Failure> {
        if self.disks.len() >= VDISKS_MAX {
            return Ok(());
        }
        let size = if is_huge { VDISK_SIZE_BYTES_MAX } else { u64::from(clusters) * CLUSTER_SIZE_BYTES };
        let disk = self.new_disk(Content::new(ByteCount(size)), None);
        self.make(&disk)?;
        self.disks.push(disk);
        Ok(())
    }

    fn write(&mut self, disk: u8, at: u32, length: u32, stable: bool) -> Result<(), Failure> {
        let Some((index, range)) = self.range(disk, at, u64::from(length)) else { return Ok(()) };
        let data = self.new_data(range);
        let (vdisk, bytes) = (self.vdisk(index)?, data.clone());
        let answer = self.run(async move { a_guest_writes(&vdisk, range.start, bytes, stable).await });
        if self.is_broken(&answer) {
            return self.after_a_failed_write(vec![(index, range, Some(data))]);
        }
        answer?;
        let disk = &mut self.disks[index];
        disk.write(range, &data);
        if stable {
            disk.is_stable();
        }
        self.verify_range(index, range)
    }

    /// At once, each beginning in the cluster after the last one's end.
    fn write_many(&mut self, disk: u8, at: u32, lengths: &[u16]) -> Result<(), Failure> {
        let (mut at, mut writes) = (at, Vec::new());
        for length in lengths {
            let Some((index, range)) = self.range(disk, at, u64::from(*length)) else { return Ok(()) };
            at = range.clusters_touched().end().byte_offset().0 as u32;
            let overlaps = writes.iter().any(|(_, other, _)| overlap(*other, range));
            if !overlaps {
                let data = self.new_data(range);
                writes.push((index, range, data));
            }
        }
        let Some((index, ..)) = writes.first() else { return Ok(()) };
        let (index, vdisk) = (*index, self.vdisk(*index)?);
        let all = writes.clone();
        let answer = self.run(async move {
            let writes =
                all.into_iter().map(|(_, range, data)| a_guest_writes(&vdisk, range.start, data, false));
            let written = futures_util::future::join_all(writes).await;
            written.into_iter().collect::<Result<(), VolumeError>>()?;
            // Their order is not known, so neither is what a power loss would leave of them.
            vdisk.flush().await
        });
        if self.is_broken(&answer) {
            let writes = writes.into_iter().map(|(index, range, data)| (index, range, Some(data)));
            return self.after_a_failed_write(writes.collect());
        }
        answer?;
        let disk = &mut self.disks[index];
        writes.iter().for_each(|(_, range, data)| disk.write(*range, data));
        disk.is_stable();
        writes.iter().try_for_each(|(_, range, _)| self.verify_range(index, *range))
    }

    fn zero(&mut self, disk: u8, at: u32, length: u32, stable: bool) -> Result<(), Failure> {
        let Some((index, range)) = self.range(disk, at, u64::from(length)) else { return Ok(()) };
        let vdisk = self.vdisk(index)?;
        let answer = self.run(async move { a_guest_zeroes(&vdisk, range, stable).await });
        if self.is_broken(&answer) {
            return self.after_a_failed_write(vec![(index, range, None)]);
        }
        answer?;
        let disk = &mut self.disks[index];
        disk.zero(range);
        if stable {
            disk.is_stable();
        }
        self.verify_disk(index)
    }

    fn read(&mut self, disk: u8, at: u32, length: u32) -> Result<(), Failure> {
        match self.range(disk, at, u64::from(length)) {
            Some((index, range)) => self.verify_range(index, range),
            None => Ok(()),
        }
    }

    fn snapshot(&mut self, disk: u8) -> Result<(), Failure> {
        let Some(index) = self.index(disk) else { return Ok(()) };
        if self.disks[index].snapshots.len() >= SNAPSHOTS_MAX {
            return Ok(());
        }
        let snapshot = self.new_snapshot(index);
        let (vdisk, id, name) = (self.vdisk(index)?, snapshot.id, snapshot.name.clone());
        let info = self.run(async move { vdisk.snapshot(id, name).await })?;
        if info.id != id || info.size != snapshot.content.size() || info.hidden {
            return Err(format!("a new snapshot is {info:?}"));
        }
        self.disks[index].snapshots.push(snapshot);
        self.disks[index].is_stable();
        self.verify_disk(index)
    }

    fn delete_snapshot(&mut self, disk: u8, snapshot: u8) -> Result<(), Failure> {
        let Some((index, at)) = self.snapshot_index(disk, snapshot) else { return Ok(()) };
        let (vdisk, id) = (self.vdisk(index)?, self.disks[index].snapshots[at].id);
        self.run(async move { vdisk.delete_snapshot(id).await })?;
        self.disks[index].snapshots.remove(at);
        self.verify_all()
    }

    fn clone_disk(&mut self, disk: u8, snapshot: u8) -> Result<(), Failure> {
        let Some((index, at)) = self.snapshot_index(disk, snapshot) else { return Ok(()) };
        if self.disks.len() >= VDISKS_MAX {
            return Ok(());
        }
        let clone = self.new_clone(index, at);
        self.make(&clone)?;
        self.disks.push(clone);
        self.verify_disk(self.disks.len() - 1)
    }

    fn rollback(&mut self, disk: u8, snapshot: u8) -> Result<(), Failure> {
        let Some((index, at)) = self.snapshot_index(disk, snapshot) else { return Ok(()) };
        let (vdisk, id) = (self.vdisk(index)?, self.disks[index].snapshots[at].id);
        self.run(async move { vdisk.rollback(id).await })?;
        self.disks[index].content = self.disks[index].snapshots[at].content.clone();
        self.disks[index].is_stable();
        self.verify_disk(index)
    }

    fn resize(&mut self, disk: u8, clusters: u16) -> Result<(), Failure> {
        let Some(index) = self.index(disk) else { return Ok(()) };
        let size = ByteCount(u64::from(clusters) * CLUSTER_SIZE_BYTES);
        let vdisk = self.vdisk(index)?;
        self.run(async move { vdisk.resize(size).await })?;
        self.disks[index].resize(size);
        self.verify_disk(index)
    }

    fn properties(&mut self, disk: u8) -> Result<(), Failure> {
        match self.index(disk) {
            Some(index) => self.set_properties(index),
            None => Ok(()),
        }
    }

    fn set_properties(&mut self, index: usize) -> Result<(), Failure> {
        let properties = format!("{{\"name\":\"{}\"}}", self.random.next());
        let (vdisk, bytes) = (self.vdisk(index)?, Bytes::from(properties.clone()));
        self.run(async move { vdisk.set_properties(bytes).await })?;
        self.disks[index].properties = properties;
        self.verify_disk(index)
    }

    fn delete(&mut self, disk: u8) -> Result<(), Failure> {
        let Some(index) = self.index(disk) else { return Ok(()) };
        let (vpool, id) = (self.vpool, self.disks[index].id);
        let engine = self.engine()?;
        self.run(async move { engine.delete_vdisk(vpool, id).await })?;
        self.forget(index);
        self.check_gone(id)?;
        self.verify_all()
    }

    fn wait_on_backend(&mut self, disk: u8, snapshot: u8) -> Result<(), Failure> {
        let Some((index, at)) = self.snapshot_index(disk, snapshot) else { return Ok(()) };
        let (vdisk, id) = (self.vdisk(index)?, self.disks[index].snapshots[at].id);
        let again = vdisk.clone();
        self.run(async move { vdisk.wait_on_backend(id).await })?;
        match again.snapshots().iter().find(|info| info.id == id) {
            Some(info) if info.on_backend => Ok(()),
            other => Err(format!("a snapshot that was waited for is {other:?}")),
        }
    }

    /// Of one, and everything is as it was.
    fn scrub(&mut self, disk: u8) -> Result<(), Failure> {
        let Some(index) = self.index(disk) else { return Ok(()) };
        let vdisk = self.vdisk(index)?;
        match self.run(async move { vdisk.scrub().await.map(drop) }) {
            answer if self.is_broken(&answer) => return self.after_a_failed_write(Vec::new()),
            // Something else is under way on it, or the backend fails.
            Err(failure) if failure.contains("Retry") || failure.contains("NoSpace") => return Ok(()),
            answer => answer?,
        }
        // It promises nothing of what is buffered: where nothing leaves it goes on without that.
        self.verify_all()
    }

    fn cache(&mut self, disk: u8) -> Result<(), Failure> {
        if let Some(index) = self.index(disk) {
            self.vdisk(index)?.set_cache(a_vdisk_cache(&self.random));
        }
        Ok(())
    }

    /// Whatever else is under way, requests that come at once go on at the rate that they may.
    fn limit(&mut self, disk: u8, iops: u16, requests: u8) -> Result<(), Failure> {
        let Some(index) = self.index(disk) else { return Ok(()) };
        let vdisk = self.vdisk(index)?;
        let iops = u64::from(iops);
        let total = Rates { iops: (iops > 0).then_some(iops), ..Rates::default() };
        let answer = self.run(async move {
            // Nothing is owed, and nothing is saved up beyond the little that always is.
            vdisk.set_limits(Limits::default());
            vdisk.set_limits(Limits { total, ..Limits::default() });
            let start = tokio::time::Instant::now();
            let guests = (0..requests).map(|_| vdisk.admit(GuestRequest::Read(ByteCount(4096))));
            futures_util::future::join_all(guests).await.into_iter().collect::<Result<(), _>>()?;
            Ok(start.elapsed())
        });
        // One that the device has taken offline says so.
        let Ok(took) = answer else {
            return if self.is_broken(&answer) {
                self.after_a_failed_write(Vec::new())
            } else {
                answer.map(drop)
            };
        };
        let expected = Duration::from_secs_f64(f64::from(requests) / iops.max(1) as f64);
        let is_right = match iops {
            0 => took.is_zero(),
            // All but the first, and those of 20 ms; a timer's tick more.
            _ => {
                let first = Duration::from_secs_f64(1.0 / iops as f64) + Duration::from_millis(20);
                took + first + Duration::from_millis(1) >= expected
                    && took <= expected + Duration::from_millis(2)
            }
        };
        if is_right { Ok(()) } else { Err(format!("{requests} requests at {iops} a second took {took:?}")) }
    }

    /// One call on one vDisk after which everything acknowledged before is stable.
    fn on_stable(
        &mut self,
        disk: u8,
        work: impl AsyncFnOnce(Vdisk) -> Result<(), VolumeError>,
    ) -> Result<(), Failure> {
        let Some(index) = self.index(disk) else { return Ok(()) };
        let vdisk = self.vdisk(index)?;
        let answer = self.run(work(vdisk));
        if self.is_broken(&answer) {
            return self.after_a_failed_write(Vec::new());
        }
        answer?;
        self.disks[index].is_stable();
        Ok(())
    }

    // ---- what the numbers in a step mean here and now ----

    fn index(&self, disk: u8) -> Option<usize> {
        (!self.disks.is_empty()).then(|| usize::from(disk) % self.disks.len())
    }

    fn snapshot_index(&self, disk: u8, snapshot: u8) -> Option<(usize, usize)> {
        let index = self.index(disk)?;
        let snapshots = &self.disks[index].snapshots;
        (!snapshots.is_empty()).then(|| (index, usize::from(snapshot) % snapshots.len()))
    }

    /// A range within the vDisk, of a byte at least.
    fn range(&self, disk: u8, at: u32, length: u64) -> Option<(usize, ByteRange)> {
        let index = self.index(disk)?;
        let size = self.disks[index].content.size().0;
        let at = match size {
            VDISK_SIZE_BYTES_MAX if at >> 31 == 1 => size - HUGE_END_BYTES + u64::from(at) % HUGE_END_BYTES,
            VDISK_SIZE_BYTES_MAX => u64::from(at) % HUGE_END_BYTES,
            _ => u64::from(at) % size,
        };
        let range = ByteRange::new(ByteOffset(at), ByteCount(length.clamp(1, size - at)))?;
        Some((index, range))
    }

    fn new_data(&mut self, range: ByteRange) -> Bytes {
        self.writes += 1;
        let words = (0..range.length.0.div_ceil(8)).map(|word| mix(self.writes << 32 | word));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(range.length.0 as usize);
        bytes.into()
    }

    fn new_disk(&self, content: Content, base: Option<(VdiskId, SnapshotId)>) -> DiskModel {
        let properties = format!("{{\"made\":{}}}", self.random.next());
        DiskModel {
            id: VdiskId(self.random.uuid()),
            content,
            snapshots: Vec::new(),
            properties,
            base,
            unstable: Vec::new(),
        }
    }

    fn new_snapshot(&self, index: usize) -> SnapshotModel {
        let name = Name::new(&format!("s{}", self.random.next())).expect("a good name");
        SnapshotModel { id: SnapshotId(self.random.uuid()), name, content: self.disks[index].content.clone() }
    }

    fn new_clone(&self, index: usize, at: usize) -> DiskModel {
        let parent = &self.disks[index];
        let snapshot = &parent.snapshots[at];
        self.new_disk(snapshot.content.clone(), Some((parent.id, snapshot.id)))
    }

    fn request(&self, disk: &DiskModel) -> CreateVdisk {
        CreateVdisk {
            id: disk.id,
            vpool: self.vpool,
            size: disk.content.size(),
            properties: Bytes::from(disk.properties.clone()),
            base: disk.base,
            on_full: ON_FULL,
        }
    }

    fn make(&mut self, disk: &DiskModel) -> Result<(), Failure> {
        let (engine, request) = (self.engine()?, self.request(disk));
        let vdisk = self.run(async move { engine.create_vdisk(request).await })?;
        self.life_mut()?.vdisks.insert(disk.id, vdisk);
        Ok(())
    }

    fn forget(&mut self, index: usize) {
        let disk = self.disks.remove(index);
        self.gone.push((disk.id, disk.base));
        if let Some(life) = &mut self.life {
            life.vdisks.remove(&disk.id);
        }
    }
}

impl DiskModel {
    /// A write is in the log in the order of its clusters, perhaps in several records.
    fn write(&mut self, range: ByteRange, data: &[u8]) {
        let mut at = range.start.0;
        while at < range.end().0 {
            let end = range.end().0.min((at / CLUSTER_SIZE_BYTES + 1) * CLUSTER_SIZE_BYTES);
            self.unstable.push(self.content.clone());
            let part = &data[(at - range.start.0) as usize..(end - range.start.0) as usize];
            self.content.write(ByteOffset(at), part);
            at = end;
        }
    }

    /// Its ragged edges first, then the rest at once.
    fn zero(&mut self, range: ByteRange) {
        let covered = range.clusters_covered().bytes();
        let edges = if covered.length.0 == 0 {
            let middle = range.clusters_touched().start.0 * CLUSTER_SIZE_BYTES + CLUSTER_SIZE_BYTES;
            let middle = middle.clamp(range.start.0, range.end().0);
            [(range.start.0, middle), (middle, range.end().0)]
        } else {
            [(range.start.0, covered.start.0), (covered.end().0, range.end().0)]
        };
        for (start, end) in edges {
            self.unstable.push(self.content.clone());
            self.content.zero(ByteRange { start: ByteOffset(start), length: ByteCount(end - start) });
        }
        self.unstable.push(self.content.clone());
        self.content.zero(range);
    }

    /// The size is on the backend at once, whatever is stable of the contents.
    fn resize(&mut self, size: ByteCount) {
        self.content.resize(size);
        self.unstable.iter_mut().for_each(|content| content.resize(size));
    }

    fn is_stable(&mut self) {
        self.unstable.clear();
    }
}

/// A write as the door of a guest does it.
async fn a_guest_writes(
    vdisk: &Vdisk,
    offset: ByteOffset,
    data: Bytes,
    stable: bool,
) -> Result<(), VolumeError> {
    vdisk.admit(GuestRequest::Write(ByteCount(data.len() as u64))).await?;
    vdisk.write(offset, data, stable).await
}

/// The same of a discard.
async fn a_guest_zeroes(vdisk: &Vdisk, range: ByteRange, stable: bool) -> Result<(), VolumeError> {
    vdisk.admit(GuestRequest::Zero(range)).await?;
    vdisk.zero(range, stable).await
}

fn overlap(one: ByteRange, other: ByteRange) -> bool {
    let (one, other) = (one.clusters_touched(), other.clusters_touched());
    one.start < other.end() && other.start < one.end()
}

/// Small enough that everything fills, seals and destages within a few steps.
pub(crate) fn a_config(random: &Random) -> EngineConfig {
    let config = EngineConfig {
        memory_bytes: 64 << 10 << random.below(6),
        sco_bytes: 16 << 10 << random.below(5),
        destage_bytes: 32 << 10 << random.below(6),
        destage_after: Duration::from_millis(100 << random.below(6)),
        destage_concurrency: 1 + random.below(4) as usize,
        checkpoint_every: 1 + random.below(6),
        // Each journal object weighs 64 KiB.
        copy_map_after: (64 << 10) << random.below(7),
        scrub_every: Duration::from_millis(50 << random.below(8)),
        scrub_min_bytes: [0, 0, 64 << 10, 1 << 20][random.below(4) as usize],
        // A map of few pages takes 30 KiB.
        map_bytes: [0, 32 << 10, 128 << 10, 256 << 20][random.below(4) as usize],
        ..EngineConfig::default()
    };
    EngineConfig { copy_part_bytes: config.copy_map_after as usize / 64, ..config }
}

fn a_buffer(random: &Rc<Random>) -> Rc<MemoryDevice> {
    let slot_bytes = [64 << 10, 128 << 10, 256 << 10, 1 << 20][random.below(4) as usize];
    Rc::new(MemoryDevice::new(8 + random.below(9) as usize, slot_bytes, Rc::clone(random)))
}

/// Every call takes some turns of the other tasks, and fails, before or after its effect, while failures are left.
fn schedule(random: Rc<Random>, failures_left: Rc<Cell<u64>>) -> impl FnMut(&Call<'_>) -> Option<Fault> {
    move |call| {
        let left = failures_left.get();
        if left > 0 && call.operation != Operation::Capacity {
            failures_left.set(left - 1);
            return Some(match random.below(3) {
                0 if call.operation == Operation::Put => Fault::NoSpace,
                1 => Fault::ErrorAfter,
                _ => Fault::ErrorBefore,
            });
        }
        let random = Rc::clone(&random);
        Some(Fault::Delay(Box::pin(async move { random.dawdle(6).await })))
    }
}
