//! Why bytes were refused.

use thiserror::Error;

/// Bytes that are not what they should be; the text says what was expected and found.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the fields are what the texts say")]
pub enum FormatError {
    /// The bytes end too early.
    #[error("{what}: {found} bytes where at least {expected} are needed")]
    Short { what: &'static str, expected: usize, found: usize },
    /// Not this kind of bytes.
    #[error("{what}: wrong magic number")]
    Magic { what: &'static str },
    /// A version that this program does not know.
    #[error("{what}: version {found} is not known")]
    Version { what: &'static str, found: u64 },
    /// The checksum does not match.
    #[error("{what}: checksum {found:08x} where {expected:08x} was expected")]
    Checksum { what: &'static str, expected: u32, found: u32 },
    /// A field that cannot be.
    #[error("{what}: {field} cannot be {found}")]
    Field { what: &'static str, field: &'static str, found: u64 },
}
