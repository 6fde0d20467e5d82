//! The options of a volume's part in the read cache: `cache=read-write`, `cache_quota=1GiB`.

use ovs_units::{CacheMode, VdiskCache, parse_size};

/// The options, with their meaning for the error text.
pub const CACHE_KEYS: [(&str, &str); 2] = [
    ("cache", "what goes into the read cache: none, read or read-write"),
    ("cache_quota", "what of the read cache others cannot take from it: 1GiB"),
];

const MODES: [(&str, CacheMode); 3] =
    [("none", CacheMode::None), ("read", CacheMode::Read), ("read-write", CacheMode::ReadWrite)];

/// What the options mean; `get` has the text of an option, if it was given. Refused: which, and what is allowed.
pub fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<VdiskCache, (&'static str, String)> {
    let mode = get("cache").map(|text| {
        let found = MODES.iter().find(|(word, _)| *word == text);
        found.map(|(_, mode)| *mode).ok_or(("cache", "none, read or read-write".to_owned()))
    });
    let quota =
        get("cache_quota").map(|text| parse_size(text).map_err(|error| ("cache_quota", error.to_string())));
    let cache = VdiskCache { mode: mode.transpose()?, quota_bytes: quota.transpose()? };
    cache.check().map_err(|_| ("cache_quota", "4KiB to 1PiB".to_owned()))?;
    Ok(cache)
}

/// What is given, as text that [`parse`] reads.
pub fn canonical(cache: &VdiskCache) -> impl Iterator<Item = (&'static str, String)> + use<> {
    let mode = cache.mode.and_then(|mode| MODES.iter().find(|(_, known)| *known == mode));
    let mode = mode.map(|(word, _)| ("cache", (*word).to_owned()));
    let quota = cache.quota_bytes.map(|bytes| ("cache_quota", bytes.to_string()));
    mode.into_iter().chain(quota)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(options: &[(&str, &str)], expected: Result<&[(&str, &str)], (&str, &str)>) {
        let get = |key: &str| options.iter().find(|(given, _)| *given == key).map(|(_, text)| *text);
        match (parse(get), expected) {
            (Ok(cache), Ok(expected)) => {
                let given: Vec<_> = canonical(&cache).collect();
                let given: Vec<_> = given.iter().map(|(key, text)| (*key, text.as_str())).collect();
                assert_eq!(given, expected);
            }
            (Err((key, reason)), Err((expected, part))) => {
                assert!(key == expected && reason.contains(part), "{key}: {reason}");
            }
            (found, _) => panic!("{options:?}: {found:?}"),
        }
    }

    #[test]
    fn they_are_read_and_written_and_what_is_refused_is_named() {
        check(&[], Ok(&[]));
        for mode in ["none", "read", "read-write"] {
            check(&[("cache", mode)], Ok(&[("cache", mode)]));
        }
        check(&[("cache_quota", "1MiB")], Ok(&[("cache_quota", "1048576")]));
        check(&[("cache", "yes")], Err(("cache", "read-write")));
        check(&[("cache_quota", "much")], Err(("cache_quota", "much")));
        check(&[("cache_quota", "5")], Err(("cache_quota", "4KiB")));
    }
}
