//! One change at a time per thing: a lock for every name that is asked for.
//!
//! Changes of a vDisk take several steps with waits between them (registry, backend, engine); whoever holds the vDisk's
//! lock does his steps alone. I/O never comes here.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Locks by name. One thread.
#[derive(Debug, Default)]
pub struct Locks {
    known: Rc<RefCell<HashMap<String, Arc<Mutex<()>>>>>,
}

/// The lock is held until this is dropped.
#[derive(Debug)]
pub struct Locked {
    guard: Option<OwnedMutexGuard<()>>,
    name: String,
    known: Rc<RefCell<HashMap<String, Arc<Mutex<()>>>>>,
}

impl Locks {
    /// Waits for the lock of this name; first come, first served.
    pub async fn lock(&self, name: impl Into<String>) -> Locked {
        let name = name.into();
        let lock = self.known.borrow_mut().entry(name.clone()).or_default().clone();
        let guard = lock.lock_owned().await;
        Locked { guard: Some(guard), name, known: self.known.clone() }
    }

    /// The lock of this name, if nobody has it.
    pub fn try_lock(&self, name: impl Into<String>) -> Option<Locked> {
        let name = name.into();
        let lock = self.known.borrow_mut().entry(name.clone()).or_default().clone();
        let guard = lock.try_lock_owned().ok()?;
        Some(Locked { guard: Some(guard), name, known: self.known.clone() })
    }
}

impl Locked {
    /// True for the lock of this name.
    pub fn is_of(&self, name: &str) -> bool {
        self.name == name
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.guard = None;
        let mut known = self.known.borrow_mut();
        // Nobody else holds or awaits it: forget it, so that the table does not grow with every name ever used.
        if known.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            known.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn one_at_a_time_per_name_and_nothing_is_left() {
        let locks = Locks::default();
        let inside = Cell::new(0);
        let work = || async {
            let _locked = locks.lock("a").await;
            inside.set(inside.get() + 1);
            assert_eq!(inside.get(), 1, "two at a time");
            assert!(locks.try_lock("a").is_none());
            let _other = locks.lock("b").await;
            tokio::task::yield_now().await;
            inside.set(inside.get() - 1);
        };
        tokio::join!(work(), work(), work());
        assert!(locks.known.borrow().is_empty());
        assert!(locks.try_lock("a").unwrap().is_of("a"));
        assert!(locks.known.borrow().is_empty());
    }
}
