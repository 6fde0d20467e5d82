use super::{DESCRIPTION_BYTES_MAX, Labels, Request, Timestamp, check_text};
use crate::{Problem, SnapshotRef};
use ovs_units::{Name, SnapshotId, VdiskId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A vDisk at a point in time; read-only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    /// For ever the same.
    pub uuid: SnapshotId,
    /// Whose it is.
    pub vdisk: VdiskId,
    /// The vPool of the vDisk.
    pub vpool: Name,
    /// The name of the vDisk now.
    pub vdisk_name: Name,
    /// Its name, which it shares with no other snapshot of the vDisk.
    pub name: Name,
    /// Raised by every change.
    pub revision: u64,
    /// The size of the vDisk then.
    pub size_bytes: u64,
    /// All of it has left this host's write buffer.
    pub on_backend: bool,
    /// Its clones; while there are some, deleting it hides it.
    pub clone_count: u64,
    /// The name of its read-only NBD export, on the common socket.
    pub nbd_export: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
    /// When it was taken.
    pub created_at: Timestamp,
}

/// A snapshot to be taken. It holds every write acknowledged before the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name; not of the form of a UUID.
    pub name: Name,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"), length(max = 4096))]
    pub description: String,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
}

/// What a request about a snapshot waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotWait {
    /// That all of it is on the backend.
    OnBackend,
}

/// Whether to wait.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GetSnapshotQuery {
    /// `on_backend`: answer when that is so, or when the time is up (the reply tells which).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<SnapshotWait>,
    /// For how long, a minute when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 600_000))]
    pub wait_ms: Option<u64>,
}

impl Request for CreateSnapshot {
    fn check(&self) -> Result<(), Problem> {
        if matches!(self.name.as_str().parse(), Ok(SnapshotRef::Id(_))) {
            return Err(Problem::field("name", &self.name, "a name that has not the form of a UUID"));
        }
        check_text("description", &self.description, DESCRIPTION_BYTES_MAX)?;
        self.labels.check()
    }
}

impl Request for GetSnapshotQuery {
    fn check(&self) -> Result<(), Problem> {
        super::task::check_wait(self.wait_ms)
    }
}
