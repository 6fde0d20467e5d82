//! Listing, deleting, measuring: all drives together.

use super::name::Place;
use super::on_their_way::DeleteAtWork;
use super::{Inner, name, timed};
use crate::{BackendError, Capacity, ObjectInfo, ObjectName};
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};

/// How far a drive has told what it has.
struct Listing {
    from: Option<ObjectName>,
    is_over: bool,
}

impl Inner {
    /// Objects of which any fragment is there. Their length is what their fragments take.
    pub(super) async fn list(
        &self,
        prefix: &str,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, BackendError> {
        let prefix_on_drives = name::prefix_of(prefix);
        let mut objects: Vec<ObjectInfo> = Vec::new();
        let mut drives: Vec<Listing> = self
            .drives
            .iter()
            .map(|_| Listing { from: after.as_ref().and_then(name::behind), is_over: false })
            .collect();
        // What drives have told of objects that another may have more of.
        let mut found: BTreeMap<ObjectName, u64> = BTreeMap::new();
        let (mut silent, mut failure) = (BTreeSet::new(), None);
        while objects.len() < limit {
            let pages =
                join_all(self.drives.iter().zip(&drives).map(
                    async |(drive, listing)| match listing.is_over {
                        true => Ok(Vec::new()),
                        false => {
                            let page =
                                drive.backend.list(&prefix_on_drives, listing.from.as_ref(), self.page);
                            timed("list", prefix, page).await
                        }
                    },
                ));
            for (index, page) in pages.await.into_iter().enumerate() {
                let listing = &mut drives[index];
                if listing.is_over {
                    continue;
                }
                match page {
                    Ok(page) => {
                        self.answers(index);
                        listing.is_over = page.len() < self.page;
                        listing.from = page.last().map(|info| info.name.clone()).or(listing.from.take());
                        let fragments = page
                            .into_iter()
                            .filter_map(|info| Some((name::parse(&info.name)?.0, info.length_bytes)));
                        let last = objects.last().map(|info| &info.name).or(after.as_ref());
                        for (object, bytes) in
                            fragments.filter(|(object, _)| last.is_none_or(|last| object > last))
                        {
                            *found.entry(object).or_default() += bytes;
                        }
                    }
                    Err(error) => {
                        self.fails(index, &error);
                        listing.is_over = true;
                        silent.insert(index);
                        failure = Some(error);
                    }
                }
            }
            let unheard = self.unheard(&silent);
            if unheard > self.unheard_max() {
                let drives = self.drives.len();
                let reason = failure.map_or_else(String::new, |error| error.to_string());
                return Err(BackendError::Retry {
                    operation: "list",
                    object: prefix.to_owned(),
                    reason: format!("{unheard} of {drives} drives are lost or do not answer: {reason}"),
                });
            }
            // Up to where every drive has told all that it has.
            let open = drives.iter().filter(|listing| !listing.is_over);
            let told_to = open.filter_map(|listing| listing.from.clone()).min();
            while objects.len() < limit
                && let Some(first) = found.first_entry()
                && told_to
                    .as_ref()
                    .is_none_or(|told| name::behind(first.key()).is_some_and(|behind| behind <= *told))
            {
                let (name, length_bytes) = first.remove_entry();
                objects.push(ObjectInfo { name, length_bytes });
            }
            if told_to.is_none() {
                break;
            }
        }
        Ok(objects)
    }

    /// Every fragment that is there, those of the first chunk before the others: it says that the object is there. One that a
    /// silent drive keeps may be all of a short object: then it is not deleted.
    pub(super) async fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        let _at_work = DeleteAtWork::new(&self.on_their_way, name);
        self.wait_for_puts(name).await?;
        self.known.borrow_mut().forget(name);
        let listed = join_all((0..self.drives.len()).map(|index| self.fragments_on(index, name))).await;
        let mut failures: Vec<BackendError> = Vec::new();
        let mut fragments: Vec<(usize, Place)> = Vec::new();
        for (index, listed) in listed.into_iter().enumerate() {
            match listed {
                Ok(places) => fragments.extend(places.into_iter().map(|place| (index, place))),
                Err(error) => failures.push(error),
            }
        }
        let (first, others): (Vec<_>, Vec<_>) =
            fragments.into_iter().partition(|(_, place)| place.chunk == 0);
        failures.extend(self.delete_fragments(name, &first).await);
        // While a drive may show the first chunk, the object keeps the others.
        if failures.is_empty() {
            failures = self.delete_fragments(name, &others).await;
        }
        let Some(error) = failures.first() else { return Ok(()) };
        Err(BackendError::Retry {
            operation: "delete",
            object: name.to_string(),
            reason: format!("{} of its fragments or drives: {error}", failures.len()),
        })
    }

    /// Drives side by side, each its own one by one. Returns what failed.
    async fn delete_fragments(&self, name: &ObjectName, fragments: &[(usize, Place)]) -> Vec<BackendError> {
        let on_drive = async |drive: usize| {
            for (_, Place { layout, chunk, number }) in fragments.iter().filter(|(index, _)| *index == drive)
            {
                let own = name::fragment(name, *layout, *chunk, *number)?;
                let deleted = timed("delete", own.as_str(), self.drives[drive].backend.delete(&own)).await;
                deleted.inspect_err(|error| self.fails(drive, error))?;
            }
            Ok(())
        };
        join_all((0..self.drives.len()).map(on_drive)).await.into_iter().filter_map(Result::err).collect()
    }

    /// What the drives have together, less what parity takes under the first policy.
    pub(super) async fn capacity(&self) -> Result<Option<Capacity>, BackendError> {
        let Some(policy) = self.preset().policies.first().copied() else { return Ok(None) };
        let of_drives =
            join_all(self.drives.iter().map(|drive| timed("capacity", "", drive.backend.capacity()))).await;
        let mut sum = Capacity::default();
        for (index, capacity) in of_drives.into_iter().enumerate() {
            match capacity {
                Ok(Some(capacity)) => {
                    sum.total_bytes += capacity.total_bytes;
                    sum.free_bytes += capacity.free_bytes;
                }
                // One without such a notion has room for all that the others have.
                Ok(None) => {}
                Err(error) => self.fails(index, &error),
            }
        }
        let usable = |bytes: u64| {
            (u128::from(bytes) * u128::from(policy.data) / u128::from(policy.fragments())) as u64
        };
        let capacity = Capacity { total_bytes: usable(sum.total_bytes), free_bytes: usable(sum.free_bytes) };
        Ok((sum.total_bytes > 0).then_some(capacity))
    }
}
