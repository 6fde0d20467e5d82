//! The plugin's socket: handed over by systemd, or made here.
//!
//! With socket activation (sd_listen_fds(3)) dockerd can connect before the plugin runs, and waits instead of starting
//! its containers without their volumes.

use rustix::io::{FdFlags, fcntl_setfd};
use std::{
    fs, io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
};

/// `SD_LISTEN_FDS_START`.
const FIRST_FD: i32 = 3;

/// The socket that systemd listens on for us, if it does.
///
/// # Safety
///
/// To be called once, before anything else in the process opens or takes over descriptor 3.
pub unsafe fn from_systemd() -> Option<UnixListener> {
    let is_number =
        |variable: &str, number: u32| std::env::var(variable).is_ok_and(|text| text == number.to_string());
    if !is_number("LISTEN_PID", std::process::id()) || !is_number("LISTEN_FDS", 1) {
        return None;
    }
    // SAFETY: systemd gave this process descriptor 3, and by this function's contract nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(FIRST_FD) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(UnixListener::from(fd))
}

/// Listens on a path, in the place of a plugin that is no longer there.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|directory| !directory.is_dir()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there and is no socket"));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another plugin serves there"));
        }
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_plugins_socket_is_replaced_and_a_living_ones_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugins/ovs.sock");
        let first = listen(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let second = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "not ours").unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"not ours");
    }
}
