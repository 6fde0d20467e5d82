//! What the write buffer has lost, or is alone in having.

use crate::host::{
    Buffer, DISK, Host, ON_FULL, POOL, byte, cluster, create, is_damaged, open, put, put_stable, run,
};
use ovs_backend::{Fault, FaultyBackend, MemoryBackend, Operation};
use ovs_units::{ByteCount, Name, SnapshotId, VdiskId};
use ovs_volume::{CreateVdisk, Vdisk, VdiskState};
use std::{cell::Cell, rc::Rc, time::Duration};
use uuid::Uuid;

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

/// Nothing of it is left in the write buffer to open it for; and what else is in that segment leaves.
#[test]
fn a_vdisk_is_damaged_for_good_though_nobody_opens_it() {
    run(async {
        let (host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        let other = CreateVdisk {
            id: VdiskId(Uuid::from_u128(11)),
            vpool: POOL,
            size: ByteCount(8 << 20),
            properties: "{}".into(),
            base: None,
            on_full: ON_FULL,
        };
        put_stable(&create(&engine).await, 0, 1).await;
        let other = engine.create_vdisk(other).await.unwrap();
        put_stable(&other, 0, 1).await;
        drop((other, engine));
        let buffer = buffer.copy();
        buffer.spoil(0, |batch| batch[5000] ^= 1);
        // In the first life that sees it not everything is there that has to be; after the second nobody needs its segment.
        for life in 0..3 {
            let engine = host.start(&buffer).await.unwrap();
            if life == 1 {
                engine.claim_buffered(ON_FULL).await.unwrap();
            }
            put_stable(&engine.open_vdisk(POOL, VdiskId(Uuid::from_u128(11)), ON_FULL).await.unwrap(), 0, 2)
                .await;
            engine.close(Duration::from_secs(5)).await.unwrap();
        }
        let engine = host.start(&buffer).await.unwrap();
        assert!(is_damaged(&open(&engine).await));
    });
}
