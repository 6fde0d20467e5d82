//! Which clusters of a vDisk's own SCOs its maps name.

use super::copy::Pages;
use super::tree::Place;
use super::{TOP_LEVEL, Table};
use crate::VolumeError;
use ovs_format::page::{CheckpointRecord, decode_inner, decode_leaf};
use ovs_format::table::{ClusterSet, TableEntry};
use ovs_units::{CLUSTER_SIZE_BYTES, SnapshotId, VdiskId, planted};
use std::collections::{BTreeMap, HashSet};

/// Pages that are marked before others get their turn.
const PAGES_AT_ONCE: usize = 64;

/// What is needed of a vDisk's own SCOs, by the index in its table.
#[derive(Default)]
pub(crate) struct Marks {
    needed: BTreeMap<u64, ClusterSet>,
    /// Entries that a clone may read through a table of its own.
    pinned: HashSet<u64>,
    /// What the maps name of other vDisks' SCOs.
    shared: BTreeMap<u64, ClusterSet>,
}

impl Marks {
    /// Of the maps of a checkpoint, whose pages stay meanwhile. `pins` are the snapshots that have clones; `go_on` is asked now
    /// and then.
    pub(crate) async fn of(
        vdisk: VdiskId,
        maps: &CheckpointRecord,
        table: &Table,
        pins: &HashSet<SnapshotId>,
        pages: &Pages<'_>,
        go_on: &dyn Fn() -> Result<(), VolumeError>,
    ) -> Result<Marks, VolumeError> {
        let mut walk = Walk { vdisk, table, pages, go_on, met: HashSet::new(), marks: Marks::default() };
        // A page that a pinned map shares with others is met as pinned.
        let (pinned, others): (Vec<_>, Vec<_>) = maps
            .snapshots
            .iter()
            .partition(|(id, _)| pins.contains(id) && !planted("scrub: what a clone needs is moved"));
        walk.trees(pinned.iter().map(|(_, root)| root.page), true).await?;
        let others = match planted("scrub: snapshots are forgotten") {
            true => Vec::new(),
            false => others,
        };
        walk.trees(others.iter().map(|(_, root)| root.page).chain([maps.root.page]), false).await?;
        Ok(walk.marks)
    }

    /// The clusters of an entry that are needed, if any are.
    pub(crate) fn needed(&self, index: u64) -> Option<&ClusterSet> {
        self.needed.get(&index)
    }

    /// Bytes of other vDisks' that the maps name, each counted once.
    pub(crate) fn shared_bytes(&self) -> u64 {
        self.shared.values().map(|set| u64::from(set.count()) * CLUSTER_SIZE_BYTES).sum()
    }

    pub(crate) fn is_pinned(&self, index: u64) -> bool {
        self.pinned.contains(&index)
    }
}

struct Walk<'a> {
    vdisk: VdiskId,
    table: &'a Table,
    pages: &'a Pages<'a>,
    go_on: &'a dyn Fn() -> Result<(), VolumeError>,
    met: HashSet<u64>,
    marks: Marks,
}

impl Walk<'_> {
    async fn trees(&mut self, roots: impl Iterator<Item = u64>, is_pinned: bool) -> Result<(), VolumeError> {
        let mut waiting: Vec<(u64, u32)> = roots.map(|root| (root, TOP_LEVEL)).collect();
        while let Some((page, level)) = waiting.pop() {
            if page == 0 || !self.met.insert(page) {
                continue;
            }
            if self.met.len().is_multiple_of(PAGES_AT_ONCE) {
                (self.go_on)()?;
                tokio::task::yield_now().await;
            }
            if level > 0 {
                let (_, children) = self.pages.checked(page, |bytes| decode_inner(page, bytes)).await?;
                waiting.extend(children.iter().map(|child| (child.page, level - 1)));
            } else {
                let (_, places) = self.pages.checked(page, |bytes| decode_leaf(page, bytes)).await?;
                for place in places.iter().filter_map(|packed| Place::unpack(*packed)) {
                    self.mark(place, is_pinned)?;
                }
            }
        }
        Ok(())
    }

    fn mark(&mut self, place: Place, is_pinned: bool) -> Result<(), VolumeError> {
        let nowhere = || {
            VolumeError::Damaged(format!(
                "the map of vDisk {} names cluster {} of SCO {}, which is not there",
                self.vdisk, place.offset, place.sco
            ))
        };
        let entry = self.table.get(place.sco).ok_or_else(nowhere)?;
        let sco = entry.sco().ok_or_else(nowhere)?;
        let (length, is_kept) = match entry {
            TableEntry::Moved(moved) => (moved.kept.length(), moved.kept.contains(place.offset)),
            _ => (sco.cluster_count, place.offset < sco.cluster_count),
        };
        if sco.vdisk != self.vdisk {
            let set = self.marks.shared.entry(place.sco).or_insert_with(|| ClusterSet::none_of(length));
            set.insert(place.offset, 1);
            return Ok(());
        }
        if !is_kept {
            return Err(nowhere());
        }
        let set = self.marks.needed.entry(place.sco).or_insert_with(|| ClusterSet::none_of(length));
        set.insert(place.offset, 1);
        if is_pinned {
            self.marks.pinned.insert(place.sco);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryPages, PageId, PageStore};
    use ovs_format::page::{ChildEntry, FANOUT, RootEntry, encode_inner, encode_leaf};
    use ovs_format::sco::ScoRef;
    use ovs_units::{Epoch, JournalIndex, PutId, ScoNumber, Sequence};
    use uuid::Uuid;

    const OWN: VdiskId = VdiskId(Uuid::from_u128(1));

    /// The marks of a map with these places, in its one leaf.
    fn marked(table: &Table, places: &[Place]) -> Result<Marks, VolumeError> {
        let pages = MemoryPages::default();
        let mut leaf = [0; FANOUT];
        for (packed, place) in leaf.iter_mut().zip(places) {
            *packed = (place.sco + 1) << 16 | u64::from(place.offset);
        }
        let above = |child| {
            let mut children = [ChildEntry::default(); FANOUT];
            children[0] = ChildEntry { page: child, mapped: places.len() as u64 };
            children
        };
        let stored = [encode_leaf(1, &leaf)].into_iter();
        let stored = stored.chain((2..5).map(|page| encode_inner(page, &above(page - 1))));
        let stored = stored.zip(1..).map(|(bytes, page)| (PageId(page), bytes.into())).collect();
        let root = RootEntry { page: 4, mapped: places.len() as u64 };
        let (epoch, index, sequence) = (Epoch(1), JournalIndex(1), Sequence(1));
        let (table_pages, snapshots) = (Vec::new(), Vec::new());
        let maps = CheckpointRecord { epoch, index, sequence, root, table_pages, snapshots };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            pages.store(stored).await.unwrap();
            let pages = Pages { store: &pages, unreadable: &|error| error };
            Marks::of(OWN, &maps, table, &HashSet::new(), &pages, &|| Ok(())).await
        })
    }

    #[test]
    fn a_place_that_is_not_there_is_damage() {
        let sco = |vdisk, number| ScoRef {
            vdisk: VdiskId(Uuid::from_u128(vdisk)),
            epoch: Epoch(1),
            number: ScoNumber(number),
            put: PutId(Uuid::from_u128(number.into())),
            cluster_count: 9,
            header_checksum: 1,
        };
        let mut table = Table::default();
        for (vdisk, number) in [(1, 1), (2, 2), (1, 3), (1, 4)] {
            table.push(sco(vdisk, number));
        }
        let place = |sco, offset| Place { sco, offset };
        let marks = marked(&table, &[place(0, 3), place(0, 4), place(1, 5), place(3, 8)]).unwrap();
        let runs = |index| marks.needed(index).map(ClusterSet::runs);
        assert_eq!((runs(0), runs(1), runs(2)), (Some(vec![(3, 2)]), None, None));
        assert_eq!(runs(3), Some(vec![(8, 1)]));
        let mut kept = ClusterSet::none_of(9);
        kept.insert(3, 2);
        let moves = [
            ovs_format::journal::Move { origin: (Epoch(1), ScoNumber(1)), to: Some((0, 0, kept)) },
            ovs_format::journal::Move { origin: (Epoch(1), ScoNumber(3)), to: None },
        ];
        table.relocate(OWN, &[sco(1, 10)], &moves).unwrap();
        let marks = marked(&table, &[place(0, 4)]).unwrap();
        assert_eq!(marks.needed(0).map(|needed| (needed.length(), needed.runs())), Some((9, vec![(4, 1)])));
        for nowhere in [place(0, 5), place(2, 0), place(3, 9), place(4, 0)] {
            let answer = marked(&table, &[nowhere]).map(|_| ());
            assert!(matches!(answer, Err(VolumeError::Damaged(_))), "{nowhere:?}: {answer:?}");
        }
    }
}
