//! Bearer tokens: who has one may do everything, so they are kept like keys.
//!
//! The file has a token per line (`#` begins a comment) and is nobody's but its owner's. It is looked at with every
//! request: a token that is taken out lets nobody in any more, on connections that are there too. In memory there are only
//! HMACs under a key that this process drew, compared in constant time. While the file is not as it should be, no token
//! is taken.

use crate::tls::Stamp;
use anyhow::{Context, bail};
use ring::{hmac, rand::SystemRandom};
use std::{
    fs::{File, Metadata},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// The file at most.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// A token of fewer characters could be guessed: `openssl rand -hex 32` gives 64.
const TOKEN_CHARS_MIN: usize = 32;

/// The tokens of a file.
pub struct Tokens {
    path: PathBuf,
    key: hmac::Key,
    known: Mutex<Known>,
}

struct Known {
    stamp: Option<Stamp>,
    tags: Vec<hmac::Tag>,
}

impl Tokens {
    /// Reads the file.
    pub fn load(path: &Path) -> anyhow::Result<Tokens> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("no random numbers"))?;
        let (stamp, tags) = read(path, &key).with_context(|| path.display().to_string())?;
        let known = Mutex::new(Known { stamp: Some(stamp), tags });
        Ok(Tokens { path: path.to_owned(), key, known })
    }

    /// True when the header `authorization` carries a token of the file as it is now.
    pub fn admit(&self, authorization: Option<&[u8]>) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(&self.path).ok();
        if stamp.is_none() || stamp != known.stamp {
            // Also when it is gone: then there is nothing to compare with until it is back.
            let was_there = known.stamp.is_some() || !known.tags.is_empty();
            *known = match read(&self.path, &self.key) {
                Ok((stamp, tags)) => {
                    tracing::info!(path = %self.path.display(), count = tags.len(), "tokens were read again");
                    Known { stamp: Some(stamp), tags }
                }
                Err(error) => {
                    if was_there {
                        let error = format!("{error:#}");
                        tracing::error!(path = %self.path.display(), error, "no token is taken");
                    }
                    Known { stamp, tags: Vec::new() }
                }
            };
        }
        let Some(token) = authorization.and_then(bearer) else { return false };
        // All of them, whichever it is.
        known
            .tags
            .iter()
            .fold(false, |found, tag| found | hmac::verify(&self.key, token, tag.as_ref()).is_ok())
    }
}

/// `Bearer TOKEN` (RFC 6750, section 2.1; the scheme in any case, RFC 9110, section 11.1).
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn read(path: &Path, key: &hmac::Key) -> anyhow::Result<(Stamp, Vec<hmac::Tag>)> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    check_owner(&meta)?;
    let mut text = String::new();
    if file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > FILE_BYTES_MAX {
        bail!("it is longer than {FILE_BYTES_MAX} bytes");
    }
    let mut tags = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let token = line.trim();
        if token.is_empty() || token.starts_with('#') {
            continue;
        }
        if token.len() < TOKEN_CHARS_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let number = index + 1;
            bail!(
                "line {number}: a token has at least {TOKEN_CHARS_MIN} visible ASCII characters (openssl rand -hex 32)"
            );
        }
        tags.push(hmac::sign(key, token.as_bytes()));
    }
    if tags.is_empty() {
        bail!("no token is in it (openssl rand -hex 32 makes one)");
    }
    Ok((Stamp::from(&meta), tags))
}

fn check_owner(meta: &Metadata) -> anyhow::Result<()> {
    let ours = rustix::process::geteuid().as_raw();
    if !meta.is_file() {
        bail!("it is not a file");
    }
    if meta.mode() & 0o077 != 0 {
        bail!("its mode is {:04o}; allowed is 0600: nobody but its owner may read it", meta.mode() & 0o7777);
    }
    if ![0, ours].contains(&meta.uid()) {
        bail!("it belongs to user {}; allowed are root and user {ours}, who runs ovsd", meta.uid());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    const FIRST: &str = "0123456789abcdef0123456789abcdef";
    const SECOND: &str = "fedcba9876543210fedcba9876543210";

    fn write(path: &Path, text: &str, mode: u32) {
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(new, path).unwrap();
    }

    #[test]
    fn a_file_that_others_can_read_or_that_can_be_guessed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        for (text, mode, expected) in [
            (FIRST, 0o644, "mode is 0644"),
            (FIRST, 0o620, "mode is 0620"),
            ("", 0o600, "no token"),
            ("# nothing\n\n", 0o600, "no token"),
            ("short", 0o600, "line 1"),
            (&format!("{FIRST}\n{SECOND} {SECOND}\n"), 0o600, "line 2"),
            (&"x".repeat(300 << 10), 0o600, "longer"),
        ] {
            write(&path, text, mode);
            let error = format!("{:#}", Tokens::load(&path).err().expect(expected));
            assert!(error.contains(expected) && error.contains("tokens: "), "{error}");
            assert!(!error.contains("short") && !error.contains(FIRST), "{error}");
        }
        assert!(Tokens::load(dir.path()).is_err() && Tokens::load(Path::new("/absent")).is_err());
    }

    #[test]
    fn tokens_come_and_go_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        write(&path, &format!("# laptop\n{FIRST}\n  {SECOND}\n"), 0o600);
        let tokens = Tokens::load(&path).unwrap();
        let admits = |header: &str| tokens.admit(Some(header.as_bytes()));
        assert!(admits(&format!("Bearer {FIRST}")) && admits(&format!("bearer  {SECOND} ")));
        for bad in ["", "Bearer", "Bearer ", FIRST, &format!("Basic {FIRST}"), &format!("Bearer {FIRST}x")] {
            assert!(!admits(bad), "{bad:?}");
        }
        assert!(!tokens.admit(None));
        write(&path, SECOND, 0o600);
        assert!(!admits(&format!("Bearer {FIRST}")) && admits(&format!("Bearer {SECOND}")));
        write(&path, SECOND, 0o640);
        assert!(!admits(&format!("Bearer {SECOND}")), "others can read it now");
        fs::remove_file(&path).unwrap();
        assert!(!admits(&format!("Bearer {SECOND}")), "gone");
        write(&path, SECOND, 0o400);
        assert!(admits(&format!("Bearer {SECOND}")), "back");
    }
}
