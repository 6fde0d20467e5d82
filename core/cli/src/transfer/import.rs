//! `ovs vdisk import`: an image becomes a vDisk.

use super::{
    copy::fill_image,
    on_a_thread,
    session::{self, Session, Wanted},
};
use crate::{
    args::{ImportArgs, target::NewVdisk},
    commands::Context,
    failure::Failure,
    image::{Source, format},
    output::size as size_text,
    progress::{Progress, Unit},
    signal::Interrupt,
};
use ovs_api::{
    AttachmentMode, CreateVdisk, DeleteVdiskQuery, Labels, LabelsPatch, PatchVdisk, Problem, ProblemKind,
    Vdisk,
};
use ovs_units::{ByteCount, ByteOffset, ByteRange, CLUSTER_SIZE_BYTES, VDISK_SIZE_BYTES_MAX};
use std::{cell::Cell, time::Duration};

const VERB: &str = "import";
/// Says that a vDisk does not hold all of its image: stays behind when this process is killed.
const UNFINISHED_LABEL: &str = "ovs.import";
/// The size to begin with when nobody knows how much will come; doubled as needed.
const PIPE_SIZE_BYTES_FIRST: u64 = 1 << 30;
/// For how long a vDisk may stay in use after its connection was cut.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
const RELEASE_DELAY: Duration = Duration::from_millis(100);

/// The vDisk that is filled.
struct Target {
    name: NewVdisk,
    vdisk: Vdisk,
    /// Made by this import, and deleted when it fails.
    is_fresh: bool,
    /// It was there before, and something of it may have been overwritten.
    is_touched: Cell<bool>,
    /// The size that it is to have; `None`: that of what comes.
    size: Option<ByteCount>,
}

/// Opens the image, makes the vDisk, fills it, and takes the vDisk back if that fails.
pub async fn import(context: &Context, args: ImportArgs) -> Result<(), Failure> {
    let mut interrupt = Interrupt::catch()?;
    let file = args.file.clone();
    let opened = interrupt.or(on_a_thread(move || format::open(&file, args.format))).await??;
    if let Some(warning) = opened.warning {
        context.output.note(&format!("warning: {warning}"));
    }
    let source = opened.source;
    let target = prepare(context, &args, source.size()).await?;
    let context = &context.patient();
    let filled = interrupt.or(fill(context, &target, source)).await;
    match filled {
        Ok(vdisk) => {
            let line = format!("{} is imported, {}", target.name, size_text(vdisk.size_bytes));
            context.output.done(&vdisk, line)
        }
        Err(failure) => Err(give_up(context, &target, failure).await),
    }
}

/// The vDisk to fill: a new one, or with `--overwrite` one that is there.
async fn prepare(
    context: &Context,
    args: &ImportArgs,
    image_size: Option<ByteCount>,
) -> Result<Target, Failure> {
    let name = args.vdisk.clone();
    if image_size == Some(ByteCount(0)) {
        return Err(Failure::new(ProblemKind::Invalid, format!("{} is empty", args.file.display())));
    }
    if let (Some(image), Some(size)) = (image_size, args.size)
        && size.0 < image.0
    {
        let allowed = format!("at least {} bytes, the image's size", image.0);
        return Err(Failure::usage(Problem::field("--size", size_text(size.0), &allowed)));
    }
    let size = args.size.or(image_size);
    if size.is_some_and(|size| size.0 > VDISK_SIZE_BYTES_MAX) {
        return Err(Failure::new(ProblemKind::Invalid, "the image is larger than a vDisk can be: 64TiB"));
    }
    match args.overwrite {
        true => existing(context, name, image_size).await,
        false => fresh(context, name, size).await,
    }
}

async fn existing(
    context: &Context,
    name: NewVdisk,
    image_size: Option<ByteCount>,
) -> Result<Target, Failure> {
    let vdisk = context.client.get_vdisk(&name.clone().into()).await?;
    if image_size.is_some_and(|image| image.0 > vdisk.size_bytes) {
        let (image, has) = (image_size.map_or(0, |image| image.0), vdisk.size_bytes);
        let detail = format!("the image holds {image} bytes, {name} only {has}: resize it first");
        return Err(Failure::new(ProblemKind::Invalid, detail));
    }
    let size = Some(ByteCount(vdisk.size_bytes));
    Ok(Target { name, vdisk, is_fresh: false, is_touched: Cell::new(false), size })
}

async fn fresh(context: &Context, name: NewVdisk, size: Option<ByteCount>) -> Result<Target, Failure> {
    let size_bytes = size.map_or(PIPE_SIZE_BYTES_FIRST, |size| size.0);
    let request = CreateVdisk {
        size_bytes: Some(size_bytes),
        byte_exact: !size_bytes.is_multiple_of(CLUSTER_SIZE_BYTES),
        labels: Labels([(UNFINISHED_LABEL.to_owned(), "unfinished".to_owned())].into()),
        ..CreateVdisk::new(name.vpool.clone(), name.name.clone())
    };
    let created = context.client.create_vdisk(&request).await.map_err(|error| {
        let failure = Failure::from(error);
        match failure.is(ProblemKind::Exists) {
            true => failure.and("--overwrite fills a vDisk that exists, all it holds is lost"),
            false => failure,
        }
    })?;
    if !created.is_new {
        let whose = match created.value.labels.0.contains_key(UNFINISHED_LABEL) {
            true => "an import that was cut off, or that still runs, made it",
            false => "the same import made it",
        };
        let failure = Failure::new(ProblemKind::Exists, format!("{name} exists: {whose}"));
        return Err(failure.and("--overwrite fills it again, all it holds is lost"));
    }
    Ok(Target { name, vdisk: created.value, is_fresh: true, is_touched: Cell::new(false), size })
}

/// Copies, gives the vDisk its size, and checks that it has it.
async fn fill(context: &Context, target: &Target, source: Box<dyn Source>) -> Result<Vdisk, Failure> {
    let (endpoint, export) = context.place.vdisk_export(&target.vdisk)?;
    let wanted = Wanted {
        vdisk: target.vdisk.uuid.into(),
        snapshot: None,
        mode: AttachmentMode::Exclusive,
        endpoint,
        export,
    };
    let session = Session::open(context, VERB, wanted).await?;
    let work = async {
        if !target.is_fresh {
            // From here on nobody else writes, and what it held before is lost.
            label_unfinished(context, target).await?;
            target.is_touched.set(true);
        }
        let image_size = copy(context, target, source, &session).await?;
        settle(context, target, image_size, &session).await
    };
    match work.await {
        Ok(vdisk) => {
            session.close(context).await;
            Ok(vdisk)
        }
        Err(failure) => {
            session.abort(context).await;
            Err(failure)
        }
    }
}

async fn label_unfinished(context: &Context, target: &Target) -> Result<(), Failure> {
    let labels = LabelsPatch([(UNFINISHED_LABEL.to_owned(), Some("unfinished".to_owned()))].into());
    let patch = PatchVdisk { labels, ..PatchVdisk::default() };
    context.client.update_vdisk(&target.vdisk.uuid.into(), &patch).await?;
    Ok(())
}

async fn copy(
    context: &Context,
    target: &Target,
    source: Box<dyn Source>,
    session: &Session,
) -> Result<ByteCount, Failure> {
    let total = source.size().map(|size| size.0);
    let mut progress = Progress::new(&context.global, format!("import {}", target.name), Unit::Bytes, total);
    let room = ByteCount(target.vdisk.capacity_bytes);
    let grow = async |needed: ByteCount| grow(context, target, needed, session).await;
    let report = |at: ByteOffset| progress.set(at.0);
    let image_size = fill_image(source, &session.client, !target.is_fresh, room, grow, report).await?;
    // What the vDisk held past the image's end is gone too.
    let rest = target.vdisk.capacity_bytes.saturating_sub(image_size.0);
    if !target.is_fresh && rest > 0 {
        let range = ByteRange { start: ByteOffset(image_size.0), length: ByteCount(rest) };
        session.client.zero(range, false).await?;
        session.client.flush().await?;
    }
    Ok(image_size)
}

/// More has come than the vDisk has room for.
async fn grow(
    context: &Context,
    target: &Target,
    needed: ByteCount,
    session: &Session,
) -> Result<ByteCount, Failure> {
    if let Some(size) = target.size {
        return Err(too_much(size));
    }
    let size_bytes = needed.0.checked_next_power_of_two().filter(|size| *size <= VDISK_SIZE_BYTES_MAX);
    let too_large = || Failure::new(ProblemKind::TooLarge, "more has come than a vDisk can hold: 64TiB");
    let size_bytes = size_bytes.ok_or_else(too_large)?;
    let attachment = Some(session.attachment);
    let patch = PatchVdisk { size_bytes: Some(size_bytes), attachment, ..PatchVdisk::default() };
    let grown = context.client.update_vdisk(&target.vdisk.uuid.into(), &patch).await?;
    Ok(ByteCount(grown.capacity_bytes))
}

fn too_much(size: ByteCount) -> Failure {
    Failure::new(ProblemKind::TooLarge, format!("more than {} has come through the pipe", size_text(size.0)))
}

/// The data is stable: now the vDisk gets the size of what came, and is no longer called unfinished.
async fn settle(
    context: &Context,
    target: &Target,
    image_size: ByteCount,
    session: &Session,
) -> Result<Vdisk, Failure> {
    if image_size.0 == 0 {
        return Err(Failure::new(ProblemKind::Invalid, "nothing has come through the pipe"));
    }
    let size_bytes = target.size.unwrap_or(image_size).0;
    if image_size.0 > size_bytes {
        return Err(too_much(ByteCount(size_bytes)));
    }
    let patch = PatchVdisk {
        size_bytes: target.size.is_none().then_some(size_bytes),
        byte_exact: !size_bytes.is_multiple_of(CLUSTER_SIZE_BYTES),
        allow_shrink: true,
        attachment: Some(session.attachment),
        labels: LabelsPatch([(UNFINISHED_LABEL.to_owned(), None)].into()),
        ..PatchVdisk::default()
    };
    let vdisk = context.client.update_vdisk(&target.vdisk.uuid.into(), &patch).await?;
    if vdisk.size_bytes != size_bytes {
        let detail = format!("{} has {} bytes instead of {size_bytes}", target.name, vdisk.size_bytes);
        return Err(Failure::new(ProblemKind::Internal, detail));
    }
    Ok(vdisk)
}

/// Leaves nothing half made. A vDisk that was there before stays, and keeps its label.
async fn give_up(context: &Context, target: &Target, failure: Failure) -> Failure {
    let name = &target.name;
    if !target.is_fresh && !target.is_touched.get() {
        return failure;
    }
    if !target.is_fresh {
        return failure.and(&format!("{name} holds part of the image and part of what it held before"));
    }
    session::detach_ours(context, &target.vdisk.uuid.into(), VERB).await;
    let mut waited = Duration::ZERO;
    loop {
        let deleted =
            context.client.delete_vdisk(&target.vdisk.uuid.into(), &DeleteVdiskQuery { purge: true }).await;
        match deleted {
            Ok(_) => return failure,
            Err(error) if error.is(ProblemKind::NotFound) => return failure,
            // What was in flight when it was cut off is still being carried out.
            Err(error) if error.is(ProblemKind::InUse) && waited < RELEASE_TIMEOUT => {
                tokio::time::sleep(RELEASE_DELAY).await;
                waited += RELEASE_DELAY;
            }
            Err(error) => {
                return failure.and(&format!("{name} is left behind, half filled: delete it ({error})"));
            }
        }
    }
}
