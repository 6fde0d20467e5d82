//! Our qcow2 reader against images that qemu-img makes, and our writer against what qemu-img thinks of it.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use ovs_cli::image::{Extent, ImageError, Sink, Source, qcow2};
use ovs_units::{ByteCount, ByteOffset};
use proptest::prelude::*;
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} (package qemu-utils) is needed: {error}"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Deterministic bytes that do not compress to nothing.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A raw disk of 20 MiB (and a ragged end) with text, noise, holes and written zeros.
fn make_raw(directory: &Path) -> PathBuf {
    let path = directory.join("disk.raw");
    let file = File::create(&path).unwrap();
    file.set_len((20 << 20) + 1536).unwrap();
    file.write_all_at(&noise(1, 300_000), 0).unwrap();
    file.write_all_at(&b"compressible text ".repeat(40_000), 2 << 20).unwrap();
    file.write_all_at(&noise(2, 5 << 20), (7 << 20) + 512).unwrap();
    file.write_all_at(&noise(3, 700), (15 << 20) + 4096).unwrap();
    file.write_all_at(&noise(4, 1000), (20 << 20) + 500).unwrap();
    path
}

struct Disk {
    bytes: Vec<u8>,
    data_bytes: u64,
}

fn read_all(path: &Path) -> Result<Disk, ImageError> {
    let file = File::open(path).unwrap();
    let length = ByteCount(file.metadata().unwrap().len());
    let mut reader = qcow2::Reader::open(file, length)?;
    let size = reader.size().unwrap();
    let mut disk = Disk { bytes: Vec::new(), data_bytes: 0 };
    while let Some(extent) = reader.next_extent()? {
        assert_eq!(extent.start().0, disk.bytes.len() as u64, "no gap and no overlap");
        match extent {
            Extent::Data { bytes, .. } => {
                disk.data_bytes += bytes.len() as u64;
                disk.bytes.extend_from_slice(&bytes);
            }
            Extent::Zeros { length, .. } => disk.bytes.resize(disk.bytes.len() + length.0 as usize, 0),
        }
    }
    assert_eq!(disk.bytes.len() as u64, size.0);
    Ok(disk)
}

/// The reader gives what `qemu-img convert` gives.
fn check_same_as_qemu(image: &Path) -> Disk {
    let converted = image.with_extension("converted");
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(image), text(&converted)]);
    let disk = read_all(image).unwrap();
    assert!(disk.bytes == std::fs::read(&converted).unwrap(), "{} reads differently", image.display());
    disk
}

fn check_converted(directory: &Path, name: &str, options: &[&str]) -> Disk {
    let raw = make_raw(directory);
    let image = directory.join(name);
    let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
    arguments.extend(options);
    arguments.extend([text(&raw), text(&image)]);
    run("qemu-img", &arguments);
    check_same_as_qemu(&image)
}

fn scratch() -> TempDir {
    TempDir::new().unwrap()
}

#[test]
fn every_cluster_size_of_version_3() {
    let directory = scratch();
    for size in ["512", "1k", "4k", "64k", "256k", "2M"] {
        check_converted(directory.path(), "v3.qcow2", &["-o", &format!("cluster_size={size}")]);
    }
}

#[test]
fn version_2() {
    let directory = scratch();
    for size in ["512", "64k", "2M"] {
        check_converted(directory.path(), "v2.qcow2", &["-o", &format!("compat=0.10,cluster_size={size}")]);
    }
}

#[test]
fn compressed_with_deflate_and_with_zstd() {
    let directory = scratch();
    for size in ["512", "4k", "64k", "2M"] {
        for kind in ["compat=0.10", "compression_type=zlib", "compression_type=zstd"] {
            check_converted(
                directory.path(),
                "c.qcow2",
                &["-c", "-o", &format!("{kind},cluster_size={size}")],
            );
        }
    }
}

#[test]
fn extended_l2_with_subclusters() {
    let directory = scratch();
    for size in ["16k", "128k", "2M"] {
        let options = format!("extended_l2=on,cluster_size={size}");
        check_converted(directory.path(), "e.qcow2", &["-o", &options]);
        check_converted(directory.path(), "e.qcow2", &["-c", "-o", &options]);
        // Single subclusters written, discarded and zeroed.
        let image = directory.path().join("sub.qcow2");
        run("qemu-img", &["create", "-f", "qcow2", "-o", &options, text(&image), "8M"]);
        let commands = [
            "write -P 1 0 4k",
            "write -P 2 1M 300k",
            "write -z 1100k 60k",
            "discard 1200k 12k",
            "write -P 3 5000k 1k",
        ];
        let mut arguments = vec!["-f", "qcow2"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(text(&image));
        run("qemu-io", &arguments);
        check_same_as_qemu(&image);
    }
}

#[test]
fn holes_and_zero_clusters_are_not_read() {
    let directory = scratch();
    let image = directory.path().join("holes.qcow2");
    run("qemu-img", &["create", "-f", "qcow2", text(&image), "40G"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 39G 1M", "-c", "write -z 1G 10M", text(&image)]);
    let file = File::open(&image).unwrap();
    let length = ByteCount(file.metadata().unwrap().len());
    let mut reader = qcow2::Reader::open(file, length).unwrap();
    let mut extents = Vec::new();
    while let Some(extent) = reader.next_extent().unwrap() {
        extents.push((
            extent.start().0 >> 20,
            extent.length().0 >> 20,
            matches!(extent, Extent::Data { .. }),
        ));
    }
    let gib = 1024;
    assert_eq!(extents, [(0, 39 * gib, false), (39 * gib, 1, true), (39 * gib + 1, gib - 1, false)]);
}

#[test]
fn preallocated_images_and_ones_with_snapshots() {
    let directory = scratch();
    for preallocation in ["metadata", "falloc", "full"] {
        check_converted(directory.path(), "p.qcow2", &["-o", &format!("preallocation={preallocation}")]);
    }
    let image = directory.path().join("p.qcow2");
    run("qemu-img", &["snapshot", "-c", "before", text(&image)]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 9 1M 3M", text(&image)]);
    let disk = check_same_as_qemu(&image);
    assert_eq!(disk.bytes[2 << 20], 9, "the disk as it is now, not as the snapshot has it");
}

#[test]
fn an_image_that_a_guest_writes_at_its_ragged_end() {
    let directory = scratch();
    let image = directory.path().join("ragged.qcow2");
    run("qemu-img", &["create", "-f", "qcow2", text(&image), "1000448"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 5 999936 512", text(&image)]);
    check_same_as_qemu(&image);
}

fn check_refused(image: &Path, expected: &str) {
    let message = read_all(image).err().unwrap().to_string();
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
}

#[test]
fn images_that_depend_on_other_files_are_refused() {
    let directory = scratch();
    let at = |name: &str| directory.path().join(name);
    run("qemu-img", &["create", "-f", "qcow2", text(&at("base.qcow2")), "1M"]);
    let base = at("base.qcow2");
    run("qemu-img", &["create", "-f", "qcow2", "-b", text(&base), "-F", "qcow2", text(&at("over.qcow2"))]);
    check_refused(&at("over.qcow2"), "base.qcow2");
    let options = format!("data_file={}", text(&at("data.raw")));
    run("qemu-img", &["create", "-f", "qcow2", "-o", &options, text(&at("ext.qcow2")), "1M"]);
    check_refused(&at("ext.qcow2"), "another file");
}

#[test]
fn encrypted_and_corrupt_images_are_refused() {
    let directory = scratch();
    let image = directory.path().join("e.qcow2");
    let options = ["-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"];
    let secret = "secret,id=s,data=x";
    run(
        "qemu-img",
        &["create", "-f", "qcow2", "--object", secret, options[0], options[1], text(&image), "1M"],
    );
    check_refused(&image, "encrypted");
    run("qemu-img", &["create", "-f", "qcow2", text(&image), "1M"]);
    File::options().write(true).open(&image).unwrap().write_all_at(&[2], 79).unwrap();
    check_refused(&image, "marked corrupt");
}

/// A small image with data, compressed clusters and zeros, as bytes to change.
fn small_image(options: &[&str]) -> Vec<u8> {
    let directory = scratch();
    let raw = directory.path().join("raw");
    let mut bytes = noise(5, 20_000);
    bytes.resize(300 << 10, 0);
    bytes[200_000..230_000].fill(7);
    std::fs::write(&raw, bytes).unwrap();
    let image = directory.path().join("small");
    let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
    arguments.extend(options);
    arguments.extend([text(&raw), text(&image)]);
    run("qemu-img", &arguments);
    std::fs::read(image).unwrap()
}

/// Reads it as far as it goes, and says how much that was.
fn read_hostile(image: &[u8]) -> Result<u64, ImageError> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(image, 0).unwrap();
    let mut reader = qcow2::Reader::open(file, ByteCount(image.len() as u64))?;
    let (mut end, mut data_bytes) = (0, 0);
    while let Some(extent) = reader.next_extent()? {
        assert_eq!(extent.start().0, end);
        assert!(extent.length().0 > 0, "an empty extent would be read for ever");
        end = extent.end().0;
        if let Extent::Data { bytes, .. } = extent {
            data_bytes += bytes.len() as u64;
        }
    }
    assert_eq!(Some(ByteCount(end)), reader.size());
    Ok(data_bytes)
}

#[test]
fn an_image_cut_short_is_damaged_wherever_it_is_cut() {
    // Incompressible, so that the last cluster lies at the end of the file.
    let image = small_image(&["-o", "cluster_size=4k"]);
    let whole = read_hostile(&image).unwrap();
    let mut refused = 0;
    for length in (0..image.len()).step_by(4096) {
        match read_hostile(&image[..length]) {
            Err(_) => refused += 1,
            // What lies behind the last cluster in use is not missed.
            Ok(data_bytes) => assert_eq!(data_bytes, whole, "cut at {length}"),
        }
    }
    assert!(refused > 5, "{refused}");
}

#[test]
fn tables_that_name_one_cluster_for_ever_are_refused() {
    // Eight entries of the L1 table name one L2 table, all of whose entries name one cluster.
    let cluster = 65536u64;
    let mut image = vec![0; 4 * cluster as usize];
    let mut set = |at: u64, value: &[u8]| image[at as usize..][..value.len()].copy_from_slice(value);
    set(0, &qcow2::MAGIC);
    set(4, &3u32.to_be_bytes());
    set(20, &16u32.to_be_bytes());
    set(24, &(4u64 << 30).to_be_bytes());
    set(36, &8u32.to_be_bytes());
    set(40, &cluster.to_be_bytes());
    set(100, &104u32.to_be_bytes());
    for index in 0..8 {
        set(cluster + index * 8, &(2 * cluster).to_be_bytes());
    }
    for index in 0..8192 {
        set(2 * cluster + index * 8, &(3 * cluster).to_be_bytes());
    }
    let message = read_hostile(&image).unwrap_err().to_string();
    assert!(message.contains("more clusters than its 262144 bytes"), "{message}");
}

fn small_images() -> Vec<Vec<u8>> {
    vec![
        small_image(&["-o", "cluster_size=4k"]),
        small_image(&["-c", "-o", "cluster_size=4k"]),
        small_image(&["-c", "-o", "cluster_size=4k,compression_type=zstd"]),
        small_image(&["-o", "cluster_size=16k,extended_l2=on"]),
        small_image(&["-o", "cluster_size=512,compat=0.10"]),
    ]
}

#[test]
fn changed_images_never_panic() {
    let images = small_images();
    let change = (any::<prop::sample::Index>(), prop_oneof![Just(0u8), Just(0xff), any::<u8>()]);
    // Half of the changes hit the header, the others anything.
    let changes = prop::collection::vec((change, any::<bool>()), 1..6);
    let config = ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(image in prop::sample::select(images), changes in changes, cut in prop::option::of(any::<prop::sample::Index>()))| {
        let mut image = image;
        for ((at, value), is_header) in changes {
            let at = at.index(if is_header { 112 } else { image.len() });
            image[at] = value;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        let length = image.len() as u64;
        if let Ok(data_bytes) = read_hostile(&image) {
            // At most one cluster of 2 MiB for every 4 bytes.
            prop_assert!(data_bytes <= (length / 4 + 1) << 21);
        }
    });
}

#[test]
fn what_we_write_is_sound_and_reads_the_same() {
    let directory = scratch();
    let raw = std::fs::read(make_raw(directory.path())).unwrap();
    let image = directory.path().join("ours.qcow2");
    let mut writer = Box::new(qcow2::Writer::new(File::create(&image).unwrap()));
    // Pieces that start and end anywhere within clusters, and a terabyte of nothing in between.
    let mut at = 0;
    for piece in raw.chunks(1_234_567) {
        let start = ByteOffset(at);
        let extent = match piece.iter().all(|byte| *byte == 0) {
            true => Extent::Zeros { start, length: ByteCount(piece.len() as u64) },
            false => Extent::Data { start, bytes: piece.to_vec().into() },
        };
        at = extent.end().0;
        writer.put(extent).unwrap();
    }
    let hole = ByteCount((1 << 40) - at);
    writer.put(Extent::Zeros { start: ByteOffset(at), length: hole }).unwrap();
    writer.put(Extent::Data { start: ByteOffset(1 << 40), bytes: vec![8; 4096].into() }).unwrap();
    writer.finish().unwrap();

    let report = run("qemu-img", &["check", text(&image)]);
    assert!(report.contains("No errors were found"), "{report}");
    let head = directory.path().join("head.raw");
    let end = raw.len().to_string();
    let opened = format!("driver=raw,size={end},file.driver=qcow2,file.file.filename={}", text(&image));
    run("qemu-img", &["convert", "--image-opts", "-O", "raw", &opened, text(&head)]);
    assert!(std::fs::read(&head).unwrap()[..raw.len()] == raw[..]);
    run("qemu-io", &["-f", "qcow2", "-c", "read -P 8 1T 4k", text(&image)]);
    assert!(std::fs::metadata(&image).unwrap().len() < 30 << 20);
}
