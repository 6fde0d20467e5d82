//! Deleting vDisks: to the trash, out of it again, for ever.
//!
//! A vDisk in the trash keeps its data and its snapshots and gives up its name. Deletion for ever is: record
//! `deleting` → engine (tombstone first) → record gone; whoever finds a record `deleting` goes on from there.

use super::{
    Volumes,
    idempotency::Terms,
    locks::Locked,
    open::gone_is_fine,
    problem::{from_catalogue, not_found},
};
use crate::tasks::About;
use ovs_api::{
    Accepted, DeleteVdiskQuery, EventKind, Labels, Page, Problem, ProblemKind, RestoreTrash, Task, TaskId,
    Timestamp, TrashEntry, TrashQuery, Vdisk as ApiVdisk, VdiskRef,
};
use ovs_cluster::catalogue::{State, Stored, TrashRecord, VdiskRecord};
use ovs_units::{Name, VdiskId, VpoolId};
use serde_json::json;
use std::rc::Rc;

impl Volumes {
    /// Deletes a vDisk: to the trash, or for ever.
    pub async fn delete_vdisk(
        self: &Rc<Self>,
        reference: VdiskRef,
        query: DeleteVdiskQuery,
        terms: Terms,
    ) -> Result<(), Problem> {
        let id = self.resolve(&reference).await?;
        let locked = self.lock_vdisk(id).await;
        let stored = self.live_record(id).await?;
        terms.check_revision(stored.record.version)?;
        self.refuse_protected(&stored.record).await?;
        let _frozen = self.freeze(&stored.record, "its deletion", None)?;
        let retention_s = self.pool(stored.record.vpool)?.record().trash_retention_s;
        if query.purge || retention_s == 0 {
            return self.purge(stored, &locked).await;
        }
        let now_ms = self.clock.wall_ms();
        let trash = TrashRecord {
            deleted_ms: now_ms,
            expires_ms: now_ms.saturating_add(retention_s.saturating_mul(1000)),
        };
        // A vDisk that cannot be opened can still be thrown away; its copy of the record follows when it can be.
        let vdisk = self.ensure_open_locked(id, &locked).await.ok();
        let stored = self.record(id).await?;
        let stored = self.change(&stored, None, |record| record.trash = Some(trash)).await?;
        self.end_readers(id).await;
        self.sockets.close(id);
        if let Some(vdisk) = vdisk {
            self.apply_settings(&vdisk, &stored.record);
            self.push_properties(&stored.record, &vdisk).await?;
        } else {
            self.slot(id).unsettle();
        }
        self.publish_vdisk(EventKind::VdiskTrashed, &stored.record, |_| {});
        Ok(())
    }

    async fn refuse_protected(&self, record: &VdiskRecord) -> Result<(), Problem> {
        if record.protected {
            return Err(Problem::new(ProblemKind::Protected, format!("vDisk {} is protected", record.name)));
        }
        if record.template.is_none() {
            return Ok(());
        }
        let children = self.children(record).await?;
        if children.is_empty() {
            return Ok(());
        }
        let uuids: Vec<String> = children.iter().take(100).map(|uuid| uuid.to_string()).collect();
        let detail = format!(
            "template {} has {} children (those in the trash are counted)",
            record.name,
            children.len()
        );
        Err(Problem::new(ProblemKind::InUse, detail).with("vdisks", json!(uuids)))
    }

    /// Ends the connections of those who read a vDisk that goes away.
    async fn end_readers(&self, id: VdiskId) {
        for holder in self.attachments.list(Some(id)) {
            self.attachments.kill(holder.uuid).await;
            self.drop_attachment(holder.uuid).await;
        }
    }

    /// Deletes a vDisk for ever. The caller has checked that it may go.
    async fn purge(&self, stored: Stored<VdiskRecord>, locked: &Locked) -> Result<(), Problem> {
        // Only on the word of a record that is not older than its vDisk, as far as that can be known at all.
        let lasting = [ProblemKind::Damaged, ProblemKind::NotFound, ProblemKind::NoSpace];
        if let Err(problem) = self.ensure_open_locked(stored.record.id, locked).await
            && !lasting.contains(&problem.kind())
        {
            return Err(problem);
        }
        // Opening finishes what was begun.
        let stored = self.record(stored.record.id).await?;
        let deleting = VdiskRecord {
            state: State::Deleting,
            version: stored.record.version + 1,
            ..stored.record.clone()
        };
        let stored = self.catalogue.update(&stored, deleting).await.map_err(from_catalogue)?;
        self.end_readers(stored.record.id).await;
        self.finish_delete(&stored).await
    }

    /// The rest of a deletion; also done at start-up and again after an error.
    pub(super) async fn finish_delete(&self, stored: &Stored<VdiskRecord>) -> Result<(), Problem> {
        let record = &stored.record;
        self.sockets.close(record.id);
        gone_is_fine(self.engine.delete_vdisk(record.vpool, record.id).await)?;
        self.catalogue.remove(stored).await.map_err(from_catalogue)?;
        self.forget_slot(record.id);
        self.object_gone(record.id.0).await;
        self.publish_vdisk(EventKind::VdiskDeleted, record, |_| {});
        Ok(())
    }

    /// Deleted vDisks that can be had back, the oldest first.
    pub async fn list_trash(&self, query: TrashQuery) -> Result<Page<TrashEntry>, Problem> {
        let mut found = self.trash_of(query.vpool.as_ref(), query.name.as_ref()).await?;
        found.sort_by_key(|stored| {
            (stored.record.trash.map_or(0, |trash| trash.deleted_ms), stored.record.id)
        });
        let items = found.into_iter().map(|stored| {
            let deleted_ms = stored.record.trash.map_or(0, |trash| trash.deleted_ms);
            (format!("{deleted_ms:020}/{}", stored.record.id), self.show_trash(&stored.record))
        });
        Page::cut(items, query.limit, query.cursor.as_ref())
    }

    async fn trash_of(
        &self,
        vpool: Option<&Name>,
        name: Option<&Name>,
    ) -> Result<Vec<Stored<VdiskRecord>>, Problem> {
        let vpool = vpool.map(|name| self.pool_by_name(name)).transpose()?.map(|pool| pool.record().id);
        let mut found = Vec::new();
        for (_, uuid) in self.catalogue.index(VdiskRecord::TRASH).await.map_err(from_catalogue)? {
            let Ok(Some(stored)) = self.catalogue.find::<VdiskRecord>(uuid).await else { continue };
            let record = &stored.record;
            let is_wanted = record.state == State::Ready
                && record.trash.is_some()
                && vpool.is_none_or(|vpool| record.vpool == vpool)
                && name.is_none_or(|name| record.name == *name);
            if is_wanted {
                found.push(stored);
            }
        }
        Ok(found)
    }

    fn show_trash(&self, record: &VdiskRecord) -> TrashEntry {
        let trash = record.trash.unwrap_or(TrashRecord { deleted_ms: 0, expires_ms: 0 });
        TrashEntry {
            uuid: record.id,
            vpool: self.vpool_name(record.vpool).unwrap_or_else(|| Name::new("unknown").expect("a name")),
            name: record.name.clone(),
            revision: record.version,
            size_bytes: record.size_bytes,
            allocated_bytes: self.engine.vdisk(record.id).map_or(0, |vdisk| vdisk.stats().mapped.0),
            snapshot_count: record.snapshots.len() as u64,
            labels: Labels(record.labels.clone()),
            deleted_at: Timestamp::from_unix_ms(trash.deleted_ms),
            expires_at: Timestamp::from_unix_ms(trash.expires_ms),
        }
    }

    /// Which vDisk in the trash is meant: by name, the one deleted last.
    async fn resolve_trash(&self, reference: &VdiskRef) -> Result<VdiskId, Problem> {
        match reference {
            VdiskRef::Id(id) => Ok(*id),
            VdiskRef::Name { vpool, name } => {
                let mut found = self.trash_of(Some(vpool), Some(name)).await?;
                found.sort_by_key(|stored| stored.record.trash.map_or(0, |trash| trash.deleted_ms));
                let newest = found.pop().ok_or_else(|| not_found("vDisk in the trash", reference))?;
                Ok(newest.record.id)
            }
        }
    }

    async fn trash_record(&self, id: VdiskId) -> Result<Stored<VdiskRecord>, Problem> {
        let stored = self.record(id).await?;
        match stored.record.trash {
            Some(_) => Ok(stored),
            None => Err(Problem::new(
                ProblemKind::Conflict,
                format!("vDisk {} is not in the trash", stored.record.name),
            )),
        }
    }

    /// Gives a deleted vDisk back, under its old name or a new one.
    pub async fn restore_trash(
        self: &Rc<Self>,
        reference: VdiskRef,
        request: RestoreTrash,
        terms: Terms,
    ) -> Result<ApiVdisk, Problem> {
        let id = self.resolve_trash(&reference).await?;
        let locked = self.lock_vdisk(id).await;
        let vdisk = self.ensure_open_locked(id, &locked).await?;
        let stored = self.trash_record(id).await?;
        terms.check_revision(stored.record.version)?;
        let name = request.name.unwrap_or(stored.record.name.clone());
        let stored = self
            .change(&stored, Some(&vdisk), |record| {
                record.trash = None;
                record.name = name;
            })
            .await?;
        self.apply_settings(&vdisk, &stored.record);
        self.sockets.open(self, &stored.record).await;
        self.publish_vdisk(EventKind::VdiskRestored, &stored.record, |_| {});
        self.show_vdisk(&stored.record).await
    }

    /// Deletes one vDisk in the trash for ever.
    pub async fn delete_trash(&self, reference: VdiskRef, terms: Terms) -> Result<(), Problem> {
        let id = self.resolve_trash(&reference).await?;
        self.purge_from_trash(id, &terms).await
    }

    async fn purge_from_trash(&self, id: VdiskId, terms: &Terms) -> Result<(), Problem> {
        let locked = self.lock_vdisk(id).await;
        self.purge_locked_from_trash(id, terms, &locked).await
    }

    async fn purge_locked_from_trash(
        &self,
        id: VdiskId,
        terms: &Terms,
        locked: &Locked,
    ) -> Result<(), Problem> {
        let stored = self.trash_record(id).await?;
        terms.check_revision(stored.record.version)?;
        self.refuse_protected(&stored.record).await?;
        self.purge(stored, locked).await
    }

    /// Empties the trash, or what a query names of it, as a task.
    pub async fn empty_trash(self: &Rc<Self>, query: TrashQuery) -> Result<Accepted<Task>, Problem> {
        let found = self.trash_of(query.vpool.as_ref(), query.name.as_ref()).await?;
        let about = About {
            kind: "trash.empty",
            subject: None,
            subject_name: query.vpool.map(|name| name.to_string()),
            unit: "vdisks",
        };
        let running = self.tasks.begin(TaskId(self.chance.uuid()), about, self.clock.wall_ms());
        let total = found.len() as u64;
        running.progress(0, Some(total));
        let task = self.tasks.get(running.id)?;
        let volumes = self.clone();
        tokio::task::spawn_local(async move {
            let (mut deleted, mut kept) = (0u64, Vec::new());
            for (done, stored) in (1..).zip(children_first(found)) {
                if running.is_cancelled() || volumes.is_stopping() {
                    break;
                }
                match volumes.purge_from_trash(stored.record.id, &Terms::default()).await {
                    Ok(()) => deleted += 1,
                    // Restored or purged meanwhile: it is not in the trash any more.
                    Err(problem)
                        if matches!(problem.kind(), ProblemKind::NotFound | ProblemKind::Conflict)
                            && volumes.trash_record(stored.record.id).await.is_err() => {}
                    Err(problem) => kept.push(json!({"vdisk": stored.record.id, "reason": problem.detail})),
                }
                running.progress(done, Some(total));
            }
            volumes.finish_task(&running, Ok(json!({"deleted": deleted, "kept": kept})));
        });
        Ok(Accepted(task))
    }

    /// Purges what a vPool has in the trash.
    pub(super) async fn purge_trash_of(&self, vpool: VpoolId) -> Result<(), Problem> {
        let mut found = self.trash_of(None, None).await?;
        found.retain(|stored| stored.record.vpool == vpool);
        for stored in children_first(found) {
            self.purge_from_trash(stored.record.id, &Terms::default()).await?;
        }
        Ok(())
    }

    /// Purges what has been in the trash for long enough.
    pub(super) async fn expire_trash(&self) -> Result<(), Problem> {
        let now_ms = self.clock.wall_ms();
        let mut found = self.trash_of(None, None).await?;
        found.retain(|stored| stored.record.trash.is_some_and(|trash| now_ms >= trash.expires_ms));
        for stored in children_first(found) {
            let id = stored.record.id;
            // What somebody works on is left for the next time: nothing else may wait for it here.
            let Some(locked) = self.try_lock_vdisk(id) else { continue };
            if let Err(problem) = self.purge_locked_from_trash(id, &Terms::default(), &locked).await {
                tracing::warn!(vdisk = %id, %problem, "it stays in the trash for now");
            }
        }
        Ok(())
    }

    /// Ends a task and tells watchers.
    pub(super) fn finish_task(
        &self,
        running: &crate::tasks::Running,
        end: Result<serde_json::Value, Problem>,
    ) {
        let task = running.finish(end, self.clock.wall_ms());
        self.publish(EventKind::TaskState, |event| {
            event.subject = Some(task.uuid.0);
            event.revision = Some(task.revision);
            event.name = task.subject_name.clone();
            event.detail = Some(format!("{} is {:?}", task.kind, task.state).to_lowercase());
        });
    }
}

/// The youngest first: a template's children before the template.
fn children_first(mut found: Vec<Stored<VdiskRecord>>) -> Vec<Stored<VdiskRecord>> {
    found.sort_by_key(|stored| std::cmp::Reverse(stored.record.created_ms));
    found
}
