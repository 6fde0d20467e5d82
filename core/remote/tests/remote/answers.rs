//! What a store, or who stands in its place, answers, and what is made of it.

use super::*;

async fn check_foreign(is_swift: bool, wrong: Fault) {
    let server = Server::start().await;
    let kind = if is_swift { swift(&server) } else { s3(&server) };
    let impatient = RemoteOptions { retry: Duration::from_millis(300), ..options() };
    let (backend, object) = (open_with(kind, SECRET, impatient), name("a"));
    put(&backend, "a", bytes(1000)).await.unwrap();
    let is_of_a_range = matches!(wrong, Fault::Status(416, _));
    fault(&server, "GET", wrong.clone(), usize::MAX);
    let error = retry_of(Instant::now(), backend.get_range(&object, 500, 1000).await);
    // A page is shown; what may be a guest's data is not.
    assert_eq!(error.contains("Not here"), matches!(wrong, Fault::Status(404 | 416, _)), "{error}");
    retry_of(Instant::now(), backend.get_range(&object, 1000, 1).await);
    if is_of_a_range {
        return;
    }
    retry_of(Instant::now(), backend.get(&object).await);
    // Not overwritten, and no conflict.
    fault(&server, "HEAD", wrong.clone(), 1);
    put(&backend, "a", bytes(1000)).await.unwrap();
    assert_eq!(server.count("PUT"), 1);
    if matches!(wrong, Fault::Status(404, _)) || is_swift {
        fault(&server, "DELETE", wrong, usize::MAX);
        retry_of(Instant::now(), backend.delete(&object).await);
    }
    server.decide(|_| None);
    assert_eq!(backend.get_range(&object, 1000, 1).await.unwrap(), Bytes::new());
    assert_eq!(backend.get_range(&object, 500, 1000).await.unwrap(), bytes(1000)[500..]);
}

/// A proxy's page says nothing about an object: neither that it is not there, nor where it ends, nor what is in it.
#[tokio::test]
async fn what_is_not_the_stores_own_answer_tells_nothing() {
    let page = |code| Fault::Status(code, "<html>Not here</html>".to_owned());
    let cases = [page(404), page(416), page(200), Fault::Status(200, String::new())];
    let cases = cases.into_iter().flat_map(|wrong| [false, true].map(|swift| (swift, wrong.clone())));
    join_all(cases.map(|(is_swift, wrong)| check_foreign(is_swift, wrong))).await;
}

/// No such bucket is no such object to those who look at the status alone.
#[tokio::test]
async fn an_object_is_not_absent_where_its_bucket_is() {
    let server = Server::start().await;
    for kind in [s3(&server), swift(&server)] {
        let text = "<Error><Code>NoSuchBucket</Code></Error>";
        server.decide(move |asked| {
            (!asked.key.starts_with("/auth")).then(|| Fault::Status(404, text.to_owned()))
        });
        let error = retry_of(Instant::now(), open(kind).get(&name("a")).await);
        assert!(error.contains("NoSuchBucket"), "{error}");
    }
}

/// Some of S3's kind have no request ids, and a HEAD has nothing else to say whose it is: then a GET does.
#[tokio::test]
async fn a_store_without_request_ids_is_asked_once_more() {
    let server = Server::start().await;
    server.has_request_ids.store(false, Ordering::SeqCst);
    conformance::check_backend(&open(s3(&server)), conformance::Rules::OBJECTS).await;
    // A HEAD that lies about an object overwrites nothing.
    let (backend, body) = (open(s3(&server)), Bytes::from_static(b"the first"));
    put(&backend, "a", body.clone()).await.unwrap();
    let puts = server.count("PUT");
    for other in [Bytes::new(), Bytes::from_static(b"the other")] {
        fault(&server, "HEAD", Fault::Status(404, String::new()), usize::MAX);
        assert_eq!(put(&backend, "a", other).await, Err(BackendError::Conflict { object: "a".to_owned() }));
    }
    put(&backend, "a", body).await.unwrap();
    assert_eq!(server.count("PUT"), puts);
}

/// Whoever is told of a conflict stops.
#[tokio::test]
async fn a_length_alone_is_no_conflict() {
    let server = Server::start().await;
    let backend = open(s3(&server));
    fault(&server, "HEAD", Fault::Header(200, "x-amz-request-id", "tx1".to_owned()), 1);
    put(&backend, "a", bytes(1000)).await.unwrap();
    assert_eq!(backend.get(&name("a")).await.unwrap(), bytes(1000));
}

/// What was changed on its way is refused by the store, and what it has changed itself is not acknowledged.
#[tokio::test]
async fn what_is_stored_is_what_was_sent() {
    for is_swift in [false, true] {
        let server = Server::start().await;
        let (backend, body) = (open(if is_swift { swift(&server) } else { s3(&server) }), bytes(100_000));
        fault(&server, "PUT", Fault::Garble, 1);
        put(&backend, "a", body.clone()).await.unwrap();
        assert_eq!((server.bad_digests.load(Ordering::SeqCst), server.count("PUT")), (1, 2));
        assert_eq!(backend.get(&name("a")).await.unwrap(), body);
        fault(&server, "PUT", Fault::Rot, 1);
        let error = retry_of(Instant::now(), put(&backend, "b", body.clone()).await);
        assert!(error.contains("other bytes"), "{error}");
        assert_eq!(
            put(&backend, "b", body.clone()).await,
            Err(BackendError::Conflict { object: "b".to_owned() })
        );
        // Somebody else's "done", twice.
        fault(&server, "PUT", Fault::Status(200, String::new()), 2);
        put(&backend, "c", body.clone()).await.unwrap();
        assert_eq!(backend.get(&name("c")).await.unwrap(), body);
    }
}

/// An ETag is an MD5 at most stores, but no promise: where it is another one, what was put is read.
#[tokio::test]
async fn a_store_with_etags_of_its_own_is_asked_for_what_was_put() {
    let server = Server::start().await;
    let backend = open(s3(&server));
    put(&backend, "a", bytes(1000)).await.unwrap();
    assert_eq!(server.count("GET"), 0);
    server.has_md5.store(false, Ordering::SeqCst);
    put(&backend, "b", bytes(1000)).await.unwrap();
    assert_eq!((server.count("PUT"), server.count("GET")), (2, 1));
}

async fn check_wrong_answer(wrong: Fault) {
    let server = Server::start().await;
    let (backend, object) = (open(s3(&server)), name("a"));
    put(&backend, "a", bytes(10_000)).await.unwrap();
    fault(&server, "GET", wrong.clone(), usize::MAX);
    let error = retry_of(Instant::now(), backend.get_range(&object, 1000, 5000).await);
    assert!(error.contains("get of a") && error.contains(&backend_address(&server)), "{wrong:?}: {error}");
    fault(&server, "GET", wrong.clone(), 1);
    assert_eq!(backend.get_range(&object, 1000, 5000).await.unwrap(), bytes(10_000)[1000..6000], "{wrong:?}");
    fault(&server, "GET", wrong.clone(), 1);
    assert_eq!(backend.get_range(&object, 9000, 5000).await.unwrap(), bytes(10_000)[9000..], "{wrong:?}");
}

/// Neither as bytes nor as the object's end.
#[tokio::test]
async fn wrong_answers_are_not_taken() {
    join_all([Fault::Short, Fault::IgnoreRange, Fault::Shift, Fault::Truncate].map(check_wrong_answer)).await;
}

/// A store that says back what it was sent, anywhere in its text: no part of it is shown.
#[tokio::test]
async fn secrets_are_cut_out_before_anything_else_is() {
    let server = Server::start().await;
    let (user, secret) = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY&");
    let store = RemoteStore { kind: s3(&server), prefix: "our/place".to_owned(), limits: Limits::default() };
    let backend =
        RemoteBackend::open(store, Credentials::new(user, secret), options(), Handle::current()).unwrap();
    let spelled = secret.replace('&', "&amp;");
    for code in [400, 403] {
        for length in [230, 285, 295, 16 * 1024 - 10] {
            for said in [user, secret, &spelled] {
                // Words of white space are one, so that the end of what is read is in what is shown.
                let filler = if length > 1000 { " " } else { "." };
                let text = format!("<Error><Code>X</Code><Message>{}{said}{said}", filler.repeat(length));
                fault(&server, "GET", Fault::Status(code, text), usize::MAX);
                let error = retry_of(Instant::now(), backend.get(&name("a")).await);
                for begun in [&user[..4], &secret[..4]] {
                    assert!(!error.contains(begun), "{code} {length}: {error}");
                }
            }
        }
    }
    let listing = format!("<html>{}{secret}", ".".repeat(270));
    fault(&server, "GET", Fault::Status(200, listing), usize::MAX);
    let error = retry_of(Instant::now(), backend.list("", None, 10).await);
    assert!(error.contains("no listing") && !error.contains(&secret[..4]), "{error}");
}

/// A server's pages may come with anything; OpenDAL panics at some of it.
#[tokio::test]
async fn listings_out_of_their_mind_are_errors() {
    let server = Server::start().await;
    let backend = open(s3(&server));
    let page = |keys: &[&str]| {
        let contents = keys.iter().map(|key| {
            format!("<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag><Size>1</Size></Contents>")
        });
        format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>",
            contents.collect::<String>()
        )
    };
    for text in [
        page(&["our/place/b", "our/place/a"]),
        page(&["our/place/a", "our/place/a"]),
        "<Not>XML".to_owned(),
        "<Error><Code>Odd</Code></Error>".to_owned(),
        "<html></html>".to_owned(),
        String::new(),
    ] {
        fault(&server, "GET", Fault::Status(200, text.clone()), usize::MAX);
        retry_of(Instant::now(), backend.list("", None, 10).await);
    }
    // A server that does not know prefixes.
    fault(
        &server,
        "GET",
        Fault::Status(200, page(&["our/place/a", "our/place/b/c", "our/place/d"])),
        usize::MAX,
    );
    let found = backend.list("b/", None, 10).await.unwrap();
    assert_eq!(found.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["b/c"]);
    fault(
        &server,
        "GET",
        Fault::Status(200, page(&["", "/", "//", "o", "elsewhere", "our/place/a"])),
        usize::MAX,
    );
    let found = backend.list("", None, 10).await;
    assert!(
        found.as_ref().is_ok_and(|found| found.len() == 1)
            || matches!(found, Err(BackendError::Retry { .. })),
        "{found:?}"
    );
}
