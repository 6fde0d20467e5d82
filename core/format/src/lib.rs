//! Bytes on disk and on the backend: what each format looks like and how it is checked. `docs/ondisk.md` says it in prose.
//!
//! ```text
//!  write buffer slot = segment header block, then batches       log.rs
//!  SCO object        = header with a checksum per cluster, data  sco.rs
//!  journal object    = one record: start, TLog, snapshot …       journal.rs
//!  map page          = 512 places or 512 children                page.rs
//!  table entry       = where the clusters of an SCO are now       table.rs
//!  map copy          = map pages on the backend                  map_copy.rs
//!  tombstone        = a vDisk is deleted                    tombstone.rs
//!  fragment         = a part of an object on a drive          fragment.rs
//! ```
//!
//! Every decoder takes hostile bytes: lengths are checked before anything is allocated, nothing panics. Not here: I/O.

mod cursor;
mod error;
pub mod fragment;
pub mod journal;
pub mod leaf;
pub mod log;
pub mod map_copy;
pub mod page;
pub mod sco;
pub mod table;
pub mod tombstone;

pub use error::FormatError;

/// The checksum used everywhere: CRC-32C (Castagnoli).
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Writes the checksum of everything but itself at `at`.
fn seal(bytes: &mut [u8], at: usize) {
    let sum = sum_around(bytes, at);
    bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

fn sum_around(bytes: &[u8], at: usize) -> u32 {
    crc32c::crc32c_append(checksum(&bytes[..at]), &bytes[at + 4..])
}

fn check_seal(what: &'static str, bytes: &[u8], at: usize, expected: u32) -> Result<(), FormatError> {
    let found = sum_around(bytes, at);
    if found == expected { Ok(()) } else { Err(FormatError::Checksum { what, expected, found }) }
}
