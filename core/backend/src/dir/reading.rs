//! Reading objects.

use super::{
    disk::Disk,
    error::{Failure, is_no_object},
    store::Store,
};
use crate::{BackendError, ObjectName};
use bytes::Bytes;
use rustix::io::Errno;
use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

impl<D: Disk> Store<D> {
    /// Bytes `offset .. offset + length`, as far as the object goes.
    pub(super) fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, BackendError> {
        let path = self.root().join(name.as_str());
        match read_range(&path, offset, length) {
            Ok(bytes) => Ok(bytes),
            Err(error) if is_no_object(&error) => {
                // Only the folder itself may say that it has no such object.
                self.check_marker("get", name.as_str())?;
                Err(BackendError::NotFound { object: name.to_string() })
            }
            Err(error) => Err(Failure::at("read", &path)(error).of("get", name.as_str())),
        }
    }
}

fn read_range(path: &Path, offset: u64, length: u64) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Errno::ISDIR.into());
    }
    // Clamped before anything is allocated: offset and length may be anything.
    let length = length.min(metadata.len().saturating_sub(offset));
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length)?;
    bytes.resize(length, 0);
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.into())
}
