//! ovsd, as this process asks it: with patience, since it may be restarting, and with errors as errnos.
//!
//! Every change asked for here can be asked for twice: a resize and a rename name the outcome, a create compares with
//! the stored request, a delete that finds nothing the second time has been done. So a broken connection means: again.

use crate::errno;
use fuser::Errno;
use ovs_api::{
    ApiError, Attachment, AttachmentMode, AttachmentQuery, Client, CreateAttachment, CreateVdisk,
    DeleteAttachmentQuery, DeleteVdiskQuery, Door, Events, Labels, ListQuery, PatchVdisk, Paths, ProblemKind,
    Vdisk, VdiskQuery, VdiskRef, Vpool,
};
use ovs_units::{Name, VdiskId};
use std::{future::Future, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

/// How long a name that is not known waits for an ovsd that is away: not for ever, or every typing error would.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(10);

/// How long stat(2) and statfs(2) wait before they answer with what is known.
const GLANCE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the end of an attachment is insisted on; what is left over is swept up at the next sync.
const DETACH_PATIENCE: Duration = Duration::from_secs(10);

/// How long ovsd may take to see that a connection is closed, and how often to ask.
const HANG_UP_GRACE: Duration = Duration::from_secs(2);
const HANG_UP_POLL: Duration = Duration::from_millis(20);

/// Between two attempts after a broken connection.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Items per page of a list.
const PAGE_LIMIT: u32 = 500;

/// The door to ovsd.
#[derive(Debug)]
pub struct Rpc {
    client: Client,
    paths: Paths,
    patience: Option<Duration>,
    host: String,
}

impl Rpc {
    /// For the ovsd of `paths`. I/O waits for it for so long, for ever with `None`.
    pub fn new(paths: Paths, patience: Option<Duration>, host: String) -> Rpc {
        let client = Client::new(paths.socket()).patience(patience.unwrap_or(Duration::MAX));
        Rpc { client, paths, patience, host }
    }

    /// Where everything is.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// How long I/O waits for ovsd; for ever with `None`.
    pub fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// All vPools.
    pub async fn vpools(&self) -> Result<Vec<Vpool>, ApiError> {
        let mut vpools = Vec::new();
        let mut query = ListQuery { limit: Some(PAGE_LIMIT), cursor: None };
        loop {
            let page = self.impatient().list_vpools(&query).await?;
            vpools.extend(page.items);
            match page.next_cursor {
                Some(cursor) => query.cursor = Some(cursor),
                None => return Ok(vpools),
            }
        }
    }

    /// All vDisks of a vPool.
    pub async fn vdisks(&self, vpool: &Name) -> Result<Vec<Vdisk>, ApiError> {
        let mut vdisks = Vec::new();
        let mut query =
            VdiskQuery { vpool: Some(vpool.clone()), limit: Some(PAGE_LIMIT), ..VdiskQuery::default() };
        loop {
            let page = self.impatient().list_vdisks(&query).await?;
            vdisks.extend(page.items);
            match page.next_cursor {
                Some(cursor) => query.cursor = Some(cursor),
                None => return Ok(vdisks),
            }
        }
    }

    /// One vDisk for the sync; `None` when there is none.
    pub async fn vdisk_now(&self, id: VdiskId) -> Result<Option<Vdisk>, ApiError> {
        found(self.impatient().get_vdisk(&VdiskRef::Id(id)).await)
    }

    /// What happens from now on.
    pub async fn events(&self) -> Result<Events, ApiError> {
        self.impatient().events(None).await
    }

    /// One vDisk.
    pub async fn vdisk(&self, id: VdiskId) -> Result<Vdisk, Errno> {
        self.client.get_vdisk(&VdiskRef::Id(id)).await.map_err(|error| refused(&error))
    }

    /// One vDisk, or `None` when ovsd cannot say now; `ENOENT` when there is none.
    pub async fn vdisk_if_reachable(&self, id: VdiskId) -> Result<Option<Vdisk>, Errno> {
        match timeout(GLANCE_TIMEOUT, self.impatient().get_vdisk(&VdiskRef::Id(id))).await {
            Ok(Ok(vdisk)) => Ok(Some(vdisk)),
            Ok(Err(error)) if error.is(ProblemKind::NotFound) => Err(Errno::ENOENT),
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// The vDisk of a name; `None` when there is none.
    pub async fn vdisk_named(&self, vpool: &Name, name: &Name) -> Result<Option<Vdisk>, Errno> {
        let patience = self.patience.unwrap_or(LOOKUP_PATIENCE).min(LOOKUP_PATIENCE);
        let vdisk = VdiskRef::Name { vpool: vpool.clone(), name: name.clone() };
        let answer = self.client.clone().patience(patience).get_vdisk(&vdisk).await;
        found(answer).map_err(|error| refused(&error))
    }

    /// A vPool's space.
    pub async fn vpool(&self, vpool: &Name) -> Result<Vpool, Errno> {
        let answer = timeout(GLANCE_TIMEOUT, self.impatient().get_vpool(vpool)).await;
        answer.map_err(|_| Errno::EIO)?.map_err(|error| refused(&error))
    }

    /// Makes an empty vDisk.
    pub async fn create(&self, vpool: &Name, name: &Name, labels: Labels) -> Result<Vdisk, Errno> {
        let request = CreateVdisk {
            size_bytes: Some(0),
            byte_exact: true,
            labels,
            ..CreateVdisk::new(vpool.clone(), name.clone())
        };
        let created = self.insist(|_| self.client.create_vdisk(&request)).await;
        created.map(|created| created.value).map_err(|error| refused(&error))
    }

    /// Renames, resizes or labels a vDisk.
    pub async fn update(&self, id: VdiskId, patch: PatchVdisk) -> Result<Vdisk, Errno> {
        let id = VdiskRef::Id(id);
        self.insist(|_| self.client.update_vdisk(&id, &patch)).await.map_err(|error| refused(&error))
    }

    /// Deletes a vDisk, to the trash where there is one.
    pub async fn delete(&self, id: VdiskId) -> Result<(), Errno> {
        let (id, query) = (VdiskRef::Id(id), DeleteVdiskQuery::default());
        let deleted = self.insist(|is_again| {
            let call = self.client.delete_vdisk(&id, &query);
            async move {
                match call.await {
                    Err(error) if is_again && error.is(ProblemKind::NotFound) => Ok(()),
                    answer => answer.map(|_| ()),
                }
            }
        });
        deleted.await.map_err(|error| refused(&error))
    }

    /// Attaches this host's files to a vDisk. What an earlier attachment left on the wire is fenced.
    pub async fn attach(&self, id: VdiskId, mode: AttachmentMode) -> Result<Attachment, Errno> {
        let request = CreateAttachment {
            vdisk: VdiskRef::Id(id),
            snapshot: None,
            client: self.client_name(mode),
            door: Door::Fuse,
            mode,
            host: None,
            write_through: false,
            // It must outlast a restart of ovsd: nobody else may slip in before our client has reconnected.
            persistent: true,
            uuid: None,
        };
        let attached = self.insist(|_| self.client.create_attachment(&request)).await;
        attached.map(|attached| attached.value).map_err(|error| refused(&error))
    }

    /// Ends an attachment of ours whose client is closed. What does not work now is done by the next sync.
    pub async fn detach(&self, attachment: Uuid) {
        let client = self.client.clone().patience(DETACH_PATIENCE);
        let since = Instant::now();
        loop {
            // ovsd may not have seen yet that the connection is closed. Force is kept for one that stays: it is
            // remembered for ever as fenced.
            let force = since.elapsed() >= HANG_UP_GRACE;
            match client.delete_attachment(&attachment, &DeleteAttachmentQuery { force }).await {
                Err(error) if error.is(ProblemKind::InUse) && !force => {}
                Err(error) if !error.is(ProblemKind::NotFound) => {
                    tracing::warn!(%attachment, %error, "an attachment was not given back yet");
                    return;
                }
                Ok(_) | Err(_) => return,
            }
            sleep(HANG_UP_POLL).await;
        }
    }

    /// Every attachment that our files go by.
    pub async fn own_attachments(&self) -> Result<Vec<Attachment>, ApiError> {
        let mut own = Vec::new();
        for mode in [AttachmentMode::Exclusive, AttachmentMode::ReadOnly] {
            own.extend(self.attachments_of(self.client_name(mode), Door::Fuse).await?);
        }
        Ok(own)
    }

    /// Every attachment that our kernel devices go by.
    pub async fn device_attachments(&self) -> Result<Vec<Attachment>, ApiError> {
        self.attachments_of(self.device_client_name(), Door::Nbd).await
    }

    /// One attachment; `None` when it has ended.
    pub async fn attachment(&self, uuid: Uuid) -> Result<Option<Attachment>, ApiError> {
        found(self.impatient().get_attachment(&uuid).await)
    }

    /// Attaches this host's kernel to a vDisk, or gives the attachment that it has the next generation: with `had` this one
    /// and no other. Once: who reconnects looks at the device before it tries again.
    pub async fn attach_device(&self, id: VdiskId, had: Option<Uuid>) -> Result<Attachment, ApiError> {
        let request = CreateAttachment {
            vdisk: VdiskRef::Id(id),
            snapshot: None,
            client: self.device_client_name(),
            door: Door::Nbd,
            mode: AttachmentMode::Exclusive,
            host: None,
            write_through: false,
            // Over a restart of ovsd, and of this process.
            persistent: true,
            uuid: had,
        };
        Ok(self.impatient().create_attachment(&request).await?.value)
    }

    async fn attachments_of(&self, client: String, door: Door) -> Result<Vec<Attachment>, ApiError> {
        let mut found = Vec::new();
        let mut query = AttachmentQuery {
            client: Some(client),
            door: Some(door),
            limit: Some(PAGE_LIMIT),
            ..AttachmentQuery::default()
        };
        loop {
            let page = self.impatient().list_attachments(&query).await?;
            found.extend(page.items);
            match page.next_cursor {
                Some(cursor) => query.cursor = Some(cursor),
                None => return Ok(found),
            }
        }
    }

    /// Readers and the writer have a name each: the same client of the same vDisk would get the same attachment again.
    fn client_name(&self, mode: AttachmentMode) -> String {
        match mode {
            AttachmentMode::ReadOnly => format!("edge-reader@{}", self.host),
            _ => format!("edge@{}", self.host),
        }
    }

    fn device_client_name(&self) -> String {
        format!("edge-device@{}", self.host)
    }

    fn impatient(&self) -> Client {
        self.client.clone().patience(Duration::ZERO)
    }

    /// Calls until there is an answer, within the patience; the call is told whether it is a repetition.
    async fn insist<T, F>(&self, mut call: impl FnMut(bool) -> F) -> Result<T, ApiError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let since = Instant::now();
        let mut is_again = false;
        loop {
            match call(is_again).await {
                Err(ApiError::Broken { .. } | ApiError::TimedOut { .. })
                    if self.patience.is_none_or(|patience| since.elapsed() < patience) => {}
                answer => return answer,
            }
            is_again = true;
            sleep(RETRY_DELAY).await;
        }
    }
}

fn found<T>(answer: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is(ProblemKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The errno of a call that failed; logged where a person should look.
fn refused(error: &ApiError) -> Errno {
    match error.problem() {
        Some(problem) => {
            let errno = errno::of_problem(problem);
            if errno == Errno::EIO {
                tracing::error!(%error, "ovsd cannot");
            } else {
                tracing::debug!(%error, "ovsd refused");
            }
            errno
        }
        None => {
            tracing::error!(%error, "ovsd did not answer");
            Errno::EIO
        }
    }
}
