//! The engine through its public interface: one small case per behaviour.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

mod buffer;
mod cache;
mod copies;
mod deletion;
mod lifecycle;
mod limits;
mod maps;
mod pages;
mod recovery;
mod requests;
mod scrub;
mod world;
