//! An object's fragments.

use super::{FRAME_BYTES, Policy, Preset, frames, parity};
use crate::ObjectName;
use bytes::Bytes;
use ovs_direct_io::Buffer;
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
    let key = key.map(|key| key.of_put(&template.name, template.put));
    let mut plain = Plain { parts: plain.iter(), left: &[], gathered: Vec::new() };
    let data: Vec<Buffer> = (0..geometry.data_stored(chunk))
        .map(|fragment| data_fragment(template, key.as_ref(), fragment, &mut plain))
        .collect();
    let slices: Vec<&[u8]> = data.iter().map(|fragment| &fragment[HEADER_BYTES..]).collect();
    let length = slices.iter().map(|body| body.len()).max().unwrap_or(0);
    let mut parity: Vec<Buffer> = (0..geometry.parity).map(|_| Buffer::of(HEADER_BYTES + length)).collect();
    let mut bodies: Vec<&mut [u8]> =
        parity.iter_mut().map(|fragment| &mut fragment[HEADER_BYTES..]).collect();
    parity::encode(&slices, geometry.data, &mut bodies);
    let numbers = (0..).zip(data).chain((geometry.data..).zip(parity));
    numbers.map(|(number, buffer)| finish(template, number, buffer)).collect()
}

/// A fragment with this body.
pub(super) fn fragment(template: &Header, number: u8, body: &[u8]) -> Fragment {
    let mut buffer = Buffer::of(HEADER_BYTES + body.len());
    buffer[HEADER_BYTES..].copy_from_slice(body);
    finish(template, number, buffer)
}

/// Room for the header, then what is behind it.
fn data_fragment(
    template: &Header,
    cipher: Option<&frames::Cipher>,
    fragment: u8,
    plain: &mut Plain<'_>,
) -> Buffer {
    let Header { geometry, chunk, .. } = *template;
    let count = geometry.frames(chunk, fragment);
    let frames_at = geometry.frames_at(chunk, fragment) as usize;
    let range = geometry.fragment_range(chunk, fragment);
    let room = frames_at + frames::room(template, count, (range.end - range.start) as usize);
    // Of a buffer that was used before nothing may be left.
    let mut buffer = Buffer::of(HEADER_BYTES + geometry.body_bytes(chunk, room as u64) as usize);
    let body = &mut buffer[HEADER_BYTES..];
    body[..frames_at].fill(0);
    let mut end = frames_at;
    let entries: Vec<FrameEntry> = (0..count)
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
    buffer.truncate(HEADER_BYTES + length);
    if 2 * buffer.len() > HEADER_BYTES + room {
        return buffer;
    }
    // What compresses well does not keep the room that it might have needed, for as long as a drive takes.
    let mut fitting = Buffer::of(buffer.len());
    fitting.copy_from_slice(&buffer);
    fitting
}

/// The fragment whose body this is, behind the room for its header.
fn finish(template: &Header, number: u8, mut buffer: Buffer) -> Fragment {
    let (header, body) = buffer.split_at_mut(HEADER_BYTES);
    let (body_bytes, body_checksum) = (body.len() as u32, ovs_format::checksum(body));
    header.copy_from_slice(&Header { fragment: number, body_bytes, body_checksum, ..*template }.encode());
    Fragment { number, bytes: buffer.into() }
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
