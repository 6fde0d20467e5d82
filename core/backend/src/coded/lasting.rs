//! Making an object stand that a put may have left with fewer fragments than it is acknowledged with.

use super::get::PIECES_MAX;
use super::known::Object;
use super::on_their_way::PutAtWork;
use super::put::Put;
use super::reconstruct::has_body;
use super::{Inner, Policy, name, placement, timed};
use crate::{BackendError, ObjectName};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use ovs_format::fragment::Header;
use std::{collections::BTreeMap, rc::Rc};

impl Inner {
    /// What is read, when as much of it stands as of any put that was acknowledged; if there is less, it is put again.
    pub(super) async fn get_lasting(self: Rc<Self>, object: ObjectName) -> Result<Bytes, BackendError> {
        // From here on a delete waits: what it removed would be put again.
        let _at_work = PutAtWork::new(&self, &object);
        if self.on_their_way.is_being_deleted(&object) {
            let reason = "it is being deleted".to_owned();
            return Err(BackendError::Retry { operation: "get", object: object.to_string(), reason });
        }
        let bytes = match self.get(&object).await {
            Err(error @ (BackendError::NotFound { .. } | BackendError::Incomplete { .. })) => {
                return Err(self.absent_for_good(&object, error).await);
            }
            read => read?,
        };
        let known = self.known.borrow().get(&object);
        let stands = match known {
            Some(object) => self.stands(&object).await,
            None => false,
        };
        if !stands {
            tracing::info!(%object, "a put was cut off, or fragments of it are damaged: its object is put again");
            Rc::clone(&self).put(object, vec![bytes.clone()], Put::Again).await?;
        }
        Ok(bytes)
    }

    /// No acknowledged object can be where only so few drives are silent that it counts as absent; one that was begun can. Says which.
    async fn absent_for_good(&self, object: &ObjectName, told: BackendError) -> BackendError {
        let first = self.first_place();
        // Under a name that is too long for a fragment's there never was anything.
        let Ok(own) = name::fragment(object, first.layout, first.chunk, first.number) else { return told };
        let found = self.look(object).await;
        let (mut is_hidden, mut is_silent) = (!found.fragments.is_empty(), !found.silent.is_empty());
        // Drives that are made of drives answer when some of theirs do not: whatever they are asked for.
        let drives = self.drives();
        let asked =
            drives.asked().map(|index| timed("get", own.as_str(), drives[index].backend.get_lasting(&own)));
        for answer in join_all(asked).await {
            match answer {
                Err(BackendError::NotFound { .. }) => {}
                Err(BackendError::Incomplete { is_silent: is_silent_within, .. }) => {
                    (is_hidden, is_silent) = (true, is_silent || is_silent_within);
                }
                Err(BackendError::Retry { .. }) => is_silent = true,
                Ok(_) | Err(_) => is_hidden = true,
            }
        }
        match told {
            BackendError::Incomplete { object, reason, is_silent: was_silent } => {
                BackendError::Incomplete { object, reason, is_silent: is_silent || was_silent }
            }
            absent if !is_hidden && !is_silent => absent,
            _ => {
                let reason = "a drive may have part of it".to_owned();
                BackendError::Incomplete { object: object.to_string(), reason, is_silent }
            }
        }
    }

    /// Are so many fragments of each chunk there, on a drive each and there to stay, as a policy of this preset acknowledges?
    async fn stands(&self, object: &Rc<Object>) -> bool {
        let found = self.look(&object.name).await;
        let own =
            found.fragments.iter().filter(|(place, _)| object.place(place.chunk, place.number) == **place);
        let own = own.flat_map(|(place, drives)| drives.iter().map(|drive| (*place, *drive)));
        let drives = self.drives();
        let read = own.map(async |(place, drive)| {
            let own = name::fragment(&object.name, place.layout, place.chunk, place.number).ok()?;
            let read = drives[drive].backend.get_lasting(&own);
            let bytes = timed("get", own.as_str(), read).await.ok()?;
            let header = Header::decode(&bytes).ok()?;
            let is_good = object.is_own(&header, place.chunk, place.number) && has_body(&header, &bytes);
            is_good.then_some((place, drive))
        });
        let mut read = stream::iter(read).buffered(PIECES_MAX);
        let mut there = BTreeMap::<u32, Vec<(u8, usize)>>::new();
        while let Some(fragment) = read.next().await {
            if let Some((place, drive)) = fragment {
                there.entry(place.chunk).or_default().push((place.number, drive));
            }
        }
        let geometry = object.geometry();
        let is_it = |policy: &&Policy| (policy.data, policy.parity) == (geometry.data, geometry.parity);
        let spare = self.preset().policies.iter().filter(is_it).map(Policy::spare).max();
        spare.is_some_and(|spare| {
            (0..geometry.chunks()).all(|chunk| {
                let count = there.get(&chunk).map_or(0, |found| placement::on_drives_of_their_own(found));
                count >= usize::from(geometry.data_stored(chunk)) + spare as usize
            })
        })
    }
}
