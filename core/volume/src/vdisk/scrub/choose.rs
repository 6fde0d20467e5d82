//! What is needed of each SCO, and which are worth moving.

use crate::VolumeError;
use crate::map::copy::Pages;
use crate::map::{Marks, Table};
use crate::vdisk::Inner;
use ovs_format::sco::{CLUSTERS_MAX, ScoRef, header_bytes};
use ovs_format::table::{ClusterSet, TableEntry};
use ovs_units::{CLUSTER_SIZE_BYTES, SnapshotId};
use std::collections::HashSet;

/// An SCO, and what is needed of it.
pub(super) struct Candidate {
    pub(super) sco: ScoRef,
    /// Entries of the table, and what is needed of them.
    pub(super) entries: Vec<(TableEntry, Option<ClusterSet>)>,
    pub(super) needed_clusters: u64,
    /// It stays where it is.
    is_pinned: bool,
}

impl Candidate {
    pub(super) fn needed_bytes(&self) -> u64 {
        self.needed_clusters * CLUSTER_SIZE_BYTES
    }
}

impl Inner {
    pub(super) fn sco_clusters_max(&self) -> u64 {
        (self.context.config.sco_bytes / CLUSTER_SIZE_BYTES).clamp(1, CLUSTERS_MAX as u64)
    }

    /// Every own SCO, with what is needed of it, and the snapshots that had clones when that was found out.
    pub(super) async fn candidates(&self) -> Result<(Vec<Candidate>, HashSet<SnapshotId>), VolumeError> {
        // The pages of the checkpoint stay while this is held.
        let _copying = self.copying.lock().await;
        let (checkpoint, table, pins) = {
            let _meta = self.meta.lock().await;
            self.check_may_scrub()?;
            (self.checkpoint_of_now(), Table::clone(&self.table.borrow()), self.pins())
        };
        let maps = {
            let _turn = self.checkpoints.lock().await;
            self.store_checkpoint(checkpoint).await?
        };
        let maps =
            maps.ok_or_else(|| VolumeError::Retry("part of a snapshot is still in the write buffer".into()))?;
        let unreadable = |error| self.context.map_unreadable(self.id, error);
        let pages = Pages { store: &*self.context.pages, unreadable: &unreadable };
        let go_on = || self.check_may_scrub();
        let marks = Marks::of(self.id, &maps, &table, &pins, &pages, &go_on).await?;
        self.scrub.shared_bytes.set(Some(marks.shared_bytes()));
        let candidate = |(sco, indexes): (ScoRef, Vec<u64>)| {
            let entry =
                |index: &u64| table.get(*index).map(|entry| (entry.clone(), marks.needed(*index).cloned()));
            let entries: Vec<_> = indexes.iter().filter_map(entry).collect();
            let needed = entries.iter().filter_map(|(_, needed)| needed.as_ref());
            let needed_clusters = needed.map(|needed| u64::from(needed.count())).sum();
            let is_pinned = indexes.iter().any(|index| marks.is_pinned(*index));
            Candidate { sco, entries, needed_clusters, is_pinned }
        };
        let unreadable = self.scrub.unreadable.borrow();
        let all = table.scos_of(self.id).into_iter().map(candidate);
        let all = all.map(|candidate| Candidate {
            // It stays as one that a clone needs does.
            is_pinned: candidate.is_pinned
                || (candidate.needed_clusters > 0 && unreadable.contains(&candidate.sco.put)),
            ..candidate
        });
        Ok((all.collect(), pins))
    }

    /// The snapshots that have clones.
    pub(super) fn pins(&self) -> HashSet<SnapshotId> {
        let head = &self.head.borrow().head;
        let with_clones = head.snapshots.iter().filter(|snapshot| !snapshot.clones.is_empty());
        with_clones.map(|snapshot| snapshot.id).collect()
    }
}

/// Bytes that are stored, and of those needed; that the last scrub has left; that are to be given back at least.
pub(super) fn is_worth_while(stored: u64, needed: u64, left: u64, least: u64) -> bool {
    stored / 4 * 3 > needed && stored - needed >= left + least.max(stored / 32)
}

/// The emptiest first, until at most a fifth of what may move is not needed. Of those that nobody needs all are taken, of
/// the others none when that would give nothing back.
pub(super) fn choose(mut candidates: Vec<Candidate>, sco_clusters_max: u64) -> Vec<Candidate> {
    candidates.retain(|candidate| !candidate.is_pinned);
    let needed: u64 = candidates.iter().map(Candidate::needed_bytes).sum();
    let mut stored: u64 = candidates.iter().map(|candidate| candidate.sco.object_bytes()).sum();
    let enough = needed / 4 * 5;
    let share = |candidate: &Candidate| candidate.needed_bytes() * 1024 / candidate.sco.object_bytes();
    candidates.sort_by_key(share);
    candidates.retain(|candidate| {
        let is_wanted = candidate.needed_clusters == 0 || stored > enough;
        if is_wanted {
            stored -= candidate.sco.object_bytes().saturating_sub(candidate.needed_bytes());
        }
        is_wanted
    });
    let moved: u64 = candidates.iter().map(|candidate| candidate.needed_clusters).sum();
    let parts = candidates.iter().filter(|candidate| candidate.needed_clusters > 0);
    let before: u64 = parts.map(|candidate| candidate.sco.object_bytes()).sum();
    let headers = moved.div_ceil(sco_clusters_max) * header_bytes(sco_clusters_max as usize) as u64;
    if moved * CLUSTER_SIZE_BYTES + headers >= before {
        candidates.retain(|candidate| candidate.needed_clusters == 0);
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_units::{Epoch, PutId, ScoNumber, VdiskId};
    use uuid::Uuid;

    /// Of SCOs of so many clusters, of which so many are needed, those that are chosen. The header of each is as large as a
    /// cluster.
    fn check(scos: &[(u32, u64)], sco_clusters_max: u64, expected: &[u64]) {
        let candidate = |(number, (cluster_count, needed_clusters)): (u64, &(u32, u64))| {
            let sco = ScoRef {
                vdisk: VdiskId(Uuid::nil()),
                epoch: Epoch(1),
                number: ScoNumber(number),
                put: PutId(Uuid::nil()),
                cluster_count: *cluster_count,
                header_checksum: 0,
            };
            Candidate {
                sco,
                entries: Vec::new(),
                needed_clusters: *needed_clusters,
                is_pinned: number >= 100,
            }
        };
        let chosen = choose((0..).zip(scos).map(candidate).collect(), sco_clusters_max);
        let numbers: Vec<u64> = chosen.iter().map(|candidate| candidate.sco.number.0).collect();
        assert_eq!(numbers, expected, "{scos:?}");
    }

    #[test]
    fn the_emptiest_go_until_a_fifth_is_left() {
        // After the second of these 35 are stored, of which 28 are needed: just enough.
        check(&[(14, 8), (100, 20)], 256, &[1]);
        check(&[(15, 8), (100, 20)], 256, &[1, 0]);
        check(&[(100, 90), (100, 80)], 256, &[]);
    }

    #[test]
    fn what_nobody_needs_goes_in_any_case() {
        check(&[(100, 90), (9, 0), (1, 0)], 256, &[1, 2]);
        // What it has is not what moving the other would give back.
        check(&[(3, 3), (10, 0)], 256, &[1]);
    }

    #[test]
    fn nothing_is_moved_when_that_gives_nothing_back() {
        check(&[(3, 3)], 256, &[]);
        check(&[(3, 2)], 256, &[0]);
        // Two headers for three clusters.
        check(&[(4, 3)], 2, &[]);
        check(&[(4, 3)], 256, &[0]);
    }

    #[test]
    fn what_is_pinned_stays_and_does_not_count() {
        let mut scos = vec![(10, 10); 100];
        scos.push((1000, 0));
        check(&scos, 256, &[]);
    }

    #[test]
    fn more_than_a_quarter_and_more_than_the_last_scrub_has_left_is_worth_while() {
        for (needed, left, least, expected) in [
            (2399, 0, 50, true),
            (2400, 0, 50, false),
            (2300, 0, 900, true),
            (2301, 0, 900, false),
            // A thirty-second is 100.
            (2399, 701, 50, true),
            (2399, 702, 50, false),
        ] {
            assert_eq!(is_worth_while(3200, needed, left, least), expected, "{needed}, {left}, {least}");
        }
    }
}
