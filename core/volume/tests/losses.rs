//! What is lost, damaged or taken over by another host: what is served then, and what it must never do to others.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_backend::{Backend, Fault, FaultyBackend, MemoryBackend, ObjectName, Operation, Urgency};
use ovs_units::{ByteCount, ByteOffset, ByteRange, Name, SnapshotId, VdiskId, VpoolId};
use ovs_volume::{
    Chance, CreateVdisk, Engine, EngineConfig, EngineParts, LogDevice, MemoryPages, MemoryRegistry, OnFull,
    PageStore, Registry, SystemClock, Transaction, Vdisk, VdiskState, VolumeError,
};
use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    time::Duration,
};
use uuid::Uuid;

const POOL: VpoolId = VpoolId(Uuid::from_u128(1));
const DISK: VdiskId = VdiskId(Uuid::from_u128(10));
const ON_FULL: OnFull = OnFull::Stall { timeout: None };
const SLOT_BYTES: usize = 1 << 20;
/// A batch of one cluster: its header block, and the cluster.
const BATCH_BYTES: usize = 8192;

/// Identities in a row.
#[derive(Default)]
struct Counting(Cell<u128>);

impl Chance for Counting {
    fn uuid(&self) -> Uuid {
        self.0.set(self.0.get() + 1);
        Uuid::from_u128(self.0.get())
    }
}

/// A write buffer that can be looked at, spoilt, and copied as a crash leaves it.
struct Buffer {
    slots: RefCell<Vec<Vec<u8>>>,
    refuses_headers: Cell<bool>,
}

impl Buffer {
    fn new() -> Rc<Buffer> {
        Rc::new(Buffer {
            slots: RefCell::new(vec![vec![0; SLOT_BYTES]; 12]),
            refuses_headers: Cell::new(false),
        })
    }

    fn copy(&self) -> Rc<Buffer> {
        let slots = self.slots.borrow().clone();
        Rc::new(Buffer { slots: RefCell::new(slots), refuses_headers: Cell::new(false) })
    }

    /// Changes the n-th batch of the first slot in use.
    fn spoil(&self, batch: usize, spoil: impl FnOnce(&mut [u8])) {
        let mut slots = self.slots.borrow_mut();
        let used = slots.iter_mut().find(|slot| slot[..8].iter().any(|byte| *byte != 0)).unwrap();
        spoil(&mut used[4096 + batch * BATCH_BYTES..][..BATCH_BYTES]);
    }
}

impl LogDevice for Buffer {
    fn slot_count(&self) -> usize {
        self.slots.borrow().len()
    }

    fn slot_bytes(&self) -> u64 {
        SLOT_BYTES as u64
    }

    fn write(&self, slot: usize, offset: u64, parts: Vec<Bytes>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if offset == 0 && self.refuses_headers.get() {
                return Err(io::Error::other("the host dies here"));
            }
            let bytes = parts.concat();
            self.slots.borrow_mut()[slot][offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            Ok(())
        })
    }

    fn sync(&self, _: usize) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            tokio::task::yield_now().await;
            Ok(())
        })
    }

    fn read(&self, slot: usize, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            Ok(Bytes::copy_from_slice(&self.slots.borrow()[slot][offset as usize..][..length]))
        })
    }
}

struct Host {
    chance: Rc<Counting>,
    registry: Rc<MemoryRegistry>,
    pages: Rc<MemoryPages>,
    backend: Rc<dyn Backend>,
    copies_maps: bool,
}

impl Host {
    fn new(copies_maps: bool) -> Host {
        let backend = Rc::new(MemoryBackend::new());
        Host { chance: Rc::default(), registry: Rc::default(), pages: Rc::default(), backend, copies_maps }
    }

    async fn start(&self, buffer: &Rc<Buffer>) -> Result<Engine, VolumeError> {
        let parts = EngineParts {
            clock: Rc::new(SystemClock::new()),
            chance: self.chance.clone(),
            registry: self.registry.clone(),
            pages: self.pages.clone(),
            buffer: buffer.clone(),
            cache: None,
        };
        let config = EngineConfig {
            destage_after: Duration::from_secs(3600),
            checkpoint_every: if self.copies_maps { 1 } else { 32 },
            copy_map_after: if self.copies_maps { 1 } else { u64::MAX },
            // Each page goes into a part of its own.
            copy_part_bytes: 1,
            ..EngineConfig::default()
        };
        let engine = Engine::open(config, parts).await?;
        engine.attach_backend(POOL, self.backend.clone());
        Ok(engine)
    }

    /// Those of the map's pages that are not read before they are needed.
    fn spoil_leaves(&self) {
        for (page, bytes) in self.pages.all().into_iter().filter(|(_, bytes)| matches!(bytes[0], 1 | 6)) {
            let mut bytes = bytes.to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            self.pages.damage(page, Some(bytes.into()));
        }
    }

    /// Another host with nothing of its own, over the same backend.
    async fn take_over(&mut self) -> Vdisk {
        (self.registry, self.pages) = Default::default();
        let engine = self.start(&Buffer::new()).await.unwrap();
        for found in engine.discover(POOL).await.unwrap() {
            assert_eq!(found.problem, None);
            engine.adopt_vdisk(POOL, found.id).await.unwrap();
        }
        engine.finish_recovery(POOL).await.unwrap();
        open(&engine).await
    }
}

async fn create(engine: &Engine) -> Vdisk {
    let size = ByteCount(8 << 20);
    let request =
        CreateVdisk { id: DISK, vpool: POOL, size, properties: "{}".into(), base: None, on_full: ON_FULL };
    engine.create_vdisk(request).await.unwrap()
}

async fn open(engine: &Engine) -> Vdisk {
    engine.open_vdisk(POOL, DISK, ON_FULL).await.unwrap()
}

fn cluster(number: u64) -> ByteRange {
    ByteRange::new(ByteOffset(number * 4096), ByteCount(4096)).unwrap()
}

async fn put(vdisk: &Vdisk, number: u64, byte: u8) {
    vdisk.write(cluster(number).start, vec![byte; 4096].into(), false).await.unwrap();
}

async fn put_stable(vdisk: &Vdisk, number: u64, byte: u8) {
    put(vdisk, number, byte).await;
    vdisk.flush().await.unwrap();
}

async fn byte(vdisk: &Vdisk, number: u64) -> u8 {
    vdisk.read(cluster(number)).await.unwrap()[0]
}

fn is_damaged(vdisk: &Vdisk) -> bool {
    matches!(vdisk.stats().state, VdiskState::Damaged(_))
}

fn is_degraded(vdisk: &Vdisk) -> bool {
    matches!(vdisk.stats().state, VdiskState::Degraded(_))
}

fn run(case: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

/// The first life was cut in the middle, the second while it made that end persistent.
#[test]
fn a_crash_while_the_log_s_end_is_made_persistent_brings_nothing_back() {
    run(async {
        let host = Host::new(false);
        let buffer = Buffer::new();
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        for number in 0..200 {
            put(&vdisk, number, 7).await;
        }
        // Nothing was flushed: a power loss may take any batch. The log went on in a second slot.
        let lost = buffer.copy();
        lost.spoil(50, |batch| batch.fill(0));
        lost.refuses_headers.set(true);
        assert!(host.start(&lost).await.is_err());
        let engine = host.start(&lost.copy()).await.unwrap();
        let vdisk = open(&engine).await;
        for number in 0..200 {
            let expected = if number < 50 { 7 } else { 0 };
            assert_eq!(byte(&vdisk, number).await, expected, "cluster {number}");
        }
    });
}

#[test]
fn a_damage_that_was_accepted_does_not_hide_the_next() {
    run(async {
        let host = Host::new(false);
        let buffer = Buffer::new();
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        for number in 0..20 {
            put_stable(&vdisk, number, 7).await;
        }
        let buffer = buffer.copy();
        buffer.spoil(5, |batch| batch[4096] ^= 1);
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        assert!(is_damaged(&vdisk));
        assert!(vdisk.read(cluster(0)).await.is_err());
        assert!(vdisk.accept_loss().await.unwrap().unwrap().contains("batch 5"));
        assert_eq!(byte(&vdisk, 4).await, 7);
        put_stable(&vdisk, 100, 9).await;
        // The same evidence is there at the next start, and is known.
        let engine = host.start(&buffer.copy()).await.unwrap();
        assert_eq!(open(&engine).await.stats().state, VdiskState::Ok);
        let buffer = buffer.copy();
        buffer.spoil(6, |batch| batch[4096] ^= 1);
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        assert!(is_damaged(&vdisk));
        assert!(vdisk.accept_loss().await.unwrap().unwrap().contains("batch 6"));
    });
}

#[test]
fn a_snapshot_whose_loss_was_accepted_takes_nothing_in() {
    for is_early in [false, true] {
        run(async {
            let takes_data = Rc::new(Cell::new(false));
            let taking = takes_data.clone();
            let mut host = Host::new(false);
            host.backend = Rc::new(FaultyBackend::new(MemoryBackend::new(), move |call| {
                let is_data = call.operation == Operation::Put && call.object.contains("/s/");
                (is_data && !taking.get()).then_some(Fault::NoSpace)
            }));
            let buffer = Buffer::new();
            let engine = host.start(&buffer).await.unwrap();
            let vdisk = create(&engine).await;
            put_stable(&vdisk, 0, 1).await;
            put_stable(&vdisk, 1, 1).await;
            // The disk lies about the rest: it was synced, and is gone.
            let old = buffer.copy();
            for number in 2..6 {
                put(&vdisk, number, 1).await;
            }
            let snapshot = SnapshotId(Uuid::from_u128(77));
            vdisk.snapshot(snapshot, Name::new("s").unwrap()).await.unwrap();
            let engine = host.start(&old).await.unwrap();
            let vdisk = open(&engine).await;
            assert!(is_damaged(&vdisk));
            assert!(vdisk.accept_loss().await.unwrap().unwrap().contains("snapshot s"));
            let of_snapshot = async |vdisk: &Vdisk, number| {
                vdisk.read_snapshot(snapshot, cluster(number)).await.unwrap()[0]
            };
            assert_eq!((of_snapshot(&vdisk, 0).await, of_snapshot(&vdisk, 2).await), (1, 0));
            put(&vdisk, 0, 9).await;
            if !is_early {
                takes_data.set(true);
                vdisk.destage().await.unwrap();
                vdisk.wait_on_backend(snapshot).await.unwrap();
            }
            for number in 10..20 {
                put(&vdisk, number, 9).await;
            }
            for _ in 0..2 {
                host.pages = Rc::default();
                let engine = host.start(&old.copy()).await.unwrap();
                let vdisk = open(&engine).await;
                // Where the backend takes nothing it may have tried already.
                assert!(matches!(vdisk.stats().state, VdiskState::Ok | VdiskState::Stalled(_)));
                assert_eq!((of_snapshot(&vdisk, 0).await, of_snapshot(&vdisk, 2).await), (1, 0));
                assert_eq!((byte(&vdisk, 0).await, byte(&vdisk, 19).await), (9, 9));
            }
        });
    }
}

/// The checkpoint knows the snapshot as it is, the registry knows nothing, the journal still waits for what was lost.
#[test]
fn numbers_that_a_snapshot_has_lost_are_nobody_else_s() {
    run(async {
        let takes_data = Rc::new(Cell::new(false));
        let taking = takes_data.clone();
        let mut host = Host::new(false);
        host.backend = Rc::new(FaultyBackend::new(MemoryBackend::new(), move |call| {
            let is_data = call.operation == Operation::Put && call.object.contains("/s/");
            (is_data && !taking.get()).then_some(Fault::NoSpace)
        }));
        let engine = host.start(&Buffer::new()).await.unwrap();
        let vdisk = create(&engine).await;
        for number in 0..6 {
            put(&vdisk, number, 1).await;
        }
        let snapshot = SnapshotId(Uuid::from_u128(77));
        vdisk.snapshot(snapshot, Name::new("s").unwrap()).await.unwrap();
        drop((vdisk, engine));

        let vdisk = host.take_over().await;
        assert!(is_damaged(&vdisk));
        drop(vdisk);
        let buffer = Buffer::new();
        let engine = host.start(&buffer).await.unwrap();
        open(&engine).await.accept_loss().await.unwrap();
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop(engine);

        host.registry = Rc::default();
        let engine = host.start(&buffer).await.unwrap();
        engine.adopt_vdisk(POOL, DISK).await.unwrap();
        let vdisk = open(&engine).await;
        takes_data.set(true);
        for number in 0..3 {
            put(&vdisk, number, 2).await;
            vdisk.destage().await.unwrap();
        }
        drop((vdisk, engine));

        host.pages = Rc::default();
        let vdisk = open(&host.start(&buffer).await.unwrap()).await;
        for number in 0..6 {
            assert_eq!(
                vdisk.read_snapshot(snapshot, cluster(number)).await.unwrap()[0],
                0,
                "cluster {number}"
            );
            assert_eq!(byte(&vdisk, number).await, if number < 3 { 2 } else { 0 });
        }
    });
}

/// The last name of a map copy's object: names are in order of epochs.
async fn newest_copy(host: &Host) -> Option<String> {
    let prefix = format!("v/{}/c/", DISK.0.simple());
    let objects = host.backend.list(&prefix, None, 1000).await.unwrap();
    objects.last().map(|object| object.name.to_string())
}

/// A host that hangs while another takes over its vDisk, and then goes on as if nothing had happened.
#[test]
fn a_stale_owner_neither_removes_nor_adds_anything() {
    // The new owner makes copies of its own, or lives on what the stale one had made.
    for (stale_copies, new_copies) in [(false, false), (true, true), (true, false)] {
        run(async {
            let mut host = Host::new(stale_copies);
            let engine = host.start(&Buffer::new()).await.unwrap();
            let stale = create(&engine).await;
            let fill = async |vdisk: &Vdisk, numbers: std::ops::Range<u64>, byte| {
                for number in numbers {
                    put(vdisk, number, byte).await;
                    // The stale one may learn meanwhile that it is.
                    let _ = vdisk.destage().await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            fill(&stale, 0..30, 9).await;
            fill(&stale, 0..30, 1).await;
            let of_stale = newest_copy(&host).await;
            assert_eq!(of_stale.is_some(), stale_copies);
            host.copies_maps = new_copies;
            let new = host.take_over().await;
            fill(&new, 100..110, 2).await;
            let of_new = newest_copy(&host).await;
            assert_eq!(of_new > of_stale, new_copies, "the new owner has made copies of its own");
            fill(&stale, 30..45, 1).await;
            let _ = stale.scrub().await;
            if new_copies {
                assert_eq!(newest_copy(&host).await, of_new);
            }
            // The new owner loses all it has of its own.
            let newest = host.take_over().await;
            for number in 100..110 {
                assert_eq!(byte(&newest, number).await, 2);
            }
            assert_eq!((byte(&newest, 0).await, byte(&newest, 30).await), (1, 0));
        });
    }
}

/// Of what a registry has lost only that is adopted; the parent knows its clone already.
#[test]
fn a_clone_is_adopted_again_under_a_parent_that_knows_it() {
    run(async {
        let mut host = Host::new(false);
        let engine = host.start(&Buffer::new()).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 3, 7).await;
        let (snapshot, id) = (SnapshotId(Uuid::from_u128(100)), VdiskId(Uuid::from_u128(11)));
        vdisk.snapshot(snapshot, Name::new("s").unwrap()).await.unwrap();
        let base = Some((DISK, snapshot));
        let (size, properties) = (ByteCount(8 << 20), "{}".into());
        let clone = CreateVdisk { id, vpool: POOL, size, properties, base, on_full: ON_FULL };
        engine.create_vdisk(clone).await.unwrap().destage().await.unwrap();
        vdisk.destage().await.unwrap();
        host.take_over().await;
        host.registry.commit(Transaction::new().delete(format!("head/{id}"))).await.unwrap();
        let engine = host.start(&Buffer::new()).await.unwrap();
        engine.adopt_vdisk(POOL, id).await.unwrap();
        engine.finish_recovery(POOL).await.unwrap();
        let clone = engine.open_vdisk(POOL, id, ON_FULL).await.unwrap();
        assert_eq!(byte(&clone, 3).await, 7);
        let parent = engine.vdisk(DISK).unwrap();
        assert_eq!(parent.snapshots()[0].clone_count, 1);
    });
}

/// A registry that was restored from an old copy must not begin where the vDisk was then, however much of the journal is
/// gone since.
#[test]
fn a_registry_older_than_the_backend_is_refused() {
    for copies_maps in [false, true] {
        run(async {
            let host = Host::new(copies_maps);
            let key = format!("head/{DISK}");
            let buffer = Buffer::new();
            let engine = host.start(&buffer).await.unwrap();
            let vdisk = create(&engine).await;
            let mut old = Vec::new();
            for number in 0..40 {
                put(&vdisk, number, 7).await;
                vdisk.destage().await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
                old.push(host.registry.get(&key).await.unwrap().unwrap().value);
            }
            old.truncate(37); // the last two or three may have been written in one go
            for head in old.into_iter().step_by(6) {
                host.registry.commit(Transaction::new().put(&key, head)).await.unwrap();
                let engine = host.start(&buffer.copy()).await.unwrap();
                let refused = engine.open_vdisk(POOL, DISK, ON_FULL).await.err();
                let told = refused.map(|error| error.to_string()).unwrap_or_default();
                assert!(told.contains("older than the backend"), "{told}");
            }
        });
    }
}

/// Maps on this host are a cache: a page that is damaged costs an error until the next start, and no data ever.
#[test]
fn a_damaged_map_page_is_made_anew_at_the_next_start() {
    run(async {
        let (host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 5, 5).await;
        vdisk.destage().await.unwrap();
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        host.spoil_leaves();
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        let answer = vdisk.read(cluster(5)).await;
        assert!(matches!(answer, Err(VolumeError::Damaged(_))), "{answer:?}");
        assert_eq!(byte(&vdisk, 600).await, 0, "what needs another page is read");
        assert!(is_degraded(&vdisk));
        assert_eq!(engine.sweep_pages().await.unwrap(), 0, "what a damaged page needs is not known");
        put_stable(&vdisk, 5, 6).await;
        assert_eq!(byte(&vdisk, 5).await, 6, "what is in the write buffer is read");
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        assert_eq!(byte(&vdisk, 5).await, 6);
        vdisk.destage().await.unwrap();
        assert_eq!(byte(&vdisk, 5).await, 6);
        assert_eq!(vdisk.stats().state, VdiskState::Ok);
    });
}

/// Nobody reads the cluster: the copy of the map is the first to meet the damaged page.
#[test]
fn a_copy_that_meets_a_damaged_map_page_tells_it() {
    run(async {
        let (mut host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 5, 5).await;
        vdisk.destage().await.unwrap();
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        host.spoil_leaves();
        host.copies_maps = true;
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        assert_eq!(vdisk.stats().state, VdiskState::Ok);
        put(&vdisk, 600, 6).await;
        vdisk.destage().await.unwrap();
        let told = async {
            while !is_degraded(&vdisk) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), told).await.expect("the copy told nothing");
        assert_eq!(newest_copy(&host).await, None, "it is not whole");
        assert_eq!(engine.sweep_pages().await.unwrap(), 0, "what a damaged page needs is not known");
        put(&vdisk, 601, 7).await;
        vdisk.destage().await.unwrap();
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        for (number, expected) in [(5, 5), (600, 6), (601, 7)] {
            assert_eq!(byte(&vdisk, number).await, expected);
        }
        assert_eq!(vdisk.stats().state, VdiskState::Ok);
    });
}

/// It cannot tell what the page needs, and removes nothing now nor later.
#[test]
fn a_sweep_that_meets_a_damaged_map_page_tells_it() {
    run(async {
        let (host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 5, 5).await;
        vdisk.destage().await.unwrap();
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        for (page, _) in host.pages.all().into_iter().filter(|(_, bytes)| bytes[0] == 2) {
            host.pages.damage(page, None);
        }
        let answer = engine.sweep_pages().await;
        assert!(matches!(answer, Err(VolumeError::Damaged(_))), "{answer:?}");
        assert!(is_degraded(&vdisk));
        assert_eq!(engine.sweep_pages().await.unwrap(), 0);
        let forgotten = async {
            while !host.pages.records().await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), forgotten)
            .await
            .expect("the next start would believe it");
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        assert_eq!((byte(&vdisk, 5).await, vdisk.stats().state), (5, VdiskState::Ok));
    });
}

/// A clone of a snapshot that is in the write buffer alone, and a snapshot of that clone before anything was written to it.
#[test]
fn a_snapshot_of_a_clone_outlives_the_process_with_its_base() {
    run(async {
        let (host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 3, 7).await;
        let (of_parent, of_clone) = (SnapshotId(Uuid::from_u128(100)), SnapshotId(Uuid::from_u128(101)));
        vdisk.snapshot(of_parent, Name::new("parent").unwrap()).await.unwrap();
        let clone = CreateVdisk {
            id: VdiskId(Uuid::from_u128(11)),
            vpool: POOL,
            size: ByteCount(8 << 20),
            properties: "{}".into(),
            base: Some((DISK, of_parent)),
            on_full: ON_FULL,
        };
        let id = clone.id;
        let clone = engine.create_vdisk(clone).await.unwrap();
        clone.snapshot(of_clone, Name::new("clone").unwrap()).await.unwrap();
        put(&clone, 3, 8).await;

        // The process dies; and once more when everything has left the write buffer.
        let mut engine = host.start(&buffer.copy()).await.unwrap();
        for is_destaged in [false, true] {
            let clone = engine.open_vdisk(POOL, id, ON_FULL).await.unwrap();
            assert_eq!(clone.read_snapshot(of_clone, cluster(3)).await.unwrap()[0], 7, "{is_destaged}");
            assert_eq!(byte(&clone, 3).await, 8);
            clone.destage().await.unwrap();
            assert_eq!(clone.read_snapshot(of_clone, cluster(3)).await.unwrap()[0], 7, "{is_destaged}");
            engine.close(Duration::from_secs(5)).await.unwrap();
            engine = host.start(&Buffer::new()).await.unwrap();
        }
    });
}

/// Both halves of a cluster at once, while what is there has to be read from the backend first.
#[test]
fn two_ragged_writes_of_one_cluster_are_both_there() {
    run(async {
        let mut host = Host::new(false);
        let slow = |call: &ovs_backend::Call<'_>| {
            (call.operation == Operation::Get)
                .then(|| Fault::Delay(Box::pin(tokio::time::sleep(Duration::from_millis(5)))))
        };
        host.backend = Rc::new(FaultyBackend::new(MemoryBackend::new(), slow));
        let engine = host.start(&Buffer::new()).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 3, 1).await;
        vdisk.destage().await.unwrap();
        let half = |at: u64, byte: u8| vdisk.write(ByteOffset(3 * 4096 + at), vec![byte; 2048].into(), false);
        let (one, other) = tokio::join!(half(0, 2), half(2048, 3));
        one.unwrap();
        other.unwrap();
        let read = vdisk.read(cluster(3)).await.unwrap();
        assert_eq!((read[0], read[2047], read[2048], read[4095]), (2, 2, 3, 3));
    });
}

/// One has read what it changes, one comes while the rollback is under way: both are behind it, there and after a crash.
#[test]
fn writes_that_a_rollback_overtakes_are_behind_it() {
    run(async {
        let (mut host, buffer) = (Host::new(false), Buffer::new());
        let gate = Rc::new((tokio::sync::Mutex::new(()), tokio::sync::Notify::new()));
        let held = gate.clone();
        host.backend = Rc::new(FaultyBackend::new(MemoryBackend::new(), move |_| {
            let held = held.clone();
            Some(Fault::Delay(Box::pin(async move {
                let (door, arrived) = &*held;
                if door.try_lock().is_err() {
                    arrived.notify_one();
                    drop(door.lock().await);
                }
            })))
        }));
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 3, 1).await;
        let snapshot = SnapshotId(Uuid::from_u128(77));
        vdisk.snapshot(snapshot, Name::new("s").unwrap()).await.unwrap();
        put(&vdisk, 3, 2).await;
        vdisk.destage().await.unwrap();

        let (door, arrived) = &*gate;
        let closed = door.lock().await;
        let (part, rollback, whole) = (vdisk.clone(), vdisk.clone(), vdisk.clone());
        let part = tokio::task::spawn_local(async move {
            part.write(cluster(3).start, vec![9; 10].into(), false).await.unwrap();
        });
        arrived.notified().await;
        let rollback = tokio::task::spawn_local(async move { rollback.rollback(snapshot).await.unwrap() });
        arrived.notified().await;
        let whole = tokio::task::spawn_local(async move { put(&whole, 4, 9).await });
        tokio::task::yield_now().await;
        drop(closed);
        for work in [part, rollback, whole] {
            work.await.unwrap();
        }
        let again = host.start(&buffer.copy()).await.unwrap();
        for vdisk in [vdisk, open(&again).await] {
            let read = vdisk.read(cluster(3)).await.unwrap();
            assert_eq!((read[9], read[10], byte(&vdisk, 4).await), (9, 1, 9));
        }
    });
}

/// A deletion is in the tombstone first; the registry may not have heard of it.
#[test]
fn a_deletion_that_was_cut_short_is_finished_at_the_next_start() {
    for has_clone in [false, true] {
        run(async {
            let (host, buffer) = (Host::new(false), Buffer::new());
            let engine = host.start(&buffer).await.unwrap();
            let vdisk = create(&engine).await;
            put(&vdisk, 3, 7).await;
            let snapshot = SnapshotId(Uuid::from_u128(100));
            vdisk.snapshot(snapshot, Name::new("s").unwrap()).await.unwrap();
            let id = VdiskId(Uuid::from_u128(11));
            if has_clone {
                let (size, base) = (ByteCount(8 << 20), Some((DISK, snapshot)));
                let properties = "{}".into();
                let clone = CreateVdisk { id, vpool: POOL, size, properties, base, on_full: ON_FULL };
                engine.create_vdisk(clone).await.unwrap();
            }
            vdisk.destage().await.unwrap();
            let tombstone = ObjectName::new(format!("v/{}/tombstone", DISK.0.simple())).unwrap();
            let bytes = ovs_format::tombstone::encode(DISK);
            host.backend.put(&tombstone, vec![bytes.into()], Urgency::Reserve).await.unwrap();

            let engine = host.start(&buffer.copy()).await.unwrap();
            let answer = engine.open_vdisk(POOL, DISK, ON_FULL).await.map(drop);
            assert!(matches!(answer, Err(VolumeError::NotFound(_))), "{answer:?}");
            if has_clone {
                let clone = engine.open_vdisk(POOL, id, ON_FULL).await.unwrap();
                assert_eq!(byte(&clone, 3).await, 7);
                drop(clone);
                engine.delete_vdisk(POOL, id).await.unwrap();
            }
            for _ in 0..200 {
                if host.backend.list("v/", None, 1).await.unwrap().is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{:?} is left", host.backend.list("v/", None, 100).await);
        });
    }
}

/// The registry's word for a vDisk cannot be read, or names numbers that no vDisk has.
#[test]
fn a_damaged_head_is_told_and_changes_nothing() {
    run(async {
        let (host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        put_stable(&vdisk, 0, 1).await;
        let key = format!("head/{DISK}");
        let good = host.registry.get(&key).await.unwrap().unwrap().value;
        let text = String::from_utf8(good.to_vec()).unwrap();
        for bad in ["{".to_owned(), text.replacen("\"format\":1", "\"format\":99", 1)] {
            host.registry.commit(Transaction::new().put(&key, bad)).await.unwrap();
            let engine = host.start(&buffer.copy()).await.unwrap();
            let answer = engine.open_vdisk(POOL, DISK, ON_FULL).await.map(drop);
            assert!(matches!(answer, Err(VolumeError::Damaged(_))), "{answer:?}");
        }
        host.registry.commit(Transaction::new().put(&key, good)).await.unwrap();
        let engine = host.start(&buffer.copy()).await.unwrap();
        assert_eq!(byte(&open(&engine).await, 0).await, 1);
    });
}

/// A registry from an older copy: what is open goes on; what is not is taken from the backend, with no epoch used twice.
#[test]
fn a_vdisk_that_is_open_is_not_recovered_over() {
    run(async {
        let (host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        let key = format!("head/{DISK}");
        let old = host.registry.get(&key).await.unwrap().unwrap().value;
        put(&vdisk, 0, 1).await;
        vdisk.destage().await.unwrap();
        host.registry.commit(Transaction::new().put(&key, old)).await.unwrap();
        let answer = engine.adopt_vdisk(POOL, DISK).await;
        assert!(matches!(&answer, Err(VolumeError::Refused(told)) if told.contains("is open")), "{answer:?}");
        assert_eq!(byte(&vdisk, 0).await, 1);
        let engine = host.start(&Buffer::new()).await.unwrap();
        for _ in 0..2 {
            engine.adopt_vdisk(POOL, DISK).await.unwrap();
        }
        let vdisk = open(&engine).await;
        assert_eq!(byte(&vdisk, 0).await, 1);
        put_stable(&vdisk, 0, 2).await;
        vdisk.destage().await.unwrap();
        assert_eq!(byte(&vdisk, 0).await, 2);
    });
}

/// What waits in the write buffer leaves, whatever is wrong with another vDisk.
#[test]
fn an_unreadable_head_holds_up_nobody_else() {
    run(async {
        let (host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        let first = create(&engine).await;
        let request = CreateVdisk {
            id: VdiskId(Uuid::from_u128(11)),
            vpool: POOL,
            size: ByteCount(8 << 20),
            properties: "{}".into(),
            base: None,
            on_full: ON_FULL,
        };
        let id = request.id;
        let second = engine.create_vdisk(request).await.unwrap();
        put_stable(&first, 3, 7).await;
        put_stable(&second, 3, 8).await;

        let spoilt = Transaction::new().put(format!("head/{DISK}"), "{");
        host.registry.commit(spoilt).await.unwrap();
        let engine = host.start(&buffer.copy()).await.unwrap();
        engine.claim_buffered(ON_FULL).await.unwrap();
        let second = engine.vdisk(id).unwrap();
        second.destage().await.unwrap();
        assert_eq!(second.stats().buffered, ByteCount(0));
        assert!(engine.open_vdisk(POOL, DISK, ON_FULL).await.is_err());
    });
}

/// Nor does it hide the others when a vPool is recovered: it is told with what is wrong with it.
#[test]
fn a_damaged_tombstone_deletes_nothing_and_hides_nobody() {
    run(async {
        let mut host = Host::new(false);
        let backend = Rc::new(MemoryBackend::new());
        host.backend = backend.clone();
        let engine = host.start(&Buffer::new()).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 3, 7).await;
        vdisk.destage().await.unwrap();
        drop((vdisk, engine));
        // Another one, of which nothing but a damaged tombstone is there.
        let name = format!("v/{}/tombstone", Uuid::from_u128(9).simple());
        backend.damage(&ovs_backend::ObjectName::new(&name).unwrap(), Some(Bytes::from_static(b"deleted")));

        (host.registry, host.pages) = Default::default();
        let engine = host.start(&Buffer::new()).await.unwrap();
        let found = engine.discover(POOL).await.unwrap();
        let problem =
            |id: u128| found.iter().find(|found| found.id.0.as_u128() == id).unwrap().problem.clone();
        assert!(problem(9).unwrap().contains("tombstone"));
        assert_eq!(problem(10), None);
        engine.adopt_vdisk(POOL, DISK).await.unwrap();
        assert_eq!(byte(&open(&engine).await, 3).await, 7);
    });
}

/// What a clone came from cannot be read. It is told so, and everybody else is found; nothing goes that it may have needed.
#[test]
fn a_damaged_ancestor_hides_nobody() {
    run(async {
        let mut host = Host::new(false);
        let backend = Rc::new(MemoryBackend::new());
        host.backend = backend.clone();
        let engine = host.start(&Buffer::new()).await.unwrap();
        let grandparent = create(&engine).await;
        put(&grandparent, 3, 7).await;
        let mut last = grandparent.clone();
        for number in 11..13 {
            let snapshot = SnapshotId(Uuid::from_u128(100 + number));
            last.snapshot(snapshot, Name::new("s").unwrap()).await.unwrap();
            let (id, size) = (VdiskId(Uuid::from_u128(number)), ByteCount(8 << 20));
            let (properties, base) = ("{}".into(), Some((last.id(), snapshot)));
            let clone = CreateVdisk { id, vpool: POOL, size, properties, base, on_full: ON_FULL };
            last = engine.create_vdisk(clone).await.unwrap();
        }
        let (id, size) = (VdiskId(Uuid::from_u128(20)), ByteCount(8 << 20));
        let other =
            CreateVdisk { id, vpool: POOL, size, properties: "{}".into(), base: None, on_full: ON_FULL };
        engine.create_vdisk(other).await.unwrap();
        last.destage().await.unwrap();
        drop((last, grandparent));
        engine.delete_vdisk(POOL, DISK).await.unwrap();
        drop(engine);

        let is_of = |id: u128| {
            let folder = format!("v/{}/", Uuid::from_u128(id).simple());
            move |name: &ObjectName| name.as_str().starts_with(&folder)
        };
        // First a bit of the parent's journal turned, then all of the parent gone.
        for is_gone in [false, true] {
            for name in backend.names().into_iter().filter(is_of(11)) {
                let mut bytes = backend.bytes(&name).unwrap().to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                backend.damage(&name, (!is_gone).then(|| bytes.into()));
            }
            (host.registry, host.pages) = Default::default();
            let engine = host.start(&Buffer::new()).await.unwrap();
            let found = engine.discover(POOL).await.unwrap();
            let problem =
                |id: u128| found.iter().find(|found| found.id.0.as_u128() == id).unwrap().problem.clone();
            assert!(problem(12).unwrap().contains("ancestor"), "{found:?}");
            assert_eq!(problem(20), None);
            assert!(backend.names().iter().any(is_of(10)), "who knows who needs it");
        }
    });
}

/// The older copy, and the journal behind it, make up for it.
#[test]
fn a_map_copy_that_lacks_a_part_is_done_without() {
    run(async {
        let mut host = Host::new(true);
        let engine = host.start(&Buffer::new()).await.unwrap();
        let vdisk = create(&engine).await;
        for number in 0..30 {
            put(&vdisk, number, 1).await;
            vdisk.destage().await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        engine.close(Duration::from_secs(5)).await.unwrap();
        let prefix = format!("v/{}/c/", DISK.0.simple());
        let parts = async |backend: &Rc<dyn Backend>| {
            let objects = backend.list(&prefix, None, 1000).await.unwrap();
            let is_part = |object: &ovs_backend::ObjectInfo| object.name.as_str().matches('-').count() == 3;
            objects.into_iter().filter(is_part).map(|object| object.name).collect::<Vec<_>>()
        };
        let all = parts(&host.backend).await;
        assert!(all.len() >= 4, "two copies of several parts: {all:?}");
        host.backend.delete(all.last().unwrap()).await.unwrap();
        let vdisk = host.take_over().await;
        for number in 0..30 {
            assert_eq!(byte(&vdisk, number).await, 1);
        }
    });
}

/// It is dropped when it is said that nobody will come for it.
#[test]
fn what_is_buffered_for_an_unknown_vdisk_is_told() {
    run(async {
        let (mut host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        put_stable(&create(&engine).await, 0, 1).await;
        let engine = host.start(&buffer.copy()).await.unwrap();
        assert!(!engine.has_strangers().await.unwrap());
        host.registry = Rc::default();
        let engine = host.start(&buffer).await.unwrap();
        assert!(engine.has_strangers().await.unwrap());
        engine.claim_buffered(ON_FULL).await.unwrap();
        assert!(!engine.has_strangers().await.unwrap());
        engine.close(Duration::from_secs(5)).await.unwrap();
    });
}
