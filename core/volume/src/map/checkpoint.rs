//! Writing a map to the page store: the pages that changed since the last time, then a record that names the roots.

use super::table::{Chunk, Table};
use super::tree::{Child, Node, Page, Tree};
use crate::engine::Context;
use crate::{PageId, PageStore, VolumeError};
use bytes::Bytes;
use ovs_format::journal::Position;
use ovs_format::page::{self, CheckpointRecord, ChildEntry, FANOUT, RootEntry};
use ovs_units::{Sequence, SnapshotId, VdiskId, planted};
use std::{cell::Cell, collections::HashMap, rc::Rc};

/// Pages that are dealt with before others get their turn.
const PAGES_AT_ONCE: usize = 64;
/// Encoded pages that are held in memory, 1 MiB, before they go to the store: the rest of the host's metadata waits no longer.
const PAGES_STORED_AT_ONCE: usize = 256;

/// The maps of a vDisk and its snapshots as of one journal position.
pub(crate) struct Checkpoint {
    pub(crate) position: Position,
    pub(crate) sequence: Sequence,
    pub(crate) tree: Tree,
    pub(crate) table: Table,
    pub(crate) snapshots: Vec<(SnapshotId, Tree)>,
}

impl Checkpoint {
    /// The map, and those of the snapshots.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.snapshots.iter().map(|(_, tree)| tree).chain([&self.tree])
    }

    /// [`Checkpoint::store`], one at a time; `None` when pages on this host are damaged, and none is to be made from them.
    pub(crate) async fn store_in(
        &self,
        context: &Context,
        vdisk: VdiskId,
    ) -> Result<Option<CheckpointRecord>, VolumeError> {
        // Before the turn as well: whoever forgets damaged checkpoints may keep it for long.
        if context.pages_are_damaged.get() {
            return Ok(None);
        }
        let _turn = context.checkpoint_turn.lock().await;
        if context.pages_are_damaged.get() {
            return Ok(None);
        }
        let stored = self.store(vdisk, &*context.pages, &context.next_page).await;
        context.note_checkpoint(stored.is_ok());
        stored.map(Some)
    }

    /// Stores what is not stored yet, and then the record, synced, which it returns. Pages that change meanwhile are copied first, so
    /// what is stored is what was asked for.
    pub(super) async fn store(
        &self,
        vdisk: VdiskId,
        store: &dyn PageStore,
        next_page: &Cell<u64>,
    ) -> Result<CheckpointRecord, VolumeError> {
        let mut pages =
            NewPages { store, next_page, pages: Vec::new(), numbered: HashMap::new(), stored: Vec::new() };
        let root = pages.root(&self.tree).await?;
        let mut table_pages = Vec::with_capacity(self.table.chunks.len());
        for chunk in &self.table.chunks {
            table_pages.push(pages.chunk(chunk).await?);
        }
        let mut snapshots = Vec::with_capacity(self.snapshots.len());
        for (id, tree) in &self.snapshots {
            snapshots.push((*id, pages.root(tree).await?));
        }
        let record = CheckpointRecord {
            epoch: self.position.epoch,
            index: match planted("checkpoint: it names the record after its own") {
                true => self.position.index.next(),
                false => self.position.index,
            },
            sequence: self.sequence,
            root,
            table_pages,
            snapshots,
        };
        let NewPages { pages, stored, .. } = pages;
        store.commit(&vdisk.to_string(), pages, Bytes::from(record.encode(vdisk))).await?;
        for (number, (item, id)) in stored.into_iter().enumerate() {
            match item {
                Stored::Page(page) => page.was_stored(id),
                Stored::Chunk(chunk) => chunk.id.set(id),
            }
            if number.is_multiple_of(PAGES_AT_ONCE) {
                tokio::task::yield_now().await;
            }
        }
        self.tree.make_room();
        Ok(record)
    }
}

enum Stored {
    Page(Rc<Page>),
    Chunk(Rc<Chunk>),
}

struct NewPages<'a> {
    store: &'a dyn PageStore,
    next_page: &'a Cell<u64>,
    /// Those that are not in the store yet.
    pages: Vec<(PageId, Bytes)>,
    /// Pages without a number that were met before: snapshots share them.
    numbered: HashMap<*const Page, u64>,
    /// Holding them makes whoever changes one copy it first.
    stored: Vec<(Stored, u64)>,
}

impl NewPages<'_> {
    async fn add(&mut self, encode: impl FnOnce(u64) -> Vec<u8>) -> Result<u64, VolumeError> {
        let id = self.next_page.get();
        self.next_page.set(id + 1);
        self.pages.push((PageId(id), Bytes::from(encode(id))));
        if self.pages.len() >= PAGES_STORED_AT_ONCE {
            self.store.store(std::mem::take(&mut self.pages)).await?;
        } else if self.pages.len().is_multiple_of(PAGES_AT_ONCE) {
            tokio::task::yield_now().await;
        }
        Ok(id)
    }

    async fn root(&mut self, tree: &Tree) -> Result<RootEntry, VolumeError> {
        let Some(root) = tree.root() else { return Ok(RootEntry::default()) };
        let entry = self.child(root).await?;
        Ok(RootEntry { page: entry.page, mapped: entry.mapped })
    }

    async fn chunk(&mut self, chunk: &Rc<Chunk>) -> Result<u64, VolumeError> {
        if chunk.id.get() != 0 {
            return Ok(chunk.id.get());
        }
        let id = self.add(|id| page::encode_table(id, &chunk.scos)).await?;
        self.stored.push((Stored::Chunk(chunk.clone()), id));
        Ok(id)
    }

    async fn child(&mut self, child: &Child) -> Result<ChildEntry, VolumeError> {
        let id = child.stored_page();
        if id != 0 {
            return Ok(child.entry(id));
        }
        let page = child.known_page().expect("a page that is not stored is in memory");
        if let Some(id) = self.numbered.get(&Rc::as_ptr(&page)) {
            return Ok(child.entry(*id));
        }
        let node = page.resident().expect("a page that is not stored is in memory");
        let id = match &*node {
            Node::Leaf(places) => self.add(|id| page::encode_leaf(id, places)).await?,
            Node::Packed(packed) => self.add(|id| page::encode_packed_leaf(id, packed)).await?,
            Node::Inner(children) => {
                let mut entries = Box::new([ChildEntry::default(); FANOUT]);
                for (entry, below) in entries.iter_mut().zip(children.iter()) {
                    if let Some(below) = below {
                        *entry = Box::pin(self.child(below)).await?;
                    }
                }
                self.add(|id| page::encode_inner(id, &entries)).await?
            }
        };
        self.numbered.insert(Rc::as_ptr(&page), id);
        self.stored.push((Stored::Page(page), id));
        Ok(child.entry(id))
    }
}
