//! What crashes, late puts and deletions that came to nothing have left on the backend, of this vDisk.
//!
//! Names carry epochs, and an epoch is raised in the registry before anything is put under it: so what is of an epoch that is
//! over has no writer any more, but one of this process that is late, or one of before, and neither is asked for what it puts.
//! What goes is of an epoch below the one that has its start on the backend, and:
//!
//! | kind | is needed when |
//! |---|---|
//! | SCO | the table names it, or somebody may read it yet |
//! | journal record after the newest copy of the map | the chain that ends in the head's position passes through it |
//! | part or root of a copy of the map | the head names the copy, or one is being made |
//! | tombstone | never: somebody has gone on since |
//!
//! A listing shows what is not complete, too. What is of a higher epoch is another host's, and not ours to judge; so is what has no
//! name of ours. Journal records before that copy go when the journal is cut (`vdisk/copy.rs`).

use super::name_of;
use crate::map::copy;
use crate::sco::{parse_sco_name, sco_prefix};
use crate::vdisk::Inner;
use crate::{VolumeError, journal, tombstone};
use ovs_backend::ObjectName;
use ovs_units::{Epoch, planted};
use std::collections::HashSet;

/// What became of strays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Removed {
    pub(super) count: u64,
    /// All that there were; if not, whoever looks next goes on.
    pub(super) is_all: bool,
}

impl Inner {
    /// Ends early where something cannot be removed: a scrub gives back what it can without that.
    pub(super) async fn remove_strays(&self) -> Result<Removed, VolumeError> {
        let (epoch, named) = {
            let _meta = self.meta.lock().await;
            self.check_may_scrub()?;
            self.start_epoch_if_needed().await?;
            let scos = self.table.borrow().scos_of(self.id);
            let mut named: HashSet<ObjectName> = scos.iter().map(|(sco, _)| name_of(sco)).collect();
            if !planted("scrub: what is read is a stray") {
                // Somebody may be reading those yet.
                named.extend(self.scrub.going.borrow().iter().map(|(_, sco)| name_of(sco)));
            }
            self.check_is_newest().await?;
            (self.epoch(), named)
        };
        let mut removed = Removed { count: 0, is_all: true };
        let result = self.remove_all_strays(epoch, &named, &mut removed).await;
        match result {
            Ok(()) => {}
            Err(error @ (VolumeError::Retry(_) | VolumeError::Damaged(_))) => {
                tracing::warn!(vdisk = %self.id, %error, "not all that crashes have left can be removed; trying again later");
                removed.is_all = false;
            }
            Err(error) => return Err(error),
        }
        Ok(removed)
    }

    async fn remove_all_strays(
        &self,
        epoch: Epoch,
        named: &HashSet<ObjectName>,
        removed: &mut Removed,
    ) -> Result<(), VolumeError> {
        // What is wrong with one kind keeps nothing of another.
        let of_tombstones = self.remove_old_tombstones(epoch, removed).await;
        let of_maps = self.remove_strays_of_maps(epoch, removed).await;
        self.remove_stray_scos(epoch, named, removed).await?;
        of_tombstones.and(of_maps)
    }

    async fn remove_old_tombstones(&self, epoch: Epoch, removed: &mut Removed) -> Result<(), VolumeError> {
        let tombstones = tombstone::list(&*self.backend, self.id).await?;
        let over = tombstones.range(..epoch).map(|epoch| tombstone::name(self.id, *epoch));
        self.remove_some(over, removed).await
    }

    async fn remove_stray_scos(
        &self,
        epoch: Epoch,
        named: &HashSet<ObjectName>,
        removed: &mut Removed,
    ) -> Result<(), VolumeError> {
        let prefix = sco_prefix(self.id);
        let mut after = None;
        loop {
            let page = self.backend.list(&prefix, after.as_ref(), 1000).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.name.clone());
            let is_stray = |name: &ObjectName| {
                let found = parse_sco_name(name, &prefix);
                let is_over = found.is_some_and(|(of, _)| {
                    of < epoch || planted("scrub: what is on its way is taken for a stray")
                });
                is_over && !named.contains(name)
            };
            let strays = page.into_iter().map(|object| object.name).filter(is_stray);
            self.remove_some(strays, removed).await?;
        }
    }

    /// Of the journal, and of copies of the map unless one is being made.
    async fn remove_strays_of_maps(&self, epoch: Epoch, removed: &mut Removed) -> Result<(), VolumeError> {
        let Ok(_no_copying) = self.copying.try_lock() else {
            removed.is_all = false;
            return Ok(());
        };
        let head = self.head.borrow().head.clone();
        // The epoch was given up meanwhile: what comes next is for the next one.
        let Some(to) = head.position().filter(|to| to.epoch == epoch) else {
            removed.is_all = false;
            return Ok(());
        };
        let is_stray = |copy: copy::CopyId| {
            let is_needed =
                head.copies.contains(&copy) && !planted("scrub: a copy of the map that counts is a stray");
            !is_needed && copy.position().epoch < epoch
        };
        let copies = copy::names_of(&*self.backend, self.id, is_stray).await?;
        self.remove_some(copies, removed).await?;
        let from = head.copies.last().map(|copy| copy.position());
        let records = journal::strays(&*self.backend, self.id, from, to).await?;
        self.remove_some(records, removed).await
    }

    async fn remove_some(
        &self,
        names: impl IntoIterator<Item = ObjectName>,
        removed: &mut Removed,
    ) -> Result<(), VolumeError> {
        for name in names {
            self.check_may_scrub()?;
            self.backend.delete(&name).await?;
            removed.count += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
