//! vPools and backends.

use super::*;
use ovs_api::{
    CreateBackend, CreateVpool, DeleteVdiskQuery, DeleteVpoolQuery, ListQuery, PatchVpool, VpoolState,
};

pub(super) fn vpool(text: &str, backend: Option<&str>) -> CreateVpool {
    CreateVpool {
        name: name(text),
        backend: backend.map(name),
        preset: None,
        on_full: None,
        stall_timeout_ms: None,
        default_size_bytes: None,
        trash_retention_s: None,
        cache: Default::default(),
        description: String::new(),
        labels: Labels::default(),
    }
}

#[test]
fn a_fresh_ovsd_has_a_vpool_and_keeps_it() {
    let world = World::new();
    let first = world.life(async |volumes: Rc<Volumes>| volumes.get_vpool(name("default")).await.unwrap());
    assert_eq!((first.state, first.backend.as_str()), (VpoolState::Ok, "default"));
    let second =
        world.life(async |volumes: Rc<Volumes>| volumes.list_vpools(ListQuery::default()).await.unwrap());
    assert_eq!(second.items.len(), 1);
    assert_eq!(second.items[0].uuid, first.uuid);
}

#[test]
fn a_deleted_default_vpool_does_not_come_back() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        volumes.delete_vpool(name("default"), DeleteVpoolQuery::default(), no_terms()).await.unwrap();
        let backends = volumes.list_backends(ListQuery::default()).await.unwrap();
        assert_eq!(backends.items.len(), 0, "the backend that was made for it goes with it");
    });
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(volumes.list_vpools(ListQuery::default()).await.unwrap().items.len(), 0);
    });
}

#[test]
fn one_backend_holds_one_vpool_and_goes_when_nobody_uses_it() {
    let world = World::new();
    let path = world.path().join("disk1").to_string_lossy().into_owned();
    world.life(async |volumes: Rc<Volumes>| {
        let backend = |text: &str, path: &str| CreateBackend::dir(name(text), path);
        assert!(volumes.create_backend(backend("b", &path), no_terms()).await.unwrap().is_new);
        assert!(!volumes.create_backend(backend("b", &path), no_terms()).await.unwrap().is_new);
        refused(volumes.create_backend(backend("b", "/elsewhere"), no_terms()).await, ProblemKind::Exists);
        for overlapping in
            [path.clone(), format!("{path}/below"), world.path().to_string_lossy().into_owned()]
        {
            refused(volumes.create_backend(backend("c", &overlapping), no_terms()).await, ProblemKind::InUse);
        }
        volumes.create_vpool(vpool("p", Some("b")), no_terms()).await.unwrap();
        assert!(!volumes.create_vpool(vpool("p", Some("b")), no_terms()).await.unwrap().is_new);
        refused(volumes.create_vpool(vpool("p", None), no_terms()).await, ProblemKind::Exists);
        refused(volumes.create_vpool(vpool("q", Some("b")), no_terms()).await, ProblemKind::InUse);
        refused(volumes.create_vpool(vpool("q", Some("nothing")), no_terms()).await, ProblemKind::NotFound);
        refused(volumes.delete_backend(name("b"), no_terms()).await, ProblemKind::InUse);
        assert_eq!(volumes.get_backend(name("b")).await.unwrap().vpool, Some(name("p")));

        let inside = CreateVdisk { size_bytes: Some(8192), ..CreateVdisk::new(name("p"), name("a")) };
        volumes.create_vdisk(inside, no_terms()).await.unwrap();
        let delete = |purge_trash| {
            volumes.delete_vpool(
                name("p"),
                DeleteVpoolQuery { purge_trash, ..Default::default() },
                no_terms(),
            )
        };
        refused(delete(true).await, ProblemKind::InUse);
        volumes.delete_vdisk("p:a".parse().unwrap(), DeleteVdiskQuery::default(), no_terms()).await.unwrap();
        refused(delete(false).await, ProblemKind::InUse);
        delete(true).await.unwrap();
        assert!(
            std::fs::read_dir(&path).unwrap().next().is_none(),
            "nothing of the vPool is left on its backend"
        );
        volumes.delete_backend(name("b"), no_terms()).await.unwrap();
        refused(volumes.get_backend(name("b")).await, ProblemKind::NotFound);
    });
}

#[test]
fn settings_are_for_vdisks_made_from_now_on() {
    let world = World::new();
    world.life(async |volumes: Rc<Volumes>| {
        let request = || CreateVdisk::new(name("default"), name("a"));
        assert_eq!(volumes.create_vdisk(request(), no_terms()).await.unwrap().value.size_bytes, 10 << 30);
        let change = PatchVpool {
            default_size_bytes: Some(1 << 20),
            on_full: Some(ovs_api::OnFull::Enospc),
            ..PatchVpool::default()
        };
        volumes.update_vpool(name("default"), change, no_terms()).await.unwrap();
    });
    world.life(async |volumes: Rc<Volumes>| {
        let made = volumes
            .create_vdisk(CreateVdisk::new(name("default"), name("b")), no_terms())
            .await
            .unwrap()
            .value;
        assert_eq!((made.size_bytes, made.on_full), (1 << 20, ovs_api::OnFull::Enospc));
        assert_eq!(volumes.get_vdisk(vdisk_ref("a")).await.unwrap().on_full, ovs_api::OnFull::Stall);
    });
}

#[test]
fn a_vpool_whose_folder_is_away_stops_nobody_and_comes_back() {
    let world = World::new();
    let folder = world.paths().state_dir().join("backend/default");
    let away = world.path().join("away");
    world.life(async |volumes: Rc<Volumes>| {
        volumes.create_vdisk(new_vdisk("a", 8192), no_terms()).await.unwrap();
        write(&volumes, "a", 0, 3, 4096).await;
        volumes.create_vpool(vpool("other", None), no_terms()).await.unwrap();
    });
    std::fs::rename(&folder, &away).unwrap();
    world.life(async |volumes: Rc<Volumes>| {
        assert_eq!(volumes.get_vpool(name("default")).await.unwrap().state, VpoolState::Offline);
        assert_eq!(volumes.get_vpool(name("other")).await.unwrap().state, VpoolState::Ok);
        let shown = volumes.get_vdisk(vdisk_ref("a")).await.unwrap();
        assert_eq!(shown.state, ovs_api::VdiskState::Offline);
        assert!(shown.state_reason.is_some());
        refused(volumes.create_vdisk(new_vdisk("b", 8192), no_terms()).await, ProblemKind::Offline);
        assert!(!folder.exists(), "an unmounted folder is not begun anew");
        std::fs::rename(&away, &folder).unwrap();
        volumes.begin_background();
        volumes.clock.sleep(Duration::from_secs(15)).await;
        assert_eq!(volumes.get_vpool(name("default")).await.unwrap().state, VpoolState::Ok);
        assert_eq!(byte_at(&volumes, "a", 0).await, 3);
    });
}
