//! What goes to the standard output: tables and fields for people, JSON for programs.

mod table;
mod text;

pub use table::{Align, Fields, Table};
pub use text::{duration, one_line, size, time, yes_no};

use crate::{
    args::{GlobalArgs, OutputFormat},
    failure::Failure,
};
use jiff::tz::TimeZone;
use ovs_api::ProblemKind;
use serde::Serialize;
use std::{
    fmt::Display,
    io::{self, Write},
};

/// How this command prints.
#[derive(Debug, Clone)]
pub struct Output {
    /// Tables or JSON.
    pub format: OutputFormat,
    /// No remarks.
    pub is_quiet: bool,
    /// Times are shown in this zone.
    pub zone: TimeZone,
}

impl Output {
    /// As the command line says, in this machine's time zone.
    pub fn new(global: &GlobalArgs) -> Output {
        Output { format: global.output, is_quiet: global.quiet, zone: TimeZone::system() }
    }

    /// An object: its JSON, or how people see it.
    pub fn object<T: Serialize>(&self, object: &T, view: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Json => self.json(object),
            OutputFormat::Table => print(&view(object)),
        }
    }

    /// A list: a JSON array, or a table.
    pub fn list<T: Serialize>(&self, items: &[T], view: impl FnOnce(&[T]) -> Table) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Json => self.json(&items),
            OutputFormat::Table => print(&view(items).to_string()),
        }
    }

    /// Something was done: the object that it made or changed, or a line for people.
    pub fn done<T: Serialize>(&self, object: &T, line: impl Display) -> Result<(), Failure> {
        match (self.format, self.is_quiet) {
            (OutputFormat::Json, _) => self.json(object),
            (OutputFormat::Table, true) => Ok(()),
            (OutputFormat::Table, false) => print(&format!("{}\n", one_line(&line.to_string()))),
        }
    }

    /// Something was done that leaves no object: `{}`, or a line for people.
    pub fn gone(&self, line: impl Display) -> Result<(), Failure> {
        self.done(&serde_json::Map::new(), line)
    }

    /// A remark beside the result, for people: to the standard error.
    pub fn note(&self, text: &str) {
        if !self.is_quiet && self.format == OutputFormat::Table {
            crate::remark(text);
        }
    }

    /// One document on lines of its own.
    pub fn json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value);
        let text =
            text.map_err(|error| Failure::new(ProblemKind::Internal, format!("cannot print: {error}")))?;
        print(&format!("{text}\n"))
    }

    /// One document on one line, for streams.
    pub fn json_line<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(value);
        let text =
            text.map_err(|error| Failure::new(ProblemKind::Internal, format!("cannot print: {error}")))?;
        print(&format!("{text}\n"))
    }
}

/// Writes to the standard output now.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::new(ProblemKind::Unavailable, format!("cannot write to the standard output: {error}")),
    })
}

#[cfg(test)]
impl Output {
    /// Tables, in UTC.
    pub fn for_test() -> Output {
        Output { format: OutputFormat::Table, is_quiet: false, zone: TimeZone::UTC }
    }
}
