//! A backend of backends: objects are cut up, compressed, encrypted and erasure-coded, and their fragments put on drives.
//!
//! ```text
//!  put ─▶ encode.rs: chunks, frames, parity ─▶ placement.rs: which drives ─▶ put.rs: c of k + m are stored
//!  get ─▶ find.rs: what it is, where it is ─▶ get.rs: one frame of one fragment, or reconstruct.rs: what k others say of it
//!      ─▶ frames.rs: verified, plain
//! ```
//!
//! It keeps nothing but what it can find out again. `docs/decisions/0011-coded-backends.md` says why it is so, and
//! `0018-life-of-a-drive.md` what happens when drives come and go:
//!
//! ```text
//!  look_after ─▶ survey.rs: each object as it lies on the drives ─▶ plan.rs: what has to move, or be made again ─▶ mend.rs: does it
//!      ─▶ removals.rs: what is there twice goes when nobody reads it any more            verify.rs: reads all there is
//! ```
//!
//! Not here: who decides that a drive is lost, what an object means.

mod drives;
mod encode;
mod find;
mod frames;
mod get;
mod hedge;
mod known;
mod lasting;
mod list;
mod mend;
mod name;
mod on_their_way;
mod parity;
mod placement;
mod plan;
mod put;
mod reconstruct;
mod removals;
mod survey;
#[cfg(test)]
mod tests;
mod upkeep;
mod verify;

pub use drives::{Drive, Duty};
pub use frames::Key;
pub use ovs_format::fragment::Compression;
pub use survey::{Share, Survey};
pub use upkeep::{Phase, Upkeep};
pub use verify::Verified;

use crate::{Backend, BackendError, Capacity, ObjectInfo, ObjectName, Urgency};
use bytes::Bytes;
use drives::Drives;
use futures_util::future::LocalBoxFuture;
use hedge::Hedges;
use known::Known;
use on_their_way::OnTheirWay;
use ovs_format::fragment::{FRAGMENTS_MAX, Geometry};
use ovs_units::planted;
use put::Put;
use removals::Removals;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashSet},
    fmt,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use thiserror::Error;
use tokio::time::{Instant, timeout};
use upkeep::Keeping;

/// A drive that takes longer for anything but a put has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// For so long a drive that has failed is asked last, …
const SUSPECT: Duration = Duration::from_secs(10);
/// … and twice as long each time that it fails again, at most this.
const SUSPECT_MAX: Duration = Duration::from_secs(300);
/// Less is done sooner than a thread is woken up.
const THREAD_BYTES_MIN: u64 = 64 << 10;

/// Bytes of an object that are compressed, encrypted and read together.
pub const FRAME_BYTES: u32 = 32 << 10;
/// Bytes of a data fragment at most, unless a preset says otherwise.
pub const FRAGMENT_BYTES_DEFAULT: u32 = 4 << 20;

/// How many fragments of a chunk there are, and how many must be stored before a put is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Data fragments (k).
    pub data: u8,
    /// Parity fragments (m): so many may be lost.
    pub parity: u8,
    /// Stored before a put returns (c).
    pub acknowledged: u8,
    /// Of a chunk on one node, at most (x).
    pub per_node: u32,
}

/// Why a policy or a preset was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PresetError {
    /// No data.
    #[error("policy {0}: k is at least 1")]
    NoData(String),
    /// More than erasure coding over bytes takes.
    #[error("policy {0}: k + m is at most {FRAGMENTS_MAX}")]
    TooMany(String),
    /// An acknowledged put could not be read back, or would wait for more than there is.
    #[error("policy {0}: c is from k to k + m")]
    Acknowledged(String),
    /// Nothing could be placed.
    #[error("policy {0}: x is at least 1")]
    PerNode(String),
    /// There must be one.
    #[error("a preset has at least one policy")]
    NoPolicy,
    /// Two disks, or two keys, that nobody could tell apart.
    #[error("{0} is there twice")]
    Twice(String),
    /// No put could be acknowledged.
    #[error("{drives} drives: policy {policy} takes at least {least}")]
    TooFewDrives {
        /// How many there are.
        drives: usize,
        /// The policy that takes least.
        policy: String,
        /// As many.
        least: u8,
    },
    /// Frames do not cross fragments.
    #[error("fragments of {0} bytes: allowed are multiples of {FRAME_BYTES} from {FRAME_BYTES} to {max}", max = ovs_format::fragment::FRAGMENT_BYTES_MAX)]
    Fragment(u32),
}

impl Policy {
    /// k data and m parity fragments, acknowledged when c are stored, x of a chunk on one node at most.
    pub fn new(data: u8, parity: u8, acknowledged: u8, per_node: u32) -> Result<Policy, PresetError> {
        let policy = Policy { data, parity, acknowledged, per_node };
        let fragments = u32::from(data) + u32::from(parity);
        if data == 0 {
            Err(PresetError::NoData(policy.to_string()))
        } else if fragments > FRAGMENTS_MAX {
            Err(PresetError::TooMany(policy.to_string()))
        } else if acknowledged < data || u32::from(acknowledged) > fragments {
            Err(PresetError::Acknowledged(policy.to_string()))
        } else if per_node == 0 {
            Err(PresetError::PerNode(policy.to_string()))
        } else {
            Ok(policy)
        }
    }

    /// Fragments of a chunk.
    pub fn fragments(&self) -> u32 {
        u32::from(self.data) + u32::from(self.parity)
    }

    /// Is it what an object was put with?
    fn has_form_of(&self, geometry: &Geometry) -> bool {
        (self.data, self.parity) == (geometry.data, geometry.parity)
    }

    /// Of what was acknowledged so many fragments may be gone, and it is read all the same (c - k).
    fn spare(&self) -> u32 {
        u32::from(self.acknowledged - self.data)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{},{}", self.data, self.parity, self.acknowledged, self.per_node)
    }
}

/// How objects are stored.
#[derive(Debug, Clone)]
pub struct Preset {
    policies: Vec<Policy>,
    /// Those of presets before this one.
    earlier: Vec<Policy>,
    fragment_bytes: u32,
    compression: Compression,
    keys: Vec<Key>,
}

impl Preset {
    /// By the first of the policies that drives satisfy, in fragments of [`FRAGMENT_BYTES_DEFAULT`] at most, as they are.
    pub fn new(policies: Vec<Policy>) -> Result<Preset, PresetError> {
        if policies.is_empty() {
            return Err(PresetError::NoPolicy);
        }
        let compression = Compression::None;
        let (earlier, keys) = (Vec::new(), Vec::new());
        Ok(Preset { policies, earlier, fragment_bytes: FRAGMENT_BYTES_DEFAULT, compression, keys })
    }

    /// The same where objects may be that were put by these policies of earlier presets.
    pub fn with_earlier(mut self, policies: Vec<Policy>) -> Preset {
        self.earlier = policies;
        self
    }

    fn all_policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().chain(&self.earlier)
    }

    /// The same with data fragments of so many bytes at most.
    pub fn with_fragments_of(mut self, bytes: u32) -> Result<Preset, PresetError> {
        let allowed = FRAME_BYTES..=ovs_format::fragment::FRAGMENT_BYTES_MAX;
        if !allowed.contains(&bytes) || !bytes.is_multiple_of(FRAME_BYTES) {
            return Err(PresetError::Fragment(bytes));
        }
        self.fragment_bytes = bytes;
        Ok(self)
    }

    /// The same, compressed.
    pub fn with_compression(mut self, compression: Compression) -> Preset {
        self.compression = compression;
        self
    }

    /// The same, encrypted under the last of the keys; the others are for what was put under them.
    pub fn with_keys(mut self, keys: Vec<Key>) -> Result<Preset, PresetError> {
        let mut numbers = HashSet::new();
        match keys.iter().find(|key| !numbers.insert(key.number())) {
            Some(key) => Err(PresetError::Twice(format!("key {}", key.number()))),
            None => {
                self.keys = keys;
                Ok(self)
            }
        }
    }

    fn key(&self, number: u32) -> Option<&Key> {
        self.keys.iter().find(|key| key.number() == number)
    }
}

/// Where compression, encryption and parity are worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// By the thread that asks: for tests that decide the order of everything.
    Here,
    /// By others.
    OnThreads,
}

/// What was done, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CodedStats {
    /// Fragments that were not as they should be: other bytes, too short, of another object.
    pub bad_fragments: u64,
    /// Reads that needed parity.
    pub reconstructed: u64,
    /// Reads that parity answered sooner than a slow drive.
    pub hedged: u64,
    /// Fragments that went to another drive than the one that they belong on.
    pub misplaced: u64,
    /// Fragments that no drive took, of puts that were acknowledged all the same.
    pub missing: u64,
}

/// A backend of backends.
#[derive(Clone)]
pub struct CodedBackend {
    inner: Rc<Inner>,
}

struct Inner {
    /// Changed as a whole: who works with some goes on with those.
    drives: RefCell<Rc<Drives>>,
    /// Whoever needs two things of it that belong together takes it once.
    preset: RefCell<Arc<Preset>>,
    threads: bool,
    /// Fragments asked of a drive at once.
    page: usize,
    known: RefCell<Known>,
    stats: Cell<CodedStats>,
    /// Drives that have failed: until when others are asked first, and for how long that is.
    suspects: RefCell<Vec<Option<(Instant, Duration)>>>,
    on_their_way: OnTheirWay,
    removals: Removals,
    hedges: Hedges,
    upkeep: Keeping,
}

impl CodedBackend {
    /// Over these drives, whatever is on them. Work that takes long is done by tokio's threads for that, or at once.
    pub fn new(drives: Vec<Drive>, preset: Preset, work: Work) -> Result<CodedBackend, PresetError> {
        let mut ids = HashSet::new();
        if let Some(drive) = drives.iter().find(|drive| !ids.insert(drive.id)) {
            return Err(PresetError::Twice(format!("drive {}", drive.id)));
        }
        let there = drives.iter().filter(|drive| drive.duty != Duty::Gone).count();
        let least = preset.policies.iter().min_by_key(|policy| policy.acknowledged);
        if let Some(policy) = least
            && there < policy.acknowledged.into()
        {
            let least = policy.acknowledged;
            return Err(PresetError::TooFewDrives { drives: there, policy: policy.to_string(), least });
        }
        let inner = Inner {
            suspects: RefCell::new(vec![None; drives.len()]),
            drives: RefCell::new(Rc::new(Drives::new(drives))),
            preset: RefCell::new(Arc::new(preset)),
            threads: work == Work::OnThreads,
            // Few enough that a test comes to the end of some.
            page: if cfg!(test) { 7 } else { 1000 },
            known: RefCell::default(),
            stats: Cell::default(),
            on_their_way: OnTheirWay::default(),
            removals: Removals::default(),
            hedges: Hedges::default(),
            upkeep: Keeping::default(),
        };
        Ok(CodedBackend { inner: Rc::new(inner) })
    }

    /// The counters now.
    pub fn stats(&self) -> CodedStats {
        self.inner.stats.get()
    }

    /// From now on these are the keys, as with [`Preset::with_keys`]. A put that has begun goes on under its own.
    pub fn set_keys(&self, keys: Vec<Key>) -> Result<(), PresetError> {
        let preset = (*self.inner.preset()).clone().with_keys(keys)?;
        *self.inner.preset.borrow_mut() = Arc::new(preset);
        Ok(())
    }

    /// Returns when no put is at work any more. What a drive has not answered for in time is not waited for.
    pub async fn settle(&self) {
        self.inner.on_their_way.settle().await;
    }
}

/// A drive's answer, for which nobody waits for ever.
async fn timed<T>(
    operation: &'static str,
    object: &str,
    answer: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| {
        let reason = format!("a drive takes longer than {PATIENCE:?}");
        Err(BackendError::Retry { operation, object: object.to_owned(), reason })
    })
}

impl Inner {
    /// The drives as they are now.
    fn drives(&self) -> Rc<Drives> {
        Rc::clone(&self.drives.borrow())
    }

    fn preset(&self) -> Arc<Preset> {
        Arc::clone(&self.preset.borrow())
    }

    fn count(&self, change: impl FnOnce(&mut CodedStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    /// On another thread where it takes longer than to wake that up.
    async fn compute<T: Send + 'static>(
        &self,
        bytes: u64,
        work: impl FnOnce(&Preset) -> T + Send + 'static,
    ) -> Result<T, BackendError> {
        if !self.threads || bytes < THREAD_BYTES_MIN {
            return Ok(work(&self.preset()));
        }
        let preset = self.preset();
        tokio::task::spawn_blocking(move || work(&preset)).await.map_err(|stopped| BackendError::Retry {
            operation: "compute",
            object: String::new(),
            reason: format!("a thread has ended early: {stopped}"),
        })
    }

    /// It has failed and nobody knows that it works again.
    fn is_suspect(&self, index: usize) -> bool {
        self.suspects.borrow()[index].is_some_and(|(until, _)| Instant::now() < until)
    }

    fn fails(&self, index: usize, error: &BackendError) {
        self.upkeep.failed.borrow_mut().insert(index);
        let (now, mut suspects) = (Instant::now(), self.suspects.borrow_mut());
        let before = suspects[index];
        let lasts = match before {
            Some((until, _)) if now < until => return,
            Some((_, lasts)) => (lasts * 2).min(SUSPECT_MAX),
            None => SUSPECT,
        };
        suspects[index] = Some((now + lasts, lasts));
        if before.is_none() {
            tracing::warn!(drive = %self.drives()[index].id, %error, "a drive fails: others are asked first");
        }
    }

    fn answers(&self, index: usize) {
        if self.suspects.borrow_mut()[index].take().is_some() {
            tracing::info!(drive = %self.drives()[index].id, "a drive answers again");
            self.upkeep.reads_again();
            self.upkeep.ask_for_survey();
        }
    }

    /// It lists what it has: whether it reads that, too, is another question.
    fn lists(&self, index: usize) {
        if !self.is_suspect(index) {
            self.answers(index);
        }
    }

    /// So many drives may be lost or fail to answer, and whatever was acknowledged under any preset is still found on the others.
    fn unheard_max(&self) -> u32 {
        self.preset().all_policies().map(Policy::spare).min().unwrap_or(0)
    }

    /// Drives that say nothing of what was put: those that are silent, and those that have lost it.
    fn unheard(&self, silent: &BTreeSet<usize>) -> u32 {
        if planted("drives: what a lost one had was never put") {
            return silent.len() as u32;
        }
        let lost = self.drives().with(|duty| duty == Duty::Lost).collect();
        silent.union(&lost).count() as u32
    }
}

impl Backend for CodedBackend {
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            self.inner.upkeep.guest();
            self.inner.clone().put(name, parts, Put::New(urgency)).await
        })
    }

    fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            self.inner.upkeep.guest();
            let _reader = self.inner.removals.reader();
            self.inner.get_range(&name, offset, length).await
        })
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            self.inner.upkeep.guest();
            let _reader = self.inner.removals.reader();
            self.inner.get(&name).await
        })
    }

    /// No guest does that.
    fn get_stored(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            let _reader = self.inner.removals.reader();
            self.inner.get(&name).await
        })
    }

    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            self.inner.upkeep.guest();
            let _reader = self.inner.removals.reader();
            self.inner.clone().get_lasting(name).await
        })
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> LocalBoxFuture<'_, Result<Vec<ObjectInfo>, BackendError>> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        Box::pin(async move {
            self.inner.upkeep.guest();
            let _reader = self.inner.removals.reader();
            self.inner.list(&prefix, after, limit).await
        })
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move { self.inner.delete(&name).await })
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        Box::pin(self.inner.capacity())
    }
}
