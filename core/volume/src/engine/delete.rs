//! Deleting a vDisk.
//!
//! 1. The epoch is raised, in the registry: whoever goes on with the vDisk, should this fail, does so in a higher one.
//! 2. A tombstone of that epoch is put: a recovery from the backend alone does not raise the vDisk again.
//! 3. The head says deleted: nobody opens it any more. While clones depend on it that is all.
//! 4. It is taken off its parent's snapshot; a deleted parent whose last clone this was goes too.
//! 5. Its objects go, tombstones last; then its checkpoint; then its head. A crash in between is taken up again when
//!    the backend is attached.

use super::{Engine, OnFull};
use crate::head::{HEAD_PREFIX, Head, VersionedHead, head_key};
use crate::journal::{self, Own, Reading};
use crate::sco::vdisk_prefix;
use crate::vdisk::{check_not_older, finish_even_if_dropped};
use crate::{Transaction, Vdisk, VolumeError, tombstone};
use ovs_backend::{Backend, ObjectName};
use ovs_units::{Epoch, VdiskId, VpoolId, planted};
use std::{collections::BTreeSet, rc::Rc};

/// There was a deletion that this head knows nothing of.
fn is_above(tombstones: &BTreeSet<Epoch>, head: &Head) -> bool {
    !head.epochs_unknown && tombstones.last().is_some_and(|last| *last > head.epoch)
}

impl Engine {
    /// Steps 1 to 3 are done when this returns, the rest goes on in the background. With clones left the vDisk is
    /// hidden until the last one goes. The caller sees to it that nobody uses it.
    pub async fn delete_vdisk(&self, vpool: VpoolId, id: VdiskId) -> Result<(), VolumeError> {
        let engine = self.clone();
        let work = async move {
            let _turn = engine.inner.turn.lock().await;
            let backend = engine.backend(vpool)?;
            let open = engine.inner.vdisks.borrow().get(&id).cloned();
            // Nobody begins an epoch while its tombstone is on its way.
            let meta = match &open {
                Some(vdisk) => Some(vdisk.inner.meta.lock().await),
                None => None,
            };
            let Some(VersionedHead { mut head, revision }) = engine.head_of(id).await? else {
                return Err(VolumeError::NotFound(format!("there is no vDisk {id}")));
            };
            // Deleted already, it has one.
            if !head.deleted {
                let mut stored = VersionedHead { head, revision };
                let is_done =
                    open.is_none() && engine.note_later_deletion(&*backend, id, &mut stored.head).await?;
                if !is_done {
                    stored = engine.put_tombstone(&*backend, id, open.as_ref(), stored).await?;
                }
                head = engine.mark_deleted(id, open.as_ref(), stored).await?;
            }
            drop(meta);
            if head.is_unneeded() {
                engine.purge(vpool, id, head).await?;
            }
            Ok(())
        };
        finish_even_if_dropped(work).await
    }

    /// The head as it is in the registry.
    pub(super) async fn head_of(&self, id: VdiskId) -> Result<Option<VersionedHead>, VolumeError> {
        let Some(entry) = self.inner.context.registry.get(&head_key(id)).await? else { return Ok(None) };
        Ok(Some(VersionedHead { head: Head::decode(id, &entry.value)?, revision: entry.revision }))
    }

    /// Steps 1 and 2. The caller holds `meta` of one that is open.
    async fn put_tombstone(
        &self,
        backend: &dyn Backend,
        id: VdiskId,
        open: Option<&Vdisk>,
        stored: VersionedHead,
    ) -> Result<VersionedHead, VolumeError> {
        // An older registry does not know which epochs there are, nor which clones. What is damaged may go.
        match check_not_older(backend, id, &stored.head, Own::Record).await {
            Ok(()) | Err(VolumeError::Damaged(_)) => {}
            Err(error) => return Err(error),
        }
        match tombstone::list(backend, id).await {
            Ok(shown) if is_above(&shown, &stored.head) => return Err(journal::older(id)),
            Ok(_) | Err(VolumeError::Damaged(_)) => {}
            Err(error) => return Err(error),
        }
        let stored = match planted("tombstone: it is of the epoch that is in use") {
            true => stored,
            false => self.leave_epoch(id, open, stored).await?,
        };
        if !planted("delete: no tombstone") {
            tombstone::put(backend, id, stored.head.epoch).await?;
        }
        Ok(stored)
    }

    async fn leave_epoch(
        &self,
        id: VdiskId,
        open: Option<&Vdisk>,
        stored: VersionedHead,
    ) -> Result<VersionedHead, VolumeError> {
        if let Some(vdisk) = open {
            vdisk.inner.leave_epoch().await?;
            return Ok(vdisk.inner.head.borrow().clone());
        }
        let VersionedHead { mut head, revision } = stored;
        head.raise_epoch_to_delete(&*self.inner.context.chance)?;
        let put = Transaction::new().compare(head_key(id), revision).put(head_key(id), head.encode());
        match self.inner.context.registry.commit(put).await? {
            Some(revision) => Ok(VersionedHead { head, revision }),
            None => Err(VolumeError::Retry(format!("the head of vDisk {id} changed meanwhile"))),
        }
    }

    /// A deletion that was cut short after its tombstone was put: a recovery from the backend would not raise the vDisk either. Changes the
    /// head where the registry is from before that deletion: the vDisk may have clones that it does not know.
    pub(super) async fn note_cut_off_deletion(
        &self,
        backend: &dyn Backend,
        id: VdiskId,
        head: &mut Head,
    ) -> Result<bool, VolumeError> {
        let epoch = head.epoch;
        let found = tombstone::newest(backend, id, epoch, epoch, Reading::ToRestOn).await?;
        let Some(found) = found else { return Ok(false) };
        // When it was taken in from the backend, that one was not acknowledged; what it begins is above.
        if head.epochs_unknown {
            return Ok(false);
        }
        if found == epoch {
            let counts = head.deleting || planted("tombstone: one of an epoch that is in use counts");
            // Else the number was given twice, by a registry that was put back before the tombstone showed.
            if counts {
                check_not_older(backend, id, head, Own::Record).await?;
            }
            return Ok(counts);
        }
        // Such a registry has no record of its own on its way: one more may be the snapshot of a clone.
        check_not_older(backend, id, head, Own::Nothing).await?;
        tracing::warn!(vdisk = %id, "it was deleted, and this registry is from before that: it stays, hidden, until a recovery has found all clones (ovs vpool recover)");
        head.epoch = found;
        if !planted("tombstone: an older registry knows all clones") {
            head.clones_unknown = true;
        }
        Ok(true)
    }

    /// The same, for who deletes it.
    pub(super) async fn note_later_deletion(
        &self,
        backend: &dyn Backend,
        id: VdiskId,
        head: &mut Head,
    ) -> Result<bool, VolumeError> {
        match tombstone::list(backend, id).await {
            Ok(shown) if is_above(&shown, head) => self.note_cut_off_deletion(backend, id, head).await,
            Ok(_) | Err(VolumeError::Damaged(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The caller holds `meta` of one that is open.
    pub(super) async fn mark_deleted(
        &self,
        id: VdiskId,
        open: Option<&Vdisk>,
        stored: VersionedHead,
    ) -> Result<Head, VolumeError> {
        let change = Head::set_deleted;
        if let Some(vdisk) = open {
            vdisk.inner.commit_with(Transaction::new(), change).await?;
            vdisk.inner.forget_gone_snapshots();
            vdisk.inner.cached.leave();
            return Ok(vdisk.inner.head.borrow().head.clone());
        }
        let VersionedHead { mut head, revision } = stored;
        change(&mut head);
        let put = Transaction::new().compare(head_key(id), revision).put(head_key(id), head.encode());
        match self.inner.context.registry.commit(put).await? {
            Some(_) => Ok(head),
            None => Err(VolumeError::Retry(format!("the head of vDisk {id} changed meanwhile"))),
        }
    }

    /// Steps 4 and 5. The caller has the turn.
    pub(super) async fn purge(&self, vpool: VpoolId, id: VdiskId, head: Head) -> Result<(), VolumeError> {
        let removed = self.inner.vdisks.borrow_mut().remove(&id);
        if let Some(vdisk) = removed {
            vdisk.inner.closing.set(true);
            vdisk.inner.is_ended.set(true);
            vdisk.inner.limiter.let_go();
            vdisk.inner.cached.leave();
            vdisk.inner.destage_soon();
            // Whoever is in the middle of a put or a journal step finishes it: nothing may appear after the removal.
            let _scrubbing = vdisk.inner.scrub.turn.lock().await;
            let _copying = vdisk.inner.copying.lock().await;
            let _sending = vdisk.inner.sending.lock().await;
            let _meta = vdisk.inner.meta.lock().await;
        }
        self.inner.replayed.borrow_mut().remove(&id);
        if let Some((parent, snapshot)) = head.base {
            match self.open_any(vpool, parent, OnFull::Stall { timeout: None }).await {
                Ok(parent) => {
                    let meta = parent.inner.meta.lock().await;
                    parent.inner.release_clone(snapshot, id).await?;
                    drop(meta);
                    let parent_head = parent.inner.head.borrow().head.clone();
                    if parent_head.deleted && parent_head.is_unneeded() {
                        Box::pin(self.purge(vpool, parent.id(), parent_head)).await?;
                    }
                }
                Err(VolumeError::NotFound(_)) => {} // an earlier attempt got further
                Err(error) => return Err(error),
            }
        }
        let engine = self.clone();
        let backend = self.backend(vpool)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = engine.remove_objects(&*backend, id).await {
                tracing::warn!(vdisk = %id, %error, "a deleted vDisk's objects could not all be removed; trying again at the next start");
            }
        });
        Ok(())
    }

    pub(super) async fn remove_objects(&self, backend: &dyn Backend, id: VdiskId) -> Result<(), VolumeError> {
        let mut tombstones: Vec<ObjectName> = Vec::new();
        let mut after = None;
        loop {
            let page = backend.list(&vdisk_prefix(id), after.as_ref(), 500).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            for object in page {
                match tombstone::epoch_of(&object.name, id) {
                    Some(_) => tombstones.push(object.name),
                    None => backend.delete(&object.name).await?,
                }
            }
        }
        // The one that counts is the highest.
        for name in tombstones {
            backend.delete(&name).await?;
        }
        let context = &self.inner.context;
        context.pages.forget(&id.to_string()).await?;
        context.registry.commit(Transaction::new().delete(head_key(id))).await?;
        Ok(())
    }

    /// Takes up deletions that were cut short.
    pub(super) fn resume_deletions(&self, vpool: VpoolId) {
        let engine = Rc::downgrade(&self.inner);
        tokio::task::spawn_local(async move {
            let Some(inner) = engine.upgrade() else { return };
            let engine = Engine { inner };
            let Ok(entries) = engine.inner.context.registry.scan(HEAD_PREFIX).await else { return };
            for entry in entries {
                let id = entry.key.strip_prefix(HEAD_PREFIX).and_then(|id| id.parse::<VdiskId>().ok());
                let Some(id) = id else { continue };
                let Ok(head) = Head::decode(id, &entry.value) else { continue };
                if head.vpool == vpool && head.deleted && head.is_unneeded() {
                    let _turn = engine.inner.turn.lock().await;
                    // As it is now.
                    let Ok(Some(VersionedHead { head, .. })) = engine.head_of(id).await else { continue };
                    if !head.deleted || !head.is_unneeded() {
                        continue;
                    }
                    if let Err(error) = engine.purge(vpool, id, head).await {
                        tracing::warn!(vdisk = %id, %error, "a deletion could not be finished; trying again at the next start");
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
