//! A registry that is older than the backend, damaged, or has lost a vDisk.

use crate::host::{Buffer, DISK, Host, ON_FULL, POOL, byte, create, open, put, put_stable, run};
use ovs_units::{ByteCount, Name, SnapshotId, VdiskId};
use ovs_volume::{CreateVdisk, Registry, Transaction, VolumeError};
use std::time::Duration;
use uuid::Uuid;

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
