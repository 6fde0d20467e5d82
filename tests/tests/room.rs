//! A write buffer that some cannot leave, as their backend takes no journal of theirs: the others go on, and what was flushed
//! stays.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

use bytes::Bytes;
use ovs_backend::{Backend, Call, Fault, FaultyBackend, MemoryBackend, Operation};
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
const THIRD: VdiskId = VdiskId(Uuid::from_u128(12));
const SLOT_CLUSTERS: u64 = 64;
const ON_FULL: OnFull = OnFull::Stall { timeout: None };

/// A host with so many slots, whose backend takes no journal but `SECOND`'s while it refuses the others.
#[derive(Clone)]
struct Host {
    random: Rc<Random>,
    buffer: Rc<MemoryDevice>,
    registry: Rc<MemoryRegistry>,
    pages: Rc<MemoryPages>,
    backend: Rc<dyn Backend>,
    refuses: Rc<Cell<bool>>,
    /// Nothing at all is taken.
    is_away: Rc<Cell<bool>>,
}

impl Host {
    fn new(slots: usize) -> Host {
        let random = Rc::new(Random::new(7));
        let refuses = Rc::new(Cell::new(false));
        let is_away = Rc::new(Cell::new(false));
        let (refusing, away) = (Rc::clone(&refuses), Rc::clone(&is_away));
        let taken = format!("{}/j/", SECOND.0.simple());
        let schedule = move |call: &Call<'_>| {
            let is_journal = call.object.contains("/j/") && !call.object.contains(&taken);
            let is_refused = away.get() || (refusing.get() && is_journal);
            (is_refused && call.operation == Operation::Put).then_some(Fault::ErrorBefore)
        };
        Host {
            buffer: Rc::new(MemoryDevice::new(slots, SLOT_CLUSTERS * 4096, Rc::clone(&random))),
            random,
            registry: Rc::default(),
            pages: Rc::default(),
            backend: Rc::new(FaultyBackend::new(MemoryBackend::new(), schedule)),
            refuses,
            is_away,
        }
    }

    async fn start(&self) -> Engine {
        let parts = EngineParts {
            clock: Rc::new(SystemClock::new()),
            chance: self.random.clone(),
            registry: self.registry.clone(),
            pages: self.pages.clone(),
            buffer: self.buffer.clone(),
        };
        let engine = Engine::open(EngineConfig::default(), parts).await.unwrap();
        engine.attach_backend(POOL, self.backend.clone());
        engine
    }
}

/// Time passes when nobody has anything else to do.
fn run(case: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

async fn create(engine: &Engine, id: VdiskId) -> Vdisk {
    let size = ByteCount(64 << 20);
    let request =
        CreateVdisk { id, vpool: POOL, size, properties: "{}".into(), base: None, on_full: ON_FULL };
    engine.create_vdisk(request).await.unwrap()
}

async fn put(vdisk: &Vdisk, number: u64, byte: u8) {
    vdisk.write(ByteOffset(number * 4096), vec![byte; 4096].into(), false).await.unwrap();
}

/// These write so many clusters each at once, then some in every round, up to so many; `SECOND` some in every round.
fn check_room_for_others(stuck: &[VdiskId], at_once: u64, in_a_round: u64, most: u64, others: u64) {
    run(async {
        let host = Host::new(12);
        let engine = host.start().await;
        let mut disks = Vec::new();
        for id in stuck {
            disks.push(create(&engine, *id).await);
        }
        let second = create(&engine, SECOND).await;
        host.refuses.set(true);
        let mut written = 0;
        let rounds = async {
            for round in 0..40 {
                let wanted = most.min(at_once + in_a_round * (round + 1));
                while written < wanted {
                    for disk in &disks {
                        put(disk, written, 7).await;
                    }
                    written += 1;
                }
                for number in 0..others {
                    put(&second, number, round as u8).await;
                }
                second.flush().await.unwrap();
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(600), rounds).await;
        assert!(done.is_ok(), "no room beside {at_once} clusters and {in_a_round} in every round");
        // Everything in memory goes.
        drop((disks, second, engine));
        host.refuses.set(false);
        let engine = host.start().await;
        for id in stuck {
            let disk = engine.open_vdisk(POOL, *id, ON_FULL).await.unwrap();
            for number in 0..written {
                let range = ByteRange::new(ByteOffset(number * 4096), ByteCount(4096)).unwrap();
                assert_eq!(disk.read(range).await.unwrap()[..], [7; 4096], "cluster {number}");
            }
        }
    });
}

/// Some of it in every slot would leave nobody else any: it is moved together.
#[test]
fn what_cannot_leave_the_write_buffer_keeps_nobody_else_out() {
    check_room_for_others(&[FIRST], 0, 1, 40, SLOT_CLUSTERS);
    // More of it in the oldest slot than elsewhere.
    check_room_for_others(&[FIRST], 24, 1, 64, SLOT_CLUSTERS);
    // A third of every slot.
    check_room_for_others(&[FIRST, THIRD], 0, 5, 46, 22);
}

/// Those whose data cannot leave write what they can, in such pieces; `SECOND`, whose data leaves, goes on.
fn check_share_of_others(slots: usize, stuck: &[VdiskId], piece_clusters: u64) {
    run(async {
        let host = Host::new(slots);
        let engine = host.start().await;
        let mut disks = Vec::new();
        for id in stuck {
            disks.push(create(&engine, *id).await);
        }
        let second = create(&engine, SECOND).await;
        host.refuses.set(true);
        let patience = Duration::from_secs(60);
        let data = Bytes::from(vec![7; (piece_clusters * 4096) as usize]);
        for disk in &disks {
            for number in 0.. {
                let write = disk.write(ByteOffset(number * piece_clusters * 4096), data.clone(), false);
                let Ok(done) = tokio::time::timeout(patience, write).await else { break };
                done.unwrap();
            }
        }
        for number in 0..16 * SLOT_CLUSTERS {
            let done = tokio::time::timeout(patience, put(&second, number, 1)).await;
            assert!(
                done.is_ok(),
                "no room for cluster {number} of {slots} slots, beside pieces of {piece_clusters}"
            );
        }
    });
}

#[test]
fn who_cannot_leave_the_write_buffer_keeps_to_its_share() {
    for slots in [8, 12] {
        check_share_of_others(slots, &[FIRST], 4);
        check_share_of_others(slots, &[FIRST], 1);
    }
    check_share_of_others(40, &[FIRST, THIRD], 4);
}

/// A power loss may take what was written to one slot and leave what was written to another: the only copy of something
/// that was flushed must not be in a slot whose next contents are there already.
#[test]
fn a_slot_is_used_again_only_when_what_superseded_it_is_stable() {
    const SLOTS: usize = 12;
    // Live in so many slots that the first of them is free, and not the last, before anybody has to ask for a sync.
    const CLUSTERS: u64 = 130;
    run(async {
        let host = Host::new(SLOTS);
        let vdisk = create(&host.start().await, FIRST).await;
        host.is_away.set(true);
        for number in 0..CLUSTERS {
            put(&vdisk, number, 1).await;
        }
        vdisk.flush().await.unwrap();
        for (written, number) in (0..CLUSTERS).cycle().enumerate().take(400) {
            put(&vdisk, number, 2).await;
            if written % 10 != 0 {
                continue;
            }
            for kept in 0..SLOTS {
                let buffer = host.buffer.fork(host.random.clone());
                buffer.lose_power_but(|block| if block.slot == kept { block.writes.len() } else { 0 });
                let registry = Rc::new(MemoryRegistry::clone(&host.registry));
                let pages = Rc::new(MemoryPages::clone(&host.pages));
                let after = Host { buffer: Rc::new(buffer), registry, pages, ..host.clone() };
                let vdisk = after.start().await.open_vdisk(POOL, FIRST, ON_FULL).await.unwrap();
                for number in 0..CLUSTERS {
                    let range = ByteRange::new(ByteOffset(number * 4096), ByteCount(4096)).unwrap();
                    let found = vdisk.read(range).await.unwrap()[0];
                    assert!(
                        found >= 1,
                        "cluster {number} is gone after {written} writes, with slot {kept} kept"
                    );
                }
            }
        }
    });
}
