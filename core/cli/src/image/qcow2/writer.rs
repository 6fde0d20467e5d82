//! Writes a version 3 image in one pass over the disk.
//!
//! ```text
//! cluster 0: header, last │ data and L2 tables as they come │ L1 table │ reference blocks │ reference table
//! ```
//!
//! Nothing is allocated for zeros. Every cluster of the file is used once, so that every reference count is 1. The
//! header is written when all else is there: until then the file is no qcow2.

use super::MAGIC;
use crate::image::{Extent, Sink, zeros};
use std::{fs::File, io, os::unix::fs::FileExt};

const CLUSTER_BITS: u32 = 16;
const CLUSTER_SIZE_BYTES: u64 = 1 << CLUSTER_BITS;
const L2_ENTRY_COUNT: u64 = CLUSTER_SIZE_BYTES / 8;
/// Reference counts take 16 bits.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNTS_PER_BLOCK: u64 = CLUSTER_SIZE_BYTES / 2;
/// "This cluster's reference count is exactly one."
const COPIED: u64 = 1 << 63;
const HEADER_LENGTH: u32 = 104;

/// A qcow2 file that grows with the disk.
pub struct Writer {
    file: File,
    /// The next free cluster of the file.
    next: u64,
    l1: Vec<u64>,
    /// The table of the last entry of `l1`, as it is filled.
    l2: Vec<u64>,
    /// The disk's cluster that is being put together, and its index.
    cluster: Vec<u8>,
    cluster_index: u64,
    end: u64,
}

impl Writer {
    /// `file` is empty.
    pub fn new(file: File) -> Writer {
        Writer {
            file,
            next: 1,
            l1: Vec::new(),
            l2: Vec::new(),
            cluster: vec![0; CLUSTER_SIZE_BYTES as usize],
            cluster_index: 0,
            end: 0,
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.next * CLUSTER_SIZE_BYTES;
        self.file.write_all_at(bytes, at)?;
        self.next += (bytes.len() as u64).div_ceil(CLUSTER_SIZE_BYTES);
        Ok(at)
    }

    /// The cluster being put together is complete.
    fn close_cluster(&mut self) -> io::Result<()> {
        let entry = match zeros::is_zero(&self.cluster) {
            true => 0,
            false => {
                let cluster = std::mem::take(&mut self.cluster);
                let at = self.append(&cluster)?;
                self.cluster = cluster;
                self.cluster.fill(0);
                at | COPIED
            }
        };
        self.set_entry(self.cluster_index, entry)?;
        self.cluster_index += 1;
        Ok(())
    }

    /// Entries come in ascending order; those left out stay 0.
    fn set_entry(&mut self, cluster_index: u64, entry: u64) -> io::Result<()> {
        let l1_index = (cluster_index / L2_ENTRY_COUNT) as usize;
        if l1_index >= self.l1.len() {
            self.close_l2()?;
            self.l1.resize(l1_index + 1, 0);
        }
        if entry != 0 {
            self.l2.resize(L2_ENTRY_COUNT as usize, 0);
            self.l2[(cluster_index % L2_ENTRY_COUNT) as usize] = entry;
        }
        Ok(())
    }

    fn close_l2(&mut self) -> io::Result<()> {
        if !self.l2.is_empty() {
            let table = big_endian(&self.l2);
            self.l2.clear();
            let at = self.append(&table)?;
            if let Some(entry) = self.l1.last_mut() {
                *entry = at | COPIED;
            }
        }
        Ok(())
    }

    /// Leaves out whole clusters of zeros at once.
    fn skip_to(&mut self, end: u64) -> io::Result<()> {
        if end / CLUSTER_SIZE_BYTES > self.cluster_index {
            self.close_cluster()?;
            self.cluster_index = end / CLUSTER_SIZE_BYTES;
        }
        Ok(())
    }

    /// The reference blocks count themselves and their table too. Gives the table's place and its clusters.
    fn write_refcounts(&mut self) -> io::Result<(u64, u64)> {
        let (mut blocks, mut table) = (0, 0);
        loop {
            let total = self.next + blocks + table;
            let needed = total.div_ceil(REFCOUNTS_PER_BLOCK);
            if needed == blocks {
                break;
            }
            (blocks, table) = (needed, (needed * 8).div_ceil(CLUSTER_SIZE_BYTES));
        }
        let total = self.next + blocks + table;
        let mut block_offsets = Vec::new();
        for block in 0..blocks {
            let used = (total - block * REFCOUNTS_PER_BLOCK).min(REFCOUNTS_PER_BLOCK);
            let mut bytes = vec![0; CLUSTER_SIZE_BYTES as usize];
            let (counts, _) = bytes.as_chunks_mut::<2>();
            counts[..used as usize].fill([0, 1]);
            block_offsets.push(self.append(&bytes)?);
        }
        Ok((self.append(&pad(big_endian(&block_offsets)))?, table))
    }

    fn header(&self, l1_offset: u64, refcount_offset: u64, refcount_clusters: u64) -> Vec<u8> {
        let mut header = Vec::from(MAGIC);
        let mut u32s = |values: &[u32]| values.iter().for_each(|value| header.extend(value.to_be_bytes()));
        // Version; no backing file: offset 0 and length 0.
        u32s(&[3, 0, 0, 0, CLUSTER_BITS]);
        header.extend(self.end.to_be_bytes());
        header.extend([0; 4]);
        header.extend((self.l1.len() as u32).to_be_bytes());
        header.extend(l1_offset.to_be_bytes());
        header.extend(refcount_offset.to_be_bytes());
        header.extend((refcount_clusters as u32).to_be_bytes());
        // No snapshots: count 0, offset 0; then no features of three kinds.
        header.extend([0; 4 + 8 + 3 * 8]);
        header.extend(REFCOUNT_ORDER.to_be_bytes());
        header.extend(HEADER_LENGTH.to_be_bytes());
        header
    }
}

impl Sink for Writer {
    fn put(&mut self, extent: Extent) -> io::Result<()> {
        self.end = extent.end().0;
        match extent {
            Extent::Zeros { .. } => self.skip_to(self.end),
            Extent::Data { start, bytes } => {
                let mut left = &bytes[..];
                let mut at = start.0;
                while !left.is_empty() {
                    let within = at % CLUSTER_SIZE_BYTES;
                    let count = left.len().min((CLUSTER_SIZE_BYTES - within) as usize);
                    self.cluster[within as usize..][..count].copy_from_slice(&left[..count]);
                    left = &left[count..];
                    at += count as u64;
                    if at.is_multiple_of(CLUSTER_SIZE_BYTES) {
                        self.close_cluster()?;
                    }
                }
                Ok(())
            }
        }
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        if !self.end.is_multiple_of(CLUSTER_SIZE_BYTES) {
            self.close_cluster()?;
        }
        self.close_l2()?;
        self.l1.resize(self.end.div_ceil(L2_ENTRY_COUNT * CLUSTER_SIZE_BYTES) as usize, 0);
        let l1_offset = self.append(&pad(big_endian(&self.l1)))?;
        let (refcount_offset, refcount_clusters) = self.write_refcounts()?;
        // The tables are stable before the header says where they are.
        self.file.sync_all()?;
        let header = self.header(l1_offset, refcount_offset, refcount_clusters);
        self.file.write_all_at(&pad(header), 0)?;
        self.file.sync_all()
    }
}

fn big_endian(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Filled up with zeros to whole clusters.
fn pad(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(CLUSTER_SIZE_BYTES as usize), 0);
    bytes
}
