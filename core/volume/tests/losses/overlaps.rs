//! Writes that overlap with each other, and with a rollback: none is lost.

use crate::host::{Buffer, Host, byte, cluster, create, open, put, run};
use ovs_backend::{Call, Fault, FaultyBackend, MemoryBackend, Operation};
use ovs_units::{ByteOffset, Name, SnapshotId};
use std::{rc::Rc, time::Duration};
use uuid::Uuid;

/// Both halves of a cluster at once, while what is there has to be read from the backend first.
#[test]
fn two_ragged_writes_of_one_cluster_are_both_there() {
    run(async {
        let mut host = Host::new(false);
        let slow = |call: &Call<'_>| {
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
