//! What is cached, and what goes when there is no room.
//!
//! ```text
//!  new ─▶ young ─▶ not used since: goes, and is remembered for a while
//!             └──▶ used since: old ─▶ used since: once more around ─▶ not used: goes
//!  asked for again soon after it went ────▶ old
//! ```
//!
//! Each owner has both queues of its own, and a tenth of what it has is young: what is read once passes through that tenth
//! and takes nothing else with it.

use super::blocks::{Blocks, Fingerprint};
use super::entries::{Entries, Entry, Location};
use super::ghost::Ghost;
use super::owners::{OwnerId, Owners};
use bytes::Bytes;

/// With content shared there are more entries than blocks, so many times at most.
const ENTRIES_PER_BLOCK_MAX: usize = 2;
/// Entries that get another chance before one goes, at most: a bound on what one that comes has to wait for.
const CHANCES_MAX: u32 = 64;
/// Entries that go for one that comes, at most: where blocks are shared many may go before a block is free.
const EVICTIONS_MAX: usize = 64;
/// Of an owner's entries so many are young for each ten.
const YOUNG_OF_TEN: u64 = 1;

/// See the module.
pub(super) struct Index {
    pub(super) entries: Entries,
    pub(super) owners: Owners,
    pub(super) blocks: Blocks,
    ghost: Ghost,
    capacity: usize,
    /// Entries that went to make room.
    pub(super) evicted: u64,
}

impl Index {
    /// For `capacity` blocks, of which `memory` may be in memory, in so many slots.
    pub(super) fn new(capacity: usize, slots: usize, memory: usize) -> Index {
        Index {
            entries: Entries::new(capacity),
            owners: Owners::default(),
            blocks: Blocks::new(slots, memory),
            ghost: Ghost::default(),
            capacity,
            evicted: 0,
        }
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    /// Somebody uses an entry. What belongs to one who is gone, or has more than he may keep, is charged to the user from
    /// then on if he has less: else he would lose with the other what he needs.
    pub(super) fn touch(&mut self, id: u32, user: OwnerId) {
        let capacity = self.capacity();
        let entry = self.entries.get_mut(id);
        entry.is_used();
        let owner = entry.owner;
        if owner == user || !self.owners.is_above(owner, capacity) {
            return;
        }
        if self.owners.get(user).charge() < self.owners.may_keep(user, capacity) {
            self.unqueue(id);
            self.owners.discharge(owner);
            self.owners.charge(user);
            self.entries.get_mut(id).owner = user;
            self.enqueue(id);
        }
    }

    /// The block of a new entry, and whether it is new as well. `None`: it has no room.
    pub(super) fn add(
        &mut self,
        location: Location,
        owner: OwnerId,
        checksum: u32,
        bytes: impl FnOnce() -> Bytes,
        fingerprint: Option<Fingerprint>,
    ) -> Option<(u32, bool)> {
        let shared = fingerprint.and_then(|fingerprint| self.blocks.find(fingerprint));
        // Before anything goes: it may be what goes.
        shared.inspect(|block| self.blocks.share(*block));
        self.owners.charge(owner);
        let block = match (self.make_room(shared.is_none()), shared) {
            (true, Some(block)) => Some((block, false)),
            (true, None) => self.blocks.add(bytes(), fingerprint).map(|block| (block, true)),
            (false, Some(block)) => {
                self.blocks.let_go(block);
                None
            }
            (false, None) => None,
        };
        let Some((number, _)) = block else {
            self.owners.discharge(owner);
            return None;
        };
        let is_old = self.ghost.take(location.hash());
        let mut entry = Entry::new(location, owner, checksum, number);
        entry.is_old = is_old;
        let id = self.entries.add(entry);
        self.enqueue(id);
        block
    }

    /// For one more entry, and one more block if it `needs_block`.
    fn make_room(&mut self, needs_block: bool) -> bool {
        for _ in 0..EVICTIONS_MAX {
            let is_room = self.entries.len() < self.capacity * ENTRIES_PER_BLOCK_MAX
                && (!needs_block || self.blocks.used() < self.capacity);
            if is_room {
                return true;
            }
            let victim = self.owners.victim(self.capacity());
            if !victim.is_some_and(|victim| self.evict_from(victim)) {
                return false;
            }
        }
        false // the next one goes on
    }

    /// False when it has nothing: it is the one who brings its first, and may keep none.
    fn evict_from(&mut self, owner: OwnerId) -> bool {
        for chances in (0..=CHANCES_MAX).rev() {
            let queues = self.owners.get(owner);
            let is_young_due = u64::from(queues.young.count) * 10 > queues.charge() * YOUNG_OF_TEN;
            let oldest = match (queues.young.oldest(), queues.old.oldest()) {
                (Some(young), old) if is_young_due || old.is_none() => young,
                (_, Some(old)) => old,
                _ => return false,
            };
            let entry = self.entries.get_mut(oldest);
            if entry.takes_a_use() && chances > 0 {
                self.unqueue(oldest);
                self.entries.get_mut(oldest).is_old = true;
                self.enqueue(oldest);
                continue;
            }
            let (was_young, hash) = (!entry.is_old, entry.location.hash());
            if was_young {
                self.ghost.remember(hash, self.capacity as u64);
            }
            self.remove(oldest);
            self.evicted += 1;
            break;
        }
        true
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.unqueue(id);
        let Entry { owner, block, .. } = *self.entries.get(id);
        self.owners.discharge(owner);
        self.entries.remove(id);
        self.blocks.let_go(block);
    }

    fn enqueue(&mut self, id: u32) {
        let Entry { owner, is_old, .. } = *self.entries.get(id);
        let owner = self.owners.get_mut(owner);
        let queue = if is_old { &mut owner.old } else { &mut owner.young };
        queue.push(&mut self.entries, id);
    }

    fn unqueue(&mut self, id: u32) {
        let Entry { owner, is_old, .. } = *self.entries.get(id);
        let owner = self.owners.get_mut(owner);
        let queue = if is_old { &mut owner.old } else { &mut owner.young };
        queue.unlink(&mut self.entries, id);
    }

    /// What it means is damaged: whoever comes with the same gets a block of its own.
    pub(super) fn remove_damaged(&mut self, id: u32) {
        self.blocks.distrust(self.entries.get(id).block);
        self.remove(id);
    }

    /// There is no SSD any more. Everything is forgotten, also what memory had: to look through millions of entries for that would
    /// hold everybody up. What was there is for the caller to free elsewhere, for the same reason.
    #[must_use]
    pub(super) fn lose_ssd(&mut self) -> Index {
        let memory = self.blocks.memory().capacity();
        let owners = self.owners.without_anything();
        let empty = Index { owners, evicted: self.evicted, ..Index::new(memory, memory, memory) };
        std::mem::replace(self, empty)
    }
}
