//! Epochs, the journal's one writer, and the operations that change what a vDisk is: rollback, resize, properties.

use super::{Inner, SnapshotNode, Vdisk, check_not_older};
use crate::engine::VdiskState;
use crate::head::{Head, VersionedHead, head_key};
use crate::journal;
use crate::map::Tree;
use crate::tombstone;
use crate::{Transaction, VolumeError};
use bytes::Bytes;
use ovs_format::journal::{Position, Record};
use ovs_units::{
    ByteCount, CLUSTER_SIZE_BYTES, Cluster, JournalIndex, Sequence, SnapshotId, VDISK_SIZE_BYTES_MAX, planted,
};
use std::{rc::Rc, time::Duration};

/// A journal record that the backend does not take within this time is given up, with its epoch.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(20);

/// What may follow in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A start object of an epoch above the head's: that one's own may be on the backend, or the record after the head's.
    HigherEpoch,
    /// The start object of the head's epoch: nobody has tried to put it.
    Start,
    /// The record after the head's.
    Record,
}

impl Vdisk {
    /// Puts the start object of a vDisk that was just made.
    pub(crate) async fn start(&self) -> Result<(), VolumeError> {
        // Nobody else knows of it.
        self.inner.may_be_older.set(false);
        self.ensure_started().await
    }

    /// Before its first acknowledgement an epoch has its start object on the backend.
    pub(super) async fn ensure_started(&self) -> Result<(), VolumeError> {
        self.inner.ensure_started().await
    }

    /// Replaces the opaque properties (UTF-8), on the backend, before it returns.
    pub async fn set_properties(&self, properties: Bytes) -> Result<(), VolumeError> {
        let text = String::from_utf8(properties.to_vec())
            .map_err(|_| VolumeError::Refused("properties must be UTF-8 text".into()))?;
        let vdisk = self.clone();
        finish_even_if_dropped(async move {
            let inner = &vdisk.inner;
            let _meta = inner.meta.lock().await;
            if inner.head.borrow().head.properties == text {
                return Ok(());
            }
            let position = inner.append_to_journal(&Record::Properties { properties }).await?;
            inner
                .commit(|head| {
                    head.set_position(position);
                    head.properties = text;
                })
                .await
        })
        .await
    }

    /// From now on the vDisk is what it was at the snapshot. What was written since is gone, unless a later snapshot
    /// has it. The caller sees to it that nobody writes.
    pub async fn rollback(&self, id: SnapshotId) -> Result<(), VolumeError> {
        let vdisk = self.clone();
        finish_even_if_dropped(async move {
            let inner = &vdisk.inner;
            inner.visible_snapshot(id)?;
            let _frozen = inner.freeze();
            // Everything before the rollback goes to the backend first: later snapshots may need it.
            vdisk.destage().await?;
            let _meta = inner.meta.lock().await;
            let node = inner.visible_snapshot(id)?;
            let tree =
                node.tree().ok_or_else(|| VolumeError::Retry("the snapshot is not on the backend".into()))?;
            let sequence = inner.last_sequence.get().next();
            let position = inner.append_to_journal(&Record::Rollback { id, sequence }).await?;
            let size = node.size;
            inner
                .commit(|head| {
                    head.set_position(position);
                    head.sequence = sequence;
                    head.size = size;
                    head.prune_epochs();
                })
                .await?;
            if !planted("rollback: later writes take its place in the order") {
                inner.last_sequence.set(sequence);
            }
            *inner.tree.borrow_mut() = tree;
            inner.size.set(size);
            inner.scrub.needs_changed();
            Ok(())
        })
        .await
    }

    /// Grows or shrinks to whole clusters. What is cut off reads as zeros if it ever comes back.
    pub async fn resize(&self, size: ByteCount) -> Result<(), VolumeError> {
        if !size.0.is_multiple_of(CLUSTER_SIZE_BYTES) || size.0 > VDISK_SIZE_BYTES_MAX {
            return Err(VolumeError::Refused(format!(
                "size {}: must be whole 4 KiB clusters, 64 TiB at most",
                size.0
            )));
        }
        let vdisk = self.clone();
        finish_even_if_dropped(async move {
            let inner = &vdisk.inner;
            let shrinks = size < inner.size.get();
            let _frozen = shrinks.then(|| inner.freeze());
            if shrinks {
                // What is cut off must not come back from the write buffer.
                vdisk.destage().await?;
                // Nor from a parent's, below a map that does not know of the cut.
                inner.resolve_base().await?;
            }
            let _meta = inner.meta.lock().await;
            if size == inner.size.get() {
                return Ok(());
            }
            let tail = Tree::tail(Cluster(size.clusters_rounded_up().0));
            let tree = inner.tree.borrow().clone();
            let prepared = tree.prepare(&*inner.context.pages, tail).await;
            let prepared = prepared.map_err(|error| inner.context.map_unreadable(inner.id, error))?;
            drop(tree);
            let position = inner.append_to_journal(&Record::Resize { size }).await?;
            inner
                .commit(|head| {
                    head.set_position(position);
                    head.size = size;
                })
                .await?;
            drop(prepared);
            if shrinks && !planted("shrink: what is cut off stays in the map") {
                inner.tree.borrow_mut().set(tail, None);
                inner.scrub.needs_changed();
            }
            inner.size.set(size);
            Ok(())
        })
        .await
    }
}

impl Inner {
    /// Operations may be accepted when this returns `Ok`. Once they may, the backend may be away for as long as it likes.
    pub(super) async fn ensure_started(self: &Rc<Self>) -> Result<(), VolumeError> {
        if self.accepting.get().is_some() {
            return Ok(());
        }
        let inner = self.clone();
        finish_even_if_dropped(async move {
            let _meta = inner.meta.lock().await;
            if inner.accepting.get().is_some() {
                return Ok(());
            }
            inner.start_epoch_if_needed().await
        })
        .await
    }

    /// Appends a record to the journal. The caller holds `meta` and commits the position next.
    pub(super) async fn append_to_journal(&self, record: &Record) -> Result<Position, VolumeError> {
        self.start_epoch_if_needed().await?;
        let head = self.head.borrow().head.clone();
        let last = head.position().ok_or_else(|| VolumeError::Offline("an epoch without a start".into()))?;
        let position = Position { epoch: last.epoch, index: last.index.next() };
        self.put_in_journal(position, record).await?;
        Ok(position)
    }

    /// Tries for a while, always with the same bytes. When that fails nobody knows whether the record is there: the
    /// epoch is given up, so that its name is never used for anything else; the next one continues from what is
    /// committed.
    async fn put_in_journal(&self, position: Position, record: &Record) -> Result<(), VolumeError> {
        match self
            .with_journal_patience(async || journal::put(&*self.backend, self.id, position, record).await)
            .await
        {
            Ok(bytes) => {
                self.journal_has_grown(bytes);
                Ok(())
            }
            Err(error) => {
                self.give_up(record, &error).await;
                Err(error)
            }
        }
    }

    async fn with_journal_patience<T>(
        &self,
        attempt: impl AsyncFn() -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        let deadline = self.context.clock.now() + JOURNAL_PATIENCE;
        let mut attempts = 0;
        loop {
            match attempt().await {
                Err(VolumeError::Retry(reason) | VolumeError::NoSpace(reason))
                    if self.context.clock.now() < deadline && !self.closing.get() =>
                {
                    self.stalled(reason);
                    self.backoff(attempts).await;
                    attempts += 1;
                }
                Ok(done) => {
                    self.moving_again();
                    return Ok(done);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The registry is told before anything more is accepted, or a crash would take the record that failed for one that
    /// happened ([`super::load::catch_up`]). Then operations go on being accepted in the epoch that they are in: only the
    /// journal waits for the backend. Not so behind a record that changes what is read: who has only the backend and the
    /// write buffer cannot know that it was given up, so nothing may follow it until the backend knows. And not behind an
    /// error that no time mends.
    async fn give_up(&self, record: &Record, error: &VolumeError) {
        let accepting = self.accepting.take();
        self.next.set(Next::HigherEpoch);
        let is_outage = matches!(error, VolumeError::Retry(_) | VolumeError::NoSpace(_));
        let changes_content = matches!(record, Record::Rollback { .. } | Record::Resize { .. })
            && !planted("epoch: writes follow a rollback that was given up");
        let is_over = self.closing.get() || self.is_ended.get();
        if accepting.is_none() || !is_outage || changes_content || is_over {
            return;
        }
        if self.raise_epoch().await.is_ok() {
            self.accepting.set(accepting);
            self.settled.notify_waiters();
        }
    }

    async fn raise_epoch(&self) -> Result<(), VolumeError> {
        let mut raised = self.head.borrow().head.clone();
        // A start goes over what another host has put since the opening looked: that is met first.
        if self.may_be_older.get() {
            let own = raised.own_beyond();
            let check = async || match check_not_older(&*self.backend, self.id, &raised, own).await {
                // What is no record shows nothing; a backend may answer with something else once.
                Err(VolumeError::Damaged(reason)) => Err(VolumeError::Retry(reason)),
                checked => checked,
            };
            self.with_journal_patience(check).await?;
        }
        raised.raise_epoch(&*self.context.chance)?;
        self.commit(|head| {
            if !planted("epoch: an opening does not raise it") || head.epoch.0 == 0 {
                *head = raised;
            }
        })
        .await?;
        self.next.set(Next::Start);
        Ok(())
    }

    /// The head's epoch is one that nothing is in: a tombstone's. What is accepted or recorded next begins a higher one: else the
    /// tombstone would count for it. The caller holds `meta`.
    pub(crate) async fn leave_epoch(&self) -> Result<(), VolumeError> {
        let mut raised = self.head.borrow().head.clone();
        raised.raise_epoch_to_delete(&*self.context.chance)?;
        self.next.set(Next::HigherEpoch);
        if !planted("tombstone: what is written goes on in the epoch before it") {
            self.accepting.set(None);
        }
        self.commit(|head| *head = raised).await
    }

    /// Raises the epoch in the registry, puts its start object, commits that. The caller holds `meta`.
    pub(super) async fn start_epoch_if_needed(&self) -> Result<(), VolumeError> {
        self.check_not_ended()?;
        if self.next.get() == Next::Record {
            return Ok(());
        }
        self.check_serving_or_closing()?;
        if self.next.get() == Next::HigherEpoch {
            self.raise_epoch().await?;
        }
        let head = self.head.borrow().head.clone();
        if head.deleted && !planted("tombstone: none of what a deleted vDisk begins") {
            // Else its tombstone would be one that somebody has gone on after.
            self.with_journal_patience(async || tombstone::put(&*self.backend, self.id, head.epoch).await)
                .await?;
        }
        let is_new = head.position.is_none();
        // The first epoch after an opening ends those before it here. One that follows in the same process ends nothing:
        // operations are accepted in the old one until this one is committed, and then in this one.
        let starts_after =
            if self.accepting.get().is_none() { self.last_sequence.get() } else { Sequence::LAST };
        let start = Record::Start {
            continues: head.position(),
            starts_after,
            size: if is_new { head.size } else { ByteCount(0) },
            base: head.base.filter(|_| is_new),
            properties: if is_new { Bytes::from(head.properties) } else { Bytes::new() },
        };
        let position = Position { epoch: head.epoch, index: JournalIndex(0) };
        if !planted("epoch: no start object") {
            self.put_in_journal(position, &start).await?;
        }
        self.commit(|head| head.set_started(position, starts_after)).await?;
        self.may_be_older.set(false);
        self.accepting.set(Some(position.epoch));
        self.next.set(Next::Record);
        Ok(())
    }

    /// Changes the head in the registry, synced. The caller holds `meta`. What others need to change in the same
    /// transaction goes through [`Inner::commit_with`].
    pub(super) async fn commit(&self, change: impl FnOnce(&mut Head)) -> Result<(), VolumeError> {
        self.commit_with(Transaction::new(), change).await
    }

    pub(crate) async fn commit_with(
        &self,
        transaction: Transaction,
        change: impl FnOnce(&mut Head),
    ) -> Result<(), VolumeError> {
        let VersionedHead { mut head, revision } = self.head.borrow().clone();
        change(&mut head);
        let key = head_key(self.id);
        let transaction = transaction.compare(&key, revision).put(&key, head.encode());
        let committed = self.context.commit_patiently(transaction, &self.closing).await;
        // What was just put in the journal may be there uncommitted: the next record begins a new epoch.
        let committed = committed.inspect_err(|_| {
            self.accepting.set(None);
            self.next.set(Next::HigherEpoch);
        })?;
        match committed {
            Some(revision) => {
                *self.head.borrow_mut() = VersionedHead { head, revision };
                Ok(())
            }
            None => {
                let reason = "its head was changed by somebody else".to_owned();
                self.go_offline(reason.clone());
                Err(VolumeError::Fenced(format!("vDisk {}: {reason}", self.id)))
            }
        }
    }

    /// What is buffered cannot leave for now: mostly because the backend takes nothing.
    pub(super) fn stalled(&self, reason: String) {
        let mut trouble = self.trouble.borrow_mut();
        if trouble.is_none() {
            tracing::warn!(vdisk = %self.id, reason, "its data cannot leave the write buffer; the vDisk goes on from there");
            *trouble = Some(VdiskState::Stalled(reason));
            self.destaged.notify_waiters();
        }
    }

    pub(super) fn moving_again(&self) {
        let mut trouble = self.trouble.borrow_mut();
        if matches!(*trouble, Some(VdiskState::Stalled(_))) {
            tracing::info!(vdisk = %self.id, "its data leaves the write buffer again");
            *trouble = None;
        }
    }

    pub(super) fn visible_snapshot(&self, id: SnapshotId) -> Result<Rc<SnapshotNode>, VolumeError> {
        let node = self.snapshot_node(id)?;
        let hidden =
            self.head.borrow().head.snapshots.iter().any(|snapshot| snapshot.id == id && snapshot.hidden);
        if hidden { Err(VolumeError::NotFound(format!("snapshot {id} is deleted"))) } else { Ok(node) }
    }

    fn freeze(&self) -> Frozen<'_> {
        self.frozen.set(self.frozen.get() + 1);
        self.freezes.set(self.freezes.get() + 1);
        Frozen(self)
    }
}

/// Writes wait while this lives.
struct Frozen<'a>(&'a Inner);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.frozen.set(self.0.frozen.get() - 1);
        self.0.settled.notify_waiters();
    }
}

/// Runs to its end even when the caller goes away: a journal must not be left in the middle of a step.
pub(crate) async fn finish_even_if_dropped<T: 'static>(
    work: impl Future<Output = Result<T, VolumeError>> + 'static,
) -> Result<T, VolumeError> {
    let finished = tokio::task::spawn_local(work).await;
    finished.unwrap_or_else(|error| Err(VolumeError::Offline(format!("the operation ended early: {error}"))))
}
