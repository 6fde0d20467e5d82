//! Who is who and where: names of vPools and vDisks, and the registry that holds them.
//!
//! ```text
//!  service ─▶ catalogue (names, records) ─▶ Registry (trait of ovs-volume) ─▶ RocksRegistry ─┐
//!  engine  ─▶ heads, checkpoints ─────────▶ Registry, PageStore ──────────▶ RocksPages ────┴▶ one RocksDB
//! ```
//!
//! Invariant: nothing lives here alone; what RocksDB holds can be rebuilt from the write buffer and the backends. Not
//! here: blocks and maps (`ovs-volume`), the RPC (`ovs-service`).

pub mod catalogue;
mod rocks;

pub use rocks::{OpenFailure, RocksPages, RocksRegistry, RocksStore};

/// Decoders of outside bytes that are nobody else's business: for `tests/decoders` alone.
#[doc(hidden)]
pub mod decoders {
    pub use crate::catalogue::pointer;
    pub use crate::rocks::decode_entry;
}
