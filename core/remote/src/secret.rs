//! Passwords and keys: where they come from, and a type that does not show them.

use serde::{Deserialize, Serialize};
use std::{fmt, fs, io, os::unix::fs::MetadataExt, path::PathBuf};
use thiserror::Error;

/// A file of credentials is a line, or a JSON document of a cloud.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Something that nobody may see. Neither its `Debug` nor any error shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// For the one who uses it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Where a secret is: `file:PATH` or `env:NAME`. This is what a registry stores and a command line is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretReference {
    /// A file that nobody but its owner may read. White space at its end does not count.
    File(PathBuf),
    /// A variable of the process's environment.
    Environment(String),
}

/// Why there is no secret. The text never has a part of it.
#[derive(Debug, Error)]
pub enum SecretError {
    /// A secret itself, or anything else; so what it was is not shown.
    #[error("a secret is given as file:PATH or env:NAME, never as itself")]
    NotAReference,
    /// No file, or no right to read it.
    #[error("{}: {error}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Others may read it.
    #[error("{}: its mode is {mode:04o}; allowed is 0600: nobody but its owner may read it", .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Empty, no text, or far too long for a secret.
    #[error("{reference} has no secret: {reason}")]
    Malformed {
        /// The reference.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl SecretReference {
    /// Reads it now. A file is read again at each call, so that it may be changed.
    pub fn resolve(&self) -> Result<Secret, SecretError> {
        let text = match self {
            SecretReference::File(path) => read_private(path)?,
            SecretReference::Environment(name) => std::env::var(name).map_err(|error| {
                self.malformed(match error {
                    std::env::VarError::NotPresent => "no such variable",
                    std::env::VarError::NotUnicode(_) => "not UTF-8",
                })
            })?,
        };
        let text = text.trim_end();
        if text.is_empty() {
            return Err(self.malformed("it is empty"));
        }
        Ok(Secret::new(text))
    }

    fn malformed(&self, reason: &'static str) -> SecretError {
        SecretError::Malformed { reference: self.to_string(), reason }
    }
}

fn read_private(path: &PathBuf) -> Result<String, SecretError> {
    let unreadable = |error| SecretError::Unreadable { path: path.clone(), error };
    let meta = fs::metadata(path).map_err(unreadable)?;
    if meta.mode() & 0o077 != 0 {
        return Err(SecretError::Exposed { path: path.clone(), mode: meta.mode() & 0o7777 });
    }
    let reference = || SecretReference::File(path.clone());
    if meta.len() > FILE_BYTES_MAX {
        return Err(reference().malformed("it is longer than 64 KiB"));
    }
    String::from_utf8(fs::read(path).map_err(unreadable)?).map_err(|_| reference().malformed("not UTF-8"))
}

impl TryFrom<String> for SecretReference {
    type Error = SecretError;

    fn try_from(text: String) -> Result<SecretReference, SecretError> {
        match text.split_once(':') {
            Some(("file", path)) if path.starts_with('/') => Ok(SecretReference::File(path.into())),
            Some(("env", name)) if !name.is_empty() && !name.contains(['=', '\0']) => {
                Ok(SecretReference::Environment(name.to_owned()))
            }
            _ => Err(SecretError::NotAReference),
        }
    }
}

impl From<SecretReference> for String {
    fn from(reference: SecretReference) -> String {
        reference.to_string()
    }
}

impl fmt::Display for SecretReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretReference::File(path) => write!(f, "file:{}", path.display()),
            SecretReference::Environment(name) => write!(f, "env:{name}"),
        }
    }
}

/// Who asks the store: a user, an access key or an account, and the secret that proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// S3: the access key's id. Swift: the user. Azure: the account. GCS: nothing.
    pub name: Secret,
    /// S3: the secret key. Swift: the password. Azure: the account's key. GCS: the service account's JSON.
    pub secret: Secret,
}

impl Credentials {
    /// Both parts.
    pub fn new(name: impl Into<String>, secret: impl Into<String>) -> Credentials {
        Credentials { name: Secret::new(name), secret: Secret::new(secret) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn check_file(text: &[u8], mode: u32, expected: Result<&str, &str>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let reference = SecretReference::try_from(format!("file:{}", path.display())).unwrap();
        match (reference.resolve(), expected) {
            (Ok(secret), Ok(expected)) => assert_eq!(secret.reveal(), expected),
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{error}");
                assert!(!error.to_string().contains("hunter2"), "{error}");
            }
            (got, expected) => panic!("{got:?}, not {expected:?}"),
        }
    }

    #[test]
    fn a_file_is_its_owners_alone() {
        check_file(b"hunter2\n", 0o600, Ok("hunter2"));
        check_file(b"hunter2 hunter2 ", 0o400, Ok("hunter2 hunter2"));
        check_file(b"hunter2", 0o640, Err("mode is 0640"));
        check_file(b"hunter2", 0o604, Err("mode is 0604"));
        check_file(b"\n", 0o600, Err("it is empty"));
        check_file(b"hunter2\xff", 0o600, Err("not UTF-8"));
        check_file(&[b'x'; 70_000], 0o600, Err("longer than 64 KiB"));
    }

    #[test]
    fn a_secret_is_no_reference_and_is_never_shown() {
        for text in ["hunter2", "", "file:", "file:relative", "env:", "env:A=hunter2", "http://hunter2"] {
            let error = SecretReference::try_from(text.to_owned()).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert_eq!(
            format!("{:?}", Credentials::new("me", "hunter2")),
            "Credentials { name: Secret, secret: Secret }"
        );
        let absent = SecretReference::try_from("env:OVS_NO_SUCH_VARIABLE".to_owned()).unwrap();
        assert!(absent.resolve().unwrap_err().to_string().contains("no such variable"));
    }
}
