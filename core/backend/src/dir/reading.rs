//! Reading objects.

use super::{
    disk::Disk,
    error::{Failure, is_no_object},
    open_files::OpenFile,
    store::Store,
};
use crate::{BackendError, ObjectName};
use bytes::Bytes;
use std::{io, sync::Arc};

impl<D: Disk> Store<D> {
    /// The object's file.
    pub(super) fn open_object(&self, name: &ObjectName) -> Result<Arc<OpenFile>, BackendError> {
        let path = self.root().join(name.as_str());
        match OpenFile::open(&path) {
            Ok(file) => Ok(Arc::new(file)),
            Err(error) if is_no_object(&error) => {
                // Only the folder itself may say that it has no such object.
                self.check_marker("get", name.as_str())?;
                Err(BackendError::NotFound { object: name.to_string() })
            }
            Err(error) => Err(Failure::at("open", &path)(error).of("get", name.as_str())),
        }
    }

    /// Bytes `offset .. offset + length` of it, as far as it goes.
    pub(super) fn read_object(
        &self,
        name: &ObjectName,
        file: &OpenFile,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, BackendError> {
        file.read(offset, length).map_err(|error| self.cannot_read(name, error))
    }

    pub(super) fn cannot_read(&self, name: &ObjectName, error: io::Error) -> BackendError {
        let path = self.root().join(name.as_str());
        Failure::at("read", &path)(error).of("get", name.as_str())
    }
}
