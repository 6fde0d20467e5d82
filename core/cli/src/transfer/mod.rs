//! `ovs vdisk import` and `ovs vdisk export`: images to and from vDisks, over NBD.
//!
//! ```text
//! import:  thread: Source ─▶ split at zeros ─▶ bounded channel ─▶ many writes in flight ─▶ flush
//! export:  block status ─▶ many reads in flight, in order ─▶ bounded channel ─▶ thread: Sink ─▶ rename
//! ```
//!
//! Both hold an attachment, which names the NBD session: requests in flight survive a restart of ovsd. Both clean up
//! when they fail or are interrupted: an import deletes the vDisk that it made, an export its snapshot and its
//! temporary file.

mod copy;
mod destination;
mod export;
mod import;
mod session;

pub use copy::{CopyError, drain_image, fill_image};
pub use export::export;
pub use import::import;

/// Runs a blocking function on a thread of its own, which nobody waits for at the end: it may be stuck in a read of a
/// pipe that nobody writes to.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, crate::failure::Failure> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // Nobody waits any more when this fails.
        let _ = sender.send(work());
    });
    receiver.await.map_err(|_| {
        crate::failure::Failure::new(ovs_api::ProblemKind::Internal, "a thread of this program ended early")
    })
}
