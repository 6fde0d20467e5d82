//! Drives of which nothing is needed any more are none from then on, and who waits for that.
//!
//! ```text
//!  the open composite is done with a drive ─▶ the record has it as departed ─▶ layouts ─▶ what is left on it is removed, unless it
//!                                                                                     was lost ─▶ it is nobody's
//! ```

use super::{
    Volumes,
    composites::{Drives, conflict},
    namespace::{look, mark_of},
    problem::from_catalogue,
    stores::BackendSet,
    upkeep::POLL,
};
use crate::tasks::{About, Running};
use futures_util::future::join_all;
use ovs_api::{Problem, ProblemKind, Task, TaskId};
use ovs_backend::coded::Duty;
use ovs_cluster::catalogue::{BackendRecord, DepartedRecord, DutyRecord, StoreRecord};
use ovs_units::Name;
use serde_json::json;
use std::{path::Path, rc::Rc, time::Duration};
use uuid::Uuid;

/// So often somebody who waits for a drive to go is told how far that is.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

impl Volumes {
    /// Drives of which nothing is needed any more are none from now on. Those that were lost only where that cost nothing, or
    /// somebody has said that it may.
    pub(super) async fn finish_drives(&self, composite: Uuid) -> Result<(), Problem> {
        let Some((_, open)) = self.open_composite(composite) else { return Ok(()) };
        let is_done = |uuid: &Uuid| open.coded.is_done_with(*uuid);
        if !open.members().keys().any(is_done) {
            return Ok(());
        }
        let change = self.begin_change(composite).await?;
        let mut drives = Drives::of(change.record())?;
        let costs = open
            .coded
            .upkeep()
            .last
            .is_some_and(|survey| survey.unreadable > 0 || survey.may_have_lost_unseen);
        let Some(pool) = &change.pool else { return Ok(()) };
        let namespace = pool.record().namespace;
        let (mut done, mut names) = (Vec::new(), Vec::new());
        for (uuid, duty) in drives.duties.clone() {
            // Whether the drives are still those that were looked at, is asked now.
            if !is_done(&uuid) || duty == DutyRecord::Lost && costs {
                continue;
            }
            let record = change.set.backend(uuid)?;
            let place = change.set.place(uuid);
            drives.drives.retain(|drive| *drive != uuid);
            drives.duties.remove(&uuid);
            drives.departed.push(DepartedRecord {
                uuid,
                node: place.node,
                site: place.site,
                weight: record.labels.weight,
                left_behind: (!duty.is_lost()).then(|| namespace.clone()),
                was_lost: duty.is_lost(),
            });
            names.push(record.name.to_string());
            done.push(uuid);
        }
        if done.is_empty() {
            return Ok(());
        }
        let detail = format!("{}: no drive any more, nothing on it is needed", names.join(", "));
        self.store_change(&change, drives, detail, |volumes, change, set| {
            for uuid in &done {
                volumes.drop_drive(change, set, *uuid, Duty::Gone);
            }
        })
        .await
        .map(drop)
    }

    /// Removes what vPools have on drives that have left, beside everything else: a store may take hours for it, and a directory that
    /// hangs for ever.
    pub(super) async fn begin_emptying_departed(self: &Rc<Self>) -> Result<(), Problem> {
        for composite in self.all_backends().await? {
            for gone in composite.departed() {
                let Some(namespace) = gone.left_behind.clone() else { continue };
                let (volumes, composite, drive) = (self.clone(), composite.uuid, gone.uuid);
                let Some(turn) = self.locks.try_lock(format!("departed/{drive}")) else { continue };
                tokio::task::spawn_local(async move {
                    if let Err(problem) = volumes.empty_one(composite, drive, &namespace).await {
                        tracing::debug!(%drive, %problem, "what a vPool has on a drive that has left is still there");
                    }
                    drop(turn);
                });
            }
        }
        Ok(())
    }

    async fn empty_one(&self, composite: Uuid, drive: Uuid, namespace: &str) -> Result<(), Problem> {
        // Whoever changes drives now has said so everywhere before this goes on: in the layouts, and to the open composite.
        drop(self.begin_change(composite).await?);
        if self.open_composite(composite).is_some_and(|(_, open)| open.members().contains_key(&drive)) {
            return Ok(());
        }
        // As long as a layout says that it is a drive, a recovery looks for it.
        let pools = self.all_pools();
        let pool = pools.iter().find(|pool| pool.record().namespace == namespace);
        if pool.is_some_and(|pool| self.layouts_due.borrow().contains_key(&pool.record().id)) {
            return Ok(());
        }
        let set = self.backend_set().await?;
        let record = set.backend(composite)?;
        let is_left = |gone: &DepartedRecord| gone.uuid == drive && gone.left_behind.is_some();
        if !record.departed().iter().any(is_left) {
            return Ok(());
        }
        if set.backend(drive).is_ok() {
            let parts = self.parts_left(&set, drive, namespace)?;
            let emptied = parts.iter().map(async |(part, left)| {
                tokio::select! {
                    emptied = left.empty() => emptied,
                    // It hangs, and was given up.
                    () = self.until_it_is_no_part(drive, *part) => Ok(()),
                }
            });
            for removed in join_all(emptied).await {
                removed?;
            }
        }
        let change = self.begin_change(composite).await?;
        let mut drives = Drives::of(change.record())?;
        for gone in drives.departed.iter_mut().filter(|gone| gone.uuid == drive) {
            gone.left_behind = None;
        }
        let detail = "what was on a drive that has left is removed".to_owned();
        self.store_change(&change, drives, detail, |_, _, _| {}).await?;
        // From now on it is anybody's.
        for part in change.set.parts_asked(drive).unwrap_or_default() {
            if let Some(folder) = part.folder().filter(|_| part.uuid == drive) {
                let mark = mark_of(Path::new(folder), drive);
                let _left = look(&*self.clock, move || std::fs::remove_file(mark)).await;
            }
        }
        Ok(())
    }

    async fn until_it_is_no_part(&self, drive: Uuid, part: Uuid) {
        loop {
            self.clock.sleep(POLL).await;
            let Ok(set) = self.backend_set().await else { continue };
            let is_part = |asked: Vec<&BackendRecord>| asked.iter().any(|asked| asked.uuid == part);
            // What cannot be told is waited for; a backend that was deleted has no parts.
            if set.backend(drive).is_err() || set.parts_asked(drive).is_ok_and(|asked| !is_part(asked)) {
                return;
            }
        }
    }

    /// Drives that were to go from composites that no vPool is on any more have nothing on them.
    pub(super) async fn finish_unused_drives(&self) -> Result<(), Problem> {
        let set = self.backend_set().await?;
        let is_going = |record: &&&BackendRecord| match &record.store {
            StoreRecord::Composite { duties, .. } => !duties.is_empty(),
            StoreRecord::Dir { .. } | StoreRecord::Remote { .. } => false,
        };
        for record in set.by_name().iter().filter(is_going) {
            if self.pool_on(set.root(record.uuid)).is_some() || is_being_emptied(&set, record.uuid) {
                continue;
            }
            let change = self.begin_change(record.uuid).await?;
            let going: Vec<Uuid> = Drives::of(change.record())?.duties.into_keys().collect();
            let is_left = change.record().drives().iter().any(|uuid| !going.contains(uuid));
            if change.pool.is_none() && is_left && !going.is_empty() {
                self.let_go(change, &going, DutyRecord::Leaving, "").await?;
            }
        }
        Ok(())
    }

    /// A task that ends when a drive is none any more; where somebody waits for that already, the same.
    pub(super) fn begin_removal_task(
        self: &Rc<Self>,
        going: (Uuid, Uuid),
        (composite, drive): (Name, Name),
    ) -> Result<Task, Problem> {
        let about = About {
            kind: "backend.drive.remove",
            subject: Some(going.0),
            subject_name: Some(format!("{drive} of {composite}")),
            unit: "objects",
        };
        if let Some(task) = self.tasks.running(&about) {
            return Ok(task);
        }
        let running = self.tasks.begin(TaskId(self.chance.uuid()), about, self.clock.wall_ms());
        let task = self.tasks.get(running.id)?;
        let volumes = self.clone();
        tokio::task::spawn_local(async move {
            let end = volumes.wait_for_removal(&running, going, &drive).await;
            volumes.finish_task(&running, end.map(|()| json!({"drive": drive})));
        });
        Ok(task)
    }

    async fn wait_for_removal(
        &self,
        running: &Running,
        (composite, uuid): (Uuid, Uuid),
        drive: &Name,
    ) -> Result<(), Problem> {
        loop {
            let stored = self.catalogue.get::<BackendRecord>(composite).await.map_err(from_catalogue)?;
            let is_drive = stored.record.drives().contains(&uuid);
            match (is_drive, stored.record.duty(uuid)) {
                (false, _) => return Ok(()),
                (true, None) => return Err(conflict(format!("drive {drive} was taken back: it serves"))),
                (true, Some(_)) => {}
            }
            if running.is_cancelled() {
                return Ok(());
            }
            if self.is_stopping() {
                let detail =
                    format!("ovsd stops; what is under way with drive {drive} goes on after its start");
                return Err(Problem::new(ProblemKind::Unavailable, detail));
            }
            if let Some((_, open)) = self.open_composite(composite) {
                let upkeep = open.coded.upkeep();
                let total = upkeep.objects_mended + upkeep.objects_to_mend;
                running.progress(upkeep.objects_mended, (total > 0).then_some(total));
            }
            self.clock.sleep(PROGRESS_EVERY).await;
        }
    }
}

/// It has left a composite, and what a vPool has on its own drives is still there, also on those that are leaving it.
pub(super) fn is_being_emptied(set: &BackendSet, composite: Uuid) -> bool {
    let is_it = |gone: &DepartedRecord| gone.uuid == composite && gone.left_behind.is_some();
    set.by_name().iter().any(|other| other.departed().iter().any(is_it))
}
