//! `pool/layout-…`: what each drive of a vPool keeps of the whole, so that one of them alone tells which the others are and how
//! they are read. An object as it is, not in fragments; written when the vPool is made.
//!
//! `pool/drive-<uuid>`: beside it, which of them that one is.

use super::{
    drive::cannot_open,
    namespace::Namespace,
    problem::{from_backend, from_catalogue},
};
use bytes::Bytes;
use ovs_api::{Problem, ProblemKind};
use ovs_backend::{Backend, BackendError, ObjectInfo, ObjectName, Urgency};
use ovs_cluster::catalogue::{LayoutRecord, decode};
use uuid::Uuid;

const DRIVE_PREFIX: &str = "pool/drive-";
/// A layout on a backend is never longer than this.
const LAYOUT_BYTES_MAX: u64 = 4 << 20;

fn layout_name() -> ObjectName {
    ObjectName::new(format!("pool/layout-{:020}", 1)).expect("digits are allowed in object names")
}

pub(super) async fn put_layout(store: &dyn Backend, layout: &LayoutRecord) -> Result<(), Problem> {
    let bytes = serde_json::to_vec(layout)
        .map_err(|error| Problem::new(ProblemKind::Internal, format!("a vPool's layout: {error}")))?;
    if bytes.len() as u64 > LAYOUT_BYTES_MAX {
        let detail = format!(
            "backend: its drives and presets take {} bytes to describe: at most {LAYOUT_BYTES_MAX} can be read again",
            bytes.len()
        );
        return Err(Problem::new(ProblemKind::Conflict, detail));
    }
    store.put(&layout_name(), vec![Bytes::from(bytes)], Urgency::Reserve).await.map_err(from_backend)
}

pub(super) async fn get_layout(store: &dyn Backend) -> Result<Option<LayoutRecord>, Problem> {
    let name = layout_name();
    match store.get_range(&name, 0, LAYOUT_BYTES_MAX).await {
        Ok(bytes) => decode(name.as_str(), &bytes).map(Some).map_err(from_catalogue),
        Err(BackendError::NotFound { .. }) => Ok(None),
        Err(error) => Err(from_backend(error)),
    }
}

fn drive_name(drive: Uuid) -> ObjectName {
    ObjectName::new(format!("{DRIVE_PREFIX}{drive}")).expect("digits are allowed in object names")
}

/// The drives that a place says it is: one, unless something is wrong.
pub(super) async fn drives_at(store: &dyn Backend) -> Result<Vec<Uuid>, BackendError> {
    let found = store.list(DRIVE_PREFIX, None, 1000).await?;
    let drive = |info: &ObjectInfo| Uuid::try_parse(info.name.as_str().strip_prefix(DRIVE_PREFIX)?).ok();
    Ok(found.iter().filter_map(drive).collect())
}

/// A place is the drive that it is taken for: no other, by a mount that changed places with another's, and not two, by two
/// spellings of one address. A new one is told which it is.
pub(super) async fn check_drive(
    store: &dyn Backend,
    drive: Uuid,
    expected: Namespace,
) -> Result<(), BackendError> {
    let mut found = drives_at(store).await?;
    if expected == Namespace::New && found.is_empty() {
        let name = drive_name(drive);
        store.put(&name, vec![Bytes::from(drive.to_string())], Urgency::Reserve).await?;
        // Somebody else may have begun there meanwhile: at least one of two sees the other.
        found = drives_at(store).await?;
    }
    match found.iter().find(|other| **other != drive) {
        Some(other) => Err(cannot_open(format!("the place of drive {other} is there, not that of {drive}"))),
        None if found.is_empty() => Err(cannot_open("nothing of this vPool is there".into())),
        None => Ok(()),
    }
}
