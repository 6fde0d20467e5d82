//! Every decoder of bytes that come from outside, by family, in one table. `docs/decoders.md` lists them for people.
//!
//! ```text
//!                 ┌─▶ tests/properties.rs   seeds, noise, changed seeds, every cut, lengths that claim too much; memory
//!  FAMILIES ──────┼─▶ tests/cases.rs        what was ever found: fuzz/cases/<family>/*
//!  name, check,   └─▶ fuzz/fuzz_targets/    the same functions under a fuzzer (`make fuzz`), begun with the seeds
//!  seeds, memory
//! ```
//!
//! A `check` takes any bytes. It panics when a decoder breaks a promise: it panics itself, or what it took does not come
//! back the same when it is encoded and decoded again. Checksums stand in a fuzzer's way and prove nothing here, so bytes
//! with a checksum are also tried with the right one.
//!
//! Not here: sockets and files themselves (each crate's hostile tests have them), round trips of values that a strategy
//! makes (in the crates of the formats).

mod config;
mod disk;
mod docker;
mod image;
mod nbd;
mod registry;
mod replay;
mod rpc;
mod text;

/// Decoders that take the same kind of bytes.
pub struct Family {
    /// The name of its fuzz target and of its folder of cases.
    pub name: &'static str,
    /// Gives the bytes to the decoders and holds them to their promises; true when at least one took them.
    pub check: fn(&[u8]) -> bool,
    /// Bytes that are taken.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What a check may have allocated at once: so many bytes …
    pub memory_bytes: usize,
    /// … and so many for each byte of input.
    pub memory_per_byte: usize,
}

/// All of them.
pub static FAMILIES: [Family; 17] = [
    disk::BUFFER,
    disk::SCO,
    disk::FRAGMENT,
    disk::JOURNAL,
    disk::MAP,
    disk::MAP_COPY,
    replay::REPLAY,
    registry::REGISTRY,
    nbd::MESSAGES,
    nbd::SERVER,
    nbd::CLIENT,
    rpc::REQUEST,
    rpc::REPLY,
    docker::DOCKER,
    image::QCOW2,
    config::CONFIG,
    text::TEXT,
];

/// Checks bytes in the family of that name.
pub fn check(family: &str, bytes: &[u8]) -> bool {
    let family = FAMILIES.iter().find(|known| known.name == family);
    (family.expect("a family of the table").check)(bytes)
}

/// The first line, without its end, and the rest.
fn first_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}

/// The value that JSON says, if it says one; panics when it does not come back from its own JSON.
fn json<T>(bytes: &[u8]) -> Option<T>
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let value: T = serde_json::from_slice(bytes).ok()?;
    let text = serde_json::to_vec(&value).expect("what was read from JSON has a form in JSON");
    let again: Option<T> = serde_json::from_slice(&text).ok();
    assert_eq!(again.as_ref(), Some(&value), "from {}", String::from_utf8_lossy(&text));
    Some(value)
}
