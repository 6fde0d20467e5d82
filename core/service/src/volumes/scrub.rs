//! Scrubbing when somebody asks for it.

use super::{Volumes, problem::from_volume};
use crate::tasks::{About, Running};
use ovs_api::{Accepted, Problem, Task, TaskId, VdiskRef};
use ovs_volume::{ScrubReport, Vdisk};
use serde_json::{Value, json};
use std::{rc::Rc, time::Duration};

/// How often it is told how far a scrub is.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

impl Volumes {
    /// Begins to give back what nobody needs of a vDisk.
    pub async fn scrub_vdisk(self: &Rc<Self>, reference: VdiskRef) -> Result<Accepted<Task>, Problem> {
        let id = self.resolve(&reference).await?;
        let record = self.live_record(id).await?.record;
        let vdisk = self.ensure_open(id).await?;
        let about = About {
            kind: "vdisk.scrub",
            subject: Some(id.0),
            subject_name: Some(record.name.to_string()),
            unit: "bytes",
        };
        let running = self.tasks.begin(TaskId(self.chance.uuid()), about, self.clock.wall_ms());
        let task = self.tasks.get(running.id)?;
        let volumes = self.clone();
        tokio::task::spawn_local(async move {
            let end = volumes.scrub_and_tell(&vdisk, &running).await;
            volumes.finish_task(&running, end.map(to_json));
        });
        Ok(Accepted(task))
    }

    async fn scrub_and_tell(&self, vdisk: &Vdisk, running: &Running) -> Result<ScrubReport, Problem> {
        let scrub = vdisk.scrub();
        tokio::pin!(scrub);
        loop {
            tokio::select! {
                biased;
                end = &mut scrub => return end.map_err(from_volume),
                () = self.clock.sleep(PROGRESS_EVERY) => {}
            }
            let (done, total) = vdisk.scrub_progress();
            running.progress(done, (total > 0).then_some(total));
            if running.is_cancelled() || self.is_stopping() {
                vdisk.cancel_scrub();
            }
        }
    }
}

fn to_json(report: ScrubReport) -> Value {
    json!({
        "stored_bytes_before": report.before_bytes,
        "stored_bytes": report.after_bytes,
        "needed_bytes": report.needed_bytes,
        "moved_bytes": report.moved_bytes,
        "strays_removed": report.strays_removed,
        "unreadable": report.unreadable,
    })
}
