//! `ovs backend ...` and `ovs preset ...`

mod view;

use super::{Context, every, task, vpool, word};
use crate::{
    args::{
        BackendCommand, BackendKindArg, CreateBackendArgs, CreatePresetArgs, DriveCommand, PresetCommand,
        RemoteArgs, RotatePresetArgs,
    },
    failure::Failure,
};
use ovs_api::{
    AddDrive, BackendKind, CreateBackend, CreatePreset, Labels, ListQuery, Problem, ProblemKind, RemoteStore,
    RemoveDriveQuery, RotatePreset, SecretReference,
};
use std::path::Path;
use view::{plan_view, preset_table, preset_view, table, view};

pub(super) async fn run(context: &Context, command: BackendCommand) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        BackendCommand::Create(args) => create(context, *args).await,
        BackendCommand::List => {
            let backends =
                every(async |limit, cursor| client.list_backends(&ListQuery { limit, cursor }).await);
            context.output.list(&backends.await?, table)
        }
        BackendCommand::Show { name } => {
            let backend = client.get_backend(&name).await?;
            context.output.object(&backend, |backend| view(backend, &context.output))
        }
        BackendCommand::Delete { name } => {
            client.delete_backend(&name).await?;
            context.output.gone(format!("{name} is forgotten; what is on it stays"))
        }
        BackendCommand::Verify { name, no_wait } => {
            let begun = context.client.verify_backend(&name).await?;
            task::finish(context, begun.0, no_wait, &format!("{name} is verified")).await
        }
        BackendCommand::Drive(command) => drive(context, command).await,
    }
}

async fn drive(context: &Context, command: DriveCommand) -> Result<(), Failure> {
    match command {
        DriveCommand::Add { composite, drive } => {
            let request = AddDrive { drive: drive.clone() };
            let changed = context.client.add_drive(&composite, &request).await?;
            context.output.done(&changed, format!("{drive} is a drive of {composite}"))
        }
        DriveCommand::Remove { composite, drive, lost, accept_loss, no_wait } => {
            let query = RemoveDriveQuery { lost, accept_loss };
            let begun = context.client.remove_drive(&composite, &drive, &query).await?;
            let line = format!("{drive} is no drive of {composite} any more");
            task::finish(context, begun.0, no_wait, &line).await
        }
    }
}

pub(super) async fn run_preset(context: &Context, command: PresetCommand) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        PresetCommand::Create(args) => {
            let created = client.create_preset(&new_preset(args)?).await?.value;
            context.output.done(&created, format!("{} is created", created.name))
        }
        PresetCommand::List => {
            let presets =
                every(async |limit, cursor| client.list_presets(&ListQuery { limit, cursor }).await).await?;
            context.output.list(&presets, preset_table)
        }
        PresetCommand::Show { name } => {
            let preset = client.get_preset(&name).await?;
            context.output.object(&preset, preset_view)
        }
        PresetCommand::Rotate(args) => {
            let preset = client.rotate_preset(&args.name.clone(), &rotation(args)?).await?;
            for drive in &preset.drives_behind {
                context.output.note(&format!(
                    "drive {drive} does not answer, and has the keys as they were: keep the old key"
                ));
            }
            if let Some(number) = preset.data_key_waiting {
                context.output.note(&format!("key {number} is used when every drive has it"));
            }
            context.output.done(&preset, format!("the keys of {} are rotated", preset.name))
        }
        PresetCommand::Delete { name } => {
            client.delete_preset(&name).await?;
            context.output.gone(format!("{name} is deleted"))
        }
    }
}

async fn create(context: &Context, args: CreateBackendArgs) -> Result<(), Failure> {
    let is_dry = args.dry_run;
    let request = new_backend(args)?;
    if is_dry {
        let plan = context.client.plan_backend(&request).await?;
        return context.output.object(&plan, plan_view);
    }
    let created = context.client.create_backend(&request).await?.value;
    for remark in created.plan.iter().flat_map(|plan| &plan.remarks) {
        context.output.note(remark);
    }
    let line = match created.kind {
        BackendKind::Dir => format!("{} is created in {}", created.name, created.path),
        BackendKind::Composite => format!("{} is created of {} backends", created.name, created.drives.len()),
        _ => format!("{} is created at {}", created.name, created.path),
    };
    context.output.done(&created, line)
}

fn new_backend(args: CreateBackendArgs) -> Result<CreateBackend, Failure> {
    let kind =
        args.kind.unwrap_or(if args.of.is_empty() { BackendKindArg::Dir } else { BackendKindArg::Composite });
    check_fits(kind, &args)?;
    let remote = match kind {
        BackendKindArg::Dir | BackendKindArg::Composite => None,
        _ => Some(new_remote(kind, args.remote)?),
    };
    Ok(CreateBackend {
        name: args.name,
        kind: kind.into(),
        path: args.path.map(|path| vpool::absolute("--path", &path)).transpose()?,
        remote,
        of: args.of,
        preset: args.preset,
        node: args.node,
        site: args.site,
        weight: args.weight,
    })
}

/// Every option is for its types of backend, and each type needs some.
fn check_fits(kind: BackendKindArg, args: &CreateBackendArgs) -> Result<(), Failure> {
    let is_composite = kind == BackendKindArg::Composite;
    let of_stores = args.remote.first_given();
    let rules = [
        ("--path", args.path.is_some(), kind == BackendKindArg::Dir, "directories (--type dir)"),
        ("--of", !args.of.is_empty(), is_composite, "composites: leave --type out"),
        ("--preset", args.preset.is_some(), is_composite, "composites (--of)"),
        (
            of_stores.unwrap_or("--endpoint"),
            of_stores.is_some(),
            of_stores.is_some() && !is_composite && kind != BackendKindArg::Dir,
            "object stores: say which with --type",
        ),
    ];
    for (option, is_given, is_taken, whom) in rules {
        match (is_given, is_taken) {
            (true, false) => return Err(usage(format!("{option} is for {whom}"))),
            (false, true) => return Err(needed(option, kind)),
            _ => {}
        }
    }
    Ok(())
}

/// The store that a recovery begins at, if it begins at one.
pub(super) fn store_to_recover(
    kind: Option<BackendKindArg>,
    args: RemoteArgs,
) -> Result<Option<(BackendKind, RemoteStore)>, Failure> {
    match (kind, args.first_given()) {
        (None, None) => Ok(None),
        (None, Some(option)) => Err(usage(format!("{option} is for object stores: say which with --type"))),
        (Some(BackendKindArg::Dir | BackendKindArg::Composite), _) => Err(usage(
            "--type is for object stores: a directory is named by --backend, a composite by any of its drives"
                .to_owned(),
        )),
        (Some(kind), _) => Ok(Some((kind.into(), new_remote(kind, args)?))),
    }
}

fn usage(detail: String) -> Failure {
    Failure::usage(Problem::new(ProblemKind::Invalid, detail))
}

fn needed(option: &str, kind: BackendKindArg) -> Failure {
    let kind = word(BackendKind::from(kind));
    usage(format!("{option} is needed for a backend of type {kind}: see ovs backend create --help"))
}

fn new_remote(kind: BackendKindArg, args: RemoteArgs) -> Result<RemoteStore, Failure> {
    let user = reference(["--user-file", "--user-env"], args.user_file.as_deref(), args.user_env.as_deref())?;
    let secret = reference(
        ["--secret-file", "--secret-env"],
        args.secret_file.as_deref(),
        args.secret_env.as_deref(),
    )?;
    let is_gcs = kind == BackendKindArg::Gcs;
    if args.endpoint.is_none() && !is_gcs {
        return Err(needed("--endpoint", kind));
    }
    if user.is_none() && !is_gcs {
        return Err(needed("--user-file or --user-env", kind));
    }
    Ok(RemoteStore {
        endpoint: args.endpoint,
        container: args.bucket.ok_or_else(|| needed("--bucket", kind))?,
        region: args.region,
        prefix: args.prefix,
        bucket_in_host: args.bucket_in_host,
        bytes_per_s: args.bandwidth.map(|bytes| bytes.0),
        requests_max: args.concurrency,
        project: args.project,
        domain: args.domain,
        user,
        secret: secret.ok_or_else(|| needed("--secret-file or --secret-env", kind))?,
    })
}

/// Where a secret is. ovsd reads it, never this program.
fn reference(
    [by_file, by_variable]: [&str; 2],
    file: Option<&Path>,
    variable: Option<&str>,
) -> Result<Option<SecretReference>, Failure> {
    let (option, text) = match (file, variable) {
        (Some(file), _) => (by_file, format!("file:{}", vpool::absolute(by_file, file)?)),
        (None, Some(name)) => (by_variable, format!("env:{name}")),
        (None, None) => return Ok(None),
    };
    // What was given may be the secret: it is not shown.
    let refused = |_| {
        let what = if option == by_file { "the path of a file" } else { "the name of a variable" };
        usage(format!("{option}: what was given is not {what}"))
    };
    SecretReference::try_from(text).map(Some).map_err(refused)
}

fn rotation(args: RotatePresetArgs) -> Result<RotatePreset, Failure> {
    let key = reference(["--key-file", "--key-env"], args.key_file.as_deref(), args.key_env.as_deref())?;
    Ok(RotatePreset { key, new_data_key: args.new_data_key })
}

fn new_preset(args: CreatePresetArgs) -> Result<CreatePreset, Failure> {
    Ok(CreatePreset {
        name: args.name,
        compression: args.compression.into(),
        encryption: args.encryption.into(),
        key: reference(["--key-file", "--key-env"], args.key_file.as_deref(), args.key_env.as_deref())?,
        fragment_size_bytes: args.fragment.0,
        policies: args.policy,
        labels: Labels::default(),
    })
}
