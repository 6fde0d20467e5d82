//! qcow2, versions 2 and 3, whole in one file. Field names and offsets are those of `docs/interop/qcow2.rst` in QEMU.
//!
//! ```text
//! header ─▶ L1 table ─▶ L2 table ─▶ cluster: absent | zeros | at an offset | compressed at an offset
//! ```
//!
//! The file is hostile: every offset is checked against its length, every table is bounded before it is allocated,
//! and tables that name more clusters than the file can hold are refused, so that a small file cannot make us
//! write for days.
//!
//! Not here: backing files, external data files and encryption (refused, with what to do instead), internal
//! snapshots (their data is ignored) and reference counts (not needed to read).

mod compression;
mod header;
mod reader;
mod table;
mod writer;

pub use header::Header;
pub use reader::Reader;
pub use writer::Writer;

/// The first four bytes: `QFI` and 0xfb.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
