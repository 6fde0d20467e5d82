//! Who may still be reading what was there at some moment.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
};

/// Those who read what may be removed once nobody reads it any more.
#[derive(Default)]
pub(crate) struct Readers {
    newest: RefCell<Rc<Reading>>,
}

/// Held as long as somebody reads what was there when it was begun, or later.
#[derive(Default)]
pub(crate) struct Reading {
    next: RefCell<Option<Rc<Reading>>>,
}

impl Readers {
    pub(crate) fn begin(&self) -> Rc<Reading> {
        self.newest.borrow().clone()
    }

    /// Nothing is left of what this returns when everybody who has begun so far has ended.
    pub(crate) fn turn(&self) -> Weak<Reading> {
        let before = self.newest.replace(Rc::default());
        // Who has this one reads what older ones may read as well.
        *before.next.borrow_mut() = Some(self.begin());
        Rc::downgrade(&before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_keeps_what_is_newer_too() {
        let readers = Readers::default();
        let first = readers.begin();
        let (of_first, of_second) = (readers.turn(), readers.turn());
        let third = readers.begin();
        assert_eq!((of_first.strong_count(), of_second.strong_count()), (1, 1));
        drop(first);
        assert_eq!((of_first.strong_count(), of_second.strong_count()), (0, 0));
        let of_third = readers.turn();
        assert_eq!(of_third.strong_count(), 1);
        drop(third);
        assert_eq!(of_third.strong_count(), 0);
    }
}
