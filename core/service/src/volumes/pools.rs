//! Backends and vPools: making them, finding them again, deleting them.
//!
//! ```text
//!  <backend path>/vpool-<uuid>/            the vPool's own folder (namespace), a directory backend of its own
//!  <backend path>/vpool-<uuid>/pool/config-<version>     its record, write-once: the highest version counts
//! ```
//!
//! One backend holds one vPool. The vPool's record is on its backend before a request that changed it returns, so that
//! the folder alone tells which vPool it is.

use super::{
    Volumes,
    idempotency::Terms,
    inventory::{Inventory, KnownBackend, KnownVpool},
    problem::{from_backend, from_catalogue, not_found},
};
use crate::process::make_durable_folder;
use bytes::Bytes;
use ovs_api::{
    Backend as ApiBackend, BackendKind, CreateBackend, CreateVpool, Created, DeleteVpoolQuery, EventKind,
    ListQuery, OnFull, Page, PatchVpool, Problem, ProblemKind, Timestamp, Vpool, VpoolState,
};
use ovs_backend::{Backend, BackendError, DirBackend, DirOptions, ObjectName, Urgency};
use ovs_cluster::catalogue::{
    BackendRecord, CatalogueError, FORMAT, OnFullPolicy, State, Stored, VdiskRecord, VpoolRecord, decode,
};
use ovs_units::{Name, VpoolId};
use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};
use uuid::Uuid;

/// The only preset there is.
pub(crate) const PRESET: &str = "default";
/// A vDisk that is made without a size has this one.
const DEFAULT_SIZE_BYTES: u64 = 10 << 30;
/// How long deleted vDisks stay in the trash.
const TRASH_RETENTION_S: u64 = 24 * 3600;
/// How long a vPool's deletion waits for the objects of its deleted vDisks to go.
const EMPTYING_PATIENCE: Duration = Duration::from_secs(10);
/// A vPool's record on its backend is never longer than this.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// A vPool of this host, in use.
pub struct Pool {
    record: RefCell<VpoolRecord>,
    backend: RefCell<Option<Rc<dyn Backend>>>,
    problem: RefCell<Option<String>>,
    is_recovering: Cell<bool>,
}

impl Pool {
    pub(super) fn new(record: VpoolRecord) -> Pool {
        Pool {
            record: RefCell::new(record),
            backend: RefCell::new(None),
            problem: RefCell::new(None),
            is_recovering: Cell::new(false),
        }
    }

    /// Its record.
    pub fn record(&self) -> VpoolRecord {
        self.record.borrow().clone()
    }

    pub(super) fn set_record(&self, record: VpoolRecord) {
        *self.record.borrow_mut() = record;
    }

    /// Where its objects are, if that could be opened.
    pub fn backend(&self) -> Option<Rc<dyn Backend>> {
        self.backend.borrow().clone()
    }

    /// Why it does not serve.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    pub(super) fn set_problem(&self, problem: Option<String>) {
        *self.problem.borrow_mut() = problem;
    }

    pub(super) fn set_recovering(&self, is_recovering: bool) {
        self.is_recovering.set(is_recovering);
    }

    pub(super) fn is_recovering(&self) -> bool {
        self.is_recovering.get()
    }
}

impl Volumes {
    // ---- backends

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
    async fn check_backend_path(&self, path: &Path) -> Result<(), Problem> {
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

    async fn forget_backend(&self, stored: &Stored<BackendRecord>) -> Result<(), Problem> {
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

    async fn backend_by_name(&self, name: &Name) -> Result<Option<Stored<BackendRecord>>, Problem> {
        self.catalogue.find_by(&BackendRecord::name_key(name)).await.map_err(from_catalogue)
    }

    fn pool_on(&self, backend: Uuid) -> Option<Rc<Pool>> {
        self.pools.borrow().values().find(|pool| pool.record.borrow().backend == backend).cloned()
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

    // ---- vPools

    /// Makes a vPool, on the backend given or one of its own.
    pub async fn create_vpool(&self, request: CreateVpool, terms: Terms) -> Result<Created<Vpool>, Problem> {
        let path = self.settings.paths.state_dir().join("backend").join(request.name.as_str());
        self.create_vpool_at(request, path, terms).await
    }

    /// The same with the folder that a backend of its own gets.
    pub(super) async fn create_vpool_at(
        &self,
        request: CreateVpool,
        own_path: PathBuf,
        terms: Terms,
    ) -> Result<Created<Vpool>, Problem> {
        let _locked = self.locks.lock("backends").await;
        let asked = serde_json::to_value(&request).unwrap_or_default();
        if let Some(uuid) = self.idempotent::<VpoolRecord>(&terms, &asked).await? {
            return Ok(Created::existing(self.show_vpool(&*self.pool(VpoolId(uuid))?).await?));
        }
        if let Some(pool) = self.find_pool(&request.name) {
            let record = pool.record();
            if record.request != asked {
                return Err(exists("vPool", &request.name, record.id.0));
            }
            return Ok(Created::existing(self.show_vpool(&pool).await?));
        }
        if let Some(preset) = request.preset.as_ref().filter(|preset| preset.as_str() != PRESET) {
            return Err(Problem::new(ProblemKind::NotFound, format!("preset: there is no preset {preset}")));
        }
        let (backend, owns_backend) = match &request.backend {
            Some(name) => {
                let stored = self.backend_by_name(name).await?.ok_or_else(|| not_found("backend", name))?;
                if let Some(pool) = self.pool_on(stored.record.uuid) {
                    return Err(backend_in_use(name, &pool.record()));
                }
                (stored.record, false)
            }
            None => (self.own_backend(&request.name, &own_path).await?, true),
        };
        let id = VpoolId(self.chance.uuid());
        let record = VpoolRecord {
            format: FORMAT,
            id,
            name: request.name,
            version: 1,
            state: State::Creating,
            backend: backend.uuid,
            namespace: format!("vpool-{id}"),
            owns_backend,
            preset: Name::new(PRESET).expect("a name"),
            description: request.description,
            on_full: to_policy(request.on_full.unwrap_or_default()),
            stall_timeout_ms: request.stall_timeout_ms.filter(|ms| *ms > 0),
            default_size_bytes: request.default_size_bytes.unwrap_or(DEFAULT_SIZE_BYTES),
            trash_retention_s: request.trash_retention_s.unwrap_or(TRASH_RETENTION_S),
            labels: request.labels.0,
            created_ms: self.clock.wall_ms(),
            request: asked.clone(),
        };
        // Prepare: the intention. Put: the folder with the vPool's record. Finish: ready.
        let prepared = self.catalogue.insert(record).await.map_err(from_catalogue)?;
        let ready = VpoolRecord { state: State::Ready, ..prepared.record.clone() };
        let made = async {
            let store = open_namespace(&backend.path, &ready.namespace, Namespace::New).await?;
            put_config(&*store, &ready).await?;
            Ok::<_, Problem>(store)
        };
        let store = match made.await {
            Ok(store) => store,
            Err(problem) => {
                self.abandon_vpool(&prepared, Some(&backend)).await;
                return Err(problem);
            }
        };
        let stored = self.catalogue.update(&prepared, ready).await.map_err(from_catalogue)?;
        let pool = Rc::new(Pool::new(stored.record));
        self.attach_pool(&pool, store);
        self.write_inventory().await?;
        self.remember(&terms, &asked, id.0).await?;
        self.publish_vpool(EventKind::VpoolCreated, &pool);
        Ok(Created::new(self.show_vpool(&pool).await?))
    }

    /// The backend that a vPool gets when it names none: with its own name, or with a longer one if that is taken.
    async fn own_backend(&self, vpool: &Name, path: &Path) -> Result<BackendRecord, Problem> {
        self.check_backend_path(path).await?;
        make_folder(path).await.map_err(|error| cannot_use(path, &error))?;
        let mut name = vpool.clone();
        if self.backend_by_name(&name).await?.is_some() {
            let short: String = vpool.as_str().chars().take(110).collect();
            let random = &self.chance.uuid().simple().to_string()[..8];
            name = Name::new(&format!("{short}-{random}")).expect("a name and eight digits are a name");
        }
        self.insert_backend(name, path, serde_json::Value::Null).await
    }

    /// Takes back a vPool that was not finished: nothing of it has been seen by anybody.
    pub(super) async fn abandon_vpool(
        &self,
        prepared: &Stored<VpoolRecord>,
        backend: Option<&BackendRecord>,
    ) {
        let folder = backend.map(|backend| Path::new(&backend.path).join(&prepared.record.namespace));
        let gone = match folder {
            Some(folder) => remove_folder(folder).await.map_err(|error| error.to_string()),
            None => Ok(()),
        };
        let gone = match gone {
            Ok(()) => self.catalogue.remove(prepared).await.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        match gone {
            Ok(()) => {
                tracing::warn!(vpool = %prepared.record.name, "a vPool that was not finished is taken back")
            }
            Err(error) => {
                tracing::error!(vpool = %prepared.record.name, %error, "a vPool that was not finished is still there");
            }
        }
        if prepared.record.owns_backend
            && let Ok(Some(stored)) = self.catalogue.find::<BackendRecord>(prepared.record.backend).await
            && let Err(problem) = self.forget_backend(&stored).await
        {
            tracing::error!(backend = %stored.record.name, %problem, "a backend without a vPool is still there");
        }
    }

    /// The vPools by name.
    pub async fn list_vpools(&self, query: ListQuery) -> Result<Page<Vpool>, Problem> {
        let mut pools: Vec<Rc<Pool>> = self.pools.borrow().values().cloned().collect();
        pools.sort_by_key(|pool| pool.record().name);
        let items = pools.into_iter().map(|pool| (pool.record().name.to_string(), pool));
        let page = Page::cut(items, query.limit, query.cursor.as_ref())?;
        let mut shown = Vec::new();
        for pool in &page.items {
            shown.push(self.show_vpool(pool).await?);
        }
        Ok(Page { items: shown, next_cursor: page.next_cursor })
    }

    /// One vPool.
    pub async fn get_vpool(&self, name: Name) -> Result<Vpool, Problem> {
        let pool = self.pool_by_name(&name)?;
        self.show_vpool(&pool).await
    }

    /// Changes a vPool's settings.
    pub async fn update_vpool(&self, name: Name, patch: PatchVpool, terms: Terms) -> Result<Vpool, Problem> {
        let _locked = self.locks.lock("backends").await;
        let pool = self.pool_by_name(&name)?;
        let stored = self.catalogue.get::<VpoolRecord>(pool.record().id.0).await.map_err(from_catalogue)?;
        terms.check_revision(stored.record.version)?;
        let mut record = stored.record.clone();
        if let Some(on_full) = patch.on_full {
            record.on_full = to_policy(on_full);
        }
        if let Some(timeout_ms) = patch.stall_timeout_ms {
            record.stall_timeout_ms = Some(timeout_ms).filter(|ms| *ms > 0);
        }
        record.default_size_bytes = patch.default_size_bytes.unwrap_or(record.default_size_bytes);
        record.trash_retention_s = patch.trash_retention_s.unwrap_or(record.trash_retention_s);
        if let Some(description) = patch.description {
            record.description = description;
        }
        record.labels = ovs_api::Labels(record.labels).patched(&patch.labels)?.0;
        if record == stored.record {
            return self.show_vpool(&pool).await;
        }
        record.version += 1;
        // The backend's copy first: its highest version counts in a recovery, and a version is never used twice
        // (the same one with other contents would be a conflict), so that a crash in between skips one at most.
        let store = pool.backend().ok_or_else(|| offline(&pool))?;
        record.version = record.version.max(newest_version(&*store).await?.unwrap_or(0) + 1);
        put_config(&*store, &record).await?;
        let stored = self.catalogue.update(&stored, record).await.map_err(from_catalogue)?;
        *pool.record.borrow_mut() = stored.record;
        self.publish_vpool(EventKind::VpoolUpdated, &pool);
        self.show_vpool(&pool).await
    }

    /// Deletes a vPool without vDisks, with its objects and the backend that was made for it.
    pub async fn delete_vpool(
        self: &Rc<Self>,
        name: Name,
        query: DeleteVpoolQuery,
        terms: Terms,
    ) -> Result<(), Problem> {
        let pool = self.pool_by_name(&name)?;
        let id = pool.record().id;
        terms.check_revision(pool.record().version)?;
        if query.purge_trash {
            self.purge_trash_of(id).await?;
        }
        let _locked = self.locks.lock("backends").await;
        let _creating = self.locks.lock(format!("vpool/{id}")).await;
        let stored = self.catalogue.get::<VpoolRecord>(id.0).await.map_err(from_catalogue)?;
        terms.check_revision(stored.record.version)?;
        let members = self.catalogue.index(&VdiskRecord::members_prefix(id)).await.map_err(from_catalogue)?;
        if !members.is_empty() {
            let uuids: Vec<String> = members.iter().take(100).map(|(_, uuid)| uuid.to_string()).collect();
            let detail =
                format!("vPool {name} has {} vDisks (those in the trash are counted)", members.len());
            return Err(Problem::new(ProblemKind::InUse, detail).with("vdisks", serde_json::json!(uuids)));
        }
        let deleting = VpoolRecord {
            state: State::Deleting,
            version: stored.record.version + 1,
            ..stored.record.clone()
        };
        let stored = self.catalogue.update(&stored, deleting).await.map_err(from_catalogue)?;
        self.pools.borrow_mut().remove(&id);
        if let Some(store) = pool.backend() {
            self.wait_until_empty(&*store).await;
        }
        self.engine.detach_backend(id);
        self.finish_vpool_delete(&stored).await?;
        self.publish_vpool(EventKind::VpoolDeleted, &pool);
        Ok(())
    }

    /// The engine removes a deleted vDisk's objects, and then what it knows of it, in the background: it gets a moment.
    async fn wait_until_empty(&self, store: &dyn Backend) {
        let deadline = self.clock.now() + EMPTYING_PATIENCE;
        while store.list("v/", None, 1).await.is_ok_and(|left| !left.is_empty())
            && self.clock.now() < deadline
        {
            self.clock.sleep(Duration::from_millis(20)).await;
        }
    }

    /// The rest of a vPool's deletion; also done at start-up.
    pub(super) async fn finish_vpool_delete(&self, stored: &Stored<VpoolRecord>) -> Result<(), Problem> {
        let backend =
            self.catalogue.find::<BackendRecord>(stored.record.backend).await.map_err(from_catalogue)?;
        if let Some(backend) = &backend {
            let folder = Path::new(&backend.record.path).join(&stored.record.namespace);
            remove_folder(folder.clone()).await.map_err(|error| cannot_use(&folder, &error))?;
        }
        self.catalogue.remove(stored).await.map_err(from_catalogue)?;
        self.object_gone(stored.record.id.0).await;
        if let Some(backend) = backend.filter(|_| stored.record.owns_backend) {
            self.forget_backend(&backend).await?;
        }
        self.write_inventory().await
    }

    /// The vPool in use with this UUID.
    pub(super) fn pool(&self, id: VpoolId) -> Result<Rc<Pool>, Problem> {
        self.pools.borrow().get(&id).cloned().ok_or_else(|| not_found("vPool", id))
    }

    /// The vPool in use with this name.
    pub(super) fn pool_by_name(&self, name: &Name) -> Result<Rc<Pool>, Problem> {
        self.find_pool(name).ok_or_else(|| not_found("vPool", name))
    }

    fn find_pool(&self, name: &Name) -> Option<Rc<Pool>> {
        self.pools.borrow().values().find(|pool| pool.record.borrow().name == *name).cloned()
    }

    /// All vPools in use, by name.
    pub(crate) fn all_pools(&self) -> Vec<Rc<Pool>> {
        let mut pools: Vec<Rc<Pool>> = self.pools.borrow().values().cloned().collect();
        pools.sort_by_key(|pool| pool.record().name);
        pools
    }

    /// Takes a vPool into use.
    pub(super) fn attach_pool(&self, pool: &Rc<Pool>, store: Rc<dyn Backend>) {
        let id = pool.record.borrow().id;
        self.engine.attach_backend(id, store.clone());
        *pool.backend.borrow_mut() = Some(store);
        pool.set_problem(None);
        self.pools.borrow_mut().insert(id, pool.clone());
    }

    /// Keeps a vPool whose backend could not be opened: it is shown, and tried again.
    pub(super) fn keep_pool_offline(&self, pool: &Rc<Pool>, reason: String) {
        tracing::error!(vpool = %pool.record().name, %reason, "a vPool cannot be used");
        pool.set_problem(Some(reason));
        self.pools.borrow_mut().insert(pool.record().id, pool.clone());
    }

    /// Opens the backend of a vPool.
    pub(super) async fn open_pool_backend(&self, record: &VpoolRecord) -> Result<Rc<dyn Backend>, Problem> {
        let backend = self.catalogue.get::<BackendRecord>(record.backend).await.map_err(from_catalogue)?;
        open_namespace(&backend.record.path, &record.namespace, Namespace::Existing).await
    }

    pub(super) fn publish_vpool(&self, kind: EventKind, pool: &Pool) {
        let record = pool.record();
        self.publish(kind, |event| {
            event.subject = Some(record.id.0);
            event.revision = Some(record.version);
            event.vpool = Some(record.name.clone());
            event.name = Some(record.name.to_string());
            event.detail = pool.problem();
        });
    }

    /// Writes `vpools.json` anew.
    pub(super) async fn write_inventory(&self) -> Result<(), Problem> {
        let _locked = self.locks.lock("inventory").await;
        let backends = self.all_backends().await?;
        let mut are_all_read = true;
        let log = |error: CatalogueError| {
            tracing::error!(%error, "a vPool's record cannot be read");
            are_all_read = false;
        };
        let vpools = self.catalogue.all::<VpoolRecord>(log).await.map_err(from_catalogue)?;
        let mut inventory = self.inventory.borrow().clone();
        inventory
            .incomplete
            .retain(|id| !are_all_read || vpools.iter().any(|stored| stored.record.id == *id));
        inventory.backends = backends
            .into_iter()
            .map(|known| KnownBackend {
                uuid: known.uuid,
                name: known.name,
                path: known.path,
                created_ms: known.created_ms,
            })
            .collect();
        inventory.vpools = vpools
            .into_iter()
            .filter(|stored| stored.record.state == State::Ready)
            .map(|stored| KnownVpool {
                id: stored.record.id,
                name: stored.record.name,
                backend: stored.record.backend,
                namespace: stored.record.namespace,
            })
            .collect();
        self.store_inventory(inventory).await
    }

    pub(super) async fn store_inventory(&self, inventory: Inventory) -> Result<(), Problem> {
        let path = self.settings.paths.state_dir().join("vpools.json");
        let file = inventory.clone();
        let written = tokio::task::spawn_blocking(move || file.store(&path)).await;
        match written {
            Ok(Ok(())) => {
                *self.inventory.borrow_mut() = inventory;
                Ok(())
            }
            Ok(Err(error)) => {
                Err(Problem::new(ProblemKind::Unavailable, format!("vpools.json was not written: {error}")))
            }
            Err(error) => {
                Err(Problem::new(ProblemKind::Internal, format!("vpools.json was not written: {error}")))
            }
        }
    }

    async fn show_vpool(&self, pool: &Pool) -> Result<Vpool, Problem> {
        let record = pool.record();
        let backend = self.catalogue.find::<BackendRecord>(record.backend).await.map_err(from_catalogue)?;
        let mut problem = pool.problem();
        let space = match pool.backend() {
            Some(backend) => match backend.capacity().await {
                Ok(space) => space,
                Err(error) => {
                    problem = problem.or(Some(error.to_string()));
                    None
                }
            },
            None => None,
        };
        let state = match (&problem, pool.is_recovering(), pool.backend().is_some()) {
            (_, true, _) => VpoolState::Recovering,
            (Some(_), _, true) => VpoolState::Degraded,
            (_, _, false) => VpoolState::Offline,
            (None, _, true) => VpoolState::Ok,
        };
        let (mut used_bytes, mut provisioned_bytes, mut vdisk_count) = (0u64, 0u64, 0);
        for (_, uuid) in
            self.catalogue.index(&VdiskRecord::members_prefix(record.id)).await.map_err(from_catalogue)?
        {
            let Ok(Some(member)) = self.catalogue.find::<VdiskRecord>(uuid).await else { continue };
            if let Some(vdisk) = self.engine.vdisk(member.record.id) {
                used_bytes = used_bytes.saturating_add(vdisk.stats().mapped.0);
            }
            if member.record.trash.is_none() && member.record.state == State::Ready {
                vdisk_count += 1;
                provisioned_bytes = provisioned_bytes.saturating_add(member.record.size_bytes);
            }
        }
        Ok(Vpool {
            uuid: record.id,
            name: record.name,
            revision: record.version,
            backend: backend
                .map_or_else(|| Name::new("unknown").expect("a name"), |stored| stored.record.name),
            preset: record.preset,
            state,
            state_reason: problem,
            on_full: from_policy(record.on_full),
            stall_timeout_ms: record.stall_timeout_ms,
            default_size_bytes: record.default_size_bytes,
            trash_retention_s: record.trash_retention_s,
            total_bytes: space.map(|space| space.total_bytes),
            free_bytes: space.map(|space| space.free_bytes),
            used_bytes,
            provisioned_bytes,
            vdisk_count,
            description: record.description,
            labels: ovs_api::Labels(record.labels),
            created_at: Timestamp::from_unix_ms(record.created_ms),
        })
    }
}

/// The API's word as the registry's.
pub(super) fn to_policy(on_full: OnFull) -> OnFullPolicy {
    match on_full {
        OnFull::Stall => OnFullPolicy::Stall,
        OnFull::Enospc => OnFullPolicy::Enospc,
    }
}

/// The registry's word as the API's.
pub(super) fn from_policy(policy: OnFullPolicy) -> OnFull {
    match policy {
        OnFullPolicy::Stall => OnFull::Stall,
        OnFullPolicy::Enospc => OnFull::Enospc,
    }
}

pub(super) fn exists(kind: &str, name: &Name, uuid: Uuid) -> Problem {
    let detail = format!("{kind} {name} exists, and was made by a different request");
    Problem::new(ProblemKind::Exists, detail).with("uuid", uuid.to_string())
}

pub(super) fn offline(pool: &Pool) -> Problem {
    let reason = pool.problem().unwrap_or_else(|| "its backend is not open".into());
    Problem::new(ProblemKind::Offline, format!("vPool {} does not serve: {reason}", pool.record().name))
}

fn backend_in_use(name: &Name, vpool: &VpoolRecord) -> Problem {
    let detail = format!("backend {name} is used by vPool {}", vpool.name);
    Problem::new(ProblemKind::InUse, detail).with("uuid", vpool.id.to_string())
}

fn cannot_use(path: &Path, error: &std::io::Error) -> Problem {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull => ProblemKind::NoSpace,
        _ => ProblemKind::Conflict,
    };
    Problem::new(kind, format!("path: {} cannot be used: {error}", path.display()))
}

// ---- the vPool's record on its backend

fn config_name(version: u64) -> ObjectName {
    // Twenty digits: names sort as versions do.
    ObjectName::new(format!("pool/config-{version:020}")).expect("digits are allowed in object names")
}

/// Stores a version of the vPool's record. A version that holds something else is a second vPool in this folder.
pub(super) async fn put_config(store: &dyn Backend, record: &VpoolRecord) -> Result<(), Problem> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| Problem::new(ProblemKind::Internal, format!("a vPool's record: {error}")))?;
    match store.put(&config_name(record.version), vec![Bytes::from(bytes)], Urgency::Reserve).await {
        Err(BackendError::Conflict { object }) => {
            let detail =
                format!("object {object} of vPool {} exists: another vPool lives there", record.name);
            Err(Problem::new(ProblemKind::InUse, detail))
        }
        other => other.map_err(from_backend),
    }
}

/// The newest version of the vPool's record on a backend.
pub(super) async fn get_config(store: &dyn Backend) -> Result<Option<VpoolRecord>, Problem> {
    let Some(version) = newest_version(store).await? else { return Ok(None) };
    let name = config_name(version);
    let bytes = store.get_range(&name, 0, CONFIG_BYTES_MAX).await.map_err(from_backend)?;
    decode(name.as_str(), &bytes).map(Some).map_err(from_catalogue)
}

async fn newest_version(store: &dyn Backend) -> Result<Option<u64>, Problem> {
    let (mut newest, mut after) = (None, None);
    loop {
        let found = store.list("pool/config-", after.as_ref(), 1000).await.map_err(from_backend)?;
        let Some(last) = found.last() else { return Ok(newest) };
        // Another object's name may be a number too: only a name that we would give is a version of ours.
        let version = |name: &ObjectName| {
            let version = name.as_str().strip_prefix("pool/config-")?.parse().ok()?;
            (config_name(version) == *name).then_some(version)
        };
        let versions = found.iter().filter_map(|info| version(&info.name));
        newest = versions.max().max(newest);
        after = Some(last.name.clone());
    }
}

// ---- folders

/// Whether a vPool's folder must be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Namespace {
    New,
    Existing,
}

/// Opens a vPool's own folder on a backend.
pub(super) async fn open_namespace(
    path: &str,
    namespace: &str,
    expected: Namespace,
) -> Result<Rc<dyn Backend>, Problem> {
    let folder = Path::new(path).join(namespace);
    let opened = tokio::task::spawn_blocking(move || {
        let options = DirOptions::new(folder);
        match expected {
            Namespace::New => DirBackend::open(options),
            Namespace::Existing => DirBackend::open_existing(options),
        }
    });
    match opened.await {
        Ok(store) => Ok(Rc::new(store.map_err(from_backend)?)),
        Err(error) => Err(Problem::new(ProblemKind::Internal, format!("opening a backend: {error}"))),
    }
}

async fn make_folder(path: &Path) -> std::io::Result<()> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || make_durable_folder(&path)).await.map_err(std::io::Error::other)?
}

async fn remove_folder(path: PathBuf) -> std::io::Result<()> {
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&path)).await;
    match removed.map_err(std::io::Error::other)? {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The path with links resolved as far as it exists.
async fn real_path(path: &Path) -> PathBuf {
    let path = path.to_owned();
    let resolved = tokio::task::spawn_blocking(move || {
        let mut missing = Vec::new();
        let mut existing = path.as_path();
        loop {
            if let Ok(mut real) = existing.canonicalize() {
                real.extend(missing.iter().rev());
                return real;
            }
            match (existing.parent(), existing.file_name()) {
                (Some(parent), Some(name)) => {
                    missing.push(name.to_owned());
                    existing = parent;
                }
                _ => return path.clone(),
            }
        }
    });
    resolved.await.unwrap_or_default()
}

async fn folder_space(path: PathBuf) -> Option<(u64, u64)> {
    let space = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&path).ok()).await.ok()??;
    Some((space.f_blocks.saturating_mul(space.f_frsize), space.f_bavail.saturating_mul(space.f_frsize)))
}
