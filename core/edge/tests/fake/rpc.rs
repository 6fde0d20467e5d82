//! The RPC of the fake, over HTTP as the real one's.

use super::{State, VPOOL, World};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{Request, Response, StatusCode, body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use ovs_api::{
    Attachment, CreateAttachment, CreateVdisk, Created, Event, EventId, EventKind, JsonReply, NoContent,
    OnFull, Page, PatchVdisk, Problem, ProblemKind, Timestamp, Vdisk, VdiskRef, Vpool, VpoolState,
};
use ovs_nbd::Server;
use ovs_units::{Name, VdiskId, VpoolId};
use serde::de::DeserializeOwned;
use std::{convert::Infallible, rc::Rc};
use tokio::{net::UnixListener, sync::broadcast, task::spawn_local};
use uuid::Uuid;

type Body = UnsyncBoxBody<Bytes, Infallible>;

pub async fn serve(listener: UnixListener, world: World, server: Rc<Server>) {
    world.open_sockets(&server);
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (world, server) = (world.clone(), Rc::clone(&server));
        spawn_local(async move {
            let service = service_fn(|request| answer(&world, &server, request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    world: &World,
    server: &Rc<Server>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path: Vec<String> = parts.uri.path().trim_matches('/').split('/').map(decoded).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    if path == ["v1", "events"] {
        return Ok(events(world.state().events.subscribe()));
    }
    let result =
        dispatch(&mut world.state(), parts.method.as_str(), &path, parts.uri.query().unwrap_or(""), &body);
    world.open_sockets(server);
    let (status, body) = match result {
        Ok((status, body)) => (status, body),
        Err(problem) => (problem.status, serde_json::to_vec(&problem).unwrap()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

fn decoded(segment: &str) -> String {
    segment.replace("%3A", ":").replace("%2F", "/").replace("%40", "@")
}

fn events(receiver: broadcast::Receiver<Event>) -> Response<Body> {
    let started = Event {
        id: EventId(1),
        kind: EventKind::StreamStarted,
        subject: None,
        revision: None,
        vpool: None,
        vdisk: None,
        name: None,
        previous_name: None,
        size_bytes: None,
        detail: None,
        at: Timestamp::from_unix_ms(0),
    };
    let later = stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.ok().map(|event| (event, receiver))
    });
    let frames = stream::iter([started]).chain(later).map(|event| {
        let data = serde_json::to_string(&event).unwrap();
        Ok(Frame::data(Bytes::from(format!("id: {}\ndata: {data}\n\n", event.id.0))))
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)))
}

type Answer = Result<(u16, Vec<u8>), Problem>;

fn dispatch(state: &mut State, method: &str, path: &[&str], query: &str, body: &Bytes) -> Answer {
    match (method, path) {
        ("GET", ["v1", "vpools"]) => encode(&Page { items: vec![vpool()], next_cursor: None }),
        ("GET", ["v1", "vpools", VPOOL]) => encode(&vpool()),
        ("GET", ["v1", "vdisks"]) => {
            let items = state.vdisks.keys().filter_map(|id| state.shown(*id)).collect::<Vec<Vdisk>>();
            encode(&Page { items, next_cursor: None })
        }
        ("POST", ["v1", "vdisks"]) => create(state, &parsed::<CreateVdisk>(body)?),
        ("GET", ["v1", "vdisks", vdisk]) => {
            let id = find(state, vdisk)?;
            encode(&state.shown(id).ok_or_else(not_found)?)
        }
        ("PATCH", ["v1", "vdisks", vdisk]) => {
            let id = find(state, vdisk)?;
            patch(state, id, parsed::<PatchVdisk>(body)?)
        }
        ("DELETE", ["v1", "vdisks", vdisk]) => {
            let id = find(state, vdisk)?;
            if !state.writers(id).is_empty() {
                return Err(Problem::new(ProblemKind::InUse, "attached"));
            }
            state.delete(id);
            encode(&NoContent)
        }
        ("POST", ["v1", "attachments"]) => attach(state, &parsed::<CreateAttachment>(body)?),
        ("GET", ["v1", "attachments"]) => {
            let client =
                decoded(query.split('&').find_map(|pair| pair.strip_prefix("client=")).unwrap_or(""));
            let mut items: Vec<Attachment> = state.attachments.values().cloned().collect();
            items.retain(|attachment| attachment.client == client);
            encode(&Page { items, next_cursor: None })
        }
        ("DELETE", ["v1", "attachments", uuid]) => {
            let uuid = Uuid::try_parse(uuid).map_err(|_| not_found())?;
            state.attachments.remove(&uuid).ok_or_else(not_found)?;
            encode(&NoContent)
        }
        _ => panic!("the fake has no {method} {path:?}"),
    }
}

fn create(state: &mut State, request: &CreateVdisk) -> Answer {
    request_is_sound(request)?;
    match state.named(request.name.as_str()) {
        Some(existing)
            if existing.labels == request.labels && Some(existing.size_bytes) == request.size_bytes =>
        {
            encode(&Created::existing(existing.clone()))
        }
        Some(_) => Err(Problem::new(ProblemKind::Exists, "another one")),
        None => {
            let vdisk = state.create(&request.name, request.size_bytes.unwrap_or(0), request.labels.clone());
            encode(&Created::new(vdisk))
        }
    }
}

fn patch(state: &mut State, id: VdiskId, patch: PatchVdisk) -> Answer {
    request_is_sound(&patch)?;
    let now = state.vdisks[&id].clone();
    if let Some(name) = &patch.name
        && state.named(name.as_str()).is_some_and(|other| other.uuid != id)
    {
        return Err(Problem::new(ProblemKind::Exists, "taken"));
    }
    if patch.size_bytes.is_some_and(|size| size < now.size_bytes) {
        if !patch.allow_shrink {
            return Err(Problem::new(ProblemKind::Conflict, "a shrink"));
        }
        if state.writers(id).iter().any(|writer| Some(*writer) != patch.attachment) {
            return Err(Problem::new(ProblemKind::InUse, "attached"));
        }
    }
    let kind = match (&patch.name, patch.size_bytes) {
        (Some(_), _) => EventKind::VdiskRenamed,
        (_, Some(_)) => EventKind::VdiskResized,
        _ => EventKind::VdiskUpdated,
    };
    state.resizes += u64::from(patch.size_bytes.is_some());
    let labels = now.labels.patched(&patch.labels)?;
    encode(&state.change(id, kind, |vdisk| {
        vdisk.name = patch.name.clone().unwrap_or(vdisk.name.clone());
        vdisk.size_bytes = patch.size_bytes.unwrap_or(vdisk.size_bytes);
        vdisk.labels = labels;
    }))
}

fn attach(state: &mut State, request: &CreateAttachment) -> Answer {
    request_is_sound(request)?;
    let VdiskRef::Id(vdisk) = request.vdisk else { panic!("the edge attaches by UUID") };
    let name = state.vdisks.get(&vdisk).ok_or_else(not_found)?.name.clone();
    let same = |other: &&mut Attachment| other.vdisk == vdisk && other.client == request.client;
    if let Some(existing) = state.attachments.values_mut().find(same) {
        existing.generation += 1;
        return encode(&Created::existing(existing.clone()));
    }
    if request.mode.writes() && !state.writers(vdisk).is_empty() {
        return Err(Problem::new(ProblemKind::InUse, "somebody else writes"));
    }
    state.revision += 1;
    let attachment = Attachment {
        uuid: Uuid::from_u128(0x2000_0000_0000 + u128::from(state.revision)),
        revision: 1,
        vdisk,
        vpool: Name::new(VPOOL).unwrap(),
        vdisk_name: name,
        snapshot: None,
        client: request.client.clone(),
        door: request.door,
        host: "here".into(),
        mode: request.mode,
        generation: 1,
        write_through: false,
        persistent: request.persistent,
        connection_count: 0,
        created_at: Timestamp::from_unix_ms(0),
    };
    state.attachments.insert(attachment.uuid, attachment.clone());
    encode(&Created::new(attachment))
}

pub fn attach_as(state: &mut State, vdisk: VdiskId, client: &str) {
    let request = CreateAttachment {
        vdisk: VdiskRef::Id(vdisk),
        snapshot: None,
        client: client.to_owned(),
        door: ovs_api::Door::Nbd,
        mode: ovs_api::AttachmentMode::Exclusive,
        host: None,
        write_through: false,
        persistent: true,
        uuid: None,
    };
    attach(state, &request).unwrap();
}

fn vpool() -> Vpool {
    Vpool {
        uuid: VpoolId(Uuid::from_u128(1)),
        name: Name::new(VPOOL).unwrap(),
        revision: 1,
        backend: Name::new("b").unwrap(),
        preset: Name::new("p").unwrap(),
        state: VpoolState::Ok,
        state_reason: None,
        on_full: OnFull::Stall,
        stall_timeout_ms: None,
        default_size_bytes: 10 << 30,
        trash_retention_s: 0,
        cache: Default::default(),
        total_bytes: Some(100 << 30),
        free_bytes: Some(40 << 30),
        used_bytes: 60 << 30,
        provisioned_bytes: 0,
        vdisk_count: 0,
        description: String::new(),
        labels: ovs_api::Labels::default(),
        created_at: Timestamp::from_unix_ms(0),
    }
}

fn find(state: &State, vdisk: &str) -> Result<VdiskId, Problem> {
    let found = match vdisk.parse::<VdiskRef>() {
        Ok(VdiskRef::Id(id)) => state.vdisks.contains_key(&id).then_some(id),
        Ok(VdiskRef::Name { name, .. }) => state.named(name.as_str()).map(|vdisk| vdisk.uuid),
        Err(_) => None,
    };
    found.ok_or_else(not_found)
}

fn not_found() -> Problem {
    Problem::new(ProblemKind::NotFound, "not there")
}

fn parsed<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| Problem::new(ProblemKind::Invalid, error.to_string()))
}

fn request_is_sound(request: &impl ovs_api::Request) -> Result<(), Problem> {
    request.check()
}

fn encode<T: JsonReply>(reply: &T) -> Answer {
    let encoded = reply.encode().unwrap();
    Ok((encoded.status, encoded.body.unwrap_or_default()))
}
