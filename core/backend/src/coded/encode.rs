//! An object's fragments.

use super::{FRAME_BYTES, Policy, Preset, frames, parity};
use crate::ObjectName;
use bytes::Bytes;
use ovs_direct_io::{BLOCK_BYTES, Buffer, KEPT_BYTES_MAX};
use ovs_format::fragment::{Compression, FrameEntry, Geometry, HEADER_BYTES, Header, Position};
use ovs_units::PutId;
use uuid::Uuid;

/// One of a chunk's fragments as it is stored.
pub(super) struct Fragment {
    pub(super) number: u8,
    /// Header and body.
    pub(super) bytes: Bytes,
}

/// What headers know an object by.
pub(super) fn name_hash(name: &ObjectName) -> [u8; 16] {
    first_half(&blake3::hash(name.as_str().as_bytes()))
}

/// The put of these bytes under this name: the same for the same, and for nothing else.
pub(super) fn put_id(preset: &Preset, name: &[u8; 16], parts: &[Bytes]) -> PutId {
    let mut hasher = preset.keys.last().map_or_else(blake3::Hasher::new, |key| key.put_hasher());
    hasher.update(name);
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    PutId(Uuid::from_bytes(first_half(&hasher.finalize())))
}

fn first_half(hash: &blake3::Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}

/// What all fragments of a put have in common.
pub(super) fn template(
    preset: &Preset,
    compression: Compression,
    name: [u8; 16],
    put: PutId,
    policy: Policy,
    object_bytes: u64,
) -> Header {
    let geometry = Geometry {
        object_bytes,
        data: policy.data,
        parity: policy.parity,
        frame_bytes: FRAME_BYTES,
        fragment_bytes: preset.fragment_bytes,
    };
    Header {
        name,
        put,
        geometry,
        chunk: 0,
        fragment: 0,
        compression,
        key: preset.keys.last().map_or(0, |key| key.number()),
        body_bytes: 0,
        body_checksum: 0,
    }
}

/// What names of fragments know of how their object was cut up, compressed and encrypted.
pub(super) fn layout(header: &Header) -> u32 {
    let object_bytes = 0;
    let geometry = Geometry { object_bytes, ..header.geometry };
    let common =
        Header { name: [0; 16], put: PutId(Uuid::nil()), geometry, chunk: 0, fragment: 0, ..*header };
    ovs_format::checksum(&Header { body_bytes: 0, body_checksum: 0, ..common }.encode())
}

/// The fragments of the chunk that `template` names, whose bytes these are: data that is not empty, then parity.
pub(super) fn chunk(template: &Header, key: Option<&frames::Key>, plain: &[Bytes]) -> Vec<Fragment> {
    let Header { geometry, chunk, .. } = *template;
    let data_numbers = 0..geometry.data_stored(chunk);
    let parity_numbers = geometry.data..geometry.data + geometry.parity;
    let mut rooms: Vec<usize> = data_numbers.clone().map(|number| data_room(template, number)).collect();
    let longest = rooms.iter().copied().max().unwrap_or(HEADER_BYTES);
    rooms.extend(parity_numbers.clone().map(|_| longest));
    let mut shared = Shared::of(&rooms);
    let mut fragments: Vec<&mut [u8]> = shared.iter_mut().flat_map(Shared::fragments).collect();
    let (data, parity) = fragments.split_at_mut(data_numbers.len());
    let key = key.map(|key| key.of_put(&template.name, template.put));
    let mut plain = Plain { parts: plain.iter(), left: &[], gathered: Vec::new() };
    for (number, fragment) in data_numbers.clone().zip(data.iter_mut()) {
        let length = fill_data(template, key.as_ref(), number, &mut plain, &mut fragment[HEADER_BYTES..]);
        shorten(fragment, HEADER_BYTES + length);
    }
    let longest = data.iter().map(|fragment| fragment.len()).max().unwrap_or(HEADER_BYTES);
    parity.iter_mut().for_each(|fragment| shorten(fragment, longest));
    let data: Vec<&[u8]> = data.iter().map(|fragment| &fragment[HEADER_BYTES..]).collect();
    let mut bodies: Vec<&mut [u8]> =
        parity.iter_mut().map(|fragment| &mut fragment[HEADER_BYTES..]).collect();
    parity::encode(&data, geometry.data, &mut bodies);
    let numbers = data_numbers.chain(parity_numbers);
    for (number, fragment) in numbers.clone().zip(&mut fragments) {
        write_header(template, number, fragment);
    }
    let lengths: Vec<usize> = fragments.iter().map(|fragment| fragment.len()).collect();
    let mut lengths = &lengths[..];
    let bytes = shared.into_iter().flat_map(|shared| {
        let own = lengths.split_off(..shared.rooms.len()).unwrap_or_default();
        shared.cut(own)
    });
    numbers.zip(bytes).map(|(number, bytes)| Fragment { number, bytes }).collect()
}

/// A buffer that several fragments of a chunk are in, each from a block on. It is there until the last of them is stored.
struct Shared {
    buffer: Buffer,
    /// What each of them takes at most.
    rooms: Vec<usize>,
}

impl Shared {
    /// Room for so many bytes each, in as few buffers as may be without being too large to be kept.
    fn of(rooms: &[usize]) -> Vec<Shared> {
        let mut together: Vec<Vec<usize>> = Vec::new();
        for room in rooms {
            match together.last_mut() {
                Some(last) if in_blocks(last) + in_blocks(&[*room]) <= KEPT_BYTES_MAX => last.push(*room),
                _ => together.push(vec![*room]),
            }
        }
        together.into_iter().map(|rooms| Shared { buffer: Buffer::of(in_blocks(&rooms)), rooms }).collect()
    }

    fn fragments(&mut self) -> Vec<&mut [u8]> {
        cut(&mut self.buffer, &self.rooms)
    }

    /// The fragments, so long each. What compressed well does not keep the room that it might have needed, for as long as a drive takes.
    fn cut(mut self, lengths: &[usize]) -> Vec<Bytes> {
        let needed = in_blocks(lengths);
        if 2 * needed <= self.buffer.len() {
            let mut fitting = Shared { buffer: Buffer::of(needed), rooms: lengths.to_vec() };
            let both = self.fragments().into_iter().zip(fitting.fragments());
            both.for_each(|(from, to)| to.copy_from_slice(&from[..to.len()]));
            self = fitting;
        }
        let mut rest = Bytes::from(self.buffer);
        let rooms = self.rooms.iter().zip(lengths);
        rooms.map(|(room, length)| rest.split_to(in_blocks(&[*room])).slice(..*length)).collect()
    }
}

/// A fragment with this body.
pub(super) fn fragment(template: &Header, number: u8, body: &[u8]) -> Fragment {
    let mut buffer = Buffer::of(HEADER_BYTES + body.len());
    buffer[HEADER_BYTES..].copy_from_slice(body);
    write_header(template, number, &mut buffer);
    Fragment { number, bytes: buffer.into() }
}

/// What so many bytes each take from a block on.
fn in_blocks(lengths: &[usize]) -> usize {
    lengths.iter().map(|length| length.next_multiple_of(BLOCK_BYTES)).sum()
}

/// So many bytes of the buffer for each, and from a block on.
fn cut<'a>(mut buffer: &'a mut [u8], lengths: &[usize]) -> Vec<&'a mut [u8]> {
    let mut next = |length: &usize| {
        let taken = buffer.split_off_mut(..in_blocks(&[*length])).unwrap_or_default();
        &mut taken[..*length]
    };
    lengths.iter().map(&mut next).collect()
}

fn shorten(slice: &mut &mut [u8], length: usize) {
    let _rest = slice.split_off_mut(length..);
}

/// What a data fragment takes at most, with its header.
fn data_room(template: &Header, fragment: u8) -> usize {
    let Header { geometry, chunk, .. } = *template;
    let range = geometry.fragment_range(chunk, fragment);
    let room = frames::room(template, geometry.frames(chunk, fragment), (range.end - range.start) as usize);
    let frames_end = geometry.frames_at(chunk, fragment) + room as u64;
    HEADER_BYTES + geometry.body_bytes(chunk, frames_end) as usize
}

/// The body of a data fragment; returns its length. Of what was there before nothing is left in that.
fn fill_data(
    template: &Header,
    cipher: Option<&frames::Cipher>,
    fragment: u8,
    plain: &mut Plain<'_>,
    body: &mut [u8],
) -> usize {
    let Header { geometry, chunk, .. } = *template;
    let frames_at = geometry.frames_at(chunk, fragment) as usize;
    body[..frames_at].fill(0);
    let mut end = frames_at;
    let entries: Vec<FrameEntry> = (0..geometry.frames(chunk, fragment))
        .map(|frame| {
            let at = Position { chunk, fragment, frame };
            let range = geometry.frame_range(at);
            let text = plain.next((range.end - range.start) as usize);
            let entry = frames::seal(template, cipher, at, text, body, end);
            end += entry.stored_bytes as usize;
            entry
        })
        .collect();
    let index = template.encode_index(fragment, &entries);
    body[..index.len()].copy_from_slice(&index);
    let length = geometry.body_bytes(chunk, end as u64) as usize;
    body[end..length].fill(0);
    length
}

/// The header of the fragment whose body is behind the room for it.
fn write_header(template: &Header, number: u8, fragment: &mut [u8]) {
    let (header, body) = fragment.split_at_mut(HEADER_BYTES);
    let (body_bytes, body_checksum) = (body.len() as u32, ovs_format::checksum(body));
    header.copy_from_slice(&Header { fragment: number, body_bytes, body_checksum, ..*template }.encode());
}

/// Bytes that are in several parts, from the first on.
struct Plain<'a> {
    parts: std::slice::Iter<'a, Bytes>,
    left: &'a [u8],
    gathered: Vec<u8>,
}

impl Plain<'_> {
    /// The next so many; fewer where there are no more. Copied only where they are in several parts.
    fn next(&mut self, length: usize) -> &[u8] {
        if self.left.is_empty() {
            self.left = self.parts.next().map_or(&[], |part| part);
        }
        if let Some((next, left)) = self.left.split_at_checked(length) {
            self.left = left;
            return next;
        }
        self.gathered.clear();
        loop {
            let (next, left) = self.left.split_at((length - self.gathered.len()).min(self.left.len()));
            self.gathered.extend_from_slice(next);
            self.left = left;
            if self.gathered.len() == length {
                return &self.gathered;
            }
            match self.parts.next() {
                Some(part) => self.left = part,
                None => return &self.gathered,
            }
        }
    }
}
