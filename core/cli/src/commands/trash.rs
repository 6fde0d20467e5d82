//! `ovs trash ...`

use super::{Context, every, task};
use crate::{
    args::{TrashCommand, target::VdiskTarget},
    failure::Failure,
    output::{Align, Output, Table, size, time},
};
use ovs_api::{Problem, ProblemKind, RestoreTrash, TrashEntry, TrashQuery, VdiskRef};

pub(super) async fn run(context: &Context, command: TrashCommand) -> Result<(), Failure> {
    match command {
        TrashCommand::List { vpool } => {
            let query = TrashQuery { vpool, ..TrashQuery::default() };
            context.output.list(&all(context, query).await?, |entries| table(entries, &context.output))
        }
        TrashCommand::Restore { vdisk, name } => restore(context, vdisk, RestoreTrash { name }).await,
        TrashCommand::Empty { vpool, no_wait } => {
            let query = TrashQuery { vpool, ..TrashQuery::default() };
            let begun = context.client.empty_trash(&query).await?.0;
            task::finish(context, begun, no_wait, "the trash is empty").await
        }
    }
}

async fn all(context: &Context, query: TrashQuery) -> Result<Vec<TrashEntry>, Failure> {
    every(async |limit, cursor| {
        context.client.list_trash(&TrashQuery { limit, cursor, ..query.clone() }).await
    })
    .await
}

async fn restore(context: &Context, vdisk: VdiskTarget, request: RestoreTrash) -> Result<(), Failure> {
    let id = match &vdisk.0 {
        VdiskRef::Id(id) => *id,
        VdiskRef::Name { vpool, name } => {
            let query =
                TrashQuery { vpool: Some(vpool.clone()), name: Some(name.clone()), ..TrashQuery::default() };
            only_one(&vdisk, &all(context, query).await?)?.uuid
        }
    };
    let restored = context.client.restore_trash(&id.into(), &request).await;
    let restored = restored.map_err(|error| {
        let failure = Failure::from(error);
        if failure.is(ProblemKind::Exists) {
            failure.and("--name NEW restores it under another name")
        } else {
            failure
        }
    })?;
    context.output.done(&restored, format!("{}/{} is back", restored.vpool, restored.name))
}

/// A name may have been deleted several times: then only the UUID says which.
fn only_one<'a>(vdisk: &VdiskTarget, entries: &'a [TrashEntry]) -> Result<&'a TrashEntry, Failure> {
    match entries {
        [] => Err(Failure::new(
            ProblemKind::NotFound,
            format!("{vdisk} is not in the trash: `ovs trash list` shows what is"),
        )),
        [entry] => Ok(entry),
        several => {
            let uuids: Vec<String> = several.iter().map(|entry| entry.uuid.to_string()).collect();
            let detail = format!(
                "{vdisk} was deleted {} times: restore one by its UUID ({})",
                uuids.len(),
                uuids.join(", ")
            );
            Err(Failure::Problem(Box::new(Problem::new(ProblemKind::Conflict, detail).with("uuids", uuids))))
        }
    }
}

fn table(entries: &[TrashEntry], output: &Output) -> Table {
    let columns = [
        ("VDISK", Align::Left),
        ("SIZE", Align::Right),
        ("ALLOCATED", Align::Right),
        ("SNAPSHOTS", Align::Right),
        ("DELETED", Align::Left),
        ("GONE AFTER", Align::Left),
        ("UUID", Align::Left),
    ];
    Table::new(columns).rows(entries, |entry| {
        [
            format!("{}/{}", entry.vpool, entry.name),
            size(entry.size_bytes),
            size(entry.allocated_bytes),
            entry.snapshot_count.to_string(),
            time(&entry.deleted_at, &output.zone),
            time(&entry.expires_at, &output.zone),
            entry.uuid.to_string(),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u128) -> TrashEntry {
        serde_json::from_value(serde_json::json!({
            "uuid": uuid::Uuid::from_u128(number), "vpool": "default", "name": "x", "revision": 9, "size_bytes": 1 << 30,
            "allocated_bytes": 8192, "snapshot_count": 2, "deleted_at": "2026-11-20T10:00:00Z",
            "expires_at": "2026-11-21T10:00:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn as_people_see_it() {
        let expected = "\
VDISK      SIZE  ALLOCATED  SNAPSHOTS  DELETED              GONE AFTER           UUID
default/x  1GiB       8KiB          2  2026-11-20 10:00:00  2026-11-21 10:00:00  00000000-0000-0000-0000-000000000001
";
        assert_eq!(table(&[entry(1)], &Output::for_test()).to_string(), expected);
    }

    #[test]
    fn a_name_deleted_twice_needs_the_uuid() {
        let target: VdiskTarget = "default/x".parse().unwrap();
        assert!(only_one(&target, &[]).unwrap_err().is(ProblemKind::NotFound));
        assert_eq!(only_one(&target, &[entry(1)]).unwrap().uuid, entry(1).uuid);
        let several = only_one(&target, &[entry(1), entry(2)]).unwrap_err();
        assert!(several.problem().unwrap().detail.contains("00000000-0000-0000-0000-000000000002"));
    }
}
