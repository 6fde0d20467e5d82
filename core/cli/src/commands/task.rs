//! `ovs task ...`, and waiting for the tasks of other commands.

use super::{Context, every, word};
use crate::{
    args::TaskCommand,
    failure::Failure,
    output::{Align, Fields, Output, Table, time},
    progress::{Progress, Unit},
    signal::Interrupt,
};
use ovs_api::{GetTaskQuery, ProblemKind, Task, TaskId, TaskProgress, TaskQuery, TaskState};
use ovs_units::format_size;

/// One wait of the RPC, after which the progress is shown.
const WAIT_MS: u64 = 500;

pub(super) async fn run(context: &Context, command: TaskCommand) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        TaskCommand::List { state } => {
            let state = state.map(TaskState::from);
            let tasks = every(async |limit, cursor| {
                client.list_tasks(&TaskQuery { state, limit, cursor, ..TaskQuery::default() }).await
            });
            context.output.list(&tasks.await?, |tasks| table(tasks, &context.output))
        }
        TaskCommand::Show { task } => {
            let task = client.get_task(&task, &GetTaskQuery::default()).await?;
            context.output.object(&task, |task| view(task, &context.output))
        }
        TaskCommand::Wait { task } => {
            let begun = client.get_task(&task, &GetTaskQuery::default()).await?;
            finish(context, begun, false, "done").await
        }
        TaskCommand::Cancel { task } => {
            let cancelled = client.cancel_task(&task).await?;
            context.output.done(&cancelled, format!("task {task} is {}", word(cancelled.state)))
        }
    }
}

/// Sees a task that was begun to its end, and prints it; or only says which one it is.
pub(super) async fn finish(context: &Context, begun: Task, no_wait: bool, line: &str) -> Result<(), Failure> {
    if no_wait {
        return context.output.done(&begun, format!("task {}", begun.uuid));
    }
    let id = begun.uuid;
    let mut interrupt = Interrupt::catch()?;
    let over = interrupt.or(wait(context, begun)).await;
    let over = over.map_err(|failure| match failure.is(ProblemKind::Unavailable) {
        true => failure.and(&format!("the task goes on: `ovs task wait {id}`")),
        false => failure,
    })?;
    let result = over.result.as_ref().map(result_words).filter(|words| !words.is_empty());
    let line = result.map_or_else(|| line.to_owned(), |result| format!("{line}: {result}"));
    context.output.done(&over, line)
}

/// Waits until a task is over; a failed one is a failure.
async fn wait(context: &Context, mut task: Task) -> Result<Task, Failure> {
    let label = format!("{} {}", task.kind, task.subject_name.as_deref().unwrap_or(""));
    let unit = unit(&task.progress);
    let mut progress = Progress::new(&context.global, label.trim(), unit, task.progress.total);
    while !task.state.is_over() {
        let query = GetTaskQuery { wait_ms: Some(WAIT_MS) };
        task = context.client.get_task(&task.uuid, &query).await?;
        progress.set_total(task.progress.total);
        progress.set(task.progress.done);
    }
    match (task.state, task.error) {
        (TaskState::Failed, Some(problem)) => Err(Failure::Problem(Box::new(problem))),
        (TaskState::Failed, None) => Err(ended(task.uuid, "failed")),
        (TaskState::Cancelled, _) => Err(ended(task.uuid, "was cancelled")),
        (_, error) => Ok(Task { error, ..task }),
    }
}

fn ended(task: TaskId, how: &str) -> Failure {
    Failure::new(ProblemKind::Conflict, format!("task {task} {how}"))
}

fn unit(progress: &TaskProgress) -> Unit {
    if progress.unit == "bytes" { Unit::Bytes } else { Unit::Items }
}

fn amount(progress: &TaskProgress) -> String {
    let text = |amount: u64| match unit(progress) {
        Unit::Bytes => format_size(amount),
        Unit::Items => amount.to_string(),
    };
    let done = text(progress.done);
    let unit = if unit(progress) == Unit::Bytes { String::new() } else { format!(" {}", progress.unit) };
    match progress.total {
        Some(total) => format!("{done} of {}{unit}", text(total)),
        None => format!("{done}{unit}"),
    }
}

/// What a task found or made: its plain members as words.
fn result_words(result: &serde_json::Value) -> String {
    let members = result.as_object().into_iter().flatten();
    let words = members.filter_map(|(name, value)| match value {
        serde_json::Value::Number(number) => Some(format!("{number} {}", name.replace('_', " "))),
        serde_json::Value::String(text) => Some(format!("{} {text}", name.replace('_', " "))),
        _ => None,
    });
    words.collect::<Vec<_>>().join(", ")
}

fn table(tasks: &[Task], output: &Output) -> Table {
    let columns = [
        ("TASK", Align::Left),
        ("KIND", Align::Left),
        ("ABOUT", Align::Left),
        ("STATE", Align::Left),
        ("DONE", Align::Left),
        ("CREATED", Align::Left),
    ];
    Table::new(columns).rows(tasks, |task| {
        [
            task.uuid.to_string(),
            task.kind.clone(),
            task.subject_name.clone().unwrap_or_default(),
            word(task.state),
            amount(&task.progress),
            time(&task.created_at, &output.zone),
        ]
    })
}

fn view(task: &Task, output: &Output) -> String {
    Fields::new()
        .with("task", task.uuid)
        .with("kind", &task.kind)
        .with_some("about", task.subject_name.as_ref())
        .with("state", word(task.state))
        .with("done", amount(&task.progress))
        .with_some("error", task.error.as_ref().map(|problem| &problem.detail))
        .with_some("result", task.result.as_ref())
        .with("created", time(&task.created_at, &output.zone))
        .with_some("finished", task.finished_at.as_ref().map(|at| time(at, &output.zone)))
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn task(change: serde_json::Value) -> Task {
        let mut document = json!({
            "uuid": "00000000-0000-0000-0000-000000000009", "revision": 1, "kind": "vpool.recover", "subject_name": "p",
            "state": "running", "progress": {"done": 3, "total": 7, "unit": "vdisks"},
            "created_at": "2026-11-20T10:00:00Z",
        });
        document.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn tasks_as_people_see_them() {
        let bytes = json!({"state": "succeeded", "progress": {"done": 1048576, "unit": "bytes"}});
        let expected = "\
TASK                                  KIND           ABOUT  STATE      DONE           CREATED
00000000-0000-0000-0000-000000000009  vpool.recover  p      running    3 of 7 vdisks  2026-11-20 10:00:00
00000000-0000-0000-0000-000000000009  vpool.recover  p      succeeded  1MiB           2026-11-20 10:00:00
";
        assert_eq!(table(&[task(json!({})), task(bytes)], &Output::for_test()).to_string(), expected);
    }

    #[test]
    fn results_in_words() {
        assert_eq!(result_words(&json!({"vdisk_count": 3, "list": [1]})), "3 vdisk count");
        assert_eq!(result_words(&json!({"note": "x"})), "note x");
        assert_eq!(result_words(&json!(null)), "");
    }
}
