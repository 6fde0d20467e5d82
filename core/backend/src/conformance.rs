//! What every backend must do, as one suite that any of them can be put through.

use crate::{Backend, BackendError, ObjectName, Urgency};
use bytes::Bytes;

/// What not every store gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// No name is a folder of another. An object store has no folders, and to look for one would cost a listing for each put.
    /// Nobody relies on that conflict: names are made so that it does not arise, whatever stores them.
    pub folders: bool,
    /// A listing tells the length of an object, and not what it takes.
    pub lengths: bool,
}

impl Rules {
    /// All of it.
    pub const ALL: Rules = Rules { folders: true, lengths: true };
    /// What an object store gives.
    pub const OBJECTS: Rules = Rules { folders: false, lengths: true };
}

/// Runs the whole suite. The backend must be empty, and is not afterwards. Panics at the first thing that is wrong.
pub async fn check_backend(backend: &dyn Backend, rules: Rules) {
    puts_are_read_back(backend, rules).await;
    ranges_end_where_the_object_does(backend).await;
    names_are_written_once(backend).await;
    if rules.folders {
        no_name_is_a_folder_of_another(backend).await;
    }
    deletes_are_idempotent(backend).await;
    hostile_prefixes_find_nothing(backend).await;
    listings_are_sorted_and_paged(backend).await;
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("a good name")
}

async fn put(backend: &dyn Backend, object: &str, bytes: &'static [u8]) -> Result<(), BackendError> {
    backend.put(&name(object), vec![Bytes::from_static(bytes)], Urgency::Normal).await
}

async fn listed(backend: &dyn Backend, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let after = after.map(name);
    let found = backend.list(prefix, after.as_ref(), limit).await.expect("a listing");
    found.into_iter().map(|info| info.name.to_string()).collect()
}

async fn puts_are_read_back(backend: &dyn Backend, rules: Rules) {
    let parts = vec![Bytes::from_static(b"one "), Bytes::new(), Bytes::from_static(b"two")];
    backend.put(&name("read/parts"), parts, Urgency::Normal).await.expect("put");
    assert_eq!(&backend.get(&name("read/parts")).await.expect("get")[..], b"one two");
    assert_eq!(&backend.get_lasting(&name("read/parts")).await.expect("get")[..], b"one two");

    backend.put(&name("read/empty"), Vec::new(), Urgency::Reserve).await.expect("put of nothing");
    assert_eq!(backend.get(&name("read/empty")).await.expect("get").len(), 0);

    // Larger than any buffer on the way, in parts that meet no boundary of it.
    let large: Vec<u8> = (0..9_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let parts = large.chunks(777_777).map(Bytes::copy_from_slice).collect();
    backend.put(&name("read/large"), parts, Urgency::Normal).await.expect("put");
    assert!(backend.get(&name("read/large")).await.expect("get")[..] == large[..]);
    let middle = backend.get_range(&name("read/large"), 4_194_303, 2).await.expect("get");
    assert_eq!(middle[..], large[4_194_303..4_194_305]);

    let info = backend.list("read/large", None, 2).await.expect("list");
    let lengths: Vec<u64> = info.iter().map(|info| info.length_bytes).collect();
    assert!(if rules.lengths { lengths == [9_000_001] } else { lengths.len() == 1 }, "{lengths:?}");

    for missing in ["read/none", "none", "read", "read/large/below", &format!("read/{}", "n".repeat(128))] {
        let error = backend.get(&name(missing)).await.expect_err(missing);
        assert!(
            matches!(&error, BackendError::NotFound { object } if object == missing),
            "{missing}: {error}"
        );
        let error = backend.get_lasting(&name(missing)).await.expect_err(missing);
        assert!(
            matches!(&error, BackendError::NotFound { .. } | BackendError::Incomplete { .. }),
            "{missing}: {error}"
        );
    }
}

async fn ranges_end_where_the_object_does(backend: &dyn Backend) {
    put(backend, "range", b"0123456789").await.expect("put");
    let cases: [(u64, u64, &[u8]); 8] = [
        (0, 10, b"0123456789"),
        (3, 4, b"3456"),
        (8, 4, b"89"),
        (10, 1, b""),
        (11, 1, b""),
        (4, 0, b""),
        (u64::MAX, u64::MAX, b""),
        (1, u64::MAX, b"123456789"),
    ];
    for (offset, length, expected) in cases {
        let got = backend.get_range(&name("range"), offset, length).await.expect("get");
        assert_eq!(&got[..], expected, "{offset} + {length}");
    }
}

async fn names_are_written_once(backend: &dyn Backend) {
    put(backend, "once/a", b"first").await.expect("put");
    put(backend, "once/a", b"first").await.expect("the same again is a retry");
    for other in [&b"other"[..], b"first and more", b"", b"firs"] {
        let error = put(backend, "once/a", other).await.expect_err("other bytes");
        assert!(matches!(&error, BackendError::Conflict { object } if object == "once/a"), "{error}");
    }
    assert_eq!(&backend.get(&name("once/a")).await.expect("get")[..], b"first");
}

async fn no_name_is_a_folder_of_another(backend: &dyn Backend) {
    put(backend, "folder/a/b", b"x").await.expect("put");
    for taken in ["folder/a", "folder", "folder/a/b/c", "folder/a/b/c/d"] {
        let error = put(backend, taken, b"x").await.expect_err(taken);
        assert!(matches!(error, BackendError::Conflict { .. }), "{taken}: {error}");
    }
    put(backend, "folder/a-b", b"x").await.expect("a neighbour");
    assert_eq!(listed(backend, "folder", None, 9).await, ["folder/a-b", "folder/a/b"]);
}

async fn deletes_are_idempotent(backend: &dyn Backend) {
    put(backend, "delete/a", b"x").await.expect("put");
    put(backend, "delete/b", b"x").await.expect("put");
    for gone in ["delete/a", "delete/a", "delete/none", "delete", "none/at/all", "delete/b/below"] {
        backend.delete(&name(gone)).await.expect(gone);
    }
    assert_eq!(listed(backend, "delete/", None, 9).await, ["delete/b"]);
    backend.get(&name("delete/a")).await.expect_err("deleted");
    put(backend, "delete/a", b"y").await.expect("a deleted name is free");
    assert_eq!(&backend.get(&name("delete/a")).await.expect("get")[..], b"y");
}

async fn hostile_prefixes_find_nothing(backend: &dyn Backend) {
    for prefix in
        ["/", "//", "..", "../", "./", "once//", "once/../once/", "/etc/", ".tmp", "ONCE/", "once/\0/", "é/"]
    {
        assert_eq!(listed(backend, prefix, None, 9).await, [""; 0], "{prefix:?}");
    }
}

/// Names whose byte order differs from that of a walk over sorted folders.
async fn listings_are_sorted_and_paged(backend: &dyn Backend) {
    let mut expected: Vec<String> =
        ["l/a-b", "l/a.b", "l/a/0", "l/a/z/1", "l/a/z-1", "l/a0", "l/b/c/d/e", "l/b_c"]
            .map(str::to_owned)
            .into_iter()
            .chain((0..40).map(|i| format!("l/many/{i}")))
            .chain((0..40).map(|i| format!("l/nested/{}/x", i * 7 % 40)))
            .collect();
    for object in &expected {
        put(backend, object, b"x").await.expect("put");
    }
    // A folder that has become empty must not end a page.
    for i in 0..10 {
        put(backend, &format!("l/gone/{i}/x"), b"x").await.expect("put");
        backend.delete(&name(&format!("l/gone/{i}/x"))).await.expect("delete");
    }
    expected.sort();
    for limit in [1, 2, 3, 7, 1000] {
        let (mut all, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = listed(backend, "l/", after.as_deref(), limit).await;
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            all.extend(page);
        }
        assert_eq!(all, expected, "pages of {limit}");
    }
    assert_eq!(listed(backend, "l/", None, 0).await, [""; 0]);
    for prefix in ["l/a", "l/a/", "l/a/z", "l/b", "l/many/1", "l/nested/3", "l/none", "l"] {
        let wanted: Vec<_> = expected.iter().filter(|object| object.starts_with(prefix)).cloned().collect();
        assert_eq!(listed(backend, prefix, None, 1000).await, wanted, "{prefix}");
    }
    // `after` need not exist, nor lie below the prefix.
    assert_eq!(listed(backend, "l/a", Some("l/a/z"), 2).await, ["l/a/z-1", "l/a/z/1"]);
    assert_eq!(listed(backend, "l/a", Some("a"), 1).await, ["l/a-b"]);
    assert_eq!(listed(backend, "l/a", Some("z"), 1).await, [""; 0]);
}
