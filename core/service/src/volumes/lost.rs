//! vPools that nothing here knows, found on what is left of their backend.
//!
//! ```text
//!  a directory ─▶ vpool-<uuid>/pool/config-…: the vPool was on that alone
//!              ─▶ vpool-<uuid>/pool/layout-…: it is a drive of others: which of them has the newest layout?
//!                                             the drives that this one names are opened, and tell the vPool's record together
//!  a store     ─▶ vpool-<uuid>/pool/layout-…: the same, also where the vPool was on that alone
//! ```
//!
//! What was too late to be asked for its layout is asked again when all are open: an old layout is never taken for the newest
//! because the others were slow.
//!
//! Nothing is stored before the vPool's record has been read. What is known here has to be as the directory says, and free: a
//! folder in use is not even opened.

use super::{
    Pool, Volumes,
    backends::labels_of,
    keys::check_are_the_same,
    layout::{Layout, ask_layouts, drives_at, newest_layout},
    namespace::{Namespace, get_config, put_newest_config, real_path},
    problem::{exists, from_backend, from_catalogue},
    remotes::{PROBE_RETRY, decode_store, open_store, store_of},
    stores::{BackendSet, Opened},
};
use ovs_api::{Accepted, BackendKind, CreateBackend, EventKind, Problem, ProblemKind, RecoverVpool, Task};
use ovs_backend::{Backend, BackendError, DirBackend, DirOptions, ObjectName};
use ovs_cluster::catalogue::{
    BackendRecord, CredentialsRecord, FORMAT, LayoutRecord, PresetRecord, Record, State, StoreRecord,
    VpoolRecord,
};
use ovs_remote::{RemoteBackend, RemoteOptions, RemoteStore};
use ovs_units::{Name, VpoolId};
use ovs_volume::Clock;
use std::{collections::BTreeMap, path::Path, rc::Rc};
use uuid::Uuid;

/// Names of a store that are asked for at once.
const NAMES_AT_ONCE: usize = 1000;

/// Where a recovery begins.
enum Place {
    Dir(String),
    /// With the credentials that are here now.
    Store(Box<RemoteStore>, CredentialsRecord),
}

impl Place {
    fn of(asked: &CreateBackend) -> Result<Place, Problem> {
        if let (BackendKind::Dir, Some(path)) = (asked.kind, &asked.path) {
            return Ok(Place::Dir(path.clone()));
        }
        match asked.remote.as_ref().and_then(|remote| store_of(asked.kind, remote)) {
            Some(StoreRecord::Remote { store, credentials, .. }) => {
                Ok(Place::Store(Box::new(decode_store(&store)?), credentials))
            }
            _ => {
                let allowed = "a directory or an object store: of a composite, that of any of its drives";
                Err(Problem::field("backend", &asked.name, allowed))
            }
        }
    }

    /// As it is named in problems.
    fn shown(&self) -> String {
        match self {
            Place::Dir(path) => format!("path: {path}"),
            Place::Store(store, _) => format!("remote: {store}"),
        }
    }

    /// A layout has a store's credentials as they were: those that are given now count, for this store and no other.
    fn with_its_credentials(&self, mut layout: Layout, drive: Uuid) -> Layout {
        let record = layout.record.backends.iter_mut().find(|record| record.uuid == drive);
        if let (Place::Store(place, given), Some(record)) = (self, record)
            && let StoreRecord::Remote { store, credentials, .. } = &mut record.store
            && decode_store(store).is_ok_and(|told| is_same_place(&told, place))
            && credentials != given
        {
            credentials.clone_from(given);
            record.version += 1;
        }
        layout
    }
}

/// Whatever else is said of how it is asked.
fn is_same_place(told: &RemoteStore, given: &RemoteStore) -> bool {
    told.to_string() == given.to_string()
}

/// What a namespace says of its vPool.
enum Told {
    /// Its record; and the directory that is all of its backend.
    Config(Box<VpoolRecord>, String),
    /// What its record is to be read with, as this drive knows it, and which of the drives this one is.
    Layout(Box<Layout>, Uuid),
}

impl Told {
    fn vpool(&self) -> (VpoolId, &Name) {
        match self {
            Told::Config(config, _) => (config.id, &config.name),
            Told::Layout(layout, _) => (layout.record.vpool, &layout.record.name),
        }
    }
}

fn conflict(detail: String) -> Problem {
    Problem::new(ProblemKind::Conflict, detail)
}

impl Volumes {
    /// Takes in a vPool that nothing here knows, out of its folder or its part of a store alone.
    pub async fn recover_lost_vpool(
        self: &Rc<Self>,
        request: RecoverVpool,
    ) -> Result<Accepted<Task>, Problem> {
        let _locked = self.locks.lock("backends").await;
        if let Ok(pool) = self.pool_by_name(&request.name) {
            return Err(exists("vPool", &request.name, pool.record().id.0));
        }
        self.check_nothing_is_half_done(&request.name).await?;
        let place = Place::of(&request.backend)?;
        let (namespace, told) = self.find_namespace(&place, &request.name).await?;
        let layout = match told {
            Told::Config(config, path) => self.layout_of_directory(&request, &path, *config).await?,
            Told::Layout(told, drive) => {
                let told = place.with_its_credentials(*told, drive);
                let newest = self.newest_of_all_drives(told, &namespace).await;
                let newest = newest.inspect_err(|_| self.forget_drives(&namespace))?;
                check_is_its_place(&*self.clock, &newest.record, drive, &place).await?;
                place.with_its_credentials(newest, drive)
            }
        };
        let taken = self.take_in_layout(&layout, &namespace, request.name).await;
        let (record, opened) = taken.inspect_err(|_| self.forget_drives(&namespace))?;
        // Until its vDisks are taken in as well: after a crash a start goes on with it.
        self.change_inventory(|inventory| inventory.incomplete.push(record.id)).await?;
        let stored = self.catalogue.restore(record).await.map_err(from_catalogue)?;
        let pool = Rc::new(Pool::new(stored.record));
        self.attach_pool(&pool, opened);
        self.write_inventory().await?;
        self.publish_vpool(EventKind::VpoolCreated, &pool);
        Ok(Accepted(self.begin_recovery(pool)?))
    }

    /// A drive that was away for long, or is none any more, has an old layout: those that it names are asked for a newer one, and
    /// those that that names. What does not answer is not waited for.
    async fn newest_of_all_drives(&self, told: Layout, namespace: &str) -> Result<Layout, Problem> {
        let (mut newest, mut asked) = (told, Vec::new());
        loop {
            let LayoutRecord { vpool, backend, backends, presets, .. } = newest.record.clone();
            let set = BackendSet::new(backends, presets, &self.settings.host_name);
            let mut drives = self.drives_of(&set, backend, namespace)?;
            for part in set.parts(backend)? {
                let place = (part.uuid, part.store.clone());
                if asked.contains(&place) {
                    drives.remove(&part.uuid);
                } else {
                    asked.push(place);
                }
            }
            let found = ask_layouts(&*self.clock, &drives, vpool).await;
            // Where a drive is may be another place in the newer one.
            self.forget_drives(namespace);
            let is_newer = |found: &Layout| found.number > newest.number;
            match found.into_values().flatten().filter(is_newer).max_by_key(|found| found.number) {
                Some(newer) => newest = newer,
                None => return Ok(newest),
            }
        }
    }

    /// Drives that were not heard before they were opened, or are not now, may have a newer layout than was taken. So many may stay
    /// silent as a composite can do without.
    async fn check_is_newest(
        &self,
        set: &BackendSet,
        layout: &Layout,
        opened: &Opened,
    ) -> Result<(), Problem> {
        let LayoutRecord { vpool, name, backend, .. } = &layout.record;
        let told = ask_layouts(&*self.clock, &opened.drives, *vpool).await;
        let unavailable = |detail: String| Err(Problem::new(ProblemKind::Unavailable, detail));
        for (uuid, told) in &told {
            if told.as_ref().is_some_and(|told| told.number > layout.number) {
                let drive = opened.drives[uuid].name();
                return unavailable(format!(
                    "drive {drive} has told only now what vPool {name} is made of, and that is newer than what the other drives have \
                     told. Nothing was changed: begin the recovery again"
                ));
            }
        }
        if is_heard(set, opened, &told, *backend) {
            return Ok(());
        }
        let unheard = opened.drives.iter().filter(|(uuid, _)| !told.contains_key(uuid));
        let mut unheard: Vec<&str> = unheard.map(|(_, drive)| drive.name().as_str()).collect();
        unheard.sort_unstable();
        unavailable(format!(
            "of the drives of vPool {name} these do not tell what it is made of: {}. They may know of something newer than the others \
             do: recover the vPool when they answer",
            unheard.join(", ")
        ))
    }

    /// Opens what a layout describes, reads the vPool's record in there, and makes known what is not.
    async fn take_in_layout(
        &self,
        taken: &Layout,
        namespace: &str,
        name: Name,
    ) -> Result<(VpoolRecord, Opened), Problem> {
        let layout = &taken.record;
        let (mut presets, mut missing_presets, mut outdated) = (Vec::new(), Vec::new(), Vec::new());
        for told in &layout.presets {
            let known = self.catalogue.find::<PresetRecord>(told.uuid).await.map_err(from_catalogue)?;
            let mut preset = told.clone();
            match known {
                // Its keys were rotated while this vPool's drives were away. They know how to read the ones that they tell of.
                Some(known) if known.record.is_newer_than(told) => {
                    preset = PresetRecord { encrypts_under: told.key_in_use(), ..known.record };
                }
                Some(known) if told.is_newer_than(&known.record) => {
                    check_are_the_same(&known.record, told, &self.secrets()).await?;
                    outdated.push((known, told));
                }
                _ => {
                    let is_same = |here: &PresetRecord, told: &PresetRecord| {
                        here.policies == told.policies && here.keys == told.keys
                    };
                    if self.is_missing(told, is_same).await? {
                        missing_presets.push(told);
                    }
                }
            }
            presets.push(preset);
        }
        let set = BackendSet::new(layout.backends.clone(), presets, &self.settings.host_name);
        let here = self.backend_set().await?;
        self.check_is_unused(&here, here.backend(layout.backend).or_else(|_| set.backend(layout.backend))?)
            .await?;
        let (mut missing, mut older) = (Vec::new(), Vec::new());
        for record in set.parts(layout.backend)? {
            match here.composite_of(record.uuid) {
                // One that is known is used by what it was used by, if at all.
                Some(user) if set.backend(user.uuid).is_err() => {
                    return Err(conflict(format!("backend {} is a drive of {}", record.name, user.name)));
                }
                _ => {}
            }
            if let Some(pool) = self.pool_on(record.uuid) {
                return Err(super::backends::backend_in_use(&record.name, &pool.record()));
            }
            if self.is_missing(record, |here, told| here.store == told.store).await? {
                self.check_place_is_free(&record.store).await?;
                missing.push(record);
            } else {
                let known = self.catalogue.get::<BackendRecord>(record.uuid).await.map_err(from_catalogue)?;
                if known.record.version < record.version {
                    older.push((known, record));
                }
            }
        }
        let opened = self.open_store(&set, layout.backend, namespace, Namespace::Existing).await?;
        self.check_is_newest(&set, taken, &opened).await?;
        let config = self.config_of(&*opened.store, layout.vpool, &layout.name).await?;
        let (backend, namespace) = (layout.backend, namespace.to_owned());
        let mut record = VpoolRecord { name, namespace, backend, state: State::Ready, ..config.clone() };
        if record != config {
            put_newest_config(&*opened.store, &mut record, self.clock.wall_ms(), &*self.chance).await?;
        }
        for preset in missing_presets {
            self.catalogue.restore(preset.clone()).await.map_err(from_catalogue)?;
        }
        for (known, told) in outdated {
            self.catalogue.update(&known, told.clone()).await.map_err(from_catalogue)?;
        }
        for (known, told) in older {
            self.catalogue.update(&known, told.clone()).await.map_err(from_catalogue)?;
        }
        for backend in missing {
            self.catalogue.restore(backend.clone()).await.map_err(from_catalogue)?;
            self.publish_backend(backend);
        }
        Ok((record, opened))
    }

    /// Whether a record that is told of is not here. One that is has to be the same, and its name nobody else's.
    async fn is_missing<T: Record>(
        &self,
        told: &T,
        is_same: impl Fn(&T, &T) -> bool,
    ) -> Result<bool, Problem> {
        match self.catalogue.find::<T>(told.uuid()).await.map_err(from_catalogue)? {
            Some(known) if is_same(&known.record, told) => Ok(false),
            Some(_) => {
                let detail =
                    format!("{} {} is known here, and is not what the directory says", T::KIND, told.name());
                Err(conflict(detail))
            }
            None => {
                for key in told.index_keys() {
                    if self.catalogue.find_by::<T>(&key).await.map_err(from_catalogue)?.is_some() {
                        let detail = format!("{} {} exists, and is another", T::KIND, told.name());
                        return Err(Problem::new(ProblemKind::Exists, detail));
                    }
                }
                Ok(true)
            }
        }
    }

    /// A part of a store, with these credentials.
    async fn open_part(
        &self,
        store: RemoteStore,
        credentials: &CredentialsRecord,
    ) -> Result<RemoteBackend, Problem> {
        let options = RemoteOptions { retry: PROBE_RETRY, ..RemoteOptions::new(self.seed()) };
        open_store(store, credentials, &self.secrets(), options, self.runtime.clone()).await
    }

    /// A directory that was all of a vPool's backend, as the backend that is known at this place or a new one.
    async fn layout_of_directory(
        &self,
        request: &RecoverVpool,
        path: &str,
        config: VpoolRecord,
    ) -> Result<Layout, Problem> {
        let real = real_path(&*self.clock, Path::new(path)).await?;
        let mut backend = None;
        for known in self.all_backends().await? {
            if let Some(folder) = known.folder()
                && real_path(&*self.clock, Path::new(folder)).await? == real
            {
                backend = Some(known);
                break;
            }
        }
        let backend = backend.unwrap_or_else(|| {
            let asked = serde_json::to_value(&request.backend).unwrap_or_default();
            let store = StoreRecord::Dir { path: path.to_owned() };
            self.new_backend(request.backend.name.clone(), store, labels_of(&request.backend), asked)
        });
        let record = LayoutRecord {
            format: FORMAT,
            vpool: config.id,
            name: config.name,
            backend: backend.uuid,
            backends: vec![backend],
            presets: Vec::new(),
        };
        Ok(Layout { number: 0, record })
    }

    /// The vPool's own part of a backend's: the one whose vPool has this name; or the only one that nobody knows. In a store, where others
    /// may have theirs, or where one cannot be read, only the first.
    async fn find_namespace(&self, place: &Place, name: &Name) -> Result<(String, Told), Problem> {
        let shown = place.shown();
        let folders = match place {
            Place::Dir(path) => {
                let folder = path.clone();
                let folders = tokio::task::spawn_blocking(move || list_namespaces(Path::new(&folder))).await;
                folders
                    .map_err(|error| Problem::new(ProblemKind::Internal, error.to_string()))?
                    .map_err(|error| Problem::new(ProblemKind::NotFound, format!("{shown}: {error}")))?
            }
            Place::Store(store, credentials) => {
                let store = self.open_part((**store).clone(), credentials).await?;
                list_namespaces_of_store(&store).await.map_err(from_backend)?
            }
        };
        let (mut found, mut problems, mut known) = (Vec::new(), Vec::new(), None);
        for (namespace, id) in folders {
            // Whoever uses a folder is not disturbed by another one that opens it.
            if let Some(stored) = self.catalogue.find::<VpoolRecord>(id).await.map_err(from_catalogue)? {
                known = Some(stored.record);
                continue;
            }
            let told = match place {
                Place::Dir(path) => ask_folder(path, &namespace).await,
                Place::Store(store, credentials) => {
                    let prefix = format!("{}/{namespace}", store.prefix);
                    match self.open_part(RemoteStore { prefix, ..(**store).clone() }, credentials).await {
                        Ok(store) => ask_layout(&store).await,
                        Err(problem) => Err(problem),
                    }
                }
            };
            match told {
                Ok(Some(told)) if told.vpool().0 == VpoolId(id) => found.push((namespace, told)),
                Ok(Some(told)) => {
                    problems.push(format!("{namespace}: it has the record of vPool {}", told.vpool().0))
                }
                Ok(None) => problems.push(format!("{namespace}: no record of a vPool")),
                Err(problem) => problems.push(format!("{namespace}: {problem}")),
            }
        }
        let is_damaged = !problems.is_empty();
        if found.len() > 1 || is_damaged || matches!(place, Place::Store(..)) {
            found.retain(|(_, told)| told.vpool().1 == name);
        }
        match (found.pop(), found.is_empty(), known) {
            (Some(found), true, _) => Ok(found),
            (Some(_), false, _) => {
                let detail = format!("{shown}: several vPools there are named {name}");
                Err(Problem::new(ProblemKind::Damaged, detail))
            }
            (None, _, _) if is_damaged => {
                let detail = format!("{shown}: no vPool {name} can be read there: {}", problems.join("; "));
                Err(Problem::new(ProblemKind::Damaged, detail))
            }
            (None, _, Some(known)) => Err(exists("vPool", &known.name, known.id.0)),
            (None, _, None) => {
                let detail = format!("{shown}: there is no vPool {name}");
                Err(Problem::new(ProblemKind::NotFound, detail))
            }
        }
    }
}

/// So many of what a backend is made of have told their layout that those that have not are no more than may be silent.
fn is_heard(set: &BackendSet, opened: &Opened, told: &BTreeMap<Uuid, Option<Layout>>, backend: Uuid) -> bool {
    let (Some(composite), Ok(record)) = (opened.composites.get(&backend), set.backend(backend)) else {
        return told.contains_key(&backend) || !opened.drives.contains_key(&backend);
    };
    let unheard = record.drives_asked().filter(|drive| !is_heard(set, opened, told, *drive)).count();
    unheard <= composite.silent_max() as usize
}

/// The place is where the layout says that this drive is: where the others are is not known otherwise either.
async fn check_is_its_place(
    clock: &dyn Clock,
    layout: &LayoutRecord,
    drive: Uuid,
    place: &Place,
) -> Result<(), Problem> {
    let shown = place.shown();
    let Some(record) = layout.backends.iter().find(|record| record.uuid == drive) else {
        let folders: Vec<&str> = layout.backends.iter().filter_map(|record| record.folder()).collect();
        let detail = format!(
            "{shown} has a drive that is none of vPool {} any more: recover it from {}",
            layout.name,
            if folders.is_empty() { "one that is".to_owned() } else { folders.join(" or ") }
        );
        return Err(conflict(detail));
    };
    let wrong = match (place, &record.store) {
        (Place::Dir(path), StoreRecord::Dir { path: folder }) => {
            let is_it =
                real_path(clock, Path::new(folder)).await? == real_path(clock, Path::new(path)).await?;
            (!is_it).then(|| format!("{folder}: mount it there"))
        }
        (Place::Store(given, _), StoreRecord::Remote { store, .. }) => {
            let told = decode_store(store)?;
            (!is_same_place(&told, given)).then(|| format!("{told}: name it so"))
        }
        (_, StoreRecord::Dir { path: folder }) => Some(format!("{folder}: mount it there")),
        (_, StoreRecord::Remote { store, .. }) => Some(format!("{}: name it so", decode_store(store)?)),
        (_, StoreRecord::Composite { .. }) => Some("no place of its own".to_owned()),
    };
    match wrong {
        None => Ok(()),
        Some(wrong) => Err(conflict(format!("{shown} has drive {}, which was at {wrong}", record.name))),
    }
}

async fn ask_folder(path: &str, namespace: &str) -> Result<Option<Told>, Problem> {
    let folder = Path::new(path).join(namespace);
    let options = DirOptions { io_uring: false, ..DirOptions::new(folder) };
    let opened = tokio::task::spawn_blocking(move || DirBackend::open_existing(options));
    let store = opened
        .await
        .map_err(|error| Problem::new(ProblemKind::Internal, format!("opening a backend: {error}")))?
        .map_err(from_backend)?;
    if let Some(config) = get_config(&store).await? {
        return Ok(Some(Told::Config(Box::new(config), path.to_owned())));
    }
    ask_layout(&store).await
}

async fn ask_layout(store: &dyn Backend) -> Result<Option<Told>, Problem> {
    let drive = drives_at(store).await.map_err(from_backend)?.into_iter().next();
    let layout = newest_layout(store).await.map_err(from_backend)?;
    Ok(layout.zip(drive).map(|(layout, drive)| Told::Layout(Box::new(layout), drive)))
}

/// Folders that vPools have in a backend's, and which vPools.
fn list_namespaces(path: &Path) -> std::io::Result<Vec<(String, Uuid)>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let uuid = name.strip_prefix("vpool-").and_then(|uuid| Uuid::try_parse(uuid).ok());
        folders.extend(uuid.map(|uuid| (name, uuid)));
    }
    folders.sort();
    Ok(folders)
}

/// The same of a store. What else is in one that was found is passed by.
async fn list_namespaces_of_store(store: &dyn Backend) -> Result<Vec<(String, Uuid)>, BackendError> {
    let (mut namespaces, mut after) = (BTreeMap::new(), None);
    loop {
        let found = store.list("vpool-", after.as_ref(), NAMES_AT_ONCE).await?;
        let Some(last) = found.last() else { return Ok(namespaces.into_iter().collect()) };
        let namespace = |name: &ObjectName| {
            let (namespace, _) = name.as_str().split_once('/')?;
            let uuid = Uuid::try_parse(namespace.strip_prefix("vpool-")?).ok()?;
            Some((namespace.to_owned(), uuid))
        };
        namespaces.extend(found.iter().filter_map(|info| namespace(&info.name)));
        // '0' is what comes after '/'.
        let behind = namespace(&last.name).and_then(|(name, _)| ObjectName::new(format!("{name}0")).ok());
        after = Some(behind.unwrap_or_else(|| last.name.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use ovs_backend::{CountingBackend, MemoryBackend, Urgency};

    #[test]
    fn namespaces_of_a_store_are_found_without_listing_what_is_in_them() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = CountingBackend::new(MemoryBackend::new());
            let uuids = [1, 2, u128::MAX].map(Uuid::from_u128);
            let namespaces = uuids.map(|uuid| format!("vpool-{uuid}"));
            let mut names: Vec<String> = [
                "a/b",
                "vpool-/x",
                "vpool-none/pool/x",
                "vpool",
                "vpoolx/y",
                "vpool-00000000/x",
                "vpool-00000000-0000",
            ]
            .map(str::to_owned)
            .into();
            for namespace in &namespaces {
                names.extend((0..3 * NAMES_AT_ONCE).map(|number| format!("{namespace}/v/{number}")));
                names.push(format!("{namespace}/pool/drive-1"));
            }
            for name in names.iter().filter_map(|name| ObjectName::new(name.clone()).ok()) {
                store.put(&name, vec![Bytes::from_static(b"x")], Urgency::Normal).await.unwrap();
            }
            let found = list_namespaces_of_store(&store).await.unwrap();
            assert_eq!(found, namespaces.into_iter().zip(uuids).collect::<Vec<_>>());
            assert!(store.counts().list.calls <= 6);
        });
    }
}
