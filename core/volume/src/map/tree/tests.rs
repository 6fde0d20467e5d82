use super::*;
use crate::MemoryPages;
use crate::map::{Checkpoint, Table};
use futures_util::FutureExt;
use ovs_format::journal::Position;
use ovs_format::page::CheckpointRecord;
use ovs_units::{Epoch, JournalIndex, Sequence, VdiskId};
use std::collections::BTreeMap;
use uuid::Uuid;

fn now<T>(future: impl Future<Output = Result<T, VolumeError>>) -> T {
    future.now_or_never().unwrap().unwrap()
}

fn range(start: u64, count: u64) -> ClusterRange {
    ClusterRange { start: Cluster(start), count: ClusterCount(count) }
}

fn place(sco: u64, offset: u32) -> Place {
    Place { sco, offset }
}

/// A map in a store of its own.
struct World {
    store: MemoryPages,
    next_page: Cell<u64>,
    memory: Rc<MapMemory>,
    tree: Tree,
}

impl World {
    fn new(budget_bytes: u64) -> World {
        let memory = MapMemory::new(budget_bytes);
        let tree = Tree::empty(&memory);
        World { store: MemoryPages::default(), next_page: Cell::new(1), memory, tree }
    }

    fn set(&mut self, cluster: u64, place: Place) {
        drop(now(self.tree.prepare(&self.store, range(cluster, 1))));
        self.tree.set(range(cluster, 1), Some(place));
    }

    fn find(&self, cluster: u64) -> Option<Place> {
        now(self.tree.find(&self.store, range(cluster, 1))).0
    }

    fn checkpoint(&self) -> CheckpointRecord {
        let checkpoint = Checkpoint {
            position: Position { epoch: Epoch(1), index: JournalIndex(1) },
            sequence: Sequence(1),
            tree: self.tree.clone(),
            table: Table::default(),
            snapshots: Vec::new(),
        };
        // It lets others have their turn.
        let store = checkpoint.store(VdiskId(Uuid::nil()), &self.store, &self.next_page);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(store).unwrap()
    }

    fn resident_bytes(&self) -> u64 {
        self.memory.stats().resident_bytes
    }
}

/// More pages than there is room for: each is there when it is asked for, changed or not, and what is gone takes nothing.
#[test]
fn pages_go_and_come_back() {
    const BUDGET: u64 = 128 << 10;
    const LEAVES: u64 = 600;
    let mut world = World::new(BUDGET);
    let at = |leaf: u64| (leaf * 7 * FANOUT as u64 + leaf, place(leaf, (leaf * leaf % 1000) as u32));
    for leaf in 0..LEAVES {
        let (cluster, place) = at(leaf);
        world.set(cluster, place);
        world.set(cluster + 3, place);
        if world.memory.is_short() {
            world.checkpoint();
            assert!(world.resident_bytes() <= BUDGET, "{:?}", world.memory.stats());
        }
    }
    world.checkpoint();
    assert_eq!(world.memory.stats().changed_bytes, 0);
    for _ in 0..2 {
        for leaf in 0..LEAVES {
            let (cluster, place) = at(leaf);
            assert_eq!([0, 1, 3].map(|more| world.find(cluster + more)), [Some(place), None, Some(place)]);
            assert!(world.resident_bytes() <= BUDGET);
        }
    }
    assert!(world.memory.stats().loads > LEAVES);
    // What is used all the time stays.
    let before = world.memory.stats().loads;
    for leaf in 0..LEAVES {
        world.find(at(leaf).0);
        world.find(at(0).0);
    }
    assert!(
        world.memory.stats().loads - before < LEAVES + LEAVES / 2,
        "{before}, {:?}",
        world.memory.stats()
    );
    world.tree = Tree::empty(&world.memory);
    assert_eq!(world.memory.stats().resident_bytes, 0);
}

/// Whatever else is loaded before it is changed.
#[test]
fn what_is_prepared_stays() {
    let mut world = World::new(0);
    for leaf in 0..10 {
        world.set(leaf * FANOUT as u64, place(leaf, 1));
    }
    world.checkpoint();
    let leaf_3 = range(3 * FANOUT as u64, 2);
    let prepared = now(world.tree.prepare(&world.store, leaf_3));
    assert_eq!((0..10).filter(|leaf| world.find(leaf * FANOUT as u64) == Some(place(*leaf, 1))).count(), 10);
    drop(prepared);
    world.tree.set(leaf_3, Some(place(20, 5)));
    world.checkpoint();
    let found = [2, 3, 4].map(|leaf| world.find(leaf * FANOUT as u64));
    assert_eq!(found, [place(2, 1), place(20, 5), place(4, 1)].map(Some));
    assert_eq!(world.tree.mapped(), ClusterCount(11));
}

/// Of a map that two share each changes its own.
#[test]
fn what_is_shared_is_copied_before_it_is_changed() {
    let mut world = World::new(0);
    world.set(5, place(1, 1));
    let early = world.tree.clone();
    world.checkpoint();
    let stored = world.tree.clone();
    world.set(5, place(2, 2));
    world.set(6, place(2, 3));
    world.checkpoint();
    assert_eq!([5, 6].map(|cluster| world.find(cluster)), [Some(place(2, 2)), Some(place(2, 3))]);
    for older in [early, stored] {
        world.tree = older;
        assert_eq!([5, 6].map(|cluster| world.find(cluster)), [Some(place(1, 1)), None]);
    }
}

/// Until they are stored, changed pages are in memory, and are told.
#[test]
fn what_has_changed_stays_until_it_is_stored() {
    let mut world = World::new(128 << 10);
    let mut leaves = 0;
    while !world.memory.is_short() {
        world.set(leaves * FANOUT as u64, place(leaves, 0));
        leaves += 1;
    }
    assert!((3..20).contains(&leaves), "{leaves}");
    for leaf in 0..100 {
        world.set((leaves + leaf) * FANOUT as u64, place(1, 0));
    }
    assert!(world.resident_bytes() > 128 << 10);
    assert_eq!(world.memory.stats().loads, 0);
    world.checkpoint();
    assert!(!world.memory.is_short());
    assert!(world.resident_bytes() <= 128 << 10);
}

#[test]
fn the_tail_is_all_that_a_vdisk_may_ever_have_had() {
    let clusters_max = ovs_units::VDISK_SIZE_BYTES_MAX / ovs_units::CLUSTER_SIZE_BYTES;
    let tail = Tree::tail(Cluster(5));
    assert_eq!(tail.start, Cluster(5));
    assert!(tail.end().0 >= clusters_max);
    let last = Place { sco: 1, offset: 2 };
    let mut tree = Tree::empty(&MapMemory::new(u64::MAX));
    tree.set(ClusterRange { start: Cluster(clusters_max - 1), count: ClusterCount(1) }, Some(last));
    tree.set(tail, None);
    assert!(tree.root.is_none());
}

/// A read takes each run at once.
#[test]
fn what_lies_together_is_found_together() {
    let mut tree = Tree::empty(&MapMemory::new(u64::MAX));
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

/// A leaf whose clusters lie one behind the other is a word of the page above once it was read.
#[test]
fn of_a_run_only_its_beginning_is_kept() {
    const LEAVES: u64 = 200;
    let mut world = World::new(1 << 20);
    let leaf = FANOUT as u64;
    world.set(0, place(1, 0)); // no run: nothing is behind it
    for index in 1..LEAVES {
        let range = range(index * leaf, leaf);
        drop(now(world.tree.prepare(&world.store, range)));
        world.tree.set(range, Some(place(index, 0)));
    }
    world.tree = Tree::stored(world.checkpoint().root, &world.memory);
    let find = |world: &World, cluster| now(world.tree.find(&world.store, range(cluster, 1 << 40)));
    let read_all = |world: &World| {
        for index in 1..LEAVES {
            assert_eq!(find(world, index * leaf + 5), (Some(place(index, 5)), leaf - 5), "{index}");
        }
    };
    read_all(&world);
    let inner = (TOP_LEVEL as usize * size_of::<[Option<Child>; FANOUT]>()) as u64;
    assert!(world.resident_bytes() < inner + 1024, "{} of {inner}", world.resident_bytes());
    let loads = world.memory.stats().loads;
    read_all(&world);
    assert_eq!(world.memory.stats().loads, loads);

    // Another tree that shares all of it does not see what is changed in this one.
    let before = world.tree.clone();
    world.set(7 * leaf + 9, place(500, 3));
    assert_eq!(world.memory.stats().loads, loads, "nothing has to be read for that");
    for (tree, place) in [(&world.tree, place(500, 3)), (&before, place(7, 9))] {
        assert_eq!(now(tree.find(&world.store, range(7 * leaf + 9, 1))), (Some(place), 1));
    }
    assert_eq!(find(&world, 7 * leaf), (Some(place(7, 0)), 9));
    assert_eq!(find(&world, 7 * leaf + 10), (Some(place(7, 10)), leaf - 10));
    // It is stored like any other page, and what was not changed stays stored.
    let stored = world.checkpoint();
    world.tree = Tree::stored(stored.root, &world.memory);
    assert_eq!(find(&world, 7 * leaf + 9), (Some(place(500, 3)), 1));
    assert_eq!(find(&world, 8 * leaf + 9), (Some(place(8, 9)), leaf - 9));
}

/// What a whole page says is forgotten without reading it.
#[test]
fn a_page_that_becomes_zeros_need_not_be_in_memory() {
    let mut tree = Tree::empty(&MapMemory::new(u64::MAX));
    tree.set(range(3, 1), Some(Place { sco: 1, offset: 0 }));
    let mut leaf = tree.root.clone().unwrap();
    for level in (1..=TOP_LEVEL).rev() {
        let node = leaf.known_page().unwrap().resident().unwrap();
        let Node::Inner(children) = &*node else { panic!("level {level}") };
        leaf = children[0].clone().unwrap();
    }
    leaf.known_page().unwrap().let_go();
    tree.set(range(0, FANOUT as u64), None);
    assert!(tree.root.is_none());
}

/// Nothing but the pages of a range is prepared: its neighbours may not be in memory.
#[test]
fn a_change_up_to_the_end_of_a_page_leaves_the_next_one_alone() {
    let mut tree = Tree::empty(&MapMemory::new(u64::MAX));
    let place = |offset| Some(Place { sco: 1, offset });
    let end = FANOUT as u64;
    tree.set(range(end - 2, 4), place(0));
    let mut next = tree.root.clone().unwrap();
    for level in (1..=TOP_LEVEL).rev() {
        let node = next.known_page().unwrap().resident().unwrap();
        let Node::Inner(children) = &*node else { panic!("level {level}") };
        next = children[index_at(end, level)].clone().unwrap();
    }
    next.known_page().unwrap().let_go();
    tree.set(range(end - 2, 2), place(7));
    tree.set(range(end - 1, 1), None);
    assert_eq!(tree.mapped(), ClusterCount(3));
}

/// Nor is one that the range covers: nobody asks what it said.
#[test]
fn of_a_range_only_the_pages_at_its_edges_are_read() {
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
    let mut tree = Tree::stored(RootEntry { page: 1, mapped: 3 * FANOUT as u64 }, &MapMemory::new(u64::MAX));
    let leaf = FANOUT as u64;
    let edges = ClusterRange { start: Cluster(leaf - 1), count: ClusterCount(leaf + 2) };
    drop(tree.prepare(&store, edges).now_or_never().unwrap().unwrap());
    tree.set(edges, None);
    assert_eq!(tree.mapped(), ClusterCount(2 * leaf - 2));
}

#[test]
fn of_no_clusters_nothing_is_set() {
    let mut tree = Tree::empty(&MapMemory::new(u64::MAX));
    let nothing = ClusterRange { start: Cluster(0), count: ClusterCount(0) };
    tree.set(nothing, Some(Place { sco: 1, offset: 0 }));
    assert!(tree.root.is_none());
    let store = crate::MemoryPages::default();
    let stored = Tree::stored(RootEntry { page: 1, mapped: 1 }, &MapMemory::new(u64::MAX));
    drop(stored.prepare(&store, nothing).now_or_never().unwrap().unwrap());
}

/// Changes across the edges of pages of all levels, against a list; stored and read again now and then.
#[test]
fn a_tree_has_of_each_cluster_the_newest_place() {
    // Of a map of which little is in memory.
    let mut world = World::new(48 << 10);
    let mut expected = BTreeMap::<u64, Place>::new();
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
        drop(now(world.tree.prepare(&world.store, range)));
        world.tree.set(range, place);
        for index in 0..count {
            match place {
                None => expected.remove(&(start + index)),
                Some(Place { sco, offset }) => {
                    expected.insert(start + index, Place { sco, offset: offset + index as u32 })
                }
            };
        }
        assert_eq!(world.tree.mapped().0, expected.len() as u64, "step {step}");
        if step % 10 == 0 {
            let root = world.checkpoint().root;
            if step % 20 == 0 {
                world.tree = Tree::stored(root, &world.memory);
            }
        }
        for edge in edges {
            for at in edge.saturating_sub(25)..edge + 25 {
                check(&world, &expected, at, [1, 10, 1 << 40][(at % 3) as usize]);
            }
        }
    }
}

/// What is told of `wanted` clusters from `at` on is so, and in a page it is all of them that lie together.
fn check(world: &World, expected: &BTreeMap<u64, Place>, at: u64, wanted: u64) {
    let (place, count) = now(world.tree.find(&world.store, range(at, wanted)));
    assert_eq!(place, expected.get(&at).copied(), "cluster {at}");
    assert!((1..=wanted).contains(&count));
    let of_page = wanted.min(FANOUT as u64 - at % FANOUT as u64);
    let run = match place {
        None => expected.range(at..).next().map_or(u64::MAX, |(next, _)| next - at),
        Some(Place { sco, offset }) => {
            let next = |index: &u64| Place { sco, offset: offset + *index as u32 };
            (0..of_page).take_while(|index| expected.get(&(at + index)) == Some(&next(index))).count() as u64
        }
    };
    assert!(count <= run && count >= run.min(of_page), "cluster {at}: {count} of {run}");
}
