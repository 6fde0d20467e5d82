//! What looks after one device for as long as the kernel has it.

use super::{Devices, Kept, blocking, disconnect, kernel, negotiate, open_hold};
use ovs_api::{ApiError, Attachment, ProblemKind};
use ovs_nbd::ClientError;
use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    select,
    time::{Instant, sleep},
};

/// How often the kernel is looked at, and for a device that was taken over, ovsd is asked about its connection.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// Between two attempts to connect.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// After a hang-up, until the kernel itself has most likely seen it.
const SETTLE_TIME: Duration = Duration::from_millis(100);

/// Our own descriptor of the socket that the kernel speaks on. Never read or written: it tells of the hang-up, whoever
/// hung up.
pub struct Link {
    socket: AsyncFd<UnixStream>,
    offers: Offers,
}

impl Link {
    /// Only hang-ups wake us; the kernel's traffic does not.
    pub fn new(stream: UnixStream) -> io::Result<Link> {
        // SAFETY: the stream owns its descriptor, names the same one every time, and is dropped with the registration.
        let registered = unsafe { AsyncFd::register_with_interest(stream, Interest::PRIORITY) };
        Ok(Link { socket: registered?, offers: Offers::after(Instant::now()) })
    }

    async fn hung_up(&self) {
        loop {
            match self.socket.ready(Interest::PRIORITY).await {
                Ok(mut ready) if !ready.ready().is_read_closed() => ready.clear_ready(),
                _ => return,
            }
        }
    }
}

/// When the kernel is offered the same socket once more. It replaces only a connection that it knows to be dead, which it
/// learns from a worker of its own, however late that runs; and of a socket that it did not take it says nothing. So the
/// offers never end, but grow rare: I/O waits at most about twice as long as the worker.
#[derive(Debug)]
struct Offers {
    next: Instant,
    pause: Duration,
}

impl Offers {
    fn after(first: Instant) -> Offers {
        Offers { next: first + LOOK_PERIOD, pause: LOOK_PERIOD }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.next <= now;
        if is_due {
            self.next = now + self.pause;
            self.pause *= 2;
        }
        is_due
    }
}

/// One device, one task.
pub struct Keeper {
    pub devices: Arc<Devices>,
    pub kept: Arc<Kept>,
    /// None for a connection that a dead predecessor gave the kernel.
    pub link: Option<Link>,
}

/// Why a device got no new connection.
enum Lost {
    /// The kernel has it no more.
    Gone,
    /// ovsd has fenced it, or the kernel has disconnected it: it is over, though somebody may still have it open.
    Over(String),
}

impl Keeper {
    /// Until the device is gone, or over.
    pub async fn run(mut self) {
        if self.link.is_none() {
            self.take_over().await;
        }
        let lost = loop {
            if !kernel::is_there(&self.kept.kernel) {
                break Lost::Gone;
            }
            if self.kept.is_held_too_long() {
                // Not waited for: the last close writes out what is dirty, perhaps on the connection made below.
                self.kept.let_go();
            }
            let is_dead = match &self.link {
                Some(link) => select! {
                    () = link.hung_up() => true,
                    () = sleep(LOOK_PERIOD) => false,
                },
                None => {
                    sleep(LOOK_PERIOD).await;
                    self.is_unconnected().await
                }
            };
            if is_dead {
                match self.reconnect().await {
                    Ok(link) => self.link = Some(link),
                    Err(lost) => break lost,
                }
            } else {
                self.offer_again().await;
            }
        };
        self.end(lost).await;
    }

    /// A predecessor may have died before it said that the device goes with its last user, and before there was one: said
    /// again, and opened and closed here, it goes now if nobody has it.
    async fn take_over(&mut self) {
        if self.is_unconnected().await {
            match self.reconnect().await {
                Ok(link) => self.link = Some(link),
                // The loop finds out the same.
                Err(_) => return,
            }
        }
        match open_hold(&self.kept.kernel).await {
            Ok(hold) => {
                self.kept.hold(hold);
                self.kept.let_go();
            }
            Err(error) => {
                let vdisk = self.kept.kernel.vdisk;
                tracing::warn!(%vdisk, %error, "a device that was taken over is not left to its users");
            }
        }
    }

    /// True when ovsd says that nobody speaks for this attachment, or that it has ended.
    async fn is_unconnected(&self) -> bool {
        match self.devices.rpc.attachment(self.kept.attachment.uuid).await {
            Ok(attachment) => attachment.is_none_or(|attachment| attachment.connection_count == 0),
            Err(_) => false,
        }
    }

    /// Until there is an ovsd, and the kernel has the new connection.
    async fn reconnect(&self) -> Result<Link, Lost> {
        let device = &self.kept.kernel;
        let mut is_first = true;
        loop {
            sleep(SETTLE_TIME).await;
            // Most hang-ups are the kernel's own, after the last close.
            if !kernel::is_there(device) {
                return Err(Lost::Gone);
            }
            if std::mem::take(&mut is_first) {
                tracing::info!(vdisk = %device.vdisk, nbd = device.index, "the device waits for ovsd");
            }
            let failure = match self.next_generation().await? {
                Ok(attachment) => match negotiate(&self.devices.rpc, &attachment).await {
                    Ok(negotiated) => return self.hand_over(negotiated.stream).await,
                    Err(ClientError::Refused(reason)) => return Err(Lost::Over(reason)),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            tracing::debug!(vdisk = %device.vdisk, failure, "not connected yet");
            sleep(RETRY_DELAY).await;
        }
    }

    /// The attachment, with a generation above all that was sent before. One that has ended is not made anew; one that
    /// ovsd lost with its registry is.
    async fn next_generation(&self) -> Result<Result<Attachment, ApiError>, Lost> {
        let ours = &self.kept.attachment;
        match self.devices.rpc.attach_device(ours.vdisk, Some(ours.uuid)).await {
            Err(error) if is_final(&error) => Err(Lost::Over(error.to_string())),
            answer => Ok(answer),
        }
    }

    async fn hand_over(&self, stream: UnixStream) -> Result<Link, Lost> {
        let device = self.kept.kernel.clone();
        let given = blocking(move || {
            kernel::replace_socket(&device, stream.as_fd())?;
            Ok(stream)
        });
        match given.await.and_then(Link::new) {
            Ok(link) => {
                let device = &self.kept.kernel;
                tracing::info!(vdisk = %device.vdisk, nbd = device.index, "the device is connected again");
                Ok(link)
            }
            Err(_) if !kernel::is_there(&self.kept.kernel) => Err(Lost::Gone),
            Err(error) => Err(Lost::Over(format!("the kernel took no new connection: {error}"))),
        }
    }

    /// For the case that the kernel did not take the socket. Given a second time it changes nothing.
    async fn offer_again(&mut self) {
        let Some(link) = &mut self.link else { return };
        if !link.offers.is_due(Instant::now()) {
            return;
        }
        let (device, socket) = (self.kept.kernel.clone(), link.socket.get_ref().try_clone());
        if let Err(error) = blocking(move || kernel::replace_socket(&device, socket?.as_fd())).await {
            // If it is gone or disconnected, the next look tells.
            tracing::debug!(vdisk = %self.kept.kernel.vdisk, %error, "the socket was not offered again");
        }
    }

    async fn end(self, lost: Lost) {
        let Keeper { devices, kept, link } = self;
        drop(link);
        let device = &kept.kernel;
        match lost {
            Lost::Gone => tracing::info!(vdisk = %device.vdisk, nbd = device.index, "device gone"),
            Lost::Over(reason) => {
                tracing::error!(vdisk = %device.vdisk, nbd = device.index, reason, "the device is disconnected");
                disconnect(device).await;
            }
        }
        kept.let_go();
        devices.rpc.detach(kept.attachment.uuid).await;
        devices.forget(&kept);
    }
}

/// True when asking again changes nothing.
fn is_final(error: &ApiError) -> bool {
    [ProblemKind::NotFound, ProblemKind::InUse, ProblemKind::Conflict].into_iter().any(|kind| error.is(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_api::Problem;

    #[test]
    fn a_socket_is_offered_again_for_ever_but_ever_less_often() {
        let start = Instant::now();
        let mut offers = Offers::after(start);
        let looks = (0..=2000).map(|look| LOOK_PERIOD * look);
        let offered: Vec<u32> = looks
            .filter(|since| offers.is_due(start + *since))
            .map(|since| (since.as_millis() / LOOK_PERIOD.as_millis()) as u32)
            .collect();
        assert_eq!(offered, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]);
    }

    #[test]
    fn only_an_answer_that_stays_the_same_ends_a_device() {
        let check = |error: ApiError, expected: bool| assert_eq!(is_final(&error), expected, "{error}");
        let refused = |kind| ApiError::Refused(Box::new(Problem::new(kind, "x")));
        // Ended or fenced; somebody else is in; a template now.
        for kind in [ProblemKind::NotFound, ProblemKind::InUse, ProblemKind::Conflict] {
            check(refused(kind), true);
        }
        for kind in [ProblemKind::Unavailable, ProblemKind::Internal, ProblemKind::Invalid] {
            check(refused(kind), false);
        }
        check(ApiError::Broken { operation: "create_attachment", reason: "it went".into() }, false);
    }
}
