//! Holds a guest's requests back so that they keep within the limits of their vDisk.
//!
//! ```text
//!  request ─▶ nothing limited, or every bucket takes it and nobody waits ─▶ goes on
//!          └▶ queue of reads │ queue of writes ─▶ let go in order, as many at once as the buckets take by then
//! ```
//!
//! Invariants
//! * Reads go on in the order in which they came, and so do writes. Of two that a common limit holds, the one that came first.
//! * Who waits holds nothing: no lock, no room in the write buffer. Given up, it leaves nothing behind, and what it was
//!   charged is given back.
//! * Without limits a request costs one branch; with them and within them it allocates nothing.
//!
//! Not here: who asks (a guest's request, once, at its door), and whether the vDisk still serves when its turn comes.

mod bucket;

use crate::Clock;
use bucket::Bucket;
use ovs_units::{ByteCount, ByteRange, CLUSTER_SIZE_BYTES, Limits, planted};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};
use tokio::sync::Notify;

/// Time that passes without this thread getting round to it is made up for, up to here: after a machine was suspended nobody
/// has a flood to expect.
const LATE_MAX: Duration = Duration::from_secs(1);

/// What a guest asks for, as limits count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestRequest {
    /// A read of so many bytes.
    Read(ByteCount),
    /// A write of so many bytes.
    Write(ByteCount),
    /// A discard or write-zeroes: a request like a write, of no bytes but those of clusters that it clears in part.
    Zero(ByteRange),
}

impl GuestRequest {
    fn is_read(self) -> bool {
        matches!(self, GuestRequest::Read(_))
    }

    fn bytes(self) -> u64 {
        match self {
            GuestRequest::Read(bytes) | GuestRequest::Write(bytes) => bytes.0,
            GuestRequest::Zero(range) => {
                let rewritten = range.clusters_touched().count.0 - range.clusters_covered().count.0;
                rewritten * CLUSTER_SIZE_BYTES
            }
        }
    }
}

/// See the module. One per vDisk.
pub(crate) struct Limiter {
    state: Rc<State>,
}

/// What became of requests that had to wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Throttled {
    pub(crate) requests: u64,
    pub(crate) waited: Duration,
}

struct State {
    clock: Rc<dyn Clock>,
    limits: Cell<Limits>,
    is_limited: Cell<bool>,
    buckets: RefCell<Vec<Bucket>>,
    /// Reads, and writes; each in the order in which they came.
    waiting: [RefCell<VecDeque<Rc<Turn>>>; 2],
    came: Cell<u64>,
    /// A task sees to it that who waits gets on.
    is_attended: Cell<bool>,
    changed: Notify,
    throttled: Cell<Throttled>,
}

/// A request that waits for its turn.
struct Turn {
    request: GuestRequest,
    number: u64,
    came: Duration,
    stage: Cell<Stage>,
    called: Notify,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// Its turn, and charged.
    Charged,
    /// It may go on and owes nothing.
    Free,
}

impl Limiter {
    pub(crate) fn new(clock: Rc<dyn Clock>) -> Limiter {
        let state = State {
            clock,
            limits: Cell::default(),
            is_limited: Cell::new(false),
            buckets: RefCell::default(),
            waiting: Default::default(),
            came: Cell::new(0),
            is_attended: Cell::new(false),
            changed: Notify::new(),
            throttled: Cell::default(),
        };
        Limiter { state: Rc::new(state) }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.state.limits.get()
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.state.is_limited.get()
    }

    pub(crate) fn throttled(&self) -> Throttled {
        self.state.throttled.get()
    }

    /// From now on these hold, for those who wait as well.
    pub(crate) fn set(&self, limits: Limits) {
        let state = &self.state;
        state.limits.set(limits);
        let now = state.clock.now().into();
        let buckets = Bucket::all_of(&limits, &state.buckets.borrow(), now);
        state.is_limited.set(!buckets.is_empty());
        state.buckets.replace(buckets);
        if !planted("limits: who waits hears of no change") {
            // At once, so that nobody who comes after this goes first.
            state.let_on();
            state.changed.notify_one();
        }
    }

    /// All who wait go on now.
    pub(crate) fn let_go(&self) {
        if planted("limits: an end tells nobody who waits") {
            return;
        }
        for queue in &self.state.waiting {
            for turn in queue.borrow_mut().drain(..) {
                turn.call(Stage::Free);
            }
        }
        self.state.changed.notify_one();
    }

    /// Comes back when the request may go on. Dropped before, it was never there.
    pub(crate) async fn turn(&self, request: GuestRequest) {
        if !self.is_limited() {
            return;
        }
        let (state, now) = (&self.state, self.state.clock.now());
        if state.nobody_waits() && state.passes(request, now, now) {
            return;
        }
        let waiting = Waiting::begin(state, request, now);
        state.let_on();
        if waiting.turn.stage.get() == Stage::Waiting {
            waiting.is_throttled();
            self.attend();
            waiting.turn.called.notified().await;
        }
        waiting.go_on();
    }

    /// Sees to it that who waits gets on, for as long as anybody does.
    fn attend(&self) {
        if self.state.is_attended.replace(true) {
            // The first of its queue may come before the one that is slept for.
            self.state.changed.notify_one();
            return;
        }
        let state = self.state.clone();
        tokio::task::spawn_local(async move {
            while let Some(nap) = state.let_on() {
                tokio::select! {
                    biased;
                    () = state.changed.notified() => {}
                    () = state.clock.sleep(nap) => {}
                }
            }
            state.is_attended.set(false);
        });
    }
}

impl State {
    fn nobody_waits(&self) -> bool {
        self.waiting.iter().all(|queue| queue.borrow().is_empty())
    }

    fn queue(&self, request: GuestRequest) -> &RefCell<VecDeque<Rc<Turn>>> {
        let separate = !planted("limits: reads wait behind writes");
        &self.waiting[usize::from(separate && request.is_read())]
    }

    /// Charges the request if every bucket takes it.
    fn passes(&self, request: GuestRequest, came: Duration, now: Duration) -> bool {
        let mut buckets = self.buckets.borrow_mut();
        let is_taken = bucket::takes_at(&buckets, request) <= now.into();
        if is_taken {
            let came = came.max(now.saturating_sub(LATE_MAX));
            bucket::charge(&mut buckets, request, came.into(), now.into());
        }
        is_taken
    }

    /// Lets on whoever may go on by now. Says how long the next has to wait, if there is one.
    fn let_on(&self) -> Option<Duration> {
        loop {
            let now = self.clock.now();
            let first_of = |queue: &RefCell<VecDeque<Rc<Turn>>>| queue.borrow().front().cloned();
            let first = self.waiting.iter().filter_map(first_of).map(|turn| {
                let at = bucket::takes_at(&self.buckets.borrow(), turn.request);
                (at.max(now.into()), turn.number, turn)
            });
            // Of those that may go on now the one that came first, or else the one that may first.
            let (_, _, turn) = first.min_by_key(|(at, number, _)| (*at, *number))?;
            if !self.passes(turn.request, turn.came, now) {
                let at = bucket::takes_at(&self.buckets.borrow(), turn.request);
                // Rounded up: a timer that comes too soon would come again.
                return Some(at.minus(now.into()).to_duration().max(Duration::from_nanos(1)));
            }
            self.queue(turn.request).borrow_mut().pop_front();
            turn.call(Stage::Charged);
        }
    }
}

impl Turn {
    fn call(&self, stage: Stage) {
        self.stage.set(stage);
        self.called.notify_one();
    }
}

/// A place in the queue, given up when this is dropped.
struct Waiting<'a> {
    state: &'a State,
    turn: Rc<Turn>,
    is_throttled: Cell<bool>,
}

impl Waiting<'_> {
    fn begin(state: &State, request: GuestRequest, now: Duration) -> Waiting<'_> {
        let number = state.came.get();
        state.came.set(number + 1);
        let (stage, called) = (Cell::new(Stage::Waiting), Notify::new());
        let turn = Rc::new(Turn { request, number, came: now, stage, called });
        state.queue(request).borrow_mut().push_back(turn.clone());
        Waiting { state, turn, is_throttled: Cell::new(false) }
    }

    fn is_throttled(&self) {
        self.is_throttled.set(true);
        let Throttled { requests, waited } = self.state.throttled.get();
        self.state.throttled.set(Throttled { requests: requests + 1, waited });
    }

    fn go_on(self) {
        self.turn.stage.set(Stage::Free);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_throttled.get() {
            let Throttled { requests, waited } = self.state.throttled.get();
            let waited = waited + self.state.clock.now().saturating_sub(self.turn.came);
            self.state.throttled.set(Throttled { requests, waited });
        }
        match self.turn.stage.get() {
            Stage::Waiting if planted("limits: who gives up keeps its place") => {}
            Stage::Waiting => {
                self.state.queue(self.turn.request).borrow_mut().retain(|turn| !Rc::ptr_eq(turn, &self.turn));
            }
            Stage::Charged if planted("limits: a turn that nobody takes is paid for") => {}
            Stage::Charged => {
                bucket::give_back(&mut self.state.buckets.borrow_mut(), self.turn.request);
            }
            Stage::Free => return,
        }
        // Somebody else may come sooner now.
        self.state.changed.notify_one();
    }
}

#[cfg(test)]
mod tests;
