//! Bytes and clusters of one vDisk.

use serde::{Deserialize, Serialize};

/// The mapping unit of a vDisk, 4 KiB.
pub const CLUSTER_SIZE_BYTES: u64 = 4096;

/// A byte position in a vDisk.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct ByteOffset(pub u64);

/// A number of bytes.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

impl ByteCount {
    /// The clusters that hold this many bytes, the last one perhaps in part.
    pub fn clusters_rounded_up(self) -> ClusterCount {
        ClusterCount(self.0.div_ceil(CLUSTER_SIZE_BYTES))
    }

    /// This count rounded up to whole clusters.
    pub fn rounded_up(self) -> ByteCount {
        ByteCount(self.0.div_ceil(CLUSTER_SIZE_BYTES).saturating_mul(CLUSTER_SIZE_BYTES))
    }
}

/// Bytes `start .. start + length` of a vDisk; never past 2^64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub start: ByteOffset,
    /// How many.
    pub length: ByteCount,
}

impl ByteRange {
    /// `None` when the end would not fit 64 bits.
    pub fn new(start: ByteOffset, length: ByteCount) -> Option<ByteRange> {
        start.0.checked_add(length.0).map(|_| ByteRange { start, length })
    }

    /// One past the last byte.
    pub fn end(self) -> ByteOffset {
        ByteOffset(self.start.0 + self.length.0)
    }

    /// True when nothing lies past `size`.
    pub fn is_within(self, size: ByteCount) -> bool {
        self.end().0 <= size.0
    }

    /// The clusters that the range touches, those at its ends perhaps in part.
    pub fn clusters_touched(self) -> ClusterRange {
        if self.length.0 == 0 {
            return ClusterRange {
                start: Cluster(self.start.0 / CLUSTER_SIZE_BYTES),
                count: ClusterCount(0),
            };
        }
        let first = self.start.0 / CLUSTER_SIZE_BYTES;
        let end = self.end().0.div_ceil(CLUSTER_SIZE_BYTES);
        ClusterRange { start: Cluster(first), count: ClusterCount(end - first) }
    }

    /// The clusters that the range covers whole; may be none.
    pub fn clusters_covered(self) -> ClusterRange {
        let first = self.start.0.div_ceil(CLUSTER_SIZE_BYTES);
        let end = self.end().0 / CLUSTER_SIZE_BYTES;
        ClusterRange { start: Cluster(first), count: ClusterCount(end.saturating_sub(first)) }
    }

    /// True when both ends lie on cluster boundaries.
    pub fn is_aligned(self) -> bool {
        self.start.0.is_multiple_of(CLUSTER_SIZE_BYTES) && self.length.0.is_multiple_of(CLUSTER_SIZE_BYTES)
    }
}

/// The index of a cluster in a vDisk: byte offset / 4096.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct Cluster(pub u64);

impl Cluster {
    /// The cluster's first byte.
    pub fn byte_offset(self) -> ByteOffset {
        ByteOffset(self.0 * CLUSTER_SIZE_BYTES)
    }
}

/// A number of clusters.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct ClusterCount(pub u64);

impl ClusterCount {
    /// These clusters in bytes.
    pub fn bytes(self) -> ByteCount {
        ByteCount(self.0 * CLUSTER_SIZE_BYTES)
    }
}

/// Clusters `start .. start + count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterRange {
    /// The first cluster.
    pub start: Cluster,
    /// How many.
    pub count: ClusterCount,
}

impl ClusterRange {
    /// One past the last cluster.
    pub fn end(self) -> Cluster {
        Cluster(self.start.0 + self.count.0)
    }

    /// True when the range holds no cluster.
    pub fn is_empty(self) -> bool {
        self.count.0 == 0
    }

    /// The same range in bytes.
    pub fn bytes(self) -> ByteRange {
        ByteRange { start: self.start.byte_offset(), length: self.count.bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(start: u64, length: u64, touched: (u64, u64), covered: (u64, u64)) {
        let range = ByteRange::new(ByteOffset(start), ByteCount(length)).unwrap();
        let (t, c) = (range.clusters_touched(), range.clusters_covered());
        assert_eq!((t.start.0, t.count.0), touched, "touched");
        assert_eq!((c.start.0, c.count.0), covered, "covered");
    }

    #[test]
    fn ragged_ranges_touch_more_than_they_cover() {
        check(0, 4096, (0, 1), (0, 1));
        check(1, 4096, (0, 2), (1, 0));
        check(1, 8191, (0, 2), (1, 1));
        check(4095, 2, (0, 2), (1, 0));
        check(10, 5, (0, 1), (1, 0));
        check(8192, 0, (2, 0), (2, 0));
    }

    #[test]
    fn a_range_past_64_bits_does_not_exist() {
        assert_eq!(ByteRange::new(ByteOffset(u64::MAX), ByteCount(1)), None);
    }
}
