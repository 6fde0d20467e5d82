//! Reading: one range of one fragment where all is well; the same range of k others where it is not.

use super::find::FIRST_BYTES;
use super::known::{Index, Object};
use super::{Inner, frames};
use crate::{BackendError, ObjectName};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use ovs_format::fragment::{FrameEntry, Geometry, HEADER_BYTES, Header, Position};
use std::{ops::Range, pin::pin, rc::Rc};

/// Fragments of an object that are read at once: beside its bytes so many more are in memory.
pub(super) const PIECES_MAX: usize = 8;

/// Why a fragment could not be read.
#[derive(Debug)]
pub(super) enum Miss {
    /// Nobody answers for it now, or a key is not there: it may well be good.
    Later(String),
    /// It is not there, or is not what it should be.
    Wrong(String),
}

impl Miss {
    pub(super) fn wrong(error: impl ToString) -> Miss {
        Miss::Wrong(error.to_string())
    }

    /// Both: while anything may be good, nobody knows.
    pub(super) fn or(self, other: Miss) -> Miss {
        let both = |a, b| format!("{a}; {b}");
        match (self, other) {
            (Miss::Wrong(a), Miss::Wrong(b)) => Miss::Wrong(both(a, b)),
            (Miss::Later(a) | Miss::Wrong(a), Miss::Later(b) | Miss::Wrong(b)) => Miss::Later(both(a, b)),
        }
    }

    pub(super) fn after(self, first: Option<Miss>) -> Miss {
        match first {
            Some(first) => first.or(self),
            None => self,
        }
    }
}

impl From<BackendError> for Miss {
    fn from(error: BackendError) -> Miss {
        match error {
            BackendError::Retry { .. } | BackendError::NoSpace { .. } => Miss::Later(error.to_string()),
            BackendError::NotFound { .. }
            | BackendError::Conflict { .. }
            | BackendError::Incomplete { .. }
            | BackendError::Lost { .. } => Miss::Wrong(error.to_string()),
        }
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
        let known = self.known.borrow().get(name);
        let object = match known {
            Some(object) => object,
            None => self.find(name).await?,
        };
        match self.read_range(&object, offset, length).await {
            // It may be there once more: what was put again under another policy lies beside its first fragments. Or somebody
            // is deleting it: then its first chunk has gone before what is missing.
            Err(BackendError::Lost { .. }) => {
                let other = self.find_anywhere(name, Some(object.layout())).await?;
                self.read_range(&other, offset, length).await
            }
            // Nor is a drive waited for that only the first ones need.
            Err(error @ BackendError::Retry { .. }) => {
                match self.find_anywhere(name, Some(object.layout())).await {
                    Ok(other) => self.read_range(&other, offset, length).await,
                    Err(_) => Err(error),
                }
            }
            read => read,
        }
    }

    pub(super) async fn read_range(
        &self,
        object: &Rc<Object>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, BackendError> {
        let end = offset.saturating_add(length).min(object.geometry().object_bytes);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let reads = pieces(*object.geometry(), offset..end).map(|piece| self.read(object, piece));
        let mut reads = pin!(stream::iter(reads).buffered(PIECES_MAX));
        let first = reads.try_next().await?.unwrap_or_default();
        let length = (end - offset) as usize;
        if first.len() == length {
            return Ok(first);
        }
        let mut bytes = Vec::from(first);
        while let Some(piece) = reads.try_next().await? {
            // How long it is, a header says: room is made for as much again as has come.
            if bytes.capacity() - bytes.len() < piece.len() {
                bytes.reserve_exact(bytes.len().max(piece.len()).min(length - bytes.len()));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.into())
    }

    /// What lies in one data fragment.
    async fn read(&self, object: &Rc<Object>, piece: Piece) -> Result<Bytes, BackendError> {
        let plain = match self.read_soon(object, &piece).await {
            Ok(plain) => plain,
            Err(miss) => {
                tracing::debug!(object = %object.name, chunk = piece.chunk, fragment = piece.fragment, ?miss, "read from parity");
                self.count(|stats| stats.reconstructed += 1);
                self.reconstruct(object, &piece).await?
            }
        };
        let first = object.geometry().frame_range(piece.at(piece.frames.start)).start;
        Ok(Bytes::from(plain)
            .slice((piece.wanted.start - first) as usize..(piece.wanted.end - first) as usize))
    }

    /// The frames as their own fragment has them.
    pub(super) async fn read_fragment(&self, object: &Rc<Object>, piece: &Piece) -> Result<Vec<u8>, Miss> {
        let Piece { chunk, fragment, .. } = *piece;
        let known = object.index(chunk, fragment);
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
            false => self.read_somewhere(object, chunk, fragment, at, from, length).await?.1,
        };
        let header = object.header(chunk, fragment);
        let opened = self.open(header, piece.clone(), entries.to_vec(), stored).await;
        opened.inspect_err(|miss| match miss {
            Miss::Wrong(_) => self.is_bad(&object.name),
            Miss::Later(_) => {}
        })
    }

    /// Verifies frames that lie one behind the other.
    pub(super) async fn open(
        &self,
        header: Header,
        piece: Piece,
        entries: Vec<FrameEntry>,
        stored: Bytes,
    ) -> Result<Vec<u8>, Miss> {
        let first = entries.first().map_or(0, |entry| entry.offset);
        let bytes = stored.len() as u64;
        let opened = self.compute(bytes, move |preset| {
            let key = match header.key {
                0 => None,
                number => match preset.key(number) {
                    Some(key) => Some(key.of_put(&header.name, header.put)),
                    None => return Err(Miss::Later(format!("key {number} is not there"))),
                },
            };
            let mut plain = Vec::with_capacity(entries.len() * header.geometry.frame_bytes as usize);
            for (frame, entry) in piece.frames.clone().zip(&entries) {
                let at = piece.at(frame);
                let begin = (entry.offset - first) as usize;
                let end = (begin + entry.stored_bytes as usize).min(stored.len());
                let stored = stored.get(begin..end).unwrap_or_default();
                frames::open(&header, key.as_ref(), at, entry, stored, &mut plain)
                    .map_err(|reason| Miss::Wrong(format!("frame {frame}: {reason}")))?;
            }
            Ok(plain)
        });
        opened.await?
    }

    /// The index of a data fragment, the drive that has it, and what was read with it.
    async fn read_index(
        &self,
        object: &Rc<Object>,
        chunk: u32,
        fragment: u8,
    ) -> Result<(Index, Option<usize>, Bytes), Miss> {
        let length = (HEADER_BYTES + object.geometry().index_bytes(chunk, fragment)) as u64;
        let (drive, bytes) =
            self.read_somewhere(object, chunk, fragment, None, 0, length.max(FIRST_BYTES)).await?;
        let checked = check_index(object, chunk, fragment, &bytes);
        let entries = checked.inspect_err(|_| self.is_bad(&object.name))?;
        let index: Index = entries.into();
        self.known.borrow_mut().learn_index(object, chunk, fragment, Rc::clone(&index));
        Ok((index, Some(drive), bytes))
    }

    /// Bytes of a fragment from the drive that is known to have it, or the first that has.
    async fn read_somewhere(
        &self,
        object: &Rc<Object>,
        chunk: u32,
        fragment: u8,
        at: Option<usize>,
        offset: u64,
        length: u64,
    ) -> Result<(usize, Bytes), Miss> {
        let places = match at {
            Some(index) => vec![index],
            None => self.places(object, chunk, fragment, false),
        };
        let mut miss = None;
        for index in places {
            match self.read_from(index, &object.name, object.place(chunk, fragment), offset, length).await {
                Ok(bytes) => return Ok((index, bytes)),
                Err(error) => miss = Some(Miss::from(error).after(miss)),
            }
        }
        Err(miss.unwrap_or_else(|| Miss::Later(format!("nobody is asked for fragment {chunk}.{fragment}"))))
    }
}

fn check_index(object: &Object, chunk: u32, fragment: u8, bytes: &[u8]) -> Result<Vec<FrameEntry>, Miss> {
    let header = Header::decode(bytes).map_err(Miss::wrong)?;
    if !object.is_own(&header, chunk, fragment) {
        return Err(Miss::Wrong("it is another fragment".to_owned()));
    }
    header.decode_index(fragment, &bytes[HEADER_BYTES..]).map_err(Miss::wrong)
}

/// Bytes of an object that lie in one data fragment.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) chunk: u32,
    pub(super) fragment: u8,
    pub(super) frames: Range<u32>,
    /// In the object.
    wanted: Range<u64>,
}

impl Piece {
    fn at(&self, frame: u32) -> Position {
        Position { chunk: self.chunk, fragment: self.fragment, frame }
    }
}

/// Cuts a range at fragments.
fn pieces(geometry: Geometry, range: Range<u64>) -> impl Iterator<Item = Piece> {
    let mut from = range.start;
    std::iter::from_fn(move || {
        if from >= range.end {
            return None;
        }
        let Position { chunk, fragment, frame } = geometry.position(from);
        let to = geometry.fragment_range(chunk, fragment).end.min(range.end);
        let last = geometry.position(to - 1).frame;
        let wanted = from..to;
        from = to;
        Some(Piece { chunk, fragment, frames: frame..last + 1, wanted })
    })
}
