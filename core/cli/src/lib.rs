//! `ovs`, the command line of the service.
//!
//! ```text
//!  words ─▶ args ─▶ commands ─▶ ovs_api::Client ─▶ ovsd          what is printed: output, progress
//!                      └─▶ transfer (import, export): image ⇄ NBD
//! ```
//!
//! Invariants: exit code 0 done, 1 refused or failed, 2 wrong usage; results go to the standard output, everything
//! else to the standard error; with `--output json` both are JSON. A command that is interrupted leaves nothing half
//! made. What comes from elsewhere (a name, a description) cannot garble the terminal.
//!
//! Not here: any knowledge of how ovsd works; whatever the RPC can do, it does.

// The commands' help texts are the documentation of the argument types' fields.
#[expect(missing_docs, reason = "fields are documented by the help text of the arguments that they group")]
pub mod args;
pub mod commands;
pub mod failure;
pub mod image;
pub mod output;
pub mod place;
pub mod progress;
pub mod signal;
pub mod transfer;

use args::{Cli, OutputFormat};
use clap::Parser;
use failure::Failure;
use ovs_api::{Problem, ProblemKind};
use std::{ffi::OsString, io::Write, process::ExitCode};

/// Parses, runs, reports: what `main` does.
pub fn main_with(words: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error, &words),
    };
    let output = cli.global.output;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(commands::run(cli)),
        Err(error) => Err(Failure::new(ProblemKind::Internal, format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(output),
    }
}

/// Help and version are no errors. Everything else is, and for a program it is a problem document.
fn report_usage(error: &clap::Error, words: &[OsString]) -> ExitCode {
    let wants_json = words.iter().any(|word| word == "--output=json")
        || words.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
    if !error.use_stderr() || !wants_json {
        // A reader that has gone away is no reason to fail differently.
        let _ = error.print();
        return ExitCode::from(error.exit_code() as u8);
    }
    let text = error.to_string();
    let reason = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    Failure::usage(Problem::new(ProblemKind::Invalid, reason)).report(OutputFormat::Json)
}

/// A remark for people on the standard error; one line.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", output::one_line(text));
}
