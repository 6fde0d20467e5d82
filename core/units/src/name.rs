//! Names that users give: vPools, vDisks, snapshots. Never a path.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// A name as `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a name was refused; the text says what was given and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "name {given:?} is not allowed: 1 to 128 characters, the first a letter or digit, the others letters, digits, '_', '.' or '-'"
)]
pub struct NameError {
    given: String,
}

impl Name {
    /// Refuses whatever is not a name.
    pub fn new(text: &str) -> Result<Name, NameError> {
        let bytes = text.as_bytes();
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let good =
            (1..=128).contains(&bytes.len()) && bytes[0].is_ascii_alphanumeric() && bytes.iter().all(allowed);
        if good {
            Ok(Name(text.to_owned()))
        } else {
            // A hostile name may be megabytes long: the message keeps its beginning only.
            Err(NameError { given: text.chars().take(140).collect() })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Name, NameError> {
        Name::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Name, NameError> {
        Name::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl schemars::JsonSchema for Name {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$",
            "description": "1 to 128 characters, the first a letter or digit; never a path"
        })
    }
}

/// `vpool/vdisk` or `vpool/vdisk@snapshot`, as users and NBD clients write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdiskPath {
    /// The vPool's name.
    pub vpool: Name,
    /// The vDisk's name.
    pub vdisk: Name,
    /// The snapshot's name, if one was given.
    pub snapshot: Option<Name>,
}

/// Why a path was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VdiskPathError {
    /// Not of the form `POOL/NAME` or `POOL/NAME@SNAPSHOT`.
    #[error("{0:?} is not of the form POOL/NAME or POOL/NAME@SNAPSHOT")]
    Form(String),
    /// One of its parts is no name.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for VdiskPath {
    type Err = VdiskPathError;
    fn from_str(text: &str) -> Result<VdiskPath, VdiskPathError> {
        let form = || VdiskPathError::Form(text.chars().take(400).collect());
        let (vpool, rest) = text.split_once('/').ok_or_else(form)?;
        let (vdisk, snapshot) = match rest.split_once('@') {
            Some((vdisk, snapshot)) => (vdisk, Some(Name::new(snapshot)?)),
            None => (rest, None),
        };
        Ok(VdiskPath { vpool: Name::new(vpool)?, vdisk: Name::new(vdisk)?, snapshot })
    }
}

impl fmt::Display for VdiskPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vpool, self.vdisk)?;
        match &self.snapshot {
            Some(snapshot) => write!(f, "@{snapshot}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, good: bool) {
        assert_eq!(Name::new(text).is_ok(), good, "{text:?}");
    }

    #[test]
    fn names_are_never_paths() {
        check("a", true);
        check("0.x-Y_z", true);
        check(&"a".repeat(128), true);
        for bad in
            ["", ".", "..", ".x", "-x", "a/b", "../../etc/x", "a b", "a\0", "é", "a@b", &"a".repeat(129)]
        {
            check(bad, false);
        }
    }

    #[test]
    fn paths_round_trip() {
        for text in ["default/x", "p/v@s"] {
            assert_eq!(text.parse::<VdiskPath>().unwrap().to_string(), text);
        }
        for bad in ["x", "p/", "/x", "p/v@", "p/v/w", "p/v@s@t"] {
            assert!(bad.parse::<VdiskPath>().is_err(), "{bad}");
        }
    }
}
