//! Reading map pages: one thread reads for all who ask meanwhile, because to wake up a thread takes several times as long as to
//! read a page that the kernel has in memory. Where a read had to wait for the disk, others help from then on.

use super::database::{Database, lock};
use bytes::Bytes;
use ovs_volume::{PageId, VolumeError};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Threads that read at most.
const READERS_MAX: usize = 8;
/// Answers that are given together: whoever waits for them is woken up once, and does not take the reader's processor after each.
const ANSWERS_MAX: usize = 16;
/// A read that takes longer has waited for a disk.
const SLOW_READ: Duration = Duration::from_micros(200);

type Answer = Result<Option<Bytes>, VolumeError>;
type Read = fn(&Database, PageId) -> Answer;
type Answers = Vec<(oneshot::Sender<Answer>, Answer)>;

/// Who waits for which page.
#[derive(Debug, Default)]
pub(super) struct Loads {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Wanted>,
    /// Threads that are at it.
    readers: usize,
}

#[derive(Debug)]
struct Wanted {
    page: PageId,
    database: Arc<Database>,
    sender: oneshot::Sender<Answer>,
}

impl Loads {
    /// The page by `read`, which is the same for all.
    pub(super) async fn load(self: &Arc<Self>, database: &Arc<Database>, page: PageId, read: Read) -> Answer {
        let (sender, receiver) = oneshot::channel();
        let is_first = {
            let mut queue = lock(&self.queue);
            queue.waiting.push_back(Wanted { page, database: Arc::clone(database), sender });
            queue.readers == 0
        };
        if is_first {
            self.read_beside(read);
        }
        receiver.await.unwrap_or_else(|_| {
            Err(VolumeError::Retry("the task that reads map pages has ended early".to_owned()))
        })
    }

    /// One more reader, if there may be.
    fn read_beside(self: &Arc<Self>, read: Read) {
        let reader = {
            let mut queue = lock(&self.queue);
            if queue.readers >= READERS_MAX || queue.waiting.is_empty() {
                return;
            }
            queue.readers += 1;
            Reader { loads: Arc::clone(self), has_left: false }
        };
        // Without the lock: a runtime that ends drops the reader at once, which takes it.
        tokio::task::spawn_blocking(move || reader.read_all(read));
    }
}

fn give(answers: &mut Answers) {
    for (sender, answer) in answers.drain(..) {
        let _gone = sender.send(answer);
    }
}

/// One who reads. Whatever ends the last of them, another may begin, and nobody waits for it any more.
struct Reader {
    loads: Arc<Loads>,
    has_left: bool,
}

impl Reader {
    #[expect(clippy::disallowed_methods, reason = "how long a disk takes is no matter of the engine's time")]
    fn read_all(mut self, read: Read) {
        let mut answers = Vec::with_capacity(ANSWERS_MAX);
        while let Some(Wanted { page, database, sender }) = self.next(&mut answers) {
            // Who has gone meanwhile needs no answer.
            if sender.is_closed() {
                continue;
            }
            let begun = Instant::now();
            let answer = read(&database, page);
            // Before the answer: whoever closes the database after the last one finds it closed.
            drop(database);
            answers.push((sender, answer));
            let is_slow = begun.elapsed() >= SLOW_READ;
            if is_slow || answers.len() == ANSWERS_MAX {
                give(&mut answers);
            }
            if is_slow {
                self.loads.read_beside(read);
            }
        }
    }

    /// In one step with leaving: whoever asks from then on begins anew. Nobody waits for an answer that is there while nothing
    /// else is read.
    fn next(&mut self, answers: &mut Answers) -> Option<Wanted> {
        let mut queue = lock(&self.loads.queue);
        if queue.waiting.is_empty() && !answers.is_empty() {
            drop(queue);
            give(answers);
            queue = lock(&self.loads.queue);
        }
        let next = queue.waiting.pop_front();
        if next.is_none() {
            queue.readers -= 1;
            self.has_left = true;
        }
        next
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.has_left {
            let mut queue = lock(&self.loads.queue);
            queue.readers -= 1;
            if queue.readers == 0 {
                queue.waiting.clear();
            }
        }
    }
}
