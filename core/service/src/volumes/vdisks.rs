//! Changing vDisks: rename, resize, policy, rollback, template.
//!
//! Each holds the vDisk's lock from its checks to its event. What may not happen beside a writer (rollback, shrink,
//! template) also freezes the vDisk: no writer gets in until it is done.

use super::{
    Volumes,
    create::snapshot_size,
    idempotency::Terms,
    open::{template_name, to_engine, zero_tail},
    pools::to_on_full,
    problem::{from_busy, from_catalogue, from_volume},
};
use ovs_api::{
    EventKind, Labels, PatchVdisk, Problem, ProblemKind, RollbackVdisk, Vdisk as ApiVdisk, VdiskRef,
};
use ovs_cluster::catalogue::{Pending, Stored, VdiskRecord};
use ovs_units::{ByteCount, CLUSTER_SIZE_BYTES, SnapshotId};
use ovs_volume::Vdisk;
use std::rc::Rc;

impl Volumes {
    /// Renames, resizes, protects or labels a vDisk: all that is asked for, or nothing.
    pub async fn update_vdisk(
        self: &Rc<Self>,
        reference: VdiskRef,
        patch: PatchVdisk,
        terms: Terms,
    ) -> Result<ApiVdisk, Problem> {
        let id = self.resolve(&reference).await?;
        let locked = self.lock_vdisk(id).await;
        let vdisk = self.ensure_open_locked(id, &locked).await?;
        let stored = self.live_record(id).await?;
        terms.check_revision(stored.record.version)?;
        let old = &stored.record;
        let mut new = old.clone();
        new.name = patch.name.unwrap_or(new.name);
        new.protected = patch.protected.unwrap_or(new.protected);
        new.description = patch.description.unwrap_or(new.description);
        new.on_full = patch.on_full.map_or(new.on_full, to_on_full);
        if let Some(timeout_ms) = patch.stall_timeout_ms {
            new.stall_timeout_ms = Some(timeout_ms).filter(|ms| *ms > 0);
        }
        new.limits = patch.limits.patch(new.limits)?;
        new.cache = patch.cache.patch(new.cache)?;
        new.labels = Labels(new.labels).patched(&patch.labels)?.0;
        new.size_bytes = patch.size_bytes.unwrap_or(new.size_bytes);
        if new == *old {
            return self.show_vdisk(old).await;
        }
        let is_shrink = new.size_bytes < old.size_bytes;
        if new.size_bytes != old.size_bytes {
            refuse_template(old, "resized")?;
        }
        if is_shrink && !patch.allow_shrink {
            let allowed =
                format!("at least the present {} bytes, unless allow_shrink is given", old.size_bytes);
            return Err(Problem::field("size_bytes", new.size_bytes, &allowed));
        }
        let _frozen = match is_shrink {
            true => Some(self.freeze(old, "a shrink", patch.attachment)?),
            false => None,
        };
        if is_shrink && !new.size_bytes.is_multiple_of(CLUSTER_SIZE_BYTES) {
            new.pending = Some(Pending::ZeroTail(new.size_bytes));
        }
        let stored = self.apply(&stored, new, &vdisk).await?;
        self.sockets.open(self, &stored.record).await;
        self.publish_changes(old, &stored.record);
        self.show_vdisk(&stored.record).await
    }

    /// The record first, then the engine, then the copy of the record on the backend.
    async fn apply(
        &self,
        stored: &Stored<VdiskRecord>,
        new: VdiskRecord,
        vdisk: &Vdisk,
    ) -> Result<Stored<VdiskRecord>, Problem> {
        let slot = self.slot(new.id);
        // Before the record: an answer to that may be lost.
        slot.unsettle();
        let mut stored = self
            .change(stored, None, |record| *record = VdiskRecord { version: record.version, ..new })
            .await?;
        if vdisk.size() != stored.record.capacity() {
            vdisk.resize(stored.record.capacity()).await.map_err(from_volume)?;
        }
        if let Some(Pending::ZeroTail(from)) = stored.record.pending {
            zero_tail(vdisk, from, stored.record.capacity()).await?;
            stored = self.change(&stored, None, |record| record.pending = None).await?;
        }
        vdisk.set_on_full(to_engine(stored.record.on_full, stored.record.stall_timeout_ms));
        self.apply_settings(vdisk, &stored.record);
        self.push_properties(&stored.record, vdisk).await?;
        slot.settle();
        Ok(stored)
    }

    fn publish_changes(&self, old: &VdiskRecord, new: &VdiskRecord) {
        if new.name != old.name {
            self.publish_vdisk(EventKind::VdiskRenamed, new, |event| {
                event.previous_name = Some(old.name.clone())
            });
        }
        if new.size_bytes != old.size_bytes {
            self.publish_vdisk(EventKind::VdiskResized, new, |event| event.size_bytes = Some(new.size_bytes));
        }
        let rest = VdiskRecord {
            name: old.name.clone(),
            size_bytes: old.size_bytes,
            version: old.version,
            pending: old.pending,
            ..new.clone()
        };
        if rest != *old {
            self.publish_vdisk(EventKind::VdiskUpdated, new, |_| {});
        }
    }

    /// Puts a vDisk back to one of its snapshots; everything written since is lost.
    pub async fn rollback_vdisk(
        &self,
        reference: VdiskRef,
        request: RollbackVdisk,
        terms: Terms,
    ) -> Result<ApiVdisk, Problem> {
        let id = self.resolve(&reference).await?;
        let locked = self.lock_vdisk(id).await;
        let vdisk = self.ensure_open_locked(id, &locked).await?;
        let stored = self.live_record(id).await?;
        terms.check_revision(stored.record.version)?;
        refuse_template(&stored.record, "rolled back")?;
        let snapshot = self.find_snapshot(&stored.record, &vdisk, &request.snapshot)?;
        let _frozen = self.freeze(&stored.record, "a rollback", None)?;
        let size_bytes = snapshot_size(&stored.record, snapshot.id, snapshot.size.0);
        let slot = self.slot(id);
        // The intention is recorded, so that a rollback is whole or (after a crash) done again before anybody writes. The answer to
        // that may be lost, too.
        slot.unsettle();
        let begun = self
            .change(&stored, None, |record| {
                record.pending = Some(Pending::Rollback(snapshot.id));
                record.size_bytes = size_bytes;
            })
            .await?;
        vdisk.rollback(snapshot.id).await.map_err(from_volume)?;
        if vdisk.size() != ByteCount(size_bytes).rounded_up() {
            vdisk.resize(ByteCount(size_bytes).rounded_up()).await.map_err(from_volume)?;
        }
        let done = self.change(&begun, Some(&vdisk), |record| record.pending = None).await?;
        slot.settle();
        self.publish_vdisk(EventKind::VdiskRolledBack, &done.record, |event| {
            event.size_bytes = Some(size_bytes);
            event.detail = Some(format!("to snapshot {}", snapshot.name));
        });
        self.show_vdisk(&done.record).await
    }

    /// Freezes a vDisk: from now on it only has children.
    pub async fn set_template(&self, reference: VdiskRef, terms: Terms) -> Result<ApiVdisk, Problem> {
        let id = self.resolve(&reference).await?;
        let locked = self.lock_vdisk(id).await;
        let vdisk = self.ensure_open_locked(id, &locked).await?;
        let stored = self.live_record(id).await?;
        if stored.record.template.is_some() {
            return self.show_vdisk(&stored.record).await;
        }
        terms.check_revision(stored.record.version)?;
        let _frozen = self.freeze(&stored.record, "making it a template", None)?;
        let snapshot = SnapshotId(self.chance.uuid());
        let slot = self.slot(id);
        slot.unsettle();
        let stored = self.change(&stored, None, |record| record.template = Some(snapshot)).await?;
        vdisk.snapshot(snapshot, template_name(snapshot)).await.map_err(from_volume)?;
        self.push_properties(&stored.record, &vdisk).await?;
        slot.settle();
        self.publish_vdisk(EventKind::VdiskTemplate, &stored.record, |_| {});
        self.show_vdisk(&stored.record).await
    }

    /// Serves a vDisk that is damaged, or offline since the write buffer failed, as it is.
    pub async fn accept_vdisk_loss(&self, reference: VdiskRef, terms: Terms) -> Result<ApiVdisk, Problem> {
        let id = self.resolve(&reference).await?;
        let locked = self.lock_vdisk(id).await;
        let vdisk = self.ensure_open_locked(id, &locked).await?;
        let stored = self.live_record(id).await?;
        terms.check_revision(stored.record.version)?;
        let Some(loss) = vdisk.accept_loss().await.map_err(from_volume)? else {
            let detail = format!(
                "vDisk {} is neither damaged nor offline for a loss: there is nothing to accept",
                stored.record.name
            );
            return Err(Problem::new(ProblemKind::Conflict, detail));
        };
        self.publish_vdisk(EventKind::VdiskState, &stored.record, |event| {
            event.detail = Some(format!("a loss was accepted: {loss}"));
        });
        self.show_vdisk(&stored.record).await
    }

    /// Keeps writers out of a vDisk, or says who writes.
    pub(super) fn freeze(
        &self,
        record: &VdiskRecord,
        why: &'static str,
        asker: Option<uuid::Uuid>,
    ) -> Result<super::attachments::Frozen<'_>, Problem> {
        let frozen = self.attachments.freeze(record.id, why, asker);
        frozen.map_err(|busy| from_busy(&format!("vDisk {}", record.name), busy))
    }

    /// How many clones a vDisk has, in the trash or not.
    pub(super) async fn children(&self, record: &VdiskRecord) -> Result<Vec<uuid::Uuid>, Problem> {
        let prefix = VdiskRecord::children_prefix(record.id);
        let found = self.catalogue.index(&prefix).await.map_err(from_catalogue)?;
        Ok(found.into_iter().map(|(_, uuid)| uuid).collect())
    }
}

pub(super) fn refuse_template(record: &VdiskRecord, what: &str) -> Result<(), Problem> {
    if record.template.is_none() {
        return Ok(());
    }
    let detail = format!("vDisk {} is a template and cannot be {what}", record.name);
    Err(Problem::new(ProblemKind::Conflict, detail))
}
