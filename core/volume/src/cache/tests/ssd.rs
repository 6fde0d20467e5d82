//! The way to an SSD and back, and what becomes of blocks on it.

use super::*;
use futures_util::future::LocalBoxFuture;
use std::io;
use tokio::sync::Semaphore;

/// Slots in memory, whose writes take as long as somebody wants.
struct Slots {
    bytes: RefCell<Vec<Bytes>>,
    writes: Semaphore,
    fails: Cell<bool>,
}

impl Slots {
    fn new(count: usize) -> Rc<Slots> {
        let bytes = RefCell::new(vec![Bytes::new(); count]);
        Rc::new(Slots { bytes, writes: Semaphore::new(0), fails: Cell::new(false) })
    }

    fn answer<T>(&self, answer: T) -> io::Result<T> {
        if self.fails.get() { Err(io::Error::other("worn out")) } else { Ok(answer) }
    }
}

impl CacheDevice for Slots {
    fn slot_count(&self) -> u32 {
        self.bytes.borrow().len() as u32
    }

    fn read(&self, slots: Vec<u32>) -> LocalBoxFuture<'_, io::Result<Vec<Bytes>>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let bytes = self.bytes.borrow();
            self.answer(slots.into_iter().map(|slot| bytes[slot as usize].clone()).collect())
        })
    }

    fn write(&self, blocks: Vec<(u32, Bytes)>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let _turn = self.writes.acquire().await.unwrap();
            let mut bytes = self.bytes.borrow_mut();
            blocks.into_iter().for_each(|(slot, block)| bytes[slot as usize] = block);
            self.answer(())
        })
    }
}

fn cache_on(device: &Rc<Slots>, memory: u64) -> Rc<Cache> {
    let device: Rc<dyn CacheDevice> = device.clone();
    let parts = CacheParts { memory_bytes: memory * BLOCK, device: Some(device) };
    Cache::new(parts, Rc::new(Counting(Cell::new(0))))
}

fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

impl Reader {
    /// Each of these clusters, with time for it to be written.
    async fn read_slowly(&self, clusters: std::ops::Range<u32>) {
        for cluster in clusters {
            self.read(cluster);
            some_turns().await;
        }
    }
}

async fn some_turns() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// What is there of a cluster, wherever.
async fn look(reader: &Reader, cluster: u32) -> Option<Bytes> {
    let who = reader.handle.reader().unwrap();
    let location = who.location(&reader.sco, cluster);
    match who.cache.look(&location, who.owner) {
        Looked::Memory(bytes) => Some(bytes),
        Looked::Ssd(block) => who.cache.read_ssd(&[(location, block)]).await.remove(0),
        Looked::Nowhere => None,
    }
}

#[test]
fn what_memory_has_no_room_for_is_on_the_ssd() {
    run(async {
        let device = Slots::new(64);
        device.writes.add_permits(1);
        let cache = cache_on(&device, 8);
        let reader = Reader::new(&cache, 1, None);
        for cluster in 0..40 {
            assert!(!reader.read(cluster));
            some_turns().await;
        }
        for cluster in 0..40 {
            assert!(look(&reader, cluster).await.unwrap() == content(&reader.sco, cluster));
        }
        assert!(reader.read(39), "what was read last is in memory");
        let stats = cache.stats(0);
        assert_eq!((stats.entries, stats.memory.used_bytes / BLOCK), (40, 8));
        assert!(stats.ssd.unwrap().hits > 30 && stats.ssd.unwrap().capacity_bytes == 60 * BLOCK, "{stats:?}");
        // Damaged, lost, and swapped.
        {
            let (good, mut bytes) = (content(&reader.sco, 1), device.bytes.borrow_mut());
            let at =
                |cluster| bytes.iter().position(|block| *block == content(&reader.sco, cluster)).unwrap();
            let (one, two, three, four) = (at(1), at(2), at(3), at(4));
            bytes[one] = good
                .iter()
                .enumerate()
                .map(|(at, byte)| byte ^ u8::from(at == 77))
                .collect::<Vec<u8>>()
                .into();
            bytes[two] = Bytes::new();
            bytes.swap(three, four);
        }
        for cluster in 1..5 {
            assert_eq!(look(&reader, cluster).await, None);
            assert!(!reader.read(cluster) && reader.read(cluster));
        }
        assert_eq!(cache.stats(0).ssd.unwrap().damaged, 4);
    });
}

#[test]
fn a_slot_that_is_being_written_is_nobody_elses() {
    run(async {
        let device = Slots::new(32);
        let cache = cache_on(&device, 16);
        let reader = Reader::new(&cache, 1, None);
        reader.read_all(0..4);
        some_turns().await;
        // They go while they are written, and others come.
        let who = reader.handle.reader().unwrap();
        cache.forget((0..4).map(|cluster| who.location(&reader.sco, cluster)));
        reader.read_all(10..14);
        assert_eq!(cache.stats(0).entries, 4);
        device.writes.add_permits(1);
        for cluster in 20..60 {
            some_turns().await;
            reader.read(cluster);
        }
        some_turns().await;
        for cluster in 10..14 {
            assert!(look(&reader, cluster).await.is_none_or(|bytes| bytes == content(&reader.sco, cluster)));
        }
        assert_eq!(cache.stats(0).ssd.unwrap().damaged, 0);
    });
}

#[test]
fn an_ssd_that_cannot_keep_up_holds_nobody_up() {
    run(async {
        let device = Slots::new(640);
        let cache = cache_on(&device, 16);
        let reader = Reader::new(&cache, 1, None);
        reader.read_all(0..100);
        let stats = cache.stats(0);
        assert_eq!((stats.entries, stats.skipped), (8, 92));
        device.writes.add_permits(1);
        some_turns().await;
        reader.read_all(100..108);
        assert_eq!(cache.stats(0).entries, 16);
        some_turns().await;
        // Who has more than he may keep leaves half of the way to others.
        reader.quota(Some(1));
        let other = Reader::new(&cache, 2, Some(100));
        reader.read_all(200..300);
        assert_eq!((reader.has(), other.read_all(0..100)), (20, 0));
        assert_eq!(other.has(), 4);
    });
}

#[test]
fn an_ssd_that_fails_is_left_alone() {
    for fails_to_write in [true, false] {
        run(async {
            let device = Slots::new(64);
            device.writes.add_permits(1);
            let cache = cache_on(&device, 8);
            let reader = Reader::new(&cache, 1, None);
            reader.read_slowly(0..40).await;
            device.fails.set(true);
            match fails_to_write {
                true => drop(reader.read(50)),
                false => assert_eq!(look(&reader, 0).await, None),
            }
            some_turns().await;
            let stats = cache.stats(0);
            assert_eq!((stats.ssd, stats.capacity_bytes, stats.memory.used_bytes), (None, 8 * BLOCK, 0));
            assert_eq!(stats.entries, 0);
            reader.read_all(100..200);
            assert_eq!((cache.stats(0).entries, cache.stats(0).memory.used_bytes), (8, 8 * BLOCK));
            assert!(reader.read(199));
        });
    }
}

/// The next who has the same gets a block of its own, and those that shared the damaged one do not keep it alive.
#[test]
fn a_damaged_block_is_shared_no_more() {
    run(async {
        let device = Slots::new(64);
        device.writes.add_permits(1);
        let cache = cache_on(&device, 4);
        cache.set_pool(POOL, VpoolCache { dedup: CacheDedup::Content, ..VpoolCache::default() });
        let (one, two) = (Reader::new(&cache, 1, None), Reader::new(&cache, 2, None));
        let same = [9; BLOCK as usize];
        for reader in [&one, &two] {
            assert!(!reader.read_bytes(0, &same));
            some_turns().await;
        }
        // Out of memory, and damaged on the SSD.
        one.read_slowly(10..30).await;
        let spoil = |block: &mut Bytes| {
            if block[..] == same {
                *block = vec![8; BLOCK as usize].into();
            }
        };
        device.bytes.borrow_mut().iter_mut().filter(|block| !block.is_empty()).for_each(spoil);
        assert_eq!(look(&one, 0).await, None);
        assert!(!one.read_bytes(0, &same));
        some_turns().await;
        one.read_slowly(30..50).await;
        assert_eq!(look(&one, 0).await.as_deref(), Some(&same[..]), "it is there again, and well");
        assert_eq!(cache.stats(0).ssd.unwrap().damaged, 1);
    });
}

#[test]
fn a_read_that_nobody_waits_for_any_more_keeps_no_slot() {
    run(async {
        let device = Slots::new(32);
        device.writes.add_permits(1);
        let cache = cache_on(&device, 2);
        let reader = Reader::new(&cache, 1, None);
        reader.read_slowly(0..8).await;
        let who = reader.handle.reader().unwrap();
        let location = who.location(&reader.sco, 0);
        let Looked::Ssd(block) = cache.look(&location, who.owner) else { panic!("it is in memory") };
        {
            let wanted = [(location, block)];
            let mut reading = std::pin::pin!(cache.read_ssd(&wanted));
            assert!(futures_util::poll!(&mut reading).is_pending());
            // What went meanwhile is not what it was asked for.
            cache.forget([location].into_iter());
            assert!(!reader.read(0));
            assert_eq!(reading.await, [None]);
            assert_eq!(cache.stats(0).ssd.unwrap().damaged, 0);
            let again = [(location, block)];
            let mut reading = std::pin::pin!(cache.read_ssd(&again));
            assert!(futures_util::poll!(&mut reading).is_pending());
        }
        reader.read_all(100..128);
        some_turns().await;
        assert_eq!(cache.index.borrow().blocks.busy_count(), 0);
    });
}
