//! A vDisk's limits: set by whoever owns its properties, asked for a guest's request by its door.
//!
//! Only guests are held back. What the service does by itself (destage, scrub, replay, the edges of a resize) and reads of
//! snapshots are not, and a flush never is: it would hold back what others have waited for already.

use super::Vdisk;
use crate::VolumeError;
use crate::limiter::GuestRequest;
use ovs_units::Limits;

impl Vdisk {
    /// What its guests may do from now on; who waits already is held to it as well.
    pub fn set_limits(&self, limits: Limits) {
        if limits != self.limits() {
            self.inner.limiter.set(limits);
        }
    }

    /// What its guests may do.
    pub fn limits(&self) -> Limits {
        self.inner.limiter.limits()
    }

    /// A guest's request may go on when this returns `Ok`: before [`Vdisk::read`], [`Vdisk::write`] or [`Vdisk::zero`],
    /// once, however often that is tried or into how many parts it is cut. Nothing has happened when this is dropped.
    pub async fn admit(&self, request: GuestRequest) -> Result<(), VolumeError> {
        if self.inner.limiter.is_limited() {
            self.inner.check_serving()?;
            self.inner.limiter.turn(request).await;
            self.inner.check_serving()?;
        }
        Ok(())
    }
}
