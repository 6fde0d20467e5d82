//! What well-meaning clients see.

use super::double::event;
use super::*;

/// A request that reaches its operation, and what it arrived with.
fn check(method: &str, path: &str, headers: &str, body: &str, expected: &[(&str, &str)]) {
    let door = Door::open(PATIENCE);
    let (status, problem) = door.ask(method, path, headers, body);
    assert_eq!(status, 409, "{method} {path}: {problem}");
    for (member, text) in expected {
        let found = problem[member].as_str().unwrap_or_else(|| panic!("no {member} in {problem}"));
        assert!(found.contains(text), "{method} {path}: {member} is {found}, not {text}");
    }
}

#[test]
fn every_operation_is_dispatched_from_the_table() {
    let door = Door::open(PATIENCE);
    for operation in OPERATIONS {
        let segments: Vec<&str> =
            operation.path.split('/').map(|s| if s.starts_with('{') { "x" } else { s }).collect();
        let vdisk = operation.path_params.iter().any(|(name, _)| *name == "vdisk");
        let uuid =
            operation.path_params.iter().any(|(name, _)| matches!(*name, "attachment" | "task" | "export"));
        let param = match () {
            () if vdisk => "p:x",
            () if uuid => "67e55044-10b1-426f-9247-bb680e5fe0c8",
            () => "x",
        };
        let path = segments.join("/").replacen("/x", &format!("/{param}"), 1);
        if operation.id == "stream_events" {
            continue;
        }
        let body = sample_body(operation.id);
        let (status, answer) = door.ask(operation.method.as_str(), &path, "", body);
        let expected = match operation.id {
            "get_metrics" | "get_openapi" => 200,
            "get_status" => 503,
            "list_hosts" => 500,
            _ if operation.until.is_some() => 501,
            _ => 409,
        };
        assert_eq!(status, expected, "{}: {answer}", operation.id);
        if status == 409 {
            assert_eq!(answer["operation"], operation.id);
        }
    }
}

/// A body that each operation accepts.
fn sample_body(operation: &str) -> &'static str {
    match operation {
        "create_vpool" => r#"{"name": "p"}"#,
        "recover_lost_vpool" => r#"{"name": "p", "backend": {"name": "b", "type": "dir", "path": "/b"}}"#,
        "create_vdisk" => r#"{"vpool": "p", "name": "x"}"#,
        "rollback_vdisk" => r#"{"snapshot": "s"}"#,
        "create_snapshot" => r#"{"name": "s"}"#,
        "create_attachment" => r#"{"vdisk": "p:x", "client": "c", "door": "fuse", "mode": "shared"}"#,
        "create_backend" | "plan_backend" => r#"{"name": "b", "type": "dir", "path": "/b"}"#,
        "add_drive" => r#"{"drive": "d"}"#,
        "create_preset" => {
            r#"{"name": "p", "compression": "none", "encryption": "none", "fragment_size_bytes": 4194304,
                "policies": [{"k": 1, "m": 0, "c": 1, "x": 1}]}"#
        }
        "rotate_preset" => r#"{"key": "file:/etc/ovs/secrets/keys/new"}"#,
        _ => "",
    }
}

#[test]
fn parameters_arrive_as_types() {
    check("GET", "/v1/vdisks/default%2Fweb-1", "", "", &[("vdisk", r#"name: Name("web-1")"#)]);
    check(
        "GET",
        "/v1/vdisks/67e55044-10b1-426f-9247-bb680e5fe0c8",
        "",
        "",
        &[("vdisk", "Id(VdiskId(67e55044")],
    );
    check(
        "GET",
        "/v1/vdisks/p:x/snapshots/s?wait=on_backend&wait_ms=10",
        "",
        "",
        &[("snapshot", r#"Name(Name("s"))"#), ("query", "wait: Some(OnBackend), wait_ms: Some(10)")],
    );
    let query = "/v1/vdisks?vpool=p&is_template=true&label=a&label=b%3D%26%2B+c&limit=7&cursor=00";
    check("GET", query, "", "", &[("query", "is_template: Some(true)"), ("query", r#"value: Some("&+ c")"#)]);
    check("DELETE", "/v1/vdisks/p:x?purge=true", "", "", &[("query", "purge: true")]);
    check(
        "POST",
        "/v1/vdisks",
        "",
        r#"{"vpool":"p","name":"x","size_bytes":8192,"labels":{"a":"b"}}"#,
        &[("body", "size_bytes: Some(8192)"), ("body", r#"{"a": "b"}"#)],
    );
    check(
        "PATCH",
        "/v1/vdisks/p:x",
        "",
        r#"{"size_bytes": 5, "byte_exact": true}"#,
        &[("body", "size_bytes: Some(5)")],
    );
    check("POST", "/v1/trash/p:x/restore", "", "", &[("body", "name: None")]);
    check(
        "POST",
        "/v1/backends/all/drives",
        "if-match: 7\r\nidempotency-key: k\r\n",
        r#"{"drive":"d"}"#,
        &[("backend", "all"), ("body", r#"drive: Name("d")"#), ("context", "if_match: Some(7)")],
    );
    check(
        "DELETE",
        "/v1/backends/all/drives/d?lost=true&accept_loss=true",
        "if-match: 7\r\n",
        "",
        &[("drive", "d"), ("query", "lost: true, accept_loss: true"), ("context", "if_match: Some(7)")],
    );
}

#[test]
fn headers_arrive_in_the_context() {
    check("DELETE", "/v1/vdisks/p:x", "if-match: \"7\"\r\n", "", &[("context", "if_match: Some(7)")]);
    check("DELETE", "/v1/vdisks/p:x", "If-Match: 7\r\n", "", &[("context", "if_match: Some(7)")]);
    check("DELETE", "/v1/vdisks/p:x", "if-match: *\r\n", "", &[("context", "if_match: None")]);
    check(
        "POST",
        "/v1/vdisks/p:x/template",
        "idempotency-key: k-1\r\n",
        "{}",
        &[("context", r#"Some("k-1")"#)],
    );
    check("DELETE", "/v1/vdisks/p:x", "ovs-protocol: 1\r\n", "", &[("operation", "delete_vdisk")]);
}

#[test]
fn metrics_and_the_document_are_served() {
    let door = Door::open(PATIENCE);
    let answer = door.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(
        answer.contains("content-type: text/plain; version=0.0.4") && answer.ends_with("ovs_up 1\n"),
        "{answer}"
    );
    let (status, document) = door.ask("GET", "/openapi.json", "", "");
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    assert_eq!(block_on(door.client().get_openapi()).unwrap(), document);
    assert!(block_on(door.client().get_metrics()).unwrap().contains("ovs_up 1"));
}

#[test]
fn what_nobody_has_built_says_why() {
    let door = Door::open(PATIENCE);
    let error = block_on(door.client().list_vmachines(&ListQuery::default())).unwrap_err();
    assert_eq!((error.kind(), error.status()), (Some(ProblemKind::NotImplemented), Some(501)));
    assert!(error.detail().contains("consistent snapshots"), "{error}");
}

#[test]
fn the_client_and_the_door_agree() {
    let door = Door::open(PATIENCE);
    let client = door.client();
    let vdisk: VdiskRef = "p:x".parse().unwrap();
    let error =
        block_on(client.if_match(9).delete_vdisk(&vdisk, &DeleteVdiskQuery { purge: true })).unwrap_err();
    let problem = error.problem().unwrap();
    assert_eq!(problem.extra["query"], "DeleteVdiskQuery { purge: true }");
    assert!(problem.extra["context"].as_str().unwrap().contains("if_match: Some(9)"));
    let create = CreateVdisk::new(Name::new("p").unwrap(), Name::new("x").unwrap());
    let error = block_on(client.idempotency_key("again").create_vdisk(&create)).unwrap_err();
    let problem = error.problem().unwrap();
    assert_eq!(problem.extra["body"], format!("{create:?}"));
    assert!(problem.extra["context"].as_str().unwrap().contains("again"));
    let labels: Vec<LabelSelector> = vec!["a=b c&d=é".parse().unwrap(), "e".parse().unwrap()];
    let query = VdiskQuery { label: labels, limit: Some(3), ..VdiskQuery::default() };
    let error = block_on(client.list_vdisks(&query)).unwrap_err();
    assert_eq!(error.problem().unwrap().extra["query"], format!("{query:?}"));
}

#[test]
fn a_starting_service_is_waited_for() {
    let door = Door::open(PATIENCE);
    let answer = door.raw(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(answer.contains("retry-after: 1\r\n") && answer.starts_with("HTTP/1.1 503"), "{answer}");
    let started = tokio::time::Instant::now();
    let error = block_on(door.client().patience(Duration::from_millis(100)).get_status()).unwrap_err();
    assert!(error.is(ProblemKind::Unavailable) && started.elapsed() >= Duration::from_millis(100), "{error}");
}

#[test]
fn events_stream_and_resume() {
    let door = Door::open(PATIENCE);
    *door.double.events.lock().unwrap() =
        vec![event(41, EventKind::VdiskCreated), event(42, EventKind::CapacityAlarm)];
    block_on(async {
        let mut events = door.client().events(None).await.unwrap();
        let kinds = [EventKind::StreamStarted, EventKind::VdiskCreated, EventKind::CapacityAlarm];
        for (kind, id) in kinds.into_iter().zip(40..) {
            let event = events.next().await.unwrap().unwrap();
            assert_eq!((event.kind, event.id), (kind, EventId(id)));
        }
        assert_eq!(events.last_id(), Some(EventId(42)));
        let error = door.client().events(Some(EventId(1))).await.unwrap_err();
        assert_eq!((error.kind(), error.status()), (Some(ProblemKind::Gone), Some(410)));
    });
}

#[test]
fn the_wire_form_of_an_event_is_three_fields() {
    let door = Door::open(PATIENCE);
    *door.double.events.lock().unwrap() = vec![event(41, EventKind::VdiskCreated)];
    let mut stream = door.connect();
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let text = read_events_until(&mut stream, "vdisk.created");
    assert!(text.contains("content-type: text/event-stream"), "{text}");
    assert!(text.contains("event:vdisk.created\n") && text.contains("id:41\n"), "{text}");
    assert!(text.contains(r#"line one\nline two"#), "{text}");
    // The first names the newest event, which is nobody's position yet.
    assert!(text.contains("event:stream.started\n") && !text.contains("id:40\n"), "{text}");
}

/// Whole events, up to one of this kind.
fn read_events_until(stream: &mut UnixStream, kind: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains(kind) || !text.ends_with("\n\n\r\n") {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "{text}");
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    text
}

#[test]
fn a_stop_ends_streams_and_answers_what_is_in_flight() {
    let mut door = Door::open(PATIENCE);
    door.double.holds_changes.send_replace(true);
    let mut events = door.connect();
    events.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    read_events_until(&mut events, "stream.started");
    let mut slow = door.connect();
    slow.write_all(b"POST /v1/vdisks/p:x/template HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    wait_for(&door.double.begun, 1);
    let stopped = tokio::time::Instant::now();
    drop(door.stop.take());
    // The stream ends while the change waits still.
    read_answer(&mut events);
    door.double.holds_changes.send_replace(false);
    door.close();
    assert!(stopped.elapsed() < Duration::from_secs(4), "{:?}", stopped.elapsed());
    assert_eq!(status_of(&read_answer(&mut slow)), 409);
    assert!(UnixStream::connect(&door.socket).is_err());
}
