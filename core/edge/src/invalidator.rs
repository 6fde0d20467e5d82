//! Tells the kernel to forget what changed elsewhere.
//!
//! A notification may have to wait for a lock that the kernel holds while it waits for us. So it is sent by a thread
//! that answers no requests.

use fuser::{INodeNo, Notifier};
use ovs_units::Name;
use std::{ffi::OsString, io, sync::mpsc, thread};

/// What the kernel is to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stale {
    /// A name of the root directory.
    Name(OsString),
    /// The attributes of an inode.
    Attributes(u64),
    /// Attributes and cached contents of an inode.
    Contents(u64),
}

/// A queue to the thread that notifies. The thread ends when this is dropped.
#[derive(Debug)]
pub struct Invalidator {
    queue: mpsc::Sender<Stale>,
}

impl Invalidator {
    /// For one mount.
    pub fn new(vpool: &Name, notifier: Notifier) -> io::Result<Invalidator> {
        let (queue, stale) = mpsc::channel();
        let vpool = vpool.clone();
        thread::Builder::new().name("ovs-invalidate".to_owned()).spawn(move || {
            for stale in stale {
                if let Err(error) = notify(&notifier, &stale) {
                    tracing::debug!(%vpool, ?stale, %error, "the kernel did not forget");
                }
            }
        })?;
        Ok(Invalidator { queue })
    }

    /// Queues a notification; the kernel's own time limits bound what a lost one costs.
    pub fn forget(&self, stale: Stale) {
        let _ = self.queue.send(stale);
    }
}

fn notify(notifier: &Notifier, stale: &Stale) -> io::Result<()> {
    match stale {
        Stale::Name(name) => notifier.inval_entry(INodeNo::ROOT, name),
        // A negative offset means: attributes only (fuse_reverse_inval_inode in the kernel).
        Stale::Attributes(inode) => notifier.inval_inode(INodeNo(*inode), -1, 0),
        Stale::Contents(inode) => notifier.inval_inode(INodeNo(*inode), 0, 0),
    }
}
