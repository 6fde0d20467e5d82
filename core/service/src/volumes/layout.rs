//! `pool/layout-<n>`: what each drive of a vPool keeps of the whole, so that one of them alone tells which the others are and how
//! they are read. An object as it is, not in fragments. Written when the vPool is made, and under a new number when what it says
//! has changed: the highest that can be read counts.
//!
//! ```text
//!  registry ─▶ all drives are looked at ─▶ a number above every one that shows ─▶ put on each ─▶ there the older ones go
//! ```
//!
//! A crash in between leaves each drive with an older layout or the new one, and the next renewal goes on. What the registry says
//! counts, unless a drive has newer records: then the registry was put back, and nothing is written.
//!
//! `pool/drive-<uuid>`: beside it, which of them that one is.

use super::{
    Volumes,
    drive::{Drive, cannot_open},
    namespace::{Namespace, in_time},
    problem::from_backend,
};
use bytes::Bytes;
use futures_util::future::join_all;
use ovs_api::{Problem, ProblemKind};
use ovs_backend::{Backend, BackendError, ObjectInfo, ObjectName, Urgency};
use ovs_cluster::catalogue::{
    BackendRecord, DutyRecord, FORMAT, LayoutRecord, PresetRecord, StoreRecord, VpoolRecord, decode,
};
use ovs_units::{Name, VpoolId};
use ovs_volume::{Chance, Clock};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};
use uuid::Uuid;

const LAYOUT_PREFIX: &str = "pool/layout-";
pub(super) const DRIVE_PREFIX: &str = "pool/drive-";
/// A layout on a backend is never longer than this.
const LAYOUT_BYTES_MAX: u64 = 4 << 20;
/// The number of a vPool's first.
const FIRST: u64 = 1;
/// Of two renewals in the same second that see nothing of each other, one in a million takes the other's number.
const CHANCE_BITS: u32 = 20;

fn layout_name(number: u64) -> ObjectName {
    // Twenty digits: names sort as numbers do.
    ObjectName::new(format!("{LAYOUT_PREFIX}{number:020}")).expect("digits are allowed in object names")
}

/// A layout and its number.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    pub(super) number: u64,
    pub(super) record: LayoutRecord,
}

/// A drive that the newest layout is not on yet, or an older one still is, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lacking {
    pub(super) drive: Name,
    pub(super) reason: String,
}

/// A vPool of which some drive may not have the newest layout.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// The drives that lack it; nothing: they have not been asked.
    lacking: Option<Vec<Lacking>>,
    /// Why it cannot be renewed.
    trouble: Option<String>,
}

impl Due {
    /// The drives that lack it; nothing: that is not known, and each may.
    pub(super) fn drives(&self) -> Option<Vec<Name>> {
        let lacking = self.lacking.as_ref()?;
        Some(lacking.iter().map(|lacking| lacking.drive.clone()).collect())
    }
}

/// Of a vPool; [`super::stores::BackendSet::layout`] fills in the rest.
pub(super) fn layout_of(vpool: &VpoolRecord) -> LayoutRecord {
    LayoutRecord {
        format: FORMAT,
        vpool: vpool.id,
        name: vpool.name.clone(),
        backend: vpool.backend,
        backends: Vec::new(),
        presets: Vec::new(),
    }
}

fn encode(layout: &LayoutRecord) -> Result<Bytes, Problem> {
    let bytes = serde_json::to_vec(layout)
        .map_err(|error| Problem::new(ProblemKind::Internal, format!("a vPool's layout: {error}")))?;
    if bytes.len() as u64 > LAYOUT_BYTES_MAX {
        let detail = format!(
            "backend: its drives and presets take {} bytes to describe: at most {LAYOUT_BYTES_MAX} can be read again",
            bytes.len()
        );
        return Err(Problem::new(ProblemKind::Conflict, detail));
    }
    Ok(Bytes::from(bytes))
}

/// The first layout of a vPool that begins.
pub(super) async fn put_first_layout(store: &dyn Backend, layout: &LayoutRecord) -> Result<(), Problem> {
    let bytes = encode(layout)?;
    store.put(&layout_name(FIRST), vec![bytes], Urgency::Reserve).await.map_err(from_backend)
}

/// The layout that counts among those of a drive.
pub(super) async fn newest_layout(store: &dyn Backend) -> Result<Option<Layout>, BackendError> {
    Ok(find_layouts(store).await?.newest)
}

/// What drives tell of a vPool when all are asked at the same time; nothing: that drive has no layout yet. One that does not answer
/// is not among them, nor one whose layout cannot be read: it may be any.
pub(super) async fn ask_layouts(
    clock: &dyn Clock,
    drives: &BTreeMap<Uuid, Rc<Drive>>,
    vpool: VpoolId,
) -> BTreeMap<Uuid, Option<Layout>> {
    let ask = |(uuid, drive): (&Uuid, &Rc<Drive>)| {
        let (uuid, drive) = (*uuid, drive.clone());
        async move {
            let Found { numbers, newest } = in_time(clock, find_layouts(&*drive)).await?.ok()?;
            let is_told = newest.as_ref().map_or(numbers.is_empty(), |newest| newest.record.vpool == vpool);
            is_told.then_some((uuid, newest))
        }
    };
    join_all(drives.iter().map(ask)).await.into_iter().flatten().collect()
}

/// What a drive has.
struct Found {
    numbers: BTreeSet<u64>,
    newest: Option<Layout>,
}

impl Found {
    /// It is this one, under this number.
    fn has(&self, number: u64, layout: &LayoutRecord) -> bool {
        self.newest.as_ref().is_some_and(|newest| newest.number == number && newest.record == *layout)
    }
}

/// One that cannot be decoded is stepped over. One that is listed and cannot be got may be the newest.
async fn find_layouts(store: &dyn Backend) -> Result<Found, BackendError> {
    let numbers = numbers(store).await?;
    for number in numbers.iter().rev() {
        let name = layout_name(*number);
        let bytes = store.get_range(&name, 0, LAYOUT_BYTES_MAX).await?;
        match decode(name.as_str(), &bytes) {
            Ok(record) => {
                let newest = Some(Layout { number: *number, record });
                return Ok(Found { numbers, newest });
            }
            Err(error) => tracing::error!(%error, "a vPool's layout on a drive cannot be read"),
        }
    }
    Ok(Found { numbers, newest: None })
}

async fn numbers(store: &dyn Backend) -> Result<BTreeSet<u64>, BackendError> {
    let (mut numbers, mut after) = (BTreeSet::new(), None);
    loop {
        let found = store.list(LAYOUT_PREFIX, after.as_ref(), 1000).await?;
        let Some(last) = found.last() else { return Ok(numbers) };
        // Only a name that we would give is one of ours.
        let number = |name: &ObjectName| {
            let number = name.as_str().strip_prefix(LAYOUT_PREFIX)?.parse().ok()?;
            (layout_name(number) == *name).then_some(number)
        };
        numbers.extend(found.iter().filter_map(|info| number(&info.name)));
        after = Some(last.name.clone());
    }
}

/// Brings the layout that is wanted to all of these drives that answer; tells which lack it. An older one goes from a drive
/// when the newer is stored on that. A drive that is away may have a number that does not show, so that numbers follow the time.
pub(super) async fn renew(
    drives: &[(Name, Rc<dyn Backend>)],
    wanted: &LayoutRecord,
    clock: &dyn Clock,
    chance: &dyn Chance,
) -> Result<Vec<Lacking>, Problem> {
    let bytes = encode(wanted)?;
    let look = |(_, store): &(Name, Rc<dyn Backend>)| {
        let store = store.clone();
        async move { answer(clock, find_layouts(&*store)).await }
    };
    let looked = join_all(drives.iter().map(look)).await;
    for (found, (name, _)) in looked.iter().zip(drives) {
        let newest = found.as_ref().ok().and_then(|found| found.newest.as_ref());
        newest.map_or(Ok(()), |newest| check_is_not_newer(&newest.record, wanted, name))?;
    }
    let found = || looked.iter().filter_map(|found| found.as_ref().ok());
    let highest = found().filter_map(|found| found.numbers.last()).max().copied();
    // It is under this number wherever that is listed.
    let is_settled =
        |number: &u64| found().all(|found| !found.numbers.contains(number) || found.has(*number, wanted));
    let number = highest.filter(is_settled).unwrap_or_else(|| {
        let step = chance.uuid().as_u128() as u64 & ((1 << CHANCE_BITS) - 1);
        let above = highest.map_or(FIRST, |highest| highest.saturating_add(1));
        above.max((clock.wall_ms() / 1000) << CHANCE_BITS).saturating_add(step)
    });
    let brought = looked.into_iter().zip(drives).map(|(found, (name, store))| {
        let bytes = bytes.clone();
        async move {
            let brought = async {
                let found = found?;
                if !found.has(number, wanted) {
                    answer(clock, store.put(&layout_name(number), vec![bytes], Urgency::Reserve)).await?;
                }
                for older in found.numbers.range(..number) {
                    answer(clock, store.delete(&layout_name(*older))).await?;
                }
                Ok::<_, BackendError>(())
            };
            let failed = brought.await.err();
            failed.map(|error| Lacking { drive: name.clone(), reason: error.to_string() })
        }
    });
    Ok(join_all(brought).await.into_iter().flatten().collect())
}

/// An answer, for which nobody waits for ever.
async fn answer<T>(
    clock: &dyn Clock,
    answer: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    in_time(clock, answer).await.unwrap_or_else(|| Err(cannot_open("it does not answer".into())))
}

/// What a drive has was once in the registry: a newer record there says that the registry was put back since. To write the
/// older one over it may be the end of a key.
fn check_is_not_newer(there: &LayoutRecord, wanted: &LayoutRecord, drive: &Name) -> Result<(), Problem> {
    let refused = |what: String| {
        let detail = format!(
            "drive {drive} has {what}: the registry was put back. Nothing is written over what is newer, and no vPool is opened by \
             what is older: stop ovsd and restore a later registry, or recover the vPool from that drive on a host that does not \
             know it"
        );
        Err(Problem::new(ProblemKind::Damaged, detail))
    };
    let of_version = |what: &str, name: &Name, there: u64, here: u64| {
        format!("{what} {name} of version {there}, and the registry of this host version {here}")
    };
    if there.vpool != wanted.vpool {
        let detail = format!("drive {drive} has the layout of another vPool: {}", there.vpool);
        return Err(Problem::new(ProblemKind::Damaged, detail));
    }
    for preset in &there.presets {
        let here = wanted.presets.iter().find(|here| here.uuid == preset.uuid);
        // Of two of one version with keys of their own, either may be the only one to read something.
        let is_other = |here: &PresetRecord| here.version == preset.version && here.keys != preset.keys;
        if let Some(here) = here.filter(|here| here.version < preset.version || is_other(here)) {
            return refused(of_version("preset", &preset.name, preset.version, here.version));
        }
    }
    for backend in &there.backends {
        let Some(here) = wanted.backends.iter().find(|here| here.uuid == backend.uuid) else { continue };
        if here.version < backend.version {
            return refused(of_version("backend", &backend.name, backend.version, here.version));
        }
        if !follows(here, backend) {
            let (name, there, here) = (&backend.name, backend.version, here.version);
            return refused(format!(
                "drives of backend {name} in version {there} of which version {here} in the registry of this host knows nothing"
            ));
        }
    }
    Ok(())
}

/// A record may have come of another by changes: with the same version it is the same, and what was a drive, or lost, is not
/// forgotten. After a registry was put back, versions are given out a second time.
fn follows(later: &BackendRecord, earlier: &BackendRecord) -> bool {
    if !matches!(earlier.store, StoreRecord::Composite { .. }) {
        return true;
    }
    let has_departed = |uuid: &Uuid| later.departed().iter().any(|gone| gone.uuid == *uuid);
    let is_lost = |record: &BackendRecord, uuid: &Uuid| record.duty(*uuid).is_some_and(DutyRecord::is_lost);
    let is_kept = |uuid: &Uuid| {
        has_departed(uuid)
            || later.drives().contains(uuid) && (is_lost(later, uuid) || !is_lost(earlier, uuid))
    };
    (later.version > earlier.version || later.store == earlier.store)
        && earlier.drives().iter().all(is_kept)
        && earlier.departed().iter().all(|gone| has_departed(&gone.uuid))
}

impl Volumes {
    /// Brings what the registry says of a backend, and of all that it is made of, to the drives of the vPool on it. A drive that
    /// does not answer is told of, and gets it when it is back. Nothing to do: there is no vPool, or a directory is all of it.
    pub(super) async fn renew_layout(&self, root_backend: Uuid) -> Result<Vec<Lacking>, Problem> {
        let Some(pool) = self.pool_on(root_backend) else { return Ok(Vec::new()) };
        let id = pool.record().id;
        // Of two the later has what the registry says later; and a vPool is not deleted meanwhile.
        let _locked = self.locks.lock(layout_lock(id)).await;
        if self.pool(id).is_err() {
            return Ok(Vec::new());
        }
        self.layouts_due.borrow_mut().entry(id).or_default();
        let record = pool.record();
        let set = self.backend_set().await?;
        let root = set.backend(root_backend)?;
        let mut lacking = Vec::new();
        if root.folder().is_none() {
            let wanted = set.layout(root_backend, layout_of(&record))?;
            let drives = self.drives_of(&set, root_backend, &record.namespace)?;
            let drives: Vec<(Name, Rc<dyn Backend>)> = drives
                .values()
                .map(|drive| (drive.name().clone(), drive.clone() as Rc<dyn Backend>))
                .collect();
            lacking = renew(&drives, &wanted, &*self.clock, &*self.chance).await?;
        }
        let mut due = self.layouts_due.borrow_mut();
        if lacking.is_empty() {
            due.remove(&id);
        } else {
            let known = due.insert(id, Due { lacking: Some(lacking.clone()), trouble: None });
            if known.and_then(|known| known.lacking).as_ref() != Some(&lacking) {
                let drives: Vec<&str> = lacking.iter().map(|lacking| lacking.drive.as_str()).collect();
                let (reason, vpool) = (&lacking[0].reason, &record.name);
                tracing::warn!(%vpool, ?drives, reason, "drives have an older layout of the vPool until they are back");
            }
        }
        Ok(lacking)
    }

    /// Before a vPool is used by what the registry says of its drives: none of them that answers says something newer. Otherwise one
    /// that was given up since would serve with what it had then.
    pub(super) async fn check_is_not_put_back(
        &self,
        record: &VpoolRecord,
        drives: &BTreeMap<Uuid, Rc<Drive>>,
    ) -> Result<(), Problem> {
        let told = ask_layouts(&*self.clock, drives, record.id).await;
        // Looked at after the drives: what they have was in the registry before.
        let wanted = self.backend_set().await?.layout(record.backend, layout_of(record))?;
        for (uuid, told) in told {
            told.map_or(Ok(()), |told| check_is_not_newer(&told.record, &wanted, drives[&uuid].name()))?;
        }
        Ok(())
    }

    /// Tries again, beside everything else, what [`Self::renew_layout`] could not bring to every drive. After a start all vPools
    /// are among these.
    pub(super) fn begin_renewing_layouts(self: &Rc<Self>) {
        let Some(turn) = self.locks.try_lock("layouts") else { return };
        let volumes = self.clone();
        tokio::task::spawn_local(async move {
            volumes.renew_due_layouts().await;
            if let Err(problem) = volumes.use_newest_keys().await {
                tracing::warn!(%problem, "a preset's newest key is not used yet");
            }
            drop(turn);
        });
    }

    pub(super) async fn renew_due_layouts(&self) {
        let due: Vec<VpoolId> = self.layouts_due.borrow().keys().copied().collect();
        for id in due {
            let Ok(pool) = self.pool(id) else {
                self.layouts_due.borrow_mut().remove(&id);
                continue;
            };
            let record = pool.record();
            // What is not taken in yet says nothing of itself.
            if record.version == 0 {
                continue;
            }
            match self.renew_layout(record.backend).await {
                Ok(_) => {}
                Err(problem) => {
                    let mut due = self.layouts_due.borrow_mut();
                    let trouble = &mut due.entry(id).or_default().trouble;
                    if trouble.as_ref() != Some(&problem.detail) {
                        tracing::error!(vpool = %record.name, %problem, "its layout on the drives is not renewed");
                        *trouble = Some(problem.detail);
                    }
                }
            }
        }
    }
}

/// Whoever renews a vPool's layout holds this; so does who deletes the vPool.
pub(super) fn layout_lock(vpool: VpoolId) -> String {
    format!("layout/{vpool}")
}

fn drive_name(drive: Uuid) -> ObjectName {
    ObjectName::new(format!("{DRIVE_PREFIX}{drive}")).expect("digits are allowed in object names")
}

/// The drives that a place says it is: one, unless something is wrong.
pub(super) async fn drives_at(store: &dyn Backend) -> Result<Vec<Uuid>, BackendError> {
    let found = store.list(DRIVE_PREFIX, None, 1000).await?;
    let drive = |info: &ObjectInfo| Uuid::try_parse(info.name.as_str().strip_prefix(DRIVE_PREFIX)?).ok();
    Ok(found.iter().filter_map(drive).collect())
}

/// A place is the drive that it is taken for: no other, by a mount that changed places with another's, and not two, by two
/// spellings of one address. A new one is told which it is.
pub(super) async fn check_drive(
    store: &dyn Backend,
    drive: Uuid,
    expected: Namespace,
) -> Result<(), BackendError> {
    let mut found = drives_at(store).await?;
    if expected == Namespace::New && found.is_empty() {
        let name = drive_name(drive);
        store.put(&name, vec![Bytes::from(drive.to_string())], Urgency::Reserve).await?;
        // Somebody else may have begun there meanwhile: at least one of two sees the other.
        found = drives_at(store).await?;
    }
    match found.iter().find(|other| **other != drive) {
        Some(other) => Err(cannot_open(format!("the place of drive {other} is there, not that of {drive}"))),
        None if found.is_empty() => Err(cannot_open("nothing of this vPool is there".into())),
        None => Ok(()),
    }
}
