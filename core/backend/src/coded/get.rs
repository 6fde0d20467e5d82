//! Reading: one range of one fragment where all is well; the same range of k others where it is not.

use super::encode::{self, name_hash};
use super::name::Place;
use super::placement::{self, Choice};
use super::{FRAME_BYTES, Inner, Policy, frames, name, parity, timed};
use crate::{BackendError, ObjectName};
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use ovs_format::fragment::{FrameEntry, Geometry, HEADER_BYTES, Header, Position};
use ovs_units::PutId;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Range,
    rc::Rc,
};
use uuid::Uuid;

/// Objects that are known without asking, at most.
const KNOWN_MAX: usize = 4096;
/// Read of a fragment first: its header, and the index of a fragment of 4 MiB.
const FIRST_BYTES: u64 = HEADER_BYTES as u64 + (4 << 20) / FRAME_BYTES as u64 * 8 + 4;

/// What is known of objects; all of it can be found out again.
#[derive(Default)]
pub(super) struct Known {
    objects: HashMap<ObjectName, Rc<Object>>,
    /// In the order in which they came.
    order: VecDeque<ObjectName>,
}

/// The frames of a data fragment.
type Index = Rc<[FrameEntry]>;

/// One object.
pub(super) struct Object {
    name: ObjectName,
    /// What every fragment's header says, chunk and number apart.
    template: Header,
    layout: u32,
    indexes: RefCell<HashMap<(u32, u8), Index>>,
    /// Drives of fragments that are not where they belong, once somebody has looked.
    elsewhere: RefCell<Option<Rc<Found>>>,
}

/// Which drives have which fragments.
#[derive(Default)]
struct Found {
    fragments: BTreeMap<Place, Vec<usize>>,
    /// Drives that did not answer.
    silent: u32,
    /// What one of them said.
    failure: Option<BackendError>,
}

impl Known {
    pub(super) fn learn(&mut self, object: Object) -> Rc<Object> {
        let object = Rc::new(object);
        let name = &object.name;
        if self.objects.insert(name.clone(), Rc::clone(&object)).is_none() {
            self.order.push_back(name.clone());
            if self.order.len() > KNOWN_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.objects.remove(&oldest);
            }
        }
        object
    }

    pub(super) fn forget(&mut self, name: &ObjectName) {
        if self.objects.remove(name).is_some() {
            self.order.retain(|known| known != name);
        }
    }
}

impl Object {
    pub(super) fn new(name: &ObjectName, template: Header) -> Object {
        let layout = encode::layout(&template);
        Object {
            name: name.clone(),
            template,
            layout,
            indexes: RefCell::default(),
            elsewhere: RefCell::default(),
        }
    }

    fn place(&self, chunk: u32, number: u8) -> Place {
        Place { layout: self.layout, chunk, number }
    }

    fn geometry(&self) -> &Geometry {
        &self.template.geometry
    }

    fn header(&self, chunk: u32, fragment: u8) -> Header {
        Header { chunk, fragment, ..self.template }
    }

    /// Is this the header of a fragment of the same put?
    fn is_own(&self, found: &Header, chunk: u32, fragment: u8) -> bool {
        let Header { body_bytes, body_checksum, .. } = *found;
        *found == Header { body_bytes, body_checksum, ..self.header(chunk, fragment) }
    }
}

impl Inner {
    pub(super) async fn get(&self, name: &ObjectName) -> Result<Bytes, BackendError> {
        // Asked anew: another host may have deleted it.
        self.known.borrow_mut().forget(name);
        self.get_range(name, 0, u64::MAX).await
    }

    pub(super) async fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, BackendError> {
        let known = self.known.borrow().objects.get(name).cloned();
        let object = match known {
            Some(object) => object,
            None => self.find(name).await?,
        };
        let end = offset.saturating_add(length).min(object.geometry().object_bytes);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let pieces = join_all(
            pieces(object.geometry(), offset..end).into_iter().map(|piece| self.read(&object, piece)),
        );
        let mut read = pieces.await;
        if let [only] = &mut read[..] {
            return std::mem::replace(only, Ok(Bytes::new()));
        }
        let mut bytes = BytesMut::with_capacity((end - offset) as usize);
        for piece in read {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes.freeze())
    }

    /// What lies in one data fragment.
    async fn read(&self, object: &Rc<Object>, piece: Piece) -> Result<Bytes, BackendError> {
        let plain = match self.read_fragment(object, &piece).await {
            Ok(plain) => plain,
            Err(reason) => {
                tracing::debug!(object = %object.name, chunk = piece.chunk, fragment = piece.fragment, %reason, "read from parity");
                self.count(|stats| stats.reconstructed += 1);
                self.reconstruct(object, &piece).await?
            }
        };
        let first = object.geometry().frame_range(piece.at(piece.frames.start)).start;
        Ok(Bytes::from(plain)
            .slice((piece.wanted.start - first) as usize..(piece.wanted.end - first) as usize))
    }

    /// The frames as their own fragment has them.
    async fn read_fragment(&self, object: &Rc<Object>, piece: &Piece) -> Result<Vec<u8>, String> {
        let Piece { chunk, fragment, .. } = *piece;
        let known = object.indexes.borrow().get(&(chunk, fragment)).cloned();
        let (index, at, begun) = match known {
            Some(index) => (index, None, Bytes::new()),
            None => self.read_index(object, chunk, fragment).await?,
        };
        let entries = &index[piece.frames.start as usize..piece.frames.end as usize];
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(Vec::new()) };
        let from = HEADER_BYTES as u64 + first.offset;
        let length = last.offset + u64::from(last.stored_bytes) - first.offset;
        // The first read of a small fragment has brought all of it.
        let stored = match (from + length) as usize <= begun.len() {
            true => begun.slice(from as usize..(from + length) as usize),
            false => self.read_somewhere(object, chunk, fragment, at, from, length).await?,
        };
        let header = object.header(chunk, fragment);
        let opened = self.open(header, piece.clone(), entries.to_vec(), stored).await;
        opened.inspect_err(|_| self.count(|stats| stats.bad_fragments += 1))
    }

    /// Verifies frames that lie one behind the other.
    async fn open(
        &self,
        header: Header,
        piece: Piece,
        entries: Vec<FrameEntry>,
        stored: Bytes,
    ) -> Result<Vec<u8>, String> {
        let first = entries.first().map_or(0, |entry| entry.offset);
        let bytes = stored.len() as u64;
        let opened = self.compute(bytes, move |preset| {
            let key = match header.key {
                0 => None,
                number => match preset.key(number) {
                    Some(key) => Some(key.of_put(&header.name, header.put)),
                    None => return Err(format!("key {number} is not there")),
                },
            };
            let mut plain = Vec::with_capacity(entries.len() * header.geometry.frame_bytes as usize);
            for (frame, entry) in piece.frames.clone().zip(&entries) {
                let at = piece.at(frame);
                let begin = (entry.offset - first) as usize;
                let end = (begin + entry.stored_bytes as usize).min(stored.len());
                let stored = stored.get(begin..end).unwrap_or_default();
                frames::open(&header, key.as_ref(), at, entry, stored, &mut plain)
                    .map_err(|reason| format!("frame {frame}: {reason}"))?;
            }
            Ok(plain)
        });
        opened.await.map_err(|error| error.to_string())?
    }

    /// The index of a data fragment, the drive that has it, and what was read with it.
    async fn read_index(
        &self,
        object: &Rc<Object>,
        chunk: u32,
        fragment: u8,
    ) -> Result<(Rc<[FrameEntry]>, Option<usize>, Bytes), String> {
        let mut reasons = Vec::new();
        for index in self.places(object, chunk, fragment, false).await {
            let length = (HEADER_BYTES + object.geometry().index_bytes(chunk, fragment)) as u64;
            match self
                .read_from(index, &object.name, object.place(chunk, fragment), 0, length.max(FIRST_BYTES))
                .await
            {
                Ok(bytes) => match self.check_index(object, chunk, fragment, &bytes) {
                    Ok(entries) => {
                        let entries: Rc<[FrameEntry]> = entries.into();
                        object.indexes.borrow_mut().insert((chunk, fragment), Rc::clone(&entries));
                        return Ok((entries, Some(index), bytes));
                    }
                    Err(reason) => {
                        self.count(|stats| stats.bad_fragments += 1);
                        reasons.push(reason);
                    }
                },
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(reasons.join("; "))
    }

    fn check_index(
        &self,
        object: &Object,
        chunk: u32,
        fragment: u8,
        bytes: &[u8],
    ) -> Result<Vec<FrameEntry>, String> {
        let header = Header::decode(bytes).map_err(|error| error.to_string())?;
        if !object.is_own(&header, chunk, fragment) {
            return Err("it is another fragment".to_owned());
        }
        header.decode_index(fragment, &bytes[HEADER_BYTES..]).map_err(|error| error.to_string())
    }

    /// Bytes of a fragment from the drive that is known to have it, or whichever has.
    async fn read_somewhere(
        &self,
        object: &Rc<Object>,
        chunk: u32,
        fragment: u8,
        at: Option<usize>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, String> {
        let places = match at {
            Some(index) => vec![index],
            None => self.places(object, chunk, fragment, false).await,
        };
        let mut reasons = Vec::new();
        for index in places {
            match self.read_from(index, &object.name, object.place(chunk, fragment), offset, length).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(reasons.join("; "))
    }

    async fn read_from(
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
            Ok(_) | Err(BackendError::NotFound { .. }) => self.answers(index),
            Err(error) => self.fails(index, error),
        }
        read
    }

    /// The drives to ask for a fragment: where somebody has seen it, or where it belongs. Those that fail are left out where
    /// parity tells the same.
    async fn places(&self, object: &Object, chunk: u32, fragment: u8, asks_all: bool) -> Vec<usize> {
        let elsewhere = object.elsewhere.borrow().clone();
        let seen = elsewhere.and_then(|found| {
            found.fragments.get(&Place { layout: object.layout, chunk, number: fragment }).cloned()
        });
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
        let known = self.preset.policies.iter().find(is_it).copied();
        known.unwrap_or(Policy { data, parity, acknowledged: data, per_node: u32::MAX })
    }

    /// Finds out what an object is: from the fragment that comes first, if others agree (it may be of an older put that
    /// somebody has brought back), or from whatever there is of it.
    async fn find(&self, name: &ObjectName) -> Result<Rc<Object>, BackendError> {
        if let Some(first) = placement::order(&self.drives, name, 0).first().copied()
            && !self.is_suspect(first)
            && let Ok(bytes) = self.read_from(first, name, self.first_place(), 0, FIRST_BYTES).await
        {
            match self.check_first(name, 0, 0, &bytes) {
                Ok(header) => {
                    let object = Object::new(name, header);
                    if let Ok(entries) = header.decode_index(0, &bytes[HEADER_BYTES..]) {
                        object.indexes.borrow_mut().insert((0, 0), entries.into());
                    }
                    if self.is_confirmed(&object).await {
                        return Ok(self.known.borrow_mut().learn(object));
                    }
                }
                Err(_) => self.count(|stats| stats.bad_fragments += 1),
            }
        }
        self.find_anywhere(name).await
    }

    /// Where what was put under the first policy begins.
    fn first_place(&self) -> Place {
        let layout = encode::layout(&encode::template(
            &self.preset,
            [0; 16],
            PutId(Uuid::nil()),
            self.preset.policies[0],
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
            && (header.key == 0) == self.preset.keys.is_empty();
        is_it.then_some(header).ok_or_else(|| "it is another object's".to_owned())
    }

    /// Asks all drives.
    async fn find_anywhere(&self, name: &ObjectName) -> Result<Rc<Object>, BackendError> {
        let found = self.look(name).await;
        let first_chunk = found.fragments.iter().filter(|(place, _)| place.chunk == 0);
        let wanted = first_chunk.flat_map(|(place, drives)| drives.iter().map(|drive| (*place, *drive)));
        let headers = join_all(wanted.map(async |(place, drive)| {
            let bytes = self.read_from(drive, name, place, 0, HEADER_BYTES as u64).await?;
            let header = self.check_first(name, 0, place.number, &bytes).ok();
            Ok::<_, BackendError>(header.filter(|header| encode::layout(header) == place.layout))
        }));
        let mut puts: BTreeMap<Header, BTreeSet<u8>> = BTreeMap::new();
        let mut silent = found.silent;
        let mut failure = found.failure.clone();
        for header in headers.await {
            match header {
                Ok(Some(header)) => {
                    let fragment = header.fragment;
                    let key = Header { fragment: 0, body_bytes: 0, body_checksum: 0, ..header };
                    puts.entry(key).or_default().insert(fragment);
                }
                Ok(None) => self.count(|stats| stats.bad_fragments += 1),
                Err(error) => {
                    silent += 1;
                    failure = Some(error);
                }
            }
        }
        let is_enough = |(header, fragments): &(Header, BTreeSet<u8>)| {
            fragments.len() >= header.geometry.data_stored(0).into()
        };
        // Of those that can be read, if any can; several can where a put was tried again under another policy.
        let most = puts.into_iter().max_by_key(|put| (is_enough(put), put.1.len()));
        if let Some((header, _)) = most.as_ref().filter(|put| is_enough(put)) {
            let object = self.known.borrow_mut().learn(Object::new(name, *header));
            *object.elsewhere.borrow_mut() = Some(Rc::new(found));
            return Ok(object);
        }
        if silent > self.silent_max() || (silent > 0 && !found.fragments.is_empty()) {
            let reason = failure.map_or_else(String::new, |error| error.to_string());
            return Err(BackendError::Retry {
                operation: "get",
                object: name.to_string(),
                reason: format!("{silent} of {} drives do not answer: {reason}", self.drives.len()),
            });
        }
        Err(match most {
            None if found.fragments.is_empty() => BackendError::NotFound { object: name.to_string() },
            None => self.incomplete(name, "no fragment of its first chunk is whole".to_owned()),
            Some((header, fragments)) => {
                let needed = header.geometry.data_stored(0);
                self.incomplete(
                    name,
                    format!("{} fragments of {needed} that are needed are there", fragments.len()),
                )
            }
        })
    }

    fn away(&self, index: usize, name: &ObjectName) -> BackendError {
        let reason = format!("drive {} has failed", self.drives[index].id);
        BackendError::Retry { operation: "get", object: name.to_string(), reason }
    }

    fn incomplete(&self, name: &ObjectName, reason: String) -> BackendError {
        BackendError::Incomplete { object: name.to_string(), reason }
    }

    /// Which drives have fragments of the object: as they list them. Nobody waits for those that fail.
    async fn look(&self, name: &ObjectName) -> Found {
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
                    found.silent += 1;
                    found.failure = Some(error);
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

    /// The frames as k other fragments of the chunk tell them.
    async fn reconstruct(&self, object: &Rc<Object>, piece: &Piece) -> Result<Vec<u8>, BackendError> {
        let mut reasons = Vec::new();
        // Where they belong first; then wherever they are, every body as a whole.
        for is_whole in [false, true] {
            if is_whole {
                let found = self.look(&object.name).await;
                *object.elsewhere.borrow_mut() = Some(Rc::new(found));
                object.indexes.borrow_mut().retain(|place, _| *place != (piece.chunk, piece.fragment));
                if let Ok(plain) = self.read_fragment(object, piece).await {
                    return Ok(plain);
                }
            }
            match self.reconstruct_from(object, piece, is_whole).await {
                Ok(plain) => return Ok(plain),
                Err(reason) => reasons.push(reason),
            }
        }
        let elsewhere = object.elsewhere.borrow().clone();
        let reason = reasons.pop().unwrap_or_default();
        match elsewhere.filter(|found| found.silent > 0) {
            Some(found) => Err(BackendError::Retry {
                operation: "get",
                object: object.name.to_string(),
                reason: format!("{reason}; {} drives do not answer", found.silent),
            }),
            None => {
                self.known.borrow_mut().forget(&object.name);
                Err(self.incomplete(&object.name, reason))
            }
        }
    }

    async fn reconstruct_from(
        &self,
        object: &Rc<Object>,
        piece: &Piece,
        is_whole: bool,
    ) -> Result<Vec<u8>, String> {
        let Piece { chunk, fragment, .. } = *piece;
        let geometry = *object.geometry();
        let header = object.header(chunk, fragment);
        let stored = geometry.data_stored(chunk);
        let numbers = (0..stored).chain(geometry.data..geometry.data + geometry.parity);
        let sources = join_all(numbers.map(|number| self.source(object, chunk, number, is_whole))).await;
        let (sources, errors): (Vec<_>, Vec<_>) = sources.into_iter().partition(Result::is_ok);
        let mut sources: Vec<Source> = sources.into_iter().filter_map(Result::ok).collect();
        if !is_whole {
            sources.retain(|source| source.number != fragment);
        }
        let needed = usize::from(stored);
        if sources.len() < needed {
            let errors: Vec<String> = errors.into_iter().filter_map(Result::err).collect();
            return Err(format!(
                "{} fragments of {needed} that are needed are there: {}",
                sources.len(),
                errors.join("; ")
            ));
        }
        sources.truncate(needed);
        let index_bytes = geometry.index_bytes(chunk, fragment) as u64;
        let index = self.range_of(object, chunk, fragment, &sources, 0..index_bytes).await?;
        let entries = header.decode_index(fragment, &index).map_err(|error| error.to_string())?;
        let entries = entries[piece.frames.start as usize..piece.frames.end as usize].to_vec();
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(Vec::new()) };
        let range = first.offset..last.offset + u64::from(last.stored_bytes);
        let bytes = self.range_of(object, chunk, fragment, &sources, range).await?;
        self.open(header, piece.clone(), entries, bytes.into()).await
    }

    /// A fragment to make others from: its header is verified, and its body if all of it is read.
    async fn source(
        &self,
        object: &Rc<Object>,
        chunk: u32,
        number: u8,
        is_whole: bool,
    ) -> Result<Source, String> {
        let mut reasons = Vec::new();
        for drive in self.places(object, chunk, number, is_whole).await {
            let length = if is_whole { u64::MAX } else { HEADER_BYTES as u64 };
            let bytes =
                match self.read_from(drive, &object.name, object.place(chunk, number), 0, length).await {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        reasons.push(error.to_string());
                        continue;
                    }
                };
            let header = Header::decode(&bytes);
            let is_good = |header: &Header| {
                object.is_own(header, chunk, number)
                    && (!is_whole
                        || (bytes.len() == HEADER_BYTES + header.body_bytes as usize
                            && ovs_format::checksum(&bytes[HEADER_BYTES..]) == header.body_checksum))
            };
            match header {
                Ok(header) if is_good(&header) => {
                    let body = is_whole.then(|| bytes.slice(HEADER_BYTES..));
                    return Ok(Source { number, drive, body_bytes: header.body_bytes.into(), body });
                }
                Ok(_) => reasons.push(format!("fragment {chunk}.{number} is not what it should be")),
                Err(error) => reasons.push(error.to_string()),
            }
            self.count(|stats| stats.bad_fragments += 1);
        }
        Err(reasons.join("; "))
    }

    /// A range of a data fragment's body from the same range of others.
    async fn range_of(
        &self,
        object: &Rc<Object>,
        chunk: u32,
        fragment: u8,
        sources: &[Source],
        range: Range<u64>,
    ) -> Result<Vec<u8>, String> {
        let geometry = *object.geometry();
        let length = (range.end - range.start) as usize;
        let read = join_all(sources.iter().map(async |source| {
            let end = range.end.min(source.body_bytes);
            let bytes = match &source.body {
                _ if range.start >= end => Bytes::new(),
                Some(body) => body.slice(range.start as usize..end as usize),
                None => {
                    let from = HEADER_BYTES as u64 + range.start;
                    let read = self.read_from(
                        source.drive,
                        &object.name,
                        object.place(chunk, source.number),
                        from,
                        end - range.start,
                    );
                    read.await.map_err(|error| error.to_string())?
                }
            };
            if bytes.len() as u64 != end.saturating_sub(range.start) {
                return Err(format!("fragment {chunk}.{} ends too early", source.number));
            }
            let mut padded = bytes.to_vec();
            padded.resize(length, 0);
            Ok((source.number, padded))
        }));
        let stored = geometry.data_stored(chunk);
        let mut known = vec![None; usize::from(geometry.data) + usize::from(geometry.parity)];
        // What a short chunk has no fragments for counts as zeros.
        known[stored.into()..geometry.data.into()]
            .iter_mut()
            .for_each(|empty| *empty = Some(vec![0; length]));
        for read in read.await {
            let (number, bytes) = read?;
            known[usize::from(number)] = Some(bytes);
        }
        let made = self.compute(length as u64 * known.len() as u64, move |_| {
            parity::reconstruct(&known, geometry.data, fragment)
        });
        let made = made.await.map_err(|error| error.to_string())?;
        made.ok_or_else(|| "too few fragments".to_owned())
    }
}

/// A fragment that others can be made from.
struct Source {
    number: u8,
    drive: usize,
    body_bytes: u64,
    /// All of it, verified, if it was read.
    body: Option<Bytes>,
}

/// Bytes of an object that lie in one data fragment.
#[derive(Debug, Clone)]
struct Piece {
    chunk: u32,
    fragment: u8,
    frames: Range<u32>,
    /// In the object.
    wanted: Range<u64>,
}

impl Piece {
    fn at(&self, frame: u32) -> Position {
        Position { chunk: self.chunk, fragment: self.fragment, frame }
    }
}

/// Cuts a range at fragments.
fn pieces(geometry: &Geometry, range: Range<u64>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut from = range.start;
    while from < range.end {
        let Position { chunk, fragment, frame } = geometry.position(from);
        let to = geometry.fragment_range(chunk, fragment).end.min(range.end);
        let last = geometry.position(to - 1).frame;
        pieces.push(Piece { chunk, fragment, frames: frame..last + 1, wanted: from..to });
        from = to;
    }
    pieces
}
