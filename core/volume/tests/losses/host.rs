//! A host over a backend, with a write buffer that can be looked at and spoilt.

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_backend::{Backend, MemoryBackend};
use ovs_units::{ByteCount, ByteOffset, ByteRange, VdiskId, VpoolId};
use ovs_volume::{
    Chance, CreateVdisk, Engine, EngineConfig, EngineParts, LogDevice, MemoryPages, MemoryRegistry, OnFull,
    SystemClock, Vdisk, VdiskState, VolumeError,
};
use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    time::Duration,
};
use uuid::Uuid;

pub const POOL: VpoolId = VpoolId(Uuid::from_u128(1));
pub const DISK: VdiskId = VdiskId(Uuid::from_u128(10));
pub const ON_FULL: OnFull = OnFull::Stall { timeout: None };
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
pub struct Buffer {
    slots: RefCell<Vec<Vec<u8>>>,
    pub refuses_headers: Cell<bool>,
}

impl Buffer {
    pub fn new() -> Rc<Buffer> {
        Rc::new(Buffer {
            slots: RefCell::new(vec![vec![0; SLOT_BYTES]; 12]),
            refuses_headers: Cell::new(false),
        })
    }

    pub fn copy(&self) -> Rc<Buffer> {
        let slots = self.slots.borrow().clone();
        Rc::new(Buffer { slots: RefCell::new(slots), refuses_headers: Cell::new(false) })
    }

    /// Changes the n-th batch of the first slot in use.
    pub fn spoil(&self, batch: usize, spoil: impl FnOnce(&mut [u8])) {
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

pub struct Host {
    chance: Rc<Counting>,
    pub registry: Rc<MemoryRegistry>,
    pub pages: Rc<MemoryPages>,
    pub backend: Rc<dyn Backend>,
    pub copies_maps: bool,
}

impl Host {
    pub fn new(copies_maps: bool) -> Host {
        let backend = Rc::new(MemoryBackend::new());
        Host { chance: Rc::default(), registry: Rc::default(), pages: Rc::default(), backend, copies_maps }
    }

    pub async fn start(&self, buffer: &Rc<Buffer>) -> Result<Engine, VolumeError> {
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
    pub fn spoil_leaves(&self) {
        for (page, bytes) in self.pages.all().into_iter().filter(|(_, bytes)| matches!(bytes[0], 1 | 6)) {
            let mut bytes = bytes.to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            self.pages.damage(page, Some(bytes.into()));
        }
    }

    /// Another host with nothing of its own, over the same backend.
    pub async fn take_over(&mut self) -> Vdisk {
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

pub async fn create(engine: &Engine) -> Vdisk {
    let size = ByteCount(8 << 20);
    let request =
        CreateVdisk { id: DISK, vpool: POOL, size, properties: "{}".into(), base: None, on_full: ON_FULL };
    engine.create_vdisk(request).await.unwrap()
}

pub async fn open(engine: &Engine) -> Vdisk {
    engine.open_vdisk(POOL, DISK, ON_FULL).await.unwrap()
}

pub fn cluster(number: u64) -> ByteRange {
    ByteRange::new(ByteOffset(number * 4096), ByteCount(4096)).unwrap()
}

pub async fn put(vdisk: &Vdisk, number: u64, byte: u8) {
    vdisk.write(cluster(number).start, vec![byte; 4096].into(), false).await.unwrap();
}

pub async fn put_stable(vdisk: &Vdisk, number: u64, byte: u8) {
    put(vdisk, number, byte).await;
    vdisk.flush().await.unwrap();
}

pub async fn byte(vdisk: &Vdisk, number: u64) -> u8 {
    vdisk.read(cluster(number)).await.unwrap()[0]
}

pub fn is_damaged(vdisk: &Vdisk) -> bool {
    matches!(vdisk.stats().state, VdiskState::Damaged(_))
}

pub fn is_degraded(vdisk: &Vdisk) -> bool {
    matches!(vdisk.stats().state, VdiskState::Degraded(_))
}

/// The last name of a map copy's object: names are in order of epochs.
pub async fn newest_copy(host: &Host) -> Option<String> {
    let prefix = format!("v/{}/c/", DISK.0.simple());
    let objects = host.backend.list(&prefix, None, 1000).await.unwrap();
    objects.last().map(|object| object.name.to_string())
}

pub fn run(case: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, case);
}
