//! What is lost, damaged or taken over by another host: what is served then, and what it must never do to others.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

mod backend;
mod buffer;
mod host;
mod maps;
mod overlaps;
mod registry;
