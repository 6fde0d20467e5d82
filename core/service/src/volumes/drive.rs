//! A drive of a composite: it may be away when it is needed, and comes back when it can be opened.

use super::{
    layout::has_layout,
    namespace::{Namespace, cannot_use, remove_folder},
    problem::from_backend,
    remotes::open_store,
};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_api::Problem;
use ovs_backend::{Backend, BackendError, Capacity, DirBackend, DirOptions, ObjectInfo, ObjectName, Urgency};
use ovs_cluster::catalogue::CredentialsRecord;
use ovs_remote::{RemoteBackend, RemoteOptions, RemoteStore};
use std::{cell::RefCell, path::PathBuf, rc::Rc};
use tokio::runtime::Handle;

/// Where a vPool's objects are on a backend that is made of no other.
#[derive(Debug, Clone)]
pub(super) enum Leaf {
    /// In a folder.
    Dir {
        /// The vPool's own.
        folder: PathBuf,
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
    /// The folder that these may be in.
    pub(super) secrets: PathBuf,
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
        match self {
            Leaf::Dir { folder } => {
                let folder = folder.clone();
                let opened = tokio::task::spawn_blocking(move || {
                    let options = DirOptions::new(folder);
                    match expected {
                        Namespace::New => DirBackend::open(options),
                        Namespace::Existing => DirBackend::open_existing(options),
                    }
                });
                Ok(Rc::new(opened.await.map_err(|error| cannot_open(error.to_string()))??))
            }
            Leaf::Remote(leaf) => {
                let store = leaf.open().await.map_err(|problem| cannot_open(problem.detail))?;
                // An emptied bucket, or another one of this name, is not an empty vPool.
                if expected == Namespace::Existing && !has_layout(&store).await? {
                    let reason = format!("{}: nothing of this vPool is there", leaf.store);
                    return Err(cannot_open(reason));
                }
                Ok(Rc::new(store))
            }
        }
    }

    /// Removes all that is there.
    pub(super) async fn remove(&self) -> Result<(), Problem> {
        let store = match self {
            Leaf::Dir { folder } => {
                return remove_folder(folder.clone()).await.map_err(|error| cannot_use(folder, &error));
            }
            Leaf::Remote(leaf) => leaf.open().await?,
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

fn cannot_open(reason: String) -> BackendError {
    BackendError::Retry { operation: "open", object: String::new(), reason }
}

/// A leaf that is opened when it is asked for something, again and again until it can be.
pub(super) struct Drive {
    leaf: Leaf,
    opened: RefCell<Option<Rc<dyn Backend>>>,
}

impl Drive {
    pub(super) fn new(leaf: Leaf) -> Drive {
        Drive { leaf, opened: RefCell::new(None) }
    }

    /// What stores its objects, now.
    pub(super) async fn open(&self, expected: Namespace) -> Result<Rc<dyn Backend>, BackendError> {
        let opened = self.opened.borrow().clone();
        match opened {
            Some(opened) => Ok(opened),
            None => {
                let opened = self.leaf.open(expected).await?;
                *self.opened.borrow_mut() = Some(opened.clone());
                Ok(opened)
            }
        }
    }

    async fn opened(&self) -> Result<Rc<dyn Backend>, BackendError> {
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
