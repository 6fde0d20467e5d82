//! Compressed clusters: each one is a stream of its own, and ends anywhere in its last sector.

use std::io::Read;

/// `compression_type` of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Raw deflate, without a zlib header.
    #[default]
    Deflate,
    /// One zstd frame.
    Zstd,
}

/// More than any cluster needs (2 MiB), so that a frame cannot ask for more memory than this.
const ZSTD_WINDOW_SIZE_BYTES_MAX: u64 = 8 << 20;

impl Compression {
    /// Fills `cluster` from `compressed`, whose tail may be anything. False when it does not give a whole cluster.
    pub fn decompress(self, compressed: &[u8], cluster: &mut [u8]) -> bool {
        match self {
            Compression::Deflate => inflate(compressed, cluster),
            Compression::Zstd => ruzstd::decoding::StreamingDecoder::new_with_max_window_size(
                compressed,
                ZSTD_WINDOW_SIZE_BYTES_MAX,
            )
            .is_ok_and(|mut decoder| decoder.read_exact(cluster).is_ok()),
        }
    }
}

fn inflate(compressed: &[u8], cluster: &mut [u8]) -> bool {
    use miniz_oxide::inflate::{TINFLStatus, core};
    let flags = core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = core::DecompressorOxide::new();
    let (status, _, written) = core::decompress(&mut state, compressed, cluster, 0, flags);
    // A full cluster is enough, even when the stream's end mark is still to come.
    written == cluster.len() && matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput)
}
