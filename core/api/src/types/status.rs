use super::{CacheSpace, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The protocol that this build speaks; an ovsd serves this one and the one before.
pub const PROTOCOL: ProtocolRange = ProtocolRange { min: 1, max: 1 };

/// Versions of the RPC. A client names its own in the `Ovs-Protocol` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProtocolRange {
    /// The oldest served.
    pub min: u32,
    /// The newest served.
    pub max: u32,
}

/// How an ovsd is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Replaying its write buffer and opening its vPools; requests about vDisks answer `unavailable`.
    Starting,
    /// Everything serves.
    Ok,
    /// Something does not serve, or an alarm is on.
    Degraded,
    /// On its way out.
    Stopping,
}

/// One ovsd at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// The versions of the RPC that it serves.
    pub protocol: ProtocolRange,
    /// This host.
    pub host: Host,
    /// How it is.
    pub state: ServiceState,
    /// When it started.
    pub started_at: Timestamp,
    /// For how long it has run.
    pub uptime_s: u64,
    /// Its write buffer.
    pub buffer: BufferSpace,
    /// Its read cache, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSpace>,
    /// vPools.
    pub vpool_count: u64,
    /// vDisks outside the trash.
    pub vdisk_count: u64,
    /// Attachments.
    pub attachment_count: u64,
    /// What asks for attention.
    pub alarms: Vec<Alarm>,
}

/// The space of the write buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BufferSpace {
    /// All of it.
    pub total_bytes: u64,
    /// Held by writes that are not yet on a backend.
    pub used_bytes: u64,
}

/// Something that asks for attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Alarm {
    /// What it is about.
    pub kind: AlarmKind,
    /// Which vPool, vDisk or device.
    pub subject: String,
    /// For people.
    pub detail: String,
    /// How full, for alarms of space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_percent: Option<u32>,
    /// Since when.
    pub since: Timestamp,
}

/// The kinds of alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// A vPool's backend passed 70, 90 or 100 %.
    BackendSpace,
    /// The write buffer passed 70, 90 or 100 %.
    BufferSpace,
    /// The quotas of vDisks together passed 70 or 100 % of the read cache: allowed, and no state of `degraded`.
    CacheQuotas,
    /// A backend does not answer.
    BackendOffline,
    /// A drive of a backend does not answer.
    Drive,
    /// A vDisk is not `ok`.
    Vdisk,
    /// One that this client is too old to know.
    #[serde(other)]
    Other,
}

/// A machine that runs ovsd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Given at its first start, for ever.
    pub uuid: Uuid,
    /// Its host name.
    pub name: String,
    /// How it is.
    pub state: HostState,
    /// The version of its ovsd.
    pub version: String,
    /// True for the host that answers.
    pub is_local: bool,
    /// When its ovsd started.
    pub started_at: Timestamp,
}

/// How a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// It serves.
    Online,
    /// It has not been heard of for longer than its lease.
    Offline,
}
