//! An ovsd in memory: the RPC operations and the NBD sockets that ovsd-edge needs, in a thread that can be killed and
//! started again over the same contents.

mod disk;
mod rpc;

use disk::RamExports;
use ovs_api::{
    Attachment, AttachmentMode, Event, EventId, EventKind, Labels, Paths, Timestamp, Vdisk, VdiskState,
};
use ovs_nbd::{Server, ServerOptions, serve_unix};
use ovs_units::{CLUSTER_SIZE_BYTES, Name, VdiskId};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};
use tokio::{
    net::UnixListener,
    sync::{broadcast, watch},
    task::LocalSet,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const VPOOL: &str = "default";

/// What survives a kill.
#[derive(Clone)]
pub struct World {
    pub paths: Paths,
    state: Arc<Mutex<State>>,
}

pub struct State {
    pub vdisks: BTreeMap<VdiskId, Vdisk>,
    pub pages: HashMap<VdiskId, disk::Pages>,
    pub attachments: BTreeMap<Uuid, Attachment>,
    /// NBD requests wait while this is true.
    pub is_stalled: watch::Sender<bool>,
    /// Resizes asked for.
    pub resizes: u64,
    /// NBD flushes served.
    pub flushes: u64,
    /// Connections that were let in, by the name of their session.
    pub sessions: Vec<(Uuid, u64)>,
    revision: u64,
    paths: Paths,
    events: broadcast::Sender<Event>,
    /// vDisks that came since the sockets were last looked after.
    new_sockets: Vec<VdiskId>,
}

impl World {
    pub fn new(root: &Path) -> World {
        let paths = Paths::new(Some(root));
        fs::create_dir_all(paths.nbd_dir()).unwrap();
        let state = State {
            vdisks: BTreeMap::new(),
            pages: HashMap::new(),
            attachments: BTreeMap::new(),
            is_stalled: watch::Sender::new(false),
            resizes: 0,
            flushes: 0,
            sessions: Vec::new(),
            revision: 1,
            paths: paths.clone(),
            events: broadcast::channel(1000).0,
            new_sockets: Vec::new(),
        };
        World { paths, state: Arc::new(Mutex::new(state)) }
    }

    /// A test that failed while it held this must still be able to close its files.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts serving.
    pub fn start(&self) -> Ovsd {
        let (world, kill) = (self.clone(), CancellationToken::new());
        let killed = kill.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = LocalSet::new();
            local.block_on(&runtime, async {
                tokio::select! {
                    () = world.serve() => {}
                    () = killed.cancelled() => {}
                }
            });
            // Dropping the tasks closes every connection with its requests unanswered, as a kill does.
        });
        Ovsd { kill, thread: Some(thread) }
    }

    /// Somebody on another host who writes.
    pub fn attach_somebody_else(&self, name: &str) {
        let mut state = self.state();
        let vdisk = state.named(name).unwrap().uuid;
        rpc::attach_as(&mut state, vdisk, "qemu@there");
    }

    async fn serve(&self) {
        let known: Vec<VdiskId> = self.state().vdisks.keys().copied().collect();
        self.state().new_sockets = known;
        let _ = fs::remove_file(self.paths.socket());
        let listener = UnixListener::bind(self.paths.socket()).unwrap();
        let server = Server::new(ServerOptions::default());
        tokio::task::spawn_local(rpc::serve(listener, self.clone(), server.clone()));
        std::future::pending().await
    }

    /// Listens for vDisks that have no socket yet; before their creation is answered.
    fn open_sockets(&self, server: &Rc<Server>) {
        let new = std::mem::take(&mut self.state().new_sockets);
        for id in new {
            let path = self.paths.nbd_vdisk_socket(id);
            let _ = fs::remove_file(&path);
            let listener = UnixListener::bind(path).unwrap();
            let exports = Rc::new(RamExports { world: self.clone(), id });
            tokio::task::spawn_local(serve_unix(
                Rc::clone(server),
                listener,
                exports,
                CancellationToken::new(),
            ));
        }
    }
}

/// A running ovsd.
pub struct Ovsd {
    kill: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Ovsd {
    /// As `kill -9`.
    pub fn kill(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.kill.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Ovsd {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    pub fn named(&self, name: &str) -> Option<&Vdisk> {
        self.vdisks.values().find(|vdisk| vdisk.name.as_str() == name)
    }

    pub fn create(&mut self, name: &Name, size_bytes: u64, labels: Labels) -> Vdisk {
        self.revision += 1;
        let id = VdiskId(Uuid::from_u128(0x1000_0000_0000 + u128::from(self.revision)));
        let vdisk = Vdisk {
            uuid: id,
            vpool: Name::new(VPOOL).unwrap(),
            name: name.clone(),
            revision: self.revision,
            size_bytes,
            capacity_bytes: size_bytes.next_multiple_of(CLUSTER_SIZE_BYTES),
            allocated_bytes: 0,
            buffered_bytes: 0,
            state: VdiskState::Ok,
            state_reason: None,
            is_template: false,
            protected: false,
            base: None,
            snapshot_count: 0,
            attachment_count: 0,
            on_full: ovs_api::OnFull::Stall,
            stall_timeout_ms: None,
            limits: Default::default(),
            cache: Default::default(),
            host: "here".into(),
            nbd_socket: self.paths.nbd_vdisk_socket(id).display().to_string(),
            nbd_uri: self.paths.nbd_uri(id),
            nbd_tls_uri: None,
            qemu_filename: self.paths.qemu_filename(id),
            fuse_path: String::new(),
            description: String::new(),
            labels,
            created_at: Timestamp::from_unix_ms(1_700_000_000_000),
        };
        self.vdisks.insert(id, vdisk.clone());
        self.pages.insert(id, disk::Pages::default());
        self.new_sockets.push(id);
        self.emit(EventKind::VdiskCreated, &vdisk);
        vdisk
    }

    /// A vDisk as it is now, with what it takes.
    pub fn shown(&self, id: VdiskId) -> Option<Vdisk> {
        let mut vdisk = self.vdisks.get(&id)?.clone();
        vdisk.allocated_bytes = self.pages[&id].allocated_bytes();
        Some(vdisk)
    }

    /// Changes a vDisk as a request does, and tells everyone.
    pub fn change(&mut self, id: VdiskId, kind: EventKind, change: impl FnOnce(&mut Vdisk)) -> Vdisk {
        self.revision += 1;
        let revision = self.revision;
        let vdisk = self.vdisks.get_mut(&id).unwrap();
        change(vdisk);
        vdisk.revision = revision;
        vdisk.capacity_bytes = vdisk.size_bytes.next_multiple_of(CLUSTER_SIZE_BYTES);
        let (size_bytes, vdisk) = (vdisk.size_bytes, vdisk.clone());
        self.pages.get_mut(&id).unwrap().cut(size_bytes);
        self.emit(kind, &vdisk);
        self.shown(id).unwrap()
    }

    pub fn delete(&mut self, id: VdiskId) {
        if let Some(vdisk) = self.vdisks.remove(&id) {
            self.pages.remove(&id);
            let _ = fs::remove_file(self.paths.nbd_vdisk_socket(id));
            self.emit(EventKind::VdiskTrashed, &vdisk);
        }
    }

    /// Attachments of a vDisk that write.
    pub fn writers(&self, id: VdiskId) -> Vec<Uuid> {
        let of_vdisk =
            |attachment: &&Attachment| attachment.vdisk == id && attachment.mode != AttachmentMode::ReadOnly;
        self.attachments.values().filter(of_vdisk).map(|attachment| attachment.uuid).collect()
    }

    fn emit(&mut self, kind: EventKind, vdisk: &Vdisk) {
        self.revision += 1;
        let _ = self.events.send(Event {
            id: EventId(self.revision),
            kind,
            subject: Some(vdisk.uuid.0),
            revision: Some(vdisk.revision),
            vpool: Some(vdisk.vpool.clone()),
            vdisk: Some(vdisk.uuid.0),
            name: Some(vdisk.name.to_string()),
            previous_name: None,
            size_bytes: Some(vdisk.size_bytes),
            detail: None,
            at: Timestamp::from_unix_ms(0),
        });
    }
}
