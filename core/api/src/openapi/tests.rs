//! Walks the document: what it says must be so.

use super::*;
use crate::types::*;
use crate::{Method, VdiskRef};
use ovs_units::{CacheMode, Limits, Name, Rates, SnapshotId, VdiskCache, VdiskId, VpoolCache, VpoolId};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Every object in the document that has the member.
fn having<'a>(value: &'a Value, member: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(object) => {
            if object.contains_key(member) {
                found.push(value);
            }
            object.values().for_each(|value| having(value, member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| having(item, member, found)),
        _ => {}
    }
}

fn validator(pointer: &str) -> jsonschema::Validator {
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": format!("#/components/schemas/{pointer}"),
        "components": openapi()["components"],
    });
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

#[test]
fn every_reference_resolves() {
    let mut references = Vec::new();
    having(openapi(), "$ref", &mut references);
    assert!(references.len() > 100, "{}", references.len());
    for reference in references {
        let target = reference["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
        assert!(openapi().pointer(target).is_some(), "{target}");
    }
}

#[test]
fn every_schema_is_used() {
    let mut references = Vec::new();
    having(openapi(), "$ref", &mut references);
    let used: BTreeSet<&str> = references.iter().map(|one| one["$ref"].as_str().unwrap()).collect();
    for name in openapi()["components"]["schemas"].as_object().unwrap().keys() {
        assert!(used.contains(format!("#/components/schemas/{name}").as_str()), "{name}");
    }
}

#[test]
fn every_operation_is_in_the_document_once() {
    let mut ids = BTreeSet::new();
    for operation in OPERATIONS {
        let described = &openapi()["paths"][operation.path][operation.method.as_str().to_lowercase()];
        assert_eq!(described["operationId"], operation.id);
        assert!(ids.insert(operation.id), "{} twice", operation.id);
        let in_path: Vec<&str> =
            operation.path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}')).collect();
        let params: Vec<&str> = operation.path_params.iter().map(|(name, _)| *name).collect();
        assert_eq!(in_path, params, "{}", operation.id);
        assert!(!(operation.method == Method::GET && operation.body.is_some()), "{}", operation.id);
        assert!(!operation.summary.trim().is_empty());
    }
    let described: usize =
        openapi()["paths"].as_object().unwrap().values().map(|p| p.as_object().unwrap().len()).sum();
    assert_eq!(described, OPERATIONS.len());
}

#[test]
fn every_operation_documents_success_and_problems() {
    for operation in OPERATIONS {
        let responses =
            &openapi()["paths"][operation.path][operation.method.as_str().to_lowercase()]["responses"];
        let statuses: Vec<&String> = responses.as_object().unwrap().keys().collect();
        assert!(statuses.iter().any(|status| status.starts_with('2')), "{}: {statuses:?}", operation.id);
        assert!(responses["400"]["content"]["application/problem+json"]["schema"]["$ref"].is_string());
        assert_eq!(
            statuses.iter().any(|status| *status == "501"),
            operation.until.is_some(),
            "{}",
            operation.id
        );
    }
}

#[test]
fn every_example_validates() {
    let mut count = 0;
    let schemas = openapi()["components"]["schemas"].as_object().unwrap();
    for (name, schema) in schemas {
        for example in schema["examples"].as_array().into_iter().flatten() {
            let validator = validator(name);
            let errors: Vec<String> = validator.iter_errors(example).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{name}: {errors:?}");
            count += 1;
        }
    }
    assert!(count >= 3, "{count} examples");
}

#[test]
fn query_members_are_parameters_without_null() {
    let parameters = openapi()["paths"]["/v1/vdisks"]["get"]["parameters"].as_array().unwrap();
    let named = |name: &str| parameters.iter().find(|one| one["name"] == name).unwrap();
    assert_eq!(named("limit")["schema"]["type"], "integer");
    assert_eq!(named("is_template")["schema"]["type"], "boolean");
    assert_eq!(named("label")["schema"]["type"], "array");
    assert_eq!(named("vpool")["schema"], json!({ "$ref": "#/components/schemas/Name" }));
    for parameter in parameters {
        assert!(!parameter.to_string().contains("null"), "{parameter}");
    }
}

#[test]
fn query_kinds_follow_the_schema() {
    let operation = OPERATIONS.iter().find(|operation| operation.id == "list_vdisks").unwrap();
    let members: BTreeMap<String, QueryKind> = operation.query_members().iter().cloned().collect();
    for (name, kind) in [
        ("limit", QueryKind::Integer),
        ("is_template", QueryKind::Boolean),
        ("label", QueryKind::TextList),
        ("vpool", QueryKind::Text),
        ("cursor", QueryKind::Text),
    ] {
        assert_eq!(members.get(name), Some(&kind), "{name}");
    }
}

/// A client that goes by the document and the code that checks agree on every character. What the document can only say
/// in words, the code alone refuses: bytes of UTF-8 where a schema counts characters, and sums.
#[test]
fn labels_are_refused_where_the_schema_says_so() {
    let (whole, change, selector) =
        (validator("Labels"), validator("LabelsPatch"), validator("LabelSelector"));
    let check = |key: &str, value: &str, is_allowed: bool| {
        let shown = format!("{:.20?} = {:.20?} ({} bytes)", key, value, value.len());
        let document = json!({ key: value });
        let labels = Labels([(key.to_owned(), value.to_owned())].into());
        let patch = LabelsPatch([(key.to_owned(), Some(value.to_owned()))].into());
        let text = format!("{key}={value}");
        let coded = [labels.check().is_ok(), patch.check().is_ok(), text.parse::<LabelSelector>().is_ok()];
        assert_eq!(coded, [is_allowed; 3], "the code: {shown}");
        let described =
            [whole.is_valid(&document), change.is_valid(&document), selector.is_valid(&json!(text))];
        assert_eq!(described, [is_allowed; 3], "the document: {shown}");
    };
    let longest = ["k".repeat(128), "v".repeat(4096)];
    check(&longest[0], &longest[1], true);
    check(&longest[0], &"v".repeat(4097), false);
    check(&"k".repeat(129), "", false);
    for value in ["", "\n", "\t \r\n", "\u{1}\u{1f}", "\u{7f}\u{9f}", "\u{2028}", "é=", "\u{10ffff}"] {
        check("k", value, true);
        check(&format!("k{value}"), "", value.is_empty());
    }
    for value in ["\0", "a\0", "\0a", "\n\0\n"] {
        check("k", value, false);
        check(value, "", false);
    }
    assert!(change.is_valid(&json!({ "k": null })) && !whole.is_valid(&json!({ "k": null })));
    let many_bytes = Labels([("k".to_owned(), "é".repeat(4096))].into());
    assert!(many_bytes.check().is_err() && whole.is_valid(&serde_json::to_value(&many_bytes).unwrap()));
}

/// What the code writes is what the document says, and comes back as it was.
fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(schema: &str, value: &T) {
    let json = serde_json::to_value(value).unwrap();
    let errors: Vec<String> = validator(schema).iter_errors(&json).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{schema}: {errors:?} in {json}");
    assert_eq!(&serde_json::from_value::<T>(json).unwrap(), value);
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn vdisk() -> Vdisk {
    Vdisk {
        uuid: VdiskId(Uuid::from_u128(1)),
        vpool: name("default"),
        name: name("web-1"),
        revision: 3,
        size_bytes: 4097,
        capacity_bytes: 8192,
        allocated_bytes: 4096,
        buffered_bytes: 0,
        state: VdiskState::Stalled,
        state_reason: Some("the backend is full".into()),
        is_template: false,
        protected: true,
        base: Some(Base { vdisk: VdiskId(Uuid::from_u128(2)), snapshot: SnapshotId(Uuid::from_u128(3)) }),
        snapshot_count: 1,
        attachment_count: 0,
        on_full: OnFull::Enospc,
        stall_timeout_ms: None,
        limits: Limits {
            total: Rates { iops: Some(500), iops_burst: Some(2000), ..Rates::default() },
            read: Rates { bytes_per_s: Some(100 << 20), ..Rates::default() },
            burst_s: Some(10),
            ..Limits::default()
        },
        cache: VdiskCache { mode: Some(CacheMode::ReadWrite), quota_bytes: Some(1 << 30) },
        host: "h".into(),
        nbd_socket: "/run/ovs/nbd/x.sock".into(),
        nbd_uri: "nbd+unix:///?socket=/run/ovs/nbd/x.sock".into(),
        nbd_tls_uri: Some("nbds://h1:10809/default/x".into()),
        qemu_filename: "json:{}".into(),
        fuse_path: "/mnt/ovs/default/web-1.raw".into(),
        description: String::new(),
        labels: Labels([("a".to_owned(), "b".to_owned())].into()),
        created_at: Timestamp::from_unix_ms(1_795_169_823_120),
    }
}

#[test]
fn objects_are_as_the_document_says() {
    check("Vdisk", &vdisk());
    check("PageOfVdisk", &Page { items: vec![vdisk()], next_cursor: Some(Cursor::after("default/web-1")) });
    check("Problem", &Problem::field("size_bytes", 1, "multiples of 4096").with("revision", 7));
    check(
        "Vpool",
        &Vpool {
            uuid: VpoolId(Uuid::from_u128(4)),
            name: name("default"),
            revision: 1,
            backend: name("default"),
            preset: name("default"),
            state: VpoolState::Ok,
            state_reason: None,
            on_full: OnFull::Stall,
            stall_timeout_ms: Some(1000),
            default_size_bytes: 10 << 30,
            trash_retention_s: 86_400,
            cache: VpoolCache { quota_bytes: Some(1 << 30), ..VpoolCache::default() },
            total_bytes: None,
            free_bytes: Some(1),
            used_bytes: 0,
            provisioned_bytes: 0,
            vdisk_count: 0,
            description: "x".into(),
            labels: Labels::default(),
            created_at: Timestamp::from_unix_ms(0),
        },
    );
    check(
        "Task",
        &Task {
            uuid: TaskId(Uuid::from_u128(5)),
            revision: 2,
            kind: "vpool.recover".into(),
            subject: Some(Uuid::from_u128(4)),
            subject_name: Some("default".into()),
            state: TaskState::Failed,
            progress: TaskProgress { done: 1, total: None, unit: "vdisks".into() },
            error: Some(Problem::new(ProblemKind::Damaged, "x")),
            result: Some(json!({ "vdisks": 1 })),
            created_at: Timestamp::from_unix_ms(0),
            finished_at: None,
        },
    );
    check(
        "Event",
        &Event {
            id: EventId(9),
            kind: EventKind::VdiskRenamed,
            subject: Some(Uuid::from_u128(1)),
            revision: Some(4),
            vpool: Some(name("default")),
            vdisk: None,
            name: Some("web-2".into()),
            previous_name: Some(name("web-1")),
            size_bytes: None,
            detail: None,
            at: Timestamp::from_unix_ms(0),
        },
    );
}

#[test]
fn requests_are_as_the_document_says() {
    check("CreateVdisk", &CreateVdisk::new(name("default"), name("x")));
    let source =
        Source { vdisk: VdiskRef::Id(VdiskId(Uuid::from_u128(1))), snapshot: Some(name("s").into()) };
    check("CreateVdisk", &CreateVdisk { source: Some(source), ..CreateVdisk::new(name("p"), name("x")) });
    let labels = LabelsPatch([("gone".to_owned(), None), ("set".to_owned(), Some(String::new()))].into());
    check("PatchVdisk", &PatchVdisk { name: Some(name("y")), labels, ..PatchVdisk::default() });
    let attachment = CreateAttachment {
        vdisk: "default:x".parse().unwrap(),
        snapshot: None,
        client: "container 1".into(),
        door: Door::Docker,
        mode: AttachmentMode::Exclusive,
        host: None,
        write_through: false,
        persistent: true,
        uuid: None,
    };
    check("CreateAttachment", &attachment);
    let backend = CreateBackend::dir(name("b"), "/srv/b");
    check("RecoverVpool", &RecoverVpool { name: name("p"), backend });
}

#[test]
fn the_document_refuses_what_the_code_refuses() {
    let validator = validator("CreateVdisk");
    for bad in [
        json!({ "vpool": "p" }),
        json!({ "vpool": "p", "name": "../x" }),
        json!({ "vpool": "p", "name": "x", "size_bytes": "1GiB" }),
        json!({ "vpool": "p", "name": "x", "size_bytes": -1 }),
        json!({ "vpool": "p", "name": "x", "colour": "red" }),
        json!({ "vpool": "p", "name": "x", "on_full": "explode" }),
        json!({ "vpool": "p", "name": "x", "labels": { "a": 1 } }),
    ] {
        assert!(!validator.is_valid(&bad), "{bad}");
        assert!(serde_json::from_value::<CreateVdisk>(bad.clone()).is_err(), "{bad}");
    }
}
