//! The device of the write buffer fails: what was acknowledged is served on, or nothing is until the next start.

use super::{Failure, World};
use bytes::Bytes;
use ovs_units::ByteRange;
use ovs_volume::{LogDevice, VdiskState};

/// With fewer slots that have not failed the write buffer gives up soon.
const SLOTS_TO_WORK: u64 = 7;

impl World {
    /// Did it fail because the write buffer is offline, as it may?
    pub(super) fn is_broken<T>(&self, answer: &Result<T, Failure>) -> bool {
        self.device_fails && answer.as_ref().err().is_some_and(|failure| failure.contains("Offline("))
    }

    /// The background's own writes and syncs may have been the ones that failed.
    pub(super) fn restart_if_offline(&mut self) -> Result<(), Failure> {
        let is_offline = self.device_fails
            && (0..self.disks.len())
                .map(|index| self.vdisk(index).map(|vdisk| vdisk.stats().state))
                .any(|state| matches!(state, Ok(VdiskState::Offline(_))));
        if is_offline { self.after_a_failed_write(Vec::new()) } else { Ok(()) }
    }

    /// Another slot that fails would take the write buffer offline in the middle of what cannot be told apart later.
    pub(super) fn restart_if_worn(&mut self) -> Result<(), Failure> {
        let left = self.buffer.slot_count() as u64 - self.engine()?.stats().buffer_failed_slots;
        if self.device_fails && left <= SLOTS_TO_WORK {
            self.after_a_failed_write(Vec::new())
        } else {
            Ok(())
        }
    }

    /// The engine is offline: it dies, with or without the power. Of a write that failed anything may be there.
    pub(super) fn after_a_failed_write(
        &mut self,
        writes: Vec<(usize, ByteRange, Option<Bytes>)>,
    ) -> Result<(), Failure> {
        self.was_offline = true;
        // Writes at once have no order that a power loss would keep.
        if writes.len() <= 1 && self.random.one_in(2) {
            for (index, range, data) in writes {
                match data {
                    Some(data) => self.disks[index].write(range, &data),
                    None => self.disks[index].zero(range),
                }
            }
            return self.lose_power();
        }
        self.die();
        self.be_born()?;
        self.open_all()?;
        for (index, range, data) in writes {
            let mut new = self.disks[index].content.clone();
            match data {
                Some(data) => new.write(range.start, &data),
                None => new.zero(range),
            }
            self.settle_clusters(index, range, &new, false)?;
        }
        self.all_is_stable();
        self.verify_all()
    }
}
