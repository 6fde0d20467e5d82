use super::{open_files::OpenFile, *};
use crate::{
    FaultyBackend, MemoryBackend,
    conformance::{Rules, check_backend},
};
use std::{fs, os::unix::fs::PermissionsExt};

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn open(path: &Path) -> DirBackend {
    DirBackend::open(DirOptions { path: path.to_owned(), reserve_bytes: 0, io_uring: false }).unwrap()
}

async fn put(backend: &DirBackend, object: &str, urgency: Urgency) -> Result<(), BackendError> {
    backend.put(&name(object), vec![Bytes::from_static(b"x")], urgency).await
}

fn is_retry<T>(result: Result<T, BackendError>) -> bool {
    matches!(result, Err(BackendError::Retry { .. }))
}

#[tokio::test]
async fn folders_conform() {
    let folder = tempfile::tempdir().unwrap();
    check_backend(&open(folder.path()), Rules::ALL).await;
}

#[tokio::test]
async fn memory_and_wrappers_conform() {
    check_backend(&MemoryBackend::new(), Rules::ALL).await;
    check_backend(&FaultyBackend::new(MemoryBackend::new(), |_| None), Rules::ALL).await;
    check_backend(&crate::CountingBackend::new(std::rc::Rc::new(MemoryBackend::new())), Rules::ALL).await;
}

#[tokio::test]
async fn objects_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/on/the/way");
    put(&open(&path), "v/a", Urgency::Normal).await.unwrap();
    let again = DirBackend::open_existing(DirOptions { path, reserve_bytes: 0, io_uring: false }).unwrap();
    assert_eq!(&again.get(&name("v/a")).await.unwrap()[..], b"x");
}

#[tokio::test]
async fn a_folder_that_is_not_mounted_answers_retry() {
    let folder = tempfile::tempdir().unwrap();
    let (path, away) = (folder.path().join("pool"), folder.path().join("away"));
    let backend = open(&path);
    put(&backend, "v/a", Urgency::Normal).await.unwrap();
    fs::rename(&path, &away).unwrap();
    fs::create_dir(&path).unwrap();

    assert!(is_retry(backend.get(&name("v/a")).await));
    assert!(is_retry(backend.list("", None, 9).await));
    assert!(is_retry(backend.delete(&name("v/a")).await));
    assert!(is_retry(put(&backend, "v/b", Urgency::Normal).await));
    assert!(is_retry(backend.capacity().await));
    assert!(is_retry(DirBackend::open_existing(DirOptions {
        path: path.clone(),
        reserve_bytes: 0,
        io_uring: false
    })));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "nothing was written under the mount");

    fs::remove_dir(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    assert_eq!(&backend.get(&name("v/a")).await.unwrap()[..], b"x");
    put(&backend, "v/b", Urgency::Normal).await.unwrap();
}

#[tokio::test]
async fn a_marker_of_another_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path());
    fs::write(folder.path().join(".ovs-backend"), "ovs directory backend, format 2\n").unwrap();
    assert!(is_retry(DirBackend::open(DirOptions::new(folder.path()))));
}

#[tokio::test]
async fn unfinished_objects_are_swept_and_live_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path());
    let (dead, live) = (folder.path().join(".tmp-1-1"), folder.path().join(".tmp-1-2"));
    fs::write(&dead, "half").unwrap();
    fs::write(&live, "half").unwrap();
    let writer = fs::File::open(&live).unwrap();
    rustix::fs::flock(&writer, rustix::fs::FlockOperation::LockExclusive).unwrap();
    open(folder.path());
    assert!(!dead.exists());
    assert!(live.exists());
    drop(writer);
    open(folder.path());
    assert!(!live.exists());
}

#[tokio::test]
async fn guest_data_leaves_the_reserve_alone() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path());
    let options = DirOptions { path: folder.path().to_owned(), reserve_bytes: u64::MAX, io_uring: false };
    let backend = DirBackend::open(options).unwrap();
    let refused = put(&backend, "v/a", Urgency::Normal).await.unwrap_err();
    assert!(matches!(&refused, BackendError::NoSpace { operation: "put", .. }), "{refused}");
    assert_eq!(backend.capacity().await.unwrap().unwrap().free_bytes, 0);
    put(&backend, "v/a", Urgency::Reserve).await.unwrap();
    backend.delete(&name("v/a")).await.unwrap();
}

#[test]
fn the_default_reserve_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let options = DirOptions::new(folder.path().join("not/yet"));
    assert!((64 << 20..=1 << 30).contains(&options.reserve_bytes));
}

#[tokio::test]
async fn a_reserve_that_was_used_comes_back_with_the_space() {
    let folder = tempfile::tempdir().unwrap();
    let backend = open(folder.path());
    let length = || fs::metadata(folder.path().join(".reserve")).unwrap().len();
    assert_eq!(length(), 8 << 20);
    backend.store.release_reserve();
    assert_eq!(length(), 0);
    put(&backend, "v/a", Urgency::Normal).await.unwrap();
    assert_eq!(length(), 8 << 20);
}

#[tokio::test]
async fn a_read_only_folder_serves_reads_and_resumes() {
    if rustix::process::geteuid().is_root() {
        // Permissions do not bind root; `power_loss.rs` has the same with a disk that says no.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    put(&open(folder.path()), "a", Urgency::Normal).await.unwrap();
    let mode = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o500);
    let backend = open(folder.path());
    assert!(is_retry(put(&backend, "b", Urgency::Normal).await));
    assert_eq!(&backend.get(&name("a")).await.unwrap()[..], b"x");
    mode(0o700);
    put(&backend, "b", Urgency::Normal).await.unwrap();
}

#[tokio::test]
async fn what_is_no_object_is_not_listed() {
    let folder = tempfile::tempdir().unwrap();
    let backend = open(folder.path());
    put(&backend, "v/a", Urgency::Normal).await.unwrap();
    for stray in ["UPPER", "v/.hidden", "v/with space", ".tmp-9-9"] {
        fs::write(folder.path().join(stray), "x").unwrap();
    }
    fs::create_dir(folder.path().join("lost+found")).unwrap();
    std::os::unix::fs::symlink("/etc", folder.path().join("v/link")).unwrap();
    let found = backend.list("", None, 99).await.unwrap();
    assert_eq!(found.into_iter().map(|info| info.name).collect::<Vec<_>>(), [name("v/a")]);
}

#[tokio::test]
async fn puts_of_one_name_at_once_never_mix() {
    let folder = tempfile::tempdir().unwrap();
    let backend = open(folder.path());
    for round in 0..20 {
        let object = name(&format!("v/{round}"));
        let (one, two) = (vec![1u8; 100_000], vec![2u8; 100_000]);
        let put = |bytes: &Vec<u8>| backend.put(&object, vec![bytes.clone().into()], Urgency::Normal);
        let (first, second) = futures_util::future::join(put(&one), put(&two)).await;
        let found = backend.get(&object).await.unwrap();
        match (first, second) {
            (Ok(()), Err(_)) => assert!(found[..] == one[..]),
            (Err(_), Ok(())) => assert!(found[..] == two[..]),
            both => panic!("{both:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_read_stays_open_as_long_as_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let backend = open(folder.path());
    let object = name("v/a");
    put(&backend, "v/a", Urgency::Normal).await.unwrap();
    let whole = backend.get(&object).await.unwrap();
    assert_eq!(backend.files.count(), 0, "who asks for all of it will not ask again");
    for _ in 0..2 {
        assert_eq!(backend.get_range(&object, 0, 1).await.unwrap(), whole);
        assert_eq!(backend.files.count(), 1);
    }
    // Another host deletes it.
    std::fs::remove_file(folder.path().join("v/a")).unwrap();
    assert_eq!(backend.get_range(&object, 0, 1).await.unwrap(), whole);
    assert!(matches!(backend.get(&object).await, Err(BackendError::NotFound { .. })));
    // This one does.
    backend.delete(&object).await.unwrap();
    assert_eq!(backend.files.count(), 0);
    assert!(matches!(backend.get_range(&object, 1, 2).await, Err(BackendError::NotFound { .. })));
}

#[test]
fn files_that_were_not_read_for_longest_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x"), "x").unwrap();
    let files = OpenFiles::with_room_for(8, Arc::default());
    let file = || Arc::new(OpenFile::open(&folder.path().join("x")).unwrap());
    let names: Vec<_> = (0..9).map(|number| name(&format!("v/{number}"))).collect();
    for name in &names[..8] {
        let since = files.get(name).expect_err("it is not open");
        drop(files.keep(name.clone(), file(), since));
    }
    let _used = files.get(&names[0]).unwrap();
    let since = files.get(&names[8]).unwrap_err();
    drop(files.keep(names[8].clone(), file(), since));
    let is_open: Vec<_> = names.iter().map(|name| files.get(name).is_ok()).collect();
    assert_eq!(is_open, [true, false, false, false, false, false, true, true, true]);
    // One that was looked for before a name went may be that name's.
    let since = files.get(&names[1]).unwrap_err();
    drop(files.forget(&names[0]));
    drop(files.keep(names[1].clone(), file(), since));
    assert!(files.get(&names[1]).is_err());
}

/// The runtime has one thread for what waits, and somebody else has that.
#[test]
fn what_the_page_cache_has_not_is_read_without_a_thread() {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        if let Err(error) = ovs_direct_io::Ring::new() {
            assert!(std::env::var_os("OVS_TEST_IO_URING").is_none(), "{error}");
            return eprintln!("not tried, there is no io_uring here: {error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let backend =
            DirBackend::open(DirOptions { io_uring: true, ..DirOptions::new(folder.path()) }).unwrap();
        let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at >> 8) as u8 ^ at as u8).collect();
        backend.put(&name("v/a"), vec![bytes.clone().into()], Urgency::Normal).await.unwrap();
        backend.get_range(&name("v/a"), 0, 1).await.unwrap();
        let file = fs::File::open(folder.path().join("v/a")).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let is_cold = !ovs_direct_io::is_cached(&file, 500_000, 1).unwrap_or(true);
        let (release, held) = std::sync::mpsc::channel::<()>();
        let occupied = tokio::task::spawn_blocking(move || held.recv());
        let places = (0..60).map(|number| (number * 17_400, 4096)).chain([(3, 60_000), ((1 << 20) - 1, 1)]);
        let check = async |(offset, length)| {
            let found = backend.get_range(&name("v/a"), offset, length).await.unwrap();
            assert!(found == bytes[offset as usize..][..length as usize], "{length} bytes from {offset}");
        };
        if is_cold {
            let all = futures_util::future::join_all(places.map(check));
            tokio::time::timeout(std::time::Duration::from_secs(20), all)
                .await
                .expect("they wait for a thread");
            assert!(backend.files.read_cold_count() > 50, "from the page cache");
        } else {
            eprintln!("not tried, this file system has its files in memory, or the kernel cannot tell");
        }
        // What ends before, and what is large, has one.
        let mut large = Box::pin(backend.get_range(&name("v/a"), 7, 100_000));
        assert!(futures_util::poll!(&mut large).is_pending());
        release.send(()).unwrap();
        occupied.await.unwrap().unwrap();
        assert!(large.await.unwrap() == bytes[7..100_007]);
        let end = backend.get_range(&name("v/a"), (1 << 20) - 5, 4096).await.unwrap();
        assert!(end == bytes[(1 << 20) - 5..]);
    });
}

/// What is good in memory may be bad on the disk; and what is read once in a week takes the place of nothing there.
#[test]
fn what_is_stored_is_not_read_out_of_the_page_cache() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let backend = DirBackend::open(DirOptions::new(folder.path())).unwrap();
        for length in [1, 4096, 200_000, (3 << 20) + 5] {
            let bytes: Vec<u8> = (0..length).map(|at: u32| (at >> 8) as u8 ^ at as u8).collect();
            let name = name(&format!("v/{length}"));
            backend.put(&name, vec![bytes.clone().into()], Urgency::Normal).await.unwrap();
            let file = fs::File::open(folder.path().join(name.as_str())).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let is_cached = || ovs_direct_io::is_cached(&file, 0, 1).unwrap_or(true);
            let can_be_cold = !is_cached();
            assert!(backend.get_stored(&name).await.unwrap() == bytes, "{length}");
            assert!(!can_be_cold || !is_cached(), "{length} bytes take the place of others");
            assert!(backend.get(&name).await.unwrap() == bytes);
            assert!(is_cached());
            assert!(backend.get_stored(&name).await.unwrap() == bytes, "{length}");
            assert!(is_cached(), "{length} bytes that a guest uses are gone");
            if !can_be_cold {
                eprintln!("not tried, this file system has its files in memory, or the kernel cannot tell");
            }
        }
        let missing = backend.get_stored(&name("v/none")).await;
        assert!(matches!(missing, Err(BackendError::NotFound { .. })), "{missing:?}");
    });
}
