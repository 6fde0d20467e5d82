//! What the registry keeps of the verification of a composite: how far it is, and what the last one found. Lost with the registry it
//! begins anew, and nothing else.

use super::Record;
use ovs_units::VpoolId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The verification of all fragments on a composite's drives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerificationRecord {
    /// See [`super::FORMAT`].
    pub format: u32,
    /// The composite's UUID.
    pub uuid: Uuid,
    /// Whose objects these are: what was found of another vPool's says nothing.
    pub vpool: VpoolId,
    /// The last one that came to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<PassRecord>,
    /// The one that goes on.
    pub present: PassRecord,
    /// Objects of which something bad was found that is not mended yet: the pass has gone on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspicious: Vec<String>,
    /// More objects are bad than these.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_more_suspicious: bool,
}

/// One pass over all objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassRecord {
    /// When it began, milliseconds since 1970.
    pub began_ms: u64,
    /// When it came to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// The last object that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Objects that were read, …
    pub objects: u64,
    /// … the bytes of their fragments, …
    pub bytes: u64,
    /// … and fragments that were not as they should be.
    pub bad: u64,
    /// Drives of which not all was read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missed: Vec<Uuid>,
}

impl Record for VerificationRecord {
    const KIND: &'static str = "verification";

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
}
