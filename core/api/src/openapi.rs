//! The OpenAPI 3.1 document, made from the table of operations.
//!
//! Not here: anything that the table and the types do not say already; a document that is written twice is wrong once.

use crate::{Method, OPERATIONS, Operation, PROTOCOL, Problem, ProblemKind};
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The OpenAPI document.
pub fn openapi() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(document);
    &DOCUMENT
}

/// How the text of a query member becomes JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKind {
    /// A JSON number.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A JSON string.
    Text,
    /// A JSON array of strings: may be given several times.
    TextList,
}

impl Operation {
    /// The members that its query may have.
    pub fn query_members(&self) -> &'static [(String, QueryKind)] {
        static MEMBERS: LazyLock<BTreeMap<&str, Vec<(String, QueryKind)>>> = LazyLock::new(|| {
            OPERATIONS.iter().map(|operation| (operation.id, query_members(operation))).collect()
        });
        MEMBERS.get(self.id).map_or(&[], Vec::as_slice)
    }
}

fn query_members(operation: &Operation) -> Vec<(String, QueryKind)> {
    let Some(query) = operation.query else { return Vec::new() };
    let schema = query(&mut generator());
    properties(&schema).map(|(name, property)| (name.clone(), query_kind(property))).collect()
}

fn generator() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
        settings.transforms.push(Box::new(RecursiveTransform(bound_integers)));
    });
    settings.into_generator()
}

/// The type of an integer bounds it: `format` alone is a remark.
fn bound_integers(schema: &mut Schema) {
    let maximum = match schema.get("format").and_then(Value::as_str) {
        Some("uint64") => u64::MAX,
        Some("uint32") => u64::from(u32::MAX),
        _ => return,
    };
    if schema.get("maximum").is_none() {
        schema.insert("maximum".to_owned(), maximum.into());
    }
}

fn properties(schema: &Schema) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn query_kind(property: &Value) -> QueryKind {
    let is = |kind: &str| match &property["type"] {
        Value::String(only) => only == kind,
        Value::Array(kinds) => kinds.iter().any(|one| one == kind),
        _ => false,
    };
    match () {
        () if is("integer") => QueryKind::Integer,
        () if is("boolean") => QueryKind::Boolean,
        () if is("array") => QueryKind::TextList,
        () => QueryKind::Text,
    }
}

fn document() -> Value {
    let mut generator = generator();
    let problem = json!(generator.subschema_for::<Problem>());
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in OPERATIONS {
        let described = describe(operation, &problem, &mut generator);
        paths.entry(operation.path).or_default().insert(operation.method.as_str().to_lowercase(), described);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ovs core RPC",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "HTTP/1.1 on the unix socket /run/ovs/ovsd.sock, whose mode and group say who may; over TCP, where \
                rpc.listen is set, with TLS and a client's certificate or a token. Sizes are bytes, times RFC 3339 in UTC. A create \
                compares with the stored original request: the same again answers 200 with the object, another one 409. \
                Errors are RFC 9457 problem documents; their type is stable.",
        },
        "servers": [{ "url": "http://ovsd", "description": "the unix socket; the host name does not matter" }],
        // On the unix socket nothing; over TCP one of the others.
        "security": [{}, { "mutualTls": [] }, { "bearer": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": security_schemes(),
            "schemas": generator.take_definitions(true),
            "parameters": header_parameters(),
        },
    })
}

fn security_schemes() -> Value {
    json!({
        "mutualTls": {
            "type": "mutualTLS",
            "description": "A certificate of the authority that rpc.tls.client_ca names.",
        },
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A token of the file that rpc.tokens_file names: Authorization: Bearer TOKEN.",
        },
    })
}

fn header_parameters() -> Value {
    json!({
        "IfMatch": {
            "name": "If-Match", "in": "header",
            "description": "The revision that the object must have, as its ETag says it; 412 when it has another one.",
            "schema": { "type": "string", "pattern": "^(\\*|[0-9]{1,18}|\"[0-9]{1,18}\")$", "examples": ["\"7\""] },
        },
        "IdempotencyKey": {
            "name": "Idempotency-Key", "in": "header",
            "description": "The same key and request again, within a day: the same answer, and nothing happens twice.",
            "schema": { "type": "string", "pattern": "^[!-~]{1,255}$", "examples": ["2f1e7f3a-retry"] },
        },
        "LastEventId": {
            "name": "Last-Event-ID", "in": "header",
            "description": "Go on after this event; 410 when it is no longer kept: list again.",
            "schema": { "type": "integer", "minimum": 0 },
        },
        "Protocol": {
            "name": "Ovs-Protocol", "in": "header",
            "description": "The version of the protocol that the client speaks; 400 when it is not served.",
            "schema": { "type": "integer", "minimum": PROTOCOL.min, "maximum": PROTOCOL.max },
        },
    })
}

fn describe(operation: &Operation, problem: &Value, generator: &mut SchemaGenerator) -> Value {
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary.trim(),
        "tags": [tag(operation)],
        "parameters": parameters(operation, generator),
        "responses": responses(operation, problem, generator),
    });
    if let Some(body) = operation.body {
        let schema = json!(body(generator));
        described["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    if let Some(until) = operation.until {
        described["description"] = format!("Answers 501 for now: {until}.").into();
    }
    described
}

/// The collection that the path is in.
fn tag(operation: &Operation) -> &'static str {
    operation.path.trim_start_matches("/v1/").split('/').next().unwrap_or_default()
}

fn parameters(operation: &Operation, generator: &mut SchemaGenerator) -> Vec<Value> {
    let mut parameters = Vec::new();
    for (name, schema) in operation.path_params {
        parameters.push(json!({ "name": name, "in": "path", "required": true, "schema": schema(generator) }));
    }
    if let Some(query) = operation.query {
        let schema = query(generator);
        parameters.extend(properties(&schema).map(|(name, property)| query_parameter(name, property)));
    }
    let headers = [
        (operation.takes_if_match(), "IfMatch"),
        (operation.takes_idempotency_key(), "IdempotencyKey"),
        (operation.takes_last_event_id(), "LastEventId"),
        (operation.path.starts_with("/v1/"), "Protocol"),
    ];
    let taken = headers.into_iter().filter(|(taken, _)| *taken);
    parameters.extend(taken.map(|(_, name)| json!({ "$ref": format!("#/components/parameters/{name}") })));
    parameters
}

/// A member of the query's object as a parameter: it is absent rather than null.
fn query_parameter(name: &str, property: &Value) -> Value {
    let mut schema = property.clone();
    let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
    if let Some(kinds) = schema["type"].as_array() {
        let mut kinds: Vec<Value> = kinds.iter().filter(|kind| *kind != "null").cloned().collect();
        schema["type"] = if kinds.len() == 1 { kinds.remove(0) } else { Value::Array(kinds) };
    } else if let Some(Value::Array(options)) =
        schema.as_object_mut().and_then(|object| object.remove("anyOf"))
    {
        let mut options: Vec<Value> = options.into_iter().filter(|option| option["type"] != "null").collect();
        match options.len() {
            1 => schema = options.remove(0),
            _ => schema["anyOf"] = options.into(),
        }
    }
    let mut parameter = json!({ "name": name, "in": "query", "schema": schema });
    if let Some(description) = description {
        parameter["description"] = description;
    }
    parameter
}

fn responses(operation: &Operation, problem: &Value, generator: &mut SchemaGenerator) -> Map<String, Value> {
    let mut responses = Map::new();
    for reply in (operation.replies)(generator) {
        let mut response = json!({ "description": reply.description });
        if let Some((kind, schema)) = reply.content {
            let media = schema.map_or_else(|| json!({}), |schema| json!({ "schema": schema }));
            response["content"] = json!({ kind: media });
        }
        if reply.has_etag {
            let etag = json!({ "description": "the object's revision", "schema": { "type": "string" } });
            response["headers"] = json!({ "ETag": etag });
        }
        let links = links(operation, reply.status);
        if !links.is_empty() {
            response["links"] = links.into();
        }
        responses.insert(reply.status.to_string(), response);
    }
    for (status, kinds) in problem_statuses(operation) {
        let description = format!("a problem: {}", kinds.join(", "));
        let content = json!({ "application/problem+json": { "schema": problem } });
        responses.insert(status.to_string(), json!({ "description": description, "content": content }));
    }
    responses
}

/// From what a request made to the operations on it: those whose path is its own with one parameter more, or those on
/// the task that it began.
fn links(operation: &Operation, status: u16) -> Map<String, Value> {
    let (collection, given) = match (operation.method, status) {
        (Method::POST, 200 | 201) => (operation.path, operation.path_params),
        (_, 202) => ("/v1/tasks", &[][..]),
        _ => return Map::new(),
    };
    let on_one = |other: &&Operation| {
        let one = other.path.strip_prefix(collection).and_then(|rest| rest.strip_prefix("/{"));
        one.is_some() && other.path_params.len() == given.len() + 1
    };
    OPERATIONS
        .iter()
        .filter(on_one)
        .map(|other| {
            let made = other.path_params.last().map_or("", |(name, _)| name);
            // What is named by its name alone has no other way to be named; all else has a UUID.
            let member =
                if ["vpool", "backend", "preset", "vmachine"].contains(&made) { "name" } else { "uuid" };
            let mut parameters: Map<String, Value> = given
                .iter()
                .map(|(name, _)| ((*name).to_owned(), format!("$request.path.{name}").into()))
                .collect();
            parameters.insert(made.to_owned(), format!("$response.body#/{member}").into());
            (other.id.to_owned(), json!({ "operationId": other.id, "parameters": parameters }))
        })
        .collect()
}

fn problem_statuses(operation: &Operation) -> BTreeMap<u16, Vec<&'static str>> {
    let mut kinds = vec![
        ProblemKind::Invalid,
        ProblemKind::Unauthorized,
        ProblemKind::Unavailable,
        ProblemKind::Internal,
    ];
    kinds.extend(operation.problems);
    if operation.body.is_some() {
        kinds.push(ProblemKind::TooLarge);
    }
    if operation.until.is_some() {
        kinds.push(ProblemKind::NotImplemented);
    }
    let mut statuses: BTreeMap<u16, Vec<&'static str>> = BTreeMap::new();
    for kind in kinds {
        statuses.entry(kind.status()).or_default().push(kind.as_str());
    }
    statuses
}

#[cfg(test)]
mod tests;
