//! The adapter against a store that answers badly, and says so.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod answers;
mod bounds;
mod support;

use bytes::Bytes;
use futures_util::future::join_all;
use ovs_backend::{Backend, BackendError, ObjectName, Urgency, conformance};
use ovs_remote::{
    Credentials, KeystoneProject, Limits, PutIfAbsent, RemoteBackend, RemoteKind, RemoteOptions, RemoteStore,
};
use std::{sync::atomic::Ordering, time::Duration};
use support::{Asked, BUCKET, Fault, SECRET, Server};
use tokio::{runtime::Handle, sync::mpsc, time::Instant};

const RETRY: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(1);

fn options() -> RemoteOptions {
    RemoteOptions { retry: RETRY, patience: PATIENCE, ..RemoteOptions::new(1) }
}

fn s3(server: &Server) -> RemoteKind {
    RemoteKind::S3 {
        endpoint: server.url.clone(),
        region: "us-east-1".to_owned(),
        bucket: BUCKET.to_owned(),
        bucket_in_host: false,
    }
}

fn swift(server: &Server) -> RemoteKind {
    let auth = format!("{}/auth/v1.0", server.url);
    RemoteKind::Swift { auth, container: BUCKET.to_owned(), project: None, storage: None }
}

fn open_with(kind: RemoteKind, secret: &str, options: RemoteOptions) -> RemoteBackend {
    let store = RemoteStore { kind, prefix: "our/place".to_owned(), limits: Limits::default() };
    RemoteBackend::open(store, Credentials::new("me", secret), options, Handle::current())
        .expect("a good description")
}

fn open(kind: RemoteKind) -> RemoteBackend {
    open_with(kind, SECRET, options())
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn bytes(length: usize) -> Bytes {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

async fn put(backend: &RemoteBackend, object: &str, bytes: Bytes) -> Result<(), BackendError> {
    backend.put(&name(object), vec![bytes], Urgency::Normal).await
}

/// The error of an operation, which must have come within the bounds.
fn retry_of<T: std::fmt::Debug>(started: Instant, result: Result<T, BackendError>) -> String {
    let took = started.elapsed();
    assert!(took < RETRY + PATIENCE + Duration::from_millis(500), "took {took:?}");
    match result {
        Err(error @ BackendError::Retry { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_suite_passes_over_s3_and_swift() {
    let server = Server::start().await;
    conformance::check_backend(&open(s3(&server)), conformance::Rules::OBJECTS).await;
    server.objects.lock().unwrap().clear();
    conformance::check_backend(&open(swift(&server)), conformance::Rules::OBJECTS).await;
    let outside = server.objects.lock().unwrap().keys().filter(|key| !key.starts_with("our/place/")).count();
    assert_eq!(outside, 0);
}

/// A put of somebody who is gone.
#[tokio::test]
async fn what_is_absent_may_come_yet() {
    let server = Server::start().await;
    let backend = open(s3(&server));
    put(&backend, "a/b", bytes(10)).await.unwrap();
    assert_eq!(backend.get_lasting(&name("a/b")).await.unwrap(), bytes(10));
    let absent = backend.get_lasting(&name("a/c")).await;
    assert!(matches!(absent, Err(BackendError::Incomplete { .. })), "{absent:?}");
}

/// The first `times` requests of `method` for an object go wrong.
fn fault(server: &Server, method: &'static str, fault: Fault, times: usize) {
    let mut left = times;
    server.decide(move |asked: &Asked| {
        if asked.method != method || asked.key.starts_with("/auth") || left == 0 {
            return None;
        }
        left -= 1;
        Some(fault.clone())
    });
}

async fn check_once(is_swift: bool, method: &'static str, wrong: Fault) {
    let server = Server::start().await;
    let backend = open(if is_swift { swift(&server) } else { s3(&server) });
    let (object, body, told) = (name("a/b"), bytes(100_000), format!("{method} {wrong:?}"));
    fault(&server, method, wrong.clone(), 2);
    put(&backend, "a/b", body.clone()).await.expect(&told);
    assert_eq!(backend.get(&object).await.expect(&told), body, "{told}");
    fault(&server, method, wrong.clone(), 1);
    assert_eq!(backend.get_range(&object, 99_000, 9000).await.expect(&told), body[99_000..], "{told}");
    fault(&server, method, wrong.clone(), 1);
    assert_eq!(backend.list("a/", None, 9).await.expect(&told).len(), 1, "{told}");
    fault(&server, method, wrong.clone(), 1);
    backend.delete(&object).await.expect(&told);
    assert!(server.objects.lock().unwrap().is_empty(), "{told}");
}

#[tokio::test]
async fn what_goes_wrong_once_is_tried_again() {
    let status = |code| Fault::Status(code, "busy".to_owned());
    let cases = [
        ("HEAD", status(500)),
        ("HEAD", Fault::Hang),
        ("PUT", status(503)),
        ("PUT", status(429)),
        ("PUT", Fault::StatusAfter(500)),
        ("PUT", Fault::Drop),
        ("PUT", Fault::Hang),
        ("GET", status(502)),
        ("GET", Fault::Truncate),
        ("GET", Fault::Stall),
        ("GET", Fault::Drop),
        ("DELETE", status(500)),
        ("DELETE", Fault::Drop),
    ];
    let cases = cases
        .into_iter()
        .flat_map(|(method, wrong)| [false, true].map(|swift| (swift, method, wrong.clone())));
    join_all(cases.map(|(is_swift, method, wrong)| check_once(is_swift, method, wrong))).await;
}

/// Of what a put did that came to no answer, the next attempt knows by looking.
#[tokio::test]
async fn a_put_that_took_effect_unseen_is_no_conflict_and_other_bytes_are() {
    let server = Server::start().await;
    let backend = open(s3(&server));
    fault(&server, "PUT", Fault::Drop, 1);
    put(&backend, "a", bytes(1000)).await.unwrap();
    assert_eq!(server.count("PUT"), 1);
    let mut other = bytes(1000).to_vec();
    other[999] ^= 1;
    for other in [bytes(999), bytes(1001), Bytes::new(), other.into()] {
        assert_eq!(put(&backend, "a", other).await, Err(BackendError::Conflict { object: "a".to_owned() }));
    }
    assert_eq!(server.count("PUT"), 1);
}

fn backend_address(server: &Server) -> String {
    format!("{}/{BUCKET}/our/place", server.url)
}

#[tokio::test]
async fn what_will_not_do_better_is_told_at_once_and_without_secrets() {
    let server = Server::start().await;
    let backend = open(s3(&server));
    let text = format!("<Error><Code>AccessDenied</Code><Message>{SECRET}</Message></Error>");
    for code in [401, 403, 400] {
        fault(&server, "HEAD", Fault::Status(code, text.clone()), usize::MAX);
        fault(&server, "GET", Fault::Status(code, text.clone()), usize::MAX);
        let before = server.count("GET");
        let error = retry_of(Instant::now(), backend.get(&name("a")).await);
        assert_eq!(server.count("GET"), before + 1, "{code}");
        assert!(!error.contains(SECRET) && error.contains("AccessDenied"), "{error}");
    }
    for (code, text) in
        [(507, "full"), (403, "<Error><Code>QuotaExceeded</Code></Error>"), (413, "Upload exceeds quota.")]
    {
        fault(&server, "PUT", Fault::Status(code, text.to_owned()), usize::MAX);
        let full = put(&backend, "a", bytes(10)).await;
        assert!(matches!(full, Err(BackendError::NoSpace { .. })), "{code}: {full:?}");
    }
    let wrong = open_with(swift(&server), "wrong-password", options());
    server.decide(|_| None);
    let started = Instant::now();
    let error = retry_of(started, wrong.get(&name("a")).await);
    assert!(started.elapsed() < RETRY / 3 && !error.contains("wrong-password"), "{error}");
}

#[tokio::test]
async fn a_token_that_expires_is_replaced_once_for_all_who_wait() {
    let server = Server::start().await;
    let backend = open(swift(&server));
    put(&backend, "a", bytes(1000)).await.unwrap();
    assert_eq!(server.tokens_given.load(Ordering::SeqCst), 1);
    server.oldest_token.store(1, Ordering::SeqCst);
    let (object, body) = (name("a"), bytes(1000));
    let gets = (0..20).map(|_| backend.get(&object));
    for got in join_all(gets).await {
        assert_eq!(got.unwrap(), body);
    }
    assert_eq!(server.tokens_given.load(Ordering::SeqCst), 2);
    // A store that takes none of its own tokens is not asked for ever.
    server.oldest_token.store(usize::MAX, Ordering::SeqCst);
    retry_of(Instant::now(), backend.get(&object).await);
    assert!(server.tokens_given.load(Ordering::SeqCst) <= 4);
}

/// A user may be locked out after a few wrong passwords.
#[tokio::test]
async fn a_failed_login_is_told_to_all_and_not_tried_again_for_a_while() {
    let server = Server::start().await;
    let (backend, object) = (open(swift(&server)), name("a"));
    let logins = || server.log.lock().unwrap().iter().filter(|asked| asked.key == "/auth/v1.0").count();
    server.decide(|asked| (asked.key == "/auth/v1.0").then(|| Fault::Status(401, "no".to_owned())));
    for _ in 0..2 {
        let gets = join_all((0..20).map(|_| backend.get(&object))).await;
        assert!(
            gets.iter().all(|got| got.as_ref().is_err_and(|error| error.to_string().contains("password")))
        );
    }
    assert_eq!(logins(), 1);
    // But for a while only.
    server.decide(|_| None);
    let started = Instant::now();
    while backend.get(&object).await != Err(BackendError::NotFound { object: "a".to_owned() }) {
        assert!(started.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(logins(), 2);
    // One that came to no answer is tried again within the operations that wait for it.
    let mut left = 1;
    server.decide(move |asked| {
        let fails = asked.key == "/auth/v1.0" && left > 0;
        left -= usize::from(fails);
        fails.then(|| Fault::Status(503, "busy".to_owned()))
    });
    let backend = open(swift(&server));
    for got in join_all((0..20).map(|_| backend.get(&object))).await {
        assert_eq!(got, Err(BackendError::NotFound { object: "a".to_owned() }));
    }
    assert_eq!(logins(), 4);
}

/// Who answers a login is not asked for more than a place.
#[tokio::test]
async fn a_storage_url_is_checked_whoever_names_it() {
    let server = Server::start().await;
    let bad =
        [format!("http://me:{SECRET}@127.0.0.1/v1"), "ftp://host".to_owned(), format!("{}/v1?x", server.url)];
    for storage in bad {
        *server.storage.lock().unwrap() = Some(storage);
        let error = retry_of(Instant::now(), open(swift(&server)).get(&name("a")).await);
        assert!(error.contains("storage URL") && !error.contains(SECRET), "{error}");
    }
    assert_eq!(server.count("GET"), 3);
}

#[tokio::test]
async fn keystone_names_the_store_and_gives_a_token() {
    let server = Server::start().await;
    let project = |region: &str| KeystoneProject {
        name: "p".to_owned(),
        domain: "Default".to_owned(),
        region: Some(region.to_owned()),
    };
    let kind = |region| RemoteKind::Swift {
        auth: format!("{}/v3", server.url),
        container: BUCKET.to_owned(),
        project: Some(project(region)),
        storage: None,
    };
    let backend = open(kind("r"));
    put(&backend, "a", bytes(1000)).await.unwrap();
    assert_eq!(backend.get(&name("a")).await.unwrap(), bytes(1000));
    let error = retry_of(Instant::now(), open(kind("elsewhere")).get(&name("a")).await);
    assert!(error.contains("catalogue"), "{error}");
}

#[tokio::test]
async fn listings_have_what_is_ours_alone() {
    let server = Server::start().await;
    for kind in [s3(&server), swift(&server)] {
        let backend = open(kind);
        for key in [
            "our/place",
            "our/place/",
            "our/place/UPPER",
            "our/place/.hidden",
            "our/place/a//b",
            "our/place-2/x",
            "our/plac",
            "zzz",
        ] {
            server.objects.lock().unwrap().insert(key.to_owned(), b"not ours".to_vec());
        }
        for object in ["a", "b/c", "b/d", "z"] {
            put(&backend, object, bytes(10)).await.unwrap();
        }
        for limit in [1, 2, 100] {
            let (mut found, mut after) = (Vec::new(), None);
            while let Some(last) = backend.list("", after.as_ref(), limit).await.unwrap().last() {
                after = Some(last.name.clone());
                found.push(last.name.to_string());
            }
            assert_eq!(found.last().unwrap(), "z", "{limit}");
        }
        let all = backend.list("", None, 100).await.unwrap();
        assert_eq!(all.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["a", "b/c", "b/d", "z"]);
    }
}

#[tokio::test]
async fn a_probe_tells_conditional_puts_apart() {
    for (has_conditions, is_racy, expected) in [
        (true, false, PutIfAbsent::OneWinner),
        (true, true, PutIfAbsent::SeveralWinners),
        (false, false, PutIfAbsent::Ignored),
    ] {
        let server = Server::start_with(has_conditions, is_racy).await;
        let probe = open(s3(&server)).probe().await.unwrap();
        assert!(probe.is_usable() && probe.lists_after_delete, "{probe:?}");
        assert_eq!(probe.put_if_absent, expected);
        assert!(server.objects.lock().unwrap().is_empty());
    }
}

/// Eight that fail are no sign that one would have won.
#[tokio::test]
async fn a_race_that_nobody_wins_is_no_race_with_one_winner() {
    let server = Server::start().await;
    let mut puts_of_race = 0;
    server.decide(move |asked| {
        // The one before the race is for an object that is there.
        let is_rival = asked.headers.contains_key("if-none-match");
        puts_of_race += usize::from(is_rival);
        (is_rival && puts_of_race > 1).then(|| Fault::Status(500, "no".to_owned()))
    });
    assert_eq!(open(s3(&server)).probe().await.unwrap().put_if_absent, PutIfAbsent::Unclear);
}

/// Two hosts that try one store must not meet there.
#[tokio::test]
async fn probes_have_names_of_their_own() {
    let server = Server::start().await;
    let mut probed = std::collections::BTreeSet::new();
    for seed in [1, 2] {
        open_with(s3(&server), SECRET, RemoteOptions { seed, ..options() }).probe().await.unwrap();
        let log = std::mem::take(&mut *server.log.lock().unwrap());
        let names: std::collections::BTreeSet<String> =
            log.into_iter().filter(|asked| asked.method == "PUT").map(|asked| asked.key).collect();
        assert!(!names.is_empty() && probed.is_disjoint(&names), "{names:?}");
        probed.extend(names);
    }
}

#[tokio::test]
async fn descriptions_are_checked_when_opened_and_show_no_secret() {
    let server = Server::start().await;
    let open_in = |endpoint: &str, prefix: &str, bucket: &str, region: &str, bucket_in_host: bool| {
        let kind = RemoteKind::S3 {
            endpoint: endpoint.to_owned(),
            region: region.to_owned(),
            bucket: bucket.to_owned(),
            bucket_in_host,
        };
        let store = RemoteStore { kind, prefix: prefix.to_owned(), limits: Limits::default() };
        let text = serde_json::to_string(&store).unwrap();
        assert_eq!(serde_json::from_str::<RemoteStore>(&text).unwrap(), store);
        RemoteBackend::open(store, Credentials::new("me", SECRET), options(), Handle::current()).err()
    };
    let open = |endpoint: &str, prefix: &str| open_in(endpoint, prefix, BUCKET, "r", false);
    // They are parts of URLs, and of what is signed.
    let place =
        |bucket: &str, region: &str, in_host| open_in(&server.url, "a", bucket, region, in_host).is_none();
    assert!(place("A_b.c-1", "eu-west-1", false) && place("a-b", "r", true));
    for bad in ["", "a/b", "..", "a..b", ".a", "a?b", "a#b", "a b", "a%2f", "ä", "a\n", &"a".repeat(256)] {
        assert!(!place(bad, "r", false) && !place(bad, "r", true), "{bad}");
        assert!(bad == "a..b" || !place("a", bad, false), "{bad}");
    }
    assert!(!place("a_b", "r", true) && !place("a-", "r", true) && !place("a.b", "r", true));
    assert!(open(&server.url, "a/b").is_none());
    for (endpoint, prefix) in [
        ("127.0.0.1:80", "a"),
        ("ftp://host", "a"),
        ("http://user:word@host", "a"),
        ("http://host?x", "a"),
        ("http://", "a"),
        ("http://host", ""),
        ("http://host", "/"),
        ("http://host", "../a"),
        ("http://host", "a/"),
    ] {
        let error = open(endpoint, prefix).unwrap_or_else(|| panic!("{endpoint} {prefix} was taken"));
        let text = format!("{error} {error:?}");
        assert!(!text.contains(SECRET) && !text.contains("word"), "{text}");
    }
}
