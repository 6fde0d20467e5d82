//! Blocks in memory. Beside an SSD these are the ones that were used last, by anybody (CLOCK); without one, all.

use super::entries::NONE;
use bytes::Bytes;

/// See the module.
pub(super) struct Memory {
    places: Vec<Place>,
    free: Vec<u32>,
    hand: usize,
    capacity: usize,
}

struct Place {
    bytes: Bytes,
    block: u32,
    is_used: bool,
}

impl Memory {
    pub(super) fn new(capacity: usize) -> Memory {
        Memory { places: Vec::with_capacity(capacity), free: Vec::new(), hand: 0, capacity }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn get(&mut self, place: u32) -> Bytes {
        let place = &mut self.places[place as usize];
        place.is_used = true;
        place.bytes.clone()
    }

    /// A place for the block's bytes, and the block that has lost it; `None` when none of those there `may_go`.
    pub(super) fn put(
        &mut self,
        block: u32,
        bytes: Bytes,
        may_go: impl Fn(u32) -> bool,
    ) -> Option<(u32, Option<u32>)> {
        let new = Place { bytes, block, is_used: false };
        if let Some(place) = self.free.pop() {
            self.places[place as usize] = new;
            return Some((place, None));
        }
        if self.places.len() < self.capacity {
            self.places.push(new);
            return Some((self.places.len() as u32 - 1, None));
        }
        // Once to take second chances away, once more to find who has none.
        for _ in 0..2 * self.places.len() {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.places.len();
            let place = &mut self.places[at];
            if may_go(place.block) && !std::mem::take(&mut place.is_used) {
                let gone = std::mem::replace(place, new).block;
                return Some((at as u32, Some(gone)));
            }
        }
        None
    }

    pub(super) fn remove(&mut self, place: u32) {
        self.places[place as usize] = Place { bytes: Bytes::new(), block: NONE, is_used: false };
        self.free.push(place);
    }
}
