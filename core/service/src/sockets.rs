//! Sockets: making, owning and serving them.
//!
//! Each vDisk has a socket of its own as long as it is there (not in the trash), so that a VM can be confined to its own
//! disks. Who may open it: the labels `nbd.socket.owner`, `nbd.socket.group` and `nbd.socket.mode` of the vDisk, else
//! the configuration.

use crate::{device::Door, tcp::SecuredStream, volumes::Volumes};
use anyhow::Context;
use ovs_cluster::catalogue::VdiskRecord;
use ovs_nbd::{Server, serve_secured, serve_unix};
use ovs_units::VdiskId;
use rustix::fs::{Gid, Mode, Uid, chmod, chown};
use std::{
    cell::RefCell,
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};
use tokio::{
    net::UnixListener,
    task::{JoinHandle, spawn_local},
};
use tokio_util::sync::CancellationToken;

/// The vDisk's label with the user of its socket.
pub const LABEL_OWNER: &str = "nbd.socket.owner";
/// The vDisk's label with the group of its socket.
pub const LABEL_GROUP: &str = "nbd.socket.group";
/// The vDisk's label with the permission bits of its socket, in octal.
pub const LABEL_MODE: &str = "nbd.socket.mode";

/// Who may open a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// A user, unless it is ours.
    pub owner: Option<u32>,
    /// A group, unless it is ours.
    pub group: Option<u32>,
    /// Permission bits.
    pub mode: u32,
}

/// The sockets of vDisks. One thread.
pub struct VdiskSockets {
    server: Rc<Server>,
    open: RefCell<HashMap<VdiskId, OpenSocket>>,
    stop: CancellationToken,
    /// Accept loops of sockets that were closed and drain.
    draining: RefCell<Vec<JoinHandle<()>>>,
}

struct OpenSocket {
    path: PathBuf,
    access: Access,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl VdiskSockets {
    /// None yet.
    pub fn new(server: Rc<Server>) -> VdiskSockets {
        VdiskSockets {
            server,
            open: RefCell::default(),
            stop: CancellationToken::new(),
            draining: RefCell::default(),
        }
    }

    /// The server of all NBD sockets.
    pub fn server(&self) -> &Rc<Server> {
        &self.server
    }

    /// Removes what a dead ovsd left: some of its vDisks may be gone. Nobody else serves there while we have the registry;
    /// we do so already where a registry was rebuilt.
    pub fn remove_dead(&self, folder: &Path) -> std::io::Result<()> {
        let open = self.open.borrow();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let is_ours = open.values().any(|socket| socket.path == path);
            if !is_ours && path.extension().is_some_and(|extension| extension == "sock") {
                remove(&path);
            }
        }
        Ok(())
    }

    /// Serves the common socket.
    pub fn open_common(&self, volumes: &Rc<Volumes>) -> anyhow::Result<()> {
        let group = group_id(&volumes.settings.socket_group);
        let access = Access { owner: None, group, mode: 0o660 };
        let listener = bind(&volumes.settings.paths.nbd_socket(), access)?;
        let door = Rc::new(Door::to_all(volumes.clone()));
        let serving = spawn_local(serve_unix(self.server.clone(), listener, door, self.stop.child_token()));
        self.draining.borrow_mut().push(serving);
        Ok(())
    }

    /// Serves those that come over TCP, by the names of the common socket.
    pub fn open_tcp(&self, volumes: &Rc<Volumes>, secured: SecuredStream) {
        let door = Rc::new(Door::to_all(volumes.clone()));
        let serving = spawn_local(serve_secured(self.server.clone(), secured, door, self.stop.child_token()));
        self.draining.borrow_mut().push(serving);
    }

    /// Serves a vDisk's own socket; with new access if it is open already. A socket that cannot be made is logged: the
    /// common one serves the vDisk as well.
    pub async fn open(&self, volumes: &Rc<Volumes>, record: &VdiskRecord) {
        if self.stop.is_cancelled() {
            return;
        }
        let access = access_of(record, volumes);
        if let Some(socket) = self.open.borrow_mut().get_mut(&record.id) {
            if socket.access != access {
                match give_access(&socket.path, access) {
                    Ok(()) => socket.access = access,
                    Err(error) => {
                        tracing::error!(vdisk = %record.id, %error, "its socket keeps its old access")
                    }
                }
            }
            return;
        }
        let path = volumes.settings.paths.nbd_vdisk_socket(record.id);
        match bind(&path, access) {
            Ok(listener) => {
                let stop = self.stop.child_token();
                let door = Rc::new(Door::to_one(volumes.clone(), record.id));
                let serving = spawn_local(serve_unix(self.server.clone(), listener, door, stop.clone()));
                self.open.borrow_mut().insert(record.id, OpenSocket { path, access, stop, serving });
            }
            Err(error) => {
                tracing::error!(vdisk = %record.id, error = format!("{error:#}"), "its socket is not there")
            }
        }
    }

    /// Removes a vDisk's own socket; its connections end.
    pub fn close(&self, id: VdiskId) {
        if let Some(socket) = self.open.borrow_mut().remove(&id) {
            socket.stop.cancel();
            remove(&socket.path);
            let mut draining = self.draining.borrow_mut();
            draining.retain(|serving| !serving.is_finished());
            draining.push(socket.serving);
        }
    }

    /// Closes all of them; comes back when everything in flight is done.
    pub async fn stop(&self) {
        self.stop.cancel();
        let open: Vec<OpenSocket> = self.open.borrow_mut().drain().map(|(_, socket)| socket).collect();
        let draining = std::mem::take(&mut *self.draining.borrow_mut());
        for socket in open {
            remove(&socket.path);
            let _ = socket.serving.await;
        }
        for serving in draining {
            let _ = serving.await;
        }
    }
}

fn access_of(record: &VdiskRecord, volumes: &Volumes) -> Access {
    let label = |key: &str| record.labels.get(key).map(String::as_str);
    let mode =
        label(LABEL_MODE).and_then(|mode| u32::from_str_radix(mode, 8).ok()).filter(|mode| *mode <= 0o777);
    Access {
        owner: label(LABEL_OWNER).and_then(user_id),
        group: label(LABEL_GROUP).and_then(group_id).or_else(|| group_id(&volumes.settings.socket_group)),
        mode: mode.unwrap_or(volumes.settings.socket_mode),
    }
}

/// Binds a unix socket that nobody may open before it has its owner and mode. What a dead ovsd left there goes.
pub fn bind(path: &Path, access: Access) -> anyhow::Result<UnixListener> {
    remove(path);
    // Made in a folder that only we may enter, then renamed to where clients look: there is no moment at which it
    // has another mode than it should, and no need to change the process's umask beside other threads.
    let folder = path.parent().context("a socket's path has a folder")?;
    let private = folder.join(".binding");
    match fs::create_dir(&private) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("making {}", private.display()));
        }
        _ => chmod(&private, Mode::from_raw_mode(0o700)).context("closing the folder of new sockets")?,
    }
    let new = private.join("s");
    remove(&new);
    let listener = UnixListener::bind(&new)
        .with_context(|| format!("binding {} ({} bytes)", path.display(), path.as_os_str().len()))?;
    give_access(&new, access)?;
    fs::rename(&new, path).with_context(|| format!("naming {}", path.display()))?;
    Ok(listener)
}

fn give_access(path: &Path, access: Access) -> anyhow::Result<()> {
    let (owner, group) = (access.owner.map(Uid::from_raw), access.group.map(Gid::from_raw));
    if (owner.is_some() || group.is_some())
        && let Err(error) = chown(path, owner, group)
    {
        // Without privileges the socket stays ours alone, which is the safe side.
        tracing::warn!(path = %path.display(), %error, "the socket's owner was not changed");
    }
    chmod(path, Mode::from_raw_mode(access.mode)).with_context(|| format!("mode of {}", path.display()))
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a socket was not removed");
    }
}

/// The number of a group: given as such, or by its name in /etc/group.
pub fn group_id(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| id_in("/etc/group", name))
}

/// The number of a user: given as such, or by its name in /etc/passwd.
pub fn user_id(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| id_in("/etc/passwd", name))
}

/// The third field of the line whose first is `name` (passwd(5), group(5)).
fn id_in(file: &str, name: &str) -> Option<u32> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_socket_has_its_mode_from_the_first_moment_and_replaces_a_dead_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        for mode in [0o600, 0o666] {
            let _listener = bind(&path, Access { owner: None, group: None, mode }).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            tokio::net::UnixStream::connect(&path).await.unwrap();
        }
    }

    #[test]
    fn users_and_groups_by_name_and_number() {
        assert_eq!((user_id("root"), group_id("root"), user_id("1234")), (Some(0), Some(0), Some(1234)));
        assert_eq!(user_id("no such user"), None);
    }
}
