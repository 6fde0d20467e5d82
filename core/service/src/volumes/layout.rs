//! `pool/layout-…`: what each drive of a vPool keeps of the whole, so that one of them alone tells which the others are and how
//! they are read. An object as it is, not in fragments; written when the vPool is made.

use super::problem::{from_backend, from_catalogue};
use bytes::Bytes;
use ovs_api::{Problem, ProblemKind};
use ovs_backend::{Backend, BackendError, ObjectName, Urgency};
use ovs_cluster::catalogue::{LayoutRecord, decode};

/// A layout on a backend is never longer than this.
const LAYOUT_BYTES_MAX: u64 = 4 << 20;

fn layout_name() -> ObjectName {
    ObjectName::new(format!("pool/layout-{:020}", 1)).expect("digits are allowed in object names")
}

pub(super) async fn put_layout(store: &dyn Backend, layout: &LayoutRecord) -> Result<(), Problem> {
    let bytes = serde_json::to_vec(layout)
        .map_err(|error| Problem::new(ProblemKind::Internal, format!("a vPool's layout: {error}")))?;
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

/// Whether there is one, whatever it says.
pub(super) async fn has_layout(store: &dyn Backend) -> Result<bool, BackendError> {
    match store.get_range(&layout_name(), 0, 1).await {
        Ok(_) => Ok(true),
        Err(BackendError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
