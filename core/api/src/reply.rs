//! What operations answer: a status, perhaps a revision, perhaps a body.

use crate::types::*;
use futures_util::stream::BoxStream;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;

/// An answer as the OpenAPI document describes it.
#[derive(Debug, Clone)]
pub struct ReplyDoc {
    /// The HTTP status.
    pub status: u16,
    /// For people.
    pub description: &'static str,
    /// The type of the body and its schema.
    pub content: Option<(&'static str, Option<Schema>)>,
    /// An `ETag` with the object's revision comes with it.
    pub has_etag: bool,
}

/// An answer as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedReply {
    /// The HTTP status.
    pub status: u16,
    /// The object's revision, sent as `ETag`.
    pub revision: Option<u64>,
    /// JSON.
    pub body: Option<Vec<u8>>,
}

/// What an operation answers when it succeeds.
pub trait Reply: Sized {
    /// As the OpenAPI document describes it.
    fn document(generator: &mut SchemaGenerator) -> Vec<ReplyDoc>;
}

/// A reply that is one JSON document or none.
pub trait JsonReply: Reply {
    /// For the wire.
    fn encode(&self) -> Result<EncodedReply, serde_json::Error>;

    /// From the wire.
    fn decode(status: u16, body: &[u8]) -> Result<Self, serde_json::Error>;
}

/// What a reply can carry.
pub trait Resource: Serialize + DeserializeOwned + JsonSchema {
    /// True when the object has a revision.
    const HAS_REVISION: bool = false;

    /// The object's revision.
    fn revision(&self) -> Option<u64> {
        None
    }
}

macro_rules! with_revision {
    ($($type:ty),*) => {
        $(impl Resource for $type {
            const HAS_REVISION: bool = true;

            fn revision(&self) -> Option<u64> {
                Some(self.revision)
            }
        })*
    };
}

with_revision!(Vpool, Vdisk, Snapshot, Attachment, TrashEntry, Backend, Preset, Export, Vmachine, Task);
impl Resource for Status {}
impl Resource for VdiskStats {}
impl Resource for BackendPlan {}
impl Resource for Device {}
impl Resource for DeviceList {}
impl<T: Serialize + DeserializeOwned + JsonSchema> Resource for Page<T> {}

/// The object that a create made, or found made by the same request before.
#[derive(Debug, Clone, PartialEq)]
pub struct Created<T> {
    /// The object as it is now.
    pub value: T,
    /// Made by this request: 201. Otherwise 200.
    pub is_new: bool,
}

impl<T> Created<T> {
    /// Made by this request.
    pub fn new(value: T) -> Created<T> {
        Created { value, is_new: true }
    }

    /// Made by the same request before.
    pub fn existing(value: T) -> Created<T> {
        Created { value, is_new: false }
    }
}

/// A task that was begun: 202.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted<T>(pub T);

/// Done, and there is nothing to say: 204.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoContent;

/// Events as they happen.
pub struct EventStream {
    /// The newest event there was when the stream began.
    pub newest: EventId,
    /// When it began.
    pub at: Timestamp,
    /// What follows. It ends when the reader is too slow: resume by Last-Event-ID.
    pub events: BoxStream<'static, Event>,
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").field("newest", &self.newest).finish_non_exhaustive()
    }
}

/// Counters in the Prometheus text format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsText(pub String);

/// The OpenAPI document.
#[derive(Debug, Clone, Copy)]
pub struct OpenApiDocument;

/// The type of Prometheus' text format.
pub const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

fn json_doc<T: Resource>(
    status: u16,
    description: &'static str,
    generator: &mut SchemaGenerator,
) -> ReplyDoc {
    let schema = generator.subschema_for::<T>();
    ReplyDoc { status, description, content: Some((JSON, Some(schema))), has_etag: T::HAS_REVISION }
}

fn encode<T: Resource>(status: u16, value: &T) -> Result<EncodedReply, serde_json::Error> {
    Ok(EncodedReply { status, revision: value.revision(), body: Some(serde_json::to_vec(value)?) })
}

impl<T: Resource> Reply for T {
    fn document(generator: &mut SchemaGenerator) -> Vec<ReplyDoc> {
        vec![json_doc::<T>(200, "as it is now", generator)]
    }
}

impl<T: Resource> JsonReply for T {
    fn encode(&self) -> Result<EncodedReply, serde_json::Error> {
        encode(200, self)
    }

    fn decode(_status: u16, body: &[u8]) -> Result<T, serde_json::Error> {
        serde_json::from_slice(body)
    }
}

impl<T: Resource> Reply for Created<T> {
    fn document(generator: &mut SchemaGenerator) -> Vec<ReplyDoc> {
        vec![
            json_doc::<T>(201, "made", generator),
            json_doc::<T>(200, "made before by the same request", generator),
        ]
    }
}

impl<T: Resource> JsonReply for Created<T> {
    fn encode(&self) -> Result<EncodedReply, serde_json::Error> {
        encode(if self.is_new { 201 } else { 200 }, &self.value)
    }

    fn decode(status: u16, body: &[u8]) -> Result<Created<T>, serde_json::Error> {
        Ok(Created { value: serde_json::from_slice(body)?, is_new: status == 201 })
    }
}

impl<T: Resource> Reply for Accepted<T> {
    fn document(generator: &mut SchemaGenerator) -> Vec<ReplyDoc> {
        vec![json_doc::<T>(202, "begun", generator)]
    }
}

impl<T: Resource> JsonReply for Accepted<T> {
    fn encode(&self) -> Result<EncodedReply, serde_json::Error> {
        encode(202, &self.0)
    }

    fn decode(_status: u16, body: &[u8]) -> Result<Accepted<T>, serde_json::Error> {
        serde_json::from_slice(body).map(Accepted)
    }
}

impl Reply for NoContent {
    fn document(_: &mut SchemaGenerator) -> Vec<ReplyDoc> {
        vec![ReplyDoc { status: 204, description: "done", content: None, has_etag: false }]
    }
}

impl JsonReply for NoContent {
    fn encode(&self) -> Result<EncodedReply, serde_json::Error> {
        Ok(EncodedReply { status: 204, revision: None, body: None })
    }

    fn decode(_status: u16, _body: &[u8]) -> Result<NoContent, serde_json::Error> {
        Ok(NoContent)
    }
}

impl Reply for EventStream {
    fn document(generator: &mut SchemaGenerator) -> Vec<ReplyDoc> {
        // The body is a stream; what OpenAPI 3.1 can describe is the document in each event's `data`.
        let content = ("text/event-stream", Some(generator.subschema_for::<Event>()));
        vec![ReplyDoc {
            status: 200,
            description: "a stream of events",
            content: Some(content),
            has_etag: false,
        }]
    }
}

impl Reply for MetricsText {
    fn document(_: &mut SchemaGenerator) -> Vec<ReplyDoc> {
        let content = Some((METRICS_CONTENT_TYPE, None));
        vec![ReplyDoc { status: 200, description: "counters", content, has_etag: false }]
    }
}

impl Reply for OpenApiDocument {
    fn document(_: &mut SchemaGenerator) -> Vec<ReplyDoc> {
        vec![ReplyDoc {
            status: 200,
            description: "OpenAPI 3.1",
            content: Some((JSON, None)),
            has_etag: false,
        }]
    }
}
