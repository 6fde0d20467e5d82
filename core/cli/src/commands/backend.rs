//! `ovs backend ...` and `ovs preset ...`

use super::{Context, every, vpool, word};
use crate::{
    args::{BackendCommand, CreatePresetArgs, PresetCommand},
    failure::Failure,
    output::{Align, Fields, Output, Table, size, time, yes_no},
};
use ovs_api::{
    Backend, Compression, CreateBackend, CreatePreset, Encryption, Labels, ListQuery, Policy, Preset,
};

pub(super) async fn run(context: &Context, command: BackendCommand) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        BackendCommand::Create { name, kind, path } => {
            let request = CreateBackend { name, kind: kind.into(), path: vpool::absolute("--path", &path)? };
            let created = client.create_backend(&request).await?.value;
            context.output.done(&created, format!("{} is created in {}", created.name, created.path))
        }
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
            let created = client.create_preset(&new_preset(args)).await?.value;
            context.output.done(&created, format!("{} is created", created.name))
        }
        PresetCommand::List => {
            let presets =
                every(async |limit, cursor| client.list_presets(&ListQuery { limit, cursor }).await).await?;
            context.output.list(&presets, preset_table)
        }
        PresetCommand::Show { name } => {
            let preset = client.get_preset(&name).await?;
            context.output.object(&preset, |preset| preset_table(std::slice::from_ref(preset)).to_string())
        }
        PresetCommand::Delete { name } => {
            client.delete_preset(&name).await?;
            context.output.gone(format!("{name} is deleted"))
        }
    }
}

fn new_preset(args: CreatePresetArgs) -> CreatePreset {
    CreatePreset {
        name: args.name,
        compression: Compression::None,
        encryption: Encryption::None,
        fragment_size_bytes: args.fragment_size.0,
        policies: args.policy,
        labels: Labels::default(),
    }
}

fn table(backends: &[Backend]) -> Table {
    let columns = [
        ("BACKEND", Align::Left),
        ("TYPE", Align::Left),
        ("PATH", Align::Left),
        ("VPOOL", Align::Left),
        ("TOTAL", Align::Right),
        ("FREE", Align::Right),
    ];
    Table::new(columns).rows(backends, |backend| {
        [
            backend.name.to_string(),
            word(backend.kind),
            backend.path.clone(),
            backend.vpool.as_ref().map_or_else(|| "-".into(), ToString::to_string),
            backend.total_bytes.map_or_else(|| "-".into(), size),
            backend.free_bytes.map_or_else(|| "-".into(), size),
        ]
    })
}

fn view(backend: &Backend, output: &Output) -> String {
    Fields::new()
        .with("backend", &backend.name)
        .with("UUID", backend.uuid)
        .with("type", word(backend.kind))
        .with("path", &backend.path)
        .with_each("hosts", backend.nodes.iter().cloned())
        .with_some("vPool", backend.vpool.as_ref())
        .with_some("total", backend.total_bytes.map(size))
        .with_some("free", backend.free_bytes.map(size))
        .with("created", time(&backend.created_at, &output.zone))
        .to_string()
}

fn preset_table(presets: &[Preset]) -> Table {
    let columns = [
        ("PRESET", Align::Left),
        ("DEFAULT", Align::Left),
        ("COMPRESSION", Align::Left),
        ("ENCRYPTION", Align::Left),
        ("FRAGMENT", Align::Right),
        ("POLICIES (k,m,c,x)", Align::Left),
    ];
    Table::new(columns).rows(presets, |preset| {
        let policy = |policy: &Policy| format!("{},{},{},{}", policy.k, policy.m, policy.c, policy.x);
        [
            preset.name.to_string(),
            yes_no(preset.is_default),
            word(preset.compression),
            word(preset.encryption),
            size(preset.fragment_size_bytes),
            preset.policies.iter().map(policy).collect::<Vec<_>>().join(" "),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_as_people_see_them() {
        let backend: Backend = serde_json::from_value(serde_json::json!({
            "uuid": uuid::Uuid::nil(), "name": "b1", "revision": 1, "type": "dir", "path": "/srv/b1", "nodes": ["h1", "h2"],
            "free_bytes": 1073741824, "created_at": "2026-11-20T10:00:00Z",
        }))
        .unwrap();
        let expected = "\
BACKEND  TYPE  PATH     VPOOL  TOTAL  FREE
b1       dir   /srv/b1  -          -  1GiB
";
        assert_eq!(table(std::slice::from_ref(&backend)).to_string(), expected);
        let expected = "\
backend  b1
UUID     00000000-0000-0000-0000-000000000000
type     dir
path     /srv/b1
hosts    h1
         h2
free     1GiB
created  2026-11-20 10:00:00
";
        assert_eq!(view(&backend, &Output::for_test()), expected);
    }

    #[test]
    fn presets_as_people_see_them() {
        let preset: Preset = serde_json::from_value(serde_json::json!({
            "uuid": uuid::Uuid::nil(), "name": "default", "revision": 1, "compression": "none", "encryption": "none",
            "fragment_size_bytes": 4194304, "policies": [{"k": 4, "m": 2, "c": 5, "x": 1}, {"k": 1, "m": 0, "c": 1, "x": 1}],
            "is_default": true,
        }))
        .unwrap();
        let expected = "\
PRESET   DEFAULT  COMPRESSION  ENCRYPTION  FRAGMENT  POLICIES (k,m,c,x)
default  yes      none         none            4MiB  4,2,5,1 1,0,1,1
";
        assert_eq!(preset_table(&[preset]).to_string(), expected);
    }
}
