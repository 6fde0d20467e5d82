//! A vPool's own part of a backend, and its record in there.
//!
//! ```text
//!  vpool-<uuid>/                          the vPool's own folder or prefix (namespace), a backend of its own
//!  vpool-<uuid>/pool/config-<version>     its record, write-once: the highest version counts
//!  vpool-<uuid>/pool/layout-<number>      on each drive of a composite: all drives and presets (`layout.rs`)
//!  vpool-<uuid>/pool/drive-<uuid>         and which of the drives it is
//! ```

use super::problem::{from_backend, from_catalogue};
use crate::process::make_durable_folder;
use bytes::Bytes;
use futures_util::future::{Either, select};
use ovs_api::{Problem, ProblemKind};
use ovs_backend::{Backend, BackendError, ObjectName, Urgency};
use ovs_cluster::catalogue::{VpoolRecord, decode};
use ovs_volume::{Chance, Clock};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};
use tokio::sync::Semaphore;
use uuid::Uuid;

/// A vPool's record on its backend is never longer than this.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Of two puts in the same second, or while the clock is behind, one in a million takes the other's name.
const CHANCE_BITS: u32 = 20;

fn config_name(version: u64) -> ObjectName {
    // Twenty digits: names sort as versions do.
    ObjectName::new(format!("pool/config-{version:020}")).expect("digits are allowed in object names")
}

/// Stores a version of the vPool's record. A version that holds something else is a second vPool in this folder.
pub(super) async fn put_config(store: &dyn Backend, record: &VpoolRecord) -> Result<(), Problem> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| Problem::new(ProblemKind::Internal, format!("a vPool's record: {error}")))?;
    match store.put(&config_name(record.version), vec![Bytes::from(bytes)], Urgency::Reserve).await {
        Err(BackendError::Conflict { object }) => {
            let detail =
                format!("object {object} of vPool {} exists: another vPool lives there", record.name);
            Err(Problem::new(ProblemKind::InUse, detail))
        }
        other => other.map_err(from_backend),
    }
}

/// The newest version of the vPool's record on a backend. It is left as it is: the vPool may be another host's.
pub(super) async fn get_config(store: &dyn Backend) -> Result<Option<VpoolRecord>, Problem> {
    Ok(newest_config(store).await?.map(|(_, record)| record))
}

/// The same, for whoever takes the vPool in: it is there to stay.
pub(super) async fn get_lasting_config(store: &dyn Backend) -> Result<Option<VpoolRecord>, Problem> {
    let Some((name, record)) = newest_config(store).await? else { return Ok(None) };
    store.get_lasting(&name).await.map_err(from_backend)?;
    Ok(Some(record))
}

/// A version that was never finished is stepped over. One that is listed and not there may be any.
async fn newest_config(store: &dyn Backend) -> Result<Option<(ObjectName, VpoolRecord)>, Problem> {
    for version in versions(store).await?.into_iter().rev() {
        let name = config_name(version);
        let bytes = match store.get_range(&name, 0, CONFIG_BYTES_MAX).await {
            Err(BackendError::Incomplete { .. }) => continue,
            read => read.map_err(from_backend)?,
        };
        let record = decode(name.as_str(), &bytes).map_err(from_catalogue)?;
        return Ok(Some((name, record)));
    }
    Ok(None)
}

/// Stores a vPool's record as the newest. Its version is above every one that there is anything of, also of one that was never
/// finished. A drive that is silent may have one that does not show: no name is used twice, nor does an older one come after it.
/// So a version is the seconds since 1970, and 20 bits of chance (a whole number in JSON until the year 2242).
pub(super) async fn put_newest_config(
    store: &dyn Backend,
    record: &mut VpoolRecord,
    now_ms: u64,
    chance: &dyn Chance,
) -> Result<(), Problem> {
    let above = versions(store).await?.last().map_or(1, |newest| newest + 1);
    let step = chance.uuid().as_u128() as u64 & ((1 << CHANCE_BITS) - 1);
    record.version = record.version.max(above).max((now_ms / 1000) << CHANCE_BITS) + step;
    put_config(store, record).await
}

async fn versions(store: &dyn Backend) -> Result<BTreeSet<u64>, Problem> {
    let (mut versions, mut after) = (BTreeSet::new(), None);
    loop {
        let found = store.list("pool/config-", after.as_ref(), 1000).await.map_err(from_backend)?;
        let Some(last) = found.last() else { return Ok(versions) };
        // Another object's name may be a number too: only a name that we would give is a version of ours.
        let version = |name: &ObjectName| {
            let version = name.as_str().strip_prefix("pool/config-")?.parse().ok()?;
            (config_name(version) == *name).then_some(version)
        };
        versions.extend(found.iter().filter_map(|info| version(&info.name)));
        after = Some(last.name.clone());
    }
}

/// Whether a vPool's part of a backend must be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Namespace {
    New,
    Existing,
}

pub(super) async fn make_folder(clock: &dyn Clock, path: &Path) -> std::io::Result<()> {
    let path = path.to_owned();
    let made = look(clock, move || make_durable_folder(&path)).await;
    made.unwrap_or_else(|| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)))
}

/// The mark of a directory that is a drive: an empty file, so that a bare mount point is not taken for it.
pub(super) fn mark_of(root: &Path, drive: Uuid) -> PathBuf {
    root.join(format!("ovs-drive-{drive}"))
}

/// Marks a directory as a drive.
pub(super) async fn mark(clock: &dyn Clock, root: &Path, drive: Uuid) -> std::io::Result<()> {
    let (root, mark) = (root.to_owned(), mark_of(root, drive));
    let marked = look(clock, move || {
        std::fs::File::create(mark)?.sync_all()?;
        std::fs::File::open(root)?.sync_all()
    });
    marked.await.unwrap_or_else(|| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)))
}

pub(super) async fn remove_folder(path: PathBuf) -> std::io::Result<()> {
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&path)).await;
    match removed.map_err(std::io::Error::other)? {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The path with links resolved as far as it exists.
pub(super) async fn real_path(clock: &dyn Clock, path: &Path) -> Result<PathBuf, Problem> {
    let path = path.to_owned();
    let shown = path.display().to_string();
    let resolved = look(clock, move || {
        let mut missing = Vec::new();
        let mut existing = path.as_path();
        loop {
            if let Ok(mut real) = existing.canonicalize() {
                real.extend(missing.iter().rev());
                return real;
            }
            match (existing.parent(), existing.file_name()) {
                (Some(parent), Some(name)) => {
                    missing.push(name.to_owned());
                    existing = parent;
                }
                _ => return path.clone(),
            }
        }
    });
    resolved.await.ok_or_else(|| {
        Problem::new(ProblemKind::Unavailable, format!("path: the file system of {shown} does not answer"))
    })
}

/// A file system that does not answer is not waited for longer than this.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);
/// Threads that look at file systems, those included that nobody waits for any more.
static LOOKS: Semaphore = Semaphore::const_new(16);

/// Looks at a file system; `None` if that takes too long.
pub(super) async fn look<T: Send + 'static>(
    clock: &dyn Clock,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let looked = async {
        let turn = LOOKS.acquire().await;
        let looked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            look()
        });
        looked.await.ok()
    };
    in_time(clock, looked).await?
}

/// An answer, unless it takes too long.
pub(super) async fn in_time<T>(clock: &dyn Clock, answer: impl Future<Output = T>) -> Option<T> {
    match select(pin!(answer), clock.sleep(LOOK_PATIENCE)).await {
        Either::Left((answer, _)) => Some(answer),
        Either::Right(_) => None,
    }
}

/// All bytes of the file system that a folder is on, and those that are free.
pub(super) async fn folder_space(clock: &dyn Clock, path: PathBuf) -> Option<(u64, u64)> {
    let space = look(clock, move || rustix::fs::statvfs(&path).ok()).await??;
    Some((space.f_blocks.saturating_mul(space.f_frsize), space.f_bavail.saturating_mul(space.f_frsize)))
}

pub(super) fn cannot_use(path: &Path, error: &std::io::Error) -> Problem {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull => ProblemKind::NoSpace,
        _ => ProblemKind::Conflict,
    };
    Problem::new(kind, format!("path: {} cannot be used: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_backend::coded::{CodedBackend, Drive, Duty, Policy, Preset, Work};
    use ovs_backend::{FaultyBackend, MemoryBackend, Operation};
    use ovs_volume::SystemChance;
    use serde_json::json;
    use std::rc::Rc;
    use uuid::Uuid;

    fn open(drives: &[Rc<MemoryBackend>]) -> CodedBackend {
        let drive = |(number, store): (usize, &Rc<MemoryBackend>)| Drive {
            id: Uuid::from_u128(number as u128),
            node: String::new(),
            site: String::new(),
            weight: 1,
            backend: store.clone(),
            duty: Duty::Serving,
        };
        let preset = Preset::new(vec![Policy::new(2, 2, 4, 9).unwrap()]).unwrap();
        CodedBackend::new(drives.iter().enumerate().map(drive).collect(), preset, Work::Here).unwrap()
    }

    fn fragments(drives: &[Rc<MemoryBackend>], version: u64) -> Vec<(&MemoryBackend, ObjectName)> {
        let prefix = format!("{}--", config_name(version).as_str().replace('-', "-."));
        let of = |drive: &Rc<MemoryBackend>| drive.names();
        let all = drives.iter().flat_map(|drive| of(drive).into_iter().map(move |name| (&**drive, name)));
        all.filter(|(_, name)| name.as_str().starts_with(&prefix)).collect()
    }

    fn leave(drives: &[Rc<MemoryBackend>], version: u64, count: usize) {
        fragments(drives, version)
            .into_iter()
            .skip(count)
            .for_each(|(drive, name)| drive.damage(&name, None));
    }

    fn run(case: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, case);
    }

    async fn put_versions(store: &dyn Backend) {
        for version in 1..=3 {
            // Of two fragments, and two of parity.
            let record = json!({
                "format": 1, "id": Uuid::from_u128(1), "name": "p", "version": version, "state": "ready",
                "backend": Uuid::from_u128(2), "namespace": "n", "preset": "default", "on_full": "stall",
                "description": "x".repeat(50_000), "default_size_bytes": 4096, "trash_retention_s": 0,
                "created_ms": 0,
            });
            put_config(store, &serde_json::from_value(record).unwrap()).await.unwrap();
        }
    }

    #[test]
    fn a_version_that_was_never_finished_is_stepped_over_and_one_that_is_relied_on_stands() {
        run(async {
            let drives: Vec<Rc<MemoryBackend>> = (0..6).map(|_| Rc::default()).collect();
            let store = open(&drives);
            put_versions(&store).await;
            store.settle().await;
            leave(&drives, 3, 1);
            leave(&drives, 2, 2);
            let told = get_config(&open(&drives)).await.unwrap().unwrap();
            assert_eq!((told.version, fragments(&drives, 2).len()), (2, 2));
            let kept = get_lasting_config(&open(&drives)).await.unwrap().unwrap();
            assert_eq!((&kept, fragments(&drives, 2).len()), (&told, 4));
            let mut newer = VpoolRecord { default_size_bytes: 8192, ..told };
            put_newest_config(&open(&drives), &mut newer, 0, &SystemChance).await.unwrap();
            assert!(newer.version >= 4);
            assert_eq!(get_config(&open(&drives)).await.unwrap(), Some(newer));
        });
    }

    /// One was begun on a drive alone that is silent, or that a process did not live to see; then another is acknowledged.
    #[test]
    fn a_version_that_nobody_sees_is_not_taken_again_and_is_older_than_what_follows() {
        const NOW_MS: u64 = 1_800_000_000_000;
        run(async {
            let store = MemoryBackend::new();
            put_versions(&store).await;
            let known = get_config(&store).await.unwrap().unwrap();
            let mut taken = BTreeSet::new();
            for later_ms in (0..10).map(|number| number * 1000) {
                // Who puts it sees nothing of what those before have put.
                let (store, mut record) = (store.clone(), known.clone());
                put_newest_config(&store, &mut record, NOW_MS + later_ms, &SystemChance).await.unwrap();
                assert!(record.version < 1 << 53, "numbers of JSON are exact below that");
                assert!(taken.iter().all(|other| *other < record.version), "{taken:?}");
                taken.insert(record.version);
            }
            // The clock was put back.
            let mut record = VpoolRecord { version: *taken.last().unwrap(), ..known };
            put_config(&store, &record).await.unwrap();
            put_newest_config(&store, &mut record, 0, &SystemChance).await.unwrap();
            assert!(record.version > *taken.last().unwrap());
        });
    }

    /// The one before it is not what the vPool is.
    #[test]
    fn a_version_that_is_listed_and_not_there_is_not_stepped_over() {
        run(async {
            let store = Rc::new(MemoryBackend::new());
            put_versions(&store).await;
            let (newest, inner) = (config_name(3), Rc::clone(&store));
            let store = FaultyBackend::new(store, move |call| {
                if call.operation == Operation::Get {
                    inner.damage(&newest, None);
                }
                None
            });
            get_config(&store).await.unwrap_err();
        });
    }
}
