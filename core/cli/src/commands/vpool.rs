//! `ovs vpool ...`

use super::{Context, backend, cache, every, label_lines, state, task, word};
use crate::{
    args::{CreateVpoolArgs, RecoverArgs, VpoolCommand},
    failure::Failure,
    output::{Align, Fields, Output, Table, duration, size, time},
};
use ovs_api::{
    CreateBackend, CreateVpool, DeleteVpoolQuery, Labels, ListQuery, Problem, RecoverVpool, Vpool,
};
use std::path::Path;

pub(super) async fn run(context: &Context, command: VpoolCommand) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        VpoolCommand::Create(args) => create(context, args).await,
        VpoolCommand::List => {
            let vpools =
                every(async |limit, cursor| client.list_vpools(&ListQuery { limit, cursor }).await).await?;
            context.output.list(&vpools, table)
        }
        VpoolCommand::Show { name } => {
            let vpool = client.get_vpool(&name).await?;
            context.output.object(&vpool, |vpool| view(vpool, &context.output))
        }
        VpoolCommand::Cache { name, cache } => cache::of_vpool(context, name, cache).await,
        VpoolCommand::Delete { name, purge_trash, discard_unread } => {
            client.delete_vpool(&name, &DeleteVpoolQuery { purge_trash, discard_unread }).await?;
            context.output.gone(format!("{name} is deleted"))
        }
        VpoolCommand::Recover(args) => recover(context, *args).await,
    }
}

async fn create(context: &Context, args: CreateVpoolArgs) -> Result<(), Failure> {
    let request = CreateVpool {
        name: args.name,
        backend: args.backend,
        preset: args.preset,
        on_full: args.full.on_full.map(Into::into),
        stall_timeout_ms: args.full.stall_timeout,
        default_size_bytes: args.default_size.map(|size| size.0),
        trash_retention_s: args.trash_retention.map(|ms| ms / 1000),
        cache: args.cache.patch(),
        description: args.description,
        labels: Labels(args.label.into_iter().collect()),
    };
    let created = context.client.create_vpool(&request).await?.value;
    context.output.done(&created, format!("{} is created on the backend {}", created.name, created.backend))
}

async fn recover(context: &Context, args: RecoverArgs) -> Result<(), Failure> {
    let own = args.name.clone();
    let place = match (args.backend, backend::store_to_recover(args.kind, args.remote)?) {
        (Some(directory), None) => {
            let name = args.backend_name.unwrap_or_else(|| own.clone());
            Some(CreateBackend::dir(name, absolute("--backend", &directory)?))
        }
        (_, store) => store.map(|(kind, remote)| {
            let remote = Some(remote);
            CreateBackend { remote, ..CreateBackend::new(own.clone(), kind) }
        }),
    };
    let begun = match place {
        None => context.client.recover_vpool(&own).await?,
        Some(backend) => context.client.recover_lost_vpool(&RecoverVpool { name: own, backend }).await?,
    };
    task::finish(context, begun.0, args.no_wait, &format!("{} is recovered", args.name)).await
}

/// ovsd has another working directory: a relative path is made absolute here.
pub(super) fn absolute(option: &str, directory: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(directory).ok();
    let text = path.as_deref().and_then(Path::to_str).map(str::to_owned);
    text.ok_or_else(|| Failure::usage(Problem::field(option, directory.display(), "a path in UTF-8")))
}

fn table(vpools: &[Vpool]) -> Table {
    let columns = [
        ("VPOOL", Align::Left),
        ("STATE", Align::Left),
        ("BACKEND", Align::Left),
        ("PRESET", Align::Left),
        ("VDISKS", Align::Right),
        ("PROVISIONED", Align::Right),
        ("USED", Align::Right),
        ("FREE", Align::Right),
    ];
    Table::new(columns).rows(vpools, |vpool| {
        [
            vpool.name.to_string(),
            word(vpool.state),
            vpool.backend.to_string(),
            vpool.preset.to_string(),
            vpool.vdisk_count.to_string(),
            size(vpool.provisioned_bytes),
            size(vpool.used_bytes),
            vpool.free_bytes.map_or_else(|| "-".into(), size),
        ]
    })
}

fn view(vpool: &Vpool, output: &Output) -> String {
    let stall = vpool.stall_timeout_ms.map(|ms| format!(", for {ms} ms at most")).unwrap_or_default();
    let retention = match vpool.trash_retention_s {
        0 => "not at all".into(),
        seconds => duration(seconds),
    };
    Fields::new()
        .with("vPool", &vpool.name)
        .with("UUID", vpool.uuid)
        .with("state", state(vpool.state, vpool.state_reason.as_deref()))
        .with("backend", &vpool.backend)
        .with("preset", &vpool.preset)
        .with("vDisks", vpool.vdisk_count)
        .with("provisioned", size(vpool.provisioned_bytes))
        .with("used", size(vpool.used_bytes))
        .with_some("free", vpool.free_bytes.map(size))
        .with_some("total", vpool.total_bytes.map(size))
        .with("when full", format!("{}{stall}", word(vpool.on_full)))
        .with("default size", size(vpool.default_size_bytes))
        .with("deleted vDisks kept", retention)
        .with("read cache", cache::vpool_line(&vpool.cache))
        .with("created", time(&vpool.created_at, &output.zone))
        .with_some("description", Some(&vpool.description).filter(|text| !text.is_empty()))
        .with_each("labels", label_lines(&vpool.labels))
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vpool() -> Vpool {
        serde_json::from_value(serde_json::json!({
            "uuid": "00000000-0000-0000-0000-000000000002", "name": "default", "revision": 1, "backend": "default",
            "preset": "default", "state": "degraded", "state_reason": "the directory is read-only", "on_full": "stall",
            "stall_timeout_ms": 30000, "default_size_bytes": 10737418240u64, "trash_retention_s": 86400,
            "total_bytes": 107374182400u64, "free_bytes": 53687091200u64, "used_bytes": 1048576,
            "provisioned_bytes": 10737418240u64, "vdisk_count": 1, "created_at": "2026-11-20T10:00:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn a_list_as_people_see_it() {
        let expected = "\
VPOOL    STATE     BACKEND  PRESET   VDISKS  PROVISIONED  USED   FREE
default  degraded  default  default       1        10GiB  1MiB  50GiB
";
        assert_eq!(table(&[vpool()]).to_string(), expected);
    }

    #[test]
    fn one_as_people_see_it() {
        let expected = "\
vPool                default
UUID                 00000000-0000-0000-0000-000000000002
state                degraded: the directory is read-only
backend              default
preset               default
vDisks               1
provisioned          10GiB
used                 1MiB
free                 50GiB
total                100GiB
when full            stall, for 30000 ms at most
default size         10GiB
deleted vDisks kept  1d
read cache           read, no quota for each vDisk, shared by location
created              2026-11-20 10:00:00
";
        assert_eq!(view(&vpool(), &Output::for_test()), expected);
    }
}
