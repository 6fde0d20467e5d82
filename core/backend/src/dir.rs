//! STUB: the directory backend; see the trait for its promises.
use std::path::PathBuf;
/// Options of a directory backend.
#[derive(Debug, Clone)]
pub struct DirOptions {
    /// Its folder.
    pub path: PathBuf,
    /// Space kept for `Urgency::Reserve`.
    pub reserve_bytes: u64,
}
/// Objects as files below a directory.
#[derive(Debug)]
pub struct DirBackend;
