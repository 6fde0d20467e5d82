//! A write buffer's device in memory: it takes its time, a death leaves a write half done, and a power loss takes
//! what was not synced, block by block. When told to it fails: a write half way, a sync for some blocks and in a way
//! that the next sync knows nothing of, as Linux does it.

use crate::Random;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_volume::LogDevice;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
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
    /// Writes so far.
    writes: Cell<u64>,
    /// Hears of every block that is written and every sync.
    watcher: RefCell<Option<Rc<dyn Fn()>>>,
}

#[derive(Clone)]
struct Slot {
    /// Its blocks, as a reader finds them and as a power loss leaves them.
    seen: Vec<Bytes>,
    stable: Vec<Bytes>,
    /// What each block was since the last sync, oldest first, and by which write.
    unsynced: BTreeMap<usize, Vec<(u64, Bytes)>>,
    /// What each block was before its last write.
    older: BTreeMap<usize, Bytes>,
}

/// A block that a power loss may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsynced {
    /// Its slot.
    pub slot: usize,
    /// Its number in the slot.
    pub block: usize,
    /// The writes since the last sync, by number, oldest first.
    pub writes: Vec<u64>,
}

/// What a power loss did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Some unsynced blocks are gone.
    pub lost: bool,
    /// Of one write some are gone and some are there.
    pub torn: bool,
    /// A later write is there, an earlier one is not.
    pub reordered: bool,
}

impl MemoryDevice {
    /// Zeros.
    pub fn new(slot_count: usize, slot_bytes: u64, random: Rc<Random>) -> MemoryDevice {
        let slot_bytes = slot_bytes as usize;
        let zeros = vec![Bytes::from_static(&[0; BLOCK_BYTES]); slot_bytes / BLOCK_BYTES];
        let slot =
            Slot { seen: zeros.clone(), stable: zeros, unsynced: BTreeMap::new(), older: BTreeMap::new() };
        MemoryDevice {
            slots: RefCell::new(vec![slot; slot_count]),
            slot_bytes,
            random,
            writes_failing: Cell::new(0),
            syncs_failing: Cell::new(0),
            writes: Cell::new(0),
            watcher: RefCell::default(),
        }
    }

    /// The same contents, synced and not, on a device of its own.
    pub fn fork(&self, random: Rc<Random>) -> MemoryDevice {
        MemoryDevice {
            slots: self.slots.clone(),
            writes: self.writes.clone(),
            ..MemoryDevice::new(0, self.slot_bytes as u64, random)
        }
    }

    /// From now on `watcher` hears of every block that is written and every sync.
    pub fn watch(&self, watcher: Option<Rc<dyn Fn()>>) {
        *self.watcher.borrow_mut() = watcher;
    }

    /// The next so many writes and syncs fail.
    pub fn fail(&self, writes: u8, syncs: u8) {
        self.writes_failing.set(writes);
        self.syncs_failing.set(syncs);
    }

    /// What a power loss may take now.
    pub fn unsynced(&self) -> Vec<Unsynced> {
        let of_slot = |(slot, state): (usize, &Slot)| {
            let all = state.unsynced.iter().map(move |(block, versions)| {
                let writes = versions.iter().map(|(write, _)| *write).collect();
                Unsynced { slot, block: *block, writes }
            });
            all.collect::<Vec<_>>()
        };
        self.slots.borrow().iter().enumerate().flat_map(of_slot).collect()
    }

    /// Of what was not synced, any blocks stay and any go.
    pub fn lose_power(&self) -> Taken {
        // Sometimes all of it goes, sometimes nearly all of it stays.
        let odds = 1 + self.random.below(8);
        let mostly_stays = self.random.one_in(2);
        self.lose_power_but(|unsynced| {
            let stays = self.random.one_in(odds) != mostly_stays;
            let is_older = unsynced.writes.len() > 1 && self.random.one_in(4);
            match (stays, is_older) {
                (false, _) => 0,
                (true, false) => unsynced.writes.len(),
                (true, true) => 1 + self.random.below(unsynced.writes.len() as u64) as usize,
            }
        })
    }

    /// Of each block `stays` says which write it is as after: 0 for none of those since the last sync, then from 1.
    pub fn lose_power_but(&self, mut stays: impl FnMut(&Unsynced) -> usize) -> Taken {
        let unsynced = self.unsynced();
        let choices: Vec<usize> = unsynced.iter().map(|block| stays(block).min(block.writes.len())).collect();
        let mut slots = self.slots.borrow_mut();
        let (mut kept, mut lost): (Vec<u64>, Vec<u64>) = Default::default();
        for (block, choice) in unsynced.iter().zip(&choices) {
            let slot = &mut slots[block.slot];
            if let Some((_, bytes)) = choice.checked_sub(1).and_then(|at| slot.unsynced[&block.block].get(at))
            {
                slot.stable[block.block] = bytes.clone();
            }
            kept.extend(&block.writes[..*choice]);
            lost.extend(&block.writes[*choice..]);
        }
        for slot in &mut *slots {
            slot.unsynced.clear();
            slot.seen.clone_from(&slot.stable);
        }
        Taken {
            lost: !lost.is_empty(),
            torn: kept.iter().any(|write| lost.contains(write)),
            reordered: lost.iter().min().is_some_and(|lost| kept.iter().any(|kept| kept > lost)),
        }
    }

    /// The bytes of a block.
    pub fn block(&self, slot: usize, block: usize) -> Bytes {
        self.slots.borrow()[slot].seen[block].clone()
    }

    /// What a block was before its last write, if there was one.
    pub fn older(&self, slot: usize, block: usize) -> Option<Bytes> {
        self.slots.borrow()[slot].older.get(&block).cloned()
    }

    /// Damage: other bytes in a block, stable at once.
    pub fn damage(&self, slot: usize, block: usize, bytes: Bytes) {
        let slot = &mut self.slots.borrow_mut()[slot];
        slot.stable[block] = bytes.clone();
        slot.seen[block] = bytes;
    }

    fn changed(&self) {
        let watcher = self.watcher.borrow().clone();
        if let Some(watcher) = watcher {
            watcher();
        }
    }

    fn put(&self, slot: usize, block: usize, bytes: Bytes, write: u64) {
        let slot = &mut self.slots.borrow_mut()[slot];
        let older = std::mem::replace(&mut slot.seen[block], bytes.clone());
        slot.older.insert(block, older);
        slot.unsynced.entry(block).or_default().push((write, bytes));
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
            let (bytes, offset) = (Bytes::from(parts.concat()), offset as usize);
            assert!(
                offset.is_multiple_of(BLOCK_BYTES) && bytes.len().is_multiple_of(BLOCK_BYTES),
                "whole blocks"
            );
            assert!(offset + bytes.len() <= self.slot_bytes, "within the slot");
            self.random.dawdle(TURNS_MAX).await;
            let fails = fails(&self.writes_failing);
            let write = self.writes.get();
            self.writes.set(write + 1);
            let blocks = bytes.len() / BLOCK_BYTES;
            let done = if fails { self.random.below(blocks as u64 + 1) as usize } else { blocks };
            for index in 0..done {
                let block = bytes.slice(index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES);
                self.put(slot, offset / BLOCK_BYTES + index, block, write);
                self.changed();
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
                for block in std::mem::take(&mut slot.unsynced).into_keys() {
                    if !fails || self.random.one_in(2) {
                        slot.stable[block] = slot.seen[block].clone();
                    }
                }
            }
            self.changed();
            self.random.dawdle(TURNS_MAX).await;
            if fails { Err(io::Error::other("a sync that was told to fail")) } else { Ok(()) }
        })
    }

    fn read(&self, slot: usize, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            self.random.dawdle(TURNS_MAX).await;
            let slots = self.slots.borrow();
            let (first, skip) = (offset as usize / BLOCK_BYTES, offset as usize % BLOCK_BYTES);
            let last = (offset as usize + length).div_ceil(BLOCK_BYTES);
            Ok(Bytes::from(slots[slot].seen[first..last].concat()).slice(skip..skip + length))
        })
    }
}

fn fails(left: &Cell<u8>) -> bool {
    let failing = left.get() > 0;
    left.set(left.get().saturating_sub(1));
    failing
}
