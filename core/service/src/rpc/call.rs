//! One request, taken apart: parameters, query, body and headers become types here, and nowhere else.

use super::Answer;
use ovs_api::{EventId, Method, Operation, PROTOCOL, Problem, ProblemKind, QueryKind, Request, openapi};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::str::FromStr;
use warp::http::HeaderMap;

/// An identifier of a request at most.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// The text of a parser's error at most: it may quote what was given.
const REASON_CHARS_MAX: usize = 400;

/// What the headers of a request say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestContext {
    /// The operation's id.
    pub operation: &'static str,
    /// The revision that the object must have.
    pub if_match: Option<u64>,
    /// The same key and request again, within a day, have the same answer again.
    pub idempotency_key: Option<String>,
    /// Events after this one.
    pub last_event_id: Option<EventId>,
}

impl RequestContext {
    /// Refuses when `If-Match` names another revision than the one the object has.
    pub fn check_revision(&self, now: u64) -> Result<(), Problem> {
        match self.if_match {
            Some(wanted) if wanted != now => {
                let detail = format!("the object has revision {now}, If-Match asks for {wanted}");
                Err(Problem::new(ProblemKind::PreconditionFailed, detail).with("revision", now))
            }
            _ => Ok(()),
        }
    }
}

/// A request on its way to its operation.
#[derive(Debug)]
pub struct Call {
    /// The row of the table.
    pub operation: &'static Operation,
    /// What the headers say.
    pub context: RequestContext,
    pub(super) params: Vec<(&'static str, String)>,
    pub(super) query: String,
    pub(super) body: Vec<u8>,
}

impl Call {
    /// A parameter of the path.
    pub fn param<T: FromStr<Err: Display>>(&self, name: &str) -> Result<T, Problem> {
        let text = self.params.iter().find(|(known, _)| *known == name).map_or("", |(_, text)| text);
        text.parse().map_err(|error: T::Err| {
            let given: String = text.chars().take(200).collect();
            refuse(name, error).with("given", given)
        })
    }

    /// The query; every member must be one that the operation knows, once unless it is a list.
    pub fn query<T: DeserializeOwned + Request>(&self) -> Result<T, Problem> {
        let members = self.operation.query_members();
        let mut object = Map::new();
        for (name, text) in form_urlencoded::parse(self.query.as_bytes()) {
            let Some((_, kind)) = members.iter().find(|(known, _)| *known == name) else {
                let known: Vec<&str> = members.iter().map(|(known, _)| known.as_str()).collect();
                return Err(Problem::field("query", name, &format!("members {}", known.join(", "))));
            };
            if *kind == QueryKind::TextList {
                let list = object.entry(name.into_owned()).or_insert_with(|| Value::Array(Vec::new()));
                list.as_array_mut().into_iter().for_each(|list| list.push(Value::from(text.as_ref())));
                continue;
            }
            let value = query_value(&name, &text, *kind)?;
            if object.insert(name.as_ref().to_owned(), value).is_some() {
                return Err(Problem::field(&name, "several values", "one value"));
            }
        }
        let query: T = serde_path_to_error::deserialize(Value::Object(object)).map_err(refuse_path)?;
        query.check()?;
        Ok(query)
    }

    /// The body; nothing at all is an object without members.
    pub fn body<T: DeserializeOwned + Request>(&self) -> Result<T, Problem> {
        let text: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        // A parser of structures also takes their members in a row: `["default", "x"]` would make a vDisk.
        if text.trim_ascii_start().first() != Some(&b'{') {
            return Err(Problem::field(
                "body",
                String::from_utf8_lossy(&text[..text.len().min(200)]),
                "a JSON object",
            ));
        }
        let mut json = serde_json::Deserializer::from_slice(text);
        let body: T = serde_path_to_error::deserialize(&mut json).map_err(refuse_path)?;
        json.end().map_err(|error| refuse("body", error))?;
        body.check()?;
        Ok(body)
    }

    /// What the router knows by itself: the document, and that nobody has built it yet.
    pub fn without_core(&self) -> Result<Answer, Problem> {
        match self.operation.until {
            Some(until) => {
                let detail = format!("{} is not implemented: {until}", self.operation.id);
                Err(Problem::new(ProblemKind::NotImplemented, detail).with("until", until))
            }
            None => Answer::value(openapi()),
        }
    }

    /// Refuses a query or a body where the operation has none.
    pub(super) fn check_surplus(&self) -> Result<(), Problem> {
        if self.operation.query.is_none() && !self.query.is_empty() {
            return Err(Problem::field(
                "query",
                &self.query,
                &format!("none: {} takes no query", self.operation.id),
            ));
        }
        let is_empty = self.body.is_empty() || self.body == b"{}";
        if self.operation.body.is_none() && !is_empty {
            let given = format!("{} bytes", self.body.len());
            return Err(Problem::field("body", given, &format!("none: {} takes no body", self.operation.id)));
        }
        Ok(())
    }
}

fn query_value(name: &str, text: &str, kind: QueryKind) -> Result<Value, Problem> {
    match (kind, text) {
        (QueryKind::Integer, _) => text
            .parse::<u64>()
            .map(Value::from)
            .map_err(|_| Problem::field(name, text, "a number of decimal digits")),
        (QueryKind::Boolean, "true") => Ok(Value::Bool(true)),
        (QueryKind::Boolean, "false") => Ok(Value::Bool(false)),
        (QueryKind::Boolean, _) => Err(Problem::field(name, text, "true or false")),
        (QueryKind::Text | QueryKind::TextList, _) => Ok(Value::from(text)),
    }
}

fn refuse(field: &str, reason: impl Display) -> Problem {
    let reason: String = reason.to_string().chars().take(REASON_CHARS_MAX).collect();
    Problem::new(ProblemKind::Invalid, format!("{field}: {reason}")).with("field", field)
}

fn refuse_path<E: Display>(error: serde_path_to_error::Error<E>) -> Problem {
    // A path ends in `?` where the text itself broke off, and is `.` for the whole.
    let path = error.path().to_string();
    let field: String = path.trim_end_matches('?').trim_end_matches('.').chars().take(200).collect();
    refuse(if field.is_empty() { "body" } else { &field }, error.inner())
}

/// The headers that an operation may carry; those that it does not take are not looked at.
pub(super) fn context(operation: &'static Operation, headers: &HeaderMap) -> Result<RequestContext, Problem> {
    check_protocol(operation, headers)?;
    let mut context = RequestContext { operation: operation.id, ..RequestContext::default() };
    if operation.takes_if_match() {
        context.if_match = match header(headers, "if-match")? {
            None | Some("*") => None,
            Some(text) => Some(revision(text)?),
        };
    }
    if operation.takes_idempotency_key() {
        context.idempotency_key = header(headers, "idempotency-key")?.map(idempotency_key).transpose()?;
    }
    if operation.takes_last_event_id() {
        let id = header(headers, "last-event-id")?.map(|text| number("last-event-id", text)).transpose()?;
        context.last_event_id = id.map(EventId);
    }
    Ok(context)
}

fn check_protocol(operation: &Operation, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(text) = header(headers, "ovs-protocol")?.filter(|_| operation.path.starts_with("/v1/")) else {
        return Ok(());
    };
    let served = u64::from(PROTOCOL.min)..=u64::from(PROTOCOL.max);
    match number("ovs-protocol", text) {
        Ok(version) if served.contains(&version) => Ok(()),
        _ => Err(Problem::field("ovs-protocol", text, &format!("{} to {}", PROTOCOL.min, PROTOCOL.max))),
    }
}

/// A header that may be there once.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Problem::field(name, "several", "one header of this name"));
    }
    let Some(value) = first else { return Ok(None) };
    let text = value.to_str().map_err(|_| Problem::field(name, "bytes", "visible ASCII characters"))?;
    Ok(Some(text.trim()))
}

fn number(name: &str, text: &str) -> Result<u64, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| Problem::field(name, text, "a number of decimal digits"))
}

/// `"7"` as our ETags have it, or `7`.
fn revision(text: &str) -> Result<u64, Problem> {
    let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    number("if-match", bare).map_err(|_| Problem::field("if-match", text, "one revision, as in \"7\", or *"))
}

fn idempotency_key(text: &str) -> Result<String, Problem> {
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    if (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len()) && visible {
        return Ok(text.to_owned());
    }
    Err(Problem::field("idempotency-key", text, "1 to 255 visible ASCII characters"))
}

/// True for requests that change nothing, whose work may be dropped when their client goes.
pub(super) fn is_read(operation: &Operation) -> bool {
    operation.method == Method::GET
}
