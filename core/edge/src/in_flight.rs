//! Every request that the kernel waits for: how many there may be, and which ones they are when something sticks.
//!
//! ```text
//!  FUSE thread ── admit: waits here at the bound (backpressure) ──▶ task ──▶ reply ──▶ Admitted dropped
//! ```
//!
//! The bound is on payload, for all vDisks of all mounts together: a vDisk that stalls (its write buffer is full) holds
//! a share of it and must not hold it all, so the bound is several times what one loop device or VM has in flight.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Payload of reads and writes in flight at most: 512 MiB, touched only while it is needed.
const PAYLOAD_BYTES_MAX: usize = 512 << 20;

/// The bound is counted in units, and a request without payload counts as one, so that there are at most 131,072.
const UNIT_BYTES: usize = 4096;

/// What a request wants, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// `read`, `write`, `fsync` …
    pub what: &'static str,
    /// The file or directory.
    pub inode: u64,
    /// Where, if it says.
    pub offset: u64,
    /// How much, if it says.
    pub length: u64,
    /// Who asks; 0 for the kernel's own writeback.
    pub pid: u32,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { what, inode, offset, length, pid } = self;
        write!(f, "{what} of inode {inode:#x} at {offset}, {length} bytes, for process {pid}")
    }
}

/// The room that the requests of all mounts share.
#[derive(Debug, Clone)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Room(Arc::new(Semaphore::new(PAYLOAD_BYTES_MAX / UNIT_BYTES)))
    }
}

/// The requests in flight of one mount.
#[derive(Debug)]
pub struct InFlight {
    requests: Mutex<HashMap<u64, (Request, Instant)>>,
    numbers: AtomicU64,
    answered: AtomicU64,
    room: Room,
}

/// A request's place; given back when dropped, after the reply.
#[derive(Debug)]
pub struct Admitted {
    registry: Arc<InFlight>,
    number: u64,
    _room: Option<OwnedSemaphorePermit>,
}

impl InFlight {
    /// Nothing in flight.
    pub fn new(room: Room) -> Arc<InFlight> {
        Arc::new(InFlight {
            requests: Mutex::default(),
            numbers: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            room,
        })
    }

    /// Lets a request in, waiting for room if need be. For FUSE threads only: it blocks.
    pub fn admit(self: &Arc<Self>, runtime: &Handle, request: Request, payload_bytes: usize) -> Admitted {
        let units = units(payload_bytes);
        // Never closed, so an error can only mean that there is no room now.
        let room = || Arc::clone(&self.room.0);
        let room = room()
            .try_acquire_many_owned(units)
            .ok()
            .or_else(|| runtime.block_on(room().acquire_many_owned(units)).ok());
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.requests().insert(number, (request, Instant::now()));
        Admitted { registry: Arc::clone(self), number, _room: room }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.requests().len()
    }

    /// How many were answered so far: when this stands still, so does everything.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Those that are older than `age`, the oldest first.
    pub fn older_than(&self, age: Duration) -> Vec<(Request, Duration)> {
        let now = Instant::now();
        let mut old: Vec<(Request, Duration)> = self
            .requests()
            .values()
            .map(|(request, since)| (*request, now.duration_since(*since)))
            .filter(|(_, waited)| *waited >= age)
            .collect();
        old.sort_by_key(|(_, waited)| std::cmp::Reverse(*waited));
        old
    }

    fn requests(&self) -> MutexGuard<'_, HashMap<u64, (Request, Instant)>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.registry.requests().remove(&self.number);
        self.registry.answered.fetch_add(1, Ordering::Relaxed);
    }
}

fn units(payload_bytes: usize) -> u32 {
    // One request never wants more than the whole, or it would wait for ever.
    payload_bytes.div_ceil(UNIT_BYTES).clamp(1, PAYLOAD_BYTES_MAX / UNIT_BYTES) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Request = Request { what: "write", inode: 7, offset: 4096, length: 1 << 20, pid: 1 };

    #[test]
    fn what_is_answered_is_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let in_flight = InFlight::new(Room::default());
        let first = in_flight.admit(runtime.handle(), WRITE, 1 << 20);
        let second = in_flight.admit(runtime.handle(), Request { what: "read", ..WRITE }, 0);
        assert_eq!((in_flight.count(), in_flight.answered()), (2, 0));
        assert_eq!(in_flight.older_than(Duration::ZERO).len(), 2);
        assert_eq!(in_flight.older_than(Duration::from_secs(3600)), []);
        drop(second);
        assert_eq!(in_flight.older_than(Duration::ZERO)[0].0, WRITE);
        drop(first);
        assert_eq!((in_flight.count(), in_flight.answered()), (0, 2));
        assert_eq!(in_flight.room.0.available_permits(), PAYLOAD_BYTES_MAX / UNIT_BYTES);
    }

    #[test]
    fn at_the_bound_a_request_waits_for_another_to_end() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let in_flight = InFlight::new(Room::default());
        let all = in_flight.admit(runtime.handle(), WRITE, PAYLOAD_BYTES_MAX * 2);
        let (waiting, handle) = (Arc::clone(&in_flight), runtime.handle().clone());
        let thread = std::thread::spawn(move || drop(waiting.admit(&handle, WRITE, 1)));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!thread.is_finished());
        drop(all);
        thread.join().unwrap();
    }
}
