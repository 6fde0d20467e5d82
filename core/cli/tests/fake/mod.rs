//! A tiny ovsd for tests: an RPC server that answers what it is told to, and an NBD server over disks in memory.

#![allow(dead_code, reason = "each test file uses a part of it")]

mod disk;
mod rpc;

pub use disk::{Disk, serve_disks};
pub use rpc::{Answer, Request, Rpc};

use serde_json::{Value, json};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};
use tempfile::TempDir;

pub const UUID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";
pub const SNAPSHOT_UUID: &str = "00000000-0000-0000-0000-000000000005";
pub const ATTACHMENT_UUID: &str = "00000000-0000-0000-0000-000000000007";

/// The built program, with its root set.
pub fn ovs(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ovs"));
    command.arg("--root").arg(root).stdin(Stdio::null()).env_remove("OVS_ROOT").env("TZ", "UTC");
    command
}

/// Runs it to its end.
pub fn run(root: &Path, words: &[&str]) -> Output {
    ovs(root).args(words).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A problem document.
pub fn problem(kind: &str, status: u16, detail: &str) -> Answer {
    let document = json!({
        "type": format!("urn:ovs:problem:{kind}"), "title": "x", "status": status, "detail": detail,
    });
    (status, Some(document))
}

/// One vDisk named `default/v`, perhaps with a snapshot `s`, over one disk in memory.
pub struct Ovsd {
    root: TempDir,
    pub disk: Disk,
    state: Arc<Mutex<State>>,
    _rpc: Rpc,
}

#[derive(Default)]
pub struct State {
    /// The vDisk's document, if it exists.
    pub vdisk: Option<Value>,
    /// The snapshots taken, by name.
    pub snapshots: HashMap<String, Value>,
    pub attachments: u64,
    pub refuses_attachments: bool,
    pub generation: u64,
    /// `METHOD path` of everything that was asked.
    pub log: Vec<String>,
}

impl Ovsd {
    /// With `size_bytes`, there is a vDisk already.
    pub fn start(size_bytes: Option<u64>) -> Ovsd {
        let root = TempDir::new().unwrap();
        let disk = Disk::new(size_bytes.unwrap_or(0));
        let run = root.path().join("run/ovs");
        std::fs::create_dir_all(run.join("nbd")).unwrap();
        serve_disks(&[run.join("nbd.sock"), run.join("nbd").join(format!("{UUID}.sock"))], disk.clone());
        let state = Arc::new(Mutex::new(State::default()));
        if let Some(size_bytes) = size_bytes {
            state.lock().unwrap().vdisk = Some(vdisk(root.path(), size_bytes, &json!({})));
        }
        let answer = {
            let (state, disk, root) = (state.clone(), disk.clone(), root.path().to_owned());
            move |request: &Request| state.lock().unwrap().answer(request, &disk, &root)
        };
        let rpc = Rpc::start(&run.join("ovsd.sock"), answer);
        Ovsd { root, disk, state, _rpc: rpc }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn ovs(&self) -> Command {
        ovs(self.root.path())
    }

    pub fn run(&self, words: &[&str]) -> Output {
        run(self.root.path(), words)
    }

    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The vDisk's size as the RPC tells it.
    pub fn size_bytes(&self) -> Option<u64> {
        self.state().vdisk.as_ref().map(|vdisk| vdisk["size_bytes"].as_u64().unwrap())
    }
}

fn vdisk(root: &Path, size_bytes: u64, labels: &Value) -> Value {
    let socket = root.join(format!("run/ovs/nbd/{UUID}.sock"));
    json!({
        "uuid": UUID, "vpool": "default", "name": "v", "revision": 1, "size_bytes": size_bytes,
        "capacity_bytes": size_bytes.next_multiple_of(4096), "allocated_bytes": 0, "buffered_bytes": 0, "state": "ok",
        "is_template": false, "protected": false, "snapshot_count": 0, "attachment_count": 0, "on_full": "stall",
        "host": "h1", "nbd_socket": socket, "nbd_uri": "nbd+unix:///", "qemu_filename": "json:{}",
        "fuse_path": "/mnt/ovs/default/v.raw", "labels": labels, "created_at": "2026-11-20T10:00:00Z",
    })
}

impl State {
    fn answer(&mut self, request: &Request, disk: &Disk, root: &Path) -> Answer {
        let line = format!("{} {}", request.method, request.path);
        self.log.push(line.clone());
        let is_this = request.path.contains(UUID) || request.path.contains("default:v");
        if is_this && self.vdisk.is_none() {
            return problem("not-found", 404, "no such vDisk");
        }
        let noun = request.path.trim_start_matches("/v1/").split(['/', '?']).next().unwrap_or_default();
        let is_snapshot = request.path.contains("/snapshots");
        match (request.method.as_str(), noun) {
            ("POST", "vdisks") if is_snapshot => {
                let snapshot = self.snapshot(request.body["name"].as_str().unwrap());
                (201, Some(snapshot))
            }
            ("GET", "vdisks") if is_snapshot && request.path.contains("/snapshots?") => {
                let items: Vec<&Value> = self.snapshots.values().collect();
                (200, Some(json!({"items": items})))
            }
            ("GET", "vdisks") if is_snapshot => match self.snapshots.values().next() {
                Some(snapshot) => (200, Some(snapshot.clone())),
                None => problem("not-found", 404, "no such snapshot"),
            },
            ("DELETE", "vdisks") if is_snapshot => {
                self.snapshots.clear();
                (204, None)
            }
            ("POST", "vdisks") if self.vdisk.is_some() => problem("exists", 409, "default/v exists"),
            ("POST", "vdisks") => {
                let size = request.body["size_bytes"].as_u64().unwrap();
                disk.resize(size);
                self.vdisk = Some(vdisk(root, size, &request.body["labels"]));
                (201, self.vdisk.clone())
            }
            ("GET", "vdisks") => (200, self.vdisk.clone()),
            ("PATCH", "vdisks") => (200, self.patch(&request.body, disk)),
            ("DELETE", "vdisks") if self.attachments > 0 => problem("in-use", 409, "default/v is in use"),
            ("DELETE", "vdisks") => {
                self.vdisk = None;
                (204, None)
            }
            ("POST", "attachments") if self.refuses_attachments => {
                problem("in-use", 409, "default/v is in use")
            }
            ("POST", "attachments") => {
                self.attachments = 1;
                self.generation += 1;
                (201, Some(self.attachment(&request.body)))
            }
            ("GET", "attachments") => {
                let body = json!({"client": "ovs", "door": "cli", "mode": "exclusive"});
                let items: Vec<Value> = (0..self.attachments).map(|_| self.attachment(&body)).collect();
                (200, Some(json!({"items": items})))
            }
            ("DELETE", "attachments") => {
                self.attachments = 0;
                (204, None)
            }
            _ => problem("internal", 500, &format!("the fake ovsd does not know {line}")),
        }
    }

    fn patch(&mut self, body: &Value, disk: &Disk) -> Option<Value> {
        let vdisk = self.vdisk.as_mut()?;
        if let Some(size) = body["size_bytes"].as_u64() {
            vdisk["size_bytes"] = size.into();
            vdisk["capacity_bytes"] = size.next_multiple_of(4096).into();
            disk.resize(size);
        }
        for (key, value) in body["labels"].as_object()? {
            match value {
                Value::Null => drop(vdisk["labels"].as_object_mut()?.remove(key)),
                value => vdisk["labels"][key] = value.clone(),
            }
        }
        Some(vdisk.clone())
    }

    fn snapshot(&mut self, name: &str) -> Value {
        let size = self.vdisk.as_ref().map(|vdisk| vdisk["size_bytes"].clone());
        let snapshot = json!({
            "uuid": SNAPSHOT_UUID, "vdisk": UUID, "vpool": "default", "vdisk_name": "v", "name": name, "revision": 1,
            "size_bytes": size, "on_backend": true, "clone_count": 0, "nbd_export": format!("default/v@{name}"),
            "created_at": "2026-11-20T10:30:00Z",
        });
        self.snapshots.insert(name.to_owned(), snapshot.clone());
        snapshot
    }

    /// A snapshot that is there from the start.
    pub fn with_snapshot(&mut self, name: &str) {
        self.snapshot(name);
    }

    fn attachment(&self, body: &Value) -> Value {
        json!({
            "uuid": ATTACHMENT_UUID, "revision": 1, "vdisk": UUID, "vpool": "default", "vdisk_name": "v",
            "client": body["client"], "door": body["door"], "host": "h1", "mode": body["mode"],
            "generation": self.generation, "write_through": false, "persistent": false, "connection_count": 0,
            "created_at": "2026-11-20T10:00:00Z",
        })
    }
}
