//! Reading: from the layers, newest first, then from the map; what that names is cached, or on the backend.

use super::{Inner, Vdisk, View, count};
use crate::VolumeError;
use crate::engine::Extent;
use crate::map::Place;
use crate::overlay::{Hit, Piece};
use bytes::{Bytes, BytesMut};
use ovs_units::{ByteCount, ByteRange, CLUSTER_SIZE_BYTES, Cluster, ClusterCount, ClusterRange, SnapshotId};
use std::time::Duration;

/// A read that the backend does not answer is tried for this long before the guest sees an error.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a run of clusters is.
enum Source {
    Record(Piece),
    Sco(Place, u64),
    Nowhere(u64),
}

impl Source {
    fn count(&self) -> u64 {
        match self {
            Source::Record(piece) => piece.count,
            Source::Sco(_, count) | Source::Nowhere(count) => *count,
        }
    }

    fn is_zero(&self) -> bool {
        match self {
            Source::Record(piece) => piece.is_zero(),
            Source::Sco(..) => false,
            Source::Nowhere(_) => true,
        }
    }
}

impl Vdisk {
    /// Any alignment, within the size (`Refused` otherwise).
    pub async fn read(&self, range: ByteRange) -> Result<Bytes, VolumeError> {
        count(&self.inner.counters.reads, 1);
        count(&self.inner.counters.read_bytes, range.length.0);
        self.inner.check_serving()?;
        self.inner.read_view(&self.inner.view(), range).await
    }

    /// The same of a snapshot.
    pub async fn read_snapshot(&self, id: SnapshotId, range: ByteRange) -> Result<Bytes, VolumeError> {
        self.inner.check_serving()?;
        let view = self.inner.snapshot_view(id)?;
        self.inner.read_view(&view, range).await
    }

    /// What is allocated in the range: at most `limit` extents, from its start on.
    pub async fn extents(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, VolumeError> {
        self.inner.check_serving()?;
        self.inner.extents_of(&self.inner.view(), range, limit).await
    }

    /// The same of a snapshot.
    pub async fn snapshot_extents(
        &self,
        id: SnapshotId,
        range: ByteRange,
        limit: usize,
    ) -> Result<Vec<Extent>, VolumeError> {
        self.inner.check_serving()?;
        let view = self.inner.snapshot_view(id)?;
        self.inner.extents_of(&view, range, limit).await
    }
}

impl Inner {
    fn check_range(&self, view: &View, range: ByteRange) -> Result<(), VolumeError> {
        if range.is_within(view.size) {
            return Ok(());
        }
        let (start, end, size) = (range.start.0, range.end().0, view.size.0);
        Err(VolumeError::Refused(format!("bytes {start} to {end} reach past the end of the vDisk at {size}")))
    }

    pub(super) async fn read_view(&self, view: &View, range: ByteRange) -> Result<Bytes, VolumeError> {
        self.check_range(view, range)?;
        let touched = range.clusters_touched();
        if touched.is_empty() {
            return Ok(Bytes::new());
        }
        let skip = (range.start.0 % CLUSTER_SIZE_BYTES) as usize;
        let wanted = skip..skip + range.length.0 as usize;
        let first = self.read_run(view, touched).await?;
        if first.len() as u64 == touched.count.bytes().0 {
            return Ok(first.slice(wanted)); // the usual case: one run, no copy
        }
        let mut all = BytesMut::with_capacity(touched.count.bytes().0 as usize);
        all.extend_from_slice(&first);
        while (all.len() as u64) < touched.count.bytes().0 {
            let done = all.len() as u64 / CLUSTER_SIZE_BYTES;
            let rest = ClusterRange {
                start: Cluster(touched.start.0 + done),
                count: ClusterCount(touched.count.0 - done),
            };
            all.extend_from_slice(&self.read_run(view, rest).await?);
        }
        Ok(all.freeze().slice(wanted))
    }

    /// The clusters at the start of the range that lie together.
    async fn read_run(&self, view: &View, range: ClusterRange) -> Result<Bytes, VolumeError> {
        match self.locate(view, range).await? {
            Source::Record(piece) if !piece.is_zero() => {
                self.context.log.read(&piece.record, piece.first, piece.count).await
            }
            Source::Sco(place, count) => self.read_sco(view, place, count).await,
            zero => Ok(zeros(ClusterCount(zero.count()))),
        }
    }

    async fn read_sco(&self, view: &View, place: Place, count: u64) -> Result<Bytes, VolumeError> {
        let Some((sco, offset)) = view.table.find(place, count as u32) else {
            return Err(VolumeError::Damaged(format!(
                "vDisk {}: no clusters {} of SCO {} in its table",
                self.id, place.offset, place.sco
            )));
        };
        match self.cached.reader() {
            Some(who) => self.read_cached(who, sco, offset, count as u32).await,
            None => {
                let headers = &self.context.sco_headers;
                self.patiently(async || headers.read(&*self.backend, sco, offset, count as u32).await).await
            }
        }
    }

    /// A read of the backend, again while it may succeed later.
    pub(super) async fn patiently<T>(
        &self,
        read: impl AsyncFn() -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        let deadline = self.context.clock.now() + PATIENCE;
        let mut attempt = 0;
        loop {
            match read().await {
                // Backpressure slows the guest and does not fail its I/O.
                Err(VolumeError::Retry(reason))
                    if self.context.clock.now() < deadline && !self.closing.get() =>
                {
                    if attempt == 0 {
                        tracing::warn!(vdisk = %self.id, reason, "a read waits for the backend");
                    }
                    self.backoff(attempt).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn locate(&self, view: &View, range: ClusterRange) -> Result<Source, VolumeError> {
        let mut range = range;
        for layer in &view.layers {
            match layer.find(range) {
                Hit::Record(piece) => return Ok(Source::Record(piece)),
                // What a newer layer has further on bounds what an older one may tell.
                Hit::Miss(count) => range.count = ClusterCount(range.count.0.min(count)),
            }
        }
        let found = view.tree.find(&*self.context.pages, range).await;
        Ok(match found.map_err(|error| self.context.map_unreadable(self.id, error))? {
            (Some(place), count) => Source::Sco(place, count),
            (None, count) => Source::Nowhere(count),
        })
    }

    async fn extents_of(
        &self,
        view: &View,
        range: ByteRange,
        limit: usize,
    ) -> Result<Vec<Extent>, VolumeError> {
        self.check_range(view, range)?;
        let mut rest = range.clusters_touched();
        let mut extents: Vec<Extent> = Vec::new();
        while !rest.is_empty() {
            let source = self.locate(view, rest).await?;
            let (length, allocated) = (ClusterCount(source.count()).bytes(), !source.is_zero());
            let is_full = extents.len() == limit;
            match extents.last_mut() {
                Some(last) if last.allocated == allocated => last.length.0 += length.0,
                _ if is_full => break,
                _ => extents.push(Extent { length, allocated }),
            }
            rest = ClusterRange {
                start: Cluster(rest.start.0 + source.count()),
                count: ClusterCount(rest.count.0 - source.count()),
            };
        }
        trim(&mut extents, range);
        Ok(extents)
    }
}

/// Cuts extents of whole clusters to the bytes asked for.
fn trim(extents: &mut [Extent], range: ByteRange) {
    let skip = range.start.0 % CLUSTER_SIZE_BYTES;
    if let Some(first) = extents.first_mut() {
        first.length.0 -= skip;
    }
    let total: u64 = extents.iter().map(|extent| extent.length.0).sum();
    if let Some(last) = extents.last_mut() {
        last.length = ByteCount(last.length.0 - total.saturating_sub(range.length.0));
    }
}

/// Zeros without allocating where a static block will do.
fn zeros(count: ClusterCount) -> Bytes {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let length = count.bytes().0 as usize;
    match ZEROS.get(..length) {
        Some(zeros) => Bytes::from_static(zeros),
        None => Bytes::from(vec![0; length]),
    }
}
