//! Snapshots: seal a position, freeze a root. Nothing is copied, whatever the size.

use super::lifecycle::finish_even_if_dropped;
use super::{Inner, PendingBase, Vdisk, View};
use crate::VolumeError;
use crate::engine::SnapshotInfo;
use crate::head::{Head, HeadSnapshot, head_key};
use crate::map::{Table, Tree};
use crate::overlay::Layer;
use ovs_format::journal::Record;
use ovs_units::{ByteCount, Name, Sequence, SnapshotId, VdiskId, planted};
use std::{cell::RefCell, rc::Rc};

/// A snapshot in memory: its map, once everything in it is on the backend.
pub(crate) struct SnapshotNode {
    pub(crate) id: SnapshotId,
    pub(crate) name: Name,
    pub(crate) created_ms: u64,
    pub(crate) sequence: Sequence,
    pub(crate) size: ByteCount,
    tree: RefCell<Option<Tree>>,
}

impl SnapshotNode {
    pub(super) fn of(head: &HeadSnapshot, tree: Option<Tree>) -> Rc<SnapshotNode> {
        Rc::new(SnapshotNode {
            id: head.id,
            name: head.name.clone(),
            created_ms: head.created_ms,
            sequence: head.sequence,
            size: head.size,
            tree: RefCell::new(tree),
        })
    }

    /// Its map; `None` while part of it is in the write buffer only.
    pub(crate) fn tree(&self) -> Option<Tree> {
        self.tree.borrow().clone()
    }

    pub(super) fn resolve(&self, tree: Tree) {
        self.tree.borrow_mut().get_or_insert(tree);
    }

    pub(super) fn info(&self, head: &Head) -> SnapshotInfo {
        let entry = head.snapshots.iter().find(|snapshot| snapshot.id == self.id);
        SnapshotInfo {
            id: self.id,
            name: self.name.clone(),
            created_ms: self.created_ms,
            sequence: self.sequence,
            size: self.size,
            on_backend: self.tree.borrow().is_some(),
            hidden: entry.is_none_or(|entry| entry.hidden),
            clone_count: entry.map_or(0, |entry| entry.clones.len() as u64),
        }
    }
}

/// What a clone starts from.
#[derive(Clone)]
pub(crate) struct CloneSource {
    pub(crate) tree: Tree,
    pub(crate) table: Table,
    pub(crate) size: ByteCount,
    pub(super) pending: Option<PendingBase>,
}

impl CloneSource {
    /// Everything is on the backend, or nothing is there at all.
    pub(crate) fn empty(tree: Tree, table: Table, size: ByteCount) -> CloneSource {
        CloneSource { tree, table, size, pending: None }
    }
}

impl Vdisk {
    /// Contains every write acknowledged before; returns when that is as durable as after a flush and the snapshot
    /// itself is recorded on the backend. `on_backend` says whether its data is there too.
    pub async fn snapshot(&self, id: SnapshotId, name: Name) -> Result<SnapshotInfo, VolumeError> {
        let vdisk = self.clone();
        finish_even_if_dropped(async move {
            let inner = &vdisk.inner;
            inner.check_serving()?;
            let _meta = inner.meta.lock().await;
            if inner.head.borrow().head.snapshots.iter().any(|other| other.name == name && !other.hidden) {
                return Err(VolumeError::Refused(format!("snapshot {name} exists")));
            }
            inner.start_epoch_if_needed().await?;
            // 1. Seal: from here on nothing that is written belongs to it.
            let sequence = inner.last_sequence.get();
            let (size, created_ms) = (inner.size.get(), inner.context.clock.wall_ms());
            let entry =
                HeadSnapshot { id, name, created_ms, sequence, size, hidden: false, clones: Vec::new() };
            let node = SnapshotNode::of(&entry, None);
            inner.mark(node.clone());
            // 2. Make what it contains stable. What was accepted and not yet written is part of it too.
            if !planted("snapshot: it returns before its writes are stable") {
                inner.wait_for_layers().await?;
                inner.context.log.sync().await?;
            }
            // 3. Record it, 4. commit.
            let (name, created_ms) = (entry.name.clone(), entry.created_ms);
            let record = Record::Snapshot { id, name, created_ms, sequence, size };
            let position = inner.append_to_journal(&record).await?;
            inner
                .commit(|head| {
                    head.set_position(position);
                    head.snapshots.push(entry);
                })
                .await?;
            inner.snapshots.borrow_mut().push(node.clone());
            inner.destage_wanted.notify_one();
            Ok(node.info(&inner.head.borrow().head))
        })
        .await
    }

    /// Comes back when everything in the snapshot is on the backend.
    pub async fn wait_on_backend(&self, id: SnapshotId) -> Result<(), VolumeError> {
        let node = self.inner.snapshot_node(id)?;
        while node.tree().is_none() {
            let destaged = self.inner.destaged.notified();
            self.inner.check_serving()?;
            self.inner.destage_soon();
            destaged.await;
        }
        Ok(())
    }

    /// The snapshot is gone when this returns; with clones left it is hidden until the last one goes.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), VolumeError> {
        let vdisk = self.clone();
        finish_even_if_dropped(async move {
            let inner = &vdisk.inner;
            inner.check_serving()?;
            let _meta = inner.meta.lock().await;
            inner.visible_snapshot(id)?;
            let position = inner.append_to_journal(&Record::SnapshotDelete { id }).await?;
            inner
                .commit(|head| {
                    head.set_position(position);
                    if let Some(snapshot) = head.snapshot_mut(id) {
                        snapshot.hidden = true;
                    }
                    head.drop_snapshots();
                })
                .await?;
            inner.forget_gone_snapshots();
            Ok(())
        })
        .await
    }

    /// Until [`Vdisk::clones_are_known`] deleted snapshots stay, and so does all that they have.
    pub(crate) async fn clones_are_unknown(&self) -> Result<(), VolumeError> {
        let _meta = self.inner.meta.lock().await;
        let stored = self.inner.context.registry.get(&head_key(self.id())).await?;
        let known = self.inner.head.borrow().revision;
        if stored.is_none_or(|stored| stored.revision != known) {
            return Err(VolumeError::Refused(format!(
                "vDisk {} is open, and its head is another; restart ovsd to recover it",
                self.id()
            )));
        }
        self.inner.commit(|head| head.clones_unknown = true).await
    }

    /// The head says so from now on.
    pub(crate) async fn clones_are_known(&self) -> Result<(), VolumeError> {
        let _meta = self.inner.meta.lock().await;
        self.inner
            .commit(|head| {
                head.clones_unknown = false;
                head.drop_snapshots();
            })
            .await?;
        self.inner.forget_gone_snapshots();
        Ok(())
    }

    /// What a clone of the snapshot reads from. Costs the same whatever the size.
    pub(crate) fn clone_source(&self, id: SnapshotId) -> Result<CloneSource, VolumeError> {
        let inner = &self.inner;
        let node = inner.snapshot_node(id)?;
        let table = Table::clone(&inner.table.borrow());
        let size = node.size;
        if let Some(tree) = node.tree() {
            return Ok(CloneSource { tree, table, size, pending: None });
        }
        // Oldest first, as in a vDisk; a base of its own that is pending lies below.
        let mut layers: Vec<Rc<Layer>> = Vec::new();
        if let Some(base) = &*inner.base.borrow() {
            layers.extend(base.layers.iter().cloned());
        }
        layers.extend(inner.layers_of(&node)?);
        let tree = inner.tree.borrow().clone();
        let pending = Some(PendingBase { parent: self.clone(), snapshot: node, layers });
        Ok(CloneSource { tree, table, size, pending })
    }
}

impl Inner {
    /// Seals, and has the snapshot end with what is sealed. With nothing sealed its map is the vDisk's own, unless that
    /// still hangs in the air: then an empty layer carries the mark until it is resolved.
    pub(super) fn mark(&self, node: Rc<SnapshotNode>) {
        if !planted("snapshot: the layer is not sealed") {
            self.seal();
        }
        let mut sealed = self.sealed.borrow_mut();
        if sealed.is_empty() && self.base.borrow().is_some() {
            let carrier = Layer::new();
            carrier.last_sequence.set(node.sequence);
            sealed.push_back(carrier);
        }
        match sealed.back() {
            Some(last) => last.markers.borrow_mut().push(node),
            None => node.resolve(self.tree.borrow().clone()),
        }
    }

    pub(super) fn snapshot_node(&self, id: SnapshotId) -> Result<Rc<SnapshotNode>, VolumeError> {
        let nodes = self.snapshots.borrow();
        let node = nodes.iter().find(|node| node.id == id).cloned();
        node.ok_or_else(|| VolumeError::NotFound(format!("vDisk {} has no snapshot {id}", self.id)))
    }

    /// The layers of a snapshot that is not wholly on the backend, oldest first.
    fn layers_of(&self, node: &Rc<SnapshotNode>) -> Result<Vec<Rc<Layer>>, VolumeError> {
        let sealed = self.sealed.borrow();
        let marked = |layer: &Rc<Layer>| layer.markers.borrow().iter().any(|marker| Rc::ptr_eq(marker, node));
        match sealed.iter().position(marked) {
            Some(last) => Ok(sealed.iter().take(last + 1).cloned().collect()),
            None => Err(VolumeError::Damaged(format!(
                "snapshot {} is neither buffered nor on the backend",
                node.id
            ))),
        }
    }

    pub(super) fn snapshot_view(&self, id: SnapshotId) -> Result<View, VolumeError> {
        let node = self.snapshot_node(id)?;
        let (table, size) = (self.table.borrow().clone(), node.size);
        if let Some(tree) = node.tree() {
            let layers = Vec::new();
            return Ok(View { layers, tree, table, size, _reading: self.begin_to_read() });
        }
        let mut layers = self.layers_of(&node)?;
        layers.reverse();
        if let Some(base) = &*self.base.borrow() {
            layers.extend(base.layers.iter().rev().cloned());
        }
        let (tree, _reading) = (self.tree.borrow().clone(), self.begin_to_read());
        Ok(View { layers, tree, table, size, _reading })
    }

    /// Everything accepted so far is with the kernel when this returns.
    async fn wait_for_layers(&self) -> Result<(), VolumeError> {
        let sealed: Vec<Rc<Layer>> = self.sealed.borrow().iter().cloned().collect();
        for layer in sealed {
            self.wait_written(&layer).await?;
        }
        Ok(())
    }

    pub(super) async fn wait_written(&self, layer: &Layer) -> Result<(), VolumeError> {
        for (_, piece) in layer.pieces() {
            if !piece.record.written().await {
                self.context.log.check_online()?;
                return Err(VolumeError::Offline("the write buffer was closed".into()));
            }
        }
        Ok(())
    }

    /// Drops the nodes of snapshots that the head does not have any more.
    pub(crate) fn forget_gone_snapshots(&self) {
        let head = self.head.borrow();
        let before = self.snapshots.borrow().len();
        self.snapshots
            .borrow_mut()
            .retain(|node| head.head.snapshots.iter().any(|entry| entry.id == node.id));
        if self.snapshots.borrow().len() < before {
            self.scrub.needs_changed();
        }
    }

    /// Takes a clone off its snapshot's list, and the snapshot with it if it was only kept for that clone.
    pub(crate) async fn release_clone(&self, id: SnapshotId, clone: VdiskId) -> Result<(), VolumeError> {
        self.commit(|head| {
            if let Some(snapshot) = head.snapshot_mut(id) {
                snapshot.clones.retain(|other| *other != clone || planted("clone: its reference is leaked"));
            }
            head.drop_snapshots();
        })
        .await?;
        self.forget_gone_snapshots();
        // What it read may move from now on.
        self.scrub.needs_changed();
        Ok(())
    }
}
