//! One place where a vPool's objects are: a folder or a part of a store. It may be away when it is needed, and comes back when it
//! can be opened.
//!
//! ```text
//!  closed ─▶ opening: one for all who ask, each waits so long at most ─▶ open, for good
//!                 ▲                                                  └─▶ failed: asked again after a while
//!                 └─────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariant: at most one `DirBackend` of a folder; two would not know of each other's failed syncs.

use super::{
    layout::{DRIVE_PREFIX, check_drive, drives_at},
    namespace::{Namespace, cannot_use, mark_of, remove_folder},
    problem::from_backend,
    remotes::open_store,
    secrets::Secrets,
};
use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::{Either, LocalBoxFuture, Shared, select},
    stream,
};
use ovs_api::Problem;
use ovs_backend::{Backend, BackendError, Capacity, DirBackend, DirOptions, ObjectInfo, ObjectName, Urgency};
use ovs_cluster::catalogue::CredentialsRecord;
use ovs_remote::{RemoteBackend, RemoteOptions, RemoteStore};
use ovs_units::Name;
use ovs_volume::Clock;
use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    pin::pin,
    rc::Rc,
    time::Duration,
};
use tokio::runtime::Handle;
use uuid::Uuid;

/// An opening is waited for so long; it goes on.
const OPENING_PATIENCE: Duration = Duration::from_secs(10);
/// What could not be opened is not tried again for so long.
const PAUSE: Duration = Duration::from_secs(5);
/// A store that fails is opened anew, with the credentials of then, this often at most.
const REOPEN_AFTER: Duration = Duration::from_secs(60);
/// Objects of a store that are removed at once.
const DELETES_MAX: usize = 32;
/// Who gives up on an answer before this has other reasons for it.
const SLOW: Duration = Duration::from_secs(8);

/// Where a vPool's objects are on a backend that is made of no other.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    /// Which drive has to be there. A directory alone has no other that it could be taken for.
    pub(super) drive: Option<Uuid>,
    pub(super) location: Location,
}

#[derive(Debug, Clone)]
pub(super) enum Location {
    /// In a folder.
    Dir {
        /// The backend's.
        root: PathBuf,
        /// The vPool's own, in that.
        folder: PathBuf,
        /// See [`super::Settings::io_uring`].
        io_uring: bool,
    },
    /// In a store.
    Remote(Box<RemoteLeaf>),
}

/// A vPool's own part of an object store.
#[derive(Debug, Clone)]
pub(super) struct RemoteLeaf {
    /// With the vPool's own prefix.
    pub(super) store: RemoteStore,
    /// Where its credentials are.
    pub(super) credentials: CredentialsRecord,
    /// Where these may be.
    pub(super) secrets: Secrets,
    /// Of the times between attempts.
    pub(super) seed: u64,
    /// Where requests run.
    pub(super) runtime: Handle,
}

impl RemoteLeaf {
    async fn open(&self) -> Result<RemoteBackend, Problem> {
        let options = RemoteOptions::new(self.seed);
        open_store(self.store.clone(), &self.credentials, &self.secrets, options, self.runtime.clone()).await
    }
}

impl Leaf {
    async fn open(&self, expected: Namespace) -> Result<Rc<dyn Backend>, BackendError> {
        let store: Rc<dyn Backend> = match &self.location {
            Location::Dir { root, folder, io_uring } => {
                self.check_root(root, folder).await?;
                let options = DirOptions { io_uring: *io_uring, ..DirOptions::new(folder.clone()) };
                let opened = tokio::task::spawn_blocking(move || match expected {
                    Namespace::New => DirBackend::open(options),
                    Namespace::Existing => DirBackend::open_existing(options),
                });
                Rc::new(opened.await.map_err(|error| cannot_open(error.to_string()))??)
            }
            Location::Remote(leaf) => {
                Rc::new(leaf.open().await.map_err(|problem| cannot_open(problem.detail))?)
            }
        };
        if let Some(drive) = self.drive {
            check_drive(&*store, drive, expected).await?;
            // It may be older than marks, or a copy of the vPool's folder alone.
            if let Location::Dir { root, .. } = &self.location {
                let mark = mark_of(root, drive);
                let marked = tokio::task::spawn_blocking(move || std::fs::File::create(mark).map(drop));
                let _unmarked = marked.await;
            }
        }
        Ok(store)
    }

    /// A drive's directory has the drive's mark, or the vPool's folder. Where it is not mounted there is a bare mount point.
    async fn check_root(&self, root: &Path, folder: &Path) -> Result<(), BackendError> {
        let Some(drive) = self.drive else { return Ok(()) };
        let (mark, folder) = (mark_of(root, drive), folder.to_owned());
        let find = move || std::fs::metadata(folder).or_else(|_| std::fs::metadata(mark));
        let found = tokio::task::spawn_blocking(find).await;
        let found = found.map_err(std::io::Error::other).flatten();
        let away = |error: std::io::Error| {
            cannot_open(format!(
                "{} is not the directory of this drive, or it is not mounted: {error}",
                root.display()
            ))
        };
        found.map(drop).map_err(away)
    }

    /// Asks whether a vPool could begin there, and changes nothing.
    async fn ask(&self) -> Result<(), BackendError> {
        match &self.location {
            Location::Dir { root, folder, .. } => self.check_root(root, folder).await,
            Location::Remote(leaf) => {
                let store = leaf.open().await.map_err(|problem| cannot_open(problem.detail))?;
                store.list("", None, 1).await.map(drop)
            }
        }
    }

    /// Removes all that a drive that has left has of a vPool: of this one. What is mounted in its place may be another by now, and may
    /// have all that there is of something.
    async fn empty(&self) -> Result<(), Problem> {
        let Some(drive) = self.drive else { return self.remove().await };
        match &self.location {
            Location::Dir { root, folder, .. } => {
                self.check_root(root, folder).await.map_err(from_backend)?;
                let own = folder.clone();
                let emptied = tokio::task::spawn_blocking(move || empty_folder(&own, drive)).await;
                emptied.map_err(std::io::Error::other).flatten().map_err(|error| cannot_use(folder, &error))
            }
            Location::Remote(leaf) => {
                let store = leaf.open().await?;
                let found = drives_at(&store).await.map_err(from_backend)?;
                check_is_alone(&found, drive).map_err(from_backend)?;
                let is_objects = |info: &ObjectInfo| !info.name.as_str().starts_with("pool/");
                if found.is_empty()
                    && store.list("", None, 1000).await.map_err(from_backend)?.iter().any(is_objects)
                {
                    return Err(from_backend(cannot_open("it does not say which drive it is of".into())));
                }
                // That it is this drive goes last: who goes on with this has to know it.
                remove_objects(&store, |name| !name.as_str().starts_with(DRIVE_PREFIX)).await?;
                remove_objects(&store, |_| true).await
            }
        }
    }

    /// Removes all that is there.
    async fn remove(&self) -> Result<(), Problem> {
        let store = match &self.location {
            Location::Dir { root, folder, .. } => {
                // What is not there may be on a disk that is not mounted.
                self.check_root(root, folder).await.map_err(from_backend)?;
                return remove_folder(folder.clone()).await.map_err(|error| cannot_use(folder, &error));
            }
            Location::Remote(leaf) => leaf.open().await?,
        };
        remove_objects(&store, |_| true).await
    }
}

async fn remove_objects(store: &dyn Backend, is_it: impl Fn(&ObjectName) -> bool) -> Result<(), Problem> {
    let mut after = None;
    loop {
        let found = store.list("", after.as_ref(), 1000).await.map_err(from_backend)?;
        let Some(last) = found.last() else { return Ok(()) };
        after = Some(last.name.clone());
        let deletes = found.iter().filter(|info| is_it(&info.name)).map(|info| store.delete(&info.name));
        let deleted = stream::iter(deletes).buffer_unordered(DELETES_MAX).try_collect::<()>().await;
        deleted.map_err(from_backend)?;
    }
}

/// A place that says nothing was emptied before, but for what says nothing of guests.
fn check_is_alone(found: &[Uuid], drive: Uuid) -> Result<(), BackendError> {
    match found.iter().find(|other| **other != drive) {
        Some(other) => Err(cannot_open(format!("the place of drive {other} is there, not that of {drive}"))),
        None => Ok(()),
    }
}

/// Removes a vPool's folder on a drive, and last of all what says which drive it is.
fn empty_folder(folder: &Path, drive: Uuid) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let (of_pool, mut found) = (folder.join("pool"), Vec::new());
    if let Ok(names) = std::fs::read_dir(&of_pool) {
        for name in names {
            let name = format!("pool/{}", name?.file_name().to_string_lossy());
            found.extend(name.strip_prefix(DRIVE_PREFIX).and_then(|uuid| Uuid::try_parse(uuid).ok()));
        }
    }
    check_is_alone(&found, drive).map_err(std::io::Error::other)?;
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    for entry in entries.iter().filter(|entry| entry.path() != of_pool) {
        // Objects in a place that does not say whose it is are somebody's: this one's say so to the end.
        if found.is_empty() && entry.file_type()?.is_dir() {
            let why = format!("{} does not say which drive it is of", folder.display());
            return Err(std::io::Error::other(why));
        }
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    std::fs::remove_dir_all(folder)
}

pub(super) fn cannot_open(reason: String) -> BackendError {
    BackendError::Retry { operation: "open", object: String::new(), reason }
}

type Opened = Result<Rc<dyn Backend>, BackendError>;

enum State {
    Closed,
    Opening { since: Duration, opening: Shared<LocalBoxFuture<'static, Opened>> },
    Open(Rc<dyn Backend>),
    Failed { at: Duration, error: BackendError },
}

/// A leaf that is opened when it is asked for something.
pub(super) struct Drive {
    name: Name,
    leaf: Leaf,
    clock: Rc<dyn Clock>,
    state: Rc<RefCell<State>>,
    trouble: RefCell<Option<String>>,
    /// How often it failed: after that it has to be asked whether it is still this drive, …
    failures: Cell<u64>,
    /// … and has been, after so many of these.
    failures_settled: Cell<u64>,
    opened_at: Cell<Duration>,
}

impl Drive {
    pub(super) fn new(name: Name, leaf: Leaf, clock: Rc<dyn Clock>) -> Drive {
        let state = Rc::new(RefCell::new(State::Closed));
        let (trouble, failures, failures_settled, opened_at) = Default::default();
        Drive { name, leaf, clock, state, trouble, failures, failures_settled, opened_at }
    }

    /// The backend's.
    pub(super) fn name(&self) -> &Name {
        &self.name
    }

    /// Why it did not answer when it was last asked, if it did not.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    /// Its space, for which nobody waits for ever.
    pub(super) async fn space(&self) -> Result<Option<Capacity>, BackendError> {
        self.within(OPENING_PATIENCE, self.capacity()).await?
    }

    /// An answer, and what it says about the drive.
    async fn told<T>(
        &self,
        answer: impl AsyncFnOnce(Rc<dyn Backend>) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let mut asked = Asked { drive: self, since: self.clock.now(), is_answered: false };
        let answer = async { answer(self.open_surely().await?).await }.await;
        asked.is_answered = true;
        *self.trouble.borrow_mut() = match &answer {
            Err(error @ BackendError::Retry { .. }) => {
                self.fails();
                Some(error.to_string())
            }
            _ => None,
        };
        answer
    }

    fn fails(&self) {
        self.failures.set(self.failures.get() + 1);
    }

    /// What stores its objects, and is still that: after a failure another disk may be mounted there, or a store's credentials be
    /// others.
    pub(super) async fn open_surely(&self) -> Opened {
        let is_store = matches!(self.leaf.location, Location::Remote(_));
        let (now, failures) = (self.clock.now(), self.failures.get());
        let is_doubtful = failures != self.failures_settled.get();
        if is_doubtful && is_store && now >= self.opened_at.get() + REOPEN_AFTER {
            self.opened_at.set(now);
            let mut state = self.state.borrow_mut();
            if matches!(&*state, State::Open(_)) {
                *state = State::Closed;
            }
        }
        let store = self.open(Namespace::Existing).await?;
        if let Some(drive) = self.leaf.drive
            && is_doubtful
        {
            check_drive(&*store, drive, Namespace::Existing).await?;
            self.failures_settled.set(failures);
        }
        Ok(store)
    }

    /// Whether it is there now, and itself.
    pub(super) async fn check(&self) -> Result<(), BackendError> {
        self.fails();
        self.within(OPENING_PATIENCE, Box::pin(self.open_surely())).await?.map(drop)
    }

    /// What stores its objects.
    pub(super) async fn open(&self, expected: Namespace) -> Opened {
        let now = self.clock.now();
        let (since, opening) = {
            let mut state = self.state.borrow_mut();
            match &*state {
                State::Open(opened) => return Ok(opened.clone()),
                State::Failed { at, error } if expected == Namespace::Existing && now < *at + PAUSE => {
                    return Err(error.clone());
                }
                State::Opening { since, opening } => (*since, opening.clone()),
                State::Closed | State::Failed { .. } => {
                    let opening = self.begin(expected);
                    *state = State::Opening { since: now, opening: opening.clone() };
                    (now, opening)
                }
            }
        };
        self.within((since + OPENING_PATIENCE).saturating_sub(now), opening).await?
    }

    fn begin(&self, expected: Namespace) -> Shared<LocalBoxFuture<'static, Opened>> {
        let (leaf, clock, state) = (self.leaf.clone(), self.clock.clone(), Rc::downgrade(&self.state));
        let opening = async move {
            let opened = leaf.open(expected).await;
            if let Some(state) = state.upgrade() {
                *state.borrow_mut() = match &opened {
                    Ok(opened) => State::Open(opened.clone()),
                    Err(error) => State::Failed { at: clock.now(), error: error.clone() },
                };
            }
            opened
        };
        opening.boxed_local().shared()
    }

    /// Whether a vPool could begin there. Nothing changes.
    pub(super) async fn ask(&self) -> Result<(), BackendError> {
        self.within(OPENING_PATIENCE, pin!(self.leaf.ask())).await?
    }

    /// Removes all that is there of a drive that has left, if it is that drive.
    pub(super) async fn empty(&self) -> Result<(), Problem> {
        self.leaf.empty().await
    }

    /// Removes all that is there, however long that takes: who asks again while it goes on would begin it again.
    pub(super) async fn remove(&self) -> Result<(), Problem> {
        self.leaf.remove().await
    }

    async fn within<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = T> + Unpin,
    ) -> Result<T, BackendError> {
        match select(work, self.clock.sleep(patience)).await {
            Either::Left((done, _)) => Ok(done),
            Either::Right(_) => Err(cannot_open("it does not answer".into())),
        }
    }
}

/// Somebody waits for an answer.
struct Asked<'a> {
    drive: &'a Drive,
    since: Duration,
    is_answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let waited = self.drive.clock.now().saturating_sub(self.since);
        if !self.is_answered && waited >= SLOW {
            self.drive.fails();
            *self.drive.trouble.borrow_mut() = Some("it does not answer".into());
        }
    }
}

impl Backend for Drive {
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(self.told(async move |store| store.put(&name, parts, urgency).await))
    }

    fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(self.told(async move |store| store.get_range(&name, offset, length).await))
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(self.told(async move |store| store.get(&name).await))
    }

    fn get_stored(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(self.told(async move |store| store.get_stored(&name).await))
    }

    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(self.told(async move |store| store.get_lasting(&name).await))
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> LocalBoxFuture<'_, Result<Vec<ObjectInfo>, BackendError>> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        Box::pin(self.told(async move |store| store.list(&prefix, after.as_ref(), limit).await))
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(self.told(async move |store| store.delete(&name).await))
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        Box::pin(self.told(async move |store| store.capacity().await))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vPool's folder on this drive, with objects.
    fn folder_of(drive: Uuid) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for object in
            [format!("{DRIVE_PREFIX}{drive}"), "pool/layout-1".into(), "v/a/s/1".into(), ".marker".into()]
        {
            let path = folder.path().join(object);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        folder
    }

    #[test]
    fn a_folder_is_emptied_if_it_is_of_this_drive() {
        let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        // Another disk is mounted there by now.
        let of_other = folder_of(other);
        let refused = empty_folder(of_other.path(), own).unwrap_err().to_string();
        assert!(refused.contains(&other.to_string()), "{refused}");
        assert!(of_other.path().join("v/a/s/1").exists());
        // Nobody knows whose.
        let unknown = folder_of(own);
        std::fs::remove_dir_all(unknown.path().join("pool")).unwrap();
        empty_folder(unknown.path(), own).unwrap_err();
        assert!(unknown.path().join("v/a/s/1").exists());
        let of_own = folder_of(own);
        // As a crash in the middle leaves it.
        std::fs::remove_dir_all(of_own.path().join("v")).unwrap();
        empty_folder(of_own.path(), own).unwrap();
        let whole = folder_of(own);
        empty_folder(whole.path(), own).unwrap();
        assert!(!whole.path().exists() && !of_own.path().exists());
        empty_folder(whole.path(), own).unwrap();
    }
}
