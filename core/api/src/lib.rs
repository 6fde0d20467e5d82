//! The core RPC: its words, its operations, its client.
//!
//! ```text
//!                 ┌─▶ openapi: the document that ovsd serves
//!  types ─ table ─┼─▶ the router in ovs-service
//!   (operations)  └─▶ client: one typed method per operation ─▶ /run/ovs/ovsd.sock ─▶ ovsd
//! ```
//!
//! HTTP/1.1 and JSON over a unix socket, or over TLS; everything under `/v1/`. A create compares with the stored original request;
//! every object has a UUID and a revision; changes accept `If-Match`; errors are RFC 9457 problem documents; lists come
//! in pages; events are server-sent and resume. What each door makes of it: `docs/api-map.md`.
//!
//! Invariant: what is not in the table does not exist, and what is in it is in the document, the router and the client.
//! Not here: what the operations do (`ovs-service`), data (`ovs-nbd`), configuration.

mod client;
mod openapi;
mod operations;
mod paths;
mod problem;
mod reference;
mod reply;
pub mod tls;
mod types;

pub use client::{ApiError, Client, EdgeClient, Events, Remote, TIMEOUT_DEFAULT, Token};
pub use openapi::{QueryKind, openapi};
pub use operations::{Method, OPERATIONS, Operation, SchemaOf};
pub use paths::Paths;
pub use problem::{Problem, ProblemKind};
pub use reference::{RefError, SnapshotRef, VdiskRef};
pub use reply::{
    Accepted, Created, EncodedReply, EventStream, JsonReply, METRICS_CONTENT_TYPE, MetricsText, NoContent,
    OpenApiDocument, Reply, ReplyDoc, Resource,
};
pub use types::*;

/// Decoders of outside bytes that are nobody else's business: for `tests/decoders` alone.
#[doc(hidden)]
pub mod decoders {
    pub use crate::client::LineReader;
}
