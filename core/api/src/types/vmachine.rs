use super::{Labels, Request, Timestamp};
use crate::{Problem, VdiskRef};
use ovs_units::{Name, VdiskId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The vDisks of one VM or container, operated on together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vmachine {
    /// For ever the same.
    pub uuid: Uuid,
    /// Its name.
    pub name: Name,
    /// Raised by every change.
    pub revision: u64,
    /// Its vDisks, in their order.
    pub vdisks: Vec<VdiskId>,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
    /// When it was created.
    pub created_at: Timestamp,
}

/// A vMachine to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVmachine {
    /// Its name.
    pub name: Name,
    /// Its vDisks, each of no other vMachine.
    pub vdisks: Vec<VdiskRef>,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
}

/// A snapshot of all vDisks at one moment: writes to all of them are held, all are sealed, all are released.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotVmachine {
    /// The name of the snapshot of each vDisk.
    pub name: Name,
    /// Give up, with no snapshot of any, when writes would be held for longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_ms_max: Option<u64>,
    /// What doors keep with each snapshot.
    #[serde(default)]
    pub labels: Labels,
}

/// All vDisks back to their snapshots of one name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackVmachine {
    /// The name of the snapshots.
    pub snapshot: Name,
}

/// A vMachine out of clones of another's vDisks, each with this one's name and a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneVmachine {
    /// The name of the new vMachine.
    pub name: Name,
    /// The name of the snapshots to clone; as they are now when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Name>,
}

impl Request for CreateVmachine {
    fn check(&self) -> Result<(), Problem> {
        if self.vdisks.len() > 256 {
            return Err(Problem::field("vdisks", format!("{} vDisks", self.vdisks.len()), "at most 256"));
        }
        self.labels.check()
    }
}

impl Request for SnapshotVmachine {
    fn check(&self) -> Result<(), Problem> {
        self.labels.check()
    }
}

impl Request for RollbackVmachine {}
impl Request for CloneVmachine {}
