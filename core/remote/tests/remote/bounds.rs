//! What an operation takes at most: time, turns, bytes, memory.

use super::*;

async fn check_bound(method: &'static str, wrong: Fault) {
    let server = Server::start().await;
    let backend = open(s3(&server));
    put(&backend, "a", bytes(10_000)).await.unwrap();
    fault(&server, method, wrong.clone(), usize::MAX);
    let started = Instant::now();
    let error = match method {
        "GET" => retry_of(started, backend.get(&name("a")).await),
        "DELETE" => retry_of(started, backend.delete(&name("a")).await),
        _ => retry_of(started, put(&backend, "b", bytes(100_000)).await),
    };
    assert!(started.elapsed() > RETRY / 3, "{method} {wrong:?}: it gave up after {:?}", started.elapsed());
    assert!(
        error.contains(&backend_address(&server)) && !error.contains(SECRET),
        "{method} {wrong:?}: {error}"
    );
    // And back.
    server.decide(|_| None);
    put(&backend, "b", bytes(100_000)).await.unwrap();
    assert_eq!(backend.get(&name("b")).await.unwrap(), bytes(100_000));
}

#[tokio::test]
async fn what_goes_wrong_for_ever_is_retry_within_the_bounds() {
    let cases = [
        ("PUT", Fault::Hang),
        ("HEAD", Fault::Hang),
        ("GET", Fault::Stall),
        ("GET", Fault::Truncate),
        ("DELETE", Fault::Status(503, "slow down".to_owned())),
    ];
    join_all(cases.map(|(method, wrong)| check_bound(method, wrong))).await;
}

#[tokio::test]
async fn no_more_is_under_way_than_allowed_and_nothing_of_what_was_given_up() {
    let server = Server::start().await;
    let backend = open_with(s3(&server), SECRET, RemoteOptions { operations_max: 3, ..options() });
    put(&backend, "a", bytes(10)).await.unwrap();
    *server.delay.lock().unwrap() = Duration::from_millis(200);
    let object = name("a");
    for got in join_all((0..20).map(|_| backend.get(&object))).await {
        got.unwrap();
    }
    assert_eq!(server.under_way_max.load(Ordering::SeqCst), 3);
    // Three that hang and are given up: their turns are free at once.
    let (came, mut coming) = mpsc::unbounded_channel();
    server.decide(move |_| {
        came.send(()).unwrap();
        Some(Fault::Hang)
    });
    let three = async {
        for _ in 0..3 {
            coming.recv().await.unwrap();
        }
    };
    tokio::select! {
        got = join_all((0..3).map(|_| backend.get(&object))) => panic!("they hang: {got:?}"),
        () = three => {}
    }
    server.decide(|_| None);
    let got = tokio::time::timeout(PATIENCE / 2, backend.get(&object)).await;
    got.expect("a turn at once").unwrap();
}

/// A server that does not stop does not fill the memory.
#[tokio::test]
async fn no_answer_is_longer_than_what_was_asked_for() {
    let server = Server::start().await;
    let backend =
        open_with(swift(&server), SECRET, RemoteOptions { retry: Duration::from_millis(50), ..options() });
    put(&backend, "a", bytes(100_000)).await.unwrap();
    // What the sockets between us hold is taken, too.
    const SOCKETS: usize = 64 << 20;
    fault(&server, "GET", Fault::Flood, usize::MAX);
    let error = retry_of(Instant::now(), backend.get_range(&name("a"), 1000, 5000).await);
    assert!(error.contains("longer than 5000 bytes"), "{error}");
    let error = retry_of(Instant::now(), backend.list("", None, 10).await);
    assert!(error.contains("longer than"), "{error}");
    let flooded = server.flooded.load(Ordering::SeqCst);
    assert!(flooded < SOCKETS, "{flooded}");
    // What would not be read is not put.
    let parts = vec![Bytes::from(vec![0; 1 << 20]); 257];
    let error = retry_of(Instant::now(), backend.put(&name("b"), parts, Urgency::Normal).await);
    assert!(error.contains("256 MiB") && server.count("PUT") == 1, "{error}");
    // All of the object, where a part was asked for, is not even begun.
    fault(&server, "GET", Fault::IgnoreRange, usize::MAX);
    let error = retry_of(Instant::now(), backend.get_range(&name("a"), 1000, 5000).await);
    assert!(error.contains("longer than 5000 bytes"), "{error}");
}

#[tokio::test]
async fn more_than_so_many_do_not_wait() {
    let server = Server::start().await;
    let few = RemoteOptions { operations_max: 2, waiting_max: 3, ..options() };
    let (backend, object) = (open_with(s3(&server), SECRET, few), name("a"));
    *server.delay.lock().unwrap() = Duration::from_millis(200);
    let gets = join_all((0..8).map(|_| backend.get(&object))).await;
    let absent = Err(BackendError::NotFound { object: "a".to_owned() });
    assert_eq!(gets.iter().filter(|got| **got == absent).count(), 5, "{gets:?}");
    let told = gets
        .iter()
        .filter_map(|got| got.as_ref().err())
        .filter(|error| error.to_string().contains("wait already"));
    assert_eq!(told.count(), 3, "{gets:?}");
    assert_eq!(backend.get(&object).await, absent);
}

#[tokio::test]
async fn bytes_keep_to_the_rates() {
    let server = Server::start().await;
    let backend = open_limited(&server, Limits { bytes_per_s: Some(2_000_000), requests_max: None });
    let body = bytes(2_000_000);
    let started = Instant::now();
    put(&backend, "a", body.clone()).await.unwrap();
    assert!(started.elapsed() > Duration::from_millis(850), "{:?}", started.elapsed());
    let started = Instant::now();
    assert_eq!(backend.get(&name("a")).await.unwrap(), body);
    assert!(started.elapsed() > Duration::from_millis(850), "{:?}", started.elapsed());
}

fn open_limited(server: &Server, limits: Limits) -> RemoteBackend {
    let store = RemoteStore { kind: s3(server), prefix: "our/place".to_owned(), limits };
    RemoteBackend::open(store, Credentials::new("me", SECRET), options(), Handle::current()).unwrap()
}

#[tokio::test]
async fn a_store_has_its_own_limits() {
    let server = Server::start().await;
    let backend = open_limited(&server, Limits { bytes_per_s: None, requests_max: Some(2) });
    *server.delay.lock().unwrap() = Duration::from_millis(100);
    let object = name("a");
    join_all((0..8).map(|_| backend.get_range(&object, 0, 1))).await;
    assert_eq!(server.under_way_max.load(Ordering::SeqCst), 2);
    for limits in [
        Limits { bytes_per_s: Some(0), requests_max: None },
        Limits { bytes_per_s: Some(1000), requests_max: None },
        Limits { bytes_per_s: Some(u64::MAX), requests_max: None },
        Limits { bytes_per_s: None, requests_max: Some(0) },
        Limits { bytes_per_s: None, requests_max: Some(1025) },
    ] {
        let store = RemoteStore { kind: s3(&server), prefix: "our/place".to_owned(), limits };
        let opened = RemoteBackend::open(store, Credentials::new("me", SECRET), options(), Handle::current());
        assert!(opened.is_err(), "{limits:?}");
    }
}

/// Puts are held back by the pace, and by slow stores; a guest that reads waits for none of them.
#[tokio::test]
async fn what_is_read_does_not_wait_for_puts() {
    let server = Server::start().await;
    let backend = open_limited(&server, Limits { bytes_per_s: None, requests_max: Some(4) });
    put(&backend, "a", bytes(10)).await.unwrap();
    let (came, mut coming) = mpsc::unbounded_channel();
    server.decide(move |asked| {
        (asked.method == "PUT").then(|| {
            came.send(()).unwrap();
            Fault::Hang
        })
    });
    let names: Vec<String> = (0..20).map(|number| format!("b/{number}")).collect();
    let puts = join_all(names.iter().map(|object| put(&backend, object, bytes(10))));
    let read = async {
        for _ in 0..3 {
            coming.recv().await.unwrap();
        }
        tokio::time::timeout(PATIENCE / 2, backend.get(&name("a"))).await.expect("a turn at once").unwrap()
    };
    tokio::select! {
        done = puts => panic!("they hang: {done:?}"),
        read = read => assert_eq!(read, bytes(10)),
    }
}

const TIME: &str = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag><Size>1</Size>";

async fn check_endless(page: String, is_told_at_once: bool) {
    let server = Server::start().await;
    let backend = open(s3(&server));
    fault(&server, "GET", Fault::Status(200, page.clone()), usize::MAX);
    let started = Instant::now();
    retry_of(started, backend.list("", None, 1000).await);
    assert!(!is_told_at_once || started.elapsed() < RETRY / 2, "{page}: {:?}", started.elapsed());
}

/// A store that knows no `start-after` gives its first page again and again; another says that there is more, and what never comes.
#[tokio::test]
async fn a_listing_that_does_not_get_on_ends() {
    let page = |keys: &[&str]| {
        let keys: String =
            keys.iter().map(|key| format!("<Contents><Key>{key}</Key>{TIME}</Contents>")).collect();
        format!(
            "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>{keys}</ListBucketResult>"
        )
    };
    let cases = [
        (page(&["our/place/a", "our/place/b"]), true),
        // None of it is ours.
        (page(&["our/place/.a", "our/place/.b"]), true),
        (page(&[]), false),
    ];
    join_all(cases.map(|(page, is_told_at_once)| check_endless(page, is_told_at_once))).await;
}

/// Pages of three that take most of what a request may take: each is good, and all of them would take a minute.
#[tokio::test]
async fn one_deadline_is_for_all_pages() {
    let server = Server::start().await;
    for number in 0..200 {
        server.objects.lock().unwrap().insert(format!("our/place/{number:03}"), vec![1]);
    }
    let backend = open(s3(&server));
    assert_eq!(backend.list("", None, 1000).await.unwrap().len(), 200);
    *server.delay.lock().unwrap() = PATIENCE * 9 / 10;
    retry_of(Instant::now(), backend.list("", None, 1000).await);
}
