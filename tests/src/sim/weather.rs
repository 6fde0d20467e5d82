//! What goes wrong, and the trace of everything that happens.

use crate::{
    Random,
    random::mix,
    stores::{Call, Director, Fault, Store},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    fmt,
    rc::Rc,
    time::Duration,
};
use tokio::time::Instant;

/// A kind of thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum FaultClass {
    Death,
    DeathWhileOpening,
    PowerLoss,
    UnsyncedLost,
    WriteTorn,
    WritesReordered,
    ClockJump,
    RegistryLost,
    PagesLost,
    LocalStateLost,
    WriteBufferLost,
    BufferFull,
    DeviceWriteError,
    DeviceSyncError,
    DeviceReadError,
    DeviceBitFlip,
    DeviceSlow,
    RegistryErrorBefore,
    RegistryErrorAfter,
    RegistryNoSpace,
    RegistrySlow,
    PagesErrorBefore,
    PagesErrorAfter,
    PagesSlow,
    PageBitFlip,
    PageSwapped,
    BackendErrorBefore,
    BackendErrorAfter,
    BackendNoSpace,
    BackendSlow,
    BackendHung,
    BackendShortRead,
    BackendBitFlip,
    BackendSwapped,
    CacheError,
    CacheSlow,
    CacheLost,
    CacheBitFlip,
    CacheSwapped,
}

use FaultClass as F;

impl FaultClass {
    /// All of them.
    pub const ALL: [FaultClass; 39] = [
        F::Death,
        F::DeathWhileOpening,
        F::PowerLoss,
        F::UnsyncedLost,
        F::WriteTorn,
        F::WritesReordered,
        F::ClockJump,
        F::RegistryLost,
        F::PagesLost,
        F::LocalStateLost,
        F::WriteBufferLost,
        F::BufferFull,
        F::DeviceWriteError,
        F::DeviceSyncError,
        F::DeviceReadError,
        F::DeviceBitFlip,
        F::DeviceSlow,
        F::RegistryErrorBefore,
        F::RegistryErrorAfter,
        F::RegistryNoSpace,
        F::RegistrySlow,
        F::PagesErrorBefore,
        F::PagesErrorAfter,
        F::PagesSlow,
        F::PageBitFlip,
        F::PageSwapped,
        F::BackendErrorBefore,
        F::BackendErrorAfter,
        F::BackendNoSpace,
        F::BackendSlow,
        F::BackendHung,
        F::BackendShortRead,
        F::BackendBitFlip,
        F::BackendSwapped,
        F::CacheError,
        F::CacheSlow,
        F::CacheLost,
        F::CacheBitFlip,
        F::CacheSwapped,
    ];

    /// What makes bytes that are read from the cache other ones: nobody may see any of it.
    fn spoils_cache(self) -> bool {
        matches!(self, F::CacheLost | F::CacheBitFlip | F::CacheSwapped)
    }

    /// What makes bytes that are read from elsewhere other ones.
    fn spoils(self) -> bool {
        matches!(
            self,
            F::DeviceBitFlip
                | F::PageBitFlip
                | F::PageSwapped
                | F::BackendShortRead
                | F::BackendBitFlip
                | F::BackendSwapped
        )
    }

    /// About how many calls it could hit there are for each that it does.
    fn odds(self) -> u64 {
        match self {
            F::DeviceWriteError => 110,
            F::DeviceSyncError => 80,
            F::DeviceReadError => 60,
            F::DeviceBitFlip => 2,
            F::BackendHung => 60,
            F::PageBitFlip | F::PageSwapped => 8,
            F::BackendShortRead | F::BackendBitFlip | F::BackendSwapped => 25,
            F::RegistryErrorBefore | F::RegistryErrorAfter => 20,
            F::RegistrySlow => 10,
            F::PagesErrorBefore => 20,
            F::PagesErrorAfter => 4,
            F::CacheError => 16,
            F::CacheSlow => 6,
            F::CacheLost | F::CacheBitFlip => 2,
            // What other blocks hold is often the same.
            F::CacheSwapped => 1,
            _ => 25,
        }
    }
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What the weather is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Season {
    /// Nothing goes wrong.
    Calm,
    /// An engine opens: nothing hangs.
    Opening,
    /// Clients are served.
    Serving,
}

/// See the module.
pub(super) struct Weather {
    random: Rc<Random>,
    season: Cell<Season>,
    /// Puts find no space.
    pub(super) is_backend_full: Cell<bool>,
    /// The classes of this life.
    classes: RefCell<BTreeSet<FaultClass>>,
    fired: RefCell<BTreeSet<FaultClass>>,
    fired_in_life: RefCell<BTreeMap<FaultClass, u64>>,
    /// Errors that stores gave in this life, and those of them that the write buffer's device gave to a write or a sync.
    troubles: Cell<u64>,
    device_troubles: Cell<u64>,
    hash: Cell<u64>,
    events: Cell<u64>,
    began: Cell<Option<Instant>>,
    /// When the last event was: between two lives no time passes.
    at_ms: Cell<u64>,
    is_printed: bool,
    /// Which call goes wrong, and how, whatever the season.
    plan: Cell<Option<(u64, Fault)>>,
    /// Calls so far.
    calls: Cell<u64>,
    /// Hears of every change and every acknowledgement.
    watcher: RefCell<Option<Rc<dyn Fn()>>>,
}

impl Weather {
    pub(super) fn new(random: Rc<Random>) -> Weather {
        Weather {
            random,
            season: Cell::new(Season::Calm),
            is_backend_full: Cell::new(false),
            classes: RefCell::default(),
            fired: RefCell::default(),
            fired_in_life: RefCell::default(),
            troubles: Cell::new(0),
            device_troubles: Cell::new(0),
            hash: Cell::new(0),
            events: Cell::new(0),
            began: Cell::new(None),
            at_ms: Cell::new(0),
            is_printed: std::env::var_os("OVS_TRACE").is_some(),
            plan: Cell::new(None),
            calls: Cell::new(0),
            watcher: RefCell::default(),
        }
    }

    /// Another life, with other classes.
    pub(super) fn begin_life(&self) {
        self.end_life();
        // Some lives are all storm, some are about one thing.
        let one_in = 2 + self.random.below(5);
        let chosen = FaultClass::ALL.into_iter().filter(|_| self.random.one_in(one_in));
        *self.classes.borrow_mut() = chosen.collect();
        self.season.set(Season::Calm);
    }

    /// What came is of a life that is over.
    pub(super) fn end_life(&self) {
        self.fired_in_life.borrow_mut().clear();
        self.troubles.set(0);
        self.device_troubles.set(0);
    }

    /// From now on the times of the trace are those of the runtime that this is called in.
    pub(super) fn follow_runtime(&self) {
        self.began.set(Some(Instant::now()));
    }

    pub(super) fn set(&self, season: Season) {
        self.season.set(season);
    }

    pub(super) fn season(&self) -> Season {
        self.season.get()
    }

    /// The call of that number, counted from now, goes wrong.
    pub(super) fn plan(&self, call: u64, fault: Fault) {
        self.plan.set(Some((self.calls.get() + call, fault)));
    }

    /// Calls so far.
    pub(super) fn calls(&self) -> u64 {
        self.calls.get()
    }

    /// From now on `watcher` hears of every change of a store and every acknowledgement.
    pub(super) fn watch(&self, watcher: Option<Rc<dyn Fn()>>) {
        *self.watcher.borrow_mut() = watcher;
    }

    /// Somebody was told something that must stay true: a moment at which everything may end, whatever the stores do next.
    pub(super) fn acknowledged(&self) {
        self.moment();
    }

    fn moment(&self) {
        let watcher = self.watcher.borrow().clone();
        if let Some(watcher) = watcher {
            watcher();
        }
    }

    /// Notes that a fault of the class has come.
    pub(super) fn note(&self, class: FaultClass) {
        self.fired.borrow_mut().insert(class);
        *self.fired_in_life.borrow_mut().entry(class).or_default() += 1;
        self.event(format_args!("FAULT {class}"), class as u64);
    }

    /// The same, if none has come in this life.
    pub(super) fn note_once(&self, class: FaultClass) {
        if !self.has_fired(class) {
            self.note(class);
        }
    }

    /// May bytes that were read in this life have been others than those stored?
    pub(super) fn may_have_spoiled(&self) -> bool {
        self.fired_in_life.borrow().keys().any(|class| class.spoils())
    }

    /// Has any call come back with less than was asked for, in this life?
    pub(super) fn is_troubled(&self) -> bool {
        self.troubles.get() > 0
    }

    /// Has the write buffer lost anything in this life? Then it may have given up.
    pub(super) fn has_device_failed(&self) -> bool {
        self.device_troubles.get() > 0
    }

    /// May a vDisk serve no more?
    pub(super) fn may_be_offline(&self) -> bool {
        self.has_device_failed() || self.may_have_spoiled()
    }

    fn note_trouble(&self, call: &Call, fault: Fault) {
        let is_error =
            !matches!(fault, Fault::Slow(_) | Fault::ShortRead(_) | Fault::BitFlip(_) | Fault::Swapped(_));
        // Of the cache nobody hears.
        if is_error && call.store != Store::Cache {
            self.troubles.set(self.troubles.get() + 1);
            if call.store == Store::Device && call.operation != "read" {
                self.device_troubles.set(self.device_troubles.get() + 1);
            }
        }
    }

    /// In this life, so far.
    pub(super) fn has_fired(&self, class: FaultClass) -> bool {
        self.fired_in_life.borrow().contains_key(&class)
    }

    pub(super) fn fired(&self) -> Vec<FaultClass> {
        self.fired.borrow().iter().copied().collect()
    }

    pub(super) fn trace(&self) -> (u64, u64) {
        (self.hash.get(), self.events.get())
    }

    /// One event of the trace.
    pub(super) fn event(&self, what: fmt::Arguments<'_>, digest: u64) {
        if tokio::runtime::Handle::try_current().is_ok()
            && let Some(began) = self.began.get()
        {
            self.at_ms.set(began.elapsed().as_millis() as u64);
        }
        let at = self.at_ms.get();
        self.events.set(self.events.get() + 1);
        self.hash.set(mix(self.hash.get() ^ mix(digest ^ mix(at))));
        if self.is_printed {
            eprintln!("{at:>9} ms  {what} {digest:x}");
        }
    }

    fn comes(&self, class: FaultClass) -> bool {
        if !self.classes.borrow().contains(&class) {
            return false;
        }
        let so_far = self.fired_in_life.borrow().get(&class).copied().unwrap_or(0);
        let comes = match class {
            // A slot that fails stays out of use; when few are left the write buffer gives up.
            F::DeviceWriteError | F::DeviceSyncError if so_far >= 2 => false,
            F::DeviceReadError if so_far >= 2 => false,
            _ => self.random.one_in(class.odds()),
        };
        // What spoils an answer is noted when it has.
        if comes && !class.spoils() && !class.spoils_cache() {
            self.note(class);
        }
        comes
    }

    fn an_error(&self) -> Fault {
        if self.random.one_in(2) { Fault::ErrorBefore } else { Fault::ErrorAfter }
    }

    fn a_while(&self) -> Fault {
        // Mostly a little; now and then longer than any patience of the engine's.
        let most = if self.random.one_in(8) { 300_000 } else { 2000 };
        Fault::Slow(Duration::from_millis(self.random.below(most)))
    }

    fn fault(&self, call: &Call) -> Option<Fault> {
        let number = || self.random.below(1 << 20) as usize;
        match (call.store, call.operation) {
            (Store::Backend, "put") if self.is_backend_full.get() => {
                self.note_once(F::BackendNoSpace);
                Some(Fault::NoSpace)
            }
            (Store::Device, "write") if self.comes(F::DeviceWriteError) => Some(self.an_error()),
            (Store::Device, "sync") if self.comes(F::DeviceSyncError) => Some(Fault::ErrorAfter),
            (Store::Device, "read") if self.comes(F::DeviceReadError) => Some(Fault::ErrorBefore),
            // What opens takes the newest blocks for the end of the log if they are not what they should be.
            (Store::Device, "read")
                if self.season.get() == Season::Serving && self.comes(F::DeviceBitFlip) =>
            {
                Some(Fault::BitFlip(number()))
            }
            (Store::Device, _) if self.comes(F::DeviceSlow) => Some(self.a_while()),
            (Store::Registry, _) if self.comes(F::RegistryErrorBefore) => Some(Fault::ErrorBefore),
            (Store::Registry, "commit") if self.comes(F::RegistryErrorAfter) => Some(Fault::ErrorAfter),
            (Store::Registry, "commit") if self.comes(F::RegistryNoSpace) => Some(Fault::NoSpace),
            (Store::Registry, _) if self.comes(F::RegistrySlow) => Some(self.a_while()),
            (Store::Pages, "load") if self.comes(F::PageBitFlip) => Some(Fault::BitFlip(number())),
            (Store::Pages, "load") if self.comes(F::PageSwapped) => Some(Fault::Swapped(number())),
            (Store::Pages, _) if self.comes(F::PagesErrorBefore) => Some(Fault::ErrorBefore),
            (Store::Pages, _) if self.comes(F::PagesSlow) => Some(self.a_while()),
            (Store::Pages, "store" | "commit" | "forget") if self.comes(F::PagesErrorAfter) => {
                Some(Fault::ErrorAfter)
            }
            (Store::Backend, "get") if self.comes(F::BackendShortRead) => Some(Fault::ShortRead(number())),
            (Store::Backend, "get") if self.comes(F::BackendBitFlip) => Some(Fault::BitFlip(number())),
            (Store::Backend, "get") if self.comes(F::BackendSwapped) => Some(Fault::Swapped(number())),
            (Store::Backend, "put") if self.comes(F::BackendNoSpace) => Some(Fault::NoSpace),
            (Store::Backend, "put" | "delete") if self.comes(F::BackendErrorAfter) => Some(Fault::ErrorAfter),
            (Store::Backend, _) if self.comes(F::BackendErrorBefore) => Some(Fault::ErrorBefore),
            (Store::Backend, _) if self.comes(F::BackendSlow) => Some(self.a_while()),
            (Store::Cache, "read") if self.comes(F::CacheLost) => Some(Fault::ShortRead(number())),
            (Store::Cache, "read") if self.comes(F::CacheBitFlip) => Some(Fault::BitFlip(number())),
            (Store::Cache, "read") if self.comes(F::CacheSwapped) => Some(Fault::Swapped(number())),
            (Store::Cache, _) if self.comes(F::CacheError) => Some(self.an_error()),
            (Store::Cache, _) if self.comes(F::CacheSlow) => Some(self.a_while()),
            (Store::Backend, "put" | "get")
                if self.season.get() == Season::Serving && self.comes(F::BackendHung) =>
            {
                Some(if self.random.one_in(2) { Fault::HangBefore } else { Fault::HangAfter })
            }
            _ => None,
        }
    }
}

impl Director for Weather {
    fn before(&self, call: &Call) -> Option<Fault> {
        self.event(format_args!("{call}"), call.digest);
        let number = self.calls.replace(self.calls.get() + 1);
        let fault = match self.plan.get() {
            Some((planned, fault)) if planned == number => Some(fault),
            _ if self.season.get() == Season::Calm => None,
            _ => self.fault(call),
        };
        fault.inspect(|fault| self.note_trouble(call, *fault))
    }

    fn spoiled(&self, store: Store, fault: Fault) {
        let class = match (store, fault) {
            (Store::Pages, Fault::Swapped(_)) => F::PageSwapped,
            (Store::Pages, _) => F::PageBitFlip,
            (Store::Device, _) => F::DeviceBitFlip,
            (Store::Cache, Fault::ShortRead(_)) => F::CacheLost,
            (Store::Cache, Fault::BitFlip(_)) => F::CacheBitFlip,
            (Store::Cache, _) => F::CacheSwapped,
            (_, Fault::ShortRead(_)) => F::BackendShortRead,
            (_, Fault::BitFlip(_)) => F::BackendBitFlip,
            _ => F::BackendSwapped,
        };
        if store != Store::Cache {
            self.troubles.set(self.troubles.get() + 1);
        }
        self.note(class);
    }

    fn changed(&self) {
        self.moment();
    }

    fn after(&self, call: &Call, digest: u64) {
        self.event(format_args!("    answers {call}"), digest);
    }
}
