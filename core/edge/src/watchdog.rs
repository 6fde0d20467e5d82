//! Looks for requests that do not come to an end although ovsd is there.
//!
//! A thread of its own: when the runtime is what is stuck, it still speaks. That ovsd is away is no reason to bark:
//! then requests wait, as they should.

use crate::{in_flight::Request, volume::Volume};
use ovs_units::Name;
use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};
use tokio::time::Instant;

/// Requests that a report names at most.
const REPORT_COUNT_MAX: usize = 32;

/// The directory of the kernel's FUSE connections, once fusectl is mounted there.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// The mounts that are watched.
#[derive(Debug, Clone, Default)]
pub struct Watchdog {
    watched: Arc<Mutex<HashMap<Name, Watched>>>,
}

#[derive(Debug)]
struct Watched {
    volume: Arc<Volume>,
    connection: Option<u32>,
    answered: u64,
    progress_at: Instant,
    reported_at: Option<Instant>,
}

impl Watchdog {
    /// Starts the thread. A mount that makes no progress for `limit` is reported, and aborted if `abort_stuck`.
    pub fn start(limit: Duration, abort_stuck: bool) -> io::Result<Watchdog> {
        let watchdog = Watchdog::default();
        let looking = watchdog.clone();
        thread::Builder::new().name("ovs-watchdog".to_owned()).spawn(move || {
            loop {
                thread::sleep((limit / 8).max(Duration::from_millis(100)));
                looking.look(limit, abort_stuck);
            }
        })?;
        Ok(watchdog)
    }

    /// Watches a mount.
    pub fn watch(&self, volume: Arc<Volume>, connection: Option<u32>) {
        let watched = Watched {
            answered: volume.in_flight.answered(),
            connection,
            progress_at: Instant::now(),
            reported_at: None,
            volume,
        };
        self.watched().insert(watched.volume.vpool().clone(), watched);
    }

    /// Leaves it alone.
    pub fn forget(&self, vpool: &Name) {
        self.watched().remove(vpool);
    }

    fn look(&self, limit: Duration, abort_stuck: bool) {
        for watched in self.watched().values_mut() {
            let stuck = watched.stuck(limit);
            if stuck.is_empty() || watched.reported_at.is_some_and(|at| at.elapsed() < limit) {
                continue;
            }
            watched.reported_at = Some(Instant::now());
            report(&watched.volume, &stuck);
            if let (true, Some(connection)) = (abort_stuck, watched.connection) {
                abort(connection);
            }
        }
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<Name, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// Requests that are too old, of vDisks whose server is there, in a mount that answers nothing at all.
    fn stuck(&mut self, limit: Duration) -> Vec<(Request, Duration)> {
        let answered = self.volume.in_flight.answered();
        if answered != self.answered || self.volume.in_flight.count() == 0 {
            self.answered = answered;
            self.progress_at = Instant::now();
        }
        if self.progress_at.elapsed() < limit {
            return Vec::new();
        }
        let mut old = self.volume.in_flight.older_than(limit);
        let tree = &self.volume.tree;
        old.retain(|(request, _)| tree.numbered(request.inode).is_some_and(|file| file.link.is_connected()));
        old
    }
}

fn report(volume: &Volume, stuck: &[(Request, Duration)]) {
    let (vpool, count) = (volume.vpool(), volume.in_flight.count());
    tracing::error!(%vpool, in_flight = count, stuck = stuck.len(), "ovsd is there and nothing moves");
    for (request, waited) in stuck.iter().take(REPORT_COUNT_MAX) {
        tracing::error!(%vpool, %request, waited_s = waited.as_secs(), "stuck");
    }
}

/// Ends a mount for good: everyone who waits in it gets an error. It is mounted anew afterwards.
fn abort(connection: u32) {
    let dir = Path::new(CONNECTIONS);
    let switch = dir.join(connection.to_string()).join("abort");
    if !switch.exists() {
        // systemd mounts it; elsewhere nobody may have.
        let _ = rustix::mount::mount("fusectl", dir, "fusectl", rustix::mount::MountFlags::empty(), None);
    }
    match fs::write(&switch, "1") {
        Ok(()) => tracing::error!(connection, "aborted, as --abort-stuck asks"),
        Err(error) => tracing::error!(connection, %error, "could not be aborted"),
    }
}
