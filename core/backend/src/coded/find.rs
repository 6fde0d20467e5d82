//! Finding out what an object is and where its fragments are; and what it means that they are not there.

use super::drives::Drives;
use super::encode::{self, name_hash};
use super::known::{Found, Object};
use super::name::Place;
use super::placement::{self, Home};
use super::{FRAME_BYTES, Inner, Policy, name, timed};
use crate::{BackendError, ObjectName};
use bytes::Bytes;
use futures_util::future::join_all;
use ovs_format::fragment::{Geometry, HEADER_BYTES, Header};
use ovs_units::PutId;
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};
use uuid::Uuid;

/// Read of a fragment first: its header, and the index of a fragment of 4 MiB.
pub(super) const FIRST_BYTES: u64 = HEADER_BYTES as u64 + (4 << 20) / FRAME_BYTES as u64 * 8 + 4;

impl Inner {
    /// Finds out what an object is: from the fragment that comes first, if others agree (it may be of an older put that
    /// somebody has brought back), or from whatever there is of it.
    pub(super) async fn find(&self, name: &ObjectName) -> Result<Rc<Object>, BackendError> {
        let (drives, place) = (self.drives(), self.first_place());
        // Where the first one is no more, its successor is behind all others: behind fewer if the object is short.
        let policy = self.preset().policies[0];
        let counts = (1..=usize::from(policy.data)).rev().map(|stored| stored + usize::from(policy.parity));
        let homes =
            counts.map(|count| placement::homes(&drives, name, 0, policy, count).0[0].places(&drives));
        let mut asked = Vec::new();
        for first in homes.flatten() {
            if self.is_suspect(first) || asked.contains(&first) {
                continue;
            }
            asked.push(first);
            let Ok(bytes) = self.read_from(first, name, place, 0, FIRST_BYTES).await else { continue };
            match self.check_first(name, 0, 0, &bytes) {
                Ok(header) => {
                    let object = Object::new(name, header);
                    if let Ok(entries) = header.decode_index(0, &bytes[HEADER_BYTES..]) {
                        object.insert_index(0, 0, entries.into());
                    }
                    if self.is_confirmed(&object).await {
                        return Ok(self.known.borrow_mut().learn(object));
                    }
                }
                Err(_) => self.is_bad(name),
            }
        }
        self.find_anywhere(name, None).await
    }

    /// Where what was put under the first policy begins.
    pub(super) fn first_place(&self) -> Place {
        let preset = self.preset();
        let layout = encode::layout(&encode::template(
            &preset,
            preset.compression,
            [0; 16],
            PutId(Uuid::nil()),
            preset.policies[0],
            0,
        ));
        Place { layout, chunk: 0, number: 0 }
    }

    /// Do m others say the same? Then it takes more than parity makes good to lie about it.
    async fn is_confirmed(&self, object: &Object) -> bool {
        let Geometry { data, parity, .. } = *object.geometry();
        let headers = join_all((data..data + parity).map(async |number| {
            for home in self.home(object, 0, number) {
                if self.is_suspect(home) {
                    continue;
                }
                let place = object.place(0, number);
                let header = self.read_from(home, &object.name, place, 0, HEADER_BYTES as u64).await;
                let header = header.map(|bytes| Header::decode(&bytes));
                if let Ok(Ok(header)) = header {
                    return object.is_own(&header, 0, number);
                }
            }
            false
        }));
        headers.await.into_iter().all(|is_same| is_same)
    }

    pub(super) fn check_first(
        &self,
        name: &ObjectName,
        chunk: u32,
        fragment: u8,
        bytes: &[u8],
    ) -> Result<Header, String> {
        let header = Header::decode(bytes).map_err(|error| error.to_string())?;
        let is_it = header.name == name_hash(name)
            && header.chunk == chunk
            && header.fragment == fragment
            && (header.key == 0) == self.preset().keys.is_empty();
        is_it.then_some(header).ok_or_else(|| "it is another object's".to_owned())
    }

    /// Asks all drives. What is of the layout `except` cannot be read.
    pub(super) async fn find_anywhere(
        &self,
        name: &ObjectName,
        except: Option<u32>,
    ) -> Result<Rc<Object>, BackendError> {
        let found = self.look(name).await;
        let object = self.find_among(name, found, except).await?;
        Ok(self.known.borrow_mut().learn(object))
    }

    /// The same of what was found, which nobody knows then.
    pub(super) async fn find_among(
        &self,
        name: &ObjectName,
        mut found: Found,
        except: Option<u32>,
    ) -> Result<Object, BackendError> {
        let first_chunk = found.fragments.iter().filter(|(place, _)| place.chunk == 0);
        let wanted = first_chunk
            .flat_map(|(place, drives)| drives.iter().map(|drive| (*place, *drive)))
            .collect::<Vec<_>>();
        let headers = join_all(wanted.into_iter().map(async |(place, drive)| {
            let read = self.read_from(drive, name, place, 0, HEADER_BYTES as u64).await;
            let header = read.map(|bytes| self.check_first(name, 0, place.number, &bytes).ok());
            (
                place,
                drive,
                header.map(|header| header.filter(|header| encode::layout(header) == place.layout)),
            )
        }));
        let mut puts: BTreeMap<Header, Vec<(u8, usize)>> = BTreeMap::new();
        for (place, drive, header) in headers.await {
            match header {
                Ok(Some(header)) => {
                    let fragment = header.fragment;
                    let key = Header { fragment: 0, body_bytes: 0, body_checksum: 0, ..header };
                    puts.entry(key).or_default().push((fragment, drive));
                }
                Ok(None) => self.is_bad(name),
                Err(error @ (BackendError::Retry { .. } | BackendError::NoSpace { .. })) => {
                    found.silent.insert(drive);
                    found.failure = Some(error.to_string());
                }
                // Deleted meanwhile.
                Err(BackendError::NotFound { .. }) => found.forget(place, drive),
                // This one is not there, and its name is used.
                Err(BackendError::Incomplete { is_silent, .. }) => {
                    found.forget(place, drive);
                    found.is_begun = true;
                    found.is_silent_within |= is_silent;
                }
                Err(_) => self.is_bad(name),
            }
        }
        // Of those that can be read; several can where a put was tried again under another policy. Of these one that stands is
        // still there when a drive is lost, and the one that is as it should be stays when the others go.
        let aim = self.aim();
        let readable = puts.iter().filter_map(|(header, found)| {
            let numbers: BTreeSet<u8> = found.iter().map(|(number, _)| *number).collect();
            let needed = u32::from(header.geometry.data_stored(0));
            let is_readable = numbers.len() as u32 >= needed && except != Some(encode::layout(header));
            let stands =
                placement::on_drives_of_their_own(found) as u32 >= needed + self.spare_of(&header.geometry);
            let is_aimed = aim.is_some_and(|aim| aim.has_form_of(&header.geometry));
            is_readable.then_some((stands, stands && is_aimed, numbers.len(), header))
        });
        if let Some((.., header)) = readable.max() {
            let object = Object::new(name, *header);
            *object.elsewhere.borrow_mut() = Some(Rc::new(found));
            return Ok(object);
        }
        Err(self.absent(name, &found, puts.keys()))
    }

    /// What it means that too little of an object is there to read it.
    fn absent<'a>(
        &self,
        name: &ObjectName,
        found: &Found,
        headers: impl Iterator<Item = &'a Header> + Clone,
    ) -> BackendError {
        let unheard = self.unheard(&found.silent);
        if found.fragments.is_empty() && unheard <= self.unheard_max() {
            let object = name.to_string();
            let reason = "fragments of it were begun".to_owned();
            return match found.is_begun {
                true => BackendError::Incomplete { object, reason, is_silent: found.is_anything_silent() },
                false => BackendError::NotFound { object },
            };
        }
        if found.fragments.is_empty() || !found.silent.is_empty() {
            let reason = found.failure.clone().unwrap_or_default();
            let drives = self.drives().len();
            let reason = format!("{unheard} of {drives} drives are lost or do not answer: {reason}");
            return BackendError::Retry { operation: "get", object: name.to_string(), reason };
        }
        // A put that was acknowledged had left so many fragments of the first chunk, good or bad, here and on lost drives.
        let layouts: BTreeSet<u32> = found.fragments.keys().map(|place| place.layout).collect();
        let mut reason = String::new();
        for layout in layouts {
            let there = found.fragments.keys().filter(|place| place.layout == layout && place.chunk == 0);
            let there = there.count() as u32;
            let header = headers.clone().find(|header| encode::layout(header) == layout);
            let acknowledged = header.map_or(1 + self.unheard_max(), |header| {
                u32::from(header.geometry.data_stored(0)) + self.spare_of(&header.geometry)
            });
            reason = format!(
                "{there} fragments of its first chunk are there, {unheard} drives are lost, {acknowledged} were acknowledged"
            );
            if there + unheard >= acknowledged {
                return self.lost(name, reason);
            }
        }
        let is_silent = found.is_anything_silent();
        BackendError::Incomplete { object: name.to_string(), reason, is_silent }
    }

    /// Fragments beyond those that it takes to read it which an object was acknowledged with, at least.
    pub(super) fn spare_of(&self, geometry: &Geometry) -> u32 {
        let is_it = |policy: &&Policy| (policy.data, policy.parity) == (geometry.data, geometry.parity);
        self.preset().all_policies().filter(is_it).map(Policy::spare).min().unwrap_or(0)
    }

    pub(super) fn lost(&self, name: &ObjectName, reason: String) -> BackendError {
        BackendError::Lost { object: name.to_string(), reason }
    }

    fn away(&self, index: usize, name: &ObjectName) -> BackendError {
        let reason = format!("drive {} has failed", self.drives()[index].id);
        BackendError::Retry { operation: "get", object: name.to_string(), reason }
    }

    /// Which drives have fragments of the object: as they list them. Nobody waits for those that fail.
    pub(super) async fn look(&self, name: &ObjectName) -> Found {
        let is_alone = self.drives().asked().all(|index| self.is_suspect(index));
        self.look_on(name, is_alone).await
    }

    /// Which drives have fragments of the object; those that have failed lately are asked, too, or count as silent.
    pub(super) async fn look_on(&self, name: &ObjectName, asks_suspects: bool) -> Found {
        let drives = self.drives();
        let lists =
            join_all(drives.asked().map(async |index| match self.is_suspect(index) && !asks_suspects {
                true => (index, Err(self.away(index, name))),
                false => (index, self.fragments_on(index, name).await),
            }));
        let mut found = Found::default();
        for (index, listed) in lists.await {
            match listed {
                Ok(fragments) => {
                    fragments
                        .into_iter()
                        .for_each(|place| found.fragments.entry(place).or_default().push(index));
                }
                Err(error) => {
                    found.silent.insert(index);
                    found.failure = Some(error.to_string());
                }
            }
        }
        found
    }

    /// The fragments of an object that a drive lists.
    pub(super) async fn fragments_on(
        &self,
        index: usize,
        name: &ObjectName,
    ) -> Result<Vec<Place>, BackendError> {
        let prefix = name::fragments_of(name);
        let (mut fragments, mut after, drives) = (Vec::new(), None, self.drives());
        loop {
            let page = drives[index].backend.list(&prefix, after.as_ref(), self.page);
            let listed = timed("list", &prefix, page).await;
            match &listed {
                Ok(_) => self.lists(index),
                Err(error) => self.fails(index, error),
            }
            let listed = listed?;
            after = listed.last().map(|info| info.name.clone());
            let is_last = listed.len() < self.page;
            let parsed = listed.into_iter().filter_map(|info| name::parse(&info.name));
            fragments.extend(parsed.filter(|(of, _)| of == name).map(|(_, place)| place));
            if is_last {
                return Ok(fragments);
            }
        }
    }

    pub(super) async fn read_from(
        &self,
        index: usize,
        name: &ObjectName,
        Place { layout, chunk, number }: Place,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, BackendError> {
        let own = name::fragment(name, layout, chunk, number)?;
        let drives = self.drives();
        let read = timed("get", own.as_str(), drives[index].backend.get_range(&own, offset, length)).await;
        match &read {
            Err(error @ BackendError::Retry { .. }) => self.fails(index, error),
            // Also one that has it no more, or of backends of which too few have it.
            _ => self.answers(index),
        }
        read
    }

    /// The drives to ask for a fragment: where somebody has seen it, or where it belongs. Those that fail are left out where
    /// parity tells the same.
    pub(super) fn places(&self, object: &Object, chunk: u32, fragment: u8, asks_all: bool) -> Vec<usize> {
        let elsewhere = object.elsewhere.borrow().clone();
        let seen = elsewhere.and_then(|found| found.fragments.get(&object.place(chunk, fragment)).cloned());
        let drives = self.drives();
        let seen = seen.map(|seen| seen.into_iter().filter(|index| drives[*index].duty.is_asked()).collect());
        let mut places: Vec<usize> = seen.unwrap_or_else(|| self.home(object, chunk, fragment));
        if !asks_all && object.geometry().parity > 0 {
            places.retain(|index| !self.is_suspect(*index));
        }
        places
    }

    /// The drive that a fragment belongs on, and the one before that is about to leave.
    fn home(&self, object: &Object, chunk: u32, fragment: u8) -> Vec<usize> {
        let (drives, homes) = self.homes(object, chunk);
        let place = place_of(object, chunk, fragment);
        homes.get(place).map_or_else(Vec::new, |home| home.places(&drives))
    }

    /// Where the fragments of a chunk belong, by their place among those that are stored.
    pub(super) fn homes(&self, object: &Object, chunk: u32) -> (Rc<Drives>, Vec<Home>) {
        let Geometry { data, parity, .. } = *object.geometry();
        let count = usize::from(object.geometry().data_stored(chunk)) + usize::from(parity);
        let drives = self.drives();
        let policy = self.policy_of(data, parity);
        let (homes, _) = placement::homes(&drives, &object.name, chunk, policy, count);
        (drives, homes)
    }

    /// The policy that an object was put with, as far as its header tells.
    pub(super) fn policy_of(&self, data: u8, parity: u8) -> Policy {
        let is_it = |policy: &&Policy| (policy.data, policy.parity) == (data, parity);
        let known = self.preset().all_policies().find(is_it).copied();
        known.unwrap_or(Policy { data, parity, acknowledged: data, per_node: u32::MAX })
    }
}

/// A fragment's place among those of its chunk that are stored.
pub(super) fn place_of(object: &Object, chunk: u32, fragment: u8) -> usize {
    let Geometry { data, .. } = *object.geometry();
    let stored = object.geometry().data_stored(chunk);
    usize::from(if fragment < data { fragment } else { stored.saturating_add(fragment - data) })
}
