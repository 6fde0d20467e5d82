//! The blocks behind the entries: which slot of the SSD, where in memory, shared by whom.
//!
//! A block's number is its slot on the SSD. Invariant: a slot that is being read or written is not given to anybody else
//! before that has ended.

use super::entries::NONE;
use super::memory::Memory;
use bytes::Bytes;
use hashbrown::HashTable;
use ovs_units::planted;
use std::collections::BTreeMap;

/// 128 bits of a keyed hash of what is in a block.
pub(super) type Fingerprint = u128;

struct Block {
    /// Entries that mean it.
    sharers: u32,
    /// Where it is in memory.
    memory: u32,
    is_on_ssd: bool,
}

const _: () = assert!(size_of::<Block>() == 12, "docs/decisions/0010 counts on it");

/// See the module.
pub(super) struct Blocks {
    all: Vec<Block>,
    free: Vec<u32>,
    slots: usize,
    used: usize,
    /// How many reads and writes of a slot are under way.
    busy: BTreeMap<u32, u32>,
    /// By number, as far as there are any; 0: it has none.
    fingerprints: Vec<Fingerprint>,
    by_fingerprint: HashTable<u32>,
    memory: Memory,
}

impl Blocks {
    pub(super) fn new(slots: usize, memory: usize) -> Blocks {
        Blocks {
            all: Vec::with_capacity(slots),
            free: Vec::new(),
            slots,
            used: 0,
            busy: BTreeMap::new(),
            fingerprints: Vec::new(),
            by_fingerprint: HashTable::new(),
            memory: Memory::new(memory),
        }
    }

    /// Blocks that hold anything.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The block with this in it: there is one at most.
    pub(super) fn find(&self, fingerprint: Fingerprint) -> Option<u32> {
        let is_it = |block: &u32| self.fingerprints[*block as usize] == fingerprint;
        self.by_fingerprint.find(fingerprint as u64, is_it).copied()
    }

    /// What is in it is not what was put there: nobody shares it from now on.
    pub(super) fn distrust(&mut self, block: u32) {
        if let Some(fingerprint) = self.fingerprints.get_mut(block as usize)
            && *fingerprint != 0
        {
            let hash = std::mem::take(fingerprint) as u64;
            if let Ok(found) = self.by_fingerprint.find_entry(hash, |other| *other == block) {
                found.remove();
            }
        }
    }

    pub(super) fn share(&mut self, block: u32) {
        self.all[block as usize].sharers += 1;
    }

    /// A new one, in memory, with one that shares it. `None` when there is no room for that right now.
    pub(super) fn add(&mut self, bytes: Bytes, fingerprint: Option<Fingerprint>) -> Option<u32> {
        let (block, is_new) = match self.free.last() {
            Some(block) => (*block, false),
            None => ((self.all.len() < self.slots).then_some(self.all.len() as u32)?, true),
        };
        let memory = self.take_memory(block, bytes)?;
        let new = Block { sharers: 1, memory, is_on_ssd: false };
        if is_new {
            self.all.push(new);
        } else {
            self.free.pop();
            self.all[block as usize] = new;
        }
        self.used += 1;
        if let Some(fingerprint) = fingerprint {
            self.set_fingerprint(block, fingerprint);
        }
        Some(block)
    }

    fn set_fingerprint(&mut self, block: u32, fingerprint: Fingerprint) {
        let needed = block as usize + 1;
        if self.fingerprints.len() < needed {
            self.fingerprints.resize(needed, 0);
        }
        self.fingerprints[block as usize] = fingerprint;
        let fingerprints = &self.fingerprints;
        self.by_fingerprint
            .insert_unique(fingerprint as u64, block, |other| fingerprints[*other as usize] as u64);
    }

    fn take_memory(&mut self, block: u32, bytes: Bytes) -> Option<u32> {
        let all = &self.all;
        // What is nowhere else stays.
        let (place, gone) = self.memory.put(block, bytes, |block| all[block as usize].is_on_ssd)?;
        if let Some(gone) = gone {
            self.all[gone as usize].memory = NONE;
        }
        Some(place)
    }

    /// One that shared it does not any more.
    pub(super) fn let_go(&mut self, block: u32) {
        let held = &mut self.all[block as usize];
        held.sharers -= 1;
        if held.sharers > 0 {
            return;
        }
        if held.memory != NONE {
            self.memory.remove(held.memory);
        }
        (held.memory, held.is_on_ssd) = (NONE, false);
        self.used -= 1;
        self.distrust(block);
        if !self.busy.contains_key(&block) || planted("cache: a slot is used again while it is written") {
            self.free.push(block);
        }
    }

    /// Its bytes, if they are in memory.
    pub(super) fn in_memory(&mut self, block: u32) -> Option<Bytes> {
        let place = self.all[block as usize].memory;
        (place != NONE).then(|| self.memory.get(place))
    }

    /// Its bytes, to be written, if somebody still wants that.
    pub(super) fn unwritten(&mut self, block: u32) -> Option<Bytes> {
        let held = &self.all[block as usize];
        if held.sharers == 0 || held.is_on_ssd { None } else { self.in_memory(block) }
    }

    /// It was read from the SSD, and is likely to be read again.
    pub(super) fn is_read(&mut self, block: u32, bytes: &Bytes) {
        if self.all[block as usize].memory == NONE
            && let Some(place) = self.take_memory(block, bytes.clone())
        {
            self.all[block as usize].memory = place;
        }
    }

    pub(super) fn is_busy(&mut self, block: u32) {
        *self.busy.entry(block).or_default() += 1;
    }

    /// A read or write of it has ended.
    pub(super) fn is_idle(&mut self, block: u32) {
        let Some(count) = self.busy.get_mut(&block) else { return };
        *count -= 1;
        if *count == 0 {
            self.busy.remove(&block);
            if self.all[block as usize].sharers == 0 {
                self.free.push(block);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn busy_count(&self) -> usize {
        self.busy.len()
    }

    /// What was to be written is: of a block that nobody has wanted since nothing is kept.
    pub(super) fn is_written(&mut self, block: u32) {
        let held = &mut self.all[block as usize];
        held.is_on_ssd = held.sharers > 0;
    }
}
