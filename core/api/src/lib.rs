//! The core RPC: its words, its operations, its client.
mod paths;
mod problem;
mod reference;
pub mod types;

pub use paths::Paths;
pub use problem::{Problem, ProblemKind};
pub use reference::{RefError, SnapshotRef, VdiskRef};
pub use types::*;
