//! Server-sent events, read (HTML Living Standard, section 9.2.6; only the fields that ovsd sends).

use super::ApiError;
use crate::types::{Event, EventId, EventKind};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::time::Duration;

/// ovsd says something every 15 s, if only that nothing happened.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// An event is a few hundred bytes.
const LINE_BYTES_MAX: usize = 1 << 20;
const OPERATION: &str = "stream_events";

/// Events as they happen. The first is `stream.started`: list after it, and nothing is missed.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    reader: LineReader,
    last: Option<EventId>,
}

impl Events {
    pub(super) fn new(body: Incoming, last: Option<EventId>) -> Events {
        Events { body, reader: LineReader::default(), last }
    }

    /// The next event; `None` when ovsd ended the stream (it stops, or this reader was too slow): begin another after
    /// [`Events::last_id`].
    pub async fn next(&mut self) -> Result<Option<Event>, ApiError> {
        loop {
            while let Some(line) = self.reader.line()? {
                // `id:` and `event:` repeat what is in the data; comments only show that ovsd lives.
                if let Some(data) = line.strip_prefix("data:") {
                    let event: Event = serde_json::from_str(data).map_err(not_understood)?;
                    match event.kind {
                        // It names the newest there is; a resumed stream has what was missed still to come.
                        EventKind::StreamStarted => _ = self.last.get_or_insert(event.id),
                        _ => self.last = Some(event.id),
                    }
                    return Ok(Some(event));
                }
            }
            let frame = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await;
            let frame = frame.map_err(|_| ApiError::TimedOut { operation: OPERATION, after: SILENCE_MAX })?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(ApiError::Broken { operation: OPERATION, reason: error.to_string() });
                }
                Some(Ok(frame)) => self.reader.push(frame.into_data().unwrap_or_default()),
            }
        }
    }

    /// The last event seen, to begin another stream after.
    pub fn last_id(&self) -> Option<EventId> {
        self.last
    }
}

fn not_understood(error: impl ToString) -> ApiError {
    ApiError::NotUnderstood { operation: OPERATION, status: 200, reason: error.to_string() }
}

/// Bytes in, lines out.
#[derive(Debug, Default)]
pub struct LineReader {
    buffered: Vec<u8>,
    /// What of `buffered` has been given out.
    taken: usize,
}

impl LineReader {
    /// Takes what has arrived.
    pub fn push(&mut self, bytes: Bytes) {
        self.buffered.drain(..self.taken);
        self.taken = 0;
        self.buffered.extend_from_slice(&bytes);
    }

    /// The next whole line; `None` when more must arrive first.
    pub fn line(&mut self) -> Result<Option<String>, ApiError> {
        let rest = &self.buffered[self.taken..];
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return if rest.len() > LINE_BYTES_MAX {
                Err(not_understood("an endless line"))
            } else {
                Ok(None)
            };
        };
        let line = String::from_utf8(rest[..length].to_vec()).map_err(not_understood)?;
        self.taken += length + 1;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_however_the_bytes_come_in() {
        let mut reader = LineReader::default();
        let mut lines = Vec::new();
        for piece in ["da", "ta: 1\n\nid", ": 2\n", "x"] {
            reader.push(Bytes::from(piece));
            while let Some(line) = reader.line().unwrap() {
                lines.push(line);
            }
        }
        assert_eq!(lines, ["data: 1", "", "id: 2"]);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut reader = LineReader::default();
        reader.push(Bytes::from(vec![b'x'; LINE_BYTES_MAX + 1]));
        assert!(reader.line().is_err());
    }
}
