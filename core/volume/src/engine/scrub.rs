//! Scrubbing by itself, and when it may begin after a recovery.

use super::Engine;
use crate::head::{HEAD_PREFIX, Head, head_key};
use crate::{Revision, Transaction, Vdisk, VolumeError};
use ovs_units::{VdiskId, VpoolId};
use std::rc::Rc;

impl Engine {
    /// Every vDisk that the vPool's backend holds has been adopted: no clone is unknown any more, and what nobody needs may
    /// go. Until then adopted vDisks keep deleted snapshots and are not scrubbed, and what is deleted of them stays.
    pub async fn finish_recovery(&self, vpool: VpoolId) -> Result<(), VolumeError> {
        let _turn = self.inner.turn.lock().await;
        self.clones_are(vpool, true).await?;
        self.inner.recovering.borrow_mut().remove(&vpool);
        // Deletions that have waited for this.
        self.resume_deletions(vpool);
        Ok(())
    }

    /// The registry is not the newest: also what it knows may have clones that it does not. The caller has the turn.
    pub(super) async fn begin_recovery(&self, vpool: VpoolId) -> Result<(), VolumeError> {
        if !self.inner.recovering.borrow().contains(&vpool) {
            self.clones_are(vpool, false).await?;
            self.inner.recovering.borrow_mut().insert(vpool);
        }
        Ok(())
    }

    async fn clones_are(&self, vpool: VpoolId, known: bool) -> Result<(), VolumeError> {
        for entry in self.inner.context.registry.scan(HEAD_PREFIX).await? {
            let id = entry.key.strip_prefix(HEAD_PREFIX).and_then(|id| id.parse::<VdiskId>().ok());
            let Some(id) = id else { continue };
            // One that cannot be read stays as it is.
            let Ok(head) = Head::decode(id, &entry.value) else { continue };
            if head.vpool != vpool || head.clones_unknown != known {
                continue;
            }
            let open = self.inner.vdisks.borrow().get(&id).cloned();
            match (open, known) {
                (Some(vdisk), true) => vdisk.clones_are_known().await?,
                (Some(vdisk), false) => vdisk.clones_are_unknown().await?,
                (None, _) => self.clones_of_one_are(id, head, entry.revision, known).await?,
            }
        }
        Ok(())
    }

    async fn clones_of_one_are(
        &self,
        id: VdiskId,
        mut head: Head,
        revision: Revision,
        known: bool,
    ) -> Result<(), VolumeError> {
        head.clones_unknown = !known;
        head.drop_snapshots();
        let put = Transaction::new().compare(head_key(id), revision).put(head_key(id), head.encode());
        match self.inner.context.registry.commit(put).await? {
            Some(_) => Ok(()),
            None => Err(VolumeError::Retry(format!("the head of vDisk {id} changed meanwhile"))),
        }
    }

    /// One vDisk at a time, those that have enough to give back.
    pub(super) fn scrub_now_and_then(&self) {
        let engine = Rc::downgrade(&self.inner);
        let (clock, every) = (self.inner.context.clock.clone(), self.inner.context.config.scrub_every);
        tokio::task::spawn_local(async move {
            loop {
                clock.sleep(every).await;
                let Some(inner) = engine.upgrade() else { break };
                let due: Vec<Vdisk> =
                    inner.vdisks.borrow().values().filter(|vdisk| vdisk.scrub_is_due()).cloned().collect();
                let vdisks: Vec<Vdisk> = inner.vdisks.borrow().values().cloned().collect();
                drop(inner);
                for vdisk in vdisks {
                    vdisk.remove_what_is_going().await;
                }
                for vdisk in due {
                    match vdisk.scrub_by_itself().await {
                        Ok(report) if report.has_done_nothing() => {}
                        Ok(report) => tracing::info!(
                            vdisk = %vdisk.id(),
                            before_bytes = report.before_bytes,
                            after_bytes = report.after_bytes,
                            needed_bytes = report.needed_bytes,
                            moved_bytes = report.moved_bytes,
                            strays_removed = report.strays_removed,
                            "scrubbed"
                        ),
                        // Nothing depends on it.
                        Err(error) => tracing::warn!(vdisk = %vdisk.id(), %error, "a scrub ended early"),
                    }
                }
            }
        });
    }
}
