//! Listing, deleting, measuring: all drives together.

use super::name::Place;
use super::{Inner, name, timed};
use crate::{BackendError, Capacity, ObjectInfo, ObjectName};
use futures_util::future::join_all;
use std::collections::BTreeMap;

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
        let mut silent = 0;
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
                        silent += 1;
                        if silent > self.silent_max() {
                            let drives = self.drives.len();
                            return Err(BackendError::Retry {
                                operation: "list",
                                object: prefix.to_owned(),
                                reason: format!("{silent} of {drives} drives do not answer: {error}"),
                            });
                        }
                    }
                }
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

    /// Every fragment that is there. One that a silent drive keeps may be all of a short object: then it is not deleted.
    pub(super) async fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        while self.late_names.borrow().contains_key(name) {
            self.late.notified().await;
        }
        self.known.borrow_mut().forget(name);
        let deleted = join_all((0..self.drives.len()).map(|index| self.delete_on(index, name))).await;
        let silent = deleted.iter().filter(|done| done.is_err()).count();
        match deleted.into_iter().find_map(Result::err) {
            Some(error) => Err(BackendError::Retry {
                operation: "delete",
                object: name.to_string(),
                reason: format!("{silent} of {} drives do not answer: {error}", self.drives.len()),
            }),
            None => Ok(()),
        }
    }

    async fn delete_on(&self, index: usize, name: &ObjectName) -> Result<(), BackendError> {
        for Place { layout, chunk, number } in self.fragments_on(index, name).await? {
            let own = name::fragment(name, layout, chunk, number)?;
            let deleted = timed("delete", own.as_str(), self.drives[index].backend.delete(&own)).await;
            if let Err(error) = &deleted {
                self.fails(index, error);
            }
            deleted?;
        }
        Ok(())
    }

    /// What the drives have together, less what parity takes under the first policy.
    pub(super) async fn capacity(&self) -> Result<Option<Capacity>, BackendError> {
        let Some(policy) = self.preset.policies.first() else { return Ok(None) };
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
