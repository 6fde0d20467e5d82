//! The one attachment and the one NBD client that all open handles of a vDisk share.
//!
//! ```text
//!  open for writing ──▶ counted; attach exclusively, connect        last writer released ──▶ flush, hang up, detach
//!  open for reading ──▶ counted; connect at the first read          last reader released ──▶ hang up, detach
//! ```
//!
//! Invariants:
//! * The session's name and first generation are those of the attachment; a new attachment of this client has a higher
//!   generation, so the server drains what is left of an older connection before it admits a newer one.
//! * A client that the server has fenced off stays in place, and fails, until the last writer has gone: what a fenced
//!   writer sends must not reach the vDisk by a fresh connection.
//! * The connection goes to the vDisk's own socket, never by name: after a rename the name may mean another vDisk.
//! * Nothing lingers after the last release, so that others may have the vDisk at once.

use crate::{errno, rpc::Rpc};
use fuser::Errno;
use ovs_api::AttachmentMode;
use ovs_nbd::{Client, ClientError, ClientOptions, Generation, Session, SessionId};
use ovs_units::VdiskId;
use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::Mutex;
use uuid::Uuid;

/// What a handle may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// read(2) only.
    Read,
    /// write(2), perhaps read(2) too.
    Write,
}

impl Access {
    fn mode(self) -> AttachmentMode {
        match self {
            Access::Read => AttachmentMode::ReadOnly,
            Access::Write => AttachmentMode::Exclusive,
        }
    }
}

/// A vDisk's connection, and who needs it.
#[derive(Debug)]
pub struct Link {
    id: VdiskId,
    rpc: Arc<Rpc>,
    /// Held while connecting and while closing: whoever comes meanwhile waits for the outcome.
    state: Mutex<State>,
    /// The same connection as in `state`, for the many who only want to use it.
    current: RwLock<Option<(Access, Client)>>,
    /// Written to since the last flush began.
    is_dirty: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    readers: usize,
    writers: usize,
    attached: Option<Attached>,
}

#[derive(Debug)]
struct Attached {
    access: Access,
    attachment: Uuid,
    client: Client,
}

impl Link {
    /// No handle, no connection.
    pub fn new(id: VdiskId, rpc: Arc<Rpc>) -> Link {
        Link {
            id,
            rpc,
            state: Mutex::default(),
            current: RwLock::default(),
            is_dirty: AtomicBool::new(false),
        }
    }

    /// Counts a handle; for a writer also attaches and connects, or says why not (`EBUSY`: someone else writes).
    pub async fn open(&self, access: Access) -> Result<(), Errno> {
        let mut state = self.state.lock().await;
        match access {
            Access::Read => state.readers += 1,
            Access::Write => {
                if state.attached.as_ref().is_none_or(|attached| attached.access == Access::Read) {
                    self.hang_up(&mut state).await;
                    self.attach(&mut state, Access::Write).await?;
                }
                state.writers += 1;
            }
        }
        Ok(())
    }

    /// Takes back what `open` counted. The last writer's data is flushed, so that a later fsync(2) on any handle has
    /// nothing to wait for; an error of that flush has no one to go to but the log.
    pub async fn release(&self, access: Access) {
        let mut state = self.state.lock().await;
        match access {
            Access::Read => state.readers = state.readers.saturating_sub(1),
            Access::Write => state.writers = state.writers.saturating_sub(1),
        }
        let is_needed = match state.attached.as_ref().map(|attached| attached.access) {
            Some(Access::Write) => state.writers > 0,
            Some(Access::Read) => state.readers > 0,
            None => true,
        };
        if !is_needed {
            self.hang_up(&mut state).await;
        }
    }

    /// Open handles that may write.
    pub async fn writer_count(&self) -> usize {
        self.state.lock().await.writers
    }

    /// The attachment that we hold, to change the vDisk in its name.
    pub async fn attachment(&self) -> Option<Uuid> {
        self.state.lock().await.attached.as_ref().map(|attached| attached.attachment)
    }

    /// The connection for a read or a write; readers connect here.
    pub async fn client(&self) -> Result<Client, Errno> {
        if let Some((_, client)) = self.current() {
            return Ok(client);
        }
        let mut state = self.state.lock().await;
        if state.attached.is_none() {
            // A writer's connection is made when it opens and lasts as long as it does.
            self.attach(&mut state, Access::Read).await?;
        }
        state.attached.as_ref().map(|attached| attached.client.clone()).ok_or(Errno::EIO)
    }

    /// Says that the vDisk was written through this link.
    pub fn mark_dirty(&self) {
        self.is_dirty.store(true, Ordering::Release);
    }

    /// Everything acknowledged before is on stable storage afterwards. Without a writer there is nothing to do, once
    /// the last one's flush is over.
    pub async fn flush(&self) -> Result<(), Errno> {
        let client = match self.current() {
            Some((Access::Write, client)) => client,
            _ => match &self.state.lock().await.attached {
                Some(Attached { access: Access::Write, client, .. }) => client.clone(),
                _ => return Ok(()),
            },
        };
        self.flush_client(&client).await.map_err(|error| errno::of_client(&error))
    }

    /// The same, only if something was written since the last flush: for close(2).
    pub async fn flush_if_dirty(&self) -> Result<(), Errno> {
        if self.is_dirty.load(Ordering::Acquire) { self.flush().await } else { Ok(()) }
    }

    /// Gives up a reader's connection that ended for good, so that the next read makes a new one.
    pub async fn retire_reader(&self) {
        let mut state = self.state.lock().await;
        if state.attached.as_ref().is_some_and(|attached| attached.access == Access::Read) {
            self.hang_up(&mut state).await;
        }
    }

    /// Gives back an attachment that goes by our name and is not the one in use: a dead predecessor's, or one whose end
    /// ovsd did not hear of.
    pub async fn sweep(&self, attachment: Uuid) {
        let state = self.state.lock().await;
        if state.attached.as_ref().is_none_or(|attached| attached.attachment != attachment) {
            self.rpc.detach(attachment).await;
        }
    }

    /// True while requests go unanswered although the server is there: what a watchdog asks.
    pub fn is_connected(&self) -> bool {
        self.current().is_some_and(|(_, client)| client.stats().connected)
    }

    fn current(&self) -> Option<(Access, Client)> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn flush_client(&self, client: &Client) -> Result<(), ClientError> {
        self.is_dirty.store(false, Ordering::Release);
        let result = client.flush().await;
        if result.is_err() {
            self.mark_dirty();
        }
        result
    }

    async fn attach(&self, state: &mut State, access: Access) -> Result<(), Errno> {
        let attachment = self.rpc.attach(self.id, access.mode()).await?;
        let session =
            Session { id: SessionId(attachment.uuid), generation: Generation(attachment.generation) };
        let options = ClientOptions {
            session: Some(session),
            patience: self.rpc.patience(),
            ..ClientOptions::new(self.rpc.paths().nbd_vdisk_socket(self.id), "")
        };
        match Client::connect(options).await {
            Ok(client) => {
                let attached = Attached { access, attachment: attachment.uuid, client: client.clone() };
                state.attached = Some(attached);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some((access, client));
                Ok(())
            }
            Err(error) => {
                tracing::error!(vdisk = %self.id, %error, "no connection to the vDisk");
                self.rpc.detach(attachment.uuid).await;
                Err(errno::of_client(&error))
            }
        }
    }

    async fn hang_up(&self, state: &mut State) {
        let Some(Attached { access, attachment, client }) = state.attached.take() else { return };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
        if access == Access::Write
            && self.is_dirty.load(Ordering::Acquire)
            && let Err(error) = self.flush_client(&client).await
        {
            tracing::error!(vdisk = %self.id, %error, "the last flush of a released file failed");
        }
        client.close().await;
        self.rpc.detach(attachment).await;
    }
}
