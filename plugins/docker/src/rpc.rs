//! [`Ovsd`] over the real RPC. The client waits a while for an ovsd that is being restarted, and every answer has a
//! time limit, so that Docker gets an error and not silence.

use crate::ovsd::{NewVdisk, Ovsd, OvsdError, Vdisk};
use ovs_api::{
    ApiError, Client, CreateVdisk, DeleteVdiskQuery, LabelSelector, Labels, LabelsPatch, PatchVdisk,
    ProblemKind, SnapshotRef, Source, VdiskQuery, VdiskRef,
};
use ovs_units::{Name, VdiskId};
use std::{path::Path, time::Duration};

/// How long an ovsd that is being restarted is waited for. Docker itself waits 60 s for Get and List, 120 s for others.
const PATIENCE: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_secs(30);
/// Volumes asked for at a time.
const PAGE: u32 = 1000;
/// More volumes than this on one ovsd: the list stops here rather than never.
const PAGES_MAX: usize = 1000;

/// ovsd, over its socket.
pub struct Rpc {
    client: Client,
}

impl Rpc {
    /// Connects with each call.
    pub fn new(socket: &Path) -> Rpc {
        Rpc { client: Client::new(socket).patience(PATIENCE).timeout(TIMEOUT) }
    }

    async fn list(&self, name: Option<&Name>) -> Result<Vec<Vdisk>, OvsdError> {
        let label = LabelSelector { key: crate::ovsd::LABEL_VOLUME.to_owned(), value: None };
        let mut query = VdiskQuery {
            name: name.cloned(),
            is_template: Some(false),
            label: vec![label],
            limit: Some(PAGE),
            ..VdiskQuery::default()
        };
        let mut volumes = Vec::new();
        for _ in 0..PAGES_MAX {
            let page = self.client.list_vdisks(&query).await.map_err(error)?;
            volumes.extend(page.items.into_iter().map(vdisk).filter(Vdisk::is_volume));
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                break;
            }
        }
        Ok(volumes)
    }

    async fn one(&self, of: VdiskRef) -> Result<Vdisk, OvsdError> {
        Ok(vdisk(self.client.get_vdisk(&of).await.map_err(error)?))
    }
}

impl Ovsd for Rpc {
    async fn volumes_named(&self, name: &Name) -> Result<Vec<Vdisk>, OvsdError> {
        self.list(Some(name)).await
    }

    async fn volumes(&self) -> Result<Vec<Vdisk>, OvsdError> {
        self.list(None).await
    }

    async fn vdisk(&self, uuid: VdiskId) -> Result<Vdisk, OvsdError> {
        self.one(VdiskRef::Id(uuid)).await
    }

    async fn vdisk_named(&self, vpool: &Name, name: &Name) -> Result<Vdisk, OvsdError> {
        self.one(VdiskRef::Name { vpool: vpool.clone(), name: name.clone() }).await
    }

    async fn create(&self, new: &NewVdisk) -> Result<Vdisk, OvsdError> {
        let mut request = CreateVdisk::new(new.vpool.clone(), new.name.clone());
        request.size_bytes = new.size_bytes;
        request.limits = new.limits.into();
        request.cache = new.cache.into();
        request.description = "Docker volume".to_owned();
        request.labels = Labels(new.labels.clone());
        match &new.origin {
            Some((uuid, origin)) if origin.is_template => request.template = Some(VdiskRef::Id(*uuid)),
            Some((uuid, origin)) => {
                let snapshot = origin.snapshot.clone().map(SnapshotRef::Name);
                request.source = Some(Source { vdisk: VdiskRef::Id(*uuid), snapshot });
            }
            None => {}
        }
        let mut created = self.client.create_vdisk(&request).await;
        if created.as_ref().is_err_and(may_have_happened) {
            created = self.client.create_vdisk(&request).await;
        }
        Ok(vdisk(created.map_err(error)?.value))
    }

    async fn set_labels(&self, uuid: VdiskId, labels: &[(&str, &str)]) -> Result<(), OvsdError> {
        let labels =
            labels.iter().map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned()))).collect();
        let patch = PatchVdisk { labels: LabelsPatch(labels), ..PatchVdisk::default() };
        let mut result = self.client.update_vdisk(&VdiskRef::Id(uuid), &patch).await;
        if result.as_ref().is_err_and(may_have_happened) {
            result = self.client.update_vdisk(&VdiskRef::Id(uuid), &patch).await;
        }
        result.map(|_| ()).map_err(error)
    }

    async fn delete(&self, uuid: VdiskId) -> Result<(), OvsdError> {
        match self.client.delete_vdisk(&VdiskRef::Id(uuid), &DeleteVdiskQuery::default()).await.map_err(error)
        {
            Err(OvsdError::NotFound(_)) => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

/// ovsd went in the middle of it. What is sent again from here does twice what it does once.
fn may_have_happened(error: &ApiError) -> bool {
    matches!(error, ApiError::Broken { .. } | ApiError::TimedOut { .. })
}

fn vdisk(of: ovs_api::Vdisk) -> Vdisk {
    let state = serde_json::to_value(of.state).ok().and_then(|state| state.as_str().map(str::to_owned));
    let state = state.unwrap_or_else(|| "unknown".to_owned());
    Vdisk {
        uuid: of.uuid,
        vpool: of.vpool,
        name: of.name,
        size_bytes: of.size_bytes,
        allocated_bytes: of.allocated_bytes.saturating_add(of.buffered_bytes),
        is_template: of.is_template,
        snapshot_count: of.snapshot_count,
        state: match of.state_reason {
            Some(reason) => format!("{state}: {reason}"),
            None => state,
        },
        created_at: of.created_at.0,
        file: of.fuse_path.into(),
        labels: of.labels.0,
    }
}

fn error(error: ApiError) -> OvsdError {
    let text = error.to_string();
    match error {
        ApiError::Refused(problem) => match problem.kind() {
            ProblemKind::NotFound => OvsdError::NotFound(text),
            ProblemKind::Exists => OvsdError::Exists(text),
            ProblemKind::InUse => OvsdError::InUse(text),
            ProblemKind::Unavailable => OvsdError::Unreachable(text),
            _ => OvsdError::Refused(text),
        },
        ApiError::Unreachable { .. } | ApiError::TimedOut { .. } | ApiError::Broken { .. } => {
            OvsdError::Unreachable(text)
        }
        ApiError::NotUnderstood { .. } => OvsdError::Refused(text),
    }
}
