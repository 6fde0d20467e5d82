//! Passwords and keys: where they come from, and a type that does not show them.

use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};
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
    /// A file of root's, or of whoever runs this process, that nobody else may read. White space at its end does not count.
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
    /// A file where secrets are not.
    #[error("{} lies outside of {}: secrets are read from there alone", .path.display(), .folder.display())]
    Elsewhere {
        /// The file.
        path: PathBuf,
        /// Where secrets are.
        folder: PathBuf,
    },
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
    /// Somebody else can change it.
    #[error("{}: its owner is user {owner}; allowed is root alone", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
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
    /// Reads it now: a file is one below `folder`, and no link. It is read again at each call, so that it may be changed.
    pub fn read_below(&self, folder: &Path) -> Result<Secret, SecretError> {
        let text = match self {
            SecretReference::File(path) => self.read_private(path, folder)?,
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

    /// What is looked at is what is read: whoever may change the folder meanwhile gets nothing else shown.
    fn read_private(&self, path: &Path, folder: &Path) -> Result<String, SecretError> {
        let unreadable = |error| SecretError::Unreadable { path: path.to_owned(), error };
        let file = open_below(path, folder)?;
        let meta = file.metadata().map_err(unreadable)?;
        if !meta.is_file() {
            return Err(self.malformed("it is no file"));
        }
        if meta.uid() != 0 && meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(SecretError::Foreign { path: path.to_owned(), owner: meta.uid() });
        }
        if meta.mode() & 0o077 != 0 {
            return Err(SecretError::Exposed { path: path.to_owned(), mode: meta.mode() & 0o7777 });
        }
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(unreadable)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(self.malformed("it is longer than 64 KiB"));
        }
        String::from_utf8(text).map_err(|_| self.malformed("not UTF-8"))
    }

    fn malformed(&self, reason: &'static str) -> SecretError {
        SecretError::Malformed { reference: self.to_string(), reason }
    }
}

/// Opens each part of the way from the one before, and follows no link.
fn open_below(path: &Path, folder: &Path) -> Result<File, SecretError> {
    let is_plain = |below: &&Path| below.components().all(|part| matches!(part, Component::Normal(_)));
    let Some(below) = path.strip_prefix(folder).ok().filter(is_plain) else {
        return Err(SecretError::Elsewhere { path: path.to_owned(), folder: folder.to_owned() });
    };
    let unreadable =
        |error: rustix::io::Errno| SecretError::Unreadable { path: path.to_owned(), error: error.into() };
    let is_folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = openat(CWD, folder, is_folder, Mode::empty()).map_err(unreadable)?;
    let mut parts = below.components().peekable();
    while let Some(part) = parts.next() {
        let flags = match parts.peek() {
            Some(_) => is_folder,
            // Nobody is waited for at the other end of a pipe.
            None => OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        };
        at = openat(&at, part.as_os_str(), flags | OFlags::NOFOLLOW, Mode::empty()).map_err(unreadable)?;
    }
    Ok(File::from(at))
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
    use std::{fs, os::unix::fs::PermissionsExt};

    fn read(path: &Path, folder: &Path) -> Result<Secret, SecretError> {
        SecretReference::try_from(format!("file:{}", path.display())).unwrap().read_below(folder)
    }

    fn check(read: Result<Secret, SecretError>, expected: Result<&str, &str>) {
        match (read, expected) {
            (Ok(secret), Ok(expected)) => assert_eq!(secret.reveal(), expected),
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{error}");
                assert!(!error.to_string().contains("hunter2"), "{error}");
            }
            (got, expected) => panic!("{got:?}, not {expected:?}"),
        }
    }

    fn write_private(path: &Path, text: &[u8], mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn check_file(text: &[u8], mode: u32, expected: Result<&str, &str>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write_private(&path, text, mode);
        check(read(&path, folder.path()), expected);
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
    fn what_leads_out_of_the_folder_is_not_read() {
        let world = tempfile::tempdir().unwrap();
        let (folder, outside) = (world.path().join("secrets"), world.path().join("outside"));
        fs::create_dir_all(folder.join("below")).unwrap();
        fs::create_dir(&outside).unwrap();
        write_private(&folder.join("below/key"), b"hunter2", 0o600);
        write_private(&outside.join("key"), b"hunter2", 0o600);
        std::os::unix::fs::symlink(outside.join("key"), folder.join("link")).unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("links")).unwrap();
        check(read(&folder.join("below/key"), &folder), Ok("hunter2"));
        for (bad, words) in [
            ("../outside/key", "lies outside"),
            ("below/../../outside/key", "lies outside"),
            ("../secrets-2/key", "lies outside"),
            ("link", "symbolic link"),
            ("links/key", "irectory"),
            ("below", "no file"),
            ("below/nothing", "No such file"),
            ("", "no file"),
        ] {
            check(read(&folder.join(bad), &folder), Err(words));
        }
        rustix::fs::mknodat(CWD, folder.join("pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        check(read(&folder.join("pipe"), &folder), Err("no file"));
    }

    /// The check and the reading are of one file, however quickly somebody puts another one in its place.
    #[test]
    fn a_file_that_changes_into_a_link_is_never_followed() {
        let world = tempfile::tempdir().unwrap();
        let (folder, outside) = (world.path().join("secrets"), world.path().join("outside"));
        fs::create_dir(&folder).unwrap();
        write_private(&outside, b"hunter2", 0o600);
        write_private(&world.path().join("mine"), b"mine", 0o600);
        let path = folder.join("key");
        let is_over = std::sync::atomic::AtomicBool::new(false);
        let over = || is_over.load(std::sync::atomic::Ordering::SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over() {
                    let _ = fs::remove_file(&path);
                    let _ = fs::hard_link(world.path().join("mine"), &path);
                    let _ = fs::remove_file(&path);
                    let _ = std::os::unix::fs::symlink(&outside, &path);
                }
            });
            let read: Vec<_> = (0..5000).map(|_| read(&path, &folder)).collect();
            is_over.store(true, std::sync::atomic::Ordering::SeqCst);
            assert!(read.iter().flatten().all(|secret| secret.reveal() == "mine"));
        });
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
        let absent = SecretReference::try_from("env:OVS_SECRET_NO_SUCH".to_owned()).unwrap();
        assert!(absent.read_below(Path::new("/")).unwrap_err().to_string().contains("no such variable"));
    }
}
