//! Snapshots: the record names it first, then the engine takes it. One that the record names and the engine does not
//! have (a crash in between) goes from the record when the vDisk is next opened.

use super::{
    Volumes,
    idempotency::Terms,
    open::shown_snapshots,
    problem::{from_volume, in_use},
    vdisks::refuse_template,
};
use ovs_api::{
    CreateSnapshot, Created, EventKind, GetSnapshotQuery, Problem, ProblemKind, Snapshot, SnapshotRef,
    VdiskRef,
};
use ovs_cluster::catalogue::{SnapshotRecord, VdiskRecord};
use ovs_units::{Name, SnapshotId, VdiskId};
use ovs_volume::{SnapshotInfo, Vdisk};
use serde_json::json;
use std::{rc::Rc, time::Duration};

/// A request for a snapshot that waits, waits for this long unless it says otherwise.
const WAIT_DEFAULT: Duration = Duration::from_secs(60);

impl Volumes {
    /// Takes a snapshot; it holds every write acknowledged before.
    pub async fn create_snapshot(
        self: &Rc<Self>,
        reference: VdiskRef,
        request: CreateSnapshot,
        terms: Terms,
    ) -> Result<Created<Snapshot>, Problem> {
        let id = self.resolve(&reference).await?;
        let locked = self.lock_vdisk(id).await;
        let vdisk = self.ensure_open_locked(id, &locked).await?;
        let stored = self.live_record(id).await?;
        let known = shown_snapshots(&stored.record, &vdisk)
            .into_iter()
            .find(|snapshot| snapshot.name == request.name);
        let asked = json!({"vdisk": id, "request": request});
        let is_there = async |object| Ok(stored.record.snapshots.contains_key(&SnapshotId(object)));
        if let Some(made) = self.idempotent_if(&terms, &asked, "snapshot", is_there).await? {
            let made = self.find_snapshot(&stored.record, &vdisk, &SnapshotRef::Id(SnapshotId(made)))?;
            return Ok(Created::existing(self.show_snapshot(&stored.record, &made)));
        }
        if let Some(known) = known {
            return self.same_snapshot(&stored.record, &known, &request).map(Created::existing);
        }
        terms.check_revision(stored.record.version)?;
        refuse_template(&stored.record, "snapshotted")?;
        if request.name.as_str().starts_with(super::create::CLONE_SNAPSHOT_PREFIX) {
            return Err(Problem::field("name", &request.name, "a name that does not begin with ovs-clone-"));
        }
        let snapshot = SnapshotId(self.chance.uuid());
        let made = SnapshotRecord {
            name: request.name.clone(),
            size_bytes: stored.record.size_bytes,
            description: request.description,
            labels: request.labels.0,
            version: 1,
        };
        let named = self
            .change(&stored, Some(&vdisk), |record| drop(record.snapshots.insert(snapshot, made)))
            .await?;
        let taken = match vdisk.snapshot(snapshot, request.name).await {
            Ok(taken) => taken,
            Err(error) => {
                // Taken or not is not known here: the next opening looks and makes the record say so.
                self.slot(id).unsettle();
                return Err(from_volume(error));
            }
        };
        self.remember(&terms, &asked, snapshot.0).await?;
        self.publish_snapshot(EventKind::SnapshotCreated, &named.record, snapshot, taken.name.clone());
        self.tell_when_on_backend(named.record.clone(), vdisk.clone(), &taken);
        Ok(Created::new(self.show_snapshot(&named.record, &taken)))
    }

    fn same_snapshot(
        &self,
        record: &VdiskRecord,
        known: &SnapshotInfo,
        request: &CreateSnapshot,
    ) -> Result<Snapshot, Problem> {
        let is_same = record.snapshots.get(&known.id).is_some_and(|snapshot| {
            snapshot.description == request.description && snapshot.labels == request.labels.0
        });
        if is_same {
            return Ok(self.show_snapshot(record, known));
        }
        let detail =
            format!("snapshot {}@{} exists, and was made by a different request", record.name, known.name);
        Err(Problem::new(ProblemKind::Exists, detail).with("uuid", known.id.to_string()))
    }

    fn tell_when_on_backend(self: &Rc<Self>, record: VdiskRecord, vdisk: Vdisk, snapshot: &SnapshotInfo) {
        let (volumes, id, name) = (Rc::downgrade(self), snapshot.id, snapshot.name.clone());
        tokio::task::spawn_local(async move {
            let is_there = vdisk.wait_on_backend(id).await.is_ok();
            if let Some(volumes) = volumes.upgrade().filter(|_| is_there) {
                volumes.publish_snapshot(EventKind::SnapshotOnBackend, &record, id, name);
            }
        });
    }

    fn publish_snapshot(&self, kind: EventKind, record: &VdiskRecord, snapshot: SnapshotId, name: Name) {
        let vpool = self.vpool_name(record.vpool);
        self.publish(kind, |event| {
            event.subject = Some(snapshot.0);
            event.vdisk = Some(record.id.0);
            event.vpool = vpool;
            event.name = Some(name.to_string());
            event.revision = Some(1);
        });
    }

    /// One snapshot; waits until all of it is on the backend, if asked to.
    pub async fn get_snapshot(
        &self,
        reference: VdiskRef,
        wanted: SnapshotRef,
        query: GetSnapshotQuery,
    ) -> Result<Snapshot, Problem> {
        let id = self.resolve(&reference).await?;
        let vdisk = self.ensure_open(id).await?;
        let record = self.live_record(id).await?.record;
        let found = self.find_snapshot(&record, &vdisk, &wanted)?;
        if query.wait.is_none() || found.on_backend {
            return Ok(self.show_snapshot(&record, &found));
        }
        let patience = query.wait_ms.map_or(WAIT_DEFAULT, Duration::from_millis);
        tokio::select! {
            done = vdisk.wait_on_backend(found.id) => done.map_err(from_volume)?,
            () = self.clock.sleep(patience) => {}
        }
        let record = self.live_record(id).await?.record;
        let found = self.find_snapshot(&record, &vdisk, &SnapshotRef::Id(found.id))?;
        Ok(self.show_snapshot(&record, &found))
    }

    /// Deletes a snapshot; with clones it is hidden until the last of them goes.
    pub async fn delete_snapshot(
        &self,
        reference: VdiskRef,
        wanted: SnapshotRef,
        terms: Terms,
    ) -> Result<(), Problem> {
        let id = self.resolve(&reference).await?;
        let locked = self.lock_vdisk(id).await;
        let vdisk = self.ensure_open_locked(id, &locked).await?;
        let stored = self.live_record(id).await?;
        let found = self.find_snapshot(&stored.record, &vdisk, &wanted)?;
        terms
            .check_revision(stored.record.snapshots.get(&found.id).map_or(1, |snapshot| snapshot.version))?;
        let readers = self.attachments.snapshot_readers(found.id);
        if !readers.is_empty() {
            return Err(in_use(&format!("snapshot {}@{}", stored.record.name, found.name), &readers));
        }
        // The engine first: a record that names a snapshot which is gone forgets it when the vDisk is next opened.
        vdisk.delete_snapshot(found.id).await.map_err(from_volume)?;
        let stored =
            self.change(&stored, Some(&vdisk), |record| drop(record.snapshots.remove(&found.id))).await?;
        self.object_gone(found.id.0).await;
        self.publish_snapshot(EventKind::SnapshotDeleted, &stored.record, found.id, found.name);
        Ok(())
    }

    /// The snapshot with this name, for a door.
    pub(crate) async fn snapshot_named(
        &self,
        id: VdiskId,
        name: &Name,
    ) -> Result<(Vdisk, VdiskRecord, SnapshotInfo), Problem> {
        let vdisk = self.ensure_open(id).await?;
        let record = self.live_record(id).await?.record;
        let found = self.find_snapshot(&record, &vdisk, &SnapshotRef::Name(name.clone()))?;
        Ok((vdisk, record, found))
    }
}
