//! Looking after all objects: one at a time, the least safe first, and so that guests do not wait for it.

use super::survey::Survey;
use super::verify::Reading;
use super::{CodedBackend, Inner};
use crate::ObjectName;
use futures_util::stream::{self, StreamExt};
use ovs_units::planted;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use uuid::Uuid;

/// Who has asked for something so lately is still there.
const GUESTS_STAY: Duration = Duration::from_secs(1);
/// While guests are there, work rests so many times as long as it took.
const RESTS: u32 = 4;
/// … and for so long at most.
const REST_MAX: Duration = Duration::from_secs(20);
/// Objects that are mended at once while nobody else is there.
const AT_ONCE: usize = 4;
/// So often what was mended is looked at again before the answer: where objects come and go there is always something.
const ROUNDS_MAX: usize = 4;
/// Objects whose fragments were seen to be bad, at most: more are found by reading all.
pub(super) const SUSPICIOUS_MAX: usize = if cfg!(test) { 20 } else { 10_000 };
/// Of one that was mended, but not all of which could be read, the rest is read so much later.
const UNREAD_REST: Duration = Duration::from_secs(300);

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// All objects are looked at.
    Looking,
    /// What is not as it should be is mended.
    Mending,
}

/// How far the looking after has come.
#[derive(Debug, Clone, Default)]
pub struct Upkeep {
    /// What is being done now.
    pub phase: Phase,
    /// Objects looked at in this pass.
    pub objects_looked_at: u64,
    /// Objects that wait to be mended, …
    pub objects_to_mend: u64,
    /// … those that were, since the work began, …
    pub objects_mended: u64,
    /// … and the bytes that were put for it.
    pub bytes_mended: u64,
    /// How long the rest will take, going by what was done.
    pub remaining: Option<Duration>,
    /// What was found when all objects were last looked at, …
    pub last: Option<Survey>,
    /// … and when that was.
    pub last_at: Option<Instant>,
}

/// The state of that.
pub(super) struct Keeping {
    /// One at a time looks after it all.
    turn: Mutex<()>,
    /// While guests are there, one piece of work at a time.
    pace: Mutex<()>,
    wants_survey: Cell<bool>,
    guests_at: Cell<Option<Instant>>,
    pub(super) progress: RefCell<Upkeep>,
    /// Objects of which a bad fragment was seen.
    pub(super) suspicious: RefCell<BTreeSet<ObjectName>>,
    /// Of which drives all objects were last looked at.
    generation: Cell<u64>,
    /// Drives that have failed since this pass began.
    pub(super) failed: RefCell<BTreeSet<usize>>,
    /// Those of them that the survey which goes on has not listed yet. If it never does, they are no more.
    pub(super) unlisted: RefCell<BTreeSet<ObjectName>>,
    /// Those of which not all could be read when they were mended last, and when that was.
    unread: RefCell<BTreeMap<ObjectName, Instant>>,
    /// More objects are suspicious than are remembered. They are found again by reading all.
    pub(super) has_more_suspicious: Cell<bool>,
    /// A verification reads all since then.
    reads_all: Cell<bool>,
    /// What it has read of an object.
    pub(super) reading: RefCell<Reading>,
    /// Drives that let it wait, and until when they are not asked again.
    pub(super) hanging: RefCell<BTreeMap<usize, Instant>>,
    /// Drives that had no room for a fragment in this pass.
    pub(super) full: RefCell<BTreeSet<usize>>,
}

impl Default for Keeping {
    fn default() -> Keeping {
        Keeping {
            turn: Mutex::default(),
            pace: Mutex::default(),
            // Nobody knows what was begun before.
            wants_survey: Cell::new(true),
            guests_at: Cell::default(),
            progress: RefCell::default(),
            suspicious: RefCell::default(),
            generation: Cell::default(),
            failed: RefCell::default(),
            unlisted: RefCell::default(),
            unread: RefCell::default(),
            has_more_suspicious: Cell::default(),
            reads_all: Cell::default(),
            reading: RefCell::default(),
            hanging: RefCell::default(),
            full: RefCell::default(),
        }
    }
}

impl Keeping {
    /// A guest asks for something.
    pub(super) fn guest(&self) {
        self.guests_at.set(Some(Instant::now()));
    }

    #[cfg(test)]
    pub(super) fn guest_at(&self) -> Option<Instant> {
        self.guests_at.get()
    }

    pub(super) fn ask_for_survey(&self) {
        self.wants_survey.set(true);
    }

    /// All of it is well, or it is no more.
    pub(super) fn is_cleared(&self, name: &ObjectName) {
        self.suspicious.borrow_mut().remove(name);
        self.unread.borrow_mut().remove(name);
    }

    /// What could be read of it is well: it is not looked at again at once.
    pub(super) fn is_cleared_in_part(&self, name: &ObjectName) {
        self.unread.borrow_mut().insert(name.clone(), Instant::now());
    }

    /// It is suspicious, and to be read now.
    pub(super) fn is_to_be_read(&self, name: &ObjectName) -> bool {
        self.unread.borrow().get(name).is_none_or(|at| at.elapsed() >= UNREAD_REST)
    }

    /// What could not be read may be read now.
    pub(super) fn reads_again(&self) {
        self.unread.borrow_mut().clear();
    }

    pub(super) fn begins_to_read_all(&self) {
        self.reads_all.set(true);
    }

    /// All that was bad is among those that are remembered.
    pub(super) fn has_read_all(&self) {
        if self.reads_all.get() {
            self.has_more_suspicious.set(false);
        }
    }

    fn is_guest_there(&self) -> bool {
        self.guests_at.get().is_some_and(|at| at.elapsed() < GUESTS_STAY)
    }

    /// Work of some milliseconds, after which guests have their turn.
    pub(super) async fn paced<T>(&self, work: impl Future<Output = T>) -> T {
        if !self.is_guest_there() {
            return work.await;
        }
        let _turn = self.pace.lock().await;
        let began = Instant::now();
        let done = work.await;
        if self.is_guest_there() {
            sleep((began.elapsed() * RESTS).min(REST_MAX)).await;
        }
        done
    }
}

/// Until this goes, something is being done.
struct AtWork<'a>(&'a Keeping);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let mut progress = self.0.progress.borrow_mut();
        (progress.phase, progress.remaining) = (Phase::Idle, None);
    }
}

/// What came of mending.
#[derive(Default)]
struct Outcome {
    mended: u64,
    failed: u64,
    reason: Option<String>,
}

impl CodedBackend {
    /// Looks at all objects and, if it `mends`, makes what is missing again, moves what lies wrongly, removes what is there twice, and
    /// brings objects to the policy that the drives satisfy now; until there is nothing left to do, or nothing that can be done. The
    /// answer is what was found at last. One at a time: a second caller waits. To drop it harms nothing.
    pub async fn look_after(&self, mends: bool) -> Survey {
        let inner = &self.inner;
        let _turn = inner.upkeep.turn.lock().await;
        let _at_work = AtWork(&inner.upkeep);
        {
            let mut progress = inner.upkeep.progress.borrow_mut();
            *progress = Upkeep { last: progress.last.take(), last_at: progress.last_at, ..Upkeep::default() };
        }
        inner.upkeep.full.borrow_mut().clear();
        let mut total = Outcome::default();
        let mut rounds = 0;
        loop {
            rounds += 1;
            inner.upkeep.failed.borrow_mut().clear();
            inner.upkeep.wants_survey.set(false);
            inner.upkeep.progress.borrow_mut().phase = Phase::Looking;
            let (began, generation) = (Instant::now(), inner.drives().generation);
            let (mut survey, to_mend) = inner.survey().await;
            let mut done = Outcome::default();
            if mends && !to_mend.is_empty() {
                inner.upkeep.progress.borrow_mut().phase = Phase::Mending;
                done = inner.mend_all(to_mend).await;
                total.mended += done.mended;
            }
            survey.mended = total.mended;
            (survey.unmended, survey.reason) = (done.failed, done.reason);
            {
                let mut progress = inner.upkeep.progress.borrow_mut();
                (progress.last, progress.last_at) = (Some(survey.clone()), Some(began));
                inner.upkeep.generation.set(generation);
            }
            // What was mended has to be seen to be.
            if done.mended == 0 || rounds == ROUNDS_MAX {
                return survey;
            }
        }
    }

    /// Was nothing missing of this drive when all objects were last looked at, and has no drive changed since?
    pub fn is_done_with(&self, id: Uuid) -> bool {
        let keeping = &self.inner.upkeep;
        let is_of_now = keeping.generation.get() == self.inner.drives().generation
            || planted("drives: one goes by what was seen before drives changed");
        is_of_now && keeping.progress.borrow().last.as_ref().is_some_and(|last| last.done_with.contains(&id))
    }

    /// How far that has come.
    pub fn upkeep(&self) -> Upkeep {
        self.inner.upkeep.progress.borrow().clone()
    }

    /// Has anything happened since all objects were last looked at that calls for it?
    pub fn wants_survey(&self) -> bool {
        self.inner.upkeep.wants_survey.get()
    }
}

impl CodedBackend {
    /// Objects of which something bad was seen that is not mended yet: who begins again has to be told.
    pub fn suspicious(&self) -> Vec<ObjectName> {
        self.inner.upkeep.suspicious.borrow().iter().cloned().collect()
    }

    /// More objects are bad than that: the others are found by a verification from the beginning.
    pub fn has_more_suspicious(&self) -> bool {
        self.inner.upkeep.has_more_suspicious.get()
    }

    /// In another life more objects were bad than were kept.
    pub fn suspect_more(&self) {
        self.inner.upkeep.has_more_suspicious.set(true);
    }

    /// Something bad was seen of this object in another life.
    pub fn suspect(&self, name: &ObjectName) {
        self.inner.is_suspicious(name);
        let keeping = &self.inner.upkeep;
        if keeping.suspicious.borrow().len() >= SUSPICIOUS_MAX {
            keeping.has_more_suspicious.set(true);
        }
    }
}

impl Inner {
    /// A fragment of it was not as it should be.
    pub(super) fn is_bad(&self, name: &ObjectName) {
        self.count(|stats| stats.bad_fragments += 1);
        self.is_suspicious(name);
    }

    /// All its fragments are to be read.
    pub(super) fn is_suspicious(&self, name: &ObjectName) {
        self.upkeep.unlisted.borrow_mut().remove(name);
        let mut suspicious = self.upkeep.suspicious.borrow_mut();
        if suspicious.len() >= SUSPICIOUS_MAX && !suspicious.contains(name) {
            self.upkeep.has_more_suspicious.set(true);
            self.upkeep.reads_all.set(false);
        } else if suspicious.insert(name.clone()) {
            self.upkeep.ask_for_survey();
        }
    }

    async fn mend_all(self: &Rc<Self>, names: Vec<ObjectName>) -> Outcome {
        let (began, count) = (Instant::now(), names.len() as u64);
        let generation = self.drives().generation;
        let before = self.upkeep.progress.borrow().objects_mended;
        self.upkeep.progress.borrow_mut().objects_to_mend = count;
        // When drives change, others may be the least safe.
        let as_planned = names.into_iter().take_while(|_| self.drives().generation == generation);
        let work = as_planned.map(|name| async move { (self.mend(&name).await, name) });
        let mut work = stream::iter(work).buffer_unordered(AT_ONCE);
        let (mut outcome, mut finished) = (Outcome::default(), 0);
        while let Some((mended, name)) = work.next().await {
            finished += 1;
            outcome.mended += u64::from(matches!(mended, Ok(true)));
            match mended {
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(object = %name, %error, "an object is not mended");
                    outcome.failed += 1;
                    outcome.reason = Some(error.to_string());
                }
            }
            let mut progress = self.upkeep.progress.borrow_mut();
            progress.objects_to_mend = count - finished;
            progress.objects_mended = before + outcome.mended;
            let left = (count - finished) as f64 / finished as f64;
            progress.remaining = Some(began.elapsed().mul_f64(left));
        }
        outcome
    }
}
