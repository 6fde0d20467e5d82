//! The read cache behind a vDisk: what it answers, what it does not, and what becomes of it. Who keeps what is told in
//! `src/cache/tests.rs`.

use crate::world::{MIB, World, range, run};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_backend::MemoryBackend;
use ovs_units::{ByteCount, ByteOffset, CacheDedup, CacheMode, VdiskCache, VdiskId, VpoolCache, VpoolId};
use ovs_volume::{CacheDevice, CacheParts, CacheStats, CreateVdisk, OnFull, Vdisk};
use std::{cell::RefCell, io, rc::Rc};
use uuid::Uuid;

const CLUSTER: u64 = 4096;

fn memory(blocks: u64) -> CacheParts {
    CacheParts { memory_bytes: blocks * CLUSTER, device: None }
}

async fn world_with(parts: CacheParts) -> World {
    let mut world = World::new().await;
    world.cache(parts).await;
    world
}

async fn put(disk: &Vdisk, clusters: std::ops::Range<u64>, byte: u8) {
    let data = vec![byte; ((clusters.end - clusters.start) * CLUSTER) as usize];
    disk.write(ByteOffset(clusters.start * CLUSTER), data.into(), false).await.unwrap();
    disk.destage().await.unwrap();
}

/// Reads clusters that are all of one byte.
async fn check(disk: &Vdisk, clusters: std::ops::Range<u64>, byte: u8) {
    let wanted = range(clusters.start * CLUSTER, (clusters.end - clusters.start) * CLUSTER);
    let found = disk.read(wanted).await.unwrap();
    assert!(found.len() as u64 == wanted.length.0 && found.iter().all(|found| *found == byte));
}

fn stats(world: &World) -> CacheStats {
    world.engine().stats().cache.unwrap()
}

fn mode(mode: CacheMode) -> VdiskCache {
    VdiskCache { mode: Some(mode), quota_bytes: None }
}

#[test]
fn what_was_read_is_read_without_the_backend() {
    run(async {
        let mut world = world_with(memory(64)).await;
        let disk = world.create(MIB).await;
        put(&disk, 0..16, 1).await;
        check(&disk, 4..8, 1).await;
        world.backend_gives_data(false);
        for _ in 0..3 {
            check(&disk, 4..8, 1).await;
            check(&disk, 5..6, 1).await;
            assert_eq!(disk.read(range(5 * CLUSTER + 7, 5000)).await.unwrap()[..], [1; 5000]);
        }
        assert_eq!(world.reads_refused(), 0);
        let (vdisk, told) = (disk.cache_stats().unwrap(), stats(&world));
        assert_eq!((vdisk.hits, vdisk.misses, vdisk.used_bytes), (3 * 7, 4, 4 * CLUSTER));
        assert_eq!((told.memory.hits, told.misses, told.filled, told.entries), (3 * 7, 4, 4, 4));
        world.backend_gives_data(true);
        // Of a stretch that is there in part only the rest is asked for, in one request.
        check(&disk, 3..8, 1).await;
        check(&disk, 2..10, 1).await;
        assert_eq!(stats(&world).entries, 8);
        check(&disk, 0..16, 1).await;
        assert_eq!(disk.cache_stats().unwrap().misses, 4 + 1 + 3 + 8);
    });
}

#[test]
fn what_is_written_goes_in_where_that_is_asked_for() {
    run(async {
        let mut world = world_with(memory(64)).await;
        let (read, written) = (world.create(MIB).await, world.create(MIB).await);
        written.set_cache(mode(CacheMode::ReadWrite));
        put(&read, 0..8, 1).await;
        put(&written, 0..8, 2).await;
        put(&written, 3..5, 3).await;
        assert_eq!(
            (read.cache_stats().unwrap().used_bytes, written.cache_stats().unwrap().used_bytes),
            (0, 10 * CLUSTER)
        );
        world.backend_gives_data(false);
        check(&written, 0..3, 2).await;
        check(&written, 3..5, 3).await;
        check(&written, 5..8, 2).await;
        assert_eq!(world.reads_refused(), 0);
        world.backend_gives_data(true);
        check(&read, 0..8, 1).await;
    });
}

#[test]
fn nothing_goes_in_and_nothing_comes_out_where_that_is_asked_for() {
    run(async {
        let mut world = world_with(memory(64)).await;
        let disk = world.create(MIB).await;
        put(&disk, 0..8, 1).await;
        check(&disk, 0..8, 1).await;
        disk.set_cache(mode(CacheMode::None));
        check(&disk, 0..8, 1).await;
        let told = disk.cache_stats().unwrap();
        assert_eq!((told.mode, told.hits, told.used_bytes), (CacheMode::None, 0, 0));
        // What the vDisk does not say its vPool does.
        disk.set_cache(VdiskCache::default());
        let none = VpoolCache { mode: CacheMode::None, ..VpoolCache::default() };
        world.engine().set_vpool_cache(world.vpool(), none);
        assert_eq!(disk.cache_stats().unwrap().mode, CacheMode::None);
        world
            .engine()
            .set_vpool_cache(world.vpool(), VpoolCache { quota_bytes: Some(MIB), ..VpoolCache::default() });
        let told = disk.cache_stats().unwrap();
        assert_eq!((told.mode, told.quota_bytes), (CacheMode::Read, Some(MIB)));
        // What it had is still there, and its own again.
        check(&disk, 0..8, 1).await;
        let told = disk.cache_stats().unwrap();
        assert_eq!((told.hits, told.used_bytes), (8, 8 * CLUSTER));
    });
}

#[test]
fn without_a_cache_there_is_nothing_to_tell() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(MIB).await;
        disk.set_cache(mode(CacheMode::ReadWrite));
        world.engine().set_vpool_cache(world.vpool(), VpoolCache::default());
        put(&disk, 0..4, 1).await;
        check(&disk, 0..4, 1).await;
        assert_eq!((disk.cache_stats(), world.engine().stats().cache), (None, None));
    });
}

#[test]
fn snapshots_and_clones_read_what_is_there_already() {
    run(async {
        let mut world = world_with(memory(64)).await;
        let disk = world.create(MIB).await;
        put(&disk, 0..8, 1).await;
        let snapshot = world.snapshot(&disk, "s").await;
        check(&disk, 0..8, 1).await;
        let clone = world.clone_of(&disk, snapshot, MIB).await;
        put(&disk, 0..4, 2).await;
        put(&clone, 6..8, 3).await;
        check(&disk, 0..4, 2).await;
        world.backend_gives_data(false);
        check(&clone, 0..6, 1).await;
        check(&disk, 0..4, 2).await;
        check(&disk, 4..8, 1).await;
        let old = disk.read_snapshot(snapshot, range(0, 8 * CLUSTER)).await.unwrap();
        assert!(old.iter().all(|byte| *byte == 1));
        assert_eq!(world.reads_refused(), 0);
        world.backend_gives_data(true);
        check(&clone, 6..8, 3).await;
        disk.rollback(snapshot).await.unwrap();
        check(&disk, 0..8, 1).await;
        // The parent goes, what its clone needs of it stays there.
        world.delete(&disk).await;
        drop(disk);
        world.backend_gives_data(false);
        check(&clone, 0..6, 1).await;
        check(&clone, 6..8, 3).await;
        assert_eq!(world.reads_refused(), 0);
    });
}

#[test]
fn what_scrub_moves_is_read_from_where_it_is_and_what_it_removes_is_forgotten() {
    run(async {
        let mut world = world_with(memory(512)).await;
        let disk = world.create(2 * MIB).await;
        put(&disk, 0..256, 1).await;
        check(&disk, 0..256, 1).await;
        put(&disk, 0..200, 2).await;
        let before = stats(&world).entries;
        let report = disk.scrub().await.unwrap();
        assert_eq!(report.moved_bytes, 56 * CLUSTER);
        // Nobody reads it any more.
        disk.scrub().await.unwrap();
        assert_eq!((before, stats(&world).entries), (256, 0));
        check(&disk, 0..200, 2).await;
        check(&disk, 200..256, 1).await;
    });
}

#[test]
fn after_a_restart_the_cache_is_empty_and_a_deleted_vdisk_leaves_room() {
    run(async {
        let mut world = world_with(memory(16)).await;
        let disk = world.create(MIB).await;
        disk.set_cache(VdiskCache { mode: None, quota_bytes: Some(16 * CLUSTER) });
        put(&disk, 0..16, 1).await;
        check(&disk, 0..16, 1).await;
        world.close_and_reopen().await;
        assert_eq!(stats(&world).entries, 0);
        let disk = world.open(disk.id()).await;
        disk.set_cache(VdiskCache { mode: None, quota_bytes: Some(16 * CLUSTER) });
        check(&disk, 0..16, 1).await;
        let other = world.create(MIB).await;
        put(&other, 0..16, 2).await;
        check(&other, 0..16, 2).await;
        assert_eq!(other.cache_stats().unwrap().used_bytes, 0, "it has no quota, and there is nothing left");
        world.delete(&disk).await;
        check(&other, 0..16, 2).await;
        assert_eq!(other.cache_stats().unwrap().used_bytes, 16 * CLUSTER);
    });
}

#[test]
fn a_noisy_neighbour_does_not_send_a_quiet_guest_to_the_backend() {
    run(async {
        let mut world = world_with(memory(64)).await;
        let (quiet, noisy) = (world.create(MIB).await, world.create(2 * MIB).await);
        quiet.set_cache(VdiskCache { mode: None, quota_bytes: Some(40 * CLUSTER) });
        put(&quiet, 0..40, 1).await;
        put(&noisy, 0..512, 2).await;
        check(&quiet, 0..40, 1).await;
        for _ in 0..3 {
            check(&noisy, 0..512, 2).await;
        }
        world.backend_gives_data(false);
        check(&quiet, 0..40, 1).await;
        assert_eq!((world.reads_refused(), noisy.cache_stats().unwrap().used_bytes), (0, 24 * CLUSTER));
    });
}

#[test]
fn the_same_content_is_held_once_in_a_vpool_and_not_for_another() {
    run(async {
        let mut world = world_with(memory(64)).await;
        let other = VpoolId(Uuid::from_u128(99));
        world.engine().attach_backend(other, Rc::new(MemoryBackend::new()));
        let by_content = VpoolCache { dedup: CacheDedup::Content, ..VpoolCache::default() };
        world.engine().set_vpool_cache(world.vpool(), by_content);
        world.engine().set_vpool_cache(other, by_content);
        let request = CreateVdisk {
            id: VdiskId(Uuid::from_u128(98)),
            vpool: other,
            size: ByteCount(MIB),
            properties: "{}".into(),
            base: None,
            on_full: OnFull::NoSpace,
        };
        let disks = [
            world.create(MIB).await,
            world.create(MIB).await,
            world.engine().create_vdisk(request).await.unwrap(),
        ];
        for disk in &disks {
            put(disk, 0..8, 7).await;
            check(disk, 0..8, 7).await;
            check(disk, 0..8, 7).await;
            assert_eq!(disk.cache_stats().unwrap().hits, 8);
        }
        let told = stats(&world);
        assert_eq!((told.entries, told.used_bytes, told.shared), (24, 2 * CLUSTER, 22));
    });
}

/// Slots that say what somebody else has put there.
#[derive(Default)]
struct Liar {
    slots: RefCell<Vec<Bytes>>,
}

impl CacheDevice for Liar {
    fn slot_count(&self) -> u32 {
        64
    }

    fn read(&self, slots: Vec<u32>) -> LocalBoxFuture<'_, io::Result<Vec<Bytes>>> {
        Box::pin(
            async move { Ok(slots.iter().map(|slot| vec![*slot as u8; CLUSTER as usize].into()).collect()) },
        )
    }

    fn write(&self, blocks: Vec<(u32, Bytes)>) -> LocalBoxFuture<'_, io::Result<()>> {
        self.slots.borrow_mut().extend(blocks.into_iter().map(|(_, block)| block));
        Box::pin(async { Ok(()) })
    }
}

#[test]
fn what_is_not_what_it_should_be_is_read_from_the_backend() {
    run(async {
        let device = Rc::new(Liar::default());
        let parts = CacheParts { memory_bytes: 4 * CLUSTER, device: Some(device.clone()) };
        let mut world = world_with(parts).await;
        let disk = world.create(MIB).await;
        put(&disk, 0..16, 99).await;
        for cluster in 0..16 {
            check(&disk, cluster..cluster + 1, 99).await;
            world.wait_ms(1).await;
        }
        assert_eq!(device.slots.borrow().len(), 16);
        check(&disk, 0..16, 99).await;
        check(&disk, 2..3, 99).await;
        let told = stats(&world).ssd.unwrap();
        assert!(told.damaged >= 12 && told.hits == 0, "{told:?}");
        assert_eq!(disk.stats().state, ovs_volume::VdiskState::Ok);
    });
}
