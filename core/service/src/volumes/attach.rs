//! Attaching clients to vDisks, by RPC and by NBD.
//!
//! ```text
//!  POST /v1/attachments ─▶ Holder, in the registry too when persistent ─▶ its UUID names the NBD session
//!  NBD open ─▶ named session: its Holder, or an exclusive one for as long as it is connected
//!          └─▶ anonymous: a shared one for as long as it is connected
//! ```
//!
//! An attachment's generation is raised in large steps, so that the numbers that its NBD connections count up by
//! themselves never reach the next incarnation's.

use super::{
    Volumes,
    attachments::{Busy, Connection, Holder, Stay},
    idempotency::Terms,
    problem::{from_busy, from_catalogue, in_use, not_found},
};
use ovs_api::{
    Attachment, AttachmentMode, AttachmentQuery, CreateAttachment, Created, DeleteAttachmentQuery, Door,
    EventKind, Page, Problem, ProblemKind, Timestamp,
};
use ovs_cluster::catalogue::{AttachmentRecord, CatalogueError, FORMAT, VdiskRecord};
use ovs_nbd::{ClientInfo, OpenError, Peer, PeerProcess};
use ovs_units::{Name, SnapshotId, VdiskId};
use std::{rc::Rc, time::Duration};
use uuid::Uuid;

/// Connection attempts that one incarnation of a client may make: at one a second, half a year.
const GENERATION_STEP: u64 = 1 << 24;
/// An attachment that is not persistent goes when it has not been connected for this long.
const IDLE_MS_MAX: u64 = 60_000;
/// How long a request waits for what a fenced client has in flight.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
/// A fence waits so long for who works on the vDisk.
const FENCE_PATIENCE: Duration = Duration::from_secs(2);
/// Fenced sessions that a vDisk remembers.
pub(super) const FENCED_MAX: usize = 64;

impl Volumes {
    /// Attaches a client; the same client again gets its attachment with a new generation.
    pub async fn create_attachment(&self, request: CreateAttachment) -> Result<Created<Attachment>, Problem> {
        let (id, snapshot) = match &request.snapshot {
            Some(wanted) => {
                let (id, snapshot) = self.resolve_snapshot(&request.vdisk, wanted).await?;
                (id, Some(snapshot))
            }
            None => (self.resolve(&request.vdisk).await?, None),
        };
        // A lock of its own: a rollback or delete that holds the vDisk's must be seen as such, not waited for.
        let _locked = self.locks.lock(format!("attach/{id}")).await;
        let record = self.record_for(id, &request).await?;
        if record.template.is_some() && request.mode.writes() {
            let detail = format!("vDisk {} is a template and cannot be written", record.name);
            return Err(Problem::new(ProblemKind::Conflict, detail));
        }
        let host = request.host.clone().unwrap_or_else(|| self.settings.host_name.clone());
        let known = self.attachments.list(Some(id)).into_iter().find(|holder| {
            holder.stay != Stay::Connection
                && (holder.snapshot, &holder.client, holder.door, &holder.host)
                    == (snapshot, &request.client, request.door, &host)
        });
        if let Some(known) = &known
            && known.mode != request.mode
        {
            let detail = format!("{known} is attached in mode {:?}", known.mode).to_lowercase();
            return Err(Problem::new(ProblemKind::Conflict, detail).with("uuid", known.uuid.to_string()));
        }
        let is_new = known.is_none();
        if let Some(had) = request.uuid {
            let is_it = known.as_ref().map_or_else(|| self.was_lost(had, &record), |known| known.uuid == had);
            if !is_it {
                return Err(not_found("attachment", had));
            }
        }
        let holder = match known {
            Some(known) => Holder {
                generation: (known.generation / GENERATION_STEP + 1) * GENERATION_STEP,
                revision: known.revision + 1,
                write_through: request.write_through,
                stay: if request.persistent { Stay::Persistent } else { known.stay },
                ..known
            },
            None => Holder {
                uuid: request.uuid.unwrap_or_else(|| self.chance.uuid()),
                vdisk: id,
                snapshot,
                client: request.client,
                door: request.door,
                host,
                mode: request.mode,
                generation: GENERATION_STEP,
                write_through: request.write_through,
                stay: if request.persistent { Stay::Persistent } else { Stay::WhileUsed },
                revision: 1,
                since_ms: self.clock.wall_ms(),
            },
        };
        self.attachments
            .attach(holder.clone())
            .map_err(|busy| from_busy(&format!("vDisk {}", record.name), busy))?;
        // What the client's predecessor left on the wire is fenced: it ends before the new generation is told.
        self.end_connections(&holder).await?;
        if let Err(problem) = self.keep_attachment(&holder).await {
            if is_new {
                self.attachments.detach(holder.uuid);
            }
            return Err(problem);
        }
        let kind = if is_new { EventKind::AttachmentCreated } else { EventKind::AttachmentUpdated };
        self.publish_attachment(kind, &record, &holder);
        Ok(Created { value: self.show_attachment(&holder).await?, is_new })
    }

    /// The vDisk's record. One that a rebuilt registry does not have may still come, for who was attached to it before.
    async fn record_for(&self, id: VdiskId, request: &CreateAttachment) -> Result<VdiskRecord, Problem> {
        match self.live_record(id).await {
            Ok(stored) => Ok(stored.record),
            Err(problem)
                if problem.kind() == ProblemKind::NotFound
                    && request.uuid.is_some()
                    && (self.is_rebuilt.get() || !self.is_all_known()) =>
            {
                Err(Problem::new(ProblemKind::Unavailable, format!("{}, so far", problem.detail)))
            }
            Err(problem) => Err(problem),
        }
    }

    /// Whether an attachment that is not known may have gone with the registry. Fences did not: they are in the vDisk's
    /// properties too.
    fn was_lost(&self, uuid: Uuid, record: &VdiskRecord) -> bool {
        self.is_rebuilt.get() && !record.fenced.contains(&uuid) && self.attachments.find(uuid).is_none()
    }

    /// Writes a persistent attachment to the registry.
    async fn keep_attachment(&self, holder: &Holder) -> Result<(), Problem> {
        if holder.stay != Stay::Persistent {
            return Ok(());
        }
        let record = AttachmentRecord {
            format: FORMAT,
            uuid: holder.uuid,
            version: holder.revision,
            vdisk: holder.vdisk,
            holder: serde_json::to_value(holder)
                .map_err(|error| Problem::new(ProblemKind::Internal, format!("an attachment: {error}")))?,
        };
        match self.catalogue.find::<AttachmentRecord>(holder.uuid).await.map_err(from_catalogue)? {
            Some(stored) => self.catalogue.update(&stored, record).await,
            None => self.catalogue.insert(record).await,
        }
        .map(drop)
        .map_err(from_catalogue)
    }

    /// Takes the persistent attachments from the registry: before any door opens.
    pub(super) async fn load_attachments(&self) -> Result<(), Problem> {
        let log = |error: CatalogueError| tracing::error!(%error, "an attachment cannot be read");
        for stored in self.catalogue.all::<AttachmentRecord>(log).await.map_err(from_catalogue)? {
            match serde_json::from_value::<Holder>(stored.record.holder.clone()) {
                Ok(holder) if self.live_record(holder.vdisk).await.is_ok() => {
                    if let Err(busy) = self.attachments.attach(holder) {
                        tracing::error!(attachment = %stored.record.uuid, ?busy, "an attachment is in another's way");
                    }
                }
                Ok(_) => {
                    tracing::warn!(attachment = %stored.record.uuid, "an attachment of a vDisk that is gone goes");
                    self.catalogue.remove(&stored).await.map_err(from_catalogue)?;
                }
                Err(error) => {
                    tracing::error!(attachment = %stored.record.uuid, %error, "an attachment cannot be read")
                }
            }
        }
        Ok(())
    }

    /// The attachments, the oldest first.
    pub async fn list_attachments(&self, query: AttachmentQuery) -> Result<Page<Attachment>, Problem> {
        let vdisk = match &query.vdisk {
            Some(reference) => Some(self.resolve(reference).await?),
            None => None,
        };
        let mut holders = self.attachments.list(vdisk);
        holders.retain(|holder| {
            query.client.as_ref().is_none_or(|client| holder.client == *client)
                && query.door.is_none_or(|door| holder.door == door)
                && query.host.as_ref().is_none_or(|host| holder.host == *host)
        });
        let mut items: Vec<(String, Holder)> = holders
            .into_iter()
            .map(|holder| (format!("{:020}/{}", holder.since_ms, holder.uuid), holder))
            .collect();
        items.sort_by(|one, other| one.0.cmp(&other.0));
        let page = Page::cut(items, query.limit, query.cursor.as_ref())?;
        let mut shown = Vec::new();
        for holder in &page.items {
            shown.push(self.show_attachment(holder).await?);
        }
        Ok(Page { items: shown, next_cursor: page.next_cursor })
    }

    /// One attachment.
    pub async fn get_attachment(&self, uuid: Uuid) -> Result<Attachment, Problem> {
        let holder = self.attachments.find(uuid).ok_or_else(|| not_found("attachment", uuid))?;
        self.show_attachment(&holder).await
    }

    /// Ends an attachment. With `force` its client is fenced first: its connections end, and it never comes back under
    /// this attachment.
    pub async fn delete_attachment(
        &self,
        uuid: Uuid,
        query: DeleteAttachmentQuery,
        terms: Terms,
    ) -> Result<(), Problem> {
        let holder = self.attachments.find(uuid).ok_or_else(|| not_found("attachment", uuid))?;
        terms.check_revision(holder.revision)?;
        if query.force {
            self.fence(&holder).await?;
        } else if self.attachments.connection_count(uuid) > 0 {
            return Err(in_use("the attachment is connected, and", &[holder]));
        }
        self.drop_attachment(uuid).await;
        Ok(())
    }

    /// Fences a client: first the vDisk remembers (a reconnect is refused from here on, over restarts too), then its
    /// connections end and what they had in flight with them.
    async fn fence(&self, holder: &Holder) -> Result<(), Problem> {
        {
            // A change of the vDisk that takes long, or an opening that waits for its backend, must not keep a client in: what the record
            // is by then is found out again, and the change asks again.
            let _locked = tokio::select! {
                biased;
                locked = self.lock_vdisk(holder.vdisk) => Some(locked),
                () = self.clock.sleep(FENCE_PATIENCE) => None,
            };
            let stored = self.record(holder.vdisk).await?;
            self.change(&stored, None, |record| {
                record.generation += 1;
                record.fenced.push(holder.uuid);
                let surplus = record.fenced.len().saturating_sub(FENCED_MAX);
                record.fenced.drain(..surplus);
            })
            .await?;
            if let Some(vdisk) = self.engine.vdisk(holder.vdisk) {
                let stored = self.record(holder.vdisk).await?;
                if let Err(problem) = self.push_properties(&stored.record, &vdisk).await {
                    tracing::warn!(vdisk = %holder.vdisk, %problem, "the fence is in the registry alone for now");
                }
            }
        }
        self.end_connections(holder).await
    }

    /// Ends a holder's connections. While something that it asked for is still under way (a write that waits for room),
    /// the holder stays: nobody else gets in before that is done.
    async fn end_connections(&self, holder: &Holder) -> Result<(), Problem> {
        tokio::select! {
            () = self.attachments.kill(holder.uuid) => Ok(()),
            () = self.clock.sleep(DRAIN_PATIENCE) => {
                let detail = format!("{holder} is fenced, and what it asked for before is still under way: try again");
                Err(Problem::new(ProblemKind::Unavailable, detail))
            }
        }
    }

    /// Forgets an attachment that is not connected any more.
    pub(super) async fn drop_attachment(&self, uuid: Uuid) {
        let Some(holder) = self.attachments.detach(uuid) else { return };
        if holder.stay == Stay::Persistent {
            let removed = async {
                match self.catalogue.find::<AttachmentRecord>(uuid).await? {
                    Some(stored) => self.catalogue.remove(&stored).await,
                    None => Ok(()),
                }
            };
            if let Err(error) = removed.await {
                tracing::error!(attachment = %uuid, %error, "an attachment is still in the registry");
            }
        }
        if let Ok(stored) = self.record(holder.vdisk).await {
            self.publish_attachment(EventKind::AttachmentDeleted, &stored.record, &holder);
        }
    }

    /// Forgets those that are not persistent and were not connected for a while.
    pub(super) async fn drop_idle_attachments(&self) {
        for holder in self.attachments.take_idle(self.clock.wall_ms(), IDLE_MS_MAX) {
            tracing::info!(attachment = %holder.uuid, vdisk = %holder.vdisk, "an attachment was not connected and goes");
            if let Ok(stored) = self.record(holder.vdisk).await {
                self.publish_attachment(EventKind::AttachmentDeleted, &stored.record, &holder);
            }
        }
    }

    fn publish_attachment(&self, kind: EventKind, record: &VdiskRecord, holder: &Holder) {
        let vpool = self.vpool_name(record.vpool);
        self.publish(kind, |event| {
            event.subject = Some(holder.uuid);
            event.vdisk = Some(record.id.0);
            event.vpool = vpool;
            event.name = Some(record.name.to_string());
            event.revision = Some(holder.revision);
            event.detail = Some(holder.to_string());
        });
    }

    async fn show_attachment(&self, holder: &Holder) -> Result<Attachment, Problem> {
        let unknown = || Name::new("unknown").expect("a name");
        let record = self.record(holder.vdisk).await.ok().map(|stored| stored.record);
        Ok(Attachment {
            uuid: holder.uuid,
            revision: holder.revision,
            vdisk: holder.vdisk,
            vpool: record.as_ref().and_then(|record| self.vpool_name(record.vpool)).unwrap_or_else(unknown),
            vdisk_name: record.map_or_else(unknown, |record| record.name),
            snapshot: holder.snapshot,
            client: holder.client.clone(),
            door: holder.door,
            host: holder.host.clone(),
            mode: holder.mode,
            generation: holder.generation,
            write_through: holder.write_through,
            persistent: holder.stay == Stay::Persistent,
            connection_count: self.attachments.connection_count(holder.uuid) as u64,
            created_at: Timestamp::from_unix_ms(holder.since_ms),
        })
    }

    /// Lets an NBD client in: with the attachment that its session names, or one that lasts as long as its connection.
    /// The vDisk's record is passed as it is now, and nothing is awaited between that and the decision.
    pub(crate) fn admit_nbd(
        &self,
        record: &VdiskRecord,
        snapshot: Option<SnapshotId>,
        client: &ClientInfo,
    ) -> Result<(Holder, Rc<Connection>), OpenError> {
        if self.is_stopping() {
            return Err(OpenError::Unavailable("ovsd is stopping".into()));
        }
        let reads_only = snapshot.is_some() || record.template.is_some();
        let holder = match &client.session {
            None => self.passing_holder(
                record,
                snapshot,
                self.chance.uuid(),
                reads_only,
                AttachmentMode::Shared,
                client,
            ),
            Some(session) => {
                let uuid = session.id.0;
                if record.fenced.contains(&uuid) {
                    return Err(OpenError::Denied(format!("session {uuid} was fenced")));
                }
                match self.attachments.find(uuid) {
                    Some(holder) if (holder.vdisk, holder.snapshot) != (record.id, snapshot) => {
                        return Err(OpenError::Denied(format!("attachment {uuid} is of something else")));
                    }
                    Some(holder) if session.generation.0 < holder.generation => {
                        let newer = holder.generation;
                        return Err(OpenError::Denied(format!(
                            "session {uuid} was fenced by generation {newer}"
                        )));
                    }
                    Some(holder) => holder,
                    None => self.passing_holder(
                        record,
                        snapshot,
                        uuid,
                        reads_only,
                        AttachmentMode::Exclusive,
                        client,
                    ),
                }
            }
        };
        // Whoever comes from elsewhere does not lose power when we do: what it was told is written must be on stable
        // storage, whatever the attachment was made for (docs/failure-model.md).
        let write_through = holder.write_through || matches!(client.peer, Some(Peer::Remote(_)));
        let holder = Holder { write_through, ..holder };
        let uuid = holder.uuid;
        let what = format!("vDisk {}", record.name);
        self.attachments.attach(holder.clone()).map_err(|busy| match busy {
            Busy::Holders(_) | Busy::Frozen(_) => OpenError::Unavailable(from_busy(&what, busy).detail),
        })?;
        let connection =
            self.attachments.connect(uuid).ok_or_else(|| OpenError::Unavailable("it went".into()))?;
        if holder.stay == Stay::Connection && self.attachments.connection_count(uuid) == 1 {
            self.publish_attachment(EventKind::AttachmentCreated, record, &holder);
        }
        Ok((holder, connection))
    }

    fn passing_holder(
        &self,
        record: &VdiskRecord,
        snapshot: Option<SnapshotId>,
        uuid: Uuid,
        reads_only: bool,
        mode: AttachmentMode,
        client: &ClientInfo,
    ) -> Holder {
        let here = self.settings.host_name.clone();
        let (client, host) = match client.peer {
            Some(Peer::Process(PeerProcess { uid, pid: Some(pid), .. })) => {
                (format!("process {pid} of user {uid}"), here)
            }
            Some(Peer::Process(PeerProcess { uid, pid: None, .. })) => {
                (format!("a process of user {uid}"), here)
            }
            Some(Peer::Remote(address)) => (format!("NBD client at {address}"), address.ip().to_string()),
            None => ("an NBD client".to_owned(), here),
        };
        Holder {
            uuid,
            vdisk: record.id,
            snapshot,
            client,
            door: Door::Nbd,
            host,
            mode: if reads_only { AttachmentMode::ReadOnly } else { mode },
            generation: 0,
            write_through: false,
            stay: Stay::Connection,
            revision: 1,
            since_ms: self.clock.wall_ms(),
        }
    }

    /// An NBD connection has ended; everything of it is done.
    pub(crate) async fn release_nbd(&self, vdisk: VdiskId, uuid: Uuid, connection: &Rc<Connection>) {
        if let Some(holder) = self.attachments.disconnect(uuid, connection, self.clock.wall_ms())
            && let Ok(stored) = self.record(vdisk).await
        {
            self.publish_attachment(EventKind::AttachmentDeleted, &stored.record, &holder);
        }
    }
}
