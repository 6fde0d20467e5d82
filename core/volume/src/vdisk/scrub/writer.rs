//! Reading what is needed of SCOs, and putting it together into others.

use super::relocate::Batch;
use super::{Candidate, ScrubReport};
use crate::VolumeError;
use crate::sco::NewSco;
use crate::vdisk::{Inner, count};
use bytes::Bytes;
use ovs_backend::Urgency;
use ovs_format::journal::Move;
use ovs_format::sco::ScoRef;
use ovs_format::table::{ClusterSet, TableEntry};
use ovs_units::{Epoch, PutId, ScoNumber};

/// An entry's name, and what is needed of its clusters: which, and the clusters in runs.
type ReadEntry = ((Epoch, ScoNumber), Option<(ClusterSet, Vec<Run>)>);

/// Clusters that lie together, and the checksums that they were put with.
type Run = (Bytes, Vec<u32>);

/// Fills new SCOs.
pub(super) struct Writer<'a> {
    inner: &'a Inner,
    epoch: Epoch,
    /// Those that are there, or may be.
    pub(super) scos: Vec<ScoRef>,
    /// What goes into the next: runs of clusters.
    clusters: Vec<Run>,
    pub(super) moves: Vec<Move>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(inner: &'a Inner, epoch: Epoch) -> Writer<'a> {
        Writer { inner, epoch, scos: Vec::new(), clusters: Vec::new(), moves: Vec::new() }
    }

    /// Those that can be read are in `old` then; nothing of the others is taken.
    pub(super) async fn take_all(
        &mut self,
        batch: &Batch,
        old: &mut Vec<ScoRef>,
        report: &mut ScrubReport,
    ) -> Result<(), VolumeError> {
        for candidate in &batch.candidates {
            self.inner.check_may_scrub()?;
            match self.read(candidate).await {
                Ok(read) => {
                    self.place(read).await?;
                    old.push(candidate.sco);
                }
                Err(VolumeError::Damaged(reason)) => {
                    tracing::error!(vdisk = %self.inner.id, reason, "an SCO cannot be read; scrub leaves it alone");
                    self.inner.scrub.unreadable.borrow_mut().insert(candidate.sco.put);
                    report.unreadable += 1;
                }
                Err(error) => return Err(error),
            }
        }
        self.finish().await
    }

    /// What is needed of an SCO.
    async fn read(&self, candidate: &Candidate) -> Result<Vec<ReadEntry>, VolumeError> {
        let mut read = Vec::new();
        for (entry, needed) in &candidate.entries {
            let Some(origin) = entry.origin() else { continue };
            let Some(needed) = needed else {
                read.push((origin, None));
                continue;
            };
            let mut runs = Vec::new();
            for (offset, count) in needed.runs() {
                let at = match entry {
                    TableEntry::Moved(moved) => moved.offset_of(offset, count),
                    _ => Some(offset),
                };
                let at = at.ok_or_else(|| VolumeError::Damaged("what was moved is not there".into()))?;
                let headers = &self.inner.context.sco_headers;
                runs.push(headers.read_with_sums(&*self.inner.backend, &candidate.sco, at, count).await?);
            }
            read.push((origin, Some((needed.clone(), runs))));
        }
        Ok(read)
    }

    /// An entry's clusters go into one SCO.
    async fn place(&mut self, read: Vec<ReadEntry>) -> Result<(), VolumeError> {
        for (origin, kept) in read {
            let Some((kept, runs)) = kept else {
                self.moves.push(Move { origin, to: None });
                continue;
            };
            if self.filled() + u64::from(kept.count()) > self.inner.sco_clusters_max() {
                self.finish().await?;
            }
            let base = self.filled() as u32;
            self.clusters.extend(runs);
            self.moves.push(Move { origin, to: Some((self.scos.len() as u32, base, kept)) });
        }
        Ok(())
    }

    fn filled(&self) -> u64 {
        self.clusters.iter().map(|(_, sums)| sums.len() as u64).sum()
    }

    /// Puts what there is as an SCO.
    async fn finish(&mut self) -> Result<(), VolumeError> {
        if self.clusters.is_empty() {
            return Ok(());
        }
        let inner = self.inner;
        let (data, sums): (Vec<Bytes>, Vec<Vec<u32>>) =
            std::mem::take(&mut self.clusters).into_iter().unzip();
        let checksums = sums.concat();
        let number = inner.next_sco.replace(inner.next_sco.get() + 1);
        let put = PutId(inner.context.chance.uuid());
        let sco = NewSco::new(inner.id, self.epoch, ScoNumber(number), put, data, &checksums);
        // Before it is there: should the put fail and yet take effect, it is removed all the same.
        self.scos.push(sco.reference);
        inner.backend.put(&sco.name(), sco.parts, Urgency::Reserve).await?;
        let bytes = sco.reference.object_bytes();
        count(&inner.counters.backend_put_bytes, bytes);
        Ok(())
    }
}
