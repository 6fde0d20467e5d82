//! How much memory the maps of all vDisks take, and which of their pages go when that is too much.
//!
//! A page that is stored as it is may go at any time: it is loaded again when it is needed. One that was changed stays until a
//! checkpoint has stored it, so that vDisks are checkpointed when changed pages take half of the budget. What goes is
//! found by CLOCK: in the order in which pages came, those that were used since they were last looked at excepted.

use super::tree::{ON_CLOCK, Page};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
};

/// Shared by all maps of an engine.
#[derive(Default)]
pub(crate) struct MapMemory {
    budget_bytes: u64,
    /// Of pages that may go, …
    stored_bytes: Cell<u64>,
    /// … and of those that may not.
    changed_bytes: Cell<u64>,
    loads: Cell<u64>,
    clock: RefCell<VecDeque<Weak<Page>>>,
    /// When nothing could go, so many loads pass before that is tried again.
    patience: Cell<usize>,
}

/// What the maps of all vDisks take, in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapStats {
    /// Bytes of pages in memory.
    pub resident_bytes: u64,
    /// Bytes of those that were changed and are not stored yet.
    pub changed_bytes: u64,
    /// Pages that were loaded since the start.
    pub loads: u64,
}

impl MapMemory {
    pub(crate) fn new(budget_bytes: u64) -> Rc<MapMemory> {
        Rc::new(MapMemory { budget_bytes, ..MapMemory::default() })
    }

    pub(crate) fn stats(&self) -> MapStats {
        let changed_bytes = self.changed_bytes.get();
        let resident_bytes = self.stored_bytes.get() + changed_bytes;
        MapStats { resident_bytes, changed_bytes, loads: self.loads.get() }
    }

    /// So much was changed that checkpoints have to make room.
    pub(crate) fn is_short(&self) -> bool {
        self.changed_bytes.get() > self.budget_bytes / 2
    }

    /// Changed pages alone take more than the budget.
    pub(crate) fn is_over(&self) -> bool {
        self.changed_bytes.get() > self.budget_bytes
    }

    /// So much of that is one vDisk's that its checkpoint is worth while.
    pub(crate) fn is_large(&self, changed_bytes: u64) -> bool {
        changed_bytes > self.budget_bytes / 4
    }

    pub(crate) fn changed_bytes(&self) -> u64 {
        self.changed_bytes.get()
    }

    /// What has changed since `before` is enough for a checkpoint.
    pub(crate) fn is_short_since(&self, before: u64) -> bool {
        self.is_short() && self.changed_bytes.get() > before + self.budget_bytes / 8
    }

    /// A page is in memory from now on, or stored from now on as it is.
    pub(super) fn keep(&self, page: &Rc<Page>) {
        if !page.set(ON_CLOCK, true) {
            let mut clock = self.clock.borrow_mut();
            // Those of pages that are no more take memory too.
            if clock.len() == clock.capacity() {
                clock.retain(|page| page.strong_count() > 0);
                let live = clock.len();
                clock.reserve(live);
            }
            clock.push_back(Rc::downgrade(page));
        }
    }

    pub(super) fn loaded(&self) {
        self.loads.set(self.loads.get() + 1);
    }

    pub(super) fn charge(&self, bytes: u64, is_changed: bool) {
        let total = if is_changed { &self.changed_bytes } else { &self.stored_bytes };
        total.set(total.get() + bytes);
    }

    pub(super) fn discharge(&self, bytes: u64, is_changed: bool) {
        let total = if is_changed { &self.changed_bytes } else { &self.stored_bytes };
        total.set(total.get() - bytes);
    }

    /// The same as [`MapMemory::make_room`], after more may go than before.
    pub(super) fn make_room_now(&self) {
        self.patience.set(0);
        self.make_room();
    }

    /// Lets pages go until the rest is within the budget, or may not go.
    pub(super) fn make_room(&self) {
        if self.patience.get() > 0 {
            self.patience.set(self.patience.get() - 1);
            return;
        }
        // Once to find out who is used, once more for those who were.
        let mut looks = 2 * self.clock.borrow().len();
        // Where changed pages take it all, an eighth is still for the others: else each would be loaded again and again.
        let is_too_much = || {
            self.stats().resident_bytes > self.budget_bytes && self.stored_bytes.get() > self.budget_bytes / 8
        };
        while looks > 0 && is_too_much() {
            looks -= 1;
            let Some(oldest) = self.clock.borrow_mut().pop_front() else { return };
            let Some(page) = oldest.upgrade() else { continue };
            if page.is_changed() {
                page.set(ON_CLOCK, false); // it comes back when it is stored
            } else if page.is_wanted() {
                self.clock.borrow_mut().push_back(oldest);
            } else {
                page.set(ON_CLOCK, false);
                page.let_go();
            }
        }
        if is_too_much() {
            self.patience.set(self.clock.borrow().len() / 8);
        }
    }
}
