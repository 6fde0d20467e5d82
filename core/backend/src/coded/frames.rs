//! Frames: what is stored of 32 KiB of an object, and the way back.

use lz4_flex::block;
use ovs_format::fragment::{Compression, FrameEntry, Header, NONCE_BYTES, Position, SEAL_BYTES};
use ovs_units::PutId;
use ring::{aead, hkdf};
use std::{fmt, num::NonZeroU32};

/// Of Zstandard's levels the one that costs least.
const ZSTD_LEVEL: i32 = 1;

/// A key of a preset: 256 bits that each object's own key is derived from.
#[derive(Clone)]
pub struct Key {
    number: u32,
    secret: hkdf::Prk,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Key {
    /// The key that headers name by this number.
    pub fn new(number: NonZeroU32, secret: &[u8; 32]) -> Key {
        Key { number: number.get(), secret: hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret) }
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    fn derive(&self, purpose: &[u8], name: &[u8; 16], put: PutId) -> [u8; 32] {
        let info = [purpose, name, put.0.as_bytes()];
        let mut key = [0; 32];
        self.secret
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|derived| derived.fill(&mut key))
            .expect("32 bytes are what HKDF-SHA256 gives");
        key
    }

    /// A hash of an object's bytes that tells nothing to who lacks the key.
    pub(super) fn put_hasher(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&self.derive(b"ovs put id", &[0; 16], PutId(uuid::Uuid::nil())))
    }

    /// What encrypts one put of one object. No two puts of other bytes have the same.
    pub(super) fn of_put(&self, name: &[u8; 16], put: PutId) -> Cipher {
        let key = self.derive(b"ovs object", name, put);
        Cipher {
            key: aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, &key).expect("32 bytes")),
            nonces: blake3::Hasher::new_keyed(&self.derive(b"ovs nonces", name, put)),
        }
    }
}

/// What one put of one object is encrypted with.
pub(super) struct Cipher {
    key: aead::LessSafeKey,
    nonces: blake3::Hasher,
}

impl Cipher {
    /// The same for the same bytes at the same place, and for no others: an object that is put again may be cut up or
    /// compressed in another way. What is not compressed follows from the put and the place, so that it needs no hash of its own; what a compressor
    /// makes of it, from its version, too.
    fn nonce(&self, associated: &[u8], frame: u32, compressed: Option<&[u8]>) -> [u8; NONCE_BYTES] {
        let mut hasher = self.nonces.clone();
        hasher.update(associated).update(&frame.to_le_bytes()).update(compressed.unwrap_or_default());
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&hasher.finalize().as_bytes()[..NONCE_BYTES]);
        nonce
    }
}

/// Room for so many frames of so many bytes in all, also while the last of them is compressed.
pub(super) fn room(header: &Header, frames: u32, bytes: usize) -> usize {
    let frame_bytes = bytes.min(header.geometry.frame_bytes as usize);
    let sealed = if header.key == 0 { 0 } else { SEAL_BYTES as usize };
    bytes
        + frames as usize * sealed
        + compressed_max(header.compression, frame_bytes).saturating_sub(frame_bytes)
}

/// Writes what is stored of a frame to its place in the body, and says of it what the index does.
pub(super) fn seal(
    header: &Header,
    cipher: Option<&Cipher>,
    at: Position,
    plain: &[u8],
    body: &mut [u8],
    begin: usize,
) -> FrameEntry {
    let text = begin + if cipher.is_some() { NONCE_BYTES } else { 0 };
    let compressed = compress(header.compression, plain, &mut body[text..]);
    let is_compressed = compressed.is_some();
    let mut end = text + compressed.unwrap_or(plain.len());
    if !is_compressed {
        body[text..end].copy_from_slice(plain);
    }
    if let Some(cipher) = cipher {
        let associated = header.associated_data(at.fragment, is_compressed);
        let nonce = cipher.nonce(&associated, at.frame, is_compressed.then_some(&body[text..end]));
        body[begin..text].copy_from_slice(&nonce);
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let tag = cipher
            .key
            .seal_in_place_separate_tag(nonce, aead::Aad::from(associated), &mut body[text..end])
            .expect("a frame is not longer than AES-GCM takes");
        let tag = tag.as_ref();
        body[end..end + tag.len()].copy_from_slice(tag);
        end += tag.len();
    }
    let stored = &body[begin..end];
    FrameEntry {
        offset: begin as u64,
        stored_bytes: stored.len() as u32,
        is_compressed,
        checksum: header.frame_checksum(at.fragment, at.frame, stored),
    }
}

/// Bytes that compressing so many may take meanwhile.
fn compressed_max(compression: Compression, bytes: usize) -> usize {
    match compression {
        Compression::None => 0,
        Compression::Lz4 => block::get_maximum_output_size(bytes),
        Compression::Zstd => zstd::zstd_safe::compress_bound(bytes),
    }
}

/// Writes the bytes compressed to the beginning of `to`, if that is shorter. Returns how long they are then.
fn compress(compression: Compression, plain: &[u8], to: &mut [u8]) -> Option<usize> {
    // The same room wherever the frame lies: how much there is must not decide.
    let to = &mut to[..compressed_max(compression, plain.len())];
    let length = match compression {
        Compression::None => None,
        Compression::Lz4 => block::compress_into(plain, to).ok(),
        Compression::Zstd => zstd::bulk::compress_to_buffer(plain, to, ZSTD_LEVEL).ok(),
    };
    length.filter(|length| *length < plain.len())
}

/// The reverse of [`seal`]: verified and plain, or why not.
pub(super) fn open(
    header: &Header,
    cipher: Option<&Cipher>,
    at: Position,
    entry: &FrameEntry,
    stored: &[u8],
    plain: &mut Vec<u8>,
) -> Result<(), &'static str> {
    if stored.len() != entry.stored_bytes as usize {
        return Err("it ends too early");
    }
    if header.frame_checksum(at.fragment, at.frame, stored) != entry.checksum {
        return Err("its checksum differs");
    }
    let range = header.geometry.frame_range(at);
    let length = (range.end - range.start) as usize;
    let mut decrypted;
    let text = match cipher {
        None => stored,
        Some(cipher) => {
            let (nonce, sealed) = stored.split_first_chunk::<NONCE_BYTES>().ok_or("it has no nonce")?;
            decrypted = sealed.to_vec();
            let associated = header.associated_data(at.fragment, entry.is_compressed);
            let nonce = aead::Nonce::assume_unique_for_key(*nonce);
            let opened = cipher.key.open_in_place(nonce, aead::Aad::from(&associated), &mut decrypted);
            let text = &*opened.map_err(|_| "its tag differs")?;
            if cipher.nonce(&associated, at.frame, entry.is_compressed.then_some(text))
                != stored[..NONCE_BYTES]
            {
                return Err("its nonce is another's");
            }
            text
        }
    };
    if !entry.is_compressed {
        plain.extend_from_slice(text);
        return Ok(());
    }
    let begin = plain.len();
    plain.resize(begin + length, 0);
    let written = match header.compression {
        Compression::None => return Err("it is compressed and should not be"),
        Compression::Lz4 => {
            block::decompress_into(text, &mut plain[begin..]).map_err(|_| "it is no LZ4 block")
        }
        Compression::Zstd => zstd::bulk::decompress_to_buffer(text, &mut plain[begin..])
            .map_err(|_| "it is no Zstandard frame"),
    };
    match written {
        Ok(written) if written == length => Ok(()),
        Ok(_) => Err("it is compressed from fewer bytes"),
        Err(reason) => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of objects differ, so that equal nonces would do no harm; there are none all the same.
    #[test]
    fn nonces_of_a_million_objects_are_all_different() {
        let key = Key::new(NonZeroU32::MIN, &[3; 32]);
        let mut nonces: Vec<[u8; NONCE_BYTES]> = Vec::new();
        for object in 0..1_000_000u128 {
            // At two places of each the same; half of them are puts under names that others have.
            let cipher = key.of_put(&(object / 2).to_le_bytes(), PutId(uuid::Uuid::from_u128(object)));
            nonces.push(cipher.nonce(b"place", 0, None));
            nonces.push(cipher.nonce(b"place", 1, Some(b"text")));
        }
        let count = nonces.len();
        nonces.sort_unstable();
        nonces.dedup();
        assert_eq!((count, nonces.len()), (2_000_000, 2_000_000));
    }
}
