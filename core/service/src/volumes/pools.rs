//! The vPools in use on this host: finding them, taking one into use, showing it.

use super::{
    Volumes,
    composite::Composite,
    drive::Drive,
    namespace::Namespace,
    problem::{from_catalogue, not_found},
    stores::Opened,
};
use ovs_api::{EventKind, OnFull, Problem, ProblemKind, Timestamp, Vpool, VpoolState};
use ovs_backend::{
    Backend,
    coded::{Key, PresetError},
};
use ovs_cluster::catalogue::{BackendRecord, OnFullPolicy, State, VdiskRecord, VpoolRecord};
use ovs_units::{Name, VpoolId};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};
use uuid::Uuid;

/// A vPool of this host, in use.
pub struct Pool {
    record: RefCell<VpoolRecord>,
    backend: RefCell<Option<Rc<dyn Backend>>>,
    drives: RefCell<BTreeMap<Uuid, Rc<Drive>>>,
    composites: RefCell<BTreeMap<Uuid, Rc<Composite>>>,
    problem: RefCell<Option<String>>,
    is_recovering: Cell<bool>,
}

impl Pool {
    pub(super) fn new(record: VpoolRecord) -> Pool {
        Pool {
            record: RefCell::new(record),
            backend: RefCell::new(None),
            drives: RefCell::default(),
            composites: RefCell::default(),
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

    /// What its backend is made of in the end.
    pub(super) fn part(&self, uuid: Uuid) -> Option<Rc<Drive>> {
        self.drives.borrow().get(&uuid).cloned()
    }

    /// A composite that its backend is, or is made of.
    pub(super) fn composite(&self, uuid: Uuid) -> Option<Rc<Composite>> {
        self.composites.borrow().get(&uuid).cloned()
    }

    pub(super) fn composites(&self) -> Vec<(Uuid, Rc<Composite>)> {
        self.composites.borrow().iter().map(|(uuid, open)| (*uuid, open.clone())).collect()
    }

    pub(super) fn add_parts(
        &self,
        drives: BTreeMap<Uuid, Rc<Drive>>,
        composites: BTreeMap<Uuid, Rc<Composite>>,
    ) {
        self.drives.borrow_mut().extend(drives);
        self.composites.borrow_mut().extend(composites);
    }

    pub(super) fn forget_part(&self, uuid: Uuid) {
        self.drives.borrow_mut().remove(&uuid);
        self.composites.borrow_mut().remove(&uuid);
    }

    /// Nobody looks after them.
    fn forget_parts(&self) {
        self.drives.borrow_mut().clear();
        self.composites.borrow_mut().clear();
    }

    /// It cannot be used, as long as drives are away; they are looked at meanwhile.
    pub(super) fn keep_parts(&self, opened: Opened) {
        if self.backend().is_none() && self.composites.borrow().is_empty() {
            self.add_parts(opened.drives, opened.composites);
        }
    }

    /// The drives that did not answer when they were last asked, and why.
    pub(super) fn drives_in_trouble(&self) -> Vec<(Name, String)> {
        let drives = self.drives.borrow();
        drives.values().filter_map(|drive| Some((drive.name().clone(), drive.trouble()?))).collect()
    }

    /// Its composites under this preset have these keys from now on. One that is not open gets them when it is opened.
    pub(super) fn set_keys(&self, preset: Uuid, keys: &[Key]) -> Result<(), Problem> {
        for composite in self.composites.borrow().values() {
            if composite.preset == preset {
                let refused = |error: PresetError| Problem::new(ProblemKind::Conflict, error.to_string());
                composite.coded.set_keys(keys.to_vec()).map_err(refused)?;
            }
        }
        Ok(())
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
    /// The vPool in use with this UUID.
    pub(super) fn pool(&self, id: VpoolId) -> Result<Rc<Pool>, Problem> {
        self.pools.borrow().get(&id).cloned().ok_or_else(|| not_found("vPool", id))
    }

    /// The vPool in use with this name.
    pub(super) fn pool_by_name(&self, name: &Name) -> Result<Rc<Pool>, Problem> {
        self.find_pool(name).ok_or_else(|| not_found("vPool", name))
    }

    /// The same, if it is there.
    pub(super) fn find_pool(&self, name: &Name) -> Option<Rc<Pool>> {
        self.pools.borrow().values().find(|pool| pool.record.borrow().name == *name).cloned()
    }

    /// The vPool on this backend.
    pub(super) fn pool_on(&self, backend: Uuid) -> Option<Rc<Pool>> {
        self.pools.borrow().values().find(|pool| pool.record.borrow().backend == backend).cloned()
    }

    /// All vPools in use, by name.
    pub(crate) fn all_pools(&self) -> Vec<Rc<Pool>> {
        let mut pools: Vec<Rc<Pool>> = self.pools.borrow().values().cloned().collect();
        pools.sort_by_key(|pool| pool.record().name);
        pools
    }

    /// Takes a vPool into use.
    pub(super) fn attach_pool(&self, pool: &Rc<Pool>, opened: Opened) {
        let Opened { store, drives, composites } = opened;
        let id = pool.record.borrow().id;
        self.engine.set_vpool_cache(id, pool.record.borrow().cache);
        self.engine.attach_backend(id, store.clone());
        *pool.backend.borrow_mut() = Some(store);
        *pool.drives.borrow_mut() = drives;
        *pool.composites.borrow_mut() = composites;
        pool.set_problem(None);
        self.layouts_due.borrow_mut().entry(id).or_default();
        self.pools.borrow_mut().insert(id, pool.clone());
    }

    /// Keeps a vPool whose backend could not be opened: it is shown, and tried again.
    pub(super) fn keep_pool_offline(&self, pool: &Rc<Pool>, reason: String) {
        tracing::error!(vpool = %pool.record().name, %reason, "a vPool cannot be used");
        pool.set_problem(Some(reason));
        self.layouts_due.borrow_mut().entry(pool.record().id).or_default();
        self.pools.borrow_mut().insert(pool.record().id, pool.clone());
    }

    /// Opens the backend of a vPool.
    pub(super) async fn open_pool_backend(&self, pool: &Pool) -> Result<Opened, Problem> {
        let (record, set) = (pool.record(), self.backend_set().await?);
        let opened =
            self.open_what_is_there(&set, record.backend, &record.namespace, Namespace::Existing).await?;
        // Neither is anything done beside guests by a record that is not the newest.
        if !opened.0.composites.is_empty() {
            let checked = self.check_is_not_put_back(&record, &opened.0.drives).await;
            checked.inspect_err(|_| pool.forget_parts())?;
        }
        match opened {
            (opened, None) => Ok(opened),
            (opened, Some(why_not)) => {
                pool.keep_parts(opened);
                Err(why_not)
            }
        }
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

    /// A vPool as the API's document.
    pub(super) async fn show_vpool(&self, pool: &Pool) -> Result<Vpool, Problem> {
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
        let drives = pool.drives_in_trouble();
        if problem.is_none() && !drives.is_empty() {
            let reasons: Vec<String> =
                drives.iter().map(|(drive, reason)| format!("drive {drive}: {reason}")).collect();
            problem = Some(reasons.join("; "));
        }
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
            on_full: from_on_full(record.on_full),
            stall_timeout_ms: record.stall_timeout_ms,
            default_size_bytes: record.default_size_bytes,
            trash_retention_s: record.trash_retention_s,
            cache: record.cache,
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
pub(super) fn to_on_full(on_full: OnFull) -> OnFullPolicy {
    match on_full {
        OnFull::Stall => OnFullPolicy::Stall,
        OnFull::Enospc => OnFullPolicy::Enospc,
    }
}

/// The registry's word as the API's.
pub(super) fn from_on_full(policy: OnFullPolicy) -> OnFull {
    match policy {
        OnFullPolicy::Stall => OnFull::Stall,
        OnFullPolicy::Enospc => OnFull::Enospc,
    }
}

pub(super) fn offline(pool: &Pool) -> Problem {
    let reason = pool.problem().unwrap_or_else(|| "its backend is not open".into());
    Problem::new(ProblemKind::Offline, format!("vPool {} does not serve: {reason}", pool.record().name))
}
