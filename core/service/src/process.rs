//! Folders, and what this process asks of the kernel so that it keeps serving when memory runs out. All of it is best effort: what
//! is refused is logged, once, and ovsd goes on.
//!
//! A guest's dirty pages may be written back through this process. If it then waits for memory that can only be freed
//! by that write-back, everything hangs. So: it is marked as an I/O flusher (its allocations never wait for
//! write-back), what it has touched stays in memory, and the OOM killer looks elsewhere first. The unit file adds the
//! rest: a slice of its own and no memory limit.

use std::{fs, io, path::Path};

/// Makes a folder and those above it, each as durable as what will be in it: the folder that names a new one is synced.
pub fn make_durable_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_durable_folder(above)?;
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => {
                return Err(error);
            }
            _ => fs::File::open(above)?.sync_all()?,
        }
    }
    Ok(())
}

/// Marks this process, and threads made later, as one that block I/O depends on. Call before any thread exists: the
/// mark is per thread and inherited (prctl(2), PR_SET_IO_FLUSHER, needs CAP_SYS_RESOURCE).
pub fn become_io_flusher() -> io::Result<()> {
    Ok(rustix::process::configure_io_flusher_behavior(true)?)
}

/// Four arenas of malloc, and not eight per processor: each keeps what its threads have freed, and the engine's thread has nearly all. With
/// fewer it waits for locks that the threads hold which work for it (an eighth of its time where maps are paged). Call before any
/// thread exists.
pub fn bound_arenas() {
    // SAFETY: it takes two numbers and changes nothing but how malloc chooses arenas; there is no other thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 4) };
}

/// Keeps in memory what this process has touched and will touch; pages come in as they are touched, so that unused
/// stacks cost nothing.
pub fn lock_memory() -> io::Result<()> {
    use rustix::mm::MlockAllFlags;
    Ok(rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}

/// Tells the OOM killer that the vDisks of every guest hang on this process.
pub fn avoid_oom_killer() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "-900")
}

/// Raises the soft limit of open files to the hard one: every connection and every vDisk's socket is one.
pub fn raise_file_limit() -> io::Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}
