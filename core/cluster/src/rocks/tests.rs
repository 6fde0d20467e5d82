use super::*;
use bytes::Bytes;
use futures_util::FutureExt;
use ovs_volume::{
    MemoryPages, MemoryRegistry, PageId, PageStore, Registry, Revision, Transaction, VolumeError,
};
use proptest::prelude::*;
use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    rc::Rc,
};

/// Tells a child of the test binary which database it is to work on.
const CHILD_PATH: &str = "OVS_TEST_ROCKS_PATH";

fn now<T>(runtime: &tokio::runtime::Runtime, work: impl Future<Output = Result<T, VolumeError>>) -> T {
    runtime.block_on(work).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// What `MemoryRegistry` and `MemoryPages`, which answer at once, say.
fn told<T>(work: impl Future<Output = Result<T, VolumeError>>) -> T {
    work.now_or_never().unwrap().unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Get(u8),
    Scan(u8),
    /// Compares (true: with the revision it has), puts and deletes.
    Commit(Vec<(u8, bool)>, Vec<(u8, u8)>, Vec<u8>),
    Reopen,
}

fn key(number: u8) -> String {
    ["", "a", "a/", "a/b", "a/b/c", "ab", "b", "é"][usize::from(number) % 8].to_owned()
}

fn a_step() -> impl Strategy<Value = Step> {
    let some = || prop::collection::vec(0..8u8, 0..2);
    let compares = prop::collection::vec((0..8u8, prop::bool::weighted(0.9)), 0..3);
    let puts = prop::collection::vec((0..8u8, any::<u8>()), 0..3);
    prop_oneof![
        3 => (0..8u8).prop_map(Step::Get),
        2 => (0..8u8).prop_map(Step::Scan),
        8 => (compares, puts, some()).prop_map(|(c, p, d)| Step::Commit(c, p, d)),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn transactions_are_those_of_the_model(steps in prop::collection::vec(a_step(), 1..50)) {
        let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
        let path = folder.path().join("registry");
        let model = MemoryRegistry::default();
        let mut store = Some(RocksStore::open(&path).unwrap());
        for step in steps {
            let (registry, _) = store.as_ref().unwrap();
            match step {
                Step::Get(of) => {
                    prop_assert_eq!(now(&runtime, registry.get(&key(of))), told(model.get(&key(of))));
                }
                Step::Scan(of) => {
                    prop_assert_eq!(now(&runtime, registry.scan(&key(of))), told(model.scan(&key(of))));
                }
                Step::Commit(compares, puts, deletes) => {
                    let mut transaction = Transaction::new();
                    for (of, holds) in compares {
                        let at = told(model.get(&key(of))).map_or(0, |entry| entry.revision.0);
                        transaction = transaction.compare(key(of), Revision(at + u64::from(!holds)));
                    }
                    for (of, value) in puts {
                        transaction = transaction.put(key(of), vec![value; usize::from(value % 4)]);
                    }
                    for of in deletes {
                        transaction = transaction.delete(key(of));
                    }
                    let committed = now(&runtime, registry.commit(transaction.clone()));
                    prop_assert_eq!(committed, told(model.commit(transaction)));
                }
                Step::Reopen => {
                    store = None;
                    store = store.or_else(|| Some(RocksStore::open(&path).unwrap()));
                }
            }
        }
        let (registry, _) = store.as_ref().unwrap();
        prop_assert_eq!(now(&runtime, registry.scan("")), told(model.scan("")));
    }

    #[test]
    fn pages_are_those_of_the_model(
        commits in prop::collection::vec((0..3u8, 0..40u64, 0..6u64, 0..30u64, any::<bool>()), 1..20)
    ) {
        let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
        let path = folder.path().join("registry");
        let model = MemoryPages::default();
        let (mut highest, mut store) = (0, Some(RocksStore::open(&path).unwrap()));
        for (owner, first, count, swept, reopens) in commits {
            let (_, pages) = store.as_ref().unwrap();
            let owner = format!("owner {owner}");
            let some: Vec<_> = (first + 1..=first + count)
                .map(|number| (PageId(number), Bytes::from(vec![number as u8; number as usize * 10_000])))
                .collect();
            highest = some.last().map_or(highest, |(page, _)| highest.max(page.0));
            let record = Bytes::from(format!("{first} {count}"));
            now(&runtime, pages.commit(&owner, some.clone(), record.clone()));
            told(model.commit(&owner, some, record));
            if swept % 3 == 0 {
                let live = |page: PageId| page.0.is_multiple_of(2);
                prop_assert_eq!(
                    now(&runtime, pages.sweep(PageId(swept), &live)),
                    told(model.sweep(PageId(swept), &live))
                );
                now(&runtime, pages.forget("owner 1"));
                told(model.forget("owner 1"));
            }
            if reopens {
                store = None;
                store = store.or_else(|| Some(RocksStore::open(&path).unwrap()));
            }
            let (_, pages) = store.as_ref().unwrap();
            prop_assert_eq!(now(&runtime, pages.records()), told(model.records()));
            prop_assert_eq!(now(&runtime, pages.record(&owner)), told(model.record(&owner)));
            prop_assert_eq!(now(&runtime, pages.highest()), highest);
            for number in 0..46 {
                prop_assert_eq!(now(&runtime, pages.load(PageId(number))), told(model.load(PageId(number))));
            }
        }
    }
}

/// The model is shared by one thread; so may this be.
#[tokio::test]
async fn it_is_a_registry_and_a_page_store_behind_rc() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, pages) = RocksStore::open(&folder.path().join("deep/er/registry")).unwrap();
    let (registry, pages): (Rc<dyn Registry>, Rc<dyn PageStore>) = (Rc::new(registry), Rc::new(pages));
    assert_eq!(registry.commit(Transaction::new().put("a", "x")).await.unwrap(), Some(Revision(1)));
    assert_eq!(pages.highest().await.unwrap(), 0);
}

#[tokio::test]
async fn commits_at_once_never_both_hold_the_same_compare() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, _) = RocksStore::open(&folder.path().join("registry")).unwrap();
    let add = |number: u32| {
        let registry = &registry;
        async move {
            loop {
                let found = registry.get("sum").await.unwrap();
                let at = found.as_ref().map_or(Revision(0), |entry| entry.revision);
                let sum =
                    found.map_or(0, |entry| String::from_utf8(entry.value).unwrap().parse::<u32>().unwrap());
                let transaction =
                    Transaction::new().compare("sum", at).put("sum", (sum + number).to_string());
                if registry.commit(transaction).await.unwrap().is_some() {
                    return;
                }
            }
        }
    };
    futures_util::future::join_all((1..=20).map(add)).await;
    assert_eq!(registry.get("sum").await.unwrap().unwrap().value, b"210");
}

#[test]
fn two_at_once_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = RocksStore::open(folder.path()).unwrap();
    let second = RocksStore::open(folder.path()).unwrap_err();
    assert!(matches!(second, OpenFailure::InUse { .. }), "{second}");
}

// ---- death of the process ----

/// The child's part: commits until it is killed, saying each number once it is acknowledged.
#[test]
fn child_that_commits() {
    let Some(path) = std::env::var_os(CHILD_PATH) else { return };
    let runtime = runtime();
    let (registry, pages) = RocksStore::open(Path::new(&path)).unwrap();
    for number in 1.. {
        let page = (PageId(number), Bytes::from(vec![number as u8; 5000]));
        now(&runtime, pages.commit("owner", vec![page], number.to_string().into()));
        let transaction = Transaction::new().put(format!("k/{number}"), number.to_string());
        now(&runtime, registry.commit(transaction)).unwrap();
        println!("\nacknowledged {number}");
    }
}

fn child(test: &str, path: &Path) -> Command {
    // A file larger than the limit is to be an error, not a signal: `trap ''` outlives the exec.
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([&format!("rocks::tests::{test}"), "--exact", "--nocapture"])
        .env(CHILD_PATH, path);
    command
}

#[test]
fn what_was_acknowledged_outlives_kill_9() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let path = folder.path().join("registry");
    let mut acknowledged = 0u64;
    for _ in 0..3 {
        let mut child =
            child("child_that_commits", &path).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines.map_while(Result::ok) {
            let Some(number) = line.strip_prefix("acknowledged ") else { continue };
            acknowledged = acknowledged.max(number.parse().unwrap());
            seen += 1;
            if seen == 40 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= 40, "the child stopped by itself after {seen}");

        let (registry, pages) = RocksStore::open(&path).unwrap();
        for number in 1..=acknowledged {
            let entry = now(&runtime, registry.get(&format!("k/{number}"))).unwrap();
            assert_eq!(entry.value, number.to_string().into_bytes());
            let page = now(&runtime, pages.load(PageId(number))).unwrap();
            assert!(page.len() == 5000 && page[0] == number as u8);
        }
        let record = now(&runtime, pages.record("owner")).unwrap();
        let record: u64 = std::str::from_utf8(&record).unwrap().parse().unwrap();
        assert!(record >= 40 && now(&runtime, pages.load(PageId(record))).is_some());
    }
}

// ---- a device that takes no more for a while ----

/// The child's part: its files may not grow past 1 MiB, and then they may.
#[test]
fn child_that_meets_a_limit() {
    let Some(path) = std::env::var_os(CHILD_PATH) else { return };
    let runtime = runtime();
    let limit = |current| {
        let limit = rustix::process::Rlimit { current, maximum: None };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    };
    let (registry, _) = RocksStore::open(Path::new(&path)).unwrap();
    limit(Some(1 << 20));
    let commit = |number: u32| {
        let transaction = Transaction::new().put(format!("k/{number}"), vec![number as u8; 60_000]);
        runtime.block_on(registry.commit(transaction))
    };
    let mut acknowledged = 0;
    let error = loop {
        match commit(acknowledged) {
            Ok(revision) => assert_eq!(revision, Some(Revision(u64::from(acknowledged) + 1))),
            Err(error) => break error,
        }
        acknowledged += 1;
    };
    assert!(matches!(error, VolumeError::Retry(_)), "{error}");
    assert!((10..30).contains(&acknowledged), "{acknowledged}");
    for _ in 0..3 {
        let _ = commit(1000);
    }
    limit(None);
    // The first may still find the failed state of before.
    let revision = commit(1001).or_else(|_| commit(1001)).unwrap().unwrap();
    assert!(revision.0 > u64::from(acknowledged));
    for number in 0..acknowledged {
        let entry = now(&runtime, registry.get(&format!("k/{number}"))).unwrap();
        assert!(entry.value == vec![number as u8; 60_000]);
    }
}

#[test]
fn writes_go_on_when_the_device_takes_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let output = child("child_that_meets_a_limit", &folder.path().join("registry")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn the_reserve_is_there_and_does_not_hide_a_lost_database() {
    let folder = tempfile::tempdir().unwrap();
    drop(RocksStore::open(folder.path()).unwrap());
    let length = fs::metadata(folder.path().join("reserve")).unwrap().len();
    assert_eq!(length, 24 << 20);
    let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| !path.ends_with("reserve")).for_each(|path| fs::remove_file(path).unwrap());
    RocksStore::open(folder.path()).unwrap();
}

// ---- damage ----

/// A database of three commits in one folder, closed.
fn made(runtime: &tokio::runtime::Runtime, path: &Path) {
    for round in 1..=3 {
        let (registry, pages) = RocksStore::open(path).unwrap();
        now(runtime, registry.commit(Transaction::new().put("k", round.to_string())));
        now(runtime, pages.commit("owner", vec![(PageId(round), Bytes::from_static(b"page"))], Bytes::new()));
    }
}

fn file_named(path: &Path, is_wanted: impl Fn(&str) -> bool) -> PathBuf {
    let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut wanted: Vec<_> =
        files.filter(|file| is_wanted(&file.file_name().unwrap().to_string_lossy())).collect();
    wanted.sort();
    wanted.pop().unwrap()
}

fn check_damaged(damage: impl Fn(&Path)) {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let path = folder.path().join("registry");
    made(&runtime, &path);
    damage(&path);
    let failure = RocksStore::open(&path).unwrap_err();
    assert!(matches!(failure, OpenFailure::Damaged { .. }), "{failure:?}");
    assert!(matches!(VolumeError::from(failure), VolumeError::Damaged(_)));

    let aside = RocksStore::set_aside(&path).unwrap();
    assert!(aside.join("LOCK").exists() && !path.exists());
    let (registry, _) = RocksStore::open(&path).unwrap();
    assert_eq!(now(&runtime, registry.scan("")), []);
}

#[test]
fn damage_is_reported() {
    let manifest = |path: &Path| file_named(path, |name| name.starts_with("MANIFEST-"));
    let table = |path: &Path| file_named(path, |name| name.ends_with(".sst"));
    check_damaged(|path| fs::write(manifest(path), "garbage that is no manifest at all").unwrap());
    check_damaged(|path| fs::write(manifest(path), "").unwrap());
    check_damaged(|path| fs::remove_file(manifest(path)).unwrap());
    check_damaged(|path| fs::remove_file(table(path)).unwrap());
    check_damaged(|path| fs::remove_file(path.join("CURRENT")).unwrap());
    check_damaged(|path| fs::write(path.join("CURRENT"), "MANIFEST-999999\n").unwrap());
    check_damaged(|path| fs::write(path.join("CURRENT"), "").unwrap());
}

#[test]
fn a_file_system_of_its_own_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("lost+found")).unwrap();
    drop(RocksStore::open(folder.path()).unwrap());
    drop(RocksStore::open(folder.path()).unwrap());
}

#[test]
fn a_second_database_set_aside_does_not_replace_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry");
    let mut all = Vec::new();
    for _ in 0..3 {
        drop(RocksStore::open(&path).unwrap());
        all.push(RocksStore::set_aside(&path).unwrap());
    }
    all.dedup();
    assert!(all.len() == 3 && all.iter().all(|aside| aside.is_dir()));
}

/// Cut at any length, a file is either repaired (what was cut off is gone, what is left is right) or reported.
fn check_cut(is_wanted: fn(&str) -> bool) {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let original = folder.path().join("original");
    made(&runtime, &original);
    let length = fs::metadata(file_named(&original, is_wanted)).unwrap().len();
    assert!(length > 20);
    for cut in 0..8 {
        let path = folder.path().join(format!("cut-{cut}"));
        fs::create_dir(&path).unwrap();
        for entry in fs::read_dir(&original).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), path.join(entry.file_name())).unwrap();
        }
        let file = fs::File::options().write(true).open(file_named(&path, is_wanted)).unwrap();
        file.set_len(length * cut / 8 + 1).unwrap();
        match RocksStore::open(&path) {
            Ok((registry, pages)) => {
                let entry = now(&runtime, registry.get("k"));
                assert!(entry.is_none_or(|entry| matches!(&entry.value[..], b"1" | b"2" | b"3")));
                for number in 1..=3 {
                    let page = now(&runtime, pages.load(PageId(number)));
                    assert!(page.is_none_or(|page| page == b"page"[..]));
                }
            }
            Err(failure) => assert!(matches!(failure, OpenFailure::Damaged { .. }), "{failure:?}"),
        }
    }
}

#[test]
fn a_cut_file_is_repaired_or_reported() {
    check_cut(|name| name.starts_with("MANIFEST-"));
    check_cut(|name| name.ends_with(".log"));
}

#[test]
fn damage_before_the_end_of_the_log_is_reported() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let path = folder.path().join("registry");
    {
        let (registry, _) = RocksStore::open(&path).unwrap();
        for number in 0..10 {
            now(&runtime, registry.commit(Transaction::new().put("k", vec![number; 1000])));
        }
    }
    let log = file_named(&path, |name| name.ends_with(".log"));
    let mut bytes = fs::read(&log).unwrap();
    bytes[3000] ^= 1;
    fs::write(&log, bytes).unwrap();
    let failure = RocksStore::open(&path).unwrap_err();
    assert!(matches!(failure, OpenFailure::Damaged { .. }), "{failure:?}");
}

/// Each of many who ask at once gets its own page; who goes away hinders nobody.
#[test]
fn pages_that_are_asked_for_at_once_are_not_mistaken() {
    use futures_util::future::join_all;
    let folder = tempfile::tempdir().unwrap();
    let (_, store) = RocksStore::open(folder.path()).unwrap();
    let bytes = |page: u64| Bytes::from(format!("page {page}"));
    let [runtime, stopped] = [runtime(), runtime()];
    runtime.block_on(async {
        let pages = (1..=100).filter(|page| page % 7 > 0).map(|page| (PageId(page), bytes(page))).collect();
        store.store(pages).await.unwrap();
        for _ in 0..20 {
            for page in 1..=100 {
                // Given up, unless the answer was there at once.
                drop(store.load(PageId(page)).now_or_never());
            }
            let loaded = join_all((1..=110).map(|page| store.load(PageId(page)))).await;
            for (page, loaded) in (1..=110).zip(loaded) {
                let expected = (page % 7 > 0 && page <= 100).then(|| bytes(page));
                assert_eq!(loaded.unwrap(), expected, "page {page}");
            }
        }
    });
    // What never runs answers nobody, and the next one all the same.
    let mut waiting = store.load(PageId(1));
    let early = stopped.block_on(async { (&mut waiting).now_or_never() });
    drop(stopped);
    let answer = early.unwrap_or_else(|| runtime.block_on(waiting));
    assert!(matches!(answer, Ok(Some(_)) | Err(VolumeError::Retry(_))), "{answer:?}");
    assert_eq!(runtime.block_on(store.load(PageId(2))).unwrap(), Some(bytes(2)));
}
