//! Long operations: what runs, how far it is, and its end, kept for an hour.

use ovs_api::{Problem, ProblemKind, Task, TaskId, TaskProgress, TaskState, Timestamp};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use uuid::Uuid;

/// How long a task that is over can still be asked about.
const KEPT_MS: u64 = 3_600_000;
/// Tasks kept at most; the oldest of those that are over go first.
const KEPT_MAX: usize = 1000;

/// All tasks of this ovsd. Any thread.
#[derive(Debug, Default)]
pub struct Tasks {
    known: Mutex<BTreeMap<u64, Entry>>,
}

#[derive(Debug)]
struct Entry {
    task: watch::Sender<Task>,
    finished_ms: Option<u64>,
    wants_cancel: bool,
}

/// The running side of a task.
#[derive(Debug, Clone)]
pub struct Running {
    tasks: Arc<Tasks>,
    number: u64,
    /// The task.
    pub id: TaskId,
}

/// What a task is about.
#[derive(Debug, Clone)]
pub struct About {
    /// `vpool.recover`, `vdisk.scrub`, `trash.empty`.
    pub kind: &'static str,
    /// The object.
    pub subject: Option<Uuid>,
    /// The same for people.
    pub subject_name: Option<String>,
    /// What is counted.
    pub unit: &'static str,
}

impl Tasks {
    /// Begins a task.
    pub fn begin(self: &Arc<Self>, id: TaskId, about: About, now_ms: u64) -> Running {
        let task = Task {
            uuid: id,
            revision: 1,
            kind: about.kind.to_owned(),
            subject: about.subject,
            subject_name: about.subject_name,
            state: TaskState::Running,
            progress: TaskProgress { done: 0, total: None, unit: about.unit.to_owned() },
            error: None,
            result: None,
            created_at: Timestamp::from_unix_ms(now_ms),
            finished_at: None,
        };
        let mut known = self.known();
        let number = known.last_key_value().map_or(1, |(last, _)| last + 1);
        let entry = Entry { task: watch::channel(task).0, finished_ms: None, wants_cancel: false };
        known.insert(number, entry);
        drop(known);
        self.forget_old(now_ms);
        Running { tasks: self.clone(), number, id }
    }

    /// All tasks, the oldest first, each with its key in that order.
    pub fn list(&self) -> Vec<(String, Task)> {
        self.known()
            .iter()
            .map(|(number, entry)| (format!("{number:020}"), entry.task.borrow().clone()))
            .collect()
    }

    /// The task about the same that is not over, and not asked to stop, if there is one.
    pub fn running(&self, about: &About) -> Option<Task> {
        let known = self.known();
        let mut tasks =
            known.values().filter(|entry| !entry.wants_cancel).map(|entry| entry.task.borrow().clone());
        tasks.find(|task| {
            task.kind == about.kind
                && (task.subject, &task.subject_name) == (about.subject, &about.subject_name)
                && !task.state.is_over()
        })
    }

    /// One task.
    pub fn get(&self, id: TaskId) -> Result<Task, Problem> {
        self.receiver(id).map(|task| task.borrow().clone())
    }

    /// One task, when it is over or when the time is up.
    pub async fn wait(&self, id: TaskId, patience: Duration) -> Result<Task, Problem> {
        let mut task = self.receiver(id)?;
        let over = task.wait_for(|task| task.state.is_over());
        if let Ok(Ok(task)) = tokio::time::timeout(patience, over).await {
            return Ok(task.clone());
        }
        self.get(id)
    }

    /// Asks a task to stop; it does when it next looks.
    pub fn cancel(&self, id: TaskId) -> Result<Task, Problem> {
        let mut known = self.known();
        let entry =
            known.values_mut().find(|entry| entry.task.borrow().uuid == id).ok_or_else(|| no_task(id))?;
        let task = entry.task.borrow().clone();
        if task.state.is_over() {
            return Err(Problem::new(ProblemKind::Conflict, format!("task {id} is over")));
        }
        entry.wants_cancel = true;
        Ok(task)
    }

    /// Forgets tasks that were over an hour ago.
    pub fn forget_old(&self, now_ms: u64) {
        let mut known = self.known();
        let mut surplus = known.len().saturating_sub(KEPT_MAX);
        known.retain(|_, entry| match entry.finished_ms {
            None => true,
            Some(_) if surplus > 0 => {
                surplus -= 1;
                false
            }
            Some(finished_ms) => now_ms < finished_ms.saturating_add(KEPT_MS),
        });
    }

    fn receiver(&self, id: TaskId) -> Result<watch::Receiver<Task>, Problem> {
        let known = self.known();
        let entry = known.values().find(|entry| entry.task.borrow().uuid == id);
        entry.map(|entry| entry.task.subscribe()).ok_or_else(|| no_task(id))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_task(id: TaskId) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("there is no task {id} (tasks are kept for an hour)"))
}

impl Running {
    /// Says how far it is.
    pub fn progress(&self, done: u64, total: Option<u64>) {
        self.change(|task| {
            task.progress.done = done;
            task.progress.total = total.or(task.progress.total);
        });
    }

    /// True when it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.tasks.known().get(&self.number).is_some_and(|entry| entry.wants_cancel)
    }

    /// It is over.
    pub fn finish(&self, end: Result<Value, Problem>, now_ms: u64) -> Task {
        let is_cancelled = self.is_cancelled();
        self.change(|task| {
            task.finished_at = Some(Timestamp::from_unix_ms(now_ms));
            match end {
                Ok(result) => {
                    task.state = if is_cancelled { TaskState::Cancelled } else { TaskState::Succeeded };
                    task.result = Some(result);
                }
                Err(problem) => {
                    task.state = TaskState::Failed;
                    task.error = Some(problem);
                }
            }
        });
        let mut known = self.tasks.known();
        let entry = known.get_mut(&self.number).expect("a task that is not over is not forgotten");
        entry.finished_ms = Some(now_ms);
        entry.task.borrow().clone()
    }

    fn change(&self, change: impl FnOnce(&mut Task)) {
        if let Some(entry) = self.tasks.known().get(&self.number) {
            entry.task.send_modify(|task| {
                change(task);
                task.revision += 1;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(tasks: &Arc<Tasks>, id: u128) -> Running {
        let about = About { kind: "trash.empty", subject: None, subject_name: None, unit: "vdisks" };
        tasks.begin(TaskId(Uuid::from_u128(id)), about, 1000)
    }

    #[tokio::test]
    async fn a_task_is_waited_for() {
        let tasks = Arc::new(Tasks::default());
        let running = begin(&tasks, 1);
        running.progress(3, Some(7));
        let early = tasks.wait(running.id, Duration::from_millis(5)).await.unwrap();
        assert_eq!(
            (early.state, early.progress.done, early.progress.total),
            (TaskState::Running, 3, Some(7))
        );
        let waiter = {
            let (tasks, id) = (tasks.clone(), running.id);
            tokio::spawn(async move { tasks.wait(id, Duration::from_secs(5)).await })
        };
        tokio::task::yield_now().await;
        running.finish(Ok(Value::Null), 2000);
        assert_eq!(waiter.await.unwrap().unwrap().state, TaskState::Succeeded);
        assert_eq!(tasks.cancel(running.id).unwrap_err().kind(), ProblemKind::Conflict);
    }

    #[test]
    fn a_cancelled_task_says_so() {
        let tasks = Arc::new(Tasks::default());
        let running = begin(&tasks, 1);
        assert!(!running.is_cancelled());
        tasks.cancel(running.id).unwrap();
        assert!(running.is_cancelled());
        assert_eq!(running.finish(Ok(Value::Null), 2000).state, TaskState::Cancelled);
    }

    #[test]
    fn old_ends_are_forgotten_and_running_tasks_are_not() {
        let tasks = Arc::new(Tasks::default());
        let (over, running) = (begin(&tasks, 1), begin(&tasks, 2));
        over.finish(Ok(Value::Null), 2000);
        tasks.forget_old(2000 + KEPT_MS);
        assert_eq!(tasks.get(over.id).unwrap_err().kind(), ProblemKind::NotFound);
        assert!(tasks.get(running.id).is_ok());
    }
}
