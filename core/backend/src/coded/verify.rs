//! Reading everything there is: what has changed on the drives is found before it is needed.

use super::encode::{self, name_hash};
use super::get::PIECES_MAX;
use super::list::{Listing, Seen};
use super::name::Place;
use super::reconstruct::has_body;
use super::{CodedBackend, Inner, name, timed};
use crate::{BackendError, ObjectName};
use futures_util::stream::{self, StreamExt};
use ovs_format::fragment::Header;
use std::collections::BTreeMap;

/// How far that has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// The last object that was read: where to go on. Nothing: it was the last of all.
    pub next: Option<ObjectName>,
    /// Objects that were read, …
    pub objects: u64,
    /// … the bytes of their fragments, …
    pub bytes: u64,
    /// … and fragments that were not as they should be: the next look after it all mends them.
    pub bad: u64,
}

impl CodedBackend {
    /// Reads all fragments of the objects that come after `after`, in the order of names, until it has read about so many bytes.
    /// Drives that do not answer are left out.
    pub async fn verify(&self, after: Option<&ObjectName>, bytes: u64) -> Verified {
        let inner = &self.inner;
        let mut listing = Listing::new(inner, "", after.cloned());
        let mut verified = Verified::default();
        while let Some((name, seen)) = listing.next().await {
            verified.bad += inner.upkeep.paced(inner.verify(&name, &seen)).await;
            verified.objects += 1;
            verified.bytes += seen.iter().map(|seen| seen.bytes).sum::<u64>();
            if verified.bytes >= bytes {
                verified.next = Some(name);
                break;
            }
        }
        verified
    }
}

impl Inner {
    /// Counts fragments that are not as they should be.
    async fn verify(&self, name: &ObjectName, seen: &[Seen]) -> u64 {
        let drives = self.drives();
        let read = seen.iter().map(async |Seen { drive, place, .. }| {
            let own = name::fragment(name, place.layout, place.chunk, place.number).ok()?;
            let bytes = match timed("get", own.as_str(), drives[*drive].backend.get(&own)).await {
                Ok(bytes) => bytes,
                // Nobody knows. If it answers otherwise, mending finds out.
                Err(error @ BackendError::Retry { .. }) => {
                    self.fails(*drive, &error);
                    self.is_suspicious(name);
                    return None;
                }
                // Deleted or moved meanwhile; or a drive that is made of drives says that it cannot be read.
                Err(BackendError::NotFound { .. } | BackendError::Incomplete { .. }) => return None,
                Err(_) => return Some((*place, None)),
            };
            let header = Header::decode(&bytes).ok().filter(|header| has_body(header, &bytes));
            Some((*place, header))
        });
        let read = stream::iter(read).buffered(PIECES_MAX);
        let read: Vec<Option<(Place, Option<Header>)>> = read.collect().await;
        let read: Vec<(Place, Option<Header>)> = read.into_iter().flatten().collect();
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
        bad
    }
}
