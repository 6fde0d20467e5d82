//! `ovs vdisk export`: a vDisk or a snapshot becomes an image.
//!
//! What is exported is always one moment: a snapshot, a template, or a snapshot of this command's own, which is
//! deleted at the end.

use super::{
    copy::drain_image,
    destination::{self, Destination},
    session::{self, Session, Wanted},
};
use crate::{
    args::ExportArgs,
    commands::Context,
    failure::Failure,
    image::Sink,
    output::size as size_text,
    progress::{Progress, Unit},
    signal::Interrupt,
};
use ovs_api::{
    AttachmentMode, CreateSnapshot, GetSnapshotQuery, Labels, ProblemKind, Snapshot, SnapshotRef, VdiskRef,
};
use ovs_nbd::Endpoint;
use ovs_units::{ByteCount, ByteOffset, Name, SnapshotId};
use serde::Serialize;
use std::time::Duration;

const VERB: &str = "export";
/// For how long a snapshot may stay in use after its connection was cut.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
const RELEASE_DELAY: Duration = Duration::from_millis(100);

/// The moment that is exported.
struct Moment {
    wanted: Wanted,
    size: ByteCount,
    /// A snapshot of our own, to be deleted.
    own: Option<SnapshotId>,
}

/// What a program is told.
#[derive(Serialize)]
struct Exported {
    file: String,
    size_bytes: u64,
}

/// Opens the file, takes a snapshot if need be, copies, publishes, and cleans up either way.
pub async fn export(context: &Context, args: ExportArgs) -> Result<(), Failure> {
    let mut interrupt = Interrupt::catch()?;
    let (sink, destination) = destination::open(&args.file, args.format, args.force)?;
    let is_standard_output = args.file.as_os_str() == "-";
    let label = format!("export {}", args.source);
    let moment = find(context, &args).await?;
    let context = &context.patient();
    let (size, own) = (moment.size, moment.own);
    let copied = interrupt.or(copy(context, moment, sink, destination, label)).await;
    if copied.is_err() {
        session::detach_ours(context, &args.source.vdisk.0, VERB).await;
    }
    let deleted = match own {
        Some(snapshot) => delete(context, &args.source.vdisk.0, snapshot).await,
        None => Ok(()),
    };
    let left_behind =
        |failure: Failure| failure.and("the snapshot that the export took is left behind: delete it");
    match (copied, deleted) {
        (Ok(()), deleted) => deleted.map_err(left_behind)?,
        (Err(failure), Ok(())) => return Err(failure),
        (Err(failure), Err(_)) => return Err(left_behind(failure)),
    }
    let file = args.file.display().to_string();
    let line = format!("{} is exported to {file}, {}", args.source, size_text(size.0));
    if is_standard_output {
        // The standard output is the image.
        context.output.note(&line);
        return Ok(());
    }
    context.output.done(&Exported { file, size_bytes: size.0 }, line)
}

/// A frozen thing to read: the snapshot that was named, a template as it is, else a snapshot taken now.
async fn find(context: &Context, args: &ExportArgs) -> Result<Moment, Failure> {
    let client = &context.client;
    let vdisk = &args.source.vdisk.0;
    let found = client.get_vdisk(vdisk).await?;
    let endpoint = context.place.snapshot_endpoint(&found)?;
    if let Some(name) = &args.source.snapshot {
        let snapshot = name.as_str().parse().unwrap_or_else(|_| SnapshotRef::Name(name.clone()));
        let snapshot = client.get_snapshot(vdisk, &snapshot, &GetSnapshotQuery::default()).await?;
        return Ok(of_snapshot(endpoint, vdisk, snapshot, false));
    }
    if found.is_template {
        let (endpoint, export) = context.place.vdisk_export(&found)?;
        let mode = AttachmentMode::ReadOnly;
        let wanted = Wanted { vdisk: vdisk.clone(), snapshot: None, mode, endpoint, export };
        return Ok(Moment { wanted, size: ByteCount(found.size_bytes), own: None });
    }
    let request = CreateSnapshot {
        name: own_name()?,
        description: "of ovs vdisk export".into(),
        labels: Labels::default(),
    };
    let snapshot = client.create_snapshot(vdisk, &request).await?.value;
    Ok(of_snapshot(endpoint, vdisk, snapshot, true))
}

fn of_snapshot(endpoint: Endpoint, vdisk: &VdiskRef, snapshot: Snapshot, is_own: bool) -> Moment {
    let wanted = Wanted {
        vdisk: vdisk.clone(),
        snapshot: Some(snapshot.uuid.into()),
        mode: AttachmentMode::ReadOnly,
        endpoint,
        export: snapshot.nbd_export,
    };
    Moment { wanted, size: ByteCount(snapshot.size_bytes), own: is_own.then_some(snapshot.uuid) }
}

/// One that no other process on this host takes, now or later.
fn own_name() -> Result<Name, Failure> {
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S.%6f");
    let name = format!("export-{now}-{}", std::process::id());
    Name::new(&name).map_err(|error| Failure::new(ProblemKind::Internal, error.to_string()))
}

async fn copy(
    context: &Context,
    moment: Moment,
    sink: Box<dyn Sink>,
    destination: Destination,
    label: String,
) -> Result<(), Failure> {
    let size = moment.size;
    let session = Session::open(context, VERB, moment.wanted).await?;
    let copied = {
        let mut progress = Progress::new(&context.global, label, Unit::Bytes, Some(size.0));
        drain_image(&session.client, size, sink, |at: ByteOffset| progress.set(at.0)).await
    };
    match copied {
        Ok(()) => {
            session.close(context).await;
            destination.publish()
        }
        Err(error) => {
            session.abort(context).await;
            Err(error.into())
        }
    }
}

async fn delete(context: &Context, vdisk: &VdiskRef, snapshot: SnapshotId) -> Result<(), Failure> {
    let mut waited = Duration::ZERO;
    loop {
        match context.client.delete_snapshot(vdisk, &snapshot.into()).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is(ProblemKind::NotFound) => return Ok(()),
            // What was in flight when it was cut off is still being carried out.
            Err(error) if error.is(ProblemKind::InUse) && waited < RELEASE_TIMEOUT => {
                tokio::time::sleep(RELEASE_DELAY).await;
                waited += RELEASE_DELAY;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
