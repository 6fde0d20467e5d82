//! Opening vDisks, finishing what a crash left, and changing their records.
//!
//! ```text
//!  ensure_open ─▶ Engine::open_vdisk ─▶ settle: step begun? size? properties? snapshots?  ─▶ serves
//! ```
//!
//! The record in the registry is the intention; the engine follows. Whatever a crash left between the two is made good
//! here, under the vDisk's lock, before anybody reads or writes: what a change in progress has left half done is its
//! own to finish. A vDisk that cannot be opened is shown with its reason, is tried again, and stops nobody else.

use super::{
    Volumes,
    create::CLONE_SNAPSHOT_PREFIX,
    locks::Locked,
    pools::offline,
    problem::{from_catalogue, from_volume, not_found},
};
use bytes::Bytes;
use ovs_api::{EventKind, Problem, ProblemKind, SnapshotRef, VdiskRef};
use ovs_cluster::catalogue::{OnFullPolicy, Pending, SnapshotRecord, State, Stored, VdiskRecord, decode};
use ovs_units::{ByteCount, ByteOffset, ByteRange, CacheMode, Name, SnapshotId, VdiskCache, VdiskId};
use ovs_volume::{OnFull, SnapshotInfo, Vdisk, VolumeError};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

/// A vDisk's record, and so its properties on the backend, is never longer than this.
pub(super) const RECORD_BYTES_MAX: usize = 256 << 10;

/// What is known of one vDisk beside its record.
#[derive(Debug, Default)]
pub struct Slot {
    is_settled: Cell<bool>,
    problem: RefCell<Option<Problem>>,
}

impl Slot {
    /// Why it could not be opened.
    pub fn problem(&self) -> Option<Problem> {
        self.problem.borrow().clone()
    }

    /// True when the engine's side is as the record says.
    pub fn is_settled(&self) -> bool {
        self.is_settled.get()
    }

    /// Something was not finished: the next who opens it does that first.
    pub(super) fn unsettle(&self) {
        self.is_settled.set(false);
    }

    pub(super) fn settle(&self) {
        self.is_settled.set(true);
        *self.problem.borrow_mut() = None;
    }
}

impl Volumes {
    /// What is known of a vDisk.
    pub(crate) fn slot(&self, id: VdiskId) -> Rc<Slot> {
        self.slots.borrow_mut().entry(id).or_default().clone()
    }

    pub(super) fn forget_slot(&self, id: VdiskId) {
        self.slots.borrow_mut().remove(&id);
    }

    /// The record of a vDisk that is there (in the trash or not).
    pub(crate) async fn record(&self, id: VdiskId) -> Result<Stored<VdiskRecord>, Problem> {
        let stored = self.catalogue.find::<VdiskRecord>(id.0).await.map_err(from_catalogue)?;
        stored.filter(|stored| stored.record.state == State::Ready).ok_or_else(|| not_found("vDisk", id))
    }

    /// The record of a vDisk outside the trash.
    pub(crate) async fn live_record(&self, id: VdiskId) -> Result<Stored<VdiskRecord>, Problem> {
        let stored = self.record(id).await?;
        match stored.record.trash {
            None => Ok(stored),
            Some(_) => Err(Problem::new(ProblemKind::NotFound, format!("vDisk {id} is in the trash"))),
        }
    }

    /// Which vDisk a request means.
    pub(crate) async fn resolve(&self, reference: &VdiskRef) -> Result<VdiskId, Problem> {
        match reference {
            VdiskRef::Id(id) => Ok(*id),
            VdiskRef::Name { vpool, name } => {
                let pool = self.pool_by_name(vpool)?.record().id;
                let key = VdiskRecord::name_key(pool, name);
                let found = self.catalogue.find_by::<VdiskRecord>(&key).await.map_err(from_catalogue)?;
                let ready = found.filter(|stored| stored.record.state == State::Ready);
                ready.map(|stored| stored.record.id).ok_or_else(|| not_found("vDisk", reference))
            }
        }
    }

    /// The vDisk's lock: whoever changes it, or makes good what a change has left, holds it.
    pub(super) async fn lock_vdisk(&self, id: VdiskId) -> Locked {
        self.locks.lock(lock_name(id)).await
    }

    /// The same if nobody has it.
    pub(super) fn try_lock_vdisk(&self, id: VdiskId) -> Option<Locked> {
        self.locks.try_lock(lock_name(id))
    }

    /// The vDisk, open and as its record says. Waits for a change in progress that has not come to its end.
    pub(crate) async fn ensure_open(&self, id: VdiskId) -> Result<Vdisk, Problem> {
        match self.opened(id) {
            Some(vdisk) => Ok(vdisk),
            None => self.ensure_open_locked(id, &self.lock_vdisk(id).await).await,
        }
    }

    /// As [`Self::ensure_open`] for what can be done later: a vDisk that somebody works on is left to him.
    pub(super) async fn open_unless_locked(&self, id: VdiskId) -> Result<(), Problem> {
        if self.opened(id).is_none()
            && let Some(locked) = self.try_lock_vdisk(id)
        {
            self.ensure_open_locked(id, &locked).await?;
        }
        Ok(())
    }

    fn opened(&self, id: VdiskId) -> Option<Vdisk> {
        self.slot(id).is_settled().then(|| self.engine.vdisk(id)).flatten()
    }

    /// As [`Self::ensure_open`] for who holds the vDisk's lock.
    pub(super) async fn ensure_open_locked(&self, id: VdiskId, locked: &Locked) -> Result<Vdisk, Problem> {
        debug_assert!(locked.is_of(&lock_name(id)), "the lock of another: {locked:?}");
        if let Some(vdisk) = self.opened(id) {
            return Ok(vdisk);
        }
        let slot = self.slot(id);
        let opened = self.open_and_settle(id).await;
        let before = slot.problem();
        match &opened {
            Ok((_, true)) => slot.settle(),
            Ok((_, false)) => *slot.problem.borrow_mut() = None,
            Err(_) if self.record(id).await.is_err() => self.forget_slot(id),
            Err(problem) => *slot.problem.borrow_mut() = Some(problem.clone()),
        }
        if before.as_ref().map(|problem| &problem.detail)
            != slot.problem().as_ref().map(|problem| &problem.detail)
            && let Ok(stored) = self.record(id).await
        {
            let detail = slot.problem().map_or_else(|| "ok".to_owned(), |problem| problem.detail);
            self.publish_vdisk(EventKind::VdiskState, &stored.record, |event| event.detail = Some(detail));
        }
        opened.map(|(vdisk, _)| vdisk)
    }

    async fn open_and_settle(&self, id: VdiskId) -> Result<(Vdisk, bool), Problem> {
        let mut stored = self.record(id).await?;
        let pool = self.pool(stored.record.vpool)?;
        if pool.backend().is_none() {
            return Err(offline(&pool));
        }
        if self.engine.vdisk(id).is_none()
            && let Some(told) = self.engine.known_properties(id).await.map_err(from_volume)?
        {
            stored = self.not_older(stored, told.as_bytes()).await?;
        }
        let on_full = to_engine(stored.record.on_full, stored.record.stall_timeout_ms);
        let vdisk =
            self.engine.open_vdisk(stored.record.vpool, id, on_full).await.map_err(|error| match error {
                // It has a record: something of it is lost.
                VolumeError::NotFound(reason) => Problem::new(ProblemKind::Damaged, reason),
                other => from_volume(other),
            })?;
        let stored = self.not_older(stored, &vdisk.properties()).await?;
        self.apply_settings(&vdisk, &stored.record);
        let is_settled = self.settle(stored, &vdisk).await?;
        Ok((vdisk, is_settled))
    }

    /// The record, unless it is from before what the vDisk says of itself: what it told to finish was of that time.
    async fn not_older(
        &self,
        mut stored: Stored<VdiskRecord>,
        told: &[u8],
    ) -> Result<Stored<VdiskRecord>, Problem> {
        if is_newer_than(told, &stored.record) {
            // Changed meanwhile: a fence waits for nobody.
            stored = self.record(stored.record.id).await?;
        }
        if !is_newer_than(told, &stored.record) {
            return Ok(stored);
        }
        let detail = format!(
            "the registry's record of vDisk {} is older than the backend's: run `ovs vpool recover`",
            stored.record.name
        );
        Err(Problem::new(ProblemKind::Conflict, detail))
    }

    /// From now on the record's limits and its part in the cache hold; no limits where the service stops, and nobody is to
    /// wait any more.
    pub(super) fn apply_settings(&self, vdisk: &Vdisk, record: &VdiskRecord) {
        if !self.is_stopping.get() {
            vdisk.set_limits(record.limits);
        }
        vdisk.set_cache(cache_of(record));
    }

    /// Makes good what a crash (or an error) left between the record and the engine. `false`: all but the copy of the
    /// record, which the backend does not take now; that must not keep a guest from its data.
    async fn settle(&self, stored: Stored<VdiskRecord>, vdisk: &Vdisk) -> Result<bool, Problem> {
        let stored = self.settle_pending(stored, vdisk).await?;
        let stored = self.settle_snapshots(stored, vdisk).await?;
        if vdisk.size() != stored.record.capacity() {
            tracing::warn!(vdisk = %stored.record.id, "a resize is finished");
            vdisk.resize(stored.record.capacity()).await.map_err(from_volume)?;
        }
        let behind =
            properties_version(&vdisk.properties()).is_none_or(|version| version < stored.record.version);
        if behind && let Err(problem) = self.push_properties(&stored.record, vdisk).await {
            tracing::warn!(vdisk = %stored.record.id, %problem, "its record is not on the backend yet");
            return Ok(false);
        }
        Ok(true)
    }

    async fn settle_pending(
        &self,
        stored: Stored<VdiskRecord>,
        vdisk: &Vdisk,
    ) -> Result<Stored<VdiskRecord>, Problem> {
        let record = &stored.record;
        match record.pending {
            None => return Ok(stored),
            Some(Pending::Rollback(snapshot)) => {
                tracing::warn!(vdisk = %record.id, %snapshot, "a rollback is done");
                vdisk.rollback(snapshot).await.map_err(from_volume)?;
            }
            Some(Pending::ZeroTail(from)) => {
                if vdisk.size() != record.capacity() {
                    vdisk.resize(record.capacity()).await.map_err(from_volume)?;
                }
                zero_tail(vdisk, from, record.capacity()).await?;
            }
        }
        let settled = VdiskRecord { pending: None, version: record.version + 1, ..record.clone() };
        self.catalogue.update(&stored, settled).await.map_err(from_catalogue)
    }

    /// Snapshots of the record that were never taken go from it; those of the engine that belong to an interrupted clone
    /// go from the engine.
    async fn settle_snapshots(
        &self,
        stored: Stored<VdiskRecord>,
        vdisk: &Vdisk,
    ) -> Result<Stored<VdiskRecord>, Problem> {
        let taken: Vec<SnapshotInfo> =
            vdisk.snapshots().into_iter().filter(|snapshot| !snapshot.hidden).collect();
        let mut record = stored.record.clone();
        record.snapshots.retain(|id, _| taken.iter().any(|snapshot| snapshot.id == *id));
        for snapshot in &taken {
            if record.snapshots.contains_key(&snapshot.id) || record.template == Some(snapshot.id) {
                continue;
            }
            if snapshot.name.as_str().starts_with(CLONE_SNAPSHOT_PREFIX) {
                tracing::warn!(vdisk = %record.id, snapshot = %snapshot.id, "the snapshot of an interrupted clone goes");
                vdisk.delete_snapshot(snapshot.id).await.map_err(from_volume)?;
            } else {
                record.snapshots.insert(snapshot.id, found_snapshot(snapshot));
            }
        }
        if let Some(template) = record.template
            && !taken.iter().any(|snapshot| snapshot.id == template)
        {
            vdisk.snapshot(template, template_name(template)).await.map_err(from_volume)?;
        }
        if record == stored.record {
            return Ok(stored);
        }
        record.version += 1;
        self.catalogue.update(&stored, record).await.map_err(from_catalogue)
    }

    /// Changes a record: the registry first, then the copy on the backend. When that fails the change stands, is told
    /// as an error, and is made good before the vDisk is next used.
    pub(super) async fn change(
        &self,
        stored: &Stored<VdiskRecord>,
        vdisk: Option<&Vdisk>,
        change: impl FnOnce(&mut VdiskRecord),
    ) -> Result<Stored<VdiskRecord>, Problem> {
        let mut record = stored.record.clone();
        change(&mut record);
        record.version += 1;
        check_record_size(&record)?;
        let stored = self.catalogue.update(stored, record).await.map_err(from_catalogue)?;
        if let Some(vdisk) = vdisk {
            self.push_properties(&stored.record, vdisk).await?;
        }
        Ok(stored)
    }

    /// Copies a record to the backend.
    pub(super) async fn push_properties(&self, record: &VdiskRecord, vdisk: &Vdisk) -> Result<(), Problem> {
        let pushed = vdisk.set_properties(to_properties(record)?).await;
        if pushed.is_err() {
            self.slot(record.id).unsettle();
        }
        pushed.map_err(from_volume)
    }

    /// One of a vDisk's snapshots that people see.
    pub(crate) fn find_snapshot(
        &self,
        record: &VdiskRecord,
        vdisk: &Vdisk,
        wanted: &SnapshotRef,
    ) -> Result<SnapshotInfo, Problem> {
        let is_wanted = |snapshot: &SnapshotInfo| match wanted {
            SnapshotRef::Id(id) => snapshot.id == *id,
            SnapshotRef::Name(name) => snapshot.name == *name,
        };
        let found = shown_snapshots(record, vdisk).into_iter().find(is_wanted);
        found.ok_or_else(|| not_found("snapshot", format!("{}@{wanted}", record.name)))
    }
}

/// The snapshots that people see: not those taken for clones or a template, not those that are deleted.
pub(crate) fn shown_snapshots(record: &VdiskRecord, vdisk: &Vdisk) -> Vec<SnapshotInfo> {
    let mut snapshots = vdisk.snapshots();
    snapshots.retain(|snapshot| !snapshot.hidden && record.snapshots.contains_key(&snapshot.id));
    snapshots
}

fn lock_name(id: VdiskId) -> String {
    format!("vdisk/{id}")
}

/// Zeros from a byte to the end of the vDisk, which is in the same cluster.
pub(super) async fn zero_tail(vdisk: &Vdisk, from: u64, capacity: ByteCount) -> Result<(), Problem> {
    if from < capacity.0
        && let Some(range) = ByteRange::new(ByteOffset(from), ByteCount(capacity.0 - from))
    {
        vdisk.zero(range, true).await.map_err(from_volume)?;
    }
    Ok(())
}

/// The name of the snapshot that a template's children start from.
pub(super) fn template_name(id: SnapshotId) -> Name {
    Name::new(&format!("ovs-template-{}", &id.0.simple().to_string()[..12]))
        .expect("digits are allowed in names")
}

fn found_snapshot(snapshot: &SnapshotInfo) -> SnapshotRecord {
    SnapshotRecord {
        name: snapshot.name.clone(),
        size_bytes: snapshot.size.0,
        description: String::new(),
        labels: Default::default(),
        version: 1,
    }
}

/// A record as the engine's opaque properties.
pub(super) fn to_properties(record: &VdiskRecord) -> Result<Bytes, Problem> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| Problem::new(ProblemKind::Internal, format!("a vDisk's record: {error}")))?;
    Ok(Bytes::from(bytes))
}

pub(super) fn check_record_size(record: &VdiskRecord) -> Result<(), Problem> {
    let length = to_properties(record)?.len();
    if length <= RECORD_BYTES_MAX {
        return Ok(());
    }
    let detail = format!(
        "the labels and snapshots of vDisk {} would take {length} bytes; {RECORD_BYTES_MAX} are allowed",
        record.name
    );
    Err(Problem::new(ProblemKind::TooLarge, detail))
}

/// The record in a vDisk's properties.
pub(super) fn from_properties(properties: &[u8]) -> Result<VdiskRecord, Problem> {
    if properties.len() > 4 * RECORD_BYTES_MAX {
        return Err(Problem::new(ProblemKind::Damaged, format!("properties of {} bytes", properties.len())));
    }
    decode("properties", properties).map_err(from_catalogue)
}

/// Is what a vDisk's backend says of it newer than this? Each change is in the registry first.
pub(super) fn is_newer_than(properties: &[u8], record: &VdiskRecord) -> bool {
    from_properties(properties).is_ok_and(|told| told.id == record.id && told.version > record.version)
}

fn properties_version(properties: &[u8]) -> Option<u64> {
    from_properties(properties).ok().map(|record| record.version)
}

/// What is in the trash is read by nobody but its clones.
fn cache_of(record: &VdiskRecord) -> VdiskCache {
    match record.trash {
        Some(_) => VdiskCache { mode: Some(CacheMode::None), quota_bytes: None },
        None => record.cache,
    }
}

/// The registry's policy as the engine's.
pub(super) fn to_engine(policy: OnFullPolicy, stall_timeout_ms: Option<u64>) -> OnFull {
    match policy {
        OnFullPolicy::Stall => OnFull::Stall { timeout: stall_timeout_ms.map(Duration::from_millis) },
        OnFullPolicy::Enospc => OnFull::NoSpace,
    }
}

/// Gone already is as good as deleted.
pub(super) fn gone_is_fine(result: Result<(), VolumeError>) -> Result<(), Problem> {
    match result {
        Err(VolumeError::NotFound(_)) => Ok(()),
        other => other.map_err(from_volume),
    }
}
