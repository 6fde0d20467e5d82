//! `ovs snapshot ...` and `ovs template ...`

use super::{Context, every};
use crate::{
    args::{SnapshotCommand, TemplateCommand, target::VdiskTarget},
    failure::Failure,
    output::{Align, Output, Table, size, time, yes_no},
};
use ovs_api::{
    CreateSnapshot, GetSnapshotQuery, Labels, ListQuery, ProblemKind, RollbackVdisk, Snapshot, SnapshotWait,
};

/// One wait of the RPC; `--wait` asks again until it is so.
const WAIT_MS: u64 = 60_000;

pub(super) async fn run(context: &Context, command: SnapshotCommand) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        SnapshotCommand::Create { snapshot, description, wait } => {
            let request =
                CreateSnapshot { name: snapshot.snapshot.clone(), description, labels: Labels::default() };
            let mut created = client.create_snapshot(&snapshot.vdisk.0, &request).await?.value;
            while wait && !created.on_backend {
                let query = GetSnapshotQuery { wait: Some(SnapshotWait::OnBackend), wait_ms: Some(WAIT_MS) };
                created = client.get_snapshot(&snapshot.vdisk.0, &created.uuid.into(), &query).await?;
            }
            context.output.done(&created, format!("{snapshot} is taken"))
        }
        SnapshotCommand::List { vdisk } => {
            context.output.list(&all(context, &vdisk).await?, |snapshots| table(snapshots, &context.output))
        }
        SnapshotCommand::Rollback { snapshot } => {
            let request = RollbackVdisk { snapshot: snapshot.reference() };
            let rolled_back = client.rollback_vdisk(&snapshot.vdisk.0, &request).await;
            let rolled_back = rolled_back.map_err(|error| detach_first(error.into(), &snapshot.vdisk))?;
            context.output.done(&rolled_back, format!("{} is what {snapshot} holds", snapshot.vdisk))
        }
        SnapshotCommand::Delete { snapshot } => {
            client.delete_snapshot(&snapshot.vdisk.0, &snapshot.reference()).await?;
            context.output.gone(format!("{snapshot} is deleted"))
        }
    }
}

pub(super) async fn run_template(context: &Context, command: TemplateCommand) -> Result<(), Failure> {
    let TemplateCommand::Set { vdisk } = command;
    let template = context.client.set_template(&vdisk.0).await;
    let template = template.map_err(|error| detach_first(error.into(), &vdisk))?;
    context.output.done(&template, format!("{vdisk} is a template"))
}

/// A writer is in the way.
pub(super) fn detach_first(failure: Failure, vdisk: &VdiskTarget) -> Failure {
    match failure.is(ProblemKind::InUse) {
        true => failure.and(&format!("`ovs attachment list {vdisk}` shows by whom")),
        false => failure,
    }
}

/// All snapshots of a vDisk.
pub(super) async fn all(context: &Context, vdisk: &VdiskTarget) -> Result<Vec<Snapshot>, Failure> {
    every(async |limit, cursor| context.client.list_snapshots(&vdisk.0, &ListQuery { limit, cursor }).await)
        .await
}

pub(super) fn table(snapshots: &[Snapshot], output: &Output) -> Table {
    let columns = [
        ("SNAPSHOT", Align::Left),
        ("SIZE", Align::Right),
        ("CREATED", Align::Left),
        ("ON BACKEND", Align::Left),
        ("CLONES", Align::Right),
    ];
    Table::new(columns).rows(snapshots, |snapshot| {
        [
            format!("{}/{}@{}", snapshot.vpool, snapshot.vdisk_name, snapshot.name),
            size(snapshot.size_bytes),
            time(&snapshot.created_at, &output.zone),
            yes_no(snapshot.on_backend),
            snapshot.clone_count.to_string(),
        ]
    })
}

#[cfg(test)]
pub(super) fn example() -> Snapshot {
    serde_json::from_value(serde_json::json!({
        "uuid": "00000000-0000-0000-0000-000000000005", "vdisk": "67e55044-10b1-426f-9247-bb680e5fe0c8",
        "vpool": "default", "vdisk_name": "web-1", "name": "monday", "revision": 1, "size_bytes": 10737418240u64,
        "on_backend": true, "clone_count": 2, "nbd_export": "default/web-1@monday",
        "created_at": "2026-11-20T10:30:00Z",
    }))
    .unwrap()
}
