//! A read that takes unusually long is asked of the others as well, and the first answer counts.
//!
//! How long is unusual, earlier reads tell. Where many reads are slow it is no one drive's fault, and to ask for more would make it
//! worse: so only a tenth of all reads may be asked twice, not counting those that the others answer as soon as usual: then it is that drive's.

use super::Inner;
use super::get::{Miss, Piece};
use super::known::Object;
use futures_util::future::{Either, select};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    pin::pin,
    rc::Rc,
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// So many times as long as usual is unusual, …
const UNUSUAL: u32 = 8;
/// … this at least: a disk that seeks is no slow drive, …
const WAIT_MIN: Duration = Duration::from_millis(20);
/// … and this at most.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// For so long others are asked at once, with a drive that was slower than they.
const SLOW: Duration = Duration::from_secs(5);
/// Reads asked twice, for each that is read, without those that others answered soon.
const SHARE: f64 = 0.1;
/// Reads asked twice in a row.
const BURST: f64 = 16.0;

/// What is known of how long reads take.
pub(super) struct Hedges {
    /// A weighted mean of the last ones.
    usual: Cell<Duration>,
    /// Reads that may be asked twice now.
    allowed: Cell<f64>,
    /// Drives that were slower than others, until when.
    slow: RefCell<BTreeMap<usize, Instant>>,
}

impl Default for Hedges {
    fn default() -> Hedges {
        Hedges { usual: Cell::new(WAIT_MIN), allowed: Cell::new(BURST), slow: RefCell::default() }
    }
}

impl Hedges {
    /// A read was answered.
    fn answered(&self, took: Duration) {
        // What took long by itself counts as the longest that is waited for.
        self.usual.set((self.usual.get() * 15 + took.min(WAIT_MAX)) / 16);
        self.allowed.set((self.allowed.get() + SHARE).min(BURST));
    }

    /// How long to wait for it before others are asked.
    fn wait(&self, drive: Option<usize>) -> Duration {
        let is_slow = |drive| self.slow.borrow().get(&drive).is_some_and(|until| Instant::now() < *until);
        match drive.is_some_and(is_slow) {
            true => Duration::ZERO,
            false => (self.usual.get() * UNUSUAL).clamp(WAIT_MIN, WAIT_MAX),
        }
    }

    fn was_worth_it(&self) {
        self.allowed.set((self.allowed.get() + 1.0).min(BURST));
    }

    fn may_ask_twice(&self) -> bool {
        let may = self.allowed.get() >= 1.0;
        if may {
            self.allowed.set(self.allowed.get() - 1.0);
        }
        may
    }
}

impl Inner {
    /// The frames as their own fragment has them, or as others tell them if it takes longer to answer than they.
    pub(super) async fn read_soon(&self, object: &Rc<Object>, piece: &Piece) -> Result<Vec<u8>, Miss> {
        let began = Instant::now();
        let mut own = pin!(self.read_fragment(object, piece));
        if object.geometry().parity == 0 {
            return own.await;
        }
        let drive = self.places(object, piece.chunk, piece.fragment, false).first().copied();
        let wait = self.hedges.wait(drive);
        if let Ok(read) = timeout(wait, &mut own).await {
            self.hedges.answered(began.elapsed());
            return read;
        }
        if !self.hedges.may_ask_twice() {
            let read = own.await;
            self.hedges.answered(began.elapsed());
            return read;
        }
        let asked = Instant::now();
        let others = pin!(self.reconstruct_from(object, piece, false));
        let read = match select(own, others).await {
            Either::Left((Ok(plain), _)) => Ok(plain),
            Either::Left((Err(miss), others)) => others.await.map_err(|other| miss.or(other)),
            Either::Right((Ok(plain), _)) => {
                self.count(|stats| stats.hedged += 1);
                if asked.elapsed() <= self.hedges.wait(None) {
                    self.hedges.was_worth_it();
                }
                // Of one that was not waited for nobody knows how long it takes: it is tried again when its time is over.
                if let Some(drive) = drive.filter(|_| !wait.is_zero()) {
                    self.hedges.slow.borrow_mut().insert(drive, Instant::now() + SLOW);
                }
                Ok(plain)
            }
            Either::Right((Err(other), own)) => own.await.map_err(|miss| miss.or(other)),
        };
        self.hedges.answered(began.elapsed());
        read
    }
}
