//! The options that limit a volume's I/O: `iops=500`, `write_bandwidth=20MiB`, `burst_time=30`.
//!
//! The same words as on `ovs vdisk limits`, with underscores. What they may be is the vDisk's rule ([`Limits::check`]).

use ovs_units::{Limits, Rates, parse_size};

/// The options, with their meaning for the error text.
pub const LIMIT_KEYS: [(&str, &str); 13] = [
    ("bandwidth", "bytes per second: 100MiB"),
    ("bandwidth_burst", "bytes per second in a burst"),
    ("burst_time", "for how many seconds a burst goes on"),
    ("iops", "requests per second: 500"),
    ("iops_burst", "requests per second in a burst"),
    ("read_bandwidth", "bytes read per second"),
    ("read_bandwidth_burst", "the same in a burst"),
    ("read_iops", "reads per second"),
    ("read_iops_burst", "the same in a burst"),
    ("write_bandwidth", "bytes written per second"),
    ("write_bandwidth_burst", "the same in a burst"),
    ("write_iops", "writes per second"),
    ("write_iops_burst", "the same in a burst"),
];

/// Why an option was refused: which, and what is allowed.
pub type Refused = (&'static str, String);

/// The limits that the options mean; `get` has the text of an option, if it was given.
pub fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Limits, Refused> {
    let mut limits = Limits::default();
    for (key, _) in LIMIT_KEYS {
        let Some(text) = get(key) else { continue };
        let value = if key.contains("bandwidth") {
            parse_size(text.strip_suffix("/s").unwrap_or(text)).map_err(|error| error.to_string())
        } else {
            text.parse().map_err(|_| "a number".to_owned())
        };
        *member(&mut limits, key) = Some(value.map_err(|reason| (key, reason))?);
    }
    limits.check().map_err(|error| (key_of(&error.field), error.allowed))?;
    Ok(limits)
}

/// Those that are given, as text that [`parse`] reads.
pub fn canonical(limits: &Limits) -> impl Iterator<Item = (&'static str, String)> + use<> {
    let mut limits = *limits;
    LIMIT_KEYS
        .into_iter()
        .filter_map(move |(key, _)| member(&mut limits, key).map(|value| (key, value.to_string())))
}

fn member<'a>(limits: &'a mut Limits, key: &str) -> &'a mut Option<u64> {
    let (Rates { iops, iops_burst, bytes_per_s, bytes_per_s_burst }, rest) = match key.split_once('_') {
        Some(("read", rest)) => (&mut limits.read, rest),
        Some(("write", rest)) => (&mut limits.write, rest),
        _ => (&mut limits.total, key),
    };
    match rest {
        "iops" => iops,
        "iops_burst" => iops_burst,
        "bandwidth" => bytes_per_s,
        "bandwidth_burst" => bytes_per_s_burst,
        _ => &mut limits.burst_s,
    }
}

/// The option that sets a field of [`Limits`].
fn key_of(field: &str) -> &'static str {
    let same = |key: &&str| {
        let key = key.replace("burst_time", "burst_s").replace("bandwidth", "bytes_per_s");
        let key = key.strip_prefix("read_").map(|rest| format!("read.{rest}")).unwrap_or(key);
        let key = key.strip_prefix("write_").map(|rest| format!("write.{rest}")).unwrap_or(key);
        key == field || format!("total.{key}") == field
    };
    LIMIT_KEYS.iter().map(|(key, _)| *key).find(same).unwrap_or("iops")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(options: &[(&str, &str)], expected: Result<&[(&str, &str)], (&str, &str)>) {
        let get = |key: &str| options.iter().find(|(given, _)| *given == key).map(|(_, text)| *text);
        match (parse(get), expected) {
            (Ok(limits), Ok(expected)) => {
                let given: Vec<_> = canonical(&limits).collect();
                let given: Vec<_> = given.iter().map(|(key, text)| (*key, text.as_str())).collect();
                assert_eq!(given, expected);
            }
            (Err((key, reason)), Err((expected, part))) => {
                assert_eq!(key, expected, "{reason}");
                assert!(reason.contains(part), "{reason}");
            }
            (found, _) => panic!("{options:?}: {found:?}"),
        }
    }

    #[test]
    fn limits_are_read_and_written() {
        check(&[], Ok(&[]));
        let all: Vec<(&str, &str)> = LIMIT_KEYS.iter().map(|(key, _)| (*key, "1000000")).collect();
        let burst = all.iter().map(|(key, text)| (*key, if *key == "burst_time" { "30" } else { *text }));
        let all: Vec<(&str, &str)> = burst.collect();
        check(&all, Ok(&all));
        check(
            &[("bandwidth", "1MiB/s"), ("read_iops", "5")],
            Ok(&[("bandwidth", "1048576"), ("read_iops", "5")]),
        );
    }

    #[test]
    fn what_is_refused_is_named() {
        check(&[("iops", "0")], Err(("iops", "1 to")));
        check(&[("iops", "-5")], Err(("iops", "a number")));
        check(&[("write_iops", "99999999999999999999")], Err(("write_iops", "a number")));
        check(&[("read_bandwidth", "100")], Err(("read_bandwidth", "64KiB")));
        check(&[("write_bandwidth", "fast")], Err(("write_bandwidth", "fast")));
        check(&[("write_bandwidth_burst", "1MiB")], Err(("write_bandwidth_burst", "only beside")));
        check(&[("iops", "5"), ("iops_burst", "4")], Err(("iops_burst", "at least the 5")));
        check(&[("iops", "5"), ("burst_time", "0")], Err(("burst_time", "seconds")));
    }
}
