//! Opening a vDisk: the head, the map as of its last checkpoint, the journal since, the write buffer's records since.
//!
//! | what is missing or wrong | what is done |
//! |---|---|
//! | checkpoint missing, older, damaged | a copy of the map is taken from the backend, or more of the journal is read |
//! | journal record missing or damaged | refused: DAMAGED, with the object's name |
//! | one record past the head | a crash came between its put and its commit: it is committed now |
//! | head older than that | refused: the registry is not the newest |
//! | records missing between others | nothing: they were superseded within the write buffer before their slot was reused |
//! | the log reports damage that may concern the vDisk | DAMAGED, kept in the head |

use super::destage::{apply_tlog, prepare_tlog};
use super::lifecycle::Next;
use super::snapshot::CloneSource;
use super::{Counters, Inner, SnapshotNode, Vdisk, scrub};
use crate::cache::Handle;
use crate::engine::{Context, FoundVdisk, OnFull, SnapshotInfo};
use crate::head::{Head, HeadSnapshot, VersionedHead};
use crate::journal::{self, Found, Own, Reading};
use crate::limiter::Limiter;
use crate::log::Record as LogRecord;
use crate::map::copy::{self, CopyId};
use crate::map::{Checkpoint, Table, Tree};
use crate::overlay::Layer;
use crate::readers::Readers;
use crate::{Chance, PageStore, VolumeError};
use ovs_backend::Backend;
use ovs_format::journal::{Position, Record};
use ovs_format::page::CheckpointRecord;
use ovs_units::{Cluster, JournalIndex, Sequence, SnapshotId, VdiskId, planted};
use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{HashSet, VecDeque},
    rc::Rc,
};
use tokio::sync::Notify;

impl Vdisk {
    /// A vDisk in memory, its layers empty.
    pub(crate) fn assemble(
        id: VdiskId,
        context: Rc<Context>,
        backend: Rc<dyn Backend>,
        head: VersionedHead,
        on_full: OnFull,
        source: CloneSource,
    ) -> Vdisk {
        let CloneSource { tree, table, pending, .. } = source;
        let scrub = scrub::Scrub::new(table.bytes_of(id));
        scrub.begin_with(tree.mapped().bytes(), &table, id);
        let limiter = Limiter::new(context.clock.clone());
        let cached = Handle::new(context.cache.clone(), head.head.vpool);
        let inner = Inner {
            id,
            vpool: head.head.vpool,
            context,
            backend,
            size: Cell::new(head.head.size),
            on_full: Cell::new(on_full),
            trouble: RefCell::new(None),
            closing: Cell::new(false),
            is_ended: Cell::new(false),
            last_sequence: Cell::new(head.head.sequence),
            accepting: Cell::new(None),
            next: Cell::new(Next::HigherEpoch),
            may_be_older: Cell::new(true),
            next_sco: Cell::new(0),
            active: RefCell::new(Layer::new()),
            sealed: RefCell::new(VecDeque::new()),
            base: RefCell::new(pending),
            tree: RefCell::new(tree),
            table: RefCell::new(Rc::new(table)),
            snapshots: RefCell::default(),
            head: RefCell::new(head),
            meta: tokio::sync::Mutex::new(()),
            sending: tokio::sync::Mutex::new(()),
            going_out: RefCell::new(None),
            commits_since_checkpoint: Cell::new(0),
            changed_map_bytes: Cell::new(0),
            journal_weight: Cell::new(None),
            copy_after: Cell::new(0),
            copying: tokio::sync::Mutex::new(()),
            checkpoints: tokio::sync::Mutex::new(()),
            pending_checkpoint: RefCell::default(),
            busy_clusters: RefCell::new(HashSet::new()),
            frozen: Cell::new(0),
            freezes: Cell::new(0),
            settled: Notify::new(),
            destage_wanted: Rc::new(Notify::new()),
            destage_now: Cell::new(false),
            destaged: Notify::new(),
            readers: Readers::default(),
            scrub,
            limiter,
            cached,
            counters: Counters::default(),
        };
        Vdisk { inner: Rc::new(inner) }
    }

    /// Opens what the head describes. `base` is what a clone's parent gives for its snapshot.
    pub(crate) async fn load(
        id: VdiskId,
        context: Rc<Context>,
        backend: Rc<dyn Backend>,
        head: VersionedHead,
        on_full: OnFull,
        base: Option<CloneSource>,
        records: Vec<Rc<LogRecord>>,
    ) -> Result<Vdisk, VolumeError> {
        let position = head.head.position();
        let pending = base.as_ref().and_then(|base| base.pending.clone());
        let maps = match position {
            None => Maps::new(base, &context),
            Some(position) => Maps::read(id, &context, &*backend, &head.head, position, base).await?,
        };
        // The base is pending only while nothing of the clone itself has been committed.
        let pending = pending.filter(|_| maps.is_base);
        let Maps { tree, table, snapshots, open, changed_bytes, .. } = maps;
        let size = head.head.size;
        let entries = head.head.snapshots.clone();
        let vdisk =
            Vdisk::assemble(id, context, backend, head, on_full, CloneSource { tree, table, size, pending });
        vdisk.inner.changed_map_bytes.set(changed_bytes);
        for entry in &entries {
            let stored = snapshots.iter().find(|(id, _)| *id == entry.id).map(|(_, tree)| tree.clone());
            let is_open = open.iter().any(|(id, _)| *id == entry.id);
            if stored.is_none() && !is_open && !entry.is_needed() {
                continue; // the map is of a time when nobody needed it
            }
            vdisk.inner.snapshots.borrow_mut().push(SnapshotNode::of(entry, stored));
        }
        vdisk.take_in(records).await?;
        vdisk.start_destaging();
        Ok(vdisk)
    }

    /// The write buffer's records become layers again, with the snapshots where they were.
    async fn take_in(&self, mut records: Vec<Rc<LogRecord>>) -> Result<(), VolumeError> {
        let inner = &self.inner;
        let head = inner.head.borrow().head.clone();
        records.retain(|record| head.accepts(record.header.epoch, record.header.sequence));
        // A record that was written twice, or moved, counts once, where it is now: where it was may be void. A newer epoch's
        // use of a sequence wins.
        let lsn = |record: &LogRecord| match planted("replay: a record counts where it was") {
            true => 0,
            false => record.lsn(),
        };
        records.sort_by_key(|record| (record.header.sequence, Reverse((record.header.epoch, lsn(record)))));
        records.dedup_by_key(|record| record.header.sequence);
        let mut snapshots: VecDeque<Rc<SnapshotNode>> =
            inner.snapshots.borrow().iter().filter(|node| node.tree().is_none()).cloned().collect();
        let mut last = head.sequence;
        for record in records {
            // Those before it, by their own numbers: the write that a snapshot ends with may be lost.
            self.mark_snapshots(&mut snapshots, Sequence(record.header.sequence.0 - 1));
            last = record.header.sequence;
            let active = inner.active.borrow().clone();
            active.insert(record, inner.context.clock.now());
            inner.last_sequence.set(last);
        }
        self.mark_snapshots(&mut snapshots, last);
        // A snapshot returned only after its records were stable: their loss is damage. What is there of it is all that
        // it will ever have: it ends here.
        let reason = |lost: &Rc<SnapshotNode>| {
            let SnapshotNode { name, id, sequence, .. } = &**lost;
            format!("snapshot {name} ({id}) needs write {sequence}, which the write buffer does not have")
        };
        let reasons = snapshots.iter().map(reason).collect();
        if !snapshots.is_empty() {
            self.mark_snapshots(&mut snapshots, Sequence(u64::MAX));
        }
        // Nor are its numbers given to anybody else, also where a copy of the map knows it as it is: who reads the journal
        // from its beginning would take the next writes for its own.
        let highest = head.snapshots.iter().map(|snapshot| snapshot.sequence).max().unwrap_or_default();
        if !planted("snapshot: numbers that it has lost are given out again") {
            inner.last_sequence.set(inner.last_sequence.get().max(highest));
        }
        self.damaged(reasons).await
    }

    fn mark_snapshots(&self, snapshots: &mut VecDeque<Rc<SnapshotNode>>, sequence: Sequence) {
        let inner = &self.inner;
        while let Some(node) = snapshots.pop_front_if(|node| node.sequence <= sequence) {
            inner.mark(node);
        }
    }
}

/// The maps of a vDisk and its snapshots while the journal is read.
struct Maps {
    tree: Tree,
    table: Table,
    snapshots: Vec<(SnapshotId, Tree)>,
    /// Snapshots whose last write is not in the map yet.
    open: Vec<(SnapshotId, Sequence)>,
    /// The last operation in the map.
    sequence: Sequence,
    /// Nothing has been committed since the clone's base …
    is_base: bool,
    /// … and part of that is in its parent's write buffer only.
    is_pending: bool,
    /// Bytes of pages that were changed and are not stored.
    changed_bytes: u64,
}

impl Maps {
    fn new(base: Option<CloneSource>, context: &Context) -> Maps {
        let is_pending = base.as_ref().is_some_and(|base| base.pending.is_some());
        let nothing = || (Tree::empty(&context.map_memory), Table::default());
        let (tree, table) = base.map_or_else(nothing, |base| (base.tree, base.table));
        let (snapshots, open) = (Vec::new(), Vec::new());
        Maps {
            tree,
            table,
            snapshots,
            open,
            sequence: Sequence(0),
            is_base: true,
            is_pending,
            changed_bytes: 0,
        }
    }

    /// As of `position`: from the local checkpoint, else from a copy on the backend, the newest first, else from the whole
    /// journal. The first two are only caches of the third; but where there are copies, it has lost its beginning.
    async fn read(
        id: VdiskId,
        context: &Context,
        backend: &dyn Backend,
        head: &Head,
        position: Position,
        base: Option<CloneSource>,
    ) -> Result<Maps, VolumeError> {
        let pages = &*context.pages;
        let mut copies = head.copies.iter().rev();
        let mut first_reason = None;
        loop {
            let stored = Maps::from_checkpoint(context, id, position).await;
            let next_copy = match stored {
                None => copies.next(),
                Some((from, start)) => {
                    let rolled = start.roll_forward(context, backend, id, Some(from), position).await;
                    match rolled.and_then(|maps| maps.with_all_of(head)) {
                        Err(VolumeError::Damaged(reason)) => {
                            tracing::warn!(vdisk = %id, reason, "the checkpoint of the map is of no use");
                            first_reason.get_or_insert(reason);
                            pages.forget(&id.to_string()).await?;
                            copies.next()
                        }
                        maps => return maps,
                    }
                }
            };
            let Some(copy) = next_copy else { break };
            tracing::info!(vdisk = %id, "reading a copy of the map from the backend");
            match copy::restore(backend, id, *copy, context).await {
                Ok(()) => {}
                Err(VolumeError::Damaged(reason)) => {
                    tracing::warn!(vdisk = %id, reason, "the copy of the map is of no use");
                    first_reason.get_or_insert(reason);
                }
                Err(error) => return Err(error),
            }
        }
        let maps = Maps::new(base, context);
        match (maps.roll_forward(context, backend, id, None, position).await, first_reason) {
            // What was wrong with the copies is what matters: without them the journal lacks its beginning.
            (Err(VolumeError::Damaged(_)), Some(reason)) if !head.copies.is_empty() => {
                Err(VolumeError::Damaged(reason))
            }
            (maps, _) => maps,
        }
    }

    /// A map that was stored while nobody seemed to need a snapshot is not the map of a vDisk that has it: the snapshot would
    /// pass for one that is still in the write buffer.
    fn with_all_of(self, head: &Head) -> Result<Maps, VolumeError> {
        let is_there = |snapshot: &&HeadSnapshot| {
            let knows = |id: &SnapshotId| *id == snapshot.id;
            self.snapshots.iter().any(|(id, _)| knows(id)) || self.open.iter().any(|(id, _)| knows(id))
        };
        let mut needed = head.snapshots.iter().filter(|snapshot| snapshot.is_needed());
        match needed.find(|snapshot| !is_there(snapshot)) {
            Some(lacking) => Err(VolumeError::Damaged(format!("the map lacks snapshot {}", lacking.id))),
            None => Ok(self),
        }
    }

    /// The newest checkpoint, if it is usable: not newer than the head.
    async fn from_checkpoint(context: &Context, id: VdiskId, head: Position) -> Option<(Position, Maps)> {
        let (pages, memory) = (&*context.pages, &context.map_memory);
        let bytes = pages.record(&id.to_string()).await.ok()??;
        let record = match CheckpointRecord::decode(id, &bytes) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(vdisk = %id, %error, "the checkpoint is of no use");
                return None;
            }
        };
        let position = Position { epoch: record.epoch, index: record.index };
        if position > head {
            return None;
        }
        let table = Table::load(pages, &record.table_pages).await.ok()?;
        let snapshots =
            record.snapshots.iter().map(|(id, root)| (*id, Tree::stored(*root, memory))).collect();
        let (tree, sequence) = (Tree::stored(record.root, memory), record.sequence);
        let open = Vec::new();
        Some((
            position,
            Maps {
                tree,
                table,
                snapshots,
                open,
                sequence,
                is_base: false,
                is_pending: false,
                changed_bytes: 0,
            },
        ))
    }

    /// Applies the journal from after `from` up to `to`. Where it changes more of the map than there is memory for, what has
    /// been read so far becomes the checkpoint.
    async fn roll_forward(
        mut self,
        context: &Context,
        backend: &dyn Backend,
        id: VdiskId,
        from: Option<Position>,
        to: Position,
    ) -> Result<Maps, VolumeError> {
        let memory = &context.map_memory;
        let mut looked_at = memory.changed_bytes();
        for (position, record) in journal::read_chain(backend, id, from, to).await? {
            let before = memory.changed_bytes();
            self.apply(&*context.pages, id, record).await?;
            self.changed_bytes += memory.changed_bytes().saturating_sub(before);
            if memory.is_short_since(looked_at) && self.open.is_empty() && !self.is_base {
                // Nothing depends on it.
                match self.checkpoint(context, id, position).await {
                    Ok(()) => self.changed_bytes = 0,
                    Err(error) => {
                        tracing::warn!(vdisk = %id, %error, "the map could not be checkpointed on the way")
                    }
                }
                looked_at = memory.changed_bytes();
            }
        }
        Ok(self)
    }

    async fn checkpoint(
        &self,
        context: &Context,
        id: VdiskId,
        position: Position,
    ) -> Result<(), VolumeError> {
        let checkpoint = Checkpoint {
            position,
            sequence: self.sequence,
            tree: self.tree.clone(),
            table: self.table.clone(),
            snapshots: self.snapshots.clone(),
        };
        checkpoint.store_in(context, id).await.map(drop)
    }

    async fn apply(&mut self, pages: &dyn PageStore, id: VdiskId, record: Record) -> Result<(), VolumeError> {
        match record {
            Record::Tlog { sequence, scos, entries } => {
                self.close_snapshots_before(sequence);
                let prepared = prepare_tlog(&self.tree, pages, &entries).await?;
                apply_tlog(&mut self.tree, prepared, &mut self.table, &scos, &entries);
                self.is_base = false;
                self.sequence = sequence;
                self.close_snapshots_before(sequence.next());
            }
            // While the base is pending, a snapshot of nothing but the base is too.
            Record::Snapshot { id, sequence, .. }
                if sequence <= self.sequence && !(self.is_base && self.is_pending) =>
            {
                self.snapshots.push((id, self.tree.clone()));
            }
            Record::Snapshot { id, sequence, .. } => self.open.push((id, sequence)),
            Record::SnapshotDelete { .. } | Record::Start { .. } | Record::Properties { .. } => {}
            Record::Relocate { scos, moves } => self.table.relocate(id, &scos, &moves)?,
            Record::Rollback { id, sequence } => {
                self.close_snapshots_before(sequence);
                let found = self.snapshots.iter().find(|(other, _)| *other == id);
                let (_, tree) = found.ok_or_else(|| {
                    VolumeError::Damaged(format!(
                        "the journal rolls back to snapshot {id}, which it does not have"
                    ))
                })?;
                self.tree = tree.clone();
                self.is_base = false;
                self.sequence = sequence;
            }
            Record::Resize { size } => {
                let tail = Tree::tail(Cluster(size.clusters_rounded_up().0));
                drop(self.tree.prepare(pages, tail).await?);
                self.tree.set(tail, None);
            }
        }
        Ok(())
    }

    /// TLogs never straddle a snapshot: one that ends behind it lies wholly behind it.
    fn close_snapshots_before(&mut self, sequence: Sequence) {
        let tree = self.tree.clone();
        let (done, open) = self.open.drain(..).partition(|(_, at)| *at < sequence);
        self.open = open;
        let done: Vec<(SnapshotId, Sequence)> = done;
        self.snapshots.extend(done.into_iter().map(|(id, _)| (id, tree.clone())));
    }
}

/// What a vDisk is, from its journal alone: everything but its maps.
pub(crate) async fn metadata_of(
    backend: &dyn Backend,
    id: VdiskId,
    vpool: ovs_units::VpoolId,
    reading: Reading,
) -> Result<Option<Head>, VolumeError> {
    let copies = copy::list(backend, id).await?;
    // A copy shows that its record was there, whatever a listing of the journal says.
    let at_least = copies.first().map(CopyId::position);
    let end = journal::newest(backend, id, at_least, reading).await?;
    let Some(journal::End { position: newest, epoch }) = end else { return Ok(None) };
    let mut first_reason = None;
    for copy in copies.into_iter().filter(|copy| copy.position() <= newest) {
        match metadata_from_copy(backend, id, copy, newest, reading).await {
            // Damaged, or of an owner that was none any more.
            Err(VolumeError::Damaged(reason)) => {
                tracing::warn!(vdisk = %id, reason, "a copy of the map is of no use");
                first_reason.get_or_insert(reason);
            }
            Ok(mut head) => {
                head.vpool = vpool;
                head.epoch = head.epoch.max(epoch);
                return Ok(Some(head));
            }
            Err(error) => return Err(error),
        }
    }
    let mut head = Head::new(vpool, ovs_units::ByteCount(0), None, String::new());
    match (take_chain(backend, id, &mut head, None, newest).await, first_reason) {
        (Err(VolumeError::Damaged(_)), Some(reason)) => Err(VolumeError::Damaged(reason)),
        (taken, _) => taken.map(|()| {
            head.epoch = head.epoch.max(epoch);
            Some(head)
        }),
    }
}

async fn metadata_from_copy(
    backend: &dyn Backend,
    id: VdiskId,
    copy: CopyId,
    newest: Position,
    reading: Reading,
) -> Result<Head, VolumeError> {
    let mut head = Head::decode(id, &copy::get(backend, id, copy, reading).await?.head)?;
    // Which clones there are is found out anew.
    head.snapshots.iter_mut().for_each(|snapshot| snapshot.clones.clear());
    take_chain(backend, id, &mut head, Some(copy.position()), newest).await?;
    Ok(head)
}

async fn take_chain(
    backend: &dyn Backend,
    id: VdiskId,
    head: &mut Head,
    from: Option<Position>,
    to: Position,
) -> Result<(), VolumeError> {
    for (position, record) in journal::read_chain(backend, id, from, to).await? {
        head.epoch = position.epoch;
        take_record(head, position, record);
    }
    Ok(())
}

/// Refuses a head that is older than what the backend holds: of a registry that was restored from a copy, or of a host that is not the
/// only one.
pub(crate) async fn check_not_older(
    backend: &dyn Backend,
    id: VdiskId,
    head: &Head,
    own: Own,
) -> Result<(), VolumeError> {
    if planted("registry: an older one than the backend is believed") {
        return Ok(());
    }
    journal::check_not_older(backend, id, head.epoch, head.position(), own).await?;
    // A copy of the map is of what is committed; the journal before it may be gone.
    match head.position() {
        None if !copy::list(backend, id).await?.is_empty() => Err(journal::older(id)),
        _ => Ok(()),
    }
}

/// A record that a crash left between its put and its commit: it is part of the vDisk from now on, as it would be for
/// a recovery from the backend. At most one, since the journal has one writer: with more the head is an older one. One that was never
/// finished did not happen: its name is not looked at again, in case it is finished late, or shows when a drive answers again.
/// Returns whether the head has changed.
pub(crate) async fn catch_up(
    backend: &dyn Backend,
    id: VdiskId,
    head: &mut Head,
    chance: &dyn Chance,
) -> Result<bool, VolumeError> {
    check_not_older(backend, id, head, Own::Record).await?;
    let start = Position { epoch: head.epoch, index: JournalIndex(0) };
    let next = head.position().map_or(start, |last| journal::next_of(head.epoch, last));
    // Nothing came of the epoch that it has leapt to, and whose vDisk it was before may have gone on: that is what it goes on from.
    let of_another = head.position().filter(|last| head.epochs_unknown && last.epoch < head.epoch);
    let mut is_unfinished = false;
    for place in [Some(next), of_another.map(journal::after)].into_iter().flatten() {
        match journal::get_lasting(backend, id, place).await? {
            Found::Record(record) => {
                take_record(head, place, record);
                // Only a recovery may need snapshots that nobody refers to here.
                head.drop_snapshots();
                return Ok(true);
            }
            Found::Unfinished => is_unfinished |= place == next,
            Found::Nothing => {}
        }
    }
    if is_unfinished {
        head.raise_epoch(chance)?;
        head.drop_snapshots();
    }
    Ok(is_unfinished)
}

/// What a head says after one more journal record.
fn take_record(head: &mut Head, position: Position, record: Record) {
    head.set_position(position);
    match record {
        Record::Start { continues, starts_after, size, base, properties } => {
            head.epochs.retain(|(epoch, _)| *epoch != position.epoch);
            head.epochs.push((position.epoch, starts_after));
            if continues.is_none() {
                (head.size, head.base) = (size, base);
                head.properties = String::from_utf8_lossy(&properties).into_owned();
            }
        }
        Record::Tlog { sequence, .. } => head.sequence = sequence,
        Record::Snapshot { id, name, created_ms, sequence, size } => {
            let (hidden, clones) = (false, Vec::new());
            head.snapshots.push(HeadSnapshot { id, name, created_ms, sequence, size, hidden, clones });
        }
        // Clones that are found later keep it; see `Engine::adopt_vdisk`.
        Record::SnapshotDelete { id } => {
            if let Some(snapshot) = head.snapshot_mut(id) {
                snapshot.hidden = true;
            }
        }
        Record::Rollback { id, sequence } => {
            head.sequence = sequence;
            if let Some(snapshot) = head.snapshot_mut(id) {
                head.size = snapshot.size;
            }
        }
        Record::Resize { size } => head.size = size,
        // Of the map alone.
        Record::Relocate { .. } => {}
        Record::Properties { properties } => {
            head.properties = String::from_utf8_lossy(&properties).into_owned()
        }
    }
    head.prune_epochs();
}

/// A found vDisk as it is told to the service.
pub(crate) fn found_vdisk(id: VdiskId, head: &Head, problem: Option<String>) -> FoundVdisk {
    let told = |snapshot: &HeadSnapshot| SnapshotInfo {
        id: snapshot.id,
        name: snapshot.name.clone(),
        created_ms: snapshot.created_ms,
        sequence: snapshot.sequence,
        size: snapshot.size,
        on_backend: snapshot.sequence <= head.sequence,
        hidden: snapshot.hidden,
        clone_count: snapshot.clones.len() as u64,
    };
    FoundVdisk {
        id,
        properties: bytes::Bytes::from(head.properties.clone()),
        size: head.size,
        snapshots: head.snapshots.iter().map(told).collect(),
        base: head.base,
        problem,
    }
}
