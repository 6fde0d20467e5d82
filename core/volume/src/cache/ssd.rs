//! The way to the SSD and back.
//!
//! One batch of writes is under way at a time, and what comes meanwhile goes with the next. When too many
//! wait, nothing new is cached: a cache that cannot keep up is no reason for anybody to wait. After an error the SSD
//! is not asked again; memory goes on alone.

use super::entries::{Entry, Location};
use super::{Cache, CacheDevice, OwnerId, is_right};
use bytes::Bytes;
use std::rc::Rc;

/// Blocks of one batch at most: 1 MiB.
const BATCH_MAX: usize = 256;
/// Blocks that wait for theirs at most: 16 MiB, and no more than half of the memory.
const WAITING_MAX: usize = 4096;

/// Slots that are being read or written: nobody else gets them, also when whoever waits for this goes away.
struct Busy<'a> {
    cache: &'a Cache,
    blocks: Vec<u32>,
}

impl<'a> Busy<'a> {
    fn begin(cache: &'a Cache, blocks: Vec<u32>) -> Busy<'a> {
        let mut index = cache.index.borrow_mut();
        blocks.iter().for_each(|block| index.blocks.is_busy(*block));
        drop(index);
        Busy { cache, blocks }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut index = self.cache.index.borrow_mut();
        self.blocks.iter().for_each(|block| index.blocks.is_idle(*block));
    }
}

impl Cache {
    /// The second half of the queue is for those who have less than they may keep.
    pub(super) fn has_room_to_write(&self, owner: OwnerId) -> bool {
        let (index, waiting) = (self.index.borrow(), self.to_write.borrow().len());
        let most = (index.blocks.memory().capacity() / 2).min(WAITING_MAX);
        let has_less = || index.owners.get(owner).charge() < index.owners.may_keep(owner, index.capacity());
        self.device.borrow().is_none() || waiting < most / 2 || waiting < most && has_less()
    }

    pub(super) fn write_soon(&self, block: u32) {
        if self.device.borrow().is_none() {
            return;
        }
        self.to_write.borrow_mut().push_back(block);
        if let (false, Some(cache)) = (self.is_writing.get(), self.this.upgrade()) {
            self.is_writing.set(true);
            tokio::task::spawn_local(async move {
                while let Some(device) = cache.device() {
                    if !cache.write_some(&*device).await {
                        break;
                    }
                }
                cache.is_writing.set(false);
            });
        }
    }

    fn device(&self) -> Option<Rc<dyn CacheDevice>> {
        self.device.borrow().clone()
    }

    /// False when nothing waits.
    async fn write_some(&self, device: &dyn CacheDevice) -> bool {
        let mut batch: Vec<(u32, Bytes)> = Vec::new();
        while batch.len() < BATCH_MAX
            && let Some(block) = self.to_write.borrow_mut().pop_front()
        {
            let bytes = self.index.borrow_mut().blocks.unwritten(block);
            batch.extend(bytes.map(|bytes| (block, bytes)));
        }
        if batch.is_empty() {
            return false;
        }
        batch.sort_unstable_by_key(|(block, _)| *block);
        let busy = Busy::begin(self, batch.iter().map(|(block, _)| *block).collect());
        match device.write(batch).await {
            // It may have been turned off meanwhile, by a read.
            Ok(()) if self.device.borrow().is_none() => {}
            Ok(()) => {
                let mut index = self.index.borrow_mut();
                busy.blocks.iter().for_each(|block| index.blocks.is_written(*block));
            }
            Err(error) => self.turn_off_ssd(&error),
        }
        true
    }

    /// What the SSD has of these, in their order; none for what is not what it should be, or not there any more.
    pub(crate) async fn read_ssd(&self, wanted: &[(Location, u32)]) -> Vec<Option<Bytes>> {
        let nothing = || vec![None; wanted.len()];
        let Some(device) = self.device() else { return nothing() };
        let _busy = Busy::begin(self, wanted.iter().map(|(_, block)| *block).collect());
        let slots = wanted.iter().map(|(_, block)| *block).collect();
        match device.read(slots).await {
            Ok(found) if found.len() == wanted.len() => found
                .into_iter()
                .zip(wanted)
                .map(|(bytes, (location, block))| self.take(location, *block, bytes))
                .collect(),
            Ok(_) => nothing(),
            Err(error) => {
                self.turn_off_ssd(&error);
                nothing()
            }
        }
    }

    fn take(&self, location: &Location, block: u32, bytes: Bytes) -> Option<Bytes> {
        let mut index = self.index.borrow_mut();
        let id = index.entries.find(location)?;
        let Entry { block: now, checksum, .. } = *index.entries.get(id);
        if now != block {
            return None; // it went, and has come again
        }
        if !is_right(&bytes, checksum) {
            index.remove_damaged(id);
            self.counters.ssd.damaged();
            return None;
        }
        index.blocks.is_read(block, &bytes);
        self.counters.ssd.hit();
        Some(bytes)
    }

    fn turn_off_ssd(&self, error: &std::io::Error) {
        if self.device.take().is_some() {
            tracing::warn!(%error, "the SSD of the read cache is not used any more until ovsd is started again; memory goes on alone, from nothing");
            self.to_write.borrow_mut().clear();
            let lost = self.index.borrow_mut().lose_ssd();
            std::thread::spawn(move || drop(lost));
        }
    }
}
