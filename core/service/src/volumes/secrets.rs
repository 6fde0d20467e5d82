//! Secrets: where ovsd looks for them.
//!
//! Whoever may use the RPC names files and variables that ovsd reads, and what it reads for a store is shown to a server of his
//! choice. So these are few, and keys are never shown to a server:
//!
//! ```text
//!  keys of presets:        secrets/keys/… beside ovsd.yaml        variables OVS_SECRET_KEY_…
//!  credentials of stores:  secrets/stores/… beside ovsd.yaml      variables OVS_SECRET_STORE_…
//! ```

use super::Volumes;
use ovs_api::{Problem, ProblemKind};
use ovs_remote::{Secret, SecretReference};
use std::path::{Path, PathBuf};

/// What variables of the environment with keys begin with.
const KEY_PREFIX: &str = "OVS_SECRET_KEY_";
/// What those with credentials begin with.
const STORE_PREFIX: &str = "OVS_SECRET_STORE_";

/// Where secrets are.
#[derive(Debug, Clone)]
pub(super) struct Secrets(PathBuf);

impl Volumes {
    pub(super) fn secrets(&self) -> Secrets {
        Secrets(self.settings.paths.config_file().with_file_name("secrets"))
    }
}

impl Secrets {
    /// What the keys of a preset are encrypted under, as it is now.
    pub(super) async fn key(&self, reference: &str) -> Result<Secret, Problem> {
        read("key", reference, self.0.join("keys"), KEY_PREFIX).await
    }

    /// What a store is shown, as it is now.
    pub(super) async fn of_store(&self, field: &'static str, reference: &str) -> Result<Secret, Problem> {
        read(field, reference, self.0.join("stores"), STORE_PREFIX).await
    }
}

async fn read(
    field: &'static str,
    reference: &str,
    folder: PathBuf,
    prefix: &'static str,
) -> Result<Secret, Problem> {
    let reference = reference.to_owned();
    let read = tokio::task::spawn_blocking(move || parse_and_read(reference, &folder, prefix)).await;
    match read {
        Ok(read) => read.map_err(|reason| Problem::new(ProblemKind::Conflict, format!("{field}: {reason}"))),
        Err(error) => Err(Problem::new(ProblemKind::Internal, format!("{field}: {error}"))),
    }
}

fn parse_and_read(reference: String, folder: &Path, prefix: &str) -> Result<Secret, String> {
    let parsed = SecretReference::try_from(reference).map_err(|error| error.to_string())?;
    if matches!(&parsed, SecretReference::Environment(name) if !name.starts_with(prefix)) {
        // Perhaps it is the secret that was given for its name: it is not shown.
        return Err(format!("ovsd reads variables whose names begin with {prefix} for this, and no others"));
    }
    parsed.read_below(folder).map_err(|error| error.to_string())
}
