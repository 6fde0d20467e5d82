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
    layout::check_drive,
    namespace::{Namespace, cannot_use, remove_folder},
    problem::from_backend,
    remotes::open_store,
    secrets::Secrets,
};
use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{Either, LocalBoxFuture, Shared, select},
};
use ovs_api::Problem;
use ovs_backend::{Backend, BackendError, Capacity, DirBackend, DirOptions, ObjectInfo, ObjectName, Urgency};
use ovs_cluster::catalogue::CredentialsRecord;
use ovs_remote::{RemoteBackend, RemoteOptions, RemoteStore};
use ovs_volume::Clock;
use std::{cell::RefCell, path::PathBuf, pin::pin, rc::Rc, time::Duration};
use tokio::runtime::Handle;
use uuid::Uuid;

/// An opening is waited for so long; it goes on.
const OPENING_PATIENCE: Duration = Duration::from_secs(10);
/// What could not be opened is not tried again for so long.
const PAUSE: Duration = Duration::from_secs(5);

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
        let options = RemoteOptions { seed: self.seed, ..RemoteOptions::default() };
        open_store(self.store.clone(), &self.credentials, &self.secrets, options, self.runtime.clone()).await
    }
}

impl Leaf {
    async fn open(&self, expected: Namespace) -> Result<Rc<dyn Backend>, BackendError> {
        let store: Rc<dyn Backend> = match &self.location {
            Location::Dir { folder, io_uring, .. } => {
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
        }
        Ok(store)
    }

    /// Asks whether a vPool could begin there, and changes nothing.
    async fn ask(&self) -> Result<(), BackendError> {
        match &self.location {
            Location::Dir { root, .. } => {
                let root = root.clone();
                let found = tokio::task::spawn_blocking(move || std::fs::read_dir(root).map(drop)).await;
                found.map_err(std::io::Error::other).flatten().map_err(|error| cannot_open(error.to_string()))
            }
            Location::Remote(leaf) => {
                let store = leaf.open().await.map_err(|problem| cannot_open(problem.detail))?;
                store.list("", None, 1).await.map(drop)
            }
        }
    }

    /// Removes all that is there.
    async fn remove(&self) -> Result<(), Problem> {
        let store = match &self.location {
            Location::Dir { folder, .. } => {
                return remove_folder(folder.clone()).await.map_err(|error| cannot_use(folder, &error));
            }
            Location::Remote(leaf) => leaf.open().await?,
        };
        let mut after = None;
        loop {
            let found = store.list("", after.as_ref(), 1000).await.map_err(from_backend)?;
            let Some(last) = found.last() else { return Ok(()) };
            after = Some(last.name.clone());
            for info in found {
                store.delete(&info.name).await.map_err(from_backend)?;
            }
        }
    }
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
    leaf: Leaf,
    clock: Rc<dyn Clock>,
    state: Rc<RefCell<State>>,
}

impl Drive {
    pub(super) fn new(leaf: Leaf, clock: Rc<dyn Clock>) -> Drive {
        Drive { leaf, clock, state: Rc::new(RefCell::new(State::Closed)) }
    }

    /// What stores its objects.
    pub(super) async fn open(&self, expected: Namespace) -> Opened {
        let now = self.clock.now();
        let (since, opening) = {
            let mut state = self.state.borrow_mut();
            match &*state {
                State::Open(opened) => return Ok(opened.clone()),
                State::Failed { at, error } if now < *at + PAUSE => return Err(error.clone()),
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

    /// Removes all that is there. A folder is waited for as at opening; a store has bounds of its own.
    pub(super) async fn remove(&self) -> Result<(), Problem> {
        match &self.leaf.location {
            Location::Dir { .. } => {
                let removed = self.within(OPENING_PATIENCE, pin!(self.leaf.remove())).await;
                removed.map_err(from_backend)?
            }
            Location::Remote(_) => self.leaf.remove().await,
        }
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

    async fn opened(&self) -> Opened {
        self.open(Namespace::Existing).await
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
        Box::pin(async move { self.opened().await?.put(&name, parts, urgency).await })
    }

    fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move { self.opened().await?.get_range(&name, offset, length).await })
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move { self.opened().await?.get(&name).await })
    }

    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move { self.opened().await?.get_lasting(&name).await })
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> LocalBoxFuture<'_, Result<Vec<ObjectInfo>, BackendError>> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        Box::pin(async move { self.opened().await?.list(&prefix, after.as_ref(), limit).await })
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move { self.opened().await?.delete(&name).await })
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        Box::pin(async move { self.opened().await?.capacity().await })
    }
}
