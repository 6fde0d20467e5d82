//! What a vDisk has lost, or may have: kept in its head, so that it is not forgotten by a restart, until it is accepted.

use super::{Vdisk, finish_even_if_dropped};
use crate::VolumeError;

impl Vdisk {
    /// Serves it as it is from now on, whatever it has lost. Returns what that may be; `None` when there is nothing to
    /// accept.
    pub async fn accept_loss(&self) -> Result<Option<String>, VolumeError> {
        let vdisk = self.clone();
        finish_even_if_dropped(async move {
            let inner = &vdisk.inner;
            inner.context.log.check_online()?;
            let _meta = inner.meta.lock().await;
            let head = inner.head.borrow().head.clone();
            let reasons: Vec<String> = head.damaged.into_iter().chain(head.lost).collect();
            if reasons.is_empty() {
                return Ok(None);
            }
            let told = reasons.join("; ");
            tracing::warn!(vdisk = %inner.id, loss = told, "a loss was accepted: the vDisk serves again");
            inner
                .commit(|head| {
                    head.accepted.append(&mut head.damaged);
                    head.lost = None;
                })
                .await?;
            inner.destage_wanted.notify_one();
            Ok(Some(told))
        })
        .await
    }

    /// Keeps in the head that acknowledged writes may be lost; the vDisk does not serve any more, nor after a restart.
    pub(crate) async fn lost(&self, reason: String) -> Result<(), VolumeError> {
        tracing::error!(vdisk = %self.inner.id, reason, "acknowledged writes may be lost; the vDisk stays offline");
        let _meta = self.inner.meta.lock().await;
        self.inner.commit(|head| head.lost = Some(reason)).await
    }

    /// Keeps in the head that something acknowledged is lost, unless that is known and accepted; the vDisk does not serve
    /// any more.
    pub(crate) async fn damaged(&self, mut reasons: Vec<String>) -> Result<(), VolumeError> {
        let inner = &self.inner;
        let _meta = inner.meta.lock().await;
        let head = inner.head.borrow().head.clone();
        reasons.retain(|reason| !head.accepted.contains(reason) && !head.damaged.contains(reason));
        if reasons.is_empty() {
            return Ok(());
        }
        tracing::error!(vdisk = %inner.id, reason = reasons.join("; "), "vDisk is damaged");
        inner.commit(|head| head.damaged.append(&mut reasons)).await
    }
}
