//! A vPool's own folder on a backend, and its record in there.
//!
//! ```text
//!  <backend path>/vpool-<uuid>/            the vPool's own folder (namespace), a directory backend of its own
//!  <backend path>/vpool-<uuid>/pool/config-<version>     its record, write-once: the highest version counts
//! ```

use super::problem::{from_backend, from_catalogue};
use crate::process::make_durable_folder;
use bytes::Bytes;
use ovs_api::{Problem, ProblemKind};
use ovs_backend::{Backend, BackendError, DirBackend, DirOptions, ObjectName, Urgency};
use ovs_cluster::catalogue::{VpoolRecord, decode};
use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

/// A vPool's record on its backend is never longer than this.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

fn config_name(version: u64) -> ObjectName {
    // Twenty digits: names sort as versions do.
    ObjectName::new(format!("pool/config-{version:020}")).expect("digits are allowed in object names")
}

/// Stores a version of the vPool's record. A version that holds something else is a second vPool in this folder.
pub(super) async fn put_config(store: &dyn Backend, record: &VpoolRecord) -> Result<(), Problem> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| Problem::new(ProblemKind::Internal, format!("a vPool's record: {error}")))?;
    match store.put(&config_name(record.version), vec![Bytes::from(bytes)], Urgency::Reserve).await {
        Err(BackendError::Conflict { object }) => {
            let detail =
                format!("object {object} of vPool {} exists: another vPool lives there", record.name);
            Err(Problem::new(ProblemKind::InUse, detail))
        }
        other => other.map_err(from_backend),
    }
}

/// The newest version of the vPool's record on a backend.
pub(super) async fn get_config(store: &dyn Backend) -> Result<Option<VpoolRecord>, Problem> {
    let Some(version) = newest_version(store).await? else { return Ok(None) };
    let name = config_name(version);
    let bytes = store.get_range(&name, 0, CONFIG_BYTES_MAX).await.map_err(from_backend)?;
    decode(name.as_str(), &bytes).map(Some).map_err(from_catalogue)
}

pub(super) async fn newest_version(store: &dyn Backend) -> Result<Option<u64>, Problem> {
    let (mut newest, mut after) = (None, None);
    loop {
        let found = store.list("pool/config-", after.as_ref(), 1000).await.map_err(from_backend)?;
        let Some(last) = found.last() else { return Ok(newest) };
        // Another object's name may be a number too: only a name that we would give is a version of ours.
        let version = |name: &ObjectName| {
            let version = name.as_str().strip_prefix("pool/config-")?.parse().ok()?;
            (config_name(version) == *name).then_some(version)
        };
        let versions = found.iter().filter_map(|info| version(&info.name));
        newest = versions.max().max(newest);
        after = Some(last.name.clone());
    }
}

/// Whether a vPool's folder must be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Namespace {
    New,
    Existing,
}

/// Opens a vPool's own folder on a backend. See [`super::Settings::io_uring`].
pub(super) async fn open_namespace(
    path: &str,
    namespace: &str,
    expected: Namespace,
    io_uring: bool,
) -> Result<Rc<dyn Backend>, Problem> {
    let folder = Path::new(path).join(namespace);
    let opened = tokio::task::spawn_blocking(move || {
        let options = DirOptions { io_uring, ..DirOptions::new(folder) };
        match expected {
            Namespace::New => DirBackend::open(options),
            Namespace::Existing => DirBackend::open_existing(options),
        }
    });
    match opened.await {
        Ok(store) => Ok(Rc::new(store.map_err(from_backend)?)),
        Err(error) => Err(Problem::new(ProblemKind::Internal, format!("opening a backend: {error}"))),
    }
}

pub(super) async fn make_folder(path: &Path) -> std::io::Result<()> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || make_durable_folder(&path)).await.map_err(std::io::Error::other)?
}

pub(super) async fn remove_folder(path: PathBuf) -> std::io::Result<()> {
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&path)).await;
    match removed.map_err(std::io::Error::other)? {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The path with links resolved as far as it exists.
pub(super) async fn real_path(path: &Path) -> PathBuf {
    let path = path.to_owned();
    let resolved = tokio::task::spawn_blocking(move || {
        let mut missing = Vec::new();
        let mut existing = path.as_path();
        loop {
            if let Ok(mut real) = existing.canonicalize() {
                real.extend(missing.iter().rev());
                return real;
            }
            match (existing.parent(), existing.file_name()) {
                (Some(parent), Some(name)) => {
                    missing.push(name.to_owned());
                    existing = parent;
                }
                _ => return path.clone(),
            }
        }
    });
    resolved.await.unwrap_or_default()
}

pub(super) async fn folder_space(path: PathBuf) -> Option<(u64, u64)> {
    let space = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&path).ok()).await.ok()??;
    Some((space.f_blocks.saturating_mul(space.f_frsize), space.f_bavail.saturating_mul(space.f_frsize)))
}

pub(super) fn cannot_use(path: &Path, error: &std::io::Error) -> Problem {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull => ProblemKind::NoSpace,
        _ => ProblemKind::Conflict,
    };
    Problem::new(kind, format!("path: {} cannot be used: {error}", path.display()))
}
