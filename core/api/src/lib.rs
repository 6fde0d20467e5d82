//! The core RPC: its words, its operations, its client.
pub mod operations;
mod paths;
mod problem;
mod reference;
mod reply;
pub mod types;

pub use operations::{Method, OPERATIONS, Operation};
pub use paths::Paths;
pub use problem::{Problem, ProblemKind};
pub use reference::{RefError, SnapshotRef, VdiskRef};
pub use reply::{
    Accepted, Created, EncodedReply, EventStream, JsonReply, METRICS_CONTENT_TYPE, MetricsText, NoContent,
    OpenApiDocument, Reply, ReplyDoc, Resource,
};
pub use types::*;
