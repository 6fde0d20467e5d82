//! Mending one object: what is missing is made again from parity, what lies wrongly is moved, and what is not needed any more goes
//! when its successors were read back and nobody reads it.

use super::encode::{self, Fragment};
use super::known::{Found, Object};
use super::name::Place;
use super::on_their_way::PutAtWork;
use super::put::Put;
use super::reconstruct::has_body;
use super::survey::{fragments_of, numbers, pairs};
use super::{Inner, name, parity, placement, timed};
use crate::{BackendError, ObjectName, Urgency};
use bytes::Bytes;
use futures_util::future::join_all;
use ovs_direct_io::Buffer;
use ovs_format::fragment::{HEADER_BYTES, Header};
use ovs_units::planted;
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};
use tokio::time::timeout;

/// A chunk is planned anew so often, when fragments turn out to be bad or drives to be full.
const ATTEMPTS: usize = 8;
/// Who reads is waited for so long.
const READERS_END: Duration = Duration::from_secs(150);

impl Inner {
    /// Mends an object. False: there was nothing to do.
    pub(super) async fn mend(self: &Rc<Self>, name: &ObjectName) -> Result<bool, BackendError> {
        self.on_their_way.is_put(name).await;
        // From here on a delete waits: what it removed would be put again.
        let _at_work = PutAtWork::new(self, name);
        if self.on_their_way.is_being_deleted(name) {
            return Ok(false);
        }
        let generation = self.drives().generation;
        let is_suspicious = self.upkeep.suspicious.borrow().contains(name);
        let Some((mut object, mut found)) = self.as_it_lies(name, is_suspicious).await? else {
            return Ok(false);
        };
        let (mut is_changed, mut failure) = (false, None);
        if self.is_another_form(&object) && found.silent.is_empty() {
            match self.upkeep.paced(self.put_again(&object)).await {
                Ok(()) => {
                    let Some(again) = self.as_it_lies(name, is_suspicious).await? else { return Ok(false) };
                    (object, found) = again;
                    is_changed = true;
                }
                // It stays what it is, and is mended as that.
                Err(error) => failure = Some(error),
            }
        }
        let mended = match self.mend_form(&object, &found, is_suspicious).await {
            // What its headers say that it is cannot be read: another form of it takes its place, or stays for as long as that takes.
            Err(BackendError::Lost { .. })
                if found.fragments.keys().any(|place| place.layout != object.layout()) =>
            {
                let other = Rc::new(self.find_among(name, found.clone(), Some(object.layout())).await?);
                self.mend_form(&other, &found, is_suspicious).await?;
                self.upkeep.paced(self.put_again(&other)).await?;
                return Ok(true);
            }
            mended => mended?,
        };
        is_changed |= mended.is_changed;
        let mut extra = mended.extra;
        // What an earlier put has left, or one under another policy.
        if mended.stands && !self.is_another_form(&object) && found.silent.is_empty() {
            let others = found.fragments.iter().filter(|(place, _)| place.layout != object.layout());
            extra.extend(others.flat_map(|(place, drives)| drives.iter().map(|drive| (*drive, *place))));
        }
        if !extra.is_empty() {
            let retry = |reason: &str| {
                let object = name.to_string();
                Err(BackendError::Retry { operation: "mend", object, reason: reason.to_owned() })
            };
            if !planted("drives: what is there twice goes while somebody reads it")
                && timeout(READERS_END, self.removals.readers_are_done()).await.is_err()
            {
                return retry(
                    "somebody reads for very long: what is not needed any more cannot be removed yet",
                );
            }
            // Nothing lies between this and the removal but the time that it takes.
            if !planted("drives: what stays is not read back") {
                self.upkeep.paced(self.check_successors(&object, &extra)).await?;
            }
            if self.drives().generation != generation {
                return retry("drives have changed meanwhile");
            }
            self.upkeep.paced(self.remove(name, extra)).await?;
            is_changed = true;
        }
        self.known.borrow_mut().forget(name);
        match failure {
            Some(error) => Err(error),
            None => {
                match is_suspicious {
                    true if mended.is_all_read && found.silent.is_empty() => self.upkeep.is_cleared(name),
                    true => self.upkeep.is_cleared_in_part(name),
                    false => {}
                }
                Ok(is_changed)
            }
        }
    }

    /// Not what the drives would take now.
    fn is_another_form(&self, object: &Object) -> bool {
        self.aim().is_some_and(|aim| !aim.has_form_of(object.geometry()))
    }

    /// All chunks of one form of an object.
    async fn mend_form(
        self: &Rc<Self>,
        object: &Rc<Object>,
        found: &Found,
        reads_all: bool,
    ) -> Result<MendedForm, BackendError> {
        let mut form = MendedForm { extra: Vec::new(), is_changed: false, stands: true, is_all_read: true };
        for chunk in 0..object.geometry().chunks() {
            let work = self.mend_chunk(object, chunk, found, reads_all);
            let done = self.upkeep.paced(work).await?;
            form.is_changed |= done.is_changed;
            form.stands &= done.stands;
            form.is_all_read &= done.is_all_read;
            form.extra
                .extend(done.extra.into_iter().map(|(number, drive)| (drive, object.place(chunk, number))));
        }
        Ok(form)
    }

    /// Under the policy that the drives satisfy now.
    async fn put_again(self: &Rc<Self>, object: &Rc<Object>) -> Result<(), BackendError> {
        let bytes = self.read_range(object, 0, u64::MAX).await?;
        let put = |why| Rc::clone(self).put(object.name.clone(), vec![bytes.clone()], why);
        match put(Put::New(Urgency::Reserve)).await {
            // By a version that compresses to other bytes.
            Err(BackendError::Conflict { .. }) => put(Put::Again).await,
            done => done,
        }
    }

    /// Puts what has to be put. What is not needed then is left to the caller.
    async fn mend_chunk(
        self: &Rc<Self>,
        object: &Rc<Object>,
        chunk: u32,
        found: &Found,
        reads_all: bool,
    ) -> Result<Mended, BackendError> {
        let mut there = fragments_of(object, chunk, found);
        let mut bad: BTreeSet<(u8, usize)> = BTreeSet::new();
        let mut is_all_read = true;
        if reads_all {
            let pairs = pairs(&there);
            let read =
                join_all(pairs.iter().map(|(number, drive)| self.read_body(object, chunk, *number, *drive)));
            for (pair, body) in pairs.iter().zip(read.await) {
                if let Err(NoBody { is_answered }) = body {
                    is_all_read &= is_answered;
                    forget(&mut there, *pair);
                    bad.insert(*pair);
                }
            }
        }
        let (mut is_changed, mut failure, mut taken) = (false, None, BTreeSet::new());
        for _ in 0..ATTEMPTS {
            let plan = self.plan_of(object, chunk, &there, (&bad, &taken), &found.silent);
            if plan.makes.is_empty() {
                // What could not be put is not where it should be.
                if let Some(failure) = failure {
                    return Err(failure);
                }
                let mended = self.mended(object, chunk, &there, plan.extra, is_changed);
                return Ok(Mended { is_all_read, ..mended });
            }
            let wanted: BTreeSet<u8> = plan.makes.iter().map(|(number, _)| *number).collect();
            let fragments = match self.make(object, chunk, &there, wanted).await? {
                Made::Fragments(fragments) => fragments,
                Made::Bad(pairs) => {
                    for pair in pairs {
                        forget(&mut there, pair);
                        bad.insert(pair);
                    }
                    continue;
                }
            };
            let puts = join_all(plan.makes.iter().filter_map(|(number, to)| {
                let fragment = fragments.iter().find(|fragment| fragment.number == *number)?;
                let is_elsewhere = there.contains_key(number);
                Some(async move {
                    let put = self.put_there(object, chunk, fragment, (*to, is_elsewhere)).await;
                    (*number, *to, put, fragment.bytes.len() as u64)
                })
            }));
            let mut is_all_put = true;
            for (number, to, put, bytes) in puts.await {
                match put {
                    Ok(()) => {
                        is_changed = true;
                        self.answers(to);
                        self.upkeep.progress.borrow_mut().bytes_mended += bytes;
                        bad.remove(&(number, to));
                        there.entry(number).or_default().push(to);
                    }
                    // Under its name there is another's.
                    Err(error @ BackendError::Conflict { .. }) => {
                        taken.insert(to);
                        (failure, is_all_put) = (Some(error), false);
                    }
                    Err(error @ BackendError::NoSpace { .. }) => {
                        self.upkeep.full.borrow_mut().insert(to);
                        (failure, is_all_put) = (Some(error), false);
                    }
                    Err(error) => {
                        self.fails(to, &error);
                        (failure, is_all_put) = (Some(error), false);
                    }
                }
            }
            if is_all_put {
                let mended = self.mended(object, chunk, &there, plan.extra, is_changed);
                return Ok(Mended { is_all_read, ..mended });
            }
        }
        let reason = "its fragments cannot be put where they should be".to_owned();
        let name = object.name.to_string();
        Err(failure.unwrap_or(BackendError::Retry { operation: "mend", object: name, reason }))
    }

    fn mended(
        &self,
        object: &Object,
        chunk: u32,
        there: &BTreeMap<u8, Vec<usize>>,
        extra: Vec<(u8, usize)>,
        is_changed: bool,
    ) -> Mended {
        let needed =
            usize::from(object.geometry().data_stored(chunk)) + self.spare_of(object.geometry()) as usize;
        let own = placement::on_drives_of_their_own(&pairs(there));
        Mended { extra, is_changed, stands: own >= needed, is_all_read: true }
    }

    async fn put_there(
        self: &Rc<Self>,
        object: &Object,
        chunk: u32,
        fragment: &Fragment,
        (to, is_elsewhere): (usize, bool),
    ) -> Result<(), BackendError> {
        let own = name::fragment(&object.name, object.layout(), chunk, fragment.number)?;
        match self.put_on(to, &object.name, &own, fragment.bytes.clone(), Urgency::Reserve).await {
            Err(BackendError::Conflict { .. }) => {
                self.replace_rotten(to, (&object.name, chunk), &own, fragment, is_elsewhere).await
            }
            put => put,
        }
    }

    /// The body of a fragment, there to stay; nothing where it is bad or gone, or cannot be read by a drive that lists it.
    async fn body(&self, object: &Object, chunk: u32, number: u8, drive: usize) -> Option<Bytes> {
        self.read_body(object, chunk, number, drive).await.ok()
    }

    async fn read_body(
        &self,
        object: &Object,
        chunk: u32,
        number: u8,
        drive: usize,
    ) -> Result<Bytes, NoBody> {
        const NOT_GOOD: NoBody = NoBody { is_answered: true };
        let own = name::fragment(&object.name, object.layout(), chunk, number).map_err(|_| NOT_GOOD)?;
        let drives = self.drives();
        let read = timed("get", own.as_str(), drives[drive].backend.get_lasting(&own)).await;
        let bytes = read.map_err(|error| {
            let is_answered = !matches!(error, BackendError::Retry { .. });
            if !is_answered {
                self.fails(drive, &error);
            }
            NoBody { is_answered }
        })?;
        let header = Header::decode(&bytes).map_err(|_| NOT_GOOD)?;
        let is_good = object.is_own(&header, chunk, number) && has_body(&header, &bytes);
        is_good.then(|| bytes.slice(HEADER_BYTES..)).ok_or(NOT_GOOD)
    }

    /// These fragments of a chunk: as they are somewhere, or else made of others.
    async fn make(
        &self,
        object: &Rc<Object>,
        chunk: u32,
        there: &BTreeMap<u8, Vec<usize>>,
        wanted: BTreeSet<u8>,
    ) -> Result<Made, BackendError> {
        let geometry = *object.geometry();
        let is_there = |number: &u8| there.contains_key(number);
        let sources: Vec<u8> = if wanted.iter().all(is_there) {
            wanted.iter().copied().collect()
        } else {
            numbers(object, chunk).filter(is_there).take(geometry.data_stored(chunk).into()).collect()
        };
        let read = join_all(sources.iter().map(async |number| {
            let mut bad = Vec::new();
            for drive in &there[number] {
                match self.body(object, chunk, *number, *drive).await {
                    Some(body) => return (*number, Some(body), bad),
                    None => bad.push((*number, *drive)),
                }
            }
            (*number, None, bad)
        }));
        let (mut bodies, mut bad) = (BTreeMap::new(), Vec::new());
        for (number, body, its_bad) in read.await {
            bodies.extend(body.map(|body| (number, body)));
            bad.extend(its_bad);
        }
        if !bad.is_empty() {
            bad.iter().for_each(|_| self.count(|stats| stats.bad_fragments += 1));
            return Ok(Made::Bad(bad));
        }
        let template = object.header(chunk, 0);
        if wanted.iter().all(|number| bodies.contains_key(number)) {
            let bytes = bodies.values().map(|body| body.len() as u64).sum();
            let made = self.compute(bytes, move |_| {
                wanted.iter().map(|number| encode::fragment(&template, *number, &bodies[number])).collect()
            });
            return made.await.map(Made::Fragments);
        }
        let stored = geometry.data_stored(chunk);
        if bodies.len() < stored.into() {
            let reason = format!("{} fragments of chunk {chunk} are good, {stored} are needed", bodies.len());
            return Err(self.lost(&object.name, reason));
        }
        let bytes = bodies.values().map(|body| body.len() as u64).sum();
        let made = self.compute(bytes, move |_| make_of(&template, &bodies, &wanted)).await?;
        let reason = || format!("chunk {chunk} cannot be put together of fragments that are good each");
        made.map(Made::Fragments).ok_or_else(|| self.lost(&object.name, reason()))
    }

    /// Before anything goes: what stays was read, and is there to stay.
    async fn check_successors(
        &self,
        object: &Rc<Object>,
        extra: &[(usize, Place)],
    ) -> Result<(), BackendError> {
        let going: BTreeSet<(usize, Place)> = extra.iter().copied().collect();
        let (found, drives) = (self.look_on(&object.name, false).await, self.drives());
        let is_of_another = extra.iter().any(|(_, place)| place.layout != object.layout());
        let not_good = |reason: String| {
            self.is_bad(&object.name);
            Err(BackendError::Retry { operation: "mend", object: object.name.to_string(), reason })
        };
        for chunk in 0..object.geometry().chunks() {
            let mut good: Vec<(u8, usize)> = Vec::new();
            for number in numbers(object, chunk) {
                let place = object.place(chunk, number);
                let is_going = going.iter().any(|(_, going)| *going == place);
                if !is_of_another && !is_going {
                    continue;
                }
                let there = found.fragments.get(&place).into_iter().flatten();
                let before = good.len();
                // What is on a drive that leaves does not stay.
                let stays =
                    |drive: &&usize| !going.contains(&(**drive, place)) && drives[**drive].duty.takes();
                for drive in there.filter(stays) {
                    let is_good = self.body(object, chunk, number, *drive).await.is_some();
                    if !is_good {
                        self.is_bad(&object.name);
                    }
                    good.extend(is_good.then_some((number, *drive)));
                }
                if is_going && good.len() == before {
                    return not_good(format!("fragment {chunk}.{number} is not good where it would stay"));
                }
            }
            let needed =
                usize::from(object.geometry().data_stored(chunk)) + self.spare_of(object.geometry()) as usize;
            if is_of_another && placement::on_drives_of_their_own(&good) < needed {
                return not_good(format!("too few fragments of chunk {chunk} are good"));
            }
        }
        Ok(())
    }

    /// Removes fragments, those of the first chunk first: it says that an object is there.
    async fn remove(
        self: &Rc<Self>,
        name: &ObjectName,
        extra: Vec<(usize, Place)>,
    ) -> Result<bool, BackendError> {
        let (first, others): (Vec<_>, Vec<_>) = extra.into_iter().partition(|(_, place)| place.chunk == 0);
        for some in [first, others] {
            if let Some(error) = self.delete_fragments(name, &some).await.into_iter().next() {
                return Err(error);
            }
        }
        Ok(true)
    }
}

/// A fragment is bad, or its drive does not answer.
struct NoBody {
    is_answered: bool,
}

/// What came of mending all chunks.
struct MendedForm {
    /// Fragments by drive.
    extra: Vec<(usize, Place)>,
    is_changed: bool,
    stands: bool,
    /// No drive failed to answer when all of it was read.
    is_all_read: bool,
}

/// What came of mending a chunk.
struct Mended {
    /// Fragments by number and drive.
    extra: Vec<(u8, usize)>,
    is_changed: bool,
    /// As many fragments of it are there, on a drive each, as of any put that was acknowledged.
    stands: bool,
    /// No drive failed to answer when all of it was read.
    is_all_read: bool,
}

enum Made {
    Fragments(Vec<Fragment>),
    /// These are not what they should be.
    Bad(Vec<(u8, usize)>),
}

fn forget(there: &mut BTreeMap<u8, Vec<usize>>, (number, drive): (u8, usize)) {
    if let Some(drives) = there.get_mut(&number) {
        drives.retain(|other| *other != drive);
        if drives.is_empty() {
            there.remove(&number);
        }
    }
}

/// Fragments of the bodies of as many others as are needed.
fn make_of(template: &Header, bodies: &BTreeMap<u8, Bytes>, wanted: &BTreeSet<u8>) -> Option<Vec<Fragment>> {
    let (geometry, chunk) = (template.geometry, template.chunk);
    let stored = geometry.data_stored(chunk);
    let length = bodies.values().map(Bytes::len).max().unwrap_or(0);
    let mut known = vec![None; usize::from(geometry.data) + usize::from(geometry.parity)];
    // What a short chunk has no fragments for counts as zeros.
    known[stored.into()..geometry.data.into()].iter_mut().for_each(|empty| *empty = Some(Bytes::new()));
    for (number, body) in bodies {
        *known.get_mut(usize::from(*number))? = Some(body.clone());
    }
    let data = (0..stored).map(|number| {
        if let Some(body) = bodies.get(&number) {
            return Some(body.clone());
        }
        let mut body = parity::reconstruct(&known, geometry.data, number, length)?;
        let header = Header { fragment: number, ..*template };
        let index_bytes = geometry.index_bytes(chunk, number);
        let entries = header.decode_index(number, body.get(..index_bytes)?).ok()?;
        let frames_end =
            entries.last().map_or(index_bytes as u64, |last| last.offset + u64::from(last.stored_bytes));
        let end = geometry.body_bytes(chunk, frames_end) as usize;
        if end > body.len() {
            return None;
        }
        body.truncate(end);
        Some(body.into())
    });
    let data: Vec<Bytes> = data.collect::<Option<_>>()?;
    let slices: Vec<&[u8]> = data.iter().map(|body| &body[..]).collect();
    let needs_parity = wanted.iter().any(|number| *number >= geometry.data);
    let parity_count = if needs_parity { usize::from(geometry.parity) } else { 0 };
    let length = slices.iter().map(|body| body.len()).max().unwrap_or(0);
    let mut parity: Vec<Buffer> = (0..parity_count).map(|_| Buffer::of(length)).collect();
    let mut made: Vec<&mut [u8]> = parity.iter_mut().map(|body| &mut body[..]).collect();
    parity::encode(&slices, geometry.data, &mut made);
    let body = |number: &u8| match number.checked_sub(geometry.data) {
        Some(of_parity) => parity.get(usize::from(of_parity)).map(|body| &body[..]),
        None => slices.get(usize::from(*number)).copied(),
    };
    wanted.iter().map(|number| Some(encode::fragment(template, *number, body(number)?))).collect()
}
