//! What threads share: the standard library's, or under the feature `shuttle` that of a scheduler which tries other
//! orders (`dir/concurrency.rs`).

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};
