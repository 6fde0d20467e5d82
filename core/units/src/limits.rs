//! How much I/O the guests of a vDisk may do, in requests and bytes per second.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use thiserror::Error;

/// No device does more requests a second.
pub const IOPS_MAX: u64 = 100_000_000;
/// Less than that per second is a forgotten unit.
pub const BYTES_PER_S_MIN: u64 = 64 << 10;
/// 1 TiB per second.
pub const BYTES_PER_S_MAX: u64 = 1 << 40;
/// A burst lasts a day at most.
pub const BURST_S_MAX: u64 = 24 * 3600;
/// And so long when nothing is said.
pub const BURST_S_DEFAULT: u64 = 1;

/// The limits of a vDisk: reads and writes together, reads alone, writes alone. What is not given is not limited; where
/// several are, each holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Reads, writes, discards and write-zeroes together.
    #[serde(default, skip_serializing_if = "Rates::is_none")]
    pub total: Rates,
    /// Reads.
    #[serde(default, skip_serializing_if = "Rates::is_none")]
    pub read: Rates,
    /// Writes, discards and write-zeroes.
    #[serde(default, skip_serializing_if = "Rates::is_none")]
    pub write: Rates,
    /// For how many seconds a burst goes on at its rate after a long rest; 1 when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_s: Option<u64>,
}

/// Limits of requests of a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rates {
    /// Requests per second, in the long run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Requests per second in a burst; `iops` when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops_burst: Option<u64>,
    /// Bytes per second, in the long run; of discards and write-zeroes none count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
    /// Bytes per second in a burst; `bytes_per_s` when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s_burst: Option<u64>,
}

/// A limit that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {given} is not allowed: {allowed}")]
pub struct LimitsError {
    /// Which, as `total.iops`.
    pub field: String,
    /// What was given.
    pub given: u64,
    /// What is allowed.
    pub allowed: String,
}

impl Rates {
    /// Nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Rates::default()
    }

    fn check(&self, kind: &str) -> Result<(), LimitsError> {
        let iops = (1, IOPS_MAX, "1 to 100000000 requests per second");
        let bytes = (BYTES_PER_S_MIN, BYTES_PER_S_MAX, "64KiB to 1TiB per second");
        for (name, rate, burst, (least, most, range)) in [
            ("iops", self.iops, self.iops_burst, iops),
            ("bytes_per_s", self.bytes_per_s, self.bytes_per_s_burst, bytes),
        ] {
            let refuse = |suffix: &str, given, allowed| {
                Err(LimitsError { field: format!("{kind}.{name}{suffix}"), given, allowed })
            };
            match (rate, burst) {
                (Some(rate), _) if !(least..=most).contains(&rate) => return refuse("", rate, range.into()),
                (_, Some(burst)) if !(least..=most).contains(&burst) => {
                    return refuse("_burst", burst, range.into());
                }
                (None, Some(burst)) => {
                    return refuse("_burst", burst, format!("a burst only beside {kind}.{name}"));
                }
                (Some(rate), Some(burst)) if burst < rate => {
                    let allowed = format!("at least the {rate} of {kind}.{name}; give both, or no burst");
                    return refuse("_burst", burst, allowed);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Limits {
    /// Nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }

    /// For how long a burst goes on at its rate.
    pub fn burst(&self) -> Duration {
        Duration::from_secs(self.burst_s.unwrap_or(BURST_S_DEFAULT))
    }

    /// The groups by name.
    pub fn groups(&self) -> [(&'static str, Rates); 3] {
        [("total", self.total), ("read", self.read), ("write", self.write)]
    }

    /// Refuses what no vDisk may have.
    pub fn check(&self) -> Result<(), LimitsError> {
        for (kind, rates) in self.groups() {
            rates.check(kind)?;
        }
        match self.burst_s {
            Some(given) if !(1..=BURST_S_MAX).contains(&given) => {
                let allowed = format!("1 to {BURST_S_MAX} seconds");
                Err(LimitsError { field: "burst_s".into(), given, allowed })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rates: Rates, burst_s: Option<u64>, expected: Result<(), &str>) {
        let limits = Limits { write: rates, burst_s, ..Limits::default() };
        match (limits.check(), expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, _) => panic!("{limits:?}: {found:?}"),
        }
    }

    fn iops(iops: u64, burst: Option<u64>) -> Rates {
        Rates { iops: Some(iops), iops_burst: burst, ..Rates::default() }
    }

    #[test]
    fn what_no_vdisk_may_have_is_refused_by_name() {
        check(Rates::default(), None, Ok(()));
        check(iops(1, None), None, Ok(()));
        check(iops(100, Some(100)), Some(1), Ok(()));
        check(iops(0, None), None, Err("write.iops: 0"));
        check(iops(u64::MAX, None), None, Err("write.iops: 18446744073709551615"));
        check(iops(100, Some(99)), None, Err("write.iops_burst: 99 is not allowed: at least the 100"));
        check(iops(100, Some(u64::MAX)), None, Err("write.iops_burst"));
        check(Rates { iops_burst: Some(5), ..Rates::default() }, None, Err("only beside write.iops"));
        check(Rates { bytes_per_s: Some(100), ..Rates::default() }, None, Err("64KiB to 1TiB"));
        check(Rates { bytes_per_s: Some(1 << 20), ..Rates::default() }, Some(0), Err("burst_s: 0"));
        check(iops(100, Some(200)), Some(86_401), Err("burst_s: 86401"));
    }
}
