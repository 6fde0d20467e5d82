//! Whether anybody waits for a connection's answers.
//!
//! A request that has begun goes to its end whatever happens. One that is still held back when the client dies must not begin
//! much later, among those of whoever came after.

use ovs_units::planted;
use std::cell::Cell;
use tokio::sync::Notify;

/// The client, as long as it is there. One per connection.
#[derive(Debug, Default)]
pub(super) struct Audience {
    has_left: Cell<bool>,
    leaving: Notify,
}

impl Audience {
    /// Nobody waits any more.
    pub(super) fn leave(&self) {
        if !planted("nbd: what a dead client asked for begins later") && !self.has_left.replace(true) {
            self.leaving.notify_waiters();
        }
    }

    /// Comes back when nobody waits any more.
    pub(super) async fn left(&self) {
        // One thread: nobody leaves between the question and the first poll.
        if !self.has_left.get() {
            self.leaving.notified().await;
        }
    }
}
