//! File systems on a device: make, check, mount, prepare, grow.

use super::{Device, FormatPlan, HostError, program};
use crate::{
    filesystem_options::MountOptions,
    options::{Fstype, RootDirectory},
};
use rustix::{
    fs::{Gid, Mode, OFlags, Uid},
    io::Errno,
    mount::MountFlags,
    thread::CapabilitySet,
};
use std::{
    ffi::{CString, OsString},
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    time::Duration,
};

/// mkfs writes some MiB of metadata and nothing else: docker gives up after two minutes.
const MKFS_TIMEOUT: Duration = Duration::from_secs(90);
/// A repair is not cut short: the volume waits for it, others do not.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3600);
const GROW_TIMEOUT: Duration = Duration::from_secs(600);

/// Makes a file system. The caller syncs the device.
pub async fn format(device: &Device, plan: &FormatPlan) -> Result<(), HostError> {
    let mut args: Vec<OsString> = Vec::new();
    let mut words = |words: &[&str]| args.extend(words.iter().map(OsString::from));
    let program = match plan.fstype {
        Fstype::Ext4 => {
            // A fresh vDisk is thin: nothing to discard. No reserve for root: it is not a root file system.
            words(&["-q", "-F", "-b", "4096"]);
            if plan.options.get("-m").is_none() {
                words(&["-m", "0"]);
            }
            let mut extended = "nodiscard,lazy_itable_init=1,lazy_journal_init=1".to_owned();
            if plan.is_blank {
                // It reads as zeros: neither mkfs nor the kernel later need to write them.
                extended.push_str(",assume_storage_prezeroed=1");
            }
            if let Some(more) = plan.options.get("-E") {
                extended = format!("{extended},{more}");
            }
            words(&["-E", &extended]);
            "mkfs.ext4"
        }
        Fstype::Xfs => {
            words(&["-q", "-f", "-K"]);
            "mkfs.xfs"
        }
    };
    for (flag, value) in plan.options.pairs().filter(|(flag, _)| *flag != "-E") {
        args.extend([flag.into(), value.into()]);
    }
    args.push(device.path.clone().into());
    program::run_well(program, &args, MKFS_TIMEOUT).await.map_err(HostError::Failed)
}

/// Repairs what can be repaired without asking. XFS has no such program: mounting replays its log.
pub async fn check(device: &Device, fstype: Fstype) -> Result<(), HostError> {
    if fstype == Fstype::Xfs {
        return Ok(());
    }
    let path = device.path.display();
    let args = [OsString::from("-p"), device.path.clone().into()];
    let ended = program::run("e2fsck", &args, CHECK_TIMEOUT).await.map_err(HostError::Failed)?;
    match ended.code {
        // Bits: 1 errors corrected, 2 and a reboot is advised (for a root file system).
        Some(code @ 0..=3) => {
            if code != 0 {
                tracing::warn!(device = %path, "e2fsck: {}", ended.last_words);
            }
            Ok(())
        }
        _ => Err(HostError::Failed(format!(
            "e2fsck -p {path} could not repair the file system by itself: {}",
            ended.last_words
        ))),
    }
}

/// Mounts it.
pub fn mount(
    device: &Device,
    target: &Path,
    fstype: Fstype,
    options: &MountOptions,
) -> Result<(), HostError> {
    make_target(target).map_err(|error| HostError::Failed(format!("{}: {error}", target.display())))?;
    let (flags, data) = mount_flags(fstype, options);
    let data = CString::new(data).map_err(|_| HostError::Failed("mount options with NUL".to_owned()))?;
    rustix::mount::mount(&device.path, target, fstype.as_str(), flags, data.as_c_str()).map_err(|errno| {
        let hint = match errno {
            Errno::INVAL => "; a wrong mount option or a damaged file system: the kernel's log says which",
            Errno::NODEV => "; this kernel does not have that file system",
            _ => "",
        };
        HostError::Failed(format!("mounting {} as {fstype}: {errno}{hint}", device.path.display()))
    })
}

/// While nothing is mounted on it, nobody may write into the directory below.
fn make_target(target: &Path) -> io::Result<()> {
    if let Some(parent) = target.parent().filter(|parent| !parent.is_dir()) {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn mount_flags(fstype: Fstype, options: &MountOptions) -> (MountFlags, String) {
    // The kernel's default after an error, `continue`, loses writes silently. XFS shuts down by itself; its UUID is
    // ours to repeat, since clones carry their origin's.
    let mut data = vec![match fstype {
        Fstype::Ext4 => "errors=remount-ro",
        Fstype::Xfs => "nouuid",
    }];
    let mut flags = MountFlags::empty();
    let mut discard = true;
    for option in options.iter() {
        match option {
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "lazytime" => flags |= MountFlags::LAZYTIME,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodev" => flags |= MountFlags::NODEV,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "noexec" => flags |= MountFlags::NOEXEC,
            "nosuid" => flags |= MountFlags::NOSUID,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "discard" => discard = true,
            "nodiscard" => discard = false,
            other => data.push(other),
        }
    }
    // What is deleted goes back to the pool: a discard is only a change of the map here.
    data.push(if discard { "discard" } else { "nodiscard" });
    (flags, data.join(","))
}

/// Makes `directory` in a mounted file system if `make` says so, and sets owner and mode where asked for. It must be a
/// directory: a clone's file system is foreign, and through a symbolic link a container would get the host's files.
pub fn prepare(target: &Path, directory: &Path, root: &RootDirectory, make: bool) -> io::Result<()> {
    let name = directory.strip_prefix(target).map_err(io::Error::other)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut fd = rustix::fs::open(target, flags, Mode::empty())?;
    if name != Path::new("") {
        if make {
            match rustix::fs::mkdirat(&fd, name, Mode::from_raw_mode(0o755)) {
                // Explicitly, whatever the umask.
                Ok(()) => {
                    rustix::fs::chmodat(&fd, name, Mode::from_raw_mode(0o755), rustix::fs::AtFlags::empty())?
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        fd = rustix::fs::openat(&fd, name, flags, Mode::empty())?;
    }
    if root.uid.is_some() || root.gid.is_some() {
        rustix::fs::fchown(&fd, root.uid.map(Uid::from_raw), root.gid.map(Gid::from_raw))?;
    }
    // After the owner: a change of owner takes the set-id bits away.
    if let Some(mode) = root.mode {
        fs::File::from(fd.try_clone()?).set_permissions(fs::Permissions::from_mode(mode))?;
    }
    if make || *root != RootDirectory::default() {
        rustix::fs::syncfs(&fd)?;
    }
    Ok(())
}

/// Lets a mounted file system grow to its device's size; nothing happens if it has it.
pub async fn grow(device: &Device, fstype: Fstype, target: &Path) -> Result<(), HostError> {
    let grown = match fstype {
        Fstype::Ext4 => program::run_well("resize2fs", &[&device.path], GROW_TIMEOUT).await,
        Fstype::Xfs => {
            program::run_well("xfs_growfs", &["-d".as_ref(), target.as_os_str()], GROW_TIMEOUT).await
        }
    };
    grown.map_err(|error| {
        let hint = match fstype == Fstype::Ext4 && !may_grow_mounted_ext4() {
            true => "; this process lacks CAP_SYS_RESOURCE, so it grows when it is mounted the next time",
            false => "",
        };
        HostError::Failed(format!("{error}{hint}"))
    })
}

/// ext4 wants CAP_SYS_RESOURCE for growing while it is mounted, which root in a container may not have.
pub fn may_grow_mounted_ext4() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}

/// Lets an ext4 that is mounted nowhere grow. resize2fs marks it as having errors while it is at it, so that what a
/// crash leaves is checked before the next mount.
pub async fn grow_unmounted_ext4(device: &Device) -> Result<(), HostError> {
    let path = device.path.as_os_str();
    let ended = program::run("e2fsck", &["-f".as_ref(), "-p".as_ref(), path], CHECK_TIMEOUT).await;
    match ended.map_err(HostError::Failed)? {
        program::Ended { code: Some(0..=3), .. } => {}
        program::Ended { last_words, .. } => return Err(HostError::Failed(format!("e2fsck: {last_words}"))),
    }
    program::run_well("resize2fs", &[path], CHECK_TIMEOUT).await.map_err(HostError::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn check_flags(fstype: Fstype, options: &str, flags: MountFlags, data: &str) {
        let options = match options {
            "" => MountOptions::default(),
            text => MountOptions::parse(Some(fstype), text).unwrap(),
        };
        assert_eq!(mount_flags(fstype, &options), (flags, data.to_owned()), "{options}");
    }

    #[test]
    fn what_mount_is_given() {
        check_flags(Fstype::Ext4, "", MountFlags::empty(), "errors=remount-ro,discard");
        check_flags(Fstype::Ext4, "noatime,nodiscard", MountFlags::NOATIME, "errors=remount-ro,nodiscard");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        check_flags(Fstype::Ext4, "nosuid,commit=9,nodev", flags, "errors=remount-ro,commit=9,discard");
        check_flags(Fstype::Xfs, "logbufs=8", MountFlags::empty(), "nouuid,logbufs=8,discard");
    }

    #[test]
    fn the_volumes_directory_is_made_and_not_followed() {
        let target = tempfile::tempdir().unwrap();
        let root = RootDirectory { uid: None, gid: None, mode: Some(0o1750) };
        let data = target.path().join("data");
        assert!(prepare(target.path(), &data, &root, false).is_err(), "not there");
        prepare(target.path(), &data, &root, true).unwrap();
        prepare(target.path(), &data, &root, true).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o7777, 0o1750);
        prepare(target.path(), &data, &RootDirectory::default(), false).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o7777, 0o1750, "left as it is");
        prepare(target.path(), target.path(), &RootDirectory::default(), false).unwrap();

        let elsewhere = tempfile::tempdir().unwrap();
        let link = target.path().join("link");
        symlink(elsewhere.path(), &link).unwrap();
        assert!(prepare(target.path(), &link, &root, true).is_err());
        assert_eq!(fs::metadata(elsewhere.path()).unwrap().permissions().mode() & 0o1000, 0);
    }
}
