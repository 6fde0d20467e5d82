//! The adapter: [`Backend`]'s rules over an operator, and what is tried again.
//!
//! ```text
//!  engine thread: a call ──▶ task on the runtime: an operation (operation.rs) of attempts ─▶ OpenDAL
//!                 ◀── its JoinHandle
//! ```
//!
//! Invariants
//! * A put looks before it writes, in each attempt: no safety rests on a conditional put, and an attempt of which nobody knows
//!   what became is told from a conflict by the object's bytes.
//! * Who gives a call up ends its task.
//! * Names are the prefix, `/`, and the object's name; nothing else is ever asked for, and what a listing has beside is left out.

use crate::{
    Credentials, RemoteStore,
    answer::OBJECT_BYTES_MAX,
    failure::Failure,
    http::Http,
    operation::Turn,
    operators::Operators,
    redact::{Redactor, shorten},
};
use bytes::Bytes;
use futures_util::{TryStreamExt, future::LocalBoxFuture};
use opendal::{Buffer, Operator, options};
use ovs_backend::{Backend, BackendError, Capacity, ObjectInfo, ObjectName, Urgency};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use thiserror::Error;
use tokio::{runtime::Handle, sync::Semaphore, task::JoinHandle};

/// What one page of a listing has at most; S3 has no more.
const PAGE_OBJECTS_MAX: usize = 1000;
/// Ranges that go as far as this are asked for without an end: stores differ in what they make of more than 2^63.
const RANGE_END_MAX: u64 = 1 << 62;

/// How a store is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteOptions {
    /// No attempt begins so long after the operation did.
    pub retry: Duration,
    /// A request ends when nothing of it has moved for so long. An operation ends after `retry` and this, whatever it is at, or later by what
    /// its bytes take at 16 KiB/s, its names at 100 a second, and by what our own pace has held back.
    pub patience: Duration,
    /// At most so many operations are under way, each with one request at a time; the others wait. A store's own number goes before this.
    pub operations_max: usize,
    /// At most so many wait; more are told so at once.
    pub waiting_max: usize,
    /// Of the times between attempts, and of the names a probe uses: no two hosts have the same.
    pub seed: u64,
}

impl RemoteOptions {
    /// What serves most.
    pub fn new(seed: u64) -> RemoteOptions {
        RemoteOptions {
            retry: Duration::from_secs(20),
            patience: Duration::from_secs(10),
            operations_max: 32,
            waiting_max: 4096,
            seed,
        }
    }
}

/// Why a store cannot be used as it is described.
#[derive(Debug, Error)]
#[error("{store}: {reason}")]
pub struct OpenError {
    store: String,
    reason: String,
}

/// Objects in a remote store.
#[derive(Clone)]
pub struct RemoteBackend {
    shared: Arc<Shared>,
    runtime: Handle,
}

/// What tasks have of it.
pub(crate) struct Shared {
    pub(crate) address: String,
    prefix: String,
    pub(crate) operators: Operators,
    pub(crate) options: RemoteOptions,
    pub(crate) operations: Semaphore,
    /// How many turns there are.
    pub(crate) turns: usize,
    /// Of these turns: what is read waits for no put that the pace holds back.
    pub(crate) puts: Semaphore,
    /// Operations that have begun, with or without a turn.
    pub(crate) present: AtomicUsize,
    chance: AtomicU64,
}

impl RemoteBackend {
    /// Checks the description and asks nobody yet. All I/O will be on `runtime`.
    pub fn open(
        store: RemoteStore,
        credentials: Credentials,
        options: RemoteOptions,
        runtime: Handle,
    ) -> Result<RemoteBackend, OpenError> {
        store.check().map_err(|reason| OpenError { store: store.kind_name().to_owned(), reason })?;
        let error = |reason: String| OpenError { store: store.to_string(), reason };
        let urls = store.urls();
        let is_tls = urls.is_empty() || urls.iter().any(|url| url.starts_with("https://"));
        let redactor = Redactor::new(&credentials);
        let http = Http::new(store.protocol(), redactor, is_tls, options.patience, store.limits.bytes_per_s);
        let operators = Operators::new(store.clone(), credentials, http.map_err(error)?).map_err(error)?;
        let asked = store.limits.requests_max.map(|requests| requests as usize);
        let turns = asked.unwrap_or(options.operations_max).clamp(1, Semaphore::MAX_PERMITS / 3);
        let shared = Shared {
            address: store.address(),
            prefix: store.prefix.clone(),
            operators,
            operations: Semaphore::new(turns),
            turns,
            puts: Semaphore::new((turns * 3 / 4).max(1)),
            present: AtomicUsize::new(0),
            chance: AtomicU64::new(options.seed),
            options,
        };
        Ok(RemoteBackend { shared: Arc::new(shared), runtime })
    }

    /// Runs on the runtime what the engine thread waits for.
    pub(crate) fn run<T: Send + 'static, F: Future<Output = Result<T, Failure>> + Send + 'static>(
        &self,
        operation: &'static str,
        object: String,
        work: impl FnOnce(Arc<Shared>) -> F,
    ) -> LocalBoxFuture<'static, Result<T, BackendError>> {
        let shared = self.shared.clone();
        let work = work(shared.clone());
        let task = Task(self.runtime.spawn(async move {
            match work.await {
                Ok(done) => Ok(done),
                Err(failure) => {
                    let redactor = shared.operators.redactor();
                    Err(failure.with_text(|text| shorten(&redactor.clean(text, false))))
                }
            }
        }));
        let address = self.shared.address.clone();
        Box::pin(async move {
            let mut task = task;
            // A panic of OpenDAL's over an answer is one more way not to answer.
            let done = (&mut task.0).await.unwrap_or_else(|error| Err(Failure::Refused(error.to_string())));
            done.map_err(|failure| failure.into_backend_error(operation, &object, &address))
        })
    }
}

/// Ends with the one who waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    /// SplitMix64.
    pub(crate) fn random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.chance.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn path(&self, name: &ObjectName) -> String {
        format!("{}/{name}", self.prefix)
    }

    pub(crate) async fn put(&self, path: String, bytes: Buffer) -> Result<(), Failure> {
        if bytes.len() as u64 > OBJECT_BYTES_MAX {
            return Err(Failure::Refused("longer than 256 MiB, which nobody would read".to_owned()));
        }
        self.operate(async |allowed| {
            let attempt = |operator| put_once(operator, path.clone(), bytes.clone());
            self.persist(allowed, Turn::Put, attempt).await
        })
        .await
    }

    /// For the probe: once, and whether it succeeded; `false` is a store that says it was there.
    pub(crate) async fn put_if_absent(&self, path: String, bytes: Bytes) -> Result<bool, Failure> {
        self.operate(async |allowed| {
            let operator = self.operators.current().await?.operator;
            if !operator.info().capability().write_with_if_not_exists {
                return Err(Failure::Unsupported);
            }
            let operator = self.operators.during(operator, allowed.clone());
            match operator.write_with(&path, bytes).if_not_exists(true).await.map_err(Failure::from) {
                Ok(_) | Err(Failure::Unconfirmed) => Ok(true),
                Err(Failure::Exists) => Ok(false),
                Err(failure) => Err(failure),
            }
        })
        .await
    }

    pub(crate) async fn read(&self, path: String, range: Option<(u64, u64)>) -> Result<Bytes, Failure> {
        let attempt = |operator: Operator| {
            let path = path.clone();
            async move {
                let bytes = match range {
                    None => operator.read(&path).await,
                    Some((first, end)) if end >= RANGE_END_MAX => {
                        operator.read_with(&path).range(first..).await
                    }
                    Some((first, end)) => operator.read_with(&path).range(first..end).await,
                };
                Ok(bytes.map_err(Failure::from)?.to_bytes())
            }
        };
        let read = self.operate(async |allowed| self.persist(allowed, Turn::Any, attempt).await).await;
        match (read, range) {
            (Err(Failure::Ended(bytes)), Some(_)) => Ok(bytes),
            (read, _) => read,
        }
    }

    /// One page after the other, each tried again by itself.
    pub(crate) async fn list(
        &self,
        prefix: &str,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, Failure> {
        self.operate(async |allowed| {
            let mut found: Vec<ObjectInfo> = Vec::new();
            let mut after = after;
            loop {
                let wanted = (limit - found.len()).min(PAGE_OBJECTS_MAX);
                let attempt = |operator| self.page(operator, prefix, after.as_ref(), wanted);
                let page = self.persist(allowed, Turn::Any, attempt).await?;
                let is_last = page.len() < wanted;
                allowed.found(page.len());
                found.extend(page);
                if is_last || found.len() >= limit {
                    return Ok(found);
                }
                after = found.last().map(|info| info.name.clone());
            }
        })
        .await
    }

    /// At most `wanted` (not 0) objects; fewer are the last.
    async fn page(
        &self,
        operator: Operator,
        prefix: &str,
        after: Option<&ObjectName>,
        wanted: usize,
    ) -> Result<Vec<ObjectInfo>, Failure> {
        let mut asked = options::ListOptions { recursive: true, limit: Some(wanted), ..Default::default() };
        if operator.info().capability().list_with_start_after {
            asked.start_after = after.map(|after| self.path(after));
        }
        let mut entries = operator.lister_options(&format!("{}/{prefix}", self.prefix), asked).await?;
        let mut page: Vec<ObjectInfo> = Vec::new();
        let mut last = String::new();
        while page.len() < wanted {
            let Some(entry) = entries.try_next().await? else { break };
            // Also where none of it is ours: a page that comes again would do so for ever.
            if entry.path() <= last.as_str() {
                return Err(Failure::Refused("a listing that is not sorted, or does not get on".to_owned()));
            }
            entry.path().clone_into(&mut last);
            let name = entry.path().strip_prefix(&self.prefix).and_then(|path| path.strip_prefix('/'));
            let Some(name) = name.and_then(|name| ObjectName::new(name).ok()) else { continue };
            if !name.as_str().starts_with(prefix) || after.is_some_and(|after| name <= *after) {
                continue;
            }
            page.push(ObjectInfo { name, length_bytes: entry.metadata().content_length() });
        }
        Ok(page)
    }

    pub(crate) async fn delete(&self, path: String) -> Result<(), Failure> {
        let delete = |operator: Operator| {
            let path = path.clone();
            async move { operator.delete(&path).await.map_err(Failure::from) }
        };
        match self.operate(async |allowed| self.persist(allowed, Turn::Any, delete).await).await {
            Err(Failure::Absent) => Ok(()),
            done => done,
        }
    }
}

/// Looks, and writes what is not there.
async fn put_once(operator: Operator, path: String, bytes: Buffer) -> Result<(), Failure> {
    match operator.stat(&path).await.map_err(Failure::from) {
        Ok(_) => return compare(&operator, &path, bytes).await,
        Err(Failure::Absent) => {}
        // A HEAD has no text that could say whose it is.
        Err(Failure::Unmarked) => match operator.read_with(&path).range(0..1).await.map_err(Failure::from) {
            Err(Failure::Absent) => {}
            Ok(_) | Err(Failure::Ended(_)) => return compare(&operator, &path, bytes).await,
            Err(failure) => return Err(failure),
        },
        Err(failure) => return Err(failure),
    }
    match operator.write(&path, bytes.clone()).await.map_err(Failure::from) {
        Err(Failure::Unconfirmed) => match compare(&operator, &path, bytes).await {
            // Whoever tries again is told of the conflict that it is by then.
            Err(Failure::Conflict) => {
                Err(Failure::Refused("it keeps other bytes than it was sent".to_owned()))
            }
            done => done,
        },
        done => done.map(drop),
    }
}

/// A conflict stops whoever is told of it: so it is one of bytes, and not of a length.
async fn compare(operator: &Operator, path: &str, bytes: Buffer) -> Result<(), Failure> {
    match operator.read(path).await.map_err(Failure::from) {
        Ok(found) if found.to_bytes() == bytes.to_bytes() => Ok(()),
        Ok(_) => Err(Failure::Conflict),
        Err(Failure::Absent) => Err(Failure::Busy("it is there, and is not".to_owned())),
        Err(failure) => Err(failure),
    }
}

/// Can any object's name begin so?
fn is_prefix_of_a_name(prefix: &str) -> bool {
    prefix.is_empty() || ObjectName::new(format!("{prefix}x")).is_ok() || ObjectName::new(prefix).is_ok()
}

impl Backend for RemoteBackend {
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        _urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let path = self.shared.path(name);
        self.run("put", name.to_string(), |me| async move { me.put(path, Buffer::from(parts)).await })
    }

    fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        if length == 0 || offset >= RANGE_END_MAX {
            return Box::pin(async { Ok(Bytes::new()) });
        }
        let (path, end) = (self.shared.path(name), offset.saturating_add(length));
        self.run("get", name.to_string(), move |me| async move { me.read(path, Some((offset, end))).await })
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let path = self.shared.path(name);
        self.run("get", name.to_string(), |me| async move { me.read(path, None).await })
    }

    /// What was sent and not answered for may land yet: what is absent is not known to stay so.
    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let read = self.get(name);
        Box::pin(async move {
            read.await.map_err(|error| match error {
                BackendError::NotFound { object } => {
                    let reason = "a put of it may be on its way".to_owned();
                    BackendError::Incomplete { object, reason, is_silent: false }
                }
                error => error,
            })
        })
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> LocalBoxFuture<'_, Result<Vec<ObjectInfo>, BackendError>> {
        if limit == 0 || !is_prefix_of_a_name(prefix) {
            return Box::pin(async { Ok(Vec::new()) });
        }
        let (wanted, after) = (prefix.to_owned(), after.cloned());
        self.run("list", prefix.to_owned(), move |me| async move { me.list(&wanted, after, limit).await })
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let path = self.shared.path(name);
        self.run("delete", name.to_string(), |me| async move { me.delete(path).await })
    }

    /// What a store of this kind would tell is a price, not a size.
    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        Box::pin(async { Ok(None) })
    }
}
