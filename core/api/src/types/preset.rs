use super::{Labels, Request, SecretReference};
use crate::Problem;
use ovs_units::Name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Fragments are made of whole frames of so many bytes.
const FRAME_BYTES: u64 = 32 << 10;
/// No fragment is longer.
const FRAGMENT_BYTES_MAX: u64 = 128 << 20;
/// Policies of a preset at most.
const POLICY_COUNT_MAX: usize = 16;

/// How objects are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not.
    #[default]
    None,
    /// LZ4: fast.
    Lz4,
    /// Zstandard: smaller.
    Zstd,
}

/// How objects are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Encryption {
    /// Not.
    #[default]
    #[serde(rename = "none")]
    None,
    /// AES-256-GCM, each object under a key of its own.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
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

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{},{}", self.k, self.m, self.c, self.x)
    }
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
    /// Where the key is that protects the keys of objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretReference>,
    /// The number of the key of objects that new ones are encrypted under; of the others are older ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_key: Option<u32>,
    /// The number of one more, which is used as soon as every drive of the vPools under this preset has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_key_waiting: Option<u32>,
    /// Drives of these vPools that may not have this revision yet, since they do not answer: what they have is readable with
    /// the key of then. They get it when they are back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drives_behind: Vec<Name>,
    /// The largest fragment.
    pub fragment_size_bytes: u64,
    /// Policies, the best first; the first that can be satisfied is used.
    pub policies: Vec<Policy>,
    /// Used where no preset is named.
    pub is_default: bool,
    /// The backends that use it.
    #[serde(default)]
    pub backends: Vec<Name>,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
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
    /// Where ovsd finds the key that protects the keys of objects, 64 hexadecimal digits; with encryption only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretReference>,
    /// The largest fragment, a multiple of 32 KiB.
    #[schemars(range(min = 32_768, max = 134_217_728), extend("multipleOf" = 32_768))]
    pub fragment_size_bytes: u64,
    /// Policies, the best first.
    #[schemars(length(min = 1, max = 16))]
    pub policies: Vec<Policy>,
    /// What doors keep with it.
    #[serde(default)]
    pub labels: Labels,
}

impl Request for CreatePreset {
    fn check(&self) -> Result<(), Problem> {
        if self.policies.is_empty() || self.policies.len() > POLICY_COUNT_MAX {
            return Err(Problem::field(
                "policies",
                self.policies.len(),
                "1 to 16 of them, such as k=4, m=2, c=5, x=2",
            ));
        }
        for (number, policy) in self.policies.iter().enumerate() {
            check_policy(*policy)?;
            if self.policies[..number].contains(policy) {
                return Err(Problem::field("policies", policy, "each of them once"));
            }
        }
        let size = self.fragment_size_bytes;
        if !(FRAME_BYTES..=FRAGMENT_BYTES_MAX).contains(&size) || !size.is_multiple_of(FRAME_BYTES) {
            return Err(Problem::field(
                "fragment_size_bytes",
                size,
                "multiples of 32KiB from 32KiB to 128MiB",
            ));
        }
        match (self.encryption, &self.key) {
            (Encryption::Aes256Gcm, None) => Err(Problem::field(
                "key",
                "nothing",
                "with encryption, file:PATH or env:NAME of a key of 64 hexadecimal digits (openssl rand -hex 32)",
            )),
            (Encryption::None, Some(_)) => {
                Err(Problem::field("key", "a key", "nothing without encryption: ask for aes-256-gcm"))
            }
            _ => self.labels.check(),
        }
    }
}

/// Other keys for a preset that encrypts. No object is written again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotatePreset {
    /// Where ovsd finds the key that protects the keys of objects from now on; another place than the present one. The present one
    /// when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretReference>,
    /// Whether new objects are encrypted under a new key of their own; old ones stay under theirs.
    #[serde(default)]
    pub new_data_key: bool,
}

impl Request for RotatePreset {
    fn check(&self) -> Result<(), Problem> {
        match (&self.key, self.new_data_key) {
            (None, false) => Err(Problem::field(
                "key",
                "nothing",
                "file:PATH or env:NAME of the key from now on, or new_data_key, or both",
            )),
            _ => Ok(()),
        }
    }
}

fn check_policy(policy: Policy) -> Result<(), Problem> {
    let fragments = u16::from(policy.k) + u16::from(policy.m);
    let refused = |allowed| Err(Problem::field("policies", policy, allowed));
    match () {
        () if policy.k == 0 => refused("k of at least 1"),
        () if fragments > 255 => refused("k + m of at most 255"),
        () if policy.c < policy.k => refused("c of at least k: what is acknowledged has to be readable"),
        () if u16::from(policy.c) > fragments => refused("c of at most k + m: there are no more fragments"),
        () if policy.x == 0 => refused("x of at least 1"),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(change: &Value, expected: Result<(), &str>) {
        let mut request = json!({
            "name": "p", "compression": "none", "encryption": "none", "fragment_size_bytes": 4 << 20,
            "policies": [{"k": 4, "m": 2, "c": 5, "x": 2}],
        });
        for (member, value) in change.as_object().unwrap() {
            request[member] = value.clone();
        }
        let checked = serde_json::from_value::<CreatePreset>(request)
            .map_err(|error| error.to_string())
            .and_then(|request| request.check().map_err(|problem| problem.detail));
        match expected {
            Ok(()) => assert_eq!(checked, Ok(()), "{change}"),
            Err(words) => {
                let refused = checked.unwrap_err();
                assert!(refused.contains(words), "{change}: {refused}");
            }
        }
    }

    #[test]
    fn a_preset_can_be_kept() {
        check(&json!({}), Ok(()));
        check(&json!({"compression": "zstd", "policies": [{"k": 1, "m": 2, "c": 2, "x": 1}]}), Ok(()));
        check(&json!({"encryption": "aes-256-gcm", "key": "file:/etc/ovs/key"}), Ok(()));
        for (k, m, c, x, words) in [
            (0, 2, 2, 1, "k of at least 1"),
            (4, 2, 3, 1, "c of at least k"),
            (4, 2, 7, 1, "c of at most k + m"),
            (4, 2, 5, 0, "x of at least 1"),
            (250, 6, 251, 1, "k + m of at most 255"),
            (255, 255, 255, 255, "at most 255"),
        ] {
            check(&json!({"policies": [{"k": k, "m": m, "c": c, "x": x}]}), Err(words));
        }
        let policy = json!({"k": 1, "m": 0, "c": 1, "x": 1});
        check(&json!({"policies": []}), Err("1 to 16"));
        check(&json!({"policies": [policy, policy]}), Err("once"));
        check(&json!({"fragment_size_bytes": 4096}), Err("multiples of 32KiB"));
        check(&json!({"fragment_size_bytes": 512 << 20}), Err("multiples of 32KiB"));
        check(&json!({"compression": "bz2"}), Err("bz2"));
        check(&json!({"encryption": "aes-ctr-256"}), Err("aes-ctr-256"));
        check(&json!({"encryption": "aes-256-gcm"}), Err("openssl rand"));
        check(&json!({"key": "file:/etc/ovs/key"}), Err("without encryption"));
    }

    #[test]
    fn a_rotation_asks_for_something() {
        let check = |request: Value| {
            let request =
                serde_json::from_value::<RotatePreset>(request).map_err(|error| error.to_string())?;
            request.check().map_err(|problem| problem.detail)
        };
        assert!(check(json!({})).unwrap_err().contains("new_data_key"));
        check(json!({"new_data_key": true})).unwrap();
        check(json!({"key": "file:/etc/ovs/secrets/keys/new"})).unwrap();
        let refused = check(json!({"key": "deadbeef"})).unwrap_err();
        assert!(refused.contains("file:/PATH or env:NAME") && !refused.contains("deadbeef"), "{refused}");
    }

    #[test]
    fn a_key_is_never_given_as_itself() {
        for bad in ["deadbeefdeadbeef", "file:deadbeef", "env:", "env:A=deadbeef", "http://deadbeef"] {
            let text = json!({
                "name": "p", "compression": "none", "encryption": "aes-256-gcm", "fragment_size_bytes": 4 << 20, "key": bad,
                "policies": [{"k": 1, "m": 0, "c": 1, "x": 1}],
            });
            let refused = serde_json::from_value::<CreatePreset>(text).unwrap_err().to_string();
            assert!(refused.contains("file:/PATH or env:NAME") && !refused.contains("deadbeef"), "{refused}");
        }
    }
}
