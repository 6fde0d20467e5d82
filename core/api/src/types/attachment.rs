use super::page::check_limit;
use super::{Cursor, Request, Timestamp, check_text};
use crate::{Problem, SnapshotRef, VdiskRef};
use ovs_units::{Name, SnapshotId, VdiskId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Who may use the vDisk beside this attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttachmentMode {
    /// Writes, and nobody else does.
    Exclusive,
    /// Writes beside others that share (multipath, clustered file systems). Never resends.
    Shared,
    /// Never writes.
    ReadOnly,
    /// The destination of a live migration: beside one exclusive attachment, which it takes over.
    Migrating,
}

impl AttachmentMode {
    /// May it write?
    pub fn writes(self) -> bool {
        self != AttachmentMode::ReadOnly
    }
}

/// Which door of ours the client came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Door {
    /// An NBD client of its own (QEMU, nbdcopy).
    Nbd,
    /// A file under ovsd-edge's mount.
    Fuse,
    /// The `ovs` command.
    Cli,
    /// A Docker volume.
    Docker,
    /// A libvirt domain.
    Libvirt,
    /// A Cinder attachment.
    Cinder,
    /// A vSphere binding.
    Vasa,
    /// An iSCSI target.
    Iscsi,
    /// An NFS client.
    Nfs,
    /// One that this client is too old to know.
    #[serde(other)]
    #[schemars(skip)]
    Other,
}

/// A client that uses a vDisk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Attachment {
    /// For ever the same; also the name of its NBD session.
    pub uuid: Uuid,
    /// Raised by every change.
    pub revision: u64,
    /// The vDisk.
    pub vdisk: VdiskId,
    /// The vPool of the vDisk.
    pub vpool: Name,
    /// The name of the vDisk now.
    pub vdisk_name: Name,
    /// Of a snapshot, not of the vDisk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotId>,
    /// Who uses it, in the words of the door: a container, a domain, an initiator.
    pub client: String,
    /// Which door.
    pub door: Door,
    /// The host that the client runs on.
    pub host: String,
    /// Who may use the vDisk beside it.
    pub mode: AttachmentMode,
    /// Connections that name an older generation are fenced.
    pub generation: u64,
    /// Every write is acknowledged as if it carried FUA: the client does not share this host's power.
    pub write_through: bool,
    /// It stays when its client is not connected, and over a restart of ovsd, until it is deleted.
    pub persistent: bool,
    /// NBD connections open now.
    pub connection_count: u64,
    /// When it was made.
    pub created_at: Timestamp,
}

/// An attachment to be made. The same client of the same vDisk again gets the attachment that it has, with a new
/// generation: what its predecessor left on the wire is fenced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAttachment {
    /// The vDisk.
    pub vdisk: VdiskRef,
    /// One of its snapshots, `read_only`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotRef>,
    /// Who will use it; stable over restarts of the client.
    #[schemars(regex(pattern = r"^[^\x00-\x1f\x7f-\x9f]+$"), length(min = 1, max = 512))]
    pub client: String,
    /// Which door.
    pub door: Door,
    /// Who may use the vDisk beside it.
    pub mode: AttachmentMode,
    /// The host that the client runs on, this one when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The client does not share this host's power.
    #[serde(default)]
    pub write_through: bool,
    /// Keep it while the client is not connected.
    #[serde(default)]
    pub persistent: bool,
    /// The attachment that the client has had, and no other: once it has ended, that is `not-found`. One that went with a
    /// lost registry is made again under its UUID, unless it was fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

/// Which attachments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachmentQuery {
    /// Of one vDisk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vdisk: Option<VdiskRef>,
    /// Of one client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Of one door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<Door>,
    /// Of one host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Attachments on the page, 100 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

/// How to end an attachment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteAttachmentQuery {
    /// Also while it is connected: its connections are fenced and closed. Without it that is `in-use`.
    #[serde(default)]
    pub force: bool,
}

impl Request for CreateAttachment {
    fn check(&self) -> Result<(), Problem> {
        if self.client.is_empty() || self.client.contains(['\n', '\t']) {
            return Err(Problem::field("client", &self.client, "1 to 512 bytes of text on one line"));
        }
        check_text("client", &self.client, 512)?;
        check_text("host", self.host.as_deref().unwrap_or_default(), 255)?;
        if self.snapshot.is_some() && self.mode.writes() {
            return Err(Problem::field(
                "mode",
                format!("{:?}", self.mode),
                "read_only, since this is a snapshot",
            ));
        }
        if self.door == Door::Other {
            return Err(Problem::field("door", "other", "a door of ovs"));
        }
        Ok(())
    }
}

impl Request for AttachmentQuery {
    fn check(&self) -> Result<(), Problem> {
        check_limit(self.limit)
    }
}

impl Request for DeleteAttachmentQuery {}
