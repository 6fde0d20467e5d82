//! Limits of a vDisk as requests give them: a change to what is there.

use crate::Problem;
use ovs_units::{BURST_S_MAX, BYTES_PER_S_MAX, BYTES_PER_S_MIN, IOPS_MAX, Limits, LimitsError, Rates};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// A change to limits: a value sets, null removes (a rate with its burst), what is not given stays. In the terms of QEMU and
/// of Cinder's QoS: `total.iops` is `total_iops_sec`, `total.iops_burst` is `total_iops_sec_max`, `read.bytes_per_s` is
/// `read_bytes_sec`, `burst_s` is `total_iops_sec_max_length` and all others of that name. Here a common limit and limits of
/// reads and of writes go together: each holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsPatch {
    /// Reads, writes, discards and write-zeroes together.
    #[serde(default, skip_serializing_if = "RatesPatch::is_empty")]
    pub total: RatesPatch,
    /// Reads.
    #[serde(default, skip_serializing_if = "RatesPatch::is_empty")]
    pub read: RatesPatch,
    /// Writes, discards and write-zeroes.
    #[serde(default, skip_serializing_if = "RatesPatch::is_empty")]
    pub write: RatesPatch,
    /// For how many seconds a burst goes on at its rate after a long rest; 1 where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schemars(range(min = 1, max = 86_400))]
    pub burst_s: Option<Option<u64>>,
}

/// A change to limits of requests of a kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RatesPatch {
    /// Requests per second, in the long run.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub iops: Option<Option<u64>>,
    /// Requests per second in a burst, at least `iops`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub iops_burst: Option<Option<u64>>,
    /// Bytes per second, in the long run; of discards and write-zeroes none count.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schemars(range(min = 65_536, max = 1_099_511_627_776_u64))]
    pub bytes_per_s: Option<Option<u64>>,
    /// Bytes per second in a burst, at least `bytes_per_s`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schemars(range(min = 65_536, max = 1_099_511_627_776_u64))]
    pub bytes_per_s_burst: Option<Option<u64>>,
}

const _: () = assert!(IOPS_MAX == 100_000_000 && BURST_S_MAX == 86_400);
const _: () = assert!(BYTES_PER_S_MIN == 65_536 && BYTES_PER_S_MAX == 1_099_511_627_776);

/// Something, be it null.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl RatesPatch {
    /// Nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == RatesPatch::default()
    }

    fn patch(&self, rates: Rates) -> Rates {
        let (iops, iops_burst) = patched(rates.iops, rates.iops_burst, self.iops, self.iops_burst);
        let (bytes_per_s, bytes_per_s_burst) =
            patched(rates.bytes_per_s, rates.bytes_per_s_burst, self.bytes_per_s, self.bytes_per_s_burst);
        Rates { iops, iops_burst, bytes_per_s, bytes_per_s_burst }
    }
}

/// A burst goes with its rate.
fn patched(
    rate: Option<u64>,
    burst: Option<u64>,
    new_rate: Option<Option<u64>>,
    new_burst: Option<Option<u64>>,
) -> (Option<u64>, Option<u64>) {
    let burst = burst.filter(|_| new_rate != Some(None));
    (new_rate.unwrap_or(rate), new_burst.unwrap_or(burst))
}

impl LimitsPatch {
    /// These, and all others removed.
    #[must_use]
    pub fn alone(self) -> LimitsPatch {
        let rates = |given: RatesPatch| RatesPatch {
            iops: given.iops.or(Some(None)),
            iops_burst: given.iops_burst.or(Some(None)),
            bytes_per_s: given.bytes_per_s.or(Some(None)),
            bytes_per_s_burst: given.bytes_per_s_burst.or(Some(None)),
        };
        LimitsPatch {
            total: rates(self.total),
            read: rates(self.read),
            write: rates(self.write),
            burst_s: self.burst_s.or(Some(None)),
        }
    }

    /// Nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == LimitsPatch::default()
    }

    /// The limits after the change; refused when no vDisk may have them.
    pub fn patch(&self, limits: Limits) -> Result<Limits, Problem> {
        let patched = Limits {
            total: self.total.patch(limits.total),
            read: self.read.patch(limits.read),
            write: self.write.patch(limits.write),
            burst_s: self.burst_s.unwrap_or(limits.burst_s),
        };
        patched.check().map_err(|LimitsError { field, given, allowed }| {
            Problem::field(&format!("limits.{field}"), given, &allowed)
        })?;
        Ok(patched)
    }
}

/// Those that are there, given.
impl From<Limits> for LimitsPatch {
    fn from(limits: Limits) -> LimitsPatch {
        let rates = |Rates { iops, iops_burst, bytes_per_s, bytes_per_s_burst }| RatesPatch {
            iops: iops.map(Some),
            iops_burst: iops_burst.map(Some),
            bytes_per_s: bytes_per_s.map(Some),
            bytes_per_s_burst: bytes_per_s_burst.map(Some),
        };
        LimitsPatch {
            total: rates(limits.total),
            read: rates(limits.read),
            write: rates(limits.write),
            burst_s: limits.burst_s.map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn limits(json: Value) -> Limits {
        serde_json::from_value(json).unwrap()
    }

    #[track_caller]
    fn check(before: Value, patch: Value, expected: Result<Value, &str>) {
        let parsed: LimitsPatch = serde_json::from_value(patch.clone()).unwrap();
        assert_eq!(serde_json::to_value(&parsed).unwrap(), patch, "it is sent as it was read");
        match (parsed.patch(limits(before)), expected) {
            (Ok(after), Ok(expected)) => assert_eq!(serde_json::to_value(after).unwrap(), expected),
            (Err(problem), Err(part)) => assert!(problem.detail.contains(part), "{}", problem.detail),
            (found, _) => panic!("{patch}: {found:?}"),
        }
    }

    #[test]
    fn a_value_sets_null_removes_and_the_rest_stays() {
        check(json!({}), json!({"total": {"iops": 5}}), Ok(json!({"total": {"iops": 5}})));
        check(
            json!({"total": {"iops": 5, "iops_burst": 9}, "burst_s": 3}),
            json!({"read": {"bytes_per_s": 65536}, "burst_s": null}),
            Ok(json!({"total": {"iops": 5, "iops_burst": 9}, "read": {"bytes_per_s": 65536}})),
        );
        check(
            json!({"total": {"iops": 5, "iops_burst": 9}}),
            json!({"total": {"iops": null}}),
            Ok(json!({})),
        );
        check(
            json!({"total": {"iops": 5, "iops_burst": 9}}),
            json!({"total": {"iops_burst": null}}),
            Ok(json!({"total": {"iops": 5}})),
        );
        let all = limits(
            json!({"read": {"iops": 5, "iops_burst": 6, "bytes_per_s": 65536, "bytes_per_s_burst": 65537}, "burst_s": 3}),
        );
        assert_eq!(LimitsPatch::from(all).patch(Limits::default()), Ok(all));
        let none = LimitsPatch::default().alone().patch(limits(json!({"write": {"iops": 5}, "burst_s": 3})));
        assert_eq!(none.unwrap(), Limits::default());
    }

    #[test]
    fn what_comes_of_it_must_be_allowed() {
        check(json!({}), json!({"total": {"iops": 0}}), Err("limits.total.iops: \"0\" is not allowed: 1 to"));
        check(json!({}), json!({"read": {"bytes_per_s": 100}}), Err("limits.read.bytes_per_s"));
        check(json!({}), json!({"write": {"iops_burst": 7}}), Err("only beside write.iops"));
        check(
            json!({"total": {"iops": 5, "iops_burst": 9}}),
            json!({"total": {"iops": 10}}),
            Err("limits.total.iops_burst: \"9\" is not allowed: at least the 10 of total.iops"),
        );
        for bad in [
            json!({"total": {"iops": -1}}),
            json!({"total": {"iops": 1.5}}),
            json!({"total": {"iops": "5"}}),
            json!({"total": {"iops": 18446744073709551616.0}}),
            json!({"total": {"iop": 1}}),
            json!({"all": {"iops": 1}}),
            json!({"total": null}),
        ] {
            assert!(serde_json::from_value::<LimitsPatch>(bad.clone()).is_err(), "{bad}");
        }
    }
}
