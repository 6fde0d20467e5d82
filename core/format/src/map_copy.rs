//! Copies of a vDisk's map on its backend, so that whoever has lost the local ones need not read the whole journal.
//!
//! A copy is parts full of map pages, and a root object that is put last: it names the parts, the roots of the maps and
//! the journal record after which the map is so. Pages keep the numbers that they had where the copy was made; they are
//! labels and nothing more.

use crate::cursor::{Reader, Writer};
use crate::journal::Position;
use crate::page::{self, CheckpointRecord};
use crate::{FormatError, check_seal, checksum, seal};
use bytes::Bytes;
use ovs_units::{PutId, VdiskId};

const ROOT_MAGIC: u64 = u64::from_le_bytes(*b"OVSMCR01");
const PART_MAGIC: u64 = u64::from_le_bytes(*b"OVSMCP01");
const VERSION: u16 = 1;
/// Magic, version, 0, checksum.
const HEAD_BYTES: usize = 8 + 2 + 2 + 4;
/// Where the checksum is.
const SUM_AT: usize = 12;
const ROOT: &str = "map copy";
const PART: &str = "part of a map copy";

/// What a root object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapCopy {
    /// Distinguishes it from every other attempt.
    pub put: PutId,
    /// The checksum of each part, in order.
    pub parts: Vec<u32>,
    /// The maps; its pages are in the parts.
    pub maps: CheckpointRecord,
    /// The vDisk's head as of that record, as the registry has it.
    pub head: Bytes,
}

impl MapCopy {
    /// The journal record after which the map is so.
    pub fn position(&self) -> Position {
        Position { epoch: self.maps.epoch, index: self.maps.index }
    }

    /// The object's bytes.
    pub fn encode(&self, vdisk: VdiskId) -> Vec<u8> {
        let mut w = open(ROOT_MAGIC, vdisk, self.put);
        w.u32(self.parts.len() as u32);
        self.parts.iter().for_each(|sum| w.u32(*sum));
        w.bytes(&self.maps.encode(vdisk));
        w.bytes(&self.head);
        close(w).0
    }

    /// From an object's bytes, which must be that vDisk's copy of that put.
    pub fn decode(bytes: &[u8], vdisk: VdiskId, put: PutId) -> Result<MapCopy, FormatError> {
        let mut r = check(ROOT, ROOT_MAGIC, bytes, vdisk, put)?;
        let count = r.count("parts", 4)?;
        let parts = (0..count).map(|_| r.u32()).collect::<Result<_, _>>()?;
        let length = r.count("checkpoint record", 1)?;
        let maps = CheckpointRecord::decode(vdisk, r.take(length)?)?;
        let length = r.count("head", 1)?;
        let head = Bytes::copy_from_slice(r.take(length)?);
        r.end()?;
        Ok(MapCopy { put, parts, maps, head })
    }
}

/// A part, while pages are added to it.
pub struct PartWriter {
    w: Writer,
    count_at: usize,
    count: u32,
}

impl PartWriter {
    /// Part `number` of the copy, counted from 0.
    pub fn new(vdisk: VdiskId, put: PutId, number: u32) -> PartWriter {
        let mut w = open(PART_MAGIC, vdisk, put);
        w.u32(number);
        let count_at = w.0.len();
        w.u32(0);
        PartWriter { w, count_at, count: 0 }
    }

    /// Adds a page as the local store has it.
    pub fn add(&mut self, label: u64, page: &[u8]) {
        self.w.u64(label);
        self.w.bytes(page);
        self.count += 1;
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.w.0.len()
    }

    /// Without any page?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The object's bytes, and their checksum for the root.
    pub fn finish(mut self) -> (Vec<u8>, u32) {
        self.w.0[self.count_at..self.count_at + 4].copy_from_slice(&self.count.to_le_bytes());
        close(self.w)
    }
}

/// The pages of a part, with their labels; each is checked when it is used.
pub fn decode_part(
    bytes: &[u8],
    vdisk: VdiskId,
    put: PutId,
    number: u32,
    sum: u32,
) -> Result<Vec<(u64, &[u8])>, FormatError> {
    let mut r = check(PART, PART_MAGIC, bytes, vdisk, put)?;
    let found = checksum(bytes);
    if found != sum {
        return Err(FormatError::Checksum { what: PART, expected: sum, found });
    }
    let told = r.u32()?;
    if told != number {
        return Err(r.field("number", u64::from(told)));
    }
    let count = r.count("pages", 12)?;
    let mut pages = Vec::with_capacity(count);
    for _ in 0..count {
        let label = r.u64()?;
        let length = r.count("bytes of a page", 1)?;
        pages.push((label, r.take(length)?));
    }
    r.end()?;
    Ok(pages)
}

/// Page `from` as page `to`, with other labels for its children; leaves and tables have none.
pub fn relabel(
    page: &[u8],
    from: u64,
    to: u64,
    mut label: impl FnMut(u64) -> u64,
) -> Result<Vec<u8>, FormatError> {
    match page.first() {
        Some(&(page::LEAF | page::PACKED_LEAF)) => {
            Ok(page::encode_leaf(to, &*page::decode_leaf(from, page)?))
        }
        Some(&(page::TABLE | page::MOVED_TABLE)) => {
            Ok(page::encode_table(to, &page::decode_table(from, page)?))
        }
        _ => {
            let mut children = page::decode_inner(from, page)?;
            for child in children.iter_mut().filter(|child| child.page != 0) {
                child.page = label(child.page);
            }
            Ok(page::encode_inner(to, &children))
        }
    }
}

fn open(magic: u64, vdisk: VdiskId, put: PutId) -> Writer {
    let mut w = Writer::default();
    w.u64(magic);
    w.u16(VERSION);
    w.u16(0);
    w.u32(0);
    w.uuid(vdisk.0);
    w.uuid(put.0);
    w
}

/// The object, and the checksum of all of it.
fn close(w: Writer) -> (Vec<u8>, u32) {
    let mut object = w.0;
    seal(&mut object, SUM_AT);
    let whole = checksum(&object);
    (object, whole)
}

fn check<'a>(
    what: &'static str,
    magic: u64,
    bytes: &'a [u8],
    vdisk: VdiskId,
    put: PutId,
) -> Result<Reader<'a>, FormatError> {
    if bytes.len() < HEAD_BYTES {
        return Err(FormatError::Short { what, expected: HEAD_BYTES, found: bytes.len() });
    }
    let mut r = Reader::new(what, bytes);
    if r.u64()? != magic {
        return Err(FormatError::Magic { what });
    }
    match r.u16()? {
        VERSION => {}
        found => return Err(FormatError::Version { what, found: u64::from(found) }),
    }
    r.u16()?;
    check_seal(what, bytes, SUM_AT, r.u32()?)?;
    if (r.uuid()?, r.uuid()?) != (vdisk.0, put.0) {
        return Err(r.field("identity", 0));
    }
    Ok(r)
}
