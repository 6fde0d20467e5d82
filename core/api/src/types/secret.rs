use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::Value;
use std::fmt;

/// Where ovsd finds a secret on its host: `file:/PATH`, a file that nobody but its owner may read, or `env:NAME`, a variable
/// of its environment. Never a secret itself: what is none of these is refused and shown nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(into = "String")]
#[schemars(
    with = "String",
    extend("pattern" = "^(file:/[^\\x00-\\x1f\\x7f-\\x9f]*|env:[A-Za-z_][A-Za-z0-9_]*)$", "maxLength" = 4000)
)]
pub struct SecretReference(String);

impl SecretReference {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SecretReference {
    type Error = &'static str;

    fn try_from(text: String) -> Result<SecretReference, &'static str> {
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let is_good = match text.split_once(':') {
            Some(("file", path)) => path.starts_with('/') && !path.contains(char::is_control),
            Some(("env", name)) => is_name(name),
            _ => false,
        };
        if is_good && text.len() <= 4000 {
            return Ok(SecretReference(text));
        }
        // What was given may be the secret: it is not shown.
        Err("a secret is given as file:/PATH or env:NAME, never as itself")
    }
}

/// What is no text may be the secret as well: it is not shown either.
impl<'de> Deserialize<'de> for SecretReference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SecretReference, D::Error> {
        let text = match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            _ => String::new(),
        };
        SecretReference::try_from(text).map_err(D::Error::custom)
    }
}

impl From<SecretReference> for String {
    fn from(reference: SecretReference) -> String {
        reference.0
    }
}

impl fmt::Display for SecretReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
