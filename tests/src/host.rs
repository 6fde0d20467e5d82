//! A host in memory for cases written by hand: the stores outlive its engines.

use crate::{MemoryDevice, Random};
use ovs_backend::Backend;
use ovs_units::{ByteCount, ByteOffset, ByteRange, VdiskId, VpoolId};
use ovs_volume::{
    CreateVdisk, Engine, EngineConfig, EngineParts, MemoryPages, MemoryRegistry, OnFull, Registry,
    SystemClock, Vdisk,
};
use std::rc::Rc;
use uuid::Uuid;

const CLUSTER_BYTES: u64 = 4096;

/// See the module. One vPool, on one backend.
#[derive(Clone)]
#[expect(missing_docs, reason = "each is what its type says")]
pub struct Host {
    pub random: Rc<Random>,
    pub registry: Rc<dyn Registry>,
    pub pages: Rc<MemoryPages>,
    pub backend: Rc<dyn Backend>,
    pub buffer: Rc<MemoryDevice>,
    pub config: EngineConfig,
}

impl Host {
    /// Its only vPool.
    pub const POOL: VpoolId = VpoolId(Uuid::from_u128(1));
    /// Its vDisks wait for room for as long as it takes.
    pub const ON_FULL: OnFull = OnFull::Stall { timeout: None };

    /// With a write buffer of so many slots of 256 KiB.
    pub fn new(slots: usize, backend: Rc<dyn Backend>) -> Host {
        let random = Rc::new(Random::new(7));
        Host {
            registry: Rc::new(MemoryRegistry::default()),
            pages: Rc::default(),
            backend,
            buffer: Rc::new(MemoryDevice::new(slots, 256 << 10, Rc::clone(&random))),
            random,
            config: EngineConfig::default(),
        }
    }

    /// An engine over what there is.
    pub async fn start(&self) -> Engine {
        let parts = EngineParts {
            clock: Rc::new(SystemClock::new()),
            chance: self.random.clone(),
            registry: self.registry.clone(),
            pages: self.pages.clone(),
            buffer: self.buffer.clone(),
            cache: None,
        };
        let engine = Engine::open(self.config.clone(), parts).await.expect("an engine that opens");
        engine.attach_backend(Host::POOL, self.backend.clone());
        engine
    }
}

/// Runs a case in which time passes when nobody has anything else to do.
pub fn run_paused(case: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

/// A new vDisk of this size.
pub async fn create(engine: &Engine, id: VdiskId, size: ByteCount) -> Vdisk {
    let (vpool, on_full) = (Host::POOL, Host::ON_FULL);
    let request = CreateVdisk { id, vpool, size, properties: "{}".into(), base: None, on_full };
    engine.create_vdisk(request).await.expect("a new vDisk")
}

/// Writes a cluster of this byte, without a flush.
pub async fn put(vdisk: &Vdisk, number: u64, byte: u8) {
    let data = vec![byte; CLUSTER_BYTES as usize].into();
    vdisk.write(ByteOffset(number * CLUSTER_BYTES), data, false).await.expect("a write");
}

/// Reads a cluster, all of which is one byte.
pub async fn byte_of(vdisk: &Vdisk, number: u64) -> u8 {
    let range = ByteRange { start: ByteOffset(number * CLUSTER_BYTES), length: ByteCount(CLUSTER_BYTES) };
    let found = vdisk.read(range).await.expect("a read");
    assert!(found.iter().all(|byte| *byte == found[0]), "cluster {number} is torn");
    found[0]
}
