//! Space, and the part of it that is kept so that a full system can be emptied.
//!
//! Two reserves. Guest data is refused while the file system has no more than `reserve_bytes` left, so that commits,
//! deletes and scrub always have room on a device that only ovs fills. Where others fill it to the last byte, the
//! file `.reserve` is given back to the first commit or delete that finds no space, and is made again later. The
//! first is not exact: puts under way at once are each compared with the space that was there before any of them.

use super::{
    disk::{Disk, OsDisk},
    error::Failure,
    store::{Store, lock},
};
use crate::{BackendError, Capacity, Urgency};
use bytes::Bytes;
use std::{io, path::Path};

/// The file of zeros.
pub(super) const RESERVE_FILE: &str = ".reserve";
/// Its size: room for many journal records and tombstones, and for what the file system needs to free an SCO.
const RESERVE_FILE_BYTES: u64 = 8 << 20;

/// 1 % of the file system that `path` is or will be on, 64 MiB at least and 1 GiB at most.
pub(super) fn default_reserve_bytes(path: &Path) -> u64 {
    let nearest = path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let total = OsDisk.space(nearest).map_or(0, |space| space.total_bytes);
    (total / 100).clamp(64 << 20, 1 << 30)
}

impl<D: Disk> Store<D> {
    /// Refuses guest data that would go into the reserve.
    pub(super) fn admit(&self, object: &str, length: u64, urgency: Urgency) -> Result<(), BackendError> {
        if urgency == Urgency::Reserve {
            return Ok(());
        }
        let root = self.root();
        let space =
            self.disk.space(root).map_err(|error| Failure::at("measure", root)(error).of("put", object))?;
        if space.available_bytes.saturating_sub(length) < self.reserve_bytes {
            return Err(BackendError::NoSpace {
                operation: "put",
                object: object.to_owned(),
                reason: format!(
                    "{} has {} bytes left, and {} are kept for commits and deletes",
                    root.display(),
                    space.available_bytes,
                    self.reserve_bytes
                ),
            });
        }
        if space.available_bytes - length > self.reserve_bytes.saturating_add(2 * RESERVE_FILE_BYTES) {
            self.rebuild_reserve();
        }
        Ok(())
    }

    /// Total and free space; free is what guest data may still use.
    pub(crate) fn capacity(&self) -> Result<Capacity, BackendError> {
        let root = self.root();
        let space =
            self.disk.space(root).map_err(|error| Failure::at("measure", root)(error).of("capacity", ""))?;
        self.check_marker("capacity", "")?;
        let free_bytes = space.available_bytes.saturating_sub(self.reserve_bytes);
        Ok(Capacity { total_bytes: space.total_bytes, free_bytes })
    }

    /// Gives the zeros back, unless they are gone already.
    pub(super) fn release_reserve(&self) {
        let mut whole = lock(&self.reserve_is_whole);
        if !*whole {
            return;
        }
        *whole = false;
        let path = self.root().join(RESERVE_FILE);
        match self.disk.truncate(&path) {
            Ok(()) => {
                tracing::warn!(path = %path.display(), "the device is full: its reserve is in use");
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the reserve cannot be released");
            }
        }
    }

    /// At open: is the file there from the last time, or is there room to make it?
    pub(super) fn find_reserve(&self) {
        let path = self.root().join(RESERVE_FILE);
        if matches!(self.disk.length(&path), Ok(Some(RESERVE_FILE_BYTES))) {
            *lock(&self.reserve_is_whole) = true;
            return;
        }
        let room = self.disk.space(self.root()).map_or(0, |space| space.available_bytes);
        if room > 2 * RESERVE_FILE_BYTES {
            self.rebuild_reserve();
        }
    }

    /// Space is back: makes the file again. Zeros are written, not allocated only: an allocation would still need
    /// space of its own when it is released or used on some file systems.
    fn rebuild_reserve(&self) {
        let mut whole = lock(&self.reserve_is_whole);
        if *whole {
            return;
        }
        match self.write_reserve() {
            Ok(()) => *whole = true,
            Err(error) => tracing::warn!(path = %self.root().display(), %error, "no reserve can be made"),
        }
    }

    fn write_reserve(&self) -> io::Result<()> {
        let (temporary, mut file) = self.create_temporary()?;
        let zeros = Bytes::from(vec![0; 1 << 20]);
        let written = (0..RESERVE_FILE_BYTES / zeros.len() as u64)
            .try_for_each(|_| self.disk.append(&mut file, std::slice::from_ref(&zeros)))
            .and_then(|()| self.disk.sync(&mut file))
            .and_then(|()| self.disk.rename(&temporary, &self.root().join(RESERVE_FILE)));
        if written.is_err() {
            let _ = self.disk.unlink(&temporary);
        }
        written
    }
}
