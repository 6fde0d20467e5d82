//! Finds the zero clusters inside data, so that a thin disk stays thin.

use super::Extent;
use bytes::Bytes;
use ovs_units::{ByteCount, ByteOffset, CLUSTER_SIZE_BYTES};

static ZERO_CLUSTER: [u8; CLUSTER_SIZE_BYTES as usize] = [0; CLUSTER_SIZE_BYTES as usize];

/// True when every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZERO_CLUSTER.len()).all(|chunk| *chunk == ZERO_CLUSTER[..chunk.len()])
}

/// Splits data into runs that hold something and runs of zeros, at multiples of 4 KiB of the disk. Zeros stay as
/// they are.
pub fn split(extent: Extent) -> Vec<Extent> {
    let Extent::Data { start, bytes } = extent else { return vec![extent] };
    let mut runs: Vec<Extent> = Vec::new();
    let mut run = 0..0;
    let mut run_is_zero = false;
    while run.end < bytes.len() {
        let disk_at = start.0 + run.end as u64;
        let to_boundary = (CLUSTER_SIZE_BYTES - disk_at % CLUSTER_SIZE_BYTES) as usize;
        let piece_end = bytes.len().min(run.end + to_boundary);
        let piece_is_zero = is_zero(&bytes[run.end..piece_end]);
        if piece_is_zero != run_is_zero && !run.is_empty() {
            runs.push(make(start, &bytes, run.clone(), run_is_zero));
            run.start = run.end;
        }
        run_is_zero = piece_is_zero;
        run.end = piece_end;
    }
    if !run.is_empty() {
        runs.push(make(start, &bytes, run, run_is_zero));
    }
    runs
}

fn make(start: ByteOffset, bytes: &Bytes, run: std::ops::Range<usize>, is_zero: bool) -> Extent {
    let start = ByteOffset(start.0 + run.start as u64);
    if is_zero {
        Extent::Zeros { start, length: ByteCount(run.len() as u64) }
    } else {
        Extent::Data { start, bytes: bytes.slice(run) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `clusters`: a letter per half cluster, `.` for zeros; `expected`: a letter per run, with its length in bytes.
    fn check(start: u64, halves: &str, expected: &[(char, u64)]) {
        let mut bytes = Vec::new();
        for half in halves.chars() {
            bytes.extend(std::iter::repeat_n(if half == '.' { 0 } else { half as u8 }, 2048));
        }
        let runs = split(Extent::Data { start: ByteOffset(start), bytes: bytes.clone().into() });
        let mut at = start;
        let mut found = Vec::new();
        for run in &runs {
            assert_eq!(run.start().0, at, "no gap and no overlap");
            at = run.end().0;
            found.push((if matches!(run, Extent::Zeros { .. }) { '.' } else { 'd' }, run.length().0));
        }
        assert_eq!(at, start + bytes.len() as u64);
        assert_eq!(found, expected);
    }

    #[test]
    fn zero_clusters_are_found_at_cluster_boundaries() {
        check(0, "aabb", &[('d', 8192)]);
        check(0, "....", &[('.', 8192)]);
        check(0, "aa..bb", &[('d', 4096), ('.', 4096), ('d', 4096)]);
        check(0, "..a.....", &[('.', 4096), ('d', 4096), ('.', 8192)]);
        check(0, "a.", &[('d', 4096)]);
    }

    #[test]
    fn a_ragged_start_and_end_are_pieces_of_their_own() {
        check(2048, ".a.", &[('.', 2048), ('d', 4096)]);
        check(6144, "a...", &[('d', 2048), ('.', 6144)]);
    }
}
