//! A registry that is older than the backend, damaged, or has lost a vDisk.

use crate::host::{Buffer, DISK, Host, ON_FULL, POOL, byte, cluster, create, open, put, put_stable, run};
use ovs_backend::{Fault, FaultyBackend, MemoryBackend, ObjectName, Operation};
use ovs_units::{ByteCount, Name, SnapshotId, VdiskId};
use ovs_volume::{CreateVdisk, Registry, Transaction, Vdisk, VolumeError};
use std::{cell::Cell, rc::Rc, time::Duration};
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
            // Some had not begun yet; the map's copies have cut their journal.
            let mut old: Vec<Vec<u8>> = old.into_iter().step_by(6).collect();
            for epoch in [0, 1] {
                old.push(before_its_first_record(&old[0], epoch));
            }
            let refused = async |head: &[u8]| {
                host.registry.commit(Transaction::new().put(&key, head.to_vec())).await.unwrap();
                let engine = host.start(&buffer.copy()).await.unwrap();
                is_older(engine.open_vdisk(POOL, DISK, ON_FULL).await)
            };
            for head in &old {
                assert!(refused(head).await, "{}", String::from_utf8_lossy(head));
            }
            // The copies alone show that there was more.
            for record in host.backend.list(&format!("v/{}/j/", DISK.0.simple()), None, 1000).await.unwrap() {
                host.backend.delete(&record.name).await.unwrap();
            }
            assert_eq!(refused(old.last().unwrap()).await, copies_maps);
        });
    }
}

/// The head as it was before anything of it was committed.
fn before_its_first_record(head: &[u8], epoch: u64) -> Vec<u8> {
    let text = std::str::from_utf8(head).unwrap();
    let (before, rest) = text.split_once("\"epoch\":").unwrap();
    let (_, after) = rest.split_once("],\"sequence\"").unwrap();
    format!("{before}\"epoch\":{epoch},\"position\":null,\"sequence\"{after}").into()
}

/// Another host over the same backend, with a registry of its own.
async fn another_over(host: &Host) -> Host {
    let mut other = Host::new(host.copies_maps);
    other.backend = host.backend.clone();
    adopt(&other).await;
    other
}

async fn adopt(host: &Host) {
    let engine = host.start(&Buffer::new()).await.unwrap();
    engine.adopt_vdisk(POOL, DISK).await.unwrap();
    engine.finish_recovery(POOL).await.unwrap();
}

/// Writes and lets it leave; each is a record of the journal.
async fn write_on(vdisk: &Vdisk, byte: u8) {
    put(vdisk, 0, byte).await;
    vdisk.destage().await.unwrap();
}

async fn write(vdisk: &Vdisk, byte: u8) -> Result<(), VolumeError> {
    vdisk.write(cluster(0).start, vec![byte; 4096].into(), false).await
}

fn is_older<T>(answer: Result<T, VolumeError>) -> bool {
    matches!(answer, Err(VolumeError::Refused(told)) if told.contains("older than the backend"))
}

/// A drill: while the first host is off another takes its vDisks in, opens them, and is switched off. Weeks later it is switched
/// on again: it must not go on from where the vDisks were then, and cut off all that was written since.
#[test]
fn what_the_first_host_wrote_after_a_drill_is_not_orphaned() {
    run(async {
        let (first, buffer) = (Host::new(false), Buffer::new());
        let engine = first.start(&buffer).await.unwrap();
        write_on(&create(&engine).await, 1).await;
        drop(engine);

        let second = another_over(&first).await;
        let engine = second.start(&Buffer::new()).await.unwrap();
        assert_eq!(byte(&open(&engine).await, 0).await, 1);
        drop(engine);

        for week in 2..5 {
            let vdisk = open(&first.start(&buffer.copy()).await.unwrap()).await;
            for _ in 0..3 {
                write_on(&vdisk, week).await;
            }
        }
        let engine = second.start(&Buffer::new()).await.unwrap();
        assert!(is_older(engine.open_vdisk(POOL, DISK, ON_FULL).await));
        let vdisk = open(&first.start(&buffer.copy()).await.unwrap()).await;
        assert_eq!(byte(&vdisk, 0).await, 4);
        // It is as it was told to do.
        adopt(&second).await;
        let vdisk = open(&second.start(&Buffer::new()).await.unwrap()).await;
        assert_eq!(byte(&vdisk, 0).await, 4);
        write_on(&vdisk, 5).await;
        // Now the first one is the older.
        let engine = first.start(&buffer.copy()).await.unwrap();
        assert!(is_older(engine.open_vdisk(POOL, DISK, ON_FULL).await));
    });
}

/// The first host is not off: what it writes before the other opens the vDisk is there, or the other does not open it.
#[test]
fn what_is_written_between_an_adoption_and_an_opening_is_not_orphaned() {
    for writes in 0..4 {
        run(async {
            let (first, buffer) = (Host::new(false), Buffer::new());
            let engine = first.start(&buffer).await.unwrap();
            let vdisk = create(&engine).await;
            write_on(&vdisk, 1).await;
            let second = another_over(&first).await;
            for _ in 0..writes {
                write_on(&vdisk, 2).await;
            }
            let engine = second.start(&Buffer::new()).await.unwrap();
            let opened = engine.open_vdisk(POOL, DISK, ON_FULL).await;
            match writes {
                0 => assert_eq!(byte(&opened.unwrap(), 0).await, 1),
                1 => assert_eq!(byte(&opened.unwrap(), 0).await, 2),
                _ => assert!(is_older(opened), "{writes}"),
            }
        });
    }
}

/// Nor what it writes before the other, which has opened it, does.
#[test]
fn what_is_written_between_an_opening_and_the_first_write_is_not_orphaned() {
    for writes in 1..4 {
        run(async {
            let (first, buffer) = (Host::new(false), Buffer::new());
            let engine = first.start(&buffer).await.unwrap();
            let vdisk = create(&engine).await;
            write_on(&vdisk, 1).await;
            let second = another_over(&first).await;
            let other = open(&second.start(&Buffer::new()).await.unwrap()).await;
            for number in 0..writes {
                write_on(&vdisk, 2 + number).await;
            }
            assert!(is_older(write(&other, 9).await), "{writes}");
            let vdisk = open(&first.start(&buffer.copy()).await.unwrap()).await;
            assert_eq!(byte(&vdisk, 0).await, 1 + writes);
        });
    }
}

/// Nor is what the other writes, once it was taken in there: by the first host, which had opened it before.
#[test]
fn what_is_written_elsewhere_since_an_opening_is_met_by_the_first_write() {
    run(async {
        let (first, buffer) = (Host::new(false), Buffer::new());
        write_on(&create(&first.start(&buffer).await.unwrap()).await, 1).await;
        let vdisk = open(&first.start(&buffer.copy()).await.unwrap()).await;
        let second = another_over(&first).await;
        write_on(&open(&second.start(&Buffer::new()).await.unwrap()).await, 2).await;
        assert!(is_older(write(&vdisk, 9).await));
    });
}

/// A backend that is away for a moment, or answers with something else, is asked again, as it is by what is put next.
#[test]
fn a_first_write_waits_until_it_is_known_who_writes() {
    for is_away in [true, false] {
        run(async {
            let (mut host, buffer) = (Host::new(false), Buffer::new());
            let store = Rc::new(MemoryBackend::new());
            host.backend = store.clone();
            write_on(&create(&host.start(&buffer).await.unwrap()).await, 1).await;
            let next = ObjectName::new(format!("v/{}/j/{:016x}-{:016x}", DISK.0.simple(), 1, 2)).unwrap();
            let (is_open, asked) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
            let (open_now, count) = (is_open.clone(), asked.clone());
            host.backend = Rc::new(FaultyBackend::new(store.clone(), move |call| {
                let is_it = match is_away {
                    true => call.operation == Operation::List,
                    false => call.operation == Operation::Get && call.object == next.as_str(),
                };
                if !open_now.get() || !is_it {
                    return None;
                }
                count.set(count.get() + 1);
                let is_wrong = count.get() < 4;
                if !is_away {
                    store.damage(&next, is_wrong.then(|| "of another".into()));
                }
                (is_wrong && is_away).then_some(Fault::ErrorBefore)
            }));
            let vdisk = open(&host.start(&buffer.copy()).await.unwrap()).await;
            is_open.set(true);
            write_on(&vdisk, 2).await;
            assert!(asked.get() >= 4);
        });
    }
}

/// The other has begun an epoch, of which its backend took nothing.
#[test]
fn what_is_written_after_an_epoch_that_came_to_nothing_is_not_orphaned() {
    // By the first host as it goes on, or when it is started again.
    for (writes, is_restarted) in [(0, false), (1, false), (2, false), (1, true), (2, true)] {
        run(async {
            let (first, buffer) = (Host::new(false), Buffer::new());
            let owner = create(&first.start(&buffer).await.unwrap()).await;
            write_on(&owner, 1).await;
            let mut second = another_over(&first).await;
            second.backend = Rc::new(FaultyBackend::new(first.backend.clone(), |call| {
                (call.operation == Operation::Put).then_some(Fault::ErrorBefore)
            }));
            let vdisk = open(&second.start(&Buffer::new()).await.unwrap()).await;
            assert!(write(&vdisk, 9).await.is_err());
            assert!(vdisk.stats().epoch.0 > 1 << 32);
            drop(vdisk);
            second.backend = first.backend.clone();
            let owner = match is_restarted {
                true => open(&first.start(&buffer.copy()).await.unwrap()).await,
                false => owner,
            };
            for number in 0..writes {
                write_on(&owner, 2 + number).await;
            }
            let engine = second.start(&Buffer::new()).await.unwrap();
            let opened = engine.open_vdisk(POOL, DISK, ON_FULL).await;
            if is_restarted || writes > 1 {
                assert!(is_older(opened), "{writes}, {is_restarted}");
                return;
            }
            // One more is what it goes on from, and another one is met.
            let vdisk = opened.unwrap();
            assert_eq!(byte(&vdisk, 0).await, 1 + writes);
            write_on(&owner, 8).await;
            assert!(is_older(write(&vdisk, 9).await));
            drop(owner);
            let vdisk = open(&second.start(&Buffer::new()).await.unwrap()).await;
            assert_eq!(byte(&vdisk, 0).await, 8);
            write_on(&vdisk, 9).await;
            let before = vdisk.stats().epoch;
            let vdisk = open(&second.start(&Buffer::new()).await.unwrap()).await;
            write_on(&vdisk, 10).await;
            assert_eq!(vdisk.stats().epoch, before.next(), "it has begun");
        });
    }
}

/// Recovery upon recovery, with what is written in between.
#[test]
fn what_is_written_after_a_recovery_is_there_after_the_next() {
    for copies_maps in [false, true] {
        run(async {
            let mut host = Host::new(copies_maps);
            let engine = host.start(&Buffer::new()).await.unwrap();
            write_on(&create(&engine).await, 1).await;
            for round in 2..6 {
                let vdisk = host.take_over().await;
                assert_eq!(byte(&vdisk, 0).await, round - 1);
                for _ in 0..3 {
                    write_on(&vdisk, round).await;
                }
                let before = vdisk.stats().epoch;
                let vdisk = open(&host.start(&Buffer::new()).await.unwrap()).await;
                write_on(&vdisk, round).await;
                assert_eq!(vdisk.stats().epoch, before.next());
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
