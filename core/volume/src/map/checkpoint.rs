//! Writing a map to the page store: the pages that changed since the last time, then a record that names the roots.

use super::table::{Chunk, Table};
use super::tree::{Child, Node, Page, Tree};
use crate::{PageId, PageStore, VolumeError};
use bytes::Bytes;
use ovs_format::journal::Position;
use ovs_format::page::{self, CheckpointRecord, ChildEntry, FANOUT, RootEntry};
use ovs_units::{Sequence, SnapshotId, VdiskId, planted};
use std::{cell::Cell, collections::HashMap, rc::Rc};

/// The maps of a vDisk and its snapshots as of one journal position.
pub(crate) struct Checkpoint {
    pub(crate) position: Position,
    pub(crate) sequence: Sequence,
    pub(crate) tree: Tree,
    pub(crate) table: Table,
    pub(crate) snapshots: Vec<(SnapshotId, Tree)>,
}

impl Checkpoint {
    /// Stores what is not stored yet, and then the record, synced, which it returns. Pages that change meanwhile are copied first, so
    /// what is stored is what was asked for.
    pub(crate) async fn store(
        &self,
        vdisk: VdiskId,
        store: &dyn PageStore,
        next_page: &Cell<u64>,
    ) -> Result<CheckpointRecord, VolumeError> {
        let mut pages =
            NewPages { next_page, pages: Vec::new(), numbered: HashMap::new(), stored: Vec::new() };
        let record = CheckpointRecord {
            epoch: self.position.epoch,
            index: match planted("checkpoint: it names the record after its own") {
                true => self.position.index.next(),
                false => self.position.index,
            },
            sequence: self.sequence,
            root: pages.root(&self.tree),
            table_pages: self.table.chunks.iter().map(|chunk| pages.chunk(chunk)).collect(),
            snapshots: self.snapshots.iter().map(|(id, tree)| (*id, pages.root(tree))).collect(),
        };
        let NewPages { pages, stored, .. } = pages;
        store.commit(&vdisk.to_string(), pages, Bytes::from(record.encode(vdisk))).await?;
        for (item, id) in stored {
            match item {
                Stored::Page(page) => page.id.set(id),
                Stored::Chunk(chunk) => chunk.id.set(id),
            }
        }
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

    fn root(&mut self, tree: &Tree) -> RootEntry {
        let Some(root) = tree.root() else { return RootEntry::default() };
        let entry = self.child(root);
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

    fn child(&mut self, child: &Child) -> ChildEntry {
        let id = child.page.id.get();
        if id != 0 {
            return child.entry(id);
        }
        if let Some(id) = self.numbered.get(&Rc::as_ptr(&child.page)) {
            return child.entry(*id);
        }
        let node = child.page.resident().expect("a page that is not stored is in memory");
        let id = match &*node {
            Node::Leaf(places) => self.add(|id| page::encode_leaf(id, places)),
            Node::Inner(children) => {
                let mut entries = Box::new([ChildEntry::default(); FANOUT]);
                for (entry, below) in entries.iter_mut().zip(children.iter()) {
                    if let Some(below) = below {
                        *entry = self.child(below);
                    }
                }
                self.add(|id| page::encode_inner(id, &entries))
            }
        };
        self.numbered.insert(Rc::as_ptr(&child.page), id);
        self.stored.push((Stored::Page(child.page.clone()), id));
        child.entry(id)
    }
}
