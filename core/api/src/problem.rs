//! Errors on the wire: RFC 9457 problem documents, each with a stable `type`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, fmt};

/// What went wrong, by what the caller does next. The `type` of a problem is `urn:ovs:problem:<kind>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProblemKind {
    /// The request is wrong as it stands, whatever the state: change it.
    Invalid,
    /// Over TCP: neither a certificate nor a token that lets the client in.
    Unauthorized,
    /// No object of that name or UUID.
    NotFound,
    /// The object's present state does not allow it.
    Conflict,
    /// The name is taken by an object that was created by a different request.
    Exists,
    /// Somebody uses the object: an attachment, a clone, a vDisk in the vPool.
    InUse,
    /// The object is protected against deletion, or a template.
    Protected,
    /// The object's revision is not the one that `If-Match` names.
    PreconditionFailed,
    /// No space, on the backend or in the write buffer.
    NoSpace,
    /// Transient: the same request may succeed later.
    Unavailable,
    /// The vDisk or vPool does not serve; the reason is in `detail`.
    Offline,
    /// What is stored is not what was written.
    Damaged,
    /// Nobody has built it yet.
    NotImplemented,
    /// The events asked for are no longer kept: list again.
    Gone,
    /// The request is larger than the service reads.
    TooLarge,
    /// A defect of ours.
    Internal,
}

const URN: &str = "urn:ovs:problem:";

impl ProblemKind {
    /// All of them.
    pub const ALL: [ProblemKind; 16] = [
        ProblemKind::Invalid,
        ProblemKind::Unauthorized,
        ProblemKind::NotFound,
        ProblemKind::Conflict,
        ProblemKind::Exists,
        ProblemKind::InUse,
        ProblemKind::Protected,
        ProblemKind::PreconditionFailed,
        ProblemKind::NoSpace,
        ProblemKind::Unavailable,
        ProblemKind::Offline,
        ProblemKind::Damaged,
        ProblemKind::NotImplemented,
        ProblemKind::Gone,
        ProblemKind::TooLarge,
        ProblemKind::Internal,
    ];

    /// The last part of the URN.
    pub fn as_str(self) -> &'static str {
        match self {
            ProblemKind::Invalid => "invalid",
            ProblemKind::Unauthorized => "unauthorized",
            ProblemKind::NotFound => "not-found",
            ProblemKind::Conflict => "conflict",
            ProblemKind::Exists => "exists",
            ProblemKind::InUse => "in-use",
            ProblemKind::Protected => "protected",
            ProblemKind::PreconditionFailed => "precondition-failed",
            ProblemKind::NoSpace => "no-space",
            ProblemKind::Unavailable => "unavailable",
            ProblemKind::Offline => "offline",
            ProblemKind::Damaged => "damaged",
            ProblemKind::NotImplemented => "not-implemented",
            ProblemKind::Gone => "gone",
            ProblemKind::TooLarge => "too-large",
            ProblemKind::Internal => "internal",
        }
    }

    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            ProblemKind::Invalid => 400,
            ProblemKind::Unauthorized => 401,
            ProblemKind::NotFound => 404,
            ProblemKind::Conflict | ProblemKind::Exists | ProblemKind::InUse | ProblemKind::Protected => 409,
            ProblemKind::Gone => 410,
            ProblemKind::PreconditionFailed => 412,
            ProblemKind::TooLarge => 413,
            ProblemKind::Damaged | ProblemKind::Internal => 500,
            ProblemKind::NotImplemented => 501,
            ProblemKind::Unavailable | ProblemKind::Offline => 503,
            ProblemKind::NoSpace => 507,
        }
    }

    /// A few words for people.
    pub fn title(self) -> &'static str {
        match self {
            ProblemKind::Invalid => "the request is not valid",
            ProblemKind::Unauthorized => "who asks is not known",
            ProblemKind::NotFound => "no such object",
            ProblemKind::Conflict => "the object's state does not allow it",
            ProblemKind::Exists => "the name is taken",
            ProblemKind::InUse => "the object is in use",
            ProblemKind::Protected => "the object is protected",
            ProblemKind::PreconditionFailed => "the object has changed",
            ProblemKind::NoSpace => "no space",
            ProblemKind::Unavailable => "not available now",
            ProblemKind::Offline => "the object does not serve",
            ProblemKind::Damaged => "stored data is damaged",
            ProblemKind::NotImplemented => "not implemented",
            ProblemKind::Gone => "no longer kept",
            ProblemKind::TooLarge => "the request is too large",
            ProblemKind::Internal => "internal error",
        }
    }

    fn urn(self) -> String {
        format!("{URN}{}", self.as_str())
    }
}

/// An RFC 9457 problem document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `urn:ovs:problem:<kind>`; stable, for programs.
    #[serde(rename = "type")]
    #[schemars(regex(pattern = r"^urn:ovs:problem:[a-z-]+$"))]
    pub type_urn: String,
    /// The kind in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened to which object, for people.
    pub detail: String,
    /// More for programs: `field`, `given`, `allowed`, `revision`, `attachments` and so on.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Problem {
    /// A problem of a kind, with its usual status.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Problem {
        Problem {
            type_urn: kind.urn(),
            title: kind.title().to_owned(),
            status: kind.status(),
            detail: detail.into(),
            extra: BTreeMap::new(),
        }
    }

    /// A field that is refused: the detail names it, what was given (its beginning) and what is allowed.
    pub fn field(field: &str, given: impl fmt::Display, allowed: &str) -> Problem {
        let given: String = given.to_string().chars().take(200).collect();
        Problem::new(ProblemKind::Invalid, format!("{field}: {given:?} is not allowed: {allowed}"))
            .with("field", field)
            .with("given", given)
            .with("allowed", allowed)
    }

    /// The same with one more member for programs.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Problem {
        self.extra.insert(member.to_owned(), value.into());
        self
    }

    /// The same with another HTTP status (405, 415, 431: kinds of `invalid` that HTTP has its own number for).
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Problem {
        self.status = status;
        self
    }

    /// The kind, `Internal` when the type is none of ours.
    pub fn kind(&self) -> ProblemKind {
        let kind = self.type_urn.strip_prefix(URN);
        ProblemKind::ALL
            .into_iter()
            .find(|known| Some(known.as_str()) == kind)
            .unwrap_or(ProblemKind::Internal)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_survives_the_wire() {
        for kind in ProblemKind::ALL {
            let problem = Problem::new(kind, "x").with("revision", 7);
            let text = serde_json::to_string(&problem).unwrap();
            assert!(text.contains("\"revision\":7"), "{text}");
            let back: Problem = serde_json::from_str(&text).unwrap();
            assert_eq!((back.kind(), &back), (kind, &problem));
        }
    }

    #[test]
    fn a_foreign_type_is_internal() {
        let problem = Problem { type_urn: "about:blank".into(), ..Problem::new(ProblemKind::Gone, "x") };
        assert_eq!(problem.kind(), ProblemKind::Internal);
    }

    #[test]
    fn a_hostile_value_is_cut() {
        assert!(Problem::field("name", "x".repeat(1 << 20), "a name").detail.len() < 300);
    }
}
