//! A backend that takes a vDisk's objects and not its journal: data is in the write buffer until the journal says where else it is, however
//! long that takes and whoever wants the room.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

use ovs_backend::{Call, Fault, FaultyBackend, MemoryBackend, Operation};
use ovs_tests::{MemoryDevice, Random};
use ovs_units::{ByteCount, ByteOffset, ByteRange, VdiskId, VpoolId};
use ovs_volume::{
    CreateVdisk, Engine, EngineConfig, EngineParts, MemoryPages, MemoryRegistry, OnFull, SystemClock, Vdisk,
};
use std::{cell::Cell, rc::Rc, time::Duration};
use uuid::Uuid;

const POOL: VpoolId = VpoolId(Uuid::from_u128(1));
const FIRST: VdiskId = VdiskId(Uuid::from_u128(10));
const SECOND: VdiskId = VdiskId(Uuid::from_u128(11));
const ON_FULL: OnFull = OnFull::Stall { timeout: None };

async fn create(engine: &Engine, id: VdiskId) -> Vdisk {
    let size = ByteCount(8 << 20);
    let request =
        CreateVdisk { id, vpool: POOL, size, properties: "{}".into(), base: None, on_full: ON_FULL };
    engine.create_vdisk(request).await.unwrap()
}

async fn put(vdisk: &Vdisk, number: u64, byte: u8) {
    vdisk.write(ByteOffset(number * 4096), vec![byte; 4096].into(), false).await.unwrap();
}

#[test]
fn the_write_buffer_keeps_what_the_journal_does_not_have() {
    // Time passes when nobody has anything else to do.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let random = Rc::new(Random::new(7));
        let buffer = Rc::new(MemoryDevice::new(12, 256 << 10, Rc::clone(&random)));
        let refuses = Rc::new(Cell::new(false));
        let refusing = Rc::clone(&refuses);
        let journal = format!("{}/j/", FIRST.0.simple());
        let schedule = move |call: &Call<'_>| {
            let is_refused =
                refusing.get() && call.operation == Operation::Put && call.object.contains(&journal);
            is_refused.then_some(Fault::ErrorBefore)
        };
        let backend = Rc::new(FaultyBackend::new(MemoryBackend::new(), schedule));
        let (registry, pages) = (Rc::new(MemoryRegistry::default()), Rc::new(MemoryPages::default()));
        let start = async || {
            let parts = EngineParts {
                clock: Rc::new(SystemClock::new()),
                chance: random.clone(),
                registry: registry.clone(),
                pages: pages.clone(),
                buffer: buffer.clone(),
            };
            let engine = Engine::open(EngineConfig::default(), parts).await.unwrap();
            engine.attach_backend(POOL, backend.clone());
            engine
        };
        let engine = start().await;
        let (first, second) = (create(&engine, FIRST).await, create(&engine, SECOND).await);
        put(&second, 0, 1).await;
        for number in 0..40 {
            put(&first, number, 7).await;
        }
        first.flush().await.unwrap();
        refuses.set(true);
        let destaging = first.clone();
        tokio::task::spawn_local(async move { destaging.destage().await });
        // Each attempt is given up after a while; and the other one goes round the whole write buffer, several times.
        for round in 0..40 {
            for number in 0..32 {
                put(&second, number, round).await;
            }
            second.flush().await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        // Everything in memory goes.
        drop((first, second, engine));
        refuses.set(false);
        let first = start().await.open_vdisk(POOL, FIRST, ON_FULL).await.unwrap();
        for number in 0..40u64 {
            let range = ByteRange::new(ByteOffset(number * 4096), ByteCount(4096)).unwrap();
            assert_eq!(first.read(range).await.unwrap()[..], [7; 4096], "cluster {number}");
        }
    });
}
