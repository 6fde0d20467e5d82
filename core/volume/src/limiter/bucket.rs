//! One limit, as a leaky bucket of which only the time is kept at which it takes the next request.
//!
//! ```text
//!  ────────┬──────── depth ────────┬──▶ time        passes: at `takes_at` or later
//!      takes_at (it is full)    it is empty          then:   takes_at = max(takes_at, passed − depth) + cost ÷ rate
//! ```
//!
//! A request that costs more than the bucket holds passes all the same, and those behind it wait for longer.

use super::GuestRequest;
use ovs_units::{Limits, Rates, planted};
use std::time::Duration;

/// How long a rate without a burst may be saved up: what the timer (1 ms) and a thread that is busy cost a guest that sends
/// one request at a time. Little enough that a second has no more than 2 % too much.
const SLACK: Duration = Duration::from_millis(20);
/// So far into the future or the past, and no further: 73 years.
const NANOS_MAX: i64 = i64::MAX / 4;

/// A time of the engine's clock, or a stretch of it; before its start too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Nanos(i64);

impl Nanos {
    /// Longer ago than anything.
    const LONG_AGO: Nanos = Nanos(-NANOS_MAX);

    fn plus(self, other: Nanos) -> Nanos {
        Nanos(self.0.saturating_add(other.0).clamp(-NANOS_MAX, NANOS_MAX))
    }

    pub(super) fn minus(self, other: Nanos) -> Nanos {
        self.plus(Nanos(-other.0))
    }

    /// `units` at `per_s` of them a second.
    fn taken_by(units: u128, per_s: u64) -> Nanos {
        let nanos = units.saturating_mul(1_000_000_000) / u128::from(per_s.max(1));
        Nanos(i64::try_from(nanos).unwrap_or(NANOS_MAX).min(NANOS_MAX))
    }

    /// As a time to sleep, nothing if it is over.
    pub(super) fn to_duration(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<Duration> for Nanos {
    fn from(duration: Duration) -> Nanos {
        Nanos(i64::try_from(duration.as_nanos()).unwrap_or(NANOS_MAX).min(NANOS_MAX))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    All,
    Reads,
    Writes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Requests,
    Bytes,
}

/// What a bucket is for: after a change, one for the same goes on from where the old one was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Purpose {
    whose: Whose,
    unit: Unit,
    /// It bounds a burst, not the long run.
    is_peak: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    purpose: Purpose,
    per_s: u64,
    depth: Nanos,
    takes_at: Nanos,
}

impl Bucket {
    /// Those that some limits mean. What an old one owed or had saved up stays, in requests or bytes; a new one begins full.
    pub(super) fn all_of(limits: &Limits, old: &[Bucket], now: Nanos) -> Vec<Bucket> {
        let mut buckets = Vec::new();
        let groups = [(Whose::All, limits.total), (Whose::Reads, limits.read), (Whose::Writes, limits.write)];
        for (whose, rates) in groups {
            let Rates { iops, iops_burst, bytes_per_s, bytes_per_s_burst } = rates;
            for (unit, rate, burst) in
                [(Unit::Requests, iops, iops_burst), (Unit::Bytes, bytes_per_s, bytes_per_s_burst)]
            {
                let Some(per_s) = rate else { continue };
                let peak = burst.filter(|peak| *peak > per_s);
                // At the peak it is empty after the time of a burst.
                let spare = peak.map_or(0, |peak| peak - per_s);
                let spare = u128::from(spare) * u128::from(limits.burst().as_secs());
                let depth = Nanos::taken_by(spare, per_s).plus(SLACK.into());
                let steady = Purpose { whose, unit, is_peak: false };
                buckets.push(Bucket { purpose: steady, per_s, depth, takes_at: Nanos::LONG_AGO });
                if let Some(per_s) = peak {
                    let peak = Purpose { is_peak: true, ..steady };
                    buckets.push(Bucket {
                        purpose: peak,
                        per_s,
                        depth: SLACK.into(),
                        takes_at: Nanos::LONG_AGO,
                    });
                }
            }
        }
        for bucket in &mut buckets {
            if let Some(old) = old.iter().find(|old| old.purpose == bucket.purpose) {
                bucket.go_on_from(old, now);
            }
        }
        buckets
    }

    fn go_on_from(&mut self, old: &Bucket, now: Nanos) {
        let owed = old.takes_at.minus(now).max(Nanos(0).minus(old.depth));
        let scaled = i128::from(owed.0) * i128::from(old.per_s) / i128::from(self.per_s.max(1));
        let bound = i128::from(NANOS_MAX);
        self.takes_at = now.plus(Nanos(scaled.clamp(-bound, bound) as i64));
    }

    /// What a request costs, if it concerns this bucket.
    fn cost(&self, request: GuestRequest) -> Option<Nanos> {
        let is_concerned = match self.purpose.whose {
            Whose::All => true,
            Whose::Reads => request.is_read(),
            Whose::Writes => !request.is_read(),
        };
        let units = match self.purpose.unit {
            Unit::Requests => 1,
            Unit::Bytes => request.bytes(),
        };
        (is_concerned && units > 0).then(|| Nanos::taken_by(units.into(), self.per_s))
    }

    fn charge(&mut self, cost: Nanos, passed: Nanos) {
        self.takes_at = self.takes_at.max(passed.minus(self.depth)).plus(cost);
    }

    fn give_back(&mut self, cost: Nanos) {
        self.takes_at = self.takes_at.minus(cost);
    }
}

/// From when on all of them take the request.
pub(super) fn takes_at(buckets: &[Bucket], request: GuestRequest) -> Nanos {
    let concerned = buckets.iter().filter(|bucket| bucket.cost(request).is_some());
    concerned.map(|bucket| bucket.takes_at).max().unwrap_or(Nanos::LONG_AGO)
}

/// Charges a request that came at `came` and passes now. It counts from when it might have passed: had it to wait until
/// this thread got round to it, those behind it need not make up for that.
pub(super) fn charge(buckets: &mut [Bucket], request: GuestRequest, came: Nanos, now: Nanos) {
    let passed = match planted("limits: what a late wake-up costs is lost") {
        true => now,
        false => takes_at(buckets, request).max(came).min(now),
    };
    for bucket in buckets {
        if let Some(cost) = bucket.cost(request) {
            bucket.charge(cost, passed);
        }
    }
}

/// Takes a charge back.
pub(super) fn give_back(buckets: &mut [Bucket], request: GuestRequest) {
    for bucket in buckets {
        if let Some(cost) = bucket.cost(request) {
            bucket.give_back(cost);
        }
    }
}
