//! Scrubbing by itself.

use super::Engine;
use crate::Vdisk;
use std::rc::Rc;

impl Engine {
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
                if let Some(inner) = engine.upgrade()
                    && inner.context.config.scrub_by_itself
                {
                    Engine { inner }.look_for_strangers_once().await;
                }
                for vdisk in due {
                    match vdisk.scrub_by_itself().await {
                        Ok(report) if report.has_done_nothing() => {}
                        Ok(report) => tracing::info!(vdisk = %vdisk.id(), ?report, "scrubbed"),
                        // Nothing depends on it.
                        Err(error) => tracing::warn!(vdisk = %vdisk.id(), %error, "a scrub ended early"),
                    }
                }
            }
        });
    }
}
