//! The whole of `Volumes` over a real engine: directories in a temporary folder, the registry in memory, time that
//! stands still until everything waits.

mod attachments;
mod backends;
mod cache;
mod composites;
mod crash;
mod drives;
mod layouts;
mod nested;
mod opening;
mod presets;
mod recovery;
mod rotation;
mod vdisks;
mod verification;
mod vpools;

use super::*;
use ovs_api::{CreateSnapshot, CreateVdisk, Labels, PatchVdisk, Problem, ProblemKind, Source, VdiskRef};
use ovs_nbd::{Server, ServerOptions};
use ovs_units::{ByteCount, ByteOffset, ByteRange};
use ovs_volume::{
    CacheParts, EngineConfig, EngineParts, Entry, FileDevice, MemoryPages, MemoryRegistry, Revision,
    SystemChance, Transaction, VolumeError,
};
use std::{
    cell::{Cell, RefCell},
    path::Path,
};
use tokio::sync::{Notify, oneshot};

type LocalBoxFuture<'a, T> = futures_util::future::LocalBoxFuture<'a, T>;

const BUFFER_SLOTS: usize = 8;

/// What survives a crash of the process.
pub(super) struct World {
    dir: tempfile::TempDir,
    registry: Rc<MemoryRegistry>,
    pages: Rc<MemoryPages>,
    wall_ms: Rc<Cell<u64>>,
    gates: Rc<Gates>,
    repair_grace: Cell<Option<Duration>>,
    verify_every: Cell<Option<Duration>>,
    /// A key that the registry does not answer for.
    refused: Rc<RefCell<Option<String>>>,
    host_name: Cell<&'static str>,
}

impl World {
    pub(super) fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let wall_ms = Rc::new(Cell::new(1_800_000_000_000));
        World {
            dir,
            registry: Rc::default(),
            pages: Rc::default(),
            wall_ms,
            gates: Rc::default(),
            repair_grace: Cell::new(None),
            verify_every: Cell::new(None),
            refused: Rc::default(),
            host_name: Cell::new("here"),
        }
    }

    pub(super) fn paths(&self) -> Paths {
        Paths::new(Some(self.dir.path()))
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Time passes for those who look at the calendar.
    pub(super) fn later(&self, by: Duration) {
        self.wall_ms.set(self.wall_ms.get() + by.as_millis() as u64);
    }

    /// One life of ovsd; it ends as with kill -9.
    pub(super) fn life<T>(&self, body: impl AsyncFnOnce(Rc<Volumes>) -> T) -> T {
        self.mortal_life(u64::MAX, Death::Before, body).0
    }

    /// One life whose registry stops answering at its n-th commit; tells how many commits there were.
    pub(super) fn mortal_life<T>(
        &self,
        commits: u64,
        death: Death,
        body: impl AsyncFnOnce(Rc<Volumes>) -> T,
    ) -> (T, u64) {
        let mortal = self.mortal(u64::MAX, death);
        let done = run(async {
            let volumes = self.start(mortal.clone()).await;
            mortal.commits.set(0);
            mortal.commits_left.set(commits);
            body(volumes).await
        });
        (done, mortal.commits.get())
    }

    /// As [`World::mortal_life`] with what ovsd does by itself: commits count from the beginning. If there is a vPool
    /// that works, somebody fills the write buffer several times over.
    pub(super) fn short_life(&self, commits: u64, death: Death) -> u64 {
        let mortal = self.mortal(commits, death);
        run(async {
            let living = async {
                let volumes = self.start(mortal.clone()).await;
                volumes.begin_background();
                tokio::time::sleep(Duration::from_secs(30)).await;
                if volumes.create_vdisk(new_vdisk("filler", 1 << 20), no_terms()).await.is_ok() {
                    for _ in 0..3 * BUFFER_SLOTS {
                        write(&volumes, "filler", 0, 9, 1 << 20).await;
                    }
                    let purge = ovs_api::DeleteVdiskQuery { purge: true };
                    volumes.delete_vdisk(vdisk_ref("filler"), purge, no_terms()).await.unwrap();
                }
            };
            // The clock of a test runs ahead of its disk: no timeout says that somebody is dead.
            tokio::select! {
                () = living => {}
                () = mortal.died.notified() => {}
            }
        });
        mortal.commits.get()
    }

    fn mortal(&self, commits: u64, death: Death) -> Rc<MortalRegistry> {
        Rc::new(MortalRegistry {
            registry: self.registry.clone(),
            commits_left: Cell::new(commits),
            commits: Cell::new(0),
            death,
            died: Notify::new(),
            gates: self.gates.clone(),
            refused: self.refused.clone(),
        })
    }

    async fn start(&self, registry: Rc<MortalRegistry>) -> Rc<Volumes> {
        let paths = self.paths();
        std::fs::create_dir_all(paths.state_dir()).unwrap();
        std::fs::create_dir_all(paths.nbd_dir()).unwrap();
        let clock = Rc::new(TestClock { start: tokio::time::Instant::now(), wall_ms: self.wall_ms.clone() });
        let buffer = FileDevice::open(&paths.state_dir().join("buffer"), BUFFER_SLOTS, 1 << 20).unwrap();
        let parts = EngineParts {
            clock: clock.clone(),
            chance: Rc::new(SystemChance),
            registry: registry.clone(),
            pages: self.pages.clone(),
            buffer: Rc::new(buffer),
            cache: Some(CacheParts { memory_bytes: 1 << 20, device: None }),
        };
        let engine = Engine::open(EngineConfig::default(), parts).await.unwrap();
        let settings = Settings {
            paths,
            host_name: self.host_name.get().into(),
            makes_default_vpool: true,
            default_backend_path: None,
            trash_retention: Duration::from_secs(3600),
            stall_timeout: None,
            socket_group: "no such group".into(),
            socket_mode: 0o660,
            nbd_authority: None,
            has_cache_ssd: false,
            repair_grace: self.repair_grace.get(),
            survey_every: Duration::from_secs(3600),
            verify_every: self.verify_every.get(),
            io_uring: false,
        };
        let tasks = Arc::new(Tasks::default());
        let runtime = tokio::runtime::Handle::current();
        let chance = Rc::new(SystemChance);
        let parts = VolumesParts { engine, registry, clock, chance, settings, tasks, runtime };
        Volumes::start(parts, Server::new(ServerOptions::default())).await.unwrap()
    }

    /// Somebody changes what is under a key, between two lives.
    pub(super) fn change_registry(&self, key: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let entry = self.registry.get(key).await.unwrap().unwrap();
            let changed = change(entry.value);
            self.registry.commit(Transaction::new().put(key, changed)).await.unwrap().unwrap();
        });
    }

    /// The registry is gone, as after a lost RocksDB.
    pub(super) fn lose_registry(&mut self) {
        self.registry = Rc::default();
        self.pages = Rc::default();
    }
}

fn run<T>(life: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, life)
}

/// When a registry dies: before or after its last commit takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    Before,
    After,
}

struct MortalRegistry {
    registry: Rc<MemoryRegistry>,
    commits_left: Cell<u64>,
    commits: Cell<u64>,
    death: Death,
    died: Notify,
    gates: Rc<Gates>,
    refused: Rc<RefCell<Option<String>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Get,
    Commit,
}

/// Calls of the registry that wait for somebody.
#[derive(Default)]
pub(super) struct Gates(RefCell<Vec<(Call, String, oneshot::Receiver<()>)>>);

impl Gates {
    /// The next such call of this key begins only when what this returns is used or dropped.
    pub(super) fn hold(&self, call: Call, key: &str) -> oneshot::Sender<()> {
        let (sender, receiver) = oneshot::channel();
        self.0.borrow_mut().push((call, key.to_owned(), receiver));
        sender
    }

    /// Comes back when all wait that are to be held.
    pub(super) async fn until_held(&self) {
        while !self.0.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    async fn pass(&self, call: Call, keys: &[&str]) {
        let is_held = |(held, key, _): &(Call, String, _)| *held == call && keys.contains(&key.as_str());
        let held = self.0.borrow().iter().position(is_held);
        if let Some(held) = held {
            let (.., gate) = self.0.borrow_mut().remove(held);
            gate.await.ok();
        }
    }
}

impl Registry for MortalRegistry {
    fn get(&self, key: &str) -> LocalBoxFuture<'_, Result<Option<Entry>, VolumeError>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.gates.pass(Call::Get, &[&key]).await;
            if self.refused.borrow().as_ref() == Some(&key) {
                return Err(VolumeError::Retry("the registry does not answer".into()));
            }
            self.registry.get(&key).await
        })
    }

    fn scan(&self, prefix: &str) -> LocalBoxFuture<'_, Result<Vec<Entry>, VolumeError>> {
        self.registry.scan(prefix)
    }

    fn commit(&self, transaction: Transaction) -> LocalBoxFuture<'_, Result<Option<Revision>, VolumeError>> {
        Box::pin(async move {
            let keys: Vec<&str> = transaction.puts.iter().map(|(key, _)| key.as_str()).collect();
            self.gates.pass(Call::Commit, &keys).await;
            self.commits.set(self.commits.get() + 1);
            let left = self.commits_left.get();
            self.commits_left.set(left.saturating_sub(1));
            if left == 0 || (left == 1 && self.death == Death::Before) {
                // As a process that is dead: it never hears the answer.
                self.commits_left.set(0);
                self.died.notify_one();
                return std::future::pending().await;
            }
            let committed = self.registry.commit(transaction).await;
            if left == 1 {
                self.died.notify_one();
                return std::future::pending().await;
            }
            committed
        })
    }
}

struct TestClock {
    start: tokio::time::Instant,
    wall_ms: Rc<Cell<u64>>,
}

impl Clock for TestClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        self.wall_ms.get() + self.start.elapsed().as_millis() as u64
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn vdisk_ref(text: &str) -> VdiskRef {
    format!("default:{text}").parse().unwrap()
}

pub(super) fn new_vdisk(text: &str, size_bytes: u64) -> CreateVdisk {
    CreateVdisk { size_bytes: Some(size_bytes), ..CreateVdisk::new(name("default"), name(text)) }
}

pub(super) fn clone_of(source: &str, text: &str) -> CreateVdisk {
    let source = Source { vdisk: vdisk_ref(source), snapshot: None };
    CreateVdisk { source: Some(source), ..CreateVdisk::new(name("default"), name(text)) }
}

pub(super) fn new_snapshot(text: &str) -> CreateSnapshot {
    CreateSnapshot { name: name(text), description: String::new(), labels: Labels::default() }
}

pub(super) fn no_terms() -> Terms {
    Terms::default()
}

pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, Problem>, kind: ProblemKind) -> Problem {
    let problem = result.expect_err("it was not refused");
    assert_eq!(problem.kind(), kind, "{problem:?}");
    problem
}

pub(super) fn range(start: u64, length: u64) -> ByteRange {
    ByteRange::new(ByteOffset(start), ByteCount(length)).unwrap()
}

pub(super) async fn write(volumes: &Volumes, vdisk: &str, at: u64, byte: u8, length: usize) {
    let id = volumes.resolve(&vdisk_ref(vdisk)).await.unwrap();
    let vdisk = volumes.ensure_open(id).await.unwrap();
    vdisk.write(ByteOffset(at), vec![byte; length].into(), true).await.unwrap();
}

pub(super) async fn byte_at(volumes: &Volumes, vdisk: &str, at: u64) -> u8 {
    let id = volumes.resolve(&vdisk_ref(vdisk)).await.unwrap();
    let vdisk = volumes.ensure_open(id).await.unwrap();
    vdisk.read(range(at, 1)).await.unwrap()[0]
}

pub(super) fn patch() -> PatchVdisk {
    PatchVdisk::default()
}
