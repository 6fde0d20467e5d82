//! The bytes of a fragment that is missing, slow or wrong: from the same range of k others.

use super::get::{Miss, Piece};
use super::known::Object;
use super::{Inner, parity};
use crate::BackendError;
use bytes::Bytes;
use futures_util::future::join_all;
use ovs_format::fragment::{HEADER_BYTES, Header};
use std::{ops::Range, rc::Rc};

/// A fragment that others can be made from.
struct Source {
    number: u8,
    drive: usize,
    body_bytes: u64,
    /// All of it, verified, if it was read.
    body: Option<Bytes>,
}

impl Inner {
    /// The frames as k other fragments of the chunk tell them.
    pub(super) async fn reconstruct(
        &self,
        object: &Rc<Object>,
        piece: &Piece,
    ) -> Result<Vec<u8>, BackendError> {
        // Where they belong first; then wherever they are, every body as a whole.
        if let Ok(plain) = self.reconstruct_from(object, piece, false).await {
            return Ok(plain);
        }
        let found = Rc::new(self.look(&object.name).await);
        *object.elsewhere.borrow_mut() = Some(Rc::clone(&found));
        let own = match self.read_fragment(object, piece).await {
            Ok(plain) => return Ok(plain),
            Err(miss) => miss,
        };
        let miss = match self.reconstruct_from(object, piece, true).await {
            Ok(plain) => return Ok(plain),
            Err(miss) => miss,
        };
        self.known.borrow_mut().forget(&object.name);
        let reason = match (own.or(miss), &found.failure) {
            (Miss::Later(reason), _) => reason,
            (Miss::Wrong(reason), Some(failure)) => format!("{reason}; {failure}"),
            (Miss::Wrong(reason), None) => return Err(self.lost(&object.name, reason)),
        };
        Err(BackendError::Retry { operation: "get", object: object.name.to_string(), reason })
    }

    pub(super) async fn reconstruct_from(
        &self,
        object: &Rc<Object>,
        piece: &Piece,
        is_whole: bool,
    ) -> Result<Vec<u8>, Miss> {
        let Piece { chunk, fragment, .. } = *piece;
        let geometry = *object.geometry();
        let header = object.header(chunk, fragment);
        let stored = geometry.data_stored(chunk);
        let numbers = (0..stored).chain(geometry.data..geometry.data + geometry.parity);
        let numbers = numbers.filter(|number| is_whole || *number != fragment);
        let sources = join_all(numbers.map(|number| self.source(object, chunk, number, is_whole))).await;
        let (sources, misses): (Vec<_>, Vec<_>) = sources.into_iter().partition(Result::is_ok);
        let mut sources: Vec<Source> = sources.into_iter().filter_map(Result::ok).collect();
        let needed = usize::from(stored);
        if sources.len() < needed {
            let told =
                Miss::Wrong(format!("{} fragments of {needed} that are needed are there", sources.len()));
            return Err(misses.into_iter().filter_map(Result::err).fold(told, Miss::or));
        }
        sources.truncate(needed);
        let index_bytes = geometry.index_bytes(chunk, fragment) as u64;
        let index = self.range_of(object, chunk, fragment, &sources, 0..index_bytes).await?;
        let entries = header.decode_index(fragment, &index).map_err(Miss::wrong)?;
        let entries = entries[piece.frames.start as usize..piece.frames.end as usize].to_vec();
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(Vec::new()) };
        let range = first.offset..last.offset + u64::from(last.stored_bytes);
        let bytes = self.range_of(object, chunk, fragment, &sources, range).await?;
        self.open(header, piece.clone(), entries, bytes).await
    }

    /// A fragment to make others from: its header is verified, and its body if all of it is read.
    async fn source(
        &self,
        object: &Rc<Object>,
        chunk: u32,
        number: u8,
        is_whole: bool,
    ) -> Result<Source, Miss> {
        let mut miss = None;
        for drive in self.places(object, chunk, number, is_whole) {
            let length = if is_whole { u64::MAX } else { HEADER_BYTES as u64 };
            let read = self.read_from(drive, &object.name, object.place(chunk, number), 0, length).await;
            let checked = read.map_err(Miss::from).and_then(|bytes| {
                let header = Header::decode(&bytes).map_err(Miss::wrong).and_then(|header| {
                    let is_good =
                        object.is_own(&header, chunk, number) && (!is_whole || has_body(&header, &bytes));
                    let wrong = || Miss::Wrong(format!("fragment {chunk}.{number} is not what it should be"));
                    is_good.then_some(header).ok_or_else(wrong)
                });
                let header = header.inspect_err(|_| self.is_bad(&object.name))?;
                let body = is_whole.then(|| bytes.slice(HEADER_BYTES..));
                Ok(Source { number, drive, body_bytes: header.body_bytes.into(), body })
            });
            match checked {
                Ok(source) => return Ok(source),
                Err(other) => miss = Some(other.after(miss)),
            }
        }
        let nobody = format!("nobody has fragment {chunk}.{number}, or is asked for it");
        // Once all drives were asked, what none has is not there.
        Err(miss.unwrap_or(if is_whole { Miss::Wrong(nobody) } else { Miss::Later(nobody) }))
    }

    /// A range of a data fragment's body from the same range of others.
    async fn range_of(
        &self,
        object: &Rc<Object>,
        chunk: u32,
        fragment: u8,
        sources: &[Source],
        range: Range<u64>,
    ) -> Result<Bytes, Miss> {
        let geometry = *object.geometry();
        let length = (range.end - range.start) as usize;
        let read = join_all(sources.iter().map(async |source| {
            let end = range.end.min(source.body_bytes);
            let bytes = match &source.body {
                _ if range.start >= end => Bytes::new(),
                Some(body) => body.slice(range.start as usize..end as usize),
                None => {
                    let from = HEADER_BYTES as u64 + range.start;
                    let place = object.place(chunk, source.number);
                    self.read_from(source.drive, &object.name, place, from, end - range.start).await?
                }
            };
            if bytes.len() as u64 != end.saturating_sub(range.start) {
                return Err(Miss::Wrong(format!("fragment {chunk}.{} ends too early", source.number)));
            }
            Ok((source.number, bytes))
        }));
        let stored = geometry.data_stored(chunk);
        let mut known = vec![None; usize::from(geometry.data) + usize::from(geometry.parity)];
        // What a short chunk has no fragments for counts as zeros.
        known[stored.into()..geometry.data.into()].iter_mut().for_each(|empty| *empty = Some(Bytes::new()));
        for read in read.await {
            let (number, bytes) = read?;
            known[usize::from(number)] = Some(bytes);
        }
        let made = self.compute(length as u64 * known.len() as u64, move |_| {
            parity::reconstruct(&known, geometry.data, fragment, length).map(Bytes::from)
        });
        made.await?.ok_or_else(|| Miss::Wrong("too few fragments".to_owned()))
    }
}

pub(super) fn has_body(header: &Header, bytes: &[u8]) -> bool {
    let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
    body.len() == header.body_bytes as usize && ovs_format::checksum(body) == header.body_checksum
}
