//! The RPC: requests as ovsd takes them apart, answers as our clients do.

use crate::{Family, first_line, json};
use hyper::{HeaderMap, header::HeaderName};
use ovs_api::{
    Attachment, Backend, Cursor, Event, LabelSelector, Labels, LabelsPatch, Page, Preset, Problem, Snapshot,
    SnapshotRef, Status, Task, Timestamp, TrashEntry, Vdisk, VdiskRef, VdiskStats, Vpool,
    decoders::LineReader,
};
use std::{fmt::Display, str::FromStr};

/// `METHOD PATH[?QUERY]`, headers, an empty line, the body: what hyper leaves to us.
pub(crate) const REQUEST: Family = Family {
    name: "rpc_request",
    check: |bytes| {
        let (line, mut rest) = first_line(bytes);
        let Ok(line) = std::str::from_utf8(line) else { return false };
        let (method, target) = line.split_once(' ').unwrap_or((line, ""));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut headers = HeaderMap::new();
        loop {
            let (header, after) = first_line(rest);
            rest = after;
            if header.is_empty() {
                break;
            }
            let colon = header.iter().position(|byte| *byte == b':').unwrap_or(header.len());
            let (name, value) = (&header[..colon], header.get(colon + 1..).unwrap_or_default());
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value.try_into()) {
                // As hyper is told.
                if headers.len() < 100 {
                    headers.append(name, value);
                }
            }
        }
        match ovs_service::rpc::decoders::request(method, path, query, &headers, rest) {
            Ok(_) => true,
            Err(problem) => {
                assert!((400..500).contains(&problem.status), "{problem:?}");
                // What was given may be long; what is said of it is not.
                assert!(problem.detail.len() < 8 << 10, "{} bytes", problem.detail.len());
                false
            }
        }
    },
    seeds: || REQUESTS.iter().map(|text| text.as_bytes().to_vec()).collect(),
    memory_bytes: 512 << 10,
    memory_per_byte: 64,
};

/// Bodies and event streams, and the words in them.
pub(crate) const REPLY: Family = Family {
    name: "rpc_reply",
    check: |bytes| {
        let taken = [
            json::<Problem>(bytes).is_some(),
            json::<Vdisk>(bytes).is_some(),
            json::<Page<Vdisk>>(bytes).is_some(),
            json::<VdiskStats>(bytes).is_some(),
            json::<Vpool>(bytes).is_some(),
            json::<Snapshot>(bytes).is_some(),
            json::<Page<Snapshot>>(bytes).is_some(),
            json::<Attachment>(bytes).is_some(),
            json::<Backend>(bytes).is_some(),
            json::<Preset>(bytes).is_some(),
            json::<Task>(bytes).is_some(),
            json::<TrashEntry>(bytes).is_some(),
            json::<Status>(bytes).is_some(),
            json::<Event>(bytes).is_some(),
            json::<Labels>(bytes).is_some(),
            json::<LabelsPatch>(bytes).is_some(),
            json::<Timestamp>(bytes).is_some(),
            events(bytes),
            word::<VdiskRef>(bytes),
            word::<SnapshotRef>(bytes),
            selector(bytes),
            cursor(bytes),
        ];
        taken.contains(&true)
    },
    seeds: || REPLIES.iter().map(|text| text.as_bytes().to_vec()).collect(),
    memory_bytes: 256 << 10,
    memory_per_byte: 64,
};

/// The same lines however the bytes come in; an event in each that has data.
fn events(bytes: &[u8]) -> bool {
    let whole = lines(bytes, bytes.len().max(1));
    assert_eq!(lines(bytes, 7), whole);
    let mut data = whole.iter().flatten().filter_map(|line| line.strip_prefix("data:"));
    data.any(|text| json::<Event>(text.as_bytes()).is_some())
}

/// The lines up to the first that is no text.
fn lines(bytes: &[u8], piece_bytes: usize) -> Option<Vec<String>> {
    let (mut reader, mut lines) = (LineReader::default(), Vec::new());
    for piece in bytes.chunks(piece_bytes) {
        reader.push(bytes::Bytes::copy_from_slice(piece));
        while let Some(line) = reader.line().ok()? {
            lines.push(line);
        }
    }
    Some(lines)
}

fn word<T: FromStr + Display + PartialEq>(bytes: &[u8]) -> bool {
    let Some(value) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<T>().ok()) else {
        return false;
    };
    assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value), "{value}");
    true
}

fn selector(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(selector) = text.parse::<LabelSelector>() else { return false };
    assert_eq!(String::from(selector), text);
    true
}

fn cursor(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(key) = Cursor(text.to_owned()).key() else { return false };
    assert_eq!(Cursor::after(&key).key().as_ref(), Ok(&key));
    true
}

const REQUESTS: [&str; 14] = [
    "POST /v1/vdisks\n\n{\"vpool\": \"p\", \"name\": \"x\", \"size_bytes\": 1073741824, \"labels\": {\"a\": \"b\"}, \"on_full\": \"stall\", \"stall_timeout_ms\": 5}",
    "POST /v1/vdisks\nidempotency-key: k\n\n{\"vpool\": \"p\", \"name\": \"x\", \"source\": {\"vdisk\": \"p:y\", \"snapshot\": \"s\"}}",
    "GET /v1/vdisks?vpool=p&label=a%3Db&label=c&limit=7&is_template=true\n\n",
    "PATCH /v1/vdisks/p%3Ax\nif-match: \"7\"\n\n{\"name\": \"y\", \"size_bytes\": 4096, \"labels\": {\"a\": null}, \"protected\": true}",
    "DELETE /v1/vdisks/67e55044-10b1-426f-9247-bb680e5fe0c8?purge=true\n\n",
    "POST /v1/vdisks/p:x/snapshots\n\n{\"name\": \"s\", \"labels\": {}}",
    "GET /v1/vdisks/p:x/snapshots/s?wait=on_backend&wait_ms=5\n\n",
    "POST /v1/vdisks/p:x/rollback\n\n{\"snapshot\": \"s\"}",
    "POST /v1/vpools\n\n{\"name\": \"p\", \"backend\": \"b\"}",
    "POST /v1/backends\n\n{\"name\": \"b\", \"type\": \"dir\", \"path\": \"/x\"}",
    "POST /v1/attachments\n\n{\"vdisk\": \"p:x\", \"client\": \"c\", \"door\": \"fuse\", \"mode\": \"exclusive\"}",
    "GET /v1/tasks/67e55044-10b1-426f-9247-bb680e5fe0c8?wait_ms=7\novs-protocol: 1\n\n",
    "GET /v1/events\nlast-event-id: 7\n\n",
    "POST /v1/exports\n\n{\"vdisk\": \"p:x\", \"protocol\": \"iscsi\", \"clients\": [\"c\"]}",
];

const REPLIES: [&str; 9] = [
    r#"{"type":"urn:ovs:problem:invalid","title":"the request is not valid","status":400,"detail":"x","field":"name"}"#,
    VDISK,
    "id: 7\nevent: vdisk.created\ndata: {\"id\":7,\"kind\":\"vdisk.created\",\"subject\":\"67e55044-10b1-426f-9247-bb680e5fe0c8\",\"revision\":1,\"at\":\"2026-01-01T00:00:00Z\"}\n\n: \n\n",
    r#"{"a":"b","c":"d"}"#,
    r#""2026-01-01T00:00:00.123Z""#,
    "default:web-1",
    "67e55044-10b1-426f-9247-bb680e5fe0c8",
    "key=value",
    "64656661756c742f78",
];

const VDISK: &str = r#"{"uuid":"67e55044-10b1-426f-9247-bb680e5fe0c8","vpool":"default","name":"x","revision":3,"size_bytes":10737418240,"capacity_bytes":10737418240,"allocated_bytes":1572864,"buffered_bytes":4096,"state":"ok","is_template":false,"protected":false,"snapshot_count":1,"attachment_count":1,"on_full":"stall","host":"h1","nbd_socket":"/run/ovs/nbd/x.sock","nbd_uri":"nbd+unix:///?socket=/x","qemu_filename":"json:{}","fuse_path":"/mnt/x.raw","created_at":"2026-01-01T00:00:00Z","labels":{"a":"b"}}"#;
