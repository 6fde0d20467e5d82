//! The built program against an ovsd that answers what it is told to: exit codes, what goes where, what is asked.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod fake;

use fake::{Answer, Ovsd, Request, Rpc, problem, run, text};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
};
use tempfile::TempDir;

/// An ovsd that answers everything alike, and what it was asked.
fn ovsd_that_answers(answer: Answer) -> (TempDir, Arc<Mutex<Vec<Request>>>) {
    let root = TempDir::new().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    Rpc::start(&root.path().join("run/ovs/ovsd.sock"), move |request| {
        let Request { method, path, body } = request;
        log.lock().unwrap().push(Request { method: method.clone(), path: path.clone(), body: body.clone() });
        answer.clone()
    });
    (root, asked)
}

fn check_exit(root: &Path, words: &[&str], code: i32) -> (String, String) {
    let output = run(root, words);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "ovs {words:?}: {stdout}{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    (stdout, stderr)
}

#[test]
fn usage_is_2_and_help_is_0() {
    let root = TempDir::new().unwrap();
    for words in [
        &["nonsense"][..],
        &["vdisk"],
        &["vdisk", "create"],
        &["vdisk", "create", "default/x", "--size"],
        &["vdisk", "create", "x", "--size", "1GiB"],
        &["vdisk", "create", "default/x", "--size=4097"],
        &["snapshot", "create", "default/x@a@b"],
        &["--nonsense"],
        &["events"],
        &[],
    ] {
        let (stdout, stderr) = check_exit(root.path(), words, 2);
        assert!(stdout.is_empty() && !stderr.is_empty(), "{words:?}");
    }
    for words in [&["--help"][..], &["--version"], &["vdisk", "--help"], &["vdisk", "import", "--help"]] {
        let (stdout, _) = check_exit(root.path(), words, 0);
        assert!(stdout.contains("ovs"), "{words:?}");
    }
}

#[test]
fn an_option_that_does_not_fit_is_named_as_it_was_typed() {
    let root = TempDir::new().unwrap();
    for (options, expected) in [
        (&["--type", "s3"][..], "--endpoint is needed for a backend of type s3"),
        (&["--type", "s3", "--endpoint", "http://s", "--user-env", "A"], "--bucket is needed"),
        (&["--of", "a,b"], "--preset is needed for a backend of type composite"),
        (&[], "--path is needed for a backend of type dir"),
        (&["--path", "/x", "--region", "eu"], "--region is for object stores: say which with --type"),
        (&["--path", "/x", "--bandwidth", "1MiB"], "--bandwidth is for object stores: say which with --type"),
        (&["--path", "/x", "--concurrency", "1"], "--concurrency is for object stores"),
        (&["--type", "s3", "--of", "a"], "--of is for composites"),
        (&["--of", "a", "--preset", "p", "--path", "/x"], "--path is for directories"),
    ] {
        let (_, stderr) = check_exit(root.path(), &[&["backend", "create", "b"][..], options].concat(), 2);
        assert!(stderr.contains(expected), "{stderr}");
    }
    let key = [
        "preset",
        "create",
        "p",
        "--policy",
        "1,0,1,1",
        "--encryption",
        "aes-256-gcm",
        "--key-env",
        "se=cret",
    ];
    let (_, stderr) = check_exit(root.path(), &key, 2);
    assert!(stderr.contains("--key-env: what was given is not the name of a variable"), "{stderr}");
    assert!(!stderr.contains("se=cret"), "{stderr}");
    let (_, stderr) = check_exit(root.path(), &["preset", "rotate", "p", "--key-env", "dead=beef"], 2);
    assert!(stderr.contains("--key-env: what was given is not") && !stderr.contains("dead=beef"), "{stderr}");
    check_exit(root.path(), &["preset", "rotate", "p"], 2);
}

#[test]
fn wrong_usage_is_a_problem_document_for_programs() {
    let root = TempDir::new().unwrap();
    for words in [&["vdisk", "show", "x", "--output", "json"][..], &["--output=json", "vdisk", "show", "x"]] {
        let (_, stderr) = check_exit(root.path(), words, 2);
        let document: Value = serde_json::from_str(&stderr).unwrap();
        assert_eq!(document["type"], "urn:ovs:problem:invalid");
        assert!(document["detail"].as_str().unwrap().contains("POOL/NAME"), "{document}");
    }
}

#[test]
fn no_ovsd_is_1_and_says_what_to_do() {
    let root = TempDir::new().unwrap();
    let (_, stderr) = check_exit(root.path(), &["status"], 1);
    assert!(stderr.starts_with("ovs: ovsd does not answer on ") && stderr.contains("--root"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1);
    let (_, stderr) = check_exit(root.path(), &["status", "--output", "json"], 1);
    assert_eq!(serde_json::from_str::<Value>(&stderr).unwrap()["type"], "urn:ovs:problem:unavailable");
}

#[test]
fn a_refusal_is_one_line_for_people_and_the_document_for_programs() {
    let (root, _) = ovsd_that_answers(problem("protected", 409, "default/x is protected:\n\u{1b}[31mno"));
    let (stdout, stderr) = check_exit(root.path(), &["vdisk", "delete", "default/x"], 1);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("", "ovs: default/x is protected:\\n\\u{1b}[31mno\n"));
    let (stdout, stderr) = check_exit(root.path(), &["vdisk", "delete", "default/x", "--output", "json"], 1);
    let document: Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!((stdout.as_str(), &document["type"]), ("", &json!("urn:ovs:problem:protected")));
}

#[test]
fn what_nobody_has_built_yet_is_refused_with_its_reason() {
    let (root, _) = ovsd_that_answers(problem("not-implemented", 501, "vMachines come later"));
    for words in [&["vmachine", "list"][..], &["export", "list"]] {
        let (_, stderr) = check_exit(root.path(), words, 1);
        assert_eq!(stderr, "ovs: vMachines come later\n");
    }
}

#[test]
fn an_answer_that_is_none_is_1() {
    for answer in
        [(200, None), (200, Some(json!([1, 2]))), (500, None), (200, Some(json!("x".repeat(1 << 20))))]
    {
        let (root, _) = ovsd_that_answers(answer);
        let (_, stderr) = check_exit(root.path(), &["status"], 1);
        assert!(stderr.contains("not understood"), "{stderr}");
    }
}

#[test]
fn every_verb_asks_for_what_it_says() {
    let uuid = fake::UUID;
    let checks: &[(&[&str], &str, Value)] = &[
        (&["status"], "GET /v1/status", json!(null)),
        (
            &[
                "vdisk",
                "create",
                "p/x",
                "--size",
                "1GiB",
                "--label",
                "a=1",
                "--on-full",
                "enospc",
                "--stall-timeout",
                "2s",
            ],
            "POST /v1/vdisks",
            json!({"vpool": "p", "name": "x", "size_bytes": 1 << 30, "labels": {"a": "1"}, "on_full": "enospc", "stall_timeout_ms": 2000}),
        ),
        (&["vdisk", "create", "p/x", "--template", "p/t"], "POST /v1/vdisks", json!({"template": "p:t"})),
        (&["vdisk", "list", "p", "--label", "a"], "GET /v1/vdisks?label=a&limit=1000&vpool=p", json!(null)),
        (&["vdisk", "show", uuid], &format!("GET /v1/vdisks/{uuid}"), json!(null)),
        (
            &["vdisk", "resize", "p/x", "--size", "8KiB", "--allow-shrink"],
            "PATCH /v1/vdisks/p%3Ax",
            json!({"size_bytes": 8192, "allow_shrink": true}),
        ),
        (
            &["vdisk", "create", "p/x", "--iops", "500", "--read-bandwidth", "10MiB"],
            "POST /v1/vdisks",
            json!({"limits": {"total": {"iops": 500}, "read": {"bytes_per_s": 10 << 20}}}),
        ),
        (
            &["vdisk", "clone", "p/x", "p/y", "--write-iops", "5"],
            "POST /v1/vdisks",
            json!({"limits": {"write": {"iops": 5}}}),
        ),
        (
            &[
                "vdisk",
                "limits",
                "p/x",
                "--iops",
                "none",
                "--bandwidth-burst",
                "1GiB/s",
                "--burst-time",
                "2m",
            ],
            "PATCH /v1/vdisks/p%3Ax",
            json!({"limits": {"total": {"iops": null, "bytes_per_s_burst": 1 << 30}, "burst_s": 120}}),
        ),
        (&["vdisk", "limits", "p/x"], "GET /v1/vdisks/p%3Ax", json!(null)),
        (
            &["vdisk", "create", "p/x", "--cache-mode", "none"],
            "POST /v1/vdisks",
            json!({"cache": {"mode": "none"}}),
        ),
        (
            &["vdisk", "clone", "p/x", "p/y", "--cache-quota", "1GiB"],
            "POST /v1/vdisks",
            json!({"cache": {"quota_bytes": 1 << 30}}),
        ),
        (
            &["vdisk", "cache", "p/x", "--cache-mode", "read-write", "--cache-quota", "default"],
            "PATCH /v1/vdisks/p%3Ax",
            json!({"cache": {"mode": "read_write", "quota_bytes": null}}),
        ),
        (&["vdisk", "cache", "p/x"], "GET /v1/vdisks/p%3Ax", json!(null)),
        (
            &["vpool", "cache", "p", "--cache-quota", "none", "--cache-dedup", "content"],
            "PATCH /v1/vpools/p",
            json!({"cache": {"quota_bytes": null, "dedup": "content"}}),
        ),
        (&["vpool", "cache", "p"], "GET /v1/vpools/p", json!(null)),
        (
            &["vpool", "create", "p", "--cache-mode", "read", "--cache-quota", "2GiB"],
            "POST /v1/vpools",
            json!({"cache": {"mode": "read", "quota_bytes": 2u64 << 30}}),
        ),
        (&["vdisk", "delete", "p/x", "--purge"], "DELETE /v1/vdisks/p%3Ax?purge=true", json!(null)),
        (&["vdisk", "stats", "p/x"], "GET /v1/vdisks/p%3Ax/stats", json!(null)),
        (
            &["vdisk", "clone", "p/x@s", "p/y"],
            "POST /v1/vdisks",
            json!({"name": "y", "source": {"vdisk": "p:x", "snapshot": "s"}}),
        ),
        (&["vdisk", "protect", "p/x"], "PATCH /v1/vdisks/p%3Ax", json!({"protected": true})),
        (&["vdisk", "unprotect", "p/x"], "PATCH /v1/vdisks/p%3Ax", json!({"protected": false})),
        (&["vdisk", "detach", "p/x"], "GET /v1/attachments?limit=1000&vdisk=p%3Ax", json!(null)),
        (&["snapshot", "create", "p/x@s"], "POST /v1/vdisks/p%3Ax/snapshots", json!({"name": "s"})),
        (&["snapshot", "list", "p/x"], "GET /v1/vdisks/p%3Ax/snapshots?limit=1000", json!(null)),
        (&["snapshot", "rollback", "p/x@s"], "POST /v1/vdisks/p%3Ax/rollback", json!({"snapshot": "s"})),
        (&["snapshot", "delete", "p/x@s"], "DELETE /v1/vdisks/p%3Ax/snapshots/s", json!(null)),
        (&["template", "set", "p/x"], "POST /v1/vdisks/p%3Ax/template", json!(null)),
        (&["trash", "list", "p"], "GET /v1/trash?limit=1000&vpool=p", json!(null)),
        (
            &["trash", "restore", uuid, "--name", "y"],
            &format!("POST /v1/trash/{uuid}/restore"),
            json!({"name": "y"}),
        ),
        (&["trash", "empty", "p"], "DELETE /v1/trash?vpool=p", json!(null)),
        (&["attachment", "list"], "GET /v1/attachments?limit=1000", json!(null)),
        (
            &["vpool", "create", "p", "--backend", "b", "--trash-retention", "7d"],
            "POST /v1/vpools",
            json!({"name": "p", "backend": "b", "trash_retention_s": 604800}),
        ),
        (&["vpool", "list"], "GET /v1/vpools?limit=1000", json!(null)),
        (&["vpool", "show", "p"], "GET /v1/vpools/p", json!(null)),
        (&["vpool", "delete", "p"], "DELETE /v1/vpools/p?purge_trash=false", json!(null)),
        (&["vpool", "recover", "p"], "POST /v1/vpools/p/recover", json!(null)),
        (
            &["vpool", "recover", "p", "--backend", "/srv/p"],
            "POST /v1/vpools/recover",
            json!({"name": "p", "backend": {"name": "p", "type": "dir", "path": "/srv/p"}}),
        ),
        (
            &["backend", "create", "b", "--path", "/srv/b"],
            "POST /v1/backends",
            json!({"name": "b", "type": "dir", "path": "/srv/b"}),
        ),
        (
            &["backend", "create", "b", "--path", "/srv/b", "--node", "n", "--site", "s", "--weight", "2"],
            "POST /v1/backends",
            json!({"type": "dir", "node": "n", "site": "s", "weight": 2}),
        ),
        (
            &["backend", "create", "all", "--of", "a,b", "--of", "c", "--preset", "q"],
            "POST /v1/backends",
            json!({"name": "all", "type": "composite", "of": ["a", "b", "c"], "preset": "q"}),
        ),
        (
            &["backend", "create", "all", "--of", "a", "--preset", "q", "--dry-run"],
            "POST /v1/backends/plan",
            json!({"name": "all", "type": "composite", "of": ["a"], "preset": "q"}),
        ),
        (
            &[
                "backend",
                "create",
                "s",
                "--type",
                "s3",
                "--endpoint",
                "https://s3",
                "--bucket",
                "c",
                "--region",
                "r",
                "--prefix",
                "x",
                "--bandwidth",
                "50MiB",
                "--concurrency",
                "8",
                "--user-env",
                "OVS_USER",
                "--secret-file",
                "/etc/ovs/s3",
            ],
            "POST /v1/backends",
            json!({"name": "s", "type": "s3", "remote": {
                "endpoint": "https://s3", "container": "c", "region": "r", "prefix": "x", "bytes_per_s": 50 << 20, "requests_max": 8, "user": "env:OVS_USER",
                "secret": "file:/etc/ovs/s3",
            }}),
        ),
        (&["backend", "delete", "b"], "DELETE /v1/backends/b", json!(null)),
        (&["backend", "drive", "add", "all", "d"], "POST /v1/backends/all/drives", json!({"drive": "d"})),
        (
            &["backend", "drive", "remove", "all", "d", "--no-wait"],
            "DELETE /v1/backends/all/drives/d",
            json!(null),
        ),
        (
            &["backend", "drive", "remove", "all", "d", "--lost", "--accept-loss"],
            "DELETE /v1/backends/all/drives/d?accept_loss=true&lost=true",
            json!(null),
        ),
        (
            &["preset", "create", "q", "--policy", "4,2,5,1"],
            "POST /v1/presets",
            json!({"name": "q", "policies": [{"k": 4, "m": 2, "c": 5, "x": 1}]}),
        ),
        (
            &[
                "preset",
                "create",
                "q",
                "--policy",
                "4,2,5,2",
                "--policy",
                "2,2,3,4",
                "--compression",
                "zstd",
                "--encryption",
                "aes-256-gcm",
                "--key-file",
                "/etc/ovs/key",
                "--fragment",
                "1MiB",
            ],
            "POST /v1/presets",
            json!({"compression": "zstd", "encryption": "aes-256-gcm", "key": "file:/etc/ovs/key", "fragment_size_bytes": 1048576,
                "policies": [{"k": 4, "m": 2, "c": 5, "x": 2}, {"k": 2, "m": 2, "c": 3, "x": 4}]}),
        ),
        (&["preset", "delete", "q"], "DELETE /v1/presets/q", json!(null)),
        (
            &["preset", "rotate", "q", "--key-file", "/etc/ovs/secrets/keys/new"],
            "POST /v1/presets/q/rotate",
            json!({"key": "file:/etc/ovs/secrets/keys/new", "new_data_key": false}),
        ),
        (
            &["preset", "rotate", "q", "--new-data-key"],
            "POST /v1/presets/q/rotate",
            json!({"new_data_key": true}),
        ),
        (&["vmachine", "create", "m", "p/x"], "POST /v1/vmachines", json!({"name": "m", "vdisks": ["p:x"]})),
        (&["vmachine", "snapshot", "m", "s"], "POST /v1/vmachines/m/snapshots", json!({"name": "s"})),
        (
            &["export", "create", "p/x", "--protocol", "nbd-tls"],
            "POST /v1/exports",
            json!({"vdisk": "p:x", "protocol": "nbd_tls"}),
        ),
        (&["host", "list"], "GET /v1/hosts?limit=1000", json!(null)),
        (&["task", "list", "--state", "failed"], "GET /v1/tasks?limit=1000&state=failed", json!(null)),
        (&["task", "cancel", uuid], &format!("DELETE /v1/tasks/{uuid}"), json!(null)),
        (&["events", "--since", "7"], "GET /v1/events", json!(null)),
    ];
    let (root, asked) = ovsd_that_answers(problem("not-found", 404, "seen"));
    for (words, expected, body) in checks {
        asked.lock().unwrap().clear();
        let (_, stderr) = check_exit(root.path(), words, 1);
        assert_eq!(stderr, "ovs: seen\n", "{words:?}");
        let asked = asked.lock().unwrap();
        assert_eq!(format!("{} {}", asked[0].method, asked[0].path), *expected, "{words:?}");
        for (member, value) in body.as_object().into_iter().flatten() {
            assert_eq!(asked[0].body[member], *value, "{words:?}: {}", asked[0].body);
        }
    }
}

#[test]
fn results_are_tables_or_the_apis_objects() {
    let ovsd = Ovsd::start(Some(1 << 30));
    ovsd.state().with_snapshot("s");
    let (table, _) = check_exit(ovsd.root(), &["vdisk", "show", "default/v"], 0);
    for expected in ["vDisk", "1GiB", "/mnt/ovs/default/v.raw", "nbd+unix:///", "default/v@s"] {
        assert!(table.contains(expected), "{table}");
    }
    let (document, _) = check_exit(ovsd.root(), &["vdisk", "show", "default/v", "--output", "json"], 0);
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&document["uuid"], &document["snapshots"][0]["name"]), (&json!(fake::UUID), &json!("s")));
    let (list, _) = check_exit(ovsd.root(), &["snapshot", "list", "default/v", "--output", "json"], 0);
    assert!(serde_json::from_str::<Value>(&list).unwrap().is_array(), "{list}");
    // What is gone leaves an empty object; quiet leaves nothing at all.
    let (gone, _) = check_exit(ovsd.root(), &["snapshot", "delete", "default/v@s", "--output", "json"], 0);
    assert_eq!(serde_json::from_str::<Value>(&gone).unwrap(), json!({}));
    let (quiet, _) = check_exit(ovsd.root(), &["snapshot", "create", "default/v@s", "--quiet"], 0);
    assert_eq!(quiet, "");
}

#[test]
fn all_pages_of_a_list_are_shown() {
    let root = TempDir::new().unwrap();
    let host = |number: u32| {
        json!({
            "uuid": uuid::Uuid::from_u128(number.into()), "name": format!("h{number}"), "state": "online", "version": "1",
            "is_local": number == 1, "started_at": "2026-11-20T10:00:00Z",
        })
    };
    Rpc::start(&root.path().join("run/ovs/ovsd.sock"), move |request| {
        match request.path.contains("cursor=c2") {
            false => (200, Some(json!({"items": [host(1)], "next_cursor": "c2"}))),
            true => (200, Some(json!({"items": [host(2)]}))),
        }
    });
    let (table, _) = check_exit(root.path(), &["host", "list"], 0);
    assert!(table.contains("h1 (this one)  online") && table.contains("h2             online"), "{table}");
    let (table, _) = check_exit(root.path(), &["host", "show", "h2"], 0);
    assert!(table.contains("h2") && !table.contains("h1"), "{table}");
    check_exit(root.path(), &["host", "show", "h3"], 1);
}

/// A task that is over at the second look.
fn task(state: &str, change: Value) -> Value {
    let mut task = json!({
        "uuid": fake::UUID, "revision": 1, "kind": "vpool.recover", "subject_name": "p", "state": state,
        "progress": {"done": 1, "total": 2, "unit": "vdisks"}, "created_at": "2026-11-20T10:00:00Z",
    });
    task.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    task
}

fn ovsd_with_task(over: Value) -> TempDir {
    let root = TempDir::new().unwrap();
    Rpc::start(&root.path().join("run/ovs/ovsd.sock"), move |request| match request.method.as_str() {
        "POST" => (202, Some(task("queued", json!({})))),
        _ => (200, Some(over.clone())),
    });
    root
}

#[test]
fn a_task_is_waited_for_to_its_end() {
    let root = ovsd_with_task(task("succeeded", json!({"result": {"vdisks": 2}})));
    let (stdout, stderr) = check_exit(root.path(), &["vpool", "recover", "p", "--backend", "/b"], 0);
    assert_eq!(stdout, "p is recovered: 2 vdisks\n");
    assert_eq!(stderr, "vpool.recover p: 1 of 2\n");
    let (stdout, stderr) = check_exit(root.path(), &["vpool", "recover", "p", "--no-wait"], 0);
    assert_eq!((stdout, stderr), (format!("task {}\n", fake::UUID), String::new()));
    let (stdout, _) = check_exit(root.path(), &["vpool", "recover", "p", "--output", "json"], 0);
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["state"], "succeeded");
}

#[test]
fn a_failed_task_is_1_with_its_problem() {
    let (_, reason) = problem("damaged", 500, "the manifest of x is cut short");
    let root = ovsd_with_task(task("failed", json!({"error": reason})));
    let (_, stderr) = check_exit(root.path(), &["vpool", "recover", "p", "-q"], 1);
    assert_eq!(stderr, "ovs: the manifest of x is cut short\n");
    let root = ovsd_with_task(task("cancelled", json!({})));
    check_exit(root.path(), &["vpool", "recover", "p", "-q"], 1);
}

/// An ovsd whose event streams are these texts, one per connection; then it is silent.
fn ovsd_with_events(streams: Vec<&'static str>) -> TempDir {
    use std::{io::Write, os::unix::net::UnixListener};
    let root = TempDir::new().unwrap();
    let socket = root.path().join("run/ovs/ovsd.sock");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for (stream, events) in listener.incoming().zip(streams) {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut last = String::from("none");
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).unwrap();
                if let Some(id) = header.to_lowercase().strip_prefix("last-event-id:") {
                    last = id.trim().to_owned();
                }
                if header.trim().is_empty() {
                    break;
                }
            }
            let events = events.replace("LAST", &last);
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
            stream.write_all((head.to_owned() + &events).as_bytes()).unwrap();
        }
    });
    root
}

#[test]
fn events_end_with_the_newest_or_go_on_over_a_restart() {
    let first = r#"data: {"id":2,"kind":"stream.started","at":"2026-11-20T10:00:00Z"}

data: {"id":1,"kind":"vdisk.created","vpool":"p","name":"a","at":"2026-11-20T10:00:00Z"}

data: {"id":2,"kind":"vdisk.created","vpool":"p","name":"LAST","at":"2026-11-20T10:00:00Z"}

data: {"id":3,"kind":"vdisk.created","vpool":"p","name":"c","at":"2026-11-20T10:00:00Z"}

"#;
    let root = ovsd_with_events(vec![first]);
    let (stdout, _) = check_exit(root.path(), &["events", "--since", "0"], 0);
    let expected = "\
2026-11-20 10:00:00       1  vdisk.created p/a
2026-11-20 10:00:00       2  vdisk.created p/0
";
    assert_eq!(stdout, expected);

    let second = r#"data: {"id":4,"kind":"vdisk.deleted","vpool":"p","name":"LAST","at":"2026-11-20T10:00:00Z"}

"#;
    let root = ovsd_with_events(vec![first, second]);
    let mut follower = fake::ovs(root.path())
        .args(["events", "--follow", "--output", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let events: Vec<Value> =
        lines.take(4).map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    follower.kill().unwrap();
    follower.wait().unwrap();
    let names: Vec<&str> = events.iter().map(|event| event["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "none", "c", "3"], "the second connection resumes after the last event seen");
}

#[test]
fn a_reader_that_has_had_enough_is_no_failure() {
    let ovsd = Ovsd::start(Some(4096));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = ovsd.ovs().args(["vdisk", "show", "default/v"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
fn completion_and_man_pages_are_written() {
    let root = TempDir::new().unwrap();
    let (completion, man) = (root.path().join("c"), root.path().join("m"));
    check_exit(root.path(), &["generate", "completion", completion.to_str().unwrap()], 0);
    check_exit(root.path(), &["generate", "man", man.to_str().unwrap()], 0);
    assert!(completion.join("ovs.bash").exists() && man.join("ovs-vdisk-export.1").exists());
}
