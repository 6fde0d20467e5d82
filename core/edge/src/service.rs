//! The daemon: what is done once, in order.

use crate::{
    device::{self, Devices},
    door, log, mount_table,
    options::Options,
    process,
    rpc::Rpc,
    sd_notify::SystemdNotifier,
    watch::Watcher,
    watchdog::Watchdog,
};
use anyhow::{Context, bail};
use ovs_api::Paths;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    thread::available_parallelism,
};
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
};

/// Threads that requests are worked on in, at most; they never block.
const WORKER_COUNT_MAX: usize = 4;

/// Runs ovsd-edge until SIGTERM or SIGINT. Call it before there is any thread.
pub fn run(options: Options) -> anyhow::Result<()> {
    let shortcomings = process::harden();
    log::start(options.log_format).context("starting the log")?;
    for shortcoming in shortcomings {
        tracing::warn!("going on without {shortcoming}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_count())
        .thread_name("ovs-edge")
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let mut edge = Edge::new(&options)?;
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        select! {
            () = edge.watcher.run() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        edge.watcher.stop().await;
        Ok(())
    })
}

/// Half of the processors: FUSE's threads and the programs that wait for an answer have work too, and a thread more than there is room for
/// costs a change of threads for each request (12.3 µs of CPU for a read and not 15.1, on two processors).
fn worker_count() -> usize {
    available_parallelism().map_or(1, |count| count.get() / 2).clamp(1, WORKER_COUNT_MAX)
}

/// Everything of one ovsd-edge.
#[derive(Debug)]
pub struct Edge {
    watcher: Watcher,
    /// Locked for as long as this process lives: a second one would unmount the first one's mounts as stale.
    _lock: File,
}

impl Edge {
    /// Takes the lock and removes what a dead predecessor left mounted. Call inside a tokio runtime.
    pub fn new(options: &Options) -> anyhow::Result<Edge> {
        let paths = Paths::new(Some(&absolute(options.root.as_deref())?));
        let lock = lock(&paths)?;
        remove_stale_mounts(&paths.mount_root())?;
        let socket = paths.edge_socket();
        let rpc = Arc::new(Rpc::new(paths, options.io_timeout, host_name()));
        let devices = Arc::new(Devices::new(Arc::clone(&rpc)));
        let listener = door::listen(&socket).with_context(|| socket.display().to_string())?;
        tokio::spawn(door::serve(listener, Arc::clone(&devices)));
        if let Some(reason) = device::unavailable() {
            tracing::info!("no kernel devices: {reason}");
        }
        let only = (!options.vpool.is_empty()).then(|| options.vpool.clone());
        let watchdog = Watchdog::start(options.stuck_after, options.abort_stuck)?;
        let watcher = Watcher::new(rpc, devices, only, watchdog, SystemdNotifier::from_environment());
        Ok(Edge { watcher, _lock: lock })
    }

    /// Mounts, and follows ovsd for ever.
    pub async fn serve(&mut self) {
        self.watcher.run().await;
    }

    /// Unmounts.
    pub async fn stop(self) {
        self.watcher.stop().await;
    }
}

/// The kernel lists mounts by their absolute path without symbolic links, so that is what we go by.
fn absolute(root: Option<&Path>) -> anyhow::Result<PathBuf> {
    let root = root.unwrap_or(Path::new("/"));
    fs::create_dir_all(root)
        .and_then(|()| root.canonicalize())
        .with_context(|| format!("root directory {}", root.display()))
}

fn lock(paths: &Paths) -> anyhow::Result<File> {
    let path = paths.run_dir().join("edge.lock");
    let open = || {
        fs::create_dir_all(paths.run_dir())?;
        File::create(&path)
    };
    let file = open().with_context(|| format!("lock file {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another ovsd-edge has {}", path.display());
    }
    Ok(file)
}

fn remove_stale_mounts(mount_root: &Path) -> anyhow::Result<()> {
    for stale in mount_table::ours_below(mount_root).context("reading /proc/self/mountinfo")? {
        tracing::warn!(at = %stale.mount_point.display(), "removing a mount that a predecessor left");
        mount_table::detach(&stale.mount_point)
            .with_context(|| format!("unmounting {}", stale.mount_point.display()))?;
    }
    Ok(())
}

/// Without asking any name service.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| c.is_ascii_graphic()).take(255).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}
