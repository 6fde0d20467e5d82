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
    drive::{Drive, Leaf, RemoteLeaf},
    layout::put_layout,
    namespace::Namespace,
    presets::open_preset,
    problem::{from_backend, not_found},
    remotes::decode_store,
};
use futures_util::future::{LocalBoxFuture, join_all};
use ovs_api::{Problem, ProblemKind};
use ovs_backend::{
    Backend,
    coded::{self, CodedBackend, Work},
};
use ovs_cluster::catalogue::{BackendRecord, LayoutRecord, PresetRecord, StoreRecord};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::Rc,
};
use uuid::Uuid;

/// Composites of composites of composites: names of fragments grow with each.
pub(super) const NESTING_MAX: usize = 3;

/// Backends and presets, looked at together.
#[derive(Debug, Clone, Default)]
pub(super) struct BackendSet {
    backends: BTreeMap<Uuid, BackendRecord>,
    presets: BTreeMap<Uuid, PresetRecord>,
}

impl BackendSet {
    pub(super) fn new(
        backends: impl IntoIterator<Item = BackendRecord>,
        presets: impl IntoIterator<Item = PresetRecord>,
    ) -> BackendSet {
        BackendSet {
            backends: backends.into_iter().map(|record| (record.uuid, record)).collect(),
            presets: presets.into_iter().map(|record| (record.uuid, record)).collect(),
        }
    }

    pub(super) fn backend(&self, uuid: Uuid) -> Result<&BackendRecord, Problem> {
        self.backends.get(&uuid).ok_or_else(|| not_found("backend", uuid))
    }

    pub(super) fn preset(&self, uuid: Uuid) -> Result<&PresetRecord, Problem> {
        self.presets.get(&uuid).ok_or_else(|| not_found("preset", uuid))
    }

    /// The composite that has it as a drive.
    pub(super) fn composite_of(&self, uuid: Uuid) -> Option<&BackendRecord> {
        self.backends.values().find(|record| record.drives().contains(&uuid))
    }

    /// A backend and all that it is made of. A record that says it were made of itself, or of one thing twice, is damaged.
    pub(super) fn parts(&self, root: Uuid) -> Result<Vec<&BackendRecord>, Problem> {
        let (mut parts, mut seen, mut open) = (Vec::new(), BTreeSet::new(), vec![root]);
        while let Some(uuid) = open.pop() {
            let record = self.backend(uuid)?;
            if !seen.insert(uuid) {
                let detail =
                    format!("backend {} is made of {} more than once", self.backend(root)?.name, record.name);
                return Err(Problem::new(ProblemKind::Damaged, detail));
            }
            parts.push(record);
            open.extend(record.drives());
        }
        Ok(parts)
    }

    /// How deep composites are in one another; 0: it is none. Of a backend that [`parts`](Self::parts) takes.
    pub(super) fn nesting(&self, uuid: Uuid) -> usize {
        let Some(record) = self.backends.get(&uuid) else { return 0 };
        let deepest = record.drives().iter().map(|drive| self.nesting(*drive) + 1).max();
        deepest.unwrap_or(0)
    }

    /// What else is lost when it is, and where it is.
    pub(super) fn place(&self, record: &BackendRecord, host: &str) -> (String, String) {
        let shared = |of: fn(&(String, String)) -> &String| {
            let mut places =
                record.drives().iter().map(|drive| Some(self.place(self.backends.get(drive)?, host)));
            let first = places.next()??;
            places
                .all(|place| place.as_ref().is_some_and(|place| of(place) == of(&first)))
                .then(|| of(&first).clone())
        };
        let node = record.labels.node.clone().or_else(|| match &record.store {
            StoreRecord::Dir { .. } => Some(host.to_owned()),
            StoreRecord::Remote { .. } => None,
            StoreRecord::Composite { .. } => shared(|place| &place.0),
        });
        let site = record.labels.site.clone().or_else(|| shared(|place| &place.1));
        (node.unwrap_or_else(|| record.name.to_string()), site.unwrap_or_default())
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
}

impl Volumes {
    /// All backends and presets there are.
    pub(super) async fn backend_set(&self) -> Result<BackendSet, Problem> {
        Ok(BackendSet::new(self.all_backends().await?, self.all_presets().await?))
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
        self.check_is_allowed(record)?;
        let mut drives = BTreeMap::new();
        for part in set.parts(root)? {
            if let Some(leaf) = self.leaf(part, namespace)? {
                drives.insert(part.uuid, Rc::new(Drive::new(leaf)));
            }
        }
        if let Some(only) = drives.get(&root) {
            let store = only.open(expected).await.map_err(from_backend)?;
            return Ok(Opened { store, drives: BTreeMap::new() });
        }
        let opened = join_all(drives.values().map(|drive| drive.open(expected))).await;
        let mut away = BTreeMap::new();
        for (uuid, opened) in drives.keys().zip(opened) {
            if let Err(error) = opened {
                let name = &set.backend(*uuid)?.name;
                tracing::warn!(backend = %record.name, drive = %name, %error, "a drive is away");
                away.insert(*uuid, format!("{name}: {error}"));
            }
        }
        if let (Namespace::New, Some(reason)) = (expected, away.values().next()) {
            let detail = format!("a vPool begins with all drives of its backend, and one is away: {reason}");
            return Err(Problem::new(ProblemKind::Unavailable, detail));
        }
        let building = Building { set, drives: &drives, away: &away, host: &self.settings.host_name };
        let (store, is_there) = building.composite(record, &self.secrets_folder()).await?;
        if !is_there {
            let reasons: Vec<&str> = away.values().map(String::as_str).collect();
            let detail =
                format!("too many drives of backend {} are away: {}", record.name, reasons.join("; "));
            return Err(Problem::new(ProblemKind::Unavailable, detail));
        }
        Ok(Opened { store, drives })
    }

    /// Writes down on every drive what the vPool is made of. A directory alone has no need of it.
    pub(super) async fn store_layout(&self, opened: &Opened, layout: &LayoutRecord) -> Result<(), Problem> {
        let is_dir = |record: &BackendRecord| record.folder().is_some();
        if layout.backends.iter().any(|record| record.uuid == layout.backend && is_dir(record)) {
            return Ok(());
        }
        if opened.drives.is_empty() {
            return put_layout(&*opened.store, layout).await;
        }
        for drive in opened.drives.values() {
            put_layout(&**drive, layout).await?;
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
        for part in set.parts(root)? {
            if let Some(leaf) = self.leaf(part, namespace)? {
                leaf.remove().await?;
            }
        }
        Ok(())
    }

    /// Guests' data rests on directories alone, unless somebody has said that it may be lost.
    pub(super) fn check_is_allowed(&self, record: &BackendRecord) -> Result<(), Problem> {
        if record.folder().is_some() || self.settings.allows_coded_backends {
            return Ok(());
        }
        let detail = format!(
            "backend {}: a vPool rests on a directory alone as yet: what decisions 0011 and 0012 list has to be mended before \
             guests' data is safe on composites and object stores. To try them with data that may be lost, set \
             experimental: {{coded_backends: true}} in ovsd.yaml and restart ovsd",
            record.name
        );
        Err(Problem::new(ProblemKind::Conflict, detail))
    }

    /// Where a vPool's objects are on a backend that is made of no other.
    fn leaf(&self, record: &BackendRecord, namespace: &str) -> Result<Option<Leaf>, Problem> {
        Ok(match &record.store {
            StoreRecord::Dir { path } => Some(Leaf::Dir { folder: Path::new(path).join(namespace) }),
            StoreRecord::Remote { store, credentials, .. } => {
                let mut store = decode_store(store)?;
                store.prefix = format!("{}/{namespace}", store.prefix);
                Some(Leaf::Remote(Box::new(RemoteLeaf {
                    store,
                    credentials: credentials.clone(),
                    secrets: self.secrets_folder(),
                    seed: self.seed(),
                    runtime: self.runtime.clone(),
                })))
            }
            StoreRecord::Composite { .. } => None,
        })
    }
}

/// What composites are put together of.
struct Building<'a> {
    set: &'a BackendSet,
    drives: &'a BTreeMap<Uuid, Rc<Drive>>,
    away: &'a BTreeMap<Uuid, String>,
    host: &'a str,
}

impl<'a> Building<'a> {
    /// A backend, and whether so many of its drives are there that nothing waits for the others.
    fn composite(
        &'a self,
        record: &'a BackendRecord,
        secrets: &'a Path,
    ) -> LocalBoxFuture<'a, Result<(Rc<dyn Backend>, bool), Problem>> {
        Box::pin(async move {
            let StoreRecord::Composite { drives: uuids, preset } = &record.store else {
                let drive = self.drives.get(&record.uuid).ok_or_else(|| not_found("backend", record.uuid))?;
                return Ok((drive.clone() as Rc<dyn Backend>, !self.away.contains_key(&record.uuid)));
            };
            let (mut drives, mut silent) = (Vec::new(), 0);
            for uuid in uuids {
                let drive = self.set.backend(*uuid)?;
                let (backend, is_there) = self.composite(drive, secrets).await?;
                silent += u32::from(!is_there);
                let (node, site) = self.set.place(drive, self.host);
                drives.push(coded::Drive { id: *uuid, node, site, weight: drive.labels.weight, backend });
            }
            let preset = self.set.preset(*preset)?;
            let silent_max =
                preset.policies.iter().map(|p| u32::from(p.c.saturating_sub(p.k))).min().unwrap_or(0);
            let opened = open_preset(preset, secrets).await?;
            // No drive is taken out or replaced as yet: what was on one is there, or away.
            let backend = CodedBackend::new(drives, &[], opened, Work::OnThreads).map_err(|error| {
                Problem::new(ProblemKind::Conflict, format!("backend {}: {error}", record.name))
            })?;
            Ok((Rc::new(backend) as Rc<dyn Backend>, silent <= silent_max))
        })
    }
}
