//! What clients did to one vDisk, and what may be there of it (DESIGN section 5, to the letter).
//!
//! Every client has clusters of its own and does one operation at a time, so its operations have an order; those of
//! several have one as far as one was acknowledged before the other began. What a vDisk or a snapshot holds must be a
//! **cut** of that: of each client its first so many operations, where
//! * everything that had to be in is in (flushed before a power loss; acknowledged before a death or a snapshot);
//! * with an operation, all that were acknowledged before it began are in;
//! * the one operation at the cut may be there cluster by cluster if it was never acknowledged, and otherwise a beginning
//!   of its parts: those that the engine puts into its order one after the other ([`Change::parts`]);
//! * no cluster is torn.

use crate::Content;
use bytes::Bytes;
use ovs_units::{ByteCount, ByteOffset, ByteRange, CLUSTER_SIZE_BYTES, Cluster};
use std::collections::{BTreeSet, VecDeque};

/// Operations of each client that are in.
pub type Cut = Vec<u64>;

/// See the module.
#[derive(Debug, Clone)]
pub struct History {
    /// As it was before the operations below: nothing takes it away again.
    base: Content,
    /// As it is with all of them, but for one of each client that may be under way.
    now: Content,
    clients: Vec<Client>,
    /// Begins and acknowledgements so far.
    moments: u64,
    /// While it is above 0 the base stays: somebody will ask about a cut that may be before what is stable by then.
    pins: u32,
    /// The same for ever.
    is_kept: bool,
    /// No cut since the beginning has been given up.
    is_complete: bool,
}

#[derive(Debug, Clone, Default)]
struct Client {
    /// Operations that are in the base.
    settled: u64,
    /// Operations that nothing takes away.
    stable: u64,
    /// Operations that are on the backend, where that is asked about: not even the loss of this host takes them away.
    on_backend: Option<u64>,
    operations: VecDeque<Operation>,
}

#[derive(Debug, Clone)]
struct Operation {
    change: Change,
    /// Data clusters in one part at most.
    part_clusters_max: u64,
    begun: u64,
    acknowledged: Option<u64>,
}

/// What an operation changes.
#[derive(Debug, Clone)]
pub enum Change {
    /// Bytes at an offset.
    Write(ByteOffset, Bytes),
    /// Discard or write-zeroes.
    Zero(ByteRange),
}

impl Change {
    /// Where.
    pub fn range(&self) -> ByteRange {
        match self {
            Change::Write(start, data) => ByteRange { start: *start, length: ByteCount(data.len() as u64) },
            Change::Zero(range) => *range,
        }
    }

    fn apply(&self, content: &mut Content) {
        match self {
            Change::Write(offset, data) => content.write(*offset, data),
            Change::Zero(range) => content.zero(*range),
        }
    }

    fn clusters(&self) -> impl Iterator<Item = Cluster> + use<> {
        let touched = self.range().clusters_touched();
        (touched.start.0..touched.end().0).map(Cluster)
    }

    /// What an engine puts into its order as one, in that order. Whole clusters are one part, data of at most so many
    /// clusters each; each cluster that is touched in part is another. Those of a write follow each other as they are on
    /// the vDisk, zeros come behind their ragged edges.
    pub fn parts(&self, clusters_max: u64) -> Vec<std::ops::Range<u64>> {
        let (touched, covered) = (self.range().clusters_touched(), self.range().clusters_covered());
        let alone = |from: u64, to: u64| (from..to).map(|at| at..at + 1);
        if covered.is_empty() {
            return alone(touched.start.0, touched.end().0).collect();
        }
        let (head, tail) = (alone(touched.start.0, covered.start.0), alone(covered.end().0, touched.end().0));
        match self {
            Change::Write(..) => {
                let whole = (covered.start.0..covered.end().0).step_by(clusters_max as usize);
                let whole = whole.map(|at| at..covered.end().0.min(at + clusters_max));
                head.chain(whole).chain(tail).collect()
            }
            Change::Zero(_) => {
                let whole = covered.start.0..covered.end().0;
                head.chain(tail).chain(std::iter::once(whole)).collect()
            }
        }
    }
}

/// A cut that would explain one client's clusters: so many operations whole, and whether the next is there in part.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    whole: u64,
    is_partial: bool,
}

impl History {
    /// Of `clients` clients that have done nothing yet.
    pub fn new(base: Content, clients: usize) -> History {
        History {
            now: base.clone(),
            base,
            clients: vec![Client::default(); clients],
            moments: 0,
            pins: 0,
            is_kept: false,
            is_complete: true,
        }
    }

    /// As it is with everything that was acknowledged.
    pub fn now(&self) -> &Content {
        &self.now
    }

    /// How many clients.
    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    /// A client begins an operation, on an engine with so many clusters in a part; its last one has been acknowledged.
    pub fn begin(&mut self, client: usize, change: Change, part_clusters_max: u64) {
        self.moments += 1;
        let operations = &mut self.clients[client].operations;
        debug_assert!(operations.back().is_none_or(|last| last.acknowledged.is_some()), "one at a time");
        operations.push_back(Operation {
            change,
            part_clusters_max,
            begun: self.moments,
            acknowledged: None,
        });
    }

    /// Its operation is acknowledged; with `stable` nothing takes it away any more.
    pub fn acknowledge(&mut self, client: usize, stable: bool) {
        self.moments += 1;
        let Some(operation) = self.clients[client].operations.back_mut() else { return };
        operation.acknowledged = Some(self.moments);
        operation.change.apply(&mut self.now);
        if stable {
            let begun = operation.begun;
            let mut cut = self.before(begun);
            cut[client] = self.clients[client].begun();
            self.is_stable(&cut);
        }
    }

    /// Is an operation of this client under way?
    pub fn is_pending(&self, client: usize) -> bool {
        self.clients[client].operations.back().is_some_and(|last| last.acknowledged.is_none())
    }

    /// Everything acknowledged so far.
    pub fn acknowledged(&self) -> Cut {
        self.before(u64::MAX)
    }

    /// Everything begun so far.
    pub fn begun(&self) -> Cut {
        self.clients.iter().map(Client::begun).collect()
    }

    /// What is in the base: no cut before it can be explained.
    pub fn settled(&self) -> Cut {
        self.clients.iter().map(|client| client.settled).collect()
    }

    /// What nothing takes away.
    pub fn stable(&self) -> Cut {
        self.clients.iter().map(|client| client.stable).collect()
    }

    /// What was acknowledged before a moment.
    fn before(&self, moment: u64) -> Cut {
        let of = |client: &Client| {
            let is_in = |operation: &&Operation| operation.acknowledged.is_some_and(|at| at < moment);
            client.settled + client.operations.iter().take_while(is_in).count() as u64
        };
        self.clients.iter().map(of).collect()
    }

    /// Nothing takes these away any more.
    pub fn is_stable(&mut self, cut: &Cut) {
        self.clients
            .iter_mut()
            .zip(cut)
            .for_each(|(client, count)| client.stable = client.stable.max(*count));
        if self.pins == 0 {
            self.fold();
        }
    }

    /// Everything so far is on the backend; cuts from here on can be explained until more is. Or nobody will ask.
    pub fn follow_backend(&mut self, follows: bool) {
        for client in &mut self.clients {
            client.on_backend = follows.then(|| client.begun());
        }
    }

    /// These are on the backend too.
    pub fn is_on_backend(&mut self, cut: &Cut) {
        for (client, count) in self.clients.iter_mut().zip(cut) {
            client.on_backend = client.on_backend.map(|so_far| so_far.max(*count));
        }
        self.is_stable(cut);
    }

    /// What is on the backend, if that was followed.
    pub fn on_backend(&self) -> Cut {
        self.clients.iter().map(|client| client.on_backend.unwrap_or(client.settled)).collect()
    }

    /// Cuts from here on can always be explained, whatever becomes stable: damage may take away even that.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Can every cut since the beginning be explained?
    pub fn is_complete(&self) -> bool {
        self.is_kept && self.is_complete
    }

    /// From now on cuts after what is stable now can be explained, whatever becomes stable, until `unpin`.
    pub fn pin(&mut self) {
        self.pins += 1;
    }

    /// See `pin`.
    pub fn unpin(&mut self) {
        self.pins = self.pins.saturating_sub(1);
        if self.pins == 0 {
            self.fold();
        }
    }

    fn fold(&mut self) {
        if self.is_kept {
            return;
        }
        for client in &mut self.clients {
            let kept_from = client.on_backend.unwrap_or(client.stable).min(client.stable);
            while client.settled < kept_from
                && let Some(operation) = client.operations.pop_front()
            {
                operation.change.apply(&mut self.base);
                client.settled += 1;
            }
        }
    }

    /// Everything is now as `content`, which stays, and nothing is under way. The clients' counts go on.
    pub fn settle(&mut self, content: Content) {
        for client in &mut self.clients {
            client.settled = client.begun();
            client.stable = client.settled;
            client.on_backend = client.on_backend.map(|_| client.settled);
            client.operations.clear();
        }
        self.pins = 0;
        self.is_complete = false;
        self.base = content.clone();
        self.now = content;
    }

    /// Is `found` a cut not before `least` and not after `most`? The text says why not.
    pub fn explain(&self, found: &Content, least: &Cut, most: &Cut) -> Result<Cut, String> {
        self.check_untouched(found)?;
        let mut candidates = Vec::new();
        for (number, client) in self.clients.iter().enumerate() {
            let of_this = self.candidates(client, found, most[number]);
            if of_this.is_empty() {
                let difference = self.first_difference(found);
                return Err(format!("client {number}: no cut of its operations explains it: {difference}"));
            }
            candidates.push(of_this);
        }
        let mut cut = least.clone();
        loop {
            let mut chosen = Vec::new();
            for (number, of_this) in candidates.iter().enumerate() {
                match of_this.iter().find(|candidate| candidate.whole >= cut[number]) {
                    Some(candidate) => chosen.push(*candidate),
                    None => {
                        let newest = of_this.last().map_or(0, |candidate| candidate.whole);
                        return Err(format!(
                            "client {number}: operation {} is not there, and only {newest} are: {}",
                            cut[number],
                            self.first_difference(found)
                        ));
                    }
                }
            }
            // With each operation those that were acknowledged before it began.
            let mut needed: Cut = chosen.iter().map(|candidate| candidate.whole).collect();
            for (number, candidate) in chosen.iter().enumerate() {
                let client = &self.clients[number];
                let shown = candidate.whole + u64::from(candidate.is_partial);
                for operation in client.operations.iter().take((shown - client.settled) as usize) {
                    let before = self.before(operation.begun);
                    needed.iter_mut().zip(&before).for_each(|(count, least)| *count = (*count).max(*least));
                }
            }
            if needed == cut {
                return Ok(cut);
            }
            cut = needed;
        }
    }

    /// Clusters that no operation since the base is about are as in the base.
    fn check_untouched(&self, found: &Content) -> Result<(), String> {
        let operations = self.clients.iter().flat_map(|client| &client.operations);
        let touched: BTreeSet<u64> =
            operations.flat_map(|operation| operation.change.clusters()).map(|cluster| cluster.0).collect();
        match found.difference(&self.base, |cluster| touched.contains(&cluster.0)) {
            None => Ok(()),
            Some(cluster) => Err(format!("cluster {} changed, and nobody wrote to it", cluster.0)),
        }
    }

    fn candidates(&self, client: &Client, found: &Content, most: u64) -> Vec<Candidate> {
        let all = client.operations.iter();
        let touched: BTreeSet<u64> =
            all.flat_map(|operation| operation.change.clusters()).map(|cluster| cluster.0).collect();
        let mut content = self.base.clone();
        let mut candidates = Vec::new();
        for at in 0..=client.operations.len() {
            let whole = client.settled + at as u64;
            if whole > most {
                break;
            }
            let wrong: Vec<Cluster> =
                touched.iter().map(|at| Cluster(*at)).filter(|at| !found.same_at(&content, *at)).collect();
            if wrong.is_empty() {
                candidates.push(Candidate { whole, is_partial: false });
            }
            let Some(next) = client.operations.get(at) else { break };
            let old = content.clone();
            next.change.apply(&mut content);
            let range = next.change.range().clusters_touched();
            let is_of_next = |cluster: &Cluster| (range.start..range.end()).contains(cluster);
            let is_partial = !wrong.is_empty()
                && whole < most
                && wrong.iter().all(|cluster| is_of_next(cluster) && found.same_at(&content, *cluster))
                && next.change.clusters().any(|cluster| found.same_at(&old, cluster))
                && (next.acknowledged.is_none() || next.is_a_beginning(&wrong, found, &content));
            if is_partial {
                candidates.push(Candidate { whole, is_partial: true });
            }
        }
        candidates
    }

    fn first_difference(&self, found: &Content) -> String {
        let mut now = self.now.clone();
        let pending = self.clients.iter().filter_map(|client| client.operations.back());
        pending.for_each(|operation| operation.change.apply(&mut now));
        match found.difference(&now, |_| false) {
            None => "it is as after all operations".to_owned(),
            Some(cluster) => {
                let range = ByteRange { start: cluster.byte_offset(), length: ByteCount(CLUSTER_SIZE_BYTES) };
                let (found, now) = (found.read(range), now.read(range));
                let at = (0..found.len()).find(|at| found[*at] != now[*at]).unwrap_or(0);
                format!(
                    "against all operations, byte {at} of cluster {} is {:02x?}, not {:02x?}",
                    cluster.0,
                    &found[at..found.len().min(at + 8)],
                    &now[at..now.len().min(at + 8)]
                )
            }
        }
    }
}

impl Operation {
    /// Where these clusters are as it left them, is everything up to its last part with one of them?
    fn is_a_beginning(&self, changed: &[Cluster], found: &Content, after: &Content) -> bool {
        let parts = self.change.parts(self.part_clusters_max);
        let last = parts.iter().rposition(|part| changed.iter().any(|cluster| part.contains(&cluster.0)));
        let mut there = parts.iter().take(last.map_or(0, |last| last + 1)).cloned().flatten();
        there.all(|cluster| found.same_at(after, Cluster(cluster)))
    }
}

impl Client {
    fn begun(&self) -> u64 {
        self.settled + self.operations.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: u64 = CLUSTER_SIZE_BYTES;

    fn write(cluster: u64, count: u64, byte: u8) -> Change {
        let data = vec![byte; (count * CLUSTER) as usize];
        Change::Write(ByteOffset(cluster * CLUSTER), data.into())
    }

    /// The clusters of a content, each full of one byte.
    fn content(bytes: &[u8]) -> Content {
        let mut content = Content::new(ByteCount(bytes.len() as u64 * CLUSTER));
        for (at, byte) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            write(at as u64, 1, *byte).apply(&mut content);
        }
        content
    }

    /// Two clients with two clusters each: 0 wrote 1 and 2 over both of its, then 1 wrote 3, then 0 began 4.
    fn a_history() -> History {
        let mut history = History::new(content(&[0; 4]), 2);
        for (client, change) in [(0, write(0, 2, 1)), (0, write(0, 2, 2)), (1, write(2, 2, 3))] {
            history.begin(client, change, 1);
            history.acknowledge(client, false);
        }
        history.begin(0, write(0, 2, 4), 1);
        history
    }

    fn check(found: [u8; 4], least: [u64; 2], expected: Option<[u64; 2]>) {
        let history = a_history();
        let cut = history.explain(&content(&found), &least.to_vec(), &history.begun());
        assert_eq!(cut.as_ref().ok(), expected.map(|cut| cut.to_vec()).as_ref(), "{found:?}: {cut:?}");
    }

    #[test]
    fn a_cut_is_a_beginning_in_the_order_that_is_known() {
        check([0, 0, 0, 0], [0, 0], Some([0, 0]));
        check([1, 1, 0, 0], [0, 0], Some([1, 0]));
        check([2, 2, 3, 3], [0, 0], Some([2, 1]));
        check([4, 4, 3, 3], [0, 0], Some([3, 1]));
        // 3 began after 2 was acknowledged, and 4 after 3.
        check([1, 1, 3, 3], [0, 0], None);
        check([4, 4, 0, 0], [0, 0], None);
        check([4, 2, 0, 0], [0, 0], None);
    }

    #[test]
    fn the_operation_at_the_cut_may_be_there_in_part() {
        check([4, 2, 3, 3], [2, 1], Some([2, 1]));
        check([2, 4, 3, 3], [2, 1], Some([2, 1]));
        check([2, 1, 0, 0], [0, 0], Some([1, 0]));
        // What was acknowledged is there from its beginning on.
        check([1, 2, 0, 0], [0, 0], None);
        check([2, 2, 3, 0], [0, 0], Some([2, 0]));
        check([4, 1, 3, 3], [0, 0], None);
        check([9, 2, 3, 3], [0, 0], None);
    }

    #[test]
    fn an_operation_has_parts() {
        let check = |change: Change, expected: &[std::ops::Range<u64>]| assert_eq!(change.parts(2), expected);
        let data = |length: u64| Bytes::from(vec![1; length as usize]);
        let zero =
            |start, length| Change::Zero(ByteRange { start: ByteOffset(start), length: ByteCount(length) });
        check(Change::Write(ByteOffset(CLUSTER), data(5 * CLUSTER)), &[1..3, 3..5, 5..6]);
        check(Change::Write(ByteOffset(1), data(4 * CLUSTER)), &[0..1, 1..3, 3..4, 4..5]);
        check(Change::Write(ByteOffset(CLUSTER - 1), data(2)), &[0..1, 1..2]);
        check(zero(CLUSTER, 5 * CLUSTER + 1), &[6..7, 1..6]);
        check(zero(1, 4 * CLUSTER), &[0..1, 4..5, 1..4]);
    }

    #[test]
    fn what_had_to_stay_has_stayed() {
        check([2, 2, 0, 0], [2, 1], None);
        check([2, 2, 3, 3], [2, 1], Some([2, 1]));
        check([1, 1, 0, 0], [2, 0], None);
        // Torn within a cluster is nothing at all.
        let (history, mut found) = (a_history(), content(&[2, 2, 3, 3]));
        found.write(ByteOffset(7), &[4]);
        history.explain(&found, &history.acknowledged(), &history.begun()).unwrap_err();
    }

    #[test]
    fn a_flush_moves_the_base() {
        let mut history = a_history();
        history.is_stable(&history.acknowledged());
        assert_eq!(history.stable(), [2, 1]);
        history.explain(&content(&[1, 1, 3, 3]), &history.stable(), &history.begun()).unwrap_err();
        history.explain(&content(&[2, 4, 3, 3]), &history.stable(), &history.begun()).unwrap();
        history.acknowledge(0, true);
        assert_eq!(history.stable(), [3, 1]);
        assert_eq!(history.now(), &content(&[4, 4, 3, 3]));
    }
}
