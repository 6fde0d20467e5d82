use super::{
    CreateBackend, DESCRIPTION_BYTES_MAX, Labels, LabelsPatch, OnFull, Request, Timestamp, VpoolCachePatch,
    check_text,
};
use crate::Problem;
use ovs_units::{Name, VDISK_SIZE_BYTES_MAX, VpoolCache, VpoolId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named pool of vDisks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vpool {
    /// For ever the same.
    pub uuid: VpoolId,
    /// Its name; fixed.
    pub name: Name,
    /// Raised by every change.
    pub revision: u64,
    /// The backend that its objects live on.
    pub backend: Name,
    /// How its objects are stored.
    pub preset: Name,
    /// How it is.
    pub state: VpoolState,
    /// Why it is not `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// What its vDisks do when there is no space, unless they say otherwise.
    pub on_full: OnFull,
    /// How long they stall; without end when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_timeout_ms: Option<u64>,
    /// The size of a vDisk that is created without one.
    pub default_size_bytes: u64,
    /// How long a deleted vDisk stays in the trash; 0: it does not go there.
    pub trash_retention_s: u64,
    /// What of its vDisks is cached, where they do not say it themselves.
    #[serde(default)]
    pub cache: VpoolCache,
    /// The backend's space; missing where a backend has no such notion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// What guest data may still use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// What this vPool's vDisks, snapshots and trash hold.
    pub used_bytes: u64,
    /// The sizes of its vDisks together.
    pub provisioned_bytes: u64,
    /// Its vDisks outside the trash.
    pub vdisk_count: u64,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
    /// When it was created.
    pub created_at: Timestamp,
}

/// How a vPool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VpoolState {
    /// It serves.
    Ok,
    /// Its backend refuses or does not answer: reads of local data go on, writes as far as the buffer holds.
    Degraded,
    /// It is being rebuilt from its backend.
    Recovering,
    /// It does not serve.
    Offline,
}

/// A vPool to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVpool {
    /// Its name.
    pub name: Name,
    /// An existing backend that no vPool uses; a directory below the state directory when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Name>,
    /// An existing preset, `default` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Name>,
    /// `stall` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// How long vDisks stall; 0 or not given: without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_timeout_ms: Option<u64>,
    /// 10 GiB when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 4096, max = 70_368_744_177_664_u64), extend("multipleOf" = 4096))]
    pub default_size_bytes: Option<u64>,
    /// A day when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trash_retention_s: Option<u64>,
    /// What of its vDisks is cached.
    #[serde(default, skip_serializing_if = "VpoolCachePatch::is_empty")]
    pub cache: VpoolCachePatch,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"), length(max = 4096))]
    pub description: String,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
}

/// A change to a vPool: what is not given stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchVpool {
    /// For vDisks created from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// 0: without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_timeout_ms: Option<u64>,
    /// The size of a vDisk that is created without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 4096, max = 70_368_744_177_664_u64), extend("multipleOf" = 4096))]
    pub default_size_bytes: Option<u64>,
    /// For vDisks deleted from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trash_retention_s: Option<u64>,
    /// What of its vDisks is cached, at once.
    #[serde(default, skip_serializing_if = "VpoolCachePatch::is_empty")]
    pub cache: VpoolCachePatch,
    /// Empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"), length(max = 4096))]
    pub description: Option<String>,
    /// A value sets, null removes.
    #[serde(default)]
    pub labels: LabelsPatch,
}

/// How to delete a vPool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteVpoolQuery {
    /// Empties its trash first; without it a vPool with trash is `in-use`, as one with vDisks always is.
    #[serde(default)]
    pub purge_trash: bool,
    /// Also while the vPool is not taken in whole from its backend: vDisks that nobody here knows go with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discard_unread: bool,
}

/// A vPool whose registry is lost, to be rebuilt from its backend alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecoverVpool {
    /// The name it will have.
    pub name: Name,
    /// Where its objects are.
    pub backend: CreateBackend,
}

fn check_default_size(size_bytes: Option<u64>) -> Result<(), Problem> {
    super::vdisk::check_size("default_size_bytes", size_bytes, false)
}

impl Request for CreateVpool {
    fn check(&self) -> Result<(), Problem> {
        check_default_size(self.default_size_bytes)?;
        self.cache.patch(VpoolCache::default())?;
        check_text("description", &self.description, DESCRIPTION_BYTES_MAX)?;
        self.labels.check()
    }
}

impl Request for PatchVpool {
    fn check(&self) -> Result<(), Problem> {
        check_default_size(self.default_size_bytes)?;
        self.cache.patch(VpoolCache::default())?;
        check_text("description", self.description.as_deref().unwrap_or_default(), DESCRIPTION_BYTES_MAX)?;
        self.labels.check()
    }
}

impl Request for DeleteVpoolQuery {}

impl Request for RecoverVpool {
    fn check(&self) -> Result<(), Problem> {
        self.backend.check()
    }
}

const _: () =
    assert!(VDISK_SIZE_BYTES_MAX.is_multiple_of(4096), "the largest size is one that can be asked for");
