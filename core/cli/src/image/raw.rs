//! Raw images: a file whose bytes are the disk's bytes, or a pipe of them.

use super::{EXTENT_SIZE_BYTES_MAX, Extent, FileOffset, ImageError, Source, read_at};
use ovs_units::{ByteCount, ByteOffset};
use rustix::{fs::SeekFrom, io::Errno};
use std::{
    fs::File,
    io::{self, Read},
};

/// A raw file or block device; its holes are not read.
pub struct RawFile {
    file: File,
    size_bytes: u64,
    position: u64,
    /// Data that the file system vouches for ends here; `position` when it must be asked again.
    data_end: u64,
}

impl RawFile {
    /// `size` is the file's, or the device's.
    pub fn new(file: File, size: ByteCount) -> RawFile {
        RawFile { file, size_bytes: size.0, position: 0, data_end: 0 }
    }

    /// Where the next data begins and ends, at or after `position`.
    fn next_data(&self) -> Result<std::ops::Range<u64>, ImageError> {
        let failed = |error: Errno| ImageError::Io { offset: self.position, error: error.into() };
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(self.position)) {
            Ok(start) => start,
            // Past the last data: the rest is a hole.
            Err(Errno::NXIO) => return Ok(self.size_bytes..self.size_bytes),
            // A file system that does not know of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(self.position..self.size_bytes),
            Err(error) => return Err(failed(error)),
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).map_err(failed)?;
        // A file that grows meanwhile is read up to the size it had.
        Ok(start.clamp(self.position, self.size_bytes)..end.clamp(self.position, self.size_bytes))
    }
}

impl Source for RawFile {
    fn size(&self) -> Option<ByteCount> {
        Some(ByteCount(self.size_bytes))
    }

    fn next_extent(&mut self) -> Result<Option<Extent>, ImageError> {
        if self.position >= self.size_bytes {
            return Ok(None);
        }
        let start = ByteOffset(self.position);
        if self.position >= self.data_end {
            let data = self.next_data()?;
            self.data_end = data.end;
            if data.start > self.position {
                self.position = data.start;
                return Ok(Some(Extent::Zeros { start, length: ByteCount(data.start - start.0) }));
            }
        }
        let length = (self.data_end - self.position).min(EXTENT_SIZE_BYTES_MAX as u64);
        let mut bytes = vec![0; length as usize];
        read_at(&self.file, FileOffset(self.position), &mut bytes)?;
        self.position += length;
        Ok(Some(Extent::Data { start, bytes: bytes.into() }))
    }
}

/// Bytes that come once, in order, and end when they end.
pub struct Stream<R> {
    reader: R,
    position: u64,
}

impl<R: Read + Send> Stream<R> {
    /// Reads from where `reader` stands.
    pub fn new(reader: R) -> Stream<R> {
        Stream { reader, position: 0 }
    }
}

impl<R: Read + Send> Source for Stream<R> {
    fn size(&self) -> Option<ByteCount> {
        None
    }

    fn next_extent(&mut self) -> Result<Option<Extent>, ImageError> {
        let bytes = read_up_to(&mut self.reader, EXTENT_SIZE_BYTES_MAX)
            .map_err(|error| ImageError::Io { offset: self.position, error })?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let start = ByteOffset(self.position);
        self.position += bytes.len() as u64;
        Ok(Some(Extent::Data { start, bytes: bytes.into() }))
    }
}

/// Fills a buffer from a pipe, which gives little at a time; shorter only at the end.
pub fn read_up_to(reader: &mut impl Read, length_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length_max];
    let mut filled = 0;
    while filled < length_max {
        match reader.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, os::unix::fs::FileExt};

    /// The disk that a source describes, and how many bytes of it came as zeros.
    fn read_all(mut source: impl Source) -> (Vec<u8>, u64) {
        let (mut disk, mut zeros) = (Vec::new(), 0);
        while let Some(extent) = source.next_extent().unwrap() {
            assert_eq!(extent.start().0, disk.len() as u64);
            match extent {
                Extent::Data { bytes, .. } => disk.extend_from_slice(&bytes),
                Extent::Zeros { length, .. } => {
                    zeros += length.0;
                    disk.resize(disk.len() + length.0 as usize, 0);
                }
            }
        }
        (disk, zeros)
    }

    #[test]
    fn holes_are_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[7; 5000], 3 << 20).unwrap();
        file.write_all_at(&[8; 1], (6 << 20) + 17).unwrap();
        let mut expected = vec![0; 8 << 20];
        expected[3 << 20..][..5000].fill(7);
        expected[(6 << 20) + 17] = 8;
        let (disk, zeros) = read_all(RawFile::new(file, ByteCount(8 << 20)));
        assert!(disk == expected);
        assert!(zeros >= 7 << 20, "only {zeros} bytes were known to be holes");
    }

    #[test]
    fn a_file_without_holes_and_an_empty_one() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..3_000_001u32).map(|i| (i % 251 + 1) as u8).collect();
        file.write_all(&bytes).unwrap();
        let (disk, zeros) = read_all(RawFile::new(file, ByteCount(bytes.len() as u64)));
        assert!(disk == bytes && zeros == 0);
        let (disk, _) = read_all(RawFile::new(tempfile::tempfile().unwrap(), ByteCount(0)));
        assert!(disk.is_empty());
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 8192]).unwrap();
        let mut source = RawFile::new(file.try_clone().unwrap(), ByteCount(8192));
        source.data_end = 8192;
        file.set_len(4096).unwrap();
        assert!(matches!(source.next_extent(), Err(ImageError::Io { .. })));
    }

    #[test]
    fn a_pipe_that_trickles_gives_whole_extents() {
        struct Trickle(usize);
        impl Read for Trickle {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = self.0.min(buffer.len()).min(1000);
                buffer[..count].fill(9);
                self.0 -= count;
                Ok(count)
            }
        }
        let mut source = Stream::new(Trickle(EXTENT_SIZE_BYTES_MAX + 10));
        assert_eq!(source.next_extent().unwrap().unwrap().length().0, EXTENT_SIZE_BYTES_MAX as u64);
        assert_eq!(source.next_extent().unwrap().unwrap().length().0, 10);
        assert_eq!(source.next_extent().unwrap(), None);
    }
}
