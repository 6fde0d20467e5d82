//! An attachment of this command's own, and the NBD connection that it names.

use crate::{commands::Context, failure::Failure};
use ovs_api::{
    Attachment, AttachmentMode, AttachmentQuery, CreateAttachment, DeleteAttachmentQuery, Door, SnapshotRef,
    VdiskRef,
};
use ovs_nbd::{Client, ClientOptions, Endpoint, Generation, SessionId};
use std::time::Duration;
use uuid::Uuid;

/// For how long an ovsd that restarts is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Attached and connected.
pub(super) struct Session {
    pub attachment: Uuid,
    pub client: Client,
}

/// What is attached, and where its export is.
pub(super) struct Wanted {
    pub vdisk: VdiskRef,
    pub snapshot: Option<SnapshotRef>,
    pub mode: AttachmentMode,
    pub endpoint: Endpoint,
    pub export: String,
}

impl Session {
    /// Attaches and connects.
    pub async fn open(context: &Context, verb: &str, wanted: Wanted) -> Result<Session, Failure> {
        let request = CreateAttachment {
            vdisk: wanted.vdisk,
            snapshot: wanted.snapshot,
            client: client_name(verb),
            door: Door::Cli,
            mode: wanted.mode,
            host: None,
            write_through: false,
            persistent: false,
            uuid: None,
        };
        let attachment = context.client.create_attachment(&request).await?.value;
        match connect(&attachment, wanted.endpoint, wanted.export).await {
            Ok(client) => Ok(Session { attachment: attachment.uuid, client }),
            Err(failure) => {
                detach(context, attachment.uuid).await;
                Err(failure)
            }
        }
    }

    /// Disconnects and detaches, in this order: what was sent has then been carried out.
    pub async fn close(self, context: &Context) {
        self.client.close().await;
        detach(context, self.attachment).await;
    }

    /// Cuts the connection, whatever is in flight.
    pub async fn abort(self, context: &Context) {
        detach(context, self.attachment).await;
    }
}

async fn connect(attachment: &Attachment, endpoint: Endpoint, export: String) -> Result<Client, Failure> {
    let generation = Generation(attachment.generation);
    let session = ovs_nbd::Session { id: SessionId(attachment.uuid), generation };
    let mut options = ClientOptions::new(endpoint, export);
    options.session = Some(session);
    options.patience = Some(PATIENCE);
    Ok(Client::connect(options).await?)
}

/// An attachment that is not persistent goes with its connection anyway: nothing to report when this fails.
async fn detach(context: &Context, attachment: Uuid) {
    let _ = context.client.delete_attachment(&attachment, &DeleteAttachmentQuery { force: true }).await;
}

/// Cuts off what this process left attached when its work was dropped: what is in flight is not waited for.
pub(super) async fn detach_ours(context: &Context, vdisk: &VdiskRef, verb: &str) {
    let query = AttachmentQuery {
        vdisk: Some(vdisk.clone()),
        client: Some(client_name(verb)),
        door: Some(Door::Cli),
        ..AttachmentQuery::default()
    };
    // When this fails, the connection's end does the same, a little later.
    if let Ok(page) = context.client.list_attachments(&query).await {
        for attachment in page.items {
            detach(context, attachment.uuid).await;
        }
    }
}

fn client_name(verb: &str) -> String {
    format!("ovs vdisk {verb}, process {}", std::process::id())
}
