//! Raw images as they are written: a sparse file, a device, or a pipe.

use super::{Extent, Sink, zeros};
use ovs_units::ByteCount;
use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
};

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// A new file: what is not written is a hole.
pub struct SparseFile {
    file: File,
    end: u64,
}

impl SparseFile {
    /// `file` is empty.
    pub fn new(file: File) -> SparseFile {
        SparseFile { file, end: 0 }
    }
}

impl Sink for SparseFile {
    fn put(&mut self, extent: Extent) -> io::Result<()> {
        self.end = extent.end().0;
        for run in zeros::split(extent) {
            if let Extent::Data { start, bytes } = run {
                self.file.write_all_at(&bytes, start.0)?;
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.file.set_len(self.end)?;
        self.file.sync_all()
    }
}

/// A block device, whose old content must not show through: zeros are written.
pub struct Device {
    file: File,
    size_bytes: u64,
}

impl Device {
    /// `size` is the device's.
    pub fn new(file: File, size: ByteCount) -> Device {
        Device { file, size_bytes: size.0 }
    }
}

impl Sink for Device {
    fn put(&mut self, extent: Extent) -> io::Result<()> {
        if extent.end().0 > self.size_bytes {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the device is smaller than the vDisk"));
        }
        match extent {
            Extent::Data { start, bytes } => self.file.write_all_at(&bytes, start.0),
            Extent::Zeros { start, length } => {
                let mut at = start.0;
                for_each_zero_piece(length, |piece| {
                    self.file.write_all_at(piece, at)?;
                    at += piece.len() as u64;
                    Ok(())
                })
            }
        }
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// A pipe: everything is written, in order.
pub struct Pipe<W> {
    writer: W,
}

impl<W: Write + Send> Pipe<W> {
    /// Writes from where `writer` stands.
    pub fn new(writer: W) -> Pipe<W> {
        Pipe { writer }
    }
}

impl<W: Write + Send> Sink for Pipe<W> {
    fn put(&mut self, extent: Extent) -> io::Result<()> {
        match extent {
            Extent::Data { bytes, .. } => self.writer.write_all(&bytes),
            Extent::Zeros { length, .. } => for_each_zero_piece(length, |piece| self.writer.write_all(piece)),
        }
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.writer.flush()
    }
}

fn for_each_zero_piece(length: ByteCount, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut left = length.0;
    while left > 0 {
        let piece = left.min(ZEROS.len() as u64);
        write(&ZEROS[..piece as usize])?;
        left -= piece;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_units::ByteOffset;
    use std::os::unix::fs::MetadataExt;

    /// 4 MiB of zeros, 8 KiB of which half is zeros, 100 bytes of data.
    fn extents() -> Vec<Extent> {
        let mut half = vec![5; 4096];
        half.extend([0; 4096]);
        vec![
            Extent::Zeros { start: ByteOffset(0), length: ByteCount(4 << 20) },
            Extent::Data { start: ByteOffset(4 << 20), bytes: half.into() },
            Extent::Data { start: ByteOffset((4 << 20) + 8192), bytes: vec![6; 100].into() },
        ]
    }

    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 4 << 20];
        disk.extend([5; 4096]);
        disk.extend([0; 4096]);
        disk.extend([6; 100]);
        disk
    }

    #[test]
    fn a_file_is_sparse_and_complete() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut sink = Box::new(SparseFile::new(file.reopen().unwrap()));
        extents().into_iter().for_each(|extent| sink.put(extent).unwrap());
        sink.finish().unwrap();
        assert!(std::fs::read(file.path()).unwrap() == disk());
        assert!(file.as_file().metadata().unwrap().blocks() * 512 <= 64 << 10);
    }

    #[test]
    fn a_file_that_ends_in_zeros_has_its_size() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut sink = Box::new(SparseFile::new(file.reopen().unwrap()));
        sink.put(Extent::Zeros { start: ByteOffset(0), length: ByteCount(1 << 30) }).unwrap();
        sink.finish().unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 30);
    }

    #[test]
    fn a_pipe_gets_every_byte() {
        let (mut reader, writer) = io::pipe().unwrap();
        let read = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
            bytes
        });
        let mut sink = Box::new(Pipe::new(writer));
        extents().into_iter().for_each(|extent| sink.put(extent).unwrap());
        sink.finish().unwrap();
        assert!(read.join().unwrap() == disk());
    }

    #[test]
    fn old_content_of_a_device_does_not_show_through() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![0xee; disk().len()], 0).unwrap();
        let size = ByteCount(disk().len() as u64);
        let mut sink = Box::new(Device::new(file.try_clone().unwrap(), size));
        extents().into_iter().for_each(|extent| sink.put(extent).unwrap());
        let past = Extent::Data { start: ByteOffset(size.0), bytes: vec![1].into() };
        assert_eq!(sink.put(past).unwrap_err().kind(), io::ErrorKind::StorageFull);
        sink.finish().unwrap();
        let mut written = vec![0; disk().len()];
        file.read_exact_at(&mut written, 0).unwrap();
        assert!(written == disk());
    }
}
