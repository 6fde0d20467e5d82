//! The life of a composite's drives: they come, leave, and are lost.
//!
//! ```text
//!  nobody's ─add─▶ serving ◀─add─── leaving ─▶ nobody's again, when nothing on it is needed
//!                     │ └───remove───▶ │
//!                     └─ remove --lost, or silent for too long ─▶ lost ─▶ none any more, when it was made good on the others
//! ```
//!
//! Every change goes: check → record in the registry (the intention, with a higher version) → `vpools.json` → the layout on the
//! drives → the open composite → event. A crash after the record is made good by the next opening, which takes what drives are for
//! from there; the layout is renewed after each start.
//!
//! How they go in the end is in `departed.rs`.
//!
//! A drive that was lost is never asked again under its name, whatever is on it when it comes back: what it has not was deleted
//! perhaps, and what it has.

use super::{
    Pool, Volumes,
    composite::Member,
    departed::is_being_emptied,
    idempotency::Terms,
    locks::Locked,
    namespace::{Namespace, folder_space, look, mark_of},
    plan::{shortage, why_unsatisfied},
    pools::offline,
    problem::{from_catalogue, not_found},
    stores::{BackendSet, NESTING_MAX, Opened, duty_of},
};
use ovs_api::{
    Accepted, AddDrive, Backend as ApiBackend, BackendPlan, EventKind, Problem, ProblemKind,
    RemoveDriveQuery, Task,
};
use ovs_backend::coded::{self, Duty, Survey};
use ovs_cluster::catalogue::{
    BackendRecord, CatalogueError, DepartedRecord, DutyRecord, State, StoreRecord, Stored, VpoolRecord,
};
use ovs_units::Name;
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
};
use uuid::Uuid;

/// Names of objects in a refusal.
const NAMES_TOLD: usize = 5;

/// A composite, while nobody else changes it.
pub(super) struct Change {
    stored: Stored<BackendRecord>,
    pub(super) set: BackendSet,
    /// What it is a part of in the end.
    root: Uuid,
    /// The vPool on that.
    pub(super) pool: Option<Rc<Pool>>,
    _locked: (Locked, Option<Locked>),
}

impl Change {
    pub(super) fn record(&self) -> &BackendRecord {
        &self.stored.record
    }

    fn uuid(&self) -> Uuid {
        self.stored.record.uuid
    }
}

/// What a composite's record says of its drives.
#[derive(Clone)]
pub(super) struct Drives {
    pub(super) drives: Vec<Uuid>,
    preset: Uuid,
    pub(super) duties: BTreeMap<Uuid, DutyRecord>,
    pub(super) departed: Vec<DepartedRecord>,
}

impl Drives {
    pub(super) fn of(record: &BackendRecord) -> Result<Drives, Problem> {
        match record.store.clone() {
            StoreRecord::Composite { drives, preset, duties, departed } => {
                Ok(Drives { drives, preset, duties, departed })
            }
            StoreRecord::Dir { .. } | StoreRecord::Remote { .. } => {
                let detail = format!("backend {} has no drives: it is no composite", record.name);
                Err(Problem::new(ProblemKind::Conflict, detail))
            }
        }
    }

    fn store(self) -> StoreRecord {
        let Drives { drives, preset, duties, departed } = self;
        StoreRecord::Composite { drives, preset, duties, departed }
    }
}

pub(super) fn conflict(detail: String) -> Problem {
    Problem::new(ProblemKind::Conflict, detail)
}

impl Volumes {
    /// Makes a backend a drive of a composite, or a drive that is leaving serve again.
    pub async fn add_drive(
        &self,
        composite: Name,
        request: AddDrive,
        terms: Terms,
    ) -> Result<ApiBackend, Problem> {
        let asked = json!({"backend": composite, "drive": request.drive});
        if let Some(uuid) = self.idempotent::<BackendRecord>(&terms, &asked).await? {
            let known = self.catalogue.get::<BackendRecord>(uuid).await.map_err(from_catalogue)?;
            return self.show_backend(&known.record).await;
        }
        let uuid = self.composite_named(&composite).await?.record.uuid;
        let change = self.begin_change(uuid).await?;
        terms.check_revision(change.record().version)?;
        let stored = self.backend_by_name(&request.drive).await?;
        let drive = stored.ok_or_else(|| not_found("backend", &request.drive))?;
        let is_drive = change.record().drives().contains(&drive.record.uuid);
        let record = match (is_drive, change.record().duty(drive.record.uuid)) {
            (true, None) => change.record().clone(),
            (true, Some(DutyRecord::Leaving)) => self.serve_again(change, &drive.record).await?,
            (true, Some(DutyRecord::Lost | DutyRecord::GivenUp)) => {
                return Err(conflict(format!(
                    "drive {} was given up as lost: what is on it is old. {}",
                    request.drive,
                    how_to_use_again(&drive.record)
                )));
            }
            (false, _) => self.take_in_drive(change, drive).await?,
        };
        self.remember(&terms, &asked, uuid).await?;
        self.show_backend(&record).await
    }

    async fn serve_again(&self, change: Change, drive: &BackendRecord) -> Result<BackendRecord, Problem> {
        let mut drives = Drives::of(change.record())?;
        drives.duties.remove(&drive.uuid);
        let detail = format!("drive {} serves again", drive.name);
        self.store_change(&change, drives, detail, |volumes, change, set| {
            volumes.set_duties(change, set, &[drive.uuid]);
        })
        .await
    }

    async fn take_in_drive(
        &self,
        change: Change,
        drive: Stored<BackendRecord>,
    ) -> Result<BackendRecord, Problem> {
        let (uuid, name) = (drive.record.uuid, drive.record.name.clone());
        let mut drives = Drives::of(change.record())?;
        self.check_is_unused(&change.set, &drive.record).await?;
        check_is_no_relic(&change.set, &drive.record)?;
        self.check_all_can_be_read().await?;
        if drives.departed.iter().any(|gone| gone.uuid == uuid) {
            let detail = format!(
                "backend {name} was a drive of {} before, and is none again under the same identity. {}",
                change.record().name,
                how_to_use_again(&drive.record)
            );
            return Err(conflict(detail));
        }
        drives.drives.push(uuid);
        self.check_can_contain(&change, &drive.record, &drives)?;
        let namespace = change.pool.as_ref().map(|pool| pool.record().namespace);
        self.check_place_is_fresh(&change.set, uuid, namespace.as_deref()).await?;
        // Its node is written down, and its directory marked, before anything of the vPool is there.
        self.begin_as_drives(vec![drive]).await?;
        let set = self.backend_set().await?.with(changed(&change, drives.clone()));
        let begun = match &namespace {
            Some(namespace) => Some(self.begin_drive(&set, change.root, uuid, namespace).await?),
            None => None,
        };
        let detail = format!("drive {name} is new");
        self.store_change(&change, drives, detail, |volumes, change, set| {
            if let Some(begun) = begun {
                volumes.use_drive(change, set, uuid, begun);
            }
        })
        .await
    }

    /// Composites do not contain themselves, and are so deep at most.
    fn check_can_contain(
        &self,
        change: &Change,
        drive: &BackendRecord,
        drives: &Drives,
    ) -> Result<(), Problem> {
        let parts = change.set.parts(drive.uuid)?;
        if parts.iter().any(|part| part.uuid == change.uuid()) {
            return Err(Problem::field("drive", &drive.name, "none that the composite is a part of"));
        }
        let set = change.set.with(changed(change, drives.clone()));
        if set.nesting(change.root).is_none_or(|depth| depth > NESTING_MAX) {
            let allowed = format!("at most {NESTING_MAX} composites in one another");
            return Err(Problem::field("drive", &drive.name, &allowed));
        }
        Ok(())
    }

    /// Nothing is there that another drive, or a vPool, has left. What was begun of this one and not finished goes on.
    async fn check_place_is_fresh(
        &self,
        set: &BackendSet,
        drive: Uuid,
        namespace: Option<&str>,
    ) -> Result<(), Problem> {
        for part in set.parts_asked(drive)? {
            let Some(folder) = part.folder() else { continue };
            let (root, own) = (PathBuf::from(folder), part.uuid);
            let namespace = namespace.map(str::to_owned);
            let found = look(&*self.clock, move || find_left(&root, own, namespace.as_deref())).await;
            let left = found.unwrap_or_else(|| Err(std::io::ErrorKind::TimedOut.into()));
            let left = left.map_err(|error| {
                let detail = format!("drive: {folder} cannot be read: {error}");
                Problem::new(ProblemKind::Conflict, detail)
            })?;
            if let Some(left) = left {
                let detail = format!(
                    "drive: {folder} has {left} of another drive or vPool, whose contents are not to be mixed with those of this \
                     one: empty the directory first, or use another"
                );
                return Err(conflict(detail));
            }
        }
        Ok(())
    }

    /// Takes a drive out of a composite: what is on it moves to the others first, or is made again where it is lost.
    pub async fn remove_drive(
        self: &Rc<Self>,
        composite: Name,
        drive: Name,
        query: RemoveDriveQuery,
        terms: Terms,
    ) -> Result<Accepted<Task>, Problem> {
        loop {
            let stored = self.composite_named(&composite).await?;
            terms.check_revision(stored.record.version)?;
            let set = self.backend_set().await?;
            let known = self
                .backend_by_name(&drive)
                .await?
                .filter(|known| stored.record.drives().contains(&known.record.uuid));
            let known = known.ok_or_else(|| {
                let detail = format!("backend {drive} is no drive of backend {composite}");
                Problem::new(ProblemKind::NotFound, detail)
            })?;
            let going = (stored.record.uuid, known.record.uuid);
            let duty = match (query.lost, query.accept_loss) {
                (true, true) => DutyRecord::GivenUp,
                (true, false) => DutyRecord::Lost,
                (false, _) => DutyRecord::Leaving,
            };
            if is_as_much(stored.record.duty(going.1), duty) {
                return self.begin_removal_task(going, (composite, drive)).map(Accepted);
            }
            // What takes long, before anything is locked.
            self.check_may_go(&set, &stored.record, &known.record, duty).await?;
            let change = self.begin_change(stored.record.uuid).await?;
            if change.record().version != stored.record.version {
                continue;
            }
            self.let_go(change, &[going.1], duty, "as was asked").await?;
            return self.begin_removal_task(going, (composite, drive)).map(Accepted);
        }
    }

    /// The others can do without it.
    async fn check_may_go(
        &self,
        set: &BackendSet,
        composite: &BackendRecord,
        drive: &BackendRecord,
        duty: DutyRecord,
    ) -> Result<(), Problem> {
        let rest: Vec<Uuid> = composite.drives_asked().filter(|uuid| *uuid != drive.uuid).collect();
        if rest.is_empty() {
            let detail = format!(
                "drive {} is the last that backend {} has: add another first",
                drive.name, composite.name
            );
            return Err(conflict(detail));
        }
        let pool = self.pool_on(set.root(composite.uuid));
        match (duty, pool) {
            (DutyRecord::Leaving, pool) => {
                if let Some(pool) = pool.filter(|pool| pool.backend().is_none()) {
                    return Err(offline(&pool));
                }
                self.check_others_have_room(set, composite, drive).await
            }
            (DutyRecord::Lost, Some(pool)) => self.check_is_made_good(set, &pool, composite, drive).await,
            (DutyRecord::Lost | DutyRecord::GivenUp, _) => Ok(()),
        }
    }

    async fn check_others_have_room(
        &self,
        set: &BackendSet,
        composite: &BackendRecord,
        drive: &BackendRecord,
    ) -> Result<(), Problem> {
        let StoreRecord::Composite { preset, .. } = &composite.store else { return Ok(()) };
        let rest: Vec<Uuid> = set.serving(composite).into_iter().filter(|uuid| *uuid != drive.uuid).collect();
        let plan = self.plan_of(set, &rest, set.preset(*preset)?).await?;
        if plan.policy.is_none() {
            let reasons: Vec<String> = plan.policies.iter().map(|of| why_unsatisfied(&plan, of)).collect();
            let detail =
                format!("without drive {} no policy is satisfied: {}", drive.name, reasons.join("; "));
            return Err(conflict(detail));
        }
        let now = self.plan_of(set, &set.serving(composite), set.preset(*preset)?).await?;
        let places = |plan: &BackendPlan| {
            let used = plan.policies.iter().find(|of| Some(of.policy) == now.policy);
            used.map_or(0, |of| of.fragment_count)
        };
        if plan.policy == now.policy && places(&plan) < places(&now) {
            let detail = format!(
                "without drive {} there are places for {} fragments of an object instead of {}, and one that has no other place stays \
                 on it: add a drive first",
                drive.name,
                places(&plan),
                places(&now)
            );
            return Err(conflict(detail));
        }
        let stored = self.open_composite(composite.uuid).and_then(|(_, open)| open.coded.upkeep().last);
        let Some(stored) = stored.map(|survey| survey.all.bytes) else { return Ok(()) };
        let mut free = Some(0u64);
        for uuid in &rest {
            let space = match set.backend(*uuid)?.folder() {
                Some(folder) => folder_space(&*self.clock, PathBuf::from(folder)).await,
                None => None,
            };
            free = free.zip(space).map(|(sum, (_, free))| sum.saturating_add(free));
        }
        let weights = |uuids: &mut dyn Iterator<Item = Uuid>| -> u64 {
            uuids.filter_map(|uuid| Some(u64::from(set.backend(uuid).ok()?.labels.weight))).sum()
        };
        let share = weights(&mut std::iter::once(drive.uuid));
        let all = weights(&mut set.serving(composite).into_iter()).max(1);
        let moving = (u128::from(stored) * u128::from(share) / u128::from(all)) as u64;
        match shortage(stored, moving, free, &plan) {
            Some(reason) => {
                let detail = format!(
                    "without drive {} there is too little room: {reason}. Add a drive first",
                    drive.name
                );
                Err(conflict(detail))
            }
            None => Ok(()),
        }
    }

    /// What would be left if it were lost can all be read.
    async fn check_is_made_good(
        &self,
        set: &BackendSet,
        pool: &Pool,
        composite: &BackendRecord,
        drive: &BackendRecord,
    ) -> Result<(), Problem> {
        let survey = self.survey_without(set, pool, composite, drive.uuid).await?;
        if survey.unreadable == 0 && !survey.may_have_lost_unseen {
            return Ok(());
        }
        let mut reasons = Vec::new();
        if survey.unreadable > 0 {
            let first: Vec<&str> =
                survey.unreadable_names.iter().take(NAMES_TOLD).map(|name| name.as_str()).collect();
            reasons.push(format!(
                "{} objects cannot be read without it, the first of them: {}",
                survey.unreadable,
                first.join(", ")
            ));
        }
        if survey.may_have_lost_unseen {
            reasons.push(
                "so many drives would be lost that objects may be gone of which nothing is left to tell"
                    .to_owned(),
            );
        }
        if let Some(outer) = set.composite_of(composite.uuid) {
            reasons.push(format!(
                "what are objects here are fragments to backend {}, which may have them otherwise",
                outer.name
            ));
        }
        let detail = format!(
            "drive {} is not given up: {}. Bring it back, or accept the loss with --accept-loss",
            drive.name,
            reasons.join("; ")
        );
        let names: Vec<String> = survey.unreadable_names.iter().map(ToString::to_string).collect();
        Err(conflict(detail).with("unreadable", survey.unreadable).with("unreadable_names", json!(names)))
    }

    /// What would be found if a drive were lost. Nothing changes.
    async fn survey_without(
        &self,
        set: &BackendSet,
        pool: &Pool,
        composite: &BackendRecord,
        drive: Uuid,
    ) -> Result<Survey, Problem> {
        let mut drives = Drives::of(composite)?;
        drives.duties.insert(drive, DutyRecord::Lost);
        let set = set.with(BackendRecord { store: drives.store(), ..composite.clone() });
        let record = pool.record();
        let (opened, _) =
            self.open_what_is_there(&set, record.backend, &record.namespace, Namespace::Existing).await?;
        let open = opened.composites.get(&composite.uuid);
        let open = open.ok_or_else(|| not_found("composite", &composite.name))?;
        Ok(open.coded.look_after(false).await)
    }

    /// Drives leave, or are lost. Where there is no vPool nothing is on them, and they are none any more at once.
    pub(super) async fn let_go(
        &self,
        change: Change,
        going: &[Uuid],
        duty: DutyRecord,
        why: &str,
    ) -> Result<BackendRecord, Problem> {
        let mut drives = Drives::of(change.record())?;
        let mut names: Vec<&str> =
            going.iter().filter_map(|uuid| Some(change.set.backend(*uuid).ok()?.name.as_str())).collect();
        names.sort_unstable();
        let what = match duty {
            DutyRecord::Leaving => "leaving",
            DutyRecord::Lost | DutyRecord::GivenUp => "lost",
        };
        if change.pool.is_none() {
            let is_being_emptied = is_being_emptied(&change.set, change.uuid());
            let is_lost = duty != DutyRecord::Leaving;
            if is_being_emptied && !is_lost {
                let name = &change.record().name;
                let detail = format!(
                    "backend {name} was a drive: what is left there is being removed, ask again later"
                );
                return Err(conflict(detail));
            }
            self.check_all_can_be_read().await?;
            drives.drives.retain(|uuid| !going.contains(uuid));
            drives.duties.retain(|uuid, _| !going.contains(uuid));
            let mut detail = format!("{} left, with nothing on it", names.join(", "));
            if is_being_emptied {
                // What is left there is not waited for, and is old if it comes back.
                detail = format!("{}: lost, {why}", names.join(", "));
                for uuid in going {
                    let place = change.set.place(*uuid);
                    drives.departed.push(DepartedRecord {
                        uuid: *uuid,
                        node: place.node,
                        site: place.site,
                        weight: change.set.backend(*uuid)?.labels.weight,
                        left_behind: None,
                        was_lost: true,
                    });
                }
            }
            return self.store_change(&change, drives, detail, |_, _, _| {}).await;
        }
        drives.duties.extend(going.iter().map(|uuid| (*uuid, duty)));
        let detail = format!("{}: {what}, {why}", names.join(", "));
        self.store_change(&change, drives, detail, |volumes, change, set| {
            volumes.set_duties(change, set, going);
        })
        .await
    }

    /// Drives that have been silent for too long are lost. False: something has changed since that was found.
    pub(super) async fn give_up(
        &self,
        composite: Uuid,
        generation: u64,
        drives: &[Uuid],
        why: &str,
    ) -> Result<bool, Problem> {
        let change = self.begin_change(composite).await?;
        let is_of_now =
            self.open_composite(composite).is_some_and(|(_, open)| open.generation() == generation);
        let are_serving =
            |uuid: &Uuid| change.record().drives().contains(uuid) && change.record().duty(*uuid).is_none();
        // One that came back while this waited is none of those.
        let is_silent = self
            .open_composite(composite)
            .is_some_and(|(_, open)| drives.iter().all(|uuid| open.silent().contains(uuid)));
        if !is_of_now || !is_silent || !drives.iter().all(are_serving) {
            return Ok(false);
        }
        self.let_go(change, drives, DutyRecord::Lost, why).await.map(|_| true)
    }

    pub(super) async fn composite_named(&self, name: &Name) -> Result<Stored<BackendRecord>, Problem> {
        let stored = self.backend_by_name(name).await?.ok_or_else(|| not_found("backend", name))?;
        Drives::of(&stored.record).map(|_| stored)
    }

    /// Takes care that nobody else changes a composite, and that the vPool on it, if any, stays as it is.
    pub(super) async fn begin_change(&self, composite: Uuid) -> Result<Change, Problem> {
        let locked = self.locks.lock("backends").await;
        let set = self.backend_set().await?;
        let root = set.root(composite);
        let log = |error: CatalogueError| tracing::error!(%error, "a vPool's record cannot be read");
        let vpools = self.catalogue.all::<VpoolRecord>(log).await.map_err(from_catalogue)?;
        let user = vpools.into_iter().map(|stored| stored.record).find(|record| record.backend == root);
        let (pool, vpool_locked) = match user {
            Some(VpoolRecord { state: State::Ready, id, .. }) => {
                let vpool_locked = self.locks.lock(format!("vpool/{id}")).await;
                (Some(self.pool(id)?), Some(vpool_locked))
            }
            Some(VpoolRecord { name, .. }) => {
                let detail = format!(
                    "vPool {name} is being made or deleted, which goes on by itself: ask again later"
                );
                return Err(conflict(detail));
            }
            None => {
                self.check_all_can_be_read().await?;
                (None, None)
            }
        };
        let stored = self.catalogue.get::<BackendRecord>(composite).await.map_err(from_catalogue)?;
        Ok(Change { stored, set, root, pool, _locked: (locked, vpool_locked) })
    }

    /// Writes down what a composite's drives are for, everywhere where that is kept, and then makes it so.
    pub(super) async fn store_change(
        &self,
        change: &Change,
        drives: Drives,
        detail: String,
        make_it_so: impl FnOnce(&Volumes, &Change, &BackendSet),
    ) -> Result<BackendRecord, Problem> {
        let record = changed(change, drives);
        let record = self.catalogue.update(&change.stored, record).await.map_err(from_catalogue)?.record;
        // From here on it is so after a start. What cannot be written now is tried again.
        self.keep_inventory().await;
        if change.pool.is_some() {
            match self.renew_layout(change.root).await {
                Ok(lacking) if lacking.is_empty() => {}
                Ok(_) => {
                    tracing::info!(backend = %record.name, "drives that are away get the new layout when they are back")
                }
                Err(problem) => {
                    tracing::warn!(backend = %record.name, %problem, "the layout on its drives is not renewed yet")
                }
            }
        }
        make_it_so(self, change, &change.set.with(record.clone()));
        self.publish(EventKind::BackendChanged, |event| {
            event.subject = Some(record.uuid);
            event.name = Some(record.name.to_string());
            event.revision = Some(record.version);
            event.detail = Some(detail);
        });
        Ok(record)
    }

    /// What is open does as the record says.
    fn set_duties(&self, change: &Change, set: &BackendSet, drives: &[Uuid]) {
        for uuid in drives {
            let duty = duty_of(set.backend(change.uuid()).ok().and_then(|record| record.duty(*uuid)));
            if duty == Duty::Lost {
                self.drop_drive(change, set, *uuid, duty);
                continue;
            }
            if let Some(open) = change.pool.as_ref().and_then(|pool| pool.composite(change.uuid())) {
                if !open.coded.set_duty(*uuid, duty) {
                    tracing::error!(composite = %open.name, drive = %uuid, ?duty, "a drive does not take its duty");
                }
                let member = open.members().get(uuid).cloned();
                if let Some(member) = member {
                    open.set_member(*uuid, Member { duty, ..member });
                }
            }
        }
    }

    /// Nobody asks it any more.
    pub(super) fn drop_drive(&self, change: &Change, set: &BackendSet, drive: Uuid, duty: Duty) {
        let Some(pool) = &change.pool else { return };
        if let Some(open) = pool.composite(change.uuid()) {
            if !open.coded.set_duty(drive, duty) {
                tracing::error!(composite = %open.name, %drive, ?duty, "a drive does not take its duty");
            }
            let member = open.members().get(&drive).cloned();
            match member {
                Some(member) if duty == Duty::Lost => open.set_member(drive, Member { duty, ..member }),
                _ => open.remove_member(drive),
            }
        }
        let namespace = pool.record().namespace;
        for part in set.parts(drive).unwrap_or_default() {
            self.forget_drive(part.uuid, &namespace);
            pool.forget_part(part.uuid);
        }
    }

    /// A drive that was begun takes fragments from now on.
    fn use_drive(&self, change: &Change, set: &BackendSet, drive: Uuid, begun: Opened) {
        let Some(pool) = &change.pool else { return };
        let Ok(record) = set.backend(drive) else { return };
        let Some(open) = pool.composite(change.uuid()) else { return };
        let (place, weight) = (set.place(drive), record.labels.weight);
        let (node, site, duty) = (place.node.clone(), place.site.clone(), Duty::Serving);
        let Opened { store: backend, drives, composites } = begun;
        pool.add_parts(drives, composites);
        let added = open.coded.add_drive(coded::Drive { id: drive, node, site, weight, backend, duty });
        if let Err(error) = added {
            tracing::error!(composite = %open.name, %error, "a new drive is used after the next start only");
        }
        open.set_member(drive, Member { name: record.name.clone(), place, duty });
    }
}

/// The record as it will be.
fn changed(change: &Change, drives: Drives) -> BackendRecord {
    let mut record = change.record().clone();
    record.store = drives.store();
    record.format = BackendRecord::format_of(&record.store);
    record.version += 1;
    // Where fragments are follows from its node: what it is made of is no matter any more.
    if change.set.composite_of(record.uuid).is_some() {
        record.labels.node.get_or_insert_with(|| change.set.place(record.uuid).node);
    }
    record
}

/// A drive is already as much on its way as is asked for.
fn is_as_much(now: Option<DutyRecord>, asked: DutyRecord) -> bool {
    let rank = |duty: DutyRecord| match duty {
        DutyRecord::Leaving => 1,
        DutyRecord::Lost => 2,
        DutyRecord::GivenUp => 3,
    };
    now.map_or(0, rank) >= rank(asked)
}

/// What was lost as a drive is old, and what left one is still being removed.
pub(super) fn check_is_no_relic(set: &BackendSet, record: &BackendRecord) -> Result<(), Problem> {
    for composite in set.by_name() {
        let Some(gone) = composite.departed().iter().find(|gone| gone.uuid == record.uuid) else { continue };
        if gone.was_lost {
            let detail = format!(
                "backend {} was a drive of {} and was given up as lost: what is on it is old. {}",
                record.name,
                composite.name,
                how_to_use_again(record)
            );
            return Err(conflict(detail));
        }
        if gone.left_behind.is_some() {
            let detail = format!(
                "backend {} was a drive of {}: what is left there is being removed, ask again later",
                record.name, composite.name
            );
            return Err(conflict(detail));
        }
    }
    Ok(())
}

fn how_to_use_again(record: &BackendRecord) -> String {
    let name = &record.name;
    match record.folder() {
        Some(folder) => format!(
            "To use the disk again: empty {folder} when it is no drive any more, ovs backend delete {name}, ovs backend create {name} \
             --path {folder}, and add that"
        ),
        None => format!(
            "To use the place again: empty it when it is no drive any more, ovs backend delete {name}, make it anew with ovs backend \
             create, and add that"
        ),
    }
}

/// What another drive or vPool has left in a directory.
fn find_left(root: &Path, drive: Uuid, namespace: Option<&str>) -> std::io::Result<Option<String>> {
    let own_mark = mark_of(root, drive);
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_mark = name.strip_prefix("ovs-drive-").is_some_and(|uuid| Uuid::try_parse(uuid).is_ok());
        let is_vpool = name.strip_prefix("vpool-").is_some_and(|uuid| Uuid::try_parse(uuid).is_ok());
        // What is in the vPool's own is looked at when it is opened.
        if is_mark && entry.path() != own_mark || is_vpool && namespace != Some(name.as_str()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
