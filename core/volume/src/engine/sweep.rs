//! Removing map pages that no checkpoint needs any more.
//!
//! Every checkpoint stores pages anew, so old ones pile up as fast as data is written. Mark: everything that the
//! records' roots reach, reading inner pages only. Sweep: everything else up to the highest page that existed when the
//! records were read. No checkpoint is being stored at that moment, so newer records refer to marked or newer pages.

use super::Engine;
use crate::map::TOP_LEVEL;
use crate::{PageId, VolumeError};
use ovs_format::page::{CheckpointRecord, decode_inner};
use std::{collections::HashSet, rc::Rc, time::Duration};

/// How often it is looked whether a sweep is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Fewer new pages than this are not worth a sweep.
const NEW_PAGES_MIN: u64 = 16 * 1024;

impl Engine {
    /// Removes map pages that nothing refers to; returns how many. Runs by itself when many are new.
    pub async fn sweep_pages(&self) -> Result<u64, VolumeError> {
        let context = &self.inner.context;
        let (up_to, records) = {
            let _no_checkpoint = context.checkpoint_turn.lock().await;
            // What is taken in from now on has higher numbers.
            if !context.may_sweep() || context.pages_are_damaged.get() {
                return Ok(0);
            }
            (PageId(context.next_page.get().saturating_sub(1)), context.pages.records().await?)
        };
        let mut live = HashSet::new();
        for (owner, record) in records {
            let vdisk = owner.parse().map_err(|_| VolumeError::Damaged(format!("checkpoint of {owner}")))?;
            let record = CheckpointRecord::decode(vdisk, &record)
                .map_err(|error| VolumeError::Damaged(format!("checkpoint of {owner}: {error}")))?;
            live.extend(record.table_pages.iter().copied());
            let roots = record.snapshots.iter().map(|(_, root)| root.page).chain([record.root.page]);
            for root in roots.filter(|root| *root != 0) {
                let marked = self.mark(root, &mut live).await;
                marked.map_err(|error| context.map_unreadable(vdisk, error))?;
            }
        }
        let removed = context.pages.sweep(up_to, &|page| live.contains(&page.0)).await?;
        context.swept.set((up_to.0, live.len() as u64));
        Ok(removed)
    }

    /// Breadth first; a page that was met before is not read again.
    async fn mark(&self, root: u64, live: &mut HashSet<u64>) -> Result<(), VolumeError> {
        let mut level = vec![root];
        for depth in 0..=TOP_LEVEL {
            let mut below = Vec::new();
            for page in level {
                if !live.insert(page) || depth == TOP_LEVEL {
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
            level = below;
        }
        Ok(())
    }

    /// Sweeps when as many pages are new as were live at the last sweep.
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
                if context.next_page.get() - swept_up_to <= live.max(NEW_PAGES_MIN) {
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
