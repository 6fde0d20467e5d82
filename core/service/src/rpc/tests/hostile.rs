//! What hostile and broken clients get, and that others never notice.

use super::*;

fn assert_problem(answer: &Value, kind: &str) {
    assert_eq!(answer["type"], format!("urn:ovs:problem:{kind}"), "{answer}");
    assert!(
        answer["title"].is_string() && answer["detail"].is_string() && answer["status"].is_u64(),
        "{answer}"
    );
}

/// A request that is refused with 400, naming the field and saying the words.
fn check(door: &Door, method: &str, path: &str, body: &str, field: &str, words: &[&str]) {
    let (status, problem) = door.ask(method, path, "", body);
    assert_eq!(status, 400, "{method} {path} {body}: {problem}");
    assert_problem(&problem, "invalid");
    assert_eq!(problem["field"], field, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.len() < 1000, "{}", detail.len());
    for word in words {
        assert!(detail.contains(word), "{word} is not in {detail}");
    }
}

#[test]
fn bad_json_names_the_field_what_was_given_and_what_is_allowed() {
    let door = Door::open(PATIENCE);
    let cases: &[(&str, &str, &[&str])] = &[
        (r#"{"vpool": "p", "name": "x""#, "body", &["EOF"]),
        ("nonsense", "body", &["nonsense", "a JSON object"]),
        ("[]", "body", &["a JSON object"]),
        (r#"["default", "x"]"#, "body", &["a JSON object"]),
        ("null", "body", &["null"]),
        ("{} {}", "body", &["missing field"]),
        (r#"{"vpool": "p", "name": "x"} x"#, "body", &["trailing"]),
        (r#"{"name": "x"}"#, "body", &["missing field `vpool`"]),
        (r#"{"vpool": "p", "name": "x", "size_bytes": "1GiB"}"#, "size_bytes", &["1GiB", "u64"]),
        (r#"{"vpool": "p", "name": "x", "size_bytes": -1}"#, "size_bytes", &["-1"]),
        (r#"{"vpool": "p", "name": "x", "size_bytes": 1.5}"#, "size_bytes", &["1.5"]),
        (r#"{"vpool": "p", "name": "x", "size_bytes": 1e400}"#, "size_bytes", &["number"]),
        (r#"{"vpool": "p", "name": "x", "size_bytes": 18446744073709551616}"#, "size_bytes", &["u64"]),
        (r#"{"vpool": "p", "name": "x", "size_bytes": 5000}"#, "size_bytes", &["5000", "multiples of 4096"]),
        (r#"{"vpool": "p", "name": "x", "size_bytes": 70368744181760}"#, "size_bytes", &["64 TiB"]),
        (
            r#"{"vpool": "p", "name": "x", "colour": "red"}"#,
            "colour",
            &["unknown field `colour`", "size_bytes"],
        ),
        (r#"{"vpool": "p", "name": "../../etc/x"}"#, "name", &["../../etc/x", "1 to 128 characters"]),
        (r#"{"vpool": "p", "name": ""}"#, "name", &["1 to 128 characters"]),
        (r#"{"vpool": "p", "name": "x\u0000"}"#, "name", &["1 to 128 characters"]),
        (r#"{"vpool": "p", "name": ["x"]}"#, "name", &["sequence", "string"]),
        (
            r#"{"vpool": "p", "name": "x", "on_full": "explode"}"#,
            "on_full",
            &["explode", "`stall`", "`enospc`"],
        ),
        (r#"{"vpool": "p", "name": "x", "source": {"vdisk": "p"}}"#, "source.vdisk", &["\"p\"", "POOL:NAME"]),
        (
            r#"{"vpool": "p", "name": "x", "source": {"vdisk": "p:y", "x": 1}}"#,
            "source.x",
            &["unknown field"],
        ),
        (
            r#"{"vpool": "p", "name": "x", "template": "p:t", "source": {"vdisk": "p:y"}}"#,
            "template",
            &["one of them"],
        ),
        (r#"{"vpool": "p", "name": "x", "labels": {"a b": ""}}"#, "labels", &["a b", "keys of 1 to 128"]),
        (r#"{"vpool": "p", "name": "x", "name": "y"}"#, "body", &["duplicate field `name`"]),
    ];
    for (body, field, words) in cases {
        check(&door, "POST", "/v1/vdisks", body, field, words);
    }
    let long = format!(r#"{{"vpool": "p", "name": "{}"}}"#, "n".repeat(500_000));
    check(&door, "POST", "/v1/vdisks", &long, "name", &["1 to 128 characters"]);
    let deep = "[".repeat(100_000);
    check(&door, "POST", "/v1/vdisks", &deep, "body", &[]);
    let deep = format!(r#"{{"vpool": "p", "name": {deep}"#);
    check(&door, "POST", "/v1/vdisks", &deep, "name", &[]);
    check(
        &door,
        "POST",
        "/v1/vdisks/p:x/snapshots",
        r#"{"name": "67e55044-10b1-426f-9247-bb680e5fe0c8"}"#,
        "name",
        &["UUID"],
    );
}

#[test]
fn bad_paths_queries_and_headers_are_refused() {
    let door = Door::open(PATIENCE);
    check(&door, "GET", "/v1/vdisks/%2e%2e", "", "vdisk", &["..", "POOL:NAME"]);
    check(&door, "GET", "/v1/vdisks/p:%00", "", "vdisk", &["POOL:NAME"]);
    check(&door, "GET", "/v1/vpools/a%20b", "", "vpool", &["1 to 128 characters"]);
    check(&door, "GET", "/v1/tasks/7", "", "task", &["UUID"]);
    check(&door, "GET", "/v1/vdisks?limit=0", "", "limit", &["1 to 1000"]);
    check(&door, "GET", "/v1/vdisks?limit=1001", "", "limit", &["1001", "1 to 1000"]);
    check(&door, "GET", "/v1/vdisks?limit=x", "", "limit", &["decimal"]);
    check(&door, "GET", "/v1/vdisks?limit=1&limit=2", "", "limit", &["one value"]);
    check(&door, "GET", "/v1/vdisks?nonsense=1", "", "query", &["nonsense", "vpool"]);
    check(&door, "GET", "/v1/vdisks?is_template=yes", "", "is_template", &["true or false"]);
    check(&door, "GET", "/v1/vdisks?vpool=a/b", "", "vpool", &["1 to 128 characters"]);
    check(&door, "GET", "/v1/vdisks?label=%20", "", "label[0]", &["keys of 1 to 128"]);
    check(&door, "GET", "/v1/vdisks/p:x/snapshots/s?wait=moon", "", "wait", &["moon", "on_backend"]);
    check(
        &door,
        "GET",
        "/v1/tasks/67e55044-10b1-426f-9247-bb680e5fe0c8?wait_ms=600001",
        "",
        "wait_ms",
        &["600000"],
    );
    check(&door, "GET", "/v1/status?x=1", "", "query", &["takes no query"]);
    check(&door, "GET", "/v1/status", r#"{"x": 1}"#, "body", &["takes no body"]);
    for (headers, field) in [
        ("if-match: seven\r\n", "if-match"),
        ("if-match: W/\"7\"\r\n", "if-match"),
        ("if-match: \"1\", \"2\"\r\n", "if-match"),
        ("if-match: \"1\"\r\nif-match: \"2\"\r\n", "if-match"),
        ("if-match: 99999999999999999999999\r\n", "if-match"),
        ("ovs-protocol: 2\r\n", "ovs-protocol"),
        ("ovs-protocol: \u{e9}\r\n", "ovs-protocol"),
    ] {
        let (status, problem) = door.ask("DELETE", "/v1/vdisks/p:x", headers, "");
        assert_eq!((status, &problem["field"]), (400, &json!(field)), "{headers}: {problem}");
    }
    let key = format!("idempotency-key: {}\r\n", "k".repeat(256));
    let (status, problem) = door.ask("POST", "/v1/vdisks/p:x/template", &key, "");
    assert_eq!((status, &problem["field"]), (400, &json!("idempotency-key")));
    let (status, _) = door.ask("GET", "/v1/events", "last-event-id: -1\r\n", "");
    assert_eq!(status, 400);
}

#[test]
fn unknown_paths_and_methods_are_problems() {
    let door = Door::open(PATIENCE);
    let (status, problem) = door.ask("GET", "/v1/volumes", "", "");
    assert_eq!(status, 404);
    assert_problem(&problem, "not-found");
    let answer = door.raw(b"PUT /v1/vdisks HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("allow: POST, GET\r\n"), "{answer}");
    assert_problem(&body_of(&answer), "invalid");
    let path = format!("/v1/{}", "x".repeat(20_000));
    let (status, problem) = door.ask("GET", &path, "", "");
    assert!(status == 404 && problem["detail"].as_str().unwrap().len() < 400, "{status}");
}

#[test]
fn oversize_bodies_are_refused_before_they_are_read() {
    let door = Door::open(PATIENCE);
    // Announced: refused without a byte of it.
    let answer = door.raw(b"POST /v1/vdisks HTTP/1.1\r\nhost: x\r\ncontent-length: 1099511627776\r\n\r\n");
    assert_eq!(status_of(&answer), 413);
    assert_problem(&body_of(&answer), "too-large");
    // Not announced: refused once it is too much.
    let mut chunked = b"POST /v1/vdisks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..20 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(&[b' '; 0x10000]);
        chunked.extend_from_slice(b"\r\n");
    }
    assert_eq!(status_of(&door.raw(&chunked)), 413);
    // Just small enough: read, and refused for what it is.
    let (status, _) = door.ask("POST", "/v1/vdisks", "", &" ".repeat(1 << 20));
    assert_eq!(status, 400);
}

#[test]
fn oversize_headers_are_refused() {
    let door = Door::open(PATIENCE);
    let huge = format!("GET /v1/status HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    assert_eq!(status_of(&door.raw(huge.as_bytes())), 431);
    let many = format!("GET /v1/status HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(200));
    assert_eq!(status_of(&door.raw(many.as_bytes())), 431);
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(100_000));
    assert!(matches!(status_of(&door.raw(long.as_bytes())), 414 | 431));
}

#[test]
fn what_is_not_http_closes_the_connection() {
    let door = Door::open(QUICK);
    for garbage in [
        &b"\x00\x01\x02\x03\r\n\r\n"[..],
        b"NBDMAGICIHAVEOPT",
        b"\x16\x03\x01\x02\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = door.raw(garbage);
        assert!(answer.is_empty() || status_of(&answer) >= 400, "{answer:?}");
    }
    let smuggled =
        b"POST /v1/vdisks HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\n{}{}{}";
    assert_eq!(status_of(&door.raw(smuggled)), 400);
    assert_eq!(door.ask("POST", "/v1/vdisks/p:x/template", "", "").0, 409, "the door serves on");
}

#[test]
fn slow_headers_and_slow_bodies_run_out_of_time() {
    let door = Door::open(QUICK);
    let started = tokio::time::Instant::now();
    let mut silent = door.connect();
    let mut headers = door.connect();
    headers.write_all(b"GET /v1/status HTTP/1.1\r\nhost:").unwrap();
    let mut body = door.connect();
    body.write_all(b"POST /v1/vdisks HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{").unwrap();
    assert!(matches!(read_answer(&mut silent).as_str(), ""));
    let answer = read_answer(&mut headers);
    assert!(answer.is_empty() || status_of(&answer) == 408, "{answer}");
    let answer = read_answer(&mut body);
    assert_eq!(status_of(&answer), 408);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_dripping_client_is_cut_off_whatever_it_drips() {
    let door = Door::open(QUICK);
    let mut stream = door.connect();
    let started = tokio::time::Instant::now();
    // A byte every 20 ms keeps no connection alive for longer than its headers may take.
    let cut = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(b"G").is_err()
    });
    assert!(cut && started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let door = Door::open(QUICK);
    let mut stream = door.connect();
    stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    let started = tokio::time::Instant::now();
    // Requests for a large answer, none of which is ever read, until the socket is closed from the other side.
    let request = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n";
    let closed = (0..1000).any(|_| match stream.write_all(request) {
        Ok(()) => false,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    });
    assert!(closed && started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn hang_ups_do_not_cut_a_change_in_half() {
    let door = Door::open(PATIENCE);
    door.double.holds_changes.send_replace(true);
    for number in 1..=20 {
        let mut stream = door.connect();
        stream.write_all(b"POST /v1/vdisks/p:x/template HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        wait_for(&door.double.begun, number);
        drop(stream);
    }
    // Of the first at least the door has heard long ago that nobody waits for them.
    door.double.holds_changes.send_replace(false);
    wait_for(&door.double.finished, 20);
}

#[test]
fn a_panic_is_one_requests_500() {
    let door = Door::open(PATIENCE);
    let (status, problem) = door.ask("GET", "/v1/hosts", "", "");
    assert_eq!(status, 500);
    assert_problem(&problem, "internal");
    assert!(!problem.to_string().contains("planted"), "what panicked is for the log: {problem}");
    assert_eq!(door.ask("GET", "/metrics", "", "").0, 200);
}

#[test]
fn five_hundred_idle_connections_bother_nobody() {
    let door = Door::open(PATIENCE);
    let mut idle: Vec<UnixStream> = (0..500).map(|_| door.connect()).collect();
    for half_open in idle.iter_mut().step_by(2) {
        half_open.write_all(b"POST /v1/vdisks HTTP/1.1\r\nhos").unwrap();
    }
    for number in 0..50 {
        let vdisk: VdiskRef = format!("p:x{number}").parse().unwrap();
        let error = block_on(door.client().timeout(Duration::from_secs(5)).get_vdisk(&vdisk)).unwrap_err();
        assert_eq!(error.problem().unwrap().extra["operation"], "get_vdisk");
    }
}
