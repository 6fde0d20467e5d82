use super::page::check_limit;
use super::{
    Cursor, DESCRIPTION_BYTES_MAX, LabelSelector, Labels, LabelsPatch, LimitsPatch, Request, Timestamp,
    VdiskCachePatch, VdiskCacheStats, check_text,
};
use crate::{Problem, SnapshotRef, VdiskRef};
use ovs_units::{
    CLUSTER_SIZE_BYTES, Epoch, Limits, Name, Sequence, SnapshotId, VDISK_SIZE_BYTES_MAX, VdiskCache, VdiskId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What writes do when there is no space for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFull {
    /// They wait, for `stall_timeout_ms` at most.
    #[default]
    Stall,
    /// They fail at once.
    Enospc,
}

/// How a vDisk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VdiskState {
    /// It serves.
    Ok,
    /// It serves, but a copy that its mode asks for is missing, or a part of its map on this host cannot be read before
    /// ovsd is started again.
    Degraded,
    /// Its backend does not take data: writes wait, reads go on. Clears by itself.
    Stalled,
    /// What is stored is not what was written; the evidence is kept.
    Damaged,
    /// It does not serve.
    Offline,
}

/// The snapshot that a clone came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Base {
    /// The parent.
    pub vdisk: VdiskId,
    /// The parent's snapshot.
    pub snapshot: SnapshotId,
}

/// One virtual disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vdisk {
    /// For ever the same.
    pub uuid: VdiskId,
    /// The vPool it is in.
    pub vpool: Name,
    /// Its name, which it shares with no other vDisk of the vPool.
    pub name: Name,
    /// Raised by every change of what is in this document by request, not by I/O.
    pub revision: u64,
    /// Its size to the byte, as files show it.
    pub size_bytes: u64,
    /// Its size in whole clusters, as block devices show it.
    pub capacity_bytes: u64,
    /// What it maps on the backend (shared with its parent and snapshots or not).
    pub allocated_bytes: u64,
    /// What is in the write buffer and not yet on the backend.
    pub buffered_bytes: u64,
    /// How it is.
    pub state: VdiskState,
    /// Why it is not `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// Frozen: it only has children.
    pub is_template: bool,
    /// Deleting it is refused.
    pub protected: bool,
    /// Where it was cloned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// Its snapshots.
    pub snapshot_count: u64,
    /// Who uses it.
    pub attachment_count: u64,
    /// What writes do when there is no space.
    pub on_full: OnFull,
    /// How long they wait; without end when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_timeout_ms: Option<u64>,
    /// What its guests may do per second.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Its part in the read cache; what is missing its vPool says.
    #[serde(default, skip_serializing_if = "VdiskCache::is_default")]
    pub cache: VdiskCache,
    /// The host that owns it.
    pub host: String,
    /// The NBD socket that serves this vDisk alone.
    pub nbd_socket: String,
    /// The same as an NBD URI.
    pub nbd_uri: String,
    /// The NBD URI for other hosts, when NBD is served over TCP: by the vDisk's name, with TLS, each write as if with FUA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_tls_uri: Option<String>,
    /// The same for QEMU, with a `reconnect-delay`: QEMU's default fails the guest's I/O at once when ovsd restarts.
    pub qemu_filename: String,
    /// Where ovsd-edge shows it as a file.
    pub fuse_path: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
    /// When it was created.
    pub created_at: Timestamp,
}

/// What a clone comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The parent, of the same vPool.
    pub vdisk: VdiskRef,
    /// One of its snapshots; as it is now (every write acknowledged before is in it) when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotRef>,
}

/// A vDisk to be made: empty, a clone (`source`), or a child of a template (`template`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = CreateVdisk {
    vpool: Name::new("default").expect("a name"),
    name: Name::new("web-1").expect("a name"),
    size_bytes: Some(10 << 30),
    byte_exact: false,
    template: None,
    source: None,
    on_full: None,
    stall_timeout_ms: None,
    limits: LimitsPatch::default(),
    cache: VdiskCachePatch::default(),
    protected: false,
    description: String::new(),
    labels: Labels::default(),
})]
pub struct CreateVdisk {
    /// The vPool.
    pub vpool: Name,
    /// Its name, not yet taken.
    pub name: Name,
    /// A multiple of 4096 unless `byte_exact`; not given: that of the source, or the vPool's default. A clone may be
    /// larger than its source, not smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 70_368_744_177_664_u64))]
    pub size_bytes: Option<u64>,
    /// The size is a file's, of any number of bytes.
    #[serde(default)]
    pub byte_exact: bool,
    /// A template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<VdiskRef>,
    /// A vDisk or a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The vPool's when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// The vPool's when not given; 0: without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_timeout_ms: Option<u64>,
    /// What its guests may do per second; a clone has none of its source's.
    #[serde(default, skip_serializing_if = "LimitsPatch::is_empty")]
    pub limits: LimitsPatch,
    /// Its part in the read cache; a clone has its source's when not given.
    #[serde(default, skip_serializing_if = "VdiskCachePatch::is_empty")]
    pub cache: VdiskCachePatch,
    /// Refuse to delete it.
    #[serde(default)]
    pub protected: bool,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"), length(max = 4096))]
    pub description: String,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
}

impl CreateVdisk {
    /// An empty vDisk of the vPool's default size.
    pub fn new(vpool: Name, name: Name) -> CreateVdisk {
        CreateVdisk {
            vpool,
            name,
            size_bytes: None,
            byte_exact: false,
            template: None,
            source: None,
            on_full: None,
            stall_timeout_ms: None,
            limits: LimitsPatch::default(),
            cache: VdiskCachePatch::default(),
            protected: false,
            description: String::new(),
            labels: Labels::default(),
        }
    }
}

/// A change to a vDisk: what is not given stays. All of it happens or nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchVdisk {
    /// A name not yet taken in the vPool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// A multiple of 4096 unless `byte_exact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 70_368_744_177_664_u64))]
    pub size_bytes: Option<u64>,
    /// The size is a file's, of any number of bytes.
    #[serde(default)]
    pub byte_exact: bool,
    /// A smaller size is meant: what is cut off is lost.
    #[serde(default)]
    pub allow_shrink: bool,
    /// The attachment on whose behalf this is: a shrink is refused while any other one writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Uuid>,
    /// Refuse to delete it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
    /// What writes do when there is no space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// 0: without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_timeout_ms: Option<u64>,
    /// What its guests may do per second, at once.
    #[serde(default, skip_serializing_if = "LimitsPatch::is_empty")]
    pub limits: LimitsPatch,
    /// Its part in the read cache, at once.
    #[serde(default, skip_serializing_if = "VdiskCachePatch::is_empty")]
    pub cache: VdiskCachePatch,
    /// Empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"), length(max = 4096))]
    pub description: Option<String>,
    /// A value sets, null removes.
    #[serde(default)]
    pub labels: LabelsPatch,
}

/// Which vDisks, in the order of vPool and name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiskQuery {
    /// Of one vPool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpool: Option<Name>,
    /// With exactly this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Templates only, or none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_template: Option<bool>,
    /// With all of these labels: `KEY` or `KEY=VALUE`; may be given several times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub label: Vec<LabelSelector>,
    /// vDisks on the page, 100 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

/// How to delete a vDisk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteVdiskQuery {
    /// Not to the trash: gone.
    #[serde(default)]
    pub purge: bool,
}

/// A vDisk back to one of its snapshots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackVdisk {
    /// The snapshot; everything written since is lost.
    pub snapshot: SnapshotRef,
}

/// Counters of one vDisk since ovsd started, and its positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VdiskStats {
    /// The vDisk.
    pub vdisk: VdiskId,
    /// Rises whenever it is opened for writing.
    pub epoch: Epoch,
    /// How many operations it accepted in its life.
    pub sequence: Sequence,
    /// Reads served.
    pub read_count: u64,
    /// Writes acknowledged.
    pub write_count: u64,
    /// Flushes acknowledged.
    pub flush_count: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes put on the backend for it.
    pub backend_put_bytes: u64,
    /// Mapped on the backend.
    pub allocated_bytes: u64,
    /// In the write buffer.
    pub buffered_bytes: u64,
    /// Objects of its own data on the backend; what a clone has from its parent is not in it.
    pub stored_bytes: u64,
    /// Of those, what nobody needs any more and a scrub gives back; none while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaimable_bytes: Option<u64>,
    /// What it has in common with the vDisks that it is a clone of, stored there: when it was cloned, or at the last scrub, and no
    /// more since; none while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_bytes: Option<u64>,
    /// Scrub has put this again elsewhere.
    pub scrub_moved_bytes: u64,
    /// Scrub has removed objects of this size.
    pub scrub_freed_bytes: u64,
    /// Requests that its limits held back.
    #[serde(default)]
    pub throttled_count: u64,
    /// For how long, together.
    #[serde(default)]
    pub throttled_ms: u64,
    /// Its part in the read cache; missing where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<VdiskCacheStats>,
}

/// Refuses sizes that no vDisk may have.
pub(super) fn check_size(field: &str, size_bytes: Option<u64>, byte_exact: bool) -> Result<(), Problem> {
    let Some(size_bytes) = size_bytes else { return Ok(()) };
    let whole = byte_exact || (size_bytes > 0 && size_bytes.is_multiple_of(CLUSTER_SIZE_BYTES));
    if whole && size_bytes <= VDISK_SIZE_BYTES_MAX {
        return Ok(());
    }
    let allowed = match byte_exact {
        true => "at most 70368744177664 bytes (64 TiB)",
        false => "multiples of 4096 bytes, from 4096 to 70368744177664 (64 TiB)",
    };
    Err(Problem::field(field, size_bytes, allowed))
}

impl Request for CreateVdisk {
    fn check(&self) -> Result<(), Problem> {
        check_size("size_bytes", self.size_bytes, self.byte_exact)?;
        if self.template.is_some() && self.source.is_some() {
            return Err(Problem::field("template", "template and source", "one of them, or neither"));
        }
        self.limits.patch(Limits::default())?;
        self.cache.patch(VdiskCache::default())?;
        check_text("description", &self.description, DESCRIPTION_BYTES_MAX)?;
        self.labels.check()
    }
}

impl Request for PatchVdisk {
    fn check(&self) -> Result<(), Problem> {
        check_size("size_bytes", self.size_bytes, self.byte_exact)?;
        check_text("description", self.description.as_deref().unwrap_or_default(), DESCRIPTION_BYTES_MAX)?;
        self.labels.check()
    }
}

impl Request for VdiskQuery {
    fn check(&self) -> Result<(), Problem> {
        check_limit(self.limit)
    }
}

impl Request for DeleteVdiskQuery {}
impl Request for RollbackVdisk {}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(size_bytes: u64, byte_exact: bool, good: bool) {
        assert_eq!(
            check_size("size_bytes", Some(size_bytes), byte_exact).is_ok(),
            good,
            "{size_bytes} {byte_exact}"
        );
    }

    #[test]
    fn sizes_are_whole_clusters_except_a_files() {
        check(4096, false, true);
        check(64 << 40, false, true);
        check(0, false, false);
        check(4097, false, false);
        check((64 << 40) + 4096, false, false);
        check(0, true, true);
        check(4097, true, true);
        check((64 << 40) + 1, true, false);
    }
}
