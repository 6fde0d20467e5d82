use super::page::check_limit;
use super::{Cursor, Request, Timestamp};
use crate::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// A wait of a request at most.
pub(super) const WAIT_MS_MAX: u64 = 600_000;

/// One task, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TaskId(pub Uuid);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for TaskId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<TaskId, uuid::Error> {
        Uuid::try_parse(text).map(TaskId)
    }
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Not begun.
    Queued,
    /// Begun.
    Running,
    /// Done.
    Succeeded,
    /// Ended by an error.
    Failed,
    /// Ended by request.
    Cancelled,
}

impl TaskState {
    /// True when nothing more will happen.
    pub fn is_over(self) -> bool {
        matches!(self, TaskState::Succeeded | TaskState::Failed | TaskState::Cancelled)
    }
}

/// How much of a task is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskProgress {
    /// Done so far.
    pub done: u64,
    /// Of how many, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What is counted: `vdisks`, `bytes`.
    pub unit: String,
}

/// A long operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// For ever the same.
    pub uuid: TaskId,
    /// Raised by every change.
    pub revision: u64,
    /// What it does: `vpool.recover`, `trash.empty`.
    pub kind: String,
    /// The UUID of what it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Uuid>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject_name: Option<String>,
    /// How far it is.
    pub state: TaskState,
    /// How much is done.
    pub progress: TaskProgress,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
    /// What it found or made, by kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// Which tasks, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskQuery {
    /// In one state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TaskState>,
    /// About one object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Uuid>,
    /// Tasks on the page, 100 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

/// Whether to wait.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GetTaskQuery {
    /// Answer when the task is over, or after this time; at once when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 600_000))]
    pub wait_ms: Option<u64>,
}

/// Refuses a wait of more than ten minutes.
pub(super) fn check_wait(wait_ms: Option<u64>) -> Result<(), Problem> {
    match wait_ms {
        Some(wait_ms) if wait_ms > WAIT_MS_MAX => Err(Problem::field("wait_ms", wait_ms, "at most 600000")),
        _ => Ok(()),
    }
}

impl Request for TaskQuery {
    fn check(&self) -> Result<(), Problem> {
        check_limit(self.limit)
    }
}

impl Request for GetTaskQuery {
    fn check(&self) -> Result<(), Problem> {
        check_wait(self.wait_ms)
    }
}
