//! Secrets: where ovsd looks for them.
//!
//! Whoever may use the RPC names files and variables that ovsd reads and shows to a store. So these are few: files below the
//! folder of `ovsd.yaml`, and variables that begin with `OVS_`.

use super::Volumes;
use ovs_api::{Problem, ProblemKind};
use ovs_remote::{Secret, SecretReference};
use std::path::{Path, PathBuf};

/// What variables of the environment with secrets begin with.
const VARIABLE_PREFIX: &str = "OVS_";

impl Volumes {
    /// The folder that secrets are in.
    pub(super) fn secrets_folder(&self) -> PathBuf {
        let config = self.settings.paths.config_file();
        config.parent().map(Path::to_owned).unwrap_or(config)
    }
}

/// Reads a secret now.
pub(super) async fn read_secret(field: &str, reference: &str, folder: &Path) -> Result<Secret, Problem> {
    let refused = |reason: String| Problem::new(ProblemKind::Conflict, format!("{field}: {reason}"));
    let parsed =
        SecretReference::try_from(reference.to_owned()).map_err(|error| refused(error.to_string()))?;
    let folder = folder.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        match &parsed {
            SecretReference::Environment(name) if !name.starts_with(VARIABLE_PREFIX) => {
                return Err(format!(
                    "{parsed}: ovsd reads variables that begin with {VARIABLE_PREFIX} alone"
                ));
            }
            SecretReference::File(path) => {
                let is_inside = match (path.canonicalize(), folder.canonicalize()) {
                    (Ok(path), Ok(folder)) => path.starts_with(folder),
                    (Err(error), _) => return Err(format!("{}: {error}", path.display())),
                    _ => false,
                };
                if !is_inside {
                    let (path, folder) = (path.display(), folder.display());
                    return Err(format!("{path} lies outside of {folder}: ovsd reads secrets there alone"));
                }
            }
            SecretReference::Environment(_) => {}
        }
        parsed.resolve().map_err(|error| error.to_string())
    });
    match read.await {
        Ok(read) => read.map_err(refused),
        Err(error) => Err(Problem::new(ProblemKind::Internal, format!("{field}: {error}"))),
    }
}
