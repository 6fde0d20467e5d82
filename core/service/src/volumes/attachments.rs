//! Who uses which vDisk, and may another one join.
//!
//! ```text
//!  asked for by RPC ─▶ record in the registry ─▶ Holder (stays until it is given back or fenced)  ┐
//!  NBD, named session without one              ─▶ Holder (exclusive, as long as connected)        ├─▶ connections
//!  NBD, anonymous                              ─▶ Holder (shared, as long as connected)           ┘
//! ```
//!
//! Invariants: an exclusive holder is the only one that writes; while a vDisk is frozen (rollback, shrink, delete,
//! template) nobody who writes gets in, and freezing is refused while somebody who writes is there. Deciding and
//! recording is one step without an `await`, so that two can never both get in.
//! Not here: the registry, NBD, generations of vDisks (the caller compares those).

use ovs_api::{AttachmentMode, Door};
use ovs_units::{SnapshotId, VdiskId};
use serde::{Deserialize, Serialize};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    fmt,
    rc::Rc,
};
use tokio::sync::Notify;
use uuid::Uuid;

/// One who uses a vDisk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Holder {
    /// Of the attachment, and of its NBD session.
    pub uuid: Uuid,
    /// What is used.
    pub vdisk: VdiskId,
    /// Set when a snapshot of it is read instead.
    pub snapshot: Option<SnapshotId>,
    /// Who; stable over restarts of the client.
    pub client: String,
    /// Through which door.
    pub door: Door,
    /// Where it runs.
    pub host: String,
    /// How.
    pub mode: AttachmentMode,
    /// Connections of its session that name an older one are refused.
    pub generation: u64,
    /// Each write is acknowledged as if it carried FUA.
    pub write_through: bool,
    /// How long it stays.
    pub stay: Stay,
    /// Counts its changes.
    pub revision: u64,
    /// Since when, milliseconds since 1970.
    pub since_ms: u64,
}

/// How long a holder stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stay {
    /// Until it is given back, over restarts of ovsd too: it is in the registry.
    Persistent,
    /// Until it is given back, or was not connected for a while.
    WhileUsed,
    /// As long as its connection.
    Connection,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let door = serde_json::to_value(self.door).unwrap_or_default();
        write!(f, "{} ({}, {})", self.client, door.as_str().unwrap_or("?"), self.uuid)
    }
}

/// Why one may not come in.
#[derive(Debug, Clone)]
pub enum Busy {
    /// These are in the way.
    Holders(Vec<Holder>),
    /// This operation is under way.
    Frozen(&'static str),
}

/// One connection of a holder.
#[derive(Debug, Default)]
pub struct Connection {
    is_killed: Cell<bool>,
    killed: Notify,
}

impl Connection {
    /// Comes back when the connection must end.
    pub async fn killed(&self) {
        while !self.is_killed.get() {
            self.killed.notified().await;
        }
    }

    fn kill(&self) {
        self.is_killed.set(true);
        self.killed.notify_waiters();
    }
}

#[derive(Debug)]
struct Held {
    holder: Holder,
    connections: Vec<Rc<Connection>>,
    /// Since when it has no connection.
    idle_since_ms: u64,
}

/// All attachments of this host. One thread.
#[derive(Debug, Default)]
pub struct Attachments {
    held: RefCell<BTreeMap<Uuid, Held>>,
    frozen: RefCell<HashMap<VdiskId, &'static str>>,
    changed: Notify,
}

/// Keeps writers out of a vDisk until it is dropped.
#[derive(Debug)]
pub struct Frozen<'a> {
    attachments: &'a Attachments,
    vdisk: VdiskId,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.attachments.frozen.borrow_mut().remove(&self.vdisk);
    }
}

impl Attachments {
    /// Lets a holder in, or says who or what is in the way. The same UUID again replaces what is known of it (its
    /// connections stay).
    pub fn attach(&self, holder: Holder) -> Result<(), Busy> {
        let is_writing = holder.mode.writes();
        if is_writing && let Some(why) = self.frozen.borrow().get(&holder.vdisk) {
            return Err(Busy::Frozen(why));
        }
        let mut held = self.held.borrow_mut();
        let in_the_way: Vec<Holder> = held
            .values()
            .filter(|other| other.holder.uuid != holder.uuid && exclude_each_other(&other.holder, &holder))
            .map(|other| other.holder.clone())
            .collect();
        if !in_the_way.is_empty() {
            return Err(Busy::Holders(in_the_way));
        }
        match held.get_mut(&holder.uuid) {
            Some(known) => known.holder = holder,
            None => {
                let idle_since_ms = holder.since_ms;
                held.insert(holder.uuid, Held { holder, connections: Vec::new(), idle_since_ms });
            }
        }
        Ok(())
    }

    /// The holder with this UUID.
    pub fn find(&self, uuid: Uuid) -> Option<Holder> {
        self.held.borrow().get(&uuid).map(|held| held.holder.clone())
    }

    /// All holders, or those of one vDisk.
    pub fn list(&self, vdisk: Option<VdiskId>) -> Vec<Holder> {
        let held = self.held.borrow();
        let of_vdisk = |held: &&Held| vdisk.is_none_or(|vdisk| held.holder.vdisk == vdisk);
        held.values().filter(of_vdisk).map(|held| held.holder.clone()).collect()
    }

    /// Those that write to a vDisk.
    pub fn writers(&self, vdisk: VdiskId) -> Vec<Holder> {
        let mut holders = self.list(Some(vdisk));
        holders.retain(|holder| holder.mode.writes());
        holders
    }

    /// Those that read a snapshot.
    pub fn snapshot_readers(&self, snapshot: SnapshotId) -> Vec<Holder> {
        let mut holders = self.list(None);
        holders.retain(|holder| holder.snapshot == Some(snapshot));
        holders
    }

    /// How many connections a holder has.
    pub fn connection_count(&self, uuid: Uuid) -> usize {
        self.held.borrow().get(&uuid).map_or(0, |held| held.connections.len())
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.held.borrow().values().map(|held| held.connections.len()).sum()
    }

    /// Adds a connection to a holder; `None` when the holder is gone.
    pub fn connect(&self, uuid: Uuid) -> Option<Rc<Connection>> {
        let connection = Rc::new(Connection::default());
        self.held.borrow_mut().get_mut(&uuid)?.connections.push(connection.clone());
        Some(connection)
    }

    /// A connection has ended, everything of it is done. Brings the holder if it went with it.
    pub fn disconnect(&self, uuid: Uuid, connection: &Rc<Connection>, now_ms: u64) -> Option<Holder> {
        let mut held = self.held.borrow_mut();
        let gone = match held.get_mut(&uuid) {
            Some(found) => {
                found.connections.retain(|known| !Rc::ptr_eq(known, connection));
                found.idle_since_ms = now_ms;
                found.connections.is_empty() && found.holder.stay == Stay::Connection
            }
            None => false,
        };
        let holder = if gone { held.remove(&uuid).map(|held| held.holder) } else { None };
        drop(held);
        self.changed.notify_waiters();
        holder
    }

    /// Gives an attachment back. Its connections must have ended.
    pub fn detach(&self, uuid: Uuid) -> Option<Holder> {
        let held = self.held.borrow_mut().remove(&uuid);
        self.changed.notify_waiters();
        held.map(|held| held.holder)
    }

    /// Ends the connections of a holder; comes back when everything of them is done.
    pub async fn kill(&self, uuid: Uuid) {
        let connections =
            self.held.borrow().get(&uuid).map_or_else(Vec::new, |held| held.connections.clone());
        for connection in connections {
            connection.kill();
        }
        loop {
            let changed = self.changed.notified();
            if self.connection_count(uuid) == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Those that stay while they are used, and were not for longer than `idle_ms_max`: taken out.
    pub fn take_idle(&self, now_ms: u64, idle_ms_max: u64) -> Vec<Holder> {
        let mut held = self.held.borrow_mut();
        let is_idle = |held: &Held| {
            let since = held.idle_since_ms;
            held.holder.stay == Stay::WhileUsed
                && held.connections.is_empty()
                && now_ms.saturating_sub(since) > idle_ms_max
        };
        let idle: Vec<Uuid> = held.iter().filter(|(_, held)| is_idle(held)).map(|(uuid, _)| *uuid).collect();
        idle.iter().filter_map(|uuid| held.remove(uuid)).map(|held| held.holder).collect()
    }

    /// Keeps writers out until the guard is dropped; refused while one is in (other than `asker`, on whose behalf this
    /// is), or another operation has frozen it.
    pub fn freeze(&self, vdisk: VdiskId, why: &'static str, asker: Option<Uuid>) -> Result<Frozen<'_>, Busy> {
        if let Some(why) = self.frozen.borrow().get(&vdisk) {
            return Err(Busy::Frozen(why));
        }
        let mut writers = self.writers(vdisk);
        writers.retain(|holder| Some(holder.uuid) != asker);
        if !writers.is_empty() {
            return Err(Busy::Holders(writers));
        }
        self.frozen.borrow_mut().insert(vdisk, why);
        Ok(Frozen { attachments: self, vdisk })
    }
}

fn exclude_each_other(one: &Holder, other: &Holder) -> bool {
    use AttachmentMode::{Exclusive, Migrating, ReadOnly, Shared};
    if one.vdisk != other.vdisk {
        return false;
    }
    !matches!(
        (one.mode, other.mode),
        (ReadOnly, _) | (_, ReadOnly) | (Shared, Shared) | (Exclusive, Migrating) | (Migrating, Exclusive)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use AttachmentMode::{Exclusive, Migrating, ReadOnly, Shared};

    fn holder(uuid: u128, mode: AttachmentMode) -> Holder {
        Holder {
            uuid: Uuid::from_u128(uuid),
            vdisk: VdiskId(Uuid::from_u128(100)),
            snapshot: None,
            client: format!("client {uuid}"),
            door: Door::Nbd,
            host: "here".into(),
            mode,
            generation: 0,
            write_through: false,
            stay: Stay::Persistent,
            revision: 1,
            since_ms: 0,
        }
    }

    fn check(first: AttachmentMode, second: AttachmentMode, together: bool) {
        let attachments = Attachments::default();
        attachments.attach(holder(1, first)).unwrap();
        assert_eq!(attachments.attach(holder(2, second)).is_ok(), together, "{first:?} then {second:?}");
        assert!(attachments.attach(holder(1, first)).is_ok(), "again by the same");
    }

    #[test]
    fn an_exclusive_holder_alone_writes() {
        check(Exclusive, Exclusive, false);
        check(Exclusive, Shared, false);
        check(Shared, Exclusive, false);
        check(Shared, Shared, true);
        check(ReadOnly, Exclusive, true);
        check(Exclusive, ReadOnly, true);
        check(ReadOnly, Shared, true);
        check(Exclusive, Migrating, true);
        check(Migrating, Migrating, false);
        check(Migrating, Shared, false);
    }

    #[test]
    fn nobody_who_writes_gets_into_a_frozen_vdisk() {
        let attachments = Attachments::default();
        let vdisk = VdiskId(Uuid::from_u128(100));
        attachments.attach(holder(1, Shared)).unwrap();
        let Err(Busy::Holders(holders)) = attachments.freeze(vdisk, "rollback", None) else {
            panic!("froze a busy vDisk")
        };
        assert_eq!(holders[0].client, "client 1");
        attachments.detach(Uuid::from_u128(1));

        let frozen = attachments.freeze(vdisk, "rollback", None).unwrap();
        assert!(matches!(attachments.attach(holder(2, Shared)), Err(Busy::Frozen("rollback"))));
        assert!(matches!(attachments.freeze(vdisk, "resize", None), Err(Busy::Frozen("rollback"))));
        attachments.attach(holder(3, ReadOnly)).unwrap();
        drop(frozen);
        attachments.attach(holder(2, Shared)).unwrap();
    }

    #[tokio::test]
    async fn killing_waits_for_the_last_request() {
        let attachments = Rc::new(Attachments::default());
        let uuid = Uuid::from_u128(1);
        attachments.attach(Holder { stay: Stay::Connection, ..holder(1, Exclusive) }).unwrap();
        let connection = attachments.connect(uuid).unwrap();
        let done = Cell::new(false);
        let server = async {
            connection.killed().await;
            tokio::task::yield_now().await;
            done.set(true);
            attachments.disconnect(uuid, &connection, 0)
        };
        let killer = async {
            attachments.kill(uuid).await;
            assert!(done.get(), "the connection's requests were not drained");
        };
        let (gone, ()) = tokio::join!(server, killer);
        assert_eq!(gone.unwrap().uuid, uuid);
        assert!(attachments.find(uuid).is_none());
        assert!(attachments.connect(uuid).is_none());
    }

    #[test]
    fn one_that_is_not_used_goes() {
        let attachments = Attachments::default();
        let uuid = Uuid::from_u128(1);
        attachments.attach(Holder { stay: Stay::WhileUsed, ..holder(1, Exclusive) }).unwrap();
        assert_eq!(attachments.take_idle(60, 60), vec![]);
        let connection = attachments.connect(uuid).unwrap();
        assert_eq!(attachments.take_idle(1000, 60), vec![], "it is connected");
        attachments.disconnect(uuid, &connection, 1000);
        assert_eq!(attachments.take_idle(1060, 60), vec![]);
        assert_eq!(attachments.take_idle(1061, 60).len(), 1);
        assert!(attachments.find(uuid).is_none());
    }

    #[test]
    fn one_asked_for_by_rpc_outlives_its_connections() {
        let attachments = Attachments::default();
        attachments.attach(holder(1, Exclusive)).unwrap();
        let connection = attachments.connect(Uuid::from_u128(1)).unwrap();
        assert_eq!(attachments.connections(), 1);
        assert!(attachments.disconnect(Uuid::from_u128(1), &connection, 0).is_none());
        assert!(attachments.find(Uuid::from_u128(1)).is_some());
    }
}
