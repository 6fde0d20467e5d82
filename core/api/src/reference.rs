//! How a request names an object.

use ovs_units::{Name, SnapshotId, VdiskId};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};
use thiserror::Error;

/// A vDisk by UUID, or by `POOL:NAME` (`POOL/NAME` is understood as well).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum VdiskRef {
    /// For ever the same vDisk.
    Id(VdiskId),
    /// Whichever vDisk has the name now.
    Name {
        /// The vPool's name.
        vpool: Name,
        /// The vDisk's name.
        name: Name,
    },
}

/// A snapshot by UUID or by name, of a vDisk that is named beside it. Names of the form of a UUID are refused at
/// creation, so that there is no doubt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SnapshotRef {
    /// By UUID.
    Id(SnapshotId),
    /// By name.
    Name(Name),
}

/// A text that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{given:?} is not allowed: {allowed}")]
pub struct RefError {
    given: String,
    allowed: &'static str,
}

fn refuse(given: &str, allowed: &'static str) -> RefError {
    RefError { given: given.chars().take(300).collect(), allowed }
}

impl FromStr for VdiskRef {
    type Err = RefError;
    fn from_str(text: &str) -> Result<VdiskRef, RefError> {
        if let Ok(id) = text.parse() {
            return Ok(VdiskRef::Id(id));
        }
        let allowed = "the UUID of a vDisk, or POOL:NAME";
        let (vpool, name) = text.split_once([':', '/']).ok_or_else(|| refuse(text, allowed))?;
        match (Name::new(vpool), Name::new(name)) {
            (Ok(vpool), Ok(name)) => Ok(VdiskRef::Name { vpool, name }),
            _ => Err(refuse(text, allowed)),
        }
    }
}

impl FromStr for SnapshotRef {
    type Err = RefError;
    fn from_str(text: &str) -> Result<SnapshotRef, RefError> {
        if let Ok(id) = text.parse() {
            return Ok(SnapshotRef::Id(id));
        }
        Name::new(text).map(SnapshotRef::Name).map_err(|_| refuse(text, "the UUID or the name of a snapshot"))
    }
}

impl fmt::Display for VdiskRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VdiskRef::Id(id) => id.fmt(f),
            VdiskRef::Name { vpool, name } => write!(f, "{vpool}:{name}"),
        }
    }
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotRef::Id(id) => id.fmt(f),
            SnapshotRef::Name(name) => name.fmt(f),
        }
    }
}

macro_rules! as_text {
    ($name:ident, $pattern:expr, $description:literal, $example:literal) => {
        impl TryFrom<String> for $name {
            type Error = RefError;
            fn try_from(text: String) -> Result<$name, RefError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(reference: $name) -> String {
                reference.to_string()
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string", "pattern": $pattern, "description": $description, "examples": [$example],
                })
            }
        }
    };
}

const VDISK_PATTERN: &str = "^([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\
    [a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}[:/][a-zA-Z0-9][a-zA-Z0-9_.-]{0,127})$";
// A UUID is of the form of a name.
const SNAPSHOT_PATTERN: &str = "^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$";

as_text!(VdiskRef, VDISK_PATTERN, "A vDisk: its UUID, or POOL:NAME", "default:web-1");
as_text!(SnapshotRef, SNAPSHOT_PATTERN, "A snapshot: its UUID or its name", "monday");

impl From<VdiskId> for VdiskRef {
    fn from(id: VdiskId) -> VdiskRef {
        VdiskRef::Id(id)
    }
}

impl From<SnapshotId> for SnapshotRef {
    fn from(id: SnapshotId) -> SnapshotRef {
        SnapshotRef::Id(id)
    }
}

impl From<Name> for SnapshotRef {
    fn from(name: Name) -> SnapshotRef {
        SnapshotRef::Name(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(text.parse::<VdiskRef>().ok().map(|r| r.to_string()).as_deref(), expected, "{text:?}");
    }

    #[test]
    fn vdisks_are_named_by_uuid_or_by_pool_and_name() {
        check("default:x", Some("default:x"));
        check("default/x", Some("default:x"));
        let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        check(uuid, Some(uuid));
        for bad in ["", "x", ":x", "p:", "p:..", "../..", "p:a/b", "p:a:b", "p:a@b", "p/../x", "\0:\0"] {
            check(bad, None);
        }
    }
}
