//! Writing: split at clusters, admitted to the log, appended and mapped in one step, acknowledged when written.

use super::{Inner, Vdisk, count};
use crate::VolumeError;
use crate::engine::OnFull;
use crate::log::{Append, Record, Room, RoomFor};
use bytes::{Bytes, BytesMut};
use ovs_units::{
    ByteOffset, ByteRange, CLUSTER_SIZE_BYTES, Cluster, ClusterCount, ClusterRange, Epoch, planted,
};
use std::rc::{Rc, Weak};

/// A buffer from which nothing has left for this long is stuck.
const STUCK_AFTER: std::time::Duration = std::time::Duration::from_secs(5);

impl Vdisk {
    /// Writes at any alignment, within the size. Acknowledged when the kernel has it; with `stable`, when it is on
    /// stable storage (FUA).
    pub async fn write(&self, offset: ByteOffset, data: Bytes, stable: bool) -> Result<(), VolumeError> {
        let inner = &self.inner;
        let range = inner.writable(offset, data.len() as u64)?;
        count(&inner.counters.writes, 1);
        count(&inner.counters.written_bytes, data.len() as u64);
        self.ensure_started().await?;
        let mut records = Vec::with_capacity(1);
        let covered = range.clusters_covered();
        if covered.is_empty() {
            inner.write_ragged(range, &data, &mut records).await?;
        } else {
            let (start, end) = (range.start.0, range.end().0);
            let (from, to) = (covered.bytes().start.0, covered.bytes().end().0);
            let at = |byte: u64| (byte - start) as usize;
            if start < from {
                let head = ByteRange { start: range.start, length: ovs_units::ByteCount(from - start) };
                inner.write_ragged(head, &data.slice(..at(from)), &mut records).await?;
            }
            inner.write_clusters(covered, Some(data.slice(at(from)..at(to))), &mut records).await?;
            if to < end {
                let tail = ByteRange { start: ByteOffset(to), length: ovs_units::ByteCount(end - to) };
                inner.write_ragged(tail, &data.slice(at(to)..), &mut records).await?;
            }
        }
        inner.finish(records, stable).await
    }

    /// Discard and write-zeroes: reads as zeros afterwards. Any alignment, within the size.
    pub async fn zero(&self, range: ByteRange, stable: bool) -> Result<(), VolumeError> {
        let inner = &self.inner;
        let range = inner.writable(range.start, range.length.0)?;
        count(&inner.counters.writes, 1);
        self.ensure_started().await?;
        let mut records = Vec::new();
        let covered = range.clusters_covered();
        let ragged = if covered.is_empty() {
            vec![range]
        } else {
            let (from, to) = (covered.bytes().start, covered.bytes().end());
            let length = |a: ByteOffset, b: ByteOffset| ovs_units::ByteCount(b.0 - a.0);
            vec![
                ByteRange { start: range.start, length: length(range.start, from) },
                ByteRange { start: to, length: length(to, range.end()) },
            ]
        };
        for edge in ragged.into_iter().filter(|edge| edge.length.0 > 0) {
            let zeros = Bytes::from(vec![0; edge.length.0 as usize]);
            inner.write_ragged(edge, &zeros, &mut records).await?;
        }
        if !covered.is_empty() {
            inner.write_clusters(covered, None, &mut records).await?;
        }
        inner.finish(records, stable).await
    }

    /// Everything acknowledged before is on stable storage when this returns `Ok`.
    pub async fn flush(&self) -> Result<(), VolumeError> {
        count(&self.inner.counters.flushes, 1);
        self.inner.check_serving()?;
        self.inner.context.log.sync().await
    }
}

impl Inner {
    fn writable(&self, start: ByteOffset, length: u64) -> Result<ByteRange, VolumeError> {
        self.check_serving()?;
        let size = self.size.get();
        let range = ByteRange::new(start, ovs_units::ByteCount(length)).filter(|range| range.is_within(size));
        range.ok_or_else(|| {
            let (start, size) = (start.0, size.0);
            VolumeError::NoSpace(format!(
                "{length} bytes from {start} reach past the end of the vDisk at {size}"
            ))
        })
    }

    /// Waits until the records are written, or stable. A request may be larger than the write buffer: it holds none of
    /// its records, or their slots would not become free for the rest of it. One that is gone was written and has left.
    async fn finish(&self, records: Vec<Weak<Record>>, stable: bool) -> Result<(), VolumeError> {
        for record in records {
            let is_written = match record.upgrade() {
                Some(record) => record.written().await,
                None => true,
            };
            if !is_written {
                self.context.log.check_online()?;
                return Err(VolumeError::Offline("the write buffer was closed".into()));
            }
        }
        self.context.log.check_online()?;
        if stable { self.context.log.sync().await } else { Ok(()) }
    }

    /// Part of a range that does not fill its clusters (two at most): read, changed, written as whole clusters.
    async fn write_ragged(
        self: &Rc<Self>,
        range: ByteRange,
        data: &Bytes,
        records: &mut Vec<Weak<Record>>,
    ) -> Result<(), VolumeError> {
        let touched = range.clusters_touched();
        for index in 0..touched.count.0 {
            let cluster = Cluster(touched.start.0 + index);
            let (first, end) = (cluster.byte_offset().0, cluster.byte_offset().0 + CLUSTER_SIZE_BYTES);
            let (from, to) = (range.start.0.max(first), range.end().0.min(end));
            let part = data.slice((from - range.start.0) as usize..(to - range.start.0) as usize);
            let room = self.admit(1, RoomFor::Write).await?;
            // Nobody else writes the cluster between our reading it and our writing it back.
            let _busy = match planted("write: two ragged writes change one cluster at once") {
                true => None,
                false => Some(self.claim(cluster).await?),
            };
            let whole = ClusterRange { start: cluster, count: ClusterCount(1) };
            let (epoch, old) = self.read_to_change(whole).await?;
            let mut new = BytesMut::from(&old[..]);
            new[(from - first) as usize..(to - first) as usize].copy_from_slice(&part);
            self.writable(whole.start.byte_offset(), CLUSTER_SIZE_BYTES)?;
            records.push(Rc::downgrade(&self.accept(room, epoch, whole, Some(new.freeze()))));
        }
        Ok(())
    }

    /// The claimed cluster as it is now, and the epoch to write it back in: read again if the map was replaced meanwhile.
    async fn read_to_change(self: &Rc<Self>, cluster: ClusterRange) -> Result<(Epoch, Bytes), VolumeError> {
        loop {
            self.wait_unfrozen().await?;
            let freezes = self.freezes.get();
            let bytes = self.read_view(&self.view(), cluster.bytes()).await?;
            match self.accepting.get() {
                Some(epoch) if self.freezes.get() == freezes => return Ok((epoch, bytes)),
                Some(_) => {}
                None => self.ensure_started().await?,
            }
        }
    }

    async fn write_clusters(
        self: &Rc<Self>,
        range: ClusterRange,
        data: Option<Bytes>,
        records: &mut Vec<Weak<Record>>,
    ) -> Result<(), VolumeError> {
        // Zeros are one record however many they are; data is cut to the log's records.
        let step = data.as_ref().map_or(range.count.0, |_| self.context.log.record_clusters_max());
        let mut done = 0;
        while done < range.count.0 {
            let part = ClusterRange {
                start: Cluster(range.start.0 + done),
                count: ClusterCount(step.min(range.count.0 - done)),
            };
            let bytes = |count: u64| (count * CLUSTER_SIZE_BYTES) as usize;
            let payload = data.as_ref().map(|data| data.slice(bytes(done)..bytes(done + part.count.0)));
            let whom = if payload.is_some() { RoomFor::Write } else { RoomFor::Zero };
            let room = self.admit(payload.as_ref().map_or(0, |_| part.count.0), whom).await?;
            let epoch = loop {
                match self.accepting.get() {
                    Some(epoch) if !self.is_busy(part) && self.frozen.get() == 0 => break epoch,
                    Some(_) => self.settled.notified().await,
                    None => self.ensure_started().await?,
                }
                self.check_serving()?;
            };
            // A shrink may have come in between.
            self.writable(part.start.byte_offset(), part.bytes().length.0)?;
            records.push(Rc::downgrade(&self.accept(room, epoch, part, payload)));
            done += part.count.0;
        }
        Ok(())
    }

    /// Takes the operation into the vDisk's order, in the epoch that accepts. One step, without a wait since that was looked
    /// up: the next epoch may begin at any other time, and what is accepted in this one then is behind its end.
    fn accept(&self, room: Room, epoch: Epoch, range: ClusterRange, data: Option<Bytes>) -> Rc<Record> {
        let last = self.last_sequence.get();
        let sequence = if planted("write: it takes its predecessor's number") && last.0 > 0 {
            last
        } else {
            last.next()
        };
        self.last_sequence.set(sequence);
        let append =
            Append { vdisk: self.id, epoch, sequence, cluster: range.start, count: range.count.0, data };
        let record = self.context.log.append(room, append);
        let active = self.active.borrow().clone();
        // Where nothing was buffered nobody looks soon how old it is.
        let is_first = active.is_empty();
        active.insert(record.clone(), self.context.clock.now());
        if is_first || active.data().bytes().0 >= self.context.config.destage_bytes {
            self.destage_wanted.notify_one();
        }
        record
    }

    /// Room in the log, waited for as the vDisk's `on_full` says.
    async fn admit(&self, clusters: u64, whom: RoomFor) -> Result<Room, VolumeError> {
        let log = &self.context.log;
        let since = self.context.clock.now();
        loop {
            log.check_online()?;
            self.check_serving()?;
            let changed = log.room_changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if (whom != RoomFor::Write || !self.is_over_its_share())
                && let Some(room) = log.room(clusters, whom)
            {
                return Ok(room);
            }
            self.destage_soon();
            let waited = self.context.clock.now() - since;
            let patience = match self.on_full.get() {
                OnFull::NoSpace => std::time::Duration::ZERO,
                OnFull::Stall { timeout: Some(timeout) } => timeout.saturating_sub(waited),
                OnFull::Stall { timeout: None } => std::time::Duration::MAX,
            };
            if patience.is_zero() && !self.is_draining(since) {
                return Err(VolumeError::NoSpace(
                    "the write buffer is full, and what is in it cannot leave".into(),
                ));
            }
            // Woken now and then all the same: on_full may have been changed, the share may have.
            let nap = patience.clamp(std::time::Duration::from_millis(5), std::time::Duration::from_secs(1));
            tokio::select! {
                biased;
                () = changed => {}
                () = self.destaged.notified() => {}
                () = self.context.clock.sleep(nap) => {}
            }
        }
    }

    /// A full buffer that is on its way out is no reason to refuse: only one that is stuck is.
    fn is_draining(&self, since: std::time::Duration) -> bool {
        let moved = self.context.destage_moved_at.get().max(since);
        self.trouble.borrow().is_none() && self.context.clock.now() - moved < STUCK_AFTER
    }

    /// While the buffer is short, a vDisk that holds more than its part of it waits for its own data to leave.
    fn is_over_its_share(&self) -> bool {
        let log = &self.context.log;
        let half_blocks = log.blocks_for_writes() / 2;
        let is_short = log.stats().used_bytes / CLUSTER_SIZE_BYTES > half_blocks;
        is_short && self.buffered_blocks() > half_blocks / self.context.active_vdisks()
    }

    fn is_busy(&self, range: ClusterRange) -> bool {
        let busy = self.busy_clusters.borrow();
        busy.iter().any(|cluster| (range.start.0..range.end().0).contains(cluster))
    }

    async fn claim(&self, cluster: Cluster) -> Result<Busy<'_>, VolumeError> {
        while !self.busy_clusters.borrow_mut().insert(cluster.0) {
            self.check_serving()?;
            self.settled.notified().await;
        }
        Ok(Busy { inner: self, cluster })
    }

    async fn wait_unfrozen(&self) -> Result<(), VolumeError> {
        while self.frozen.get() > 0 {
            self.check_serving()?;
            self.settled.notified().await;
        }
        Ok(())
    }
}

/// A cluster that a ragged write works on.
struct Busy<'a> {
    inner: &'a Inner,
    cluster: Cluster,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.inner.busy_clusters.borrow_mut().remove(&self.cluster.0);
        self.inner.settled.notify_waiters();
    }
}
