//! The client against a scripted service.

use super::*;
use crate::types::{ListQuery, VdiskQuery};
use std::path::PathBuf;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// What the service does with the next connection.
#[derive(Debug, Clone)]
enum Step {
    /// Answers with these bytes and closes.
    Say(String),
    /// Reads the request and closes.
    HangUp,
    /// Answers with these bytes and leaves the connection open.
    SayAndStay(String),
}

struct Scripted {
    socket: PathBuf,
    requests: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
}

fn answer(status: &str, headers: &str, body: &str) -> Step {
    Step::Say(format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()))
}

fn problem(kind: ProblemKind, headers: &str) -> Step {
    let problem = Problem::new(kind, "because").with("revision", 7);
    let body = serde_json::to_string(&problem).unwrap();
    answer(&format!("{} x", problem.status), headers, &body)
}

impl Scripted {
    fn start(steps: Vec<Step>) -> Scripted {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(play(listener, steps, Arc::clone(&requests)));
        Scripted { socket, requests, _dir: dir }
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn play(listener: UnixListener, steps: Vec<Step>, requests: Arc<Mutex<Vec<String>>>) {
    let mut kept = Vec::new();
    for step in steps {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let length = stream.read(&mut buffer).await.unwrap();
            request.extend_from_slice(&buffer[..length]);
            let text = String::from_utf8_lossy(&request);
            let body =
                text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if length == 0
                || text.split_once("\r\n\r\n").is_some_and(|(_, rest)| rest.len() >= body.unwrap_or(0))
            {
                break;
            }
        }
        requests.lock().unwrap().push(String::from_utf8(request).unwrap());
        match step {
            Step::Say(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
            Step::HangUp => drop(stream),
            Step::SayAndStay(bytes) => {
                stream.write_all(bytes.as_bytes()).await.unwrap();
                kept.push(stream);
            }
        }
    }
    std::future::pending::<()>().await;
}

const EMPTY_PAGE: &str = r#"{"items": []}"#;

#[tokio::test]
async fn a_request_is_what_the_table_says() {
    let service = Scripted::start(vec![answer("200 OK", "", EMPTY_PAGE), answer("204 No Content", "", "")]);
    let client = service.client();
    let query = VdiskQuery {
        vpool: Some(Name::new("p").unwrap()),
        label: vec!["a=1 2".parse().unwrap(), "b".parse().unwrap()],
        limit: Some(5),
        ..VdiskQuery::default()
    };
    assert_eq!(client.list_vdisks(&query).await.unwrap().items.len(), 0);
    let vdisk = "p:x".parse().unwrap();
    client.if_match(3).idempotency_key("k").delete_vdisk(&vdisk, &DeleteVdiskQuery::default()).await.unwrap();
    let requests = service.requests();
    assert!(
        requests[0].starts_with("GET /v1/vdisks?label=a%3D1%202&label=b&limit=5&vpool=p HTTP/1.1\r\n"),
        "{requests:?}"
    );
    assert!(requests[0].contains("ovs-protocol: 1\r\n"));
    assert!(requests[1].starts_with("DELETE /v1/vdisks/p%3Ax?purge=false HTTP/1.1\r\n"), "{requests:?}");
    assert!(
        requests[1].contains("if-match: \"3\"\r\n") && !requests[1].contains("idempotency-key"),
        "{requests:?}"
    );
}

#[tokio::test]
async fn a_problem_is_an_error_with_its_kind() {
    let service = Scripted::start(vec![problem(ProblemKind::InUse, "")]);
    let error = service.client().get_vdisk(&"p:x".parse().unwrap()).await.unwrap_err();
    assert!(error.is(ProblemKind::InUse));
    assert_eq!((error.status(), error.detail().as_str()), (Some(409), "because"));
    assert_eq!(error.problem().unwrap().extra["revision"], 7);
}

#[tokio::test]
async fn answers_of_another_kind_are_not_understood() {
    for (status, body) in
        [("200 OK", "{"), ("200 OK", r#"{"items": 7}"#), ("502 Bad Gateway", "<html>"), ("500 x", "")]
    {
        let service = Scripted::start(vec![answer(status, "", body)]);
        let error = service.client().list_tasks(&TaskQuery::default()).await.unwrap_err();
        assert!(
            matches!(error, ApiError::NotUnderstood { operation: "list_tasks", .. }),
            "{status} {body}: {error:?}"
        );
    }
}

#[tokio::test]
async fn nobody_there_is_told_at_once_or_after_patience() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let impatient = Client::new(&socket);
    let error = impatient.get_status().await.unwrap_err();
    assert!(matches!(error, ApiError::Unreachable { .. }), "{error:?}");
    // A socket that a dead ovsd left behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let error = impatient.get_status().await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    let started = tokio::time::Instant::now();
    let error = impatient.clone().patience(Duration::from_millis(150)).get_status().await.unwrap_err();
    assert!(
        matches!(error, ApiError::Unreachable { .. }) && started.elapsed() >= Duration::from_millis(150),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_restart_is_waited_out() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let client = Client::new(&socket).patience(Duration::from_secs(10));
    let (asked, ()) = tokio::join!(client.list_hosts(&ListQuery { limit: None, cursor: None }), async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let listener = UnixListener::bind(&socket).unwrap();
        let steps =
            vec![problem(ProblemKind::Unavailable, "retry-after: 1\r\n"), answer("200 OK", "", EMPTY_PAGE)];
        tokio::spawn(play(listener, steps, Arc::default()));
    });
    assert_eq!(asked.unwrap().items.len(), 0);
}

#[tokio::test]
async fn unavailable_without_a_promise_is_reported() {
    let service = Scripted::start(vec![problem(ProblemKind::Unavailable, "")]);
    let client = service.client().patience(Duration::from_secs(10));
    assert!(client.list_tasks(&TaskQuery::default()).await.unwrap_err().is(ProblemKind::Unavailable));
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn a_broken_read_is_asked_again_but_a_broken_change_is_not() {
    let steps = vec![
        Step::HangUp,
        answer("200 OK", "", EMPTY_PAGE),
        Step::HangUp,
        Step::HangUp,
        answer("202 x", "", "{}"),
    ];
    let service = Scripted::start(steps);
    let client = service.client().patience(Duration::from_secs(10));
    assert!(client.list_tasks(&TaskQuery::default()).await.is_ok());
    let error = client.delete_trash(&"p:x".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, ApiError::Broken { operation: "delete_trash", .. }), "{error:?}");
    assert_eq!(service.requests().len(), 3);
    // With a key the service knows that it is the same request.
    let error = client.idempotency_key("k").recover_vpool(&Name::new("p").unwrap()).await.unwrap_err();
    assert!(matches!(error, ApiError::NotUnderstood { status: 202, .. }), "{error:?}");
    assert_eq!(service.requests().len(), 5);
}

#[tokio::test]
async fn silence_runs_out_of_time() {
    let service = Scripted::start(vec![
        Step::SayAndStay(String::new()),
        Step::SayAndStay("HTTP/1.1 200 OK\r\n".into()),
    ]);
    let client = service.client().timeout(Duration::from_millis(80));
    for _ in 0..2 {
        let error = client.list_tasks(&TaskQuery::default()).await.unwrap_err();
        assert!(matches!(error, ApiError::TimedOut { .. }), "{error:?}");
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{";
    let service = Scripted::start(vec![Step::SayAndStay(head.into())]);
    let client = service.client().timeout(Duration::from_millis(80));
    let error = client.list_tasks(&TaskQuery::default()).await.unwrap_err();
    assert!(matches!(error, ApiError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn a_request_that_waits_has_the_time_it_asks_for() {
    let check = |path_and_query: &str, expected_ms: u64| {
        let client = Client::new("/x").timeout(Duration::from_secs(1));
        let call = Call::new(&client, "x", Method::GET, path_and_query.to_owned());
        assert_eq!(call.timeout(), Duration::from_millis(expected_ms), "{path_and_query}");
    };
    check("/v1/tasks/x", 1000);
    check("/v1/tasks/x?wait_ms=500", 1500);
    check("/v1/vdisks/x/snapshots/y?wait=on_backend", 61_000);
    check("/v1/vdisks/x/snapshots/y?wait=on_backend&wait_ms=1", 1001);
}

#[tokio::test]
async fn what_the_service_would_refuse_is_not_sent() {
    let client = Client::new("/nowhere");
    let error =
        client.list_vdisks(&VdiskQuery { limit: Some(0), ..VdiskQuery::default() }).await.unwrap_err();
    assert!(error.is(ProblemKind::Invalid), "{error:?}");
    let label = vec![format!("a={}", "x".repeat(4096)).parse().unwrap(); 5];
    let error = client.list_vdisks(&VdiskQuery { label, ..VdiskQuery::default() }).await.unwrap_err();
    assert!(error.is(ProblemKind::TooLarge), "{error:?}");
    let error =
        client.idempotency_key("a\r\nb: c").recover_vpool(&Name::new("p").unwrap()).await.unwrap_err();
    assert!(error.is(ProblemKind::Invalid), "{error:?}");
}

#[tokio::test]
async fn a_resumed_stream_that_breaks_at_once_is_resumed_from_the_same_place() {
    let event = r#"{"id": 50, "kind": "stream.started", "at": "2026-11-20T10:17:03Z"}"#;
    let body = format!("event:stream.started\ndata:{event}\n\n");
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    for (resumed_from, expected) in [(Some(EventId(40)), EventId(40)), (None, EventId(50))] {
        let service = Scripted::start(vec![Step::Say(format!("{head}{chunks}"))]);
        let mut events = service.client().events(resumed_from).await.unwrap();
        assert_eq!(events.next().await.unwrap().unwrap().id, EventId(50));
        assert_eq!(events.last_id(), Some(expected));
    }
}

#[tokio::test]
async fn events_arrive_until_the_stream_ends() {
    let event = r#"{"id": 41, "kind": "vdisk.melted", "at": "2026-11-20T10:17:03Z", "new_member": 1}"#;
    let body = format!(":\n\nid:41\nevent:vdisk.melted\ndata:{event}\n\n");
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let service = Scripted::start(vec![Step::Say(format!("{head}{chunks}"))]);
    let mut events = service.client().events(Some(EventId(40))).await.unwrap();
    let event = events.next().await.unwrap().unwrap();
    assert_eq!((event.id, event.kind), (EventId(41), crate::EventKind::Other));
    assert_eq!(events.next().await.unwrap(), None);
    assert_eq!(events.last_id(), Some(EventId(41)));
    assert!(service.requests()[0].contains("last-event-id: 40\r\n"));
}

#[test]
fn a_parameter_stays_one_segment() {
    let evil: &dyn fmt::Display = &"../x?y#z/%2e";
    assert_eq!(
        fill("/v1/vdisks/{vdisk}/stats", &[("vdisk", evil)]),
        "/v1/vdisks/..%2Fx%3Fy%23z%2F%252e/stats"
    );
}
