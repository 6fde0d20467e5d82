//! The model of a vDisk's or snapshot's contents: clusters in a map, holes are zeros.

use ovs_units::{ByteCount, ByteOffset, ByteRange, CLUSTER_SIZE_BYTES, Cluster};
use std::{collections::BTreeMap, rc::Rc};

/// Contents at one moment. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    size_bytes: u64,
    clusters: BTreeMap<u64, Rc<Vec<u8>>>,
}

impl Content {
    /// Zeros.
    pub fn new(size: ByteCount) -> Content {
        Content { size_bytes: size.0, clusters: BTreeMap::new() }
    }

    /// Its size.
    pub fn size(&self) -> ByteCount {
        ByteCount(self.size_bytes)
    }

    /// Clusters that were ever written, and their neighbours, within the size: what is worth reading of a large one.
    pub fn interesting(&self) -> Vec<Cluster> {
        let count = self.size_bytes / CLUSTER_SIZE_BYTES;
        let near = |at: &u64| [at.saturating_sub(1), *at, at + 1];
        let mut all: Vec<u64> = self.clusters.keys().flat_map(near).filter(|at| *at < count).collect();
        all.dedup();
        all.sort_unstable();
        all.dedup();
        all.into_iter().map(Cluster).collect()
    }

    /// Puts bytes at an offset.
    pub fn write(&mut self, offset: ByteOffset, data: &[u8]) {
        let mut at = offset.0;
        let mut rest = data;
        while !rest.is_empty() {
            let (cluster, from) = (at / CLUSTER_SIZE_BYTES, (at % CLUSTER_SIZE_BYTES) as usize);
            let length = rest.len().min(CLUSTER_SIZE_BYTES as usize - from);
            let bytes =
                self.clusters.entry(cluster).or_insert_with(|| Rc::new(vec![0; CLUSTER_SIZE_BYTES as usize]));
            Rc::make_mut(bytes)[from..from + length].copy_from_slice(&rest[..length]);
            at += length as u64;
            rest = &rest[length..];
        }
    }

    /// Zeros a range, which may be huge.
    pub fn zero(&mut self, range: ByteRange) {
        let covered = range.clusters_covered();
        self.clusters.retain(|at, _| !(covered.start.0..covered.end().0).contains(at));
        let touched = range.clusters_touched();
        for edge in [touched.start.0, touched.end().0.saturating_sub(1)] {
            let from = range.start.0.max(edge * CLUSTER_SIZE_BYTES);
            let to = range.end().0.min((edge + 1) * CLUSTER_SIZE_BYTES);
            if from < to && self.clusters.contains_key(&edge) {
                self.write(ByteOffset(from), &vec![0; (to - from) as usize]);
            }
        }
    }

    /// The bytes of a range.
    pub fn read(&self, range: ByteRange) -> Vec<u8> {
        let mut bytes = vec![0; range.length.0 as usize];
        let touched = range.clusters_touched();
        for (at, cluster) in self.clusters.range(touched.start.0..touched.end().0) {
            let first = at * CLUSTER_SIZE_BYTES;
            let (from, to) = (range.start.0.max(first), range.end().0.min(first + CLUSTER_SIZE_BYTES));
            bytes[(from - range.start.0) as usize..(to - range.start.0) as usize]
                .copy_from_slice(&cluster[(from - first) as usize..(to - first) as usize]);
        }
        bytes
    }

    /// Is a cluster the same in both?
    pub fn same_at(&self, other: &Content, cluster: Cluster) -> bool {
        let zeros = |bytes: &Vec<u8>| bytes.iter().all(|byte| *byte == 0);
        match (self.clusters.get(&cluster.0), other.clusters.get(&cluster.0)) {
            (None, None) => true,
            (Some(one), Some(other)) => Rc::ptr_eq(one, other) || one == other,
            (Some(bytes), None) | (None, Some(bytes)) => zeros(bytes),
        }
    }

    /// The first cluster in which they differ, but for some.
    pub fn difference(&self, other: &Content, but_for: impl Fn(Cluster) -> bool) -> Option<Cluster> {
        let mut all: Vec<u64> = self.clusters.keys().chain(other.clusters.keys()).copied().collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter().map(Cluster).find(|cluster| !but_for(*cluster) && !self.same_at(other, *cluster))
    }

    /// Grows or shrinks; what is cut off is zeros if it comes back.
    pub fn resize(&mut self, size: ByteCount) {
        let end = size.0.div_ceil(CLUSTER_SIZE_BYTES);
        self.clusters.retain(|at, _| *at < end);
        self.size_bytes = size.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, length: u64) -> ByteRange {
        ByteRange::new(ByteOffset(start), ByteCount(length)).unwrap()
    }

    /// The model against the plainest model there is.
    #[test]
    fn content_is_a_vector_of_bytes() {
        let random = crate::Random::new(1);
        let (mut content, mut plain) = (Content::new(ByteCount(64 << 10)), vec![0u8; 64 << 10]);
        for _ in 0..2000 {
            let start = random.below(64 << 10);
            let length = random.below((64 << 10) - start + 1).min(random.below(20_000));
            let at = start as usize..(start + length) as usize;
            match random.below(3) {
                0 => {
                    let data = vec![random.next() as u8; length as usize];
                    content.write(ByteOffset(start), &data);
                    plain[at].copy_from_slice(&data);
                }
                1 => {
                    content.zero(range(start, length));
                    plain[at].fill(0);
                }
                _ => assert_eq!(content.read(range(start, length)), plain[at]),
            }
        }
        content.resize(ByteCount(8192));
        content.resize(ByteCount(16384));
        plain[8192..16384].fill(0);
        assert_eq!(content.read(range(0, 16384)), plain[..16384]);
    }
}
