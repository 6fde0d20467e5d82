//! Listing, deleting, measuring: all drives together.

use super::drives::Duty;
use super::name::Place;
use super::on_their_way::DeleteAtWork;
use super::{Inner, name, timed};
use crate::{BackendError, Capacity, ObjectInfo, ObjectName};
use futures_util::future::join_all;
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// How far a drive has told what it has.
struct Told {
    from: Option<ObjectName>,
    is_over: bool,
}

/// All objects of which any fragment is there, in the order of their names, as the drives list them side by side.
pub(super) struct Listing<'a> {
    inner: &'a Inner,
    prefix: String,
    after: Option<ObjectName>,
    /// By drive that is asked.
    told: BTreeMap<usize, Told>,
    /// What drives have told of objects that another may have more of.
    found: BTreeMap<ObjectName, Vec<Seen>>,
    /// Drives that did not answer: what they have is not among it.
    pub(super) silent: BTreeSet<usize>,
    pub(super) failure: Option<BackendError>,
}

/// A fragment that a drive lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) drive: usize,
    pub(super) place: Place,
    pub(super) bytes: u64,
}

impl<'a> Listing<'a> {
    pub(super) fn new(inner: &'a Inner, prefix: &str, after: Option<ObjectName>) -> Listing<'a> {
        let from = || after.as_ref().and_then(name::behind);
        let told =
            inner.drives().asked().map(|index| (index, Told { from: from(), is_over: false })).collect();
        let prefix = name::prefix_of(prefix);
        let (found, silent) = Default::default();
        Listing { inner, prefix, after, told, found, silent, failure: None }
    }

    /// The next object, once every drive that answers has told what it has of it.
    pub(super) async fn next(&mut self) -> Option<(ObjectName, Vec<Seen>)> {
        loop {
            let open = self.told.values().filter(|told| !told.is_over);
            let told_to = open.map(|told| told.from.clone()).min();
            let is_told = |first: &ObjectName| match &told_to {
                None => true,
                Some(None) => false,
                Some(Some(told)) => name::behind(first).is_some_and(|behind| behind <= *told),
            };
            if let Some(first) = self.found.first_entry()
                && is_told(first.key())
            {
                let (name, seen) = first.remove_entry();
                self.after = Some(name.clone());
                return Some((name, seen));
            }
            told_to.as_ref()?;
            self.ask().await;
        }
    }

    /// One more page of each drive that may have more of the next object: the others would run ahead, and what they tell be kept.
    async fn ask(&mut self) {
        let (inner, prefix) = (self.inner, &self.prefix);
        let drives = inner.drives();
        let next = self.found.first_key_value().and_then(|(first, _)| name::behind(first));
        let is_behind = |told: &Told| match (&told.from, &next) {
            (Some(from), Some(next)) => from < next,
            _ => true,
        };
        let open = self.told.iter().filter(|(_, told)| !told.is_over && is_behind(told));
        let pages = join_all(open.map(async |(index, told)| {
            let page = drives[*index].backend.list(prefix, told.from.as_ref(), inner.page);
            (*index, timed("list", prefix, page).await)
        }));
        for (index, page) in pages.await {
            let Some(told) = self.told.get_mut(&index) else { continue };
            match page {
                Ok(page) => {
                    inner.lists(index);
                    told.is_over = page.len() < inner.page;
                    told.from = page.last().map(|info| info.name.clone()).or(told.from.take());
                    let fragments = page
                        .into_iter()
                        .filter_map(|info| Some((name::parse(&info.name)?, info.length_bytes)));
                    for ((object, place), bytes) in fragments {
                        if self.after.as_ref().is_none_or(|after| object > *after) {
                            self.found.entry(object).or_default().push(Seen { drive: index, place, bytes });
                        }
                    }
                }
                Err(error) => {
                    inner.fails(index, &error);
                    told.is_over = true;
                    self.silent.insert(index);
                    self.failure = Some(error);
                }
            }
        }
    }
}

impl Inner {
    /// Objects of which any fragment is there. Their length is what their fragments take.
    pub(super) async fn list(
        &self,
        prefix: &str,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, BackendError> {
        let mut listing = Listing::new(self, prefix, after);
        let mut objects = Vec::new();
        while objects.len() < limit {
            let next = listing.next().await;
            let unheard = self.unheard(&listing.silent);
            if unheard > self.unheard_max() {
                let drives = self.drives().len();
                let reason = listing.failure.map_or_else(String::new, |error| error.to_string());
                return Err(BackendError::Retry {
                    operation: "list",
                    object: prefix.to_owned(),
                    reason: format!("{unheard} of {drives} drives are lost or do not answer: {reason}"),
                });
            }
            let Some((name, seen)) = next else { break };
            objects.push(ObjectInfo { name, length_bytes: seen.iter().map(|seen| seen.bytes).sum() });
        }
        Ok(objects)
    }

    /// Every fragment that is there, those of the first chunk before the others: it says that the object is there. One that a
    /// silent drive keeps may be all of a short object: then it is not deleted.
    pub(super) async fn delete(self: &Rc<Self>, name: &ObjectName) -> Result<(), BackendError> {
        let _at_work = DeleteAtWork::new(&self.on_their_way, name);
        self.wait_for_puts(name).await?;
        self.known.borrow_mut().forget(name);
        let asked = self.drives();
        let listed = join_all(asked.asked().map(async |index| (index, self.fragments_on(index, name).await)));
        let mut failures: Vec<BackendError> = Vec::new();
        let mut fragments: Vec<(usize, Place)> = Vec::new();
        for (index, listed) in listed.await {
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
        let Some(error) = failures.first() else {
            // Nothing of it is to be mended any more.
            self.upkeep.is_cleared(name);
            return Ok(());
        };
        Err(BackendError::Retry {
            operation: "delete",
            object: name.to_string(),
            reason: format!("{} of its fragments or drives: {error}", failures.len()),
        })
    }

    /// Drives side by side, each its own one by one. Returns what failed.
    pub(super) async fn delete_fragments(
        self: &Rc<Self>,
        name: &ObjectName,
        fragments: &[(usize, Place)],
    ) -> Vec<BackendError> {
        let drives = self.drives();
        let on_drive = async |drive: usize| {
            for (_, Place { layout, chunk, number }) in fragments.iter().filter(|(index, _)| *index == drive)
            {
                let own = name::fragment(name, *layout, *chunk, *number)?;
                let deleted = self.delete_on(drive, name, &own).await;
                deleted.inspect_err(|error| self.fails(drive, error))?;
            }
            Ok(())
        };
        join_all(drives.asked().map(on_drive)).await.into_iter().filter_map(Result::err).collect()
    }

    /// What the drives that take fragments have together, less what parity takes under the first policy.
    pub(super) async fn capacity(&self) -> Result<Option<Capacity>, BackendError> {
        let Some(policy) = self.preset().policies.first().copied() else { return Ok(None) };
        let drives = self.drives();
        let of_drives = join_all(
            drives
                .with(Duty::takes)
                .map(async |index| (index, timed("capacity", "", drives[index].backend.capacity()).await)),
        );
        let mut sum = Capacity::default();
        for (index, capacity) in of_drives.await {
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
