//! `ovs export ...`: vDisks for clients on other machines.

use super::{Context, every, word};
use crate::{
    args::ExportCommand,
    failure::Failure,
    output::{Align, Table, yes_no},
};
use ovs_api::{CreateExport, Export, Labels, ListQuery};

pub(super) async fn run(context: &Context, command: ExportCommand) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        ExportCommand::Create { vdisk, protocol, client: clients, read_only } => {
            let request = CreateExport {
                vdisk: vdisk.clone().into(),
                protocol: protocol.into(),
                clients,
                read_only,
                labels: Labels::default(),
            };
            let created = client.create_export(&request).await?.value;
            context.output.done(&created, format!("{vdisk} is exported as {}", created.address))
        }
        ExportCommand::List => {
            let exports =
                every(async |limit, cursor| client.list_exports(&ListQuery { limit, cursor }).await).await?;
            context.output.list(&exports, table)
        }
        ExportCommand::Show { export } => {
            let export = client.get_export(&export).await?;
            context.output.object(&export, |export| table(std::slice::from_ref(export)).to_string())
        }
        ExportCommand::Delete { export } => {
            client.delete_export(&export).await?;
            context.output.gone(format!("{export} is ended"))
        }
    }
}

fn table(exports: &[Export]) -> Table {
    let columns = [
        ("EXPORT", Align::Left),
        ("VPOOL", Align::Left),
        ("VDISK", Align::Left),
        ("PROTOCOL", Align::Left),
        ("READ-ONLY", Align::Left),
        ("ADDRESS", Align::Left),
        ("CLIENTS", Align::Left),
    ];
    Table::new(columns).rows(exports, |export| {
        [
            export.uuid.to_string(),
            export.vpool.to_string(),
            export.vdisk.to_string(),
            word(export.protocol),
            yes_no(export.read_only),
            export.address.clone(),
            export.clients.join(" "),
        ]
    })
}
