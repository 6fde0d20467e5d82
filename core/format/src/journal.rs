//! The journal of a vDisk on its backend: small objects that together say what the vDisk is.
//!
//! Each epoch's records have dense indexes from 0; record 0 is the start object and names the exact record of an older
//! epoch that it continues from. Following that chain from the highest epoch gives the vDisk; what older epochs wrote
//! past the point of continuation is not part of it.

use crate::cursor::{Reader, Writer};
use crate::page::{SCO_BYTES, read_sco, write_sco};
use crate::sco::ScoRef;
use crate::table::{ClusterSet, check_base, read_set, write_set};
use crate::{FormatError, check_seal, seal};
use bytes::Bytes;
use ovs_units::{ByteCount, Cluster, Epoch, JournalIndex, Name, ScoNumber, Sequence, SnapshotId, VdiskId};

const MAGIC: u64 = u64::from_le_bytes(*b"OVSJRN01");
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 8 + 2 + 2 + 4 + 16 + 8 + 8;
/// Where the checksum is.
const SUM_AT: usize = 12;
const WHAT: &str = "journal record";

/// A record of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The epoch that wrote it.
    pub epoch: Epoch,
    /// Its index there.
    pub index: JournalIndex,
}

/// Where a run of clusters lives after a TLog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Nowhere: they read as zeros.
    Zero,
    /// In the record's `sco`-th SCO, from cluster `offset` on.
    Sco {
        /// Its index in the record.
        sco: u32,
        /// The first cluster's index in it.
        offset: u32,
    },
}

/// "These clusters now live there."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlogEntry {
    /// The first cluster.
    pub cluster: Cluster,
    /// How many.
    pub count: u64,
    /// Where.
    pub target: Target,
}

/// What a journal record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An epoch begins.
    Start {
        /// The record that it continues from; none for a new vDisk.
        continues: Option<Position>,
        /// Operations of older epochs after this sequence never happened; [`Sequence::LAST`] when the epoch follows another in
        /// the same process.
        starts_after: Sequence,
        /// The vDisk's size when it was made (only with no `continues`).
        size: ByteCount,
        /// The parent's snapshot of a clone (only with no `continues`).
        base: Option<(VdiskId, SnapshotId)>,
        /// The vDisk's properties when it was made (only with no `continues`).
        properties: Bytes,
    },
    /// Clusters moved to the backend: everything up to `sequence` that no other record holds.
    Tlog {
        /// The last operation contained.
        sequence: Sequence,
        /// The SCOs that hold the data.
        scos: Vec<ScoRef>,
        /// In order; a later entry wins.
        entries: Vec<TlogEntry>,
    },
    /// A snapshot of everything up to `sequence`.
    Snapshot {
        /// Its identity.
        id: SnapshotId,
        /// Its name.
        name: Name,
        /// When, in wall-clock milliseconds since 1970.
        created_ms: u64,
        /// The last operation contained.
        sequence: Sequence,
        /// The vDisk's size then.
        size: ByteCount,
    },
    /// A snapshot is gone (or hidden while it has clones).
    SnapshotDelete {
        /// Which.
        id: SnapshotId,
    },
    /// From here on the vDisk is what it was at a snapshot.
    Rollback {
        /// Which.
        id: SnapshotId,
        /// The rollback's own place in the order.
        sequence: Sequence,
    },
    /// A new size; what is cut off reads as zeros if it ever comes back.
    Resize {
        /// The new size.
        size: ByteCount,
    },
    /// New opaque properties.
    Properties {
        /// As given by the service.
        properties: Bytes,
    },
    /// What is still needed of some SCOs is elsewhere now, and they go.
    Relocate {
        /// The SCOs that hold it.
        scos: Vec<ScoRef>,
        /// What was where.
        moves: Vec<Move>,
    },
}

/// Where the clusters of one SCO that are still needed are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The SCO as it was put, of the same vDisk.
    pub origin: (Epoch, ScoNumber),
    /// The index in the record of the SCO that holds them now, the first one's index there, and which of its clusters they
    /// are; none: none is needed.
    pub to: Option<(u32, u32, ClusterSet)>,
}

impl Record {
    /// The object's bytes.
    pub fn encode(&self, vdisk: VdiskId, position: Position) -> Vec<u8> {
        let mut w = Writer::default();
        w.u64(MAGIC);
        w.u16(VERSION);
        w.u16(self.kind());
        w.u32(0);
        w.uuid(vdisk.0);
        w.u64(position.epoch.0);
        w.u64(position.index.0);
        self.encode_body(&mut w);
        let mut record = w.0;
        seal(&mut record, SUM_AT);
        record
    }

    fn kind(&self) -> u16 {
        match self {
            Record::Start { .. } => 1,
            Record::Tlog { .. } => 2,
            Record::Snapshot { .. } => 3,
            Record::SnapshotDelete { .. } => 4,
            Record::Rollback { .. } => 5,
            Record::Resize { .. } => 6,
            Record::Properties { .. } => 7,
            Record::Relocate { .. } => 8,
        }
    }

    fn encode_body(&self, w: &mut Writer) {
        match self {
            Record::Start { continues, starts_after, size, base, properties } => {
                w.u8(u8::from(continues.is_some()));
                let at = continues.unwrap_or(Position { epoch: Epoch(0), index: JournalIndex(0) });
                w.u64(at.epoch.0);
                w.u64(at.index.0);
                w.u64(starts_after.0);
                w.u64(size.0);
                w.u8(u8::from(base.is_some()));
                if let Some((vdisk, snapshot)) = base {
                    w.uuid(vdisk.0);
                    w.uuid(snapshot.0);
                }
                w.bytes(properties);
            }
            Record::Tlog { sequence, scos, entries } => {
                w.u64(sequence.0);
                w.u32(scos.len() as u32);
                scos.iter().for_each(|sco| write_sco(w, sco));
                w.u32(entries.len() as u32);
                for entry in entries {
                    w.u64(entry.cluster.0);
                    w.u64(entry.count);
                    match entry.target {
                        Target::Zero => w.u64(0),
                        Target::Sco { sco, offset } => w.u64((u64::from(sco) + 1) << 32 | u64::from(offset)),
                    }
                }
            }
            Record::Snapshot { id, name, created_ms, sequence, size } => {
                w.uuid(id.0);
                w.bytes(name.as_str().as_bytes());
                w.u64(*created_ms);
                w.u64(sequence.0);
                w.u64(size.0);
            }
            Record::SnapshotDelete { id } => w.uuid(id.0),
            Record::Rollback { id, sequence } => {
                w.uuid(id.0);
                w.u64(sequence.0);
            }
            Record::Resize { size } => w.u64(size.0),
            Record::Properties { properties } => w.bytes(properties),
            Record::Relocate { scos, moves } => {
                w.u32(scos.len() as u32);
                scos.iter().for_each(|sco| write_sco(w, sco));
                w.u32(moves.len() as u32);
                moves.iter().for_each(|moved| write_move(w, moved));
            }
        }
    }

    /// From an object's bytes, which must be the record of that vDisk at that position.
    pub fn decode(bytes: &[u8], vdisk: VdiskId, position: Position) -> Result<Record, FormatError> {
        if bytes.len() < HEAD_BYTES {
            return Err(FormatError::Short { what: WHAT, expected: HEAD_BYTES, found: bytes.len() });
        }
        let mut r = Reader::new(WHAT, bytes);
        if r.u64()? != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        match r.u16()? {
            VERSION => {}
            found => return Err(FormatError::Version { what: WHAT, found: u64::from(found) }),
        }
        let (kind, expected) = (r.u16()?, r.u32()?);
        check_seal(WHAT, bytes, SUM_AT, expected)?;
        let identity = (VdiskId(r.uuid()?), Epoch(r.counter("epoch")?), JournalIndex(r.counter("index")?));
        if identity != (vdisk, position.epoch, position.index) {
            return Err(r.field("identity", identity.2.0));
        }
        let record = Self::decode_body(kind, &mut r)?;
        r.end()?;
        Ok(record)
    }

    fn decode_body(kind: u16, r: &mut Reader<'_>) -> Result<Record, FormatError> {
        Ok(match kind {
            1 => {
                let continues = r.u8()? != 0;
                let at =
                    Position { epoch: Epoch(r.counter("epoch")?), index: JournalIndex(r.counter("index")?) };
                let (starts_after, size) = (Sequence(r.counter("sequence")?), r.size("size")?);
                let base = match r.u8()? {
                    0 => None,
                    _ => Some((VdiskId(r.uuid()?), SnapshotId(r.uuid()?))),
                };
                let properties = read_bytes(r)?;
                Record::Start { continues: continues.then_some(at), starts_after, size, base, properties }
            }
            2 => {
                let sequence = Sequence(r.counter("sequence")?);
                let count = r.count("SCOs", SCO_BYTES)?;
                let scos = (0..count).map(|_| read_sco(r)).collect::<Result<Vec<_>, _>>()?;
                let count = r.count("entries", 24)?;
                let entries = (0..count).map(|_| read_entry(r, &scos)).collect::<Result<_, _>>()?;
                Record::Tlog { sequence, scos, entries }
            }
            3 => {
                let id = SnapshotId(r.uuid()?);
                let name = read_bytes(r)?;
                let name = std::str::from_utf8(&name).ok().and_then(|text| Name::new(text).ok());
                let name = name.ok_or_else(|| r.field("snapshot name", 0))?;
                Record::Snapshot {
                    id,
                    name,
                    created_ms: r.u64()?,
                    sequence: Sequence(r.counter("sequence")?),
                    size: r.size("size")?,
                }
            }
            4 => Record::SnapshotDelete { id: SnapshotId(r.uuid()?) },
            5 => Record::Rollback { id: SnapshotId(r.uuid()?), sequence: Sequence(r.counter("sequence")?) },
            6 => Record::Resize { size: r.size("size")? },
            7 => Record::Properties { properties: read_bytes(r)? },
            8 => {
                let count = r.count("SCOs", SCO_BYTES)?;
                let scos = (0..count).map(|_| read_sco(r)).collect::<Result<Vec<_>, _>>()?;
                let count = r.count("moves", 20)?;
                let moves = (0..count).map(|_| read_move(r, &scos)).collect::<Result<_, _>>()?;
                Record::Relocate { scos, moves }
            }
            other => return Err(r.field("kind", u64::from(other))),
        })
    }
}

fn read_bytes(r: &mut Reader<'_>) -> Result<Bytes, FormatError> {
    let length = r.count("length", 1)?;
    r.take(length).map(Bytes::copy_from_slice)
}

fn write_move(w: &mut Writer, moved: &Move) {
    w.u64(moved.origin.0.0);
    w.u64(moved.origin.1.0);
    match &moved.to {
        None => w.u32(0),
        Some((sco, base, kept)) => {
            w.u32(sco + 1);
            w.u32(*base);
            write_set(w, kept);
        }
    }
}

fn read_move(r: &mut Reader<'_>, scos: &[ScoRef]) -> Result<Move, FormatError> {
    let origin = (Epoch(r.counter("epoch")?), ScoNumber(r.counter("number")?));
    let to = match r.u32()? {
        0 => None,
        sco => {
            let (index, base) = (sco - 1, r.u32()?);
            let kept = read_set(r)?;
            let sco = scos.get(index as usize).ok_or_else(|| r.field("SCO of a move", u64::from(index)))?;
            check_base(r, &kept, sco, base)?;
            Some((index, base, kept))
        }
    };
    Ok(Move { origin, to })
}

fn read_entry(r: &mut Reader<'_>, scos: &[ScoRef]) -> Result<TlogEntry, FormatError> {
    let (cluster, count, packed) = (Cluster(r.u64()?), r.u64()?, r.u64()?);
    if count == 0 || cluster.0.checked_add(count).is_none_or(|end| end > 1 << 52) {
        return Err(r.field("entry clusters", count));
    }
    let target = match (packed >> 32, packed as u32) {
        (0, 0) => Target::Zero,
        (sco, offset) => {
            let sco = (sco as u32).wrapping_sub(1);
            let holds = scos.get(sco as usize).map_or(0, |sco| u64::from(sco.cluster_count));
            if u64::from(offset).checked_add(count).is_none_or(|end| end > holds) {
                return Err(r.field("entry target", packed));
            }
            Target::Sco { sco, offset }
        }
    };
    Ok(TlogEntry { cluster, count, target })
}
