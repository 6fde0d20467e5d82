//! The files of the write buffer.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

use bytes::Bytes;
use ovs_volume::{FileDevice, LogDevice};
use std::{fs, path::Path};

const SLOT_BYTES: u64 = 64 << 10;

/// Not in memory, where any address is good for direct I/O.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn refused(directory: &Path, slot_count: usize, slot_bytes: u64, expected: &str) {
    let error = FileDevice::open(directory, slot_count, slot_bytes).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn slots_are_made_and_found_again() {
    let folder = on_disk();
    let directory = folder.path().join("not/yet/there");
    let device = FileDevice::open(&directory, 2, SLOT_BYTES).unwrap();
    assert_eq!((device.slot_count(), device.slot_bytes()), (2, SLOT_BYTES));
    refused(&directory, 2, SLOT_BYTES, "in use by another ovsd");
    drop(device);
    // More on demand; fewer or larger never.
    let device = FileDevice::open(&directory, 3, 2 * SLOT_BYTES).unwrap();
    assert_eq!((device.slot_count(), device.slot_bytes()), (3, SLOT_BYTES));
    drop(device);
    let device = FileDevice::open(&directory, 1, SLOT_BYTES).unwrap();
    assert_eq!(device.slot_count(), 3);
    assert_eq!(fs::metadata(directory.join("slot-0002.seg")).unwrap().len(), SLOT_BYTES);
}

#[test]
fn what_cannot_be_a_slot_is_refused() {
    let folder = on_disk();
    refused(folder.path(), 1, 15 * 4096, "must be whole blocks, 16 at least");
    refused(folder.path(), 1, 16 * 4096 + 1, "must be whole blocks, 16 at least");
    drop(FileDevice::open(folder.path(), 2, 16 * 4096).unwrap());
    fs::write(folder.path().join("slot-0001.seg"), [0; 17 * 4096]).unwrap();
    refused(folder.path(), 2, 16 * 4096, "slot 1 of the write buffer has a wrong size");
    let file = folder.path().join("a file");
    fs::write(&file, "").unwrap();
    assert!(FileDevice::open(&file, 1, SLOT_BYTES).is_err());
    assert!(FileDevice::open(&file.join("below"), 1, SLOT_BYTES).is_err());
}

/// Parts are written one behind the other, whether they go as they are or are gathered.
#[test]
fn parts_of_a_write_keep_their_order() {
    const PART_BYTES: usize = 64 << 10;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = on_disk();
    let device = FileDevice::open(folder.path(), 1, 1 << 20).unwrap();
    let memory = Bytes::from(
        (0..PART_BYTES * 3 / 4096).flat_map(|block| vec![block as u8 + 1; 4096]).collect::<Vec<_>>(),
    );
    let aligned = memory.as_ptr().align_offset(4096);
    for start in [aligned, aligned + 1] {
        let large = memory.slice(start..start + PART_BYTES);
        let small = Bytes::from(vec![0xff; 4096]);
        let parts = [&small, &large, &small, &small, &large, &large, &small].map(Bytes::clone);
        runtime.block_on(async {
            device.write(0, 4096, parts.to_vec()).await.unwrap();
            let found = device.read(0, 4096, 3 * PART_BYTES + 4 * 4096).await.unwrap();
            assert!(found == parts.concat(), "from {start}");
        });
    }
}
