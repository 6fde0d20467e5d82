//! A write buffer's device in memory: it takes its time, a death leaves a write half done, and a power loss takes
//! what was not synced, block by block. When told to it fails: a write half way, a sync for some blocks and in a way
//! that the next sync knows nothing of, as Linux does it.

use crate::Random;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_volume::LogDevice;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    io,
    rc::Rc,
};

const BLOCK_BYTES: usize = 4096;
/// Turns that other tasks get at most.
const TURNS_MAX: u64 = 3;

/// See the module.
pub struct MemoryDevice {
    slots: RefCell<Vec<Slot>>,
    slot_bytes: usize,
    random: Rc<Random>,
    /// The next so many writes and syncs fail.
    writes_failing: Cell<u8>,
    syncs_failing: Cell<u8>,
}

#[derive(Clone)]
struct Slot {
    seen: Vec<u8>,
    stable: Vec<u8>,
    /// Blocks in which they differ, perhaps.
    unsynced: BTreeSet<usize>,
}

impl MemoryDevice {
    /// Zeros.
    pub fn new(slot_count: usize, slot_bytes: u64, random: Rc<Random>) -> MemoryDevice {
        let slot_bytes = slot_bytes as usize;
        let slot = Slot { seen: vec![0; slot_bytes], stable: vec![0; slot_bytes], unsynced: BTreeSet::new() };
        MemoryDevice {
            slots: RefCell::new(vec![slot; slot_count]),
            slot_bytes,
            random,
            writes_failing: Cell::new(0),
            syncs_failing: Cell::new(0),
        }
    }

    /// The next so many writes and syncs fail.
    pub fn fail(&self, writes: u8, syncs: u8) {
        self.writes_failing.set(writes);
        self.syncs_failing.set(syncs);
    }

    /// Of what was not synced, any blocks stay and any go.
    pub fn lose_power(&self) {
        // Sometimes all of it goes, sometimes nearly all of it stays.
        let odds = 1 + self.random.below(8);
        let mostly_stays = self.random.one_in(2);
        for slot in &mut *self.slots.borrow_mut() {
            for block in std::mem::take(&mut slot.unsynced) {
                if self.random.one_in(odds) != mostly_stays {
                    let bytes = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
                    slot.stable[bytes.clone()].copy_from_slice(&slot.seen[bytes]);
                }
            }
            slot.seen.copy_from_slice(&slot.stable);
        }
    }
}

impl LogDevice for MemoryDevice {
    fn slot_count(&self) -> usize {
        self.slots.borrow().len()
    }

    fn slot_bytes(&self) -> u64 {
        self.slot_bytes as u64
    }

    fn write(&self, slot: usize, offset: u64, parts: Vec<Bytes>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let (bytes, offset) = (parts.concat(), offset as usize);
            assert!(
                offset.is_multiple_of(BLOCK_BYTES) && bytes.len().is_multiple_of(BLOCK_BYTES),
                "whole blocks"
            );
            assert!(offset + bytes.len() <= self.slot_bytes, "within the slot");
            self.random.dawdle(TURNS_MAX).await;
            let fails = fails(&self.writes_failing);
            let blocks = (bytes.len() / BLOCK_BYTES) as u64;
            let done = if fails { self.random.below(blocks + 1) } else { blocks };
            for (index, block) in bytes.chunks(BLOCK_BYTES).take(done as usize).enumerate() {
                let at = offset + index * BLOCK_BYTES;
                {
                    let slot = &mut self.slots.borrow_mut()[slot];
                    slot.seen[at..at + BLOCK_BYTES].copy_from_slice(block);
                    slot.unsynced.insert(at / BLOCK_BYTES);
                }
                if self.random.one_in(4) {
                    self.random.dawdle(TURNS_MAX).await;
                }
            }
            self.random.dawdle(TURNS_MAX).await;
            if fails { Err(io::Error::other("a write that was told to fail")) } else { Ok(()) }
        })
    }

    fn sync(&self, slot: usize) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.random.dawdle(TURNS_MAX).await;
            let fails = fails(&self.syncs_failing);
            {
                let slot = &mut self.slots.borrow_mut()[slot];
                for block in std::mem::take(&mut slot.unsynced) {
                    if !fails || self.random.one_in(2) {
                        let bytes = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
                        slot.stable[bytes.clone()].copy_from_slice(&slot.seen[bytes]);
                    }
                }
            }
            self.random.dawdle(TURNS_MAX).await;
            if fails { Err(io::Error::other("a sync that was told to fail")) } else { Ok(()) }
        })
    }

    fn read(&self, slot: usize, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            self.random.dawdle(TURNS_MAX).await;
            let slots = self.slots.borrow();
            let offset = offset as usize;
            Ok(Bytes::copy_from_slice(&slots[slot].seen[offset..offset + length]))
        })
    }
}

fn fails(left: &Cell<u8>) -> bool {
    let failing = left.get() > 0;
    left.set(left.get().saturating_sub(1));
    failing
}
