//! What is on a backend of vDisks that the registry does not know.
//!
//! | what is there | what is done, once per process and vPool |
//! |---|---|
//! | a tombstone, and nothing that was begun after it | its removal was cut short, or it landed late: what is there goes |
//! | a tombstone, and something that was begun after it | told |
//! | a journal, or some of one | told: the registry is an older one, or the vDisk is somebody else's |
//! | anything else | told: a put that landed when its vDisk was gone; or the journal is lost, and people may save some of it |
//!
//! A vDisk has its head before it has any object, and keeps it until all of them are gone; so what has none is nobody's who asks this
//! registry, and no removal here meets a writer. Nothing goes before a recovery has taken in all vDisks, nor
//! while any is not known: what is deleted may be what that was cloned from.

use super::Engine;
use super::recover::{highest_begun, vdisks_on};
use crate::VolumeError;
use crate::head::{HEAD_PREFIX, Head};
use crate::journal::Reading;
use crate::sco::vdisk_prefix;
use crate::tombstone;
use ovs_units::{VdiskId, VpoolId, planted};
use std::collections::HashSet;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Strangers {
    /// Deleted vDisks of which all is gone now.
    pub(super) removed: u64,
    /// Of these vDisks something is there, and stays.
    pub(super) left: Vec<VdiskId>,
}

impl Engine {
    /// Of a vPool of which that was not done yet.
    pub(super) async fn look_for_strangers_once(&self) {
        let backends: Vec<VpoolId> = self.inner.backends.borrow().keys().copied().collect();
        for vpool in backends {
            if self.inner.strangers_looked_for.borrow().contains(&vpool) {
                continue;
            }
            match self.look_for_strangers(vpool).await {
                Ok(None) => {}
                Ok(Some(found)) => {
                    self.inner.strangers_looked_for.borrow_mut().insert(vpool);
                    if found.removed > 0 {
                        tracing::info!(%vpool, count = found.removed, "deleted vDisks that nobody knew any more were removed");
                    }
                    if let Some(first) = found.left.first() {
                        let count = found.left.len();
                        tracing::warn!(%vpool, count, %first, "the backend has objects of vDisks that are not known here; they stay (`ovs vpool recover` takes in what is whole)");
                    }
                }
                // Nothing depends on it.
                Err(error) => {
                    tracing::debug!(%vpool, %error, "vDisks that are not known here could not be looked for")
                }
            }
        }
    }

    /// None: not all vDisks are known yet.
    pub(super) async fn look_for_strangers(&self, vpool: VpoolId) -> Result<Option<Strangers>, VolumeError> {
        let backend = self.backend(vpool)?;
        // Before anything is listed, and again when all is.
        if self.parents_of_known(vpool).await?.is_none() {
            return Ok(None);
        }
        let mut found = Strangers::default();
        let mut deleted = Vec::new();
        for id in vdisks_on(&*backend).await? {
            if self.head_of(id).await?.is_some() {
                continue;
            }
            let begun = highest_begun(&*backend, id).await?.unwrap_or_default();
            match tombstone::newest(&*backend, id, begun, begun.next(), Reading::ToTell).await {
                Ok(Some(_)) => deleted.push(id),
                // It was deleted meanwhile.
                Ok(None) if backend.list(&vdisk_prefix(id), None, 1).await?.is_empty() => {}
                Ok(None) | Err(VolumeError::Damaged(_)) => found.left.push(id),
                Err(error) => return Err(error),
            }
        }
        let Some(parents) = self.parents_of_known(vpool).await? else { return Ok(None) };
        // One that is needed may be a clone of another that is gone as well.
        let may_go = found.left.is_empty() && !deleted.iter().any(|id| parents.contains(id));
        if !may_go && !planted("strangers: a clone that nobody knows needs nothing") {
            found.left.append(&mut deleted);
        }
        for id in deleted {
            self.finish_removal(&*backend, id).await?;
            found.removed += 1;
        }
        Ok(Some(found))
    }

    /// What the vDisks of a vPool were cloned from. None while some may not be known.
    async fn parents_of_known(&self, vpool: VpoolId) -> Result<Option<HashSet<VdiskId>>, VolumeError> {
        if self.inner.recovering.borrow().contains(&vpool) {
            return Ok(None);
        }
        let mut parents = HashSet::new();
        for entry in self.inner.context.registry.scan(HEAD_PREFIX).await? {
            let id = entry.key.strip_prefix(HEAD_PREFIX).and_then(|id| id.parse::<VdiskId>().ok());
            let Some(id) = id else { continue };
            let Ok(head) = Head::decode(id, &entry.value) else { return Ok(None) };
            if head.vpool == vpool && head.clones_unknown {
                return Ok(None);
            }
            parents.extend(head.base.map(|(parent, _)| parent));
        }
        Ok(Some(parents))
    }
}

#[cfg(test)]
mod tests;
