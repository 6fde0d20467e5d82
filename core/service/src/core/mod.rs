//! The operations of the RPC: one method each, called by `rpc` on any thread, done by [`Volumes`] on the engine thread.
//!
//! A change that has begun there runs to its end even when its client goes away; a wait does not.

mod host;

use crate::{
    engine_thread::{EngineGone, EngineHandle},
    events::Events,
    metrics,
    rpc::RequestContext,
    tasks::Tasks,
    volumes::{Terms, Volumes},
};
use ovs_api::*;
use ovs_units::Name;
use std::{future::Future, rc::Rc, sync::Arc, time::Duration};
use uuid::Uuid;

crate::rpc::serve_operations!(Core);

/// What the RPC calls. Any thread.
#[derive(Clone)]
pub struct Core {
    volumes: EngineHandle<Volumes>,
    events: Arc<Events>,
    tasks: Arc<Tasks>,
    identity: Identity,
}

/// This ovsd, as it shows itself.
#[derive(Debug, Clone)]
pub struct Identity {
    /// This host.
    pub host: Uuid,
    /// Its name.
    pub host_name: String,
    /// When ovsd started, milliseconds since 1970.
    pub started_ms: u64,
}

impl Core {
    /// The operations over the engine thread.
    pub fn new(
        volumes: EngineHandle<Volumes>,
        events: Arc<Events>,
        tasks: Arc<Tasks>,
        identity: Identity,
    ) -> Core {
        Core { volumes, events, tasks, identity }
    }

    async fn run<T, F, Fut>(&self, job: F) -> Result<T, Problem>
    where
        F: FnOnce(Rc<Volumes>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Problem>> + 'static,
        T: Send + 'static,
    {
        self.volumes.run(job).await.map_err(is_stopping)?
    }

    async fn wait<T, F, Fut>(&self, job: F) -> Result<T, Problem>
    where
        F: FnOnce(Rc<Volumes>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Problem>> + 'static,
        T: Send + 'static,
    {
        self.volumes.wait(job).await.map_err(is_stopping)?
    }

    // ---- vPools and backends

    /// Makes a vPool.
    pub async fn create_vpool(
        &self,
        body: CreateVpool,
        context: &RequestContext,
    ) -> Result<Created<Vpool>, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.create_vpool(body, terms).await }).await
    }

    /// The vPools, by name.
    pub async fn list_vpools(&self, query: ListQuery, _: &RequestContext) -> Result<Page<Vpool>, Problem> {
        self.wait(|volumes| async move { volumes.list_vpools(query).await }).await
    }

    /// One vPool.
    pub async fn get_vpool(&self, vpool: Name, _: &RequestContext) -> Result<Vpool, Problem> {
        self.wait(|volumes| async move { volumes.get_vpool(vpool).await }).await
    }

    /// Changes a vPool's settings.
    pub async fn update_vpool(
        &self,
        vpool: Name,
        body: PatchVpool,
        context: &RequestContext,
    ) -> Result<Vpool, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.update_vpool(vpool, body, terms).await }).await
    }

    /// Deletes a vPool without vDisks.
    pub async fn delete_vpool(
        &self,
        vpool: Name,
        query: DeleteVpoolQuery,
        context: &RequestContext,
    ) -> Result<NoContent, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.delete_vpool(vpool, query, terms).await })
            .await
            .map(|()| NoContent)
    }

    /// Takes in what the backend has and we have not.
    pub async fn recover_vpool(&self, vpool: Name, _: &RequestContext) -> Result<Accepted<Task>, Problem> {
        self.run(|volumes| async move { volumes.recover_vpool(vpool).await }).await
    }

    /// Rebuilds a vPool out of its backend alone.
    pub async fn recover_lost_vpool(
        &self,
        body: RecoverVpool,
        _: &RequestContext,
    ) -> Result<Accepted<Task>, Problem> {
        self.run(|volumes| async move { volumes.recover_lost_vpool(body).await }).await
    }

    /// Makes a backend.
    pub async fn create_backend(
        &self,
        body: CreateBackend,
        context: &RequestContext,
    ) -> Result<Created<Backend>, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.create_backend(body, terms).await }).await
    }

    /// What a composite would come to.
    pub async fn plan_backend(
        &self,
        body: CreateBackend,
        _: &RequestContext,
    ) -> Result<BackendPlan, Problem> {
        self.wait(|volumes| async move { volumes.plan_backend(body).await }).await
    }

    /// The backends, by name.
    pub async fn list_backends(
        &self,
        query: ListQuery,
        _: &RequestContext,
    ) -> Result<Page<Backend>, Problem> {
        self.wait(|volumes| async move { volumes.list_backends(query).await }).await
    }

    /// One backend.
    pub async fn get_backend(&self, backend: Name, _: &RequestContext) -> Result<Backend, Problem> {
        self.wait(|volumes| async move { volumes.get_backend(backend).await }).await
    }

    /// Forgets a backend that no vPool uses.
    pub async fn delete_backend(
        &self,
        backend: Name,
        context: &RequestContext,
    ) -> Result<NoContent, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.delete_backend(backend, terms).await })
            .await
            .map(|()| NoContent)
    }

    /// Makes a backend a drive of a composite.
    pub async fn add_drive(
        &self,
        backend: Name,
        body: AddDrive,
        context: &RequestContext,
    ) -> Result<Backend, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.add_drive(backend, body, terms).await }).await
    }

    /// Takes a drive out of a composite.
    pub async fn remove_drive(
        &self,
        backend: Name,
        drive: Name,
        query: RemoveDriveQuery,
        context: &RequestContext,
    ) -> Result<Accepted<Task>, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.remove_drive(backend, drive, query, terms).await }).await
    }

    /// Reads all that is on a composite.
    pub async fn verify_backend(&self, backend: Name, _: &RequestContext) -> Result<Accepted<Task>, Problem> {
        self.run(|volumes| async move { volumes.verify_backend(backend).await }).await
    }

    /// Makes a preset.
    pub async fn create_preset(
        &self,
        body: CreatePreset,
        context: &RequestContext,
    ) -> Result<Created<Preset>, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.create_preset(body, terms).await }).await
    }

    /// The presets, by name.
    pub async fn list_presets(&self, query: ListQuery, _: &RequestContext) -> Result<Page<Preset>, Problem> {
        self.wait(|volumes| async move { volumes.list_presets(query).await }).await
    }

    /// One preset.
    pub async fn get_preset(&self, preset: Name, _: &RequestContext) -> Result<Preset, Problem> {
        self.wait(|volumes| async move { volumes.get_preset(preset).await }).await
    }

    /// Keeps the keys of a preset's objects under another key, or adds one for new objects.
    pub async fn rotate_preset(
        &self,
        preset: Name,
        body: RotatePreset,
        context: &RequestContext,
    ) -> Result<Preset, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.rotate_preset(preset, body, terms).await }).await
    }

    /// Deletes a preset that no backend uses.
    pub async fn delete_preset(&self, preset: Name, context: &RequestContext) -> Result<NoContent, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.delete_preset(preset, terms).await })
            .await
            .map(|()| NoContent)
    }

    // ---- vDisks

    /// Makes a vDisk.
    pub async fn create_vdisk(
        &self,
        body: CreateVdisk,
        context: &RequestContext,
    ) -> Result<Created<Vdisk>, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.create_vdisk(body, terms).await }).await
    }

    /// The vDisks, by vPool and name.
    pub async fn list_vdisks(&self, query: VdiskQuery, _: &RequestContext) -> Result<Page<Vdisk>, Problem> {
        self.wait(|volumes| async move { volumes.list_vdisks(query).await }).await
    }

    /// One vDisk.
    pub async fn get_vdisk(&self, vdisk: VdiskRef, _: &RequestContext) -> Result<Vdisk, Problem> {
        self.run(|volumes| async move { volumes.get_vdisk(vdisk).await }).await
    }

    /// Renames, resizes, protects or labels a vDisk.
    pub async fn update_vdisk(
        &self,
        vdisk: VdiskRef,
        body: PatchVdisk,
        context: &RequestContext,
    ) -> Result<Vdisk, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.update_vdisk(vdisk, body, terms).await }).await
    }

    /// Deletes a vDisk.
    pub async fn delete_vdisk(
        &self,
        vdisk: VdiskRef,
        query: DeleteVdiskQuery,
        context: &RequestContext,
    ) -> Result<NoContent, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.delete_vdisk(vdisk, query, terms).await })
            .await
            .map(|()| NoContent)
    }

    /// Puts a vDisk back to one of its snapshots.
    pub async fn rollback_vdisk(
        &self,
        vdisk: VdiskRef,
        body: RollbackVdisk,
        context: &RequestContext,
    ) -> Result<Vdisk, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.rollback_vdisk(vdisk, body, terms).await }).await
    }

    /// Freezes a vDisk: from now on it only has children.
    pub async fn set_template(&self, vdisk: VdiskRef, context: &RequestContext) -> Result<Vdisk, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.set_template(vdisk, terms).await }).await
    }

    /// Serves a vDisk as it is, whatever it has lost.
    pub async fn accept_vdisk_loss(
        &self,
        vdisk: VdiskRef,
        context: &RequestContext,
    ) -> Result<Vdisk, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.accept_vdisk_loss(vdisk, terms).await }).await
    }

    /// Gives back what nobody needs of a vDisk.
    pub async fn scrub_vdisk(&self, vdisk: VdiskRef, _: &RequestContext) -> Result<Accepted<Task>, Problem> {
        self.run(|volumes| async move { volumes.scrub_vdisk(vdisk).await }).await
    }

    /// Counters of a vDisk.
    pub async fn get_vdisk_stats(&self, vdisk: VdiskRef, _: &RequestContext) -> Result<VdiskStats, Problem> {
        self.run(|volumes| async move { volumes.get_vdisk_stats(vdisk).await }).await
    }

    // ---- snapshots

    /// Takes a snapshot.
    pub async fn create_snapshot(
        &self,
        vdisk: VdiskRef,
        body: CreateSnapshot,
        context: &RequestContext,
    ) -> Result<Created<Snapshot>, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.create_snapshot(vdisk, body, terms).await }).await
    }

    /// A vDisk's snapshots, the oldest first.
    pub async fn list_snapshots(
        &self,
        vdisk: VdiskRef,
        query: ListQuery,
        _: &RequestContext,
    ) -> Result<Page<Snapshot>, Problem> {
        self.run(|volumes| async move { volumes.list_snapshots(vdisk, query).await }).await
    }

    /// One snapshot.
    pub async fn get_snapshot(
        &self,
        vdisk: VdiskRef,
        snapshot: SnapshotRef,
        query: GetSnapshotQuery,
        _: &RequestContext,
    ) -> Result<Snapshot, Problem> {
        self.wait(|volumes| async move { volumes.get_snapshot(vdisk, snapshot, query).await }).await
    }

    /// Deletes a snapshot.
    pub async fn delete_snapshot(
        &self,
        vdisk: VdiskRef,
        snapshot: SnapshotRef,
        context: &RequestContext,
    ) -> Result<NoContent, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.delete_snapshot(vdisk, snapshot, terms).await })
            .await
            .map(|()| NoContent)
    }

    // ---- attachments

    /// Attaches a client to a vDisk.
    pub async fn create_attachment(
        &self,
        body: CreateAttachment,
        _: &RequestContext,
    ) -> Result<Created<Attachment>, Problem> {
        self.run(|volumes| async move { volumes.create_attachment(body).await }).await
    }

    /// The attachments.
    pub async fn list_attachments(
        &self,
        query: AttachmentQuery,
        _: &RequestContext,
    ) -> Result<Page<Attachment>, Problem> {
        self.wait(|volumes| async move { volumes.list_attachments(query).await }).await
    }

    /// One attachment.
    pub async fn get_attachment(&self, attachment: Uuid, _: &RequestContext) -> Result<Attachment, Problem> {
        self.wait(move |volumes| async move { volumes.get_attachment(attachment).await }).await
    }

    /// Ends an attachment.
    pub async fn delete_attachment(
        &self,
        attachment: Uuid,
        query: DeleteAttachmentQuery,
        context: &RequestContext,
    ) -> Result<NoContent, Problem> {
        let terms = terms(context);
        let job = move |volumes: Rc<Volumes>| async move {
            volumes.delete_attachment(attachment, query, terms).await
        };
        self.run(job).await.map(|()| NoContent)
    }

    // ---- trash

    /// Deleted vDisks that can be had back.
    pub async fn list_trash(
        &self,
        query: TrashQuery,
        _: &RequestContext,
    ) -> Result<Page<TrashEntry>, Problem> {
        self.wait(|volumes| async move { volumes.list_trash(query).await }).await
    }

    /// Empties the trash.
    pub async fn empty_trash(
        &self,
        query: TrashQuery,
        _: &RequestContext,
    ) -> Result<Accepted<Task>, Problem> {
        self.run(|volumes| async move { volumes.empty_trash(query).await }).await
    }

    /// Gives a deleted vDisk back.
    pub async fn restore_trash(
        &self,
        vdisk: VdiskRef,
        body: RestoreTrash,
        context: &RequestContext,
    ) -> Result<Vdisk, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.restore_trash(vdisk, body, terms).await }).await
    }

    /// Deletes one vDisk in the trash for ever.
    pub async fn delete_trash(
        &self,
        vdisk: VdiskRef,
        context: &RequestContext,
    ) -> Result<NoContent, Problem> {
        let terms = terms(context);
        self.run(|volumes| async move { volumes.delete_trash(vdisk, terms).await }).await.map(|()| NoContent)
    }

    // ---- tasks, events, metrics

    /// The tasks, the oldest first.
    pub async fn list_tasks(&self, query: TaskQuery, _: &RequestContext) -> Result<Page<Task>, Problem> {
        let tasks = self.tasks.list().into_iter().filter(|(_, task)| {
            query.state.is_none_or(|state| task.state == state)
                && query.subject.is_none_or(|subject| task.subject == Some(subject))
        });
        Page::cut(tasks, query.limit, query.cursor.as_ref())
    }

    /// One task; can wait until it is over.
    pub async fn get_task(
        &self,
        task: TaskId,
        query: GetTaskQuery,
        _: &RequestContext,
    ) -> Result<Task, Problem> {
        match query.wait_ms {
            Some(wait_ms) => self.tasks.wait(task, Duration::from_millis(wait_ms)).await,
            None => self.tasks.get(task),
        }
    }

    /// Asks a task to stop.
    pub async fn cancel_task(&self, task: TaskId, _: &RequestContext) -> Result<Task, Problem> {
        self.tasks.cancel(task)
    }

    /// What happens.
    pub async fn stream_events(&self, context: &RequestContext) -> Result<EventStream, Problem> {
        let at = self.wait(|volumes| async move { Ok(volumes.now()) }).await?;
        let (newest, events) = self.events.follow(context.last_event_id)?;
        Ok(EventStream { newest, at, events })
    }

    /// Counters in the Prometheus text format.
    pub async fn get_metrics(&self, _: &RequestContext) -> Result<MetricsText, Problem> {
        self.wait(|volumes| async move { Ok(MetricsText(metrics::text(&volumes).await)) }).await
    }
}

fn is_stopping(gone: EngineGone) -> Problem {
    Problem::new(ProblemKind::Unavailable, gone.to_string())
}

fn terms(context: &RequestContext) -> Terms {
    Terms {
        if_match: context.if_match,
        idempotency_key: context.idempotency_key.as_ref().map(|key| format!("{}:{key}", context.operation)),
    }
}
