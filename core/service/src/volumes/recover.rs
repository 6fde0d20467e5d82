//! Taking vDisks in again from what their backend says.
//!
//! ```text
//!  registry lost  ─▶ vpools.json ─▶ each backend: newest pool/config-… ─▶ each vDisk: properties, adopt its head
//!  everything lost ─▶ POST /v1/vpools/recover with the folder            ─▶ the same
//!  vPool there    ─▶ POST /v1/vpools/{vpool}/recover: what is missing here, or older, is taken in; nothing else is changed
//! ```
//!
//! A vDisk whose properties cannot be read is taken in all the same, under a name made of its UUID: its data counts.

use super::{
    Pool, Volumes,
    attach::FENCED_MAX,
    inventory::{Inventory, KnownVpool},
    namespace::get_lasting_config,
    open::{from_properties, is_newer_than},
    presets::PRESET,
    problem::{from_catalogue, from_volume, not_found},
};
use crate::tasks::{About, Running};
use ovs_api::{Accepted, EventKind, Problem, ProblemKind, Task, TaskId};
use ovs_backend::Backend;
use ovs_cluster::catalogue::{
    BaseRecord, CatalogueError, FORMAT, OnFullPolicy, Record, SnapshotRecord, State, Stored, VdiskRecord,
    VpoolRecord,
};
use ovs_units::{Name, VdiskId, VpoolId};
use ovs_volume::FoundVdisk;
use serde_json::json;
use std::{
    collections::{BTreeSet, HashMap},
    rc::Rc,
};
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
    /// What `vpools.json` knows and a lost registry does not: backends and presets, and placeholders of vPools until their
    /// backends tell the rest.
    pub(super) async fn rebuild_registry(self: &Rc<Self>, known: &Inventory) -> Result<(), Problem> {
        for backend in known.backend_records() {
            self.restore_missing(backend).await?;
        }
        for preset in known.preset_records() {
            self.restore_missing(preset).await?;
        }
        let incomplete = self.inventory.borrow().incomplete.clone();
        for vpool in known.vpools.iter().filter(|vpool| incomplete.contains(&vpool.id)) {
            self.restore_missing(placeholder(vpool, self.clock.wall_ms())).await?;
        }
        Ok(())
    }

    /// What cannot be taken in stays in `vpools.json`, and keeps nobody from starting.
    async fn restore_missing<T: Record>(&self, record: T) -> Result<(), Problem> {
        match self.catalogue.find::<T>(record.uuid()).await {
            Ok(Some(_)) | Err(CatalogueError::Damaged { .. }) => return Ok(()),
            Ok(None) => {}
            Err(error) => return Err(from_catalogue(error)),
        }
        let (kind, name) = (T::KIND, record.name());
        match self.catalogue.restore(record).await {
            Ok(_) => {
                tracing::warn!(kind, name, "it was missing in the registry, and is taken from vpools.json")
            }
            Err(error @ (CatalogueError::Exists { .. } | CatalogueError::Damaged { .. })) => {
                tracing::error!(kind, name, %error, "what vpools.json has of it cannot be taken in");
            }
            Err(error) => return Err(from_catalogue(error)),
        }
        Ok(())
    }

    /// Brings a vPool into use. One that only `vpools.json` tells of learns the rest from its backend first, and takes in
    /// its vDisks.
    pub(super) async fn use_pool(self: &Rc<Self>, pool: &Rc<Pool>) -> Result<(), Problem> {
        let record = pool.record();
        {
            // It is deleted under this lock: what is gone does not come back.
            let _locked = self.locks.lock(format!("vpool/{}", record.id)).await;
            let known = self.catalogue.get::<VpoolRecord>(record.id.0).await.map_err(from_catalogue)?;
            if known.record.state != State::Ready {
                return Err(not_found("vPool", &record.name));
            }
            let opened = self.open_pool_backend(pool).await?;
            if record.version == 0 {
                let config = self.config_of(&*opened.store, record.id, &record.name).await?;
                let VpoolRecord { backend, namespace, .. } = record;
                let config = VpoolRecord { state: State::Ready, backend, namespace, ..config };
                pool.set_record(self.catalogue.restore(config).await.map_err(from_catalogue)?.record);
            }
            self.attach_pool(pool, opened);
        }
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

    /// A vPool's record on its backend.
    pub(super) async fn config_of(
        &self,
        store: &dyn Backend,
        id: VpoolId,
        name: &Name,
    ) -> Result<VpoolRecord, Problem> {
        match get_lasting_config(store).await? {
            Some(config) if config.id == id => Ok(config),
            Some(config) => {
                let detail = format!("where vPool {name} ({id}) was is the record of another: {}", config.id);
                Err(Problem::new(ProblemKind::Damaged, detail))
            }
            None => {
                let detail = format!("the folder of vPool {name} holds no record of a vPool");
                Err(Problem::new(ProblemKind::NotFound, detail))
            }
        }
    }

    /// Compares a vPool with its backend and takes in what is missing here.
    pub async fn recover_vpool(self: &Rc<Self>, name: Name) -> Result<Accepted<Task>, Problem> {
        let pool = self.pool_by_name(&name)?;
        if pool.is_recovering() {
            return Err(Problem::new(ProblemKind::Conflict, format!("vPool {name} is being recovered")));
        }
        Ok(Accepted(self.begin_recovery(pool)?))
    }

    pub(super) fn begin_recovery(self: &Rc<Self>, pool: Rc<Pool>) -> Result<Task, Problem> {
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

    /// Takes in every vDisk that a vPool's backend has and the catalogue has not, or has as it was before.
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
        // Before anything is adopted: who adopts a clone adopts what it was cloned from, and an older record of that would be finished.
        let (mut behind, mut failed) = (BTreeSet::new(), BTreeSet::new());
        let is_over = || running.is_some_and(Running::is_cancelled) || self.is_stopping();
        if let Some(running) = running {
            running.progress(0, Some(total));
        }
        for found in &found {
            if is_over() {
                break;
            }
            match self.bring_up_record(vpool, found).await {
                Ok(false) => {}
                Ok(true) => {
                    behind.insert(found.id);
                }
                Err(problem) => {
                    tracing::error!(vdisk = %found.id, %problem, "what its backend says of a vDisk was not taken in");
                    outcome.problems.push((found.id, problem.detail));
                    failed.insert(found.id);
                }
            }
        }
        let parents = parents(&found);
        for (done, found) in (1..).zip(children_first(found, &parents)) {
            if is_over() {
                is_whole = false;
                break;
            }
            let id = found.id;
            let failed_ancestor = ancestors(id, &parents).find(|ancestor| failed.contains(ancestor));
            match self.take_in(vpool, found, behind.contains(&id), failed_ancestor).await {
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
        // Opened only now, when all clones of each are known.
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

    /// A record of the catalogue that is from before what the backend has of the vDisk is brought up to that.
    async fn bring_up_record(&self, vpool: VpoolId, found: &FoundVdisk) -> Result<bool, Problem> {
        let _locked = self.lock_vdisk(found.id).await;
        let is_head_behind = self.engine.is_behind(vpool, found.id).await.map_err(from_volume)?;
        let has_head = self.engine.known_properties(found.id).await.map_err(from_volume)?.is_some();
        loop {
            let known = self.catalogue.find::<VdiskRecord>(found.id.0).await.map_err(from_catalogue)?;
            let Some(known) = known else { return Ok(false) };
            // One without a head is of a recovery that came to its end here, or is just being created.
            let is_head_behind = is_head_behind || !has_head && known.record.state == State::Ready;
            if !is_head_behind && !is_newer_than(&found.properties, &known.record) {
                return Ok(false);
            }
            if let Some(problem) = &found.problem {
                return Err(Problem::new(ProblemKind::Damaged, problem.clone()));
            }
            let record = record_of(vpool, found, Some(&known.record), self.clock.wall_ms());
            let renamed = VdiskRecord { name: name_with(record.name.as_str(), record.id), ..record.clone() };
            let mut updated = self.catalogue.update(&known, record).await;
            if matches!(updated, Err(CatalogueError::Exists { .. })) {
                tracing::warn!(vdisk = %renamed.id, name = %renamed.name, "its name is taken: it gets another");
                updated = self.catalogue.update(&known, renamed).await;
            }
            match updated {
                // A fence waits for nobody, and stays.
                Err(CatalogueError::Changed { .. }) => {}
                Err(error) => return Err(from_catalogue(error)),
                Ok(Stored { record, .. }) => {
                    self.publish_vdisk(EventKind::VdiskUpdated, &record, |event| {
                        event.size_bytes = Some(record.size_bytes)
                    });
                    return Ok(true);
                }
            }
        }
    }

    async fn take_in(
        self: &Rc<Self>,
        vpool: VpoolId,
        found: FoundVdisk,
        is_behind: bool,
        failed_ancestor: Option<VdiskId>,
    ) -> Result<bool, Problem> {
        let _locked = self.lock_vdisk(found.id).await;
        let known = self.catalogue.find::<VdiskRecord>(found.id.0).await.map_err(from_catalogue)?;
        if known.is_some() && !is_behind {
            return Ok(false);
        }
        if let Some(problem) = found.problem {
            return Err(Problem::new(ProblemKind::Damaged, problem));
        }
        if let Some(ancestor) = failed_ancestor {
            let detail = format!("it is a clone of {ancestor}, which was not taken in");
            return Err(Problem::new(ProblemKind::Unavailable, detail));
        }
        self.engine.adopt_vdisk(vpool, found.id).await.map_err(from_volume)?;
        let record = match known {
            Some(known) => known.record,
            None => {
                let record = record_of(vpool, &found, None, self.clock.wall_ms());
                let record = self.restore_under_a_free_name(record).await?;
                self.publish_vdisk(EventKind::VdiskCreated, &record, |event| {
                    event.size_bytes = Some(record.size_bytes)
                });
                record
            }
        };
        if record.state != State::Ready {
            return Ok(false); // what was begun with it goes on by itself
        }
        self.sockets.open(self, &record).await;
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

fn parents(found: &[FoundVdisk]) -> HashMap<VdiskId, VdiskId> {
    found.iter().filter_map(|vdisk| Some((vdisk.id, vdisk.base?.0))).collect()
}

/// What a vDisk was cloned from, what that was, and so on.
fn ancestors(id: VdiskId, parents: &HashMap<VdiskId, VdiskId>) -> impl Iterator<Item = VdiskId> {
    // No chain is longer than there are vDisks; a backend that says otherwise is not followed for ever.
    std::iter::successors(parents.get(&id).copied(), |at| parents.get(at).copied()).take(parents.len())
}

/// Clones before what they were cloned from: a deleted snapshot is kept for the clones that are known already.
fn children_first(mut found: Vec<FoundVdisk>, parents: &HashMap<VdiskId, VdiskId>) -> Vec<FoundVdisk> {
    found.sort_by_cached_key(|vdisk| std::cmp::Reverse(ancestors(vdisk.id, parents).count()));
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

/// A record that is older than the vDisk, and changes of which since may be newer than what the vDisk says. Where they differ, nothing is given
/// up: no fence, and nobody's data on the word of a record that is older than these.
pub(super) fn merged(known: &VdiskRecord, told: VdiskRecord) -> VdiskRecord {
    let generation = told.generation.max(known.generation);
    let others: Vec<Uuid> = known.fenced.iter().filter(|uuid| !told.fenced.contains(uuid)).copied().collect();
    // The last of them are of since then; the first are what the vDisk has forgotten already.
    let (forgotten, since) = others.split_at(others.len().saturating_sub(FENCED_MAX / 8));
    let mut fenced = [forgotten, &told.fenced, since].concat();
    fenced.drain(..fenced.len().saturating_sub(FENCED_MAX));
    let merged = if known.version < told.version || known.state == State::Deleting {
        told
    } else {
        let trash = known.trash.zip(told.trash);
        VdiskRecord {
            trash: trash.map(|(one, other)| if one.expires_ms < other.expires_ms { other } else { one }),
            template: known.template.or(told.template),
            protected: known.protected || told.protected,
            ..of_a_time_that_is_over(known)
        }
    };
    VdiskRecord { fenced, generation, ..merged }
}

/// What was begun is not finished any more: the vDisk is there, and is newer.
fn of_a_time_that_is_over(known: &VdiskRecord) -> VdiskRecord {
    VdiskRecord { state: State::Ready, pending: None, ..known.clone() }
}

/// What a found vDisk says of itself; what it does not say is made up from what the engine knows.
fn record_of(vpool: VpoolId, found: &FoundVdisk, known: Option<&VdiskRecord>, now_ms: u64) -> VdiskRecord {
    let told = from_properties(&found.properties).ok().filter(|record| record.id == found.id);
    let told = told.map(|record| VdiskRecord { state: State::Ready, ..record });
    let newest = match (known, told) {
        (Some(known), Some(told)) => Some(merged(known, told)),
        (Some(known), None) => Some(of_a_time_that_is_over(known)),
        (None, told) => told,
    };
    let mut record = newest.unwrap_or_else(|| {
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
    if let Some(known) = known {
        record.version = record.version.max(known.version) + 1;
    }
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
