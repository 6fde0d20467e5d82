//! One vDisk as a file: what is known of it, and its link.

use crate::{
    attributes::{self, Ownership, Times},
    clock, inode,
    link::Link,
    rpc::Rpc,
};
use fuser::FileAttr;
use ovs_api::Vdisk;
use ovs_units::{ByteCount, Name, VdiskId};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// A vDisk's file.
#[derive(Debug)]
pub struct File {
    /// The vDisk.
    pub id: VdiskId,
    /// Its inode number in this mount.
    pub inode: u64,
    /// Its connection.
    pub link: Link,
    /// Held over every change of size, so that two writers past the end do not undo each other.
    pub resizing: tokio::sync::Mutex<()>,
    facts: Mutex<Facts>,
}

/// What ovsd said last, and what we know better.
#[derive(Debug, Clone)]
struct Facts {
    name: Name,
    revision: u64,
    size: ByteCount,
    allocated: ByteCount,
    owner: Ownership,
    times: Times,
    asked_at: Instant,
    /// Written since ovsd was asked, so that it may take more or less room by now.
    is_written: bool,
}

/// How a file differs from what the kernel may remember of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Its name was this one before.
    pub name_before: Option<Name>,
    /// Size, owner or mode are others.
    pub attributes: bool,
}

impl File {
    /// A file for a vDisk, with nothing open.
    pub fn new(vdisk: &Vdisk, inode: u64, rpc: Arc<Rpc>) -> File {
        let facts = Facts {
            name: vdisk.name.clone(),
            revision: vdisk.revision,
            size: ByteCount(vdisk.size_bytes),
            allocated: allocated(vdisk),
            owner: Ownership::from_labels(&vdisk.labels.0),
            times: Times::all(created_at(vdisk)),
            asked_at: Instant::now(),
            is_written: false,
        };
        File {
            id: vdisk.uuid,
            inode,
            link: Link::new(vdisk.uuid, rpc),
            resizing: tokio::sync::Mutex::default(),
            facts: Mutex::new(facts),
        }
    }

    /// Takes in what ovsd says, unless we have heard something newer: answers may overtake each other.
    pub fn apply(&self, vdisk: &Vdisk) -> Change {
        let mut facts = self.facts();
        if vdisk.revision < facts.revision {
            return Change::default();
        }
        let (size, owner) = (ByteCount(vdisk.size_bytes), Ownership::from_labels(&vdisk.labels.0));
        let change = Change {
            name_before: (facts.name != vdisk.name).then(|| facts.name.clone()),
            attributes: facts.size != size || facts.owner != owner,
        };
        if facts.size != size {
            facts.times.modified = clock::now();
        }
        if change != Change::default() {
            facts.times.changed = clock::now();
        }
        facts.name = vdisk.name.clone();
        facts.revision = vdisk.revision;
        facts.size = size;
        facts.owner = owner;
        facts.allocated = allocated(vdisk);
        facts.asked_at = Instant::now();
        facts.is_written = false;
        change
    }

    /// What stat(2) says.
    pub fn attributes(&self) -> FileAttr {
        let facts = self.facts();
        attributes::file(self.inode, facts.size, facts.allocated, facts.owner, facts.times)
    }

    /// Its name.
    pub fn name(&self) -> Name {
        self.facts().name.clone()
    }

    /// The revision of what is known.
    pub fn revision(&self) -> u64 {
        self.facts().revision
    }

    /// Its size to the byte.
    pub fn size(&self) -> ByteCount {
        self.facts().size
    }

    /// Owner, group and mode.
    pub fn owner(&self) -> Ownership {
        self.facts().owner
    }

    /// True when ovsd should be asked again: not asked for so long, or written since.
    pub fn is_stale(&self, age_max: Duration) -> bool {
        let facts = self.facts();
        facts.is_written || facts.asked_at.elapsed() >= age_max
    }

    /// Contents were changed through this file.
    pub fn mark_modified(&self) {
        let now = clock::now();
        let mut facts = self.facts();
        facts.is_written = true;
        facts.times.modified = now;
        facts.times.changed = now;
    }

    /// utimensat(2): what is not given stays.
    pub fn set_times(&self, accessed: Option<SystemTime>, modified: Option<SystemTime>) {
        let mut facts = self.facts();
        facts.times.accessed = accessed.unwrap_or(facts.times.accessed);
        facts.times.modified = modified.unwrap_or(facts.times.modified);
        facts.times.changed = clock::now();
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The generation of the file's inode.
pub fn generation(file: &File) -> fuser::Generation {
    fuser::Generation(inode::generation(file.id))
}

/// What the vDisk takes: on the backend and in the write buffer. What is in both counts twice until it has left the
/// buffer, but a file never takes more than its size.
fn allocated(vdisk: &Vdisk) -> ByteCount {
    let held = vdisk.allocated_bytes.saturating_add(vdisk.buffered_bytes);
    ByteCount(held.min(vdisk.capacity_bytes))
}

fn created_at(vdisk: &Vdisk) -> SystemTime {
    let ms = vdisk.created_at.unix_ms().unwrap_or_default();
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(SystemTime::UNIX_EPOCH)
}
