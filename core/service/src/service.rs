//! One running ovsd: put together, served, stopped.
//!
//! ```text
//!  start: TCP ports bound, certificates read ─▶ registry (set aside and rebuilt if damaged) ─▶ write buffer replayed
//!         ─▶ Volumes ─▶ NBD doors ─▶ RPC doors ─▶ READY=1
//!  stop:  RPC doors ─▶ NBD doors (what is in flight completes) ─▶ engine: buffered data leaves, as far as patience goes
//! ```

use crate::{
    config::{CacheConfig, CacheSsdConfig, Config},
    core::{Core, Identity},
    engine_thread::EngineHandle,
    metrics,
    notify::ServiceManager,
    process::make_durable_folder,
    rpc::{self, Answer, Call, Dispatch, Entrance},
    sockets::{Access, bind, group_id},
    tasks::Tasks,
    tcp::{NbdDoor, SecuredStream, bind_rpc},
    volumes::{Settings, Volumes, VolumesParts},
};
use anyhow::Context;
use futures_util::future::{BoxFuture, join_all};
use ovs_api::{Paths, Problem};
use ovs_cluster::{OpenFailure, RocksPages, RocksRegistry, RocksStore};
use ovs_nbd::{Server, ServerOptions};
use ovs_volume::{
    CacheDevice, CacheParts, Clock, Engine, EngineConfig, EngineParts, FileCache, FileDevice, SystemChance,
    SystemClock,
};
use std::{fs, future::Future, path::Path, rc::Rc, sync::Arc, thread, time::Duration};
use tokio_util::sync::CancellationToken;

/// The engine thread answers a knock within this time, or the watchdog is not fed.
const KNOCK_PATIENCE: Duration = Duration::from_secs(5);

/// A running ovsd.
pub struct Service {
    volumes: EngineHandle<Volumes>,
    engine_thread: thread::JoinHandle<()>,
    core: Arc<Core>,
    entrances: Vec<Entrance>,
    nbd_door: Option<NbdDoor>,
    paths: Paths,
    patience: Duration,
}

impl Service {
    /// Brings everything up; when this returns, the NBD doors are open.
    pub async fn start(config: Config, paths: Paths) -> anyhow::Result<Service> {
        for folder in [paths.state_dir(), paths.run_dir(), paths.nbd_dir()] {
            make_durable_folder(&folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let tasks = Arc::new(Tasks::default());
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let patience = config.stop.patience;
        let rpc_group = group_id(&config.rpc.group);
        let mut entrances = bind_rpc(&config).await?;
        let (nbd_door, secured) = NbdDoor::bind(&config, &nbd_options(&config)).await?.unzip();
        let nbd_authority = nbd_door.as_ref().and_then(|door| door.authority(&host_name));
        let (thread_paths, thread_tasks, thread_host) = (paths.clone(), tasks.clone(), host_name.clone());
        let nbd = NbdOverTcp { authority: nbd_authority, secured };
        let runtime = tokio::runtime::Handle::current();
        let build = move || bring_up(config, thread_paths, thread_host, thread_tasks, nbd, runtime);
        let (volumes, engine_thread) = EngineHandle::start(build).await?;
        let told = volumes
            .run(|volumes| async move { (volumes.host(), volumes.events.clone(), volumes.clock.wall_ms()) });
        let (host, events, started_ms) = told.await?;
        let identity = Identity { host, host_name, started_ms };
        let core = Arc::new(Core::new(volumes.clone(), events, tasks, identity));
        let listener = bind(&paths.socket(), Access { owner: None, group: rpc_group, mode: 0o660 })?;
        entrances.push(Entrance::Unix(listener));
        Ok(Service { volumes, engine_thread, core, entrances, nbd_door, paths, patience })
    }

    /// Serves until `stop` comes back, then stops gracefully.
    pub async fn serve(self, manager: ServiceManager, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        manager.tell("READY=1\nSTATUS=serving");
        tracing::info!(socket = %self.paths.socket().display(), "ovsd serves");
        let feeding = manager.watchdog_period().map(|period| {
            let (volumes, manager) = (self.volumes.clone(), ServiceManager::from_environment());
            tokio::spawn(feed_watchdog(volumes, manager, period))
        });
        let stopping = CancellationToken::new();
        let nbd_doors = self.nbd_door.map(|door| door.open(&stopping)).unwrap_or_default();
        let dispatch = Arc::new(Counted(self.core));
        let serving = self
            .entrances
            .into_iter()
            .map(|entrance| rpc::serve(entrance, dispatch.clone(), stopping.cancelled()));
        tokio::join!(join_all(serving), async {
            stop.await;
            stopping.cancel();
        });
        // What is on its way through TLS sees the stop at once.
        join_all(nbd_doors).await;
        drop(dispatch);
        tracing::info!("ovsd stops");
        manager.tell("STOPPING=1\nSTATUS=sending out what is buffered");
        let patience = self.patience;
        let closed = self.volumes.run(move |volumes| async move { volumes.stop(patience).await }).await;
        if let Some(feeding) = feeding {
            feeding.abort();
            let _ = feeding.await;
        }
        let _ = fs::remove_file(self.paths.socket());
        drop(self.volumes);
        // The thread's runtime waits for its blocking work; nothing of ours is left to lose after the engine is closed.
        let ended = tokio::task::spawn_blocking(move || self.engine_thread.join());
        let _ = tokio::time::timeout(Duration::from_secs(5), ended).await;
        closed?
            .context("closing the volumes (what is in the write buffer is found there at the next start)")?;
        tracing::info!("ovsd has stopped");
        Ok(())
    }
}

/// What the engine thread needs to know of NBD over TCP.
struct NbdOverTcp {
    authority: Option<String>,
    secured: Option<SecuredStream>,
}

fn nbd_options(config: &Config) -> ServerOptions {
    ServerOptions { connections_max: config.nbd.connections_max, ..ServerOptions::default() }
}

/// On the engine thread: everything that lives there.
async fn bring_up(
    config: Config,
    paths: Paths,
    host_name: String,
    tasks: Arc<Tasks>,
    nbd: NbdOverTcp,
    runtime: tokio::runtime::Handle,
) -> anyhow::Result<Rc<Volumes>> {
    let (registry, pages) = open_registry(&paths.state_dir().join("registry"))?;
    let buffer_dir = config.buffer.path.clone().unwrap_or_else(|| paths.state_dir().join("buffer"));
    let slot_count = usize::try_from(config.buffer.size / config.buffer.segment_size)?;
    let buffer = FileDevice::open(&buffer_dir, slot_count, config.buffer.segment_size)
        .with_context(|| format!("opening the write buffer in {}", buffer_dir.display()))?;
    let buffer = if config.io_uring { buffer.with_ring() } else { buffer };
    let clock: Rc<dyn Clock> = Rc::new(SystemClock::new());
    let chance = Rc::new(SystemChance);
    let registry = Rc::new(registry);
    let engine_config = EngineConfig {
        memory_bytes: config.buffer.memory,
        map_bytes: config.memory.maps,
        sco_bytes: config.destage.sco_size,
        destage_bytes: config.destage.size,
        destage_after: config.destage.after,
        scrub_by_itself: config.scrub.automatic,
        scrub_every: config.scrub.every,
        scrub_min_bytes: config.scrub.min_size,
        ..EngineConfig::default()
    };
    let parts = EngineParts {
        clock: clock.clone(),
        chance: chance.clone(),
        registry: registry.clone(),
        pages: Rc::new(pages),
        buffer: Rc::new(buffer),
        cache: config.cache.as_ref().map(open_cache),
    };
    let engine = Engine::open(engine_config, parts).await.context("replaying the write buffer")?;
    let options = nbd_options(&config);
    let settings = Settings {
        paths,
        host_name,
        makes_default_vpool: config.default_vpool.create,
        default_backend_path: config.default_vpool.backend_path,
        trash_retention: config.default_vpool.trash_retention,
        stall_timeout: config.default_vpool.stall_timeout,
        socket_group: config.nbd.group,
        socket_mode: config.nbd.vdisk_socket_mode,
        nbd_authority: nbd.authority,
        has_cache_ssd: config.cache.is_some_and(|cache| cache.ssd.is_some()),
        repair_grace: config.repair.grace,
        survey_every: config.repair.survey_every,
        verify_every: config.repair.verify_every,
        io_uring: config.io_uring,
    };
    let parts = VolumesParts { engine, registry, clock, chance, settings, tasks, runtime };
    let volumes = Volumes::start(parts, Server::new(options)).await?;
    volumes.open_doors().await?;
    if let Some(secured) = nbd.secured {
        volumes.sockets.open_tcp(&volumes, secured);
    }
    volumes.begin_background();
    Ok(volumes)
}

/// The read cache: without its SSD when that cannot be used, which is no reason not to serve.
fn open_cache(config: &CacheConfig) -> CacheParts {
    let open = |ssd: &CacheSsdConfig| match FileCache::open(&ssd.path, ssd.size) {
        Ok(file) => Some(Rc::new(file) as Rc<dyn CacheDevice>),
        Err(error) => {
            tracing::warn!(%error, path = %ssd.path.display(), "the SSD of the read cache cannot be used; memory alone is");
            None
        }
    };
    CacheParts { memory_bytes: config.memory, device: config.ssd.as_ref().and_then(open) }
}

/// The registry; a damaged one is set aside as evidence, and rebuilt from the backends.
fn open_registry(path: &Path) -> anyhow::Result<(RocksRegistry, RocksPages)> {
    match RocksStore::open(path) {
        Err(failure @ OpenFailure::Damaged { .. }) => {
            let aside =
                RocksStore::set_aside(path).with_context(|| format!("{failure}; setting it aside"))?;
            tracing::error!(%failure, aside = %aside.display(), "the registry is damaged: it is set aside and rebuilt");
            RocksStore::open(path).context("making a new registry")
        }
        opened => opened.context("opening the registry"),
    }
}

/// Feeds the watchdog while the engine thread answers: a thread that hangs is a service that hangs.
async fn feed_watchdog(volumes: EngineHandle<Volumes>, manager: ServiceManager, period: Duration) {
    let mut ticks = tokio::time::interval(period);
    loop {
        ticks.tick().await;
        let knock = volumes.run(|_| async {});
        match tokio::time::timeout(KNOCK_PATIENCE, knock).await {
            Ok(Ok(())) => manager.tell("WATCHDOG=1"),
            Ok(Err(_)) => return,
            Err(_) => tracing::error!("the engine thread does not answer; the watchdog is not fed"),
        }
    }
}

/// Counts the answers of the RPC.
struct Counted(Arc<Core>);

impl Dispatch for Counted {
    fn dispatch(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Answer, Problem>> {
        let operation = call.operation.id;
        let answer = self.0.clone().dispatch(call);
        Box::pin(async move {
            let answer = answer.await;
            let outcome = answer.as_ref().map_or_else(|problem| problem.kind().as_str(), |_| "ok");
            metrics::count_rpc(operation, outcome);
            answer
        })
    }
}
