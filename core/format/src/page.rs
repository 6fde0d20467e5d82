//! Map pages and checkpoint records as they are kept in the local page store. Each says which one it is, so that a store that
//! mistakes one for another is found out.

use crate::cursor::{Reader, Writer};
use crate::leaf::{Packed, read_place};
use crate::sco::ScoRef;
use crate::table::{TableEntry, read_entry, write_entry};
use crate::{FormatError, checksum};
use ovs_units::{Epoch, JournalIndex, PutId, ScoNumber, Sequence, SnapshotId, VdiskId};

/// Entries of a page.
pub const FANOUT: usize = 512;
/// SCOs in one chunk of a vDisk's table.
pub const TABLE_CHUNK: usize = 256;

const VERSION: u8 = 2;
pub(crate) const LEAF: u8 = 1;
const INNER: u8 = 2;
pub(crate) const TABLE: u8 = 3;
const RECORD: u8 = 4;
/// A table in which some SCOs were moved or are gone.
pub(crate) const MOVED_TABLE: u8 = 5;
pub(crate) const PACKED_LEAF: u8 = 6;

/// A child of an inner page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChildEntry {
    /// The stored page; 0: no child.
    pub page: u64,
    /// Clusters mapped below it.
    pub mapped: u64,
}

/// 512 places of at most [`PLACE_MAX`], of which most may be 0 (unmapped).
#[derive(Debug)]
pub enum Leaf {
    /// As they are.
    Plain(Box<[u64; FANOUT]>),
    /// In less.
    Packed(Packed),
}

/// Page `number`, packed if that is less.
pub fn encode_leaf(number: u64, places: &[u64; FANOUT]) -> Vec<u8> {
    if let Some(packed) = Packed::new(places) {
        return encode_packed_leaf(number, &packed);
    }
    let mut w = open_page(LEAF, number);
    let mut present = [0u8; FANOUT / 8];
    for (index, _) in places.iter().enumerate().filter(|(_, place)| **place != 0) {
        present[index / 8] |= 1 << (index % 8);
    }
    w.0.extend_from_slice(&present);
    places.iter().filter(|place| **place != 0).for_each(|place| w.u64(*place));
    close(w)
}

/// The same of what is packed already.
pub fn encode_packed_leaf(number: u64, packed: &Packed) -> Vec<u8> {
    let mut w = open_page(PACKED_LEAF, number);
    packed.write(&mut w);
    close(w)
}

/// The reverse of both.
pub fn decode_leaf(number: u64, bytes: &[u8]) -> Result<Box<[u64; FANOUT]>, FormatError> {
    read_leaf(number, bytes).map(|leaf| match leaf {
        Leaf::Plain(places) => places,
        Leaf::Packed(packed) => packed.places(),
    })
}

/// The same, as it is kept.
pub fn read_leaf(number: u64, bytes: &[u8]) -> Result<Leaf, FormatError> {
    const WHAT: &str = "map leaf";
    if bytes.first() == Some(&PACKED_LEAF) {
        let mut r = check_page(WHAT, PACKED_LEAF, number, bytes)?;
        let packed = Packed::read(&mut r)?;
        r.end()?;
        return Ok(Leaf::Packed(packed));
    }
    let mut r = check_page(WHAT, LEAF, number, bytes)?;
    let present = r.take(FANOUT / 8)?;
    let mut places = Box::new([0; FANOUT]);
    for (index, place) in places.iter_mut().enumerate() {
        if present[index / 8] & (1 << (index % 8)) != 0 {
            *place = read_place(&mut r)?;
            if *place == 0 {
                return Err(r.field("place", 0));
            }
        }
    }
    r.end()?;
    Ok(Leaf::Plain(places))
}

/// Page `number`: 512 children.
pub fn encode_inner(number: u64, children: &[ChildEntry; FANOUT]) -> Vec<u8> {
    let mut w = open_page(INNER, number);
    w.u32(children.iter().filter(|child| child.page != 0).count() as u32);
    for (index, child) in children.iter().enumerate().filter(|(_, child)| child.page != 0) {
        w.u16(index as u16);
        w.u64(child.page);
        w.u64(child.mapped);
    }
    close(w)
}

/// The reverse of [`encode_inner`].
pub fn decode_inner(number: u64, bytes: &[u8]) -> Result<Box<[ChildEntry; FANOUT]>, FormatError> {
    const WHAT: &str = "map page";
    let mut r = check_page(WHAT, INNER, number, bytes)?;
    let mut children = Box::new([ChildEntry::default(); FANOUT]);
    for _ in 0..r.count("children", 18)? {
        let index = usize::from(r.u16()?);
        let child = ChildEntry { page: r.u64()?, mapped: r.u64()? };
        match children.get_mut(index) {
            Some(slot) if child.page != 0 && slot.page == 0 => *slot = child,
            _ => return Err(r.field("child index", index as u64)),
        }
    }
    r.end()?;
    Ok(children)
}

/// Page `number`: up to 256 entries of a table.
pub fn encode_table(number: u64, entries: &[TableEntry]) -> Vec<u8> {
    let as_put = |entry: &TableEntry| if let TableEntry::Put(sco) = entry { Some(*sco) } else { None };
    let scos: Option<Vec<ScoRef>> = entries.iter().map(as_put).collect();
    let mut w = open_page(if scos.is_some() { TABLE } else { MOVED_TABLE }, number);
    w.u32(entries.len() as u32);
    match scos {
        Some(scos) => scos.iter().for_each(|sco| write_sco(&mut w, sco)),
        None => entries.iter().for_each(|entry| write_entry(&mut w, entry)),
    }
    close(w)
}

/// The reverse of [`encode_table`].
pub fn decode_table(number: u64, bytes: &[u8]) -> Result<Vec<TableEntry>, FormatError> {
    const WHAT: &str = "SCO table";
    let is_plain = bytes.first() != Some(&MOVED_TABLE);
    let mut r = check_page(WHAT, if is_plain { TABLE } else { MOVED_TABLE }, number, bytes)?;
    let count = r.count("SCOs", if is_plain { SCO_BYTES } else { 1 })?;
    if count > TABLE_CHUNK {
        return Err(r.field("SCOs", count as u64));
    }
    let entry = |_| if is_plain { read_sco(&mut r).map(TableEntry::Put) } else { read_entry(&mut r) };
    let entries = (0..count).map(entry).collect::<Result<_, _>>()?;
    r.end()?;
    Ok(entries)
}

/// Bytes of one SCO reference.
pub(crate) const SCO_BYTES: usize = 16 + 8 + 8 + 16 + 4 + 4;

pub(crate) fn write_sco(w: &mut Writer, sco: &ScoRef) {
    w.uuid(sco.vdisk.0);
    w.u64(sco.epoch.0);
    w.u64(sco.number.0);
    w.uuid(sco.put.0);
    w.u32(sco.cluster_count);
    w.u32(sco.header_checksum);
}

pub(crate) fn read_sco(r: &mut Reader<'_>) -> Result<ScoRef, FormatError> {
    let sco = ScoRef {
        vdisk: VdiskId(r.uuid()?),
        epoch: Epoch(r.counter("epoch")?),
        number: ScoNumber(r.counter("number")?),
        put: PutId(r.uuid()?),
        cluster_count: r.u32()?,
        header_checksum: r.u32()?,
    };
    if sco.cluster_count == 0 || sco.cluster_count as usize > crate::sco::CLUSTERS_MAX {
        return Err(r.field("clusters of an SCO", u64::from(sco.cluster_count)));
    }
    Ok(sco)
}

/// A tree of pages: its root and what is mapped in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RootEntry {
    /// The root page; 0: nothing is mapped.
    pub page: u64,
    /// Clusters mapped.
    pub mapped: u64,
}

/// What a checkpoint of a vDisk says: the map as of one journal position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// The journal position that the checkpoint contains.
    pub epoch: Epoch,
    /// The record there.
    pub index: JournalIndex,
    /// The sequence committed there.
    pub sequence: Sequence,
    /// The writable map.
    pub root: RootEntry,
    /// Full and last chunks of the SCO table, in order.
    pub table_pages: Vec<u64>,
    /// The maps of the snapshots.
    pub snapshots: Vec<(SnapshotId, RootEntry)>,
}

impl CheckpointRecord {
    /// As stored under that vDisk.
    pub fn encode(&self, vdisk: VdiskId) -> Vec<u8> {
        let mut w = open(RECORD);
        w.uuid(vdisk.0);
        w.u64(self.epoch.0);
        w.u64(self.index.0);
        w.u64(self.sequence.0);
        w.u64(self.root.page);
        w.u64(self.root.mapped);
        w.u32(self.table_pages.len() as u32);
        self.table_pages.iter().for_each(|page| w.u64(*page));
        w.u32(self.snapshots.len() as u32);
        for (id, root) in &self.snapshots {
            w.uuid(id.0);
            w.u64(root.page);
            w.u64(root.mapped);
        }
        close(w)
    }

    /// The reverse of [`CheckpointRecord::encode`].
    pub fn decode(vdisk: VdiskId, bytes: &[u8]) -> Result<CheckpointRecord, FormatError> {
        const WHAT: &str = "checkpoint record";
        let mut r = check(WHAT, RECORD, bytes)?;
        let found = r.uuid()?;
        if found != vdisk.0 {
            return Err(r.field("vDisk", found.as_u128() as u64));
        }
        let (epoch, index, sequence) =
            (Epoch(r.counter("epoch")?), JournalIndex(r.counter("index")?), Sequence(r.counter("sequence")?));
        let root = RootEntry { page: r.u64()?, mapped: r.u64()? };
        let count = r.count("table pages", 8)?;
        let table_pages = (0..count).map(|_| r.u64()).collect::<Result<_, _>>()?;
        let count = r.count("snapshots", 32)?;
        let mut snapshots = Vec::with_capacity(count);
        for _ in 0..count {
            snapshots.push((SnapshotId(r.uuid()?), RootEntry { page: r.u64()?, mapped: r.u64()? }));
        }
        r.end()?;
        Ok(CheckpointRecord { epoch, index, sequence, root, table_pages, snapshots })
    }
}

/// A page starts with its kind and version, then a checksum of the rest.
fn open(kind: u8) -> Writer {
    let mut w = Writer::default();
    w.u8(kind);
    w.u8(VERSION);
    w.u16(0);
    w.u32(0);
    w
}

fn open_page(kind: u8, number: u64) -> Writer {
    let mut w = open(kind);
    w.u64(number);
    w
}

fn close(w: Writer) -> Vec<u8> {
    let mut page = w.0;
    let sum = checksum(&page[8..]);
    page[4..8].copy_from_slice(&sum.to_le_bytes());
    page
}

fn check<'a>(what: &'static str, kind: u8, bytes: &'a [u8]) -> Result<Reader<'a>, FormatError> {
    let mut r = Reader::new(what, bytes);
    if r.u8()? != kind {
        return Err(FormatError::Magic { what });
    }
    match r.u8()? {
        VERSION => {}
        found => return Err(FormatError::Version { what, found: u64::from(found) }),
    }
    r.u16()?;
    let (expected, found) = (r.u32()?, checksum(bytes.get(8..).unwrap_or_default()));
    if expected != found {
        return Err(FormatError::Checksum { what, expected, found });
    }
    Ok(r)
}

fn check_page<'a>(
    what: &'static str,
    kind: u8,
    number: u64,
    bytes: &'a [u8],
) -> Result<Reader<'a>, FormatError> {
    let mut r = check(what, kind, bytes)?;
    let found = r.u64()?;
    if found == number { Ok(r) } else { Err(r.field("number", found)) }
}
