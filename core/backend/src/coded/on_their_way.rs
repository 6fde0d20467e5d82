//! Puts that go on after who asked for them has been answered: a name is not deleted under them.

use super::{Inner, timed};
use crate::{BackendError, ObjectName, Urgency};
use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
    rc::Rc,
    time::Duration,
};
use tokio::{sync::Notify, time::timeout};

/// A drive that takes longer for one fragment is passed over.
const PATIENCE: Duration = Duration::from_secs(60);
/// Fragments on their way after their puts were acknowledged. Above that a put waits for all of its own.
const LATE_BYTES_MAX: u64 = 64 << 20;
/// A drive that owes answers for so many fragments gets no more.
const OVERDUE_MAX: usize = 8;

/// What is still on its way.
#[derive(Default)]
pub(super) struct OnTheirWay {
    /// Puts at work, by object.
    puts: RefCell<HashMap<ObjectName, usize>>,
    /// Deletes at work.
    deletes: RefCell<HashMap<ObjectName, usize>>,
    /// Fragments that a drive has not answered for in time, by object and drive. Nobody knows whether they will land.
    overdue: OfDrives,
    /// Fragments that a drive is asked to put or remove, by object and drive, until it has answered, …
    asked: OfDrives,
    /// … and those to be removed. Until then nobody knows what is there.
    removing: OfDrives,
    late_bytes: Cell<u64>,
    /// Whenever any of that is less.
    less: Notify,
}

impl OnTheirWay {
    async fn wait_until(&self, is_so: impl Fn(&OnTheirWay) -> bool) {
        while !is_so(self) {
            self.less.notified().await;
        }
    }

    pub(super) async fn settle(&self) {
        self.wait_until(|all| all.puts.borrow().is_empty()).await;
    }

    pub(super) fn is_being_deleted(&self, name: &ObjectName) -> bool {
        self.deletes.borrow().contains_key(name)
    }

    /// Puts at work.
    pub(super) fn puts(&self) -> Vec<ObjectName> {
        self.puts.borrow().keys().cloned().collect()
    }

    /// Until no put of it is at work.
    pub(super) async fn is_put(&self, name: &ObjectName) {
        self.wait_until(|all| !all.puts.borrow().contains_key(name)).await;
    }

    fn is_asked_for(&self, name: &ObjectName) -> bool {
        self.asked.borrow().keys().any(|(other, _)| other == name)
    }

    /// Drives that are still asked to remove something of it: it may go at any time, or stay.
    pub(super) fn removing_from(&self, name: &ObjectName) -> BTreeSet<usize> {
        self.removing.borrow().keys().filter(|(other, _)| other == name).map(|(_, drive)| *drive).collect()
    }

    fn overdue_on(&self, drive: usize) -> usize {
        self.overdue.borrow().iter().filter(|((_, on), _)| *on == drive).map(|(_, count)| count).sum()
    }
}

impl Inner {
    /// Nothing that was put under a name lands after this.
    pub(super) async fn wait_for_puts(&self, name: &ObjectName) -> Result<(), BackendError> {
        let all = &self.on_their_way;
        all.is_put(name).await;
        let overdue = async {
            all.wait_until(|all| !all.is_asked_for(name)).await;
            Ok(())
        };
        timed("delete", name.as_str(), overdue).await
    }

    /// Puts a fragment on a drive. If that takes too long this returns, and the put goes on.
    pub(super) async fn put_on(
        self: &Rc<Self>,
        drive: usize,
        object: &ObjectName,
        own: &ObjectName,
        bytes: Bytes,
        urgency: Urgency,
    ) -> Result<(), BackendError> {
        let retry = |reason: String| BackendError::Retry {
            operation: "put",
            object: own.to_string(),
            reason: format!("drive {} {reason}", self.drives()[drive].id),
        };
        let overdue = self.on_their_way.overdue_on(drive);
        if overdue >= OVERDUE_MAX {
            return Err(retry(format!("has not answered for {overdue} fragments yet")));
        }
        if self.on_their_way.removing_from(object).contains(&drive) {
            return Err(retry("is still asked to remove a fragment of it".to_owned()));
        }
        let (backend, name) = (Rc::clone(&self.drives()[drive].backend), own.clone());
        // Also when nobody waits for it any more.
        let asked = Asked::new(self, object, drive, |all| &all.asked);
        let mut put = tokio::task::spawn_local(async move {
            let _asked = asked;
            backend.put(&name, vec![bytes], urgency).await
        });
        if let Ok(done) = timeout(PATIENCE, &mut put).await {
            return done.unwrap_or_else(|stopped| Err(retry(format!("has ended early: {stopped}"))));
        }
        let overdue = Asked::new(self, object, drive, |all| &all.overdue);
        tokio::task::spawn_local(async move {
            if let Ok(Ok(())) = put.await {
                overdue.inner.answers(drive);
            }
        });
        Err(retry(format!("takes longer than {PATIENCE:?}")))
    }

    /// Removes a fragment. If that takes too long this returns, and the removal goes on; until it has ended, nothing of the object is put
    /// there.
    pub(super) async fn delete_on(
        self: &Rc<Self>,
        drive: usize,
        object: &ObjectName,
        own: &ObjectName,
    ) -> Result<(), BackendError> {
        let (backend, name) = (Rc::clone(&self.drives()[drive].backend), own.clone());
        let asked = Asked::new(self, object, drive, |all| &all.asked);
        let removing = Asked::new(self, object, drive, |all| &all.removing);
        let deleted = tokio::task::spawn_local(async move {
            let _until_it_ends = (asked, removing);
            backend.delete(&name).await
        });
        let retry =
            |reason: String| BackendError::Retry { operation: "delete", object: own.to_string(), reason };
        timed("delete", own.as_str(), async {
            deleted.await.unwrap_or_else(|stopped| Err(retry(format!("has ended early: {stopped}"))))
        })
        .await
    }
}

/// A put, for as long as it is at work.
pub(super) struct PutAtWork {
    inner: Rc<Inner>,
    name: ObjectName,
    /// Of fragments that are missing while it is acknowledged.
    late_bytes: u64,
}

impl PutAtWork {
    pub(super) fn new(inner: &Rc<Inner>, name: &ObjectName) -> PutAtWork {
        inner.upkeep.unlisted.borrow_mut().remove(name);
        add(&inner.on_their_way.puts, name.clone());
        PutAtWork { inner: Rc::clone(inner), name: name.clone(), late_bytes: 0 }
    }

    /// May the rest go on alone? Then it counts from now on.
    pub(super) fn may_be_late(&mut self, bytes: u64) -> bool {
        let late = &self.inner.on_their_way.late_bytes;
        let has_room = late.get() + bytes <= LATE_BYTES_MAX;
        if has_room {
            self.late_bytes += bytes;
            late.set(late.get() + bytes);
        }
        has_room
    }
}

impl Drop for PutAtWork {
    fn drop(&mut self) {
        let all = &self.inner.on_their_way;
        all.late_bytes.set(all.late_bytes.get() - self.late_bytes);
        take(&all.puts, &self.name);
        all.less.notify_waiters();
    }
}

/// A delete, for as long as it is at work: nobody puts again what it removes.
pub(super) struct DeleteAtWork<'a> {
    all: &'a OnTheirWay,
    name: &'a ObjectName,
}

impl<'a> DeleteAtWork<'a> {
    pub(super) fn new(all: &'a OnTheirWay, name: &'a ObjectName) -> DeleteAtWork<'a> {
        add(&all.deletes, name.clone());
        DeleteAtWork { all, name }
    }
}

impl Drop for DeleteAtWork<'_> {
    fn drop(&mut self) {
        take(&self.all.deletes, self.name);
    }
}

type OfDrives = RefCell<HashMap<(ObjectName, usize), usize>>;

/// A drive is asked for something about an object, for as long as this lives.
struct Asked {
    inner: Rc<Inner>,
    which: (ObjectName, usize),
    counts: fn(&OnTheirWay) -> &OfDrives,
}

impl Asked {
    fn new(
        inner: &Rc<Inner>,
        object: &ObjectName,
        drive: usize,
        counts: fn(&OnTheirWay) -> &OfDrives,
    ) -> Asked {
        let which = (object.clone(), drive);
        add(counts(&inner.on_their_way), which.clone());
        Asked { inner: Rc::clone(inner), which, counts }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let all = &self.inner.on_their_way;
        take((self.counts)(all), &self.which);
        all.less.notify_waiters();
    }
}

fn add<K: std::hash::Hash + Eq>(counts: &RefCell<HashMap<K, usize>>, key: K) {
    *counts.borrow_mut().entry(key).or_default() += 1;
}

fn take<K: std::hash::Hash + Eq>(counts: &RefCell<HashMap<K, usize>>, key: &K) {
    let mut counts = counts.borrow_mut();
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
