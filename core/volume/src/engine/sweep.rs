//! Removing map pages that no checkpoint needs any more.
//!
//! Every checkpoint stores pages anew, so old ones pile up as fast as data is written. Mark: everything that the
//! records' roots reach, and everything that a map in memory may still load, reading inner pages only: a clone's
//! checkpoint stores pages that its parent has as well, and only the clone's record names them. Sweep: everything else up to
//! the highest page that existed when the records were read. No checkpoint is being stored at that moment, so whatever comes
//! later leads to marked or newer pages. What has been read since before that moment is waited for.

use super::Engine;
use crate::map::TOP_LEVEL;
use crate::readers::Reading;
use crate::{PageId, VolumeError};
use ovs_format::page::{CheckpointRecord, decode_inner};
use ovs_units::planted;
use std::{
    collections::HashSet,
    rc::{Rc, Weak},
    time::Duration,
};

/// Who reads for longer than this hinders a sweep: the next one tries again.
const READING_MAX: Duration = Duration::from_secs(180);
/// How often it is looked whether a sweep is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Fewer new pages than this are not worth a sweep.
const NEW_PAGES_MIN: u64 = 16 * 1024;

impl Engine {
    /// Removes map pages that nothing refers to; returns how many. Runs by itself when many are new.
    pub async fn sweep_pages(&self) -> Result<u64, VolumeError> {
        let context = &self.inner.context;
        let mut in_memory = Vec::new();
        let mut live = HashSet::new();
        let (up_to, records, before) = {
            // Nothing is opened, made or taken in meanwhile: what that holds is in no record yet, and in no open vDisk.
            let _turn = self.inner.turn.lock().await;
            if context.pages_are_damaged.get() {
                return Ok(0);
            }
            let _no_checkpoint = context.checkpoint_turn.lock().await;
            if context.pages_are_damaged.get() {
                return Ok(0);
            }
            let records = context.pages.records().await?;
            for vdisk in context.open_vdisks() {
                vdisk.add_stored_pages(&mut in_memory, &mut live);
            }
            (PageId(context.next_page.get().saturating_sub(1)), records, context.page_readers.turn())
        };
        for (owner, record) in records {
            let vdisk = owner.parse().map_err(|_| VolumeError::Damaged(format!("checkpoint of {owner}")))?;
            let record = CheckpointRecord::decode(vdisk, &record)
                .map_err(|error| VolumeError::Damaged(format!("checkpoint of {owner}: {error}")))?;
            live.extend(record.table_pages.iter().copied());
            let roots = record.snapshots.iter().map(|(_, root)| root.page).chain([record.root.page]);
            for root in roots.filter(|root| *root != 0) {
                let marked = self.mark(root, TOP_LEVEL, &mut live).await;
                marked.map_err(|error| context.map_unreadable(vdisk, error))?;
            }
        }
        for (vdisk, page, level) in in_memory {
            if !planted("sweep: only what records name is kept") {
                let marked = self.mark(page, level, &mut live).await;
                marked.map_err(|error| context.map_unreadable(vdisk, error))?;
            }
        }
        if !self.have_ended(before).await {
            return Ok(0);
        }
        let removed = context.pages.sweep(up_to, &|page| live.contains(&page.0)).await?;
        context.swept.set((up_to.0, live.len() as u64));
        Ok(removed)
    }

    /// Whether those who read end in time.
    async fn have_ended(&self, readers: Weak<Reading>) -> bool {
        let context = &self.inner.context;
        let deadline = context.clock.now() + READING_MAX;
        while readers.strong_count() > 0 && !planted("sweep: a page goes while it is read") {
            if context.clock.now() >= deadline {
                return false;
            }
            context.clock.sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// A page of that level and all below it, breadth first; one that was met before is not read again.
    async fn mark(&self, page: u64, level: u32, live: &mut HashSet<u64>) -> Result<(), VolumeError> {
        let mut pages = vec![page];
        for level in (0..=level).rev() {
            let mut below = Vec::new();
            for page in pages {
                if !live.insert(page) || level == 0 {
                    continue;
                }
                let Some(bytes) = self.inner.context.pages.load(PageId(page)).await? else {
                    return Err(VolumeError::Damaged(format!(
                        "map page {page} is missing from the local store"
                    )));
                };
                let children = decode_inner(page, &bytes)
                    .map_err(|error| VolumeError::Damaged(format!("map page {page}: {error}")))?;
                below.extend(children.iter().map(|child| child.page).filter(|page| *page != 0));
            }
            pages = below;
        }
        Ok(())
    }

    /// Sweeps when as many pages are new as were live at the last sweep, or a checkpoint that failed has left some.
    pub(super) fn sweep_now_and_then(&self) {
        let engine = Rc::downgrade(&self.inner);
        let clock = self.inner.context.clock.clone();
        tokio::task::spawn_local(async move {
            loop {
                clock.sleep(LOOK_EVERY).await;
                let Some(inner) = engine.upgrade() else { break };
                let engine = Engine { inner };
                let context = &engine.inner.context;
                let (swept_up_to, live) = context.swept.get();
                let is_due = context.has_stray_pages.take()
                    || context.next_page.get() - swept_up_to > live.max(NEW_PAGES_MIN);
                if !is_due {
                    continue;
                }
                match engine.sweep_pages().await {
                    Ok(removed) => tracing::info!(removed, "map pages that nothing needs were removed"),
                    Err(error) => tracing::warn!(%error, "map pages could not be swept"),
                }
            }
        });
    }
}
