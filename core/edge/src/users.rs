//! Who uses a mount, for the log: from `/proc` and `/sys` alone, without touching the mount.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Users that are named at most.
const USER_COUNT_MAX: usize = 20;

/// Loop devices over files below `dir`, and processes with files below it open: `loop3`, `qemu-system-x86 (4711)`.
pub fn below(dir: &Path) -> Vec<String> {
    let mut users: Vec<String> = loops_below(dir).into_iter().chain(processes_below(dir)).collect();
    users.truncate(USER_COUNT_MAX);
    users
}

fn loops_below(dir: &Path) -> Vec<String> {
    children(Path::new("/sys/block"))
        .filter(|device| {
            let backing = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
            Path::new(backing.trim_end()).starts_with(dir)
        })
        .filter_map(|device| device.file_name().map(|name| name.to_string_lossy().into_owned()))
        .collect()
}

fn processes_below(dir: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let is_user = |process: &PathBuf| {
        let links =
            ["cwd", "root"].into_iter().map(|link| process.join(link)).chain(children(&process.join("fd")));
        links.filter_map(|link| fs::read_link(link).ok()).any(|target| target.starts_with(dir))
    };
    children(Path::new("/proc"))
        .filter_map(|process| {
            let pid = process.file_name()?.to_str()?.to_owned();
            let is_process = pid.bytes().all(|byte| byte.is_ascii_digit()) && pid != own;
            (is_process && is_user(&process)).then(|| {
                let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
                format!("{} ({pid})", name.trim_end())
            })
        })
        .collect()
}

fn children(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok().map(|entry| entry.path()))
}
