//! NBD: the protocol, a server for ovsd, a client for ovsd-edge and the command line.
//!
//! ```text
//!  socket ──▶ server::negotiation ──▶ Exports::open ──▶ server::transmission ⇄ Device    one thread, local futures
//!  Client (any thread) ──▶ driver task: connect, negotiate, send, match replies, reconnect, resend
//!                 both ends: proto (bytes ⇄ messages), wire (buffered input, batched output)
//! ```
//!
//! Source of every protocol fact: `doc/proto.md` of the NBD project, cited by section as "proto.md, ...".
//!
//! Invariants:
//! * Bytes from the other end never panic, and no length of theirs is allocated before it is bounded.
//! * A request that a device has been given is awaited to its end, whatever happens to the connection.
//! * A successor of a session is admitted only after everything of its predecessors has come to its end.
//! * What is in flight is bounded (requests and bytes); past the bound the socket is not read.
//!
//! Over TCP there is TLS or nothing (`server::secure`); unix sockets refuse it with a policy error. Who is trusted is the
//! caller's business: both ends are handed a finished configuration of `rustls`.
//!
//! Not here: what a vDisk is, attachments, certificate files, any file or disk.

mod client;
mod device;
mod error;
pub mod proto;
mod server;
mod session;
mod tcp;
mod wire;

pub use client::{Client, ClientError, ClientOptions, ClientStats, Endpoint, Negotiated, negotiate};
pub use device::{
    Asked, ClientInfo, Device, ExportInfo, Exports, Extent, OpenError, Peer, PeerProcess, ReadPiece,
    ReadReply, ZeroKind,
};
pub use error::NbdError;
pub use server::{
    Secured, Server, ServerOptions, ServerStats, TlsConfigs, TlsGate, accept_tcp, serve_connection,
    serve_secured, serve_secured_connection, serve_unix,
};
pub use session::{Generation, Session, SessionId};
