//! vPools: making them, changing them, deleting them.
//!
//! One backend holds one vPool. The vPool's record is on its backend (see `namespace`) before a request that changed it
//! returns, so that the folder alone tells which vPool it is.

use super::{
    Volumes,
    composites::check_is_no_relic,
    idempotency::Terms,
    layout::{layout_lock, layout_of},
    namespace::{Namespace, cannot_use, in_time, make_folder, put_config, put_newest_config},
    pools::{Pool, offline, to_on_full},
    presets::PRESET,
    problem::{exists, from_catalogue, not_found},
};
use futures_util::future::select;
use ovs_api::{
    CreateVpool, Created, DeleteVpoolQuery, EventKind, ListQuery, Page, PatchVpool, Problem, ProblemKind,
    Vpool,
};
use ovs_backend::Backend;
use ovs_cluster::catalogue::{
    BackendRecord, Labels, Record, State, StoreRecord, Stored, VdiskRecord, VpoolRecord,
};
use ovs_units::{Name, VpoolCache, VpoolId};
use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};
use uuid::Uuid;

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
        self.check_nothing_is_half_done(&request.name).await?;
        let id = VpoolId(self.chance.uuid());
        let namespace = format!("vpool-{id}");
        let cache = request.cache.patch(VpoolCache::default())?;
        let (backend, owns_backend) = match &request.backend {
            Some(name) => {
                let stored = self.backend_by_name(name).await?.ok_or_else(|| not_found("backend", name))?;
                let set = self.backend_set().await?;
                self.check_is_unused(&set, &stored.record).await?;
                check_is_no_relic(&set, &stored.record)?;
                self.check_all_can_be_read().await?;
                self.check_preset(request.preset.as_ref(), Some(&stored.record)).await?;
                self.check_can_begin(&set, stored.record.uuid, &namespace).await?;
                (stored.record, false)
            }
            None => {
                self.check_preset(request.preset.as_ref(), None).await?;
                (self.own_backend(&request.name, &own_path).await?, true)
            }
        };
        let preset = self.check_preset(request.preset.as_ref(), Some(&backend)).await?;
        let record = VpoolRecord {
            format: BackendRecord::format_of(&backend.store).min(VpoolRecord::FORMAT_MAX),
            id,
            name: request.name,
            version: 1,
            state: State::Creating,
            backend: backend.uuid,
            namespace,
            owns_backend,
            preset,
            description: request.description,
            on_full: to_on_full(request.on_full.unwrap_or_default()),
            stall_timeout_ms: request.stall_timeout_ms.filter(|ms| *ms > 0),
            default_size_bytes: request.default_size_bytes.unwrap_or(DEFAULT_SIZE_BYTES),
            trash_retention_s: request.trash_retention_s.unwrap_or(TRASH_RETENTION_S),
            cache,
            labels: request.labels.0,
            created_ms: self.clock.wall_ms(),
            request: asked.clone(),
        };
        // Prepare: the intention. Put: the folder with the vPool's record. Finish: ready.
        let prepared = match self.catalogue.insert(record).await {
            Ok(prepared) => prepared,
            Err(error) => {
                self.forget_own_backend(backend.uuid, owns_backend).await;
                return Err(from_catalogue(error));
            }
        };
        let ready = VpoolRecord { state: State::Ready, ..prepared.record.clone() };
        let set = self.backend_set().await?;
        let made = async {
            let opened = self.open_store(&set, backend.uuid, &ready.namespace, Namespace::New).await?;
            self.store_first_layout(&opened, &set.layout(backend.uuid, layout_of(&ready))?).await?;
            put_config(&*opened.store, &ready).await?;
            Ok::<_, Problem>(opened)
        };
        let opened = match made.await {
            Ok(opened) => opened,
            Err(problem) => {
                self.abandon_vpool(&prepared).await;
                return Err(problem);
            }
        };
        let stored = self.catalogue.update(&prepared, ready).await.map_err(from_catalogue)?;
        let pool = Rc::new(Pool::new(stored.record));
        self.attach_pool(&pool, opened);
        // Its first layout is on every drive.
        self.layouts_due.borrow_mut().remove(&id);
        self.write_inventory().await?;
        self.remember(&terms, &asked, id.0).await?;
        self.publish_vpool(EventKind::VpoolCreated, &pool);
        Ok(Created::new(self.show_vpool(&pool).await?))
    }

    /// The backend that a vPool gets when it names none: with its own name, or with a longer one if that is taken.
    async fn own_backend(&self, vpool: &Name, path: &Path) -> Result<BackendRecord, Problem> {
        if let Some(left) = self.left_over(path).await? {
            make_folder(&*self.clock, path).await.map_err(|error| cannot_use(path, &error))?;
            return Ok(left);
        }
        self.check_backend_path(path).await?;
        make_folder(&*self.clock, path).await.map_err(|error| cannot_use(path, &error))?;
        let mut name = vpool.clone();
        if self.backend_by_name(&name).await?.is_some() {
            let short: String = vpool.as_str().chars().take(110).collect();
            let random = &self.chance.uuid().simple().to_string()[..8];
            name = Name::new(&format!("{short}-{random}")).expect("a name and eight digits are a name");
        }
        let store = StoreRecord::Dir { path: path.to_string_lossy().into_owned() };
        self.insert_backend(name, store, Labels::default(), serde_json::Value::Null).await
    }

    /// The backend that was made for a vPool there which an error kept from being made.
    async fn left_over(&self, path: &Path) -> Result<Option<BackendRecord>, Problem> {
        let is_own = |record: &BackendRecord| {
            record.folder().is_some_and(|folder| Path::new(folder) == path) && record.request.is_null()
        };
        let Some(record) = self.all_backends().await?.into_iter().find(is_own) else { return Ok(None) };
        let is_unused = self.check_is_unused(&self.backend_set().await?, &record).await.is_ok();
        Ok(is_unused.then_some(record))
    }

    /// The preset of a vPool is that of the composite that it is on. Whatever is no composite keeps objects as they are.
    async fn check_preset(
        &self,
        asked: Option<&Name>,
        backend: Option<&BackendRecord>,
    ) -> Result<Name, Problem> {
        let composite = match backend.map(|backend| (backend, &backend.store)) {
            Some((backend, StoreRecord::Composite { preset, .. })) => {
                Some((backend, self.backend_set().await?.preset(*preset)?.name.clone()))
            }
            _ => None,
        };
        let own = match &composite {
            Some((_, preset)) => preset.clone(),
            None => Name::new(PRESET).expect("a name"),
        };
        let Some(asked) = asked.filter(|asked| **asked != own) else { return Ok(own) };
        if asked.as_str() != PRESET && self.preset_by_name(asked).await?.is_none() {
            return Err(Problem::new(ProblemKind::NotFound, format!("preset: there is no preset {asked}")));
        }
        let detail = match composite {
            Some((backend, preset)) => {
                format!("preset: backend {} is under preset {preset}, not {asked}", backend.name)
            }
            None => format!(
                "preset: {asked} takes a composite: ovs backend create NAME --of BACKEND --preset {asked}, and name that \
                 backend here"
            ),
        };
        Err(Problem::new(ProblemKind::Conflict, detail))
    }

    /// What an error has cut off is finished by itself before the name is free.
    pub(super) async fn check_nothing_is_half_done(&self, name: &Name) -> Result<(), Problem> {
        let found = self.catalogue.find_by::<VpoolRecord>(&VpoolRecord::name_key(name)).await;
        let doing = match found.map_err(from_catalogue)?.map(|stored| stored.record.state) {
            Some(State::Creating) => "made",
            Some(State::Deleting) => "deleted",
            Some(State::Ready) | None => return Ok(()),
        };
        let detail = format!("vPool {name} is being {doing}, which goes on by itself: ask again later");
        Err(Problem::new(ProblemKind::Conflict, detail))
    }

    /// Takes back a vPool that was not finished: nothing of it has been seen by anybody. What is away keeps its record and with
    /// it its backend, until it can be asked.
    pub(super) async fn abandon_vpool(&self, prepared: &Stored<VpoolRecord>) {
        let record = &prepared.record;
        let gone = async {
            self.remove_objects(record.backend, &record.namespace).await?;
            self.catalogue.remove(prepared).await.map_err(from_catalogue)
        };
        match gone.await {
            Ok(()) => {
                tracing::warn!(vpool = %record.name, "a vPool that was not finished is taken back");
                self.forget_own_backend(record.backend, record.owns_backend).await;
            }
            Err(error) => {
                tracing::error!(vpool = %record.name, %error, "a vPool that was not finished is still there");
            }
        }
    }

    /// Forgets the backend that was made for a vPool which is gone, unless it has another user since.
    async fn forget_own_backend(&self, backend: Uuid, is_own: bool) {
        if !is_own {
            return;
        }
        let gone = async {
            match self.catalogue.find::<BackendRecord>(backend).await.map_err(from_catalogue)? {
                Some(stored) => self.forget_backend(&stored).await,
                None => Ok(()),
            }
        };
        if let Err(problem) = gone.await {
            tracing::error!(%backend, %problem, "a backend without a vPool is still there");
        }
    }

    /// Finishes or abandons the vPools that an error cut off. Whoever makes or deletes one holds the lock.
    pub(super) async fn finish_vpools(&self) {
        let Some(locked) = self.locks.try_lock("backends") else { return };
        let log = |error| tracing::error!(%error, "a vPool's record cannot be read");
        let mut deleting = Vec::new();
        for stored in self.catalogue.all::<VpoolRecord>(log).await.unwrap_or_default() {
            match stored.record.state {
                State::Ready => {}
                State::Creating => self.abandon_vpool(&stored).await,
                State::Deleting => deleting.push(stored),
            }
        }
        drop(locked);
        for stored in deleting {
            if let Err(problem) = self.finish_vpool_delete(&stored).await {
                tracing::error!(vpool = %stored.record.name, %problem, "a deleted vPool is still there");
            }
        }
    }

    /// The same beside everything else; waited for so long at most.
    pub(super) async fn begin_finishing_vpools(self: &Rc<Self>, patience: Duration) {
        let volumes = self.clone();
        let finishing = tokio::task::spawn_local(async move { volumes.finish_vpools().await });
        drop(select(finishing, self.clock.sleep(patience)).await);
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
            record.on_full = to_on_full(on_full);
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
        let locked = self.locks.lock("backends").await;
        let creating = self.locks.lock(format!("vpool/{id}")).await;
        let renewing = self.locks.lock(layout_lock(id)).await;
        let stored = self.catalogue.get::<VpoolRecord>(id.0).await.map_err(from_catalogue)?;
        terms.check_revision(stored.record.version)?;
        self.check_is_all_there(&pool, query.discard_unread)?;
        let members = self.catalogue.index(&VdiskRecord::members_prefix(id)).await.map_err(from_catalogue)?;
        if !members.is_empty() {
            let uuids: Vec<String> = members.iter().take(100).map(|(_, uuid)| uuid.to_string()).collect();
            let detail =
                format!("vPool {name} has {} vDisks (those in the trash are counted)", members.len());
            return Err(Problem::new(ProblemKind::InUse, detail).with("vdisks", serde_json::json!(uuids)));
        }
        self.check_can_end(&self.backend_set().await?, stored.record.backend, &stored.record.namespace)
            .await?;
        let deleting = VpoolRecord {
            state: State::Deleting,
            version: stored.record.version + 1,
            ..stored.record.clone()
        };
        let stored = self.catalogue.update(&stored, deleting).await.map_err(from_catalogue)?;
        self.pools.borrow_mut().remove(&id);
        // A store may take hours for it, and a directory that hangs for ever: nothing else waits for that.
        drop((renewing, creating, locked));
        if let Some(store) = pool.backend() {
            in_time(&*self.clock, self.wait_until_empty(&*store)).await;
        }
        self.engine.detach_backend(id);
        self.finish_vpool_delete(&stored).await.map_err(|problem| {
            let detail =
                format!("vPool {name} is being deleted, which goes on by itself: {}", problem.detail);
            Problem::new(problem.kind(), detail)
        })
    }

    /// A vDisk that was not taken in yet is in no listing, and would go with the vPool.
    fn check_is_all_there(&self, pool: &Pool, discard_unread: bool) -> Result<(), Problem> {
        let VpoolRecord { id, name, .. } = pool.record();
        if pool.is_recovering() {
            let detail = format!("vPool {name} is being recovered: ask again when that is over");
            return Err(Problem::new(ProblemKind::Conflict, detail));
        }
        let is_whole =
            !self.unasked.borrow().contains(&id) && !self.inventory.borrow().incomplete.contains(&id);
        if is_whole || discard_unread {
            return Ok(());
        }
        let detail = format!(
            "vPool {name} is not taken in whole from its backend, and vDisks that nobody here knows would go with it: \
             ovs vpool recover {name} tries again, --discard-unread deletes them all the same"
        );
        Err(Problem::new(ProblemKind::Conflict, detail))
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

    /// The rest of a vPool's deletion; also done after a start, and now and then.
    async fn finish_vpool_delete(&self, stored: &Stored<VpoolRecord>) -> Result<(), Problem> {
        let record = &stored.record;
        // Whoever is at it goes on.
        let Some(_turn) = self.locks.try_lock(format!("emptying/{}", record.id)) else { return Ok(()) };
        // Another may have ended it before, and the vPool be there again since: recovered, from what was not mounted then.
        let now = self.catalogue.find::<VpoolRecord>(record.id.0).await.map_err(from_catalogue)?;
        if now.is_none_or(|now| now.record != *record) {
            return Ok(());
        }
        self.remove_objects(record.backend, &record.namespace).await?;
        let _locked = self.locks.lock("backends").await;
        self.catalogue.remove(stored).await.map_err(from_catalogue)?;
        self.object_gone(record.id.0).await;
        self.forget_own_backend(record.backend, record.owns_backend).await;
        self.publish_vpool(EventKind::VpoolDeleted, &Pool::new(record.clone()));
        self.write_inventory().await
    }

    /// Removes a vPool's objects, if the backend that they were on is known.
    async fn remove_objects(&self, backend: Uuid, namespace: &str) -> Result<(), Problem> {
        if self.catalogue.find::<BackendRecord>(backend).await.map_err(from_catalogue)?.is_none() {
            return Ok(());
        }
        self.remove_namespace(&self.backend_set().await?, backend, namespace).await
    }
}
