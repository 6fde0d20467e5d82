//! Making vDisks: empty ones, clones, children of templates.
//!
//! ```text
//!  prepare: record `creating`, with the name and the parent   (start-up abandons it)
//!  clone without a snapshot: take one of the parent, named `ovs-clone-…`
//!  engine: the vDisk, with its record as properties           (on the backend when it returns)
//!  finish: record `ready`
//!  clone without a snapshot: delete that snapshot (it stays hidden until the clone goes)
//! ```
//!
//! The parent's lock is held throughout: nobody deletes it or the snapshot meanwhile.

use super::{
    Volumes,
    idempotency::Terms,
    locks::Locked,
    open::{check_record_size, gone_is_fine, to_engine, to_properties},
    pools::{from_on_full, offline, to_on_full},
    problem::{exists, from_catalogue, from_volume},
};
use ovs_api::{
    CreateVdisk, Created, EventKind, Problem, ProblemKind, SnapshotRef, Vdisk as ApiVdisk, VdiskRef,
};
use ovs_cluster::catalogue::{BaseRecord, CatalogueError, FORMAT, State, Stored, VdiskRecord, VpoolRecord};
use ovs_units::{Limits, Name, SnapshotId, VdiskCache, VdiskId};
use ovs_volume::{CreateVdisk as EngineCreate, Vdisk};
use std::rc::Rc;

/// What the names of snapshots that are taken for a clone begin with.
pub(super) const CLONE_SNAPSHOT_PREFIX: &str = "ovs-clone-";

/// Where a clone starts.
struct Parent {
    vdisk: Vdisk,
    base: BaseRecord,
    size_bytes: u64,
    cache: VdiskCache,
}

impl Volumes {
    /// Makes a vDisk, or finds the one that the same request made before.
    pub async fn create_vdisk(
        self: &Rc<Self>,
        request: CreateVdisk,
        terms: Terms,
    ) -> Result<Created<ApiVdisk>, Problem> {
        let asked = serde_json::to_value(&request).unwrap_or_default();
        let pool = self.pool_by_name(&request.vpool)?;
        let vpool = pool.record();
        // Whoever deletes the vPool waits for this, and one name is made once.
        let name_key = VdiskRecord::name_key(vpool.id, &request.name);
        let _named = self.locks.lock(&name_key).await;
        if let Some(uuid) = self.idempotent::<VdiskRecord>(&terms, &asked).await? {
            return Ok(Created::existing(self.show_vdisk_by_id(VdiskId(uuid)).await?));
        }
        if let Some(known) = self.catalogue.find_by::<VdiskRecord>(&name_key).await.map_err(from_catalogue)? {
            if known.record.request != asked || known.record.state != State::Ready {
                return Err(exists("vDisk", &request.name, known.record.id.0));
            }
            self.remember(&terms, &asked, known.record.id.0).await?;
            return Ok(Created::existing(self.show_vdisk_by_id(known.record.id).await?));
        }
        if pool.backend().is_none() {
            return Err(offline(&pool));
        }
        let source = request.template.as_ref().or(request.source.as_ref().map(|source| &source.vdisk));
        let source = match source {
            Some(reference) => Some(self.resolve(reference).await?),
            None => None,
        };
        let parent_locked = match source {
            Some(id) => Some((id, self.lock_vdisk(id).await)),
            None => None,
        };
        let parent = match &parent_locked {
            Some((id, locked)) => Some(self.find_parent(*id, locked, &request, &vpool).await?),
            None => None,
        };
        let record = self.new_record(&request, &vpool, parent.as_ref(), asked.clone())?;
        let record = self.make_vdisk(record, parent).await?;
        self.remember(&terms, &asked, record.id.0).await?;
        self.publish_vdisk(EventKind::VdiskCreated, &record, |event| {
            event.size_bytes = Some(record.size_bytes)
        });
        self.sockets.open(self, &record).await;
        Ok(Created::new(self.show_vdisk(&record).await?))
    }

    async fn find_parent(
        &self,
        id: VdiskId,
        locked: &Locked,
        request: &CreateVdisk,
        vpool: &VpoolRecord,
    ) -> Result<Parent, Problem> {
        let member = if request.template.is_some() { "template" } else { "source" };
        let stored = self.live_record(id).await?;
        let record = &stored.record;
        if record.vpool != vpool.id {
            let detail = format!("{member}: vDisk {} is in another vPool than {}", record.name, vpool.name);
            return Err(Problem::new(ProblemKind::Conflict, detail).with("field", member));
        }
        if request.template.is_some() && record.template.is_none() {
            let detail = format!("template: vDisk {} is not a template", record.name);
            return Err(Problem::new(ProblemKind::Conflict, detail).with("field", member));
        }
        let vdisk = self.ensure_open_locked(id, locked).await?;
        // Opening may have changed the record.
        let record = self.live_record(id).await?.record;
        let wanted = request.source.as_ref().and_then(|source| source.snapshot.as_ref());
        let (snapshot, size_bytes, taken_for_clone) = match (wanted, record.template) {
            (Some(wanted), _) => {
                let found = self.find_snapshot(&record, &vdisk, wanted)?;
                (found.id, snapshot_size(&record, found.id, found.size.0), false)
            }
            (None, Some(snapshot)) => (snapshot, record.size_bytes, false),
            (None, None) => (SnapshotId(self.chance.uuid()), record.size_bytes, true),
        };
        let base = BaseRecord { vdisk: id, snapshot, taken_for_clone };
        Ok(Parent { vdisk, base, size_bytes, cache: record.cache })
    }

    fn new_record(
        &self,
        request: &CreateVdisk,
        vpool: &VpoolRecord,
        parent: Option<&Parent>,
        asked: serde_json::Value,
    ) -> Result<VdiskRecord, Problem> {
        let inherited = parent.map_or(vpool.default_size_bytes, |parent| parent.size_bytes);
        let size_bytes = request.size_bytes.unwrap_or(inherited);
        if let Some(parent) = parent.filter(|parent| size_bytes < parent.size_bytes) {
            let allowed = format!("at least the {} bytes of the source", parent.size_bytes);
            return Err(Problem::field("size_bytes", size_bytes, &allowed));
        }
        let stall_timeout_ms = request.stall_timeout_ms.or(vpool.stall_timeout_ms).filter(|ms| *ms > 0);
        let record = VdiskRecord {
            format: FORMAT,
            id: VdiskId(self.chance.uuid()),
            vpool: vpool.id,
            name: request.name.clone(),
            version: 1,
            state: State::Creating,
            size_bytes,
            description: request.description.clone(),
            labels: request.labels.0.clone(),
            protected: request.protected,
            on_full: to_on_full(request.on_full.unwrap_or(from_on_full(vpool.on_full))),
            stall_timeout_ms,
            limits: request.limits.patch(Limits::default())?,
            cache: request.cache.patch(parent.map_or(VdiskCache::default(), |parent| parent.cache))?,
            template: None,
            base: parent.map(|parent| parent.base.clone()),
            trash: None,
            generation: 0,
            fenced: Vec::new(),
            pending: None,
            snapshots: Default::default(),
            created_ms: self.clock.wall_ms(),
            request: asked,
        };
        check_record_size(&record)?;
        Ok(record)
    }

    async fn make_vdisk(&self, record: VdiskRecord, parent: Option<Parent>) -> Result<VdiskRecord, Problem> {
        // A vPool is deleted under this lock, and only when it has no members: from the record on, this is one.
        let locked = self.locks.lock(format!("vpool/{}", record.vpool)).await;
        self.pool(record.vpool)?;
        let prepared = self.catalogue.insert(record).await.map_err(|error| match error {
            CatalogueError::Exists { name, .. } => {
                Problem::new(ProblemKind::Exists, format!("vDisk {name} exists already"))
            }
            other => from_catalogue(other),
        })?;
        drop(locked);
        let ready = VdiskRecord { state: State::Ready, ..prepared.record.clone() };
        if let Err(problem) = self.make_in_engine(&ready, parent.as_ref()).await {
            self.abandon_vdisk(&prepared).await;
            return Err(problem);
        }
        let stored = match self.catalogue.update(&prepared, ready).await {
            Ok(stored) => stored,
            Err(error) => {
                self.abandon_vdisk(&prepared).await;
                return Err(from_catalogue(error));
            }
        };
        self.slot(stored.record.id).settle();
        if let Some(parent) = parent.filter(|parent| parent.base.taken_for_clone)
            && let Err(error) = parent.vdisk.delete_snapshot(parent.base.snapshot).await
        {
            // The clone is there; what is left over goes when its parent is next opened.
            tracing::warn!(vdisk = %parent.base.vdisk, %error, "a clone's snapshot was not hidden");
        }
        Ok(stored.record)
    }

    async fn make_in_engine(&self, record: &VdiskRecord, parent: Option<&Parent>) -> Result<(), Problem> {
        if let Some(parent) = parent.filter(|parent| parent.base.taken_for_clone) {
            let id = parent.base.snapshot;
            parent.vdisk.snapshot(id, clone_snapshot_name(id)).await.map_err(from_volume)?;
        }
        let request = EngineCreate {
            id: record.id,
            vpool: record.vpool,
            size: record.capacity(),
            properties: to_properties(record)?,
            base: record.base.as_ref().map(|base| (base.vdisk, base.snapshot)),
            on_full: to_engine(record.on_full, record.stall_timeout_ms),
        };
        let vdisk = self.engine.create_vdisk(request).await.map_err(from_volume)?;
        self.apply_settings(&vdisk, record);
        Ok(())
    }

    /// Takes back a vDisk that was not finished: nothing of it has been seen by anybody. What cannot be taken back now
    /// stays as `creating` and is tried again.
    pub(super) async fn abandon_vdisk(&self, prepared: &Stored<VdiskRecord>) {
        let record = &prepared.record;
        let outcome = async {
            gone_is_fine(self.engine.delete_vdisk(record.vpool, record.id).await)?;
            if let Some(base) = record.base.as_ref().filter(|base| base.taken_for_clone)
                && let Some(parent) = self.engine.vdisk(base.vdisk)
            {
                gone_is_fine(parent.delete_snapshot(base.snapshot).await)?;
            }
            self.catalogue.remove(prepared).await.map_err(from_catalogue)
        };
        match outcome.await {
            Ok(()) => {
                tracing::warn!(vdisk = %record.id, name = %record.name, "a vDisk that was not finished is taken back")
            }
            Err(problem) => {
                tracing::error!(vdisk = %record.id, name = %record.name, %problem, "a vDisk that was not finished stays for now");
            }
        }
        self.forget_slot(record.id);
    }

    pub(super) async fn show_vdisk_by_id(&self, id: VdiskId) -> Result<ApiVdisk, Problem> {
        let stored = self.record(id).await?;
        self.show_vdisk(&stored.record).await
    }

    /// Which snapshot of which vDisk `POOL:NAME` and a snapshot mean.
    pub(crate) async fn resolve_snapshot(
        &self,
        vdisk: &VdiskRef,
        wanted: &SnapshotRef,
    ) -> Result<(VdiskId, SnapshotId), Problem> {
        let id = self.resolve(vdisk).await?;
        let opened = self.ensure_open(id).await?;
        let stored = self.live_record(id).await?;
        let found = self.find_snapshot(&stored.record, &opened, wanted)?;
        Ok((id, found.id))
    }
}

/// The byte-exact size of a vDisk at a snapshot.
pub(super) fn snapshot_size(record: &VdiskRecord, id: SnapshotId, capacity_bytes: u64) -> u64 {
    record.snapshots.get(&id).map_or(capacity_bytes, |snapshot| snapshot.size_bytes)
}

fn clone_snapshot_name(id: SnapshotId) -> Name {
    Name::new(&format!("{CLONE_SNAPSHOT_PREFIX}{}", id.0.simple())).expect("digits are allowed in names")
}
