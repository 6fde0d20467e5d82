//! What is there twice goes only when nobody reads it any more.
//!
//! Who reads looks where fragments are, and then asks for them; who lists asks one drive after the other. If fragments were moved
//! meanwhile, one after the other, he would miss more of an object than parity makes good, or all of it. So whatever is to be
//! removed waits until everybody is done who began before its successor stood.

use std::{cell::RefCell, convert::Infallible};
use tokio::sync::{Mutex, mpsc};

/// Those who read now.
pub(super) struct Removals {
    /// Of the present time: each reader has a copy of the sender, and who waits sees them all dropped.
    now: RefCell<(mpsc::Sender<Infallible>, mpsc::Receiver<Infallible>)>,
    /// Times that have ended, and whose readers may not be done; also those that nobody waits for any more.
    before: Mutex<Vec<mpsc::Receiver<Infallible>>>,
}

impl Default for Removals {
    fn default() -> Removals {
        Removals { now: RefCell::new(mpsc::channel(1)), before: Mutex::default() }
    }
}

/// Somebody reads, for as long as this lives.
pub(super) struct Reader(
    #[expect(dead_code, reason = "that it is dropped is seen at the other end")] mpsc::Sender<Infallible>,
);

impl Removals {
    pub(super) fn reader(&self) -> Reader {
        Reader(self.now.borrow().0.clone())
    }

    /// Returns when all readers of now are done.
    pub(super) async fn readers_are_done(&self) {
        let mut before = self.before.lock().await;
        before.push(self.now.replace(mpsc::channel(1)).1);
        while let Some(readers) = before.last_mut() {
            // Nothing is ever sent: this is `None` once the last sender is gone.
            let _nobody = readers.recv().await;
            before.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::pin::pin;

    #[test]
    fn those_of_before_are_waited_for_and_no_others() {
        let removals = Removals::default();
        assert_eq!(removals.readers_are_done().now_or_never(), Some(()));
        let (first, second) = (removals.reader(), removals.reader());
        let mut one = pin!(removals.readers_are_done());
        assert_eq!(one.as_mut().now_or_never(), None);
        drop(first);
        let late = removals.reader();
        assert_eq!(one.as_mut().now_or_never(), None);
        // Who waits later waits for these, too.
        let mut other = pin!(removals.readers_are_done());
        assert_eq!(other.as_mut().now_or_never(), None);
        drop(late);
        assert_eq!(other.as_mut().now_or_never(), None);
        drop(second);
        assert_eq!(one.as_mut().now_or_never(), Some(()));
        assert_eq!(other.as_mut().now_or_never(), Some(()));
    }

    #[test]
    fn who_gave_up_waiting_has_not_made_anybody_be_forgotten() {
        let removals = Removals::default();
        let reader = removals.reader();
        assert_eq!(removals.readers_are_done().now_or_never(), None);
        assert_eq!(removals.readers_are_done().now_or_never(), None);
        drop(reader);
        assert_eq!(removals.readers_are_done().now_or_never(), Some(()));
    }
}
