//! What the registry keeps of each thing. All of it is JSON with a `format` number; new fields get a default, so
//! that a record of an older program still reads.

use super::Record;
use ovs_units::{
    ByteCount, COUNTER_MAX, Limits, Name, SnapshotId, VDISK_SIZE_BYTES_MAX, VdiskCache, VdiskId, VpoolCache,
    VpoolId,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use uuid::Uuid;

/// The newest format of most records that this program writes and reads; see [`Record::FORMAT_MAX`].
pub const FORMAT: u32 = 1;

pub(super) fn check_counter(field: &str, value: u64) -> Result<(), String> {
    if value < COUNTER_MAX { Ok(()) } else { Err(format!("{field} cannot be {value}")) }
}

fn check_size(field: &str, value: u64) -> Result<(), String> {
    if value <= VDISK_SIZE_BYTES_MAX { Ok(()) } else { Err(format!("{field} cannot be {value}")) }
}

/// Where a two-step operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Prepared, not there yet; start-up abandons it.
    Creating,
    /// In use.
    Ready,
    /// Going; start-up finishes it.
    Deleting,
}

/// What a write does when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFullPolicy {
    /// It waits (for the stall time-out, if there is one).
    Stall,
    /// It fails with "no space".
    Enospc,
}

/// A vPool. Also kept as an object on its backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VpoolRecord {
    /// See [`FORMAT`].
    pub format: u32,
    /// Its UUID.
    pub id: VpoolId,
    /// Its name.
    pub name: Name,
    /// Counts the changes of this record.
    pub version: u64,
    /// Where a create or delete stands.
    pub state: State,
    /// Its backend.
    pub backend: Uuid,
    /// Its own folder on the backend.
    pub namespace: String,
    /// The backend was made for it and goes with it.
    #[serde(default)]
    pub owns_backend: bool,
    /// Its preset.
    pub preset: Name,
    /// What people wrote about it.
    #[serde(default)]
    pub description: String,
    /// For vDisks that do not say.
    pub on_full: OnFullPolicy,
    /// For vDisks that do not say; `None`: for ever.
    #[serde(default)]
    pub stall_timeout_ms: Option<u64>,
    /// For vDisks that do not say.
    pub default_size_bytes: u64,
    /// How long a deleted vDisk stays in the trash; 0: it does not go there.
    pub trash_retention_s: u64,
    /// For vDisks that do not say.
    #[serde(default, skip_serializing_if = "VpoolCache::is_default")]
    pub cache: VpoolCache,
    /// What other programs keep here.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// The request that made it.
    #[serde(default)]
    pub request: Value,
}

impl Record for VpoolRecord {
    const KIND: &'static str = "vpool";
    // 2 where the backend is no directory: a program that knows directories alone leaves such a vPool alone.
    const FORMAT_MAX: u32 = 2;

    fn uuid(&self) -> Uuid {
        self.id.0
    }

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn index_keys(&self) -> Vec<String> {
        vec![VpoolRecord::name_key(&self.name)]
    }

    fn format(&self) -> u32 {
        self.format
    }

    fn check(&self) -> Result<(), String> {
        check_counter("version", self.version)?;
        self.cache.check().map_err(|error| error.to_string())
    }
}

impl VpoolRecord {
    /// The index of names.
    pub const NAMES: &'static str = "vpool-name/";

    /// The index key of a name.
    pub fn name_key(name: &Name) -> String {
        format!("{}{name}", Self::NAMES)
    }
}

/// The snapshot that a clone started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// The parent.
    pub vdisk: VdiskId,
    /// Its snapshot.
    pub snapshot: SnapshotId,
    /// The snapshot was taken for this clone alone and is deleted (hidden) as soon as the clone exists.
    #[serde(default)]
    pub taken_for_clone: bool,
}

/// What people said of a snapshot; the snapshot itself is the engine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its name.
    pub name: Name,
    /// The vDisk's byte-exact size then.
    pub size_bytes: u64,
    /// What people wrote about it.
    #[serde(default)]
    pub description: String,
    /// What other programs keep here.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Counts the changes of this record.
    #[serde(default)]
    pub version: u64,
}

/// A vDisk in the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashRecord {
    /// When it was deleted, milliseconds since 1970.
    pub deleted_ms: u64,
    /// When it goes for good.
    pub expires_ms: u64,
}

/// A step that was begun; done again if it was interrupted, before anybody writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pending {
    /// Back to a snapshot, at the record's size.
    Rollback(SnapshotId),
    /// After a shrink: zeros from this byte to the end of its cluster, so that growing again shows nothing old.
    ZeroTail(u64),
}

/// A vDisk. Its bytes are also the engine's opaque properties of it, so that the backend alone tells them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VdiskRecord {
    /// See [`FORMAT`].
    pub format: u32,
    /// Its UUID.
    pub id: VdiskId,
    /// Its vPool.
    pub vpool: VpoolId,
    /// Its name; free for others while it is in the trash.
    pub name: Name,
    /// Counts the changes of this record; the copy on the backend is behind when its number is lower.
    pub version: u64,
    /// Where a create or delete stands.
    pub state: State,
    /// Byte-exact size; the engine has it rounded up to clusters.
    pub size_bytes: u64,
    /// What people wrote about it.
    #[serde(default)]
    pub description: String,
    /// What other programs keep here.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Never deleted while this is set.
    #[serde(default)]
    pub protected: bool,
    /// What a write does when there is no room.
    pub on_full: OnFullPolicy,
    /// How long a write waits for room; `None`: for ever.
    #[serde(default)]
    pub stall_timeout_ms: Option<u64>,
    /// What its guests may do per second.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Its part in the read cache.
    #[serde(default, skip_serializing_if = "VdiskCache::is_default")]
    pub cache: VdiskCache,
    /// A template is frozen; its children start from this snapshot.
    #[serde(default)]
    pub template: Option<SnapshotId>,
    /// What it is a clone of.
    #[serde(default)]
    pub base: Option<BaseRecord>,
    /// Set while it is in the trash.
    #[serde(default)]
    pub trash: Option<TrashRecord>,
    /// Raised whenever a client is fenced; attachments of older generations are refused.
    #[serde(default)]
    pub generation: u64,
    /// The sessions that were fenced last: a reconnect of theirs is refused.
    #[serde(default)]
    pub fenced: Vec<Uuid>,
    /// A step that was begun.
    #[serde(default)]
    pub pending: Option<Pending>,
    /// What people said of its snapshots.
    #[serde(default)]
    pub snapshots: BTreeMap<SnapshotId, SnapshotRecord>,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// The request that made it.
    #[serde(default)]
    pub request: Value,
}

impl Record for VdiskRecord {
    const KIND: &'static str = "vdisk";

    fn uuid(&self) -> Uuid {
        self.id.0
    }

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn index_keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        if self.trash.is_none() && self.state != State::Deleting {
            keys.push(VdiskRecord::name_key(self.vpool, &self.name));
        }
        if self.trash.is_some() {
            keys.push(format!("{}{}", VdiskRecord::TRASH, self.id));
        }
        if let Some(base) = &self.base {
            keys.push(format!("{}{}", VdiskRecord::children_prefix(base.vdisk), self.id));
        }
        keys.push(format!("{}{}", VdiskRecord::members_prefix(self.vpool), self.id));
        keys
    }

    fn format(&self) -> u32 {
        self.format
    }

    fn check(&self) -> Result<(), String> {
        check_counter("version", self.version)?;
        check_counter("generation", self.generation)?;
        check_size("size_bytes", self.size_bytes)?;
        self.limits.check().map_err(|error| error.to_string())?;
        self.cache.check().map_err(|error| error.to_string())?;
        if let Some(Pending::ZeroTail(from)) = self.pending {
            check_size("pending", from)?;
        }
        for snapshot in self.snapshots.values() {
            check_counter("version", snapshot.version)?;
            check_size("size_bytes", snapshot.size_bytes)?;
        }
        Ok(())
    }
}

impl VdiskRecord {
    /// The index of the trash.
    pub const TRASH: &'static str = "vdisk-trash/";

    /// The index of a vPool's names.
    pub fn names_prefix(vpool: VpoolId) -> String {
        format!("vdisk-name/{vpool}/")
    }

    /// The index of all that a vPool holds, named or not.
    pub fn members_prefix(vpool: VpoolId) -> String {
        format!("vdisk-member/{vpool}/")
    }

    /// The index of a vDisk's clones.
    pub fn children_prefix(parent: VdiskId) -> String {
        format!("vdisk-child/{parent}/")
    }

    /// The index key of a name.
    pub fn name_key(vpool: VpoolId, name: &Name) -> String {
        format!("{}{name}", Self::names_prefix(vpool))
    }

    /// Its size in the engine.
    pub fn capacity(&self) -> ByteCount {
        ByteCount(self.size_bytes).rounded_up()
    }
}

/// An attachment that was asked for by RPC and outlives ovsd and connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// See [`FORMAT`].
    pub format: u32,
    /// Its UUID, also the session's that its connections name.
    pub uuid: Uuid,
    /// Counts the changes of this record.
    pub version: u64,
    /// To what.
    pub vdisk: VdiskId,
    /// Who and how, in the words of ovsd.
    pub holder: Value,
}

impl Record for AttachmentRecord {
    const KIND: &'static str = "attachment";

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn name(&self) -> String {
        self.uuid.to_string()
    }

    fn index_keys(&self) -> Vec<String> {
        Vec::new()
    }

    fn format(&self) -> u32 {
        self.format
    }

    fn check(&self) -> Result<(), String> {
        check_counter("version", self.version)
    }
}

/// What a client's Idempotency-Key stands for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IdempotencyRecord {
    /// See [`FORMAT`].
    pub format: u32,
    /// Its UUID (the key is the client's own text, and is found by an index).
    pub uuid: Uuid,
    /// The key.
    pub key: String,
    /// What was asked for.
    pub request: Value,
    /// What it made.
    pub object: Uuid,
    /// When the object was found deleted, milliseconds since 1970.
    #[serde(default)]
    pub gone_ms: Option<u64>,
}

impl Record for IdempotencyRecord {
    const KIND: &'static str = "idempotency";

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn name(&self) -> String {
        self.key.clone()
    }

    fn index_keys(&self) -> Vec<String> {
        vec![IdempotencyRecord::key_key(&self.key)]
    }

    fn format(&self) -> u32 {
        self.format
    }
}

impl IdempotencyRecord {
    /// The index key of a client's key, which may hold any characters.
    pub fn key_key(key: &str) -> String {
        let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
        format!("idempotency-key/{hex}")
    }
}

/// A number that only grows (events), or an identity (this host).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Counter {
    /// See [`FORMAT`].
    pub format: u32,
    /// Its fixed UUID.
    pub uuid: Uuid,
    /// The number.
    pub value: u64,
}

impl Record for Counter {
    const KIND: &'static str = "counter";

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn name(&self) -> String {
        self.uuid.to_string()
    }

    fn index_keys(&self) -> Vec<String> {
        Vec::new()
    }

    fn format(&self) -> u32 {
        self.format
    }

    fn check(&self) -> Result<(), String> {
        check_counter("value", self.value)
    }
}
