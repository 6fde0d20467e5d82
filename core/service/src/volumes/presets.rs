//! Presets: how a composite spreads objects over its drives. A preset never changes but for its keys (`rotate.rs`): what was put
//! under another policy is not brought up to a new one yet.

use super::{
    Volumes,
    idempotency::Terms,
    keys,
    problem::{exists, from_catalogue, not_found},
    secrets::Secrets,
};
use ovs_api::{
    Compression, CreatePreset, Created, Encryption, Labels, ListQuery, Page, Policy, Preset, Problem,
    ProblemKind, SecretReference,
};
use ovs_backend::coded;
use ovs_cluster::catalogue::{CatalogueError, CompressionRecord, FORMAT, PolicyRecord, PresetRecord, Stored};
use ovs_units::Name;
use std::num::NonZeroU32;
use uuid::Uuid;

/// The preset of whatever is no composite: one copy of each object, whole, as it is.
pub(crate) const PRESET: &str = "default";
/// Its UUID, for ever.
const PRESET_UUID: Uuid = Uuid::from_u128(0x6f76_735f_7072_6573_6574_0000_0000_0001);

impl Volumes {
    /// Makes a preset.
    pub async fn create_preset(
        &self,
        request: CreatePreset,
        terms: Terms,
    ) -> Result<Created<Preset>, Problem> {
        let _locked = self.locks.lock("backends").await;
        let asked = serde_json::to_value(&request).unwrap_or_default();
        if let Some(uuid) = self.idempotent::<PresetRecord>(&terms, &asked).await? {
            let known = self.catalogue.get::<PresetRecord>(uuid).await.map_err(from_catalogue)?;
            return Ok(Created::existing(self.show_preset(&known.record).await?));
        }
        if request.name.as_str() == PRESET {
            return Err(exists("preset", &request.name, PRESET_UUID));
        }
        if let Some(known) = self.preset_by_name(&request.name).await? {
            if known.record.request != asked {
                return Err(exists("preset", &request.name, known.record.uuid));
            }
            return Ok(Created::existing(self.show_preset(&known.record).await?));
        }
        let uuid = self.chance.uuid();
        let key = match request.encryption {
            Encryption::None => None,
            Encryption::Aes256Gcm => request.key.as_ref().map(SecretReference::as_str),
        };
        let mut made = Vec::new();
        if let Some(reference) = key {
            let secret = self.secrets().key(reference).await?;
            made.push(keys::make(&keys::parse(&secret, reference)?, uuid, 1, &*self.chance));
        }
        let record = PresetRecord {
            format: FORMAT,
            uuid,
            name: request.name,
            version: 1,
            compression: to_compression(request.compression),
            policies: request.policies.iter().copied().map(to_policy).collect(),
            fragment_bytes: u32::try_from(request.fragment_size_bytes).unwrap_or(u32::MAX),
            key: key.map(str::to_owned),
            keys: made,
            encrypts_under: None,
            labels: request.labels.0,
            created_ms: self.clock.wall_ms(),
            request: asked.clone(),
        };
        // Refused here, if at all, by the one who will use it.
        open_preset(&record, &self.secrets()).await?;
        let record = self.catalogue.insert(record).await.map_err(from_catalogue)?.record;
        self.write_inventory().await?;
        self.remember(&terms, &asked, record.uuid).await?;
        Ok(Created::new(self.show_preset(&record).await?))
    }

    /// The presets by name, the built-in one among them.
    pub async fn list_presets(&self, query: ListQuery) -> Result<Page<Preset>, Problem> {
        let mut presets = vec![built_in_preset()];
        for record in self.all_presets().await? {
            presets.push(self.show_preset(&record).await?);
        }
        presets.sort_by(|one, other| one.name.cmp(&other.name));
        let items = presets.into_iter().map(|preset| (preset.name.to_string(), preset));
        Page::cut(items, query.limit, query.cursor.as_ref())
    }

    /// One preset.
    pub async fn get_preset(&self, name: Name) -> Result<Preset, Problem> {
        if name.as_str() == PRESET {
            return Ok(built_in_preset());
        }
        let stored = self.preset_by_name(&name).await?.ok_or_else(|| not_found("preset", &name))?;
        self.show_preset(&stored.record).await
    }

    /// Deletes a preset that no backend uses, and the keys that are in it.
    pub async fn delete_preset(&self, name: Name, terms: Terms) -> Result<(), Problem> {
        let _locked = self.locks.lock("backends").await;
        if name.as_str() == PRESET {
            return Err(Problem::new(ProblemKind::InUse, "the preset default is built in and stays"));
        }
        let stored = self.preset_by_name(&name).await?.ok_or_else(|| not_found("preset", &name))?;
        terms.check_revision(stored.record.version)?;
        if let Some(backend) = self.backends_of_preset(stored.record.uuid).await?.first() {
            let detail = format!("preset {name} is used by backend {backend}: delete that first");
            return Err(Problem::new(ProblemKind::InUse, detail));
        }
        self.check_all_can_be_read().await?;
        self.change_inventory(|inventory| inventory.forget(stored.record.uuid)).await?;
        self.catalogue.remove(&stored).await.map_err(from_catalogue)?;
        self.object_gone(stored.record.uuid).await;
        Ok(())
    }

    pub(super) async fn preset_by_name(&self, name: &Name) -> Result<Option<Stored<PresetRecord>>, Problem> {
        self.catalogue.find_by(&PresetRecord::name_key(name)).await.map_err(from_catalogue)
    }

    pub(super) async fn all_presets(&self) -> Result<Vec<PresetRecord>, Problem> {
        let log = |error: CatalogueError| tracing::error!(%error, "a preset's record cannot be read");
        let stored = self.catalogue.all::<PresetRecord>(log).await.map_err(from_catalogue)?;
        Ok(stored.into_iter().map(|stored| stored.record).collect())
    }

    pub(super) async fn show_preset(&self, record: &PresetRecord) -> Result<Preset, Problem> {
        let waiting = record.encrypts_under.and(record.keys.last()).map(|key| key.number);
        let drives_behind = match record.key {
            Some(_) => self.drives_behind(record.uuid).await?,
            None => Vec::new(),
        };
        Ok(Preset {
            uuid: record.uuid,
            name: record.name.clone(),
            revision: record.version,
            compression: from_compression(record.compression),
            encryption: if record.key.is_some() { Encryption::Aes256Gcm } else { Encryption::None },
            key: record.key.clone().and_then(|key| SecretReference::try_from(key).ok()),
            data_key: record.key_in_use(),
            data_key_waiting: waiting,
            drives_behind,
            fragment_size_bytes: record.fragment_bytes.into(),
            policies: record.policies.iter().copied().map(from_policy).collect(),
            is_default: false,
            backends: self.backends_of_preset(record.uuid).await?,
            labels: Labels(record.labels.clone()),
        })
    }
}

/// The preset as a coded backend takes it, its keys among it.
pub(super) async fn open_preset(record: &PresetRecord, secrets: &Secrets) -> Result<coded::Preset, Problem> {
    let refused = |error: coded::PresetError| {
        Problem::new(ProblemKind::Conflict, format!("preset {}: {error}", record.name))
    };
    let policies = record.policies.iter().map(|p| coded::Policy::new(p.k, p.m, p.c, p.x));
    let policies = policies.collect::<Result<Vec<_>, _>>().map_err(refused)?;
    let opened = open_keys(record, secrets).await?;
    let compression = match record.compression {
        CompressionRecord::None => coded::Compression::None,
        CompressionRecord::Lz4 => coded::Compression::Lz4,
        CompressionRecord::Zstd => coded::Compression::Zstd,
    };
    let preset =
        coded::Preset::new(policies).and_then(|preset| preset.with_fragments_of(record.fragment_bytes));
    preset.and_then(|preset| preset.with_compression(compression).with_keys(opened)).map_err(refused)
}

/// Its keys as a coded backend takes them: the last one is for new objects.
pub(super) async fn open_keys(record: &PresetRecord, secrets: &Secrets) -> Result<Vec<coded::Key>, Problem> {
    let Some(reference) = &record.key else { return Ok(Vec::new()) };
    let secret = secrets.key(reference).await?;
    let operators = keys::parse(&secret, reference)?;
    let (mut opened, mut in_use) = (Vec::new(), None);
    for key in &record.keys {
        let number = NonZeroU32::new(key.number).ok_or_else(|| {
            Problem::new(ProblemKind::Damaged, format!("preset {}: a key has no number", record.name))
        })?;
        let opened_key = coded::Key::new(number, &keys::unwrap(&operators, record, key)?);
        match record.key_in_use() == Some(key.number) {
            true => in_use = Some(opened_key),
            false => opened.push(opened_key),
        }
    }
    opened.extend(in_use);
    Ok(opened)
}

fn built_in_preset() -> Preset {
    Preset {
        uuid: PRESET_UUID,
        name: Name::new(PRESET).expect("a name"),
        revision: 1,
        compression: Compression::None,
        encryption: Encryption::None,
        key: None,
        data_key: None,
        data_key_waiting: None,
        drives_behind: Vec::new(),
        fragment_size_bytes: 4 << 20,
        policies: vec![Policy { k: 1, m: 0, c: 1, x: 1 }],
        is_default: true,
        backends: Vec::new(),
        labels: Labels::default(),
    }
}

fn to_compression(compression: Compression) -> CompressionRecord {
    match compression {
        Compression::None => CompressionRecord::None,
        Compression::Lz4 => CompressionRecord::Lz4,
        Compression::Zstd => CompressionRecord::Zstd,
    }
}

fn from_compression(compression: CompressionRecord) -> Compression {
    match compression {
        CompressionRecord::None => Compression::None,
        CompressionRecord::Lz4 => Compression::Lz4,
        CompressionRecord::Zstd => Compression::Zstd,
    }
}

fn to_policy(policy: Policy) -> PolicyRecord {
    PolicyRecord { k: policy.k, m: policy.m, c: policy.c, x: policy.x.into() }
}

/// The registry's word as the API's.
pub(super) fn from_policy(policy: PolicyRecord) -> Policy {
    Policy { k: policy.k, m: policy.m, c: policy.c, x: u8::try_from(policy.x).unwrap_or(u8::MAX) }
}
