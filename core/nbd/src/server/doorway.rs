//! The bound on connections that have not finished negotiating.
//!
//! Whoever comes when all places are taken gets the place of the oldest, who is hung up on: a client in earnest
//! negotiates in milliseconds, so that any number of half-open connections keeps nobody out. Those that wait for us are
//! never evicted.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use tokio::sync::Notify;

/// All that negotiate, the oldest first.
#[derive(Debug)]
pub(super) struct Doorway {
    places_max: usize,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    taken: BTreeMap<u64, Arc<State>>,
}

#[derive(Debug, Default)]
struct State {
    is_busy: AtomicBool,
    evicted: Notify,
}

/// A place among those that negotiate, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    doorway: Arc<Doorway>,
    number: u64,
    state: Arc<State>,
}

/// While it lives, its place is not taken away.
pub(super) struct Busy<'a>(&'a State);

impl Doorway {
    pub(super) fn new(places_max: usize) -> Arc<Doorway> {
        Arc::new(Doorway { places_max, places: Mutex::default() })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self) -> usize {
        self.places().taken.len()
    }

    /// A place, taken from the oldest if there is none; `None` if nobody can be evicted.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut places = self.places();
        if places.taken.len() >= self.places_max {
            let idle = |(_, state): &(&u64, &Arc<State>)| !state.is_busy.load(Relaxed);
            let oldest = places.taken.iter().find(idle).map(|(number, _)| *number)?;
            if let Some(state) = places.taken.remove(&oldest) {
                // `notify_one` is remembered until the connection waits the next time.
                state.evicted.notify_one();
            }
        }
        let number = places.next;
        places.next += 1;
        let state = Arc::new(State::default());
        places.taken.insert(number, Arc::clone(&state));
        Some(Place { doorway: Arc::clone(self), number, state })
    }
}

impl Place {
    /// Comes back when the place is wanted by another.
    pub(super) async fn evicted(&self) {
        self.state.evicted.notified().await;
    }

    pub(super) fn busy(&self) -> Busy<'_> {
        self.state.is_busy.store(true, Relaxed);
        Busy(&self.state)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.is_busy.store(false, Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.doorway.places().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn the_oldest_idle_one_makes_room() {
        let doorway = Doorway::new(2);
        let (first, second) = (doorway.enter().unwrap(), doorway.enter().unwrap());
        let busy = first.busy();
        let _third = doorway.enter().unwrap();
        assert!(first.evicted().now_or_never().is_none(), "busy ones stay");
        assert!(second.evicted().now_or_never().is_some());
        assert_eq!(doorway.count(), 2);
        drop(busy);
        drop(second);
        assert_eq!(doorway.count(), 2, "an evicted place is given back once");
        drop(first);
        assert_eq!(doorway.count(), 1);
    }

    #[test]
    fn nobody_enters_when_all_are_busy() {
        let doorway = Doorway::new(1);
        let first = doorway.enter().unwrap();
        let _busy = first.busy();
        assert!(doorway.enter().is_none());
    }
}
