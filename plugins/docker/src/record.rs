//! What must outlive the plugin: one small file per volume that this host uses.
//!
//! ```text
//! <state-dir>/volumes/<vdisk uuid>.json     written to .<uuid>.json.new, synced, renamed, directory synced
//! ```
//!
//! A file is written before the answer that depends on it. It names the references, the device and the boot that they
//! belong to: after a reboot there are no containers and no devices, so both are dropped when read. A file that
//! cannot be read is set aside, never guessed at; the reconciler finds what is mounted in any case.

use crate::{host::Device, refs::Refs};
use ovs_units::{Name, VdiskId};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The newest form of the file that this program reads.
const VERSION: u32 = 1;
/// A record is far smaller; a larger file is not one of ours.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// One volume in use on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Whose data it is; outlives renames.
    pub vdisk: VdiskId,
    /// The vPool, for messages.
    pub vpool: Name,
    /// What Docker called it at the last Mount.
    pub name: Name,
    /// The directory inside the file system that containers see.
    pub directory: VolumeDirectory,
    /// The vDisk's file at the last attach.
    pub file: PathBuf,
    /// The boot that device and references belong to.
    pub boot_id: String,
    /// The device that carries it, perhaps only in a container's mount namespace by now.
    pub device: Option<Device>,
    /// Its file system is complete, and the vDisk's label says so. Until then a mount that is found is the remains of
    /// a Mount that was cut short, and is begun again.
    pub is_ready: bool,
    /// Who uses it.
    pub refs: Refs,
}

/// Which directory of the file system is the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeDirectory {
    /// `data/`, so that `lost+found` is not in the user's way.
    Data,
    /// The root, for clones of what the plugin did not make.
    Root,
}

impl VolumeDirectory {
    /// The directory below a mount point.
    pub fn below(self, target: &Path) -> PathBuf {
        match self {
            VolumeDirectory::Data => target.join("data"),
            VolumeDirectory::Root => target.to_owned(),
        }
    }

    /// As the vDisk's label writes it.
    pub fn as_label(self) -> &'static str {
        match self {
            VolumeDirectory::Data => "data",
            VolumeDirectory::Root => "root",
        }
    }
}

impl Record {
    /// A volume that nobody uses yet.
    pub fn new(
        vdisk: VdiskId,
        vpool: Name,
        name: Name,
        directory: VolumeDirectory,
        file: PathBuf,
        boot_id: &str,
    ) -> Record {
        let boot_id = boot_id.to_owned();
        Record {
            version: VERSION,
            vdisk,
            vpool,
            name,
            directory,
            file,
            boot_id,
            device: None,
            is_ready: false,
            refs: Refs::default(),
        }
    }

    /// From a file's bytes, which must be that vDisk's.
    pub fn decode(bytes: &[u8], vdisk: VdiskId) -> Result<Record, String> {
        let record: Record = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if record.version != VERSION || record.vdisk != vdisk {
            return Err(format!("version {} of vDisk {}", record.version, record.vdisk));
        }
        Ok(record)
    }

    /// A file's bytes.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }
}

/// Where records are kept.
pub trait Records: Send + Sync + 'static {
    /// All that can be read.
    fn load(&self) -> io::Result<Vec<Record>>;
    /// On stable storage when it returns.
    fn save(&self, record: &Record) -> io::Result<()>;
    /// Gone for good when it returns; succeeds if it was not there.
    fn remove(&self, vdisk: VdiskId) -> io::Result<()>;
}

/// Records as files.
pub struct RecordFiles {
    directory: PathBuf,
    boot_id: String,
}

impl RecordFiles {
    /// Makes the directory if need be. `boot_id` is that of the running kernel.
    pub fn new(directory: PathBuf, boot_id: &str) -> io::Result<RecordFiles> {
        if !directory.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
            if let Some(parent) = directory.parent() {
                sync_directory(parent)?;
            }
        }
        Ok(RecordFiles { directory, boot_id: boot_id.to_owned() })
    }

    fn path(&self, vdisk: VdiskId) -> PathBuf {
        self.directory.join(format!("{vdisk}.json"))
    }

    fn read(&self, path: &Path, vdisk: VdiskId) -> Result<Record, String> {
        let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
        if size > FILE_BYTES_MAX {
            return Err(format!("{size} bytes are too many"));
        }
        let bytes = fs::read(path).map_err(|e| e.to_string())?;
        let mut record = Record::decode(&bytes, vdisk)?;
        if record.boot_id != self.boot_id {
            record.boot_id.clone_from(&self.boot_id);
            record.device = None;
            record.refs.clear();
        }
        Ok(record)
    }
}

impl Records for RecordFiles {
    fn load(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(vdisk) = name.strip_suffix(".json").and_then(|uuid| uuid.parse().ok()) else { continue };
            match self.read(&path, vdisk) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::error!(%vdisk, %error, path = %path.display(), "state file set aside as .broken");
                    fs::rename(&path, path.with_extension("broken"))?;
                }
            }
        }
        Ok(records)
    }

    fn save(&self, record: &Record) -> io::Result<()> {
        let bytes = record.encode()?;
        let new = self.directory.join(format!(".{}.json.new", record.vdisk));
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        io::Write::write_all(&mut &file, &bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.path(record.vdisk))?;
        sync_directory(&self.directory)
    }

    fn remove(&self, vdisk: VdiskId) -> io::Result<()> {
        match fs::remove_file(self.path(vdisk)) {
            Ok(()) => sync_directory(&self.directory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory =
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fsync(directory)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refs::MountId;

    fn record(number: u128, boot_id: &str) -> Record {
        let name = |text: &str| Name::new(text).unwrap();
        let vdisk = VdiskId(uuid::Uuid::from_u128(number));
        let file = PathBuf::from("/mnt/ovs/default/v1.raw");
        let mut record =
            Record::new(vdisk, name("default"), name("v1"), VolumeDirectory::Data, file, boot_id);
        record.device = Some(Device { path: "/dev/loop7".into(), sequence: 12 });
        record.refs.mounted(&MountId::new("a").unwrap()).unwrap();
        record
    }

    #[test]
    fn records_come_back_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let files = RecordFiles::new(directory.path().join("volumes"), "boot").unwrap();
        let (one, two) = (record(1, "boot"), record(2, "boot"));
        files.save(&one).unwrap();
        files.save(&two).unwrap();
        files.remove(two.vdisk).unwrap();
        files.remove(two.vdisk).unwrap();
        let again = RecordFiles::new(directory.path().join("volumes"), "boot").unwrap();
        assert_eq!(again.load().unwrap(), [one]);
    }

    #[test]
    fn a_reboot_takes_references_and_devices() {
        let directory = tempfile::tempdir().unwrap();
        let files = RecordFiles::new(directory.path().to_owned(), "new boot").unwrap();
        files.save(&record(1, "old boot")).unwrap();
        let records = files.load().unwrap();
        assert!(records[0].refs.is_empty() && records[0].device.is_none());
        assert_eq!(records[0].boot_id, "new boot");
    }

    #[test]
    fn what_cannot_be_read_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let files = RecordFiles::new(directory.path().to_owned(), "boot").unwrap();
        let good = record(1, "boot");
        files.save(&good).unwrap();
        let text = fs::read_to_string(files.path(good.vdisk)).unwrap();
        for (number, bad) in [
            (2, String::new()),
            (3, text[..text.len() / 2].to_owned()),
            (4, text.replace("\"version\": 1", "\"version\": 99")),
            (5, "[[[[".repeat(100_000)),
            // Another vDisk's record under this name.
            (6, text.clone()),
        ] {
            fs::write(files.path(VdiskId(uuid::Uuid::from_u128(number))), bad).unwrap();
        }
        fs::write(directory.path().join(".x.json.new"), "half").unwrap();
        assert_eq!(files.load().unwrap(), [good]);
        let aside = fs::read_dir(directory.path()).unwrap().filter(|entry| {
            entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "broken")
        });
        assert_eq!(aside.count(), 5);
    }
}
