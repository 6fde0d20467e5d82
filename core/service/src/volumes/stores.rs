//! From a backend's record to what stores objects: the one place.
//!
//! ```text
//!  directory  ─▶ <path>/<namespace>/…           DirBackend
//!  store      ─▶ <prefix>/<namespace>/…         RemoteBackend
//!  composite  ─▶ CodedBackend over its drives, each opened in this way with the same namespace
//! ```
//!
//! A namespace (`vpool-<uuid>`) is a vPool's own. Drives of a composite may be away (`drive.rs`): it is opened when so many are
//! there that nothing has to wait for the others. Each of its drives has the vPool's layout (`layout.rs`).

use super::{
    Volumes,
    drive::{Drive, Leaf, Location, RemoteLeaf},
    layout::put_first_layout,
    namespace::Namespace,
    presets::open_preset,
    problem::{from_backend, not_found},
    remotes::decode_store,
    secrets::Secrets,
};
use futures_util::future::{LocalBoxFuture, join_all};
use ovs_api::{Problem, ProblemKind};
use ovs_backend::{
    Backend, BackendError,
    coded::{self, CodedBackend, Work},
};
use ovs_cluster::catalogue::{BackendRecord, LayoutRecord, PresetRecord, StoreRecord};
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
        if drives.is_empty() || node.is_some() {
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
    /// Its composites, and the preset of each.
    pub(super) composites: Vec<(Uuid, CodedBackend)>,
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
        let record = set.backend(root)?;
        self.check_is_allowed(&record.name, &record.store)?;
        let drives = self.drives_of(set, root, namespace)?;
        if let Some(only) = drives.get(&root) {
            let store = only.open(expected).await.map_err(from_backend)?;
            if record.folder().is_some() {
                return Ok(Opened { store, drives: BTreeMap::new(), composites: Vec::new() });
            }
            // A store's credentials may be others one day.
            return Ok(Opened { store: only.clone(), drives, composites: Vec::new() });
        }
        let away = away(set, &drives, |drive| async move { drive.open(expected).await.map(drop) }).await;
        for reason in away.values() {
            tracing::warn!(backend = %record.name, reason, "a drive is away");
        }
        if expected == Namespace::New {
            check_all_are_there(&away)?;
        }
        let composites = RefCell::default();
        let building =
            Building { set, drives: &drives, away: &away, secrets: self.secrets(), composites: &composites };
        let (store, is_there) = building.composite(record).await?;
        if !is_there {
            let reasons: Vec<&str> = away.values().map(String::as_str).collect();
            let detail =
                format!("too many drives of backend {} are away: {}", record.name, reasons.join("; "));
            return Err(Problem::new(ProblemKind::Unavailable, detail));
        }
        Ok(Opened { store, drives, composites: composites.take() })
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

    /// Nothing rests on what was opened there any more.
    pub(super) fn forget_drives(&self, namespace: &str) {
        self.drives.borrow_mut().retain(|(_, of), _| of != namespace);
    }

    /// Guests' data rests on directories alone, unless somebody has said that it may be lost.
    pub(super) fn check_is_allowed(&self, name: &Name, store: &StoreRecord) -> Result<(), Problem> {
        if matches!(store, StoreRecord::Dir { .. }) || self.settings.allows_coded_backends {
            return Ok(());
        }
        let detail = format!(
            "backend {name}: vPools rest on directories alone as yet: what decisions 0011, 0012 and 0014 list has to be mended \
             before guests' data is safe on composites and object stores. To try them with data that may be lost, set \
             experimental: {{coded_backends: true}} in ovsd.yaml and restart ovsd"
        );
        Err(Problem::new(ProblemKind::Conflict, detail))
    }

    /// What a vPool's part of a backend is made of in the end; each is opened once, whoever asks.
    pub(super) fn drives_of(
        &self,
        set: &BackendSet,
        root: Uuid,
        namespace: &str,
    ) -> Result<BTreeMap<Uuid, Rc<Drive>>, Problem> {
        let mut drives = BTreeMap::new();
        for part in set.parts(root)? {
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

/// A backend, and whether so many of its drives are there that nothing waits for the others.
type Built = (Rc<dyn Backend>, bool);

/// What composites are put together of.
struct Building<'a> {
    set: &'a BackendSet,
    drives: &'a BTreeMap<Uuid, Rc<Drive>>,
    away: &'a BTreeMap<Uuid, String>,
    secrets: Secrets,
    /// Those that are put together, and the preset of each.
    composites: &'a RefCell<Vec<(Uuid, CodedBackend)>>,
}

impl<'a> Building<'a> {
    fn composite(&'a self, record: &'a BackendRecord) -> LocalBoxFuture<'a, Result<Built, Problem>> {
        Box::pin(async move {
            let StoreRecord::Composite { drives: uuids, preset } = &record.store else {
                let drive = self.drives.get(&record.uuid).ok_or_else(|| not_found("backend", record.uuid))?;
                return Ok((drive.clone() as Rc<dyn Backend>, !self.away.contains_key(&record.uuid)));
            };
            let (mut drives, mut silent) = (Vec::new(), 0);
            for uuid in uuids {
                let drive = self.set.backend(*uuid)?;
                let (backend, is_there) = self.composite(drive).await?;
                silent += u32::from(!is_there);
                let Place { node, site, .. } = self.set.place(*uuid);
                drives.push(coded::Drive { id: *uuid, node, site, weight: drive.labels.weight, backend });
            }
            let preset = self.set.preset(*preset)?;
            let silent_max =
                preset.policies.iter().map(|p| u32::from(p.c.saturating_sub(p.k))).min().unwrap_or(0);
            let opened = open_preset(preset, &self.secrets).await?;
            // No drive is taken out or replaced as yet: what was on one is there, or away.
            let backend = CodedBackend::new(drives, &[], opened, Work::OnThreads).map_err(|error| {
                Problem::new(ProblemKind::Conflict, format!("backend {}: {error}", record.name))
            })?;
            self.composites.borrow_mut().push((preset.uuid, backend.clone()));
            Ok((Rc::new(backend) as Rc<dyn Backend>, silent <= silent_max))
        })
    }
}
