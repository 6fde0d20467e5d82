//! The verbs of hosts, tasks and events, and the hidden one of packages.

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use ovs_api::{TaskId, TaskState};
use std::path::PathBuf;

/// `ovs host ...`
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List the hosts
    List,
    /// Show a host
    Show {
        /// Its name or UUID
        host: String,
    },
}

/// `ovs task ...`
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// List the tasks, the oldest first
    List {
        /// Only those in this state
        #[arg(long, value_enum)]
        state: Option<TaskStateArg>,
    },
    /// Show a task
    Show {
        /// The task
        task: TaskId,
    },
    /// Wait until a task is over; fails if it failed
    Wait {
        /// The task
        task: TaskId,
    },
    /// Ask a task to stop; what it has done stays
    Cancel {
        /// The task
        task: TaskId,
    },
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TaskStateArg {
    /// Not begun
    Queued,
    /// Begun
    Running,
    /// Done
    Succeeded,
    /// Ended by an error
    Failed,
    /// Ended by request
    Cancelled,
}

impl From<TaskStateArg> for TaskState {
    fn from(arg: TaskStateArg) -> TaskState {
        match arg {
            TaskStateArg::Queued => TaskState::Queued,
            TaskStateArg::Running => TaskState::Running,
            TaskStateArg::Succeeded => TaskState::Succeeded,
            TaskStateArg::Failed => TaskState::Failed,
            TaskStateArg::Cancelled => TaskState::Cancelled,
        }
    }
}

/// `ovs events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on until interrupted, over restarts of ovsd; without it, end with the newest event
    #[arg(long)]
    pub follow: bool,
    /// Begin after this event; with --follow, the newest when not given
    #[arg(long, value_name = "ID", required_unless_present = "follow")]
    pub since: Option<u64>,
}

/// `ovs generate ...`
#[derive(Debug, Subcommand)]
pub enum GenerateCommand {
    /// Completion for bash, zsh and fish
    Completion {
        /// Where to write it
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
    /// A man page per command
    Man {
        /// Where to write them
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
}
