//! The stores that outlive an engine, seen from outside: every call passes a [`Director`], who may let it go wrong
//! and who learns when something that was asked for has become true.
//!
//! A store is here its state alone (`Stores`, cheap enough to fork at every change); its faults, delays and its trace
//! are the director's. Simulation and crash sweep are two directors over the same doors, which are one [`Directed`]
//! with the trait of each store.

mod backend;
mod cache;
mod local;

use crate::{MemoryDevice, Random};
pub use cache::MemoryCache;
pub(crate) use cache::a_vdisk_cache;
use ovs_backend::MemoryBackend;
use ovs_volume::{MemoryPages, MemoryRegistry};
use std::{fmt, rc::Rc, time::Duration};

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Store {
    Device,
    Registry,
    Pages,
    Backend,
    Cache,
}

/// One call of a store.
#[derive(Debug, Clone)]
pub struct Call {
    /// Of which store.
    pub store: Store,
    /// As the trait names it.
    pub operation: &'static str,
    /// A slot and offset, a key, a page, an object.
    pub object: String,
    /// What is given, reduced to a number.
    pub digest: u64,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {} {}", self.store, self.operation, self.object)
    }
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error, and nothing has happened (of a device's write: a beginning of it may have).
    ErrorBefore,
    /// An error, and yet it has happened.
    ErrorAfter,
    /// There is no space for it.
    NoSpace,
    /// It begins after so long.
    Slow(Duration),
    /// It happens, and never answers.
    HangAfter,
    /// Neither.
    HangBefore,
    /// So many bytes of what was asked for.
    ShortRead(usize),
    /// One bit is another.
    BitFlip(usize),
    /// Valid bytes, of something else of the same kind.
    Swapped(usize),
}

/// Who decides what goes wrong, and hears what has happened.
pub trait Director {
    /// Before every call.
    fn before(&self, call: &Call) -> Option<Fault>;
    /// What was read is another answer because of this fault: there was something to turn, to cut, or to take in its place.
    fn spoiled(&self, store: Store, fault: Fault) {
        let _ = (store, fault);
    }
    /// The state has changed, in part or as a whole: a moment at which everything may end.
    fn changed(&self);
    /// The answer, reduced to a number.
    fn after(&self, call: &Call, digest: u64);
}

/// What outlives an engine.
#[derive(Clone)]
pub struct Stores {
    /// The device of the write buffer.
    pub device: Rc<MemoryDevice>,
    /// Heads, names.
    pub registry: Rc<MemoryRegistry>,
    /// Map pages and checkpoints.
    pub pages: Rc<MemoryPages>,
    /// Objects.
    pub backend: Rc<MemoryBackend>,
    /// The read cache, if there is one.
    pub cache: Option<Rc<MemoryCache>>,
}

impl Stores {
    /// Empty ones.
    pub fn new(device: MemoryDevice, cache: Option<Rc<MemoryCache>>) -> Stores {
        Stores {
            device: Rc::new(device),
            registry: Rc::default(),
            pages: Rc::default(),
            backend: Rc::default(),
            cache,
        }
    }

    /// The same contents in stores of their own, whose device takes its chances from `random`.
    pub fn fork(&self, random: &Rc<Random>) -> Stores {
        Stores {
            device: Rc::new(self.device.fork(Rc::clone(random))),
            registry: Rc::new((*self.registry).clone()),
            pages: Rc::new((*self.pages).clone()),
            backend: Rc::new((*self.backend).clone()),
            cache: self.cache.as_ref().map(|cache| Rc::new((**cache).clone())),
        }
    }
}

/// Spreads bytes over a number, in order.
pub fn digest(bytes: &[u8]) -> u64 {
    (bytes.len() as u64) << 32 | u64::from(crc32c::crc32c(bytes))
}

fn digest_all<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    parts.into_iter().fold(0, |sum: u64, part| sum.rotate_left(17) ^ digest(part))
}

fn spoil(bytes: &[u8], fault: Option<Fault>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    match fault {
        Some(Fault::ShortRead(length)) => bytes.truncate(length % bytes.len().max(1)),
        Some(Fault::BitFlip(bit)) if !bytes.is_empty() => {
            let at = bit / 8 % bytes.len();
            bytes[at] ^= 1 << (bit % 8);
        }
        _ => {}
    }
    bytes
}

/// A store behind a director.
pub struct Directed<S> {
    inner: Rc<S>,
    director: Rc<dyn Director>,
    /// How long it takes.
    random: Rc<Random>,
}

/// A store that a director knows, and its errors.
pub trait Directable {
    /// Which it is.
    const STORE: Store;
    /// Of its calls.
    type Error;
    /// Of a call that is made to fail: for want of space, or to be tried again.
    fn injected(call: &Call, is_full: bool) -> Self::Error;
}

impl<S: Directable> Directed<S> {
    /// The store, as seen by the engine.
    pub fn new(inner: &Rc<S>, director: &Rc<dyn Director>, random: &Rc<Random>) -> Directed<S> {
        Directed { inner: inner.clone(), director: director.clone(), random: random.clone() }
    }

    /// Runs the part of a call that all stores have in common. `work` does it and gives the answer.
    async fn direct<T>(
        &self,
        operation: &'static str,
        object: impl Into<String>,
        given: u64,
        work: impl AsyncFnOnce(Option<Fault>) -> Result<T, S::Error>,
        digest_of: impl Fn(&T) -> u64,
    ) -> Result<T, S::Error> {
        let call = Call { store: S::STORE, operation, object: object.into(), digest: given };
        self.random.dawdle(2).await;
        let fault = self.director.before(&call);
        match fault {
            Some(Fault::ErrorBefore) => {
                self.director.after(&call, 1);
                return Err(S::injected(&call, false));
            }
            Some(Fault::NoSpace) => {
                self.director.after(&call, 2);
                return Err(S::injected(&call, true));
            }
            Some(Fault::HangBefore) => return std::future::pending().await,
            Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
            _ => {}
        }
        let answer = work(fault).await;
        self.random.dawdle(2).await;
        match fault {
            Some(Fault::HangAfter) => return std::future::pending().await,
            Some(Fault::ErrorAfter) => {
                self.director.after(&call, 3);
                return Err(S::injected(&call, false));
            }
            _ => {}
        }
        self.director.after(&call, answer.as_ref().map_or(4, &digest_of));
        answer
    }

    /// What a read finds, told where a fault made it something else. `read` is with the fault, or without.
    async fn read<T: PartialEq, E>(
        &self,
        fault: Option<Fault>,
        read: impl AsyncFn(Option<Fault>) -> Result<T, E>,
    ) -> Result<T, E> {
        let Some(fault @ (Fault::ShortRead(_) | Fault::BitFlip(_) | Fault::Swapped(_))) = fault else {
            return read(None).await;
        };
        let (truth, found) = (read(None).await, read(Some(fault)).await);
        if truth.ok().as_ref() != found.as_ref().ok() {
            self.director.spoiled(S::STORE, fault);
        }
        found
    }

    /// Like `direct`, of a call that changes the store.
    async fn change<T>(
        &self,
        operation: &'static str,
        object: impl Into<String>,
        given: u64,
        work: impl Future<Output = Result<T, S::Error>>,
        digest_of: impl Fn(&T) -> u64,
    ) -> Result<T, S::Error> {
        let work = async |_| {
            let answer = work.await;
            self.director.changed();
            answer
        };
        self.direct(operation, object, given, work, digest_of).await
    }
}
