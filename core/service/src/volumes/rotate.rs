//! Rotating the keys of a preset: the same keys of objects under another key of the operator's, or one more of them. No object is
//! written again.
//!
//! ```text
//!  finish what was left ─▶ unwrap all under the old key ─▶ wrap under the new one ─▶ registry ─▶ vpools.json ─▶ layouts on the drives
//!  a new key of objects: all that, and then: every drive has it ─▶ registry: it is used ─▶ composites that are open use it
//! ```
//!
//! A crash before the registry changes nothing, and one after it is finished by the next start: `vpools.json` and the layouts follow
//! what the registry says. Nothing is encrypted under a key that a drive of its vPools may lack: of whatever drives are left, those
//! that a vPool can be opened with tell how to read it.

use super::{
    Pool, Volumes,
    idempotency::Terms,
    keys,
    layout::Due,
    presets::{PRESET, open_keys, open_preset},
    problem::{from_catalogue, not_found},
};
use ovs_api::{Preset, Problem, ProblemKind, RotatePreset, SecretReference};
use ovs_cluster::catalogue::{PresetRecord, VpoolRecord};
use ovs_units::Name;
use std::{collections::BTreeSet, rc::Rc};
use uuid::Uuid;

/// Keys of objects that a preset has at most: all of them are in every layout.
const KEYS_MAX: usize = 1000;

impl Volumes {
    /// Keeps the keys of a preset's objects under another key from now on, or adds one that new objects are encrypted under.
    pub async fn rotate_preset(
        &self,
        name: Name,
        request: RotatePreset,
        terms: Terms,
    ) -> Result<Preset, Problem> {
        let _locked = self.locks.lock("backends").await;
        let asked = serde_json::json!({"preset": name, "rotate": request});
        if let Some(uuid) = self.idempotent::<PresetRecord>(&terms, &asked).await? {
            let known = self.catalogue.get::<PresetRecord>(uuid).await.map_err(from_catalogue)?;
            return self.show_preset(&known.record).await;
        }
        let conflict = |detail: String| Problem::new(ProblemKind::Conflict, detail);
        if name.as_str() == PRESET {
            return Err(conflict("the preset default encrypts nothing, and has no key".into()));
        }
        let stored = self.preset_by_name(&name).await?.ok_or_else(|| not_found("preset", &name))?;
        terms.check_revision(stored.record.version)?;
        let Some(place) = stored.record.key.clone() else {
            return Err(conflict(format!("preset {name} encrypts nothing, and has no key")));
        };
        let next = request.key.as_ref().map_or(place.as_str(), SecretReference::as_str);
        if request.key.is_some() && next == place {
            let detail = format!(
                "key: {next} is where the key of preset {name} is now, and what is in there has to open what it closed. Put the new \
                 key elsewhere and name that; without a key, new_data_key (--new-data-key) alone leaves it where it is"
            );
            return Err(conflict(detail));
        }
        let record = self.rotated(&stored.record, &place, next, request.new_data_key).await?;
        // What an earlier crash has left is finished, and a registry that was put back is noticed, before anything is written.
        self.renew_layouts_of(record.uuid).await?;
        self.mark_layouts_due(&self.pools_under(record.uuid).await?);
        let stored = self.catalogue.update(&stored, record).await.map_err(from_catalogue)?;
        tracing::warn!(preset = %name, key = stored.record.key, "its keys are rotated");
        self.write_inventory().await?;
        self.remember(&terms, &asked, stored.record.uuid).await?;
        // It is done: what is left goes on by itself, and the answer says so.
        let brought = async {
            self.renew_layouts_of(stored.record.uuid).await?;
            self.use_newest_key(stored.record.uuid).await
        };
        if let Err(problem) = brought.await {
            tracing::error!(preset = %name, %problem, "its keys are rotated, and not on the drives yet");
        }
        let now = self.catalogue.get::<PresetRecord>(stored.record.uuid).await.map_err(from_catalogue)?;
        self.show_preset(&now.record).await
    }

    /// The record with its keys under the key in `next`, and one key more if that is asked for.
    async fn rotated(
        &self,
        record: &PresetRecord,
        place: &str,
        next: &str,
        new_data_key: bool,
    ) -> Result<PresetRecord, Problem> {
        let secrets = self.secrets();
        let old = keys::parse(&secrets.key(place).await?, place)?;
        let new = keys::parse(&secrets.key(next).await?, next)?;
        let mut rotated = PresetRecord {
            key: Some(next.to_owned()),
            keys: Vec::new(),
            version: record.version + 1,
            ..record.clone()
        };
        for known in &record.keys {
            let key = keys::unwrap(&old, record, known)?;
            rotated.keys.push(keys::wrap(&new, record.uuid, known.number, &key, &*self.chance));
        }
        if new_data_key {
            if record.encrypts_under.is_some() {
                let behind: Vec<String> =
                    self.drives_behind(record.uuid).await?.iter().map(Name::to_string).collect();
                let detail = format!(
                    "preset {}: its newest key is not used before every drive has it: {}",
                    record.name,
                    if behind.is_empty() { "ask again later".to_owned() } else { behind.join(", ") }
                );
                return Err(Problem::new(ProblemKind::Conflict, detail));
            }
            let last = record.keys.iter().map(|key| key.number).max().unwrap_or(0);
            let number = last.checked_add(1).filter(|_| record.keys.len() < KEYS_MAX);
            let number = number.ok_or_else(|| {
                let detail = format!("preset {}: it has {KEYS_MAX} keys, and takes no more", record.name);
                Problem::new(ProblemKind::Conflict, detail)
            })?;
            rotated.keys.push(keys::make(&new, record.uuid, number, &*self.chance));
            // Nobody waits where there is nobody.
            let is_used = !self.pools_under(record.uuid).await?.is_empty();
            rotated.encrypts_under = record.key_in_use().filter(|_| is_used);
        }
        // Refused here, if at all, by the one who will use it.
        open_preset(&rotated, &secrets).await?;
        Ok(rotated)
    }

    /// Brings what the registry says of a preset to the drives of all vPools under it, as far as they answer.
    async fn renew_layouts_of(&self, preset: Uuid) -> Result<(), Problem> {
        for pool in self.pools_under(preset).await? {
            self.renew_layout(pool.record().backend).await?;
        }
        Ok(())
    }

    /// The vPools that have a composite under this preset.
    async fn pools_under(&self, preset: Uuid) -> Result<Vec<Rc<Pool>>, Problem> {
        let set = self.backend_set().await?;
        let is_under = |pool: &Rc<Pool>| set.is_under(pool.record().backend, preset);
        Ok(self.all_pools().into_iter().filter(is_under).collect())
    }

    fn mark_layouts_due(&self, pools: &[Rc<Pool>]) {
        let mut due = self.layouts_due.borrow_mut();
        due.extend(pools.iter().map(|pool| (pool.record().id, Due::default())));
    }

    /// Drives of the vPools under a preset that may not have its newest record.
    pub(super) async fn drives_behind(&self, preset: Uuid) -> Result<Vec<Name>, Problem> {
        let (set, due) = (self.backend_set().await?, self.layouts_due.borrow());
        let mut behind = BTreeSet::new();
        for pool in self.all_pools() {
            let VpoolRecord { id, backend, .. } = pool.record();
            if let Some(due) = due.get(&id).filter(|_| set.is_under(backend, preset)) {
                behind.extend(due.drives().unwrap_or_else(|| set.drives_of_all(backend)));
            }
        }
        Ok(behind.into_iter().collect())
    }

    /// The newest key of objects is used once every drive of the vPools under the preset has it. Whoever calls this holds the
    /// lock of backends.
    async fn use_newest_key(&self, preset: Uuid) -> Result<(), Problem> {
        let found = self.catalogue.find::<PresetRecord>(preset).await.map_err(from_catalogue)?;
        let Some(stored) = found.filter(|stored| stored.record.encrypts_under.is_some()) else {
            return Ok(());
        };
        let pools = self.pools_under(preset).await?;
        if pools.iter().any(|pool| self.layouts_due.borrow().contains_key(&pool.record().id)) {
            return Ok(());
        }
        let version = stored.record.version + 1;
        let newest = PresetRecord { encrypts_under: None, version, ..stored.record.clone() };
        // What cannot be done is found out before it is written down.
        let keys = open_keys(&newest, &self.secrets()).await?;
        self.mark_layouts_due(&pools);
        let stored = self.catalogue.update(&stored, newest).await.map_err(from_catalogue)?;
        for pool in &pools {
            // Who is opening it has read either record, and is through when this is free.
            let _opened = self.locks.lock(format!("vpool/{}", pool.record().id)).await;
            pool.set_keys(preset, &keys)?;
        }
        tracing::warn!(preset = %stored.record.name, key = stored.record.key_in_use(), "new objects are encrypted under another key");
        self.write_inventory().await?;
        self.renew_layouts_of(preset).await
    }

    /// The same for all presets that wait for a drive.
    pub(super) async fn use_newest_keys(&self) -> Result<(), Problem> {
        let is_waiting = |record: &PresetRecord| record.encrypts_under.is_some();
        for record in self.all_presets().await?.into_iter().filter(is_waiting) {
            let _locked = self.locks.lock("backends").await;
            self.use_newest_key(record.uuid).await?;
        }
        Ok(())
    }
}
