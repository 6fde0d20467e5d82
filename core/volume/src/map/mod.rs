//! The map of a vDisk: which cluster lives where on the backend; copy-on-write, checkpointed in pages.

mod checkpoint;
pub(crate) mod copy;
mod marks;
mod memory;
mod table;
mod tree;

pub(crate) use checkpoint::Checkpoint;
pub(crate) use marks::Marks;
pub(crate) use memory::MapMemory;
pub use memory::MapStats;
pub(crate) use table::Table;
pub(crate) use tree::{Place, Prepared, TOP_LEVEL, Tree};
