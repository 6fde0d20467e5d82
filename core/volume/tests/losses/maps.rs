//! Pages of maps on this host, and copies of maps on the backend, that are damaged or gone.

use crate::host::{
    Buffer, DISK, Host, byte, cluster, create, is_degraded, newest_copy, open, put, put_stable, run,
};
use ovs_backend::{Backend, ObjectInfo};
use ovs_volume::{PageStore, VdiskState, VolumeError};
use std::{rc::Rc, time::Duration};

/// Maps on this host are a cache: a page that is damaged costs an error until the next start, and no data ever.
#[test]
fn a_damaged_map_page_is_made_anew_at_the_next_start() {
    run(async {
        let (host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 5, 5).await;
        vdisk.destage().await.unwrap();
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        host.spoil_leaves();
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        let answer = vdisk.read(cluster(5)).await;
        assert!(matches!(answer, Err(VolumeError::Damaged(_))), "{answer:?}");
        assert_eq!(byte(&vdisk, 600).await, 0, "what needs another page is read");
        assert!(is_degraded(&vdisk));
        assert_eq!(engine.sweep_pages().await.unwrap(), 0, "what a damaged page needs is not known");
        put_stable(&vdisk, 5, 6).await;
        assert_eq!(byte(&vdisk, 5).await, 6, "what is in the write buffer is read");
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        assert_eq!(byte(&vdisk, 5).await, 6);
        vdisk.destage().await.unwrap();
        assert_eq!(byte(&vdisk, 5).await, 6);
        assert_eq!(vdisk.stats().state, VdiskState::Ok);
    });
}

/// Nobody reads the cluster: the copy of the map is the first to meet the damaged page.
#[test]
fn a_copy_that_meets_a_damaged_map_page_tells_it() {
    run(async {
        let (mut host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 5, 5).await;
        vdisk.destage().await.unwrap();
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        host.spoil_leaves();
        host.copies_maps = true;
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        assert_eq!(vdisk.stats().state, VdiskState::Ok);
        put(&vdisk, 600, 6).await;
        vdisk.destage().await.unwrap();
        let told = async {
            while !is_degraded(&vdisk) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), told).await.expect("the copy told nothing");
        assert_eq!(newest_copy(&host).await, None, "it is not whole");
        assert_eq!(engine.sweep_pages().await.unwrap(), 0, "what a damaged page needs is not known");
        put(&vdisk, 601, 7).await;
        vdisk.destage().await.unwrap();
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        for (number, expected) in [(5, 5), (600, 6), (601, 7)] {
            assert_eq!(byte(&vdisk, number).await, expected);
        }
        assert_eq!(vdisk.stats().state, VdiskState::Ok);
    });
}

/// It cannot tell what the page needs, and removes nothing now nor later.
#[test]
fn a_sweep_that_meets_a_damaged_map_page_tells_it() {
    run(async {
        let (host, buffer) = (Host::new(false), Buffer::new());
        let engine = host.start(&buffer).await.unwrap();
        let vdisk = create(&engine).await;
        put(&vdisk, 5, 5).await;
        vdisk.destage().await.unwrap();
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        for (page, _) in host.pages.all().into_iter().filter(|(_, bytes)| bytes[0] == 2) {
            host.pages.damage(page, None);
        }
        let answer = engine.sweep_pages().await;
        assert!(matches!(answer, Err(VolumeError::Damaged(_))), "{answer:?}");
        assert!(is_degraded(&vdisk));
        assert_eq!(engine.sweep_pages().await.unwrap(), 0);
        let forgotten = async {
            while !host.pages.records().await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), forgotten)
            .await
            .expect("the next start would believe it");
        engine.close(Duration::from_secs(5)).await.unwrap();
        drop((vdisk, engine));

        let engine = host.start(&buffer).await.unwrap();
        let vdisk = open(&engine).await;
        assert_eq!((byte(&vdisk, 5).await, vdisk.stats().state), (5, VdiskState::Ok));
    });
}

/// The older copy, and the journal behind it, make up for it.
#[test]
fn a_map_copy_that_lacks_a_part_is_done_without() {
    run(async {
        let mut host = Host::new(true);
        let engine = host.start(&Buffer::new()).await.unwrap();
        let vdisk = create(&engine).await;
        for number in 0..30 {
            put(&vdisk, number, 1).await;
            vdisk.destage().await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        engine.close(Duration::from_secs(5)).await.unwrap();
        let prefix = format!("v/{}/c/", DISK.0.simple());
        let parts = async |backend: &Rc<dyn Backend>| {
            let objects = backend.list(&prefix, None, 1000).await.unwrap();
            let is_part = |object: &ObjectInfo| object.name.as_str().matches('-').count() == 3;
            objects.into_iter().filter(is_part).map(|object| object.name).collect::<Vec<_>>()
        };
        let all = parts(&host.backend).await;
        assert!(all.len() >= 4, "two copies of several parts: {all:?}");
        host.backend.delete(all.last().unwrap()).await.unwrap();
        let vdisk = host.take_over().await;
        for number in 0..30 {
            assert_eq!(byte(&vdisk, number).await, 1);
        }
    });
}
