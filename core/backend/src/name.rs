//! Object names.

use std::fmt;
use thiserror::Error;

/// The name of an object: `/`-separated segments of `[a-z0-9._-]`, none empty, longer than 128 bytes or starting with
/// a dot; 256 bytes at most. Every store takes such names as they are (file systems stop at 255 bytes per segment,
/// and encrypted ones at 143).
///
/// No name may be a folder of another: of `a` and `a/b`, the one put later is a `Conflict` wherever there are folders.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("object name {0:?} is not allowed")]
pub struct ObjectNameError(String);

impl ObjectName {
    /// Refuses whatever is not an object name.
    pub fn new(text: impl Into<String>) -> Result<ObjectName, ObjectNameError> {
        let text = text.into();
        let segment_is_good = |segment: &str| {
            (1..=128).contains(&segment.len())
                && !segment.starts_with('.')
                && segment.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
        };
        if text.len() <= 256 && text.split('/').all(segment_is_good) {
            Ok(ObjectName(text))
        } else {
            Err(ObjectNameError(text.chars().take(300).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_leave_the_store() {
        assert!(ObjectName::new("v/0a1b/j/1/2").is_ok());
        let (long, segment) = (format!("{0}/{0}/b", "a".repeat(128)), "a".repeat(129));
        for bad in ["", "/", "a//b", "../x", "a/../b", ".x", "A", "a b", "a/", "a\0", &long, &segment] {
            assert!(ObjectName::new(bad).is_err(), "{bad}");
        }
    }
}
