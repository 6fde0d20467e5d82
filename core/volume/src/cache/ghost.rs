//! What went unused a short while ago: who asks for it again has come back too late, not never, and is kept for longer.

/// A tag for each location that went, where its hash falls; a newer one takes the place. A mistake costs nothing but a worse guess.
#[derive(Default)]
pub(super) struct Ghost {
    tags: Vec<u32>,
}

impl Ghost {
    /// Of a cache of so many blocks. Takes no memory before the first is remembered.
    pub(super) fn remember(&mut self, hash: u64, capacity: u64) {
        if self.tags.is_empty() {
            self.tags = vec![0; capacity.clamp(1, 1 << 30) as usize];
        }
        let at = self.at(hash);
        self.tags[at] = tag(hash);
    }

    /// Is it there? Once.
    pub(super) fn take(&mut self, hash: u64) -> bool {
        if self.tags.is_empty() {
            return false;
        }
        let at = self.at(hash);
        let is_there = self.tags[at] == tag(hash);
        if is_there {
            self.tags[at] = 0;
        }
        is_there
    }

    fn at(&self, hash: u64) -> usize {
        (hash % self.tags.len() as u64) as usize
    }
}

/// Never 0.
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}
