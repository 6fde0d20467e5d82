//! The table of named sessions: a newer generation ends the older connection and waits until that is drained.
//!
//! ```text
//! admit(5) ─ holder 5 ──────────── superseded ── drain ── guard dropped
//!                  admit(6): newest 6, waits ─────────────────────────▶ holder 6
//! ```
//!
//! Invariant: at most one holder per session, and none is admitted before the one before it has dropped its guard.

use crate::session::{Generation, Session, SessionId};
use ovs_units::planted;
use std::{cell::RefCell, collections::HashMap, rc::Rc};
use tokio::sync::watch;

/// All sessions that have a connection, admitted or waiting.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    table: RefCell<HashMap<SessionId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    state: watch::Sender<State>,
    /// Guards that exist: the holder's and those of the waiting.
    guards: usize,
}

#[derive(Debug, Clone, Copy)]
struct State {
    newest: Generation,
    holder: Option<Generation>,
}

/// A newer (or the same) generation of the session is here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Superseded;

/// The right to be the session's connection, until it is dropped.
#[derive(Debug)]
pub(super) struct SessionGuard {
    sessions: Rc<Sessions>,
    session: Session,
    state: watch::Receiver<State>,
}

impl Sessions {
    /// Ends the session's older connection, waits until its guard is dropped, and takes its place.
    pub(super) async fn admit(self: &Rc<Self>, session: Session) -> Result<SessionGuard, Superseded> {
        let mut guard = self.announce(session)?;
        let mine = session.generation;
        let does_not_wait = planted("session: a new connection does not wait for the old one's requests");
        let admits = |state: &State| state.newest != mine || state.holder.is_none() || does_not_wait;
        let state = guard.state.wait_for(admits).await;
        // The sender lives in the table for as long as a guard does.
        let superseded = !state.is_ok_and(|state| state.newest == mine);
        if superseded {
            return Err(Superseded);
        }
        self.change(session.id, |state| state.holder = Some(mine));
        Ok(guard)
    }

    fn announce(self: &Rc<Self>, session: Session) -> Result<SessionGuard, Superseded> {
        let mut table = self.table.borrow_mut();
        let fresh = State { newest: session.generation, holder: None };
        let is_new = !table.contains_key(&session.id);
        let entry =
            table.entry(session.id).or_insert_with(|| Entry { state: watch::Sender::new(fresh), guards: 0 });
        if !is_new {
            if session.generation <= entry.state.borrow().newest {
                return Err(Superseded);
            }
            entry.state.send_modify(|state| state.newest = session.generation);
        }
        entry.guards += 1;
        Ok(SessionGuard { sessions: Rc::clone(self), session, state: entry.state.subscribe() })
    }

    fn change(&self, id: SessionId, change: impl FnOnce(&mut State)) {
        if let Some(entry) = self.table.borrow().get(&id) {
            entry.state.send_modify(change);
        }
    }
}

impl SessionGuard {
    /// Comes back when a newer generation has arrived.
    pub(super) async fn superseded(&self) {
        let mine = self.session.generation;
        let mut state = self.state.clone();
        // An error would mean that the entry is gone, which this guard prevents.
        let _ = state.wait_for(|state| state.newest > mine).await;
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let mine = self.session.generation;
        self.sessions.change(self.session.id, |state| {
            if state.holder == Some(mine) {
                state.holder = None;
            }
        });
        let mut table = self.sessions.table.borrow_mut();
        if let Some(entry) = table.get_mut(&self.session.id) {
            entry.guards -= 1;
            if entry.guards == 0 {
                table.remove(&self.session.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::pin::pin;
    use uuid::Uuid;

    fn session(generation: u64) -> Session {
        Session { id: SessionId(Uuid::from_u128(1)), generation: Generation(generation) }
    }

    #[tokio::test]
    async fn a_newer_generation_waits_for_the_older_ones_drain() {
        let sessions = Rc::new(Sessions::default());
        let first = sessions.admit(session(1)).await.unwrap();
        assert!(first.superseded().now_or_never().is_none());

        let mut second = pin!(sessions.admit(session(2)));
        assert!(second.as_mut().now_or_never().is_none(), "admitted beside a live one");
        assert!(first.superseded().now_or_never().is_some(), "the older one was not told");

        drop(first);
        let second = second.now_or_never().expect("the way is free").unwrap();
        assert_eq!(sessions.admit(session(2)).await.unwrap_err(), Superseded, "equal");
        assert_eq!(sessions.admit(session(1)).await.unwrap_err(), Superseded, "older");
        drop(second);
        assert!(sessions.table.borrow().is_empty());
        assert!(sessions.admit(session(1)).await.is_ok(), "nothing is left of an ended session");
    }

    #[tokio::test]
    async fn who_waits_may_be_superseded_and_frees_nothing() {
        let sessions = Rc::new(Sessions::default());
        let first = sessions.admit(session(1)).await.unwrap();
        let mut second = pin!(sessions.admit(session(2)));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = pin!(sessions.admit(session(3)));
        assert!(third.as_mut().now_or_never().is_none());
        assert_eq!(second.now_or_never().expect("told at once").unwrap_err(), Superseded);
        assert!(third.as_mut().now_or_never().is_none(), "the first is not drained yet");
        drop(first);
        assert!(third.now_or_never().expect("the way is free").is_ok());
    }
}
