//! The `ovsd` program: arguments, logs, signals.

use anyhow::Context;
use clap::{Parser, ValueEnum};
use ovs_api::Paths;
use ovs_service::{config::Config, engine_thread, notify::ServiceManager, process, service::Service};
use std::{path::PathBuf, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Serves this host's vDisks.
#[derive(Debug, Parser)]
#[command(name = "ovsd", version)]
struct Arguments {
    /// Put configuration, state and sockets below this directory instead of /.
    #[arg(long, env = "OVS_ROOT", value_name = "DIR")]
    root: Option<PathBuf>,
    /// Read this configuration file instead of etc/ovs/ovsd.yaml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON document a line.
    Json,
}

fn main() -> ExitCode {
    match ovsd(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ovsd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ovsd(arguments: Arguments) -> anyhow::Result<()> {
    process::bound_arenas();
    // Per thread and inherited: before there is any other thread.
    let io_flusher = process::become_io_flusher();
    let paths = Paths::new(arguments.root.as_deref());
    let config_path = arguments.config.clone().unwrap_or_else(|| paths.config_file());
    let config = Config::load(&config_path, arguments.config.is_some())?;
    start_logging(arguments.log_format, &config.log.filter)?;
    log_refusal("PR_SET_IO_FLUSHER: memory may be short when guests write back", io_flusher);
    log_refusal("oom_score_adj: the OOM killer may choose ovsd", process::avoid_oom_killer());
    log_refusal("the limit of open files stays", process::raise_file_limit().map(drop));
    if config.memory.lock {
        log_refusal("mlockall: memory of ovsd may be paged out", process::lock_memory());
    }
    abort_when_the_engine_breaks();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("ovsd")
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let served = runtime.block_on(run(config, paths));
    // What still runs there has nothing to lose: the volumes are closed.
    runtime.shutdown_background();
    served
}

async fn run(config: Config, paths: Paths) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let service = Service::start(config, paths).await?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
    };
    service.serve(ServiceManager::from_environment(), stop).await
}

fn start_logging(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(filter).with_context(|| format!("log.filter: {filter:?} is not a filter"))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.with_ansi(false).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}

fn log_refusal(what: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what}");
    }
}

/// A panic on the engine thread means that an invariant of ours is broken: nothing more is acknowledged from there. What
/// was acknowledged is in the kernel's hands and is replayed at the next start.
fn abort_when_the_engine_breaks() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        if std::thread::current().name() == Some(engine_thread::THREAD_NAME) {
            tracing::error!(%panic, "the engine thread broke: ovsd ends at once");
            std::process::abort();
        }
    }));
}
