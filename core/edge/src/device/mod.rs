//! vDisks as block devices of this host's kernel: NBD devices that speak to ovsd themselves.
//!
//! ```text
//!  put ─▶ attach ─▶ negotiate ─▶ connect: the kernel has the socket ─▶ open, then "goes with its last user" ─▶ answer
//!                                         │
//!  keeper, one per device: ◀── hang-up ───┘ (seen on our own descriptor of the same socket)
//!     the device is gone (last close)  ─▶ detach
//!     ovsd went away                   ─▶ attach again: next generation ─▶ negotiate ─▶ the kernel gets the new socket,
//!                                         and again now and then: it does not say whether it took it
//!     fenced                           ─▶ disconnect: who uses it gets errors, never a fresh connection
//! ```
//!
//! No byte of I/O passes through this process, so its death costs a device nothing as long as ovsd lives; its successor
//! finds the devices in `/sys/block` and takes them over (`sync`). What the kernel had sent and got no answer to it sends
//! again on the new connection, which is safe because ovsd admits that only after the old one is drained.
//!
//! Invariants:
//! * A vDisk has at most one living device: the attachment is exclusive, and the kernel is asked before one is made.
//! * A device goes by itself when its last user closes it; nothing here takes one away from a user, unless it was fenced.
//! * A writer that was fenced never gets a new attachment under a device that is still there.
//! * Whatever can block in the kernel (netlink, open) runs on a thread that may.
//!
//! Not here: I/O, file systems, who uses a device and why (plugins).

mod generic_netlink;
mod keeper;
mod kernel;

pub use kernel::unavailable;

use crate::rpc::Rpc;
use keeper::{Keeper, Link};
use kernel::{KernelDevice, NewDevice};
use ovs_api::{ApiError, Attachment, Device, DeviceList, Problem, ProblemKind, PutDevice, Vdisk};
use ovs_nbd::{ClientError, Generation, Negotiated, Session, SessionId};
use ovs_units::VdiskId;
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedMutexGuard, watch},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, timeout},
};

/// How long a device stays that nobody has opened yet.
const HOLD_TIME: Duration = Duration::from_secs(30);
/// How long an open may take: it reads the device when the kernel looks for partitions.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a device that has just gone may take to be given back.
const GONE_TIMEOUT: Duration = Duration::from_secs(15);
/// "For ever", in the kernel's seconds.
const PATIENCE_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// All devices of this host that are our ovsd's.
#[derive(Debug)]
pub struct Devices {
    rpc: Arc<Rpc>,
    /// Those that a keeper looks after.
    kept: Mutex<HashMap<VdiskId, Arc<Kept>>>,
    /// One lock per vDisk whose device is being made.
    locks: Mutex<HashMap<VdiskId, Arc<tokio::sync::Mutex<()>>>>,
    /// What a predecessor left has been taken over; before that nothing is made.
    is_synced: AtomicBool,
}

/// A device that a keeper looks after.
#[derive(Debug)]
struct Kept {
    kernel: KernelDevice,
    attachment: Attachment,
    hold: Mutex<Option<Hold>>,
    /// Closed when the keeper has ended.
    ended: watch::Receiver<()>,
}

/// Keeps a device that nobody uses yet.
#[derive(Debug)]
struct Hold {
    _device: File,
    until: Instant,
}

impl Kept {
    fn hold(&self, hold: Hold) {
        // What was there before is closed outside of the lock.
        let before = locked(&self.hold).replace(hold);
        drop(before);
    }

    /// Closes our descriptor, on a thread that may wait for it: the last close of a device writes out what is dirty and
    /// ends the connection.
    fn let_go(&self) -> Option<JoinHandle<()>> {
        let hold = locked(&self.hold).take()?;
        Some(spawn_blocking(move || drop(hold)))
    }

    fn is_held_too_long(&self) -> bool {
        locked(&self.hold).as_ref().is_some_and(|hold| hold.until <= Instant::now())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every section under these locks leaves what they guard whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what may block on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn problem(kind: ProblemKind, text: impl ToString) -> Problem {
    Problem::new(kind, text.to_string())
}

fn of_api(error: ApiError) -> Problem {
    match error {
        ApiError::Refused(problem) => *problem,
        other => problem(ProblemKind::Unavailable, other),
    }
}

fn of_kernel(error: &io::Error) -> Problem {
    problem(ProblemKind::Internal, format!("the kernel's NBD: {error}; its log may say more"))
}

/// The session that an attachment of this generation stands for.
async fn negotiate(rpc: &Rpc, attachment: &Attachment) -> Result<Negotiated, ClientError> {
    let session = Session { id: SessionId(attachment.uuid), generation: Generation(attachment.generation) };
    // The vDisk's own socket: a name may mean another vDisk tomorrow.
    ovs_nbd::negotiate(&rpc.paths().nbd_vdisk_socket(attachment.vdisk), "", session).await
}

impl Devices {
    /// Knows of none yet.
    pub fn new(rpc: Arc<Rpc>) -> Devices {
        Devices { rpc, kept: Mutex::default(), locks: Mutex::default(), is_synced: AtomicBool::new(false) }
    }

    /// The devices there are, and why there can be none. What is not listed is dead: so nothing is said before the
    /// devices of a predecessor are known.
    pub async fn list(&self) -> Result<DeviceList, Problem> {
        self.check_synced()?;
        let unavailable = spawn_blocking(unavailable).await.unwrap_or_else(|error| Some(error.to_string()));
        let kept: Vec<Arc<Kept>> = locked(&self.kept).values().cloned().collect();
        let mut items: Vec<Device> = kept.iter().filter_map(|kept| show(&kept.kernel, true)).collect();
        items.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(DeviceList { unavailable, items })
    }

    fn check_synced(&self) -> Result<(), Problem> {
        match self.is_synced.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err(problem(ProblemKind::Unavailable, "ovsd-edge has not heard from ovsd yet")),
        }
    }

    /// The vDisk's device, made if need be, with the vDisk's size; held for a while.
    pub async fn put(self: &Arc<Self>, vdisk: VdiskId, put: &PutDevice) -> Result<Device, Problem> {
        self.check_synced()?;
        if let Some(reason) =
            spawn_blocking(unavailable).await.unwrap_or_else(|error| Some(error.to_string()))
        {
            return Err(problem(ProblemKind::NotImplemented, reason));
        }
        let _guard = self.lock(vdisk).await;
        let facts = self.rpc.vdisk_now(vdisk).await.map_err(of_api)?;
        let facts = facts.ok_or_else(|| problem(ProblemKind::NotFound, format!("no vDisk {vdisk}")))?;
        let (kept, was_there) = match self.living(vdisk).await? {
            Some(kept) => {
                // It stays, with the vDisk attached to it: there is no other way to the vDisk now.
                let hold = open_hold(&kept.kernel).await;
                kept.hold(hold.map_err(|error| problem(ProblemKind::Unavailable, error))?);
                (kept, true)
            }
            None => (self.make(&facts, put.block_size_bytes).await?, false),
        };
        self.take_size_of(&kept.kernel, facts.size_bytes).await;
        show(&kept.kernel, was_there)
            .ok_or_else(|| problem(ProblemKind::Unavailable, "the device has just gone: ask again"))
    }

    /// The device stays only as long as somebody has it open.
    pub async fn release(&self, vdisk: VdiskId) {
        if let Some(closing) = self.kept(vdisk).and_then(|kept| kept.let_go()) {
            // An error is a panic of drop.
            let _ = closing.await;
        }
    }

    /// Takes over what a predecessor left, and gives back attachments that no device needs.
    pub async fn sync(self: &Arc<Self>) -> Result<(), ApiError> {
        let attachments = self.rpc.device_attachments().await?;
        let devices = spawn_blocking(kernel::list).await.unwrap_or_default();
        for device in &devices {
            let Some(_guard) = self.try_lock(device.vdisk) else { continue };
            if self.kept(device.vdisk).is_some() || !is_connected(device).await {
                continue;
            }
            match attachments.iter().find(|attachment| attachment.vdisk == device.vdisk) {
                Some(attachment) => {
                    tracing::info!(vdisk = %device.vdisk, nbd = device.index, "taking over a device");
                    self.keep(device.clone(), attachment.clone(), None);
                }
                None => self.disown(device).await?,
            }
        }
        for attachment in attachments {
            let Some(_guard) = self.try_lock(attachment.vdisk) else { continue };
            let is_needed = devices.iter().any(|device| device.vdisk == attachment.vdisk)
                || self.kept(attachment.vdisk).is_some();
            if !is_needed {
                self.rpc.detach(attachment.uuid).await;
            }
        }
        self.is_synced.store(true, Ordering::Release);
        let kept: Vec<VdiskId> = locked(&self.kept).keys().copied().collect();
        for vdisk in kept {
            self.resized(vdisk).await?;
        }
        Ok(())
    }

    /// A vDisk may have another size: its device takes it.
    pub async fn resized(&self, vdisk: VdiskId) -> Result<(), ApiError> {
        if let Some(kept) = self.kept(vdisk)
            && let Some(facts) = self.rpc.vdisk_now(vdisk).await?
        {
            self.take_size_of(&kept.kernel, facts.size_bytes).await;
        }
        Ok(())
    }

    async fn lock(&self, vdisk: VdiskId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = locked(&self.locks);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(vdisk).or_default().clone()
        };
        lock.lock_owned().await
    }

    fn try_lock(&self, vdisk: VdiskId) -> Option<OwnedMutexGuard<()>> {
        let lock = locked(&self.locks).entry(vdisk).or_default().clone();
        lock.try_lock_owned().ok()
    }

    fn kept(&self, vdisk: VdiskId) -> Option<Arc<Kept>> {
        locked(&self.kept).get(&vdisk).cloned()
    }

    /// The device that is there and works, or waits for ovsd. One that has just gone is waited for.
    async fn living(self: &Arc<Self>, vdisk: VdiskId) -> Result<Option<Arc<Kept>>, Problem> {
        if let Some(kept) = self.kept(vdisk) {
            if kernel::is_there(&kept.kernel) {
                return Ok(Some(kept));
            }
            let mut ended = kept.ended.clone();
            // An error is the end.
            if timeout(GONE_TIMEOUT, async { while ended.changed().await.is_ok() {} }).await.is_err() {
                return Err(problem(
                    ProblemKind::Unavailable,
                    "the vDisk's last device is not given back yet",
                ));
            }
        }
        let found = spawn_blocking(kernel::list).await.unwrap_or_default();
        for device in found.into_iter().filter(|device| device.vdisk == vdisk) {
            if !is_connected(&device).await {
                continue;
            }
            let attachments = self.rpc.device_attachments().await.map_err(of_api)?;
            match attachments.into_iter().find(|attachment| attachment.vdisk == vdisk) {
                Some(attachment) => return Ok(Some(self.keep(device, attachment, None))),
                None => self.disown(&device).await.map_err(of_api)?,
            }
        }
        Ok(None)
    }

    /// A device without an attachment: fenced while nobody looked. One of another ovsd's vDisks is none of our business.
    async fn disown(&self, device: &KernelDevice) -> Result<(), ApiError> {
        if self.rpc.vdisk_now(device.vdisk).await?.is_some() {
            tracing::warn!(vdisk = %device.vdisk, nbd = device.index, "a device without an attachment is disconnected");
            disconnect(device).await;
        }
        Ok(())
    }

    /// A new device, attached and held; or an error, and nothing is left of either.
    async fn make(self: &Arc<Self>, vdisk: &Vdisk, block_size_bytes: u32) -> Result<Arc<Kept>, Problem> {
        if vdisk.size_bytes == 0 || !vdisk.size_bytes.is_multiple_of(u64::from(block_size_bytes)) {
            let detail = format!("{} bytes are not whole blocks of {block_size_bytes}", vdisk.size_bytes);
            return Err(problem(ProblemKind::Conflict, detail));
        }
        let attachment = self.rpc.attach_device(vdisk.uuid, None).await.map_err(of_api)?;
        match self.connect(vdisk, block_size_bytes, &attachment).await {
            Ok((device, link, hold)) => {
                tracing::info!(vdisk = %vdisk.uuid, nbd = device.index, size = vdisk.size_bytes, "device made");
                let kept = self.keep(device, attachment, Some(link));
                kept.hold(hold);
                Ok(kept)
            }
            Err(problem) => {
                self.rpc.detach(attachment.uuid).await;
                Err(problem)
            }
        }
    }

    async fn connect(
        &self,
        vdisk: &Vdisk,
        block_size_bytes: u32,
        attachment: &Attachment,
    ) -> Result<(KernelDevice, Link, Hold), Problem> {
        let negotiated = negotiate(&self.rpc, attachment).await;
        let negotiated = negotiated.map_err(|error| problem(ProblemKind::Unavailable, error))?;
        let new = NewDevice {
            vdisk: vdisk.uuid,
            size_bytes: vdisk.size_bytes,
            block_size_bytes,
            flags: negotiated.flags,
            patience: self.rpc.patience().unwrap_or(PATIENCE_MAX),
        };
        let made = blocking(move || {
            let device = kernel::connect(negotiated.stream.as_fd(), &new)?;
            Ok((device, negotiated.stream))
        });
        let (device, stream) = made.await.map_err(|error| of_kernel(&error))?;
        // Held before a keeper has it: until somebody opens it, nobody has any use for a new connection.
        match finish(&device, stream).await {
            Ok((link, hold)) => Ok((device, link, hold)),
            Err(error) => {
                disconnect(&device).await;
                Err(of_kernel(&error))
            }
        }
    }

    /// From here on a keeper looks after it.
    fn keep(self: &Arc<Self>, kernel: KernelDevice, attachment: Attachment, link: Option<Link>) -> Arc<Kept> {
        let (alive, ended) = watch::channel(());
        let kept = Arc::new(Kept { kernel, attachment, hold: Mutex::default(), ended });
        locked(&self.kept).insert(kept.kernel.vdisk, Arc::clone(&kept));
        let keeper = Keeper { devices: Arc::clone(self), kept: Arc::clone(&kept), link };
        tokio::spawn(async move {
            keeper.run().await;
            drop(alive);
        });
        kept
    }

    fn forget(&self, kept: &Arc<Kept>) {
        let mut all = locked(&self.kept);
        if all.get(&kept.kernel.vdisk).is_some_and(|known| Arc::ptr_eq(known, kept)) {
            all.remove(&kept.kernel.vdisk);
        }
    }

    async fn take_size_of(&self, device: &KernelDevice, size_bytes: u64) {
        if kernel::size_bytes(device).is_none_or(|have| have == size_bytes) {
            return;
        }
        let same = device.clone();
        match blocking(move || kernel::resize(&same, size_bytes)).await {
            Ok(()) => tracing::info!(vdisk = %device.vdisk, nbd = device.index, size_bytes, "device resized"),
            Err(error) => tracing::warn!(vdisk = %device.vdisk, %error, "the device keeps its size for now"),
        }
    }
}

async fn finish(device: &KernelDevice, stream: UnixStream) -> io::Result<(Link, Hold)> {
    Ok((Link::new(stream)?, open_hold(device).await?))
}

/// Keeps the device for a while, and lets it go with its last user after that. In this order: a device with that wish goes
/// when udev, which looks at every new device, closes it.
async fn open_hold(device: &KernelDevice) -> io::Result<Hold> {
    let device = device.clone();
    let work = blocking(move || {
        let file = kernel::open(&device)?;
        kernel::leave_to_users(&device)?;
        Ok(Hold { _device: file, until: Instant::now() + HOLD_TIME })
    });
    timeout(OPEN_TIMEOUT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Ends a device; whoever uses it gets errors.
async fn disconnect(device: &KernelDevice) {
    let same = device.clone();
    if let Err(error) = blocking(move || kernel::disconnect(&same)).await {
        tracing::error!(vdisk = %device.vdisk, nbd = device.index, %error, "it was not disconnected");
    }
}

/// False for a device that was disconnected and is still mounted somewhere: it never works again.
async fn is_connected(device: &KernelDevice) -> bool {
    let device = device.clone();
    blocking(move || kernel::leave_to_users(&device)).await.is_ok()
}

fn show(kernel: &KernelDevice, was_there: bool) -> Option<Device> {
    let size_bytes = kernel::size_bytes(kernel).filter(|_| kernel::is_there(kernel))?;
    let (vdisk, sequence) = (kernel.vdisk, kernel.sequence);
    Some(Device { vdisk, path: kernel::path(kernel), sequence, size_bytes, was_there })
}
