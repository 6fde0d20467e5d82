//! The write buffer's log.
//!
//! A slot is a file of fixed size: one segment header block, then batches. A batch is one write: a header (padded to
//! whole blocks) that describes records, then the records' data clusters.
//!
//! Batches have log sequence numbers (LSN), dense over all slots. A segment holds the batches from its `start_lsn` up to
//! where it ends or where a newer segment starts, whichever is first: so starting a segment persists the end that a
//! replay chose. A segment that is full, or whose end a replay chose, ends with a seal: a batch without records.
//! Headers say up to which LSN the writer knew everything to be on stable storage (`synced_lsn`): a batch
//! that is bad below such a number is damage, above it is the tail of a crash.

use crate::cursor::{Reader, Writer};
use crate::{FormatError, check_seal, checksum, seal};
use ovs_units::{CLUSTER_SIZE_BYTES, COUNTER_MAX, Cluster, Epoch, Sequence, VdiskId};
use uuid::Uuid;

/// Slots are written and read in blocks of this size, like clusters.
pub const BLOCK_BYTES: usize = CLUSTER_SIZE_BYTES as usize;
/// The format's version.
pub const VERSION: u16 = 1;
/// Data clusters in one batch at most (4 MiB).
pub const BATCH_CLUSTERS_MAX: usize = 1024;
/// Records in one batch at most.
pub const BATCH_RECORDS_MAX: usize = 1024;
/// Void ranges in one segment header at most.
pub const VOIDS_MAX: usize = 64;

const WIPED: &[u8; 8] = b"OVSWIPED";
const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"OVSSEG01");
const BATCH_MAGIC: u64 = u64::from_le_bytes(*b"OVSBAT01");
const BATCH_FIXED_BYTES: usize = 64;
const RECORD_BYTES: usize = 56;

/// The first block of a slot whose segment does not count: without it, a bad first block is damage. It names the highest
/// generation that there was, since what it wipes may have been the last to tell.
pub fn encode_wiped(generation: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    block[..8].copy_from_slice(WIPED);
    block[8..16].copy_from_slice(&generation.to_le_bytes());
    let sum = checksum(&block[..16]);
    block[16..20].copy_from_slice(&sum.to_le_bytes());
    block
}

/// `None`: it is no such block. The generation is 0 if it cannot be read any more.
pub fn decode_wiped(block: &[u8]) -> Option<u64> {
    let (fields, rest) = block.split_at_checked(16)?;
    if !fields.starts_with(WIPED) {
        return None;
    }
    let is_good = rest.first_chunk().is_some_and(|sum| u32::from_le_bytes(*sum) == checksum(fields));
    let generation = fields.last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    Some(if is_good && generation < COUNTER_MAX { generation } else { 0 })
}

/// LSNs `from .. to` whose device writes failed: their records were written again elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoidRange {
    /// The first.
    pub from_lsn: u64,
    /// One past the last.
    pub to_lsn: u64,
}

/// Which segment a batch is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentId {
    /// Counts segments over all slots; each has its own.
    pub generation: u64,
    /// Chosen at random for each: behind what a segment holds lie the slot's leftovers, and in these what guests wrote, which
    /// may look like batches. 0: an early build's, which had none.
    pub salt: u32,
}

/// The first block of a slot in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The log that the slot belongs to; slots of another log are not read.
    pub log: Uuid,
    /// Its own.
    pub id: SegmentId,
    /// The LSN of the segment's first batch.
    pub start_lsn: u64,
    /// Every batch below was on stable storage when this was written.
    pub synced_lsn: u64,
    /// LSNs that mean nothing.
    pub voids: Vec<VoidRange>,
}

impl SegmentHeader {
    /// One block.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u64(SEGMENT_MAGIC);
        w.u16(VERSION);
        w.u16(0);
        w.u32(0); // the checksum, below
        w.uuid(self.log);
        w.u64(self.id.generation);
        w.u64(self.start_lsn);
        w.u64(self.synced_lsn);
        w.u32(self.voids.len().min(VOIDS_MAX) as u32);
        for void in self.voids.iter().take(VOIDS_MAX) {
            w.u64(void.from_lsn);
            w.u64(void.to_lsn);
        }
        w.u32(self.id.salt);
        let mut block = w.0;
        block.resize(BLOCK_BYTES, 0);
        seal(&mut block, 12);
        block
    }

    /// From a slot's first block.
    pub fn decode(block: &[u8]) -> Result<SegmentHeader, FormatError> {
        const WHAT: &str = "segment header";
        let block = block.get(..BLOCK_BYTES).ok_or(FormatError::Short {
            what: WHAT,
            expected: BLOCK_BYTES,
            found: block.len(),
        })?;
        let mut r = Reader::new(WHAT, block);
        if r.u64()? != SEGMENT_MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        check_version(WHAT, r.u16()?)?;
        r.u16()?;
        check_seal(WHAT, block, 12, r.u32()?)?;
        let (log, generation) = (r.uuid()?, r.counter("generation")?);
        let (start_lsn, synced_lsn) = (r.counter("start LSN")?, r.counter("synced LSN")?);
        let count = r.count("void ranges", 16)?;
        if count > VOIDS_MAX {
            return Err(r.field("void ranges", count as u64));
        }
        let mut voids = Vec::with_capacity(count);
        for _ in 0..count {
            voids.push(VoidRange { from_lsn: r.counter("void LSN")?, to_lsn: r.counter("void LSN")? });
        }
        let id = SegmentId { generation, salt: r.u32()? };
        Ok(SegmentHeader { log, id, start_lsn, synced_lsn, voids })
    }
}

/// What a record does to its clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordKind {
    /// They hold the data with these checksums, one per cluster, in the batch's payload.
    Data(Vec<u32>),
    /// They read as zeros.
    Zero,
}

/// One operation on a run of clusters of one vDisk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHeader {
    /// Whose.
    pub vdisk: VdiskId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Its place in the vDisk's accepted order.
    pub sequence: Sequence,
    /// The first cluster.
    pub cluster: Cluster,
    /// How many clusters.
    pub count: u64,
    /// What happens to them.
    pub kind: RecordKind,
}

/// The header of a batch. The payload follows it: the data clusters of its records in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchHeader {
    /// The segment that it is of: a slot's leftovers are of others.
    pub segment: SegmentId,
    /// The batch's number.
    pub lsn: u64,
    /// Every batch below was on stable storage when this was written.
    pub synced_lsn: u64,
    /// No batch below is needed, whatever of what was not on stable storage when this was written is lost. 0 where an
    /// early build wrote it, which meant less by it.
    pub floor_lsn: u64,
    /// The last batch of its segment, which then has no records.
    pub is_seal: bool,
    /// What it holds.
    pub records: Vec<RecordHeader>,
}

impl BatchHeader {
    /// Bytes of the encoded header: whole blocks.
    pub fn encoded_bytes(records: usize, data_clusters: usize) -> usize {
        (BATCH_FIXED_BYTES + records * RECORD_BYTES + data_clusters * 4).next_multiple_of(BLOCK_BYTES)
    }

    /// Data clusters in the payload.
    pub fn payload_clusters(&self) -> usize {
        self.records
            .iter()
            .map(|record| match &record.kind {
                RecordKind::Data(checksums) => checksums.len(),
                RecordKind::Zero => 0,
            })
            .sum()
    }

    /// Whole blocks.
    pub fn encode(&self) -> Vec<u8> {
        let data_clusters = self.payload_clusters();
        let length = Self::encoded_bytes(self.records.len(), data_clusters);
        let mut w = Writer(Vec::with_capacity(length));
        w.u64(BATCH_MAGIC);
        w.u16(VERSION);
        w.u16(u16::from(self.is_seal));
        w.u32(0); // the checksum, below
        w.u64(self.segment.generation);
        w.u64(self.lsn);
        w.u64(self.synced_lsn);
        w.u64(self.floor_lsn);
        w.u32(self.records.len() as u32);
        w.u32(data_clusters as u32);
        w.u32(length as u32);
        w.u32(self.segment.salt);
        for record in &self.records {
            w.uuid(record.vdisk.0);
            w.u64(record.epoch.0);
            w.u64(record.sequence.0);
            w.u64(record.cluster.0);
            w.u64(record.count);
            w.u8(match record.kind {
                RecordKind::Data(_) => 1,
                RecordKind::Zero => 2,
            });
            w.0.extend_from_slice(&[0; 7]);
        }
        for record in &self.records {
            if let RecordKind::Data(checksums) = &record.kind {
                checksums.iter().for_each(|checksum| w.u32(*checksum));
            }
        }
        let mut header = w.0;
        header.resize(length, 0);
        seal(&mut header, 12);
        header
    }

    /// How many bytes the header at the start of `block` (its first block at least) claims to have.
    pub fn claimed_bytes(block: &[u8]) -> Result<usize, FormatError> {
        const WHAT: &str = "batch header";
        let mut r = Reader::new(WHAT, block);
        if r.u64()? != BATCH_MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        check_version(WHAT, r.u16()?)?;
        r.take(2 + 4 + 32)?;
        let (records, clusters, length) = (r.u32()? as usize, r.u32()? as usize, r.u32()? as usize);
        let counts_are_possible = records <= BATCH_RECORDS_MAX && clusters <= BATCH_CLUSTERS_MAX;
        if !counts_are_possible || length != Self::encoded_bytes(records, clusters) {
            return Err(r.field("length", length as u64));
        }
        Ok(length)
    }

    /// From exactly the bytes that `claimed_bytes` told.
    pub fn decode(header: &[u8]) -> Result<BatchHeader, FormatError> {
        const WHAT: &str = "batch header";
        let length = Self::claimed_bytes(header)?;
        let header = header.get(..length).ok_or(FormatError::Short {
            what: WHAT,
            expected: length,
            found: header.len(),
        })?;
        let mut r = Reader::new(WHAT, header);
        r.take(10)?;
        let is_seal = r.u16()? != 0;
        check_seal(WHAT, header, 12, r.u32()?)?;
        let (generation, lsn) = (r.counter("generation")?, r.counter("LSN")?);
        let (synced_lsn, floor_lsn) = (r.counter("synced LSN")?, r.counter("floor LSN")?);
        let (count, clusters) = (r.u32()? as usize, r.u32()? as usize);
        r.u32()?;
        let segment = SegmentId { generation, salt: r.u32()? };
        let floor_lsn = if segment.salt == 0 { 0 } else { floor_lsn };
        let mut records = Vec::with_capacity(count);
        for _ in 0..count {
            let (vdisk, epoch) = (VdiskId(r.uuid()?), Epoch(r.counter("epoch")?));
            let sequence = Sequence(r.counter("sequence")?);
            let (cluster, cluster_count, kind) = (Cluster(r.u64()?), r.u64()?, r.u8()?);
            r.take(7)?;
            let kind = match kind {
                1 if cluster_count <= clusters as u64 => RecordKind::Data(Vec::new()),
                2 => RecordKind::Zero,
                _ => return Err(r.field("record kind or count", u64::from(kind))),
            };
            if cluster_count == 0 || cluster.0.checked_add(cluster_count).is_none_or(|end| end > 1 << 52) {
                return Err(r.field("record clusters", cluster_count));
            }
            records.push(RecordHeader { vdisk, epoch, sequence, cluster, count: cluster_count, kind });
        }
        let mut data_clusters = 0u64;
        for record in &mut records {
            if let RecordKind::Data(checksums) = &mut record.kind {
                data_clusters += record.count;
                if data_clusters > clusters as u64 {
                    return Err(r.field("data clusters", data_clusters));
                }
                for _ in 0..record.count {
                    checksums.push(r.u32()?);
                }
            }
        }
        if data_clusters != clusters as u64 {
            return Err(r.field("data clusters", data_clusters));
        }
        Ok(BatchHeader { segment, lsn, synced_lsn, floor_lsn, is_seal, records })
    }
}

fn check_version(what: &'static str, found: u16) -> Result<(), FormatError> {
    if found == VERSION { Ok(()) } else { Err(FormatError::Version { what, found: u64::from(found) }) }
}
