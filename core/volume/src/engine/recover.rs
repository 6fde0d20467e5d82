//! Rebuilding heads from a backend alone, with every local file lost.

use super::{Engine, FoundVdisk};
use crate::head::{HEAD_PREFIX, Head, VersionedHead, head_key};
use crate::journal::{Own, Reading};
use crate::sco::vdisk_prefix;
use crate::vdisk::{check_not_older, finish_even_if_dropped, found_vdisk, metadata_of};
use crate::{Revision, Transaction, VolumeError, tombstone};
use ovs_backend::{Backend, BackendError, ObjectName};
use ovs_units::{COUNTER_MAX, Epoch, SnapshotId, VdiskId, VpoolId, planted};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use uuid::Uuid;

impl Engine {
    /// Reads a vPool's backend alone and tells what it holds, deleted vDisks excepted unless clones depend on them. Of vDisks
    /// that are in use, too: what is half there is left as it is. [`Engine::adopt_vdisk`] asks again.
    pub async fn discover(&self, vpool: VpoolId) -> Result<Vec<FoundVdisk>, VolumeError> {
        let backend = self.backend(vpool)?;
        let mut reader = Reader { backend: &*backend, vpool, told: HashMap::new() };
        let (mut found, mut deleted, mut needed) = (Vec::new(), Vec::new(), HashSet::new());
        for id in vdisks_on(&*backend).await? {
            let told = reader.told(id).await?;
            match (&told.is_deleted, &told.head) {
                (Ok(true), _) => deleted.push(id), // if it cannot be read, its removal was cut short
                (Ok(false), Ok(Some(head))) => {
                    let problem = reader.note_ancestors(head, &mut needed).await?;
                    found.push(found_vdisk(id, head, problem));
                }
                (Ok(false), Ok(None)) => {} // removed meanwhile
                (Err(reason), _) | (_, Err(reason)) => found.push(unreadable(id, vpool, reason.clone())),
            }
        }
        // Removals that a crash cut short, and that no head remembers. Not while anything is unreadable: it might
        // depend on them.
        if found.iter().all(|vdisk| vdisk.problem.is_none()) {
            for id in deleted.into_iter().filter(|id| !needed.contains(id)) {
                if self.head_of(id).await?.is_none()
                    && let Err(error) = self.finish_removal(&*backend, id).await
                {
                    // Whoever looks next goes on.
                    tracing::warn!(vdisk = %id, %error, "a deleted vDisk's objects could not all be removed");
                }
            }
        }
        Ok(found)
    }

    /// What goes, goes on the tombstone's word: that stands before anything does, and nothing shows that was begun since.
    pub(super) async fn finish_removal(&self, backend: &dyn Backend, id: VdiskId) -> Result<(), VolumeError> {
        let begun = highest_begun(backend, id).await?.unwrap_or_default();
        match tombstone::newest(backend, id, begun, begun.next(), Reading::ToRestOn).await? {
            Some(_) => self.remove_objects(backend, id).await,
            None => {
                tracing::warn!(vdisk = %id, epoch = %begun, "a deleted vDisk has objects of a later epoch than its tombstone; they stay");
                Ok(())
            }
        }
    }

    /// Writes the head of a vDisk found on the backend into the registry, where it is missing or older, and that of
    /// every ancestor it needs (deleted ones stay hidden).
    pub async fn adopt_vdisk(&self, vpool: VpoolId, id: VdiskId) -> Result<(), VolumeError> {
        let engine = self.clone();
        // A clone is committed together with the head of an open vDisk, which has to learn of that.
        finish_even_if_dropped(async move {
            let _turn = engine.inner.turn.lock().await;
            engine.begin_recovery(vpool).await?;
            let mut next = Some(id);
            while let Some(id) = next {
                next = engine.adopt_one(vpool, id).await?;
            }
            Ok(())
        })
        .await
    }

    /// Does the backend have more of a vDisk than the registry knows, which is older then? Not of one that is open, or that the registry does
    /// not know at all.
    pub async fn is_behind(&self, vpool: VpoolId, id: VdiskId) -> Result<bool, VolumeError> {
        let _turn = self.inner.turn.lock().await;
        if self.inner.vdisks.borrow().contains_key(&id) {
            return Ok(false);
        }
        let Some(VersionedHead { head, .. }) = self.head_of(id).await? else { return Ok(false) };
        match check_not_older(&*self.backend(vpool)?, id, &head, Own::Record).await {
            Ok(()) => Ok(false),
            Err(VolumeError::Refused(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// What the registry says are the properties of a vDisk.
    pub async fn known_properties(&self, id: VdiskId) -> Result<Option<String>, VolumeError> {
        Ok(self.head_of(id).await?.map(|stored| stored.head.properties))
    }

    /// Every vDisk that the vPool's backend holds has been adopted: no clone is unknown any more, and what nobody needs may
    /// go. Until then adopted vDisks keep deleted snapshots and are not scrubbed, and what is deleted of them stays.
    pub async fn finish_recovery(&self, vpool: VpoolId) -> Result<(), VolumeError> {
        let _turn = self.inner.turn.lock().await;
        self.note_deletions(vpool).await?;
        self.clones_are(vpool, true).await?;
        self.inner.recovering.borrow_mut().remove(&vpool);
        // Deletions that have waited for this.
        self.resume_deletions(vpool);
        Ok(())
    }

    /// What was deleted later than the registry knows is marked while all clones of it are known.
    async fn note_deletions(&self, vpool: VpoolId) -> Result<(), VolumeError> {
        let backend = self.backend(vpool)?;
        for entry in self.inner.context.registry.scan(HEAD_PREFIX).await? {
            let id = entry.key.strip_prefix(HEAD_PREFIX).and_then(|id| id.parse::<VdiskId>().ok());
            let Some(id) = id else { continue };
            let Ok(mut head) = Head::decode(id, &entry.value) else { continue };
            if head.vpool != vpool || head.deleted || self.inner.vdisks.borrow().contains_key(&id) {
                continue;
            }
            match self.note_later_deletion(&*backend, id, &mut head).await {
                Ok(false) => {}
                Ok(true) => {
                    self.mark_deleted(id, None, VersionedHead { head, revision: entry.revision }).await?;
                }
                // Whoever opens it next finds out.
                Err(error) => tracing::warn!(vdisk = %id, %error, "whether it was deleted is not known"),
            }
        }
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
        self.commit_head(id, &head, revision).await
    }

    async fn commit_head(&self, id: VdiskId, head: &Head, revision: Revision) -> Result<(), VolumeError> {
        let put = Transaction::new().compare(head_key(id), revision).put(head_key(id), head.encode());
        match self.inner.context.registry.commit(put).await? {
            Some(_) => Ok(()),
            None => Err(VolumeError::Retry(format!("the head of vDisk {id} changed meanwhile"))),
        }
    }

    /// Returns the parent.
    async fn adopt_one(&self, vpool: VpoolId, id: VdiskId) -> Result<Option<VdiskId>, VolumeError> {
        let backend = self.backend(vpool)?;
        let registry = &self.inner.context.registry;
        let Some(mut head) = metadata_of(&*backend, id, vpool, Reading::ToRestOn).await? else {
            return Err(VolumeError::NotFound(format!("the backend has no vDisk {id}")));
        };
        head.epochs_unknown = true;
        let is_open = self.inner.vdisks.borrow().contains_key(&id);
        let deleted = tombstone_of(&*backend, id, &head, Reading::ToRestOn).await?;
        head.deleted = deleted.is_some();
        // Its name is used, whether it says anything or not.
        let last = tombstone::list(&*backend, id).await?.last().copied().unwrap_or_default();
        head.epoch = head.epoch.max(last);
        let known = registry.get(&head_key(id)).await?;
        if let Some(known) = &known {
            let mut old = Head::decode(id, &known.value)?;
            if old.position() >= head.position() {
                let parent = old.base.map(|(parent, _)| parent);
                // All that is newer was never finished: its names are left alone, and that is all. One that is open goes
                // on in its epoch.
                if !is_open {
                    // The registry is from before a deletion, or from the middle of one.
                    let is_of = |deleted: Epoch| deleted > old.epoch || deleted == old.epoch && old.deleting;
                    if !old.epochs_unknown && deleted.is_some_and(is_of) {
                        old.set_deleted();
                    }
                    old.epoch = old.epoch.max(head.epoch);
                    old.epochs_unknown = true;
                    self.commit_head(id, &old, known.revision).await?;
                }
                return Ok(parent);
            }
            if is_open {
                return Err(VolumeError::Refused(format!("vDisk {id} is open; restart ovsd to recover it")));
            }
            head.epoch = head.epoch.max(old.epoch);
            // What was lost stays so until somebody accepts that; the journal does not tell.
            for reason in old.damaged {
                if !head.damaged.contains(&reason) && !head.accepted.contains(&reason) {
                    head.damaged.push(reason);
                }
            }
            head.lost = head.lost.or(old.lost);
        }
        head.clones_unknown = true;
        self.link_clones(id, &mut head).await?;
        if planted("recovery: hidden snapshots of clones are dropped") {
            head.snapshots.retain(|snapshot| !snapshot.hidden);
        }
        let revision = known.map_or(Revision(0), |known| known.revision);
        let mut transaction =
            Transaction::new().compare(head_key(id), revision).put(head_key(id), head.encode());
        // Its parent may be there already: then it learns of its clone.
        let open_parent = head.base.and_then(|(parent, _)| self.inner.vdisks.borrow().get(&parent).cloned());
        if let Some((parent, snapshot)) = head.base
            && let Some(vdisk) = open_parent
        {
            let _meta = vdisk.inner.meta.lock().await;
            if !vdisk.inner.head.borrow().head.snapshots.iter().any(|known| known.id == snapshot) {
                let detail =
                    format!("vDisk {parent} is open, and has no snapshot {snapshot} for its clone {id}");
                return Err(VolumeError::Refused(detail));
            }
            let link = |parent: &mut Head| {
                if let Some(snapshot) = parent.snapshot_mut(snapshot)
                    && !snapshot.clones.contains(&id)
                {
                    snapshot.clones.push(id);
                }
            };
            vdisk.inner.commit_with(transaction, link).await?;
            // It goes on as it is, and so do those that it was cloned from.
            return Ok(None);
        }
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
        if head.snapshot_mut(snapshot).is_none()
            && let Some(told) = metadata_of(&*self.backend(vpool)?, parent, vpool, Reading::ToRestOn).await?
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

/// Reads what a backend tells of each vDisk, once.
struct Reader<'a> {
    backend: &'a dyn Backend,
    vpool: VpoolId,
    told: HashMap<VdiskId, Rc<Told>>,
}

/// Damage is an answer: it is that vDisk's alone.
struct Told {
    is_deleted: Result<bool, String>,
    /// None: there is nothing of it.
    head: Result<Option<Head>, String>,
}

impl Reader<'_> {
    async fn told(&mut self, id: VdiskId) -> Result<Rc<Told>, VolumeError> {
        if let Some(told) = self.told.get(&id) {
            return Ok(told.clone());
        }
        let mut head = or_damage(metadata_of(self.backend, id, self.vpool, Reading::ToTell).await)?;
        let tombstone = match &head {
            Ok(Some(head)) => tombstone_of(self.backend, id, head, Reading::ToTell).await,
            // Of one that is being removed, or is damaged, nothing is read any more to judge it by.
            Ok(None) | Err(_) => self.tombstone_by_names(id).await,
        };
        let is_deleted = or_damage(tombstone.map(|epoch| epoch.is_some()))?;
        if let Ok(None) = head
            && self.has_objects(id).await?
        {
            // The first record is put before anything else, and goes with everything else.
            head = Err(format!("vDisk {id} has objects and no journal"));
        }
        let told = Rc::new(Told { is_deleted, head });
        self.told.insert(id, told.clone());
        Ok(told)
    }

    async fn tombstone_by_names(&self, id: VdiskId) -> Result<Option<Epoch>, VolumeError> {
        let begun = highest_begun(self.backend, id).await?.unwrap_or_default();
        tombstone::newest(self.backend, id, begun, begun.next(), Reading::ToTell).await
    }

    /// Puts and deletes that were cut off leave what is none.
    async fn has_objects(&self, id: VdiskId) -> Result<bool, VolumeError> {
        let mut after: Option<ObjectName> = None;
        loop {
            let page = self.backend.list(&vdisk_prefix(id), after.as_ref(), 1000).await?;
            let Some(last) = page.last() else { return Ok(false) };
            after = Some(last.name.clone());
            for object in page {
                // What cannot be read now is something: that is this vDisk's matter, and nobody else waits for it.
                let read = self.backend.get_range(&object.name, 0, 1).await;
                if !matches!(read, Err(BackendError::NotFound { .. } | BackendError::Incomplete { .. })) {
                    return Ok(true);
                }
            }
        }
    }

    /// Returns what is wrong with one of them.
    async fn note_ancestors(
        &mut self,
        head: &Head,
        needed: &mut HashSet<VdiskId>,
    ) -> Result<Option<String>, VolumeError> {
        let (mut base, mut met) = (head.base, HashSet::new());
        while let Some((parent, _)) = base
            && met.insert(parent)
        {
            needed.insert(parent);
            let told = self.told(parent).await?;
            base = match (&told.is_deleted, &told.head) {
                (Ok(_), Ok(Some(head))) => head.base,
                (Ok(_), Ok(None)) => return Ok(Some(format!("nothing is there of its ancestor {parent}"))),
                (Err(reason), _) | (_, Err(reason)) => {
                    return Ok(Some(format!("of its ancestor {parent}: {reason}")));
                }
            };
        }
        Ok(None)
    }
}

fn or_damage<T>(answer: Result<T, VolumeError>) -> Result<Result<T, String>, VolumeError> {
    match answer {
        Ok(answer) => Ok(Ok(answer)),
        Err(VolumeError::Damaged(reason)) => Ok(Err(reason)),
        Err(error) => Err(error),
    }
}

/// Every vDisk that has any object. Listings are sorted, so that one object of each is enough.
pub(super) async fn vdisks_on(backend: &dyn Backend) -> Result<Vec<VdiskId>, VolumeError> {
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

/// The tombstone of a vDisk of which this is the newest record.
async fn tombstone_of(
    backend: &dyn Backend,
    id: VdiskId,
    head: &Head,
    reading: Reading,
) -> Result<Option<Epoch>, VolumeError> {
    let epoch = head.position.map_or(Epoch(0), |(epoch, _)| epoch);
    // Most are deleted in the epoch behind the last that was begun.
    tombstone::newest(backend, id, epoch, head.epoch.next(), reading).await
}

/// The highest epoch that any name of a vDisk shows, but those of tombstones.
pub(super) async fn highest_begun(backend: &dyn Backend, id: VdiskId) -> Result<Option<Epoch>, VolumeError> {
    let prefix = vdisk_prefix(id);
    let (mut highest, mut after) = (None, None);
    loop {
        let page = backend.list(&prefix, after.as_ref(), 1000).await?;
        let Some(last) = page.last() else { return Ok(highest) };
        after = Some(last.name.clone());
        for object in &page {
            // All of them: <kind>/<epoch>-…
            let text = object.name.as_str().strip_prefix(&prefix).and_then(|name| name.split_once('/'));
            let epoch = text.and_then(|(_, name)| name.split_once('-'));
            let epoch = epoch.and_then(|(epoch, _)| u64::from_str_radix(epoch, 16).ok());
            highest = highest.max(epoch.filter(|epoch| *epoch < COUNTER_MAX).map(Epoch));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
