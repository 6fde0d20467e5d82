//! Reading everything there is: what has changed on the drives is found before it is needed.

use super::encode::{self, name_hash};
use super::get::PIECES_MAX;
use super::list::{Listing, Seen};
use super::name::Place;
use super::reconstruct::has_body;
use super::{CodedBackend, Inner, PATIENCE, name, timed, upkeep::SUSPICIOUS_MAX};
use crate::{BackendError, ObjectName};
use futures_util::stream::{self, StreamExt};
use ovs_format::fragment::Header;
use ovs_units::planted;
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;
use uuid::Uuid;

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
        // Whoever lets one read wait that long would do so with all of them.
        let mut hanging = BTreeSet::new();
        // What is not remembered would not be mended: it waits until others are.
        while verified.bytes < up_to && inner.upkeep.suspicious.borrow().len() < SUSPICIOUS_MAX {
            let next = listing.next().await;
            verified.missed.extend(listing.silent.iter().map(|index| drives[*index].id));
            let Some((name, seen)) = next else {
                return listing.silent.len() as u64 <= u64::from(inner.unheard_max());
            };
            if planted("drives: a verification that is cut off passes an object by") {
                verified.after = Some(name.clone());
            }
            let read = inner.upkeep.paced(inner.verify(&name, &seen, &hanging)).await;
            verified.after = Some(name);
            verified.objects += 1;
            verified.bytes += seen.iter().map(|seen| seen.bytes).sum::<u64>();
            verified.bad += read.bad;
            verified.missed.extend(read.missed.iter().map(|index| drives[*index].id));
            hanging.extend(read.hanging);
        }
        false
    }
}

/// What came of reading all fragments of an object.
#[derive(Default)]
struct Read {
    bad: u64,
    /// Drives that did not answer, …
    missed: BTreeSet<usize>,
    /// … and those of them that let everybody wait.
    hanging: BTreeSet<usize>,
}

/// What a drive says of a fragment.
enum Answer {
    Header(Place, Option<Header>),
    Gone,
    None { drive: usize, hangs: bool },
}

impl Inner {
    async fn verify(&self, name: &ObjectName, seen: &[Seen], hanging: &BTreeSet<usize>) -> Read {
        let drives = self.drives();
        let answers = seen.iter().map(async |Seen { drive, place, .. }| {
            let Ok(own) = name::fragment(name, place.layout, place.chunk, place.number) else {
                return Answer::Gone;
            };
            if hanging.contains(drive) {
                return Answer::None { drive: *drive, hangs: true };
            }
            let began = Instant::now();
            let bytes = match timed("get", own.as_str(), drives[*drive].backend.get_stored(&own)).await {
                Ok(bytes) => bytes,
                // Nobody knows. If it answers otherwise, mending finds out.
                Err(error @ BackendError::Retry { .. }) => {
                    self.fails(*drive, &error);
                    self.is_suspicious(name);
                    return Answer::None { drive: *drive, hangs: began.elapsed() >= PATIENCE };
                }
                // Deleted or moved meanwhile; or a drive that is made of drives says that it cannot be read.
                Err(BackendError::NotFound { .. } | BackendError::Incomplete { .. }) => return Answer::Gone,
                Err(_) => return Answer::Header(*place, None),
            };
            let header = Header::decode(&bytes).ok().filter(|header| has_body(header, &bytes));
            Answer::Header(*place, header)
        });
        let answers: Vec<Answer> = stream::iter(answers).buffered(PIECES_MAX).collect().await;
        let (mut found, mut read) = (Read::default(), Vec::new());
        for answer in answers {
            match answer {
                Answer::Header(place, header) => read.push((place, header)),
                Answer::Gone => {}
                Answer::None { drive, hangs } => {
                    found.missed.insert(drive);
                    found.hanging.extend(hangs.then_some(drive));
                }
            }
        }
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
        found.bad = (read.len() - read.iter().filter(is_good).count()) as u64;
        (0..found.bad).for_each(|_| self.is_bad(name));
        found
    }
}
