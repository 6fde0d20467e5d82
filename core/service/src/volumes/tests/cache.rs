//! The read cache: who has what of it is set, shown, kept, counted, and told when it is too much.

use super::*;
use ovs_api::{
    AlarmKind, DeleteVdiskQuery, Host, HostState, PatchVpool, RestoreTrash, ServiceState, Timestamp,
    VdiskCachePatch, VpoolCachePatch,
};
use ovs_units::{CacheDedup, CacheMode, VdiskCache, VpoolCache};
use serde_json::json;

/// What the cache of these lives holds.
const CAPACITY: u64 = 1 << 20;

fn part(patch: serde_json::Value) -> VdiskCachePatch {
    serde_json::from_value(patch).unwrap()
}

fn of_vpool(patch: serde_json::Value) -> PatchVpool {
    let cache: VpoolCachePatch = serde_json::from_value(patch).unwrap();
    PatchVpool { cache, ..PatchVpool::default() }
}

async fn set(volumes: &Rc<Volumes>, vdisk: &str, patched: serde_json::Value) {
    let patch = PatchVdisk { cache: part(patched), ..patch() };
    volumes.update_vdisk(vdisk_ref(vdisk), patch, no_terms()).await.unwrap();
}

async fn quota_of(volumes: &Volumes, vdisk: &str) -> Option<u64> {
    volumes.get_vdisk_stats(vdisk_ref(vdisk)).await.unwrap().cache.unwrap().quota_bytes
}

#[test]
fn a_vdisks_part_is_kept_and_a_clone_has_its_sources() {
    let world = World::new();
    let own = VdiskCache { mode: Some(CacheMode::ReadWrite), quota_bytes: Some(8192) };
    world.life(async |volumes: Rc<Volumes>| {
        let new = CreateVdisk { cache: part(json!({"quota_bytes": 8192})), ..new_vdisk("a", 8192) };
        let made = volumes.create_vdisk(new.clone(), no_terms()).await.unwrap().value;
        assert_eq!(made.cache, VdiskCache { mode: None, quota_bytes: Some(8192) });
        set(&volumes, "a", json!({"mode": "read_write"})).await;
        assert!(!volumes.create_vdisk(new, no_terms()).await.unwrap().is_new);
        let clone = volumes.create_vdisk(clone_of("a", "b"), no_terms()).await.unwrap().value;
        assert_eq!(clone.cache, own);
        let other = CreateVdisk { cache: part(json!({"mode": "none"})), ..clone_of("a", "c") };
        let other = volumes.create_vdisk(other, no_terms()).await.unwrap().value;
        assert_eq!(other.cache, VdiskCache { mode: Some(CacheMode::None), ..own });
        let vpool = of_vpool(json!({"mode": "none", "quota_bytes": 4096, "dedup": "content"}));
        let vpool = volumes.update_vpool(name("default"), vpool, no_terms()).await.unwrap();
        assert!(vpool.revision > 1);
    });
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(volumes.get_vdisk(vdisk_ref("a")).await.unwrap().cache, own);
        assert_eq!(quota_of(&volumes, "a").await, Some(8192));
        let kept = volumes.get_vpool(name("default")).await.unwrap().cache;
        let expected =
            VpoolCache { mode: CacheMode::None, quota_bytes: Some(4096), dedup: CacheDedup::Content };
        assert_eq!(kept, expected);
        set(&volumes, "a", json!({"quota_bytes": null})).await;
        assert_eq!(quota_of(&volumes, "a").await, Some(4096), "its vPool's");
        set(&volumes, "a", json!({"mode": null})).await;
        let stats = volumes.get_vdisk_stats(vdisk_ref("a")).await.unwrap().cache.unwrap();
        assert_eq!((stats.mode, stats.quota_bytes), (CacheMode::None, None));
    });
}

#[test]
fn what_is_refused_changes_nothing() {
    World::new().life(async |volumes: Rc<Volumes>| {
        volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap();
        let bad = PatchVdisk { cache: part(json!({"quota_bytes": 1})), name: Some(name("b")), ..patch() };
        let problem =
            refused(volumes.update_vdisk(vdisk_ref("a"), bad, no_terms()).await, ProblemKind::Invalid);
        assert_eq!(problem.extra["field"], "cache.quota_bytes");
        let bad = of_vpool(json!({"quota_bytes": 0}));
        refused(volumes.update_vpool(name("default"), bad, no_terms()).await, ProblemKind::Invalid);
        assert_eq!(volumes.get_vdisk(vdisk_ref("a")).await.unwrap().revision, 1);
        assert_eq!(volumes.get_vpool(name("default")).await.unwrap().revision, 1);
    });
}

#[test]
fn reads_are_counted() {
    World::new().life(async |volumes: Rc<Volumes>| {
        let new = CreateVdisk { cache: part(json!({"quota_bytes": 65536})), ..new_vdisk("a", 1 << 20) };
        let uuid = volumes.create_vdisk(new, no_terms()).await.unwrap().value.uuid;
        write(&volumes, "a", 0, 7, 16384).await;
        volumes.ensure_open(uuid).await.unwrap().destage().await.unwrap();
        for _ in 0..3 {
            assert_eq!(byte_at(&volumes, "a", 5000).await, 7);
        }
        let text = crate::metrics::text(&volumes).await;
        let labels = format!("vpool=\"default\",vdisk=\"a\",uuid=\"{uuid}\"");
        for line in [
            format!("ovs_vdisk_cache_bytes{{{labels}}} 4096"),
            format!("ovs_vdisk_cache_hits_total{{{labels}}} 2"),
            format!("ovs_vdisk_cache_misses_total{{{labels}}} 1"),
            format!("ovs_vdisk_cache_quota_bytes{{{labels}}} 65536"),
            "ovs_cache_hits_total{tier=\"memory\"} 2".to_owned(),
            "ovs_cache_damaged_total{tier=\"memory\"} 0".to_owned(),
            "ovs_cache_bytes{tier=\"memory\"} 4096".to_owned(),
            format!("ovs_cache_capacity_bytes {CAPACITY}"),
            "ovs_cache_quota_bytes 65536".to_owned(),
            "ovs_cache_entries 1".to_owned(),
            "ovs_cache_misses_total 1".to_owned(),
            "ovs_cache_evicted_total 0".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} is not in {text}");
        }
        assert!(!text.contains("tier=\"ssd\""));
        let stats = volumes.get_vdisk_stats(vdisk_ref("a")).await.unwrap().cache.unwrap();
        assert_eq!((stats.used_bytes, stats.hit_count, stats.miss_count), (4096, 2, 1));
    });
}

fn this_host() -> Host {
    Host {
        uuid: uuid::Uuid::nil(),
        name: "here".into(),
        state: HostState::Online,
        version: "1".into(),
        is_local: true,
        started_at: Timestamp::from_unix_ms(0),
    }
}

async fn alarm(volumes: &Rc<Volumes>) -> Option<u32> {
    volumes.look_for_alarms().await;
    let alarms = volumes.alarms.list();
    alarms.iter().find(|alarm| alarm.kind == AlarmKind::CacheQuotas).and_then(|alarm| alarm.used_percent)
}

#[test]
fn quotas_that_do_not_fit_are_told_and_are_nobodys_fault() {
    World::new().life(async |volumes: Rc<Volumes>| {
        for vdisk in ["a", "b"] {
            volumes.create_vdisk(new_vdisk(vdisk, 8192), no_terms()).await.unwrap();
        }
        set(&volumes, "a", json!({"quota_bytes": CAPACITY / 2})).await;
        assert_eq!(alarm(&volumes).await, None);
        set(&volumes, "b", json!({"quota_bytes": CAPACITY / 4})).await;
        assert_eq!(alarm(&volumes).await, Some(75));
        set(&volumes, "b", json!({"quota_bytes": CAPACITY * 2})).await;
        assert_eq!(alarm(&volumes).await, Some(250));
        let host = volumes.status(this_host(), 0).await.unwrap();
        // The disk below may be nearly full.
        let is_well = host.alarms.iter().all(|alarm| alarm.kind == AlarmKind::CacheQuotas);
        assert_eq!(host.state == ServiceState::Ok, is_well);
        let cache = host.cache.unwrap();
        assert_eq!(
            (cache.total_bytes, cache.quotas_bytes, cache.has_ssd),
            (CAPACITY, CAPACITY / 2 * 5, false)
        );
        // What is in the trash has no quota, and has it again when it comes back.
        volumes.delete_vdisk(vdisk_ref("b"), DeleteVdiskQuery::default(), no_terms()).await.unwrap();
        assert_eq!(alarm(&volumes).await, None);
        volumes.restore_trash(vdisk_ref("b"), RestoreTrash { name: None }, no_terms()).await.unwrap();
        assert_eq!(alarm(&volumes).await, Some(250));
        set(&volumes, "b", json!({"mode": "none"})).await;
        assert_eq!(alarm(&volumes).await, None);
    });
}
