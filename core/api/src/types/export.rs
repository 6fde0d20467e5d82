use super::{Labels, Request, Timestamp, check_text};
use crate::{Problem, VdiskRef};
use ovs_units::{Name, VdiskId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The protocol that clients elsewhere use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExportProtocol {
    /// A LUN of an iSCSI target.
    Iscsi,
    /// A file of an NFSv3 export.
    Nfs,
    /// NBD over TCP with TLS.
    NbdTls,
}

/// A vDisk that clients on other machines reach. Its writes are `write_through`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Export {
    /// For ever the same.
    pub uuid: Uuid,
    /// Raised by every change.
    pub revision: u64,
    /// The vDisk.
    pub vdisk: VdiskId,
    /// The vPool of the vDisk.
    pub vpool: Name,
    /// The protocol.
    pub protocol: ExportProtocol,
    /// Where to reach it, as the protocol says it: a portal, an IQN and a LUN; a host and a path; a URI.
    pub address: String,
    /// Who may: initiator names, or networks in CIDR form.
    pub clients: Vec<String>,
    /// Nobody writes.
    pub read_only: bool,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
    /// When it was created.
    pub created_at: Timestamp,
}

/// An export to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateExport {
    /// The vDisk.
    pub vdisk: VdiskRef,
    /// The protocol.
    pub protocol: ExportProtocol,
    /// Who may: initiator names, or networks in CIDR form; nobody when empty.
    #[serde(default)]
    pub clients: Vec<String>,
    /// Nobody writes.
    #[serde(default)]
    pub read_only: bool,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
}

impl Request for CreateExport {
    fn check(&self) -> Result<(), Problem> {
        if self.clients.len() > 1024 {
            return Err(Problem::field("clients", format!("{} clients", self.clients.len()), "at most 1024"));
        }
        for client in &self.clients {
            check_text("clients", client, 255)?;
        }
        self.labels.check()
    }
}
