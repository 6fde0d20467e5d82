//! Making an object stand that a put may have left with fewer fragments than it is acknowledged with.

use super::known::Object;
use super::reconstruct::has_body;
use super::{Compression, Inner, Policy, name, timed};
use crate::{BackendError, ObjectName, Urgency};
use bytes::Bytes;
use futures_util::future::join_all;
use ovs_format::fragment::Header;
use std::{collections::BTreeSet, rc::Rc};

impl Inner {
    /// What is read, when as much of it stands as of any put that was acknowledged; if there is less, it is put again.
    pub(super) async fn get_lasting(self: Rc<Self>, object: ObjectName) -> Result<Bytes, BackendError> {
        let bytes = self.get(&object).await?;
        let known = self.known.borrow().get(&object);
        let stands = match known {
            Some(object) => self.stands(&object).await,
            None => false,
        };
        if !stands {
            tracing::info!(%object, "a put was cut off: its object is put again");
            // Not compressed: other versions of this program may compress to other bytes, and would not be let by.
            let put = Rc::clone(&self).put(object, vec![bytes.clone()], Compression::None, Urgency::Reserve);
            put.await?;
        }
        Ok(bytes)
    }

    /// Are so many fragments of each chunk there, and there to stay, as a policy of this preset acknowledges?
    async fn stands(&self, object: &Rc<Object>) -> bool {
        let geometry = object.geometry();
        let is_it = |policy: &&Policy| (policy.data, policy.parity) == (geometry.data, geometry.parity);
        let Some(spare) = self.preset.policies.iter().filter(is_it).map(Policy::spare).max() else {
            return false;
        };
        let found = self.look(&object.name).await;
        let own =
            found.fragments.iter().filter(|(place, _)| object.place(place.chunk, place.number) == **place);
        let own = own.flat_map(|(place, drives)| drives.iter().map(|drive| (*place, *drive)));
        let there = join_all(own.map(async |(place, drive)| {
            let own = name::fragment(&object.name, place.layout, place.chunk, place.number).ok()?;
            let read = self.drives[drive].backend.get_lasting(&own);
            let bytes = timed("get", own.as_str(), read).await.ok()?;
            let header = Header::decode(&bytes).ok()?;
            let is_good = object.is_own(&header, place.chunk, place.number) && has_body(&header, &bytes);
            is_good.then_some((place.chunk, place.number))
        }));
        let there: BTreeSet<(u32, u8)> = there.await.into_iter().flatten().collect();
        (0..geometry.chunks()).all(|chunk| {
            let count = there.iter().filter(|(of, _)| *of == chunk).count();
            count >= usize::from(geometry.data_stored(chunk)) + spare as usize
        })
    }
}
