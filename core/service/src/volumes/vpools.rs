//! vPools: making them, changing them, deleting them.
//!
//! One backend holds one vPool. The vPool's record is on its backend (see `namespace`) before a request that changed it
//! returns, so that the folder alone tells which vPool it is.

use super::{
    Volumes,
    backends::backend_in_use,
    idempotency::Terms,
    namespace::{
        Namespace, cannot_use, make_folder, open_namespace, put_config, put_newest_config, remove_folder,
    },
    pools::{Pool, offline, to_policy},
    problem::{exists, from_catalogue, not_found},
};
use ovs_api::{
    CreateVpool, Created, DeleteVpoolQuery, EventKind, ListQuery, Page, PatchVpool, Problem, ProblemKind,
    Vpool,
};
use ovs_backend::Backend;
use ovs_cluster::catalogue::{BackendRecord, FORMAT, State, Stored, VdiskRecord, VpoolRecord};
use ovs_units::{Name, VpoolCache, VpoolId};
use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

/// The only preset there is.
pub(crate) const PRESET: &str = "default";
/// A vDisk that is made without a size has this one.
const DEFAULT_SIZE_BYTES: u64 = 10 << 30;
/// How long deleted vDisks stay in the trash.
const TRASH_RETENTION_S: u64 = 24 * 3600;
/// How long a vPool's deletion waits for the objects of its deleted vDisks to go.
const EMPTYING_PATIENCE: Duration = Duration::from_secs(10);

impl Volumes {
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
            cache: request.cache.patch(VpoolCache::default())?,
            labels: request.labels.0,
            created_ms: self.clock.wall_ms(),
            request: asked.clone(),
        };
        // Prepare: the intention. Put: the folder with the vPool's record. Finish: ready.
        let prepared = self.catalogue.insert(record).await.map_err(from_catalogue)?;
        let ready = VpoolRecord { state: State::Ready, ..prepared.record.clone() };
        let made = async {
            let io_uring = self.settings.io_uring;
            let store = open_namespace(&backend.path, &ready.namespace, Namespace::New, io_uring).await?;
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
        record.cache = patch.cache.patch(record.cache)?;
        if let Some(description) = patch.description {
            record.description = description;
        }
        record.labels = ovs_api::Labels(record.labels).patched(&patch.labels)?.0;
        if record == stored.record {
            return self.show_vpool(&pool).await;
        }
        record.version += 1;
        // The backend's copy first: its highest version counts in a recovery, and a version is never used twice
        // (the same one with other contents would be a conflict), so that a crash in between skips it.
        let store = pool.backend().ok_or_else(|| offline(&pool))?;
        put_newest_config(&*store, &mut record, self.clock.wall_ms(), &*self.chance).await?;
        let stored = self.catalogue.update(&stored, record).await.map_err(from_catalogue)?;
        self.engine.set_vpool_cache(stored.record.id, stored.record.cache);
        pool.set_record(stored.record);
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
}
