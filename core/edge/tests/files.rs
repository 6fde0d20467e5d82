//! ovsd-edge as a process, on the real kernel, against an ovsd in memory. Skipped where FUSE cannot be mounted.

#![allow(clippy::unwrap_used, reason = "a test, and what it is made of")]

mod edge;
mod fake;

use edge::{Edge, PATIENCE, can_mount};
use ovs_api::EventKind;
use ovs_units::Name;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::Path,
    time::Duration,
};

const O_DIRECT: i32 = 0o40000;

fn read_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

#[track_caller]
fn refused<T>(result: io::Result<T>, errno: Errno) {
    match result {
        Ok(_) => panic!("it was allowed"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{error}"),
    }
}

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed.wrapping_mul(97)) as u8 | 1).collect()
}

#[test]
fn a_file_is_a_vdisk() {
    if !can_mount() {
        return;
    }
    let edge = Edge::start();
    let path = edge.file("x.raw");
    let file = create_new(&path).unwrap();
    assert_eq!(edge.world.state().named("x").unwrap().size_bytes, 0);
    refused(create_new(&path), Errno::EXIST);

    // Past the end it grows, to the byte; what was never written is zero and takes no room.
    file.write_all_at(&pattern(1, 5000), 10_001).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (15_001, 16));
    file.sync_all().unwrap();
    assert_eq!(edge.world.state().named("x").unwrap().size_bytes, 15_001);
    let contents = fs::read(&path).unwrap();
    assert_eq!(contents.len(), 15_001);
    assert!(contents[..10_001].iter().all(|byte| *byte == 0));
    assert_eq!(contents[10_001..], pattern(1, 5000));

    fs::rename(&path, edge.file("y.raw")).unwrap();
    refused(fs::metadata(&path), Errno::NOENT);
    file.write_all_at(b"after the rename", 0).unwrap();
    assert!(fs::read(edge.file("y.raw")).unwrap().starts_with(b"after the rename"));
    fs::write(edge.file("z.raw"), b"z").unwrap();
    refused(fs::rename(edge.file("y.raw"), edge.file("z.raw")), Errno::EXIST);

    let mut names: Vec<String> = fs::read_dir(edge.dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["y.raw", "z.raw"]);

    refused(fs::remove_file(edge.file("y.raw")), Errno::BUSY);
    drop(file);
    fs::remove_file(edge.file("y.raw")).unwrap();
    refused(fs::metadata(edge.file("y.raw")), Errno::NOENT);
    assert!(edge.world.state().named("y").is_none());
    assert_eq!(edge.world.state().attachments.len(), 0, "nothing is attached when nothing is open");
}

#[test]
fn truncating_and_wiping() {
    if !can_mount() {
        return;
    }
    let edge = Edge::start();
    let path = edge.file("x.raw");
    fs::write(&path, pattern(2, 20_000)).unwrap();
    let file = read_write(&path).unwrap();

    file.set_len(10_000).unwrap();
    file.set_len(20_000).unwrap();
    let contents = fs::read(&path).unwrap();
    assert_eq!(contents[..10_000], pattern(2, 10_000));
    assert!(contents[10_000..].iter().all(|byte| *byte == 0), "what was cut off came back");

    // As `virsh vol-wipe` does.
    file.set_len(0).unwrap();
    file.set_len(20_000).unwrap();
    assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(fs::metadata(&path).unwrap().blocks(), 0);

    refused(file.set_len((64 << 40) + 1), Errno::FBIG);
    file.set_len(64 << 40).unwrap();
    file.write_all_at(b"the end", (64 << 40) - 7).unwrap();
    refused(file.write_all_at(b"x", 64 << 40), Errno::FBIG);
    assert_eq!(file.metadata().unwrap().len(), 64 << 40);
}

#[test]
fn direct_io_of_any_alignment() {
    if !can_mount() {
        return;
    }
    let edge = Edge::start();
    let path = edge.file("x.raw");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let file = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(&path).unwrap();
    let mut expected = vec![0; 1 << 20];
    for (index, (offset, length)) in
        [(513, 100), (0, 1), (4095, 2), (4096, 4096), (100_000, 300_001), ((1 << 20) - 7, 7)]
            .into_iter()
            .enumerate()
    {
        let data = pattern(index as u64, length);
        file.write_all_at(&data, offset).unwrap();
        expected[offset as usize..][..length].copy_from_slice(&data);
    }
    let mut contents = vec![0; 1 << 20];
    file.read_exact_at(&mut contents[..777], 0).unwrap();
    file.read_exact_at(&mut contents[777..], 777).unwrap();
    assert!(contents == expected, "direct reads do not see direct writes");
    assert!(fs::read(&path).unwrap() == expected, "buffered reads do not see direct writes");
}

#[test]
fn appending_resizes_seldom_and_ends_exact() {
    use std::io::Write;
    if !can_mount() {
        return;
    }
    let mut edge = Edge::start();
    let path = edge.file("x.raw");
    let piece = pattern(7, 70_001);
    let size_of = |edge: &Edge| edge.world.state().named("x").unwrap().size_bytes;
    let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
    for count in 1..=300 {
        file.write_all(&piece).unwrap();
        assert_eq!(file.metadata().unwrap().len(), count * 70_001, "the file is as long as what was written");
    }
    let resizes = edge.world.state().resizes;
    assert!(resizes < 20, "{resizes} resizes for 300 writes");
    assert!(size_of(&edge) > 300 * 70_001);
    file.sync_all().unwrap();
    assert_eq!(size_of(&edge), 300 * 70_001, "fsync(2) settles the size");
    for _ in 0..30 {
        file.write_all(&piece).unwrap();
    }
    file.set_len(10_000).unwrap();
    assert_eq!(size_of(&edge), 10_000, "truncate(2) settles the size");
    for _ in 0..30 {
        file.write_all(&piece).unwrap();
    }
    drop(file);
    assert_eq!(size_of(&edge), 10_000 + 30 * 70_001, "close(2) settles the size");
    let contents = fs::read(&path).unwrap();
    assert!(contents[..10_000] == piece[..10_000]);
    assert!(contents[10_000..].chunks(70_001).all(|chunk| chunk == piece));

    // Killed while ahead: nothing written is lost, zeros follow.
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    for _ in 0..30 {
        file.write_all(&piece).unwrap();
    }
    edge.kill();
    edge.restart();
    let contents = fs::read(&path).unwrap();
    assert!(contents[10_000..][..60 * 70_001].chunks(70_001).all(|chunk| chunk == piece));
    assert!(contents[10_000 + 60 * 70_001..].iter().all(|byte| *byte == 0));
}

#[test]
fn holes() {
    if !can_mount() {
        return;
    }
    let edge = Edge::start();
    let path = edge.file("x.raw");
    fs::write(&path, pattern(3, 40_000)).unwrap();
    let file = read_write(&path).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;

    fallocate(&file, punch, 5_000, 20_000).unwrap();
    fallocate(&file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 30_000, 1_000_000).unwrap();
    let mut expected = pattern(3, 40_000);
    expected[5_000..25_000].fill(0);
    expected[30_000..].fill(0);
    assert!(fs::read(&path).unwrap() == expected);

    let sought = |from| seek(&file, from);
    assert_eq!(sought(SeekFrom::Hole(0)).unwrap(), 8192);
    assert_eq!(sought(SeekFrom::Data(8192)).unwrap(), 24_576);
    assert_eq!(sought(SeekFrom::Hole(25_000)).unwrap(), 32_768);
    assert_eq!(sought(SeekFrom::Data(32_768)).unwrap(), 36_864, "the last cluster is not covered whole");
    assert_eq!(sought(SeekFrom::Hole(40_000)), Err(Errno::NXIO));
    file.write_all_at(b"x", 39_999).unwrap();
    assert_eq!(sought(SeekFrom::Hole(36_864)).unwrap(), 40_000, "the end is a hole");

    // A reservation is a promise, not zeros; past the end it grows the file.
    let room = file.metadata().unwrap().blocks();
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 30).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 31).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (1 << 30, room));
    fallocate(&file, FallocateFlags::ZERO_RANGE, (1 << 30) - 1, 3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (1 << 30) + 2);
    assert_eq!(fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096), Err(Errno::OPNOTSUPP));
    fallocate(&file, punch, 0, 1 << 30).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 0);
}

#[test]
fn fsync_is_a_flush() {
    if !can_mount() {
        return;
    }
    let edge = Edge::start();
    let file = create_new(&edge.file("x.raw")).unwrap();
    let flushes = || edge.world.state().flushes;
    file.write_all_at(b"x", 0).unwrap();
    let before = flushes();
    file.sync_all().unwrap();
    assert_eq!(flushes(), before + 1);
    file.sync_data().unwrap();
    assert_eq!(flushes(), before + 2);
    file.write_all_at(b"y", 0).unwrap();
    drop(file);
    assert_eq!(flushes(), before + 3, "close(2) flushes what was written");
    File::open(edge.file("x.raw")).unwrap().sync_all().unwrap();
    assert_eq!(flushes(), before + 3, "and leaves nothing for a later fsync(2)");
}

#[test]
fn owner_and_mode_stay() {
    if !can_mount() {
        return;
    }
    let mut edge = Edge::start();
    let path = edge.file("x.raw");
    OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path).unwrap();
    chown(&path, Some(64055), Some(110)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(edge.world.state().named("x").unwrap().labels.0["fuse.uid"], "64055");

    edge.kill();
    edge.restart();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (64055, 110, 0o640));
    let then = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    read_write(&path).unwrap().set_modified(then).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), then);
}

#[test]
fn requests_wait_for_an_ovsd_that_was_killed() {
    if !can_mount() {
        return;
    }
    let mut edge = Edge::start();
    let path = edge.file("x.raw");
    let file = create_new(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    // Nobody goes on to the next write before the last one is counted, so that every kill meets some.
    let (wrote, written) = std::sync::mpsc::sync_channel(0);
    let writers: Vec<_> = (0..4u64)
        .map(|writer| {
            let (path, wrote) = (path.clone(), wrote.clone());
            std::thread::spawn(move || {
                let file = OpenOptions::new().write(true).custom_flags(O_DIRECT).open(path).unwrap();
                for round in 0..40 {
                    let data = pattern(writer * 100 + round, 100_003);
                    file.write_all_at(&data, writer * (16 << 20) + round * 100_003).unwrap();
                    if round % 10 == 9 {
                        file.sync_data().unwrap();
                    }
                    let _ = wrote.send(()); // at last nobody counts
                }
            })
        })
        .collect();
    for _ in 0..5 {
        (0..24).for_each(|_| written.recv_timeout(PATIENCE).unwrap());
        let losses = edge.log().matches("NBD connection lost").count();
        edge.kill_ovsd();
        edge.eventually("a lost connection", || edge.log().matches("NBD connection lost").count() > losses);
        edge.start_ovsd();
    }
    edge.kill_ovsd();
    drop(written);
    let listed = fs::read_dir(edge.dir()).unwrap().count();
    assert_eq!(listed, 1, "names are there while ovsd is not");
    edge.start_ovsd();
    for writer in writers {
        writer.join().unwrap();
    }
    let mut contents = vec![0; 100_003];
    for (writer, round) in (0..4).flat_map(|writer| (0..40).map(move |round| (writer, round))) {
        file.read_exact_at(&mut contents, writer * (16 << 20) + round * 100_003).unwrap();
        assert!(contents == pattern(writer * 100 + round, 100_003), "writer {writer}, round {round}");
    }
    let generations: Vec<u64> =
        edge.world.state().sessions.iter().map(|(_, generation)| *generation).collect();
    assert!(generations.windows(2).all(|pair| pair[0] < pair[1]), "{generations:?}");
    assert!(generations.len() > 3, "the kills met no connection");
}

#[test]
fn hostile_names() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    if !can_mount() {
        return;
    }
    let edge = Edge::start();
    let long = "a".repeat(129) + ".raw";
    for name in [
        b".raw".as_slice(),
        b".x.raw",
        b"-x.raw",
        b"a b.raw",
        b"a\nb.raw",
        b"\xff.raw",
        b"a@s.raw",
        long.as_bytes(),
    ] {
        let path = edge.dir().join(OsStr::from_bytes(name));
        refused(fs::metadata(&path), Errno::NOENT);
        refused(create_new(&path), Errno::INVAL);
        refused(fs::remove_file(&path), Errno::NOENT);
    }
    for name in ["x", "x.qcow2", "x.raw~", "lost+found", ".x.raw.swp"] {
        refused(fs::metadata(edge.file(name)), Errno::NOENT);
        refused(create_new(&edge.file(name)), Errno::OPNOTSUPP);
    }
    refused(create_new(&edge.file(&("a".repeat(250) + ".raw"))), Errno::INVAL);
    refused(fs::create_dir(edge.file("d")), Errno::OPNOTSUPP);
    refused(std::os::unix::fs::symlink("/etc/passwd", edge.file("l.raw")), Errno::OPNOTSUPP);
    fs::write(edge.file("x.raw"), b"x").unwrap();
    refused(fs::hard_link(edge.file("x.raw"), edge.file("y.raw")), Errno::OPNOTSUPP);
    refused(fs::rename(edge.file("x.raw"), edge.file("x")), Errno::OPNOTSUPP);
    refused(fs::rename(edge.file("x.raw"), edge.file(".x.raw")), Errno::INVAL);
    assert_eq!(fs::read(edge.file("x.raw")).unwrap(), b"x");
}

#[test]
fn what_others_do_is_seen() {
    if !can_mount() {
        return;
    }
    let edge = Edge::start();
    // Made by RPC a moment ago: there at once, event or not.
    let id = edge.world.state().create(&Name::new("rpc").unwrap(), 8192, ovs_api::Labels::default()).uuid;
    let path = edge.file("rpc.raw");
    let file = File::open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8192);

    edge.world.state().change(id, EventKind::VdiskResized, |vdisk| vdisk.size_bytes = 10_000);
    edge.eventually("the new size", || fs::metadata(&path).unwrap().len() == 10_000);
    edge.world.state().change(id, EventKind::VdiskRenamed, |vdisk| vdisk.name = Name::new("moved").unwrap());
    edge.eventually("the new name", || edge.file("moved.raw").exists() && !path.exists());

    // Rolled back by RPC while a reader has the contents cached.
    let mut byte = [0; 1];
    file.read_exact_at(&mut byte, 0).unwrap();
    edge.world.state().pages.get_mut(&id).unwrap().write(0, b"x");
    edge.world.state().change(id, EventKind::VdiskRolledBack, |_| {});
    edge.eventually("the rolled back contents", || {
        file.read_exact_at(&mut byte, 0).unwrap();
        &byte == b"x"
    });

    edge.world.state().delete(id);
    edge.eventually("the deletion", || !edge.file("moved.raw").exists());
    refused(File::open(edge.file("moved.raw")), Errno::NOENT);
}

#[test]
fn one_who_writes_elsewhere_keeps_writers_out() {
    if !can_mount() {
        return;
    }
    let edge = Edge::start();
    let path = edge.file("x.raw");
    fs::write(&path, b"contents").unwrap();
    edge.eventually("the writer's detachment", || edge.world.state().attachments.is_empty());
    edge.world.attach_somebody_else("x");
    refused(read_write(&path), Errno::BUSY);
    refused(fs::remove_file(&path), Errno::BUSY);
    refused(File::options().write(true).truncate(true).open(&path), Errno::BUSY);
    assert_eq!(fs::read(&path).unwrap(), b"contents", "reading is not writing");
}

#[test]
fn a_dead_edge_leaves_nothing_in_the_way() {
    if !can_mount() {
        return;
    }
    let mut edge = Edge::start();
    let path = edge.file("x.raw");
    let file = create_new(&path).unwrap();
    file.write_all_at(&pattern(5, 1 << 20), 0).unwrap();
    edge.kill();
    refused(fs::metadata(&path), Errno::NOTCONN);
    assert_eq!(edge.world.state().attachments.len(), 1, "its attachment keeps others out");
    edge.restart();
    edge.eventually("the sweep", || edge.world.state().attachments.is_empty());
    assert!(fs::read(&path).unwrap() == pattern(5, 1 << 20));
    read_write(&path).unwrap();
    drop(file);
}

#[test]
fn sigterm_unmounts_and_a_second_edge_is_refused() {
    if !can_mount() {
        return;
    }
    let mut edge = Edge::start();
    fs::write(edge.file("x.raw"), b"x").unwrap();
    let second = edge.start_another();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another ovsd-edge"));
    assert!(edge.file("x.raw").exists(), "the second one broke the first one's mount");
    let status = edge.terminate();
    assert!(status.success(), "{status}");
    assert_eq!(fs::read_dir(edge.dir()).unwrap().count(), 0, "still mounted");
}

#[test]
fn space_is_the_vpools() {
    if !can_mount() {
        return;
    }
    let edge = Edge::start();
    let space = rustix::fs::statvfs(edge.dir()).unwrap();
    assert_eq!((space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize), (100 << 30, 40 << 30));
}

#[test]
fn the_watchdog_reports_and_frees() {
    if !can_mount() {
        return;
    }
    let edge = Edge::start_with(&["--stuck-after", "1", "--abort-stuck"]);
    let path = edge.file("x.raw");
    let file = create_new(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    edge.world.state().is_stalled.send_replace(true);
    let stuck = file.write_all_at(b"x", 0);
    assert!(stuck.is_err(), "it was aborted");
    edge.world.state().is_stalled.send_replace(false);
    drop(file);
    edge.eventually("a new mount", || fs::metadata(&path).is_ok());
    edge.eventually("a report", || edge.log().contains("nothing moves"));
    fs::write(&path, b"works again").unwrap();
}

/// Whether this kernel has NBD or not: what is asked for is answered, and nobody but root may ask.
#[test]
fn devices_are_asked_for_on_a_socket_of_its_own() {
    if !can_mount() {
        return;
    }
    let edge = Edge::start();
    let socket = edge.run_dir().join("edge.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = ovs_api::EdgeClient::new(&socket);
    let mut list = None;
    // Not before it knows what a predecessor left.
    edge.eventually("a list of devices", || match runtime.block_on(client.list_devices()) {
        Err(error) if error.is(ovs_api::ProblemKind::Unavailable) => false,
        answer => {
            list = Some(answer.unwrap());
            true
        }
    });
    let list = list.unwrap();
    runtime.block_on(async {
        assert!(list.items.is_empty());
        let nobodys = "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap();
        let put = ovs_api::PutDevice { block_size_bytes: 4096 };
        let refused = client.put_device(nobodys, &put).await.unwrap_err();
        let expected = match list.unavailable {
            Some(reason) => {
                assert!(refused.to_string().contains(&reason), "{refused}");
                ovs_api::ProblemKind::NotImplemented
            }
            None => ovs_api::ProblemKind::NotFound,
        };
        assert_eq!(refused.kind(), Some(expected), "{refused}");
        let odd = ovs_api::PutDevice { block_size_bytes: 4095 };
        assert_eq!(
            client.put_device(nobodys, &odd).await.unwrap_err().kind(),
            Some(ovs_api::ProblemKind::Invalid)
        );
        client.release_device(nobodys).await.unwrap();
    });
}
