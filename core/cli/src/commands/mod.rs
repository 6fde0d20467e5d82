//! What each noun's verbs do: a call or two, then what is printed.

mod attachment;
mod backend;
mod cache;
mod events;
mod export;
mod generate;
mod host;
mod limits;
mod snapshot;
mod status;
mod task;
mod trash;
mod vdisk;
mod vmachine;
mod vpool;

use crate::{
    args::{Cli, Command, GlobalArgs},
    failure::Failure,
    output::Output,
    place::Place,
};
use ovs_api::{ApiError, Client, Cursor, LIMIT_MAX, Page};
use std::time::Duration;

/// For how long a call looks for an ovsd: it may just be restarting.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same once there has been one.
const PATIENCE_UNDER_WAY: Duration = Duration::from_secs(60);
/// Deleting or shrinking a large vDisk takes its time.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What every command needs.
pub struct Context {
    /// Which ovsd.
    pub place: Place,
    /// Its RPC.
    pub client: Client,
    /// How to print.
    pub output: Output,
    /// What the command line said for every command.
    pub global: GlobalArgs,
}

impl Context {
    fn new(global: GlobalArgs) -> Result<Context, Failure> {
        let place = Place::new(&global)?;
        let client = place.client().patience(PATIENCE).timeout(TIMEOUT);
        Ok(Context { place, client, output: Output::new(&global), global })
    }

    /// The same for work under way, which should outlive a restart of ovsd.
    pub fn patient(&self) -> Context {
        let client = self.client.clone().patience(PATIENCE_UNDER_WAY);
        Context {
            place: self.place.clone(),
            client,
            output: self.output.clone(),
            global: self.global.clone(),
        }
    }
}

/// Runs one command to its end.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let context = &Context::new(cli.global)?;
    match cli.command {
        Command::Status => status::run(context).await,
        Command::Vdisk(command) => vdisk::run(context, command).await,
        Command::Snapshot(command) => snapshot::run(context, command).await,
        Command::Template(command) => snapshot::run_template(context, command).await,
        Command::Trash(command) => trash::run(context, command).await,
        Command::Attachment(command) => attachment::run(context, command).await,
        Command::Vpool(command) => vpool::run(context, command).await,
        Command::Backend(command) => backend::run(context, command).await,
        Command::Preset(command) => backend::run_preset(context, command).await,
        Command::Vmachine(command) => vmachine::run(context, command).await,
        Command::Export(command) => export::run(context, command).await,
        Command::Host(command) => host::run(context, command).await,
        Command::Task(command) => task::run(context, command).await,
        Command::Events(args) => events::run(context, args).await,
        Command::Generate(command) => generate::run(context, command),
    }
}

/// All pages of a list.
async fn every<T>(
    mut page: impl AsyncFnMut(Option<u32>, Option<Cursor>) -> Result<Page<T>, ApiError>,
) -> Result<Vec<T>, Failure> {
    let mut items = Vec::new();
    let mut cursor = None;
    loop {
        let next = page(Some(LIMIT_MAX), cursor).await?;
        items.extend(next.items);
        cursor = next.next_cursor;
        if cursor.is_none() {
            return Ok(items);
        }
    }
}

/// A word of the API as it is on the wire, for people: `read_only` is `read-only`.
fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text.replace('_', "-"),
        _ => "?".into(),
    }
}

/// Labels as people write them.
fn label_lines(labels: &ovs_api::Labels) -> impl Iterator<Item = String> {
    labels.0.iter().map(|(key, value)| format!("{key}={value}"))
}

/// A state and why it is not `ok`.
fn state(state: impl serde::Serialize, reason: Option<&str>) -> String {
    match reason {
        Some(reason) => format!("{}: {reason}", word(state)),
        None => word(state),
    }
}
