//! A write buffer that some cannot leave, as their backend takes no journal of theirs: the others go on, and what was flushed
//! stays.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

use bytes::Bytes;
use ovs_backend::{Call, Fault, FaultyBackend, MemoryBackend, Operation};
use ovs_tests::host::{Host, byte_of, create, put, run_paused};
use ovs_units::{ByteCount, ByteOffset, VdiskId};
use ovs_volume::{MemoryPages, MemoryRegistry};
use std::{cell::Cell, rc::Rc, time::Duration};
use uuid::Uuid;

const FIRST: VdiskId = VdiskId(Uuid::from_u128(10));
const SECOND: VdiskId = VdiskId(Uuid::from_u128(11));
const THIRD: VdiskId = VdiskId(Uuid::from_u128(12));
const SLOT_CLUSTERS: u64 = 64;
const SIZE: ByteCount = ByteCount(64 << 20);

/// What a backend does not take.
#[derive(Clone, Copy, PartialEq)]
enum Refuses {
    Nothing,
    /// Any journal but `SECOND`'s.
    Journals,
    Everything,
}

/// A host with so many slots, and what its backend does not take.
fn new_host(slots: usize) -> (Host, Rc<Cell<Refuses>>) {
    let refuses = Rc::new(Cell::new(Refuses::Nothing));
    let (told, taken) = (Rc::clone(&refuses), format!("{}/j/", SECOND.0.simple()));
    let schedule = move |call: &Call<'_>| {
        let is_refused = match told.get() {
            Refuses::Nothing => false,
            Refuses::Journals => call.object.contains("/j/") && !call.object.contains(&taken),
            Refuses::Everything => true,
        };
        (is_refused && call.operation == Operation::Put).then_some(Fault::ErrorBefore)
    };
    (Host::new(slots, Rc::new(FaultyBackend::new(MemoryBackend::new(), schedule))), refuses)
}

/// These write so many clusters each at once, then some in every round, up to so many; `SECOND` some in every round.
fn check_room_for_others(stuck: &[VdiskId], at_once: u64, in_a_round: u64, most: u64, others: u64) {
    run_paused(async {
        let (host, refuses) = new_host(12);
        let engine = host.start().await;
        let mut disks = Vec::new();
        for id in stuck {
            disks.push(create(&engine, *id, SIZE).await);
        }
        let second = create(&engine, SECOND, SIZE).await;
        refuses.set(Refuses::Journals);
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
        refuses.set(Refuses::Nothing);
        let engine = host.start().await;
        for id in stuck {
            let disk = engine.open_vdisk(Host::POOL, *id, Host::ON_FULL).await.unwrap();
            for number in 0..written {
                assert_eq!(byte_of(&disk, number).await, 7, "cluster {number}");
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
    run_paused(async {
        let (host, refuses) = new_host(slots);
        let engine = host.start().await;
        let mut disks = Vec::new();
        for id in stuck {
            disks.push(create(&engine, *id, SIZE).await);
        }
        let second = create(&engine, SECOND, SIZE).await;
        refuses.set(Refuses::Journals);
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
/// that was flushed must be found as long as what superseded it may be lost.
#[test]
fn what_is_superseded_is_found_until_that_is_stable() {
    const SLOTS: usize = 12;
    // Few enough for a vDisk whose data cannot leave to write on.
    const CLUSTERS: u64 = 60;
    run_paused(async {
        let (host, refuses) = new_host(SLOTS);
        let registry = Rc::new(MemoryRegistry::default());
        let host = Host { registry: registry.clone(), ..host };
        let engine = host.start().await;
        let vdisk = create(&engine, FIRST, SIZE).await;
        refuses.set(Refuses::Everything);
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
                let registry = Rc::new(MemoryRegistry::clone(&registry));
                let pages = Rc::new(MemoryPages::clone(&host.pages));
                let after = Host { buffer: Rc::new(buffer), registry, pages, ..host.clone() };
                let vdisk = after.start().await.open_vdisk(Host::POOL, FIRST, Host::ON_FULL).await.unwrap();
                for number in 0..CLUSTERS {
                    let found = byte_of(&vdisk, number).await;
                    assert!(
                        found >= 1,
                        "cluster {number} is gone after {written} writes, with slot {kept} kept"
                    );
                }
            }
        }
    });
}
