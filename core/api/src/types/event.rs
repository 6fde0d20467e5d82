use super::Timestamp;
use ovs_units::Name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The position of an event; grows with every event, over restarts too.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct EventId(pub u64);

macro_rules! event_kinds {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum EventKind {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
            /// One that this client is too old to know.
            #[serde(other, rename = "other")]
            Other,
        }

        impl EventKind {
            /// As it is on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(EventKind::$variant => $text,)*
                    EventKind::Other => "other",
                }
            }
        }
    };
}

event_kinds! {
    /// The first of every stream: its `id` is the newest there is, nothing happened.
    StreamStarted = "stream.started",
    /// A vPool came.
    VpoolCreated = "vpool.created",
    /// Its settings changed.
    VpoolUpdated = "vpool.updated",
    /// It went.
    VpoolDeleted = "vpool.deleted",
    /// Its state changed.
    VpoolState = "vpool.state",
    /// It was rebuilt from its backend: list its vDisks again.
    VpoolRecovered = "vpool.recovered",
    /// A vDisk came (created, cloned).
    VdiskCreated = "vdisk.created",
    /// Something else of it changed: protection, description, labels, `on_full`.
    VdiskUpdated = "vdisk.updated",
    /// It has another name; `previous_name` is the one before.
    VdiskRenamed = "vdisk.renamed",
    /// It has another size.
    VdiskResized = "vdisk.resized",
    /// It has the contents of one of its snapshots.
    VdiskRolledBack = "vdisk.rolled_back",
    /// It is a template now.
    VdiskTemplate = "vdisk.template",
    /// It went to the trash.
    VdiskTrashed = "vdisk.trashed",
    /// It came back from the trash.
    VdiskRestored = "vdisk.restored",
    /// It is gone.
    VdiskDeleted = "vdisk.deleted",
    /// Its state changed.
    VdiskState = "vdisk.state",
    /// A snapshot was taken.
    SnapshotCreated = "snapshot.created",
    /// All of it is on the backend.
    SnapshotOnBackend = "snapshot.on_backend",
    /// A snapshot went.
    SnapshotDeleted = "snapshot.deleted",
    /// A client came.
    AttachmentCreated = "attachment.created",
    /// It changed: mode, generation.
    AttachmentUpdated = "attachment.updated",
    /// It went.
    AttachmentDeleted = "attachment.deleted",
    /// A backend came.
    BackendCreated = "backend.created",
    /// A drive of a composite came, went, or is for something else now.
    BackendChanged = "backend.changed",
    /// A backend went.
    BackendDeleted = "backend.deleted",
    /// A task's state changed.
    TaskState = "task.state",
    /// A device passed 70, 90 or 100 %, or came back below.
    CapacityAlarm = "capacity.alarm",
}

/// Something that happened. What has been listed at a revision is up to date once the events after it are applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Its position; give the last one seen as `Last-Event-ID` to go on from there.
    pub id: EventId,
    /// What happened.
    pub kind: EventKind,
    /// To which object (of a snapshot's event: the snapshot).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Uuid>,
    /// The object's revision since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The vPool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpool: Option<Name>,
    /// The vDisk, for events of vDisks, snapshots and attachments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vdisk: Option<Uuid>,
    /// The object's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Before a rename.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_name: Option<Name>,
    /// After a resize.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The new state and its reason, the alarm's text, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When.
    pub at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_on_the_wire_as_they_say() {
        for kind in [EventKind::VdiskCreated, EventKind::SnapshotOnBackend, EventKind::CapacityAlarm] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert_eq!(serde_json::from_str::<EventKind>(r#""vdisk.melted""#).unwrap(), EventKind::Other);
    }
}
