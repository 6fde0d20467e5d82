//! Backends: making them, showing them, forgetting them.
//!
//! A backend has one user: a vPool, or a composite that it is a drive of. So a composite is made of nothing twice and nothing is
//! made of itself.

use super::{
    Volumes,
    composites::check_is_no_relic,
    idempotency::Terms,
    namespace::{cannot_use, folder_space, look, make_folder, mark, real_path},
    plan::{PlannedDrive, plan, why_unsatisfied},
    presets::from_policy,
    problem::{exists, from_catalogue, not_found},
    remotes::{decode_store, store_of},
    stores::{BackendSet, NESTING_MAX},
};
use futures_util::future::{LocalBoxFuture, join_all};
use ovs_api::{
    Backend as ApiBackend, BackendPlan, CreateBackend, Created, EventKind, Policy, Problem, ProblemKind,
};
use ovs_cluster::catalogue::{
    BackendRecord, CatalogueError, Labels, PresetRecord, StoreRecord, Stored, VerificationRecord, VpoolRecord,
};
use ovs_units::Name;
use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use uuid::Uuid;

impl Volumes {
    /// Makes a backend. A store is tried before anything is locked or written.
    pub async fn create_backend(
        &self,
        request: CreateBackend,
        terms: Terms,
    ) -> Result<Created<ApiBackend>, Problem> {
        let asked = serde_json::to_value(&request).unwrap_or_default();
        if let Some(known) = self.known_backend(&request, &asked, &terms).await? {
            return Ok(known);
        }
        let tried = match request.remote.as_ref().and_then(|remote| store_of(request.kind, remote)) {
            Some(store) => {
                self.check_store_is_free(&store).await?;
                Some(self.probe_store(store).await?)
            }
            None => None,
        };
        let _locked = self.locks.lock("backends").await;
        if let Some(known) = self.known_backend(&request, &asked, &terms).await? {
            return Ok(known);
        }
        let store = match (tried, &request.path) {
            (Some(store), _) => {
                self.check_store_is_free(&store).await?;
                store
            }
            (None, Some(path)) => {
                let folder = PathBuf::from(path);
                self.check_backend_path(&folder).await?;
                make_folder(&*self.clock, &folder).await.map_err(|error| cannot_use(&folder, &error))?;
                StoreRecord::Dir { path: path.clone() }
            }
            (None, None) => {
                let (store, drives, _) = self.compose(&request).await?;
                self.begin_as_drives(drives).await?;
                store
            }
        };
        let labels = labels_of(&request);
        let record = self.insert_backend(request.name, store, labels, asked.clone()).await?;
        self.remember(&terms, &asked, record.uuid).await?;
        Ok(Created::new(self.show_backend(&record).await?))
    }

    /// What a composite would come to.
    pub async fn plan_backend(&self, request: CreateBackend) -> Result<BackendPlan, Problem> {
        if let Some(known) = self.backend_by_name(&request.name).await? {
            return Err(exists("backend", &request.name, known.record.uuid));
        }
        if request.of.is_empty() {
            let detail =
                "type: a dry run says what a composite would come to; other types have nothing to plan";
            return Err(Problem::new(ProblemKind::Conflict, detail));
        }
        self.compose(&request).await.map(|(_, _, plan)| plan)
    }

    async fn known_backend(
        &self,
        request: &CreateBackend,
        asked: &serde_json::Value,
        terms: &Terms,
    ) -> Result<Option<Created<ApiBackend>>, Problem> {
        if let Some(uuid) = self.idempotent::<BackendRecord>(terms, asked).await? {
            let known = self.catalogue.get::<BackendRecord>(uuid).await.map_err(from_catalogue)?;
            return Ok(Some(Created::existing(self.show_backend(&known.record).await?)));
        }
        match self.backend_by_name(&request.name).await? {
            Some(known) if known.record.request != *asked => {
                Err(exists("backend", &request.name, known.record.uuid))
            }
            Some(known) => Ok(Some(Created::existing(self.show_backend(&known.record).await?))),
            None => Ok(None),
        }
    }

    /// A composite, not stored yet, and what it comes to. Refused unless puts can be acknowledged on it.
    async fn compose(
        &self,
        request: &CreateBackend,
    ) -> Result<(StoreRecord, Vec<Stored<BackendRecord>>, BackendPlan), Problem> {
        let set = self.backend_set().await?;
        let preset_name = request
            .preset
            .as_ref()
            .ok_or_else(|| Problem::field("preset", "nothing", "an existing preset"))?;
        let stored = self.preset_by_name(preset_name).await?.ok_or_else(|| {
            let detail = format!("preset: there is no preset {preset_name}: make it with ovs preset create");
            Problem::new(ProblemKind::NotFound, detail)
        })?;
        let mut drives = Vec::new();
        for name in &request.of {
            let drive = self.backend_by_name(name).await?.ok_or_else(|| not_found("backend", name))?;
            self.check_is_unused(&set, &drive.record).await?;
            check_is_no_relic(&set, &drive.record)?;
            set.parts(drive.record.uuid)?;
            if set.nesting(drive.record.uuid).is_none_or(|nesting| nesting >= NESTING_MAX) {
                let allowed = format!("at most {NESTING_MAX} composites in one another");
                return Err(Problem::field("of", name, &allowed));
            }
            drives.push(drive);
        }
        self.check_all_can_be_read().await?;
        let uuids: Vec<Uuid> = drives.iter().map(|drive| drive.record.uuid).collect();
        let plan = self.plan_of(&set, &uuids, &stored.record).await?;
        if plan.policy.is_none() {
            let reasons: Vec<String> = plan.policies.iter().map(|of| why_unsatisfied(&plan, of)).collect();
            let detail = format!("preset: no policy of {preset_name} is satisfied: {}", reasons.join("; "));
            return Err(Problem::new(ProblemKind::Conflict, detail));
        }
        let (duties, departed) = (BTreeMap::new(), Vec::new());
        let store = StoreRecord::Composite { drives: uuids, preset: stored.record.uuid, duties, departed };
        Ok((store, drives, plan))
    }

    /// Where fragments are follows from the nodes of drives: from now on it does not matter what this host is called. Their
    /// directories are marked.
    pub(super) async fn begin_as_drives(&self, drives: Vec<Stored<BackendRecord>>) -> Result<(), Problem> {
        for drive in drives {
            let Some(folder) = drive.record.folder() else { continue };
            let root = Path::new(folder);
            mark(&*self.clock, root, drive.record.uuid).await.map_err(|error| cannot_use(root, &error))?;
            let mut record = drive.record.clone();
            record.labels.node.get_or_insert_with(|| self.settings.host_name.clone());
            // A program that knows directories alone would take it for one that nobody uses.
            record.format = record.format.max(BackendRecord::FORMAT_OF_PARTS);
            if record == drive.record {
                continue;
            }
            record.version += 1;
            self.catalogue.update(&drive, record).await.map_err(from_catalogue)?;
        }
        Ok(())
    }

    /// What these drives under this preset come to.
    pub(super) fn plan_of<'a>(
        &'a self,
        set: &'a BackendSet,
        drives: &'a [Uuid],
        preset: &'a PresetRecord,
    ) -> LocalBoxFuture<'a, Result<BackendPlan, Problem>> {
        Box::pin(async move {
            let drives: Vec<&BackendRecord> =
                drives.iter().map(|uuid| set.backend(*uuid)).collect::<Result<_, _>>()?;
            let rooms = join_all(drives.iter().map(|drive| self.room(set, drive))).await;
            let mut planned = Vec::new();
            let mut devices: BTreeMap<String, BTreeSet<&Name>> = BTreeMap::new();
            let mut remarks = Vec::new();
            for (drive, room) in drives.iter().zip(rooms) {
                let room = room?;
                let (bytes, raw_bytes) = (room.bytes, room.raw_bytes);
                planned.push(PlannedDrive { place: set.place(drive.uuid), bytes, raw_bytes });
                for device in room.devices {
                    devices.entry(device).or_default().insert(&drive.name);
                }
                remarks.extend(room.remarks.iter().map(|remark| format!("{}: {remark}", drive.name)));
            }
            let policies: Vec<Policy> = preset.policies.iter().copied().map(from_policy).collect();
            let mut plan = plan(&planned, &policies);
            plan.remarks = remarks;
            // Several have several in common, perhaps.
            let mut told = BTreeSet::new();
            for (device, together) in devices.iter().filter(|(_, names)| names.len() > 1) {
                let names: Vec<&str> = together.iter().map(|name| name.as_str()).collect();
                let remark = format!(
                    "{} are {device}: what is lost with it is lost together, and their room is counted more than once",
                    names.join(", ")
                );
                if told.insert(names) {
                    plan.remarks.push(remark);
                }
            }
            for of in plan.policies.iter().filter(|of| !of.is_satisfied) {
                plan.remarks.push(why_unsatisfied(&plan, of));
            }
            if plan.policies.iter().find(|of| of.is_satisfied).is_some_and(|of| of.drives_lost_max == 0) {
                plan.remarks.push("no drive may be lost: each object needs all that it is stored on".into());
            } else if plan.drives_away_max == 0 && plan.policy.is_some() {
                plan.remarks.push(
                    "while a drive is away vDisks are read, and neither opened nor written for long: a put may need every drive, or \
                     a policy has no more fragments acknowledged than it takes to read them (c = k)"
                        .into(),
                );
            }
            Ok(plan)
        })
    }

    async fn room(&self, set: &BackendSet, drive: &BackendRecord) -> Result<Room, Problem> {
        match &drive.store {
            StoreRecord::Dir { path } => {
                let space = folder_space(&*self.clock, PathBuf::from(path)).await;
                let bytes = space.map(|(total_bytes, _)| total_bytes);
                let device =
                    self.device_of(path).await.map(|device| format!("on one file system ({device:x})"));
                let devices = device.into_iter().collect();
                Ok(Room { bytes, raw_bytes: bytes, devices, remarks: Vec::new() })
            }
            StoreRecord::Remote { store, .. } => {
                let device = format!("at one address ({})", decode_store(store)?.endpoint());
                Ok(Room { devices: BTreeSet::from([device]), ..Room::default() })
            }
            StoreRecord::Composite { preset, .. } => {
                let mut devices = BTreeSet::new();
                for part in set.parts_asked(drive.uuid)? {
                    if part.drives().is_empty() {
                        devices.extend(Box::pin(self.room(set, part)).await?.devices);
                    }
                }
                let serving = set.serving(drive);
                let plan = self.plan_of(set, &serving, set.preset(*preset)?).await?;
                Ok(Room {
                    bytes: plan.usable_bytes,
                    raw_bytes: plan.raw_bytes,
                    devices,
                    remarks: plan.remarks,
                })
            }
        }
    }

    /// The file system that a directory is on.
    async fn device_of(&self, path: &str) -> Option<u64> {
        let path = PathBuf::from(path);
        look(&*self.clock, move || Some(std::fs::metadata(path).ok()?.dev())).await?
    }

    pub(super) async fn insert_backend(
        &self,
        name: Name,
        store: StoreRecord,
        labels: Labels,
        request: serde_json::Value,
    ) -> Result<BackendRecord, Problem> {
        let record = self.new_backend(name, store, labels, request);
        let record = self.catalogue.insert(record).await.map_err(from_catalogue)?.record;
        self.write_inventory().await?;
        self.publish_backend(&record);
        Ok(record)
    }

    pub(super) fn new_backend(
        &self,
        name: Name,
        store: StoreRecord,
        labels: Labels,
        request: serde_json::Value,
    ) -> BackendRecord {
        BackendRecord {
            format: BackendRecord::format_of(&store),
            uuid: self.chance.uuid(),
            name,
            version: 1,
            store,
            labels,
            created_ms: self.clock.wall_ms(),
            request,
        }
    }

    pub(super) fn publish_backend(&self, record: &BackendRecord) {
        self.publish(EventKind::BackendCreated, |event| {
            event.subject = Some(record.uuid);
            event.name = Some(record.name.to_string());
            event.revision = Some(record.version);
        });
    }

    /// No other backend is there, in there or around it.
    pub(super) async fn check_place_is_free(&self, store: &StoreRecord) -> Result<(), Problem> {
        match store {
            StoreRecord::Dir { path } => self.check_backend_path(Path::new(path)).await,
            StoreRecord::Remote { .. } => self.check_store_is_free(store).await,
            StoreRecord::Composite { .. } => Ok(()),
        }
    }

    /// A folder in another backend's folder, or around it, would mix their objects.
    pub(super) async fn check_backend_path(&self, path: &Path) -> Result<(), Problem> {
        let real = real_path(&*self.clock, path).await?;
        for known in self.all_backends().await? {
            let Some(folder) = known.folder() else { continue };
            let other = real_path(&*self.clock, Path::new(folder)).await?;
            if real.starts_with(&other) || other.starts_with(&real) {
                let detail = format!(
                    "path: {} is, holds or lies in {folder}, the folder of backend {}",
                    path.display(),
                    known.name
                );
                return Err(Problem::new(ProblemKind::InUse, detail).with("uuid", known.uuid.to_string()));
            }
        }
        Ok(())
    }

    /// The same for object stores.
    async fn check_store_is_free(&self, record: &StoreRecord) -> Result<(), Problem> {
        let StoreRecord::Remote { store, .. } = record else { return Ok(()) };
        let address = format!("{}/", decode_store(store)?.address());
        for known in self.all_backends().await? {
            let StoreRecord::Remote { store, .. } = &known.store else { continue };
            let other = format!("{}/", decode_store(store)?.address());
            if address.starts_with(&other) || other.starts_with(&address) {
                let detail =
                    format!("remote: {address} is, holds or lies in the part of backend {}", known.name);
                return Err(Problem::new(ProblemKind::InUse, detail).with("uuid", known.uuid.to_string()));
            }
        }
        Ok(())
    }

    /// Forgets a backend that nobody uses; what is on it stays.
    pub async fn delete_backend(&self, name: Name, terms: Terms) -> Result<(), Problem> {
        let _locked = self.locks.lock("backends").await;
        let stored = self.backend_by_name(&name).await?.ok_or_else(|| not_found("backend", &name))?;
        terms.check_revision(stored.record.version)?;
        self.forget_backend(&stored).await
    }

    /// Neither a vPool nor a composite uses it, also none that is half made or half deleted.
    pub(super) async fn check_is_unused(
        &self,
        set: &BackendSet,
        record: &BackendRecord,
    ) -> Result<(), Problem> {
        let log = |error: CatalogueError| tracing::error!(%error, "a vPool's record cannot be read");
        let vpools = self.catalogue.all::<VpoolRecord>(log).await.map_err(from_catalogue)?;
        if let Some(user) = vpools.iter().find(|stored| stored.record.backend == record.uuid) {
            return Err(backend_in_use(&record.name, &user.record));
        }
        match set.composite_of(record.uuid) {
            Some(user) => Err(is_drive_of(&record.name, user)),
            None => Ok(()),
        }
    }

    /// What cannot be read may use whatever there is: nothing is forgotten meanwhile.
    pub(super) async fn check_all_can_be_read(&self) -> Result<(), Problem> {
        let mut unread = Vec::new();
        let mut note = |error: CatalogueError| unread.push(error.to_string());
        self.catalogue.all::<VpoolRecord>(&mut note).await.map_err(from_catalogue)?;
        self.catalogue.all::<BackendRecord>(&mut note).await.map_err(from_catalogue)?;
        if unread.is_empty() {
            return Ok(());
        }
        let detail = format!("whether it is used cannot be told: {}", unread.join("; "));
        Err(Problem::new(ProblemKind::Damaged, detail))
    }

    pub(super) async fn forget_backend(&self, stored: &Stored<BackendRecord>) -> Result<(), Problem> {
        self.check_is_unused(&self.backend_set().await?, &stored.record).await?;
        self.check_all_can_be_read().await?;
        self.change_inventory(|inventory| inventory.forget(stored.record.uuid)).await?;
        if !stored.record.drives().is_empty() {
            let discarded = self.catalogue.discard::<VerificationRecord>(stored.record.uuid).await;
            discarded.map_err(from_catalogue)?;
        }
        self.catalogue.remove(stored).await.map_err(from_catalogue)?;
        self.object_gone(stored.record.uuid).await;
        self.publish(EventKind::BackendDeleted, |event| {
            event.subject = Some(stored.record.uuid);
            event.name = Some(stored.record.name.to_string());
        });
        Ok(())
    }

    pub(super) async fn all_backends(&self) -> Result<Vec<BackendRecord>, Problem> {
        let log = |error: CatalogueError| tracing::error!(%error, "a backend's record cannot be read");
        let stored = self.catalogue.all::<BackendRecord>(log).await.map_err(from_catalogue)?;
        Ok(stored.into_iter().map(|stored| stored.record).collect())
    }

    pub(super) async fn backend_by_name(
        &self,
        name: &Name,
    ) -> Result<Option<Stored<BackendRecord>>, Problem> {
        self.catalogue.find_by(&BackendRecord::name_key(name)).await.map_err(from_catalogue)
    }

    /// The names of the composites under a preset.
    pub(super) async fn backends_of_preset(&self, uuid: Uuid) -> Result<Vec<Name>, Problem> {
        let is_under = |record: &BackendRecord| matches!(&record.store, StoreRecord::Composite { preset, .. } if *preset == uuid);
        let mut names: Vec<Name> =
            self.all_backends().await?.into_iter().filter(is_under).map(|record| record.name).collect();
        names.sort();
        Ok(names)
    }
}

pub(super) fn labels_of(request: &CreateBackend) -> Labels {
    Labels { node: request.node.clone(), site: request.site.clone(), weight: request.weight.unwrap_or(1) }
}

/// What is known of a drive's room.
#[derive(Default)]
struct Room {
    /// For objects, where there is such a notion.
    bytes: Option<u64>,
    /// Of what it is made of in the end.
    raw_bytes: Option<u64>,
    /// What else is lost with it although nobody said so.
    devices: BTreeSet<String>,
    remarks: Vec<String>,
}

pub(super) fn backend_in_use(name: &Name, vpool: &VpoolRecord) -> Problem {
    let detail = format!("backend {name} is used by vPool {}", vpool.name);
    Problem::new(ProblemKind::InUse, detail).with("uuid", vpool.id.to_string())
}

fn is_drive_of(name: &Name, composite: &BackendRecord) -> Problem {
    let detail = format!("backend {name} is a drive of backend {}", composite.name);
    Problem::new(ProblemKind::InUse, detail).with("uuid", composite.uuid.to_string())
}
