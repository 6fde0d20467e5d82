//! Reading everything there is: what has changed on the drives is found before it is needed.

use super::list::{Listing, Seen};
use super::reconstruct::has_body;
use super::{CodedBackend, Inner, name, timed};
use crate::{BackendError, ObjectName};
use futures_util::future::join_all;
use ovs_format::fragment::Header;

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
        let read = join_all(seen.iter().map(async |Seen { drive, place, .. }| {
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
        }));
        let read: Vec<_> = read.await.into_iter().flatten().collect();
        let object = self.find(name).await.ok();
        let is_bad = |place: super::name::Place, header: &Option<Header>| match (header, &object) {
            (None, _) => true,
            (Some(header), Some(object)) if object.layout() == place.layout => {
                !object.is_own(header, place.chunk, place.number)
            }
            (Some(_), _) => false,
        };
        let bad = read.iter().filter(|(place, header)| is_bad(*place, header)).count() as u64;
        if bad > 0 && object.is_some() {
            (0..bad).for_each(|_| self.is_bad(name));
        }
        bad
    }
}
