//! Import and export by the built program, to and from a vDisk in memory behind the real NBD server.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod fake;

use fake::{Ovsd, text};
use std::{
    fs::File,
    io::Write,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

const MIB: u64 = 1 << 20;

/// Bytes that differ from place to place, none of them zero.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| ((at / 4096 * 31 + at % 251 + seed) % 255 + 1) as u8).collect()
}

/// 24 MiB and a bit, data at three places.
fn sparse_image(path: &Path, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    bytes[..3_000_000].copy_from_slice(&pattern(1, 3_000_000));
    bytes[10 << 20..][..4096].copy_from_slice(&pattern(2, 4096));
    bytes[(24 << 20) - 5000..][..6000].copy_from_slice(&pattern(3, 6000));
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for range in [0..3_000_000, 10 << 20..(10 << 20) + 4096, (24 << 20) - 5000..(24 << 20) + 1000] {
        file.write_all_at(&bytes[range.clone()], range.start as u64).unwrap();
    }
    bytes
}

fn check(output: &Output, code: i32, expected: &str) {
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(expected), "{said:?} does not say {expected:?}");
}

/// The vDisk holds the image, of this size, thin; nothing is left attached or marked.
fn check_imported(ovsd: &Ovsd, image: &[u8]) {
    assert_eq!(ovsd.size_bytes(), Some(image.len() as u64));
    assert!(ovsd.disk.get(0, image.len() as u64) == image, "the contents differ");
    assert!(ovsd.disk.lock().clusters.len() < 800, "not thin: {} clusters", ovsd.disk.lock().clusters.len());
    assert!(ovsd.disk.lock().flushes > 0);
    let state = ovsd.state();
    assert_eq!((state.attachments, &state.vdisk.as_ref().unwrap()["labels"]), (0, &serde_json::json!({})));
}

#[test]
fn a_raw_file_of_any_size() {
    for size in [25 * MIB, 25 * MIB + 512] {
        let ovsd = Ovsd::start(None);
        let path = ovsd.path("image");
        let image = sparse_image(&path, size);
        let output = ovsd.run(&["vdisk", "import", path.to_str().unwrap(), "default/v"]);
        check(&output, 0, "default/v is imported, 25MiB");
        check(&output, 0, "import default/v: 25MiB of 25MiB");
        check_imported(&ovsd, &image);
    }
}

#[test]
fn a_larger_vdisk_on_request_and_no_smaller_one() {
    let ovsd = Ovsd::start(None);
    let path = ovsd.path("image");
    let mut image = sparse_image(&path, 25 * MIB);
    let path = path.to_str().unwrap();
    check(
        &ovsd.run(&["vdisk", "import", path, "default/v", "--size", "24MiB"]),
        2,
        "at least 26214400 bytes",
    );
    assert_eq!(ovsd.size_bytes(), None);
    check(&ovsd.run(&["-q", "vdisk", "import", path, "default/v", "--size", "30MiB"]), 0, "");
    image.resize(30 << 20, 0);
    check_imported(&ovsd, &image);
}

#[test]
fn a_qcow2_file() {
    let ovsd = Ovsd::start(None);
    let (raw, path) = (ovsd.path("raw"), ovsd.path("image.qcow2"));
    let image = sparse_image(&raw, 25 * MIB);
    let converted = Command::new("qemu-img")
        .args(["convert", "-c", "-f", "raw", "-O", "qcow2"])
        .args([&raw, &path])
        .status();
    assert!(converted.unwrap().success());
    check(
        &ovsd.run(&["vdisk", "import", path.to_str().unwrap(), "default/v", "--output", "json"]),
        0,
        "\"size_bytes\"",
    );
    check_imported(&ovsd, &image);
}

/// An import that reads what is written to its standard input.
fn spawn_import(ovsd: &Ovsd, words: &[&str]) -> Child {
    let mut command = ovsd.ovs();
    command.args(["vdisk", "import", "-", "default/v"]).args(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn import_from_pipe(ovsd: &Ovsd, words: &[&str], image: Vec<u8>) -> Output {
    let mut child = spawn_import(ovsd, words);
    let mut stdin = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || {
        // It may refuse to read on.
        let _ = stdin.write_all(&image);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output
}

#[test]
fn a_pipe_of_unknown_length() {
    let ovsd = Ovsd::start(None);
    let image = sparse_image(&ovsd.path("image"), 25 * MIB + 700);
    check(&import_from_pipe(&ovsd, &[], image.clone()), 0, "default/v is imported, 25MiB");
    check_imported(&ovsd, &image);
}

#[test]
fn a_pipe_that_outgrows_what_was_made_for_it() {
    let ovsd = Ovsd::start(None);
    // 1 GiB is where a pipe begins; this has data on both sides of it.
    let mut child =
        ovsd.ovs().args(["-q", "vdisk", "import", "-", "default/v"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let zeros = vec![0; 1 << 20];
    stdin.write_all(&pattern(1, 5000)).unwrap();
    for _ in 0..1025 {
        stdin.write_all(&zeros).unwrap();
    }
    stdin.write_all(&pattern(2, 5000)).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let second = 5000 + 1025 * MIB;
    assert_eq!(ovsd.size_bytes(), Some(second + 5000));
    assert!(
        ovsd.disk.get(0, 6000)[..5000] == pattern(1, 5000) && ovsd.disk.get(second, 5000) == pattern(2, 5000)
    );
    assert!(ovsd.disk.lock().clusters.len() < 8);
}

#[test]
fn a_pipe_with_a_limit_that_is_passed_leaves_nothing() {
    let ovsd = Ovsd::start(None);
    let output = import_from_pipe(&ovsd, &["--size", "1MiB"], pattern(1, 3 << 20));
    check(&output, 1, "more than 1MiB has come");
    // Zeros past the limit count too.
    let mut image = pattern(1, 4096);
    image.resize(3 << 20, 0);
    check(&import_from_pipe(&ovsd, &["--size", "1MiB"], image), 1, "more than 1MiB has come");
    check(&import_from_pipe(&ovsd, &[], Vec::new()), 1, "nothing has come");
    assert_eq!((ovsd.size_bytes(), ovsd.state().attachments), (None, 0));
}

#[test]
fn what_cannot_be_imported_is_refused_before_a_vdisk_is_made() {
    let ovsd = Ovsd::start(None);
    check(&import_from_pipe(&ovsd, &[], b"QFI\xfb0000".to_vec()), 1, "cannot be read from a pipe");
    let path = ovsd.path("x");
    for (bytes, expected) in
        [(&b""[..], "is empty"), (b"KDMV....", "VMDK"), (b"QFI\xfb....", "no qcow2 header")]
    {
        std::fs::write(&path, bytes).unwrap();
        check(&ovsd.run(&["vdisk", "import", path.to_str().unwrap(), "default/v"]), 1, expected);
    }
    check(&ovsd.run(&["vdisk", "import", "/nonexistent/x", "default/v"]), 1, "cannot open /nonexistent/x");
    check(&ovsd.run(&["vdisk", "import", "/", "default/v"]), 1, "is a directory");
    assert!(ovsd.state().log.iter().all(|line| !line.starts_with("POST")), "{:?}", ovsd.state().log);
}

#[test]
fn a_failed_import_deletes_the_vdisk_that_it_made() {
    let ovsd = Ovsd::start(None);
    ovsd.disk.lock().fails_after_bytes = Some(2 * MIB);
    let path = ovsd.path("image");
    std::fs::write(&path, pattern(1, 20 << 20)).unwrap();
    check(
        &ovsd.run(&["vdisk", "import", path.to_str().unwrap(), "default/v"]),
        1,
        "the disk in memory is full",
    );
    assert_eq!((ovsd.size_bytes(), ovsd.state().attachments), (None, 0));
}

#[test]
fn an_image_that_turns_out_damaged_leaves_nothing() {
    let ovsd = Ovsd::start(None);
    let (raw, path) = (ovsd.path("raw"), ovsd.path("image.qcow2"));
    std::fs::write(&raw, pattern(1, 4 << 20)).unwrap();
    let converted =
        Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).args([&raw, &path]).status();
    assert!(converted.unwrap().success());
    let length = path.metadata().unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(length - MIB).unwrap();
    check(&ovsd.run(&["vdisk", "import", path.to_str().unwrap(), "default/v"]), 1, "cut short");
    assert_eq!(ovsd.size_bytes(), None);
}

fn interrupt(child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
}

#[test]
fn an_interrupted_import_leaves_nothing_even_when_writes_stall() {
    let ovsd = Ovsd::start(None);
    ovsd.disk.lock().is_stalled = true;
    let mut child = spawn_import(&ovsd, &[]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&pattern(1, 100_000)).unwrap();
    ovsd.disk.wait_for_a_client();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    check(&output, 1, "ovs: interrupted\n");
    assert_eq!((ovsd.size_bytes(), ovsd.state().attachments), (None, 0));
}

#[test]
fn a_vdisk_that_exists_is_filled_only_on_request_and_then_wholly() {
    let ovsd = Ovsd::start(Some(30 * MIB));
    for at in (0..30 * MIB).step_by(64 << 10) {
        ovsd.disk.put(at, &[0xee; 4096]);
    }
    let path = ovsd.path("image");
    let mut image = sparse_image(&path, 25 * MIB + 512);
    let path = path.to_str().unwrap();
    check(&ovsd.run(&["vdisk", "import", path, "default/v"]), 1, "--overwrite");
    assert_eq!(ovsd.disk.get(0, 1), [0xee]);
    check(
        &ovsd.run(&["vdisk", "import", path, "default/v", "--overwrite"]),
        0,
        "default/v is imported, 30MiB",
    );
    image.resize(30 << 20, 0);
    check_imported(&ovsd, &image);
}

#[test]
fn a_failed_overwrite_keeps_the_vdisk_and_says_so() {
    let ovsd = Ovsd::start(Some(30 * MIB));
    ovsd.disk.lock().fails_after_bytes = Some(MIB);
    let path = ovsd.path("image");
    std::fs::write(&path, pattern(1, 20 << 20)).unwrap();
    let words = ["vdisk", "import", path.to_str().unwrap(), "default/v", "--overwrite"];
    check(&ovsd.run(&words), 1, "part of the image and part of what it held before");
    assert_eq!(ovsd.size_bytes(), Some(30 * MIB));
    assert_eq!(ovsd.state().vdisk.as_ref().unwrap()["labels"]["ovs.import"], "unfinished");
    std::fs::write(&path, pattern(1, 31 << 20)).unwrap();
    check(&ovsd.run(&words), 1, "resize it first");
}

#[test]
fn an_overwrite_that_never_began_leaves_the_vdisk_as_it_was() {
    let ovsd = Ovsd::start(Some(30 * MIB));
    ovsd.state().refuses_attachments = true;
    let path = ovsd.path("image");
    std::fs::write(&path, pattern(1, 1 << 20)).unwrap();
    let output = ovsd.run(&["vdisk", "import", path.to_str().unwrap(), "default/v", "--overwrite"]);
    check(&output, 1, "ovs: default/v is in use\n");
    assert_eq!(ovsd.state().vdisk.as_ref().unwrap()["labels"], serde_json::json!({}));
}

/// A vDisk of 25 MiB and a bit with data at three places.
fn filled() -> (Ovsd, Vec<u8>) {
    let size = 25 * MIB + 512;
    let ovsd = Ovsd::start(Some(size));
    let image = sparse_image(&ovsd.path("image"), size);
    for (cluster, bytes) in (0..).zip(image.chunks(4096)) {
        if bytes.iter().any(|byte| *byte != 0) {
            ovsd.disk.put(cluster * 4096, bytes);
        }
    }
    (ovsd, image)
}

#[test]
fn an_export_is_sparse_exact_and_of_one_moment() {
    let (ovsd, image) = filled();
    let path = ovsd.path("back");
    check(&ovsd.run(&["vdisk", "export", "default/v", path.to_str().unwrap()]), 0, "is exported to");
    assert!(std::fs::read(&path).unwrap() == image);
    assert!(path.metadata().unwrap().blocks() * 512 < 5 * MIB, "not sparse");
    assert!(ovsd.disk.lock().read_bytes < 5 * MIB, "holes were read");
    let opened = ovsd.disk.lock().opened.clone();
    assert!(opened[0].starts_with("default/v@export-"), "{opened:?}");
    let state = ovsd.state();
    assert!(state.snapshots.is_empty() && state.attachments == 0, "left behind: {:?}", state.snapshots);
}

#[test]
fn a_named_snapshot_is_exported_and_stays() {
    let (ovsd, image) = filled();
    ovsd.state().with_snapshot("monday");
    let path = ovsd.path("back.qcow2");
    let words = [
        "vdisk",
        "export",
        "default/v@monday",
        path.to_str().unwrap(),
        "--format",
        "qcow2",
        "--output",
        "json",
    ];
    check(&ovsd.run(&words), 0, "\"size_bytes\": 26214912");
    assert_eq!(ovsd.disk.lock().opened, ["default/v@monday"]);
    assert!(ovsd.state().snapshots.contains_key("monday"));
    let raw = ovsd.path("raw");
    let converted =
        Command::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).args([&path, &raw]).status();
    assert!(converted.unwrap().success());
    assert!(std::fs::read(&raw).unwrap() == image);
}

#[test]
fn an_export_to_a_pipe_has_every_byte() {
    let (ovsd, image) = filled();
    let output = ovsd.run(&["vdisk", "export", "default/v", "-"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stdout == image);
    assert!(text(&output.stderr).contains("is exported to -"));
    check(&ovsd.run(&["vdisk", "export", "default/v", "-", "--format", "qcow2"]), 2, "raw for a pipe");
}

#[test]
fn a_file_is_replaced_only_on_request() {
    let (ovsd, image) = filled();
    let path = ovsd.path("back");
    std::fs::write(&path, "old").unwrap();
    let words = ["vdisk", "export", "default/v", path.to_str().unwrap()];
    check(&ovsd.run(&words), 1, "--force");
    assert!(ovsd.state().log.is_empty(), "nothing was asked of ovsd: {:?}", ovsd.state().log);
    check(&ovsd.ovs().args(words).arg("--force").output().unwrap(), 0, "");
    assert!(std::fs::read(&path).unwrap() == image);
}

#[test]
fn a_failed_export_leaves_neither_file_nor_snapshot() {
    let (ovsd, _) = filled();
    // The snapshot is larger than what its export gives: reading past the end fails.
    ovsd.disk.lock().size_bytes = MIB;
    let directory = ovsd.path("out");
    std::fs::create_dir(&directory).unwrap();
    let output = ovsd.run(&["vdisk", "export", "default/v", directory.join("x").to_str().unwrap()]);
    check(&output, 1, "the vDisk's NBD export");
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    assert!(ovsd.state().snapshots.is_empty() && ovsd.state().attachments == 0);
}

#[test]
fn a_reader_that_closes_its_pipe_fails_the_export() {
    let (ovsd, _) = filled();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = ovsd.ovs().args(["vdisk", "export", "default/v", "-"]).stdout(writer).output().unwrap();
    check(&output, 1, "cannot write the image");
    assert!(ovsd.state().snapshots.is_empty());
}
