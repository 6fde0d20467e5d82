//! Media that do not keep what they were given: after a small workload, every block of the write buffer, every object,
//! every map page and checkpoint is damaged in turn: gone, a bit turned, cut short, as it was before, another one's bytes.
//! (Heads are not: the registry's own checksums vouch for them.)
//!
//! What is read then is right, or an error. Of the write buffer's newest blocks, which nothing vouches for, nobody can tell
//! whether they were ever synced, so there a vDisk may also be as after an earlier operation; it is never anything else.
//!
//! A recovery from the backend alone tells every other vDisk than the damaged one, and removes nothing that somebody needs
//! or that it cannot judge. For that every vDisk gets damaged tombstones, too.

use super::{
    Failure, World,
    disk::Disk,
    life::Life,
    operator::ON_FULL,
    sweep::{Frame, Moment, OPERATIONS, Points, a_small_world},
    weather::Season,
};
use crate::{MemoryDevice, Random};
use bytes::Bytes;
use ovs_backend::ObjectName;
use ovs_format::{
    log::{BatchHeader, SegmentHeader},
    tombstone,
};
use ovs_units::{Epoch, VdiskId};
use ovs_volume::LogDevice;
use std::{collections::BTreeSet, ops::Range, rc::Rc, time::Duration};

const BLOCK_BYTES: usize = 4096;
/// Of a tombstone that counts, whatever has been begun.
const LATE: Epoch = Epoch(1 << 40);

/// How much of the truth must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// An error, or as after some operation.
    SomeCut,
    /// An error, or everything.
    Everything,
    /// Everything; there is no reason for an error.
    NoError,
}

/// Damages everything that the workload of a seed leaves, one thing and one way at a time.
pub fn rot(seed: u64) -> Result<Points, String> {
    let failed = |what: String, failure: Failure| format!("workload {seed}, {what}: {failure}");
    let mut world = a_small_world(seed);
    world.work(OPERATIONS).map_err(|failure| failed("undamaged".to_owned(), failure))?;
    let (frame, random) = (Frame::of(&world), Random::new(seed));
    let moment = Moment { stores: world.stores.clone(), model: world.model.fork() };
    let mut points = Points::default();
    let vouched = vouched_blocks(&moment.stores.device);
    for (slot, block) in used_blocks(&moment) {
        let is_vouched_for = vouched.contains(&(slot, block));
        let need = if is_vouched_for { Need::Everything } else { Need::SomeCut };
        points.vouched += u64::from(is_vouched_for);
        for (how, bytes) in other_blocks(&moment, slot, block, &random) {
            let mut world = frame.world(&moment, random.next());
            world.stores.device.damage(slot, block, bytes);
            let what = format!("block {block} of slot {slot}, {how}");
            world.look_at_damage(need).map_err(|failure| failed(what, failure))?;
            points.damages += 1;
        }
    }
    let names = moment.stores.backend.names();
    for (at, name) in names.iter().enumerate() {
        let bytes = moment.stores.backend.bytes(name).unwrap_or_default();
        let other = moment.stores.backend.bytes(&names[(at + 1) % names.len()]).unwrap_or_default();
        for (how, bytes) in other_bytes(&bytes, other, &random) {
            let mut world = frame.world(&moment, random.next());
            world.stores.backend.damage(name, bytes.clone());
            let at = |failure| failed(format!("object {name}, {how}"), failure);
            world.look_at_damage(Need::Everything).map_err(at)?;
            let mut world = frame.world(&moment, random.next());
            world.stores.backend.damage(name, bytes);
            world.look_for_vdisks(name).map_err(at)?;
            points.damages += 1;
        }
    }
    let vdisks = moment.model.all();
    for (at, id) in vdisks.iter().enumerate() {
        let name = tombstone_of(*id);
        if names.contains(&name) {
            continue;
        }
        let other = tombstone::encode(vdisks[(at + 1) % vdisks.len()], LATE);
        for (how, bytes) in other_bytes(&tombstone::encode(*id, LATE).into(), other.into(), &random) {
            if bytes.is_none() || (how == "with another's bytes" && vdisks.len() == 1) {
                continue;
            }
            let mut world = frame.world(&moment, random.next());
            world.stores.backend.damage(&name, bytes);
            world
                .look_for_vdisks(&name)
                .map_err(|failure| failed(format!("a new object {name}, {how}"), failure))?;
            points.damages += 1;
        }
    }
    let pages = moment.stores.pages.all();
    for (at, (page, bytes)) in pages.iter().enumerate() {
        for (how, bytes) in other_bytes(bytes, pages[(at + 1) % pages.len()].1.clone(), &random) {
            let mut world = frame.world(&moment, random.next());
            world.stores.pages.damage(*page, bytes);
            let at = |failure| failed(format!("map page {}, {how}", page.0), failure);
            world.look_at_damage(Need::Everything).map_err(at)?;
            // Maps are a cache: the next start makes them anew.
            world.look_at_damage(Need::NoError).map_err(at)?;
            points.damages += 1;
        }
    }
    let records = moment.stores.pages.all_records();
    for (at, (owner, bytes)) in records.iter().enumerate() {
        for (how, bytes) in other_bytes(bytes, records[(at + 1) % records.len()].1.clone(), &random) {
            let mut world = frame.world(&moment, random.next());
            world.stores.pages.damage_record(owner, bytes);
            let at = |failure| failed(format!("checkpoint of {owner}, {how}"), failure);
            world.look_at_damage(Need::NoError).map_err(at)?;
            points.damages += 1;
        }
    }
    Ok(points)
}

fn used_blocks(moment: &Moment) -> Vec<(usize, usize)> {
    let device = &moment.stores.device;
    let blocks = device.slot_bytes() as usize / BLOCK_BYTES;
    let all = (0..device.slot_count()).flat_map(|slot| (0..blocks).map(move |block| (slot, block)));
    all.filter(|(slot, block)| device.block(*slot, *block).iter().any(|byte| *byte != 0)).collect()
}

/// Blocks of which headers elsewhere in the log say that they are on stable storage.
fn vouched_blocks(device: &MemoryDevice) -> BTreeSet<(usize, usize)> {
    let mut stretches = Vec::new();
    for slot in 0..device.slot_count() {
        let Ok(segment) = SegmentHeader::decode(&device.block(slot, 0)) else { continue };
        stretches.push((slot, 0..1, segment.start_lsn, segment.synced_lsn));
        let bytes = |first: usize, count: usize| {
            (first..first + count).flat_map(|block| device.block(slot, block)).collect::<Vec<u8>>()
        };
        let blocks = device.slot_bytes() as usize / BLOCK_BYTES;
        let mut at = 1;
        while at < blocks
            && let Ok(header_bytes) = BatchHeader::claimed_bytes(&device.block(slot, at))
            && let header_blocks = header_bytes.div_ceil(BLOCK_BYTES)
            && at + header_blocks <= blocks
            && let Ok(batch) = BatchHeader::decode(&bytes(at, header_blocks)[..header_bytes])
            && batch.segment == segment.id
        {
            let end = at + header_blocks + batch.payload_clusters();
            stretches.push((slot, at..end, batch.lsn, batch.synced_lsn));
            at = end;
        }
    }
    let attested_but = |but: usize| {
        let others = stretches.iter().enumerate().filter(|(at, _)| *at != but);
        others.map(|(_, (.., attests))| *attests).max().unwrap_or(0)
    };
    let is_vouched_for =
        |(at, (_, _, lsn, _)): &(usize, &(usize, Range<usize>, u64, u64))| *lsn < attested_but(*at);
    let vouched = stretches.iter().enumerate().filter(is_vouched_for);
    vouched.flat_map(|(_, (slot, blocks, ..))| blocks.clone().map(|block| (*slot, block))).collect()
}

fn other_blocks(moment: &Moment, slot: usize, block: usize, random: &Random) -> Vec<(&'static str, Bytes)> {
    let device = &moment.stores.device;
    let other = device.block((slot + 1) % device.slot_count(), block);
    let older = device.older(slot, block).map(|older| ("as it was before", older));
    let mut ways = vec![
        ("gone", Bytes::from_static(&[0; BLOCK_BYTES])),
        ("with a bit turned", a_bit_turned(&device.block(slot, block), random)),
        ("with another's bytes", other),
    ];
    ways.extend(older);
    ways
}

fn other_bytes(bytes: &Bytes, other: Bytes, random: &Random) -> Vec<(&'static str, Option<Bytes>)> {
    vec![
        ("gone", None),
        ("with a bit turned", Some(a_bit_turned(bytes, random))),
        ("cut short", Some(bytes.slice(..random.below(bytes.len().max(1) as u64) as usize))),
        ("with another's bytes", Some(other)),
    ]
}

fn a_bit_turned(bytes: &Bytes, random: &Random) -> Bytes {
    let mut bytes = bytes.to_vec();
    if !bytes.is_empty() {
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
    }
    bytes.into()
}

impl World {
    /// Opens what opens, reads what can be read, and ends without a word.
    fn look_at_damage(&mut self, need: Need) -> Result<(), Failure> {
        let life = Life::begin()?;
        self.weather.set(Season::Calm);
        let engine = match life.run(self.open_engine())? {
            Ok(engine) => engine,
            Err(error) if need == Need::NoError => return Err(format!("the engine does not open: {error}")),
            Err(_) => return Ok(()),
        };
        for disk in self.model.disks.borrow().clone() {
            match life.run(engine.open_vdisk(self.vpool, disk.id, ON_FULL))? {
                Err(error) if need == Need::NoError => return Err(format!("it does not open: {error}")),
                Err(_) => continue,
                Ok(vdisk) => {
                    *disk.vdisk.borrow_mut() = Some(vdisk);
                }
            }
            life.run(check(&disk, need))?.map_err(|failure| format!("vDisk {}: {failure}", disk.id))?;
        }
        // What was found wrong with a map is noted in the background.
        life.run(async { tokio::time::sleep(Duration::from_secs(5)).await })?;
        self.drop_life(life, engine);
        Ok(())
    }
}

impl World {
    /// The backend is all that is left, and this object of it is damaged.
    fn look_for_vdisks(&mut self, damaged: &ObjectName) -> Result<(), Failure> {
        (self.stores.registry, self.stores.pages) = Default::default();
        self.stores.device = Rc::new(MemoryDevice::new(8, 64 << 10, Rc::clone(&self.random)));
        let names = self.stores.backend.names();
        let life = Life::begin()?;
        self.weather.set(Season::Calm);
        let engine = life.run(self.open_engine())?.map_err(|error| format!("opening: {error}"))?;
        let found =
            life.run(engine.discover(self.vpool))?.map_err(|error| format!("discovering: {error}"))?;
        self.drop_life(life, engine);
        let is_hit = |id: VdiskId| damaged.as_str().starts_with(&folder_of(id));
        for disk in self.model.disks.borrow().iter() {
            let id = disk.id;
            let found = found.iter().find(|found| found.id == id);
            match found.map(|found| (found, &found.problem)) {
                _ if is_hit(id) => {}
                None => return Err(format!("vDisk {id} is hidden")),
                Some((_, Some(_))) if self.model.ancestors(id).into_iter().any(is_hit) => {}
                Some((_, Some(problem))) => {
                    return Err(format!("vDisk {id} is well, but told with {problem}"));
                }
                Some((found, None)) => {
                    let is_same = found.size == disk.size()
                        && found.base == disk.base
                        && found.properties == disk.properties.borrow().as_bytes();
                    if !is_same {
                        return Err(format!("vDisk {id} is found as {found:?}"));
                    }
                }
            }
        }
        let left = self.stores.backend.names();
        let doubtful = found.iter().find(|found| found.problem.is_some());
        for name in names.iter().filter(|name| !left.contains(name)) {
            let is_of = |id: &VdiskId| name.as_str().starts_with(&folder_of(*id));
            let is_needed =
                |id: &VdiskId| self.model.disk(*id).is_some() || self.model.has_living_descendant(*id);
            if let Some(id) = self.model.all().into_iter().filter(is_needed).find(is_of) {
                return Err(format!("object {name} is removed, which vDisk {id} or a clone of it needs"));
            }
            if let Some(found) = doubtful {
                return Err(format!(
                    "object {name} is removed, and yet nobody knows what needs it: {found:?}"
                ));
            }
        }
        Ok(())
    }
}

fn folder_of(id: VdiskId) -> String {
    format!("v/{}/", id.0.simple())
}

fn tombstone_of(id: VdiskId) -> ObjectName {
    ObjectName::new(format!("{}tombstone-{:016x}", folder_of(id), LATE.0)).expect("a good name")
}

async fn check(disk: &Rc<Disk>, need: Need) -> Result<(), Failure> {
    let size = disk.open().map_err(|error| error.to_string())?.size();
    if size != disk.size() {
        return Err(format!("it has {size:?}, not {:?}", disk.size()));
    }
    match disk.read_all(None, size).await {
        Err(error) if need == Need::NoError => return Err(format!("it cannot be read: {error}")),
        Err(_) => {}
        Ok(found) => {
            let history = disk.history.borrow();
            // Behind a rollback or another size nobody remembers what there was before.
            if need != Need::SomeCut || history.is_complete() {
                let least = if need == Need::SomeCut { history.settled() } else { history.acknowledged() };
                history.explain(&found, &least, &history.begun())?;
            }
        }
    }
    let snapshots = disk.snapshots.borrow().clone();
    for snapshot in snapshots {
        let name = &snapshot.name;
        match disk.read_all(Some(snapshot.id), snapshot.content.size()).await {
            Err(error) if need == Need::NoError => {
                return Err(format!("snapshot {name} cannot be read: {error}"));
            }
            Err(_) => {}
            Ok(found) => {
                if let Some(cluster) = found.difference(&snapshot.content, |_| false) {
                    return Err(format!("snapshot {name}: cluster {} changed", cluster.0));
                }
            }
        }
    }
    Ok(())
}
