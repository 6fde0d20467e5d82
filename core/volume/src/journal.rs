//! The journal of a vDisk on its backend: names, and following the chain of epochs.

use crate::VolumeError;
use crate::sco::{object_name, vdisk_prefix};
use bytes::Bytes;
use ovs_backend::{Backend, BackendError, ObjectName, Urgency};
use ovs_format::journal::{Position, Record};
use ovs_units::{COUNTER_MAX, Epoch, JournalIndex, VdiskId, planted};

/// The name of a record.
pub fn record_name(vdisk: VdiskId, position: Position) -> ObjectName {
    object_name(format!("{}j/{:016x}-{:016x}", vdisk_prefix(vdisk), position.epoch.0, position.index.0))
}

/// Puts a record; returns its bytes. The reserve may be used: commits lead to room.
pub(crate) async fn put(
    backend: &dyn Backend,
    vdisk: VdiskId,
    position: Position,
    record: &Record,
) -> Result<u64, VolumeError> {
    let bytes = record.encode(vdisk, position);
    let length = bytes.len() as u64;
    backend.put(&record_name(vdisk, position), vec![bytes.into()], Urgency::Reserve).await?;
    Ok(length)
}

/// Why somebody reads what nobody may have committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// To tell of it: others may be at work there, and it is left as it is.
    ToTell,
    /// To rest something on it: from then on it is there to stay.
    ToRestOn,
}

impl Reading {
    pub(crate) async fn get(self, backend: &dyn Backend, name: &ObjectName) -> Result<Bytes, BackendError> {
        match self {
            Reading::ToTell => backend.get(name).await,
            Reading::ToRestOn => backend.get_lasting(name).await,
        }
    }
}

/// What of our own may be under the name after a head's position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    /// A record that is not committed, or was given up.
    Record,
    /// One that was never finished, and was passed over: whoever finishes it is somebody else.
    Unfinished,
    Nothing,
}

impl Own {
    fn may_be(self, found: &Found) -> bool {
        match found {
            Found::Record(_) => self == Own::Record,
            Found::Unfinished => self != Own::Nothing,
            Found::Nothing => true,
        }
    }
}

/// What is under a record's name.
pub(crate) enum Found {
    Record(Record),
    /// Of a put that was never acknowledged too little to read it, or nothing where some of it may be: as if it were not there, but
    /// the name is used.
    Unfinished,
    Nothing,
}

impl Found {
    fn record(self) -> Option<Record> {
        match self {
            Found::Record(record) => Some(record),
            Found::Unfinished | Found::Nothing => None,
        }
    }

    fn of(
        read: Result<Bytes, BackendError>,
        vdisk: VdiskId,
        position: Position,
    ) -> Result<Found, VolumeError> {
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(BackendError::NotFound { .. }) => return Ok(Found::Nothing),
            Err(BackendError::Incomplete { .. }) => return Ok(Found::Unfinished),
            Err(error) => return Err(error.into()),
        };
        let name = record_name(vdisk, position);
        let record = Record::decode(&bytes, vdisk, position);
        record.map(Found::Record).map_err(|error| VolumeError::Damaged(format!("object {name}: {error}")))
    }
}

/// A record, `None` when there is none.
pub(crate) async fn get(
    backend: &dyn Backend,
    vdisk: VdiskId,
    position: Position,
) -> Result<Option<Record>, VolumeError> {
    Ok(find(backend, vdisk, position).await?.record())
}

async fn find(backend: &dyn Backend, vdisk: VdiskId, position: Position) -> Result<Found, VolumeError> {
    Found::of(backend.get(&record_name(vdisk, position)).await, vdisk, position)
}

/// A record that nobody may have committed and that is part of the vDisk from now on: it is there to stay. Of those before it all
/// were acknowledged, since the journal has one writer.
pub(crate) async fn get_lasting(
    backend: &dyn Backend,
    vdisk: VdiskId,
    position: Position,
) -> Result<Found, VolumeError> {
    let read = backend.get_lasting(&record_name(vdisk, position)).await;
    Found::of(read, vdisk, position)
}

async fn must_get(backend: &dyn Backend, vdisk: VdiskId, position: Position) -> Result<Record, VolumeError> {
    let missing = || VolumeError::Damaged(format!("object {} is missing", record_name(vdisk, position)));
    get(backend, vdisk, position).await?.ok_or_else(missing)
}

/// Which stretch of each epoch counts from just after `from` (the beginning: `None`) to `to`, the newest first: its first record,
/// and its last. Backwards by start objects.
async fn stretches(
    backend: &dyn Backend,
    vdisk: VdiskId,
    from: Option<Position>,
    to: Position,
) -> Result<Vec<(JournalIndex, Position)>, VolumeError> {
    let mut stretches = Vec::new();
    let mut last = to;
    loop {
        if let Some(from) = from.filter(|from| from.epoch == last.epoch) {
            if from.index > last.index {
                return Err(wrong_chain(vdisk, from));
            }
            stretches.push((from.index.next(), last));
            break;
        }
        stretches.push((JournalIndex(0), last));
        let start = Position { epoch: last.epoch, index: JournalIndex(0) };
        let Record::Start { continues, .. } = must_get(backend, vdisk, start).await? else {
            return Err(VolumeError::Damaged(format!("object {} is no start", record_name(vdisk, start))));
        };
        if planted("recovery: all of an older epoch counts")
            && let Some(before) = continues
            && from.is_none()
        {
            let mut end = before;
            while get(backend, vdisk, Position { index: end.index.next(), ..end }).await?.is_some() {
                end.index = end.index.next();
            }
            last = end;
            continue;
        }
        match (continues, from) {
            (None, None) => break,
            (None, Some(from)) => return Err(wrong_chain(vdisk, from)),
            (Some(before), _) if before.epoch < last.epoch => last = before,
            (Some(before), _) => return Err(wrong_chain(vdisk, before)),
        }
        if from.is_some_and(|from| from.epoch > last.epoch) {
            return Err(wrong_chain(vdisk, last));
        }
    }
    Ok(stretches)
}

/// The records that make up the vDisk, oldest first, from just after `from` (the beginning: `None`) to `to`.
pub(crate) async fn read_chain(
    backend: &dyn Backend,
    vdisk: VdiskId,
    from: Option<Position>,
    to: Position,
) -> Result<Vec<(Position, Record)>, VolumeError> {
    let mut records = Vec::new();
    for (first, last) in stretches(backend, vdisk, from, to).await?.into_iter().rev() {
        for index in first.0..=last.index.0 {
            let position = Position { epoch: last.epoch, index: JournalIndex(index) };
            records.push((position, must_get(backend, vdisk, position).await?));
        }
    }
    Ok(records)
}

fn wrong_chain(vdisk: VdiskId, at: Position) -> VolumeError {
    let (epoch, index) = (at.epoch, at.index);
    VolumeError::Damaged(format!(
        "the journal of vDisk {vdisk} does not pass through epoch {epoch}, record {index}"
    ))
}

/// Where a journal ends on its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// The newest record.
    pub(crate) position: Position,
    /// The highest epoch of which there is anything, also of a record that was never finished: no name up to it is used again.
    pub(crate) epoch: Epoch,
}

/// The end of the journal, found without any registry, and made to stand if anything is to rest on it: the newest record that is listed and can be read, then
/// dense probing (listings may lag) from there or from `at_least` on. What is listed and was never finished is not there.
pub(crate) async fn newest(
    backend: &dyn Backend,
    vdisk: VdiskId,
    at_least: Option<Position>,
    reading: Reading,
) -> Result<Option<End>, VolumeError> {
    let prefix = prefix(vdisk);
    let mut after: Option<ObjectName> = None;
    let mut listed: Vec<Position> = Vec::new();
    loop {
        let page = backend.list(&prefix, after.as_ref(), 1000).await?;
        let Some(last) = page.last() else { break };
        listed.extend(page.iter().filter_map(|object| position_of(&object.name, &prefix)));
        after = Some(last.name.clone());
    }
    listed.sort_unstable();
    let Some(epoch) = listed.last().copied().max(at_least).map(|highest| highest.epoch) else {
        return Ok(None);
    };
    let mut newest = at_least;
    while let Some(candidate) = listed.pop()
        && Some(candidate) > at_least
    {
        match find(backend, vdisk, candidate).await? {
            Found::Record(_) => newest = Some(candidate),
            // An epoch that never began.
            Found::Unfinished if candidate.index.0 == 0 => continue,
            // Whoever began it had committed the one before it: that is the end, or what was acknowledged is gone.
            Found::Unfinished => {
                let before = Position { index: JournalIndex(candidate.index.0 - 1), ..candidate };
                if Some(before) > at_least {
                    must_get(backend, vdisk, before).await?;
                    newest = Some(before);
                }
            }
            // It is being removed, or who listed it is silent now.
            Found::Nothing => {
                let reason = format!("object {} is listed and not there", record_name(vdisk, candidate));
                return Err(match reading {
                    Reading::ToTell => VolumeError::Damaged(reason),
                    Reading::ToRestOn => VolumeError::Retry(reason),
                });
            }
        }
        break;
    }
    let Some(mut position) = newest else { return Ok(None) };
    loop {
        let next = Position { epoch: position.epoch, index: position.index.next() };
        match get(backend, vdisk, next).await? {
            Some(_) => position = next,
            None => break,
        }
    }
    // One that a copy of the map names was committed.
    if reading == Reading::ToRestOn
        && Some(position) > at_least
        && get_lasting(backend, vdisk, position).await?.record().is_none()
    {
        let name = record_name(vdisk, position);
        return Err(VolumeError::Retry(format!("object {name} was there a moment ago: ask again")));
    }
    Ok(Some(End { position, epoch }))
}

/// Records after `from` of epochs before that of `to` that the vDisk passes by: given up, of an owner that was none any more, or of an
/// epoch that came to nothing. Finished or not.
pub(crate) async fn strays(
    backend: &dyn Backend,
    vdisk: VdiskId,
    from: Option<Position>,
    to: Position,
) -> Result<Vec<ObjectName>, VolumeError> {
    let stretches = stretches(backend, vdisk, from, to).await?;
    let counts = |at: Position| {
        let is_within = |(first, last): &(JournalIndex, Position)| {
            at.epoch == last.epoch && (*first..=last.index).contains(&at.index)
        };
        stretches.iter().any(is_within) && !planted("scrub: a record that counts is a stray")
    };
    let prefix = prefix(vdisk);
    let (mut strays, mut after) = (Vec::new(), from.map(|from| record_name(vdisk, from)));
    loop {
        let page = backend.list(&prefix, after.as_ref(), 1000).await?;
        let Some(last) = page.last() else { return Ok(strays) };
        after = Some(last.name.clone());
        let names = page.into_iter().map(|object| object.name);
        strays.extend(
            names.filter(|name| {
                position_of(name, &prefix).is_some_and(|at| at.epoch < to.epoch && !counts(at))
            }),
        );
    }
}

/// How many records there are after `from`, and their bytes.
pub(crate) async fn weight(
    backend: &dyn Backend,
    vdisk: VdiskId,
    from: Option<Position>,
) -> Result<(u64, u64), VolumeError> {
    let prefix = prefix(vdisk);
    let mut after = from.map(|from| record_name(vdisk, from));
    let (mut objects, mut bytes) = (0, 0);
    loop {
        let page = backend.list(&prefix, after.as_ref(), 1000).await?;
        let Some(last) = page.last() else { return Ok((objects, bytes)) };
        after = Some(last.name.clone());
        objects += page.len() as u64;
        bytes += page.iter().map(|object| object.length_bytes).sum::<u64>();
    }
}

/// Removes the records before `position`. Nobody needs them any more.
pub(crate) async fn remove_before(
    backend: &dyn Backend,
    vdisk: VdiskId,
    position: Position,
    go_on: &dyn Fn() -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    let prefix = prefix(vdisk);
    let mut after: Option<ObjectName> = None;
    loop {
        let page = backend.list(&prefix, after.as_ref(), 1000).await?;
        after = page.last().map(|last| last.name.clone());
        let is_old = |name: &ObjectName| position_of(name, &prefix).is_some_and(|at| at < position);
        let old: Vec<&ObjectName> =
            page.iter().map(|object| &object.name).filter(|name| is_old(name)).collect();
        for name in &old {
            go_on()?;
            backend.delete(name).await?;
        }
        // Names are in order of positions: the first page without an old one is the end.
        if old.is_empty() {
            return Ok(());
        }
    }
}

fn prefix(vdisk: VdiskId) -> String {
    format!("{}j/", vdisk_prefix(vdisk))
}

/// Which record an object of this name is; none for a name that [`record_name`] does not give.
pub fn position_of(name: &ObjectName, prefix: &str) -> Option<Position> {
    let (epoch, index) = name.as_str().strip_prefix(prefix)?.split_once('-')?;
    // Sixteen digits as we write them: "7" and "+7" are numbers, but no names of ours.
    let number = |text: &str| {
        let number = u64::from_str_radix(text, 16).ok().filter(|number| *number < COUNTER_MAX)?;
        (format!("{number:016x}") == text).then_some(number)
    };
    Some(Position { epoch: Epoch(number(epoch)?), index: JournalIndex(number(index)?) })
}

/// The record after the last committed one: an epoch is raised in the registry before its start object is put.
pub(crate) fn next_of(epoch: Epoch, position: Position) -> Position {
    match position.epoch == epoch {
        true => Position { epoch, index: position.index.next() },
        false => Position { epoch, index: JournalIndex(0) },
    }
}

/// The record behind this one, in its epoch.
pub(crate) fn after(position: Position) -> Position {
    Position { index: position.index.next(), ..position }
}

/// The registry was restored from a copy, or another host goes on with the vDisk.
pub(crate) fn older(vdisk: VdiskId) -> VolumeError {
    VolumeError::Refused(format!(
        "the registry is older than the backend for vDisk {vdisk}: run `ovs vpool recover`"
    ))
}

/// Refuses a head that is older than what the journal holds. Beyond its position there may be one record of our own, and starts of
/// epochs that were given up; without a position, those alone.
pub(crate) async fn check_not_older(
    backend: &dyn Backend,
    vdisk: VdiskId,
    epoch: Epoch,
    position: Option<Position>,
    own: Own,
) -> Result<(), VolumeError> {
    let next = position.map(after);
    let is_newer =
        |found: Position| next.is_none_or(|next| found > next) && (found.epoch > epoch || found.index.0 > 0);
    let prefix = prefix(vdisk);
    let mut last = position.map(|position| record_name(vdisk, position));
    loop {
        let page = backend.list(&prefix, last.as_ref(), 1000).await?;
        if page.iter().filter_map(|object| position_of(&object.name, &prefix)).any(is_newer) {
            return Err(older(vdisk));
        }
        let Some(object) = page.last() else { break };
        last = Some(object.name.clone());
    }
    // Listings may lag; what is probed may be gone, with the journal before a copy of the map. Also one that is unfinished: who began
    // it had committed what comes before.
    let start = |epoch| Position { epoch, index: JournalIndex(0) };
    for probed in [next.map_or(start(epoch.next()), after), after(start(epoch))] {
        if is_newer(probed) && !matches!(find(backend, vdisk, probed).await?, Found::Nothing) {
            return Err(older(vdisk));
        }
    }
    if let Some(next) = next.filter(|_| own != Own::Record)
        && !own.may_be(&find(backend, vdisk, next).await?)
    {
        return Err(older(vdisk));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
