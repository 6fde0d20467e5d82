//! Finding out what an object is and where its fragments are; and what it means that they are not there.

use super::encode::{self, name_hash};
use super::known::{Found, Object};
use super::name::Place;
use super::placement::{self, Choice};
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
        if let Some(first) = placement::order(&self.drives, name, 0).first().copied()
            && !self.is_suspect(first)
            && let Ok(bytes) = self.read_from(first, name, self.first_place(), 0, FIRST_BYTES).await
        {
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
                Err(_) => self.count(|stats| stats.bad_fragments += 1),
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
            let home = self.home(object, 0, number).filter(|home| !self.is_suspect(*home));
            let Some(home) = home else { return false };
            let header =
                self.read_from(home, &object.name, object.place(0, number), 0, HEADER_BYTES as u64).await;
            header.is_ok_and(|bytes| {
                Header::decode(&bytes).is_ok_and(|header| object.is_own(&header, 0, number))
            })
        }));
        headers.await.into_iter().all(|is_same| is_same)
    }

    fn check_first(
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
        let mut found = self.look(name).await;
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
                Ok(None) => self.count(|stats| stats.bad_fragments += 1),
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
                Err(_) => self.count(|stats| stats.bad_fragments += 1),
            }
        }
        // Of those that can be read; several can where a put was tried again under another policy, and of these one that stands
        // is still there when a drive is lost.
        let readable = puts.iter().filter_map(|(header, found)| {
            let numbers: BTreeSet<u8> = found.iter().map(|(number, _)| *number).collect();
            let needed = u32::from(header.geometry.data_stored(0));
            let is_readable = numbers.len() as u32 >= needed && except != Some(encode::layout(header));
            let stands =
                placement::on_drives_of_their_own(found) as u32 >= needed + self.spare_of(&header.geometry);
            is_readable.then_some((stands, numbers.len(), header))
        });
        if let Some((.., header)) = readable.max() {
            let object = self.known.borrow_mut().learn(Object::new(name, *header));
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
            let drives = self.drives.len();
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
    fn spare_of(&self, geometry: &Geometry) -> u32 {
        let is_it = |policy: &&Policy| (policy.data, policy.parity) == (geometry.data, geometry.parity);
        self.preset().all_policies().filter(is_it).map(Policy::spare).min().unwrap_or(0)
    }

    pub(super) fn lost(&self, name: &ObjectName, reason: String) -> BackendError {
        BackendError::Lost { object: name.to_string(), reason }
    }

    fn away(&self, index: usize, name: &ObjectName) -> BackendError {
        let reason = format!("drive {} has failed", self.drives[index].id);
        BackendError::Retry { operation: "get", object: name.to_string(), reason }
    }

    /// Which drives have fragments of the object: as they list them. Nobody waits for those that fail.
    pub(super) async fn look(&self, name: &ObjectName) -> Found {
        let is_alone = (0..self.drives.len()).all(|index| self.is_suspect(index));
        let lists =
            join_all((0..self.drives.len()).map(async |index| match self.is_suspect(index) && !is_alone {
                true => Err(self.away(index, name)),
                false => self.fragments_on(index, name).await,
            }));
        let lists = lists.await;
        let mut found = Found::default();
        for (index, listed) in lists.into_iter().enumerate() {
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
        let (mut fragments, mut after) = (Vec::new(), None);
        loop {
            let page = self.drives[index].backend.list(&prefix, after.as_ref(), self.page);
            let listed = timed("list", &prefix, page).await;
            match &listed {
                Ok(_) => self.answers(index),
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
        let read =
            timed("get", own.as_str(), self.drives[index].backend.get_range(&own, offset, length)).await;
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
        let mut places = seen.unwrap_or_else(|| self.home(object, chunk, fragment).into_iter().collect());
        if !asks_all && object.geometry().parity > 0 {
            places.retain(|index| !self.is_suspect(*index));
        }
        places
    }

    /// The drive that a fragment belongs on.
    fn home(&self, object: &Object, chunk: u32, fragment: u8) -> Option<usize> {
        let Geometry { data, parity, .. } = *object.geometry();
        let stored = object.geometry().data_stored(chunk);
        let place = if fragment < data { fragment } else { stored + (fragment - data) };
        let order = placement::order(&self.drives, &object.name, chunk);
        let mut choice = Choice::new(&self.drives, &order, self.policy_of(data, parity));
        let mut homes = std::iter::from_fn(|| choice.next(|_| true));
        homes.nth(place.into())
    }

    /// The policy that an object was put with, as far as its header tells.
    fn policy_of(&self, data: u8, parity: u8) -> Policy {
        let is_it = |policy: &&Policy| (policy.data, policy.parity) == (data, parity);
        let known = self.preset().all_policies().find(is_it).copied();
        known.unwrap_or(Policy { data, parity, acknowledged: data, per_node: u32::MAX })
    }
}
