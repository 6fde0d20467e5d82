use super::page::check_limit;
use super::{Cursor, Labels, Request, Timestamp};
use crate::Problem;
use ovs_units::{Name, VdiskId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A deleted vDisk that can still be had back, with its snapshots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrashEntry {
    /// The vDisk.
    pub uuid: VdiskId,
    /// The vPool it was in.
    pub vpool: Name,
    /// The name it had; others may have it since.
    pub name: Name,
    /// Raised by every change.
    pub revision: u64,
    /// Its size.
    pub size_bytes: u64,
    /// What it maps on the backend.
    pub allocated_bytes: u64,
    /// Its snapshots.
    pub snapshot_count: u64,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
    /// When it was deleted.
    pub deleted_at: Timestamp,
    /// When it goes by itself.
    pub expires_at: Timestamp,
}

/// Which deleted vDisks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrashQuery {
    /// Of one vPool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpool: Option<Name>,
    /// That had exactly this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Entries on the page, 100 when not given; emptying ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before; emptying ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

/// How to restore.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreTrash {
    /// A new name, when the old one is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
}

impl Request for TrashQuery {
    fn check(&self) -> Result<(), Problem> {
        check_limit(self.limit)
    }
}

impl Request for RestoreTrash {}
