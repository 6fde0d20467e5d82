//! Walks the tables in the order of the disk.

use super::{
    header::Header,
    table::{self, Mapping},
};
use crate::image::{EXTENT_SIZE_BYTES_MAX, Extent, FileOffset, ImageError, Source, read_at};
use ovs_units::{ByteCount, ByteOffset};
use std::fs::File;

/// A qcow2 file as a sequence of extents.
pub struct Reader {
    file: File,
    file_length: ByteCount,
    header: Header,
    l1: Vec<u64>,
    /// The L2 table of the L1 entry at this index; `None` when that range is not allocated.
    l2: Option<(usize, Option<Vec<u64>>)>,
    position: u64,
    /// How many more clusters and tables the file could hold that we have not met yet. A sound image names each
    /// cluster of its file at most once.
    clusters_left: u64,
    /// The same for compressed clusters, of which each takes some bytes of its own.
    compressed_left: u64,
}

impl Reader {
    /// Reads the header and the L1 table, and refuses what is not a whole, readable image.
    pub fn open(file: File, file_length: ByteCount) -> Result<Reader, ImageError> {
        let header = Header::read(&file, file_length)?;
        let mut bytes = vec![0; header.l1_entry_count * 8];
        read_at(&file, header.l1_offset, &mut bytes)?;
        let clusters_left = file_length.0.div_ceil(header.cluster_size_bytes());
        // Neither deflate nor zstd makes a cluster of 512 bytes or more out of less than 4 bytes.
        let compressed_left = file_length.0 / 4;
        let l1 = big_endian(&bytes);
        Ok(Reader { file, file_length, header, l1, l2: None, position: 0, clusters_left, compressed_left })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The mapping of the cluster at `position`, and how far it reaches: to the cluster's end, or for a range
    /// without an L2 table to the end of that range.
    fn look_up(&mut self, position: u64) -> Result<(Mapping, u64), ImageError> {
        let coverage = self.header.l2_coverage_bytes();
        let l1_index = (position / coverage) as usize;
        if self.l2.as_ref().is_none_or(|(index, _)| *index != l1_index) {
            self.l2 = Some((l1_index, self.read_l2(l1_index)?));
        }
        let Some((_, Some(l2))) = &self.l2 else {
            return Ok((Mapping::Zeros, (l1_index as u64 + 1) * coverage));
        };
        let cluster_size = self.header.cluster_size_bytes();
        let l2_index = (position % coverage / cluster_size) as usize;
        let (entry, bitmap) = match self.header.is_extended_l2 {
            true => (l2[l2_index * 2], l2[l2_index * 2 + 1]),
            false => (l2[l2_index], 0),
        };
        let mapping = table::mapping(entry, bitmap, &self.header, self.file_length)?;
        Ok((mapping, (position / cluster_size + 1) * cluster_size))
    }

    fn read_l2(&mut self, l1_index: usize) -> Result<Option<Vec<u64>>, ImageError> {
        let Some(at) = table::l2_table(self.l1[l1_index], &self.header, self.file_length)? else {
            return Ok(None);
        };
        self.spend_clusters(1)?;
        let bytes = self.read_clusters(at, self.header.cluster_size_bytes())?;
        Ok(Some(big_endian(&bytes)))
    }

    fn spend_clusters(&mut self, count: u64) -> Result<(), ImageError> {
        let left = self.clusters_left.checked_sub(count);
        self.clusters_left = left.ok_or_else(|| too_many("clusters", self.file_length))?;
        Ok(())
    }

    /// Zeros from `position` as far as the tables say so.
    fn zeros(&mut self, mut end: u64) -> Result<Extent, ImageError> {
        let start = self.position;
        while end < self.header.size.0 {
            match self.look_up(end)? {
                (Mapping::Zeros, next) => end = next,
                _ => break,
            }
        }
        self.position = end.min(self.header.size.0);
        Ok(Extent::Zeros { start: ByteOffset(start), length: ByteCount(self.position - start) })
    }

    /// Clusters that follow each other both on the disk and in the file, in one read.
    fn data(&mut self, at: FileOffset, mut end: u64) -> Result<Extent, ImageError> {
        let start = self.position;
        let cluster_size = self.header.cluster_size_bytes();
        while end < self.header.size.0 && end + cluster_size - start <= EXTENT_SIZE_BYTES_MAX as u64 {
            match self.look_up(end)? {
                (Mapping::Data(next), next_end) if next.0 == at.0 + (end - start) => end = next_end,
                _ => break,
            }
        }
        self.spend_clusters((end - start).div_ceil(cluster_size))?;
        self.position = end.min(self.header.size.0);
        let bytes = self.read_clusters(at, self.position - start)?;
        Ok(Extent::Data { start: ByteOffset(start), bytes: bytes.into() })
    }

    fn read_clusters(&self, at: FileOffset, length: u64) -> Result<Vec<u8>, ImageError> {
        if at.0 + length > self.file_length.0 {
            let (at, end) = (at.0, self.file_length.0);
            let what = format!("{length} bytes at byte {at} reach past its end at {end}: it was cut short");
            return Err(ImageError::Damaged { what });
        }
        let mut bytes = vec![0; length as usize];
        read_at(&self.file, at, &mut bytes)?;
        Ok(bytes)
    }

    /// A cluster of which some subclusters are zeros: put together in memory.
    fn subclusters(&mut self, at: FileOffset, allocated: u32) -> Result<Extent, ImageError> {
        self.spend_clusters(1)?;
        let cluster_size = self.header.cluster_size_bytes();
        let subcluster_size = (cluster_size / 32) as usize;
        // A file may end after the last subcluster in use.
        let used_size = u64::from(u32::BITS - allocated.leading_zeros()) * subcluster_size as u64;
        let mut cluster = self.read_clusters(at, used_size)?;
        cluster.resize(cluster_size as usize, 0);
        for (index, subcluster) in cluster.chunks_mut(subcluster_size).enumerate() {
            if allocated & (1 << index) == 0 {
                subcluster.fill(0);
            }
        }
        Ok(self.give_cluster(cluster))
    }

    fn compressed(&mut self, at: FileOffset, length: ByteCount) -> Result<Extent, ImageError> {
        let left = self.compressed_left.checked_sub(1);
        self.compressed_left = left.ok_or_else(|| too_many("compressed clusters", self.file_length))?;
        // At most 4 MiB, for clusters of 2 MiB.
        let mut compressed = vec![0; length.0 as usize];
        read_at(&self.file, at, &mut compressed)?;
        let mut cluster = vec![0; self.header.cluster_size_bytes() as usize];
        if !self.header.compression.decompress(&compressed, &mut cluster) {
            let at = at.0;
            let what = format!("the compressed cluster at byte {at} does not unpack to a whole cluster");
            return Err(ImageError::Damaged { what });
        }
        Ok(self.give_cluster(cluster))
    }

    fn give_cluster(&mut self, mut cluster: Vec<u8>) -> Extent {
        let start = ByteOffset(self.position);
        cluster.truncate((self.header.size.0 - self.position).min(cluster.len() as u64) as usize);
        self.position += cluster.len() as u64;
        Extent::Data { start, bytes: cluster.into() }
    }
}

impl Source for Reader {
    fn size(&self) -> Option<ByteCount> {
        Some(self.header.size)
    }

    fn next_extent(&mut self) -> Result<Option<Extent>, ImageError> {
        if self.position >= self.header.size.0 {
            return Ok(None);
        }
        let (mapping, end) = self.look_up(self.position)?;
        let extent = match mapping {
            Mapping::Zeros => self.zeros(end)?,
            Mapping::Data(at) => self.data(at, end)?,
            Mapping::Subclusters(at, allocated) => self.subclusters(at, allocated)?,
            Mapping::Compressed(at, length) => self.compressed(at, length)?,
        };
        Ok(Some(extent))
    }
}

fn too_many(what: &str, file_length: ByteCount) -> ImageError {
    let what = format!("its tables name more {what} than its {} bytes can hold", file_length.0);
    ImageError::Damaged { what }
}

fn big_endian(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_be_bytes(*word)).collect()
}
