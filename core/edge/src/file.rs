//! One vDisk as a file: what is known of it, and its link.
//!
//! A file that is written piece by piece past its end would cost a resize per piece, each of them a record on the backend.
//! So the vDisk is made longer than asked, in growing steps, while the file's own size follows what was written; when the
//! file is synced or closed, the vDisk is cut to it. A death of this process in between leaves zeros at the end.

use crate::{
    attributes::{self, Ownership, Times},
    clock, inode,
    link::Link,
    rpc::Rpc,
};
use fuser::FileAttr;
use ovs_api::Vdisk;
use ovs_units::{ByteCount, Name, VDISK_SIZE_BYTES_MAX, VdiskId};
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
    /// Of the vDisk.
    size: ByteCount,
    /// While the vDisk is longer than the file, on purpose.
    ahead: Option<Ahead>,
    /// Writes past the end since the file was settled.
    growth_count: u32,
    allocated: ByteCount,
    owner: Ownership,
    times: Times,
    asked_at: Instant,
    /// Written since ovsd was asked, so that it may take more or less room by now.
    is_written: bool,
}

/// A vDisk that is longer than its file.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    /// How far the file goes.
    written: ByteCount,
    /// How long we made the vDisk, or are about to make it.
    reserved: ByteCount,
}

/// What the first step ahead adds; the next ones double it.
const STEP_BYTES_MIN: u64 = 1 << 20;
/// What a step adds at most.
const STEP_BYTES_MAX: u64 = 64 << 20;

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
            ahead: None,
            growth_count: 0,
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
        // Any size that is neither what it was nor what we made it is somebody else's will.
        if facts.ahead.is_some_and(|ahead| size != ahead.reserved && size != facts.size) {
            facts.ahead = None;
        }
        let shown_before = facts.shown_size();
        facts.size = size;
        let change = Change {
            name_before: (facts.name != vdisk.name).then(|| facts.name.clone()),
            attributes: facts.shown_size() != shown_before || facts.owner != owner,
        };
        if facts.shown_size() != shown_before {
            facts.times.modified = clock::now();
        }
        if change != Change::default() {
            facts.times.changed = clock::now();
        }
        facts.name = vdisk.name.clone();
        facts.revision = vdisk.revision;
        facts.owner = owner;
        facts.allocated = allocated(vdisk);
        facts.asked_at = Instant::now();
        facts.is_written = false;
        change
    }

    /// What stat(2) says.
    pub fn attributes(&self) -> FileAttr {
        let facts = self.facts();
        attributes::file(self.inode, facts.shown_size(), facts.allocated, facts.owner, facts.times)
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
        self.facts().shown_size()
    }

    /// Says that the vDisk is about to be made longer for a write that ends at `end`, and how long: longer with every
    /// write in a row. `None` when it is long enough. Hold `resizing`.
    pub fn plan_growth(&self, end: ByteCount) -> Option<ByteCount> {
        let mut facts = self.facts();
        if end <= facts.size && facts.ahead.is_some() {
            return None;
        }
        let step = match facts.growth_count {
            // One write and a close cost one resize, not two.
            0 => 0,
            count => (STEP_BYTES_MIN << (count - 1).min(16)).min(STEP_BYTES_MAX),
        };
        facts.growth_count = facts.growth_count.saturating_add(1);
        let reserved = ByteCount(end.0.saturating_add(step).min(VDISK_SIZE_BYTES_MAX));
        facts.ahead = Some(Ahead { written: facts.shown_size(), reserved });
        Some(reserved)
    }

    /// Takes a plan back that did not succeed.
    pub fn forget_growth(&self) {
        let mut facts = self.facts();
        let size = facts.size;
        // What was reserved before the plan is still there, and still has to be settled.
        facts.ahead = facts.ahead.filter(|ahead| ahead.written < size);
    }

    /// A write that ends at `end` is done.
    pub fn mark_written_to(&self, end: ByteCount) {
        let mut facts = self.facts();
        if let Some(ahead) = &mut facts.ahead {
            ahead.written = ahead.written.max(end);
        }
    }

    /// The size to cut the vDisk to, when it is longer than the file. Hold `resizing`.
    pub fn unsettled(&self) -> Option<ByteCount> {
        let mut facts = self.facts();
        facts.growth_count = 0;
        let (size, ahead) = (facts.size, facts.ahead?);
        if ahead.written < size {
            return Some(ahead.written);
        }
        facts.ahead = None;
        None
    }

    /// The vDisk is as long as the file.
    pub fn mark_settled(&self) {
        self.facts().ahead = None;
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

impl Facts {
    fn shown_size(&self) -> ByteCount {
        self.ahead.map_or(self.size, |ahead| ahead.written)
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
