//! Opening the log: what is on the device, up to where it counts, and what is damage rather than the tail of a crash.
//!
//! | a batch that should be next is … | some header attests a higher `synced_lsn` | meaning |
//! |---|---|---|
//! | bad or missing | no | the end of the log: it was never vouched for; nothing after it counts |
//! | bad or missing | yes, but a header lists it as void, or every later floor is above it | nothing: skip it |
//! | bad or missing | yes | damage: the vDisks of its records (all, if its header is lost) are DAMAGED |

use super::record::{Place, Record, Segment};
use super::{FlushHabit, FreeSlot, Log, LogDevice, State};
use crate::{Chance, VolumeError};
use bytes::Bytes;
use ovs_format::log::{
    BATCH_CLUSTERS_MAX, BATCH_RECORDS_MAX, BLOCK_BYTES, BatchHeader, RecordKind, SegmentHeader, SegmentId,
    VOIDS_MAX, VoidRange, decode_wiped, encode_wiped,
};
use ovs_units::{Epoch, Sequence, VdiskId, planted};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    rc::Rc,
};
use tokio::sync::Notify;
use uuid::Uuid;

/// What a replay found.
pub(crate) struct Replay {
    /// Records by vDisk, in the order of the log.
    pub(crate) records: BTreeMap<VdiskId, Vec<Rc<Record>>>,
    /// vDisks with damaged records, and what is wrong; `None` as key: it cannot be told whose.
    pub(crate) damage: Vec<(Option<VdiskId>, String)>,
    /// Where that is: as long as somebody has these, a next start sees it too.
    pub(crate) evidence: Vec<Rc<Segment>>,
    /// Batches that do not count and that nothing would tell from good ones later: slots and offsets.
    dropped: Vec<(usize, u64)>,
    /// Where the log ends.
    end_lsn: u64,
}

/// A good batch on the device.
struct FoundBatch {
    header: BatchHeader,
    offset: u64,
    payload_offset: u64,
    end: u64,
}

/// A hole in the sequence of batches of a segment.
struct Gap {
    lsn: u64,
    /// The number of the next batch: several may be missing where a header is lost.
    next_lsn: u64,
    offset: u64,
    /// The vDisks of its records, if its header could be read.
    vdisks: Option<BTreeSet<VdiskId>>,
}

struct FoundSegment {
    slot: usize,
    header: SegmentHeader,
    batches: Vec<FoundBatch>,
    gaps: Vec<Gap>,
    /// The LSN of the seal and where it starts, if it has one.
    seal: Option<(u64, u64)>,
}

impl Log {
    /// Reads the device and chooses the log's end; the log is ready to append when this returns.
    pub(crate) async fn open(
        device: Rc<dyn LogDevice>,
        chance: Rc<dyn Chance>,
        memory_bytes_max: u64,
    ) -> Result<(Log, Replay), VolumeError> {
        let FoundSlots { headers, unused, wiped, wiped_generation } = find_segments(&*device).await?;
        let logs: BTreeSet<Uuid> =
            headers.values().map(|(_, header)| header.log).filter(|log| !log.is_nil()).collect();
        if logs.len() > 1 {
            return Err(VolumeError::Damaged(format!(
                "the write buffer has slots of {} logs ({}): slot files of another host or of a copy were put beside its \
                 own; nothing was changed",
                logs.len(),
                logs.iter().map(Uuid::to_string).collect::<Vec<_>>().join(", "),
            )));
        }
        let segments = scan_needed(&*device, headers).await?;
        let log = Log { state: Rc::new(empty_state(device, &segments, chance, memory_bytes_max)) };
        let generation = log.state.next_generation.get().max(wiped_generation + 1);
        log.state.next_generation.set(generation);
        let unproven = Unproven::new(&segments);
        let (mut replay, open_end) = log.take_in(segments);
        if !planted("replay: what an earlier process failed to sync is not written again") {
            unproven.write_again(&*log.state.device, &replay).await?;
        }
        for slot in unused {
            log.state.free.borrow_mut().push_back(FreeSlot { slot, after_order: 0, after_lsn: 0 });
        }
        // Who wiped those may have ended before that was stable.
        replay.dropped.extend(wiped.into_iter().map(|slot| (slot, 0)));
        wipe(&*log.state.device, &replay.dropped, generation - 1).await?;
        if !planted("replay: the end it chose is not made stable") {
            log.persist_end(open_end).await?;
        }
        log.start();
        Ok((log, replay))
    }

    /// Turns what was found into records and segments, up to the end of the log.
    /// The second value is where the log ends, if no seal says so there.
    fn take_in(&self, segments: Vec<FoundSegment>) -> (Replay, Option<OpenEnd>) {
        let state = &self.state;
        let attested = attested_lsn(&segments);
        let floor = floor_lsn(&segments);
        let voids = voids_of(&segments);
        let is_void = |lsn: u64| is_void(&voids, lsn);
        let end_lsn = segments
            .iter()
            .flat_map(|s| &s.gaps)
            .filter_map(|gap| (gap.lsn.max(attested)..gap.next_lsn).find(|lsn| !is_void(*lsn)))
            .min()
            .filter(|_| !planted("replay: it does not stop at a hole"))
            .unwrap_or(u64::MAX);
        let holes: Vec<_> =
            segments.iter().flat_map(|s| &s.gaps).map(|gap| (gap.lsn, gap.next_lsn)).collect();
        // What is void was written again in its order, or the log ended there. Behind a hole in it the old copies would
        // be a later write without an earlier one. A segment begun after the hole knows of it and is not meant.
        let is_behind_a_hole = |lsn: u64, known: &[VoidRange]| {
            voids.iter().filter(|void| contains(void, lsn)).any(|void| {
                let is_unknown = |hole: u64| !known.iter().any(|known| contains(known, hole));
                holes.iter().any(|(from, to)| {
                    (void.from_lsn.max(*from)..void.to_lsn.min(*to).min(lsn)).any(is_unknown)
                })
            })
        };
        let mut replay = Replay {
            records: BTreeMap::new(),
            damage: Vec::new(),
            evidence: Vec::new(),
            dropped: Vec::new(),
            end_lsn,
        };
        // A number that is void never means anything again.
        let mut next_lsn = voids.iter().map(|void| void.to_lsn).max().unwrap_or(0).max(attested);
        let mut open_end = None;
        for found in segments {
            let segment = Rc::new(Segment {
                slot: found.slot,
                id: found.header.id,
                start_lsn: found.header.start_lsn,
                state: Rc::downgrade(state),
                records: RefCell::default(),
                retired: Cell::new(false),
                sync_failed: RefCell::default(),
                touches: Cell::new(0),
                moves_failed: Cell::new(0),
                turns_to_pass: Cell::new(0),
            });
            state.segments.borrow_mut().insert(segment.id.generation, Rc::downgrade(&segment));
            for gap in &found.gaps {
                let is_damage = (gap.lsn.max(floor)..gap.next_lsn.min(attested)).any(|lsn| !is_void(lsn));
                if is_damage && !planted("replay: damage that is vouched for is taken for the end") {
                    // Kept as evidence.
                    if !segment.retired.replace(true) {
                        state.evidence_slots.set(state.evidence_slots.get() + 1);
                        replay.evidence.push(segment.clone());
                    }
                    let text = format!(
                        "slot {} of the write buffer at {}: batch {} is bad",
                        found.slot, gap.offset, gap.lsn
                    );
                    match &gap.vdisks {
                        Some(vdisks) => replay.damage.extend(vdisks.iter().map(|v| (Some(*v), text.clone()))),
                        None => replay.damage.push((None, text)),
                    }
                }
            }
            // With or without records that are needed; with a damage before it, too, or the next replay would take what is
            // behind the end for more of that. A segment that ends where another begins was sealed when that was the end
            // of the log, by this number and no other.
            if let Some(cut) = found.gaps.iter().find(|gap| gap.lsn == end_lsn) {
                let (slot, segment, offset) = (segment.slot, segment.id, cut.offset);
                open_end = Some(OpenEnd { slot, segment, offset, lsn: end_lsn });
            }
            let end_lsn = match planted("replay: one batch too few") {
                true => end_lsn.saturating_sub(1),
                false => end_lsn,
            };
            // A second crash must not find it again behind the seal that ends the log now.
            if found.header.start_lsn > end_lsn
                && !planted("replay: what it dropped is found by the next one")
            {
                replay.dropped.push((found.slot, 0));
            }
            for batch in found.batches.into_iter().filter(|batch| batch.header.lsn < end_lsn) {
                if is_behind_a_hole(batch.header.lsn, &found.header.voids) {
                    replay.dropped.push((found.slot, batch.offset));
                    continue;
                }
                next_lsn = next_lsn.max(batch.header.lsn + 1);
                take_in_batch(state, &segment, batch, &mut replay);
            }
            // Without records the segment goes here, and its slot is free. No floor is looked at before all that was found
            // is stable: those of seals count for nothing.
        }
        state.next_lsn.set(next_lsn);
        state.written_lsn.set(next_lsn);
        (replay, open_end)
    }

    /// A new segment says where the log ends, and what lies before it is made stable: what is served from now on stays.
    async fn persist_end(&self, open_end: Option<OpenEnd>) -> Result<(), VolumeError> {
        let state = &self.state;
        let mut slots: BTreeSet<usize> = {
            let segments = state.segments.borrow();
            segments.values().filter_map(std::rc::Weak::upgrade).map(|segment| segment.slot).collect()
        };
        if let Some(OpenEnd { slot, segment, offset, lsn }) = open_end
            && offset + BLOCK_BYTES as u64 <= state.device.slot_bytes()
        {
            // The segment that begins now takes the number too: one that was begun there before and holds nothing would
            // else miss its first batch.
            self.put_seal(slot, segment, offset, lsn)
                .await
                .map_err(|error| device_error("write", slot, &error))?;
            slots.insert(slot);
        }
        for slot in slots {
            state.device.sync(slot).await.map_err(|error| device_error("sync", slot, &error))?;
        }
        state.synced_lsn.set(state.next_lsn.get());
        state.synced_order.set(state.next_order.get());
        if state.free.borrow().is_empty() {
            tracing::warn!(
                "the write buffer is full of records that are not on a backend yet: no room until some are"
            );
            return Ok(());
        }
        state.free.borrow_mut().iter_mut().for_each(|free| (free.after_lsn, free.after_order) = (0, 0));
        self.rotate().await.map_err(|error| device_error("write", 0, &error))?;
        let slot = state.current.borrow().as_ref().map_or(0, |segment| segment.slot);
        state.device.sync(slot).await.map_err(|error| device_error("sync", slot, &error))
    }
}

/// The segments by generation. Those that nobody needs are not read: they have no batches.
///
/// Below a batch's floor nothing is needed: what was there has left for the backend, or what superseded it was stable
/// when the batch was begun. So the newest are read first.
async fn scan_needed(
    device: &dyn LogDevice,
    headers: BTreeMap<u64, (usize, SegmentHeader)>,
) -> Result<Vec<FoundSegment>, VolumeError> {
    let limits = lowest_start_after(headers.values().map(|(_, header)| header.start_lsn).collect());
    let mut segments = Vec::new();
    for ((slot, header), limit_lsn) in headers.into_values().zip(limits).rev() {
        segments.push(match limit_lsn <= floor_lsn(&segments) {
            true => FoundSegment { slot, header, batches: Vec::new(), gaps: Vec::new(), seal: None },
            false => scan(device, slot, header, limit_lsn).await?,
        });
    }
    segments.reverse();
    Ok(segments)
}

/// No batch below is needed, as far as any header tells that is where it should be: what was searched for behind a hole,
/// among a slot's leftovers, is not believed in this.
fn floor_lsn(segments: &[FoundSegment]) -> u64 {
    let is_in_its_place = |segment: &FoundSegment, batch: &&FoundBatch| {
        segment.gaps.iter().all(|gap| gap.vdisks.is_some() || batch.offset < gap.offset)
    };
    segments
        .iter()
        .flat_map(|segment| segment.batches.iter().filter(|batch| is_in_its_place(segment, batch)))
        .map(|batch| batch.header.floor_lsn)
        .max()
        .unwrap_or(0)
}

/// Everything below is on stable storage, as far as any header tells.
fn attested_lsn(segments: &[FoundSegment]) -> u64 {
    let batches = segments.iter().flat_map(|s| &s.batches).map(|batch| batch.header.synced_lsn);
    batches.chain(segments.iter().map(|s| s.header.synced_lsn)).max().unwrap_or(0)
}

/// What was read and may not be on stable storage: what no header attests, and what is void. An earlier process may have
/// ended because a sync failed, and the next sync of the same writes would succeed and mean nothing.
struct Unproven {
    batches: Vec<UnprovenBatch>,
}

struct UnprovenBatch {
    slot: usize,
    segment: SegmentId,
    lsn: u64,
    offset: u64,
    end: u64,
    is_void: bool,
}

impl Unproven {
    fn new(segments: &[FoundSegment]) -> Unproven {
        let (attested, voids) = (attested_lsn(segments), voids_of(segments));
        let mut batches = Vec::new();
        for found in segments {
            let of_batches = found.batches.iter().map(|batch| (batch.header.lsn, batch.offset, batch.end));
            let of_seal = found.seal.iter().map(|(lsn, offset)| (*lsn, *offset, offset + BLOCK_BYTES as u64));
            for (lsn, offset, end) in of_batches.chain(of_seal) {
                let is_void = is_void(&voids, lsn);
                if lsn >= attested || is_void {
                    let (slot, segment) = (found.slot, found.header.id);
                    batches.push(UnprovenBatch { slot, segment, lsn, offset, end, is_void });
                }
            }
        }
        Unproven { batches }
    }

    /// Writes the same bytes again, verified once more: what has become of them since must not become what is there.
    async fn write_again(&self, device: &dyn LogDevice, replay: &Replay) -> Result<(), VolumeError> {
        let newest = replay.lsns_of_newest_copies();
        let is_used = |batch: &&UnprovenBatch| batch.is_void && newest.contains(&batch.lsn);
        // Of what is void only records matter that are nowhere else, and all before them: behind a hole they would not count.
        let last_used = self.batches.iter().filter(is_used).map(|batch| batch.lsn).max();
        let is_needed = |batch: &&UnprovenBatch| {
            batch.lsn < replay.end_lsn && (!batch.is_void || Some(batch.lsn) <= last_used)
        };
        let mut window = Window::new(device, 0);
        for batch in self.batches.iter().filter(is_needed) {
            let UnprovenBatch { slot, segment, lsn, offset, end, .. } = *batch;
            // Each piece of a slot is read once.
            if window.slot != slot {
                window = Window::new(device, slot);
            }
            // All of it at once, so that what is verified is what is written.
            let bytes = window.bytes(offset, (end - offset) as usize).await?.unwrap_or_default();
            let Found::Good(..) = read_batch(&mut window, offset, segment, lsn).await? else {
                return Err(VolumeError::Offline(format!(
                    "slot {slot} of the write buffer at {offset}: batch {lsn} does not read as it did a moment ago"
                )));
            };
            let written = device.write(slot, offset, vec![bytes]).await;
            written.map_err(|error| device_error("write", slot, &error))?;
        }
        Ok(())
    }
}

impl Replay {
    /// Of a record that is there several times the newest copy counts: what was written again or moved, where it is now.
    fn lsns_of_newest_copies(&self) -> BTreeSet<u64> {
        let mut lsns = BTreeSet::new();
        for records in self.records.values() {
            let mut newest: BTreeMap<(Epoch, Sequence), u64> = BTreeMap::new();
            for record in records {
                let lsn = newest.entry((record.header.epoch, record.header.sequence)).or_default();
                *lsn = record.lsn().max(*lsn);
            }
            lsns.extend(newest.into_values());
        }
        lsns
    }
}

fn voids_of(segments: &[FoundSegment]) -> Vec<VoidRange> {
    segments.iter().flat_map(|segment| segment.header.voids.clone()).collect()
}

/// The slots of a device, by what their first blocks say.
struct FoundSlots {
    /// By generation.
    headers: BTreeMap<u64, (usize, SegmentHeader)>,
    /// Without a segment, wiped or not.
    unused: Vec<usize>,
    wiped: Vec<usize>,
    /// The highest generation that a wiped one names.
    wiped_generation: u64,
}

/// The segments by generation, and the slots without one.
///
/// | the slot's first block | its first batch | the slot has |
/// |---|---|---|
/// | a header | of its generation, or of an older one, or bad | that segment (with an older one's batches: not used yet) |
/// | a header | of its generation with another salt | that segment, as if the batch were bad |
/// | a header | of a newer generation, which no other slot has | the batch's segment: the header is an old one |
/// | a header | of a newer generation, which another slot has | the header's segment: the batch is the other's |
/// | a header that another slot has too | not of its generation | the batch's segment: the header is the other's |
/// | bad | good | the batch's segment |
/// | bad | bad | none |
/// | wiped | any | none |
///
/// A segment whose header is lost may be a live one; or an old one whose slot was being used again when the power went, and
/// then everything in it is superseded and harmless.
async fn find_segments(device: &dyn LogDevice) -> Result<FoundSlots, VolumeError> {
    let (mut found, mut headless, mut unused) = (BTreeMap::new(), Vec::new(), Vec::new());
    let (mut wiped, mut wiped_generation) = (Vec::new(), 0);
    for slot in 0..device.slot_count() {
        let block = read(device, slot, 0, BLOCK_BYTES).await?;
        if let Some(generation) = decode_wiped(&block) {
            wiped_generation = generation.max(wiped_generation);
            wiped.push(slot);
            unused.push(slot);
            continue;
        }
        let mut window = Window { piece_bytes: FIRST_HEADER_BYTES, ..Window::new(device, slot) };
        let first = window.header(BLOCK_BYTES as u64).await?.and_then(Result::ok);
        let header = SegmentHeader::decode(&block).ok();
        match (header, first) {
            (Some(header), Some(first)) if is_of(&first, header.id) => {
                let other = found.insert(header.id.generation, (slot, header, Some(first)));
                headless.extend(other.map(|(slot, header, first)| (slot, Some(header), first)));
            }
            (Some(header), first)
                if first.as_ref().is_none_or(|first| first.segment.generation <= header.id.generation) =>
            {
                match found.entry(header.id.generation) {
                    Entry::Occupied(_) => headless.push((slot, None, first)),
                    Entry::Vacant(entry) => drop(entry.insert((slot, header, first))),
                }
            }
            (header, first) => headless.push((slot, header, first)),
        }
    }
    for (slot, header, first) in headless {
        let Some(first) = first.filter(|first| !found.contains_key(&first.segment.generation)) else {
            match header.filter(|header| !found.contains_key(&header.id.generation)) {
                Some(header) => drop(found.insert(header.id.generation, (slot, header, None))),
                None => unused.push(slot),
            }
            continue;
        };
        let (id, start_lsn) = (first.segment, first.lsn);
        let generation = id.generation;
        tracing::warn!(slot, generation, "a slot of the write buffer has lost its header");
        // The nil one where no header tells: it goes with any.
        let log = found.values().next().map_or(Uuid::nil(), |(_, header, _)| header.log);
        let header = SegmentHeader { log, id, start_lsn, synced_lsn: 0, voids: Vec::new() };
        found.insert(generation, (slot, header, Some(first)));
    }
    let headers = found.into_iter().map(|(generation, (slot, header, _))| (generation, (slot, header)));
    Ok(FoundSlots { headers: headers.collect(), unused, wiped, wiped_generation })
}

/// What recovery did not show never shows: the hole before these batches goes when its slot is used again. Of a whole slot
/// the first batch goes as well, or the segment would be known by it should the first block be damaged.
async fn wipe(
    device: &dyn LogDevice,
    batches: &[(usize, u64)],
    highest_generation: u64,
) -> Result<(), VolumeError> {
    for (slot, offset) in batches {
        let mut blocks = vec![vec![0; BLOCK_BYTES].into()];
        if *offset == 0 {
            blocks.insert(0, encode_wiped(highest_generation).into());
        }
        let written = device.write(*slot, *offset, blocks).await;
        written.map_err(|error| device_error("write", *slot, &error))?;
    }
    for slot in batches.iter().map(|(slot, _)| *slot).collect::<BTreeSet<_>>() {
        device.sync(slot).await.map_err(|error| device_error("sync", slot, &error))?;
    }
    Ok(())
}

fn contains(void: &VoidRange, lsn: u64) -> bool {
    (void.from_lsn..void.to_lsn).contains(&lsn)
}

fn is_void(voids: &[VoidRange], lsn: u64) -> bool {
    voids.iter().any(|void| contains(void, lsn))
}

fn take_in_batch(state: &Rc<State>, segment: &Rc<Segment>, batch: FoundBatch, replay: &mut Replay) {
    let mut offset = batch.payload_offset;
    for header in batch.header.records {
        let order = state.next_order.get() + 1;
        state.next_order.set(order);
        state.written_order.set(order);
        let data_clusters = match &header.kind {
            RecordKind::Data(checksums) => checksums.len(),
            RecordKind::Zero => 0,
        };
        let vdisk = header.vdisk;
        let place = Place { segment: segment.clone(), offset, lsn: batch.header.lsn };
        replay.records.entry(vdisk).or_default().push(Record::replayed(state, header, place, order));
        offset += (data_clusters * BLOCK_BYTES) as u64;
    }
}

/// For each segment, in order of generation, the lowest start of those after it: from there on its batches do not count.
fn lowest_start_after(starts: Vec<u64>) -> Vec<u64> {
    let mut lowest = u64::MAX;
    let mut limits: Vec<u64> = starts
        .into_iter()
        .rev()
        .map(|start| {
            let limit = lowest;
            lowest = lowest.min(start);
            limit
        })
        .collect();
    limits.reverse();
    limits
}

/// Where the log ends: in which segment, and the number that a seal there has.
struct OpenEnd {
    slot: usize,
    segment: SegmentId,
    offset: u64,
    lsn: u64,
}

/// Reads the batches of one segment. A gap is where the next batch should be and is not; behind it the scan goes on
/// with the next batch of the same segment, if there is one.
async fn scan(
    device: &dyn LogDevice,
    slot: usize,
    segment: SegmentHeader,
    limit_lsn: u64,
) -> Result<FoundSegment, VolumeError> {
    let (mut batches, mut gaps, mut seal) = (Vec::new(), Vec::new(), None);
    let mut window = Window::new(device, slot);
    let (mut offset, mut lsn) = (BLOCK_BYTES as u64, segment.start_lsn);
    while lsn < limit_lsn {
        match read_batch(&mut window, offset, segment.id, lsn).await? {
            Found::Good(batch) if batch.header.is_seal => {
                seal = Some((batch.header.lsn, offset));
                break;
            }
            Found::Good(batch) => {
                (lsn, offset) = (batch.header.lsn + 1, batch.end);
                batches.push(batch);
            }
            Found::BadPayload(vdisks, end) => {
                gaps.push(Gap { lsn, next_lsn: lsn + 1, offset, vdisks: Some(vdisks) });
                (lsn, offset) = (lsn + 1, end);
            }
            Found::Bad => {
                let ahead = window.next_batch(offset, segment.id, lsn).await?;
                // Where the segment ends with it, nobody knows how many it had.
                let next_lsn = ahead.map_or(lsn + 1, |(_, next_lsn)| next_lsn);
                gaps.push(Gap { lsn, next_lsn, offset, vdisks: None });
                let Some((ahead, next_lsn)) = ahead else { break };
                (offset, lsn) = (ahead, next_lsn);
            }
        }
    }
    Ok(FoundSegment { slot, header: segment, batches, gaps, seal })
}

/// A slot's leftovers are of other segments, or what guests wrote.
fn is_of(header: &BatchHeader, segment: SegmentId) -> bool {
    let is_all = !planted("replay: what guests wrote passes for batches");
    header.segment.generation == segment.generation && (header.segment.salt == segment.salt || !is_all)
}

enum Found {
    Good(FoundBatch),
    /// The vDisks of its records, and where it ends.
    BadPayload(BTreeSet<VdiskId>, u64),
    /// Not even a header.
    Bad,
}

async fn read_batch(
    window: &mut Window<'_>,
    offset: u64,
    segment: SegmentId,
    lsn: u64,
) -> Result<Found, VolumeError> {
    let header = match window.header(offset).await? {
        Some(Ok(header)) if is_of(&header, segment) && header.lsn == lsn => header,
        _ => return Ok(Found::Bad),
    };
    let header_bytes = BatchHeader::encoded_bytes(header.records.len(), header.payload_clusters());
    let payload_offset = offset + header_bytes as u64;
    let length = header.payload_clusters() * BLOCK_BYTES;
    let payload = window.bytes(payload_offset, length).await?;
    let checksums = header.records.iter().flat_map(|record| match &record.kind {
        RecordKind::Data(checksums) => checksums.as_slice(),
        RecordKind::Zero => &[],
    });
    let is_good = payload.as_ref().is_some_and(|payload| {
        planted("replay: payloads are not verified")
            || payload
                .chunks(BLOCK_BYTES)
                .zip(checksums)
                .all(|(cluster, sum)| ovs_format::checksum(cluster) == *sum)
    });
    let end = payload_offset + length as u64;
    Ok(match is_good {
        true => Found::Good(FoundBatch { header, offset, payload_offset, end }),
        false => Found::BadPayload(header.records.iter().map(|record| record.vdisk).collect(), end),
    })
}

/// Reads a slot in large pieces.
struct Window<'a> {
    device: &'a dyn LogDevice,
    slot: usize,
    /// It reads so much at once, unless more is asked for.
    piece_bytes: usize,
    start: u64,
    bytes: Bytes,
}

/// Enough for most of the headers that are looked at to find out what a slot has.
const FIRST_HEADER_BYTES: usize = 64 << 10;
const WINDOW_BYTES: usize = 8 << 20;
const BATCH_BYTES_MAX: usize = (BATCH_RECORDS_MAX * 56 + BATCH_CLUSTERS_MAX * 4 + 64)
    .next_multiple_of(BLOCK_BYTES)
    + BATCH_CLUSTERS_MAX * BLOCK_BYTES;
/// Nothing that is read at once is larger than a batch.
const _: () = assert!(BATCH_BYTES_MAX <= WINDOW_BYTES);

impl<'a> Window<'a> {
    fn new(device: &'a dyn LogDevice, slot: usize) -> Self {
        Window { device, slot, piece_bytes: WINDOW_BYTES, start: 0, bytes: Bytes::new() }
    }

    /// Bytes of the slot; `None` when they would lie past its end.
    async fn bytes(&mut self, offset: u64, length: usize) -> Result<Option<Bytes>, VolumeError> {
        if offset + length as u64 > self.device.slot_bytes() {
            return Ok(None);
        }
        let is_inside =
            offset >= self.start && offset + length as u64 <= self.start + self.bytes.len() as u64;
        if !is_inside {
            let wanted = self.piece_bytes.max(length) as u64;
            let available = (self.device.slot_bytes() - offset).min(wanted) as usize;
            self.bytes = read(self.device, self.slot, offset, available).await?;
            self.start = offset;
        }
        let at = (offset - self.start) as usize;
        Ok(Some(self.bytes.slice(at..at + length)))
    }

    /// The next batch of this generation behind a bad one: where, and its number.
    async fn next_batch(
        &mut self,
        bad: u64,
        segment: SegmentId,
        lsn: u64,
    ) -> Result<Option<(u64, u64)>, VolumeError> {
        let mut offset = bad + BLOCK_BYTES as u64;
        while let Some(header) = self.header(offset).await? {
            if let Ok(header) = header
                && is_of(&header, segment)
                && header.lsn > lsn
            {
                return Ok(Some((offset, header.lsn)));
            }
            offset += BLOCK_BYTES as u64;
        }
        Ok(None)
    }

    /// The batch header at `offset`; `None` at the end of the slot.
    async fn header(&mut self, offset: u64) -> Result<Option<Result<BatchHeader, ()>>, VolumeError> {
        let Some(block) = self.bytes(offset, BLOCK_BYTES).await? else { return Ok(None) };
        let Ok(length) = BatchHeader::claimed_bytes(&block) else { return Ok(Some(Err(()))) };
        let Some(bytes) = self.bytes(offset, length).await? else { return Ok(Some(Err(()))) };
        Ok(Some(BatchHeader::decode(&bytes).map_err(|_| ())))
    }
}

async fn read(device: &dyn LogDevice, slot: usize, offset: u64, length: usize) -> Result<Bytes, VolumeError> {
    device.read(slot, offset, length).await.map_err(|error| device_error("read", slot, &error))
}

fn device_error(operation: &str, slot: usize, error: &std::io::Error) -> VolumeError {
    VolumeError::Offline(format!("cannot {operation} slot {slot} of the write buffer: {error}"))
}

fn empty_state(
    device: Rc<dyn LogDevice>,
    segments: &[FoundSegment],
    chance: Rc<dyn Chance>,
    memory_bytes_max: u64,
) -> State {
    let newest = segments.iter().max_by_key(|segment| segment.header.id.generation);
    let log = segments.iter().map(|segment| segment.header.log).find(|log| !log.is_nil()).unwrap_or_default();
    // The newest header has those of the others, unless it is lost.
    let mut voids = voids_of(segments);
    voids.sort_unstable_by_key(|void| (void.from_lsn, void.to_lsn));
    voids.dedup();
    voids.drain(..voids.len().saturating_sub(VOIDS_MAX));
    State {
        device,
        id: newest.map_or_else(|| chance.uuid(), |_| log),
        chance,
        memory_bytes_max,
        next_order: Cell::new(0),
        next_lsn: Cell::new(0),
        next_generation: Cell::new(newest.map_or(1, |segment| segment.header.id.generation + 1)),
        written_lsn: Cell::new(0),
        synced_lsn: Cell::new(0),
        written_order: Cell::new(0),
        synced_order: Cell::new(0),
        voids: RefCell::new(voids),
        retirements: Cell::new(0),
        evidence_slots: Cell::new(0),
        pending: RefCell::new(VecDeque::new()),
        unsynced: RefCell::new(VecDeque::new()),
        unsynced_bytes: Cell::new(0),
        dirty: RefCell::default(),
        resident: RefCell::new(VecDeque::new()),
        resident_looked_at: Cell::new(0),
        memory_bytes: Cell::new(0),
        current: RefCell::new(None),
        current_offset: Cell::new(0),
        segments: RefCell::new(BTreeMap::new()),
        free: RefCell::new(VecDeque::new()),
        left: RefCell::default(),
        is_ended: Cell::new(false),
        last_moved: Cell::new(0),
        promised_blocks: Cell::new(0),
        work: Rc::new(Notify::new()),
        sync_wanted: Rc::new(Notify::new()),
        flush_habit: FlushHabit::default(),
        synced: Notify::new(),
        space: Notify::new(),
        pressure: Rc::new(Notify::new()),
        write_turn: tokio::sync::Mutex::new(()),
        sync_turn: tokio::sync::Mutex::new(()),
        offline: RefCell::new(None),
        lost: RefCell::default(),
        went_offline: Rc::default(),
        log_written_bytes: Cell::new(0),
        syncs: Cell::new(0),
    }
}
