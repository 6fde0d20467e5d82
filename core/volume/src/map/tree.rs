//! The LBA map: cluster → place, as a tree of pages.
//!
//! ```text
//!  level 3, 2, 1: 512 children each      level 0 (leaf): 512 places
//! ```
//!
//! Cloning a tree is cloning its root's reference: pages are shared and copied when one of the sharers changes them.
//! Pages that are stored keep their number until they change, and are loaded when they are needed (see `memory.rs`).

use super::memory::MapMemory;
use crate::{PageId, PageStore, VolumeError};
use ovs_format::leaf::Packed;
use ovs_format::page::{self, ChildEntry, FANOUT, Leaf, RootEntry};
use ovs_units::{Cluster, ClusterCount, ClusterRange, planted};
use std::{
    cell::{Cell, RefCell, RefMut},
    num::NonZeroU64,
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
    pub(super) fn pack(self) -> u64 {
        (self.sco + 1) << 16 | u64::from(self.offset)
    }

    pub(super) fn unpack(packed: u64) -> Option<Place> {
        let sco = (packed >> 16).checked_sub(1)?;
        Some(Place { sco, offset: (packed & 0xffff) as u32 })
    }
}

/// A map. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tree {
    root: Option<Child>,
    memory: Rc<MapMemory>,
}

pub(super) struct Child {
    /// Once somebody has asked for it.
    page: Cell<Option<Rc<Page>>>,
    /// All that a leaf says whose clusters lie one behind the other: its first place, and no page. 0 where that is not so, or not known.
    run: Cell<u64>,
    /// The page's number, if it was stored when this was made.
    stored: Cell<u64>,
    mapped: Mapped,
}

/// Clusters mapped below. One more is kept, so that a child that is not there takes no more than one that is.
#[derive(Clone, Copy)]
struct Mapped(NonZeroU64);

pub(super) struct Page {
    /// Its number in the page store; 0 while it is not stored as it is.
    id: Cell<u64>,
    /// Its contents, while they are in memory.
    node: RefCell<Option<Rc<Node>>>,
    /// Who has prepared to change it or what is below.
    pins: Cell<u32>,
    /// Memory that it counts for, in words of 8 bytes.
    words: Cell<u16>,
    flags: Cell<u8>,
    memory: Rc<MapMemory>,
}

/// Of [`Page::flags`]: there are as many pages as there are places for 512 clusters, and each byte of one counts.
mod flag {
    /// Not stored as it is: it stays in memory.
    pub(in crate::map) const CHANGED: u8 = 1;
    /// Since it was last looked at whether it is.
    pub(in crate::map) const USED: u8 = 2;
    /// The clock has it.
    pub(in crate::map) const ON_CLOCK: u8 = 4;
}
pub(super) use flag::ON_CLOCK;

#[derive(Clone)]
pub(super) enum Node {
    Leaf(Box<[u64; FANOUT]>),
    /// A leaf that is stored.
    Packed(Packed),
    Inner(Box<[Option<Child>; FANOUT]>),
}

/// Pages that stay in memory as long as this lives; it is dropped just before they are changed.
#[derive(Default)]
#[must_use]
pub(crate) struct Prepared(Vec<Rc<Page>>);

impl Prepared {
    /// Both. A page that is in both is pinned twice.
    pub(crate) fn extend(&mut self, mut other: Prepared) {
        self.0.append(&mut other.0);
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        self.0.iter().for_each(|page| page.unpin());
    }
}

impl Tree {
    pub(crate) fn mapped(&self) -> ClusterCount {
        ClusterCount(self.root.as_ref().map_or(0, |root| root.mapped.get()))
    }

    /// Nothing has changed between the two; for as long as both are there.
    pub(crate) fn is_same(&self, other: &Tree) -> bool {
        let root = |tree: &Tree| tree.root.as_ref().and_then(Child::known_page).map(|page| Rc::as_ptr(&page));
        root(self) == root(other)
    }

    /// Nothing is mapped.
    pub(crate) fn empty(memory: &Rc<MapMemory>) -> Tree {
        Tree { root: None, memory: memory.clone() }
    }

    /// A tree whose root is in the page store.
    pub(crate) fn stored(root: RootEntry, memory: &Rc<MapMemory>) -> Tree {
        // Made here: copies of the tree share it.
        let root = (root.page != 0).then(|| {
            let child = Child::stored(ChildEntry { page: root.page, mapped: root.mapped });
            child.page(memory);
            child
        });
        Tree { root, memory: memory.clone() }
    }

    /// Lets pages go if maps take too much memory.
    pub(super) fn make_room(&self) {
        self.memory.make_room_now();
    }

    /// What it may still load, with the levels: pages that were not changed since they were stored, those below them excepted.
    pub(crate) fn add_stored_pages(&self, found: &mut Vec<(u64, u32)>) {
        if let Some(root) = &self.root {
            root.add_stored_pages(TOP_LEVEL, found);
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
        let Some(root) = &self.root else { return Ok((None, wanted)) };
        let first = index_at(cluster, 0);
        let run_max = wanted.min((FANOUT - first) as u64) as usize;
        let mut page = root.page(&self.memory);
        let mut level = TOP_LEVEL;
        let node = loop {
            let node = page.node(store, level).await?;
            let Node::Inner(children) = &*node else { return Err(page.is_of_a_wrong_level()) };
            let Some(below) = &children[index_at(cluster, level)] else {
                let span = span(level);
                return Ok((None, wanted.min(span - cluster % span)));
            };
            if below.run.get() != 0 {
                return Ok((Place::unpack(below.run.get() + first as u64), run_max as u64));
            }
            page = below.page(&self.memory);
            level -= 1;
            if level == 0 {
                let leaf = page.node(store, 0).await?;
                below.keep_if_run(&page, &leaf);
                break leaf;
            }
        };
        let (place, count) = match &*node {
            Node::Leaf(places) => {
                let run = &places[first..first + run_max];
                let step = u64::from(run[0] != 0);
                let same = |(index, place): (usize, &u64)| *place == run[0] + step * index as u64;
                (run[0], run.iter().enumerate().take_while(|entry| same(*entry)).count())
            }
            Node::Packed(packed) => packed.find(first, run_max),
            Node::Inner(_) => return Err(page.is_of_a_wrong_level()),
        };
        Ok((Place::unpack(place), count as u64))
    }

    /// Loads what [`Tree::set`] of that range will change, and keeps it in memory.
    pub(crate) async fn prepare(
        &self,
        store: &dyn PageStore,
        range: ClusterRange,
    ) -> Result<Prepared, VolumeError> {
        let mut prepared = Prepared::default();
        if let Some(root) = &self.root
            && !range.is_empty()
        {
            let root = root.page(&self.memory);
            prepare(store, &root, TOP_LEVEL, range.start.0, range.end().0, &mut prepared).await?;
        }
        Ok(prepared)
    }

    /// Maps the clusters to places that follow each other from `place` on, or to nowhere. What it changes must have
    /// been prepared.
    pub(crate) fn set(&mut self, range: ClusterRange, place: Option<Place>) {
        if range.is_empty() || (place.is_none() && self.root.is_none()) {
            return;
        }
        let root = self.root.get_or_insert_with(|| Child::empty(TOP_LEVEL, &self.memory));
        let packed = place.map_or(0, Place::pack);
        set_in(root, &self.memory, TOP_LEVEL, range.start.0, range.end().0, packed);
        if root.mapped.get() == 0 {
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

async fn prepare(
    store: &dyn PageStore,
    page: &Rc<Page>,
    level: u32,
    start: u64,
    end: u64,
    prepared: &mut Prepared,
) -> Result<(), VolumeError> {
    page.pin();
    prepared.0.push(page.clone());
    let node = page.node(store, level).await?;
    let Node::Inner(children) = &*node else { return Ok(()) };
    let span = span(level);
    for index in start / span..=(end - 1) / span {
        let (from, to) = (start.max(index * span), end.min((index + 1) * span));
        let is_whole = to - from == span;
        if let Some(below) = &children[(index % FANOUT as u64) as usize]
            && !is_whole
            // What is known of a run stays with the page above, which is pinned; it is that page that is changed, since whoever prepares
            // and changes holds the vDisk's `meta` between the two.
            && below.run.get() == 0
        {
            let below = below.page(&page.memory);
            Box::pin(prepare(store, &below, level - 1, from, to, prepared)).await?;
        }
    }
    Ok(())
}

fn set_in(child: &mut Child, memory: &Rc<MapMemory>, level: u32, start: u64, end: u64, packed: u64) {
    let mut mapped = child.mapped.get();
    match &mut *child.change(memory) {
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
        Node::Packed(_) => unreachable!("a leaf that is changed is not packed"),
        Node::Inner(children) => {
            let span = span(level);
            for index in start / span..=(end - 1) / span {
                let (from, to) = (start.max(index * span), end.min((index + 1) * span));
                let slot = &mut children[(index % FANOUT as u64) as usize];
                mapped -= slot.as_ref().map_or(0, |below| below.mapped.get());
                if to - from == span && !planted("map: zeros of a whole page are forgotten") {
                    *slot = None; // whole: what was there need not even be loaded
                }
                if packed != 0 {
                    let below = slot.get_or_insert_with(|| Child::empty(level - 1, memory));
                    set_in(below, memory, level - 1, from, to, packed + (from - start));
                } else if let Some(below) = slot {
                    set_in(below, memory, level - 1, from, to, 0);
                }
                slot.take_if(|below| below.mapped.get() == 0);
                mapped += slot.as_ref().map_or(0, |below| below.mapped.get());
            }
        }
    }
    child.mapped = Mapped::new(mapped);
}

impl Mapped {
    fn new(clusters: u64) -> Mapped {
        Mapped(NonZeroU64::MIN.saturating_add(clusters))
    }

    fn get(self) -> u64 {
        self.0.get() - 1
    }
}

impl Clone for Child {
    fn clone(&self) -> Child {
        Child {
            page: Cell::new(self.known_page()),
            run: self.run.clone(),
            stored: self.stored.clone(),
            mapped: self.mapped,
        }
    }
}

impl Child {
    fn empty(level: u32, memory: &Rc<MapMemory>) -> Child {
        let node = match level {
            0 => Node::Leaf(Box::new([0; FANOUT])),
            _ => Node::Inner(Box::new([const { None }; FANOUT])),
        };
        let page = Cell::new(Some(Page::new(Some(Rc::new(node)), memory)));
        Child { page, run: Cell::new(0), stored: Cell::new(0), mapped: Mapped::new(0) }
    }

    fn stored(entry: ChildEntry) -> Child {
        Child {
            page: Cell::new(None),
            run: Cell::new(0),
            stored: Cell::new(entry.page),
            mapped: Mapped::new(entry.mapped),
        }
    }

    fn page(&self, memory: &Rc<MapMemory>) -> Rc<Page> {
        let page = self.page.take().unwrap_or_else(|| Page::stored(self.stored.get(), memory));
        self.page.set(Some(page.clone()));
        page
    }

    /// The page, if it may be in memory.
    pub(super) fn known_page(&self) -> Option<Rc<Page>> {
        let page = self.page.take();
        self.page.set(page.clone());
        page
    }

    /// Keeps all that the leaf says, if that is one run, instead of the leaf: most leaves of what was written in large pieces are one.
    fn keep_if_run(&self, page: &Rc<Page>, leaf: &Node) {
        let is_stored = page.id.get() != 0 && !page.has(flag::CHANGED);
        if let Node::Packed(packed) = leaf
            && let Some(first) = packed.run().filter(|first| is_stored && *first != 0)
        {
            self.run.set(first);
            self.stored.set(page.id.get());
            self.page.set(None);
        }
    }

    /// Its number in the page store; 0 while it is not stored as it is.
    pub(super) fn stored_page(&self) -> u64 {
        self.known_page().map_or(self.stored.get(), |page| page.id.get())
    }

    pub(super) fn entry(&self, page: u64) -> ChildEntry {
        ChildEntry { page, mapped: self.mapped.get() }
    }

    fn add_stored_pages(&self, level: u32, found: &mut Vec<(u64, u32)>) {
        let stored = self.stored_page();
        if stored != 0 {
            return found.push((stored, level));
        }
        if let Some(node) = self.known_page().and_then(|page| page.resident())
            && let Node::Inner(children) = &*node
        {
            children.iter().flatten().for_each(|child| child.add_stored_pages(level - 1, found));
        }
    }

    /// The page's contents, for changing: copied if anybody else has them, and no longer what is stored.
    fn change(&mut self, memory: &Rc<MapMemory>) -> RefMut<'_, Node> {
        let first = self.run.take();
        let page = match (self.page.take(), first) {
            (Some(page), _) if Rc::strong_count(&page) == 1 => page,
            (Some(shared), _) => Page::new(shared.node.borrow().clone(), memory),
            (None, 0) => Page::stored(self.stored.get(), memory),
            (None, first) => Page::new(Some(Rc::new(Node::Packed(Packed::of_run(first)))), memory),
        };
        if planted("map: a run that is changed stays what it was") {
            self.run.set(first);
        }
        let page = self.page.get_mut().insert(page);
        if !planted("map: a changed page keeps its stored number") {
            page.id.set(0);
        }
        let mut node = RefMut::map(page.node.borrow_mut(), |node| {
            Rc::make_mut(node.as_mut().expect("pages are prepared before they are changed"))
        });
        if let Node::Packed(packed) = &*node {
            *node = Node::Leaf(packed.places());
        }
        if !page.has(flag::CHANGED) {
            page.charge(&node, true);
        }
        node
    }
}

impl Page {
    fn stored(id: u64, memory: &Rc<MapMemory>) -> Rc<Page> {
        let page = Page {
            id: Cell::new(id),
            node: RefCell::new(None),
            pins: Cell::new(0),
            words: Cell::new(PAGE_WORDS),
            flags: Cell::new(0),
            memory: memory.clone(),
        };
        memory.charge(bytes_of(PAGE_WORDS), false);
        Rc::new(page)
    }

    fn new(node: Option<Rc<Node>>, memory: &Rc<MapMemory>) -> Rc<Page> {
        let page = Page::stored(0, memory);
        *page.node.borrow_mut() = node;
        page
    }

    fn is_of_a_wrong_level(&self) -> VolumeError {
        VolumeError::Damaged(format!("map page {} is of a wrong level", self.id.get()))
    }

    fn pin(&self) {
        self.pins.set(self.pins.get() + 1);
    }

    fn unpin(&self) {
        self.pins.set(self.pins.get() - 1);
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.get() & flag != 0
    }

    /// Whether it had it before.
    pub(super) fn set(&self, flag: u8, is_set: bool) -> bool {
        let flags = self.flags.get();
        self.flags.set(if is_set { flags | flag } else { flags & !flag });
        flags & flag != 0
    }

    /// It counts for what it takes from now on.
    fn charge(&self, node: &Node, is_changed: bool) {
        let words = PAGE_WORDS + node.words();
        self.memory.discharge(bytes_of(self.words.replace(words)), self.set(flag::CHANGED, is_changed));
        self.memory.charge(bytes_of(words), is_changed);
    }

    /// The contents, loaded if need be; read once more if they are not what they should be.
    async fn node(self: &Rc<Self>, store: &dyn PageStore, level: u32) -> Result<Rc<Node>, VolumeError> {
        self.set(flag::USED, true);
        if let Some(node) = &*self.node.borrow() {
            return Ok(node.clone());
        }
        let node = match self.load(store, level).await {
            Err(VolumeError::Damaged(_)) => self.load(store, level).await?,
            loaded => loaded?,
        };
        // Somebody else may have loaded it meanwhile: keep theirs.
        if let Some(node) = &*self.node.borrow() {
            return Ok(node.clone());
        }
        let node = Rc::new(node);
        *self.node.borrow_mut() = Some(node.clone());
        self.memory.loaded();
        self.charge(&node, false);
        self.memory.keep(self);
        self.pin();
        self.memory.make_room();
        self.unpin();
        Ok(node)
    }

    async fn load(&self, store: &dyn PageStore, level: u32) -> Result<Node, VolumeError> {
        let id = self.id.get();
        let bytes = store
            .load(PageId(id))
            .await?
            .ok_or_else(|| VolumeError::Damaged(format!("map page {id} is missing from the local store")))?;
        let damaged = |error| VolumeError::Damaged(format!("map page {id}: {error}"));
        if level == 0 {
            return Ok(match page::read_leaf(id, &bytes).map_err(damaged)? {
                // Of before leaves were stored packed, or one that cannot be.
                Leaf::Plain(places) => Packed::new(&places).map_or(Node::Leaf(places), Node::Packed),
                Leaf::Packed(packed) => Node::Packed(packed),
            });
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

    /// It was stored, as it is, under this number: it may go from now on.
    pub(super) fn was_stored(self: &Rc<Self>, id: u64) {
        self.id.set(id);
        let Some(mut node) = self.resident() else { return };
        if let Node::Leaf(places) = &*node
            && let Some(packed) = Packed::new(places)
        {
            node = Rc::new(Node::Packed(packed));
            *self.node.borrow_mut() = Some(node.clone());
        }
        self.charge(&node, false);
        self.memory.keep(self);
    }

    /// It cannot be loaded again.
    pub(super) fn is_changed(&self) -> bool {
        self.has(flag::CHANGED) && !planted("map: what was changed may go")
    }

    /// It was used since this was last asked, or will be, or others that are in memory are below it.
    pub(super) fn is_wanted(&self) -> bool {
        let is_pinned = self.pins.get() > 0 && !planted("map: what is about to be changed may go");
        self.set(flag::USED, false) || is_pinned || self.has_resident_children()
    }

    fn has_resident_children(&self) -> bool {
        let is_resident = |child: &Child| child.known_page().is_some_and(|page| page.node.borrow().is_some());
        match self.node.borrow().as_deref() {
            Some(Node::Inner(children)) => children.iter().flatten().any(is_resident),
            _ => false,
        }
    }

    pub(super) fn let_go(&self) {
        self.memory.discharge(bytes_of(self.words.replace(PAGE_WORDS)), self.set(flag::CHANGED, false));
        self.memory.charge(bytes_of(PAGE_WORDS), false);
        // What is known of pages below goes with it.
        let node = self.node.take();
        drop(node);
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.memory.discharge(bytes_of(self.words.get()), self.has(flag::CHANGED));
    }
}

impl Node {
    /// Of memory, pages below excepted.
    fn words(&self) -> u16 {
        let behind = match self {
            Node::Leaf(places) => size_of_val(&**places),
            Node::Packed(packed) => packed.bytes(),
            Node::Inner(children) => size_of_val(&**children),
        };
        let behind = if behind > 0 { behind + ALLOCATION_BYTES } else { 0 };
        (RC_BYTES + size_of::<Node>() + ALLOCATION_BYTES + behind).div_ceil(WORD_BYTES) as u16
    }
}

/// The counts of an `Rc`.
const RC_BYTES: usize = 16;
/// What an allocation costs the allocator.
const ALLOCATION_BYTES: usize = 8;
/// Memory is counted in these.
const WORD_BYTES: usize = 8;
/// Of a page whose contents are not in memory.
const PAGE_WORDS: u16 = (RC_BYTES + size_of::<Page>() + ALLOCATION_BYTES).div_ceil(WORD_BYTES) as u16;

fn bytes_of(words: u16) -> u64 {
    u64::from(words) * WORD_BYTES as u64
}

#[cfg(test)]
mod tests;
