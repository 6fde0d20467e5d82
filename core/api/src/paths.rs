//! Where everything of one installation lives: the four places of an ovsd, all below `--root` when one is given.

use ovs_units::{Name, VdiskId};
use std::path::{Path, PathBuf};

/// The paths of one ovsd and of the programs around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
}

/// How long QEMU waits for ovsd to come back before it fails the guest's I/O; QEMU's own default is not at all.
const QEMU_RECONNECT_DELAY_S: u64 = 300;

impl Paths {
    /// The paths below `root`, or the system's own with `None`. The directory need not exist.
    pub fn new(root: Option<&Path>) -> Paths {
        Paths { root: root.unwrap_or(Path::new("/")).to_owned() }
    }

    /// What `--root` said, `/` without.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The configuration of ovsd: `/etc/ovs/ovsd.yaml`.
    pub fn config_file(&self) -> PathBuf {
        self.root.join("etc/ovs/ovsd.yaml")
    }

    /// What must survive a reboot: `/var/lib/ovs`.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("var/lib/ovs")
    }

    /// Sockets and what a reboot may lose: `/run/ovs`.
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run/ovs")
    }

    /// The RPC socket: `/run/ovs/ovsd.sock`.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("ovsd.sock")
    }

    /// The socket of ovsd-edge's own RPC: `/run/ovs/edge.sock`.
    pub fn edge_socket(&self) -> PathBuf {
        self.run_dir().join("edge.sock")
    }

    /// The NBD socket that serves every vDisk: `/run/ovs/nbd.sock`.
    pub fn nbd_socket(&self) -> PathBuf {
        self.run_dir().join("nbd.sock")
    }

    /// The directory of the sockets that serve one vDisk each: `/run/ovs/nbd`.
    pub fn nbd_dir(&self) -> PathBuf {
        self.run_dir().join("nbd")
    }

    /// The NBD socket of one vDisk: `/run/ovs/nbd/<uuid>.sock`.
    pub fn nbd_vdisk_socket(&self, vdisk: VdiskId) -> PathBuf {
        self.nbd_dir().join(format!("{vdisk}.sock"))
    }

    /// Where vPools are mounted: `/mnt/ovs`.
    pub fn mount_root(&self) -> PathBuf {
        self.root.join("mnt/ovs")
    }

    /// The mount point of one vPool: `/mnt/ovs/<vpool>`.
    pub fn mount_dir(&self, vpool: &Name) -> PathBuf {
        self.mount_root().join(vpool.as_str())
    }

    /// A vDisk as a file: `/mnt/ovs/<vpool>/<name>.raw`.
    pub fn fuse_file(&self, vpool: &Name, vdisk: &Name) -> PathBuf {
        self.mount_dir(vpool).join(format!("{vdisk}.raw"))
    }

    /// The NBD URI of a vDisk's own socket, as nbdinfo, nbdcopy and qemu-img take it (NBD's doc/uri.md).
    pub fn nbd_uri(&self, vdisk: VdiskId) -> String {
        format!("nbd+unix:///?socket={}", percent_encode(&self.nbd_vdisk_socket(vdisk).to_string_lossy()))
    }

    /// The same for QEMU, as a file name that also says to wait for ovsd: an NBD URI has no word for that.
    pub fn qemu_filename(&self, vdisk: VdiskId) -> String {
        let blockdev = serde_json::json!({
            "driver": "raw",
            "file": {
                "driver": "nbd",
                "server": { "type": "unix", "path": self.nbd_vdisk_socket(vdisk).to_string_lossy() },
                "reconnect-delay": QEMU_RECONNECT_DELAY_S,
            },
        });
        format!("json:{blockdev}")
    }
}

/// Everything but the unreserved characters of RFC 3986 and `/` as `%XX`.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_holds_all_four_places() {
        let paths = Paths::new(Some(Path::new("/tmp/o v")));
        let vpool = Name::new("p").unwrap();
        assert_eq!(paths.socket(), Path::new("/tmp/o v/run/ovs/ovsd.sock"));
        assert_eq!(paths.config_file(), Path::new("/tmp/o v/etc/ovs/ovsd.yaml"));
        assert_eq!(paths.state_dir(), Path::new("/tmp/o v/var/lib/ovs"));
        assert_eq!(paths.fuse_file(&vpool, &vpool), Path::new("/tmp/o v/mnt/ovs/p/p.raw"));
        let uri = paths.nbd_uri(VdiskId(uuid::Uuid::nil()));
        assert_eq!(
            uri,
            "nbd+unix:///?socket=/tmp/o%20v/run/ovs/nbd/00000000-0000-0000-0000-000000000000.sock"
        );
    }

    #[test]
    fn without_a_root_the_paths_are_the_systems() {
        let paths = Paths::new(None);
        assert_eq!(paths.socket(), Path::new("/run/ovs/ovsd.sock"));
        assert_eq!(paths.nbd_socket(), Path::new("/run/ovs/nbd.sock"));
        assert_eq!(paths.mount_root(), Path::new("/mnt/ovs"));
    }
}
