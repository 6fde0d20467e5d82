//! Rebuilding heads from a backend alone, with every local file lost.

use super::{Engine, FoundVdisk};
use crate::head::{HEAD_PREFIX, Head, head_key};
use crate::journal;
use crate::vdisk::{found_vdisk, metadata_of};
use crate::{Revision, Transaction, VolumeError};
use ovs_backend::{Backend, BackendError, ObjectName};
use ovs_format::tombstone;
use ovs_units::{SnapshotId, VdiskId, VpoolId, planted};
use std::collections::HashSet;
use uuid::Uuid;

impl Engine {
    /// Reads a vPool's backend alone and tells what it holds, deleted vDisks excepted unless clones depend on them.
    pub async fn discover(&self, vpool: VpoolId) -> Result<Vec<FoundVdisk>, VolumeError> {
        let backend = self.backend(vpool)?;
        let (mut found, mut deleted, mut needed) = (Vec::new(), Vec::new(), HashSet::new());
        for id in vdisks_on(&*backend).await? {
            let is_deleted = match is_deleted(&*backend, id).await {
                Err(VolumeError::Damaged(reason)) => {
                    found.push(unreadable(id, vpool, reason));
                    continue;
                }
                answer => answer?,
            };
            if is_deleted {
                deleted.push(id);
            }
            match metadata_of(&*backend, id, vpool).await {
                Ok(Some(head)) if is_deleted => drop(head),
                Ok(Some(head)) => {
                    self.note_ancestors(&*backend, vpool, &head, &mut needed).await?;
                    found.push(found_vdisk(id, &head, None));
                }
                Ok(None) => {} // nothing was ever acknowledged of it
                Err(VolumeError::Damaged(_)) if is_deleted => {} // its removal was cut short
                Err(VolumeError::Damaged(reason)) => found.push(unreadable(id, vpool, reason)),
                Err(error) => return Err(error),
            }
        }
        // Removals that a crash cut short, and that no head remembers. Not while anything is unreadable: it might
        // depend on them.
        if found.iter().all(|vdisk| vdisk.problem.is_none()) {
            for id in deleted.into_iter().filter(|id| !needed.contains(id)) {
                if self.head_of(id).await?.is_none() {
                    self.remove_objects(&*backend, id).await?;
                }
            }
        }
        Ok(found)
    }

    async fn note_ancestors(
        &self,
        backend: &dyn Backend,
        vpool: VpoolId,
        head: &Head,
        needed: &mut HashSet<VdiskId>,
    ) -> Result<(), VolumeError> {
        let mut base = head.base;
        while let Some((parent, _)) = base
            && needed.insert(parent)
        {
            base = metadata_of(backend, parent, vpool).await?.and_then(|head| head.base);
        }
        Ok(())
    }

    /// Writes the head of a vDisk found on the backend into the registry, where it is missing or older, and that of
    /// every ancestor it needs (deleted ones stay hidden).
    pub async fn adopt_vdisk(&self, vpool: VpoolId, id: VdiskId) -> Result<(), VolumeError> {
        let _turn = self.inner.turn.lock().await;
        let mut next = Some(id);
        while let Some(id) = next {
            next = self.adopt_one(vpool, id).await?;
        }
        Ok(())
    }

    /// Returns the parent.
    async fn adopt_one(&self, vpool: VpoolId, id: VdiskId) -> Result<Option<VdiskId>, VolumeError> {
        let backend = self.backend(vpool)?;
        let registry = &self.inner.context.registry;
        let Some(mut head) = metadata_of(&*backend, id, vpool).await? else {
            return Err(VolumeError::NotFound(format!("the backend has no vDisk {id}")));
        };
        head.deleted = is_deleted(&*backend, id).await?;
        let known = registry.get(&head_key(id)).await?;
        if let Some(known) = &known {
            let old = Head::decode(id, &known.value)?;
            if old.position() >= head.position() {
                return Ok(old.base.map(|(parent, _)| parent));
            }
            if self.inner.vdisks.borrow().contains_key(&id) {
                return Err(VolumeError::Refused(format!("vDisk {id} is open; restart ovsd to recover it")));
            }
            head.epoch = head.epoch.max(old.epoch);
        }
        self.link_clones(id, &mut head).await?;
        head.snapshots.retain(|snapshot| {
            !snapshot.hidden
                || (!snapshot.clones.is_empty()
                    && !planted("recovery: hidden snapshots of clones are dropped"))
        });
        let revision = known.map_or(Revision(0), |known| known.revision);
        let mut transaction =
            Transaction::new().compare(head_key(id), revision).put(head_key(id), head.encode());
        // Its parent may be there already: then it learns of its clone.
        if let Some((parent, snapshot)) = head.base
            && let Some(entry) = registry.get(&head_key(parent)).await?
        {
            let parent_head =
                self.with_clone(vpool, parent, Head::decode(parent, &entry.value)?, snapshot, id).await?;
            let key = head_key(parent);
            transaction = transaction.compare(&key, entry.revision).put(&key, parent_head.encode());
        }
        match registry.commit(transaction).await? {
            Some(_) => Ok(head.base.map(|(parent, _)| parent)),
            None => Err(VolumeError::Retry(format!("the head of vDisk {id} changed meanwhile"))),
        }
    }

    /// The parent's head with one more clone on its snapshot; a hidden snapshot that nobody seemed to need comes back.
    async fn with_clone(
        &self,
        vpool: VpoolId,
        parent: VdiskId,
        mut head: Head,
        snapshot: SnapshotId,
        clone: VdiskId,
    ) -> Result<Head, VolumeError> {
        let knows = |head: &Head| {
            head.snapshots.iter().any(|known| known.id == snapshot && known.clones.contains(&clone))
        };
        if knows(&head) {
            return Ok(head);
        }
        if self.inner.vdisks.borrow().contains_key(&parent) {
            return Err(VolumeError::Refused(format!(
                "vDisk {parent} is open; restart ovsd to recover its clones"
            )));
        }
        if head.snapshot_mut(snapshot).is_none()
            && let Some(told) = metadata_of(&*self.backend(vpool)?, parent, vpool).await?
        {
            head.snapshots.extend(told.snapshots.into_iter().filter(|known| known.id == snapshot));
            head.snapshots.sort_by_key(|known| (known.sequence, known.created_ms));
        }
        match head.snapshot_mut(snapshot) {
            Some(known) => known.clones.push(clone),
            None => {
                return Err(VolumeError::Damaged(format!(
                    "vDisk {parent} has no snapshot {snapshot} for its clone {clone}"
                )));
            }
        }
        Ok(head)
    }

    /// Clones that the registry knows already keep their snapshots.
    async fn link_clones(&self, id: VdiskId, head: &mut Head) -> Result<(), VolumeError> {
        for entry in self.inner.context.registry.scan(HEAD_PREFIX).await? {
            let child = entry.key.strip_prefix(HEAD_PREFIX).and_then(|child| child.parse::<VdiskId>().ok());
            let Some(child) = child else { continue };
            let Some((parent, snapshot)) = Head::decode(child, &entry.value)?.base else { continue };
            if parent == id
                && let Some(snapshot) = head.snapshot_mut(snapshot)
            {
                snapshot.clones.push(child);
            }
        }
        Ok(())
    }
}

/// Every vDisk that has any object. Listings are sorted, so that one object of each is enough.
async fn vdisks_on(backend: &dyn Backend) -> Result<Vec<VdiskId>, VolumeError> {
    let mut vdisks = Vec::new();
    let mut after: Option<ObjectName> = None;
    loop {
        let page = backend.list("v/", after.as_ref(), 1).await?;
        let Some(object) = page.first() else { return Ok(vdisks) };
        let folder = object.name.as_str().split('/').nth(1).unwrap_or_default();
        match Uuid::try_parse(folder) {
            Ok(id) => {
                vdisks.push(VdiskId(id));
                after = ObjectName::new(format!("v/{folder}/zzzz")).ok();
            }
            Err(_) => after = Some(object.name.clone()), // not ours
        }
    }
}

/// A vDisk of which no more can be told than what is wrong.
fn unreadable(id: VdiskId, vpool: VpoolId, reason: String) -> FoundVdisk {
    let nothing = Head::new(vpool, ovs_units::ByteCount(0), None, String::new());
    found_vdisk(id, &nothing, Some(reason))
}

/// What is at the tombstone's place counts only if it is this vDisk's tombstone: everything is removed on its word.
pub(super) async fn is_deleted(backend: &dyn Backend, id: VdiskId) -> Result<bool, VolumeError> {
    let name = journal::tombstone_name(id);
    match backend.get(&name).await {
        Ok(bytes) => match tombstone::decode(&bytes, id) {
            Ok(()) => Ok(true),
            Err(error) => Err(VolumeError::Damaged(format!("object {name}: {error}"))),
        },
        Err(BackendError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
