use super::{Labels, Request, Timestamp};
use crate::Problem;
use ovs_units::Name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Component, Path};
use uuid::Uuid;

/// What a backend is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// A directory.
    Dir,
}

/// Where objects live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Backend {
    /// For ever the same.
    pub uuid: Uuid,
    /// Its name; fixed.
    pub name: Name,
    /// Raised by every change.
    pub revision: u64,
    /// What it is made of.
    #[serde(rename = "type")]
    pub kind: BackendKind,
    /// The directory.
    pub path: String,
    /// The hosts that reach it.
    pub nodes: Vec<String>,
    /// The vPool that uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpool: Option<Name>,
    /// All its space; missing where there is no such notion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// What guest data may still use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// A backend to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBackend {
    /// Its name.
    pub name: Name,
    /// What it is made of.
    #[serde(rename = "type")]
    pub kind: BackendKind,
    /// An absolute path on this host, without '..'; made when it does not exist.
    #[schemars(
        regex(pattern = r"^/([^/\x00-\x1f\x7f-\x9f]+(/[^/\x00-\x1f\x7f-\x9f]+)*/?)?$"),
        length(max = 4000)
    )]
    pub path: String,
}

impl Request for CreateBackend {
    fn check(&self) -> Result<(), Problem> {
        let path = Path::new(&self.path);
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if path.is_absolute() && plain && self.path.len() <= 4000 && !self.path.contains(char::is_control) {
            return Ok(());
        }
        Err(Problem::field("path", &self.path, "an absolute path of at most 4000 bytes, without '..'"))
    }
}

/// How objects are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not.
    None,
}

/// How objects are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// Not.
    None,
}

/// k data and m parity fragments, acknowledged once c are written, at most x per node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Data fragments.
    pub k: u8,
    /// Parity fragments.
    pub m: u8,
    /// Fragments written before a put is acknowledged: k ≤ c ≤ k + m.
    pub c: u8,
    /// Fragments on one node at most.
    pub x: u8,
}

/// How objects are stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Preset {
    /// For ever the same.
    pub uuid: Uuid,
    /// Its name; fixed.
    pub name: Name,
    /// Raised by every change.
    pub revision: u64,
    /// How objects are compressed.
    pub compression: Compression,
    /// How objects are encrypted.
    pub encryption: Encryption,
    /// The largest fragment.
    pub fragment_size_bytes: u64,
    /// Policies, the best first; the first that can be satisfied is used.
    pub policies: Vec<Policy>,
    /// Used where no preset is named.
    pub is_default: bool,
}

/// A preset to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePreset {
    /// Its name.
    pub name: Name,
    /// How objects are compressed.
    pub compression: Compression,
    /// How objects are encrypted.
    pub encryption: Encryption,
    /// The largest fragment, a multiple of 4096.
    pub fragment_size_bytes: u64,
    /// Policies, the best first.
    pub policies: Vec<Policy>,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
}

impl Request for CreatePreset {
    fn check(&self) -> Result<(), Problem> {
        for policy in &self.policies {
            let fragments = u16::from(policy.k) + u16::from(policy.m);
            if policy.k == 0 || policy.x == 0 || policy.c < policy.k || u16::from(policy.c) > fragments {
                return Err(Problem::field("policies", format!("{policy:?}"), "k ≥ 1, k ≤ c ≤ k + m, x ≥ 1"));
            }
        }
        self.labels.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, good: bool) {
        let name = Name::new("b").unwrap();
        assert_eq!(
            CreateBackend { name, kind: BackendKind::Dir, path: path.into() }.check().is_ok(),
            good,
            "{path:?}"
        );
    }

    #[test]
    fn a_backends_path_is_absolute_and_plain() {
        check("/srv/ovs", true);
        for bad in ["", "srv", "../srv", "/srv/../etc", "/srv\n", "/a\0b", &"/x".repeat(3000)] {
            check(bad, false);
        }
    }
}
