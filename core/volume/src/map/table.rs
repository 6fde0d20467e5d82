//! The SCO table of a vDisk: places name SCOs by their index here, so that a clone, which starts with its parent's
//! table, can have parents without limit.

use crate::{PageId, PageStore, VolumeError};
use ovs_format::page::{self, TABLE_CHUNK};
use ovs_format::sco::ScoRef;
use std::{cell::Cell, rc::Rc};

/// Grows only. Cheap to clone: chunks are shared.
#[derive(Clone, Default)]
pub(crate) struct Table {
    pub(super) chunks: Vec<Rc<Chunk>>,
}

#[derive(Clone)]
pub(super) struct Chunk {
    /// Its number in the page store; 0 while it is not stored as it is.
    pub(super) id: Cell<u64>,
    pub(super) scos: Vec<ScoRef>,
}

impl Table {
    pub(crate) fn len(&self) -> u64 {
        self.chunks.last().map_or(0, |last| ((self.chunks.len() - 1) * TABLE_CHUNK + last.scos.len()) as u64)
    }

    pub(crate) fn get(&self, index: u64) -> Option<&ScoRef> {
        let chunk = self.chunks.get((index / TABLE_CHUNK as u64) as usize)?;
        chunk.scos.get((index % TABLE_CHUNK as u64) as usize)
    }

    pub(crate) fn push(&mut self, sco: ScoRef) {
        match self.chunks.last_mut() {
            Some(last) if last.scos.len() < TABLE_CHUNK => {
                let chunk = Rc::make_mut(last);
                chunk.scos.push(sco);
                chunk.id.set(0);
            }
            _ => self.chunks.push(Rc::new(Chunk { id: Cell::new(0), scos: vec![sco] })),
        }
    }

    /// From the page store.
    pub(crate) async fn load(store: &dyn PageStore, pages: &[u64]) -> Result<Table, VolumeError> {
        let mut chunks = Vec::with_capacity(pages.len());
        for (index, id) in pages.iter().enumerate() {
            let damaged = |what: String| VolumeError::Damaged(format!("SCO table page {id}: {what}"));
            let bytes = store.load(PageId(*id)).await?.ok_or_else(|| damaged("missing".into()))?;
            let scos = page::decode_table(*id, &bytes).map_err(|error| damaged(error.to_string()))?;
            if scos.len() < TABLE_CHUNK && index + 1 < pages.len() {
                return Err(damaged("too short".into()));
            }
            chunks.push(Rc::new(Chunk { id: Cell::new(*id), scos }));
        }
        Ok(Table { chunks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryPages;
    use ovs_units::{Epoch, PutId, ScoNumber, VdiskId};
    use uuid::Uuid;

    /// All pages but the last are full, or an index would name another SCO.
    #[test]
    fn a_page_that_is_too_short_is_damage() {
        let id = Uuid::from_u128(1);
        let (vdisk, epoch, number, put) = (VdiskId(id), Epoch(1), ScoNumber(1), PutId(id));
        let sco = ScoRef { vdisk, epoch, number, put, cluster_count: 1, header_checksum: 1 };
        let pages = MemoryPages::default();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            for (number, count) in [(1, TABLE_CHUNK), (2, TABLE_CHUNK - 1)] {
                let bytes = page::encode_table(number, &vec![sco; count]).into();
                pages.store(vec![(PageId(number), bytes)]).await.unwrap();
            }
            assert_eq!(Table::load(&pages, &[1, 2]).await.unwrap().len(), 2 * TABLE_CHUNK as u64 - 1);
            let short = Table::load(&pages, &[2, 1]).await;
            assert!(matches!(short, Err(VolumeError::Damaged(_))));
        });
    }
}
