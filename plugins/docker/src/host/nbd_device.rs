//! NBD devices of the kernel, which ovsd-edge makes and keeps connected; see its `device` module.
//!
//! ```text
//! put ─▶ the device, kept by ovsd-edge for half a minute ─▶ open it here ─▶ release: it goes with its last user
//! ```
//!
//! As with a loop device and autoclear, a plugin killed at any point leaves nothing behind.

use super::{Attached, Device, Health, HostError, block_device, block_device::DeviceHold};
use ovs_api::{ApiError, EdgeClient, ProblemKind, PutDevice};
use ovs_units::VdiskId;
use std::{io, path::Path, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// How long ovsd-edge may take to be ready for devices.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
const READY_POLL: Duration = Duration::from_millis(200);
/// How long ovsd-edge may take to say which devices there are.
const LIST_TIMEOUT: Duration = Duration::from_secs(3);

/// What ovsd-edge says about a vDisk's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is there.
    There,
    /// There is none, but there can be.
    Possible,
    /// There is none, and there can be none here, because:
    Impossible(String),
    /// ovsd-edge does not answer.
    Unknown(String),
}

/// ovsd-edge's RPC.
pub struct NbdDevices(EdgeClient);

impl NbdDevices {
    /// Of the ovsd-edge that listens there.
    pub fn new(socket: &Path) -> NbdDevices {
        NbdDevices(EdgeClient::new(socket))
    }

    /// Whether the vDisk has a device. An ovsd-edge that is starting is waited for.
    pub async fn find(&self, vdisk: VdiskId) -> Found {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match timeout(LIST_TIMEOUT, self.0.list_devices()).await {
                Ok(Err(error)) if error.is(ProblemKind::Unavailable) && Instant::now() < deadline => {
                    sleep(READY_POLL).await;
                }
                Ok(Ok(list)) if list.items.iter().any(|device| device.vdisk == vdisk) => return Found::There,
                Ok(Ok(list)) => return list.unavailable.map_or(Found::Possible, Found::Impossible),
                Ok(Err(error)) => return Found::Unknown(error.to_string()),
                Err(_) => return Found::Unknown("ovsd-edge does not answer".to_owned()),
            }
        }
    }

    /// Whether ovsd-edge looks after this device; none when it does not say.
    pub async fn is_kept(&self, device: &Device) -> Option<bool> {
        let list = timeout(LIST_TIMEOUT, self.0.list_devices()).await.ok()?.ok()?;
        let is_it = |kept: &ovs_api::Device| (&kept.path, kept.sequence) == (&device.path, device.sequence);
        Some(list.items.iter().any(is_it))
    }

    /// The vDisk's device, held: the one that is there, or a new one.
    pub async fn attach(
        &self,
        vdisk: VdiskId,
        block_size_bytes: u32,
    ) -> Result<Attached<DeviceHold>, ApiError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match self.0.put_device(vdisk, &PutDevice { block_size_bytes }).await {
                Ok(made) => {
                    let device = Device { path: made.path, sequence: made.sequence };
                    let opening = device.clone();
                    let opened = tokio::task::spawn_blocking(move || block_device::open(&opening)).await;
                    match opened.map_err(io::Error::other).flatten() {
                        Ok(fd) => {
                            // What cannot be released now goes by itself in half a minute.
                            let _ = self.0.release_device(vdisk).await;
                            let hold = DeviceHold::new(fd);
                            return Ok(Attached { device, was_there: made.was_there, hold });
                        }
                        Err(error) if Instant::now() >= deadline => {
                            let operation = "put_device";
                            return Err(ApiError::Broken { operation, reason: error.to_string() });
                        }
                        // It went between the answer and the open.
                        Err(error) => tracing::debug!(%vdisk, %error, "once more"),
                    }
                }
                // It is starting, or hears from ovsd in a moment.
                Err(error) if error.is(ProblemKind::Unavailable) && Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
            sleep(READY_POLL).await;
        }
    }
}

/// How a device is. `reads`: none when it does not answer. Dead is only what gives errors (a device that waits for ovsd gives
/// none) and has been given up by ovsd-edge (an error may be the vDisk's own).
pub fn health(reads: Option<bool>, is_kept: Option<bool>) -> Health {
    match (reads, is_kept) {
        (Some(true), _) => Health::Alive,
        (Some(false), Some(false)) => Health::Dead,
        _ => Health::Unknown,
    }
}

/// For Docker's user.
pub fn failed(error: &ApiError) -> HostError {
    match error {
        ApiError::Refused(problem) if problem.kind() == ProblemKind::InUse => {
            HostError::Busy(error.to_string())
        }
        _ => HostError::Failed(format!("a kernel device: {error}; is ovsd-edge running?")),
    }
}

/// True when the vDisk may be had over a loop device all the same: nothing was left attached.
pub fn is_the_kernels(error: &ApiError) -> bool {
    error.is(ProblemKind::Internal) || error.is(ProblemKind::NotImplemented)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_a_device_that_nobody_keeps_are_its_death() {
        let (alive, unknown, dead) = (Health::Alive, Health::Unknown, Health::Dead);
        for (reads, is_kept, expected) in [
            (Some(true), Some(true), alive),
            (Some(true), Some(false), alive),
            (Some(true), None, alive),
            // The vDisk's own error.
            (Some(false), Some(true), unknown),
            (Some(false), None, unknown),
            (Some(false), Some(false), dead),
            // ovsd is away: it waits, whatever a starting ovsd-edge says.
            (None, Some(true), unknown),
            (None, Some(false), unknown),
            (None, None, unknown),
        ] {
            assert_eq!(health(reads, is_kept), expected, "{reads:?} {is_kept:?}");
        }
    }
}
