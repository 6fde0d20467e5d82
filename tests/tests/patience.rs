//! How long is waited, how often is tried, and when something is due: to the millisecond, in time that is simulated.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

use futures_util::future::LocalBoxFuture;
use ovs_backend::{Backend, Call, Fault, FaultyBackend, MemoryBackend, Operation};
use ovs_tests::host::{Host, byte_of, create, put, run_paused};
use ovs_units::{ByteCount, ByteOffset, ByteRange, SnapshotId, VdiskId};
use ovs_volume::{
    CreateVdisk, Engine, EngineConfig, Entry, MemoryRegistry, OnFull, PageId, PageStore, Registry, Revision,
    Transaction, Vdisk, VdiskState, VolumeError,
};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};
use tokio::{task::JoinHandle, time::Instant};
use uuid::Uuid;

const DISK: VdiskId = VdiskId(Uuid::from_u128(10));
const SIZE: ByteCount = ByteCount(8 << 20);

/// Of calls of one kind on names of one kind: what becomes of them, and when they came.
struct Watched {
    fault: Cell<Option<fn() -> Fault>>,
    calls_ms: RefCell<Vec<u64>>,
    since: Cell<Option<Instant>>,
}

impl Watched {
    /// From now on each meets this.
    fn begin(&self, fault: Option<fn() -> Fault>) {
        self.fault.set(fault);
        self.since.set(Some(Instant::now()));
        self.calls_ms.take();
    }

    /// When they came, since then.
    fn calls_ms(&self) -> Vec<u64> {
        self.calls_ms.borrow().clone()
    }
}

fn watched_host(operation: Operation, object: &'static str) -> (Host, Rc<Watched>) {
    let (fault, calls_ms, since) = (Cell::new(None), RefCell::default(), Cell::new(None));
    let watched = Rc::new(Watched { fault, calls_ms, since });
    let watcher = Rc::clone(&watched);
    let schedule = move |call: &Call<'_>| {
        if call.operation != operation || !call.object.contains(object) {
            return None;
        }
        let since = watcher.since.get()?;
        watcher.calls_ms.borrow_mut().push(since.elapsed().as_millis() as u64);
        watcher.fault.get().map(|fault| fault())
    };
    let host = Host::new(12, Rc::new(FaultyBackend::new(MemoryBackend::new(), schedule)));
    let config = EngineConfig { scrub_by_itself: false, ..host.config.clone() };
    (Host { config, ..host }, watched)
}

/// A host whose backend is watched, and a vDisk on it.
struct Case {
    host: Host,
    watched: Rc<Watched>,
    engine: Engine,
    vdisk: Vdisk,
}

impl Case {
    async fn new(operation: Operation, object: &'static str) -> Case {
        Case::with(operation, object, |_| ()).await
    }

    async fn with(operation: Operation, object: &'static str, change: fn(&mut EngineConfig)) -> Case {
        let (mut host, watched) = watched_host(operation, object);
        change(&mut host.config);
        let engine = host.start().await;
        let vdisk = create(&engine, DISK, SIZE).await;
        Case { host, watched, engine, vdisk }
    }

    /// A clone of the vDisk as it is now.
    async fn clone_of_now(&self) -> Vdisk {
        let snapshot = SnapshotId(Uuid::from_u128(3));
        self.vdisk.snapshot(snapshot, "s".parse().unwrap()).await.unwrap();
        let (id, vpool, properties) = (VdiskId(Uuid::from_u128(11)), Host::POOL, "{}".into());
        let (base, on_full) = (Some((DISK, snapshot)), Host::ON_FULL);
        let request = CreateVdisk { id, vpool, size: SIZE, properties, base, on_full };
        self.engine.create_vdisk(request).await.unwrap()
    }
}

async fn sleep_ms(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

fn refuse() -> Fault {
    Fault::ErrorBefore
}

/// Four times, at growing distances; half a second after that the vDisk's loop begins anew.
#[test]
fn an_sco_that_cannot_be_put_is_tried_again() {
    run_paused(async {
        let soon = |config: &mut EngineConfig| config.destage_bytes = 4096;
        let Case { engine, vdisk, watched: puts, .. } = Case::with(Operation::Put, "/s/", soon).await;
        puts.begin(Some(refuse));
        put(&vdisk, 0, 1).await;
        sleep_ms(349).await;
        assert_eq!(vdisk.stats().state, VdiskState::Ok);
        sleep_ms(2).await;
        assert!(matches!(vdisk.stats().state, VdiskState::Stalled(_)));
        sleep_ms(848).await;
        assert_eq!(puts.calls_ms(), [0, 50, 150, 350, 850, 900, 1000]);
        puts.begin(None);
        vdisk.destage().await.unwrap();
        // Who is closed meanwhile does not wait once more, and begins anew as soon as that is known.
        puts.begin(Some(refuse));
        put(&vdisk, 1, 1).await;
        engine.close(Duration::from_millis(495)).await.unwrap();
        assert_eq!(puts.calls_ms(), [0, 50, 50]);
    });
}

#[test]
fn four_scos_are_on_their_way_at_once() {
    run_paused(async {
        let small = |config: &mut EngineConfig| config.sco_bytes = 4096;
        let Case { vdisk, watched: puts, .. } = Case::with(Operation::Put, "/s/", small).await;
        for number in 0..9 {
            put(&vdisk, number, 1).await;
        }
        puts.begin(Some(|| Fault::Delay(Box::pin(sleep_ms(10)))));
        vdisk.destage().await.unwrap();
        assert_eq!(puts.calls_ms(), [0, 0, 0, 0, 10, 10, 10, 10, 20]);
    });
}

/// Until twenty seconds are over, at distances of 3.2 s at most.
#[test]
fn the_journal_is_waited_for() {
    run_paused(async {
        let Case { engine, vdisk, watched: puts, .. } = Case::new(Operation::Put, "/j/").await;
        puts.begin(Some(refuse));
        vdisk.set_properties("one".into()).await.unwrap_err();
        let expected = [0, 50, 150, 350, 750, 1550, 3150, 6350, 9550, 12750, 15950, 19150, 22350];
        assert_eq!(puts.calls_ms(), expected);
        // Who is closed does not wait, and begins no epoch more.
        let epoch = vdisk.stats().epoch;
        puts.begin(Some(refuse));
        put(&vdisk, 1, 1).await;
        engine.close(Duration::from_millis(50)).await.unwrap();
        assert_eq!(puts.calls_ms()[..1], [0]);
        assert!(!puts.calls_ms().contains(&50));
        assert_eq!(vdisk.stats().epoch, epoch);
    });
}

/// Until two minutes are over.
#[test]
fn a_read_is_waited_for() {
    run_paused(async {
        let Case { engine, vdisk, watched: gets, .. } = Case::new(Operation::Get, "/s/").await;
        put(&vdisk, 0, 1).await;
        vdisk.destage().await.unwrap();
        gets.begin(Some(refuse));
        let read = || vdisk.read(ByteRange::new(ByteOffset(0), ByteCount(1)).unwrap());
        read().await.unwrap_err();
        let calls = gets.calls_ms();
        assert_eq!(calls[..9], [0, 50, 150, 350, 750, 1550, 3150, 6350, 9550]);
        assert_eq!((calls.len(), calls.last()), (44, Some(&121_550)));
        // Who is closed does not wait once more.
        gets.begin(Some(refuse));
        let reading = tokio::task::spawn_local({
            let vdisk = vdisk.clone();
            async move { vdisk.read(ByteRange::new(ByteOffset(0), ByteCount(1)).unwrap()).await }
        });
        sleep_ms(100).await;
        engine.close(Duration::from_millis(50)).await.unwrap();
        reading.await.unwrap().unwrap_err();
        assert_eq!(gets.calls_ms(), [0, 50, 150]);
    });
}

/// No commit is done while this says so.
#[derive(Default)]
struct Refusing {
    registry: MemoryRegistry,
    refuses: Cell<bool>,
    /// Or somebody else has been there, and nothing more is answered.
    is_fenced: Cell<bool>,
    calls: RefCell<Vec<Instant>>,
}

impl Registry for Refusing {
    fn get(&self, key: &str) -> LocalBoxFuture<'_, Result<Option<Entry>, VolumeError>> {
        match self.is_fenced.get() {
            true => Box::pin(async { Err(VolumeError::Retry("not now".into())) }),
            false => self.registry.get(key),
        }
    }

    fn scan(&self, prefix: &str) -> LocalBoxFuture<'_, Result<Vec<Entry>, VolumeError>> {
        self.registry.scan(prefix)
    }

    fn commit(&self, transaction: Transaction) -> LocalBoxFuture<'_, Result<Option<Revision>, VolumeError>> {
        self.calls.borrow_mut().push(Instant::now());
        if self.is_fenced.get() {
            return Box::pin(async { Ok(None) });
        }
        match self.refuses.get() {
            true => Box::pin(async { Err(VolumeError::Retry("not now".into())) }),
            false => self.registry.commit(transaction),
        }
    }
}

/// A vDisk whose registry may refuse.
async fn refusing() -> (Rc<Refusing>, Engine, Vdisk) {
    let registry = Rc::new(Refusing::default());
    let host = Host { registry: registry.clone(), ..watched_host(Operation::Put, "/s/").0 };
    let engine = host.start().await;
    let vdisk = create(&engine, DISK, SIZE).await;
    (registry, engine, vdisk)
}

fn set_properties(vdisk: &Vdisk) -> JoinHandle<Result<(), VolumeError>> {
    let vdisk = vdisk.clone();
    tokio::task::spawn_local(async move { vdisk.set_properties("one".into()).await })
}

/// For as long as it takes; who is closed tries six times.
#[test]
fn the_registry_is_waited_for() {
    run_paused(async {
        let (registry, engine, vdisk) = refusing().await;
        registry.refuses.set(true);
        registry.calls.take();
        let setting = set_properties(&vdisk);
        sleep_ms(6000).await;
        registry.refuses.set(false);
        setting.await.unwrap().unwrap();
        let distances = |calls: &[Instant]| -> Vec<u128> {
            calls.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect()
        };
        let expected = [20, 40, 80, 160, 320, 640, 1280, 1280, 1280, 1280];
        assert_eq!(distances(&registry.calls.take()), expected);
        put(&vdisk, 0, 1).await;
        registry.refuses.set(true);
        registry.calls.take();
        engine.close(Duration::from_millis(500)).await.unwrap();
        sleep_ms(1000).await;
        assert_eq!(distances(&registry.calls.take()), [20, 40, 80, 160, 320]);
    });
}

/// Who has not asked before need not ask whether it was itself.
#[test]
fn who_has_lost_a_vdisk_learns_it_at_once() {
    run_paused(async {
        let (registry, _, vdisk) = refusing().await;
        registry.is_fenced.set(true);
        let begun = Instant::now();
        let setting = tokio::time::timeout(Duration::from_secs(60), vdisk.set_properties("one".into())).await;
        assert!(matches!(setting, Ok(Err(VolumeError::Fenced(_)))), "{setting:?}");
        assert_eq!(begun.elapsed(), Duration::ZERO);
    });
}

/// Nor does it take another's for its own that it had to ask for again.
#[test]
fn who_has_lost_a_vdisk_while_it_waited_learns_it() {
    run_paused(async {
        let (registry, _, vdisk) = refusing().await;
        registry.refuses.set(true);
        let setting = set_properties(&vdisk);
        sleep_ms(100).await;
        let head = registry.scan("head/").await.unwrap().remove(0);
        let another = [&head.value[..], b" "].concat();
        let change = Transaction::new().compare(&head.key, head.revision).put(&head.key, another);
        assert!(registry.registry.commit(change).await.unwrap().is_some());
        registry.refuses.set(false);
        let answer = setting.await.unwrap();
        assert!(matches!(answer, Err(VolumeError::Fenced(_))), "{answer:?}");
    });
}

/// Of what cannot leave. What can has left before that.
#[test]
fn closing_waits_as_long_as_it_is_told() {
    run_paused(async {
        let (host, puts) = watched_host(Operation::Put, "/s/");
        for (can_leave, expected_ms) in [(true, 10), (false, 300)] {
            let engine = host.start().await;
            let vdisk = match can_leave {
                true => create(&engine, DISK, SIZE).await,
                false => engine.open_vdisk(Host::POOL, DISK, Host::ON_FULL).await.unwrap(),
            };
            put(&vdisk, 0, 1).await;
            puts.begin(if can_leave { None } else { Some(refuse) });
            let begun = Instant::now();
            engine.close(Duration::from_millis(300)).await.unwrap();
            assert_eq!(begun.elapsed().as_millis(), expected_ms);
        }
    });
}

/// Whether it is over when everybody has gone on as far as can be now.
async fn is_over<T>(write: &JoinHandle<T>) -> bool {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    write.is_finished()
}

/// Writes until the buffer is full; returns the last write, which waits.
async fn fill(vdisk: &Vdisk) -> JoinHandle<Result<(), VolumeError>> {
    for number in 0..1000 {
        let vdisk = vdisk.clone();
        let offset = ByteOffset(number * 4096);
        let write =
            tokio::task::spawn_local(async move { vdisk.write(offset, vec![1; 4096].into(), false).await });
        if !is_over(&write).await {
            return write;
        }
        write.await.unwrap().unwrap();
    }
    panic!("the write buffer is never full");
}

/// While data is on its way out nobody is refused for five seconds, or for as long as was told.
#[test]
fn a_full_buffer_is_waited_for() {
    let stall = |seconds| OnFull::Stall { timeout: Some(Duration::from_secs(seconds)) };
    for (on_full, expected_ms) in [(OnFull::NoSpace, 5000), (stall(3), 5000), (stall(7), 7000)] {
        run_paused(async {
            let Case { vdisk, watched: puts, .. } = Case::new(Operation::Put, "/s/").await;
            vdisk.set_on_full(on_full);
            puts.begin(Some(|| Fault::HangBefore));
            // No data has ever left.
            sleep_ms(20_000).await;
            let last = fill(&vdisk).await;
            let begun = Instant::now();
            let refused = last.await.unwrap();
            assert!(matches!(refused, Err(VolumeError::NoSpace(_))), "{refused:?}");
            assert_eq!(begun.elapsed().as_millis(), expected_ms, "{on_full:?}");
        });
    }
}

/// It is looked at once a second otherwise.
#[test]
fn who_is_told_not_to_wait_does_not() {
    run_paused(async {
        let Case { vdisk, watched: puts, engine: _engine, .. } = Case::new(Operation::Put, "/s/").await;
        puts.begin(Some(|| Fault::HangBefore));
        let last = fill(&vdisk).await;
        let begun = Instant::now();
        sleep_ms(10_500).await;
        assert!(!last.is_finished());
        vdisk.set_on_full(OnFull::NoSpace);
        assert!(matches!(last.await.unwrap(), Err(VolumeError::NoSpace(_))));
        assert_eq!(begun.elapsed().as_millis(), 10_500);
    });
}

/// Half of what writes may fill is shared once it is full: 288 blocks, of which each cluster takes one for its header.
#[test]
fn each_has_its_share_of_a_full_buffer() {
    // Of the last four the others have a cluster each: until half is used nobody is kept to a share.
    for (vdisk_count, writing_count, expected) in [(1, 1, 145), (2, 2, 146), (4, 4, 148), (4, 1, 140)] {
        run_paused(async {
            let (host, puts) = watched_host(Operation::Put, "/s/");
            let engine = host.start().await;
            let mut vdisks = Vec::new();
            for id in 0..vdisk_count {
                vdisks.push(create(&engine, VdiskId(Uuid::from_u128(20 + id)), SIZE).await);
            }
            puts.begin(Some(|| Fault::HangBefore));
            let mut done = 0;
            for number in 0..1000 {
                let turn = if number < 4 { vdisk_count } else { writing_count } as usize;
                let vdisk = vdisks[number as usize % turn].clone();
                let write = tokio::task::spawn_local(async move { put(&vdisk, number, 1).await });
                if !is_over(&write).await {
                    break;
                }
                done += 1;
            }
            assert_eq!(done, expected, "{vdisk_count} vDisks");
        });
    }
}

/// At the age that is configured, or with so much of it.
#[test]
fn what_is_buffered_leaves_in_time() {
    run_paused(async {
        let soon = |config: &mut EngineConfig| config.destage_bytes = 4 * 4096;
        let Case { vdisk, .. } = Case::with(Operation::Put, "/s/", soon).await;
        sleep_ms(1000).await;
        for number in 0..3 {
            put(&vdisk, number, 1).await;
        }
        sleep_ms(9_999).await;
        assert_eq!(vdisk.stats().buffered, ByteCount(3 * 4096));
        sleep_ms(2).await;
        assert_eq!(vdisk.stats().buffered, ByteCount(0));
        for number in 0..4 {
            put(&vdisk, number, 2).await;
        }
        sleep_ms(1).await;
        assert_eq!(vdisk.stats().buffered, ByteCount(0));
    });
}

async fn has_copy(host: &Host) -> bool {
    !host.backend.list(&format!("v/{}/c/", DISK.0.simple()), None, 1).await.unwrap().is_empty()
}

/// What is on the backend already needs none of the journal.
#[test]
fn after_a_clean_end_no_journal_is_read() {
    run_paused(async {
        let Case { host, engine, vdisk, watched: gets } = Case::new(Operation::Get, "/j/").await;
        for number in 0..9 {
            put(&vdisk, number, 1).await;
            vdisk.destage().await.unwrap();
        }
        engine.close(Duration::from_secs(1)).await.unwrap();
        let engine = host.start().await;
        gets.begin(None);
        engine.open_vdisk(Host::POOL, DISK, Host::ON_FULL).await.unwrap();
        assert_eq!(gets.calls_ms().len(), 2, "only what may have come behind its end");
    });
}

#[test]
fn a_map_is_checkpointed_after_so_many_commits() {
    run_paused(async {
        let case = Case::with(Operation::Put, "/s/", |config| config.checkpoint_every = 3).await;
        let Case { host, vdisk, .. } = &case;
        let mut records = Vec::new();
        for number in 0..7 {
            put(vdisk, number, 1).await;
            vdisk.destage().await.unwrap();
            records.extend(host.pages.all_records());
            records.dedup();
        }
        assert_eq!(records.len(), 2);
    });
}

/// Its own data cannot leave before its parent's.
#[test]
fn a_clone_whose_parent_cannot_send_out_says_so() {
    run_paused(async {
        let case = Case::new(Operation::Put, "/s/").await;
        put(&case.vdisk, 0, 1).await;
        case.watched.begin(Some(refuse));
        let clone = case.clone_of_now().await;
        put(&clone, 1, 1).await;
        sleep_ms(15_000).await;
        let state = clone.stats().state;
        assert!(matches!(&state, VdiskState::Stalled(why) if why.contains("its parent")), "{state:?}");
        case.watched.begin(None);
        clone.destage().await.unwrap();
        assert_eq!(clone.stats().state, VdiskState::Ok);
    });
}

/// It looks once a second, and holds it no longer than its parent does.
#[test]
fn a_clone_that_writes_nothing_lets_go_of_its_parent_s_data() {
    run_paused(async {
        let case = Case::new(Operation::Put, "/s/").await;
        let Case { engine, vdisk, .. } = &case;
        let empty = engine.stats().buffer_used_bytes;
        for number in 0..100 {
            put(vdisk, number, 1).await;
        }
        case.watched.begin(Some(|| Fault::Delay(Box::pin(sleep_ms(5000)))));
        let clone = case.clone_of_now().await;
        sleep_ms(4999).await;
        let buffered = engine.stats().buffer_used_bytes;
        assert!(!vdisk.snapshots()[0].on_backend && buffered > empty + 200 * 4096);
        sleep_ms(1002).await;
        assert!(vdisk.snapshots()[0].on_backend);
        put(vdisk, 0, 2).await;
        assert!(engine.stats().buffer_used_bytes < empty + 64 * 4096);
        assert_eq!(byte_of(&clone, 0).await, 1);
    });
}

/// Where nothing is written the loop of a vDisk looks every minute.
#[test]
fn a_journal_that_grows_without_data_is_replaced_as_well() {
    run_paused(async {
        let seldom = |config: &mut EngineConfig| config.copy_map_after = 10 * (64 << 10);
        let Case { host, vdisk, .. } = Case::with(Operation::Put, "/s/", seldom).await;
        sleep_ms(1000).await;
        for number in 0..12 {
            vdisk.set_properties(format!("{number}").into()).await.unwrap();
        }
        sleep_ms(58_900).await;
        assert!(!has_copy(&host).await);
        sleep_ms(200).await;
        assert!(has_copy(&host).await);
    });
}

/// Of the objects of a journal each weighs as much as 64 KiB. After a failure as many have to come once more.
#[test]
fn a_map_is_copied_after_so_many_records() {
    run_paused(async {
        let often = |config: &mut EngineConfig| {
            (config.copy_map_after, config.checkpoint_every) = (5 * (64 << 10), 1)
        };
        let Case { vdisk, watched: puts, .. } = Case::with(Operation::Put, "/c/", often).await;
        puts.begin(Some(refuse));
        let mut copied = Vec::new();
        for number in 0..30 {
            if number == 10 {
                puts.begin(None);
            }
            put(&vdisk, number, 1).await;
            vdisk.destage().await.unwrap();
            sleep_ms(1).await;
            if !puts.calls_ms.take().is_empty() {
                copied.push(number);
            }
        }
        assert_eq!(copied, [3, 8, 13, 18, 23, 28], "the first is the journal's start");
    });
}

/// As long as reading the journal costs less than reading the copy, also as the next process finds that out.
#[test]
fn a_map_whose_copy_is_large_is_copied_seldom() {
    run_paused(async {
        let often = |config: &mut EngineConfig| (config.copy_map_after, config.checkpoint_every) = (1, 1);
        let case = Case::with(Operation::Put, "/c/", often).await;
        let Case { host, mut engine, mut vdisk, watched: puts } = case;
        let mut copied = Vec::new();
        // What is in the head is in the copy: so much as four and a half records weigh.
        vdisk.set_properties("x".repeat(288 << 10).into()).await.unwrap();
        puts.begin(None);
        for number in 0..30 {
            if number == 14 {
                engine.close(Duration::from_secs(1)).await.unwrap();
                engine = host.start().await;
                vdisk = engine.open_vdisk(Host::POOL, DISK, Host::ON_FULL).await.unwrap();
            }
            put(&vdisk, number, 1).await;
            vdisk.destage().await.unwrap();
            sleep_ms(1).await;
            if !puts.calls_ms.take().is_empty() {
                copied.push(number);
            }
        }
        assert_eq!(copied, [0, 5, 10, 14, 19, 24, 29], "a start is a record as well");
    });
}

/// With half of the slots begun everything that is buffered is sent out.
#[test]
fn a_buffer_that_gets_short_is_emptied() {
    run_paused(async {
        let Case { vdisk, watched: puts, engine: _engine, .. } = Case::new(Operation::Put, "/j/").await;
        puts.begin(None);
        let mut count = 0;
        while puts.calls_ms().is_empty() {
            let range = ByteRange::new(ByteOffset(count * 4096), ByteCount(4096)).unwrap();
            vdisk.zero(range, false).await.unwrap();
            sleep_ms(1).await;
            count += 1;
        }
        // Of twelve slots one is begun at the start. Into each go 62 records of zeros.
        assert!((5 * 62..5 * 62 + 10).contains(&count), "after {count}");
    });
}

/// Once a minute, where more pages were made than are needed, and 16384 at least.
#[test]
fn map_pages_are_swept_when_there_are_many() {
    run_paused(async {
        for (highest, expected) in [(16_383, 1), (16_384, 0)] {
            let (host, _) = watched_host(Operation::Put, "/s/");
            host.pages.store(vec![(PageId(highest), "of nobody".into())]).await.unwrap();
            let engine = host.start().await;
            sleep_ms(59_999).await;
            assert_eq!(host.pages.all().len(), 1);
            sleep_ms(2).await;
            assert_eq!(host.pages.all().len(), expected, "after {highest}");
            // It is begun anew from there.
            host.pages.store(vec![(PageId(5), "of nobody".into())]).await.unwrap();
            sleep_ms(60_000).await;
            assert_eq!(host.pages.all().len(), expected + 1, "after {highest}");
            drop(engine);
        }
    });
}
