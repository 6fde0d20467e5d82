//! To whom entries are charged, and what each may keep.
//!
//! ```text
//!  quotas of those who have anything fit   each may keep its quota; who has none, an equal share of what is left
//!  they do not                             each may keep its part of the cache, in proportion to its quota; who has none, nothing
//!  who has left                            may keep nothing
//! ```
//!
//! What they may keep is never more than the cache together. So when it is full and somebody brings one more, there is
//! somebody who has more than he may keep, and it is always such a one who loses.

use super::entries::Queue;
use ovs_units::planted;

/// A vDisk, as long as it is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OwnerId(u16);

#[derive(Default)]
pub(super) struct Owner {
    /// In blocks.
    quota: Option<u64>,
    has_left: bool,
    charge: u64,
    /// What came lately, and what was used since it came.
    pub(super) young: Queue,
    pub(super) old: Queue,
}

impl Owner {
    pub(super) fn charge(&self) -> u64 {
        self.charge
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Owners {
    all: Vec<Owner>,
    /// Of those who are here and have anything: their quotas together, and how many have none.
    quotas: u64,
    without: u64,
}

impl Owners {
    /// `None`: there are too many.
    pub(super) fn enter(&mut self, quota: Option<u64>) -> Option<OwnerId> {
        let gone = self.all.iter().position(|owner| owner.has_left && owner.charge == 0);
        let index = gone.unwrap_or(self.all.len());
        let id = OwnerId(u16::try_from(index).ok()?);
        let owner = Owner { quota, ..Owner::default() };
        match gone {
            Some(index) => self.all[index] = owner,
            None => self.all.push(owner),
        }
        Some(id)
    }

    /// What is charged to it stays, until somebody needs the room or uses it.
    pub(super) fn leave(&mut self, id: OwnerId) {
        self.change(id, |owner| owner.has_left = true);
    }

    pub(super) fn set_quota(&mut self, id: OwnerId, quota: Option<u64>) {
        self.change(id, |owner| owner.quota = quota);
    }

    pub(super) fn charge(&mut self, id: OwnerId) {
        self.change(id, |owner| owner.charge += 1);
    }

    pub(super) fn discharge(&mut self, id: OwnerId) {
        self.change(id, |owner| owner.charge -= 1);
    }

    /// The same ones, each with nothing.
    pub(super) fn without_anything(&self) -> Owners {
        let same = |owner: &Owner| Owner { quota: owner.quota, has_left: owner.has_left, ..Owner::default() };
        Owners { all: self.all.iter().map(same).collect(), ..Owners::default() }
    }

    fn change(&mut self, id: OwnerId, change: impl FnOnce(&mut Owner)) {
        let counts = |owner: &Owner| match owner.quota {
            _ if owner.has_left || owner.charge == 0 => (0, 0),
            Some(quota) => (quota, 0),
            None => (0, 1),
        };
        let owner = &mut self.all[usize::from(id.0)];
        let before = counts(owner);
        change(owner);
        let after = counts(owner);
        self.quotas = self.quotas - before.0 + after.0;
        self.without = self.without - before.1 + after.1;
    }

    pub(super) fn get(&self, id: OwnerId) -> &Owner {
        &self.all[usize::from(id.0)]
    }

    pub(super) fn get_mut(&mut self, id: OwnerId) -> &mut Owner {
        &mut self.all[usize::from(id.0)]
    }

    /// What it may keep of a cache of so many blocks.
    pub(super) fn may_keep(&self, id: OwnerId, capacity: u64) -> u64 {
        let owner = self.get(id);
        match owner.quota {
            _ if owner.has_left => 0,
            Some(quota) if self.quotas <= capacity => quota,
            Some(quota) => (u128::from(quota) * u128::from(capacity) / u128::from(self.quotas)) as u64,
            None => capacity.saturating_sub(self.quotas) / self.without.max(1),
        }
    }

    pub(super) fn is_above(&self, id: OwnerId, capacity: u64) -> bool {
        self.get(id).charge > self.may_keep(id, capacity)
    }

    /// Who has the most of what he may keep, of those who have more than that.
    pub(super) fn victim(&self, capacity: u64) -> Option<OwnerId> {
        let mut worst: Option<(OwnerId, u64, u64)> = None;
        for (index, owner) in self.all.iter().enumerate().filter(|(_, owner)| owner.charge > 0) {
            let id = OwnerId(index as u16);
            let keeps = match planted("cache: a neighbour takes what is within a quota") {
                true => 1,
                false => self.may_keep(id, capacity),
            };
            let is_worse = worst.is_none_or(|(_, charge, kept)| {
                let (this, other) =
                    (u128::from(owner.charge) * u128::from(kept), u128::from(charge) * u128::from(keeps));
                this > other || this == other && owner.charge > charge
            });
            if owner.charge > keeps && is_worse {
                worst = Some((id, owner.charge, keeps));
            }
        }
        worst.map(|(id, ..)| id)
    }
}
