//! Listing, deleting, measuring: all drives together.

use super::{Inner, name};
use crate::{BackendError, Capacity, ObjectInfo, ObjectName};
use futures_util::future::join_all;
use std::collections::BTreeMap;

/// Fragments asked of a drive at once.
const PAGE: usize = 1000;

impl Inner {
    /// Objects of which any fragment is there. Their length is what their fragments take.
    pub(super) async fn list(
        &self,
        prefix: &str,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, BackendError> {
        let prefix_on_drives = name::prefix_of(prefix);
        let (mut objects, mut after) = (Vec::new(), after);
        while objects.len() < limit {
            let from = after.as_ref().and_then(name::behind);
            let pages = join_all(
                self.drives.iter().map(|drive| drive.backend.list(&prefix_on_drives, from.as_ref(), PAGE)),
            );
            let mut found: BTreeMap<ObjectName, u64> = BTreeMap::new();
            // Of what lies behind the end of a drive's page, nobody knows yet whether that drive has it, too.
            let mut known_to: Option<ObjectName> = None;
            let (mut silent, mut failure) = (0, None);
            for (index, page) in pages.await.into_iter().enumerate() {
                let page = match page {
                    Ok(page) => page,
                    Err(error) => {
                        self.fails(index, &error);
                        silent += 1;
                        failure = Some(error);
                        continue;
                    }
                };
                self.answers(index);
                if page.len() >= PAGE
                    && let Some((last, ..)) = page.iter().rev().find_map(|info| name::parse(&info.name))
                {
                    known_to = Some(known_to.map_or(last.clone(), |known| known.min(last)));
                }
                for info in page {
                    if let Some((object, ..)) = name::parse(&info.name) {
                        *found.entry(object).or_default() += info.length_bytes;
                    }
                }
            }
            if let Some(error) = failure.filter(|_| silent > self.silent_max()) {
                return Err(BackendError::Retry {
                    operation: "list",
                    object: prefix.to_owned(),
                    reason: format!("{silent} of {} drives do not answer: {error}", self.drives.len()),
                });
            }
            // Fragments of the last object of a full page may be on the next one: it is left for that, unless there is no other.
            let only_one = known_to.as_ref().is_some_and(|last| found.keys().next() == Some(last));
            let is_known = |object: &ObjectName| match &known_to {
                Some(last) => object < last || (only_one && object == last),
                None => true,
            };
            let known = found.into_iter().filter(|(object, _)| is_known(object));
            for (object, length_bytes) in known.take(limit - objects.len()) {
                after = Some(object.clone());
                objects.push(ObjectInfo { name: object, length_bytes });
            }
            if known_to.is_none() {
                break;
            }
        }
        Ok(objects)
    }

    /// Every fragment that is there. Of drives that do not answer, so few may keep theirs that nobody could read the object.
    pub(super) async fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        while self.late_names.borrow().contains_key(name) {
            self.late.notified().await;
        }
        self.known.borrow_mut().forget(name);
        let deleted = join_all((0..self.drives.len()).map(|index| self.delete_on(index, name))).await;
        let silent = deleted.iter().filter(|done| done.is_err()).count() as u32;
        match deleted.into_iter().find_map(Result::err) {
            Some(error) if silent > self.silent_max() => Err(BackendError::Retry {
                operation: "delete",
                object: name.to_string(),
                reason: format!("{silent} of {} drives do not answer: {error}", self.drives.len()),
            }),
            _ => Ok(()),
        }
    }

    async fn delete_on(&self, index: usize, name: &ObjectName) -> Result<(), BackendError> {
        for (chunk, fragment) in self.fragments_on(index, name).await? {
            let deleted = self.drives[index].backend.delete(&name::fragment(name, chunk, fragment)?).await;
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
        let of_drives = join_all(self.drives.iter().map(|drive| drive.backend.capacity())).await;
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
