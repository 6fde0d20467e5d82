//! The bytes of NBD, both ways: every message can be formatted and parsed.
//!
//! ```text
//! numbers     the constants            fields    bounded reading of foreign bytes
//! handshake   options and their replies (proto.md, "Fixed newstyle negotiation", "Option types")
//! request     what a client sends in transmission (proto.md, "Request message")
//! reply       simple and structured replies (proto.md, "Simple reply message", "Structured reply chunk message")
//! ```
//!
//! Invariants: parsing never panics, allocates at most what the (already bounded) input holds, and refuses what is left
//! over. Everything is big-endian (proto.md, "Protocol phases").
//!
//! Not here: sockets, and what to answer.

mod fields;
pub mod handshake;
pub mod numbers;
pub mod reply;
pub mod request;

pub use fields::{Fields, ProtoError};
