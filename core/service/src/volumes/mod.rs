//! All vDisks of this host as people know them: the engine's volumes with their names, records, users and doors.
//!
//! ```text
//!  Core (any thread) ── EngineHandle ──▶ Volumes (engine thread) ─┬─▶ Catalogue: names and records ─▶ registry
//!  NBD connections (engine thread) ────▶                          ├─▶ Engine: vDisks, snapshots    ─▶ buffer, backends
//!                                                                 └─▶ Attachments, Events, Tasks
//! ```
//!
//! A change of a vDisk holds the vDisk's lock and goes: check → record in the registry (the intention, with a higher
//! version) → engine → properties on the backend (a copy of the record) → event. A crash after the record is made good
//! when the vDisk is next opened (`open.rs`); a create or delete found half-way at start-up is finished or abandoned
//! (`start.rs`). I/O takes no lock and asks nobody here.
//!
//! Not here: HTTP (see `rpc`), the NBD protocol (see `ovs-nbd`), bytes of vDisks (see `ovs-volume`).

pub mod attach;
pub mod attachments;
mod backends;
mod background;
mod composite;
mod composites;
mod create;
mod departed;
mod drive;
mod idempotency;
#[doc(hidden)]
pub mod inventory;
mod keys;
mod layout;
mod locks;
mod lost;
mod namespace;
mod open;
mod plan;
mod pools;
mod presets;
mod problem;
mod recover;
mod remotes;
mod rotate;
mod scrub;
mod secrets;
mod show;
mod show_backend;
mod snapshots;
mod start;
mod status;
mod stores;
mod trash;
mod upkeep;
mod vdisks;
mod verification;
mod vpools;

#[cfg(test)]
mod tests;

pub use background::Alarms;
pub use idempotency::Terms;
pub use open::Slot;
pub use pools::Pool;

use crate::{events::Events, sockets::VdiskSockets, tasks::Tasks};
use attachments::Attachments;
use drive::Drive;
use inventory::Inventory;
use layout::Due;
use locks::Locks;
use ovs_api::{Event, EventId, EventKind, Paths, Timestamp};
use ovs_cluster::catalogue::{Catalogue, VdiskRecord};
use ovs_units::{Name, VdiskId, VpoolId};
use ovs_volume::{Chance, Clock, Engine, Registry};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;

/// What `Volumes` needs from outside.
pub struct VolumesParts {
    /// The volumes.
    pub engine: Engine,
    /// Names and records.
    pub registry: Rc<dyn Registry>,
    /// The time.
    pub clock: Rc<dyn Clock>,
    /// Random identities.
    pub chance: Rc<dyn Chance>,
    /// Sizes, times and places.
    pub settings: Settings,
    /// Long operations.
    pub tasks: Arc<Tasks>,
    /// Where requests to object stores run.
    pub runtime: tokio::runtime::Handle,
}

/// Sizes, times and places.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where everything is.
    pub paths: Paths,
    /// This host's name.
    pub host_name: String,
    /// Whether a vPool `default` is made at the first start.
    pub makes_default_vpool: bool,
    /// The folder of its backend, if not the usual one.
    pub default_backend_path: Option<PathBuf>,
    /// How long its deleted vDisks stay in the trash.
    pub trash_retention: Duration,
    /// How long its writes wait for room.
    pub stall_timeout: Option<Duration>,
    /// The group of NBD sockets.
    pub socket_group: String,
    /// Permission bits of a vDisk's own socket.
    pub socket_mode: u32,
    /// `HOST:PORT` of NBD over TCP, where it is served.
    pub nbd_authority: Option<String>,
    /// The read cache is to have an SSD.
    pub has_cache_ssd: bool,
    /// A drive that is silent for so long is given up; none: never by itself.
    pub repair_grace: Option<Duration>,
    /// All drives are looked at so often.
    pub survey_every: Duration,
    /// All that is on drives is read once in this time; none: only when somebody asks for it.
    pub verify_every: Option<Duration>,
    /// Small reads of what is not in memory go to the kernel by io_uring, where it has that. Not for a runtime whose time is paused.
    pub io_uring: bool,
}

/// All vDisks of this host. One thread.
pub struct Volumes {
    pub(crate) engine: Engine,
    pub(crate) catalogue: Catalogue,
    pub(crate) clock: Rc<dyn Clock>,
    pub(crate) chance: Rc<dyn Chance>,
    pub(crate) settings: Settings,
    pub(crate) attachments: Attachments,
    pub(crate) events: Arc<Events>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) alarms: Alarms,
    pub(crate) sockets: VdiskSockets,
    runtime: tokio::runtime::Handle,
    host: Uuid,
    inventory: RefCell<Inventory>,
    locks: Locks,
    pools: RefCell<BTreeMap<VpoolId, Rc<Pool>>>,
    /// Where objects are: by backend and vPool's own part of it.
    drives: RefCell<BTreeMap<(Uuid, String), Rc<Drive>>>,
    slots: RefCell<HashMap<VdiskId, Rc<Slot>>>,
    /// Numbers of events below this are reserved.
    events_reserved: Cell<u64>,
    is_stopping: Cell<bool>,
    /// The registry was rebuilt in this life, or is still being: it lacks attachments, and maybe vDisks.
    is_rebuilt: Cell<bool>,
    /// `vpools.json` lacks something that the registry has.
    is_inventory_due: Cell<bool>,
    /// vPools whose backends could not be asked what is missing here.
    unasked: RefCell<BTreeSet<VpoolId>>,
    /// vPools of which not every drive is known to have the newest layout.
    layouts_due: RefCell<BTreeMap<VpoolId, Due>>,
}

impl Volumes {
    /// This host's UUID.
    pub fn host(&self) -> Uuid {
        self.host
    }

    /// True once ovsd is on its way out: nobody new gets in.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.get()
    }

    /// True when every vPool serves and nothing of one is missing here: what the registry does not know does not exist.
    pub(crate) fn is_all_known(&self) -> bool {
        let inventory = self.inventory.borrow();
        let is_whole = inventory.incomplete.is_empty() && !inventory.has_strangers;
        is_whole && self.pools.borrow().values().all(|pool| pool.backend().is_some())
    }

    /// Tells watchers that something happened.
    pub(crate) fn publish(&self, kind: EventKind, fill: impl FnOnce(&mut Event)) {
        let mut event = Event {
            id: EventId(0),
            kind,
            subject: None,
            revision: None,
            vpool: None,
            vdisk: None,
            name: None,
            previous_name: None,
            size_bytes: None,
            detail: None,
            at: Timestamp::from_unix_ms(self.clock.wall_ms()),
        };
        fill(&mut event);
        tracing::info!(
            event = kind.as_str(),
            vdisk = event.vdisk.map(tracing::field::display),
            name = event.name.as_deref(),
            detail = event.detail.as_deref(),
            "event"
        );
        self.events.publish(event);
    }

    /// Tells watchers that something happened to a vDisk.
    pub(crate) fn publish_vdisk(&self, kind: EventKind, record: &VdiskRecord, fill: impl FnOnce(&mut Event)) {
        let vpool = self.vpool_name(record.vpool);
        self.publish(kind, |event| {
            event.subject = Some(record.id.0);
            event.vdisk = Some(record.id.0);
            event.revision = Some(record.version);
            event.vpool = vpool;
            event.name = Some(record.name.to_string());
            fill(event);
        });
    }

    /// The name of a vPool that is there.
    pub(crate) fn vpool_name(&self, id: VpoolId) -> Option<Name> {
        self.pools.borrow().get(&id).map(|pool| pool.record().name)
    }
}
