//! What becomes of an error: the one place where errors of the layers below become problem documents.

use super::attachments::{Busy, Holder};
use ovs_api::{Problem, ProblemKind};
use ovs_backend::BackendError;
use ovs_cluster::catalogue::CatalogueError;
use ovs_units::Name;
use ovs_volume::VolumeError;
use serde_json::json;
use uuid::Uuid;

/// A volume's error.
pub fn from_volume(error: VolumeError) -> Problem {
    let kind = match &error {
        VolumeError::Retry(_) => ProblemKind::Unavailable,
        VolumeError::Fenced(_) | VolumeError::Offline(_) => ProblemKind::Offline,
        VolumeError::Refused(_) => ProblemKind::Conflict,
        VolumeError::NotFound(_) => ProblemKind::NotFound,
        VolumeError::Damaged(_) => ProblemKind::Damaged,
        VolumeError::NoSpace(_) => ProblemKind::NoSpace,
    };
    Problem::new(kind, error.to_string())
}

/// A catalogue's error.
pub fn from_catalogue(error: CatalogueError) -> Problem {
    match error {
        CatalogueError::NotFound { .. } => Problem::new(ProblemKind::NotFound, error.to_string()),
        CatalogueError::Exists { .. } => Problem::new(ProblemKind::Exists, error.to_string()),
        CatalogueError::Changed { .. } => Problem::new(ProblemKind::Conflict, format!("{error}: ask again")),
        CatalogueError::Damaged { .. } => Problem::new(ProblemKind::Damaged, error.to_string()),
        CatalogueError::Registry(error) => from_volume(error),
    }
}

/// A backend's error.
pub fn from_backend(error: BackendError) -> Problem {
    from_volume(error.into())
}

/// Somebody or something is in the way.
pub fn from_busy(what: &str, busy: Busy) -> Problem {
    match busy {
        Busy::Holders(holders) => in_use(what, &holders),
        Busy::Frozen(why) => Problem::new(ProblemKind::InUse, format!("{what}: {why} is under way"))
            .with("attachments", json!([])),
    }
}

/// These use it.
pub fn in_use(what: &str, holders: &[Holder]) -> Problem {
    let named: Vec<String> = holders.iter().map(Holder::to_string).collect();
    let uuids: Vec<String> = holders.iter().map(|holder| holder.uuid.to_string()).collect();
    Problem::new(ProblemKind::InUse, format!("{what} is used by {}", named.join(", ")))
        .with("attachments", json!(uuids))
}

/// No such thing.
pub fn not_found(kind: &str, name: impl std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("there is no {kind} {name}"))
}

/// The name is taken.
pub fn exists(kind: &str, name: &Name, uuid: Uuid) -> Problem {
    let detail = format!("{kind} {name} exists, and was made by a different request");
    Problem::new(ProblemKind::Exists, detail).with("uuid", uuid.to_string())
}
