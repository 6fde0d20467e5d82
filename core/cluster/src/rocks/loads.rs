//! Reading map pages: one thread reads for all who ask meanwhile. To wake up a thread takes several times as long as to read
//! a page that the kernel has in memory.

use super::database::{Database, lock};
use bytes::Bytes;
use ovs_volume::{PageId, VolumeError};
use std::{
    mem::take,
    sync::{Arc, Mutex},
};
use tokio::sync::oneshot;

type Answer = Result<Option<Bytes>, VolumeError>;
type Read = fn(&Database, PageId) -> Answer;

/// Who waits for which page.
#[derive(Debug, Default)]
pub(super) struct Loads {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<(PageId, oneshot::Sender<Answer>)>,
    /// A thread is at it.
    is_read: bool,
}

impl Loads {
    /// The page by `read`, which is the same for all.
    pub(super) async fn load(self: &Arc<Self>, database: &Arc<Database>, page: PageId, read: Read) -> Answer {
        let (sender, receiver) = oneshot::channel();
        let begin = {
            let mut queue = lock(&self.queue);
            queue.waiting.push((page, sender));
            !std::mem::replace(&mut queue.is_read, true)
        };
        if begin {
            let turn = Turn { loads: Arc::clone(self), is_over: false };
            let database = Arc::clone(database);
            tokio::task::spawn_blocking(move || turn.read_all(&database, read));
        }
        receiver.await.unwrap_or_else(|_| {
            Err(VolumeError::Retry("the task that reads map pages has ended early".to_owned()))
        })
    }
}

/// The one who reads. Whatever ends it, another may begin, and nobody waits for it any more.
struct Turn {
    loads: Arc<Loads>,
    is_over: bool,
}

impl Turn {
    fn read_all(mut self, database: &Database, read: Read) {
        loop {
            let some = {
                let mut queue = lock(&self.loads.queue);
                if queue.waiting.is_empty() {
                    // In one step: whoever asks from now on begins anew.
                    queue.is_read = false;
                    self.is_over = true;
                    return;
                }
                take(&mut queue.waiting)
            };
            for (page, sender) in some {
                if !sender.is_closed() {
                    // Who has gone meanwhile needs no answer.
                    let _gone = sender.send(read(database, page));
                }
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over {
            let mut queue = lock(&self.loads.queue);
            queue.is_read = false;
            queue.waiting.clear();
        }
    }
}
