//! qcow2 images, as `ovs vdisk import` reads them.

use crate::Family;
use ovs_cli::image::{Extent, Sink, Source, qcow2};
use ovs_units::{ByteCount, ByteOffset};
use rustix::fs::MemfdFlags;
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

/// A small file may describe many clusters: reading on shows nothing new.
const EXTENTS_MAX: usize = 64;

/// Images of both versions, compressed or not.
pub(crate) const QCOW2: Family = Family {
    name: "qcow2",
    check: |bytes| {
        let file = memory_file();
        file.write_all_at(bytes, 0).expect("memory");
        let Ok(mut reader) = qcow2::Reader::open(file, ByteCount(bytes.len() as u64)) else { return false };
        let (mut end, size) = (0, reader.size());
        for _ in 0..EXTENTS_MAX {
            let Ok(next) = reader.next_extent() else { return false };
            let Some(extent) = next else {
                assert_eq!(Some(ByteCount(end)), size);
                return true;
            };
            assert_eq!(extent.start().0, end, "a gap or an overlap");
            assert!(extent.length().0 > 0, "an empty extent would be read for ever");
            end = extent.end().0;
            assert!(size.is_none_or(|size| end <= size.0));
        }
        true
    },
    seeds: || {
        let deflate = |cluster: &[u8]| {
            let length = cluster.len() as u16;
            [&[1][..], &length.to_le_bytes(), &(!length).to_le_bytes(), cluster].concat()
        };
        // One segment, its size in two bytes (less 256), one raw block, the last.
        let zstd =
            |cluster: &[u8]| [&[0x28, 0xb5, 0x2f, 0xfd, 0x60, 0, 1, 0x01, 0x10, 0][..], cluster].concat();
        let cluster = [7; 512];
        vec![written(), compressed(0, &deflate(&cluster)), compressed(1, &zstd(&cluster)), subclusters()]
    },
    memory_bytes: 24 << 20,
    memory_per_byte: 8,
};

fn memory_file() -> File {
    rustix::fs::memfd_create(c"qcow2", MemfdFlags::CLOEXEC).expect("memory").into()
}

/// As our own writer makes it.
fn written() -> Vec<u8> {
    let mut file = memory_file();
    let mut writer = Box::new(qcow2::Writer::new(file.try_clone().expect("a descriptor")));
    let extents = [
        Extent::Data { start: ByteOffset(0), bytes: vec![9; 5000].into() },
        Extent::Zeros { start: ByteOffset(5000), length: ByteCount((1 << 20) - 5000) },
        Extent::Data { start: ByteOffset(1 << 20), bytes: vec![8; 512].into() },
    ];
    for extent in extents {
        writer.put(extent).expect("memory");
    }
    writer.finish().expect("memory");
    let mut image = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("memory");
    file.read_to_end(&mut image).expect("memory");
    image
}

/// A header of version 3 with a table of one entry in the second cluster, which names an L2 table in the third.
fn image(cluster_bits: u32, incompatible: u64, size: u64) -> Vec<u8> {
    let cluster = 1_usize << cluster_bits;
    let mut image = vec![0; 3 * cluster];
    let mut set = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
    set(0, &qcow2::MAGIC);
    set(4, &3_u32.to_be_bytes());
    set(20, &cluster_bits.to_be_bytes());
    set(24, &size.to_be_bytes());
    set(36, &1_u32.to_be_bytes());
    set(40, &(cluster as u64).to_be_bytes());
    set(72, &incompatible.to_be_bytes());
    set(100, &112_u32.to_be_bytes());
    set(cluster, &(2 * cluster as u64).to_be_bytes());
    image
}

/// One compressed cluster of 512 bytes.
fn compressed(kind: u8, data: &[u8]) -> Vec<u8> {
    let mut image = image(9, if kind == 0 { 0 } else { 1 << 3 }, 512);
    image[104] = kind;
    let at = image.len() as u64;
    let sectors = (data.len() as u64).div_ceil(512) - 1;
    image[1024..1032].copy_from_slice(&(1 << 62 | sectors << 61 | at).to_be_bytes());
    image.extend_from_slice(data);
    image.resize(image.len().next_multiple_of(512), 0);
    image
}

/// One cluster of 16 KiB, of which two subclusters are data.
fn subclusters() -> Vec<u8> {
    let mut image = image(14, 1 << 4, 16 << 10);
    let at = image.len() as u64;
    image[32768..32776].copy_from_slice(&at.to_be_bytes());
    image[32776..32784].copy_from_slice(&0b101_u64.to_be_bytes());
    image.resize(image.len() + (16 << 10), 5);
    image
}
