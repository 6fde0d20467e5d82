//! `ovs host ...`

use super::{Context, every, word};
use crate::{
    args::HostCommand,
    failure::Failure,
    output::{Align, Output, Table, time},
};
use ovs_api::{Host, ListQuery, ProblemKind};

pub(super) async fn run(context: &Context, command: HostCommand) -> Result<(), Failure> {
    let client = &context.client;
    let hosts = every(async |limit, cursor| client.list_hosts(&ListQuery { limit, cursor }).await).await?;
    match command {
        HostCommand::List => context.output.list(&hosts, |hosts| table(hosts, &context.output)),
        HostCommand::Show { host } => {
            let found = hosts.into_iter().find(|known| known.name == host || known.uuid.to_string() == host);
            let missing = || {
                Failure::new(ProblemKind::NotFound, format!("no host {host:?}: `ovs host list` shows all"))
            };
            context.output.object(&found.ok_or_else(missing)?, |host| {
                table(std::slice::from_ref(host), &context.output).to_string()
            })
        }
    }
}

fn table(hosts: &[Host], output: &Output) -> Table {
    let columns = [
        ("HOST", Align::Left),
        ("STATE", Align::Left),
        ("VERSION", Align::Left),
        ("STARTED", Align::Left),
        ("UUID", Align::Left),
    ];
    Table::new(columns).rows(hosts, |host| {
        [
            format!("{}{}", host.name, if host.is_local { " (this one)" } else { "" }),
            word(host.state),
            host.version.clone(),
            time(&host.started_at, &output.zone),
            host.uuid.to_string(),
        ]
    })
}
