//! The program `ovsd-docker`: options, log, socket, tasks. See the library for what it does.

use anyhow::Context;
use clap::{Parser, ValueEnum};
use ovs_api::{Client, Paths};
use ovs_docker::{
    background,
    driver::{Driver, Settings},
    host::{DeviceChoice, linux::LinuxHost},
    options::parse_volume_size,
    record::RecordFiles,
    rpc::Rpc,
    server, socket,
};
use ovs_units::Name;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt, unix::net::UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Docker volumes on ovs: the plugin behind `docker run --volume-driver=ovs`.
#[derive(Debug, Parser)]
#[command(name = "ovsd-docker", version)]
struct Args {
    /// Put configuration, state, sockets and mounts below this directory.
    #[arg(long, env = "OVS_ROOT", value_name = "DIR")]
    root: Option<PathBuf>,

    /// The socket that dockerd looks for; its name without `.sock` is the driver's name. Ignored when systemd hands over
    /// a socket.
    #[arg(long, value_name = "PATH", default_value = "/run/docker/plugins/ovs.sock")]
    socket: PathBuf,

    /// Where the plugin keeps its state and its mount points [default: var/lib/ovs-docker below the root].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// The vPool of volumes created without the option vpool.
    #[arg(long, value_name = "NAME", default_value = "default")]
    vpool: Name,

    /// The size of volumes created without the option size.
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = parse_volume_size)]
    default_size: u64,

    /// What carries a volume: an NBD device of the kernel, a loop device over the vDisk's file, or the first where this
    /// kernel has it. A volume in use keeps what it has until its last unmount.
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,

    /// How often to look after the volumes, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86400))]
    reconcile_interval: u64,

    /// The socket of dockerd, asked which containers run; may be given several times.
    #[arg(long, value_name = "PATH", default_value = "/run/docker.sock")]
    docker_socket: Vec<PathBuf>,

    /// How log lines look. What is logged: OVS_LOG (error, warn, info, debug).
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

fn main() -> anyhow::Result<()> {
    // SAFETY: the first thing that the process does: nothing has been opened yet.
    let handed_over = unsafe { socket::from_systemd() };
    let args = Args::parse();
    // Containers with user namespaces pass through the state directory as other users.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    start_log(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(run(args, handed_over));
    // Threads that wait in the kernel for ovsd-edge are not waited for: what they do is safe to leave.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

fn start_log(args: &Args) -> anyhow::Result<()> {
    let filter = std::env::var("OVS_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(filter).context("OVS_LOG")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.with_ansi(false).init(),
    }
    Ok(())
}

async fn run(args: Args, handed_over: Option<UnixListener>) -> anyhow::Result<()> {
    let paths = Paths::new(args.root.as_deref());
    let state_dir = args.state_dir.unwrap_or_else(|| paths.root().join("var/lib/ovs-docker"));
    if !state_dir.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&state_dir)
            .context("the state directory")?;
    }
    // As the kernel shows it in mount tables: without symbolic links.
    let state_dir = fs::canonicalize(&state_dir).context("the state directory")?;
    let mount_root = fs::canonicalize(paths.root()).context("the root directory")?.join("mnt/ovs");
    let _only_one = lock_state(&state_dir).await?;
    let boot_id =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").context("the boot id")?.trim().to_owned();
    let records = RecordFiles::new(state_dir.join("volumes"), &boot_id).context("the state directory")?;
    let settings =
        Settings { mounts: state_dir.join("mnt"), vpool: args.vpool, size_bytes: args.default_size, boot_id };
    let rpc = Rpc::new(&paths.socket());
    let host = LinuxHost::new(mount_root, &paths.edge_socket(), args.device);
    let driver = Driver::new(rpc, host, records, settings).context("the volumes' records")?;
    let driver = Arc::new(driver);

    let listener = match handed_over {
        Some(listener) => listener,
        None => socket::listen(&args.socket).with_context(|| args.socket.display().to_string())?,
    };
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?.as_pathname().unwrap_or(&args.socket).to_owned();
    let listener = tokio::net::UnixListener::from_std(listener)?;
    tracing::info!(socket = %address.display(), root = %paths.root().display(), "serving");

    let driver_name = address.file_stem().and_then(|name| name.to_str()).unwrap_or("ovs").to_owned();
    let every = Duration::from_secs(args.reconcile_interval);
    tokio::spawn(background::reconcile(driver.clone(), args.docker_socket, driver_name, every));
    tokio::spawn(background::follow_events(driver.clone(), Client::new(paths.socket())));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    server::serve(listener, driver, stop).await.context("serving")
}

/// One plugin per state directory. One that was just killed takes a moment to go.
async fn lock_state(state_dir: &Path) -> anyhow::Result<OwnedFd> {
    let path = state_dir.join("lock");
    let file =
        rustix::fs::open(&path, OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))
            .with_context(|| path.display().to_string())?;
    for _ in 0..100 {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(file);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("another ovsd-docker uses {}", state_dir.display())
}
