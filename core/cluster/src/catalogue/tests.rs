use super::*;
use ovs_units::{Name, SnapshotId, VdiskId, VpoolId};
use ovs_volume::MemoryRegistry;

fn catalogue() -> Catalogue {
    Catalogue::new(Rc::new(MemoryRegistry::default()))
}

fn vdisk(number: u128, name: &str) -> VdiskRecord {
    VdiskRecord {
        format: FORMAT,
        id: VdiskId(Uuid::from_u128(number)),
        vpool: VpoolId(Uuid::from_u128(1)),
        name: Name::new(name).unwrap(),
        version: 1,
        state: State::Ready,
        size_bytes: 5000,
        description: String::new(),
        labels: Default::default(),
        protected: false,
        on_full: OnFullPolicy::Stall,
        stall_timeout_ms: None,
        limits: Default::default(),
        cache: Default::default(),
        template: None,
        base: None,
        trash: None,
        generation: 0,
        fenced: Vec::new(),
        pending: None,
        snapshots: Default::default(),
        created_ms: 7,
        request: serde_json::json!({"name": name}),
    }
}

async fn by_name(catalogue: &Catalogue, name: &str) -> Option<Uuid> {
    let key = VdiskRecord::name_key(VpoolId(Uuid::from_u128(1)), &Name::new(name).unwrap());
    catalogue.find_by::<VdiskRecord>(&key).await.unwrap().map(|found| found.record.id.0)
}

#[tokio::test]
async fn a_name_belongs_to_one_vdisk() {
    let catalogue = catalogue();
    let stored = catalogue.insert(vdisk(10, "a")).await.unwrap();
    assert_eq!(by_name(&catalogue, "a").await, Some(Uuid::from_u128(10)));
    let again = catalogue.insert(vdisk(11, "a")).await;
    assert!(matches!(again, Err(CatalogueError::Exists { .. })), "{again:?}");
    assert!(catalogue.find::<VdiskRecord>(Uuid::from_u128(11)).await.unwrap().is_none(), "nothing half made");

    let other = catalogue.insert(vdisk(12, "b")).await.unwrap();
    let mut renamed = other.record.clone();
    renamed.name = Name::new("a").unwrap();
    let refused = catalogue.update(&other, renamed).await;
    assert!(matches!(refused, Err(CatalogueError::Exists { .. })), "{refused:?}");

    catalogue.remove(&stored).await.unwrap();
    assert_eq!(by_name(&catalogue, "a").await, None);
}

#[tokio::test]
async fn an_update_of_something_read_too_long_ago_is_refused() {
    let catalogue = catalogue();
    let first = catalogue.insert(vdisk(10, "a")).await.unwrap();
    let second = catalogue.update(&first, VdiskRecord { version: 2, ..first.record.clone() }).await.unwrap();
    for lost in [
        catalogue.update(&first, VdiskRecord { version: 3, ..first.record.clone() }).await.map(|_| ()),
        catalogue.remove(&first).await,
    ] {
        assert!(matches!(lost, Err(CatalogueError::Changed { .. })), "{lost:?}");
    }
    assert_eq!(catalogue.get::<VdiskRecord>(Uuid::from_u128(10)).await.unwrap().record, second.record);
}

#[tokio::test]
async fn index_keys_follow_the_record() {
    let catalogue = catalogue();
    let mut record = vdisk(10, "a");
    let parent = VdiskId(Uuid::from_u128(99));
    record.base =
        Some(BaseRecord { vdisk: parent, snapshot: SnapshotId(Uuid::from_u128(3)), taken_for_clone: false });
    let stored = catalogue.insert(record.clone()).await.unwrap();
    assert_eq!(catalogue.index(&VdiskRecord::children_prefix(parent)).await.unwrap().len(), 1);

    record.trash = Some(TrashRecord { deleted_ms: 1, expires_ms: 2 });
    let stored = catalogue.update(&stored, record.clone()).await.unwrap();
    assert_eq!(by_name(&catalogue, "a").await, None, "a name in the trash is free");
    assert_eq!(catalogue.index(VdiskRecord::TRASH).await.unwrap().len(), 1);

    record.trash = None;
    record.name = Name::new("back").unwrap();
    let stored = catalogue.update(&stored, record).await.unwrap();
    assert_eq!(by_name(&catalogue, "back").await, Some(Uuid::from_u128(10)));
    catalogue.remove(&stored).await.unwrap();
    for prefix in ["vdisk", "vdisk-name/", "vdisk-child/", "vdisk-trash/", "vdisk-member/"] {
        assert_eq!(catalogue.index(prefix).await.unwrap(), vec![], "{prefix}");
    }
}

#[tokio::test]
async fn names_come_in_order() {
    let catalogue = catalogue();
    for (number, name) in [(10, "b"), (11, "a"), (12, "B"), (13, "a.1")] {
        catalogue.insert(vdisk(number, name)).await.unwrap();
    }
    let names = catalogue.index(&VdiskRecord::names_prefix(VpoolId(Uuid::from_u128(1)))).await.unwrap();
    assert_eq!(names.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["B", "a", "a.1", "b"]);
}

#[tokio::test]
async fn a_damaged_record_hides_no_other() {
    let registry = Rc::new(MemoryRegistry::default());
    let catalogue = Catalogue::new(registry.clone());
    catalogue.insert(vdisk(10, "a")).await.unwrap();
    let bad = format!("vdisk/{}", Uuid::from_u128(11));
    let future = format!("vdisk/{}", Uuid::from_u128(12));
    let newer = VdiskRecord { format: FORMAT + 1, ..vdisk(12, "c") };
    let transaction =
        Transaction::new().put(bad, b"{".to_vec()).put(future, serde_json::to_vec(&newer).unwrap());
    registry.commit(transaction).await.unwrap();
    let mut damaged = Vec::new();
    let good = catalogue.all::<VdiskRecord>(|error| damaged.push(error.to_string())).await.unwrap();
    assert_eq!(good.len(), 1);
    assert_eq!(damaged.len(), 2, "{damaged:?}");
    assert!(damaged[1].contains("format 2"), "{damaged:?}");
}

#[tokio::test]
async fn restoring_twice_is_the_same_and_takes_no_other_vdisks_name() {
    let catalogue = catalogue();
    catalogue.restore(vdisk(10, "a")).await.unwrap();
    catalogue.restore(vdisk(10, "a")).await.unwrap();
    let taken = catalogue.restore(vdisk(11, "a")).await;
    assert!(matches!(taken, Err(CatalogueError::Exists { .. })), "{taken:?}");
    catalogue.restore(vdisk(10, "renamed")).await.unwrap();
    assert_eq!(by_name(&catalogue, "a").await, None);
    catalogue.restore(vdisk(11, "a")).await.unwrap();
    assert_eq!(by_name(&catalogue, "a").await, Some(Uuid::from_u128(11)));
}
