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

/// The maps of a vDisk and its snapshots as of one journal position.
pub(crate) struct Checkpoint {
    pub(crate) position: Position,
    pub(crate) sequence: Sequence,
    pub(crate) tree: Tree,
    pub(crate) table: Table,
    pub(crate) snapshots: Vec<(SnapshotId, Tree)>,
}

impl Checkpoint {
    /// [`Checkpoint::store`], one at a time; `None` when pages on this host are damaged, and none is to be made from them.
    pub(crate) async fn store_in(
        &self,
        context: &Context,
        vdisk: VdiskId,
    ) -> Result<Option<CheckpointRecord>, VolumeError> {
        let _turn = context.checkpoint_turn.lock().await;
        match context.pages_are_damaged.get() {
            true => Ok(None),
            false => self.store(vdisk, &*context.pages, &context.next_page).await.map(Some),
        }
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
            NewPages { next_page, pages: Vec::new(), numbered: HashMap::new(), stored: Vec::new() };
        let root = pages.root(&self.tree).await;
        let table_pages = self.table.chunks.iter().map(|chunk| pages.chunk(chunk)).collect();
        let mut snapshots = Vec::with_capacity(self.snapshots.len());
        for (id, tree) in &self.snapshots {
            snapshots.push((*id, pages.root(tree).await));
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
    next_page: &'a Cell<u64>,
    pages: Vec<(PageId, Bytes)>,
    /// Pages without a number that were met before: snapshots share them.
    numbered: HashMap<*const Page, u64>,
    /// Holding them makes whoever changes one copy it first.
    stored: Vec<(Stored, u64)>,
}

impl NewPages<'_> {
    fn add(&mut self, encode: impl FnOnce(u64) -> Vec<u8>) -> u64 {
        let id = self.next_page.get();
        self.next_page.set(id + 1);
        self.pages.push((PageId(id), Bytes::from(encode(id))));
        id
    }

    async fn root(&mut self, tree: &Tree) -> RootEntry {
        let Some(root) = tree.root() else { return RootEntry::default() };
        let entry = self.child(root).await;
        RootEntry { page: entry.page, mapped: entry.mapped }
    }

    fn chunk(&mut self, chunk: &Rc<Chunk>) -> u64 {
        if chunk.id.get() != 0 {
            return chunk.id.get();
        }
        let id = self.add(|id| page::encode_table(id, &chunk.scos));
        self.stored.push((Stored::Chunk(chunk.clone()), id));
        id
    }

    async fn child(&mut self, child: &Child) -> ChildEntry {
        let id = child.stored_page();
        if id != 0 {
            return child.entry(id);
        }
        let page = child.known_page().expect("a page that is not stored is in memory");
        if let Some(id) = self.numbered.get(&Rc::as_ptr(page)) {
            return child.entry(*id);
        }
        let node = page.resident().expect("a page that is not stored is in memory");
        let id = match &*node {
            Node::Leaf(places) => self.add(|id| page::encode_leaf(id, places)),
            Node::Packed(packed) => self.add(|id| page::encode_leaf(id, &packed.places())),
            Node::Inner(children) => {
                let mut entries = Box::new([ChildEntry::default(); FANOUT]);
                for (entry, below) in entries.iter_mut().zip(children.iter()) {
                    if let Some(below) = below {
                        *entry = Box::pin(self.child(below)).await;
                    }
                }
                self.add(|id| page::encode_inner(id, &entries))
            }
        };
        if self.pages.len().is_multiple_of(PAGES_AT_ONCE) {
            tokio::task::yield_now().await;
        }
        self.numbered.insert(Rc::as_ptr(page), id);
        self.stored.push((Stored::Page(page.clone()), id));
        child.entry(id)
    }
}
