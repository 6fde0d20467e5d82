use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A moment as RFC 3339 says it, in UTC: `2026-11-20T10:17:03.120Z`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Timestamp(#[schemars(extend("format" = "date-time"))] pub String);

impl Timestamp {
    /// The moment that many milliseconds after 1970; the last one there is when it does not exist.
    pub fn from_unix_ms(unix_ms: u64) -> Timestamp {
        let moment = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        Timestamp(moment.unwrap_or(jiff::Timestamp::MAX).to_string())
    }

    /// Milliseconds after 1970; `None` for what is no timestamp.
    pub fn unix_ms(&self) -> Option<u64> {
        let moment: jiff::Timestamp = self.0.parse().ok()?;
        u64::try_from(moment.as_millisecond()).ok()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_round_trip() {
        for ms in [0, 1, 1_795_169_823_120] {
            assert_eq!(Timestamp::from_unix_ms(ms).unix_ms(), Some(ms));
        }
        assert_eq!(Timestamp::from_unix_ms(1_795_169_823_120).0, "2026-11-20T10:17:03.12Z");
        assert!(Timestamp::from_unix_ms(u64::MAX).unix_ms().is_some());
        assert_eq!(Timestamp("yesterday".into()).unix_ms(), None);
    }
}
