//! `ovs backend ...` and `ovs preset ...`

mod view;

use super::{Context, every, vpool};
use crate::{
    args::{BackendCommand, BackendKindArg, CreateBackendArgs, CreatePresetArgs, PresetCommand, RemoteArgs},
    failure::Failure,
};
use ovs_api::{
    BackendKind, CreateBackend, CreatePreset, Labels, ListQuery, Problem, RemoteStore, SecretReference,
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
    let remote = new_remote(args.remote)?;
    let request = CreateBackend {
        name: args.name,
        kind: kind.into(),
        path: args.path.map(|path| vpool::absolute("--path", &path)).transpose()?,
        remote,
        of: args.of,
        preset: args.preset,
        node: args.node,
        site: args.site,
        weight: args.weight,
    };
    if kind == BackendKindArg::Dir && request.path.is_none() {
        return Err(Failure::usage(Problem::field(
            "--path",
            "nothing",
            "the directory of a backend of type dir",
        )));
    }
    Ok(request)
}

/// What is said of a store, if anything is.
fn new_remote(args: RemoteArgs) -> Result<Option<RemoteStore>, Failure> {
    let user = reference("--user-file", args.user_file.as_deref(), args.user_env.as_deref())?;
    let secret = reference("--secret-file", args.secret_file.as_deref(), args.secret_env.as_deref())?;
    let is_any = args.endpoint.is_some()
        || args.bucket.is_some()
        || args.region.is_some()
        || args.prefix.is_some()
        || args.bucket_in_host
        || args.project.is_some()
        || args.domain.is_some()
        || user.is_some()
        || secret.is_some();
    if !is_any {
        return Ok(None);
    }
    let missing =
        |option: &str| Failure::usage(Problem::field(option, "nothing", "an object store needs it"));
    Ok(Some(RemoteStore {
        endpoint: args.endpoint,
        container: args.bucket.ok_or_else(|| missing("--bucket"))?,
        region: args.region,
        prefix: args.prefix,
        bucket_in_host: args.bucket_in_host,
        project: args.project,
        domain: args.domain,
        user,
        secret: secret.ok_or_else(|| missing("--secret-file or --secret-env"))?,
    }))
}

/// Where a secret is. ovsd reads it, never this program.
fn reference(
    option: &str,
    file: Option<&Path>,
    variable: Option<&str>,
) -> Result<Option<SecretReference>, Failure> {
    let text = match (file, variable) {
        (Some(file), _) => format!("file:{}", vpool::absolute(option, file)?),
        (None, Some(name)) => format!("env:{name}"),
        (None, None) => return Ok(None),
    };
    let refused = |_| {
        Failure::usage(Problem::new(
            ovs_api::ProblemKind::Invalid,
            format!("{option} or its fellow: neither a file nor the name of a variable was given"),
        ))
    };
    SecretReference::try_from(text).map(Some).map_err(refused)
}

fn new_preset(args: CreatePresetArgs) -> Result<CreatePreset, Failure> {
    Ok(CreatePreset {
        name: args.name,
        compression: args.compression.into(),
        encryption: args.encryption.into(),
        key: reference("--key-file", args.key_file.as_deref(), args.key_env.as_deref())?,
        fragment_size_bytes: args.fragment.0,
        policies: args.policy,
        labels: Labels::default(),
    })
}
