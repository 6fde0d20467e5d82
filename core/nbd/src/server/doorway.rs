//! The bound on connections that have not finished negotiating.
//!
//! Whoever comes when all places are taken gets the place of the oldest, who is hung up on: a client in earnest
//! negotiates in milliseconds, so that any number of half-open connections keeps nobody out. Those that wait for us are
//! never evicted.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};
use tokio::sync::Notify;

/// All that negotiate, the oldest first.
#[derive(Debug)]
pub(super) struct Doorway {
    places_max: usize,
    next: Cell<u64>,
    taken: RefCell<BTreeMap<u64, Rc<State>>>,
}

#[derive(Debug, Default)]
struct State {
    is_busy: Cell<bool>,
    evicted: Notify,
}

/// A place among those that negotiate, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    doorway: Rc<Doorway>,
    number: u64,
    state: Rc<State>,
}

/// While it lives, its place is not taken away.
pub(super) struct Busy<'a>(&'a State);

impl Doorway {
    pub(super) fn new(places_max: usize) -> Rc<Doorway> {
        Rc::new(Doorway { places_max, next: Cell::new(0), taken: RefCell::default() })
    }

    pub(super) fn count(&self) -> usize {
        self.taken.borrow().len()
    }

    /// A place, taken from the oldest if there is none; `None` if nobody can be evicted.
    pub(super) fn enter(self: &Rc<Self>) -> Option<Place> {
        let mut taken = self.taken.borrow_mut();
        if taken.len() >= self.places_max {
            let oldest = taken.iter().find(|(_, state)| !state.is_busy.get()).map(|(number, _)| *number)?;
            if let Some(state) = taken.remove(&oldest) {
                // `notify_one` is remembered until the connection waits the next time.
                state.evicted.notify_one();
            }
        }
        let number = self.next.get();
        self.next.set(number + 1);
        let state = Rc::new(State::default());
        taken.insert(number, Rc::clone(&state));
        Some(Place { doorway: Rc::clone(self), number, state })
    }
}

impl Place {
    /// Comes back when the place is wanted by another.
    pub(super) async fn evicted(&self) {
        self.state.evicted.notified().await;
    }

    pub(super) fn busy(&self) -> Busy<'_> {
        self.state.is_busy.set(true);
        Busy(&self.state)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.is_busy.set(false);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.doorway.taken.borrow_mut().remove(&self.number);
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
