//! From a backend's record to what stores objects: the one place.
//!
//! ```text
//!  directory  ─▶ <path>/<namespace>/…           DirBackend
//!  store      ─▶ <prefix>/<namespace>/…         RemoteBackend
//!  composite  ─▶ CodedBackend over its drives, each opened in this way with the same namespace
//! ```
//!
//! A namespace (`vpool-<uuid>`) is a vPool's own. Drives of a composite may be away (`drive.rs`): it is opened when so many are
//! there that nothing has to wait for the others. Those that are lost are not opened: nobody asks them (`composites.rs`). Each of
//! its drives has the vPool's layout (`layout.rs`).

use super::{
    Volumes,
    composite::{Composite, Member},
    drive::{Drive, Leaf, Location, RemoteLeaf, cannot_open},
    layout::put_first_layout,
    namespace::{Namespace, in_time},
    presets::open_preset,
    problem::{from_backend, not_found},
    remotes::decode_store,
    secrets::Secrets,
};
use futures_util::future::{LocalBoxFuture, join_all};
use ovs_api::{Problem, ProblemKind};
use ovs_backend::{
    Backend, BackendError,
    coded::{self, CodedBackend, Duty, Work},
};
use ovs_cluster::catalogue::{BackendRecord, DutyRecord, LayoutRecord, PresetRecord, StoreRecord};
use ovs_units::Name;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    rc::Rc,
};
use uuid::Uuid;

/// Composites of composites: names of fragments grow with each (`a_map_s_copy_has_a_name_on_every_drive`).
pub(super) const NESTING_MAX: usize = 2;

/// Where a backend is, as a drive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// What else is lost when it is.
    pub(super) node: String,
    /// Where it is; empty: nobody said.
    pub(super) site: String,
    /// All nodes that something of it is on.
    pub(super) nodes: BTreeSet<String>,
    /// All sites that something of it is in.
    pub(super) sites: BTreeSet<String>,
}

/// Backends and presets, looked at together.
#[derive(Debug, Clone, Default)]
pub(super) struct BackendSet {
    backends: BTreeMap<Uuid, BackendRecord>,
    presets: BTreeMap<Uuid, PresetRecord>,
    host: String,
    /// How deep composites are in one another (0: it is none) and where they are. What is made of itself, of what is not there,
    /// or in too many others is not among these.
    sound: BTreeMap<Uuid, (usize, Place)>,
}

impl BackendSet {
    /// `host` is the node of directories that nobody gave one.
    pub(super) fn new(
        backends: impl IntoIterator<Item = BackendRecord>,
        presets: impl IntoIterator<Item = PresetRecord>,
        host: &str,
    ) -> BackendSet {
        let mut set = BackendSet {
            backends: backends.into_iter().map(|record| (record.uuid, record)).collect(),
            presets: presets.into_iter().map(|record| (record.uuid, record)).collect(),
            host: host.to_owned(),
            sound: BTreeMap::new(),
        };
        // Each pass is about what is made of that of the passes before.
        for depth in 0..=NESTING_MAX {
            let is_next = |record: &&BackendRecord| {
                let is_known = |uuid: &Uuid| set.sound.contains_key(uuid);
                !is_known(&record.uuid) && record.drives().iter().all(is_known)
            };
            let next: Vec<_> = set.backends.values().filter(is_next).collect();
            let next: Vec<_> =
                next.into_iter().map(|record| (record.uuid, (depth, set.find_place(record, host)))).collect();
            set.sound.extend(next);
        }
        set
    }

    /// The same with one record that says something else.
    pub(super) fn with(&self, changed: BackendRecord) -> BackendSet {
        let mut backends = self.backends.clone();
        backends.insert(changed.uuid, changed);
        BackendSet::new(backends.into_values(), self.presets.values().cloned(), &self.host)
    }

    pub(super) fn backend(&self, uuid: Uuid) -> Result<&BackendRecord, Problem> {
        self.backends.get(&uuid).ok_or_else(|| not_found("backend", uuid))
    }

    pub(super) fn preset(&self, uuid: Uuid) -> Result<&PresetRecord, Problem> {
        self.presets.get(&uuid).ok_or_else(|| not_found("preset", uuid))
    }

    /// All backends, by name.
    pub(super) fn by_name(&self) -> Vec<&BackendRecord> {
        let mut records: Vec<&BackendRecord> = self.backends.values().collect();
        records.sort_by(|one, other| one.name.cmp(&other.name));
        records
    }

    /// The composite that has it as a drive.
    pub(super) fn composite_of(&self, uuid: Uuid) -> Option<&BackendRecord> {
        self.backends.values().find(|record| record.drives().contains(&uuid))
    }

    /// What it is a part of in the end: itself, if of nothing.
    pub(super) fn root(&self, uuid: Uuid) -> Uuid {
        let mut root = uuid;
        // What is made of itself is no root, and not followed for ever.
        for _ in 0..=NESTING_MAX {
            match self.composite_of(root) {
                Some(composite) => root = composite.uuid,
                None => break,
            }
        }
        root
    }

    /// The drives of a composite that take fragments.
    pub(super) fn serving(&self, record: &BackendRecord) -> Vec<Uuid> {
        record.drives().iter().copied().filter(|drive| record.duty(*drive).is_none()).collect()
    }

    /// A backend and all that it is made of that is asked for anything: not what is lost.
    pub(super) fn parts_asked(&self, root: Uuid) -> Result<Vec<&BackendRecord>, Problem> {
        let mut asked = BTreeSet::from([root]);
        let mut parts = self.parts(root)?;
        // What is made of others comes before them.
        parts.retain(|part| {
            let is_asked = asked.contains(&part.uuid);
            asked.extend(part.drives_asked().filter(|_| is_asked));
            is_asked
        });
        Ok(parts)
    }

    /// A backend and all that it is made of. A record that says it were made of itself, of one thing twice, or in too many
    /// others is damaged.
    pub(super) fn parts(&self, root: Uuid) -> Result<Vec<&BackendRecord>, Problem> {
        let damaged = |detail: String| Problem::new(ProblemKind::Damaged, detail);
        let (mut parts, mut seen, mut open) = (Vec::new(), BTreeSet::new(), vec![root]);
        while let Some(uuid) = open.pop() {
            let record = self.backend(uuid)?;
            if !seen.insert(uuid) {
                let root = &self.backend(root)?.name;
                return Err(damaged(format!("backend {root} is made of {} more than once", record.name)));
            }
            parts.push(record);
            open.extend(record.drives());
        }
        if self.nesting(root).is_none() {
            let name = &self.backend(root)?.name;
            let detail = format!("backend {name} is of more than {NESTING_MAX} composites in one another");
            return Err(damaged(detail));
        }
        Ok(parts)
    }

    /// How deep composites are in one another; 0: it is none. Nothing: it is damaged.
    pub(super) fn nesting(&self, uuid: Uuid) -> Option<usize> {
        self.sound.get(&uuid).map(|(depth, _)| *depth)
    }

    /// Where a backend is, as a drive.
    pub(super) fn place(&self, uuid: Uuid) -> Place {
        self.sound.get(&uuid).map(|(_, place)| place.clone()).unwrap_or_default()
    }

    fn find_place(&self, record: &BackendRecord, host: &str) -> Place {
        let drives: Vec<Place> = record.drives().iter().map(|uuid| self.place(*uuid)).collect();
        let shared = |of: fn(&Place) -> &String| {
            let first = drives.first().map(of)?;
            drives.iter().all(|drive| of(drive) == first).then(|| first.clone())
        };
        let node = record.labels.node.clone().or_else(|| match &record.store {
            StoreRecord::Dir { .. } => Some(host.to_owned()),
            StoreRecord::Remote { .. } => None,
            StoreRecord::Composite { .. } => shared(|place| &place.node),
        });
        let site = record.labels.site.clone().or_else(|| shared(|place| &place.site));
        let (mut nodes, mut sites) = (BTreeSet::new(), BTreeSet::new());
        for drive in &drives {
            nodes.extend(drive.nodes.iter().cloned());
            sites.extend(drive.sites.iter().cloned());
        }
        // One that spans several is on them, and not on one of its own name besides.
        if drives.is_empty() || node.as_deref().is_some_and(|node| node != record.name.as_str()) {
            nodes.insert(node.clone().unwrap_or_else(|| record.name.to_string()));
        }
        if drives.is_empty() || site.is_some() {
            sites.insert(site.clone().unwrap_or_default());
        }
        Place {
            node: node.unwrap_or_else(|| record.name.to_string()),
            site: site.unwrap_or_default(),
            nodes,
            sites,
        }
    }

    /// It is, or is made of, a composite under this preset.
    pub(super) fn is_under(&self, root: Uuid, preset: Uuid) -> bool {
        let is_it = |part: &&BackendRecord| matches!(&part.store, StoreRecord::Composite { preset: own, .. } if *own == preset);
        self.parts(root).is_ok_and(|parts| parts.iter().any(is_it))
    }

    /// What it is made of in the end.
    pub(super) fn drives_of_all(&self, root: Uuid) -> Vec<Name> {
        let parts = self.parts(root).unwrap_or_default();
        parts.into_iter().filter(|part| part.drives().is_empty()).map(|part| part.name.clone()).collect()
    }

    /// What each drive of a vPool keeps of the whole.
    pub(super) fn layout(&self, root: Uuid, of: LayoutRecord) -> Result<LayoutRecord, Problem> {
        let mut layout = of;
        for record in self.parts(root)? {
            layout.backends.push(record.clone());
            if let StoreRecord::Composite { preset, .. } = &record.store
                && !layout.presets.iter().any(|known| known.uuid == *preset)
            {
                layout.presets.push(self.preset(*preset)?.clone());
            }
        }
        Ok(layout)
    }
}

/// A vPool's own part of a backend.
pub(super) struct Opened {
    /// The whole.
    pub(super) store: Rc<dyn Backend>,
    /// What it is made of in the end, where it is a composite.
    pub(super) drives: BTreeMap<Uuid, Rc<Drive>>,
    /// The composites among what it is made of, itself included.
    pub(super) composites: BTreeMap<Uuid, Rc<Composite>>,
}

impl Volumes {
    /// All backends and presets there are.
    pub(super) async fn backend_set(&self) -> Result<BackendSet, Problem> {
        let (backends, presets) = (self.all_backends().await?, self.all_presets().await?);
        Ok(BackendSet::new(backends, presets, &self.settings.host_name))
    }

    /// Opens a vPool's own part of a backend.
    pub(super) async fn open_store(
        &self,
        set: &BackendSet,
        root: Uuid,
        namespace: &str,
        expected: Namespace,
    ) -> Result<Opened, Problem> {
        let (opened, why_not) = self.open_what_is_there(set, root, namespace, expected).await?;
        why_not.map_or(Ok(opened), Err)
    }

    /// The same where it does not matter how much of it is there; and why guests could not use it, if so.
    pub(super) async fn open_what_is_there(
        &self,
        set: &BackendSet,
        root: Uuid,
        namespace: &str,
        expected: Namespace,
    ) -> Result<(Opened, Option<Problem>), Problem> {
        let record = set.backend(root)?;
        let drives = self.drives_of(set, root, namespace)?;
        if let Some(only) = drives.get(&root) {
            let store = only.open(expected).await.map_err(from_backend)?;
            let composites = BTreeMap::new();
            if record.folder().is_some() {
                return Ok((Opened { store, drives: BTreeMap::new(), composites }, None));
            }
            // A store's credentials may be others one day.
            return Ok((Opened { store: only.clone(), drives, composites }, None));
        }
        let away = away(set, &drives, |drive| async move { drive.open(expected).await.map(drop) }).await;
        for reason in away.values() {
            tracing::warn!(backend = %record.name, reason, "a drive is away");
        }
        if expected == Namespace::New {
            check_all_are_there(&away)?;
        }
        let building = Building::new(set, &drives, &away, self.secrets());
        let (store, is_there) = building.composite(record).await?;
        let why_not = (!is_there).then(|| {
            let reasons: Vec<&str> = away.values().map(String::as_str).collect();
            let detail =
                format!("too many drives of backend {} are away: {}", record.name, reasons.join("; "));
            Problem::new(ProblemKind::Unavailable, detail)
        });
        let composites = building.composites.into_inner();
        Ok((Opened { store, drives, composites }, why_not))
    }

    /// Opens what a backend is made of that is to be a drive of a composite, for a vPool that is on that. With nothing of this vPool
    /// on it but what was begun and not finished.
    pub(super) async fn begin_drive(
        &self,
        set: &BackendSet,
        root: Uuid,
        drive: Uuid,
        namespace: &str,
    ) -> Result<Opened, Problem> {
        let leaves: BTreeSet<Uuid> = set.parts_asked(drive)?.iter().map(|part| part.uuid).collect();
        let mut drives = self.drives_of(set, root, namespace)?;
        drives.retain(|uuid, _| leaves.contains(uuid));
        let begin = |drive: Rc<Drive>| async move {
            drive.open(Namespace::New).await?;
            let empty = in_time(&*self.clock, check_is_empty(&drive)).await;
            empty.unwrap_or_else(|| Err(cannot_open("it does not answer".into())))
        };
        let begun = async {
            let away = away(set, &drives, begin).await;
            if let Some(reason) = away.values().next() {
                let detail = format!("drive: a vPool cannot begin there: {reason}");
                return Err(Problem::new(ProblemKind::Conflict, detail));
            }
            let building = Building::new(set, &drives, &away, self.secrets());
            let (store, _) = building.composite(set.backend(drive)?).await?;
            Ok((store, building.composites.into_inner()))
        };
        match begun.await {
            Ok((store, composites)) => Ok(Opened { store, drives, composites }),
            Err(problem) => {
                for leaf in leaves {
                    self.forget_drive(leaf, namespace);
                }
                Err(problem)
            }
        }
    }

    /// A vPool's own part of a backend that is no drive of it any more.
    pub(super) fn parts_left(
        &self,
        set: &BackendSet,
        drive: Uuid,
        namespace: &str,
    ) -> Result<Vec<(Uuid, Drive)>, Problem> {
        let mut left = Vec::new();
        for part in set.parts_asked(drive)? {
            if let Some(location) = self.location(part, namespace)? {
                let leaf = Leaf { drive: Some(part.uuid), location };
                left.push((part.uuid, Drive::new(part.name.clone(), leaf, self.clock.clone())));
            }
        }
        Ok(left)
    }

    /// Before a vPool begins there: all of it answers. Nothing changes.
    pub(super) async fn check_can_begin(
        &self,
        set: &BackendSet,
        root: Uuid,
        namespace: &str,
    ) -> Result<(), Problem> {
        if set.backend(root)?.folder().is_some() {
            return Ok(());
        }
        let drives = self.drives_of(set, root, namespace)?;
        let away = away(set, &drives, |drive| async move { drive.ask().await }).await;
        check_all_are_there(&away).inspect_err(|_| self.forget_drives(namespace))
    }

    /// Before a vPool ends there: nothing of it would be left on what is away.
    pub(super) async fn check_can_end(
        &self,
        set: &BackendSet,
        root: Uuid,
        namespace: &str,
    ) -> Result<(), Problem> {
        // A directory is emptied if it is there, and nothing is known of what nobody knows.
        if set.backend(root).map_or(true, |record| record.folder().is_some()) {
            return Ok(());
        }
        let drives = self.drives_of(set, root, namespace)?;
        check_all_are_there(&away(set, &drives, |drive| async move { drive.check().await }).await)
    }

    /// Writes down on every drive of a vPool that begins what it is made of. A directory alone has no need of it.
    pub(super) async fn store_first_layout(
        &self,
        opened: &Opened,
        layout: &LayoutRecord,
    ) -> Result<(), Problem> {
        let is_dir = |record: &BackendRecord| record.folder().is_some();
        if layout.backends.iter().any(|record| record.uuid == layout.backend && is_dir(record)) {
            return Ok(());
        }
        if opened.drives.is_empty() {
            return put_first_layout(&*opened.store, layout).await;
        }
        for drive in opened.drives.values() {
            put_first_layout(&**drive, layout).await?;
        }
        Ok(())
    }

    /// Removes a vPool's objects from wherever they are.
    pub(super) async fn remove_namespace(
        &self,
        set: &BackendSet,
        root: Uuid,
        namespace: &str,
    ) -> Result<(), Problem> {
        let drives = self.drives_of(set, root, namespace)?;
        for removed in join_all(drives.values().map(|drive| drive.remove())).await {
            removed?;
        }
        self.forget_drives(namespace);
        Ok(())
    }

    /// The same for one of its drives.
    pub(super) fn forget_drive(&self, drive: Uuid, namespace: &str) {
        self.drives.borrow_mut().remove(&(drive, namespace.to_owned()));
    }

    /// Nothing rests on what was opened there any more.
    pub(super) fn forget_drives(&self, namespace: &str) {
        self.drives.borrow_mut().retain(|(_, of), _| of != namespace);
    }

    /// What a vPool's part of a backend is made of in the end; each is opened once, whoever asks.
    pub(super) fn drives_of(
        &self,
        set: &BackendSet,
        root: Uuid,
        namespace: &str,
    ) -> Result<BTreeMap<Uuid, Rc<Drive>>, Problem> {
        let mut drives = BTreeMap::new();
        for part in set.parts_asked(root)? {
            let key = (part.uuid, namespace.to_owned());
            let known = self.drives.borrow().get(&key).cloned();
            let drive = match known {
                Some(known) => known,
                None => {
                    let Some(location) = self.location(part, namespace)? else { continue };
                    let is_alone = part.uuid == root && part.folder().is_some();
                    let leaf = Leaf { drive: (!is_alone).then_some(part.uuid), location };
                    let drive = Rc::new(Drive::new(part.name.clone(), leaf, self.clock.clone()));
                    self.drives.borrow_mut().entry(key).or_insert(drive).clone()
                }
            };
            drives.insert(part.uuid, drive);
        }
        Ok(drives)
    }

    /// Where a vPool's objects are on a backend that is made of no other.
    fn location(&self, record: &BackendRecord, namespace: &str) -> Result<Option<Location>, Problem> {
        Ok(match &record.store {
            StoreRecord::Dir { path } => {
                let root = PathBuf::from(path);
                let io_uring = self.settings.io_uring;
                Some(Location::Dir { folder: root.join(namespace), root, io_uring })
            }
            StoreRecord::Remote { store, credentials, .. } => {
                let mut store = decode_store(store)?;
                store.prefix = format!("{}/{namespace}", store.prefix);
                Some(Location::Remote(Box::new(RemoteLeaf {
                    store,
                    credentials: credentials.clone(),
                    secrets: self.secrets(),
                    seed: self.seed(),
                    runtime: self.runtime.clone(),
                })))
            }
            StoreRecord::Composite { .. } => None,
        })
    }
}

/// Drives that fail when all are asked at the same time, and why.
async fn away<F: Future<Output = Result<(), BackendError>>>(
    set: &BackendSet,
    drives: &BTreeMap<Uuid, Rc<Drive>>,
    ask: impl Fn(Rc<Drive>) -> F,
) -> BTreeMap<Uuid, String> {
    let asked = join_all(drives.values().map(|drive| ask(drive.clone()))).await;
    let failed = drives.keys().zip(asked).filter_map(|(uuid, asked)| Some((*uuid, asked.err()?)));
    let named = failed.map(|(uuid, error)| {
        let name = set.backend(uuid).map_or_else(|_| uuid.to_string(), |record| record.name.to_string());
        (uuid, format!("{name}: {error}"))
    });
    named.collect()
}

fn check_all_are_there(away: &BTreeMap<Uuid, String>) -> Result<(), Problem> {
    let Some(reason) = away.values().next() else { return Ok(()) };
    let detail = format!("a vPool begins and ends with all drives of its backend, and one is away: {reason}");
    Err(Problem::new(ProblemKind::Unavailable, detail))
}

/// What a drive is for, in the words of who codes.
pub(super) fn duty_of(recorded: Option<DutyRecord>) -> Duty {
    match recorded {
        None => Duty::Serving,
        Some(DutyRecord::Leaving) => Duty::Leaving,
        Some(DutyRecord::Lost | DutyRecord::GivenUp) => Duty::Lost,
    }
}

/// A backend, and whether so many of its drives are there that nothing waits for the others.
type Built = (Rc<dyn Backend>, bool);

/// A place that becomes a drive has nothing of the vPool yet. What an earlier one has left there would be taken for what is stored.
async fn check_is_empty(drive: &Drive) -> Result<(), BackendError> {
    let found = drive.list("", None, 1000).await?;
    match found.iter().find(|info| !info.name.as_str().starts_with("pool/")) {
        Some(old) => Err(cannot_open(format!(
            "it has objects of this vPool from an earlier time ({}): empty it",
            old.name
        ))),
        None => Ok(()),
    }
}

/// What composites are put together of.
struct Building<'a> {
    set: &'a BackendSet,
    drives: &'a BTreeMap<Uuid, Rc<Drive>>,
    away: &'a BTreeMap<Uuid, String>,
    secrets: Secrets,
    composites: RefCell<BTreeMap<Uuid, Rc<Composite>>>,
}

impl<'a> Building<'a> {
    fn new(
        set: &'a BackendSet,
        drives: &'a BTreeMap<Uuid, Rc<Drive>>,
        away: &'a BTreeMap<Uuid, String>,
        secrets: Secrets,
    ) -> Building<'a> {
        Building { set, drives, away, secrets, composites: RefCell::default() }
    }

    fn composite<'b>(&'b self, record: &'b BackendRecord) -> LocalBoxFuture<'b, Result<Built, Problem>> {
        Box::pin(async move {
            let StoreRecord::Composite { drives: uuids, preset, departed, .. } = &record.store else {
                let drive = self.drives.get(&record.uuid).ok_or_else(|| not_found("backend", record.uuid))?;
                return Ok((drive.clone() as Rc<dyn Backend>, !self.away.contains_key(&record.uuid)));
            };
            let (mut drives, mut members, mut silent) = (Vec::new(), BTreeMap::new(), 0);
            for uuid in uuids {
                let drive = self.set.backend(*uuid)?;
                let place = self.set.place(*uuid);
                let (node, site, weight) = (place.node.clone(), place.site.clone(), drive.labels.weight);
                let duty = duty_of(record.duty(*uuid));
                members.insert(*uuid, Member { name: drive.name.clone(), place, duty });
                if duty == Duty::Lost {
                    drives.push(coded::Drive::departed(*uuid, node, site, weight, duty));
                    continue;
                }
                let (backend, is_there) = self.composite(drive).await?;
                silent += u32::from(!is_there);
                drives.push(coded::Drive { id: *uuid, node, site, weight, backend, duty });
            }
            for gone in departed {
                let (node, site) = (gone.node.clone(), gone.site.clone());
                drives.push(coded::Drive::departed(gone.uuid, node, site, gone.weight, Duty::Gone));
            }
            let preset = self.set.preset(*preset)?;
            let opened = open_preset(preset, &self.secrets).await?;
            let backend = CodedBackend::new(drives, opened, Work::OnThreads).map_err(|error| {
                Problem::new(ProblemKind::Conflict, format!("backend {}: {error}", record.name))
            })?;
            let composite = Composite::new(record.name.clone(), backend.clone(), members, preset);
            let is_there = silent <= composite.silent_max();
            self.composites.borrow_mut().insert(record.uuid, Rc::new(composite));
            Ok((Rc::new(backend) as Rc<dyn Backend>, is_there))
        })
    }
}
