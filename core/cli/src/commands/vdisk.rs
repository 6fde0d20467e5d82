//! `ovs vdisk ...`, apart from import and export.

use super::{Context, attachment, cache, every, label_lines, limits, snapshot, state, task, word};
use crate::{
    args::{CreateVdiskArgs, VdiskCommand, target::VdiskTarget},
    failure::Failure,
    output::{Align, Fields, Output, Table, size, time, yes_no},
    transfer,
};
use ovs_api::{
    Attachment, CreateVdisk, DeleteVdiskQuery, Labels, PatchVdisk, Snapshot, SnapshotRef, Source, Vdisk,
    VdiskQuery, VdiskStats,
};
use serde::Serialize;

pub(super) async fn run(context: &Context, command: VdiskCommand) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        VdiskCommand::Create(args) => create(context, args).await,
        VdiskCommand::List { vpool, label } => {
            let query = VdiskQuery { vpool, label, ..VdiskQuery::default() };
            let vdisks = every(async |limit, cursor| {
                client.list_vdisks(&VdiskQuery { limit, cursor, ..query.clone() }).await
            });
            context.output.list(&vdisks.await?, table)
        }
        VdiskCommand::Show { vdisk } => show(context, vdisk).await,
        VdiskCommand::Resize { vdisk, size: new_size, allow_shrink } => {
            let patch = PatchVdisk { size_bytes: Some(new_size.0), allow_shrink, ..PatchVdisk::default() };
            let changed = client.update_vdisk(&vdisk.0, &patch).await?;
            context.output.done(&changed, format!("{vdisk} is {} now", size(changed.size_bytes)))
        }
        VdiskCommand::Limits { vdisk, none, limits } => limits::run(context, vdisk, none, *limits).await,
        VdiskCommand::Cache { vdisk, cache } => cache::of_vdisk(context, vdisk, cache).await,
        VdiskCommand::Delete { vdisk, purge } => {
            client.delete_vdisk(&vdisk.0, &DeleteVdiskQuery { purge }).await?;
            context.output.gone(match purge {
                true => format!("{vdisk} is deleted for ever"),
                false => format!("{vdisk} is deleted; `ovs trash restore {vdisk}` gives it back"),
            })
        }
        VdiskCommand::Stats { vdisk } => {
            let stats = client.get_vdisk_stats(&vdisk.0).await?;
            context.output.object(&stats, view_stats)
        }
        VdiskCommand::Scrub { vdisk, no_wait } => {
            let begun = client.scrub_vdisk(&vdisk.0).await?;
            task::finish(context, begun.0, no_wait, &format!("{vdisk} is scrubbed")).await
        }
        VdiskCommand::Clone { source, new, size, limits, cache } => {
            let mut request = CreateVdisk::new(new.vpool.clone(), new.name.clone());
            request.size_bytes = size.map(|size| size.0);
            request.limits = limits.patch();
            request.cache = cache.patch();
            let snapshot = source.snapshot.clone().map(SnapshotRef::Name);
            request.source = Some(Source { vdisk: source.vdisk.0.clone(), snapshot });
            let created = client.create_vdisk(&request).await?;
            context.output.done(&created.value, format!("{new} is a clone of {source}"))
        }
        VdiskCommand::Import(args) => transfer::import(context, args).await,
        VdiskCommand::Export(args) => transfer::export(context, args).await,
        VdiskCommand::Protect { vdisk } => protect(context, vdisk, true).await,
        VdiskCommand::Unprotect { vdisk } => protect(context, vdisk, false).await,
        VdiskCommand::AcceptLoss { vdisk } => {
            let served = context.client.accept_vdisk_loss(&vdisk.0).await?;
            context.output.done(&served, format!("{vdisk} is served as it is"))
        }
        VdiskCommand::Detach { vdisk, force } => attachment::detach(context, vdisk, force).await,
    }
}

async fn create(context: &Context, args: CreateVdiskArgs) -> Result<(), Failure> {
    let new = args.new;
    let request = CreateVdisk {
        size_bytes: args.size.map(|size| size.0),
        template: args.template.map(|template| template.0),
        on_full: args.full.on_full.map(Into::into),
        stall_timeout_ms: args.full.stall_timeout,
        limits: args.limits.patch(),
        cache: args.cache.patch(),
        protected: args.protected,
        description: args.description,
        labels: Labels(args.label.into_iter().collect()),
        ..CreateVdisk::new(new.vpool.clone(), new.name.clone())
    };
    let created = context.client.create_vdisk(&request).await?;
    let line = match created.is_new {
        true => format!("{new} is created, {}", size(created.value.size_bytes)),
        false => format!("{new} is there already, created by the same request"),
    };
    context.output.done(&created.value, line)
}

async fn protect(context: &Context, vdisk: VdiskTarget, protected: bool) -> Result<(), Failure> {
    let patch = PatchVdisk { protected: Some(protected), ..PatchVdisk::default() };
    let changed = context.client.update_vdisk(&vdisk.0, &patch).await?;
    let not = if protected { "" } else { "not " };
    context.output.done(&changed, format!("{vdisk} is {not}protected against deletion"))
}

/// What `show` knows: the vDisk, and with it what people want to see at the same time.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    vdisk: Vdisk,
    snapshots: Vec<Snapshot>,
    attachments: Vec<Attachment>,
}

async fn show(context: &Context, target: VdiskTarget) -> Result<(), Failure> {
    let vdisk = context.client.get_vdisk(&target.0).await?;
    let snapshots = snapshot::all(context, &target).await?;
    let attachments = attachment::all(context, Some(&target)).await?;
    let shown = Shown { vdisk, snapshots, attachments };
    context.output.object(&shown, |shown| view(shown, &context.output))
}

fn table(vdisks: &[Vdisk]) -> Table {
    let columns = [
        ("VDISK", Align::Left),
        ("SIZE", Align::Right),
        ("ALLOCATED", Align::Right),
        ("SNAPSHOTS", Align::Right),
        ("ATTACHED", Align::Right),
        ("STATE", Align::Left),
        ("KIND", Align::Left),
    ];
    Table::new(columns).rows(vdisks, |vdisk| {
        [
            format!("{}/{}", vdisk.vpool, vdisk.name),
            size(vdisk.size_bytes),
            size(vdisk.allocated_bytes),
            vdisk.snapshot_count.to_string(),
            vdisk.attachment_count.to_string(),
            word(vdisk.state),
            kind(vdisk),
        ]
    })
}

fn kind(vdisk: &Vdisk) -> String {
    let kinds =
        [("template", vdisk.is_template), ("clone", vdisk.base.is_some()), ("protected", vdisk.protected)];
    kinds.iter().filter(|(_, is_it)| *is_it).map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn view(shown: &Shown, output: &Output) -> String {
    let vdisk = &shown.vdisk;
    let stall = vdisk.stall_timeout_ms.map(|ms| format!(", for {ms} ms at most")).unwrap_or_default();
    let fields = Fields::new()
        .with("vDisk", format!("{}/{}", vdisk.vpool, vdisk.name))
        .with("UUID", vdisk.uuid)
        .with("state", state(vdisk.state, vdisk.state_reason.as_deref()))
        .with("size", format!("{} ({} bytes)", size(vdisk.size_bytes), vdisk.size_bytes))
        .with("on the backend", size(vdisk.allocated_bytes))
        .with("in the write buffer", size(vdisk.buffered_bytes))
        .with("template", yes_no(vdisk.is_template))
        .with("protected", yes_no(vdisk.protected))
        .with_some("clone of", vdisk.base.as_ref().map(|base| format!("{}@{}", base.vdisk, base.snapshot)))
        .with("when full", format!("{}{stall}", word(vdisk.on_full)))
        .with_each("limits", limits::lines(&vdisk.limits))
        .with_some("read cache", cache::vdisk_line(&vdisk.cache))
        .with("host", &vdisk.host)
        .with("created", time(&vdisk.created_at, &output.zone))
        .with_some("description", Some(&vdisk.description).filter(|text| !text.is_empty()))
        .with_each("labels", label_lines(&vdisk.labels))
        .with("NBD", &vdisk.nbd_uri)
        .with_some("NBD for other hosts", vdisk.nbd_tls_uri.as_ref())
        .with("for QEMU", qemu_words(&vdisk.qemu_filename))
        .with("file", &vdisk.fuse_path)
        .to_string();
    let mut text = fields;
    if !shown.snapshots.is_empty() {
        text = format!("{text}\n{}", snapshot::table(&shown.snapshots, output));
    }
    if !shown.attachments.is_empty() {
        text = format!("{text}\n{}", attachment::table(&shown.attachments));
    }
    text
}

/// What to say to QEMU: its `-blockdev` with the `reconnect-delay` of the file name, since a URI has no word for that.
fn qemu_words(filename: &str) -> String {
    let document = filename.strip_prefix("json:").and_then(|json| serde_json::from_str(json).ok());
    let Some(serde_json::Value::Object(mut blockdev)) = document else { return filename.to_owned() };
    blockdev.insert("node-name".into(), "vdisk".into());
    blockdev.insert("discard".into(), "unmap".into());
    format!("-blockdev '{}' -device virtio-blk-pci,drive=vdisk", serde_json::Value::Object(blockdev))
}

fn as_far_as_known(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "not known yet".to_owned(), size)
}

fn view_stats(stats: &VdiskStats) -> String {
    Fields::new()
        .with("reads", format!("{}, {}", stats.read_count, size(stats.read_bytes)))
        .with("writes", format!("{}, {}", stats.write_count, size(stats.written_bytes)))
        .with("flushes", stats.flush_count)
        .with("put on the backend", size(stats.backend_put_bytes))
        .with("on the backend", size(stats.allocated_bytes))
        .with("stored there", size(stats.stored_bytes))
        .with("nobody needs", as_far_as_known(stats.reclaimable_bytes))
        .with("shared with parents", as_far_as_known(stats.shared_bytes))
        .with("in the write buffer", size(stats.buffered_bytes))
        .with("held back by limits", format!("{}, {} ms", stats.throttled_count, stats.throttled_ms))
        .with_some("read cache", stats.cache.as_ref().map(cache::stats_line))
        .with("epoch", stats.epoch)
        .with("operations", stats.sequence)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn vdisk(name: &str, change: serde_json::Value) -> Vdisk {
        let mut document = json!({
            "uuid": "67e55044-10b1-426f-9247-bb680e5fe0c8", "vpool": "default", "name": name, "revision": 3,
            "size_bytes": 10737418240u64, "capacity_bytes": 10737418240u64, "allocated_bytes": 1572864,
            "buffered_bytes": 4096, "state": "ok", "is_template": false, "protected": false, "snapshot_count": 1,
            "attachment_count": 1, "on_full": "stall", "host": "h1",
            "nbd_socket": "/run/ovs/nbd/67e55044-10b1-426f-9247-bb680e5fe0c8.sock",
            "nbd_uri": "nbd+unix:///?socket=/run/ovs/nbd/67e55044-10b1-426f-9247-bb680e5fe0c8.sock",
            "qemu_filename": "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",\"reconnect-delay\":300}}",
            "fuse_path": "/mnt/ovs/default/web-1.raw", "created_at": "2026-11-20T10:00:00Z",
        });
        let object = document.as_object_mut().unwrap();
        object.extend(change.as_object().unwrap().clone());
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn a_list_as_people_see_it() {
        let base = json!({"vdisk": uuid::Uuid::nil(), "snapshot": uuid::Uuid::nil()});
        let vdisks = [
            vdisk("web-1", json!({})),
            vdisk("golden", json!({"is_template": true, "protected": true, "attachment_count": 0})),
            vdisk("x", json!({"base": base, "state": "stalled", "size_bytes": 4096, "allocated_bytes": 0})),
        ];
        let expected = "\
VDISK            SIZE  ALLOCATED  SNAPSHOTS  ATTACHED  STATE    KIND
default/web-1   10GiB     1.5MiB          1         1  ok
default/golden  10GiB     1.5MiB          1         0  ok       template, protected
default/x        4KiB         0B          1         1  stalled  clone
";
        assert_eq!(table(&vdisks).to_string(), expected);
    }

    #[test]
    fn one_as_people_see_it() {
        let shown = Shown {
            vdisk: vdisk(
                "web-1",
                json!({
                    "labels": {"a": "1", "b": "2"}, "description": "two\nlines",
                    "limits": {"total": {"iops": 500, "bytes_per_s": 104857600}},
                }),
            ),
            snapshots: vec![snapshot::example()],
            attachments: vec![attachment::example()],
        };
        let expected = "\
vDisk                default/web-1
UUID                 67e55044-10b1-426f-9247-bb680e5fe0c8
state                ok
size                 10GiB (10737418240 bytes)
on the backend       1.5MiB
in the write buffer  4KiB
template             no
protected            no
when full            stall
limits               500 IOPS
                     100MiB/s
host                 h1
created              2026-11-20 10:00:00
description          two\\nlines
labels               a=1
                     b=2
NBD                  nbd+unix:///?socket=/run/ovs/nbd/67e55044-10b1-426f-9247-bb680e5fe0c8.sock
for QEMU             -blockdev '{\"discard\":\"unmap\",\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",\"reconnect-delay\":300},\"node-name\":\"vdisk\"}' -device virtio-blk-pci,drive=vdisk
file                 /mnt/ovs/default/web-1.raw

SNAPSHOT               SIZE  CREATED              ON BACKEND  CLONES
default/web-1@monday  10GiB  2026-11-20 10:30:00  yes              2

VDISK          CLIENT    DOOR    MODE       CONNECTIONS  ATTACHMENT
default/web-1  qemu 123  docker  exclusive            1  00000000-0000-0000-0000-000000000007
";
        assert_eq!(view(&shown, &Output::for_test()), expected);
    }

    #[test]
    fn json_is_the_apis_object_with_its_snapshots_and_attachments() {
        let shown = Shown {
            vdisk: vdisk("web-1", json!({})),
            snapshots: vec![snapshot::example()],
            attachments: vec![],
        };
        let json = serde_json::to_value(&shown).unwrap();
        assert_eq!(
            (&json["size_bytes"], &json["snapshots"][0]["name"]),
            (&json!(10737418240u64), &json!("monday"))
        );
    }

    #[test]
    fn stats_as_people_see_them() {
        let mut stats: VdiskStats = serde_json::from_value(json!({
            "vdisk": uuid::Uuid::nil(), "epoch": 3, "sequence": 900, "read_count": 10, "write_count": 20, "flush_count": 5,
            "read_bytes": 40960, "written_bytes": 81920, "backend_put_bytes": 4194304, "allocated_bytes": 65536,
            "buffered_bytes": 0, "stored_bytes": 4198400, "reclaimable_bytes": 4132864, "shared_bytes": 0, "scrub_moved_bytes": 0,
            "scrub_freed_bytes": 0, "throttled_count": 7, "throttled_ms": 350,
        }))
        .unwrap();
        let expected = "\
reads                10, 40KiB
writes               20, 80KiB
flushes              5
put on the backend   4MiB
on the backend       64KiB
stored there         4MiB
nobody needs         3.9MiB
shared with parents  0B
in the write buffer  0B
held back by limits  7, 350 ms
epoch                3
operations           900
";
        assert_eq!(view_stats(&stats), expected);
        stats.reclaimable_bytes = None;
        assert_eq!(view_stats(&stats), expected.replace("3.9MiB", "not known yet"));
    }
}
