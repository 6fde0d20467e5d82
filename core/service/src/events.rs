//! What happened, in order, for those who watch.
//!
//! The last 10,000 events are kept in memory. Their numbers only grow, over restarts too: numbers are reserved in the
//! registry in large steps before they are used (`Volumes` does that), so that a watcher who comes back after a
//! restart is told to list again instead of missing something.

use futures_util::stream::{self, BoxStream, StreamExt};
use ovs_api::{Event, EventId, Problem, ProblemKind};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Events kept.
const EVENTS_KEPT: usize = 10_000;

/// The ring of events. Any thread.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Ring {
    /// The number of the next event.
    next: u64,
    kept: VecDeque<Arc<Event>>,
}

impl Events {
    /// An empty ring whose first event will have this number.
    pub fn starting_at(first: u64) -> Events {
        let (newest, _) = watch::channel(first.saturating_sub(1));
        Events { ring: Mutex::new(Ring { next: first, kept: VecDeque::new() }), newest }
    }

    /// Adds an event; its number is set here.
    pub fn publish(&self, mut event: Event) -> EventId {
        let mut ring = self.ring();
        event.id = EventId(ring.next);
        ring.next += 1;
        if ring.kept.len() == EVENTS_KEPT {
            ring.kept.pop_front();
        }
        let id = event.id;
        ring.kept.push_back(Arc::new(event));
        drop(ring);
        self.newest.send_replace(id.0);
        id
    }

    /// The number of the newest event there has been.
    pub fn newest(&self) -> EventId {
        EventId(self.ring().next - 1)
    }

    /// What happens after `last_seen` (from now on when it is not given). `Gone` when that is no longer kept, or was
    /// never given out.
    pub fn follow(
        self: &Arc<Self>,
        last_seen: Option<EventId>,
    ) -> Result<(EventId, BoxStream<'static, Event>), Problem> {
        let ring = self.ring();
        let newest = ring.next - 1;
        let last_seen = last_seen.map_or(newest, |id| id.0);
        let oldest_resumable = ring.kept.front().map_or(newest, |event| event.id.0 - 1);
        if last_seen < oldest_resumable || last_seen > newest {
            let detail =
                format!("events after {last_seen} are not kept (only after {oldest_resumable}): list again");
            return Err(Problem::new(ProblemKind::Gone, detail));
        }
        drop(ring);
        let follower = (self.clone(), self.newest.subscribe(), last_seen);
        let events = stream::unfold(follower, |(events, mut changed, seen)| async move {
            loop {
                match events.after(seen) {
                    Next::Event(event) => {
                        let id = event.id.0;
                        return Some(((*event).clone(), (events, changed, id)));
                    }
                    Next::Lost => return None,
                    Next::Nothing => changed.wait_for(|newest| *newest > seen).await.ok().map(drop)?,
                }
            }
        });
        Ok((EventId(newest), events.boxed()))
    }

    fn after(&self, seen: u64) -> Next {
        let ring = self.ring();
        let Some(first) = ring.kept.front().map(|event| event.id.0) else { return Next::Nothing };
        if seen + 1 < first {
            return Next::Lost;
        }
        // Numbers in the ring are dense, so that the position follows from the number.
        match ring.kept.get((seen + 1 - first) as usize) {
            Some(event) => Next::Event(event.clone()),
            None => Next::Nothing,
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Next {
    Event(Arc<Event>),
    Nothing,
    /// The reader is so slow that its next event is gone.
    Lost,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_api::{EventKind, Timestamp};

    fn event() -> Event {
        Event {
            id: EventId(0),
            kind: EventKind::VdiskUpdated,
            subject: None,
            revision: None,
            vpool: None,
            vdisk: None,
            name: None,
            previous_name: None,
            size_bytes: None,
            detail: None,
            at: Timestamp::from_unix_ms(0),
        }
    }

    #[tokio::test]
    async fn a_follower_misses_nothing() {
        let events = Arc::new(Events::starting_at(100));
        events.publish(event());
        let (newest, mut from_now) = events.follow(None).unwrap();
        assert_eq!(newest, EventId(100));
        let (_, mut from_the_start) = events.follow(Some(EventId(99))).unwrap();
        events.publish(event());
        assert_eq!(from_now.next().await.unwrap().id, EventId(101));
        assert_eq!(from_the_start.next().await.unwrap().id, EventId(100));
        assert_eq!(from_the_start.next().await.unwrap().id, EventId(101));
        let waiting = tokio::spawn(async move { from_now.next().await.unwrap().id });
        tokio::task::yield_now().await;
        events.publish(event());
        assert_eq!(waiting.await.unwrap(), EventId(102));
    }

    #[tokio::test]
    async fn what_is_not_kept_is_gone() {
        let events = Arc::new(Events::starting_at(100));
        let gone = |last: u64| events.follow(Some(EventId(last))).err().map(|problem| problem.kind());
        assert_eq!(gone(98), Some(ProblemKind::Gone), "before a restart");
        assert_eq!(gone(99), None);
        assert_eq!(gone(100), Some(ProblemKind::Gone), "never given out");
        let (_, mut slow) = events.follow(None).unwrap();
        for _ in 0..EVENTS_KEPT + 1 {
            events.publish(event());
        }
        assert_eq!(gone(99), Some(ProblemKind::Gone));
        assert_eq!(gone(100), None);
        assert!(slow.next().await.is_none(), "a reader that is too slow is told so by the end of its stream");
    }
}
