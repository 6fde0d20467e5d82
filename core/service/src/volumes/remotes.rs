//! Object stores as backends: between the words of the API, of the registry and of `ovs-remote`.

use super::{Volumes, problem::from_backend, secrets::Secrets};
use ovs_api::{BackendKind, ProbeResult, Problem, ProblemKind};
use ovs_cluster::catalogue::{CredentialsRecord, StoreRecord};
use ovs_remote::{
    Credentials, KeystoneProject, Limits, Probe, PutIfAbsent, RemoteBackend, RemoteKind, RemoteOptions,
    RemoteStore,
};
use std::time::Duration;
use tokio::runtime::Handle;

/// What our names begin with where nobody says it.
const PREFIX: &str = "ovs";
/// Who creates a backend waits: a store that does not answer is tried for so long.
pub(super) const PROBE_RETRY: Duration = Duration::from_secs(3);
/// All of it takes so long at most.
const PROBE_PATIENCE: Duration = Duration::from_secs(20);

/// A store's record, before it was tried.
pub(super) fn store_of(kind: BackendKind, asked: &ovs_api::RemoteStore) -> Option<StoreRecord> {
    let endpoint = asked.endpoint.clone();
    let container = asked.container.clone();
    let kind = match kind {
        BackendKind::S3 => RemoteKind::S3 {
            endpoint: endpoint?,
            region: asked.region.clone().unwrap_or_else(|| "us-east-1".into()),
            bucket: container,
            bucket_in_host: asked.bucket_in_host,
        },
        BackendKind::Swift => RemoteKind::Swift {
            auth: endpoint?,
            container,
            project: asked.project.clone().map(|name| KeystoneProject {
                name,
                domain: asked.domain.clone().unwrap_or_else(|| "Default".into()),
                region: asked.region.clone(),
            }),
            storage: None,
        },
        BackendKind::Gcs => RemoteKind::Gcs { endpoint, bucket: container },
        BackendKind::Azure => RemoteKind::Azblob { endpoint: endpoint?, container },
        BackendKind::Dir | BackendKind::Composite => return None,
    };
    let store = RemoteStore {
        kind,
        prefix: asked.prefix.clone().unwrap_or_else(|| PREFIX.into()),
        limits: Limits { bytes_per_s: asked.bytes_per_s, requests_max: asked.requests_max },
    };
    Some(StoreRecord::Remote {
        store: serde_json::to_value(store).ok()?,
        credentials: CredentialsRecord {
            user: asked.user.as_ref().map(|user| user.as_str().to_owned()),
            secret: asked.secret.as_str().to_owned(),
        },
        probe: serde_json::Value::Null,
    })
}

/// The store that a record describes.
pub(super) fn decode_store(store: &serde_json::Value) -> Result<RemoteStore, Problem> {
    let damaged = |error| Problem::new(ProblemKind::Damaged, format!("a backend's store: {error}"));
    serde_json::from_value(store.clone()).map_err(damaged)
}

/// The type as the API names it.
pub(super) fn kind_of(store: &RemoteStore) -> BackendKind {
    match store.kind {
        RemoteKind::S3 { .. } => BackendKind::S3,
        RemoteKind::Swift { .. } => BackendKind::Swift,
        RemoteKind::Gcs { .. } => BackendKind::Gcs,
        RemoteKind::Azblob { .. } => BackendKind::Azure,
    }
}

/// Opens a store; nobody is asked yet.
pub(super) async fn open_store(
    store: RemoteStore,
    credentials: &CredentialsRecord,
    secrets: &Secrets,
    options: RemoteOptions,
    runtime: Handle,
) -> Result<RemoteBackend, Problem> {
    let user = match &credentials.user {
        Some(user) => secrets.of_store("user", user).await?,
        None => ovs_remote::Secret::new(""),
    };
    let secret = secrets.of_store("secret", &credentials.secret).await?;
    RemoteBackend::open(store, Credentials { name: user, secret }, options, runtime)
        .map_err(|error| Problem::new(ProblemKind::Conflict, format!("remote: {error}")))
}

/// What a stored probe says.
pub(super) fn show_probe(probe: &serde_json::Value) -> Option<ProbeResult> {
    let probe: Probe = serde_json::from_value(probe.clone()).ok()?;
    let put_if_absent = match probe.put_if_absent {
        PutIfAbsent::OneWinner => "one_winner",
        PutIfAbsent::SeveralWinners => "several_winners",
        PutIfAbsent::Unclear => "unclear",
        PutIfAbsent::Ignored => "ignored",
        PutIfAbsent::Refused => "refused",
        PutIfAbsent::NotOffered => "not_offered",
    };
    Some(ProbeResult {
        is_usable: probe.is_usable(),
        reads_after_put: probe.reads_after_put,
        reads_ranges: probe.reads_ranges,
        lists_after_put: probe.lists_after_put,
        lists_in_order: probe.lists_in_order,
        deletes: probe.deletes,
        lists_after_delete: probe.lists_after_delete,
        put_if_absent: put_if_absent.to_owned(),
        put_ms: probe.put_ms,
        get_ms: probe.get_ms,
    })
}

impl Volumes {
    /// Tries a store, and gives its record with what came of it. One that does not keep the rules is refused.
    pub(super) async fn probe_store(&self, record: StoreRecord) -> Result<StoreRecord, Problem> {
        let StoreRecord::Remote { store, credentials, .. } = record else { return Ok(record) };
        let options = RemoteOptions { retry: PROBE_RETRY, ..RemoteOptions::new(self.seed()) };
        let described = decode_store(&store)?;
        let shown = described.to_string();
        let backend =
            open_store(described, &credentials, &self.secrets(), options, self.runtime.clone()).await?;
        let probe = tokio::time::timeout(PROBE_PATIENCE, backend.probe()).await.map_err(|_| {
            let seconds = PROBE_PATIENCE.as_secs();
            let detail = format!("remote: {shown} was not tried to the end within {seconds} s");
            Problem::new(ProblemKind::Unavailable, detail)
        })?;
        let probe = probe.map_err(from_backend)?;
        let result = serde_json::to_value(&probe).unwrap_or_default();
        if !probe.is_usable() {
            let detail = format!("remote: {shown} does not keep the rules that data rests on: {result}");
            return Err(Problem::new(ProblemKind::Conflict, detail).with("probe", result));
        }
        Ok(StoreRecord::Remote { store, credentials, probe: result })
    }

    /// A number that no other backend draws.
    pub(super) fn seed(&self) -> u64 {
        self.chance.uuid().as_u64_pair().1
    }
}
