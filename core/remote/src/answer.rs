//! Whether an answer is the store's own, whole, and of what was asked for.
//!
//! What stands between us and a store (a proxy, a portal, a balancer without servers) answers in its place: a page with 200 or 404
//! says nothing about an object. What a store says of itself, and nobody else:
//!
//! | | each answer has | "no such object" | "the object ends here" |
//! |---|---|---|---|
//! | S3 | mostly `x-amz-request-id`; of an object an MD5 as its ETag | `NoSuchKey`; of a HEAD the former | `InvalidRange`, or the former |
//! | Swift | `X-Trans-Id` (Ceph too) | the same | the same |
//! | GCS | `x-guploader-uploadid` | the same | the same |
//! | Azure | `x-ms-request-id` | `x-ms-error-code: BlobNotFound` | the former |

use crate::{http::HttpError, redact::ERROR_BYTES_MAX};
use http::{HeaderMap, StatusCode, header};
use opendal::raw::Operation;

/// As which store an answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    S3,
    Swift,
    Gcs,
    Azblob,
}

/// S3's ETag of nothing.
const MD5_OF_NOTHING: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// SCOs and fragments have 128 MiB at most, and what is around them. What is longer is neither read nor put.
pub(crate) const OBJECT_BYTES_MAX: u64 = 256 << 20;
/// A page of a thousand names of a thousand letters, with all that some say of each.
const LISTING_BYTES_MAX: u64 = 8 << 20;
/// A catalogue of Keystone's, what Google says of an object.
const REST_BYTES_MAX: u64 = 1 << 20;

/// How long an answer may be that means that all is well.
pub(crate) fn bytes_max(operation: Option<Operation>, asked: Option<&http::HeaderValue>) -> u64 {
    match (operation, asked.and_then(asked_range)) {
        (Some(Operation::Read), Some((first, Some(last)))) => last.saturating_sub(first).saturating_add(1),
        (Some(Operation::Read), _) => OBJECT_BYTES_MAX,
        (Some(Operation::List), _) => LISTING_BYTES_MAX,
        _ => REST_BYTES_MAX,
    }
}

pub(crate) fn wrong(reason: impl Into<String>) -> HttpError {
    HttpError::Wrong(reason.into())
}

/// Is it the store that says so? `quote` shows a text without secrets.
pub(crate) fn check_origin(
    protocol: Protocol,
    operation: Operation,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    quote: impl Fn(&[u8]) -> String,
) -> Result<(), HttpError> {
    let code = status.as_u16();
    let is_s3 = protocol == Protocol::S3;
    let is_nowhere = match protocol {
        Protocol::S3 => has_code(body, "NoSuchBucket"),
        // Ceph's words; OpenStack's are those for an object.
        Protocol::Swift => contains(&body[..body.len().min(ERROR_BYTES_MAX)], "NoSuchBucket"),
        Protocol::Azblob => error_code(headers) == Some("ContainerNotFound"),
        // Its words: "The specified bucket does not exist."
        Protocol::Gcs => contains(&body[..body.len().min(ERROR_BYTES_MAX)], "bucket does not exist"),
    };
    if code == 404 && is_nowhere {
        return Err(HttpError::Status { code, text: quote(body) });
    }
    let is_marked = is_marked(protocol, headers);
    let is_own = match (operation, code) {
        (Operation::Stat, 404) if is_s3 && !is_marked => return Err(HttpError::Unmarked),
        (Operation::Read | Operation::Delete, 404) if is_s3 => has_code(body, "NoSuchKey"),
        (Operation::Read | Operation::Stat | Operation::Delete, 404) if protocol == Protocol::Azblob => {
            error_code(headers) == Some("BlobNotFound")
        }
        (Operation::Read | Operation::Stat | Operation::Delete, 404) => is_marked,
        (Operation::Read, 416) => is_marked || is_s3 && has_code(body, "InvalidRange"),
        (Operation::Read | Operation::Stat, 200..=299) => is_marked || is_s3 && has_md5(headers),
        // What a put has come to is looked at otherwise, and so is a listing of S3's. Its "deleted" has no mark at some.
        (Operation::Delete | Operation::List, 200..=299) => is_marked || is_s3,
        _ => true,
    };
    match is_own {
        true => Ok(()),
        // It may be a guest's data after all, which is nobody's to read.
        false if operation == Operation::Read && status.is_success() => {
            Err(wrong(format!("HTTP {code}, without a mark of the store")))
        }
        false => Err(wrong(format!("HTTP {code}, without a mark of the store: {}", quote(body)))),
    }
}

/// A header that this kind of store puts on its answers and nobody else does.
fn is_marked(protocol: Protocol, headers: &HeaderMap) -> bool {
    let marks: &[&str] = match protocol {
        Protocol::S3 => &["x-amz-request-id", "x-amz-id-2", "x-rgw-object-type"],
        Protocol::Swift => &["x-trans-id", "x-openstack-request-id"],
        Protocol::Gcs => &["x-guploader-uploadid"],
        Protocol::Azblob => &["x-ms-request-id"],
    };
    marks.iter().any(|mark| headers.contains_key(*mark))
}

/// S3's errors are XML: `<Error><Code>…</Code>…`.
pub(crate) fn has_code(body: &[u8], code: &str) -> bool {
    contains(&body[..body.len().min(ERROR_BYTES_MAX)], &format!("<Code>{code}</Code>"))
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|found| found == text.as_bytes())
}

/// Azure's.
fn error_code(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-ms-error-code")?.to_str().ok()
}

/// The ETag without its quotes.
pub(crate) fn etag(headers: &HeaderMap) -> Option<&str> {
    Some(headers.get(header::ETAG)?.to_str().ok()?.trim_matches('"'))
}

/// 32 hexadecimal digits, with `-` and a number where the object was put in parts.
fn has_md5(headers: &HeaderMap) -> bool {
    let Some(tag) = etag(headers) else { return false };
    let (digits, parts) = tag.split_once('-').unwrap_or((tag, "1"));
    digits.len() == 32 && digits.bytes().all(|c| c.is_ascii_hexdigit()) && parts.parse::<u32>().is_ok()
}

/// Without either of them a body ends where the connection does, and one that was cut off looks whole.
pub(crate) fn check_framing(headers: &HeaderMap) -> Result<(), HttpError> {
    match headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING) {
        true => Ok(()),
        false => Err(wrong("a body without a length")),
    }
}

/// Any XML at all is a listing of nothing to OpenDAL: a page of a proxy's, an error that comes with 200.
pub(crate) fn check_listing(
    query: &str,
    body: &[u8],
    quote: impl Fn(&[u8]) -> String,
) -> Result<(), HttpError> {
    let root = match query {
        query if query.contains("list-type=2") => "<ListBucketResult",
        query if query.contains("comp=list") => "<EnumerationResults",
        _ => return Ok(()),
    };
    match contains(body, root) {
        true => Ok(()),
        false => Err(wrong(format!("no listing: {}", quote(body)))),
    }
}

/// `bytes=FIRST-` or `bytes=FIRST-LAST` (RFC 9110, 14.1.2); anything else is not asked for here.
fn asked_range(header: &http::HeaderValue) -> Option<(u64, Option<u64>)> {
    let (first, last) = header.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, if last.is_empty() { None } else { Some(last.parse().ok()?) }))
}

/// `bytes FIRST-LAST/SIZE` (RFC 9110, 14.4).
fn told_range(header: &http::HeaderValue) -> Option<(u64, u64, u64)> {
    let (range, size) = header.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, size.parse().ok()?))
}

/// `bytes */SIZE`: of an object that ends before the range (RFC 9110, 14.4). Not all say it.
fn told_size(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes */")?.parse().ok()
}

/// What was asked for, or what of it there is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    All,
    Ended,
}

/// Exactly the bytes asked for, up to the object's end.
pub(crate) fn check_range(
    asked: Option<&http::HeaderValue>,
    status: StatusCode,
    headers: &HeaderMap,
    length: u64,
) -> Result<Told, HttpError> {
    let asked = match asked.map(asked_range) {
        None if status == StatusCode::PARTIAL_CONTENT => return Err(wrong("a part where all was asked for")),
        None => return Ok(Told::All),
        Some(None) => return Err(wrong("a range that is none")),
        Some(Some(asked)) => asked,
    };
    let (first, last) = asked;
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        return match told_size(headers) {
            Some(size) if size > first => {
                Err(wrong(format!("no byte {first} of {size}, which there has to be")))
            }
            _ => Ok(Told::Ended),
        };
    }
    if status != StatusCode::PARTIAL_CONTENT {
        // Of an empty object there is no range, and some say 200 to that.
        let is_empty =
            length == 0 && etag(headers).is_none_or(|tag| tag.len() != 32 || tag == MD5_OF_NOTHING);
        return if is_empty { Ok(Told::Ended) } else { Err(wrong("the server ignores ranges")) };
    }
    let told = headers.get(header::CONTENT_RANGE).and_then(told_range);
    let Some((told_first, told_last, size)) = told else {
        return Err(wrong("a part of which no range is told"));
    };
    // Nothing, of what begins where the object ends: so Azurite says it, where Azure says 416.
    if (told_first, size, length) == (first, first, 0) && told_last.checked_add(1) == Some(first) {
        return Ok(Told::Ended);
    }
    let expected_last = last.unwrap_or(u64::MAX).min(size.saturating_sub(1));
    let is_right = told_first == first && told_last == expected_last && told_last >= told_first;
    if is_right && length == told_last - told_first + 1 {
        return Ok(if last.is_none_or(|last| told_last == last) { Told::All } else { Told::Ended });
    }
    let asked = last.map_or(format!("{first}-"), |last| format!("{first}-{last}"));
    Err(wrong(format!("bytes {told_first}-{told_last} of {size}, {length} of them, for {asked}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(asked: &str, status: u16, told: &str, length: u64, expected: Option<Told>) {
        let mut headers = HeaderMap::new();
        if !told.is_empty() {
            headers.insert(header::CONTENT_RANGE, told.parse().unwrap());
        }
        let asked_header: Option<http::HeaderValue> = (!asked.is_empty()).then(|| asked.parse().unwrap());
        let result =
            check_range(asked_header.as_ref(), StatusCode::from_u16(status).unwrap(), &headers, length);
        assert_eq!(result.as_ref().ok(), expected.as_ref(), "{asked}, {status} {told} {length}: {result:?}");
    }

    #[test]
    fn only_the_range_asked_for_is_taken() {
        check("", 200, "", 10, Some(Told::All));
        check("", 206, "bytes 0-9/10", 10, None);
        check("bytes=2-5", 206, "bytes 2-5/10", 4, Some(Told::All));
        check("bytes=2-50", 206, "bytes 2-9/10", 8, Some(Told::Ended));
        check("bytes=2-", 206, "bytes 2-9/10", 8, Some(Told::All));
        check("bytes=0-9", 200, "", 0, Some(Told::Ended));
        check("bytes=10-19", 416, "", 300, Some(Told::Ended));
        check("bytes=10-19", 416, "bytes */10", 0, Some(Told::Ended));
        check("bytes=9-19", 416, "bytes */10", 0, None);
        check("bytes=10-19", 206, "bytes 10-9/10", 0, Some(Told::Ended));
        check("bytes=10-19", 206, "bytes 10-9/10", 1, None);
        check("bytes=10-19", 206, "bytes 10-9/11", 0, None);
        check("bytes=9-19", 206, "bytes 10-9/10", 0, None);
        check("bytes=0-9", 206, "bytes 0-18446744073709551615/0", 0, None);
        // Ignored, shifted, cut off although the object goes on, another length than it says, not told at all.
        check("bytes=2-5", 200, "", 10, None);
        check("bytes=2-5", 206, "bytes 3-5/10", 3, None);
        check("bytes=2-5", 206, "bytes 2-4/10", 3, None);
        check("bytes=2-5", 206, "bytes 2-5/10", 3, None);
        check("bytes=2-5", 206, "bytes 2-5/*", 4, None);
        check("bytes=2-5", 206, "", 4, None);
        check("bytes=2-", 206, "bytes 2-5/10", 4, None);
        check("bytes=2-5", 206, "bytes 2-1/0", 0, None);
        check("bytes=2-5", 206, "bytes 0-18446744073709551615/18446744073709551615", 0, None);
    }

    /// `expected`: is it the store's own; `None`: another request has to tell.
    fn check_own(
        protocol: Protocol,
        operation: Operation,
        code: u16,
        headers: &[(&'static str, &str)],
        body: &str,
        expected: Option<bool>,
    ) {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect();
        let status = StatusCode::from_u16(code).unwrap();
        let is_own =
            match check_origin(protocol, operation, status, &headers, body.as_bytes(), |_| String::new()) {
                Ok(()) => Some(true),
                Err(HttpError::Unmarked) => None,
                Err(_) => Some(false),
            };
        assert_eq!(is_own, expected, "{protocol:?} {operation:?} {code} {headers:?} {body}");
    }

    #[test]
    fn only_the_store_says_what_there_is() {
        use Operation::{Delete, List, Read, Stat};
        use Protocol::{Azblob, Gcs, S3, Swift};
        let id = ("x-amz-request-id", "tx1");
        let md5 = ("etag", "\"d41d8cd98f00b204e9800998ecf8427e\"");
        let key = "<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code></Error>";
        let bucket = "<Error><Code>NoSuchBucket</Code></Error>";
        let page = "<html>Not Found</html>";
        check_own(S3, Read, 404, &[id], key, Some(true));
        check_own(S3, Read, 404, &[], key, Some(true));
        check_own(S3, Read, 404, &[id], page, Some(false));
        check_own(S3, Read, 404, &[id], bucket, Some(false));
        check_own(S3, Stat, 404, &[id], "", Some(true));
        check_own(S3, Stat, 404, &[], "", None);
        check_own(S3, Delete, 404, &[], page, Some(false));
        check_own(S3, Read, 416, &[], "<Error><Code>InvalidRange</Code></Error>", Some(true));
        check_own(S3, Read, 416, &[], page, Some(false));
        check_own(S3, Read, 200, &[], page, Some(false));
        check_own(S3, Read, 206, &[md5], "x", Some(true));
        check_own(S3, Stat, 200, &[("etag", "\"5f3c-12\"")], "", Some(false));
        check_own(S3, Stat, 200, &[("etag", "\"d41d8cd98f00b204e9800998ecf8427e-12\"")], "", Some(true));
        // CloudFront's own pages have these.
        check_own(S3, Stat, 200, &[("x-amz-cf-id", "x")], "", Some(false));
        let id = ("x-trans-id", "tx1");
        for (operation, code) in
            [(Read, 404), (Stat, 404), (Delete, 404), (Read, 416), (Read, 200), (Delete, 204), (List, 200)]
        {
            check_own(Swift, operation, code, &[id], page, Some(true));
            check_own(Swift, operation, code, &[md5], page, Some(false));
            check_own(Gcs, operation, code, &[("x-guploader-uploadid", "x")], page, Some(true));
            check_own(Gcs, operation, code, &[id], page, Some(false));
        }
        check_own(Swift, Read, 404, &[id], "NoSuchBucket", Some(false));
        let id = ("x-ms-request-id", "1");
        check_own(Azblob, Stat, 404, &[id, ("x-ms-error-code", "BlobNotFound")], "", Some(true));
        check_own(Azblob, Stat, 404, &[id, ("x-ms-error-code", "ContainerNotFound")], "", Some(false));
        check_own(Azblob, Stat, 404, &[id], "", Some(false));
        check_own(Azblob, Read, 200, &[id], "", Some(true));
    }
}
