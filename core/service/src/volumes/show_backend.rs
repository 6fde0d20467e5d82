//! Backends as the API's documents.

use super::{
    Volumes,
    namespace::{folder_space, in_time},
    problem::not_found,
    remotes::{decode_store, kind_of, show_probe},
    stores::{BackendSet, Place},
};
use futures_util::future::join_all;
use ovs_api::{
    Backend as ApiBackend, BackendDrive, BackendKind, DriveDuty, ListQuery, Page, Problem, Timestamp,
};
use ovs_cluster::catalogue::{BackendRecord, DutyRecord, StoreRecord};
use ovs_remote::Limits;
use ovs_units::Name;
use std::path::PathBuf;
use uuid::Uuid;

impl Volumes {
    /// The backends by name. One that cannot be shown hides no other.
    pub async fn list_backends(&self, query: ListQuery) -> Result<Page<ApiBackend>, Problem> {
        let set = self.backend_set().await?;
        let items = set.by_name().into_iter().map(|record| (record.name.to_string(), record));
        let page = Page::cut(items, query.limit, query.cursor.as_ref())?;
        let mut items = Vec::new();
        for (record, shown) in
            page.items.iter().zip(join_all(page.items.iter().map(|record| self.show_in(&set, record))).await)
        {
            match shown {
                Ok(shown) => items.push(shown),
                Err(problem) => tracing::error!(backend = %record.name, %problem, "it cannot be shown"),
            }
        }
        Ok(Page { items, next_cursor: page.next_cursor })
    }

    /// One backend.
    pub async fn get_backend(&self, name: Name) -> Result<ApiBackend, Problem> {
        let stored = self.backend_by_name(&name).await?.ok_or_else(|| not_found("backend", &name))?;
        self.show_backend(&stored.record).await
    }

    pub(super) async fn show_backend(&self, record: &BackendRecord) -> Result<ApiBackend, Problem> {
        self.show_in(&self.backend_set().await?, record).await
    }

    async fn show_in(&self, set: &BackendSet, record: &BackendRecord) -> Result<ApiBackend, Problem> {
        let pool = self.pool_on(record.uuid);
        let space = match (pool.as_ref().and_then(|pool| pool.backend()), record.folder()) {
            (Some(backend), _) => {
                let space = in_time(&*self.clock, backend.capacity()).await.and_then(Result::ok).flatten();
                space.map(|space| (space.total_bytes, space.free_bytes))
            }
            (None, Some(path)) => folder_space(&*self.clock, PathBuf::from(path)).await,
            (None, None) => None,
        };
        let Place { node, site, .. } = set.place(record.uuid);
        let (path, probe, limits) = match &record.store {
            StoreRecord::Dir { path } => (path.clone(), None, Limits::default()),
            StoreRecord::Remote { store, probe, .. } => {
                let store = decode_store(store)?;
                (store.address(), show_probe(probe), store.limits)
            }
            StoreRecord::Composite { .. } => (String::new(), None, Limits::default()),
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
            upkeep: self.show_upkeep(record.uuid),
            problem: None,
            probe,
            bytes_per_s: limits.bytes_per_s,
            requests_max: limits.requests_max,
            total_bytes: space.map(|space| space.0),
            free_bytes: space.map(|space| space.1),
            created_at: Timestamp::from_unix_ms(record.created_ms),
        };
        if let StoreRecord::Composite { drives, preset, .. } = &record.store {
            let mut problems = Vec::new();
            for drive in join_all(drives.iter().map(|drive| self.show_drive(set, record, *drive))).await {
                match drive {
                    Ok(drive) => shown.drives.push(drive),
                    Err(problem) => problems.push(problem.detail),
                }
            }
            match set.preset(*preset) {
                Ok(preset) => {
                    shown.preset = Some(preset.name.clone());
                    shown.plan = self.plan_of(set, &set.serving(record), preset).await.ok();
                }
                Err(problem) => problems.push(problem.detail),
            }
            shown.problem = (!problems.is_empty()).then(|| problems.join("; "));
        }
        Ok(shown)
    }

    async fn show_drive(
        &self,
        set: &BackendSet,
        composite: &BackendRecord,
        uuid: Uuid,
    ) -> Result<BackendDrive, Problem> {
        let (drive, mut parts) = (set.backend(uuid)?, set.parts_asked(uuid)?);
        let duty = match composite.duty(uuid) {
            None => DriveDuty::Serving,
            Some(DutyRecord::Leaving) => DriveDuty::Leaving,
            Some(DutyRecord::Lost | DutyRecord::GivenUp) => {
                parts.clear();
                DriveDuty::Lost
            }
        };
        let leaves: Vec<&BackendRecord> = parts.into_iter().filter(|part| part.drives().is_empty()).collect();
        let asked = join_all(leaves.iter().map(|leaf| self.ask_leaf(leaf))).await;
        let (mut total_bytes, mut problems) = (None, Vec::new());
        for (leaf, asked) in leaves.iter().zip(asked) {
            match asked {
                Ok(bytes) => total_bytes = bytes.filter(|_| leaf.uuid == uuid),
                Err(reason) if leaf.uuid == uuid => problems.push(reason),
                Err(reason) => problems.push(format!("{}: {reason}", leaf.name)),
            }
        }
        let Place { node, site, .. } = set.place(uuid);
        Ok(BackendDrive {
            uuid,
            name: drive.name.clone(),
            kind: kind(drive)?,
            node,
            site,
            weight: drive.labels.weight,
            duty,
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
            total_bytes,
        })
    }

    /// The room of a drive in the end, or why its vPool cannot use it.
    async fn ask_leaf(&self, leaf: &BackendRecord) -> Result<Option<u64>, String> {
        // A vPool that is offline has drives all the same: what is mounted where one of them was is not it.
        let used = self
            .drives
            .borrow()
            .iter()
            .find(|((uuid, _), _)| *uuid == leaf.uuid)
            .map(|(_, drive)| drive.clone());
        match (used, leaf.folder()) {
            (Some(drive), _) => match drive.space().await {
                Ok(space) => drive.trouble().map_or(Ok(space.map(|space| space.total_bytes)), Err),
                Err(error) => Err(error.to_string()),
            },
            (None, Some(path)) => match folder_space(&*self.clock, PathBuf::from(path)).await {
                Some((total_bytes, _)) => Ok(Some(total_bytes)),
                None => Err(format!("{path} cannot be read, or its file system does not answer")),
            },
            (None, None) => Ok(None),
        }
    }
}

fn kind(record: &BackendRecord) -> Result<BackendKind, Problem> {
    Ok(match &record.store {
        StoreRecord::Dir { .. } => BackendKind::Dir,
        StoreRecord::Remote { store, .. } => kind_of(&decode_store(store)?),
        StoreRecord::Composite { .. } => BackendKind::Composite,
    })
}
