//! Deleting a vDisk.
//!
//! 1. A tombstone is put: a recovery from the backend alone does not raise the vDisk again.
//! 2. The head says deleted: nobody opens it any more. While clones depend on it that is all.
//! 3. It is taken off its parent's snapshot; a deleted parent whose last clone this was goes too.
//! 4. Its objects go, the tombstone last; then its checkpoint; then its head. A crash in between is taken up again when
//!    the backend is attached.

use super::{Engine, OnFull};
use crate::head::{HEAD_PREFIX, Head, VersionedHead, head_key};
use crate::journal;
use crate::sco::vdisk_prefix;
use crate::vdisk::finish_even_if_dropped;
use crate::{Transaction, Vdisk, VolumeError};
use ovs_backend::{Backend, Urgency};
use ovs_format::tombstone;
use ovs_units::{VdiskId, VpoolId, planted};
use std::rc::Rc;

impl Engine {
    /// Steps 1 and 2 are done when this returns, the rest goes on in the background. With clones left the vDisk is
    /// hidden until the last one goes. The caller sees to it that nobody uses it.
    pub async fn delete_vdisk(&self, vpool: VpoolId, id: VdiskId) -> Result<(), VolumeError> {
        let engine = self.clone();
        let work = async move {
            let _turn = engine.inner.turn.lock().await;
            let backend = engine.backend(vpool)?;
            let Some(head) = engine.head_of(id).await? else {
                return Err(VolumeError::NotFound(format!("there is no vDisk {id}")));
            };
            if !planted("delete: no tombstone") {
                backend
                    .put(&journal::tombstone_name(id), vec![tombstone::encode(id).into()], Urgency::Reserve)
                    .await?;
            }
            let open = engine.inner.vdisks.borrow().get(&id).cloned();
            let head = engine.mark_deleted(id, open.as_ref(), head).await?;
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

    pub(super) async fn mark_deleted(
        &self,
        id: VdiskId,
        open: Option<&Vdisk>,
        stored: VersionedHead,
    ) -> Result<Head, VolumeError> {
        let change = |head: &mut Head| {
            head.deleted = true;
            head.snapshots.iter_mut().for_each(|snapshot| snapshot.hidden = true);
            head.drop_snapshots();
        };
        if let Some(vdisk) = open {
            let _meta = vdisk.inner.meta.lock().await;
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

    /// Steps 3 and 4. The caller has the turn.
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
        let tombstone = journal::tombstone_name(id);
        let mut after = None;
        loop {
            let page = backend.list(&vdisk_prefix(id), after.as_ref(), 500).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            for object in page.iter().filter(|object| object.name != tombstone) {
                backend.delete(&object.name).await?;
            }
        }
        backend.delete(&tombstone).await?;
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
