//! Which format a file has, told from its first bytes.

use super::{FileOffset, ImageError, Source, qcow2, raw, read_at};
use ovs_units::ByteCount;
use std::{
    fs::File,
    io::{self, Cursor, Read, Seek, SeekFrom},
    os::unix::fs::FileTypeExt,
    path::Path,
};

/// A format that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ReadFormat {
    /// By the file's first bytes.
    Auto,
    /// Every byte as it is.
    Raw,
    /// qcow2, version 2 or 3, without a backing or data file.
    Qcow2,
}

/// A format that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum WriteFormat {
    /// Every byte as it is; holes where the vDisk has none.
    Raw,
    /// qcow2, version 3, uncompressed.
    Qcow2,
}

/// An image, and what the user should know about it.
pub struct Opened {
    /// The image.
    pub source: Box<dyn Source>,
    /// Worth a line, but no reason to refuse.
    pub warning: Option<&'static str>,
}

/// Enough for every magic number below.
const PROBE_LENGTH: usize = 512;

/// Opens a file, a device, a named pipe; `-` is the standard input.
pub fn open(path: &Path, format: ReadFormat) -> Result<Opened, ImageError> {
    let failed = |error| ImageError::Refused(format!("cannot open {}: {error}", path.display()));
    let file = match path.as_os_str() == "-" {
        true => File::from(rustix::io::dup(io::stdin()).map_err(|error| failed(error.into()))?),
        false => File::open(path).map_err(failed)?,
    };
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_dir() {
        return Err(ImageError::Refused(format!("{} is a directory, not a disk image", path.display())));
    }
    // `ovs vdisk import - < FILE` is a file like any other, unless someone has read its beginning already.
    let is_at_start = (&file).stream_position().is_ok_and(|position| position == 0);
    if (kind.is_file() || kind.is_block_device()) && is_at_start {
        let length = (&file).seek(SeekFrom::End(0)).map_err(failed)?;
        open_file(file, ByteCount(length), format)
    } else {
        open_pipe(file, format)
    }
}

fn open_file(file: File, length: ByteCount, format: ReadFormat) -> Result<Opened, ImageError> {
    let mut beginning = vec![0; length.0.min(PROBE_LENGTH as u64) as usize];
    read_at(&file, FileOffset(0), &mut beginning)?;
    match choose(format, &beginning)? {
        ReadFormat::Qcow2 => {
            let reader = qcow2::Reader::open(file, length)?;
            let warning = reader.header().is_dirty.then_some(
                "the qcow2 image was not closed cleanly; its data is read as it is, what its writer had not flushed is missing",
            );
            Ok(Opened { source: Box::new(reader), warning })
        }
        _ => Ok(Opened { source: Box::new(raw::RawFile::new(file, length)), warning: None }),
    }
}

fn open_pipe<R: Read + Send + 'static>(mut reader: R, format: ReadFormat) -> Result<Opened, ImageError> {
    let beginning =
        raw::read_up_to(&mut reader, PROBE_LENGTH).map_err(|error| ImageError::Io { offset: 0, error })?;
    match choose(format, &beginning)? {
        ReadFormat::Qcow2 => Err(ImageError::Refused(
            "a qcow2 image cannot be read from a pipe, since its tables point back and forth: save it to a file first, or send `qemu-img convert -O raw` output"
                .into(),
        )),
        _ => {
            let source = raw::Stream::new(Cursor::new(beginning).chain(reader));
            Ok(Opened { source: Box::new(source), warning: None })
        }
    }
}

/// `Raw` or `Qcow2`. What is clearly another format is refused rather than imported as a disk full of nonsense;
/// `--format raw` takes it all the same.
fn choose(asked: ReadFormat, beginning: &[u8]) -> Result<ReadFormat, ImageError> {
    let starts = |magic: &[u8]| beginning.starts_with(magic);
    match asked {
        ReadFormat::Auto => {}
        ReadFormat::Qcow2 if !starts(&qcow2::MAGIC) => {
            return Err(ImageError::Refused(
                "the image is not qcow2: its first bytes are not QFI\\xfb".into(),
            ));
        }
        chosen => return Ok(chosen),
    }
    if starts(&qcow2::MAGIC) {
        return Ok(ReadFormat::Qcow2);
    }
    let convert = "convert it first with `qemu-img convert -O qcow2`, or say --format raw to take its bytes as they are";
    let unpack = "unpack it first, or pipe it: `xz -dc FILE | ovs vdisk import - POOL/NAME` (--format raw takes its bytes as they are)";
    let others: [(&str, bool, &str); 8] = [
        ("VMDK", starts(b"KDMV") || starts(b"# Disk DescriptorFile"), convert),
        ("VHDX", starts(b"vhdxfile"), convert),
        ("VHD", starts(b"conectix"), convert),
        ("VDI", beginning.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]), convert),
        ("QED", starts(b"QED\0"), convert),
        ("gzip", starts(&[0x1f, 0x8b, 0x08]), unpack),
        ("xz", starts(b"\xfd7zXZ\0"), unpack),
        ("zstd", starts(&[0x28, 0xb5, 0x2f, 0xfd]), unpack),
    ];
    match others.iter().find(|(_, is_it, _)| *is_it) {
        Some((name, _, advice)) => {
            Err(ImageError::Refused(format!("the image is {name}, not raw or qcow2: {advice}")))
        }
        None => Ok(ReadFormat::Raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(asked: ReadFormat, beginning: &[u8], expected: Result<ReadFormat, &str>) {
        match (choose(asked, beginning), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn formats_are_told_from_their_first_bytes() {
        check(ReadFormat::Auto, b"QFI\xfb...", Ok(ReadFormat::Qcow2));
        check(ReadFormat::Auto, b"", Ok(ReadFormat::Raw));
        check(ReadFormat::Auto, &[0; 512], Ok(ReadFormat::Raw));
        check(ReadFormat::Auto, b"KDMV....", Err("VMDK"));
        check(ReadFormat::Auto, b"\x1f\x8b\x08....", Err("unpack it first"));
        check(ReadFormat::Raw, b"KDMV....", Ok(ReadFormat::Raw));
        check(ReadFormat::Raw, b"QFI\xfb...", Ok(ReadFormat::Raw));
        check(ReadFormat::Qcow2, b"KDMV....", Err("not qcow2"));
    }

    #[test]
    fn a_pipe_keeps_its_probed_beginning_and_refuses_qcow2() {
        let mut opened = open_pipe(Cursor::new(vec![3; 1000]), ReadFormat::Auto).unwrap();
        assert_eq!(opened.source.next_extent().unwrap().unwrap().length().0, 1000);
        let refused = open_pipe(Cursor::new(b"QFI\xfb".to_vec()), ReadFormat::Auto);
        assert!(refused.is_err_and(|error| error.to_string().contains("pipe")));
    }
}
