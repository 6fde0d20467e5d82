//! Records and volumes as the API's documents.

use super::{Volumes, open::shown_snapshots, pools::from_on_full, problem::from_catalogue};
use ovs_api::{
    Base, Labels, Page, Problem, ProblemKind, Snapshot, Timestamp, Vdisk as ApiVdisk, VdiskCacheStats,
    VdiskQuery, VdiskRef, VdiskState, VdiskStats,
};
use ovs_api::{Cursor, LIMIT_DEFAULT, ListQuery};
use ovs_cluster::catalogue::{State, VdiskRecord};
use ovs_units::Name;
use ovs_volume::{SnapshotInfo, VdiskState as EngineState};

impl Volumes {
    /// The vDisks, by vPool and name.
    pub async fn list_vdisks(&self, query: VdiskQuery) -> Result<Page<ApiVdisk>, Problem> {
        let after = query.cursor.as_ref().map(Cursor::key).transpose()?;
        let limit = query.limit.unwrap_or(LIMIT_DEFAULT) as usize;
        let pools = match &query.vpool {
            Some(name) => vec![self.pool_by_name(name)?.record()],
            None => self.all_pools().iter().map(|pool| pool.record()).collect(),
        };
        let mut page = Page { items: Vec::new(), next_cursor: None };
        let mut last_key = None;
        for pool in pools {
            let names =
                self.catalogue.index(&VdiskRecord::names_prefix(pool.id)).await.map_err(from_catalogue)?;
            for (name, uuid) in names {
                let key = format!("{}/{name}", pool.name);
                let is_wanted = query.name.as_ref().is_none_or(|wanted| wanted.as_str() == name);
                if !is_wanted || after.as_ref().is_some_and(|after| sort_key(&key) <= sort_key(after)) {
                    continue;
                }
                // A damaged record must not hide the others; opening it tells what is wrong with it.
                let Ok(Some(stored)) = self.catalogue.find::<VdiskRecord>(uuid).await else { continue };
                let record = stored.record;
                let is_shown = record.state == State::Ready
                    && query.is_template.is_none_or(|wanted| record.template.is_some() == wanted)
                    && Labels(record.labels.clone()).match_all(&query.label);
                if !is_shown {
                    continue;
                }
                if page.items.len() == limit {
                    page.next_cursor = last_key.as_deref().map(Cursor::after);
                    return Ok(page);
                }
                page.items.push(self.show_vdisk(&record).await?);
                last_key = Some(key);
            }
        }
        Ok(page)
    }

    /// One vDisk.
    pub async fn get_vdisk(&self, reference: VdiskRef) -> Result<ApiVdisk, Problem> {
        let id = self.resolve(&reference).await?;
        // What cannot be opened is shown with the reason; what somebody works on, as it is.
        let _ = match self.engine.vdisk(id) {
            Some(_) => self.open_unless_locked(id).await,
            None => self.ensure_open(id).await.map(drop),
        };
        let stored = self.live_record(id).await?;
        self.show_vdisk(&stored.record).await
    }

    /// A record as the API's document.
    pub(super) async fn show_vdisk(&self, record: &VdiskRecord) -> Result<ApiVdisk, Problem> {
        let vpool = match self.vpool_name(record.vpool) {
            Some(name) => name,
            None => Name::new("unknown").expect("a name"),
        };
        let paths = &self.settings.paths;
        let vdisk = self.engine.vdisk(record.id);
        let stats = vdisk.as_ref().map(|vdisk| vdisk.stats());
        let (state, state_reason) = match (self.slot(record.id).problem(), &stats) {
            (Some(problem), _) => (state_of(&problem), Some(problem.detail)),
            (None, Some(stats)) => from_engine_state(&stats.state),
            (None, None) => (VdiskState::Offline, Some("it is not opened yet".to_owned())),
        };
        Ok(ApiVdisk {
            uuid: record.id,
            name: record.name.clone(),
            revision: record.version,
            size_bytes: record.size_bytes,
            capacity_bytes: record.capacity().0,
            allocated_bytes: stats.as_ref().map_or(0, |stats| stats.mapped.0),
            buffered_bytes: stats.as_ref().map_or(0, |stats| stats.buffered.0),
            state,
            state_reason,
            is_template: record.template.is_some(),
            protected: record.protected,
            base: record.base.as_ref().map(|base| Base { vdisk: base.vdisk, snapshot: base.snapshot }),
            snapshot_count: vdisk
                .as_ref()
                .map_or(record.snapshots.len(), |vdisk| shown_snapshots(record, vdisk).len())
                as u64,
            attachment_count: self.attachments.list(Some(record.id)).len() as u64,
            on_full: from_on_full(record.on_full),
            stall_timeout_ms: record.stall_timeout_ms,
            limits: record.limits,
            cache: record.cache,
            host: self.settings.host_name.clone(),
            nbd_socket: paths.nbd_vdisk_socket(record.id).to_string_lossy().into_owned(),
            nbd_uri: paths.nbd_uri(record.id),
            // Names need no escape in a path.
            nbd_tls_uri: self
                .settings
                .nbd_authority
                .as_ref()
                .map(|authority| format!("nbds://{authority}/{vpool}/{}", record.name)),
            qemu_filename: paths.qemu_filename(record.id),
            fuse_path: paths.fuse_file(&vpool, &record.name).to_string_lossy().into_owned(),
            vpool,
            description: record.description.clone(),
            labels: Labels(record.labels.clone()),
            created_at: Timestamp::from_unix_ms(record.created_ms),
        })
    }

    /// Counters of a vDisk.
    pub async fn get_vdisk_stats(&self, reference: VdiskRef) -> Result<VdiskStats, Problem> {
        let id = self.resolve(&reference).await?;
        let vdisk = self.ensure_open(id).await?;
        let stats = vdisk.stats();
        Ok(VdiskStats {
            vdisk: id,
            epoch: stats.epoch,
            sequence: stats.sequence,
            read_count: stats.reads,
            write_count: stats.writes,
            flush_count: stats.flushes,
            read_bytes: stats.read_bytes,
            written_bytes: stats.written_bytes,
            backend_put_bytes: stats.backend_put_bytes,
            allocated_bytes: stats.mapped.0,
            buffered_bytes: stats.buffered.0,
            stored_bytes: stats.stored.0,
            reclaimable_bytes: stats.reclaimable.map(|bytes| bytes.0),
            shared_bytes: stats.shared.map(|bytes| bytes.0),
            scrub_moved_bytes: stats.scrub_moved_bytes,
            scrub_freed_bytes: stats.scrub_freed_bytes,
            throttled_count: stats.throttled,
            throttled_ms: stats.throttled_for.as_millis() as u64,
            cache: vdisk.cache_stats().map(|cache| VdiskCacheStats {
                mode: cache.mode,
                quota_bytes: cache.quota_bytes,
                used_bytes: cache.used_bytes,
                hit_count: cache.hits,
                miss_count: cache.misses,
            }),
        })
    }

    /// A snapshot as the API's document.
    pub(super) fn show_snapshot(&self, record: &VdiskRecord, snapshot: &SnapshotInfo) -> Snapshot {
        let vpool = self.vpool_name(record.vpool).unwrap_or_else(|| Name::new("unknown").expect("a name"));
        let known = record.snapshots.get(&snapshot.id);
        Snapshot {
            uuid: snapshot.id,
            vdisk: record.id,
            nbd_export: format!("{vpool}/{}@{}", record.name, snapshot.name),
            vpool,
            vdisk_name: record.name.clone(),
            name: snapshot.name.clone(),
            revision: known.map_or(1, |known| known.version),
            size_bytes: known.map_or(snapshot.size.0, |known| known.size_bytes),
            on_backend: snapshot.on_backend,
            clone_count: snapshot.clone_count,
            description: known.map(|known| known.description.clone()).unwrap_or_default(),
            labels: Labels(known.map(|known| known.labels.clone()).unwrap_or_default()),
            created_at: Timestamp::from_unix_ms(snapshot.created_ms),
        }
    }

    /// A vDisk's snapshots, the oldest first.
    pub async fn list_snapshots(
        &self,
        reference: VdiskRef,
        query: ListQuery,
    ) -> Result<Page<Snapshot>, Problem> {
        let id = self.resolve(&reference).await?;
        let vdisk = self.ensure_open(id).await?;
        let record = self.live_record(id).await?.record;
        let items = shown_snapshots(&record, &vdisk)
            .into_iter()
            .map(|snapshot| (format!("{:020}", snapshot.sequence.0) + &snapshot.id.to_string(), snapshot))
            .collect::<std::collections::BTreeMap<_, _>>();
        let page = Page::cut(items, query.limit, query.cursor.as_ref())?;
        let shown = page.items.iter().map(|snapshot| self.show_snapshot(&record, snapshot)).collect();
        Ok(Page { items: shown, next_cursor: page.next_cursor })
    }
}

/// `vpool/name` in the order of vPools and then names ('/' sorts before what names hold, except '-' and '.').
fn sort_key(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or((key, ""))
}

fn state_of(problem: &Problem) -> VdiskState {
    match problem.kind() {
        ProblemKind::Damaged => VdiskState::Damaged,
        _ => VdiskState::Offline,
    }
}

fn from_engine_state(state: &EngineState) -> (VdiskState, Option<String>) {
    match state {
        EngineState::Ok => (VdiskState::Ok, None),
        EngineState::Degraded(reason) => (VdiskState::Degraded, Some(reason.clone())),
        EngineState::Stalled(reason) => (VdiskState::Stalled, Some(reason.clone())),
        EngineState::Damaged(reason) => (VdiskState::Damaged, Some(reason.clone())),
        EngineState::Offline(reason) => (VdiskState::Offline, Some(reason.clone())),
    }
}
