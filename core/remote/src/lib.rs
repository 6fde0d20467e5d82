//! Objects in S3, Swift, Google's and Azure's stores: one [`ovs_backend::Backend`] over OpenDAL.
//!
//! ```text
//!  RemoteStore, Credentials ─▶ RemoteBackend ─▶ attempts (operation.rs) ─▶ operator (operators.rs; Swift's token: swift.rs)
//!                                                                     ─▶ OpenDAL ─▶ http.rs, paced and watched ─▶ the store
//!                                                                                ◀─ answer.rs: its own, whole? ◀─
//! ```
//!
//! Invariants
//! * No type of OpenDAL's leaves this crate.
//! * No safety rests on a conditional put; [`Probe`] says what the store makes of one, to be shown.
//! * No secret is in an error, a log or a `Debug`.
//!
//! Not here: reading configuration (a reference to a secret is resolved by [`SecretReference`], when its owner asks), and
//! which stores make a backend.

mod answer;
mod backend;
mod checksum;
mod failure;
mod http;
mod operation;
mod operators;
mod pace;
mod probe;
mod redact;
mod secret;
mod store;
mod swift;

pub use backend::{OpenError, RemoteBackend, RemoteOptions};
pub use probe::{Probe, PutIfAbsent};
pub use secret::{Credentials, Secret, SecretError, SecretReference};
pub use store::{KeystoneProject, Limits, RemoteKind, RemoteStore};
