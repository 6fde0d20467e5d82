//! From the write buffer to the backend, layer by layer.
//!
//! Crash order, each step durable before the next begins:
//!
//! 1. SCOs with the layer's data are put under names that are never used again; the layer's records are stable.
//! 2. The TLog that names them is put in the journal: from here on a recovery from the backend alone finds the data.
//! 3. The head is committed with the TLog's position and sequence: from here on replay skips the layer's records.
//! 4. In memory: the map takes the new places, snapshots that end with the layer get their root, the layer is dropped;
//!    with the last reference to its records go their segments' slots.
//!
//! A crash after 1 or 2 leaves objects that nothing names; the data is still in the write buffer.

use super::lifecycle::Next;
use super::{Inner, Vdisk, count};
use crate::map::{Checkpoint, Place, Prepared, Table, Tree};
use crate::overlay::{Layer, Piece};
use crate::sco::NewSco;
use crate::{PageStore, VolumeError};
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use ovs_backend::Urgency;
use ovs_format::journal::{Record, Target, TlogEntry};
use ovs_format::page::{CheckpointRecord, FANOUT};
use ovs_format::sco::ScoRef;
use ovs_units::{CLUSTER_SIZE_BYTES, Cluster, ClusterCount, ClusterRange, Epoch, PutId, ScoNumber, planted};
use std::{
    cell::Cell,
    rc::{Rc, Weak},
    time::Duration,
};

/// How often it is looked whether anything is due where nothing is written.
const IDLE: Duration = Duration::from_secs(60);
/// SCOs of one vDisk on their way at once.
const PUTS_MAX: usize = 4;
/// What a layer changes in a map is loaded so many entries at a time.
const PAGE_LOADS_MAX: usize = 64;

impl Vdisk {
    /// Sends out what is buffered now, and waits for it.
    pub async fn destage(&self) -> Result<(), VolumeError> {
        let inner = &self.inner;
        inner.seal();
        let last = inner.sealed.borrow().back().cloned();
        let Some(last) = last else { return Ok(()) };
        loop {
            let destaged = inner.destaged.notified();
            if !inner.sealed.borrow().iter().any(|layer| Rc::ptr_eq(layer, &last)) {
                return Ok(());
            }
            inner.check_not_ended()?;
            inner.check_serving_or_closing()?;
            inner.destage_soon();
            destaged.await;
            if planted("destage: it returns when a part has left") {
                return Ok(());
            }
        }
    }

    /// Stores the map in the local page store, so that the next open need not read the journal.
    pub(crate) async fn checkpoint(&self, may: impl Fn() -> bool) -> Result<(), VolumeError> {
        self.inner.checkpoint(may).await
    }

    /// The same if it goes, but not of one that is being closed or deleted: nobody would forget that checkpoint again.
    pub(crate) async fn checkpoint_while_open(&self) {
        let inner = &self.inner;
        inner.try_to_checkpoint(|| !inner.closing.get() && !inner.is_ended.get()).await;
    }

    /// The task that sends out this vDisk's layers; ends when the vDisk is closed.
    pub(crate) fn start_destaging(&self) {
        let vdisk = Rc::downgrade(&self.inner);
        let (wanted, clock) = (self.inner.destage_wanted.clone(), self.inner.context.clock.clone());
        // While it waits the task holds nothing of the vDisk, so that dropping the vDisk ends it.
        tokio::task::spawn_local(async move {
            while let Some(wait) = step(&vdisk).await {
                tokio::select! {
                    biased;
                    () = wanted.notified() => {}
                    () = clock.sleep(wait) => {
                        // Also where the journal grows by little at a time, or by snapshots alone.
                        if let Some(inner) = vdisk.upgrade().filter(|_| wait >= IDLE) {
                            Vdisk { inner }.copy_map_if_due();
                        }
                    }
                }
            }
        });
    }
}

/// Sends out what is due. Returns how long to wait before looking again, `None` when the vDisk is gone.
async fn step(vdisk: &Weak<Inner>) -> Option<Duration> {
    let inner = vdisk.upgrade()?;
    let vdisk = Vdisk { inner };
    let inner = &vdisk.inner;
    if inner.is_ended.get() {
        // Whoever waits for data to leave looks again, and learns that none will.
        inner.destaged.notify_waiters();
        return None;
    }
    let config = &inner.context.config;
    let age = inner.active.borrow().since.get().map(|since| inner.context.clock.now() - since);
    let is_due = inner.destage_now.replace(false)
        || inner.active.borrow().data().bytes().0 >= config.destage_bytes
        || age.is_some_and(|age| age >= config.destage_after);
    if is_due {
        inner.seal();
    }
    // A clone that writes nothing lets go of its parent's layers too.
    let base = inner.base.borrow().clone();
    let is_base_pending = base.as_ref().is_some_and(|base| base.snapshot.tree().is_none());
    if base.is_some() && !is_base_pending && inner.resolve_base().await.is_err() {
        return Some(Duration::from_secs(1));
    }
    drop(base);
    loop {
        let oldest = inner.sealed.borrow().front().cloned();
        let Some(layer) = oldest else { break };
        if inner.is_ended.get() || inner.check_serving_or_closing().is_err() {
            inner.destaged.notify_waiters();
            return Some(Duration::from_secs(1));
        }
        match inner.send_out(&layer).await {
            Ok(()) => {
                inner.moving_again();
                if inner.commits_since_checkpoint.get() == 0 {
                    vdisk.copy_map_if_due();
                }
            }
            Err(VolumeError::Retry(reason) | VolumeError::NoSpace(reason)) => {
                inner.stalled(reason);
                return Some(Duration::from_millis(500));
            }
            Err(VolumeError::Offline(_)) if inner.closing.get() => return Some(Duration::from_millis(100)),
            Err(error) => {
                inner.go_offline(format!("its data cannot be sent to the backend: {error}"));
                return Some(Duration::from_secs(1));
            }
        }
    }
    let age = inner.active.borrow().since.get().map(|since| inner.context.clock.now() - since);
    let idle = if is_base_pending { Duration::from_secs(1) } else { IDLE };
    Some(age.map_or(idle, |age| config.destage_after.saturating_sub(age)))
}

impl Inner {
    /// Asks for everything buffered to leave.
    pub(crate) fn destage_soon(&self) {
        self.destage_now.set(true);
        self.destage_wanted.notify_one();
    }

    /// While closing, what is buffered may still leave.
    pub(super) fn check_serving_or_closing(&self) -> Result<(), VolumeError> {
        match self.check_serving() {
            Err(VolumeError::Offline(_)) if self.closing.get() && self.trouble_is_passing() => Ok(()),
            other => other,
        }
    }

    /// Nothing may appear on the backend behind a delete.
    pub(super) fn check_not_ended(&self) -> Result<(), VolumeError> {
        match self.is_ended.get() {
            false => Ok(()),
            true => Err(VolumeError::Offline(format!("vDisk {} is closed", self.id))),
        }
    }

    fn trouble_is_passing(&self) -> bool {
        use crate::engine::VdiskState;
        matches!(self.state(), VdiskState::Ok | VdiskState::Stalled(_))
    }

    async fn send_out(&self, layer: &Rc<Layer>) -> Result<(), VolumeError> {
        let _sending = self.sending.lock().await;
        // Without a turn: the parent needs one to get there.
        self.resolve_base().await?;
        self.check_map_room().await?;
        let _turn =
            self.context.destage_turns.acquire().await.map_err(|e| VolumeError::Offline(e.to_string()))?;
        {
            // The SCOs' names are of this epoch.
            let _meta = self.meta.lock().await;
            self.start_epoch_if_needed().await?;
        }
        let epoch = self.epoch();
        let (scos, entries) = self.put_scos(layer, epoch).await?;
        // The backend never knows more than the log: else a recovery could show what an earlier one did not.
        self.wait_written(layer).await?;
        self.context.log.sync().await?;
        // What the map needs in memory is loaded first: after the commit nothing may fail. Nobody who wants `meta` waits for it.
        let tree = self.tree.borrow().clone();
        let mut prepared = self.prepare(&tree, &entries).await?;
        let meta = self.meta.lock().await;
        if self.epoch() != epoch || self.next.get() != Next::Record {
            return Err(VolumeError::Retry("the epoch was given up meanwhile".into()));
        }
        let is_another = !tree.is_same(&self.tree.borrow());
        drop(tree);
        if is_another {
            let tree = self.tree.borrow().clone();
            prepared = self.prepare(&tree, &entries).await?;
        }
        let mut sequence = layer.last_sequence.get();
        if planted("destage: the head claims what is still buffered") {
            sequence = self.last_sequence.get();
        }
        let record = Record::Tlog { sequence, scos: scos.clone(), entries: entries.clone() };
        if planted("destage: the buffer is released before the journal has it") {
            self.take_places(layer, Prepared::default(), &scos, &entries);
        }
        let position = self.append_to_journal(&record).await?;
        self.commit(|head| {
            head.set_position(position);
            head.sequence = sequence;
            head.prune_epochs();
        })
        .await?;
        self.take_places(layer, prepared, &scos, &entries);
        drop(meta);
        self.context.destage_moved();
        self.destaged.notify_waiters();
        self.settled.notify_waiters();
        count(&self.commits_since_checkpoint, 1);
        let memory = &self.context.map_memory;
        if self.commits_since_checkpoint.get() >= self.context.config.checkpoint_every
            || memory.is_short()
                && memory.is_large(self.changed_map_bytes.get())
                && !self.context.pages_are_damaged.get()
        {
            self.try_to_checkpoint(|| !self.is_ended.get()).await;
        }
        if memory.is_short() {
            // By others, that may have nothing more to send out.
            self.context.maps_are_short.notify_one();
        }
        Ok(())
    }

    /// The data is well when a page is damaged: it goes out once the map has been made anew.
    async fn prepare(&self, tree: &Tree, entries: &[TlogEntry]) -> Result<Prepared, VolumeError> {
        prepare_tlog(tree, &*self.context.pages, entries).await.map_err(|error| {
            match self.context.map_unreadable(self.id, error) {
                VolumeError::Damaged(reason) => VolumeError::Retry(reason),
                error => error,
            }
        })
    }

    /// Where checkpoints fail, changed pages must stay: what goes out would add to them without end, and waits. Not for a
    /// checkpoint that can be made only when it has left, nor for a copy of the map that is on its way to the backend.
    async fn check_map_room(&self) -> Result<(), VolumeError> {
        if !self.context.maps_have_no_room() || planted("maps: what cannot be stored grows without end") {
            return Ok(());
        }
        let no_room = |error: String| {
            let what = "the maps on this host take all of their memory and cannot be stored";
            VolumeError::Retry(format!("{what}: {error}"))
        };
        self.context.maps_are_short.notify_one();
        if self.context.checkpoint_has_just_failed() && !self.is_ahead_of_checkpoints() {
            return Err(no_room("tried a moment ago".to_owned()));
        }
        self.checkpoint(|| !self.is_ended.get()).await.map_err(|error| no_room(error.to_string()))
    }

    /// A snapshot that is still open would be missed by whoever reads the journal from here on.
    fn is_ahead_of_checkpoints(&self) -> bool {
        self.snapshots.borrow().iter().any(|node| node.tree().is_none()) || self.base.borrow().is_some()
    }

    /// Nothing depends on it: the next open reads more of the journal.
    async fn try_to_checkpoint(&self, may: impl Fn() -> bool) {
        if self.context.checkpoint_has_just_failed() {
            return;
        }
        if let Err(error) = self.checkpoint(may).await {
            tracing::warn!(vdisk = %self.id, %error, "the map could not be checkpointed");
        }
    }

    /// A clone's data may refer to its parent's snapshot on the backend only once that is there.
    pub(super) async fn resolve_base(&self) -> Result<(), VolumeError> {
        let base = self.base.borrow().clone();
        let Some(base) = base else { return Ok(()) };
        let parent = &base.parent.inner;
        let tree = loop {
            let destaged = parent.destaged.notified();
            if let Some(tree) = base.snapshot.tree() {
                break tree;
            }
            parent.check_serving_or_closing()?;
            if parent.is_stalled() {
                return Err(VolumeError::Retry(format!("its parent {} waits for the backend", parent.id)));
            }
            parent.destage_soon();
            destaged.await;
        };
        if self.base.borrow().is_none() {
            return Ok(()); // somebody else was as quick, and may have gone on from there
        }
        let table = parent.table.borrow().clone();
        self.scrub.begin_with(tree.mapped().bytes(), &table, self.id);
        *self.tree.borrow_mut() = tree;
        *self.table.borrow_mut() = table;
        *self.base.borrow_mut() = None;
        Ok(())
    }

    pub(super) fn is_stalled(&self) -> bool {
        matches!(*self.trouble.borrow(), Some(crate::engine::VdiskState::Stalled(_)))
    }

    /// Step 1: the layer's data as SCOs, in cluster order. When some cannot be put, those that are there keep their place
    /// for the next attempt: else each attempt would leave copies behind that nobody refers to, on a backend that is
    /// short of room already.
    async fn put_scos(
        &self,
        layer: &Rc<Layer>,
        epoch: Epoch,
    ) -> Result<(Vec<ScoRef>, Vec<TlogEntry>), VolumeError> {
        let mut plan = Plan::new((self.context.config.sco_bytes / CLUSTER_SIZE_BYTES).max(1));
        layer.pieces().into_iter().for_each(|(cluster, piece)| plan.add(cluster, piece));
        let Plan { scos: planned, entries, .. } = plan;
        let attempts = self.attempts(layer, epoch, planned.len());
        let mut in_flight = FuturesUnordered::new();
        let mut waiting =
            planned.into_iter().zip(attempts.iter()).filter(|(_, sco)| sco.there.get().is_none());
        loop {
            while in_flight.len() < PUTS_MAX
                && let Some((pieces, sco)) = waiting.next()
            {
                in_flight.push(async move {
                    let put = self.put_sco(sco, pieces).await;
                    if planted("destage: a put that failed counts") && put.is_err() {
                        return Ok(());
                    }
                    put.map(|reference| sco.there.set(Some(reference)))
                });
            }
            match in_flight.next().await {
                Some(put) => put?,
                None => return Ok((attempts.iter().filter_map(|sco| sco.there.get()).collect(), entries)),
            }
        }
    }

    /// The names of the layer's SCOs, those of an earlier attempt if that was in the same epoch.
    fn attempts(&self, layer: &Rc<Layer>, epoch: Epoch, count: usize) -> Rc<Vec<ScoAttempt>> {
        let mut going_out = self.going_out.borrow_mut();
        if let Some(known) = &*going_out
            && Rc::ptr_eq(&known.layer, layer)
            && known.epoch == epoch
            && known.scos.len() == count
        {
            return known.scos.clone();
        }
        let first = self.next_sco.get();
        self.next_sco.set(first + count as u64);
        let name = |number| ScoAttempt {
            epoch,
            number: ScoNumber(number),
            put: PutId(self.context.chance.uuid()),
            there: Cell::new(None),
        };
        let scos = Rc::new((first..first + count as u64).map(name).collect::<Vec<_>>());
        *going_out = Some(GoingOut { layer: layer.clone(), epoch, scos: scos.clone() });
        scos
    }

    /// The same name always gets the same bytes, however often it is tried.
    async fn put_sco(&self, sco: &ScoAttempt, pieces: Vec<Piece>) -> Result<ScoRef, VolumeError> {
        let (mut data, mut checksums) = (Vec::with_capacity(pieces.len()), Vec::new());
        for piece in &pieces {
            data.push(self.context.log.read(&piece.record, piece.first, piece.count).await?);
            let (first, count) = (piece.first as usize, piece.count as usize);
            checksums.extend_from_slice(&piece.record.checksums()[first..first + count]);
        }
        let to_cache = self.cached.writer().map(|_| data.clone());
        let sco = NewSco::new(self.id, sco.epoch, sco.number, sco.put, data, &checksums);
        let bytes: usize = sco.parts.iter().map(bytes::Bytes::len).sum();
        let mut attempt = 0;
        loop {
            match self.backend.put(&sco.name(), sco.parts.clone(), Urgency::Normal).await {
                Err(ovs_backend::BackendError::Retry { .. }) if attempt < 3 && !self.closing.get() => {
                    self.backoff(attempt).await;
                    attempt += 1;
                }
                result => {
                    result?;
                    count(&self.counters.backend_put_bytes, bytes as u64);
                    to_cache.inspect(|data| self.cached.is_put(&sco.reference, data, &checksums));
                    return Ok(sco.reference);
                }
            }
        }
    }

    /// Step 4. One step, without a wait.
    fn take_places(&self, layer: &Rc<Layer>, prepared: Prepared, scos: &[ScoRef], entries: &[TlogEntry]) {
        let (mut tree, mut table) = (self.tree.borrow_mut(), self.table.borrow_mut());
        let memory = &self.context.map_memory;
        let before = memory.changed_bytes();
        apply_tlog(&mut tree, prepared, Rc::make_mut(&mut table), scos, entries);
        // Less where whole pages went.
        count(&self.changed_map_bytes, memory.changed_bytes().saturating_sub(before));
        drop((tree, table));
        let tree = self.tree.borrow().clone();
        self.scrub.added(scos);
        layer.markers.borrow_mut().drain(..).for_each(|snapshot| snapshot.resolve(tree.clone()));
        self.sealed.borrow_mut().retain(|other| !Rc::ptr_eq(other, layer));
        self.going_out.take();
    }

    /// Not while the last one is being copied to the backend: its pages would go. `may` is asked when nothing can change any more.
    async fn checkpoint(&self, may: impl Fn() -> bool) -> Result<(), VolumeError> {
        let _turn = self.checkpoints.lock().await;
        let Ok(_no_copying) = self.copying.try_lock() else { return Ok(()) };
        let checkpoint = {
            let _meta = self.meta.lock().await;
            if !may() {
                return Ok(());
            }
            self.checkpoint_of_now()
        };
        self.store_checkpoint(checkpoint).await.map(drop)
    }

    /// The caller holds `meta`. `None` when the map cannot be stored as it is now.
    pub(super) fn checkpoint_of_now(&self) -> Option<Rc<Checkpoint>> {
        if self.is_ahead_of_checkpoints() {
            return None;
        }
        let head = self.head.borrow().head.clone();
        let position = head.position()?;
        let resolved = |node: &Rc<super::SnapshotNode>| node.tree().map(|tree| (node.id, tree));
        let checkpoint = Rc::new(Checkpoint {
            position,
            sequence: head.sequence,
            tree: self.tree.borrow().clone(),
            table: Table::clone(&self.table.borrow()),
            snapshots: self.snapshots.borrow().iter().filter_map(resolved).collect(),
        });
        *self.pending_checkpoint.borrow_mut() = Rc::downgrade(&checkpoint);
        Some(checkpoint)
    }

    /// The caller holds `copying` and `checkpoints`, and no `meta`: a large map takes a while.
    pub(super) async fn store_checkpoint(
        &self,
        checkpoint: Option<Rc<Checkpoint>>,
    ) -> Result<Option<CheckpointRecord>, VolumeError> {
        let Some(checkpoint) = checkpoint else { return Ok(None) };
        let (commits, changed) = (self.commits_since_checkpoint.get(), self.changed_map_bytes.get());
        let record = checkpoint.store_in(&self.context, self.id).await?;
        if record.is_some() {
            let less = |count: &Cell<u64>, by: u64| count.set(count.get().saturating_sub(by));
            less(&self.commits_since_checkpoint, commits);
            less(&self.changed_map_bytes, changed);
        }
        Ok(record)
    }
}

/// Loads what a TLog changes in a map, and keeps it in memory.
pub(super) async fn prepare_tlog(
    tree: &Tree,
    pages: &dyn PageStore,
    entries: &[TlogEntry],
) -> Result<Prepared, VolumeError> {
    let prepare = |entry: &TlogEntry| {
        tree.prepare(pages, ClusterRange { start: entry.cluster, count: ClusterCount(entry.count) })
    };
    let mut prepared = Prepared::default();
    // Entries are in order. The pages above the leaves first, one after the other: else each would be loaded by many.
    let inner = |entry: &TlogEntry| entry.cluster.0 / (FANOUT * FANOUT) as u64;
    for of_one in entries.chunk_by(|one, next| inner(one) == inner(next)) {
        prepared.extend(prepare(&of_one[0]).await?);
    }
    let leaf = |entry: &TlogEntry| entry.cluster.0 / FANOUT as u64;
    let groups = stream::iter(entries.chunk_by(|one, next| leaf(one) == leaf(next)));
    let prepare_all = |of_one: &'_ [TlogEntry]| {
        let prepares: Vec<_> = of_one.iter().map(prepare).collect();
        async move {
            let mut prepared = Prepared::default();
            for prepare in prepares {
                prepared.extend(prepare.await?);
            }
            Ok::<_, VolumeError>(prepared)
        }
    };
    let mut waiting = groups.map(prepare_all).buffer_unordered(PAGE_LOADS_MAX);
    while let Some(some) = waiting.next().await {
        prepared.extend(some?);
    }
    Ok(prepared)
}

/// The map after a TLog whose clusters are prepared.
pub(super) fn apply_tlog(
    tree: &mut Tree,
    prepared: Prepared,
    table: &mut Table,
    scos: &[ScoRef],
    entries: &[TlogEntry],
) {
    drop(prepared);
    let first = table.len();
    scos.iter().for_each(|sco| table.push(*sco));
    for entry in entries {
        let place = match entry.target {
            Target::Zero => None,
            Target::Sco { sco, offset } => Some(Place { sco: first + u64::from(sco), offset }),
        };
        tree.set(ClusterRange { start: entry.cluster, count: ClusterCount(entry.count) }, place);
    }
}

/// A layer on its way out, and which of its SCOs are there.
pub(super) struct GoingOut {
    layer: Rc<Layer>,
    epoch: Epoch,
    scos: Rc<Vec<ScoAttempt>>,
}

struct ScoAttempt {
    epoch: Epoch,
    number: ScoNumber,
    put: PutId,
    /// Set once it is on the backend.
    there: Cell<Option<ScoRef>>,
}

/// Which pieces go into which SCO.
struct Plan {
    clusters_max: u64,
    scos: Vec<Vec<Piece>>,
    filled: u64,
    entries: Vec<TlogEntry>,
}

impl Plan {
    fn new(clusters_max: u64) -> Plan {
        let clusters_max = clusters_max.min(ovs_format::sco::CLUSTERS_MAX as u64);
        Plan { clusters_max, scos: Vec::new(), filled: clusters_max, entries: Vec::new() }
    }

    fn add(&mut self, cluster: Cluster, piece: Piece) {
        if piece.is_zero() {
            self.entries.push(TlogEntry { cluster, count: piece.count, target: Target::Zero });
            return;
        }
        let mut done = 0;
        while done < piece.count {
            if self.filled == self.clusters_max {
                self.scos.push(Vec::new());
                self.filled = 0;
            }
            let count = (piece.count - done).min(self.clusters_max - self.filled);
            let target = Target::Sco { sco: self.scos.len() as u32 - 1, offset: self.filled as u32 };
            self.push_entry(TlogEntry { cluster: Cluster(cluster.0 + done), count, target });
            let part = Piece { record: piece.record.clone(), first: piece.first + done, count };
            self.scos.last_mut().expect("one was just pushed").push(part);
            self.filled += count;
            done += count;
        }
    }

    /// Neighbours that go to neighbouring places are one entry.
    fn push_entry(&mut self, entry: TlogEntry) {
        if let (Some(last), Target::Sco { sco, offset }) = (self.entries.last_mut(), entry.target)
            && let Target::Sco { sco: last_sco, offset: last_offset } = last.target
            && last_sco == sco
            && u64::from(last_offset) + last.count == u64::from(offset)
            && last.cluster.0 + last.count == entry.cluster.0
        {
            last.count += entry.count;
        } else {
            self.entries.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(second: (u64, u32, u32), expected: usize) {
        let entry = |(cluster, sco, offset)| TlogEntry {
            cluster: Cluster(cluster),
            count: 2,
            target: Target::Sco { sco, offset },
        };
        let mut plan = Plan::new(256);
        plan.push_entry(entry((8, 1, 5)));
        plan.push_entry(entry(second));
        assert_eq!(plan.entries.len(), expected, "{second:?}");
        assert_eq!(plan.entries.iter().map(|entry| entry.count).sum::<u64>(), 4);
    }

    #[test]
    fn neighbours_that_go_to_neighbouring_places_are_one_entry() {
        check((10, 1, 7), 1);
        check((11, 1, 7), 2);
        check((10, 2, 7), 2);
        check((10, 1, 8), 2);
    }
}
