use super::*;
use serde_json::{Value, json};

fn refusal(request: &Value) -> Option<String> {
    let parsed = serde_json::from_value::<CreateBackend>(request.clone());
    match parsed.map_err(|error| error.to_string()).map(|request| request.check()) {
        Ok(Ok(())) => None,
        Ok(Err(problem)) => Some(format!("{problem:?}")),
        Err(error) => Some(error),
    }
}

fn check(request: Value, expected: Option<&str>) {
    match (refusal(&request), expected) {
        (None, None) => {}
        (Some(refused), Some(words)) => assert!(refused.contains(words), "{request}: {refused}"),
        (got, _) => panic!("{request}: {got:?}, not {expected:?}"),
    }
}

#[test]
fn a_backends_path_is_absolute_and_plain() {
    let dir = |path: &str| json!({"name": "b", "type": "dir", "path": path});
    check(dir("/srv/ovs"), None);
    for bad in ["", "srv", "../srv", "/srv/../etc", "/srv\n", "/a\0b", &"/x".repeat(3000)] {
        check(dir(bad), Some("path"));
    }
}

#[test]
fn a_plain_directory_is_asked_for_as_ever() {
    let request = CreateBackend::dir(Name::new("b").unwrap(), "/srv/b");
    let stored = json!({"name": "b", "type": "dir", "path": "/srv/b"});
    assert_eq!(serde_json::to_value(request).unwrap(), stored, "creates compare with the stored request");
}

#[test]
fn each_type_takes_its_own() {
    check(json!({"name": "b", "type": "dir"}), Some("path"));
    check(json!({"name": "b", "type": "dir", "path": "/b", "of": ["a"]}), Some("of: "));
    check(json!({"name": "b", "type": "dir", "path": "/b", "node": "n1", "site": "here", "weight": 2}), None);
    for (member, bad) in [("node", json!("n 1")), ("site", json!("")), ("weight", json!(0))] {
        check(json!({"name": "b", "type": "dir", "path": "/b", member: bad}), Some(member));
    }
    let composite = |of: Value| json!({"name": "b", "type": "composite", "of": of, "preset": "p"});
    check(composite(json!(["a", "c"])), None);
    check(composite(json!([])), Some("of: "));
    check(composite(json!(["a", "b"])), Some("none is made of itself"));
    check(composite(json!(["a", "c", "a"])), Some("each backend once"));
    check(json!({"name": "b", "type": "composite", "of": ["a"]}), Some("preset"));
    check(json!({"name": "b", "type": "tape"}), Some("tape"));
}

fn remote(kind: &str, change: &Value) -> Value {
    let mut store = json!({"endpoint": "https://s.example", "container": "c", "user": "env:OVS_USER", "secret": "file:/etc/ovs/s"});
    for (member, value) in change.as_object().unwrap() {
        match value {
            Value::Null => drop(store.as_object_mut().unwrap().remove(member)),
            value => store[member] = value.clone(),
        }
    }
    json!({"name": "b", "type": kind, "remote": store})
}

#[test]
fn stores_are_described_whole() {
    for kind in ["s3", "swift", "azure"] {
        check(remote(kind, &json!({})), None);
        for missing in ["endpoint", "container", "user", "secret"] {
            check(remote(kind, &json!({missing: null})), Some(missing));
        }
    }
    check(remote("gcs", &json!({"endpoint": null, "user": null})), None);
    check(remote("gcs", &json!({})), Some("user"));
    check(remote("s3", &json!({"region": "r1", "prefix": "a/b", "bucket_in_host": true})), None);
    check(remote("swift", &json!({"project": "p", "domain": "d", "region": "r"})), None);
    check(remote("swift", &json!({"domain": "d"})), Some("domain"));
    check(remote("s3", &json!({"project": "p"})), Some("project"));
    check(remote("azure", &json!({"region": "r"})), Some("region"));
    for bad in ["", "/a", "a/", "A", "../x", ".a", "a b"] {
        check(remote("s3", &json!({"prefix": bad})), Some("prefix"));
    }
    for bad in ["", "a/b", "..", "a\n"] {
        check(remote("s3", &json!({"container": bad})), Some("container"));
    }
    check(remote("s3", &json!({"container": "a:b"})), Some("container"));
    check(remote("s3", &json!({"region": "a:b"})), Some("region"));
    for bad in ["a.b", "a_b", "a-"] {
        check(remote("s3", &json!({"container": bad})), None);
        check(remote("s3", &json!({"container": bad, "bucket_in_host": true})), Some("container"));
    }
    check(remote("s3", &json!({"bytes_per_s": 65536, "requests_max": 1})), None);
    check(remote("gcs", &json!({"user": null, "bytes_per_s": 1_u64 << 40, "requests_max": 1024})), None);
    for bad in [0, 65535, (1_u64 << 40) + 1] {
        check(remote("s3", &json!({"bytes_per_s": bad})), Some("bytes_per_s"));
    }
    for bad in [0, 1025] {
        check(remote("s3", &json!({"requests_max": bad})), Some("requests_max"));
    }
    check(json!({"name": "b", "type": "s3"}), Some("remote"));
}

#[test]
fn what_may_be_a_secret_is_not_shown() {
    for (member, bad) in [
        ("secret", "hunter2"),
        ("user", "hunter2"),
        ("secret", "env:A=hunter2"),
        ("endpoint", "https://me:hunter2@s.example"),
        ("endpoint", "https://s.example/?key=hunter2"),
    ] {
        let request = remote("s3", &json!({member: bad}));
        let refused = refusal(&request).unwrap_or_else(|| panic!("{request} was taken"));
        assert!(!refused.contains("hunter2"), "{refused}");
    }
    for bad in [json!(190432), json!(["190432"]), json!({"190432": true})] {
        let refused = refusal(&remote("s3", &json!({"secret": bad}))).expect("it is no text");
        assert!(!refused.contains("190432"), "{refused}");
    }
    let refused = refusal(&remote("gcs", &json!({"user": "env:HUNTER2"}))).expect("gcs has no user");
    assert!(!refused.contains("HUNTER2"), "{refused}");
}

#[test]
fn a_loss_is_accepted_of_what_is_lost_alone() {
    let check = |lost: bool, accept_loss: bool| RemoveDriveQuery { lost, accept_loss }.check();
    assert!(check(false, false).is_ok() && check(true, false).is_ok() && check(true, true).is_ok());
    assert!(check(false, true).unwrap_err().detail.contains("accept_loss"));
    assert_eq!(serde_json::to_value(RemoveDriveQuery::default()).unwrap(), json!({}));
    let drive: BackendDrive = serde_json::from_value(json!({
        "uuid": Uuid::nil(), "name": "d", "type": "dir", "node": "n", "site": "", "weight": 1,
    }))
    .unwrap();
    assert_eq!(drive.duty, DriveDuty::Serving, "as an older service has it");
}
