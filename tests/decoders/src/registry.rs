//! What the registry, the backends' own records and `vpools.json` hold: JSON, index keys, object names.

use crate::{Family, json};
use ovs_backend::ObjectName;
use ovs_cluster::catalogue::{
    self, AttachmentRecord, BackendRecord, Counter, IdempotencyRecord, Record, VdiskRecord, VpoolRecord,
};
use ovs_service::volumes::inventory::Inventory;
use ovs_units::VdiskId;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use uuid::Uuid;

const VDISK: VdiskId = VdiskId(Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888));

/// Heads, the catalogue, the inventory, entries as RocksDB holds them, names of objects.
pub(crate) const REGISTRY: Family = Family {
    name: "registry",
    check: |bytes| {
        let taken = [
            head(bytes),
            record::<BackendRecord>(bytes),
            record::<VpoolRecord>(bytes),
            vdisk_record(bytes),
            record::<AttachmentRecord>(bytes),
            record::<IdempotencyRecord>(bytes),
            record::<Counter>(bytes),
            inventory(bytes),
            object_name(bytes),
            ovs_cluster::decoders::pointer("key", bytes).is_ok(),
        ];
        // Any value of eight bytes and more is an entry.
        if let Ok(entry) = ovs_cluster::decoders::decode_entry(b"key".to_vec(), bytes.to_vec()) {
            assert_eq!([&entry.revision.0.to_be_bytes(), &entry.value[..]].concat(), bytes);
        }
        let _ = ovs_cluster::decoders::decode_entry(bytes.to_vec(), vec![0; 8]);
        taken.contains(&true)
    },
    seeds: || SEEDS.iter().map(|text| text.as_bytes().to_vec()).collect(),
    memory_bytes: 64 << 10,
    memory_per_byte: 64,
};

fn head(bytes: &[u8]) -> bool {
    let Some(encoded) = ovs_volume::decoders::head(VDISK, bytes) else { return false };
    assert_eq!(ovs_volume::decoders::head(VDISK, &encoded), Some(encoded.clone()));
    true
}

fn record<T: Record + Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
    json::<T>(bytes);
    let Ok(record) = catalogue::decode::<T>("key", bytes) else { return false };
    // Where it is found again.
    record.index_keys();
    true
}

/// Also read from a backend, where anybody may have written it.
fn vdisk_record(bytes: &[u8]) -> bool {
    if let Ok(record) = catalogue::decode::<VdiskRecord>("key", bytes) {
        assert!(record.capacity().0 >= record.size_bytes);
    }
    record::<VdiskRecord>(bytes)
}

fn inventory(bytes: &[u8]) -> bool {
    json::<Inventory>(bytes);
    Inventory::decode(bytes).is_ok()
}

/// The name of an object on a backend; whether it is one of a journal.
fn object_name(bytes: &[u8]) -> bool {
    let Some(name) = std::str::from_utf8(bytes).ok().and_then(|text| ObjectName::new(text).ok()) else {
        return false;
    };
    assert!(!name.as_str().split('/').any(|part| part.starts_with('.') || part.is_empty()));
    let prefix = format!("v/{}/j/", VDISK.0.simple());
    let Some(position) = ovs_volume::decoders::position_of(&name, &prefix) else { return false };
    assert_eq!(ovs_volume::decoders::record_name(VDISK, position), name);
    // Whoever reads a journal goes on to the next record.
    assert!(position.index.next() > position.index && position.epoch.next() > position.epoch);
    true
}

const SEEDS: [&str; 10] = [
    r#"{"format":1,"vpool":"00000000-0000-0000-0000-000000000001","epoch":3,"position":[3,9],"sequence":60,"size":1073741824,"base":["00000000-0000-0000-0000-000000000002","00000000-0000-0000-0000-000000000003"],"epochs":[[2,40],[3,50]],"snapshots":[{"id":"00000000-0000-0000-0000-000000000004","name":"daily.1","created_ms":1700000000000,"sequence":60,"size":1073741824,"hidden":false,"clones":["00000000-0000-0000-0000-000000000005"]}],"copies":[{"epoch":3,"index":5,"put":"00000000-0000-0000-0000-000000000006"}],"damaged":["batch 7 is bad"],"lost":null,"accepted":["batch 6 is bad"],"deleted":false,"clones_unknown":true,"epochs_unknown":true,"properties":"{}"}"#,
    r#"{"format":1,"uuid":"00000000-0000-0000-0000-000000000001","name":"default","version":1,"kind":"dir","path":"/var/lib/ovs/backend/default","created_ms":1700000000000,"request":{"name":"default"}}"#,
    r#"{"format":1,"id":"00000000-0000-0000-0000-000000000001","name":"default","version":1,"state":"ready","backend":"00000000-0000-0000-0000-000000000002","namespace":"vpool-x","owns_backend":true,"preset":"default","description":"","on_full":"stall","stall_timeout_ms":null,"default_size_bytes":1073741824,"trash_retention_s":86400,"labels":{"a":"b"},"created_ms":1700000000000,"request":null}"#,
    r#"{"format":1,"id":"00000000-0000-0000-0000-000000000001","vpool":"00000000-0000-0000-0000-000000000002","name":"x","version":2,"state":"ready","size_bytes":1073741824,"description":"d","labels":{"a":"b"},"protected":false,"on_full":"enospc","stall_timeout_ms":5,"template":null,"base":{"vdisk":"00000000-0000-0000-0000-000000000003","snapshot":"00000000-0000-0000-0000-000000000004","taken_for_clone":false},"trash":{"deleted_ms":1,"expires_ms":2},"generation":3,"fenced":["00000000-0000-0000-0000-000000000005"],"pending":{"zero_tail":4096},"snapshots":{"00000000-0000-0000-0000-000000000006":{"name":"s","size_bytes":4096,"description":"","labels":{},"version":1}},"created_ms":1700000000000,"request":{"vpool":"default","name":"x"}}"#,
    r#"{"format":1,"uuid":"00000000-0000-0000-0000-000000000001","version":1,"vdisk":"00000000-0000-0000-0000-000000000002","holder":{"client":"c"}}"#,
    r#"{"format":1,"uuid":"00000000-0000-0000-0000-000000000001","key":"k","request":{},"object":"00000000-0000-0000-0000-000000000002","gone_ms":5}"#,
    r#"{"format":1,"uuid":"00000000-0000-0000-0000-000000000001","value":7}"#,
    r#"{"format":1,"host":"00000000-0000-0000-0000-000000000001","backends":[{"uuid":"00000000-0000-0000-0000-000000000002","name":"default","path":"/x","created_ms":1}],"vpools":[{"id":"00000000-0000-0000-0000-000000000003","name":"default","backend":"00000000-0000-0000-0000-000000000002","namespace":"vpool-x"}]}"#,
    "v/11112222333344445555666677778888/j/0000000000000003-0000000000000009",
    "00000000-0000-0000-0000-000000000001",
];
