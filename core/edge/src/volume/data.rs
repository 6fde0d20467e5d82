//! Contents: read, write, discard, flush, seek.

use super::Volume;
use crate::{
    errno,
    extent::{self, Allocation, Seek},
    file::File,
    link::Access,
};
use bytes::Bytes;
use fuser::Errno;
use ovs_nbd::{Client, ClientError};
use ovs_units::{ByteCount, ByteOffset, ByteRange};

impl Volume {
    /// read(2): fewer bytes at the end of the file, none past it.
    pub async fn read(&self, handle: u64, offset: u64, length: u32) -> Result<Bytes, Errno> {
        let handle = self.handle(handle)?;
        let file = &handle.file;
        let Some(wanted) = ByteRange::new(ByteOffset(offset), ByteCount(u64::from(length))) else {
            return Ok(Bytes::new());
        };
        let mut readable = extent::readable(wanted, file.size());
        while let Some(range) = readable {
            let client = file.link.client().await?;
            match client.read(range).await {
                Ok(data) => return Ok(data),
                // Cut off while we read: what is left of the range is what there is.
                Err(ClientError::Request(_)) if !range.is_within(file.size()) => {
                    readable = extent::readable(wanted, file.size());
                }
                Err(error) => return Err(self.failed(file, "read", &error).await),
            }
        }
        Ok(Bytes::new())
    }

    /// write(2): all of it or an error; past the end the file grows first.
    pub async fn write(&self, handle: u64, offset: u64, data: Bytes, is_sync: bool) -> Result<u32, Errno> {
        let handle = self.handle(handle)?;
        let file = &handle.file;
        let length = u32::try_from(data.len()).map_err(|_| Errno::EINVAL)?;
        let range = extent::range_within_limits(offset, u64::from(length)).ok_or(Errno::EFBIG)?;
        if length == 0 {
            return Ok(0);
        }
        // A write past the end keeps others from changing the size until it is done.
        let extending = match extent::size_needed(range, file.size()) {
            Some(end) => {
                let extending = file.resizing.lock().await;
                if end > file.size() {
                    self.make_room(file, end).await?;
                }
                Some(extending)
            }
            None => None,
        };
        let client = file.link.client().await?;
        match client.write(range.start, data, is_sync).await {
            Ok(()) => {
                if extending.is_some() {
                    file.mark_written_to(ByteCount(range.end().0));
                }
                file.link.mark_dirty();
                file.mark_modified();
                Ok(length)
            }
            Err(error) => Err(self.failed(file, "write", &error).await),
        }
    }

    /// fsync(2) and fdatasync(2).
    pub async fn fsync(&self, handle: u64) -> Result<(), Errno> {
        let handle = self.handle(handle)?;
        self.settle(&handle.file).await?;
        handle.file.link.flush().await
    }

    /// close(2) of one descriptor: whoever closes a file and finds no error may rely on what it wrote.
    pub async fn close(&self, handle: u64) -> Result<(), Errno> {
        let handle = self.handle(handle)?;
        match handle.access {
            Access::Write => {
                self.settle(&handle.file).await?;
                handle.file.link.flush_if_dirty().await
            }
            Access::Read => Ok(()),
        }
    }

    /// fallocate(2).
    pub async fn allocate(
        &self,
        handle: u64,
        offset: u64,
        length: u64,
        what: Allocation,
    ) -> Result<(), Errno> {
        let handle = self.handle(handle)?;
        let file = &handle.file;
        let range = extent::range_within_limits(offset, length).ok_or(Errno::EFBIG)?;
        if let (Allocation::Reserve { grows: true } | Allocation::Zero { grows: true }, Some(size)) =
            (what, extent::size_needed(range, file.size()))
        {
            self.grow(file, size).await?;
        }
        let Some(range) = extent::readable(range, file.size()) else { return Ok(()) };
        if matches!(what, Allocation::Reserve { .. }) {
            return Ok(());
        }
        let client = file.link.client().await?;
        if let Err(error) = clear(&client, range, what).await {
            return Err(self.failed(file, "discard", &error).await);
        }
        file.link.mark_dirty();
        file.mark_modified();
        Ok(())
    }

    /// lseek(2) for `SEEK_DATA` and `SEEK_HOLE`.
    pub async fn seek(&self, handle: u64, offset: i64, what: Seek) -> Result<i64, Errno> {
        let handle = self.handle(handle)?;
        let file = &handle.file;
        let size = file.size();
        let mut at = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        if at >= size.0 {
            return Err(Errno::ENXIO);
        }
        let client = file.link.client().await?;
        while at < size.0 {
            let rest = ByteRange { start: ByteOffset(at), length: ByteCount(size.0 - at) };
            let extents = match client.block_status(rest).await {
                Ok(extents) => extents,
                Err(error) => return Err(self.failed(file, "block status", &error).await),
            };
            let covered: u64 = extents.iter().map(|extent| extent.length.0).sum();
            let extents = extents.iter().map(|extent| (extent.length, extent.zero));
            if let Some(found) = extent::seek_in(what, ByteOffset(at), extents) {
                return i64::try_from(found.0).map_err(|_| Errno::EOVERFLOW);
            }
            if covered == 0 {
                return Err(Errno::EIO);
            }
            at = at.saturating_add(covered);
        }
        match what {
            Seek::Data => Err(Errno::ENXIO),
            // The end of a file is a hole.
            Seek::Hole => i64::try_from(size.0).map_err(|_| Errno::EOVERFLOW),
        }
    }

    /// The errno of a failed request, logged here and only here.
    async fn failed(&self, file: &File, what: &str, error: &ClientError) -> Errno {
        tracing::error!(vpool = %self.vpool, vdisk = %file.id, %error, "{what} failed");
        if !matches!(error, ClientError::Request(_)) {
            file.link.retire_reader().await;
        }
        errno::of_client(error)
    }
}

async fn clear(client: &Client, range: ByteRange, what: Allocation) -> Result<(), ClientError> {
    match what {
        Allocation::Punch => client.trim(range, false).await,
        Allocation::Zero { .. } => client.zero(range, false).await,
        Allocation::Reserve { .. } => Ok(()),
    }
}
