//! An entry of a vDisk's SCO table: where the clusters of one SCO are now.
//!
//! Places in a map name an entry and a cluster of the SCO as it was put, for ever. Scrub moves the clusters that are still needed
//! into other SCOs and changes only the entry.

use crate::FormatError;
use crate::cursor::{Reader, Writer};
use crate::page::{read_sco, write_sco};
use crate::sco::{CLUSTERS_MAX, ScoRef};
use ovs_units::{Epoch, ScoNumber};
use std::rc::Rc;

const PUT: u8 = 0;
const MOVED: u8 = 1;
const GONE: u8 = 2;

/// Where the clusters of an SCO are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableEntry {
    /// In it, as it was put.
    Put(ScoRef),
    /// Those that are needed are in another.
    Moved(Rc<Moved>),
    /// Nobody needs any.
    Gone,
}

/// An SCO whose needed clusters lie together, in their order, in another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The SCO, of the same vDisk.
    pub origin: (Epoch, ScoNumber),
    /// Where its clusters are.
    pub sco: ScoRef,
    /// The first one's index there.
    pub base: u32,
    /// Which of its clusters are there.
    pub kept: ClusterSet,
}

impl Moved {
    /// Where clusters `offset ..  offset + count` of the SCO begin in the other, if all of them are there.
    pub fn offset_of(&self, offset: u32, count: u32) -> Option<u32> {
        self.kept.contains_all(offset, count).then(|| self.base + self.kept.count_before(offset))
    }
}

impl TableEntry {
    /// The SCO that is there for it.
    pub fn sco(&self) -> Option<&ScoRef> {
        match self {
            TableEntry::Put(sco) => Some(sco),
            TableEntry::Moved(moved) => Some(&moved.sco),
            TableEntry::Gone => None,
        }
    }

    /// The SCO that places know it as; what is gone has no name any more.
    pub fn origin(&self) -> Option<(Epoch, ScoNumber)> {
        match self {
            TableEntry::Put(sco) => Some((sco.epoch, sco.number)),
            TableEntry::Moved(moved) => Some(moved.origin),
            TableEntry::Gone => None,
        }
    }
}

/// Some of the clusters of an SCO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSet {
    length: u32,
    words: Vec<u64>,
}

impl ClusterSet {
    /// None of so many.
    pub fn none_of(length: u32) -> ClusterSet {
        ClusterSet { length, words: vec![0; length.div_ceil(64) as usize] }
    }

    /// Of how many.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Adds clusters; those behind the end are left out.
    pub fn insert(&mut self, offset: u32, count: u32) {
        for at in offset..offset.saturating_add(count).min(self.length) {
            self.words[(at / 64) as usize] |= 1 << (at % 64);
        }
    }

    /// Is the cluster in it?
    pub fn contains(&self, offset: u32) -> bool {
        offset < self.length && self.words[(offset / 64) as usize] & (1 << (offset % 64)) != 0
    }

    fn contains_all(&self, offset: u32, count: u32) -> bool {
        let end = offset.checked_add(count).filter(|end| *end <= self.length);
        end.is_some_and(|end| (offset..end).all(|at| self.contains(at)))
    }

    fn count_before(&self, offset: u32) -> u32 {
        let (whole, rest) = (offset as usize / 64, offset % 64);
        let ones: u32 = self.words[..whole].iter().map(|word| word.count_ones()).sum();
        ones + if rest == 0 { 0 } else { (self.words[whole] & ((1 << rest) - 1)).count_ones() }
    }

    /// Is each of them in the other, which is of as many?
    pub fn is_within(&self, other: &ClusterSet) -> bool {
        let is_in = |(word, other): (&u64, &u64)| word & !other == 0;
        self.length == other.length && self.words.iter().zip(&other.words).all(is_in)
    }

    /// How many are in it.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Those in it, in order, as runs: offset and count.
    pub fn runs(&self) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for at in (0..self.length).filter(|at| self.contains(*at)) {
            match runs.last_mut() {
                Some((offset, count)) if *offset + *count == at => *count += 1,
                _ => runs.push((at, 1)),
            }
        }
        runs
    }
}

pub(crate) fn write_set(w: &mut Writer, set: &ClusterSet) {
    w.u32(set.length);
    set.words.iter().for_each(|word| w.u64(*word));
}

pub(crate) fn read_set(r: &mut Reader<'_>) -> Result<ClusterSet, FormatError> {
    let length = r.u32()?;
    if length == 0 || length as usize > CLUSTERS_MAX {
        return Err(r.field("clusters of a set", u64::from(length)));
    }
    let words: Vec<u64> = (0..length.div_ceil(64)).map(|_| r.u64()).collect::<Result<_, _>>()?;
    let rest = length % 64;
    let last = words.last().copied().unwrap_or_default();
    if rest != 0 && last >> rest != 0 {
        return Err(r.field("last clusters of a set", last));
    }
    Ok(ClusterSet { length, words })
}

/// Do all clusters of the set fit into the SCO from `base` on?
pub(crate) fn check_base(
    r: &Reader<'_>,
    kept: &ClusterSet,
    sco: &ScoRef,
    base: u32,
) -> Result<(), FormatError> {
    match base.checked_add(kept.count()) {
        Some(end) if end <= sco.cluster_count => Ok(()),
        _ => Err(r.field("first cluster of a moved SCO", u64::from(base))),
    }
}

pub(crate) fn write_entry(w: &mut Writer, entry: &TableEntry) {
    match entry {
        TableEntry::Put(sco) => {
            w.u8(PUT);
            write_sco(w, sco);
        }
        TableEntry::Moved(moved) => {
            w.u8(MOVED);
            w.u64(moved.origin.0.0);
            w.u64(moved.origin.1.0);
            write_sco(w, &moved.sco);
            w.u32(moved.base);
            write_set(w, &moved.kept);
        }
        TableEntry::Gone => w.u8(GONE),
    }
}

pub(crate) fn read_entry(r: &mut Reader<'_>) -> Result<TableEntry, FormatError> {
    Ok(match r.u8()? {
        PUT => TableEntry::Put(read_sco(r)?),
        MOVED => {
            let origin = (Epoch(r.counter("epoch")?), ScoNumber(r.counter("number")?));
            let (sco, base) = (read_sco(r)?, r.u32()?);
            let kept = read_set(r)?;
            check_base(r, &kept, &sco, base)?;
            TableEntry::Moved(Rc::new(Moved { origin, sco, base, kept }))
        }
        GONE => TableEntry::Gone,
        other => return Err(r.field("kind of a table entry", u64::from(other))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_moved_lies_together_in_its_order() {
        let mut kept = ClusterSet::none_of(200);
        kept.insert(3, 2);
        kept.insert(63, 3);
        kept.insert(199, 9);
        assert_eq!((kept.count(), kept.runs()), (6, vec![(3, 2), (63, 3), (199, 1)]));
        let id = uuid::Uuid::nil();
        let sco = ScoRef {
            vdisk: ovs_units::VdiskId(id),
            epoch: Epoch(1),
            number: ScoNumber(2),
            put: ovs_units::PutId(id),
            cluster_count: 100,
            header_checksum: 0,
        };
        let moved = Moved { origin: (Epoch(1), ScoNumber(1)), sco, base: 10, kept };
        let found = [(3, 1), (3, 2), (4, 1), (63, 3), (64, 1), (199, 1)];
        assert_eq!(
            found.map(|(offset, count)| moved.offset_of(offset, count)),
            [Some(10), Some(10), Some(11), Some(12), Some(13), Some(15)]
        );
        let not_there = [(2, 1), (3, 3), (65, 2), (199, 2), (200, 1), (u32::MAX, 2)];
        assert_eq!(not_there.map(|(offset, count)| moved.offset_of(offset, count)), [None; 6]);
    }

    #[test]
    fn a_set_ends_where_it_ends() {
        let mut set = ClusterSet::none_of(64);
        set.insert(63, 5);
        // Again: what is in it stays.
        set.insert(60, 4);
        assert_eq!((set.count(), set.runs()), (4, vec![(60, 4)]));
        assert_eq!([59, 60, 63, 64, u32::MAX].map(|at| set.contains(at)), [false, true, true, false, false]);
    }

    #[test]
    fn a_set_is_within_one_that_has_all_of_it() {
        let set = |length, offset, count| {
            let mut set = ClusterSet::none_of(length);
            set.insert(offset, count);
            set
        };
        let large = set(70, 3, 65);
        for (small, expected) in [
            (large.clone(), true),
            (set(70, 5, 9), true),
            (set(70, 3, 0), true),
            (set(70, 2, 2), false),
            (set(70, 64, 6), false),
            (set(69, 5, 9), false),
        ] {
            assert_eq!(small.is_within(&large), expected, "{:?}", small.runs());
        }
    }
}
