//! Now and then, a copy of the map on the backend, and the journal before it removed.
//!
//! Crash order, each step durable before the next begins:
//!
//! 1. A local checkpoint; it stays as it is until 3 is done, and so do its pages.
//! 2. The copy's parts and its root are put. Nothing refers to it yet but its own name, which a recovery looks for.
//! 3. The head is committed with the copy and the one before it: whoever is no longer the owner learns it here, and
//!    removes nothing.
//! 4. Older copies and the journal before the older of the two are removed. So one damaged copy costs nothing.

use super::{Inner, Vdisk, check_not_older};
use crate::VolumeError;
use crate::journal::{self, Own};
use crate::map::copy::{self, CopyId};
use bytes::Bytes;
use ovs_format::journal::Position;
use ovs_units::{PutId, planted};
use std::rc::Rc;

/// What reading one more object costs a recovery, in bytes that it could read instead.
const OBJECT_WEIGHT: u64 = 64 << 10;

impl Vdisk {
    /// After a checkpoint: copies the map in the background when reading the journal would cost more than the copy.
    pub(super) fn copy_map_if_due(&self) {
        let inner = self.inner.clone();
        let is_due = inner.journal_weight.get().is_none_or(|weight| weight >= inner.copy_after.get());
        if !is_due || inner.copying.try_lock().is_err() {
            return;
        }
        tokio::task::spawn_local(async move {
            if let Err(error) = inner.copy_map().await {
                // Nothing depends on it: a recovery reads more of the journal.
                tracing::warn!(vdisk = %inner.id, %error, "the map could not be copied to the backend");
            }
        });
    }
}

impl Inner {
    pub(super) fn journal_has_grown(&self, bytes: u64) {
        let weight = self.journal_weight.get();
        self.journal_weight.set(weight.map(|weight| weight + bytes + OBJECT_WEIGHT));
    }

    async fn copy_map(self: &Rc<Self>) -> Result<(), VolumeError> {
        let Ok(_copying) = self.copying.try_lock() else { return Ok(()) };
        self.check_not_ended()?;
        if self.journal_weight.get().is_none() {
            self.weigh_journal().await?;
        }
        let weight = self.journal_weight.get().unwrap_or_default();
        if weight < self.copy_after.get() {
            return Ok(());
        }
        // 1.
        let (checkpoint, mut head) = {
            let _meta = self.meta.lock().await;
            self.check_not_ended()?;
            (self.checkpoint_of_now(), self.head.borrow().head.clone())
        };
        let maps = {
            let _turn = self.checkpoints.lock().await;
            self.store_checkpoint(checkpoint).await?
        };
        let Some(maps) = maps else { return Ok(()) };
        let position = Position { epoch: maps.epoch, index: maps.index };
        let this = CopyId::new(position, PutId(self.context.chance.uuid()));
        head.note_copy(this);
        // 2.
        let go_on = || match self.closing.get() || self.is_ended.get() {
            true => Err(VolumeError::Offline(format!("vDisk {} is being closed", self.id))),
            false => self.check_serving(),
        };
        let encoded = Bytes::from(head.encode());
        let unreadable = |error| self.context.map_unreadable(self.id, error);
        let pages = copy::Pages { store: &*self.context.pages, unreadable: &unreadable };
        let parts = copy::Parts::new(&*self.backend, self.id, this, self.context.config.copy_part_bytes);
        let put = copy::put(parts, pages, &maps, encoded, &go_on).await;
        let bytes = match put {
            Ok(bytes) => bytes,
            Err(error) => {
                // Half a copy only takes room. What stays goes after the next whole one, which is not tried soon.
                self.copy_after.set(weight + self.context.config.copy_map_after);
                if !self.is_ended.get() {
                    copy::remove(&*self.backend, self.id, |copy| copy == this).await.ok();
                }
                return Err(error);
            }
        };
        // 3.
        {
            let _meta = self.meta.lock().await;
            // Who has lost the vDisk without knowing it learns it here: from the registry if that is shared with the
            // new owner, else from what the new owner has put on the backend.
            if !planted("copy: a stale owner cuts the journal too") {
                let head = self.head.borrow().head.clone();
                check_not_older(&*self.backend, self.id, &head, Own::Record).await?;
            }
            self.commit(|head| head.note_copy(this)).await?;
        }
        self.copy_after.set(self.context.config.copy_map_after.max(bytes));
        let since = self.journal_weight.get().unwrap_or_default();
        self.journal_weight.set(Some(since.saturating_sub(weight)));
        // 4.
        let kept = self.head.borrow().head.copies.clone();
        // Those of a higher epoch are not ours to judge.
        let epoch = self.epoch();
        let is_old = |copy: CopyId| !kept.contains(&copy) && copy.position().epoch <= epoch;
        copy::remove(&*self.backend, self.id, is_old).await?;
        if let [older, newer] = kept[..] {
            let end = if planted("copy: the journal goes up to the newer copy") { newer } else { older };
            journal::remove_before(&*self.backend, self.id, end.position(), &go_on).await?;
        }
        Ok(())
    }

    /// What the journal has grown by since the last copy, from the backend.
    async fn weigh_journal(&self) -> Result<(), VolumeError> {
        let newest = self.head.borrow().head.copies.last().copied();
        let bytes = match newest {
            Some(newest) => copy::bytes_of(&*self.backend, self.id, newest).await?,
            None => 0,
        };
        let (objects, journal_bytes) =
            journal::weight(&*self.backend, self.id, newest.map(|newest| newest.position())).await?;
        self.copy_after.set(self.context.config.copy_map_after.max(bytes));
        self.journal_weight.set(Some(journal_bytes + objects * OBJECT_WEIGHT));
        Ok(())
    }
}
