//! Reading everything there is: what has changed on the drives is found before it is needed.

use super::encode::{self, name_hash};
use super::get::PIECES_MAX;
use super::list::{Listing, Seen};
use super::name::Place;
use super::reconstruct::has_body;
use super::{CodedBackend, Inner, PATIENCE, name, upkeep::Keeping};
use crate::{BackendError, ObjectName};
use futures_util::stream::{self, StreamExt};
use ovs_format::fragment::Header;
use ovs_units::planted;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use uuid::Uuid;

/// Whole fragments asked of one drive at once: a slow one reads them one behind the other.
const OF_DRIVE_MAX: usize = 2;
/// A drive that is slower than that hangs, …
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;
/// … and is not asked again for so long.
const HANGS: Duration = Duration::from_secs(300);

/// How far that has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// The last object that was read: where to go on.
    pub after: Option<ObjectName>,
    /// Objects that were read, …
    pub objects: u64,
    /// … the bytes of their fragments, …
    pub bytes: u64,
    /// … and fragments that were not as they should be: the next look after it all mends them.
    pub bad: u64,
    /// Drives of which something was not read, because they did not answer.
    pub missed: BTreeSet<Uuid>,
}

impl CodedBackend {
    /// Reads all fragments of the objects that come after `verified.after`, in the order of names, until it has read about so many bytes
    /// more. True: it has come to the end. Drives that do not answer are passed by; with so many of them that nobody knows what
    /// there is, that is no end. To drop it harms nothing: the object that was being read is read again by who goes on.
    pub async fn verify(&self, verified: &mut Verified, bytes: u64) -> bool {
        let inner = &self.inner;
        let drives = inner.drives();
        let up_to = verified.bytes.saturating_add(bytes);
        let mut listing = Listing::new(inner, "", verified.after.clone());
        if verified.after.is_none() {
            inner.upkeep.begins_to_read_all();
        }
        while verified.bytes < up_to {
            let next = listing.next().await;
            verified.missed.extend(listing.silent.iter().map(|index| drives[*index].id));
            let Some((name, seen)) = next else {
                let is_over = listing.silent.len() as u64 <= u64::from(inner.unheard_max());
                if is_over && verified.missed.is_empty() {
                    inner.upkeep.has_read_all();
                }
                return is_over;
            };
            if planted("drives: a verification that is cut off passes an object by") {
                verified.after = Some(name.clone());
            }
            let mut left = inner.upkeep.left_of(&name, &seen);
            let mut is_read = false;
            while !is_read {
                let chunk = left.pop_first();
                is_read = left.is_empty();
                // What came of it is told before guests have their turn: whoever goes on would read the same again and again.
                let work = async {
                    if let Some((chunk, seen)) = chunk {
                        inner.read_chunk(chunk, &seen).await;
                    }
                    if is_read {
                        let (bad, missed) = inner.judge(&name);
                        verified.after = Some(name.clone());
                        verified.objects += 1;
                        verified.bytes += seen.iter().map(|seen| seen.bytes).sum::<u64>();
                        verified.bad += bad;
                        verified.missed.extend(missed.iter().map(|index| drives[*index].id));
                    }
                };
                inner.upkeep.paced(work).await;
            }
        }
        false
    }
}

/// What has been read of an object: whoever is cut off goes on with the next chunk.
#[derive(Default)]
pub(super) struct Reading {
    name: Option<ObjectName>,
    chunks: BTreeSet<u32>,
    read: Vec<(Place, Option<Header>)>,
    /// Drives that did not answer.
    missed: BTreeSet<usize>,
}

/// What a drive says of a fragment.
enum Answer {
    Header(Place, Option<Header>),
    Gone,
    None,
}

/// A drive is asked for a fragment. Whoever stops waiting after a while, for whatever reason, does not wait for it again soon.
struct Asked<'a> {
    upkeep: &'a Keeping,
    drive: usize,
    began: Instant,
    is_answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.is_answered && self.began.elapsed() >= PATIENCE {
            self.upkeep.hanging.borrow_mut().insert(self.drive, Instant::now() + HANGS);
        }
    }
}

impl Keeping {
    fn hangs(&self, drive: usize) -> bool {
        self.hanging.borrow().get(&drive).is_some_and(|until| Instant::now() < *until)
    }

    /// The chunks of an object that are not read yet.
    fn left_of(&self, name: &ObjectName, seen: &[Seen]) -> BTreeMap<u32, Vec<Seen>> {
        let mut reading = self.reading.borrow_mut();
        if reading.name.as_ref() != Some(name) {
            *reading = Reading { name: Some(name.clone()), ..Reading::default() };
        }
        let mut left = BTreeMap::<u32, Vec<Seen>>::new();
        for seen in seen.iter().filter(|seen| !reading.chunks.contains(&seen.place.chunk)) {
            left.entry(seen.place.chunk).or_default().push(*seen);
        }
        left
    }
}

impl Inner {
    /// Reads all fragments of a chunk, of no drive more than a few at once.
    async fn read_chunk(&self, chunk: u32, seen: &[Seen]) {
        let mut of_drive = BTreeMap::<usize, usize>::new();
        let mut in_turn: Vec<(usize, Seen)> = Vec::new();
        for seen in seen {
            let turn = of_drive.entry(seen.drive).or_default();
            in_turn.push((*turn, *seen));
            *turn += 1;
        }
        in_turn.sort_by_key(|(turn, _)| *turn);
        let turns: BTreeMap<usize, Semaphore> =
            of_drive.into_keys().map(|drive| (drive, Semaphore::new(OF_DRIVE_MAX))).collect();
        let name = self.upkeep.reading.borrow().name.clone();
        let Some(name) = name else { return };
        let answers = in_turn.iter().map(async |(_, seen)| {
            let _turn = turns[&seen.drive].acquire().await;
            (seen.drive, self.read_stored(&name, seen).await)
        });
        let answers: Vec<(usize, Answer)> =
            stream::iter(answers).buffer_unordered(PIECES_MAX).collect().await;
        let mut reading = self.upkeep.reading.borrow_mut();
        reading.chunks.insert(chunk);
        for (drive, answer) in answers {
            match answer {
                Answer::Header(place, header) => reading.read.push((place, header)),
                Answer::Gone => {}
                Answer::None => {
                    reading.missed.insert(drive);
                }
            }
        }
    }

    async fn read_stored(&self, name: &ObjectName, seen: &Seen) -> Answer {
        let Seen { drive, place, bytes } = *seen;
        let Ok(own) = name::fragment(name, place.layout, place.chunk, place.number) else {
            return Answer::Gone;
        };
        if self.upkeep.hangs(drive) {
            return Answer::None;
        }
        let drives = self.drives();
        let mut asked = Asked { upkeep: &self.upkeep, drive, began: Instant::now(), is_answered: false };
        let patience = PATIENCE + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
        // Too slow for this is no word about what guests may ask of it.
        let Ok(read) = timeout(patience, drives[drive].backend.get_stored(&own)).await else {
            return Answer::None;
        };
        asked.is_answered = !matches!(read, Err(BackendError::Retry { .. }));
        let bytes = match read {
            Ok(bytes) => bytes,
            // Nobody knows. If it answers otherwise, mending finds out.
            Err(error @ BackendError::Retry { .. }) => {
                self.fails(drive, &error);
                self.is_suspicious(name);
                return Answer::None;
            }
            // Deleted or moved meanwhile; or a drive that is made of drives says that it cannot be read.
            Err(BackendError::NotFound { .. } | BackendError::Incomplete { .. }) => return Answer::Gone,
            Err(_) => return Answer::Header(place, None),
        };
        Answer::Header(place, Header::decode(&bytes).ok().filter(|header| has_body(header, &bytes)))
    }

    /// How many of the fragments that were read of an object are not as they should be, and the drives that did not answer.
    fn judge(&self, name: &ObjectName) -> (u64, BTreeSet<usize>) {
        let Reading { read, missed, .. } = self.upkeep.reading.take();
        // What most of them say that the object is.
        let put =
            |header: &Header| Header { chunk: 0, fragment: 0, body_bytes: 0, body_checksum: 0, ..*header };
        let mut puts: BTreeMap<(u32, Header), usize> = BTreeMap::new();
        for (place, header) in &read {
            if let Some(header) = header {
                *puts.entry((place.layout, put(header))).or_default() += 1;
            }
        }
        let is_own = |place: &Place, header: &Header| {
            let of_layout = puts.iter().filter(|((layout, _), _)| *layout == place.layout);
            let most = of_layout.max_by_key(|(_, count)| **count).map(|((_, most), _)| most);
            let is_there = (header.chunk, header.fragment) == (place.chunk, place.number);
            is_there
                && header.name == name_hash(name)
                && encode::layout(header) == place.layout
                && most == Some(&put(header))
        };
        let is_good = |(place, header): &&(Place, Option<Header>)| {
            header.as_ref().is_some_and(|header| is_own(place, header))
        };
        let bad = (read.len() - read.iter().filter(is_good).count()) as u64;
        (0..bad).for_each(|_| self.is_bad(name));
        (bad, missed)
    }
}
