//! The SCO table of a vDisk: places name SCOs by their index here, so that a clone, which starts with its parent's
//! table, can have parents without limit. Scrub changes where an entry's clusters are, never what a place means.

use super::Place;
use crate::{PageId, PageStore, VolumeError};
use ovs_format::journal::Move;
use ovs_format::page::{self, TABLE_CHUNK};
use ovs_format::sco::ScoRef;
use ovs_format::table::{Moved, TableEntry};
use ovs_units::{Epoch, PutId, ScoNumber, VdiskId, planted};
use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, HashSet},
    rc::Rc,
};

/// Grows only. Cheap to clone: chunks are shared.
#[derive(Clone, Default)]
pub(crate) struct Table {
    pub(super) chunks: Vec<Rc<Chunk>>,
}

#[derive(Clone)]
pub(super) struct Chunk {
    /// Its number in the page store; 0 while it is not stored as it is.
    pub(super) id: Cell<u64>,
    pub(super) scos: Vec<TableEntry>,
}

impl Table {
    /// Chunks that were not changed since they were stored.
    pub(crate) fn stored_pages(&self) -> impl Iterator<Item = u64> {
        self.chunks.iter().map(|chunk| chunk.id.get()).filter(|page| *page != 0)
    }

    pub(crate) fn len(&self) -> u64 {
        self.chunks.last().map_or(0, |last| ((self.chunks.len() - 1) * TABLE_CHUNK + last.scos.len()) as u64)
    }

    pub(crate) fn get(&self, index: u64) -> Option<&TableEntry> {
        let chunk = self.chunks.get((index / TABLE_CHUNK as u64) as usize)?;
        chunk.scos.get((index % TABLE_CHUNK as u64) as usize)
    }

    /// In which SCO, and where in it, `count` clusters from a place on are.
    pub(crate) fn find(&self, place: Place, count: u32) -> Option<(&ScoRef, u32)> {
        match self.get(place.sco)? {
            TableEntry::Put(sco) => Some((sco, place.offset)),
            TableEntry::Moved(moved) => Some((&moved.sco, moved.offset_of(place.offset, count)?)),
            TableEntry::Gone => None,
        }
    }

    pub(crate) fn push(&mut self, sco: ScoRef) {
        let sco = TableEntry::Put(sco);
        match self.chunks.last_mut() {
            Some(last) if last.scos.len() < TABLE_CHUNK => {
                let chunk = Rc::make_mut(last);
                chunk.scos.push(sco);
                chunk.id.set(0);
            }
            _ => self.chunks.push(Rc::new(Chunk { id: Cell::new(0), scos: vec![sco] })),
        }
    }

    /// Is anything in it another vDisk's, and is anything the vDisk's own?
    pub(crate) fn whose(&self, vdisk: VdiskId) -> (bool, bool) {
        let scos = || self.chunks.iter().flat_map(|chunk| &chunk.scos).filter_map(TableEntry::sco);
        (scos().any(|sco| sco.vdisk != vdisk), scos().any(|sco| sco.vdisk == vdisk))
    }

    /// The entries whose clusters the vDisk itself has put, with their indexes. A clone has its parent's as well.
    pub(crate) fn entries_of(&self, vdisk: VdiskId) -> impl Iterator<Item = (u64, &TableEntry)> {
        let all = self.chunks.iter().flat_map(|chunk| &chunk.scos).zip(0..);
        let own = all.filter(move |(entry, _)| entry.sco().is_some_and(|sco| sco.vdisk == vdisk));
        own.map(|(entry, index)| (index, entry))
    }

    /// The SCOs that the vDisk itself has put and that are needed, with the entries that are there. In the order in which they
    /// were put.
    pub(crate) fn scos_of(&self, vdisk: VdiskId) -> Vec<(ScoRef, Vec<u64>)> {
        let mut scos: BTreeMap<(Epoch, ScoNumber, PutId), (ScoRef, Vec<u64>)> = BTreeMap::new();
        for (index, entry) in self.entries_of(vdisk) {
            let Some(sco) = entry.sco() else { continue };
            scos.entry((sco.epoch, sco.number, sco.put)).or_insert((*sco, Vec::new())).1.push(index);
        }
        scos.into_values().collect()
    }

    /// Bytes of the objects of [`Table::scos_of`], without a list of all.
    pub(crate) fn bytes_of(&self, vdisk: VdiskId) -> u64 {
        // An SCO that was put once has one entry; several may have been moved into the same.
        let mut moved_to: HashSet<(Epoch, ScoNumber, PutId)> = HashSet::new();
        let mut bytes = 0;
        for (_, entry) in self.entries_of(vdisk) {
            bytes += match entry {
                TableEntry::Put(sco) => sco.object_bytes(),
                TableEntry::Moved(moved) => {
                    let ScoRef { epoch, number, put, .. } = moved.sco;
                    if moved_to.insert((epoch, number, put)) { moved.sco.object_bytes() } else { 0 }
                }
                TableEntry::Gone => 0,
            };
        }
        bytes
    }

    /// What a journal record says of the vDisk's own SCOs. Nothing is changed when it cannot be.
    pub(crate) fn relocate(
        &mut self,
        vdisk: VdiskId,
        scos: &[ScoRef],
        moves: &[Move],
    ) -> Result<(), VolumeError> {
        let wanted: HashMap<(Epoch, ScoNumber), &Move> =
            moves.iter().map(|moved| (moved.origin, moved)).collect();
        let find = |(index, entry): (u64, &TableEntry)| {
            entry.origin().and_then(|origin| wanted.get(&origin)).map(|moved| (index, *moved))
        };
        let found: Vec<(u64, &Move)> = self.entries_of(vdisk).filter_map(find).collect();
        if found.len() != moves.len() || scos.iter().any(|sco| sco.vdisk != vdisk) {
            return Err(VolumeError::Damaged(format!(
                "a journal record of vDisk {vdisk} moves {} SCOs, of which its table has {}",
                moves.len(),
                found.len()
            )));
        }
        for (index, moved) in &found {
            let entry = self.get(*index).filter(|entry| is_possible(entry, moved));
            entry.ok_or_else(|| {
                let (epoch, number) = moved.origin;
                VolumeError::Damaged(format!(
                    "a journal record of vDisk {vdisk} moves clusters of SCO {epoch}-{number} that are not there"
                ))
            })?;
        }
        for (index, moved) in found {
            let chunk = Rc::make_mut(&mut self.chunks[(index / TABLE_CHUNK as u64) as usize]);
            chunk.scos[(index % TABLE_CHUNK as u64) as usize] = match &moved.to {
                None => TableEntry::Gone,
                Some((sco, base, kept)) => TableEntry::Moved(Rc::new(Moved {
                    origin: moved.origin,
                    sco: scos[*sco as usize],
                    base: base + u32::from(planted("scrub: a place is off by one")),
                    kept: kept.clone(),
                })),
            };
            chunk.id.set(0);
        }
        Ok(())
    }

    /// From the page store.
    pub(crate) async fn load(store: &dyn PageStore, pages: &[u64]) -> Result<Table, VolumeError> {
        let mut chunks = Vec::with_capacity(pages.len());
        for (index, id) in pages.iter().enumerate() {
            let damaged = |what: String| VolumeError::Damaged(format!("SCO table page {id}: {what}"));
            let bytes = store.load(PageId(*id)).await?.ok_or_else(|| damaged("missing".into()))?;
            let scos = page::decode_table(*id, &bytes).map_err(|error| damaged(error.to_string()))?;
            if scos.len() < TABLE_CHUNK && index + 1 < pages.len() {
                return Err(damaged("too short".into()));
            }
            chunks.push(Rc::new(Chunk { id: Cell::new(*id), scos }));
        }
        Ok(Table { chunks })
    }
}

/// What is kept of an SCO was there before.
fn is_possible(entry: &TableEntry, moved: &Move) -> bool {
    let Some((_, _, kept)) = &moved.to else { return true };
    match entry {
        TableEntry::Put(sco) => kept.length() == sco.cluster_count,
        TableEntry::Moved(before) => kept.is_within(&before.kept),
        TableEntry::Gone => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryPages;
    use ovs_format::table::ClusterSet;
    use uuid::Uuid;

    fn sco(number: u64, cluster_count: u32) -> ScoRef {
        let id = Uuid::from_u128(1);
        let (vdisk, epoch, number, put) =
            (VdiskId(id), Epoch(1), ScoNumber(number), PutId(Uuid::from_u128(number.into())));
        ScoRef { vdisk, epoch, number, put, cluster_count, header_checksum: 1 }
    }

    fn kept(length: u32, offset: u32, count: u32) -> ClusterSet {
        let mut set = ClusterSet::none_of(length);
        set.insert(offset, count);
        set
    }

    /// Of what cannot be nothing is taken.
    #[test]
    fn moves_are_of_what_is_there() {
        let vdisk = VdiskId(Uuid::from_u128(1));
        let mut table = Table::default();
        table.push(sco(1, 9));
        table.push(ScoRef { vdisk: VdiskId(Uuid::from_u128(2)), ..sco(2, 9) });
        table.push(sco(3, 9));
        let place = |sco, offset| Place { sco, offset };
        let origin = |number| (Epoch(1), ScoNumber(number));
        let to = |length, offset, count| Some((0, 2, kept(length, offset, count)));
        let refused = |table: &Table, scos: &[ScoRef], moves: &[Move]| {
            let mut changed = table.clone();
            let answer = changed.relocate(vdisk, scos, moves);
            assert!(matches!(answer, Err(VolumeError::Damaged(_))), "{moves:?}");
        };
        let good = Move { origin: origin(1), to: to(9, 4, 3) };
        let new = [sco(10, 5)];
        // One that is not there, or another's; of another length; to another's; twice.
        refused(&table, &new, &[good.clone(), Move { origin: origin(7), to: None }]);
        refused(&table, &new, &[good.clone(), Move { origin: origin(2), to: None }]);
        refused(&table, &new, &[Move { origin: origin(1), to: to(8, 4, 3) }]);
        refused(
            &table,
            &[ScoRef { vdisk: VdiskId(Uuid::from_u128(2)), ..sco(10, 5) }],
            std::slice::from_ref(&good),
        );
        refused(&table, &new, &[good.clone(), good.clone()]);
        table.relocate(vdisk, &new, &[good, Move { origin: origin(3), to: None }]).unwrap();
        assert_eq!(table.find(place(0, 5), 2), Some((&new[0], 3)));
        assert_eq!(table.find(place(0, 3), 1), None);
        assert_eq!(table.find(place(1, 8), 1).unwrap().1, 8, "another's is as it was");
        assert_eq!(table.find(place(2, 0), 1), None);
        assert_eq!(table.find(place(3, 0), 1), None);
        assert_eq!(table.scos_of(vdisk), [(new[0], vec![0])]);
        // What is gone does not come back.
        refused(&table, &[sco(11, 9)], &[Move { origin: origin(1), to: to(9, 3, 3) }]);
        table.relocate(vdisk, &[sco(11, 9)], &[Move { origin: origin(1), to: to(9, 5, 2) }]).unwrap();
        assert_eq!(table.find(place(0, 6), 1), Some((&sco(11, 9), 3)));
    }

    #[test]
    fn an_sco_that_several_were_moved_into_counts_once() {
        let vdisk = VdiskId(Uuid::from_u128(1));
        let mut table = Table::default();
        (1..=4).for_each(|number| table.push(sco(number, 9)));
        table.push(ScoRef { vdisk: VdiskId(Uuid::from_u128(2)), ..sco(5, 9) });
        let move_to = |number, to| Move { origin: (Epoch(1), ScoNumber(number)), to };
        let to = |base| Some((0, base, kept(9, 4, 3)));
        table
            .relocate(vdisk, &[sco(10, 6)], &[move_to(1, to(0)), move_to(2, to(3)), move_to(4, None)])
            .unwrap();
        assert_eq!(table.bytes_of(vdisk), sco(10, 6).object_bytes() + sco(3, 9).object_bytes());
        let listed = table.scos_of(vdisk).iter().map(|(sco, _)| sco.object_bytes()).sum::<u64>();
        assert_eq!(table.bytes_of(vdisk), listed);
    }

    #[test]
    fn an_index_finds_its_sco_in_whatever_chunk() {
        let mut table = Table::default();
        let count = 2 * TABLE_CHUNK as u64 + 1;
        for number in 0..count {
            assert_eq!(table.len(), number);
            table.push(sco(number, 1));
        }
        let numbers =
            (0..count + 1).map(|index| table.get(index).and_then(TableEntry::origin).map(|of| of.1.0));
        assert_eq!(numbers.collect::<Vec<_>>(), (0..count).map(Some).chain([None]).collect::<Vec<_>>());
        let origin = (Epoch(1), ScoNumber(TABLE_CHUNK as u64 + 3));
        table.relocate(VdiskId(Uuid::from_u128(1)), &[], &[Move { origin, to: None }]).unwrap();
        let gone = (0..count).filter(|index| table.get(*index) == Some(&TableEntry::Gone));
        assert_eq!(gone.collect::<Vec<_>>(), [origin.1.0]);
    }

    /// All pages but the last are full, or an index would name another SCO.
    #[test]
    fn a_page_that_is_too_short_is_damage() {
        let sco = sco(1, 1);
        let pages = MemoryPages::default();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            for (number, count) in [(1, TABLE_CHUNK), (2, TABLE_CHUNK - 1)] {
                let bytes = page::encode_table(number, &vec![TableEntry::Put(sco); count]).into();
                pages.store(vec![(PageId(number), bytes)]).await.unwrap();
            }
            assert_eq!(Table::load(&pages, &[1, 2]).await.unwrap().len(), 2 * TABLE_CHUNK as u64 - 1);
            let short = Table::load(&pages, &[2, 1]).await;
            assert!(matches!(short, Err(VolumeError::Damaged(_))));
        });
    }
}
