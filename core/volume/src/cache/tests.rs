//! Who keeps what.

mod ssd;

use super::*;
use ovs_format::sco::ScoRef;
use ovs_units::{CacheMode, Epoch, PutId, ScoNumber, VdiskId};
use uuid::Uuid;

const BLOCK: u64 = 4096;
const POOL: VpoolId = VpoolId(Uuid::from_u128(1));
const OTHER_POOL: VpoolId = VpoolId(Uuid::from_u128(2));

struct Counting(Cell<u128>);

impl Chance for Counting {
    fn uuid(&self) -> Uuid {
        self.0.set(self.0.get() + 1);
        Uuid::from_u128(self.0.get())
    }
}

/// A cache without an SSD, of so many blocks.
fn cache(blocks: u64) -> Rc<Cache> {
    let parts = CacheParts { memory_bytes: blocks * BLOCK, device: None };
    Cache::new(parts, Rc::new(Counting(Cell::new(0))))
}

/// A vDisk with a quota of so many blocks, and what it reads: clusters of an SCO of its own.
struct Reader {
    handle: Handle,
    sco: ScoRef,
}

fn sco(number: u128) -> ScoRef {
    let (vdisk, put) = (VdiskId(Uuid::from_u128(number)), PutId(Uuid::from_u128(number << 8)));
    ScoRef { vdisk, epoch: Epoch(1), number: ScoNumber(1), put, cluster_count: 1 << 15, header_checksum: 0 }
}

impl Reader {
    fn new(cache: &Rc<Cache>, number: u128, quota: Option<u64>) -> Reader {
        Reader::of(cache, POOL, number, quota)
    }

    fn of(cache: &Rc<Cache>, vpool: VpoolId, number: u128, quota: Option<u64>) -> Reader {
        let handle = Handle::new(Some(cache.clone()), vpool);
        let reader = Reader { handle, sco: sco(number) };
        reader.quota(quota);
        reader
    }

    fn quota(&self, blocks: Option<u64>) {
        self.handle.set(VdiskCache { mode: None, quota_bytes: blocks.map(|blocks| blocks * BLOCK) });
    }

    /// Was it there? If not it is now.
    fn read(&self, cluster: u32) -> bool {
        self.read_bytes(cluster, &content(&self.sco, cluster))
    }

    fn read_bytes(&self, cluster: u32, expected: &[u8]) -> bool {
        let who = self.handle.reader().unwrap();
        match who.cache.look(&who.location(&self.sco, cluster), who.owner) {
            Looked::Memory(bytes) => {
                assert!(bytes == expected, "cluster {cluster} is another");
                true
            }
            Looked::Ssd(_) => panic!("cluster {cluster} is on the SSD"),
            Looked::Nowhere => {
                let checksum = ovs_format::checksum(expected);
                who.fill(&self.sco, cluster, [expected].into_iter(), &[checksum]);
                false
            }
        }
    }

    /// Of these clusters, how many were there?
    fn read_all(&self, clusters: std::ops::Range<u32>) -> usize {
        clusters.filter(|cluster| self.read(*cluster)).count()
    }

    fn has(&self) -> u64 {
        self.handle.stats().unwrap().used_bytes / BLOCK
    }
}

fn content(sco: &ScoRef, cluster: u32) -> Vec<u8> {
    let word = (sco.put.0.as_u128() as u64) << 32 | u64::from(cluster) << 8 | 1;
    word.to_le_bytes().repeat(512)
}

#[test]
fn a_noisy_neighbour_takes_nothing_that_is_within_a_quota() {
    let cache = cache(100);
    let (quiet, noisy) = (Reader::new(&cache, 1, Some(80)), Reader::new(&cache, 2, None));
    quiet.read_all(0..80);
    for round in 0..20 {
        noisy.read_all(round * 50..round * 50 + 100);
    }
    assert_eq!((quiet.has(), noisy.has()), (80, 20));
    assert_eq!(quiet.read_all(0..80), 80);
    // What nobody needs anybody may use, until somebody needs it.
    let alone = super::tests::cache(100);
    let (quiet, noisy) = (Reader::new(&alone, 1, Some(80)), Reader::new(&alone, 2, Some(10)));
    noisy.read_all(0..300);
    assert_eq!(noisy.has(), 100);
    quiet.read_all(0..80);
    assert_eq!((quiet.has(), noisy.has()), (80, 20));
}

#[test]
fn quotas_that_do_not_fit_are_cut_in_proportion() {
    let cache = cache(120);
    let readers: Vec<Reader> = [120, 80, 40]
        .into_iter()
        .zip(1..)
        .map(|(quota, number)| Reader::new(&cache, number, Some(quota)))
        .collect();
    let without = Reader::new(&cache, 9, None);
    for round in 0..10 {
        without.read_all(0..200);
        for reader in &readers {
            reader.read_all(round * 200..round * 200 + 200);
        }
    }
    let has: Vec<u64> = readers.iter().map(Reader::has).collect();
    assert_eq!((has, without.has()), (vec![60, 40, 20], 0));
    assert!(!without.read(0), "there is nothing left for it");
    assert_eq!(without.has(), 0);
    assert!(cache.stats(0).skipped > 0);
    // Who has nothing in it asks for nothing.
    let idle = Reader::new(&cache, 10, Some(1 << 20));
    readers[0].read_all(0..200);
    assert_eq!((readers[0].has(), idle.has()), (60, 0));
}

#[test]
fn without_quotas_shares_are_equal() {
    let cache = cache(100);
    let (one, other) = (Reader::new(&cache, 1, None), Reader::new(&cache, 2, None));
    one.read_all(0..1000);
    assert_eq!(one.has(), 100);
    other.read_all(0..1000);
    assert_eq!((one.has(), other.has()), (50, 50));
}

#[test]
fn a_quota_that_changes_counts_from_the_next_that_comes() {
    let cache = cache(100);
    let (one, other) = (Reader::new(&cache, 1, Some(80)), Reader::new(&cache, 2, Some(20)));
    one.read_all(0..200);
    other.read_all(0..200);
    assert_eq!((one.has(), other.has()), (80, 20));
    one.quota(Some(30));
    other.quota(None);
    assert_eq!((one.has(), other.has()), (80, 20));
    other.read_all(1000..1200);
    assert_eq!((one.has(), other.has()), (30, 70));
    let vpool = VpoolCache { quota_bytes: Some(90 * BLOCK), ..VpoolCache::default() };
    cache.set_pool(POOL, vpool);
    other.handle.apply();
    assert_eq!(other.handle.stats().unwrap().quota_bytes, Some(90 * BLOCK));
    cache.set_pool(POOL, VpoolCache { mode: CacheMode::None, ..vpool });
    other.handle.apply();
    assert!(other.handle.reader().is_none());
    assert_eq!(other.handle.stats().unwrap().used_bytes, 0);
}

#[test]
fn what_is_read_once_takes_nothing_that_is_read_often() {
    let cache = cache(1000);
    let reader = Reader::new(&cache, 1, None);
    for _ in 0..3 {
        reader.read_all(0..800);
    }
    reader.read_all(2000..22_000);
    assert!(reader.read_all(0..800) >= 780, "a scan went through all of it");
    // Others that are read often take their place after a while.
    for _ in 0..30 {
        reader.read_all(22_000..22_800);
    }
    assert!(reader.read_all(22_000..22_800) >= 700);
}

#[test]
fn a_clone_reads_what_its_parent_has_brought() {
    let cache = cache(100);
    let parent = Reader::new(&cache, 1, Some(20));
    let mut clone = Reader::new(&cache, 2, Some(40));
    clone.sco = parent.sco;
    parent.read_all(0..20);
    assert_eq!(clone.read_all(0..20), 20);
    assert_eq!((parent.has(), clone.has(), cache.stats(0).entries), (20, 0, 20));
    // What the parent has above its quota is the clone's from its next use on, and so is everything when the parent goes.
    parent.read_all(20..30);
    assert_eq!(clone.read_all(28..30), 2);
    assert_eq!((parent.has(), clone.has()), (28, 2));
    drop(parent);
    assert_eq!(clone.read_all(0..20), 20);
    assert_eq!(clone.has(), 22);
    let noisy = Reader::new(&cache, 3, None);
    noisy.read_all(0..1000);
    assert_eq!((clone.has(), noisy.has()), (22, 78));
}

#[test]
fn one_that_has_left_makes_room_first_and_its_number_is_given_again() {
    let cache = cache(100);
    let gone = Reader::new(&cache, 1, Some(100));
    gone.read_all(0..60);
    drop(gone);
    let (one, other) = (Reader::new(&cache, 2, None), Reader::new(&cache, 3, None));
    one.read_all(0..70);
    other.read_all(0..30);
    assert_eq!((one.has(), other.has(), cache.stats(0).entries), (70, 30, 100));
    drop((one, other));
    for number in 10..80_000 {
        Reader::new(&cache, number, None);
    }
    assert_eq!(Reader::new(&cache, 1, None).read_all(0..10), 0);
}

#[test]
fn another_vpool_is_another_place() {
    let cache = cache(100);
    let here = Reader::new(&cache, 1, None);
    let there = Reader::of(&cache, OTHER_POOL, 1, None);
    here.read(5);
    assert!(!there.read_bytes(5, &[7; BLOCK as usize]));
    assert!(there.read_bytes(5, &[7; BLOCK as usize]) && here.read(5));
}

#[test]
fn the_same_content_is_held_once_in_a_vpool() {
    let cache = cache(10);
    let by_content = VpoolCache { dedup: CacheDedup::Content, ..VpoolCache::default() };
    cache.set_pool(POOL, by_content);
    cache.set_pool(OTHER_POOL, by_content);
    let (one, two) = (Reader::new(&cache, 1, None), Reader::new(&cache, 2, None));
    let other = Reader::of(&cache, OTHER_POOL, 3, None);
    let same = [9; BLOCK as usize];
    for reader in [&one, &two, &other] {
        assert!(!reader.read_bytes(0, &same));
        assert!(reader.read_bytes(0, &same));
    }
    let stats = cache.stats(0);
    assert_eq!((stats.entries, stats.used_bytes / BLOCK, stats.shared), (3, 2, 1));
    // One of those that share it goes, the other stays.
    let locations = |reader: &Reader| [reader.handle.reader().unwrap().location(&reader.sco, 0)].into_iter();
    cache.forget(locations(&one));
    assert!(two.read_bytes(0, &same));
    cache.forget(locations(&two));
    assert_eq!(cache.stats(0).used_bytes / BLOCK, 1);
    assert!(!one.read_bytes(0, &same), "it is gone with the last");
    // Twice as many entries as blocks, and no more.
    for cluster in 0..100 {
        one.read_bytes(cluster, &same);
    }
    assert_eq!(cache.stats(0).entries, 20);
    // Room for a block is made until there is any.
    two.read_all(100..200);
    assert!(cache.stats(0).used_bytes / BLOCK <= 10 && two.read(199));
}

/// Who is promised more than there is has a claim to all of it, and no more than that.
#[test]
fn a_quota_beyond_the_cache_voids_no_other() {
    let cache = cache(120);
    let (greedy, modest) = (Reader::new(&cache, 1, Some(1 << 50)), Reader::new(&cache, 2, Some(120)));
    for round in 0..10 {
        greedy.read_all(round * 200..round * 200 + 200);
        modest.read_all(round * 200..round * 200 + 200);
    }
    assert_eq!((greedy.has(), modest.has()), (60, 60));
}

/// However many share a block it costs no more to share it, and to find room for another takes a bounded time.
#[test]
fn one_content_everywhere_is_held_once() {
    let cache = cache(40_000);
    cache.set_pool(POOL, VpoolCache { dedup: CacheDedup::Content, ..VpoolCache::default() });
    let (zeros, other) = (Reader::new(&cache, 1, None), Reader::new(&cache, 2, None));
    for number in 0..3 {
        let sco = ScoRef { put: PutId(Uuid::from_u128(900 + number)), ..zeros.sco };
        let zeros = Reader { handle: Handle::new(Some(cache.clone()), POOL), sco };
        for cluster in 0..25_000 {
            zeros.read_bytes(cluster, &[0; BLOCK as usize]);
        }
    }
    let stats = cache.stats(0);
    assert_eq!((stats.entries, stats.used_bytes / BLOCK), (75_000, 1));
    other.read_all(0..32_000);
    let before = cache.stats(0).evicted;
    other.read(32_500);
    assert!(cache.stats(0).evicted - before <= 64);
}

#[test]
fn it_keeps_within_its_memory() {
    let cache = cache(64);
    let readers: Vec<Reader> =
        (1..6).map(|number| Reader::new(&cache, number, Some(number as u64 * 9))).collect();
    for step in 0..5000_u32 {
        readers[(step * 7 % 5) as usize].read(step * step % 97);
    }
    let stats = cache.stats(0);
    assert_eq!((stats.used_bytes, stats.memory.used_bytes, stats.entries), (64 * BLOCK, 64 * BLOCK, 64));
    assert_eq!(stats.filled, stats.evicted + 64);
    assert_eq!(readers.iter().map(Reader::has).sum::<u64>(), 64);
}

#[test]
fn what_is_no_cluster_or_is_there_already_does_not_come_in() {
    let cache = cache(10);
    let reader = Reader::new(&cache, 1, None);
    let who = reader.handle.reader().unwrap();
    who.fill(&reader.sco, 0, [&[1_u8; 100][..]].into_iter(), &[1]);
    assert_eq!((cache.stats(0).entries, cache.stats(0).skipped), (0, 1));
    reader.read(0);
    let other = [1; BLOCK as usize];
    who.fill(&reader.sco, 0, [&other[..]].into_iter(), &[ovs_format::checksum(&other)]);
    assert!(reader.read(0));
}

#[test]
fn a_block_that_is_damaged_in_memory_is_not_served() {
    let cache = cache(10);
    let reader = Reader::new(&cache, 1, None);
    let who = reader.handle.reader().unwrap();
    let wrong = ovs_format::checksum(&content(&reader.sco, 3)) ^ 1;
    who.fill(&reader.sco, 3, [&content(&reader.sco, 3)[..]].into_iter(), &[wrong]);
    assert!(!reader.read(3), "it was served");
    assert!(reader.read(3));
    assert_eq!(cache.stats(0).memory.damaged, 1);
}
