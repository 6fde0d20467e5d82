//! `ovsd`: one host's vDisks behind its doors.
//!
//! ```text
//!  main: configuration, logs, signals ─▶ engine thread: Volumes (engine, catalogue, attachments), NBD sockets
//!                                     └▶ main runtime:  RPC (rpc) ─▶ Core ─▶ EngineHandle ─▶ Volumes
//! ```
//!
//! | where is | look in |
//! |---|---|
//! | the configuration file | `config` |
//! | the thread that owns everything, and the way onto it | `engine_thread` |
//! | what an RPC operation does | `core` (one method each), `volumes` (how) |
//! | what an NBD client sees | `device`; sockets and their owners in `sockets` |
//! | HTTP; who may over TCP: certificates, tokens | `rpc` |
//! | the doors over TCP | `tcp`; NBD behind TLS in `sockets` |
//! | certificates of the doors over TCP, read again when they change | `tls` |
//! | events, tasks, metrics | `events`, `tasks`, `metrics` |
//! | what is asked of the kernel and the service manager | `process`, `notify` |

pub mod config;
pub mod core;
pub mod device;
pub mod engine_thread;
pub mod events;
pub mod metrics;
pub mod notify;
pub mod process;
pub mod rpc;
pub mod service;
pub mod sockets;
pub mod tasks;
pub mod tcp;
pub mod tls;
pub mod volumes;
