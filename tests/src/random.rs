//! Chance from a seed.

use ovs_volume::Chance;
use std::cell::Cell;
use uuid::Uuid;

/// A seeded generator (splitmix64).
#[derive(Debug)]
pub struct Random {
    state: Cell<u64>,
}

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Random {
        Random { state: Cell::new(seed) }
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        self.state.set(self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        mix(self.state.get())
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `count` times.
    pub fn one_in(&self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Lets other tasks of the thread go first, up to `most` times.
    pub async fn dawdle(&self, most: u64) {
        for _ in 0..self.below(most + 1) {
            tokio::task::yield_now().await;
        }
    }
}

/// Spreads the bits of a number over all of it.
pub fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl Chance for Random {
    fn uuid(&self) -> Uuid {
        uuid::Builder::from_random_bytes(
            ((u128::from(self.next()) << 64) | u128::from(self.next())).to_be_bytes(),
        )
        .into_uuid()
    }
}
