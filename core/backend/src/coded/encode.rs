//! An object's fragments.

use super::{FRAME_BYTES, Policy, Preset, frames, parity};
use crate::ObjectName;
use bytes::Bytes;
use ovs_format::fragment::{Compression, FrameEntry, Geometry, Header, Position};
use ovs_units::PutId;
use uuid::Uuid;

/// One of a chunk's fragments as it is stored.
pub(super) struct Fragment {
    pub(super) number: u8,
    /// Header and body.
    pub(super) parts: Vec<Bytes>,
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
pub(super) fn chunk(template: &Header, key: Option<&frames::Key>, plain: &[u8]) -> Vec<Fragment> {
    let Header { geometry, chunk, .. } = *template;
    let key = key.map(|key| key.of_put(&template.name, template.put));
    let begin = geometry.chunk_range(chunk).start;
    let bodies: Vec<Vec<u8>> = (0..geometry.data_stored(chunk))
        .map(|fragment| {
            let index_bytes = geometry.index_bytes(chunk, fragment);
            let range = geometry.fragment_range(chunk, fragment);
            let mut body = Vec::with_capacity(index_bytes + (range.end - range.start) as usize);
            body.resize(index_bytes, 0);
            let entries: Vec<FrameEntry> = (0..geometry.frames(chunk, fragment))
                .map(|frame| {
                    let at = Position { chunk, fragment, frame };
                    let range = geometry.frame_range(at);
                    let bytes = &plain[(range.start - begin) as usize..(range.end - begin) as usize];
                    frames::seal(template, key.as_ref(), at, bytes, &mut body)
                })
                .collect();
            body[..index_bytes].copy_from_slice(&template.encode_index(fragment, &entries));
            body
        })
        .collect();
    let slices: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
    let parity = parity::encode(&slices, geometry.data, geometry.parity);
    let numbers = (0..).zip(bodies).chain((geometry.data..).zip(parity));
    numbers.map(|(number, body)| fragment(template, number, body.into())).collect()
}

/// A fragment with this body.
pub(super) fn fragment(template: &Header, number: u8, body: Bytes) -> Fragment {
    let (body_bytes, body_checksum) = (body.len() as u32, ovs_format::checksum(&body));
    let header = Header { fragment: number, body_bytes, body_checksum, ..*template };
    Fragment { number, parts: vec![Bytes::copy_from_slice(&header.encode()), body] }
}
