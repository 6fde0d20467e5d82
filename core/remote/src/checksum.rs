//! What is stored is what was sent: the MD5 of a put's bytes, in each store's words.
//!
//! | | sent, and checked by the store | told of what it has stored |
//! |---|---|---|
//! | S3 | `Content-MD5`, signed by OpenDAL | ETag; another one where it encrypts with keys of its own (KMS) |
//! | Swift | ETag | ETag |
//! | GCS | nothing | `md5Hash` in its JSON |
//! | Azure | nothing | `Content-MD5` |
//!
//! A put of which that is not told is read back (`backend.rs`).

use crate::answer::etag;
use http::{HeaderMap, HeaderName};
use md5::{Digest, Md5};
use opendal::Buffer;
use tokio::task::yield_now;

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
/// Others have their turn after so many bytes.
const PIECE_BYTES: usize = 1 << 20;

/// The MD5 of what is put.
pub(crate) struct Checksum {
    /// As `Content-MD5` has it.
    base64: String,
    /// As ETags have it, where it was made here.
    pub(crate) hex: String,
}

impl Checksum {
    /// The one that is sent already, or a new one.
    pub(crate) async fn of(headers: &HeaderMap, body: &Buffer) -> Checksum {
        if let Some(sent) = headers.get(CONTENT_MD5).and_then(|sent| sent.to_str().ok()) {
            return Checksum { base64: sent.to_owned(), hex: String::new() };
        }
        let mut md5 = Md5::new();
        for bytes in body.clone() {
            for piece in bytes.chunks(PIECE_BYTES) {
                md5.update(piece);
                yield_now().await;
            }
        }
        let sum = md5.finalize();
        Checksum { base64: base64(&sum), hex: sum.iter().map(|byte| format!("{byte:02x}")).collect() }
    }

    /// Does the store say that it has these bytes?
    pub(crate) fn is_told(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let is_etag = etag(headers).and_then(from_hex).is_some_and(|sum| base64(&sum) == self.base64);
        let is_header = headers.get(CONTENT_MD5).is_some_and(|sum| sum == self.base64.as_str());
        is_etag || is_header || {
            let object = serde_json::from_slice::<serde_json::Value>(body);
            object.is_ok_and(|object| object["md5Hash"] == self.base64.as_str())
        }
    }
}

fn from_hex(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// RFC 4648, section 4.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit <= three.len() { DIGITS[index] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header;

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648, section 10.
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    async fn check_told(headers: &[(HeaderName, &str)], body: &str, expected: bool) {
        let sum = Checksum::of(&HeaderMap::new(), &Buffer::from("foobar")).await;
        assert_eq!(sum.hex, "3858f62230ac3c915f300c664312c63f");
        let told = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        assert_eq!(sum.is_told(&told, body.as_bytes()), expected, "{headers:?} {body}");
        // As it is when OpenDAL has made it.
        let sent = [(CONTENT_MD5, sum.base64.parse().unwrap())].into_iter().collect();
        assert_eq!(Checksum::of(&sent, &Buffer::new()).await.is_told(&told, body.as_bytes()), expected);
    }

    #[tokio::test]
    async fn each_store_has_its_words() {
        check_told(&[(header::ETAG, "\"3858f62230ac3c915f300c664312c63f\"")], "", true).await;
        check_told(&[(header::ETAG, "3858F62230AC3C915F300C664312C63F")], "", true).await;
        check_told(&[(CONTENT_MD5, "OFj2IjCsPJFfMAxmQxLGPw==")], "", true).await;
        check_told(&[], "{\"md5Hash\": \"OFj2IjCsPJFfMAxmQxLGPw==\"}", true).await;
        check_told(&[], "", false).await;
        check_told(&[(header::ETAG, "3858f62230ac3c915f300c664312c63e")], "", false).await;
        check_told(&[(header::ETAG, "3858f62230ac3c915f300c664312c63f-2")], "", false).await;
        check_told(&[(header::ETAG, "äääääääääääääääää")], "", false).await;
        check_told(&[], "{\"md5Hash\": 1}", false).await;
    }
}
