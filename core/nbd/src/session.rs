//! The name of a session and its generation, as both ends speak of them.
//!
//! A client that reconnects gives the same session with a higher generation, as a query of
//! `NBD_OPT_SET_META_CONTEXT`: `ovs:session:<uuid>:<generation>`. The server ends the older connection and drains it
//! before it admits the newer one, so that no request stuck in a dead connection can overwrite a newer one.

use std::fmt;
use uuid::Uuid;

/// What every query of ours begins with.
const PREFIX: &str = "ovs:session:";

/// One connection of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Session {
    /// Which session: one ordered stream of requests of one client to one export. Never used for two at a time.
    pub id: SessionId,
    /// Which of its connections; every attempt to connect takes the next.
    pub generation: Generation,
}

/// The name of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub Uuid);

/// The number of a connection within its session; a higher one replaces a lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Session {
    /// The session that a meta context query names; `None` for any other query, or a malformed one.
    pub fn from_query(query: &str) -> Option<Session> {
        let (id, generation) = query.strip_prefix(PREFIX)?.split_once(':')?;
        // Exactly the form that `Display` gives: neither the other forms of a UUID nor "+1" are taken.
        if id.len() != 36 || generation.is_empty() || !generation.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let id = SessionId(Uuid::try_parse(id).ok()?);
        Some(Session { id, generation: Generation(generation.parse().ok()?) })
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}:{}", self.id.0.hyphenated(), self.generation.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_round_trip() {
        let session = Session { id: SessionId(Uuid::from_u128(7)), generation: Generation(u64::MAX) };
        assert_eq!(Session::from_query(&session.to_string()), Some(session));
    }

    #[test]
    fn other_queries_are_not_sessions() {
        let id = Uuid::from_u128(7);
        for bad in [
            "base:allocation".to_owned(),
            "ovs:session:".to_owned(),
            format!("ovs:session:{id}"),
            format!("ovs:session:{id}:"),
            format!("ovs:session:{id}:+1"),
            format!("ovs:session:{id}:-1"),
            format!("ovs:session:{id}:18446744073709551616"),
            format!("ovs:session:{}:1", id.simple()),
            format!("ovs:session:{{{id}:1"),
            format!("Ovs:session:{id}:1"),
        ] {
            assert_eq!(Session::from_query(&bad), None, "{bad}");
        }
    }
}
