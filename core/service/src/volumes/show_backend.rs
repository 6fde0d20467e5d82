//! Backends as the API's documents.

use super::{
    Volumes,
    namespace::folder_space,
    problem::not_found,
    remotes::{decode_store, kind_of, show_probe},
    stores::BackendSet,
};
use ovs_api::{Backend as ApiBackend, BackendDrive, BackendKind, ListQuery, Page, Problem, Timestamp};
use ovs_backend::Backend;
use ovs_cluster::catalogue::{BackendRecord, StoreRecord};
use ovs_units::Name;
use std::path::PathBuf;

impl Volumes {
    /// The backends by name.
    pub async fn list_backends(&self, query: ListQuery) -> Result<Page<ApiBackend>, Problem> {
        let mut records = self.all_backends().await?;
        records.sort_by(|one, other| one.name.cmp(&other.name));
        let items = records.into_iter().map(|record| (record.name.to_string(), record));
        let page = Page::cut(items, query.limit, query.cursor.as_ref())?;
        let mut shown = Vec::new();
        for record in &page.items {
            shown.push(self.show_backend(record).await?);
        }
        Ok(Page { items: shown, next_cursor: page.next_cursor })
    }

    /// One backend.
    pub async fn get_backend(&self, name: Name) -> Result<ApiBackend, Problem> {
        let stored = self.backend_by_name(&name).await?.ok_or_else(|| not_found("backend", &name))?;
        self.show_backend(&stored.record).await
    }

    pub(super) async fn show_backend(&self, record: &BackendRecord) -> Result<ApiBackend, Problem> {
        let set = self.backend_set().await?;
        let pool = self.pool_on(record.uuid);
        let space = match (pool.as_ref().and_then(|pool| pool.backend()), record.folder()) {
            (Some(backend), _) => {
                backend.capacity().await.ok().flatten().map(|space| (space.total_bytes, space.free_bytes))
            }
            (None, Some(path)) => folder_space(PathBuf::from(path)).await,
            (None, None) => None,
        };
        let (node, site) = set.place(record, &self.settings.host_name);
        let (path, probe) = match &record.store {
            StoreRecord::Dir { path } => (path.clone(), None),
            StoreRecord::Remote { store, probe, .. } => (decode_store(store)?.address(), show_probe(probe)),
            StoreRecord::Composite { .. } => (String::new(), None),
        };
        let mut shown = ApiBackend {
            uuid: record.uuid,
            name: record.name.clone(),
            revision: record.version,
            kind: kind(record)?,
            path,
            nodes: vec![self.settings.host_name.clone()],
            node,
            site,
            weight: record.labels.weight,
            vpool: pool.map(|pool| pool.record().name),
            drive_of: set.composite_of(record.uuid).map(|user| user.name.clone()),
            drives: Vec::new(),
            preset: None,
            plan: None,
            probe,
            total_bytes: space.map(|space| space.0),
            free_bytes: space.map(|space| space.1),
            created_at: Timestamp::from_unix_ms(record.created_ms),
        };
        if let StoreRecord::Composite { drives, preset } = &record.store {
            let preset = set.preset(*preset)?;
            let drives: Result<Vec<BackendRecord>, _> =
                drives.iter().map(|uuid| set.backend(*uuid).cloned()).collect();
            let drives = drives?;
            shown.preset = Some(preset.name.clone());
            shown.plan = Some(self.plan_of(&set, &drives, preset).await?);
            for drive in &drives {
                shown.drives.push(self.show_drive(&set, record, drive).await?);
            }
        }
        Ok(shown)
    }

    async fn show_drive(
        &self,
        set: &BackendSet,
        composite: &BackendRecord,
        drive: &BackendRecord,
    ) -> Result<BackendDrive, Problem> {
        let (node, site) = set.place(drive, &self.settings.host_name);
        // The vPool is on the outermost of the composites.
        let mut outermost = composite;
        while let Some(user) = set.composite_of(outermost.uuid) {
            outermost = user;
        }
        let opened = self.pool_on(outermost.uuid).and_then(|pool| pool.drive(drive.uuid));
        let (problem, total_bytes) = match (opened, drive.folder()) {
            (Some(opened), _) => match opened.capacity().await {
                Ok(space) => (None, space.map(|space| space.total_bytes)),
                Err(error) => (Some(error.to_string()), None),
            },
            (None, Some(path)) => match folder_space(PathBuf::from(path)).await {
                Some((total_bytes, _)) => (None, Some(total_bytes)),
                None => (Some(format!("{path} cannot be read")), None),
            },
            (None, None) => (None, None),
        };
        Ok(BackendDrive {
            uuid: drive.uuid,
            name: drive.name.clone(),
            kind: kind(drive)?,
            node,
            site,
            weight: drive.labels.weight,
            problem,
            total_bytes,
        })
    }
}

fn kind(record: &BackendRecord) -> Result<BackendKind, Problem> {
    Ok(match &record.store {
        StoreRecord::Dir { .. } => BackendKind::Dir,
        StoreRecord::Remote { store, .. } => kind_of(&decode_store(store)?),
        StoreRecord::Composite { .. } => BackendKind::Composite,
    })
}
