//! Taking vDisks in again from what their backend says.
//!
//! ```text
//!  registry lost  ─▶ vpools.json ─▶ each backend: newest pool/config-… ─▶ each vDisk: properties, adopt its head
//!  everything lost ─▶ POST /v1/vpools/recover with the folder            ─▶ the same
//!  vPool there    ─▶ POST /v1/vpools/{vpool}/recover: what is missing here is taken in, nothing here is changed
//! ```
//!
//! A vDisk whose properties cannot be read is taken in all the same, under a name made of its UUID: its data counts.

use super::{
    Pool, Volumes,
    inventory::{Inventory, KnownVpool},
    namespace::{Namespace, get_config, get_lasting_config, open_namespace, put_newest_config},
    open::from_properties,
    problem::{exists, from_catalogue, from_volume},
    vpools::PRESET,
};
use crate::tasks::{About, Running};
use ovs_api::{Accepted, BackendKind, EventKind, Problem, ProblemKind, RecoverVpool, Task, TaskId};
use ovs_backend::Backend;
use ovs_cluster::catalogue::{
    BackendRecord, BaseRecord, CatalogueError, FORMAT, OnFullPolicy, SnapshotRecord, State, VdiskRecord,
    VpoolRecord,
};
use ovs_units::{Name, VdiskId, VpoolId};
use ovs_volume::FoundVdisk;
use serde_json::json;
use std::{collections::HashMap, path::Path, rc::Rc};
use uuid::Uuid;

/// What a recovery found and did.
#[derive(Debug, Default)]
struct Outcome {
    found: u64,
    taken_in: Vec<VdiskId>,
    problems: Vec<(VdiskId, String)>,
}

impl Outcome {
    fn to_json(&self) -> serde_json::Value {
        let problems: Vec<_> =
            self.problems.iter().map(|(vdisk, reason)| json!({"vdisk": vdisk, "reason": reason})).collect();
        json!({"found": self.found, "taken_in": self.taken_in, "problems": problems})
    }
}

impl Volumes {
    /// What `vpools.json` knows and a lost registry does not: placeholders, until their backends tell the rest.
    pub(super) async fn rebuild_registry(self: &Rc<Self>, known: &Inventory) -> Result<(), Problem> {
        let incomplete = self.inventory.borrow().incomplete.clone();
        for vpool in known.vpools.iter().filter(|vpool| incomplete.contains(&vpool.id)) {
            if self.catalogue.find::<VpoolRecord>(vpool.id.0).await.map_err(from_catalogue)?.is_some() {
                continue;
            }
            for backend in known.backends.iter().filter(|backend| backend.uuid == vpool.backend) {
                let record = BackendRecord {
                    format: FORMAT,
                    uuid: backend.uuid,
                    name: backend.name.clone(),
                    version: 1,
                    kind: "dir".into(),
                    path: backend.path.clone(),
                    created_ms: backend.created_ms,
                    request: serde_json::Value::Null,
                };
                self.catalogue.restore(record).await.map_err(from_catalogue)?;
            }
            let record = placeholder(vpool, self.clock.wall_ms());
            self.catalogue.restore(record).await.map_err(from_catalogue)?;
        }
        Ok(())
    }

    /// Brings a vPool into use. One that only `vpools.json` tells of learns the rest from its backend first, and takes in
    /// its vDisks.
    pub(super) async fn use_pool(self: &Rc<Self>, pool: &Rc<Pool>) -> Result<(), Problem> {
        let record = pool.record();
        let store = self.open_pool_backend(&record).await?;
        if record.version == 0 {
            let config = self.config_of(&*store, &record.name).await?;
            let config = VpoolRecord { state: State::Ready, ..config };
            pool.set_record(self.catalogue.restore(config).await.map_err(from_catalogue)?.record);
        }
        self.attach_pool(pool, store);
        self.complete(pool).await;
        Ok(())
    }

    /// Takes in what may be missing of a vPool since the registry was lost. When its backend cannot be asked it is asked
    /// again later.
    pub(super) async fn complete(self: &Rc<Self>, pool: &Rc<Pool>) {
        let record = pool.record();
        if !self.inventory.borrow().incomplete.contains(&record.id) || pool.is_recovering() {
            return;
        }
        match self.take_in_vdisks(pool, None).await {
            Ok(outcome) => {
                tracing::warn!(vpool = %record.name, outcome = %outcome.to_json(), "a vPool was rebuilt from its backend");
                self.publish_vpool(EventKind::VpoolRecovered, pool);
            }
            Err(problem) => {
                tracing::error!(vpool = %record.name, %problem, "a vPool cannot be rebuilt from its backend so far");
                self.unasked.borrow_mut().insert(record.id);
            }
        }
    }

    /// Changes what `vpools.json` says of the registry's state. It is stable when this returns.
    pub(super) async fn change_inventory(&self, change: impl FnOnce(&mut Inventory)) -> Result<(), Problem> {
        let _locked = self.locks.lock("inventory").await;
        let mut inventory = self.inventory.borrow().clone();
        change(&mut inventory);
        self.store_inventory(inventory).await
    }

    async fn config_of(&self, store: &dyn Backend, name: &Name) -> Result<VpoolRecord, Problem> {
        get_lasting_config(store).await?.ok_or_else(|| {
            Problem::new(
                ProblemKind::NotFound,
                format!("the folder of vPool {name} holds no record of a vPool"),
            )
        })
    }

    /// Compares a vPool with its backend and takes in what is missing here.
    pub async fn recover_vpool(self: &Rc<Self>, name: Name) -> Result<Accepted<Task>, Problem> {
        let pool = self.pool_by_name(&name)?;
        if pool.is_recovering() {
            return Err(Problem::new(ProblemKind::Conflict, format!("vPool {name} is being recovered")));
        }
        Ok(Accepted(self.begin_recovery(pool)?))
    }

    fn begin_recovery(self: &Rc<Self>, pool: Rc<Pool>) -> Result<Task, Problem> {
        let record = pool.record();
        let about = About {
            kind: "vpool.recover",
            subject: Some(record.id.0),
            subject_name: Some(record.name.to_string()),
            unit: "vdisks",
        };
        let running = self.tasks.begin(TaskId(self.chance.uuid()), about, self.clock.wall_ms());
        let task = self.tasks.get(running.id)?;
        let volumes = self.clone();
        pool.set_recovering(true);
        tokio::task::spawn_local(async move {
            let end = volumes.take_in_vdisks(&pool, Some(&running)).await;
            pool.set_recovering(false);
            volumes.publish_vpool(EventKind::VpoolRecovered, &pool);
            volumes.finish_task(&running, end.map(|outcome| outcome.to_json()));
        });
        Ok(task)
    }

    /// Takes in a vPool that nothing here knows, out of its folder alone.
    pub async fn recover_lost_vpool(
        self: &Rc<Self>,
        request: RecoverVpool,
    ) -> Result<Accepted<Task>, Problem> {
        let _locked = self.locks.lock("backends").await;
        if let Ok(pool) = self.pool_by_name(&request.name) {
            return Err(exists("vPool", &request.name, pool.record().id.0));
        }
        let BackendKind::Dir = request.backend.kind;
        let path = request.backend.path.clone();
        let (namespace, config) = find_namespace(&path, &request.name).await?;
        if let Ok(pool) = self.pool(config.id) {
            return Err(exists("vPool", &pool.record().name, config.id.0));
        }
        let io_uring = self.settings.io_uring;
        let store = open_namespace(&path, &namespace, Namespace::Existing, io_uring).await?;
        let config = self.config_of(&*store, &request.name).await?;
        // Nothing is known here of a backend that has not told what it holds.
        let backend = self.known_or_new_backend(&request, &path).await?;
        let mut record =
            VpoolRecord { namespace, backend: backend.uuid, state: State::Ready, ..config.clone() };
        record.name = request.name;
        if record != config {
            put_newest_config(&*store, &mut record, self.clock.wall_ms(), &*self.chance).await?;
        }
        let stored = self.catalogue.restore(record).await.map_err(from_catalogue)?;
        let pool = Rc::new(Pool::new(stored.record));
        self.attach_pool(&pool, store);
        self.write_inventory().await?;
        self.publish_vpool(EventKind::VpoolCreated, &pool);
        Ok(Accepted(self.begin_recovery(pool)?))
    }

    /// The backend whose folder this is, made known if it is not.
    async fn known_or_new_backend(
        &self,
        request: &RecoverVpool,
        path: &str,
    ) -> Result<BackendRecord, Problem> {
        let backends = self.all_backends().await?;
        if let Some(known) = backends.iter().find(|known| Path::new(&known.path) == Path::new(path)) {
            return Ok(known.clone());
        }
        if let Some(known) = backends.iter().find(|known| known.name == request.backend.name) {
            return Err(exists("backend", &known.name, known.uuid));
        }
        let asked = serde_json::to_value(&request.backend).unwrap_or_default();
        self.insert_backend(request.backend.name.clone(), Path::new(path), asked).await
    }

    /// Takes in every vDisk that a vPool's backend has and the catalogue has not.
    async fn take_in_vdisks(
        self: &Rc<Self>,
        pool: &Rc<Pool>,
        running: Option<&Running>,
    ) -> Result<Outcome, Problem> {
        let vpool = pool.record().id;
        let found = self.engine.discover(vpool).await.map_err(from_volume)?;
        let total = found.len() as u64;
        let mut outcome = Outcome { found: total, ..Outcome::default() };
        let mut is_whole = true;
        for (done, found) in (1..).zip(children_first(found)) {
            if running.is_some_and(Running::is_cancelled) || self.is_stopping() {
                is_whole = false;
                break;
            }
            let id = found.id;
            match self.take_in(vpool, found).await {
                Ok(true) => outcome.taken_in.push(id),
                Ok(false) => {}
                Err(problem) => {
                    tracing::error!(vdisk = %id, %problem, "a vDisk found on the backend was not taken in");
                    outcome.problems.push((id, problem.detail));
                }
            }
            if let Some(running) = running {
                running.progress(done, Some(total));
            }
        }
        if is_whole && outcome.problems.is_empty() {
            self.engine.finish_recovery(vpool).await.map_err(from_volume)?;
            self.note_complete(vpool).await?;
        }
        // Opened only now: a parent that is open does not learn of its clones any more.
        for id in &outcome.taken_in {
            if let Err(problem) = self.ensure_open(*id).await {
                tracing::error!(vdisk = %id, %problem, "a vDisk that was taken in cannot be opened");
                outcome.problems.push((*id, problem.detail));
            }
        }
        Ok(outcome)
    }

    async fn note_complete(&self, vpool: VpoolId) -> Result<(), Problem> {
        self.unasked.borrow_mut().remove(&vpool);
        let told = self.inventory.borrow().clone();
        let has_strangers = told.has_strangers && self.engine.has_strangers().await.map_err(from_volume)?;
        if told.incomplete.contains(&vpool) || told.has_strangers != has_strangers {
            self.change_inventory(|inventory| {
                inventory.incomplete.retain(|other| *other != vpool);
                inventory.has_strangers = has_strangers;
            })
            .await?;
        }
        Ok(())
    }

    async fn take_in(self: &Rc<Self>, vpool: VpoolId, found: FoundVdisk) -> Result<bool, Problem> {
        let _locked = self.lock_vdisk(found.id).await;
        if self.catalogue.find::<VdiskRecord>(found.id.0).await.map_err(from_catalogue)?.is_some() {
            return Ok(false);
        }
        if let Some(problem) = found.problem {
            return Err(Problem::new(ProblemKind::Damaged, problem));
        }
        let record = record_of(vpool, &found, self.clock.wall_ms());
        self.engine.adopt_vdisk(vpool, found.id).await.map_err(from_volume)?;
        let record = self.restore_under_a_free_name(record).await?;
        self.sockets.open(self, &record).await;
        self.publish_vdisk(EventKind::VdiskCreated, &record, |event| {
            event.size_bytes = Some(record.size_bytes)
        });
        Ok(true)
    }

    async fn restore_under_a_free_name(&self, record: VdiskRecord) -> Result<VdiskRecord, Problem> {
        match self.catalogue.restore(record.clone()).await {
            Ok(stored) => Ok(stored.record),
            Err(CatalogueError::Exists { .. }) => {
                let renamed = VdiskRecord {
                    name: name_with(record.name.as_str(), record.id),
                    version: record.version + 1,
                    ..record
                };
                tracing::warn!(vdisk = %renamed.id, name = %renamed.name, "its name is taken: it gets another");
                Ok(self.catalogue.restore(renamed).await.map_err(from_catalogue)?.record)
            }
            Err(error) => Err(from_catalogue(error)),
        }
    }
}

/// Clones before what they were cloned from: a deleted snapshot is kept for the clones that are known already.
fn children_first(mut found: Vec<FoundVdisk>) -> Vec<FoundVdisk> {
    let parents: HashMap<VdiskId, VdiskId> =
        found.iter().filter_map(|vdisk| Some((vdisk.id, vdisk.base?.0))).collect();
    let depth = |vdisk: &FoundVdisk| {
        let mut depth = 0;
        let mut at = vdisk.id;
        // No chain is longer than there are vDisks; a backend that says otherwise is not followed for ever.
        while let Some(parent) = parents.get(&at).filter(|_| depth <= parents.len()) {
            depth += 1;
            at = *parent;
        }
        depth
    };
    found.sort_by_cached_key(|vdisk| std::cmp::Reverse(depth(vdisk)));
    found
}

/// A vPool of which only `vpools.json` tells; version 0 says so.
fn placeholder(known: &KnownVpool, now_ms: u64) -> VpoolRecord {
    VpoolRecord {
        format: FORMAT,
        id: known.id,
        name: known.name.clone(),
        version: 0,
        state: State::Ready,
        backend: known.backend,
        namespace: known.namespace.clone(),
        owns_backend: false,
        preset: Name::new(PRESET).expect("a name"),
        description: String::new(),
        on_full: OnFullPolicy::Stall,
        stall_timeout_ms: None,
        default_size_bytes: 10 << 30,
        trash_retention_s: 24 * 3600,
        cache: Default::default(),
        labels: Default::default(),
        created_ms: now_ms,
        request: serde_json::Value::Null,
    }
}

/// What a found vDisk says of itself; what it does not say is made up from what the engine knows.
fn record_of(vpool: VpoolId, found: &FoundVdisk, now_ms: u64) -> VdiskRecord {
    let told = from_properties(&found.properties).ok().filter(|record| record.id == found.id);
    let mut record = told.unwrap_or_else(|| {
        tracing::error!(vdisk = %found.id, "its properties cannot be read: it gets a name of its UUID");
        VdiskRecord {
            format: FORMAT,
            id: found.id,
            vpool,
            name: name_with("recovered", found.id),
            version: 1,
            state: State::Ready,
            size_bytes: found.size.0,
            description: String::new(),
            labels: Default::default(),
            protected: true,
            on_full: OnFullPolicy::Stall,
            stall_timeout_ms: None,
            limits: Default::default(),
            cache: Default::default(),
            template: None,
            base: found.base.map(|(vdisk, snapshot)| BaseRecord { vdisk, snapshot, taken_for_clone: false }),
            trash: None,
            generation: 0,
            fenced: Vec::new(),
            pending: None,
            snapshots: Default::default(),
            created_ms: now_ms,
            request: serde_json::Value::Null,
        }
    });
    record.vpool = vpool;
    record.state = State::Ready;
    // A resize that the engine has and the properties have not.
    if record.capacity() != found.size {
        record.size_bytes = found.size.0;
    }
    for snapshot in found.snapshots.iter().filter(|snapshot| !snapshot.hidden) {
        let is_ours = snapshot.name.as_str().starts_with(super::create::CLONE_SNAPSHOT_PREFIX);
        if !is_ours && record.template != Some(snapshot.id) {
            record.snapshots.entry(snapshot.id).or_insert_with(|| SnapshotRecord {
                name: snapshot.name.clone(),
                size_bytes: snapshot.size.0,
                description: String::new(),
                labels: Default::default(),
                version: 1,
            });
        }
    }
    record
}

fn name_with(name: &str, id: VdiskId) -> Name {
    let short: String = name.chars().take(110).collect();
    Name::new(&format!("{short}-{}", &id.0.simple().to_string()[..12])).expect("a name and digits are a name")
}

/// The vPool's own folder in a backend's: the only one there is, or the one whose vPool has this name.
async fn find_namespace(path: &str, name: &Name) -> Result<(String, VpoolRecord), Problem> {
    let folder = path.to_owned();
    let folders = tokio::task::spawn_blocking(move || list_namespaces(Path::new(&folder))).await;
    let folders = folders
        .map_err(|error| Problem::new(ProblemKind::Internal, error.to_string()))?
        .map_err(|error| Problem::new(ProblemKind::NotFound, format!("path: {path}: {error}")))?;
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for namespace in folders {
        let config =
            async { get_config(&*open_namespace(path, &namespace, Namespace::Existing, false).await?).await };
        match config.await {
            Ok(Some(config)) => found.push((namespace, config)),
            Ok(None) => problems.push(format!("{namespace}: no record of a vPool")),
            Err(problem) => problems.push(format!("{namespace}: {problem}")),
        }
    }
    if found.len() > 1 {
        found.retain(|(_, config)| config.name == *name);
    }
    let is_damaged = !problems.is_empty();
    match (found.pop(), found.is_empty()) {
        (Some(found), true) => Ok(found),
        (Some(_), false) => {
            let detail = format!("path: several vPools in {path} are named {name}");
            Err(Problem::new(ProblemKind::Damaged, detail))
        }
        (None, _) if is_damaged => {
            let detail = format!("path: no vPool {name} can be read in {path}: {}", problems.join("; "));
            Err(Problem::new(ProblemKind::Damaged, detail))
        }
        (None, _) => {
            Err(Problem::new(ProblemKind::NotFound, format!("path: there is no vPool {name} in {path}")))
        }
    }
}

fn list_namespaces(path: &Path) -> std::io::Result<Vec<String>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_namespace = name.strip_prefix("vpool-").is_some_and(|uuid| Uuid::try_parse(uuid).is_ok());
        if is_namespace {
            folders.push(name);
        }
    }
    folders.sort();
    Ok(folders)
}
