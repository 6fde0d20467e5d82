//! The LBA map: cluster → place, as a tree of pages.
//!
//! ```text
//!  level 3, 2, 1: 512 children each      level 0 (leaf): 512 places
//! ```
//!
//! Cloning a tree is cloning its root's reference: pages are shared and copied when one of the sharers changes them.
//! Pages that are stored keep their number until they change, and are loaded when first needed.

use crate::{PageId, PageStore, VolumeError};
use ovs_format::page::{self, ChildEntry, FANOUT, RootEntry};
use ovs_units::{Cluster, ClusterCount, ClusterRange, planted};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// The level of a root; leaves are level 0.
pub(crate) const TOP_LEVEL: u32 = 3;

/// Where a cluster lives: the index of an SCO in the vDisk's table, and the cluster's index in the SCO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) sco: u64,
    pub(crate) offset: u32,
}

impl Place {
    /// 0 is kept for "nowhere".
    fn pack(self) -> u64 {
        (self.sco + 1) << 16 | u64::from(self.offset)
    }

    pub(super) fn unpack(packed: u64) -> Option<Place> {
        let sco = (packed >> 16).checked_sub(1)?;
        Some(Place { sco, offset: (packed & 0xffff) as u32 })
    }
}

/// A map. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    root: Option<Child>,
}

#[derive(Clone)]
pub(super) struct Child {
    pub(super) page: Rc<Page>,
    /// Clusters mapped below.
    mapped: u64,
}

pub(super) struct Page {
    /// Its number in the page store; 0 while it is not stored as it is.
    pub(super) id: Cell<u64>,
    /// Its contents, once loaded.
    node: RefCell<Option<Rc<Node>>>,
}

#[derive(Clone)]
pub(super) enum Node {
    Leaf(Box<[u64; FANOUT]>),
    Inner(Box<[Option<Child>; FANOUT]>),
}

impl Tree {
    pub(crate) fn mapped(&self) -> ClusterCount {
        ClusterCount(self.root.as_ref().map_or(0, |root| root.mapped))
    }

    /// A tree whose root is in the page store.
    pub(crate) fn stored(root: RootEntry) -> Tree {
        Tree {
            root: (root.page != 0)
                .then(|| Child::stored(ChildEntry { page: root.page, mapped: root.mapped })),
        }
    }

    pub(super) fn root(&self) -> Option<&Child> {
        self.root.as_ref()
    }

    /// The place of the first cluster of the range (`None`: nowhere) and for how many clusters that holds: they follow
    /// each other in the same SCO, or are all nowhere.
    pub(crate) async fn find(
        &self,
        store: &dyn PageStore,
        range: ClusterRange,
    ) -> Result<(Option<Place>, u64), VolumeError> {
        let (cluster, wanted) = (range.start.0, range.count.0);
        let Some(mut child) = self.root.clone() else { return Ok((None, wanted)) };
        for level in (1..=TOP_LEVEL).rev() {
            let node = child.page.node(store, level).await?;
            let Node::Inner(children) = &*node else { return Err(wrong_level(&child)) };
            match &children[index_at(cluster, level)] {
                Some(below) => child = below.clone(),
                None => {
                    let span = span(level);
                    return Ok((None, wanted.min(span - cluster % span)));
                }
            }
        }
        let node = child.page.node(store, 0).await?;
        let Node::Leaf(places) = &*node else { return Err(wrong_level(&child)) };
        let first = index_at(cluster, 0);
        let run_max = wanted.min((FANOUT - first) as u64) as usize;
        let run = &places[first..first + run_max];
        let step = u64::from(run[0] != 0);
        let same = |(index, place): (usize, &u64)| *place == run[0] + step * index as u64;
        let count = run.iter().enumerate().take_while(|entry| same(*entry)).count();
        Ok((Place::unpack(run[0]), count as u64))
    }

    /// Loads what [`Tree::set`] of that range will change.
    pub(crate) async fn prepare(
        &self,
        store: &dyn PageStore,
        range: ClusterRange,
    ) -> Result<(), VolumeError> {
        match &self.root {
            Some(root) if !range.is_empty() => {
                prepare(store, root, TOP_LEVEL, range.start.0, range.end().0).await
            }
            _ => Ok(()),
        }
    }

    /// Maps the clusters to places that follow each other from `place` on, or to nowhere. What it changes must have
    /// been prepared.
    pub(crate) fn set(&mut self, range: ClusterRange, place: Option<Place>) {
        if range.is_empty() || (place.is_none() && self.root.is_none()) {
            return;
        }
        let root = self.root.get_or_insert_with(|| Child::empty(TOP_LEVEL));
        set_in(root, TOP_LEVEL, range.start.0, range.end().0, place.map_or(0, Place::pack));
        if root.mapped == 0 {
            self.root = None;
        }
    }

    /// Unmaps everything from `start` on.
    pub(crate) fn tail(start: Cluster) -> ClusterRange {
        ClusterRange { start, count: ClusterCount(span(TOP_LEVEL + 1) - start.0) }
    }
}

/// Clusters below one entry of a page of this level.
fn span(level: u32) -> u64 {
    (FANOUT as u64).pow(level)
}

fn index_at(cluster: u64, level: u32) -> usize {
    ((cluster / span(level)) % FANOUT as u64) as usize
}

fn wrong_level(child: &Child) -> VolumeError {
    VolumeError::Damaged(format!("map page {} is of a wrong level", child.page.id.get()))
}

async fn prepare(
    store: &dyn PageStore,
    child: &Child,
    level: u32,
    start: u64,
    end: u64,
) -> Result<(), VolumeError> {
    let node = child.page.node(store, level).await?;
    let Node::Inner(children) = &*node else { return Ok(()) };
    let span = span(level);
    for index in start / span..=(end - 1) / span {
        let (from, to) = (start.max(index * span), end.min((index + 1) * span));
        let is_whole = to - from == span;
        if let Some(below) = &children[(index % FANOUT as u64) as usize]
            && !is_whole
        {
            Box::pin(prepare(store, below, level - 1, from, to)).await?;
        }
    }
    Ok(())
}

fn set_in(child: &mut Child, level: u32, start: u64, end: u64, packed: u64) {
    let mut mapped = child.mapped;
    match child.change() {
        Node::Leaf(places) => {
            let step = u64::from(packed != 0);
            for (count, place) in
                places[index_at(start, 0)..][..(end - start) as usize].iter_mut().enumerate()
            {
                mapped -= u64::from(*place != 0);
                mapped += step;
                *place = packed + step * count as u64;
            }
        }
        Node::Inner(children) => {
            let span = span(level);
            for index in start / span..=(end - 1) / span {
                let (from, to) = (start.max(index * span), end.min((index + 1) * span));
                let slot = &mut children[(index % FANOUT as u64) as usize];
                mapped -= slot.as_ref().map_or(0, |below| below.mapped);
                if to - from == span && !planted("map: zeros of a whole page are forgotten") {
                    *slot = None; // whole: what was there need not even be loaded
                }
                if packed != 0 {
                    let below = slot.get_or_insert_with(|| Child::empty(level - 1));
                    set_in(below, level - 1, from, to, packed + (from - start));
                } else if let Some(below) = slot {
                    set_in(below, level - 1, from, to, 0);
                }
                slot.take_if(|below| below.mapped == 0);
                mapped += slot.as_ref().map_or(0, |below| below.mapped);
            }
        }
    }
    child.mapped = mapped;
}

impl Child {
    fn empty(level: u32) -> Child {
        let node = match level {
            0 => Node::Leaf(Box::new([0; FANOUT])),
            _ => Node::Inner(Box::new([const { None }; FANOUT])),
        };
        Child { page: Rc::new(Page { id: Cell::new(0), node: RefCell::new(Some(Rc::new(node))) }), mapped: 0 }
    }

    fn stored(entry: ChildEntry) -> Child {
        Child {
            page: Rc::new(Page { id: Cell::new(entry.page), node: RefCell::new(None) }),
            mapped: entry.mapped,
        }
    }

    pub(super) fn entry(&self, page: u64) -> ChildEntry {
        ChildEntry { page, mapped: self.mapped }
    }

    /// The page's contents, for changing: copied if anybody else has them, and no longer what is stored.
    fn change(&mut self) -> &mut Node {
        if Rc::get_mut(&mut self.page).is_none() {
            let node = self.page.node.borrow().clone();
            self.page = Rc::new(Page { id: Cell::new(0), node: RefCell::new(node) });
        }
        let page = Rc::get_mut(&mut self.page).expect("a page that was just made has one owner");
        if !planted("map: a changed page keeps its stored number") {
            page.id.set(0);
        }
        Rc::make_mut(page.node.get_mut().as_mut().expect("pages are prepared before they are changed"))
    }
}

impl Page {
    /// The contents, loaded if need be; read once more if they are not what they should be.
    async fn node(&self, store: &dyn PageStore, level: u32) -> Result<Rc<Node>, VolumeError> {
        if let Some(node) = &*self.node.borrow() {
            return Ok(node.clone());
        }
        let node = match self.load(store, level).await {
            Err(VolumeError::Damaged(_)) => self.load(store, level).await?,
            loaded => loaded?,
        };
        // Somebody else may have loaded it meanwhile: keep theirs.
        Ok(self.node.borrow_mut().get_or_insert(Rc::new(node)).clone())
    }

    async fn load(&self, store: &dyn PageStore, level: u32) -> Result<Node, VolumeError> {
        let id = self.id.get();
        let bytes = store
            .load(PageId(id))
            .await?
            .ok_or_else(|| VolumeError::Damaged(format!("map page {id} is missing from the local store")))?;
        let damaged = |error| VolumeError::Damaged(format!("map page {id}: {error}"));
        if level == 0 {
            return Ok(Node::Leaf(page::decode_leaf(id, &bytes).map_err(damaged)?));
        }
        let entries = page::decode_inner(id, &bytes).map_err(damaged)?;
        let mut children = Box::new([const { None }; FANOUT]);
        for (child, entry) in children.iter_mut().zip(entries.iter()).filter(|(_, entry)| entry.page != 0) {
            *child = Some(Child::stored(*entry));
        }
        Ok(Node::Inner(children))
    }

    /// The contents, if they are in memory.
    pub(super) fn resident(&self) -> Option<Rc<Node>> {
        self.node.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_all_that_a_vdisk_may_ever_have_had() {
        let clusters_max = ovs_units::VDISK_SIZE_BYTES_MAX / ovs_units::CLUSTER_SIZE_BYTES;
        let tail = Tree::tail(Cluster(5));
        assert_eq!(tail.start, Cluster(5));
        assert!(tail.end().0 >= clusters_max);
        let last = Place { sco: 1, offset: 2 };
        let mut tree = Tree::default();
        tree.set(ClusterRange { start: Cluster(clusters_max - 1), count: ClusterCount(1) }, Some(last));
        tree.set(tail, None);
        assert!(tree.root.is_none());
    }

    /// A read takes each run at once.
    #[test]
    fn what_lies_together_is_found_together() {
        use futures_util::FutureExt;
        let mut tree = Tree::default();
        let range = |start, count| ClusterRange { start: Cluster(start), count: ClusterCount(count) };
        let place = |sco, offset| Place { sco, offset };
        tree.set(range(10, 5), Some(place(1, 100)));
        tree.set(range(15, 5), Some(place(2, 105)));
        let store = crate::MemoryPages::default();
        let find = |start, count| tree.find(&store, range(start, count)).now_or_never().unwrap().unwrap();
        assert_eq!(find(3, 100), (None, 7));
        assert_eq!(find(10, 100), (Some(place(1, 100)), 5));
        assert_eq!(find(12, 100), (Some(place(1, 102)), 3));
        assert_eq!(find(12, 2), (Some(place(1, 102)), 2));
        assert_eq!(find(15, 100), (Some(place(2, 105)), 5));
        assert_eq!(find(20, 50), (None, 50));
        // Up to the end of what a page above would name.
        let (leaf, above) = (FANOUT as u64, (FANOUT * FANOUT) as u64);
        assert_eq!(find(3 * leaf + 7, 1 << 40), (None, leaf - 7));
        assert_eq!(find(5 * above + 7, 1 << 40), (None, above - 7));
    }

    /// What a whole page says is forgotten without reading it.
    #[test]
    fn a_page_that_becomes_zeros_need_not_be_in_memory() {
        let mut tree = Tree::default();
        let range = |start, count| ClusterRange { start: Cluster(start), count: ClusterCount(count) };
        tree.set(range(3, 1), Some(Place { sco: 1, offset: 0 }));
        let mut leaf = tree.root.clone().unwrap();
        for level in (1..=TOP_LEVEL).rev() {
            let node = leaf.page.resident().unwrap();
            let Node::Inner(children) = &*node else { panic!("level {level}") };
            leaf = children[0].clone().unwrap();
        }
        *leaf.page.node.borrow_mut() = None;
        tree.set(range(0, FANOUT as u64), None);
        assert!(tree.root.is_none());
    }

    /// Nothing but the pages of a range is prepared: its neighbours may not be in memory.
    #[test]
    fn a_change_up_to_the_end_of_a_page_leaves_the_next_one_alone() {
        let mut tree = Tree::default();
        let range = |start, count| ClusterRange { start: Cluster(start), count: ClusterCount(count) };
        let place = |offset| Some(Place { sco: 1, offset });
        let end = FANOUT as u64;
        tree.set(range(end - 2, 4), place(0));
        let mut next = tree.root.clone().unwrap();
        for level in (1..=TOP_LEVEL).rev() {
            let node = next.page.resident().unwrap();
            let Node::Inner(children) = &*node else { panic!("level {level}") };
            next = children[index_at(end, level)].clone().unwrap();
        }
        *next.page.node.borrow_mut() = None;
        tree.set(range(end - 2, 2), place(7));
        tree.set(range(end - 1, 1), None);
        assert_eq!(tree.root.unwrap().mapped, 3);
    }

    /// Nor is one that the range covers: nobody asks what it said.
    #[test]
    fn of_a_range_only_the_pages_at_its_edges_are_read() {
        use futures_util::FutureExt;
        let store = crate::MemoryPages::default();
        let put = |page, bytes: Vec<u8>| store.damage(PageId(page), Some(bytes.into()));
        let mut children = [ChildEntry::default(); FANOUT];
        children[0] = ChildEntry { page: 3, mapped: 3 * FANOUT as u64 };
        put(1, page::encode_inner(1, &children));
        put(3, {
            children[0].page = 4;
            page::encode_inner(3, &children)
        });
        for (index, child) in children[..3].iter_mut().enumerate() {
            *child = ChildEntry { page: 10 + index as u64, mapped: FANOUT as u64 };
        }
        put(4, page::encode_inner(4, &children));
        for leaf in [10, 12] {
            put(leaf, page::encode_leaf(leaf, &[1 << 16; FANOUT]));
        }
        let mut tree = Tree::stored(RootEntry { page: 1, mapped: 3 * FANOUT as u64 });
        let leaf = FANOUT as u64;
        let edges = ClusterRange { start: Cluster(leaf - 1), count: ClusterCount(leaf + 2) };
        tree.prepare(&store, edges).now_or_never().unwrap().unwrap();
        tree.set(edges, None);
        assert_eq!(tree.mapped(), ClusterCount(2 * leaf - 2));
    }

    #[test]
    fn of_no_clusters_nothing_is_set() {
        use futures_util::FutureExt;
        let mut tree = Tree::default();
        let nothing = ClusterRange { start: Cluster(0), count: ClusterCount(0) };
        tree.set(nothing, Some(Place { sco: 1, offset: 0 }));
        assert!(tree.root.is_none());
        let store = crate::MemoryPages::default();
        let stored = Tree::stored(RootEntry { page: 1, mapped: 1 });
        stored.prepare(&store, nothing).now_or_never().unwrap().unwrap();
    }

    /// Changes across the edges of pages of all levels, against a list; stored and read again now and then.
    #[test]
    fn a_tree_has_of_each_cluster_the_newest_place() {
        use crate::map::{Checkpoint, Table};
        use futures_util::FutureExt;
        use ovs_format::journal::Position;
        use ovs_units::{Epoch, JournalIndex, Sequence, VdiskId};
        use std::collections::BTreeMap;
        let (store, next_page) = (crate::MemoryPages::default(), Cell::new(1));
        let (mut tree, mut expected) = (Tree::default(), BTreeMap::<u64, Place>::new());
        let leaf = FANOUT as u64;
        let edges = [0, leaf, 3 * leaf, leaf * leaf, leaf * leaf + leaf, 5 * leaf * leaf, leaf * leaf * leaf];
        for step in 1..=300u64 {
            // Any numbers will do that come to all ways of lying to each other.
            let number = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
            let edge = edges[(number % 7) as usize];
            let start = (edge + number / 7 % 40).saturating_sub(20);
            let count = [1, 7, 30, leaf, 2 * leaf + 40][(number >> 16) as usize % 5];
            let range = ClusterRange { start: Cluster(start), count: ClusterCount(count) };
            let place = (number >> 24 & 3 > 0).then_some(Place { sco: step % 9, offset: (step * 64) as u32 });
            tree.prepare(&store, range).now_or_never().unwrap().unwrap();
            tree.set(range, place);
            for index in 0..count {
                match place {
                    None => expected.remove(&(start + index)),
                    Some(Place { sco, offset }) => {
                        expected.insert(start + index, Place { sco, offset: offset + index as u32 })
                    }
                };
            }
            assert_eq!(tree.mapped().0, expected.len() as u64, "step {step}");
            if step % 10 == 0 {
                let position = Position { epoch: Epoch(1), index: JournalIndex(step) };
                let (sequence, table) = (Sequence(step), Table::default());
                let checkpoint =
                    Checkpoint { position, sequence, tree: tree.clone(), table, snapshots: Vec::new() };
                let vdisk = VdiskId(uuid::Uuid::nil());
                let stored = checkpoint.store(vdisk, &store, &next_page).now_or_never().unwrap().unwrap();
                tree = Tree::stored(stored.root);
            }
            for edge in edges {
                for at in edge.saturating_sub(25)..edge + 25 {
                    check(&tree, &store, &expected, at, [1, 10, 1 << 40][(at % 3) as usize]);
                }
            }
        }
    }

    /// What is told of `wanted` clusters from `at` on is so, and in a page it is all of them that lie together.
    fn check(
        tree: &Tree,
        store: &crate::MemoryPages,
        expected: &std::collections::BTreeMap<u64, Place>,
        at: u64,
        wanted: u64,
    ) {
        use futures_util::FutureExt;
        let range = ClusterRange { start: Cluster(at), count: ClusterCount(wanted) };
        let (place, count) = tree.find(store, range).now_or_never().unwrap().unwrap();
        assert_eq!(place, expected.get(&at).copied(), "cluster {at}");
        assert!((1..=wanted).contains(&count));
        let of_page = wanted.min(FANOUT as u64 - at % FANOUT as u64);
        let run = match place {
            None => expected.range(at..).next().map_or(u64::MAX, |(next, _)| next - at),
            Some(Place { sco, offset }) => {
                let next = |index: &u64| Place { sco, offset: offset + *index as u32 };
                (0..of_page).take_while(|index| expected.get(&(at + index)) == Some(&next(index))).count()
                    as u64
            }
        };
        assert!(count <= run && count >= run.min(of_page), "cluster {at}: {count} of {run}");
    }
}
