//! What a store really does, found out at creation, to be shown and stored.
//!
//! Sequential tests prove little: some stores say 412 to a second put and let eight at once all win. So that is raced.

use crate::{RemoteBackend, backend::Shared, failure::Failure};
use bytes::Bytes;
use futures_util::future::{LocalBoxFuture, join_all};
use ovs_backend::{BackendError, ObjectName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::time::Instant;

const ROUNDS: usize = 5;
const RIVALS: usize = 8;
const OBJECT_BYTES: usize = 70_000;

/// What a store did when it was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// An object is read as it was put, as soon as it was put.
    pub reads_after_put: bool,
    /// Ranges are exact, and end where the object does.
    pub reads_ranges: bool,
    /// An object is listed as soon as it was put.
    pub lists_after_put: bool,
    /// Listings are in the order of bytes, and go on after a name.
    pub lists_in_order: bool,
    /// A deleted object is not read.
    pub deletes: bool,
    /// A deleted object is not listed as soon as it was deleted.
    pub lists_after_delete: bool,
    /// What it makes of a put of what may not be there yet. For information: nothing here rests on it.
    pub put_if_absent: PutIfAbsent,
    /// The put of a small object.
    pub put_ms: u64,
    /// Its read.
    pub get_ms: u64,
}

/// See [`Probe::put_if_absent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PutIfAbsent {
    /// Of eight at once one succeeded each time, and its bytes are what is there.
    OneWinner,
    /// One after the other it refuses the second; of eight at once more than one succeeded.
    SeveralWinners,
    /// One after the other it refuses the second; of eight at once none was told that it succeeded, or another's bytes are there.
    Unclear,
    /// It overwrites.
    Ignored,
    /// It refuses such puts.
    Refused,
    /// The protocol, as we speak it, has no such put.
    NotOffered,
}

impl Probe {
    /// Whether the store keeps [`ovs_backend::Backend`]'s rules as far as that was seen.
    pub fn is_usable(&self) -> bool {
        self.reads_after_put
            && self.reads_ranges
            && self.lists_after_put
            && self.lists_in_order
            && self.deletes
    }
}

impl RemoteBackend {
    /// Tries the store with a few small objects below `probe/`, and removes them.
    pub fn probe(&self) -> LocalBoxFuture<'static, Result<Probe, BackendError>> {
        self.run("probe", String::new(), |me| async move {
            let run = me.random();
            let probed = probe(&me, run).await;
            for number in 0..2 + ROUNDS {
                let removed = me.delete(me.path(&name(run, number))).await;
                if probed.is_ok() {
                    removed?;
                }
            }
            probed
        })
    }
}

/// Objects 0 and 1 are plain; the others are raced for.
fn name(run: u64, number: usize) -> ObjectName {
    ObjectName::new(format!("probe/{run:016x}/{number}")).expect("of letters that names may have")
}

async fn probe(me: &Arc<Shared>, run: u64) -> Result<Probe, Failure> {
    let bytes: Bytes = (0..OBJECT_BYTES).map(|at| (at as u64 ^ run >> (at % 8 * 8)) as u8).collect();
    let (one, other) = (name(run, 0), name(run, 1));
    let started = Instant::now();
    me.put(me.path(&one), bytes.clone().into()).await?;
    let put_ms = started.elapsed().as_millis() as u64;
    let started = Instant::now();
    let reads_after_put = me.read(me.path(&one), None).await? == bytes;
    let get_ms = started.elapsed().as_millis() as u64;

    let mut reads_ranges = true;
    for (from, length) in
        [(0, 1), (1000, 4096), (OBJECT_BYTES - 10, 10), (OBJECT_BYTES - 10, 11), (OBJECT_BYTES, 1)]
    {
        let range = Some((from as u64, (from + length) as u64));
        reads_ranges &= me.read(me.path(&one), range).await? == bytes[from..OBJECT_BYTES.min(from + length)];
    }

    me.put(me.path(&other), Bytes::from_static(b"other").into()).await?;
    let listed = async |after: Option<&ObjectName>, limit| {
        let found = me.list(&format!("probe/{run:016x}/"), after.cloned(), limit).await?;
        Ok::<_, Failure>(found.into_iter().map(|info| info.name).collect::<Vec<_>>())
    };
    let lists_after_put = listed(None, 10).await? == [one.clone(), other.clone()];
    let lists_in_order =
        listed(None, 1).await? == [one.clone()] && listed(Some(&one), 10).await? == [other.clone()];

    me.delete(me.path(&one)).await?;
    let deletes = me.read(me.path(&one), None).await == Err(Failure::Absent);
    let lists_after_delete = listed(None, 10).await? == [other.clone()];
    let put_if_absent = race(me, run).await?;
    Ok(Probe {
        reads_after_put,
        reads_ranges,
        lists_after_put,
        lists_in_order,
        deletes,
        lists_after_delete,
        put_if_absent,
        put_ms,
        get_ms,
    })
}

async fn race(me: &Arc<Shared>, run: u64) -> Result<PutIfAbsent, Failure> {
    // Object 1 is there.
    match me.put_if_absent(me.path(&name(run, 1)), Bytes::from_static(b"overwritten")).await {
        Ok(true) => return Ok(PutIfAbsent::Ignored),
        Ok(false) => {}
        Err(Failure::Unsupported) => return Ok(PutIfAbsent::NotOffered),
        Err(Failure::Refused(_)) => return Ok(PutIfAbsent::Refused),
        Err(failure) => return Err(failure),
    }
    for round in 0..ROUNDS {
        let path = me.path(&name(run, 2 + round));
        let rivals = (0..RIVALS).map(|rival| {
            let (me, path) = (me.clone(), path.clone());
            tokio::spawn(async move { me.put_if_absent(path, bytes_of(rival)).await })
        });
        // Who lost may be told so with an error of any kind; so that nobody won is no sign of anything.
        let results = join_all(rivals).await;
        let won = |result: &Result<_, _>| matches!(result, Ok(Ok(true)));
        match results.iter().filter(|result| won(result)).count() {
            0 => return Ok(PutIfAbsent::Unclear),
            1 => {}
            _ => return Ok(PutIfAbsent::SeveralWinners),
        }
        let winner = results.iter().position(won).unwrap_or_default();
        if me.read(path, None).await? != bytes_of(winner) {
            return Ok(PutIfAbsent::Unclear);
        }
    }
    Ok(PutIfAbsent::OneWinner)
}

fn bytes_of(rival: usize) -> Bytes {
    Bytes::from(format!("of {rival}"))
}
