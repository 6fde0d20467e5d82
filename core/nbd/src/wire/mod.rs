//! Bytes between a socket and its messages, the same for both ends: input read in large pieces, output in batches.

mod input;
mod output;

pub(crate) use input::{Input, Partial};
pub(crate) use output::Output;
