//! One host with one vPool, in memory but for the write buffer; it can crash and lose its local state.

use crate::pages::Pages;
use ovs_backend::{Backend, Fault, FaultyBackend, MemoryBackend, ObjectName, Operation, Urgency};
use ovs_units::{ByteCount, ByteOffset, ByteRange, Name, SnapshotId, VdiskId, VpoolId};
use ovs_volume::{
    CacheParts, Chance, CreateVdisk, Engine, EngineConfig, EngineParts, Entry, FileDevice, FoundVdisk,
    MemoryRegistry, OnFull, Registry, SystemClock, Transaction, Vdisk,
};
use std::{cell::Cell, path::PathBuf, rc::Rc, time::Duration};
use tokio::sync::oneshot;
use uuid::Uuid;

pub const MIB: u64 = 1 << 20;
/// One that has nothing to do with the world's.
pub const OTHER_VPOOL: VpoolId = VpoolId(Uuid::from_u128(99));
const STALL: OnFull = OnFull::Stall { timeout: None };

pub fn range(start: u64, length: u64) -> ByteRange {
    ByteRange::new(ByteOffset(start), ByteCount(length)).unwrap()
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Runs a case on one thread; whatever it left running ends with it.
pub fn run(case: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

/// Identities in a row.
#[derive(Default)]
struct Counting(Cell<u128>);

impl Chance for Counting {
    fn uuid(&self) -> Uuid {
        self.0.set(self.0.get() + 1);
        Uuid::from_u128(self.0.get())
    }
}

/// A call of this kind waits for that.
type Held = (Operation, oneshot::Receiver<()>);

fn is_taken<T>(held: &Cell<Option<T>>) -> bool {
    let waiting = held.take();
    let is_taken = waiting.is_none();
    held.set(waiting);
    is_taken
}

pub struct World {
    directory: tempfile::TempDir,
    lives: u32,
    chance: Rc<Counting>,
    registry: Rc<MemoryRegistry>,
    pages: Rc<Pages>,
    backend: Rc<FaultyBackend<Rc<MemoryBackend>>>,
    takes_data: Rc<Cell<bool>>,
    takes_deletions: Rc<Cell<bool>>,
    gives_data: Rc<Cell<bool>>,
    reads_refused: Rc<Cell<u64>>,
    /// Of the next such call on an SCO.
    held: Rc<Cell<Option<Held>>>,
    /// SCOs that the backend has room for.
    room: Rc<Cell<u64>>,
    checkpoint_every: u64,
    copies_maps: bool,
    map_bytes: u64,
    slot_bytes: u64,
    sco_bytes: u64,
    scrub_every: Duration,
    scrub_by_itself: bool,
    cache: Option<CacheParts>,
    engine: Option<Engine>,
    vpool: VpoolId,
}

impl World {
    pub async fn new() -> World {
        World::with_slots_of(2 * MIB).await
    }

    /// Of a write buffer of twelve slots.
    pub async fn with_slots_of(slot_bytes: u64) -> World {
        let takes_data = Rc::new(Cell::new(true));
        let taking = takes_data.clone();
        let takes_deletions = Rc::new(Cell::new(true));
        let deleting = takes_deletions.clone();
        let room = Rc::new(Cell::new(u64::MAX));
        let left = room.clone();
        let gives_data = Rc::new(Cell::new(true));
        let reading = gives_data.clone();
        let reads_refused = Rc::new(Cell::new(0));
        let refused = reads_refused.clone();
        let held = Rc::new(Cell::new(None::<Held>));
        let holding = held.clone();
        let backend = FaultyBackend::new(Rc::new(MemoryBackend::new()), move |call| {
            if call.object.contains("/s/")
                && let Some((operation, gate)) = holding.take()
            {
                if operation == call.operation {
                    return Some(Fault::Delay(Box::pin(async { drop(gate.await) })));
                }
                holding.set(Some((operation, gate)));
            }
            if call.operation == Operation::Get && call.object.contains("/s/") && !reading.get() {
                refused.set(refused.get() + 1);
                return Some(Fault::ErrorBefore);
            }
            if call.operation == Operation::Put && !taking.get() {
                return Some(Fault::ErrorBefore);
            }
            if call.operation == Operation::Delete && !deleting.get() {
                return Some(Fault::ErrorBefore);
            }
            if call.operation != Operation::Put || !call.object.contains("/s/") {
                return None;
            }
            let is_full = left.get() == 0;
            left.set(left.get().saturating_sub(1));
            is_full.then_some(Fault::NoSpace)
        });
        let mut world = World {
            directory: tempfile::tempdir().unwrap(),
            lives: 0,
            chance: Rc::default(),
            registry: Rc::default(),
            pages: Rc::default(),
            backend: Rc::new(backend),
            takes_data,
            takes_deletions,
            gives_data,
            reads_refused,
            held,
            room,
            checkpoint_every: 32,
            copies_maps: false,
            map_bytes: 256 << 20,
            slot_bytes,
            sco_bytes: MIB,
            scrub_every: Duration::from_secs(3600),
            scrub_by_itself: true,
            cache: None,
            engine: None,
            vpool: VpoolId(Uuid::from_u128(1 << 64)),
        };
        world.boot().await;
        world
    }

    async fn boot(&mut self) {
        let buffer: PathBuf = self.directory.path().join(format!("buffer-{}", self.lives));
        let parts = EngineParts {
            clock: Rc::new(SystemClock::new()),
            chance: self.chance.clone(),
            registry: self.registry.clone(),
            pages: self.pages.clone(),
            buffer: Rc::new(FileDevice::open(&buffer, 12, self.slot_bytes).unwrap()),
            cache: self.cache.clone(),
        };
        let config = EngineConfig {
            destage_bytes: 4 * MIB,
            memory_bytes: 4 * MIB,
            sco_bytes: self.sco_bytes,
            checkpoint_every: self.checkpoint_every,
            copy_map_after: if self.copies_maps { 1 } else { u64::MAX },
            scrub_every: self.scrub_every,
            map_bytes: self.map_bytes,
            scrub_by_itself: self.scrub_by_itself,
            scrub_min_bytes: MIB,
            ..EngineConfig::default()
        };
        let engine = Engine::open(config, parts).await.unwrap();
        engine.attach_backend(self.vpool, self.backend.clone());
        self.engine = Some(engine);
    }

    pub fn vpool(&self) -> VpoolId {
        self.vpool
    }

    pub fn engine(&self) -> Engine {
        self.engine.clone().unwrap()
    }

    pub async fn create(&mut self, size: u64) -> Vdisk {
        let id = VdiskId(self.chance.uuid());
        let request = CreateVdisk {
            id,
            vpool: self.vpool,
            size: ByteCount(size),
            properties: "{}".into(),
            base: None,
            on_full: STALL,
        };
        self.engine().create_vdisk(request).await.unwrap()
    }

    pub async fn clone_of(&mut self, parent: &Vdisk, snapshot: SnapshotId, size: u64) -> Vdisk {
        let id = VdiskId(self.chance.uuid());
        let base = Some((parent.id(), snapshot));
        let request = CreateVdisk {
            id,
            vpool: self.vpool,
            size: ByteCount(size),
            properties: "{}".into(),
            base,
            on_full: STALL,
        };
        self.engine().create_vdisk(request).await.unwrap()
    }

    /// The journal takes a record too late: what follows is of a new epoch.
    pub async fn begin_an_epoch(&self, disk: &Vdisk) {
        let epoch = disk.stats().epoch;
        self.backend_takes_data(false);
        disk.set_properties("too late".into()).await.unwrap_err();
        self.backend_takes_data(true);
        disk.set_properties("in time".into()).await.unwrap();
        assert!(disk.stats().epoch > epoch);
    }

    pub async fn snapshot(&mut self, disk: &Vdisk, text: &str) -> SnapshotId {
        let id = SnapshotId(self.chance.uuid());
        disk.snapshot(id, name(text)).await.unwrap();
        id
    }

    pub async fn open(&self, id: VdiskId) -> Vdisk {
        self.engine().open_vdisk(self.vpool, id, STALL).await.unwrap()
    }

    pub async fn delete(&self, disk: &Vdisk) {
        self.engine().delete_vdisk(self.vpool, disk.id()).await.unwrap();
    }

    /// The process dies: nothing is closed. vDisks that are still held outlive it, as a dead process's would not, so
    /// the new life works on a copy of the write buffer.
    pub async fn crash_and_reopen(&mut self) {
        let old = self.directory.path().join(format!("buffer-{}", self.lives));
        self.lives += 1;
        let new = self.directory.path().join(format!("buffer-{}", self.lives));
        std::fs::create_dir(&new).unwrap();
        for entry in std::fs::read_dir(&old).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), new.join(entry.file_name())).unwrap();
        }
        self.engine = None;
        self.boot().await;
    }

    pub async fn close_and_reopen(&mut self) {
        self.engine().close(Duration::from_secs(10)).await.unwrap();
        self.crash_and_reopen().await;
    }

    /// Everything but the backend goes; then it is recovered.
    pub async fn lose_local_state(&mut self) {
        self.engine().close(Duration::from_secs(10)).await.unwrap();
        self.crash_into_nothing().await;
        for found in self.engine().discover(self.vpool).await.unwrap() {
            assert_eq!(found.problem, None);
            self.engine().adopt_vdisk(self.vpool, found.id).await.unwrap();
        }
        self.engine().finish_recovery(self.vpool).await.unwrap();
    }

    /// A new host: there is the backend, and nothing else.
    pub async fn crash_into_nothing(&mut self) {
        self.engine = None;
        self.lives += 1;
        self.registry = Rc::default();
        self.pages = Rc::default();
        self.boot().await;
    }

    /// What the registry says now.
    pub async fn registry(&self) -> Vec<Entry> {
        self.registry.scan("").await.unwrap()
    }

    /// A new host whose registry was restored from an older copy: the write buffer is gone.
    pub async fn crash_into_registry(&mut self, entries: Vec<Entry>) {
        self.engine = None;
        self.lives += 1;
        self.registry = Rc::default();
        self.pages = Rc::default();
        for entry in entries {
            self.registry.commit(Transaction::new().put(entry.key, entry.value)).await.unwrap();
        }
        self.boot().await;
    }

    pub async fn remove_object(&self, name: &str) {
        self.backend.delete(&ObjectName::new(name).unwrap()).await.unwrap();
    }

    pub async fn discover(&self) -> Vec<FoundVdisk> {
        self.engine().discover(self.vpool).await.unwrap()
    }

    /// From the next start on the map is copied to the backend after so many TLogs.
    pub async fn copy_maps_every(&mut self, tlogs: u64) {
        (self.checkpoint_every, self.copies_maps) = (tlogs, true);
        self.crash_and_reopen().await;
    }

    /// From now on maps have little room, and are checkpointed after so many TLogs.
    pub async fn shrink_maps(&mut self, bytes: u64, checkpoint_every: u64) {
        (self.map_bytes, self.checkpoint_every) = (bytes, checkpoint_every);
        self.crash_and_reopen().await;
    }

    /// From now on there is a read cache.
    pub async fn cache(&mut self, parts: CacheParts) {
        self.cache = Some(parts);
        self.crash_and_reopen().await;
    }

    /// From now on SCOs are of so many bytes.
    pub async fn make_scos_of(&mut self, bytes: u64) {
        self.sco_bytes = bytes;
        self.crash_and_reopen().await;
    }

    /// From now on scrub looks every few milliseconds what there is to do.
    pub async fn scrub_often(&mut self) {
        self.scrub_every = Duration::from_millis(5);
        self.crash_and_reopen().await;
    }

    /// From the next start on scrub is left to who asks for it.
    pub fn scrub_only_when_asked(&mut self) {
        self.scrub_by_itself = false;
    }

    /// No more.
    pub async fn scrub_unasked(&mut self) {
        self.scrub_by_itself = true;
        self.crash_and_reopen().await;
    }

    /// The backend has room for so many SCOs more.
    pub fn set_room(&self, scos: u64) {
        self.room.set(scos);
    }

    /// Turns a bit over in each of these objects.
    pub async fn spoil(&self, names: &[String]) {
        for name in names {
            let name = ObjectName::new(name.as_str()).unwrap();
            let mut bytes = self.backend.get(&name).await.unwrap().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            self.backend.delete(&name).await.unwrap();
            self.backend.put(&name, vec![bytes.into()], Urgency::Normal).await.unwrap();
        }
    }

    pub fn backend_takes_data(&self, takes: bool) {
        self.takes_data.set(takes);
    }

    pub fn backend_gives_data(&self, gives: bool) {
        self.gives_data.set(gives);
    }

    /// An object that is none of ours, or is where no vDisk is.
    pub async fn put_foreign(&self, name: &str) {
        let name = ObjectName::new(name).unwrap();
        self.backend.put(&name, vec!["foreign".into()], Urgency::Normal).await.unwrap();
    }

    /// So many reads of SCOs were refused.
    pub fn reads_refused(&self) -> u64 {
        self.reads_refused.get()
    }

    /// The next read of an SCO begins only when what this returns is used or dropped.
    pub fn hold_next_read(&self) -> oneshot::Sender<()> {
        self.hold_next(Operation::Get)
    }

    /// The same of a put.
    pub fn hold_next_put(&self) -> oneshot::Sender<()> {
        self.hold_next(Operation::Put)
    }

    fn hold_next(&self, operation: Operation) -> oneshot::Sender<()> {
        let (sender, receiver) = oneshot::channel();
        self.held.set(Some((operation, receiver)));
        sender
    }

    /// The next sweep of map pages looks only when what this returns is used or dropped; until then no checkpoint is stored.
    pub fn hold_next_sweep(&self) -> oneshot::Sender<()> {
        let (sender, receiver) = oneshot::channel();
        self.pages.held.set(Some(receiver));
        sender
    }

    /// Comes back when one waits for that.
    pub async fn until_held(&self) {
        for _ in 0..100_000 {
            if is_taken(&self.held) && is_taken(&self.pages.held) {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("nothing is held");
    }

    /// The store of map pages has room for so many more, or for all again.
    pub fn limit_page_store(&self, room: Option<usize>) {
        self.pages.memory.limit(room);
    }

    pub fn stored_pages(&self) -> usize {
        self.pages.memory.all().len()
    }

    pub fn backend_takes_deletions(&self, takes: bool) {
        self.takes_deletions.set(takes);
    }

    /// Lets background work go on for so many seconds.
    pub async fn wait(&self, seconds: u64) {
        self.wait_ms(1000 * seconds).await;
    }

    /// The same in milliseconds.
    pub async fn wait_ms(&self, milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    /// Comes back when the backend is empty, or after a while.
    pub async fn settle(&self) {
        for _ in 0..200 {
            if self.objects().await.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Bytes of all objects with names that begin so.
    pub async fn bytes_below(&self, prefix: &str) -> u64 {
        let objects = self.backend.list(prefix, None, 100_000).await.unwrap();
        objects.iter().map(|object| object.length_bytes).sum()
    }

    pub async fn objects(&self) -> Vec<String> {
        let objects = self.backend.list("v/", None, 100_000).await.unwrap();
        objects.into_iter().map(|object| object.name.to_string()).collect()
    }
}
