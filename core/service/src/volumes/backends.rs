//! Backends: making them, showing them, forgetting them.

use super::{
    Volumes,
    idempotency::Terms,
    namespace::{cannot_use, folder_space, make_folder, real_path},
    problem::{exists, from_catalogue, not_found},
};
use ovs_api::{
    Backend as ApiBackend, BackendKind, CreateBackend, Created, EventKind, ListQuery, Page, Problem,
    ProblemKind, Timestamp,
};
use ovs_cluster::catalogue::{BackendRecord, CatalogueError, FORMAT, Stored, VpoolRecord};
use ovs_units::Name;
use std::path::{Path, PathBuf};

impl Volumes {
    /// Makes a backend.
    pub async fn create_backend(
        &self,
        request: CreateBackend,
        terms: Terms,
    ) -> Result<Created<ApiBackend>, Problem> {
        let _locked = self.locks.lock("backends").await;
        let asked = serde_json::to_value(&request).unwrap_or_default();
        if let Some(uuid) = self.idempotent::<BackendRecord>(&terms, &asked).await? {
            return Ok(Created::existing(
                self.show_backend(&self.catalogue.get(uuid).await.map_err(from_catalogue)?.record).await?,
            ));
        }
        if let Some(known) = self.backend_by_name(&request.name).await? {
            if known.record.request != asked {
                return Err(exists("backend", &request.name, known.record.uuid));
            }
            return Ok(Created::existing(self.show_backend(&known.record).await?));
        }
        let path = PathBuf::from(&request.path);
        self.check_backend_path(&path).await?;
        make_folder(&path).await.map_err(|error| cannot_use(&path, &error))?;
        let record = self.insert_backend(request.name, &path, asked.clone()).await?;
        self.remember(&terms, &asked, record.uuid).await?;
        Ok(Created::new(self.show_backend(&record).await?))
    }

    pub(super) async fn insert_backend(
        &self,
        name: Name,
        path: &Path,
        request: serde_json::Value,
    ) -> Result<BackendRecord, Problem> {
        let record = BackendRecord {
            format: FORMAT,
            uuid: self.chance.uuid(),
            name,
            version: 1,
            kind: "dir".into(),
            path: path.to_string_lossy().into_owned(),
            created_ms: self.clock.wall_ms(),
            request,
        };
        let record = self.catalogue.insert(record).await.map_err(from_catalogue)?.record;
        self.write_inventory().await?;
        self.publish(EventKind::BackendCreated, |event| {
            event.subject = Some(record.uuid);
            event.name = Some(record.name.to_string());
            event.revision = Some(record.version);
        });
        Ok(record)
    }

    /// A folder in another backend's folder, or around it, would mix their objects.
    pub(super) async fn check_backend_path(&self, path: &Path) -> Result<(), Problem> {
        let real = real_path(path).await;
        for known in self.all_backends().await? {
            let other = real_path(Path::new(&known.path)).await;
            if real.starts_with(&other) || other.starts_with(&real) {
                let detail = format!(
                    "path: {} is, holds or lies in {}, the folder of backend {}",
                    path.display(),
                    known.path,
                    known.name
                );
                return Err(Problem::new(ProblemKind::InUse, detail).with("uuid", known.uuid.to_string()));
            }
        }
        Ok(())
    }

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

    /// Forgets a backend that no vPool uses; what is in its folder stays.
    pub async fn delete_backend(&self, name: Name, terms: Terms) -> Result<(), Problem> {
        let _locked = self.locks.lock("backends").await;
        let stored = self.backend_by_name(&name).await?.ok_or_else(|| not_found("backend", &name))?;
        terms.check_revision(stored.record.version)?;
        if let Some(pool) = self.pool_on(stored.record.uuid) {
            return Err(backend_in_use(&name, &pool.record()));
        }
        self.forget_backend(&stored).await
    }

    pub(super) async fn forget_backend(&self, stored: &Stored<BackendRecord>) -> Result<(), Problem> {
        self.catalogue.remove(stored).await.map_err(from_catalogue)?;
        self.object_gone(stored.record.uuid).await;
        self.write_inventory().await?;
        self.publish(EventKind::BackendDeleted, |event| {
            event.subject = Some(stored.record.uuid);
            event.name = Some(stored.record.name.to_string());
        });
        Ok(())
    }

    pub(super) async fn all_backends(&self) -> Result<Vec<BackendRecord>, Problem> {
        let log = |error: CatalogueError| tracing::error!(%error, "a backend's record cannot be read");
        let stored = self.catalogue.all::<BackendRecord>(log).await.map_err(from_catalogue)?;
        Ok(stored.into_iter().map(|stored| stored.record).collect())
    }

    pub(super) async fn backend_by_name(
        &self,
        name: &Name,
    ) -> Result<Option<Stored<BackendRecord>>, Problem> {
        self.catalogue.find_by(&BackendRecord::name_key(name)).await.map_err(from_catalogue)
    }

    async fn show_backend(&self, record: &BackendRecord) -> Result<ApiBackend, Problem> {
        let space = match self.pool_on(record.uuid).and_then(|pool| pool.backend()) {
            Some(backend) => {
                backend.capacity().await.ok().flatten().map(|space| (space.total_bytes, space.free_bytes))
            }
            None => folder_space(PathBuf::from(&record.path)).await,
        };
        Ok(ApiBackend {
            uuid: record.uuid,
            name: record.name.clone(),
            revision: record.version,
            kind: BackendKind::Dir,
            path: record.path.clone(),
            nodes: vec![self.settings.host_name.clone()],
            vpool: self.pool_on(record.uuid).map(|pool| pool.record().name),
            total_bytes: space.map(|space| space.0),
            free_bytes: space.map(|space| space.1),
            created_at: Timestamp::from_unix_ms(record.created_ms),
        })
    }
}

pub(super) fn backend_in_use(name: &Name, vpool: &VpoolRecord) -> Problem {
    let detail = format!("backend {name} is used by vPool {}", vpool.name);
    Problem::new(ProblemKind::InUse, detail).with("uuid", vpool.id.to_string())
}
