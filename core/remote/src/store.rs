//! What a store is: its kind, its address, the place in it that is ours.

use crate::answer::Protocol;
use ovs_backend::ObjectName;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A store and the place in it that is ours. Nothing outside of `prefix` is ever read, written or listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteStore {
    /// Which protocol, and where.
    #[serde(flatten)]
    pub kind: RemoteKind,
    /// Before each name, with a `/` between: itself an object name.
    pub prefix: String,
    /// What it is asked for at most.
    #[serde(default, skip_serializing_if = "Limits::are_none")]
    pub limits: Limits,
}

/// What a store is asked for at most, by this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes per second, sent and received each: 64 KiB to 1 TiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
    /// Requests at once: 1 to 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_max: Option<u32>,
}

impl Limits {
    fn are_none(&self) -> bool {
        *self == Limits::default()
    }
}

/// The protocols. Addresses are URLs with `http://` or `https://`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RemoteKind {
    /// Amazon's S3 and what speaks like it.
    S3 {
        /// For instance `https://s3.eu-west-1.amazonaws.com`.
        endpoint: String,
        /// Part of what is signed; what a store of one's own has is told in its configuration, mostly `us-east-1`.
        region: String,
        /// There already.
        bucket: String,
        /// The bucket is in the host's name and not in the path. AWS wants it so.
        #[serde(default)]
        bucket_in_host: bool,
    },
    /// OpenStack's Swift.
    Swift {
        /// Ends in `/v1.0` (TempAuth, Ceph) or `/v3` (Keystone).
        auth: String,
        /// There already.
        container: String,
        /// Keystone only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        project: Option<KeystoneProject>,
        /// Instead of the storage URL that the authentication names.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        storage: Option<String>,
    },
    /// Google's Cloud Storage.
    Gcs {
        /// Google's own when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// There already.
        bucket: String,
    },
    /// Azure's blobs.
    Azblob {
        /// For instance `https://ACCOUNT.blob.core.windows.net`.
        endpoint: String,
        /// There already.
        container: String,
    },
}

/// Whose objects a Keystone token is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeystoneProject {
    /// Its name.
    pub name: String,
    /// The domain of project and user.
    pub domain: String,
    /// Which of the catalogue's endpoints; the first when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

impl RemoteStore {
    /// The address as errors and listings show it: no user, no secret.
    pub fn address(&self) -> String {
        format!("{}/{}/{}", self.endpoint(), self.container(), self.prefix)
    }

    /// The server's part of it.
    pub fn endpoint(&self) -> &str {
        let endpoint = match &self.kind {
            RemoteKind::S3 { endpoint, .. } | RemoteKind::Azblob { endpoint, .. } => endpoint.as_str(),
            RemoteKind::Swift { auth, .. } => auth.as_str(),
            RemoteKind::Gcs { endpoint, .. } => {
                endpoint.as_deref().unwrap_or("https://storage.googleapis.com")
            }
        };
        endpoint.trim_end_matches('/')
    }

    /// As configurations name the kind.
    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind {
            RemoteKind::S3 { .. } => "s3",
            RemoteKind::Swift { .. } => "swift",
            RemoteKind::Gcs { .. } => "gcs",
            RemoteKind::Azblob { .. } => "azblob",
        }
    }

    pub(crate) fn protocol(&self) -> Protocol {
        match self.kind {
            RemoteKind::S3 { .. } => Protocol::S3,
            RemoteKind::Swift { .. } => Protocol::Swift,
            RemoteKind::Gcs { .. } => Protocol::Gcs,
            RemoteKind::Azblob { .. } => Protocol::Azblob,
        }
    }

    /// What is wrong with it; nothing of it is shown but names.
    pub(crate) fn check(&self) -> Result<(), String> {
        // It may hold a password.
        if self.urls().iter().any(|url| !is_plain_url(url)) {
            return Err(
                "a URL of it is no http:// or https:// URL without user, query and fragment".to_owned()
            );
        }
        if ObjectName::new(self.prefix.as_str()).is_err() {
            return Err("the prefix is no object name".to_owned());
        }
        // Part of each URL, and what is signed.
        let container = self.container();
        if !is_word(container, 255) || container.contains("..") {
            return Err("the bucket or container is no name of letters, digits, '.', '_' and '-'".to_owned());
        }
        if self.limits.bytes_per_s.is_some_and(|bytes| !(64 << 10..=1 << 40).contains(&bytes)) {
            return Err("its bytes per second are not 64 KiB to 1 TiB".to_owned());
        }
        if self.limits.requests_max.is_some_and(|requests| !(1..=1024).contains(&requests)) {
            return Err("its requests at once are not 1 to 1024".to_owned());
        }
        match &self.kind {
            RemoteKind::S3 { region, .. } if !is_word(region, 128) => {
                Err("the region is no name of letters, digits, '.', '_' and '-'".to_owned())
            }
            // One label (RFC 1123, 2.1): a certificate for all buckets is for one.
            RemoteKind::S3 { bucket_in_host: true, .. }
                if container.len() > 63 || container.contains(['_', '.']) || container.ends_with('-') =>
            {
                Err("the bucket cannot be a part of a host's name".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn container(&self) -> &str {
        match &self.kind {
            RemoteKind::S3 { bucket, .. } | RemoteKind::Gcs { bucket, .. } => bucket,
            RemoteKind::Swift { container, .. } | RemoteKind::Azblob { container, .. } => container,
        }
    }

    /// Every URL in it.
    pub(crate) fn urls(&self) -> Vec<&str> {
        match &self.kind {
            RemoteKind::S3 { endpoint, .. } | RemoteKind::Azblob { endpoint, .. } => vec![endpoint],
            RemoteKind::Swift { auth, storage, .. } => {
                std::iter::once(auth.as_str()).chain(storage.as_deref()).collect()
            }
            RemoteKind::Gcs { endpoint, .. } => endpoint.as_deref().into_iter().collect(),
        }
    }
}

impl fmt::Display for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind_name(), self.address())
    }
}

fn is_word(text: &str, length_max: usize) -> bool {
    text.len() <= length_max
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// Without a user, a query and a fragment, which do not belong into an address and may be secret.
pub(crate) fn is_plain_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && !rest.contains(|c: char| matches!(c, '@' | '?' | '#') || c.is_whitespace() || c.is_control())
    })
}
