//! vPools that nothing here knows, found on what is left of their backend.
//!
//! ```text
//!  a directory ─▶ vpool-<uuid>/pool/config-…: the vPool was on that alone
//!              ─▶ vpool-<uuid>/pool/layout-…: it is a drive of others: they are opened, and tell the vPool's record together
//! ```
//!
//! Nothing is stored before the vPool's record has been read.

use super::{
    Pool, Volumes,
    layout::get_layout,
    namespace::{Namespace, get_config, put_config},
    problem::{exists, from_backend, from_catalogue},
    stores::{BackendSet, Opened},
};
use ovs_api::{Accepted, BackendKind, EventKind, Problem, ProblemKind, RecoverVpool, Task};
use ovs_backend::{DirBackend, DirOptions};
use ovs_cluster::catalogue::{
    BackendRecord, Labels, LayoutRecord, PresetRecord, State, StoreRecord, VpoolRecord,
};
use ovs_units::{Name, VpoolId};
use std::{
    path::{Path, PathBuf},
    rc::Rc,
};
use uuid::Uuid;

/// What a namespace says of its vPool.
enum Told {
    /// Its record.
    Config(Box<VpoolRecord>),
    /// What its record is to be read with.
    Layout(LayoutRecord),
}

impl Told {
    fn vpool(&self) -> (VpoolId, &Name) {
        match self {
            Told::Config(config) => (config.id, &config.name),
            Told::Layout(layout) => (layout.vpool, &layout.name),
        }
    }
}

impl Volumes {
    /// Takes in a vPool that nothing here knows, out of its folder alone.
    pub async fn recover_lost_vpool(
        self: &Rc<Self>,
        request: RecoverVpool,
    ) -> Result<Accepted<Task>, Problem> {
        let _locked = self.locks.lock("backends").await;
        if let Ok(pool) = self.pool_by_name(&request.name) {
            return Err(exists("vPool", &request.name, pool.record().id.0));
        }
        let (BackendKind::Dir, Some(path)) = (request.backend.kind, request.backend.path.clone()) else {
            let allowed = "a directory: of a composite, that of any of its drives";
            return Err(Problem::field("backend", &request.backend.name, allowed));
        };
        let (namespace, told) = find_namespace(&path, &request.name).await?;
        if let Ok(pool) = self.pool(told.vpool().0) {
            return Err(exists("vPool", &pool.record().name, told.vpool().0.0));
        }
        let (backend, opened, config) = match told {
            Told::Config(config) => {
                let backend = self.known_or_new_backend(&request, &path).await?;
                let set = self.backend_set().await?;
                let opened = self.open_store(&set, backend.uuid, &namespace, Namespace::Existing).await?;
                (backend.uuid, opened, *config)
            }
            Told::Layout(layout) => {
                let (opened, config) = self.open_layout(&layout, &namespace).await?;
                (layout.backend, opened, config)
            }
        };
        let mut record = VpoolRecord { namespace, backend, state: State::Ready, ..config.clone() };
        record.name = request.name;
        if record != config {
            record.version += 1;
            put_config(&*opened.store, &record).await?;
        }
        let stored = self.catalogue.restore(record).await.map_err(from_catalogue)?;
        let pool = Rc::new(Pool::new(stored.record));
        self.attach_pool(&pool, opened);
        self.write_inventory().await?;
        self.publish_vpool(EventKind::VpoolCreated, &pool);
        Ok(Accepted(self.begin_recovery(pool)?))
    }

    /// Opens what a layout describes, reads the vPool's record in there, and makes known what is not.
    async fn open_layout(
        &self,
        layout: &LayoutRecord,
        namespace: &str,
    ) -> Result<(Opened, VpoolRecord), Problem> {
        let set = BackendSet::new(layout.backends.clone(), layout.presets.clone());
        let (mut backends, mut presets) = (Vec::new(), Vec::new());
        for record in set.parts(layout.backend)? {
            if self.catalogue.find::<BackendRecord>(record.uuid).await.map_err(from_catalogue)?.is_some() {
                continue;
            }
            if let Some(known) = self.backend_by_name(&record.name).await? {
                return Err(exists("backend", &record.name, known.record.uuid));
            }
            if let Some(folder) = record.folder() {
                self.check_backend_path(Path::new(folder)).await?;
            }
            backends.push(record.clone());
        }
        for record in &layout.presets {
            if self.catalogue.find::<PresetRecord>(record.uuid).await.map_err(from_catalogue)?.is_some() {
                continue;
            }
            if let Some(known) = self.preset_by_name(&record.name).await? {
                return Err(exists("preset", &record.name, known.record.uuid));
            }
            presets.push(record.clone());
        }
        let opened = self.open_store(&set, layout.backend, namespace, Namespace::Existing).await?;
        let config = self.config_of(&*opened.store, &layout.name).await?;
        for record in presets {
            self.catalogue.restore(record).await.map_err(from_catalogue)?;
        }
        for record in backends {
            self.catalogue.restore(record).await.map_err(from_catalogue)?;
        }
        Ok((opened, config))
    }

    /// The backend whose folder this is, made known if it is not.
    async fn known_or_new_backend(
        &self,
        request: &RecoverVpool,
        path: &str,
    ) -> Result<BackendRecord, Problem> {
        let backends = self.all_backends().await?;
        let is_it = |known: &&BackendRecord| {
            known.folder().is_some_and(|folder| Path::new(folder) == Path::new(path))
        };
        if let Some(known) = backends.iter().find(is_it) {
            return Ok(known.clone());
        }
        if let Some(known) = backends.iter().find(|known| known.name == request.backend.name) {
            return Err(exists("backend", &known.name, known.uuid));
        }
        let asked = serde_json::to_value(&request.backend).unwrap_or_default();
        let store = StoreRecord::Dir { path: path.to_owned() };
        self.insert_backend(request.backend.name.clone(), store, Labels::default(), asked).await
    }
}

/// The vPool's own folder in a backend's: the only one there is, or the one whose vPool has this name.
async fn find_namespace(path: &str, name: &Name) -> Result<(String, Told), Problem> {
    let folder = path.to_owned();
    let folders = tokio::task::spawn_blocking(move || list_namespaces(Path::new(&folder))).await;
    let folders = folders
        .map_err(|error| Problem::new(ProblemKind::Internal, error.to_string()))?
        .map_err(|error| Problem::new(ProblemKind::NotFound, format!("path: {path}: {error}")))?;
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for namespace in folders {
        match ask_namespace(Path::new(path).join(&namespace)).await {
            Ok(Some(told)) => found.push((namespace, told)),
            Ok(None) => problems.push(format!("{namespace}: no record of a vPool")),
            Err(problem) => problems.push(format!("{namespace}: {problem}")),
        }
    }
    if found.len() > 1 {
        found.retain(|(_, told)| told.vpool().1 == name);
    }
    let is_damaged = !problems.is_empty();
    match (found.pop(), found.is_empty()) {
        (Some(found), true) => Ok(found),
        (Some(_), false) => {
            let detail = format!("path: several vPools in {path} are named {name}");
            Err(Problem::new(ProblemKind::Damaged, detail))
        }
        (None, _) if is_damaged => {
            let detail = format!("path: no vPool {name} can be read in {path}: {}", problems.join("; "));
            Err(Problem::new(ProblemKind::Damaged, detail))
        }
        (None, _) => {
            Err(Problem::new(ProblemKind::NotFound, format!("path: there is no vPool {name} in {path}")))
        }
    }
}

async fn ask_namespace(folder: PathBuf) -> Result<Option<Told>, Problem> {
    let opened = tokio::task::spawn_blocking(move || DirBackend::open_existing(DirOptions::new(folder)));
    let store = opened
        .await
        .map_err(|error| Problem::new(ProblemKind::Internal, format!("opening a backend: {error}")))?
        .map_err(from_backend)?;
    if let Some(config) = get_config(&store).await? {
        return Ok(Some(Told::Config(Box::new(config))));
    }
    Ok(get_layout(&store).await?.map(Told::Layout))
}

fn list_namespaces(path: &Path) -> std::io::Result<Vec<String>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_namespace = name.strip_prefix("vpool-").is_some_and(|uuid| Uuid::try_parse(uuid).is_ok());
        if is_namespace {
            folders.push(name);
        }
    }
    folders.sort();
    Ok(folders)
}
