//! `ovs attachment list` and `ovs vdisk detach`

use super::{Context, every, word};
use crate::{
    args::{AttachmentCommand, target::VdiskTarget},
    failure::Failure,
    output::{Align, Table},
};
use ovs_api::{Attachment, AttachmentQuery, DeleteAttachmentQuery, ProblemKind};

pub(super) async fn run(context: &Context, command: AttachmentCommand) -> Result<(), Failure> {
    let AttachmentCommand::List { vdisk } = command;
    context.output.list(&all(context, vdisk.as_ref()).await?, table)
}

/// Ends every attachment of a vDisk; one that is gone meanwhile is no failure.
pub(super) async fn detach(context: &Context, vdisk: VdiskTarget, force: bool) -> Result<(), Failure> {
    let attachments = all(context, Some(&vdisk)).await?;
    for attachment in &attachments {
        let ended =
            context.client.delete_attachment(&attachment.uuid, &DeleteAttachmentQuery { force }).await;
        match ended {
            Ok(_) => {}
            Err(error) if error.is(ProblemKind::NotFound) => {}
            Err(error) if error.is(ProblemKind::InUse) && !force => {
                return Err(Failure::from(error).and("--force cuts its client off"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let line = match attachments.len() {
        0 => format!("{vdisk} was not attached"),
        1 => format!("{vdisk} is detached from {}", attachments[0].client),
        count => format!("{vdisk} is detached from {count} clients"),
    };
    context.output.done(&attachments, line)
}

/// All attachments, of one vDisk or of all.
pub(super) async fn all(context: &Context, vdisk: Option<&VdiskTarget>) -> Result<Vec<Attachment>, Failure> {
    let query = AttachmentQuery { vdisk: vdisk.map(|vdisk| vdisk.0.clone()), ..AttachmentQuery::default() };
    every(async |limit, cursor| {
        context.client.list_attachments(&AttachmentQuery { limit, cursor, ..query.clone() }).await
    })
    .await
}

pub(super) fn table(attachments: &[Attachment]) -> Table {
    let columns = [
        ("VDISK", Align::Left),
        ("CLIENT", Align::Left),
        ("DOOR", Align::Left),
        ("MODE", Align::Left),
        ("CONNECTIONS", Align::Right),
        ("ATTACHMENT", Align::Left),
    ];
    Table::new(columns).rows(attachments, |attachment| {
        let snapshot = attachment.snapshot.map(|snapshot| format!("@{snapshot}")).unwrap_or_default();
        [
            format!("{}/{}{snapshot}", attachment.vpool, attachment.vdisk_name),
            attachment.client.clone(),
            word(attachment.door),
            word(attachment.mode),
            attachment.connection_count.to_string(),
            attachment.uuid.to_string(),
        ]
    })
}

#[cfg(test)]
pub(super) fn example() -> Attachment {
    serde_json::from_value(serde_json::json!({
        "uuid": "00000000-0000-0000-0000-000000000007", "revision": 1,
        "vdisk": "67e55044-10b1-426f-9247-bb680e5fe0c8", "vpool": "default", "vdisk_name": "web-1",
        "client": "qemu 123", "door": "docker", "host": "h1", "mode": "exclusive", "generation": 2,
        "write_through": false, "persistent": true, "connection_count": 1, "created_at": "2026-11-20T10:00:00Z",
    }))
    .unwrap()
}
