//! All vDisks of a host over one write buffer.
//!
//! Lives on one thread, inside a tokio `LocalSet`. Not here: names of vDisks, doors, attachments (see `ovs-cluster` and
//! `ovs-service`).

mod cache;
mod context;
mod delete;
mod maps;
pub(crate) mod recover;
mod scrub;
mod strangers;
mod sweep;
mod types;

pub(crate) use context::Context;
pub use types::{
    CreateVdisk, EngineConfig, EngineParts, EngineStats, Extent, FoundVdisk, OnFull, SnapshotInfo,
    VdiskState, VdiskStats,
};

use crate::head::{Head, VersionedHead, head_key};
use crate::log::{Log, Record, Segment};
use crate::map::{Table, Tree};
use crate::vdisk::{CloneSource, catch_up, finish_even_if_dropped};
use crate::{Revision, Transaction, Vdisk, VolumeError};
use ovs_backend::Backend;
use ovs_units::{CLUSTER_SIZE_BYTES, Limits, SnapshotId, VDISK_SIZE_BYTES_MAX, VdiskId, VpoolId, planted};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::{Rc, Weak},
    time::Duration,
};

/// All vDisks of this host over one write buffer. Cheap to clone; one thread.
#[derive(Clone)]
pub struct Engine {
    inner: Rc<Inner>,
}

struct Inner {
    context: Rc<Context>,
    backends: RefCell<BTreeMap<VpoolId, Rc<dyn Backend>>>,
    vdisks: RefCell<BTreeMap<VdiskId, Vdisk>>,
    /// Records found in the write buffer whose vDisks are not open yet.
    replayed: RefCell<BTreeMap<VdiskId, Vec<Rc<Record>>>>,
    /// What the log found damaged.
    damage: RefCell<Vec<(Option<VdiskId>, String)>>,
    /// Where that is, until everybody concerned has been told.
    evidence: RefCell<Vec<Rc<Segment>>>,
    /// vPools of which vDisks are being adopted.
    recovering: RefCell<BTreeSet<VpoolId>>,
    /// vPools whose backends were searched for vDisks that nobody knows.
    strangers_looked_for: RefCell<BTreeSet<VpoolId>>,
    /// One vDisk is opened, made or deleted at a time.
    turn: tokio::sync::Mutex<()>,
}

impl Drop for Inner {
    /// Of what goes with it the log has the only copy.
    fn drop(&mut self) {
        self.context.log.end();
    }
}

impl Engine {
    /// Replays the write buffer into memory; ready for [`Engine::attach_backend`] and [`Engine::open_vdisk`].
    pub async fn open(config: EngineConfig, parts: EngineParts) -> Result<Engine, VolumeError> {
        let (log, replay) =
            Log::open(parts.buffer.clone(), parts.chance.clone(), config.memory_bytes).await?;
        let next_page = parts.pages.highest().await? + 1;
        let context = Rc::new(Context::new(config, parts, log, next_page));
        let inner = Inner {
            context,
            backends: RefCell::default(),
            vdisks: RefCell::default(),
            replayed: RefCell::new(replay.records),
            damage: RefCell::new(replay.damage),
            evidence: RefCell::new(replay.evidence),
            recovering: RefCell::default(),
            strangers_looked_for: RefCell::default(),
            turn: tokio::sync::Mutex::new(()),
        };
        let engine = Engine { inner: Rc::new(inner) };
        engine.relieve_pressure();
        engine.sweep_now_and_then();
        engine.checkpoint_when_short();
        engine.scrub_now_and_then();
        engine.remember_losses();
        engine.forget_damaged_maps();
        Ok(engine)
    }

    /// Tells where a vPool's objects live. Before any vDisk of it is opened. Deletions that a crash cut short go on.
    pub fn attach_backend(&self, vpool: VpoolId, backend: Rc<dyn Backend>) {
        self.inner.backends.borrow_mut().insert(vpool, backend);
        self.resume_deletions(vpool);
    }

    /// Forgets a vPool whose vDisks are all gone.
    pub fn detach_backend(&self, vpool: VpoolId) {
        self.inner.backends.borrow_mut().remove(&vpool);
        self.inner.strangers_looked_for.borrow_mut().remove(&vpool);
    }

    fn backend(&self, vpool: VpoolId) -> Result<Rc<dyn Backend>, VolumeError> {
        let backend = self.inner.backends.borrow().get(&vpool).cloned();
        backend.ok_or_else(|| VolumeError::NotFound(format!("vPool {vpool} has no backend here")))
    }

    /// The open vDisk of that identity.
    pub fn vdisk(&self, id: VdiskId) -> Option<Vdisk> {
        let vdisk = self.inner.vdisks.borrow().get(&id).cloned();
        vdisk.filter(|vdisk| !vdisk.inner.head.borrow().head.deleted)
    }

    /// Makes a vDisk: on the backend and in the registry when this returns.
    pub async fn create_vdisk(&self, request: CreateVdisk) -> Result<Vdisk, VolumeError> {
        let engine = self.clone();
        finish_even_if_dropped(async move { engine.create(request).await }).await
    }

    async fn create(&self, request: CreateVdisk) -> Result<Vdisk, VolumeError> {
        let size = request.size.0;
        if !size.is_multiple_of(CLUSTER_SIZE_BYTES) || size > VDISK_SIZE_BYTES_MAX {
            return Err(VolumeError::Refused(format!(
                "size {size}: must be whole 4 KiB clusters, 64 TiB at most"
            )));
        }
        let properties = String::from_utf8(request.properties.to_vec())
            .map_err(|_| VolumeError::Refused("properties must be UTF-8 text".into()))?;
        let _turn = self.inner.turn.lock().await;
        let backend = self.backend(request.vpool)?;
        let (id, vpool) = (request.id, request.vpool);
        let (source, head) = match request.base {
            None => {
                let head = Head::new(vpool, request.size, None, properties);
                let put =
                    Transaction::new().compare(head_key(id), Revision(0)).put(head_key(id), head.encode());
                let committed = self.inner.context.registry.commit(put).await?;
                let revision = committed.ok_or_else(|| VolumeError::Refused(format!("vDisk {id} exists")))?;
                (nothing(&self.inner.context, request.size), VersionedHead { head, revision })
            }
            Some((parent, snapshot)) => self.register_clone(&request, parent, snapshot, properties).await?,
        };
        let size_now = head.head.size;
        let context = self.inner.context.clone();
        let vdisk = Vdisk::assemble(id, context, backend, head, request.on_full, source);
        vdisk.start().await?;
        self.keep(vdisk.clone());
        vdisk.start_destaging();
        if request.size != size_now {
            vdisk.resize(request.size).await?;
        }
        Ok(vdisk)
    }

    /// A clone registers on its snapshot in one transaction, which fails if the snapshot is being deleted.
    async fn register_clone(
        &self,
        request: &CreateVdisk,
        parent: VdiskId,
        snapshot: SnapshotId,
        properties: String,
    ) -> Result<(CloneSource, VersionedHead), VolumeError> {
        let parent = self.open_any(request.vpool, parent, OnFull::Stall { timeout: None }).await?;
        let _meta = parent.inner.meta.lock().await;
        let visible = parent.snapshots().iter().any(|known| known.id == snapshot && !known.hidden);
        if !visible {
            return Err(VolumeError::NotFound(format!(
                "snapshot {snapshot} is not there, or is being deleted"
            )));
        }
        let source = parent.clone_source(snapshot)?;
        if request.size < source.size {
            let (asked, least) = (request.size.0, source.size.0);
            return Err(VolumeError::Refused(format!("size {asked} is less than the snapshot's, {least}")));
        }
        let id = request.id;
        let head = Head::new(request.vpool, source.size, Some((parent.id(), snapshot)), properties);
        if self.inner.context.registry.get(&head_key(id)).await?.is_some() {
            return Err(VolumeError::Refused(format!("vDisk {id} exists")));
        }
        let put = Transaction::new().compare(head_key(id), Revision(0)).put(head_key(id), head.encode());
        parent
            .inner
            .commit_with(put, |parent_head| {
                if let Some(entry) = parent_head.snapshot_mut(snapshot)
                    && !planted("clone: it does not register on its snapshot")
                {
                    entry.clones.push(id);
                }
            })
            .await?;
        // Both keys were written by the same transaction.
        let revision = parent.inner.head.borrow().revision;
        Ok((source, VersionedHead { head, revision }))
    }

    /// Opens (or returns the open) vDisk.
    pub async fn open_vdisk(
        &self,
        vpool: VpoolId,
        id: VdiskId,
        on_full: OnFull,
    ) -> Result<Vdisk, VolumeError> {
        let engine = self.clone();
        // A checkpoint that it makes on the way is not left alone: a sweep would not know of its pages.
        finish_even_if_dropped(async move { engine.open_one(vpool, id, on_full).await }).await
    }

    async fn open_one(&self, vpool: VpoolId, id: VdiskId, on_full: OnFull) -> Result<Vdisk, VolumeError> {
        let _turn = self.inner.turn.lock().await;
        if self.head_of(id).await?.is_some_and(|head| head.head.deleted) {
            return Err(VolumeError::NotFound(format!("vDisk {id} is deleted")));
        }
        let vdisk = self.open_any(vpool, id, on_full).await?;
        if vdisk.inner.head.borrow().head.deleted {
            return Err(VolumeError::NotFound(format!("vDisk {id} is deleted")));
        }
        Ok(vdisk)
    }

    /// Deleted ones too: their clones read them. The caller has the turn.
    async fn open_any(&self, vpool: VpoolId, id: VdiskId, on_full: OnFull) -> Result<Vdisk, VolumeError> {
        let open = self.inner.vdisks.borrow().get(&id).cloned();
        if let Some(vdisk) = open {
            return Ok(vdisk);
        }
        let context = self.inner.context.clone();
        let backend = self.backend(vpool)?;
        let Some(entry) = context.registry.get(&head_key(id)).await? else {
            return Err(VolumeError::NotFound(format!("there is no vDisk {id}")));
        };
        let mut head = VersionedHead { head: Head::decode(id, &entry.value)?, revision: entry.revision };
        if !head.head.deleted && self.note_cut_off_deletion(&*backend, id, &mut head.head).await? {
            let deleted = self.mark_deleted(id, None, head).await?;
            if deleted.is_unneeded() {
                Box::pin(self.purge(vpool, id, deleted)).await?;
                return Err(VolumeError::NotFound(format!("vDisk {id} is deleted")));
            }
            head = self
                .head_of(id)
                .await?
                .ok_or_else(|| VolumeError::NotFound(format!("there is no vDisk {id}")))?;
        }
        if catch_up(&*backend, id, &mut head.head, &*context.chance).await? {
            let put =
                Transaction::new().compare(head_key(id), head.revision).put(head_key(id), head.head.encode());
            let committed = context.commit_patiently(put, &std::cell::Cell::new(true)).await?;
            head.revision = committed
                .ok_or_else(|| VolumeError::Retry(format!("the head of vDisk {id} changed meanwhile")))?;
        }
        let base = match head.head.base {
            Some((parent, snapshot)) => {
                let parent = Box::pin(self.open_any(vpool, parent, OnFull::Stall { timeout: None })).await?;
                Some(parent.clone_source(snapshot)?)
            }
            None => None,
        };
        // Taken out only once nothing can fail any more: they are the only copy.
        let records = self.inner.replayed.borrow().get(&id).cloned().unwrap_or_default();
        let vdisk = Vdisk::load(id, context, backend, head, on_full, base, records).await?;
        self.tell_damage(&vdisk).await?;
        self.inner.replayed.borrow_mut().remove(&id);
        self.keep(vdisk.clone());
        Ok(vdisk)
    }

    async fn tell_damage(&self, vdisk: &Vdisk) -> Result<(), VolumeError> {
        let is_mine = |whose: &Option<VdiskId>| whose.is_none_or(|whose| whose == vdisk.id());
        let damage = self.inner.damage.borrow().clone();
        let mine = damage.into_iter().filter(|(whose, _)| is_mine(whose)).map(|(_, reason)| reason);
        vdisk.damaged(mine.collect()).await
    }

    fn keep(&self, vdisk: Vdisk) {
        self.inner.context.note_open(&vdisk);
        self.inner.vdisks.borrow_mut().insert(vdisk.id(), vdisk);
    }

    /// Whether the write buffer has records of vDisks that no registry knows.
    pub async fn has_strangers(&self) -> Result<bool, VolumeError> {
        let waiting: Vec<VdiskId> = self.inner.replayed.borrow().keys().copied().collect();
        for id in waiting {
            if self.inner.context.registry.get(&head_key(id)).await?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Opens every vDisk that has records in the write buffer, so that they leave it, or that has lost some, so that its head
    /// says so: the next start may not see it any more. Drops the records of vDisks that no registry knows. Once all backends
    /// are attached.
    pub async fn claim_buffered(&self, on_full: OnFull) -> Result<(), VolumeError> {
        let mut waiting: BTreeSet<VdiskId> = self.inner.replayed.borrow().keys().copied().collect();
        waiting.extend(self.inner.damage.borrow().iter().filter_map(|(whose, _)| *whose));
        let mut is_everybody_told = true;
        for id in waiting {
            let entry = self.inner.context.registry.get(&head_key(id)).await?;
            let Some(entry) = entry else {
                let dropped = self.inner.replayed.borrow_mut().remove(&id).map_or(0, |records| records.len());
                tracing::warn!(vdisk = %id, dropped, "the write buffer has records of a vDisk that is not known here");
                continue;
            };
            // One that cannot be read is told when it is opened, and the others' data leaves all the same.
            let head = match Head::decode(id, &entry.value) {
                Ok(head) => head,
                Err(error) => {
                    tracing::error!(vdisk = %id, %error, "a vDisk with data in the write buffer has a head that cannot be read");
                    is_everybody_told = false;
                    continue;
                }
            };
            if head.deleted && head.snapshots.is_empty() {
                self.inner.replayed.borrow_mut().remove(&id);
                continue;
            }
            let vpool = head.vpool;
            let _turn = self.inner.turn.lock().await;
            if let Err(error) = self.open_any(vpool, id, on_full).await {
                tracing::error!(vdisk = %id, %error, "a vDisk with data in the write buffer cannot be opened");
                is_everybody_told = false;
            }
        }
        if is_everybody_told {
            self.inner.evidence.borrow_mut().clear();
        }
        Ok(())
    }

    /// No vDisk is limited from now on, and nobody waits for its turn: before a stop.
    pub fn lift_limits(&self) {
        let vdisks = self.inner.vdisks.borrow();
        vdisks.values().for_each(|vdisk| vdisk.inner.limiter.set(Limits::default()));
    }

    /// Figures as of now.
    pub fn stats(&self) -> EngineStats {
        let log = self.inner.context.log.stats();
        EngineStats {
            buffer_total_bytes: log.total_bytes,
            buffer_used_bytes: log.used_bytes,
            log_written_bytes: log.written_bytes,
            log_syncs: log.syncs,
            buffer_failed_slots: log.failed_slots,
            vdisks_open: self.inner.vdisks.borrow().len() as u64,
            maps: self.inner.context.map_memory.stats(),
            cache: self.cache_stats(),
        }
    }

    /// Sends out everything buffered (as far as the backends take it within `patience`), checkpoints, syncs. What did
    /// not leave is found in the write buffer at the next start.
    pub async fn close(&self, patience: Duration) -> Result<(), VolumeError> {
        let context = &self.inner.context;
        let vdisks: Vec<Vdisk> = self.inner.vdisks.borrow().values().cloned().collect();
        for vdisk in &vdisks {
            vdisk.inner.closing.set(true);
            vdisk.inner.limiter.let_go();
            vdisk.inner.destage_soon();
        }
        let deadline = context.clock.now() + patience;
        while vdisks.iter().any(|vdisk| vdisk.inner.has_buffered()) && context.clock.now() < deadline {
            context.clock.sleep(Duration::from_millis(10)).await;
        }
        for vdisk in &vdisks {
            vdisk.inner.is_ended.set(true);
            vdisk.inner.destage_soon();
            // Not of one that was deleted meanwhile.
            let is_there = || self.inner.vdisks.borrow().contains_key(&vdisk.id());
            if let Err(error) = vdisk.checkpoint(is_there).await {
                tracing::warn!(vdisk = %vdisk.id(), %error, "the map could not be checkpointed");
            }
        }
        let synced = context.log.sync().await;
        context.log.end();
        self.inner.vdisks.borrow_mut().clear();
        self.inner.replayed.borrow_mut().clear();
        synced
    }

    /// When the write buffer fails, the vDisks with acknowledged writes that are not stable stay offline over restarts.
    fn remember_losses(&self) {
        let engine = Rc::downgrade(&self.inner);
        let went_offline = self.inner.context.log.state.went_offline.clone();
        tokio::task::spawn_local(async move {
            loop {
                went_offline.notified().await;
                let Some(inner) = Weak::upgrade(&engine) else { break };
                let log = inner.context.log.clone();
                let Err(reason) = log.check_online() else { continue };
                // Whatever waits for its turn has an error to hear of.
                inner.vdisks.borrow().values().for_each(|vdisk| vdisk.inner.limiter.let_go());
                for id in log.state.lost.take() {
                    let vdisk = inner.vdisks.borrow().get(&id).cloned();
                    let Some(vdisk) = vdisk else { continue };
                    let reason = format!("{reason}; acknowledged writes that were not flushed may be lost");
                    if let Err(error) = vdisk.lost(reason).await {
                        tracing::error!(vdisk = %id, %error, "that it is offline could not be recorded");
                    }
                }
            }
        });
    }

    /// When a page of a map is found damaged, every checkpoint goes: another vDisk's may need the same page. Each map is
    /// made anew from the backend when its vDisk is opened next.
    fn forget_damaged_maps(&self) {
        let engine = Rc::downgrade(&self.inner);
        let found = self.inner.context.pages_found_damaged.clone();
        tokio::task::spawn_local(async move {
            found.notified().await;
            let Some(inner) = Weak::upgrade(&engine) else { return };
            let context = &inner.context;
            let _no_checkpoint = context.checkpoint_turn.lock().await;
            let mut attempt = 0;
            while let Err(error) = context.forget_checkpoints().await {
                tracing::error!(%error, "the checkpoints of damaged maps could not be forgotten; trying on");
                context.clock.sleep(Duration::from_millis(50 << attempt.min(6))).await;
                attempt += 1;
            }
            tracing::error!(
                "a map page is damaged: what it maps cannot be read until ovsd is started again, which makes the maps anew from the backend"
            );
        });
    }

    /// When the write buffer gets short, everything in it is sent out; what cannot leave is moved together.
    fn relieve_pressure(&self) {
        let engine = Rc::downgrade(&self.inner);
        let pressure = self.inner.context.log.state.pressure.clone();
        let clock = self.inner.context.clock.clone();
        tokio::task::spawn_local(async move {
            loop {
                pressure.notified().await;
                let Some(inner) = Weak::upgrade(&engine) else { break };
                inner.vdisks.borrow().values().filter(|vdisk| vdisk.inner.has_buffered()).for_each(|vdisk| {
                    vdisk.inner.destage_soon();
                });
                let log = inner.context.log.clone();
                if log.no_slot_for_writes() {
                    let vdisks = &inner.vdisks;
                    let is_well = |vdisk: &Vdisk| vdisk.inner.state() == VdiskState::Ok;
                    log.move_one(|id| vdisks.borrow().get(id).is_some_and(is_well)).await;
                }
                drop((log, inner));
                // At most so often: whoever waits for room asks again.
                clock.sleep(Duration::from_millis(20)).await;
            }
        });
    }
}

/// Where an empty vDisk starts from.
fn nothing(context: &Context, size: ovs_units::ByteCount) -> CloneSource {
    CloneSource::empty(Tree::empty(&context.map_memory), Table::default(), size)
}
