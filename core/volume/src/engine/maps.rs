//! Room for maps: checkpoints of vDisks whose changed pages take too much memory, also of those that send nothing out any more.

use super::Engine;
use crate::Vdisk;
use std::{cmp::Reverse, rc::Rc, time::Duration};

/// How often it is looked whether there is an engine still.
const IDLE: Duration = Duration::from_secs(60);

impl Engine {
    /// Those with the most first, until changed pages take no more than a quarter of what there is.
    pub(super) fn checkpoint_when_short(&self) {
        let engine = Rc::downgrade(&self.inner);
        let context = &self.inner.context;
        let (clock, short) = (context.clock.clone(), context.maps_are_short.clone());
        tokio::task::spawn_local(async move {
            loop {
                tokio::select! {
                    biased;
                    () = short.notified() => {}
                    () = clock.sleep(IDLE) => {}
                }
                let Some(inner) = engine.upgrade() else { break };
                let context = inner.context.clone();
                drop(inner);
                if !context.map_memory.is_short() || context.pages_are_damaged.get() {
                    continue;
                }
                let mut vdisks = context.open_vdisks();
                vdisks.retain(|vdisk| vdisk.changed_map_bytes() > 0);
                vdisks.sort_by_key(|vdisk| Reverse(vdisk.changed_map_bytes()));
                for vdisk in vdisks {
                    if !context.map_memory.is_large(context.map_memory.changed_bytes()) {
                        break;
                    }
                    vdisk.checkpoint_while_open().await;
                }
            }
        });
    }
}

impl Vdisk {
    fn changed_map_bytes(&self) -> u64 {
        self.inner.changed_map_bytes.get()
    }
}
