//! Where an export goes: a new file that appears when it is complete, a device, a pipe.

use crate::{
    failure::Failure,
    image::{
        Sink,
        format::WriteFormat,
        qcow2,
        sink::{Device, Pipe, SparseFile},
    },
};
use ovs_api::{Problem, ProblemKind};
use ovs_units::ByteCount;
use rustix::fs::OFlags;
use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, IsTerminal, Seek, SeekFrom},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// What is to be done once everything is written.
pub(super) enum Destination {
    /// The file gets its name; dropped before that, it is gone.
    File { temporary: NamedTempFile, path: PathBuf, may_replace: bool },
    /// It is where it belongs.
    InPlace,
}

/// Opens the destination, and refuses what cannot work before any data moves.
pub(super) fn open(
    path: &Path,
    format: WriteFormat,
    may_replace: bool,
) -> Result<(Box<dyn Sink>, Destination), Failure> {
    if path.as_os_str() == "-" {
        return pipe(File::from(duplicate(io::stdout())?), format);
    }
    // Through links: the file that they lead to is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let kind = match fs::metadata(&path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(refused(&path, &error)),
    };
    match kind {
        Some(kind) if kind.is_dir() => Err(Failure::new(
            ProblemKind::Invalid,
            format!("{} is a directory: name a file in it", path.display()),
        )),
        Some(kind) if kind.is_file() || kind.is_block_device() => {
            if !may_replace {
                let detail = format!("{} exists: --force replaces what it holds", path.display());
                return Err(Failure::new(ProblemKind::Exists, detail));
            }
            if kind.is_file() { new_file(path, format, true) } else { device(&path, format) }
        }
        Some(_) => {
            let file = OpenOptions::new().write(true).open(&path).map_err(|error| refused(&path, &error))?;
            pipe(file, format)
        }
        None => new_file(path, format, may_replace),
    }
}

impl Destination {
    /// Everything is written and stable: the file gets its name, which is made stable too.
    pub fn publish(self) -> Result<(), Failure> {
        let Destination::File { temporary, path, may_replace } = self else { return Ok(()) };
        let persisted = match may_replace {
            true => temporary.persist(&path),
            false => temporary.persist_noclobber(&path),
        };
        persisted.map_err(|error| refused(&path, &error.error))?;
        let directory = File::open(directory_of(&path)).and_then(|directory| directory.sync_all());
        directory.map_err(|error| refused(&path, &error))
    }
}

fn new_file(
    path: PathBuf,
    format: WriteFormat,
    may_replace: bool,
) -> Result<(Box<dyn Sink>, Destination), Failure> {
    let temporary = tempfile::Builder::new()
        .prefix(".ovs-export-")
        .suffix(".part")
        // As for any new file: the umask takes its part.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory_of(&path));
    let temporary = temporary.map_err(|error| refused(&path, &error))?;
    let file = File::from(duplicate(temporary.as_file())?);
    let sink: Box<dyn Sink> = match format {
        WriteFormat::Raw => Box::new(SparseFile::new(file)),
        WriteFormat::Qcow2 => Box::new(qcow2::Writer::new(file)),
    };
    Ok((sink, Destination::File { temporary, path, may_replace }))
}

fn device(path: &Path, format: WriteFormat) -> Result<(Box<dyn Sink>, Destination), Failure> {
    if format != WriteFormat::Raw {
        let problem = Problem::field("--format", "qcow2", "raw, since FILE is a device");
        return Err(Failure::usage(problem));
    }
    // Exclusive: a device that is mounted or otherwise in use is refused by the kernel.
    let options = OpenOptions::new().write(true).custom_flags(OFlags::EXCL.bits() as i32).open(path);
    let mut file = options.map_err(|error| refused(path, &error))?;
    let size = file.seek(SeekFrom::End(0)).map_err(|error| refused(path, &error))?;
    Ok((Box::new(Device::new(file, ByteCount(size))), Destination::InPlace))
}

fn pipe(file: File, format: WriteFormat) -> Result<(Box<dyn Sink>, Destination), Failure> {
    if format != WriteFormat::Raw {
        let allowed = "raw for a pipe, since the header of qcow2 is written last: export to a file";
        return Err(Failure::usage(Problem::field("--format", "qcow2", allowed)));
    }
    if file.is_terminal() {
        let allowed = "a pipe or a file, not a terminal";
        return Err(Failure::usage(Problem::field("FILE", "-", allowed)));
    }
    Ok((Box::new(Pipe::new(file)), Destination::InPlace))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn duplicate(file: impl AsFd) -> Result<std::os::fd::OwnedFd, Failure> {
    let duplicated = rustix::io::fcntl_dupfd_cloexec(file, 0);
    duplicated
        .map_err(|error| Failure::new(ProblemKind::Internal, format!("cannot duplicate a file: {error}")))
}

fn refused(path: &Path, error: &io::Error) -> Failure {
    let kind = if error.kind() == io::ErrorKind::AlreadyExists {
        ProblemKind::Exists
    } else {
        ProblemKind::Unavailable
    };
    Failure::new(kind, format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Extent;
    use ovs_units::ByteOffset;

    fn put(mut sink: Box<dyn Sink>) {
        sink.put(Extent::Data { start: ByteOffset(0), bytes: vec![7; 4096].into() }).unwrap();
        sink.finish().unwrap();
    }

    fn names(directory: &Path) -> Vec<String> {
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_file_appears_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.raw");
        let (sink, destination) = open(&path, WriteFormat::Raw, false).unwrap();
        put(sink);
        assert!(!path.exists());
        destination.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), [7; 4096]);
        assert_eq!(names(directory.path()), ["x.raw"]);
    }

    #[test]
    fn an_export_given_up_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (sink, destination) = open(&directory.path().join("x"), WriteFormat::Qcow2, false).unwrap();
        put(sink);
        drop(destination);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn nothing_is_replaced_without_force() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        fs::write(&path, "old").unwrap();
        assert!(open(&path, WriteFormat::Raw, false).is_err_and(|failure| failure.is(ProblemKind::Exists)));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let (sink, destination) = open(&link, WriteFormat::Raw, true).unwrap();
        put(sink);
        destination.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), [7; 4096]);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_file_made_meanwhile_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let (sink, destination) = open(&path, WriteFormat::Raw, false).unwrap();
        put(sink);
        fs::write(&path, "new").unwrap();
        assert!(destination.publish().unwrap_err().is(ProblemKind::Exists));
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["x"]);
    }

    #[test]
    fn a_directory_and_a_missing_directory_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(open(directory.path(), WriteFormat::Raw, true).is_err());
        assert!(open(&directory.path().join("no/x"), WriteFormat::Raw, false).is_err());
    }

    #[test]
    fn a_named_pipe_is_written_to_and_takes_raw_only() {
        let path = Path::new("/dev/null");
        let (sink, destination) = open(path, WriteFormat::Raw, false).unwrap();
        put(sink);
        destination.publish().unwrap();
        assert!(matches!(open(path, WriteFormat::Qcow2, false), Err(Failure::Usage(_))));
    }
}
