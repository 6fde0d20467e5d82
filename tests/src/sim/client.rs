//! A client: one operation at a time, on clusters of its own, resent until it is acknowledged.

use super::{
    Failure, Model,
    disk::{Disk, new_data},
    weather::Weather,
};
use crate::{Random, history::Change};
use bytes::Bytes;
use ovs_units::{ByteCount, ByteOffset, ByteRange};
use ovs_volume::{GuestRequest, VolumeError};
use std::{rc::Rc, time::Duration};

/// An operation is sent so often.
pub(super) const TRIES: u64 = 30;

/// Looks soon, and then ever less often.
pub(super) async fn until(is_so: impl Fn() -> bool) {
    let mut wait = Duration::from_millis(1);
    while !is_so() {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(10));
    }
}

/// What every client and the operator of a life know.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) random: Rc<Random>,
    pub(super) weather: Rc<Weather>,
    pub(super) model: Rc<Model>,
    /// Data clusters that the engine takes into its order as one.
    pub(super) part_clusters_max: u64,
}

/// Nothing more can be done in this life.
pub(super) struct Stop;

impl Site {
    /// Until the life ends, or this vDisk serves no more.
    pub(super) async fn client(self, disk: Rc<Disk>, client: usize) {
        loop {
            self.random.dawdle(3).await;
            if self.random.one_in(3) {
                tokio::time::sleep(Duration::from_millis(self.random.below(40))).await;
            }
            until(|| disk.pauses.get() == 0).await;
            disk.busy.set(disk.busy.get() + 1);
            let done = self.act(&disk, client).await;
            if let Err(Stop) = done {
                // An operation that was not acknowledged is under way for ever, and yet nobody waits for it.
                disk.busy.set(disk.busy.get().saturating_sub(1));
                return;
            }
            disk.busy.set(disk.busy.get().saturating_sub(1));
            self.model.operations.set(self.model.operations.get() + 1);
        }
    }

    pub(super) async fn act(&self, disk: &Rc<Disk>, client: usize) -> Result<(), Stop> {
        let region = disk.region(client);
        let is_empty = region.length.0 == 0;
        match self.random.below(20) {
            0..=2 => self.flush(disk).await,
            _ if is_empty => Ok(()),
            3..=7 => self.read(disk, self.a_range(region)).await,
            8..=9 => self.change(disk, client, Change::Zero(self.a_range(region))).await,
            _ => {
                let range = self.a_range(region);
                let change = Change::Write(range.start, self.data(range.length.0));
                self.change(disk, client, change).await
            }
        }
    }

    fn data(&self, length: u64) -> Bytes {
        let number = self.model.writes.get() + 1;
        self.model.writes.set(number);
        new_data(number, length)
    }

    /// Aligned as often as not; now and then all of it.
    fn a_range(&self, region: ByteRange) -> ByteRange {
        let at = self.random.below(region.length.0);
        let length = 1 + self.random.below(if self.random.one_in(4) { 80_000 } else { 12_000 });
        let (at, length) = match self.random.below(4) {
            0 => (at, length),
            1 if self.random.one_in(10) => (0, region.length.0),
            2 => (at & !4095, (length + 4095) & !4095),
            _ => (at & !4095, 4096),
        };
        let length = length.min(region.length.0 - at);
        ByteRange { start: ByteOffset(region.start.0 + at), length: ByteCount(length) }
    }

    async fn change(&self, disk: &Rc<Disk>, client: usize, change: Change) -> Result<(), Stop> {
        let stable = self.random.one_in(6);
        let range = change.range();
        self.weather.event(
            format_args!("client {client} of {}: {range:?}, stable: {stable}", disk.id),
            client as u64,
        );
        disk.history.borrow_mut().begin(client, change.clone(), self.part_clusters_max);
        self.sent(disk, &change, stable).await?;
        disk.history.borrow_mut().acknowledge(client, stable);
        self.weather.acknowledged();
        self.weather.event(format_args!("client {client} has its answer"), client as u64);
        Ok(())
    }

    async fn sent(&self, disk: &Rc<Disk>, change: &Change, stable: bool) -> Result<(), Stop> {
        for _ in 0..TRIES {
            let vdisk = disk.open().map_err(|_| Stop)?;
            let request = match change {
                Change::Write(_, data) => GuestRequest::Write(ByteCount(data.len() as u64)),
                Change::Zero(range) => GuestRequest::Zero(*range),
            };
            let answer = match (vdisk.admit(request).await, change) {
                (Err(error), _) => Err(error),
                (Ok(()), Change::Write(offset, data)) => vdisk.write(*offset, data.clone(), stable).await,
                (Ok(()), Change::Zero(range)) => vdisk.zero(*range, stable).await,
            };
            match answer {
                Ok(()) => return Ok(()),
                Err(error) => self.look_at(disk, "a change", error)?,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(Stop)
    }

    pub(super) async fn flush(&self, disk: &Rc<Disk>) -> Result<(), Stop> {
        let cut = disk.history.borrow().acknowledged();
        self.weather.event(format_args!("a flush of {}", disk.id), 0);
        let vdisk = disk.open().map_err(|_| Stop)?;
        match vdisk.flush().await {
            Ok(()) => {
                disk.history.borrow_mut().is_stable(&cut);
                self.weather.acknowledged();
            }
            Err(error) => self.look_at(disk, "a flush", error)?,
        }
        Ok(())
    }

    async fn read(&self, disk: &Rc<Disk>, range: ByteRange) -> Result<(), Stop> {
        let vdisk = disk.open().map_err(|_| Stop)?;
        if let Err(error) = vdisk.admit(GuestRequest::Read(range.length)).await {
            return self.look_at(disk, "a read", error);
        }
        match vdisk.read(range).await {
            Ok(found) => {
                let expected = disk.history.borrow().now().read(range);
                if found[..] != expected[..] {
                    let at = (0..found.len()).find(|at| found[*at] != expected[*at]).unwrap_or(0) as u64;
                    let at = range.start.0 + at;
                    return self.fails(format!(
                        "vDisk {}: byte {} of cluster {} is not as it was written",
                        disk.id,
                        at % 4096,
                        at / 4096
                    ));
                }
                Ok(())
            }
            Err(error) => self.look_at(disk, "a read", error),
        }
    }

    /// May it come back with this, in this weather? Then it may be tried again, or nothing more.
    pub(super) fn look_at(&self, disk: &Disk, what: &str, error: VolumeError) -> Result<(), Stop> {
        self.weather.event(format_args!("{what} fails: {error}"), 0);
        match error {
            VolumeError::Offline(_) if self.weather.may_be_offline() => Err(Stop),
            VolumeError::Retry(_) | VolumeError::NoSpace(_) if self.weather.is_troubled() => Ok(()),
            VolumeError::Damaged(_) if self.weather.may_have_spoiled() => Ok(()),
            error => self.fails(format!("vDisk {}: {what} came back with {error:?}", disk.id)),
        }
    }

    fn fails(&self, failure: Failure) -> Result<(), Stop> {
        self.model.fail(failure);
        Err(Stop)
    }
}
